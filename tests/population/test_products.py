"""The grouped products and activations against a loop over members that autograd differentiates."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterable

import pytest
import torch
from torch import Tensor

from mlp_lab.model.activations import ACTIVATIONS
from mlp_lab.model.linear import linear_by_onednn
from mlp_lab.population.layout import Level, Segment, Shape, arrange
from mlp_lab.population.products import KERNELS, activate, pays, products


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


def pairs(sizes: Iterable[int]) -> list[tuple[int, int]]:
    """Returns where each of some parts that lie one after another begins and ends."""
    return list(itertools.pairwise(itertools.accumulate(sizes, initial=0)))


def row_pairs(level: Level) -> tuple[list[tuple[int, int]], list[tuple[int, int]]]:
    """Returns the rows and the inputs of each run."""
    return pairs(run.count * run.outputs for run in level.runs), pairs(run.count * run.inputs for run in level.runs)


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


def test_only_products_that_are_large_enough_are_rounded_and_all_of_them() -> None:
    """bfloat16 keeps 8 bits: two factors are off by 2^-9 each at most, and so is their rounded product."""
    level, batch = level_of([(200, 100), (200, 100), (60, 200), (7, 7)], 1), 128
    generator = torch.Generator().manual_seed(0)
    leaves = [
        torch.randn(size, generator=generator).requires_grad_()
        for size in ((sum(level.inputs), batch), (level.weight_starts[-1],), (level.rows,))
    ]
    exact, rounded = products(*leaves, level), products(*leaves, level, torch.bfloat16)
    assert rounded.dtype == torch.float32
    towards = torch.randn(exact.shape, generator=generator)
    grads = [torch.autograd.grad(h, leaves, towards) for h in (exact, rounded)]
    (high_x, high_weight, high_bias), (low_x, low_weight, low_bias) = grads
    assert torch.equal(high_bias, low_bias)
    for run, (start, end), rows, columns in zip(
        level.runs, pairs(run.weights for run in level.runs), *row_pairs(level), strict=True
    ):
        large = pays(run.weights, batch)
        assert large == (run.outputs > 50)
        for one, other in (
            (exact[slice(*rows)], rounded[slice(*rows)]),
            (high_x[slice(*columns)], low_x[slice(*columns)]),
            (high_weight[start:end], low_weight[start:end]),
        ):
            assert torch.equal(one, other) != large
            assert float((one - other).detach().norm() / one.detach().norm()) < 2**-8 + 2**-9


@pytest.mark.skipif(not hasattr(torch.ops.mkldnn, "_linear_pointwise"), reason="this PyTorch has no oneDNN")
@pytest.mark.parametrize("widths", [[(200, 200), (200, 200), (60, 200), (7, 7)], [(200, 200)], [(200, 200)] * 3])
def test_large_products_may_be_left_to_onednn(monkeypatch: pytest.MonkeyPatch, widths: list[tuple[int, ...]]) -> None:
    """On any processor, against the loop in float64: within float32's rounding of sums of up to 200 terms of size 1."""
    taken: list[torch.Size] = []

    def recorded(x: Tensor, weight: Tensor) -> Tensor:
        taken.append(x.shape)
        return linear_by_onednn(x, weight)

    monkeypatch.setattr("mlp_lab.population.products.has_faster_products", lambda: True)
    monkeypatch.setattr("mlp_lab.population.products.linear_by_onednn", recorded)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 1)
    level, batch = level_of(widths, 1), 128
    generator = torch.Generator().manual_seed(0)
    leaves = [
        torch.randn(size, generator=generator).requires_grad_()
        for size in ((sum(level.inputs), batch), (level.weight_starts[-1],), (level.rows,))
    ]
    exact = [leaf.detach().double().requires_grad_() for leaf in leaves]
    together, alone = products(*leaves, level), by_member(*exact, level)
    towards = torch.randn(alone.shape, generator=generator)
    found = [together, *torch.autograd.grad(together, leaves, towards)]
    expected = [alone, *torch.autograd.grad(alone, exact, towards.double())]
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-4, atol=1e-4)
    assert len(taken) == 3 * sum(width == (200, 200) for width in widths)  # forward and two backward, of each member


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
