"""`sweep --backend slurm` with its workers as processes of this machine; tests/cluster has it on a real Slurm."""

from __future__ import annotations

import os
import pickle
import subprocess
import sys
from pathlib import Path

import optuna
import pytest

from mlp_lab.cli.fleet import Worker, hand_over_password
from mlp_lab.sweep.cluster import Placed
from mlp_lab.sweep.settings import StudySettings, SweepSettings
from mlp_lab.sweep.storage import PASSWORD, split_password, storage_url

ROOT = Path(__file__).parents[2]


@pytest.mark.slow
def test_workers_of_one_machine_share_a_study(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "mlp_lab", "sweep", "--config", str(ROOT / "sweeps" / "digits.yaml")]
    words += ["--backend", "slurm", "--cluster", "local", "--cluster.workers", "2", "--trials", "8"]
    words += ["--population", "2", "--trainer.max_epochs", "2", "--run.dir", "it"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "2 workers submitted as job " in done.stdout
    study = optuna.load_study(study_name="digits", storage=f"sqlite:///{tmp_path}/it/study.db")
    assert len(study.trials) in range(8, 13)
    assert all(one.state.name in ("COMPLETE", "PRUNED") for one in study.trials)
    assert len((tmp_path / "it" / "trials.csv").read_text().splitlines()) == len(study.trials) + 1


def test_mistakes_in_the_cluster_are_told_first(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "mlp_lab", "sweep", "--config", str(ROOT / "sweeps" / "digits.yaml")]
    words += ["--backend", "slurm", "--cluster.worker", "2"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (
        2,
        "error: cluster.worker: no such key of a sweep; did you mean cluster.workers?\n",
    )
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("url", ["postgresql://me:s3cret@host/db", "postgresql://me@host/db?password=s3cret"])
def test_job_holds_no_password(url: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv(PASSWORD, "")
    settings = SweepSettings(base="base.yaml", trials=1, space={"model.depth": [1]}, study=StudySettings(storage=url))
    arguments = ["--storage", url, f"--study={{storage: {url}}}", "--trials", "1"]
    words = hand_over_password(settings, arguments)
    work = Worker(print, words, tmp_path)
    assert b"s3cret" not in pickle.dumps(Placed(work, {}))
    assert os.environ[PASSWORD] == "s3cret"
    assert split_password(storage_url(words[1], tmp_path))[1] == "s3cret"
    assert words[3:] == arguments[3:]
