"""Paths as a user writes them in a config or a flag."""

from __future__ import annotations

import os
import re
from pathlib import Path

from mlp_lab.errors import UserError

_VARIABLE = re.compile(r"\$(\w+|\{[^}]*\})")  # what os.path.expandvars takes for a variable


def expand_path(key: str, text: str | os.PathLike[str]) -> Path:
    """Returns a path with `~` and `$VAR` replaced as a shell replaces them; relative paths stay relative.

    A path that exists as it is written is taken literally, so that a file name may hold a `$`.

    Args:
        key: The config key or flag that holds the path, for messages.
        text: The path as written.

    Raises:
        UserError: A variable is not set, or the home directory is unknown.

    >>> os.environ["MLP_LAB_EXAMPLE"] = "/data"
    >>> expand_path("data.path", "$MLP_LAB_EXAMPLE/houses.csv").as_posix()
    '/data/houses.csv'
    """
    written = os.fspath(text)
    if os.path.lexists(written):
        return Path(written)
    expanded = os.path.expandvars(written)
    if unset := _VARIABLE.search(expanded):
        name = unset[1].strip("{}")
        raise UserError(f"{key}: {written!r} names the environment variable {name}, which is not set")
    try:
        return Path(expanded).expanduser()
    except RuntimeError as error:
        raise UserError(f"{key}: {written!r} begins with a home directory that is unknown; write it in full") from error


def from_here(path: Path) -> str:
    """Returns a path as it is shown: below the working directory without it, else whole.

    >>> from_here(Path.cwd() / "runs" / "digits")
    'runs/digits'
    """
    return str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path)
