"""A trial from the base config and a point's settings, through the parser of `fit`, so that every check is the same."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L

from mlp_lab.cli.bench import BenchCLI
from mlp_lab.cli.checks import check_config, check_extensions, check_monitor, check_training, trainer_mistakes
from mlp_lab.cli.mistakes import one_line
from mlp_lab.cli.parser import known_keys
from mlp_lab.cli.runs import expand
from mlp_lab.data.module import TensorDataModule
from mlp_lab.errors import UserError, unknown
from mlp_lab.model.tasks import SCORES
from mlp_lab.sweep.chunks import Chunks
from mlp_lab.sweep.population import Together
from mlp_lab.sweep.ranges import as_flag
from mlp_lab.sweep.runs import Backend
from mlp_lab.sweep.serial import DECADES, Alone, Run
from mlp_lab.sweep.settings import SweepSettings
from mlp_lab.training.module import MLPModule
from mlp_lab.training.slurm import one_process_trainer
from mlp_lab.training.threads import computing_with

QUIET = {
    "logger": False,
    "callbacks": None,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}
PLAIN = ("model.", "trainer.", "early_stopping.", "diagnostics.")  # groups without classes that a key may choose
PLAIN_TYPES = (type(None), bool, int, float, str, list, tuple)


class BaseCLI(BenchCLI):
    """The base config with its data and its model, but no trainer; the split and the batches are those of its seed.

    Trials differ in the seed of their weights. Without a `data.seed` each would have validation rows of its own, and
    their scores could not be compared.
    """

    def parse_arguments(self, parser: Any, args: Any) -> None:
        """Parses, and gives the data a seed of their own where they have none."""
        super().parse_arguments(parser, args)
        self.fix_data_seed(self.config)

    def fix_data_seed(self, config: Any) -> None:
        """Sets `data.seed` to the base config's seed, unless it is set or the data module has none."""
        arguments = config.data.get("init_args") or {}
        if "seed" in arguments and arguments["seed"] is None:
            seed = config.seed_everything
            arguments["seed"] = seed if isinstance(seed, int) and not isinstance(seed, bool) else 0

    def instantiate_trainer(self, **kwargs: Any) -> L.Trainer:
        """Builds none: every trial has its own."""
        return None  # type: ignore[return-value]


class TrialBuilder:
    """Builds what a trial trains.

    Args:
        arguments: `--config BASE` and flags, as for `fit`.

    Raises:
        UserError: A mistake in them.
    """

    def __init__(self, arguments: Sequence[str]) -> None:
        self._invocation = expand("summary", arguments)
        self._cli = BaseCLI(self._invocation, run=False)
        self._base = copy.deepcopy(self._cli.config)
        if (replicates := int(self._base.replicates)) > 1:
            advice = f"leave it out; --seeds {replicates} makes each the mean of as many"
            raise UserError(f"replicates: {replicates} is for `fit`; a sweep's trials are single networks ({advice})")
        self._parsed = self._cli.parser.parse_args(self._invocation.loaded[1:])
        self._known = frozenset(known_keys(self._cli.parser))
        self._fix_order(self.data)
        self._data: dict[str, TensorDataModule] = {_key(self._base.data): self.data}

    @property
    def _data_seed(self) -> int:
        seed = self._base.seed_everything
        return seed if isinstance(seed, int) and not isinstance(seed, bool) else 0

    def _fix_order(self, data: TensorDataModule) -> None:
        """Gives all trials the same order of the rows, whatever their own seed."""
        if data.seed is None:
            data.seed = self._data_seed

    @property
    def data(self) -> TensorDataModule:
        """The data of the base config."""
        data = self._cli.datamodule
        assert isinstance(data, TensorDataModule)
        return data

    @property
    def config(self) -> dict[str, Any]:
        """The base config, whole, in plain types."""
        return self._cli.resolved_config()

    @property
    def data_identity(self) -> dict[str, str]:
        """Name and fingerprints of the base config's data, by which a study tells them from others."""
        group = self.config["data"]
        arguments = group["init_args"]
        name = arguments.get("path") or arguments.get("dataset") or group["class_path"].rpartition(".")[2]
        return {"name": str(name), "fingerprint": self.data.fingerprint, "split": self.data.split_fingerprint}

    @property
    def depth(self) -> int:
        """Hidden layers of the base config."""
        return int(self._base.model.depth)

    @property
    def metrics(self) -> list[str]:
        """The validation metrics that every run logs, and the one of the diagnostics."""
        return [*(f"val/{name}" for name in ("loss", *SCORES[self.data.spec.task])), DECADES]

    def check_metric(self, metric: str) -> None:
        """Refuses a metric of the study that no run logs, or that has no value on the validation rows.

        Raises:
            UserError: It is one.
        """
        if metric not in self.metrics:
            raise unknown("study.metric", metric, self.metrics)
        if metric != DECADES:
            check_monitor(metric, self.data, self._base.trainer.limit_val_batches, key="study.metric")

    def parse(self, settings: Mapping[str, object]) -> Any:
        """Returns the parser's namespace for the base config with a point's settings.

        Raises:
            UserError: The config has no such key, or does not take the value.
        """
        words = [f"--{key}={as_flag(value)}" for key, value in settings.items()]
        config = self._parse_upon_base(words) if all(map(self._is_plain, settings)) else None
        if config is None:
            config = self._cli.parser.parse_args([*self._invocation.loaded[1:], *words])
        self._cli.fix_data_seed(config)
        check_config("fit", config)
        return config

    def _is_plain(self, key: str) -> bool:
        """Says whether a key holds one value: no group, and nothing that names a class and its arguments."""
        known = key in self._known and not any(other.startswith(f"{key}.") for other in self._known)
        return known and key.startswith(PLAIN) and isinstance(self._parsed.get(key), PLAIN_TYPES)

    def _parse_upon_base(self, words: Sequence[str]) -> Any:
        """Parses flags alone and checks the whole; None where that fails, for the whole parse to say why.

        It spares two thirds of a parse: the base config's files, its flags and every default.
        """
        try:
            return self._cli.parser.parse_args(words, namespace=copy.deepcopy(self._parsed), defaults=False)
        except UserError:
            return None

    def check(self, settings: Mapping[str, object], *, here: bool = True) -> None:
        """Tries the settings without training.

        Args:
            settings: of a point.
            here: whether trials are trained on this machine, so that its devices must do.

        Raises:
            UserError: They do not fit the config, the model, the data or the trainer.
        """
        config = self.parse(settings)
        data = self._data_of(config)
        module = MLPModule(data.spec_dict, **_plain(config.model))
        check_monitor(config.early_stopping.monitor, data, config.trainer.limit_val_batches)
        if here:
            trainer = build_trainer(trainer_settings(config))
            check_training(trainer, module, data)
            check_extensions(trainer, data)

    def build(self, settings: Mapping[str, object], seed: int) -> Run:
        """Builds module, data and the trainer's settings, seeded as `fit` seeds them.

        Raises:
            UserError: They do not fit together.
        """
        config = self.parse(settings)
        data = self._data_of(config)
        L.seed_everything(seed, workers=True, verbose=False)
        with computing_with(1):  # as `fit` does
            module = MLPModule(data.spec_dict, **_plain(config.model))
        trainer = trainer_settings(config)
        stop, diagnostics = _plain(config.early_stopping), _plain(config.diagnostics)
        return Run(module=module, data=data, trainer=trainer, early_stopping=stop, diagnostics=diagnostics)

    def _data_of(self, config: Any) -> TensorDataModule:
        """Returns the data of a config; the last ones are kept, for most trials share them."""
        key = _key(config.data)
        if key not in self._data:
            quiet = config.clone()
            if "verbose" in quiet.data.init_args:
                quiet.data.init_args.verbose = False  # the data of the base config is described once, for all trials
            L.seed_everything(self._data_seed, workers=True, verbose=False)  # of a module without `seed`
            built = self._instantiated(quiet).data
            assert isinstance(built, TensorDataModule)
            self._fix_order(built)
            self._data = {_key(self._base.data): self.data, key: built}
        return self._data[key]

    def _instantiated(self, config: Any) -> Any:
        """Builds the classes of a config; the parser wraps the errors of their constructors in its own.

        Raises:
            UserError: A class refused its arguments.
        """
        try:
            return self._cli.parser.instantiate_classes(config)
        except Exception as error:
            if isinstance(error, UserError) or (line := one_line(error)) is None:
                raise
            raise UserError(line) from error


