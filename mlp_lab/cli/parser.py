"""The argument parser: exact keys only, and every mistake told in one line with the nearest key."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NoReturn, Union

from jsonargparse import _loaders_dumpers, set_parsing_settings
from lightning.pytorch.cli import LightningArgumentParser

from mlp_lab.cli.explain import explain
from mlp_lab.cli.yaml_text import TimesAsText
from mlp_lab.errors import UserError, causes


class _ValueLoader(TimesAsText, _loaders_dumpers.get_yaml_default_loader()):  # type: ignore[misc]
    """How the parser reads values."""


_loaders_dumpers.yaml_default_loader = _ValueLoader  # type: ignore[assignment]  # `set_loader` would lose its rules for text


class BenchParser(LightningArgumentParser):
    """LightningCLI's parser without abbreviations; `error` raises a `UserError` of one line."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, allow_abbrev=False, **kwargs)
        self._words: Sequence[str] = ()  # the command line that is parsed

    def parse_args(self, args: Sequence[str] | None = None, *others: Any, **settings: Any) -> Any:  # type: ignore[override]
        """Keeps the command line, so that a message can name a word of it."""
        self._words = list(sys.argv[1:] if args is None else args)
        return super().parse_args(args, *others, **settings)

    def _add_signature_parameter(self, *args: Any, **kwargs: Any) -> None:
        """Adds a key whose text is never the name of a file to read a value from, as Lightning asks jsonargparse for.

        Otherwise a file `auto` in the working directory would replace `trainer.accelerator: auto`, and it could
        name a class to import.
        """
        super()._add_signature_parameter(*args, **{**kwargs, "sub_configs": False})

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Raises the message as one line; where jsonargparse only tries a value, it gets its own exception."""
        if not self.exit_on_error:
            super().error(message, ex)
        parser = getattr(ex, "subcommand_parser", None) or self
        raise UserError(explain([message, *map(str, causes(ex))], known_keys(parser), self._words)) from ex


@contextmanager
def field_docstrings(arguments: Sequence[str]) -> Iterator[None]:
    """Lets the help of the parsers that are built say what stands under the fields of config dataclasses.

    The setting belongs to jsonargparse's process and is undone. To read the sources takes 0.1 s, so it is on for help
    alone.
    """
    wanted = any(word == "-h" or word.startswith("--help") or ".help" in word.partition("=")[0] for word in arguments)
    if wanted:
        set_parsing_settings(docstring_parse_attribute_docstrings=True)
    try:
        yield
    finally:
        if wanted:
            set_parsing_settings(docstring_parse_attribute_docstrings=False)


def known_keys(parser: LightningArgumentParser) -> list[str]:
    """Returns every key of a parser, those of its subcommands too, without duplicates."""
    keys = {action.dest for action in parser._actions if action.dest not in ("help", "print_config")}
    for action in parser._actions:
        for subparser in getattr(action, "_name_parser_map", {}).values():
            keys |= set(known_keys(subparser))
    return sorted(keys)


def integers_first(parser: LightningArgumentParser) -> None:
    """Lets keys that take a whole number or a share try the whole number first: 1 is one batch, 1.0 is all.

    `typing` holds Union[int, float] and Union[float, int] for equal and may hand out either from its cache, so that
    the order would depend on what was imported before.
    """
    for action in parser._actions:
        kinds = getattr(getattr(action, "_typehint", None), "__args__", None) or ()
        if int in kinds and float in kinds and kinds.index(float) < kinds.index(int):
            action._typehint = Union[tuple(sorted(kinds, key=lambda kind: kind is float))]  # type: ignore[attr-defined] # noqa: UP007
