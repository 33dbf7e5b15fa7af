"""What a run leaves behind: configuration, provenance, one row a measurement, also when it goes on or is moved."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml

from mlp_lab.training.record import device_name

WORDS = [
    "--data.verbose=false",
    "--data.batch_size=128",
    "--model.width=8",
    "--trainer.enable_progress_bar=false",
    "--trainer.log_every_n_steps=5",
]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory, command: Any, environment: None) -> Path:
    directory = tmp_path_factory.mktemp("record") / "run"
    command("fit", *WORDS, "--trainer.max_epochs=2", "--seed_everything=3", f"--run.dir={directory}")
    return directory


def test_config_is_resolved_and_repeats_the_run(run: Path, tmp_path: Path, command: Any, assert_same_run: Any) -> None:
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert config["model"]["activation"] == "relu", "defaults are written out"
    assert config["seed_everything"] == 3
    assert "dir" not in config["run"]
    command("fit", "--config", run / "config.yaml", f"--run.dir={tmp_path / 'again'}")
    assert_same_run(run, tmp_path / "again")


def test_provenance(run: Path) -> None:
    record = json.loads((run / "provenance.json").read_text())
    assert (record["seed"], record["device"], record["processes"], record["overrides"]) == (3, "cpu", 1, [])
    assert record["data"]["rows"] == [1437, 180, 180]
    assert all(len(record["data"][name]) == 16 for name in ("fingerprint", "split"))
    assert record["run_id"].startswith("run-")


def test_a_finished_run_prints_its_result_and_changes_nothing(
    run: Path, tmp_path: Path, command: Any, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(run, tmp_path / "run")
    command("fit", "--resume", tmp_path / "run")
    assert capsys.readouterr().out.splitlines()[-1] == str(tmp_path / "run")
    for name in ("metrics.csv", "config.yaml", "checkpoints/last.ckpt", "checkpoints/best.ckpt"):
        assert (tmp_path / "run" / name).read_bytes() == (run / name).read_bytes(), name


def test_a_moved_run_goes_on_and_its_overrides_are_recorded(
    run: Path, tmp_path: Path, command: Any, assert_same_run: Any
) -> None:
    moved, whole = tmp_path / "moved", tmp_path / "whole"
    shutil.copytree(run, moved)
    command("fit", "--resume", moved, "--trainer.max_epochs=4")
    command("fit", *WORDS, "--trainer.max_epochs=4", "--seed_everything=3", f"--run.dir={whole}")
    assert_same_run(whole, moved)
    (resumed,) = json.loads((moved / "provenance.json").read_text())["resumed"]
    assert resumed["overrides"] == ["--trainer.max_epochs=4"]
    assert resumed["run_id"] == json.loads((run / "provenance.json").read_text())["run_id"]
    command("test", "--run", moved)
    assert (moved / "test.json").exists()


def test_device_names() -> None:
    trainer: Any = SimpleNamespace(strategy=SimpleNamespace(root_device=torch.device("cpu")))
    assert device_name(trainer) == "cpu"
