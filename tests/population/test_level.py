"""A level of a stack against the members' own blocks."""

from __future__ import annotations

from typing import Any, cast

import pytest
import torch

from mlp_lab.model.mlp import MLP, Block
from mlp_lab.population.level import StackLevel
from mlp_lab.population.stack import Population


@pytest.mark.parametrize("bucket", [1, 8])
@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("norm", ["none", "batch", "layer", "rms"])
def test_the_first_level_is_every_members_first_block(norm: str, training: bool, bucket: int) -> None:
    """Float64, 1e-12: the reductions of norms run in another order."""
    torch.manual_seed(0)
    widths = [6, 9, 6, 3]
    mlps = [MLP(6, 2, depth=1, width=width, norm=norm, residual=True).double() for width in widths]
    for mlp in mlps:
        for parameter in mlp.parameters():
            parameter.data += 0.1 * torch.randn_like(parameter)  # scales and shifts that differ by unit
    population = Population.stack(mlps, bucket=bucket).train(training)
    x = torch.randn(12, 6, dtype=torch.float64)
    level = cast(StackLevel, population.levels[0])
    rows, heads = level(x.T)
    assert heads is None
    for number, place in enumerate(population.layout.places):
        start = level.plan.row_starts[place]
        expected = cast(Block, mlps[number].train(training).blocks[0])(x)
        torch.testing.assert_close(rows[start : start + widths[number]].T, expected, rtol=1e-12, atol=1e-12)
        padding = rows[start + widths[number] : level.plan.row_starts[place + 1]]
        assert not padding.any()


@pytest.mark.parametrize("activation", ["sigmoid", "softplus"])
def test_padding_is_silent_where_phi_of_zero_is_not_zero(activation: str) -> None:
    settings: dict[str, Any] = {"depth": 2, "activation": activation, "norm": "batch", "residual": True}
    mlps = [MLP(4, 2, width=width, **settings).double() for width in (3, 5)]
    population = Population.stack(mlps, bucket=8)
    population(torch.randn(7, 4, dtype=torch.float64)).sum().backward()
    for level in population.levels:
        plan, weight = cast(StackLevel, level).plan, cast(StackLevel, level).weight
        for place in range(plan.members):
            shape = plan.outputs[place], plan.inputs[place]
            block = weight.grad[plan.weight_starts[place] : plan.weight_starts[place + 1]].view(shape)  # type: ignore[index]
            assert not block[plan.widths[place] :].any()
            assert not block[:, plan.fan_in[place] :].any()
