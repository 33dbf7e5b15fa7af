"""Writes that belong together, as another process sees them: through a connection of its own."""

from __future__ import annotations

import os
import sqlite3
import subprocess
import sys
from contextlib import closing
from pathlib import Path

import optuna
import pytest
from optuna.exceptions import StorageInternalError, UpdateFinishedTrialError
from optuna.storages import BaseStorage
from optuna.trial import TrialState

from mlp_lab.sweep.storage import open_storage, quiet, storage_url
from mlp_lab.sweep.transactions import joint

ROOT = Path(__file__).parents[2]
KILLED = """
import os, signal, sys
import optuna
from mlp_lab.sweep.storage import open_storage
from mlp_lab.sweep.transactions import joint
study = optuna.load_study(study_name="a", storage=open_storage(sys.argv[1], 15))
with joint(study._storage):
    for epoch in range(1, 4):
        study._storage.set_trial_intermediate_value(1, epoch, 0.5)
    study._storage.set_trial_user_attr(1, "epochs", 3)
    os.kill(os.getpid(), signal.SIGKILL)
"""


@pytest.fixture
def storage(tmp_path: Path) -> BaseStorage:
    """A study with one running trial, whose id is 1."""
    with quiet():
        study = optuna.create_study(storage=open_storage(storage_url(None, tmp_path), 15), study_name="a")
        study.ask()
    return study._storage


def seen(folder: Path) -> list[str]:
    """Returns the attributes of trials that others see."""
    with closing(sqlite3.connect(folder / "study.db")) as connection:
        return [key for (key,) in connection.execute("select key from trial_user_attributes order by key")]


def test_others_see_all_or_nothing(storage: BaseStorage, tmp_path: Path) -> None:
    with joint(storage):
        storage.set_trial_user_attr(1, "a", 1)
        storage.set_trial_user_attr(1, "b", 2)
        assert storage.get_trial(1).user_attrs == {"a": 1, "b": 2}  # to itself it is written
        assert seen(tmp_path) == []
    assert seen(tmp_path) == ["a", "b"]


def test_an_exception_undoes_what_was_begun(storage: BaseStorage, tmp_path: Path) -> None:
    def write() -> None:
        with joint(storage):
            storage.set_trial_user_attr(1, "a", 1)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write()
    assert seen(tmp_path) == []
    storage.set_trial_user_attr(1, "b", 2)  # and the storage is as before
    assert seen(tmp_path) == ["b"]


def test_a_worker_that_is_killed_leaves_nothing_half_written(storage: BaseStorage, tmp_path: Path) -> None:
    words = [sys.executable, "-c", KILLED, storage_url(None, tmp_path)]
    done = subprocess.run(words, cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False)
    assert done.returncode == -9
    trial = storage.get_trial(1)
    assert (trial.state, trial.intermediate_values, trial.user_attrs) == (TrialState.RUNNING, {}, {})
    storage.set_trial_user_attr(1, "a", 1)  # its lock is gone with it
    assert seen(tmp_path) == ["a"]


def test_a_trial_that_another_has_ended_takes_nothing(storage: BaseStorage, tmp_path: Path) -> None:
    other = optuna.load_study(study_name="a", storage=open_storage(storage_url(None, tmp_path), 15))._storage

    def write() -> None:
        with joint(storage):
            assert storage.get_trial(1).state == TrialState.RUNNING
            other.set_trial_state_values(1, TrialState.FAIL)
            storage.set_trial_user_attr(1, "a", 1)

    with pytest.raises(UpdateFinishedTrialError):
        write()
    assert seen(tmp_path) == []


def test_a_part_that_is_lost_loses_the_whole(storage: BaseStorage, tmp_path: Path) -> None:
    def write() -> None:
        with joint(storage):
            storage.set_trial_user_attr(1, "a", 1)
            storage._backend.scoped_session().rollback()  # type: ignore[attr-defined]  # as Optuna after a conflict
            storage.set_trial_user_attr(1, "b", 2)

    with pytest.raises(StorageInternalError, match="a part of what belongs together"):
        write()
    assert seen(tmp_path) == []


def test_joint_writes_within_joint_writes_end_with_the_outer(storage: BaseStorage, tmp_path: Path) -> None:
    with joint(storage):
        with joint(storage):
            storage.set_trial_user_attr(1, "a", 1)
        assert seen(tmp_path) == []
    assert seen(tmp_path) == ["a"]


def test_a_journal_writes_at_once(tmp_path: Path) -> None:
    storage = open_storage(storage_url("journal:", tmp_path), 15)
    study = optuna.create_study(storage=storage, study_name="a")
    trial = study.ask()
    with joint(storage):
        trial.set_user_attr("a", 1)
        other = optuna.load_study(storage=open_storage(storage_url("journal:", tmp_path), 15), study_name="a")
        assert other.get_trials()[0].user_attrs == {"a": 1}
    assert study.get_trials()[0].user_attrs == {"a": 1}
