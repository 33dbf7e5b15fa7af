"""Where a cell comes from, as errors name it: the config key, the file, and the line in it.

Frames that are read from files carry this in their index: a level of `Origin`, and a level of row numbers in that file,
from 0. Other frames have row numbers alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mlp_lab.data.text_files import cell_text, line_of


@dataclass(frozen=True, kw_only=True)
class Origin:
    """One table that was read."""

    key: str
    """The config key that names it."""
    label: str
    """What the user calls it: the file or the name."""
    text: Path | None = None
    """The file, where it is text and so has lines."""

    def index(self, rows: int) -> pd.MultiIndex:
        """Returns an index of this origin and the row numbers 0 .. rows - 1."""
        levels: Any = [[self], pd.RangeIndex(rows)]
        codes: Any = [np.zeros(rows, dtype=np.int8), np.arange(rows)]
        return pd.MultiIndex(levels=levels, codes=codes, verify_integrity=False)

    def place(self, row: int) -> str:
        """Returns how a row is named: by its line in a text file, else counted from 1."""
        line = line_of(self.text, row) if self.text is not None else None
        return f"row {row + 1}" if line is None else f"line {line}"


def row_numbers(frame: pd.DataFrame) -> NDArray[np.int64]:
    """Returns the number of each row in its own table, from 0, (N,)."""
    return frame.index.get_level_values(-1).to_numpy(dtype=np.int64, copy=True)


def table_of(frame: pd.DataFrame | pd.Series, position: int = 0, key: str = "") -> str:
    """Returns how a message begins that is about the table of a row, such as `data.path: houses.csv`.

    Args:
        frame: What the row is in.
        position: The row's position in it.
        key: A key to name in place of the one that names the table.

    >>> table_of(pd.DataFrame({"a": [1]}))
    'data.path: the table'
    """
    label = frame.index[position] if len(frame) else None
    if isinstance(label, tuple):
        return f"{key or label[0].key}: {label[0].label}"
    return f"{key or 'data.path'}: the table"


def place_of(cells: pd.DataFrame | pd.Series, position: int) -> str:
    """Returns how a row is named: `line 3 of houses.csv` (the header is line 1), or `row 2`, counted from 1.

    >>> place_of(pd.Series([1.5, 2.5]), 1)
    'row 2'
    """
    label = cells.index[position]
    return f"{_row(label)} of {label[0].label}" if isinstance(label, tuple) else _row(label)


def _row(label: Any) -> str:
    return label[0].place(int(label[1])) if isinstance(label, tuple) else f"row {int(label) + 1}"


def text_of(cells: pd.Series, position: int) -> str:
    """Returns a cell as its file writes it, such as NA of a missing one; empty where it is of no text file.

    >>> text_of(pd.Series([1.5], name="a"), 0)
    ''
    """
    label = cells.index[position]
    file = label[0].text if isinstance(label, tuple) else None
    return "" if file is None else cell_text(file, int(label[1]), str(cells.name))


def cell_of(cells: pd.Series, position: int, key: str = "") -> str:
    """Returns how a message begins that is about one cell.

    >>> cell_of(pd.Series([1.5, 2.5], name="a"), 1)
    "data.path: column 'a', row 2"
    """
    label = cells.index[position]
    start = f"{table_of(cells, position, key)}," if isinstance(label, tuple) else f"{key or 'data.path'}:"
    return f"{start} column {cells.name!r}, {_row(label)}"
