"""Where each member of a population stands in the stacked tensors.

Values of a level are kept units first, (R, B): the units of all members below one another, so that a member is a block
of rows, members of equal shape next to one another are one batched product without a copy, and an activation is one
call for all members that share it. Members are ordered by depth, deepest first: those that reach a level are a prefix.
A level holds every product whose inputs are the level below: hidden layers of the members that go on, then the heads of
those that end.

A width may be padded to a multiple of `bucket`, which makes more members equal. Weights that lead to or from a padded
unit are 0 and stay 0.

Symbols: K members, D inputs, B batch, C outputs, R rows of a level.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import accumulate, groupby


@dataclass(frozen=True, kw_only=True)
class Shape:
    """What the layout must know of a member."""

    widths: tuple[int, ...]
    """Units of each hidden layer."""
    activation: str
    """Name of φ."""

    @property
    def depth(self) -> int:
        """Hidden layers."""
        return len(self.widths)


@dataclass(frozen=True, kw_only=True)
class Run:
    """Members next to one another that have one shape at a level: one batched product."""

    count: int
    """Members n."""
    outputs: int
    """Rows of each, padded."""
    inputs: int
    """Inputs of each, padded."""

    @property
    def weights(self) -> int:
        """Weights of all."""
        return self.count * self.outputs * self.inputs


@dataclass(frozen=True, kw_only=True)
class Cut:
    """How a tensor of a level is cut into the parts of its runs."""

    sizes: list[int]
    """Length of each along the first dimension."""
    shapes: Sequence[tuple[int, ...] | None]
    """What each is viewed as; None leaves it as it is."""


@dataclass(frozen=True, kw_only=True)
class Segment:
    """Rows next to one another that share an activation."""

    activation: str
    """Name of φ."""
    rows: int
    """How many."""


@dataclass(frozen=True, kw_only=True)
class Level:
    """The products that read the level below: hidden layers, then heads."""

    number: int
    """Layer, from 1."""
    hidden: int
    """Members with a hidden layer here: the first ones in the order of the stack."""
    widths: tuple[int, ...]
    """True rows of each member: units, or outputs of a head."""
    outputs: tuple[int, ...]
    """Padded rows of each member."""
    fan_in: tuple[int, ...]
    """True inputs of each member."""
    inputs: tuple[int, ...]
    """Padded inputs of each member."""
    activations: tuple[str, ...]
    """φ of each hidden layer."""

    @property
    def members(self) -> int:
        """Members with a layer or a head here."""
        return len(self.widths)

    @cached_property
    def row_starts(self) -> tuple[int, ...]:
        """First row of each member, and the end."""
        return tuple(accumulate(self.outputs, initial=0))

    @cached_property
    def weight_starts(self) -> tuple[int, ...]:
        """First weight of each member, and the end."""
        sizes = (rows * columns for rows, columns in zip(self.outputs, self.inputs, strict=True))
        return tuple(accumulate(sizes, initial=0))

    @property
    def rows(self) -> int:
        """Rows R, those of heads included."""
        return self.row_starts[-1]

    @property
    def hidden_rows(self) -> int:
        """Rows of hidden layers."""
        return self.row_starts[self.hidden]

    @property
    def padded(self) -> bool:
        """Whether a hidden layer here has rows that stand for no unit."""
        return self.outputs[: self.hidden] != self.widths[: self.hidden]

    @cached_property
    def runs(self) -> tuple[Run, ...]:
        """The batched products."""
        groups = groupby(zip(self.outputs, self.inputs, strict=True))
        return tuple(Run(count=len(list(group)), outputs=outputs, inputs=inputs) for (outputs, inputs), group in groups)

    @cached_property
    def weights_cut(self) -> Cut:
        """Of the flat weights, into (H, I), or (n, H, I) where a run has several members."""
        shapes = [
            (run.outputs, run.inputs) if run.count == 1 else (run.count, run.outputs, run.inputs) for run in self.runs
        ]
        return Cut(sizes=[run.weights for run in self.runs], shapes=shapes)

    @cached_property
    def inputs_cut(self) -> Cut:
        """Of the inputs, into (I, B) or (n, I, B)."""
        return _rows_cut([(run.count, run.inputs) for run in self.runs])

    @cached_property
    def outputs_cut(self) -> Cut:
        """Of the outputs, into (H, B) or (n, H, B)."""
        return _rows_cut([(run.count, run.outputs) for run in self.runs])

    @cached_property
    def segments(self) -> tuple[Segment, ...]:
        """The hidden rows by activation."""
        pairs = zip(self.activations, self.outputs, strict=False)  # heads come last and have none
        groups = groupby(pairs, key=lambda pair: pair[0])
        return tuple(Segment(activation=name, rows=sum(rows for _, rows in group)) for name, group in groups)

    @cached_property
    def width_runs(self) -> tuple[tuple[int, int, int], ...]:
        """Hidden members next to one another of one true and padded width: (count, padded, true)."""
        pairs = zip(self.outputs[: self.hidden], self.widths, strict=False)
        return tuple((len(list(group)), padded, true) for (padded, true), group in groupby(pairs))


def _rows_cut(runs: Sequence[tuple[int, int]]) -> Cut:
    """Cuts rows into runs of so many members with so many rows each."""
    shapes = [None if count == 1 else (count, rows, -1) for count, rows in runs]
    return Cut(sizes=[count * rows for count, rows in runs], shapes=shapes)


@dataclass(frozen=True, kw_only=True)
class Layout:
    """The order of the members, and their levels."""

    order: tuple[int, ...]
    """For each place in the stack, the member's number."""
    levels: tuple[Level, ...]
    """From the input on; the last one holds heads only."""
    bucket: int
    """Widths are padded to a multiple of it."""

    @cached_property
    def places(self) -> tuple[int, ...]:
        """For each member, its place in the stack."""
        return tuple(sorted(range(len(self.order)), key=self.order.__getitem__))


