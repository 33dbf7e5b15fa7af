"""Rows that Python code makes: a data module whose subclass returns arrays."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Sequence
from typing import Any

import numpy as np
import pandas as pd
import torch

from mlp_lab.data.origins import Origin
from mlp_lab.data.sources import Source
from mlp_lab.data.tabular import TabularDataModule
from mlp_lab.errors import UserError


class ArrayDataModule(TabularDataModule):
    """Rows that `arrays` returns; they are split, scaled and described like those of a table.

    A subclass implements `arrays`, and works on the command line by its dotted path:

        class MyData(ArrayDataModule):
            def arrays(self):
                return X, y

    A subclass with settings of its own takes `**settings` too and passes them on: `super().__init__(**settings)`.

    Args:
        task: regression, binary, multiclass, multilabel, or auto to infer it from y.
        split: Shares of training, validation and test rows, which sum to 1; by default 0.8, 0.1, 0.1.
        scaling: How numeric columns are scaled: standard, robust, smooth, quantile, minmax or none.
        bins: Bins per numeric column for piecewise-linear embeddings, at least 1; by default none.
        verbose: Print what the arrays hold and how they are used.
        batch_size: Rows of a training batch over all processes, at least 1.
        eval_batch_size: Rows of a batch for validation, test and prediction over all processes, at least 1.
        seed: Seed of split and shuffling, at least 0; by default the run's `seed_everything`, else 0.
        drop_last: Leave out the last training batch of an epoch if it is not full.
        fitted: Checkpoint from which split and preprocessing are taken instead of being fitted.
    """

    def __init__(
        self,
        *,
        task: str = "auto",
        split: list[float] | None = None,
        scaling: str = "standard",
        bins: int | None = None,
        verbose: bool = True,
        batch_size: int = 128,
        eval_batch_size: int = 4096,
        seed: int | None = None,
        drop_last: bool = False,
        fitted: str | None = None,
    ) -> None:
        super().__init__(
            task=task,
            split=split,
            scaling=scaling,
            bins=bins,
            verbose=verbose,
            batch_size=batch_size,
            eval_batch_size=eval_batch_size,
            seed=seed,
            drop_last=drop_last,
            fitted=fitted,
        )

    @abstractmethod
    def arrays(self) -> tuple[Any, Any]:
        """Returns X and y, the same rows each time: NumPy arrays, tensors, pandas objects or dictionaries of columns.

        X is (N, D), or (N, ...) with D values per row; a DataFrame keeps its column names, and its text columns are
        categories. What is masked or NaN is missing. y is (N,), or (N, T) for several targets: numbers, booleans or
        class names.
        """
        raise UserError(f"data: {type(self).__qualname__} has no method `arrays`; use a subclass that returns X and y")

    def _read(self, text: Sequence[str]) -> Source:
        name, pair = type(self).__qualname__, self.arrays()
        if not isinstance(pair, tuple | list) or len(pair) != 2:
            raise UserError(f"data: {name}.arrays returns {_kind(pair)}; accepted: a pair (X, y)")
        features, targets = _frame(pair[0], "x", name), _frame(pair[1], "y", name)
        if len(features) != len(targets):
            raise UserError(f"data: {name}.arrays returns {len(features)} rows of X and {len(targets)} of y")
        if not len(features):
            raise UserError(f"data: {name}.arrays returns no rows")
        if both := [column for column in features if column in targets]:
            raise UserError(f"data: {name}.arrays returns X and y that both have a column {both[0]!r}")
        frame = pd.concat([features, targets], axis=1)
        digest = hashlib.sha256(pd.util.hash_pandas_object(frame, index=False).to_numpy().tobytes())
        frame.index = Origin(key="data", label=name).index(len(frame))
        self.target = list(targets.columns)
        return Source(label=name, frames=(frame,), fingerprints=(digest.hexdigest()[:16],))


def _kind(values: Any) -> str:
    """Names what was returned, in a few words."""
    return f"{len(values)} values" if isinstance(values, tuple | list) else f"one {type(values).__name__}"


def _frame(values: Any, prefix: str, owner: str) -> pd.DataFrame:
    """Returns a column per value of a row: `y`, or `x0`, `x1`, ... where there are several and they have no names.

    Args:
        values: What the method `arrays` returns as X or y.
        prefix: How columns without a name are called: x or y.
        owner: The class with that method, for errors.

    Raises:
        UserError: It is no array, tensor or frame with one row per sample, or two columns have one name.
    """
    if hasattr(values, "to_pandas"):  # tables of Arrow and Polars
        values = values.to_pandas()
    if isinstance(values, dict) or (isinstance(values, np.ndarray) and values.dtype.names):
        values = _frame_of_names(values, prefix, owner)
    if isinstance(values, pd.DataFrame | pd.Series):
        frame = values.to_frame(values.name or prefix) if isinstance(values, pd.Series) else values
        frame = frame.reset_index(drop=True).rename(columns=str)
        if twice := frame.columns[frame.columns.duplicated()].tolist():
            raise UserError(f"data: {owner}.arrays returns {prefix.upper()} with two columns {twice[0]!r}; rename one")
        return frame
    array = _array(values, prefix, owner)
    table = array.reshape(len(array), -1) if array.size else array.reshape(len(array), 0)
    single = table.shape[1] == 1 and prefix == "y"
    names = [prefix] if single else [f"{prefix}{number}" for number in range(table.shape[1])]
    return pd.DataFrame(table, columns=names)


def _frame_of_names(values: Any, prefix: str, owner: str) -> pd.DataFrame:
    """Returns the columns of a dictionary or of a structured array."""
    try:
        return pd.DataFrame(values)
    except ValueError as error:
        raise UserError(f"data: {owner}.arrays returns {prefix.upper()} that is no table ({error})") from error


def _array(values: Any, prefix: str, owner: str) -> np.ndarray[Any, Any]:
    """Returns an array of at least one dimension, NaN where it is masked, without bfloat16 and long double."""
    if isinstance(values, torch.Tensor):
        values = values.detach().cpu()
        values = (values.float() if values.dtype == torch.bfloat16 else values).numpy()
    if isinstance(values, np.ma.MaskedArray) and values.mask.any():
        values = np.ma.filled(values.astype(np.float64 if values.dtype.kind in "iuf" else object), np.nan)
    try:
        array = np.asarray(values)
    except ValueError as error:  # rows of unequal lengths
        raise UserError(f"data: {owner}.arrays returns {prefix.upper()} whose rows differ in length") from error
    if array.ndim == 0:
        raise UserError(
            f"data: {owner}.arrays returns {prefix.upper()} as {type(values).__name__}; accepted: an array, a tensor "
            "or a data frame with one row per sample"
        )
    return array.astype(np.float64) if array.dtype == np.longdouble else array
