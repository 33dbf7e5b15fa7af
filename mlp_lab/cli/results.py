"""What a command leaves behind: a short table, `test.json`, `predictions.csv`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path

import lightning as L
import numpy as np
import pandas as pd
import torch
from rich.console import Console
from rich.table import Table
from torch import Tensor

from mlp_lab.data.module import TensorDataModule
from mlp_lab.data.spec import DataSpec
from mlp_lab.errors import UserError
from mlp_lab.model.tasks import probabilities
from mlp_lab.training.checkpoints import BestCheckpoint
from mlp_lab.training.progress import EpochTable
from mlp_lab.training.tracking import RunDirectory, write_text


def report_fit(run: RunDirectory, trainer: L.Trainer, best: BestCheckpoint) -> None:
    """Prints the best epoch's validation scores and how fast the training was."""
    table = Table(
        title=f"best of {trainer.current_epoch} epochs" if best.epoch >= 0 else "no validation ran",
        title_justify="left",
    )
    table.add_column("metric")
    table.add_column("value", justify="right")
    if best.epoch >= 0:
        table.add_row("epoch", str(best.epoch + 1))
    for name, value in best.scores.items():
        table.add_row(name, f"{value:,.4f}")
    table.add_row("optimizer steps", f"{trainer.global_step:,}")
    for bar in (c for c in trainer.callbacks if isinstance(c, EpochTable)):  # type: ignore[attr-defined]
        table.add_row("training samples/s", f"{bar.samples_per_second:,.0f}")
    Console(highlight=False).print(table)


def report_scores(run: RunDirectory | None, data: TensorDataModule, stage: str, scores: Mapping[str, float]) -> None:
    """Prints a stage's scores; for `test` also writes `test.json` and notes the read in `provenance.json`."""
    rows = data.part("val" if stage == "validate" else "test").rows
    table = Table(title=f"{stage}: {rows:,} rows", title_justify="left")
    table.add_column("metric")
    table.add_column("value", justify="right")
    for name, value in scores.items():
        table.add_row(name, f"{value:,.4f}")
    Console(highlight=False).print(table)
    if run is None or stage != "test":
        return
    record = {**scores, "rows": rows, "data": data.fingerprint, "checkpoint": _epoch_of(run)}
    write_text(run.test, json.dumps(record, indent=2) + "\n")
    values = run.read_provenance()
    values.setdefault("test_reads", []).append(
        {
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "command": "test",
            "rows": rows,
            "scores": dict(scores),
        }
    )
    run.write_provenance(values)


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
    frame.insert(0, "row", np.arange(len(frame)) if ids is None else ids.numpy())
    partial = path.with_name(f".{path.name}.partial")
    try:
        frame.to_csv(partial, index=False, float_format="%.6g")
        partial.replace(path)
    except OSError as error:
        raise UserError(f"predict: {path} cannot be written ({error.strerror})") from error
    console = Console(highlight=False)
    console.print(frame.head(5).to_string(index=False, max_cols=8), markup=False)
    console.print(f"{len(frame):,} predictions", highlight=False)
    print(path)


def prediction_table(spec: DataSpec, logits: Tensor) -> pd.DataFrame:
    """Turns logits (N, C) into named columns: class names with probabilities, or values in the target's own unit."""
    if spec.task == "regression":
        values = logits * logits.new_tensor(spec.target_std) + logits.new_tensor(spec.target_mean)  # (N, T)
        return pd.DataFrame({name: values[:, index].numpy() for index, name in enumerate(spec.targets)})
    shares = probabilities(spec.task, logits)  # (N, C)
    columns = {f"p({name})": shares[:, index].numpy() for index, name in enumerate(spec.classes)}
    if spec.task == "multilabel":
        labels = {name: (shares[:, index] >= 0.5).long().numpy() for index, name in enumerate(spec.classes)}
        return pd.DataFrame(labels | columns)
    return pd.DataFrame({"prediction": [spec.classes[code] for code in shares.argmax(1).tolist()]} | columns)


def _epoch_of(run: RunDirectory) -> str:
    return "best" if run.best.exists() else "last"
