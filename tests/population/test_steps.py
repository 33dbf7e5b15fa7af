"""A population in bursts, and on the path of devices that run ahead of the host, is one that takes single steps."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor

import mlp_lab.training.burst as burst
from mlp_lab.errors import NonFiniteError, UserError
from mlp_lab.population.diagnosis import PopulationDiagnostics
from mlp_lab.population.module import PopulationModule
from mlp_lab.population.stopping import MemberStop
from mlp_lab.training.optimizers import OptimizerConfig
from mlp_lab.training.random_state import RandomState
from mlp_lab.training.schedules import ScheduleConfig
from mlp_lab.training.straight import StraightPath
from mlp_lab.training.tracking import MetricsCSV
from tests.population.fits import alone, distance, fit

CLIP = [None, 0.5, None, 0.3, None, 0.5]


def states(population: PopulationModule) -> list[dict[str, Tensor]]:
    return [mlp.state_dict() for mlp in population.networks()]


def equal(one: PopulationModule, other: PopulationModule) -> list[bool]:
    """Returns of which members all bits are equal."""
    pairs = zip(states(one), states(other), strict=True)
    return [all(torch.equal(a[name], b[name]) for name in a) for a, b in pairs]


@pytest.fixture(autouse=True)
def no_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """A slow machine ends no burst early."""
    monkeypatch.setattr(burst, "SECONDS", 600.0)


@pytest.fixture
def hooked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Collects the numbers of the steps that were taken with hooks."""
    steps: list[int] = []
    call = StraightPath._call

    def counted(self: StraightPath, name: str, *args: Any) -> None:
        if name == "on_train_batch_start":  # of a step that is not quiet
            steps.append(self.trainer.global_step + 1)
        call(self, name, *args)

    monkeypatch.setattr(StraightPath, "_call", counted)
    return steps


def mixed(**settings: Any) -> list[Any]:
    return [alone(number, **settings) for number in range(6)]


def exploding(lr: float = 1e200, **settings: Any) -> list[Any]:
    wild = {"depth": 2, "width": 20, "activation": "relu", "optimizer": OptimizerConfig(name="sgd", lr=lr)}
    return [alone(number, **(wild if number == 1 else settings)) for number in range(4)]


def stopping() -> list[Any]:
    rates = (1e-3, 0.5, 1e-3, 0.7, 0.9, 1e-3)
    plain = ScheduleConfig()
    return [alone(n, optimizer=OptimizerConfig(name="adam", lr=lr), schedule=plain) for n, lr in enumerate(rates)]


CASES: dict[str, Any] = {
    "all rules, dropout, schedules with warm-up, max-norm": lambda most: PopulationModule(mixed(), steps_per_call=most),
    "clipping": lambda most: PopulationModule(mixed(), clip=CLIP, steps_per_call=most),
    "batch norm": lambda most: PopulationModule(mixed(norm="batch"), steps_per_call=most),
    "mixup": lambda most: PopulationModule(mixed(mixup=0.3), steps_per_call=most),
    "early stops": lambda most: PopulationModule(stopping(), stop=MemberStop(patience=1), steps_per_call=most),
    "a member that explodes": lambda most: PopulationModule(exploding(), steps_per_call=most),
}


@pytest.mark.parametrize("build", CASES.values(), ids=CASES.keys())
def test_bursts_change_no_bit(build: Any, tmp_path: Path) -> None:
    epochs = 6 if build is CASES["early stops"] else 2
    found = []
    for most in (None, 1):
        population, file = build(most), tmp_path / f"{most}.csv"
        trainer = fit(population, epochs=epochs, log_every_n_steps=7, logger=MetricsCSV(file))
        found.append((population, trainer.global_step, file.read_text()))
    (at_once, steps, lines), (one_by_one, expected_steps, expected_lines) = found
    assert all(equal(at_once, one_by_one))
    assert (steps, lines) == (expected_steps, expected_lines)
    assert at_once.failed == one_by_one.failed
    assert at_once.scores == one_by_one.scores
    assert list(at_once.finished) == list(one_by_one.finished)


def run_ahead(build: Any, most: int | None, deferred: bool, file: Path) -> tuple[PopulationModule, list[list[float]]]:
    population = build(most)
    population.deferred = deferred
    fit(population, epochs=6 if build is CASES["early stops"] else 2, log_every_n_steps=7, logger=MetricsCSV(file))
    rows = file.read_text().splitlines()[1:]
    return population, [[float(value) if value else math.nan for value in row.split(",")] for row in rows]


