"""What a search leaves behind: `trials.csv`, `best.yaml`, and the best trials in a table."""

from __future__ import annotations

import copy
import csv
import io
import shlex
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from optuna import Study
from optuna.trial import FrozenTrial, TrialState
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mlp_lab.program import program
from mlp_lab.sweep.pruning import worth
from mlp_lab.sweep.runs import Point
from mlp_lab.sweep.space import Space
from mlp_lab.text import printable, safe_cell
from mlp_lab.training.tracking import write_text

TOP = 5  # rows of the closing table
WIDE = 160  # columns of a table that is written to a file


def _cell(value: Any) -> Any:
    """Returns a cell that neither a terminal nor a spreadsheet obeys."""
    return safe_cell(printable(value)) if isinstance(value, str) else value


def best_trials(study: Study) -> list[FrozenTrial]:
    """Returns the complete trials that no verdict has ended, best first; of several metrics, the Pareto front."""
    complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
    healthy = [trial for trial in complete if "diagnosed" not in trial.user_attrs]
    if len(study.directions) > 1:
        return [trial for trial in healthy if not any(_dominates(study, other, trial) for other in healthy)]
    maximize = study.directions[0].name == "MAXIMIZE"
    return sorted(healthy, key=lambda trial: (worth(trial.values[0], maximize), trial.number))


def _dominates(study: Study, one: FrozenTrial, other: FrozenTrial) -> bool:
    """Says whether a trial is at least as good as another in every metric, and better in one."""
    signs = [direction.name == "MAXIMIZE" for direction in study.directions]
    mine = [worth(value, sign) for value, sign in zip(one.values, signs, strict=True)]
    theirs = [worth(value, sign) for value, sign in zip(other.values, signs, strict=True)]
    return all(a <= b for a, b in zip(mine, theirs, strict=True)) and mine != theirs


def trial_config(base: Mapping[str, Any], point: Point) -> dict[str, Any]:
    """Returns the config of a trial: the base with the point's settings and seed, as `fit --config` takes it.

    >>> base = {"data": {"class_path": "X", "init_args": {"batch_size": 8}}, "model": {"depth": 2}}
    >>> trial_config(base, Point(number=0, seed=7, settings={"data.batch_size": 16, "model.depth": 3}))
    {'data': {'class_path': 'X', 'init_args': {'batch_size': 16}}, 'model': {'depth': 3}, 'seed_everything': 7}
    """
    config: dict[str, Any] = copy.deepcopy(dict(base))
    for key, value in point.settings.items():
        group = config
        *parents, last = key.split(".")
        for parent in parents:
            group = _inner(group).setdefault(parent, {})
        _inner(group)[last] = value
    config["seed_everything"] = point.seed
    return config


def _inner(group: dict[str, Any]) -> dict[str, Any]:
    """Returns where a class's arguments stand."""
    return group.setdefault("init_args", {}) if "class_path" in group else group


def write_results(directory: Path, study: Study, space: Space, base: Mapping[str, Any], metrics: Sequence[str]) -> None:
    """Writes `trials.csv`, and with one metric `best.yaml`, each whole or not at all."""
    write_text(directory / "trials.csv", trials_csv(study, metrics))
    best = best_trials(study)
    if not best or len(metrics) > 1:
        return
    trial = best[0]
    point = point_of(trial, space)
    head = f"# Trial {trial.number} of the study {study.study_name}: {metrics[0]} {trial.values[0]:.6g}.\n"
    write_text(
        directory / "best.yaml", head + yaml.safe_dump(trial_config(base, point), sort_keys=False, allow_unicode=True)
    )


def point_of(trial: FrozenTrial, space: Space) -> Point:
    """Returns the point of a trial that was told."""
    seed = int(trial.user_attrs.get("seed", 0))
    return Point(number=trial.number, seed=seed, settings=space.from_params(trial.params))


