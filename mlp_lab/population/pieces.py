"""Which part of which stacked tensor is which tensor of which member."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor, nn

from mlp_lab.population.layout import Layout
from mlp_lab.population.level import StackLevel


@dataclass(frozen=True, kw_only=True)
class Piece:
    """A block of a stacked tensor that is one tensor of one member."""

    tensor: str
    """Name of the stacked tensor in the population."""
    start: int
    """Its first entry there."""
    stored: tuple[int, ...]
    """Shape of the block, padding included."""
    shape: tuple[int, ...]
    """Shape of the member's tensor: the block's first corner."""

    @property
    def size(self) -> int:
        """Entries of the block."""
        size = 1
        for length in self.stored:
            size *= length
        return size

    def of(self, tensor: Tensor) -> Tensor:
        """Returns the member's tensor as a view of the stacked one."""
        view = tensor.view(-1).narrow(0, self.start, self.size).view(self.stored)
        for dim, length in enumerate(self.shape):
            view = view.narrow(dim, 0, length)
        return view


def pieces_of(layout: Layout, levels: Sequence[StackLevel], encoders: Sequence[nn.Module]) -> list[dict[str, Piece]]:
    """Returns, per member in its order, its parameters' and buffers' pieces by their names in the MLP.

    Args:
        layout: where each member stands.
        levels: of the population.
        encoders: those that learn, in the order of the stack; none where all members share one that does not.
    """
    members: list[dict[str, Piece]] = [{} for _ in layout.order]
    for place, encoder in enumerate(encoders):
        for name, tensor in encoder.named_parameters():
            shape = tuple(tensor.shape)
            piece = Piece(tensor=f"encoders.{place}.{name}", start=0, stored=shape, shape=shape)
            members[layout.order[place]][f"encoder.{name}"] = piece
    for index, level in enumerate(levels):
        for place in range(level.plan.members):
            members[layout.order[place]] |= _of_level(level, index, place)
    return members


def _of_level(level: StackLevel, index: int, place: int) -> dict[str, Piece]:
    plan, here = level.plan, f"levels.{index}"
    width, rows, row = plan.widths[place], plan.outputs[place], plan.row_starts[place]
    block = f"blocks.{index}"
    linear = f"{block}.linear" if place < plan.hidden else "head"
    matrix = Piece(
        tensor=f"{here}.weight",
        start=plan.weight_starts[place],
        stored=(rows, plan.inputs[place]),
        shape=(width, plan.fan_in[place]),
    )

    def per_row(tensor: str) -> Piece:
        return Piece(tensor=f"{here}.{tensor}", start=row, stored=(rows,), shape=(width,))

    pieces = {f"{linear}.weight": matrix}
    if place >= plan.hidden or level.hidden_bias:
        start = row if level.hidden_bias else row - plan.hidden_rows
        pieces[f"{linear}.bias"] = Piece(tensor=f"{here}.bias", start=start, stored=(rows,), shape=(width,))
    if place >= plan.hidden:
        return pieces
    if level.scale is not None:
        pieces[f"{block}.norm.weight"] = per_row("scale")
    if level.shift is not None:
        pieces[f"{block}.norm.bias"] = per_row("shift")
    if level.norm == "batch":
        pieces[f"{block}.norm.running_mean"] = per_row("mean")
        pieces[f"{block}.norm.running_var"] = per_row("variance")
        counter = Piece(tensor=f"{here}.batches", start=place, stored=(), shape=())
        pieces[f"{block}.norm.num_batches_tracked"] = counter
    if plan.activations[place] == "prelu":
        learned = sum(name == "prelu" for name in plan.activations[:place])
        pieces[f"{block}.activation.weight"] = Piece(tensor=f"{here}.slope", start=learned, stored=(1,), shape=(1,))
    return pieces
