"""Which columns of a table are numbers and which are dates, and in which notation: decided on all rows together.

Columns of one table are mostly written in one country's way, so a column that can be read in two ways is read as the
columns that can be read in one way only.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Literal

import pandas as pd

from mlp_lab.data.levels import to_text
from mlp_lab.data.notation import (
    EXACT,
    PLACEHOLDER_SHARE,
    PLAIN,
    STRAY_DISTINCT,
    STRAY_SHARE,
    Notation,
    NotationSettings,
    Reading,
    are_likely_thousands,
    find_dates,
    find_numbers,
    has_order,
    is_day_first,
    is_readable,
    units,
)
from mlp_lab.flags import flag

TOO_LONG = "whole numbers too long for exact arithmetic: codes"


@dataclass(frozen=True, kw_only=True)
class ColumnReading:
    """What the cells of one column are."""

    kind: Literal["numeric", "date", "categorical"]
    """Numbers, moments or words."""
    values: pd.Series | None = None
    """The numbers or moments, NaN or NaT where a cell is missing or cannot be read; None for words."""
    notation: Notation | None = None
    """How the cells are written; None for plain numbers, and for columns that are no text."""
    note: str = ""
    """Why the column is one of words though its cells are numbers."""
    remarks: tuple[str, ...] = ()
    """What a user should check, one line each."""

    def strays(self, cells: pd.Series) -> pd.Series:
        """Returns the cells that are neither missing nor read."""
        return cells.iloc[:0] if self.values is None else cells[cells.notna() & self.values.isna()]


def read_columns(
    frame: pd.DataFrame, settings: NotationSettings, *, numeric: Iterable[str] = (), categorical: Iterable[str] = ()
) -> dict[str, ColumnReading]:
    """Decides what every column is.

    Args:
        frame: All rows of plain columns (see `tables.py`).
        settings: What the user says about notations.
        numeric: Columns that are numbers whatever they look like.
        categorical: Columns that are words whatever they look like.
    """
    words, wanted = set(categorical), set(numeric)
    texts = {
        name: frame[name]
        for name in frame.columns
        if name not in words and isinstance(frame[name].dtype, pd.StringDtype)
        if name in wanted or _may_be_read(frame[name])
    }
    numbers = _find_numbers(frame, texts, settings)
    dates = _find_dates({name: cells for name, cells in texts.items() if name not in wanted}, settings)
    found = {}
    for name in map(str, frame.columns):
        cells = frame[name]
        if name in words:
            found[name] = ColumnReading(kind="categorical")
        elif name in wanted and name in texts:
            given = numbers[name]
            remarks = _number_remarks(cells, given)
            found[name] = ColumnReading(kind="numeric", values=given.values, notation=given.notation, remarks=remarks)
        elif name in wanted:
            found[name] = ColumnReading(kind="numeric", values=cells.astype("float64"))
        elif name in texts:
            found[name] = _settle(cells, numbers[name], dates.get(name), settings)
        else:
            found[name] = _typed(cells, settings)
    return found


def percent(share: float) -> str:
    """Writes a share so that only all of the cells are 100%.

    >>> percent(1.0), percent(0.9996), percent(0.25)
    ('100%', '99.9%', '25%')
    """
    tenths = int(1000 * share + 1e-9)
    return f"{tenths / 10:g}%" if tenths else "under 0.1%" if share else "0%"


def _may_be_read(cells: pd.Series) -> bool:
    """Tells whether a column is text of which half of the cells have a digit."""
    if not isinstance(cells.dtype, pd.StringDtype) or not cells.notna().any():
        return False
    return bool(cells.str.contains("[0-9]").mean() >= PLACEHOLDER_SHARE)


def _find_numbers(frame: pd.DataFrame, texts: dict[str, pd.Series], settings: NotationSettings) -> dict[str, Reading]:
    """Returns the notation of each column of text, as numbers; doubt is settled by the columns without doubt."""
    points_first = {name: find_numbers(cells, settings) for name, cells in texts.items()}
    if not _has(",", points_first, texts):
        return {
            name: replace(item, other=None)
            if item.notation == PLAIN and not are_likely_thousands(texts[name])
            else item
            for name, item in points_first.items()
        }
    commas_first = {name: find_numbers(cells, settings, decimal=",") for name, cells in texts.items()}
    fractions = (cells.dropna() % 1 != 0 for _, cells in frame.items() if pd.api.types.is_float_dtype(cells))
    points = _has(".", commas_first, texts) or any(some.any() for some in fractions)
    return points_first if points else commas_first


def _has(decimal: str, readings: Mapping[str, Reading], texts: Mapping[str, pd.Series]) -> bool:
    return any(
        reading.notation.decimal == decimal
        and is_readable(texts[name], reading.values)
        and texts[name].str.contains(decimal, regex=False).any()
        for name, reading in readings.items()
    )


def _find_dates(texts: Mapping[str, pd.Series], settings: NotationSettings) -> dict[str, Reading]:
    """Returns the format of each column of text that may be dates; doubt is settled as in `_find_numbers`."""
    readings = {name: reading for name, cells in texts.items() if (reading := find_dates(cells, settings))}
    orders = {
        is_day_first(reading.notation.date_format)
        for name, reading in readings.items()
        if reading.other is None
        and has_order(reading.notation.date_format)
        and is_readable(texts[name], reading.values)
    }
    if len(orders) != 1:
        return readings
    (day_first,) = orders
    for name, reading in readings.items():
        if reading.other is not None:
            readings[name] = find_dates(texts[name], settings, day_first=day_first) or reading
    return readings


def _settle(cells: pd.Series, numbers: Reading, dates: Reading | None, settings: NotationSettings) -> ColumnReading:
    """Decides what a column of text is."""
    if _are_codes(cells):
        return ColumnReading(kind="categorical", note="codes with leading zeros")
    is_date = dates is not None and is_readable(cells, dates.values)
    if dates and is_date and (settings.date_format or not is_readable(cells, numbers.values)):
        return ColumnReading(
            kind="date", values=dates.values, notation=dates.notation, remarks=_date_remarks(cells, dates)
        )
    if not is_readable(cells, numbers.values):
        return ColumnReading(kind="categorical")
    if _merges(cells, numbers.values):
        return ColumnReading(kind="categorical", note=TOO_LONG)
    return ColumnReading(
        kind="numeric", values=numbers.values, notation=numbers.notation, remarks=_number_remarks(cells, numbers)
    )


def _typed(cells: pd.Series, settings: NotationSettings) -> ColumnReading:
    """Decides what a column is that holds numbers, booleans, moments, or words without digits."""
    kinds = pd.api.types
    if kinds.is_datetime64_any_dtype(cells):
        return ColumnReading(kind="date", values=cells)
    if kinds.is_bool_dtype(cells) or not kinds.is_numeric_dtype(cells):
        return ColumnReading(kind="categorical")
    if kinds.is_integer_dtype(cells) and settings.date_format:
        reading = find_dates(to_text(cells), settings)
        if reading and reading.notation.date_format == settings.date_format and is_readable(cells, reading.values):
            return ColumnReading(kind="date", values=reading.values, notation=reading.notation)
    values = cells.astype("float64")
    if kinds.is_integer_dtype(cells) and values.abs().max() >= EXACT and _merges(to_text(cells), values):
        return ColumnReading(kind="categorical", note=TOO_LONG)
    return ColumnReading(kind="numeric", values=values)


def _are_codes(cells: pd.Series) -> bool:
    """Tells whether digits are codes, such as zip codes: with leading zeros in many cells, or all of one length."""
    texts = cells.dropna()
    padded = texts.str.fullmatch(r"0\d+")
    if not padded.any():
        return False
    digits = texts[texts.str.fullmatch(r"\d+")]
    enough = padded.mean() > STRAY_SHARE or digits.str.len().nunique() == 1
    return bool(enough and len(digits) >= (1 - STRAY_SHARE) * len(texts))


def _merges(cells: pd.Series, values: pd.Series) -> bool:
    """Tells whether whole numbers are so long that distinct ones are equal in float64."""
    whole = cells[cells.str.fullmatch(r"[+-]?\d{16,}").fillna(value=False).astype(bool)]
    return len(whole) > 0 and whole.nunique() > values[whole.index].nunique()


def _number_remarks(cells: pd.Series, reading: Reading) -> tuple[str, ...]:
    name, remarks = str(cells.name), []
    texts = cells.dropna()
    if reading.other is not None:
        rival = reading.other.read(texts)
        place = int((rival != reading.values[texts.index]).to_numpy().argmax())
        keys = flag("data.decimal", reading.other.decimal)
        remarks.append(
            f"{name}: {texts.iloc[place]!r} is read as {reading.values[texts.index].iloc[place]:.15g}; "
            f"{keys} reads it as {rival.iloc[place]:.15g}"
        )
    if reading.notation != PLAIN and len(found := units(texts)) > 1:
        names = sorted(unit or "no unit" for unit in found)
        remarks.append(f"{name}: cells with {', '.join(names[:-1])} and {names[-1]} are read as numbers of one unit")
    if reading.notation == PLAIN and (pair := _same_number(texts, reading.values)):
        keys = flag("data.categorical", [name])
        remarks.append(f"{name}: {pair[0]!r} and {pair[1]!r} are the same number; {keys} keeps them apart")
    return tuple(remarks)


def _same_number(texts: pd.Series, values: pd.Series) -> tuple[str, str] | None:
    """Returns two spellings of one fraction in a column of few values, as of the versions 3.1 and 3.10."""
    if values.nunique() > STRAY_DISTINCT:
        return None
    first: dict[float, str] = {}
    for text in map(str, texts.unique()):
        value = pd.to_numeric(text, errors="coerce")
        if value % 1 and (other := first.setdefault(value, text)) != text:
            return other, text
    return None


def _date_remarks(cells: pd.Series, reading: Reading) -> tuple[str, ...]:
    if reading.other is None:
        return ()
    texts = cells.dropna()
    moments, rival = reading.values[texts.index], reading.other.read(texts)
    place = int((moments != rival).to_numpy().argmax())
    keys = flag("data.date_format", reading.other.date_format)
    return (
        f"{cells.name}: {texts.iloc[place]!r} is read as {moments.iloc[place].date()}; "
        f"{keys} reads it as {rival.iloc[place].date()}",
    )
