"""Fits on two processes (gloo) and prints what the diagnostics saw; `python two_ranks.py [devices]`."""

from __future__ import annotations

import json
import logging
import sys
import warnings
from typing import Any

import lightning as L
import torch

from mlp_lab.data.tabular import TabularDataModule
from mlp_lab.diagnostics.callback import Diagnostics
from mlp_lab.training.module import MLPModule


def evidence(devices: int) -> list[dict[str, Any]]:
    """Returns the values of every measurement of six steps, in float64, with dropout and a batch of one row."""
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
        callbacks=[diagnostics],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
    )
    trainer.fit(module, datamodule=data)
    return [{"step": one.step, **one.values} for one in (*diagnostics.evidence.steps, *diagnostics.evidence.epochs)]


if __name__ == "__main__":
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    torch.set_num_threads(1)
    found = evidence(int(sys.argv[1]))
    print("EVIDENCE", json.dumps(found), flush=True)
