"""From a table, its split and what was fitted to the parts that a data module serves, and their description."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from mlp_lab.data.module import Part, read_fitted
from mlp_lab.data.origins import row_numbers
from mlp_lab.data.preprocessing import Preprocessor, quantile_edges
from mlp_lab.data.roles import Roles
from mlp_lab.data.sources import Source
from mlp_lab.data.spec import DataSpec, TaskName
from mlp_lab.data.splits import PARTS
from mlp_lab.data.targets import Target, fit_target
from mlp_lab.errors import UserError


def take_rows(frame: pd.DataFrame, codes: Tensor, code: int) -> pd.DataFrame:
    """Returns the rows of `frame` whose split code is `code`; codes are (N,) uint8."""
    return frame[(codes == code).numpy()]


def row_ids(frame: pd.DataFrame) -> Tensor:
    """Returns the number of each row in its own table, (N,) int64."""
    return torch.from_numpy(row_numbers(frame))  # (N,)


def split_parts(frame: pd.DataFrame, codes: Tensor, preprocessor: Preprocessor, target: Target) -> dict[str, Part]:
    """Returns train, val and test rows, those that are not empty, ready for the model."""
    parts = {}
    for code, name in enumerate(PARTS):
        rows = take_rows(frame, codes, code)
        if len(rows):
            numeric, categorical = preprocessor.transform(rows)
            parts[name] = Part(numeric=numeric, categorical=categorical, target=target.encode(rows), ids=row_ids(rows))
    return parts


def with_cells(
    parts: Mapping[str, Part], cells: pd.DataFrame, codes: Tensor | None, names: Sequence[str], target: Target
) -> dict[str, Part]:
    """Returns the parts with the cells of their rows beside them (`Part.names` and `Part.truth`).

    Args:
        parts: The parts by name.
        cells: Rows of the source with the columns `names` and those target columns that the source has.
        codes: Split code of every row of `cells`, (N,); None where the parts' `ids` say which rows they hold.
        names: Columns that name the rows.
        target: The fitted target.
    """
    kept = {}
    for name, part in parts.items():
        if codes is None:
            rows = cells if part.ids is None else cells.iloc[part.ids.numpy()]
        else:
            rows = take_rows(cells, codes, PARTS.index(name))
        kept[name] = replace(part, names=rows[list(names)], truth=target.truth(rows))
    return kept


def describe_parts(
    source: Source, preprocessor: Preprocessor, target: Target, parts: Mapping[str, Part], bins: int | None
) -> DataSpec:
    """Returns what a model must know of the parts; `bins` asks for the edges of piecewise-linear embeddings."""
    shape = source.named.image_shape if source.named else ()
    train, val, test = (parts[name].rows if name in parts else 0 for name in PARTS)
    return DataSpec(
        task=target.task,
        numeric=preprocessor.numeric_features,
        categorical=preprocessor.categorical,
        cardinalities=preprocessor.cardinalities,
        bin_edges=quantile_edges(parts["train"].numeric, bins) if bins else (),
        image_shape=shape if shape and np.prod(shape) == len(preprocessor.numeric_features) else (),
        classes=target.classes,
        class_counts=target.counts,
        targets=target.columns,
        target_mean=target.mean,
        target_std=target.std,
        rows=(train, val, test),
        fingerprint="-".join(source.fingerprints),
    )


def class_codes(rows: pd.DataFrame, roles: Roles, task: TaskName) -> tuple[Tensor | None, tuple[str, ...] | None]:
    """Returns the class codes of rows, (N,) int64, and the names of the classes; None where there are no classes."""
    if task not in ("binary", "multiclass"):
        return None, None
    whole = fit_target(rows, roles.target, task, exact=roles.target_is_text)
    return whole.encode(rows), whole.classes


def is_fitted_by_older_version(checkpoint: str | Path, kind: str = "TabularDataModule") -> bool:
    """Tells whether a checkpoint keeps a table's preprocessing as older versions fitted it.

    To fit the same table anew gives other features (parts of dates) or other class names, which the weights do not fit;
    so a run that goes on from this checkpoint takes its preprocessing.

    Args:
        checkpoint: A file that may be no checkpoint.
        kind: Qualified class name of the data module.
    """
    try:
        state = read_fitted(str(checkpoint), kind=kind)["state"]
    except UserError:  # of another data module, or unreadable, of which Lightning complains
        return False
    return "preprocessor" in state and "forms" not in state["preprocessor"]
