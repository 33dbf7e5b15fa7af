"""What a sweep's YAML holds, without the space: the study, its base config and its budget."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from typing import Any, TypeVar

from mlp_lab.errors import UserError, nearest

BACKENDS = ("population", "serial", "slurm")
WANDB_RUNS = ("none", "auto", "trial", "population")
DIRECTIONS = ("minimize", "maximize")
LARGEST_SEED = 2**32 - 1

T = TypeVar("T")


def _at_least(key: str, value: int | None, least: int) -> None:
    if value is not None and value < least:
        raise UserError(f"{key}: {value} is not accepted; use {least} or more")


@dataclass(frozen=True, kw_only=True)
class Choice:
    """Something of a registry by its name, with arguments."""

    name: str
    """The name: a key of the registry."""
    arguments: dict[str, Any] = field(default_factory=dict)
    """Keyword arguments."""

    @classmethod
    def read(cls, key: str, content: object) -> Choice:
        """Reads `tpe` or `{name: tpe, n_startup_trials: 20}`.

        Raises:
            UserError: It is neither.
        """
        if isinstance(content, str):
            return cls(name=content)
        if isinstance(content, Mapping) and isinstance(content.get("name"), str):
            rest = {str(name): value for name, value in content.items() if name != "name"}
            return cls(name=content["name"], arguments=rest)
        raise UserError(f"{key}: {content!r} is not accepted; use a name, or {{name: NAME, ARGUMENT: VALUE}}")


@dataclass(frozen=True, kw_only=True)
class StudySettings:
    """What is sought, how, and where it is kept."""

    name: str = "sweep"
    """Name of the study: it is written to `runs/sweeps/NAME`."""
    metric: tuple[str, ...] = ("val/loss",)
    """The validation metrics to better; several make it a search for their Pareto front."""
    direction: tuple[str, ...] = ()
    """minimize or maximize, one per metric; left out, what is better for each metric."""
    sampler: Choice = Choice(name="tpe")
    """A key of `samplers.SAMPLERS`, or the dotted path of an Optuna sampler, with its arguments."""
    pruner: Choice = Choice(name="asha")
    """A key of `pruning.PRUNERS`, with its arguments."""
    storage: str | None = None
    """An SQLite file in the sweep's directory (null), `journal:FILE`, `sqlite:///FILE` or `postgresql://...`."""
    retries: int = 2
    """How often a trial that was cut off is asked again, not counting the times that it got to a new checkpoint."""
    heartbeat: int = 15
    """Seconds between a worker's signs of life; after four times as long without one its trials are given up."""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"[\w.+-]+", self.name) or self.name.startswith("."):
            raise UserError(f"study.name: {self.name!r} cannot name a folder; use letters, digits, '-', '_' and '.'")
        if self.direction and len(self.direction) != len(self.metric):
            raise UserError(f"study.direction: {len(self.direction)} for {len(self.metric)} metrics; use one for each")
        for word in self.direction:
            if word not in DIRECTIONS:
                raise UserError(f"study.direction: {word!r} is unknown; accepted: minimize, maximize")
        if len(self.metric) > 1 and self.pruner.name != "none":
            raise UserError(f"study.pruner: {self.pruner.name} compares one metric; with several, use none")
        _at_least("study.retries", self.retries, 0)
        _at_least("study.heartbeat", self.heartbeat, 1)


@dataclass(frozen=True, kw_only=True)
class DiagnosisSettings:
    """What the diagnosis does in a search."""

    prune: tuple[str, ...] = ()
    """Codes of verdicts (`mlp_lab.diagnostics.verdicts.CODES`) that end a trial."""


