"""Which file `test` and `predict` write, so that the result of one input never replaces that of another."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

from mlp_lab.data.module import Loaded
from mlp_lab.errors import UserError
from mlp_lab.paths import expand_path
from mlp_lab.training.tracking import RunDirectory

RUN_FILES = ("provenance.json", "diagnosis.json", "test.json", "metrics.csv", "predictions.csv")
"""What a run keeps for its own rows, under the suffixes that `--output` may have."""


def choose_output(name: str, loaded: Loaded, folder: Path, run: RunDirectory | None, given: str | None = None) -> Path:
    """Returns the file that a command writes, absolute.

    The rows that the run was trained with have `name`, such as `test.json`. Another input has its own name in it:
    `test-houses.json`, and `test-houses-2.json` where that file holds the result of another table called houses.

    Args:
        name: The file's name for the run's own rows.
        loaded: What the command reads.
        folder: Where the file is written without `given`.
        run: The run that the command reads, or None.
        given: The user's `--output`, or None.

    Raises:
        UserError: The file cannot be written, or holds something else of a run.
    """
    own, source = Path(name), source_path(loaded)
    if given is not None:
        path = expand_path("output", given).absolute()
        if path.is_dir():
            raise UserError(f"output: {given} is a directory; name a file in it, such as {Path(given) / name}")
        if path.suffix != own.suffix:
            stem = path.name.partition(own.suffix)[0] if own.suffix in path.suffixes else path.stem
            raise UserError(f"output: {given} is not the name of a {own.suffix} file; use {stem}{own.suffix}")
        if not path.parent.is_dir():
            raise UserError(f"output: there is no directory {path.parent}")
    elif loaded.is_new:
        path = _free(folder, f"{own.stem}-{_slug(loaded.source)}", own.suffix, _written(run), source)
    else:
        path = folder / own
    _refuse_results(path, run, own=own if not loaded.is_new else None, given=given)
    if source is not None and path.exists() and path.samefile(source):
        raise UserError(f"output: {path} is the table itself; name another file")
    return path


def open_folder(directory: str | None, run: RunDirectory | None) -> Path:
    """Returns where a command writes: `run.dir`, which is made where it is absent, else here.

    Raises:
        UserError: The directory holds another run, or cannot be made.
    """
    folder = (expand_path("run.dir", directory) if directory else Path()).absolute()
    if run is not None and folder.resolve() == run.path:
        return run.path
    if directory and RunDirectory(folder).config.exists():
        raise UserError(f"run.dir: {directory} holds another run; name another directory, or a file with --output")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"run.dir: {directory} cannot be made ({error.strerror}); name a writable directory") from error
    return folder


def source_path(loaded: Loaded) -> Path | None:
    """Returns the file that the rows come from, absolute; None for a table that has only a name."""
    path = Path(loaded.source).expanduser().absolute()
    return path if path.is_file() else None


def shown_path(path: Path, run: RunDirectory) -> str:
    """Returns a path as a run's records name it: relative to the run's directory where it lies in it."""
    return str(path.relative_to(run.path) if path.is_relative_to(run.path) else path)


def _written(run: RunDirectory | None) -> dict[Path, str | None]:
    """Returns the files that `test` and `predict` wrote for this run, and the input of each."""
    reads: list[dict[str, Any]] = [] if run is None else run.read_provenance().get("test_reads", [])
    return {} if run is None else {run.path / read["file"]: read.get("path") for read in reads if "file" in read}


def _free(folder: Path, stem: str, suffix: str, written: dict[Path, str | None], source: Path | None) -> Path:
    """Returns the first of `stem`, `stem-2`, … that is not there, or holds a former result of the same input."""
    number, path = 1, folder / f"{stem}{suffix}"
    while path.exists() and written.get(path, "") != (None if source is None else str(source)):
        number += 1
        path = folder / f"{stem}-{number}{suffix}"
    return path


def _slug(source: str) -> str:
    """Returns the name of a table for a file name.

    >>> _slug("/data/new houses.csv.gz"), _slug("fashion")
    ('new_houses', 'fashion')
    """
    return re.sub(r"[^\w+-]+", "_", Path(source).name.split(".")[0]) or "input"


def _refuse_results(path: Path, run: RunDirectory | None, *, own: Path | None, given: str | None) -> None:
    """Refuses a file that a run keeps for something else; `own` is the one that this result may have."""
    is_own = run is not None and path.parent.resolve() == run.path and own is not None and path.name == own.name
    if RunDirectory(path.parent).config.exists() and path.name in RUN_FILES and not is_own:
        raise UserError(f"output: {given or path} is a file of the run in {path.parent}; name another file")
