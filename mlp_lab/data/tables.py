"""Tables from files: CSV, TSV and Parquet to a pandas frame of plain columns, every mistake told in one line.

A plain column holds float64, int64, bool, datetime64 or stripped text, and NaN (NaT) where a cell is missing. A line in
a message is a line of the file, counted from 1.
"""

from __future__ import annotations

import bz2
import csv
import gzip
import hashlib
import io
import lzma
import re
import warnings
import zipfile
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

import pandas as pd
import pyarrow

from mlp_lab.errors import UserError, nearest

MISSING_VALUES: tuple[str, ...] = ("?", "NA", "N/A", "n/a", "NaN", "nan", "NULL", "null", "#N/A", "<NA>")
"""Cells that mean 'missing', besides the empty and the blank ones, which always do."""
TEXT_SUFFIXES: tuple[str, ...] = (".csv", ".tsv", ".txt")
PARQUET_SUFFIXES: tuple[str, ...] = (".parquet", ".pq")
COMPRESSIONS: tuple[str, ...] = (".gz", ".bz2", ".xz", ".zip")


def read_table(
    path: str | Path,
    *,
    missing_values: Sequence[str] = MISSING_VALUES,
    text: Sequence[str] = (),
    key: str = "data.path",
) -> pd.DataFrame:
    """Reads a table into plain columns.

    Args:
        path: A .csv, .tsv or .txt file (also .gz, .bz2, .xz, .zip; the separator is taken from the header) or a
            .parquet file.
        missing_values: Cells that mean 'missing', besides empty and blank ones.
        text: Columns whose cells are kept as they are written, so that the code 007 does not become the number 7.
        key: The config key that errors name.

    Returns:
        The frame, with rows numbered from 0 and stripped, distinct column names.

    Raises:
        UserError: The file is missing, empty, unreadable or of an unknown type; a row has too many or too few cells;
            two columns share a name.
    """
    file = _existing_file(Path(path), key)
    with _one_line_errors(file, key):
        if file.suffix.lower() in PARQUET_SUFFIXES:
            frame = pd.read_parquet(file)
            frame.columns = pd.Index(_distinct([str(name) for name in frame.columns], file, key))
        else:
            frame = _read_text(file, missing_values, text, key)
    if frame.empty:
        raise UserError(f"{key}: {file} has no rows below its header")
    return plain_columns(frame.reset_index(drop=True), missing_values, key)


def plain_columns(
    frame: pd.DataFrame, missing_values: Sequence[str] = MISSING_VALUES, key: str = "data.path"
) -> pd.DataFrame:
    """Returns the frame with every column plain (see the top of the file).

    Raises:
        UserError: A column holds lists, bytes or something else that a table of numbers and words does not.
    """
    return pd.DataFrame({name: _plain(frame[name], missing_values, key) for name in frame.columns}, index=frame.index)


def file_fingerprint(path: str | Path) -> str:
    """Returns the first 16 hexadecimal digits of the SHA-256 of a file's bytes."""
    with Path(path).expanduser().open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()[:16]


def _existing_file(path: Path, key: str) -> Path:
    """Returns the path if it is a file of a known type, with `~` expanded."""
    path = path.expanduser()
    if path.is_dir():
        raise UserError(f"{key}: {path} is a directory; give one table file ({_accepted()})")
    if not path.is_file():
        siblings = [item.name for item in path.parent.iterdir()] if path.parent.is_dir() else []
        guess = nearest(path.name, siblings)
        hint = f" (did you mean {path.parent / guess}?)" if guess else f" (looked from {Path.cwd()})"
        raise UserError(f"{key}: {path} does not exist{hint}")
    suffixes = [suffix.lower() for suffix in path.suffixes]
    inner = suffixes[-2:-1] if suffixes and suffixes[-1] in COMPRESSIONS else suffixes[-1:]
    is_parquet = bool(suffixes) and suffixes[-1] in PARQUET_SUFFIXES
    if not is_parquet and not set(inner) & set(TEXT_SUFFIXES):
        raise UserError(f"{key}: {path.name} is of an unknown type; accepted: {_accepted()}")
    if path.stat().st_size == 0:
        raise UserError(f"{key}: {path} is empty")
    return path


def _accepted() -> str:
    return f"{', '.join(TEXT_SUFFIXES)} (also {', '.join(COMPRESSIONS)}), {', '.join(PARQUET_SUFFIXES)}"


@contextmanager
def _one_line_errors(path: Path, key: str) -> Iterator[None]:
    """Turns what reading may raise into one line."""
    try:
        yield
    except UnicodeDecodeError as error:
        raise UserError(f"{key}: {path} is not UTF-8 text (byte {error.start}); save it as UTF-8") from error
    except pd.errors.EmptyDataError as error:
        raise UserError(f"{key}: {path} is empty") from error
    except (pd.errors.ParserError, pd.errors.ParserWarning) as error:
        raise UserError(f"{key}: {path} has a broken row: {_parser_words(str(error))}") from error
    except pyarrow.ArrowException as error:
        raise UserError(f"{key}: {path} is not a readable Parquet file ({str(error).splitlines()[0]})") from error
    except PermissionError as error:
        raise UserError(f"{key}: {path} may not be read by you (permission denied)") from error
    except (EOFError, OSError, lzma.LZMAError, zipfile.BadZipFile) as error:
        raise UserError(f"{key}: {path} cannot be unpacked or read ({error}); is it complete?") from error


