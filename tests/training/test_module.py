"""The module under a real Trainer against hand-written loops in float64, scikit-learn, and its own promises."""

from __future__ import annotations

import csv
import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from sklearn.metrics import accuracy_score, f1_score, mean_absolute_error, r2_score, root_mean_squared_error
from torch import Tensor
from torch.nn import functional as F

from mlp_lab.data.spec import DataSpec
from mlp_lab.data.tabular import TabularDataModule
from mlp_lab.errors import UserError
from mlp_lab.training.module import MLPModule
from mlp_lab.training.optimizers import OptimizerConfig
from mlp_lab.training.schedules import ScheduleConfig
from mlp_lab.training.tracking import MetricsCSV

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*smaller than the logging interval"),
    pytest.mark.filterwarnings("ignore:.*AMP with fp16 is not supported on CPU. Using `precision='bf16-mixed'`"),
]

QUIET: dict[str, Any] = {
    "accelerator": "cpu",
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "enable_checkpointing": False,
    "num_sanity_val_steps": 0,
}
BATCH = 64
STEPS = 23  # of an epoch: 1,437 rows in batches of 64, the last one of 29


def load() -> TabularDataModule:
    return TabularDataModule(dataset="digits", batch_size=BATCH, verbose=False, seed=0)


@pytest.fixture
def digits() -> TabularDataModule:
    return load()


def build(data: TabularDataModule, **settings: Any) -> MLPModule:
    torch.manual_seed(0)
    return MLPModule(data.spec_dict, width=16, **settings)


def fit(module: MLPModule, data: TabularDataModule, path: Path | None = None, **options: Any) -> L.Trainer:
    logger = MetricsCSV(path) if path else False
    trainer = L.Trainer(**{"logger": logger, **QUIET, **options})
    trainer.fit(module, datamodule=data)
    return trainer


def rows(path: Path, name: str) -> list[tuple[int, float]]:
    """Returns (step, value) of one column of metrics.csv."""
    with path.open(newline="") as file:
        return [(int(row["step"]), float(row[name])) for row in csv.DictReader(file) if row.get(name)]


def weights(module: MLPModule) -> Tensor:
    return torch.cat([parameter.detach().flatten() for parameter in module.parameters()])


def twin(module: MLPModule, data: TabularDataModule, optimizer: torch.optim.Optimizer, steps: int) -> list[Tensor]:
    """Trains with a loop that anyone would write, in float64; returns the per-sample losses of every batch."""
    seen: list[Tensor] = []
    loader = data.train_dataloader()
    while True:
        for batch in loader:
            if len(seen) == steps:
                return seen
            losses = F.cross_entropy(module.model(batch.numeric.double()), batch.target, reduction="none")
            optimizer.zero_grad()
            losses.mean().backward()
            optimizer.step()
            seen.append(losses.detach())


OPTIMIZERS = {
    "sgd": (OptimizerConfig(name="sgd", lr=0.1, momentum=0.9), lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9)),
    "adam": (OptimizerConfig(name="adam", lr=1e-2), lambda p: torch.optim.Adam(p, lr=1e-2)),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_trainer_takes_the_steps_of_a_plain_loop(name: str, digits: TabularDataModule, tmp_path: Path) -> None:
    config, plain = OPTIMIZERS[name]
    steps = STEPS + 7  # into the second epoch
    module, other = build(digits, optimizer=config), build(digits).double()
    fit(module, digits, tmp_path / "m.csv", precision="64-true", max_steps=steps, max_epochs=-1, log_every_n_steps=10)
    losses = twin(other, load(), plain(other.parameters()), steps)
    # 30 float64 steps of the same operations: only the order within sums may differ
    torch.testing.assert_close(weights(module), weights(other), rtol=1e-12, atol=1e-13)
    bounds = [0, 10, 20, STEPS, 30]
    expected = [(end, torch.cat(losses[start:end]).mean().item()) for start, end in pairwise(bounds)]
    for (step, value), (true_step, true_value) in zip(rows(tmp_path / "m.csv", "train/loss"), expected, strict=True):
        assert step == true_step
        assert math.isclose(value, true_value, rel_tol=1e-12)


