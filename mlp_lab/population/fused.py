"""The update on the CPU: fused kernels of PyTorch on the parts of each member, as they lie in the stack.

A kernel takes every tensor of its list by itself, so members with equal settings and rates share a call, and no bit of
one depends on who shares it. What a step needs apart from gradients and rates is laid out once for those who share a
call, and kept: for small members the kernels take less time than the Python around them.

Symbols: K members.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor

from mlp_lab.training.optimizers import OptimizerConfig

Tensors = Sequence[Tensor]
Kernel = Callable[[Tensors, float], None]


@dataclass(frozen=True, kw_only=True)
class Parts:
    """Parts of one member that decay alike; each list has an entry per part."""

    places: list[int]
    """Where its gradient stands among those of all parts of the stack."""
    weight_decay: float
    """Of all of them."""
    values: list[Tensor]
    """The weights, as views."""
    first: list[Tensor]
    """First moment or momentum; empty where there is none."""
    second: list[Tensor]
    """Second moment, likewise."""
    counts: list[Tensor]
    """Number of the step, (1,)."""


class FusedUpdate:
    """Updates the active members in place.

    Args:
        configs: of each member; their learning rates are not used.
        clip: per member the largest norm of its gradient, infinite where it has none.
        parts: of each member.
    """

    def __init__(
        self, configs: Sequence[OptimizerConfig], clip: Sequence[float], parts: Sequence[Sequence[Parts]]
    ) -> None:
        self.configs, self.clip, self.parts = list(configs), list(clip), [list(some) for some in parts]
        self.kinds = [_kind(config) for config in configs]
        """Settings that members must share to share a call."""
        self._planned: tuple[list[float], list[bool]] = ([], [])
        self._kernels: dict[tuple[float, tuple[int, ...]], Kernel] = {}  # by weight decay and members
        self._calls: list[tuple[Kernel, float]] = []
        self._clipped: list[int] = []
        self._advance = torch.ones(len(self.configs))

    def step(
        self, gradients: Tensors, rates: Sequence[float], active: Sequence[bool], steps: Tensor, norms: list[float]
    ) -> None:
        """Takes a step.

        Args:
            gradients: of all parts of the stack.
            rates: of the members.
            active: whether a member is updated.
            steps: (K,) that each has taken; advanced.
            norms: gets those of the gradients that are clipped, before they are.
        """
        if self._planned != (rates, active):
            self._plan(list(rates), list(active))
        steps.add_(self._advance)
        for member in self._clipped:
            every = [gradients[place] for parts in self.parts[member] for place in parts.places]
            norms[member] = clip_(every, self.clip[member])
        for kernel, rate in self._calls:
            kernel(gradients, rate)

    def _plan(self, rates: list[float], active: list[bool]) -> None:
        """Groups members into calls."""
        if active != self._planned[1]:
            self._kernels.clear()
        groups: dict[tuple[object, float, float], list[int]] = {}
        for member in (member for member, alive in enumerate(active) if alive):
            for parts in self.parts[member]:
                groups.setdefault((self.kinds[member], rates[member], parts.weight_decay), []).append(member)
        self._calls = [
            (self._kernel(weight_decay, tuple(members)), rate) for (_, rate, weight_decay), members in groups.items()
        ]
        self._clipped = [k for k, alive in enumerate(active) if alive and self.clip[k] < math.inf]
        self._advance = torch.tensor(active, dtype=torch.float32)
        self._planned = (rates, active)

    def _kernel(self, weight_decay: float, members: tuple[int, ...]) -> Kernel:
        """Returns what steps the parts of some members that decay so much."""
        key = weight_decay, members
        if key not in self._kernels:
            parts = [some for member in members for some in self.parts[member] if some.weight_decay == weight_decay]
            self._kernels[key] = kernel_of(self.configs[members[0]], weight_decay, parts)
        return self._kernels[key]


def kernel_of(config: OptimizerConfig, weight_decay: float, group: Sequence[Parts]) -> Kernel:
    """Returns a function of all gradients and the rate that steps some parts by one call of a fused kernel."""
    places, values, first, second, counts = (
        [one for parts in group for one in getattr(parts, name)]
        for name in ("places", "values", "first", "second", "counts")
    )
    take: Callable[[Tensors], Any] = itemgetter(*places) if len(places) > 1 else lambda every: (every[places[0]],)
    settings: dict[str, Any] = {"weight_decay": weight_decay, "maximize": False}
    if config.name == "sgd":
        momentum = config.effective_momentum
        settings |= {"momentum": momentum, "dampening": 0.0, "nesterov": config.effective_nesterov}
        settings["is_first_step"] = False  # a momentum of zeros makes the first step what torch makes it
        momenta = first if momentum else []
        return lambda every, lr: torch._fused_sgd_(values, take(every), momenta, lr=lr, **settings)
    kernel = torch._fused_adamw_ if config.name == "adamw" else torch._fused_adam_
    settings |= {"beta1": config.betas[0], "beta2": config.betas[1], "eps": config.eps, "amsgrad": False}
    return lambda every, lr: kernel(values, take(every), first, second, [], counts, lr=lr, **settings)


def _kind(config: OptimizerConfig) -> object:
    return tuple(value for name, value in sorted(vars(config).items()) if name != "lr")


def clip_(gradients: list[Tensor], limit: float) -> float:
    """Scales a member's gradients to a norm of at most `limit`, as `clip_grad_norm_` does; returns the norm before."""
    norm = torch.nn.utils.get_total_norm(gradients)
    scale = torch.clamp(limit / (norm + 1e-6), max=1.0)
    torch._foreach_mul_(gradients, scale)
    return float(norm)
