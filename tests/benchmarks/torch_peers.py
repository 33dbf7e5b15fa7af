"""Peers of the fit benchmark that train with PyTorch. Each returns its validation accuracy after the last epoch."""

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

from tests.benchmarks.harness import CLOCK, Split, load_mnist, mnist_root, split_indices
from tests.benchmarks.recipe import BATCH_SIZE, DROPOUT, EVAL_BATCH_SIZE, HIDDEN, INPUTS, LEARNING_RATE, OUTPUTS


def network() -> nn.Sequential:
    """Returns the recipe's network, 784-128-10 with dropout."""
    return nn.Sequential(nn.Linear(INPUTS, HIDDEN), nn.ReLU(), nn.Dropout(DROPOUT), nn.Linear(HIDDEN, OUTPUTS))


def tensors(split: Split) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Returns the arrays as tensors over the same memory."""
    x, y, x_val, y_val = (torch.from_numpy(array) for array in split)
    return x, y, x_val, y_val


def hand_written(epochs: int, rows: int | None) -> float:
    """A loop that one would write for speed.

    Resident tensors; an epoch's order is one `randperm`; a batch is one `index_select` of pixels and one of labels;
    fused Adam; the training loss is summed on the device and read once per epoch; all validation rows go through the
    network at once; a line per epoch is printed. No checkpoints, no files.
    """
    torch.manual_seed(0)
    x, y, x_val, y_val = tensors(load_mnist(rows))
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE, fused=True)
    accuracy = 0.0
    for epoch in range(epochs):
        CLOCK.begin()
        model.train()
        total = torch.zeros(())
        for index in torch.split(torch.randperm(len(x)), BATCH_SIZE):
            loss = F.cross_entropy(model(x.index_select(0, index)), y.index_select(0, index))
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.detach() * len(index)
        mean_loss = total.item() / len(x)
        CLOCK.trained()
        model.eval()
        with torch.inference_mode():
            logits = model(x_val)
            val_loss = F.cross_entropy(logits, y_val).item()
            accuracy = (logits.argmax(1) == y_val).float().mean().item()
        print(f"epoch {epoch}: loss {mean_loss:.4f}, val_loss {val_loss:.4f}, val_accuracy {accuracy:.4f}")
    CLOCK.finish()
    return accuracy


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


def skorch(epochs: int, rows: int | None) -> float:
    """skorch's NeuralNetClassifier with its default callbacks (timer, validation accuracy, a line per epoch)."""
    from skorch import NeuralNetClassifier
    from skorch.callbacks import Callback
    from skorch.dataset import Dataset
    from skorch.helper import predefined_split

    class Times(Callback):  # type: ignore[misc]
        def on_epoch_begin(self, net: Any, **kwargs: Any) -> None:
            CLOCK.begin()

        def on_batch_begin(self, net: Any, batch: Any = None, training: bool = True, **kwargs: Any) -> None:
            if not training:
                CLOCK.trained()

    torch.manual_seed(0)
    split = load_mnist(rows)
    net = NeuralNetClassifier(
        network,
        criterion=nn.CrossEntropyLoss,
        optimizer=torch.optim.Adam,
        lr=LEARNING_RATE,
        batch_size=BATCH_SIZE,
        max_epochs=epochs,
        iterator_train__shuffle=True,
        iterator_valid__batch_size=EVAL_BATCH_SIZE,
        train_split=predefined_split(Dataset(split.x_val, split.y_val)),
        callbacks=[("times", Times())],
    )
    net.fit(split.x, split.y)
    CLOCK.finish()
    return float(net.history[-1, "valid_acc"])
