"""Whole runs for the tests: through the command line in this process, and in a forked one that really is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

from mlp_lab.cli.main import main

Command = Callable[..., None]


@pytest.fixture(scope="module", autouse=True)
def environment() -> Iterator[None]:
    """Gives back the environment: Lightning and the command line leave seeds and directories in it."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # sums of another number of threads have other bits
    with mock.patch.dict(os.environ):
        os.environ.pop("WANDB_API_KEY", None)
        os.environ["JSONARGPARSE_DEPRECATION_WARNINGS"] = "off"  # of what Lightning 2.6 calls
        yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def command() -> Command:
    """Runs one command of the program in this process."""

    def run(*words: object) -> None:
        assert main([str(word) for word in words]) == 0

    return run


@pytest.fixture(scope="session")
def killed_command() -> Iterator[Command]:
    """Runs one command in another process that kills itself (SIGKILL) at the given call of a method."""
    server = Path(__file__).with_name("killer.py")
    # A W&B service that this process started would outlive the killed one, and still think its run in use.
    environment = {name: value for name, value in os.environ.items() if "WANDB_SERVICE" not in name}
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen(
        [sys.executable, str(server)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
        env=environment,
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None

        def run(owner: str, method: str, call: int, when: str, *words: object) -> None:
            changes = {"WANDB_MODE": os.environ.get("WANDB_MODE", "offline")}
            request = [owner, method, call, when, changes, [str(word) for word in words]]
            print(json.dumps(request), file=process.stdin, flush=True)
            assert int(process.stdout.readline()) == -signal.SIGKILL

        yield run
        process.stdin.close()


@pytest.fixture(scope="session")
def assert_same_run() -> Callable[[Path, Path], None]:
    """Compares what two run directories hold, bit by bit."""

    def compare(one: Path, two: Path) -> None:
        assert (one / "metrics.csv").read_text() == (two / "metrics.csv").read_text()
        for name in ("last.ckpt", "best.ckpt"):
            first, second = (run / "checkpoints" / name for run in (one, two))
            assert first.exists() == second.exists()
            if first.exists():
                assert_same(_state(first), _state(second), name)

    return compare


def _state(path: Path) -> dict[str, Any]:
    """Returns what a checkpoint holds but the loops: their counters tell a resumed run from an uninterrupted one."""
    checkpoint = torch.load(path, weights_only=True)
    return {name: value for name, value in checkpoint.items() if name != "loops"}


def assert_same(one: Any, two: Any, where: str = "state") -> None:
    """Walks two nested structures; tensors and numbers must be equal, a NaN to a NaN."""
    if isinstance(one, torch.Tensor):
        assert torch.equal(one, two) or (one.isnan() == two.isnan()).all(), where
    elif isinstance(one, dict):
        assert one.keys() == two.keys(), where
        for key, value in one.items():
            assert_same(value, two[key], f"{where}: {key}")
    elif isinstance(one, list | tuple):
        assert len(one) == len(two), where
        for index, value in enumerate(one):
            assert_same(value, two[index], f"{where}[{index}]")
    else:
        assert one == two or (one != one and two != two), f"{where}: {one} and {two}"
