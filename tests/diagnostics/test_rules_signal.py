"""Gradients that explode or vanish, and saturated units: each rule on both sides of its threshold."""

import math
from typing import Any

import pytest

from mlp_lab.diagnostics.evidence import Evidence, Facts, Measured
from mlp_lab.diagnostics.rules_signal import causes, exploding_gradient, saturated_units, vanishing_gradient


def run(first: dict[str, float], epochs: list[float], *later: dict[str, float], **facts: Any) -> Evidence:
    known = {"depth": 4, "activation": "relu", "baseline_loss": 2.0, "baseline_val_loss": 2.0, "init": "pytorch"}
    plan = {"steps_per_epoch": 100, "planned_steps": 400}
    steps = [
        Measured(step=max(100 * at, 1), epoch=at, values={"signal/forward/1": 1.0, **values})
        for at, values in enumerate([first, *later])
    ]
    passes = [
        Measured(step=100 * (at + 1), epoch=at, values={"train/loss": loss, "val/loss": loss})
        for at, loss in enumerate(epochs)
    ]
    return Evidence(facts=Facts(**{**known, **plan, **facts}), steps=steps, epochs=passes)


def factors(weight: float, activation: float) -> dict[str, float]:
    """Returns the chain-rule split of four hidden layers, the head's part (layer 4) left to be what it likes."""
    pairs = {"weight": weight, "activation": activation}
    inner = {f"signal/{name}_factor/{layer}": value for name, value in pairs.items() for layer in (1, 2, 3)}
    return inner | {f"signal/{name}_factor/4": 1e-9 for name in pairs}


@pytest.mark.parametrize(("span", "loss", "found"), [(3.0, 50.0, True), (1.1, 50.0, False), (3.0, 5.0, False)])
def test_exploding_needs_gradient_and_loss(span: float, loss: float, found: bool):
    verdict = exploding_gradient(run({"signal/span": span, "train/loss": loss}, [1.0]))
    assert (verdict is not None) == found
    if verdict is not None:
        assert (verdict.severity, verdict.fix) == ("warning", ["--model.init he"])
        fails = exploding_gradient(run({"signal/span": span, "train/loss": loss}, [2.0]))
        assert fails is not None
        assert fails.severity == "critical"


@pytest.mark.parametrize(("share", "found"), [(0.44, False), (0.8, True)])
def test_saturated_at_the_start(share: float, found: bool):
    scaled = {"activation": "tanh", "input_rms": 1.0, "data": "TabularDataModule"}
    verdict = saturated_units(run({"units/saturated/1": share, "units/saturated/2": 0.1}, [1.0], **scaled))
    assert (verdict is not None) == found
    if verdict is not None:
        assert (verdict.layer, verdict.fix) == (1, ["--model.init xavier"])
        raw = saturated_units(run({"units/saturated/1": share}, [1.0], **{**scaled, "input_rms": 8.0}))
        assert raw is not None
        assert raw.fix == ["--data.scaling standard"]


def moves(first: float, others: float = 0.01) -> dict[str, float]:
    return {f"update/ratio/{layer}": first if layer == 1 else others for layer in range(1, 6)}


def test_a_vanished_gradient_under_sgd_is_told_after_an_epoch():
    first = {"signal/span": -4.0, **factors(0.577, 1 / math.sqrt(2)), **moves(1e-6)}
    assert vanishing_gradient(run(first, [])) is None  # not yet
    assert vanishing_gradient(run(first, [1.0])) is None  # it learns
    verdict = vanishing_gradient(run(first, [2.0]))
    assert verdict is not None
    assert (verdict.severity, verdict.layer, verdict.fix) == ("critical", 1, ["--model.init he"])
    assert "and the weights shrinks it" in verdict.message


def test_the_same_span_under_adam_needs_a_second_look():
    first = {"signal/span": -4.0, **factors(0.577, 0.7), **moves(0.01)}
    lost, open_ = {"signal/variation/4": 0.001}, {"signal/variation/4": 0.5}
    assert vanishing_gradient(run(first, [2.0, 2.0])) is None
    assert vanishing_gradient(run(first, [2.0, 2.0], {**lost, "signal/span": -3.9})) is not None
    assert vanishing_gradient(run(first, [2.0, 2.0], {**lost, "signal/span": -3.0})) is None  # it improves
    assert vanishing_gradient(run(first, [2.0, 2.0], {**open_, "signal/span": -3.9})) is None  # information passes


def test_sigmoid_is_cured_by_another_activation():
    first = {"signal/span": -4.0, **factors(0.577, 0.25), **moves(1e-6)}
    verdict = vanishing_gradient(run(first, [2.0], activation="sigmoid"))
    assert verdict is not None
    assert verdict.fix == ["--model.activation relu", "--model.init he"]
    assert "the activation's derivative" in verdict.message


@pytest.mark.parametrize(
    ("activation", "weight", "slope", "weights", "slopes"),
    [
        ("relu", math.sqrt(2), 1 / math.sqrt(2), 0.0, 0.0),  # He: healthy
        ("relu", 0.1 * math.sqrt(2), 1 / math.sqrt(2), -3.0, 0.0),
        ("tanh", 0.1, 1.0, -3.0, 0.0),
        ("sigmoid", 1.0, 0.1, 0.0, -3.0),
        ("tanh", 10.0, 0.1, 0.0, -3.0),  # growth is no cause
    ],
)
def test_causes_by_hand(activation: str, weight: float, slope: float, weights: float, slopes: float):
    first = Measured(step=1, epoch=0, values=factors(weight, slope))
    found = causes(first, Facts(activation=activation, depth=4))
    assert found == pytest.approx((weights, slopes), abs=1e-4)  # relu's gain is integrated to 1e-7
