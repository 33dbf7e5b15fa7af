"""Which column plays which part, and one line for every wrong name."""

from __future__ import annotations

from typing import Any

import pandas as pd
import pytest

from mlp_lab.data.roles import Roles
from mlp_lab.data.sources import NamedTable, Source
from mlp_lab.errors import UserError

COLUMNS = ["customerID", "age", "fold", "income"]


def _source(named: NamedTable | None = None) -> Source:
    frame = pd.DataFrame({name: [1, 2] for name in COLUMNS})
    return Source(label="people.csv", frames=(frame,), fingerprints=("0",), named=named)


def test_features_are_what_is_left() -> None:
    roles = Roles.settle(_source(), target=["income"], split_column="fold", drop=["customerID"])
    assert roles == Roles(target=("income",), features=("customerID", "age"), drop=("customerID",))


def test_a_named_table_knows_its_own() -> None:
    named = NamedTable(target="income", task="binary", drop=("customerID", "absent"))
    roles = Roles.settle(_source(named))
    assert (roles.target, roles.drop) == (("income",), ("customerID",))
    assert Roles.settle(_source(named), target=["age"], drop=["customerID"]).target == ("age",)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (
            {},
            "data.target: name the column of people.csv to predict, such as --data.target income; it has customerID, ",
        ),
        ({"target": ["incom"]}, "data.target: people.csv has no column 'incom' (did you mean 'income'?); it has"),
        ({"target": [False]}, "data.target: False is not a column name; YAML reads no, yes, on and off as booleans"),
        ({"target": ["income"], "drop": ["income"]}, "data.drop: 'income' is already in data.target"),
        ({"target": ["income"], "split_column": "income"}, "data.split_column: 'income' is already in data.target"),
        ({"target": ["income"], "split_column": "folds"}, "data.split_column: people.csv has no column 'folds'"),
        ({"target": ["income"], "numeric": ["ages"]}, "data.numeric: people.csv has no column 'ages'"),
        (
            {"target": ["income"], "numeric": ["age"], "categorical": ["age"]},
            "data.categorical: 'age' is already in data.numeric",
        ),
        (
            {"target": ["age"], "numeric": ["age"], "categorical": ["age"]},
            "data.categorical: 'age' is already in data.numeric",
        ),
        ({"target": ["age", "age"]}, "data.target: 'age' is already in data.target"),
    ],
)
def test_wrong_names(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(UserError) as caught:
        Roles.settle(_source(), **settings)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_roles_of_a_target_may_declare_its_type() -> None:
    text = Roles.settle(_source(), target=["income"], categorical=["income"])
    assert (text.target_is_text, text.target_is_number) == (True, False)
    assert "income" not in text.features
    number = Roles.settle(_source(), target=["income"], numeric=["income"])
    assert (number.target_is_text, number.target_is_number) == (False, True)
    text.check_task("multiclass")
    with pytest.raises(UserError, match=r"data\.categorical: 'income' is the target of a regression"):
        text.check_task("regression")


def test_a_wide_table_is_not_listed_whole() -> None:
    frame = pd.DataFrame({f"column {index}": [0] for index in range(500)})
    source = Source(label="wide.csv", frames=(frame,), fingerprints=("0",))
    with pytest.raises(UserError, match=r"column 29, … \(500 columns\)$"):
        Roles.settle(source)
