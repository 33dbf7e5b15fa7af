"""What is predicted: the task that the target columns suggest, and the target's codes or standardised values."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from mlp_lab.data.columns import to_numbers
from mlp_lab.data.levels import ALIKE, FORMS, Levels, alike, to_text
from mlp_lab.data.notation import PLAIN, Notation, NotationSettings
from mlp_lab.data.origins import cell_of, place_of, text_of
from mlp_lab.data.readings import ColumnReading, read_columns
from mlp_lab.data.spec import TASK_NAMES, TaskName
from mlp_lab.errors import UserError, unknown
from mlp_lab.flags import flag

CLASS_LIMIT = 20
"""A target of whole numbers is a class when it has no more distinct values than this."""

LABELS = frozenset({"0", "1", "false", "true"})
"""Words of a multilabel target, in lower case."""


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
    form: str = "old"
    """Which other spellings mean the same class (`levels.FORMS`); `old` in older checkpoints."""
    notations: Mapping[str, Notation] = field(default_factory=dict)
    """How the numbers of regression targets are written in text, of the columns where it is not plain."""

    def encode(self, frame: pd.DataFrame) -> Tensor:
        """Returns what `Batch.target` holds: classes (N,) int64, or standardised values or labels (N, T) float32.

        Raises:
            UserError: If a target is missing, is no number in regression, or is a class that training never saw.
        """
        check_present(frame, self.columns)
        if self.task == "regression":
            values = (_numbers(frame, self.columns, self.notations) - np.array(self.mean)) / np.array(
                self.std
            )  # (N, T)
            return torch.from_numpy(values.astype(np.float32))
        if self.task == "multilabel":
            return torch.from_numpy(_labels(frame, self.columns).astype(np.float32))
        words = to_text(frame[self.columns[0]])
        codes = Levels(names=self.classes, form=self.form).encode(words)  # (N,)
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
            words = to_text(cells)
            codes = Levels(names=self.classes, form=self.form).encode(words)  # (N,)
            return words.where(codes < 0, np.array(self.classes, dtype=object)[codes])
        if self.task == "multilabel" and _is_label(cells):
            return _label_words(cells).map({"0": 0, "1": 1, "false": 0, "true": 1}).astype("Int64")
        try:
            notation = self.notations.get(str(cells.name))
            return pd.Series(to_numbers(cells, notation=notation, key="data.target"), index=cells.index)
        except UserError:
            return cells

    def to_state(self) -> dict[str, Any]:
        """Returns plain types for a checkpoint."""
        return asdict(self)

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Target:
        """Rebuilds what `to_state` wrote."""
        notations = {name: Notation(**values) for name, values in state.get("notations", {}).items()}
        return cls(**{**state, "notations": notations})


def infer_task(targets: pd.DataFrame, readings: Mapping[str, ColumnReading] | None = None) -> TaskName:
    """Returns the task that the target columns suggest.

    One column: text, booleans and whole numbers with few distinct values (at most `CLASS_LIMIT`) are classes, binary
    when there are two; other numbers are regression, and so are whole numbers that mostly occur once. Several columns:
    multilabel if all are 0/1, else regression.

    Args:
        targets: Rows of the target columns.
        readings: How the columns are read (`read_columns`); by default found in these rows alone.

    >>> infer_task(pd.DataFrame({"y": [0, 1, 1]})), infer_task(pd.DataFrame({"y": [0.5, 1.25, 1.0]}))
    ('binary', 'regression')
    """
    if targets.shape[1] > 1:
        return "multilabel" if all(_is_label(targets[name]) for name in targets.columns) else "regression"
    cells = targets.iloc[:, 0].dropna()
    counts = _whole_numbers(cells, readings)
    if counts is None:
        return "binary" if len(Levels.fit(cells).names) == 2 else "multiclass"
    if not 0 < len(counts) <= CLASS_LIMIT or (len(counts) > 2 and (counts == 1).mean() > 0.5):
        return "regression"
    return "binary" if len(counts) == 2 else "multiclass"


def explain_task(targets: pd.DataFrame, readings: Mapping[str, ColumnReading], task: TaskName) -> str:
    """Says from which numbers a task was inferred and how to change it; nothing where the target leaves no choice."""
    if targets.shape[1] > 1:
        return ""
    cells = targets.iloc[:, 0].dropna()
    counts = _whole_numbers(cells, readings)
    if counts is None or counts.empty:
        return ""
    other: TaskName = "multiclass" if task == "regression" else "regression"
    numbers = f"{len(counts):,} distinct whole numbers in {len(cells):,} rows"
    return f"the task {task} is inferred from {numbers}; {flag('data.task', other)} changes it"


def _whole_numbers(cells: pd.Series, readings: Mapping[str, ColumnReading] | None) -> pd.Series | None:
    """Returns how often each whole number occurs, nothing for numbers with fractions, None for words and dates."""
    cells = cells.reset_index(drop=True)
    found = (readings or read_columns(cells.to_frame(), NotationSettings()))[str(cells.name)]
    if found.kind != "numeric":
        return None
    notation = found.notation if isinstance(cells.dtype, pd.StringDtype) else None
    numbers = notation.read(cells) if notation else pd.to_numeric(cells, errors="coerce").astype("float64")
    whole = (numbers == numbers.round()).all()
    return numbers.value_counts() if whole else pd.Series(dtype="int64")


def written_notations(readings: Mapping[str, ColumnReading], columns: Sequence[str]) -> dict[str, Notation]:
    """Returns the notations of these columns, where numbers are not written plainly."""
    notations = {name: readings[name].notation for name in columns if readings[name].kind == "numeric"}
    return {name: notation for name, notation in notations.items() if notation and notation != PLAIN}


def target_remarks(target: Target, readings: Mapping[str, ColumnReading]) -> list[str]:
    """Returns what a user should check of the target, one line each."""
    if target.task == "regression":
        return [remark for name in target.columns for remark in readings[name].remarks]
    if target.task == "multilabel":
        return []
    return [
        f"{target.columns[0]}: classes {group} differ only in case or spaces; {ALIKE}"
        for group in alike(target.classes)
    ]


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
            written = text_of(frame[name], first)
            listed = f" ({written!r} is one of data.missing_values)" if written else ""
            raise UserError(
                f"data.target: {name!r} is missing in {int(absent.sum())} of {len(frame)} rows, first in "
                f"{place_of(frame, first)}{listed}; fill it in, or leave such rows out with "
                f"{flag('data.drop_missing_target', True)}"
            )


def fit_target(
    train: pd.DataFrame,
    columns: Sequence[str],
    task: TaskName,
    *,
    exact: bool = False,
    notations: Mapping[str, Notation] | None = None,
) -> Target:
    """Fits classes, or mean and standard deviation, to the training rows.

    Args:
        train: Training rows.
        columns: The target columns.
        task: What is predicted.
        exact: Every spelling of a class is a class of its own, also 1 and 1.0.
        notations: How numbers are written in text, of the columns where it is not plain.

    Raises:
        UserError: If a target is missing, constant, or does not fit the task.
    """
    check_present(train, columns)
    names = tuple(columns)
    if task in ("binary", "multiclass"):
        return _fit_classes(train, names, task, exact=exact)
    written = dict(notations or {}) if task == "regression" else {}
    values = _labels(train, names) if task == "multilabel" else _numbers(train, names, written)  # (N, T)
    for name, column in zip(names, values.T, strict=True):
        _refuse_constant(name, len(np.unique(column)), column[0])
    if task == "multilabel":
        return Target(task=task, columns=names, classes=names, counts=tuple(values.sum(axis=0).astype(int).tolist()))
    with np.errstate(over="ignore", invalid="ignore"):
        means, stds = values.mean(axis=0), values.std(axis=0)
    for name, column, std in zip(names, values.T, stds, strict=True):
        if not 0 < std < math.inf:  # its squares exceed or fall below a float64
            cells, row = train[name], int(np.abs(column).argmax())
            size = "large" if std else "small"
            raise UserError(
                f"{cell_of(cells, row, 'data.target')}: {cells.iloc[row]} is too {size} for a standard deviation; "
                "correct it, or use another unit"
            )
    mean, std = tuple(means.tolist()), tuple(stds.tolist())
    return Target(task=task, columns=names, mean=mean, std=std, notations=written)


def class_names(words: pd.Series) -> tuple[str, ...]:
    """Returns the distinct words sorted, by value where all of them are numbers.

    >>> class_names(pd.Series(["10", "9", "2"]))
    ('2', '9', '10')
    """
    names = sorted(words.dropna().unique())
    numbers = pd.to_numeric(pd.Series(names, dtype="str"), errors="coerce")
    order = range(len(names)) if numbers.isna().any() else np.argsort(numbers.to_numpy(), kind="stable")
    return tuple(str(names[index]) for index in order)


def _fit_classes(train: pd.DataFrame, columns: tuple[str, ...], task: TaskName, *, exact: bool) -> Target:
    if len(columns) != 1:
        raise UserError(
            f"data.task: {task!r} has one target column, data.target names {len(columns)} ({_listed(columns)}); "
            f"use {flag('data.task', 'multilabel')} or {flag('data.task', 'regression')}"
        )
    levels = Levels.fit(train[columns[0]], exact=exact)
    classes = class_names(pd.Series(levels.names, dtype="str"))
    _refuse_constant(columns[0], len(classes), classes[0])
    if task == "binary" and len(classes) != 2:
        raise UserError(
            f"data.task: 'binary' needs two classes, {columns[0]!r} has {len(classes)} ({_listed(classes)}); "
            f"use {flag('data.task', 'multiclass')}"
        )
    codes = Levels(names=classes, form=levels.form).encode(to_text(train[columns[0]]))  # (N,)
    counts = tuple(np.bincount(codes, minlength=len(classes)).tolist())
    return Target(task=task, columns=columns, classes=classes, counts=counts, form=levels.form)


def _refuse_constant(name: str, distinct: int, value: object) -> None:
    if distinct < 2:
        raise UserError(f"data.target: {name!r} is {value} in every training row; there is nothing to predict")


def _numbers(frame: pd.DataFrame, columns: Sequence[str], notations: Mapping[str, Notation]) -> NDArray[np.float64]:
    try:
        numbers = [to_numbers(frame[name], notation=notations.get(name), key="data.target") for name in columns]
    except UserError as error:
        raise UserError(f"{error} (data.task is regression)") from error
    return np.stack(numbers, axis=1)  # (N, T)


def _label_words(cells: pd.Series) -> pd.Series:
    """Returns 0, 1, true and false in one spelling each, other words in lower case."""
    words = to_text(cells)
    return words.map({word: FORMS["whole"](str(word).lower()) for word in words.dropna().unique()})


def _is_label(cells: pd.Series) -> bool:
    return set(_label_words(cells.dropna()).unique()) <= LABELS


def _labels(frame: pd.DataFrame, columns: Sequence[str]) -> NDArray[np.float64]:
    for name in columns:
        if not _is_label(frame[name]):
            odd = to_text(frame[name])[~_label_words(frame[name]).isin(LABELS).to_numpy()].iloc[0]
            raise UserError(f"data.target: {name!r} holds {odd!r}, a multilabel target is 0 or 1 in each column")
    words = (_label_words(frame[name]).isin(["1", "true"]).to_numpy() for name in columns)
    return np.stack([word.astype(np.float64) for word in words], axis=1)  # (N, T)


def _listed(names: Sequence[str], limit: int = 8) -> str:
    return ", ".join(names[:limit]) + (", …" if len(names) > limit else "")
