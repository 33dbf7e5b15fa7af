"""A population in bursts, and on the path of devices that run ahead of the host, is one that takes single steps."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor

from mlp_lab.errors import UserError
from mlp_lab.population.diagnosis import PopulationDiagnostics
from mlp_lab.population.module import PopulationModule
from mlp_lab.population.stopping import MemberStop
from mlp_lab.training.checkpoints import RandomState
from mlp_lab.training.optimizers import OptimizerConfig
from mlp_lab.training.schedules import ScheduleConfig
from mlp_lab.training.straight import StraightPath
from mlp_lab.training.tracking import MetricsCSV
from tests.population.fits import alone, fit

CLIP = [None, 0.5, None, 0.3, None, 0.5]


def states(population: PopulationModule) -> list[dict[str, Tensor]]:
    return [mlp.state_dict() for mlp in population.networks()]


def equal(one: PopulationModule, other: PopulationModule) -> list[bool]:
    """Returns of which members all bits are equal."""
    pairs = zip(states(one), states(other), strict=True)
    return [all(torch.equal(a[name], b[name]) for name in a) for a, b in pairs]


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


def exploding(**settings: Any) -> list[Any]:
    wild = {"depth": 2, "width": 20, "activation": "relu", "optimizer": OptimizerConfig(name="sgd", lr=1e200)}
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


@pytest.mark.parametrize("cut", [7, 20])
def test_a_population_goes_on_within_an_epoch(cut: int, tmp_path: Path) -> None:
    settings: dict[str, Any] = {"log_every_n_steps": 50}
    whole, first, second = (PopulationModule(mixed(), clip=CLIP) for _ in range(3))
    fit(whole, callbacks=[RandomState()], **settings)

    class Saves(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
            if trainer.global_step == cut:
                trainer.save_checkpoint(tmp_path / "cut.ckpt")

        def quiet_steps(self, trainer: L.Trainer) -> int:
            return max(0, cut - trainer.global_step - 1)

    fit(first, callbacks=[RandomState(), Saves()], **settings)
    fit(second, callbacks=[RandomState()], ckpt_path=str(tmp_path / "cut.ckpt"), **settings)
    assert all(equal(whole, second))
    assert whole.scores == second.scores


def test_no_step_per_call_is_refused() -> None:
    with pytest.raises(UserError, match=r"^population.steps_per_call: 0; accepted: an integer of at least 1, or None"):
        PopulationModule([alone(0)], steps_per_call=0)
