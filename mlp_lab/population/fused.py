"""The fused kernels of PyTorch on parts of a population, and on all members in one call where they are alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

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


class Alike:
    """Steps all members by one call: their settings and learning rates are equal, and nothing is clipped.

    A kernel rounds the last entries of a tensor, which do not fill a vector, otherwise than those before. So a member
    that has stopped cannot be left out, or the others would no longer be what they are beside it, bit by bit: it is
    stepped like all, and then put back.

    Args:
        config: of all members.
        parameters: contiguous.
        states: of each parameter its moments, `first` and `second`.
        decayed: of each parameter whether the weight decay applies.
        shares: of each member its parts of the parameters and of the moments, as views.
    """

    def __init__(
        self,
        config: OptimizerConfig,
        parameters: Sequence[Tensor],
        states: Sequence[Mapping[str, Tensor]],
        decayed: Mapping[int, bool],
        shares: Sequence[list[Tensor]],
    ) -> None:
        self.config, self.parameters, self.shares = config, list(parameters), list(shares)
        self._calls = [
            call for flag in (False, True) if (call := _call_of(config, parameters, states, decayed, flag)).parts
        ]
        self._active = [True] * len(shares)
        self._mask = torch.ones(len(shares))
        self._still: tuple[list[Tensor], list[Tensor]] = ([], [])  # parts of those that have stopped, and their values

    def step(self, lr: float, active: Sequence[bool], steps: Tensor) -> None:
        """Takes one step of every active member; `steps` (K,) counts them."""
        if not any(active):
            return
        if self._active != active:
            self._active, self._mask = list(active), torch.tensor(active, dtype=steps.dtype)
            views = [share for shares, alive in zip(self.shares, active, strict=True) if not alive for share in shares]
            self._still = (views, [view.clone() for view in views])
        steps.add_(self._mask)
        count = steps[self._active.index(True)].view(1)
        for call in self._calls:
            gradients: list[Any] = [self.parameters[number].grad for number, _ in call.parts]
            update_(self.config, lr, call, gradients, count)
        if self._still[0]:
            torch._foreach_copy_(*self._still)


def _call_of(
    config: OptimizerConfig,
    parameters: Sequence[Tensor],
    states: Sequence[Mapping[str, Tensor]],
    decayed: Mapping[int, bool],
    flag: bool,
) -> Call:
    """Returns the call for the parameters that decay, or for those that do not."""
    chosen = [number for number in range(len(parameters)) if decayed[number] == flag]
    moments = ([states[n][name] for n in chosen if name in states[n]] for name in ("first", "second"))
    values = [parameters[number].data for number in chosen]
    return Call([(number, 0) for number in chosen], config.weight_decay if flag else 0.0, values, *moments)


def update_(config: OptimizerConfig, lr: float, call: Call, gradients: list[Tensor], count: Tensor) -> None:
    """Steps some parts of one member; `count` is the number of this step, (1,)."""
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
        [count] * len(gradients),
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
