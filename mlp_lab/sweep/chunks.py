"""Checkpoints of stacks in training, from which their trials go on when they were cut off.

A worker writes only folders of its own, `<sweep>/chunks/<name>/`, one for each stack that it trains; who goes on with a
stack, or with its share of one, reads that folder and writes another. So two workers may share what a third has left,
and neither waits for the other. A point is known by its seed and settings, which its retry keeps, and of several
folders that hold it the newest is the one to go on from. A folder is removed, by any worker between two batches, once
the study says that none of its points is still to be finished, or once a newer checkpoint holds each of those that are.
The folders are listed before the study is asked, so that a stack that was begun in between is not taken for a finished
one. Should a checkpoint be gone or unreadable all the same, its points are trained from the start.
"""

from __future__ import annotations

import hashlib
import json
import math
import shutil
import time
import uuid
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Checkpoint

from mlp_lab.errors import NonFiniteError
from mlp_lab.sweep.runs import Point
from mlp_lab.sweep.serial import Run
from mlp_lab.training.checkpoint_io import AtomicCheckpointIO
from mlp_lab.training.tracking import write_text

FOLDER, RECORD, CHECKPOINT = "chunks", "record.json", "population.ckpt"
ABSENT = -1  # number of a point in a stack that is not asked here: it was told, or another worker has it
SHARE = 0.05  # of the time that checkpoints may take
LONG = 600.0  # seconds after which a folder without a record is no longer one that is being made


@dataclass(frozen=True, kw_only=True)
class Chunk:
    """A stack as its folder tells of it."""

    folder: Path
    """Where its record and its checkpoint are."""
    points: list[Point]
    """All points of the stack in their order, absent."""
    kept: frozenset[int]
    """Seeds of the points that its worker was asked for."""
    settings: str
    """What `fingerprint` says of its runs."""
    written: float
    """When its checkpoint was written, in seconds since 1970 by its worker's clock."""

    @property
    def checkpoint(self) -> Path:
        """The checkpoint, which is missing while the first one is being written."""
        return self.folder / CHECKPOINT

    def save(self) -> None:
        """Writes the record."""
        self.folder.mkdir(parents=True, exist_ok=True)
        points = [{"seed": point.seed, "settings": point.settings} for point in self.points]
        facts = {"points": points, "kept": sorted(self.kept), "settings": self.settings, "written": self.written}
        write_text(self.folder / RECORD, json.dumps(facts))

    @classmethod
    def read(cls, folder: Path) -> Chunk | None:
        """Reads a record; None where there is none."""
        try:
            facts = json.loads((folder / RECORD).read_text("utf-8"))
            points = [Point(number=ABSENT, seed=one["seed"], settings=one["settings"]) for one in facts["points"]]
            return cls(
                folder=folder,
                points=points,
                kept=frozenset(facts["kept"]),
                settings=facts["settings"],
                written=float(facts["written"]),
            )
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def holds(self, point: Point) -> bool:
        """Says whether a point is one of those to go on with."""
        settings = json.loads(json.dumps(point.settings))
        return point.seed in self.kept and any((p.seed, p.settings) == (point.seed, settings) for p in self.points)


