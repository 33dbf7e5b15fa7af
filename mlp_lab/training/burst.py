"""Bursts: training steps that nobody needs to see, taken one after another without hooks.

A callback or a module that looks at single steps says by a method `quiet_steps(trainer)` how many of the next ones it
need not see. The straight path takes that many without calling anybody, and then one with all hooks: it is the one that
is logged, measured or validated after, that ends the epoch or the training. So every counter is exact whenever anybody
looks, and a checkpoint never falls into a burst. Whoever overrides a hook of the step without such a method sees every
step, so that callbacks of others work as they always do.

A callback may have `pass_by(batch)` too: it is called in each quiet step.
"""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator

import lightning as L
from lightning.pytorch.loops.fetchers import _DataFetcher

STEP_HOOKS = (
    "on_train_batch_start",
    "on_before_zero_grad",
    "on_before_backward",
    "on_after_backward",
    "on_before_optimizer_step",
    "on_train_batch_end",
)
ANY = sys.maxsize
"""Quiet steps of whoever need see none."""
SECONDS = 0.1
"""Longest time of a burst: what goes by the clock, or waits for a signal, waits no longer."""

QuietSteps = Callable[[L.Trainer], int]


class Burst:
    """Says which steps of a fit may be taken quietly.

    Args:
        trainer: A trainer at the start of its training.
        module: The module that it fits. Its `steps_per_call` bounds a burst, the step with hooks included.
    """

    def __init__(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.trainer, self.module = trainer, module
        callbacks: list[L.Callback] = trainer.callbacks  # type: ignore[attr-defined]
        self.passed_by = [callback.pass_by for callback in callbacks if hasattr(callback, "pass_by")]
        listening = [part for part in callbacks if any(overrides(part, name) for name in STEP_HOOKS)]
        self._quiet = [*map(quiet_steps_of, listening), quiet_steps_of(module)]

    def steps(self, count: int) -> Iterator[None]:
        """Yields before each of so many quiet steps, until something asks for an end."""
        trainer, end = self.trainer, time.perf_counter() + SECONDS
        for _ in range(count):
            yield
            if trainer.should_stop or trainer.received_sigterm or time.perf_counter() > end:
                return

    def count(self, fetcher: _DataFetcher) -> int:
        """Returns how many steps may be taken quietly now."""
        trainer, loop = self.trainer, self.trainer.fit_loop.epoch_loop
        most = getattr(self.module, "steps_per_call", None)
        if (
            None in self._quiet
            or most == 1
            or fetcher.length is None
            or trainer.should_stop
            or loop._results  # something is logged by `self.log`
            or any(config.reduce_on_plateau for config in trainer.lr_scheduler_configs)
        ):
            return 0
        done, total = loop.batch_progress.current.ready, loop.batch_progress.total.ready
        count = min(trainer.num_training_batches - done, fetcher.length - fetcher.fetched)
        if trainer.max_steps >= 0:
            count = min(count, trainer.max_steps - trainer.global_step)
        every = trainer.val_check_batch
        if every is None:  # validation goes by the clock
            return 0
        if every != math.inf:
            count = min(count, steps_till(every, total if trainer.check_val_every_n_epoch is None else done))
        count = count if most is None else min(count, most)
        return max(0, int(min([count - 1, *(quiet(trainer) for quiet in self._quiet if quiet is not None)])))


def overrides(part: L.Callback | L.LightningModule | L.LightningDataModule, name: str) -> bool:
    """Returns whether a hook is not exactly Lightning's own, empty one.

    Lightning's `is_overridden` looks through `functools.wraps`, so that a decorated hook counts as the empty one; its
    loop calls the hook all the same.
    """
    base = next(kind for kind in (L.Callback, L.LightningModule, L.LightningDataModule) if isinstance(part, kind))
    return name in vars(part) or getattr(type(part), name) is not getattr(base, name)


def quiet_steps_of(part: L.Callback | L.LightningModule) -> QuietSteps | None:
    """Returns a part's `quiet_steps`; None where it has no such method, or a subclass overrides a hook without it."""
    for kind in type(part).__mro__:
        if "quiet_steps" in vars(kind):
            method: QuietSteps = part.quiet_steps  # type: ignore[union-attr, assignment]
            return method
        if any(name in vars(kind) for name in (*STEP_HOOKS, "training_step")):
            break
    return None


def steps_till(every: float, done: int) -> int:
    """Returns in how many steps the next multiple of `every` is reached.

    >>> [steps_till(5, done) for done in (0, 4, 5)]
    [5, 1, 5]
    """
    return int(every - done % every)


def quiet_till_log(module: L.LightningModule, trainer: L.Trainer) -> int:
    """The `quiet_steps` of a module that looks at its steps when they are logged."""
    return steps_till(trainer.log_every_n_steps, trainer.global_step) - 1  # type: ignore[attr-defined]
