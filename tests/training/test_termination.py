"""A run that a signal ends says how to go on, and goes on to the bits of a run that was never stopped."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from mlp_lab.cli.main import main
from mlp_lab.training.straight import StraightModule
from tests.slow import slow_but

ROOT = Path(__file__).parents[2]
# 1,437 rows make 15 batches of 100
WORDS = [
    "--config",
    str(ROOT / "configs" / "digits.yaml"),
    "--data.verbose=false",
    "--data.batch_size=100",
    "--model.width=8",
    "--model.dropout=0.1",
    "--trainer.enable_progress_bar=false",
    "--trainer.max_epochs=2",
    "--trainer.log_every_n_steps=4",
    "--checkpoint.every_minutes=0",
]
# flags, the batch in which the signal comes, and the step that is saved
CASES: dict[str, tuple[list[str], int, int]] = {
    "within an epoch": ([], 6, 6),
    "in the first step": ([], 1, 1),
    "in the last batch of an epoch": ([], 15, 15),
    "before a validation within an epoch": (["--trainer.val_check_interval=5"], 5, 6),
    "while gradients accumulate": (["--trainer.accumulate_grad_batches=4"], 6, 2),
    "with replicates": (["--replicates=3"], 6, 6),
}


def signal_in_batch(patch: pytest.MonkeyPatch, number: int, batch: int) -> None:
    """Lets a signal come while the given batch of the run is trained."""
    calls = 0
    real = StraightModule.weigh_in_window

    def weigh(*arguments: Any) -> float:
        nonlocal calls
        calls += 1
        if calls == batch:
            os.kill(os.getpid(), number)
        return real(*arguments)

    patch.setattr(StraightModule, "weigh_in_window", weigh)


@pytest.mark.parametrize("case", slow_but(CASES, "within an epoch", "with replicates"))
def test_terminated_run_goes_on_to_the_bits_of_an_uninterrupted_one(
    case: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], assert_same_run: Callable[[Path, Path], None]
) -> None:
    flags, batch, step = CASES[case]
    whole, run = tmp_path / "whole", tmp_path / "run"
    assert main(["fit", *WORDS, *flags, f"--run.dir={whole}"]) == 0
    handlers = [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)]
    with pytest.MonkeyPatch.context() as patch:
        signal_in_batch(patch, signal.SIGTERM, batch)
        capsys.readouterr()
        status = main(["fit", *WORDS, *flags, f"--run.dir={run}"])
    told = capsys.readouterr().err.splitlines()[-1]
    assert status == 143
    advice = f"go on with `python -m mlp_lab fit --resume {run}`"
    assert told == f"terminated after step {step}, which is saved; {advice}"
    assert torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)["global_step"] == step
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGUSR1)] == handlers
    assert main(["fit", "--resume", str(run)]) == 0
    assert_same_run(whole, run)


def test_signal_in_the_last_batch_lets_the_run_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    signal_in_batch(monkeypatch, signal.SIGTERM, 15)
    assert main(["fit", *WORDS, "--trainer.max_epochs=1", f"--run.dir={tmp_path / 'run'}"]) == 0


def test_usr1_outside_a_job_ends_the_run_as_sigterm_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("SLURM_JOB_ID", raising=False)
    signal_in_batch(monkeypatch, signal.SIGUSR1, 3)
    assert main(["fit", *WORDS, f"--run.dir={tmp_path / 'run'}"]) == 143
    assert "terminated after step 3, which is saved; go on with " in capsys.readouterr().err


@pytest.mark.parametrize("refusal", [None, "Requested operation is presently disabled"])
def test_usr1_in_a_job_asks_for_its_restart_once_the_step_is_saved(
    refusal: str | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"

    def requeue(job: str) -> str | None:
        assert (job, (run / "checkpoints" / "last.ckpt").exists()) == ("12", True)
        return refusal

    monkeypatch.setenv("SLURM_JOB_ID", "12")
    monkeypatch.setattr("mlp_lab.cli.endings.requeue", requeue)
    signal_in_batch(monkeypatch, signal.SIGUSR1, 3)
    status, told = main(["fit", *WORDS, f"--run.dir={run}"]), capsys.readouterr().err
    saved = "terminated after step 3, which is saved; "
    if refusal is None:
        assert (status, told) == (0, f"{saved}job 12 is queued again and goes on by itself\n")
    else:
        assert status == 143
        assert told.startswith(f"{saved}Slurm does not queue job 12 again ({refusal}); go on with ")


@pytest.mark.parametrize("hook", ["on_fit_start", "on_test_start"])
def test_signal_outside_of_training_ends_the_command_at_once(
    hook: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    if hook == "on_test_start":
        assert main(["fit", *WORDS, "--trainer.max_epochs=1", f"--run.dir={run}"]) == 0
    capsys.readouterr()
    monkeypatch.setattr(StraightModule, hook, lambda _: os.kill(os.getpid(), signal.SIGTERM), raising=False)
    if hook == "on_test_start":
        assert main(["test", "--run", str(run)]) == 143
        assert capsys.readouterr().err == "terminated\n"
    else:
        monkeypatch.setattr("mlp_lab.training.module.MLPModule.on_fit_start", StraightModule.on_fit_start)
        assert main(["fit", *WORDS, f"--run.dir={run}"]) == 143
        assert capsys.readouterr().err == "terminated; nothing was written\n"
        assert not run.exists()
