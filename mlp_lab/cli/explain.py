"""From jsonargparse's exceptions, a chain of attempts each inside another, to one line that a user can act on."""

from __future__ import annotations

import inspect
import re
from ast import literal_eval
from collections.abc import Iterable, Sequence
from dataclasses import fields, is_dataclass
from importlib import import_module
from itertools import pairwise

from mlp_lab.errors import nearest
from mlp_lab.flags import flag, flow_yaml

_KEY = re.compile(r"Parser key ['\"]([\w.]+)['\"]")
_CLASS_PATH = re.compile(r"Problem with given class_path '([\w.]+)'")
_OPTION = re.compile(r"(?:Group '(?P<group>[\w.]+)' does not accept option|Option) '(?P<option>[\w.]+)'")
_NESTED = re.compile(r"unrecognized arguments: --(?P<option>[\w.-]+)")
_UNKNOWN = (
    re.compile(r"[Uu]nrecognized arguments: (\S+)"),
    re.compile(r"Subcommand '\w+' does not accept option '([\w.-]+)'"),
    re.compile(r"Key ['\"]([\w.]+)['\"] is not expected"),
    re.compile(r"[Nn]o action for key ['\"]([\w.]+)['\"]"),
    re.compile(r"[Dd]oes not accept nested key ['\"]([\w.]+)['\"]"),
)
_ARGUMENT = re.compile(r"^(?:argument )?(?:-\w/)?--([\w.+-]+):")
_LINKED = re.compile(r"argument [\w.]+ --> ([\w.]+):")
_NO_VALUE = re.compile(r"argument (?:-\w/)?--([\w.+-]+): expected one argument")
_NO_GROUP = re.compile(r"Unable to load config ['\"](.*?)['\"]")
_NO_CLASS = (
    re.compile(r"Expected a dot import path string: (\S+)"),
    re.compile(r"Not a valid subclass of \w+\. Got value: (.*)"),
    re.compile(r"(No module named .+|Module '.+' not found.*|.+ has no attribute .+)"),
)
_VALUE = re.compile(r"Expected an? (?P<kind>.+?)\. Got value: (?P<value>.*)", re.DOTALL)
_UNION = re.compile(r"Subtypes: \[(.+?)\]\n")
_GIVEN = re.compile(r"Given value: (.*)")
_KIND = re.compile(r"Literal\[(?P<literal>.*?)\]|<class '(?P<class>[\w.]+)'>|(?P<generic>(?:list|dict)\[\w+\])")
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
_OWN = "MNISTDataModule, TabularDataModule or the dotted path of your own"
_CLASSES = {"data": _OWN, "data.help": _OWN}  # what a key's class may be


def explain(messages: Sequence[str], keys: Iterable[str], words: Sequence[str] = ()) -> str:
    """Puts what the parser says into one line that names the key, the value and what would be accepted.

    Args:
        messages: The messages of the exceptions, outermost first.
        keys: Every key of the parser, to suggest the nearest from.
        words: The command line.

    >>> explain(["Parser key 'model.depth': Expected a <class 'int'>. Got value: abc"], ["model.depth"])
    "model.depth: 'abc' is not accepted; use an integer"
    """
    named = [match[1] for message in messages if (match := _KEY.match(message))]
    key = _joined([name for name in named if name != "config"]) or _last(_ARGUMENT, messages)
    known = list(keys)
    return (
        _option(key, messages)
        or _unknown(messages, known)
        or _no_value(messages, words)
        or _shape(key, messages, known)
        or _names(key, messages)
        or _value(key, messages)
        or ": ".join(part for part in (key, " ".join(_KEY.sub("", messages[-1]).split()).lstrip(": ")) if part)
    )


