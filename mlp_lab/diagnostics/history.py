"""The evidence of a run as a checkpoint carries it, and what is let go of in a long one."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict
from typing import Any

import torch

from mlp_lab.diagnostics.evidence import Evidence, Facts, Measured

KEPT = 2000  # measurements in memory and in a checkpoint, at about 40 numbers each
FIRST_KEPT = 50  # of them the first are never let go of: how a run began explains most


def thin_(records: list[Measured], limit: int = KEPT) -> None:
    """Lets every second record go where there are more than `limit`, but not of the first, nor of the newest half.

    What is kept depends only on how many have been added one by one, so a resumed run keeps the same.
    """
    if len(records) > limit:
        newest = len(records) - limit // 2
        del records[FIRST_KEPT:newest:2]


def pack(evidence: Evidence) -> dict[str, Any]:
    """Returns facts and measurements as plain values and one tensor each, for a checkpoint."""
    return {"facts": asdict(evidence.facts), "steps": _pack(evidence.steps), "epochs": _pack(evidence.epochs)}


def unpack(state: dict[str, Any]) -> Evidence:
    """Returns what `pack` was given; values that are NaN are absent."""
    known = {name: value for name, value in state["facts"].items() if name in Facts.__dataclass_fields__}
    return Evidence(facts=Facts(**known), steps=_unpack(state["steps"]), epochs=_unpack(state["epochs"]))


def _pack(records: Sequence[Measured]) -> dict[str, Any]:
    keys = sorted({key for one in records for key, value in one.values.items() if not math.isnan(value)})
    rows = [[one.values.get(key, math.nan) for key in keys] for one in records]
    values = torch.tensor(rows, dtype=torch.float64).reshape(len(records), len(keys))
    return {
        "step": [one.step for one in records],
        "epoch": [one.epoch for one in records],
        "keys": keys,
        "values": values,
    }


def _unpack(state: dict[str, Any]) -> list[Measured]:
    rows = (
        {key: value for key, value in zip(state["keys"], row, strict=True) if not math.isnan(value)}
        for row in state["values"].tolist()
    )
    return [
        Measured(step=step, epoch=epoch, values=values)
        for step, epoch, values in zip(state["step"], state["epoch"], rows, strict=True)
    ]
