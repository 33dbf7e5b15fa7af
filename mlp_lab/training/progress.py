"""The progress bar: a live line while an epoch runs, and a row of a table for every epoch that has ended."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ProgressBar
from rich.console import Console

from mlp_lab.data.loader import Batch
from mlp_lab.training.burst import ANY
from mlp_lab.training.checkpoints import BestCheckpoint, direction

REFRESH_SECONDS = 0.2
MOST_WIDTH = 60  # of losses and scores: with epoch, throughput and mark they fit into 80 characters


class EpochTable(ProgressBar):
    """Shows losses, scores and the training throughput; costs one clock reading a step.

    `train/*` are over the epoch: the module's `epoch_scores`, where it has such a method. A `*` marks the monitored
    metric, which `BestCheckpoint` names (val/loss without one), and the epochs in which it was the best so far.
    Throughput is rows per second of training alone, over all processes: without validation, checkpoints and start-up.
    """

    def __init__(self, console: Console | None = None) -> None:
        super().__init__()
        self.console = console or Console(highlight=False)
        self.rows = 0
        self.seconds = 0.0
        self.total_rows = 0
        self.total_seconds = 0.0
        self._started = 0.0
        self._drawn = 0.0
        self._columns: list[str] = []
        self._monitor = "val/loss"
        self._best: float | None = None
        self._validated = False  # in this epoch
        self._enabled = True

    def disable(self) -> None:
        """Shows nothing; Lightning calls it on every process but the first."""
        self._enabled = False

    def enable(self) -> None:
        """Shows the table again."""
        self._enabled = True

    @property
    def samples_per_second(self) -> float:
        """Training rows per second over the whole run."""
        return self.total_rows / self.total_seconds if self.total_seconds else 0.0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Reads which metric is monitored, and starts the clock of an epoch that goes on."""
        best = next((one for one in trainer.checkpoint_callbacks if isinstance(one, BestCheckpoint)), None)
        if best is not None and best.monitor != self._monitor:
            self._monitor, self._best = best.monitor, best.score
        self.on_train_epoch_start(trainer, pl_module)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Starts the epoch's clock."""
        self.rows, self.seconds, self._validated = 0, 0.0, False
        self._started = time.perf_counter()

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Batch, batch_idx: int
    ) -> None:
        """Counts the rows and, a few times a second, redraws the live line."""
        self.pass_by(batch)
        now = time.perf_counter()
        if now - self._drawn > REFRESH_SECONDS and self._enabled and self.console.is_terminal:
            self._drawn = now
            self._draw_live(trainer, batch_idx, now)

    def quiet_steps(self, trainer: L.Trainer) -> int:
        """Needs to see no step but what ends a burst, which is soon enough for the live line."""
        return ANY

    def pass_by(self, batch: Batch) -> None:
        """Counts the rows of a step that it does not see."""
        self.rows += batch.count

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stops the clock: validation is not training."""
        self._pause()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Starts the clock again."""
        self._started, self._validated = time.perf_counter(), True

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Prints the epoch's row."""
        self._pause()
        self.total_rows += self.rows
        self.total_seconds += self.seconds
        of_epoch: dict[str, float] = getattr(pl_module, "epoch_scores", dict)()  # on all processes, together
        if self._enabled:
            measured = trainer.callback_metrics.items()  # of an earlier pass, where this epoch had none
            now = {name: value for name, value in measured if self._validated or not name.startswith("val/")}
            self._print_row(trainer, {**now, **of_epoch})

    def state_dict(self) -> dict[str, Any]:
        """Returns the best value so far, which the mark of a resumed run goes on from, and its metric."""
        return {"best": self._best, "monitor": self._monitor}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        self._best, self._monitor = state_dict["best"], state_dict.get("monitor", "val/loss")

    def _pause(self) -> None:
        if self._started:
            self.seconds += time.perf_counter() - self._started
            self._started = 0.0

    def _draw_live(self, trainer: L.Trainer, batch_idx: int, now: float) -> None:
        elapsed = self.seconds + now - self._started
        loss = trainer.callback_metrics.get("train/loss")
        shown = f"  loss {float(loss):.4f}" if loss is not None else ""
        rate = f"  {self.rows / elapsed:,.0f} samples/s" if elapsed > 0 else ""
        text = f"epoch {trainer.current_epoch + 1}  step {batch_idx + 1}/{trainer.num_training_batches}{shown}{rate}"
        self.console.file.write(f"\r\x1b[2K{text}")
        self.console.file.flush()

    def _print_row(self, trainer: L.Trainer, metrics: Mapping[str, Any]) -> None:
        if self.console.is_terminal:
            self.console.file.write("\r\x1b[2K")
        columns = _columns(metrics, self._monitor)
        if not set(columns) <= set(self._columns):  # the first validation may come after some epochs
            self._columns = columns
            names = {name: f"{name}*" if name == self._monitor else name for name in self._columns}
            header = "".join(f"{shown:>{_width(name)}}" for name, shown in names.items())
            self.console.print(f"[bold]{'epoch':>7}{header}{'samples/s':>11}[/bold]")
        values = "".join(
            f"{_shown(float(metrics[name])) if name in metrics else '':>{_width(name)}}" for name in self._columns
        )
        score = float(metrics.get(self._monitor, math.nan))
        sign = -1.0 if direction(self._monitor) == "max" else 1.0
        better = math.isfinite(score) and (self._best is None or sign * score < sign * self._best)
        self._best = score if better else self._best
        mark = " [green]*[/green]" if better else ""
        last = trainer.max_epochs if trainer.max_epochs and trainer.max_epochs > 0 else None
        epoch = f"{trainer.current_epoch + 1}/{last}" if last else str(trainer.current_epoch + 1)
        rate = self.rows / self.seconds if self.seconds else 0.0
        self.console.print(f"{epoch:>7}{values}{rate:>11,.0f}{mark}", soft_wrap=True)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Says what the mark means."""
        if self._enabled and self._monitor in self._columns:
            extreme = "highest" if direction(self._monitor) == "max" else "lowest"
            self.console.print(f"[dim]* {extreme} {self._monitor} so far[/dim]")


def _columns(metrics: Mapping[str, Any], monitor: str) -> list[str]:
    """Returns the losses, the training score, the monitored metric, and as many other scores as fit beside them."""
    shown = [name for name in metrics if name.startswith(("train/", "val/")) and not name.endswith("_sd")]
    chosen = [name for name in shown if name.startswith("train/") or name in ("val/loss", monitor)]
    for name in shown:
        if name not in chosen and sum(map(_width, [*chosen, name])) <= MOST_WIDTH:
            chosen.append(name)
    order = ("train/loss", *(name for name in shown if name.startswith("train/")), "val/loss", *shown)
    return [name for name in dict.fromkeys(order) if name in chosen]


def _width(name: str) -> int:
    return max(len(name) + 2, 11)


def _shown(value: float) -> str:
    return f"{value:,.4f}" if abs(value) < 1000 else f"{value:,.1f}"
