"""Which MLPs can be members of one population."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import nn

from mlp_lab.errors import UserError
from mlp_lab.model.mlp import MLP, Block


def _norm(mlp: MLP) -> str:
    kinds = {type(block.norm).__name__ if block.norm is not None else "none" for block in mlp.blocks}
    return " and ".join(sorted(kinds))


def _residual(mlp: MLP) -> bool | None:
    """Whether blocks of equal width add their input; None where there is none."""
    pairs = [block for block in mlp.blocks if isinstance(block, Block)]
    equal = [block.skip for block in pairs if block.linear.in_features == block.linear.out_features]
    return any(equal) if equal else None


def _linear_bias(mlp: MLP) -> bool | None:
    """Whether hidden layers have biases; None where there is no hidden layer."""
    hidden = mlp.linears[:-1]
    return any(linear.bias is not None for linear in hidden) if hidden else None


def _encoder(mlp: MLP) -> str:
    if mlp.encoder is None:
        return "none"
    shapes = [(name, tuple(tensor.shape)) for name, tensor in mlp.encoder.named_parameters()]
    return f"{mlp.encoder}{shapes}"


def _trainable(mlp: MLP) -> bool:
    return all(parameter.requires_grad for parameter in mlp.parameters())


EQUAL: dict[str, Callable[[MLP], object]] = {
    "in_features": lambda mlp: mlp.in_features,
    "out_features": lambda mlp: mlp.out_features,
    "norm": _norm,
    "residual": _residual,
    "linear_bias": _linear_bias,
    "encoder": _encoder,
    "dtype": lambda mlp: str(mlp.head.weight.dtype),
    "device": lambda mlp: str(mlp.head.weight.device),
}
"""What all members of a population have in common."""


def check_members(mlps: Sequence[MLP]) -> None:
    """Refuses what cannot be stacked.

    A member without a hidden layer fits any norm and any `linear_bias`, and one without layers of equal width any
    `residual`.

    Raises:
        UserError: names two members, the setting and both values.
    """
    for number, mlp in enumerate(mlps):
        if not isinstance(mlp, MLP):
            raise UserError(f"population: member {number} is a {type(mlp).__name__}; accepted: an MLP")
        if not _trainable(mlp):
            frozen = next(name for name, parameter in mlp.named_parameters() if not parameter.requires_grad)
            raise UserError(f"population: member {number} has frozen parameters ({frozen}); train it alone")
    for setting, read in EQUAL.items():
        known = [(number, value) for number, mlp in enumerate(mlps) if (value := read(mlp)) not in ("", None)]
        for number, value in known[1:]:
            one, expected = known[0]
            if value != expected:
                raise UserError(
                    f"population: members {one} and {number} differ in {setting} ({expected} and {value}), "
                    "which must be equal; train them in populations of their own"
                )
    _check_buffers(mlps)


def _check_buffers(mlps: Sequence[MLP]) -> None:
    """Encoders without parameters are computed once for all, so their constants must be equal."""
    first = mlps[0].encoder
    for number, mlp in enumerate(mlps[1:], start=1):
        if first is not None and not _same_buffers(first, mlp.encoder):
            raise UserError(
                f"population: members 0 and {number} differ in the constants of their encoder; "
                "train them in populations of their own"
            )


def _same_buffers(first: nn.Module, other: nn.Module | None) -> bool:
    if other is None:
        return False
    pairs = zip(first.named_buffers(), other.named_buffers(), strict=False)
    return all(name == named and torch.equal(one, two) for (name, one), (named, two) in pairs)
