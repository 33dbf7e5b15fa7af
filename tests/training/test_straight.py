"""The straight path takes Lightning's steps: same hooks in the same order, same counters, same bits."""

from __future__ import annotations

import copy
import functools
import os
from typing import Any

import lightning as L
import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from lightning.pytorch.plugins.precision import MixedPrecision
from lightning.pytorch.profilers import SimpleProfiler
from torch import Tensor, nn
from torch.utils.data import DataLoader

import mlp_lab.training.straight as straight
from mlp_lab import MLPModule, TabularDataModule
from mlp_lab.training.optimizers import OptimizerConfig
from mlp_lab.training.schedules import ScheduleConfig
from mlp_lab.training.straight import StraightModule

HOOKS = [name for name in dir(L.Callback) if name.startswith("on_") and "exception" not in name]


class Recorder(L.Callback):
    """Notes every hook that is called, with its values and with the loops' whole state at that moment."""

    def __init__(self) -> None:
        self.calls: list[Any] = []

    def note(self, name: str, trainer: L.Trainer, module: L.LightningModule, *values: Any) -> None:
        state = {} if trainer.fit_loop._data_fetcher is None else copy.deepcopy(trainer.fit_loop.state_dict())
        state.pop("epoch_loop.val_loop.state_dict", None)
        self.calls.append((name, module._current_fx_name, trainer.global_step, state, [plain(one) for one in values]))


def plain(value: Any) -> Any:
    """Returns what two runs can be compared by."""
    if isinstance(value, Tensor):
        return value.detach().tolist()
    if isinstance(value, dict):
        return {key: plain(one) for key, one in value.items()}
    return [plain(one) for one in value] if isinstance(value, tuple) else value if isinstance(value, int) else None


def recording(name: str):
    def hook(self: Recorder, trainer: L.Trainer, module: L.LightningModule, *values: Any) -> None:
        self.note(name, trainer, module, *values)

    return hook


for _name in HOOKS:
    setattr(Recorder, _name, recording(_name))


class Logging(L.Callback):
    """Uses `self.log` from a hook of the step."""

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *_: Any) -> None:
        module.log("seen", float(trainer.global_step), on_step=True, on_epoch=True, batch_size=1)


class Listening(MLPModule):
    """Has a hook of the step itself, and a step that logs and returns a dict."""

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        gradient = self.model.head.weight.grad  # None in a step that was left out
        self.norms = [*getattr(self, "norms", []), None if gradient is None else float(gradient.norm())]

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        loss = super().training_step(batch, batch_idx)
        self.log("train/own", loss, batch_size=batch.count)
        return None if batch_idx == 2 else {"loss": loss, "index": batch_idx}


QUIET: dict[str, Any] = {
    "max_epochs": 2,
    "accelerator": "cpu",
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}


def fit(
    kind: type[MLPModule] = MLPModule,
    callbacks: tuple[L.Callback, ...] = (),
    settings: dict[str, Any] | None = None,
    **trainer_settings: Any,
) -> tuple[L.Trainer, MLPModule, Recorder]:
    L.seed_everything(0, verbose=False)
    data = TabularDataModule(dataset="digits", batch_size=128, verbose=False)
    module = kind(data.spec_dict, width=16, dropout=0.1, **(settings or {}))
    recorder = Recorder()
    trainer = L.Trainer(
        **{
            **QUIET,
            "limit_train_batches": 5,
            "limit_val_batches": 2,
            "log_every_n_steps": 2,
            **trainer_settings,
        },
        callbacks=[*callbacks, recorder],
    )
    trainer.fit(module, data)
    return trainer, module, recorder


