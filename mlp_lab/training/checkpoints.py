"""Checkpoints that survive anything: written whole or not at all, and enough to go on bit for bit.

Lightning restores the weights, the optimizer, the schedule, the loops and the loader's position. What it leaves out is
added here: the random generators of every process, a stop that early stopping had decided, a write that cannot be torn.
A state that is not finite is never written: the file keeps the last good one.
"""

from __future__ import annotations

import math
import os
import random
import time
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
import torch.distributed
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.pytorch.callbacks import Checkpoint, EarlyStopping
from lightning.pytorch.trainer.states import TrainerFn

from mlp_lab.errors import NonFiniteError, UserError, unknown
from mlp_lab.training.burst import ANY, steps_till
from mlp_lab.training.finite import first_bad
from mlp_lab.training.tracking import partial_path

HIGHER_IS_BETTER = ("accuracy", "f1", "auroc", "auprc", "r2")  # of every other metric, lower is better


def direction(monitor: str) -> str:
    """Returns `max` where a higher value of the metric is better, else `min`.

    >>> direction("val/accuracy"), direction("val/loss")
    ('max', 'min')
    """
    return "max" if monitor.rpartition("/")[2] in HIGHER_IS_BETTER else "min"


class AtomicCheckpointIO(TorchCheckpointIO):
    """Writes beside the target, flushes to the disk and renames, so that a torn file never replaces a whole one."""

    def save_checkpoint(self, checkpoint: dict[str, Any], path: str | Path, storage_options: Any = None) -> None:
        """Saves `checkpoint` to `path`; an interruption leaves the former file as it was.

        Raises:
            NonFiniteError: A weight or the optimizer's state is not finite.
        """
        target = Path(path)
        refuse(first_bad(checkpoint), target)
        target.parent.mkdir(parents=True, exist_ok=True)
        partial = partial_path(target)  # what a killed process left there is overwritten
        try:
            with partial.open("wb") as file:
                torch.save(checkpoint, file)
                file.flush()
                os.fsync(file.fileno())
            os.replace(partial, target)
        finally:
            partial.unlink(missing_ok=True)


def save_finite(trainer: L.Trainer, path: Path) -> None:
    """Saves a checkpoint; several processes agree first that it is finite, so that none is left waiting for another.

    Raises:
        NonFiniteError: It is not.
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


class BestCheckpoint(Checkpoint):
    """Keeps the checkpoint with the best monitored value of any validation pass; a NaN is never the best.

    Args:
        path: The file, overwritten whenever the value improves.
        monitor: The metric; `direction` says which way it improves.
    """

    def __init__(self, path: Path, monitor: str = "val/loss") -> None:
        self.path, self.monitor = path, monitor
        self.sign = -1.0 if direction(monitor) == "max" else 1.0
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
        better = math.isfinite(score) and (self.score is None or self.sign * score < self.sign * self.score)
        if better:
            self.score, self.epoch = score, trainer.current_epoch
            self.scores = {name: float(value) for name, value in measured.items() if name.startswith("val/")}
            save_finite(trainer, self.path)

    def state_dict(self) -> dict[str, Any]:
        """Returns the best value and where it was seen."""
        return {"score": self.score, "epoch": self.epoch, "scores": self.scores}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores what `state_dict` returned, if the file is there: a new run begins without one."""
        if self.path.exists():
            self.score, self.epoch, self.scores = state_dict["score"], state_dict["epoch"], state_dict["scores"]


