"""The diagnostics of every member of a population: the numbers and verdicts that it would have alone.

Each member has a shadow, an `MLPModule` of its own, and a `Diagnostics` that watches it. On the rare measuring steps
the shadow gets the member's weights and masks, repeats its forward and backward pass on the same batch, and gets the
weights after the step; over a validation pass it sees every row. So the same functions measure the same tensors, at the
price of one step alone per member in `every_n_steps`, and of the validation passes alone.
"""

from __future__ import annotations

import random
from collections import defaultdict
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import lightning as L
import torch
from lightning.pytorch.trainer.states import TrainerFn

from mlp_lab.data.loader import Batch
from mlp_lab.diagnostics.callback import Diagnostics
from mlp_lab.diagnostics.scan import NonFinite
from mlp_lab.diagnostics.settings import DEFAULT_GROUPS
from mlp_lab.diagnostics.verdicts import Verdict
from mlp_lab.errors import NonFiniteError, UserError
from mlp_lab.population.losses import spread
from mlp_lab.population.module import PopulationModule
from mlp_lab.population.report import PopulationReport
from mlp_lab.population.shadow import MemberTrainer, Watched
from mlp_lab.training.burst import ANY

ALONE = ("noise", "curvature", "histograms")
"""Groups that are measured of a network that trains alone."""
PASSES = {"gradients", "signal", "units"}  # groups that need a forward and backward pass


