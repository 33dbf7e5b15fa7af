"""The printed page: what a stranger reads before training."""

from __future__ import annotations

import io
from typing import Any

import pytest
from rich.console import Console

from mlp_lab.data.columns import Column
from mlp_lab.data.description import Description, print_columns, print_description, print_fitted, target_words
from mlp_lab.data.spec import DataSpec
from mlp_lab.data.splits import Duplicates

BINARY = DataSpec(
    task="binary",
    numeric=("age",),
    classes=("no", "yes"),
    class_counts=(750, 250),
    targets=("churn",),
    rows=(1000, 100, 50),
)


def _page(description: Description, width: int = 80) -> str:
    stream = io.StringIO()
    print_description(description, Console(file=stream, width=width))
    return stream.getvalue()


def _columns(columns: list[Column], width: int = 80, image_shape: tuple[int, ...] = ()) -> str:
    stream = io.StringIO()
    print_columns("people.csv", columns, image_shape, Console(file=stream, width=width))
    return stream.getvalue()


def _describe(spec: DataSpec = BINARY, **facts: Any) -> Description:
    settings: dict[str, Any] = {
        "inferred": True,
        "scaling": "robust: zero median",
        "split": "stratified by class, seed 3",
        "duplicates": Duplicates(val=1, test=2),
        "batch_size": 128,
    }
    return Description(spec=spec, **settings | facts)


def test_print_columns_wraps_the_reason_why_a_column_is_dropped() -> None:
    long = Column(name="a column with a long name", kind="dropped", note="an identifier: nearly all distinct")
    assert "distinct" in _columns([long]).splitlines()[-1]


def test_the_page_says_it_all() -> None:
    columns = [
        Column(name="age", kind="numeric", missing=1234, distinct=70, values="17 … 90"),
        Column(name="id", kind="dropped", note="an identifier: nearly all distinct"),
    ]
    page = " ".join((_columns(columns, width=200) + _page(_describe(unused=7), width=200)).split())
    for words in (
        "people.csv, feature columns: 1 numeric, 1 dropped",
        "age numeric 1,234 70 17 … 90",
        "id dropped an identifier: nearly all distinct",
        "robust: zero median",
        "churn: binary, 2 classes (inferred; data.task overrides); no 75.0%, yes 25.0%",
        "1,000 train, 100 validation, 50 test (stratified by class, seed 3)",
        "7 rows have no target",
        "1 validation rows are exact copies of training rows, 2 test rows of training or validation rows",
    ):
        assert words in page


def test_the_page_keeps_to_its_width_and_markup_is_text() -> None:
    columns = [Column(name="[red]" + "long name " * 5, kind="categorical", values="[bold]value[/bold], " * 20)]
    page = _columns(columns) + _page(_describe())
    assert max(len(line) for line in page.splitlines()) <= 80
    assert "[red]" in page


def test_table_of_the_target_alone_has_an_empty_page() -> None:
    file = io.StringIO()
    print_columns("t.csv", [], console=Console(file=file, width=80))
    assert file.getvalue().startswith("data    t.csv, feature columns:")


def test_a_wide_table_is_cut_short() -> None:
    page = _columns([Column(name=f"x{index}", kind="numeric") for index in range(100)])
    assert "and 60 more: 60 numeric" in page
    assert "x39" in page
    assert "x40" not in page


def test_images_are_not_listed_pixel_by_pixel() -> None:
    page = _columns([Column(name="pixel", kind="numeric")] * 64, image_shape=(8, 8))
    assert "images of 8 × 8 pixels" in page
    assert "pixel " not in page


def test_long_lines_are_aligned_under_their_first_word() -> None:
    lines = _page(_describe(), width=60).splitlines()
    assert lines[1:3] == [
        "target  churn: binary, 2 classes (inferred; data.task",
        "        overrides); no 75.0%, yes 25.0%",
    ]
    assert all(line == line.rstrip() for line in lines)


def test_smaller_training_set_says_of_how_many_rows() -> None:
    assert "1,000 of 4,000 train, 100 validation" in _page(_describe(left_out=3000))
    assert " of " not in _page(_describe(duplicates=None)).splitlines()[-1]


def test_batch_of_more_than_the_training_rows_is_noted() -> None:
    page = " ".join(_page(_describe(batch_size=1001)).split())
    assert "data.batch_size: 1,001 is more than the 1,000 training rows; each step trains on all of them" in page
    assert "batch_size" not in _page(_describe(batch_size=1000))


def test_regression_is_told_in_its_own_unit() -> None:
    spec = DataSpec(task="regression", targets=("price",), target_mean=(206385.25,), target_std=(0.5,))
    assert target_words(spec, inferred=False) == "price: regression; mean 206,385, standard deviation 0.5"


def test_multilabel_shares_are_of_the_rows() -> None:
    labels = ("a", "b")
    spec = DataSpec(task="multilabel", classes=labels, targets=labels, class_counts=(5, 9), rows=(10, 0, 0))
    assert target_words(spec, inferred=False) == "a, b: multilabel, 2 labels; a 50.0%, b 90.0%"


def test_many_classes_are_told_by_their_least_and_largest_share() -> None:
    spec = DataSpec(
        task="multiclass", classes=tuple("abcde"), targets=("t",), class_counts=(1, 2, 2, 2, 3), rows=(10, 0, 0)
    )
    assert target_words(spec, inferred=False) == "t: multiclass, 5 classes; 10.0% to 30.0% of the rows each"


@pytest.mark.parametrize(
    ("rows", "note", "words"),
    [
        ({"predict": 1500}, "no target", "rows    1,500 new\nnote    no target\n"),
        ({"predict": 1500, "val": 1500, "test": 1500}, "", "rows    1,500 new\n"),
        ({"predict": 1500, "val": 9, "test": 9}, "", "rows    1,500 new, 9 of them with their target\n"),
        ({"train": 1500, "val": 9, "test": 8}, "", "rows    1,500 train, 9 validation, 8 test\n"),
    ],
)
def test_rows_that_a_checkpoint_prepares_are_counted(rows: dict[str, int], note: str, words: str) -> None:
    stream = io.StringIO()
    print_fitted("new.csv", rows, note, Console(file=stream, width=80))
    assert stream.getvalue() == f"data    new.csv, prepared as in the run\n{words}"
