"""Where a table comes from: a file, scikit-learn's bundled tables, or a public one by its name.

Public tables are `<root>/tabular/NAME.csv` where that is there, else they are downloaded from OpenML to that place.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path

import pandas as pd

from mlp_lab.data.origins import Origin, table_of
from mlp_lab.data.spec import TaskName
from mlp_lab.data.tables import MISSING_VALUES, file_fingerprint, plain_columns, read_table
from mlp_lab.errors import UserError, unknown
from mlp_lab.files import whole_file
from mlp_lab.paths import expand_path


@dataclass(frozen=True, kw_only=True)
class NamedTable:
    """A public table and what it is for."""

    target: str
    """The column to predict."""
    task: TaskName
    """What is predicted."""
    drop: tuple[str, ...] = ()
    """Columns that are no features, such as customer numbers."""
    bundled: str = ""
    """Name of scikit-learn's loader, for the tables that need no file."""
    openml: int = 0
    """Number of the data set on openml.org, for the others."""
    rename: Mapping[str, str] = field(default_factory=dict)
    """OpenML's column names to the file's."""
    image_shape: tuple[int, ...] = ()
    """(height, width) where the columns are pixels."""


NAMED_TABLES: dict[str, NamedTable] = {
    "digits": NamedTable(target="digit", task="multiclass", bundled="load_digits", image_shape=(8, 8)),
    "iris": NamedTable(target="species", task="multiclass", bundled="load_iris"),
    "wine": NamedTable(target="cultivar", task="multiclass", bundled="load_wine"),
    "breast_cancer": NamedTable(target="diagnosis", task="binary", bundled="load_breast_cancer"),
    "diabetes": NamedTable(target="progression", task="regression", bundled="load_diabetes"),
    "adult": NamedTable(target="income", task="binary", openml=1590, rename={"class": "income"}),
    "california": NamedTable(target="median_house_value", task="regression", openml=43939),
    "telco": NamedTable(target="Churn", task="binary", drop=("customerID",), openml=42178),
    "letter": NamedTable(
        target="lettr",
        task="multiclass",
        openml=6,
        rename={
            "class": "lettr",
            "x-box": "x.box",
            "y-box": "y.box",
            "x-bar": "x.bar",
            "y-bar": "y.bar",
            "x-ege": "x.ege",
            "y-ege": "y.ege",
        },
    ),
}


@dataclass(frozen=True, kw_only=True)
class Source:
    """What was read: one table, or a table and another one with its test rows."""

    label: str
    """What to call it: the file or the name."""
    frames: tuple[pd.DataFrame, ...]
    """One or two tables as they were read, indexed by where each row stands (see `origins.py`)."""
    fingerprints: tuple[str, ...]
    """Shortened SHA-256 of each."""
    missing_values: tuple[str, ...] = MISSING_VALUES
    """Cells of text that mean 'missing', besides empty and blank ones."""
    named: NamedTable | None = None
    """The record of a named table."""
    remarks: tuple[str, ...] = ()
    """What a user should know of the choice of the table, one line each."""

    def joined(self, columns: Sequence[str], drop: Sequence[str] = ()) -> pd.DataFrame:
        """Returns these columns of all rows, plain (see `tables.py`); the others may hold anything.

        Args:
            columns: Names, without repetition.
            drop: Columns that were left out by `data.drop`, for the advice in an error.

        Raises:
            UserError: If a table lacks one of them, or one is not made of numbers and words.
        """
        tables = [self.plain(index, columns, drop) for index in range(len(self.frames))]
        return tables[0] if len(tables) == 1 else plain_columns(pd.concat(tables), self.missing_values, drop)

    def plain(self, index: int, columns: Sequence[str], drop: Sequence[str] = ()) -> pd.DataFrame:
        """Returns these columns of one table; see `joined`."""
        frame = self.frames[index]
        absent = [name for name in columns if name not in frame.columns]
        if absent:
            raise UserError(f"{table_of(frame)} lacks column(s) {', '.join(map(repr, absent))}")
        return plain_columns(frame[list(columns)], self.missing_values, drop)


