"""What was read and how it will be used, as one printed page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from textwrap import wrap

import numpy as np
from lightning.pytorch.utilities import rank_zero_only
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from mlp_lab.data.columns import Column
from mlp_lab.data.spec import DataSpec
from mlp_lab.data.splits import Duplicates
from mlp_lab.text import printable

HEAD = 8
"""Characters of a line's head, such as `target`, and the blank behind it."""
MOST_ROWS = 40
"""Columns that are listed one by one; a wider table shows its first ones and counts the rest by kind."""
MOST_NOTES = 12
"""Notes on columns that are printed; the rest is counted."""
MOST_CLASSES = 4
"""Classes of which each share is told; of more, the least and the largest."""


@dataclass(frozen=True, kw_only=True)
class Description:
    """The facts of the page that are known once everything is fitted."""

    spec: DataSpec
    """What the model will know."""
    inferred: bool = False
    """Whether the task was inferred."""
    scaling: str
    """How numeric columns or pixels are scaled, in words; empty where there are none."""
    split: str
    """How the rows were split, in words."""
    left_out: int = 0
    """Training rows that `data.train_rows` leaves out."""
    duplicates: Duplicates | None = None
    """Exact copies across the parts, where they were counted."""
    unused: int = 0
    """Rows left out because their target is missing."""
    batch_size: int
    """Rows of a training batch, as asked for."""
    remarks: Sequence[str] = ()
    """What a user should check of the target and the columns, one line each."""


@rank_zero_only
def print_columns(
    label: str, columns: Sequence[Column], image_shape: Sequence[int] = (), console: Console | None = None
) -> None:
    """Prints the page's first part, on the first process only: what the table is, and what each column is taken for.

    Args:
        label: The file or the name of the table.
        columns: Every feature column, dropped ones too.
        image_shape: (height, width) where the columns are pixels, which are not listed.
        console: Where to print; the terminal by default.
    """
    console = console or Console(highlight=False)
    kinds = [column.kind for column in columns]
    if image_shape and np.prod(image_shape) == len(columns) == kinds.count("numeric"):
        _print_line(console, "data", f"{label}: images of {image_shape[0]} × {image_shape[1]} pixels")
    else:
        _print_line(console, "data", f"{label}, feature columns: {_counted(kinds)}")
        console.print(_columns_table(columns))


@rank_zero_only
def print_description(description: Description, console: Console | None = None) -> None:
    """Prints the page's second part, on the first process only: scaling, target, rows, and what to know of them."""
    console = console or Console(highlight=False)
    for head, words in _lines(description):
        _print_line(console, head, words)


def _lines(description: Description) -> Iterator[tuple[str, str]]:
    spec = description.spec
    train, val, test = spec.rows
    if description.scaling:
        yield "scaling", description.scaling
    yield "target", target_words(spec, inferred=description.inferred)
    of = f" of {train + description.left_out:,}" if description.left_out else ""
    yield "rows", f"{train:,}{of} train, {val:,} validation, {test:,} test ({description.split})"
    if description.batch_size > train:
        yield (
            "note",
            f"data.batch_size: {description.batch_size:,} is more than the {train:,} training rows; each step trains "
            "on all of them",
        )
    if description.unused:
        yield "note", f"{description.unused:,} rows have no target and are left out"
    if description.duplicates and any(description.duplicates):
        yield "note", duplicate_words(description.duplicates)
    for line in _notes(description.remarks):
        yield "note", line


def _print_line(console: Console, head: str, words: str) -> None:
    """Prints words behind a head, and beneath one another where they need several lines."""
    lines = wrap(printable(words), max(console.width - HEAD, 20), break_long_words=False, break_on_hyphens=False)
    text = Text(head.ljust(HEAD), style="bold").append(f"\n{' ' * HEAD}".join(lines), style="not bold")
    console.print(text, soft_wrap=True)


def _notes(lines: Sequence[str]) -> list[str]:
    """Returns the first lines, and how many there are besides."""
    rest = len(lines) - MOST_NOTES
    return [*lines[:MOST_NOTES], *([f"and {rest:,} more of this kind"] if rest > 0 else [])]


