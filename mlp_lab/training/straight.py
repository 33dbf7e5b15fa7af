"""The straight path through a training step.

A step of a small MLP takes about 1.3 ms in a loop written by hand on one core. Lightning leads it through a thousand
Python calls that add half of that: it looks up every hook, inspects signatures, and enters contexts that do nothing.
`StraightPath` takes the same step, with the same hooks and counters in the same order, in the one case that nearly
every run is: one device, automatic optimization, no accumulation, no gradient scaler, no profiler; in any other case
Lightning's own loop takes it. `tests/training/test_straight.py` holds the two paths against each other: order of hooks,
counters and weights, to the bit. Steps that nobody needs to see are taken in bursts (`mlp_lab/training/burst.py`).

On the CPU a further 120 us go where Lightning has set `PYTORCH_NVML_BASED_CUDA_CHECK`: every step of a fused Adam asks
whether there is an accelerator, and would each time load NVIDIA's management library to find out.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from enum import Enum
from functools import partial
from typing import Any

import lightning as L
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from lightning.pytorch.core.hooks import DataHooks
from lightning.pytorch.loops.fetchers import _DataFetcher
from lightning.pytorch.loops.optimization.automatic import Closure, ClosureResult
from lightning.pytorch.loops.training_epoch_loop import _TrainingEpochLoop
from lightning.pytorch.plugins.precision import DoublePrecision, MixedPrecision, Precision
from lightning.pytorch.profilers import PassThroughProfiler
from lightning.pytorch.strategies import SingleDeviceStrategy
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from lightning.pytorch.utilities.types import STEP_OUTPUT
from torch import Tensor
from torch.optim import Optimizer

from mlp_lab.data.loader import Batch, TensorLoader
from mlp_lab.training.accumulation import window_weight
from mlp_lab.training.batches import PairBatches
from mlp_lab.training.burst import STEP_HOOKS, Burst, overrides
from mlp_lab.training.heap import keep_freed_memory

Hook = Callable[..., Any]

NVML_CHECK = "PYTORCH_NVML_BASED_CUDA_CHECK"
# What a subclass may override that the straight path does not go through.
PASSED_BY = (
    "on_train_batch_start",  # may end the epoch
    "on_before_batch_transfer",
    "backward",
    "optimizer_zero_grad",
    "configure_gradient_clipping",
)
NO_LOSS = "`training_step` returned `None`. If this was on purpose, ignore this warning..."
NO_BATCH = "train_dataloader yielded None. If this was on purpose, ignore this warning..."
PRECISIONS = (Precision, DoublePrecision, MixedPrecision)


class StraightModule(L.LightningModule):
    """A LightningModule whose training steps take the straight path where they can, and in bursts."""

    steps_per_call: int | None = None
    """Most steps of a burst; None means as many as nobody needs to see, 1 takes each with all hooks."""

    window_weight = 1.0
    """What the mean loss of the last batch was multiplied by, so that accumulated gradients are a mean over rows."""

    quiet = False  # whether nobody looks at the step that is being taken

    def weigh_in_window(self, batch: Batch, batch_idx: int) -> float:
        """Sets and returns `window_weight` for a batch."""
        weight = window_weight(self.trainer, batch, batch_idx)
        if weight != self.window_weight:  # `setattr` of a module costs more than the comparison
            self.window_weight = weight
        return weight

    def replay(self, batch: Any, step: int) -> bool:
        """Takes a quiet step in a faster way, all of `after_optimizer_step` included; returns whether there is one."""
        return False

    def after_burst(self) -> None:
        """Called after quiet steps, before anybody looks."""

    def after_optimizer_step(self, step: int) -> None:
        """Called right after each optimizer step with the number of those taken, before any callback."""

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Steps as Lightning does, and then calls `after_optimizer_step`."""
        super().optimizer_step(*args, **kwargs)
        self.after_optimizer_step(self.trainer.global_step + 1)  # Lightning counts it later

    def on_train_start(self) -> None:
        """Takes the straight path, if the training that begins is of the common case; freed memory stays."""
        keep_freed_memory()
        leave(self.trainer)  # what a fit that failed has left
        if can_go_straight(self.trainer, self):
            go_straight(self.trainer, self)

    def on_train_end(self) -> None:
        """Gives Lightning's path back."""
        leave(self.trainer)

    def teardown(self, stage: str) -> None:
        """Gives Lightning's path back, where training did not reach its end."""
        leave(self.trainer)


