"""Reading: what comes out of every file type, and one line for every way a file can be wrong."""

from __future__ import annotations

import bz2
import csv
import gzip
import hashlib
import lzma
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
import pytest

from mlp_lab.data.tables import MISSING_VALUES, file_fingerprint, plain_columns, read_table
from mlp_lab.errors import UserError

TEXT = "name,age,score\nann,31,1.5\nbob,?,2.5\n,45,NA\n"


def _zip(path: Path, content: bytes) -> None:
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("inside.csv", content)


WRITERS: dict[str, Callable[[Path, bytes], object]] = {
    ".csv": Path.write_bytes,
    ".csv.gz": lambda path, content: path.write_bytes(gzip.compress(content)),
    ".csv.bz2": lambda path, content: path.write_bytes(bz2.compress(content)),
    ".csv.xz": lambda path, content: path.write_bytes(lzma.compress(content)),
    ".csv.zip": _zip,
}


def _read(path: Path, missing_values: Sequence[str] = MISSING_VALUES, **settings: Any) -> pd.DataFrame:
    """Reads all columns, plain, with plain row numbers."""
    return plain_columns(read_table(path, missing_values=missing_values, **settings), missing_values).reset_index(
        drop=True
    )


@pytest.fixture
def write(tmp_path: Path) -> Callable[..., Path]:
    def _write(content: str | bytes, name: str = "table.csv") -> Path:
        path = tmp_path / name
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        return path

    return _write


def _expected() -> pd.DataFrame:
    nan = float("nan")
    names = pd.Series(["ann", "bob", nan], dtype="str")
    return pd.DataFrame({"name": names, "age": [31.0, nan, 45.0], "score": [1.5, 2.5, nan]})


