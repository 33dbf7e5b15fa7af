"""The argument parser: exact keys only, and every mistake told in one line with the nearest key."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from typing import Any, NoReturn

from jsonargparse import Namespace
from lightning.pytorch.cli import LightningArgumentParser

from mlp_lab.errors import UserError, nearest


class BenchParser(LightningArgumentParser):
    """LightningCLI's parser without abbreviations; `error` raises a `UserError` of one line."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, allow_abbrev=False, **kwargs)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raises the message as one line; where jsonargparse only tries a value, it gets its own exception."""
        if not self.exit_on_error:
            super().error(message, ex)
        parser = getattr(ex, "subcommand_parser", None) or self
        raise UserError(explain(message, known_keys(parser)))


def known_keys(parser: LightningArgumentParser) -> list[str]:
    """Returns every key of a parser, those of its subcommands too, without duplicates."""
    keys = {action.dest for action in parser._actions if action.dest not in ("help", "print_config")}
    for action in parser._actions:
        for subparser in getattr(action, "_name_parser_map", {}).values():
            keys |= set(known_keys(subparser))
    return sorted(keys)


def config_first(arguments: Sequence[str]) -> list[str]:
    """Moves `--config FILE` to the front (after the command), so that flags win over files wherever they stand.

    >>> config_first(["fit", "--model.depth", "4", "--config", "a.yaml"])
    ['fit', '--config', 'a.yaml', '--model.depth', '4']
    """
    configs: list[str] = []
    others: list[str] = []
    words = iter(arguments)
    for word in words:
        if word in ("--config", "-c"):
            configs += ["--config", *([value] if (value := next(words, None)) is not None else [])]
        elif word.startswith(("--config=", "-c=")):
            configs.append(word)
        else:
            others.append(word)
    command = others[:1] if others and not others[0].startswith("-") else []
    return [*command, *configs, *others[len(command) :]]


_UNKNOWN = (
    re.compile(r"[Uu]nrecognized arguments?: (?P<keys>--.+)"),
    re.compile(r"Key ['\"](?P<key>[\w.]+)['\"] is not expected"),
    re.compile(r"[Nn]o action for key ['\"](?P<key>[\w.]+)['\"]"),
    re.compile(r"[Dd]oes not accept nested key ['\"](?P<key>[\w.]+)['\"]"),
    re.compile(r"Group ['\"](?P<group>[\w.]+)['\"] does not accept nested key ['\"](?P<key>[\w.]+)['\"]"),
)


def explain(message: str, keys: Iterable[str]) -> str:
    """Puts a parser's message into one line.

    Args:
        message: What jsonargparse says, often a tree of attempts over several lines.
        keys: Every key of the parser, to suggest the nearest from.
    """
    flat = " ".join(message.split())
    for pattern in _UNKNOWN:
        match = pattern.search(flat)
        if match:
            key = match.groupdict().get("key") or match["keys"].split()[0].lstrip("-").split("=")[0]
            return _unknown_key(key, keys)
    return _shortened(flat)


def _unknown_key(key: str, keys: Iterable[str]) -> str:
    known = list(keys)
    guess = nearest(key, known) or nearest(key.rsplit(".", 1)[-1], [name.rsplit(".", 1)[-1] for name in known])
    if guess and guess not in known:
        guess = next(name for name in known if name.rsplit(".", 1)[-1] == guess)
    return f"{key}: no such key" + (f"; did you mean {guess}?" if guess else "; `fit --help` lists the keys")


def _shortened(flat: str) -> str:
    return flat


def get(config: Namespace, key: str) -> Any:
    """Returns a nested value, or None where a part of the key is missing."""
    return config.get(key)