def can_go_straight(trainer: L.Trainer, module: StraightModule) -> bool:
    """Returns whether the training steps of this fit are of the common case."""
    return reason_for_lightnings_loop(trainer, module) is None


def reason_for_lightnings_loop(trainer: L.Trainer, module: StraightModule) -> str | None:
    """Returns why Lightning's own loop takes the training steps of this fit; None where the straight path does."""
    precision = trainer.precision_plugin
    data = getattr(trainer, "datamodule", None)  # set by `fit`
    profiler = trainer.profiler  # type: ignore[attr-defined]
    overridden = [name for name in PASSED_BY if overrides(module, name)]
    if data is not None and overrides(data, "on_before_batch_transfer"):
        overridden.append("on_before_batch_transfer")
    reasons = {
        f"strategy {type(trainer.strategy).__name__}": type(trainer.strategy) is not SingleDeviceStrategy,
        f"precision {precision.precision}": type(precision) not in PRECISIONS or bool(getattr(precision, "scaler", 0)),
        f"profiler {type(profiler).__name__}": type(profiler) is not PassThroughProfiler,
        "accumulate_grad_batches": trainer.accumulate_grad_batches != 1,
        "manual optimization": not module.automatic_optimization,
        "not exactly one optimizer": len(trainer.optimizers) > 1,
        "an optimizer_step of its own": type(module).optimizer_step is not StraightModule.optimizer_step
        or "optimizer_step" in module.__dict__,
        f"a hook of its own: {', '.join(overridden)}": bool(overridden),
        "a training_step without batch_idx": not is_param_in_hook_signature(
            module.training_step, "batch_idx", min_args=2
        ),
        "dataloader_iter": is_param_in_hook_signature(module.training_step, "dataloader_iter", explicit=True),
    }
    return next((reason for reason, applies in reasons.items() if applies), None)


def go_straight(trainer: L.Trainer, module: StraightModule) -> None:
    """Makes the epoch loop take the straight path."""
    path, loop = StraightPath(trainer, module), trainer.fit_loop.epoch_loop
    loop.advance, loop.on_advance_end = path.advance, path.on_advance_end  # type: ignore[method-assign]
    if trainer.strategy.root_device.type == "cpu":
        os.environ[NVML_CHECK] = "0"  # the plain check, which costs nothing where there is no driver


def leave(trainer: L.Trainer) -> None:
    """Gives the epoch loop its own methods back, and Lightning its variable."""
    for name in ("advance", "on_advance_end"):
        trainer.fit_loop.epoch_loop.__dict__.pop(name, None)
    os.environ[NVML_CHECK] = "1"


class _NotRun(Enum):
    """What a step has put out before its closure ran."""

    NOT_RUN = 0


NOT_RUN = _NotRun.NOT_RUN


