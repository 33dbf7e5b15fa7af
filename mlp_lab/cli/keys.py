"""The bench's own config keys, beside those of data, model and trainer; `diagnostics` has its own file."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass

from mlp_lab.errors import UserError


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Where a run is written."""

    name: str = "mlp"
    """Name of the run: it is written to `runs/NAME/<time>-<4 hex>`."""
    dir: str | None = None
    """The run's directory itself, instead."""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[\w.+-]+", self.name) or self.name.startswith("."):
            raise UserError(f"run.name: {self.name!r} cannot name a folder; use letters, digits, '-', '_', '+' and '.'")


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """When the last state is saved within an epoch; it always is at an epoch's end."""

    every_n_steps: int = 0
    """Optimizer steps between saves; 0 turns it off."""
    every_minutes: float = 5.0
    """Minutes between saves; 0 turns it off."""

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value < 0:
                raise UserError(f"checkpoint.{name}: {value} is negative; use 0 (off) or more")
