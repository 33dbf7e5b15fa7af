"""Optimizers by name: their settings, which parameters each one updates, and how a resumed run gets its state back."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from mlp_lab.errors import UserError, unknown
from mlp_lab.training.muon import Muon
from mlp_lab.training.settings import check, refuse_unused

FUSED_DEVICES = ("cpu", "cuda")
HIDDEN_MATRIX = re.compile(r"(^|\.)blocks\.\d+\.linear\.weight$")


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """How the weights follow the gradient. A setting that the named optimizer does not use is refused."""

    name: str = "adam"
    """Optimizer: sgd, adam, adamw, rmsprop, or muon (Muon for the hidden weight matrices, AdamW for all other
    parameters)."""
    lr: float = 1e-3
    """Learning rate, above 0; the schedule multiplies it."""
    weight_decay: float = 0.0
    """Decay of the weights, at least 0. sgd, adam and rmsprop add weight_decay · w to the gradient (an L2 penalty);
    in adamw and muon each step takes lr · weight_decay · w from w (decoupled: Loshchilov & Hutter 2019)."""
    decay_bias_and_norm: bool = False
    """Decay biases, norm scales and learned activation slopes too; false decays matrices alone."""
    momentum: float | None = None
    """Momentum of sgd, rmsprop (v <- momentum v + gradient) and muon (a running mean), at least 0 and below 1; null is
    the optimizer's own default: 0 for sgd and rmsprop, 0.95 for muon."""
    nesterov: bool | None = None
    """Nesterov's look-ahead along the momentum, for sgd and muon; null is false for sgd and true for muon."""
    betas: tuple[float, float] = (0.9, 0.999)
    """Decay rates of the running means of the gradient and of its square, for adam, adamw and the AdamW part of muon;
    two numbers, each at least 0 and below 1."""
    alpha: float = 0.99
    """Decay rate of the running mean of the squared gradient, for rmsprop, at least 0 and below 1."""
    eps: float = 1e-8
    """Number that is added to the denominator, above 0, for adam, adamw, rmsprop and the AdamW part of muon. Weights in
    float16 (trainer.precision: 16-true) need about 1e-4."""

    def __post_init__(self) -> None:
        optimizer_rule(self.name)
        object.__setattr__(self, "betas", tuple(self.betas))  # a list after YAML or JSON
        refuse_unused("model.optimizer", self, {name: rule.uses for name, rule in OPTIMIZERS.items()})
        lookahead = not self.nesterov or self.effective_momentum > 0
        betas = len(self.betas) == 2 and all(0 <= beta < 1 for beta in self.betas)
        momentum = self.momentum is None or 0 <= self.momentum < 1
        for setting, valid, accepted in (
            ("lr", 0 < self.lr < math.inf, "a finite number > 0"),
            ("weight_decay", 0 <= self.weight_decay < math.inf, "a finite number >= 0"),
            ("momentum", momentum, "a number in [0, 1)"),
            ("nesterov", lookahead, "false, or true with model.optimizer.momentum > 0"),
            ("betas", betas, "two numbers in [0, 1)"),
            ("alpha", 0 <= self.alpha < 1, "a number in [0, 1)"),
            ("eps", 0 < self.eps < math.inf, "a finite number > 0"),
        ):
            check(f"model.optimizer.{setting}", getattr(self, setting), valid, accepted)

    @property
    def effective_momentum(self) -> float:
        """The momentum in use, with the optimizer's own default filled in."""
        return optimizer_rule(self.name).momentum if self.momentum is None else self.momentum

    @property
    def effective_nesterov(self) -> bool:
        """Whether the optimizer looks ahead, with its own default filled in."""
        if self.nesterov is None:
            return optimizer_rule(self.name).nesterov and self.effective_momentum > 0
        return self.nesterov


Groups = list[dict[str, Any]]
Build = Callable[[Groups, OptimizerConfig, bool], Optimizer]


@dataclass(frozen=True, kw_only=True)
class OptimizerRule:
    """One entry of `OPTIMIZERS`."""

    build: Build
    """Makes the optimizer of parameter groups, config, and whether fused kernels can be used."""
    uses: tuple[str, ...]
    """The optional settings that this optimizer reads; `lr` and `weight_decay` are read by all."""
    momentum: float = 0.0
    """Momentum where the config leaves it open."""
    nesterov: bool = False
    """Look-ahead where the config leaves it open."""


def sgd(groups: Groups, config: OptimizerConfig, fused: bool) -> Optimizer:
    """Stochastic gradient descent with Polyak's or Nesterov's momentum (Sutskever et al. 2013)."""
    momentum, nesterov = config.effective_momentum, config.effective_nesterov
    return torch.optim.SGD(groups, lr=config.lr, momentum=momentum, nesterov=nesterov, fused=fused or None)


def adam(groups: Groups, config: OptimizerConfig, fused: bool) -> Optimizer:
    """Adam (Kingma & Ba 2015)."""
    return torch.optim.Adam(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=fused or None)


def adamw(groups: Groups, config: OptimizerConfig, fused: bool) -> Optimizer:
    """Adam with decoupled weight decay (Loshchilov & Hutter 2019)."""
    return torch.optim.AdamW(groups, lr=config.lr, betas=config.betas, eps=config.eps, fused=fused or None)


def rmsprop(groups: Groups, config: OptimizerConfig, fused: bool) -> Optimizer:
    """RMSprop (Tieleman & Hinton 2012); PyTorch has no fused kernel of it."""
    momentum = config.effective_momentum
    return torch.optim.RMSprop(groups, lr=config.lr, alpha=config.alpha, eps=config.eps, momentum=momentum)


