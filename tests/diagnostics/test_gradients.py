"""Every metric against a plain computation of its definition in float64, one entry, member and process at a time.

Tolerance 1e-12: both sides compute in float64, in another order of summation.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import pytest
import torch
from torch import Tensor

from mlp_lab.diagnostics.gradients import (
    LayerCapture,
    SignalSums,
    clipping,
    combine,
    gradient_norms,
    signal,
    signal_sums,
    to_floats,
    update_ratios_,
)
from mlp_lab.diagnostics.norms import squared_norms

WIDTHS = (5, 5, 4)
SKIPS = [False, True, False]
CLASSES = 3
ROWS = 7
TIGHT: dict[str, float] = {"rtol": 1e-12, "atol": 0.0}


def normal(*shape: int, seed: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def network(*leading: int, rows: int = ROWS, scale: float = 1.0) -> dict[str, Any]:
    """Returns the arguments of `signal_sums`: any numbers will do, as no relation between them is assumed but one.

    That one is ρ = εW in the layers whose output feeds no skip, where the product is not computed again.
    """
    weights = [normal(*leading, out, into, seed=i) for i, (into, out) in enumerate(pairwise((6, *WIDTHS, CLASSES)))]
    layers = []
    for index, width in enumerate(WIDTHS):
        fields = {
            name: normal(*leading, rows, width, seed=100 + 10 * index + place)
            for place, name in enumerate(LayerCapture._fields)
        }
        layers.append(LayerCapture(**{name: value * scale for name, value in fields.items()}))
    logits = normal(*leading, rows, CLASSES, seed=99) * scale
    for index in (1, 2):  # block 2 has a skip, so it is the layer before it whose ρ may be anything
        following = logits if index == 2 else layers[2].epsilon
        layers[index] = layers[index]._replace(rho=following @ weights[index + 1])
    return {"layers": layers, "logit_gradient": logits, "weights": weights, "skips": SKIPS}


def norm(tensor: Tensor) -> float:
    return math.sqrt(sum(value**2 for value in tensor.double().flatten().tolist()))


def naive_signal(
    layers: list[LayerCapture], logit_gradient: Tensor, weights: list[Tensor], skips: list[bool], scale: float
) -> dict[str, float]:
    """The table of definitions, one by one."""
    values = {}
    epsilon = [layer.epsilon for layer in layers] + [logit_gradient]
    delta = [layer.delta for layer in layers] + [logit_gradient]
    for index, layer in enumerate(layers):
        number, entries = index + 1, layer.a.numel()
        rms = norm(layer.a) / math.sqrt(entries)
        mean = layer.a.mean(0)
        arriving = epsilon[index + 1] @ weights[index + 1]
        values |= {
            f"signal/forward/{number}": rms,
            f"signal/variation/{number}": math.sqrt(sum(norm(row - mean) ** 2 for row in layer.a) / entries) / rms,
            f"signal/backward/{number}": scale * norm(layer.delta) / math.sqrt(entries),
            f"signal/norm_factor/{number}": norm(epsilon[index + 1]) / norm(delta[index + 1]),
            f"signal/weight_factor/{number}": norm(arriving) / norm(epsilon[index + 1]),
            f"signal/skip_factor/{number}": norm(layer.rho) / norm(arriving),
            f"signal/dropout_factor/{number}": norm(layer.grad_a) / norm(layer.rho),
            f"signal/activation_factor/{number}": norm(layer.delta) / norm(layer.grad_a),
        }
    values["signal/span"] = math.log10(norm(delta[0]) / norm(delta[-2]))
    return values


def assert_equal(found: dict[str, float], expected: dict[str, float], tolerance: float = 1e-12) -> None:
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=tolerance, abs=0, nan_ok=True), name


# ---- gradients and updates ------------------------------------------------------------------------------------------


def test_gradient_norms() -> None:
    first, second, bias = normal(4, 3, seed=0), normal(2, 4, seed=1), normal(4, seed=2)
    found = to_floats(gradient_norms([first, None, second], [bias], scale=8.0))
    everything = torch.cat([first.flatten(), second.flatten(), bias])
    expected = {"grad/norm": everything, "grad/norm/1": first, "grad/norm/3": second}
    assert_equal(found, {name: norm(one) / 8 for name, one in expected.items()} | {"grad/norm/2": math.nan})


def test_gradient_norms_of_a_frozen_network() -> None:
    found = to_floats(gradient_norms([None, None]))
    assert_equal(found, {"grad/norm": 0.0, "grad/norm/1": math.nan, "grad/norm/2": math.nan})


def test_members_have_norms_of_their_own() -> None:
    weights, biases = [normal(2, 3, 4, 5, seed=0), normal(2, 3, 2, 4, seed=1)], [normal(2, 3, 4, seed=2)]
    after = [weight + 0.01 * normal(*weight.shape, seed=7) for weight in weights]
    together = gradient_norms(weights, biases, members=2) | update_ratios_(
        [one.clone() for one in weights], after, members=2
    )
    assert together["grad/norm"].shape == (2, 3)
    assert together["grad/norm/{l}"].shape == together["update/ratio/{l}"].shape == (2, 3, 2)
    for i in range(2):
        for j in range(3):
            alone = gradient_norms([one[i, j] for one in weights], [one[i, j] for one in biases])
            alone |= update_ratios_([one[i, j].clone() for one in weights], [one[i, j] for one in after])
            for name, value in alone.items():
                torch.testing.assert_close(together[name][i, j], value, **TIGHT)


def test_clipping() -> None:
    found = to_floats(clipping(torch.tensor(4.0), torch.tensor(1.0)))
    assert found == {"grad/norm_clipped": 1.0, "grad/clip_fraction": 0.75}
    assert to_floats(clipping(torch.tensor(0.5), torch.tensor(0.5)))["grad/clip_fraction"] == 0
    assert math.isnan(to_floats(clipping(torch.tensor(0.0), torch.tensor(0.0)))["grad/clip_fraction"])


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16])
def test_update_ratios(dtype: torch.dtype) -> None:
    before = [normal(4, 3, seed=0).to(dtype), torch.zeros(2, 4, dtype=dtype), normal(2, 2, seed=1).to(dtype)]
    after = [before[0] + 1e-2 * normal(4, 3, seed=2).to(dtype), torch.ones(2, 4, dtype=dtype), before[2].clone()]
    copies = [one.clone() for one in before]
    found = to_floats(update_ratios_(copies, after, squared_norms(before)))
    assert found.keys() == to_floats(update_ratios_([one.clone() for one in before], after)).keys()
    first = norm(after[0].double() - before[0].double()) / norm(before[0])
    # a float32 difference is rounded to 6e-8 of itself; the shorter format is subtracted in float64
    assert_equal(found, {"update/ratio/1": first, "update/ratio/2": math.nan, "update/ratio/3": 0.0}, tolerance=1e-6)


# ---- signal ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("scale", [1.0, 1e-25])
def test_signal(scale: float) -> None:
    arguments = network(scale=scale)
    found = to_floats(signal(signal_sums(**arguments), scale=torch.tensor([128.0])))
    assert_equal(found, naive_signal(**arguments, scale=128.0))


def test_signal_of_members() -> None:
    arguments = network(2, 3)
    together = signal(signal_sums(**arguments))
    assert together["signal/span"].shape == (2, 3)
    for i in range(2):
        for j in range(3):
            layers = [LayerCapture(*(field[i, j] for field in layer)) for layer in arguments["layers"]]
            weights = [weight[i, j] for weight in arguments["weights"]]
            expected = naive_signal(layers, arguments["logit_gradient"][i, j], weights, SKIPS, scale=1.0)
            assert_equal(to_floats({name: value[i, j] for name, value in together.items()}), expected)


def test_the_factors_multiply_to_the_change_of_the_gradient() -> None:
    arguments = network()
    values = to_floats(signal(signal_sums(**arguments)))
    delta = [norm(layer.delta) for layer in arguments["layers"]] + [norm(arguments["logit_gradient"])]
    for layer in range(1, len(WIDTHS) + 1):
        factors = [
            values[f"signal/{name}_factor/{layer}"] for name in ("norm", "weight", "skip", "dropout", "activation")
        ]
        assert math.prod(factors) == pytest.approx(delta[layer - 1] / delta[layer], rel=1e-12)


@pytest.mark.parametrize("sizes", [[3, 4], [7, 0], [1, 1, 5]])
def test_processes_report_what_one_does(sizes: list[int]) -> None:
    arguments = network(scale=1e-3)
    # a deep sigmoid: the activations hardly vary around 0.5
    arguments["layers"] = [layer._replace(a=0.5 + 1e-6 * layer.a) for layer in arguments["layers"]]
    parts: list[SignalSums] = []
    start = 0
    for size in sizes:
        rows = slice(start, start + size)
        layers = [LayerCapture(*(field[rows] for field in layer)) for layer in arguments["layers"]]
        parts.append(signal_sums(layers, arguments["logit_gradient"][rows], arguments["weights"], SKIPS))
        start += size
    found = to_floats(signal(combine(parts)))
    # 0.5 + 1e-9 is rounded to 1e-16, which is 1e-7 of what varies
    assert_equal(found, naive_signal(**arguments, scale=1.0), tolerance=1e-6)
    assert found["signal/variation/1"] == pytest.approx(2e-9, rel=0.5)


def test_nothing_is_divided_by_zero() -> None:
    arguments = network()
    dead = {name: torch.zeros_like(arguments["layers"][1].a) for name in LayerCapture._fields}
    arguments["layers"][1] = LayerCapture(**dead)
    arguments["layers"][0] = LayerCapture(*(torch.zeros_like(field) for field in arguments["layers"][0]))
    found = to_floats(signal(signal_sums(**arguments)))
    undefined = {name for name, value in found.items() if math.isnan(value)}
    first = {"variation", "norm_factor", "weight_factor", "skip_factor", "dropout_factor", "activation_factor"}
    second = {"variation", "skip_factor", "dropout_factor", "activation_factor"}
    assert undefined == {f"signal/{name}/1" for name in first} | {f"signal/{name}/2" for name in second}
    assert found["signal/span"] == -math.inf
    assert found["signal/weight_factor/2"] == 0
    assert found["signal/backward/1"] == 0


def test_a_layer_without_gradients() -> None:
    arguments = network()
    first = arguments["layers"][0]._replace(epsilon=None, delta=None, grad_a=None, rho=None)
    arguments["layers"][0] = first
    found = to_floats(signal(signal_sums(**arguments)))
    expected = naive_signal(**network(), scale=1.0)
    lost = {
        "signal/span",
        "signal/backward/1",
        "signal/skip_factor/1",
        "signal/dropout_factor/1",
        "signal/activation_factor/1",
    }
    assert_equal(found, expected | dict.fromkeys(lost, math.nan))


def test_one_hidden_layer() -> None:
    arguments = network()
    arguments = {
        "layers": arguments["layers"][2:],
        "logit_gradient": arguments["logit_gradient"],
        "weights": arguments["weights"][2:],
        "skips": [False],
    }
    found = to_floats(signal(signal_sums(**arguments)))
    assert found["signal/span"] == 0
    assert found["signal/backward/1"] == pytest.approx(
        norm(arguments["layers"][0].delta) / math.sqrt(ROWS * 4), rel=1e-12
    )


def test_values_are_read_by_name() -> None:
    assert to_floats({}) == {}
    values = {"a/{l}": torch.tensor([1.0, 2.0], dtype=torch.float64), "b": torch.tensor(3.0), "c/{l}": torch.ones(1)}
    assert to_floats(values) == {"a/1": 1.0, "a/2": 2.0, "b": 3.0, "c/1": 1.0}
