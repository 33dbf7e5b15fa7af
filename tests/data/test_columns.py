"""Column kinds, one case each; and the conversions to numbers and words."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from mlp_lab.data.columns import Column, infer_columns, read_cells, to_numbers
from mlp_lab.data.notation import Notation, NotationSettings
from mlp_lab.data.readings import read_columns
from mlp_lab.data.tables import plain_columns
from mlp_lab.errors import UserError

ROWS = 100
NUMBERS = [f"{index / 7:.4f}" for index in range(ROWS)]

CASES: dict[str, tuple[list[Any], str]] = {
    "floats": ([index / 3 for index in range(ROWS)], "numeric"),
    "few integers": ([0, 1] * 50, "numeric"),
    "numbers as text": (NUMBERS, "numeric"),
    "numbers as text with a gap": ([*NUMBERS[1:], None], "numeric"),
    "numbers with a stray word": ([*NUMBERS[1:], "unknown"], "numeric"),
    "grades and a word": ([str(index % 12) for index in range(ROWS - 1)] + ["kindergarten"], "categorical"),
    "booleans": ([True, False] * 50, "categorical"),
    "words": (["red", "green"] * 50, "categorical"),
    "days": ([f"2024-{1 + index % 12:02d}-{1 + index % 28:02d}" for index in range(ROWS)], "date"),
    "timestamps": (list(pd.date_range("2024-01-01", periods=ROWS)), "date"),
    "almost days": (["2024-01-01"] * 99 + ["never"], "categorical"),
    "identifiers": ([f"customer {index}" for index in range(ROWS)], "dropped"),
    "constant": ([3.0] * ROWS, "dropped"),
    "constant with a gap": ([3.0] * 99 + [None], "numeric"),
}


def _judge(cells: list[Any], **settings: Any) -> Column:
    return infer_columns(plain_columns(pd.DataFrame({"x": cells})), **settings)[0]


@pytest.mark.parametrize(("cells", "kind"), list(CASES.values()), ids=list(CASES))
def test_kind(cells: list[Any], kind: str) -> None:
    assert _judge(cells).kind == kind


def test_a_declaration_wins() -> None:
    assert _judge([0, 1] * 50, categorical=["x"]).kind == "categorical"
    assert _judge([True, False] * 50, numeric=["x"]).kind == "numeric"
    assert _judge(CASES["identifiers"][0], categorical=["x"]).kind == "categorical"
    assert _judge([1.5] * 50, drop=["x"]) == Column(name="x", kind="dropped", note="by data.drop")


def test_a_stray_word_is_told_and_counts_as_missing() -> None:
    column = _judge([*NUMBERS[2:], None, "unknown"])
    assert column.stray
    assert column.missing == 2
    assert column.note == f"1 of {ROWS} rows not a number, such as 'unknown'"


def test_what_is_said_of_a_column() -> None:
    words = _judge(["b", "a", "b", None, "c", "d"])
    assert (words.missing, words.distinct) == (1, 4)
    assert words.values.startswith("b, ")
    assert words.values.endswith("…")
    assert _judge([1, 20_000]).values == "1 … 20,000"
    assert _judge([0.125, 20.5]).values == "0.125 … 20.5"
    assert _judge(["2024-01-31", "2023-01-31"]).values == "2023-01-31 … 2024-01-31"


def test_small_tables_keep_distinct_words() -> None:
    assert _judge([f"town {index}" for index in range(19)]).kind == "categorical"


def test_constant_pixels_are_kept_on_request() -> None:
    assert _judge([0.0] * 9, keep_constant=True).kind == "numeric"


def test_columns_without_a_name_are_dropped() -> None:
    frame = pd.DataFrame({"Unnamed: 0": [0, 1, 2], "x": [1.0, 2.0, 4.0]})
    assert [column.kind for column in infer_columns(frame)] == ["dropped", "numeric"]


def test_columns_without_values_are_refused_unless_dropped() -> None:
    frame = pd.DataFrame({"a": [1.0, 2.0], "b": [np.nan, np.nan], "c": [np.nan, np.nan]})
    with pytest.raises(UserError, match=r"no value in column\(s\) 'b', 'c' .* with --data\.drop '\[b, c\]'$"):
        infer_columns(frame)
    with pytest.raises(UserError, match=r"column\(s\) 'c' .* with --data\.drop '\[z, b, c\]'$"):
        infer_columns(frame, drop=["z", "b"])
    assert [column.kind for column in infer_columns(frame, drop=["b", "c"])] == ["numeric", "dropped", "dropped"]


def test_column_without_name_and_values_is_dropped() -> None:
    frame = pd.DataFrame({"a": [1.0, 2.0], "Unnamed: 1": [np.nan, np.nan]})
    assert [(column.kind, column.note) for column in infer_columns(frame)] == [
        ("numeric", ""),
        ("dropped", "no name in the header"),
    ]


def test_dates_are_seconds() -> None:
    texts = pd.Series(["1970-01-02", "2024-02-29T12:00:00Z", None], dtype="str")
    seconds = [86_400.0, 1_709_208_000.0]  # the second one from `date -d 2024-02-29T12:00Z +%s`
    assert to_numbers(texts, date=True)[:2].tolist() == seconds
    assert np.isnan(to_numbers(texts, date=True)[2])
    moments = pd.Series(pd.to_datetime(["1970-01-02", "2024-02-29T12:00:00", None], format="ISO8601"))
    assert to_numbers(moments, date=True)[:2].tolist() == seconds


@pytest.mark.parametrize(
    ("cells", "settings", "words"),
    [
        (["1", "abc", "3"], {}, r"column 'x', row 2: 'abc' is not a number"),
        ([1.0, 2.0, np.inf], {}, r"column 'x', row 3: inf is infinite"),
        (["1", "-inf"], {"stray": True}, r"column 'x', row 2: '-inf' is infinite"),
        (["2024-01-01", "soon"], {"date": True}, r"column 'x', row 2: 'soon' is not a date such as"),
    ],
)
def test_cells_that_are_no_numbers(cells: list[Any], settings: dict[str, bool], words: str) -> None:
    with pytest.raises(UserError, match=words):
        to_numbers(pd.Series(cells, name="x"), **settings)


def test_stray_cells_become_missing() -> None:
    assert np.isnan(to_numbers(pd.Series(["1", "abc"], name="x"), stray=True)).tolist() == [False, True]


def test_infer_columns_decides_kinds_on_all_rows_and_statistics_on_training_rows() -> None:
    cells = [*NUMBERS[1:], "n.a."]
    frame = plain_columns(pd.DataFrame({"x": cells}))
    for odd_row_trains in (True, False):
        training = np.arange(ROWS) < (ROWS if odd_row_trains else ROWS - 1)
        column = infer_columns(frame, training=training)[0]
        assert (column.kind, column.stray, column.missing) == ("numeric", True, int(odd_row_trains))
        assert column.note == f"1 of {ROWS} rows not a number, such as 'n.a.'"
    small = infer_columns(frame, training=np.arange(ROWS) < 7)[0]
    assert (small.values, small.distinct) == ("0.1429 … 1", 7)


def test_read_cells_reads_text_once_and_leaves_what_is_to_be_refused() -> None:
    frame = plain_columns(pd.DataFrame({"x": ["1,5", "2,5"], "when": ["31.12.2024", "01.01.2024"], "odd": ["1", "b"]}))
    readings = read_columns(frame, NotationSettings(), numeric=["odd"])
    read = read_cells(frame, infer_columns(frame, numeric=["odd"], readings=readings), readings)
    assert read["x"].tolist() == [1.5, 2.5]
    assert read["when"].dt.year.tolist() == [2024, 2024]
    assert read["odd"].tolist() == ["1", "b"]


def test_infer_columns_without_a_training_value_drops_the_column() -> None:
    frame = plain_columns(pd.DataFrame({"x": [None, None, 1.5], "z": [1, 2, 3]}))
    column = infer_columns(frame, training=np.array([True, True, False]))[0]
    assert (column.kind, column.note) == ("dropped", "no training row has a value")


@pytest.mark.parametrize(
    ("cells", "kind", "words"),
    [
        (["$1,234.50", "$7.00", "$8.25"], "numeric", "all are numbers, such as '$1,234.50'"),
        (["31.12.2024", "01.01.2024", "02.01.2024"], "date", "all are dates, %d.%m.%Y"),
        ([*NUMBERS[8:], *["-"] * 8], "numeric", "92% are numbers"),
        (["2024-12-31", "2024-01-01", "-"], "date", "66.6% are dates"),
    ],
)
def test_infer_columns_of_a_notation_says_how_it_is_read(cells: list[str], kind: str, words: str) -> None:
    column = _judge(cells)
    assert (column.kind, column.how) == (kind, words)


def test_infer_columns_tells_free_text_from_identifiers() -> None:
    sentences = [f"the parcel number {index} arrived late" for index in range(ROWS)]
    assert _judge(sentences).note == "free text: nearly all distinct"
    assert _judge([*sentences[:70], *["no remarks at all today"] * 30]).note == "free text"
    assert _judge(CASES["identifiers"][0]).note == "an identifier: nearly all distinct"


def test_infer_columns_keeps_zip_codes_as_categories() -> None:
    column = _judge(["01234", "90210", "10001", "01234"])
    assert (column.kind, column.values) == ("categorical", "01234, 90210, 10001")


def test_infer_columns_remarks_on_levels_that_differ_in_case_and_on_far_dates() -> None:
    assert _judge(["Basic", "basic", "Plus"]).remarks == (
        "x: categories 'Basic' and 'basic' differ only in case or spaces; if they mean the same, write them in one way "
        "in the file",
    )
    (remark,) = _judge(["2024-01-01", "9999-12-31", "9999-12-31"]).remarks
    assert remark.startswith("x: 2 training rows have the date 9999-12-31; if it means that there is none")


def test_infer_columns_of_row_numbers_advises_to_drop_them() -> None:
    frame = pd.DataFrame({"id": range(7, 107), "gap": [*range(99), 100], "again": [0, *range(99)], "a b": "w"})
    columns = infer_columns(frame, drop=["a b"])
    assert columns[0].kind == "numeric"
    assert columns[0].remarks == (
        "id: each row has its own whole number, 7 … 106; if it only numbers the rows, leave it out with "
        "--data.drop '[\"a b\", id]'",
    )
    assert columns[1].remarks == columns[2].remarks == ()
    assert infer_columns(frame, numeric=["id"])[0].remarks == ()


def test_to_numbers_of_far_dates_are_exact_seconds() -> None:
    texts = pd.Series(["9999-12-31", "0001-01-01"], dtype="str", name="x")
    assert to_numbers(texts, date=True).tolist() == [253_402_214_400.0, -62_135_596_800.0]


def test_to_numbers_of_a_notation_names_it_in_the_error() -> None:
    notation = Notation(decimal=",", thousands=".")
    cells = pd.Series(["1.234,5", "1,234.5"], dtype="str", name="x")
    with pytest.raises(UserError, match=r"row 2: '1,234\.5' is not a number as the column has them \(decimal ','\)"):
        to_numbers(cells, notation=notation)
    dates = pd.Series(["12/31/2024"], dtype="str", name="x")
    with pytest.raises(UserError, match=r"'12/31/2024' is not a date of the format %d\.%m\.%Y"):
        to_numbers(dates, date=True, notation=Notation(date_format="%d.%m.%Y"))
