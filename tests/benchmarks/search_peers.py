"""A search as people write it with Optuna and Lightning alone, over the space of `sweeps/digits.yaml`.

    python -m tests.benchmarks.search_peers median|asha SEED TRIALS [EPOCHS]

A LightningModule that calls `self.log`, a `TensorDataset` in a shuffling `DataLoader`, a Trainer per trial with its
logger and its progress bar but without checkpoints, a callback that asks the pruner after every validation, and
`study.optimize`. Early stopping has the patience that mlp_lab has by default, and the rows are mlp_lab's: how easy the
validation rows are depends on the draw. The last line is JSON.
"""

from __future__ import annotations

import json
import logging
import sys
import tempfile
from typing import Any

import lightning as L
import optuna
import torch
import torch.nn.functional as F
from lightning.pytorch.callbacks import EarlyStopping
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from mlp_lab.data.tabular import TabularDataModule

EPOCHS, BATCH_SIZE, PATIENCE = 40, 32, 10
ACTIVATIONS = {
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "silu": nn.SiLU,
    "selu": nn.SELU,
    "tanh": nn.Tanh,
    "sigmoid": nn.Sigmoid,
}
PRUNERS = {
    "median": optuna.pruners.MedianPruner,
    "asha": lambda: optuna.pruners.SuccessiveHalvingPruner(min_resource=1, reduction_factor=3),
}


class Classifier(L.LightningModule):
    """An MLP on the digits."""

    def __init__(self, *, depth: int, width: int, activation: str, dropout: float, lr: float) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        features = 64
        for _ in range(depth):
            layers += [nn.Linear(features, width), ACTIVATIONS[activation](), nn.Dropout(dropout)]
            features = width
        self.model = nn.Sequential(*layers, nn.Linear(features, 10))
        self.lr = lr

    def training_step(self, batch: list[Tensor], batch_idx: int) -> Tensor:
        x, y = batch
        loss = F.cross_entropy(self.model(x), y)
        self.log("train_loss", loss)
        return loss

    def validation_step(self, batch: list[Tensor], batch_idx: int) -> None:
        x, y = batch
        logits = self.model(x)
        self.log("val_loss", F.cross_entropy(logits, y))
        self.log("val_accuracy", (logits.argmax(1) == y).float().mean(), prog_bar=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=self.lr)


class Pruning(L.Callback):
    """Reports every validation loss to the trial, and ends the fit where the pruner says so."""

    def __init__(self, trial: optuna.Trial) -> None:
        self.trial = trial
        self.losses: list[float] = []

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.sanity_checking:
            return
        self.losses.append(float(trainer.callback_metrics["val_loss"]))
        self.trial.report(self.losses[-1], step=len(self.losses))
        if self.trial.should_prune():
            raise optuna.TrialPruned


def datasets() -> tuple[TensorDataset, TensorDataset]:
    """Returns the rows that mlp_lab trains on and validates with: of another split the losses could not be compared."""
    data = TabularDataModule(dataset="digits", scaling="minmax", seed=0, verbose=False)
    data.setup("fit")
    train, val = data.part("train"), data.part("val")
    return TensorDataset(train.numeric, train.target), TensorDataset(val.numeric, val.target)


def suggest(trial: optuna.Trial) -> dict[str, Any]:
    """Asks for a point of the space of `sweeps/digits.yaml`."""
    return {
        "depth": trial.suggest_int("depth", 1, 6),
        "width": trial.suggest_int("width", 16, 512, log=True),
        "activation": trial.suggest_categorical("activation", list(ACTIVATIONS)),
        "dropout": trial.suggest_float("dropout", 0.0, 0.5),
        "lr": trial.suggest_float("lr", 1e-4, 1e-1, log=True),
    }


def search(pruner: str, seed: int, trials: int, epochs: int = EPOCHS) -> dict[str, Any]:
    """Searches, and returns the best value and a row per trial."""
    train, val = datasets()

    def objective(trial: optuna.Trial) -> float:
        module, pruning = Classifier(**suggest(trial)), Pruning(trial)
        with tempfile.TemporaryDirectory() as folder:
            trainer = L.Trainer(
                max_epochs=epochs,
                accelerator="cpu",
                default_root_dir=folder,
                enable_checkpointing=False,
                callbacks=[EarlyStopping("val_loss", patience=PATIENCE), pruning],
            )
            loader = DataLoader(train, batch_size=BATCH_SIZE, shuffle=True)
            trainer.fit(module, loader, DataLoader(val, batch_size=len(val)))
        return min(pruning.losses)

    L.seed_everything(seed)
    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=seed), pruner=PRUNERS[pruner]())
    study.optimize(objective, n_trials=trials, catch=(ValueError,))
    rows = [
        {
            "number": one.number,
            "state": one.state.name.lower(),
            "value": one.value if one.state.name == "COMPLETE" else None,
            "epochs": len(one.intermediate_values),
        }
        for one in study.trials
    ]
    return {"best": study.best_value, "trials": rows}


if __name__ == "__main__":
    for name in ("lightning.pytorch", "lightning.fabric", "lightning"):
        logging.getLogger(name).setLevel(logging.ERROR)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    print("\n" + json.dumps(search(sys.argv[1], *map(int, sys.argv[2:]))))
