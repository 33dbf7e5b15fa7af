"""`summary`: the model of a config, before any training."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple, cast

from rich.console import Console
from rich.table import Table
from rich.text import Text
from torch import nn

from mlp_lab.model.mlp import MLP, Block

if TYPE_CHECKING:
    from mlp_lab.cli.bench import BenchCLI

BYTES = 4  # of a float32
COPIES = {"sgd": 2, "rmsprop": 3, "adam": 4, "adamw": 4, "muon": 3}  # weights, gradients, optimizer states


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
    for the bias. What works on single units (norms, activations) is left out: it grows with m alone.

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
    """Prints the layers with shapes, parameters and FLOPs, and the memory that training will take."""
    console = console or Console(highlight=False)
    module, spec, batch = cli.model, cli.datamodule.spec, cli.datamodule.batch_size
    mlp, name = module.model, module.optimizer_config.name
    rows = layer_rows(mlp, activation=module.hparams["activation"], norm=module.hparams["norm"])
    parameters, flops = (sum(row.parameters for row in rows), sum(row.flops for row in rows))
    console.print(_table(rows, parameters, flops))
    states = _mega(BYTES * parameters * COPIES[name])
    activations = _mega(BYTES * batch * (sum(3 * width for width in mlp.widths) + mlp.linears[0].in_features))
    for head, words in (
        ("task", f"{spec.task}, loss {module.train_loss.loss.name}"),
        ("memory", f"{states} for weights, gradients and the state of {name}"),
        ("", f"about {activations} for activations at batch size {batch:,}"),
        ("step", f"about {3 * flops * batch / 1e6:,.1f} MFLOP: forward, and twice that backward"),
    ):
        console.print(Text(f"{head:<8}", style="bold") + Text(words, style="not bold"), soft_wrap=True)


def _table(rows: list[LayerRow], parameters: int, flops: int) -> Table:
    table = Table(box=None, pad_edge=False, show_footer=True, header_style="bold", footer_style="bold")
    table.add_column("layer", "total", no_wrap=True)
    table.add_column("in → out", no_wrap=True)
    table.add_column("then", no_wrap=True, overflow="ellipsis")
    table.add_column("parameters", f"{parameters:,}", justify="right", no_wrap=True)
    table.add_column("FLOPs/row", f"{flops:,}", justify="right", no_wrap=True)
    for row in rows:
        table.add_row(row.name, row.shape, row.parts, f"{row.parameters:,}", f"{row.flops:,}")
    return table


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def _shape(linear: nn.Linear) -> str:
    return f"{linear.in_features} → {linear.out_features}"


def _flops(linear: nn.Linear) -> int:
    return (2 * linear.in_features + 1) * linear.out_features


def _mega(count: int) -> str:
    return f"{count / 2**20:,.2f} MiB"
