"""Microseconds per optimizer step of each feature of mlp_lab, one at a time.

    python -m tests.benchmarks.overhead [--repeats 5] [--steps 422] [--only bare,module]

Every variant trains the recipe of the fit benchmark for an epoch of warm-up and one that is timed, from its first step
to the end of what follows its last: what happens once per epoch (validation, checkpoints) is spread over the steps. The
variants take turns in one process; differences are taken within a round, and their medians are shown: against the
hand-written loop, and against the variant that the feature was added to.

The second table splits a step of mlp_lab as shipped into its parts, as Lightning's own SimpleProfiler times them.
"""

from __future__ import annotations

import argparse
import json
import logging
import sys
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.benchmarks import cockpit_peer, harness

BASELINE = "loop"
MODULE = "module"


@dataclass(frozen=True, kw_only=True)
class Variant:
    """A way to train, named by what it adds to another one."""

    title: str
    against: str = MODULE
    """The variant that it is compared with."""
    kind: str = "module"
    """A function of `overhead_variants`: loop, bare, module or wide_loop."""
    settings: Mapping[str, Any] = field(default_factory=dict)
    """Keyword arguments of that function."""


PARTS = ["progress", "metrics", "random", "validation", "stop", "checkpoints"]
WIDE = {"depth": 3, "width": 256, "dropout": 0.0}


def wide(title: str, *parts: str, against: str = "wide") -> Variant:
    """Returns a variant of 784-256-256-256-10 with all parts of a run and some more."""
    return Variant(title=title, against=against, settings={"parts": [*PARTS, *parts], "model": WIDE})


VARIANTS = {
    "loop": Variant(title="hand-written loop", against="loop", kind="loop"),
    "loader": Variant(title="+ TensorLoader", against="loop", kind="loop", settings={"loader": True}),
    "network": Variant(title="+ mlp_lab's network and loss", against="loop", kind="loop", settings={"network": True}),
    "bare": Variant(title="+ Lightning: a bare module, everything off", against="loop", kind="bare"),
    "self.log": Variant(title="+ self.log every step", against="bare", kind="bare", settings={"log": True}),
    "module": Variant(title="MLPModule, everything else off", against="bare"),
    "progress": Variant(title="+ progress table", settings={"parts": ["progress"]}),
    "metrics-50": Variant(title="+ metrics.csv every 50 steps", settings={"parts": ["metrics"]}),
    "metrics-1": Variant(title="+ metrics.csv every step", settings={"parts": ["metrics"], "log_every_n_steps": 1}),
    "random-state": Variant(title="+ random state", settings={"parts": ["random"]}),
    "validation": Variant(title="+ validation", settings={"parts": ["validation"]}),
    "stop": Variant(title="+ early stopping", against="validation", settings={"parts": ["validation", "stop"]}),
    "checkpoints": Variant(
        title="+ best and last checkpoint", against="validation", settings={"parts": ["validation", "checkpoints"]}
    ),
    "shipped": Variant(
        title="all of these: as shipped",
        settings={"parts": PARTS},
    ),
    "schedule": Variant(title="+ cosine schedule", settings={"model": {"schedule": {"name": "cosine"}}}),
    "max-norm": Variant(title="+ max-norm", settings={"model": {"max_norm": 3.0}}),
    "mixup": Variant(title="+ mixup", settings={"model": {"mixup": 0.2}}),
    "smoothing": Variant(title="+ label smoothing", settings={"model": {"label_smoothing": 0.1}}),
    "batch-norm": Variant(title="+ batch norm", settings={"model": {"norm": "batch"}}),
    "mkl": Variant(title="all products by MKL", settings={"onednn": False}),
    "wide": wide("784-256-256-256-10, without diagnostics", against="wide"),
    "wide-mkl": Variant(
        title="all products by MKL", against="wide", settings={"parts": PARTS, "model": WIDE, "onednn": False}
    ),
    "numerics": wide("+ only the check for NaN", "numerics"),
    "diagnostics": wide("+ diagnostics, every 100 steps (default)", "diagnostics"),
    "diagnostics-1": wide("+ diagnostics at every step", "diagnostics-1"),
    "wandb": wide("+ W&B, offline", "wandb"),
    "wide-loop": Variant(title="784-256-256-256-10, a loop written by hand", against="wide-loop", kind="wide_loop"),
    "cockpit": Variant(
        title="+ Cockpit, economy, at every step", against="wide-loop", kind="wide_loop", settings={"watched": True}
    ),
    "watch": wide('+ wandb.watch(log="all", log_freq=50)', "watch", against="wandb"),
}


