from __future__ import annotations

import csv
import os
import re
import signal
import subprocess
import sys
from dataclasses import fields
from pathlib import Path
from typing import Any

import optuna
import pytest
import yaml

from mlp_lab.cli.sweep import HELP, read_sweep
from mlp_lab.sweep.settings import ClusterSettings, DiagnosisSettings, StudySettings, SweepSettings, WandbSettings
from tests.cli.conftest import Bench, write_config, write_table

ROOT = Path(__file__).parents[2]
SWEEPS = ROOT / "sweeps"
SPACE = {
    "model.width": {"type": "int", "low": 4, "high": 16},
    "model.optimizer.lr": {"type": "float", "low": 1e-3, "high": 1e-1, "log": True},
}


@pytest.fixture
def table(here: Path) -> Path:
    """A folder with a table, its config, and a sweep over it."""
    write_table(here / "table.csv")
    write_config(here / "config.yaml")
    write_sweep(here / "sweep.yaml")
    return here


def write_sweep(path: Path, **changes: Any) -> None:
    content = {"base": "config.yaml", "trials": 6, "population": 3, "space": SPACE, **changes}
    path.write_text(yaml.safe_dump(content, sort_keys=False))


def rows(path: Path) -> list[dict[str, str]]:
    return list(csv.DictReader(path.read_text().splitlines()))


def test_help_needs_no_torch_and_names_every_key() -> None:
    code = "import sys; from mlp_lab.cli.main import main; main(['sweep', '--help']); print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout == f"{HELP}False\n"
    for one in fields(SweepSettings):
        assert f"\n  {one.name}" in HELP
    for one in fields(StudySettings):
        assert f"\n  study.{one.name} " in HELP
    for name, kind in {"cluster": ClusterSettings, "wandb": WandbSettings, "diagnosis": DiagnosisSettings}.items():
        for one in fields(kind):
            assert re.search(rf"^  {name}\.{one.name} .*\w{{4}}", HELP, re.MULTILINE), one.name
    assert max(map(len, HELP.splitlines())) <= 100


@pytest.mark.parametrize("backend", ["population", "serial"])
def test_a_sweep_keeps_every_trial_and_goes_on(backend: str, table: Path, bench: Bench) -> None:
    words = ("sweep", "--config", "sweep.yaml", "--backend", backend)
    answer = bench(*words)
    assert (answer.status, answer.err) == (0, "")
    assert answer.last_line == "runs/sweeps/sweep"
    folder = table / "runs/sweeps/sweep"
    assert sorted(path.name for path in folder.iterdir()) == ["best.yaml", "study.db", "trials.csv"]
    first = rows(folder / "trials.csv")
    assert [row["state"] for row in first] == ["complete"] * 6
    more = bench(*words, "--trials", "8")
    assert "going on with the study 'sweep': 6 trials are finished" in more.out
    assert rows(folder / "trials.csv")[:6] == first
    assert len(rows(folder / "trials.csv")) == 8


def test_fit_on_the_best_repeats_its_value(table: Path, bench: Bench) -> None:
    bench("sweep", "--config", "sweep.yaml", "--backend", "serial", "--trainer.max_epochs", "3", "--run.dir", "found")
    best = min(float(row["val/loss"]) for row in rows(table / "found/trials.csv"))
    assert bench("fit", "--config", "found/best.yaml", "--run.dir", "again").status == 0
    losses = [float(row["val/loss"]) for row in rows(table / "again/metrics.csv") if row["val/loss"]]
    assert len(losses) == 3
    assert min(losses) == best  # to the last bit


def test_flags_win_over_the_yaml(table: Path) -> None:
    write_sweep(table / "sweep.yaml", study={"name": "a", "sampler": "random"})
    words = [
        "--study.sampler",
        "tpe",
        "--study.sampler.n_startup_trials",
        "3",
        "--seeds",
        "2",
        "--storage",
        "journal:x",
    ]
    words += ["--diagnosis.prune", "[nonfinite]", "--model.depth=2", "--config", "sweep.yaml", "--study.pruner", "none"]
    content, rest, folder = read_sweep([*words, "--run.dir", "there"])
    settings = SweepSettings.read(content)
    assert (settings.study.sampler.name, settings.study.sampler.arguments) == ("tpe", {"n_startup_trials": 3})
    assert (settings.study.pruner.name, settings.study.storage, settings.seeds) == ("none", "journal:x", 2)
    assert settings.diagnosis.prune == ("nonfinite",)
    assert rest == ["--config", "config.yaml", "--model.depth", "2"]
    assert folder == Path("there")


