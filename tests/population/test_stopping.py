"""A member stops where `EarlyStop` would stop it alone."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any, cast

import pytest
import torch

from mlp_lab.errors import UserError
from mlp_lab.population.stopping import MemberStop
from mlp_lab.training.checkpoints import EarlyStop


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
