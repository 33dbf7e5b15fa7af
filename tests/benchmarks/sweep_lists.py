"""The fixed lists of members that the sweep benchmark trains, and what a step of each one costs at least.

A list is drawn once from the seed and by the rule of `draw`, and stands here as drawn;
`tests/test_benchmarks.py` compares the two. Every member is 784-w-...-w-10 with Adam.
"""

from __future__ import annotations

import math
import random
from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

from tests.benchmarks.recipe import BATCH_SIZE, INPUTS, OUTPUTS

MEMBERS = 64
ACTIVATIONS = ("relu", "tanh", "gelu", "sigmoid")


class Member(NamedTuple):
    """One network of a list."""

    depth: int
    width: int
    activation: str
    lr: float

    @property
    def sizes(self) -> tuple[int, ...]:
        """Units from the input to the output."""
        return (INPUTS, *[self.width] * self.depth, OUTPUTS)

    @property
    def step_flops(self) -> int:
        """Floating-point operations of a step's matrix products, which no implementation can do without.

        A product of each layer's weights forward, one for their gradient, and one for the gradient of the layer's
        inputs, which the first layer does not need.

        >>> Member(1, 128, "relu", 1e-3).step_flops == 128 * 2 * (2 * 784 * 128 + 3 * 128 * 10)
        True
        """
        weights = [inputs * outputs for inputs, outputs in pairwise(self.sizes)]
        return 2 * BATCH_SIZE * (3 * sum(weights) - weights[0])

    def __str__(self) -> str:
        return f"{self.depth}x{self.width} {self.activation} {self.lr:.2e}"

    @classmethod
    def parse(cls, text: str) -> Member:
        """Reads what `str` writes.

        >>> Member.parse("2x64 gelu 1.00e-03")
        Member(depth=2, width=64, activation='gelu', lr=0.001)
        """
        shape, activation, lr = text.split()
        depth, width = shape.split("x")
        return cls(int(depth), int(width), activation, float(lr))


def draw(seed: int, *, low: int, high: int) -> list[Member]:
    """Draws a list: depth 1 to 4 and activation uniformly, width (low to high) and rate (1e-4 to 1e-2) log-uniformly.

    The generator is `random.Random(seed)`, whose `random()` is the same in every version of Python; it is asked for
    depth, width, activation and rate of one member after another. Rates keep three digits.
    """
    source = random.Random(seed)
    members = []
    for _ in range(MEMBERS):
        depth = 1 + int(4 * source.random())
        width = round(math.exp(math.log(low) + source.random() * (math.log(high) - math.log(low))))
        activation = ACTIVATIONS[int(len(ACTIVATIONS) * source.random())]
        members.append(Member(depth, width, activation, float(f"{10 ** (-4 + 2 * source.random()):.2e}")))
    return members


def _parse(text: str) -> list[Member]:
    return [Member.parse(one) for line in text.strip().splitlines() for one in line.split("|")]


MIXED_SEED, NARROW_SEED = 2026, 2027

MIXED = _parse(
    """
    1x64 gelu 5.25e-03 | 1x30 gelu 1.30e-03 | 4x73 gelu 3.44e-03 | 4x81 relu 1.69e-03
    1x154 tanh 4.26e-03 | 3x105 relu 3.18e-04 | 4x210 sigmoid 9.98e-03 | 3x20 tanh 1.30e-03
    2x57 sigmoid 2.56e-03 | 3x17 gelu 5.33e-04 | 2x48 gelu 9.93e-04 | 1x65 sigmoid 1.59e-03
    2x203 tanh 6.92e-04 | 4x60 gelu 1.12e-04 | 1x23 relu 2.57e-03 | 4x21 gelu 8.71e-04
    2x30 sigmoid 1.79e-03 | 2x59 sigmoid 9.43e-03 | 3x76 gelu 4.12e-04 | 4x64 tanh 5.87e-03
    2x36 tanh 1.16e-04 | 3x84 tanh 1.11e-03 | 2x206 tanh 9.36e-04 | 3x158 sigmoid 1.31e-03
    4x160 tanh 6.82e-03 | 1x108 sigmoid 1.07e-03 | 2x232 sigmoid 4.84e-03 | 2x19 tanh 9.93e-04
    1x127 tanh 7.92e-04 | 1x16 gelu 7.32e-03 | 1x145 relu 1.75e-03 | 4x227 gelu 1.87e-03
    1x38 gelu 3.46e-03 | 4x63 gelu 1.86e-04 | 1x82 sigmoid 5.65e-03 | 3x20 gelu 7.42e-03
    4x202 tanh 6.67e-04 | 4x68 relu 1.07e-04 | 1x188 relu 4.94e-04 | 2x135 relu 1.05e-03
    2x37 tanh 1.75e-04 | 4x78 sigmoid 2.03e-04 | 3x53 tanh 1.57e-03 | 3x19 tanh 2.46e-04
    4x18 gelu 4.76e-03 | 2x130 relu 2.64e-03 | 4x23 gelu 3.72e-03 | 3x227 relu 4.88e-03
    2x52 tanh 1.44e-04 | 2x42 tanh 9.89e-04 | 4x51 tanh 4.48e-04 | 2x22 sigmoid 3.92e-03
    4x168 relu 8.08e-03 | 4x96 tanh 3.69e-03 | 4x103 sigmoid 5.06e-04 | 1x76 gelu 1.19e-03
    1x116 gelu 1.37e-03 | 1x36 tanh 1.29e-03 | 1x33 sigmoid 2.20e-04 | 3x131 gelu 2.35e-04
    3x65 tanh 4.73e-03 | 2x38 tanh 1.34e-04 | 2x193 sigmoid 6.75e-04 | 1x21 relu 1.76e-04
    """
)

