"""What the search and those who train for it tell one another: points to train, what became of them, who may go on."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal, Protocol

State = Literal["complete", "pruned", "failed", "diagnosed"]


@dataclass(frozen=True, kw_only=True)
class Point:
    """One trial to train."""

    number: int
    """The trial's number in the study."""
    seed: int
    """`seed_everything` of its first run."""
    settings: dict[str, object]
    """Dotted config key to value, such as `model.depth: 3`."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What became of a point."""

    number: int
    """The trial's number in the study."""
    state: State
    """Trained to its end, stopped by the judge, ended by an error, or stopped by a verdict."""
    values: list[float]
    """One per metric of the study, the best over the run's validations; empty where it failed."""
    reports: dict[int, float]
    """Epoch, from 1, to the first metric, at every validation."""
    epochs: int
    """Epochs trained."""
    seconds: float
    """Wall time; that of the batch where several were trained together."""
    verdicts: list[dict[str, Any]]
    """The diagnosis, as plain dicts."""
    error: str | None
    """One line, where it failed."""
    sd: list[float] | None
    """Standard deviation of the values over seeds, where there are several."""


class Judge(Protocol):
    """Decides jointly which points of a batch stop early."""

    def rungs(self, max_epochs: int) -> list[int]:
        """Returns the epochs, from 1, after which it wants to be asked."""
        ...

    def stop(self, epoch: int, values: dict[int, float]) -> set[int]:
        """Returns the numbers that end after `epoch`, given the values of everything still running."""
        ...


class Backend(Protocol):
    """Trains points."""

    batch: int
    """How many points it wants at once."""

    def train(self, points: list[Point], judge: Judge, tell: Callable[[Outcome], None]) -> None:
        """Trains the points, and tells each outcome as soon as it is known."""
        ...
