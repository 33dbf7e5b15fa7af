"""What a command leaves behind: a short table, `test.json`, `predictions.csv`."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import lightning as L
import numpy as np
import pandas as pd
import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import Tensor

from mlp_lab.data.module import TensorDataModule
from mlp_lab.data.spec import DataSpec
from mlp_lab.errors import UserError
from mlp_lab.model.tasks import probabilities
from mlp_lab.population.best import BestMembers
from mlp_lab.training.checkpoints import BestCheckpoint
from mlp_lab.training.progress import EpochTable
from mlp_lab.training.tracking import RunDirectory, write_text

SHOWN_ROWS, SHOWN_COLUMNS = 5, 4  # of the predictions, on the screen


def report_fit(trainer: L.Trainer, spec: DataSpec, best: BestCheckpoint) -> None:
    """Prints the best epoch's validation scores and how fast the training was."""
    epochs = "epoch" if trainer.current_epoch == 1 else "epochs"
    if isinstance(best, BestMembers) and best.epoch >= 0:
        print_scores(f"mean ± standard deviation of {len(best.members)} replicates at their best", spec, best.scores)
    elif best.epoch >= 0:
        print_scores(f"epoch {best.epoch + 1}, the best of {trainer.current_epoch} {epochs}", spec, best.scores)
    else:
        print(f"no validation in {trainer.current_epoch} {epochs}")
    rates = [f"{c.samples_per_second:,.0f} samples/s" for c in _callbacks(trainer) if isinstance(c, EpochTable)]
    print(", ".join([f"{trainer.global_step:,} optimizer steps", *rates]))


def report_scores(stage: str, spec: DataSpec, rows: int, scores: Mapping[str, float]) -> None:
    """Prints a stage's scores."""
    print_scores(f"{stage}: {rows:,} rows", spec, scores)


def print_scores(title: str, spec: DataSpec, scores: Mapping[str, float], console: Console | None = None) -> None:
    """Prints scores as a table; those of a regression say which are in the target's own unit.

    The standard deviation of a score over replicates, `<score>_sd`, stands beside it.
    """
    console = console or Console(highlight=False)
    table = Table(box=None, pad_edge=False, show_header=False, padding=(0, 2, 0, 0))
    table.add_column(no_wrap=True)
    table.add_column(justify="right", no_wrap=True)
    table.add_column(style="dim", overflow="ellipsis", no_wrap=True)
    unit = f"in the unit of {spec.targets[0]}" if len(spec.targets) == 1 else "mean over targets, each in its unit"
    for name, value in scores.items():
        if name.removesuffix("_sd") != name and name.removesuffix("_sd") in scores:
            continue  # told beside its mean
        in_unit = spec.task == "regression" and name.rpartition("/")[2] in ("rmse", "mae")
        spread = f" ± {shown(scores[f'{name}_sd'])}" if f"{name}_sd" in scores else ""
        table.add_row(name, f"{shown(value)}{spread}", Text(unit if in_unit else ""))
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
    run: RunDirectory, data: TensorDataModule, rows: int, scores: Mapping[str, float], checkpoint: Path
) -> None:
    """Writes `test.json`, and notes in `provenance.json` that test rows were read.

    Raises:
        UserError: A file cannot be written.
    """
    source = getattr(data, "path", None) or getattr(data, "dataset", None)
    place = checkpoint.resolve()
    read = {
        "source": str(source or "digits"),
        "rows": rows,
        "checkpoint": str(place.relative_to(run.path) if place.is_relative_to(run.path) else place),
    }
    time = datetime.now(UTC).isoformat(timespec="seconds")
    values = run.read_provenance()
    values.setdefault("test_reads", []).append({"time": time, "command": "test", **read, "scores": dict(scores)})
    try:
        write_text(run.test, json.dumps({**scores, **read}, indent=2) + "\n")
        run.write_provenance(values)
    except OSError as error:
        raise UserError(f"test: {run.path} cannot be written ({error.strerror})") from error


def write_predictions(path: Path, data: TensorDataModule, batches: Sequence[Tensor]) -> None:
    """Writes one line a row: its number in the source (from 0), and what `prediction_table` says of it.

    Args:
        path: The CSV file.
        data: The data module that served the rows.
        batches: Logits (B, C) in the order of the rows.

    Raises:
        UserError: The file cannot be written.
    """
    logits = torch.cat(list(batches)).double()  # (N, C)
    frame = prediction_table(data.spec, logits)
    ids = data.part("predict" if "predict" in data.loaded.parts else "test").ids
    rows = np.arange(len(frame)) if ids is None else ids.numpy()[: len(frame)]  # trainer.limit_predict_batches
    frame.insert(0, "row", rows, allow_duplicates=True)
    partial = path.with_name(f".{path.name}.partial")
    try:
        frame.to_csv(partial, index=False, encoding="utf-8", float_format="%.8g")
        partial.replace(path)
    except OSError as error:
        raise UserError(f"predict: {path} cannot be written ({error.strerror})") from error
    print_preview(data.spec, frame)
    print(path)


def print_preview(spec: DataSpec, frame: pd.DataFrame, console: Console | None = None) -> None:
    """Prints the first predictions; of classes, only the most probable one."""
    console = console or Console(highlight=False)
    head = frame.head(SHOWN_ROWS)
    if spec.task in ("binary", "multiclass"):
        probability = head.iloc[:, 2:].max(axis=1)  # after the row and the prediction
        head = head.iloc[:, :2].assign(probability=probability)
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for name in head.columns[:SHOWN_COLUMNS]:
        table.add_column(Text(str(name)), justify="right", no_wrap=True, overflow="ellipsis", max_width=24)
    for cells in head.iloc[:, :SHOWN_COLUMNS].itertuples(index=False):
        table.add_row(*(Text(f"{cell:,.6g}" if isinstance(cell, float) else str(cell)) for cell in cells))
    console.print(table)
    console.print(f"{len(frame):,} predictions", soft_wrap=True)


def prediction_table(spec: DataSpec, logits: Tensor) -> pd.DataFrame:
    """Turns logits (N, C) into named columns: class names with probabilities, or values in the target's own unit."""
    if spec.task == "regression":
        values = logits * logits.new_tensor(spec.target_std) + logits.new_tensor(spec.target_mean)  # (N, T)
        return pd.DataFrame({name: values[:, index].numpy() for index, name in enumerate(spec.targets)})
    shares = probabilities(spec.task, logits)  # (N, C)
    if spec.task == "binary":
        shares = torch.cat([1 - shares, shares], dim=1)  # (N, 2)
    columns = {f"p({name})": shares[:, index].numpy() for index, name in enumerate(spec.classes)}
    if spec.task == "multilabel":
        labels = {name: (shares[:, index] >= 0.5).long().numpy() for index, name in enumerate(spec.classes)}
        return pd.DataFrame(labels | columns)
    return pd.DataFrame({"prediction": [spec.classes[code] for code in shares.argmax(1).tolist()]} | columns)


def _callbacks(trainer: L.Trainer) -> list[L.Callback]:
    return list(trainer.callbacks)  # type: ignore[attr-defined]
