"""The LightningCLI of the bench: what a config holds, and what a run writes."""

from __future__ import annotations

import signal
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import lightning as L
import yaml
from jsonargparse.typing import PositiveInt
from lightning.fabric.plugins.environments.cluster_environment import ClusterEnvironment
from lightning.pytorch.cli import LightningCLI
from lightning.pytorch.loggers import Logger
from torch import Tensor

from mlp_lab.cli import restart
from mlp_lab.cli.checks import check_config, check_extensions, check_training, trainer_mistakes
from mlp_lab.cli.endings import check_saved, end_by_signal, finish_loggers, how_to_go_on, kept_state
from mlp_lab.cli.keys import CheckpointConfig, RunConfig
from mlp_lab.cli.outputs import choose_output, open_folder, shown_path
from mlp_lab.cli.parser import BenchParser, integers_first
from mlp_lab.cli.replicates import replicated
from mlp_lab.cli.resolved_config import plain_config, repeatable
from mlp_lab.cli.results import note_read, record_test, report_fit, report_scores, write_predictions
from mlp_lab.cli.resume import check_changes, nothing_left
from mlp_lab.cli.rollback import Rollback
from mlp_lab.cli.runs import Invocation
from mlp_lab.cli.threads import WORK_KEY, threads_to_build, threads_to_run
from mlp_lab.cli.trust import remember
from mlp_lab.data.mnist import MNISTDataModule
from mlp_lab.data.module import TensorDataModule
from mlp_lab.data.parts import is_fitted_by_older_version
from mlp_lab.data.tabular import TabularDataModule
from mlp_lab.diagnostics.callback import Diagnostics
from mlp_lab.diagnostics.settings import DiagnosticsConfig
from mlp_lab.errors import INTERRUPTED, NonFiniteError, Terminated, UserError
from mlp_lab.model.mlp import resolve_widths
from mlp_lab.paths import expand_path
from mlp_lab.population.best import BestMembers
from mlp_lab.population.diagnosis import PopulationDiagnostics
from mlp_lab.program import program
from mlp_lab.text import printable, without_passwords
from mlp_lab.training.checkpoint_io import AtomicCheckpointIO
from mlp_lab.training.checkpoints import BestCheckpoint, EarlyStop, LastCheckpoint
from mlp_lab.training.module import MLPModule
from mlp_lab.training.progress import EpochTable
from mlp_lab.training.random_state import RandomState
from mlp_lab.training.rate_finder import recorded
from mlp_lab.training.record import RunRecord
from mlp_lab.training.signals import TerminationSignals
from mlp_lab.training.slurm import check_tasks, environment, job_id
from mlp_lab.training.termination import SaveOnSignal
from mlp_lab.training.threads import computing_with, multiplications
from mlp_lab.training.tracking import MetricsCSV, RunDirectory, new_run_id
from mlp_lab.training.weights_and_biases import WandbRun

DATA_MODULES = (MNISTDataModule, TabularDataModule)  # imported so that a config may name them by class name
USER_ERROR = 2  # exit status
TRAINER_DEFAULTS = {
    "devices": 1,
    "max_epochs": 20,
    "num_sanity_val_steps": 0,
    "enable_model_summary": False,
    "log_every_n_steps": 50,
}


