"""`fit --resume`: which settings may change, what a changed monitor does, and runs with nothing left to train."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import yaml

from mlp_lab.cli.resume import check_changes
from mlp_lab.data.parts import is_fitted_by_older_version
from mlp_lab.errors import UserError
from mlp_lab.training.tracking import RunDirectory
from tests.cli.conftest import Answer, Bench, write_config, write_table

EARLY = ["--early_stopping.patience", "1", "--early_stopping.min_delta", "9"]  # the second validation ends the run


@pytest.fixture
def run(finished_run: Path, here: Path) -> Path:
    """A copy of a run of one epoch, in the working directory."""
    shutil.copytree(finished_run, here / "run")
    return here / "run"


def fit(bench: Bench, *words: object) -> Answer:
    answer = bench("fit", *words)
    assert answer.status == 0, answer.err
    return answer


def best(run: Path) -> dict[str, Any]:
    checkpoint: dict[str, Any] = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)
    return checkpoint


def test_changes_of_a_resume_are_kept_for_the_next_ones(run: Path, bench: Bench) -> None:
    began = (run / "config.yaml").read_bytes()
    fit(bench, "--resume", run, "--trainer.max_epochs", "2", "--model.optimizer.lr", "0.5")
    fit(bench, "--resume", run, "--trainer.max_epochs", "3")
    rates = pd.read_csv(run / "metrics.csv").dropna(subset=["train/lr"]).groupby("epoch")["train/lr"].last()
    assert rates.tolist() == [1e-3, 0.5, 0.5]
    assert (run / "config.yaml").read_bytes() == began, "it repeats the run as it began"
    effective = yaml.safe_load((run / "resume.yaml").read_text())
    assert (effective["trainer"]["max_epochs"], effective["model"]["optimizer"]["lr"]) == (3, 0.5)
    resumed = json.loads((run / "provenance.json").read_text())["resumed"]
    assert [one["overrides"][1] for one in resumed] == ["2", "3"]
    fit(bench, "--config", run / "resume.yaml", "--run.dir", "again")


def test_resume_after_an_epoch_under_max_steps_counts_that_epoch_once(run: Path, bench: Bench) -> None:
    fit(bench, "--resume", run, "--trainer.max_epochs", "3", "--trainer.max_steps", "9999")
    assert pd.read_csv(run / "metrics.csv").dropna(subset=["train/epoch_loss"])["epoch"].tolist() == [0, 1, 2]


def test_refused_change_of_run_in_a_directory_with_a_space_advises_a_quoted_command(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "my run")
    with pytest.raises(UserError, match=re.escape(f"fit --config '{run.config}'`")):
        check_changes(run, {"seed_everything": 0}, {"seed_everything": 1})


def test_resume_without_changes_writes_no_config(run: Path, bench: Bench) -> None:
    (run / "checkpoints" / "last.ckpt").unlink()
    fit(bench, "--resume", run)
    assert not (run / "resume.yaml").exists()


@pytest.mark.parametrize(
    ("flag", "value", "old"),
    [
        ("model.depth", "2", "1"),
        ("model.activation", "tanh", "relu"),
        ("model.encoder.numeric", "plr", "none"),
        ("model.optimizer.name", "sgd", "adam"),
        ("model.loss", "brier", "auto"),
        ("seed_everything", "5", "0"),
        ("replicates", "2", "1"),
        ("data.seed", "5", "null"),
        ("data.scaling", "minmax", "standard"),
        ("data.target", "c", "y"),
        ("data.drop", "['a']", "null"),
    ],
)
def test_what_a_run_began_with_cannot_change(run: Path, bench: Bench, flag: str, value: str, old: str) -> None:
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    answer = bench("fit", "--resume", run, f"--{flag}", value, "--trainer.max_epochs", "2")
    advice = (
        f"leave it out, or begin a new run with `python -m mlp_lab fit --config {run / 'config.yaml'}` and this key"
    )
    assert answer.status == 2
    assert answer.err == f"error: {flag}: {value} cannot replace {old} in a run that goes on; {advice}\n"
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_run_directory_is_named_once(run: Path, bench: Bench) -> None:
    answer = bench("fit", "--resume", run, "--run.dir", "other")
    assert (answer.status, answer.err) == (
        2,
        "error: --run.dir: --resume names the run's directory already; leave one out\n",
    )


def test_check_changes_lets_training_change_and_ignores_keys_of_older_versions(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    before = {"model": {"depth": 1, "dropout": 0.0, "optimizer": {"name": "sgd", "lr": 1.0}}}
    now = {"model": {"depth": 1, "dropout": 0.5, "new": 1, "optimizer": {"name": "sgd", "lr": 2.0}}, "trainer": {}}
    check_changes(run, before, now)
    with pytest.raises(UserError, match=r"^model\.optimizer\.name: adam cannot replace sgd"):
        check_changes(run, before, {"model": {"optimizer": {"name": "adam"}}})


def test_schedule_that_a_resume_adds_goes_on_at_the_steps_taken(run: Path, here: Path, bench: Bench) -> None:
    cosine = ["--model.schedule.name", "cosine", "--trainer.max_epochs", "2"]
    fit(bench, "--resume", run, *cosine)
    fit(bench, "--config", run / "config.yaml", *cosine, "--run.dir", "whole")
    changed, whole = (pd.read_csv(here / name / "metrics.csv")["train/lr"].dropna() for name in ("run", "whole"))
    assert changed.iloc[-1] == whole.iloc[-1]


@pytest.mark.parametrize("replicates", [1, 2])
@pytest.mark.parametrize("monitors", [("val/accuracy", "val/loss"), ("val/loss", "val/accuracy")])
def test_best_is_never_replaced_by_a_worse_state_under_another_monitor(
    here: Path, bench: Bench, monitors: tuple[str, str], replicates: int
) -> None:
    small = ["--model.width", "32", "--model.dropout", "0", "--trainer.max_epochs", "2", "--replicates", replicates]
    fit(bench, *small, "--early_stopping.monitor", monitors[0], "--run.dir", "run")
    kept = (here / "run" / "checkpoints" / "best.ckpt").read_bytes()
    worse = ["--model.optimizer.lr", "3", "--early_stopping.monitor", monitors[1], "--early_stopping.patience", "0"]
    fit(bench, "--resume", "run", "--trainer.max_epochs", "4", *worse)
    losses = pd.read_csv(here / "run" / "metrics.csv")["val/loss"].dropna()
    assert losses.iloc[2:].min() > losses.iloc[1], "the rate must spoil the training, or this tests nothing"
    assert (here / "run" / "checkpoints" / "best.ckpt").read_bytes() == kept


def test_best_without_the_new_metric_is_kept_under_another_name(run: Path, bench: Bench) -> None:
    path = run / "checkpoints" / "best.ckpt"
    checkpoint = torch.load(path, weights_only=True)
    del checkpoint["callbacks"]["BestCheckpoint"]["scores"]["val/accuracy"]
    torch.save(checkpoint, path)
    kept = path.read_bytes()
    answer = fit(bench, "--resume", run, "--trainer.max_epochs", "2", "--early_stopping.monitor", "val/accuracy")
    line = "best.ckpt has no finite val/accuracy to compare by; it is kept as best-epoch-1.ckpt"
    assert f"early_stopping.monitor: {line}" in answer.out
    assert (path.parent / "best-epoch-1.ckpt").read_bytes() == kept
    assert best(run)["epoch"] == 1


@pytest.mark.parametrize(
    ("began", "resumed", "line"),
    [
        (["--trainer.max_epochs", "1"], [], "all 1 epochs of trainer.max_epochs are done; raise it to go on"),
        (["--trainer.max_steps", "6"], [], "all 6 steps of trainer.max_steps are done; raise it to go on"),
        (
            ["--trainer.max_epochs", "9", *EARLY],
            ["--trainer.max_epochs", "60"],
            "val/loss did not improve in the last validation; use an early_stopping.patience above 1 to go on, or 0 to "
            "never stop early",
        ),
        (
            ["--trainer.max_epochs", "9", *EARLY, "--replicates", "2"],
            ["--early_stopping.patience", "5"],
            "all 2 replicates have stopped, and none goes on after its stop; begin a new run",
        ),
        (
            ["--trainer.max_epochs", "999999", "--trainer.max_time", "00:00:00:01"],
            ["--trainer.max_time", "00:00:00:00"],
            "the time of trainer.max_time, which counts from the run's start, is over; raise it to go on",
        ),
    ],
)
def test_run_with_nothing_left_says_why_and_stays_as_it_is(
    here: Path, bench: Bench, began: list[str], resumed: list[str], line: str
) -> None:
    write_table(here / "table.csv")
    config = write_config(here / "config.yaml")
    fit(bench, "--config", config, *began, "--run.dir", "run")
    before = {path: path.read_bytes() for path in (here / "run").rglob("*") if path.is_file()}
    answer = fit(bench, "--resume", "run", *resumed)
    assert f"nothing left to train: {line}\n" in answer.out
    assert answer.last_line == str(here / "run")
    assert {path: path.read_bytes() for path in (here / "run").rglob("*") if path.is_file()} == before


@pytest.mark.parametrize(
    "changed",
    [
        ["--early_stopping.patience", "3"],
        ["--early_stopping.patience", "0"],
        ["--early_stopping.min_delta", "0"],
        ["--early_stopping.monitor", "val/accuracy"],
    ],
)
def test_other_settings_of_early_stopping_train_on(here: Path, bench: Bench, changed: list[str]) -> None:
    write_table(here / "table.csv")
    config = write_config(here / "config.yaml")
    fit(bench, "--config", config, "--trainer.max_epochs", "3", *EARLY, "--run.dir", "run")
    assert pd.read_csv(here / "run" / "metrics.csv")["epoch"].max() == 1
    answer = fit(bench, "--resume", "run", *changed)
    assert "nothing left" not in answer.out
    assert pd.read_csv(here / "run" / "metrics.csv")["epoch"].max() == 2


def test_resume_of_an_older_version_takes_its_preprocessing(bench: Bench, here: Path) -> None:
    """Older versions fitted a date as one number; fitted anew, it has parts, which the weights do not fit."""
    table = pd.read_csv(write_table(here / "table.csv"))
    table["day"] = pd.date_range("2024-01-01", periods=len(table)).astype(str)
    table.to_csv(here / "table.csv", index=False)
    fit(bench, "--config", write_config(here / "config.yaml"), "--run.dir", "run", "--data.drop", "[day]")
    assert not is_fitted_by_older_version(here / "run" / "checkpoints" / "last.ckpt")
    for config in (here / "run").glob("*.yaml"):
        config.write_text(re.sub(r"drop:\n\s*- day", "drop: null", config.read_text()))
    for checkpoint in (here / "run" / "checkpoints").glob("*.ckpt"):
        saved = torch.load(checkpoint, weights_only=True)
        for name in ("forms", "notations", "date_parts", "ranges", "complete"):
            del saved["TabularDataModule"]["state"]["preprocessor"][name]
        torch.save(saved, checkpoint)
    fit(bench, "--resume", "run", "--trainer.max_epochs", "2")
    fit(bench, "--resume", "run", "--trainer.max_epochs", "3")
    fit_state = torch.load(here / "run" / "checkpoints" / "last.ckpt", weights_only=True)
    assert fit_state["TabularDataModule"]["spec"]["numeric"] == ["a", "b"]
