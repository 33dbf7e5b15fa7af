"""A job that Slurm has put back into its queue runs the same command again: it goes on with the run it had begun."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

from mlp_lab.training.slurm import restarted_job
from mlp_lab.training.tracking import RunDirectory

KEY = "slurm_job"  # of provenance.json


def begun_run(arguments: Sequence[str], directory: str | None) -> RunDirectory | None:
    """Returns the run that the same `fit` command of this job has begun, None where there is none.

    Args:
        arguments: Words of the command after `fit`.
        directory: The value of `--run.dir`; None looks for the newest run of the job and command below `runs`.
    """
    job = restarted_job()
    if job is None:
        return None
    folders = [Path(directory)] if directory else sorted(Path("runs").glob("*/*"), key=lambda path: path.name)
    for folder in reversed(folders):
        run = RunDirectory(folder.resolve())
        if run.config.is_file() and _is_of(run, job, arguments):
            return run
    return None


def _is_of(run: RunDirectory, job: str, arguments: Sequence[str]) -> bool:
    try:
        text = run.provenance.read_text("utf-8")
        if f'"{KEY}": "{job}"' not in text:  # most are of other jobs
            return False
        return list(json.loads(text)["command"][4:]) == list(arguments)
    except (OSError, ValueError, LookupError):
        return False
