"""Training 64 networks: as a population, one after another, in several processes, and in JAX.

    python -m tests.benchmarks.sweep [--repeats 5] [--lists mixed,narrow] [--only population,serial] [--steps 40]

The members are those of `sweep_lists`, on MNIST at batch 128 with Adam. Every peer trains all members of a list in a
process of its own, with the same threads and the same 54,000 resident rows; the peers take turns, so that a busy
machine slows all of them. Timed are `--steps` steps of every member after `--warm-up` ones.

The headline is member-steps per second: steps of one member, of all members together. Ratios are taken within a round,
and their median is shown. The limit is what large float32 matrix products reach on this machine, in the same round, at
the list's exact operations: forward and backward, no padding, nothing but products. Beside the speed stand the memory
and how far the population's losses are from those of the members alone.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.benchmarks import harness
from tests.benchmarks.busy import Busy
from tests.benchmarks.sweep_lists import LISTS, MEMBERS, TITLES, chosen, limit
from tests.benchmarks.sweep_timing import Job, Timing

POPULATION = "population"
SERIAL = "serial"
CHECK_STEPS = 20  # of the comparison of losses
BUSY = 0.1  # cores that others may use while a peer is timed
INSTALL = "uv sync --group bench"


@dataclass(frozen=True, kw_only=True)
class Peer:
    """One way to train a list."""

    title: str
    function: str
    """`module:function` below `tests.benchmarks`."""
    needs: tuple[str, ...] = ("torch",)
    """Modules that must be installed."""


PEERS = {
    POPULATION: Peer(title="population", function="sweep_peers:population"),
    "population-bf16": Peer(title="population, bf16-mixed", function="sweep_peers:population_bf16"),
    "population-processes": Peer(title="populations, {threads} processes", function="sweep_peers:population_processes"),
    SERIAL: Peer(title="hand-written loop, one by one", function="sweep_peers:serial"),
    "processes": Peer(title="hand-written loops, {threads} processes", function="sweep_peers:processes"),
    "jax": Peer(title="JAX, vmap + scan by shape", function="sweep_jax:vmap_scan", needs=("jax",)),
    "mlp_lab": Peer(
        title="mlp_lab fit, one by one", function="sweep_lightning:mlp_lab_fit", needs=("torch", "lightning")
    ),
    "lightning-optuna": Peer(
        title="stock Lightning + Optuna",
        function="sweep_lightning:stock_optuna",
        needs=("torch", "lightning", "optuna"),
    ),
}


def measure(name: str, job: Job) -> dict[str, Any]:
    """Runs a peer in this process and returns its measurements."""
    module, function = PEERS[name].function.split(":")
    timing: Timing = getattr(import_module(f"tests.benchmarks.{module}"), function)(job)
    peak = timing.peak_mb or harness.peak_memory()
    return {
        "member_steps_per_s": len(job.members) * job.steps / timing.seconds,
        "round_ms": 1e3 * timing.seconds / job.steps,
        "setup_ms": 1e3 * timing.setup_s / len(job.members),
        "peak_mb": peak,
        "added_mb": peak - (timing.start_mb or 0.0),
        "losses": timing.losses,
    }


def summarise(rounds: Sequence[Mapping[str, Mapping[str, Any]]], limits: Sequence[float]) -> dict[str, Any]:
    """Returns per peer the medians, the speed's extremes and share of the limit, and the population's ratio to it.

    >>> table = summarise([{"population": {"member_steps_per_s": 6.0}, "serial": {"member_steps_per_s": 2.0}}], [12.0])
    >>> table["serial"]["times"], table["population"]["of_limit"]
    (3.0, 0.5)
    """
    table: dict[str, Any] = {}
    for name in rounds[0]:
        values = [one[name] for one in rounds]
        speeds = [value["member_steps_per_s"] for value in values]
        table[name] = {key: median(value[key] for value in values) for key in values[0] if key != "losses"}
        table[name] |= {"lowest": min(speeds), "highest": max(speeds)}
        if "setup_ms" in values[0]:
            table[name]["setup_ms"] = values[0]["setup_ms"]  # JAX compiles in the first round only
        table[name]["of_limit"] = median(speed / most for speed, most in zip(speeds, limits, strict=True))
        if POPULATION in rounds[0]:
            table[name]["times"] = median(
                one[POPULATION]["member_steps_per_s"] / one[name]["member_steps_per_s"] for one in rounds
            )
        reference = rounds[0].get(SERIAL, {}).get("losses")
        if reference and values[0]["losses"]:
            pairs = zip(values[0]["losses"], reference, strict=True)
            table[name]["loss_deviation"] = max(abs(loss / alone - 1) for loss, alone in pairs)
    return table


def show(name: str, values: Mapping[str, Any], threads: int, console: Console) -> None:
    """Prints one list's table, the fastest peer first."""
    gflops, most = median(values["sgemm_gflops"]), median(values["limits"])
    check = values["deviation"]
    caption = f"sgemm {harness.SGEMM_SIZE}³: {gflops:.0f} GFLOP/s, which would be {most:,.0f} member-steps/s"
    if check:
        caption += f"; population's losses of {CHECK_STEPS} steps against each member alone: within "
        caption += f"{check['float32']:.1e} in float32, {check['float64']:.1e} in float64"
    busiest = max(one["busy_elsewhere"] for peers in values["rounds"] for one in peers.values())
    caption += f"; others used up to {busiest:.2f} cores meanwhile"
    view = Table(title=f"{TITLES[name]} ({values['members']} members)", caption=caption)
    view.add_column("peer")
    columns = ("member-steps/s", "lowest", "highest", "ms, all", "of limit", "population is", "ms start", "MB", "+MB")
    for column in (*columns, "loss"):
        view.add_column(column, justify="right")
    for peer, row in sorted(values["summary"].items(), key=lambda item: -item[1]["member_steps_per_s"]):
        speeds = (f"{row[key]:,.0f}" for key in ("member_steps_per_s", "lowest", "highest"))
        times = f"{row['times']:.2f} ×" if "times" in row else ""
        loss = f"{row['loss_deviation']:.0e}" if "loss_deviation" in row else ""
        rest = (f"{row['round_ms']:.1f}", f"{row['of_limit']:.2f}", times, f"{row['setup_ms']:.1f}")
        title = PEERS[peer].title.format(threads=threads)
        view.add_row(title, *speeds, *rest, f"{row['peak_mb']:,.0f}", f"{row['added_mb']:,.0f}", loss)
    console.print(view)