def _option(key: str, messages: Sequence[str]) -> str:
    """A key that the class in use does not have."""
    path = _last(_CLASS_PATH, messages)
    match = next((m for text in reversed(messages) if (m := _OPTION.search(text) or _NESTED.search(text))), None)
    if not path or not match:
        return ""
    group = match.groupdict().get("group")
    if group is None and match["option"] in _parameters(path):  # the class has it: its value is what does not fit
        return ""
    name = f"{key}.{group}.{match['option']}" if group else f"{key}.{match['option']}"
    accepted = [f"{key}.{parameter}" for parameter in _parameters(path)]
    guess = _closest(name, accepted)
    hint = f"did you mean {guess}?" if guess else f"accepted: {', '.join(accepted)}"
    return f"{name}: no such key of {path.rpartition('.')[2]}; {hint}"


def _unknown(messages: Sequence[str], keys: list[str]) -> str:
    """A key that the parser does not have, or a word that is none."""
    word = next((found for pattern in _UNKNOWN if (found := _last(pattern, messages))), "")
    if not word:
        return ""
    if not word.startswith("--") and "." not in word:
        return f"{word}: unexpected word; keys begin with --"
    key = word.lstrip("-").split("=")[0]
    guess = _closest(key, keys)
    return f"{key}: no such key; " + (f"did you mean {guess}?" if guess else "`fit --help` lists the keys")


def _no_value(messages: Sequence[str], words: Sequence[str]) -> str:
    """A flag without a value; of a key of a class, such as `data.target`, the parser names only the class's key."""
    if not (name := _last(_NO_VALUE, messages)):
        return ""
    flags = (word[2:] for word, after in pairwise([*words, "--"]) if after.startswith("--"))
    exact = next((word for word in flags if word == name or (word.startswith(f"{name}.") and "=" not in word)), name)
    return f"{exact}: no value is given"


def _shape(key: str, messages: Sequence[str], keys: list[str]) -> str:
    """One value in place of a group of keys, or something that is no class."""
    if name := _last(_LINKED, messages):
        return f"{name}: it is taken from the data; leave it out"
    if (value := _last(_NO_GROUP, messages)) and key:
        inside = [other for other in keys if other.startswith(f"{key}.")]
        inner = f"{key}.name" if f"{key}.name" in inside or not inside else inside[0]
        return f"{key}: {value!r} is not accepted; it is a group of keys, such as {inner}"
    if value := next((found for pattern in _NO_CLASS if (found := _last(pattern, messages))), ""):
        shown = _last(_CLASS_PATH, messages) or value.splitlines()[0]
        accepted = _CLASSES.get(key, "a class path, as in the configs")
        return f"{key}: {shown!r} is not a class that can be used here; use {accepted}"
    return ""


def _names(key: str, messages: Sequence[str]) -> str:
    """A name among several that YAML reads as something else; quoted, it is a name, and the others stay."""
    text = next((text for text in reversed(messages) if "Subtypes: [list[str], " in text), "")
    given = _GIVEN.search(text)
    if not given or "Subtypes: [list[str], " not in text.split("Errors:")[0]:
        return ""
    try:
        value = literal_eval(given[1])
    except (ValueError, SyntaxError):
        return ""
    items = value if isinstance(value, list) else [value]
    kinds = {bool: "a boolean", int: "a number", float: "a number", dict: "a mapping", list: "a list"}
    odd = next((item for item in items if not isinstance(item, str)), None)
    what = kinds.get(type(odd), "no name")
    words = "YAML reads no, yes, on and off as booleans" if isinstance(odd, bool) else f"YAML reads {odd} as {what}"
    names = [_written(item) for item in items]
    return f"{key}: {words}; write {flow_yaml(names)} in a file, or {flag(key, names)}"


def _written(item: object) -> str:
    """Returns a name as it was most likely written, from what YAML made of it.

    >>> _written(False), _written({"Unnamed": 3}), _written(2020)
    ('no', 'Unnamed: 3', '2020')
    """
    if isinstance(item, bool):
        return "yes" if item else "no"
    if isinstance(item, dict) and len(item) == 1:
        return ": ".join(str(part) for pair in item.items() for part in pair)
    return str(item)


