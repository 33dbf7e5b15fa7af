"""The checkpoints of a run: its best state, its last state, and a stop that early stopping has decided.

Lightning restores the weights, the optimizer, the schedule, the loops and the loader's position. The callbacks here and
in `random_state` add the rest, so that a resumed run continues bit for bit. `checkpoint_io` writes the files.
"""

from __future__ import annotations

import math
import os
import time
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Checkpoint, EarlyStopping
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_only
from rich.console import Console

from mlp_lab.archive import check_archive
from mlp_lab.errors import UserError, unknown
from mlp_lab.model.tasks import UNDEFINED
from mlp_lab.training.burst import ANY, steps_till
from mlp_lab.training.checkpoint_io import CheckpointWriter

HIGHER_IS_BETTER = ("accuracy", "f1", "auroc", "auprc", "r2")  # of every other metric, lower is better


def direction(monitor: str) -> str:
    """Returns `max` where a higher value of the metric is better, else `min`.

    >>> direction("val/accuracy"), direction("val/loss")
    ('max', 'min')
    """
    return "max" if monitor.rpartition("/")[2] in HIGHER_IS_BETTER else "min"


def first_fault(monitor: str, value: float) -> str:
    """Says why a score of the first validation pass is not finite."""
    why = UNDEFINED.get(monitor.rpartition("/")[2], "the outputs of the network are too large on some rows")
    return f"{monitor} is {value} in the first validation, for {why}"


def refuse_first(monitor: str, value: float) -> None:
    """Refuses a monitored value that is not finite where no validation pass has had a finite one.

    Raises:
        UserError: It is not finite.
    """
    if not math.isfinite(value):
        raise UserError(f"early_stopping.monitor: {first_fault(monitor, value)}")


class BestCheckpoint(Checkpoint):
    """Keeps the checkpoint with the best monitored value of any validation pass; a NaN is never the best.

    Args:
        path: The file, overwritten whenever the value improves.
        monitor: The metric; `direction` says which way it improves.
    """

    def __init__(self, path: Path, monitor: str = "val/loss") -> None:
        self.path, self.monitor = path, monitor
        self.writer = CheckpointWriter(path)
        self.sign = -1.0 if direction(monitor) == "max" else 1.0
        self._unsaved: float | None = None
        self.score: float | None = None
        self.epoch = -1
        self.scores: dict[str, float] = {}

    @property
    def best_model_path(self) -> str:
        """The file, for Lightning's `ckpt_path="best"`; empty before the first save."""
        return str(self.path) if self.epoch >= 0 else ""

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Saves when the pass that just ended is the best so far.

        Raises:
            UserError: The monitored metric is not among those that were measured.
        """
        if trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        measured = trainer.callback_metrics
        if self.monitor not in measured:
            raise unknown("early_stopping.monitor", self.monitor, sorted(measured))
        score = float(measured[self.monitor])
        if not math.isfinite(score) or (self.score is not None and self.sign * score >= self.sign * self.score):
            return
        before = self.score, self.epoch, self.scores
        self.score, self.epoch = score, trainer.current_epoch
        self.scores = {name: float(value) for name, value in measured.items() if name.startswith("val/")}
        if not self.writer.save(trainer):
            self.score, self.epoch, self.scores = before  # the best state that the file holds
            lost = [score] if self._unsaved is None else [score, self._unsaved]
            self._unsaved = min(lost, key=lambda value: self.sign * value)
        elif self._unsaved is not None and self.sign * score <= self.sign * self._unsaved:
            self._unsaved = None

    @property
    def failure(self) -> str | None:
        """Why the best state is not in the file; None if it is."""
        return self.writer.reason if self._unsaved is not None else None

    def state_dict(self) -> dict[str, Any]:
        """Returns the best value and where it was seen."""
        return {"score": self.score, "epoch": self.epoch, "scores": self.scores}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Goes on with the best state that the file holds; without a file, a new run begins without one.

        The file may be newer than `state_dict`, and another metric may have chosen it: its state is compared by its
        own value of `monitor`, which was measured with all others. Where it has none, the file gets another name.
        """
        if not self.path.exists():
            return
        checkpoint = self.read_file()
        if not checkpoint:
            self._report_damage()
            return
        found = checkpoint.get("callbacks", {}).get(self.state_key, state_dict)
        score = found["scores"].get(self.monitor, math.nan)
        if math.isfinite(score):
            self.score, self.epoch, self.scores = score, found["epoch"], dict(found["scores"])
        else:
            self._set_aside(found["epoch"] + 1)

    def read_file(self) -> dict[str, Any]:
        """Returns the checkpoint that the file holds, empty where it is not a whole one."""
        try:
            check_archive(self.path)
            checkpoint = torch.load(self.path, weights_only=True, map_location="cpu", mmap=True)
        except (RuntimeError, EOFError, OSError, ValueError, LookupError, TypeError, UnpicklingError):
            return {}
        return checkpoint if isinstance(checkpoint, dict) else {}

    @rank_zero_only
    def _report_damage(self) -> None:
        Console(highlight=False).print(
            f"{self.path} is damaged; the best of the validations that follow replaces it", soft_wrap=True, markup=False
        )

    @rank_zero_only
    def _set_aside(self, epoch: int) -> None:
        kept = self.path.with_name(f"{self.path.stem}-epoch-{epoch}{self.path.suffix}")
        os.replace(self.path, kept)
        Console(highlight=False).print(
            f"early_stopping.monitor: {self.path.name} has no finite {self.monitor} to compare by; it is kept as "
            f"{kept.name}",
            soft_wrap=True,
        )


