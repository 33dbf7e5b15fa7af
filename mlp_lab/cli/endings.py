"""How a `fit` ends before its training does: the record on W&B, the advice how to go on, the job in its queue."""

from __future__ import annotations

import shlex
import signal

import lightning as L
from lightning.pytorch.strategies.launchers.subprocess_script import _SubprocessScriptLauncher

from mlp_lab.errors import NotSavedError, Terminated
from mlp_lab.paths import from_here
from mlp_lab.program import program
from mlp_lab.training.checkpoints import BestCheckpoint, LastCheckpoint
from mlp_lab.training.slurm import job_id, requeue
from mlp_lab.training.tracking import MetricsCSV, RunDirectory
from mlp_lab.training.weights_and_biases import WandbRun


def finish_loggers(trainer: L.Trainer, exit_code: int = 0, *, preempted: bool = False) -> None:
    """Ends the W&B runs of a trainer, with the best scores in their summary."""
    best = next((c for c in trainer.checkpoint_callbacks if isinstance(c, BestCheckpoint)), None)
    if best is None:  # fast_dev_run has neither
        return
    for logger in trainer.loggers:
        if isinstance(logger, WandbRun):
            scores = {f"best/{name}": value for name, value in best.scores.items()}
            logger.finish(best.path if best.epoch >= 0 else None, scores, exit_code, preempted=preempted)


def end_by_signal(stop: Terminated, trainer: L.Trainer, run: RunDirectory | None) -> Terminated:
    """Ends a run that a signal has stopped, and asks Slurm to start its job again on SIGUSR1.

    Returns:
        What the command ends with; its message says how the run goes on.
    """
    if not trainer.is_global_zero:
        return stop
    job = job_id() if stop.signum == signal.SIGUSR1 else None  # announced by `sbatch --signal=USR1@SECONDS`
    finish_loggers(trainer, stop.exit_status, preempted=job is not None)
    if isinstance(launcher := trainer.strategy.launcher, _SubprocessScriptLauncher):
        launcher.kill(signal.SIGKILL)  # they have nothing to write, and may wait for this process
        launcher.procs.clear()  # else Lightning's thread that watches them kills this process too
    if job is None:
        return Terminated(stop.signum, f"{stop}; {how_to_go_on(run)}")
    if (refusal := requeue(job)) is None:
        return Terminated(stop.signum, f"{stop}; job {job} is queued again and goes on by itself", requeued=True)
    return Terminated(stop.signum, f"{stop}; Slurm does not queue job {job} again ({refusal}); {how_to_go_on(run)}")


def how_to_go_on(run: RunDirectory | None) -> str:
    """Returns the advice for a run that was cut off."""
    if run is None or not run.config.exists():
        return "nothing was written"
    return f"go on with `{program()} fit --resume {shlex.quote(from_here(run.path))}`"


def kept_state(run: RunDirectory | None) -> str:
    """Says which state of a run that had to stop is still there."""
    if run is None or not (run.last.exists() or run.best.exists()):
        return "no checkpoint had been written"
    name = "last" if run.last.exists() else "best"
    return f"{from_here(run.path)}/checkpoints/{name}.ckpt holds the last good state"


def check_saved(trainer: L.Trainer, run: RunDirectory) -> None:
    """Checks that the files of a finished training hold its last and its best state, and every logged row.

    Raises:
        NotSavedError: One does not; the message names it and says how to get the state back.
    """
    lost = [
        f"{one.path.name} ({one.failure})"
        for one in (*trainer.checkpoint_callbacks, *trainer.loggers)
        if isinstance(one, BestCheckpoint | LastCheckpoint | MetricsCSV) and one.failure is not None
    ]
    if lost:
        again = "free some space, then " + how_to_go_on(run) if run.last.exists() else "free some space and train again"
        raise NotSavedError(
            f"{from_here(run.path)}: the newest state could not be written to {', '.join(lost)}; {again}"
        )
