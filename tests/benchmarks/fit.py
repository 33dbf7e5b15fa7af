"""Training speed of `mlp_lab fit` as shipped, against the loops and frameworks that do the same.

    python -m tests.benchmarks.fit [--repeats 5] [--epochs 3] [--only mlp_lab,hand-written] [--rows 6400]

The recipe is that of `configs/mnist.yaml`: 784-128-10, ReLU, dropout 0.2, Adam 1e-3, batches of 128, 54,000 training
and 6,000 validation images of MNIST, validation after every epoch. Every peer runs in its own process with the same
number of threads; the peers take turns, so that a busy machine slows all of them.

The headline is training rows per second of wall time over whole epochs: validation, logging, progress display and
checkpoints count, as far as a peer has them. The first epoch is warm-up and told apart, with imports, reading and
compiling. Ratios are taken within a round, and their median is shown.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from statistics import median
from typing import Any

from rich.console import Console
from rich.table import Table

from tests.benchmarks import harness
from tests.benchmarks.recipe import HIDDEN, INPUTS, OUTPUTS

REFERENCE = "hand-written"
INSTALL = "uv sync --group bench"
# Multiply-adds of a sample: forward and weight gradients of both layers, input gradient of the second only.
FLOPS_PER_SAMPLE = 2 * (2 * INPUTS * HIDDEN + 3 * HIDDEN * OUTPUTS)


@dataclass(frozen=True, kw_only=True)
class Peer:
    """One way to train the recipe."""

    title: str
    function: str
    """`module:function` below `tests.benchmarks`."""
    needs: tuple[str, ...]
    """Modules that must be installed."""
    environment: Mapping[str, str] = field(default_factory=dict)


PEERS = {
    REFERENCE: Peer(title="PyTorch, hand-written loop", function="torch_peers:hand_written", needs=("torch",)),
    "mlp_lab": Peer(title="mlp_lab fit, as shipped", function="lightning_peers:mlp_lab", needs=("torch", "lightning")),
    "lightning-tensors": Peer(
        title="Lightning, TensorDataset", function="lightning_peers:lightning_tensors", needs=("torch", "lightning")
    ),
    "lightning-torchvision": Peer(
        title="Lightning, torchvision's MNIST",
        function="lightning_peers:lightning_torchvision",
        needs=("torch", "lightning", "torchvision"),
    ),
    "keras-tensorflow": Peer(
        title="Keras on TensorFlow",
        function="other_peers:keras",
        needs=("keras", "tensorflow"),
        environment={"KERAS_BACKEND": "tensorflow"},
    ),
    "keras-jax": Peer(
        title="Keras on JAX",
        function="other_peers:keras",
        needs=("keras", "jax"),
        environment={"KERAS_BACKEND": "jax"},
    ),
    "scikit-learn": Peer(title="scikit-learn (no dropout)", function="other_peers:scikit_learn", needs=("sklearn",)),
    "skorch": Peer(title="skorch", function="torch_peers:skorch", needs=("torch", "skorch")),
    "jax-scan": Peer(title="JAX, hand-written lax.scan", function="other_peers:jax_scan", needs=("jax",)),
}


def measure(name: str, *, epochs: int, rows: int | None) -> dict[str, Any]:
    """Runs a peer in this process for a warm-up epoch and `epochs` more, and returns its measurements."""
    module, function = PEERS[name].function.split(":")
    accuracy = getattr(import_module(f"tests.benchmarks.{module}"), function)(epochs + 1, rows)
    count = 60_000 - harness.VALIDATION_ROWS if rows is None else rows
    return {**harness.CLOCK.rates(count), "peak_mb": harness.peak_memory(), "val_accuracy": accuracy}


def summarise(rounds: Sequence[Mapping[str, Mapping[str, float]]], reference: str = REFERENCE) -> dict[str, Any]:
    """Returns per peer the medians, the extremes of the speed, and the median ratio of the speed to the reference's.

    >>> rounds = [{"hand-written": {"samples_per_s": 2.0}, "a": {"samples_per_s": 1.0}}] * 3
    >>> summarise(rounds)["a"]
    {'samples_per_s': 1.0, 'lowest': 1.0, 'highest': 1.0, 'ratio': 0.5}
    """
    table: dict[str, Any] = {}
    for name in rounds[0]:
        values = [one[name] for one in rounds]
        speeds = [value["samples_per_s"] for value in values]
        table[name] = {key: median(value[key] for value in values) for key in values[0]}
        table[name] |= {"lowest": min(speeds), "highest": max(speeds)}
        if reference in rounds[0]:
            table[name]["ratio"] = median(
                one[name]["samples_per_s"] / one[reference]["samples_per_s"] for one in rounds
            )
    return table


def show(table: Mapping[str, Mapping[str, float]], skipped: Mapping[str, str], gflops: float, console: Console) -> None:
    """Prints one table, the fastest peer first."""
    limit = gflops * 1e9 / FLOPS_PER_SAMPLE
    view = Table(
        title="MNIST 784-128-10, batches of 128: training samples per second of wall time, whole epochs",
        caption=f"sgemm {harness.SGEMM_SIZE}³: {gflops:.0f} GFLOP/s, which would be {limit:,.0f} samples/s",
    )
    view.add_column("peer")
    for column in ("samples/s", "lowest", "highest", "ratio", "training only", "warm-up", "peak MB", "accuracy"):
        view.add_column(column, justify="right")
    for name, row in sorted(table.items(), key=lambda item: -item[1]["samples_per_s"]):
        speeds = (f"{row[key]:,.0f}" for key in ("samples_per_s", "lowest", "highest"))
        ratio = f"{row['ratio']:.2f}" if "ratio" in row else "-"
        rest = (f"{row['train_samples_per_s']:,.0f}", f"{row['warm_up_s']:.1f} s", f"{row['peak_mb']:,.0f}")
        view.add_row(PEERS[name].title, *speeds, ratio, *rest, f"{row['val_accuracy']:.4f}")
    console.print(view)
    for name, modules in skipped.items():
        console.print(f"skipped {PEERS[name].title}: {modules} not installed; `{INSTALL}` installs it")


def compare(options: argparse.Namespace, console: Console) -> dict[str, Any]:
    """Lets the peers take turns and returns every measurement with its summary."""
    skipped = {name: ", ".join(gone) for name in options.only if (gone := harness.missing(PEERS[name].needs))}
    names = [name for name in options.only if name not in skipped]
    rounds: list[dict[str, Any]] = []
    gflops: list[float] = []
    arguments = ["tests.benchmarks.fit", "--epochs", str(options.epochs)]
    arguments += ["--rows", str(options.rows)] if options.rows else []
    for number in range(options.repeats):
        gflops.append(harness.worker(["tests.benchmarks.fit", "--worker", "sgemm"], threads=options.threads)["gflops"])
        rounds.append({})
        for name in names:
            console.print(f"[dim]round {number + 1}/{options.repeats}: {PEERS[name].title}[/dim]")
            rounds[-1][name] = harness.worker(
                [*arguments, "--worker", name], threads=options.threads, environment=PEERS[name].environment
            )
    return {
        "machine": harness.machine(options.threads),
        "settings": {name: getattr(options, name) for name in ("repeats", "epochs", "rows")},
        "sgemm_gflops": gflops,
        "summary": summarise(rounds) if names else {},
        "rounds": rounds,
        "skipped": skipped,
    }


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    """Reads the command line."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--repeats", type=int, default=5, help="rounds in which each peer runs once")
    parser.add_argument("--epochs", type=int, default=3, help="timed epochs, after one of warm-up")
    parser.add_argument("--rows", type=int, help="training rows of an epoch, for a quick look (default: all 54,000)")
    parser.add_argument("--threads", type=int, default=harness.usable_cores(), help="threads of every peer")
    parser.add_argument("--only", type=lambda text: text.split(","), default=list(PEERS), help=", ".join(PEERS))
    parser.add_argument("--results", type=Path, default=harness.RESULTS, help="folder for the JSON file")
    parser.add_argument("--worker", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    unknown = [name for name in options.only if name not in PEERS]
    if unknown:
        parser.error(f"--only: {', '.join(unknown)} unknown; accepted: {', '.join(PEERS)}")
    return options


def main() -> None:
    """Runs the comparison, or one peer of it in a process of its own."""
    options = parse()
    if options.worker == "sgemm":
        print(json.dumps({"gflops": harness.sgemm_gflops()}))
        return
    harness.require_mnist()
    if options.worker:
        print("\n" + json.dumps(measure(options.worker, epochs=options.epochs, rows=options.rows)))
        return
    console = Console(highlight=False, width=None if sys.stdout.isatty() else 120)
    values = compare(options, console)
    show(values["summary"], values["skipped"], median(values["sgemm_gflops"]), console)
    console.print(f"written to {harness.write_results('fit', values, options.results)}")


if __name__ == "__main__":
    main()
