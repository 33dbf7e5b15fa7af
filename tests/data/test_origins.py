"""Where a cell comes from, in the words of an error."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from mlp_lab.data.origins import Origin, cell_of, place_of, row_numbers, table_of


def frames(folder: Path) -> pd.DataFrame:
    """Three rows of a text file with a blank line, and two of a Parquet file, shuffled."""
    text = folder / "a.csv"
    text.write_text("x\n1\n\n2\n3\n")
    first = pd.DataFrame({"x": [1, 2, 3]}, index=Origin(key="data.path", label="a.csv", text=text).index(3))
    second = pd.DataFrame({"x": [4, 5]}, index=Origin(key="data.test_path", label="b.parquet").index(2))
    return pd.concat([first, second]).iloc[[4, 1, 0, 3, 2]]


def test_cell_is_named_by_key_file_and_line(tmp_path: Path) -> None:
    frame = frames(tmp_path)
    assert row_numbers(frame).tolist() == [1, 1, 0, 0, 2]
    assert table_of(frame) == "data.test_path: b.parquet"
    assert table_of(frame, 1, "data.target") == "data.target: a.csv"
    assert place_of(frame, 0) == "row 2 of b.parquet"
    assert place_of(frame, 1) == "line 4 of a.csv"
    assert cell_of(frame["x"], 1) == "data.path: a.csv, column 'x', line 4"
    assert cell_of(frame["x"], 3, "data.target") == "data.target: b.parquet, column 'x', row 1"


def test_cell_of_a_file_that_has_changed_is_named_by_its_row(tmp_path: Path) -> None:
    frame = frames(tmp_path)
    (tmp_path / "a.csv").write_text("x\n1\n")
    assert place_of(frame, 4) == "row 3 of a.csv"


def test_frame_without_origins_has_rows_alone() -> None:
    frame = pd.DataFrame({"x": [1, 2]})
    assert row_numbers(frame).tolist() == [0, 1]
    assert cell_of(frame["x"], 1, "data.target") == "data.target: column 'x', row 2"
    assert table_of(frame.iloc[:0]) == "data.path: the table"