class LastCheckpoint(Checkpoint):
    """Keeps the newest state: at each epoch's end, and within an epoch every so many steps or minutes.

    Within an epoch nothing is saved before an optimizer step is complete (accumulated gradients are not part of a
    checkpoint) nor after a batch that validation follows (a resumed run would skip that validation).

    Args:
        path: The file.
        every_n_steps: Optimizer steps between saves within an epoch; 0 turns it off.
        every_minutes: Minutes between saves within an epoch; 0 turns it off.
    """

    def __init__(self, path: Path, every_n_steps: int = 0, every_minutes: float = 5.0) -> None:
        self.path, self.every_n_steps, self.every_seconds = path, every_n_steps, 60.0 * every_minutes
        self._seen_step = 0
        self._saved_at = time.monotonic()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Starts the clock."""
        self._seen_step, self._saved_at = trainer.global_step, time.monotonic()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Saves within the epoch when steps or minutes say so."""
        step = trainer.global_step
        if step == self._seen_step:
            return
        self._seen_step = step
        due = self.every_n_steps > 0 and step % self.every_n_steps == 0
        if not due and self.every_seconds > 0:
            late = time.monotonic() - self._saved_at > self.every_seconds
            due = trainer.strategy.reduce_boolean_decision(late, all=False) if trainer.world_size > 1 else late
        if due and not _validation_follows(trainer):
            self._save(trainer)

    def quiet_steps(self, trainer: L.Trainer) -> int:
        """Needs to see the steps after which it saves by their number; minutes pass slowly enough."""
        return steps_till(self.every_n_steps, trainer.global_step) - 1 if self.every_n_steps else ANY

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Saves the finished epoch."""
        self._save(trainer)

    def _save(self, trainer: L.Trainer) -> None:
        if not trainer.fast_dev_run:  # type: ignore[attr-defined]
            save_finite(trainer, self.path)
            self._saved_at = time.monotonic()


class EarlyStop(EarlyStopping):
    """Stops when `monitor` has not improved for `patience` validation passes.

    Args:
        monitor: The metric; `direction` says which way it improves.
        patience: Passes without improvement before stopping; 0 never stops early.
        min_delta: The least decrease that counts as an improvement, in the metric's unit.

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
        super()._run_early_stopping_check(trainer)
        self.decided = trainer.should_stop

    def state_dict(self) -> dict[str, Any]:
        """Returns the best value, the passes since, and whether the stop is decided."""
        return {**super().state_dict(), "decided": self.decided}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores what `state_dict` returned, but not the patience: with another one, the stop is decided anew."""
        super().load_state_dict({**state_dict, "patience": self.patience})
        self.decided = state_dict["decided"] and state_dict["patience"] == self.patience

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Keeps a stop that was decided before the run was cut off."""
        if self.enabled and self.decided:
            trainer.should_stop = True


class RandomState(L.Callback):
    """Saves Python's, NumPy's, torch's and CUDA's generators of every process; restores them as training starts."""

    def __init__(self) -> None:
        self._restored: list[dict[str, Any]] = []

    def state_dict(self) -> dict[str, Any]:
        """Returns the generators' states by process; a collective call under DDP."""
        own = _random_state()
        if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
            return {"ranks": [own]}
        states: list[dict[str, Any]] = [{}] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(states, own)
        return {"ranks": states}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keeps the states until training starts: what runs before it draws random numbers too."""
        self._restored = state_dict["ranks"]

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Restores this process's generators, if the number of processes is what it was."""
        states, self._restored = self._restored, []
        if len(states) == trainer.world_size:
            _restore_random_state(states[trainer.global_rank])


def _random_state() -> dict[str, Any]:
    version, internal, gauss = random.getstate()
    _, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    return {
        "python": [version, list(internal), gauss],
        "numpy": [torch.from_numpy(np.asarray(keys, dtype=np.int64)), int(position), int(has_gauss), float(cached)],
        "torch": torch.get_rng_state(),
        "cuda": torch.cuda.get_rng_state_all() if torch.cuda.is_available() else [],
    }


def _restore_random_state(state: dict[str, Any]) -> None:
    version, internal, gauss = state["python"]
    random.setstate((version, tuple(internal), gauss))
    keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state(("MT19937", keys.numpy().astype(np.uint32), position, has_gauss, cached))
    torch.set_rng_state(state["torch"].cpu())
    if len(state["cuda"]) == torch.cuda.device_count():
        torch.cuda.set_rng_state_all([generator.cpu() for generator in state["cuda"]])


def _validation_follows(trainer: L.Trainer) -> bool:
    """Whether this batch ends the epoch or validation runs right after it: the loop's own decision."""
    loop = trainer.fit_loop.epoch_loop
    fetcher = trainer.fit_loop._data_fetcher
    assert fetcher is not None
    return loop.batch_progress.is_last_batch or loop._should_check_val_fx(fetcher)