NARROW = _parse(
    """
    1x21 relu 4.42e-04 | 2x52 relu 2.29e-04 | 3x14 gelu 1.42e-04 | 3x15 tanh 3.18e-03
    4x48 tanh 2.86e-04 | 3x16 tanh 2.75e-04 | 2x11 sigmoid 5.59e-04 | 3x15 sigmoid 3.46e-03
    4x48 relu 8.95e-04 | 3x14 sigmoid 6.74e-04 | 3x39 tanh 1.39e-04 | 4x29 gelu 1.01e-03
    1x13 relu 4.04e-04 | 3x23 relu 1.14e-04 | 3x28 tanh 1.07e-04 | 1x30 gelu 1.06e-03
    3x44 tanh 4.44e-03 | 2x12 tanh 3.02e-04 | 1x34 tanh 1.90e-03 | 3x11 tanh 2.09e-03
    1x41 tanh 7.20e-04 | 3x20 sigmoid 9.41e-03 | 3x19 sigmoid 3.04e-04 | 3x19 gelu 5.43e-03
    3x21 gelu 4.66e-03 | 4x11 gelu 2.57e-04 | 2x27 gelu 3.23e-04 | 2x14 sigmoid 1.60e-04
    2x10 tanh 3.33e-03 | 1x18 gelu 4.17e-04 | 4x24 relu 1.47e-04 | 4x13 relu 2.49e-04
    2x26 gelu 1.96e-04 | 3x31 sigmoid 5.17e-03 | 2x48 gelu 2.31e-04 | 3x55 gelu 2.50e-04
    4x10 tanh 2.56e-03 | 1x12 relu 1.37e-03 | 4x24 tanh 5.97e-04 | 4x23 gelu 1.31e-04
    4x56 relu 9.23e-04 | 3x10 gelu 1.35e-03 | 2x23 relu 8.65e-03 | 3x21 relu 2.17e-04
    3x26 tanh 6.49e-03 | 1x12 tanh 2.10e-04 | 3x14 tanh 7.26e-04 | 4x28 tanh 2.00e-03
    2x11 sigmoid 1.84e-03 | 4x9 sigmoid 2.20e-04 | 3x43 gelu 2.02e-03 | 3x39 tanh 2.30e-04
    2x35 relu 1.93e-03 | 3x46 sigmoid 2.73e-03 | 2x9 tanh 8.28e-04 | 2x16 gelu 6.59e-04
    3x58 tanh 6.68e-04 | 2x14 tanh 1.51e-03 | 3x9 sigmoid 7.62e-04 | 2x31 relu 3.33e-03
    4x8 relu 7.98e-03 | 2x30 sigmoid 6.39e-04 | 4x52 tanh 5.75e-04 | 2x25 tanh 6.18e-04
    """
)


def equal(widths: tuple[int, int]) -> list[Member]:
    """Returns 64 members of one depth and width, ReLU, with the rates of the mixed list."""
    return [Member(*widths, "relu", member.lr) for member in MIXED]


LISTS = {"mixed": MIXED, "narrow": NARROW, "equal-16-16": equal((2, 16)), "equal-128": equal((1, 128))}
TITLES = {
    "mixed": "mixed: depth 1 to 4, width 16 to 256, four activations",
    "narrow": "narrow: depth 1 to 4, width 8 to 64, four activations",
    "equal-16-16": "equal: 784-16-16-10",
    "equal-128": "equal: 784-128-10",
}


def chosen(name: str, count: int | None = None) -> list[Member]:
    """Returns the first `count` members of a list, all by default."""
    return LISTS[name][:count]


def limit(members: Sequence[Member], gflops: float) -> float:
    """Returns the member-steps per second of a machine that does nothing but large matrix products.

    Args:
        members: a list.
        gflops: speed of a large float32 product, in 10^9 operations per second.
    """
    return len(members) * gflops * 1e9 / sum(member.step_flops for member in members)
