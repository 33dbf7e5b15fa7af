"""Names the first tensor of a training step that is not finite, in the order in which one follows from another.

A NaN spreads: one bad cell of a table makes every gradient of its step NaN. So the scan looks where it could have
begun: at the data, then the weights, then the activations from the input to the logits (the step's forward pass is
repeated), the loss, and the gradients from the logits back to the input. The first that is not finite is the origin.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, NamedTuple, get_args

import lightning as L
import torch
from torch import Tensor, nn

from mlp_lab.data.loader import Batch, TensorLoader, epoch_order, rank_bounds
from mlp_lab.data.module import TensorDataModule
from mlp_lab.model.mlp import MLP, Block
from mlp_lab.training.finite import is_finite

Place = Literal["data", "weight", "activation", "loss", "gradient"]
PLACES: tuple[str, ...] = get_args(Place)  # in causal order


@dataclass(frozen=True, kw_only=True)
class NonFinite:
    """Where a NaN or an infinity was first seen."""

    step: int
    """The optimizer step that was being taken, from 1."""
    place: Place
    """What kind of tensor it is."""
    layer: int | None = None
    """The linear layer it belongs to, from 1 at the input; the head is the last; None outside them."""
    tensor: str = ""
    """The tensor's name: `numeric`, `blocks.1.linear.weight`, `z`, `logits` and so on."""
    row: int | None = None
    """Data only: the row's number in the table, from 0; where that is unknown, its number in the batch."""
    column: str | None = None
    """Data only: the column's name, or its number from 0 where it has none."""
    value: str = "nan"
    """nan, inf or -inf."""
    row_in_table: bool = False
    """Whether `row` counts the rows of the table, not of the batch."""

    def __str__(self) -> str:
        """Returns one line that says what was found, and where."""
        value = "NaN" if self.value == "nan" else self.value
        if self.place == "data":
            row = "" if self.row is None else f" in row {self.row} of the {'table' if self.row_in_table else 'batch'}"
            column = "" if self.column is None else f", column {self.column!r}"
            return f"step {self.step}: {value} in the data{row}{column}"
        where = f" of layer {self.layer}" if self.layer is not None else ""
        name = f" ({self.tensor})" if self.tensor and self.tensor != self.place else ""
        return f"step {self.step}: {value} in the {self.place}{where}{name}"


class Candidate(NamedTuple):
    """A tensor that may be where it began."""

    place: Place
    layer: int | None
    name: str
    tensor: Tensor


def first_nonfinite(
    trainer: L.Trainer, module: L.LightningModule, batches: Sequence[tuple[int, Any]], *, step: int, loss: Tensor | None
) -> NonFinite | None:
    """Scans a step in causal order.

    Args:
        trainer: The trainer that takes the step.
        module: Its module; activations are looked at where it holds an `MLP`.
        batches: (index in the epoch, batch) of the micro-batches of the step.
        step: The optimizer step that was being taken, from 1.
        loss: The loss of the last micro-batch, or None.

    Returns:
        The first tensor that is not finite, or None where all of them are.
    """
    for index, batch in batches:
        if (found := _in_data(trainer, index, batch, step)) is not None:
            return found
    mlp = next((part for part in module.modules() if isinstance(part, MLP)), None)
    names = _layers(module, mlp)
    for candidate in _candidates(trainer, module, mlp, [batch for _, batch in batches], loss, names):
        if not is_finite(candidate.tensor):
            place, layer, name, tensor = candidate
            return NonFinite(step=step, place=place, layer=layer, tensor=name, value=first_value(tensor))
    return None


def first_value(tensor: Tensor) -> str:
    """Returns `nan` where the tensor holds one, else its first infinity.

    >>> first_value(torch.tensor([1.0, float("-inf")]))
    '-inf'
    """
    if tensor.isnan().any():
        return "nan"
    bad = tensor[~tensor.isfinite()]
    return str(bad[0].item()) if len(bad) else "nan"


# ---- data -----------------------------------------------------------------------------------------------------------


def _in_data(trainer: L.Trainer, index: int, batch: Any, step: int) -> NonFinite | None:
    for name, tensor in _tensors(batch):
        if is_finite(tensor):
            continue
        place = (~tensor.isfinite()).nonzero()[0].tolist()
        row, rest = (place[0], place[1:]) if place else (None, [])
        column = _flat(rest, tensor.shape[1:]) if rest else None
        known = _table_row(trainer, index, row) if row is not None else None
        return NonFinite(
            step=step,
            place="data",
            tensor=name,
            row=row if known is None else known,
            row_in_table=known is not None,
            column=_column_name(trainer, name, column),
            value=first_value(tensor),
        )
    return None


def _tensors(batch: Any, name: str = "batch") -> Iterator[tuple[str, Tensor]]:
    """Yields the tensors of any nest of tuples, lists and dicts with a name for each."""
    if isinstance(batch, Tensor):
        yield name, batch
    elif isinstance(batch, Batch):
        for field, value in zip(batch._fields, batch, strict=True):
            yield from _tensors(value, field)
    elif isinstance(batch, dict):
        for key, value in batch.items():
            yield from _tensors(value, str(key))
    elif isinstance(batch, list | tuple):
        for number, value in enumerate(batch):
            yield from _tensors(value, f"{name}[{number}]")


