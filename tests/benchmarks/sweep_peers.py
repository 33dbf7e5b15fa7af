"""Peers of the sweep benchmark that train with PyTorch alone: loops written by hand, and the population.

All of them train members with the same first weights on the same batches, so that their losses can be compared. A peer
warms all members up and then takes the timed steps of all, so that no import, first call or allocation is in the time.
Lightning is not imported here: see `torch_peers`.
"""

from __future__ import annotations

import multiprocessing
import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from multiprocessing.synchronize import Barrier
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mlp_lab.model.mlp import MLP
from mlp_lab.population.optimizers import StackOptimizer
from mlp_lab.population.stack import Population
from mlp_lab.training.heap import keep_freed_memory
from mlp_lab.training.optimizers import OptimizerConfig
from tests.benchmarks.harness import THREAD_VARIABLES, forget_peak, load_mnist, peak_memory
from tests.benchmarks.recipe import BATCH_SIZE, INPUTS, OUTPUTS
from tests.benchmarks.sweep_lists import Member
from tests.benchmarks.sweep_timing import Job, Timing
from tests.benchmarks.torch_peers import tensors

NVML_CHECK = "PYTORCH_NVML_BASED_CUDA_CHECK"
PATIENCE = 600.0  # seconds that a process may take before the others give it up
LAYERS = {"relu": nn.ReLU, "tanh": nn.Tanh, "gelu": nn.GELU, "sigmoid": nn.Sigmoid}


def networks(members: Sequence[Member]) -> list[MLP]:
    """Returns the members' networks with the first weights that all peers share."""
    torch.manual_seed(0)
    return [MLP(INPUTS, OUTPUTS, depth=one.depth, width=one.width, activation=one.activation) for one in members]


def plain(mlp: MLP, member: Member) -> nn.Sequential:
    """Returns the same network of the same parameters as one would write it by hand."""
    hidden = [part for linear in mlp.linears[:-1] for part in (linear, LAYERS[member.activation]())]
    return nn.Sequential(*hidden, mlp.head)


def batches(rows: int, first: int, steps: int) -> Iterator[Tensor]:
    """Yields the rows (B,) of steps first .. first + steps - 1, the same for every member and peer."""
    order = torch.randperm(rows, generator=torch.Generator().manual_seed(0))
    per_epoch = rows // BATCH_SIZE
    starts = ((step % per_epoch) * BATCH_SIZE for step in range(first, first + steps))
    return (order[start : start + BATCH_SIZE] for start in starts)


class Alone:
    """A member in a loop written for speed: fused Adam, one `index_select` per tensor, the loss not read."""

    def __init__(self, mlp: MLP, member: Member, x: Tensor, y: Tensor) -> None:
        self.x, self.y = x, y
        self.model = plain(mlp, member)
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=member.lr, fused=True)

    def take(self, first: int, steps: int) -> Tensor:
        """Takes steps and returns the sum of their losses, ()."""
        total = torch.zeros(())
        for index in batches(len(self.x), first, steps):
            loss = F.cross_entropy(self.model(self.x.index_select(0, index)), self.y.index_select(0, index))
            self.optimizer.zero_grad()
            loss.backward()
            self.optimizer.step()
            total += loss.detach()
        return total


class Together:
    """All members as one population, in a loop of the same kind; `autocast` is entered around the forward pass."""

    def __init__(
        self, mlps: list[MLP], members: Sequence[Member], x: Tensor, y: Tensor, *, bucket: int | None, bf16: bool
    ) -> None:
        keep_freed_memory()  # as PopulationModule does
        self.x, self.y = x, y
        self.population = Population.stack(mlps, bucket=bucket)
        self.optimizer = StackOptimizer(
            self.population, [OptimizerConfig(name="adam", lr=member.lr) for member in members]
        )
        self.count = len(members)
        self.context: Callable[[], AbstractContextManager[Any]] = nullcontext
        if bf16:
            self.context = lambda: torch.autocast(x.device.type, dtype=torch.bfloat16)

    def take(self, first: int, steps: int) -> Tensor:
        """Takes steps and returns the sums of the members' losses, (K,)."""
        total = torch.zeros(self.count)
        for index in batches(len(self.x), first, steps):
            y = self.y.index_select(0, index)
            with self.context():
                logits = self.population(self.x.index_select(0, index))  # (K, B, C)
                target = y.expand(self.count, -1)  # (K, B)
                losses = F.cross_entropy(logits.mT, target, reduction="none").mean(1)  # (K,), as PopulationModule's
            self.optimizer.zero_grad()
            losses.sum().backward()
            self.optimizer.step()
            total += losses.detach()
        return total


def data() -> tuple[Tensor, Tensor]:
    """Returns all training rows, x (N, 784) and y (N,), after the setting without which Adam looks for a GPU."""
    os.environ[NVML_CHECK] = "0"
    x, y, _, _ = tensors(load_mnist())
    return x, y


def serial(job: Job) -> Timing:
    """One member after another, in a loop written by hand."""
    x, y = data()
    start_mb, begun = forget_peak(), time.perf_counter()
    members = [Alone(mlp, member, x, y) for mlp, member in zip(networks(job.members), job.members, strict=True)]
    setup = time.perf_counter() - begun
    for member in members:
        member.take(0, job.warm_up)
    begun = time.perf_counter()
    totals = [member.take(job.warm_up, job.steps) for member in members]
    seconds = time.perf_counter() - begun
    return Timing(seconds, setup, (torch.stack(totals) / job.steps).tolist(), start_mb)


def population(job: Job) -> Timing:
    """All members as one population, float32."""
    return _population(job, bf16=False)


