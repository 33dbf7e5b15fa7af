"""A member of a population as it would be alone, for the diagnostics to look at."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import lightning as L
import torch
from torch import Tensor

from mlp_lab.data.loader import Batch
from mlp_lab.diagnostics.callback import Diagnostics
from mlp_lab.population.module import PopulationModule
from mlp_lab.training.module import MLPModule
from mlp_lab.training.optimizers import build_optimizer


class Shadow(MLPModule):
    """A member as it would be alone; it is measured and never trained."""

    mean_loss: float | None = None
    """Mean training loss of the epoch so far."""

    @property
    def epoch_loss(self) -> float | None:
        """Mean training loss of the epoch so far."""
        return self.mean_loss

    def weigh_in_window(self, batch: Batch, batch_idx: int) -> float:
        """Returns 1: it has no trainer, and a population is measured where each batch is a step."""
        return 1.0

    def record(self, values: Mapping[str, float], step: int) -> None:
        """Keeps what a run alone would log."""
        self.logged = dict(values)


class MemberTrainer:
    """What a member's diagnostics see of the trainer: its own network, optimizer and scores, and no logger."""

    def __init__(self, trainer: L.Trainer, shadow: Shadow, clip: float | None) -> None:
        self._trainer = trainer
        self.lightning_module = shadow
        self.optimizers = [build_optimizer(shadow.model, shadow.optimizer_config)]
        self.gradient_clip_val = clip
        self.loggers: list[object] = []
        self.callback_metrics: dict[str, Tensor] = {}
        self.fast_dev_run = True  # nothing is shown of one member

    def __getattr__(self, name: str) -> Any:
        return getattr(self._trainer, name)


class Watched:
    """One member: its shadow, and the diagnostics that look at it."""

    def __init__(self, number: int, module: PopulationModule, settings: Mapping[str, Any]) -> None:
        self.number = number
        with torch.random.fork_rng(devices=[]):
            self.shadow = Shadow(**module.settings[number])
        self.shadow.logged = {}
        self.diagnostics = Diagnostics(**settings)
        self.trainer: Any = None
        self.loss: Tensor | None = None

    def sync(self, module: PopulationModule) -> None:
        """Gives the shadow the member's weights, statistics and masks, on its device and in its type."""
        self.shadow.to(next(module.parameters()))
        module.population.write_(module.numbers.index(self.number), self.shadow.model)
