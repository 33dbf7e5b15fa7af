"""Categories: cells as words, the levels of a column, and the words of other rows matched to these levels.

A word is matched as it is written. Two spellings are one level only where the training column says so: 2.50 is 2.5 in a
column of numbers, 1.0 is 1 in one of whole numbers, TRUE is true in one of booleans; in text, 3.10 is not 3.1.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

_WHOLE = re.compile(r"[+-]?(?:0|[1-9]\d*)(?:\.0*)?")


@dataclass(frozen=True, kw_only=True)
class Levels:
    """The levels of one column."""

    names: tuple[str, ...]
    """The words, sorted."""
    form: str
    """Name in `FORMS`: which other spellings mean the same level."""

    @classmethod
    def fit(cls, cells: pd.Series, *, exact: bool = False) -> Levels:
        """Returns the levels of a plain column.

        Args:
            cells: Training cells, (N,).
            exact: Keep every spelling as a level of its own (a column that is declared categorical). Else spellings of
                the same whole number or boolean become one level, which has the name that occurs most often.
        """
        words = to_text(cells).dropna()
        form = _form(cells, words)
        if exact or form == "text":
            return cls(names=tuple(sorted(words.unique())), form=form)
        counts = words.value_counts(sort=False).sort_index().sort_values(ascending=False, kind="stable")
        spelling: dict[str, str] = {}
        for word in counts.index:
            spelling.setdefault(FORMS[form](word), str(word))
        return cls(names=tuple(sorted(spelling.values())), form=form)

    def encode(self, words: pd.Series) -> NDArray[np.int64]:
        """Returns the place of each word among the names, (N,) int64, -1 for missing and unknown words."""
        codes = pd.Index(self.names, dtype="str").get_indexer(pd.Index(words)).astype(np.int64)  # (N,)
        unknown = (codes < 0) & words.notna().to_numpy()
        if self.form == "text" or not unknown.any():
            return codes
        key = FORMS[self.form]
        places = {key(name): place for place, name in enumerate(self.names)}
        twice = Counter(key(name) for name in self.names)
        taken = words[unknown].map(lambda word: places[key(word)] if twice[key(word)] == 1 else -1)
        codes[unknown] = taken.to_numpy(dtype=np.int64)
        return codes


ALIKE = "if they mean the same, write them in one way in the file"
"""What a user can do about names that `alike` returns."""


def to_text(cells: pd.Series) -> pd.Series:
    """Returns a plain column as words, NaN where missing: text as it is written, numbers without trailing zeros.

    >>> to_text(pd.Series([1.0, 2.5, float("nan")])).tolist()
    ['1', '2.5', nan]
    >>> to_text(pd.Series(["1.0", "007", "true"])).tolist()
    ['1.0', '007', 'true']
    """
    if isinstance(cells.dtype, pd.StringDtype):
        return cells
    codes, values = pd.factorize(cells)
    words = np.array([*(_word(value) for value in values), np.nan], dtype=object)
    return pd.Series(words[codes], index=cells.index, name=cells.name, dtype="str")


def alike(names: Iterable[str], limit: int = 3) -> list[str]:
    """Returns groups of names that differ only in case or spaces, each group as text.

    >>> alike(["Basic", "basic", "Plus"])
    ["'Basic' and 'basic'"]
    """
    groups: dict[str, list[str]] = {}
    for name in names:
        groups.setdefault(re.sub(r"\s+", "", name).casefold(), []).append(repr(name))
    return [f"{', '.join(group[:-1])} and {group[-1]}" for group in groups.values() if len(group) > 1][:limit]


def is_whole(word: str) -> bool:
    """Tells whether a word is a whole number; 007 is none, it is a code.

    >>> is_whole("12.0"), is_whole("007"), is_whole("2.5")
    (True, False, False)
    """
    return _WHOLE.fullmatch(word) is not None


def _form(cells: pd.Series, words: pd.Series) -> str:
    if pd.api.types.is_bool_dtype(cells):
        return "boolean"
    if pd.api.types.is_numeric_dtype(cells):
        return "number"
    distinct = [str(word) for word in words.unique()]
    if all(word.lower() in ("true", "false") for word in distinct):
        return "boolean"
    return "whole" if all(map(is_whole, distinct)) else "text"


def _word(value: object) -> str:
    if isinstance(value, float):
        return str(int(value)) if value.is_integer() else repr(float(value))
    return str(value).strip()


def _whole(word: str) -> str:
    digits = re.sub(r"\.0*$", "", word).removeprefix("+") if is_whole(word) else word
    return "0" if digits == "-0" else digits


def _number(word: str) -> str:
    if is_whole(word):  # exact, of any length
        return _whole(word)
    try:
        return _word(float(word))
    except (ValueError, OverflowError):
        return word


def _old(word: str) -> str:
    """Returns the one spelling that older checkpoints keep of a word."""
    if word.lower() in ("true", "false"):
        return word.capitalize()
    return word.rstrip("0").rstrip(".") if re.fullmatch(r"-?\d+\.\d+", word) else word


FORMS: dict[str, Callable[[str], str]] = {
    "text": str,
    "whole": _whole,
    "number": _number,
    "boolean": str.lower,
    "old": _old,
}
"""Forms of a column to the key that all spellings of one level share."""