class PopulationDiagnostics(L.Callback):
    """Measures every member of a `PopulationModule` as `Diagnostics` measures a network alone.

    The means over members are logged, and their standard deviations under `<key>_sd`.

    Args:
        every_n_steps: optimizer steps between measurements, at least 1.
        groups: keys of `GROUPS` but for noise, curvature and histograms, which are measured of networks alone.
        probe: only `val`: units are judged over each validation pass.

    Raises:
        UserError: A setting is unknown, out of range, or of networks alone.
    """

    def __init__(self, every_n_steps: int = 100, groups: Collection[str] = DEFAULT_GROUPS, probe: str = "val") -> None:
        self.groups = list(groups)
        self.settings: dict[str, Any] = {"every_n_steps": every_n_steps, "groups": self.groups, "probe": probe}
        Diagnostics(every_n_steps, self.groups, probe)  # checks them
        if refused := [group for group in groups if group in ALONE]:
            raise UserError(
                f"diagnostics.groups: {refused[0]!r} is not measured of a population; leave it out, or train one alone"
            )
        if probe != "val":
            raise UserError(f"diagnostics.probe: {probe!r} is not possible for a population; accepted: val")
        self.members: list[Watched] = []
        self._loaded: list[dict[str, Any]] = []  # of a checkpoint, till the members are there
        self._measured: list[Watched] = []  # in the step that is being taken
        self._report = PopulationReport()

    @property
    def verdicts(self) -> list[list[Verdict]]:
        """Per member, its verdicts: root causes first."""
        return [member.diagnostics.verdicts for member in self.members]

    # ---- life -----------------------------------------------------------------------------------------------------

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Builds the shadows of a fit.

        Raises:
            UserError: `trainer.accumulate_grad_batches` is above 1: one batch must be one step.
        """
        if stage != TrainerFn.FITTING:
            return
        module = _population(pl_module)
        if self.groups and trainer.accumulate_grad_batches > 1:
            raise UserError(
                f"trainer.accumulate_grad_batches: {trainer.accumulate_grad_batches} is not possible for the "
                "diagnostics of a population; use 1, or --diagnostics.groups '[]'"
            )
        self.members = [Watched(number, module, self.settings) for number in range(len(module.settings))]
        for member in self.members:
            member.trainer = MemberTrainer(trainer, member.shadow, module.clip[member.number])
            member.diagnostics.setup(member.trainer, member.shadow, stage)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Collects what is known of every member before its first step."""
        module = _population(pl_module)
        for member, state in zip(self.members, self._loaded, strict=False):
            member.diagnostics.load_state_dict(state)
        self._loaded = []
        for member in self._live(module):
            member.sync(module)
            member.diagnostics.on_train_start(member.trainer, member.shadow)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Judges every member's whole run, and tells of it."""
        module = _population(pl_module)
        for member in self.members:
            self._note_failure(module, member)
            member.diagnostics.on_train_end(member.trainer, member.shadow)
        if not trainer.fast_dev_run and self.groups:  # type: ignore[attr-defined]
            self._report.close(trainer, self.verdicts)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Lets hooks and networks go; the evidence stays."""
        for member in self.members:
            if member.trainer is not None:
                member.diagnostics.teardown(member.trainer, member.shadow, stage)
            member.trainer = member.loss = None
        self._measured = []

    # ---- steps ----------------------------------------------------------------------------------------------------

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Repeats the step's forward and backward pass, where it is to be measured, before any weight moves."""
        step = trainer.global_step + 1
        if not self.groups or not any(step >= member.diagnostics.next_step for member in self.members):
            return
        module = _population(pl_module)
        self._measured = [member for member in self._live(module) if step >= member.diagnostics.next_step]
        for member in list(self._measured):
            member.sync(module)
            member.diagnostics.on_train_batch_start(member.trainer, member.shadow, batch, batch_idx)
            with self._nonfinite(module, member):
                self._repeat(trainer, member, batch, batch_idx)

    def quiet_steps(self, trainer: L.Trainer) -> int:
        """Needs to see the steps that are measured."""
        if not self.groups:
            return ANY
        due = [member.diagnostics.next_step for member in self._live(_population(trainer.lightning_module))]
        return max(0, min(due, default=ANY) - trainer.global_step - 1)

    def _repeat(self, trainer: L.Trainer, member: Watched, batch: Batch, batch_idx: int) -> None:
        shadow, watch = member.shadow.train(), member.diagnostics
        optimizer = member.trainer.optimizers[0]
        optimizer.zero_grad()
        member.loss = None
        if watch.probe is not None and PASSES.intersection(watch.probe.groups):
            with _same_random_numbers(), torch.enable_grad():
                with trainer.precision_plugin.train_step_context():
                    loss = shadow.training_step(batch, batch_idx)
                loss.backward()  # type: ignore[no-untyped-call]
            member.loss = loss.detach()
        watch.on_before_optimizer_step(member.trainer, shadow, optimizer)
        if clip := member.trainer.gradient_clip_val:
            torch.nn.utils.clip_grad_norm_(shadow.model.parameters(), clip)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Measures what the step has done to every member, and logs the mean of all."""
        if not self._measured:
            return
        module, measured = _population(pl_module), self._measured
        self._measured = []
        alive = {member.number for member in self._live(module)}
        for member in measured:
            if member.number not in alive:
                continue
            place = module.numbers.index(member.number)
            loss = module.batch_losses[place] if member.loss is None else member.loss
            module.population.write_(place, member.shadow.model)
            with self._nonfinite(module, member):
                member.diagnostics.on_train_batch_end(member.trainer, member.shadow, {"loss": loss}, batch, batch_idx)
        self._log(trainer, module, measured)

    # ---- passes ---------------------------------------------------------------------------------------------------

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Watches the units of every member over the pass."""
        if _counts(trainer):
            module = _population(pl_module)
            for member in self._live(module):
                member.sync(module)
                member.diagnostics.on_validation_start(member.trainer, member.shadow.eval())

    @torch.no_grad()
    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Shows every shadow the rows of the pass."""
        if _counts(trainer) and "units" in self.groups:
            for member in self._live(_population(pl_module)):
                with trainer.precision_plugin.val_step_context():
                    member.shadow(batch.numeric, batch.categorical)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Adds the pass to every member's evidence, and judges."""
        if not _counts(trainer):
            return
        module = _population(pl_module)
        watched = [member for member in self.members if member.shadow.training is False]
        for member in watched:
            scores = module.scores[member.number]
            member.trainer.callback_metrics = {f"val/{name}": torch.tensor(value) for name, value in scores.items()}
            member.shadow.mean_loss = module.epoch_loss(member.number)
            member.diagnostics.on_validation_end(member.trainer, member.shadow)
            member.shadow.train()
        self._log(trainer, module, watched)
        if not trainer.fast_dev_run:  # type: ignore[attr-defined]
            self._report.update(trainer, self.verdicts)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Takes the hooks out, and adds an epoch without a validation pass."""
        module = _population(pl_module)
        for member in self._live(module):
            member.shadow.mean_loss = module.epoch_loss(member.number)
            member.diagnostics.on_train_epoch_end(member.trainer, member.shadow)

    # ---- state ----------------------------------------------------------------------------------------------------

    def state_dict(self) -> dict[str, Any]:
        """Returns every member's evidence and where its schedule stands."""
        return {"members": [member.diagnostics.state_dict() for member in self.members]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Keeps what `state_dict` returned until the members are there."""
        self._loaded = state_dict["members"]

    # ---- parts ----------------------------------------------------------------------------------------------------

    def _live(self, module: PopulationModule) -> list[Watched]:
        """Returns the members that still train."""
        active = module.stack_optimizer.active
        numbers = {number for number, alive in zip(module.numbers, active, strict=True) if alive}
        return [member for member in self.members if member.number in numbers]

    @contextmanager
    def _nonfinite(self, module: PopulationModule, member: Watched) -> Iterator[None]:
        """A member that is not finite is the population's to freeze; here it is only named."""
        try:
            yield
        except NonFiniteError as error:
            found = error.found
            member.diagnostics.evidence.nonfinite = found if isinstance(found, NonFinite) else None
            member.diagnostics.judge()
            self._measured = [one for one in self._measured if one is not member]

    def _note_failure(self, module: PopulationModule, member: Watched) -> None:
        """Names the step in which a member became non-finite, where it was not being measured."""
        evidence = member.diagnostics.evidence
        if member.number in module.failed and evidence.nonfinite is None:
            evidence.nonfinite = NonFinite(step=module.failed[member.number], place="loss", tensor="loss")

    def _log(self, trainer: L.Trainer, module: PopulationModule, members: Collection[Watched]) -> None:
        """Logs the mean and the standard deviation over the members that have a value."""
        columns: dict[str, list[dict[str, float]]] = defaultdict(list)
        for member in members:
            for name, value in member.shadow.logged.items():
                columns[name].append({name: value})
            member.shadow.logged = {}
        values = {key: value for column in columns.values() for key, value in spread(column).items()}
        if values:
            module.record(values, trainer.global_step)


def _population(module: L.LightningModule) -> PopulationModule:
    if not isinstance(module, PopulationModule):
        raise UserError(f"PopulationDiagnostics: {type(module).__name__} is no PopulationModule; use Diagnostics")
    return module


def _counts(trainer: L.Trainer) -> bool:
    return trainer.state.fn == TrainerFn.FITTING and not trainer.sanity_checking


@contextmanager
def _same_random_numbers() -> Iterator[None]:
    """Leaves Python's and torch's generators as they were, for the step itself to draw the same."""
    state = random.getstate()
    with torch.random.fork_rng(devices=[]):
        yield
    random.setstate(state)
