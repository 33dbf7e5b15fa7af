"""Every member's steps against PyTorch's own optimizers, and packed training against training alone."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mlp_lab.errors import UserError
from mlp_lab.model.mlp import MLP
from mlp_lab.population.optimizers import StackOptimizer
from mlp_lab.population.stack import Population
from mlp_lab.training.optimizers import OptimizerConfig, build_optimizer

CONFIGS = [
    OptimizerConfig(name="sgd", lr=0.1),
    OptimizerConfig(name="sgd", lr=0.05, weight_decay=0.01, momentum=0.9),
    OptimizerConfig(name="sgd", lr=0.02, momentum=0.8, nesterov=True),
    OptimizerConfig(name="adam", lr=1e-2),
    OptimizerConfig(name="adam", lr=3e-3, weight_decay=0.1, betas=(0.8, 0.9), eps=1e-6),
    OptimizerConfig(name="adamw", lr=1e-2, weight_decay=0.1),
    OptimizerConfig(name="adamw", lr=3e-3, weight_decay=0.3, decay_bias_and_norm=True),
]
CLIP = [None, 0.1, None, 0.5, None, 1e-3, None]


def members(norm: str = "none", activation: str = "tanh", dropout: float = 0.2) -> list[MLP]:
    """Widths of at least 5: behind a norm over one unit gradients are rounding, which Adam divides by itself."""
    torch.manual_seed(1)
    depths = (0, 1, 3, 2, 3, 6, 2)
    return [
        MLP(20, 5, depth=d, width=[5 + 4 * d] * d, norm=norm, activation=activation, dropout=dropout).double()
        for d in depths
    ]


def batch(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    x = torch.randn(16, 20, generator=generator, dtype=torch.float64)
    return x, torch.randint(5, (16,), generator=generator)


def train_packed(population: Population, optimizer: StackOptimizer, steps: range) -> None:
    for step in steps:
        x, y = batch(step)
        optimizer.zero_grad()
        logits = population(x)
        F.cross_entropy(logits.mT, y.expand(len(population), 16), reduction="none").mean(1).sum().backward()
        optimizer.step()


def train_alone(mlp: MLP, config: OptimizerConfig, clip: float | None, steps: range) -> None:
    optimizer = build_optimizer(mlp, config, fused=False)  # PyTorch's plain loop
    for step in steps:
        x, y = batch(step)
        optimizer.zero_grad()
        F.cross_entropy(mlp(x), y).backward()
        if clip is not None:
            torch.nn.utils.clip_grad_norm_(mlp.parameters(), clip)
        optimizer.step()


def distance(one: MLP, other: MLP, leave_out: str = "-") -> float:
    pairs = zip(one.named_parameters(), other.parameters(), strict=True)
    return max(float((a - b).detach().abs().max()) for (name, a), b in pairs if leave_out not in name)


@pytest.mark.parametrize("bucket", [1, 16])
def test_fifty_steps_are_those_of_torch(bucket: int) -> None:
    mlps = members()
    population = Population.stack(mlps, bucket=bucket)
    train_packed(population, StackOptimizer(population, CONFIGS, CLIP), range(50))
    for mlp, copy, config, clip in zip(mlps, population.unstack(), CONFIGS, CLIP, strict=True):
        train_alone(mlp, config, clip, range(50))
        assert distance(mlp, copy) < 1e-12, config


@pytest.mark.parametrize("activation", ["relu", "tanh", "gelu", "selu", "prelu"])
@pytest.mark.parametrize("norm", ["none", "batch", "layer", "rms"])
@pytest.mark.parametrize("name", ["sgd", "adam", "adamw"])
def test_packed_is_alone_after_twenty_steps(name: str, norm: str, activation: str) -> None:
    """The promise is 1e-9; a bias before batch norm has no gradient but rounding and is left out."""
    mlps = members(norm, activation)
    configs = [OptimizerConfig(name=name, lr=1e-3 * (1 + number)) for number in range(len(mlps))]
    population = Population.stack(mlps)
    train_packed(population, StackOptimizer(population, configs), range(20))
    for mlp, copy, config in zip(mlps, population.unstack(), configs, strict=True):
        train_alone(mlp, config, None, range(20))
        assert distance(mlp, copy, "linear.bias" if norm == "batch" else "-") < 1e-9


def test_members_that_have_stopped_keep_their_bits() -> None:
    population = Population.stack(members())
    optimizer = StackOptimizer(population, CONFIGS)
    train_packed(population, optimizer, range(3))
    optimizer.active[3] = False
    before = population.unstack()
    train_packed(population, optimizer, range(3, 6))
    moved = [distance(one, other) > 0 for one, other in zip(before, population.unstack(), strict=True)]
    assert moved == [number != 3 for number in range(7)]


def test_a_state_goes_on_bit_for_bit() -> None:
    whole = Population.stack(members())
    train_packed(whole, StackOptimizer(whole, CONFIGS, CLIP), range(8))
    first = Population.stack(members())
    optimizer = StackOptimizer(first, CONFIGS, CLIP)
    train_packed(first, optimizer, range(4))
    second = Population.stack(members())
    resumed = StackOptimizer(second, CONFIGS, CLIP)
    train_packed(second, resumed, range(1))  # its own state is replaced
    second.load_state_dict(first.state_dict())
    resumed.load_state_dict(optimizer.state_dict())
    train_packed(second, resumed, range(4, 8))
    assert all(distance(one, other) == 0 for one, other in zip(whole.unstack(), second.unstack(), strict=True))


def test_kept_members_go_on_as_they_were() -> None:
    kept = [5, 1, 3]
    mlps = members()
    population = Population.stack(mlps)
    optimizer = StackOptimizer(population, CONFIGS, CLIP)
    train_packed(population, optimizer, range(5))
    smaller = population.keep(kept)
    train_packed(smaller, optimizer.keep(smaller, kept), range(5, 10))
    for number, copy in zip(kept, smaller.unstack(), strict=True):
        train_alone(mlps[number], CONFIGS[number], CLIP[number], range(10))
        assert distance(mlps[number], copy) < 1e-12


def test_the_norm_before_clipping_is_told() -> None:
    mlps = members(dropout=0.0)
    population = Population.stack(mlps)
    optimizer = StackOptimizer(population, CONFIGS, CLIP)
    train_packed(population, optimizer, range(1))
    x, y = batch(0)
    for mlp, norm, clip in zip(mlps, optimizer.norms, CLIP, strict=True):
        F.cross_entropy(mlp(x), y).backward()
        expected = float(torch.nn.utils.get_total_norm([parameter.grad for parameter in mlp.parameters()]))  # type: ignore[misc]
        assert norm == pytest.approx(expected if clip else float("nan"), rel=1e-12, nan_ok=True)


def test_bad_input_is_refused() -> None:
    population = Population.stack(members())
    cases: dict[str, dict[str, Any]] = {
        "population.optimizer: 1 values for 7 members; accepted: one for each": {"configs": CONFIGS[:1]},
        "population.clip: 2 values for 7 members; accepted: one for each": {"configs": CONFIGS, "clip": [1.0, 2.0]},
        "population: member 6 has model.optimizer.name: 'rmsprop'; accepted: sgd, adam, adamw": {
            "configs": [*CONFIGS[:-1], OptimizerConfig(name="rmsprop")]
        },
    }
    for message, arguments in cases.items():
        with pytest.raises(UserError) as caught:
            StackOptimizer(population, **arguments)
        assert str(caught.value) == message


def test_eps_that_is_zero_in_the_type_of_the_weights_is_refused() -> None:
    population = Population.stack([MLP(4, 2).half()])
    with pytest.raises(UserError, match=r"model\.optimizer\.eps: 1e-08 is 0 in float16"):
        StackOptimizer(population, [OptimizerConfig()])