def population_bf16(job: Job) -> Timing:
    """All members as one population, products in bfloat16, weights and optimizer in float32."""
    return _population(job, bf16=True)


def _population(job: Job, *, bf16: bool) -> Timing:
    x, y = data()
    start_mb = forget_peak()
    mlps = networks(job.members)
    begun = time.perf_counter()
    together = Together(mlps, job.members, x, y, bucket=job.bucket, bf16=bf16)
    setup = time.perf_counter() - begun
    together.take(0, job.warm_up)
    begun = time.perf_counter()
    totals = together.take(job.warm_up, job.steps)
    seconds = time.perf_counter() - begun
    return Timing(seconds, setup, (totals / job.steps).tolist(), start_mb)


def processes(job: Job) -> Timing:
    """As many single-threaded processes as there are threads; each takes the largest member that is left."""
    return _in_processes(job, _work_alone)


def population_processes(job: Job) -> Timing:
    """As many single-threaded processes as there are threads; each trains its share of the members as a population.

    What several workers on one study do. The members are dealt out by size, there and back.
    """
    return _in_processes(job, _work_together)


def _in_processes(job: Job, work: Callable[..., None]) -> Timing:
    """Times from a common start to the end of the last process. Memory is the sum of all processes'."""
    os.environ.update(dict.fromkeys(THREAD_VARIABLES, "1"))  # of the processes to come
    context = multiprocessing.get_context("spawn")
    barrier = context.Barrier(job.threads + 1)
    given, results = context.Value("i", 0), context.Queue()
    children = [
        context.Process(target=work, args=(job, number, barrier, given, results), daemon=True)
        for number in range(job.threads)
    ]
    for child in children:
        child.start()
    barrier.wait(PATIENCE)
    begun = time.perf_counter()
    reports = [results.get(timeout=PATIENCE) for _ in children]
    seconds = time.perf_counter() - begun
    for child in children:
        child.join()
    losses = {number: loss for report in reports for number, loss in report["losses"].items()}
    return Timing(
        seconds,
        sum(report["setup_s"] for report in reports) / len(reports),
        [losses[number] for number in range(len(job.members))],
        sum(report["start_mb"] for report in reports),
        sum(report["peak_mb"] for report in reports),
    )


def _begin(process: int) -> tuple[Tensor, Tensor]:
    """Binds this process to a core of its own and returns the rows."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, [sorted(os.sched_getaffinity(0))[process]])
    torch.set_num_threads(1)
    return data()


def _largest_first(job: Job) -> list[int]:
    return sorted(range(len(job.members)), key=lambda number: -job.members[number].step_flops)


def _work_alone(job: Job, process: int, barrier: Barrier, given: Any, results: Any) -> None:
    """Trains, in a process of its own, members from the list that all processes share."""
    x, y = _begin(process)
    start_mb, begun = forget_peak(), time.perf_counter()
    members = [Alone(mlp, member, x, y) for mlp, member in zip(networks(job.members), job.members, strict=True)]
    setup = time.perf_counter() - begun
    for member in members:  # any of them may come here
        member.take(0, job.warm_up)
    order, totals = _largest_first(job), {}
    barrier.wait(PATIENCE)
    while True:
        with given.get_lock():
            place, given.value = given.value, given.value + 1
        if place >= len(members):
            break
        totals[order[place]] = members[order[place]].take(job.warm_up, job.steps)
    losses = {number: total.item() / job.steps for number, total in totals.items()}
    results.put({"losses": losses, "setup_s": setup, "start_mb": start_mb, "peak_mb": peak_memory()})


def _work_together(job: Job, process: int, barrier: Barrier, given: Any, results: Any) -> None:
    """Trains, in a process of its own, its share of the members as one population."""
    x, y = _begin(process)
    start_mb, mlps = forget_peak(), networks(job.members)
    turns = [*range(job.threads), *reversed(range(job.threads))]
    mine = [number for turn, number in enumerate(_largest_first(job)) if turns[turn % len(turns)] == process]
    begun = time.perf_counter()
    share = [job.members[number] for number in mine]
    together = Together([mlps[number] for number in mine], share, x, y, bucket=job.bucket, bf16=False)
    setup = time.perf_counter() - begun
    together.take(0, job.warm_up)
    barrier.wait(PATIENCE)
    totals = (together.take(job.warm_up, job.steps) / job.steps).tolist()
    losses = dict(zip(mine, totals, strict=True))
    results.put({"losses": losses, "setup_s": setup, "start_mb": start_mb, "peak_mb": peak_memory()})


def deviation(job: Job) -> dict[str, float]:
    """Returns the largest relative deviation of a member's loss from its loss alone, at any of the first steps.

    In float32, and in float64, where rounding is too small to hide a mistake behind.
    """
    x, y = data()
    return {
        name: _deviation(job, x.to(dtype), y, dtype)
        for name, dtype in (("float32", torch.float32), ("float64", torch.float64))
    }


def _deviation(job: Job, x: Tensor, y: Tensor, dtype: torch.dtype) -> float:
    default = torch.get_default_dtype()
    torch.set_default_dtype(dtype)
    try:
        pairs = zip(networks(job.members), job.members, strict=True)
        members = [Alone(mlp.to(dtype), member, x, y) for mlp, member in pairs]
        mlps = [mlp.to(dtype) for mlp in networks(job.members)]
        together = Together(mlps, job.members, x, y, bucket=job.bucket, bf16=False)
        largest = 0.0
        for step in range(job.steps):
            alone = torch.stack([member.take(step, 1) for member in members])  # (K,)
            largest = max(largest, ((together.take(step, 1) - alone).abs() / alone.abs()).max().item())
    finally:
        torch.set_default_dtype(default)
    return largest
