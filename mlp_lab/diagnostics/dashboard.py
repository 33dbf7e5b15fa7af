"""What Weights & Biases shows of the diagnostics: a section per group, the worst layer of each, verdicts as a table.

Every value already goes there under its own key, and W&B makes one section of the keys that share their first word
(`grad`, `update`, `signal`, `units`, `init`). What is added: one number per quantity for its worst layer, so that a
chart has one line and an alert one key, summaries that keep the worst value of a run, and the verdicts. The worst
layers follow from a row's own values and are added to it on its way to W&B: `metrics.csv` does not repeat them, and a
resumed offline run, which replays that file, has them again.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from lightning.pytorch.loggers import Logger
from torch import Tensor

from mlp_lab.diagnostics.evidence import per_layer
from mlp_lab.diagnostics.findings import SEVERITIES, Verdict
from mlp_lab.diagnostics.rank import wide
from mlp_lab.training.weights_and_biases import STEP, WandbRun

BINS = 64
COLUMNS = ("code", "severity", "layer", "step", "message", "fix", "consequence_of")
WORST: dict[str, str] = {
    "units/dead": "max",
    "units/dormant": "max",
    "units/saturated": "max",
    "units/rank": "min",
    "update/ratio": "max",
    "signal/variation": "min",
    "signal/backward": "min",
    "grad/norm": "min",
}
"""The quantities of which the worst layer is shown, and which way is worse."""
SUMMARIES: dict[str, str] = {
    **{f"diagnosis/worst_{name.replace('/', '_')}": way for name, way in WORST.items()},
    "signal/span": "min",
    "grad/clip_fraction": "max",
    "numerics/nonfinite": "max",
    "noise/scale": "last",
    "curvature/sharpness": "max",
}
"""What W&B keeps of a key's history as the run's one number: the worst, for tables of runs and for alerts."""


def worst_layers(values: Mapping[str, float]) -> dict[str, float]:
    """Returns the worst layer's value of each quantity that has layers.

    >>> worst_layers({"units/dead/1": 0.1, "units/dead/2": 0.9, "grad/norm": 3.0})
    {'diagnosis/worst_units_dead': 0.9}
    """
    found = {}
    for name, way in WORST.items():
        layers = [value for value in per_layer(dict(values), name).values() if math.isfinite(value)]
        if layers:
            found[f"diagnosis/worst_{name.replace('/', '_')}"] = max(layers) if way == "max" else min(layers)
    return found


def runs(loggers: Iterable[Logger]) -> list[WandbRun]:
    """Returns the W&B runs among a trainer's loggers."""
    return [logger for logger in loggers if isinstance(logger, WandbRun)]


def add_worst_layers(loggers: Iterable[Logger]) -> None:
    """Adds the worst layers to every row that goes to W&B from now on, those of a replayed file included."""
    for logger in runs(loggers):
        logger.derive = worst_layers


def define(loggers: Iterable[Logger]) -> None:
    """Tells W&B what to keep of each key; on the first process."""
    for logger in runs(loggers):
        for name, summary in SUMMARIES.items():
            logger.experiment.define_metric(name, step_metric=STEP, step_sync=True, summary=summary)


def send_verdicts(loggers: Iterable[Logger], verdicts: Sequence[Verdict]) -> None:
    """Writes verdicts into the run's summary: how many there are, which comes first, and all of them as a table."""
    for logger in runs(loggers):
        values = summary(verdicts)
        if verdicts:
            import wandb

            table = wandb.Table(columns=list(COLUMNS))
            for verdict in verdicts:
                table.add_data(*_row(verdict))
            values["diagnosis/verdicts"] = table
        logger.experiment.summary.update(values)


def summary(verdicts: Sequence[Verdict]) -> dict[str, Any]:
    """Returns the verdicts as one run's numbers: the first code, and how many there are of each severity.

    >>> summary([])
    {'diagnosis/first': 'healthy', 'diagnosis/info': 0, 'diagnosis/warning': 0, 'diagnosis/critical': 0}
    """
    counts = {f"diagnosis/{name}": sum(one.severity == name for one in verdicts) for name in SEVERITIES}
    return {"diagnosis/first": verdicts[0].code if verdicts else "healthy", **counts}


def _row(verdict: Verdict) -> list[Any]:
    values = verdict.to_dict() | {"fix": " ".join(verdict.fix)}
    return [values[name] for name in COLUMNS]


def send_histograms(loggers: Iterable[Logger], tensors: Mapping[str, Tensor], step: int) -> None:
    """Logs the distribution of each tensor; the bins are counted on its device, and only the counts leave it.

    Args:
        loggers: A trainer's; those that are not W&B's are left out.
        tensors: By key: `histograms/weight/1`, `histograms/gradient/1`, `histograms/activation/1`, ...
        step: Optimizer steps that have been taken.
    """
    kept = runs(loggers)
    if not kept or not tensors:
        return
    import wandb

    counted = {name: histogram(tensor) for name, tensor in tensors.items()}
    images = {name: wandb.Histogram(np_histogram=pair) for name, pair in counted.items() if pair is not None}
    for logger in kept:
        logger.experiment.log({**images, STEP: step})


def histogram(tensor: Tensor, bins: int = BINS) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]] | None:
    """Returns the counts (bins,) and the edges (bins + 1,) of a tensor's finite entries, None without any.

    Args:
        tensor: Any shape and floating type.
        bins: Number of bins of equal width between the least and the greatest entry.
    """
    entries = tensor.detach().flatten()
    entries = entries.to(wide(entries))
    entries = entries[entries.isfinite()]  # (N,)
    if len(entries) == 0:
        return None
    low, high = entries.min(), entries.max()
    width = (high - low).clamp(min=torch.finfo(entries.dtype).tiny)
    places = ((entries - low) * (bins / width)).long().clamp(0, bins - 1)  # (N,)
    counts = torch.bincount(places, minlength=bins)  # (bins,)
    packed = torch.cat([counts.to(entries.dtype), low.reshape(1), high.reshape(1)]).tolist()  # one synchronisation
    *kept, first, last = packed
    return np.asarray(kept, dtype=np.int64), np.linspace(first, last if last > first else first + 1.0, bins + 1)
