"""Bursts change nothing but the time: weights, counters and records are those of one step at a time."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import pytest
from torch import Tensor

import mlp_lab.training.burst as burst
import mlp_lab.training.straight as straight
from mlp_lab import MLPModule, TabularDataModule
from mlp_lab.training.checkpoints import LastCheckpoint
from mlp_lab.training.optimizers import OptimizerConfig
from mlp_lab.training.progress import EpochTable
from mlp_lab.training.random_state import RandomState
from mlp_lab.training.schedules import ScheduleConfig
from mlp_lab.training.tracking import MetricsCSV
from tests.training.test_straight import QUIET

BATCHES = 15  # of 100 rows in an epoch, the last one of 37


@pytest.fixture(autouse=True)
def no_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """A slow machine ends no burst early."""
    monkeypatch.setattr(burst, "SECONDS", 600.0)


class Sees(L.Callback):
    """Notes the steps that it is shown, and the loops' counters between them."""

    def __init__(self) -> None:
        self.steps: list[int] = []
        self.states: list[Any] = []

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        self.steps.append(trainer.global_step)

    def note(self, trainer: L.Trainer, *_: Any) -> None:
        state = trainer.fit_loop.state_dict()
        state.pop("epoch_loop.val_loop.state_dict")
        self.states.append((trainer.global_step, state))

    on_validation_start = on_train_epoch_end = note


class Quiet(Sees):
    def quiet_steps(self, trainer: L.Trainer) -> int:
        return burst.ANY


class Louder(Quiet):
    """Overrides a hook without saying anew what it need not see."""

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        super().on_train_batch_end(trainer)


def fit(
    steps_per_call: int | None,
    *callbacks: L.Callback,
    settings: dict[str, Any] | None = None,
    kind: type[MLPModule] = MLPModule,
    ckpt_path: Path | None = None,
    **trainer_settings: Any,
) -> tuple[L.Trainer, MLPModule]:
    L.seed_everything(0, verbose=False)
    data = TabularDataModule(dataset="digits", batch_size=100, verbose=False)
    module = kind(data.spec_dict, width=16, dropout=0.1, **(settings or {}))
    module.steps_per_call = steps_per_call
    trainer = L.Trainer(
        **{
            **QUIET,
            "log_every_n_steps": 4,
            **trainer_settings,
        },
        callbacks=list(callbacks),
    )
    trainer.fit(module, data, ckpt_path=ckpt_path, weights_only=True)
    return trainer, module


def weights(module: L.LightningModule) -> dict[str, list[Any]]:
    return {name: value.tolist() for name, value in module.state_dict().items() if isinstance(value, Tensor)}


CASES: dict[str, dict[str, Any]] = {
    "adam": {},
    "sgd": {"settings": {"optimizer": OptimizerConfig(name="sgd", lr=0.1)}},
    "a schedule by step, and max-norm": {
        "settings": {"schedule": ScheduleConfig(name="cosine", warmup=0.2), "max_norm": 1.0}
    },
    "plateau": {"settings": {"schedule": ScheduleConfig(name="plateau")}},
    "mixup": {"settings": {"mixup": 0.4}},
    "clipping": {"gradient_clip_val": 0.1},
    "max_steps": {"max_steps": 18, "max_epochs": -1},
    "validation within the epoch": {"val_check_interval": 3},
    "validation by steps": {"val_check_interval": 7, "check_val_every_n_epoch": None},
    "some batches": {"limit_train_batches": 7},
    "float64": {"precision": "64-true"},
    "bfloat16": {"precision": "bf16-mixed"},
    "accumulation": {"accumulate_grad_batches": 2},
}


@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_it_changes_nothing(case: dict[str, Any], tmp_path: Path) -> None:
    def run(name: str, most: int | None, seen: Sees) -> tuple[L.Trainer, MLPModule, str]:
        file = tmp_path / f"{name}.csv"
        trainer, module = fit(most, seen, **case, logger=MetricsCSV(file))
        return trainer, module, file.read_text()

    at_once, one_by_one = Quiet(), Quiet()
    trainer, module, lines = run("burst", None, at_once)
    reference, other, expected = run("single", 1, one_by_one)
    assert trainer.global_step == reference.global_step
    assert weights(module) == weights(other)
    assert lines == expected
    assert at_once.states == one_by_one.states
    assert repr(trainer.callback_metrics) == repr(reference.callback_metrics)
    fewer = len(at_once.steps) < len(one_by_one.steps)
    assert fewer == (case.keys() != {"accumulate_grad_batches"} and "plateau" not in repr(case))


