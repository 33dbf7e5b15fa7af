"""What is predicted: the task that the target columns suggest, and the target's codes or standardised values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from mlp_lab.data.columns import to_numbers, to_text
from mlp_lab.data.origins import cell_of, place_of
from mlp_lab.data.spec import TASK_NAMES, TaskName
from mlp_lab.errors import UserError, unknown
from mlp_lab.flags import flag

CLASS_LIMIT = 20
"""A target of whole numbers is a class when it has no more distinct values than this."""


@dataclass(frozen=True, kw_only=True)
class Target:
    """The target as fitted to the training rows."""

    task: TaskName
    """What is predicted."""
    columns: tuple[str, ...]
    """Target columns: one for binary and multiclass, the labels for multilabel, one or more for regression."""
    classes: tuple[str, ...] = ()
    """Class names in the order of their codes: sorted, by value where all are numbers; multilabel's labels."""
    counts: tuple[int, ...] = ()
    """Training rows per class (per positive label)."""
    mean: tuple[float, ...] = ()
    """Mean of each regression target, in its own unit."""
    std: tuple[float, ...] = ()
    """Standard deviation of each regression target (of the population), in its own unit."""

    def encode(self, frame: pd.DataFrame) -> Tensor:
        """Returns what `Batch.target` holds: classes (N,) int64, or standardised values or labels (N, T) float32.

        Raises:
            UserError: If a target is missing, is no number in regression, or is a class that training never saw.
        """
        check_present(frame, self.columns)
        if self.task == "regression":
            values = (_numbers(frame, self.columns) - np.array(self.mean)) / np.array(self.std)  # (N, T)
            return torch.from_numpy(values.astype(np.float32))
        if self.task == "multilabel":
            return torch.from_numpy(_labels(frame, self.columns).astype(np.float32))
        words = to_text(frame[self.columns[0]])
        codes = pd.Index(self.classes, dtype="str").get_indexer(pd.Index(words)).astype(np.int64)  # (N,)
        if (codes < 0).any():
            row = int((codes < 0).argmax())
            raise UserError(
                f"{cell_of(words, row, 'data.target')}: {words.iloc[row]!r} is the class of no training row; "
                f"the classes are {_listed(self.classes)}"
            )
        return torch.from_numpy(codes)

    def truth(self, frame: pd.DataFrame) -> pd.DataFrame:
        """Returns the target columns that `frame` has, as predictions are written: class names, 0 or 1, or numbers.

        Missing cells stay missing, and a class that training never saw keeps its name. A column that `encode` would
        refuse is returned as it is written.
        """
        return pd.DataFrame({name: self._truth(frame[name]) for name in self.columns if name in frame.columns})

    def _truth(self, cells: pd.Series) -> pd.Series:
        if self.task in ("binary", "multiclass"):
            return to_text(cells)
        if self.task == "multilabel" and _is_label(cells):
            return to_text(cells).map({"0": 0, "1": 1, "False": 0, "True": 1}).astype("Int64")
        try:
            return pd.Series(to_numbers(cells, key="data.target"), index=cells.index)
        except UserError:
            return cells

    def to_state(self) -> dict[str, Any]:
        """Returns plain types for a checkpoint."""
        return asdict(self)

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Target:
        """Rebuilds what `to_state` wrote."""
        return cls(**state)


def infer_task(targets: pd.DataFrame) -> TaskName:
    """Returns the task that the target columns suggest.

    One column: text, booleans and whole numbers with few distinct values (at most `CLASS_LIMIT`) are classes, binary
    when there are two; other numbers are regression. Several columns: multilabel if all are 0/1, else regression.

    >>> infer_task(pd.DataFrame({"y": [0, 1, 1]})), infer_task(pd.DataFrame({"y": [0.5, 1.25, 1.0]}))
    ('binary', 'regression')
    """
    if targets.shape[1] > 1:
        return "multilabel" if all(_is_label(targets[name]) for name in targets.columns) else "regression"
    cells = targets.iloc[:, 0].dropna()
    distinct = cells.nunique()
    is_number = pd.api.types.is_numeric_dtype(cells) and not pd.api.types.is_bool_dtype(cells)
    if is_number and not (distinct <= CLASS_LIMIT and (cells == cells.round()).all()):
        return "regression"
    return "binary" if distinct == 2 else "multiclass"


