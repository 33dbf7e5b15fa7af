"""NaN and infinities planted everywhere: the step stops, the origin is named, the weights stay good."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor, nn

from mlp_lab import MLPModule, TabularDataModule
from mlp_lab.data.module import Part
from mlp_lab.diagnostics.numerics import KEY, FiniteCheck, NonFinite, NonFiniteError
from mlp_lab.training.optimizers import OptimizerConfig

NAN, INF = float("nan"), float("inf")
BATCH = 32
Plant = Callable[[L.Trainer, MLPModule, int], None]


class Forward(L.Callback):
    """Forwards the hooks, and nothing else, as `Diagnostics` does."""

    def __init__(self, check: FiniteCheck) -> None:
        self.check = check

    def on_train_start(self, trainer, pl_module):
        self.check.on_train_start(trainer, pl_module)

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.check.on_train_batch_start(trainer, pl_module, batch, batch_idx)

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.check.on_before_optimizer_step(trainer, pl_module, optimizer)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.check.on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)

    def on_train_epoch_end(self, trainer, pl_module):
        self.check.read(trainer, pl_module)

    def on_train_end(self, trainer, pl_module):
        self.check.on_train_end(trainer, pl_module)

    def on_exception(self, trainer, pl_module, exception):
        self.check.on_exception(trainer, pl_module, exception)


class Planter(L.Callback):
    """Plants something before the step of a batch, or between its gradients and the optimizer."""

    def __init__(self, at: int, start: Plant | None = None, gradients: Plant | None = None, end: Plant | None = None):
        self.at, self.start, self.gradients, self.end = at, start, gradients, end
        self.good: dict[str, Tensor] = {}

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if trainer.global_step == self.at - 1 and not self.good:
            self.good = {name: value.clone() for name, value in pl_module.state_dict().items()}
            if self.start:
                self.start(trainer, pl_module, batch_idx)

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        if trainer.global_step == self.at - 1 and self.gradients:
            self.gradients(trainer, pl_module, 0)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == self.at and self.end:
            self.end(trainer, pl_module, batch_idx)


@pytest.fixture
def data() -> TabularDataModule:
    return TabularDataModule(dataset="digits", batch_size=BATCH, verbose=False)


def fit(
    data: TabularDataModule,
    *callbacks: L.Callback,
    check: FiniteCheck | None = None,
    epochs: int = 2,
    optimizer: OptimizerConfig = OptimizerConfig(name="adam", lr=1e-3),  # noqa: B008
    trainer: dict[str, Any] | None = None,
    **model: Any,
) -> tuple[NonFinite | None, MLPModule]:
    torch.manual_seed(0)
    check = check or FiniteCheck()
    module = MLPModule(data.spec_dict, **{"depth": 3, "width": 16, **model}, optimizer=optimizer)
    settings = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
    settings |= {"max_epochs": epochs, "enable_model_summary": False, "limit_val_batches": 0, **(trainer or {})}
    runner = L.Trainer(callbacks=[*callbacks, Forward(check)], **settings)
    raised: list[NonFiniteError] = []
    try:
        runner.fit(module, data)
    except NonFiniteError as error:
        raised.append(error)
    assert [error.found for error in raised] == [check.found] * len(raised)
    assert [str(error) for error in raised] == ([] if check.found is None else [str(check.found)])
    assert not any("found_inf" in optimizer.__dict__ for optimizer in runner.optimizers)
    assert not check._batches
    return check.found, module


def part(data: TabularDataModule) -> Part:
    return data.part("train")


@pytest.mark.parametrize("deferred", [False, True])
@pytest.mark.parametrize(("row", "column", "value"), [(700, 5, NAN), (0, 63, INF), (1436, 0, -INF)])
def test_a_bad_cell_is_named_by_its_row_and_column(
    data: TabularDataModule, row: int, column: int, value: float, deferred: bool
) -> None:
    cell = part(data)
    assert cell.ids is not None
    cell.numeric[row, column] = value
    found, module = fit(data, check=FiniteCheck(deferred=deferred))
    assert found is not None
    assert (found.place, found.layer, found.value) == ("data", None, str(value))
    assert found.row == int(cell.ids[row])
    assert found.row_in_table
    assert found.column == data.spec.numeric[column]
    assert 1 <= found.step <= 45  # the epoch visits each row once
    assert str(found) == (
        f"step {found.step}: {'NaN' if value != value else value} in the data in row {found.row} of the table, "
        f"column {found.column!r}"
    )
    assert all(parameter.isfinite().all() for parameter in module.parameters())


def set_entry(tensor: Tensor, value: float) -> None:
    with torch.no_grad():
        tensor.view(-1)[1] = value


@pytest.mark.parametrize("value", [NAN, INF, -INF])
@pytest.mark.parametrize("layer", [1, 3, 4])
def test_a_bad_weight_before_a_step_is_named(data: TabularDataModule, layer: int, value: float) -> None:
    def plant(trainer: L.Trainer, module: MLPModule, index: int) -> None:
        set_entry(module.model.linears[layer - 1].weight, value)

    found, _ = fit(data, Planter(7, start=plant))
    assert found is not None
    name = "head.weight" if layer == 4 else f"blocks.{layer - 1}.linear.weight"
    assert found == NonFinite(step=7, place="weight", layer=layer, tensor=name, value=str(value))
    assert str(found).startswith(f"step 7: {'NaN' if value != value else value} in the weight of layer {layer} (")


@pytest.mark.parametrize("value", [NAN, INF])
def test_a_weight_that_a_step_spoils_stops_that_step(data: TabularDataModule, value: float) -> None:
    found, _ = fit(data, Planter(7, end=lambda t, module, i: set_entry(module.model.linears[1].bias, value)))
    assert found == NonFinite(step=7, place="weight", layer=2, tensor="blocks.1.linear.bias", value=str(value))


@pytest.mark.parametrize("deferred", [False, True])
def test_a_bad_gradient_never_reaches_the_weights(data: TabularDataModule, deferred: bool) -> None:
    def plant(trainer: L.Trainer, module: MLPModule, index: int) -> None:
        for layer in (0, 2):  # the one nearer to the loss comes first in the backward pass
            set_entry(module.model.linears[layer].weight.grad, NAN)

    planter = Planter(9, gradients=plant)
    found, module = fit(data, planter, check=FiniteCheck(deferred=deferred))
    assert found is not None
    assert (found.step, found.place) == (9, "gradient")
    if not deferred:  # by the time of the reading the gradients are another step's
        assert (found.layer, found.tensor) == (3, "blocks.2.linear.weight")
    for name, value in planter.good.items():
        assert torch.equal(value, module.state_dict()[name]), name


def test_an_optimizer_without_a_guard_is_read_at_once(data: TabularDataModule) -> None:
    planter = Planter(9, gradients=lambda t, module, i: set_entry(module.model.linears[0].weight.grad, INF))
    optimizer = OptimizerConfig(name="rmsprop", lr=1e-3)
    found, module = fit(data, planter, check=FiniteCheck(deferred=True), optimizer=optimizer)
    assert found == NonFinite(step=9, place="gradient", layer=1, tensor="blocks.0.linear.weight", value="inf")
    assert all(torch.equal(value, module.state_dict()[name]) for name, value in planter.good.items())


def test_an_activation_that_overflows_is_named(data: TabularDataModule) -> None:
    def plant(trainer: L.Trainer, module: MLPModule, index: int) -> None:
        with torch.no_grad():  # finite weights, whose product is not
            module.model.linears[1].weight.mul_(1e30)
            module.model.linears[2].weight.mul_(1e30)

    found, _ = fit(data, Planter(4, start=plant))
    assert found is not None
    assert (found.step, found.place, found.layer, found.tensor) == (4, "activation", 3, "z")


def test_a_loss_with_finite_gradients_stops_the_step(data: TabularDataModule) -> None:
    class Spoilt(nn.Module):
        def __init__(self, loss: nn.Module) -> None:
            super().__init__()
            self.loss, self.calls = loss, 0

        def forward(self, *args: Tensor) -> Tensor:
            self.calls += 1
            return self.loss(*args) + (INF if self.calls == 6 else 0.0)  # a constant has no gradient

    def plant(trainer: L.Trainer, module: MLPModule, index: int) -> None:
        module.train_loss = Spoilt(module.train_loss)

    found, _ = fit(data, Planter(1, start=plant))
    assert found == NonFinite(step=6, place="loss", tensor="loss", value="inf")


def test_a_bad_micro_batch_is_found_under_accumulation(data: TabularDataModule) -> None:
    part(data).numeric[100, 7] = NAN
    found, _ = fit(data, trainer={"accumulate_grad_batches": 4})
    assert found is not None
    assert (found.place, found.column) == ("data", data.spec.numeric[7])
    assert found.row == int(part(data).ids[100])
    assert found.step <= 12


@pytest.mark.parametrize("deferred", [False, True])
@pytest.mark.parametrize("name", ["sgd", "adam", "adamw", "rmsprop", "muon"])
def test_a_healthy_run_is_the_same_to_the_bit(data: TabularDataModule, name: str, deferred: bool) -> None:
    optimizer = OptimizerConfig(name=name, lr=1e-2)
    check, few = FiniteCheck(read_every=7, deferred=deferred), {"limit_train_batches": 15}
    runs = [fit(data, epochs=1, optimizer=optimizer, check=check, trainer=few, norm="batch")]
    settings = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
    settings |= {"max_epochs": 1, "enable_model_summary": False, "limit_val_batches": 0, **few}
    torch.manual_seed(0)
    plain = MLPModule(data.spec_dict, depth=3, width=16, optimizer=optimizer, norm="batch")
    L.Trainer(**settings).fit(plain, data)
    assert runs[0][0] is None
    for one, other in zip(runs[0][1].state_dict().values(), plain.state_dict().values(), strict=True):
        assert torch.equal(one, other)


def test_the_flag_is_logged_under_its_key() -> None:
    check = FiniteCheck()
    assert check.values() == {KEY: 0.0}
    check.found = NonFinite(step=1, place="loss")
    assert check.values() == {KEY: 1.0}