def steps_seen(seen: Sees, steps_per_call: int | None = None, **settings: Any) -> list[int]:
    fit(steps_per_call, seen, **settings)
    return seen.steps


@pytest.mark.parametrize(
    ("settings", "expected"),
    [
        ({}, [4, 8, 12, 15, 16, 20, 24, 28, 30]),  # what is logged, and the ends of the epochs
        ({"log_every_n_steps": 50}, [15, 30]),
        ({"log_every_n_steps": 50, "val_check_interval": 4}, [4, 8, 12, 15, 19, 23, 27, 30]),
        ({"log_every_n_steps": 50, "max_steps": 19}, [15, 19]),
        ({"log_every_n_steps": 50, "limit_train_batches": 3}, [3, 6]),
        ({"log_every_n_steps": 50, "steps_per_call": 4}, [4, 8, 12, 15, 19, 23, 27, 30]),
    ],
)
def test_a_burst_ends_where_somebody_looks(settings: dict[str, Any], expected: list[int]) -> None:
    assert steps_seen(Quiet(), **settings) == expected


class OwnStep(MLPModule):
    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return super().training_step(batch, batch_idx)


class Listens(MLPModule):
    def on_after_backward(self) -> None:
        self.norm = self.model.head.weight.grad.norm()


@pytest.mark.parametrize("case", [{"seen": Sees()}, {"seen": Louder()}, {"kind": OwnStep}, {"kind": Listens}])
def test_who_does_not_speak_sees_every_step(case: dict[str, Any]) -> None:
    seen = case.pop("seen", Quiet())
    assert steps_seen(seen, **case) == list(range(1, 2 * BATCHES + 1))


def test_a_burst_ends_soon_after_a_signal(monkeypatch: pytest.MonkeyPatch) -> None:
    def burst_of(trainer: Any) -> int:
        one = burst.Burst.__new__(burst.Burst)
        one.trainer = trainer
        return len(list(one.steps(9)))

    assert burst_of(SimpleNamespace(should_stop=False, received_sigterm=False)) == 9
    assert burst_of(SimpleNamespace(should_stop=True, received_sigterm=False)) == 1
    assert burst_of(SimpleNamespace(should_stop=False, received_sigterm=True)) == 1
    monkeypatch.setattr(burst, "SECONDS", -1.0)
    assert burst_of(SimpleNamespace(should_stop=False, received_sigterm=False)) == 1


def test_a_run_goes_on_within_an_epoch(tmp_path: Path) -> None:
    settings = {"settings": {"schedule": ScheduleConfig(name="cosine")}, "log_every_n_steps": 50}
    _, whole = fit(None, RandomState(), **settings)
    path = tmp_path / "last.ckpt"

    class Killed(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
            if trainer.global_step == 22:
                raise KeyboardInterrupt

        def quiet_steps(self, trainer: L.Trainer) -> int:
            return 22 - trainer.global_step - 1

    with pytest.raises(SystemExit):
        fit(None, RandomState(), LastCheckpoint(path, every_n_steps=5), Killed(), enable_checkpointing=True, **settings)
    seen = Quiet()
    _, resumed = fit(None, RandomState(), seen, **settings, ckpt_path=path)
    assert seen.steps == [21, 30]  # the first step after a restart is Lightning's
    assert weights(resumed) == weights(whole)


def test_the_epoch_table_counts_all_rows() -> None:
    class Counts(EpochTable):
        drawn = 0

        def _print_row(self, trainer: L.Trainer, metrics: Any) -> None:
            self.drawn = self.rows

    table = Counts()
    seen = Quiet()
    fit(None, seen, table, enable_progress_bar=True, log_every_n_steps=50)
    assert seen.steps == [15, 30]
    assert table.drawn == 1437


def test_quiet_steps_call_no_hook_and_leave_all_in_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where a step of a burst fails."""
    paths: list[straight.StraightPath] = []
    optimize = straight.StraightPath._optimize

    def failing(self: straight.StraightPath, batch: Any, index: int) -> Any:
        paths.append(self)
        if index == 2:
            raise ZeroDivisionError
        return optimize(self, batch, index)

    monkeypatch.setattr(straight.StraightPath, "_optimize", failing)
    seen = Quiet()
    with pytest.raises(ZeroDivisionError):
        fit(None, seen, log_every_n_steps=50)
    assert seen.steps == []
    assert [len(hooks) for hooks in paths[0]._hooks.values()] == [0, 0, 0, 0, 0, 1]
    assert paths[0].trainer.global_step == 2
