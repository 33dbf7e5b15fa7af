"""The linear layer, at the speed of the CPU.

On x86, PyTorch multiplies float32 by MKL, which takes AVX2 on a processor that is not Intel's, even where it has
AVX-512. oneDNN, which PyTorch carries too and multiplies bfloat16 by, takes AVX-512 wherever there is one: 240 GFLOP/s
in place of 105 on a core of AMD's Zen 5. Small products stay with MKL: oneDNN takes 12 us to start, six times as long.

Symbols: B rows, I inputs, H outputs.
"""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

LARGE = 4_000_000
"""Multiplications B·I·H for each thread from which a network alone trains faster by oneDNN (one to six layers of 32 to
512 units in batches of 32 to 256, one and two threads, Zen 5). A product by itself gains from half of that on, but the
step loses as much to code that has left the cache of instructions."""


class Linear(nn.Linear):
    """`nn.Linear` by the faster of the two libraries."""

    def forward(self, x: Tensor) -> Tensor:
        return linear(x, self.weight, self.bias)


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Computes xWᵀ + b, as `F.linear` does.

    Args:
        x: (B, I).
        weight: (H, I).
        bias: (H,).

    Returns:
        (B, H).
    """
    if not is_faster_by_onednn(x, weight):
        return F.linear(x, weight, bias)
    if torch.is_grad_enabled():
        result: Tensor = _Linear.apply(x, weight, bias)
        return result
    return linear_by_onednn(x, weight, bias)


def is_faster_by_onednn(x: Tensor, weight: Tensor) -> bool:
    """Says whether xWᵀ is left to oneDNN.

    Never under autocast, which chooses another type, nor where `torch.compile` or `torch.func` look at each operation,
    nor while `torch.backends.mkldnn.enabled` is False.

    Args:
        x: (B, I).
        weight: (H, I).
    """
    return (
        x.dtype == weight.dtype == torch.float32
        and x.dim() == 2
        and len(x) * weight.numel() >= LARGE * torch.get_num_threads()
        and x.device.type == "cpu"
        and has_faster_products()
        and not torch.is_autocast_enabled("cpu")
        and not torch.compiler.is_compiling()
        and not torch._C._are_functorch_transforms_active()
    )


def has_faster_products() -> bool:
    """Says whether oneDNN multiplies float32 faster here than what PyTorch takes, and may do so."""
    return _has_faster_products() and bool(torch.backends.mkldnn.enabled)


@cache
def _has_faster_products() -> bool:
    if not (torch.backends.mkl.is_available() and torch.backends.mkldnn.is_available()):  # type: ignore[no-untyped-call]
        return False
    if not hasattr(torch.cpu, "get_capabilities") or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return False  # an older PyTorch
    processor = torch.cpu.get_capabilities()
    return bool(processor.get("avx512_f")) and "Intel" not in str(processor.get("cpu_name"))


def linear_by_onednn(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Computes xWᵀ + b of float32 on the CPU, past autograd."""
    bias = None if bias is None else bias.contiguous()  # oneDNN would take the values that lie between
    result: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, "none", [], "")
    return result


class _Linear(torch.autograd.Function):
    """Its derivatives are products of the same kind, and can be differentiated again."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return linear_by_onednn(x, weight, bias)

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        x, weight = ctx.saved_tensors
        of_x, of_weight, of_bias = ctx.needs_input_grad
        return (
            linear(grad, weight.mT) if of_x else None,
            linear(grad.mT, x.mT) if of_weight else None,
            grad.sum(0) if of_bias else None,
        )
