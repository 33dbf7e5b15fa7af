"""`fit` in jobs of a real Slurm cluster of one node: announced ends, cancelled jobs, several tasks."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.sweep.quadratic import ROOT

pytestmark = [pytest.mark.cluster, pytest.mark.usefixtures("cluster")]
FIT = ["fit", "--config", str(ROOT / "configs" / "digits.yaml"), "--model.width", "8", "--data.batch_size", "100"]
FIT += ["--trainer.max_epochs", "12", "--trainer.log_every_n_steps", "5", "--early_stopping.patience", "0"]
DEADLINE = 180


def ask(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()


def until(ready: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + DEADLINE
    while not ready():
        assert time.monotonic() < deadline, what
        time.sleep(0.1)


def submit(folder: Path, *words: str, srun: str = "srun", options: str = "--ntasks=1") -> str:
    """Submits a job that runs a command in `folder`, and returns its number; it writes to `job.out`."""
    command = " ".join([srun, sys.executable, "-m", "mlp_lab", *words])
    settings = f"{options} --requeue --open-mode=append --output=job.out".split()
    lines = ["#!/bin/bash", *(f"#SBATCH {option}" for option in settings)]
    lines += [f"export PYTHONPATH={ROOT} OMP_NUM_THREADS=1 WANDB_MODE=offline", command, "echo status $? >> status"]
    (folder / "job.sh").write_text("\n".join(lines) + "\n")
    return subprocess.run(
        ["sbatch", "--parsable", "job.sh"], cwd=folder, capture_output=True, text=True, check=True
    ).stdout.strip()


def rows(folder: Path) -> int:
    files = list(folder.glob("runs/it/2*/metrics.csv"))
    return len(files[0].read_text().splitlines()) if files else 0


def ended(job: str) -> bool:
    return not ask("squeue", "-h", "-j", job)


@pytest.mark.slow
def test_announced_end_saves_requeues_and_goes_on_to_the_same_bits(tmp_path: Path) -> None:
    job = submit(tmp_path, *FIT, "--run.name", "it", "--trainer.max_epochs", "200")
    until(lambda: rows(tmp_path) > 8, "no step was logged")
    subprocess.run(["scancel", "--signal=USR1", job], check=True)
    until(lambda: ask("squeue", "-h", "-j", job, "-o", "%T") == "PENDING", "it was not queued again")
    out = (tmp_path / "job.out").read_text()
    assert f"which is saved; job {job} is queued again and goes on by itself" in out
    subprocess.run(["scontrol", "update", f"JobId={job}", "StartTime=now"], check=True)  # Slurm waits for 2 minutes
    until(lambda: ended(job), "it did not end")
    out = (tmp_path / "job.out").read_text()
    run = (tmp_path / "runs" / "it" / "latest").resolve()
    assert f"Slurm has started this job again: it goes on with {run}" in out
    assert out.splitlines()[-1] == str(run)
    assert (tmp_path / "status").read_text() == "status 0\n"
    assert [path.name for path in run.parent.iterdir() if path.name != "latest"] == [run.name]
    assert len(json.loads((run / "provenance.json").read_text())["resumed"]) == 1
    words = [*FIT, "--trainer.max_epochs", "200", "--run.dir", str(tmp_path / "whole")]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-m", "mlp_lab", *words], env=environment, check=True, capture_output=True)
    assert (run / "metrics.csv").read_text() == (tmp_path / "whole" / "metrics.csv").read_text()


def test_cancelled_job_saves_and_says_how_to_go_on(tmp_path: Path) -> None:
    words = [*FIT, "--config", str(ROOT / "configs" / "wandb.yaml"), "--run.name", "it", "--trainer.max_epochs", "2000"]
    job = submit(tmp_path, *words)
    until(lambda: rows(tmp_path) > 8, "no step was logged")
    subprocess.run(["scancel", job], check=True)
    until(lambda: ended(job), "it did not end")
    out = (tmp_path / "job.out").read_text()
    run = (tmp_path / "runs" / "it" / "latest").resolve()
    assert "which is saved; go on with `" in out
    assert f" -m mlp_lab fit --resume runs/it/{run.name}`" in out
    assert (run / "checkpoints" / "last.ckpt").exists()
    log = max(run.glob("wandb/offline-run-*/*.wandb"))  # Slurm ends W&B's process too: another one says how it ended
    tool = Path(sys.executable).with_name("wandb")
    exits = [line for line in ask(str(tool), "leet", "inspect", "--json", str(log)).splitlines() if '"exit"' in line]
    assert [json.loads(line)["exit"]["exit_code"] for line in exits] == [143]


def test_one_process_in_a_job_of_several_tasks_trains_alone(tmp_path: Path) -> None:
    words = [*FIT, "--run.name", "it", "--trainer.max_epochs", "1"]
    job = submit(tmp_path, *words, srun="", options="--ntasks=4")
    until(lambda: ended(job), "it did not end")
    assert (tmp_path / "status").read_text() == "status 0\n", (tmp_path / "job.out").read_text()


def test_tasks_that_are_no_processes_of_the_training_are_refused_in_one_line(tmp_path: Path) -> None:
    job = submit(tmp_path, *FIT, "--run.name", "it", options="--ntasks=2 --ntasks-per-node=2")
    until(lambda: ended(job), "it did not end")
    lines = [line for line in (tmp_path / "job.out").read_text().splitlines() if line.startswith("error:")]
    message = "error: trainer.devices: 1 process in all, but srun has started 2 tasks; use `srun --ntasks 1`, "
    assert lines == [f"{message}or devices and nodes for 2"] * 2
    assert not (tmp_path / "runs").exists()


@pytest.mark.slow
def test_two_tasks_train_together_and_end_after_the_same_step(tmp_path: Path) -> None:
    two = ["--config", str(ROOT / "configs" / "ddp.yaml"), "--trainer.max_epochs", "2000"]
    job = submit(tmp_path, *FIT, *two, "--run.name", "it", options="--ntasks=2 --ntasks-per-node=2")
    until(lambda: rows(tmp_path) > 8, "no step was logged")
    subprocess.run(["scancel", "--signal=TERM", f"{job}.0"], check=True)
    until(lambda: ended(job), "it did not end")
    out = (tmp_path / "job.out").read_text()
    assert "which is saved; go on with `" in out
    assert (tmp_path / "status").read_text() == "status 143\n", out
