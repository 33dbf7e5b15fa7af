"""The grouped products and activations against a loop over members that autograd differentiates."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from torch import Tensor

from mlp_lab.model.activations import ACTIVATIONS
from mlp_lab.population.layout import Level, Segment, Shape, arrange
from mlp_lab.population.products import KERNELS, activate, products


def level_of(widths: list[tuple[int, ...]], number: int, bucket: int = 1) -> Level:
    shapes = [Shape(widths=one, activation="relu") for one in widths]
    return arrange(shapes, in_features=5, out_features=3, bucket=bucket).levels[number]


def by_member(x: Tensor, weight: Tensor, bias: Tensor, level: Level) -> Tensor:
    outputs, start = [], 0
    for place in range(level.members):
        rows, columns = level.outputs[place], level.inputs[place]
        matrix = weight[level.weight_starts[place] : level.weight_starts[place + 1]].view(rows, columns)
        first = level.row_starts[place]
        outputs.append(matrix @ x[start : start + columns] + bias[first : first + rows, None])
        start += columns
    return torch.cat(outputs)


@pytest.mark.parametrize("bucket", [1, 4])
@pytest.mark.parametrize("number", [1, 2])
def test_products_are_those_of_each_member(number: int, bucket: int) -> None:
    level = level_of([(7, 7), (7, 7), (4, 1), (4,), (9, 2), (1, 3), (3,)], number, bucket)
    generator = torch.Generator().manual_seed(0)

    def leaf(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64).requires_grad_()

    leaves = leaf(sum(level.inputs), 6), leaf(level.weight_starts[-1]), leaf(level.rows)
    together, alone = products(*leaves, level), by_member(*leaves, level)
    torch.testing.assert_close(together, alone, rtol=1e-13, atol=1e-14)
    towards = torch.randn_like(alone)
    for one, other in zip(
        torch.autograd.grad(together, leaves, towards), torch.autograd.grad(alone, leaves, towards), strict=True
    ):
        torch.testing.assert_close(one, other, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("names", [*itertools.permutations(["relu", "tanh", "gelu"]), tuple(KERNELS), ("mish", "relu")])
def test_each_segment_has_its_activation(names: tuple[str, ...]) -> None:
    segments = [Segment(activation=name, rows=2 + index) for index, name in enumerate(names)]
    rows = sum(segment.rows for segment in segments)
    z = (3 * torch.randn(rows, 9, dtype=torch.float64)).requires_grad_()
    together = activate(z, segments)
    parts = z.split([segment.rows for segment in segments])
    alone = torch.cat([ACTIVATIONS[name].function(part) for name, part in zip(names, parts, strict=True)])
    assert torch.equal(together, alone)
    towards = torch.randn_like(alone)
    (one,), (other,) = torch.autograd.grad(together, z, towards), torch.autograd.grad(alone, z, towards)
    torch.testing.assert_close(one, other, rtol=1e-14, atol=1e-15)


def test_learned_slopes_belong_to_rows() -> None:
    segments = [
        Segment(activation="prelu", rows=2),
        Segment(activation="tanh", rows=1),
        Segment(activation="prelu", rows=1),
    ]
    z, slopes = torch.full((4, 1), -2.0), torch.tensor([0.1, 0.2, 0.3])
    expected = torch.tensor([[-0.2], [-0.4], [math.tanh(-2.0)], [-0.6]])
    torch.testing.assert_close(activate(z, segments, slopes), expected)


@pytest.mark.parametrize("name", KERNELS)
def test_what_is_not_finite_stays_in_its_place(name: str) -> None:
    z = torch.tensor([[math.nan, math.inf, -math.inf, 1.0], [0.5, 0.5, 0.5, 0.5]])
    segments = [Segment(activation=name, rows=1), Segment(activation="relu" if name != "relu" else "tanh", rows=1)]
    a = activate(z, segments)
    torch.testing.assert_close(a[0], ACTIVATIONS[name].function(z[0]), equal_nan=True)
    assert bool(a[1].isfinite().all())
