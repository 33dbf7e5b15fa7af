"""What a table's columns are: numbers, dates, categories, or nothing a model can use; judged by training rows alone.

Messages name a cell as `origins.py` does.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mlp_lab.data.origins import cell_of, table_of
from mlp_lab.data.text_files import UNNAMED
from mlp_lab.errors import UserError
from mlp_lab.flags import flag

ColumnKind = Literal["numeric", "date", "categorical", "dropped"]
COLUMN_KINDS: tuple[str, ...] = get_args(ColumnKind)

STRAY_SHARE = 0.05
"""A text column counts as numeric when no more than this share of its cells are not numbers ..."""
STRAY_DISTINCT = 20
"""... and it has more distinct numbers than this; otherwise the numbers are taken for names."""
ID_SHARE = 0.9
"""A text column is an identifier when its distinct values exceed this share of its rows ..."""
ID_ROWS = 20
"""... and there are at least this many rows to say so."""


@dataclass(frozen=True, kw_only=True)
class Column:
    """One column of a table as the training rows show it."""

    name: str
    """Name in the header, stripped."""
    kind: ColumnKind
    """What the model gets: a number, a date as seconds, a code, or nothing."""
    missing: int = 0
    """Training rows without a value."""
    distinct: int = 0
    """Distinct values, missing ones aside."""
    values: str = ""
    """The range of a numeric column, the most frequent values of another."""
    note: str = ""
    """Why it is dropped or what was forgiven, else empty."""
    stray: bool = False
    """Whether cells that are not numbers count as missing."""


def infer_columns(
    train: pd.DataFrame,
    *,
    numeric: Sequence[str] = (),
    categorical: Sequence[str] = (),
    drop: Sequence[str] = (),
    keep_constant: bool = False,
) -> tuple[Column, ...]:
    """Judges every column of the training rows.

    Args:
        train: Training rows of the feature columns, plain (see `tables.py`).
        numeric: Columns that are numbers whatever they look like.
        categorical: Columns that are categories whatever they look like.
        drop: Columns to leave out.
        keep_constant: Keep columns with one value (the dark border of an image).

    Returns:
        One record per column, in the table's order.

    Raises:
        UserError: If columns have no value at all in the training rows.
    """
    empty = [str(name) for name in train.columns if name not in drop and train[name].isna().all()]
    empty = [name for name in empty if not name.startswith(UNNAMED)]  # which is dropped in any case
    if empty:
        names = ", ".join(map(repr, empty))
        raise UserError(
            f"{table_of(train)} has no value in column(s) {names} in any training row; leave them out with "
            f"{flag('data.drop', [*drop, *empty])}"
        )
    declared: dict[str, ColumnKind] = dict.fromkeys(drop, "dropped")
    declared.update(dict.fromkeys(numeric, "numeric"))
    declared.update(dict.fromkeys(categorical, "categorical"))
    return tuple(_judge(train[name], declared.get(str(name)), keep_constant) for name in train.columns)


def _judge(cells: pd.Series, declared: ColumnKind | None, keep_constant: bool) -> Column:
    name = str(cells.name)
    if declared == "dropped":
        return Column(name=name, kind="dropped", note="by data.drop")
    kind, stray = (declared, False) if declared else _guess(cells)
    missing = int(cells.isna().sum())
    distinct = int(cells.nunique())
    note = ""
    if stray:
        numbers = pd.to_numeric(cells, errors="coerce")
        strays = cells[cells.notna() & numbers.isna()]
        note, missing = f"{len(strays)} not a number, such as {str(strays.iloc[0])!r}", int(numbers.isna().sum())
    if not declared and (reason := _reason_to_drop(cells, distinct, keep_constant, kind)):
        kind, stray, note = "dropped", False, reason
    values = _range(cells, kind) if kind in ("numeric", "date") else _frequent(cells)
    return Column(name=name, kind=kind, missing=missing, distinct=distinct, values=values, note=note, stray=stray)


def _guess(cells: pd.Series) -> tuple[ColumnKind, bool]:
    """Returns the kind that the cells suggest, and whether cells that are not numbers are to be forgiven."""
    kind = pd.api.types
    if kind.is_datetime64_any_dtype(cells):
        return "date", False
    if kind.is_bool_dtype(cells):
        return "categorical", False
    if kind.is_numeric_dtype(cells):
        return "numeric", False
    texts = cells.dropna()
    numbers = pd.to_numeric(texts, errors="coerce").dropna()
    strays = len(texts) - len(numbers)
    if strays == 0:
        return "numeric", False
    if strays <= STRAY_SHARE * len(texts) and numbers.nunique() > STRAY_DISTINCT:
        return "numeric", True
    return ("date" if _are_dates(texts) else "categorical"), False


def _are_dates(texts: pd.Series) -> bool:
    if not re.match(r"\d{4}-\d{2}-\d{2}", str(texts.iloc[0])):
        return False
    return bool(_parse_dates(texts).notna().all())


def _parse_dates(texts: pd.Series) -> pd.Series:
    return pd.to_datetime(texts, format="ISO8601", errors="coerce", utc=True).dt.tz_localize(None)


def _reason_to_drop(cells: pd.Series, distinct: int, keep_constant: bool, kind: ColumnKind) -> str:
    present = int(cells.notna().sum())
    if str(cells.name).startswith(UNNAMED):
        return "no name in the header"
    if distinct == 1 and present == len(cells) and not keep_constant:
        return "constant"
    if kind == "categorical" and present >= ID_ROWS and distinct > ID_SHARE * present:
        return "an identifier: nearly all distinct"
    return ""


def _range(cells: pd.Series, kind: ColumnKind) -> str:
    if kind == "date":
        moments = cells if pd.api.types.is_datetime64_any_dtype(cells) else _parse_dates(cells)
        return f"{moments.min().date()} … {moments.max().date()}"
    numbers = pd.to_numeric(cells, errors="coerce")
    return f"{_number(float(numbers.min()))} … {_number(float(numbers.max()))}"


def _number(value: float) -> str:
    return f"{value:,.0f}" if value.is_integer() and abs(value) < 1e15 else f"{value:,.6g}"


def _frequent(cells: pd.Series) -> str:
    counts = to_text(cells).value_counts()
    shown = ", ".join(str(value) for value in counts.index[:3])
    return shown + (", …" if len(counts) > 3 else "")


def to_numbers(cells: pd.Series, *, stray: bool = False, date: bool = False, key: str = "") -> NDArray[np.float64]:
    """Returns a column as numbers, (N,) float64, NaN where missing.

    Args:
        cells: A plain column, (N,).
        stray: Count cells that are not numbers as missing.
        date: Read dates (ISO 8601 or datetime64) as seconds since 1970-01-01 UTC.
        key: The config key that errors name, by default the one that names the file.

    Raises:
        UserError: If a cell is no number (no date) or is infinite.
    """
    if date:
        is_date = pd.api.types.is_datetime64_any_dtype(cells)
        moments = cells if is_date else _parse_dates(cells.astype("str"))
        numbers = (moments - pd.Timestamp(0)).dt.total_seconds()
    else:
        numbers = pd.to_numeric(cells, errors="coerce").astype("float64")
    wrong = (numbers.isna() & cells.notna()).to_numpy()
    if wrong.any() and not stray:
        what = "a date such as 2024-12-31" if date else "a number; leave it empty, or name it in data.missing_values"
        raise UserError(f"{_first(cells, wrong, key)} is not {what}")
    infinite = np.isinf(numbers.to_numpy())
    if infinite.any():
        raise UserError(f"{_first(cells, infinite, key)} is infinite; only finite numbers train")
    return np.asarray(numbers, dtype=np.float64)


def _first(cells: pd.Series, mask: NDArray[np.bool_], key: str) -> str:
    """Names the first masked cell and its value."""
    place = int(mask.argmax())
    cell = cells.iloc[place]
    return f"{cell_of(cells, place, key)}: {str(cell) if isinstance(cell, float) else repr(str(cell))}"


def to_text(cells: pd.Series) -> pd.Series:
    """Returns a column as words that are the same whichever file type they came from, NaN where missing.

    A CSV, a CSV with a gap and a Parquet file may hold the same category as 1, 1.0 and true integers.

    >>> to_text(pd.Series([1.0, 2.5, float("nan")])).tolist()
    ['1', '2.5', nan]
    >>> to_text(pd.Series(["1.0", "007", "true"])).tolist()
    ['1', '007', 'True']
    """
    codes, values = pd.factorize(cells)
    words = np.array([*(_word(value) for value in values), np.nan], dtype=object)
    return pd.Series(words[codes], index=cells.index, name=cells.name, dtype="str")


def _word(value: object) -> str:
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() else repr(float(value))
    text = str(value).strip()
    if text.lower() in ("true", "false"):
        return text.capitalize()
    return text.rstrip("0").rstrip(".") if re.fullmatch(r"-?\d+\.\d+", text) else text
