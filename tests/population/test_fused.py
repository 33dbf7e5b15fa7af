"""Members with equal settings, which share their calls: against PyTorch's own optimizers, and what stops among them."""

from __future__ import annotations

import pytest
import torch

from mlp_lab.population.optimizers import StackOptimizer
from mlp_lab.population.stack import Population
from mlp_lab.training.optimizers import OptimizerConfig
from tests.population.test_optimizers import CONFIGS, distance, members, train_alone, train_packed

ADAMW = OptimizerConfig(name="adamw", lr=1e-2, weight_decay=0.1)


def replicates(config: OptimizerConfig = ADAMW) -> tuple[Population, StackOptimizer]:
    population = Population.stack(members())
    return population, StackOptimizer(population, [config] * len(population))


def calls(optimizer: StackOptimizer) -> int:
    """Returns how many calls of a kernel a step takes."""
    assert optimizer._fused_update is not None
    return len(optimizer._fused_update._calls)


@pytest.mark.parametrize("config", CONFIGS, ids=lambda config: f"{config.name}-{config.lr}")
def test_fifty_steps_are_those_of_torch(config: OptimizerConfig) -> None:
    mlps = members()
    population, optimizer = replicates(config)
    train_packed(population, optimizer, range(50))
    assert calls(optimizer) == 1 + (config.weight_decay > 0 and not config.decay_bias_and_norm)
    for mlp, copy in zip(mlps, population.unstack(), strict=True):
        train_alone(mlp, config, None, range(50))
        assert distance(mlp, copy) < 1e-12


def test_a_member_that_stops_keeps_its_bits_and_takes_none_from_the_others() -> None:
    all_go_on, optimizer = replicates()
    train_packed(all_go_on, optimizer, range(6))
    population, optimizer = replicates()
    train_packed(population, optimizer, range(3))
    optimizer.active[3] = False
    before = population.unstack()[3]
    moments = [moment.clone() for moment in optimizer.moments(3)]
    train_packed(population, optimizer, range(3, 6))
    for number, (one, other) in enumerate(zip(all_go_on.unstack(), population.unstack(), strict=True)):
        assert (distance(one, other) == 0) == (number != 3)
    assert distance(before, population.unstack()[3]) == 0
    assert all(torch.equal(*pair) for pair in zip(moments, optimizer.moments(3), strict=True))
    assert optimizer.state["steps"].tolist() == [3.0 if number == 3 else 6.0 for number in range(7)]  # type: ignore[index]


def test_bits_do_not_depend_on_who_shares_a_call() -> None:
    shared, optimizer = replicates()
    train_packed(shared, optimizer, range(5))
    apart, optimizer = replicates()
    optimizer._fused_update = optimizer._make_fused()
    optimizer._fused_update.kinds = list(range(len(apart)))
    train_packed(apart, optimizer, range(5))
    assert calls(optimizer) == 14
    assert all(distance(one, other) == 0 for one, other in zip(shared.unstack(), apart.unstack(), strict=True))


def test_rates_that_differ_are_each_members_own() -> None:
    mlps = members()
    population, optimizer = replicates()
    optimizer.lr[4] = 3e-2
    train_packed(population, optimizer, range(10))
    assert calls(optimizer) == 4  # weights and biases of the one and of the six
    for number, (mlp, copy) in enumerate(zip(mlps, population.unstack(), strict=True)):
        config = OptimizerConfig(name="adamw", lr=3e-2 if number == 4 else 1e-2, weight_decay=0.1)
        train_alone(mlp, config, None, range(10))
        assert distance(mlp, copy) < 1e-12


@pytest.mark.parametrize("limit", [None, 0.1])
def test_clipping_is_each_members_own(limit: float | None) -> None:
    mlps, clip = members(), [limit, 0.5, None, 1e-3, limit, None, limit]
    population = Population.stack(mlps)
    train_packed(population, StackOptimizer(population, [ADAMW] * len(mlps), clip), range(20))
    for mlp, copy, its_clip in zip(mlps, population.unstack(), clip, strict=True):
        train_alone(mlp, ADAMW, its_clip, range(20))
        assert distance(mlp, copy) < 1e-12


def test_a_state_goes_on_bit_for_bit() -> None:
    whole, optimizer = replicates()
    optimizer.active[1] = False
    train_packed(whole, optimizer, range(8))
    first, optimizer = replicates()
    optimizer.active[1] = False
    train_packed(first, optimizer, range(4))
    second, resumed = replicates()
    train_packed(second, resumed, range(1))  # its own state is replaced
    second.load_state_dict(first.state_dict())
    resumed.load_state_dict(optimizer.state_dict())
    resumed.active[1] = False
    train_packed(second, resumed, range(4, 8))
    assert all(distance(one, other) == 0 for one, other in zip(whole.unstack(), second.unstack(), strict=True))
