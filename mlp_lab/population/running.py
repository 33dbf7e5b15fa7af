"""The training losses of all members since they were recorded last, and over the epoch.

Symbols: K members.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch


class RunningLosses:
    """Adds up the losses of each member on the device; only `take` waits for it.

    Args:
        members: K, all of them.
    """

    def __init__(self, members: int) -> None:
        self.sums = torch.zeros(members, dtype=torch.float64)
        """Of those in the stack, in their order."""
        self.rows = 0
        """Since they were taken last."""
        self.scores: torch.Tensor | None = None
        """Sums of those in the stack that make the epoch's training score, (K, S), where it is measured."""
        self._epoch: tuple[int, dict[int, float], int] = (-1, {}, 0)  # an epoch, and its recorded sums and rows

    def of_epoch_so_far(self, place: int, number: int, epoch: int) -> float:
        """Returns the mean of a member of the stack over the rows of an epoch, recorded or not."""
        _, before, rows = self._epoch if self._epoch[0] == epoch else (0, {}, 0)
        return (before.get(number, 0.0) + self.sums[place].item()) / (rows + self.rows)

    def rows_of(self, epoch: int) -> int:
        """Returns the rows of an epoch so far."""
        return self.rows + (self._epoch[2] if self._epoch[0] == epoch else 0)

    def take(self, numbers: Sequence[int], epoch: int) -> list[float]:
        """Returns the mean of each member since the last call, and starts anew.

        Args:
            numbers: of the members in the stack.
            epoch: the current one.
        """
        sums = self.sums.tolist()
        means = [total / self.rows for total in sums]
        _, before, rows = self._epoch if self._epoch[0] == epoch else (0, {}, 0)
        so_far = {number: before.get(number, 0.0) + total for number, total in zip(numbers, sums, strict=True)}
        self._epoch = (epoch, before | so_far, rows + self.rows)
        self.sums.zero_()
        self.rows = 0
        return means

    def of_epoch(self, number: int) -> float | None:
        """Returns a member's mean over the rows of the epoch that was taken last."""
        _, sums, rows = self._epoch
        return sums[number] / rows if rows and number in sums else None

    def keep(self, places: Sequence[int]) -> None:
        """Notes which of those in the stack are still in it."""
        self.sums = self.sums[list(places)]
        self.scores = None if self.scores is None else self.scores[list(places)]

    def state_dict(self) -> dict[str, Any]:
        """Returns the sums, for a checkpoint."""
        return {"sums": self.sums, "rows": self.rows, "epoch": self._epoch, "score_sums": self.scores}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        self.sums, self.rows, self._epoch = state["sums"], state["rows"], state["epoch"]
        self.scores = state.get("score_sums")  # checkpoints of an older version have none
