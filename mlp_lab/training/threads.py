"""How many threads a training computes with on the CPU: a fixed rule on the sizes of network and batch.

PyTorch takes every core. The threads of one product wait for each other in a loop that keeps their cores busy, so that
a small network gains little where the cores are free and loses much where other programs want them. Networks
256-H-H-10 under Adam on two cores that other programs used too, the fastest step within half a second, in ms:

    H, rows of a batch       64, 32   128, 128   128, 512   256, 128   512, 128   1024, 128
    multiplications             1 M        6 M       26 M       17 M       51 M       169 M
    one thread                 0.36       0.72        1.9        1.4          6          59
    two, lightly loaded        0.60       0.68        1.4        2.1         68           -
    two, heavily loaded         507        714        286        757         32         510

A second thread pays once its share of a step is longer than the time slice of the system's scheduler, some 3 ms. That
is about `WORK_PER_THREAD` multiplications in the forward pass. Nothing is measured as a run starts: another count
changes the order of sums, and with it the bits of a result.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import lightning as L
import torch

from mlp_lab.model.mlp import MLP

VARIABLE = "OMP_NUM_THREADS"  # read as torch is imported, also by the processes that Lightning launches
WORK_PER_THREAD = 64_000_000


def multiplications(networks: Iterable[MLP], rows: int) -> int:
    """Returns the multiplications of a forward pass of some networks over a batch of so many rows."""
    return rows * sum(linear.weight.numel() for mlp in networks for linear in mlp.linears)


def threads_for(work: int, limit: int) -> int:
    """Returns the number of threads for so many multiplications in a forward pass, at most `limit`.

    >>> threads_for(128 * (784 * 128 + 128 * 10), limit=8), threads_for(512 * 1024 * 1024, limit=4)
    (1, 4)
    """
    return max(1, min(limit, work // WORK_PER_THREAD))


def one_process_threads(trainer: L.Trainer, networks: Iterable[MLP], rows: int) -> int | None:
    """Returns the number of threads for a training in one process, together with others of this machine or alone.

    Args:
        trainer: Its trainer; None is returned where that trains on an accelerator, which leaves the number to torch.
        networks: What it trains.
        rows: Rows of a batch.
    """
    if trainer.strategy.root_device.type != "cpu":
        return None
    return threads_for(multiplications(networks, rows), torch.get_num_threads())


@contextmanager
def computing_with(threads: int | None) -> Iterator[None]:
    """Lets torch compute with so many threads inside, here and in processes that are launched; None changes nothing."""
    if threads is None:
        yield
        return
    before, variable = torch.get_num_threads(), os.environ.get(VARIABLE)
    torch.set_num_threads(threads)
    os.environ[VARIABLE] = str(threads)  # Lightning would set another number in each process of several
    try:
        yield
    finally:
        torch.set_num_threads(before)
        os.environ.pop(VARIABLE)
        if variable is not None:
            os.environ[VARIABLE] = variable
