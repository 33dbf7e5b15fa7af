"""Whole searches as users run them: the two backends, what the verdicts save, and a script of Optuna and Lightning.

    python -m tests.benchmarks.search [--part backends|verdicts|optuna|all] [--seeds 10] [--trials N] [--epochs N]

Every search is a process of its own with pinned threads and a folder of its own; the peers of a part take turns, and
another one begins with each seed. Wall times are of whole processes, from the start of Python to the closing table.

`backends`: `sweeps/digits.yaml` by the population and by serial: the best losses over the seeds, and the time. The best
trial of each is trained once more from `best.yaml` for its accuracy. `verdicts`: what `diagnosis.prune` saves, on two
sweeps. `optuna`: trials per hour against the script of `search_peers`, with Optuna's median pruner, the default of its
examples, and with successive halving as in the sweep.

A file is written after every seed, so that a benchmark that is cut off keeps what it has measured.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.benchmarks import harness
from tests.benchmarks.search_runs import optuna_script, sweep
from tests.benchmarks.search_summary import (
    GOAL,
    QUARTILES,
    Rounds,
    compare_backends,
    compare_scripts,
    compare_verdicts,
)

PARTS = ("backends", "verdicts", "optuna")
CODES = "[nonfinite, update_too_large, vanishing_gradient, dead_units]"  # of the sweeps that prune by verdicts
MAXIMIZE = {"vanishing": False, "mnist_depth_width": True}
"""The sweeps of the part `verdicts`, and whether higher is better in them."""


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """One table: peers that take turns."""

    name: str
    """Of its file, after `search-`."""
    peers: Mapping[str, Callable[[int], dict[str, Any]]]
    """What each does with a seed."""
    summarise: Callable[[Rounds], dict[str, Any]]
    """What the rounds come to."""
    table: Callable[[Mapping[str, Any], int], Table]
    """Summary and number of seeds to the table."""


def comparisons(options: argparse.Namespace) -> list[Comparison]:
    """Returns what the command line asks for."""
    limits = {"threads": options.threads, "trials": options.trials, "epochs": options.epochs}
    found = []
    if options.part in ("backends", "all"):
        peers = {
            name: partial(sweep, "digits", words=["--backend", name], retrain=True, **limits)
            for name in ("population", "serial")
        }
        found.append(Comparison(name="backends", peers=peers, summarise=compare_backends, table=backends_table))
    for name in options.sweeps if options.part in ("verdicts", "all") else ():
        peers = {
            peer: partial(sweep, name, words=["--diagnosis.prune", codes], **limits)
            for peer, codes in (("verdicts", CODES), ("none", "[]"))
        }
        summarise = partial(compare_verdicts, maximize=MAXIMIZE[name])
        table = partial(verdicts_table, name)
        found.append(Comparison(name=name, peers=peers, summarise=summarise, table=table))
    if options.part in ("optuna", "all"):
        peers = {"mlp_lab": partial(sweep, "digits", **limits)}
        peers |= {name: partial(optuna_script, name, **limits) for name in ("median", "asha")}
        found.append(Comparison(name="optuna", peers=peers, summarise=compare_scripts, table=scripts_table))
    return found


def run(comparison: Comparison, options: argparse.Namespace, console: Console) -> Path:
    """Lets the peers take turns, writes the file after every seed, prints the table, and returns the file's path."""
    settings = {name: getattr(options, name) for name in ("seeds", "first_seed", "minutes", "trials", "epochs")}
    values: dict[str, Any] = {"machine": harness.machine(options.threads), "settings": settings}
    rounds: list[dict[str, Any]] = []
    start = time.monotonic()
    for seed in range(options.first_seed, options.first_seed + options.seeds):
        if rounds and options.minutes and time.monotonic() - start > 60 * options.minutes:
            break
        names = list(comparison.peers)
        done = {}
        for name in names[seed % len(names) :] + names[: seed % len(names)]:
            console.print(f"[dim]{comparison.name}, seed {seed}: {name}[/dim]")
            done[name] = comparison.peers[name](seed)
        rounds.append({"seed": seed, **{name: done[name] for name in names}})
        summary = comparison.summarise(rounds)
        path = harness.write_results(
            f"search-{comparison.name}", values | {"summary": summary, "rounds": rounds}, options.results
        )
    table = comparison.table(summary, len(rounds))
    busiest = max(round_[name]["busy_elsewhere"] for round_ in rounds for name in comparison.peers)
    table.caption = f"{table.caption or ''}; others used up to {busiest:.2f} cores meanwhile".lstrip("; ")
    console.print(table)
    return path


def _new(title: str, caption: str, *columns: str) -> Table:
    table = Table(title=title, caption=caption)
    for index, name in enumerate(columns):
        table.add_column(name, justify="right" if index else "left")
    return table


