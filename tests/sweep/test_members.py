"""A stack that was cut off goes on as if it never had been."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from mlp_lab.population.module import PopulationModule
from mlp_lab.sweep import chunks
from mlp_lab.sweep.chunks import Chunks
from mlp_lab.sweep.population import Together
from mlp_lab.sweep.pruning import Asha, Nothing
from mlp_lab.sweep.runs import Outcome, Point
from mlp_lab.sweep.serial import Run
from mlp_lab.training.schedules import ScheduleConfig
from tests.sweep.digits import Digits, dotted

STEPS = 12  # of an epoch
EPOCHS = 6
AGAIN = 100  # what retries are numbered from
VARIED: list[dict[str, object]] = [
    {"depth": 1, "width": 16, "dropout": 0.2},
    {"depth": 3, "width": 24, "activation": "tanh", "dropout": 0.25},
    {"depth": 0, "lr": 0.1},
    {"depth": 2, "width": 8, "optimizer": "sgd", "lr": 0.3},
    {"depth": 2, "optimizer": "sgd", "lr": 1e200},  # not finite
    {"lr": 1e-5},
    {"lr": 1e-4},
    {"depth": 8, "activation": "sigmoid", "init": "pytorch", "optimizer": "sgd"},  # its gradients vanish
]


class Cut(BaseException):
    """What ends a worker."""


class Varied(Digits):
    """Clips some of the members, with a schedule, and with early stopping where `patience` is above 0."""

    def __init__(self, patience: int = 0, schedule: str = "cosine") -> None:
        super().__init__(precision="64-true", max_epochs=EPOCHS)
        self.patience, self.schedule = patience, schedule

    def build(self, settings: Mapping[str, object], seed: int) -> Run:
        run = super().build(settings, seed)
        run.module.schedule_config = ScheduleConfig(name=self.schedule, warmup=0.1)
        trainer = {**run.trainer, "gradient_clip_val": 0.5 if seed % 2 else None}
        stop = {"monitor": "val/loss", "patience": self.patience, "min_delta": 0.05}
        return replace(run, trainer=trainer, early_stopping=stop)


def points_of(settings: Sequence[dict[str, object]], seeds: int = 1) -> list[Point]:
    return [Point(number=k, seed=k * seeds, settings=dotted(one)) for k, one in enumerate(settings)]


def again(points: Sequence[Point], told: Mapping[int, Outcome]) -> list[Point]:
    """Returns what is asked again: the same points under other numbers."""
    return [replace(point, number=point.number + AGAIN) for point in points if point.number not in told]


@pytest.fixture
def train(monkeypatch: pytest.MonkeyPatch) -> Callable[..., tuple[dict[int, Outcome], list[int]]]:
    """Trains points, cut off before a step; returns what was told, by first number, and the steps that were taken."""
    step, taken, limit = PopulationModule.training_step, [], [0]
    monkeypatch.setattr(chunks, "SHARE", 1e9)

    def counted(self: PopulationModule, batch: Any, batch_idx: int) -> Any:
        if self.global_step == limit[0]:
            raise Cut
        taken.append(self.global_step)
        return step(self, batch, batch_idx)

    def run(
        backend: Together, points: Sequence[Point], cut: int = -1, reduction: float = 2.0
    ) -> tuple[dict[int, Outcome], list[int]]:
        told: list[Outcome] = []
        limit[0] = cut
        taken.clear()
        try:
            backend.train(list(points), Asha(history=Nothing(), reduction=reduction), told.append)
            assert cut < 0
        except Cut:
            pass
        assert len({one.number for one in told}) == len(told)
        return {one.number % AGAIN: one for one in told}, list(taken)

    monkeypatch.setattr(PopulationModule, "training_step", counted)
    return run


def backend(folder: Path, lines: list[str] | None = None, builder: Any = None, **changes: Any) -> Together:
    show = [].append if lines is None else lines.append
    store = Chunks(folder, 1e-9, show)
    settings: dict[str, Any] = {"metrics": ["val/loss"], "maximize": [False], "batch": 9, **changes}
    return Together(builder or Varied(), chunks=store, fewest=1, **settings)


def assert_same(one: Outcome, other: Outcome, tolerance: float = 0.0) -> None:
    facts, others = asdict(one), asdict(other)
    for name in ("values", "reports", "sd"):
        same = facts[name] == others[name]
        assert same or facts[name] == pytest.approx(others[name], rel=tolerance, abs=0.0), (one.number, name)
    for name in ("state", "epochs", "error"):
        assert facts[name] == others[name], (one.number, name)
    assert [v["code"] for v in one.verdicts] == [v["code"] for v in other.verdicts], one.number


@pytest.mark.slow
@pytest.mark.parametrize(
    ("builder", "changes", "mixup", "ends"),
    [
        (Varied(), {}, 0.0, {"complete", "pruned", "failed"}),
        (Varied(patience=1), {"prune": ["nonfinite"]}, 0.0, {"complete", "diagnosed"}),
        (Varied(schedule="constant"), {"seeds": 2}, 0.3, {"complete", "pruned", "failed"}),
    ],
    ids=["rungs", "early stopping", "seeds and mixup"],
)
def test_a_stack_that_goes_on_is_one_that_was_never_cut_off(
    builder: Varied, changes: dict[str, Any], mixup: float, ends: set[str], tmp_path: Path, train: Any
) -> None:
    settings = [{**one, "mixup": mixup, "dropout": 0.0} for one in VARIED] if mixup else VARIED
    points = points_of(settings, changes.get("seeds", 1))
    reduction = 99.0 if builder.patience else 1.6
    whole, steps = train(backend(tmp_path / "whole", builder=builder, **changes), points, reduction=reduction)
    told: dict[int, Outcome] = {}
    lines: list[str] = []
    for epoch in (1, 3, 4):  # cut off in the epoch after
        worker = backend(tmp_path, lines, builder, **changes)
        more, taken = train(worker, again(points, told), epoch * STEPS + 3, reduction)
        told |= more
    more, taken = train(backend(tmp_path, lines, builder, **changes), again(points, told), reduction=reduction)
    assert taken == list(range(4 * STEPS, len(steps)))
    assert [line.rpartition(" ")[2] for line in lines] == ["1", "3", "4"]
    assert sorted(told | more) == sorted(whole) == list(range(len(points)))
    for number, one in (told | more).items():
        assert_same(one, whole[number])  # to the bit
    assert {one.state for one in whole.values()} == ends
    assert len({one.epochs for one in whole.values()}) > 3  # by rungs or by themselves, before and after the cuts


def test_two_workers_share_what_a_third_has_left(tmp_path: Path, train: Any) -> None:
    points = points_of(VARIED[:4])
    whole, _ = train(backend(tmp_path / "whole"), points, reduction=99)
    told, _ = train(backend(tmp_path), points, 2 * STEPS + 3, reduction=99)
    assert told == {}
    left = again(points, told)
    one, first = train(backend(tmp_path), [left[0], left[2]], 4 * STEPS + 3, reduction=99)
    two, second = train(backend(tmp_path), [left[3], left[1]], reduction=99)
    assert (first[0], second[0]) == (2 * STEPS, 2 * STEPS)
    assert (sorted(one), sorted(two)) == ([], [1, 3])
    three, third = train(backend(tmp_path), [left[0], left[2]], reduction=99)
    assert third[0] == 4 * STEPS
    for number, outcome in (two | three).items():
        assert_same(outcome, whole[number], 1e-9)  # float64; sums of another shape


def test_where_all_that_is_asked_had_stopped_nothing_is_trained(tmp_path: Path, train: Any) -> None:
    points, builder = points_of(VARIED), Varied(patience=1)
    whole, _ = train(backend(tmp_path / "whole", builder=builder), points, reduction=99)
    early = [point for point in points if whole[point.number].epochs == 2]
    told, _ = train(backend(tmp_path, builder=builder), points, 4 * STEPS + 3, reduction=99)
    assert early
    assert not set(told) & {point.number for point in early}  # they are told when all have ended
    rest, steps = train(backend(tmp_path, builder=builder), again(early, {}), reduction=99)
    assert steps == []
    for point in early:
        assert_same(rest[point.number], whole[point.number])


def test_new_points_are_trained_beside_those_that_go_on(tmp_path: Path, train: Any) -> None:
    points = points_of(VARIED[:4])
    train(backend(tmp_path), points[:2], 3 * STEPS + 3, reduction=99)
    told, steps = train(backend(tmp_path), [*again(points[:2], {}), *points[2:]], reduction=99)
    assert sorted(told) == [0, 1, 2, 3]
    assert steps == [*range(3 * STEPS, EPOCHS * STEPS), *range(EPOCHS * STEPS)]


def test_a_stack_that_outgrows_the_memory_goes_on_in_halves(
    tmp_path: Path, train: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    points = points_of(VARIED[:4])
    whole, _ = train(backend(tmp_path / "whole"), points, reduction=99)
    step, tried = PopulationModule.training_step, []

    def hungry(self: PopulationModule, batch: Any, batch_idx: int) -> Any:
        if self.global_step >= 3 * STEPS + 1:
            tried.append(len(self.numbers))
            if len(self.numbers) > 2:
                torch.empty(1 << 58)  # the allocator's own error
        return step(self, batch, batch_idx)

    monkeypatch.setattr(PopulationModule, "training_step", hungry)
    halved, taken = train(backend(tmp_path), points, reduction=99)
    assert set(tried) == {4, 2}
    assert len(taken) == 3 * STEPS + 1 + 2 * 3 * STEPS
    for number, outcome in halved.items():
        assert_same(outcome, whole[number], 1e-9)
