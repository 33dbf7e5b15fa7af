"""The products and activations of one level of a stack, each one node of autograd for all members.

The plain twins, a loop over members that autograd differentiates, stand in `tests/population/test_products.py`.

Symbols: B batch, R rows of a level, n members of one shape, H units, I inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from mlp_lab.model.activations import ACTIVATIONS
from mlp_lab.population.layout import Level, Segment

aten = torch.ops.aten


LOW_PAYS = 1_000_000
"""Multiplications from which a CPU with bfloat16 products is faster by them: below, the start of one (13 us) and the
conversions take longer than the whole product in float32 (squares of 8 to 256 units at batch 128, one thread)."""


def products(x: Tensor, weight: Tensor, bias: Tensor, level: Level, low: torch.dtype | None = None) -> Tensor:
    """Computes h = Wx + b of every member of a level.

    Args:
        x: (R_in, B), the members' inputs below one another in their order.
        weight: flat, the members' (H, I) matrices one after another.
        bias: (R,).
        level: where each one stands.
        low: type of the factors, forward and backward, of the products that are large enough for it to pay.

    Returns:
        (R, B).
    """
    result: Tensor = _Products.apply(x, weight, bias, level, low)
    return result


class _Products(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, level: Level, low: torch.dtype | None) -> Tensor:
        large = low is not None and any(pays(run.weights, x.shape[1]) for run in level.runs)
        rounded = [weight.to(low), x.to(low)] if large else []
        ctx.save_for_backward(x, weight, *rounded)
        ctx.level, ctx.low = level, low
        h = bias.unsqueeze(1).repeat(1, x.shape[1])  # (R, B)
        for w, inputs, outputs in _chosen(level, [weight, x, h], [*rounded, h] if rounded else [weight, x, h]):
            if w.dtype != outputs.dtype:
                outputs.add_(torch.matmul(w, inputs))
            else:
                outputs.addmm_(w, inputs) if w.dim() == 2 else outputs.baddbmm_(w, inputs)
        return h

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor, Tensor, None, None]:
        x, weight, *rounded = ctx.saved_tensors
        grad = grad.contiguous()
        low_weight, low_x, low_grad = [*rounded, grad.to(ctx.low)] if rounded else [weight, x, grad]
        grad_x = torch.empty_like(x) if ctx.needs_input_grad[0] else None
        grad_weight = torch.empty_like(weight)
        for w, inputs, g in _chosen(ctx.level, [grad_weight, x, grad], [grad_weight, low_x, low_grad]):
            _write_(w, g, inputs.mT)
        if grad_x is not None:
            for w, inputs, g in _chosen(ctx.level, [weight, grad_x, grad], [low_weight, grad_x, low_grad]):
                _write_(inputs, w.mT, g)
        return grad_x, grad_weight, grad.sum(1), None, None


def pays(weights: int, batch: int) -> bool:
    """Says whether a product of so many weights with a batch is faster in bfloat16 on a CPU."""
    return weights * batch >= LOW_PAYS


def _write_(out: Tensor, left: Tensor, right: Tensor) -> None:
    """Writes left · right; the factors may be of a lower type."""
    if left.dtype != out.dtype:
        out.copy_(torch.matmul(left, right))
    else:
        torch.matmul(left, right, out=out)


Views = tuple[Tensor, Tensor, Tensor]


def _chosen(level: Level, exact: Sequence[Tensor], rounded: Sequence[Tensor]) -> Iterator[Views]:
    """Yields weights, inputs and outputs of each run, from `rounded` where there are factors for which it pays."""
    views = _views(level, *exact)
    if all(low.dtype == high.dtype for low, high in zip(rounded, exact, strict=False)):
        yield from views
        return
    for run, high, low in zip(level.runs, views, _views(level, *rounded), strict=True):
        yield low if pays(run.weights, exact[1].shape[1]) else high


def _views(level: Level, weight: Tensor, x: Tensor, h: Tensor) -> Iterator[Views]:
    """Yields weights, inputs and outputs of each run: (H, I), (I, B), (H, B), with n in front where there are more."""
    runs, batch = level.runs, x.shape[1]
    weights = torch.split(weight, [run.weights for run in runs])
    inputs = torch.split(x, [run.count * run.inputs for run in runs])
    outputs = torch.split(h, [run.count * run.outputs for run in runs])
    for run, w, i, o in zip(runs, weights, inputs, outputs, strict=True):
        if run.count == 1:
            yield w.view(run.outputs, run.inputs), i, o
        else:
            shape = (run.count, run.outputs, run.inputs)
            yield w.view(shape), i.view(run.count, run.inputs, batch), o.view(run.count, run.outputs, batch)


class _Kernels(NamedTuple):
    """An activation that writes where it is told: φ(z, out=) and ∂L/∂z of ∂L/∂a, z and a."""

    forward: Callable[[Tensor, Tensor], Any]
    backward: Callable[[Tensor, Tensor, Tensor, Tensor], Any]


KERNELS: dict[str, _Kernels] = {
    "relu": _Kernels(
        lambda z, out: torch.clamp_min(z, 0, out=out),
        lambda g, z, a, out: aten.threshold_backward(g, a, 0, grad_input=out),
    ),
    "tanh": _Kernels(
        lambda z, out: torch.tanh(z, out=out), lambda g, z, a, out: aten.tanh_backward(g, a, grad_input=out)
    ),
    "sigmoid": _Kernels(
        lambda z, out: torch.sigmoid(z, out=out), lambda g, z, a, out: aten.sigmoid_backward(g, a, grad_input=out)
    ),
    "gelu": _Kernels(
        lambda z, out: aten.gelu(z, out=out), lambda g, z, a, out: aten.gelu_backward(g, z, grad_input=out)
    ),
    "silu": _Kernels(
        lambda z, out: aten.silu(z, out=out), lambda g, z, a, out: aten.silu_backward(g, z, grad_input=out)
    ),
    "leaky_relu": _Kernels(
        lambda z, out: aten.leaky_relu(z, 0.01, out=out),
        lambda g, z, a, out: aten.leaky_relu_backward(g, z, 0.01, False, grad_input=out),
    ),
}
"""Those of `ACTIVATIONS` that need no copy; any other goes through autograd."""


def activate(z: Tensor, segments: Sequence[Segment], slopes: Tensor | None = None) -> Tensor:
    """Computes a = φ(z), each segment by its own activation.

    Args:
        z: (R, B).
        segments: rows and activation of each, in order.
        slopes: (R_prelu,) the learned slope of every row of a prelu segment, in order.

    Returns:
        (R, B).
    """
    if len(segments) == 1 and slopes is None:
        return ACTIVATIONS[segments[0].activation].function(z)
    if all(segment.activation in KERNELS for segment in segments):
        result: Tensor = _Activate.apply(z, segments)
        return result
    parts, learned = [], 0
    for segment, part in zip(segments, torch.split(z, [segment.rows for segment in segments]), strict=True):
        if segment.activation == "prelu":
            assert slopes is not None
            rows = slopes[learned : learned + segment.rows].to(part.dtype)
            learned += segment.rows
            parts.append(F.prelu(part.unsqueeze(0), rows).squeeze(0))
        else:
            parts.append(ACTIVATIONS[segment.activation].function(part))
    return torch.cat(parts)


class _Activate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, z: Tensor, segments: Sequence[Segment]) -> Tensor:
        a = torch.empty_like(z)
        rows = [segment.rows for segment in segments]
        for segment, inputs, outputs in zip(segments, torch.split(z, rows), torch.split(a, rows), strict=True):
            KERNELS[segment.activation].forward(inputs, outputs)
        ctx.save_for_backward(z, a)
        ctx.segments = segments  # type: ignore[attr-defined]
        return a

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        z, a = ctx.saved_tensors
        grad_z = torch.empty_like(z)
        rows = [segment.rows for segment in ctx.segments]
        parts = zip(
            ctx.segments,
            torch.split(grad, rows),
            torch.split(z, rows),
            torch.split(a, rows),
            torch.split(grad_z, rows),
            strict=True,
        )
        for segment, g, z_part, a_part, out in parts:
            KERNELS[segment.activation].backward(g, z_part, a_part, out)
        return grad_z, None
