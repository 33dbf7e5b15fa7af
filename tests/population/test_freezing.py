"""Members that are not finite: the flags on the device, and what freezing does."""

from __future__ import annotations

import torch

from mlp_lab.population.freezing import Flags

INF, NAN = float("inf"), float("nan")


def test_flags_note_the_first_step_of_each_member() -> None:
    flags, alive = Flags(4, 10, torch.device("cpu")), torch.tensor([True, True, True, False])
    for losses in ([1.0, 2.0, 3.0, NAN], [1.0, NAN, 3.0, NAN], [1.0, INF, -INF, 1.0], [1.0, 2.0, 3.0, 4.0]):
        flags.look(torch.tensor(losses), alive)
    assert flags.read() == {1: 12, 2: 13}  # the last one had stopped before
    assert alive.tolist() == [True, False, False, False]