@pytest.mark.slow
@pytest.mark.parametrize("build", CASES.values(), ids=CASES.keys())
def test_running_ahead_of_the_device_is_the_same(build: Any, tmp_path: Path) -> None:
    """What an accelerator does, done on the CPU: to rounding the fused kernels' steps, the same bits in bursts."""
    here, lines = run_ahead(build, None, False, tmp_path / "here.csv")
    ahead, expected = run_ahead(build, None, True, tmp_path / "ahead.csv")
    single, singly = run_ahead(build, 1, True, tmp_path / "single.csv")
    assert all(equal(ahead, single))
    assert repr(expected) == repr(singly)
    assert ahead.failed == single.failed == here.failed
    assert list(ahead.finished) == list(here.finished)
    for number, (one, other) in enumerate(zip(here.networks(), ahead.networks(), strict=True)):
        wild = build is CASES["early stops"] and number in (1, 3, 4)  # a rate far too high amplifies rounding
        assert number in ahead.failed or wild or distance(one, other) < 1e-9, number
    if build is not CASES["early stops"]:
        for row, other in zip(lines, expected, strict=True):
            assert row == pytest.approx(other, rel=1e-6, nan_ok=True)


def test_a_member_that_explodes_changes_no_bit_of_another_where_the_host_runs_ahead() -> None:
    wild, calm = PopulationModule(exploding()), PopulationModule(exploding(lr=1e-3))
    for population in (wild, calm):
        population.deferred = True
        fit(population, log_every_n_steps=50)
    assert list(wild.failed) == [1]
    assert 1 < wild.failed[1] < 10  # in the middle of a burst
    assert equal(wild, calm) == [True, False, True, True]
    assert all(bool(value.isfinite().all()) for value in states(wild)[1].values())


def test_the_step_of_a_failure_is_told_where_gradients_are_accumulated() -> None:
    found = []
    for deferred in (False, True):
        population = PopulationModule(exploding())
        population.deferred = deferred
        fit(population, accumulate_grad_batches=2)
        found.append(population.failed)
    assert found[0] == found[1]
    assert list(found[0]) == [1]


def test_where_all_explode_the_run_stops_at_the_end_of_the_burst() -> None:
    population = PopulationModule([exploding()[1] for _ in range(2)])
    population.deferred = True
    with pytest.raises(NonFiniteError, match="the losses of all 2 members are not finite"):
        fit(population, log_every_n_steps=50)
    assert population.trainer.global_step == 14


def test_a_burst_ends_where_somebody_looks(hooked: list[int]) -> None:
    fit(PopulationModule(mixed()), max_steps=22, log_every_n_steps=50)
    assert hooked == [15, 22]
    hooked.clear()
    fit(PopulationModule(mixed(), steps_per_call=6), max_steps=22, log_every_n_steps=50)
    assert hooked == [6, 12, 15, 21, 22]
    hooked.clear()
    fit(PopulationModule(mixed()), max_steps=22, callbacks=[PopulationDiagnostics(every_n_steps=9)])
    assert hooked == [*range(1, 11), 15, 18, 22]


def test_a_callback_with_a_hook_of_the_batch_sees_every_step() -> None:
    seen = []

    class Sees(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
            seen.append(trainer.global_step)

    fit(PopulationModule(mixed()), callbacks=[Sees()], epochs=1)
    assert seen == list(range(1, 16))


class SavesAt(L.Callback):
    """Saves after a step, and need not see those before."""

    def __init__(self, step: int, path: Path) -> None:
        self.step, self.path = step, path

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)

    def quiet_steps(self, trainer: L.Trainer) -> int:
        return max(0, self.step - trainer.global_step - 1)


@pytest.mark.parametrize("cut", [7, 20])
def test_a_population_goes_on_within_an_epoch(cut: int, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"log_every_n_steps": 50}
    whole, first, second = (PopulationModule(mixed(), clip=CLIP) for _ in range(3))
    fit(whole, callbacks=[RandomState()], **settings)

    fit(first, callbacks=[RandomState(), SavesAt(cut, tmp_path / "cut.ckpt")], **settings)
    fit(second, callbacks=[RandomState()], ckpt_path=str(tmp_path / "cut.ckpt"), **settings)
    assert all(equal(whole, second))
    assert whole.scores == second.scores


def test_no_step_per_call_is_refused() -> None:
    with pytest.raises(UserError, match=r"^population.steps_per_call: 0; accepted: an integer of at least 1, or None"):
        PopulationModule([alone(0)], steps_per_call=0)
