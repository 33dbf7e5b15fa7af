"""Checkpoints that cannot be torn, the best and the last, early stopping, and the random generators."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.trainer.states import TrainerFn

from mlp_lab.errors import NonFiniteError, UserError
from mlp_lab.training.checkpoints import (
    AtomicCheckpointIO,
    BestCheckpoint,
    EarlyStop,
    LastCheckpoint,
    direction,
    save_finite,
)


class FakeTrainer:
    """What the callbacks read of a trainer that fits, with the metrics of one validation pass."""

    def __init__(self, **metrics: float) -> None:
        self.state = SimpleNamespace(fn=TrainerFn.FITTING)
        self.sanity_checking = self.fast_dev_run = self.should_stop = False
        self.current_epoch, self.max_steps = 0, -1
        self.world_size, self.global_rank = 1, 0
        self.callback_metrics = {name.replace("_", "/"): torch.tensor(value) for name, value in metrics.items()}
        self.strategy = SimpleNamespace(reduce_boolean_decision=lambda decision, all: decision)
        self.saved: list[Path] = []

    def save_checkpoint(self, path: Path) -> None:
        self.saved.append(path)


def trainer(**metrics: float) -> Any:
    return FakeTrainer(**metrics)


MODULE: Any = L.LightningModule()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("part", ["weights", "optimizer"])
def test_a_state_that_is_not_finite_is_never_written(part: str, value: float, tmp_path: Path) -> None:
    path, plugin = tmp_path / "last.ckpt", AtomicCheckpointIO()
    state = {"state_dict": {"w": torch.ones(3)}, "optimizer_states": [{"state": {0: {"exp_avg": torch.ones(3)}}}]}
    bad = state["state_dict"]["w"] if part == "weights" else state["optimizer_states"][0]["state"][0]["exp_avg"]  # type: ignore[call-overload]
    name = "state_dict.w" if part == "weights" else r"optimizer_states\[0\].state.0.exp_avg"
    bad[1] = value
    with pytest.raises(NonFiniteError, match=rf"^{name} is not finite, so last.ckpt was not saved; nothing was"):
        plugin.save_checkpoint(state, path)
    assert not path.exists()
    bad[1] = 0.0
    plugin.save_checkpoint(state, path)
    before = path.read_bytes()
    bad[2] = value
    with pytest.raises(NonFiniteError, match=r"the last good one is kept$"):
        plugin.save_checkpoint(state, path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_several_processes_refuse_together(tmp_path: Path) -> None:
    """Each process asks the others, whatever it sees itself; a stand-in answers for them."""
    now = trainer()
    now.world_size, now.optimizers, now.lightning_module = 2, [], torch.nn.Linear(2, 2)
    save_finite(now, tmp_path / "last.ckpt")
    assert now.saved == [tmp_path / "last.ckpt"]
    now.strategy.reduce_boolean_decision = lambda decision, all: True
    with pytest.raises(NonFiniteError, match="a tensor of another process"):
        save_finite(now, tmp_path / "last.ckpt")
    with torch.no_grad():
        now.lightning_module.weight[0, 0] = float("nan")
    with pytest.raises(NonFiniteError, match=r"^state_dict\.weight is not finite"):
        save_finite(now, tmp_path / "last.ckpt")
    assert len(now.saved) == 1


@pytest.mark.parametrize("fails", ["save", "fsync"])
def test_a_failed_write_keeps_the_former_file(fails: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, plugin = tmp_path / "last.ckpt", AtomicCheckpointIO()
    plugin.save_checkpoint({"a": torch.ones(3)}, path)
    before = path.read_bytes()

    def torn(_: Any, file: Any) -> None:
        file.write(b"half a checkpoint")
        raise OSError("the disk is full")

    def failed(_: int) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr(*((torch, "save", torn) if fails == "save" else ("os.fsync", failed)))
    with pytest.raises(OSError, match="disk is full"):
        plugin.save_checkpoint({"a": torch.zeros(3)}, path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]


def test_the_partial_file_of_a_killed_process_is_overwritten(tmp_path: Path) -> None:
    (tmp_path / ".last.ckpt.partial").write_bytes(b"x" * 10_000)
    AtomicCheckpointIO().save_checkpoint({"a": torch.ones(3)}, tmp_path / "last.ckpt")
    assert torch.equal(torch.load(tmp_path / "last.ckpt", weights_only=True)["a"], torch.ones(3))
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]


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
    (tmp_path / "best.ckpt").touch()
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
