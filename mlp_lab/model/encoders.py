"""Encoders: from a table's columns to the numbers that the first layer sees.

Numeric columns may be embedded one by one (Gorishniy et al. 2022, "On Embeddings for Numerical Features in Tabular
Deep Learning"); categorical ones become one-hot vectors or learned vectors. A plain numeric table or an image needs no
encoder at all.

Symbols: B batch, D numeric features, F categorical features, K frequencies, E embedding width.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mlp_lab.data.spec import DataSpec
from mlp_lab.errors import UserError, unknown


@dataclass(frozen=True, kw_only=True)
class EncoderConfig:
    """How the columns of a table enter the network (`model.encoder`)."""

    numeric: str = "none"
    """Encoding of the numeric columns: none, periodic, plr (periodic, linear, relu) or piecewise_linear."""
    categorical: str = "auto"
    """Encoding of the categorical columns: onehot, embedding, or auto (one-hot up to `onehot_up_to` codes, an embedding
    above)."""
    frequencies: int = 48
    """Number of frequencies per numeric column, for periodic and plr, at least 1."""
    frequency_scale: float = 0.3
    """Standard deviation of the initial frequencies, for periodic and plr, above 0; Gorishniy et al. (2022) try 0.01 to
    100."""
    numeric_width: int = 24
    """Numbers that a numeric column becomes, for plr, at least 1."""
    onehot_up_to: int = 16
    """Largest number of codes of a column that auto encodes as one-hot, at least 0."""
    categorical_width: int = 16
    """Numbers that a code becomes, for embedding, at least 1."""

    def __post_init__(self) -> None:
        if self.numeric not in NUMERIC_ENCODERS:
            raise unknown("model.encoder.numeric", self.numeric, NUMERIC_ENCODERS)
        if self.categorical not in CATEGORICAL_ENCODERS:
            raise unknown("model.encoder.categorical", self.categorical, CATEGORICAL_ENCODERS)
        for name in ("frequencies", "numeric_width", "categorical_width"):
            if getattr(self, name) < 1:
                raise UserError(f"model.encoder.{name}: {getattr(self, name)!r} is too small; accepted: at least 1")
        if self.onehot_up_to < 0:
            raise UserError(f"model.encoder.onehot_up_to: {self.onehot_up_to!r} is negative; accepted: at least 0")
        if not 0 < self.frequency_scale < math.inf:
            raise UserError(f"model.encoder.frequency_scale: {self.frequency_scale!r} is not a positive number")


class Periodic(nn.Module):
    """Maps each feature x to [sin(2πcx), cos(2πcx)] with learned frequencies c ~ N(0, σ²).

    Shape: (B, D) to (B, D·2K).
    """

    def __init__(self, features: int, *, frequencies: int, scale: float) -> None:
        super().__init__()
        self.frequency = nn.Parameter(torch.randn(features, frequencies) * scale)  # (D, K)
        self.out_features = features * 2 * frequencies

    def waves(self, x: Tensor) -> Tensor:
        """Returns (B, D, 2K)."""
        phase = 2 * math.pi * self.frequency * x.unsqueeze(-1)  # (B, D, K)
        return torch.cat((phase.sin(), phase.cos()), dim=-1)

    def forward(self, x: Tensor) -> Tensor:
        return self.waves(x).flatten(1)


class PeriodicLinearReLU(nn.Module):
    """The PLR embedding: periodic, then a linear map and a relu of each feature's own.

    Shape: (B, D) to (B, D·E).
    """

    def __init__(self, features: int, *, frequencies: int, scale: float, width: int) -> None:
        super().__init__()
        self.periodic = Periodic(features, frequencies=frequencies, scale=scale)
        bound = 1 / math.sqrt(2 * frequencies)
        self.weight = nn.Parameter(torch.empty(features, 2 * frequencies, width).uniform_(-bound, bound))  # (D, 2K, E)
        self.bias = nn.Parameter(torch.empty(features, width).uniform_(-bound, bound))  # (D, E)
        self.out_features = features * width

    def forward(self, x: Tensor) -> Tensor:
        waves = self.periodic.waves(x).transpose(0, 1)  # (D, B, 2K)
        embedded = torch.baddbmm(self.bias.unsqueeze(1), waves, self.weight)  # (D, B, E)
        return embedded.transpose(0, 1).relu().flatten(1)


class PiecewiseLinear(nn.Module):
    """The piecewise-linear encoding (eq. 1): how far x has come through each bin, 0 before it and 1 after it.

    The first bin is open below and the last one above, so that values beyond the edges stay distinct.

    Shape: (B, D) to (B, bins of all features).

    Args:
        edges: for every feature its increasing bin edges; fewer than two (a constant column) give no output.
    """

    column: Tensor
    left: Tensor
    width: Tensor
    low: Tensor
    high: Tensor

    def __init__(self, edges: Sequence[Sequence[float]]) -> None:
        super().__init__()
        counts = torch.tensor([max(len(points) - 1, 0) for points in edges], dtype=torch.int64)  # (D,)
        left = torch.tensor([edge for points in edges for edge in points[:-1]], dtype=torch.float64)
        right = torch.tensor([edge for points in edges for edge in points[1:]], dtype=torch.float64)
        if not bool((right > left).all()):
            raise ValueError("bin edges must increase within every feature")
        low, high = torch.zeros_like(left), torch.ones_like(left)
        last = counts.cumsum(0)[counts > 0] - 1  # each feature's last bin
        low[last - counts[counts > 0] + 1] = -math.inf
        high[last] = math.inf
        self.register_buffer("column", torch.arange(len(edges)).repeat_interleave(counts), persistent=False)
        for name, values in {"left": left, "width": right - left, "low": low, "high": high}.items():
            self.register_buffer(name, values.to(torch.get_default_dtype()), persistent=False)  # each (bins,)
        self.out_features = len(left)

    def forward(self, x: Tensor) -> Tensor:
        progress = (x[:, self.column] - self.left) / self.width  # (B, bins)
        return torch.clamp(progress, self.low, self.high)


class OneHot(nn.Module):
    """One-hot vectors of some columns side by side, written by one scatter.

    Shape: (B, F) int64 codes, each in [0, cardinality), to (B, sum of the cardinalities).

    Args:
        columns: indices and cardinalities of the columns it takes.
    """

    columns: Tensor
    offsets: Tensor
    zero: Tensor

    def __init__(self, columns: Mapping[int, int]) -> None:
        super().__init__()
        _register_columns_(self, columns)
        self.register_buffer("zero", torch.zeros(()), persistent=False)  # carries the network's dtype and device
        self.out_features = sum(columns.values())

    def forward(self, codes: Tensor) -> Tensor:
        places = codes[:, self.columns] + self.offsets
        return self.zero.new_zeros(len(codes), self.out_features).scatter_(1, places, 1.0)


class Embedding(nn.Module):
    """A learned vector per code, ~ N(0, 1) at first, all columns in one table; code 0 (missing, unseen) starts at 0.

    Shape: (B, F) int64 codes, each in [0, cardinality), to (B, columns · E).

    Args:
        columns: indices and cardinalities of the columns it takes.
        width: E.
    """

    columns: Tensor
    offsets: Tensor

    def __init__(self, columns: Mapping[int, int], *, width: int) -> None:
        super().__init__()
        _register_columns_(self, columns)
        self.table = nn.Embedding(sum(columns.values()), width)
        with torch.no_grad():
            self.table.weight[self.offsets] = 0.0
        self.out_features = len(columns) * width

    def forward(self, codes: Tensor) -> Tensor:
        vectors: Tensor = self.table(codes[:, self.columns] + self.offsets)  # (B, columns, E)
        return vectors.flatten(1)


class TableEncoder(nn.Module):
    """Puts the columns of a table side by side: numeric first, then one-hot vectors, then embeddings.

    Shape: (B, D) and (B, F) to (B, `out_features`).

    Args:
        numeric: embeds the numeric features; None passes them on.
        numeric_features: D.
        categorical: encoders of the categorical columns; none of them allows `forward` without codes.
    """

    def __init__(self, numeric: nn.Module | None, numeric_features: int, categorical: Sequence[OneHot | Embedding]):
        super().__init__()
        self.numeric = numeric
        self.categorical = nn.ModuleList(categorical)
        width = numeric_features if numeric is None else numeric.out_features
        assert isinstance(width, int)
        self.out_features = width + sum(encoder.out_features for encoder in categorical)

    def forward(self, numeric: Tensor, categorical: Tensor | None = None) -> Tensor:
        parts = [numeric if self.numeric is None else self.numeric(numeric)]
        if self.categorical:
            if categorical is None:
                raise ValueError("the network has categorical inputs, but was called without their codes")
            parts += [encoder(categorical) for encoder in self.categorical]
        return torch.cat(parts, dim=1) if len(parts) > 1 else parts[0]  # (B, out_features)


def build_encoder(spec: DataSpec, config: EncoderConfig) -> TableEncoder | None:
    """Builds what stands between the columns of a data set and the first layer.

    Returns:
        The encoder, or None where there is nothing to encode (images, plain numeric tables): no module, no cost.

    Raises:
        UserError: piecewise_linear without bin edges (`data.bins`).
    """
    make = NUMERIC_ENCODERS[config.numeric]
    numeric = make(spec, config) if make and spec.numeric else None
    as_onehot = CATEGORICAL_ENCODERS[config.categorical]
    onehot = {column: n for column, n in enumerate(spec.cardinalities) if as_onehot(n, config)}
    embedded = {column: n for column, n in enumerate(spec.cardinalities) if column not in onehot}
    categorical: list[OneHot | Embedding] = [OneHot(onehot)] if onehot else []
    if embedded:
        categorical.append(Embedding(embedded, width=config.categorical_width))
    if numeric is None and not categorical:
        return None
    return TableEncoder(numeric, len(spec.numeric), categorical)


def _periodic(spec: DataSpec, config: EncoderConfig) -> nn.Module:
    return Periodic(len(spec.numeric), frequencies=config.frequencies, scale=config.frequency_scale)


def _plr(spec: DataSpec, config: EncoderConfig) -> nn.Module:
    return PeriodicLinearReLU(
        len(spec.numeric),
        frequencies=config.frequencies,
        scale=config.frequency_scale,
        width=config.numeric_width,
    )


def _piecewise_linear(spec: DataSpec, config: EncoderConfig) -> nn.Module:
    if not spec.bin_edges:
        raise UserError(
            "model.encoder.numeric: 'piecewise_linear' needs bin edges, but data.bins is not set; "
            "accepted: --data.bins 16 or another number of bins"
        )
    return PiecewiseLinear(spec.bin_edges)


def _register_columns_(module: nn.Module, columns: Mapping[int, int]) -> None:
    """Registers which columns a module takes, and where the codes of each begin in its common table."""
    cardinalities = torch.tensor(list(columns.values()))
    module.register_buffer("columns", torch.tensor(list(columns)), persistent=False)
    module.register_buffer("offsets", cardinalities.cumsum(0) - cardinalities, persistent=False)


NUMERIC_ENCODERS: dict[str, Callable[[DataSpec, EncoderConfig], nn.Module] | None] = {
    "none": None,
    "periodic": _periodic,
    "plr": _plr,
    "piecewise_linear": _piecewise_linear,
}

CATEGORICAL_ENCODERS: dict[str, Callable[[int, EncoderConfig], bool]] = {
    "auto": lambda cardinality, config: cardinality <= config.onehot_up_to,
    "onehot": lambda cardinality, config: True,
    "embedding": lambda cardinality, config: False,
}
"""For each choice, whether a column of some cardinality becomes one-hot (else it is embedded)."""
