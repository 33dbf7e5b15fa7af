"""The LightningModule that trains a population: every member as its own `MLPModule` would train it.

All members see the same batches. Their losses are added, so that gradients do not mix; each has its own optimizer
settings, schedule, clipping, loss options and stop.

Symbols: K members, B batch, C outputs.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from lightning.pytorch.plugins.precision import DoublePrecision
from lightning.pytorch.trainer.states import TrainerFn
from torch.optim import Optimizer

from mlp_lab.errors import UserError
from mlp_lab.model.mlp import MLP
from mlp_lab.population.best import take_best
from mlp_lab.population.freezing import freeze_broken_
from mlp_lab.population.members import check_modules
from mlp_lab.population.optimizers import StackOptimizer
from mlp_lab.population.running import RunningLosses
from mlp_lab.population.stack import Population
from mlp_lab.population.steps import SteppedPopulation
from mlp_lab.population.stopping import MemberStop
from mlp_lab.training.batches import rows_for_init
from mlp_lab.training.module import MLPModule, scale_by_data_


class PopulationModule(SteppedPopulation):
    """Trains many MLPs under `L.Trainer` with automatic optimization, on one device.

    A member whose loss is not finite is frozen at once and told of in `failed`; the others go on, bit for bit, as if it
    had never been there. Members that stop leave the stack once they are half of it.

    Args:
        members: what each one would be alone: network, loss, optimizer and schedule. Their networks are copied.
        clip: per member the largest norm of its gradient; None clips nothing.
        stop: when a member stops by itself; None lets all train to the end.
        steps_per_call: most steps that are taken in one call by Lightning; None takes all together that come before
            something is logged, measured, validated or saved, or shown to a callback that sees every step.

    Raises:
        UserError: Names the members and the setting that do not fit together.
    """

    def __init__(
        self,
        members: Sequence[MLPModule],
        clip: Sequence[float | None] | None = None,
        stop: MemberStop | None = None,
        steps_per_call: int | None = None,
    ) -> None:
        super().__init__(len(members))
        if steps_per_call is not None and steps_per_call < 1:
            raise UserError(f"population.steps_per_call: {steps_per_call}; accepted: an integer of at least 1, or None")
        self.steps_per_call = steps_per_call
        check_modules(members, clip)
        first = members[0]
        self.spec, self.mixup = first.spec, first.mixup
        self.settings = [dict(member.hparams) for member in members]
        """Per member, what `MLPModule` takes."""
        self.population = Population.stack([member.model for member in members])
        self.configs = [member.optimizer_config for member in members]
        self.schedules = [member.schedule_config for member in members]
        self.max_norms = [member.max_norm for member in members]
        self.clip = list(clip) if clip is not None else [None] * len(members)
        self.stop = stop
        self.failed: dict[int, int] = {}
        """Members that became non-finite, and in which step."""
        self.finished: dict[int, MLP] = {}
        """Members that have left the stack, as they were at their end; on the CPU."""
        self.last_pass: set[int] = set()
        self.scores: list[dict[str, float]] = [{} for _ in members]
        """Per member, its validation scores of the last pass it took part in."""
        self.best: dict[int, dict[str, Any]] = {}
        """Per member, its best state and the scores of it, where `BestMembers` keeps them."""
        self.keeps_best = False
        """Whether the checkpoint that is being written stands for the best states."""
        self._criteria = [(member.train_loss, member.eval_loss) for member in members]
        self.leave(range(len(members)))
        self._active: list[bool] = []  # of a checkpoint, till the optimizer is built

    # ---- training -------------------------------------------------------------------------------------------------

    def setup(self, stage: str) -> None:
        """Refuses a device without float64, in which sums of losses and learning rates are kept.

        Raises:
            UserError: `trainer.accelerator` is mps.
        """
        super().setup(stage)
        if stage == TrainerFn.FITTING and self.trainer.strategy.root_device.type == "mps":
            raise UserError(
                "trainer.accelerator: mps has no float64, which the training of a population needs; "
                "use --trainer.accelerator cpu"
            )

    def on_fit_start(self) -> None:
        """Refuses what is not of one member; applies a data-dependent init to a fresh model.

        Raises:
            UserError: `trainer.devices` is above 1, or `trainer.gradient_clip_val` is set.
        """
        if self.trainer.world_size > 1:
            raise UserError(
                f"trainer.devices: {self.trainer.world_size} processes for one population; use --trainer.devices 1, "
                "and one worker per device on one study"
            )
        if limit := self.trainer.gradient_clip_val:
            raise UserError(
                f"trainer.gradient_clip_val: {limit} would be the limit of all members together; use "
                f"PopulationModule(members, clip=[{limit}] * {len(self.configs)}), a limit for each"
            )
        if not self.trainer.ckpt_path:
            self._initialise()

    def _initialise(self) -> None:
        scaled = [place for place, number in enumerate(self.numbers) if self.settings[number]["init"] == "lsuv"]
        rows = rows_for_init(self.trainer, self.spec) if scaled else None
        for place in scaled:
            assert rows is not None
            mlp = self.population.member(place)
            scale_by_data_(mlp, rows)
            parameters = dict(mlp.named_parameters())
            for name, view in self.population.views(place).items():
                if name in parameters:
                    view.copy_(parameters[name].data)

    def on_train_epoch_end(self) -> None:
        """Ends the training when every member has stopped, and lets those that have leave the stack."""
        if self._running.rows:
            self._record_training_loss(self.trainer.global_step, ends=True)
        self.let_stop(self.trainer.global_step)
        active = self.stack_optimizer.active
        if not any(active):
            self.trainer.should_stop = True
        elif 2 * sum(active) <= len(active):
            self.compact()

    def compact(self) -> None:
        """Takes the members that have stopped out of the stack; the others go on as they were, up to rounding."""
        optimizer = self.stack_optimizer
        kept = [place for place, alive in enumerate(optimizer.active) if alive]
        for place, alive in enumerate(optimizer.active):
            if not alive:
                self.finished[self.numbers[place]] = self.population.member(place).cpu()
        self.population = self.population.keep(kept)
        self._running.keep(kept)
        self.leave([self.numbers[place] for place in kept])
        self.trainer.strategy.optimizers = [optimizer.keep(self.population, kept)]
        self._plan()

    def configure_optimizers(self) -> Optimizer:
        """Builds the optimizer of those in the stack."""
        configs = [self.configs[number] for number in self.numbers]
        clip = [self.clip[number] for number in self.numbers]
        optimizer = StackOptimizer(self.population, configs, clip, self.deferred)
        optimizer.active, self._active = self._active or optimizer.active, []
        return optimizer

    # ---- state ----------------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds who is in the stack, who has left it and how, and the loss since it was last recorded."""
        if self.trainer.state.fn == TrainerFn.FITTING:
            freeze_broken_(self)  # in place: the weights in the checkpoint are those of the stack
        checkpoint["population"] = {
            "numbers": self.numbers,
            "failed": self.failed,
            "finished": {number: mlp.state_dict() for number, mlp in self.finished.items()},
            "scores": self.scores,
            "active": list(self.stack_optimizer.active),
            "last_pass": sorted(self.last_pass),
            "stop": None if self.stop is None else self.stop.state_dict(),
            **self._running.state_dict(),
            "best": self.best,
            "is_best": self.keeps_best,
        }
        checkpoint["hyper_parameters"] = self.settings[0]

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Brings the stack to the members that were in it or, where it is not to be trained, to their best states."""
        if self._trainer is not None and isinstance(self.trainer.precision_plugin, DoublePrecision):
            self.double()  # Lightning does it after loading, which would round the weights to float32
        if len(self.numbers) < len(self.configs):  # it may hold members that have left here
            self.fill(self.networks(), range(len(self.configs)))
        state = checkpoint["population"]
        gone = [number for number in self.numbers if number not in state["numbers"]]
        for number in gone:
            mlp = self.population.member(self.numbers.index(number))
            mlp.load_state_dict(state["finished"][number])
            self.finished[number] = mlp.cpu()
        if gone:
            self.population = self.population.keep([self.numbers.index(number) for number in state["numbers"]])
            self.leave(state["numbers"])
        self.best = dict(state["best"])
        self.failed, self.scores = dict(state["failed"]), list(state["scores"])
        self._running.load_state_dict(state)
        fitting = self._trainer is not None and self.trainer.state.fn == TrainerFn.FITTING
        self._active = list(state["active"]) if fitting else []
        self.last_pass = set(state.get("last_pass", ()))  # checkpoints of an older version have none
        if self.stop is not None and state["stop"] is not None:
            self.stop.load_state_dict(state["stop"])
        if state["is_best"] and not fitting:
            take_best(self, checkpoint)
            self._running = RunningLosses(len(self.numbers))