@pytest.mark.parametrize("suffix", list(WRITERS))
def test_every_compression_reads_the_same(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"table{suffix}"
    WRITERS[suffix](path, TEXT.encode())
    pd.testing.assert_frame_equal(_read(path), _expected())


@pytest.mark.parametrize(("separator", "name"), [("\t", "t.tsv"), (";", "t.csv"), ("|", "t.txt"), ("\t", "t.csv")])
def test_the_separator_is_taken_from_the_header(write: Callable[..., Path], separator: str, name: str) -> None:
    pd.testing.assert_frame_equal(_read(write(TEXT.replace(",", separator), name)), _expected())


def test_parquet_reads_the_same(tmp_path: Path) -> None:
    _expected().to_parquet(tmp_path / "table.parquet")
    pd.testing.assert_frame_equal(_read(tmp_path / "table.parquet"), _expected())


def test_cells_are_stripped_and_blank_ones_are_missing(write: Callable[..., Path]) -> None:
    frame = _read(write('a , b\n"x ",  1\n"  ",2\n y,\n'))
    assert list(frame.columns) == ["a", "b"]
    assert frame["a"].isna().tolist() == [False, True, False]
    assert frame["a"].dropna().tolist() == ["x", "y"]
    assert frame["b"].tolist()[:2] == [1.0, 2.0]


def test_missing_values_are_the_callers(write: Callable[..., Path]) -> None:
    frame = _read(write("a,b\n-,NA\nx,1\n"), missing_values=["-"])
    assert frame["a"].isna().tolist() == [True, False]
    assert frame["b"].tolist() == ["NA", "1"]


def test_text_columns_keep_their_digits(write: Callable[..., Path]) -> None:
    path = write("code,n,zip\n7.0,7.0,01234\n")
    assert _read(path, text=["code", "absent"]).iloc[0].tolist() == ["7.0", 7.0, "01234"]


def test_read_table_missing_values_apply_to_numbers_of_every_file_type(
    write: Callable[..., Path], tmp_path: Path
) -> None:
    frame = pd.DataFrame({"n": [-999, 1, 2], "x": [0.5, -999.0, 2.5], "w": ["-999", "a", "b"]})
    frame["when"] = pd.to_datetime(["2024-01-01", "9999-12-31", "2024-01-02"])
    frame.to_parquet(tmp_path / "t.parquet")
    frame.to_csv(tmp_path / "t.csv", index=False)
    for name in ("t.csv", "t.parquet"):
        read = _read(tmp_path / name, missing_values=["-999", "9999-12-31"])
        assert {column: read[column].isna().tolist() for column in read} == {
            "n": [True, False, False],
            "x": [False, True, False],
            "w": [True, False, False],
            "when": [False, True, False],
        }


@pytest.mark.parametrize("gap", [False, True])
def test_read_table_keeps_long_integers(tmp_path: Path, gap: bool) -> None:
    numbers = [2**64 - 1, 2**53 + 1, 7, *([None] if gap else [])]
    pd.DataFrame({"x": pd.array(numbers, dtype="UInt64")}).to_parquet(tmp_path / "t.parquet")
    (tmp_path / "t.csv").write_text("x,y\n" + "".join(f"{'' if n is None else n},1\n" for n in numbers))
    for name in ("t.csv", "t.parquet"):
        cells = _read(tmp_path / name)["x"]
        assert [int(cell) for cell in cells.dropna()] == numbers[:3]
        assert cells.isna().sum() == int(gap)


def test_a_byte_order_mark_is_no_part_of_the_first_name(write: Callable[..., Path]) -> None:
    assert list(_read(write(b"\xef\xbb\xbfa,b\n1,2\n")).columns) == ["a", "b"]


def test_plain_columns_of_every_parquet_type() -> None:
    frame = pd.DataFrame(
        {
            "category": pd.Categorical(["x", None]),
            "boolean": pd.array([True, None], dtype="boolean"),
            "flag": [True, False],
            "integer": pd.array([1, None], dtype="Int64"),
            "small": pd.array([1, 2], dtype="int8"),
            "moment": pd.to_datetime(["2024-01-01T12:00+02:00", None], utc=True),
            "delta": pd.to_timedelta([90, None], unit="s"),
        }
    )
    plain = plain_columns(frame)
    kinds = [str(dtype).split("[")[0] for dtype in plain.dtypes]
    assert kinds == ["str", "str", "bool", "float64", "int64", "datetime64", "float64"]
    assert plain["boolean"].iloc[0] == "True"
    assert plain["moment"].iloc[0] == pd.Timestamp("2024-01-01 10:00")
    assert plain["delta"].iloc[0] == 90.0
    assert plain.iloc[1].isna().tolist() == [True, True, False, True, False, True, True]


def _damaged(content: bytes) -> bytes:
    return content[:20] + bytes(10) + content[30:]


MISTAKES = {
    "empty": ("", "t.csv", "is empty"),
    "blank lines only": ("\n\n", "t.csv", "is empty"),
    "header only": ("a,b\n", "t.csv", "no rows below its header"),
    "long row": ("a,b\n1,2\n3,4,5\n", "t.csv", "broken row: line 3 has 3 cells where the header (a, b) has 2"),
    "short row": ("a,b\n1,2\n\n3\n", "t.csv", "broken row: line 4 has 1 cell where the header has 2"),
    "all rows long": ("a,b\n1,2,3\n4,5,6\n", "t.csv", "broken row: line 2 has 3 cells where the header (a, b) has 2"),
    "open quote": ('a,b\n1,2\n"3,4\n', "t.csv", 'broken row: a quote (") opened near line 3 is never closed'),
    "duplicate names": ("a,b,a \n1,2,3\n", "t.csv", "1 duplicate column name(s): 'a'"),
    "no header": ("1,2\n3,4\n", "t.csv", "has no header: its first line (1,2) holds only numbers"),
    "not UTF-8": (
        b"a,b\n1,2\n\xe4,1\n",
        "my table.csv",
        "is not UTF-8 text, first in line 3; save it as UTF-8 (in Excel: the file type 'CSV UTF-8'), or convert it: "
        "iconv -f WINDOWS-1252 -t UTF-8 ",
    ),
    "not UTF-8, packed": (gzip.compress(b"a,b\n1,2\n\xff,1\n"), "t.csv.gz", "not UTF-8 text, first in line 3"),
    "unknown type": ("a,b\n1,2\n", "t.xls", "t.xls is of an unknown type; accepted: .csv"),
    "no type": ("a,b\n1,2\n", "table", "is of an unknown type"),
    "not gzip": ("a,b\n1,2\n", "t.csv.gz", "cannot be unpacked or read"),
    "cut gzip": (gzip.compress(b"a,b\n1,2\n" * 9)[:-9], "t.csv.gz", "cannot be unpacked or read"),
    "not zip": ("a,b\n1,2\n", "t.csv.zip", "cannot be unpacked or read"),
    "damaged gzip": (_damaged(gzip.compress(b"a,b\n1,2\n" * 999)), "t.csv.gz", "cannot be unpacked or read"),
    "not xz": ("a,b\n1,2\n", "t.csv.xz", "cannot be unpacked or read"),
    "not bz2": ("a,b\n1,2\n", "t.csv.bz2", "cannot be unpacked or read"),
    "not Parquet": ("a,b\n1,2\n", "t.parquet", "is not a readable Parquet file"),
}


@pytest.mark.parametrize(("content", "name", "words"), list(MISTAKES.values()), ids=list(MISTAKES))
def test_every_broken_file_is_told_in_one_line(
    write: Callable[..., Path], content: str | bytes, name: str, words: str
) -> None:
    with pytest.raises(UserError) as caught:
        read_table(write(content, name), key="data.test_path")
    message = str(caught.value)
    assert words in message
    assert message.startswith("data.test_path: ")
    assert "\n" not in message
    assert name in message


def test_a_missing_file_suggests_its_neighbour(write: Callable[..., Path], tmp_path: Path) -> None:
    write(TEXT, "adult.csv")
    with pytest.raises(UserError, match=r"adul\.csv does not exist \(did you mean .*adult\.csv\?\)"):
        read_table(tmp_path / "adul.csv")
    with pytest.raises(UserError, match="does not exist"):
        read_table(tmp_path / "nowhere" / "adult.csv")


def test_a_directory_is_no_table(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is a directory; give one table file"):
        read_table(tmp_path)


def test_cells_that_no_table_holds_are_refused(tmp_path: Path) -> None:
    pd.DataFrame({"x": [1, 2], "y": [[1], [2, 3]]}).to_parquet(tmp_path / "t.parquet")
    with pytest.raises(UserError, match=r"t\.parquet has cells .* column\(s\) 'y' \(list\); .* --data\.drop '\[y\]'$"):
        plain_columns(read_table(tmp_path / "t.parquet"))


def test_parquet_types_that_pandas_cannot_rebuild_are_read(tmp_path: Path) -> None:
    lists = pd.Series([[1], [2, 3]], dtype=pd.ArrowDtype(pa.list_(pa.int64())))
    pd.DataFrame({"x": [1, 2], "y": lists}).to_parquet(tmp_path / "t.parquet")
    assert plain_columns(read_table(tmp_path / "t.parquet")[["x"]])["x"].tolist() == [1, 2]


def test_parquet_index_with_a_name_is_a_column_and_without_is_not(tmp_path: Path) -> None:
    frame = pd.DataFrame({"x": [1.5, 2.5]}, index=[7, 9])
    frame.to_parquet(tmp_path / "t.parquet")
    assert list(_read(tmp_path / "t.parquet").columns) == ["x"]
    frame.rename_axis("code").to_parquet(tmp_path / "t.parquet")
    assert _read(tmp_path / "t.parquet")["code"].tolist() == [7, 9]


def test_trailing_separators_make_a_column_without_a_name(write: Callable[..., Path]) -> None:
    frame = _read(write("a,b,\n1,2,\n3,4,\n"))
    assert list(frame.columns) == ["a", "b", "Unnamed: 2"]
    assert frame["Unnamed: 2"].isna().all()
    assert _read(write("a,b,\n1,2\n3,4\n"))["b"].tolist() == [2, 4]


def test_long_cell_is_read_and_the_limit_of_the_process_stays(write: Callable[..., Path]) -> None:
    before = csv.field_size_limit()
    frame = _read(write(f"a,b\n{'x' * 200_000},\ny,1\n"))
    assert frame["a"].str.len().tolist() == [200_000, 1]
    assert csv.field_size_limit() == before


def test_the_fingerprint_depends_on_every_byte(write: Callable[..., Path]) -> None:
    path = write(TEXT)
    before = file_fingerprint(path)
    assert before == hashlib.sha256(TEXT.encode()).hexdigest()[:16]
    write(TEXT.replace("45", "46"))
    assert file_fingerprint(path) != before