def _flat(position: Sequence[int], shape: Sequence[int]) -> int:
    """Returns the place in a flattened row: a pixel's number in its image.

    >>> _flat([1, 2], [28, 28])
    30
    """
    flat = 0
    for index, size in zip(position, shape, strict=True):
        flat = flat * size + index
    return flat


def _column_name(trainer: L.Trainer, tensor: str, column: int | None) -> str | None:
    data = getattr(trainer, "datamodule", None)
    if isinstance(data, TensorDataModule):
        names = {"numeric": data.spec.numeric, "target": data.spec.targets}.get(tensor, ())
        place = column or 0
        if place < len(names) and (column is not None or tensor == "target"):
            return names[place]
    return None if column is None else str(column)


def _table_row(trainer: L.Trainer, index: int, row: int) -> int | None:
    """Returns the number in the source of a row of the epoch's batch `index`, or None with a loader of another kind."""
    loader, data = trainer.train_dataloader, getattr(trainer, "datamodule", None)
    if not (isinstance(loader, TensorLoader) and isinstance(data, TensorDataModule)):
        return None
    first = index * loader.batch_size
    last = min(first + loader.batch_size, loader.rows)
    first, last = rank_bounds(first, last, rank=loader.rank, world_size=loader.world_size)
    number = first + row
    if number >= last:
        return None
    if loader.shuffle:
        epoch = int(loader.state_dict()["epoch"]) if loader.reshuffle else 0
        number = int(epoch_order(loader.rows, seed=loader.seed, epoch=epoch)[number])
    ids = data.part("train").ids
    return number if ids is None else int(ids[number])


# ---- the network ----------------------------------------------------------------------------------------------------


def _layers(module: nn.Module, mlp: MLP | None) -> dict[int, int]:
    """Returns the layer of every parameter and buffer of the blocks and the head, by identity."""
    layers: dict[int, int] = {}
    for number, part in enumerate([*mlp.blocks, mlp.head] if mlp is not None else [], start=1):
        layers |= {id(tensor): number for tensor in (*part.parameters(), *part.buffers())}
    return layers


def _candidates(
    trainer: L.Trainer,
    module: L.LightningModule,
    mlp: MLP | None,
    batches: Sequence[Any],
    loss: Tensor | None,
    layers: dict[int, int],
) -> Iterator[Candidate]:
    """Yields the tensors of a step in causal order, from its weights to its gradients."""
    for name, tensor in (*module.named_parameters(), *module.named_buffers()):
        yield Candidate("weight", layers.get(id(tensor)), name.removeprefix("model."), tensor.detach())
    if mlp is not None:
        for batch in batches:
            with torch.no_grad(), trainer.precision_plugin.forward_context(), _untouched(mlp):
                yield from _activations(mlp, batch)
    if loss is not None:
        yield Candidate("loss", None, "loss", loss.detach())
    for name, parameter in reversed(list(module.named_parameters())):
        if parameter.grad is not None:
            yield Candidate("gradient", layers.get(id(parameter)), name.removeprefix("model."), parameter.grad)


def _activations(mlp: MLP, batch: Any) -> Iterator[Candidate]:
    """Yields what a forward pass of the network computes, from the encoded input to the logits."""
    inputs = _inputs(mlp, batch)
    if inputs is None:
        return
    x = mlp.encode(*inputs)  # (B, H_0)
    yield Candidate("activation", None, "encoded input", x)
    for layer, block in enumerate(mlp.blocks, start=1):
        assert isinstance(block, Block)
        if block.norm is not None:
            yield Candidate("activation", layer, "h", block.linear(x))  # before the norm
        z, a, x = block.steps(x)
        for name, tensor in (("z", z), ("a", a), ("output", x)):
            yield Candidate("activation", layer, name, tensor)
    yield Candidate("activation", mlp.depth + 1, "logits", mlp.head(x))


def _inputs(mlp: MLP, batch: Any) -> tuple[Tensor, Tensor | None] | None:
    """Returns what the network takes; of a foreign batch, its first tensor where that fits."""
    if isinstance(batch, Batch):
        return batch.numeric, batch.categorical
    tensor = next((one for _, one in _tensors(batch)), None)
    fits = tensor is not None and tensor.dim() >= 2 and math.prod(tensor.shape[1:]) == mlp.in_features
    return (tensor, None) if tensor is not None and fits and tensor.is_floating_point() else None


@contextmanager
def _untouched(mlp: MLP) -> Iterator[None]:
    """Gives the statistics of norms, the counters of dropout and the random generators back as they were."""
    saved = {name: value.clone() if isinstance(value, Tensor) else value for name, value in mlp.state_dict().items()}
    devices = [parameter.device for parameter in mlp.parameters() if parameter.device.type == "cuda"][:1]
    with torch.random.fork_rng(devices):
        try:
            yield
        finally:
            mlp.load_state_dict(saved)
