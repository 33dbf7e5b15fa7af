"""Members, data and trainers that the tests of a population share."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch

from mlp_lab.data.tabular import TabularDataModule
from mlp_lab.model.mlp import MLP
from mlp_lab.training.module import MLPModule
from mlp_lab.training.optimizers import OptimizerConfig
from mlp_lab.training.schedules import ScheduleConfig


def digits() -> TabularDataModule:
    data = TabularDataModule(dataset="digits", batch_size=100)
    data.prepare_data()
    data.setup("fit")
    return data


SPEC = digits().spec.to_dict()


def alone(number: int, **settings: Any) -> MLPModule:
    """Returns member `number`, with the same initial weights each time."""
    torch.manual_seed(number)
    depth = number % 4
    mixed: dict[str, Any] = {
        "depth": depth,
        "width": [20 + number] * depth,
        "activation": ["relu", "tanh", "gelu", "selu", "sigmoid", "prelu"][number],
        "init": ["he", "xavier", "lsuv", "lecun", "critical", "lsuv"][number],
        "dropout": 0.1 * (number % 3),
        "label_smoothing": 0.1 * (number % 2),
        "max_norm": 2.0 if number == 3 else 0.0,
        "optimizer": OptimizerConfig(name=["adam", "sgd", "adamw"][number % 3], lr=3e-3 * (number + 1)),
        "schedule": ScheduleConfig(name="cosine", warmup=0.1) if number % 2 else ScheduleConfig(),
    }
    return MLPModule(SPEC, **(mixed | settings))


def trainer(epochs: int = 2, **settings: Any) -> L.Trainer:
    defaults = {
        "logger": False,
        "enable_progress_bar": False,
        "enable_checkpointing": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "precision": 64,
        "accelerator": "cpu",
    }
    return L.Trainer(max_epochs=epochs, **(defaults | settings))


def fit(
    module: L.LightningModule,
    epochs: int = 2,
    ckpt_path: str | None = None,
    data: L.LightningDataModule | None = None,
    **settings: Any,
) -> L.Trainer:
    L.seed_everything(0, verbose=False)
    one = trainer(epochs, **settings)
    one.fit(module, datamodule=data or digits(), ckpt_path=ckpt_path, weights_only=True)
    return one


def distance(one: MLP, other: MLP) -> float:
    """Returns the largest absolute difference of two networks' states."""
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return max(float((a.double() - b.double()).abs().max()) for a, b in pairs)