def check_task(task: str) -> None:
    """Refuses a `data.task` that is neither auto nor one of the tasks."""
    if task not in ("auto", *TASK_NAMES):
        raise unknown("data.task", task, ("auto", *TASK_NAMES))


def check_present(frame: pd.DataFrame, columns: Sequence[str]) -> None:
    """Refuses missing targets.

    Raises:
        UserError: With the column, how many rows, and the first of them.
    """
    for name in columns:
        absent = frame[name].isna().to_numpy()
        if absent.any():
            first = int(absent.argmax())
            raise UserError(
                f"data.target: {name!r} is missing in {int(absent.sum())} of {len(frame)} rows, first in "
                f"{place_of(frame, first)}; fill it in, or leave such rows out with "
                f"{flag('data.drop_missing_target', True)}"
            )


def fit_target(train: pd.DataFrame, columns: Sequence[str], task: TaskName) -> Target:
    """Fits classes, or mean and standard deviation, to the training rows.

    Raises:
        UserError: If a target is missing, constant, or does not fit the task.
    """
    check_present(train, columns)
    names = tuple(columns)
    if task in ("binary", "multiclass"):
        return _fit_classes(train, names, task)
    values = _labels(train, names) if task == "multilabel" else _numbers(train, names)  # (N, T)
    for name, column in zip(names, values.T, strict=True):
        _refuse_constant(name, len(np.unique(column)), column[0])
    if task == "multilabel":
        return Target(task=task, columns=names, classes=names, counts=tuple(values.sum(axis=0).astype(int).tolist()))
    return Target(
        task=task, columns=names, mean=tuple(values.mean(axis=0).tolist()), std=tuple(values.std(axis=0).tolist())
    )


def class_names(words: pd.Series) -> tuple[str, ...]:
    """Returns the distinct words sorted, by value where all of them are numbers.

    >>> class_names(pd.Series(["10", "9", "2"]))
    ('2', '9', '10')
    """
    names = sorted(words.dropna().unique())
    numbers = pd.to_numeric(pd.Series(names, dtype="str"), errors="coerce")
    order = range(len(names)) if numbers.isna().any() else np.argsort(numbers.to_numpy(), kind="stable")
    return tuple(str(names[index]) for index in order)


def _fit_classes(train: pd.DataFrame, columns: tuple[str, ...], task: TaskName) -> Target:
    if len(columns) != 1:
        raise UserError(
            f"data.task: {task!r} has one target column, data.target names {len(columns)} ({_listed(columns)}); "
            f"use {flag('data.task', 'multilabel')} or {flag('data.task', 'regression')}"
        )
    words = to_text(train[columns[0]])
    classes = class_names(words)
    _refuse_constant(columns[0], len(classes), classes[0])
    if task == "binary" and len(classes) != 2:
        raise UserError(
            f"data.task: 'binary' needs two classes, {columns[0]!r} has {len(classes)} ({_listed(classes)}); "
            f"use {flag('data.task', 'multiclass')}"
        )
    counts = words.value_counts()
    return Target(task=task, columns=columns, classes=classes, counts=tuple(int(counts[name]) for name in classes))


def _refuse_constant(name: str, distinct: int, value: object) -> None:
    if distinct < 2:
        raise UserError(f"data.target: {name!r} is {value} in every training row; there is nothing to predict")


def _numbers(frame: pd.DataFrame, columns: Sequence[str]) -> NDArray[np.float64]:
    try:
        return np.stack([to_numbers(frame[name], key="data.target") for name in columns], axis=1)  # (N, T)
    except UserError as error:
        raise UserError(f"{error} (data.task is regression)") from error


def _is_label(cells: pd.Series) -> bool:
    return set(to_text(cells.dropna()).unique()) <= {"0", "1", "False", "True"}


def _labels(frame: pd.DataFrame, columns: Sequence[str]) -> NDArray[np.float64]:
    for name in columns:
        if not _is_label(frame[name]):
            odd = next(word for word in to_text(frame[name]) if word not in ("0", "1", "False", "True"))
            raise UserError(f"data.target: {name!r} holds {odd!r}, a multilabel target is 0 or 1 in each column")
    words = (to_text(frame[name]).isin(["1", "True"]).to_numpy() for name in columns)
    return np.stack([word.astype(np.float64) for word in words], axis=1)  # (N, T)


def _listed(names: Sequence[str], limit: int = 8) -> str:
    return ", ".join(names[:limit]) + (", …" if len(names) > limit else "")