def read_source(
    *,
    path: str | None = None,
    dataset: str | None = None,
    test_path: str | None = None,
    root: str | None = None,
    missing_values: Sequence[str] = MISSING_VALUES,
    text: Sequence[str] = (),
) -> Source:
    """Reads a table from `path`, or the named one (`digits` where neither is given).

    Args:
        path: A table file; it wins over `dataset`.
        dataset: Name in `NAMED_TABLES`.
        test_path: A file with the test rows.
        root: Folder of data files (`data_root`).
        missing_values: Cells that mean 'missing', besides empty and blank ones.
        text: Columns whose cells are kept as they are written.

    Raises:
        UserError: If the name is unknown or a file cannot be had or read.
    """
    name = None if path else dataset or "digits"
    named = named_table(name) if name else None
    if named and named.bundled:
        frame, fingerprint = bundled_table(str(name))
        if test_path:
            raise UserError(
                f"data.test_path: {test_path!r} does not go with the bundled table {name!r}; give data.path"
            )
        frame.index = Origin(key="data.dataset", label=str(name)).index(len(frame))
        remarks = () if dataset else ("no table is named, so the digits are used; name your own with --data.path FILE",)
        return Source(label=str(name), frames=(frame,), fingerprints=(fingerprint,), named=named, remarks=remarks)
    files = named_files(str(name), root) if named else (Path(str(path)),)
    keys = ("data.dataset", "data.dataset") if named else ("data.path", "data.test_path")
    if test_path:
        files, keys = (files[0], Path(test_path)), (keys[0], "data.test_path")
    return Source(
        label=str(name or path),
        frames=tuple(
            read_table(file, missing_values=missing_values, text=text, key=key)
            for file, key in zip(files, keys, strict=False)
        ),
        fingerprints=tuple(file_fingerprint(file) for file in files),
        missing_values=tuple(missing_values),
        named=named,
    )


def named_table(name: str) -> NamedTable:
    """Returns the record of a named table, or raises the UserError that lists the names."""
    if name not in NAMED_TABLES:
        raise unknown("data.dataset", name, NAMED_TABLES)
    return NAMED_TABLES[name]


def data_root(root: str | None) -> Path:
    """Returns the folder of data files: the argument, else $MLP_LAB_DATA, else ./data."""
    return expand_path("data.root" if root else "MLP_LAB_DATA", root or os.environ.get("MLP_LAB_DATA") or "data")


def bundled_table(name: str) -> tuple[pd.DataFrame, str]:
    """Returns one of scikit-learn's own tables, classes by name, and its fingerprint."""
    record = named_table(name)
    datasets = import_module("sklearn.datasets")
    bunch = getattr(datasets, record.bundled)(as_frame=True)
    frame: pd.DataFrame = bunch.frame.rename(columns={"target": record.target})
    if record.task != "regression":
        frame[record.target] = [str(bunch.target_names[code]) for code in bunch.target]
    digest = hashlib.sha256(pd.util.hash_pandas_object(frame, index=False).to_numpy().tobytes())
    return frame, digest.hexdigest()[:16]


def named_files(name: str, root: str | None) -> tuple[Path, ...]:
    """Returns the files of a public table: NAME.csv and, where it is there, NAME-test.csv with the test rows.

    A table that is not there is downloaded from OpenML and written as NAME.csv.

    Raises:
        UserError: If it can be neither found nor downloaded, with the place to put the file.
    """
    folder = data_root(root) / "tabular"
    file = folder / f"{name}.csv"
    if not file.is_file():
        _download(name, file)
    test = folder / f"{name}-test.csv"
    return (file, test) if test.is_file() else (file,)


def _download(name: str, file: Path) -> None:
    record = named_table(name)
    fetch: Callable[..., object] = import_module("sklearn.datasets").fetch_openml
    try:
        bunch = fetch(data_id=record.openml, as_frame=True, parser="pandas", cache=False)
    except Exception as error:  # whatever the network, the server or the parser does, the way out is the same
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise UserError(
            f"data.dataset: {name!r} is not at {file} and OpenML's data set {record.openml} could not be downloaded "
            f"({reason}); put the file there as CSV with a column {record.target!r}, or set data.root"
        ) from error
    frame: pd.DataFrame = bunch.frame.rename(columns=dict(record.rename))  # type: ignore[attr-defined]
    for column in frame.columns[[not pd.api.types.is_numeric_dtype(dtype) for dtype in frame.dtypes]]:
        frame[column] = frame[column].astype("str").str.strip("'")  # ARFF quotes words with blanks
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        with whole_file(file) as table:
            frame.to_csv(table, index=False)
    except OSError as error:
        raise UserError(f"data.root: {file.parent} cannot be written ({error.strerror}); set data.root") from error