def test_paths_may_name_home_and_variables(table: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(table))
    monkeypatch.setenv("STUDY", "50% of #1?")
    write_sweep(table / "sweep.yaml", base="~/config.yaml")
    _, rest, folder = read_sweep(["--config", "sweep.yaml", "--run.dir", "~/$STUDY"])
    assert rest == ["--config", str(table / "config.yaml")]
    assert folder == table / "50% of #1?"


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (("--config", "no.yaml"), "--config: there is no file no.yaml ("),
        ((), "--config: name one sweep, such as sweeps/digits.yaml"),
        (("--config", "config.yaml"), "--config: config.yaml is the config of one run; a sweep names it as its `base`"),
        (("--trails", "3"), "--trails: no such key; did you mean --trials?"),
        (("--trials",), "--trials: no value is given"),
        (("--space.model.depth.high", "3"), "--space.model.depth.high: the space is no flag; write it under `space:`"),
        (("--trials", "many"), "trials: 'many' is not accepted; use an integer"),
        (
            ("--backend", "slrum"),
            "backend: 'slrum' is unknown (did you mean 'slurm'?); accepted: population, serial, slurm",
        ),
        (("--study.metric", "val/acuracy"), "study.metric: 'val/acuracy' is unknown (did you mean 'val/accuracy'?)"),
        (
            ("--study.metric", "val/auroc", "--data.eval_batch_size", "1", "--trainer.limit_val_batches", "1"),
            "study.metric: val/auroc has no value on the 1 validation row, which is of class '",
        ),
        (("--study.metric", "signal/decades"), "study.metric: signal/decades is measured by a run's own diagnostics"),
        (("--study.sampler", "tpee"), "study.sampler: 'tpee' is unknown (did you mean 'tpe'?)"),
        (("--study.pruner", "ahsa"), "study.pruner: 'ahsa' is unknown (did you mean 'asha'?)"),
        (("--diagnosis.prune", "dead_unit"), "diagnosis.prune: 'dead_unit' is unknown (did you mean 'dead_units'?)"),
        (
            ("--replicates", "3"),
            "replicates: 3 is for `fit`; a sweep's trials are single networks (leave it out; --seeds 3",
        ),
        (("--model.dept", "3"), "model.dept: no such key; did you mean model.depth?"),
        (("--model.width", "3"), "--model.width: the space searches it; leave the flag out, or take the key out"),
        (
            ("--model.optimizer", "{lr: 0.1}"),
            "--model.optimizer: the space searches model.optimizer.lr; leave it out, or take the key out of the space",
        ),
        (
            ("--study.sampler.n_startup_trials", "many"),
            "study.sampler: tpe does not accept {'n_startup_trials': 'many'} (",
        ),
        (("--storage", "sqlite:////proc/no/a.db"), "study.storage: /proc/no cannot be written ("),
        (
            ("--early_stopping.monitor", "val/acuracy"),
            "early_stopping.monitor: 'val/acuracy' is unknown (did you mean 'val/accuracy'?)",
        ),
        (("--trainer.accelerator", "gpuu"), "trainer: "),
        (
            ("--backend", "serial", "--trainer.accelerator", "cpu", "--trainer.devices", "2"),
            "trainer.devices: 2 means 2 processes, and a trial trains in one; use 1, and a worker for each device",
        ),
        (
            ("--trainer.max_epochs", "-1", "--trainer.max_steps", "9"),
            "trainer.max_epochs: -1 leaves open when asha decides; set it, or study.pruner: none",
        ),
        (("--trainer.limit_val_batches", "0"), "trainer.limit_val_batches: 0 leaves nothing to judge a trial by"),
        (("--trainer.val_check_interval", "99"), "trainer.val_check_interval: 99 is more than the 6 batches"),
    ],
)
def test_mistakes_are_told_in_one_line_and_nothing_is_written(
    words: tuple[str, ...], line: str, table: Path, bench: Bench
) -> None:
    given = words if not words or "--config" in words else ("--config", "sweep.yaml", *words)
    answer = bench("sweep", *given)
    assert answer.status == 2
    assert answer.err.startswith(f"error: {line}")
    assert answer.err.count("\n") == 1
    assert not (table / "runs").exists()


