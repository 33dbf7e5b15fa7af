"""Lightning's `LearningRateFinder` for a run that is recorded and resumed."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import lightning as L
import numpy as np
from lightning.pytorch.callbacks import LearningRateFinder
from rich.console import Console

from mlp_lab.training.module import MLPModule

ARGUMENTS = ("min_lr", "max_lr", "num_training_steps", "mode", "early_stop_threshold")
UNSETTLED = 10  # first losses of a search: Lightning's running mean has hardly begun


class RateFinder(LearningRateFinder):
    """Replaces `model.optimizer.lr` by the rate that a range test (Smith 2017) suggests, once, before the first step.

    Lightning's class sets the rate of the current step only, which a schedule overwrites, ends the search with
    `trainer.max_epochs`, and searches again when a run resumes. Here optimizer and schedule are built anew from the
    rate that was found, and the checkpoint holds it. The search draws no random number that the run would draw.

    Args:
        finder: Lightning's callback with the settings of the search.
    """

    def __init__(self, finder: LearningRateFinder) -> None:
        super().__init__(**{name: getattr(finder, f"_{name}") for name in ARGUMENTS}, update_attr=False)
        self.rate: float | None = None

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Searches, unless the checkpoint that the run resumes from holds the result."""
        if self.rate is not None or not isinstance(pl_module, MLPModule):
            return
        configured, loop = pl_module.optimizer_config.lr, trainer.fit_loop
        pl_module.on_fit_start()  # an initialisation from data comes before the search
        epochs, loop.max_epochs = loop.max_epochs, -1
        try:
            self.lr_find(trainer, pl_module)
        finally:
            loop.max_epochs = epochs
        trainer.callback_metrics.clear()  # the search may have validated; the run has not
        assert self.optimal_lr is not None
        results = self.optimal_lr.results
        found = middle_of_fall(results["lr"], results["loss"])
        self.rate = configured if found is None else found
        pl_module.set_learning_rate(self.rate)
        trainer.strategy.setup_optimizers(trainer)
        if trainer.is_global_zero:
            Console(stderr=True).print()  # ends the line of Lightning's progress bar
            kept = "LearningRateFinder found no better one" if found is None else "found by LearningRateFinder"
            Console(highlight=False).print(f"learning rate {self.rate:.3g} ({kept}; model.optimizer.lr {configured:g})")

    def state_dict(self) -> dict[str, Any]:
        """Returns the rate that was found."""
        return {"rate": self.rate}

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Gives the model the rate that was found, before its optimizer is built."""
        self.rate = checkpoint["callbacks"].get(self.state_key, {}).get("rate")
        if self.rate is not None and isinstance(pl_module, MLPModule):
            pl_module.set_learning_rate(self.rate)


def middle_of_fall(rates: Sequence[float], losses: Sequence[float]) -> float | None:
    """Returns the learning rate at which half of a range test's fall in loss is done; None where the loss never falls.

    Lightning's own suggestion is the steepest slope along the rate, which noise at the smallest rates decides.

    Args:
        rates: Learning rate of each step, increasing.
        losses: Smoothed loss of each step; may end in NaN or infinities.

    >>> middle_of_fall([10.0**step for step in range(-16, 1)], [9.0] * UNSETTLED + [4, 4, 3, 2, 1, 8, 9])
    0.0001
    """
    finite = next((step for step, loss in enumerate(losses) if not math.isfinite(loss)), len(losses))
    settled = np.asarray(losses[UNSETTLED:finite], dtype=np.float64)
    if len(settled) == 0 or (lowest := int(settled.argmin())) == 0:
        return None
    fall = settled[: lowest + 1]
    middle = int(np.flatnonzero(fall >= (fall.max() + fall.min()) / 2)[-1])
    return float(rates[UNSETTLED + middle])


def recorded(callback: L.Callback) -> L.Callback:
    """Returns the callback that a recorded run uses in place of one of Lightning's: the same but for a rate finder."""
    return RateFinder(callback) if type(callback) is LearningRateFinder else callback
