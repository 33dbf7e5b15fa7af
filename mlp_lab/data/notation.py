"""How numbers and dates are written: thousands, decimal commas, currencies, percent signs, and dates of many countries.

A column keeps one notation. It is found over all rows of a table, never over the rows of one split, and it is kept with
what was fitted, so that a new file is read in the same way.
"""

from __future__ import annotations

import re
from contextlib import suppress
from dataclasses import dataclass

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
"""Distinct cells, spread over the table, that decide which notations are tried on all of them."""

_THOUSANDS = r"[+-]?[1-9]\d{0,2}\.\d{3}"
_SPACES = "[ \u00a0\u2009\u202f]"
_GROUP = {",": ",", ".": r"\.", " ": _SPACES, "'": "['\u2019]"}
_CURRENCY = (
    r"(?:US\$|R\$|[$€£¥₹₽₩]|zł|kr\.?|Fr\.|"
    r"EUR|USD|GBP|CHF|JPY|CNY|INR|CAD|AUD|NZD|SEK|NOK|DKK|PLN|CZK|BRL|MXN|ZAR)"
)
UNIT = rf"%|{_CURRENCY}"
"""Pattern of what may stand before or behind a number."""
_TIME = r"(?:[T ]\s*(?P<time>\d{1,2}:\d{2}(?::\d{2}(?:\.\d+)?)?\s*(?:[AaPp]\.?[Mm]\.?)?))?"
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
        absent = pd.Series([pd.NaT if self.date_format else np.nan], dtype=read.dtype)
        return pd.concat([read, absent], ignore_index=True).iloc[codes].set_axis(texts.index)

    def _numbers(self, words: pd.Series) -> pd.Series:
        """Reads numbers; but for plain ones, with a currency, a percent sign, or parentheses for a negative amount."""
        if self == PLAIN:
            return _to_float(words)
        group, point = _GROUP.get(self.thousands, ""), _GROUP[self.decimal]
        inner = rf"(?:{group}\d{{2,3}})*{group}\d{{3}}" if self.thousands == "," else rf"(?:{group}\d{{3}})+"
        whole = rf"(?:\d{{1,3}}{inner}|\d+)" if group else r"\d+"
        number = rf"(?:{whole}(?:{point}\d*)?|{point}\d+)(?:[eE][+-]?\d+)?"
        sign, unit = "[+\u2212-]?", rf"{_SPACES}*(?:{UNIT})?{_SPACES}*"
        cells = _array(words)
        fits = _matches(cells, rf"{sign}{unit}{sign}{number}{unit}|\({unit}{number}{unit}\)")
        body = pc.if_else(fits, cells, None)
        for pattern, replacement in (
            (rf"{UNIT}|{_SPACES}|\)", ""),
            ("[\u2212(]", "-"),
            *([(group, "")] if group else []),
            (point, "."),
        ):
            body = pc.replace_substring_regex(body, pattern, replacement)
        return _to_float(pd.Series(body.to_pandas(), index=words.index, dtype="str"))


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

    Text stays where it has leading zeros, where points may group thousands, where few numbers are written
    in several ways (3.1 and 3.10), and where integers are too long for float64.
    """
    cells = _array(texts)
    try:
        numbers = pd.Series(
            pc.cast(cells, pa.float64()).to_numpy(zero_copy_only=False), index=texts.index, name=texts.name
        )
    except pa.ArrowInvalid:
        return texts
    known = numbers[numbers.notna()]
    if len(known) < len(cells) - cells.null_count:  # the word nan
        return texts
    is_fraction = bool((known % 1 != 0).any())
    if _matches(cells, r"0\d.*").true_count:
        return texts
    if may_be_thousands(texts):
        return texts
    if is_fraction:
        distinct = known.nunique()
        return texts if distinct <= STRAY_DISTINCT and texts.nunique() > distinct else numbers
    for kind in (pa.int64(), pa.uint64()) if len(known) == len(texts) else ():
        with suppress(pa.ArrowInvalid):
            return pd.Series(pc.cast(cells, kind).to_numpy(), index=texts.index, name=texts.name)
    return texts if len(known) and known.abs().max() >= EXACT else numbers


def may_be_thousands(texts: pd.Series) -> bool:
    """Tells whether points may group the digits of whole numbers, as in 4.300 and 900: in some cells, against none."""
    cells = _array(texts)
    if _matches(cells, _THOUSANDS).true_count == 0:
        return False
    return bool(_matches(cells, rf"{_THOUSANDS}|[+-]?(?:0|[1-9]\d{{0,2}})").true_count == len(cells) - cells.null_count)


def are_likely_thousands(texts: pd.Series) -> bool:
    """Tells whether points group thousands rather than begin fractions of three digits.

    A program that writes fractions of three digits writes a point in every cell, and some last digit is not 0.
    """
    if not may_be_thousands(texts):
        return False
    cells = _array(texts.dropna())
    return bool(_matches(cells, _THOUSANDS).false_count or _matches(cells, ".*0").false_count == 0)


def _array(texts: pd.Series) -> pa.Array:
    cells = pa.array(texts, from_pandas=True)
    return cells.combine_chunks() if isinstance(cells, pa.ChunkedArray) else cells


def _matches(cells: pa.Array, pattern: str) -> pa.BooleanArray:
    """Tells which cells a pattern matches from their first to their last character; missing ones stay missing."""
    return pc.match_substring_regex(cells, f"^(?:{pattern})$")


def _to_float(words: pd.Series) -> pd.Series:
    """Returns plain numbers as float64, NaN where a word is none; PyArrow reads ten times as fast, but only numbers."""
    try:
        return pd.Series(pc.cast(_array(words), pa.float64()).to_numpy(zero_copy_only=False), index=words.index)
    except pa.ArrowInvalid:
        return pd.to_numeric(words, errors="coerce").astype("float64")


def read_dates(words: pd.Series, date_format: str) -> pd.Series:
    """Returns texts as moments in UTC, datetime64[us], NaT where a text is no date of this format.

    A format without a time accepts a time behind the day: 31.12.2024 17:30, 12/31/2024 5:30 PM.
    """
    if date_format == ISO:
        return _moments(words.str.replace(r"(\.\d{6})\d+", r"\1", regex=True), ISO)
    if "%H" in date_format or "%I" in date_format:
        return _moments(words, date_format)
    days, times = _days_and_times(words)
    moments = _moments(days.str.replace(",", "", regex=False), date_format.replace(",", ""))
    known = times[times.notna()]
    codes, distinct = pd.factorize(known)
    since_midnight = np.array([_time_of_day(str(time)) for time in distinct], dtype="timedelta64[us]")
    moments.loc[known.index] += since_midnight[codes]
    return moments


def _days_and_times(words: pd.Series) -> tuple[pd.Series, pd.Series]:
    """Splits texts into what stands before a time of day, and that time, which may be missing."""
    pieces = pc.extract_regex(_array(words.str.strip()), rf"^(?P<day>.*?){_TIME}$")
    return tuple(  # type: ignore[return-value]
        pd.Series(pc.struct_field(pieces, name).to_pandas(), index=words.index, dtype="str").replace("", None)
        for name in ("day", "time")
    )


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
    sample = _sample(texts)
    shares = {item: _read(sample, item).share for item in notations}
    likely = max(shares.values()) - STRAY_SHARE
    chosen = [item for item in notations if shares[item] >= likely and shares[item] > 0] or [PLAIN]
    return _best([_read(texts, notation) for notation in chosen])


def find_dates(texts: pd.Series, settings: NotationSettings, *, day_first: bool | None = None) -> Reading | None:
    """Returns the format of dates that reads most of the cells, or None if no known format does.

    Args:
        texts: Cells as they are written, (N,), at least one not missing.
        settings: What the user says; a format of the user is tried first.
        day_first: Whether other columns of the table put the day before the month, None where they do not say.
    """
    if settings.date_format and (given := _read(texts, Notation(date_format=settings.date_format))).share > 0:
        return given
    words = _sample(texts)
    days = _array(_days_and_times(words)[0])
    shapes = {shape: _matches(days, shape).true_count / len(words) for shape in _DATE_SHAPES}
    shape = max(shapes, key=lambda item: shapes[item])
    if _matches(_array(words), r"\d{4}-\d{2}-\d{2}(?:[T ].*)?").true_count >= PLACEHOLDER_SHARE * len(words):
        return _read(texts, Notation(date_format=ISO))
    if shapes[shape] < PLACEHOLDER_SHARE:
        return None
    formats = sorted(_DATE_SHAPES[shape], key=lambda item: day_first is not None and is_day_first(item) != day_first)
    return _best([_read(texts, Notation(date_format=item)) for item in formats])


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


def units(texts: pd.Series) -> list[str]:
    """Returns the distinct currencies and percent signs beside numbers, an empty one where a cell has none."""
    found = pc.extract_regex(_array(texts.dropna()), f"(?P<unit>{UNIT})")
    return [unit or "" for unit in pc.unique(pc.struct_field(found, "unit")).to_pylist()]


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


def _sample(texts: pd.Series) -> pd.Series:
    """Returns distinct cells, spread over the table."""
    words = pd.Series(texts.dropna().unique(), dtype="str")
    return words.iloc[:: 1 + len(words) // SAMPLE].reset_index(drop=True)


def _best(readings: list[Reading]) -> Reading:
    """Returns the first of the readings with the largest share, and the notation of its first rival, if any."""
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
