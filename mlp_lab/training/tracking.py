"""The record of a run: its directory, where it came from, and every number that was logged."""

from __future__ import annotations

import csv
import json
import os
import platform
import re
import secrets
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only
from rich.console import Console

from mlp_lab.errors import UserError
from mlp_lab.files import PARTIAL, whole_file
from mlp_lab.paths import expand_path, from_here
from mlp_lab.program import program
from mlp_lab.text import printable, without_passwords
from mlp_lab.training.slurm import task

RUN_DIR_VARIABLE = "MLP_LAB_RUN_DIR"  # hands rank 0's directory to the processes that it launches
LISTS = ("test_reads", "resumed")  # keys of `provenance.json` to which a command appends
RECORDED_PACKAGES = ("mlp_lab", "torch", "lightning", "torchmetrics", "torchvision", "numpy", "pandas", "scikit-learn")


class RunDirectory:
    """Names the files of a run.

    Args:
        path: The directory, absolute.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.config = path / "config.yaml"
        self.resumed_config = path / "resume.yaml"
        self.provenance = path / "provenance.json"
        self.metrics = path / "metrics.csv"
        self.best = path / "checkpoints" / "best.ckpt"
        self.last = path / "checkpoints" / "last.ckpt"
        self.previous = path / "checkpoints" / "previous.ckpt"
        self.test = path / "test.json"
        self.predictions = path / "predictions.csv"

    @property
    def effective(self) -> Path:
        """The configuration that the run goes on with: `config.yaml`, until a resume has changed a key."""
        return self.resumed_config if self.resumed_config.is_file() else self.config

    @classmethod
    def plan(cls, name: str, directory: str | None) -> RunDirectory:
        """Names the directory of a new run, `directory` or `runs/<name>/<time>-<4 hex>`; nothing is written yet.

        Raises:
            UserError: The directory already holds a run.
        """
        inherited = os.environ.get(RUN_DIR_VARIABLE)
        if inherited and "LOCAL_RANK" in os.environ:  # a process that rank 0 launched
            return cls(Path(inherited))
        stamp = datetime.now().strftime("%Y%m%d-%H%M%S")
        path = (
            expand_path("run.dir", directory) if directory else Path("runs") / name / f"{stamp}-{secrets.token_hex(2)}"
        )
        run = cls(path.absolute())
        if task() == 0:  # of a job's tasks, the first one writes it
            run.check_unused()
        return run

    def check_unused(self) -> None:
        """Checks that no run was begun in the directory.

        Raises:
            UserError: There is one.
        """
        if self.config.exists():
            shown = from_here(self.path)
            raise UserError(
                f"run.dir: {shown} already holds a run; name another, or go on with "
                f"`{program()} fit --resume {shlex.quote(shown)}`"
            )

    def make(self) -> None:
        """Makes the directory, and removes what a killed process left half written.

        Raises:
            UserError: It cannot be written.
        """
        try:
            self.best.parent.mkdir(parents=True, exist_ok=True)
            for folder in (self.path, self.best.parent):
                for leftover in folder.glob(PARTIAL):
                    leftover.unlink()
            with tempfile.TemporaryFile(dir=self.path):
                pass
        except OSError as error:
            raise UserError(
                f"run.dir: {self.path} cannot be written ({error.strerror}); name a writable directory"
            ) from error

    def point_latest(self) -> None:
        """Lets `latest` beside the directory link to it, in one step, so that a reader never meets a missing link."""
        temporary = self.path.parent / f".latest-{secrets.token_hex(4)}"
        try:
            temporary.symlink_to(self.path.name, target_is_directory=True)
            os.replace(temporary, self.path.parent / "latest")
        except OSError:  # a file system without links: the run is complete without one
            temporary.unlink(missing_ok=True)

    @classmethod
    def open(cls, directory: str, key: str) -> RunDirectory:
        """Opens the directory of an existing run.

        Raises:
            UserError: There is no run; `key` is the flag that named it.
        """
        run = cls(expand_path(key, directory).resolve())
        if not run.path.is_dir():
            raise UserError(f"{key}: there is no directory {directory}; give a directory that `fit` wrote")
        if not run.config.is_file():
            latest = Path(directory) / "latest"
            hint = f" (did you mean {latest}?)" if (run.path / "latest" / run.config.name).is_file() else ""
            raise UserError(
                f"{key}: {directory} holds no run (no config.yaml){hint}; give a directory that `fit` wrote"
            )
        return run

    def share(self) -> None:
        """Hands the directory to the processes that this one will launch."""
        os.environ[RUN_DIR_VARIABLE] = str(self.path)

    def read_provenance(self) -> dict[str, Any]:
        """Returns what `write_provenance` wrote, or an empty dict.

        Raises:
            ValueError: The file holds something else.
        """
        if not self.provenance.exists():
            return {}
        try:
            values = json.loads(self.provenance.read_text("utf-8"))
        except RecursionError as error:
            raise ValueError("it is nested too deeply") from error
        if not isinstance(values, dict) or not all(isinstance(values.get(name, []), list) for name in LISTS):
            raise ValueError("it is no record of a run")
        return values

    def write_provenance(self, values: Mapping[str, Any]) -> None:
        """Writes `provenance.json` whole or not at all."""
        write_text(self.provenance, json.dumps(values, indent=2, default=str) + "\n")


def new_run_id(path: Path) -> str:
    """Returns a run's stable id: its name and time, such as `digits-20260102-030405-1a2b`."""
    if re.fullmatch(r"\d{8}-\d{6}-[0-9a-f]{4}", path.name):
        return f"{path.parent.name}-{path.name}"
    return f"{re.sub(r'[^A-Za-z0-9_.-]', '-', path.name)}-{datetime.now():%Y%m%d-%H%M%S}-{secrets.token_hex(2)}"


