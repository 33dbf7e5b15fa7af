"""Members, data and trainers that the tests of a population share."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch

from mlp_lab.data.tabular import TabularDataModule
from mlp_lab.model.mlp import MLP
from mlp_lab.population.module import PopulationModule
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


class Poison(L.Callback):
    """Makes one weight of member 1 infinite in a step, as an update that overflows would."""

    def __init__(self, step: int) -> None:
        self.step = step

    def on_before_zero_grad(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Any) -> None:
        if trainer.global_step + 1 == self.step:
            assert isinstance(pl_module, PopulationModule)
            pl_module.population.views(pl_module.numbers.index(1))["head.bias"][0] = float("inf")


class Prune(L.Callback):
    """Ends members after a validation pass, as a sweep does."""

    def __init__(self, *members: int) -> None:
        self.members = members

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, PopulationModule)
        for place, number in enumerate(pl_module.numbers):
            if number in self.members:
                pl_module.stack_optimizer.active[place] = False
