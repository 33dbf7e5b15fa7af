"""Learning-rate schedules: pure functions of the progress of a run, and the scheduler that applies them per step.

A schedule is a factor on `model.optimizer.lr`. Momentum is not cycled, as Smith & Topin (2018) do.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from mlp_lab.errors import UserError, unknown
from mlp_lab.training.settings import check, refuse_unused

if TYPE_CHECKING:
    from lightning.pytorch.utilities.types import LRSchedulerConfigType


@dataclass(frozen=True, kw_only=True)
class ScheduleConfig:
    """How the learning rate changes over the run. A setting that the named schedule does not use is refused."""

    name: str = "constant"
    """Schedule of the learning rate: constant, cosine, onecycle, step, coslog4 or plateau."""
    warmup: float = 0.0
    """Length of the linear rise from 0 to the full learning rate, at least 0: below 1 a fraction of the run, from 1 on
    a number of optimizer steps. For constant, cosine and step."""
    start_factor: float = 0.04
    """Factor on the learning rate at the first step, from 0 to 1, for onecycle."""
    peak: float = 0.3
    """Fraction of the run at which the full learning rate is reached, above 0 and below 1, for onecycle."""
    final_factor: float = 0.0
    """Factor on the learning rate at the end of the run, from 0 to 1, for cosine and onecycle."""
    milestones: tuple[float, ...] = (0.5, 0.75)
    """Fractions of the run at which the learning rate is multiplied by gamma, increasing, each above 0 and below 1, for
    step."""
    gamma: float = 0.1
    """Number by which step and plateau multiply the learning rate, above 0 and below 1."""
    patience: int = 10
    """Epochs without a lower val/loss before the learning rate is multiplied by gamma, at least 0, for plateau."""

    def __post_init__(self) -> None:
        if self.name not in SCHEDULES:
            raise unknown("model.schedule.name", self.name, SCHEDULES)
        object.__setattr__(self, "milestones", tuple(self.milestones))  # a list after YAML or JSON
        refuse_unused("model.schedule", self, {name: schedule.uses for name, schedule in SCHEDULES.items()})
        warmup = 0 <= self.warmup < 1 or (1 <= self.warmup < math.inf and float(self.warmup).is_integer())
        inside = all(0 < milestone < 1 for milestone in self.milestones)
        increasing = list(self.milestones) == sorted(set(self.milestones))
        for setting, valid, accepted in (
            ("warmup", warmup, "a fraction of the run in [0, 1) or a whole number of steps"),
            ("start_factor", 0 <= self.start_factor <= 1, "a number in [0, 1]"),
            ("peak", 0 < self.peak < 1, "a fraction of the run in (0, 1)"),
            ("final_factor", 0 <= self.final_factor <= 1, "a number in [0, 1]"),
            ("milestones", inside and increasing, "increasing fractions of the run in (0, 1)"),
            ("gamma", 0 < self.gamma < 1, "a number in (0, 1)"),
            ("patience", self.patience >= 0, "an integer >= 0"),
        ):
            check(f"model.schedule.{setting}", getattr(self, setting), valid, accepted)


def constant(progress: float, config: ScheduleConfig) -> float:
    """The full learning rate throughout; only a warm-up changes it."""
    return 1.0


def cosine(progress: float, config: ScheduleConfig) -> float:
    """Half a cosine from 1 to `final_factor` (Loshchilov & Hutter 2017, without restarts).

    >>> cosine(0.5, ScheduleConfig(name="cosine"))
    0.5
    """
    return _cosine_between(1.0, config.final_factor, progress)


def onecycle(progress: float, config: ScheduleConfig) -> float:
    """Half a cosine up from `start_factor` to 1 at `peak`, half a cosine down to `final_factor` (Smith & Topin)."""
    if progress < config.peak:
        return _cosine_between(config.start_factor, 1.0, progress / config.peak)
    return _cosine_between(1.0, config.final_factor, (progress - config.peak) / (1 - config.peak))


def step(progress: float, config: ScheduleConfig) -> float:
    """`gamma` to the number of `milestones` reached; the default divides by 10 twice (He et al. 2016)."""
    return config.gamma ** sum(progress >= milestone for milestone in config.milestones)


def coslog4(progress: float, config: ScheduleConfig) -> float:
    """Four ever longer cosine cycles, ½(1 - cos(2π log2(1 + 15t))), from 0 to 0 (Holzmüller et al. 2024, RealMLP).

    >>> coslog4(1 / 15, ScheduleConfig(name="coslog4"))  # t = (2^k - 1) / 15 ends the k-th cycle
    0.0
    """
    return 0.5 * (1 - math.cos(2 * math.pi * math.log2(1 + 15 * progress)))


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """One entry of `SCHEDULES`."""

    factor: Callable[[float, ScheduleConfig], float] | None
    """Factor on the learning rate at a progress in [0, 1] after warm-up; None where a metric decides instead."""
    uses: tuple[str, ...]
    """The settings that this schedule reads."""
    needs_length: bool = True
    """Whether the run's number of steps must be known."""


