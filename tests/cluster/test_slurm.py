"""`sweep --backend slurm` on a real Slurm cluster of one node, whose workers share a real PostgreSQL study."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from mlp_lab.sweep.storage import open_storage, storage_url
from tests.cluster.conftest import need
from tests.sweep.quadratic import ROOT

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("cluster")]
TRIALS, WORKERS = 15, 2
LONG = ["--trainer.max_epochs", "40"]  # a batch takes several times as long as a signal takes through the cluster


@pytest.fixture
def words(storage: str, tmp_path: Path) -> list[str]:
    words = [sys.executable, "-m", "mlp_lab", "sweep", "--config", str(ROOT / "sweeps" / "digits.yaml")]
    words += ["--backend", "slurm", "--cluster.workers", str(WORKERS), "--cluster.minutes", "5", "--cluster.cpus", "1"]
    words += ["--storage", storage, "--run.dir", str(tmp_path / "it"), "--trials", str(TRIALS), "--population", "3"]
    words += ["--study.pruner", "none", "--diagnosis.prune", "[]", "--trainer.max_epochs", "8"]
    return [*words, "--study.heartbeat", "1"]


def start(words: list[str], folder: Path) -> subprocess.Popen[str]:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
    streams: dict[str, Any] = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(words, env=environment, cwd=folder, **streams)


def until(storage: str, folder: Path, count: int) -> tuple[optuna.Study, str]:
    """Waits until a study has so many finished trials while others run; returns it and one of their workers."""
    kept = open_storage(storage_url(storage, folder), heartbeat=1)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline:
        time.sleep(0.2)
        if "digits" not in optuna.get_all_study_names(kept):
            continue
        study = optuna.load_study(study_name="digits", storage=kept)
        running = study.get_trials(states=(TrialState.RUNNING,))
        finished = sum(one.state.is_finished() for one in study.trials)
        workers = [one.user_attrs["worker"] for one in running if "worker" in one.user_attrs]
        if finished >= count and workers:
            return study, workers[0]
    raise AssertionError("no trials")


def kill_at_work(storage: str, folder: Path) -> optuna.Study:
    """Kills a worker that trains: it is stopped first, for its batch may end between the look and the blow."""
    while True:
        study, worker = until(storage, folder, 3)
        process = int(worker.split()[1])
        os.kill(process, signal.SIGSTOP)
        if any(one.user_attrs.get("worker") == worker for one in study.get_trials(states=(TrialState.RUNNING,))):
            os.kill(process, signal.SIGKILL)
            return study
        os.kill(process, signal.SIGCONT)


def check(study: optuna.Study, *, lost: bool) -> None:
    assert [one.number for one in study.trials if not one.state.is_finished()] == []
    done = [one for one in study.trials if one.state == TrialState.COMPLETE]
    assert TRIALS <= len(done) <= TRIALS + 3 * WORKERS  # each may ask its last batch at the same moment
    assert len({str(one.params) for one in done}) == len(done)
    cut = [one for one in study.trials if one.state == TrialState.FAIL]
    assert all("error" not in one.user_attrs for one in cut)
    assert {f"retry of {one.number}" for one in cut if one.params} == {
        one.user_attrs["origin"] for one in study.trials if "origin" in one.user_attrs
    }
    assert bool(cut) == lost


def test_an_array_of_workers_shares_one_study_and_outlives_one_of_them(
    words: list[str], storage: str, tmp_path: Path
) -> None:
    with start(words, tmp_path) as head:
        study = kill_at_work(storage, tmp_path)
        told = head.communicate()[0]
    assert head.returncode == 0, told
    assert f"{WORKERS} workers submitted as job " in told
    assert "ended without a result (killed, or its machine was lost); its log is " in told
    check(study, lost=True)
    workers = {one.user_attrs["worker"] for one in study.trials if one.state == TrialState.COMPLETE}
    assert len(workers) >= WORKERS - 1
    assert {path.name for path in (tmp_path / "it").iterdir()} == {"best.yaml", "trials.csv", "workers"}
    with start(words, tmp_path) as head:
        told = head.communicate()[0]
    assert head.returncode == 0, told
    assert "submitted" not in told  # there is nothing left to do
    assert "trial  val/loss" in told


@pytest.mark.slow
def test_ctrl_c_cancels_the_workers_and_the_command_goes_on(words: list[str], storage: str, tmp_path: Path) -> None:
    with start([*words, *LONG], tmp_path) as head:
        study, _ = until(storage, tmp_path, 3)
        head.send_signal(signal.SIGINT)
        told = head.communicate()[0]
    assert head.returncode == 130, told
    assert "the workers are cancelled and" in told.splitlines()[-1]
    assert not study.get_trials(states=(TrialState.RUNNING,))
    assert subprocess.run(["squeue", "-h"], capture_output=True, text=True, check=True).stdout == ""
    with start([*words, *LONG], tmp_path) as head:
        told = head.communicate()[0]
    assert head.returncode == 0, told
    check(study, lost=True)


@pytest.mark.slow
def test_a_job_that_is_preempted_is_queued_again_and_goes_on(words: list[str], storage: str, tmp_path: Path) -> None:
    with start([*words, *LONG], tmp_path) as head:
        study, _ = until(storage, tmp_path, 3)
        shown = subprocess.run(["squeue", "-h", "--array", "-t", "R", "-o", "%i"], capture_output=True, text=True)
        job = shown.stdout.split()[0]
        signal_it = ["scancel", "--signal=USR2", job]  # what Slurm sends before it takes the node
        while subprocess.run(signal_it, capture_output=True).returncode:  # a job that has just begun takes no signal
            time.sleep(0.2)
        told = head.communicate()[0]
    assert head.returncode == 0, told
    check(study, lost=True)
    log = next((tmp_path / "it" / "workers").glob(f"{job}_0_log.out")).read_text()
    assert "Caught signal SIGUSR2" in log
    assert log.count("Starting with JobEnvironment(") == 2


def test_what_the_cluster_refuses_is_told_in_its_words(words: list[str], tmp_path: Path) -> None:
    with start([*words, "--cluster.partition", "nowhere"], tmp_path) as head:
        told = head.communicate()[0]
    assert head.returncode == 2, told
    assert told.splitlines()[-1].startswith("error: cluster: the jobs are refused (")
    assert "invalid partition specified: nowhere" in told


def test_a_file_is_no_storage_for_several_nodes(words: list[str], tmp_path: Path) -> None:
    need("sbatch")
    words[words.index("--storage") + 1] = f"sqlite:///{tmp_path}/study.db"
    with start(words, tmp_path) as head:
        told = head.communicate()[0]
    assert head.returncode == 2
    assert told.splitlines()[-1] == (  # below the plan of the search
        "error: study.storage: sqlite is one machine's file, and its locks do not hold between the nodes of a cluster; "
        "use postgresql://USER@HOST/DB"
    )
    assert list(tmp_path.iterdir()) == []
