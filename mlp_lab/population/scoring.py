"""How a population is measured: every member's scores, their spread, and those of the ensemble.

Symbols: K members, B batch, C outputs.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn

from mlp_lab.data.loader import Batch
from mlp_lab.data.spec import DataSpec
from mlp_lab.model.mlp import MLP
from mlp_lab.population.ensemble import ensemble_logits
from mlp_lab.population.losses import MemberLoss, MemberMeters, spread
from mlp_lab.population.optimizers import StackOptimizer
from mlp_lab.population.stack import Population
from mlp_lab.population.stopping import MemberStop
from mlp_lab.training.batches import PairBatches
from mlp_lab.training.checkpoints import refuse_first
from mlp_lab.training.meters import Meter
from mlp_lab.training.straight import StraightModule


class ScoredPopulation(PairBatches, StraightModule):
    """The part of `PopulationModule` that validates, tests and predicts."""

    spec: DataSpec
    population: Population
    numbers: list[int]
    """Number of each member that is still in the stack."""
    failed: dict[int, int]
    scores: list[dict[str, float]]
    stop: MemberStop | None
    train_loss: MemberLoss
    eval_loss: MemberLoss
    _criteria: list[tuple[nn.Module, nn.Module]]
    """Per member, its loss in training and in evaluation."""
    meters: nn.ModuleDict
    ensemble: Meter
    best: dict[int, dict[str, Any]]
    keeps_best: bool
    finished: dict[int, MLP]
    _trains: tuple[Population, list[int], dict[int, MLP]] | None = None  # the stack that trains, in an evaluation
    last_pass: set[int]
    """Members that have stopped within the epoch, which the next validation pass is to measure once more."""

    def leave(self, numbers: Sequence[int]) -> None:
        """Notes which members are in the stack now, and builds what depends on it, where the stack is.

        For Lightning moves only what a module begins with.
        """
        self.numbers = list(numbers)
        train, evaluate = zip(*(self._criteria[number] for number in self.numbers), strict=True)
        self.train_loss, self.eval_loss = MemberLoss(train), MemberLoss(evaluate)
        self.meters = nn.ModuleDict({stage: MemberMeters(self.spec, len(self.numbers)) for stage in ("val", "test")})
        self.ensemble = Meter(self.spec)
        weights = next(self.population.parameters())
        for loss in (self.train_loss, self.eval_loss):
            loss.to(weights)
        for meter in (self.meters, self.ensemble):
            meter.to(weights.device)  # scores keep the type that they are computed in

    def networks(self) -> list[MLP]:
        """Returns copies of every member's network as it is now, or was when it left the stack, in their order."""
        weights = next(self.population.parameters())
        known = {number: copy.deepcopy(mlp).to(weights) for number, mlp in self.finished.items()}
        known |= zip(self.numbers, self.population.unstack(), strict=True)
        return [known[number] for number in range(len(self.scores))]

    def fill(self, networks: Sequence[MLP], numbers: Sequence[int]) -> None:
        """Makes some members the stack; the others have left it.

        Args:
            networks: of all members.
            numbers: of those in the stack.
        """
        kept = [networks[number] for number in numbers]
        self.population = Population(kept, self.population.layout.bucket).train(self.population.training)
        self.finished = {number: mlp.cpu() for number, mlp in enumerate(networks) if number not in numbers}
        self.leave(numbers)

    @property
    def stack_optimizer(self) -> StackOptimizer:
        """The optimizer of those in the stack."""
        return cast(StackOptimizer, self.trainer.strategy.optimizers[0])

    def record(self, values: Mapping[str, float], step: int) -> None:
        """Sends values to every logger under the current epoch and a number of optimizer steps."""
        for logger in self.trainer.loggers:
            logger.log_metrics({"epoch": self.trainer.current_epoch, **values}, step=step)

    def forward(self, numeric: Tensor, categorical: Tensor | None = None) -> Tensor:
        """Returns the logits of all members in the stack, (K, B, C)."""
        return cast(Tensor, self.population(numeric, categorical))

    # ---- evaluation -----------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Puts back the stack that trains, where an evaluation was cut off."""
        self._let_go()

    def on_validation_start(self) -> None:
        """Validates all members that have not failed, unless they are in training."""
        if self.trainer.state.fn == TrainerFn.VALIDATING:
            self._gather()

    def on_test_start(self) -> None:
        """Tests all members that have not failed."""
        self._gather()

    def on_predict_start(self) -> None:
        """Predicts by all members that have not failed."""
        self._gather()

    def on_validation_end(self) -> None:
        """Puts back the stack that trains."""
        self._let_go()

    on_test_end = on_predict_end = on_validation_end

    def _gather(self) -> None:
        """Stacks those that have stopped and left with those that have not, without those that are not finite."""
        finite = [number for number in range(len(self.scores)) if number not in self.failed]
        if finite and finite != self.numbers:
            self._trains = (self.population, self.numbers, self.finished)
            with torch.inference_mode(False), torch.no_grad():
                self.fill(self.networks(), finite)

    def _let_go(self) -> None:
        if self._trains is not None:
            population, numbers, self.finished = self._trains
            self.population, self._trains = population.train(self.training), None
            self.leave(numbers)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Adds a batch to every member's validation metrics."""
        self._evaluate(batch, "val")

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Adds a batch to every member's test metrics, and to the ensemble's."""
        logits = self._evaluate(batch, "test")
        assert batch.target is not None
        together = ensemble_logits(self.spec.task, logits)
        losses = self.eval_loss(together.unsqueeze(0).expand_as(logits), batch.target)[0]
        self.ensemble.update(losses, together, batch.target, batch.count)

    def predict_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Returns the ensemble's logits (B, C) on the CPU, in float32 at least."""
        return ensemble_logits(self.spec.task, wide(self(batch.numeric, batch.categorical))).cpu()

    def _evaluate(self, batch: Batch, stage: str) -> Tensor:
        assert batch.target is not None
        logits = wide(self(batch.numeric, batch.categorical))
        cast(MemberMeters, self.meters[stage]).update(self.eval_loss(logits, batch.target), logits, batch.target)
        return logits

    def on_validation_epoch_end(self) -> None:
        """Logs the mean and the standard deviation over members, and decides which of them stop."""
        scores = [in_float32(of_member) for of_member in cast(MemberMeters, self.meters["val"]).compute()]
        fitting = self.trainer.state.fn == TrainerFn.FITTING and not self.trainer.sanity_checking
        if fitting:
            active = self.stack_optimizer.active
            measured = [on or number in self.last_pass for on, number in zip(active, self.numbers, strict=True)]
            self.last_pass.clear()
            if not any(measured):
                return
        else:
            measured = [number not in self.failed for number in self.numbers]
        for number, of_member, counts in zip(self.numbers, scores, measured, strict=True):
            if counts:
                self.scores[number] = of_member
        told = [of_member for of_member, counts in zip(scores, measured, strict=True) if counts] or scores
        values = {f"val/{name}": value for name, value in spread(told).items()}
        self._show(values)
        if not fitting:
            return
        self.record(values, self.trainer.global_step)
        if self.stop is not None:
            for number, of_member, on in zip(self.numbers, scores, active, strict=True):
                if on:
                    self.stop.update(number, of_member)
            if not self.stop.best:  # no member has had a finite value
                refuse_first(self.stop.monitor, values[f"val/{self.stop.monitor.rpartition('/')[2]}"])
            self.let_stop(self.trainer.global_step, ending=self.trainer.is_last_batch)

    def let_stop(self, step: int, *, ending: bool = False) -> list[int]:
        """Ends the training of members whose stop is decided, if Lightning would end it of one alone.

        Args:
            step: optimizer steps that have been taken.
            ending: whether the epoch counts as over.

        Returns:
            The members.
        """
        loop = self.trainer.fit_loop
        epochs = loop.epoch_progress.current.processed + ending  # type: ignore[attr-defined]
        if self.stop is None or epochs < (loop.min_epochs or 0) or step < (loop.min_steps or 0):
            return []
        gone = []
        for place, number in enumerate(self.numbers):
            if number in self.stop.decided and self.stack_optimizer.active[place]:
                self.stack_optimizer.active[place] = False
                gone.append(number)
        self.stop.decided.clear()
        if gone and not any(self.stack_optimizer.active):
            self.trainer.should_stop = True
        return gone

    def on_test_epoch_end(self) -> None:
        """Logs the mean and the standard deviation over members, and the scores of the ensemble."""
        scores = cast(MemberMeters, self.meters["test"]).compute()
        told = [of_member for number, of_member in zip(self.numbers, scores, strict=True) if number not in self.failed]
        values = {f"test/{name}": value for name, value in spread(told or scores).items()}
        together = {f"test/ensemble_{name}": value for name, value in self.ensemble.compute().items()}
        self._show(values | together)

    def _show(self, values: Mapping[str, float]) -> None:
        shown = {name: torch.tensor(value, dtype=torch.float32) for name, value in values.items()}
        # In a fit, loggers get the values from `record`, with the number of steps.
        self.log_dict(shown, logger=False if self.trainer.state.fn == TrainerFn.FITTING else None, batch_size=1)


def in_float32(scores: Mapping[str, float]) -> dict[str, float]:
    """Returns scores as a run alone shows them to callbacks."""
    return {name: torch.tensor(score, dtype=torch.float32).item() for name, score in scores.items()}


def wide(logits: Tensor) -> Tensor:
    """Losses and metrics are computed in float32 at least."""
    return logits if logits.dtype == torch.float64 else logits.float()
