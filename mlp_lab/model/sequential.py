"""A plain `nn.Sequential` seen as an `MLP`, so that the diagnostics can measure a network written by hand."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from itertools import pairwise
from typing import cast

import torch
from torch import nn

from mlp_lab.errors import UserError
from mlp_lab.model.activations import ACTIVATIONS, Activation, why_no_activation
from mlp_lab.model.mlp import MLP, Block

NORM_MODULES = (nn.BatchNorm1d, nn.LayerNorm, nn.RMSNorm)
DROPOUT_MODULES = (nn.Dropout, nn.AlphaDropout)
ACCEPTED = "what can be measured is an nn.Sequential of Flatten, Linear, norm, activation and Dropout in this order"


class SequentialBlock(Block):
    """One hidden layer of a view; its parts are the modules of the user."""

    def __init__(self, linear: nn.Linear, norm: nn.Module | None, activation: nn.Module, dropout: nn.Module | None):
        nn.Module.__init__(self)
        self.linear, self.norm, self.activation, self.skip = linear, norm, activation, False
        self.dropout = dropout  # type: ignore[assignment]  # torch's has the same p


class SequentialMLP(MLP):
    """An MLP whose layers are the modules of an `nn.Sequential`: hooks on them see the passes of the original.

    Norms before the first linear layer are not part of the view, and neither is what follows the last one.

    Args:
        sequential: `[Flatten], Linear, [norm], activation, [Dropout], ..., Linear`, nested or not.

    Raises:
        UserError: names the first module that stands elsewhere, or that hides from a measurement what it computes.
    """

    def __init__(self, sequential: nn.Sequential) -> None:
        nn.Module.__init__(self)
        modules = list(_flattened(sequential))
        _check_once(modules)
        numbers = [number for number, module in enumerate(modules) if isinstance(module, nn.Linear)]
        linears = [cast(nn.Linear, modules[number]) for number in numbers]
        for module in modules[: numbers[0]]:
            if not isinstance(module, (nn.Flatten, nn.Identity, *DROPOUT_MODULES, *NORM_MODULES)):
                raise _misplaced(module, "before the first Linear")
        parts = [modules[one + 1 : following] for one, following in pairwise(numbers)]
        blocks = [_block(linear, between) for linear, between in zip(linears, parts, strict=False)]
        records = [_record(block.activation) for block in blocks]
        if len(names := list(dict.fromkeys(record.name for record in records))) > 1:
            raise UserError(f"diagnostics: hidden layers have different activations ({', '.join(names)}); use one")
        self.in_features, self.out_features = linears[0].in_features, linears[-1].out_features
        self.widths = tuple(linear.out_features for linear in linears[:-1])
        self.depth = len(self.widths)
        self.phi = records[0] if records else ACTIVATIONS["identity"]
        self.activation = self.phi.name
        self.encoder = None
        self.input_dropout = None
        self.blocks, self.head = nn.ModuleList(blocks), linears[-1]


def _flattened(sequential: nn.Sequential) -> Iterator[nn.Module]:
    for module in sequential:
        if isinstance(module, nn.Sequential):
            yield from _flattened(module)
        else:
            yield module


def _check_once(modules: list[nn.Module]) -> None:
    """A module that stands at two places, or writes over its input, cannot be told what belongs to which layer."""
    for number, module in enumerate(modules):
        name = type(module).__name__
        if any(module is other for other in modules[:number]):
            raise UserError(
                f"diagnostics: one {name} module stands at two places of the nn.Sequential; give each layer its own"
            )
        if getattr(module, "inplace", False):
            raise UserError(f"diagnostics: {name}(inplace=True) overwrites what is measured; leave inplace out")


def _block(linear: nn.Linear, between: list[nn.Module]) -> SequentialBlock:
    """Reads what stands between two linear layers: at most a norm, one activation, at most one dropout."""
    identities = [module for module in between if isinstance(module, nn.Identity)]
    rest = [module for module in between if not isinstance(module, nn.Identity)]
    norm = rest.pop(0) if rest and isinstance(rest[0], NORM_MODULES) else None
    if not rest or isinstance(rest[0], DROPOUT_MODULES):
        if not identities:
            raise UserError(
                f"diagnostics: no activation follows {linear}; put one there (nn.Identity() for a linear network)"
            )
        rest.insert(0, identities[0])
    activation = rest.pop(0)
    dropout = rest.pop(0) if rest and isinstance(rest[0], DROPOUT_MODULES) else None
    if rest:
        raise _misplaced(rest[0], f"after {type(dropout or activation).__name__}")
    return SequentialBlock(linear, norm, activation, dropout)


def _record(module: nn.Module) -> Activation:
    """Returns the registered activation that a module computes, or one made of the module itself."""
    for record in ACTIVATIONS.values():
        if record.module is not None and type(module) is record.module and repr(module) == repr(record.make()):
            return record
    function = copy.deepcopy(module).to("cpu", torch.float64).eval()
    if fault := why_no_activation(function, single=False):
        raise UserError(f"diagnostics: {type(module).__name__} {fault}; {ACCEPTED}")
    return Activation(name=repr(module), function=function)


def _misplaced(module: nn.Module, where: str) -> UserError:
    return UserError(f"diagnostics: {type(module).__name__} stands {where}; {ACCEPTED}")
