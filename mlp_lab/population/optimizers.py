"""One optimizer for a population: every member by its own rule and hyperparameters, with the fused kernels of PyTorch.

A member's part of every stacked tensor is contiguous, so a fused kernel takes the parts as they lie; nothing is copied,
and a member that has stopped costs nothing. Members with equal settings, such as replicates, share their calls. That is
for the CPU; elsewhere all members are updated by one formula (`mlp_lab/population/joint.py`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from itertools import accumulate
from typing import Any, NamedTuple, cast

import torch
from torch import Tensor
from torch.optim import Optimizer

from mlp_lab.errors import UserError
from mlp_lab.population.fused import FusedUpdate, Parts
from mlp_lab.population.joint import JointUpdate, Share
from mlp_lab.population.stack import Population
from mlp_lab.training.optimizers import OptimizerConfig, check_eps

RULES = ("sgd", "adam", "adamw")
"""Optimizers that a population has; a member with another one is trained alone."""


class Part(NamedTuple):
    """A member's share of one stacked parameter."""

    tensor: int
    """Number of the parameter."""
    chunk: int
    """Number of the share among those of the parameter."""
    decayed: bool
    """Whether the member's weight decay applies."""


class StackOptimizer(Optimizer):
    """Steps every active member as `torch.optim` would step it alone.

    Args:
        population: on its device already.
        configs: the optimizer of each member, in their order.
        clip: per member the largest norm of its gradient, over all its parameters; None clips nothing.
        joint: update all members by one formula, without waiting for the device; None does so but on the CPU.

    Raises:
        UserError: names the member whose optimizer a population does not have, the list of the wrong length, or an eps
            that is 0 in the type of the weights.
    """

    def __init__(
        self,
        population: Population,
        configs: Sequence[OptimizerConfig],
        clip: Sequence[float | None] | None = None,
        joint: bool | None = None,
    ) -> None:
        members = len(population)
        _check(configs, clip, members)
        for config in configs:
            check_eps(config, next(population.parameters()).dtype)
        super().__init__(population.parameters(), {"lr": configs[0].lr})
        self.configs = list(configs)
        self.lr = [config.lr for config in configs]
        """Learning rate of each member's next step."""
        self.active = [True] * members
        """Members that are still updated."""
        self.clip = [math.inf if limit is None else limit for limit in clip or [None] * members]
        self.norms = [math.nan] * members
        """Norm of each clipped member's gradient at the last step, before clipping; not known of a joint update."""
        self._parameters: list[Tensor] = self.param_groups[0]["params"]
        self._sizes, self._parts = _share_out(population, self.configs)
        device = self._parameters[0].device
        self.joint = device.type != "cpu" if joint is None else joint
        self.alive = torch.ones(members, dtype=torch.bool, device=device)
        """Of `active`, and those that the device has found finite; kept where the update is joint."""
        self.rates = torch.zeros(members, dtype=torch.float64, device=device)
        """`lr` on the device; kept where the update is joint."""
        self._sent: tuple[list[float], list[bool]] = ([], [])  # rates and active members that the device knows
        # Made when the first step is taken, or a state was loaded:
        self._fused_update: FusedUpdate | None = None
        self._joint_update: JointUpdate | None = None
        self.state["steps"] = torch.zeros(members, device=device)  # type: ignore[index]
        averaged = any(config.name != "sgd" for config in configs)
        for parameter in self._parameters:
            if averaged or any(config.effective_momentum > 0 for config in configs):
                self.state[parameter]["first"] = torch.zeros_like(parameter)
            if averaged:
                self.state[parameter]["second"] = torch.zeros_like(parameter)
        self.register_load_state_dict_post_hook(lambda optimizer: cast(StackOptimizer, optimizer)._forget())

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:
        """Takes one step of every active member; a closure computes the gradients first, and its result is returned."""
        result = None
        self.sync()
        if closure is not None:
            with torch.enable_grad():
                result = closure()
        self.update()
        return result

    def sync(self) -> None:
        """Tells the device of rates and stops that have changed, where the update is joint; it does not wait for it."""
        if not self.joint:
            return
        rates, active = self._sent
        if rates != self.lr:
            self.rates.copy_(_on_the_way(self.lr, self.rates), non_blocking=True)
        if active != self.active:
            self.alive.logical_and_(_on_the_way(self.active, self.alive).to(self.alive.device, non_blocking=True))
        self._sent = (list(self.lr), list(self.active))

    @torch.no_grad()
    def update(self) -> None:
        """Updates every active member by the gradients that there are."""
        if self.joint:
            every = [torch.zeros_like(one) if one.grad is None else one.grad for one in self._parameters]
            self._joint_update = self._joint_update or self._make_joint()
            self._joint_update.step(every, self.rates, self.alive, self.state["steps"])  # type: ignore[index]
            return
        flat = [(torch.zeros_like(one) if one.grad is None else one.grad).view(-1) for one in self._parameters]
        pairs = zip(flat, self._sizes, strict=True)
        gradients = [share for one, sizes in pairs for share in torch.split_with_sizes(one, sizes)]
        self._fused_update = self._fused_update or self._make_fused()
        self._fused_update.step(gradients, self.lr, self.active, self.state["steps"], self.norms)  # type: ignore[index]

    def _forget(self) -> None:
        """Lets go of the views of a state that another one has taken the place of."""
        self._fused_update = self._joint_update = None

    def _make_joint(self) -> JointUpdate:
        """Lays the moments behind one another, as views of which the state has them from now on."""
        flat: dict[str, Tensor] = {}
        for name in ("first", "second"):
            if name in self.state[self._parameters[0]]:
                flat[name] = torch.cat([self.state[parameter][name].view(-1) for parameter in self._parameters])
                pieces = torch.split(flat[name], [parameter.numel() for parameter in self._parameters])
                for parameter, share in zip(self._parameters, pieces, strict=True):
                    self.state[parameter][name] = share.view_as(parameter)
        owners = {(p.tensor, p.chunk): (k, p.decayed) for k, parts in enumerate(self._parts) for p in parts}
        shares = [
            Share(owners[tensor, chunk][0], size, owners[tensor, chunk][1])
            for tensor, sizes in enumerate(self._sizes)
            for chunk, size in enumerate(sizes)
        ]
        return JointUpdate(self._parameters, flat.get("first"), flat.get("second"), shares, self.configs, self.clip)

    def moments(self, member: int) -> list[Tensor]:
        """Returns a member's moments as views of the state."""
        return [*self._shares(self._parts[member], "first"), *self._shares(self._parts[member], "second")]

    def keep(self, population: Population, members: Sequence[int]) -> StackOptimizer:
        """Returns the optimizer of a population that keeps some of the members, with their state."""
        configs, clip = [self.configs[member] for member in members], [self.clip[member] for member in members]
        kept = StackOptimizer(population, configs, clip, self.joint)
        for new, old in enumerate(members):
            kept.lr[new], kept.active[new] = self.lr[old], self.active[old]
            for target, source in zip(kept.moments(new), self.moments(old), strict=False):
                target.copy_(source)
        kept.state["steps"].copy_(self.state["steps"][list(members)])  # type: ignore[index]
        return kept

    def _make_fused(self) -> FusedUpdate:
        starts = list(accumulate(map(len, self._sizes), initial=0))
        steps: Tensor = self.state["steps"]  # type: ignore[index]
        every: list[list[Parts]] = []
        for member, (config, parts) in enumerate(zip(self.configs, self._parts, strict=True)):
            every.append([])
            for weight_decay in sorted({0.0, config.weight_decay}):
                if some := [part for part in parts if part.decayed == (weight_decay > 0)]:
                    tensors = {name: self._shares(some, name) for name in ("values", "first", "second")}
                    places = [starts[part.tensor] + part.chunk for part in some]
                    counts = [steps[member : member + 1]] * len(some)
                    every[-1].append(Parts(places=places, weight_decay=weight_decay, counts=counts, **tensors))
        return FusedUpdate(self.configs, self.clip, every)

    def _shares(self, parts: Sequence[Part], name: str) -> list[Tensor]:
        """Returns the parts of parameters or of a moment; none, where no member keeps that moment."""
        shares = []
        for part in parts:
            parameter = self._parameters[part.tensor]
            tensor = parameter.data if name == "values" else self.state[parameter].get(name)
            if tensor is not None:
                shares.append(torch.split(tensor.view(-1), self._sizes[part.tensor])[part.chunk])
        return shares


