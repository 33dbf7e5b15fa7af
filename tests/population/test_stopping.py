"""A member stops where `EarlyStop` would stop it alone."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from mlp_lab.errors import UserError
from mlp_lab.population.best import BestMembers
from mlp_lab.population.module import PopulationModule
from mlp_lab.population.stopping import MemberStop
from mlp_lab.training.checkpoints import BestCheckpoint, EarlyStop
from mlp_lab.training.module import MLPModule
from mlp_lab.training.optimizers import OptimizerConfig
from mlp_lab.training.schedules import ScheduleConfig
from tests.population.fits import Prune, alone, distance, fit


def passes_alone(monitor: str, values: list[float], *, patience: int, min_delta: float) -> int:
    """Returns how many of the passes a run alone sees before Lightning's callback stops it."""
    stop = EarlyStop(monitor, patience=patience, min_delta=min_delta)
    for number, value in enumerate(values, start=1):
        trainer = SimpleNamespace(
            callback_metrics={monitor: torch.tensor(value)},
            should_stop=False,
            fast_dev_run=False,
            world_size=1,
            current_epoch=number,
            strategy=SimpleNamespace(reduce_boolean_decision=lambda decision, all: decision),
        )
        stop._run_early_stopping_check(cast(Any, trainer))
        if trainer.should_stop:
            return number
    return len(values)


@pytest.mark.parametrize("monitor", ["val/loss", "val/accuracy"])
@pytest.mark.parametrize("patience", [1, 2, 3])
@pytest.mark.parametrize("min_delta", [0.0, 0.15])
@pytest.mark.parametrize("seed", range(5))
def test_members_stop_as_alone(monitor: str, patience: int, min_delta: float, seed: int) -> None:
    values = torch.rand(20, generator=torch.Generator().manual_seed(seed)).tolist()
    stop = MemberStop(monitor=monitor, patience=patience, min_delta=min_delta)
    seen = next(
        (number for number, value in enumerate(values, 1) if stop.update(7, {monitor.removeprefix("val/"): value})),
        len(values),
    )
    assert seen == passes_alone(monitor, values, patience=patience, min_delta=min_delta)


def test_a_value_that_is_no_number_stops_a_member_and_no_other() -> None:
    stop = MemberStop(patience=3)
    assert stop.update(0, {"loss": math.nan})
    assert not stop.update(1, {"loss": 1.0})


def test_a_patience_of_zero_is_refused() -> None:
    with pytest.raises(UserError, match=r"population\.patience: 0; accepted: an integer of at least 1"):
        MemberStop(patience=0)


ONE_PASS: dict[str, Any] = {"patience": 1, "min_delta": 1e9}  # the second pass is no improvement


def test_where_all_stop_within_an_epoch_the_run_ends_there() -> None:
    population = PopulationModule([alone(number) for number in range(2)], stop=MemberStop(**ONE_PASS))
    together = fit(population, 3, val_check_interval=5, log_every_n_steps=1)
    one = fit(alone(0), 3, val_check_interval=5, callbacks=[EarlyStop(**ONE_PASS)])
    assert together.global_step == one.global_step == 10


def test_a_run_whose_members_have_all_stopped_takes_no_more_steps(tmp_path: Path) -> None:
    first, second = (PopulationModule([alone(0), alone(1)], stop=MemberStop(**ONE_PASS)) for _ in range(2))
    one = fit(first, 5)
    one.save_checkpoint(tmp_path / "stopped.ckpt")
    two = fit(second, 5, ckpt_path=str(tmp_path / "stopped.ckpt"), log_every_n_steps=1)
    assert one.global_step == two.global_step == 30
    for mine, other in zip(first.networks(), second.networks(), strict=True):
        assert distance(mine, other) == 0.0