def trainer_settings(config: Any) -> dict[str, Any]:
    """Returns the arguments of a trial's trainer; it trains on one device, however many there are."""
    settings = {**config.trainer.as_dict(), **QUIET}
    return settings | ({"devices": 1} if settings.get("devices") == "auto" else {})


def build_trainer(settings: Mapping[str, Any]) -> L.Trainer:
    """Builds the trainer of a trial.

    Raises:
        UserError: It takes no such arguments, or trains in several processes: each of them would be taken for a worker
            of the sweep; or it leaves no validation to judge a trial by.
    """
    with trainer_mistakes():
        trainer = one_process_trainer(settings)
    if trainer.world_size > 1:
        raise UserError(
            f"trainer.devices: {settings.get('devices')} means {trainer.world_size} processes, and a trial trains in "
            "one; use 1, and a worker for each device (cluster.workers)"
        )
    if not trainer.limit_val_batches:
        raise UserError("trainer.limit_val_batches: 0 leaves nothing to judge a trial by; use 1 or more, or 1.0")
    return trainer


def build_backend(settings: SweepSettings, builder: TrialBuilder, directory: Path) -> Backend:
    """Returns who trains a sweep's trials; `directory` is the sweep's, where stacks are kept while they train."""
    from mlp_lab.sweep.search import default_directions

    directions = settings.study.direction or default_directions(settings.study.metric)
    common: dict[str, Any] = {
        "metrics": settings.study.metric,
        "maximize": tuple(direction == "maximize" for direction in directions),
        "seeds": settings.seeds,
        "prune": settings.diagnosis.prune,
    }
    if settings.backend == "serial" or settings.population == 1:
        return Alone(builder, **common)
    if settings.backend != "population":
        raise UserError(f"backend: {settings.backend} is not available yet; use population or serial")
    if DECADES in settings.study.metric:
        raise UserError(f"study.metric: {DECADES} is measured by a run's own diagnostics; use backend: serial")
    chunks = Chunks(directory, settings.checkpoint_seconds)
    memory = None if settings.memory is None else round(settings.memory * 1e9)
    return Together(builder, batch=settings.population, chunks=chunks, memory=memory, **common)


def _key(data: Any) -> str:
    return json.dumps(_plain(data), sort_keys=True, default=str)


def _plain(namespace: Any) -> dict[str, Any]:
    """Returns a group of the parser's namespace as a dict, without what is linked."""
    values = namespace.as_dict() if hasattr(namespace, "as_dict") else dict(vars(namespace))
    return {key: value for key, value in values.items() if key != "spec"}
