from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

import optuna
import pytest
from optuna.storages import BaseStorage

from mlp_lab.sweep.storage import open_storage, storage_url
from mlp_lab.sweep.workers import BEAT, Lease, alive, identity


def test_a_worker_lives_as_long_as_its_process() -> None:
    assert alive(identity()) is True
    machine, pid, start = identity().split()
    assert alive(f"{machine} {pid} {int(start) + 1}") is False  # the number belongs to another process now
    with subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE) as child:
        stat = Path(f"/proc/{child.pid}/stat").read_text().rpartition(")")[2].split()
        other = f"{machine} {child.pid} {stat[19]}"
        assert alive(other) is True
        child.kill()
    assert alive(other) is False
    assert alive(f"elsewhere {pid} {start}") is None


@pytest.mark.parametrize("kind", ["database", "journal"])
def test_a_lease_gives_signs_of_life_until_it_ends(kind: str, tmp_path: Path) -> None:
    url = storage_url(None if kind == "database" else "journal:", tmp_path)
    storage = open_storage(url, heartbeat=1)
    study = optuna.create_study(storage=storage, study_name="a")
    trial_id = storage.create_new_trial(study._study_id)
    with Lease(storage, interval=0.02) as lease:
        assert beat(storage, trial_id) is None
        lease.add(trial_id)
        first = beat(storage, trial_id)
        assert first is not None
        if kind == "journal":  # the database counts in whole seconds
            deadline = time.monotonic() + 20
            while beat(storage, trial_id) == first and time.monotonic() < deadline:
                time.sleep(0.02)
            assert beat(storage, trial_id) != first
        lease.remove(trial_id)
    assert not lease._thread.is_alive()


def test_a_storage_that_fails_does_not_end_the_thread(tmp_path: Path) -> None:
    storage = open_storage(storage_url("journal:", tmp_path), heartbeat=1)
    with Lease(storage, interval=0.01) as lease:
        lease._trials.add(12345)  # there is no such trial
        time.sleep(0.1)
        assert lease._thread.is_alive()


def beat(storage: BaseStorage, trial_id: int) -> object:
    if not hasattr(storage, "engine"):
        return storage.get_trial_system_attrs(trial_id).get(BEAT)
    with storage.engine.connect() as connection:
        rows = connection.exec_driver_sql(f"select heartbeat from trial_heartbeats where trial_id = {trial_id}").all()
    return rows[0][0] if rows else None
