"""What a table's columns are: numbers, dates, categories, or nothing a model can use.

The kind of a column is decided on all rows, so that it does not depend on the split; every statistic is one of the
training rows. Messages name a cell as `origins.py` does.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal, get_args

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mlp_lab.data.levels import ALIKE, alike, to_text
from mlp_lab.data.notation import ISO, PLAIN, Notation, NotationSettings
from mlp_lab.data.origins import cell_of, table_of
from mlp_lab.data.readings import ColumnReading, percent, read_columns
from mlp_lab.data.text_files import UNNAMED
from mlp_lab.errors import UserError
from mlp_lab.flags import flag

ColumnKind = Literal["numeric", "date", "categorical", "dropped"]
COLUMN_KINDS: tuple[str, ...] = get_args(ColumnKind)

ID_SHARE = 0.9
"""A text column is an identifier when its distinct values exceed this share of its rows ..."""
ID_ROWS = 20
"""... and there are at least this many rows to say so."""
TEXT_SHARE = 0.5
"""A text column is free text when its distinct values exceed this share of its rows ..."""
TEXT_WORDS = 4
"""... and its cells have at least this many words on average."""
NEAR_YEARS = (1800, 2200)
"""Dates outside of these years mostly stand for 'open' or 'unknown'."""


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column of a table as the training rows show it."""

    name: str
    """Name in the header, stripped."""
    kind: ColumnKind
    """What the model gets: a number, a date as seconds and parts, a code, or nothing."""
    missing: int = 0
    """Training rows without a value."""
    distinct: int = 0
    """Distinct values, missing ones aside."""
    values: str = ""
    """The range of a numeric column, the most frequent values of another."""
    how: str = ""
    """How the cells are read and the share of them that can be, empty where nothing had to be found out."""
    note: str = ""
    """Why it is dropped or what was forgiven, else empty."""
    remarks: tuple[str, ...] = ()
    """What a user should check, one line each."""
    stray: bool = False
    """Whether cells that are not numbers count as missing."""
    notation: Notation | None = None
    """How numbers or dates are written in text; None for plain numbers, ISO dates and columns that are no text."""
    exact: bool = False
    """Whether the kind is declared: every spelling of a category is then a level of its own."""


def infer_columns(
    frame: pd.DataFrame,
    *,
    numeric: Sequence[str] = (),
    categorical: Sequence[str] = (),
    drop: Sequence[str] = (),
    keep_constant: bool = False,
    readings: Mapping[str, ColumnReading] | None = None,
    training: NDArray[np.bool_] | None = None,
) -> tuple[Column, ...]:
    """Judges every column of a table.

    Args:
        frame: All rows of the feature columns, plain (see `tables.py`).
        numeric: Columns that are numbers whatever they look like.
        categorical: Columns that are categories whatever they look like.
        drop: Columns to leave out.
        keep_constant: Keep columns with one value (the dark border of an image).
        readings: How the columns are read (`read_columns`, of all rows numbered from 0); by default found here.
        training: Which rows train, (N,); all of them by default.

    Returns:
        One record per column, in the table's order.

    Raises:
        UserError: If columns have no value at all.
    """
    kept = [str(name) for name in frame.columns if name not in drop]
    empty = [name for name in kept if frame[name].isna().all() and not name.startswith(UNNAMED)]
    if empty:
        names = ", ".join(map(repr, empty))
        raise UserError(
            f"{table_of(frame)} has no value in column(s) {names} in any training row; leave them out with "
            f"{flag('data.drop', [*drop, *empty])}"
        )
    frame = frame.reset_index(drop=True)
    if readings is None:
        readings = read_columns(frame[kept], NotationSettings(), numeric=numeric, categorical=categorical)
    declared = {*numeric, *categorical}
    train = slice(None) if training is None else training
    columns = []
    for name in map(str, frame.columns):
        if name not in kept:
            columns.append(Column(name=name, kind="dropped", note="by data.drop"))
            continue
        reason = "" if name in declared else _reason_to_drop(frame[name], readings[name], keep_constant)
        if not reason and frame[name][train].isna().all():
            reason = "no training row has a value"
        column = _judge(frame[name], readings[name], train, reason, exact=name in declared)
        if not reason and name not in declared and (numbers := _row_numbers(frame[name])):
            advice = f"if it only numbers the rows, leave it out with {flag('data.drop', [*drop, name])}"
            column = replace(
                column, remarks=(*column.remarks, f"{name}: each row has its own whole number, {numbers}; {advice}")
            )
        columns.append(column)
    return tuple(columns)


