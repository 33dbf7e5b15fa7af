"""Losses: pure functions from logits and targets to one loss per sample.

The caller sums them and divides by the rows of the global batch. `LOSSES` says which tasks each one fits.

Symbols: B batch, C classes, T targets or labels, p probability, y target, ε label smoothing.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch.nn.functional as F
from torch import Tensor

from mlp_lab.data.spec import TaskName


def mse(logits: Tensor, target: Tensor) -> Tensor:
    """Computes (ŷ - y)², averaged over targets; its minimiser is the conditional mean.

    Shape: (B, T) and (B, T) to (B,).
    """
    return (logits - target).square().mean(1)


def mae(logits: Tensor, target: Tensor) -> Tensor:
    """Computes the absolute error of ŷ, averaged over targets; its minimiser is the conditional median.

    Shape: (B, T) and (B, T) to (B,).
    """
    return (logits - target).abs().mean(1)


def huber(logits: Tensor, target: Tensor, *, delta: float = 1.0) -> Tensor:
    """Computes e²/2 for errors up to δ, δ(|e| - δ/2) beyond, averaged over targets (Huber 1964).

    Shape: (B, T) and (B, T) to (B,).

    Args:
        logits: ŷ.
        target: y.
        delta: δ > 0, in standard deviations of the target.
    """
    return F.huber_loss(logits, target, reduction="none", delta=delta).mean(1)


def bce(logits: Tensor, target: Tensor, *, label_smoothing: float = 0.0, pos_weight: float = 1.0) -> Tensor:
    """Computes -w·y·log p - (1 - y)·log(1 - p), averaged over labels, with y moved to (1 - ε)·y + ε/2.

    Shape: (B, 1) and (B,) for binary, (B, T) and (B, T) for multilabel, to (B,).

    Args:
        logits: log p/(1 - p).
        target: y, 0 or 1.
        label_smoothing: ε in [0, 1] (Szegedy et al. 2016).
        pos_weight: w > 0, the weight of the positive class.

    >>> import torch
    >>> bce(torch.zeros(1, 1), torch.ones(1))
    tensor([0.6931])
    """
    y = _smooth(target.to(logits.dtype).view_as(logits), label_smoothing, classes=2)  # (B, T)
    weight = None if pos_weight == 1 else logits.new_full((1,), pos_weight)
    return F.binary_cross_entropy_with_logits(logits, y, reduction="none", pos_weight=weight).mean(1)


def cross_entropy(logits: Tensor, target: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
    """Computes -Σ_c y_c·log p_c of the softmax, with one-hot y moved to (1 - ε)·y + ε/C.

    Shape: (B, C) and (B,) to (B,).

    Args:
        logits: log p up to a constant per row.
        target: class codes.
        label_smoothing: ε in [0, 1] (Szegedy et al. 2016).
    """
    return F.cross_entropy(logits, target, reduction="none", label_smoothing=label_smoothing)


def brier(logits: Tensor, target: Tensor, *, label_smoothing: float = 0.0) -> Tensor:
    """Computes the squared error of probabilities: Σ_c (p_c - y_c)², and (p - y)² where there is one logit per label.

    A proper score (Brier 1950) but a poor training loss: its gradient vanishes where a wrong class is certain.

    Shape: (B, C) and (B,) for multiclass; (B, 1) and (B,) for binary; (B, T) and (B, T) for multilabel; to (B,).

    Args:
        logits: as in `bce` or `cross_entropy`.
        target: class codes, or 0 and 1 per label.
        label_smoothing: ε in [0, 1].
    """
    classes = logits.shape[1]
    if target.dim() == 1 and classes > 1:
        y = _smooth(F.one_hot(target, classes).to(logits.dtype), label_smoothing, classes=classes)  # (B, C)
        return (logits.softmax(1) - y).square().sum(1)
    y = _smooth(target.to(logits.dtype).view_as(logits), label_smoothing, classes=2)  # (B, T)
    return (logits.sigmoid() - y).square().mean(1)


def _smooth(y: Tensor, label_smoothing: float, *, classes: int) -> Tensor:
    return y * (1 - label_smoothing) + label_smoothing / classes if label_smoothing else y


@dataclass(frozen=True, kw_only=True)
class Loss:
    """One loss, the tasks that it fits and the options that it takes."""

    name: str
    """As in `model.loss`."""
    function: Callable[..., Tensor]
    """(logits, target, **options) to (B,)."""
    tasks: tuple[TaskName, ...]
    """Tasks that it fits."""
    options: tuple[str, ...] = ()
    """Of label_smoothing and pos_weight, what it takes."""


_RECORDS = (
    Loss(name="mse", function=mse, tasks=("regression",)),
    Loss(name="mae", function=mae, tasks=("regression",)),
    Loss(name="huber", function=huber, tasks=("regression",)),
    Loss(name="bce", function=bce, tasks=("binary", "multilabel"), options=("label_smoothing", "pos_weight")),
    Loss(name="cross_entropy", function=cross_entropy, tasks=("multiclass",), options=("label_smoothing",)),
    Loss(name="brier", function=brier, tasks=("binary", "multiclass", "multilabel"), options=("label_smoothing",)),
)

LOSSES: dict[str, Loss] = {record.name: record for record in _RECORDS}
