"""The space of a search: config keys with their ranges, conditions, and widths per layer.

A range is one of

    {type: int, low: 1, high: 6}                              whole numbers, both ends included; `step` or `log: true`
    {type: float, low: 1.0e-4, high: 1.0e-1, log: true}       numbers; `step` or `log: true`
    {type: categorical, choices: [relu, gelu]}                text, numbers, true, false or null

and may have `when: {model.depth: ">2"}` (searched only where another searched key has such a value) and
`per_layer: true` (one value for every hidden layer, given to the config as a list).
"""

from __future__ import annotations

import hashlib
import json
import math
import operator
import re
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass
from graphlib import CycleError, TopologicalSorter
from typing import Any

from optuna import Trial

from mlp_lab.errors import UserError
from mlp_lab.sweep.ranges import LARGEST_GRID, Parameter, as_flag, read_parameter, unknown_key

DEPTH = "model.depth"
OPERATORS: dict[str, Callable[[Any, Any], bool]] = {
    ">=": operator.ge,
    "<=": operator.le,
    "!=": operator.ne,
    "==": operator.eq,
    ">": operator.gt,
    "<": operator.lt,
}
_COMPARISON = re.compile(r"\s*(>=|<=|!=|==|>|<)\s*(\S.*?)\s*")


@dataclass(frozen=True, kw_only=True)
class Space:
    """Every searched key, in an order in which conditions are known before they are asked.

    Args:
        parameters: The searched keys, sorted.
        depth: Hidden layers of the base config, for what is searched per layer where the depth is not searched.
    """

    parameters: tuple[Parameter, ...]
    depth: int

    @classmethod
    def read(cls, content: Mapping[str, Any], *, depth: int = 1) -> Space:
        """Reads the `space` of a sweep's YAML.

        Raises:
            UserError: A range or a condition is none; one line that names the key.
        """
        parameters = {str(key): read_parameter(str(key), value) for key, value in content.items()}
        for parameter in parameters.values():
            for other, condition in parameter.when.items():
                _check_condition(parameter.key, other, condition, parameters)
        needs = {key: set(parameter.when) | _depth_of(parameter, parameters) for key, parameter in parameters.items()}
        try:
            order = list(TopologicalSorter(needs).static_order())
        except CycleError as error:
            raise UserError(
                f"space: the conditions go in a circle: {' -> '.join(error.args[1])}; leave one out"
            ) from error
        return cls(parameters=tuple(parameters[key] for key in order), depth=depth)

    @property
    def conditional(self) -> bool:
        """Whether some keys exist only in some trials."""
        return any(one.when or (one.per_layer and self._searched(DEPTH)) for one in self.parameters)

    def suggest(self, trial: Trial) -> dict[str, object]:
        """Asks a trial for a value of every key that applies; returns config key -> value."""
        return self.settings(lambda name, parameter: _ask(trial, name, parameter))

    def settings(self, value_of: Callable[[str, Parameter], Any]) -> dict[str, object]:
        """Builds config key -> value from a value per name: a key, or `key[layer]` from 1 for those per layer."""
        settings: dict[str, object] = {}
        for parameter in self.parameters:
            if not all(holds(test, settings.get(other, _ABSENT)) for other, test in parameter.when.items()):
                continue
            if not parameter.per_layer:
                settings[parameter.key] = value_of(parameter.key, parameter)
                continue
            names = [f"{parameter.key}[{layer + 1}]" for layer in range(self._depth(settings))]
            if names:
                settings[parameter.key] = [value_of(name, parameter) for name in names]
        return settings

    def from_params(self, params: Mapping[str, Any]) -> dict[str, object]:
        """Turns the parameters that a study has stored into config key -> value; what is missing is left out."""
        found: dict[str, object] = {}
        for name, value in params.items():
            key, bracket, _ = name.partition("[")
            if bracket:
                listed = found.setdefault(key, [])
                assert isinstance(listed, list)
                listed.append(value)
            else:
                found[key] = value
        return found

    def to_params(self, point: Mapping[str, Any], key: str = "enqueue") -> dict[str, Any]:
        """Turns config key -> value into the names and values that a study stores.

        Raises:
            UserError: A key is not searched, or a value lies outside its range.
        """
        known = {parameter.key: parameter for parameter in self.parameters}
        params: dict[str, Any] = {}
        for name, value in point.items():
            if name not in known:
                raise unknown_key(f"{key}.{name}", "the space does not search it", name, known)
            parameter = known[name]
            self._check_applies(f"{key}.{name}", parameter, value, point)
            values = value if parameter.per_layer and isinstance(value, list) else [value]
            for layer, one in enumerate(values, start=1):
                stored = f"{name}[{layer}]" if parameter.per_layer else name
                params[stored] = parameter.accept(f"{key}.{name}", one)
        return params

    def _check_applies(self, where: str, parameter: Parameter, value: object, point: Mapping[str, Any]) -> None:
        """Refuses a value that no trial would have, beside the other values of its point."""
        for other, condition in parameter.when.items():
            if other in point and not holds(condition, point[other]):
                raise UserError(
                    f"{where}: it is searched only when {other} is {condition}, and the point has "
                    f"{other}: {as_flag(point[other])}; leave it out"
                )
        depth = point.get(DEPTH, None if self._searched(DEPTH) else self.depth)
        if parameter.per_layer and isinstance(value, list) and isinstance(depth, int) and len(value) > depth:
            raise UserError(f"{where}: {value} has {len(value)} values for {DEPTH}: {depth}; use {depth} or fewer")

    def grid(self) -> dict[str, list[Any]]:
        """Returns every value of every key, for a grid.

        Raises:
            UserError: A key has conditions, or a range without steps.
        """
        if self.conditional:
            raise UserError(
                "study.sampler: a grid needs a space without `when` and without widths for a searched depth"
            )
        grid: dict[str, list[Any]] = {}
        for parameter in self.parameters:
            layers = self.depth if parameter.per_layer else 1
            for layer in range(1, layers + 1):
                grid[f"{parameter.key}[{layer}]" if parameter.per_layer else parameter.key] = parameter.values()
        points = math.prod(len(values) for values in grid.values())
        if points > LARGEST_GRID:
            raise UserError(
                f"study.sampler: a grid of this space has {points:,} points; use {LARGEST_GRID:,} at most, or another "
                "sampler"
            )
        return grid

    def examples(self) -> list[dict[str, object]]:
        """Returns points that hold every end of every range and every choice where its conditions hold, for checks."""
        most = max(len(parameter.ends()) for parameter in self.parameters)
        points = [self._example({}, index) for index in range(most)]
        for parameter in self.parameters:
            for end in parameter.ends():
                if not any(_shows(point.get(parameter.key, _ABSENT), end) for point in points):
                    points.append(self._example({**self._where(parameter), parameter.key: end}, 0))
        return points

    def _example(self, wanted: Mapping[str, Any], index: int) -> dict[str, object]:
        """Returns a point with some wanted values, and of other keys the end of a number."""

        def value(_: str, parameter: Parameter) -> Any:
            ends = parameter.ends()
            return wanted.get(parameter.key, ends[index % len(ends)])

        return self.settings(value)

    def _where(self, parameter: Parameter) -> dict[str, Any]:
        """Returns values of other keys with which a parameter is searched, as far as there are such."""
        conditions = dict.fromkeys(_depth_of(parameter, {one.key: one for one in self.parameters}), ">0")
        found: dict[str, Any] = {}
        for other, condition in {**conditions, **parameter.when}.items():
            needed = next(one for one in self.parameters if one.key == other)
            met = [value for value in _candidates(needed, condition) if holds(condition, value)]
            found |= {**self._where(needed), other: met[0]} if met else {}
        return found

    def canonical(self) -> dict[str, Any]:
        """Returns the space in plain types, equal for equal spaces however they are written."""
        return {one.key: json.loads(json.dumps(asdict(one))) for one in sorted(self.parameters, key=lambda p: p.key)}

    def fingerprint(self) -> str:
        """Returns 16 hexadecimal digits that two different spaces do not share."""
        return hashlib.sha256(json.dumps(self.canonical(), sort_keys=True).encode()).hexdigest()[:16]

    def _searched(self, key: str) -> bool:
        return any(parameter.key == key for parameter in self.parameters)

    def _depth(self, settings: Mapping[str, object]) -> int:
        depth = settings.get(DEPTH, self.depth)
        return depth if isinstance(depth, int) else self.depth


