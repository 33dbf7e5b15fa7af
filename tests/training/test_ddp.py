"""Two processes through the command line against one: the same steps, rows, losses and metrics.

Everything runs in float64 (`64-true`), so that the order of summation, which two processes change, stays below 1e-6: in
float32 Adam turns a gradient of rounding noise into a full step, and two correct runs drift apart by 1e-4 in an epoch.
"""

from __future__ import annotations

import csv
import json
import math
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).parents[2]
# 1,437 training rows in batches of 359: four full batches and a last one of one row, of which one process has nothing.
WORDS = [
    "--config",
    str(ROOT / "configs" / "digits.yaml"),
    "--data.batch_size=359",
    "--data.eval_batch_size=179",  # 180 rows: here too, the last batch has one
    "--model.dropout=0.2",  # masks are those of the global rows
    "--model.width=16",
    "--model.schedule.name=cosine",
    "--trainer.precision=64-true",
    "--trainer.accelerator=cpu",
    "--trainer.max_epochs=3",
    "--trainer.log_every_n_steps=2",
    "--checkpoint.every_n_steps=3",
]
TWO = ["--config", str(ROOT / "configs" / "ddp.yaml")]
TOLERANCE = 1e-6


def launch(*words: object) -> subprocess.Popen[str]:
    """Starts the program in a process group of its own."""
    environment = {name: value for name, value in os.environ.items() if name not in ("LOCAL_RANK", "MLP_LAB_RUN_DIR")}
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "mlp_lab", *map(str, words)]
    pipe = subprocess.PIPE
    return subprocess.Popen(command, stdout=pipe, stderr=pipe, text=True, env=environment, start_new_session=True)


def run(*words: object) -> str:
    """Runs the program to its end and returns what it printed."""
    process = launch(*words)
    try:
        out, error = process.communicate(timeout=120)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        raise
    assert process.returncode == 0, error
    assert "sync_dist" not in error
    return out


def wait_for_rows(process: subprocess.Popen[str], directory: Path, count: int) -> None:
    """Waits until a run that trains has a checkpoint and so many rows."""
    deadline = time.monotonic() + 90
    while not (directory / "checkpoints" / "last.ckpt").exists() or len(rows(directory)) < count:
        assert process.poll() is None, "it ended before it could be stopped"
        assert time.monotonic() < deadline
        time.sleep(0.01)


def rows(directory: Path) -> list[dict[str, float]]:
    with (directory / "metrics.csv").open(newline="") as file:
        return [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(file)]


def assert_close(one: list[dict[str, float]], two: list[dict[str, float]]) -> None:
    assert len(one) == len(two)
    for first, second in zip(one, two, strict=True):
        assert first.keys() == second.keys()
        for name, value in first.items():
            assert math.isclose(value, second[name], rel_tol=TOLERANCE), (first["step"], name)


def weights(directory: Path, name: str = "last.ckpt") -> torch.Tensor:
    state = torch.load(directory / "checkpoints" / name, weights_only=True)["state_dict"]
    return torch.cat([value.flatten().double() for value in state.values()])


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory, command: Any, environment: None) -> Path:
    directory = tmp_path_factory.mktemp("alone") / "run"
    command("fit", *WORDS, f"--run.dir={directory}")
    return directory


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> Path:
    directory = tmp_path_factory.mktemp("together") / "run"
    out = run("fit", *WORDS, *TWO, f"--run.dir={directory}")
    assert out.splitlines()[-1] == str(directory)
    assert out.splitlines().count(str(directory)) == 1, "one process speaks"
    return directory


@pytest.mark.slow
def test_two_processes_take_the_steps_of_one(alone: Path, together: Path) -> None:
    assert_close(rows(alone), rows(together))
    assert rows(together)[-1]["step"] == 3 * 5
    torch.testing.assert_close(weights(alone), weights(together), rtol=TOLERANCE, atol=1e-9)


def test_one_record(together: Path) -> None:
    names = sorted(path.name for path in together.iterdir())
    assert names == ["checkpoints", "config.yaml", "diagnosis.json", "metrics.csv", "provenance.json"]
    assert json.loads((together / "provenance.json").read_text())["processes"] == 2
    assert [path.name for path in together.parent.iterdir()] == [together.name]


@pytest.mark.slow
def test_test_scores_are_those_of_one_process(alone: Path, together: Path, command: Any) -> None:
    command("test", "--run", alone)
    run("test", "--run", together)
    one, two = (json.loads((directory / "test.json").read_text()) for directory in (alone, together))
    for name in (name for name in one if name.startswith("test/")):
        assert math.isclose(one[name], two[name], rel_tol=TOLERANCE), name
    assert one["rows"] == two["rows"] == 180


@pytest.mark.slow
def test_killed_processes_go_on_as_if_nothing_had_happened(together: Path, tmp_path: Path) -> None:
    directory = tmp_path / "run"
    slower = ["--trainer.max_epochs=60", "--model.schedule.name=constant"]
    whole = tmp_path / "whole"
    run("fit", *WORDS, *TWO, *slower, f"--run.dir={whole}")
    process = launch("fit", *WORDS, *TWO, *slower, f"--run.dir={directory}")
    wait_for_rows(process, directory, 20)
    os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    assert len(rows(directory)) < len(rows(whole))
    run("fit", "--resume", directory)
    assert (directory / "metrics.csv").read_text() == (whole / "metrics.csv").read_text()
    assert torch.equal(weights(directory), weights(whole))
    assert torch.equal(weights(directory, "best.ckpt"), weights(whole, "best.ckpt"))


@pytest.mark.slow
@pytest.mark.parametrize("receiver", ["the first", "the second", "both"])
def test_terminated_processes_save_the_same_step_and_go_on_from_it(receiver: str, tmp_path: Path) -> None:
    directory, whole = tmp_path / "run", tmp_path / "whole"
    longer = ["--trainer.max_epochs=60", "--model.schedule.name=constant", "--checkpoint.every_n_steps=0"]
    run("fit", *WORDS, *TWO, *longer, f"--run.dir={whole}")
    process = launch("fit", *WORDS, *TWO, *longer, f"--run.dir={directory}")
    wait_for_rows(process, directory, 20)
    children = Path(f"/proc/{process.pid}/task/{process.pid}/children").read_text().split()
    second = next(int(child) for child in children if b"mlp_lab" in Path(f"/proc/{child}/cmdline").read_bytes())
    for pid in {"the first": [process.pid], "the second": [second], "both": [process.pid, second]}[receiver]:
        os.kill(pid, signal.SIGTERM)
    _, error = process.communicate(timeout=60)
    assert process.returncode == 143, error
    (told,) = [line for line in error.splitlines() if "terminated" in line]
    step = torch.load(directory / "checkpoints" / "last.ckpt", weights_only=True)["global_step"]
    assert told.startswith(f"terminated after step {step}, which is saved; go on with `")
    assert told.endswith(f" -m mlp_lab fit --resume {directory}`")
    state = Path(f"/proc/{second}/stat")
    assert not state.exists() or state.read_text().rpartition(")")[2].split()[0] == "Z"  # ended, and not yet reaped
    run("fit", "--resume", directory)
    assert (directory / "metrics.csv").read_text() == (whole / "metrics.csv").read_text()
    assert torch.equal(weights(directory), weights(whole))