class Chunks:
    """The stacks of a sweep that are in training or were cut off.

    Args:
        directory: The sweep's.
        seconds: Least time between two checkpoints of a stack; None or 0 writes none.
        show: Prints a line.
    """

    def __init__(self, directory: Path, seconds: float | None = None, show: Callable[[str], None] = print) -> None:
        self.folder, self.seconds, self.show = directory / FOLDER, seconds or math.inf, show

    def all(self) -> list[Chunk]:
        """Returns what is there, newest first."""
        chunks = [chunk for folder in self._folders() if (chunk := Chunk.read(folder)) is not None]
        return sorted(chunks, key=lambda chunk: chunk.written, reverse=True)

    def _folders(self) -> list[Path]:
        try:
            return sorted(self.folder.iterdir())
        except OSError:
            return []

    def find(self, points: Sequence[Point]) -> list[tuple[Chunk, list[Point]]]:
        """Returns the chunks from which points go on, with those of each."""
        chunks = [chunk for chunk in self.all() if chunk.checkpoint.is_file()]
        found: dict[Path, tuple[Chunk, list[Point]]] = {}
        for point in points:
            chunk = next((chunk for chunk in chunks if chunk.holds(point)), None)
            if chunk is not None:
                found.setdefault(chunk.folder, (chunk, []))[1].append(point)
        return list(found.values())

    def written(self) -> dict[int, float]:
        """Returns when the newest checkpoint of each point was written, by seed."""
        chunks = [chunk for chunk in reversed(self.all()) if chunk.checkpoint.is_file()]
        return {seed: chunk.written for chunk in chunks for seed in chunk.kept}

    def keeper(self, points: Sequence[Point], settings: str) -> Keeper:
        """Returns the callback that writes a stack's checkpoints, in a folder that nobody else writes."""
        chunk = Chunk(
            folder=self.folder / f"{points[0].seed}-{uuid.uuid4().hex[:8]}",
            points=list(points),
            kept=frozenset(point.seed for point in points if point.number != ABSENT),
            settings=settings,
            written=0.0,
        )
        return Keeper(chunk, self.seconds, self.show)

    def clean(self, unfinished: Callable[[], set[int]]) -> None:
        """Removes what no point needs any more.

        Args:
            unfinished: Returns the seeds of the points that are not finished; called when the folders are listed.
        """
        folders, chunks = self._folders(), self.all()
        if not folders:
            return
        needed = {folder for folder in folders if not (folder / RECORD).exists() and _age(folder) < LONG}
        for seed in unfinished():
            for chunk in chunks:
                if seed in chunk.kept:
                    needed.add(chunk.folder)
                    if chunk.checkpoint.is_file():
                        break  # the older ones are of no use to this point
        for folder in folders:
            if folder not in needed:
                shutil.rmtree(folder, ignore_errors=True)
        with suppress(OSError):  # it is not empty
            self.folder.rmdir()


class Keeper(Checkpoint):
    """Writes a stack's checkpoint at the end of an epoch, when the last one is old enough and another epoch follows.

    What cannot be written costs the training nothing; it is tried again.

    Args:
        chunk: The stack.
        seconds: Least time between two checkpoints; it is stretched where they would take more than `SHARE` of it.
        show: Prints a line.
    """

    def __init__(self, chunk: Chunk, seconds: float, show: Callable[[str], None]) -> None:
        self.chunk, self.seconds, self.show = chunk, seconds, show
        self._next, self._told = math.inf, False

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Lets a checkpoint be written whole or not at all."""
        trainer.strategy.checkpoint_io = AtomicCheckpointIO()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Starts the clock, and says where a stack goes on."""
        self._next = time.monotonic() + self.seconds
        if trainer.ckpt_path is not None:
            count, epoch = len(self.chunk.kept), trainer.current_epoch
            self.show(f"{count} trial{'s go' if count > 1 else ' goes'} on after epoch {epoch}")

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Saves what the epoch has left, after those that stopped have left the stack."""
        last = trainer.should_stop or trainer.current_epoch + 1 == trainer.max_epochs
        if time.monotonic() < self._next or last or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        start = time.monotonic()
        try:
            self._save(trainer)
        except NonFiniteError:
            pass  # a member is about to be frozen
        except OSError as error:
            if not self._told:
                self.show(
                    f"{self.chunk.folder}: no checkpoint could be written ({error.strerror}); the training goes on"
                )
            self._told = True
        end = time.monotonic()
        self._next = end + max(self.seconds, (end - start) / SHARE)

    def _save(self, trainer: L.Trainer) -> None:
        if not self.chunk.checkpoint.exists():
            replace(self.chunk, written=time.time()).save()  # so that the folder is known from the first
        trainer.save_checkpoint(self.chunk.checkpoint)
        replace(self.chunk, written=time.time()).save()


def fingerprint(runs: Sequence[Run]) -> str:
    """Returns a text that is the same for runs of the same settings, so that a stack goes on with no others."""
    facts: list[Any] = [[run.module.hparams, run.trainer, run.early_stopping, run.diagnostics] for run in runs]
    return hashlib.sha256(json.dumps(facts, sort_keys=True, default=str).encode()).hexdigest()


def _age(path: Path) -> float:
    try:
        return time.time() - path.stat().st_mtime
    except OSError:
        return math.inf
