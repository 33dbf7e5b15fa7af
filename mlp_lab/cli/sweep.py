"""`sweep`: a search over the keys of a config. Its help and its own mistakes need no heavy import."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from dataclasses import fields
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from mlp_lab.cli.configs import config_first, find_config, packaged_file, read_config
from mlp_lab.cli.yaml_text import read_yaml
from mlp_lab.errors import UserError, nearest
from mlp_lab.paths import expand_path
from mlp_lab.program import PROGRAM, program
from mlp_lab.sweep.outline import outline
from mlp_lab.sweep.settings import StudySettings, SweepSettings
from mlp_lab.text import printable, without_passwords

if TYPE_CHECKING:
    from mlp_lab.cli.trial import TrialBuilder
    from mlp_lab.sweep.space import Space

HELP = """usage: python -m mlp_lab sweep --config SWEEP.yaml [--trials N] [--KEY VALUE ...]

Search the keys of a config: ask Optuna for points, train them together, keep every trial.
The same command goes on with a sweep that was interrupted; more --trials go on with a finished one.

keys of the sweep (in its YAML, or as flags):
  base FILE            config from which every trial starts
  trials N             number of trials to finish, at least 1; one that is cut off does not count
  minutes M            minutes after which no batch of trials begins, above 0; with or without
                       `trials`
  backend NAME         population (trials train together, the default), serial (one after another),
                       or slurm (an array of jobs, each a worker on the same study)
  population N         number of trials that train together, at least 1 (16)
  memory GB            memory that they may take together, above 0; more are trained in parts; by
                       default 0.8 of what is free
  checkpoint_seconds S least seconds between two checkpoints of trials that train together, at
                       least 0 (30); a trial that is cut off continues from the last one; 0 writes
                       none
  seeds N              runs per trial, at least 1 (1); the value of a trial is their mean
  seed N               seed of the sampler and of the first run, at least 0 (0)
  space                config key -> range, in the YAML only:
                         {type: int, low: 1, high: 6, step: 1}    or log: true
                         {type: float, low: 1.0e-4, high: 1.0e-1, log: true}
                         {type: categorical, choices: [relu, tanh]}
                         each with `when: {model.depth: ">2"}`, or `per_layer: true`
  enqueue              points to try first, in the YAML only: [{model.depth: 2}]
  diagnosis.prune      list of the verdicts that end a trial, such as [nonfinite, dead_units]
  study.name NAME      name of the study, whose directory is runs/sweeps/NAME
  study.metric KEY     val/loss, val/accuracy, ...; a list is a search for the Pareto front
  study.direction WAY  minimize or maximize (what is better for the metric)
  study.sampler NAME   tpe, gp, random, grid, qmc, cmaes, or the path of an Optuna class
  study.pruner NAME    asha, hyperband, median or none
                       both also {name: NAME, ARGUMENT: VALUE}
  study.storage URL    sqlite:///FILE, journal:FILE, postgresql://USER@HOST/DB,
                       grpc://HOST:PORT (study.db); FILE may hold ~ and $VAR, and %3F for a ?;
                       a password is best kept in ~/.pgpass or MLP_LAB_STORAGE_PASSWORD
  study.retries N      how often a trial that was cut off is tried again, at least 0 (2); a try that
                       reached a new checkpoint does not count
  study.heartbeat S    seconds between two signs of life of a worker, at least 1 (15)
  cluster.executor NAME  how the workers of the backend slurm run: slurm, or local (processes of
                       this machine; workers, backend, minutes, gpus, cpus and setup apply)
  cluster.workers N    number of jobs, at least 1 (1)
  cluster.at_once N    number of jobs that run at the same time, at least 1; by default all
  cluster.backend NAME how each worker trains: population (the default) or serial
  cluster.minutes M    time limit of a job in minutes, at least 1 (240); a job that reaches it is
                       queued again
  cluster.gpus N       GPUs of a job, at least 0 (0)
  cluster.cpus N       cores of a job, at least 1; by default workers of one machine share its cores
                       evenly, unless OMP_NUM_THREADS is set
  cluster.memory GB    memory of a job, above 0; by default that of the partition
  cluster.partition NAME  partition to which jobs are submitted; by default that of Slurm
  cluster.account NAME account to which jobs are charged; by default that of Slurm
  cluster.extra        more options of `sbatch`, such as {qos: high}
  cluster.setup        list of shell commands that run first in a job, such as [module load cuda]
  wandb.runs WHAT      runs on Weights & Biases: none (the default), trial (one per trial),
                       population (one per batch of trials), or auto (trial for at most 50 trials);
                       short: wandb WHAT
  wandb.project NAME   project on Weights & Biases (mlp_lab)
  wandb.entity NAME    user or team on Weights & Biases; by default that of the login

options:
  --storage URL        short for --study.storage
  --run.dir DIR        write there instead of runs/sweeps/NAME
  --KEY VALUE          any key of the base config, for every trial: --trainer.max_epochs 5

