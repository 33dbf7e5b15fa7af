"""`--run` and `--resume`: from a run directory to the arguments that Lightning's command line understands."""

from __future__ import annotations

import os
import shlex
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import yaml

from mlp_lab.cli.checks import read_hyperparameters
from mlp_lab.cli.configs import config_first, default_config, depth_of_widths, load_configs
from mlp_lab.cli.restart import begun_run
from mlp_lab.cli.trust import admitted
from mlp_lab.errors import UserError
from mlp_lab.program import program
from mlp_lab.text import printable
from mlp_lab.training.tracking import RunDirectory


@dataclass(frozen=True, kw_only=True)
class Invocation:
    """A command with its run directory, if it names one."""

    arguments: list[str]
    """Command and flags, config files first."""
    loaded: list[str]
    """The same for the parser, with the content of the config files in place of their names."""
    run: RunDirectory | None = None
    """The run that `--run` or `--resume` names."""
    overrides: tuple[str, ...] = ()
    """What the user gave beside it."""

    @property
    def checkpoint(self) -> str | None:
        """The checkpoint of `run` that is measured or that predicts."""
        flags = dict(pairwise(self.arguments))
        return flags.get("--ckpt_path") if self.run is not None and not self.resumed else None

    @property
    def resumed(self) -> bool:
        """Whether `fit` goes on in the directory of an existing run."""
        return self.run is not None and self.arguments[0] == "fit"


def expand(command: str, arguments: Sequence[str]) -> Invocation:
    """Rewrites `--resume RUN_DIR` (fit) and `--run RUN_DIR` (the others) into config, checkpoint and directory.

    Without either, `fit` and `summary` fall back to the embedded `digits.yaml`, or to `tabular.yaml` where
    `--data.path` names a table; with a class that `--data` names, every key has its default. A `--data.path` flag also
    takes the place of a config's `data.dataset`. Where Slurm has started the job of a `fit` again, the run
    that it had begun is resumed. `--trust` accepts the code that the config of the run names.

    Raises:
        UserError: The directory holds no run, or no checkpoint; a config file cannot be read; the run names code that
            the user has not trusted.
    """
    flag, other = ("--resume", "--run") if command == "fit" else ("--run", "--resume")
    if _given(other, arguments):
        advice = "go on with a run by --resume RUN_DIR" if command == "fit" else "name a run by --run RUN_DIR"
        raise UserError(f"{other}: {command} has no such flag; {advice}")
    words = list(arguments)
    trust = "--trust" in words
    directory, rest = _take(flag, [word for word in words if word != "--trust"])
    if command == "fit" and directory is None:
        begun = begun_run(arguments, _value_of("--run.dir", rest))
        if begun is not None:
            print(f"Slurm has started this job again: it goes on with {printable(str(begun.path))}")
            directory, rest = str(begun.path), []
    run = None if directory is None else _open(directory, flag)
    if run is None and trust:
        raise UserError(f"--trust: it is for the code that a run names; give the run by {flag} RUN_DIR")
    if run is not None and _given("--run.dir", rest) and command not in ("test", "predict"):  # which write there
        raise UserError(f"--run.dir: {flag} names the run's directory already; leave one out")
    words = [command] if run is None else [command, "--config", str(run.effective), *_state(command, run, flag)]
    named = any(_given(flag, rest) for flag in ("--config", "-c", "--data"))
    if run is None and command in ("fit", "summary") and not named:
        words += ["--config", str(default_config("tabular" if _given("--data.path", rest) else "digits"))]
    if _given("--data.path", rest) and not _given("--data.dataset", rest):
        rest += ["--data.dataset", "null"]
    words = config_first([*words, *rest])
    loaded = load_configs(words)
    if run is not None:
        place, others = f"{flag} {printable(str(directory))}", [*arguments, *loaded[2:]]
        config = yaml.safe_load(loaded[1].partition("=")[2])
        config = admitted(config, command, place=place, arguments=others, trust=trust)
        loaded[1] = f"--config={yaml.safe_dump(config, sort_keys=False)}"  # ASCII, as the parser tries it as a file
    flags = depth_of_widths(loaded)
    return Invocation(arguments=words + flags, loaded=loaded + flags, run=run, overrides=tuple(rest) if run else ())


def _open(directory: str, flag: str) -> RunDirectory:
    run = RunDirectory.open(directory, flag)
    try:
        run.read_provenance()
    except ValueError as error:
        raise UserError(f"{flag}: {run.provenance} is damaged ({error}); restore it, or delete it") from error
    _check_config(run, flag)
    return run


def _check_config(run: RunDirectory, flag: str) -> None:
    """Refuses the config of a run that lost its content: each missing key would silently get its default.

    Raises:
        UserError: It is empty, or not the config of a run.
    """
    try:
        config = yaml.safe_load(run.effective.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError):
        return  # which the parser reports with the line
    if not isinstance(config, dict) or not {"data", "model", "trainer"} <= config.keys():
        raise UserError(f"{flag}: {run.effective} is empty or not complete; restore it from a copy of the run")


def _state(command: str, run: RunDirectory, flag: str) -> list[str]:
    """Returns the flags for a run's directory and the checkpoint that a command goes on from."""
    words = ["--run.dir", str(run.path)]
    if command == "fit":
        state = _newest_whole(run)
        return words + (["--ckpt_path", str(state)] if state is not None else [])
    if command == "summary":
        return words
    checkpoint = run.best if run.best.exists() else run.last
    if not checkpoint.exists():
        command = f"{program()} fit --resume {shlex.quote(str(run.path))}"
        raise UserError(f"{flag}: {run.path} holds no checkpoint yet; go on with `{command}`")
    return [*words, "--ckpt_path", str(checkpoint)]


def _newest_whole(run: RunDirectory) -> Path | None:
    """Returns the newest checkpoint of a run that is not damaged, the last one if all are, None without any."""
    found = [path for path in (run.last, run.previous) if path.exists()]
    whole = [path for path in found if _is_whole(path)]
    if whole and whole[0] != run.last and os.environ.get("LOCAL_RANK", "0") == "0":
        fault = "is damaged" if run.last.exists() else "is missing"
        print(f"{run.last} {fault}: the run continues from {whole[0].name}, the state before it")
    return next(iter(whole or found), None)


def _is_whole(path: Path) -> bool:
    try:
        read_hyperparameters(str(path))
    except UserError:
        return False
    return True


def _given(flag: str, words: Sequence[str]) -> bool:
    return any(word == flag or word.startswith(f"{flag}=") for word in words)


def _value_of(flag: str, words: Sequence[str]) -> str | None:
    """Returns the last value of a flag, None where it is not given."""
    pairs = [word.partition("=")[::2] for word in words if word.startswith(f"{flag}=")]
    pairs += [(word, value) for word, value in pairwise(words) if word == flag]
    return pairs[-1][1] if pairs else None


def _take(flag: str, words: list[str]) -> tuple[str | None, list[str]]:
    """Takes `flag VALUE` or `flag=VALUE` out of the words; it may be there once."""
    found: list[str] = []
    rest: list[str] = []
    remaining = iter(words)
    for word in remaining:
        name, equals, value = word.partition("=")
        if name != flag:
            rest.append(word)
            continue
        directory = value if equals else next(remaining, "")
        if not directory or directory.startswith("--"):
            raise UserError(f"{flag}: give the directory of a run, such as runs/digits/latest")
        found.append(directory)
    if len(found) > 1:
        raise UserError(f"{flag}: {found[0]} and {found[1]} are both given; name one run")
    return (found[0] if found else None), rest
