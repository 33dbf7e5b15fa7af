"""`sweeps/wandb_agent.yaml`: the command that W&B's agent makes of it, run as the agent runs it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import yaml
from wandb.sdk.launch.sweeps.utils import create_sweep_command, create_sweep_command_args

from tests.training.test_weights_and_biases import records, segments

ROOT = Path(__file__).parents[2]
POINT = {"model.depth": 2, "model.width": 32, "model.activation": "tanh", "model.optimizer.lr": 0.0123}


def command(point: dict[str, object]) -> list[str]:
    """Puts the parts of the command in place, as `wandb agent` does."""
    sweep = yaml.safe_load((ROOT / "sweeps" / "wandb_agent.yaml").read_text())
    assert set(sweep["parameters"]) == set(point)
    parts = create_sweep_command_args({"args": {name: {"value": value} for name, value in point.items()}})
    places = {**parts, "interpreter": [sys.executable], "env": ["/usr/bin/env"]}
    words = []
    for word in create_sweep_command(sweep["command"]):
        words += places[word[2:-1]] if word.startswith("${") else [word]
    return words


@pytest.mark.slow
def test_the_agents_command_trains_the_point_in_the_agents_run(tmp_path: Path) -> None:
    for name in ("configs", "sweeps"):
        (tmp_path / name).symlink_to(ROOT / name)
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "WANDB_MODE": "offline"}
    environment |= {"WANDB_RUN_ID": "agent1run", "WANDB_SWEEP_ID": "sweep1", "WANDB_PROJECT": "theirs"}
    words = [*command(POINT), "--trainer.max_epochs", "1"]
    done = subprocess.run(words, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "Ignoring" not in done.stderr
    run = next((tmp_path / "runs" / "digits").glob("*/"))
    config = yaml.safe_load((run / "config.yaml").read_text())["model"]
    assert (config["depth"], config["width"], config["activation"]) == (2, 32, "tanh")
    assert config["optimizer"]["lr"] == 0.0123
    [log] = segments(run)
    [started] = [record["run"] for record in records(log) if record["type"] == "run"]
    assert (started["run_id"], started["sweep_id"]) == ("agent1run", "sweep1")