def _on_the_way(values: Sequence[float], like: Tensor) -> Tensor:
    """Returns values in memory from which a device copies by itself."""
    return torch.tensor(values, dtype=like.dtype, pin_memory=like.device.type == "cuda")


def _share_out(population: Population, configs: Sequence[OptimizerConfig]) -> tuple[list[list[int]], list[list[Part]]]:
    """Returns the sizes of the shares of every parameter, in their order, and the parts of every member."""
    numbers = {name: number for number, (name, _) in enumerate(population.named_parameters())}
    owners: list[list[tuple[int, int, int, bool]]] = [[] for _ in numbers]  # (start, size, member, decayed)
    for member, (pieces, config) in enumerate(zip(population.pieces, configs, strict=True)):
        for name, piece in pieces.items():
            if piece.tensor in numbers:
                matrix = len(piece.shape) >= 2 and not name.endswith("bias")  # as `is_decayed` has it
                decayed = config.weight_decay > 0 and (config.decay_bias_and_norm or matrix)
                owners[numbers[piece.tensor]].append((piece.start, piece.size, member, decayed))
    parts: list[list[Part]] = [[] for _ in configs]
    for tensor, shares in enumerate(owners):
        for chunk, (_, _, member, decayed) in enumerate(sorted(shares)):
            parts[member].append(Part(tensor, chunk, decayed))
    return [[size for _, size, _, _ in sorted(shares)] for shares in owners], parts


def _check(configs: Sequence[OptimizerConfig], clip: Sequence[float | None] | None, members: int) -> None:
    for name, values in {"optimizer": configs, "clip": clip}.items():
        if values is not None and len(values) != members:
            raise UserError(f"population.{name}: {len(values)} values for {members} members; accepted: one for each")
    for number, config in enumerate(configs):
        if config.name not in RULES:
            raise UserError(
                f"population: member {number} has model.optimizer.name: {config.name!r}; accepted: {', '.join(RULES)}"
            )
