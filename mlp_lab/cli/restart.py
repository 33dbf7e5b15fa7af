"""A job that Slurm has put back into its queue runs the same command again: it goes on with the run it had begun."""

from __future__ import annotations

import json
from collections.abc import Sequence
from contextlib import suppress
from itertools import pairwise
from pathlib import Path

from mlp_lab.cli.configs import config_first, find_config, read_config
from mlp_lab.errors import UserError
from mlp_lab.paths import expand_path
from mlp_lab.text import without_passwords
from mlp_lab.training.slurm import restarted_job
from mlp_lab.training.tracking import RunDirectory

KEY = "slurm_job"  # of provenance.json


def begun_run(arguments: Sequence[str], directory: str | None) -> RunDirectory | None:
    """Returns the run that the same `fit` command of this job has begun, None where there is none.

    Args:
        arguments: Words of the command after `fit`.
        directory: The value of `--run.dir`; None takes `run.dir` of the config files. Without either, the newest run of
            the job and command below `runs` is taken.
    """
    job = restarted_job()
    if job is None:
        return None
    directory = directory or _configured_directory(arguments)
    folders = (
        [expand_path("run.dir", directory)]
        if directory
        else sorted(Path("runs").glob("*/*"), key=lambda path: path.name)
    )
    for folder in reversed(folders):
        run = RunDirectory(folder.resolve())
        if run.config.is_file() and _is_of(run, job, arguments):
            return run
    return None


def _configured_directory(arguments: Sequence[str]) -> str | None:
    """Returns `run.dir` of the last config file that sets it; a pipe is left to the parser, which reads it once."""
    directory = None
    with suppress(UserError):  # of a file that cannot be read: the parser's way to it says so
        for flag, name in pairwise(config_first(arguments)):
            if flag == "--config" and name != "-" and find_config(name).is_file():
                content = read_config(name)[1]
                section = content.get("run") if isinstance(content, dict) else None
                directory = section.get("dir", directory) if isinstance(section, dict) else directory
    return None if directory is None else str(directory)


def _is_of(run: RunDirectory, job: str, arguments: Sequence[str]) -> bool:
    try:
        text = run.provenance.read_text("utf-8")
        if f'"{KEY}": "{job}"' not in text:  # most are of other jobs
            return False
        return list(json.loads(text)["command"][4:]) == list(map(without_passwords, arguments))
    except (OSError, ValueError, LookupError):
        return False
