"""What a search leaves behind: a line per trial while it runs, `trials.csv`, `best.yaml`, and the best in a table."""

from __future__ import annotations

import copy
import csv
import io
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml
from optuna import Study
from optuna.trial import FrozenTrial, TrialState
from rich.console import Console
from rich.table import Table
from rich.text import Text

from mlp_lab.sweep.pruning import worth
from mlp_lab.sweep.runs import Point
from mlp_lab.sweep.space import Space
from mlp_lab.training.tracking import write_text

TOP = 5  # rows of the closing table
WIDE = 160  # columns of a table that is written to a file


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
    writer.writerow([*columns, "verdicts", "origin", "error"])
    for trial in trials:
        facts = trial.user_attrs
        values = list(trial.values or [])[: len(metrics)]
        row = [trial.number, state_of(trial), *values, *[""] * (len(metrics) - len(values))]
        row += (list(facts.get("sd", [])) + [""] * len(spread))[: len(spread)]
        row += [facts.get(name, "") for name in ("epochs", "seconds", "seed")]
        row += ["null" if trial.params.get(name, "") is None else trial.params.get(name, "") for name in names]
        codes = dict.fromkeys(str(verdict.get("code")) for verdict in facts.get("verdicts", []))
        error = facts.get("error") or facts.get("lost") or ("its worker died" if trial.state == TrialState.FAIL else "")
        writer.writerow([*row, " ".join(codes), facts.get("origin", ""), error])
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


class Progress:
    """Prints a line per trial, and how far the search is.

    Args:
        study: The study.
        metrics: Its metrics.
        budget: Trials to finish; None where time is the budget.
        show: Prints a line.
    """

    def __init__(
        self, study: Study, metrics: Sequence[str], budget: int | None, show: Callable[[str], None] = print
    ) -> None:
        self.study, self.metrics, self.budget, self.show = study, metrics, budget, show
        self.start, self.told = time.monotonic(), 0
        self.best: FrozenTrial | None = None
        self.catch_up(0)

    def trial(self, trial: FrozenTrial, point: Point) -> None:
        """Prints a trial that has just ended."""
        self.told += 1
        values = " ".join(f"{value:>10.4g}" for value in trial.values or []) or f"{'–':>10}"
        star = " *" if self._is_best(trial) else "  "
        epochs = _counted(int(trial.user_attrs.get("epochs", 0)))
        state = state_of(trial)
        words = {"complete": "", "failed": f"failed: {trial.user_attrs.get('error')}"}.get(state, state)
        if state == "diagnosed":
            words = f"stopped: {trial.user_attrs['diagnosed']}"
        parts = [part for part in (describe(point.settings), words) if part]
        self.show(f"trial {trial.number:>4}  {values}{star}  {epochs}  {'  '.join(parts)}")

    def _is_best(self, trial: FrozenTrial) -> bool:
        if len(self.metrics) > 1 or state_of(trial) != "complete":
            return False
        maximize = self.study.directions[0].name == "MAXIMIZE"
        if self.best is not None and worth(trial.values[0], maximize) >= worth(self.best.values[0], maximize):
            return False
        self.best = trial
        return True

    def catch_up(self, told: int) -> None:
        """Takes over what other workers have told since the start."""
        self.told = told
        self.best = next(iter(best_trials(self.study)), None)

    def status(self, finished: int) -> None:
        """Prints how many trials are done, the best, the rate and the time left."""
        seconds = time.monotonic() - self.start
        rate = self.told / seconds if seconds > 0 else 0.0
        parts = [f"{finished:,} of {self.budget:,} trials" if self.budget else f"{finished:,} trials"]
        if self.best is not None and len(self.metrics) == 1:
            parts.append(f"best {self.metrics[0]} {self.best.values[0]:.4g} (trial {self.best.number})")
        if rate:
            parts.append(f"{60 * rate:,.1f} a minute")
            if self.budget and finished < self.budget:
                parts.append(f"{_duration((self.budget - finished) / rate)} left")
        self.show(", ".join(parts))


def _counted(epochs: int) -> str:
    return f"{epochs:>4} epoch{'s' if epochs != 1 else ' '}"


def _duration(seconds: float) -> str:
    """Writes a time in its largest unit.

    >>> _duration(30), _duration(200), _duration(9000)
    ('30 s', '3 min', '2.5 h')
    """
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


def print_top(study: Study, space: Space, metrics: Sequence[str], console: Console | None = None) -> None:
    """Prints the five best trials, or the Pareto front."""
    console = console or Console(highlight=False)
    if not console.is_terminal:
        console.width = max(console.width, WIDE)
    best = best_trials(study)
    if not best:
        console.print("no trial was trained to its end")
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
        table.add_row(str(trial.number), *cells, Text(describe(space.from_params(trial.params))))
    title = f"Pareto front: {len(rows)} of the complete trials" if len(metrics) > 1 else f"the best {len(rows)}"
    console.print(title, style="bold")
    console.print(table)
