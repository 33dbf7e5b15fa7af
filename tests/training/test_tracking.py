"""The run directory, where a run came from, and the table of numbers."""

from __future__ import annotations

import json
import os
import subprocess
from pathlib import Path

import numpy as np
import pytest
import torch

from mlp_lab.errors import UserError
from mlp_lab.training.tracking import (
    RECORDED_PACKAGES,
    RUN_DIR_VARIABLE,
    MetricsCSV,
    RunDirectory,
    git_state,
    provenance,
    write_text,
)
from tests.disk import full_disk


def test_runs_get_directories_of_their_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    one, two = RunDirectory.plan("digits", None), RunDirectory.plan("digits", None)
    assert one.path != two.path
    assert one.path.parent == tmp_path / "runs" / "digits"
    assert list(tmp_path.iterdir()) == [], "planning writes nothing"


def test_a_directory_with_a_run_is_refused(tmp_path: Path) -> None:
    run = RunDirectory.plan("x", str(tmp_path))
    run.make()
    RunDirectory.plan("x", str(tmp_path))  # made, but no run was begun in it
    run.config.write_text("model: {}\n")
    with pytest.raises(UserError, match=r"^run.dir: .* already holds a run; name another, or .*--resume"):
        RunDirectory.plan("x", str(tmp_path))


def test_launched_processes_share_the_directory_of_the_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(RUN_DIR_VARIABLE, "")
    RunDirectory(tmp_path / "first").share()
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    assert RunDirectory.plan("x", str(tmp_path / "second")).path == tmp_path / "second", "left over from another run"
    monkeypatch.setenv("LOCAL_RANK", "1")
    assert RunDirectory.plan("x", str(tmp_path / "second")).path == tmp_path / "first"


def test_making_it_removes_what_was_half_written(tmp_path: Path) -> None:
    run = RunDirectory(tmp_path)
    run.make()
    leftovers = [tmp_path / ".metrics.csv.partial", run.last.with_name(".last.ckpt.partial")]
    for file in leftovers:
        file.write_text("half")
    run.last.write_text("whole")
    run.make()
    assert not any(file.exists() for file in leftovers)
    assert run.last.read_text() == "whole"


def test_a_directory_that_cannot_be_made_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match=r"^run.dir: .*file/run cannot be written \(.*\); name a writable directory"):
        RunDirectory(tmp_path / "file" / "run").make()


@pytest.mark.parametrize(("make", "message"), [(False, "there is no directory"), (True, "holds no run")])
def test_opening_what_is_no_run(make: bool, message: str, tmp_path: Path) -> None:
    if make:
        (tmp_path / "run").mkdir()
    with pytest.raises(UserError, match=rf"^--run: .*{message}.*; give a directory that `fit` wrote"):
        RunDirectory.open(str(tmp_path / "run"), "--run")


def test_open_of_a_folder_of_runs_suggests_the_latest(tmp_path: Path) -> None:
    (tmp_path / "runs" / "a").mkdir(parents=True)
    (tmp_path / "runs" / "a" / "config.yaml").touch()
    RunDirectory(tmp_path / "runs" / "a").point_latest()
    with pytest.raises(
        UserError, match=r"runs holds no run \(no config.yaml\) \(did you mean .*/runs/latest\?\); give"
    ):
        RunDirectory.open(str(tmp_path / "runs"), "--run")


def test_latest_links_to_the_newest_and_moves_with_the_runs(tmp_path: Path) -> None:
    for name in ("a", "b"):
        run = RunDirectory(tmp_path / "runs" / name)
        run.make()
        run.point_latest()
    (tmp_path / "runs").rename(tmp_path / "moved")
    assert (tmp_path / "moved" / "latest").resolve() == tmp_path / "moved" / "b"
    assert sorted(path.name for path in (tmp_path / "moved").iterdir()) == ["a", "b", "latest"]


def test_latest_that_is_a_folder_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "latest").mkdir()
    RunDirectory(tmp_path / "a").point_latest()
    assert [path.name for path in tmp_path.iterdir()] == ["latest"]