def read_cells(frame: pd.DataFrame, columns: Sequence[Column], readings: Mapping[str, ColumnReading]) -> pd.DataFrame:
    """Returns the frame with text that is read as numbers or dates as such, so that it is not read again.

    A column with cells that are to be refused stays as it is.
    """
    read = {}
    for column in columns:
        cells, reading = frame.get(column.name), readings.get(column.name)
        if cells is None or reading is None or reading.values is None or not pd.api.types.is_string_dtype(cells):
            continue
        if column.stray or (reading.values.isna().to_numpy() == cells.isna().to_numpy()).all():
            read[column.name] = reading.values.set_axis(frame.index)
    return frame.assign(**read)


def _judge(
    cells: pd.Series, reading: ColumnReading, train: slice | NDArray[np.bool_], reason: str, *, exact: bool
) -> Column:
    strays = reading.strays(cells)
    known = (cells if reading.values is None else reading.values)[train]
    stray = len(strays) > 0 and not exact
    of = f"{len(strays):,} of {len(cells):,} rows"  # of all parts; the rest of the record is of the training rows
    note = f"{of} not a {_noun(reading)}, such as {str(strays.iloc[0])!r}" if stray else reading.note
    return Column(
        name=str(cells.name),
        kind="dropped" if reason else reading.kind,
        missing=int(known.isna().sum()),
        distinct=int(known.nunique()),
        values=_frequent(cells[train]) if reading.values is None else _range(reading.values[train]),
        how="" if reason else _how(cells, reading, strays),
        note=reason or note,
        remarks=() if reason else (*reading.remarks, *_remarks(cells[train], reading)),
        stray=stray and not reason,
        notation=None if reason or reading.notation in (PLAIN, Notation(date_format=ISO)) else reading.notation,
        exact=exact,
    )


def _noun(reading: ColumnReading) -> str:
    return "date" if reading.kind == "date" else "number"


def _how(cells: pd.Series, reading: ColumnReading, strays: pd.Series) -> str:
    """Says how text is read, where it is no plain text of numbers or ISO dates without exception."""
    if reading.notation is None or reading.values is None:
        return ""
    common = reading.notation in (PLAIN, Notation(date_format=ISO))
    if common and not len(strays):
        return ""
    share = percent(1 - len(strays) / int(cells.notna().sum())) if len(strays) else "all"
    if common:
        return f"{share} are {_noun(reading)}s"
    if reading.notation.date_format:
        return f"{share} are dates, {reading.notation.date_format}"
    read = cells[reading.values.notna()]
    telling = read[PLAIN.read(read).isna()]
    return f"{share} are numbers, such as {str((telling if len(telling) else read).iloc[0])!r}"


def _remarks(cells: pd.Series, reading: ColumnReading) -> list[str]:
    """Returns what a user should check of the values themselves."""
    if reading.kind == "date" and reading.values is not None:
        moments = reading.values[cells.index].dropna()
        far = moments[~moments.dt.year.between(*NEAR_YEARS)]
        if far.empty:
            return []
        return [
            f"{cells.name}: {len(far):,} training rows have the date {far.iloc[0].date()}; if it means that there is "
            "none, add it to data.missing_values"
        ]
    if reading.kind != "categorical":
        return []
    groups = alike(sorted(map(str, to_text(cells).dropna().unique())))
    return [f"{cells.name}: categories {group} differ only in case or spaces; {ALIKE}" for group in groups]