def test_windows_and_steps_are_exact_under_accumulation(digits: TabularDataModule, tmp_path: Path) -> None:
    """With a learning rate next to 0 the weights stand still: a window's loss is that of its rows."""
    module = build(digits, optimizer=OptimizerConfig(name="sgd", lr=1e-300))
    trainer = fit(
        module,
        digits,
        tmp_path / "m.csv",
        precision="64-true",
        max_epochs=1,
        accumulate_grad_batches=4,
        log_every_n_steps=2,
    )
    batches = list(load().train_dataloader())
    with torch.no_grad():
        losses = [
            F.cross_entropy(module.model(batch.numeric.double()), batch.target, reduction="none") for batch in batches
        ]
    expected = [(2, losses[:8]), (4, losses[8:16]), (6, losses[16:])]  # 23 batches make 6 steps, the last one of 3
    assert trainer.global_step == 6
    for (step, value), (true_step, window) in zip(rows(tmp_path / "m.csv", "train/loss"), expected, strict=True):
        assert step == true_step
        assert math.isclose(value, torch.cat(window).mean().item(), rel_tol=1e-12)


def test_the_logged_rate_is_the_one_the_step_used(digits: TabularDataModule, tmp_path: Path) -> None:
    module = build(digits, schedule=ScheduleConfig(name="cosine"), optimizer=OptimizerConfig(lr=1.0))
    fit(module, digits, tmp_path / "m.csv", max_epochs=1, log_every_n_steps=1)
    expected = [0.5 * (1 + math.cos(math.pi * step / STEPS)) for step in range(STEPS)]
    assert [rate for _, rate in rows(tmp_path / "m.csv", "train/lr")] == pytest.approx(expected, abs=1e-12)


def test_max_steps_inside_an_epoch_records_its_last_window(digits: TabularDataModule, tmp_path: Path) -> None:
    fit(build(digits), digits, tmp_path / "m.csv", max_epochs=-1, max_steps=7, log_every_n_steps=5)
    assert [step for step, _ in rows(tmp_path / "m.csv", "train/loss")] == [5, 7]


def test_validation_is_plain_and_equals_scikit_learn(digits: TabularDataModule, tmp_path: Path) -> None:
    """Neither dropout nor smoothing, weights or mixup change val/loss: it is the mean cross-entropy."""
    module = build(digits, label_smoothing=0.3, class_weights="balanced", mixup=0.4, dropout=0.3)
    digits.eval_batch_size = 77
    trainer = fit(module, digits, tmp_path / "m.csv", max_epochs=2)
    part = digits.part("val")
    module.eval()
    with torch.no_grad():
        logits = module(part.numeric).double()
    predicted = logits.argmax(1).numpy()
    expected = {
        "val/loss": F.cross_entropy(logits, part.target).item(),
        "val/accuracy": accuracy_score(part.target, predicted),
        "val/f1": f1_score(part.target, predicted, average="macro"),
    }
    for name, value in expected.items():
        step, logged = rows(tmp_path / "m.csv", name)[-1]
        assert step == 2 * STEPS
        assert math.isclose(logged, value, rel_tol=1e-6), name  # float32
        assert float(trainer.callback_metrics[name]) == logged


