from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml
from optuna.trial import TrialState
from rich.console import Console

from mlp_lab.sweep.results import best_trials, failure_of_all, print_top, state_of, trials_csv, write_results
from mlp_lab.sweep.space import Space

DEPTH = optuna.distributions.IntDistribution(1, 9)
BASE = {"seed_everything": 0, "model": {"depth": 1, "width": 8}}
SPACE = Space.read({"model.depth": {"type": "int", "low": 1, "high": 9}})


def study(*rows: tuple[str, Any, dict[str, Any]], directions: tuple[str, ...] = ("minimize",)) -> optuna.Study:
    made = optuna.create_study(directions=directions)
    for depth, (state, values, facts) in enumerate(rows, start=1):
        made.add_trial(
            optuna.create_trial(
                state=TrialState[state],
                values=values,
                params={"model.depth": depth},
                distributions={"model.depth": DEPTH},
                user_attrs=facts,
            )
        )
    return made


ONE = study(
    ("COMPLETE", [0.5], {"epochs": 3, "seconds": 1.5, "seed": 0, "sd": [0.25]}),
    ("FAIL", None, {"error": "out of memory, alas", "seed": 1}),
    ("COMPLETE", [0.25], {"epochs": 3, "seed": 7, "verdicts": [{"code": "overfitting"}, {"code": "dead_units"}]}),
    ("PRUNED", [0.125], {"epochs": 1, "seed": 3, "diagnosed": "dead_units"}),
    ("FAIL", None, {"lost": "interrupted"}),
    ("COMPLETE", [9.0], {"seed": 5, "diagnosed": "nonfinite"}),
)


def test_the_best_is_a_complete_healthy_trial() -> None:
    assert [trial.number for trial in best_trials(ONE)] == [2, 0]
    assert [state_of(trial) for trial in ONE.trials] == [
        *("complete", "failed", "complete", "diagnosed", "lost", "diagnosed")
    ]


def test_the_pareto_front_has_no_trial_that_another_betters() -> None:
    rows = [("COMPLETE", values, {}) for values in ([1.0, 1.0], [2.0, 3.0], [2.0, 2.0], [0.5, 0.5], [0.5, 0.5])]
    found = best_trials(study(*rows, directions=("minimize", "maximize")))
    assert [one.number for one in found] == [0, 1, 3, 4]  # 2 is as low as 1, and less high; equal ones both stay


def test_the_table_has_a_line_per_trial() -> None:
    rows = list(csv.DictReader(io.StringIO(trials_csv(ONE, ["val/loss"]))))
    assert len(rows) == 6
    assert list(rows[0].values()) == ["0", "complete", "0.5", "0.25", "3", "1.5", "0", "1", "", "", ""]
    assert list(rows[0])[:5] == ["number", "state", "val/loss", "sd of val/loss", "epochs"]
    assert list(rows[0])[5:] == ["seconds", "seed", "model.depth", "verdicts", "origin", "error"]
    assert rows[1]["error"] == "out of memory, alas"
    assert rows[2]["verdicts"] == "overfitting dead_units"
    assert rows[4]["error"] == "interrupted"


def test_null_that_is_searched_differs_from_a_key_that_is_not() -> None:
    choices = optuna.distributions.CategoricalDistribution([None, "none", 1])
    made = optuna.create_study()
    for params in ({"model.seed": None}, {"model.seed": "none"}, {}):
        known = dict.fromkeys(params, choices)
        made.add_trial(optuna.create_trial(value=1.0, params=params, distributions=known))
    rows = csv.DictReader(io.StringIO(trials_csv(made, ["val/loss"])))
    assert [row["model.seed"] for row in rows] == ["null", "none", ""]


def test_best_yaml_is_the_base_with_the_trials_settings(tmp_path: Path) -> None:
    write_results(tmp_path, ONE, SPACE, BASE, ["val/loss"])
    text = (tmp_path / "best.yaml").read_text()
    assert text.splitlines()[0].startswith("# Trial 2 of the study ")
    assert yaml.safe_load(text) == {"seed_everything": 7, "model": {"depth": 3, "width": 8}}
    assert (tmp_path / "trials.csv").is_file()


def test_nothing_is_best_where_nothing_is_complete(tmp_path: Path) -> None:
    none = study(("FAIL", None, {"error": "x"}))
    write_results(tmp_path, none, SPACE, BASE, ["val/loss"])
    assert not (tmp_path / "best.yaml").exists()
    print_top(none, SPACE, ["val/loss"], console=Console(highlight=False))


def test_study_of_failures_alone_says_why() -> None:
    failed = [("FAIL", None, {"error": why}) for why in ("no memory", "no disk", "no memory")]
    assert failure_of_all(study(*failed, ("FAIL", None, {"lost": "interrupted"}))) == "no memory"
    assert failure_of_all(study(*failed, ("PRUNED", [1.0], {}))) is None
    assert failure_of_all(study()) is None


def test_the_closing_table(capsys: pytest.CaptureFixture[str]) -> None:
    print_top(ONE, SPACE, ["val/loss"], console=Console(highlight=False, width=80))
    lines = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert lines == [
        ["the", "best", "2"],
        ["trial", "val/loss", "settings"],
        ["2", "0.25", "depth", "3"],
        ["0", "0.5", "±", "0.25", "depth", "1"],
    ]


def test_trials_csv_holds_no_formula_and_no_control_character() -> None:
    made = study(
        ("FAIL", None, {"error": "=cmd|' /C calc'!A0"}),
        ("FAIL", None, {"error": "a\rb\x1b[2J"}),
        ("COMPLETE", [-0.5], {"seed": -1}),
    )
    rows = list(csv.DictReader(io.StringIO(trials_csv(made, ["val/loss"]))))
    assert [row["error"] for row in rows] == ["'=cmd|' /C calc'!A0", "a\\rb\\x1b[2J", ""]
    assert (rows[2]["val/loss"], rows[2]["seed"]) == ("-0.5", "-1")
