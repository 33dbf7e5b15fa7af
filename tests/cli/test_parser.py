from __future__ import annotations

import pytest

from mlp_lab.cli.parser import BenchParser, known_keys
from mlp_lab.errors import UserError


def parser() -> BenchParser:
    parser = BenchParser()
    parser.add_argument("--depth", type=int, default=1)
    return parser


def test_keys_are_exact() -> None:
    assert parser().parse_args(["--depth", "3"]).depth == 3
    with pytest.raises(UserError, match="dep: no such key; did you mean depth"):
        parser().parse_args(["--dep", "3"])


def test_known_keys_are_those_of_the_subcommands_too() -> None:
    outer = BenchParser()
    commands = outer.add_subcommands(required=True)
    commands.add_subcommand("fit", parser())
    assert {"depth", "subcommand"} <= set(known_keys(outer))
    assert not {"help", "print_config"} & set(known_keys(outer))


def test_mistake_within_a_subcommand_suggests_from_its_keys() -> None:
    outer = BenchParser()
    outer.add_subcommands(required=True).add_subcommand("fit", parser())
    with pytest.raises(UserError, match="dept: no such key; did you mean depth"):
        outer.parse_args(["fit", "--dept", "3"])
