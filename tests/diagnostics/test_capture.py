"""The captured tensors against a network written out by hand, differentiated by autograd in float64.

The twin shares nothing with the model but its weights and its dropout: norms and slopes are formulas, and its gradients
are those that autograd leaves in `.grad`. Tolerance 1e-10: rounding in float64, through norms that divide by small
variances.
"""

from __future__ import annotations

from copy import deepcopy
from itertools import product
from typing import Any

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mlp_lab.diagnostics.capture import Capture, eager, find_mlp
from mlp_lab.errors import UserError
from mlp_lab.model.activations import ACTIVATIONS, derivative
from mlp_lab.model.mlp import MLP, NORMS, Block
from tests.diagnostics.fits import hooks

CLOSE: dict[str, float] = {"rtol": 1e-10, "atol": 1e-13}
WIDTHS = [6, 6, 5, 5]  # with 6 inputs, blocks 1, 2 and 4 can have skips


def seed(number: int) -> None:
    torch.default_generator.manual_seed(number)  # `torch.manual_seed` notes a stack trace for every absent device


def build(**settings: Any) -> MLP:
    seed(1)
    mlp = MLP(6, 3, **{"depth": len(WIDTHS), "width": WIDTHS, **settings}).double()
    with torch.no_grad():  # no bias, scale or running statistic that happens to be 0 or 1
        for tensor in (*mlp.parameters(), *mlp.buffers()):
            if tensor.dim() == 1:
                tensor.add_(torch.rand_like(tensor) * 0.5)
    return mlp


def batch(rows: int = 9) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(2)
    x = torch.randn(rows, 6, dtype=torch.float64, generator=generator)
    return x, torch.randint(3, (rows,), generator=generator)


