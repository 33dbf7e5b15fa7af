"""The progress bar: a live line while an epoch runs, and a row of a table for every epoch that has ended."""

from __future__ import annotations

import time
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import ProgressBar
from rich.console import Console

from mlp_lab.data.loader import Batch
from mlp_lab.training.burst import ANY

REFRESH_SECONDS = 0.2
MOST_SCORES = 3  # validation scores shown beside the loss


class EpochTable(ProgressBar):
    """Shows losses, validation scores and the training throughput; costs one clock reading a step.

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
        self._best = float("inf")
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

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Starts the epoch's clock."""
        self.rows, self.seconds = 0, 0.0
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
        self._started = time.perf_counter()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Prints the epoch's row."""
        self._pause()
        self.total_rows += self.rows
        self.total_seconds += self.seconds
        if self._enabled:
            self._print_row(trainer)

    def state_dict(self) -> dict[str, Any]:
        """Returns the lowest val/loss so far, which the mark of a resumed run goes on from."""
        return {"best": self._best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        self._best = state_dict["best"]

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

    def _print_row(self, trainer: L.Trainer) -> None:
        if self.console.is_terminal:
            self.console.file.write("\r\x1b[2K")
        metrics = trainer.callback_metrics
        if not self._columns:
            scores = [name for name in metrics if name.startswith("val/") and not name.endswith(("/loss", "_sd"))]
            scores = scores[:MOST_SCORES]
            self._columns = [name for name in ("train/loss", "val/loss", *scores) if name in metrics]
            header = "".join(f"{name:>{_width(name)}}" for name in self._columns)
            self.console.print(f"[bold]{'epoch':>7}{header}{'samples/s':>11}[/bold]")
        values = "".join(f"{_shown(float(metrics[name])):>{_width(name)}}" for name in self._columns if name in metrics)
        score = float(metrics.get("val/loss", float("inf")))
        mark = " [green]*[/green]" if score < self._best else ""
        self._best = min(self._best, score)
        last = trainer.max_epochs if trainer.max_epochs and trainer.max_epochs > 0 else None
        epoch = f"{trainer.current_epoch + 1}/{last}" if last else str(trainer.current_epoch + 1)
        rate = self.rows / self.seconds if self.seconds else 0.0
        self.console.print(f"{epoch:>7}{values}{rate:>11,.0f}{mark}", soft_wrap=True)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Says what the mark means."""
        if self._enabled and self._columns:
            self.console.print("[dim]* lowest val/loss so far[/dim]")


def _width(name: str) -> int:
    return max(len(name) + 2, 11)  # five columns and the throughput fit into 80


def _shown(value: float) -> str:
    return f"{value:,.4f}" if abs(value) < 1000 else f"{value:,.1f}"
