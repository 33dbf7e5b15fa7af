"""The fused kernels of PyTorch on parts of a population."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mlp_lab.training.optimizers import OptimizerConfig


class Call(NamedTuple):
    """One call of a fused kernel: tensors that decay alike."""

    parts: list[tuple[int, int]]
    """Of each, the number of the parameter, and of the share among those of the parameter."""
    weight_decay: float
    values: list[Tensor]
    first: list[Tensor]
    second: list[Tensor]
    counts: list[Tensor]
    """Of each, the number of the step, (1,)."""


def joined(calls: Sequence[Call]) -> Call:
    """Returns one call for the tensors of several that decay alike.

    The kernel takes every tensor by itself, so a member's bits do not depend on who shares its call.
    """
    fields = zip(*((c.parts, c.values, c.first, c.second, c.counts) for c in calls), strict=True)
    parts, *tensors = ([one for field in of_calls for one in field] for of_calls in fields)
    return Call(parts, calls[0].weight_decay, *tensors)


def update_(config: OptimizerConfig, lr: float, call: Call, gradients: list[Tensor]) -> None:
    """Steps the tensors of a call."""
    if config.name == "sgd":
        momentum = config.effective_momentum
        torch._fused_sgd_(
            call.values,
            gradients,
            call.first if momentum else [],
            weight_decay=call.weight_decay,
            momentum=momentum,
            lr=lr,
            dampening=0.0,
            nesterov=config.effective_nesterov,
            maximize=False,
            is_first_step=False,  # a momentum of zeros makes the first step what torch makes it
        )
        return
    kernel = torch._fused_adamw_ if config.name == "adamw" else torch._fused_adam_
    kernel(
        call.values,
        gradients,
        call.first,
        call.second,
        [],
        call.counts,
        lr=lr,
        beta1=config.betas[0],
        beta2=config.betas[1],
        weight_decay=call.weight_decay,
        eps=config.eps,
        amsgrad=False,
        maximize=False,
    )


def clip_(gradients: list[Tensor], limit: float) -> float:
    """Scales a member's gradients to a norm of at most `limit`, as `clip_grad_norm_` does; returns the norm before."""
    norm = torch.nn.utils.get_total_norm(gradients)
    scale = torch.clamp(limit / (norm + 1e-6), max=1.0)
    torch._foreach_mul_(gradients, scale)
    return float(norm)