def test_evaluations_return_and_log_their_scores_and_a_fit_logs_none_twice(
    digits: TabularDataModule, tmp_path: Path
) -> None:
    module, path = build(digits, depth=1), tmp_path / "metrics.csv"
    trainer = fit(module, digits, path, max_epochs=2, log_every_n_steps=STEPS, num_sanity_val_steps=1)
    fitted = path.read_text()
    rows = [row for row in csv.DictReader(fitted.splitlines()) if row["val/loss"]]
    assert [int(row["step"]) for row in rows] == [STEPS, 2 * STEPS]
    (validated,), (tested,) = (evaluate(module, digits, verbose=False) for evaluate in (trainer.validate, trainer.test))
    assert validated == {name: float(rows[-1][name]) for name in ("val/loss", "val/accuracy", "val/f1")}
    assert set(tested) == {"test/loss", "test/accuracy", "test/f1"}
    logged = list(csv.DictReader(path.read_text().splitlines()))[len(fitted.splitlines()) - 1 :]
    assert [{name: float(value) for name, value in row.items() if "/" in name and value} for row in logged] == [
        validated,
        tested,
    ]
    assert {row["step"] for row in logged} == {str(2 * STEPS)}
    silent = L.Trainer(logger=False, **QUIET)
    assert silent.test(module, digits, verbose=False) == [tested]


def test_regression_is_reported_in_its_own_unit(tmp_path: Path) -> None:
    data = TabularDataModule(dataset="diabetes", batch_size=50, verbose=False, seed=0)
    module = build(data)
    fit(module, data, tmp_path / "m.csv", max_epochs=1)
    part, spec = data.part("val"), data.spec
    module.eval()
    with torch.no_grad():
        standardised = module(part.numeric).double().numpy()
    assert part.target is not None
    predicted = standardised * spec.target_std + spec.target_mean
    target = part.target.double().numpy() * spec.target_std + np.array(spec.target_mean)
    expected = {
        "val/rmse": root_mean_squared_error(target, predicted),
        "val/mae": mean_absolute_error(target, predicted),
        "val/r2": r2_score(target, predicted),
    }
    assert expected["val/rmse"] > 10  # the disease's progression is between 25 and 346
    for name, value in expected.items():
        assert math.isclose(rows(tmp_path / "m.csv", name)[-1][1], value, rel_tol=1e-4), name  # float32 sums


@pytest.mark.parametrize(
    ("settings", "line"),
    [
        (
            {"optimizer": {"nam": "sgd"}},
            r"^model.optimizer: 'nam' is unknown \(did you mean 'name'\?\); accepted: name, ",
        ),
        (
            {"optimizer": "adam"},
            "^model.optimizer: 'adam' is not accepted; use OptimizerConfig or a dict of its fields",
        ),
        ({"schedule": 3}, "^model.schedule: 3 is not accepted; use ScheduleConfig"),
    ],
)
def test_settings_of_a_wrong_kind_are_refused_in_one_line(settings: dict[str, Any], line: str) -> None:
    spec = DataSpec(task="binary", numeric=("x",), classes=("no", "yes"))
    assert MLPModule(spec, optimizer={"name": "sgd"}).hparams["spec"] == spec.to_dict()  # type: ignore[arg-type]
    with pytest.raises(UserError, match=line):
        MLPModule(spec, **settings)


