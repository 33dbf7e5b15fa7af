"""Flags as text: what a shell and then the parser's YAML read back as the same value."""

from __future__ import annotations

import re
import shlex
from collections.abc import Sequence

import yaml


def flag(key: str, value: object) -> str:
    """Returns a flag to paste behind a command, quoted for a POSIX shell.

    Keys of text take a word as it is, so 2020 needs no quotes; in a list, YAML would read it as a number. Text that
    YAML reads as null, as a mapping or as a list is written as a list of one, which the keys for columns accept.

    Args:
        key: The config key, without dashes.
        value: None, a boolean, a finite number, text, or a list of these.

    >>> flag("model.residual", True), flag("model.width", [64, 32]), flag("model.optimizer.lr", 0.003)
    ('--model.residual true', "--model.width '[64, 32]'", '--model.optimizer.lr 0.003')
    >>> print(flag("data.drop", ["tags", "2020", "a, b"]))
    --data.drop '[tags, "2020", "a, b"]'
    """
    text = _scalar(value) if isinstance(value, str) else flow_yaml(value)
    word = shlex.quote(text)
    return f"--{key}={word}" if word.startswith("-") else f"--{key} {word}"


def _scalar(text: str) -> str:
    """Returns text as a key of text takes it."""
    try:
        read = yaml.safe_load(text)
    except yaml.YAMLError:  # the parser keeps what is no YAML as it is
        return text
    return flow_yaml([text]) if read is None or isinstance(read, dict | list) else text


def flow_yaml(value: object) -> str:
    """Returns a value in YAML's flow style; text without quotes only where no reader could take it for anything else.

    >>> flow_yaml(["no", "Unnamed: 3", "x1", None, False])
    '["no", "Unnamed: 3", x1, null, false]'
    """
    if isinstance(value, Sequence) and not isinstance(value, str):
        return f"[{', '.join(map(flow_yaml, value))}]"
    if isinstance(value, str):
        if re.fullmatch(r"[A-Za-z_]\w*", value, re.ASCII) and yaml.safe_load(value) == value:
            return value
        return yaml.safe_dump(value, default_style='"', allow_unicode=True, width=float("inf")).rstrip("\n")
    if isinstance(value, float):
        return repr(value)
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)