_ABSENT = object()


def _ask(trial: Trial, name: str, parameter: Parameter) -> Any:
    if parameter.kind == "categorical":
        return trial.suggest_categorical(name, parameter.choices)
    low, high, log = parameter.low, parameter.high, parameter.log
    if parameter.kind == "int":
        return trial.suggest_int(name, int(low), int(high), step=int(parameter.step or 1), log=log)
    return trial.suggest_float(name, low, high, step=parameter.step, log=log)


def holds(condition: object, value: object) -> bool:
    """Says whether a value meets a condition: a comparison, a list of values, or one value.

    >>> holds(">2", 3), holds(">2", 2), holds([1, 2], 2), holds("relu", "relu"), holds("!=relu", "tanh")
    (True, False, True, True, True)
    """
    if value is _ABSENT:
        return False
    if isinstance(condition, list | tuple):
        return value in condition
    match = _COMPARISON.fullmatch(condition) if isinstance(condition, str) else None
    if match is None:
        return value == condition
    sign, text = match.groups()
    with suppress(ValueError):
        if isinstance(value, int | float) and not isinstance(value, bool):
            return OPERATORS[sign](value, float(text))
    return OPERATORS[sign](as_flag(value).lower(), text.lower())


def _candidates(parameter: Parameter, condition: object) -> list[Any]:
    """Returns values of a parameter of which one meets a condition that can be met."""
    named = list(condition) if isinstance(condition, list | tuple) else [condition]
    match = _COMPARISON.fullmatch(condition) if isinstance(condition, str) else None
    if match and parameter.kind != "categorical":
        number = float(match[2])
        named = [int(number) if parameter.kind == "int" else number]
    return [*parameter.ends(), *(value for value in named if parameter.contains(value))]


