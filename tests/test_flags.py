"""A printed flag, pasted into a shell and read by the parser, gives back its value."""

from __future__ import annotations

import shlex
from typing import Any

import pytest
from jsonargparse import ArgumentParser

from mlp_lab.flags import flag

NAMES = [
    *("tags", "2020", "Unnamed: 3", "a, b", "no", "true", "null", "~", "", "it's", 'say "hi"', "a#b", "a #b", "[a]"),
    *("{a: b}", "*a", "&a", "!x", "$HOME", "`id`", "a\\n", "a\nb", "a\tb", "-5", "--x", "1e3", "1_000", "0x1F", ".5"),
    *("2024-01-01", "@x", "%", " lead", "trail ", "a:", "größe", "😀", "y", "=", "<<", "a.b", "?", "x" * 200, "- a"),
]


class Table:
    """Keys as the data modules have them."""

    def __init__(self, drop: list[str] | str | None = None, width: int | list[int] | None = None, rate: float = 1):
        self.drop, self.width, self.rate = drop, width, rate


class OtherTable(Table):
    """Makes the keys those of a class that is chosen by name."""


def read_back(words: str) -> Any:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(Table, "data")
    parser.set_defaults({"data": {"class_path": f"{__name__}.OtherTable"}})
    return parser.parse_args(shlex.split(words)).data.init_args


@pytest.mark.parametrize("name", NAMES)
def test_flag_of_names_reads_back(name: str) -> None:
    assert read_back(flag("data.drop", [name])).drop == [name]
    assert read_back(flag("data.drop", ["x", name])).drop == ["x", name]
    assert read_back(flag("data.drop", name)).drop in (name, [name])


@pytest.mark.parametrize("value", [None, 3, [64, 32]])
def test_flag_of_numbers_reads_back(value: object) -> None:
    assert read_back(flag("data.width", value)).width == value


@pytest.mark.parametrize("value", [0.003, 1e-05, 1e300, 0.1 + 0.2, -2.5])
def test_flag_of_float_reads_back_exactly(value: float) -> None:
    assert read_back(flag("data.rate", value)).rate == value