def test_where_all_have_stopped_and_epochs_are_left_nothing_changes() -> None:
    whole, ended = (PopulationModule([alone(0), alone(2)]) for _ in range(2))
    fit(whole, 1)
    assert fit(ended, 5, min_epochs=3, callbacks=[Prune(0, 1)], log_every_n_steps=1).global_step == 45
    for mine, other in zip(whole.networks(), ended.networks(), strict=True):
        assert distance(mine, other) == 0.0


def creeping(rate: float) -> MLPModule:
    """SGD without dropout; a tiny rate changes the loss by less than float32 tells apart."""
    return alone(2, dropout=0.0, optimizer=OptimizerConfig(name="sgd", lr=rate), schedule=ScheduleConfig())


def test_members_stop_and_are_best_by_float32_as_alone(tmp_path: Path) -> None:
    best, kept = BestMembers(tmp_path / "all.ckpt"), BestCheckpoint(tmp_path / "one.ckpt")
    settings: dict[str, Any] = {"epochs": 8, "enable_checkpointing": True}
    together = fit(PopulationModule([creeping(1e-11)], stop=MemberStop(patience=2)), callbacks=[best], **settings)
    one = fit(creeping(1e-11), callbacks=[EarlyStop(patience=2), kept], **settings)
    assert together.current_epoch == one.current_epoch == 3
    assert (best.epoch, best.score) == (kept.epoch, kept.score)


@pytest.mark.parametrize("delta", [0.1, 0.3])
def test_the_least_improvement_is_added_in_float32_as_alone(delta: float) -> None:
    values = [(2 + delta * k) / 3 for k in range(40, 0, -1)]  # each smaller by about that much, to rounding
    stop = MemberStop(patience=1, min_delta=delta / 3)
    seen = next((number for number, value in enumerate(values, 1) if stop.update(0, {"loss": value})), len(values))
    assert seen == passes_alone("val/loss", values, patience=1, min_delta=delta / 3)


@pytest.mark.slow
@pytest.mark.parametrize("limit", [{"min_epochs": 4}, {"min_steps": 37}, {"min_steps": 37, "val_check_interval": 5}])
def test_no_member_stops_before_lightning_would_stop_it_alone(limit: dict[str, Any]) -> None:
    rates, stop = (1e-9, 0.1, 0.2), {"patience": 1, "min_delta": 0.05}
    population = PopulationModule([creeping(rate) for rate in rates], stop=MemberStop(**stop))  # type: ignore[arg-type]
    fit(population, 6, **limit)
    steps = []
    for rate, network, scores in zip(rates, population.networks(), population.scores, strict=True):
        module = creeping(rate)
        one = fit(module, 6, callbacks=[EarlyStop(**stop)], **limit)  # type: ignore[arg-type]
        steps.append(one.global_step)
        assert distance(module.model, network) < 1e-12, rate
        assert scores["loss"] == pytest.approx(float(one.callback_metrics["val/loss"]), abs=1e-12), rate
    assert steps[0] == (60 if "min_epochs" in limit else 37)
    assert steps[0] < max(steps[1:])
    nobody_else = PopulationModule([creeping(rates[0])], stop=MemberStop(**stop))  # type: ignore[arg-type]
    assert fit(nobody_else, 6, **limit).global_step == steps[0]
    assert nobody_else.scores[0] == population.scores[0]


def test_a_stop_that_must_wait_is_kept_in_a_checkpoint(tmp_path: Path) -> None:
    whole, first, second = (PopulationModule([creeping(0.1)], stop=MemberStop(**ONE_PASS)) for _ in range(3))
    fit(whole, 6, min_epochs=4)
    fit(first, 3, min_epochs=4).save_checkpoint(tmp_path / "cut.ckpt")
    assert fit(second, 6, min_epochs=4, ckpt_path=str(tmp_path / "cut.ckpt")).current_epoch == 4
    assert distance(whole.networks()[0], second.networks()[0]) == 0.0
    one = creeping(0.1)
    fit(one, 6, min_epochs=4, callbacks=[EarlyStop(**ONE_PASS)])
    assert distance(whole.networks()[0], one.model) < 1e-12
