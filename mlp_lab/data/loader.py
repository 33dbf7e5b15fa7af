"""Batches from resident tensors: one `index_select` per tensor, or a view where the order is kept.

A `DataLoader` fetches row by row and collates; on a small MLP that costs several times the training step. Here a batch
is one gather from tensors that already lie where the model is.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mlp_lab.errors import UserError

# Tensors go to the accelerator where they need less than this share of its free memory; the model needs the rest.
RESIDENT_SHARE = 0.5

Tensors = tuple[Tensor, Tensor | None, Tensor | None]  # numeric, categorical, target


class Batch(NamedTuple):
    """The rows of one global batch that this process trains on."""

    numeric: Tensor  # (B, D) float32: scaled numeric features, or flattened pixels; D may be 0
    categorical: Tensor | None  # (B, F) int64 codes, or None without categorical features
    target: Tensor | None  # (B,) int64 classes; (B, T) float32 regression targets or labels; None when predicting
    count: int  # type: ignore[assignment]  # rows of the global batch over all processes; B on one process


def epoch_order(rows: int, *, seed: int, epoch: int) -> Tensor:
    """Returns the order in which an epoch visits the rows, a pure function of its arguments.

    Args:
        rows: Number of rows, N.
        seed: The run's seed, >= 0.
        epoch: The epoch, >= 0. Seed and epoch are mixed by NumPy's `SeedSequence`, so (1, 0) and (0, 1) are unrelated.

    Returns:
        A permutation of 0 .. N-1, (N,) int64 on the CPU, the same on every process and device.
    """
    mixed = int(np.random.SeedSequence([seed, epoch]).generate_state(1, np.uint64)[0])
    generator = torch.Generator().manual_seed(mixed)
    return torch.randperm(rows, generator=generator)  # (N,)


def rank_bounds(first: int, last: int, *, rank: int, world_size: int) -> tuple[int, int]:
    """Returns this process's contiguous part of rows [first, last) of a global batch; parts differ by one row at most.

    >>> [rank_bounds(0, 10, rank=rank, world_size=4) for rank in range(4)]
    [(0, 2), (2, 5), (5, 7), (7, 10)]
    """
    count = last - first
    return first + count * rank // world_size, first + count * (rank + 1) // world_size


class TensorLoader:
    """Iterates over global batches of resident tensors and remembers where it is.

    Each iteration that gives its first batch is one epoch. Lightning ends an epoch without exhausting the iterator
    (after `limit_train_batches`, say), and calls `iter` on a loader only to see whether it can: so epochs are counted
    when an iteration starts, and `iter` itself does nothing. After `load_state_dict` the next iterator goes on inside
    the saved epoch; the one after it begins the following epoch, even if the first was never used (Lightning makes it
    and leaves it when the checkpoint was written in the validation that ends an epoch). Where the saved epoch was over
    and the training loop has begun a new one, which only `progress` can tell, so does the next iterator.

    Only the newest iterator of a loader may be advanced.
    """

    def __init__(
        self,
        numeric: Tensor,
        categorical: Tensor | None,
        target: Tensor | None,
        *,
        batch_size: int,
        shuffle: bool,
        reshuffle: bool = True,
        seed: int = 0,
        start_epoch: int = 0,
        drop_last: bool = False,
        rank: int = 0,
        world_size: int = 1,
        device: torch.device | None = None,
        progress: Callable[[], tuple[int, float]] | None = None,
    ) -> None:
        """Takes the tensors, and moves them where `device` is an accelerator.

        Args:
            numeric: Scaled features, (N, D) float32.
            categorical: Codes, (N, F) int64, or None.
            target: Targets, (N,) int64 or (N, T) float32, or None.
            batch_size: Rows of a global batch, over all processes, >= 1.
            shuffle: Visit the rows in `epoch_order`; otherwise in their own order, as views.
            reshuffle: A new order each epoch; False repeats epoch 0's (what `overfit_batches` needs).
            seed: Seed of the orders, >= 0.
            start_epoch: The first epoch's number.
            drop_last: Leave out a last batch that is not full.
            rank: This process, in 0 .. world_size-1.
            world_size: Number of processes that share each global batch.
            device: Where batches are wanted; None leaves the tensors where they are.
            progress: Returns how many batches of the current epoch the training loop has behind it, and how many it
                will take; None without such a loop.
        """
        self.rows = len(numeric)
        self.batch_size = batch_size
        # One batch of all rows is the same set in any order: keep it a view.
        self.shuffle = shuffle and batch_size < self.rows
        self.reshuffle = reshuffle
        self.seed = seed
        self.drop_last = drop_last
        self.rank, self.world_size = rank, world_size
        self.device = device or numeric.device
        tensors = _place((numeric, categorical, target), device=self.device, pin=not self.shuffle)
        self._numeric, self._categorical, self._target = tensors
        self._take = _take if self._numeric.device.type == self.device.type else self._take_staged
        self._epoch = start_epoch - 1  # of the newest iteration that has started
        self._given = 0  # batches that it has given
        self._progress = progress
        self._resume = False  # whether the next iterator goes on after them

    def __len__(self) -> int:
        """Returns the number of global batches of an epoch, the same on every process."""
        return self.rows // self.batch_size if self.drop_last else -(-self.rows // self.batch_size)

    def rows_of(self, first: int, last: int) -> int:
        """Returns the rows of the global batches `first` to `last` - 1 of an epoch.

        Args:
            first: The first batch, counted from 0.
            last: The batch after the last one; batches past the epoch's end have no rows.
        """
        rows = len(self) * self.batch_size if self.drop_last else self.rows
        return min(last * self.batch_size, rows) - min(first * self.batch_size, rows)

    def spread(self, rows: int) -> Batch:
        """Returns about so many rows from all over the data, at most twice as many; no epoch begins."""
        every = slice(None, None, max(1, self.rows // rows))
        return self._batch(every, count=len(range(self.rows)[every]))

    def __getstate__(self) -> dict[str, Any]:
        """Leaves out the training loop, to which a copy in another place does not belong."""
        return {**self.__dict__, "_progress": None}

    def __iter__(self) -> Iterator[Batch]:
        """Returns a lazy iterator over the rest of a resumed epoch, or over a new one."""
        resume, self._resume = self._resume, False
        return self._batches(resume)

    def _batches(self, resume: bool) -> Iterator[Batch]:
        done, total = (self._given, len(self)) if self._progress is None else self._progress()
        if not resume or done == 0:
            self._epoch, self._given = self._epoch + 1, 0
        order = self._order() if self.shuffle else None
        for index in range(self._given, int(min(total, len(self)))):
            first = index * self.batch_size
            last = min(first + self.batch_size, self.rows)
            rows = slice(*rank_bounds(first, last, rank=self.rank, world_size=self.world_size))
            self._given = index + 1  # before the yield: a checkpoint is written while the batch is in use
            yield self._batch(rows if order is None else order[rows], count=last - first)

    def _order(self) -> Tensor:
        epoch = self._epoch if self.reshuffle else 0
        return epoch_order(self.rows, seed=self.seed, epoch=epoch).to(self._numeric.device)  # (N,)

    def _batch(self, rows: slice | Tensor, count: int) -> Batch:
        return Batch(
            self._take(self._numeric, rows),
            None if self._categorical is None else self._take(self._categorical, rows),
            None if self._target is None else self._take(self._target, rows),
            count,
        )

    def _take_staged(self, tensor: Tensor, rows: slice | Tensor) -> Tensor:
        """Copies rows of host memory to the device through pinned memory, without waiting for the copy."""
        if isinstance(rows, slice):
            return tensor[rows].to(self.device, non_blocking=True)  # pinned by `_place`
        pinned = torch.empty((len(rows), *tensor.shape[1:]), dtype=tensor.dtype, pin_memory=True)
        return torch.index_select(tensor, 0, rows, out=pinned).to(self.device, non_blocking=True)

    def state_dict(self) -> dict[str, int | bool]:
        """Returns the position: the epoch, the batches it has given, and what makes that position meaningful."""
        return {"epoch": self._epoch, "batches": self._given, **self._identity()}

    def load_state_dict(self, state: dict[str, int | bool]) -> None:
        """Makes the next iterator go on where the saved one stood; the order of ranks and devices may differ.

        Raises:
            UserError: If the batches of the saved epoch cannot be repeated because batch size, rows or seed differ.
        """
        for name, value in self._identity().items():
            if state[name] != value:
                key = "data: training rows" if name == "rows" else f"data.{name}"
                raise UserError(f"{key}: {value} cannot go on inside an epoch that began with {state[name]}; keep that")
        self._epoch, self._given = int(state["epoch"]), int(state["batches"])
        self._resume = self._given > 0

    def _identity(self) -> dict[str, int | bool]:
        return {"rows": self.rows, "batch_size": self.batch_size, "seed": self.seed, "drop_last": self.drop_last}


def _take(tensor: Tensor, rows: slice | Tensor) -> Tensor:
    return tensor[rows] if isinstance(rows, slice) else tensor.index_select(0, rows)


def _place(tensors: Tensors, *, device: torch.device, pin: bool) -> Tensors:
    """Moves the tensors to an accelerator where they fit; else leaves them, pinned if slices are to be copied."""
    numeric, *others = tensors
    move: Callable[[Tensor], Tensor]
    if device.type == "cpu":
        return tensors
    needed = sum(tensor.nbytes for tensor in tensors if tensor is not None and tensor.device != device)
    if device.type == "cuda" and needed > RESIDENT_SHARE * torch.cuda.mem_get_info(device)[0]:
        if not pin:
            return tensors
        move = Tensor.pin_memory
    else:
        move = partial(Tensor.to, device=device)
    categorical, target = (None if tensor is None else move(tensor) for tensor in others)
    return move(numeric), categorical, target
