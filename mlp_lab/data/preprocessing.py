"""From plain columns to model inputs: imputed and scaled numbers, categories as codes; fitted on training rows only.

Shapes: N rows, D numeric features (parts of dates and missing-value indicators included), F categorical columns, Q
quantiles.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from mlp_lab.data.columns import Column, to_numbers
from mlp_lab.data.levels import Levels, to_text
from mlp_lab.data.notation import Notation
from mlp_lab.data.origins import cell_of, table_of
from mlp_lab.data.readings import percent
from mlp_lab.errors import UserError, unknown

Matrix = NDArray[np.float64]
Parameters = Mapping[str, Matrix]

QUANTILES = 1000
"""Most quantiles that `scaling: quantile` stores per column."""
DATE_PARTS: dict[str, Callable[[pd.DatetimeIndex], pd.Index]] = {
    "year": lambda moments: moments.year,
    "month": lambda moments: moments.month,
    "day": lambda moments: moments.day,
    "weekday": lambda moments: moments.day_of_week,  # 0 is Monday
    "hour": lambda moments: moments.hour,
}
"""Parts of a date that are features of their own."""
OUTSIDE_SHARE = 0.05
"""Of a new table, a numeric column is reported when more than this share is outside of the training rows' range."""


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
    forms: tuple[str, ...] = ()
    """Per categorical column, which spellings mean the same value (`levels.FORMS`); empty in older checkpoints."""
    notations: Mapping[str, Notation] = field(default_factory=dict)
    """How numbers and dates are written in text, of the columns where it is not plain."""
    date_parts: tuple[tuple[str, str], ...] = ()
    """Column and part of a date (`DATE_PARTS`), for each part that is a feature."""
    ranges: tuple[tuple[float, float], ...] = ()
    """Per numeric column, the least and the largest training value; empty in older checkpoints."""
    complete: tuple[str, ...] = ()
    """Columns without a missing training value; empty in older checkpoints."""
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
        categorical = tuple(column for column in columns if column.kind == "categorical")
        levels = [Levels.fit(train[column.name], exact=column.exact) for column in categorical]
        reader = cls(
            numeric=tuple(column.name for column in numeric),
            dates=tuple(column.name for column in numeric if column.kind == "date"),
            stray=tuple(column.name for column in numeric if column.stray),
            notations={column.name: column.notation for column in numeric if column.notation},
        )
        values = reader.numbers(train)  # (N, numeric columns)
        absent = np.isnan(values).any(axis=0)  # (numeric columns,)
        reader = replace(reader, date_parts=_varying_parts(reader, values))
        features = reader.with_parts(values)  # (N, D without indicators)
        gaps = {*np.array(reader.numeric, dtype=object)[absent]}
        gaps.update(column.name for column in categorical if train[column.name].isna().any())
        return replace(
            reader,
            indicators=tuple(name for name in reader.numeric if name in gaps),
            medians=tuple(np.nanmedian(features, axis=0).tolist()) if numeric else (),
            categorical=tuple(column.name for column in categorical),
            levels=tuple(item.names for item in levels),
            forms=tuple(item.form for item in levels),
            ranges=tuple(zip(np.nanmin(values, axis=0).tolist(), np.nanmax(values, axis=0).tolist(), strict=True))
            if numeric
            else (),
            complete=tuple(column.name for column in (*numeric, *categorical) if column.name not in gaps),
            scaling=scaling,
            parameters=SCALINGS[scaling].fit(features) if numeric else {},
        )

    @property
    def numeric_features(self) -> tuple[str, ...]:
        """Names of the numeric features: the columns, then parts of dates, then the indicators."""
        parts = tuple(f"{name}: {part}" for name, part in self.date_parts)
        return self.numeric + parts + tuple(f"{name} is missing" for name in self.indicators)

    @property
    def written(self) -> tuple[str, ...]:
        """Columns whose cells must be kept as they are written when a text file is read."""
        return (*self.categorical, *self.notations)

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
        codes = [levels.encode(to_text(frame[name])) + 1 for name, levels in self._levels()]
        return self._scaled(frame), torch.from_numpy(np.stack(codes, axis=1)) if codes else None

    def numbers(self, frame: pd.DataFrame) -> Matrix:
        """Returns the numeric columns unscaled, (N, numeric columns) float64, NaN where missing."""
        values = np.empty((len(frame), len(self.numeric)), order="F")
        for index, name in enumerate(self.numeric):
            values[:, index] = to_numbers(
                frame[name], stray=name in self.stray, date=name in self.dates, notation=self.notations.get(name)
            )
        return values

    def with_parts(self, values: Matrix) -> Matrix:
        """Returns the numeric columns and behind them the parts of dates, (N, D without indicators) float64."""
        if not self.date_parts:
            return values
        columns = {name: _moments(values[:, self.numeric.index(name)]) for name, _ in self.date_parts}
        parts = [np.asarray(DATE_PARTS[part](columns[name]), dtype=np.float64) for name, part in self.date_parts]
        return np.asfortranarray(np.concatenate([values, np.stack(parts, axis=1)], axis=1))

    def news(self, frame: pd.DataFrame) -> tuple[str, ...]:
        """Says of each column which share of the rows has what no training row has."""
        lines = []
        for name, levels in self._levels():
            words = to_text(frame[name])
            new = words[(levels.encode(words) < 0) & words.notna().to_numpy()]
            if len(new):
                share, known = percent(len(new) / len(frame)), ", ".join(map(repr, levels.names[:3]))
                lines.append(
                    f"{name}: {share} of the rows have a value that no training row has, such as {new.iloc[0]!r}; "
                    f"training had {known}{', …' if len(levels.names) > 3 else ''}"
                )
        values = self.numbers(frame)  # (N, numeric columns)
        for index, (name, (low, high)) in enumerate(zip(self.numeric, self.ranges, strict=False)):
            outside = float(((values[:, index] < low) | (values[:, index] > high)).mean())
            if outside > OUTSIDE_SHARE:
                shown = f"{low:,.6g} … {high:,.6g}"
                if name in self.dates:
                    first, last = _moments(np.array([low, high]))
                    shown = f"{first.date()} … {last.date()}"
                lines.append(f"{name}: {percent(outside)} of the rows are outside of the training rows' {shown}")
        absent = dict(zip(self.numeric, np.isnan(values).mean(axis=0), strict=True))
        absent.update({name: frame[name].isna().mean() for name in self.categorical})
        lines += [
            f"{name}: missing in {percent(float(absent[name]))} of the rows, and in no training row"
            for name in self.complete
            if absent[name] > 0
        ]
        return tuple(lines)

    def _levels(self) -> Iterator[tuple[str, Levels]]:
        forms = self.forms or ("old",) * len(self.levels)
        for name, names, form in zip(self.categorical, self.levels, forms, strict=True):
            yield name, Levels(names=names, form=form)

    def _scaled(self, frame: pd.DataFrame) -> Tensor:
        columns = self.numbers(frame)  # (N, numeric columns)
        if not self.numeric:
            return torch.from_numpy(columns.astype(np.float32))
        values = self.with_parts(columns)  # (N, D without indicators)
        flags = np.isnan(columns[:, [name in self.indicators for name in self.numeric]])  # (N, indicators)
        with np.errstate(over="ignore", invalid="ignore"):
            filled = np.where(np.isnan(values), self.medians, values)
            scaled = SCALINGS[self.scaling].apply(filled, self.parameters)  # (N, D without indicators)
            features = np.concatenate([scaled, flags], axis=1, dtype=np.float32)
        if not np.isfinite(features.sum()):
            self._refuse_overflow(frame, features)
        return torch.from_numpy(features)

    def _refuse_overflow(self, frame: pd.DataFrame, features: NDArray[np.float32]) -> None:
        """Refuses values that are finite in their column's unit and not after scaling, in float32."""
        row, column = (~np.isfinite(features)).nonzero()
        if len(row):
            cells = frame[(*self.numeric, *(name for name, _ in self.date_parts))[column[0]]]
            raise UserError(
                f"{cell_of(cells, row[0])}: {cells.iloc[row[0]]} is too large after scaling ({self.scaling}); "
                "correct it, or leave it empty"
            )

    def to_state(self) -> dict[str, Any]:
        """Returns plain types and tensors, which load with `weights_only=True`."""
        parameters = {name: torch.from_numpy(np.array(value)) for name, value in self.parameters.items()}
        return asdict(self) | {"parameters": parameters}

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Preprocessor:
        """Rebuilds what `to_state` wrote."""
        parameters = {name: value.numpy() for name, value in state["parameters"].items()}
        notations = {name: Notation(**values) for name, values in state.get("notations", {}).items()}
        return cls(**{**state, "parameters": parameters, "notations": notations})


def _varying_parts(reader: Preprocessor, values: Matrix) -> tuple[tuple[str, str], ...]:
    """Returns the parts of dates that are not the same in all training rows; values are (N, numeric columns)."""
    parts = []
    for name in reader.dates:
        moments = _moments(values[:, reader.numeric.index(name)])
        parts += [(name, part) for part, read in DATE_PARTS.items() if read(moments).nunique() > 1]
    return tuple(parts)


def _moments(seconds: NDArray[np.float64]) -> pd.DatetimeIndex:
    """Returns seconds since 1970-01-01 as moments, NaT for NaN."""
    known = np.where(np.isnan(seconds), 0, seconds)
    moments = np.floor(known).astype("int64").astype("datetime64[s]")
    return pd.DatetimeIndex(np.where(np.isnan(seconds), np.datetime64("NaT"), moments))


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