def test_text_takes_its_place_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "a.json"
    write_text(path, "old")

    def cut_off(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", cut_off)
    with pytest.raises(KeyboardInterrupt):
        write_text(path, "new")
    assert path.read_text() == "old"


def test_provenance_says_where_a_run_came_from(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["prog", "fit", "--model.depth", "3"])
    record = json.loads(json.dumps(provenance(seed=7)))
    assert record["command"] == ["python", "-m", "mlp_lab", "fit", "--model.depth", "3"]
    assert record["seed"] == 7
    assert list(record["packages"]) == list(RECORDED_PACKAGES)
    assert record["packages"]["torch"] == torch.__version__.split("+")[0]
    assert record["packages"]["numpy"] == np.__version__


def test_git_state_of_a_checkout(tmp_path: Path) -> None:
    def git(*words: str) -> str:
        identity = ["-c", "user.name=a", "-c", "user.email=a@b.c"]
        return subprocess.run(
            ["git", "-C", tmp_path, *identity, *words], check=True, capture_output=True, text=True
        ).stdout

    assert git_state(tmp_path) is None
    git("init", "-q")
    assert git_state(tmp_path) is None, "an installed package inside someone else's checkout"
    (tmp_path / "a.py").write_text("1\n")
    git("add", "a.py")
    git("commit", "-qm", "first")
    assert git_state(tmp_path) == {"commit": git("rev-parse", "HEAD").strip(), "dirty": False}
    (tmp_path / "a.py").write_text("2\n")
    state = git_state(tmp_path)
    assert state is not None
    assert state["dirty"]


def test_metrics_are_a_table_whose_columns_appear_as_they_come(tmp_path: Path) -> None:
    table = MetricsCSV(tmp_path / "metrics.csv")
    table.log_metrics({"epoch": 0, "train/loss": 0.1 + 0.2}, step=5)
    table.log_metrics({"epoch": 0, "val/loss": torch.tensor(0.5), "val/accuracy": np.float32(0.25)}, step=5)
    table.log_metrics({"epoch": 1, "train/loss": float("nan")}, step=10)
    assert (tmp_path / "metrics.csv").read_text() == (
        "step,epoch,train/loss,val/loss,val/accuracy\n"
        "5,0,0.30000000000000004,,\n"  # every digit: a number survives the file
        "5,0,,0.5,0.25\n"
        "10,1,nan,,\n"
    )


def test_a_resumed_table_is_that_of_a_run_that_never_stopped(tmp_path: Path) -> None:
    rows = [({"epoch": 0, "a": 1.0}, 1), ({"epoch": 0, "b": 2.0}, 2), ({"epoch": 1, "a": 3.0, "c": 4.0}, 3)]
    for kept in range(len(rows) + 1):
        whole, cut = MetricsCSV(tmp_path / "whole.csv"), MetricsCSV(tmp_path / "cut.csv")
        for values, step in rows:
            whole.log_metrics(values, step)
            cut.log_metrics(values, step)
        with cut.path.open("a") as file:
            file.write("3,1,0.0")  # a row that a killed process did not finish
        resumed = MetricsCSV(cut.path)
        resumed.resume(kept)
        assert resumed.rows == kept
        for values, step in rows[kept:]:
            resumed.log_metrics(values, step)
        assert cut.path.read_text() == whole.path.read_text()


def test_a_run_begun_anew_drops_the_old_table(tmp_path: Path) -> None:
    table = MetricsCSV(tmp_path / "metrics.csv")
    table.resume(5)
    assert table.rows == 0
    assert table.path.read_text() == "step,epoch\n"


def test_metrics_on_full_disk_keep_their_rows_until_there_is_space(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table, whole = MetricsCSV(tmp_path / "metrics.csv"), MetricsCSV(tmp_path / "whole.csv")
    rows = [{"epoch": k, "train/loss": k + 0.1234567890123} for k in range(9)] + [{"epoch": 9, "val/loss": 0.5}]
    for step, row in enumerate(rows):
        whole.log_metrics(row, step)
        with full_disk(90 if 3 <= step < 9 else 10_000):
            table.log_metrics(row, step)
        assert (table.failure is None) == (step < 3 or step == 9)
    assert table.path.read_text() == whole.path.read_text()
    assert table.rows == 10
    assert capsys.readouterr().out.count("metrics.csv could not be written (File too large)") == 1
    with full_disk(100):
        table.log_metrics({"epoch": 10}, 10)
    table.finalize("success")
    assert table.failure is None
    assert len(table.read()) == 11


def test_resume_of_metrics_that_lost_rows_reports_them(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    table = MetricsCSV(tmp_path / "metrics.csv")
    for step in range(3):
        table.log_metrics({"epoch": 0, "train/loss": 0.5}, step)
    table.path.write_text("\n".join(table.path.read_text().splitlines()[:2]) + "\n")
    table.resume(3)
    assert "metrics.csv holds 1 of the 3 rows that were written before the checkpoint" in capsys.readouterr().out
    table.path.unlink()
    table.resume(3)
    assert "metrics.csv holds 0 of the 3 rows" in capsys.readouterr().out


def test_file_with_a_password_is_readable_by_its_owner_alone(tmp_path: Path) -> None:
    write_text(tmp_path / "open", "uri: https://host")
    write_text(tmp_path / "closed", "uri: https://me:secret@host")
    assert (tmp_path / "open").stat().st_mode & 0o044
    assert (tmp_path / "closed").stat().st_mode & 0o777 == 0o600


def test_provenance_holds_no_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.argv", ["mlp_lab", "fit", "--uri=https://me:secret@host"])
    assert provenance()["command"][-1] == "--uri=https://me@host"
