"""Which number of threads a command computes with: the one that it names, the one of the run, or that of the rule."""

from __future__ import annotations

import os
from collections.abc import Sequence
from itertools import pairwise
from typing import Literal

import lightning as L
import torch

from mlp_lab.cli.configs import find_config
from mlp_lab.cli.runs import Invocation
from mlp_lab.training.threads import VARIABLE, threads_for
from mlp_lab.training.tracking import RunDirectory

WORK_KEY = "multiplications"  # of provenance.json: those of a forward pass over a batch


def repeated_run(arguments: Sequence[str]) -> RunDirectory | None:
    """Returns the run in whose directory a config file of a command lies, None where there is none."""
    names = [value for flag, value in pairwise(arguments) if flag == "--config" and value != "-"]
    runs = [RunDirectory(find_config(name).resolve().parent) for name in names]
    return next((run for run in runs if run.provenance.is_file() and run.config.is_file()), None)


def threads_to_build(invocation: Invocation) -> int | None:
    """Returns how many threads data and model are built with: one.

    None, which leaves it to torch, is for runs of an older version, whose number was torch's own.
    """
    run = _former_run(invocation)
    return None if run is not None and _recorded(run) is None else 1


def threads_to_run(setting: int | Literal["auto"], work: int, trainer: L.Trainer, invocation: Invocation) -> int | None:
    """Returns how many threads each process of a command computes with; None leaves it to torch.

    A run that is resumed or measured keeps its number, and so does one that is repeated by its `config.yaml`, unless
    other flags make its network or its batches larger or smaller. On an accelerator torch's own number does no harm.

    Args:
        setting: The key `run.threads`, which wins.
        work: Multiplications of a forward pass over a batch.
        trainer: The trainer of the command.
        invocation: The command.
    """
    if setting != "auto":
        return setting
    run = _former_run(invocation)
    if run is not None:
        recorded = _recorded(run)
        if recorded is None or invocation.run is not None or run.read_provenance().get(WORK_KEY) == work:
            return recorded
    if trainer.strategy.root_device.type != "cpu":
        return None
    limit = torch.get_num_threads()
    if VARIABLE not in os.environ:  # the cores of this machine, which all its processes share
        limit = max(1, limit // trainer.num_devices)
    return threads_for(work // trainer.world_size, limit)


def _former_run(invocation: Invocation) -> RunDirectory | None:
    return invocation.run or repeated_run(invocation.arguments)


def _recorded(run: RunDirectory) -> int | None:
    """Returns the number of the run's last start, None where an older version has recorded none."""
    values = run.read_provenance()
    starts = [values, *values.get("resumed", [])]
    return next((int(start["threads"]) for start in reversed(starts) if "threads" in start), None)