def compare(name: str, options: argparse.Namespace, cache: str, console: Console) -> dict[str, Any]:
    """Lets the peers take turns on one list and returns every measurement with its summary.

    Args:
        name: of the list.
        options: the command line.
        cache: folder where JAX keeps what it has compiled, so that only the first round waits for it.
        console: where the progress is shown.
    """
    peers = [peer for peer in options.only if not harness.missing(PEERS[peer].needs)]
    arguments = ["tests.benchmarks.sweep", "--steps", str(options.steps), "--warm-up", str(options.warm_up)]
    arguments += ["--lists", name, "--members", str(options.members)]
    arguments += ["--bucket", str(options.bucket)] if options.bucket else []
    arguments += ["--threads", str(options.threads), "--worker"]
    rounds: list[dict[str, Any]] = []
    gflops: list[float] = []
    for number in range(options.repeats):
        gflops.append(harness.worker(["tests.benchmarks.fit", "--worker", "sgemm"], threads=options.threads)["gflops"])
        rounds.append({})
        for peer in peers:
            console.print(f"[dim]{name}, round {number + 1}/{options.repeats}: {peer}[/dim]")
            rounds[-1][peer] = _quiet_worker([*arguments, peer], options.threads, options.tries, cache)
    deviation = harness.worker([*arguments, "deviation"], threads=options.threads) if POPULATION in peers else None
    members = chosen(name, options.members)
    limits = [limit(members, one) for one in gflops]
    return {
        "members": len(members),
        "list": [str(member) for member in members],
        "gflop_per_step_of_all": sum(member.step_flops for member in members) / 1e9,
        "sgemm_gflops": gflops,
        "limits": limits,
        "deviation": deviation,
        "summary": summarise(rounds, limits),
        "rounds": rounds,
    }


