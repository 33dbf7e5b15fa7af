"""When a member of a population stops by itself."""

from __future__ import annotations

import math
from dataclasses import dataclass, field

from mlp_lab.errors import UserError
from mlp_lab.training.checkpoints import direction


@dataclass(kw_only=True)
class MemberStop:
    """Stops each member as `EarlyStopping` would stop it alone."""

    monitor: str = "val/loss"
    """The metric; `direction` says which way it improves."""
    patience: int = 10
    """Validation passes without improvement that a member may take."""
    min_delta: float = 0.0
    """What counts as an improvement, >= 0."""
    best: dict[int, float] = field(default_factory=dict)
    """Best value of each member so far."""
    waited: dict[int, int] = field(default_factory=dict)
    """Passes since then."""

    def __post_init__(self) -> None:
        if self.patience < 1:
            raise UserError(f"population.patience: {self.patience}; accepted: an integer of at least 1")

    def update(self, member: int, scores: dict[str, float]) -> bool:
        """Takes a member's scores of a pass, without their prefix; returns whether it stops.

        >>> stop = MemberStop(patience=1)
        >>> [stop.update(0, {"loss": loss}) for loss in (1.0, 0.5, 0.6)]
        [False, False, True]
        """
        value = scores[self.monitor.rpartition("/")[2]]
        sign = -1.0 if direction(self.monitor) == "max" else 1.0
        if not math.isfinite(value):
            return True
        if member not in self.best or sign * value < sign * self.best[member] - self.min_delta:
            self.best[member], self.waited[member] = value, 0
            return False
        self.waited[member] += 1
        return self.waited[member] >= self.patience
