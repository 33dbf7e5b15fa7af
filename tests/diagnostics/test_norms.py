"""Sums of squares against float64, over every size that float32 can hold."""

from __future__ import annotations

import math

import pytest
import torch

from mlp_lab.diagnostics.norms import ratio, squared_norm, squared_norms


def test_norms_do_not_underflow() -> None:
    tiny = torch.full((4,), 1e-30)
    assert tiny.square().sum() == 0, "float32 cannot"
    assert squared_norm(tiny).sqrt().item() == pytest.approx(2e-30, rel=1e-7)


@pytest.mark.parametrize("scale", [1e-30, 1e-25, 1e-18, 1e-11, 1e-10, 1e-3, 1.0, 1e18, 1e25, 1e37])
def test_float32_squares_are_those_of_float64(scale: float) -> None:
    # 1e-6: a row of 784 squares in float32 rounds each of them by 6e-8 at most, and their errors do not line up.
    normal = torch.randn(256, 784, dtype=torch.float64, generator=torch.Generator().manual_seed(0))
    tensor = (normal.exp() * scale).float() / 100
    expected = float(tensor.double().square().sum())
    assert squared_norm(tensor).item() == pytest.approx(expected, rel=1e-6, abs=0)
    assert squared_norm(tensor.mT).item() == pytest.approx(expected, rel=1e-6, abs=0)
    assert squared_norm(tensor[0]).item() == pytest.approx(float(tensor[0].double().square().sum()), rel=1e-6, abs=0)


def test_squares_of_nothing_and_of_no_number() -> None:
    assert squared_norm(torch.zeros(3, 4)).item() == 0
    assert squared_norm(torch.zeros(0, 4)).item() == 0
    assert squared_norm(torch.zeros(4, 0)).item() == 0
    assert math.isnan(squared_norm(torch.tensor([1.0, math.nan])).item())
    assert squared_norm(torch.tensor([1.0, math.inf])).item() == math.inf
    assert squared_norms([]).tolist() == []


def test_many_at_once_are_each_alone() -> None:
    # A sum that float32 cannot hold, nothing, a scalar and a NaN stand between others and do not touch them.
    tensors = [torch.randn(5, 3), torch.full((4,), 1e-30), torch.zeros(0, 4), torch.tensor(3.0), torch.randn(7)]
    tensors += [torch.tensor([1.0, math.nan]), torch.full((2, 2), 1e25), torch.randn(2, 3, 4)]
    found = squared_norms(tensors)
    assert found.dtype == torch.float64
    expected = torch.stack([one.double().square().sum() for one in tensors])
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=0, equal_nan=True)


def test_leading_dimensions_are_members() -> None:
    tensors = [torch.randn(3, 5, 2), torch.randn(3, 4), torch.randn(3)]
    found = squared_norms(tensors, members=1)  # (3, tensors)
    for member in range(3):
        torch.testing.assert_close(found[member], squared_norms([one[member] for one in tensors]), rtol=1e-6, atol=0)


def test_ratio_of_nothing_is_no_number() -> None:
    assert ratio(torch.tensor([1.0, 1.0]), torch.tensor([2.0, 0.0])).tolist()[0] == 0.5
    assert math.isnan(ratio(torch.tensor(0.0), torch.tensor(0.0)).item())
