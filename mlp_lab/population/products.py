"""The products and activations of one level of a stack, each one node of autograd for all members.

The plain twins, a loop over members that autograd differentiates, stand in `tests/population/test_products.py`.

Symbols: B batch, R rows of a level, n members of one shape, H units, I inputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from enum import Enum, auto
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import FunctionCtx, once_differentiable

from mlp_lab.model.activations import activation
from mlp_lab.model.linear import has_faster_products, linear_by_onednn
from mlp_lab.population.layout import Cut, Level, Segment

aten = torch.ops.aten


LOW_PAYS = 1_000_000
"""Multiplications from which a CPU with bfloat16 products is faster by them: below, the start of one (13 us) and the
conversions take longer than the whole product in float32 (squares of 8 to 256 units at batch 128, one thread)."""


FASTER = 3_000_000
"""Multiplications of one member for each thread from which a stack leaves its product to oneDNN, where that is the
faster one: fewer than in a network alone, as the code stays in the cache from one member to the next."""


class _Way(Enum):
    """How the products of a run are computed."""

    PLAIN = auto()
    ROUNDED = auto()
    """Of factors of a lower type."""
    ONEDNN = auto()


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
    ways = _ways(level, x, low)
    if ways == [_Way.PLAIN]:
        return _one_product(x, weight, bias, level)
    result: Tensor = _Products.apply(x, weight, bias, level, low, ways)
    return result


def _ways(level: Level, x: Tensor, low: torch.dtype | None) -> list[_Way]:
    batch = x.shape[1]
    if low is not None:
        return [_Way.ROUNDED if pays(run.weights, batch) else _Way.PLAIN for run in level.runs]
    faster = x.dtype == torch.float32 and x.device.type == "cpu" and has_faster_products()
    least = FASTER * torch.get_num_threads() if faster else math.inf
    return [_Way.ONEDNN if run.outputs * run.inputs * batch >= least else _Way.PLAIN for run in level.runs]


def pays(weights: int, batch: int) -> bool:
    """Says whether a product of so many weights with a batch is faster in bfloat16 on a CPU."""
    return weights * batch >= LOW_PAYS


def _one_product(x: Tensor, weight: Tensor, bias: Tensor, level: Level) -> Tensor:
    """The same where all members have one shape: PyTorch's own nodes take half the time of one written in Python."""
    run = level.runs[0]
    if run.count == 1:
        return torch.addmm(bias.unsqueeze(1), weight.view(run.outputs, run.inputs), x)
    w, inputs = weight.view(run.count, run.outputs, run.inputs), x.view(run.count, run.inputs, -1)
    return torch.baddbmm(bias.view(run.count, -1, 1), w, inputs).flatten(0, 1)


class _Products(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, bias: Tensor, level: Level, low: torch.dtype | None, ways: list[_Way]
    ) -> Tensor:
        rounded = [x.to(low), weight.to(low)] if _Way.ROUNDED in ways else [None, None]
        ctx.save_for_backward(x, weight, *rounded)
        ctx.level, ctx.low, ctx.ways = level, low, ways
        h = bias.unsqueeze(1).repeat(1, x.shape[1])  # (R, B)
        inputs = _chosen(level.inputs_cut, ways, x, rounded[0])
        weights = _chosen(level.weights_cut, ways, weight, rounded[1])
        for way, out, w, i in zip(ways, _parts(level.outputs_cut, h), weights, inputs, strict=True):
            _write_(way, out, w, i, add=True)
        return h

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor, Tensor | None, None, None, None]:
        x, weight, low_x, low_weight = ctx.saved_tensors
        level, ways, grad = ctx.level, ctx.ways, grad.contiguous()
        grads = _chosen(level.outputs_cut, ways, grad, grad.to(ctx.low) if _Way.ROUNDED in ways else None)
        inputs = _chosen(level.inputs_cut, ways, x, low_x)
        grad_weight = torch.empty_like(weight)
        for way, out, g, i in zip(ways, _parts(level.weights_cut, grad_weight), grads, inputs, strict=True):
            _write_(way, out, g, i.mT)
        grad_bias = grad.sum(1) if ctx.needs_input_grad[2] else None
        if not ctx.needs_input_grad[0]:
            return None, grad_weight, grad_bias, None, None, None
        grad_x = torch.empty_like(x)
        weights = _chosen(level.weights_cut, ways, weight, low_weight)
        for way, out, w, g in zip(ways, _parts(level.inputs_cut, grad_x), weights, grads, strict=True):
            _write_(way, out, w.mT, g)
        return grad_x, grad_weight, grad_bias, None, None, None


