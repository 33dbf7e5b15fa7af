"""Learning rates of a population are those of each member's own schedule."""

from __future__ import annotations

import math

import pytest

from mlp_lab.population.rates import Rates
from mlp_lab.training.optimizers import OptimizerConfig
from mlp_lab.training.schedules import ScheduleConfig, factor_at

COSINE = ScheduleConfig(name="cosine", warmup=0.1)


def test_every_member_has_its_own() -> None:
    schedules = [COSINE, ScheduleConfig(), ScheduleConfig(name="cosine", warmup=0.1), ScheduleConfig(warmup=5)]
    configs = [OptimizerConfig(lr=0.1 * (1 + number)) for number in range(4)]
    rates = Rates(configs, schedules, 50)
    assert len(rates.schedules) == 3
    for step in (0, 3, 20, 50):
        expected = [one.lr * factor_at(step, schedule, 50) for one, schedule in zip(configs, schedules, strict=True)]
        assert rates.at(step) == expected


@pytest.mark.parametrize("length", [-1, math.inf])
def test_a_run_of_unknown_length_has_a_constant_rate(length: float) -> None:
    assert Rates([OptimizerConfig(lr=0.1)], [ScheduleConfig()], length).at(7) == [0.1]
