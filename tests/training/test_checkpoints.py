"""Checkpoints that cannot be torn, the best and the last, early stopping, and the random generators."""

from __future__ import annotations

import errno
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.trainer.states import TrainerFn

from mlp_lab.errors import UserError
from mlp_lab.training.checkpoints import BestCheckpoint, EarlyStop, LastCheckpoint, direction


class FakeTrainer:
    """What the callbacks read of a trainer that fits, with the metrics of one validation pass."""

    def __init__(self, **metrics: float) -> None:
        self.state = SimpleNamespace(fn=TrainerFn.FITTING)
        self.sanity_checking = self.fast_dev_run = self.should_stop = False
        self.current_epoch, self.max_steps = 0, -1
        self.world_size, self.global_rank, self.global_step, self.is_global_zero = 1, 0, 7, True
        self.callback_metrics = {name.replace("_", "/"): torch.tensor(value) for name, value in metrics.items()}
        self.strategy = SimpleNamespace(reduce_boolean_decision=lambda decision, all: decision)
        self.saved: list[Path] = []

    def save_checkpoint(self, path: Path) -> None:
        self.saved.append(path)


def trainer(**metrics: float) -> Any:
    return FakeTrainer(**metrics)


MODULE: Any = L.LightningModule()


@pytest.mark.parametrize(
    ("monitor", "values", "saved"),
    [
        ("val/loss", [2.0, 1.0, 1.5, 1.0, float("nan"), 0.5], [0, 1, 5]),
        ("val/accuracy", [0.2, 0.1, 0.3, float("nan"), 0.3], [0, 2]),
        ("val/loss", [float("nan"), float("inf"), 3.0], [2]),
    ],
)
def test_the_best_is_kept_and_a_nan_is_never_the_best(
    monitor: str, values: list[float], saved: list[int], tmp_path: Path
) -> None:
    best = BestCheckpoint(tmp_path / "best.ckpt", monitor)
    assert best.best_model_path == ""
    epochs = []
    for epoch, value in enumerate(values):
        now = trainer(**{monitor.replace("/", "_"): value})
        now.current_epoch = epoch
        best.on_validation_end(now, MODULE)
        epochs += [epoch] if now.saved else []
    assert epochs == saved
    assert best.epoch == saved[-1]
    assert best.scores == {monitor: pytest.approx(values[saved[-1]])}


def test_best_checkpoint_when_disk_is_full_keeps_score_of_file_until_lost_state_is_beaten(tmp_path: Path) -> None:
    best, failures = BestCheckpoint(tmp_path / "best.ckpt"), []
    for value, full in [(3.0, False), (1.0, True), (2.0, False), (0.5, False)]:
        now = trainer(val_loss=value)
        if full:
            now.save_checkpoint = partial(raise_full, now)
        best.on_validation_end(now, MODULE)
        failures.append((best.score, best.failure))
    lost = "No space left on device"
    assert failures == [(3.0, None), (3.0, lost), (2.0, lost), (0.5, None)]


def test_last_checkpoint_when_disk_is_full_is_tried_again_at_the_next_save(tmp_path: Path) -> None:
    last, now = LastCheckpoint(tmp_path / "last.ckpt"), trainer()
    now.save_checkpoint = partial(raise_full, now)
    last._save(now)
    assert last.failure == "No space left on device"
    assert last._saved_step != now.global_step
    last._save(trainer())
    assert last.failure is None


def raise_full(now: Any, path: Path) -> None:
    raise OSError(errno.ENOSPC, "No space left on device", str(path))


def test_an_unknown_monitor_is_named_with_those_that_exist(tmp_path: Path) -> None:
    best = BestCheckpoint(tmp_path / "best.ckpt", "val/acc")
    message = r"^early_stopping.monitor: 'val/acc' is unknown.*; accepted: val/accuracy, val/loss$"
    with pytest.raises(UserError, match=message):
        best.on_validation_end(trainer(val_loss=1.0, val_accuracy=0.5), MODULE)


def test_a_new_run_from_anothers_checkpoint_has_no_best_yet(tmp_path: Path) -> None:
    state = {"score": 0.1, "epoch": 4, "scores": {"val/loss": 0.1}}
    best = BestCheckpoint(tmp_path / "best.ckpt")
    best.load_state_dict(state)
    assert best.best_model_path == ""
    torch.save({"callbacks": {best.state_key: state}}, best.path)
    best.load_state_dict(state)
    assert best.state_dict() == state


