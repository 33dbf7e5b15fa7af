"""A run that takes no step leaves no trace: no new directory, no note in the record of an old one."""

from __future__ import annotations

from pathlib import Path

import lightning as L

from mlp_lab.training.tracking import RunDirectory, write_text


class Rollback(L.Callback):
    """Takes back what was written for a run when it fails before training starts, or has nothing left to train.

    Args:
        run: The run's directory, before anything is written for this start of it.
    """

    def __init__(self, run: RunDirectory) -> None:
        self.run = run
        self.begun = False
        self.first_step = 0
        self.files = (run.config, run.resumed_config, run.provenance, run.metrics)
        found = [file for file in self.files if file.is_file()]
        self.before = {file: file.read_bytes().decode("utf-8", "surrogateescape") for file in found}
        self.made = [path for path in (run.best.parent, run.path, *run.path.parents) if not path.exists()]

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
        if not trainer.is_global_zero or not self.run.path.is_dir():
            return
        for file in self.files:
            if file in self.before:
                write_text(file, self.before[file])
            else:
                file.unlink(missing_ok=True)
        remove_empty(self.made)


def remove_empty(folders: list[Path]) -> None:
    """Removes folders, innermost first, up to the first that holds something."""
    for folder in folders:
        try:
            folder.rmdir()
        except OSError:
            return
