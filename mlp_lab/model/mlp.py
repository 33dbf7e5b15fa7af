"""The multilayer perceptron.

One block is h = Wx + b, z = norm(h), a = φ(z), x' = dropout(a), and + x where `residual` is set and widths match.

Symbols: B batch, D numeric features, F categorical features, H width, C outputs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise
from typing import NamedTuple, TypedDict, Unpack, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import skip_init

from mlp_lab.data.spec import DataSpec
from mlp_lab.errors import UserError, unknown
from mlp_lab.model.activations import Activation
from mlp_lab.model.activations import activation as find_activation
from mlp_lab.model.dropout import AlphaDropout, Dropout
from mlp_lab.model.encoders import EncoderConfig, build_encoder
from mlp_lab.model.initialization import initialize_, initializer
from mlp_lab.model.linear import Linear

LARGEST_DEPTH = 10_000  # of Xiao et al. (2018); a larger number is most likely a mistake
DEFAULT_DEPTH = 2  # hidden layers where neither `depth` nor a list of widths says how many


class BatchNorm(nn.BatchNorm1d):
    """Batch norm (Ioffe and Szegedy 2015) that lets a batch of one row pass, normalised by the running statistics.

    One row has no variance; torch refuses it, and an epoch may well end with one.
    """

    def forward(self, x: Tensor) -> Tensor:
        if self.training and x.shape[0] < 2:
            return F.batch_norm(x, self.running_mean, self.running_var, self.weight, self.bias, eps=self.eps)
        return super().forward(x)


NORMS: dict[str, Callable[[int], nn.Module] | None] = {
    "none": None,
    "batch": BatchNorm,
    "layer": nn.LayerNorm,  # Ba et al. (2016)
    "rms": nn.RMSNorm,  # Zhang and Sennrich (2019)
}


class Settings(TypedDict, total=False):
    """The keyword arguments of `MLP`, with the meaning and the defaults given there."""

    depth: int | None
    width: int | Sequence[int]
    activation: str
    init: str
    bias: float | None
    linear_bias: bool
    norm: str
    dropout: float
    input_dropout: float
    residual: bool


class Trace(NamedTuple):
    """What happened inside one forward pass, a tensor per hidden block from the input on."""

    z: tuple[Tensor, ...]  # L × (B, H): pre-activations, after the norm
    a: tuple[Tensor, ...]  # L × (B, H): activations, before dropout and skip


class Block(nn.Module):
    """One hidden layer.

    Parts that do nothing are None and cost nothing; `skip` says whether the input is added to the output.
    """

    def __init__(
        self,
        in_features: int,
        width: int,
        *,
        activation: Activation,
        norm: str,
        dropout: float,
        residual: bool,
        layer: int,
        linear_bias: bool = True,
    ) -> None:
        super().__init__()
        make_norm = NORMS[norm]
        drop = AlphaDropout if activation.name == "selu" else Dropout  # Klambauer et al. (2017, section 3)
        self.linear = _linear(in_features, width, bias=linear_bias)
        self.norm = make_norm(width) if make_norm else None
        self.activation = activation.make()
        self.dropout = drop(dropout, layer) if dropout else None
        self.skip = residual and in_features == width

    def steps(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Returns z, a and the block's output, each (B, H), of an input (B, H_in)."""
        h = self.linear(x)  # (B, H)
        z = h if self.norm is None else self.norm(h)  # (B, H)
        a = self.activation(z)  # (B, H)
        out = a if self.dropout is None else self.dropout(a)
        return z, a, out + x if self.skip else out

    def forward(self, x: Tensor) -> Tensor:
        return self.steps(x)[2]


