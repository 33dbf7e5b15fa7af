"""From jsonargparse's messages, often a tree of attempts over many lines, to one line that a user can act on."""

from __future__ import annotations

import inspect
import re
from collections.abc import Iterable
from importlib import import_module

from mlp_lab.errors import nearest

_UNKNOWN_KEY = (
    re.compile(r"[Uu]nrecognized arguments: (?P<words>.+)"),
    re.compile(r"Key ['\"](?P<key>[\w.]+)['\"] is not expected"),
    re.compile(r"[Nn]o action for key ['\"](?P<key>[\w.]+)['\"]"),
    re.compile(r"[Dd]oes not accept nested key ['\"](?P<key>[\w.]+)['\"]"),
)
_PARSER_KEY = re.compile(r"Parser key ['\"](?P<key>[\w.]+)['\"]: ?")
_OPTION = re.compile(
    r"Problem with given class_path '(?P<path>[\w.]+)': "
    r"(?:Option '(?P<name>\w+)' is not accepted|unrecognized arguments: --(?P<nested>[\w.]+))"
)
_VALUE = re.compile(r"Expected an? (?P<kind>.+?)\. Got value: (?P<value>.*?)(?= - (?:Expected|Problem|Not)|$)")
_UNION = re.compile(r"Union subtypes Subtypes: \[(?P<kinds>.+?)\] Errors: .*?Given value: (?P<value>.*)$")
_CLASS = re.compile(r"Expected a dot import path string: (?P<value>\S+)")
_WORDS = {
    "int": "an integer",
    "float": "a number",
    "bool": "true or false",
    "str": "text",
    "NoneType": "null",
    "list": "a list",
    "list[int]": "a list of integers",
    "list[float]": "a list of numbers",
    "list[str]": "a list of names",
    "dict": "a mapping",
}


def explain(message: str, keys: Iterable[str]) -> str:
    r"""Puts a parser's message into one line that names the key, the value and what would be accepted.

    Args:
        message: What jsonargparse says.
        keys: Every key of the parser, to suggest the nearest from.

    >>> explain('Parser key "model.depth": Expected a <class \\'int\\'>. Got value: abc', ["model.depth"])
    "model.depth: 'abc' is not accepted; use an integer"
    """
    flat = " ".join(message.split())
    parsed = list(_PARSER_KEY.finditer(flat))
    key = _joined([match["key"] for match in parsed])
    detail = flat[parsed[-1].end() :] if parsed else flat
    if match := _OPTION.search(detail):
        accepted = [f"{key}.{name}" for name in _parameters(match["path"])]
        return _unknown(f"{key}.{match['name'] or match['nested']}", accepted)
    for pattern in _UNKNOWN_KEY:
        if match := pattern.search(flat):
            found = match.groupdict()
            return _unknown(found.get("key") or found["words"].split()[0], list(keys))
    if match := _CLASS.search(detail):
        return f"{key}: {match['value']!r} is not a class that can be used here; use a class path, as in the configs"
    if (match := _VALUE.match(detail)) or (match := _UNION.search(detail)):
        kinds = match["kind"] if "kind" in match.groupdict() else match["kinds"]
        return f"{key}: {match['value']!r} is not accepted; use {_accepted(kinds)}"
    return f"{key}: {detail}" if key else flat


def _unknown(word: str, keys: list[str]) -> str:
    if not word.startswith("--") and "." not in word:
        return f"{word}: unexpected word; keys begin with --"
    key = word.lstrip("-").split("=")[0]
    same_ending = [known for known in keys if known.rsplit(".", 1)[-1] == key.rsplit(".", 1)[-1]]
    guess = same_ending[0] if same_ending else nearest(key, keys)
    return f"{key}: no such key; " + (f"did you mean {guess}?" if guess else "`fit --help` lists the keys")


def _joined(parts: list[str]) -> str:
    """Joins nested keys; jsonargparse names some from the root and some from their parent.

    >>> _joined(["data", "batch_size"]), _joined(["model.optimizer", "model.optimizer.lr"])
    ('data.batch_size', 'model.optimizer.lr')
    """
    key = ""
    for part in parts:
        key = part if not key or f"{part}.".startswith(f"{key}.") else f"{key}.{part}"
    return key


def _parameters(class_path: str) -> list[str]:
    module, _, name = class_path.rpartition(".")
    return [name for name in inspect.signature(getattr(import_module(module), name)).parameters if name != "self"]


def _accepted(kinds: str) -> str:
    """Says in words what a list of types accepts.

    >>> _accepted("<class 'int'>, list[int]")
    'an integer or a list of integers'
    >>> _accepted("typing.Literal['a', 'b'], <class 'NoneType'>")
    "'a', 'b' or null"
    """
    words: list[str] = []
    for literal, name in re.findall(r"Literal\[(.*?)\]|<class '([\w.]+)'>|(?:^|, )(?:list|dict)\[\w+\]", kinds):
        words.append(literal or _WORDS.get(name, name.rsplit(".", 1)[-1]))
    plain = [_WORDS[kind] for kind in re.findall(r"(?:list|dict)\[\w+\]", kinds) if kind in _WORDS]
    words = [word for word in words if word] + plain
    return " or ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words) or kinds
