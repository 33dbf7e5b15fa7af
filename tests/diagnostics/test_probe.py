"""Measured steps of whole fits against the same steps taken by hand.

A spy keeps the network and the batches before every step. The twin repeats the step from there with autograd's own
`.grad`, the weights' change is that of the run itself. In float64 both agree to 1e-9: sums in another order.
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import Tensor

from mlp_lab.diagnostics.callback import Diagnostics
from mlp_lab.model.mlp import MLP
from mlp_lab.training.optimizers import OptimizerConfig
from tests.diagnostics.fits import Spy, assert_equal, build, fit, load

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*smaller than the logging interval"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*scheduler.step.*before .optimizer.step"),
]
ROOT = Path(__file__).parents[2]
GROUPS = ("gradients", "updates", "signal")


def norm(*tensors: Tensor | None) -> float:
    return math.sqrt(sum(float(one.double().square().sum()) for one in tensors if one is not None))


def over(top: float, bottom: float) -> float:
    return top / bottom if bottom else math.nan


def retained(tensor: Tensor) -> Tensor:
    if tensor.requires_grad:
        tensor.retain_grad()
    return tensor


def repeat(mlp: MLP, batch: Any, autocast: torch.dtype | None) -> tuple[list[dict[str, Tensor]], Tensor, Tensor]:
    """Repeats a batch's passes for the sum of its losses; returns h, z, a, out of every layer, logits and loss."""
    layers = []
    with torch.autocast("cpu", autocast, enabled=autocast is not None):
        x = batch[0]
        for block in mlp.blocks:
            h = retained(block.linear(x))
            z = h if block.norm is None else retained(block.norm(h))
            a = retained(block.activation(z))
            out = a if block.dropout is None else block.dropout(a)
            x = retained(out + x if block.skip else out)
            layers.append({"h": h, "z": z, "a": a, "out": x})
        logits = retained(mlp.head(x))
    target = batch[2] if len(batch) == 4 else batch[1]
    loss = F.cross_entropy(logits.float() if autocast else logits, target, reduction="sum")
    loss.backward()
    return layers, logits, loss


def by_hand(spy: Spy, step: int, *, clip: float = 0.0, autocast: Any = None) -> dict[str, float]:
    """Returns every value of the groups gradients, updates and signal, and the loss, from their definitions."""
    networks, batches = spy.networks[step], spy.batches[step]
    totals: list[Any] = [None] * len(list(networks[0].parameters()))
    window = sum(len(batch[0]) for batch in batches)
    for mlp, batch in zip(networks, batches, strict=True):
        layers, logits, loss = repeat(mlp, batch, autocast)
        rows = len(batch[0])
        for index, parameter in enumerate(mlp.parameters()):
            if parameter.grad is not None:
                share = parameter.grad / window
                totals[index] = share if totals[index] is None else totals[index] + share
    mlp = networks[-1]
    gradient_of = {id(parameter): total for parameter, total in zip(mlp.parameters(), totals, strict=True)}
    whole = norm(*totals)
    clipped = whole * min(1.0, clip / (whole + 1e-6)) if clip else whole
    values = {"grad/norm": whole, "grad/norm_clipped": clipped, "grad/clip_fraction": 1 - clipped / whole}
    for number, (linear, after) in enumerate(zip(mlp.linears, spy.after[step], strict=True), start=1):
        gradient = gradient_of[id(linear.weight)]
        values[f"grad/norm/{number}"] = math.nan if gradient is None else norm(gradient)
        values[f"update/ratio/{number}"] = norm(after - linear.weight.detach()) / norm(linear.weight.detach())
    values["train/loss"] = float(loss.detach()) / rows
    return values | (signal_by_hand(mlp, layers, logits) if layers else {})


def signal_by_hand(mlp: MLP, layers: list[dict[str, Tensor]], logits: Tensor) -> dict[str, float]:
    def gradient(layer: int, name: str) -> Tensor | None:
        return logits.grad if layer == len(layers) else layers[layer][name].grad

    def size(tensor: Tensor | None) -> float:
        return math.nan if tensor is None else norm(tensor)

    values = {"signal/span": math.log10(size(gradient(0, "z")) / size(gradient(len(layers) - 1, "z")))}
    for index, layer in enumerate(layers):
        a = layer["a"].detach().double()
        after = gradient(index + 1, "h")
        assert after is not None
        arriving = norm(after.to(mlp.linears[0].weight.dtype) @ mlp.linears[index + 1].weight.detach())
        delta, rho, grad_a = (size(layer[name].grad) for name in ("z", "out", "a"))
        rms = norm(a) / math.sqrt(a.numel())
        values |= {
            f"signal/forward/{index + 1}": rms,
            f"signal/variation/{index + 1}": float(a.var(0, correction=0).mean().sqrt()) / rms,
            f"signal/backward/{index + 1}": delta / math.sqrt(a.numel()),
            f"signal/norm_factor/{index + 1}": over(norm(after), size(gradient(index + 1, "z"))),
            f"signal/weight_factor/{index + 1}": arriving / norm(after),
            f"signal/skip_factor/{index + 1}": rho / arriving,
            f"signal/dropout_factor/{index + 1}": over(grad_a, rho),
            f"signal/activation_factor/{index + 1}": over(delta, grad_a),
        }
    return values