def _write_(way: _Way, out: Tensor, left: Tensor, right: Tensor, *, add: bool = False) -> None:
    """Writes left · right, or adds it; (H, B) or (n, H, B), and the factors may be of a lower type."""
    if way is _Way.ONEDNN and out.dim() == 3:  # one at a time: all at once would take their memory twice
        for one in zip(out, left, right, strict=True):
            _write_(way, *one, add=add)
    elif way is not _Way.PLAIN:
        product = torch.matmul(left, right) if way is _Way.ROUNDED else _by_onednn(left, right)
        out.add_(product) if add else out.copy_(product)
    elif add:
        out.addmm_(left, right) if out.dim() == 2 else out.baddbmm_(left, right)
    elif out.dim() == 2:
        torch.mm(left, right, out=out)
    else:
        torch.bmm(left, right, out=out)


def _by_onednn(left: Tensor, right: Tensor) -> Tensor:
    """Returns left · right; oneDNN copies a factor that does not lie in rows, so that this is the smaller one."""
    if left.is_contiguous() or left.shape[0] <= right.shape[1]:
        return linear_by_onednn(left, right.mT)
    return linear_by_onednn(right.mT, left).mT


def _parts(cut: Cut, tensor: Tensor) -> list[Tensor]:
    """Returns the part of every run: (H, I), (I, B) or (H, B), with n in front where the run has several members."""
    parts = torch.split_with_sizes(tensor, cut.sizes)
    return [part if shape is None else part.view(shape) for part, shape in zip(parts, cut.shapes, strict=True)]


def _chosen(cut: Cut, ways: Sequence[_Way], exact: Tensor, rounded: Tensor | None) -> list[Tensor]:
    """Returns the part of every run, that of the rounded tensor where its product is of such factors."""
    if rounded is None:
        return _parts(cut, exact)
    parts = zip(ways, _parts(cut, rounded), _parts(cut, exact), strict=True)
    return [low if way is _Way.ROUNDED else high for way, low, high in parts]


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
        return activation(segments[0].activation).function(z)
    if all(segment.activation in KERNELS for segment in segments):
        result: Tensor = _Activate.apply(z, segments)
        return result
    parts, learned = [], 0
    for segment, part in zip(segments, torch.split_with_sizes(z, [segment.rows for segment in segments]), strict=True):
        if segment.activation == "prelu":
            assert slopes is not None
            rows = slopes[learned : learned + segment.rows].to(part.dtype)
            learned += segment.rows
            parts.append(F.prelu(part.unsqueeze(0), rows).squeeze(0))
        else:
            parts.append(activation(segment.activation).function(part))
    return torch.cat(parts)


class _Activate(torch.autograd.Function):
    @staticmethod
    def forward(ctx: FunctionCtx, z: Tensor, segments: Sequence[Segment]) -> Tensor:
        a = torch.empty_like(z)
        rows = [segment.rows for segment in segments]
        for segment, inputs, outputs in zip(
            segments, torch.split_with_sizes(z, rows), torch.split_with_sizes(a, rows), strict=True
        ):
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
            torch.split_with_sizes(grad, rows),
            torch.split_with_sizes(z, rows),
            torch.split_with_sizes(a, rows),
            torch.split_with_sizes(grad_z, rows),
            strict=True,
        )
        for segment, g, z_part, a_part, out in parts:
            KERNELS[segment.activation].backward(g, z_part, a_part, out)
        return grad_z, None
