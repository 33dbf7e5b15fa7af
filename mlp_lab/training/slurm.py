"""What a Slurm job asks of a run: which of its tasks are processes of one training, and how it goes on when requeued.

Lightning takes every process in a job of several tasks for one of so many ranks, also where the command was not started
by `srun`, and then waits for the others. Its automatic requeueing is off: what it writes in the middle of a step does
not continue to the same bits, and the requeued command would begin anew.
"""

from __future__ import annotations

import os
import subprocess
from collections.abc import Mapping
from typing import Any

import lightning as L
from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment
from lightning.fabric.plugins.environments.torchelastic import TorchElasticEnvironment

from mlp_lab.errors import UserError

REQUEUE_SECONDS = 60  # to wait for an answer of Slurm's controller


def tasks() -> int:
    """Returns how many processes `srun` has started of this command; 1 where it was not started by `srun`."""
    interactive = os.environ.get("SLURM_JOB_NAME") in ("bash", "interactive")  # a shell, in which commands are typed
    return 1 if interactive or "SLURM_STEP_ID" not in os.environ else int(os.environ.get("SLURM_STEP_NUM_TASKS", "1"))


def task() -> int:
    """Returns which of these processes this one is, from 0."""
    return int(os.environ.get("SLURM_PROCID", "0")) if tasks() > 1 else 0


def job_id() -> str | None:
    """Returns the job's number in the queue; None outside a job."""
    return os.environ.get("SLURM_JOB_ID")


def restarted_job() -> str | None:
    """Returns the job's number where Slurm has started the job again after it was requeued, else None."""
    return job_id() if int(os.environ.get("SLURM_RESTART_COUNT", "0")) > 0 else None


def environment(*, single: bool = False) -> ClusterEnvironment | None:
    """Returns the Lightning plugin for this job; None outside a job, and under `torchrun`, which Lightning knows.

    Args:
        single: Whether each task trains by itself, as workers of a sweep do.

    Raises:
        UserError: `srun` was given an option that Lightning does not support.
    """
    if "SLURM_NTASKS" not in os.environ or TorchElasticEnvironment.detect():
        return None
    if single or tasks() == 1:
        alone = LightningEnvironment()
        alone.set_global_rank(0)  # Lightning would read it from Slurm's variables
        return alone
    try:
        return SLURMEnvironment(auto_requeue=False)
    except RuntimeError as error:
        raise UserError(f"trainer: {' '.join(str(error).split())}") from error


def one_process_trainer(settings: Mapping[str, Any]) -> L.Trainer:
    """Builds a trainer that takes no task of a Slurm job for a rank of its own training, as workers of a sweep need it.

    Args:
        settings: Arguments of `L.Trainer`.
    """
    job = environment(single=True)
    return L.Trainer(**settings) if job is None else L.Trainer(**{**settings, "plugins": [*_plugins(settings), job]})


def _plugins(settings: Mapping[str, Any]) -> list[Any]:
    given = settings.get("plugins") or []
    return list(given) if isinstance(given, list | tuple) else [given]


def check_tasks(processes: int) -> None:
    """Checks that the processes of a trainer are those that `srun` has started.

    Raises:
        UserError: They are not.
    """
    if "SLURM_NTASKS" in os.environ and not TorchElasticEnvironment.detect() and tasks() not in (1, processes):
        raise UserError(
            f"trainer.devices: {processes} process{'es' if processes > 1 else ''} in all, but srun has started "
            f"{tasks()} tasks; use `srun --ntasks {processes}`, or devices and nodes for {tasks()}"
        )


def requeue(job: str) -> str | None:
    """Puts the running job back into the queue; Slurm then ends all its processes.

    Returns:
        None, or why Slurm refuses.
    """
    command = ["scontrol", "requeue", job]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=REQUEUE_SECONDS)
    except (OSError, subprocess.TimeoutExpired) as error:
        return " ".join(str(error).split())
    return None if done.returncode == 0 else " ".join((done.stderr or done.stdout).split())
