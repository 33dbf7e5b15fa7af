from __future__ import annotations

from collections.abc import Callable
from dataclasses import FrozenInstanceError

import pytest

from mlp_lab.sweep.runs import Backend, Judge, Outcome, Point


class Doubling:
    """The least that trains."""

    batch = 2

    def train(self, points: list[Point], judge: Judge, tell: Callable[[Outcome], None]) -> None:
        for point in points:
            value = 2.0 * float(str(point.settings["x"]))
            tell(
                Outcome(
                    number=point.number,
                    state="complete",
                    values=[value],
                    reports={1: value},
                    epochs=1,
                    seconds=0.0,
                    verdicts=[],
                    error=None,
                    sd=None,
                )
            )


class Nobody:
    def rungs(self, max_epochs: int) -> list[int]:
        return []

    def stop(self, epoch: int, values: dict[int, float]) -> set[int]:
        return set()


def test_a_backend_is_what_trains_points_and_tells_outcomes() -> None:
    backend: Backend = Doubling()
    judge: Judge = Nobody()
    told: list[Outcome] = []
    backend.train([Point(number=3, seed=1, settings={"x": 4})], judge, told.append)
    assert [(one.number, one.values) for one in told] == [(3, [8.0])]


def test_points_do_not_change() -> None:
    with pytest.raises(FrozenInstanceError):
        Point(number=0, seed=0, settings={}).number = 1  # type: ignore[misc]
