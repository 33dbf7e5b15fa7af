"""The shadow of a member: its weights, statistics and masks at any time."""

from __future__ import annotations

import torch

from mlp_lab.population.module import PopulationModule
from mlp_lab.population.shadow import Watched
from tests.population.fits import alone, digits, distance, fit


def test_a_shadow_is_the_member_masks_and_all() -> None:
    population = PopulationModule([alone(number, norm="batch") for number in range(4)]).double()
    fit(population, 1)
    rows = digits().part("train").numeric[:50].double()
    for number in range(4):
        watched = Watched(number, population, {"every_n_steps": 5})
        watched.sync(population)
        assert distance(watched.shadow.model, population.networks()[number]) == 0
        population.train()
        logits = population.population.member(number)(rows)
        assert torch.equal(watched.shadow.model.train()(rows), logits)


def test_building_a_shadow_draws_no_random_number() -> None:
    population = PopulationModule([alone(0)])
    state = torch.get_rng_state()
    Watched(0, population, {})
    assert torch.equal(state, torch.get_rng_state())
