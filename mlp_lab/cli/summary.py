"""`summary`: the model of a config before any training, and how far theory says that its signal will get."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple, cast

import torch
from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import nn

from mlp_lab.diagnostics.theory import Prediction, predict, why_not
from mlp_lab.model.initialization import lsuv_
from mlp_lab.model.mlp import MLP, Block
from mlp_lab.population.memory import free_bytes, mega, member_bytes
from mlp_lab.text import printable
from mlp_lab.training.batches import INIT_ROWS
from mlp_lab.training.straight import reason_for_lightnings_loop

if TYPE_CHECKING:
    from mlp_lab.cli.bench import BenchCLI

BYTES = 4  # of a float32
COPIES = {"sgd": 2, "rmsprop": 3, "adam": 4, "adamw": 4, "muon": 3}  # weights, gradients, optimizer states
DECADES = 2.0  # of the gradient over the depth: beyond, plain SGD moves some layers a hundred times slower than others


class LayerRow(NamedTuple):
    """One line of the summary."""

    name: str
    shape: str  # inputs → outputs, per sample
    parts: str  # what follows the linear map
    parameters: int
    flops: int  # of the forward pass, per sample


def layer_rows(mlp: MLP, *, activation: str, norm: str) -> list[LayerRow]:
    """Describes the network from the input to the logits.

    FLOPs are those of the linear maps, a multiply and an add counted apart: n inputs and m outputs take 2·n·m, and m
    for the bias where there is one. What works on single units (norms, activations) is left out: it grows with m alone.

    Args:
        mlp: The network.
        activation: The name of its activation.
        norm: The name of its normalisation, or none.
    """
    rows = []
    if mlp.encoder is not None:
        outputs = mlp.linears[0].in_features
        rows.append(LayerRow("encoder", f"→ {outputs}", "columns side by side", _count(mlp.encoder), 0))
    for index, block in enumerate(cast(Iterable[Block], mlp.blocks), start=1):
        parts = [] if norm == "none" else [norm]
        parts.append(activation)
        parts += [f"dropout {block.dropout.p:g}"] if block.dropout is not None else []
        parts += ["skip"] if block.skip else []
        rows.append(
            LayerRow(f"hidden {index}", _shape(block.linear), ", ".join(parts), _count(block), _flops(block.linear))
        )
    rows.append(LayerRow("head", _shape(mlp.head), "", _count(mlp.head), _flops(mlp.head)))
    return rows


def show_summary(cli: BenchCLI, console: Console | None = None) -> None:
    """Prints the layers with shapes, parameters and FLOPs, what training will take, and the predicted signal."""
    console = console or Console(highlight=False)
    module, spec, batch = cli.model, cli.datamodule.spec, cli.datamodule.train_batch_size
    mlp, name = module.model, module.optimizer_config.name
    rows = layer_rows(mlp, activation=module.hparams["activation"], norm=module.hparams["norm"])
    parameters, flops = (sum(row.parameters for row in rows), sum(row.flops for row in rows))
    console.print(_table(rows, parameters, flops))
    states = _bytes(BYTES * parameters * COPIES[name])
    activations = _bytes(BYTES * batch * (sum(3 * width for width in mlp.widths) + mlp.linears[0].in_features))
    reason = reason_for_lightnings_loop(cli.trainer, module)
    for head, words in (
        ("task", f"{spec.task}, loss {module.train_loss.loss.name}"),
        ("memory", f"{states} for weights, gradients and the state of {name}"),
        ("", f"about {activations} for activations at batch size {batch:,}"),
        ("step", f"about {_scaled(3 * flops * batch, 1000)}FLOP: forward, and twice that backward"),
        ("loop", f"Lightning's own, because of {reason}" if reason else "the fast training loop"),
    ):
        _print_line(console, head, words)
    if cli.replicates > 1:
        optimizer = module.optimizer_config
        each = member_bytes(mlp, batch, optimizer=optimizer.name, momentum=optimizer.momentum)
        free = free_bytes()
        told = f"about {mega(each * cli.replicates)} for {cli.replicates} replicates in training"
        _print_line(console, "all", told if free is None else f"{told}; {mega(free)} are free here")
    console.print()
    show_signal(cli, console)


def show_signal(cli: BenchCLI, console: Console) -> None:
    """Prints what mean-field theory predicts of each hidden layer at the first step, or why it does not apply."""
    mlp = cli.model.model
    reason = why_not(mlp)
    if reason is not None:
        _print_line(console, "signal", reason)
        return
    prediction = predict(mlp, _input_second_moment(cli))
    assert prediction is not None
    if prediction.layers:
        console.print(signal_table(prediction))
    _print_line(console, "signal", describe_span(prediction))
    _print_line(console, "", f"logits of size {prediction.logits:.2g} at the start")


@torch.no_grad()
def _input_second_moment(cli: BenchCLI) -> float:
    """Returns the mean square of the encoded training inputs; weights that depend on the data get it first."""
    mlp, part = cli.model.model, cli.datamodule.part("train")
    rows = slice(None, None, max(1, part.rows // INIT_ROWS))
    numeric, categorical = part.numeric[rows], None if part.categorical is None else part.categorical[rows]
    if cli.model.init == "lsuv":
        lsuv_(mlp, numeric, categorical)  # as the first step of a fit does
    training = mlp.training
    mlp.eval()
    encoded = mlp.encode(numeric, categorical)  # (B, H_0)
    mlp.train(training)
    return float(encoded.double().square().mean())


def signal_table(prediction: Prediction) -> Table:
    """Lays out the predicted sizes, a line per hidden layer.

    The gradient is that of the loss by z, relative to the last hidden layer's; its factor is what passing the layer
    above does to its norm.
    """
    table = Table(box=None, pad_edge=False, header_style="bold")
    table.add_column("predicted", no_wrap=True)
    for name in ("RMS of z", "RMS of a", "gradient", "× per layer"):
        table.add_column(name, justify="right", no_wrap=True)
    for index, layer in enumerate(prediction.layers, start=1):
        numbers = (layer.preactivation, layer.activation, layer.gradient, math.sqrt(layer.chi))
        cells = [f"{number:.3g}" if math.isfinite(number) else "–" for number in numbers]
        table.add_row(f"hidden {index}", *cells)
    return table


def describe_span(prediction: Prediction) -> str:
    """Says in a line what becomes of the gradient over the depth.

    >>> describe_span(Prediction(layers=(), logits=0.6))
    'no hidden layer'
    """
    span, depth = prediction.span, len(prediction.layers)
    if depth < 2:
        return "one hidden layer: no depth for a gradient to vanish over" if depth else "no hidden layer"
    if math.isnan(span):
        return "no gradient gets through the last hidden layer: its units are dead"
    relation = f"gradient of layer 1 is 10^{span:.1f} of layer {depth}'s"
    if abs(span) <= DECADES:
        return f"{relation}: it keeps its size"
    return f"{'vanishing' if span < 0 else 'exploding'}: {relation}"


def _print_line(console: Console, head: str, words: str) -> None:
    console.print(Text(f"{head:<8}", style="bold") + Text(printable(words), style="not bold"), soft_wrap=True)


def _table(rows: list[LayerRow], parameters: int, flops: int) -> Table:
    table = Table(box=None, pad_edge=False, show_footer=True, header_style="bold", footer_style="bold")
    table.add_column("layer", "total", no_wrap=True)
    table.add_column("in → out", no_wrap=True)
    table.add_column("then", no_wrap=True, overflow="ellipsis")
    table.add_column("parameters", f"{parameters:,}", justify="right", no_wrap=True)
    table.add_column("FLOPs/row", f"{flops:,}", justify="right", no_wrap=True)
    for row in rows:
        table.add_row(row.name, row.shape, Text(printable(row.parts)), f"{row.parameters:,}", f"{row.flops:,}")
    return table


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _shape(linear: nn.Linear) -> str:
    return f"{linear.in_features} → {linear.out_features}"


def _flops(linear: nn.Linear) -> int:
    return (2 * linear.in_features + (linear.bias is not None)) * linear.out_features


def _bytes(count: int) -> str:
    return f"{_scaled(count, 1024)}{'iB' if count >= 1024 else 'B'}"


def _scaled(count: float, base: int) -> str:
    """Writes a count with three digits and a prefix.

    >>> _scaled(270_400_000, 1000), _scaled(800, 1000), _scaled(2048, 1024)
    ('270 M', '800 ', '2 K')
    """
    power = 0
    while count >= base and power < len("KMGT"):
        count, power = count / base, power + 1
    prefix = ("", "K" if base == 1024 else "k", "M", "G", "T")[power]
    return f"{count:.0f} {prefix}" if count >= 100 else f"{count:.3g} {prefix}"
