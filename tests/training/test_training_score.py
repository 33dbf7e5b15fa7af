"""The training score is the task's own metric of the batches as they were trained on."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pandas as pd
import pytest
import torch

from mlp_lab.data.spec import DataSpec
from mlp_lab.data.tabular import TabularDataModule
from mlp_lab.model.tasks import SCORES, metrics
from mlp_lab.population.module import PopulationModule
from mlp_lab.training.module import MLPModule
from mlp_lab.training.tracking import MetricsCSV
from mlp_lab.training.training_score import MOST_LOGITS, TrainingScore, score_of, score_sums

SPECS = {
    "multiclass": DataSpec(task="multiclass", numeric=("x",), targets=("y",), classes=("a", "b", "c")),
    "binary": DataSpec(task="binary", numeric=("x",), targets=("y",), classes=("a", "b")),
    "multilabel": DataSpec(task="multilabel", numeric=("x",), targets=("y", "z"), classes=("y", "z")),
    "regression": DataSpec(
        task="regression", numeric=("x",), targets=("y", "z"), target_mean=(1.0, 2.0), target_std=(3.0, 0.5)
    ),
}


def batches(spec: DataSpec, sizes: list[int]) -> list[tuple[torch.Tensor, torch.Tensor]]:
    generator = torch.Generator().manual_seed(0)
    found = []
    for size in sizes:
        logits = torch.randn(size, spec.out_features, generator=generator)
        target = {
            "multiclass": torch.randint(3, (size,), generator=generator),
            "binary": torch.randint(2, (size,), generator=generator),
            "multilabel": torch.randint(2, (size, 2), generator=generator).float(),
            "regression": torch.randn(size, 2, generator=generator),
        }[spec.task]
        found.append((logits, target))
    return found


@pytest.mark.parametrize("task", SPECS)
@pytest.mark.parametrize("sizes", [[4, 4, 4, 3], [5], [MOST_LOGITS // 4] * 5])
def test_score_is_the_metric_of_all_rows(task: str, sizes: list[int]) -> None:
    spec = SPECS[task]
    score, metric = TrainingScore(spec), metrics(spec)
    assert score.compute() == {}
    for logits, target in batches(spec, sizes):
        score.add(logits, target)
        metric.update(logits, target)
    name = SCORES[spec.task][0]
    assert score.compute() == {name: pytest.approx(metric.compute()[name].item(), rel=1e-6)}
    score.reset()
    assert score.compute() == {}


@pytest.mark.parametrize("task", SPECS)
@pytest.mark.parametrize("cut", range(1, 6))
def test_score_that_goes_on_from_a_state_has_the_same_bits(task: str, cut: int) -> None:
    spec = SPECS[task]
    whole, first, second = (TrainingScore(spec) for _ in range(3))
    rows = batches(spec, [8] * 5 + [3])
    for logits, target in rows:
        whole.add(logits, target)
    for logits, target in rows[:cut]:
        first.add(logits, target)
    second.load_state_dict(first.state_dict(), rank=0, world_size=1)
    for logits, target in rows[cut:]:
        second.add(logits, target)
    assert second.state_dict() == whole.state_dict()


@pytest.mark.parametrize("world_size", [1, 2, 3])
def test_state_of_several_processes_is_shared_out(world_size: int) -> None:
    spec = SPECS["multiclass"]
    state = {"parts": [{"sums": [2], "rows": 4}, {"sums": [3], "rows": 4}]}
    shares = [TrainingScore(spec) for _ in range(world_size)]
    for rank, share in enumerate(shares):
        share.load_state_dict(state, rank=rank, world_size=world_size)
    parts = [part for share in shares for part in share.state_dict()["parts"]]
    assert sum(part["rows"] for part in parts) == 8
    assert sum(sum(part["sums"]) for part in parts) == 5


@pytest.mark.parametrize("task", SPECS)
def test_members_have_the_scores_that_each_has_alone(task: str) -> None:
    spec = SPECS[task]
    (one, target), (two, _) = batches(spec, [6, 6])
    sums = score_sums(spec, torch.stack([one, two]), target)
    for logits, of_member in zip((one, two), sums, strict=True):
        alone = TrainingScore(spec)
        alone.add(logits, target)
        assert score_of(spec, of_member.tolist(), 6) == pytest.approx(alone.compute())


def fit(module: Any, path: Path, **options: Any) -> pd.DataFrame:
    data = TabularDataModule(dataset="digits", batch_size=64, seed=0, verbose=False)
    quiet: dict[str, Any] = {"enable_progress_bar": False, "enable_model_summary": False}
    trainer = L.Trainer(
        accelerator="cpu", logger=MetricsCSV(path), enable_checkpointing=False, log_every_n_steps=7, **quiet, **options
    )
    trainer.fit(module, data)
    return pd.read_csv(path)


def network(**settings: Any) -> MLPModule:
    torch.manual_seed(0)
    data = TabularDataModule(dataset="digits", batch_size=64, seed=0, verbose=False)
    return MLPModule(data.spec_dict, depth=1, width=8, **settings)


def test_metrics_csv_has_the_window_and_the_epoch(tmp_path: Path) -> None:
    logged = fit(network(), tmp_path / "metrics.csv", max_epochs=2)
    for _, rows in logged.groupby("epoch"):
        windows = rows.dropna(subset=["train/loss"])
        sizes = windows["step"].diff().fillna(windows["step"] - 23 * windows["epoch"]) * 64
        sizes.iloc[-1] -= 23 * 64 - 1437  # the last batch is not full
        mean = (windows["train/loss"] * sizes).sum() / sizes.sum()
        assert rows["train/epoch_loss"].dropna().tolist() == [pytest.approx(mean, rel=1e-12)]
        assert len(rows["train/accuracy"].dropna()) == 1


def test_mixup_has_no_training_score(tmp_path: Path) -> None:
    logged = fit(network(mixup=0.3), tmp_path / "metrics.csv", max_epochs=1)
    assert "train/accuracy" not in logged
    assert logged["train/epoch_loss"].notna().sum() == 1


def test_population_has_the_scores_of_its_members(tmp_path: Path) -> None:
    alone = fit(network(), tmp_path / "alone.csv", max_epochs=2)
    population = PopulationModule([network(), network()])
    population.scores_training = True
    together = fit(population, tmp_path / "together.csv", max_epochs=2)
    for name in ("train/epoch_loss", "train/accuracy"):
        assert together[name].dropna().tolist() == pytest.approx(alone[name].dropna().tolist(), rel=1e-3)
        assert together[f"{name}_sd"].dropna().tolist() == pytest.approx([0.0, 0.0], abs=1e-6)
