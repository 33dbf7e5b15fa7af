"""Peers of the fit benchmark that train with Lightning. Each returns its validation accuracy after the last epoch."""

from __future__ import annotations

import csv
import os
import tempfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, Subset, TensorDataset

from tests.benchmarks.harness import CLOCK, load_mnist, mnist_root, split_indices
from tests.benchmarks.recipe import BATCH_SIZE, EVAL_BATCH_SIZE, LEARNING_RATE
from tests.benchmarks.torch_peers import network, tensors


class EpochTimes(L.Callback):
    """Reads the benchmark's clock inside a Lightning fit."""

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        CLOCK.begin()

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.sanity_checking:
            CLOCK.trained()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        CLOCK.finish()


def mlp_lab(epochs: int, rows: int | None) -> float:
    """`mlp_lab fit` as shipped, through its command line: progress table, metrics.csv, checkpoints, early stopping."""
    from mlp_lab.cli.main import main

    os.environ.setdefault("MLP_LAB_DATA", str(mnist_root()))
    with tempfile.TemporaryDirectory() as folder:
        arguments = ["fit", "--config", "configs/mnist.yaml", "--trainer.max_epochs", str(epochs)]
        arguments += ["--run.dir", f"{folder}/run", "--trainer.callbacks+", f"{__name__}.EpochTimes"]
        if rows is not None:
            arguments += ["--trainer.limit_train_batches", str(-(-rows // BATCH_SIZE))]
        status = main(arguments)
        if status:
            raise RuntimeError(f"mlp_lab fit ended with status {status}")
        with Path(folder, "run", "metrics.csv").open() as file:
            return [float(row["val/accuracy"]) for row in csv.DictReader(file) if row["val/accuracy"]][-1]


class StockModule(L.LightningModule):
    """The module that a Lightning tutorial would have one write."""

    def __init__(self) -> None:
        super().__init__()
        self.model = nn.Sequential(nn.Flatten(), *network())

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        loss = F.cross_entropy(self.model(x), y)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        x, y = batch
        logits = self.model(x)
        self.log("val_loss", F.cross_entropy(logits, y))
        self.log("val_accuracy", (logits.argmax(1) == y).float().mean())

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=LEARNING_RATE)


def _stock_fit(epochs: int, train: Iterable[Any], val: Iterable[Any]) -> float:
    """Fits with the Trainer's defaults: CSV logger, checkpoint per epoch, progress bar."""
    with tempfile.TemporaryDirectory() as folder:
        trainer = L.Trainer(max_epochs=epochs, accelerator="cpu", default_root_dir=folder, callbacks=[EpochTimes()])
        trainer.fit(StockModule(), train, val)
    return float(trainer.callback_metrics["val_accuracy"])


def lightning_tensors(epochs: int, rows: int | None) -> float:
    """Stock Lightning: a `TensorDataset` of resident tensors in a shuffling `DataLoader`, each step's loss logged."""
    L.seed_everything(0)
    x, y, x_val, y_val = tensors(load_mnist(rows))
    train = DataLoader(TensorDataset(x, y), batch_size=BATCH_SIZE, shuffle=True)
    return _stock_fit(epochs, train, DataLoader(TensorDataset(x_val, y_val), batch_size=EVAL_BATCH_SIZE))


def lightning_torchvision(epochs: int, rows: int | None) -> float:
    """Stock Lightning: torchvision's MNIST with ToTensor and Normalize in a `DataLoader` without workers."""
    from torchvision import datasets, transforms

    L.seed_everything(0)
    scale = transforms.Compose([transforms.ToTensor(), transforms.Normalize((0.1307,), (0.3081,))])
    images = datasets.MNIST(mnist_root(), train=True, transform=scale)
    train, val = (Subset(images, indices.tolist()) for indices in split_indices(len(images)))
    if rows is not None:
        train = Subset(train, range(rows))
    loader = DataLoader(train, batch_size=BATCH_SIZE, shuffle=True)
    return _stock_fit(epochs, loader, DataLoader(val, batch_size=EVAL_BATCH_SIZE))
