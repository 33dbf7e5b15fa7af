"""`summary`: the model of a config, before any training."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple, cast

from rich.console import Console
from rich.table import Table
from torch import nn

from mlp_lab.model.mlp import MLP, Block

if TYPE_CHECKING:
    from mlp_lab.cli.bench import BenchCLI

BYTES = 4  # of a float32
COPIES = {"sgd": 2, "rmsprop": 3, "adam": 4, "adamw": 4, "muon": 3}  # weights, gradients, optimizer states


class LayerRow(NamedTuple):
    """One line of the summary."""

    name: str
    kind: str
    shape: str  # of the output, batch first
    parameters: int
    flops: int  # of the forward pass, per sample


def layer_rows(mlp: MLP) -> list[LayerRow]:
    """Describes the network from the input to the logits.

    FLOPs count a multiply and an add apart: a layer of n inputs and m outputs takes 2·n·m and m for its bias.
    """
    rows = []
    first = mlp.linears[0].in_features
    if mlp.encoder is not None:
        rows.append(LayerRow("encoder", type(mlp.encoder).__name__, f"(B, {first})", _count(mlp.encoder), 0))
    for index, block in enumerate(cast(Iterable[Block], mlp.blocks), start=1):
        parts = [f"linear {block.linear.in_features}→{block.linear.out_features}"]
        parts += [name for name in (_norm_name(block.norm), type(block.activation).__name__) if name]
        parts += [f"dropout {block.dropout.p:g}"] if block.dropout is not None else []
        parts += ["+ skip"] if block.skip else []
        shape = f"(B, {block.linear.out_features})"
        rows.append(LayerRow(f"hidden {index}", ", ".join(parts), shape, _count(block), _flops(block.linear)))
    head = mlp.head
    kind = f"linear {head.in_features}→{head.out_features}"
    rows.append(LayerRow("head", kind, f"(B, {head.out_features})", _count(head), _flops(head)))
    return rows


def show_summary(cli: BenchCLI) -> None:
    """Prints the layers with shapes, parameters and FLOPs, and the memory that training will take."""
    mlp, data = cli.model.model, cli.datamodule
    rows = layer_rows(mlp)
    table = Table(title="model", title_justify="left", show_footer=True)
    parameters = sum(row.parameters for row in rows)
    flops = sum(row.flops for row in rows)
    table.add_column("layer", "total")
    table.add_column("what it does")
    table.add_column("output")
    table.add_column("parameters", f"{parameters:,}", justify="right")
    table.add_column("FLOPs per sample", f"{flops:,}", justify="right")
    for row in rows:
        table.add_row(row.name, row.kind, row.shape, f"{row.parameters:,}", f"{row.flops:,}")
    console = Console(highlight=False)
    console.print(table)
    name, spec, batch = cli.model.optimizer_config.name, data.spec, data.batch_size
    states = _mega(BYTES * parameters * COPIES[name])
    activations = _mega(BYTES * batch * (sum(3 * width for width in mlp.widths) + mlp.linears[0].in_features))
    console.print(f"task    {spec.task}, loss {cli.model.train_loss.loss.name}")
    console.print(f"memory  {states} for weights, gradients and the state of {name}")
    console.print(f"        about {activations} for activations at batch size {batch}")
    console.print(f"step    about {3 * flops * batch / 1e6:,.1f} MFLOP: forward, and twice that backward")


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _flops(linear: nn.Linear) -> int:
    return (2 * linear.in_features + 1) * linear.out_features


def _norm_name(norm: nn.Module | None) -> str:
    return "" if norm is None else type(norm).__name__


def _mega(count: int) -> str:
    return f"{count / 2**20:,.2f} MiB"
