"""Checkpoint files: written completely or not at all, never with a value that is not finite."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO

from mlp_lab.archive import check_archive
from mlp_lab.errors import NonFiniteError, causes
from mlp_lab.files import whole_file
from mlp_lab.training.finite import first_bad
from mlp_lab.training.tracking import naming, report_unwritten


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the target, flushes to the disk and renames, so that a torn file never replaces a whole one.

    Args:
        previous: File -> where its former content is kept when it is replaced.
    """

    def __init__(self, previous: Mapping[Path, Path] | None = None) -> None:
        self.previous = previous or {}

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Saves `checkpoint` to `path`; an interruption leaves the former file as it was.

        Raises:
            NonFiniteError: A weight or the optimizer's state is not finite.
            OSError: The file cannot be written; `filename` is `path`.
        """
        target = Path(path)
        refuse(first_bad(checkpoint), target)
        with naming(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            with whole_file(target, binary=True, sync=True, former=self.previous.get(target)) as file:
                _write(checkpoint, file)

    def load_checkpoint(self, path: str | Path, *arguments: Any, **settings: Any) -> dict[str, Any]:
        """Loads a checkpoint after comparing its checksums.

        Raises:
            ValueError: The file is damaged.
        """
        if Path(path).is_file():  # else it is an address that Lightning knows how to read
            check_archive(path)
        return super().load_checkpoint(path, *arguments, **settings)


def _write(checkpoint: dict[str, Any], file: Any) -> None:
    """Calls `torch.save`, whose zip writer hides the error of the file behind a `RuntimeError` of its own."""
    try:
        torch.save(checkpoint, file)
    except RuntimeError as error:
        cause = next((cause for cause in causes(error) if isinstance(cause, OSError)), None)
        if cause is None:
            raise
        raise cause from None


class CheckpointWriter:
    """Saves the state of a trainer to one file. A full disk does not end the training: the next save tries again.

    Args:
        path: The file.

    Attributes:
        failure: Why the newest attempt failed; None if it succeeded.
        reason: Why the newest failed attempt failed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.failure: str | None = None
        self.reason: str | None = None

    def save(self, trainer: L.Trainer) -> bool:
        """Saves the state; returns whether it is saved, on all processes alike.

        Raises:
            NonFiniteError: The state is not finite.
        """
        failure = None
        try:
            save_finite(trainer, self.path)
        except OSError as error:
            failure = error.strerror or str(error)
            if trainer.world_size > 1:
                trainer.strategy.barrier("Trainer.save_checkpoint")  # where the other processes wait for this one
        if trainer.world_size > 1 and not trainer.strategy.reduce_boolean_decision(failure is None, all=True):
            failure = failure or "another process could not write it"
        if failure is not None and self.failure is None and trainer.is_global_zero:
            report_unwritten(self.path, failure)
        self.failure, self.reason = failure, failure or self.reason
        return failure is None


def save_finite(trainer: L.Trainer, path: Path) -> None:
    """Saves a checkpoint; several processes agree first that it is finite, so that none is left waiting for another.

    Raises:
        NonFiniteError: It is not.
        OSError: The file cannot be written.
    """
    if trainer.world_size > 1:
        states = [optimizer.state_dict() for optimizer in trainer.optimizers]
        bad = first_bad({"state_dict": trainer.lightning_module.state_dict(), "optimizer_states": states})
        if trainer.strategy.reduce_boolean_decision(bad is not None, all=False):
            refuse(bad or "a tensor of another process", path)
    trainer.save_checkpoint(path)


def refuse(tensor: str | None, path: Path) -> None:
    """Raises for the name of a tensor that is not finite."""
    if tensor is not None:
        kept = "the last good one is kept" if path.exists() else "nothing was written"
        raise NonFiniteError(f"{tensor} is not finite, so {path.name} was not saved; {kept}", tensor)
