from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any, Union

import pytest
from jsonargparse._optionals import get_docstring_parse_options
from lightning.pytorch.cli import LightningArgumentParser

from mlp_lab.cli.bench import BenchCLI
from mlp_lab.cli.parser import BenchParser, field_docstrings, integers_first, known_keys
from mlp_lab.cli.runs import expand
from mlp_lab.data.arrays import ArrayDataModule
from mlp_lab.data.image_sources import SOURCES
from mlp_lab.data.mnist import MNISTDataModule
from mlp_lab.data.preprocessing import SCALINGS
from mlp_lab.data.sources import NAMED_TABLES
from mlp_lab.data.spec import TASK_NAMES
from mlp_lab.data.tabular import TabularDataModule
from mlp_lab.diagnostics.settings import GROUPS, PROBES
from mlp_lab.errors import UserError
from mlp_lab.model.activations import ACTIVATIONS
from mlp_lab.model.encoders import CATEGORICAL_ENCODERS, NUMERIC_ENCODERS
from mlp_lab.model.initialization import ALIASES, INITS
from mlp_lab.model.losses import LOSSES
from mlp_lab.model.mlp import NORMS
from mlp_lab.training.optimizers import OPTIMIZERS
from mlp_lab.training.schedules import SCHEDULES


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


class Built(Exception):  # noqa: N818 (no error)
    """Carries the parser of a command out of the command line."""


def keys_with_help(monkeypatch: pytest.MonkeyPatch) -> dict[str, str]:
    """Returns the sentence of every key that `fit --help` and `--data.help` show, our own ones."""

    def stop(self: BenchCLI, parser: Any, args: Any) -> None:
        raise Built(parser)

    monkeypatch.setattr(BenchCLI, "parse_arguments", stop)
    with field_docstrings(["--help"]):
        with pytest.raises(Built) as caught:
            BenchCLI(expand("fit", []))
        outer = caught.value.args[0]
        parsers = [next(a._name_parser_map["fit"] for a in outer._actions if hasattr(a, "_name_parser_map"))]
        for data in (TabularDataModule, MNISTDataModule, ArrayDataModule):
            parsers.append(BenchParser())
            parsers[-1].add_class_arguments(data, f"data.{data.__name__}")
    found = {}
    for parser in parsers:
        for action in parser._actions:
            ours = action.dest.partition(".")[0] in OWN and not action.dest.endswith(".help")
            if ours and action.dest not in GROUPS_OF_KEYS and type(action).__name__ != "ActionLink":
                found[action.dest] = action.help or ""
    return found


OWN = ("run", "data", "model", "checkpoint", "diagnostics", "early_stopping", "replicates", "id", "output")
GROUPS_OF_KEYS = ("model", "run", "checkpoint", "diagnostics", "early_stopping", "data", "model.spec")
CHOICES: dict[str, Iterable[str]] = {
    "model.activation": ACTIVATIONS,
    "model.init": [*INITS, *ALIASES],
    "model.norm": NORMS,
    "model.loss": LOSSES,
    "model.encoder.numeric": NUMERIC_ENCODERS,
    "model.encoder.categorical": CATEGORICAL_ENCODERS,
    "model.optimizer.name": OPTIMIZERS,
    "model.schedule.name": SCHEDULES,
    "diagnostics.groups": GROUPS,
    "diagnostics.probe": PROBES,
    "data.TabularDataModule.scaling": SCALINGS,
    "data.TabularDataModule.dataset": NAMED_TABLES,
    "data.TabularDataModule.task": TASK_NAMES,
    "data.MNISTDataModule.dataset": SOURCES,
}


def test_every_key_has_a_sentence_that_names_what_it_accepts(monkeypatch: pytest.MonkeyPatch) -> None:
    found = keys_with_help(monkeypatch)
    assert len(found) > 80
    without = [key for key, text in found.items() if len(text.split()) < 4 or not text.strip().endswith((".", ")"))]
    assert not without
    for key, names in CHOICES.items():
        assert not [name for name in names if not re.search(rf"\b{re.escape(name)}\b", found[key])], key


def test_reading_of_field_docstrings_is_undone() -> None:
    options = get_docstring_parse_options()
    for words, wanted in ((["--help"], True), (["--data.help=X"], True), (["--model.depth", "2"], False)):
        with field_docstrings(words):
            assert options["attribute_docstrings"] == wanted
        assert not options["attribute_docstrings"]


def test_integers_first_whole_number_stays_whole_in_any_order_of_types() -> None:
    parser = LightningArgumentParser(exit_on_error=False)
    parser.add_argument("--limit", type=Union[float, int, None])  # noqa: UP007
    assert isinstance(parser.parse_args(["--limit", "1"]).limit, float)
    integers_first(parser)
    limits = [parser.parse_args(["--limit", text]).limit for text in ("1", "1.0", "null")]
    assert limits == [1, 1.0, None]
    assert [type(limit) for limit in limits[:2]] == [int, float]
