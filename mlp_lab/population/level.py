"""One level of a population: products, norm, activation, dropout and skip of all members that reach it.

Symbols: B batch, R rows of a level, n members of one shape, H units.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import accumulate
from typing import cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mlp_lab.model.linear import is_faster_by_onednn, linear
from mlp_lab.model.mlp import MLP, Block
from mlp_lab.population.layout import Level
from mlp_lab.population.masks import StackDropout
from mlp_lab.population.products import activate, pays, products

EPS = 1e-5  # of batch and layer norm, as in torch
MOMENTUM = 0.1  # of batch norm's running statistics, as in torch


class StackLevel(nn.Module):
    """The hidden layers of one number, and the heads of the members that end below it.

    Args:
        level: where each member stands.
        mlps: the members in play, in the order of the stack; their values are not copied here.
        shared: whether all members have the same inputs.
    """

    mean: Tensor
    variance: Tensor
    going: Tensor
    """1 for each member whose statistics follow its batches, else 0."""
    row_counts: Tensor
    no_bias: Tensor | None

    def __init__(self, level: Level, mlps: Sequence[MLP], *, shared: bool) -> None:
        super().__init__()
        self.plan, self.shared = level, shared
        blocks = [cast(Block, mlp.blocks[level.number - 1]) for mlp in mlps[: level.hidden]]
        rows = level.hidden_rows
        self.weight = nn.Parameter(torch.zeros(level.weight_starts[-1]))
        self.hidden_bias = all(block.linear.bias is not None for block in blocks)
        """Whether hidden layers have biases; heads always do."""
        without = 0 if self.hidden_bias else rows
        self.bias = nn.Parameter(torch.zeros(level.rows - without)) if without < level.rows else None
        zeros = torch.zeros(without) if without else None
        self.register_buffer("no_bias", zeros, persistent=False)  # for the rows of hidden layers without a bias
        norm = blocks[0].norm if blocks else None
        self.norm = {nn.LayerNorm: "layer", nn.RMSNorm: "rms", type(None): "none"}.get(type(norm), "batch")
        self.scale = nn.Parameter(torch.zeros(rows)) if norm is not None else None
        self.shift = nn.Parameter(torch.zeros(rows)) if self.norm in ("batch", "layer") else None
        if self.norm == "batch":
            self.register_buffer("mean", torch.zeros(rows))
            self.register_buffer("variance", torch.ones(rows))
            self.register_buffer("batches", torch.zeros(level.hidden, dtype=torch.int64))
            self.register_buffer("going", torch.ones(level.hidden, dtype=torch.int64), persistent=False)
            self.register_buffer("row_counts", torch.tensor(level.outputs[: level.hidden]), persistent=False)
        learned = [width for width, name in zip(level.outputs, level.activations, strict=False) if name == "prelu"]
        self.slope = nn.Parameter(torch.zeros(len(learned))) if learned else None
        self._prelu_rows = sum(learned)
        self.register_buffer("slope_rows", torch.tensor(learned), persistent=False)
        self._holding = False  # whether the statistics of some members stay as they are
        dropouts = [block.dropout for block in blocks]
        self.dropout = None
        if any(part is not None for part in dropouts):
            self.dropout = StackDropout(dropouts, level.outputs[: level.hidden])
        self.skips = _skips(level, [block.skip for block in blocks], shared)
        mask = None
        if level.padded:
            mask = torch.cat(
                [torch.arange(p) < w for p, w in zip(level.outputs[: level.hidden], level.widths, strict=False)]
            )
        self.register_buffer("mask", mask, persistent=False)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor | None]:
        """Returns the hidden layers' outputs (R_hidden, B) and the heads' (R_heads, B) or None."""
        h = self.multiply(x)
        plan = self.plan
        if plan.hidden == 0:
            return h, h
        if plan.hidden == plan.members:
            return self.finish(h, x), None
        hidden, heads = torch.split(h, [plan.hidden_rows, plan.rows - plan.hidden_rows])
        return self.finish(hidden, x), heads

    def multiply(self, x: Tensor) -> Tensor:
        """Returns h = Wx + b of every member, (R, B)."""
        bias = self.biases()
        low = torch.get_autocast_dtype(x.device.type) if torch.is_autocast_enabled(x.device.type) else None
        if low is not None and x.device.type != "cpu" and not self.shared:
            return products(x.to(low), self.weight.to(low), bias.to(low), self.plan)
        if low is not None and x.device.type == "cpu":
            x = x.to(self.weight.dtype)  # an encoder's outputs may be of the lower type
        if not self.shared:
            return products(x, self.weight, bias, self.plan, low)
        weight = self.weight.view(self.plan.rows, -1)
        if low is not None and x.device.type == "cpu":
            with torch.autocast("cpu", enabled=pays(weight.numel(), x.shape[1])):
                return torch.addmm(bias.unsqueeze(1), weight, x).to(weight.dtype)
        if is_faster_by_onednn(weight, x.mT):
            return linear(weight, x.mT).add_(bias.unsqueeze(1))
        return torch.addmm(bias.unsqueeze(1), weight, x)

    def biases(self) -> Tensor:
        """Returns the bias of every row, (R,); 0 where a hidden layer has none."""
        if self.no_bias is None or self.bias is None:
            return cast(Tensor, self.no_bias if self.bias is None else self.bias)
        return torch.cat((self.no_bias, self.bias))

    def finish(self, h: Tensor, x: Tensor) -> Tensor:
        """Returns the outputs of the hidden layers, (R_hidden, B), of h and the inputs."""
        out = self.activate(self.normalise(h))
        if self.dropout is not None:
            out = self.dropout(out)
        if self.mask is not None:
            out = out * cast(Tensor, self.mask).unsqueeze(1)
        if self.skips:
            parts = [out[o : o + rows] + x[i : i + rows] if i >= 0 else out[o : o + rows] for o, i, rows in self.skips]
            out = torch.cat(parts)
        return out

    def activate(self, z: Tensor) -> Tensor:
        """Returns a = φ(z)."""
        slopes = None
        if self.slope is not None:
            rows = cast(Tensor, self.slope_rows)
            slopes = self.slope.repeat_interleave(rows, output_size=self._prelu_rows)  # known: no wait for the device
        return activate(z, self.plan.segments, slopes)

    def normalise(self, h: Tensor) -> Tensor:
        """Returns z = norm(h), each member by its own statistics."""
        if self.norm == "none":
            return h
        if self.norm == "batch":
            return self._batch_norm(h)
        assert self.scale is not None
        h = h.float() if torch.is_autocast_enabled(h.device.type) else h
        parts = torch.split(h, [count * padded for count, padded, _ in self.plan.width_runs])
        normal = []
        for (count, padded, true), part in zip(self.plan.width_runs, parts, strict=True):
            values = part.view(count, padded, -1)[:, :true]  # (n, H, B)
            if self.norm == "layer":
                values = values - values.mean(1, keepdim=True)
            eps = EPS if self.norm == "layer" else torch.finfo(values.dtype).eps
            values = values * (values.square().mean(1, keepdim=True) + eps).rsqrt()
            normal.append(F.pad(values, (0, 0, 0, padded - true)).flatten(0, 1))
        z = torch.cat(normal) * self.scale.unsqueeze(1)
        return z if self.shift is None else z + self.shift.unsqueeze(1)

    def _batch_norm(self, h: Tensor) -> Tensor:
        training = self.training and h.shape[1] > 1
        guarded = training and self._holding
        before = [(statistic, statistic.clone()) for statistic in (self.mean, self.variance)] if guarded else []
        if training:
            cast(Tensor, self.batches).add_(self.going)
        z = F.batch_norm(h.unsqueeze(0), self.mean, self.variance, self.scale, self.shift, training, MOMENTUM, EPS)
        rows = self.going.repeat_interleave(self.row_counts, output_size=len(h)).bool() if guarded else self.going
        for statistic, value in before:  # past autograd, which keeps them and does not read them in training
            statistic.data.copy_(torch.where(rows, statistic, value))
        return z.squeeze(0)

    def hold(self, going: Tensor, some: bool) -> None:
        """Keeps what a pass changes in members as it is: those false in `going` (K,), as they stand in the stack."""
        if self.dropout is not None:
            self.dropout.passing.copy_(going[: self.plan.hidden])
        if self.norm == "batch":
            self._holding = some
            self.going.copy_(going[: self.plan.hidden])


def _skips(level: Level, skips: Sequence[bool], shared: bool) -> list[tuple[int, int, int]]:
    """Returns (first row, first row of the input that is added or -1, rows), merged where both go on; [] for none."""
    if not any(skips):
        return []
    starts = [0] * level.members if shared else list(accumulate(level.inputs, initial=0))
    merged: list[tuple[int, int, int]] = []
    for member, skip in enumerate(skips):
        row, rows = level.row_starts[member], level.outputs[member]
        added = min(rows, level.inputs[member]) if skip else 0  # the first inputs are not padded
        parts = [(row, starts[member], added), (row + added, -1, rows - added)]
        for start, source, count in parts:
            goes_on = merged and (source == -1 == merged[-1][1] or 0 <= merged[-1][1] == source - merged[-1][2])
            if count and goes_on:
                merged[-1] = (merged[-1][0], merged[-1][1], merged[-1][2] + count)
            elif count:
                merged.append((start, source, count))
    return merged
