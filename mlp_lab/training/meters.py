"""Sums over many batches: read rarely, because reading waits for the device, and exact over any number of processes."""

from __future__ import annotations

from typing import Any

import torch
import torch.distributed
from torch import Tensor, nn

from mlp_lab.data.spec import DataSpec
from mlp_lab.model.tasks import metrics


class RunningLoss:
    """Mean of per-sample losses over many batches, summed in float64 on the device.

    A batch's rows are counted globally, over all processes; its losses are summed where they are. Reading is a
    collective call under DDP and adds the processes' sums in their order, so that all of them see the same bits.
    """

    def __init__(self) -> None:
        self.rows = 0
        self._host = 0.0  # on the CPU the sum; elsewhere what a checkpoint brought, until the device is known
        self._device: Tensor | None = None

    def add(self, total: Tensor, rows: int) -> None:
        """Adds a batch: this process's sum of losses, a scalar, and the rows of the global batch."""
        self.rows += rows
        if total.device.type == "cpu":  # reading takes 1 us there, adding to a tensor 8
            self._host += total.item()
            return
        if self._device is None:
            dtype = torch.float32 if total.device.type == "mps" else torch.float64  # Apple's GPU has no float64
            self._device = torch.tensor(self._host, dtype=dtype, device=total.device)
        self._device += total.detach()

    def sums(self) -> list[float]:
        """Returns the sum of every process; a collective call under DDP."""
        total = self._host if self._device is None else self._device.item()
        if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            return [total]
        parts: list[Any] = [0.0] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(parts, total)
        return parts

    def take(self) -> float:
        """Returns the mean over the rows so far, NaN without any, and starts anew; a collective call under DDP."""
        mean = sum(self.sums()) / self.rows if self.rows else float("nan")
        self.rows, self._device, self._host = 0, None, 0.0
        return mean

    def state_dict(self) -> dict[str, Any]:
        """Returns the sum of every process and the rows; a collective call under DDP."""
        return {"sums": self.sums(), "rows": self.rows}

    def load_state_dict(self, state: dict[str, Any], *, rank: int, world_size: int) -> None:
        """Restores this process's sum; where the number of processes has changed, the first one takes all."""
        sums = state["sums"]
        shares = sums if len(sums) == world_size else [sum(sums), *[0.0] * (world_size - 1)]
        self.rows, self._device, self._host = state["rows"], None, shares[rank]


class Meter(nn.Module):
    """The loss and the task's metrics over one pass, exact over any batching and any number of processes."""

    def __init__(self, spec: DataSpec) -> None:
        super().__init__()
        self.loss = RunningLoss()
        self.scores = metrics(spec)

    def update(self, losses: Tensor, logits: Tensor, target: Tensor, rows: int) -> None:
        """Adds a batch: per-sample losses (B,), logits (B, C) and targets of this process, rows of the global batch."""
        self.loss.add(losses.sum(dtype=torch.float32 if losses.device.type == "mps" else torch.float64), rows)
        if len(target):  # none, where the batch has fewer rows than there are processes
            self.scores.update(logits, target)

    def compute(self) -> dict[str, float]:
        """Returns the loss and every metric of the pass and starts anew; a collective call under DDP."""
        values = {"loss": self.loss.take(), **{name: value.item() for name, value in self.scores.compute().items()}}
        self.scores.reset()
        return values
