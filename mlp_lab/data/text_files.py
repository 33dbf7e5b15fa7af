"""Text tables as files: unpacked, their separator and header found, and where in the file a row stands.

A line in a message is a line of the file, counted from 1, the header's.
"""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import lzma
import re
import sys
import zipfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import NamedTuple, TextIO

from mlp_lab.errors import UserError

TEXT_SUFFIXES: tuple[str, ...] = (".csv", ".tsv", ".txt")
COMPRESSIONS: tuple[str, ...] = (".gz", ".bz2", ".xz", ".zip")
SEPARATORS: tuple[str, ...] = (",", "\t", ";", "|")
UNNAMED = "Unnamed: "
"""How the name begins that a column gets which has none in the header."""
_SAMPLE = 20
"""Lines below the header that are compared with it to find the separator."""
_LONGEST_HEADER = 1_000_000
"""Characters after which an open quote in the header is not followed any further."""


class Header(NamedTuple):
    """How a text table is written."""

    separator: str
    names: list[str]  # stripped; a column without a name has an empty one


def read_header(path: Path, key: str) -> Header:
    """Finds the separator and the column names.

    Separators inside quotes do not count. Of those that part the header, the best is one that parts the first rows into
    as many cells (`0,5;1,5` below `a;b` has a decimal comma); of several, the one that gives the most columns.

    Raises:
        UserError: The file is empty, or its first line holds only numbers.
    """
    with open_text(path, key) as stream:
        first = _first_record(stream)
        sample = [line for _, line in zip(range(_SAMPLE), stream, strict=False)]
    if not first:
        raise UserError(f"{key}: {path} is empty")
    headers = [Header(separator, next(_records([first], separator))) for separator in SEPARATORS]
    parted = [header for header in headers if len(header.names) > 1]
    best = max(parted, key=lambda header: (_agreement(header, sample), len(header.names)), default=headers[0])
    if all(re.fullmatch(r"\s*[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?\s*", name) for name in best.names):
        raise UserError(f"{key}: {path} has no header: its first line ({first.strip()[:40]}) holds only numbers")
    return Header(best.separator, [name.strip() for name in best.names])


def _first_record(stream: TextIO) -> str:
    """Returns the first line that is not blank, with those that a quoted line break joins to it."""
    record = next((line for line in stream if line.strip()), "")
    while record.count('"') % 2 and len(record) < _LONGEST_HEADER and (line := stream.readline()):
        record += line
    return record


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
        UserError: It is a ZIP file without a table, with several, or with a password.
    """
    openers: dict[str, Callable[..., TextIO]] = {".gz": gzip.open, ".bz2": bz2.open, ".xz": lzma.open}
    suffix = path.suffix.lower()
    if suffix == ".zip":
        with zipfile.ZipFile(path) as archive, archive.open(_table_in(archive, path, key)) as inner:
            yield io.TextIOWrapper(inner, encoding="utf-8-sig", newline="")
    elif suffix in openers:
        with openers[suffix](path, "rt", encoding="utf-8-sig", newline="") as stream:
            yield stream
    else:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            yield stream


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
        reader = csv.reader(stream, delimiter=separator, skipinitialspace=True)
        before = 0
        for row in reader:
            if len(row) > 1 or (row and row[0].strip()):
                yield before + 1, row
            before = reader.line_num


def line_of(path: Path, row: int) -> int | None:
    """Returns the line on which a row begins.

    Args:
        path: A text table that has been read before.
        row: The row, counted from 0 below the header.

    Returns:
        The line; None where the file no longer has that row.
    """
    separator = read_header(path, "data.path").separator
    return next((line for index, (line, _) in enumerate(rows_of(path, separator)) if index == row + 1), None)