def arrange(shapes: Sequence[Shape], *, in_features: int, out_features: int, bucket: int = 1) -> Layout:
    """Lays members out: deepest first, equal activations together, then equal widths.

    Args:
        shapes: one per member.
        in_features: inputs D of the first layer, the same for all.
        out_features: outputs C of the heads, the same for all.
        bucket: hidden widths are padded to a multiple of it; 1 pads nothing.

    >>> layout = arrange([Shape(widths=(8,), activation="relu"), Shape(widths=(8, 4), activation="relu")],
    ...     in_features=3, out_features=2)
    >>> layout.order, [level.outputs for level in layout.levels]
    ((1, 0), [(8, 8), (4, 2), (2,)])
    """
    order = sorted(
        range(len(shapes)), key=lambda k: (-shapes[k].depth, shapes[k].activation, shapes[k].widths, k)
    )  # fmt: skip
    ordered = [shapes[k] for k in order]
    levels = _levels(ordered, in_features=in_features, out_features=out_features, bucket=bucket)
    return Layout(order=tuple(order), levels=tuple(levels), bucket=bucket)


def _levels(shapes: Sequence[Shape], *, in_features: int, out_features: int, bucket: int) -> Iterator[Level]:
    for number in range(1, shapes[0].depth + 2):
        here = [shape for shape in shapes if shape.depth >= number - 1]
        going_on = [shape for shape in here if shape.depth >= number]
        heads = [out_features] * (len(here) - len(going_on))
        widths = [shape.widths[number - 1] for shape in going_on]
        fan_in = [in_features if number == 1 else shape.widths[number - 2] for shape in here]
        yield Level(
            number=number,
            hidden=len(going_on),
            widths=(*widths, *heads),
            outputs=(*(_padded(width, bucket) for width in widths), *heads),
            fan_in=tuple(fan_in),
            inputs=tuple(fan_in if number == 1 else (_padded(width, bucket) for width in fan_in)),
            activations=tuple(shape.activation for shape in going_on),
        )


def _padded(width: int, bucket: int) -> int:
    return -(-width // bucket) * bucket
