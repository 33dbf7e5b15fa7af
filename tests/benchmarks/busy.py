"""What a measured process has taken, and what others have taken from it meanwhile."""

from __future__ import annotations

import os
import time

from tests.benchmarks.harness import busy_seconds


class Busy:
    """Counts from its making on; what counts as one's own are child processes that have ended."""

    def __init__(self) -> None:
        self.begun, self.busy, self.own = time.perf_counter(), busy_seconds(), _children_seconds()

    def spent(self) -> dict[str, float]:
        """Returns seconds of wall time, of the children on all cores, and how many cores others have used."""
        wall, own = time.perf_counter() - self.begun, _children_seconds() - self.own
        return {"wall_s": wall, "cpu_s": own, "busy_elsewhere": max(0.0, (busy_seconds() - self.busy - own) / wall)}


def _children_seconds() -> float:
    times = os.times()
    return times.children_user + times.children_system