class StraightPath:
    """Takes the training steps of one fit in place of Lightning's epoch loop.

    Args:
        trainer: A trainer at the start of its training, for which `can_go_straight` holds.
        module: The module that it fits.
    """

    def __init__(self, trainer: L.Trainer, module: StraightModule) -> None:
        self.trainer, self.module = trainer, module
        self.loop: _TrainingEpochLoop = trainer.fit_loop.epoch_loop
        parts = (*trainer.callbacks, module)  # type: ignore[attr-defined]
        self._hooks = {
            name: [hook for part in parts if (hook := _hook(part, name, trainer, module))] for name in STEP_HOOKS
        }
        self._burst = Burst(trainer, module)
        self._transfers = list(_transfers(trainer, module))
        # A plain `Precision` has a context too, one that does nothing.
        self._context = None if type(trainer.precision_plugin) is Precision else trainer.precision_plugin
        optimizer = trainer.optimizers[0]
        self._own_zero_grad = type(optimizer).zero_grad is not Optimizer.zero_grad or "zero_grad" in vars(optimizer)
        self._output: STEP_OUTPUT | _NotRun = NOT_RUN

    def advance(self, data_fetcher: _DataFetcher) -> None:
        """Does what `_TrainingEpochLoop.advance` does; its first step after a restart is left to it."""
        loop, trainer = self.loop, self.trainer
        if trainer.lightning_module is not self.module:  # a fit that failed has left this path to the next module
            leave(trainer)
            loop.advance(data_fetcher)
            return
        if loop.restarting or trainer.accumulate_grad_batches != 1:
            _TrainingEpochLoop.advance(loop, data_fetcher)
            return
        if loop.val_loop.restarting:
            loop.val_loop.restarting = False
        connector, results, progress = trainer._logger_connector, loop._results, loop.batch_progress
        if count := self._burst.count(data_fetcher):
            self._take_quiet_steps(data_fetcher, count)
        batch, index = self._next(data_fetcher)
        connector._first_loop_iter = connector._first_loop_iter is None
        results.batch, results.batch_size, results.dataloader_idx = batch, None, None
        if batch is None:
            loop._warning_cache.warn(NO_BATCH)
            output = None
        else:
            self._call("on_train_batch_start", batch, index)
            progress.increment_started()
            output = self._optimize(batch, index)
        progress.increment_processed()
        self._update_schedules()
        if self._hooks["on_train_batch_end"]:
            self._call("on_train_batch_end", None if batch is None else _detached(output), batch, index)
        if results:  # something was logged by `self.log`
            connector.on_batch_end()
        results.batch = results.batch_size = None
        progress.increment_completed()
        if results:
            connector.update_train_step_metrics()

    def _take_quiet_steps(self, data_fetcher: _DataFetcher, count: int) -> None:
        """Takes steps that nobody needs to see before the next one."""
        loop, module, hooks = self.loop, self.module, self._hooks
        progress, optimizing = loop.batch_progress, loop.automatic_optimization.optim_progress.optimizer
        self._hooks, module.quiet = {name: [] for name in STEP_HOOKS}, True
        try:
            for _ in self._burst.steps(count):
                batch, index = self._next(data_fetcher)
                if batch is None:
                    loop._warning_cache.warn(NO_BATCH)
                else:
                    progress.increment_started()
                    if module.replay(batch, optimizing.step.total.completed + 1):
                        optimizing.step.increment_by(1)
                        optimizing.zero_grad.increment_by(1)
                    else:
                        self._optimize(batch, index)
                progress.increment_processed()
                self._update_schedules()
                for listener in self._burst.passed_by:
                    listener(batch)
                progress.increment_completed()
                loop._batches_that_stepped += 1
        finally:
            self._hooks, module.quiet = hooks, False
        module.after_burst()
        self.trainer._logger_connector._first_loop_iter = True  # of the epoch; no longer for the step that follows

    def _next(self, data_fetcher: _DataFetcher) -> tuple[Any, int]:
        """Returns the next batch, on the device, and its number in the epoch."""
        progress = self.loop.batch_progress
        batch = next(data_fetcher)[0]
        progress.is_last_batch = data_fetcher.done
        for transfer in self._transfers:
            batch = transfer(batch)
        progress.increment_ready()
        return batch, progress.current.ready - 1

    def _update_schedules(self) -> None:
        if self.trainer.lr_scheduler_configs:
            self.loop.update_lr_schedulers("step", update_plateau_schedulers=False)
            if self.loop._num_ready_batches_reached():
                self.loop.update_lr_schedulers("epoch", update_plateau_schedulers=False)

    def on_advance_end(self, data_fetcher: _DataFetcher) -> None:
        """Does what `_TrainingEpochLoop.on_advance_end` does between two batches that nothing comes between."""
        loop, trainer = self.loop, self.trainer
        uneventful = not (
            loop.batch_progress.is_last_batch
            or loop.batch_progress.current.ready >= trainer.num_training_batches
            or trainer.should_stop
            or trainer.received_sigterm
            or loop._skip_next_val
            or trainer.accumulate_grad_batches != 1
            or trainer.val_check_batch != trainer.num_training_batches
            or trainer.check_val_every_n_epoch is None
            or any(config.reduce_on_plateau for config in trainer.lr_scheduler_configs)
        )
        if uneventful:
            loop._batches_that_stepped += 1
        else:
            _TrainingEpochLoop.on_advance_end(loop, data_fetcher)

    def _optimize(self, batch: Any, index: int) -> STEP_OUTPUT:
        """Does what `_AutomaticOptimization.run` does: loss, gradients, optimizer step. Returns the step's output.

        Raises:
            MisconfigurationException: The optimizer has not called its closure, so that nothing was trained.
        """
        progress = self.loop.automatic_optimization.optim_progress.optimizer
        optimizer = self.trainer.optimizers[0]
        progress.step.increment_ready()
        optimizer.step(partial(self._closure, batch, index))  # type: ignore[arg-type]
        self.module.after_optimizer_step(progress.step.total.completed + 1)
        progress.step.increment_completed()
        output, self._output = self._output, NOT_RUN
        if isinstance(output, _NotRun):
            name = type(optimizer).__name__
            raise MisconfigurationException(
                f"The closure hasn't been executed: {name}.step(closure) must call its closure, which takes gradients"
            )
        return output

    @torch.enable_grad()
    def _closure(self, batch: Any, index: int) -> Tensor | None:
        """Returns the loss for the optimizer, without its graph; an optimizer may call this several times."""
        trainer, module = self.trainer, self.module
        progress = self.loop.automatic_optimization.optim_progress.optimizer.zero_grad
        optimizer = trainer.optimizers[0]
        module.__dict__["_current_fx_name"] = "training_step"  # for `self.log`; `setattr` searches parameters first
        if self._context is None:
            output = module.training_step(batch, index)
        else:
            with self._context.train_step_context():
                output = module.training_step(batch, index)
        module.__dict__["_current_fx_name"] = None
        self._output = output
        loss = output if isinstance(output, Tensor) else ClosureResult.from_training_step_output(output).closure_loss
        if loss is None:  # a module may leave out a batch
            Closure.warning_cache.warn(
                "`training_step` returned `None`. If this was on purpose, ignore this warning..."
            )
        progress.increment_ready()
        self._call("on_before_zero_grad", optimizer)
        progress.increment_started()
        if self._own_zero_grad:
            optimizer.zero_grad()
        else:
            for group in optimizer.param_groups:
                for parameter in group["params"]:
                    parameter.grad = None  # as `zero_grad` does, without its profiler record
        progress.increment_completed()
        if loss is not None:
            self._call("on_before_backward", loss)
            loss.backward()  # type: ignore[no-untyped-call]
            self._call("on_after_backward")
        self._call("on_before_optimizer_step", optimizer)
        if trainer.gradient_clip_val:
            module.clip_gradients(optimizer, trainer.gradient_clip_val, trainer.gradient_clip_algorithm)
        return None if loss is None else loss.detach()

    def _call(self, name: str, *args: Any) -> None:
        """Calls a hook of those that have it, callbacks first, as Lightning does."""
        for hook in self._hooks[name]:
            self.module.__dict__["_current_fx_name"] = name
            hook(*args)
            self.module.__dict__["_current_fx_name"] = None


