"""Text tables as files: the separator, ZIP files as people make them, and the lines that rows stand on."""

from __future__ import annotations

import gzip
import zipfile
from pathlib import Path

import pytest

from mlp_lab.data.tables import read_table
from mlp_lab.data.text_files import FOREIGN, line_of, open_text, read_header
from mlp_lab.errors import UserError

TABLE = "a,b\n1,x\n2,y\n"


def write_zip(path: Path, **files: str) -> Path:
    with zipfile.ZipFile(path, "w") as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return path


@pytest.mark.parametrize(
    ("text", "separator", "names"),
    [
        ('"Income, net, USD, year";"b";"y"\n"0.1";"1.2";"pos"\n', ";", ["Income, net, USD, year", "b", "y"]),
        ('"a;b";"c;d;e",f\n1,2\n', ",", None),
        ('"a;b;c","d;e;f"\n1,2\n', ",", ["a;b;c", "d;e;f"]),
        ("x1;x2;y\n0,1;1,2;51,6\n", ";", ["x1", "x2", "y"]),
        ("name, first;age, years;y\nann;31;1\nbob;32;0\n", ";", ["name, first", "age, years", "y"]),
        ("a|b\n1,5|2,5\n", "|", ["a", "b"]),
        ("a\tb, c\n1\t2\n", "\t", ["a", "b, c"]),
        ("a,b;c\n1,2\n", ",", ["a", "b;c"]),
        ("only\n1;2\n", ",", ["only"]),
        ("a,b,\n1,2,\n", ",", ["a", "b", ""]),
        ('"two\nlines",b\n1,2\n', ",", ["two\nlines", "b"]),
        (" a , b \n1,2\n", ",", ["a", "b"]),
        ("a;b\n", ";", ["a", "b"]),
        ("sep=;\r\na,1;b,2\r\n1;2\r\n", ";", ["a,1", "b,2"]),
        ('"sep=|"\na|b\n', "|", ["a", "b"]),
        ("sep=x,b\n1,2\n", ",", ["sep=x", "b"]),
        ("PAR1,BZh,PK,html\n1,2,3,4\n", ",", ["PAR1", "BZh", "PK", "html"]),
        ("first name\nJo Smith\n", ",", ["first name"]),
    ],
)
def test_separator_is_found(tmp_path: Path, text: str, separator: str, names: list[str] | None) -> None:
    (tmp_path / "t.csv").write_text(text)
    header = read_header(tmp_path / "t.csv", "data.path")
    assert header.separator == separator
    assert names is None or header.names == names


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("suffix", [".csv", ".csv.gz", ".csv.zip"])
def test_table_is_read_when_its_byte_order_mark_says_the_encoding(tmp_path: Path, encoding: str, suffix: str) -> None:
    text = "gr\u00f6\u00dfe\tb\r\n1\tx\r\n2\ty\r\n".encode(encoding)
    path = tmp_path / f"t{suffix}"
    if suffix == ".csv.zip":
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("t.csv", text)
    else:
        path.write_bytes(gzip.compress(text) if suffix == ".csv.gz" else text)
    frame = read_table(path)
    assert {name: frame[name].tolist() for name in frame} == {"gr\u00f6\u00dfe": [1, 2], "b": ["x", "y"]}


