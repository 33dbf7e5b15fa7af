"""Gradient accumulation whose every step is that of the mean loss over the rows of its window.

Lightning divides the loss of each batch by `trainer.accumulate_grad_batches`, k. That is the mean over the rows of a
window of k equal batches. The last window of an epoch may have fewer batches, and its last batch fewer rows: divided
by k, such a step would take a fraction of its gradient. A batch of b rows in a window of r rows therefore gets the
weight k·b/r before Lightning divides by k; it is exactly 1 in a window of k equal batches.
"""

from __future__ import annotations

import math

import lightning as L

from mlp_lab.data.loader import Batch, TensorLoader


def window_weight(trainer: L.Trainer, batch: Batch, batch_idx: int) -> float:
    """Returns by what the mean loss of a batch is multiplied, before it is divided by `accumulate_grad_batches`.

    A loader that is not a `TensorLoader` does not say how many rows its later batches have; they are taken to have as
    many as this one.

    Args:
        trainer: The trainer that fits.
        batch: The batch of this step.
        batch_idx: Its number in the epoch, from 0.
    """
    size = trainer.accumulate_grad_batches
    if size == 1:
        return 1.0
    first = batch_idx - batch_idx % size
    last = min(first + size, trainer.num_training_batches)  # infinite for a loader without a length
    loader = trainer.train_dataloader
    if isinstance(loader, TensorLoader) and math.isfinite(last):
        return size * batch.count / loader.rows_of(first, int(last))
    return size / (last - first)


def loss_divisor(trainer: L.Trainer, module: L.LightningModule) -> float:
    """Returns by what the mean loss of the last batch was divided before its gradient was added to the window's.

    That is `accumulate_grad_batches`, over the weight that the modules of this package give the batch.
    """
    return trainer.accumulate_grad_batches / getattr(module, "window_weight", 1.0)
