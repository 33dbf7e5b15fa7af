"""Categories: which spellings are one level, and which are not."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from mlp_lab.data.levels import FORMS, Levels, alike, to_text
from mlp_lab.data.tables import plain_columns


def _cells(*cells: Any) -> pd.Series:
    return plain_columns(pd.DataFrame({"x": list(cells)}))["x"]


@pytest.mark.parametrize(
    ("cells", "names", "form"),
    [
        (("3.1", "3.10", "3.9"), ("3.1", "3.10", "3.9"), "text"),
        (("001", "1", "x"), ("001", "1", "x"), "text"),
        (("1.0", "1.0", "1", "2"), ("1.0", "2"), "whole"),
        (("true", "False", "true"), ("False", "true"), "boolean"),
        ((True, False), ("False", "True"), "boolean"),
        ((1.0, 2.5, None), ("1", "2.5"), "number"),
        ((2**63 + 1, 2**63 + 3), ("9223372036854775809", "9223372036854775811"), "number"),
    ],
)
def test_levels_of_a_column(cells: tuple[Any, ...], names: tuple[str, ...], form: str) -> None:
    assert Levels.fit(_cells(*cells)) == Levels(names=names, form=form)


def test_levels_of_a_declared_column_are_all_spellings() -> None:
    assert Levels.fit(_cells("1", "1.0"), exact=True).names == ("1", "1.0")


@pytest.mark.parametrize(
    ("names", "form", "words", "codes"),
    [
        (("1", "2"), "whole", ["1.0", "2", "02", "3"], [0, 1, -1, -1]),
        (("1", "1.0"), "whole", ["1.0", "1", "1.00"], [1, 0, -1]),
        (("2.5", "3"), "number", ["2.50", "3.0", "03"], [0, 1, 1]),
        (("false", "true"), "boolean", ["TRUE", "False", "0"], [1, 0, -1]),
        (("3.1",), "text", ["3.10", "3.1"], [-1, 0]),
        (("3.1", "True"), "old", ["3.10", "true"], [0, 1]),
    ],
)
def test_levels_encode_other_spellings_only_where_the_form_says_so(
    names: tuple[str, ...], form: str, words: list[str], codes: list[int]
) -> None:
    assert Levels(names=names, form=form).encode(pd.Series(words, dtype="str")).tolist() == codes


@pytest.mark.parametrize("form", list(FORMS))
def test_levels_encode_missing_words_as_unknown(form: str) -> None:
    assert Levels(names=("a",), form=form).encode(pd.Series([None, "a", "b"], dtype="str")).tolist() == [-1, 0, -1]


def test_to_text_keeps_text_and_writes_numbers_without_trailing_zeros() -> None:
    assert to_text(pd.Series(["3.10", "TRUE", "007"], dtype="str")).tolist() == ["3.10", "TRUE", "007"]
    assert to_text(pd.Series([1.0, 0.25, np.nan])).tolist()[:2] == ["1", "0.25"]
    assert to_text(pd.Series([2**64 - 1], dtype="uint64")).tolist() == ["18446744073709551615"]


def test_alike_names_groups_that_differ_in_case_or_spaces() -> None:
    assert alike(["Basic", "basic", "New York", "NewYork", "x"]) == ["'Basic' and 'basic'", "'New York' and 'NewYork'"]
