from __future__ import annotations

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from mlp_lab.cli.rollback import Rollback
from mlp_lab.training.run_lock import RunLock
from mlp_lab.training.tracking import RunDirectory
from tests.cli.conftest import Bench, write_config, write_table

TRAINER: Any = SimpleNamespace(is_global_zero=True, global_step=0)
FAILURE = ValueError()


def write_record(run: RunDirectory) -> None:
    run.make()
    run.config.write_text("new")
    run.provenance.write_text("new")


def fail(rollback: Rollback, trainer: Any = TRAINER) -> None:
    rollback.on_exception(trainer, cast(Any, None), FAILURE)


def test_new_run_that_never_trained_is_removed_with_the_folders_made_for_it(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "runs" / "name" / "time")
    rollback = Rollback(run)
    write_record(run)
    fail(rollback)
    assert list(tmp_path.iterdir()) == []


def test_folders_that_were_there_or_hold_something_else_stay(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "runs" / "name" / "time")
    run.path.parent.mkdir(parents=True)
    rollback = Rollback(run)
    write_record(run)
    (run.path / "notes.txt").write_text("mine")
    fail(rollback)
    assert [path.name for path in run.path.iterdir()] == ["notes.txt"]
    (run.path / "notes.txt").unlink()
    write_record(run)
    fail(rollback)
    assert run.path.parent.is_dir()
    assert not run.path.exists()


def test_old_run_gets_its_files_back(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    run.make()
    run.provenance.write_text("old")
    run.metrics.write_text("old")
    rollback = Rollback(run)
    write_record(run)
    run.metrics.write_text("cut")
    fail(rollback)
    assert (run.provenance.read_text(), run.metrics.read_text(), run.config.exists()) == ("old", "old", False)


def test_run_that_trains_keeps_all_and_other_processes_touch_nothing(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path / "run")
    rollback = Rollback(run)
    write_record(run)
    fail(rollback, SimpleNamespace(is_global_zero=False))
    assert run.config.exists()
    rollback.on_train_start(TRAINER, cast(Any, None))
    fail(rollback)
    assert run.config.exists()


@pytest.mark.parametrize("flag", ["--resume", "--run.dir"])
def test_fit_in_a_directory_where_another_process_trains_is_refused(
    flag: str, bench: Bench, finished_run: Path, here: Path
) -> None:
    run = here / "run"
    words = ["fit", "--resume", "run", "--trainer.max_epochs", "2"]
    if flag == "--resume":
        shutil.copytree(finished_run, run)
    else:
        words = ["fit", "--config", write_config(here / "c.yaml", str(write_table(here / "t.csv"))), flag, "run"]
    lock = RunLock(run)
    lock.take()
    before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
    answer = bench(*words)
    assert (answer.status, answer.err.count("\n")) == (2, 1)
    assert answer.err.startswith(f"error: run.dir: {run} is in use by process ")
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
    lock.release()
    assert bench(*words).status == 0
    assert not lock.path.exists()
