"""Sums of losses per member, since the last record and over an epoch."""

from __future__ import annotations

import torch

from mlp_lab.population.running import RunningLosses


def add(running: RunningLosses, losses: list[float], rows: int) -> None:
    running.sums += torch.tensor(losses, dtype=torch.float64)
    running.rows += rows


def test_means_are_of_the_rows_since_the_last_record_and_of_the_epoch() -> None:
    running = RunningLosses(3)
    assert running.of_epoch(0) is None
    add(running, [2.0, 4.0, 6.0], 2)
    add(running, [1.0, 2.0, 3.0], 1)
    assert running.take([0, 1, 2], epoch=0) == [1.0, 2.0, 3.0]
    add(running, [7.0, 0.0, 0.0], 1)
    assert running.take([0, 1, 2], epoch=0) == [7.0, 0.0, 0.0]
    assert [running.of_epoch(number) for number in range(3)] == [2.5, 1.5, 2.25]
    running.keep([0, 2])
    add(running, [1.0, 2.0], 4)
    again = RunningLosses(3)
    again.load_state_dict(running.state_dict())
    assert again.take([0, 2], epoch=1) == [0.25, 0.5]
    assert [again.of_epoch(number) for number in range(3)] == [0.25, None, 0.5]
