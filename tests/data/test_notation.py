"""Numbers and dates in the notations of several countries, one case each."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from mlp_lab.data.notation import (
    PLAIN,
    Notation,
    NotationSettings,
    find_dates,
    find_numbers,
    is_readable,
    plain_numbers,
    read_dates,
)
from mlp_lab.errors import UserError

ANY = NotationSettings()


def _text(*cells: str | None) -> pd.Series:
    return pd.Series(list(cells), dtype="str", name="x")


@pytest.mark.parametrize(
    ("cells", "values", "notation"),
    [
        (("12", "3.5", "-1e3"), [12, 3.5, -1000], PLAIN),
        (("$1,234.50", "-$3", "($2.00)"), [1234.5, -3, -2], Notation(thousands=",")),
        (("1,234,567", "12"), [1234567, 12], Notation(thousands=",")),
        (("12%", "3.5 %"), [12, 3.5], Notation(thousands=",")),
        (("0,1257", "-3,5"), [0.1257, -3.5], Notation(decimal=",", thousands=".")),
        (("1.234,50 €", "7 EUR"), [1234.5, 7], Notation(decimal=",", thousands=".")),
        (("1\u202f234,5", "1 000 000"), [1234.5, 1e6], Notation(decimal=",", thousands=" ")),
        (("CHF 1'234.50", "2"), [1234.5, 2], Notation(thousands="'")),
        (("12,34,567", "3"), [1234567, 3], Notation(thousands=",")),
        (("\u2212" + "1,234.5",), [-1234.5], Notation(thousands=",")),
    ],
)
def test_find_numbers_of_a_notation_reads_every_cell(
    cells: tuple[str, ...], values: list[float], notation: Notation
) -> None:
    reading = find_numbers(_text(*cells), ANY)
    assert (reading.values.tolist(), reading.notation, reading.share) == (values, notation, 1.0)
    assert reading.other is None


@pytest.mark.parametrize("cell", ["1,2,3", "1,23", "12.34.56", "12 apples", "$", "1-2", "3.10.1", "1 2"])
def test_find_numbers_with_thousands_commas_refuses(cell: str) -> None:
    assert find_numbers(_text(cell), NotationSettings(decimal=".", thousands=",")).share == 0


def test_find_numbers_of_two_readings_prefers_the_given_decimal_and_names_the_other() -> None:
    cells = _text("1,234", "12,345")
    points, commas = find_numbers(cells, ANY), find_numbers(cells, ANY, decimal=",")
    assert (points.values.tolist(), commas.values.tolist()) == ([1234, 12345], [1.234, 12.345])
    assert points.other == commas.notation
    assert find_numbers(cells, NotationSettings(decimal=",")).values.tolist() == [1.234, 12.345]
    assert find_numbers(_text("1.234"), ANY, decimal=",").values.tolist() == [1234]


@pytest.mark.parametrize(
    ("cells", "moments", "date_format"),
    [
        (("31.12.2024", "1.2.2024"), ["2024-12-31", "2024-02-01"], "%d.%m.%Y"),
        (("12/31/2024", "01/02/2024"), ["2024-12-31", "2024-01-02"], "%m/%d/%Y"),
        (("31/12/2024", "01/02/2024"), ["2024-12-31", "2024-02-01"], "%d/%m/%Y"),
        (("31.12.2024 17:30", "01.02.2024"), ["2024-12-31 17:30", "2024-02-01"], "%d.%m.%Y"),
        (("12/31/2024 5:30 PM", "1/2/2024 12:00 AM"), ["2024-12-31 17:30", "2024-01-02"], "%m/%d/%Y"),
        (("2024-12-31", "9999-12-31"), ["2024-12-31", "9999-12-31"], "ISO8601"),
        (("2024-12-31T10:00:00.123456789Z", "9999-12-31"), ["2024-12-31 10:00:00.123456", "9999-12-31"], "ISO8601"),
        (("2024-12-31T10:00+02:00",), ["2024-12-31 08:00"], "ISO8601"),
        (("31.12.9999", "01.01.0800"), ["9999-12-31", "0800-01-01"], "%d.%m.%Y"),
        (("2024/12/31",), ["2024-12-31"], "%Y/%m/%d"),
        (("2024-1-5",), ["2024-01-05"], "%Y-%m-%d"),
        (("3 Mar 2024",), ["2024-03-03"], "%d %b %Y"),
        (("March 3, 2024",), ["2024-03-03"], "%B %d %Y"),
        (("31-Dec-24",), ["2024-12-31"], "%d-%b-%y"),
    ],
)
def test_find_dates_of_a_format_reads_every_cell(cells: tuple[str, ...], moments: list[str], date_format: str) -> None:
    reading = find_dates(_text(*cells), ANY)
    assert reading is not None
    assert reading.notation.date_format == date_format
    assert [str(moment).removesuffix(" 00:00:00") for moment in reading.values] == [
        str(np.datetime64(moment, "us").item()).removesuffix(" 00:00:00") for moment in moments
    ]


def test_find_dates_of_two_readings_follows_other_columns_and_the_user() -> None:
    cells = _text("01/02/2024", "03/04/2024")
    month_first, day_first = find_dates(cells, ANY), find_dates(cells, ANY, day_first=True)
    assert month_first is not None
    assert day_first is not None
    assert month_first.other == day_first.notation == Notation(date_format="%d/%m/%Y")
    given = find_dates(cells, NotationSettings(date_format="%d/%m/%Y"))
    assert given is not None
    assert given.other is None
    assert given.values.dt.day.tolist() == [1, 3]


@pytest.mark.parametrize("cells", [("3.9.12", "3.10.4"), ("10-20", "30-40"), ("red", "green"), ("555-1234-99",)])
def test_find_dates_of_other_text_finds_none(cells: tuple[str, ...]) -> None:
    reading = find_dates(_text(*cells), ANY)
    assert reading is None or reading.share == 0


def test_read_dates_of_missing_and_strange_cells_are_missing() -> None:
    moments = read_dates(_text("31.12.2024", None, "never", "31.02.2024"), "%d.%m.%Y")
    assert moments.isna().tolist() == [False, True, True, True]


@pytest.mark.parametrize(
    ("strays", "known", "distinct", "readable"),
    [
        (["-"] * 8, 92, 92, True),
        (["-"] * 8, 92, 5, True),
        (["unknown"] * 40, 60, 60, True),
        (["a", "b", "c", "d", "e"], 95, 95, True),
        (["a", "b", "c", "d", "e", "f"], 94, 94, False),
        (["low"], 99, 5, False),
        (["-"] * 60, 40, 40, False),
    ],
)
def test_is_readable_of_numbers_among_strays(strays: list[str], known: int, distinct: int, readable: bool) -> None:
    cells = _text(*(str(index % distinct) for index in range(known)), *strays)
    assert is_readable(cells, pd.to_numeric(cells, errors="coerce")) == readable


@pytest.mark.parametrize(
    ("cells", "dtype"),
    [
        (("1", "2"), "int64"),
        (("1", None), "float64"),
        (("1.0", "2.5"), "float64"),
        (("18446744073709551615", "1"), "uint64"),
        (("9007199254740993", None), "str"),
        (("99999999999999999999", "1"), "str"),
        (("01234", "12345"), "str"),
        (("0.5", "0"), "float64"),
        (("3.1", "3.10"), "str"),
        (("1.234", "12.345"), "str"),
        (("1.234", "0.5"), "float64"),
        (("1", "x"), "str"),
        ((None, None), "float64"),
    ],
)
def test_plain_numbers_keep_text_where_something_would_be_lost(cells: tuple[str | None, ...], dtype: str) -> None:
    assert plain_numbers(_text(*cells)).dtype == dtype


def test_plain_numbers_are_rounded_as_python_rounds() -> None:
    values = np.random.default_rng(0).normal(size=500)
    assert plain_numbers(_text(*map(repr, values.tolist()))).tolist() == values.tolist()


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"decimal": ";"}, "data.decimal: ';' is not accepted; use one of '.', ','"),
        ({"thousands": "x"}, "data.thousands: 'x' is not accepted"),
        ({"thousands": "."}, "data.thousands: '.' is the decimal character too; set data.decimal ','"),
        ({"date_format": "%H"}, "data.date_format: '%H' is not a date format; use for example %d.%m.%Y or ISO8601"),
        ({"date_format": "dd.mm.yyyy"}, "data.date_format: 'dd.mm.yyyy' is not a date format"),
    ],
)
def test_notation_settings_refuse_in_one_line(settings: dict[str, str], words: str) -> None:
    with pytest.raises(UserError) as caught:
        NotationSettings(**settings)
    assert words in str(caught.value)
