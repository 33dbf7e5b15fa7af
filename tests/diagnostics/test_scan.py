"""The order of the scan, and how it names what lies outside the bench's own data and network."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.plugins.precision import MixedPrecision, Precision
from torch import Tensor, nn

from mlp_lab import MLP
from mlp_lab.data.loader import Batch
from mlp_lab.diagnostics.scan import NonFinite, first_nonfinite, first_value

NAN, INF = float("nan"), float("inf")


class Own(L.LightningModule):
    """A user's own module, which holds an MLP and something else."""

    def __init__(self, **settings: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.before = nn.Linear(2, 2)
        self.net = MLP(6, 3, **{"depth": 2, "width": 5, **settings})


def trainer(precision: Precision | None = None) -> Any:
    return SimpleNamespace(precision_plugin=precision or Precision(), train_dataloader=None, datamodule=None)


def scan(module: L.LightningModule, batch: Any, loss: Tensor | None = None, **settings: Any) -> NonFinite | None:
    return first_nonfinite(trainer(**settings), module, [(0, batch)], step=3, loss=loss)


def poison(tensor: Tensor, value: float = NAN) -> None:
    with torch.no_grad():
        tensor.view(-1)[0] = value


def test_the_first_in_causal_order_is_named() -> None:
    """Everything is bad; what comes first is mended, one by one, and the next is named."""
    module = Own(norm="batch")
    x, loss = torch.randn(4, 6), torch.tensor(NAN)
    for parameter in module.parameters():
        parameter.grad = torch.full_like(parameter, NAN)
    saved = {name: value.clone() for name, value in module.state_dict().items()}
    poison(x)
    for tensor in (*module.parameters(), *module.buffers()):
        if tensor.is_floating_point():
            poison(tensor)
    named = []
    for _ in range(40):
        found = scan(module, x, loss)
        if found is None:
            break
        named.append((found.place, found.layer, found.tensor))
        if found.place == "data":
            x[0, 0] = 0.0
        elif found.place == "weight":
            module.state_dict()[found.tensor].copy_(saved[found.tensor])
        elif found.place == "loss":
            loss = torch.tensor(1.0)
        else:
            dict(module.named_parameters())[found.tensor].grad = None
    assert found is None
    weights = ["before.weight", "before.bias"]
    for block in (0, 1):
        weights += [
            f"net.blocks.{block}.{name}" for name in ("linear.weight", "linear.bias", "norm.weight", "norm.bias")
        ]
    weights += ["net.head.weight", "net.head.bias"]
    statistics = [f"net.blocks.{block}.norm.running_{name}" for block in (0, 1) for name in ("mean", "var")]
    assert named[0] == ("data", None, "batch")
    assert [name for place, _, name in named if place == "weight"] == weights + statistics
    assert [name for place, _, name in named if place == "gradient"] == weights[::-1]
    assert [place for place, _, _ in named] == sorted(
        (place for place, _, _ in named), key=["data", "weight", "activation", "loss", "gradient"].index
    )
    layers = dict(zip(weights, [None] * 2 + [1] * 4 + [2] * 4 + [3] * 2, strict=True))
    assert all(
        layer == layers[name] for place, layer, name in named if place in ("weight", "gradient") and name in layers
    )


def test_the_forward_pass_is_repeated_in_its_precision_and_leaves_no_trace() -> None:
    module = Own(norm="batch", dropout=0.5).train()
    with torch.no_grad():
        module.net.linears[0].weight.mul_(1e5)  # fine in float32, beyond float16's 65,504
    x = torch.rand(4, 6) + 1
    before = {name: value.clone() for name, value in module.state_dict().items()}
    state = torch.get_rng_state()
    assert scan(module, x) is None
    half = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))
    found = scan(module, x, precision=half)
    assert found is not None
    assert (found.place, found.layer, found.tensor) == ("activation", 1, "h")
    assert torch.equal(torch.get_rng_state(), state)
    for name, value in module.state_dict().items():
        assert torch.equal(value, before[name]), name


@pytest.mark.parametrize(
    ("place", "layer", "tensor"), [(0, 1, "z"), (1, 2, "z"), (2, 3, "logits")], ids=["first", "second", "head"]
)
def test_the_layer_whose_product_overflows_is_named(place: int, layer: int, tensor: str) -> None:
    module = Own()
    with torch.no_grad():
        module.net.linears[place].weight.fill_(3e38)
    found = scan(module, Batch(torch.full((4, 6), 2.0), None, None, 4))
    assert found == NonFinite(step=3, place="activation", layer=layer, tensor=tensor, value="inf")


@pytest.mark.parametrize(
    ("batch", "tensor", "row", "column"),
    [
        (lambda x: x, "batch", 2, "4"),
        (lambda x: [x.view(4, 2, 3), torch.zeros(4)], "batch[0]", 2, "4"),
        (lambda x: {"y": torch.zeros(4, dtype=torch.long), "x": x}, "x", 2, "4"),
        (lambda x: Batch(torch.zeros(4, 6), None, x, 4), "target", 2, "4"),
        (lambda x: (torch.zeros(4, 6), x[:, 4]), "batch[1]", 2, None),
    ],
    ids=["tensor", "images", "dict", "target", "vector"],
)
def test_rows_and_columns_of_foreign_batches_are_counted_in_the_batch(
    batch: Any, tensor: str, row: int, column: str | None
) -> None:
    x = torch.zeros(4, 6)
    x[2, 4] = INF
    found = scan(Own(), batch(x))
    assert found == NonFinite(step=3, place="data", tensor=tensor, row=row, column=column, value="inf")
    assert str(found).startswith("step 3: inf in the data in row 2 of the batch")


def test_a_foreign_module_and_batch_that_do_not_fit_are_no_error() -> None:
    assert scan(Own(), [torch.zeros(4, 9), None]) is None
    assert scan(Own(), None) is None
    assert scan(L.LightningModule(), torch.zeros(2, 2)) is None


def test_values() -> None:
    assert [first_value(torch.tensor([1.0, value])) for value in (NAN, INF, -INF)] == ["nan", "inf", "-inf"]
    assert first_value(torch.tensor([INF, NAN])) == "nan"


def test_the_line_says_what_and_where() -> None:
    assert str(NonFinite(step=5, place="gradient", layer=2, tensor="blocks.1.linear.weight")) == (
        "step 5: NaN in the gradient of layer 2 (blocks.1.linear.weight)"
    )
    assert str(NonFinite(step=5, place="loss", tensor="loss", value="inf")) == "step 5: inf in the loss"
