"""Tables from files: CSV, TSV and Parquet to a pandas frame of plain columns, every mistake told in one line.

A plain column holds float64, int64, uint64, bool, datetime64 or stripped text, and NaN (NaT) where a cell is missing. A
column of a text file is one of numbers only where nothing is lost by it: codes with leading zeros, numbers that may be
written in another notation, and integers that float64 does not hold stay text. A line in a message is a line of the
file, counted from 1.
"""

from __future__ import annotations

import hashlib
import lzma
import re
import warnings
import zipfile
import zlib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow
import pyarrow.parquet

from mlp_lab.data.notation import EXACT, plain_numbers
from mlp_lab.data.origins import Origin, table_of
from mlp_lab.data.text_files import (
    COMPRESSIONS,
    TEXT_SUFFIXES,
    UNNAMED,
    open_text,
    read_header,
    refuse_long_rows,
    refuse_short_rows,
    skip_separator_line,
    wrong_encoding,
)
from mlp_lab.errors import UserError, nearest
from mlp_lab.flags import flag
from mlp_lab.paths import expand_path

MISSING_VALUES: tuple[str, ...] = ("?", "NA", "N/A", "n/a", "NaN", "nan", "NULL", "null", "#N/A", "#NV", "<NA>")
"""Cells that mean 'missing', besides the empty and the blank ones, which always do."""
NULLABLE: dict[pyarrow.DataType, pd.api.extensions.ExtensionDtype] = {
    pyarrow.int8(): pd.Int8Dtype(),
    pyarrow.int16(): pd.Int16Dtype(),
    pyarrow.int32(): pd.Int32Dtype(),
    pyarrow.int64(): pd.Int64Dtype(),
    pyarrow.uint8(): pd.UInt8Dtype(),
    pyarrow.uint16(): pd.UInt16Dtype(),
    pyarrow.uint32(): pd.UInt32Dtype(),
    pyarrow.uint64(): pd.UInt64Dtype(),
}
"""Integers of Parquet beside a gap, which pandas would else turn into floats."""
PARQUET_SUFFIXES: tuple[str, ...] = (".parquet", ".pq")


def read_table(
    path: str | Path,
    *,
    missing_values: Sequence[str] = MISSING_VALUES,
    text: Sequence[str] = (),
    key: str = "data.path",
) -> pd.DataFrame:
    """Reads a table; `plain_columns` then makes the columns that are needed plain.

    Args:
        path: A .csv, .tsv or .txt file (also .gz, .bz2, .xz, .zip; the separator is taken from the header) or a
            .parquet file.
        missing_values: Cells that mean 'missing', besides empty and blank ones.
        text: Columns whose cells are kept as they are written, so that the code 007 does not become the number 7.
        key: The config key that errors name.

    Returns:
        The frame, with stripped, distinct column names; its index says of each row where it stands (see `origins.py`).

    Raises:
        UserError: The file is missing, empty, unreadable or of an unknown type; a row has too many or too few cells;
            two columns share a name.
    """
    file = _existing_file(expand_path(key, path), key)
    with _one_line_errors(file, key):
        if file.suffix.lower() in PARQUET_SUFFIXES:
            frame = _read_parquet(file, key)
        else:
            frame = _read_text(file, missing_values, text, key)
    if not len(frame):
        raise UserError(f"{key}: {file} has no rows below its header")
    origin = Origin(key=key, label=str(file), text=file if is_text(file) else None)
    frame.index = origin.index(len(frame))
    return frame


def is_text(path: Path) -> bool:
    """Says whether a table file holds text, packed or not."""
    return path.suffix.lower() not in PARQUET_SUFFIXES


def plain_columns(
    frame: pd.DataFrame, missing_values: Sequence[str] = MISSING_VALUES, drop: Sequence[str] = ()
) -> pd.DataFrame:
    """Returns the frame with every column plain (see the top of the file).

    Args:
        frame: As it was read, the columns that are needed.
        missing_values: Cells of text that mean 'missing', besides empty and blank ones.
        drop: Columns that have been left out already; the advice to leave out more repeats them.

    Raises:
        UserError: Columns hold lists, bytes or something else that a table of numbers and words does not.
    """
    odd = {str(name): what for name in frame.columns if (what := _odd_cells(frame[name]))}
    if odd:
        columns = ", ".join(f"{name!r} ({what})" for name, what in odd.items())
        raise UserError(
            f"{table_of(frame)} has cells that are neither numbers nor words in column(s) {columns}; leave them out "
            f"with {flag('data.drop', [*drop, *odd])}"
        )
    return pd.DataFrame({name: _plain(frame[name], missing_values) for name in frame.columns}, index=frame.index)


def file_fingerprint(path: str | Path) -> str:
    """Returns the first 16 hexadecimal digits of the SHA-256 of a file's bytes."""
    with expand_path("data.path", path).open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()[:16]