CASES: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "plain": ({}, {}),
    "clipping": ({"activation": "tanh"}, {"gradient_clip_val": 0.05}),
    "accumulation": ({"dropout": 0.3}, {"accumulate_grad_batches": 4}),
    "batch norm": ({"norm": "batch"}, {}),
    "residual": ({"residual": True, "norm": "rms", "activation": "gelu", "dropout": 0.2}, {}),
    "selu": ({"activation": "selu", "dropout": 0.2}, {}),
    "max-norm": ({"max_norm": 0.7}, {}),
    "weight decay": ({"optimizer": OptimizerConfig(name="sgd", lr=0.1, weight_decay=0.1, momentum=0.9)}, {}),
    "frozen first layer": ({}, {}),
    "depth 0": ({"depth": 0}, {}),
}


@pytest.mark.parametrize("case", CASES)
def test_every_value_is_that_of_the_step_by_hand(case: str) -> None:
    settings, options = CASES[case]
    data, spy = load(), Spy()
    module = build(data, **settings)
    if case == "frozen first layer":
        module.model.linears[0].requires_grad_(False)
    diagnostics = Diagnostics(every_n_steps=4, groups=GROUPS)
    fit(module, data, spy, diagnostics, precision="64-true", limit_train_batches=13, **options)
    accumulate = options.get("accumulate_grad_batches", 1)
    full = [one for one in diagnostics.evidence.steps if one.step == 1 or one.step % 4 == 0]
    # of four accumulated steps the last has one batch
    assert [one.step for one in full] == ([1, 4] if accumulate == 4 else [1, 4, 8, 12])
    for one in full:
        clip = options.get("gradient_clip_val", 0.0)
        expected = by_hand(spy, one.step, clip=clip)
        assert_equal(one.values, expected, 1e-9)
    first = [one.step for one in diagnostics.evidence.steps if one.step <= 10]
    assert first == list(range(1, 5 if accumulate == 4 else 11))
    assert diagnostics.evidence.steps[1].values.keys() == {
        *(f"update/ratio/{layer}" for layer in range(1, module.model.depth + 2)),
        "train/loss",
    }


def test_bf16() -> None:
    """The same roundings happen on both sides: they differ by the order of float32 sums."""
    data, spy = load(), Spy()
    diagnostics = Diagnostics(every_n_steps=6, groups=GROUPS)
    fit(build(data), data, spy, diagnostics, precision="bf16-mixed", gradient_clip_val=0.5, limit_train_batches=13)
    for step in (1, 12):
        one = next(one for one in diagnostics.evidence.steps if one.step == step)
        assert_equal(one.values, by_hand(spy, step, clip=0.5, autocast=torch.bfloat16), 1e-3)


@pytest.mark.parametrize("clip", [0.0, 0.5])  # without clipping the optimizer is fused, and unscales by itself
def test_a_gradient_scaler_leaves_no_trace(clip: float) -> None:
    """1%: fp16 keeps 11 bits, and rounds scaled numbers and unscaled ones differently."""
    data, spy = load(), Spy()
    diagnostics = Diagnostics(every_n_steps=6, groups=GROUPS)
    module = build(data)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    options = {"gradient_clip_val": clip} if clip else {}
    trainer = fit(module, data, spy, diagnostics, plugins=[MixedPrecision("16-mixed", "cpu", scaler)], **options)
    assert getattr(trainer.optimizers[0], "_step_supports_amp_scaling", False) is not bool(clip)
    for step in (1, 12):
        one = next(one for one in diagnostics.evidence.steps if one.step == step)
        assert_equal(one.values, by_hand(spy, step, clip=clip, autocast=torch.float16), 1e-2)


def test_a_step_that_the_scaler_skips_is_measured_at_the_next() -> None:
    data, spy = load(), Spy()
    diagnostics = Diagnostics(every_n_steps=100, groups=(*GROUPS, "init"))
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**19)
    fit(build(data), data, spy, diagnostics, plugins=[MixedPrecision("16-mixed", "cpu", scaler)])
    weights = {step: [mlp[0].linears[0].weight, spy.after[step][0]] for step, mlp in spy.networks.items()}
    taken = [step for step, (before, after) in weights.items() if not torch.equal(before, after)]
    first = taken[0]
    assert first > 2, "some steps overflow"
    assert [one.step for one in diagnostics.evidence.steps] == [step for step in taken if step <= 10]
    values = diagnostics.evidence.steps[0].values
    assert {"grad/norm", "update/ratio/1", "signal/span", "init/chi/1"} <= values.keys()
    assert all(math.isfinite(value) for value in values.values())
    assert diagnostics.evidence.nonfinite is None


def test_a_compiled_network_reports_what_it_would_uncompiled() -> None:
    found = []
    for compiled in (False, True):
        data, diagnostics = load(), Diagnostics(every_n_steps=4)
        module = build(data, activation="tanh", norm="layer")
        if compiled:
            module.model.compile(backend="eager")
        fit(module, data, diagnostics, precision="64-true", limit_train_batches=8)
        found.append([*diagnostics.evidence.steps, *diagnostics.evidence.epochs])
    assert "signal/span" in found[0][3].values
    assert "units/rank/1" in found[0][-1].values
    for one, two in zip(*found, strict=True):
        assert_equal(two.values, one.values, 1e-9)


def test_saturation_is_that_of_the_batch() -> None:
    data, spy, diagnostics = load(), Spy(), Diagnostics()
    fit(build(data, activation="tanh", init="pytorch", bias=1.5), data, spy, diagnostics, max_steps=1)
    with torch.no_grad():
        a = spy.networks[1][0](spy.batches[1][0][0], trace=True)[1].a
    for layer, one in enumerate(a, start=1):
        share = float((1 - one.square() < 0.06).double().mean())
        assert diagnostics.evidence.steps[0].values[f"units/saturated/{layer}"] == pytest.approx(share, abs=1e-3)
