"""The effective rank of a layer: how many directions its activations really use.

Roy and Vetterli (2007): exp(−Σ p ln p) with p = σ/Σσ, where σ are the singular values of the centred activations of a
whole pass, an (N, H) matrix. It is 1 where all rows lie on a line, and at most min(N − 1, H).

The matrix itself would be too large to keep. Its singular values are the roots of the eigenvalues of AᵀA, (H, H), which
sums over batches; while there are fewer rows than units, the rows are kept and the smaller AAᵀ is taken.

Symbols: B rows of a batch, N rows of a pass, H units; ... leading (member) dimensions.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from itertools import pairwise

import torch
import torch.distributed
from torch import Tensor

WIDE = 256  # from this width on only the lower half of AᵀA is computed, in blocks: a quarter of the time is saved
BLOCKS = 4


class Moments:
    """Sums the first and second moments of batches of activations around a fixed point.

    The point is the mean of the first rows: activations of 0.5 ± 1e-6 would lose their variation if they were squared
    as they are. Products are taken in the activations' own precision (at least float32) and added up in float64.
    """

    def __init__(self) -> None:
        self.rows = 0
        self.shift: Tensor | None = None  # (..., 1, H)
        self.total: Tensor | None = None  # (..., H) float64: Σ (a − shift)
        self.products: Tensor | None = None  # (..., H, H) float64: Σ (a − shift)(a − shift)ᵀ; only the lower half
        self._kept: list[Tensor] = []  # batches that are not in the sums yet

    def update(self, a: Tensor) -> None:
        """Adds a batch of activations, (..., B, H) with B ≥ 1."""
        self.rows += a.shape[-2]
        self._kept.append(at_least_float32(a))
        if self.products is not None or self.rows >= a.shape[-1]:
            self.fold()

    def fold(self) -> None:
        """Turns the kept batches into sums."""
        if not self._kept:
            return
        a = torch.cat(self._kept, dim=-2) if len(self._kept) > 1 else self._kept[0]
        self._kept = []
        if self.shift is None:
            self.shift = a.mean(dim=-2, keepdim=True, dtype=wide(a)).to(a.dtype)
        shifted = a - self.shift
        total, products = shifted.sum(dim=-2, dtype=wide(a)), lower_gram(shifted).to(wide(a))
        self.total = total if self.total is None else self.total.add_(total)
        self.products = products if self.products is None else self.products.add_(products)

    def empty(self, width: int, device: torch.device) -> None:
        """Makes sums of no rows, for a process that has seen none."""
        self.shift = torch.zeros(1, width, device=device)
        dtype = wide(self.shift)
        self.total = torch.zeros(width, dtype=dtype, device=device)
        self.products = torch.zeros(width, width, dtype=dtype, device=device)

    def eigenvalues(self, *, reduce: bool = False) -> Tensor:
        """Returns σ², the squared singular values of the centred activations of the pass, in rising order.

        What may be rounding alone counts as 0: units whose standard deviation is at most ε of their mean, and then σ of
        at most 2√ε of the largest, 7e-4 in float32. Without the second floor a layer of one direction and 1,000 units
        would seem to have more.

        Args:
            reduce: add the sums of all processes; a collective call.

        Returns:
            (..., min(N, H)) in float64, at least 0. NaN where an activation is not finite.
        """
        if reduce:
            self.fold()
        if self.shift is not None:
            epsilon = torch.finfo(self.shift.dtype).eps
            centred, mean, rows = self._centred(reduce)
            varies = _varies(centred.diagonal(dim1=-2, dim2=-1), mean, rows, epsilon)
            return _spectrum(centred * varies.unsqueeze(-1) * varies.unsqueeze(-2), epsilon)
        kept = torch.cat(self._kept, dim=-2)
        epsilon = torch.finfo(kept.dtype).eps
        kept = kept.to(wide(kept))
        mean = kept.mean(dim=-2, keepdim=True)
        kept = kept - mean
        varies = _varies(kept.square().sum(dim=-2), mean.squeeze(-2), self.rows, epsilon)
        kept = kept * varies.unsqueeze(-2)
        return _spectrum(kept @ kept.mT, epsilon)

    def _centred(self, reduce: bool) -> tuple[Tensor, Tensor, float]:
        """Returns Σ (a − mean)(a − mean)ᵀ over the pass (lower half), the mean and the rows.

        Chan, Golub and LeVeque (1983, eq. 2.1) for the sums of several processes.
        """
        assert self.shift is not None
        assert self.total is not None
        assert self.products is not None
        mean, rows = self.total / max(self.rows, 1), float(self.rows)  # (..., H), from `shift`
        centred = self.products - rows * mean.unsqueeze(-1) * mean.unsqueeze(-2)
        mean = mean + self.shift.squeeze(-2)
        if reduce:
            weighted = torch.cat([mean * rows, mean.new_full((*mean.shape[:-1], 1), rows)], dim=-1)
            torch.distributed.all_reduce(weighted)
            common = weighted[..., :-1] / weighted[..., -1:]
            offset = mean - common
            centred = centred + rows * offset.unsqueeze(-1) * offset.unsqueeze(-2)
            torch.distributed.all_reduce(centred)
            mean, rows = common, float(weighted.flatten()[-1])
        return centred, mean, rows


def effective_rank(eigenvalues: Tensor) -> Tensor:
    """Returns exp(−Σ p ln p), p = σ/Σσ, of squared singular values σ²; 0 where all are 0.

    Shape: (..., R) to (...).

    >>> effective_rank(torch.tensor([0.0, 4.0, 4.0])).item()
    2.0
    """
    values = eigenvalues.sqrt()
    total = values.sum(dim=-1)
    shares = values / torch.where(total > 0, total, 1).unsqueeze(-1)
    return torch.where(total == 0, 0.0, torch.exp(-torch.special.xlogy(shares, shares).sum(dim=-1)))


def lower_gram(x: Tensor) -> Tensor:
    """Returns xᵀx of (..., B, H) in full precision, right in and below the diagonal; (..., H, H)."""
    width = x.shape[-1]
    with full_precision(x.device.type):
        if width < WIDE:
            return x.mT @ x
        gram = x.new_zeros(*x.shape[:-2], width, width)
        edges = [width * block // BLOCKS for block in range(BLOCKS + 1)]
        for first, last in pairwise(edges):
            gram[..., first:, first:last] = x[..., first:].mT @ x[..., first:last]
        return gram


@contextmanager
def full_precision(device: str) -> Iterator[None]:
    """Multiplies matrices as their type says, whatever mixed precision or TF32 surrounds the call."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("highest")
    try:
        with torch.autocast(device, enabled=False):
            yield
    finally:
        torch.set_float32_matmul_precision(before)


def wide(x: Tensor) -> torch.dtype:
    """Returns the type to sum in: float64, but float32 on Apple's GPU, which has no other."""
    return torch.float32 if x.device.type == "mps" else torch.float64


def at_least_float32(x: Tensor) -> Tensor:
    """Returns x, in float32 where its type is narrower."""
    return x.float() if x.dtype in (torch.float16, torch.bfloat16) else x


def _varies(squares: Tensor, mean: Tensor, rows: float, epsilon: float) -> Tensor:
    """Returns 0 for the units that are constant up to rounding and 1 for the others, (..., H); NaN varies."""
    return (~(squares <= rows * (epsilon * mean).square())).to(squares.dtype)


def _spectrum(gram: Tensor, epsilon: float) -> Tensor:
    """Returns the eigenvalues of a positive semidefinite matrix; those up to 4ε of the largest are 0."""
    sick = ~gram.isfinite().flatten(-2).all(dim=-1)  # (...): the decomposition would raise
    values = torch.linalg.eigvalsh(gram.masked_fill(sick[..., None, None], 0.0))
    values = torch.where(values > 4 * epsilon * values[..., -1:], values, 0.0)
    return values.masked_fill(sick.unsqueeze(-1), torch.nan)
