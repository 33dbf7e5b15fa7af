"""A run that takes no step leaves no trace: no new directory, no note in the record of an old one."""

from __future__ import annotations

from pathlib import Path

import lightning as L

from mlp_lab.training.run_lock import RunLock
from mlp_lab.training.tracking import RunDirectory, write_text


class Rollback(L.Callback):
    """Takes back what was written for a run when it fails before training starts, or has nothing left to train.

    It holds the lock of the directory: what another process writes there is not to be taken back.

    Args:
        run: The run's directory, before anything is written for this start of it.
        resumed: The directory already holds this run.
    """

    def __init__(self, run: RunDirectory, *, resumed: bool = False) -> None:
        self.run, self.resumed, self.lock = run, resumed, RunLock(run.path)
        self.refused = False
        self.begun = False
        self.first_step = 0
        self.files = (run.config, run.resumed_config, run.provenance, run.metrics)
        self.before = self._read()
        self.made = [path for path in (run.best.parent, run.path, *run.path.parents) if not path.exists()]

    def _read(self) -> dict[Path, str]:
        found = [file for file in self.files if file.is_file()]
        return {file: file.read_bytes().decode("utf-8", "surrogateescape") for file in found}

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Takes the lock, before any other callback writes.

        Raises:
            UserError: Another process trains in the directory, or has begun a run there since it was chosen.
        """
        if not trainer.is_global_zero:
            return
        self.refused = True
        self.lock.take()
        if not self.resumed:
            self.run.check_unused()
        self.before, self.refused = self._read(), False

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Keeps all that is written from here on."""
        self.begun, self.first_step = True, trainer.global_step

    def trained(self, trainer: L.Trainer) -> bool:
        """Returns whether the trainer has taken a step."""
        return self.begun and trainer.global_step > self.first_step

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Takes back what was written, unless training has begun."""
        if not self.begun:
            self.undo(trainer)

    def undo(self, trainer: L.Trainer) -> None:
        """Puts the files back as they were and removes the directories that were made."""
        if not trainer.is_global_zero or not self.run.path.is_dir() or self.refused:
            return
        for file in self.files:
            if file in self.before:
                write_text(file, self.before[file])
            else:
                file.unlink(missing_ok=True)
        self.lock.release()
        remove_empty(self.made)


def remove_empty(folders: list[Path]) -> None:
    """Removes folders, innermost first, up to the first that holds something."""
    for folder in folders:
        try:
            folder.rmdir()
        except OSError:
            return
