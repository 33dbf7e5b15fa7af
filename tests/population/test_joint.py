"""The joint update against PyTorch's own optimizers, and against the fused kernels of the CPU."""

from __future__ import annotations

from typing import Any

import pytest
import torch.nn.functional as F

from mlp_lab.population.optimizers import StackOptimizer
from mlp_lab.population.stack import Population
from mlp_lab.training.optimizers import OptimizerConfig
from tests.population.test_optimizers import CLIP, CONFIGS, batch, distance, members, train_alone, train_packed

SAME = {name: OptimizerConfig(name=name, lr=1e-2, weight_decay=0.1) for name in ("sgd", "adam", "adamw")}


@pytest.mark.parametrize("clip", [CLIP, None])
@pytest.mark.parametrize("bucket", [1, 16])
def test_fifty_steps_are_those_of_torch(bucket: int, clip: list[float | None] | None) -> None:
    mlps = members()
    population = Population.stack(mlps, bucket=bucket)
    train_packed(population, StackOptimizer(population, CONFIGS, clip, joint=True), range(50))
    for number, (mlp, copy) in enumerate(zip(mlps, population.unstack(), strict=True)):
        train_alone(mlp, CONFIGS[number], None if clip is None else clip[number], range(50))
        assert distance(mlp, copy) < 1e-12, CONFIGS[number]


@pytest.mark.parametrize("config", [*SAME.values(), *CONFIGS], ids=str)
def test_members_of_one_rule_are_those_of_torch(config: OptimizerConfig) -> None:
    """Constants that all members share are numbers."""
    mlps = members()
    population = Population.stack(mlps)
    train_packed(population, StackOptimizer(population, [config] * 7, joint=True), range(20))
    for mlp, copy in zip(mlps, population.unstack(), strict=True):
        train_alone(mlp, config, None, range(20))
        assert distance(mlp, copy) < 1e-12


def test_members_that_have_stopped_keep_their_bits() -> None:
    population = Population.stack(members())
    optimizer = StackOptimizer(population, CONFIGS, CLIP, joint=True)
    optimizer.active[5] = False  # before its first step
    train_packed(population, optimizer, range(3))
    optimizer.active[3] = False
    before = population.unstack()
    train_packed(population, optimizer, range(3, 6))
    moved = [distance(one, other) > 0 for one, other in zip(before, population.unstack(), strict=True)]
    assert moved == [number not in (3, 5) for number in range(7)]
    assert distance(members()[5], population.member(5)) == 0


@pytest.mark.parametrize("clip", [CLIP, None])
def test_a_gradient_that_is_not_finite_stays_with_its_member(clip: Any) -> None:
    """Alive, it spoils its own weights only; frozen, not even those."""

    def train(bad: float, *, frozen: bool) -> Population:
        population = Population.stack(members(dropout=0.0))
        optimizer = StackOptimizer(population, CONFIGS, clip, joint=True)
        for step in range(4):
            x, y = batch(step)
            optimizer.zero_grad()
            F.cross_entropy(population(x).mT, y.expand(7, 16), reduction="none").mean(1).sum().backward()
            if step == 2:
                optimizer.alive[1] = not frozen
                parameters = dict(population.named_parameters())
                for piece in population.pieces[1].values():
                    piece.of(parameters[piece.tensor].grad).mul_(bad)
            optimizer.step()
        return population

    good, spoilt, frozen = train(1.0, frozen=True), train(float("inf"), frozen=False), train(float("nan"), frozen=True)
    for number, (one, other) in enumerate(zip(good.unstack(), spoilt.unstack(), strict=True)):
        assert (distance(one, other) == 0) == (number != 1)
    assert all(distance(one, other) == 0 for one, other in zip(good.unstack(), frozen.unstack(), strict=True))


def test_a_state_goes_on_in_either_way() -> None:
    """Bit for bit in the same; a checkpoint of one is one of the other too."""

    def build(joint: bool) -> tuple[Population, StackOptimizer]:
        population = Population.stack(members())
        return population, StackOptimizer(population, CONFIGS, CLIP, joint=joint)

    whole, optimizer = build(True)
    train_packed(whole, optimizer, range(8))
    for before in (True, False):
        first, optimizer = build(before)
        train_packed(first, optimizer, range(4))
        second, resumed = build(True)
        train_packed(second, resumed, range(1))  # its own state is replaced
        second.load_state_dict(first.state_dict())
        resumed.load_state_dict(optimizer.state_dict())
        train_packed(second, resumed, range(4, 8))
        far = max(distance(one, other) for one, other in zip(whole.unstack(), second.unstack(), strict=True))
        assert far == 0 if before else 0 < far < 1e-12


def test_kept_members_go_on_as_they_were() -> None:
    kept = [5, 1, 3]
    mlps = members()
    population = Population.stack(mlps)
    optimizer = StackOptimizer(population, CONFIGS, CLIP, joint=True)
    train_packed(population, optimizer, range(5))
    smaller = population.keep(kept)
    rest = optimizer.keep(smaller, kept)
    assert rest.joint
    train_packed(smaller, rest, range(5, 10))
    for number, copy in zip(kept, smaller.unstack(), strict=True):
        train_alone(mlps[number], CONFIGS[number], CLIP[number], range(10))
        assert distance(mlps[number], copy) < 1e-12
