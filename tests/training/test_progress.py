"""The table of epochs: what it shows, where it may draw, and what a step costs."""

from __future__ import annotations

import io
import re
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from rich.console import Console

from mlp_lab.data.loader import Batch
from mlp_lab.training.checkpoints import BestCheckpoint
from mlp_lab.training.progress import EpochTable

MODULE: Any = L.LightningModule()
BATCH = Batch(torch.zeros(4, 1), None, None, 8)  # this process's 4 rows of a global batch of 8
SCORES = {
    "multiclass": ["val/accuracy", "val/f1"],
    "binary": ["val/accuracy", "val/auroc", "val/auprc"],
    "multilabel": ["val/accuracy", "val/auroc"],
    "regression": ["val/rmse", "val/mae", "val/r2"],
}


def table(terminal: bool = False) -> tuple[EpochTable, io.StringIO]:
    file = io.StringIO()
    return EpochTable(Console(file=file, force_terminal=terminal, width=80, highlight=False)), file


def trainer(**metrics: float) -> Any:
    values = {name.replace("_", "/", 1): torch.tensor(value) for name, value in metrics.items()}
    return SimpleNamespace(
        callback_metrics=values, current_epoch=0, max_epochs=12, num_training_batches=10, checkpoint_callbacks=[]
    )


def epoch(bar: EpochTable, now: Any, batches: int = 3) -> None:
    bar.on_train_epoch_start(now, MODULE)
    for index in range(batches):
        bar.on_train_batch_end(now, MODULE, None, BATCH, index)
    bar.on_validation_start(now, MODULE)
    bar.on_validation_end(now, MODULE)
    bar.on_train_epoch_end(now, MODULE)


def test_legend_is_left_out_when_no_epoch_validates() -> None:
    bar, file = table()
    now = trainer(train_loss=0.5)
    epoch(bar, now)
    bar.on_train_end(now, MODULE)
    assert [line.split()[0] for line in file.getvalue().splitlines()] == ["epoch", "1/12"]


@pytest.mark.parametrize("task", SCORES)
def test_it_fits_80_columns_and_a_file_gets_no_control_characters(task: str) -> None:
    bar, file = table()
    now = trainer(train_loss=0.5, val_loss=123456.789)
    now.callback_metrics |= {name: torch.tensor(98765.4321) for name in SCORES[task]}
    epoch(bar, now)
    bar.on_train_end(now, MODULE)
    header, row, legend = file.getvalue().splitlines()
    assert header.split() == ["epoch", "train/loss", "val/loss*", *SCORES[task], "samples/s"]
    assert row.split()[:3] == ["1/12", "0.5000", "123,456.8"]
    assert row.endswith("*")
    assert legend == "* lowest val/loss so far"
    assert max(map(len, (header, row))) <= 80
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", file.getvalue())


def test_the_mark_follows_the_lowest_loss_through_a_resume() -> None:
    bar, file = table()
    for index, loss in enumerate([0.5, 0.6, 0.4, float("nan")]):
        now = trainer(train_loss=0.0, val_loss=loss)
        now.current_epoch = index
        epoch(bar, now)
    resumed, rest = table()
    resumed.load_state_dict(bar.state_dict())
    for loss in (0.45, 0.3):
        epoch(resumed, trainer(train_loss=0.0, val_loss=loss))
    rows = file.getvalue().splitlines()[1:] + rest.getvalue().splitlines()[1:]
    assert [row.endswith("*") for row in rows] == [True, False, True, False, False, True]


def test_throughput_is_of_training_alone_and_of_all_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    bar, _ = table()
    now = trainer(train_loss=0.0, val_loss=1.0)
    clock = iter([10.0, 11.0, 12.0, 12.0, 100.0, 102.0])
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    bar.on_train_epoch_start(now, MODULE)  # 10
    bar.on_train_batch_end(now, MODULE, None, BATCH, 0)  # 11
    bar.on_train_batch_end(now, MODULE, None, BATCH, 1)  # 12
    bar.on_validation_start(now, MODULE)  # 12: two seconds of training
    bar.on_validation_end(now, MODULE)  # 100: validation took 88 seconds
    bar.on_train_epoch_end(now, MODULE)  # 102: two more
    assert bar.samples_per_second == 16 / 4