@pytest.mark.parametrize(("name", "expected"), [("val/loss", "min"), ("val/rmse", "min"), ("val/r2", "max")])
def test_direction(name: str, expected: str) -> None:
    assert direction(name) == expected


def stop_after(stop: EarlyStop, values: list[float], name: str = "val_loss") -> int | None:
    """Returns the index of the pass after which it stops, or None."""
    for index, value in enumerate(values):
        now = trainer(**{name: value})
        stop.on_validation_end(now, MODULE)
        stop.on_train_epoch_end(now, MODULE)  # judges nothing: the value is not a new one
        if now.should_stop:
            return index
    return None


def test_patience_counts_passes_without_improvement() -> None:
    assert stop_after(EarlyStop(patience=2), [3, 2, 2, 2.5, 1]) == 3
    assert stop_after(EarlyStop(patience=2), [3, 2, 2, 1.9, 2, 2]) == 5
    assert stop_after(EarlyStop(patience=2, min_delta=0.5), [3, 2, 1.8, 1.6]) == 3
    assert stop_after(EarlyStop(patience=1, monitor="val/accuracy"), [0.1, 0.2, 0.15], "val_accuracy") == 2
    assert stop_after(EarlyStop(patience=0), [1, 2, 3, float("nan")]) is None
    assert stop_after(EarlyStop(patience=9), [1, float("nan")]) == 1


@pytest.mark.parametrize(("monitor", "value"), [("val/loss", "inf"), ("val/accuracy", "nan")])
def test_first_value_that_is_not_finite_is_refused(monitor: str, value: str) -> None:
    with pytest.raises(UserError, match=rf"^early_stopping.monitor: {monitor} is {value} in the first validation, for"):
        stop_after(EarlyStop(patience=9, monitor=monitor), [float(value)], monitor.replace("/", "_"))


@pytest.mark.parametrize("values", [[1.0, 2.0, 2.0], [1.0, float("nan")]])
@pytest.mark.parametrize(("patience", "stops"), [(2, True), (5, False)])
def test_a_decided_stop_outlives_a_kill_unless_the_patience_is_another(
    values: list[float], patience: int, stops: bool
) -> None:
    stop, resumed, now = EarlyStop(patience=2), EarlyStop(patience=patience), trainer()
    assert stop_after(stop, values) is not None
    resumed.load_state_dict(stop.state_dict())
    resumed.on_train_start(now, MODULE)
    assert now.should_stop == stops
    assert resumed.patience == patience


def test_stop_of_another_callback_is_not_taken_for_a_decision_of_early_stopping() -> None:
    stop, now = EarlyStop(patience=2), trainer(val_loss=1.0)
    now.should_stop = True  # as `trainer.max_time` sets it after the batch before this validation
    stop.on_validation_end(now, MODULE)
    assert now.should_stop
    assert not stop.decided


@pytest.mark.parametrize("name", ["patience", "min_delta"])
def test_negative_settings_are_refused(name: str) -> None:
    with pytest.raises(UserError, match=rf"^early_stopping.{name}: -1 is negative; use 0 or more"):
        EarlyStop(**{name: -1})


def test_the_last_is_saved_by_the_clock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = [0.0]
    monkeypatch.setattr("time.monotonic", lambda: clock[0])
    monkeypatch.setattr("mlp_lab.training.checkpoints._validation_follows", lambda _: False)
    monkeypatch.setattr("mlp_lab.training.checkpoints._epoch_is_over", lambda _: False)
    last, now = LastCheckpoint(tmp_path / "last.ckpt", every_minutes=1.0), trainer()
    now.global_step = 0
    last.on_train_start(now, MODULE)
    for step, seconds in [(1, 59.0), (1, 70.0), (2, 71.0), (3, 120.0), (4, 132.0)]:
        now.global_step, clock[0] = step, seconds
        last.on_train_batch_end(now, MODULE, None, None, 0)
    assert len(now.saved) == 2  # at steps 2 and 4; the second batch of step 1 was only accumulated


def test_best_checkpoint_that_is_damaged_is_reported_and_replaced(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    best = BestCheckpoint(tmp_path / "best.ckpt")
    best.path.write_bytes(b"")
    best.load_state_dict({"score": 0.1, "epoch": 4, "scores": {"val/loss": 0.1}})
    assert best.score is None
    assert "best.ckpt is damaged; the best of the validations that follow replaces it" in capsys.readouterr().out
