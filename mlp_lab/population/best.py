"""Each member's own best state, kept in one checkpoint."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

import lightning as L
from lightning.pytorch.trainer.states import TrainerFn

from mlp_lab.errors import unknown
from mlp_lab.population.losses import spread
from mlp_lab.population.scoring import ScoredPopulation
from mlp_lab.training.checkpoints import BestCheckpoint


class BestMembers(BestCheckpoint):
    """Keeps the checkpoint in which every member is as it was at its own best validation pass.

    What `validate`, `test` and `predict` load from it is those members, not the population of one epoch: alone, each
    would have kept that state. `scores` are the means of their scores, and the standard deviations under `<key>_sd`.
    """

    members: Sequence[int] = ()
    """Those that have a best state: a validation pass with a finite score."""

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Goes on with the better one of every member's states: that of the checkpoint resumed from, or the file's.

        The file may be newer. Another run's checkpoint brings no best states.
        """
        assert isinstance(pl_module, ScoredPopulation)
        if not trainer.ckpt_path:
            return
        if not self.path.exists():
            pl_module.best = {}
        for number, found in self.read_file().get("population", {}).get("best", {}).items():
            if self._is_better(found["scores"], pl_module.best.get(number)):
                pl_module.best[number] = found
        self.members = sorted(pl_module.best)

    def _is_better(self, scores: Mapping[str, float], before: Mapping[str, Any] | None) -> bool:
        """Returns whether a member's scores without their prefix are better than its best state's; a NaN never is."""
        name = self.monitor.rpartition("/")[2]
        score = scores.get(name, math.nan)
        best = math.nan if before is None else before["scores"].get(name, math.nan)
        return math.isfinite(score) and (not math.isfinite(best) or self.sign * score < self.sign * best)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Saves when any member is better than it has been.

        Raises:
            UserError: The monitored metric is not among those that were measured.
        """
        if trainer.state.fn != TrainerFn.FITTING or trainer.sanity_checking or trainer.fast_dev_run:  # type: ignore[attr-defined]
            return
        assert isinstance(pl_module, ScoredPopulation)
        if self.monitor not in trainer.callback_metrics:
            raise unknown("early_stopping.monitor", self.monitor, sorted(trainer.callback_metrics))
        improved = self.writer.failure is not None  # the states of an earlier pass are not in the file yet
        for place, number in enumerate(pl_module.numbers):
            if self._is_better(pl_module.scores[number], pl_module.best.get(number)):
                state = pl_module.population.member(place).state_dict()
                pl_module.best[number] = {"state": state, "scores": dict(pl_module.scores[number])}
                improved = True
        if improved:
            self.epoch, self.members = trainer.current_epoch, sorted(pl_module.best)
            told = spread([one["scores"] for one in pl_module.best.values()])
            self.scores = {f"val/{key}": value for key, value in told.items()}
            self.score = self.scores[self.monitor]
            pl_module.keeps_best = True
            try:
                self.writer.save(trainer)
            finally:
                pl_module.keeps_best = False

    @property
    def failure(self) -> str | None:
        """Why the best states are not in the file; None if they are."""
        return self.writer.failure


def take_best(module: ScoredPopulation, checkpoint: dict[str, Any]) -> None:
    """Puts every member's best state into a population that is about to be evaluated.

    A member that was never finite has none: it has failed, and is left out.

    Args:
        module: with the members in the stack that are in that of the checkpoint.
        checkpoint: as `BestMembers` has saved it; its weights become those of the best states.
    """
    best, prefix = checkpoint["population"]["best"], "population."
    others = {key: value for key, value in checkpoint["state_dict"].items() if not key.startswith(prefix)}
    stack = {key: value for key, value in checkpoint["state_dict"].items() if key.startswith(prefix)}
    module.population.load_state_dict({key.removeprefix(prefix): value for key, value in stack.items()})
    networks = module.networks()
    for number, one in best.items():
        networks[number].load_state_dict(one["state"])
    module.fill(networks, sorted(best))
    left_out = [number for number in range(len(networks)) if number not in best]
    module.failed = {number: module.failed.get(number, checkpoint["global_step"]) for number in left_out}
    stacked = {f"{prefix}{key}": value for key, value in module.population.state_dict().items()}
    checkpoint["state_dict"] = {**others, **stacked}
