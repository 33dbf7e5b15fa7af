"""Weights & Biases: one run per run directory, with its whole configuration and one meaning of 'step'."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from lightning.fabric.loggers.logger import rank_zero_experiment
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities import rank_zero_only

from mlp_lab.errors import UserError
from mlp_lab.text import without_passwords
from mlp_lab.training.checkpoints import HIGHER_IS_BETTER

if TYPE_CHECKING:
    from wandb import Run

STEP = "trainer/global_step"
LOWER_IS_BETTER = ("loss", "rmse", "mae")
OF_AGENT = ("project", "entity", "id")  # what the agent of a W&B sweep has chosen for its run


_log = logging.getLogger(__name__)


def masked(config: Any) -> Any:
    """Returns a configuration whose URLs have no password."""
    if isinstance(config, Mapping):
        return {key: masked(value) for key, value in config.items()}
    if isinstance(config, list | tuple):
        return [masked(value) for value in config]
    return without_passwords(config) if isinstance(config, str) else config


class WandbRun(WandbLogger):
    """Logs a run to Weights & Biases under a stable id, online or offline (`WANDB_MODE=offline`).

    Give it as `trainer.logger` (`configs/wandb.yaml` does); the command line attaches the run directory and the
    resolved configuration. A resumed online run goes on under its id. Offline, W&B cannot append to a run, so a resumed
    run writes a second segment under the same id that begins with the rows of `metrics.csv`.

    Args:
        project: The W&B project.
        entity: The user or team; None means the default of the login.
        name: The run's name on the dashboard; None means the run directory's.
        group: Runs shown together, such as one study's.
        job_type: What the run does.
        tags: Labels to filter by.
        notes: Free text.
        log_checkpoint: Upload the best checkpoint as an artifact when online.
    """

    def __init__(
        self,
        project: str = "mlp_lab",
        entity: str | None = None,
        name: str | None = None,
        group: str | None = None,
        job_type: str = "fit",
        tags: Sequence[str] = (),
        notes: str | None = None,
        log_checkpoint: bool = True,
    ) -> None:
        super().__init__(project=project, name=name)
        self.settings: dict[str, Any] = {
            "project": project,
            "entity": entity,
            "group": group,
            "job_type": job_type,
            "tags": list(tags),
            "notes": notes,
        }
        self.log_checkpoint = log_checkpoint
        self.derive: Callable[[Mapping[str, float]], Mapping[str, float]] | None = None  # values to add to a row
        self._config: dict[str, Any] = {}
        self._lost = False  # W&B's process has ended before the run; Slurm sends SIGTERM to every process of a job

    def attach(self, directory: Path, run_id: str, config: Mapping[str, Any]) -> None:
        """Ties the logger to a run: where its files go, its stable id, and the configuration to show."""
        self.settings |= {"dir": str(directory), "id": run_id, "name": self._name or run_id}
        self._config = dict(config)

    @rank_zero_only
    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Does nothing: the whole configuration was given to `attach`."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Logs one row, and what `derive` makes of it."""
        if self._lost:
            return
        try:
            super().log_metrics({**metrics, **self.derive(metrics)} if self.derive else metrics, step)
        except ConnectionError:
            self._lost = True
            _log.warning("W&B's own process has ended: later rows are in metrics.csv alone")

    @rank_zero_only
    def replay(self, rows: list[dict[str, str]]) -> None:
        """Begins a resumed offline segment with the rows of `metrics.csv`; online, W&B has them already."""
        if self.experiment.offline:
            for row in rows:
                values = {name: float(value) for name, value in row.items() if value != "" and name != "step"}
                self.log_metrics(values, step=int(row["step"]))

    @property
    @rank_zero_experiment
    def experiment(self) -> Run:
        """The W&B run, started on first use."""
        if self._experiment is None:
            self._experiment = self._start()
        return self._experiment  # type: ignore[return-value]

    def _start(self) -> Run:
        taken = OF_AGENT if os.environ.get("WANDB_SWEEP_ID") else ()
        mine = {name: value for name, value in self.settings.items() if name not in taken}
        run = open_run("trainer.logger", config=self._config, **mine)
        run.define_metric(STEP)
        run.define_metric("*", step_metric=STEP, step_sync=True)
        for stage in ("train", "val"):
            for name in LOWER_IS_BETTER:
                run.define_metric(f"{stage}/{name}", step_metric=STEP, step_sync=True, summary="min")
            for name in HIGHER_IS_BETTER:
                run.define_metric(f"{stage}/{name}", step_metric=STEP, step_sync=True, summary="max")
        return run

    @rank_zero_only
    def finish(
        self, best: Path | None, summary: Mapping[str, float], exit_code: int = 0, *, preempted: bool = False
    ) -> None:
        """Ends the run: final numbers into the summary, the best checkpoint as an artifact when online.

        Args:
            best: The best checkpoint, or None.
            summary: Numbers for the summary.
            exit_code: 0, or the status of a run that failed.
            preempted: Show the run as preempted where its status is not 0: it goes on later.
        """
        import wandb

        if self._experiment is None:
            return
        try:
            self._end(best, summary, exit_code, preempted=preempted)
        except ConnectionError:  # W&B's process has ended: another one goes on with the run, to say how it has ended
            with suppress(ConnectionError):
                wandb.teardown()
            self._experiment = None
            self._end(best, summary, exit_code, preempted=preempted)
        self._experiment, self._lost = None, False

    def _end(self, best: Path | None, summary: Mapping[str, float], exit_code: int, *, preempted: bool) -> None:
        import wandb

        run = self.experiment
        run.summary.update(dict(summary))
        if best is not None and self.log_checkpoint and not run.offline:
            artifact = wandb.Artifact(f"model-{run.id}", type="model", metadata=dict(summary))
            artifact.add_file(str(best))
            run.log_artifact(artifact, aliases=["best"])
        if preempted:
            run.mark_preempting()
        run.finish(exit_code)


def open_run(key: str, *, silent: bool = False, **settings: Any) -> Run:
    """Starts a W&B run, or goes on with the one that has its id; offline, that is a second segment.

    Args:
        key: The config key that asked for it.
        silent: Print not even the run's address.
        settings: Arguments of `wandb.init`.

    Raises:
        UserError: W&B did not start.
    """
    import wandb

    Path(settings.get("dir") or ".").mkdir(parents=True, exist_ok=True)
    try:
        offline = is_offline()  # the first that reads W&B's variables
        quiet = wandb.Settings(quiet=True, silent=silent, console="off")  # of its output, the run's address is enough
        settings["config"] = masked(settings.get("config"))
        return wandb.init(**settings, resume=None if offline else "allow", settings=quiet)
    except wandb.errors.Error as error:
        raise UserError(
            f"{key}: W&B did not start ({error}); log in with `wandb login`, or set WANDB_MODE=offline"
        ) from error


def is_offline() -> bool:
    """Says whether W&B writes files only.

    Raises:
        UserError: A variable such as WANDB_MODE has a value that W&B does not take.
    """
    import wandb
    from pydantic import ValidationError

    try:
        return wandb.setup().settings.mode in ("offline", "dryrun")
    except ValidationError as error:  # of a variable or of W&B's own settings file
        first = error.errors()[0]
        name = f"WANDB_{'_'.join(map(str, first['loc'])).upper()}"
        raise UserError(f"{name}: {first['input']!r} is not accepted; {first['msg'].lower()}") from error
