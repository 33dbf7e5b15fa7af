"""How the speed of a population grows with its members, and where packing stops paying.

    python -m tests.benchmarks.scaling [--repeats 3] [--members 1,64] [--widths 16,512] [--depths 1]

Equal members, 784-w-10 and 784-w-w-10 with ReLU and Adam, on MNIST at batch 128, in one process. A member alone is the
hand-written loop of the sweep benchmark; K of them one after another take K times as long. The population and the loop
take turns; ratios are taken within a round, and their median is shown. A ratio below 1 says that packing loses.

Beside it stands the ratio to as many single-threaded processes as there are threads, each at the speed of one that has
the machine to itself: no real pool of processes is that fast, since they share memory and caches.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.benchmarks import harness
from tests.benchmarks.recipe import BATCH_SIZE, LEARNING_RATE
from tests.benchmarks.sweep_lists import Member

MEMBERS = [1, 2, 4, 8, 16, 32, 64, 128, 256, 512, 1024]
WIDTHS = [16, 32, 64, 128, 256, 512]
MEMORY_SHARE = 0.5  # of the free memory that a population may be expected to take
# Float32 values that a population holds per weight: the weight, its gradient, Adam's two means, and one to spare.
VALUES_PER_WEIGHT = 5
VALUES_PER_UNIT = 6 * BATCH_SIZE  # and per hidden unit: z, a, and their gradients


def expected_mb(member: Member, count: int) -> float:
    """Returns the megabytes that a population of equal members takes, roughly."""
    weights = sum(inputs * outputs for inputs, outputs in zip(member.sizes, member.sizes[1:], strict=False))
    return 4 * count * (VALUES_PER_WEIGHT * weights + VALUES_PER_UNIT * member.depth * member.width) / 1e6


def step_seconds(take: Callable[[int, int], Any], *, least: int, seconds: float) -> float:
    """Returns the time of a step: of `least` steps, or as many more as fit into the seconds.

    Args:
        take: takes `(first, steps)`.
        least: steps, >= 1; as many warm up first.
        seconds: wall time that the measurement should take.
    """
    take(0, least)
    steps, spent = 0, 0.0
    while steps < least or spent < seconds:
        begun = time.perf_counter()
        take(steps, least)
        spent += time.perf_counter() - begun
        steps += least
    return spent / steps


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    """Measures every depth, width and number of members, in this process."""
    import torch

    from tests.benchmarks.sweep_peers import Alone, Together, data, networks

    x, y = data()
    free = os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e6
    points = []
    for depth, width in ((depth, width) for depth in options.depths for width in options.widths):
        member = Member(depth, width, "relu", LEARNING_RATE)
        alone = Alone(*networks([member]), member, x, y)
        for count in options.members:
            if expected_mb(member, count) > MEMORY_SHARE * free:
                print(f"{depth} x {width}, {count} members: too large for this machine", file=sys.stderr)
                continue
            members = [member] * count
            together = Together(networks(members), members, x, y, bucket=None, bf16=False)
            rounds = []
            for _ in range(options.repeats):
                timing = {"together_s": step_seconds(together.take, least=2, seconds=options.seconds)}
                timing["alone_s"] = step_seconds(alone.take, least=10, seconds=options.seconds)
                torch.set_num_threads(1)
                timing["one_thread_s"] = step_seconds(alone.take, least=10, seconds=options.seconds)
                torch.set_num_threads(options.threads)
                rounds.append(timing)
            points.append({"depth": depth, "width": width, "members": count, "rounds": rounds})
            points[-1].update(summarise(count, rounds, options.threads))
            print(json.dumps({key: value for key, value in points[-1].items() if key != "rounds"}), file=sys.stderr)
            del together
    return points


def summarise(count: int, rounds: Sequence[Mapping[str, float]], threads: int) -> dict[str, float]:
    """Returns the speed of a population and its ratios to members alone.

    >>> summarise(4, [{"together_s": 0.5, "alone_s": 0.25, "one_thread_s": 0.5}], 2)
    {'member_steps_per_s': 8.0, 'times_serial': 2.0, 'times_processes': 2.0}
    """
    return {
        "member_steps_per_s": median(count / one["together_s"] for one in rounds),
        "times_serial": median(count * one["alone_s"] / one["together_s"] for one in rounds),
        "times_processes": median(count * one["one_thread_s"] / threads / one["together_s"] for one in rounds),
    }


def crossover(points: Sequence[Mapping[str, Any]], key: str) -> dict[str, list[int]]:
    """Returns, for each network, the numbers of members at which the population is slower.

    >>> crossover([{"depth": 1, "width": 16, "members": 1, "times_serial": 0.8}], "times_serial")
    {'784-16-10': [1]}
    """
    table: dict[str, list[int]] = {}
    for point in points:
        slower = table.setdefault(network(point["depth"], point["width"]), [])
        if point[key] < 1:
            slower.append(point["members"])
    return table


def network(depth: int, width: int) -> str:
    """Returns a network's name, as 784-16-10."""
    return "-".join(map(str, Member(depth, width, "relu", LEARNING_RATE).sizes))


