"""Facts of a run, read off a real fit, against computations of their own."""

import math
from typing import Any

import lightning as L
import pytest
import torch

from mlp_lab import MLPModule, TabularDataModule
from mlp_lab.diagnostics.evidence import Facts
from mlp_lab.diagnostics.facts import collect_facts
from mlp_lab.training.optimizers import OptimizerConfig


class Collect(L.Callback):
    facts = Facts()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        state = torch.get_rng_state()
        self.facts = collect_facts(trainer, pl_module, pl_module.model)
        assert torch.equal(state, torch.get_rng_state())


@pytest.fixture
def collected(tmp_path):
    def collect(change=lambda module: None, data: dict[str, Any] | None = None, **settings: Any) -> Facts:
        module_data = TabularDataModule(dataset="digits", batch_size=100, seed=0, verbose=False, **(data or {}))
        torch.manual_seed(0)
        module = MLPModule(module_data.spec_dict, **settings)
        change(module)
        callback = Collect()
        trainer = L.Trainer(
            max_epochs=3,
            limit_train_batches=4,
            accelerator="cpu",
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            default_root_dir=tmp_path,
            callbacks=[callback],
        )
        trainer.fit(module, datamodule=module_data)
        return callback.facts

    return collect


def test_the_run_as_it_was_configured(collected):
    optimizer = OptimizerConfig(name="sgd", lr=0.3, momentum=0.5, weight_decay=0.01)
    facts = collected(
        depth=3, width=16, activation="gelu", norm="layer", residual=True, dropout=0.2, optimizer=optimizer
    )
    assert (facts.depth, facts.widths, facts.activation, facts.norm) == (3, (16, 16, 16), "gelu", "layer")
    assert (facts.residual, facts.dropout, facts.init, facts.loss) == (True, 0.2, "he", "cross_entropy")
    assert (facts.optimizer, facts.lr, facts.momentum, facts.weight_decay) == ("sgd", 0.3, 0.5, 0.01)
    assert (facts.steps_per_epoch, facts.planned_steps, facts.planned_epochs) == (4, 12, 3)
    assert (facts.batch_size, facts.training_rows, facts.classes, facts.task) == (100, 1437, 10, "multiclass")
    assert (facts.data, facts.scaling) == ("TabularDataModule", "standard")


def test_guessing_costs_the_entropy_of_the_classes(collected):
    facts = collected()
    target = TabularDataModule(dataset="digits", seed=0, verbose=False).part("train").target
    assert target is not None
    shares = torch.bincount(target).double() / len(target)
    assert facts.baseline_loss == pytest.approx(float(-(shares * shares.log()).sum()), rel=1e-6)  # float32 logits
    assert facts.majority_share == pytest.approx(float(shares.max()))
    assert facts.baseline_accuracy == pytest.approx(0.1, abs=0.03)


def test_inputs_are_measured_as_the_network_gets_them(collected):
    assert 0.9 < collected().input_rms <= 1.0  # some pixels are constant, and stay 0
    raw = collected(data={"scaling": "none"})
    assert 7 < raw.input_rms < 8.5
    assert raw.input_worst.startswith("pixel_")
    assert raw.input_worst_rms > raw.input_rms


def test_the_weights_before_the_first_step(collected):
    facts = collected(depth=2, width=200, init="zero_head")
    assert facts.weight_gains[:2] == pytest.approx([math.sqrt(2)] * 2, rel=0.05)  # 12,800 and 40,000 draws
    assert facts.weight_gains[2] == 0
    assert facts.zero_layers == (3,)
    assert facts.identical_rows == ()


def test_equal_units_and_frozen_layers_are_found(collected):
    def spoil(module: MLPModule) -> None:
        weight = module.model.linears[1].weight
        weight.data[:] = weight.data[:1].clone()
        module.model.linears[0].weight.requires_grad_(False)

    facts = collected(spoil, depth=2, width=16)
    assert facts.identical_rows == (2,)
    assert facts.frozen_layers == (1,)