@dataclass(frozen=True, kw_only=True)
class ClusterSettings:
    """The workers of the backend slurm: jobs of one node each, that share the study."""

    executor: str = "slurm"
    """slurm, or local: the same workers as processes of this machine, which all run at once and share its memory; of
    the other keys, workers, backend, minutes, gpus, cpus and setup count there."""
    workers: int = 1
    """Jobs of the array."""
    at_once: int | None = None
    """How many of them run at a time; all, if left out."""
    backend: str = "population"
    """How each worker trains: population or serial."""
    minutes: int = 240
    """Time limit of a job; one whose time is up, or that is preempted, is queued again."""
    gpus: int = 0
    """GPUs of a job."""
    cpus: int | None = None
    """Cores of a job, and the threads it uses."""
    memory: float | None = None
    """Memory of a job, in GB."""
    partition: str | None = None
    """Partition that it is submitted to."""
    account: str | None = None
    """Account that it is charged to."""
    extra: dict[str, Any] = field(default_factory=dict)
    """More options of `sbatch`: {qos: high, exclude: node7}."""
    setup: tuple[str, ...] = ()
    """Shell commands that a job begins with, such as `module load cuda`."""

    def __post_init__(self) -> None:
        for name, accepted in (("executor", ("slurm", "local")), ("backend", BACKENDS[:2])):
            if getattr(self, name) not in accepted:
                value = getattr(self, name)
                raise UserError(f"cluster.{name}: {value!r} is unknown; accepted: {', '.join(accepted)}")
        for name in ("workers", "at_once", "minutes", "cpus"):
            _at_least(f"cluster.{name}", getattr(self, name), 1)
        _at_least("cluster.gpus", self.gpus, 0)
        if self.memory is not None and not self.memory > 0:
            raise UserError(f"cluster.memory: {self.memory:g} GB is none; use a number above 0")


@dataclass(frozen=True, kw_only=True)
class WandbSettings:
    """What a search shows on Weights & Biases: runs in a group that has the study's name."""

    runs: str = "none"
    """none; trial, a run per trial; population, a run per batch with a line per trial; or auto, a run per trial in a
    search of no more than 50."""
    project: str = "mlp_lab"
    """The W&B project."""
    entity: str | None = None
    """The user or team; null means the default of the login."""

    def __post_init__(self) -> None:
        if self.runs not in WANDB_RUNS:
            raise UserError(f"wandb.runs: {self.runs!r} is unknown; accepted: {', '.join(WANDB_RUNS)}")


@dataclass(frozen=True, kw_only=True)
class SweepSettings:
    """The YAML of a sweep."""

    study: StudySettings = StudySettings()
    """What is sought."""
    base: str = ""
    """The config that every trial starts from."""
    trials: int | None = None
    """Trials to finish: trained, pruned or failed by themselves; what is cut off does not count."""
    minutes: float | None = None
    """No batch begins later than this after the start."""
    backend: str = "population"
    """population (trained together), serial (one after another) or slurm (by the workers of `cluster`)."""
    population: int = 16
    """Trials that are asked and trained together; 1 is one at a time."""
    checkpoint_seconds: float | None = 30.0
    """Least time between two checkpoints of trials that are trained together; null or 0 writes none."""
    seeds: int = 1
    """Runs per trial; above 1 its value is their mean."""
    seed: int = 0
    """Seed of the sampler, and of the first trial's run."""
    space: dict[str, Any] = field(default_factory=dict)
    """Config key to range: see `mlp_lab.sweep.space`."""
    enqueue: tuple[dict[str, Any], ...] = ()
    """Points to try first: config key to value; keys that are left out are sampled."""
    diagnosis: DiagnosisSettings = DiagnosisSettings()
    """What the diagnosis does."""
    cluster: ClusterSettings = ClusterSettings()
    """The workers of the backend slurm."""
    wandb: WandbSettings = WandbSettings()
    """What is shown on Weights & Biases."""

    def __post_init__(self) -> None:
        if not self.base:
            raise UserError("base: name the config that every trial starts from, such as configs/digits.yaml")
        if not self.space:
            raise UserError("space: there is nothing to search; name config keys with their ranges")
        if self.trials is None and self.minutes is None and self.study.sampler.name != "grid":
            raise UserError("trials: give the number of trials, or `minutes`")
        if self.backend not in BACKENDS:
            guess = nearest(self.backend, BACKENDS)
            hint = f" (did you mean {guess!r}?)" if guess else ""
            raise UserError(f"backend: {self.backend!r} is unknown{hint}; accepted: {', '.join(BACKENDS)}")
        for name in ("trials", "population", "seeds"):
            _at_least(name, getattr(self, name), 1)
        _at_least("seed", self.seed, 0)
        if self.seed > LARGEST_SEED:
            raise UserError(f"seed: {self.seed} is not a seed; accepted: 0 to {LARGEST_SEED}")
        if self.checkpoint_seconds is not None and not self.checkpoint_seconds >= 0:
            raise UserError(f"checkpoint_seconds: {self.checkpoint_seconds:g} is not a time; use 0 (none) or more")
        if self.minutes is not None and not self.minutes > 0:
            raise UserError(f"minutes: {self.minutes:g} leaves no time; use a number above 0")

    @classmethod
    def read(cls, content: Mapping[str, Any]) -> SweepSettings:
        """Reads the mapping of a YAML file.

        Raises:
            UserError: A key is unknown, or a value is of another type or out of range.
        """
        values = _known(cls, "", content)
        study = _known(StudySettings, "study", values.pop("study", None) or {})
        for name in ("metric", "direction"):
            if name in study:
                study[name] = _names(f"study.{name}", study[name])
        for name in ("sampler", "pruner"):
            if name in study:
                study[name] = Choice.read(f"study.{name}", study[name])
        diagnosis = _known(DiagnosisSettings, "diagnosis", values.pop("diagnosis", None) or {})
        if "prune" in diagnosis:
            diagnosis["prune"] = _names("diagnosis.prune", diagnosis["prune"])
        cluster = values.pop("cluster", None) or {}
        cluster = _known(ClusterSettings, "cluster", {"executor": cluster} if isinstance(cluster, str) else cluster)
        if "setup" in cluster:
            cluster["setup"] = _names("cluster.setup", cluster["setup"])
        if not isinstance(cluster.get("extra", {}), Mapping):
            raise UserError(f"cluster.extra: {cluster['extra']!r} is not a group of options; use {{qos: high}}")
        if not isinstance(values.get("space", {}), Mapping):
            raise UserError(f"space: {values['space']!r} is not a group of keys; write them below it, indented")
        wandb = values.pop("wandb", None) or {}
        wandb = _known(WandbSettings, "wandb", {"runs": wandb} if isinstance(wandb, str) else wandb)
        values["enqueue"] = _points(values.get("enqueue") or [])
        return cls(
            study=StudySettings(**study),
            diagnosis=DiagnosisSettings(**diagnosis),
            cluster=ClusterSettings(**cluster),
            wandb=WandbSettings(**wandb),
            **values,
        )


