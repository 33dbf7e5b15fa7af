"""How this program was started, for the commands that it prints: they work when pasted into the same shell."""

from __future__ import annotations

import os
import shlex
import shutil
import sys
from pathlib import Path

PROGRAM = "python -m mlp_lab"  # where it was not started from a shell: in a notebook, in a test


def program() -> str:
    """Returns the words before a command's name: `python -m mlp_lab`, `uv run python -m mlp_lab` or `mlp_lab`.

    An interpreter or a script that is not the first on PATH is named by its path.
    """
    started, uv = Path(sys.argv[0]), "UV_RUN_RECURSION_DEPTH" in os.environ  # which `uv run` sets
    if started.stem == "mlp_lab":  # the console script
        return "uv run mlp_lab" if uv else _typed(str(started))
    if started.name != "__main__.py" or started.parent.name != "mlp_lab":
        return PROGRAM
    return f"uv run {PROGRAM}" if uv else f"{_typed(sys.orig_argv[0])} -m mlp_lab"


def _typed(path: str) -> str:
    """Returns a program's name where the shell finds it by that, else its path."""
    name = os.path.basename(path)
    found = shutil.which(name)
    return name if path == name or (found and os.path.abspath(found) == os.path.abspath(path)) else shlex.quote(path)