@pytest.mark.parametrize("start", FOREIGN)
def test_other_kind_of_file_is_named_when_it_has_the_suffix_of_a_text_table(tmp_path: Path, start: bytes) -> None:
    path = tmp_path / "t.csv"
    path.write_bytes(start + b" \xff\x00" * 50)
    with pytest.raises(UserError) as caught:
        read_table(path)
    assert str(caught.value) == f"data.path: {path} is {FOREIGN[start]}"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a b\n1 x\n2 y\n", "has spaces between its cells; use commas, tabs, semicolons or | instead"),
        ("  a    b\n  1  2.5\n-10    3\n", "has spaces between its cells; "),
        ("Sales\n\na,b,y\n1,2,x\n", "has a broken row: line 3 has 3 cells where the header (Sales) has 1"),
        ("a,b\n1,2,x\n3,4,y\n", "has a broken row: line 2 has 3 cells where the header (a, b) has 2"),
        ("sep=;\na;b\n1;2\n1;2;3\n", "has a broken row: line 4 has 3 cells where the header (a, b) has 2"),
        (",".join(f"c{n}" for n in range(50_001)), "has 50,001 columns; accepted: at most 50,000 (is it transposed?)"),
        (f"{'a' * 70}\n1,2\n", f"has a broken row: line 2 has 2 cells where the header ({'a' * 59}…) has 1"),
    ],
)
def test_text_that_is_no_table_is_refused(tmp_path: Path, text: str, words: str) -> None:
    path = tmp_path / "t.csv"
    path.write_text(text)
    with pytest.raises(UserError) as caught:
        read_table(path)
    assert str(caught.value).startswith(f"data.path: {path} {words}")


def test_table_is_read_when_it_begins_with_the_separator_line_of_excel(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text("\ufeffsep=;\r\na;b\r\n1,5;x\r\n2,5;y\r\n", encoding="utf-8", newline="")
    frame = read_table(path)
    assert {name: frame[name].tolist() for name in frame} == {"a": ["1,5", "2,5"], "b": ["x", "y"]}
    assert [line_of(path, row) for row in range(3)] == [3, 4, None]


@pytest.mark.parametrize(
    "files",
    [
        {"mac.csv": TABLE, "__MACOSX/._mac.csv": "\0\0"},
        {"data/": "", "data/train.csv": TABLE},
        {"data/.DS_Store": "\0", "data/train.csv": TABLE},
        {"train.csv": TABLE, "README.md": "a table", "licence.pdf": "%PDF"},
        {"train.data": TABLE},
    ],
)
def test_one_table_in_a_zip_file_is_read(tmp_path: Path, files: dict[str, str]) -> None:
    with open_text(write_zip(tmp_path / "t.csv.zip", **files)) as stream:
        assert stream.read() == TABLE


@pytest.mark.parametrize(
    ("files", "words"),
    [
        ({}, "holds no table; give one file of .csv, .tsv, .txt, packed by itself or not"),
        ({"data/": ""}, "holds no table"),
        ({"__MACOSX/._a.csv": "x"}, "holds no table"),
        ({"a.csv": TABLE, "b.csv": TABLE}, "holds 2 tables (a.csv, b.csv); give one"),
        ({"a.json": "{}", "b.pdf": ""}, "holds no table (a.json, b.pdf)"),
    ],
)
def test_zip_file_without_one_table_is_refused(tmp_path: Path, files: dict[str, str], words: str) -> None:
    path = write_zip(tmp_path / "t.zip", **files)
    with pytest.raises(UserError) as caught, open_text(path, "data.test_path"):
        pass
    assert str(caught.value).startswith(f"data.test_path: {path} {words}")


def test_zip_file_with_a_password_is_refused(tmp_path: Path) -> None:
    path = write_zip(tmp_path / "t.csv.zip", **{"t.csv": TABLE})
    content = bytearray(path.read_bytes())
    for mark, place in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):  # the flag that says so, in both headers of the file
        content[content.index(mark) + place] |= 1
    path.write_bytes(content)
    with (
        pytest.raises(UserError, match=r"has a password; unpack it and give the table inside \(t\.csv\)"),
        open_text(path),
    ):
        pass


def test_line_of_a_row_counts_as_the_file_does(tmp_path: Path) -> None:
    path = tmp_path / "t.csv"
    path.write_text('\na,b\n1,x\n\n2,"two\nlines"\n  \n3,y\n')
    assert [line_of(path, row) for row in range(4)] == [3, 5, 8, None]
