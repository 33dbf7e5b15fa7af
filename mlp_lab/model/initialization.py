"""Initial weights: how large, how spread, and why.

Every function writes one linear layer in place and draws from torch's global generator. It is told the activation
`before` the layer, whose outputs it reads, and the one `after` it, which it feeds; identity stands for the network's
input and for its output, so that the head gets gain 1. Biases are 0 unless a function says otherwise; a layer without
a bias passes None.

Symbols: n fan-in, m fan-out, g the gain of `after` (√2 for relu, 1 for the head).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from mlp_lab.errors import UserError, unknown
from mlp_lab.model.activations import ACTIVATIONS, Activation
from mlp_lab.model.criticality import critical_point

NEGLIGIBLE_BIAS = 0.01  # σ_b² relative to q*: what a layer without a bias may lose of the signal's variance

InitFunction = Callable[[Tensor, Tensor | None, Activation, Activation], None]


def pytorch_(weight: Tensor, bias: Tensor | None, before: Activation, after: Activation) -> None:
    """Draws W and b ~ U(±1/√n), as `nn.Linear` does: σ_w² = 1/3, which shrinks the signal in any deep network."""
    nn.init.kaiming_uniform_(weight, a=math.sqrt(5))
    bound = 1 / math.sqrt(weight.shape[1])
    if bias is not None:
        nn.init.uniform_(bias, -bound, bound)


def xavier_(weight: Tensor, bias: Tensor | None, before: Activation, after: Activation) -> None:
    """Draws W ~ U(±√(6/(n+m))): gain 1, for units that are linear around 0, such as tanh.

    Glorot and Bengio (2010, eq. 16) use no gain; the factor 5/3 for tanh that is often added comes from no paper.
    """
    nn.init.xavier_uniform_(weight)
    _zero_(bias)


def he_(weight: Tensor, bias: Tensor | None, before: Activation, after: Activation) -> None:
    """Draws W ~ N(0, g²/n), so that activations keep their second moment.

    He et al. (2015, eq. 10 and 15): g² = 2 for relu, 2/(1+s²) for slope s; g² = 1/E[φ²] extends it to any activation.
    """
    nn.init.normal_(weight, std=after.gain / math.sqrt(weight.shape[1]))
    _zero_(bias)


def lecun_(weight: Tensor, bias: Tensor | None, before: Activation, after: Activation) -> None:
    """Draws W ~ N(0, 1/n). LeCun et al. (1998, eq. 16); selu's own (Klambauer et al. 2017)."""
    nn.init.normal_(weight, std=1 / math.sqrt(weight.shape[1]))
    _zero_(bias)


def orthogonal_(weight: Tensor, bias: Tensor | None, before: Activation, after: Activation) -> None:
    """Draws W = g·Q with orthonormal rows or columns, whichever are fewer. Saxe et al. (2014)."""
    nn.init.orthogonal_(weight, gain=after.gain)
    _zero_(bias)


def critical_(weight: Tensor, bias: Tensor | None, before: Activation, after: Activation) -> None:
    """Draws W ~ N(0, σ_w²/n) and b ~ N(0, σ_b²) at the edge of chaos of `after`; see `criticality`.

    The first layer is scaled so that inputs of unit variance enter at the fixed point q*; the head gets σ_w² = 1.
    Sigmoid has no usable fixed point of its own, but σ(z) = ½ + ½·tanh(z/2) is tanh in disguise: the layer that feeds
    it is doubled, and the one that reads it is doubled and centred by b = -½ΣW, so that σ_w² is 16 times tanh's.

    A layer without a bias takes the weights alone where σ_b² is negligible beside q* (relu and its kin, tanh, elu):
    the signal then decays by less than 1% per layer.

    Raises:
        UserError: where `after` has no critical point (softplus), or none without a bias (gelu, silu, mish, and layers
            that read sigmoid).
    """
    theory = ACTIVATIONS["tanh"] if after.name == "sigmoid" else after
    point = critical_point(theory)
    if point is None:
        raise UserError(
            f"model.init: 'critical' has no fixed point for model.activation: {after.name!r} (its signal grows in "
            f"every layer); accepted: init: {after.init}, or another activation"
        )
    if bias is None and (before.name == "sigmoid" or point.bias_variance > NEGLIGIBLE_BIAS * point.q):
        raise UserError(
            f"model.init: 'critical' needs the biases of the hidden layers for model.activation: {after.name!r}, and "
            f"model.linear_bias: false leaves them out; accepted: linear_bias: true, or init: {after.init}"
        )
    first = before.name == "identity" != after.name
    weight_variance = point.q - point.bias_variance if first else point.weight_variance
    nn.init.normal_(weight, std=math.sqrt(weight_variance / weight.shape[1]))
    if bias is not None:
        nn.init.normal_(bias, std=math.sqrt(point.bias_variance))
    with torch.no_grad():
        for tensor in (weight, bias):
            if after.name == "sigmoid" and tensor is not None:
                tensor.mul_(2)
        if before.name == "sigmoid" and bias is not None:
            weight.mul_(2)
            bias.sub_(weight.sum(1) / 2)