def test_a_terminal_gets_a_live_line_that_the_row_replaces() -> None:
    bar, file = table(terminal=True)
    epoch(bar, trainer(train_loss=0.5, val_loss=0.25))
    text = file.getvalue()
    assert "\r\x1b[2Kepoch 1  step 1/10  loss 0.5000  " in text
    assert text.count("step ") == 1, "a few times a second, not each step"
    assert text.index("step 1/10") < text.rindex("\r\x1b[2K") < text.index("0.2500")


def test_other_processes_show_nothing() -> None:
    bar, file = table(terminal=True)
    bar.disable()
    epoch(bar, trainer(train_loss=0.5, val_loss=0.25))
    bar.on_train_end(trainer(), MODULE)
    assert file.getvalue() == ""
    bar.enable()
    epoch(bar, trainer(train_loss=0.5, val_loss=0.25))
    assert "0.2500" in file.getvalue()


def test_a_run_without_validation_has_its_own_columns() -> None:
    bar, file = table()
    now = trainer(train_loss=0.5)
    now.max_epochs = -1
    epoch(bar, now)
    assert file.getvalue().splitlines()[0].split() == ["epoch", "train/loss", "samples/s"]
    assert file.getvalue().splitlines()[1].split()[:2] == ["1", "0.5000"]


class Scored(L.LightningModule):
    """Has the means of its epoch, as `MLPModule` has."""

    def __init__(self, **scores: float) -> None:
        super().__init__()
        self.scores = {name.replace("_", "/", 1): value for name, value in scores.items()}

    def epoch_scores(self) -> dict[str, float]:
        return self.scores


@pytest.mark.parametrize("task", SCORES)
def test_row_shows_the_means_of_the_epoch_and_what_fits_beside_them(task: str) -> None:
    bar, file = table()
    now = trainer(train_loss=0.1, val_loss=0.5)
    now.callback_metrics |= {name: torch.tensor(0.25) for name in SCORES[task]}
    score = SCORES[task][0].replace("val/", "train_")
    bar.on_train_start(now, MODULE)
    bar.on_validation_end(now, MODULE)
    bar.on_train_epoch_end(now, Scored(train_loss=0.36, **{score: 0.9}))
    header, row = file.getvalue().splitlines()
    assert header.split()[:4] == ["epoch", "train/loss", score.replace("_", "/"), "val/loss*"]
    assert header.split()[4] == SCORES[task][0]
    assert row.split()[:5] == ["1/12", "0.3600", "0.9000", "0.5000", "0.2500"]
    assert max(map(len, (header, row))) <= 80


def test_mark_is_of_the_monitored_metric(tmp_path: Path) -> None:
    bar, file = table()
    for index, (loss, accuracy) in enumerate([(0.5, 0.5), (0.4, 0.4), (0.6, 0.6)]):
        now = trainer(train_loss=0.0, val_loss=loss, val_accuracy=accuracy)
        now.checkpoint_callbacks, now.current_epoch = [BestCheckpoint(tmp_path / "best", "val/accuracy")], index
        if index == 0:
            bar.on_train_start(now, MODULE)
        epoch(bar, now)
    bar.on_train_end(now, MODULE)
    header, *rows, legend = file.getvalue().splitlines()
    assert header.split()[2:4] == ["val/loss", "val/accuracy*"]
    assert [row.endswith("*") for row in rows] == [True, False, True]
    assert legend == "* highest val/accuracy so far"


def test_epoch_without_validation_shows_no_old_scores() -> None:
    bar, file = table()
    now = trainer(train_loss=0.5, val_loss=0.25)
    bar.on_train_epoch_start(now, MODULE)
    bar.on_train_epoch_end(now, MODULE)
    epoch(bar, now)
    assert [line.split()[1:3] for line in file.getvalue().splitlines()] == [
        ["train/loss", "samples/s"],
        ["0.5000", "0"],
        ["train/loss", "val/loss*"],
        ["0.5000", "0.2500"],
    ]


def test_throughput_of_an_epoch_that_goes_on_counts_from_the_resume(monkeypatch: pytest.MonkeyPatch) -> None:
    bar, _ = table()
    now = trainer(train_loss=0.0)
    clock = iter([10.0, 11.0, 12.0, 12.0])
    monkeypatch.setattr(time, "perf_counter", lambda: next(clock))
    bar.on_train_start(now, MODULE)  # 10; within an epoch there is no on_train_epoch_start
    bar.on_train_batch_end(now, MODULE, None, BATCH, 7)
    bar.on_train_batch_end(now, MODULE, None, BATCH, 8)
    bar.on_train_epoch_end(now, MODULE)
    assert bar.samples_per_second == 16 / 2