class MLP(nn.Module):
    """A multilayer perceptron: encoder, `depth` hidden blocks, and a linear head that returns logits.

    Equal seeds of torch's global generator give equal weights, and nothing else changes them. Biases stay where a norm
    makes them redundant, unless `linear_bias` leaves them out.

    Args:
        in_features: numeric inputs D (pixels of an image), at least 0.
        out_features: outputs C, at least 1.
        depth: hidden blocks; 0 is linear or logistic regression. None takes the length of the list `width`, or
            `DEFAULT_DEPTH` where `width` is one number.
        width: units per hidden block, or one number for each.
        activation: a name of `ACTIVATIONS`, or the dotted path of an elementwise function.
        init: a name of `INITS`, or an alias.
        bias: initial bias of every hidden unit; None keeps what `init` sets, mostly 0. Krizhevsky et al. (2012) start
            at 1 to keep ReLU units alive; a negative one kills them.
        linear_bias: whether hidden linear layers have a bias. The head always has one: it holds the classes' shares, or
            the mean of the target.
        norm: a name of `NORMS`.
        dropout: probability in [0, 1) that a hidden unit is dropped; alpha dropout with selu.
        input_dropout: probability in [0, 1) that an encoded input is dropped.
        residual: adds a block's input to its output where their widths match.
        encoder: maps (numeric, categorical) to (B, `encoder.out_features`); None passes the numeric inputs on.

    Raises:
        UserError: names the setting, its value and what would be accepted.

    >>> mlp = MLP(784, 10, depth=2, width=[128, 64])
    >>> sum(parameter.numel() for parameter in mlp.parameters())
    109386
    """

    def __init__(
        self,
        in_features: int,
        out_features: int,
        *,
        depth: int | None = None,
        width: int | Sequence[int] = 128,
        activation: str = "relu",
        init: str = "he",
        bias: float | None = None,
        linear_bias: bool = True,
        norm: str = "none",
        dropout: float = 0.0,
        input_dropout: float = 0.0,
        residual: bool = False,
        encoder: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.in_features = in_features
        self.out_features = out_features
        self.widths = resolve_widths(depth, width)
        self.depth = len(self.widths)
        self.activation = activation
        self.phi = phi = find_activation(activation)
        scheme = initializer(init)
        if norm not in NORMS:
            raise unknown("model.norm", norm, NORMS)
        _check_probability("model.dropout", dropout)
        _check_probability("model.input_dropout", input_dropout)
        if bias is not None and not linear_bias:
            raise UserError(
                f"model.bias: {bias!r} sets the biases of the hidden layers, and model.linear_bias: false leaves them "
                "out; use one of the two"
            )
        first = in_features if encoder is None else _out_features(encoder)
        if first < 1 or out_features < 1:
            raise ValueError(f"an MLP needs inputs and outputs, not {first} inputs and {out_features} outputs")
        self.encoder = encoder
        self.input_dropout = Dropout(input_dropout) if input_dropout else None
        self.blocks = nn.ModuleList(
            Block(
                before,
                after,
                activation=phi,
                norm=norm,
                dropout=dropout,
                residual=residual,
                layer=layer,
                linear_bias=linear_bias,
            )
            for layer, (before, after) in enumerate(pairwise((first, *self.widths)), start=1)
        )
        self.head = _linear((first, *self.widths)[-1], out_features)
        initialize_(self.linears, scheme, phi)
        if bias is not None:
            for linear in self.linears[:-1]:
                nn.init.constant_(linear.bias, bias)
        seed = int(torch.randint(2**31, ())) if self.dropouts else 0
        for drop in self.dropouts:
            drop.seed = seed

    @classmethod
    def from_spec(cls, spec: DataSpec, *, encoder: EncoderConfig | None = None, **settings: Unpack[Settings]) -> MLP:
        """Builds the network that fits a data set.

        Args:
            spec: the data set.
            encoder: how its columns enter; None takes the defaults of `EncoderConfig`.
            **settings: as in `MLP`.
        """
        inputs = build_encoder(spec, encoder or EncoderConfig())
        return cls(len(spec.numeric), spec.out_features, encoder=inputs, **settings)

    @property
    def linears(self) -> list[nn.Linear]:
        """The linear layers from the input to the head, without the encoder's."""
        return [*(cast(Block, block).linear for block in self.blocks), self.head]

    @property
    def dropouts(self) -> list[Dropout]:
        """The dropout of the inputs and of the hidden layers, where there is one."""
        return [part for part in self.modules() if isinstance(part, Dropout)]

    def forward(
        self, numeric: Tensor, categorical: Tensor | None = None, *, trace: bool = False
    ) -> Tensor | tuple[Tensor, Trace]:
        """Computes the logits.

        Args:
            numeric: (B, D), or images (B, ...) with D pixels.
            categorical: (B, F) int64 codes for the encoder, or None.
            trace: also return every z and a.

        Returns:
            logits (B, C), or (logits, Trace).
        """
        x = self.encode(numeric, categorical)  # (B, H_0)
        if not trace:
            return self.decode(x)
        z, a = [], []
        for block in self.blocks:
            z_l, a_l, x = cast(Block, block).steps(x)
            z.append(z_l)
            a.append(a_l)
        return self.head(x), Trace(tuple(z), tuple(a))

    def encode(self, numeric: Tensor, categorical: Tensor | None = None) -> Tensor:
        """Returns what the first layer sees, (B, H_0): flattened, encoded and with input dropout."""
        x = numeric if numeric.dim() == 2 else flat_rows(numeric)
        if x.shape[1] != self.in_features:
            raise ValueError(
                f"the network takes {self.in_features} numeric inputs, not {x.shape[1]} (shape {tuple(numeric.shape)})"
            )
        if self.encoder is not None:
            x = self.encoder(x, categorical)
        return x if self.input_dropout is None else self.input_dropout(x)

    def decode(self, x: Tensor) -> Tensor:
        """Returns the logits (B, C) of encoded inputs (B, H_0)."""
        for block in self.blocks:
            x = block(x)
        logits: Tensor = self.head(x)
        return logits


def flat_rows(numeric: Tensor) -> Tensor:
    """Returns images (B, ...) as rows (B, D).

    Raises:
        ValueError: There is no batch dimension.
    """
    if numeric.dim() < 2:
        raise ValueError(
            f"numeric inputs have the shape {tuple(numeric.shape)}, without a batch dimension; "
            "a network takes (B, D), so give one row as row.unsqueeze(0)"
        )
    return numeric.flatten(1)


def resolve_widths(depth: int | None, width: int | Sequence[int]) -> tuple[int, ...]:
    """Returns the width of every hidden block; a depth of None is that of the list, or `DEFAULT_DEPTH`.

    Raises:
        UserError: names `model.depth` and `model.width` where they are out of range or disagree.

    >>> resolve_widths(3, 64)
    (64, 64, 64)
    >>> resolve_widths(None, [64, 32, 16])
    (64, 32, 16)
    """
    if depth is None:
        depth = DEFAULT_DEPTH if isinstance(width, int) else len(width)
    if not _is_count(depth, at_least=0):
        raise UserError(f"model.depth: {depth!r} is not a number of hidden layers; accepted: an integer of at least 0")
    if depth > LARGEST_DEPTH:
        raise UserError(f"model.depth: {depth} hidden layers are too many; accepted: at most {LARGEST_DEPTH:,}")
    widths = (width,) * depth if isinstance(width, int) else tuple(width)
    if not all(_is_count(one, at_least=1) for one in ([width] if isinstance(width, int) else widths)):
        raise UserError(f"model.width: {width!r} is not a number of units; accepted: integers of at least 1")
    if len(widths) != depth:
        raise UserError(
            f"model.width: {list(widths)!r} has {len(widths)} entries, but model.depth: {depth!r} needs {depth}; "
            f"accepted: one integer, a list of {depth}, or no model.depth"
        )
    return widths


def _is_count(value: object, *, at_least: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= at_least


def _check_probability(key: str, value: float) -> None:
    if not 0 <= value < 1:
        raise UserError(f"{key}: {value!r} is not a probability; accepted: at least 0 and below 1")


def _out_features(encoder: nn.Module) -> int:
    width = encoder.out_features
    if not isinstance(width, int):
        raise TypeError(f"encoder.out_features must be an int, not {width!r}")
    return width


def _linear(in_features: int, out_features: int, *, bias: bool = True) -> nn.Linear:
    """Returns a linear layer whose weights are still to be written: no random number is drawn twice."""
    linear: nn.Linear = skip_init(  # type: ignore[no-untyped-call]
        Linear, in_features, out_features, bias=bias, device=torch.get_default_device()
    )
    return linear
