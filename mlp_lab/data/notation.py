"""How numbers and dates are written: thousands, decimal commas, currencies, percent signs, and dates of many countries.

A column keeps one notation. It is found over all rows of a table, never over the rows of one split, and it is kept with
what was fitted, so that a new file is read in the same way.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.compute as pc

from mlp_lab.errors import UserError

DECIMALS: tuple[str, ...] = (".", ",")
"""Characters that may stand between the whole number and its fraction."""
THOUSANDS: tuple[str, ...] = (",", ".", " ", "'", "")
"""Characters that may group digits; the empty one means that digits are not grouped."""
ISO = "ISO8601"
"""Name of the format of dates such as 2024-12-31, with or without a time and a time zone."""
STRAY_SHARE = 0.05
"""A column is read as numbers or dates when no more than this share of its cells cannot be read ..."""
STRAY_DISTINCT = 20
"""... and it has more distinct values than this; else the column is taken for categories."""
PLACEHOLDER_SHARE = 0.5
"""Up to this share of the cells may be placeholders, which are few words that stand where a value is missing ..."""
PLACEHOLDER_DISTINCT = 3
"""... and a column has no more than this many of them."""
PLACEHOLDERS = frozenset({"n.a.", "n.a", "n/a", "none", "nil", "missing", "nan"})
"""Cells, in lower case, that mean 'missing' in a column of numbers or dates; so do cells of punctuation alone."""
EXACT = 2**53
"""Beyond this float64 does not hold every whole number."""
SAMPLE = 1000
"""Distinct cells, spread over the table, that decide which formats of dates are tried."""

_SPACES = "[ \u00a0\u2009\u202f]"
_GROUP = {",": ",", ".": r"\.", " ": _SPACES, "'": "['\u2019]"}
_CURRENCY = (
    r"(?:US\$|R\$|[$\u20ac\u00a3\u00a5\u20b9\u20bd\u20a9]|z\u0142|kr\.?|Fr\.|"
    r"EUR|USD|GBP|CHF|JPY|CNY|INR|CAD|AUD|NZD|SEK|NOK|DKK|PLN|CZK|BRL|MXN|ZAR)"
)
UNIT = rf"%|{_CURRENCY}"
"""Pattern of what may stand before or behind a number."""
_TIME = r"(?:[T ]\s*(\d{1,2}:\d{2}(?::\d{2}(?:\.\d+)?)?\s*(?:[AaPp]\.?[Mm]\.?)?))?"
_DATE_SHAPES: dict[str, tuple[str, ...]] = {  # shape of a day to formats, the preferred one first
    r"\d{4}-\d{1,2}-\d{1,2}": ("%Y-%m-%d",),
    r"\d{4}/\d{1,2}/\d{1,2}": ("%Y/%m/%d",),
    r"\d{4}\.\d{1,2}\.\d{1,2}": ("%Y.%m.%d",),
    r"\d{1,2}\.\d{1,2}\.\d{4}": ("%d.%m.%Y",),
    r"\d{2}\.\d{2}\.\d{2}": ("%d.%m.%y",),  # both digits: 3.9.12 is a version
    r"\d{1,2}/\d{1,2}/\d{4}": ("%m/%d/%Y", "%d/%m/%Y"),
    r"\d{1,2}/\d{1,2}/\d{2}": ("%m/%d/%y", "%d/%m/%y"),
    r"\d{1,2}-\d{1,2}-\d{4}": ("%d-%m-%Y", "%m-%d-%Y"),
    r"\d{1,2} [A-Za-z]+,? \d{4}": ("%d %b %Y", "%d %B %Y"),
    r"\d{1,2}-[A-Za-z]{3}-\d{4}": ("%d-%b-%Y",),
    r"\d{1,2}-[A-Za-z]{3}-\d{2}": ("%d-%b-%y",),
    r"[A-Za-z]+ \d{1,2},? \d{4}": ("%b %d %Y", "%B %d %Y"),
}


@dataclass(frozen=True, kw_only=True)
class Notation:
    """How the cells of one column are written."""

    decimal: str = "."
    """Character before the fraction."""
    thousands: str = ""
    """Character that groups digits, empty for none."""
    date_format: str = ""
    """Format of the dates (as in `strptime`, or `ISO8601`), empty for numbers."""

    def read(self, texts: pd.Series) -> pd.Series:
        """Returns the cells as float64 or datetime64[us]; NaN or NaT where a cell is missing or cannot be read."""
        codes, values = pd.factorize(texts)
        words = pd.Series(values, dtype="str")
        read = read_dates(words, self.date_format) if self.date_format else self._numbers(words)
        absent = pd.NaT if self.date_format else np.nan
        taken = pd.concat([read, pd.Series([absent], dtype=read.dtype)], ignore_index=True)
        return taken.iloc[codes].set_axis(texts.index)

    def _numbers(self, words: pd.Series) -> pd.Series:
        """Reads numbers; but for plain ones, with a currency, a percent sign, or parentheses for a negative amount."""
        if self == PLAIN:
            return pd.to_numeric(words, errors="coerce").astype("float64")
        group, point = _GROUP.get(self.thousands, ""), _GROUP[self.decimal]
        inner = rf"(?:{group}\d{{2,3}})*{group}\d{{3}}" if self.thousands == "," else rf"(?:{group}\d{{3}})+"
        whole = rf"(?:\d{{1,3}}{inner}|\d+)" if group else r"\d+"
        number = rf"(?:{whole}(?:{point}\d*)?|{point}\d+)(?:[eE][+-]?\d+)?"
        sign, unit = "[+\u2212-]?", rf"{_SPACES}*(?:{UNIT})?{_SPACES}*"
        plain = rf"{sign}{unit}{sign}{number}{unit}"
        fits = words.str.fullmatch(plain) | words.str.fullmatch(rf"\({unit}{number}{unit}\)")
        body = words.where(fits).str.replace(rf"{UNIT}|{_SPACES}|\)", "", regex=True)
        body = body.str.replace("[\u2212(]", "-", regex=True)
        if group:
            body = body.str.replace(group, "", regex=True)
        numbers: pd.Series = pd.to_numeric(body.str.replace(self.decimal, ".", regex=False), errors="coerce")
        return numbers.astype("float64")


PLAIN = Notation()
"""Numbers as a program writes them: 1234.5, -3, 1e-5."""


@dataclass(frozen=True, kw_only=True)
class NotationSettings:
    """What the user says about notations; whatever is not said is found in the table."""

    decimal: str | None = None
    """`data.decimal`: one of `DECIMALS`."""
    thousands: str | None = None
    """`data.thousands`: one of `THOUSANDS`."""
    date_format: str | None = None
    """`data.date_format`: a format of `strptime`, such as `%d.%m.%Y`, or `ISO8601`."""

    def __post_init__(self) -> None:
        """Refuses characters and formats that cannot be read."""
        for key, value, accepted in (("decimal", self.decimal, DECIMALS), ("thousands", self.thousands, THOUSANDS)):
            if value is not None and value not in accepted:
                raise UserError(f"data.{key}: {value!r} is not accepted; use one of {', '.join(map(repr, accepted))}")
        if self.thousands and self.thousands == (self.decimal or "."):
            hint = "; set data.decimal ','" if self.decimal is None else ""
            raise UserError(f"data.thousands: {self.thousands!r} is the decimal character too{hint}")
        if self.date_format and self.date_format != ISO and not _is_format(self.date_format):
            raise UserError(
                f"data.date_format: {self.date_format!r} is not a date format; use for example %d.%m.%Y or {ISO}"
            )


@dataclass(frozen=True, kw_only=True)
class Reading:
    """One way to read a column of text."""

    notation: Notation
    """How the cells are written."""
    values: pd.Series
    """The cells as numbers or moments, NaN or NaT where a cell cannot be read."""
    share: float
    """Share of the cells with text that can be read."""
    other: Notation | None = None
    """Another notation that reads as many cells, but as other values."""


def plain_numbers(texts: pd.Series) -> pd.Series:
    """Returns text as int64, uint64 or float64 if every cell is a plain number and nothing is lost, else unchanged.

    Text stays where it has leading zeros, where points may group thousands in every cell, where few numbers are written
    in several ways (3.1 and 3.10), and where integers are too long for float64.
    """
    numbers = _cast(texts)
    if numbers is None or numbers.isna().to_numpy().sum() != texts.isna().to_numpy().sum():
        return texts
    present = texts.dropna()
    if present.empty:
        return numbers
    known = numbers.dropna()
    is_fraction = pd.api.types.is_float_dtype(numbers) and bool((known % 1 != 0).any())
    few = known.nunique() <= STRAY_DISTINCT
    if (
        bool(present.str.match(r"0\d").any())
        or (is_fraction and bool(present.str.fullmatch(r"[+-]?[1-9]\d{0,2}\.\d{3}").all()))
        or (is_fraction and few and present.nunique() > known.nunique())
        or (pd.api.types.is_float_dtype(numbers) and bool(present.str.match(r"[+-]?\d{16}").any()))
    ):
        return texts
    return numbers


def _cast(texts: pd.Series) -> pd.Series | None:
    """Returns text as numbers, or None if a cell is none; PyArrow rounds as Python does and reads ten times as fast."""
    cells = pa.array(texts, from_pandas=True)
    for kind in (pa.int64(), pa.uint64(), pa.float64()):
        try:
            return pd.Series(pc.cast(cells, kind).to_numpy(zero_copy_only=False), index=texts.index, name=texts.name)
        except pa.ArrowInvalid:
            continue
    return None


def read_dates(words: pd.Series, date_format: str) -> pd.Series:
    """Returns texts as moments in UTC, datetime64[us], NaT where a text is no date of this format.

    A format without a time accepts a time behind the day: 31.12.2024 17:30, 12/31/2024 5:30 PM.
    """
    if date_format == ISO:
        return _moments(words.str.replace(r"(\.\d{6})\d+", r"\1", regex=True), ISO)
    moments = _moments(words, date_format)
    rest = words[moments.isna() & words.notna()]
    if len(rest):
        pieces = rest.str.strip().str.extract(rf"^(.*?){_TIME}$")
        days = _moments(pieces[0].str.replace(",", "", regex=False), date_format.replace(",", ""))
        moments.loc[rest.index] = days + pieces[1].map(_time_of_day, na_action="ignore").astype("timedelta64[us]")
        no_time = rest.index[pieces[1].isna()]
        moments.loc[no_time] = days.loc[no_time]
    return moments


def find_numbers(texts: pd.Series, settings: NotationSettings, *, decimal: str = ".") -> Reading:
    """Returns the notation of numbers that reads most of the cells, `PLAIN` where plain numbers are as many.

    Args:
        texts: Cells as they are written, (N,), at least one not missing.
        settings: What the user says; plain numbers are read whatever it is.
        decimal: The character to prefer where two notations read as many cells.
    """
    decimals = [settings.decimal] if settings.decimal else sorted(DECIMALS, key=lambda item: item != decimal)
    groups = (",", ".", " ", "'") if settings.thousands is None else (settings.thousands,)
    notations = [Notation(decimal=point, thousands=group) for point in decimals for group in groups if group != point]
    notations.sort(key=lambda item: item.thousands not in ",.")  # both usual notations before the rarer ones
    notations.insert(0 if decimals[0] == "." else 1 if settings.decimal is None else len(notations), PLAIN)
    return _best([partial(_read, texts, notation) for notation in notations])


def find_dates(texts: pd.Series, settings: NotationSettings, *, day_first: bool | None = None) -> Reading | None:
    """Returns the format of dates that reads most of the cells, or None if no known format does.

    Args:
        texts: Cells as they are written, (N,), at least one not missing.
        settings: What the user says; a format of the user is tried first.
        day_first: Whether other columns of the table put the day before the month, None where they do not say.
    """
    if settings.date_format and (given := _read(texts, Notation(date_format=settings.date_format))).share > 0:
        return given
    words = pd.Series(texts.dropna().unique(), dtype="str")
    words = words.iloc[:: 1 + len(words) // SAMPLE]
    days = words.str.extract(rf"^(.*?){_TIME}$")[0]
    iso = words.str.match(r"\d{4}-\d{2}-\d{2}(?:$|[T ])")
    shapes = {shape: float(days.str.fullmatch(shape).mean()) for shape in _DATE_SHAPES}
    shape = max(shapes, key=lambda item: shapes[item])
    if iso.mean() >= PLACEHOLDER_SHARE:
        return _read(texts, Notation(date_format=ISO))
    if shapes[shape] < PLACEHOLDER_SHARE:
        return None
    formats = sorted(_DATE_SHAPES[shape], key=lambda item: day_first is not None and is_day_first(item) != day_first)
    return _best([partial(_read, texts, Notation(date_format=item)) for item in formats])


def is_day_first(date_format: str) -> bool:
    """Tells whether a format of digits puts the day before the month."""
    return has_order(date_format) and date_format.index("%d") < date_format.index("%m")


def has_order(date_format: str) -> bool:
    """Tells whether day and month of a format can be mistaken for each other."""
    return "%d" in date_format and "%m" in date_format and not date_format.startswith("%Y")


def is_readable(texts: pd.Series, values: pd.Series) -> bool:
    """Tells whether a column of text is one of numbers or dates.

    Args:
        texts: Cells as they are written, (N,).
        values: The same as numbers or moments, NaN or NaT where a cell cannot be read.
    """
    strays = texts[texts.notna() & values.isna()]
    present = int(texts.notna().sum())
    if len(strays) == 0:
        return True
    if len(strays) <= PLACEHOLDER_SHARE * present and all(map(is_placeholder, strays.unique()[:1000])):
        return True
    if values.nunique() <= STRAY_DISTINCT:
        return False
    few = strays.nunique() <= PLACEHOLDER_DISTINCT and len(strays) <= PLACEHOLDER_SHARE * present
    return few or len(strays) <= STRAY_SHARE * present


def is_placeholder(cell: object) -> bool:
    """Tells whether a cell, in a column of numbers, says that there is none.

    >>> is_placeholder("-"), is_placeholder("n.a."), is_placeholder("low")
    (True, True, False)
    """
    text = str(cell).strip().lower()
    return text in PLACEHOLDERS or re.fullmatch(r"[^\w\s%$]+", text) is not None


def _read(texts: pd.Series, notation: Notation) -> Reading:
    values = notation.read(texts)
    present = max(int(texts.notna().sum()), 1)
    return Reading(notation=notation, values=values, share=float(values.notna().sum()) / present)


def _best(attempts: list[Callable[[], Reading]]) -> Reading:
    """Returns the first of the readings with the largest share, and the notation of its first rival, if any."""
    readings = [attempt() for attempt in attempts]
    best = max(readings, key=lambda reading: reading.share)
    rivals = [item for item in readings if item.share == best.share > 0 and not item.values.equals(best.values)]
    other = rivals[0].notation if rivals else None
    return Reading(notation=best.notation, values=best.values, share=best.share, other=other)


def _moments(words: pd.Series, date_format: str) -> pd.Series:
    moments = pd.to_datetime(words, format=date_format, errors="coerce", utc=True).dt.tz_localize(None)
    return moments.dt.as_unit("us")


def _time_of_day(text: str) -> np.timedelta64:
    """Returns the time since midnight.

    >>> _time_of_day("5:30 PM")
    np.timedelta64(63000000000,'us')
    """
    digits = [float(piece) for piece in re.findall(r"\d+(?:\.\d+)?", text)]
    hour, minute, second = (*digits, 0.0)[:3]
    half = re.search(r"[AaPp]", text)
    if half:
        hour = hour % 12 + (12 if half[0] in "Pp" else 0)
    return np.timedelta64(round(((hour * 60 + minute) * 60 + second) * 1_000_000), "us")


def _is_format(date_format: str) -> bool:
    """Tells whether a format can be read back and has at least a year."""
    try:
        pd.to_datetime(pd.Timestamp(2024, 12, 31).strftime(date_format), format=date_format)
    except ValueError:
        return False
    return "%Y" in date_format or "%y" in date_format
