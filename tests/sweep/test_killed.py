"""Sweeps that are killed again and again, at random moments: no trial is lost, doubled or stuck.

`MLP_LAB_KILLS=20` kills each of them that often, and the fleet half as often; the trials to finish grow with it.
"""

from __future__ import annotations

import os
import random
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import closing
from functools import partial
from pathlib import Path

import optuna
import pytest
import yaml

from mlp_lab.sweep.facts import DOUBLE, ERROR, LOST, ORIGIN, WORKER, params_of
from mlp_lab.sweep.workers import alive

ROOT = Path(__file__).parents[2]
KILLS = int(os.environ.get("MLP_LAB_KILLS", "2"))
TRIALS = 15 * KILLS
BATCH = 5
SECONDS = 1.0  # a sweep is killed so long after its first trial is asked, at most: a batch takes about half of it
PATIENCE = 60.0  # to ask a trial, and for workers to end whose head is gone
ENDS = (signal.SIGINT, signal.SIGTERM, signal.SIGKILL)
SWEEP = {
    "study": {"name": "killed", "retries": 3 * KILLS, "heartbeat": 2},
    "base": str(ROOT / "configs" / "digits.yaml"),
    "trials": TRIALS,
    "population": BATCH,
    "space": {
        "model.depth": {"type": "int", "low": 1, "high": 3},
        "model.width": {"type": "int", "low": 8, "high": 32},
        "model.optimizer.lr": {"type": "float", "low": 1.0e-3, "high": 1.0e-1, "log": True},
    },
}
FLEET = ("slurm", "--cluster", "local", "--cluster.workers", "2")


class Killed:
    """A sweep as a user types it, in a folder of its own; its processes are a group, as those of a machine are."""

    def __init__(self, folder: Path, backend: tuple[str, ...]) -> None:
        self.folder = folder
        (folder / "sweep.yaml").write_text(yaml.safe_dump(SWEEP))
        words = ["sweep", "--config", "sweep.yaml", "--run.dir", "it", "--trainer.max_epochs", "4"]
        self.command = [sys.executable, "-m", "mlp_lab", *words, "--backend", *backend]

    def start(self) -> subprocess.Popen[str]:
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONUNBUFFERED": "1"}
        with (self.folder / "log").open("w") as log:
            return subprocess.Popen(
                self.command,
                cwd=self.folder,
                env=environment,
                stdout=log,
                stderr=subprocess.STDOUT,
                text=True,
                start_new_session=True,
                preexec_fn=partial(signal.signal, signal.SIGINT, signal.SIG_DFL),  # tests in the background ignore it
            )

    def run(self, end: signal.Signals, seconds: float) -> bool:
        """Starts it and ends it so long after it has asked its first trial; says whether it still ran."""
        before = self.asked()
        with self.start() as process:
            deadline = time.monotonic() + PATIENCE
            while self.asked() == before and process.poll() is None:
                assert time.monotonic() < deadline, self.log()
                time.sleep(0.02)
            time.sleep(seconds)
            if process.poll() is not None:
                assert process.returncode == 0, self.log()
                return False
            if end == signal.SIGKILL:
                os.killpg(process.pid, end)  # the machine is lost, with all workers on it
            else:
                process.send_signal(end)
        whole = len(finished(self.study())) >= TRIALS  # it may have been about to end
        expected = -signal.SIGKILL if end == signal.SIGKILL else 130
        assert process.returncode == expected or whole, self.log()
        if process.returncode == 130:
            assert self.log().splitlines()[-1].endswith("go on with the same command"), self.log()
            assert "Traceback" not in self.log()
            assert [one.number for one in self.study().trials if is_stuck(one)] == []
        return not whole

    def asked(self) -> int:
        """Counts the trials that workers have asked, without Optuna, whose polling would slow them."""
        path = self.folder / "it" / "study.db"
        query = "select count(*) from trial_user_attributes where key = ?"
        try:
            with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
                return int(connection.execute(query, (WORKER,)).fetchone()[0])
        except sqlite3.OperationalError:
            return 0  # there is no file, or no table in it

    def study(self) -> optuna.Study:
        return optuna.load_study(study_name="killed", storage=f"sqlite:///{self.folder}/it/study.db")

    def log(self) -> str:
        return (self.folder / "log").read_text()


def ends(chance: random.Random) -> Iterator[signal.Signals]:
    """Draws every kind of end equally often."""
    while True:
        yield from chance.sample(ENDS, len(ENDS))


def is_stuck(trial: optuna.trial.FrozenTrial) -> bool:
    """Says whether a trial was left open; one that nobody had signed yet is given up after the grace period."""
    return trial.state.name == "RUNNING" and WORKER in trial.user_attrs


def finished(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    """Returns the trials that were trained, pruned, or failed by themselves."""
    return [one for one in study.trials if one.state.name in ("COMPLETE", "PRUNED") or ERROR in one.user_attrs]


def check(study: optuna.Study, over: int) -> None:
    """No trial is lost, doubled or stuck."""
    done = finished(study)
    assert TRIALS <= len(done) <= TRIALS + over
    assert len({str(one.params) for one in done}) == len(done)
    assert [one.number for one in study.trials if one.state.name == "RUNNING"] == []
    if not over:
        assert [one.number for one in study.trials if one.state.name == "WAITING"] == []
    real = [one for one in study.trials if one.user_attrs.get(LOST) != DOUBLE]
    lost = [one for one in real if one.state.name == "FAIL" and ERROR not in one.user_attrs and params_of(one)]
    origins = [one.user_attrs[ORIGIN] for one in real if ORIGIN in one.user_attrs]
    assert sorted(origins) == sorted(f"retry of {one.number}" for one in lost)


def wait_for_workers(study: optuna.Study) -> None:
    """Waits for the end of every worker."""
    deadline = time.monotonic() + PATIENCE
    workers = {one.user_attrs[WORKER] for one in study.trials if WORKER in one.user_attrs}
    while any(alive(worker) for worker in workers):
        assert time.monotonic() < deadline
        time.sleep(0.1)


@pytest.mark.slow
@pytest.mark.timeout(120 + 30 * KILLS)
@pytest.mark.parametrize(
    ("backend", "kills", "over"),
    [(("population",), KILLS, 0), (("serial",), KILLS, 0), (FLEET, max(1, KILLS // 2), 2 * BATCH)],
    ids=["population", "serial", "fleet"],
)
def test_a_sweep_that_is_killed_at_random_keeps_every_trial(
    backend: tuple[str, ...], kills: int, over: int, tmp_path: Path
) -> None:
    chance = random.Random(f"{backend[0]} {kills}")
    sweep = Killed(tmp_path, backend)
    kinds = ends(chance)
    killed = [sweep.run(next(kinds), chance.uniform(0, SECONDS)) for _ in range(kills)]
    assert any(killed)
    with sweep.start() as process:
        process.wait()
    assert process.returncode == 0, sweep.log()
    wait_for_workers(sweep.study())
    check(sweep.study(), over)
    rows = (tmp_path / "it" / "trials.csv").read_text().splitlines()[1:]
    assert len(rows) == sum(one.state.name != "WAITING" for one in sweep.study().trials)
