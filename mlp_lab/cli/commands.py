"""Runs one command of the table."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Sequence

from mlp_lab.cli.bench import BenchCLI
from mlp_lab.cli.runs import expand

# Lightning 2.6 calls what jsonargparse 4.53 and torch 2.15 have deprecated; none of it is the user's to mend.
FOREIGN_WARNINGS = (
    r".*does not have many workers.*",
    r".*Starting from v1\.9\.0, `tensorboardX`.*",
    r".*LeafSpec.*is deprecated.*",
    r".*is smaller than the logging interval.*",
    r".*callbacks used to create the checkpoint need to be provided.*",
    r".*jsonargparse.*deprecat.*",
    r".*use `self\.log\(.*sync_dist=True.*",  # the values are those of all processes already
)


def run(command: str, arguments: Sequence[str]) -> None:
    """Runs `fit`, `validate`, `test`, `predict` or `summary` with its arguments.

    Raises:
        UserError: A mistake in the input.
    """
    quieten()
    invocation = expand(command, arguments)
    if command == "summary":
        from mlp_lab.cli.summary import show_summary

        show_summary(BenchCLI(invocation, run=False))
    else:
        BenchCLI(invocation)


def quieten() -> None:
    """Keeps Lightning's own chatter out of the output; the bench says what matters itself."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    os.environ.setdefault("POSSIBLE_USER_WARNINGS", "off")
    for message in FOREIGN_WARNINGS:
        warnings.filterwarnings("ignore", message=message)
