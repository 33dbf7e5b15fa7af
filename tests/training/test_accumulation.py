"""Accumulated steps against a plain loop over windows of rows, in float64."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor
from torch.nn.functional import cross_entropy

from mlp_lab.data.loader import Batch
from mlp_lab.data.tabular import TabularDataModule
from mlp_lab.population.module import PopulationModule
from mlp_lab.training.accumulation import loss_divisor, window_weight
from mlp_lab.training.module import MLPModule
from mlp_lab.training.optimizers import OptimizerConfig

EPOCHS = 2
SGD = OptimizerConfig(name="sgd", lr=0.1)


def digits(batch_size: int = 100) -> TabularDataModule:
    """1,437 training rows: by 100, the last of 15 batches has 37."""
    data = TabularDataModule(dataset="digits", batch_size=batch_size, seed=0)
    data.prepare_data()
    data.setup("fit")
    return data


def build(data: TabularDataModule, **settings: Any) -> MLPModule:
    torch.manual_seed(0)
    return MLPModule(data.spec_dict, depth=1, width=16, optimizer=SGD, **settings)


def fit(module: L.LightningModule, data: TabularDataModule, **settings: Any) -> L.Trainer:
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
    trainer = L.Trainer(max_epochs=EPOCHS, precision="64-true", enable_model_summary=False, **{**quiet, **settings})
    trainer.fit(module, data)
    return trainer


def plain_loop(module: MLPModule, data: TabularDataModule, *, size: int, batches: int, clip: float = 0.0) -> None:
    """Takes one step of SGD per window of `size` batches: that of the mean loss over the rows of the window."""
    loader, mlp = data.train_dataloader(), module.model.double()
    for _ in range(EPOCHS):
        epoch = list(loader)[:batches]
        for first in range(0, len(epoch), size):
            window = epoch[first : first + size]
            numeric = torch.cat([batch.numeric for batch in window]).double()
            loss = cross_entropy(mlp(numeric), torch.cat([batch.target for batch in window]))
            gradients = torch.autograd.grad(loss, list(mlp.parameters()))
            length = float(torch.cat([gradient.flatten() for gradient in gradients]).norm())
            shrink = min(1.0, clip / (length + 1e-6)) if clip else 1.0
            with torch.no_grad():
                for parameter, gradient in zip(mlp.parameters(), gradients, strict=True):
                    parameter -= SGD.lr * shrink * gradient


def weights(module: MLPModule) -> Tensor:
    return torch.cat([parameter.detach().flatten().double() for parameter in module.model.parameters()])


CASES: dict[str, dict[str, Any]] = {
    "a last window of two full batches": {"accumulate_grad_batches": 4, "limit_train_batches": 14},
    "a last window whose last batch is smaller": {"accumulate_grad_batches": 4},
    "full windows whose last batch is smaller": {"accumulate_grad_batches": 5},
    "a last window of one smaller batch": {"accumulate_grad_batches": 7},
    "one window larger than the epoch": {"accumulate_grad_batches": 40},
    "clipping": {"accumulate_grad_batches": 4, "gradient_clip_val": 0.5},
}


@pytest.mark.parametrize("case", CASES)
def test_every_accumulated_step_is_that_of_the_mean_over_the_rows_of_its_window(case: str) -> None:
    settings, data = CASES[case], digits()
    module, twin = build(data), build(data)
    fit(module, data, **settings)
    size, batches = settings["accumulate_grad_batches"], settings.get("limit_train_batches", 15)
    plain_loop(twin, digits(), size=size, batches=batches, clip=settings.get("gradient_clip_val", 0.0))
    assert not torch.allclose(weights(twin), weights(build(data)), atol=1e-3)
    torch.testing.assert_close(weights(module), weights(twin), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("size", [4, 5])
def test_population_accumulates_as_its_members_do_alone(size: int) -> None:
    data = digits()
    population = PopulationModule([build(data), build(data)])
    fit(population, data, accumulate_grad_batches=size)
    alone = build(data)
    fit(alone, digits(), accumulate_grad_batches=size)
    for network in population.networks():
        flat = torch.cat([parameter.detach().flatten() for parameter in network.parameters()])
        torch.testing.assert_close(flat, weights(alone), rtol=1e-10, atol=1e-12)


def test_windows_of_equal_batches_take_the_steps_of_lightning_to_the_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    data = digits()
    module, other = build(data, dropout=0.2), build(data, dropout=0.2)
    fit(module, data, accumulate_grad_batches=7, limit_train_batches=14)
    monkeypatch.setattr("mlp_lab.training.straight.window_weight", lambda *_: 1.0)
    fit(other, digits(), accumulate_grad_batches=7, limit_train_batches=14)
    assert torch.equal(weights(module), weights(other))


@pytest.mark.parametrize(("batches", "weights_of_last"), [(6, 2.0), (math.inf, 1.0)])
def test_window_weight_of_another_loader_takes_its_batches_as_equal(batches: float, weights_of_last: float) -> None:
    trainer: Any = SimpleNamespace(accumulate_grad_batches=4, num_training_batches=batches, train_dataloader=[])
    batch = Batch(torch.zeros(8, 2), None, None, 8)
    assert [window_weight(trainer, batch, index) for index in range(6)] == [1.0] * 4 + [weights_of_last] * 2


def test_loss_divisor_is_that_of_lightning_over_the_weight_of_the_batch() -> None:
    trainer: Any = SimpleNamespace(accumulate_grad_batches=4)
    module = build(digits())
    module.window_weight = 2.0
    assert loss_divisor(trainer, module) == 2
    assert loss_divisor(trainer, L.LightningModule()) == 4
