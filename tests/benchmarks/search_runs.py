"""Whole searches in fresh processes, as users start them, and what their studies say afterwards."""

from __future__ import annotations

import csv
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import optuna
import yaml

from mlp_lab.sweep.results import best_trials, state_of
from tests.benchmarks import harness
from tests.benchmarks.busy import Busy

SWEEPS = harness.ROOT / "sweeps"


def sweep(
    name: str,
    seed: int,
    words: Sequence[str] = (),
    *,
    threads: int,
    trials: int | None = None,
    epochs: int | None = None,
    retrain: bool = False,
) -> dict[str, Any]:
    """Runs `mlp_lab sweep` in a folder of its own.

    Args:
        name: of the file in `sweeps/`.
        seed: of the sampler and of the first trial.
        words: more flags.
        threads: of the process.
        trials: its budget, instead of the file's.
        epochs: of every trial at most, instead of the base config's.
        retrain: whether `best.yaml` is trained once more, as a user would, for its accuracy; this is not timed.

    Returns:
        What it took, its best value, every trial, and what `best.yaml` reached.
    """
    with tempfile.TemporaryDirectory() as folder:
        directory = Path(folder, "sweep")
        arguments = ["mlp_lab", "sweep", "--config", str(SWEEPS / f"{name}.yaml"), "--run.dir", str(directory)]
        arguments += ["--seed", str(seed), *words]
        arguments += ["--trials", str(trials)] if trials else []
        arguments += ["--trainer.max_epochs", str(epochs)] if epochs else []
        busy = Busy()
        harness.run(arguments, threads=threads)
        values = {**busy.spent(), **read_study(directory, name)}
        return values | (best_run(directory / "best.yaml", threads) if retrain else {})


def read_study(directory: Path, name: str) -> dict[str, Any]:
    """Returns the best value of a finished search, and a row per trial in the order in which they ended."""
    study = optuna.load_study(study_name=name, storage=f"sqlite:///{directory}/study.db")
    ended = [one for one in study.get_trials(deepcopy=False) if one.state.is_finished()]
    began = min(one.datetime_start for one in ended)
    rows = [
        {
            "number": one.number,
            "state": state_of(one),
            "value": one.value if state_of(one) == "complete" else None,
            "epochs": one.user_attrs.get("epochs", 0),
            "ended_s": (one.datetime_complete - began).total_seconds(),
            "diagnosed": one.user_attrs.get("diagnosed"),
        }
        for one in ended
    ]
    best = best_trials(study)
    if not best:
        raise RuntimeError(f"sweeps/{name}.yaml: no trial was trained to its end; give it more --trials or --epochs")
    return {"best": best[0].value, "trials": sorted(rows, key=lambda row: row["ended_s"])}


def best_run(config: Path, threads: int) -> dict[str, float]:
    """Trains `best.yaml`; returns the scores of the epoch of lowest validation loss, whose weights `fit` keeps."""
    folder = config.parent / "best"
    harness.run(["mlp_lab", "fit", "--config", str(config), "--run.dir", str(folder)], threads=threads)
    with (folder / "metrics.csv").open() as file:
        rows = [row for row in csv.DictReader(file) if row["val/loss"]]
    row = min(rows, key=lambda one: float(one["val/loss"]))
    return {"again_loss": float(row["val/loss"]), "again_accuracy": float(row["val/accuracy"])}


def optuna_script(
    pruner: str, seed: int, *, threads: int, trials: int | None = None, epochs: int | None = None
) -> dict[str, Any]:
    """Runs the script of `search_peers` in a process of its own, by default with the budget of `sweeps/digits.yaml`."""
    trials = trials or int(yaml.safe_load((SWEEPS / "digits.yaml").read_text())["trials"])
    arguments = ["tests.benchmarks.search_peers", pruner, str(seed), str(trials)]
    busy = Busy()
    values = harness.worker([*arguments, *([str(epochs)] if epochs else [])], threads=threads)
    return {**busy.spent(), **values}
