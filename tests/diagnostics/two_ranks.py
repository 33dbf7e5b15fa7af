"""Fits on some processes (gloo), each of which writes what its diagnostics saw; `two_ranks.py folder devices [row]`."""

from __future__ import annotations

import json
import logging
import os
import sys
import warnings
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import lightning as L
import torch

from mlp_lab.data.tabular import TabularDataModule
from mlp_lab.diagnostics.callback import Diagnostics
from mlp_lab.diagnostics.numerics import NonFinite
from mlp_lab.errors import NonFiniteError
from mlp_lab.training.module import MLPModule


class Poison(L.Callback):
    """Puts a NaN into one row, which one process sees, and tells which one that was."""

    def __init__(self, row: int) -> None:
        self.row, self.seen = row, False

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        cast(TabularDataModule, trainer.datamodule).part("train").numeric[self.row, 5] = torch.nan  # type: ignore[attr-defined]

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        self.seen |= bool(batch.numeric.isnan().any())


def evidence(devices: int, row: int | None) -> list[dict[str, Any]]:
    """Returns the values of every measurement of six steps, in float64, with dropout and a batch of one row.

    Where the data is poisoned, what this process has found instead.
    """
    poison = [] if row is None else [Poison(row)]
    torch.manual_seed(0)
    data = TabularDataModule(dataset="digits", batch_size=359, verbose=False, seed=0)
    module = MLPModule(data.spec_dict, width=16, depth=2, activation="sigmoid", norm="layer", dropout=0.2)
    diagnostics = Diagnostics(every_n_steps=5)
    trainer = L.Trainer(
        accelerator="cpu",
        devices=devices,
        strategy="ddp" if devices > 1 else "auto",
        precision="64-true",
        max_steps=6,
        max_epochs=2,
        gradient_clip_val=0.1,
        callbacks=[diagnostics, *poison],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    try:
        trainer.fit(module, datamodule=data)
    except NonFiniteError as error:
        return [{**asdict(cast(NonFinite, error.found)), "mine": poison[0].seen}]
    return [{"step": one.step, **one.values} for one in (*diagnostics.evidence.steps, *diagnostics.evidence.epochs)]


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    folder, devices, *row = sys.argv[1:]
    found = evidence(int(devices), int(row[0]) if row else None)
    # a file each: on one standard output the lines of two processes mix
    Path(folder, f"{os.environ.get('LOCAL_RANK', 0)}.json").write_text(json.dumps(found))
