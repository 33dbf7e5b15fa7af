"""Data, networks and fits that the tests of the diagnostics share."""

from __future__ import annotations

from copy import deepcopy
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor, nn

from mlp_lab.data.tabular import TabularDataModule
from mlp_lab.model.mlp import MLP
from mlp_lab.training.module import MLPModule

QUIET: dict[str, Any] = {
    "accelerator": "cpu",
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "enable_checkpointing": False,
    "num_sanity_val_steps": 0,
    "logger": False,
}
STEPS = 23  # of an epoch: 1,437 rows in batches of 64


class Spy(L.Callback):
    """Keeps what a step began with and what it ended with."""

    def __init__(self) -> None:
        self.networks: dict[int, list[MLP]] = {}  # by step: before each of its batches
        self.batches: dict[int, list[Any]] = {}
        self.after: dict[int, list[Tensor]] = {}
        self.hooks: dict[int, int] = {}

    def on_train_batch_start(self, trainer: L.Trainer, module: Any, batch: Any, batch_idx: int) -> None:
        step = trainer.global_step + 1
        self.networks.setdefault(step, []).append(deepcopy(module.model))
        self.batches.setdefault(step, []).append(batch)

    def on_before_optimizer_step(self, trainer: L.Trainer, module: Any, optimizer: Any) -> None:
        self.hooks[trainer.global_step + 1] = hooks(module)

    def on_train_batch_end(self, trainer: L.Trainer, module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        self.after[trainer.global_step] = [linear.weight.detach().clone() for linear in module.model.linears]


def hooks(module: nn.Module) -> int:
    return sum(len(part._forward_hooks) + len(part._forward_pre_hooks) for part in module.modules())


def load(**settings: Any) -> TabularDataModule:
    return TabularDataModule(**{"dataset": "digits", "batch_size": 64, "verbose": False, "seed": 0, **settings})


def build(data: TabularDataModule, **settings: Any) -> MLPModule:
    torch.manual_seed(0)
    return MLPModule(data.spec_dict, **{"width": 16, "depth": 3, **settings})


def fit(module: L.LightningModule, data: Any, *callbacks: L.Callback, **options: Any) -> L.Trainer:
    trainer = L.Trainer(**{**QUIET, "max_epochs": 1, "callbacks": list(callbacks), **options})
    if isinstance(data, L.LightningDataModule):
        trainer.fit(module, datamodule=data)
    else:
        trainer.fit(module, *data)
    return trainer


def assert_equal(found: dict[str, float], expected: dict[str, float], tolerance: float) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=tolerance, abs=1e-12, nan_ok=True), name
