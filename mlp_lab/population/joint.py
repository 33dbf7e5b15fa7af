"""One update of all members by one formula, for devices on which a launch costs more than the arithmetic.

With a call of a fused kernel per member, a step of K members takes K launches, most of the time of a small population
on a GPU. Here entries of all members are updated together, each by the constants of its member:

    m ← a·m + b·g
    v ← c·v + d·g²
    w ← (1 - η·λ)·w - η/(1 - β₁^t) · (e·m + f·g) / (√v/√(1 - β₂^t) + ε)

With (a, b, c, d, e, f) = (β₁, 1-β₁, β₂, 1-β₂, 1, 0) that is Adam; with (μ, 1, 1, 0, 1, 0), ε = 1 and no correction it
is SGD with momentum μ, and with e = μ and f = 1 Nesterov's. Nothing here waits for the host or copies from it, so that
the update can be part of a CUDA graph. Sums keep their order: the same bits every time.

Symbols: K members, P parts (a member's share of one parameter), N entries of all parameters.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mlp_lab.training.optimizers import OptimizerConfig

Constant = float | Tensor
"""Of all entries, or (N,)."""


class Share(NamedTuple):
    """A member's share of a parameter; all of them in the order of the entries."""

    member: int
    size: int
    decayed: bool


class JointUpdate:
    """Updates the parameters of a population in place.

    Args:
        parameters: contiguous.
        first: m, flat, (N,); None where no member keeps it.
        second: v, likewise.
        shares: P of them.
        configs: of each member.
        clip: of each member, infinite where it has none.
    """

    def __init__(
        self,
        parameters: Sequence[Tensor],
        first: Tensor | None,
        second: Tensor | None,
        shares: Sequence[Share],
        configs: Sequence[OptimizerConfig],
        clip: Sequence[float],
    ) -> None:
        self.parameters, self.first, self.second = list(parameters), first, second
        self.sizes = [parameter.numel() for parameter in parameters]
        self.device, self.dtype = parameters[0].device, parameters[0].dtype
        self._parts = [share.size for share in shares]
        sizes = torch.tensor(self._parts)
        self._member = torch.tensor([share.member for share in shares])  # (P,)
        self.owner = self._member.repeat_interleave(sizes).to(self.device, torch.int32)  # (N,)
        averaged = [config.name != "sgd" for config in configs]
        momentum = [0.0 if adam else one.effective_momentum for adam, one in zip(averaged, configs, strict=True)]
        self._beta1 = self._of_members([b.betas[0] * adam for b, adam in zip(configs, averaged, strict=True)])
        self._beta2 = self._of_members([b.betas[1] * adam for b, adam in zip(configs, averaged, strict=True)])
        rules = list(zip(configs, averaged, momentum, strict=True))
        nesterov = [not adam and one.effective_nesterov for one, adam, _ in rules]
        self.a = self._spread([one.betas[0] if adam else mu for one, adam, mu in rules])
        self.b = self._spread([1 - one.betas[0] if adam else 1.0 for one, adam, _ in rules])
        self.c = self._spread([one.betas[1] if adam else 1.0 for one, adam, _ in rules])
        self.d = self._spread([1 - one.betas[1] if adam else 0.0 for one, adam, _ in rules])
        self.e = self._spread([mu if ahead else 1.0 for (_, _, mu), ahead in zip(rules, nesterov, strict=True)])
        self.f = self._spread([float(ahead) for ahead in nesterov])
        self.eps = self._spread([one.eps if adam else 1.0 for one, adam, _ in rules])
        decays = [configs[share.member].weight_decay * share.decayed for share in shares]
        outside = [configs[share.member].name == "adamw" for share in shares]  # of the gradient
        self.inside_decay = self._spread_parts([d * (not out) for d, out in zip(decays, outside, strict=True)])
        self.outside_decay = self._spread_parts([d * out for d, out in zip(decays, outside, strict=True)])
        self._limits = self._of_members(clip) if min(clip) < math.inf else None
        self._places = self._places_of_parts(len(configs), shares)  # (K, most parts of a member)

    def step(self, gradients: Sequence[Tensor], rates: Tensor, alive: Tensor, counts: Tensor) -> None:
        """Takes a step of the members that are alive.

        Args:
            gradients: of each parameter.
            rates: η, (K,) float64.
            alive: (K,) bool; entries of other members stay as they are, whatever their gradients.
            counts: t, (K,); counted here.
        """
        counts.add_(alive)
        g = torch.cat([gradient.reshape(-1) for gradient in gradients])  # (N,)
        g.masked_fill_(self._of_entries(~alive), 0.0)
        self._clip_(g)
        if not _is_zero(self.inside_decay):
            _plus_(g, self._flat(), self.inside_decay)
        rates = rates * alive
        t = counts.double().clamp(min=1)
        update = self._direction(g, t) * self._of_entries((rates / (1 - self._beta1**t)).to(self.dtype))
        if not _is_zero(self.outside_decay):
            update += self._flat() * (self._of_entries(rates.to(self.dtype)) * self.outside_decay)
        torch._foreach_sub_(self.parameters, self._shaped(update))

    def _direction(self, g: Tensor, t: Tensor) -> Tensor:
        """Returns (e·m + f·g) / (√v/√(1 - β₂^t) + ε), after m and v have been updated."""
        if self.first is None:
            return g
        _plus_(self.first.mul_(self.a), g, self.b)
        direction = self.first * self.e
        if not _is_zero(self.f):
            _plus_(direction, g, self.f)
        if self.second is not None:
            _plus_(self.second.mul_(self.c), g * g, self.d)
            correction = (1 - self._beta2**t).rsqrt().to(self.dtype)  # (K,)
            direction /= self.second.sqrt().mul_(self._of_entries(correction)).add_(self.eps)
        return direction

    def _clip_(self, g: Tensor) -> None:
        """Scales each member's gradient to a norm of at most its limit, as `clip_grad_norm_` does."""
        if self._limits is None:
            return
        of_parts = torch.stack(torch._foreach_norm(list(torch.split(g, self._parts))))  # (P,)
        of_parts = torch.cat([of_parts, of_parts.new_zeros(1)])
        norms = of_parts[self._places].square().sum(1).sqrt() + 1e-6  # (K,)
        scale = torch.where(norms > self._limits, self._limits / norms, 1.0)  # 1 also where both are infinite
        g.mul_(self._of_entries(scale.to(self.dtype)))

    def _places_of_parts(self, members: int, shares: Sequence[Share]) -> Tensor:
        """Returns where each member's parts are; P, which stands for nothing, where it has fewer than others."""
        mine: list[list[int]] = [[] for _ in range(members)]
        for place, share in enumerate(shares):
            mine[share.member].append(place)
        most = max(map(len, mine))
        table = [places + [len(shares)] * (most - len(places)) for places in mine]
        return torch.tensor(table, device=self.device)

    def _flat(self) -> Tensor:
        return torch.cat([parameter.view(-1) for parameter in self.parameters])

    def _shaped(self, flat: Tensor) -> list[Tensor]:
        parts = zip(torch.split(flat, self.sizes), self.parameters, strict=True)
        return [part.view_as(parameter) for part, parameter in parts]

    def _of_members(self, values: Sequence[float]) -> Tensor:
        return torch.tensor(list(values), dtype=torch.float64, device=self.device)

    def _of_entries(self, values: Tensor) -> Tensor:
        """Returns the value of each entry's member, (N,)."""
        return values.index_select(0, self.owner)

    def _spread(self, values: Sequence[float]) -> Constant:
        """Returns what entries have of their members; a number where all have the same."""
        return self._spread_parts([values[member] for member in self._member.tolist()])

    def _spread_parts(self, values: Sequence[float]) -> Constant:
        if len(set(values)) == 1:
            return float(values[0])
        each = torch.tensor(list(values), dtype=torch.float64)
        return each.repeat_interleave(torch.tensor(self._parts)).to(self.device, self.dtype)


def _is_zero(constant: Constant) -> bool:
    return isinstance(constant, float) and constant == 0.0


def _plus_(total: Tensor, term: Tensor, factor: Constant) -> Tensor:
    """Adds factor · term in place."""
    return total.add_(term, alpha=factor) if isinstance(factor, float) else total.addcmul_(term, factor)