def _value(key: str, messages: Sequence[str]) -> str:
    """A value of another type than the key's."""
    match = next((match for text in reversed(messages) if (match := _VALUE.search(text))), None)
    if not match:
        return ""
    innermost = max((index for index, text in enumerate(messages) if _KEY.match(text)), default=0)
    kinds = _last(_UNION, messages[innermost:]) or match["kind"]
    value = (match["value"].splitlines() or [""])[0]
    if not value.strip():
        return f"{key}: its value is empty; give {_accepted(kinds)}, or leave the key out"
    if value in ("True", "False") and "str" in kinds:
        return f"{key}: YAML reads no, yes, on and off as {value.lower()}; quote a name, as in 'no'"
    if value.startswith("{") and "class 'str'" in kinds and not value.startswith("{}"):
        return f"{key}: YAML reads {_cut(value)} as a mapping; write the text in a config file, in quotes"
    value = _cut(value)
    literal = value if value[:1] in "[{(" or re.fullmatch(r"-?[\d.]+", value) else repr(value)
    example = f", such as {flag(key, [value])}" if "list[str]" in kinds and "<class 'str'>" not in kinds else ""
    return f"{key}: {literal} is not accepted; use {_accepted(kinds)}{example}"


def _cut(text: str, length: int = 200) -> str:
    return text if len(text) <= length else f"{text[:length]}…"


def _closest(key: str, keys: Sequence[str]) -> str | None:
    """Returns the key that another one most likely meant: with the same name elsewhere, or a similar name beside it.

    >>> _closest("lr", ["model.optimizer.lr"]), _closest("model.dept", ["model.depth", "model.norm"])
    ('model.optimizer.lr', 'model.depth')
    """
    group, _, name = key.rpartition(".")
    namesakes = [known for known in keys if known.rpartition(".")[2] == name]
    beside = {known.rpartition(".")[2]: known for known in keys if known.rpartition(".")[0] == group}
    if namesakes:
        return nearest(key, namesakes) or namesakes[0]
    if group and beside:
        guess = nearest(name, beside)
        return beside[guess] if guess else None
    return nearest(key, [known for known in keys if known.count(".") == key.count(".")])


def _last(pattern: re.Pattern[str], messages: Sequence[str]) -> str:
    """Returns the first group of the innermost match, or nothing."""
    return next((match[1] for text in reversed(messages) if (match := pattern.search(text))), "")


def _joined(parts: Sequence[str]) -> str:
    """Joins nested keys; jsonargparse repeats some, and names some from the root and some from their parent.

    >>> _joined(["data", "drop", "drop"]), _joined(["model.optimizer", "model.optimizer.lr"])
    ('data.drop', 'model.optimizer.lr')
    """
    key, last = "", ""
    for part in parts:
        if part != last:
            key = part if not key or f"{part}.".startswith(f"{key}.") else f"{key}.{part}"
        last = part
    return key


def _parameters(class_path: str) -> list[str]:
    """Returns the names of a class's arguments, and for those that are groups, the names inside."""
    module, _, name = class_path.rpartition(".")
    names = []
    for parameter in inspect.signature(getattr(import_module(module), name)).parameters.values():
        group = parameter.default
        if is_dataclass(group):
            names += [f"{parameter.name}.{field.name}" for field in fields(group)]
        else:
            names.append(parameter.name)
    return names


def _accepted(kinds: str) -> str:
    """Says in words what a list of types accepts.

    >>> _accepted("<class 'int'>, list[int]")
    'an integer or a list of integers'
    >>> _accepted("typing.Literal['a', 'b'], <class 'NoneType'>")
    'a, b or null'
    """
    words: list[str] = []
    for match in _KIND.finditer(kinds):
        if match["literal"]:
            words += [word.strip(" '\"") for word in match["literal"].split(",")]
        else:
            name = match["class"] or match["generic"]
            words.append(_WORDS.get(name, name.rpartition(".")[2]))
    words = list(dict.fromkeys(words))
    return " or ".join([", ".join(words[:-1]), words[-1]] if len(words) > 1 else words) or kinds
