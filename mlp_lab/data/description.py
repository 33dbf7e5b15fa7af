"""What was read and how it will be used, as one printed page."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from lightning.pytorch.utilities import rank_zero_only
from rich.console import Console, RenderableType
from rich.table import Table
from rich.text import Text

from mlp_lab.data.columns import Column
from mlp_lab.data.preprocessing import SCALINGS
from mlp_lab.data.spec import DataSpec
from mlp_lab.data.splits import Duplicates

MOST_ROWS = 40
"""Columns that are listed one by one; a wider table shows its first ones and counts the rest by kind."""
MOST_CLASSES = 4
"""Classes of which each share is told; of more, the least and the largest."""


@dataclass(frozen=True, kw_only=True)
class Description:
    """The facts of the page."""

    label: str
    """The file or the name of the table."""
    spec: DataSpec
    """What the model will know."""
    columns: Sequence[Column]
    """Every feature column, dropped ones too."""
    inferred: bool
    """Whether the task was inferred."""
    scaling: str
    """Name of the scaling of numeric columns."""
    split: str
    """How the rows were split, in words."""
    duplicates: Duplicates
    """Exact copies across the parts."""
    unused: int = 0
    """Rows left out because their target is missing."""


@rank_zero_only
def print_description(description: Description, console: Console | None = None) -> None:
    """Prints the page, on the first process only."""
    console = console or Console(highlight=False)
    for part in _parts(description):
        console.print(part)


def _parts(description: Description) -> Iterator[RenderableType]:
    spec = description.spec
    if spec.image_shape:
        height, width = spec.image_shape
        yield _line("data", f"{description.label}: images of {height} × {width} pixels")
    else:
        kinds = _counted([column.kind for column in description.columns])
        yield _line("data", f"{description.label}, feature columns: {kinds}")
        yield _columns_table(description.columns)
    if spec.numeric:
        yield _line("scaling", f"{description.scaling}: {SCALINGS[description.scaling].words}")
    yield _line("target", target_words(spec, inferred=description.inferred))
    train, val, test = spec.rows
    yield _line("rows", f"{train:,} train, {val:,} validation, {test:,} test ({description.split})")
    if description.unused:
        yield _line("note", f"{description.unused:,} rows have no target and are left out")
    if any(description.duplicates):
        yield _line("note", duplicate_words(description.duplicates))


def _line(head: str, words: str) -> RenderableType:
    grid = Table.grid(padding=(0, 1))
    grid.add_column(width=7)
    grid.add_column()
    grid.add_row(Text(head, style="bold"), Text(words))
    return grid


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
        "column", no_wrap=True, overflow="ellipsis", width=max(6, *(min(28, len(item.name)) for item in shown))
    )
    table.add_column("kind", no_wrap=True, width=11)
    table.add_column("missing", justify="right", no_wrap=True, width=7)
    table.add_column("distinct", justify="right", no_wrap=True, width=8)
    table.add_column("values in the training rows", overflow="ellipsis")
    for column in shown:
        words = (
            column.note if column.kind == "dropped" else column.values + (f" ({column.note})" if column.note else "")
        )
        missing = f"{column.missing:,}" if column.missing else ""
        distinct = f"{column.distinct:,}" if column.distinct else ""
        cell = Text(words, no_wrap=True, overflow="ellipsis")
        style = "dim" if column.kind == "dropped" else ""
        table.add_row(Text(column.name), column.kind, missing, distinct, cell, style=style)
    if rest := columns[MOST_ROWS:]:
        table.add_row("…", "", "", "", Text(f"and {len(rest)} more: {_counted([column.kind for column in rest])}"))
    return table


@rank_zero_only
def print_fitted(label: str, rows: Mapping[str, int], no_target: str, console: Console | None = None) -> None:
    """Prints what is served of a table that is prepared as a checkpoint says."""
    console = console or Console(highlight=False)
    counts = ", ".join(f"{count:,} {name}" for name, count in rows.items())
    console.print(_line("data", f"{label}, prepared as in the run"))
    console.print(_line("rows", counts))
    if no_target:
        console.print(_line("note", no_target))
