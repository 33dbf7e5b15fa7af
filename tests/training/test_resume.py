"""Runs that are killed and go on, compared bit by bit with the run that was never stopped."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

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
    *(("everything random", moment) for moment in MOMENTS),
    ("saves where records are due", "after a save within the epoch"),
    ("plateau, validated every other epoch", "after the second epoch"),
    ("plateau, validated within", "between two saves"),
    ("muon, accumulating", "after a save within the epoch"),
    ("steps", "after the first epoch"),
    ("stops early", "after the second epoch"),
    ("diverges", "after the first epoch"),
    ("float64", "between two saves"),
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
