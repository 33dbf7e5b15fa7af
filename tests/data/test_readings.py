"""What the columns of a whole table are, and how they settle each other's doubts."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest

from mlp_lab.data.notation import PLAIN, NotationSettings, plain_numbers
from mlp_lab.data.readings import ColumnReading, percent, read_columns
from mlp_lab.data.tables import plain_columns


def _read(settings: NotationSettings | None = None, **columns: list[Any]) -> dict[str, ColumnReading]:
    return read_columns(plain_columns(pd.DataFrame(columns)), settings or NotationSettings())


def _values(reading: ColumnReading) -> list[Any]:
    assert reading.values is not None
    return list(reading.values)


def test_read_columns_with_a_decimal_comma_elsewhere_reads_points_as_thousands() -> None:
    found = _read(price=["1,5", "2,75"], people=["1.234", "12.345"])
    assert _values(found["people"]) == [1234, 12345]
    assert "people: '1.234' is read as 1234; --data.decimal . reads it as 1.234" in found["people"].remarks


def test_read_columns_with_points_elsewhere_reads_commas_as_thousands() -> None:
    found = _read(weight=[0.5, 0.25], people=["1,234", "12,345"])
    assert _values(found["people"]) == [1234, 12345]
    assert found["people"].remarks == ("people: '1,234' is read as 1234; --data.decimal , reads it as 1.234",)
    assert _values(_read(NotationSettings(decimal=","), people=["1,234"])["people"]) == [1.234]


def test_read_columns_of_plain_thousandths_has_no_doubt() -> None:
    found = _read(weight=["1.234", "12.345"])["weight"]
    assert (_values(found), found.notation, found.remarks) == ([1.234, 12.345], PLAIN, ())


@pytest.mark.parametrize("cells", [["4.300", "900"], ["4.300", "7.700"], ["12.000", "7.000"]])
def test_read_columns_of_points_that_likely_group_thousands_names_the_key(cells: list[str]) -> None:
    income = _read(income=cells)["income"]
    assert income.remarks[0].startswith(
        f"income: '{cells[0]}' is read as {float(cells[0]):g}; --data.decimal , reads it"
    )
    assert plain_numbers(pd.Series(cells, dtype="str")).tolist() == cells, "the file's reader leaves it as text"
    read = _read(NotationSettings(decimal=","), income=cells)["income"]
    assert _values(read) == [float(cell.replace(".", "")) for cell in cells]


def test_read_columns_orders_days_as_the_other_date_columns() -> None:
    found = _read(clear=["31/12/2024", "01/01/2024"], unclear=["01/02/2024", "03/04/2024"])
    assert [moment.month for moment in _values(found["unclear"])] == [2, 4]
    alone = _read(unclear=["01/02/2024", "03/04/2024"])["unclear"]
    assert [moment.month for moment in _values(alone)] == [1, 3]
    assert alone.remarks == (
        "unclear: '01/02/2024' is read as 2024-01-02; --data.date_format %d/%m/%Y reads it as 2024-02-01",
    )


def test_read_columns_of_digits_are_dates_on_request() -> None:
    days = [20241231, 20240229]
    assert _read(day=days)["day"].kind == "numeric"
    assert _read(NotationSettings(date_format="%Y%m%d"), day=days)["day"].kind == "date"


@pytest.mark.parametrize(
    ("cells", "kind", "note"),
    [
        (["01234", "90210", "10001"], "categorical", "codes with leading zeros"),
        (["5", "007", *map(str, range(1, 200))], "numeric", ""),
        ([2**63 + 1, 2**63 + 3], "categorical", "whole numbers too long for exact arithmetic: codes"),
        (["9007199254740993", "9007199254740992", None], "categorical", "too long"),
        ([2**62, 2**61], "numeric", ""),
        (["1.5", "-", "2.5"], "numeric", ""),
        (["a1", "b2"], "categorical", ""),
        (["31.12.2024", "-"], "date", ""),
    ],
)
def test_read_columns_kind(cells: list[Any], kind: str, note: str) -> None:
    found = _read(x=cells)["x"]
    assert found.kind == kind
    assert note in found.note


def test_read_columns_remarks_on_units_and_spellings_of_one_number() -> None:
    assert _read(x=["$5", "€ 6", "7"])["x"].remarks == (
        "x: cells with $, no unit and € are read as numbers of one unit",
    )
    assert _read(v=["3.1", "3.10", "3.9"])["v"].remarks == (
        "v: '3.1' and '3.10' are the same number; --data.categorical '[v]' keeps them apart",
    )


def test_percent_says_all_only_of_all() -> None:
    assert [percent(share) for share in (1, 0.99999, 0.925, 0.0001, 0)] == [
        "100%",
        "99.9%",
        "92.5%",
        "under 0.1%",
        "0%",
    ]
    assert percent(float(np.mean([True, True, False]))) == "66.6%"
