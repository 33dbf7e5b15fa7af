"""From plain columns to model inputs: imputed and scaled numbers, categories as codes; fitted on training rows only.

Shapes: N rows, D numeric columns (missing-value indicators included), F categorical columns, Q quantiles.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from mlp_lab.data.columns import Column, to_numbers, to_text
from mlp_lab.data.origins import cell_of, table_of
from mlp_lab.errors import UserError, unknown

Matrix = NDArray[np.float64]
Parameters = Mapping[str, Matrix]

QUANTILES = 1000
"""Most quantiles that `scaling: quantile` stores per column."""


@dataclass(frozen=True)
class Scaling:
    """One way to scale numeric columns."""

    fit: Callable[[Matrix], Parameters]
    """Training values (N, D), NaN where missing, to parameters."""
    apply: Callable[[Matrix, Parameters], Matrix]
    """Values (N, D) without NaN and parameters to scaled values (N, D)."""
    words: str
    """What it does, in a few words."""


def _shift_and_scale(values: Matrix, parameters: Parameters) -> Matrix:
    return (values - parameters["center"]) / parameters["scale"]  # (N, D)


def _nonzero(scale: Matrix, fallback: Matrix | float = 1.0) -> Matrix:
    return np.where(scale > 0, scale, fallback)


def fit_standard(train: Matrix) -> Parameters:
    """Mean and standard deviation (of the population, as scikit-learn has it) of the known values."""
    return {"center": np.nanmean(train, axis=0), "scale": _nonzero(np.nanstd(train, axis=0))}


def fit_robust(train: Matrix) -> Parameters:
    """Median and interquartile range; a column with a range of 0 (mostly one value) takes its standard deviation."""
    low, center, high = np.nanpercentile(train, [25, 50, 75], axis=0)
    return {"center": center, "scale": _nonzero(high - low, _nonzero(np.nanstd(train, axis=0)))}


def fit_minmax(train: Matrix) -> Parameters:
    """Minimum and range: training values lie in [0, 1], others may lie outside."""
    low = np.nanmin(train, axis=0)
    return {"center": low, "scale": _nonzero(np.nanmax(train, axis=0) - low)}


def fit_none(train: Matrix) -> Parameters:
    """Leaves values in their own unit."""
    return {"center": np.zeros(train.shape[1]), "scale": np.ones(train.shape[1])}


def fit_quantile(train: Matrix) -> Parameters:
    """Evenly spaced quantiles of each column's known values, (Q, D)."""
    levels = np.linspace(0, 1, min(QUANTILES, len(train)))
    columns = [np.quantile(column[~np.isnan(column)], levels) for column in train.T]
    return {"quantiles": np.maximum.accumulate(np.stack(columns, axis=1), axis=0)}  # rounding must not unsort them


def apply_quantile(values: Matrix, parameters: Parameters) -> Matrix:
    """Maps each value to its rank among the training values and the rank to a normal deviate.

    Ties take the middle of their ranks, also at both ends: scikit-learn sends a tie at the minimum, such as the many
    zeros of a capital gain, 5.2 standard deviations out. Ranks stay half a quantile step away from 0 and 1, so that an
    extreme value is about 3.3 standard deviations out at 1000 quantiles.
    """
    quantiles = parameters["quantiles"]  # (Q, D)
    levels = np.linspace(0, 1, len(quantiles))
    ranks = np.empty_like(values)
    for index, (column, known) in enumerate(zip(values.T, quantiles.T, strict=True)):
        last = np.interp(column, known, levels)  # at a tie, the highest level
        first = -np.interp(-column, -known[::-1], -levels[::-1])  # at a tie, the lowest
        ranks[:, index] = (first + last) / 2
    edge = 0.5 / max(len(quantiles) - 1, 1)
    deviates: Matrix = torch.special.ndtri(torch.from_numpy(ranks.clip(edge, 1 - edge))).numpy()
    return deviates