def zeros_(weight: Tensor, bias: Tensor | None, before: Activation, after: Activation) -> None:
    """Sets W and b to 0."""
    nn.init.zeros_(weight)
    _zero_(bias)


def _zero_(bias: Tensor | None) -> None:
    if bias is not None:
        nn.init.zeros_(bias)


@dataclass(frozen=True, kw_only=True)
class Init:
    """One scheme: what writes the hidden layers, and what writes the head."""

    hidden: InitFunction
    """Writes every hidden layer."""
    head: InitFunction | None = None
    """Writes the output layer; None takes `hidden` with identity after it."""


INITS: dict[str, Init] = {
    "pytorch": Init(hidden=pytorch_),
    "xavier": Init(hidden=xavier_),
    "he": Init(hidden=he_),
    "lecun": Init(hidden=lecun_),
    "orthogonal": Init(hidden=orthogonal_),
    "critical": Init(hidden=critical_),
    "zero_head": Init(hidden=he_, head=zeros_),  # the network starts as the constant 0: Zhang et al. (2019)
    "lsuv": Init(hidden=orthogonal_),  # until it sees a batch; `lsuv_` does the rest
}

ALIASES = {"glorot": "xavier", "kaiming": "he"}


def initializer(name: str) -> Init:
    """Looks a scheme up by its name or alias.

    Raises:
        UserError: names `model.init`, the value and the accepted names.
    """
    scheme = ALIASES.get(name, name)
    if scheme not in INITS:
        raise unknown("model.init", name, [*INITS, *ALIASES])
    return INITS[scheme]


def initialize_(linears: Sequence[nn.Linear], init: Init, activation: Activation) -> None:
    """Writes the weights of a whole network, hidden layers first, the head last.

    Args:
        linears: the linear layers in order; the last one is the head.
        init: the scheme.
        activation: φ of the hidden layers.
    """
    identity = ACTIVATIONS["identity"]
    *hidden, head = linears
    before = identity
    for linear in hidden:
        init.hidden(linear.weight, linear.bias, before, activation)
        before = activation
    (init.head or init.hidden)(head.weight, head.bias, before, identity)


class Network(Protocol):
    """What `lsuv_` needs of an `MLP`."""

    blocks: nn.ModuleList
    training: bool

    def encode(self, numeric: Tensor, categorical: Tensor | None = None) -> Tensor: ...
    def train(self, mode: bool = True) -> object: ...


@torch.no_grad()
def lsuv_(network: Network, numeric: Tensor, categorical: Tensor | None = None) -> None:
    """Rescales each hidden layer on real inputs, so that its pre-activations Wx have unit variance.

    Layer-sequential unit variance, Mishkin and Matas (2016); `init: lsuv` has written orthogonal weights before. Biases
    become 0, so that one division per layer is exact and the paper's iteration is not needed. The pass runs in
    evaluation mode: no dropout, running statistics untouched. Random numbers are not drawn. A layer whose
    pre-activations are constant is left alone.

    Args:
        network: an `MLP`.
        numeric: (B, D); some hundred rows or more.
        categorical: (B, F) codes, or None.
    """
    training = network.training
    network.train(False)
    x = network.encode(numeric, categorical)  # (B, H_0)
    for block in network.blocks:
        linear = block.linear
        assert isinstance(linear, nn.Linear)
        _zero_(linear.bias)
        deviation = linear(x).std(correction=0)  # over rows and units
        if deviation > 0:
            linear.weight.div_(deviation)
        x = block(x)
    network.train(training)
