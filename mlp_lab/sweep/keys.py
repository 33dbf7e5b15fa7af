"""Reads the groups of a sweep's YAML: which keys there are, and of what type their values."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import MISSING, fields
from typing import Any

from mlp_lab.errors import UserError, nearest
from mlp_lab.training.settings import check_numbers


def known_keys(cls: type[Any], group: str, content: object) -> dict[str, Any]:
    """Returns a group of keys as arguments of `cls`, or refuses the first that it does not have."""
    if not isinstance(content, Mapping):
        raise UserError(f"{group or 'sweep'}: {content!r} is not a group of keys; write them below it, indented")
    known = {one.name: one for one in fields(cls)}
    prefix = f"{group}." if group else ""
    for name in content:
        if name not in known:
            guess = nearest(str(name), known)
            hint = f"did you mean {prefix}{guess}?" if guess else f"accepted: {', '.join(known)}"
            raise UserError(f"{prefix}{name}: no such key of a sweep; {hint}")
    return {name: typed(f"{prefix}{name}", known[name], value) for name, value in content.items()}


def typed(key: str, known: Any, value: Any) -> Any:
    """Checks numbers and text; the groups are read by their own functions."""
    kind = str(known.type)
    if value is None and ("None" in kind or not kind.startswith(("int", "float", "str"))):
        return None if "None" in kind else _default(known)
    if kind.startswith("int") and (not isinstance(value, int) or isinstance(value, bool)):
        raise UserError(f"{key}: {value!r} is not accepted; use an integer")
    check_numbers(key, value)
    if kind.startswith("float"):
        try:
            number = float("" if isinstance(value, bool) else value)  # YAML takes 1e-3 for text
        except (TypeError, ValueError, OverflowError) as error:
            raise UserError(f"{key}: {value!r} is not accepted; use a number") from error
        check_numbers(key, number)
        return number
    if kind.startswith("str") and not isinstance(value, str):
        raise UserError(f"{key}: {value!r} is not accepted; use text")
    return value


def _default(known: Any) -> Any:
    return known.default_factory() if known.default is MISSING else known.default


def names_of(key: str, content: object) -> tuple[str, ...]:
    """Reads one name or a list of names."""
    names = [content] if isinstance(content, str) else content
    if not isinstance(names, Sequence) or not all(isinstance(name, str) for name in names):
        raise UserError(f"{key}: {content!r} is not accepted; use a name or a list of names")
    if len(set(names)) < len(names) and key.endswith("metric"):
        raise UserError(f"{key}: {content!r} names one twice")
    return tuple(names)


def points_of(content: object) -> tuple[dict[str, Any], ...]:
    """Reads the list of points to try first."""
    if (
        not isinstance(content, Sequence)
        or isinstance(content, str)
        or not all(isinstance(p, Mapping) for p in content)
    ):
        raise UserError(f"enqueue: {content!r} is not accepted; use a list of points, such as [{{model.depth: 2}}]")
    return tuple({str(key): value for key, value in point.items()} for point in content)