def apply_smooth(values: Matrix, parameters: Parameters) -> Matrix:
    """Robust scaling, then x / sqrt(1 + (x/3)^2): the identity near 0, and within (-3, 3) far out.

    Source: Holzmüller et al. 2024, Better by Default (RealMLP), section 3.
    """
    scaled = _shift_and_scale(values, parameters)
    return scaled / np.hypot(1, scaled / 3)  # a square would overflow where its root does not


SCALINGS: dict[str, Scaling] = {
    "standard": Scaling(fit_standard, _shift_and_scale, "zero mean, unit standard deviation"),
    "robust": Scaling(fit_robust, _shift_and_scale, "zero median, unit interquartile range"),
    "smooth": Scaling(fit_robust, apply_smooth, "robust, then squashed smoothly into (-3, 3)"),
    "quantile": Scaling(fit_quantile, apply_quantile, "ranks to a standard normal"),
    "minmax": Scaling(fit_minmax, _shift_and_scale, "0 to 1"),
    "none": Scaling(fit_none, _shift_and_scale, "as they are"),
}


@dataclass(frozen=True, kw_only=True, eq=False)
class Preprocessor:
    """What was fitted to the training rows, and how it is applied to any rows."""

    numeric: tuple[str, ...] = ()
    """Numeric source columns."""
    dates: tuple[str, ...] = ()
    """Those among `numeric` that are dates, read as seconds."""
    stray: tuple[str, ...] = ()
    """Those among `numeric` where cells that are not numbers count as missing."""
    indicators: tuple[str, ...] = ()
    """Those among `numeric` with missing training values; each adds a 0/1 column."""
    medians: tuple[float, ...] = ()
    """Per numeric column, what missing values become, in the column's own unit."""
    categorical: tuple[str, ...] = ()
    """Categorical source columns."""
    levels: tuple[tuple[str, ...], ...] = ()
    """Per categorical column, the sorted training values; value i has code i + 1, all else code 0."""
    scaling: str = "standard"
    """Name in `SCALINGS`."""
    parameters: Parameters = field(default_factory=dict)
    """Fitted numbers of the scaling, the last dimension over `numeric`."""

    @classmethod
    def fit(cls, train: pd.DataFrame, columns: Iterable[Column], *, scaling: str = "standard") -> Preprocessor:
        """Fits medians, scaling and levels.

        Args:
            train: Training rows, with plain columns (see `tables.py`).
            columns: What each column is (`infer_columns`).
            scaling: Name in `SCALINGS`.

        Raises:
            UserError: If the scaling is unknown, or a numeric column holds text or infinite values.
        """
        if scaling not in SCALINGS:
            raise unknown("data.scaling", scaling, SCALINGS)
        columns = tuple(columns)
        numeric = tuple(column for column in columns if column.kind in ("numeric", "date"))
        categorical = tuple(column.name for column in columns if column.kind == "categorical")
        reader = cls(
            numeric=tuple(column.name for column in numeric),
            dates=tuple(column.name for column in numeric if column.kind == "date"),
            stray=tuple(column.name for column in numeric if column.stray),
        )
        values = reader.numbers(train)  # (N, D)
        absent = np.isnan(values).sum(axis=0) > 0  # (D,)
        return cls(
            numeric=reader.numeric,
            dates=reader.dates,
            stray=reader.stray,
            indicators=tuple(name for name, some in zip(reader.numeric, absent, strict=True) if some),
            medians=tuple(np.nanmedian(values, axis=0).tolist()) if numeric else (),
            categorical=categorical,
            levels=tuple(tuple(sorted(to_text(train[name]).dropna().unique())) for name in categorical),
            scaling=scaling,
            parameters=SCALINGS[scaling].fit(values) if numeric else {},
        )

    @property
    def numeric_features(self) -> tuple[str, ...]:
        """Names of the numeric features: the columns, then the indicators."""
        return self.numeric + tuple(f"{name} is missing" for name in self.indicators)

    @property
    def cardinalities(self) -> tuple[int, ...]:
        """Codes per categorical column, with code 0 for missing and unseen values."""
        return tuple(len(levels) + 1 for levels in self.levels)

    def transform(self, frame: pd.DataFrame) -> tuple[Tensor, Tensor | None]:
        """Applies what was fitted.

        Args:
            frame: Rows with at least the columns `numeric` and `categorical`.

        Returns:
            Numbers, (N, D) float32 (D may be 0), and codes, (N, F) int64, or None without categorical columns.

        Raises:
            UserError: If a column is missing, or a numeric one holds text or infinite values.
        """
        absent = [name for name in (*self.numeric, *self.categorical) if name not in frame.columns]
        if absent:
            names = ", ".join(map(repr, absent))
            raise UserError(f"{table_of(frame)} lacks column(s) {names}, which the model was trained on")
        codes = [self._codes(frame[name], levels) for name, levels in zip(self.categorical, self.levels, strict=True)]
        return self._scaled(frame), torch.from_numpy(np.stack(codes, axis=1)) if codes else None

    def numbers(self, frame: pd.DataFrame) -> Matrix:
        """Returns the numeric columns unscaled, (N, D) float64, NaN where missing."""
        values = np.empty((len(frame), len(self.numeric)), order="F")
        for index, name in enumerate(self.numeric):
            values[:, index] = to_numbers(frame[name], stray=name in self.stray, date=name in self.dates)
        return values

    def _scaled(self, frame: pd.DataFrame) -> Tensor:
        values = self.numbers(frame)  # (N, D)
        if not self.numeric:
            return torch.from_numpy(values.astype(np.float32))
        absent = np.isnan(values)  # (N, D)
        with np.errstate(over="ignore", invalid="ignore"):
            scaled = SCALINGS[self.scaling].apply(np.where(absent, self.medians, values), self.parameters)  # (N, D)
            flags = absent[:, [name in self.indicators for name in self.numeric]]  # (N, indicators)
            features = np.concatenate([scaled, flags], axis=1, dtype=np.float32)
        if not np.isfinite(features.sum()):
            self._refuse_overflow(frame, features)
        return torch.from_numpy(features)

    def _refuse_overflow(self, frame: pd.DataFrame, features: NDArray[np.float32]) -> None:
        """Refuses values that are finite in their column's unit and not after scaling, in float32."""
        row, column = (~np.isfinite(features)).nonzero()
        if len(row):
            cells = frame[self.numeric[column[0]]]
            raise UserError(
                f"{cell_of(cells, row[0])}: {cells.iloc[row[0]]} is too large after scaling ({self.scaling}); "
                "correct it, or leave it empty"
            )

    @staticmethod
    def _codes(cells: pd.Series, levels: tuple[str, ...]) -> NDArray[np.int64]:
        return pd.Index(levels, dtype="str").get_indexer(pd.Index(to_text(cells))).astype(np.int64) + 1  # (N,)

    def to_state(self) -> dict[str, Any]:
        """Returns plain types and tensors, which load with `weights_only=True`."""
        parameters = {name: torch.from_numpy(np.array(value)) for name, value in self.parameters.items()}
        return asdict(self) | {"parameters": parameters}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Preprocessor:
        """Rebuilds what `to_state` wrote."""
        parameters = {name: value.numpy() for name, value in state["parameters"].items()}
        return cls(**{**state, "parameters": parameters})


def quantile_edges(features: Tensor, bins: int) -> tuple[tuple[float, ...], ...]:
    """Returns increasing edges of up to `bins` equally filled bins per feature, for piecewise-linear embeddings.

    Args:
        features: Transformed training features, (N, D).
        bins: Bins per feature, >= 1; ties leave fewer.

    Returns:
        D tuples of 2 to bins + 1 edges; a constant feature gets its value and the next one up by 1.

    Source: Gorishniy et al. 2022, On Embeddings for Numerical Features in Tabular Deep Learning, section 3.2.

    >>> quantile_edges(torch.tensor([[0.0], [1.0], [2.0], [3.0], [4.0]]), 2)
    ((0.0, 2.0, 4.0),)
    """
    levels = np.linspace(0, 1, bins + 1)
    edges = (np.unique(np.quantile(column, levels)) for column in features.double().numpy().T)
    return tuple(tuple((edge if len(edge) > 1 else np.array([edge[0], edge[0] + 1])).tolist()) for edge in edges)
