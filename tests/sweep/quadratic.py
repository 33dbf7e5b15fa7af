"""A real backend without networks: a parabola whose value falls towards its end with every epoch.

Run as a program, it is a worker of a sweep: `python -m tests.sweep.quadratic DIRECTORY [trials] [seconds] [storage]`.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna

from mlp_lab.sweep.runs import Judge, Outcome, Point
from mlp_lab.sweep.search import run_sweep
from mlp_lab.sweep.settings import SweepSettings
from mlp_lab.sweep.space import Space

ROOT = Path(__file__).parents[2]
EPOCHS = 9
SPACE = {
    "x": {"type": "float", "low": -1.0, "high": 1.0},
    "kind": {"type": "categorical", "choices": ["round", "steep"]},
}


BATCH = "a batch begins\n"


class Quadratic:
    """Trains nothing: after epoch e the value is x² (10 x² where steep) plus 1 / e."""

    def __init__(self, batch: int = 4, seconds: float = 0.0) -> None:
        self.batch = batch
        self.seconds = seconds
        self.seen: list[Point] = []

    def value(self, point: Point, epoch: int) -> float:
        x = float(str(point.settings["x"]))
        return (10.0 if point.settings.get("kind") == "steep" else 1.0) * x * x + 1 / epoch

    def train(self, points: list[Point], judge: Judge, tell: Callable[[Outcome], None]) -> None:
        self.seen += points
        running = {point.number: point for point in points}
        reports: dict[int, dict[int, float]] = {point.number: {} for point in points}
        rungs = judge.rungs(EPOCHS)
        for epoch in range(1, EPOCHS + 1):
            time.sleep(self.seconds / EPOCHS)
            values = {number: self.value(point, epoch) for number, point in running.items()}
            for number, value in values.items():
                reports[number][epoch] = value
            for number in judge.stop(epoch, values) if epoch in rungs else ():
                del running[number]
                tell(outcome(number, reports[number], state="pruned"))
        for number in running:
            tell(outcome(number, reports[number]))


def outcome(number: int, reports: dict[int, float], **changes: Any) -> Outcome:
    """Returns the outcome of a trial with the given values per epoch."""
    facts: dict[str, Any] = {
        "state": "complete",
        "values": [min(reports.values())] if reports else [],
        "epochs": len(reports),
        "seconds": 0.0,
        "verdicts": [],
        "error": None,
        "sd": None,
    }
    return Outcome(number=number, reports=reports, **(facts | changes))


def sweep(trials: int | None = 12, **changes: Any) -> SweepSettings:
    """Returns the settings of a sweep over the parabola."""
    study = {"name": "parabola", "pruner": "none", "heartbeat": 1, **changes.pop("study", {})}
    return SweepSettings.read({"base": "none.yaml", "trials": trials, "space": SPACE, "study": study, **changes})


def worker(folder: Path, trials: int, seconds: float, storage: str = "") -> subprocess.Popen[str]:
    """Starts a search in a process of its own."""
    words = [sys.executable, "-m", "tests.sweep.quadratic", str(folder), str(trials), str(seconds), storage]
    return subprocess.Popen(words, cwd=ROOT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)


def wait_for_trials(process: subprocess.Popen[str], count: int) -> None:
    """Reads a worker's lines until so many trials have ended."""
    assert process.stdout is not None
    for line in process.stdout:
        count -= line.startswith("trial ")
        if count <= 0:
            return
    raise AssertionError("it ended early")


def wait_for_batch(process: subprocess.Popen[str]) -> None:
    """Reads a worker's lines until it trains its next batch."""
    assert process.stdout is not None
    assert any(line == BATCH for line in process.stdout), "it ended early"


def check_whole(study: optuna.Study, trials: int) -> None:
    """No trial is lost, doubled or stuck."""
    assert [one.number for one in study.trials if not one.state.is_finished()] == []
    done = [one for one in study.trials if one.state.name == "COMPLETE"]
    assert len(done) == trials
    assert len({(one.params["x"], one.params["kind"]) for one in done}) == trials
    lost = [one for one in study.trials if one.state.name == "FAIL" and one.params]
    origins = [one.user_attrs["origin"] for one in study.trials if "origin" in one.user_attrs]
    assert len(set(origins)) == len(origins)
    assert set(origins) == {f"retry of {one.number}" for one in lost}


class Telling(Quadratic):
    """Says when it begins a batch."""

    def train(self, points: list[Point], judge: Judge, tell: Callable[[Outcome], None]) -> None:
        sys.stdout.write(BATCH)
        super().train(points, judge, tell)


if __name__ == "__main__":
    words = [*sys.argv[1:], *["", "12", "0", ""][len(sys.argv) - 1 :]]
    settings = sweep(int(words[1]), study={"storage": words[3] or None})
    sys.stdout.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    run_sweep(
        settings,
        Space.read(settings.space),
        Telling(seconds=float(words[2])),
        Path(words[0]),
        directions=("minimize",),
    )
