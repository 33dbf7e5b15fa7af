"""What the variables of a Slurm job say to a run."""

from __future__ import annotations

import subprocess
from typing import Any

import pytest
from lightning.fabric.plugins.environments.lightning import LightningEnvironment
from lightning.fabric.plugins.environments.slurm import SLURMEnvironment

from mlp_lab.errors import UserError
from mlp_lab.training import slurm
from mlp_lab.training.slurm import check_tasks, environment, job_id, one_process_trainer, requeue, restarted_job, task

ALLOCATION = {"SLURM_JOB_ID": "7", "SLURM_NTASKS": "4", "SLURM_JOB_NAME": "job.sh", "SLURM_PROCID": "0"}
STEP = {**ALLOCATION, "SLURM_STEP_ID": "0", "SLURM_STEP_NUM_TASKS": "4", "SLURM_PROCID": "2"}
STEP |= {"SLURM_NTASKS_PER_NODE": "4"}


@pytest.fixture(autouse=True)
def no_job(monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    for name in [name for name in os.environ if name.startswith(("SLURM_", "TORCHELASTIC"))]:
        monkeypatch.delenv(name)


def enter(patch: pytest.MonkeyPatch, **variables: str) -> None:
    for name, value in variables.items():
        patch.setenv(name, value)


def test_process_outside_a_job_is_left_to_lightning() -> None:
    assert (slurm.tasks(), task(), job_id(), restarted_job(), environment()) == (1, 0, None, None, None)
    check_tasks(2)


def test_command_in_an_allocation_is_one_process_whatever_the_tasks(monkeypatch: pytest.MonkeyPatch) -> None:
    enter(monkeypatch, **ALLOCATION)
    assert (slurm.tasks(), task(), job_id(), restarted_job()) == (1, 0, "7", None)
    assert type(environment()) is LightningEnvironment
    check_tasks(1)


@pytest.mark.parametrize("name", ["bash", "interactive"])
def test_command_typed_in_a_shell_that_srun_has_started_is_one_process(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    enter(monkeypatch, **{**STEP, "SLURM_JOB_NAME": name})
    assert slurm.tasks() == 1


def test_tasks_of_srun_are_the_processes_of_one_training_and_are_not_requeued_by_lightning(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    enter(monkeypatch, **STEP)
    assert (slurm.tasks(), task()) == (4, 2)
    plugin = environment()
    assert type(plugin) is SLURMEnvironment
    assert not plugin.auto_requeue
    check_tasks(4)
    with pytest.raises(UserError, match=r"^trainer.devices: 1 process in all, but srun has started 4 tasks; use"):
        check_tasks(1)


def test_tasks_of_srun_without_their_number_per_node_are_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    enter(monkeypatch, **STEP)
    monkeypatch.delenv("SLURM_NTASKS_PER_NODE")
    with pytest.raises(UserError, match=r"^trainer: You set .*--ntasks-per-node=4"):
        environment()


def test_torchrun_inside_a_job_is_left_to_lightning(monkeypatch: pytest.MonkeyPatch) -> None:
    enter(monkeypatch, **STEP, TORCHELASTIC_RUN_ID="1", RANK="0", GROUP_RANK="0", LOCAL_RANK="0", LOCAL_WORLD_SIZE="4")
    assert environment() is None
    check_tasks(1)


def test_worker_of_a_sweep_trains_alone_in_every_task(monkeypatch: pytest.MonkeyPatch) -> None:
    enter(monkeypatch, **STEP)
    settings: dict[str, Any] = {"accelerator": "cpu", "logger": False, "enable_checkpointing": False}
    trainer = one_process_trainer({**settings, "plugins": None})
    assert (trainer.world_size, trainer.is_global_zero) == (1, True)


def test_restarted_job_is_one_that_slurm_has_queued_again(monkeypatch: pytest.MonkeyPatch) -> None:
    enter(monkeypatch, **ALLOCATION, SLURM_RESTART_COUNT="1")
    assert restarted_job() == "7"


@pytest.mark.parametrize(
    ("answer", "expected"),
    [(0, None), (1, "disabled for job 7"), (OSError(2, "no scontrol"), "[Errno 2] no scontrol")],
)
def test_requeue_returns_why_slurm_refuses(
    answer: int | OSError, expected: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run(command: list[str], **_: Any) -> subprocess.CompletedProcess[str]:
        assert command == ["scontrol", "requeue", "7"]
        if isinstance(answer, OSError):
            raise answer
        return subprocess.CompletedProcess(command, answer, stdout="", stderr="disabled\n for job 7\n")

    monkeypatch.setattr("subprocess.run", run)
    assert requeue("7") == expected
