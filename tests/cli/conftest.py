"""A command line in this process, and tables to give it."""

from __future__ import annotations

import os
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest

from mlp_lab.cli.main import main
from mlp_lab.training.tracking import RUN_DIR_VARIABLE

PROCESS_STATE = (RUN_DIR_VARIABLE, "PL_GLOBAL_SEED", "PL_SEED_WORKERS", "COLUMNS")


class Answer(NamedTuple):
    """What a command gave back."""

    status: int
    out: str
    err: str

    @property
    def last_line(self) -> str:
        return self.out.splitlines()[-1]


Bench = Callable[..., Answer]


@pytest.fixture
def bench(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    """Runs a command as the shell would, and leaves the process as it was."""
    for name in PROCESS_STATE:
        monkeypatch.setenv(name, "")
        monkeypatch.delenv(name)
    monkeypatch.setattr("sys.argv", ["tests"])
    handler = signal.getsignal(signal.SIGINT)

    def run(*words: object) -> Answer:
        capsys.readouterr()
        status = main([str(word) for word in words])
        return Answer(status, *capsys.readouterr())

    yield run
    signal.signal(signal.SIGINT, handler)


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory."""
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_table(path: Path, rows: int = 60, header: str = "a,b,c,y", **cells: str) -> Path:
    """Writes two numbers, a category and a yes or no per row; `cells` puts `text` where `row3="text"` says."""
    rng = np.random.default_rng(0)
    lines = [header]
    for row in range(rows):
        a, b = rng.normal(size=2)
        lines.append(f"{a:.3f},{b:.3f},{'xyz'[row % 3]},{('no', 'yes')[int(a + b > 0)]}")
    for name, text in cells.items():
        lines[int(name.removeprefix("row"))] = text
    path.write_text("\n".join(lines) + "\n", "utf-8")
    return path


def write_config(path: Path, table: str = "table.csv", target: str = "y", model: str = "{depth: 1, width: 8}") -> Path:
    """Writes a config for one fast epoch on a table, without a progress table."""
    path.write_text(
        "data:\n  class_path: TabularDataModule\n"
        f"  init_args: {{path: {table}, target: {target}, batch_size: 8, verbose: false}}\n"
        f"model: {model}\ntrainer: {{max_epochs: 1, enable_progress_bar: false}}\n"
    )
    return path


@pytest.fixture(scope="session")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run of one epoch on the folder's `table.csv`; to be copied, not changed."""
    folder = tmp_path_factory.mktemp("finished")
    write_table(folder / "table.csv")
    config = write_config(folder / "config.yaml", table=str(folder / "table.csv"))
    before = {name: os.environ.get(name) for name in PROCESS_STATE}
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("sys.argv", ["tests"])
        assert main(["fit", "--config", str(config), "--run.dir", str(folder / "run")]) == 0
    for name, value in before.items():
        os.environ.pop(name, None)
        if value is not None:
            os.environ[name] = value
    return folder / "run"