def show(values: Mapping[str, Any], console: Console) -> None:
    """Prints one table: a network per row, a number of members per column, and where packing loses."""
    points = values["points"]
    counts = sorted({point["members"] for point in points})
    cells = {(point["depth"], point["width"], point["members"]): point for point in points}
    title = "Population against members one by one / against ideal processes: times faster, by number of members"
    view = Table(title=title, caption=f"packing loses against one by one at: {_slower(values['slower_than_serial'])}")
    view.add_column("network")
    for count in counts:
        view.add_column(f"{count:,}", justify="right")
    for depth, width in sorted({(point["depth"], point["width"]) for point in points}):
        found = [cells.get((depth, width, count)) for count in counts]
        view.add_row(network(depth, width), *("" if point is None else _cell(point) for point in found))
    console.print(view)


def _cell(point: Mapping[str, float]) -> str:
    return f"{point['times_serial']:.1f} / {point['times_processes']:.1f}"


def _slower(table: Mapping[str, Sequence[int]]) -> str:
    return "; ".join(f"{name} with {', '.join(map(str, counts))}" for name, counts in table.items() if counts) or "none"


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""

    def numbers(text: str) -> list[int]:
        return [int(one) for one in text.split(",")]

    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--repeats", type=int, default=3, help="rounds")
    parser.add_argument("--seconds", type=float, default=0.3, help="wall time of one measurement, at least")
    parser.add_argument("--members", type=numbers, default=MEMBERS, help="numbers of members")
    parser.add_argument("--widths", type=numbers, default=WIDTHS, help="units of each hidden layer")
    parser.add_argument("--depths", type=numbers, default=[1, 2], help="hidden layers")
    parser.add_argument("--threads", type=int, default=harness.usable_cores(), help="threads")
    parser.add_argument("--results", type=Path, default=harness.RESULTS, help="folder for the JSON file")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    return parser.parse_args(arguments)


def main() -> None:
    """Starts a worker with pinned threads, and shows and writes what it measured."""
    options = parse()
    harness.require_mnist()
    if options.worker:
        points = measure(options)
        print("\n" + json.dumps({"points": points, "peak_mb": harness.peak_memory()}))
        return
    arguments = ["tests.benchmarks.scaling", "--worker", "--repeats", str(options.repeats)]
    arguments += ["--seconds", str(options.seconds), "--threads", str(options.threads)]
    for flag in ("members", "widths", "depths"):
        arguments += [f"--{flag}", ",".join(map(str, getattr(options, flag)))]
    settings = {name: getattr(options, name) for name in ("repeats", "seconds")}
    values = {"machine": harness.machine(options.threads), "settings": settings}
    values |= harness.worker(arguments, threads=options.threads)
    values["slower_than_serial"] = crossover(values["points"], "times_serial")
    values["slower_than_processes"] = crossover(values["points"], "times_processes")
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 150)
    show(values, console)
    console.print(f"written to {harness.write_results('scaling', values, options.results)}")


if __name__ == "__main__":
    main()
