"""The training steps of a population.

On the CPU each step looks for losses that are not finite, and the fused kernels leave out who has stopped. Elsewhere
the host runs ahead of the device: a step neither waits for it nor copies to it, flags are read when somebody looks, and
on CUDA the steps of a burst are launched as one graph each.

Symbols: K members, D inputs, B batch.
"""

from __future__ import annotations

import random
from typing import cast

import lightning as L
import torch
from torch import Tensor

from mlp_lab.data.loader import Batch
from mlp_lab.population.freezing import Flags, freeze_, freeze_broken_
from mlp_lab.population.graph import StepGraph, can_capture
from mlp_lab.population.losses import spread
from mlp_lab.population.rates import Rates
from mlp_lab.population.running import RunningLosses
from mlp_lab.population.scoring import ScoredPopulation, wide
from mlp_lab.training.burst import quiet_till_log
from mlp_lab.training.optimizers import OptimizerConfig
from mlp_lab.training.schedules import ScheduleConfig
from mlp_lab.training.training_score import score_of, score_sums


class SteppedPopulation(ScoredPopulation):
    """The part of `PopulationModule` that takes training steps."""

    configs: list[OptimizerConfig]
    schedules: list[ScheduleConfig]
    max_norms: list[float]
    mixup: float
    deferred: bool | None = None
    """Whether steps neither wait for the device nor copy to it; None does so but on the CPU."""

    def __init__(self, members: int) -> None:
        super().__init__()
        self._running = RunningLosses(members)
        self.batch_losses = torch.zeros(members, dtype=torch.float64)
        """Of those in the stack, the mean loss of the last batch."""
        self.scores_training = False
        """Whether the accuracy, or the RMSE, of each training batch is measured; a sweep does without it."""
        self._rates: Rates | None = None
        self._flags: Flags | None = None
        self._graph: StepGraph | None = None
        self._going: list[bool] = []  # members whose statistics and counters follow their batches

    def quiet_steps(self, trainer: L.Trainer) -> int:
        """Looks at the steps that are logged, and at the one in which members may stop that had to wait for it."""
        quiet = quiet_till_log(self, trainer)
        if self.stop is None or not self.stop.decided:
            return quiet
        left = (trainer.min_steps or 0) - trainer.global_step
        return min(quiet, left - 1) if left > 0 else quiet

    def on_train_start(self) -> None:
        """Sets the learning rates of the first step; where all had stopped before, there is none."""
        super().on_train_start()
        self._running.sums = self._running.sums.to(self.device)
        if self._running.scores is not None:
            self._running.scores = self._running.scores.to(self.device)
        self._plan()
        self._set_rates(self.trainer.global_step)
        self.let_stop(self.trainer.global_step)
        if not any(self.stack_optimizer.active):
            self.trainer.should_stop = True

    def _plan(self) -> None:
        """Plans the rates of those in the stack, and how their steps are taken on their device."""
        configs = [self.configs[number] for number in self.numbers]
        schedules = [self.schedules[number] for number in self.numbers]
        self._rates = Rates(configs, schedules, self.trainer.estimated_stepping_batches)
        self._flags = self._graph = None
        if self.stack_optimizer.joint:
            self._flags = Flags(len(self.numbers), self.trainer.global_step, self.device)
            if can_capture(self.device) and not self.mixup:
                self._graph = StepGraph(self._whole_step)

    def on_train_end(self) -> None:
        """Lets the graph and its memory go."""
        super().on_train_end()
        self._graph = None

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Returns the sum of the active members' mean losses."""
        self._running.rows += batch.count
        if self._flags is not None:
            self._flags.step.fill_(self.trainer.global_step)  # which several batches may share; a graph counts on
        self.weigh_in_window(batch, batch_idx)
        return self._batch_loss(batch)

    def _batch_loss(self, batch: Batch) -> Tensor:
        self._hold_stopped()
        losses = self._mixed_losses(batch) if self.mixup else self._losses(batch)  # (K,), sums over the batch
        if self._flags is not None:
            self._flags.look(losses, self.stack_optimizer.alive)
        else:
            self._freeze_nonfinite(losses)
        detached = losses.detach().double()
        if self._flags is not None or self.failed:
            detached = detached.nan_to_num(0.0, 0.0, 0.0)
        self._running.sums += detached
        self.batch_losses = detached / batch.count
        active = self.stack_optimizer.active
        if self._flags is not None:
            losses = torch.where(self.stack_optimizer.alive, losses, 0.0)
        elif not all(active):
            losses = losses[torch.tensor(active)]
        return losses.sum() / (batch.count / self.window_weight)

    def _hold_stopped(self) -> None:
        """What a pass changes in a member stays as it is once that has stopped."""
        optimizer = self.stack_optimizer
        if self._flags is not None:
            self.population.hold(optimizer.alive, some=True)
        elif self._going != optimizer.active:
            self._going = list(optimizer.active)
            self.population.hold(torch.tensor(self._going), some=not all(self._going))

    def _losses(self, batch: Batch) -> Tensor:
        logits = wide(self(batch.numeric, batch.categorical))
        assert batch.target is not None
        if self._running.scores is not None:
            self._running.scores += score_sums(self.spec, logits.detach(), batch.target)
        return cast(Tensor, self.train_loss(logits, batch.target)).sum(1)

    def _mixed_losses(self, batch: Batch) -> Tensor:
        """Mixup of the encoded inputs, by the same share and the same pairs for all members."""
        share = random.betavariate(self.mixup, self.mixup)
        encoded = self.population.encode(batch.numeric, batch.categorical)  # (D, B)
        other = torch.randperm(encoded.shape[1], device=encoded.device)
        logits = wide(self.population.decode(share * encoded + (1 - share) * encoded[:, other]))
        assert batch.target is not None
        losses = share * self.train_loss(logits, batch.target)
        return cast(Tensor, losses + (1 - share) * self.train_loss(logits, batch.target[other])).sum(1)

    def _freeze_nonfinite(self, losses: Tensor) -> None:
        """Freezes members whose loss is not finite."""
        finite = losses.detach().isfinite()
        if not bool(finite.all()):
            bad = [place for place, good in enumerate(finite.tolist()) if not good]
            fresh = [place for place in bad if self.numbers[place] not in self.failed]
            freeze_(self, fresh, [self.trainer.global_step + 1] * len(fresh))

    def _read_flags(self) -> None:
        """Freezes the members that the device has found not finite; waits for it."""
        if self._flags is not None and (found := self._flags.read()):
            freeze_(self, list(found), list(found.values()))

    def after_burst(self) -> None:
        """Shows callbacks which members have been frozen."""
        self._read_flags()

    def replay(self, batch: Batch, step: int) -> bool:
        """Takes a step as a CUDA graph, where there is one."""
        if self._graph is None:
            return False
        self.stack_optimizer.sync()
        if not self._graph.take(batch):
            return False
        self._running.rows += batch.count
        self._set_rates(step)
        return True

    def _whole_step(self, batch: Batch) -> None:
        """What a graph captures."""
        optimizer = self.stack_optimizer
        optimizer.zero_grad()
        with torch.enable_grad():
            with self.trainer.precision_plugin.train_step_context():
                loss = self._batch_loss(batch)
            loss.backward()  # type: ignore[no-untyped-call]
        optimizer.update()
        optimizer.zero_grad()  # a capture begins without gradients, and leaves none of its own memory behind
        self._project_()

    def after_optimizer_step(self, step: int) -> None:
        """Projects weights onto the max-norm balls, sets the next rates, and records the loss when that is due."""
        self._project_()
        self._set_rates(step)
        if self.quiet:
            return
        self._read_flags()
        trainer = self.trainer
        if trainer.is_last_batch:
            freeze_broken_(self)
        if self.stop is not None and self.stop.decided and (gone := self.let_stop(step)):
            self.last_pass.update(gone if trainer.fit_loop.epoch_loop._should_check_val_epoch() else ())
        due = step % trainer.log_every_n_steps == 0  # type: ignore[attr-defined]
        if due or trainer.is_last_batch:
            self._record_training_loss(step, ends=trainer.is_last_batch)

    def _project_(self) -> None:
        for place, number in enumerate(self.numbers):
            if self.max_norms[number]:
                for name, view in self.population.views(place).items():
                    if name.startswith("blocks.") and name.endswith("linear.weight"):
                        view.renorm_(p=2, dim=0, maxnorm=self.max_norms[number])

    def _set_rates(self, step: int) -> None:
        assert self._rates is not None
        self.stack_optimizer.lr[:] = self._rates.at(step)

    def on_train_epoch_start(self) -> None:
        """Begins the scores of the epoch."""
        if self._running.scores is not None:
            self._running.scores.zero_()  # in place: a graph adds to it
        elif self.scores_training and not self.mixup:
            kind, sums = (torch.float64, len(self.spec.targets)) if self.spec.task == "regression" else (torch.int64, 1)
            self._running.scores = torch.zeros(len(self.numbers), sums, dtype=kind, device=self.device)

    def epoch_scores(self) -> dict[str, float]:
        """Returns means and deviations, over members that train, of the epoch's training loss and score so far."""
        running, epoch, found = self._running, self.trainer.current_epoch, []
        if not (rows := running.rows_of(epoch)):
            return {}
        for place, number in enumerate(self.numbers):
            if self.stack_optimizer.active[place]:
                scores = {"loss": running.of_epoch_so_far(place, number, epoch)}
                if running.scores is not None:
                    scores |= score_of(self.spec, running.scores[place].tolist(), rows)
                found.append(scores)
        return {f"train/{name}": value for name, value in spread(found).items()} if found else {}

    def _record_training_loss(self, step: int, *, ends: bool) -> None:
        of_epoch = self.epoch_scores() if ends else {}
        means = self._running.take(self.numbers, self.trainer.current_epoch)
        active = [mean for mean, alive in zip(means, self.stack_optimizer.active, strict=True) if alive]
        if not active:
            return
        values = {f"train/{name}": value for name, value in spread([{"loss": mean} for mean in active]).items()}
        self.trainer.callback_metrics["train/loss"] = torch.tensor(values["train/loss"], dtype=torch.float64)
        for name, value in of_epoch.items():
            values[name.replace("train/loss", "train/epoch_loss")] = value
        self.record(values, step)

    def epoch_loss(self, number: int) -> float | None:
        """Returns a member's mean training loss over the rows of the epoch that was recorded last."""
        return self._running.of_epoch(number)
