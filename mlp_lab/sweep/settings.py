"""What a sweep's YAML holds, without the space: the study, its base config and its budget."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

from mlp_lab.errors import UserError, nearest
from mlp_lab.sweep.keys import known_keys, names_of, points_of

BACKENDS = ("population", "serial", "slurm")
WANDB_RUNS = ("none", "auto", "trial", "population")
DIRECTIONS = ("minimize", "maximize")
LARGEST_SEED = 2**32 - 1
LARGEST = {"trials": 1_000_000, "population": 10_000, "seeds": 1_000}  # above them a number is a slip of the finger

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
        if not self.metric:
            raise UserError("study.metric: [] names no metric; use one such as val/loss")
        if self.direction and len(self.direction) != len(self.metric):
            raise UserError(f"study.direction: {len(self.direction)} for {len(self.metric)} metrics; use one for each")
        for word in self.direction:
            if word not in DIRECTIONS:
                raise UserError(f"study.direction: {word!r} is unknown; accepted: minimize, maximize")
        if len(self.metric) > 1 and self.pruner.name != "none":
            raise UserError(f"study.pruner: {self.pruner.name} compares one metric; with several, use none")
        _at_least("study.retries", self.retries, 0)
        _at_least("study.heartbeat", self.heartbeat, 1)
        for name, most in {"retries": 1_000, "heartbeat": 86_400}.items():
            if (value := getattr(self, name)) > most:
                raise UserError(f"study.{name}: {value} is not accepted; use {most:,} at most")


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
    """Cores of a job, and the threads it uses. Left out, workers of one machine share its cores evenly, unless
    OMP_NUM_THREADS is set."""
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
    memory: float | None = None
    """GB that trials may take together: more are trained in parts, and a trial whose seeds are too many for it one seed
    after another; one network that takes more has failed. null means 0.8 of what is free on the device."""
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
        for name, most in LARGEST.items():
            if (value := getattr(self, name)) is not None and not 1 <= value <= most:
                accepted = "1 or more" if value < 1 else f"{most:,} at most"
                raise UserError(f"{name}: {value} is not accepted; use {accepted}")
        _at_least("seed", self.seed, 0)
        if self.seed > LARGEST_SEED:
            raise UserError(f"seed: {self.seed} is not a seed; accepted: 0 to {LARGEST_SEED}")
        if self.memory is not None and not self.memory > 0:
            raise UserError(f"memory: {self.memory:g} GB is none; use a number above 0")
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
        values = known_keys(cls, "", content)
        study = known_keys(StudySettings, "study", values.pop("study", None) or {})
        for name in ("metric", "direction"):
            if name in study:
                study[name] = names_of(f"study.{name}", study[name])
        for name in ("sampler", "pruner"):
            if name in study:
                study[name] = Choice.read(f"study.{name}", study[name])
        diagnosis = known_keys(DiagnosisSettings, "diagnosis", values.pop("diagnosis", None) or {})
        if "prune" in diagnosis:
            diagnosis["prune"] = names_of("diagnosis.prune", diagnosis["prune"])
        cluster = values.pop("cluster", None) or {}
        cluster = known_keys(ClusterSettings, "cluster", {"executor": cluster} if isinstance(cluster, str) else cluster)
        if "setup" in cluster:
            cluster["setup"] = names_of("cluster.setup", cluster["setup"])
        if not isinstance(cluster.get("extra", {}), Mapping):
            raise UserError(f"cluster.extra: {cluster['extra']!r} is not a group of options; use {{qos: high}}")
        if not isinstance(values.get("space", {}), Mapping):
            raise UserError(f"space: {values['space']!r} is not a group of keys; write them below it, indented")
        wandb = values.pop("wandb", None) or {}
        wandb = known_keys(WandbSettings, "wandb", {"runs": wandb} if isinstance(wandb, str) else wandb)
        values["enqueue"] = points_of(values.get("enqueue") or [])
        return cls(
            study=StudySettings(**study),
            diagnosis=DiagnosisSettings(**diagnosis),
            cluster=ClusterSettings(**cluster),
            wandb=WandbSettings(**wandb),
            **values,
        )
