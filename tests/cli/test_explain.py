"""The exceptions here are jsonargparse's own: a new version that words them otherwise fails here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import jsonargparse
import pytest

from mlp_lab.cli.explain import explain
from mlp_lab.errors import causes


@dataclass(frozen=True, kw_only=True)
class Inner:
    name: str = "a"
    rate: float = 0.1


class Base:
    pass


class Thing(Base):
    def __init__(self, size: int = 1, drop: list[str] | None = None, inner: Inner = Inner()) -> None:
        pass


KEYS = ["depth", "flag", "mode", "inner", "inner.name", "inner.rate", "thing", "width"]


class Refused(Exception):  # noqa: N818
    pass


class RaisingParser(jsonargparse.ArgumentParser):
    def error(self, message: str, ex: Exception | None = None) -> None:  # type: ignore[override]
        if not self.exit_on_error:
            super().error(message, ex)
        raise Refused(explain([message, *map(str, causes(ex))], KEYS))


@pytest.fixture
def parser() -> RaisingParser:
    parser = RaisingParser(allow_abbrev=False)
    parser.add_argument("--depth", type=int)
    parser.add_argument("--width", type=int | list[int])
    parser.add_argument("--flag", type=bool)
    parser.add_argument("--mode", type=Literal["fast", "slow"] | None)
    parser.add_argument("--inner", type=Inner, default=Inner())
    parser.add_subclass_arguments(Base, "thing", required=False, default=None)
    return parser


@pytest.mark.parametrize(
    ("words", "line"),
    [
        ("--depth abc", "depth: 'abc' is not accepted; use an integer"),
        ("--depth 1.5", "depth: 1.5 is not accepted; use an integer"),
        ("--depth", "depth: no value is given"),
        ("--width [a]", "width: ['a'] is not accepted; use an integer or a list of integers"),
        ("--flag maybe", "flag: 'maybe' is not accepted; use true or false"),
        ("--mode medium", "mode: 'medium' is not accepted; use fast, slow or null"),
        ("--dept 3", "dept: no such key; did you mean depth?"),
        ("--rate 3", "rate: no such key; did you mean inner.rate?"),
        ("--xyz 3", "xyz: no such key; `fit --help` lists the keys"),
        ("word", "word: unexpected word; keys begin with --"),
        ("--inner adam", "inner: 'adam' is not accepted; it is a group of keys, such as inner.name"),
        ("--inner.rate fast", "inner.rate: 'fast' is not accepted; use a number"),
        ("--inner.rat 3", "inner.rat: no such key; did you mean inner.rate?"),
        (
            "--thing Nothing",
            "thing: 'Nothing' is not a class that can be used here; use a class path, as in the configs",
        ),
        (
            "--thing no.such.Thing",
            "thing: 'no.such.Thing' is not a class that can be used here; use a class path, as in …",
        ),
        ("--thing Thing --thing.size big", "thing.size: 'big' is not accepted; use an integer"),
        ("--thing Thing --thing.sise 3", "thing.sise: no such key of Thing; did you mean thing.size?"),
        ("--thing Thing --thing.q 3", "thing.q: no such key of Thing; accepted: thing.size, thing.drop, …"),
        ("--thing Thing --thing.drop x", "thing.drop: 'x' is not accepted; use a list of names or null, such as …"),
        (
            "--thing Thing --thing.drop [no]",
            'thing.drop: YAML reads no, yes, on and off as booleans; write ["no"] in a file, or '
            "--thing.drop '[\"no\"]'",
        ),
    ],
)
def test_every_kind_of_refusal_becomes_one_line(parser: RaisingParser, words: str, line: str) -> None:
    with pytest.raises(Refused) as caught:
        parser.parse_args(words.replace("Thing", f"{__name__}.Thing").split())
    message = str(caught.value).replace(f"{__name__}.", "")
    assert "\n" not in message
    assert message == line or (line.endswith("…") and message.startswith(line.removesuffix("…"))), message


def test_a_message_of_no_known_form_is_passed_on_in_one_line() -> None:
    assert explain(["Parser key 'model.depth': something\n  else"], KEYS) == "model.depth: something else"
    assert explain(["something\n else"], KEYS) == "something else"


def test_causes_begin_outside_and_end_inside() -> None:
    outer = ValueError("outer")
    outer.__cause__ = KeyError("inner")
    outer.__cause__.__context__ = OSError("innermost")
    assert [str(cause) for cause in causes(outer)] == ["outer", "'inner'", "innermost"]
    assert list(causes(None)) == []
