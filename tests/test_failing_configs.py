"""The configs that fail on purpose do fail, in the way that they say, and their cure works."""

import json
import shlex
from pathlib import Path

import pandas as pd
import pytest
import torch

from mlp_lab import MLPModule, TabularDataModule
from mlp_lab.cli.main import main

CONFIGS = Path(__file__).parents[1] / "configs"
GUESSING = 0.15  # validation accuracy on ten balanced classes that shows nothing learnt


def fit(config: str, folder: Path, *flags: str) -> float:
    """Returns the last validation accuracy."""
    assert main(["fit", "--config", str(CONFIGS / config), "--run.dir", str(folder), *flags]) == 0
    return float(pd.read_csv(folder / "metrics.csv")["val/accuracy"].dropna().iloc[-1])


def activations(folder: Path) -> tuple[torch.Tensor, ...]:
    """Returns each hidden layer's activations on the validation rows, (N, H), after the last epoch."""
    module = MLPModule.load_from_checkpoint(folder / "checkpoints" / "last.ckpt", weights_only=True).eval()
    part = TabularDataModule(dataset="digits", seed=0, verbose=False).part("val")
    with torch.no_grad():
        return module.model(part.numeric, trace=True)[1].a


@pytest.mark.slow
def test_dead_relu_is_dead_and_a_bias_of_zero_brings_it_to_life(tmp_path: Path) -> None:
    assert fit("dead_relu.yaml", tmp_path / "dead") < GUESSING
    for a in activations(tmp_path / "dead"):
        assert (a == 0).all(dim=0).float().mean() > 0.9
    assert fit("dead_relu.yaml", tmp_path / "alive", "--model.bias", "0") > 0.9


@pytest.mark.slow
def test_sigmoid_deep_carries_no_signal_and_relu_with_he_does(tmp_path: Path) -> None:
    assert fit("sigmoid_deep.yaml", tmp_path / "failing") < GUESSING
    spread = [float(a.std(dim=0).mean()) for a in activations(tmp_path / "failing")]
    assert spread[-1] < 1e-4 * spread[0]
    assert fit("sigmoid_deep.yaml", tmp_path / "mended", "--model.activation", "relu", "--model.init", "he") > 0.85


def diagnosis(folder: Path) -> list[dict]:
    found: list[dict] = json.loads((folder / "diagnosis.json").read_text("utf-8"))
    return found


@pytest.mark.slow
@pytest.mark.parametrize(
    ("config", "code", "said"),
    [
        ("sigmoid_deep.yaml", "vanishing_gradient", "the activation's derivative shrinks it"),
        ("dead_relu.yaml", "dead_units", "their bias began at -10"),
    ],
)
def test_the_fault_is_named_and_the_printed_fix_pasted_cures_it(
    config: str, code: str, said: str, tmp_path: Path
) -> None:
    assert fit(config, tmp_path / "failing") < GUESSING
    first = diagnosis(tmp_path / "failing")[0]
    assert (first["code"], first["severity"]) == (code, "critical")
    assert said in first["message"]
    flags = [word for flag in first["fix"] for word in shlex.split(flag)]
    assert fit(config, tmp_path / "mended", *flags) > 0.85
    assert code not in [one["code"] for one in diagnosis(tmp_path / "mended")]
