"""Mean-field predictions against constants, closed forms and measured networks in float64."""

from __future__ import annotations

import math
from itertools import pairwise
from typing import NamedTuple

import pytest
import torch
from torch import Tensor

from mlp_lab.diagnostics.theory import Prediction, depth_scale, gaussian_moments, init_values, predict, why_not
from mlp_lab.model.activations import ACTIVATIONS, gaussian_mean
from mlp_lab.model.criticality import chi, critical_point, length_map
from mlp_lab.model.mlp import MLP

ACTIVATIONS_TESTED = ["relu", "tanh", "sigmoid", "gelu", "selu"]
INITS_TESTED = ["pytorch", "he", "lecun", "critical", "orthogonal"]


class Measured(NamedTuple):
    delta: list[float]  # ‖δ_l‖ over a batch
    z: list[float]  # RMS
    a: list[float]
    logits: float


def build(activation: str, init: str, *, depth: int, width: int, seed: int = 0, **settings: object) -> MLP:
    torch.manual_seed(seed)
    return MLP(width, 10, depth=depth, width=width, activation=activation, init=init, **settings).double()  # type: ignore[arg-type]


def measure(mlp: MLP, x: Tensor) -> Measured:
    """One backward pass by autograd; every sample gets a gradient of its own at the logits."""
    gradients: list[Tensor] = [torch.empty(0)] * mlp.depth
    logits, trace = mlp(x, trace=True)
    for index, z in enumerate(trace.z):
        z.register_hook(lambda gradient, index=index: gradients.__setitem__(index, gradient))
    (logits * torch.randn_like(logits)).sum().backward()
    rms = [[one.square().mean().sqrt().item() for one in kind] for kind in (trace.z, trace.a, [logits])]
    return Measured([one.norm().item() for one in gradients], rms[0], rms[1], rms[2][0])


def factors(measured: Measured, first: int, last: int) -> float:
    """Geometric mean of ‖δ_l‖/‖δ_{l+1}‖ over layers first to last, from 1."""
    return (measured.delta[first - 1] / measured.delta[last - 1]) ** (1 / (last - first))


def predicted_factor(prediction: Prediction, first: int, last: int) -> float:
    logs = [math.log(layer.chi) / 2 for layer in prediction.layers[first - 1 : last - 1]]
    return math.exp(sum(logs) / len(logs))


@pytest.mark.parametrize(("name", "factor"), [("relu", 0.409), ("tanh", 0.576), ("sigmoid", 0.141)])
def test_the_known_factors_of_the_default_init(name: str, factor: float) -> None:
    mlp = build(name, "pytorch", depth=50, width=1024)
    prediction = predict(mlp)
    assert prediction is not None
    assert predicted_factor(prediction, 5, 45) == pytest.approx(factor, rel=0.02)
    early = sum(math.log(layer.chi) / 2 for layer in prediction.layers[:5]) / 5
    if name == "tanh":
        assert math.exp(early) == pytest.approx(0.546, rel=0.02)
    assert prediction.span == pytest.approx(49 * math.log10(factor), rel=0.03)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "factor"), [("relu", 0.409), ("tanh", 0.576), ("sigmoid", 0.141)])
def test_the_known_factors_are_what_is_measured(name: str, factor: float) -> None:
    mlp = build(name, "pytorch", depth=50, width=1024)
    measured = measure(mlp, torch.randn(32, 1024, dtype=torch.float64))
    assert factors(measured, 5, 45) == pytest.approx(factor, rel=0.02)


@pytest.mark.slow
@pytest.mark.parametrize("init", INITS_TESTED)
@pytest.mark.parametrize("name", ACTIVATIONS_TESTED)
def test_prediction_is_measured_at_width_1024_and_depth_50(name: str, init: str) -> None:
    check(build(name, init, depth=50, width=1024), edge=5)


@pytest.mark.parametrize("init", INITS_TESTED)
@pytest.mark.parametrize("name", ACTIVATIONS_TESTED)
def test_prediction_is_measured(name: str, init: str) -> None:
    check(build(name, init, depth=16, width=400), edge=3)


@pytest.mark.parametrize("name", ["relu", "tanh", "gelu", "softplus"])
@pytest.mark.parametrize(
    "settings",
    [
        {"norm": "layer"},
        {"norm": "rms"},
        {"dropout": 0.3},
        {"norm": "layer", "residual": True, "dropout": 0.2},
        {"norm": "rms", "residual": True},
        {"bias": 0.4},
        {"linear_bias": False},
    ],
    ids=str,
)
def test_prediction_is_measured_with_norm_skip_dropout_and_bias(name: str, settings: dict[str, object]) -> None:
    check(build(name, "lecun", depth=12, width=400, **settings), edge=2, tolerance=0.03)


