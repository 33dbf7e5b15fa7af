"""Where members stand: every row and weight belongs to exactly one member."""

from __future__ import annotations

import random
from itertools import pairwise

import pytest

from mlp_lab.population.layout import Layout, Shape, arrange

ACTIVATIONS = ("relu", "tanh", "gelu")


def shapes(seed: int, members: int = 30) -> list[Shape]:
    chance = random.Random(seed)
    return [
        Shape(
            widths=tuple(chance.choice([1, 7, 16, 17, 257]) for _ in range(chance.randint(0, 6))),
            activation=chance.choice(ACTIVATIONS),
        )
        for _ in range(members)
    ]


def build(seed: int, bucket: int) -> tuple[list[Shape], Layout]:
    members = shapes(seed)
    return members, arrange(members, in_features=11, out_features=3, bucket=bucket)


@pytest.mark.parametrize("bucket", [1, 16])
@pytest.mark.parametrize("seed", range(5))
def test_every_member_has_its_layers_and_one_head(seed: int, bucket: int) -> None:
    members, layout = build(seed, bucket)
    assert sorted(layout.order) == list(range(len(members)))
    assert [layout.order[place] for place in layout.places] == list(range(len(members)))
    for member, place in enumerate(layout.places):
        widths, depth = members[member].widths, members[member].depth
        for number, level in enumerate(layout.levels):
            assert (place < level.members) == (number <= depth)
            assert (place < level.hidden) == (number < depth)
            if number <= depth:
                assert level.widths[place] == (*widths, 3)[number]
                assert level.fan_in[place] == (11, *widths)[number]
                assert 0 <= level.outputs[place] - level.widths[place] < bucket
    assert layout.levels[-1].hidden == 0


@pytest.mark.parametrize("bucket", [1, 16])
def test_inputs_of_a_level_are_the_hidden_rows_below(bucket: int) -> None:
    _, layout = build(0, bucket)
    for below, above in pairwise(layout.levels):
        assert above.inputs == below.outputs[: below.hidden]
        assert sum(above.inputs) == below.hidden_rows


def test_runs_and_segments_cover_all_rows_in_order() -> None:
    _, layout = build(1, 16)
    for level in layout.levels:
        assert sum(run.count for run in level.runs) == level.members
        assert sum(run.count * run.outputs for run in level.runs) == level.rows
        assert sum(run.weights for run in level.runs) == level.weight_starts[-1]
        assert sum(segment.rows for segment in level.segments) == level.hidden_rows
        names = [segment.activation for segment in level.segments]
        assert all(one != other for one, other in pairwise(names))
        assert sum(count * padded for count, padded, _ in level.width_runs) == level.hidden_rows


def test_equal_members_are_one_run() -> None:
    layout = arrange([Shape(widths=(8, 8), activation="relu")] * 5, in_features=4, out_features=2)
    assert [len(level.runs) for level in layout.levels] == [1, 1, 1]
    assert not any(level.padded for level in layout.levels)
