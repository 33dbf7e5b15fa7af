"""Takes out of a Lightning step what does nothing.

A step of a small MLP takes about 1.3 ms in a loop written by hand on one core; `L.Trainer` and a run's callbacks add
more than half of that, most of it the same few things done dozens of times. `quicken` removes, in microseconds per step
(torch 2.15, lightning 2.6.6, on a machine without a GPU; `tests/benchmarks/overhead.py` measures what is left):

- 120: importing Lightning sets `PYTORCH_NVML_BASED_CUDA_CHECK`; every step of a fused Adam asks whether there is an
  accelerator, and each time loads NVIDIA's management library to find out;
- 60: a profiler that records nothing enters 60 context managers;
- 70: every callback, and the module, is called six times a step, though most have nothing to do within one.

Nothing that is observable changes: a profiler that was asked for stays, and a hook that somebody wrote is called.
"""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import lightning as L
from lightning.pytorch.profilers import PassThroughProfiler
from torch.optim import Optimizer

NVML_CHECK = "PYTORCH_NVML_BASED_CUDA_CHECK"
STEP_HOOKS = (
    "on_train_batch_start",
    "on_before_zero_grad",
    "on_before_backward",
    "on_after_backward",
    "on_before_optimizer_step",
    "on_train_batch_end",
)
_NOTHING = nullcontext()


class LeanModule(L.LightningModule):
    """A LightningModule whose parts of a step cost what they do: 100 us less in all than the ones that it overrides."""

    def __setattr__(self, name: str, value: Any) -> None:
        """Sets an attribute; the running hook's name, which Lightning notes 40 times a step, without torch's search.

        That search, whether the value is a parameter, a module or a buffer, takes 70 us of a step in all.
        """
        if name == "_current_fx_name":
            self.__dict__[name] = value
        else:
            super().__setattr__(name, value)

    def optimizer_zero_grad(self, epoch: int, batch_idx: int, optimizer: Optimizer) -> None:
        """Drops the gradients as `zero_grad` does, without its profiler record."""
        for group in optimizer.param_groups:
            for parameter in group["params"]:
                parameter.grad = None

    def configure_gradient_clipping(
        self,
        optimizer: Optimizer,
        gradient_clip_val: float | None = None,
        gradient_clip_algorithm: str | None = None,
    ) -> None:
        """Clips where clipping was asked for."""
        if gradient_clip_val:
            super().configure_gradient_clipping(optimizer, gradient_clip_val, gradient_clip_algorithm)


class SilentProfiler(PassThroughProfiler):
    """Profiles nothing, without a generator per action."""

    def profile(self, action_name: str) -> AbstractContextManager[None]:  # type: ignore[override]
        """Returns a context that does nothing, the same one each time."""
        return _NOTHING


def quicken(trainer: L.Trainer, module: L.LightningModule) -> None:
    """Makes the steps of a fit that is about to start cheaper, and nothing else different."""
    if type(trainer.profiler) is PassThroughProfiler:  # type: ignore[attr-defined]
        trainer.profiler = SilentProfiler()  # type: ignore[attr-defined]
    skip_empty_hooks(module, L.LightningModule)
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        skip_empty_hooks(callback, L.Callback)
    if trainer.strategy.root_device.type == "cpu":
        os.environ[NVML_CHECK] = "0"  # the plain check, which costs nothing where there is no driver


def relax(trainer: L.Trainer, module: L.LightningModule) -> None:
    """Gives every part its empty hooks back when the fit is over."""
    for part in (module, *trainer.callbacks):  # type: ignore[attr-defined]
        for name in STEP_HOOKS:
            if part.__dict__.get(name, part) is None:
                del part.__dict__[name]


def skip_empty_hooks(part: L.LightningModule | L.Callback, base: type) -> None:
    """Sets those hooks of a step to None that `part` inherits unchanged from `base`: Lightning calls only callables."""
    for name in STEP_HOOKS:
        if getattr(part, name) is not None and getattr(type(part), name) is getattr(base, name):
            part.__dict__.setdefault(name, None)
