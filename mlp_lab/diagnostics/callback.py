"""The Lightning callback that measures a run while it trains: when to look, and where the numbers go.

It only observes: weights, gradients and random numbers are those of a run without it. Three of a step's hooks are its
own, and each returns at once on a step that measures nothing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import lightning as L
import torch
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from torch.optim import Optimizer

from mlp_lab.diagnostics.capture import find_mlp
from mlp_lab.diagnostics.evidence import Evidence, Measured
from mlp_lab.diagnostics.facts import collect_facts
from mlp_lab.diagnostics.gradients import to_floats
from mlp_lab.diagnostics.history import pack, thin_, unpack
from mlp_lab.diagnostics.numerics import FiniteCheck
from mlp_lab.diagnostics.probe import StepProbe
from mlp_lab.diagnostics.settings import DEFAULT_GROUPS, FIRST_STEPS, DiagnosticsConfig
from mlp_lab.diagnostics.verdicts import Verdict, diagnose
from mlp_lab.model.mlp import MLP
from mlp_lab.training.module import MLPModule

JUDGE_EVERY = 50  # least optimizer steps between two judgements within an epoch, after the first ten
FIRST_GROUPS = ("updates",)  # of steps 2 to 10, what a learning rate far too high shows in


class Diagnostics(L.Callback):
    """Measures gradients, updates, signals and units while a network trains, and says what is wrong with it.

    Works with any LightningModule that holds an `MLP` and optimizes a mean loss. Values go to the module's `record`, or
    to the trainer's loggers, under the number of optimizer steps that have been taken.

    Args:
        every_n_steps: optimizer steps between measurements, at least 1.
        groups: keys of `GROUPS`; an empty list measures nothing, and only a NaN or an infinity is looked for.
        probe: `val` judges units over each validation pass, `train` over each training epoch.

    Raises:
        UserError: A setting is unknown or out of range.
    """

    def __init__(self, every_n_steps: int = 100, groups: Sequence[str] = DEFAULT_GROUPS, probe: str = "val") -> None:
        self.config = DiagnosticsConfig(every_n_steps=every_n_steps, groups=list(groups), probe=probe)
        self.evidence = Evidence()
        self.verdicts: list[Verdict] = []
        self._check = FiniteCheck()
        self._mlp: MLP | None = None
        self._probe: StepProbe | None = None  # of the step that is being measured
        self._next = 0  # the next optimizer step to measure, from 1; 0 before training
        self._postponed: list[str] = []  # groups that a skipped step still owes
        self._judged = 0  # the step after which a judgement was made last

    # ---- life -----------------------------------------------------------------------------------------------------

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Finds the network, and forgets a former fit."""
        if stage == TrainerFn.FITTING:
            self._mlp = find_mlp(pl_module)
            self.evidence, self.verdicts = Evidence(), []
            self._postponed, self._judged = [], 0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Collects what is known before the first step; a resumed run keeps what it began with, but for its plan."""
        assert self._mlp is not None
        facts, known = collect_facts(trainer, pl_module, self._mlp), self.evidence.facts
        if trainer.global_step and known.weight_gains:
            facts = replace(known, planned_steps=facts.planned_steps, planned_epochs=facts.planned_epochs)
        self.evidence.facts = facts
        self._check.on_train_start(trainer, pl_module)
        self._next = self._due_after(trainer.global_step)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Judges the whole run."""
        self._release()
        self._check.on_train_end(trainer, pl_module)
        self._judge(trainer.global_step)

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Takes all hooks out; where a NaN or an infinity has stopped the run, names it."""
        self._release()
        if self._mlp is not None and trainer.state.fn == TrainerFn.FITTING:
            self.evidence.nonfinite = self._check.on_exception(trainer, pl_module, exception)
            self._judge(trainer.global_step)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Lets the network go."""
        self._release()
        self._mlp = None

    # ---- steps ----------------------------------------------------------------------------------------------------

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Puts the hooks in where this batch completes a step that is to be measured."""
        self._check.on_train_batch_start(trainer, pl_module, batch, batch_idx)
        step = trainer.global_step + 1
        if step < self._next or trainer.fit_loop._should_accumulate():
            return
        self._release()
        groups = self._groups_of(step)
        if groups and self._mlp is not None:
            self._probe = StepProbe(self._mlp, groups)
            self._probe.open()

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Optimizer) -> None:
        """Measures what there is before clipping and before the step."""
        self._check.on_before_optimizer_step(trainer, pl_module, optimizer)
        if self._probe is not None:
            self._probe.before_step(trainer, optimizer)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Measures what the step has done, logs it, and takes the hooks out."""
        self._check.on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if self._probe is None:
            return
        step, groups = trainer.global_step, self._probe.groups
        values = self._probe.after_step(trainer)
        if values is None:  # the loss scaler has found an overflow: the next step is measured instead
            self._postponed, self._next = list(groups), step + 1
        else:
            loss = _loss(outputs)
            if loss is not None:
                values["train/loss"] = _mean_over_processes(trainer, loss)
            numbers = to_floats(values)
            self.evidence.steps.append(Measured(step=step, epoch=trainer.current_epoch, values=numbers))
            thin_(self.evidence.steps)
            self._log(trainer, {name: value for name, value in numbers.items() if name != "train/loss"}, step)
            self._postponed, self._next = [], self._due_after(step)
            if step <= FIRST_STEPS or step - self._judged >= JUDGE_EVERY:
                self._judge(step)
        self._release()

    # ---- passes ---------------------------------------------------------------------------------------------------

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Reads the last flags before the pass."""
        if _counts(trainer):
            self._release()
            self._check.read(trainer, pl_module)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Adds the pass to the evidence, and judges."""
        if not _counts(trainer):
            return
        values = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("val/")}
        if "train/loss" in trainer.callback_metrics:
            values["train/loss"] = float(trainer.callback_metrics["train/loss"])
        step = trainer.global_step
        self.evidence.epochs.append(Measured(step=step, epoch=trainer.current_epoch, values=values))
        thin_(self.evidence.epochs)
        self._judge(step)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Reads the last flags of the epoch."""
        self._release()
        self._check.read(trainer, pl_module)

    # ---- state ----------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Returns the evidence and where the schedule stands."""
        return {"evidence": pack(self.evidence), "postponed": self._postponed, "judged": self._judged}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores what `state_dict` returned, and the verdicts that follow from it."""
        self.evidence = unpack(state_dict["evidence"])
        self._postponed, self._judged = state_dict["postponed"], state_dict["judged"]
        self.verdicts = diagnose(self.evidence)

    # ---- parts ----------------------------------------------------------------------------------------------------

    def _groups_of(self, step: int) -> list[str]:
        """Returns what is measured at an optimizer step, from 1."""
        groups = self.config.groups
        full = step == 1 or step % self.config.every_n_steps == 0
        now = groups if full else [group for group in groups if group in FIRST_GROUPS and step <= FIRST_STEPS]
        return [group for group in groups if group in now or group in self._postponed]

    def _due_after(self, step: int) -> int:
        """Returns the next optimizer step after `step` that is to be measured."""
        if self._postponed or step < FIRST_STEPS:
            return step + 1
        every = self.config.every_n_steps
        return (step // every + 1) * every

    def _judge(self, step: int) -> None:
        self._judged = step
        self.verdicts = diagnose(self.evidence)

    def _log(self, trainer: L.Trainer, values: Mapping[str, float], step: int) -> None:
        module = trainer.lightning_module
        if not values:
            return
        if isinstance(module, MLPModule):
            module.record(values, step)
            return
        for logger in trainer.loggers:
            logger.log_metrics({"epoch": trainer.current_epoch, **values}, step=step)

    def _release(self) -> None:
        if self._probe is not None:
            self._probe.close()
            self._probe = None


def _counts(trainer: L.Trainer) -> bool:
    """Whether a validation pass is one of a fit, and not the check before it."""
    return trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking


def _loss(outputs: Any) -> Tensor | None:
    """Returns the loss that a training step has returned."""
    loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
    return loss.detach() if isinstance(loss, Tensor) else None


def _mean_over_processes(trainer: L.Trainer, loss: Tensor) -> Tensor:
    """Returns the mean over processes, a collective call under DDP."""
    if trainer.world_size == 1:
        return loss
    total = loss.clone()
    torch.distributed.all_reduce(total)
    return total / trainer.world_size
