"""Whole epochs of MNIST: what rounding leaves of a population's equality with its members alone."""

from __future__ import annotations

import os
from functools import cache
from pathlib import Path
from statistics import fmean, stdev
from typing import Any

import pytest
import torch

from mlp_lab.data.mnist import MNISTDataModule
from mlp_lab.population.module import PopulationModule
from mlp_lab.training.module import MLPModule
from mlp_lab.training.optimizers import OptimizerConfig
from tests.population.fits import fit

ROOT = Path(os.environ.get("MLP_LAB_DATA") or "data")
pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not (ROOT / "MNIST" / "raw").is_dir(),
        reason="MNIST is absent: set MLP_LAB_DATA to the folder that holds MNIST/raw",
    ),
]
SETTINGS: list[dict[str, Any]] = [
    {"depth": 1, "width": 64, "activation": "relu", "dropout": 0.2},
    {"depth": 2, "width": 96, "activation": "gelu"},
    {"depth": 3, "width": 24, "activation": "tanh"},
    {"depth": 1, "width": 200, "activation": "sigmoid"},
    {"depth": 2, "width": 40, "activation": "relu", "dropout": 0.4},
]


def data() -> MNISTDataModule:
    return MNISTDataModule(root=str(ROOT), batch_size=128, seed=0)


@cache
def spec() -> dict[str, Any]:
    return data().spec_dict


def member(seed: int, settings: dict[str, Any]) -> MLPModule:
    torch.manual_seed(seed)
    return MLPModule(spec(), **settings, optimizer=OptimizerConfig(name="adam", lr=1e-3))


def test_after_an_epoch_in_float32_each_member_is_where_it_would_be_alone() -> None:
    """Rounding grows with the steps: 422 of them move the loss by less than 1e-3 of it, the accuracy by 0.3 points."""
    population = PopulationModule([member(seed, settings) for seed, settings in enumerate(SETTINGS)])
    fit(population, 1, precision=32, data=data())
    for seed, (settings, together) in enumerate(zip(SETTINGS, population.scores, strict=True)):
        alone = fit(member(seed, settings), 1, precision=32, data=data()).callback_metrics
        assert together["loss"] == pytest.approx(float(alone["val/loss"]), rel=1e-3)
        assert together["accuracy"] == pytest.approx(float(alone["val/accuracy"]), abs=3e-3)


def test_bf16_scores_as_float32_does_within_the_noise_of_seeds() -> None:
    """Five seeds of two networks, five epochs: the means differ by less than one seed does from the next."""
    members = [(seed, settings) for settings in SETTINGS[:2] for seed in range(5)]
    accuracies: dict[str, list[float]] = {}
    for precision in ("32", "bf16-mixed"):
        population = PopulationModule([member(seed, settings) for seed, settings in members])
        fit(population, 5, precision=precision, data=data())
        accuracies[precision] = [scores["accuracy"] for scores in population.scores]
    for first in (0, 5):
        exact, rounded = (accuracies[precision][first : first + 5] for precision in ("32", "bf16-mixed"))
        assert abs(fmean(exact) - fmean(rounded)) < stdev(exact)  # 0.0002 and 0.0001, against 0.0010 and 0.0007
        assert min(rounded) > 0.96
