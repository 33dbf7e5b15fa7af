"""The printed page: what a stranger reads before training."""

from __future__ import annotations

import io

from rich.console import Console

from mlp_lab.data.columns import Column
from mlp_lab.data.description import Description, print_description, print_fitted, target_words
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


def _describe(columns: list[Column], spec: DataSpec = BINARY, unused: int = 0) -> Description:
    return Description(
        label="people.csv",
        spec=spec,
        columns=columns,
        inferred=True,
        scaling="robust",
        split="stratified by class, seed 3",
        duplicates=Duplicates(val=1, test=2),
        unused=unused,
    )


def test_the_page_says_it_all() -> None:
    columns = [
        Column(name="age", kind="numeric", missing=1234, distinct=70, values="17 … 90"),
        Column(name="id", kind="dropped", note="an identifier: nearly all distinct"),
    ]
    page = " ".join(_page(_describe(columns, unused=7), width=200).split())
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
    page = _page(_describe(columns), width=80)
    assert max(len(line) for line in page.splitlines()) <= 80
    assert "[red]" in page


def test_a_wide_table_is_cut_short() -> None:
    page = _page(_describe([Column(name=f"x{index}", kind="numeric") for index in range(100)]))
    assert "and 60 more: 60 numeric" in page
    assert "x39" in page
    assert "x40" not in page


def test_images_are_not_listed_pixel_by_pixel() -> None:
    spec = DataSpec(
        task="multiclass",
        image_shape=(8, 8),
        classes=("0", "1"),
        class_counts=(5, 5),
        targets=("digit",),
        rows=(10, 0, 0),
    )
    page = _page(_describe([Column(name="pixel", kind="numeric")] * 64, spec))
    assert "images of 8 × 8 pixels" in page
    assert "pixel " not in page


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


def test_what_is_served_by_a_checkpoint() -> None:
    stream = io.StringIO()
    print_fitted("new.csv", {"predict": 1500}, "no target", Console(file=stream, width=80))
    assert "new.csv, prepared as in the run" in stream.getvalue()
    assert "1,500 predict" in stream.getvalue()
    assert "no target" in stream.getvalue()