def _shows(value: object, end: object) -> bool:
    """Says whether a point's value of a key is an end of its range, in whatever layer."""
    return end in value if isinstance(value, list) else type(value) is type(end) and value == end


def _check_condition(key: str, other: str, condition: object, parameters: Mapping[str, Parameter]) -> None:
    where = f"space.{key}.when"
    if other not in parameters or other == key:
        raise unknown_key(f"{where}.{other}", "a condition names another searched key", other, set(parameters) - {key})
    if parameters[other].per_layer:
        raise UserError(f"{where}.{other}: it has one value per layer; a condition needs a key with one value")
    match = _COMPARISON.fullmatch(condition) if isinstance(condition, str) else None
    numeric = parameters[other].kind != "categorical"
    if match and (numeric or match[1] not in ("==", "!=")):
        try:
            float(match[2])
        except ValueError as error:
            raise UserError(f"{where}.{other}: {condition!r} compares with no number; write such as '>2'") from error
    named = condition if isinstance(condition, list) else [condition]
    possible = any(holds(condition, value) for value in _candidates(parameters[other], condition))
    if not possible or not (match or all(parameters[other].contains(value) for value in named)):
        raise UserError(f"{where}.{other}: {condition!r} never holds; accepted: {parameters[other].words()}, or '>2'")


def _depth_of(parameter: Parameter, parameters: Mapping[str, Parameter]) -> set[str]:
    return {DEPTH} if parameter.per_layer and DEPTH in parameters and parameter.key != DEPTH else set()
