"""Sums of squares that neither underflow nor lose digits, of many tensors at once.

Sums run in float64: the square of a vanished gradient of 1e-25 is 0 in float32. Where no square can be lost, float32
sums the rows of a matrix and float64 adds them up, in a third of the time that a copy in float64 takes.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import torch
from torch import Tensor

from mlp_lab.diagnostics.rank import wide

LEAST_SQUARE = 1e-20
"""Least sum that float32 is trusted with: a square below 1.2e-38 may be lost, of 1e9 entries 1.2e-29 in all."""


def widen(tensor: Tensor) -> Tensor:
    """Returns the tensor in the type to sum in."""
    return tensor.detach().to(wide(tensor))


def ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    """Returns the quotient, NaN where the denominator is 0."""
    return torch.where(denominator == 0, torch.nan, numerator / denominator)


def squared_norm(tensor: Tensor, members: int = 0) -> Tensor:
    """Returns Σ x² over all but the first `members` dimensions, in float64.

    >>> f"{squared_norm(torch.tensor([3e-30, 4e-30])).sqrt().item():.3g}"
    '5e-30'
    """
    return squared_norms([tensor], members)[..., 0]


def squared_norms(tensors: Iterable[Tensor], members: int = 0) -> Tensor:
    """Returns Σ x² of each tensor over all but its first `members` dimensions, (..., tensors), in float64.

    Each is summed as it comes, so that a generator's tensor is still in the cache.

    >>> squared_norms([torch.ones(2, 9), torch.full((4,), 2.0)]).tolist()
    [18.0, 16.0]
    """
    kept: list[Tensor] = []
    rows: list[Tensor] = []
    for tensor in tensors:
        kept.append(tensor)
        if members == 0 and _simple(tensor):
            norms = torch.linalg.vector_norm(tensor.detach(), dim=-1 if tensor.dim() else None)
            rows.append(norms.reshape(-1))
    if kept and len(rows) == len(kept):
        return _total(kept, rows)
    return torch.stack([_exact(one, members) for one in kept], -1) if kept else torch.zeros(0, dtype=torch.float64)


def _simple(tensor: Tensor) -> bool:
    """Whether float32 may sum the rows; on other devices reading the sums, to check them, would wait."""
    return tensor.dtype == torch.float32 and tensor.device.type == "cpu"


def _exact(tensor: Tensor, members: int) -> Tensor:
    flat = widen(tensor).flatten(members) if tensor.dim() > members else widen(tensor).unsqueeze(-1)
    square: Tensor = torch.linalg.vecdot(flat, flat)
    return square


def _total(tensors: list[Tensor], norms: list[Tensor]) -> Tensor:
    """Returns Σ x² from the norms of all rows; what float32 could not hold is summed again in float64."""
    lengths = torch.tensor([len(one) for one in norms])
    squares: Tensor = torch.segment_reduce(
        torch.cat(norms).double().square_(), "sum", lengths=lengths, unsafe=True, initial=0
    )
    for place, square in enumerate(squares.tolist()):
        if not LEAST_SQUARE < square < math.inf:  # a NaN, too
            squares[place] = _exact(tensors[place], 0)
    return squares