def _existing_file(path: Path, key: str) -> Path:
    """Returns the path if it is a file of a known type."""
    if path.is_dir():
        raise UserError(f"{key}: {path} is a directory; give one table file ({_accepted()})")
    if not path.is_file():
        siblings = [item.name for item in path.parent.iterdir()] if path.parent.is_dir() else []
        guess = nearest(path.name, siblings)
        hint = f" (did you mean {path.parent / guess}?)" if guess else f" (looked from {Path.cwd()})"
        raise UserError(f"{key}: {path} does not exist{hint}")
    suffixes = [suffix.lower() for suffix in path.suffixes]
    inner = suffixes[-2:-1] if suffixes and suffixes[-1] in COMPRESSIONS else suffixes[-1:]  # a ZIP file says itself
    if not {*inner, *suffixes[-1:]} & {*TEXT_SUFFIXES, *PARQUET_SUFFIXES, ".zip"}:
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
        raise UserError(wrong_encoding(path, key)) from error
    except pd.errors.EmptyDataError as error:
        raise UserError(f"{key}: {path} is empty") from error
    except (pd.errors.ParserError, pd.errors.ParserWarning) as error:
        raise UserError(f"{key}: {path} has a broken row: {_parser_words(str(error))}") from error
    except pyarrow.ArrowException as error:
        raise UserError(f"{key}: {path} is not a readable Parquet file ({str(error).splitlines()[0]})") from error
    except PermissionError as error:
        raise UserError(f"{key}: {path} may not be read by you (permission denied)") from error
    except (EOFError, OSError, NotImplementedError, lzma.LZMAError, zipfile.BadZipFile, zlib.error) as error:
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
    header = read_header(path, key)
    names = _distinct(header.names, path, key)
    with warnings.catch_warnings(), open_text(path, key) as stream:
        warnings.simplefilter("error", pd.errors.ParserWarning)  # pandas only warns when it cuts rows off
        skip_separator_line(stream)
        try:
            frame = pd.read_csv(
                stream,
                sep=header.separator,
                header=0,
                names=names,
                index_col=False,
                dtype=str,  # as written; `plain_numbers` finds out which columns are numbers
                na_values=["", *missing_values],
                keep_default_na=False,
                skipinitialspace=True,
                low_memory=False,
            )
        except (pd.errors.ParserError, pd.errors.ParserWarning):
            refuse_long_rows(path, header, key)
            raise
    named = [name for name, written in zip(names, header.names, strict=True) if written]
    if len(names) > 1 and named and frame[named[-1]].isna().any():  # pandas fills a short row up with missing cells
        refuse_short_rows(path, header, key)
    words = {name: _plain(frame[name], missing_values) for name in names}
    return pd.DataFrame({name: cells if name in set(text) else plain_numbers(cells) for name, cells in words.items()})


def _read_parquet(path: Path, key: str) -> pd.DataFrame:
    """Reads a Parquet file by its own types: pandas' metadata may name types that pandas cannot rebuild, such as lists.

    An index that pandas wrote without a name is left out; one with a name is a column.
    """
    table = pyarrow.parquet.ParquetFile(path).read().replace_schema_metadata(None)
    frame: pd.DataFrame = table.to_pandas(types_mapper=NULLABLE.get)
    frame.columns = pd.Index(_distinct([str(name) for name in frame.columns], path, key))
    return frame.drop(columns=[name for name in frame.columns if re.fullmatch(r"__index_level_\d+__", name)])


def _distinct(names: Sequence[str], path: Path, key: str) -> list[str]:
    """Returns the stripped names, or refuses the ones that occur twice."""
    stripped = [name.strip() or f"{UNNAMED}{index}" for index, name in enumerate(names)]
    twice = [name for name, count in Counter(stripped).items() if count > 1]
    if twice:
        raise UserError(f"{key}: {path} has {len(twice)} duplicate column name(s): {', '.join(map(repr, twice[:5]))}")
    return stripped


def _plain(column: pd.Series, missing_values: Sequence[str]) -> pd.Series:
    """Returns one column as float64, int64, uint64, bool, datetime64 or stripped text."""
    kind = pd.api.types
    if isinstance(column.dtype, pd.CategoricalDtype):
        column = column.astype(column.cat.categories.dtype)
    if kind.is_timedelta64_dtype(column):
        seconds: pd.Series = column.dt.total_seconds()
        return seconds
    if kind.is_datetime64_any_dtype(column):
        moments = pd.to_datetime(column, utc=True).dt.tz_localize(None)
        absent = pd.to_datetime(pd.Series(missing_values, dtype="str"), format="ISO8601", errors="coerce", utc=True)
        return moments.mask(moments.isin(absent.dropna().dt.tz_localize(None)))
    if kind.is_bool_dtype(column) and not column.isna().any():
        return column.astype(bool)
    if kind.is_numeric_dtype(column) and not kind.is_bool_dtype(column) and not kind.is_complex_dtype(column):
        number = _plain_number(column, missing_values)
        if number is not None:
            return number
    words = column.astype("str").str.strip()
    wholes = [f"{word}.0" for word in missing_values if re.fullmatch(r"[+-]?\d+", word)]
    return words.mask(words.isin(["", *missing_values, *wholes]))


def _plain_number(column: pd.Series, missing_values: Sequence[str]) -> pd.Series | None:
    """Returns numbers as int64, uint64 or float64; None for whole numbers beside a gap that float64 does not hold."""
    absent = pd.to_numeric(pd.Series(missing_values, dtype="str"), errors="coerce").dropna().tolist()
    gaps = column.isna() | column.isin(absent) if absent else column.isna()
    if not pd.api.types.is_integer_dtype(column):
        return column.astype("float64").mask(gaps) if absent else column.astype("float64")
    known = column[~gaps]
    if not gaps.any():
        large = len(known) > 0 and int(known.max()) > np.iinfo("int64").max
        return column.astype("uint64" if large else "int64")
    if len(known) and max(abs(int(known.min())), abs(int(known.max()))) > EXACT:
        return None
    return column.mask(gaps).astype("float64")


def _odd_cells(column: pd.Series) -> str:
    """Returns what the cells of a column are, such as `list`, where it is nothing that a table can hold, else ''."""
    if not pd.api.types.is_object_dtype(column):
        return ""
    kinds = {list: "list", dict: "struct", bytes: "bytes", np.ndarray: "list", tuple: "list"}
    odd = (cell for cell in column.dropna() if not pd.api.types.is_scalar(cell) or isinstance(cell, bytes))
    first = next(odd, None)
    return "" if first is None else kinds.get(type(first), type(first).__name__)