def _known(cls: type[Any], group: str, content: object) -> dict[str, Any]:
    """Returns a group of keys as arguments of `cls`, or refuses the first that it does not have."""
    if not isinstance(content, Mapping):
        raise UserError(f"{group or 'sweep'}: {content!r} is not a group of keys; write them below it, indented")
    known = {one.name: one for one in fields(cls)}
    prefix = f"{group}." if group else ""
    for name in content:
        if name not in known:
            guess = nearest(str(name), known)
            hint = f"did you mean {prefix}{guess}?" if guess else f"accepted: {', '.join(known)}"
            raise UserError(f"{prefix}{name}: no such key of a sweep; {hint}")
    return {name: _typed(f"{prefix}{name}", known[name], value) for name, value in content.items()}


def _typed(key: str, known: Any, value: Any) -> Any:
    """Checks numbers and text; the groups are read by their own functions."""
    kind = str(known.type)
    if value is None and ("None" in kind or not kind.startswith(("int", "float", "str"))):
        return None if "None" in kind else _default(known)
    if kind.startswith("int") and (not isinstance(value, int) or isinstance(value, bool)):
        raise UserError(f"{key}: {value!r} is not accepted; use an integer")
    if kind.startswith("float"):
        try:
            return float("" if isinstance(value, bool) else value)  # YAML takes 1e-3 for text
        except (TypeError, ValueError) as error:
            raise UserError(f"{key}: {value!r} is not accepted; use a number") from error
    if kind.startswith("str") and not isinstance(value, str):
        raise UserError(f"{key}: {value!r} is not accepted; use text")
    return value


def _default(known: Any) -> Any:
    return known.default_factory() if known.default is MISSING else known.default


def _names(key: str, content: object) -> tuple[str, ...]:
    """Reads one name or a list of names."""
    names = [content] if isinstance(content, str) else content
    if not isinstance(names, Sequence) or not all(isinstance(name, str) for name in names):
        raise UserError(f"{key}: {content!r} is not accepted; use a name or a list of names")
    if len(set(names)) < len(names) and key.endswith("metric"):
        raise UserError(f"{key}: {content!r} names one twice")
    return tuple(names)


def _points(content: object) -> tuple[dict[str, Any], ...]:
    """Reads the list of points to try first."""
    if (
        not isinstance(content, Sequence)
        or isinstance(content, str)
        or not all(isinstance(p, Mapping) for p in content)
    ):
        raise UserError(f"enqueue: {content!r} is not accepted; use a list of points, such as [{{model.depth: 2}}]")
    return tuple({str(key): value for key, value in point.items()} for point in content)
