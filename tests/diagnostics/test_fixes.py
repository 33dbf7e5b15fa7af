"""Cures are flags that the settings accept, computed from the run's own numbers."""

import math

import pytest

from mlp_lab.diagnostics import fixes
from mlp_lab.diagnostics.evidence import Facts
from mlp_lab.model.activations import ACTIVATIONS
from mlp_lab.model.mlp import MLP


@pytest.mark.parametrize("value", [1e-7, 0.00034, 0.02, 0.5, 1.0, 7.3, 99.0])
def test_rounding_stays_close_and_is_short(value: float):
    near = fixes.rounded(value)
    assert abs(math.log10(near / value)) < 0.16  # half the widest gap, from 1 to 2, is 0.15
    assert f"{near:e}"[0] in "1235"
    assert float(f"{near:.0e}") == near


@pytest.mark.parametrize("activation", ACTIVATIONS)
@pytest.mark.parametrize("depth", [2, 12])
def test_the_recommended_init_exists_for_every_activation(activation: str, depth: int):
    MLP(
        4,
        2,
        depth=depth,
        width=8,
        activation=activation,
        init=fixes.best_init(Facts(activation=activation, depth=depth)),
    )


def test_a_learning_rate_is_multiplied_and_unknown_ones_are_left_alone():
    assert fixes.learning_rate(Facts(lr=3.0), 1 / 30) == ["--model.optimizer.lr 0.1"]
    assert fixes.learning_rate(Facts(), 0.1) == []
    assert fixes.learning_rate(Facts(lr=1.0), math.inf) == []


def test_signal_flow_mends_what_is_at_fault():
    sigmoid, relu = Facts(activation="sigmoid", depth=8), Facts(activation="relu", depth=8, init="pytorch")
    assert fixes.signal_flow(sigmoid, weights=False, activation=True)[0] == "--model.activation relu"
    assert fixes.signal_flow(relu, weights=True, activation=False) == ["--model.init he"]
    good = Facts(activation="relu", depth=30, init="he")
    assert fixes.signal_flow(good, weights=True, activation=False) == ["--model.norm layer"]
    normed = Facts(activation="relu", depth=30, init="he", norm="layer")
    assert fixes.signal_flow(normed, weights=True, activation=False) == ["--model.residual true"]


def test_revival_begins_with_the_bias():
    assert fixes.revival(Facts(activation="relu", bias=-10.0, lr=0.05)) == ["--model.bias 0"]
    assert fixes.revival(Facts(activation="relu", lr=0.05)) == [
        "--model.activation leaky_relu",
        "--model.init he",
        "--model.optimizer.lr 0.005",
    ]
    assert fixes.revival(Facts(activation="leaky_relu", lr=0.05)) == ["--model.optimizer.lr 0.005"]


def test_input_scaling_is_the_data_modules_own_flag():
    assert fixes.input_scaling(Facts(data="TabularDataModule")) == ["--data.scaling standard"]
    assert fixes.input_scaling(Facts(data="MNISTDataModule")) == ["--data.normalize true"]
    assert fixes.input_scaling(Facts(data="Mine")) == []


def test_scaled_inputs_let_plain_gradients_take_larger_steps():
    facts = Facts(data="TabularDataModule", optimizer="sgd", lr=0.1, input_rms=7.8)
    assert fixes.input_scaling(facts, [0.0035, 0.012]) == ["--data.scaling standard", "--model.optimizer.lr 0.3"]
    assert fixes.input_scaling(facts, [0.0035, 0.05])[1:] == ["--model.optimizer.lr 0.2"]  # the fastest bounds it
    assert fixes.input_scaling(facts, [0.0035, 0.09])[1:] == []  # less than double: not worth a flag
    assert fixes.input_scaling(facts, [0.02, 0.012])[1:] == []
    adam = Facts(data="TabularDataModule", optimizer="adam", lr=0.1, input_rms=7.8)
    assert fixes.input_scaling(adam, [0.0035, 0.012])[1:] == []  # its steps do not grow with the gradient


def test_class_balance_comes_with_faster_steps_where_all_were_small():
    facts = Facts(optimizer="sgd", lr=0.003)
    assert fixes.class_balance(facts, 0.003) == ["--model.class_weights balanced", "--model.optimizer.lr 0.03"]
    assert fixes.class_balance(facts, 0.009)[1:] == ["--model.optimizer.lr 0.03"]
    assert fixes.class_balance(facts, 0.02)[1:] == fixes.class_balance(facts, 0.0)[1:] == []


def test_regularisation_decays_by_what_the_run_allows():
    flags = fixes.regularisation(Facts(optimizer="adam", lr=1e-3, planned_steps=3000))
    assert flags == ["--model.dropout 0.5", "--model.optimizer.name adamw", "--model.optimizer.weight_decay 0.3"]
    assert fixes.regularisation(Facts(optimizer="sgd", lr=0.1, planned_steps=30, dropout=0.5)) == [
        "--model.dropout 0.65",
        "--model.optimizer.weight_decay 0.01",
    ]


def test_capacity_is_several_units_per_class():
    assert fixes.more_capacity(Facts(depth=2, widths=(2, 2), classes=26)) == ["--model.depth 2", "--model.width 128"]
    assert fixes.without(Facts(), ["dropout", "weight_decay"]) == [
        "--model.dropout 0",
        "--model.optimizer.weight_decay 0",
    ]
