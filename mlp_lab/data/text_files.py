"""Text tables as files: unpacked, their separator and header found, and where in the file a row stands.

A line in a message is a line of the file, counted from 1, the header's.
"""

from __future__ import annotations

import bz2
import codecs
import csv
import gzip
import io
import lzma
import re
import shlex
import sys
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple, TextIO

from mlp_lab.errors import UserError

TEXT_SUFFIXES: tuple[str, ...] = (".csv", ".tsv", ".txt")
COMPRESSIONS: tuple[str, ...] = (".gz", ".bz2", ".xz", ".zip")
SEPARATORS: tuple[str, ...] = (",", "\t", ";", "|")
FOREIGN: dict[bytes, str] = {
    b"PK\x03\x04": "an Excel workbook or another ZIP file; save the sheet as CSV, or give a .zip file its suffix",
    b"\xd0\xcf\x11\xe0": "an Excel workbook; save the sheet as CSV",
    b"PAR1\x15": "a Parquet file; give it the suffix .parquet",
    b"\x1f\x8b": "a gzip file; give it the suffix .gz",
    b"BZh91AY&SY": "a bzip2 file; give it the suffix .bz2",
    b"\xfd7zXZ": "an xz file; give it the suffix .xz",
    b"%PDF-": "a PDF file; export the table as CSV",
    b"<!doctype html": "a web page; download the table itself",
    b"<html": "a web page; download the table itself",
    b"version https://git-lfs": "a Git LFS pointer; fetch the table itself with `git lfs pull`",
}
"""First bytes, in lower case where they are words, of files that are often given as text tables."""
UNNAMED = "Unnamed: "
"""How the name begins that a column gets which has none in the header."""
NUMBER = r"[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?"
_SAMPLE = 20
"""Lines below the header that are compared with it to find the separator."""
_SHOWN = 60
"""Characters of a header that a message shows."""
_LONGEST_HEADER = 1_000_000
"""Characters after which an open quote in the header is not followed any further."""


LARGEST_COLUMNS = 50_000
"""Columns that a table may have: gene expressions have 20,000, and a million would take minutes to examine."""


class Header(NamedTuple):
    """How a text table is written."""

    separator: str
    names: list[str]  # stripped; a column without a name has an empty one


def read_header(path: Path, key: str) -> Header:
    """Finds the separator and the column names.

    Separators inside quotes do not count. Of those that part the header, the best is one that parts the first rows into
    as many cells (`0,5;1,5` below `a;b` has a decimal comma); of several, the one that gives the most columns.

    Raises:
        UserError: The file is empty, its first line holds only numbers, or only spaces part its cells.
    """
    with open_text(path, key) as stream:
        told = skip_separator_line(stream)
        first = _first_record(stream)
        sample = [line for _, line in zip(range(_SAMPLE), stream, strict=False)]
    if not first:
        raise UserError(f"{key}: {path} is empty")
    headers = [Header(separator, next(_records([first], separator))) for separator in told or SEPARATORS]
    parted = [header for header in headers if len(header.names) > 1]
    if not parted and _parted_by_spaces(first, sample):
        raise UserError(f"{key}: {path} has spaces between its cells; use commas, tabs, semicolons or | instead")
    best = max(parted, key=lambda header: (_agreement(header, sample), len(header.names)), default=headers[0])
    if all(re.fullmatch(NUMBER, name.strip()) for name in best.names):
        raise UserError(f"{key}: {path} has no header: its first line ({first.strip()[:40]}) holds only numbers")
    check_columns(len(best.names), path, key)
    return Header(best.separator, [name.strip() for name in best.names])


def check_columns(columns: int, path: Path, key: str) -> None:
    """Refuses a table of more columns than can be examined in reasonable time.

    Raises:
        UserError: It has more than `LARGEST_COLUMNS`.
    """
    if columns > LARGEST_COLUMNS:
        raise UserError(
            f"{key}: {path} has {columns:,} columns; accepted: at most {LARGEST_COLUMNS:,} (is it transposed?)"
        )