def muon(groups: Groups, config: OptimizerConfig, fused: bool) -> Optimizer:
    """Muon for the hidden matrices and AdamW for the rest (Jordan et al. 2024)."""
    if not any(group["rule"] == "muon" for group in groups):
        raise UserError("model.optimizer.name: 'muon' updates hidden matrices and model.depth is 0; use adamw")
    momentum, nesterov = config.effective_momentum, config.effective_nesterov
    return Muon(
        groups, lr=config.lr, momentum=momentum, nesterov=nesterov, betas=config.betas, eps=config.eps, fused=fused
    )


OPTIMIZERS: dict[str, OptimizerRule] = {
    "sgd": OptimizerRule(build=sgd, uses=("momentum", "nesterov")),
    "adam": OptimizerRule(build=adam, uses=("betas", "eps")),
    "adamw": OptimizerRule(build=adamw, uses=("betas", "eps")),
    "rmsprop": OptimizerRule(build=rmsprop, uses=("momentum", "alpha", "eps")),
    "muon": OptimizerRule(build=muon, uses=("momentum", "nesterov", "betas", "eps"), momentum=0.95, nesterov=True),
}


def optimizer_rule(name: str) -> OptimizerRule:
    """Returns the entry of `OPTIMIZERS`.

    Raises:
        UserError: If there is none of that name.
    """
    if name not in OPTIMIZERS:
        raise unknown("model.optimizer.name", name, OPTIMIZERS)
    return OPTIMIZERS[name]


def check_eps(config: OptimizerConfig, dtype: torch.dtype) -> None:
    """Refuses an eps that is 0 in the type of the weights and of the optimizer's state.

    The mean square of small gradients is 0 in float16 too, and the step divides by what is left: by nothing.

    Raises:
        UserError: Names eps, the precision and what to use.
    """
    if "eps" in optimizer_rule(config.name).uses and not torch.tensor(config.eps, dtype=dtype):
        name = str(dtype).removeprefix("torch.")
        raise UserError(
            f"model.optimizer.eps: {config.eps:g} is 0 in {name}, the type of all weights under trainer.precision: "
            f"16-true, and {config.name} divides by it; use --model.optimizer.eps 1e-4, or "
            "--trainer.precision bf16-mixed"
        )


def is_decayed(name: str, parameter: Tensor) -> bool:
    """Returns whether weight decay applies by default: to matrices, not to biases, norm scales or slopes.

    >>> is_decayed("head.weight", torch.zeros(10, 128)), is_decayed("blocks.0.norm.weight", torch.zeros(128))
    (True, False)
    """
    return parameter.ndim >= 2 and not name.endswith("bias")


def parameter_groups(model: nn.Module, config: OptimizerConfig) -> Groups:
    """Splits the trainable parameters by update rule and by whether they decay; without decay, by rule alone.

    Fewer groups make a faster step. Each group names its `rule`: the optimizer's name, or "adamw" beside muon.
    """
    groups: dict[tuple[str, bool], list[Tensor]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            rule = "adamw" if config.name == "muon" and not HIDDEN_MATRIX.search(name) else config.name
            decayed = config.weight_decay > 0 and (config.decay_bias_and_norm or is_decayed(name, parameter))
            groups.setdefault((rule, decayed), []).append(parameter)
    return [
        {"params": parameters, "rule": rule, "weight_decay": config.weight_decay if decayed else 0.0}
        for (rule, decayed), parameters in groups.items()
    ]


def build_optimizer(model: nn.Module, config: OptimizerConfig, *, fused: bool = True) -> Optimizer:
    """Builds the optimizer of a model that is already on its device.

    Loading a state restores moments and step counts, while `lr` and the other hyperparameters stay as configured: what
    the command line says wins over the checkpoint (the schedule, which is loaded after it, sets the current `lr`).

    Args:
        model: Its trainable parameters are updated.
        config: The optimizer's name and settings.
        fused: Whether one kernel may update all parameters, where the device has it: Adam's step on the CPU then takes
            0.3 to 0.4 of the time of PyTorch's loop. Pass False under 16-mixed and bf16-mixed precision with gradient
            clipping: Lightning refuses to clip for optimizers that unscale the gradients themselves.

    Raises:
        UserError: If the optimizer has nothing to do in this model, or its eps is 0 in the type of the weights.
    """
    groups = parameter_groups(model, config)
    check_eps(config, groups[0]["params"][0].dtype if groups else torch.float32)
    on_device = all(parameter.device.type in FUSED_DEVICES for group in groups for parameter in group["params"])
    optimizer = optimizer_rule(config.name).build(groups, config, fused and on_device)
    _keep_hyperparameters_(optimizer)
    return optimizer


def _keep_hyperparameters_(optimizer: Optimizer) -> None:
    """Lets `load_state_dict` restore the state but not the hyperparameters, and refuse the state of another rule."""
    built = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]

    def refuse_others(_: Optimizer, state: dict[str, Any]) -> None:
        saved, here = ([group.get("rule") for group in groups] for groups in (state["param_groups"], built))
        if saved != here:
            raise UserError(
                f"model.optimizer: the checkpoint's state of {saved} does not fit {here}; "
                "keep model.optimizer.name, and what weight_decay and decay_bias_and_norm apply to, as they were"
            )

    def restore(loaded: Optimizer) -> None:
        for group, values in zip(loaded.param_groups, built, strict=True):
            group.update(values)

    optimizer.register_load_state_dict_pre_hook(refuse_others)
    optimizer.register_load_state_dict_post_hook(restore)
