"""`fit --replicates N`: every replicate is the run alone that its seed makes, and every command knows them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from tests.cli.conftest import Bench

SMALL = ["--trainer.max_epochs", "3", "--model.width", "20", "--model.dropout", "0.2", "--trainer.precision", "64"]
CLIPPED = ["--trainer.gradient_clip_val", "0.5", "--early_stopping.patience", "1"]


def best(run: Path) -> dict[str, Any]:
    checkpoint: dict[str, Any] = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)
    return checkpoint


def test_every_replicate_is_the_run_alone_of_its_seed(here: Path, bench: Bench) -> None:
    """1e-9: float64, three epochs; clipped, stopped and best each by itself."""
    together = bench("fit", *SMALL, *CLIPPED, "--replicates", "3", "--seed_everything", "5", "--run.dir", "all")
    assert together.status == 0
    kept = best(here / "all")["population"]["best"]
    for replicate in range(3):
        seeds = ["--seed_everything", str(5 + replicate), "--data.seed", "5"]
        assert bench("fit", *SMALL, *CLIPPED, *seeds, "--run.dir", f"one{replicate}").status == 0
        alone = best(here / f"one{replicate}")["state_dict"]
        for name, value in kept[replicate]["state"].items():
            torch.testing.assert_close(value, alone[f"model.{name}"], rtol=1e-9, atol=1e-9)


def test_numbers_are_means_and_deviations_and_the_ensemble_predicts(here: Path, bench: Bench) -> None:
    answer = bench("fit", *SMALL, "--replicates", "2", "--run.dir", "all")
    assert "mean ± standard deviation of 2 replicates" in answer.out
    rows = pd.read_csv(here / "all" / "metrics.csv").dropna(subset=["val/loss"])
    assert (rows["val/loss_sd"] > 0).all()
    assert bench("test", "--run", "all").status == 0
    scores = json.loads((here / "all" / "test.json").read_text())
    assert scores["test/ensemble_loss"] < scores["test/loss"]  # Jensen's inequality
    assert scores["test/loss_sd"] > 0
    measured = bench("validate", "--run", "all")
    both = [one["scores"]["loss"] for one in best(here / "all")["population"]["best"].values()]
    assert f"{sum(both) / 2:.4f} ± {abs(both[0] - both[1]) / 2**0.5:.4f}" in measured.out
    assert bench("predict", "--run", "all").status == 0
    predictions = pd.read_csv(here / "all" / "predictions.csv")
    assert (len(predictions), round(predictions.iloc[0, 3:].sum(), 6)) == (180, 1.0)


def test_a_run_that_was_cut_off_goes_on_as_if_it_had_not(here: Path, bench: Bench) -> None:
    constant = ["--model.schedule.name", "constant", "--replicates", "2"]
    assert bench("fit", *SMALL, *constant, "--run.dir", "whole").status == 0
    assert bench("fit", *SMALL, *constant, "--trainer.max_epochs", "1", "--run.dir", "cut").status == 0
    assert bench("fit", "--resume", "cut", "--trainer.max_epochs", "3").status == 0
    assert (here / "cut" / "metrics.csv").read_text() == (here / "whole" / "metrics.csv").read_text()
    one, other = best(here / "cut"), best(here / "whole")
    for number, member in other["population"]["best"].items():
        for name, value in member["state"].items():
            assert torch.equal(one["population"]["best"][number]["state"][name], value)


@pytest.mark.parametrize(
    ("flags", "line"),
    [
        (["--model.optimizer.name", "muon"], "model.optimizer.name: 'muon' trains alone; replicates take sgd, adam"),
        (["--trainer.accumulate_grad_batches", "2"], "trainer.accumulate_grad_batches: 2 is not possible"),
        (["--model.schedule.name", "plateau"], "model.schedule.name: 'plateau'"),
        (["--diagnostics.groups", "[noise]"], "diagnostics.groups: 'noise' is not measured of a population"),
        (["--replicates", "0"], "replicates"),
        (["--replicates", "10000", "--model.width", "4096"], "replicates: 10000 take about "),
    ],
)
def test_what_trains_alone_is_refused(here: Path, bench: Bench, flags: list[str], line: str) -> None:
    answer = bench("fit", "--replicates", "2", *flags, "--run.dir", "none")
    assert (answer.status, len(answer.err.splitlines())) == (2, 1)
    assert line in answer.err
    assert not (here / "none").exists()


def test_patience_zero_lets_replicates_train_to_the_end(here: Path, bench: Bench) -> None:
    assert bench("fit", *SMALL, "--replicates", "2", "--early_stopping.patience", "0", "--run.dir", "all").status == 0
    assert pd.read_csv(here / "all" / "metrics.csv")["epoch"].max() == 2
