"""The bench's own config keys, beside those of data, model and trainer; `diagnostics` has its own file."""

from __future__ import annotations

import re
from dataclasses import asdict, dataclass
from typing import Literal

from mlp_lab.errors import UserError


@dataclass(frozen=True, kw_only=True)
class RunConfig:
    """Where a run is written, and with how many threads it computes."""

    name: str = "mlp"
    """Name of the run, of letters, digits, '-', '_', '+' and '.'; its directory is `runs/NAME/<time>-<4 hex>`."""
    dir: str | None = None
    """Directory of the run, in place of the one that `run.name` gives; null uses the name."""
    threads: int | Literal["auto"] = "auto"
    """Threads of each process on the CPU, 1 or more; auto takes one for small networks and batches and more for large
    ones, up to OMP_NUM_THREADS, and keeps the number of a run that is resumed, measured or repeated."""

    def __post_init__(self) -> None:
        if self.threads != "auto" and self.threads < 1:
            raise UserError(f"run.threads: {self.threads} computes nothing; use 1 or more, or auto")
        if not re.fullmatch(r"[\w.+-]+", self.name) or self.name.startswith("."):
            raise UserError(f"run.name: {self.name!r} cannot name a folder; use letters, digits, '-', '_', '+' and '.'")


@dataclass(frozen=True, kw_only=True)
class CheckpointConfig:
    """How often the last state is saved within an epoch; it is always saved at the end of an epoch."""

    every_n_steps: int = 0
    """Optimizer steps between two saves of `last.ckpt`, at least 0; 0 saves by time alone."""
    every_minutes: float = 5.0
    """Minutes between two saves of `last.ckpt`, at least 0; 0 saves by steps alone."""

    def __post_init__(self) -> None:
        for name, value in asdict(self).items():
            if value < 0:
                raise UserError(f"checkpoint.{name}: {value} is negative; use 0 (off) or more")
