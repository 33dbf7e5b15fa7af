"""When a member of a population stops by itself."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch

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
    decided: set[int] = field(default_factory=set)
    """Members that stop as soon as the least epochs and steps of the run are over."""

    def __post_init__(self) -> None:
        if self.patience < 1:
            raise UserError(f"population.patience: {self.patience}; accepted: an integer of at least 1")

    def update(self, member: int, scores: dict[str, float]) -> bool:
        """Takes a member's scores of a pass, without their prefix; returns whether it stops.

        They are compared in float32, as callbacks see them of a run alone.

        >>> stop = MemberStop(patience=1)
        >>> [stop.update(0, {"loss": loss}) for loss in (1.0, 0.5, 0.6)]
        [False, False, True]
        """
        value = torch.tensor(scores[self.monitor.rpartition("/")[2]], dtype=torch.float32)
        sign = -1.0 if direction(self.monitor) == "max" else 1.0
        if not math.isfinite(value):
            self.decided.add(member)
        elif member not in self.best or sign * (value + sign * self.min_delta) < sign * self.best[member]:
            self.best[member], self.waited[member] = value.item(), 0
        else:
            self.waited[member] += 1
            if self.waited[member] >= self.patience:
                self.decided.add(member)
        return member in self.decided

    def state_dict(self) -> dict[str, Any]:
        """Returns what has been noted of the members and by which settings, for a checkpoint."""
        settings = {"monitor": self.monitor, "patience": self.patience, "min_delta": self.min_delta}
        return {"best": self.best, "waited": self.waited, "decided": sorted(self.decided), **settings}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restores what `state_dict` returned, as far as these settings allow.

        Another monitor begins anew, and passes that were counted by another `min_delta` do not count. By other
        settings, a stop that has to wait is decided anew. Members that have stopped stay so.
        """
        settings = ("monitor", "patience", "min_delta")  # checkpoints of an older version have none
        same = {name: state.get(name, getattr(self, name)) == getattr(self, name) for name in settings}
        self.best, self.waited, self.decided = {}, {}, set()
        if not same["monitor"]:
            return
        self.best = dict(state["best"])
        self.waited = dict(state["waited"]) if same["min_delta"] else dict.fromkeys(state["waited"], 0)
        for member in state.get("decided", ()):
            if (same["patience"] and same["min_delta"]) or self.waited.get(member, 0) >= self.patience:
                self.decided.add(member)