@pytest.fixture
def straight_steps(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Counts the steps that took the straight path."""
    taken: list[int] = []
    step = straight.StraightPath._optimize

    def counted(self: straight.StraightPath, batch: Any, index: int) -> Any:
        taken.append(index)
        return step(self, batch, index)

    monkeypatch.setattr(straight.StraightPath, "_optimize", counted)
    return taken


CASES: dict[str, dict[str, Any]] = {
    "plain": {},
    "a schedule by step, and max-norm": {"settings": {"schedule": ScheduleConfig(name="cosine"), "max_norm": 1.0}},
    "a schedule by epoch": {"settings": {"schedule": ScheduleConfig(name="step")}},
    "plateau": {"settings": {"schedule": ScheduleConfig(name="plateau")}},
    "clipping": {"gradient_clip_val": 0.1},
    "clipping by value": {"gradient_clip_val": 0.01, "gradient_clip_algorithm": "value"},
    "max_steps": {"max_steps": 7, "max_epochs": -1},
    "validation within the epoch": {"val_check_interval": 2},
    "validation by steps": {"val_check_interval": 3, "check_val_every_n_epoch": None},
    "no validation": {"limit_val_batches": 0},
    "float64": {"precision": "64-true"},
    "bfloat16": {"precision": "bf16-mixed"},
    "a callback that logs": {"callbacks": (Logging(),)},
    "a module that listens, logs and leaves out a batch": {"kind": Listening},
    "muon": {"settings": {"optimizer": OptimizerConfig(name="muon")}},
    "all batches": {"limit_train_batches": 1.0},
}


@pytest.mark.filterwarnings("ignore:`training_step` returned `None`")
@pytest.mark.parametrize("case", CASES.values(), ids=CASES.keys())
def test_it_does_what_lightning_does(
    case: dict[str, Any], straight_steps: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer, ours, recorded = fit(**case)
    assert len(straight_steps) == trainer.global_step > 0
    monkeypatch.setattr(straight, "can_go_straight", lambda *_: False)
    reference, theirs, expected = fit(**case)
    assert len(straight_steps) == trainer.global_step == reference.global_step
    assert [call[0] for call in recorded.calls] == [call[0] for call in expected.calls]
    assert repr(recorded.calls) == repr(expected.calls)  # NaN is not equal to itself
    assert {name: value.tolist() for name, value in trainer.callback_metrics.items()} == {
        name: value.tolist() for name, value in reference.callback_metrics.items()
    }
    assert getattr(ours, "norms", None) == getattr(theirs, "norms", None)
    for one, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(one, other)


def test_hooks_that_nobody_wrote_are_not_called(straight_steps: list[int]) -> None:
    class Idle(L.Callback):
        pass

    class Watcher(L.Callback):
        hooks: tuple[Any, ...] = ()

        def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
            advance = trainer.fit_loop.epoch_loop.advance
            self.hooks = tuple(len(hooks) for hooks in advance.__self__._hooks.values())

    watcher = Watcher()
    fit(callbacks=(Idle(), watcher))
    assert watcher.hooks == (1, 1, 1, 1, 1, 2)  # the recorder's, and its own


class OwnBackward(MLPModule):
    def backward(self, loss: Tensor, *args: Any, **kwargs: Any) -> None:
        super().backward(2 * loss, *args, **kwargs)


class SkipsTheEpoch(MLPModule):
    def on_train_batch_start(self, batch: Any, batch_idx: int) -> int | None:
        return -1 if batch_idx == 3 else None


class OwnStep(MLPModule):
    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        super().optimizer_step(*args, **kwargs)


@pytest.mark.parametrize(
    "case",
    [
        {"profiler": SimpleProfiler()},
        {"accumulate_grad_batches": 2},
        {"kind": OwnBackward},
        {"kind": SkipsTheEpoch},
        {"kind": OwnStep},
        {"plugins": [MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu"))]},
    ],
    ids=["profiler", "accumulation", "backward", "on_train_batch_start", "optimizer_step", "gradient scaler"],
)
def test_what_is_not_the_common_case_is_lightnings(case: dict[str, Any], straight_steps: list[int]) -> None:
    trainer, _, _ = fit(**case)
    assert trainer.global_step > 0
    assert not straight_steps


class TwiceCalling(torch.optim.SGD):
    """Calls its closure twice, returns something else, and zeroes gradients by itself."""

    zeroed = 0

    def step(self, closure: Any = None) -> float:
        closure()
        super().step(closure)
        return 0.0

    def zero_grad(self, set_to_none: bool = True) -> None:
        self.zeroed += 1
        super().zero_grad(set_to_none)


class ClosureIgnoring(torch.optim.SGD):
    def step(self, closure: Any = None) -> None:
        super().step()


def with_optimizer(optimizer: type[torch.optim.Optimizer], **settings: Any) -> type[MLPModule]:
    class WithOptimizer(MLPModule):
        def configure_optimizers(self) -> torch.optim.Optimizer:
            return optimizer(self.parameters(), lr=0.1, **settings)

        def training_step(self, batch: Any, batch_idx: int) -> Any:
            return {"loss": super().training_step(batch, batch_idx), "index": batch_idx}

    return WithOptimizer


class Wrapped(L.Callback):
    """Its hook carries the name and code of the empty one, as `functools.wraps` leaves it."""

    seen = 0

    @functools.wraps(L.Callback.on_before_zero_grad)
    def on_before_zero_grad(self, *_: Any) -> None:
        self.seen += 1


@pytest.mark.parametrize("kind", [with_optimizer(torch.optim.LBFGS, max_iter=3), with_optimizer(TwiceCalling)])
def test_straight_path_unusual_optimizer_does_what_lightning_does(
    kind: type[MLPModule], straight_steps: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    trainer, ours, recorded = fit(kind, callbacks=(wrapped := Wrapped(),))
    assert len(straight_steps) == trainer.global_step > 0
    monkeypatch.setattr(straight, "can_go_straight", lambda *_: False)
    reference, theirs, expected = fit(kind, callbacks=(other := Wrapped(),))
    assert repr(recorded.calls) == repr(expected.calls)
    assert wrapped.seen == other.seen > trainer.global_step
    assert getattr(trainer.optimizers[0], "zeroed", 0) == getattr(reference.optimizers[0], "zeroed", 0)
    for one, another in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert torch.equal(one, another)


@pytest.mark.parametrize("goes_straight", [True, False])
def test_fit_optimizer_that_ignores_its_closure_raises(goes_straight: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    if not goes_straight:
        monkeypatch.setattr(straight, "can_go_straight", lambda *_: False)
    with pytest.raises(MisconfigurationException, match="closure hasn't been executed"):
        fit(with_optimizer(ClosureIgnoring))


class Plain(L.LightningModule):
    """Sums the outputs of one layer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(2, 1)

    def training_step(self, batch: Tensor, batch_idx: int) -> Tensor:
        return self.layer(batch).sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Boring(Plain, StraightModule):
    """The same on the straight path."""


@pytest.mark.parametrize("goes_straight", [True, False])
def test_fit_batch_of_none_is_passed_over_with_a_warning(goes_straight: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    class Ends(L.Callback):
        def __init__(self) -> None:
            self.calls: list[Any] = []

        def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, *rest: Any) -> None:
            self.calls.append((outputs is None, rest[0] is None, rest[1], trainer.global_step))

    if not goes_straight:
        monkeypatch.setattr(straight, "can_go_straight", lambda *_: False)
    trainer = L.Trainer(**{**QUIET, "max_epochs": 1}, callbacks=[ends := Ends()])
    batches = DataLoader([torch.ones(2), None, torch.ones(2)], batch_size=None)
    with pytest.warns(UserWarning, match="yielded None"):
        trainer.fit(Boring(), batches)
    assert ends.calls == [(False, False, 0, 1), (True, True, 1, 1), (False, False, 2, 2)]


@pytest.mark.parametrize("step", [0, 2])
def test_trainer_after_a_failed_fit_trains_the_module_it_is_given(step: int) -> None:
    class Fails(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
            if trainer.global_step > step:
                raise ZeroDivisionError

    trainer = L.Trainer(**{**QUIET, "max_epochs": 1}, callbacks=[Fails()])
    old, loader = Boring(), DataLoader(torch.ones(4, 2))
    with pytest.raises(ZeroDivisionError):
        trainer.fit(old, loader)
    trainer.callbacks.pop()
    before = copy.deepcopy(old.state_dict())
    new = Plain()
    weight = new.layer.weight.clone()
    trainer.fit(new, loader)
    assert not torch.equal(new.layer.weight, weight)
    assert all(torch.equal(value, before[name]) for name, value in old.state_dict().items())
    assert "advance" not in vars(trainer.fit_loop.epoch_loop)


def test_nothing_is_left_after_a_fit_or_an_exception() -> None:
    class Fails(L.Callback):
        def on_after_backward(self, trainer: L.Trainer, module: L.LightningModule) -> None:
            raise ZeroDivisionError

    trainer, module, _ = fit()
    loop = trainer.fit_loop.epoch_loop
    assert loop.advance.__func__ is _TrainingEpochLoop.advance
    assert os.environ[straight.NVML_CHECK] == "1"
    trainer.callbacks.append(Fails())
    trainer.fit_loop.max_epochs = 3
    data = TabularDataModule(dataset="digits", batch_size=128, verbose=False)
    with pytest.raises(ZeroDivisionError):
        trainer.fit(module, data)
    trainer.callbacks.pop()

    another = L.Trainer(max_steps=2, accelerator="cpu", logger=False, enable_checkpointing=False, barebones=True)
    another.fit(Plain(), DataLoader(torch.ones(4, 2)))
    assert another.global_step == 2
