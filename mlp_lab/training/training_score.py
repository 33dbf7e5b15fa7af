"""The score of a network on its training batches, as it is at each of them: accuracy, or the RMSE of a regression.

Symbols: B batch, C outputs, T targets or labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed
from torch import Tensor

from mlp_lab.data.spec import DataSpec
from mlp_lab.model.tasks import SCORES

MOST_LOGITS = 2**15  # that are kept between two comparisons: what a cache holds


def score_sums(spec: DataSpec, logits: Tensor, target: Tensor) -> Tensor:
    """Returns the sums over a batch that `score_of` makes a score of.

    Args:
        spec: The data set.
        logits: (..., B, C); the leading dimensions share the targets.
        target: (B,) or (B, T), what the loss takes.

    Returns:
        Labels that are predicted right, (..., 1), int64; of a regression the squared errors, (..., T), float64.

    >>> spec = DataSpec(task="multiclass", classes=("a", "b"), targets=("y",))
    >>> score_sums(spec, torch.tensor([[1.0, 0.0], [2.0, 3.0]]), torch.tensor([0, 0]))
    tensor([1])
    """
    if spec.task == "regression":
        return squared_errors(logits, target).sum(-2)
    if spec.task == "multiclass":
        return (logits.argmax(-1) == target).sum(-1, keepdim=True)
    right = (logits > 0) == (target.view(len(target), -1) > 0.5)  # (..., B, T)
    return right.flatten(-2).sum(-1, keepdim=True)


def squared_errors(prediction: Tensor, target: Tensor) -> Tensor:
    """Returns them in float64, or in float32 on Apple's GPU, which has no float64."""
    error = prediction - target
    return (error if error.device.type == "mps" else error.double()).square()


def score_of(spec: DataSpec, sums: Sequence[float], rows: int) -> dict[str, float]:
    """Returns the first of the task's metrics by its name, in float32 as validation reports it."""
    if spec.task == "regression":
        unit = spec.target_std or (1.0,) * len(sums)
        value = sum((total / rows) ** 0.5 * scale for total, scale in zip(sums, unit, strict=True)) / len(sums)
    else:
        value = sums[0] / (rows * (len(spec.targets) if spec.task == "multilabel" else 1))
    return {SCORES[spec.task][0]: torch.tensor(value, dtype=torch.float32).item()}


class TrainingScore:
    """The score over the batches of an epoch so far; reading it is a collective call under DDP.

    Logits are kept, and compared in pieces: comparing each batch by itself takes 1% of the step of a small network.

    Args:
        spec: The data set.
    """

    def __init__(self, spec: DataSpec) -> None:
        self.spec = spec
        self._kept: list[tuple[Tensor, Tensor]] = []
        self._logits = 0
        self._sums: Tensor | None = None  # (1,) or (T,), on the device
        self._rows = 0

    def add(self, logits: Tensor, target: Tensor) -> None:
        """Adds a batch: logits (B, C) and targets (B,) or (B, T) of this process."""
        if self._kept and self._kept[0][0].shape != logits.shape:
            self._compare()
        self._kept.append((logits.detach(), target))
        self._logits += logits.numel()
        if self._logits > MOST_LOGITS:
            self._compare()

    def _compare(self) -> None:
        """Adds the kept batches, one after another where rounding depends on the order."""
        if not self._kept:
            return
        logits, target = (torch.stack(parts) for parts in zip(*self._kept, strict=True))  # (n, B, C); (n, B, ...)
        self._kept, self._logits = [], 0
        if self.spec.task == "regression":
            sums = squared_errors(logits, target).sum(1)  # (n, T)
        else:
            sums = score_sums(self.spec, logits.flatten(0, 1), target.flatten(0, 1)).unsqueeze(0)
        self._rows += target.shape[0] * target.shape[1]
        before = torch.zeros_like(sums[0]) if self._sums is None else self._sums.to(sums)
        self._sums = torch.cat([before.unsqueeze(0), sums]).cumsum(0)[-1]

    def reset(self) -> None:
        """Forgets all batches."""
        self._kept, self._logits, self._sums, self._rows = [], 0, None, 0

    def compute(self) -> dict[str, float]:
        """Returns the score by its name, nothing without a batch."""
        parts = self.state_dict()["parts"]
        rows = sum(part["rows"] for part in parts)
        sums = [sum(column) for column in zip(*(part["sums"] for part in parts if part["rows"]), strict=True)]
        return score_of(self.spec, sums, rows) if rows else {}

    def state_dict(self) -> dict[str, Any]:
        """Returns the sums and the rows of every process."""
        self._compare()
        own = {"sums": [] if self._sums is None else self._sums.tolist(), "rows": self._rows}
        if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            return {"parts": [own]}
        parts: list[Any] = [None] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(parts, own)
        return {"parts": parts}

    def load_state_dict(self, state: dict[str, Any], *, rank: int, world_size: int) -> None:
        """Restores this process's sums; where the number of processes has changed, they are shared out anew."""
        self.reset()
        own = [part for part in state["parts"][rank::world_size] if part["rows"]]
        self._rows = sum(part["rows"] for part in own)
        if own:
            kind = torch.float64 if self.spec.task == "regression" else torch.int64
            sums = [sum(column) for column in zip(*(part["sums"] for part in own), strict=True)]
            self._sums = torch.tensor(sums, dtype=kind)
