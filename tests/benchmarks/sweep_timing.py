"""What a peer of the sweep benchmark is given and returns. Nothing here imports a framework: JAX's peer runs alone."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

from tests.benchmarks.sweep_lists import Member


class Job(NamedTuple):
    """What a peer has to train."""

    members: Sequence[Member]
    warm_up: int  # steps of each member before the clock starts
    steps: int  # steps of each member that are timed
    threads: int
    bucket: int | None = None  # widths of the population are padded to a multiple of it; None leaves it the choice


class Timing(NamedTuple):
    """What a peer returns."""

    seconds: float  # of the timed steps of all members
    setup_s: float  # of building all members, and of what a framework does before and after its steps
    losses: list[float] | None = None  # mean training loss of each member over the timed steps
    start_mb: float | None = None  # memory before the members are built
    peak_mb: float | None = None  # where it is not that of this process alone