def _reason_to_drop(cells: pd.Series, reading: ColumnReading, keep_constant: bool) -> str:
    distinct, present = int(cells.nunique()), int(cells.notna().sum())
    if str(cells.name).startswith(UNNAMED):
        return "no name in the header"
    if distinct == 1 and present == len(cells) and not keep_constant:
        return "constant"
    if reading.kind != "categorical" or present < ID_ROWS:
        return ""
    if distinct > TEXT_SHARE * present and to_text(cells).dropna().str.count(r"\S+").mean() >= TEXT_WORDS:
        return "free text: nearly all distinct" if distinct > ID_SHARE * present else "free text"
    return "an identifier: nearly all distinct" if distinct > ID_SHARE * present else ""


def _row_numbers(cells: pd.Series) -> str:
    """Returns the range of whole numbers without gaps and without repetition, such as a file's row numbers; else ''."""
    if not pd.api.types.is_integer_dtype(cells) or len(cells) < ID_ROWS:
        return ""
    first, last = int(cells.min()), int(cells.max())
    return f"{first} … {last}" if last - first == len(cells) - 1 and cells.is_unique else ""


def _range(values: pd.Series) -> str:
    if values.isna().all():
        return ""
    if pd.api.types.is_datetime64_any_dtype(values):
        return f"{values.min().date()} … {values.max().date()}"
    return f"{_number(float(values.min()))} … {_number(float(values.max()))}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value.is_integer() and abs(value) < 1e15 else f"{value:,.6g}"


def _frequent(cells: pd.Series) -> str:
    counts = to_text(cells).value_counts()
    shown = ", ".join(str(value) for value in counts.index[:3])
    return shown + (", …" if len(counts) > 3 else "")


def to_numbers(
    cells: pd.Series, *, stray: bool = False, date: bool = False, notation: Notation | None = None, key: str = ""
) -> NDArray[np.float64]:
    """Returns a column as numbers, (N,) float64, NaN where missing.

    Args:
        cells: A plain column, (N,).
        stray: Count cells that are not numbers as missing.
        date: Read dates as seconds since 1970-01-01 UTC.
        notation: How text is written; by default plain numbers, or dates of ISO 8601.
        key: The config key that errors name, by default the one that names the file.

    Raises:
        UserError: If a cell is no number (no date) or is infinite.
    """
    kinds = pd.api.types
    if date:
        is_date = kinds.is_datetime64_any_dtype(cells)
        moments = cells if is_date else (notation or Notation(date_format=ISO)).read(to_text(cells))
        known = moments.notna()
        numbers = moments.dt.as_unit("us").astype("int64").where(known) / 1e6
    elif notation is not None and isinstance(cells.dtype, pd.StringDtype):
        numbers = notation.read(cells)
    else:
        numbers = pd.to_numeric(cells, errors="coerce").astype("float64")
    wrong = (numbers.isna() & cells.notna()).to_numpy()
    if wrong.any() and not stray:
        raise UserError(f"{_first(cells, wrong, key)} is not {_expected(date, notation)}")
    infinite = np.isinf(numbers.to_numpy())
    if infinite.any():
        raise UserError(f"{_first(cells, infinite, key)} is infinite; only finite numbers train")
    return np.asarray(numbers, dtype=np.float64)


def _expected(date: bool, notation: Notation | None) -> str:
    """Names what a cell should be."""
    if date:
        other = notation is not None and notation.date_format != ISO
        kind = f"a date of the format {notation.date_format}" if notation and other else "a date such as 2024-12-31"
        return f"{kind}; correct it, leave it empty, or name it in data.missing_values"
    how = f" as the column has them (decimal {notation.decimal!r})" if notation and notation != PLAIN else ""
    return f"a number{how}; leave it empty, or name it in data.missing_values"


def _first(cells: pd.Series, mask: NDArray[np.bool_], key: str) -> str:
    """Names the first masked cell and its value."""
    place = int(mask.argmax())
    cell = cells.iloc[place]
    return f"{cell_of(cells, place, key)}: {str(cell) if isinstance(cell, float) else repr(str(cell))}"
