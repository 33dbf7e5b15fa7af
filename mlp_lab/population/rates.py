"""The learning rates of all members, step by step."""

from __future__ import annotations

import math
from collections.abc import Sequence

from mlp_lab.training.optimizers import OptimizerConfig
from mlp_lab.training.schedules import ScheduleConfig, factor_at


class Rates:
    """Every member's learning rate; a schedule that several members share is computed once a step.

    Args:
        configs: per member, the optimizer.
        schedules: per member, the schedule.
        total_steps: of the whole run; infinite or negative where it is unknown.
    """

    def __init__(
        self, configs: Sequence[OptimizerConfig], schedules: Sequence[ScheduleConfig], total_steps: float
    ) -> None:
        self.length = total_steps if 0 <= total_steps < math.inf else math.inf
        self.base = [config.lr for config in configs]
        self.schedules = list(dict.fromkeys(schedules))
        self.which = [self.schedules.index(schedule) for schedule in schedules]

    def at(self, step: int) -> list[float]:
        """Returns the rates of the step that follows `step` others."""
        factors = [factor_at(step, schedule, self.length) for schedule in self.schedules]
        return [lr * factors[which] for lr, which in zip(self.base, self.which, strict=True)]