def trials_csv(study: Study, metrics: Sequence[str]) -> str:
    """Returns one line per trial: number, state, values, what it took, its parameters, and what went wrong."""
    trials = [one for one in study.get_trials(deepcopy=False) if one.state != TrialState.WAITING]
    names = sorted({name for trial in trials for name in trial.params})
    file = io.StringIO()
    writer = csv.writer(file, lineterminator="\n")
    spread = [f"sd of {name}" for name in metrics] if any("sd" in one.user_attrs for one in trials) else []
    columns = ["number", "state", *metrics, *spread, "epochs", "seconds", "seed", *names]
    writer.writerow(map(_cell, [*columns, "verdicts", "origin", "error"]))
    for trial in trials:
        facts = trial.user_attrs
        values = list(trial.values or [])[: len(metrics)]
        row = [trial.number, state_of(trial), *values, *[""] * (len(metrics) - len(values))]
        row += (list(facts.get("sd", [])) + [""] * len(spread))[: len(spread)]
        row += [facts.get(name, "") for name in ("epochs", "seconds", "seed")]
        row += ["null" if trial.params.get(name, "") is None else trial.params.get(name, "") for name in names]
        codes = dict.fromkeys(str(verdict.get("code")) for verdict in facts.get("verdicts", []))
        error = facts.get("error") or facts.get("lost") or ("its worker died" if trial.state == TrialState.FAIL else "")
        writer.writerow(map(_cell, [*row, " ".join(codes), facts.get("origin", ""), error]))
    return file.getvalue()


def state_of(trial: FrozenTrial) -> str:
    """Returns the state in the words of `Outcome`; `lost` for one that was cut off."""
    if "diagnosed" in trial.user_attrs:
        return "diagnosed"
    if trial.state == TrialState.FAIL:
        return "failed" if "error" in trial.user_attrs else "lost"
    return trial.state.name.lower()


def describe(settings: Mapping[str, Any]) -> str:
    """Writes settings in a line, without the groups of their keys.

    >>> describe({"model.depth": 3, "model.optimizer.lr": 0.00123456})
    'depth 3 · lr 0.00123'
    """
    shown = (f"{value:.3g}" if isinstance(value, float) else str(value) for value in settings.values())
    return " · ".join(f"{key.rpartition('.')[2]} {value}" for key, value in zip(settings, shown, strict=True))


def print_top(
    study: Study, space: Space, metrics: Sequence[str], directory: Path | None = None, console: Console | None = None
) -> None:
    """Prints the five best trials, or the Pareto front, and how to train the best.

    Args:
        study: The study.
        space: Its space.
        metrics: Its metrics.
        directory: Where `trials.csv` and `best.yaml` are.
        console: Where it is printed.
    """
    console = console or Console(highlight=False)
    if not console.is_terminal:
        console.width = max(console.width, WIDE)
    best = best_trials(study)
    if not best:
        console.print(_why_none(study), markup=False, soft_wrap=True)
        return
    rows = best if len(metrics) > 1 else best[:TOP]
    table = Table(box=None, pad_edge=False, header_style="bold", padding=(0, 2, 0, 0))
    for name in ("trial", *metrics):
        table.add_column(name, justify="right", no_wrap=True)
    table.add_column("settings", overflow="fold")
    for trial in rows:
        spread = trial.user_attrs.get("sd") or [None] * len(metrics)
        cells = [
            f"{value:.4g}" + (f" ± {sd:.2g}" if sd is not None else "")
            for value, sd in zip(trial.values, spread, strict=True)
        ]
        table.add_row(str(trial.number), *cells, Text(printable(describe(space.from_params(trial.params)))))
    title = f"Pareto front: {len(rows)} of the complete trials" if len(metrics) > 1 else f"the best {len(rows)}"
    console.print(title, style="bold")
    console.print(table)
    if directory is not None and len(metrics) == 1:
        command = f"{program()} fit --config {shlex.quote(str(directory / 'best.yaml'))}"
        console.print(f"train the best (trial {best[0].number}) alone: {command}", markup=False, soft_wrap=True)


def _why_none(study: Study) -> str:
    """Says why a study has no best trial."""
    trials = study.get_trials(deepcopy=False)
    states = Counter(state_of(trial) for trial in trials)
    ended = ", ".join(f"{states[name]} {name}" for name in ("pruned", "diagnosed", "failed") if states[name])
    return f"no trial was trained to its end{f' ({ended})' if ended else ''}"


def failure_of_all(study: Study) -> str | None:
    """Returns the most frequent error of a study in which every trial that ended has failed; else None."""
    trials = [trial for trial in study.get_trials(deepcopy=False) if trial.state.is_finished()]
    errors = Counter(str(trial.user_attrs["error"]) for trial in trials if state_of(trial) == "failed")
    if not errors or any(state_of(trial) not in ("failed", "lost") for trial in trials):
        return None
    return errors.most_common(1)[0][0]
