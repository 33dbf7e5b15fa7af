"""Tasks inferred from targets, and targets as codes or standardised values."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch

from mlp_lab.data.notation import Notation, NotationSettings
from mlp_lab.data.readings import read_columns
from mlp_lab.data.tables import plain_columns
from mlp_lab.data.targets import Target, check_task, explain_task, fit_target, infer_task
from mlp_lab.errors import UserError


def _frame(**columns: list[Any]) -> pd.DataFrame:
    return plain_columns(pd.DataFrame(columns))


CASES: dict[str, tuple[dict[str, list[Any]], str]] = {
    "two words": ({"y": ["no", "yes", "no"]}, "binary"),
    "three words": ({"y": ["a", "b", "c"]}, "multiclass"),
    "booleans": ({"y": [True, False]}, "binary"),
    "zero and one": ({"y": [0, 1, 1]}, "binary"),
    "zero and one beside a gap": ({"y": [0, 1, None]}, "binary"),
    "few whole numbers": ({"y": list(range(20)) * 2}, "multiclass"),
    "many whole numbers": ({"y": list(range(21)) * 2}, "regression"),
    "whole numbers that mostly occur once": ({"y": [100, 250, 310, 420, 90, 800, 150, 75, 610, 330]}, "regression"),
    "numbers as text": ({"y": ["50.38", "49.6", "50.38", "12"]}, "regression"),
    "decimal commas": ({"y": ["50,38", "49,6", "50,38", "12,5"]}, "regression"),
    "codes with leading zeros": ({"y": ["001", "002", "003"] * 2}, "multiclass"),
    "long integers": ({"y": [2**53, 2**53 + 1] * 3}, "binary"),
    "booleans in two spellings": ({"y": ["true", "True", "false"]}, "binary"),
    "fractions": ({"y": [0.0, 0.5, 1.0]}, "regression"),
    "several labels": ({"a": [0, 1], "b": [True, False], "c": [1.0, 0.0]}, "multilabel"),
    "several numbers": ({"a": [0, 1], "b": [0.5, 2.0]}, "regression"),
}


@pytest.mark.parametrize(("columns", "task"), list(CASES.values()), ids=list(CASES))
def test_inferred_task(columns: dict[str, list[Any]], task: str) -> None:
    assert infer_task(_frame(**columns)) == task


def test_classes_are_sorted_as_numbers_or_words() -> None:
    numbers = fit_target(_frame(y=[10, 9, 2, 10]), ["y"], "multiclass")
    assert (numbers.classes, numbers.counts) == (("2", "9", "10"), (1, 1, 2))
    words = fit_target(_frame(y=["b", "a", "10", "9"]), ["y"], "multiclass")
    assert words.classes == ("10", "9", "a", "b")


@pytest.mark.parametrize(
    ("cells", "exact", "classes"),
    [
        (["001", "002", "002"], False, ("001", "002")),
        (["true", "false"], False, ("false", "true")),
        (["1.0", "2.0", "2"], False, ("1.0", "2")),
        (["1.0", "2.0", "2"], True, ("1.0", "2", "2.0")),
        (["3.10", "3.1", "3.9"], False, ("3.1", "3.10", "3.9")),
        ([2**64 - 1, 2**63 + 5, 7], False, ("7", "9223372036854775813", "18446744073709551615")),
    ],
)
def test_fit_target_keeps_the_spelling_of_classes(cells: list[Any], exact: bool, classes: tuple[str, ...]) -> None:
    target = fit_target(_frame(y=cells), ["y"], "multiclass", exact=exact)
    assert target.classes == classes
    assert sum(target.counts) == len(cells)


def test_fit_target_of_a_notation_keeps_it_for_new_rows() -> None:
    written = {"y": Notation(decimal=",", thousands=".")}
    target = Target.from_state(
        fit_target(_frame(y=["1.000,5", "2"]), ["y"], "regression", notations=written).to_state()
    )
    assert target.mean == (501.25,)
    np.testing.assert_allclose(target.encode(_frame(y=["1.000,5"])), [[1.0]], rtol=1e-6)


def test_state_of_an_older_target_matches_the_spellings_that_it_matched() -> None:
    old = Target.from_state({"task": "binary", "columns": ("y",), "classes": ("1", "True"), "counts": (2, 1)})
    assert old.encode(_frame(y=["1.0", "TRUE"])).tolist() == [0, 1]


def test_explain_task_says_from_what_and_how_to_change_it() -> None:
    frame = _frame(y=[1, 2, 2, 1])
    readings = read_columns(frame, NotationSettings())
    assert explain_task(frame, readings, "binary") == (
        "the task binary is inferred from 2 distinct whole numbers in 4 rows; --data.task regression changes it"
    )
    words = _frame(y=["a", "b"])
    assert explain_task(words, read_columns(words, NotationSettings()), "binary") == ""


def test_codes_do_not_depend_on_the_type_of_the_column() -> None:
    target = fit_target(_frame(y=[0, 1, 1]), ["y"], "binary")
    for cells in ([1, 0], [1.0, 0.0], ["1", "0"], ["1.0", "0.0"]):
        codes = target.encode(_frame(y=cells))
        assert codes.dtype == torch.int64
        assert codes.tolist() == [1, 0]


def test_regression_targets_are_standardised_and_come_back() -> None:
    frame = _frame(a=[1.0, 2.0, 6.0], b=[1e6, 2e6, 4e6])
    target = fit_target(frame, ["a", "b"], "regression")
    encoded = target.encode(frame)
    assert encoded.dtype == torch.float32
    np.testing.assert_allclose(encoded.double().mean(dim=0), 0, atol=1e-6)  # float32
    np.testing.assert_allclose(encoded.double().std(dim=0, correction=0), 1, rtol=1e-6)
    restored = encoded.double().numpy() * np.array(target.std) + np.array(target.mean)
    np.testing.assert_allclose(restored, frame.to_numpy(), rtol=1e-6)


def test_labels_are_zero_or_one() -> None:
    frame = _frame(a=[0, 1, 1], b=["true", "false", "true"])
    target = fit_target(frame, ["a", "b"], "multilabel")
    assert target.encode(frame).tolist() == [[0.0, 1.0], [1.0, 0.0], [1.0, 1.0]]
    assert (target.classes, target.counts) == (("a", "b"), (2, 2))


@pytest.mark.parametrize(
    ("columns", "task", "words"),
    [
        ({"y": [1, 1, 1]}, "multiclass", "'y' is 1 in every training row; there is nothing to predict"),
        ({"y": [2.5, 2.5]}, "regression", "'y' is 2.5 in every training row"),
        ({"y": [0.5, 1.5], "z": [3.0, 3.0]}, "regression", "'z' is 3.0 in every training row"),
        ({"y": ["a", "b", "c"]}, "binary", "needs two classes, 'y' has 3 (a, b, c); use --data.task multiclass"),
        ({"y": ["1", "high"]}, "regression", "column 'y', row 2: 'high' is not a number"),
        ({"y": [0.5, np.inf]}, "regression", "column 'y', row 2: inf is infinite"),
        ({"y": [1.0, 1e308, -1e308]}, "regression", "column 'y', row 2: 1e+308 is too large for a standard deviation"),
        ({"y": [1e-300, 2e-300]}, "regression", "column 'y', row 2: 2e-300 is too small for a standard deviation"),
        ({"y": [0, 1], "z": [0, 1]}, "binary", "has one target column, data.target names 2 (y, z)"),
        ({"y": [0, 1], "z": [0, 2]}, "multilabel", "'z' holds '2', a multilabel target is 0 or 1"),
        ({"y": [1.0, None, None]}, "regression", "'y' is missing in 2 of 3 rows, first in row 2"),
        ({"y": ["a", "b", None]}, "binary", "--data.drop_missing_target true"),
    ],
)
def test_targets_that_do_not_fit(columns: dict[str, list[Any]], task: Any, words: str) -> None:
    with pytest.raises(UserError) as caught:
        fit_target(_frame(**columns), list(columns), task)
    assert words in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_class_that_training_never_saw_is_refused() -> None:
    target = fit_target(_frame(y=["a", "b"]), ["y"], "binary")
    with pytest.raises(
        UserError, match=r"column 'y', row 2: 'c' is the class of no training row; the classes are a, b"
    ):
        target.encode(_frame(y=["a", "c"]))


def test_an_unknown_task_is_refused() -> None:
    check_task("auto")
    with pytest.raises(UserError, match=r"data\.task: 'regresion' is unknown \(did you mean 'regression'\?\)"):
        check_task("regresion")


def test_the_state_survives_a_checkpoint() -> None:
    target = fit_target(_frame(y=[0.5, 1.5, 4.0]), ["y"], "regression")
    buffer = io.BytesIO()
    torch.save(target.to_state(), buffer)
    buffer.seek(0)
    assert Target.from_state(torch.load(buffer, weights_only=True)) == target
