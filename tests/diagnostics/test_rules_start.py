"""Data, frozen layers, initial weights and input scale: each rule on both sides of its threshold."""

import math
from typing import Any

import pytest

from mlp_lab.diagnostics import rules_start
from mlp_lab.diagnostics.evidence import Evidence, Facts, Measured
from mlp_lab.diagnostics.rules_start import (
    frozen_layer,
    nonfinite_data,
    poor_init,
    sensible_scales,
    small_eps,
    unscaled_inputs,
)
from mlp_lab.diagnostics.scan import NonFinite

HE = math.sqrt(2)


def network(**facts: Any) -> Evidence:
    plain = {"depth": 4, "widths": (8,) * 4, "activation": "relu", "weight_gains": (HE,) * 4 + (1.0,)}
    return Evidence(
        facts=Facts(**{**plain, "baseline_loss": 2.3, "baseline_val_loss": 2.3, "steps_per_epoch": 10, **facts})
    )


def test_bad_data_names_row_and_column_and_leaves_the_column_out():
    found = NonFinite(step=7, place="data", row=3, column="age", tensor="numeric")
    verdict = nonfinite_data(Evidence(facts=Facts(data="TabularDataModule"), nonfinite=found))
    assert verdict is not None
    assert (verdict.code, verdict.severity, verdict.step) == ("nonfinite", "critical", 7)
    assert "row 3" in verdict.message
    assert "'age'" in verdict.message
    assert verdict.fix == ["--data.drop \"['age']\""]
    own = nonfinite_data(Evidence(nonfinite=found))
    assert own is not None
    assert own.fix == []
    assert nonfinite_data(Evidence(nonfinite=NonFinite(step=7, place="loss"))) is None


def test_a_frozen_layer_is_named_with_the_line_that_frees_it():
    verdict = frozen_layer(network(frozen_layers=(1, 5)))
    assert verdict is not None
    assert (verdict.layer, verdict.severity) == (1, "warning")
    assert verdict.fix == [
        "module.model.blocks[0].linear.requires_grad_(True)",
        "module.model.head.requires_grad_(True)",
    ]
    assert frozen_layer(network()) is None


@pytest.mark.parametrize(("gradient", "frozen"), [(0.5, True), (1e-6, False)])
def test_a_layer_that_does_not_move_is_frozen_unless_its_gradient_has_vanished(gradient: float, frozen: bool):
    evidence = network(depth=1)
    values = {"update/ratio/1": 0.0, "update/ratio/2": 0.01, "grad/norm/1": gradient, "grad/norm/2": 1.0}
    evidence.steps = [Measured(step=step, epoch=0, values=values) for step in range(1, 7)]
    assert (frozen_layer(evidence) is not None) == frozen


def test_equal_units_are_certain_before_the_first_step():
    verdict = poor_init(network(identical_rows=(1, 2)))
    assert verdict is not None
    assert (verdict.severity, verdict.layer, verdict.fix) == ("critical", 1, ["--model.init he"])
    dropped = poor_init(network(identical_rows=(1,), dropout=0.5))  # dropout breaks the tie
    assert dropped is not None
    assert dropped.severity == "warning"


def test_a_zero_head_is_fine_and_a_hidden_layer_of_zeros_is_not():
    assert poor_init(network(zero_layers=(5,))) is None
    assert poor_init(network(zero_layers=(2,))) is not None


@pytest.mark.parametrize(
    ("scale", "found"), [(HE, False), (1.0, False), (0.577, False), (2.7, False), (4.3, True), (0.2, True)]
)
def test_the_scale_of_the_weights(scale: float, found: bool):
    evidence = network(weight_gains=(scale,) * 4 + (1.0,))
    verdict = poor_init(evidence)
    assert (verdict is not None) == found
    if verdict is not None:
        assert verdict.severity == "warning"
        evidence.epochs = [Measured(step=10, epoch=0, values={"train/loss": 2.3, "val/loss": 2.3})]
        assert poor_init(evidence).severity == "critical"  # type: ignore[union-attr]
        assert poor_init(network(weight_gains=(scale,) * 4 + (1.0,), norm="batch")) is None


def test_every_published_scale_is_sensible():
    for activation in ("relu", "tanh", "sigmoid", "gelu", "selu", "softplus"):
        low, high = sensible_scales(activation)
        assert rules_start.SMALL_SCALE * low < 1 / math.sqrt(3) < high  # PyTorch's default too is no verdict of its own


@pytest.mark.parametrize(
    ("rms", "worst", "found"),
    [
        (1.0, 1.0, False),
        (0.35, 0.7, False),
        (1.2, 5.0, False),
        (7.8, 12.0, True),
        (1.0, 40.0, True),
        (0.001, 0.01, True),
    ],
)
def test_the_scale_of_the_inputs(rms: float, worst: float, found: bool):
    facts = Facts(input_rms=rms, input_worst_rms=worst, input_mean=0.0, data="TabularDataModule")
    verdict = unscaled_inputs(Evidence(facts=facts))
    assert (verdict is not None) == found
    if verdict is not None:
        assert verdict.fix == ["--data.scaling standard"]
    assert unscaled_inputs(Evidence()) is None


@pytest.mark.parametrize(
    ("precision", "eps", "severity"),
    [
        ("float16", 1e-8, "critical"),
        ("float16", 1e-7, "warning"),
        ("float16", 1e-4, None),
        ("float16", math.nan, None),
        ("bfloat16", 1e-8, None),
        ("float32", 1e-8, None),
    ],
)
def test_eps_too_small_for_float16_is_named_with_one_that_is_not(precision: str, eps: float, severity: str | None):
    verdict = small_eps(network(precision=precision, eps=eps))
    assert (None if verdict is None else verdict.severity) == severity
    if verdict is not None:
        assert verdict.fix == ["--model.optimizer.eps 1e-4"]
        assert f"eps of {eps:g}" in verdict.message