@pytest.mark.parametrize(
    ("key", "content", "line"),
    [
        ("model.dept", SPACE["model.width"], "space.model.dept: no such key; did you mean model.depth?"),
        (
            "model.depth",
            {"type": "float", "low": 1, "high": 2},
            "space.model.depth: 1.0 is not accepted; use an integer",
        ),
        ("model.dropout", {"type": "float", "low": 0, "high": 1.5}, "space.model.dropout: 1.5 is not a probability"),
        (
            "model.activation",
            {"type": "categorical", "choices": ["relu", "gelo"]},
            "space.model.activation: 'gelo' is unknown (did you mean 'gelu'?)",
        ),
        ("run.name", {"type": "categorical", "choices": ["a"]}, "space.run.name: it says where and how a run is kept"),
        (
            "data.init_args.batch_size",
            {"type": "categorical", "choices": [8]},
            "space.data.init_args.batch_size: write it as on the command line, data.batch_size",
        ),
        (
            "model.width",
            {"type": "int", "low": 4, "high": 10**12},
            "space: a network with width 1000000000000 · lr 0.1 does not fit into the memory; make its ranges smaller",
        ),
        ("model.depth", {"type": "int", "low": 3, "high": 1}, "space.model.depth: low 3 is above high 1; swap them"),
        (
            "data.batch_size",
            {"type": "categorical", "choices": [8, -3]},
            "space.data.batch_size: -3 must be 1 or more",
        ),
    ],
)
def test_mistakes_of_the_space_are_told_in_one_line(
    key: str, content: dict[str, Any], line: str, table: Path, bench: Bench
) -> None:
    write_sweep(table / "sweep.yaml", space={**SPACE, key: content})
    answer = bench("sweep", "--config", "sweep.yaml")
    assert answer.status == 2
    assert answer.err.startswith(f"error: {line}")
    assert answer.err.count("\n") == 1
    assert not (table / "runs").exists()


def test_settings_of_one_choice_may_depend_on_it(table: Path, bench: Bench) -> None:
    """Alone, each end of a range would be refused with the other optimizer, or schedule."""
    space: dict[str, Any] = {
        "model.optimizer.name": {"type": "categorical", "choices": ["adam", "sgd"]},
        "model.optimizer.momentum": {"type": "float", "low": 0, "high": 0.9, "when": {"model.optimizer.name": "sgd"}},
        "model.optimizer.nesterov": {
            "type": "categorical",
            "choices": [True, False],
            "when": {"model.optimizer.momentum": ">0"},
        },
    }
    write_sweep(table / "sweep.yaml", space=space)
    answer = bench("sweep", "--config", "sweep.yaml")
    assert (answer.status, answer.err) == (0, "")
    wrong = space["model.optimizer.momentum"] | {"low": -1.0}
    write_sweep(table / "wrong.yaml", space=space | {"model.optimizer.momentum": wrong})
    answer = bench("sweep", "--config", "wrong.yaml")
    assert answer.status == 2
    assert answer.err.startswith("error: space.model.optimizer.momentum: -1.0 is out of range")


def test_steps_of_several_batches_are_trained_alone(table: Path, bench: Bench) -> None:
    assert bench("sweep", "--config", "sweep.yaml", "--trainer.accumulate_grad_batches", "2").status == 0
    assert {row["state"] for row in rows(table / "runs/sweeps/sweep/trials.csv")} == {"complete"}


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("--cluster", "local"), {"executor": "local", "workers": 4}),
        (("--cluster.workers", "2", "--cluster", "local"), {"executor": "local", "workers": 2}),
        (("--cluster", "local", "--cluster.workers", "2"), {"executor": "local", "workers": 2}),
    ],
)
def test_a_word_changes_one_key_of_its_group(words: tuple[str, ...], expected: dict[str, Any], table: Path) -> None:
    write_sweep(table / "sweep.yaml", cluster={"executor": "slurm", "workers": 4})
    content, _, _ = read_sweep(["--config", "sweep.yaml", *words])
    assert content["cluster"] == expected


def test_another_space_is_refused_and_the_study_untouched(table: Path, bench: Bench) -> None:
    bench("sweep", "--config", "sweep.yaml")
    before = (table / "runs/sweeps/sweep/trials.csv").read_text()
    write_sweep(table / "sweep.yaml", space={**SPACE, "model.width": {"type": "int", "low": 4, "high": 17}})
    answer = bench("sweep", "--config", "sweep.yaml", "--trials", "20")
    assert answer.status == 2
    assert answer.err.startswith(
        "error: space.model.width: the study 'sweep' was begun with {type: int, low: 4, high: 16}"
    )
    assert (table / "runs/sweeps/sweep/trials.csv").read_text() == before


def test_output_tells_a_search_from_its_plan_to_its_best(table: Path, bench: Bench) -> None:
    write_sweep(table / "sweep.yaml", trials=2, study={"pruner": "none"})
    lines = bench("sweep", "--config", "sweep.yaml").out.splitlines()
    assert lines[:7] == [
        "study   sweep: val/loss",
        "base    config.yaml",
        "space   model.width         4 to 16",
        "        model.optimizer.lr  0.001 to 0.1, log scale",
        "budget  2 trials, up to 3 trained together",
        "search  sampler tpe, seed 0",
        "storage runs/sweeps/sweep/study.db",
    ]
    assert lines[7].split() == ["val/loss", "settings", "(*", "best", "so", "far)"]
    assert [line.split()[:2] for line in lines[8:10]] == [["trial", "0"], ["trial", "1"]]
    assert lines[10].startswith("2 of 2 trials, best val/loss ")
    assert lines[-2].endswith(" alone: python -m mlp_lab fit --config runs/sweeps/sweep/best.yaml")
    again = bench("sweep", "--config", "sweep.yaml").out.splitlines()
    assert (
        again[7] == "going on with the study 'sweep': 2 trials are finished, as many as asked for (--trials 4 goes on)"
    )