class BenchCLI(LightningCLI):
    """Builds data, model and trainer from a config and runs one of Lightning's commands on them.

    Args:
        invocation: The command, its flags, and the run directory that it names, if any.
        signals: What the process has received; None handles no signals.
        run: False only builds data and model (for `summary`).
    """

    def __init__(self, invocation: Invocation, signals: TerminationSignals | None = None, *, run: bool = True) -> None:
        self.invocation, self.signals = invocation, signals or TerminationSignals()
        self.directory: RunDirectory | None = None
        self.metrics: MetricsCSV | None = None
        self.rollback: Rollback | None = None
        super().__init__(
            model_class=MLPModule,
            datamodule_class=TensorDataModule,
            subclass_mode_data=True,
            save_config_callback=None,
            seed_everything_default=0,
            trainer_defaults=TRAINER_DEFAULTS,
            parser_class=BenchParser,
            parser_kwargs={"prog": program()},
            auto_configure_optimizers=False,
            load_from_checkpoint_support=False,
            args=invocation.loaded if run else invocation.loaded[1:],
            run=run,
        )

    def subcommands(self) -> dict[str, set[str]]:  # type: ignore[override]
        """Builds the parser of the command at hand alone: each takes 40 ms."""
        commands = LightningCLI.subcommands().items()
        return {command: skip for command, skip in commands if command == self.invocation.arguments[0]}

    def add_arguments_to_parser(self, parser: BenchParser) -> None:  # type: ignore[override]
        """Adds the bench's own keys."""
        parser.add_argument(
            "--replicates", type=PositiveInt, default=1, help="Networks of successive seeds that train together, >= 1."
        )
        parser.add_argument("--run", type=RunConfig, default=RunConfig())
        parser.add_argument("--checkpoint", type=CheckpointConfig, default=CheckpointConfig())
        parser.add_argument("--diagnostics", type=DiagnosticsConfig, default=DiagnosticsConfig())
        command = self.invocation.arguments[0]
        if command in ("test", "predict"):
            parser.add_argument("--output", type=str | None, help="File to write; by default in the run's directory.")
        if command == "predict":
            parser.add_argument(
                "--safe_cells", action="store_true", help="Put ' before text that a spreadsheet takes for a formula."
            )
            parser.add_argument("--id", type=list[str] | str | None, help="Columns of the table that name its rows.")
        parser.add_lightning_class_args(EarlyStop, "early_stopping")
        parser.set_defaults({"data": {"class_path": "TabularDataModule"}})
        integers_first(parser)
        parser.link_arguments("data.spec_dict", "model.spec", apply_on="instantiate")

    def parse_arguments(self, parser: BenchParser, args: Any) -> None:  # type: ignore[override]
        """Parses; Lightning's own would warn that `sys.argv` holds arguments too."""
        self.config = parser.parse_args(args)

    def _set_seed(self) -> None:
        """Resolves depth and checkpoint, refuses what would only fail once the data is read, and then sets the seed."""
        config = self._get_config()
        if config.get("ckpt_path"):
            config.ckpt_path = str(expand_path("ckpt_path", config.ckpt_path))
        model = config.model
        if model.depth is None:
            model.depth = len(resolve_widths(None, model.width))
        if self.invocation.run is not None and self.invocation.resumed:
            run = self.invocation.run
            check_changes(run, yaml.safe_load(run.effective.read_text("utf-8")), self._plain_config())
        check_config(self.invocation.arguments[0], config)
        super()._set_seed()

    def before_instantiate_classes(self) -> None:
        """Takes spec, split and preprocessing from the checkpoint of `--run`, or of a resumed run of an older version.

        A user's own data module may have no `fitted`: it fits again, and Lightning's loading compares the result.
        """
        arguments = self._get_config().data.get("init_args") or {}
        if self.invocation.checkpoint and "fitted" in arguments and arguments["fitted"] is None:
            arguments["fitted"] = self.invocation.checkpoint
        state = self._get_config().get("ckpt_path")
        if self.invocation.resumed and state and is_fitted_by_older_version(state):
            arguments["fitted"] = str(state)

    def instantiate_classes(self) -> None:
        """Builds everything on one thread, so that initial weights do not depend on the number of cores."""
        with computing_with(threads_to_build(self.invocation)):
            super().instantiate_classes()

    def _run_subcommand(self, subcommand: str) -> None:
        """Runs the command with the number of threads that suits its network and batches."""
        setting = self._get(self.config_init, "run").threads
        with computing_with(threads_to_run(setting, self.work, self.trainer, self.invocation)):
            try:
                super()._run_subcommand(subcommand)
            finally:
                if self.rollback is not None:
                    self.rollback.lock.release()

    def _parse_ckpt_path(self) -> None:
        """Does nothing: Lightning would let the checkpoint's hyperparameters win over the flags."""

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        """Adds to the trainer what every run of its kind has: its directory, record, checkpoints and progress table."""
        settings = {**self._get(self.config_init, "trainer"), **kwargs}
        self.work = self.replicates * multiplications([self.model.model], self.datamodule.batch_size)
        if self.replicates > 1 and self.subcommand:
            data, stop = cast(TensorDataModule, self.datamodule), self._get(self.config_init, "early_stopping")
            self.model = replicated(self._get_config(), data, stop, settings)
        settings["callbacks"] = [recorded(one) for one in _listed(settings["callbacks"])]
        callbacks: list[L.Callback] = []
        if self.subcommand == "fit" and not settings["fast_dev_run"]:
            callbacks = self._open_run(settings)
        else:
            self.directory = self.invocation.run if self.subcommand != "fit" else None
            settings["logger"] = False
        if settings["enable_progress_bar"] is not False and self.subcommand == "fit":
            callbacks.append(EpochTable())
        elif self.subcommand != "fit":
            settings["enable_progress_bar"] = False
        if self.subcommand == "fit" and not any(isinstance(one, Diagnostics) for one in _listed(settings["callbacks"])):
            watch = PopulationDiagnostics if self.replicates > 1 else Diagnostics
            callbacks.append(watch(**asdict(self._get(self.config_init, "diagnostics"))))
        if self.directory is not None:
            settings["default_root_dir"] = str(self.directory.path)
        plugins = _listed(settings.get("plugins"))
        if not any(isinstance(plugin, ClusterEnvironment) for plugin in plugins) and (job := environment()):
            settings["plugins"] = [*plugins, job]
        with trainer_mistakes():
            trainer = self._instantiate_trainer(settings, callbacks)
        check_tasks(trainer.world_size)
        self.signals.replace_handlers_of(trainer)
        return trainer

    def _open_run(self, settings: dict[str, Any]) -> list[L.Callback]:
        config = self.resolved_config()
        remember(config)
        run = self.invocation.run
        run_config = self._get(self.config_init, "run")
        if run is None:
            run = RunDirectory.plan(run_config.name, run_config.dir)
        run.share()
        self.directory = run
        self.rollback = Rollback(run, resumed=self.invocation.resumed)
        self.metrics = metrics = MetricsCSV(run.metrics)
        run_id = run.read_provenance().get("run_id") or new_run_id(run.path)
        loggers = [metrics, *(one for one in _listed(settings["logger"]) if isinstance(one, Logger))]
        for logger in loggers:
            if isinstance(logger, WandbRun):
                logger.attach(run.path, run_id, config)
        settings["logger"] = loggers
        settings["plugins"] = [*_listed(settings.get("plugins")), AtomicCheckpointIO({run.last: run.previous})]
        facts = {
            "run_id": run_id,
            "seed": config["seed_everything"],
            "overrides": [*map(without_passwords, self.invocation.overrides)],
        }
        facts |= {WORK_KEY: self.work} | ({restart.KEY: job} if (job := job_id()) else {})
        checkpoint = self._get(self.config_init, "checkpoint")
        stop = self._get(self.config_init, "early_stopping")
        return [
            self.rollback,
            RunRecord(
                run,
                metrics,
                yaml.safe_dump(config, sort_keys=False, allow_unicode=True),
                facts,
                resumed=self.invocation.resumed,
                restarted=self.invocation.resumed and not self._get_config().get("ckpt_path"),
                latest=run_config.dir is None,
            ),
            RandomState(),
            *([stop] if self.replicates == 1 else []),
            (BestCheckpoint if self.replicates == 1 else BestMembers)(run.best, stop.monitor),
            last := LastCheckpoint(run.last, **asdict(checkpoint)),
            SaveOnSignal(self.signals, last),
        ]

    @property
    def replicates(self) -> int:
        """Networks that are trained together; 1 trains the config's own."""
        return int(self._get_config().replicates)

    def resolved_config(self) -> dict[str, Any]:
        """Returns the whole configuration in plain types: absolute data paths, no run directory."""
        return repeatable(self._plain_config(), self.datamodule)

    def _plain_config(self) -> dict[str, Any]:
        return plain_config(self._parser(self.subcommand), self._get_config())

    def _get_config(self) -> Any:
        return self.config[self.subcommand] if self.subcommand else self.config

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        return {**super()._prepare_subcommand_kwargs(subcommand), "weights_only": True}

    # ---- what follows each command --------------------------------------------------------------------------------

    def fit(self, **kwargs: Any) -> None:
        """Trains; Ctrl-C says how to go on.

        Raises:
            KeyboardInterrupt: Ctrl-C, which Lightning turns into an exit; its message says how to go on.
            Terminated: Another signal; its message says how to go on.
            NonFiniteError: A NaN or an infinity; its verdict has been told, and its message names the checkpoint kept.
            UserError: A mistake that only the training shows, such as a score that has no value.
        """
        trainer = self.trainer
        check_training(trainer, self.model, cast(TensorDataModule, self.datamodule))
        check_extensions(trainer, cast(TensorDataModule, self.datamodule))
        try:
            trainer.fit(**kwargs)
        except UserError:
            finish_loggers(self.trainer, USER_ERROR)
            raise
        except NonFiniteError as error:
            finish_loggers(self.trainer, error.exit_status)
            raise NonFiniteError(f"{error}; {kept_state(self.directory)}", error.found) from error
        except SystemExit as stop:
            if not isinstance(stop.__context__, KeyboardInterrupt):
                raise
            signal.signal(signal.SIGINT, signal.default_int_handler)  # Lightning has switched it off
            finish_loggers(self.trainer, INTERRUPTED)
            raise KeyboardInterrupt(how_to_go_on(self.directory)) from stop
        except Terminated as stop:
            raise end_by_signal(stop, trainer, self.directory) from stop

    def after_fit(self) -> None:
        """Ends the record and prints the result; the run's directory is the last line."""
        if not self.trainer.is_global_zero:
            return
        if self.directory is None:
            print("fast_dev_run: every part ran once; nothing was written")
            return
        best = next(c for c in self.trainer.checkpoint_callbacks if isinstance(c, BestCheckpoint))
        unjudged = best.epoch < 0 and best.failure is None and best.monitor in self.trainer.callback_metrics
        finish_loggers(self.trainer, USER_ERROR if unjudged else 0)
        if unjudged:
            raise UserError(
                f"early_stopping.monitor: {best.monitor} was finite in no validation; {kept_state(self.directory)}"
            )
        if self.rollback is not None and self.invocation.resumed and not self.rollback.trained(self.trainer):
            self.rollback.undo(self.trainer)
            print(printable(nothing_left(self.trainer)))
        report_fit(self.trainer, cast(TensorDataModule, self.datamodule).spec, best)
        print(printable(str(self.directory.path)))
        check_saved(self.trainer, self.directory)

    def validate(self, **kwargs: Any) -> None:
        """Measures on the validation rows."""
        self._measure("validate", kwargs)

    def test(self, **kwargs: Any) -> None:
        """Measures on the test rows, writes `test.json`, and notes in the run's provenance that they were read."""
        self._measure("test", kwargs)

    def _measure(self, stage: str, kwargs: dict[str, Any]) -> None:
        data = cast(TensorDataModule, self.datamodule)
        path = self._output("test.json") if stage == "test" else None
        getattr(self.trainer, stage)(**(kwargs | {"verbose": False}))
        if not self.trainer.is_global_zero:
            return
        scores = {name: float(value) for name, value in self.trainer.callback_metrics.items()}
        batches = self.trainer.num_val_batches if stage == "validate" else self.trainer.num_test_batches
        rows = min(data.part("val" if stage == "validate" else "test").rows, int(sum(batches)) * data.eval_batch_size)
        report_scores(stage, data.spec, rows, scores)
        if path is not None:
            record_test(self.directory, path, data.loaded, rows, scores, Path(self._get_config().ckpt_path))

    def predict(self, **kwargs: Any) -> None:
        """Writes `predictions.csv` into the run's directory, or here without a run."""
        if self.trainer.world_size > 1:
            raise UserError(
                f"trainer.devices: {self.trainer.world_size} processes cannot predict; use --trainer.devices 1"
            )
        config, data = self._get_config(), cast(TensorDataModule, self.datamodule)
        data.keep_cells([config.id] if isinstance(config.id, str) else config.id or [])
        path = self._output("predictions.csv")
        assert path is not None
        logits = cast(list[Tensor], self.trainer.predict(**kwargs))
        rows = write_predictions(path, data, logits, safe_cells=config.safe_cells)
        if self.directory is not None:
            checkpoint = shown_path(Path(config.ckpt_path).resolve(), self.directory)
            facts = {"source": data.loaded.source, "rows": rows, "checkpoint": checkpoint}
            with suppress(OSError):  # a run that may only be read can still predict
                note_read(self.directory, "predict", path, data.loaded, facts)

    def _output(self, name: str) -> Path | None:
        """Returns the file that the command writes; None for a test without a run, a directory and `--output`."""
        config, data = self._get_config(), cast(TensorDataModule, self.datamodule)
        if name == "test.json" and self.directory is None and not (config.output or config.run.dir):
            return None
        folder = open_folder(config.run.dir, self.directory) if config.output is None else Path.cwd()
        return choose_output(name, data.loaded, folder, self.directory, config.output)


def _listed(setting: Any) -> list[Any]:
    """Returns a setting that may be one thing, several, or a switch as a list of things."""
    if setting is None or isinstance(setting, bool):
        return []
    return list(setting) if isinstance(setting, Sequence) and not isinstance(setting, str) else [setting]
