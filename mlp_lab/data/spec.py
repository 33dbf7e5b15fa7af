"""What a model must know of the data, and nothing else."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal, get_args

from mlp_lab.errors import UserError

TaskName = Literal["regression", "binary", "multiclass", "multilabel"]
TASK_NAMES: tuple[str, ...] = get_args(TaskName)


@dataclass(frozen=True, kw_only=True)
class DataSpec:
    """Describes one data set to a model, in plain types that survive YAML, JSON and a checkpoint.

    Everything here was fitted on the training rows alone.
    """

    task: TaskName
    """What is predicted."""
    numeric: tuple[str, ...] = ()
    """Names of the columns of `Batch.numeric`, in order (pixels of an image too)."""
    categorical: tuple[str, ...] = ()
    """Names of the columns of `Batch.categorical`, in order."""
    cardinalities: tuple[int, ...] = ()
    """Codes per categorical column; code 0 is the bucket of missing and unseen values."""
    bin_edges: tuple[tuple[float, ...], ...] = ()
    """Per numeric column, increasing edges for piecewise-linear embeddings; empty unless the data module was asked."""
    image_shape: tuple[int, ...] = ()
    """(height, width) where the numeric columns are the pixels of an image, else empty."""
    classes: tuple[str, ...] = ()
    """Class names in the order of their codes: binary (negative, positive), multiclass, or multilabel's labels."""
    class_counts: tuple[int, ...] = ()
    """Training rows of each class (of each positive label for multilabel)."""
    targets: tuple[str, ...] = ()
    """Names of the target columns: one for classification, one or more for regression, the labels for multilabel."""
    target_mean: tuple[float, ...] = ()
    """Mean of each regression target over the training rows, in the target's own unit."""
    target_std: tuple[float, ...] = ()
    """Standard deviation of each regression target over the training rows, in the target's own unit."""
    rows: tuple[int, int, int] = (0, 0, 0)
    """Rows for training, validation and test."""
    fingerprint: str = ""
    """SHA-256 of the source data, shortened; equal fingerprints mean equal data."""

    def __post_init__(self) -> None:
        if self.task not in TASK_NAMES:
            raise ValueError(f"task must be one of {', '.join(TASK_NAMES)}, not {self.task!r}")
        pairs = {
            "cardinalities and categorical": (self.cardinalities, self.categorical),
            "target_mean and target_std": (self.target_mean, self.target_std),
        }
        for name, (one, other) in pairs.items():
            if len(one) != len(other):
                raise ValueError(f"{name} differ in length: {len(one)} and {len(other)}")
        if self.bin_edges and len(self.bin_edges) != len(self.numeric):
            raise ValueError(f"bin_edges has {len(self.bin_edges)} columns for {len(self.numeric)} numeric ones")

    @property
    def out_features(self) -> int:
        """Width of the output layer: 1 for binary, the classes, the labels, or the regression targets."""
        if self.task == "binary":
            return 1
        return len(self.targets) if self.task == "regression" else len(self.classes)

    def to_dict(self) -> dict[str, Any]:
        """Returns the fields as plain lists, strings and numbers, for YAML and checkpoints."""
        return {name: _plain(value) for name, value in asdict(self).items()}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> DataSpec:
        """Rebuilds the spec that `to_dict` wrote; fields that this version does not know are left out.

        Raises:
            UserError: `values` is no mapping with a task.

        >>> spec = DataSpec(task="binary", numeric=("x",), classes=("no", "yes"))
        >>> DataSpec.from_dict(spec.to_dict()) == spec
        True
        """
        if not isinstance(values, Mapping) or "task" not in values:
            given = f"keys {', '.join(map(str, values))}" if isinstance(values, Mapping) else type(values).__name__
            raise UserError(
                f"spec: {given} is no description of data; use a DataSpec, or the spec_dict of a data module"
            )
        known = {field.name for field in fields(cls)}
        return cls(**{name: _frozen(value) for name, value in values.items() if name in known})


def _plain(value: Any) -> Any:
    return [_plain(item) for item in value] if isinstance(value, tuple) else value


def _frozen(value: Any) -> Any:
    return tuple(_frozen(item) for item in value) if isinstance(value, list | tuple) else value
