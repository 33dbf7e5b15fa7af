"""Runs that are killed and go on, compared bit by bit with the run that was never stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from mlp_lab.data.tabular import TabularDataModule
from mlp_lab.training.checkpoints import LastCheckpoint
from mlp_lab.training.module import MLPModule
from tests.slow import slow_but
from tests.training.conftest import assert_same

COMMON = {
    "data.verbose": False,
    "data.batch_size": 64,
    "data.eval_batch_size": 50,
    "model.width": 16,
    "trainer.enable_progress_bar": False,
    "trainer.max_epochs": 3,
    "trainer.limit_train_batches": 11,
    "trainer.log_every_n_steps": 4,
    "checkpoint.every_n_steps": 3,
}
MODES: dict[str, dict[str, Any]] = {
    "everything random": {
        "model.dropout": 0.2,
        "model.input_dropout": 0.1,
        "model.mixup": 0.3,
        "model.norm": "batch",
        "model.schedule.name": "cosine",
        "model.schedule.warmup": 0.1,
        "trainer.val_check_interval": 0.5,
    },
    "saves where records are due": {"checkpoint.every_n_steps": 4, "trainer.log_every_n_steps": 2},
    "plateau, validated every other epoch": {
        "model.optimizer.name": "sgd",
        "model.optimizer.momentum": 0.9,
        "model.optimizer.lr": 0.5,
        "model.schedule.name": "plateau",
        "model.schedule.patience": 0,
        "trainer.check_val_every_n_epoch": 2,
        "trainer.max_epochs": 5,
    },
    "plateau, validated within": {
        "model.optimizer.name": "rmsprop",
        "model.optimizer.lr": 0.1,
        "model.schedule.name": "plateau",
        "model.schedule.patience": 0,
        "trainer.val_check_interval": 4,
    },
    "muon, accumulating": {
        "model.optimizer.name": "muon",
        "model.norm": "layer",
        "model.label_smoothing": 0.1,
        "model.max_norm": 1.0,
        "model.init": "lsuv",
        "trainer.accumulate_grad_batches": 3,
        "checkpoint.every_n_steps": 1,
    },
    "steps": {"trainer.max_epochs": -1, "trainer.max_steps": 26, "model.schedule.name": "onecycle"},
    "stops early": {"model.optimizer.lr": 1.0, "early_stopping.patience": 1, "trainer.max_epochs": 9},
    "diverges": {"model.optimizer.name": "sgd", "model.optimizer.lr": 30.0},
    "regression without validation": {
        "data.dataset": "diabetes",
        "data.batch_size": 30,
        "trainer.limit_val_batches": 0,
        "model.dropout": 0.5,
        "model.loss": "huber",
    },
    "float64": {"trainer.precision": "64-true", "model.dropout": 0.2},
    "bfloat16": {"trainer.precision": "bf16-mixed", "trainer.gradient_clip_val": 0.1},
    "overfitting": {"trainer.overfit_batches": 3, "trainer.max_epochs": 6, "model.dropout": 0.1},
}
MODULE = "mlp_lab.training.module:MLPModule"
LAST = "mlp_lab.training.checkpoints:LastCheckpoint"
BEST = "mlp_lab.training.checkpoints:BestCheckpoint"
MOMENTS: dict[str, tuple[str, str, int, str]] = {
    "before the first checkpoint": (MODULE, "training_step", 3, "before"),
    "between two saves": (MODULE, "training_step", 16, "before"),
    "after a step's end": (MODULE, "optimizer_step", 8, "after"),
    "after a save within the epoch": (LAST, "_save", 3, "after"),
    "during validation": (MODULE, "validation_step", 6, "before"),
    "after the best, before the last": (BEST, "on_validation_end", 2, "after"),
    "while a checkpoint takes its place": ("os", "fsync", 4, "after"),
    "after the first epoch": (LAST, "on_train_epoch_end", 1, "after"),
    "after the second epoch": (LAST, "on_train_epoch_end", 2, "after"),
}
FAST = [
    ("everything random", "between two saves"),
    ("everything random", "while a checkpoint takes its place"),
]
NEVER = {  # moments that do not come in a mode
    "diverges": ("between two saves", "during validation", "after the best, before the last", "after the second epoch"),
    "regression without validation": ("during validation", "after the best, before the last"),
}
SLOW = [
    pytest.param(mode, moment, marks=pytest.mark.slow)
    for mode in MODES
    for moment in MOMENTS
    if (mode, moment) not in FAST and moment not in NEVER.get(mode, ())
]


def words(mode: str, **more: Any) -> list[str]:
    settings = COMMON | MODES[mode] | more
    return [f"--{key}={str(value).lower() if isinstance(value, bool) else value}" for key, value in settings.items()]


@pytest.fixture(scope="module")
def whole_runs(tmp_path_factory: pytest.TempPathFactory, command: Any) -> Any:
    """Returns the uninterrupted run of a mode, made on first use."""
    made: dict[str, Path] = {}

    def run(mode: str) -> Path:
        if mode not in made:
            made[mode] = tmp_path_factory.mktemp("whole") / "run"
            command("fit", *words(mode), f"--run.dir={made[mode]}")
        return made[mode]

    return run


@pytest.mark.parametrize(("mode", "moment"), [*FAST, *SLOW])
def test_a_killed_run_ends_as_if_it_never_was(
    mode: str, moment: str, whole_runs: Any, command: Any, killed_command: Any, assert_same_run: Any, tmp_path: Path
) -> None:
    whole, run = whole_runs(mode), tmp_path / "run"
    killed_command(*MOMENTS[moment], "fit", *words(mode), f"--run.dir={run}")
    command("fit", "--resume", run)
    assert_same_run(whole, run)


WITHIN = {"trainer.val_check_interval": 5}
EARLY = {"early_stopping.patience": 1, "early_stopping.min_delta": 9.0}  # the second validation is no improvement
CONSTANT = {"trainer.log_every_n_steps": 4, "model.dropout": 0.2, "checkpoint.every_n_steps": 0}
STOPS: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any], int]] = {
    "steps": ({}, {"trainer.max_steps": 15}, {"trainer.max_steps": -1}, 15),
    "steps, and then more steps": ({}, {"trainer.max_steps": 15}, {"trainer.max_steps": 33}, 15),
    "steps at the end of an epoch": ({}, {"trainer.max_steps": 22}, {"trainer.max_steps": -1}, 22),
    "steps before a validation": (WITHIN, {"trainer.max_steps": 16}, {"trainer.max_steps": -1}, 16),
    "steps after a validation": (WITHIN, {"trainer.max_steps": 18}, {"trainer.max_steps": -1}, 18),
    "early": (WITHIN, EARLY, {"early_stopping.patience": 0}, 10),
    "early, accumulating": (
        {**WITHIN, "trainer.accumulate_grad_batches": 3},
        EARLY,
        {"early_stopping.patience": 0},
        4,  # the epoch ends with the step that the tenth of eleven batches belongs to
    ),
    "replicates": ({"replicates": 2}, {"trainer.max_steps": 15}, {"trainer.max_steps": -1}, 15),
    "replicates after a validation": (
        {**WITHIN, "replicates": 2},
        {"trainer.max_steps": 16},
        {"trainer.max_steps": -1},
        16,
    ),
}


def flags(settings: dict[str, Any]) -> list[str]:
    return [f"--{key}={str(value).lower() if isinstance(value, bool) else value}" for key, value in settings.items()]


def assert_same_training(one: Path, two: Path) -> None:
    """Compares the records and the last states, but for the settings of a stop."""
    assert (one / "metrics.csv").read_text() == (two / "metrics.csv").read_text()
    first, second = (torch.load(run / "checkpoints" / "last.ckpt", weights_only=True) for run in (one, two))
    for name in ("state_dict", "optimizer_states", "epoch", "global_step", "train_loss", "population"):
        assert_same(first.get(name), second.get(name), name)


@pytest.mark.parametrize("case", slow_but(STOPS, "steps", "early, accumulating", "replicates after a validation"))
def test_run_stopped_within_an_epoch_goes_on_as_if_it_never_was(case: str, command: Any, tmp_path: Path) -> None:
    common, stop, go_on, steps = STOPS[case]
    settings, whole, run = COMMON | CONSTANT | common, tmp_path / "whole", tmp_path / "run"
    command("fit", *flags(settings), f"--run.dir={whole}")
    command("fit", *flags(settings | stop), f"--run.dir={run}")
    last = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    assert last["global_step"] == steps
    command("fit", "--resume", run, *flags(go_on))
    assert_same_training(whole, run)


class StopAfter(L.Callback):
    """Ends the training after a batch, as `trainer.max_time` does."""

    def __init__(self, batch: int) -> None:
        self.batch = batch

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
        trainer.should_stop = trainer.should_stop or trainer.fit_loop.total_batch_idx + 1 == self.batch


def fit(path: Path, *callbacks: L.Callback, ckpt_path: Path | None = None, **options: Any) -> MLPModule:
    data = TabularDataModule(dataset="digits", batch_size=64, verbose=False)
    torch.manual_seed(0)
    module = MLPModule(data.spec_dict, depth=1, width=8)
    quiet: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    trainer = L.Trainer(
        max_epochs=2, accelerator="cpu", callbacks=[*callbacks, LastCheckpoint(path)], **quiet, **options
    )
    trainer.fit(module, data, ckpt_path=ckpt_path, weights_only=True)
    return module


@pytest.mark.parametrize("options", [{}, {"val_check_interval": 5}, {"accumulate_grad_batches": 4}])
@pytest.mark.parametrize("batch", slow_but([5, 7, 23, 30], 7))  # of 23 in an epoch
def test_run_stopped_by_the_clock_takes_the_rest_of_its_epoch(
    batch: int, options: dict[str, Any], tmp_path: Path
) -> None:
    whole = fit(tmp_path / "whole.ckpt", **options)
    fit(tmp_path / "cut.ckpt", StopAfter(batch), **options)
    cut = torch.load(tmp_path / "cut.ckpt", weights_only=True)["loops"]["fit_loop"]
    taken = cut["epoch_loop.batch_progress"]["total"]["processed"]
    each = options.get("accumulate_grad_batches", 1)
    assert batch <= taken < batch + each, "a stop waits for the gradients that are accumulated"
    rest = fit(tmp_path / "rest.ckpt", ckpt_path=tmp_path / "cut.ckpt", **options)
    assert_same(dict(whole.state_dict()), dict(rest.state_dict()))


def test_checkpoint_that_counts_a_cut_epoch_as_finished_goes_on_inside_it(tmp_path: Path) -> None:
    whole = fit(tmp_path / "whole.ckpt")
    fit(tmp_path / "cut.ckpt", max_steps=30)
    old = torch.load(tmp_path / "cut.ckpt", weights_only=True)
    loop = old["loops"]["fit_loop"]
    for part in ("current", "total"):  # as it was saved when the cut epoch's end had been reached
        loop["epoch_progress"][part]["processed"] += 1
        loop["epoch_loop.batch_progress"][part]["completed"] = loop["epoch_loop.batch_progress"][part]["processed"]
    torch.save(old, tmp_path / "old.ckpt")
    rest = fit(tmp_path / "rest.ckpt", ckpt_path=tmp_path / "old.ckpt")
    assert_same(dict(whole.state_dict()), dict(rest.state_dict()))
