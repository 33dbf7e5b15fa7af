"""Dropout whose masks are a function of where a value stands, not of how many random numbers came before.

A mask is the hash of (seed, layer, step, row, unit). So a network drops the same values on the CPU and on a GPU, alone
and inside a population, on one process and on several that share a batch, and after a resumption; and on the CPU it
takes less than half the time of `nn.Dropout`, whose generator is serial.

The hash is two rounds of lowbias32 (C. Wellons, "Prospecting for hash functions", 2018), a bijection of 32-bit words
whose output bits each change with probability 1/2 ± 0.1% when an input bit does. The first round, over rows and units,
does not depend on the step and is kept; the second mixes in the key of the step.

Symbols: B rows, H units, p the probability that a value is dropped.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

WORD = 1 << 32
MULTIPLIERS = (0x7FEB352D, 0x846CA68B)
ALPHA = -1.7580993408473766  # selu's output at minus infinity, -λα (Klambauer et al. 2017)


def lowbias32(word: int) -> int:
    """Hashes one 32-bit word.

    >>> lowbias32(1), lowbias32(2)
    (1753845952, 3507691905)
    """
    word ^= word >> 16
    word = word * MULTIPLIERS[0] % WORD
    word ^= word >> 15
    word = word * MULTIPLIERS[1] % WORD
    return word ^ word >> 16


def step_key(seed: int, layer: int, step: int) -> int:
    """Returns the 32-bit key of one layer's mask at one training step; `step` may have up to 64 bits."""
    key = lowbias32(seed % WORD)
    for word in (layer, step % WORD, step // WORD):
        key = lowbias32((key + word) % WORD)
    return key


def uniform_words(rows: range, units: int, key: int, device: torch.device) -> Tensor:
    """Returns hashes of rows and units under a key, evenly spread over all words.

    Args:
        rows: numbers of the rows in the global batch.
        units: H.
        key: of `step_key`.
        device: where to compute; every device gives the same words.

    Returns:
        (B, H) int32; a word w stands for the unsigned w + 2^31.
    """
    if device.type == "cpu":  # numpy has unsigned words, and half of torch's cost
        words = lowbias32_numpy(_positions(rows.start, len(rows), units) ^ np.uint32(key))
        words ^= np.uint32(1 << 31)
        return torch.from_numpy(words.view(np.int32))
    positions = _positions_on(rows.start, len(rows), units, device)
    return lowbias32_torch_(positions ^ signed(key)).bitwise_xor_(signed(1 << 31))


@lru_cache(maxsize=32)
def _positions(first: int, rows: int, units: int) -> NDArray[np.uint32]:
    """Returns the hash of each row and unit, (B, H): the part of a mask that all steps share; never to be written."""
    row = lowbias32_numpy(np.arange(first, first + rows, dtype=np.uint32))  # (B,)
    return lowbias32_numpy(np.add.outer(row, np.arange(units, dtype=np.uint32)))


@lru_cache(maxsize=32)
def _positions_on(first: int, rows: int, units: int, device: torch.device) -> Tensor:
    return torch.from_numpy(_positions(first, rows, units).view(np.int32)).to(device)


def lowbias32_numpy(words: NDArray[np.uint32]) -> NDArray[np.uint32]:
    words = words ^ (words >> np.uint32(16))
    words *= np.uint32(MULTIPLIERS[0])
    words ^= words >> np.uint32(15)
    words *= np.uint32(MULTIPLIERS[1])
    words ^= words >> np.uint32(16)
    return words


def lowbias32_torch_(words: Tensor) -> Tensor:
    """Hashes in place; torch shifts signed words arithmetically, so the copies of the sign are masked out."""
    for shift, multiplier in zip((16, 15), MULTIPLIERS, strict=True):
        words.bitwise_xor_((words >> shift).bitwise_and_((1 << 32 - shift) - 1)).mul_(signed(multiplier))
    return words.bitwise_xor_((words >> 16).bitwise_and_(0xFFFF))


def signed(word: int) -> int:
    """Returns the int32 of the same bits."""
    return word - WORD if word >= WORD // 2 else word


class Dropout(nn.Module):
    """Drops each value with probability p in training and scales the others by 1/(1-p) (Srivastava et al. 2014).

    Values have shape (B, H). Every pass in training mode is one step of the counter `passes`, which belongs to the
    state that a checkpoint saves.

    Args:
        p: probability in [0, 1).
        layer: number of the layer, which tells this module's masks from another's of the same seed.
    """

    def __init__(self, p: float, layer: int = 0) -> None:
        super().__init__()
        self.p = p
        self.layer = layer
        self.seed = 0
        self.passes = 0
        self.first_row = 0
        """Number of this process's first row in the global batch."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0:
            return x
        keep = self._keep(x)
        self.passes += 1
        return self._apply_mask(x, keep)

    @torch.compiler.disable  # type: ignore[untyped-decorator]  # the key changes with every step
    def _keep(self, x: Tensor) -> Tensor:
        """Returns 1 where a value stays and 0 where it is dropped, (B, H), in float32 or wider."""
        rows = range(self.first_row, self.first_row + x.shape[0])
        words = uniform_words(rows, x.shape[1], step_key(self.seed, self.layer, self.passes), x.device)
        return (words >= int(self.p * WORD) - WORD // 2).to(torch.promote_types(x.dtype, torch.float32))

    def _apply_mask(self, x: Tensor, keep: Tensor) -> Tensor:
        dropped: Tensor = x * keep.mul_(1 / (1 - self.p))  # (B, H)
        return dropped.to(x.dtype)

    def get_extra_state(self) -> Tensor:
        """Returns seed and passes, for a state dict."""
        return torch.tensor([self.seed, self.passes])

    def set_extra_state(self, state: Any) -> None:
        """Takes seed and passes from a state dict."""
        self.seed, self.passes = cast("list[int]", state.tolist())

    def extra_repr(self) -> str:
        return f"p={self.p}"


class AlphaDropout(Dropout):
    """Sets values to selu's limit at minus infinity instead, and keeps mean 0 and variance 1 (Klambauer et al. 2017).

    The scale a and shift b are those of the paper's section 3 for a keep probability of 1-p.
    """

    def _apply_mask(self, x: Tensor, keep: Tensor) -> Tensor:
        a = ((1 - self.p) * (1 + self.p * ALPHA**2)) ** -0.5
        b = -a * self.p * ALPHA
        dropped: Tensor = x * (a * keep) + ((a * ALPHA) * (1 - keep) + b)  # (B, H)
        return dropped.to(x.dtype)
