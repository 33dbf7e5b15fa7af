"""`--run` and `--resume`: from a run directory to the arguments that Lightning's command line understands."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from mlp_lab.errors import UserError
from mlp_lab.training.tracking import RunDirectory


@dataclass(frozen=True, kw_only=True)
class Invocation:
    """A command with its run directory, if it names one."""

    arguments: list[str]
    """Command and flags for the parser."""
    run: RunDirectory | None = None
    """The run that `--run` or `--resume` names."""
    overrides: tuple[str, ...] = ()
    """What the user gave beside it."""

    @property
    def resumed(self) -> bool:
        """Whether `fit` goes on in the directory of an existing run."""
        return self.run is not None and self.arguments[0] == "fit"


def expand(command: str, arguments: Sequence[str]) -> Invocation:
    """Rewrites `--resume RUN_DIR` (fit) and `--run RUN_DIR` (the others) into config, checkpoint and directory.

    Raises:
        UserError: The directory holds no run, or no checkpoint.
    """
    flag = "--resume" if command == "fit" else "--run"
    directory, rest = _take(flag, list(arguments))
    if directory is None:
        if command in ("fit", "summary") and not {"--config", "-c"} & {word.split("=")[0] for word in rest}:
            rest = ["--config", str(default_config()), *rest]
        return Invocation(arguments=[command, *rest])
    run = RunDirectory.open(directory, flag)
    words = [command, "--config", str(run.config), "--run.dir", str(run.path)]
    if command == "fit":
        words += ["--ckpt_path", str(run.last)] if run.last.exists() else []
    elif command != "summary":
        checkpoint = run.best if run.best.exists() else run.last
        if not checkpoint.exists():
            raise UserError(f"{flag}: {directory} holds no checkpoint yet; go on with `fit --resume {directory}`")
        words += ["--ckpt_path", str(checkpoint), "--data.fitted", str(checkpoint)]
    return Invocation(arguments=[*words, *rest], run=run, overrides=tuple(rest))


def default_config() -> Path:
    """Returns the embedded default, `configs/digits.yaml`, of the installed package or of the checkout."""
    package = Path(__file__).resolve().parents[1]
    for folder in (package / "configs", package.parent / "configs"):
        if (folder / "digits.yaml").is_file():
            return folder / "digits.yaml"
    raise UserError("--config: the embedded default is missing from this installation; name a config file")


def _take(flag: str, words: list[str]) -> tuple[str | None, list[str]]:
    """Takes `flag VALUE` or `flag=VALUE` out of the words."""
    for index, word in enumerate(words):
        if word.startswith(f"{flag}="):
            return word.split("=", 1)[1], words[:index] + words[index + 1 :]
        if word == flag:
            if index + 1 == len(words) or words[index + 1].startswith("--"):
                raise UserError(f"{flag}: give the directory of a run, such as runs/digits/latest")
            return words[index + 1], words[:index] + words[index + 2 :]
    return None, words
