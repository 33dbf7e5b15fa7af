"""Many MLPs as one module whose tensors hold all of them.

Symbols: K members, D inputs, B batch, C outputs, R rows of a level.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn

from mlp_lab.errors import UserError
from mlp_lab.model.mlp import MLP, Block, flat_rows
from mlp_lab.population.layout import Shape, arrange
from mlp_lab.population.level import StackLevel
from mlp_lab.population.masks import StackDropout
from mlp_lab.population.pieces import Piece, pieces_of
from mlp_lab.population.rules import check_members

BUCKETS = {"cpu": 1}
OTHER_BUCKET = 16  # where a launch costs more than padding


class Population(nn.Module):
    """Members of different depth, width, activation, init and dropout that are computed together.

    Made by `Population.stack`. Its parameters are flat: one tensor of weights and one of biases per level hold those of
    all members. `members` are in the order in which they were given, whatever their place in the stack.
    """

    places: Tensor | None
    order: Tensor

    def __init__(self, mlps: Sequence[MLP], bucket: int) -> None:
        super().__init__()
        check_members(mlps)
        first = mlps[0]
        in_features = first.linears[0].in_features
        shapes = [Shape(widths=mlp.widths, activation=mlp.activation) for mlp in mlps]
        self.layout = arrange(shapes, in_features=in_features, out_features=first.out_features, bucket=bucket)
        ordered = [mlps[k] for k in self.layout.order]
        self.in_features, self.out_features = first.in_features, first.out_features
        learned = first.encoder is not None and any(True for _ in first.encoder.parameters())
        self.encoders = nn.ModuleList() if learned else None
        self.encoder = None if learned else copy.deepcopy(first.encoder)
        if learned:
            self.encoders = nn.ModuleList(copy.deepcopy(cast(nn.Module, mlp.encoder)) for mlp in ordered)
        self.input_dropout: StackDropout | None = None
        if any(mlp.input_dropout is not None for mlp in mlps):
            self.input_dropout = StackDropout([mlp.input_dropout for mlp in ordered], [in_features] * len(mlps))
        self.shared = not learned and self.input_dropout is None
        """Whether all members see the same inputs of their first layer: then it is one product."""
        self.levels = nn.ModuleList(
            StackLevel(level, ordered[: level.members], shared=self.shared and level.number == 1)
            for level in self.layout.levels
        )
        places = None if self.layout.places == tuple(range(len(mlps))) else torch.tensor(self.layout.places)
        self.register_buffer("places", places, persistent=False)  # where it is not the order of the members
        self.register_buffer("order", torch.tensor(self.layout.order), persistent=False)
        self.to(first.head.weight)
        self._skeletons = [_skeleton(mlp) for mlp in mlps]
        self.pieces: list[dict[str, Piece]] = pieces_of(
            self.layout, cast("Sequence[StackLevel]", self.levels), list(self.encoders or ())
        )
        """Per member, where each of its tensors lies, by the name that it has in the MLP."""
        for number, mlp in enumerate(mlps):
            state = dict(mlp.named_parameters()) | dict(mlp.named_buffers())
            for name, view in self.views(number).items():
                view.data.copy_(state[name].data)

    @classmethod
    def stack(cls, mlps: Sequence[MLP], *, bucket: int | None = None) -> Population:
        """Stacks MLPs.

        Depth, width, activation, init, dropout and input dropout may differ; norm, residual, encoder, inputs, outputs,
        device and dtype must be equal.

        Args:
            mlps: the members, at least one; they are copied.
            bucket: hidden widths are padded to a multiple of it; None pads nothing on the CPU and to 16 elsewhere.

        Raises:
            UserError: names the members and the setting that differs.
        """
        if not mlps:
            raise UserError("population: no member given; accepted: at least one MLP")
        if bucket is None:
            bucket = BUCKETS.get(mlps[0].head.weight.device.type, OTHER_BUCKET)
        return cls(mlps, bucket)

    def __len__(self) -> int:
        return len(self._skeletons)

    def forward(self, numeric: Tensor, categorical: Tensor | None = None) -> Tensor:
        """Computes the logits of all members.

        Args:
            numeric: (B, D), or images (B, ...) with D pixels.
            categorical: (B, F) int64 codes for the encoder, or None.

        Returns:
            (K, B, C), in the order of the members.
        """
        return self.decode(self.encode(numeric, categorical))

    def encode(self, numeric: Tensor, categorical: Tensor | None = None) -> Tensor:
        """Returns what the first layers see, units first: (D', B) for all, or (K·D', B) where the members differ."""
        x = numeric if numeric.dim() == 2 else flat_rows(numeric)
        if x.shape[1] != self.in_features:
            raise ValueError(
                f"the networks take {self.in_features} numeric inputs, not {x.shape[1]} (shape {tuple(numeric.shape)})"
            )
        if self.encoders is not None:
            x = torch.cat([encoder(x, categorical).T for encoder in self.encoders])  # (K·D', B)
        else:
            x = x.T if self.encoder is None else self.encoder(x, categorical).T  # (D', B)
            x = x if self.shared else x.repeat(len(self), 1)
        return x if self.input_dropout is None else self.input_dropout(x)

    def decode(self, x: Tensor) -> Tensor:
        """Returns the logits (K, B, C) of what `encode` returned."""
        logits: list[Tensor] = []
        for level in self.levels:
            x, ended = cast(StackLevel, level)(x)
            if ended is not None:
                logits.append(ended.view(-1, self.out_features, ended.shape[1]))  # (n, C, B)
        stacked = torch.cat(logits[::-1])  # the deepest members end last and stand first
        ordered = stacked if self.places is None else stacked.index_select(0, self.places)
        return ordered.mT  # (K, B, C)

    def hold(self, going: Tensor, *, some: bool) -> None:
        """Keeps the statistics and the counters of some members as they are.

        The weights of a member that has stopped stay because nobody steps them; what each pass changes would not.

        Args:
            going: (K,) false for those that are held; on the device, which is not waited for.
            some: whether any is held, or may be.
        """
        ordered = going[self.order]  # (K,), as the members stand
        if self.input_dropout is not None:
            self.input_dropout.passing.copy_(ordered)
        for level in self.levels:
            cast(StackLevel, level).hold(ordered, some)

    def views(self, member: int) -> dict[str, Tensor]:
        """Returns a member's parameters and buffers as views of the stack, by their names in the MLP."""
        tensors = dict(self.named_parameters()) | dict(self.named_buffers())
        return {name: piece.of(tensors[piece.tensor].data) for name, piece in self.pieces[member].items()}

    def member(self, number: int) -> MLP:
        """Returns a copy of one member as it is now."""
        skeleton = self._skeletons[number]
        views = self.views(number)
        memo: dict[int, Tensor] = {
            id(parameter): nn.Parameter(views[name].clone(memory_format=torch.contiguous_format))
            for name, parameter in skeleton.named_parameters()
        }
        memo |= {id(buffer): views[name].clone() for name, buffer in skeleton.named_buffers() if name in views}
        mlp = copy.deepcopy(skeleton, memo)
        self._count(number, mlp)
        weights = next(self.parameters())
        return mlp.to(weights).train(self.training)  # what of an encoder never changes is as it was given

    @torch.no_grad()
    def write_(self, number: int, mlp: MLP) -> None:
        """Makes an MLP of a member's shape what the member is now, its dropout's masks too."""
        tensors = dict(mlp.named_parameters()) | dict(mlp.named_buffers())
        for name, view in self.views(number).items():
            tensors[name].copy_(view)
        self._count(number, mlp)

    def _count(self, number: int, mlp: MLP) -> None:
        place = self.layout.places[number]
        for drop, stacked in self._dropouts(mlp):
            drop.seed, drop.passes = stacked.counters[place].tolist()

    def _dropouts(self, mlp: MLP) -> list[tuple[nn.Module, StackDropout]]:
        pairs = [(mlp.input_dropout, self.input_dropout)]
        pairs += [
            (cast(Block, block).dropout, cast(StackLevel, level).dropout)
            for block, level in zip(mlp.blocks, self.levels, strict=False)
        ]
        return [(drop, stacked) for drop, stacked in pairs if drop is not None and stacked is not None]

    def unstack(self) -> list[MLP]:
        """Returns copies of the members as ordinary MLPs, in their order."""
        return [self.member(number) for number in range(len(self))]

    def keep(self, members: Sequence[int]) -> Population:
        """Returns a new population of some of the members, in the order given.

        Raises:
            UserError: none is kept, or one is not there or named twice.
        """
        if not members or len(set(members)) < len(members) or not set(members) <= set(range(len(self))):
            raise UserError(
                f"population.keep: {list(members)!r}; accepted: different numbers from 0 to {len(self) - 1}"
            )
        return Population([self.member(number) for number in members], self.layout.bucket).train(self.training)


def _skeleton(mlp: MLP) -> MLP:
    """Returns a copy whose parameters take no memory."""
    memo = {id(parameter): nn.Parameter(torch.empty_like(parameter, device="meta")) for parameter in mlp.parameters()}
    return copy.deepcopy(mlp, memo)
