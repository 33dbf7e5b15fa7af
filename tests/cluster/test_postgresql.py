"""Searches whose study is kept by a real PostgreSQL server."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import optuna
import pytest

from mlp_lab.errors import UserError
from mlp_lab.sweep.search import run_sweep
from mlp_lab.sweep.space import Space
from mlp_lab.sweep.storage import storage_url
from tests.cluster.servers import free_port
from tests.sweep.quadratic import Quadratic, check_whole, sweep, wait_for_batch, wait_for_trials, worker

pytestmark = pytest.mark.cluster


def search(storage: str, folder: Path, trials: int) -> optuna.Study:
    settings = sweep(trials, study={"storage": storage})
    return run_sweep(settings, Space.read(settings.space), Quadratic(), folder, directions=("minimize",))


@pytest.mark.slow
def test_it_finds_the_least_and_goes_on(storage: str, tmp_path: Path) -> None:
    search(storage, tmp_path, 8)
    study = search(storage, tmp_path, 16)
    check_whole(study, 16)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["best.yaml", "trials.csv"]


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGINT, pytest.param(signal.SIGTERM, marks=pytest.mark.slow)])
def test_a_killed_search_goes_on_where_it_was(end: signal.Signals, storage: str, tmp_path: Path) -> None:
    with worker(tmp_path, 12, 1.0, storage) as process:
        wait_for_trials(process, 4)
        wait_for_batch(process)
        process.send_signal(end)
        process.communicate()
    study = search(storage, tmp_path, 12)
    check_whole(study, 12)
    assert sum(one.state.name == "FAIL" for one in study.trials) == 4


@pytest.mark.slow
def test_a_worker_that_dies_leaves_its_trials_to_the_other(storage: str, tmp_path: Path) -> None:
    with worker(tmp_path, 12, 3.0, storage) as one:
        wait_for_trials(one, 4)
        with worker(tmp_path, 12, 0.1, storage) as two:
            wait_for_trials(two, 1)
            os.kill(one.pid, signal.SIGKILL)
            two.communicate()
        assert two.returncode == 0
    check_whole(search(storage, tmp_path, 12), 12)


def test_workers_that_start_at_once_make_one_study(storage: str, tmp_path: Path) -> None:
    workers = [worker(tmp_path, 24, 0.3, storage) for _ in range(3)]
    told = [process.communicate()[0] for process in workers]
    assert [process.returncode for process in workers] == [0] * 3, told
    study = search(storage, tmp_path, 24)
    done = [one for one in study.trials if one.state.name == "COMPLETE"]
    assert 24 <= len(done) <= 32  # each may ask its last batch at the same moment
    assert len(study.trials) == len(done)
    assert len({(one.params["x"], one.params["kind"]) for one in done}) == len(done)


@pytest.mark.slow
def test_a_trial_on_a_lost_machine_is_given_up_after_the_grace_period(storage: str, tmp_path: Path) -> None:
    with worker(tmp_path, 8, 1.0, storage) as process:
        wait_for_trials(process, 4)
        wait_for_batch(process)
        process.kill()
        process.communicate()
    study = optuna.load_study(study_name="parabola", storage=storage_url(storage, tmp_path))
    for one in study.get_trials(states=(optuna.trial.TrialState.RUNNING,)):
        study._storage.set_trial_user_attr(one._trial_id, "worker", "elsewhere 1 0")
    start = time.monotonic()
    check_whole(search(storage, tmp_path, 8), 8)
    assert time.monotonic() - start > 2  # it waited for signs of life: nobody here can look at another machine


def test_a_server_before_the_database(storage: str, tmp_path: Path) -> None:
    port, url = free_port(), storage_url(storage, tmp_path)
    code = "from optuna.storages import get_storage, run_grpc_proxy_server as run"
    code += f"; run(get_storage({url!r}), host='localhost', port={port})"
    with subprocess.Popen([sys.executable, "-c", code], stderr=subprocess.DEVNULL) as server:
        try:
            check_whole(search(f"grpc://localhost:{port}", tmp_path, 8), 8)
        finally:
            server.kill()
    assert optuna.get_all_study_names(url) == ["parabola"]


def test_what_does_not_answer_is_told(database: str, tmp_path: Path) -> None:
    address = database.rpartition(":")[0] + f":{free_port()}/none"
    with pytest.raises(UserError, match=r"^study\.storage: postgresql.* cannot be reached \(.*refused"):
        search(address, tmp_path / "new", 8)
    wrong = database.rpartition("/")[0] + "/nowhere"
    with pytest.raises(UserError, match=r"^study\.storage: postgresql.* cannot be reached \(.*does not exist"):
        search(wrong, tmp_path / "new", 8)
    assert not (tmp_path / "new").exists()