def backends_table(summary: Mapping[str, Any], seeds: int) -> Table:
    """Returns the two backends' distributions, with the verdict below."""
    low, high = summary["interval"]
    caption = (
        f"difference of medians {summary['difference']:+.4f} (95% {low:+.4f} to {high:+.4f}), margin "
        f"{summary['margin']:.4f}, serial's interquartile range: {summary['verdict']}; serial takes "
        f"{summary['times']:.2f} times as long ({summary['times_cpu']:.2f} in CPU time); "
        f"{summary['reached']} of {seeds} populations reach accuracy {GOAL:g}"
    )
    columns = ("backend", "of the best trial", *(name.replace("_", " ") for name in QUARTILES), "s", "CPU s", "epochs")
    table = _new(f"sweeps/digits.yaml, {seeds} seeds", caption, *columns)
    for name in ("population", "serial"):
        row = summary[name]
        took = (f"{row['wall_s']:.1f}", f"{row['cpu_s']:.1f}", f"{row['epochs']:,.0f}")
        table.add_row(name, "val/loss", *(f"{row['loss'][key]:.4f}" for key in QUARTILES), *took)
        table.add_row("", "val/accuracy, again", *(f"{row['accuracy'][key]:.4f}" for key in QUARTILES))
    return table


def verdicts_table(name: str, summary: Mapping[str, Any], seeds: int) -> Table:
    """Returns what a search took with and without verdicts that end trials."""
    caption = (
        f"without verdicts {summary['times_until']:.2f} times as long until the worse of both bests, "
        f"{summary['times']:.2f} times in all"
    )
    columns = ("diagnosis.prune", "best", "s until", "trials until", "epochs until", "s", "trials", "epochs", "ended")
    table = _new(f"sweeps/{name}.yaml, {seeds} seeds (medians)", caption, *columns, "by")
    for peer, title in (("verdicts", "four codes"), ("none", "none")):
        row = summary[peer]
        until = (f"{row['until'][key]:,.0f}" for key in ("trials", "epochs"))
        rest = (f"{row[key]:,.0f}" for key in ("trials", "epochs", "ended"))
        codes = ", ".join(f"{code} {count}" for code, count in row["codes"].items())
        start = (title, f"{row['best']:.4g}", f"{row['until']['seconds']:.1f}")
        table.add_row(*start, *until, f"{row['wall_s']:.1f}", *rest, codes)
    return table


def scripts_table(summary: Mapping[str, Any], seeds: int) -> Table:
    """Returns the rates of mlp_lab and of the script."""
    titles = {"mlp_lab": "mlp_lab sweep", "median": "Optuna + Lightning, median", "asha": "Optuna + Lightning, asha"}
    columns = ("search", "trials/h", "lowest", "highest", "mlp_lab is", "s", "epochs", "best loss", "from", "to")
    table = _new(f"the space of sweeps/digits.yaml, {seeds} seeds (medians)", "", *columns)
    for name, row in summary.items():
        rates = (f"{row[key]:,.0f}" for key in ("trials_per_hour", "lowest", "highest"))
        took = (f"{row['times']:.2f} ×", f"{row['wall_s']:.1f}", f"{row['epochs']:,.0f}")
        table.add_row(titles[name], *rates, *took, *(f"{row['loss'][key]:.4f}" for key in ("median", "min", "max")))
    return table


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--part", choices=[*PARTS, "all"], default="all", help="what is compared")
    parser.add_argument("--seeds", type=int, default=10, help="rounds, each with a seed of its own")
    parser.add_argument("--first-seed", type=int, default=0, help="the first of them")
    parser.add_argument("--trials", type=int, help="of each search (default: as its file says)")
    parser.add_argument("--epochs", type=int, help="of each trial at most (default: as its base config says)")
    parser.add_argument("--sweeps", type=lambda text: text.split(","), default=list(MAXIMIZE), help="of verdicts")
    parser.add_argument("--minutes", type=float, help="no seed of a table begins later than this (default: all do)")
    parser.add_argument("--threads", type=int, default=1, help="threads of every search")
    parser.add_argument("--results", type=Path, default=harness.RESULTS, help="folder for the JSON files")
    options = parser.parse_args(arguments)
    if unknown := [name for name in options.sweeps if name not in MAXIMIZE]:
        parser.error(f"--sweeps: {', '.join(unknown)} unknown; accepted: {', '.join(MAXIMIZE)}")
    if options.seeds < 1:
        parser.error(f"--seeds: {options.seeds} is not accepted; use 1 or more")
    return options


def main() -> None:
    """Runs the comparisons that are asked for."""
    options = parse()
    if options.part in ("verdicts", "all") and "mnist_depth_width" in options.sweeps:
        harness.require_mnist()
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 150)
    for comparison in comparisons(options):
        console.print(f"written to {run(comparison, options, console)}")


if __name__ == "__main__":
    main()