def _first_record(stream: TextIO) -> str:
    """Returns the first line that is not blank, with those that a quoted line break joins to it."""
    record = next((line for line in stream if line.strip()), "")
    while record.count('"') % 2 and len(record) < _LONGEST_HEADER and (line := stream.readline()):
        record += line
    return record


def _parted_by_spaces(header: str, sample: Sequence[str]) -> bool:
    """Says whether every line has as many words as the header, several, and a number is among those of the first."""
    rows = [line.split() for line in (header, *sample) if line.strip()]
    same = len(rows) > 1 and len(rows[0]) > 1 and len({len(row) for row in rows}) == 1
    return same and any(re.fullmatch(NUMBER, word) for word in rows[1])


def _agreement(header: Header, sample: Sequence[str]) -> float:
    """Returns the share of lines that the header's separator parts into as many cells."""
    widths = [len(row) for row in _records(sample, header.separator) if row]
    return sum(width == len(header.names) for width in widths) / max(len(widths), 1)


def _records(lines: Sequence[str], separator: str) -> Iterator[list[str]]:
    with _cells_of_any_length():
        yield from list(csv.reader(lines, delimiter=separator, skipinitialspace=True))


@contextmanager
def _cells_of_any_length() -> Iterator[None]:
    """Lifts the limit of 131,072 characters, which `csv` keeps for the whole process, for a while."""
    before = csv.field_size_limit(sys.maxsize)
    try:
        yield
    finally:
        csv.field_size_limit(before)


@contextmanager
def open_text(path: Path, key: str = "data.path") -> Iterator[TextIO]:
    """Opens a text table for reading, unpacked, without its byte order mark.

    Raises:
        UserError: It is no text (see `FOREIGN`), or a ZIP file without a table, with several, or with a password.
    """
    with _open_bytes(path, key) as stream:
        yield _as_text(stream, path, key)


@contextmanager
def _open_bytes(path: Path, key: str) -> Iterator[Any]:
    """Opens a text table, unpacked, as a stream of bytes that can `peek`."""
    openers: dict[str, Callable[..., Any]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
    suffix = path.suffix.lower()
    if suffix == ".zip":
        with zipfile.ZipFile(path) as archive, archive.open(_table_in(archive, path, key)) as stream:
            yield stream
    else:
        with openers.get(suffix, open)(path, "rb") as stream:
            yield stream


def _as_text(stream: Any, path: Path, key: str) -> TextIO:
    """Returns the text of a binary stream: UTF-16 where it begins with that byte order mark, else UTF-8.

    Raises:
        UserError: The first bytes are those of another kind of file.
    """
    first: bytes = stream.peek(64)
    for start, kind in FOREIGN.items():
        if first.startswith(start) or first.lstrip().lower().startswith(start):
            raise UserError(f"{key}: {path} is {kind}")
    wide = first.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE))
    return io.TextIOWrapper(stream, encoding="utf-16" if wide else "utf-8-sig", newline="")


def skip_separator_line(stream: TextIO) -> str:
    """Reads over the line `sep=;`, with which Excel begins a table, and returns its separator.

    Returns:
        The separator; empty where there is no such line, and then nothing is read over.
    """
    found = re.fullmatch(r'"?sep=(.)"?\s*', stream.readline())
    if found and found[1] in SEPARATORS:
        return found[1]
    stream.seek(0)
    return ""


def wrong_encoding(path: Path, key: str) -> str:
    """Says in which line a file is not UTF-8 text, and how to convert it from what Excel writes in Western Europe."""
    with _open_bytes(path, key) as stream:
        line = next((number for number, row in enumerate(stream, 1) if not _is_utf8(row)), 1)
    cure = "save it as UTF-8 (in Excel: the file type 'CSV UTF-8')"
    if path.suffix.lower() not in COMPRESSIONS:
        source, target = (shlex.quote(str(name)) for name in (path, path.with_name(f"{path.stem}-utf8{path.suffix}")))
        cure += f", or convert it: iconv -f WINDOWS-1252 -t UTF-8 {source} > {target}"
    return f"{key}: {path} is not UTF-8 text, first in line {line}; {cure}"


