"""Dropout in a stack drops what each member drops alone, bit by bit."""

from __future__ import annotations

from collections.abc import Callable
from itertools import accumulate, pairwise

import pytest
import torch

from mlp_lab.model.dropout import AlphaDropout, Dropout, step_key
from mlp_lab.population.masks import StackDropout, step_keys, step_keys_elsewhere


def members() -> list[Dropout | None]:
    parts: list[Dropout | None] = [Dropout(0.5, 2), None, AlphaDropout(0.1, 2), Dropout(0.25, 2)]
    for number, part in enumerate(parts):
        if part is not None:
            part.seed, part.passes = 2**31 - 1 - number, 2**33 * number + 5
    return parts


@pytest.mark.parametrize("padding", [0, 5])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
@pytest.mark.parametrize("alpha", [False, True])
def test_masks_are_those_of_each_member(padding: int, dtype: torch.dtype, alpha: bool) -> None:
    widths = [3, 8, 17, 1]
    parts = [part for part in members() if alpha or not isinstance(part, AlphaDropout)]
    widths = widths if alpha else [3, 8, 1]
    rows = [width + padding for width in widths]
    stacked = StackDropout(parts, rows)
    x = torch.randn(sum(rows), 33).to(dtype)
    for _ in range(3):
        together = stacked(x, first_row=4)
        for part, width, (start, _) in zip(parts, widths, pairwise(accumulate(rows, initial=0)), strict=True):
            mine = x[start : start + width].T
            if part is not None:
                part.first_row = 4
                mine = part(mine)
            assert torch.equal(together[start : start + width].T, mine)


def test_evaluation_drops_nothing_and_counts_nothing() -> None:
    stacked = StackDropout(members(), [2, 2, 2, 2]).eval()
    before, x = stacked.counters.clone(), torch.randn(8, 5)
    assert stacked(x) is x
    assert torch.equal(stacked.counters, before)


@pytest.mark.parametrize("keys", [step_keys, step_keys_elsewhere])
def test_keys_are_those_of_the_scalar_function(keys: Callable[[torch.Tensor, int, torch.Tensor], torch.Tensor]) -> None:
    seeds = torch.tensor([0, 1, 2**31 - 1, 12345])
    passes = torch.tensor([0, 7, 2**32 - 1, 2**40 + 3])
    expected = [step_key(seed, 3, step) for seed, step in zip(seeds.tolist(), passes.tolist(), strict=True)]
    assert keys(seeds, 3, passes).tolist() == expected


def test_another_device_computes_the_same_masks() -> None:
    """The code for other devices, made to run on the CPU by a device that is not called so."""
    parts = members()
    stacked = StackDropout(parts, [3, 8, 17, 1])
    keys = step_keys(stacked.counters[:, 0], stacked.layer, stacked.counters[:, 1])
    here = stacked._keep(keys, 16, 0, torch.device("cpu"))
    there = stacked._keep_elsewhere(keys, 16, 0, torch.device("cpu"))
    assert torch.equal(here, there)
