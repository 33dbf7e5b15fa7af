"""Callbacks, loggers, profilers and strategies of Lightning, named on the command line."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import torch

from tests.cli.conftest import Bench, write_config, write_table

FINDER = ("--trainer.callbacks+=LearningRateFinder", "--trainer.callbacks.num_training_steps", "40")


def checkpoint(run: Path) -> dict[str, Any]:
    return torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)


def test_rate_finder_sets_a_useful_rate_before_a_schedule_and_repeats(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_table(tmp_path / "table.csv", rows=200)
    config = write_config(tmp_path / "config.yaml")
    words = ("fit", "--config", config, "--model.schedule.name", "cosine", *FINDER, "--trainer.max_epochs", "2")
    answer = bench(*words, "--run.dir", "run")
    assert answer.status == 0, answer.err
    found = checkpoint(tmp_path / "run")["hyper_parameters"]["optimizer"]["lr"]
    assert f"learning rate {found:.3g} (found by LearningRateFinder; model.optimizer.lr 0.001)" in answer.out
    assert 1e-3 < found < 1
    assert not list((tmp_path / "run").glob(".lr_find*"))

    assert bench("fit", "--config", "run/config.yaml", "--run.dir", "again").status == 0
    assert bench(*words, "--trainer.max_epochs", 1, "--run.dir", "cut").status == 0
    assert checkpoint(tmp_path / "cut")["hyper_parameters"]["optimizer"]["lr"] == found
    one, two = checkpoint(tmp_path / "run"), checkpoint(tmp_path / "again")
    for name, weight in one["state_dict"].items():
        assert torch.equal(weight, two["state_dict"][name])


def test_rate_finder_that_validates_is_no_validation_of_a_run_that_stops_before_its_first(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_table(tmp_path / "table.csv", rows=200)
    config = write_config(tmp_path / "config.yaml")
    words = ("--data.batch_size", "32", "--trainer.max_steps", "1", "--run.dir", "run")
    answer = bench("fit", "--config", config, *FINDER, *words)
    assert answer.status == 0, answer.err
    assert "no validation in" in answer.out


def test_resumed_run_keeps_the_rate_that_was_found(
    bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_table(tmp_path / "table.csv", rows=200)
    config = write_config(tmp_path / "config.yaml")
    words = ("fit", "--config", config, *FINDER)
    assert bench(*words, "--trainer.max_epochs", 2, "--run.dir", "whole").status == 0
    assert bench(*words, "--trainer.max_epochs", 1, "--run.dir", "cut").status == 0
    answer = bench("fit", "--resume", "cut", "--trainer.max_epochs", "2")
    assert answer.status == 0
    assert "LearningRateFinder" not in answer.out
    whole, cut = checkpoint(tmp_path / "whole"), checkpoint(tmp_path / "cut")
    for name, weight in whole["state_dict"].items():
        assert torch.equal(weight, cut["state_dict"][name])


@pytest.mark.slow
@pytest.mark.parametrize(
    ("words", "exact"),  # exact: its state at the end of a run is that in the middle of a longer one
    [
        ("Timer --trainer.callbacks.duration 01:00:00:00", True),
        ("StochasticWeightAveraging --trainer.callbacks.swa_lrs 0.01 --trainer.callbacks.swa_epoch_start 1", False),
        ("ModelPruning --trainer.callbacks.pruning_fn l1_unstructured --trainer.callbacks.amount 0.5", False),
        ("EMAWeightAveraging", True),
        ("ModelCheckpoint --trainer.callbacks.monitor val/loss", True),
    ],
)
def test_run_with_a_callback_is_repeated_measured_and_resumed(
    words: str, exact: bool, bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_table(tmp_path / "table.csv")
    config = write_config(tmp_path / "config.yaml")
    fit = f"fit --config {config} --trainer.callbacks+={words}"
    assert bench(*fit.split(), "--trainer.max_epochs", 3, "--run.dir", "whole").status == 0
    for line in (
        f"{fit} --trainer.max_epochs 2 --run.dir cut",
        "test --run cut",
        "fit --config cut/config.yaml --run.dir again",
        "fit --resume cut --trainer.max_epochs 3",
    ):
        answer = bench(*line.split())
        assert answer.status == 0, (line, answer.err)
    whole, cut = checkpoint(tmp_path / "whole"), checkpoint(tmp_path / "cut")
    for name, weight in whole["state_dict"].items() if exact else ():
        assert torch.equal(weight, cut["state_dict"][name])


@pytest.mark.parametrize("profiler", ["simple", "advanced"])
def test_profiler_reports(profiler: str, bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write_table(tmp_path / "table.csv")
    reports: list[str] = []
    monkeypatch.setattr("lightning.pytorch.profilers.profiler.log.info", reports.append)
    assert bench("fit", "--config", write_config(tmp_path / "config.yaml"), "--trainer.profiler", profiler).status == 0
    assert "Profiler Report" in reports[0]
    assert logging.getLogger("lightning.pytorch.profilers.profiler").isEnabledFor(logging.INFO)
