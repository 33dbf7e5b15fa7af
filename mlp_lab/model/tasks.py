"""What each task makes of the network's logits: a loss to train on, probabilities or values, metrics.

| task | logits | target | trained on | prediction |
|---|---|---|---|---|
| regression | (B, T), the standardised mean | (B, T) float | mse | value in the target's own unit |
| binary | (B, 1), log-odds of class 1 | (B,) codes | bce | probability above ½ |
| multiclass | (B, C) | (B,) codes | cross_entropy | most probable class |
| multilabel | (B, T), log-odds of each label | (B, T), 0 or 1 | bce | probability above ½, per label |
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torchmetrics import Metric, MetricCollection
from torchmetrics.classification import (
    BinaryAccuracy,
    MulticlassAccuracy,
    MulticlassF1Score,
    MultilabelAccuracy,
)

from mlp_lab.data.spec import DataSpec, TaskName
from mlp_lab.errors import UserError, unknown
from mlp_lab.model.losses import LOSSES, Loss
from mlp_lab.model.metrics import BinaryAreaPR, BinaryAreaROC, MultilabelAreaROC, RegressionScores

DEFAULT_LOSS: dict[TaskName, str] = {
    "regression": "mse",
    "binary": "bce",
    "multiclass": "cross_entropy",
    "multilabel": "bce",
}


def resolve_loss(task: TaskName, name: str = "auto") -> Loss:
    """Looks a loss up by its name; auto is the task's default.

    Raises:
        UserError: the name is unknown, or the loss does not fit the task.

    >>> resolve_loss("binary").name
    'bce'
    """
    if name == "auto":
        name = DEFAULT_LOSS[task]
    if name not in LOSSES:
        raise unknown("model.loss", name, ["auto", *LOSSES])
    loss = LOSSES[name]
    if task in loss.tasks:
        return loss
    if loss.tasks == ("regression",):
        reason = "it compares numbers, and logits of classes are none"
        advice = f"; use {DEFAULT_LOSS[task]}; to study squared error on probabilities name it 'brier'"
    else:
        reason = f"it is for {' and '.join(loss.tasks)} targets"
        advice = f"; use {DEFAULT_LOSS[task]}"
    fitting = ", ".join(record.name for record in LOSSES.values() if task in record.tasks)
    raise UserError(f"model.loss: {name!r} does not fit the {task} task: {reason}{advice}; accepted: auto, {fitting}")


class Criterion(nn.Module):
    """A loss with its options: `(logits, target)` to one loss per sample, (B,).

    Class weights multiply each sample's loss by the weight of its class.
    """

    class_weights: Tensor | None

    def __init__(self, loss: Loss, *, options: dict[str, float], class_weights: Sequence[float] | None) -> None:
        super().__init__()
        self.loss = loss
        self.options = options
        weights = None if class_weights is None else torch.tensor(class_weights)  # (C,)
        self.register_buffer("class_weights", weights, persistent=False)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        losses = self.loss.function(logits, target, **self.options)
        return losses if self.class_weights is None else losses * self.class_weights[target]


def build_loss(
    spec: DataSpec,
    name: str = "auto",
    *,
    label_smoothing: float = 0.0,
    class_weights: str | Sequence[float] = "none",
    pos_weight: float = 1.0,
) -> Criterion:
    """Builds the loss of a data set.

    Args:
        spec: the data set.
        name: a name of `LOSSES`, or auto.
        label_smoothing: ε in [0, 1): how far the targets move to the uniform distribution.
        class_weights: none, balanced (by inverse training frequency), or one weight per class. They are scaled to a
            mean of 1 over the training rows, so that the learning rate keeps its meaning.
        pos_weight: weight of the positive class in bce, above 0; 1 changes nothing.

    Raises:
        UserError: names the setting that is out of range or does not fit.
    """
    loss = resolve_loss(spec.task, name)
    if not 0 <= label_smoothing < 1:
        raise UserError(f"model.label_smoothing: {label_smoothing!r} is out of range; accepted: at least 0 and below 1")
    if not 0 < pos_weight < math.inf:
        raise UserError(f"model.pos_weight: {pos_weight!r} is not a weight; accepted: a number above 0")
    given = {"label_smoothing": (label_smoothing, 0.0), "pos_weight": (pos_weight, 1.0)}
    options = {key: value for key, (value, neutral) in given.items() if value != neutral}
    for key in options.keys() - set(loss.options):
        takers = ", ".join(record.name for record in LOSSES.values() if key in record.options)
        raise UserError(f"model.{key}: {options[key]!r} does not apply to model.loss: {loss.name}; it is for {takers}")
    weights = resolve_class_weights(spec, class_weights)
    if weights is not None and "pos_weight" in options:
        raise UserError(f"model.pos_weight: {pos_weight!r} and model.class_weights do the same work; set one of them")
    return Criterion(loss, options=options, class_weights=weights)


def resolve_class_weights(spec: DataSpec, choice: str | Sequence[float]) -> tuple[float, ...] | None:
    """Returns a weight per class with mean 1 over the training rows, or None for equal weights.

    Raises:
        UserError: the choice is unknown or unusable, or the task has no exclusive classes.

    >>> spec = DataSpec(task="binary", classes=("no", "yes"), class_counts=(30, 10))
    >>> [round(weight, 3) for weight in resolve_class_weights(spec, "balanced")]
    [0.667, 2.0]
    """
    if choice == "none":
        return None
    if isinstance(choice, str) and choice != "balanced":
        raise unknown("model.class_weights", choice, ["none", "balanced", "a list with one weight per class"])
    if spec.task not in ("binary", "multiclass"):
        advice = "use model.pos_weight" if spec.task == "multilabel" else "accepted: none"
        raise UserError(f"model.class_weights: {choice!r} does not fit the {spec.task} task; {advice}")
    counts = spec.class_counts
    if 0 in counts or len(counts) != len(spec.classes):
        absent = [name for name, count in zip(spec.classes, counts, strict=False) if count == 0]
        raise UserError(f"model.class_weights: {choice!r} needs training rows of every class; none of {absent}")
    raw = [1 / count for count in counts] if isinstance(choice, str) else list(choice)
    if len(raw) != len(counts):
        raise UserError(f"model.class_weights: {raw} has {len(raw)} weights for {len(counts)} classes {spec.classes}")
    if not all(0 <= weight < math.inf for weight in raw) or not any(raw):
        raise UserError(f"model.class_weights: {raw} are no weights; accepted: numbers of at least 0, not all 0")
    mean = sum(weight * count for weight, count in zip(raw, counts, strict=True)) / sum(counts)
    return tuple(weight / mean for weight in raw)


def probabilities(task: TaskName, logits: Tensor) -> Tensor:
    """Turns logits into probabilities.

    Returns:
        (B, C) for multiclass; (B, 1), of class 1, for binary; (B, T) for multilabel.

    Raises:
        ValueError: for regression, which predicts no probabilities.
    """
    if task == "regression":
        raise ValueError("regression predicts values, not probabilities")
    return logits.softmax(1) if task == "multiclass" else logits.sigmoid()


class TaskMetrics(MetricCollection):
    """The metrics of one task; `update(logits, target)` takes what the loss takes.

    torchmetrics applies a sigmoid only to batches with values outside [0, 1], so that some logits would be taken for
    probabilities: here probabilities go in.
    """

    def __init__(self, task: TaskName, metrics: Mapping[str, Metric], *, groups: list[list[str]]) -> None:
        super().__init__(dict(metrics), compute_groups=groups)
        self.task = task

    def update(self, logits: Tensor, target: Tensor) -> None:  # type: ignore[override]
        """Adds one batch of logits and targets."""
        super().update(*self._inputs(logits, target))

    def forward(self, logits: Tensor, target: Tensor) -> dict[str, Any]:
        """Adds one batch and returns its own metrics."""
        return super().forward(*self._inputs(logits, target))

    def _inputs(self, logits: Tensor, target: Tensor) -> tuple[Tensor, Tensor]:
        logits = logits.detach()
        if self.task == "regression":
            return logits, target
        if self.task == "multiclass":
            return logits.argmax(1), target
        return logits.sigmoid().view(target.shape), target.long()


SCORES: dict[TaskName, tuple[str, ...]] = {
    "regression": ("rmse", "mae", "r2"),
    "binary": ("accuracy", "auroc", "auprc"),
    "multiclass": ("accuracy", "f1"),
    "multilabel": ("accuracy", "auroc"),
}
"""What `metrics` measures of each task."""


UNDEFINED = {
    "auroc": "the validation rows hold one class",
    "auprc": "the validation rows hold one class",
    "r2": "a target does not vary over the validation rows",
}
"""Metrics that have no value on some rows, whatever is predicted, and why."""


def undefined(spec: DataSpec, target: Tensor) -> set[str]:
    """Returns the metrics that have no value on rows with these targets, whatever is predicted.

    Args:
        spec: the data set.
        target: (N,) or (N, T), what the loss takes.
    """
    measured = metrics(spec)
    measured.update(torch.zeros(len(target), spec.out_features), target.cpu())
    return {name for name, value in measured.compute().items() if value.isnan()}


def metrics(spec: DataSpec) -> TaskMetrics:
    """Builds the metrics of a data set; threshold-dependent ones use the most probable class.

    Returns:
        multiclass: accuracy, f1 (macro over the classes seen or predicted). binary: accuracy, auroc, auprc (average
        precision). multilabel: accuracy (of all single labels), auroc (mean over labels). regression: rmse, mae in the
        target's own unit, r2 (means over targets).
    """
    return _METRICS[spec.task](spec)


def _regression_metrics(spec: DataSpec) -> TaskMetrics:
    unit = spec.target_std or (1.0,) * spec.out_features
    return TaskMetrics(spec.task, {"regression": RegressionScores(unit)}, groups=[["regression"]])


def _binary_metrics(spec: DataSpec) -> TaskMetrics:
    scores = {
        "accuracy": BinaryAccuracy(validate_args=False),
        "auroc": BinaryAreaROC(validate_args=False),
        "auprc": BinaryAreaPR(validate_args=False),
    }
    return TaskMetrics(spec.task, scores, groups=[["accuracy"], ["auroc", "auprc"]])


def _multiclass_metrics(spec: DataSpec) -> TaskMetrics:
    classes = spec.out_features
    scores = {
        "accuracy": MulticlassAccuracy(classes, average="micro", validate_args=False),
        "f1": MulticlassF1Score(classes, average="macro", validate_args=False),
    }
    return TaskMetrics(spec.task, scores, groups=[["accuracy"], ["f1"]])


def _multilabel_metrics(spec: DataSpec) -> TaskMetrics:
    labels = spec.out_features
    scores = {
        "accuracy": MultilabelAccuracy(labels, average="micro", validate_args=False),
        "auroc": MultilabelAreaROC(labels, validate_args=False),
    }
    return TaskMetrics(spec.task, scores, groups=[["accuracy"], ["auroc"]])


_METRICS: dict[TaskName, Callable[[DataSpec], TaskMetrics]] = {
    "regression": _regression_metrics,
    "binary": _binary_metrics,
    "multiclass": _multiclass_metrics,
    "multilabel": _multilabel_metrics,
}