def test_max_norm_holds_after_each_step(digits: TabularDataModule) -> None:
    module = build(digits, max_norm=0.7, optimizer=OptimizerConfig(lr=0.1))
    longest: list[float] = []

    class Watch(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
            longest.append(max(float(layer.weight.detach().norm(dim=1).max()) for layer in module.model.linears[:-1]))

    fit(module, digits, max_epochs=1, callbacks=[Watch()])
    assert len(longest) == STEPS
    assert max(longest) <= 0.7 * (1 + 1e-6)  # float32
    assert float(module.model.linears[-1].weight.detach().norm(dim=1).max()) > 0.7, "the head is free"


def test_lsuv_gives_unit_variance_before_the_first_step(digits: TabularDataModule) -> None:
    module = build(digits, depth=3, init="lsuv")
    variances: list[float] = []

    class Watch(L.Callback):
        def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            with torch.no_grad():
                _, trace = module.model(digits.part("train").numeric, trace=True)
            variances.extend(float(z.var()) for z in trace.z)

    fit(module, digits, max_epochs=1, limit_train_batches=1, limit_val_batches=0, callbacks=[Watch()])
    assert variances == pytest.approx([1.0] * 3, rel=0.1)  # of all rows; it was set on a part of them


MODES: dict[str, dict[str, Any]] = {
    "fast_dev_run": {"fast_dev_run": True},
    "overfit_batches": {"overfit_batches": 3},
    "limits": {"limit_train_batches": 5, "limit_val_batches": 1},
    "no validation": {"limit_val_batches": 0},
    "simple profiler": {"profiler": "simple"},
    "clip by norm": {"gradient_clip_val": 0.1},
    "clip by value": {"gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"},
    "bf16-mixed": {"precision": "bf16-mixed"},
    "bf16-mixed, clipped": {"precision": "bf16-mixed", "gradient_clip_val": 0.5},
    "16-mixed, clipped": {"precision": "16-mixed", "gradient_clip_val": 0.5},
    "bf16-true": {"precision": "bf16-true"},
    "accumulate": {"accumulate_grad_batches": 5},
    "validation within the epoch": {"val_check_interval": 0.5},
    "anomalies": {"detect_anomaly": True},
}


@pytest.mark.parametrize("mode", MODES)
def test_features_of_the_trainer_keep_working(mode: str, digits: TabularDataModule, capsys: Any) -> None:
    module = build(digits)
    before = weights(module).clone()
    trainer = fit(module, digits, **{"max_epochs": 2, **MODES[mode]})
    after = weights(module).float()
    assert after.isfinite().all()
    assert not torch.equal(before, after)
    assert math.isfinite(float(trainer.callback_metrics["train/loss"]))
    if mode != "no validation":
        assert math.isfinite(float(trainer.callback_metrics["val/loss"]))


@pytest.mark.parametrize(("options", "fused"), [({}, True), ({"gradient_clip_val": 1.0}, False)])
def test_no_fused_optimizer_where_lightning_would_refuse_to_clip(
    options: dict[str, Any], fused: bool, digits: TabularDataModule
) -> None:
    trainer = fit(build(digits), digits, max_epochs=1, limit_train_batches=1, precision="bf16-mixed", **options)
    assert bool(trainer.optimizers[0].param_groups[0]["fused"]) == fused


@pytest.mark.parametrize("algorithm", ["norm", "value"])
def test_clipping_bounds_the_step(algorithm: str, digits: TabularDataModule) -> None:
    """A plain SGD step of rate 1 moves the weights by the clipped gradient itself."""
    module = build(digits, optimizer=OptimizerConfig(name="sgd", lr=1.0))
    before = weights(module).clone()
    fit(module, digits, max_steps=1, max_epochs=-1, gradient_clip_val=1e-3, gradient_clip_algorithm=algorithm)
    step = weights(module) - before
    size = float(step.norm() if algorithm == "norm" else step.abs().max())
    assert math.isclose(size, 1e-3, rel_tol=1e-3)  # float32 differences of weights near 0.5


def test_checkpoint_loads_from_python_without_pickles(digits: TabularDataModule, tmp_path: Path) -> None:
    module = build(digits, norm="batch", schedule=ScheduleConfig(name="plateau"))
    trainer = fit(module, digits, max_epochs=1)
    trainer.save_checkpoint(tmp_path / "a.ckpt")
    torch.load(tmp_path / "a.ckpt", weights_only=True)
    loaded = MLPModule.load_from_checkpoint(tmp_path / "a.ckpt", weights_only=True)
    part = digits.part("test")
    with torch.no_grad():
        assert torch.equal(loaded.eval()(part.numeric), module.eval()(part.numeric))
    assert loaded.spec == digits.spec


@pytest.mark.parametrize("setting", ["mixup", "max_norm"])
def test_negative_settings_are_refused(setting: str, digits: TabularDataModule) -> None:
    with pytest.raises(UserError, match=rf"^model.{setting}: -0.5 is negative; use a number of at least 0"):
        build(digits, **{setting: -0.5})