def _counted(kinds: Sequence[str]) -> str:
    return ", ".join(f"{number} {kind}" for kind, number in Counter(kinds).items())


def target_words(spec: DataSpec, *, inferred: bool) -> str:
    """Says what is predicted."""
    names = ", ".join(spec.targets[:5]) + (", …" if len(spec.targets) > 5 else "")
    how = " (inferred; data.task overrides)" if inferred else ""
    if spec.task == "regression":
        pairs = zip(spec.target_mean, spec.target_std, strict=True)
        units = [f"mean {mean:,.6g}, standard deviation {std:,.6g}" for mean, std in pairs]
        return f"{names}: regression{how}; {units[0]}" + ("; …" if len(units) > 1 else "")
    noun = "labels" if spec.task == "multilabel" else "classes"
    shares = [100 * count / spec.rows[0] for count in spec.class_counts]
    if len(shares) > MOST_CLASSES:
        words = f"{min(shares):.1f}% to {max(shares):.1f}% of the rows each"
    else:
        words = ", ".join(f"{name} {share:.1f}%" for name, share in zip(spec.classes, shares, strict=True))
    return f"{names}: {spec.task}, {len(spec.classes)} {noun}{how}; {words}"


def duplicate_words(duplicates: Duplicates) -> str:
    """Says how many rows of an evaluation part were seen before."""
    return (
        f"{duplicates.val:,} validation rows are exact copies of training rows, "
        f"{duplicates.test:,} test rows of training or validation rows"
    )


def _columns_table(columns: Sequence[Column]) -> RenderableType:
    table = Table(box=None, pad_edge=False, padding=(0, 2, 0, 0), header_style="bold")
    shown = columns[:MOST_ROWS]
    table.add_column(
        "column",
        no_wrap=True,
        overflow="ellipsis",
        width=max([6, *(min(28, len(printable(item.name))) for item in shown)]),
    )
    table.add_column("kind", no_wrap=True, width=11)
    table.add_column("missing", justify="right", no_wrap=True, width=7)
    table.add_column("distinct", justify="right", no_wrap=True, width=8)
    table.add_column("training values", overflow="ellipsis", min_width=15)
    for column in shown:
        remarks = "; ".join(filter(None, (column.how, column.note)))
        words = column.note if column.kind == "dropped" else column.values + (f" ({remarks})" if remarks else "")
        missing = f"{column.missing:,}" if column.missing else ""
        distinct = f"{column.distinct:,}" if column.distinct else ""
        cell = Text(printable(words), no_wrap=not remarks, overflow="fold" if remarks else "ellipsis")
        style = "dim" if column.kind == "dropped" else ""
        table.add_row(Text(printable(column.name)), column.kind, missing, distinct, cell, style=style)
    if rest := columns[MOST_ROWS:]:
        table.add_row("…", "", "", "", Text(f"and {len(rest)} more: {_counted([column.kind for column in rest])}"))
    return table


@rank_zero_only
def print_fitted(
    label: str,
    rows: Mapping[str, int],
    no_target: str = "",
    console: Console | None = None,
    *,
    news: Sequence[str] = (),
) -> None:
    """Prints what is served of data that is prepared as a checkpoint says, on the first process only.

    Args:
        label: The file or the name of the data.
        rows: By part; a new table serves the same rows as several parts.
        no_target: Why the rows of a new table can be predicted alone; empty where they can be tested too.
        console: Where to print; the terminal by default.
        news: What a new table has that no training row has, one line each.
    """
    console = console or Console(highlight=False)
    _print_line(console, "data", f"{label}, prepared as in the run")
    if "predict" in rows:
        judged = rows.get("test", 0)
        some = f", {judged:,} of them with their target" if 0 < judged < rows["predict"] else ""
        words = f"{rows['predict']:,} new{some}"
    else:
        names = {"val": "validation"}
        words = ", ".join(f"{count:,} {names.get(part, part)}" for part, count in rows.items())
    _print_line(console, "rows", words)
    if no_target:
        _print_line(console, "note", no_target)
    for line in _notes(news):
        _print_line(console, "note", line)
