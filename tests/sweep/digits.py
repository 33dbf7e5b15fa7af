"""Runs on the digits, as a builder gives them to the backends."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache
from typing import Any

import lightning as L

from mlp_lab.data.tabular import TabularDataModule
from mlp_lab.sweep.serial import Run
from mlp_lab.training.module import MLPModule
from mlp_lab.training.optimizers import OptimizerConfig

EPOCHS = 3


@cache
def digits() -> TabularDataModule:
    return TabularDataModule(dataset="digits", scaling="minmax", batch_size=128, seed=0, verbose=False)


def dotted(settings: Mapping[str, object]) -> dict[str, object]:
    """Returns the config keys of short names, `lr` and `optimizer` among them."""
    long = {"lr": "model.optimizer.lr", "optimizer": "model.optimizer.name"}
    return {long.get(name, f"model.{name}"): value for name, value in settings.items()}


class Digits:
    """Builds small networks; settings are config keys of model and optimizer."""

    def __init__(self, **trainer: Any) -> None:
        self.trainer = trainer

    def build(self, settings: Mapping[str, object], seed: int) -> Run:
        chosen: dict[str, Any] = {"depth": 1, "width": 16}
        chosen |= {key.rpartition(".")[2]: value for key, value in settings.items()}
        optimizer = OptimizerConfig(name=chosen.pop("name", "adam"), lr=chosen.pop("lr", 0.01))
        trainer: dict[str, Any] = {
            "max_epochs": EPOCHS,
            "accelerator": "cpu",
            "devices": 1,
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "num_sanity_val_steps": 0,
            "log_every_n_steps": 10,
        }
        L.seed_everything(seed, workers=True, verbose=False)
        return Run(
            module=MLPModule(digits().spec_dict, optimizer=optimizer, **chosen),
            data=digits(),
            trainer=trainer | self.trainer,
            early_stopping={"patience": 0},
            diagnostics={"every_n_steps": 10},
        )
