"""The argument parser: exact keys only, and every mistake told in one line with the nearest key."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

from lightning.pytorch.cli import LightningArgumentParser

from mlp_lab.cli.explain import explain
from mlp_lab.errors import UserError


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
