from __future__ import annotations

import math

import pytest

from mlp_lab.training.rate_finder import UNSETTLED, middle_of_fall


def rates(count: int) -> list[float]:
    return [10.0 ** (step / 10) for step in range(count)]


@pytest.mark.parametrize(
    ("losses", "step"),
    [
        ([5, 5, 5, 4, 3, 2, 1, 9], 4),
        ([5, 5.1, 4.9, 5, 4, 3, 2, 1, math.nan], 4),  # noise before the fall does not matter
        ([2, 3, 4, 5], None),
        ([math.inf], None),
        ([], None),
    ],
)
def test_middle_of_fall_is_where_half_of_the_loss_has_gone(losses: list[float], step: int | None) -> None:
    before = [9.0, 0.0] * (UNSETTLED // 2)
    found = middle_of_fall(rates(len(before) + len(losses)), before + losses)
    assert found == (None if step is None else rates(100)[UNSETTLED + step])
