"""Batches from resident tensors."""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor


class Batch(NamedTuple):
    """The rows of one global batch that this process trains on."""

    numeric: Tensor  # (B, D) float32: scaled numeric features, or flattened pixels; D may be 0
    categorical: Tensor | None  # (B, F) int64 codes, or None without categorical features
    target: Tensor | None  # (B,) int64 classes; (B, T) float32 regression targets or labels; None when predicting
    count: int  # rows of the global batch over all processes; B on one process