def test_search_in_which_every_trial_fails_says_why(table: Path, bench: Bench) -> None:
    answer = bench("sweep", "--config", "sweep.yaml", "--trials", "2", "--memory", "1e-9")
    assert answer.status == 2
    assert answer.err.startswith("error: every trial has failed, most of them with: memory: a trial of about ")
    assert "no trial was trained to its end (2 failed)" in answer.out
    assert answer.last_line == "runs/sweeps/sweep"
    assert [row["state"] for row in rows(table / "runs/sweeps/sweep/trials.csv")] == ["failed"] * 2


def test_another_table_is_refused_and_the_study_untouched(table: Path, bench: Bench) -> None:
    write_sweep(table / "sweep.yaml", trials=1)
    assert bench("sweep", "--config", "sweep.yaml").status == 0
    before = (table / "runs/sweeps/sweep/trials.csv").read_text()
    write_table(table / "other.csv", row7="1,2,x,no")
    write_table(table / "moved.csv")
    (table / "table.csv").write_bytes((table / "other.csv").read_bytes())
    for words, name in (((), "table.csv"), (("--data.path", "other.csv"), "other.csv")):
        answer = bench("sweep", "--config", "sweep.yaml", "--trials", "2", *words)
        assert answer.status == 2
        assert answer.err.startswith(f"error: data: the study 'sweep' was begun with {table}/table.csv (fingerprint ")
        assert f"), this is {table}/{name} (fingerprint " in answer.err
        assert answer.err.endswith("); use another study.name, or the same data\n")
    assert (table / "runs/sweeps/sweep/trials.csv").read_text() == before
    assert bench("sweep", "--config", "sweep.yaml", "--trials", "2", "--data.path", "moved.csv").status == 0


@pytest.mark.parametrize("name", sorted({path.stem for path in SWEEPS.glob("*.yaml")} - {"wandb_agent"}))
def test_a_shipped_sweep_fits_its_config(name: str, here: Path, bench: Bench) -> None:
    """All that can be wrong before the first trial; a budget of a moment lets none begin."""
    content = yaml.safe_load((SWEEPS / f"{name}.yaml").read_text())
    assert content["study"]["name"] == name
    if name not in ("digits", "vanishing") and not os.environ.get("MLP_LAB_DATA"):
        pytest.skip("MLP_LAB_DATA does not name a folder of data files")
    words = ("--backend", "population") if name == "cluster" else ()  # it has no database here
    answer = bench("sweep", "--config", SWEEPS / f"{name}.yaml", "--minutes", "1e-9", *words)
    assert (answer.status, answer.err) == (0, "")
    assert (here / "runs" / "sweeps" / name / "study.db").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["population", "serial"])
@pytest.mark.parametrize("end", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_a_killed_sweep_goes_on_where_it_was(backend: str, end: signal.Signals, here: Path) -> None:
    words = ["sweep", "--config", str(SWEEPS / "digits.yaml"), "--run.dir", "it", "--backend", backend]
    words += ["--trials", "10", "--population", "4", "--study.pruner", "none", "--trainer.max_epochs", "6"]
    words += ["--diagnosis.prune", "[]"]
    command = [sys.executable, "-m", "mlp_lab", *words]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    streams: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    with subprocess.Popen(command, env=environment, **streams) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("trial "):
                break
        process.send_signal(end)
        rest = process.stdout.read()
    assert process.returncode == (-signal.SIGKILL if end == signal.SIGKILL else 130), rest
    if end != signal.SIGKILL:
        assert "go on with the same command" in rest.splitlines()[-1]
        assert "Traceback" not in rest
    done = subprocess.run(command, env=environment, **streams)
    assert done.returncode == 0, done.stdout
    study = optuna.load_study(study_name="digits", storage=f"sqlite:///{here}/it/study.db")
    assert [trial.number for trial in study.trials if not trial.state.is_finished()] == []
    complete = [trial for trial in study.trials if trial.state.name == "COMPLETE"]
    assert len(complete) == 10
    assert len({str(trial.params) for trial in complete}) == 10
    lost = [trial for trial in study.trials if trial.state.name == "FAIL"]
    assert {f"retry of {one.number}" for one in lost if one.params} == {
        one.user_attrs["origin"] for one in study.trials if "origin" in one.user_attrs
    }
    assert study.best_value < 0.5
