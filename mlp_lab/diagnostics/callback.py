"""The Lightning callback that measures a run while it trains: when to look, and where the numbers go.

It only observes: weights, gradients and random numbers are those of a run without it. On a step that measures nothing
its three hooks only look for a NaN or an infinity.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import lightning as L
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor
from torch.optim import Optimizer

from mlp_lab.diagnostics.capture import find_mlp
from mlp_lab.diagnostics.dashboard import add_worst_layers, send_histograms
from mlp_lab.diagnostics.display import VerdictReport
from mlp_lab.diagnostics.evidence import Evidence, Measured
from mlp_lab.diagnostics.facts import collect_facts
from mlp_lab.diagnostics.gradients import to_floats
from mlp_lab.diagnostics.history import pack, thin_, unpack
from mlp_lab.diagnostics.landscape import Landscape
from mlp_lab.diagnostics.numerics import FiniteCheck
from mlp_lab.diagnostics.passes import UnitPass
from mlp_lab.diagnostics.probe import StepProbe, mean_over_processes
from mlp_lab.diagnostics.settings import DEFAULT_GROUPS, FIRST_STEPS, DiagnosticsConfig
from mlp_lab.diagnostics.theory import Prediction, init_values, predict
from mlp_lab.diagnostics.verdicts import Verdict, diagnose
from mlp_lab.model.mlp import MLP
from mlp_lab.training.accumulation import loss_divisor
from mlp_lab.training.module import MLPModule

JUDGE_EVERY = 100  # least optimizer steps between two judgements within an epoch, after the first ten
FIRST_GROUPS = ("updates",)  # of steps 2 to 10, what a learning rate far too high shows in


class Diagnostics(L.Callback):
    """Measures gradients, updates, signals and units while a network trains, and says what is wrong with it.

    Works with any LightningModule that optimizes a mean loss and holds an `MLP`, or a plain `nn.Sequential` of linear
    layers, norms, activations and dropout (`mlp_lab.model.sequential`). Values go to the module's `record`, or
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
        self._report = VerdictReport()
        self._mlp: MLP | None = None
        self._landscape = Landscape(())
        self.probe: StepProbe | None = None  # of the step that is being measured
        self._units: UnitPass | None = None
        self._prediction: Prediction | None = None  # of the network as it was initialised
        self.next_step = 0  # the next optimizer step to measure, from 1; 0 before training
        self._postponed: list[str] = []  # groups that a skipped step still owes
        self._judged = 0  # the step after which a judgement was made last

    # ---- life -----------------------------------------------------------------------------------------------------

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Finds the network, and forgets a former fit."""
        if stage == TrainerFn.FITTING:
            self._mlp = find_mlp(pl_module)
            add_worst_layers(trainer.loggers)  # before a resumed run replays its rows
            self.evidence, self.verdicts = Evidence(), []
            self._postponed, self._judged = [], 0
            self._landscape = Landscape(self.config.groups)
            judged = "units" in self.config.groups and self._mlp.depth > 0
            self._units = UnitPass(self._mlp, training=self.config.probe == "train") if judged else None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Collects what is known before the first step; a resumed run keeps what it began with, but for its plan."""
        assert self._mlp is not None
        self._landscape.check(trainer, pl_module)
        facts, known = collect_facts(trainer, pl_module, self._mlp), self.evidence.facts
        if trainer.global_step and known.weight_gains:
            facts = replace(known, planned_steps=facts.planned_steps, planned_epochs=facts.planned_epochs)
        self.evidence.facts = facts
        if "init" in self.config.groups and trainer.global_step == 0 and self._mlp.depth > 0:
            rms = facts.input_rms
            self._prediction = predict(self._mlp, rms**2 if rms > 0 else 1.0)
        self._check.on_train_start(trainer, pl_module)
        self._report.start(trainer, self.verdicts)
        self.next_step = self._due_after(trainer.global_step)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Judges the whole run."""
        self._release(over=True)
        self._check.on_train_end(trainer, pl_module)
        self.judge()
        if not trainer.fast_dev_run:  # type: ignore[attr-defined]
            self._report.close(trainer, self.verdicts, measured=bool(self.config.groups))

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Takes all hooks out; where a NaN or an infinity has stopped the run, names it."""
        self._release(over=True)
        if self._mlp is not None and trainer.state.fn == TrainerFn.FITTING:
            self.evidence.nonfinite = self._check.on_exception(trainer, pl_module, exception)
            if self.evidence.nonfinite is not None:
                self.judge()
                self._log(trainer, self._check.values(), self.evidence.nonfinite.step)
                self._report.close(trainer, self.verdicts)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Lets the network go."""
        self._release(over=True)
        self._mlp = self._units = self._prediction = None

    # ---- steps ----------------------------------------------------------------------------------------------------

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Puts the hooks in where this batch completes a step that is to be measured."""
        self._check.on_train_batch_start(trainer, pl_module, batch, batch_idx)
        step = trainer.global_step + 1
        if step < self.next_step or trainer.fit_loop._should_accumulate():
            return
        groups = self._groups_of(step)
        if self.probe is not None and self.probe.groups == groups:
            return  # the step before was measured alike, and has left its hooks in
        self._release()
        if groups and self._mlp is not None:
            self.probe = StepProbe(self._mlp, groups)
            self.probe.open()

    def on_before_optimizer_step(self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: Optimizer) -> None:
        """Measures what there is before clipping and before the step."""
        if self.probe is not None:
            self.probe.before_step(trainer, optimizer)
        norm = self.probe.gradient_norm if self.probe is not None else None
        self._check.on_before_optimizer_step(trainer, pl_module, optimizer, norm)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Measures what the step has done, logs it, and takes the hooks out."""
        self._check.on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if self.probe is None:
            return
        step, groups = trainer.global_step, self.probe.groups
        values = self.probe.after_step(trainer)
        if values is None:  # the loss scaler has found an overflow: the next step is measured instead
            self._postponed, self.next_step = list(groups), step + 1
        else:
            loss = _loss(outputs)
            if loss is not None:
                values["train/loss"] = mean_over_processes(trainer, loss) * loss_divisor(trainer, pl_module)
            numbers = to_floats(values)
            if "init" in groups:
                numbers |= init_values(self._prediction, numbers, tuple(self.probe.mlp.widths))
            if "histograms" in groups and trainer.is_global_zero:
                send_histograms(trainer.loggers, self.probe.histograms(), step)
            self.evidence.steps.append(Measured(step=step, epoch=trainer.current_epoch, values=numbers))
            thin_(self.evidence.steps)
            self._log(trainer, {name: value for name, value in numbers.items() if name != "train/loss"}, step)
            self._postponed, self.next_step = [], self._due_after(step)
            if step <= FIRST_STEPS or step - self._judged >= JUDGE_EVERY:
                self._judge(trainer, step)
        if self.next_step == step + 1 and trainer.accumulate_grad_batches == 1:
            self.probe.rest()
        else:
            self._release()

    # ---- passes ---------------------------------------------------------------------------------------------------

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Watches the units over a training epoch, with `probe: train`."""
        if self._units is not None and self._units.training:
            self._units.open()

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Reads the last flags before the pass, and watches the units over it."""
        if _counts(trainer):
            self._release()
            self._check.read(trainer, pl_module)
            if self._units is not None and not self._units.training:
                self._units.open()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Adds the pass to the evidence, and judges."""
        if not _counts(trainer):
            return
        values = {name: float(value) for name, value in trainer.callback_metrics.items() if name.startswith("val/")}
        if self._units is not None and not self._units.training:
            values |= self._judge_units(trainer)
        self._add_epoch(trainer, values)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Reads the last flags of the epoch; judges the units with `probe: train`, and an epoch without validation."""
        self._release()
        self._check.read(trainer, pl_module)
        values = self._judge_units(trainer) if self._units is not None and self._units.training else {}
        values |= (around := self._landscape.measure(trainer, pl_module))
        self._log(trainer, around, trainer.global_step)
        last = self.evidence.epochs[-1] if self.evidence.epochs else None
        if last is not None and last.step == trainer.global_step:
            last.values.update(values)
            if values:
                self._judge(trainer, last.step)
        else:
            self._add_epoch(trainer, values)

    def _judge_units(self, trainer: L.Trainer) -> dict[str, float]:
        assert self._units is not None
        self._units.close()
        values = self._units.statistics.compute()
        self._log(trainer, values, trainer.global_step)
        return values

    def _add_epoch(self, trainer: L.Trainer, values: dict[str, float]) -> None:
        loss = getattr(trainer.lightning_module, "epoch_loss", trainer.callback_metrics.get("train/loss"))
        values |= {} if loss is None else {"train/loss": float(loss)}
        self.evidence.epochs.append(Measured(step=trainer.global_step, epoch=trainer.current_epoch, values=values))
        thin_(self.evidence.epochs)
        self._judge(trainer, trainer.global_step)

    # ---- state ----------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Returns the evidence and where the schedule stands."""
        units = self._units.statistics.state_dict() if self._units is not None else None
        state = {"evidence": pack(self.evidence), "postponed": self._postponed, "judged": self._judged}
        return {**state, "units": units, "landscape": self._landscape.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores what `state_dict` returned, and the verdicts that follow from it."""
        self.evidence = unpack(state_dict["evidence"])
        self._postponed, self._judged = state_dict["postponed"], state_dict["judged"]
        if self._units is not None and state_dict["units"] is not None:
            self._units.statistics.load_state_dict(state_dict["units"])
        self._landscape.load_state_dict(state_dict["landscape"])
        self.judge()

    # ---- parts ----------------------------------------------------------------------------------------------------

    def _groups_of(self, step: int) -> list[str]:
        """Returns what is measured at an optimizer step, from 1."""
        groups = self.config.groups
        full = step == 1 or step % self.config.every_n_steps == 0
        now = [one for one in groups if (full or (one in FIRST_GROUPS and step <= FIRST_STEPS))]
        now = [one for one in now if one != "init" or step == 1]
        measured = [one for one in groups if one in now or one in self._postponed]
        return [*measured, "signal"] if "init" in measured and "signal" not in measured else measured

    def _due_after(self, step: int) -> int:
        """Returns the next optimizer step after `step` that is to be measured."""
        if self._postponed or step < FIRST_STEPS:
            return step + 1
        return (step // self.config.every_n_steps + 1) * self.config.every_n_steps

    def judge(self) -> None:
        """Judges by what is known so far; where no group is measured, only a NaN or an infinity is told of."""
        self.verdicts = [one for one in diagnose(self.evidence) if self.config.groups or one.code == "nonfinite"]

    def _judge(self, trainer: L.Trainer, step: int) -> None:
        self._judged = step
        self.judge()
        if not trainer.fast_dev_run:  # type: ignore[attr-defined]
            self._report.update(trainer, self.verdicts)

    def _log(self, trainer: L.Trainer, values: Mapping[str, float], step: int) -> None:
        module = trainer.lightning_module
        if values and isinstance(module, MLPModule):
            module.record(values, step)
        elif values:
            for logger in trainer.loggers:
                logger.log_metrics({"epoch": trainer.current_epoch, **values}, step=step)

    def _release(self, over: bool = False) -> None:
        if self.probe is not None:
            self.probe.close()
            self.probe = None
        if self._units is not None and (over or not self._units.training):
            self._units.close()


def _counts(trainer: L.Trainer) -> bool:
    """Whether a validation pass is one of a fit, and not the check before it."""
    return trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking


def _loss(outputs: Any) -> Tensor | None:
    """Returns the loss that a training step has returned."""
    loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
    return loss.detach() if isinstance(loss, Tensor) else None