class LastCheckpoint(Checkpoint):
    """Keeps the newest state: at each epoch's end, within an epoch every so many steps or minutes, and at a stop.

    Within an epoch nothing is saved before an optimizer step is complete (accumulated gradients are not part of a
    checkpoint) nor between a batch and the validation that follows it (a resumed run would skip that validation). A
    training that stops within an epoch (by steps, by time, early) waits for such a moment and is saved there: the
    resumed run takes the rest of the epoch, and what only the stop has caused, such as a last validation, is no part
    of it.

    Args:
        path: The file.
        every_n_steps: Optimizer steps between saves within an epoch; 0 turns it off.
        every_minutes: Minutes between saves within an epoch; 0 turns it off.
    """

    def __init__(self, path: Path, every_n_steps: int = 0, every_minutes: float = 5.0) -> None:
        self.path, self.every_n_steps, self.every_seconds = path, every_n_steps, 60.0 * every_minutes
        self.writer = CheckpointWriter(path)
        self._seen_step = 0
        self._saved_step = 0
        self._stop_waits = False
        self._saved_at = time.monotonic()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Starts the clock."""
        self._seen_step = self._saved_step = trainer.global_step
        self._saved_at, self._stop_waits = time.monotonic(), False

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Saves within the epoch when steps or minutes are due, and when the training stops here."""
        step = trainer.global_step
        if step == self._seen_step:
            self._let_stop_wait(trainer)
            return
        self._seen_step = step
        self._let_stop_go_on(trainer)
        if _epoch_is_over(trainer):
            if not _validation_follows(trainer):
                self._let_stop_wait(trainer)  # Lightning would validate once more, which no other epoch's end does
            return
        due = _stops(trainer) or (self.every_n_steps > 0 and step % self.every_n_steps == 0)
        if not due and self.every_seconds > 0:
            late = time.monotonic() - self._saved_at > self.every_seconds
            due = trainer.strategy.reduce_boolean_decision(late, all=False) if trainer.world_size > 1 else late
        if due and not _validation_follows(trainer):
            self._save(trainer)

    def quiet_steps(self, trainer: L.Trainer) -> int:
        """Needs to see the steps after which it saves by their number; minutes pass slowly enough."""
        return steps_till(self.every_n_steps, trainer.global_step) - 1 if self.every_n_steps else ANY

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Saves a training that stops at this validation within an epoch; other checkpoints come first."""
        if trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking or _epoch_is_over(trainer):
            return
        if trainer.fit_loop._should_accumulate():
            self._let_stop_wait(trainer)
        elif _stops(trainer) and self._saved_step != trainer.global_step:
            self._save(trainer)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Saves the finished epoch; one that was stopped within is saved already."""
        if _epoch_is_over(trainer) or self._saved_step != trainer.global_step:
            self._save(trainer)
        self._let_stop_go_on(trainer)

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Lets a run continue after a finished epoch, and inside an unfinished one.

        Under `trainer.max_steps`, Lightning would end the finished epoch a second time and count it twice. Earlier
        versions wrote checkpoints that count an unfinished epoch as finished at every stop within an epoch.
        """
        trainer.fit_loop._iteration_based_training = lambda: False  # type: ignore[method-assign]
        loop = checkpoint.get("loops", {}).get("fit_loop", {})
        if not loop or loop["epoch_loop.batch_progress"]["is_last_batch"]:
            return
        for progress in (loop["epoch_progress"]["current"], loop["epoch_progress"]["total"]):
            progress["processed"] = min(progress["processed"], max(0, progress["started"] - 1))
            progress["completed"] = min(progress["completed"], progress["processed"])

    def save_within_epoch(self, trainer: L.Trainer) -> bool:
        """Saves after a batch, unless the epoch or a validation is to end first.

        Returns:
            Whether the training may end here. `failure` says whether the state was saved.
        """
        if _epoch_is_over(trainer) or _validation_follows(trainer):
            return False
        if self._saved_step != trainer.global_step:
            self._save(trainer)
        return True

    @property
    def failure(self) -> str | None:
        """Why the last state is not in the file; None if it is."""
        return self.writer.failure

    def _let_stop_wait(self, trainer: L.Trainer) -> None:
        """Delays a stop until the optimizer step that accumulates gradients, or the epoch, is complete."""
        if trainer.should_stop:
            trainer.should_stop, self._stop_waits = False, True

    def _let_stop_go_on(self, trainer: L.Trainer) -> None:
        if self._stop_waits:
            trainer.should_stop, self._stop_waits = True, False

    def _save(self, trainer: L.Trainer) -> None:
        if not trainer.fast_dev_run:  # type: ignore[attr-defined]
            if self.writer.save(trainer):
                self._saved_step = trainer.global_step
            self._saved_at = time.monotonic()


class EarlyStop(EarlyStopping):
    """Stops when `monitor` has not improved for `patience` validation passes.

    Args:
        monitor: Metric that also chooses the best checkpoint: val/loss, or a metric of the task, such as val/accuracy,
            val/auroc or val/rmse. Whether lower or higher is better is known.
        patience: Validation passes without an improvement after which training stops, at least 0; 0 never stops early.
        min_delta: Smallest change that counts as an improvement, in the unit of the metric, at least 0.

    Raises:
        UserError: `patience` or `min_delta` is negative.
    """

    def __init__(self, monitor: str = "val/loss", patience: int = 10, min_delta: float = 0.0) -> None:
        for name, value in {"patience": patience, "min_delta": min_delta}.items():
            if value < 0:
                raise UserError(f"early_stopping.{name}: {value} is negative; use 0 or more")
        super().__init__(
            monitor=monitor,
            patience=patience,
            min_delta=min_delta,
            mode=direction(monitor),
            check_on_train_epoch_end=False,  # an epoch without validation has no new value to judge
        )
        self.enabled = patience > 0
        self.decided = False

    def _should_skip_check(self, trainer: L.Trainer) -> bool:
        measured = self.monitor in trainer.callback_metrics  # not before the first validation
        return not self.enabled or not measured or super()._should_skip_check(trainer)

    def _run_early_stopping_check(self, trainer: L.Trainer) -> None:
        value = trainer.callback_metrics.get(self.monitor)
        if value is not None and not trainer.fast_dev_run and not math.isfinite(self.best_score):  # type: ignore[attr-defined]
            refuse_first(self.monitor, float(value))
        stops, trainer.should_stop = trainer.should_stop, False  # another callback's stop, such as of max_time
        super()._run_early_stopping_check(trainer)
        self.decided = self.decided or trainer.should_stop
        trainer.should_stop = stops or trainer.should_stop

    def state_dict(self) -> dict[str, Any]:
        """Returns the best value, the passes since, whether the stop is decided, and by which settings."""
        return {**super().state_dict(), "decided": self.decided, "min_delta": self.min_delta}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores what `state_dict` returned, but not the settings: with others, the stop is decided anew.

        Passes that were counted by another `min_delta` do not count. Lightning loads the state of the same monitor
        only: another one begins anew.
        """
        super().load_state_dict({**state_dict, "patience": self.patience})
        if state_dict.get("min_delta", self.min_delta) != self.min_delta:
            self.wait_count = 0
        same = state_dict["patience"] == self.patience and self.wait_count == state_dict["wait_count"]
        self.decided = state_dict["decided"] and (same or self.wait_count >= self.patience > 0)

    def why_stopped(self) -> str:
        """Says why the stop is decided, and which setting lets the training go on."""
        if self.wait_count < self.patience:
            return f"{self.monitor} was not finite; another early_stopping.patience goes on all the same"
        passes = f"{self.wait_count} validations" if self.wait_count > 1 else "validation"
        return (
            f"{self.monitor} did not improve in the last {passes}; use an early_stopping.patience above "
            f"{self.wait_count} to go on, or 0 to never stop early"
        )

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Keeps a stop that was decided before the run was cut off."""
        if self.enabled and self.decided:
            trainer.should_stop = True


def _stops(trainer: L.Trainer) -> bool:
    """Whether the training ends after the current batch."""
    out_of_steps = 0 <= trainer.max_steps <= trainer.global_step
    return out_of_steps or (trainer.should_stop and trainer.fit_loop._can_stop_early)


def _epoch_is_over(trainer: L.Trainer) -> bool:
    """Whether the last batch of the epoch has been taken."""
    progress = trainer.fit_loop.epoch_loop.batch_progress
    return progress.is_last_batch or progress.current.ready >= trainer.num_training_batches


def _validation_follows(trainer: L.Trainer) -> bool:
    """Whether validation follows this batch by plan, not only because the training stops: the loop's own decision."""
    loop = trainer.fit_loop.epoch_loop
    fetcher = trainer.fit_loop._data_fetcher
    assert fetcher is not None
    stop, trainer.should_stop = trainer.should_stop, False
    try:
        return loop._should_check_val_fx(fetcher)
    finally:
        trainer.should_stop = stop
