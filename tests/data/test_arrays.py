"""Rows that a user's own class returns, split and scaled like those of a table."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow
import pytest
import torch
from scipy.sparse import csr_matrix

from mlp_lab.data.arrays import ArrayDataModule
from mlp_lab.data.tabular import TabularDataModule
from mlp_lab.errors import UserError


def of(x: Any, y: Any, **settings: Any) -> ArrayDataModule:
    class Own(ArrayDataModule):
        def arrays(self) -> tuple[Any, Any]:
            return x, y

    return Own(verbose=False, seed=0, **settings)


RNG = np.random.default_rng(0)
X = RNG.normal(size=(200, 3))


@pytest.mark.parametrize(
    ("y", "task", "out"),
    [
        (X[:, 0] > 0, "binary", 1),
        (np.where(X[:, 0] > 0, "yes", "no"), "binary", 1),
        (np.digitize(X[:, 0], [-1, 0, 1]), "multiclass", 4),
        (X @ np.ones(3), "regression", 1),
        (torch.from_numpy(X[:, :2] * 2.5), "regression", 2),
        (pd.Series(np.where(X[:, 1] > 0, "b", "a"), name="label"), "binary", 1),
    ],
)
def test_task_is_inferred_from_y(y: Any, task: str, out: int) -> None:
    data = of(X, y)
    assert (data.spec.task, data.spec.out_features) == (task, out)
    assert data.spec.numeric == ("x0", "x1", "x2")
    assert data.spec.rows == (160, 20, 20)


def test_arrays_are_a_table_without_a_file(tmp_path: Path) -> None:
    y = np.where(X[:, 0] > 0, "yes", "no")
    frame = pd.DataFrame(X, columns=["x0", "x1", "x2"]).assign(y=y)
    frame.to_csv(tmp_path / "t.csv", index=False)
    table = TabularDataModule(path=str(tmp_path / "t.csv"), target="y", verbose=False, seed=0)
    data = of(X, y)
    for name in ("train", "val", "test"):
        torch.testing.assert_close(data.part(name).numeric, table.part(name).numeric)
        assert torch.equal(data.part(name).target, table.part(name).target)  # type: ignore[arg-type]


def test_frames_keep_their_names_and_categories_and_images_are_flattened() -> None:
    frame = pd.DataFrame({"size": X[:, 0], "town": np.where(X[:, 1] > 0, "Bern", "Chur")}, index=np.arange(200) * 7)
    data = of(frame, X[:, 0] > 0)
    assert (data.spec.numeric, data.spec.categorical) == (("size",), ("town",))
    assert of(RNG.normal(size=(50, 2, 4)), np.arange(50) % 2).spec.numeric == tuple(f"x{pixel}" for pixel in range(8))


@pytest.mark.parametrize(
    ("x", "y", "message"),
    [
        (X, X[:-1, 0], "data: .*Own.arrays returns 200 rows of X and 199 of y"),
        (pd.DataFrame({"y": X[:, 0]}), X[:, 0], "data: .* X and y that both have a column 'y'"),
        (X, 3, "data: .*Own.arrays returns Y as int; accepted: an array, a tensor or a data frame with one row per"),
        (csr_matrix(X), X[:, 0], "data: .*Own.arrays returns X as csr_matrix; accepted: an array, a tensor or a"),
        (X[:0], X[:0, 0], "data: .*Own.arrays returns no rows"),
        ([[1, 2], [3]], [0, 1], "data: .*Own.arrays returns X whose rows differ in length"),
        ({"a": [1, 2], "b": [3]}, [0, 1], "data: .*Own.arrays returns X that is no table "),
        (pd.DataFrame(X, columns=["a", "a", "b"]), X[:, 0], "data: .*Own.arrays returns X with two columns 'a'; "),
        (pd.DataFrame(X, columns=[0, "0", "b"]), X[:, 0], "data: .*Own.arrays returns X with two columns '0'; "),
    ],
)
def test_arrays_that_do_not_fit_are_refused(x: Any, y: Any, message: str) -> None:
    with pytest.raises(UserError, match=message):
        _ = of(x, y).spec


@pytest.mark.parametrize(("returned", "words"), [(X, "one ndarray"), ((X, X, X), "3 values"), (None, "one NoneType")])
def test_arrays_that_return_no_pair_are_refused(returned: Any, words: str) -> None:
    class Single(ArrayDataModule):
        def arrays(self) -> Any:
            return returned

    with pytest.raises(UserError, match=rf"^data: .*Single.arrays returns {words}; accepted: a pair \(X, y\)$"):
        _ = Single().spec


@pytest.mark.parametrize(
    "x",
    [
        X.astype(">f8"),
        X.astype(np.longdouble),
        X[::-1].copy()[::-1],
        pd.DataFrame(X).to_records(index=False),
        {str(column): X[:, column] for column in range(3)},
        pyarrow.table({str(column): X[:, column] for column in range(3)}),
    ],
    ids=["big endian", "long double", "reversed", "records", "dictionary", "arrow"],
)
def test_array_of_any_kind_holds_the_same_numbers(x: Any) -> None:
    y = X[:, 0] > 0
    assert torch.equal(of(x, y).part("train").numeric, of(X, y).part("train").numeric)


def test_bfloat16_tensor_is_read() -> None:
    rounded = torch.from_numpy(X).bfloat16()
    data, expected = of(rounded, X[:, 0] > 0), of(rounded.float(), X[:, 0] > 0)
    assert torch.equal(data.part("train").numeric, expected.part("train").numeric)


@pytest.mark.parametrize("dtype", [float, int])
def test_masked_numbers_are_missing(dtype: type) -> None:
    numbers = (X * 10).astype(dtype)
    masked = np.ma.MaskedArray(numbers, mask=np.arange(600).reshape(200, 3) % 5 == 0)
    frame = pd.DataFrame(masked.astype(float).filled(np.nan), columns=["x0", "x1", "x2"])
    data, expected = of(masked, X[:, 0] > 0), of(frame, X[:, 0] > 0)
    assert data.spec.numeric[-1] == "x2 is missing"
    assert torch.equal(data.part("train").numeric, expected.part("train").numeric)


def test_class_without_arrays_is_refused() -> None:
    with pytest.raises(UserError, match="data: ArrayDataModule has no method `arrays`; use a subclass"):
        _ = ArrayDataModule().spec