@pytest.mark.parametrize("name", list(ACTIVATIONS))
def test_prediction_is_measured_for_every_activation(name: str) -> None:
    check(build(name, "xavier", depth=10, width=400), edge=2, tolerance=0.03)


def check(mlp: MLP, *, edge: int, tolerance: float = 0.02) -> None:
    """Compares the mean factor of the inner layers, and every RMS to what draws of this width scatter by.

    The logarithm of a size scatters by about √(l/width), and by few times that for relu and its kin: 0.2 to 0.6 here.
    """
    width = mlp.widths[0]
    prediction = predict(mlp)
    assert prediction is not None
    measured = measure(mlp, torch.randn(32, width, dtype=torch.float64))
    last = mlp.depth - edge
    assert predicted_factor(prediction, edge, last) == pytest.approx(factors(measured, edge, last), rel=tolerance)
    scatter = 0.05 + 1.5 * math.sqrt(mlp.depth / width)
    for layer, z, a in zip(prediction.layers, measured.z, measured.a, strict=True):
        assert math.log(layer.preactivation / z) == pytest.approx(0, abs=scatter)
        assert math.log(layer.activation / a) == pytest.approx(0, abs=scatter)
    for layer, delta in zip(prediction.layers, measured.delta, strict=True):
        assert math.log(layer.gradient * measured.delta[-1] / delta) == pytest.approx(0, abs=scatter)
    span = math.log10(measured.delta[0] / measured.delta[-1])
    assert prediction.span == pytest.approx(span, abs=scatter)
    assert math.log(prediction.logits / measured.logits) == pytest.approx(0, abs=scatter + 0.1)  # ten units: √(1/320)


def test_unequal_widths_and_the_scale_of_the_input() -> None:
    torch.manual_seed(0)
    mlp = MLP(300, 400, depth=4, width=[600, 200, 800, 300], activation="tanh", init="pytorch").double()
    x = 2.5 * torch.randn(64, 300, dtype=torch.float64)
    prediction, measured = predict(mlp, 2.5**2), measure(mlp, x)
    assert prediction is not None
    for layer, z, (below, above) in zip(prediction.layers, measured.z, pairwise([*measured.delta, 0]), strict=True):
        assert layer.preactivation == pytest.approx(z, rel=0.05)
        if above:
            assert math.sqrt(layer.chi) == pytest.approx(below / above, rel=0.05)
    rms = [delta / math.sqrt(width) for delta, width in zip(measured.delta, mlp.widths, strict=True)]
    assert [layer.gradient for layer in prediction.layers] == pytest.approx([one / rms[-1] for one in rms], rel=0.1)
    assert prediction.logits == pytest.approx(measured.logits, rel=0.05)


def test_the_prediction_is_the_length_map_of_criticality() -> None:
    mlp = build("tanh", "critical", depth=12, width=1000)
    prediction, point = predict(mlp), critical_point(ACTIVATIONS["tanh"])
    assert prediction is not None
    assert point is not None
    for layer in prediction.layers:  # 1,000 draws of biases and row sums: the variances are known to about 5%
        assert layer.preactivation**2 == pytest.approx(point.q, rel=0.1)
    assert abs(prediction.span) < 0.05
    assert abs(prediction.depth_scale) > 100
    relu, layers = ACTIVATIONS["relu"], predict(build("relu", "he", depth=3, width=1000))
    assert layers is not None
    assert layers.layers[1].preactivation ** 2 == pytest.approx(length_map(relu, 2.0, 2.0, 0.0), rel=0.05)
    assert layers.layers[0].chi == pytest.approx(chi(relu, 2.0, 2.0), rel=0.01)


@pytest.mark.parametrize("name", ACTIVATIONS)
@pytest.mark.parametrize("variance", [0.0025, 1.0, 30.0])
def test_moments_are_those_of_gaussian_mean(name: str, variance: float) -> None:
    record = ACTIVATIONS[name]
    moments = gaussian_moments(record, 0.0, variance)
    expected = [
        gaussian_mean(record.function, variance),
        gaussian_mean(lambda z: record.function(z).square(), variance),
        gaussian_mean(lambda z: record.derivative(z).square(), variance),
    ]
    assert list(moments) == pytest.approx(expected, rel=1e-12, abs=1e-14)


def test_moments_of_relu_around_another_mean_in_closed_form() -> None:
    """E relu = μΦ + σϕ, E relu² = (μ² + σ²)Φ + μσϕ, P(z > 0) = Φ, at μ/σ."""
    mean, variance = -0.7, 2.0
    ratio = mean / math.sqrt(variance)
    below, density = (1 + math.erf(ratio / math.sqrt(2))) / 2, math.exp(-(ratio**2) / 2) / math.sqrt(2 * math.pi)
    expected = (
        mean * below + math.sqrt(variance) * density,
        (mean**2 + variance) * below + mean * math.sqrt(variance) * density,
        below,
    )
    assert gaussian_moments(ACTIVATIONS["relu"], mean, variance) == pytest.approx(expected, abs=1e-3)


