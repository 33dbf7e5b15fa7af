"""Runs one command of the table."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Sequence

from mlp_lab.cli.bench import BenchCLI
from mlp_lab.cli.parser import field_docstrings
from mlp_lab.cli.runs import expand
from mlp_lab.training.signals import TerminationSignals

# What libraries warn of that is not the user's to mend.
FOREIGN_WARNINGS = (
    r"The `srun` command is available on your system",  # a run that is no Slurm job is meant so
    r".*LeafSpec.*is deprecated.*",  # Lightning 2.6 on torch 2.15
    r".*is smaller than the logging interval.*",  # an epoch's last step is always logged
    r".*callbacks used to create the checkpoint need to be provided.*",  # `test` needs no early stopping
    r"You're using the WeightAveraging callback, but loading",  # the averaged weights are those to measure
    r"The dirpath has changed from",  # of a ModelCheckpoint, which saves nothing outside of training
    r"Checkpoint directory .* exists and is not empty",  # a resumed run's ModelCheckpoint goes on in its folder
    r".*use `self\.log\(.*sync_dist=True.*",  # the values are those of all processes already
    r".*A network error occurred while downloading.*",  # scikit-learn tries again; the error that follows says it all
)


def run(command: str, arguments: Sequence[str], signals: TerminationSignals) -> None:
    """Runs `fit`, `validate`, `test`, `predict` or `summary` with its arguments.

    Raises:
        UserError: A mistake in the input.
        Terminated: A signal has ended it.
    """
    quieten()
    invocation = expand(command, arguments)
    if command == "summary":
        from mlp_lab.cli.summary import show_summary

        with field_docstrings(arguments):
            cli = BenchCLI(invocation, run=False)
        show_summary(cli)
    else:
        with field_docstrings(arguments):
            BenchCLI(invocation, signals)


def quieten() -> None:
    """Keeps Lightning's own chatter out of the output; the bench says what matters itself."""
    for name in ("lightning.pytorch", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.WARNING)
    logging.getLogger("lightning.pytorch.profilers").setLevel(logging.INFO)  # the report that a profiler was asked for
    for message in FOREIGN_WARNINGS:
        warnings.filterwarnings("ignore", message=message)