def _quiet_worker(arguments: Sequence[str], threads: int, most: int, cache: str) -> dict[str, Any]:
    """Runs a worker, and up to `most` times where something else kept the machine busy meanwhile; keeps the quietest.

    Two threads that wait for each other lose far more than their share to a third: a loop of small products has been
    seen ten times slower.
    """
    tries: list[dict[str, Any]] = []
    while not tries or (len(tries) < most and tries[-1]["busy_elsewhere"] > BUSY):
        busy = Busy()
        tries.append(harness.worker(arguments, threads=threads, environment={"JAX_COMPILATION_CACHE_DIR": cache}))
        tries[-1]["busy_elsewhere"] = busy.spent()["busy_elsewhere"]
    return min(tries, key=lambda one: one["busy_elsewhere"])


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""

    def names(text: str) -> list[str]:
        return text.split(",")

    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--repeats", type=int, default=5, help="rounds in which each peer runs once")
    parser.add_argument("--steps", type=int, default=40, help="timed steps of each member")
    parser.add_argument("--warm-up", type=int, default=10, help="steps of each member before them, at least 1")
    parser.add_argument("--members", type=int, default=MEMBERS, help="members of a list, for a quick look")
    parser.add_argument("--tries", type=int, default=3, help="times that a peer is timed, while others keep it busy")
    parser.add_argument("--threads", type=int, default=harness.usable_cores(), help="threads of every peer")
    parser.add_argument("--bucket", type=int, help="pads the population's widths to a multiple (default: its choice)")
    parser.add_argument("--lists", type=names, default=list(LISTS), help=", ".join(LISTS))
    parser.add_argument("--only", type=names, default=list(PEERS), help=", ".join(PEERS))
    parser.add_argument("--results", type=Path, default=harness.RESULTS, help="folder for the JSON file")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    for flag, given, accepted in (("--lists", options.lists, LISTS), ("--only", options.only, PEERS)):
        if unknown := [name for name in given if name not in accepted]:
            parser.error(f"{flag}: {', '.join(unknown)} unknown; accepted: {', '.join(accepted)}")
    return options


def work(options: argparse.Namespace) -> dict[str, Any]:
    """Does in this process what a worker is asked for."""
    members = chosen(options.lists[0], options.members)
    job = Job(members, options.warm_up, options.steps, options.threads, options.bucket)
    if options.worker == "deviation":
        from tests.benchmarks.sweep_peers import deviation

        return deviation(job._replace(steps=CHECK_STEPS))
    return measure(options.worker, job)


def main() -> None:
    """Runs the comparison, or one peer of it in a process of its own."""
    options = parse()
    harness.require_mnist()
    if options.worker:
        print("\n" + json.dumps(work(options)))
        return
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 150)
    for peer in options.only:
        if gone := harness.missing(PEERS[peer].needs):
            console.print(f"skipped {PEERS[peer].title}: {', '.join(gone)} not installed; `{INSTALL}` installs it")
    settings = {name: getattr(options, name) for name in ("repeats", "steps", "warm_up", "members", "bucket")}
    values = {"machine": harness.machine(options.threads), "settings": settings, "lists": {}}
    for name in options.lists:
        with tempfile.TemporaryDirectory() as cache:
            values["lists"][name] = compare(name, options, cache, console)
        show(name, values["lists"][name], options.threads, console)
    console.print(f"written to {harness.write_results('sweep', values, options.results)}")


if __name__ == "__main__":
    main()