def test_no_variance_is_a_constant() -> None:
    assert gaussian_moments(ACTIVATIONS["tanh"], 0.5, 0.0) == pytest.approx(
        (math.tanh(0.5), math.tanh(0.5) ** 2, (1 - math.tanh(0.5) ** 2) ** 2)
    )


@pytest.mark.parametrize(
    ("settings", "reason"),
    [
        ({"norm": "batch"}, "over samples"),
        ({"residual": True}, "skips without a norm"),
        ({"activation": "selu", "dropout": 0.1}, "alpha dropout"),
    ],
)
def test_where_it_does_not_apply_it_says_so(settings: dict[str, object], reason: str) -> None:
    mlp = MLP(8, 2, depth=2, width=8, **settings)  # type: ignore[arg-type]
    assert predict(mlp) is None
    assert reason in (why_not(mlp) or "")
    assert why_not(MLP(8, 2, depth=2, width=8, norm="layer", residual=True)) is None


def test_dropout_only_while_training() -> None:
    mlp = build("relu", "he", depth=6, width=300, dropout=0.5, input_dropout=0.2)
    on, off = predict(mlp), predict(mlp, training=False)
    plain = predict(build("relu", "he", depth=6, width=300))
    assert on is not None
    assert off is not None
    assert plain is not None
    assert off.span == pytest.approx(plain.span, abs=0.1)
    assert on.span == pytest.approx(off.span + 5 * math.log10(2) / 2, abs=0.02)
    assert on.layers[0].preactivation == pytest.approx(off.layers[0].preactivation * math.sqrt(1 / 0.8), rel=0.02)


def test_shallow_networks() -> None:
    linear = predict(MLP(5, 2, depth=0))
    assert linear is not None
    assert (linear.layers, linear.span, linear.depth_scale) == ((), 0, math.inf)
    one = predict(MLP(5, 2, depth=1, width=4))
    assert one is not None
    assert one.span == 0
    assert one.layers[0].gradient == 1
    assert math.isnan(one.layers[0].chi)


def test_a_dead_network_has_no_gradient() -> None:
    dead = predict(MLP(5, 2, depth=3, width=20, bias=-40.0))
    assert dead is not None
    assert dead.layers[0].activation == 0
    assert math.isnan(dead.span)
    assert math.isnan(dead.depth_scale)


def test_depth_scales() -> None:
    assert depth_scale(0.5) == pytest.approx(1 / math.log(2))
    assert depth_scale(2.0) == pytest.approx(-1 / math.log(2))
    assert depth_scale(0.0) == 0
    sigmoid = predict(build("sigmoid", "pytorch", depth=20, width=512))
    assert sigmoid is not None
    assert sigmoid.depth_scale == pytest.approx(-1 / math.log(0.141**2), rel=0.02)


def test_what_is_logged_at_the_start() -> None:
    mlp = build("tanh", "pytorch", depth=3, width=300)
    prediction, measured = predict(mlp), measure(mlp, torch.randn(64, 300, dtype=torch.float64))
    rms = {f"signal/backward/{layer}": delta / math.sqrt(300) for layer, delta in enumerate(measured.delta, start=1)}
    found = init_values(prediction, rms, mlp.widths)
    assert {*found} == {
        *(f"init/{name}/{layer}" for name in ("chi", "chi_predicted") for layer in (1, 2)),
        "init/span_predicted",
        "init/depth_scale",
    }
    for layer in (1, 2):
        assert found[f"init/chi/{layer}"] == pytest.approx((measured.delta[layer - 1] / measured.delta[layer]) ** 2)
        assert found[f"init/chi_predicted/{layer}"] == pytest.approx(found[f"init/chi/{layer}"], rel=0.1)
    assert {*init_values(None, rms, mlp.widths)} == {"init/chi/1", "init/chi/2"}
    assert math.isnan(init_values(None, {"signal/backward/1": 1.0, "signal/backward/2": 0.0}, (4, 4))["init/chi/1"])
    assert init_values(predict(MLP(5, 2, depth=1, width=4)), {}, (4,)) == {}


def test_unequal_widths_are_logged_by_norms() -> None:
    values = {"signal/backward/1": 3.0, "signal/backward/2": 2.0}
    assert init_values(None, values, (40, 10)) == {"init/chi/1": pytest.approx((3 / 2) ** 2 * 4)}
