"""The effective rank of streamed activations against the singular values of the whole matrix."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor

from mlp_lab.diagnostics.rank import WIDE, Moments, effective_rank, full_precision, lower_gram

FLOOR = 2 * 2**-11.5  # 2√ε of float32: smaller singular values are taken for rounding


def naive(a: Tensor, floor: float = 0.0) -> float:
    """The definition: singular values of the centred (N, H) matrix, without those below the floor."""
    a = a.double()
    values = torch.linalg.svdvals(a - a.mean(0))
    values = values[values > floor * values[0]]
    shares = values / values.sum()
    return math.exp(-sum(p * math.log(p) for p in shares.tolist()))


def streamed(a: Tensor, *sizes: int) -> float:
    moments = Moments()
    for part in a.split(list(sizes), dim=-2):
        moments.update(part)
    return effective_rank(moments.eigenvalues()).item()


def layer(rows: int, width: int, directions: int, noise: float = 0.0, mean: float = 0.5) -> Tensor:
    signal = torch.randn(rows, directions, dtype=torch.float64) @ torch.randn(directions, width, dtype=torch.float64)
    return mean + signal / math.sqrt(directions) + noise * torch.randn(rows, width, dtype=torch.float64)


@pytest.mark.parametrize("width", [3, 40, WIDE + 7])
@pytest.mark.parametrize("sizes", [(600,), (1, 299, 300), (300, 289, 11)])
@pytest.mark.parametrize("kind", ["relu", "few", "one"])
def test_streaming_is_the_whole_pass_at_once(width: int, sizes: tuple[int, ...], kind: str) -> None:
    torch.manual_seed(width)
    directions = {"relu": width, "few": 4, "one": 1}[kind]
    a = layer(600, width, directions)
    a = a.relu() if kind == "relu" else a
    assert streamed(a, *sizes) == pytest.approx(naive(a, floor=3e-8), rel=1e-6)
    # in float32 the second moments are rounded: 1e-3 is what the floor leaves uncertain
    assert streamed(a.float(), *sizes) == pytest.approx(naive(a, floor=FLOOR), rel=1e-3)


@pytest.mark.parametrize("rows", [2, 5, 39])
def test_fewer_rows_than_units(rows: int) -> None:
    torch.manual_seed(rows)
    a = torch.randn(rows, 40, dtype=torch.float64)
    assert streamed(a, 1, rows - 1) == pytest.approx(naive(a, floor=3e-8), rel=1e-9)
    assert streamed(a.float(), 1, rows - 1) <= rows - 1 + 1e-4


def test_rows_are_folded_where_they_become_as_many_as_units() -> None:
    torch.manual_seed(0)
    a = torch.randn(90, 30)
    moments = Moments()
    for part in a.split(10):
        moments.update(part)
        if moments.rows > 1:
            expected = naive(a[: moments.rows], floor=FLOOR)
            assert effective_rank(moments.eigenvalues()).item() == pytest.approx(expected, rel=1e-3)


def test_a_small_variation_on_a_large_mean_survives() -> None:
    """A deep sigmoid layer: 0.5 ± 1e-4. Second moments around 0 would be off by their whole size in float32."""
    torch.manual_seed(0)
    a = (0.5 + 1e-4 * torch.randn(500, 3) @ torch.randn(3, 20)).float()
    assert streamed(a, 250, 250) == pytest.approx(naive(a, floor=FLOOR), rel=1e-2)
    assert 2 < streamed(a, 250, 250) < 3.1


def test_a_first_batch_that_is_far_from_the_rest() -> None:
    torch.manual_seed(0)
    a = torch.cat([torch.full((10, 8), 30.0) + torch.randn(10, 8), torch.randn(500, 8)])
    assert streamed(a, 10, 500) == pytest.approx(naive(a, floor=FLOOR), rel=1e-3)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("value", [0.0, 0.1, -7.3e8])
@pytest.mark.parametrize("rows", [1, 5, 60])
def test_a_constant_layer_has_no_direction(dtype: torch.dtype, value: float, rows: int) -> None:
    a = torch.full((rows, 20), value, dtype=dtype)
    a[:, 3] = 1 / 3
    assert streamed(a, rows) == 0


def test_constant_units_add_nothing() -> None:
    torch.manual_seed(0)
    a = torch.randn(400, 10)
    with_constants = torch.cat([a, torch.full((400, 5), 1e6), torch.zeros(400, 5)], dim=1)
    assert streamed(with_constants, 400) == pytest.approx(streamed(a, 400), rel=1e-6)


def test_equal_directions_count_whole() -> None:
    a = torch.cat([torch.eye(4), -torch.eye(4)]).double()
    assert streamed(a, 8) == pytest.approx(4, rel=1e-12)


def test_members_are_judged_one_by_one() -> None:
    torch.manual_seed(0)
    a = torch.stack([layer(100, 12, directions) for directions in (1, 3, 12)])  # (K, N, H)
    moments = Moments()
    for part in a.split([37, 63], dim=-2):
        moments.update(part)
    expected = [streamed(member, 37, 63) for member in a]
    assert effective_rank(moments.eigenvalues()).tolist() == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("rows", [5, 60])
def test_what_is_not_finite_has_no_rank_and_its_neighbours_keep_theirs(rows: int) -> None:
    torch.manual_seed(0)
    a = torch.randn(2, rows, 12)
    a[0, 1, 2] = torch.nan
    moments = Moments()
    moments.update(a)
    sick, healthy = effective_rank(moments.eigenvalues()).tolist()
    assert math.isnan(sick)
    assert healthy == pytest.approx(naive(a[1], floor=FLOOR), rel=1e-3)


@pytest.mark.parametrize("width", [5, WIDE, WIDE + 3])
def test_the_lower_half_is_right_under_autocast_too(width: int) -> None:
    torch.manual_seed(0)
    x = torch.randn(50, width)
    before = torch.get_float32_matmul_precision()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        gram = lower_gram(x)
    assert torch.get_float32_matmul_precision() == before
    expected = (x.double().mT @ x.double()).tril()
    # sums of 50 products of size 1 in float32; bfloat16 would be off by 0.1
    torch.testing.assert_close(gram.double().tril(), expected, atol=1e-4, rtol=0)


def test_the_precision_of_products_is_put_back() -> None:
    before = torch.get_float32_matmul_precision()
    try:
        torch.set_float32_matmul_precision("medium")
        with full_precision("cpu"):
            assert torch.get_float32_matmul_precision() == "highest"
        assert torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision(before)
