"""A training that is told to end saves the step that it has just taken, so that a resumed run repeats none."""

from __future__ import annotations

import signal
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Checkpoint

from mlp_lab.errors import Terminated
from mlp_lab.training.burst import ANY
from mlp_lab.training.checkpoints import LastCheckpoint
from mlp_lab.training.signals import TerminationSignals


class SaveOnSignal(Checkpoint):
    """Ends the training after the step in which a signal came, once its state is saved.

    Where a validation is due first, or the step still accumulates gradients, it waits for them. Under DDP all processes
    end after the same step, whichever of them got the signal; that takes a collective call per step, in place of
    Lightning's own.

    Args:
        signals: What the process has received.
        last: Saves the state.
    """

    def __init__(self, signals: TerminationSignals, last: LastCheckpoint) -> None:
        self.signals, self.last = signals, last
        self._seen_step = 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Lets signals wait for the end of a step from here on."""
        self._seen_step, self.signals.deferred = trainer.global_step, True

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Saves and ends.

        Raises:
            Terminated: A signal has come, and the state is saved.
        """
        if trainer.global_step == self._seen_step:
            return
        self._seen_step = trainer.global_step
        if self._received(trainer) and self.last.save_within_epoch(trainer):
            self._end(trainer)

    def quiet_steps(self, trainer: L.Trainer) -> int:
        """Needs to see no step in particular: signals wait no longer than several steps may take together."""
        return ANY

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Ends before another epoch begins: the end of the one before is saved.

        Raises:
            Terminated: A signal has come.
        """
        if trainer.global_step and self._received(trainer):
            self._end(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Lets signals end the process at once again."""
        self.signals.deferred = False

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Lets signals end the process at once again, unless one is about to."""
        self.signals.deferred = isinstance(exception, Terminated)

    def _received(self, trainer: L.Trainer) -> bool:
        received = self.signals.received is not None
        return trainer.strategy.reduce_boolean_decision(received, all=False) if trainer.world_size > 1 else received

    def _end(self, trainer: L.Trainer) -> None:
        signum = self.signals.received or signal.SIGTERM  # another process may have got it
        state = "which is saved" if self.last.failure is None else f"which could not be saved ({self.last.failure})"
        raise Terminated(signum, f"terminated after step {trainer.global_step:,}, {state}")
