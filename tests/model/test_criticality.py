"""The edge of chaos against published constants, closed forms and a wide random network."""

import math

import pytest
import torch

from mlp_lab.model.activations import ACTIVATIONS
from mlp_lab.model.criticality import chi, critical_point, length_map, length_slope, second_moment

HAVE_ONE = [name for name in ACTIVATIONS if name not in ("softplus", "sigmoid")]


@pytest.mark.parametrize("name", HAVE_ONE)
def test_critical_point_is_a_fixed_point_where_gradients_keep_their_size(name):
    record = ACTIVATIONS[name]
    weight_variance, bias_variance, q = critical_point(record)
    assert bias_variance >= 0
    assert chi(record, q, weight_variance) == pytest.approx(1, abs=1e-9)
    assert length_map(record, q, weight_variance, bias_variance) == pytest.approx(q, rel=1e-5)
    assert length_slope(record, q, weight_variance) <= 1 + 2e-6


@pytest.mark.parametrize(
    ("name", "weight_variance", "bias_variance", "tolerance"),
    [
        ("identity", 1.0, 0.0, 1e-9),
        ("relu", 2.0, 0.0, 1e-9),  # He et al. (2015)
        ("leaky_relu", 2 / (1 + 0.01**2), 0.0, 1e-9),
        ("prelu", 2 / (1 + 0.25**2), 0.0, 1e-9),
        ("gelu", 1.98305, 0.17292, 2e-5),  # Roberts, Yaida and Hanin (2022), section 5.3.4, five decimals
        ("silu", 1.98800, 0.55514, 2e-5),  # the same, swish
    ],
)
def test_published_values(name, weight_variance, bias_variance, tolerance):
    point = critical_point(ACTIVATIONS[name])
    assert point.weight_variance == pytest.approx(weight_variance, abs=tolerance)
    assert point.bias_variance == pytest.approx(bias_variance, abs=tolerance)


def test_sine_in_closed_form():
    """E sin²(√q z) = (1 - e^(-2q))/2 and E cos²(√q z) = (1 + e^(-2q))/2."""
    point = critical_point(ACTIVATIONS["sine"])
    decay = math.exp(-2 * point.q)
    assert point.weight_variance == pytest.approx(2 / (1 + decay), rel=1e-9)
    assert point.bias_variance == pytest.approx(point.q - (1 - decay) / (1 + decay), rel=1e-6)


@pytest.mark.parametrize("name", ["softplus", "sigmoid"])
def test_no_fixed_point(name):
    assert critical_point(ACTIVATIONS[name]) is None


@pytest.mark.parametrize("name", ["tanh", "gelu", "hardtanh", "elu"])
def test_length_slope_is_the_derivative_of_the_length_map(name):
    record, q, step = ACTIVATIONS[name], 0.8, 1e-3
    # central differences: truncation of order step²; a kink that crosses a node adds up to 1e-4
    numeric = (length_map(record, q + step, 1.5, 0.1) - length_map(record, q - step, 1.5, 0.1)) / (2 * step)
    assert length_slope(record, q, 1.5) == pytest.approx(numeric, abs=3e-4)


def test_a_wide_random_layer_follows_the_theory():
    """One layer of 2,000 units fed by 2,000 Gaussian units; Monte-Carlo error of a variance is about √(2/2000) = 3%."""
    torch.manual_seed(0)
    record, width, q = ACTIVATIONS["tanh"], 2000, 0.7
    z = math.sqrt(q) * torch.randn(width, dtype=torch.float64)
    weight = torch.randn(width, width, dtype=torch.float64) * math.sqrt(1.8 / width)
    assert (weight @ record.function(z)).square().mean().item() == pytest.approx(
        1.8 * second_moment(record, q), rel=0.1
    )
    gradient = torch.randn(width, dtype=torch.float64)
    growth = ((gradient @ weight) * record.derivative(z)).square().sum() / gradient.square().sum()
    assert growth.item() == pytest.approx(chi(record, q, 1.8), rel=0.1)
