"""What a module takes for a batch: a `Batch`, or the pair (x, y) of a plain `DataLoader`.

Symbols: B batch, D numeric inputs, C classes, T targets or labels.
"""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities.seed import isolate_rng
from torch import Tensor

from mlp_lab.data.loader import Batch, TensorLoader
from mlp_lab.data.module import TensorDataModule
from mlp_lab.data.spec import DataSpec
from mlp_lab.errors import UserError

INIT_ROWS = 1024  # training rows behind a data-dependent initialisation


class PairBatches(L.LightningModule):
    """The part of a module that takes pairs: callbacks and steps see each as a `Batch`.

    It is not a hook of Lightning's, because a module that has one overrides that of its data module.
    """

    spec: DataSpec

    def _apply_batch_transfer_handler(self, batch: Any, *arguments: Any, **settings: Any) -> Any:
        """Brings a batch to the device in Lightning's way; the straight path calls `as_batch` itself."""
        batch = super()._apply_batch_transfer_handler(batch, *arguments, **settings)
        running = self._trainer is not None and self.trainer.state.stage is not None  # else it is an export's example
        return self.as_batch(batch) if running else batch

    def as_batch(self, batch: Any) -> Any:
        """Returns a pair as a `Batch`; a `Batch`, and one that a loader leaves out (None), as it is.

        Raises:
            UserError: It is something else.
        """
        if batch is None or isinstance(batch, Batch):
            return batch
        return pair_batch(batch, self.spec, dtype=self.dtype, processes=self.trainer.world_size)  # type: ignore[arg-type]


def pair_batch(batch: Any, spec: DataSpec, *, dtype: torch.dtype = torch.float32, processes: int = 1) -> Batch:
    """Returns the pair (x, y), or x alone, as a `Batch`.

    Args:
        batch: x (B, D), scaled as the network expects it, and y: classes (B,), labels (B, T), or standardised
            regression targets (B,) or (B, T).
        spec: What the module knows of the data.
        dtype: Type of the network's inputs.
        processes: Processes that each have a batch of as many rows.

    Raises:
        UserError: It is another thing, or y does not fit the task.

    >>> spec = DataSpec(task="binary", numeric=("a",), classes=("no", "yes"))
    >>> pair_batch([torch.zeros(2, 1), torch.tensor([0, 1])], spec).target
    tensor([0, 1])
    """
    parts = list(batch) if isinstance(batch, list | tuple) else [batch]
    if len(parts) not in (1, 2) or not all(isinstance(part, Tensor) for part in parts) or spec.categorical:
        codes = " with the codes of the categorical columns" if spec.categorical else ""
        raise UserError(
            f"data: the loader gives {_described(batch)}; use mlp_lab.data.loader.Batch{codes}"
            + ("" if spec.categorical else f", or a pair (x, y) of tensors with x of shape (B, {len(spec.numeric)})")
        )
    target = _target(parts[1], spec, rows=len(parts[0])) if len(parts) == 2 else None
    return Batch(parts[0].to(dtype), None, target, len(parts[0]) * processes)


def _target(y: Tensor, spec: DataSpec, *, rows: int) -> Tensor:
    """Returns what the loss takes: (B,) codes, or (B, T) float32."""
    if spec.task in ("regression", "multilabel"):
        shape: tuple[int, ...] = (rows, spec.out_features)
        found = y.unsqueeze(1) if y.dim() == 1 and spec.out_features == 1 else y
        found = found if found.is_floating_point() else found.float()
    else:
        shape = (rows,)
        found = y.squeeze(1) if y.dim() == 2 and y.shape[1] == 1 else y
    if found.shape != shape:
        raise UserError(f"data: y has the shape {tuple(y.shape)}; the {spec.task} task takes {shape}")
    if len(shape) == 2:
        return found
    codes, classes = found.long(), 2 if spec.task == "binary" else len(spec.classes)
    if not bool(((codes == found) & (codes >= 0) & (codes < classes)).all()):
        raise UserError(f"data: y holds values that are no class; the {spec.task} task takes 0 to {classes - 1}")
    return codes


def _described(batch: Any) -> str:
    """Says what a batch is.

    >>> _described((torch.zeros(2, 1), 3))
    'a tuple of (Tensor, int)'
    """
    if isinstance(batch, list | tuple):
        return f"a {type(batch).__name__} of ({', '.join(type(part).__name__ for part in batch)})"
    return f"a {type(batch).__name__}"


def rows_for_init(trainer: L.Trainer, spec: DataSpec) -> Batch:
    """Returns training rows for a data-dependent initialisation, before the first epoch begins.

    They come from all over the data (a file may be sorted), or are the first batch of a loader that is no
    `TensorLoader`; drawing it leaves the random generators as they were.

    Raises:
        UserError: The loader gives no batch.
    """
    data = trainer.datamodule  # type: ignore[attr-defined]
    if isinstance(data, TensorDataModule):
        part = data.part("train")
        rows = slice(None, None, max(1, part.rows // INIT_ROWS))
        categorical = None if part.categorical is None else part.categorical[rows]
        return Batch(part.numeric[rows], categorical, None, len(part.numeric[rows]))
    loader = trainer.fit_loop._data_source.dataloader()
    if isinstance(loader, TensorLoader):
        return loader.spread(INIT_ROWS)
    with isolate_rng():
        batch = next(iter(loader), None)
    if batch is None:
        raise UserError("data: the training loader gives no batch")
    batch = trainer.strategy.broadcast(batch)  # every process starts from the same weights
    return batch if isinstance(batch, Batch) else pair_batch(batch, spec)