SCHEDULES: dict[str, Schedule] = {
    "constant": Schedule(factor=constant, uses=("warmup",), needs_length=False),
    "cosine": Schedule(factor=cosine, uses=("warmup", "final_factor")),
    "onecycle": Schedule(factor=onecycle, uses=("start_factor", "peak", "final_factor")),
    "step": Schedule(factor=step, uses=("warmup", "milestones", "gamma")),
    "coslog4": Schedule(factor=coslog4, uses=()),
    "plateau": Schedule(factor=None, uses=("gamma", "patience"), needs_length=False),
}


def warmup_steps(config: ScheduleConfig, total_steps: float) -> int:
    """Returns the number of warm-up steps; at least 0, and possibly more than the run has.

    >>> warmup_steps(ScheduleConfig(warmup=0.05), total_steps=1000)
    50
    """
    return round(config.warmup * total_steps) if 0 < config.warmup < 1 else int(config.warmup)


def factor_at(steps: int, config: ScheduleConfig, total_steps: float) -> float:
    """Returns the factor on the learning rate of the next step.

    During W warm-up steps it is (k + 1) / (W + 1), so that no step is lost to a zero learning rate; after them, the
    schedule at progress (k - W) / (T - W), which is 0 at its first step and reaches 1 only when the run is over.

    Args:
        steps: k, optimizer steps already taken.
        config: A schedule that depends on progress (not plateau).
        total_steps: T, optimizer steps of the whole run; infinite where the schedule does not need it.
    """
    warmup = warmup_steps(config, total_steps)
    if steps < warmup:
        return (steps + 1) / (warmup + 1)
    progress = min(1.0, (steps - warmup) / (total_steps - warmup)) if total_steps > warmup else 1.0
    schedule = SCHEDULES[config.name].factor
    assert schedule is not None
    return schedule(progress, config)


class FactorScheduler(LRScheduler):
    """Multiplies each group's learning rate by a function of the number of steps taken.

    Its state is that number alone: the learning rates follow from it and the config, so that a changed config takes
    effect when a run resumes, and the checkpoint holds nothing but an integer.

    Args:
        optimizer: Its `lr` is set now and at every `step`.
        factor: Steps taken to factor.
    """

    def __init__(self, optimizer: Optimizer, factor: Callable[[int], float]) -> None:
        self.factor = factor
        super().__init__(optimizer)  # calls `step` once: last_epoch goes from -1 to 0

    def step(self, epoch: int | None = None) -> None:
        """Sets the learning rate of the next optimizer step."""
        self.last_epoch += 1
        self._apply()

    def _apply(self) -> None:
        factor = self.factor(self.last_epoch)
        self._last_lr = [base * factor for base in self.base_lrs]
        for group, lr in zip(self.optimizer.param_groups, self._last_lr, strict=True):
            group["lr"] = lr

    def state_dict(self) -> dict[str, Any]:
        """Returns the number of steps taken."""
        return {"last_epoch": self.last_epoch}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on from the number of steps in `state_dict`, with this scheduler's own base learning rates."""
        self.last_epoch = state_dict["last_epoch"]
        self._apply()


class PlateauScheduler(ReduceLROnPlateau):
    """PyTorch's ReduceLROnPlateau whose state is the learning rates and counters, not the settings.

    Loading it sets the learning rates too: under this schedule they are state, which no formula gives back.
    """

    STATE = ("best", "num_bad_epochs", "last_epoch", "_last_lr")

    def state_dict(self) -> dict[str, Any]:
        """Returns the best value, the counters and the current learning rates."""
        return {key: getattr(self, key) for key in self.STATE}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores what `state_dict` returned, and the optimizer's learning rates."""
        super().load_state_dict(state_dict)
        for group, lr in zip(self.optimizer.param_groups, self._last_lr, strict=True):
            group["lr"] = lr


def build_scheduler(optimizer: Optimizer, config: ScheduleConfig, total_steps: float) -> LRSchedulerConfigType | None:
    """Builds what `configure_optimizers` returns as "lr_scheduler": per step, or per epoch on val/loss for plateau.

    Args:
        optimizer: Its learning rates are the schedule's base.
        config: The schedule's name and settings.
        total_steps: Optimizer steps of the whole run (`trainer.estimated_stepping_batches`); infinite or negative where
            it is unknown.

    Returns:
        Lightning's scheduler record, or None for a constant learning rate, which costs nothing.

    Raises:
        UserError: If the schedule needs the run's length and it is unknown.
    """
    schedule = SCHEDULES[config.name]
    if schedule.factor is None:
        plateau = PlateauScheduler(optimizer, factor=config.gamma, patience=config.patience)
        return {"scheduler": plateau, "interval": "epoch", "monitor": "val/loss", "reduce_on_plateau": True}
    if config.name == "constant" and config.warmup == 0:
        return None
    endless = not 0 <= total_steps < math.inf
    if endless and (schedule.needs_length or 0 < config.warmup < 1):
        key, value = ("name", config.name) if schedule.needs_length else ("warmup", config.warmup)
        raise UserError(
            f"model.schedule.{key}: {value!r} needs a run of known length; set trainer.max_epochs or trainer.max_steps"
        )
    factor = partial(factor_at, config=config, total_steps=math.inf if endless else total_steps)
    return {"scheduler": FactorScheduler(optimizer, factor), "interval": "step"}


def _cosine_between(start: float, end: float, fraction: float) -> float:
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * fraction))