def loss_of(mlp: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    return F.cross_entropy(mlp(x), y)


def normalize(norm: nn.Module | None, h: Tensor, training: bool) -> Tensor:
    if norm is None:
        return h
    if isinstance(norm, nn.BatchNorm1d):
        mean, variance = (h.mean(0), h.var(0, correction=0)) if training else (norm.running_mean, norm.running_var)
        return (h - mean) / (variance + norm.eps).sqrt() * norm.weight + norm.bias
    if isinstance(norm, nn.LayerNorm):
        centred = h - h.mean(1, keepdim=True)
        return centred / (centred.square().mean(1, keepdim=True) + norm.eps).sqrt() * norm.weight + norm.bias
    eps = torch.finfo(h.dtype).eps if norm.eps is None else norm.eps
    return h / (h.square().mean(1, keepdim=True) + eps).sqrt() * norm.weight


def twin(mlp: MLP, x: Tensor, y: Tensor, activation: str) -> tuple[list[dict[str, Tensor]], Tensor]:
    """Returns h, z, a and out of every block, each with its gradient in `.grad`, and the logits."""
    mlp, layers = deepcopy(mlp), []  # dropout counts its passes
    seed(3)
    for block in mlp.blocks:
        assert isinstance(block, Block)
        h = x @ block.linear.weight.T + block.linear.bias
        z = normalize(block.norm, h, mlp.training)
        if activation == "prelu":
            a = z.clamp(min=0) + block.activation.weight * z.clamp(max=0)
        else:
            a = ACTIVATIONS[activation].function(z)
        dropped = a if block.dropout is None else block.dropout(a)
        x = dropped + x if block.skip else dropped
        layers.append({"h": h, "z": z, "a": a, "out": x})
    logits = x @ mlp.head.weight.T + mlp.head.bias
    for tensor in [logits, *(one for layer in layers for one in layer.values())]:
        tensor.retain_grad()
    F.cross_entropy(logits, y).backward()
    return layers, logits


def captured(mlp: MLP, x: Tensor, y: Tensor) -> Capture:
    seed(3)
    with Capture(mlp) as capture:
        loss_of(mlp, x, y).backward()
    return capture


SETTINGS = list(product(NORMS, (False, True), (0.0, 0.4), (True, False)))


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_every_tensor_is_that_of_a_network_written_by_hand(activation: str) -> None:
    for norm, residual, dropout, training in SETTINGS:
        setting = f"{norm=} {residual=} {dropout=} {training=}"
        mlp = build(activation=activation, norm=norm, residual=residual, dropout=dropout).train(training)
        x, y = batch()
        expected, logits = twin(mlp, x, y, activation)
        capture = captured(mlp, x, y)

        def close(found: Tensor | None, wanted: Tensor | None, what: str, setting: str = setting) -> None:
            torch.testing.assert_close(found, wanted, **CLOSE, msg=lambda text: f"{setting}: {what}: {text}")

        close(capture.logit_gradient, logits.grad, "∂L/∂logits")
        assert capture.skips == [residual, residual, False, residual]
        for layer, tensors in zip(capture.layers, expected, strict=True):
            gradients = dict(zip(("h", "z", "a", "out"), layer[4:], strict=True))
            for name, tensor in tensors.items():
                close(getattr(layer, name), tensor, name)
                close(gradients[name], tensor.grad, f"∂L/∂{name}")


@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_the_chain_rule_holds_between_them(activation: str) -> None:
    """ρ_l = ε_{l+1} W_{l+1} (+ ρ_{l+1} with a skip), and δ_l = ∂L/∂a_l ⊙ φ'(z_l)."""
    for norm, residual, dropout, training in SETTINGS:
        mlp = build(activation=activation, norm=norm, residual=residual, dropout=dropout).train(training)
        capture = captured(mlp, *batch())
        layers, weights = capture.layers, [linear.weight.detach() for linear in mlp.linears]
        epsilon = [*(layer.epsilon for layer in layers), capture.logit_gradient]
        for index, layer in enumerate(layers):
            arriving = epsilon[index + 1] @ weights[index + 1]
            if index + 1 < len(layers) and capture.skips[index + 1]:
                arriving = arriving + layers[index + 1].rho
            torch.testing.assert_close(layer.rho, arriving, **CLOSE)
            slope = derivative(mlp.blocks[index].activation, layer.z)
            torch.testing.assert_close(layer.delta, layer.grad_a * slope, **CLOSE)
            if norm == "none":
                assert layer.h is not None
                assert torch.equal(layer.epsilon, layer.delta)
            if not training or not dropout:
                assert torch.equal(layer.rho, layer.grad_a)


def test_hooks_last_as_long_as_the_capture() -> None:
    mlp = build(norm="layer")
    with Capture(mlp):
        assert hooks(mlp) == len(mlp.linears) + 2 * len(WIDTHS)
    assert hooks(mlp) == 0
    with pytest.raises(ValueError, match="in between"), Capture(mlp):
        raise ValueError("in between")
    assert hooks(mlp) == 0


def test_nothing_of_the_pass_changes() -> None:
    plain, watched = build(norm="batch", dropout=0.3, residual=True), build(norm="batch", dropout=0.3, residual=True)
    x, y = batch()
    seed(3)
    loss_of(plain, x, y).backward()
    captured(watched, x, y)
    for one, two in zip(
        (*plain.parameters(), *plain.buffers()), (*watched.parameters(), *watched.buffers()), strict=True
    ):
        assert torch.equal(one, two)
        assert one.grad is None or torch.equal(one.grad, two.grad)


def test_only_a_pass_with_gradients_counts_and_the_last_one_of_those() -> None:
    mlp = build(dropout=0.3)
    x, y = batch()
    with Capture(mlp) as capture:
        with torch.no_grad():
            mlp(x)
        assert capture.layers == []
        loss_of(mlp, 2 * x, y).backward()
        loss_of(mlp, x, y).backward()
        with torch.no_grad():
            mlp(3 * x)
    assert torch.equal(capture.layers[0].h, mlp.linears[0](x))
    capture.clear()
    assert capture.layers == []
    assert capture.logit_gradient is None


def test_what_requires_no_gradient_has_none() -> None:
    mlp = build()
    mlp.linears[0].requires_grad_(False)
    capture = captured(mlp, *batch())
    first, second = capture.layers[:2]
    assert first.a is not None
    assert first[4:] == (None, None, None, None)
    assert all(gradient is not None for gradient in second[4:])


def test_depth_0() -> None:
    mlp = build(depth=0, width=1)
    capture = captured(mlp, *batch())
    assert capture.layers == capture.skips == []
    assert capture.logit_gradient is not None
    assert capture.logit_gradient.shape == (9, 3)


def test_the_identity_is_one_tensor_with_its_input() -> None:
    layer = captured(build(activation="identity"), *batch()).layers[0]
    assert torch.equal(layer.rho, layer.delta)


# ---- compiled networks ----------------------------------------------------------------------------------------------


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, on its first compilation
def test_scopes_that_end_in_another_order_leave_compiled_functions_compiled() -> None:
    compiled = torch.compile(lambda x: x + 1, backend=lambda graph, _: graph)
    compiled(torch.ones(2))
    first, second = eager(), eager()
    first.__enter__()
    second.__enter__()
    first.__exit__(None, None, None)
    assert torch._dynamo.eval_frame._stance.stance == "force_eager"
    second.__exit__(None, None, None)
    assert torch._dynamo.eval_frame._stance.stance == "default"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, on its first compilation
@pytest.mark.parametrize("in_place", [True, False])
def test_a_compiled_network_is_seen_when_it_runs_eagerly(in_place: bool) -> None:
    passes: list[int] = []

    def backend(graph: torch.fx.GraphModule, _: Any) -> Any:
        passes.append(0)

        def run(*inputs: Any) -> Any:
            passes[-1] += 1
            return graph(*inputs)

        return run

    mlp = build()
    x, y = batch()
    if in_place:
        mlp.compile(backend=backend)
        compiled: Any = mlp
    else:
        compiled = torch.compile(mlp, backend=backend)
    loss_of(compiled, x, y)
    assert passes == [1]
    with eager(), Capture(mlp) as capture:
        loss_of(compiled, x, y).backward()
    assert passes == [1], "the compiled graph was not used"
    expected = captured(build(), x, y)
    for one, two in zip(capture.layers, expected.layers, strict=True):
        for found, wanted in zip(one, two, strict=True):
            assert torch.equal(found, wanted)
    loss_of(compiled, x, y)
    assert passes == [2], "it is used again, and was not compiled again"


def test_eager_leaves_the_compiler_alone_where_nothing_is_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.delitem(sys.modules, "torch._dynamo", raising=False)
    with eager():
        pass
    assert "torch._dynamo" not in sys.modules


# ---- finding the network --------------------------------------------------------------------------------------------


class Wrapped(nn.Module):
    """Holds a module as DDP does."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module


class Own(L.LightningModule):
    """A user's module with two networks."""

    def __init__(self) -> None:
        super().__init__()
        self.teacher = build()
        self.model = build()


def test_the_network_is_found() -> None:
    mlp = build()
    for wrap in (nn.Identity(), Wrapped(mlp), torch.compile(mlp), Wrapped(torch.compile(mlp))):
        assert find_mlp(mlp if isinstance(wrap, nn.Identity) else wrap) is mlp
    own = Own()
    assert find_mlp(own) is own.model
    assert find_mlp(Wrapped(own)) is own.teacher


def test_a_module_without_one_is_refused() -> None:
    with pytest.raises(UserError, match="diagnostics: Linear holds no mlp_lab MLP"):
        find_mlp(nn.Linear(2, 2))
