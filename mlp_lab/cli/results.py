"""What a command leaves behind: a short table, `test.json`, `predictions.csv`."""

from __future__ import annotations

import csv
import json
import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import IO, Any

import lightning as L
import numpy as np
import pandas as pd
import torch
from lightning.pytorch.callbacks.early_stopping import EarlyStoppingReason
from numpy.typing import NDArray
from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import Tensor

from mlp_lab.cli.outputs import shown_path, source_path
from mlp_lab.data.module import Loaded, Part, TensorDataModule
from mlp_lab.data.spec import DataSpec
from mlp_lab.errors import UserError
from mlp_lab.files import whole_file
from mlp_lab.model.tasks import probabilities
from mlp_lab.population.best import BestMembers
from mlp_lab.text import printable, safe_cell
from mlp_lab.training.checkpoints import BestCheckpoint, EarlyStop
from mlp_lab.training.progress import EpochTable
from mlp_lab.training.tracking import RunDirectory, write_text

SHOWN_ROWS, SHOWN_COLUMNS = 5, 6  # of the predictions, on the screen


def report_fit(trainer: L.Trainer, spec: DataSpec, best: BestCheckpoint) -> None:
    """Prints the best epoch's validation scores, how fast the training was, and whether a NaN has ended it."""
    for stop in _callbacks(trainer):
        if isinstance(stop, EarlyStop) and stop.stopping_reason == EarlyStoppingReason.NON_FINITE_METRIC:
            value = float(trainer.callback_metrics[stop.monitor])
            print(f"stopped in epoch {trainer.current_epoch}: {stop.monitor} is {value}")
    count = max(trainer.current_epoch, best.epoch + 1)  # the best may be of an epoch that is not over yet
    epochs = f"{count} epoch{'' if count == 1 else 's'}"
    if isinstance(best, BestMembers) and best.epoch >= 0:
        print_scores(f"mean ± standard deviation of {len(best.members)} replicates at their best", spec, best.scores)
    elif best.epoch >= 0:
        print_scores(f"epoch {best.epoch + 1}, the best of {epochs}", spec, best.scores)
    elif best.failure is None:
        print(f"no validation in {epochs}")
    tables = [one for one in _callbacks(trainer) if isinstance(one, EpochTable) and one.total_seconds]
    rates = [f"{table.samples_per_second:,.0f} samples/s" for table in tables]
    steps = f"{trainer.global_step:,} optimizer step{'' if trainer.global_step == 1 else 's'}"
    print(", ".join([steps, *rates]))


def report_scores(stage: str, spec: DataSpec, rows: int, scores: Mapping[str, float]) -> None:
    """Prints a stage's scores."""
    print_scores(f"{stage}: {rows:,} row{'s' if rows != 1 else ''}", spec, scores)


def print_scores(title: str, spec: DataSpec, scores: Mapping[str, float], console: Console | None = None) -> None:
    """Prints scores as a table; those of a regression say which are in the target's own unit.

    The standard deviation of a score over replicates, `<score>_sd`, stands beside it.
    """
    console = console or Console(highlight=False)
    table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    if spec.task == "regression":
        table.add_column(style="dim", overflow="ellipsis", no_wrap=True)
    unit = (
        f"in the unit of {printable(spec.targets[0])}"
        if len(spec.targets) == 1
        else "mean over targets, each in its unit"
    )
    for name, value in scores.items():
        if name.removesuffix("_sd") != name and name.removesuffix("_sd") in scores:
            continue  # told beside its mean
        in_unit = spec.task == "regression" and name.rpartition("/")[2] in ("rmse", "mae")
        spread = f" ± {shown(scores[f'{name}_sd'])}" if f"{name}_sd" in scores else ""
        table.add_row(
            name, f"{shown(value)}{spread}", *([Text(unit if in_unit else "")] if len(table.columns) > 2 else [])
        )
    console.print(title, style="bold", markup=False, soft_wrap=True)
    console.print(table)


def shown(value: float) -> str:
    """Writes a score with four decimals, or with six digits where it is large or tiny.

    >>> shown(0.97531), shown(51234.567), shown(0.0000123)
    ('0.9753', '51,234.6', '1.23e-05')
    """
    if not math.isfinite(value):
        return str(value)
    return f"{value:.4f}" if 1e-3 <= abs(value) < 1000 or value == 0 else f"{value:,.6g}"


