"""Running sums against the mean of all rows at once."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional as F

from mlp_lab.data.spec import DataSpec
from mlp_lab.training.meters import Meter, RunningLoss

SPEC = DataSpec(task="multiclass", numeric=("x",), classes=("a", "b", "c"), class_counts=(1, 1, 1), targets=("y",))


def test_mean_over_unequal_batches_is_the_mean_over_rows() -> None:
    losses = torch.rand(100, dtype=torch.float64)
    running = RunningLoss()
    for part in losses.split([60, 39, 1]):
        running.add(part.sum(), len(part))
    assert math.isclose(running.take(), losses.mean().item(), rel_tol=1e-15)
    assert running.rows == 0
    assert math.isnan(running.take())


def test_many_small_losses_are_not_lost() -> None:
    """A float32 sum stops growing at 2^24; this one must not."""
    running = RunningLoss()
    running.add(torch.tensor(2.0**24), 1)
    for _ in range(100):
        running.add(torch.tensor(1.0), 1)
    assert running.sums() == [2.0**24 + 100]


def test_state_goes_on_bit_by_bit() -> None:
    parts = torch.rand(20).mul(1e3)
    whole, first, second = RunningLoss(), RunningLoss(), RunningLoss()
    for part in parts:
        whole.add(part, 3)
    for part in parts[:7]:
        first.add(part, 3)
    second.load_state_dict(first.state_dict(), rank=0, world_size=1)
    for part in parts[7:]:
        second.add(part, 3)
    assert second.take() == whole.take()


@pytest.mark.parametrize(("saved", "world_size"), [([1.0, 2.0], 2), ([1.0, 2.0], 1), ([3.0], 2), ([1.0, 1.0, 1.0], 2)])
def test_the_sum_survives_another_number_of_processes(saved: list[float], world_size: int) -> None:
    state = {"sums": saved, "rows": 6}
    total = 0.0
    for rank in range(world_size):
        running = RunningLoss()
        running.load_state_dict(state, rank=rank, world_size=world_size)
        assert running.rows == 6
        total += running.sums()[0]
    assert total == 3.0


def test_meter_equals_one_pass_and_starts_anew() -> None:
    meter = Meter(SPEC)
    for _ in range(2):
        logits, target = torch.randn(10, 3), torch.randint(3, (10,))
        losses = F.cross_entropy(logits, target, reduction="none")
        for rows in (slice(0, 7), slice(7, 10), slice(10, 10)):  # the last part is empty, its global batch is not
            count = len(target[rows])
            meter.update(losses[rows], logits[rows], target[rows], count)
        values = meter.compute()
        assert math.isclose(values["loss"], losses.double().mean().item(), rel_tol=1e-12)
        assert values["accuracy"] == pytest.approx((logits.argmax(1) == target).double().mean().item())
