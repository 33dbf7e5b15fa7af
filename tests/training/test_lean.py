"""The steps are leaner, and nothing else is different."""

import lightning as L
import pytest
import torch
from lightning.pytorch.profilers import PassThroughProfiler, SimpleProfiler

import mlp_lab.training.module as training
from mlp_lab import MLPModule, TabularDataModule
from mlp_lab.training.lean import STEP_HOOKS, SilentProfiler

STEPS = 12


class Listener(L.Callback):
    """Counts the calls of every hook of a step; has no other."""

    def __init__(self) -> None:
        self.calls = dict.fromkeys(STEP_HOOKS, 0)


def count(name: str):
    def hook(self: Listener, *_: object) -> None:
        self.calls[name] += 1

    return hook


for _name in STEP_HOOKS:
    setattr(Listener, _name, count(_name))


class Idle(L.Callback):
    """Has no hook at all."""


def fit(*callbacks: L.Callback, profiler: PassThroughProfiler | None = None) -> tuple[L.Trainer, MLPModule]:
    L.seed_everything(0, verbose=False)
    data = TabularDataModule(dataset="digits", batch_size=32, verbose=False)
    module = MLPModule(data.spec_dict, width=16, dropout=0.1)
    trainer = L.Trainer(
        max_steps=STEPS,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=list(callbacks),
        profiler=profiler,
    )
    trainer.fit(module, data)
    return trainer, module


def test_hooks_that_somebody_wrote_are_called_each_step() -> None:
    listener = Listener()
    fit(listener)
    assert listener.calls == dict.fromkeys(STEP_HOOKS, STEPS)


def test_empty_hooks_are_skipped_within_the_fit_and_back_after_it() -> None:
    class Watcher(L.Callback):
        seen: object = "nothing"

        def on_train_batch_end(self, trainer: L.Trainer, *_: object) -> None:
            self.seen = idle.on_after_backward

    watcher, idle = Watcher(), Idle()
    _, module = fit(watcher, idle)
    assert watcher.seen is None
    for part in (module, watcher, idle):
        assert all(callable(getattr(part, name)) for name in STEP_HOOKS)


def test_weights_are_those_of_unchanged_lightning(monkeypatch: pytest.MonkeyPatch) -> None:
    _, lean = fit()
    monkeypatch.setattr(training, "quicken", lambda trainer, module: None)
    _, plain = fit()
    for one, other in zip(lean.parameters(), plain.parameters(), strict=True):
        assert torch.equal(one, other)


def test_a_profiler_that_was_asked_for_stays() -> None:
    trainer, _ = fit(profiler=SimpleProfiler())
    assert type(trainer.profiler) is SimpleProfiler
    assert len(trainer.profiler.recorded_durations["run_training_batch"]) == STEPS
    assert type(fit()[0].profiler) is SilentProfiler


def test_the_silent_context_nests_and_lets_exceptions_through() -> None:
    profiler = SilentProfiler()
    with pytest.raises(KeyError), profiler.profile("outer"), profiler.profile("inner"):
        raise KeyError
