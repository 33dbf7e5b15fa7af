"""One searched key: its range, read from the YAML, with every mistake told in one line."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import combinations
from typing import Any

from mlp_lab.errors import UserError, nearest

KEYS = {
    "int": ("type", "low", "high", "step", "log", "when", "per_layer"),
    "float": ("type", "low", "high", "step", "log", "when", "per_layer"),
    "categorical": ("type", "choices", "when", "per_layer"),
}
LARGEST_GRID = 1_000_000  # as many as a sweep may have trials
_SWITCHES = ("log", "per_layer")


@dataclass(frozen=True, kw_only=True)
class Parameter:
    """The range of one config key."""

    key: str
    """The config key, such as `model.depth`."""
    kind: str
    """int, float or categorical."""
    low: float = 0
    """Smallest value."""
    high: float = 0
    """Largest value, included."""
    step: float | None = None
    """Distance of neighbouring values."""
    log: bool = False
    """Whether the logarithm is searched evenly."""
    choices: tuple[Any, ...] = ()
    """The values of a categorical."""
    when: Mapping[str, Any] = field(default_factory=dict)
    """Other searched key -> condition."""
    per_layer: bool = False
    """Whether every hidden layer has a value of its own."""

    def contains(self, value: object) -> bool:
        """Says whether a value lies in the range."""
        if self.kind == "categorical":
            return any(type(one) is type(value) and one == value for one in self.choices)
        if isinstance(value, bool) or not isinstance(value, int if self.kind == "int" else int | float):
            return False
        assert isinstance(value, int | float)
        if not self.low <= value <= self.high:
            return False
        steps = (value - self.low) / self.step if self.step else 0.0
        return abs(steps - round(steps)) < 1e-8

    def accept(self, where: str, value: object) -> Any:
        """Returns a value of a point that a user names; YAML takes 1e-3 for text, which is meant as a number.

        Raises:
            UserError: It lies outside of the range; `where` is the key that names it.
        """
        if self.kind == "float" and isinstance(value, str):
            with suppress(ValueError):
                value = float(value)
        if not self.contains(value):
            whole = " (integers)" if self.kind == "int" and not isinstance(value, int) else ""
            raise UserError(f"{where}: {value!r} is outside of the space; accepted: {self.words()}{whole}")
        return value

    def values(self) -> list[Any]:
        """Returns all values, where they can be counted.

        Raises:
            UserError: They cannot.
        """
        if self.kind == "categorical":
            return list(self.choices)
        step = self.step or (1 if self.kind == "int" and not self.log else None)
        if step is None:
            raise UserError(f"space.{self.key}: a grid needs `step`, or categorical `choices`; {self.words()} has none")
        count = round((self.high - self.low) / step) + 1
        if count > LARGEST_GRID:
            raise UserError(
                f"space.{self.key}: {self.words()} gives a grid {count:,} values; set `step` so that it has "
                f"{LARGEST_GRID:,} at most"
            )
        values = [self.low + index * step for index in range(count)]
        return [int(value) for value in values] if self.kind == "int" else values

    def ends(self) -> list[Any]:
        """Returns both ends of a range, or all choices."""
        if self.kind == "categorical":
            return list(self.choices)
        return [int(self.low), int(self.high)] if self.kind == "int" else [self.low, self.high]

    def words(self) -> str:
        """Says what is accepted.

        >>> Parameter(key="model.depth", kind="int", low=1, high=6, step=2).words()
        '1 to 6 in steps of 2'
        """
        if self.kind == "categorical":
            return ", ".join(map(as_flag, self.choices))
        return f"{self.low:g} to {self.high:g}" + (f" in steps of {self.step:g}" if self.step else "")


def read_parameter(key: str, content: object) -> Parameter:
    """Reads the range of a key.

    Raises:
        UserError: It is none.
    """
    where = f"space.{key}"
    if not isinstance(content, Mapping):
        raise UserError(f"{where}: {content!r} is not a range; use such as {{type: int, low: 1, high: 6}}")
    kind = content.get("type")
    if kind is None:
        raise UserError(f"{where}.type: it is missing; accepted: {', '.join(KEYS)}")
    if kind not in KEYS:
        raise unknown_key(f"{where}.type", f"{kind!r} is unknown", str(kind), KEYS)
    for name in content:
        if name not in KEYS[kind]:
            raise unknown_key(f"{where}.{name}", f"no such key of the type {kind}", str(name), KEYS[kind])
    for name in _SWITCHES:
        if not isinstance(content.get(name, False), bool):
            raise UserError(f"{where}.{name}: {content[name]!r} is not accepted; use true or false")
    when = {} if (given := content.get("when")) is None else given
    if not isinstance(when, Mapping):
        raise UserError(f"{where}.when: {when!r} is not accepted; use such as {{model.depth: '>2'}}")
    common: dict[str, Any] = {
        "when": {str(k): v for k, v in when.items()},
        "per_layer": content.get("per_layer", False),
    }
    if kind == "categorical":
        return Parameter(key=key, kind=kind, choices=_choices(where, content.get("choices")), **common)
    return _numbers(key, kind, content, common)


def unknown_key(where: str, problem: str, name: str, known: Iterable[str]) -> UserError:
    """Builds the error for a name that is not known, with the nearest one."""
    names = sorted(known)
    guess = nearest(name, names)
    accepted = f"accepted: {', '.join(names)}" if names else "there is none"
    return UserError(f"{where}: {problem}; " + (f"did you mean {guess}?" if guess else accepted))


def _numbers(key: str, kind: str, content: Mapping[str, Any], common: dict[str, Any]) -> Parameter:
    where = f"space.{key}"
    low, high = (_number(f"{where}.{name}", kind, content.get(name)) for name in ("low", "high"))
    step = content.get("step")
    step = None if step is None else _number(f"{where}.step", kind, step)
    log = content.get("log", False)
    if low > high:
        raise UserError(f"{where}: low {low:g} is above high {high:g}; swap them")
    if log and low <= 0:
        raise UserError(f"{where}.low: {low:g} has no logarithm; with `log: true` use a number above 0")
    if log and step is not None:
        raise UserError(f"{where}.step: {step:g} does not go with `log: true`; leave one of them out")
    if step is not None and step <= 0:
        raise UserError(f"{where}.step: {step:g} is not accepted; use a number above 0")
    parameter = Parameter(key=key, kind=kind, low=low, high=high, step=step, log=log, **common)
    if step is not None and not parameter.contains(high):
        last = low + math.floor((high - low) / step + 1e-9) * step
        raise UserError(f"{where}.high: {high:g} is no whole number of steps above {low:g}; use {last:g}")
    return parameter


def _number(where: str, kind: str, value: object) -> float:
    """Reads a finite number; YAML takes 1e-4 for text, which is meant as a number here."""
    if value is None:
        raise UserError(f"{where}: it is missing; give a number")
    if isinstance(value, str) and kind == "float":
        with suppress(ValueError):
            value = float(value)
    accepted = "an integer" if kind == "int" else "a number"
    if isinstance(value, bool) or not isinstance(value, int if kind == "int" else int | float):
        raise UserError(f"{where}: {value!r} is not accepted; use {accepted}")
    assert isinstance(value, int | float)
    if not math.isfinite(value):
        raise UserError(f"{where}: {value!r} is not finite; use {accepted}")
    return value if kind == "int" else float(value)


def _choices(where: str, choices: object) -> tuple[Any, ...]:
    """Reads the choices of a categorical; Optuna finds a choice by `==`, and a flag holds its text.

    Raises:
        UserError: There are none, or two of them are one and the same to Optuna or as flags.
    """
    if not isinstance(choices, list | tuple) or not choices:
        raise UserError(f"{where}.choices: {choices!r} is not accepted; use a list such as [relu, tanh]")
    for choice in choices:
        if not (choice is None or isinstance(choice, str | int | float)):
            raise UserError(
                f"{where}.choices: {choice!r} cannot be stored; use text, numbers, true, false or null "
                "(a width per layer is `type: int` with `per_layer: true`)"
            )
        if isinstance(choice, float) and math.isnan(choice):
            raise UserError(f"{where}.choices: nan equals nothing, not even itself; leave it out")
    for first, second in combinations(choices, 2):
        if type(first) is type(second) and first == second:
            raise UserError(f"{where}.choices: {list(choices)} names one twice")
        if first == second or as_flag(first) == as_flag(second):
            raise UserError(
                f"{where}.choices: {_quoted(first)} and {_quoted(second)} are one and the same choice; "
                "leave one of them out"
            )
    return tuple(choices)


def as_flag(value: object) -> str:
    """Writes a value as the command line takes it; text stays as it is.

    >>> as_flag(None), as_flag(True), as_flag([1, 2]), as_flag("relu")
    ('null', 'true', '[1, 2]', 'relu')
    """
    return value if isinstance(value, str) else json.dumps(value)


def _quoted(value: object) -> str:
    return repr(value) if isinstance(value, str) else as_flag(value)
