"""Dropout masks of a whole level: for each member those of `mlp_lab.model.dropout`, bit by bit.

Symbols: n members, B batch, R rows (units of all members below one another).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from mlp_lab.model.dropout import (
    ALPHA,
    MULTIPLIERS,
    WORD,
    AlphaDropout,
    Dropout,
    lowbias32_numpy,
    lowbias32_torch_,
    signed,
)


class StackDropout(nn.Module):
    """Drops values of every member with its own probability, seed and count of passes.

    Args:
        parts: per member its `Dropout`, or None where it has none.
        rows: per member its rows, padded ones included.
    """

    counters: Tensor
    passing: Tensor
    """What a pass adds to the count of each member, (n,)."""

    def __init__(self, parts: Sequence[Dropout | None], rows: Sequence[int]) -> None:
        super().__init__()
        self.rows = tuple(rows)
        self.layer = next(part.layer for part in parts if part is not None)
        self.alpha = any(isinstance(part, AlphaDropout) for part in parts)
        state = [(part.seed, part.passes) if part is not None else (0, 0) for part in parts]
        self.register_buffer("counters", torch.tensor(state, dtype=torch.int64))  # (n, 2): seed, passes
        self.register_buffer("passing", torch.ones(len(parts), dtype=torch.int64), persistent=False)
        table = torch.tensor([_coefficients(part) for part in parts], dtype=torch.float64)  # (n, 3)
        repeats = torch.tensor(self.rows)
        self._coefficients = table.repeat_interleave(
            repeats, 0
        ).T.contiguous()  # (3, R), exact whatever the module's dtype
        thresholds = [int(part.p * WORD) if part is not None else 0 for part in parts]
        self.thresholds = np.repeat(np.array(thresholds, dtype=np.uint32), self.rows)  # (R,)
        self._kept: dict[tuple[object, ...], tuple[Tensor, ...]] = {}  # what was computed once per device

    def forward(self, x: Tensor, first_row: int = 0) -> Tensor:
        """Returns x (R, B) with values dropped, in training; x itself otherwise."""
        if not self.training:
            return x
        keys = step_keys(self.counters[:, 0], self.layer, self.counters[:, 1])  # (n,)
        self.counters[:, 1].add_(self.passing)
        keep = self._keep(keys, x.shape[1], first_row, x.device).to(torch.promote_types(x.dtype, torch.float32))
        kind = (keep.device, keep.dtype)
        if kind not in self._kept:
            self._kept[kind] = tuple(row.unsqueeze(1).to(keep) for row in self._coefficients)
        scale, low, shift = self._kept[kind]  # (R, 1)
        dropped = x * keep.mul_(scale) if not self.alpha else x * (scale * keep) + (low * (1 - keep) + shift)
        return dropped.to(x.dtype)

    def _keep(self, keys: Tensor, batch: int, first_row: int, device: torch.device) -> Tensor:
        """Returns where a value stays, (R, B) bool."""
        if not by_numpy(device):
            return self._keep_elsewhere(keys, batch, first_row, device)
        key = np.repeat(keys.numpy().astype(np.uint32), self.rows)[:, None]
        words = lowbias32_numpy(_positions(self.rows, first_row, batch) ^ key)  # (R, B)
        return torch.from_numpy(words >= self.thresholds[:, None])

    def _keep_elsewhere(self, keys: Tensor, batch: int, first_row: int, device: torch.device) -> Tensor:
        """The same, where there are no unsigned words; nothing comes from the host after the first pass."""
        kind = (device, first_row, batch)
        if kind not in self._kept:
            member = torch.arange(len(self.rows)).repeat_interleave(torch.tensor(self.rows))
            thresholds = torch.from_numpy((self.thresholds ^ np.uint32(1 << 31)).view(np.int32)).unsqueeze(1)
            here = (member, thresholds, torch.from_numpy(_positions(self.rows, first_row, batch).view(np.int32)))
            self._kept[kind] = tuple(tensor.to(device) for tensor in here)
        member, thresholds, positions = self._kept[kind]
        key = _to_int32(keys).index_select(0, member).unsqueeze(1)
        words = lowbias32_torch_(positions ^ key).bitwise_xor_(signed(1 << 31))
        return words >= thresholds


def by_numpy(device: torch.device) -> bool:
    """Says whether masks of a device are computed by numpy."""
    return device.type == "cpu"


def step_keys(seeds: Tensor, layer: int, passes: Tensor) -> Tensor:
    """Returns `step_key` of every member, (n,) int64, computed where the counters are."""
    if by_numpy(seeds.device):  # a few words: numpy takes a third of torch's time for them
        key = lowbias32_numpy(seeds.numpy().astype(np.uint32))
        count = passes.numpy().astype(np.uint64)
        for word in (np.uint32(layer), count.astype(np.uint32), (count >> np.uint64(32)).astype(np.uint32)):
            key = lowbias32_numpy(key + word)
        return torch.from_numpy(key.astype(np.int64))
    return step_keys_elsewhere(seeds, layer, passes)


def step_keys_elsewhere(seeds: Tensor, layer: int, passes: Tensor) -> Tensor:
    """The same, on devices where numpy does not compute."""
    key = _lowbias32(seeds % WORD)
    for word in (torch.full_like(key, layer), passes % WORD, passes // WORD):
        key = _lowbias32((key + word) % WORD)
    return key


def _lowbias32(words: Tensor) -> Tensor:
    """Hashes 32-bit words that int64 holds; a product wraps modulo 2^64, which leaves its low half right."""
    words = words ^ (words >> 16)
    words = (words * MULTIPLIERS[0]) & (WORD - 1)
    words = words ^ (words >> 15)
    words = (words * MULTIPLIERS[1]) & (WORD - 1)
    return words ^ (words >> 16)


def _to_int32(words: Tensor) -> Tensor:
    """Returns the int32 of the same bits."""
    return torch.where(words >= WORD // 2, words - WORD, words).to(torch.int32)


def _coefficients(part: Dropout | None) -> tuple[float, float, float]:
    """Returns scale of a kept value, value of a dropped one, shift of all."""
    if part is None:
        return 1.0, 0.0, 0.0
    if not isinstance(part, AlphaDropout):
        return 1 / (1 - part.p), 0.0, 0.0
    a = ((1 - part.p) * (1 + part.p * ALPHA**2)) ** -0.5
    return a, a * ALPHA, -a * part.p * ALPHA


@lru_cache(maxsize=32)
def _positions(rows: tuple[int, ...], first_row: int, batch: int) -> NDArray[np.uint32]:
    """Returns the hash of each member's unit and row, (R, B); never to be written."""
    row = lowbias32_numpy(np.arange(first_row, first_row + batch, dtype=np.uint32))  # (B,)
    unit = np.concatenate([np.arange(count, dtype=np.uint32) for count in rows])  # (R,)
    return lowbias32_numpy(np.add.outer(unit, row))
