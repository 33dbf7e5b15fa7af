"""Every YAML in configs/ trains: a new one is found here by itself, and an overlay is laid on digits.yaml."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from tests.cli.conftest import Answer, Bench, write_table

CONFIGS = Path(__file__).parents[2] / "configs"
NEEDS_FILES = {"adult", "california", "letter", "mnist", "mnist_strong", "telco"}
NEEDS_TABLE = {"tabular"}
MARKS = {"gpu": pytest.mark.gpu, "ddp": pytest.mark.slow}


def names() -> list[str]:
    return sorted(path.stem for path in CONFIGS.glob("*.yaml"))


@pytest.mark.parametrize("name", [pytest.param(name, marks=MARKS.get(name, ())) for name in names()])
def test_config_trains(name: str, here: Path, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    if name in NEEDS_FILES and not os.environ.get("MLP_LAB_DATA"):
        pytest.skip("MLP_LAB_DATA does not name a folder of data files")
    if name == "gpu" and not torch.cuda.is_available():
        pytest.skip("there is no CUDA device")
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    content = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
    layers = ["debug", name] if "model" in content else ["digits", "debug", name]
    words = [word for layer in layers for word in ("--config", CONFIGS / f"{layer}.yaml")]
    if name in NEEDS_TABLE:
        words += ["--data.path", write_table(here / "table.csv", rows=600), "--data.target", "y"]
    words += ["--trainer.max_epochs", "1", "--run.dir", "run"]
    answer = in_a_shell("fit", *words) if name == "ddp" else bench("fit", *words)
    assert answer.status == 0, answer.err
    assert answer.err == ""
    assert answer.last_line == str(here / "run")
    assert (here / "run" / "checkpoints" / "best.ckpt").is_file()


def in_a_shell(*words: object) -> Answer:
    """Runs a command in a process of its own: DDP starts the others by its command line."""
    environment = {**os.environ, "PYTHONPATH": str(CONFIGS.parent)}
    command = [sys.executable, "-m", "mlp_lab", *map(str, words)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=200)
    return Answer(done.returncode, done.stdout, done.stderr)


def test_recipes_name_their_runs_after_themselves() -> None:
    for name in names():
        content = yaml.safe_load((CONFIGS / f"{name}.yaml").read_text())
        if "model" in content:
            assert content["run"]["name"] == name