def summarise(rounds: Sequence[Mapping[str, float]]) -> dict[str, dict[str, float]]:
    """Returns per variant the medians of its time, of what it adds to the loop, and of what it adds to its own base.

    >>> summarise([{"loop": 100.0, "bare": 150.0}, {"loop": 200.0, "bare": 260.0}])["bare"]
    {'step_us': 205.0, 'over_loop_us': 55.0, 'added_us': 55.0, 'ratio': 1.4}
    """
    table = {}
    for name in rounds[0]:
        base = VARIANTS[name].against
        table[name] = {"step_us": median(one[name] for one in rounds)}
        for key, other in (("over_loop_us", BASELINE), ("added_us", base)):
            if other in rounds[0]:
                table[name][key] = median(one[name] - one[other] for one in rounds)
        if base in rounds[0]:
            table[name]["ratio"] = median(one[name] / one[base] for one in rounds)
    return table


def show(table: Mapping[str, Mapping[str, float]], parts: Mapping[str, float], console: Console) -> None:
    """Prints the features, then the parts of a step."""
    view = Table(title="MNIST 784-128-10 (and others where said), batches of 128: microseconds per optimizer step")
    view.add_column("variant")
    for column in ("step", "over the loop", "added", "times", "added to"):
        view.add_column(column, justify="right")
    for name, row in table.items():
        variant = VARIANTS[name]
        added = f"{row['added_us']:+,.0f}" if "added_us" in row and variant.against != name else ""
        over = f"{row['over_loop_us']:+,.0f}" if "over_loop_us" in row and name != BASELINE else ""
        times = f"{row['ratio']:.2f}" if added else ""
        view.add_row(variant.title, f"{row['step_us']:,.0f}", over, added, times, variant.against if added else "")
    console.print(view)
    split = Table(title="Where a step as shipped goes (Lightning's SimpleProfiler, whose own cost is in it)")
    split.add_column("part")
    split.add_column("microseconds", justify="right")
    for name, value in parts.items():
        split.add_row(name, f"{value:,.0f}")
    console.print(split)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """Lets the variants take turns in this process."""
    from tests.benchmarks import overhead_variants

    run: dict[str, Callable[..., float]] = {
        "loop": overhead_variants.loop,
        "bare": overhead_variants.bare,
        "module": overhead_variants.module,
        "wide_loop": overhead_variants.wide_loop,
    }
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    rounds = []
    with tempfile.TemporaryDirectory() as folder:
        bench = overhead_variants.Bench(steps=options.steps, folder=Path(folder))
        for number in range(options.repeats):
            print(f"round {number + 1}/{options.repeats}", file=sys.stderr)
            rounds.append({name: run[VARIANTS[name].kind](bench, **VARIANTS[name].settings) for name in options.only})
        parts = overhead_variants.parts_of_a_step(bench, VARIANTS["shipped"].settings["parts"])
    return {"rounds": rounds, "parts_us": parts}


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--repeats", type=int, default=5, help="rounds in which each variant runs once")
    parser.add_argument("--steps", type=int, default=422, help="steps of an epoch (422 is all of MNIST)")
    parser.add_argument("--threads", type=int, default=harness.usable_cores(), help="threads of every variant")
    parser.add_argument("--only", type=lambda text: text.split(","), default=list(VARIANTS), help=", ".join(VARIANTS))
    parser.add_argument("--results", type=Path, default=harness.RESULTS, help="folder for the JSON file")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if "cockpit" in options.only and not cockpit_peer.installed():
        print("Cockpit is not installed: see tests/benchmarks/cockpit_peer.py", file=sys.stderr)
        options.only = [name for name in options.only if name != "cockpit"]
    unknown = [name for name in options.only if name not in VARIANTS]
    if unknown:
        parser.error(f"--only: {', '.join(unknown)} unknown; accepted: {', '.join(VARIANTS)}")
    return options


def main() -> None:
    """Starts a worker with pinned threads, and shows and writes what it measured."""
    options = parse()
    harness.require_mnist()
    if options.worker:
        values = measure(options)
        print("\n" + json.dumps(values))
        return
    start = time.perf_counter()
    arguments = ["tests.benchmarks.overhead", "--worker", "--repeats", str(options.repeats)]
    arguments += ["--steps", str(options.steps), "--only", ",".join(options.only)]
    values = harness.worker(arguments, threads=options.threads)
    settings = {"repeats": options.repeats, "steps": options.steps}
    values = {"machine": harness.machine(options.threads), "settings": settings, **values}
    values["summary"] = summarise(values["rounds"])
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
    show(values["summary"], values["parts_us"], console)
    path = harness.write_results("overhead", values, options.results)
    console.print(f"{time.perf_counter() - start:.0f} s; written to {path}")


if __name__ == "__main__":
    main()