def _parser_words(message: str) -> str:
    """Says in our words what pandas' C parser complains of."""
    if match := re.search(r"Expected (\d+) fields in line (\d+), saw (\d+)", message):
        return f"line {match[2]} has {match[3]} cells where the header has {match[1]}"
    if match := re.search(r"EOF inside string starting at row (\d+)", message):
        return f'a quote (") opened near line {int(match[1]) + 1} is never closed'
    if "does not match length of data" in message:
        return "line 2 has more cells than the header"
    return message.strip().splitlines()[-1]


def _read_text(path: Path, missing_values: Sequence[str], text: Sequence[str], key: str) -> pd.DataFrame:
    separator, names = _header(path, key)
    with warnings.catch_warnings():
        warnings.simplefilter("error", pd.errors.ParserWarning)  # pandas only warns when it cuts rows off
        frame = pd.read_csv(
            path,
            sep=separator,
            header=0,
            names=names,
            index_col=False,
            dtype={name: str for name in names if name in set(text)},
            na_values=["", *missing_values],
            keep_default_na=False,
            skipinitialspace=True,
            low_memory=False,
            encoding="utf-8-sig",
        )
    if len(names) > 1 and frame[names[-1]].isna().any():  # pandas fills a short row up with missing cells
        _refuse_short_rows(path, separator, len(names), key)
    return frame


def _header(path: Path, key: str) -> tuple[str, list[str]]:
    """Returns the separator and the column names of a text table."""
    with _open_text(path) as stream:
        first = next((line for line in stream if line.strip()), "")
    if not first:
        raise UserError(f"{key}: {path} is empty")
    counts = {separator: first.count(separator) for separator in ("\t", ",", ";", "|")}
    separator = max(counts, key=lambda candidate: counts[candidate]) if any(counts.values()) else ","
    names = next(csv.reader([first], delimiter=separator, skipinitialspace=True))
    if all(re.fullmatch(r"\s*[-+]?(\d+\.?\d*|\.\d+)([eE][-+]?\d+)?\s*", name) for name in names):
        raise UserError(f"{key}: {path} has no header: its first line ({first.strip()[:40]}) holds only numbers")
    return separator, _distinct(names, path, key)


def _distinct(names: Sequence[str], path: Path, key: str) -> list[str]:
    """Returns the stripped names, those without one as 'Unnamed: i', or refuses the ones that occur twice."""
    stripped = [name.strip() or f"Unnamed: {index}" for index, name in enumerate(names)]
    twice = [name for name, count in Counter(stripped).items() if count > 1]
    if twice:
        raise UserError(f"{key}: {path} has {len(twice)} duplicate column name(s): {', '.join(map(repr, twice[:5]))}")
    return stripped


def _open_text(path: Path) -> TextIO:
    suffix = path.suffix.lower()
    if suffix == ".zip":
        with zipfile.ZipFile(path) as archive:
            return io.TextIOWrapper(archive.open(archive.namelist()[0]), encoding="utf-8-sig", newline="")
    if suffix == ".gz":
        return gzip.open(path, "rt", encoding="utf-8-sig", newline="")
    if suffix == ".bz2":
        return bz2.open(path, "rt", encoding="utf-8-sig", newline="")
    if suffix == ".xz":
        return lzma.open(path, "rt", encoding="utf-8-sig", newline="")
    return path.open(encoding="utf-8-sig", newline="")


def _refuse_short_rows(path: Path, separator: str, columns: int, key: str) -> None:
    with _open_text(path) as stream:
        reader = csv.reader(stream, delimiter=separator, skipinitialspace=True)
        for row in reader:
            if row and len(row) < columns and any(cell.strip() for cell in row):
                words = f"line {reader.line_num} has {len(row)} cells where the header has {columns}"
                raise UserError(f"{key}: {path} has a broken row: {words}")


def _plain(column: pd.Series, missing_values: Sequence[str], key: str) -> pd.Series:
    """Returns one column as float64, int64, bool, datetime64 or stripped text."""
    kind = pd.api.types
    if isinstance(column.dtype, pd.CategoricalDtype):
        column = column.astype(column.cat.categories.dtype)
    if kind.is_timedelta64_dtype(column):
        seconds: pd.Series = column.dt.total_seconds()
        return seconds
    if kind.is_datetime64_any_dtype(column):
        return pd.to_datetime(column, utc=True).dt.tz_localize(None)
    if kind.is_bool_dtype(column) and not column.isna().any():
        return column.astype(bool)
    if kind.is_numeric_dtype(column) and not kind.is_bool_dtype(column) and not kind.is_complex_dtype(column):
        exact = kind.is_integer_dtype(column) and not column.isna().any()
        number: pd.Series = column.astype("int64" if exact else "float64")
        return number
    if kind.is_object_dtype(column):
        _refuse_odd_cells(column.dropna(), key)
    words = column.astype("str").str.strip()
    return words.mask(words.isin(["", *missing_values]))


def _refuse_odd_cells(cells: pd.Series, key: str) -> None:
    odd = [type(cell).__name__ for cell in cells if not pd.api.types.is_scalar(cell) or isinstance(cell, bytes)]
    if odd:
        raise UserError(
            f"{key}: column {cells.name!r} holds {odd[0]} cells; leave it out with data.drop: [{cells.name}]"
        )
