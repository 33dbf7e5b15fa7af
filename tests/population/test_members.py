"""What cannot train together is refused in one line."""

from __future__ import annotations

import pytest

from mlp_lab.errors import UserError
from mlp_lab.population.module import PopulationModule
from mlp_lab.training.schedules import ScheduleConfig
from tests.population.fits import alone


def test_what_does_not_fit_together_is_refused() -> None:
    cases = {
        "population: no member given; accepted: at least one MLPModule": lambda: PopulationModule([]),
        "population.clip: 1 values for 2 members; accepted: one for each": lambda: PopulationModule(
            [alone(0), alone(1)], clip=[1.0]
        ),
        "population: members 0 and 1 differ in mixup (0.0 and 0.5), which must be equal": lambda: PopulationModule(
            [alone(1), alone(1, mixup=0.5)]
        ),
        "population: member 1 has model.schedule.name: 'plateau', which depends on its own val/loss; train it alone, "
        "or use one that depends on progress": lambda: PopulationModule(
            [alone(1), alone(1, schedule=ScheduleConfig(name="plateau"))]
        ),
    }
    for message, build in cases.items():
        with pytest.raises(UserError) as caught:
            build()
        assert str(caught.value) == message
