"""Noise scale and sharpness at the end of an epoch: asked for, measured, resumed; and they change nothing."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch.nn.utils import parameters_to_vector
from torch.utils.data import DataLoader

from mlp_lab import Diagnostics, MLPModule, TabularDataModule
from mlp_lab.cli.main import main
from mlp_lab.diagnostics.landscape import ROWS, probe_rows
from mlp_lab.errors import UserError
from mlp_lab.training.optimizers import OptimizerConfig


def fit(groups: list[str], **settings: Any) -> tuple[L.Trainer, MLPModule, Diagnostics]:
    L.seed_everything(0, verbose=False)
    data = TabularDataModule(dataset="wine", batch_size=32, verbose=False)
    module = MLPModule(data.spec_dict, **{"depth": 1, "width": 4, "activation": "tanh", "dropout": 0.2, **settings})
    diagnostics = Diagnostics(groups=groups)
    trainer = L.Trainer(
        max_epochs=3,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[diagnostics],
    )
    trainer.fit(module, data)
    return trainer, module, diagnostics


def test_sharpness_is_the_dense_hessians_largest_eigenvalue_times_half_the_learning_rate() -> None:
    trainer, module, diagnostics = fit(["curvature"], optimizer=OptimizerConfig(name="sgd", lr=0.1))
    numeric, _, target = probe_rows(trainer, module)
    module.eval()
    parameters = dict(module.model.named_parameters())

    def loss(flat: torch.Tensor) -> torch.Tensor:
        pieces = torch.split(flat, [one.numel() for one in parameters.values()])
        named = {name: piece.view_as(one) for (name, one), piece in zip(parameters.items(), pieces, strict=True)}
        logits = torch.func.functional_call(module.model, named, (numeric,))
        return torch.nn.functional.cross_entropy(logits, target)

    flat = parameters_to_vector(parameters.values()).detach()
    top = torch.linalg.eigvalsh(torch.autograd.functional.hessian(loss, flat))[-1].item()
    values = diagnostics.evidence.epochs[-1].values
    assert values["curvature/sharpness"] == pytest.approx(top * 0.1 / 2, rel=0.01)  # the promised 1%
    assert "noise/scale" not in values


def test_nothing_else_changes() -> None:
    _, measured, diagnostics = fit(["noise", "curvature"])
    _, plain, _ = fit([])
    assert all(torch.equal(one, other) for one, other in zip(measured.parameters(), plain.parameters(), strict=True))
    scales = [epoch.values["noise/scale"] for epoch in diagnostics.evidence.epochs]
    assert len(scales) == 3
    assert all(scale > 0 for scale in scales if not math.isnan(scale))
    assert any(scale > 0 for scale in scales)


def test_rows_are_spread_over_the_training_part() -> None:
    trainer, module, _ = fit([])
    part = trainer.datamodule.part("train")
    numeric, codes, target = probe_rows(trainer, module)
    assert codes is None
    assert len(numeric) == len(target) == min(part.rows, ROWS)
    assert torch.equal(numeric, part.numeric[:: -(-part.rows // ROWS)])


def test_a_resumed_run_goes_on_with_the_running_means(tmp_path: Path) -> None:
    words = ["fit", "--data.dataset=wine", "--data.verbose=false", "--diagnostics.groups=[noise, curvature]"]
    words += ["--model.width=8", "--model.depth=1", "--trainer.enable_progress_bar=false"]
    whole, stopped = tmp_path / "whole", tmp_path / "stopped"
    assert main([*words, "--trainer.max_epochs=4", f"--run.dir={whole}"]) == 0
    assert main([*words, "--trainer.max_epochs=2", f"--run.dir={stopped}"]) == 0
    assert main(["fit", "--resume", str(stopped), "--trainer.max_epochs=4"]) == 0
    assert (whole / "metrics.csv").read_text() == (stopped / "metrics.csv").read_text()
    with (whole / "metrics.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["curvature/sharpness"]]
    assert len(rows) == 4
    assert all(float(row["curvature/eigenvalue"]) > 0 for row in rows)


def test_a_foreign_module_is_refused() -> None:
    class Own(L.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.model = MLPModule(TabularDataModule(dataset="wine", verbose=False).spec_dict).model

        def training_step(self, batch: torch.Tensor, batch_idx: int) -> torch.Tensor:
            return self.model(batch).sum()

        def configure_optimizers(self) -> torch.optim.Optimizer:
            return torch.optim.SGD(self.parameters(), lr=0.1)

    trainer = L.Trainer(
        max_steps=1,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        callbacks=[Diagnostics(groups=["curvature"])],
    )
    with pytest.raises(UserError, match=r"diagnostics\.groups: curvature need"):
        trainer.fit(Own(), DataLoader(torch.ones(8, 13), batch_size=4))