def _detached(output: STEP_OUTPUT) -> dict[str, Any]:
    """Returns what `on_train_batch_end` gets: a copy of the loss without its graph, and what came with it."""
    if isinstance(output, Tensor):
        return {"loss": output.detach().clone()}
    return {} if output is None else ClosureResult.from_training_step_output(output).asdict()


def _hook(part: L.Callback | L.LightningModule, name: str, *first: Any) -> Hook | None:
    """Returns a hook with the arguments that a callback's gets first, None for one that is empty."""
    if not overrides(part, name):
        return None
    hook: Hook = getattr(part, name)
    return partial(hook, *first) if isinstance(part, L.Callback) else hook


def _transfers(trainer: L.Trainer, module: StraightModule) -> Iterator[Hook]:
    """Yields what brings a batch to the device, without the steps that would leave it as it is."""
    if not isinstance(trainer.precision_plugin, MixedPrecision) and type(trainer.precision_plugin) is not Precision:
        yield trainer.precision_plugin.convert_input
    owner = trainer._data_connector._datahook_selector
    assert owner is not None
    move = owner.get_instance("transfer_batch_to_device").transfer_batch_to_device
    yield partial(move, device=trainer.strategy.root_device, dataloader_idx=0)
    last = owner.get_instance("on_after_batch_transfer")
    if type(last).on_after_batch_transfer is not DataHooks.on_after_batch_transfer:
        yield partial(last.on_after_batch_transfer, dataloader_idx=0)
    if isinstance(module, PairBatches) and not isinstance(trainer.train_dataloader, TensorLoader):
        yield module.as_batch