def _is_utf8(row: bytes) -> bool:
    try:
        row.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _table_in(archive: zipfile.ZipFile, path: Path, key: str) -> zipfile.ZipInfo:
    """Returns the one table of a ZIP file; folders, hidden files and what macOS adds are passed over."""
    files = [item for item in archive.infolist() if not item.is_dir()]
    visible = [item for item in files if not item.filename.startswith("__MACOSX/") and not _is_hidden(item.filename)]
    tables = [item for item in visible if item.filename.lower().endswith(TEXT_SUFFIXES)]
    if len(tables) != 1 and len(visible) != 1:
        names = [item.filename for item in tables or visible]
        listed = f" ({', '.join(names[:5])}{', …' if len(names) > 5 else ''})" if names else ""
        found = f"{len(tables)} tables" if tables else "no table"
        accepted = f"give one file of {', '.join(TEXT_SUFFIXES)}, packed by itself or not"
        raise UserError(f"{key}: {path} holds {found}{listed}; {accepted}")
    table = (tables or visible)[0]
    if table.flag_bits & 1:
        raise UserError(f"{key}: {path} has a password; unpack it and give the table inside ({table.filename})")
    return table


def _is_hidden(name: str) -> bool:
    return PurePosixPath(name).name.startswith(".")


def refuse_long_rows(path: Path, header: Header, key: str) -> None:
    """Refuses a row with more cells than the header has names; empty cells at its end do not count.

    Raises:
        UserError: With the line of the first such row, and what is taken for the header.
    """
    for line, row in rows_of(path, header.separator, key):
        if len(row) > len(header.names) and any(cell.strip() for cell in row[len(header.names) :]):
            names = ", ".join(header.names)
            shown = names if len(names) <= _SHOWN else f"{names[: _SHOWN - 1]}…"
            raise UserError(
                f"{key}: {path} has a broken row: line {line} has {len(row)} cells where the header ({shown}) has "
                f"{len(header.names)}"
            )


def refuse_short_rows(path: Path, header: Header, key: str) -> None:
    """Refuses a row with fewer cells than the header has names; columns without a name at its end do not count.

    Raises:
        UserError: With the line of the first such row.
    """
    columns = len(header.names)
    while columns > 1 and not header.names[columns - 1]:
        columns -= 1
    for line, row in rows_of(path, header.separator, key):
        if len(row) < columns and any(cell.strip() for cell in row):
            cells = "1 cell" if len(row) == 1 else f"{len(row)} cells"
            raise UserError(f"{key}: {path} has a broken row: line {line} has {cells} where the header has {columns}")


def rows_of(path: Path, separator: str, key: str = "data.path") -> Iterator[tuple[int, list[str]]]:
    """Yields the line that each row begins on, and its cells, the header first; blank lines are passed over."""
    with open_text(path, key) as stream, _cells_of_any_length():
        above = 1 if skip_separator_line(stream) else 0
        reader = csv.reader(stream, delimiter=separator, skipinitialspace=True)
        before = above
        for row in reader:
            if len(row) > 1 or (row and row[0].strip()):
                yield before + 1, row
            before = above + reader.line_num


def line_of(path: Path, row: int) -> int | None:
    """Returns the line on which a row begins.

    Args:
        path: A text table that has been read before.
        row: The row, counted from 0 below the header.

    Returns:
        The line; None where the file no longer has that row.
    """
    found = _row_at(path, row)
    return found[0] if found else None


def cell_text(path: Path, row: int, column: str) -> str:
    """Returns a cell as the file writes it, stripped; empty where the file no longer has that row or column.

    Args:
        path: A text table that has been read before.
        row: The row, counted from 0 below the header.
        column: The column's name.
    """
    names, found = read_header(path, "data.path").names, _row_at(path, row)
    if found is None or column not in names[: len(found[1])]:
        return ""
    return found[1][names.index(column)].strip()


def _row_at(path: Path, row: int) -> tuple[int, list[str]] | None:
    """Returns the line on which a row begins, and its cells."""
    rows = rows_of(path, read_header(path, "data.path").separator)
    return next((found for index, found in enumerate(rows) if index == row + 1), None)