It writes study.db, trials.csv and best.yaml, which `fit --config` trains.
Watch it: optuna-dashboard sqlite:///runs/sweeps/NAME/study.db
"""
SHORT = {"storage": "study.storage"}
NESTED = ("study", "diagnosis", "cluster", "wandb")
WORD = {"cluster": "executor", "wandb": "runs"}  # the key of a group that is written as one word; of others, `name`


def sweep(arguments: Sequence[str]) -> None:
    """Runs the command with its arguments.

    Raises:
        UserError: A mistake in the sweep, in its space, or in the base config; nothing is written then. Or every trial
            has failed.
        KeyboardInterrupt: It was interrupted; finished trials are kept.
    """
    if any(word in ("-h", "--help") for word in arguments):
        print(HELP.replace(PROGRAM, program()), end="")
        return
    content, rest, directory = read_sweep(arguments)
    sys.argv[:] = map(without_passwords, sys.argv)  # W&B records it
    settings = SweepSettings.read(content)
    check_flags(rest, settings.space)
    for line in outline(settings, directory):
        print(printable(line), flush=True)  # now: the imports that follow take seconds
    if settings.backend == "slurm":
        from mlp_lab.sweep.cluster import check_cluster, check_storage
        from mlp_lab.sweep.storage import storage_url

        check_cluster(settings.cluster)
        check_storage(settings.cluster, storage_url(settings.study.storage, directory))
    from mlp_lab.cli.commands import quieten
    from mlp_lab.cli.trial import TrialBuilder, build_backend
    from mlp_lab.sweep.results import failure_of_all
    from mlp_lab.sweep.search import run_sweep
    from mlp_lab.sweep.space import Space

    quieten()
    check_study(settings, Space.read(settings.space))  # their mistakes are told before the data is read
    builder = TrialBuilder(rest)
    space = Space.read(settings.space, depth=builder.depth)
    check_space(builder, settings, space)
    if settings.backend == "slurm":
        from mlp_lab.cli.fleet import run_fleet

        run_fleet(settings, space, directory, builder.config, builder.data_identity, sweep, arguments)
        return
    backend = build_backend(settings, builder, directory)
    study = run_sweep(settings, space, backend, directory, base=builder.config, data=builder.data_identity)
    print(printable(str(directory)), flush=True)
    if (error := failure_of_all(study)) is not None:
        raise UserError(f"every trial has failed, most of them with: {error} (each error is in trials.csv)")


def read_sweep(arguments: Sequence[str]) -> tuple[dict[str, Any], list[str], Path]:
    """Returns a sweep's content with the flags applied, the arguments for the base config, and the directory.

    Raises:
        UserError: There is no sweep file, or it is not readable, or a flag has no value.
    """
    words = config_first(["sweep", *arguments])[1:]
    files = [value for flag, value in pairwise(words) if flag == "--config"]
    if len(files) != 1:
        raise UserError("--config: name one sweep, such as sweeps/digits.yaml (its `base` names the config)")
    _, content = read_config(files[0])
    path = Path("sweep.yaml") if files[0] == "-" else find_config(files[0])
    if not isinstance(content, dict) or not content:
        raise UserError(f"--config: {path} is no sweep; it should hold `base:`, `trials:` and `space:`")
    if "space" not in content and ("model" in content or "trainer" in content):
        raise UserError(f"--config: {path} is the config of one run; a sweep names it as its `base`")
    flags, rest = _split(words[2:])
    for key, value in flags.items():
        _put(content, key, value)
    directory = rest.pop("--run.dir", None)
    study = content.get("study") if isinstance(content.get("study"), dict) else {}
    name = str((study or {}).get("name") or path.stem)
    if isinstance(content.get("study") or {}, dict):
        content["study"] = {**(content.get("study") or {}), "name": name}
    base = ["--config", str(_base(path, content.get("base")))] if content.get("base") else []
    words = [word for flag, value in rest.items() for word in ((flag, value) if value is not None else (flag,))]
    return content, [*base, *words], _directory(directory, name)


def _directory(given: str | None, name: str) -> Path:
    return expand_path("--run.dir", given) if given else Path("runs") / "sweeps" / name


def _split(words: Sequence[str]) -> tuple[dict[str, Any], dict[str, str | None]]:
    """Parts the flags of the sweep from those of the base config."""
    known = {one.name for one in fields(SweepSettings)} - {"space", "enqueue", "base", *NESTED}
    own: dict[str, Any] = {}
    rest: dict[str, str | None] = {}
    remaining = list(words)
    while remaining:
        word = remaining.pop(0)
        flag, equals, value = word.partition("=")
        given: str | None = value if equals else None
        if not equals and remaining and not remaining[0].startswith("--"):
            given = remaining.pop(0)
        key = SHORT.get(flag.removeprefix("--"), flag.removeprefix("--"))
        if not flag.startswith("--"):
            raise UserError(f"{word}: unexpected word; keys begin with --")
        if key.partition(".")[0] == "space":
            raise UserError(f"{flag}: the space is no flag; write it under `space:` in the sweep's YAML file")
        if key in known or key.partition(".")[0] in NESTED:
            if given is None:
                raise UserError(f"{flag}: no value is given")
            own[key] = _value(flag, given)
        else:
            if "." not in key and (guess := nearest(key, [*known, *SHORT])) and key != "seed_everything":
                raise UserError(f"{flag}: no such key; did you mean --{guess}?")
            rest[flag] = given
    return own, rest


def check_flags(words: Sequence[str], space: Mapping[str, Any]) -> None:
    """Refuses a flag whose value the space would replace, alone or as a part of its group.

    Raises:
        UserError: There is one.
    """
    for flag, value in pairwise([*words, ""]):
        if not flag.startswith("--") or flag == "--config":
            continue
        key = flag.removeprefix("--").replace("data.init_args.", "data.")
        group = read_yaml(value) if value.startswith("{") else None
        given = {key, *(f"{key}.{name}" for name in group or ())}
        for name in space:
            if name in given:
                what = "it; leave the flag" if name == key else f"{name}; leave it"
                raise UserError(f"{flag}: the space searches {what} out, or take the key out of the space")


def _value(flag: str, text: str) -> Any:
    try:
        return read_yaml(text)
    except yaml.YAMLError as error:
        raise UserError(f"{flag}: {text!r} is not YAML") from error


def _put(content: dict[str, Any], key: str, value: Any) -> None:
    """Sets a dotted key; an argument of a sampler or pruner turns its name into a group."""
    group: Any = content
    *parents, last = key.split(".")
    for parent in parents:
        inner = group.get(parent)
        if isinstance(inner, str):
            inner = {WORD.get(parent, "name"): inner}
        elif inner is None:
            default = getattr(StudySettings, parent, None) if group is not content else None
            inner = {"name": default.name} if default is not None else {}
        elif not isinstance(inner, dict):
            raise UserError(f"{parent}: {inner!r} is not a group of keys; write them below it, indented")
        group[parent] = group = inner
    if group is content and last in WORD and isinstance(value, str) and isinstance(group.get(last), dict):
        group, last = group[last], WORD[last]  # a word changes one key of the group that the file has
    group[last] = value


def _base(sweep_file: Path, base: object) -> Path:
    """Finds the base config from here, beside the sweep file, beside its folder, or in the package."""
    if not isinstance(base, str):
        raise UserError(f"base: {base!r} is not accepted; use the path of a config")
    folders = [Path(), sweep_file.resolve().parent, sweep_file.resolve().parents[1]]
    path = expand_path("base", base)
    found = [folder / path for folder in folders if (folder / path).is_file()]
    if (packaged := packaged_file(path)) is not None and packaged.is_file():
        found.append(packaged)
    if not found:
        raise UserError(f"base: there is no file {base} (looked from {Path.cwd()} and from {sweep_file})")
    return found[0]


def check_study(settings: SweepSettings, space: Space) -> None:
    """Tries whether sampler and pruner can be built.

    Raises:
        UserError: They cannot.
    """
    from mlp_lab.sweep.pruning import Nothing, build_judge
    from mlp_lab.sweep.samplers import sampler_maker

    study = settings.study
    sampler_maker(study.sampler, space, settings.seed, objectives=len(study.metric))
    build_judge(study.pruner, Nothing(), maximize=False)


def check_space(builder: TrialBuilder, settings: SweepSettings, space: Space) -> None:
    """Tries what the base config says of every end and every choice of the space, before anything is written.

    Raises:
        UserError: A key that the config does not have, a value that it does not take, a metric that no run logs, a
            verdict that does not exist.
    """
    from mlp_lab.diagnostics.verdicts import CODES
    from mlp_lab.errors import unknown
    from mlp_lab.sweep.population import is_out_of_memory
    from mlp_lab.sweep.results import describe

    for code in settings.diagnosis.prune:
        if code not in CODES:
            raise unknown("diagnosis.prune", code, CODES)
    for metric in settings.study.metric:
        builder.check_metric(metric)
    for key in space.canonical():
        if key.partition(".")[0] in ("run", "checkpoint", "seed_everything", "replicates"):
            raise UserError(f"space.{key}: it says where and how a run is kept, not how it learns; search another key")
        if ".init_args." in key:
            raise UserError(f"space.{key}: write it as on the command line, {key.replace('.init_args', '')}")
    _check_length(builder, settings)
    for point in space.examples():
        try:
            builder.check(point, here=settings.backend != "slurm")
        except UserError as error:
            raise _placed(error, point) from error
        except (MemoryError, RuntimeError) as error:
            if not is_out_of_memory(error):
                raise
            raise UserError(
                f"space: a network with {describe(point)} does not fit into the memory; make its ranges smaller"
            ) from error


def _check_length(builder: TrialBuilder, settings: SweepSettings) -> None:
    """A pruner decides at shares of a training's length."""
    epochs, pruner = builder.config["trainer"].get("max_epochs"), settings.study.pruner.name
    if pruner != "none" and (epochs is None or epochs < 0):
        raise UserError(
            f"trainer.max_epochs: {epochs} leaves open when {pruner} decides; set it, or study.pruner: none"
        )


def _placed(error: UserError, point: Mapping[str, object]) -> UserError:
    """Says of a mistake in a searched key that it is in the space."""
    key = str(error).partition(":")[0]
    return UserError(f"space.{error}") if key in point else error