def record_test(
    run: RunDirectory | None, path: Path, loaded: Loaded, rows: int, scores: Mapping[str, float], checkpoint: Path
) -> None:
    """Writes the scores of a test, `test.json`, and notes in the run's provenance that the rows were read.

    A score that is not finite is written as null: JSON has no other word for it.

    Args:
        run: The run, or None.
        path: The file.
        loaded: What was read.
        rows: How many rows were measured.
        scores: The scores.
        checkpoint: Whose weights were measured.

    Raises:
        UserError: A file cannot be written.
    """
    values = {name: score if math.isfinite(score) else None for name, score in scores.items()}
    read = {"source": loaded.source, "rows": rows, "checkpoint": _shown(checkpoint.resolve(), run)}
    try:
        write_text(path, json.dumps({**values, **read}, indent=2) + "\n")
        if run is not None:
            note_read(run, "test", path, loaded, {**read, "scores": values})
    except OSError as error:
        raise UserError(f"test: {error.filename or path} cannot be written ({error.strerror})") from error
    print(printable(str(path)))


def note_read(run: RunDirectory, command: str, path: Path, loaded: Loaded, facts: Mapping[str, Any]) -> None:
    """Appends a read of rows, and the file that came of it, to the run's provenance."""
    values, source = run.read_provenance(), source_path(loaded)
    time = datetime.now(UTC).isoformat(timespec="seconds")
    place = {"path": None if source is None else str(source), "file": shown_path(path, run)}
    values.setdefault("test_reads", []).append({"time": time, "command": command, **facts, **place})
    run.write_provenance(values)


def write_predictions(
    path: Path, data: TensorDataModule, batches: Sequence[Tensor], *, safe_cells: bool = False
) -> int:
    """Writes one line a row: its number in the source (from 0), its names, its true value, its prediction.

    Floats are written with as many digits as make them unique. A column of `--id` that has the name of another one is
    written as `id(NAME)`.

    Args:
        path: The CSV file.
        data: The data module that served the rows.
        batches: Logits (B, C) in the order of the rows.
        safe_cells: Write text that a spreadsheet takes for a formula with ' before it; otherwise it stays as it is.

    Returns:
        The number of rows.

    Raises:
        UserError: A prediction is not finite, or the file cannot be written.
    """
    part, logits = data.part("predict" if "predict" in data.loaded.parts else "test"), torch.cat(list(batches)).double()
    check_finite(data.spec, part, logits)
    rows = len(logits)  # fewer than the part has under trainer.limit_predict_batches
    columns = {**true_values(data.spec, part, rows), **prediction_table(data.spec, logits)}
    names = {} if part.names is None else {str(name): cells.to_numpy()[:rows] for name, cells in part.names.items()}
    for name in list(names):
        free = name
        while free == "row" or free in columns or (free != name and free in names):
            free = f"id({free})"
        names[free] = names.pop(name)  # in the order of the names
    ids = np.arange(rows) if part.ids is None else part.ids.numpy()[:rows]
    frame = pd.DataFrame({"row": ids, **names, **columns})
    try:
        with whole_file(path) as file:
            write_table(frame, file, safe_cells=safe_cells)
    except OSError as error:
        raise UserError(f"predict: {path} cannot be written ({error.strerror})") from error
    print_preview(data.spec, frame)
    print(printable(str(path)))
    return rows


def write_table(frame: pd.DataFrame, file: IO[str], *, safe_cells: bool) -> None:
    """Writes a table as CSV; all text is quoted if any has a CR, which the writer of Python 3.11 leaves unquoted."""
    texts = frame.select_dtypes(exclude=["number", "bool"])
    bare = any("\r" in name for name in frame.columns) or any(
        "\r" in cell for name in texts for cell in texts[name].unique() if isinstance(cell, str)
    )
    if safe_cells:
        texts = texts.map(lambda cell: safe_cell(cell) if isinstance(cell, str) else cell)
        frame = frame.drop(columns=texts.columns).join(texts)[frame.columns].rename(columns=safe_cell)
    frame.to_csv(file, index=False, lineterminator="\n", quoting=csv.QUOTE_NONNUMERIC if bare else csv.QUOTE_MINIMAL)


