"""A member stops where `EarlyStop` would stop it alone."""

from __future__ import annotations

import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import lightning as L
import pytest
import torch

from mlp_lab.errors import UserError
from mlp_lab.population.module import PopulationModule
from mlp_lab.population.stopping import MemberStop
from mlp_lab.training.checkpoints import EarlyStop
from tests.population.fits import alone, distance, fit


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


class PruneAll(L.Callback):
    """Ends all members, however many epochs there must be."""

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        assert isinstance(pl_module, PopulationModule)
        pl_module.stack_optimizer.active[:] = [False] * len(pl_module.numbers)


def test_where_all_have_stopped_and_epochs_are_left_nothing_changes() -> None:
    whole, ended = (PopulationModule([alone(0), alone(2)]) for _ in range(2))
    fit(whole, 1)
    assert fit(ended, 5, min_epochs=3, callbacks=[PruneAll()], log_every_n_steps=1).global_step == 45
    for mine, other in zip(whole.networks(), ended.networks(), strict=True):
        assert distance(mine, other) == 0.0
