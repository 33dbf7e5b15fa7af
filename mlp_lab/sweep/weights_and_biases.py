"""A search on Weights & Biases: a group with the study's name, and in it a run per trial or per population.

A run is written when its trials have ended, from what the study keeps of them; its id is that of the first trial. The
study notes which trials are shown: what a worker told and was killed before it showed, the next search on its machine
shows.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from optuna import Study
from optuna.trial import FrozenTrial

from mlp_lab.errors import UserError
from mlp_lab.sweep.facts import WORKER
from mlp_lab.sweep.interrupts import uninterrupted
from mlp_lab.sweep.pruning import worth
from mlp_lab.sweep.results import state_of, trial_config
from mlp_lab.sweep.runs import Point
from mlp_lab.sweep.settings import WandbSettings
from mlp_lab.sweep.workers import alive
from mlp_lab.training.weights_and_biases import is_offline, open_run

if TYPE_CHECKING:
    from wandb import Run

MOST = 50  # trials that `auto` gives a run each
EPOCH = "epoch"
SHOWN = "wandb "  # attributes of the study: this and a run's first trial, with the numbers of its trials


def check_login(settings: WandbSettings) -> None:
    """Asks for the login before anything is trained.

    Raises:
        UserError: There is none.
    """
    if settings.runs == "none":
        return
    import wandb

    if is_offline():
        return
    try:
        wandb.login()
    except wandb.errors.Error as error:
        raise UserError(
            f"wandb.runs: there is no login ({error}); use `wandb login`, or set WANDB_MODE=offline"
        ) from error


class Page(NamedTuple):
    """What one W&B run says."""

    name: str
    config: dict[str, Any]
    rows: list[dict[str, float]]
    summary: dict[str, Any]
    status: int = 0


class Dashboard:
    """Shows the trials that have ended.

    Args:
        settings: What is shown, and where.
        study: The study.
        metrics: Its metrics.
        base: The resolved config that every trial starts from.
        directory: Where W&B keeps its files.
        budget: Trials of the search; None where time is the budget.
        show: Prints a line.
    """

    def __init__(
        self,
        settings: WandbSettings,
        study: Study,
        metrics: Sequence[str],
        *,
        base: Mapping[str, Any],
        directory: Path,
        budget: int | None,
        show: Callable[[str], None] = print,
    ) -> None:
        self.settings, self.study, self.metrics = settings, study, tuple(metrics)
        self.base, self.directory, self.show = base, directory, show
        few = budget is not None and budget <= MOST
        self.runs = {"auto": "trial" if few else "population"}.get(settings.runs, settings.runs)
        self._batch: list[tuple[FrozenTrial, Point]] = []
        self._address = ""

    def trial(self, trial: FrozenTrial, point: Point) -> None:
        """Shows a trial that was told, now or with its population."""
        if self.runs == "population":
            self._batch.append((trial, point))
        elif self.runs == "trial":
            self._write([trial], self._page(trial, point))

    def end_batch(self) -> None:
        """Shows the population whose trials were told."""
        batch, self._batch = sorted(self._batch, key=lambda one: one[0].number), []
        if batch:
            self._write([trial for trial, _ in batch], self._joint_page(batch))

    @uninterrupted()
    def missing(self) -> list[FrozenTrial]:
        """Returns the trials that were told by workers of this machine which have died, and are not shown."""
        if self.runs == "none":
            return []
        facts = self.study.user_attrs
        shown = {number for key, numbers in facts.items() if key.startswith(SHOWN) for number in numbers}
        trials = self.study.get_trials(deepcopy=False)
        told = [
            one for one in trials if one.state.is_finished() and state_of(one) != "lost" and one.number not in shown
        ]
        return [one for one in told if alive(one.user_attrs.get(WORKER, "")) is False]

    @uninterrupted()
    def _note(self, numbers: Sequence[int]) -> None:
        self.study.set_user_attr(f"{SHOWN}{numbers[0]}", list(numbers))  # a key for each run: workers may write at once

    def _page(self, trial: FrozenTrial, point: Point) -> Page:
        """Puts one trial into a run."""
        config = {**trial_config(self.base, point), "study": self.study.study_name, "trial": trial.number}
        rows = [{EPOCH: epoch, self.metrics[0]: value} for epoch, value in sorted(trial.intermediate_values.items())]
        failed = state_of(trial) == "failed"
        return Page(f"trial {trial.number}", config, rows, self._facts(trial), int(failed))

    def _joint_page(self, batch: Sequence[tuple[FrozenTrial, Point]]) -> Page:
        """Puts trials into a run, a line each; in its summary stands the best of them."""
        trials = [trial for trial, _ in batch]
        points = {f"trial {point.number}": {**point.settings, "seed_everything": point.seed} for _, point in batch}
        rows = []
        for epoch in sorted({epoch for trial in trials for epoch in trial.intermediate_values}):
            reached = [trial for trial in trials if epoch in trial.intermediate_values]
            lines = {f"{self.metrics[0]}/trial {one.number}": one.intermediate_values[epoch] for one in reached}
            rows.append({EPOCH: epoch, **lines})
        summary = {f"{key}/trial {one.number}": value for one in trials for key, value in self._facts(one).items()}
        complete = [trial for trial in trials if state_of(trial) == "complete"]
        if complete and len(self.metrics) == 1:
            maximize = self.study.directions[0].name == "MAXIMIZE"
            best = min(complete, key=lambda trial: worth(trial.values[0], maximize))
            summary |= {self.metrics[0]: best.values[0], "best trial": best.number}
        name = f"trials {trials[0].number} to {trials[-1].number}" if len(trials) > 1 else f"trial {trials[0].number}"
        config = {**self.base, "study": self.study.study_name, "trials": points}
        return Page(name, config, rows, summary)

    def _facts(self, trial: FrozenTrial) -> dict[str, Any]:
        """Returns a trial's cells in the table of runs: its best values, not its last."""
        facts = {name: trial.user_attrs.get(name) for name in ("epochs", "seconds")}
        codes = [str(verdict.get("code")) for verdict in trial.user_attrs.get("verdicts", [])]
        first = {"diagnosis/first": codes[0]} if codes else {}
        return {**dict(zip(self.metrics, trial.values or [], strict=False)), **facts, "state": state_of(trial), **first}

    def _say_where(self, run: Run) -> None:
        """Says once where the runs are; an offline run has no address, and W&B warns of every question for one."""
        if self._address:
            return
        if run.offline:
            self._address = str(self.directory / "wandb")
            command = f"wandb sync {shlex.quote(self._address)}/offline-run-*"
            self.show(f"wandb: offline, the runs are kept in {self._address}; upload them with: {command}")
        elif run.project_url:
            self._address = run.project_url
            self.show(f"wandb: the group {self.study.study_name} of {self._address}")

    def _write(self, trials: Sequence[FrozenTrial], page: Page) -> None:
        """Writes a run; what W&B cannot do costs the search nothing but this run."""
        import wandb

        first = trials[0]
        try:
            run = open_run(
                "wandb.runs",
                silent=True,
                reinit="create_new",
                project=self.settings.project,
                entity=self.settings.entity,
                group=self.study.study_name,
                job_type="sweep",
                id=f"{self.study.study_name}-{first.number}-{first.datetime_start:%Y%m%d%H%M%S}",
                name=page.name,
                dir=str(self.directory),
                config=page.config,
            )
            self._say_where(run)
            run.define_metric(EPOCH)
            run.define_metric("*", step_metric=EPOCH)
            for row in page.rows:
                run.log(row)
            run.summary.update(page.summary)
            run.finish(page.status)
            self._note([trial.number for trial in trials])
        except (UserError, wandb.errors.Error, OSError) as error:
            self.show(f"wandb: {page.name} is not shown ({error}); it is kept in the study")