def check_finite(spec: DataSpec, part: Part, logits: Tensor) -> None:
    """Refuses predictions that are not finite, which rows far from all training rows have.

    Raises:
        UserError: Names the first such row, and the column that is farthest out in it.
    """
    bad = ~logits.isfinite().all(1)  # (N,)
    if not bad.any():
        return
    row = int(bad.int().argmax())
    number = row if part.ids is None else int(part.ids[row])
    why = "the weights are too large"
    if spec.numeric:
        column = int(part.numeric[row].abs().argmax())
        why = f"column {spec.numeric[column]!r} is {part.numeric[row, column]:.3g} there after scaling"
    raise UserError(
        f"data.path: {int(bad.sum())} of {len(bad)} predictions are not finite, first in row {number + 1}: {why}; "
        "correct the cell, or leave the row out"
    )


def true_values(spec: DataSpec, part: Part, rows: int) -> dict[str, NDArray[Any]]:
    """Returns the target of a part's first rows by column, in its own unit; nothing where it is not known."""
    if part.truth is not None:
        return {_column(spec, "true", str(name)): cells.to_numpy()[:rows] for name, cells in part.truth.items()}
    if part.target is None or spec.task not in ("binary", "multiclass"):
        return {}
    return {"true": np.array([spec.classes[code] for code in part.target[:rows].tolist()])}


def prediction_table(spec: DataSpec, logits: Tensor) -> pd.DataFrame:
    """Turns logits (N, C) into columns: classes and their probabilities, or values in the target's own unit.

    Several targets have columns of their own, `prediction(NAME)`. Classes are those that the metrics count.
    """
    if spec.task == "regression":
        values = logits * logits.new_tensor(spec.target_std) + logits.new_tensor(spec.target_mean)  # (N, T)
        return pd.DataFrame(values.numpy(), columns=[_column(spec, "prediction", name) for name in spec.targets])
    shares = probabilities(spec.task, logits)  # (N, C)
    if spec.task == "binary":
        shares = torch.cat([(-logits).sigmoid(), shares], dim=1)  # (N, 2)
    if spec.task == "multilabel":
        labels = (logits > 0).long()  # (N, T)
        found = pd.DataFrame(labels.numpy(), columns=[_column(spec, "prediction", name) for name in spec.classes])
    else:
        codes = (logits[:, 0] > 0).long() if spec.task == "binary" else logits.argmax(1)  # (N,)
        found = pd.DataFrame({"prediction": [spec.classes[code] for code in codes.tolist()]})
    return pd.concat([found, pd.DataFrame(shares.numpy(), columns=[f"p({name})" for name in spec.classes])], axis=1)


def print_preview(spec: DataSpec, frame: pd.DataFrame, console: Console | None = None) -> None:
    """Prints the first predictions; of classes, only the most probable one."""
    console = console or Console(highlight=False)
    head = frame.head(SHOWN_ROWS)
    if spec.task in ("binary", "multiclass"):  # the last columns are the probabilities
        shares = head.iloc[:, -len(spec.classes) :].max(axis=1)
        head = pd.concat([head.iloc[:, : -len(spec.classes)], shares.rename("probability")], axis=1)
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for name in head.columns[:SHOWN_COLUMNS]:
        table.add_column(Text(printable(str(name))), justify="right", no_wrap=True, overflow="ellipsis", max_width=24)
    digits = _digits(spec)
    for cells in head.iloc[:, :SHOWN_COLUMNS].itertuples(index=False):
        table.add_row(*(Text(_shown_cell(cell, digits)) for cell in cells))
    console.print(table)
    console.print(f"{len(frame):,} prediction{'s' if len(frame) != 1 else ''}", soft_wrap=True)


def _digits(spec: DataSpec) -> int:
    """Returns the significant digits that tell the values of a regression apart: six, more beside a large mean."""
    pairs = zip(spec.target_mean, spec.target_std, strict=True)
    return max((4 + math.ceil(math.log10(1 + abs(mean) / std)) for mean, std in pairs if std), default=6)


def _shown_cell(cell: object, digits: int) -> str:
    if isinstance(cell, float):
        return "" if math.isnan(cell) else f"{cell:,.{max(6, digits)}g}"
    return "" if cell is pd.NA or cell is None else printable(str(cell))


def _column(spec: DataSpec, kind: str, target: str) -> str:
    return kind if len(spec.targets) == 1 else f"{kind}({target})"


def _shown(path: Path, run: RunDirectory | None) -> str:
    return str(path) if run is None else shown_path(path, run)


def _callbacks(trainer: L.Trainer) -> list[L.Callback]:
    return list(trainer.callbacks)  # type: ignore[attr-defined]