def write_text(path: Path, text: str) -> None:
    """Writes a file whole or not at all; bytes of a path that are not UTF-8 stay as they are.

    A text with a URL that holds a password can be read by this user alone.
    """
    with naming(path), whole_file(path, sync=True, mode=0o666 if without_passwords(text) == text else 0o600) as file:
        file.write(text)


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Adds the name of a file to an `OSError` of writing it: that of a full disk names none."""
    try:
        yield
    except OSError as error:
        if error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


def report_unwritten(path: Path, reason: str) -> None:
    """Prints that a file could not be written while the training continues."""
    shown = printable(str(path))
    Console(highlight=False).print(
        f"{shown} could not be written ({reason}); the training continues and tries again at the next save",
        soft_wrap=True,
        markup=False,
    )


def provenance(**values: Any) -> dict[str, Any]:
    """Returns where a run comes from: time, command, code, packages and machine, with `values` added."""
    return {
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": ["python", "-m", "mlp_lab", *map(without_passwords, sys.argv[1:])],
        "git": git_state(Path(__file__).parent),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in RECORDED_PACKAGES},
        "platform": platform.platform(),
        **values,
    }


def git_state(directory: Path) -> dict[str, Any] | None:
    """Returns the commit of the checkout around `directory` and whether it has changes; None outside a checkout."""

    def git(*arguments: str) -> str:
        command = ["git", "-C", str(directory), *arguments]
        shown = subprocess.run(command, capture_output=True, check=True, timeout=10).stdout
        return shown.decode("utf-8", "replace").strip()

    try:
        if not git("ls-files", "--", "."):  # a checkout around an installed package is not this code's
            return None
        return {"commit": git("rev-parse", "HEAD"), "dirty": bool(git("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return None


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


class MetricsCSV(Logger):
    """Writes `metrics.csv`: one row a call, `step` and `epoch` first, columns added as they appear.

    Every row is handed to the operating system at once, so a killed process loses none. `failure` says why the newest
    rows are not in the file, for example because the disk is full; None if they are. `resume(rows)` cuts the file
    back to the rows that a checkpoint knew of; what goes on from there writes the file of a run that never stopped.

    Args:
        path: The file.
    """

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.path = path
        self.columns: list[str] = ["step", "epoch"]
        self.rows = 0
        self.failure: str | None = None
        self._unwritten: list[dict[str, Any]] = []
        self._columns_of_file: list[str] = []

    @property
    def name(self) -> str:
        """The logger's name."""
        return "metrics"

    @property
    def version(self) -> str:
        """The logger's version; a run directory holds one."""
        return ""

    @rank_zero_only
    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """Does nothing: the configuration is in `config.yaml`."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Appends one row. A row that cannot be written is kept in memory and written with the next one."""
        row = {"step": step, **{name: _number(value) for name, value in metrics.items()}}
        self.columns += [name for name in row if name not in self.columns]
        self._unwritten.append(row)
        self.rows += 1
        self._append()

    def _append(self) -> None:
        size = None
        try:
            if self.columns != self._columns_of_file:
                self._rewrite(self.read() if self.rows > len(self._unwritten) else [])
            size = self.path.stat().st_size
            with self.path.open("a", encoding="utf-8", newline="") as file:
                csv.DictWriter(file, self.columns, lineterminator="\n").writerows(self._unwritten)
        except OSError as error:
            if size is not None:
                with suppress(OSError):
                    os.truncate(self.path, size)  # half a row
            if self.failure is None:
                report_unwritten(self.path, error.strerror or str(error))
            self.failure = error.strerror or str(error)
        else:
            self._unwritten, self.failure = [], None

    def sync(self) -> None:
        """Flushes the rows to the disk: a checkpoint that counts on them is about to be written."""
        with suppress(OSError), self.path.open("rb") as file:
            os.fsync(file.fileno())

    @rank_zero_only
    def finalize(self, status: str) -> None:
        """Writes the rows that could not be written before."""
        if self._unwritten:
            self._append()

    def read(self) -> list[dict[str, str]]:
        """Returns the rows written so far; absent values are empty strings."""
        with self.path.open(encoding="utf-8", newline="") as file:
            try:
                reader = csv.DictReader(file)
                rows, names = list(reader), set(reader.fieldnames or ("step", "epoch"))
            except (UnicodeDecodeError, csv.Error) as error:
                raise UserError(f"{self.path} is damaged ({error}); restore it, or delete it") from error
        if not {"step", "epoch"} <= names:
            raise UserError(f"{self.path} is damaged (it has no columns step and epoch); restore it, or delete it")
        return rows

    @rank_zero_only
    def resume(self, rows: int) -> None:
        """Keeps the first `rows` rows."""
        kept = self.read()[:rows] if rows and self.path.exists() else []
        used = [name for name in (kept[0] if kept else {}) if any(row.get(name) for row in kept)]
        self.columns = ["step", "epoch", *(name for name in used if name not in ("step", "epoch"))]
        if len(kept) < rows:
            Console(highlight=False).print(
                f"{self.path} holds {len(kept)} of the {rows} rows that were written before the checkpoint; "
                "the others are lost",
                soft_wrap=True,
                markup=False,
            )
        self.rows, self._unwritten = len(kept), []
        self._rewrite([{name: row[name] for name in self.columns} for row in kept])

    def _rewrite(self, rows: list[dict[str, str]]) -> None:
        with whole_file(self.path) as file:
            writer = csv.DictWriter(file, self.columns, lineterminator="\n")
            writer.writeheader()
            writer.writerows(rows)
        self._columns_of_file = list(self.columns)


def _number(value: Any) -> float | int:
    number = value.item() if hasattr(value, "item") else value
    return number if isinstance(number, int | float) else float(number)
