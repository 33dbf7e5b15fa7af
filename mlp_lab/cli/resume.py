"""`fit --resume`: what may change when a run goes on, and why a run has nothing left to train."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Mapping
from typing import Any

import lightning as L
from lightning.pytorch.callbacks import Timer

from mlp_lab.errors import UserError
from mlp_lab.population.module import PopulationModule
from mlp_lab.program import program
from mlp_lab.training.checkpoints import EarlyStop
from mlp_lab.training.tracking import RunDirectory

FIXED = ("seed_everything", "replicates", "data", "model")
"""Keys and groups of keys that a run keeps from its start to its end."""
FREE = (
    *(f"data.{key}" for key in ("batch_size", "eval_batch_size", "drop_last", "augment", "download", "verbose")),
    *(f"data.{key}" for key in ("path", "root", "test_path")),  # files may move: their rows are compared
    *(f"model.{key}" for key in ("dropout", "input_dropout", "label_smoothing", "class_weights", "pos_weight")),
    *(f"model.{key}" for key in ("mixup", "max_norm", "optimizer", "schedule")),
)
"""Exceptions, which may change when a run goes on."""
NEVER = ("model.optimizer.name",)
"""Exceptions of these: the checkpoint holds the state of one optimizer."""


def check_changes(run: RunDirectory, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Checks that a run goes on with the data, the network and the seeds that it began with.

    Args:
        run: The run.
        before: Its configuration, in plain types; keys that it lacks are not compared.
        now: The configuration to go on with.

    Raises:
        UserError: Names the first key that differs and both its values.
    """
    values = dict(_leaves(now))
    for key, old in _leaves(before):
        if _is_fixed(key) and key in values and values[key] != old:
            raise UserError(
                f"{key}: {_shown(values[key])} cannot replace {_shown(old)} in a run that goes on; leave it out, "
                f"or begin a new run with `{program()} fit --config {shlex.quote(str(run.effective))}` and this key"
            )


def _is_fixed(key: str) -> bool:
    return _within(key, NEVER) or (_within(key, FIXED) and not _within(key, FREE))


def _within(key: str, groups: tuple[str, ...]) -> bool:
    return any(key == group or key.startswith(f"{group}.") for group in groups)


def _leaves(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """Yields the keys as flags name them, with their values.

    >>> dict(_leaves({"data": {"class_path": "Table", "init_args": {"seed": 0}}}))
    {'data.class_path': 'Table', 'data.seed': 0}
    """
    for name, value in config.items():
        key = prefix if name == "init_args" else f"{prefix}.{name}" if prefix else name
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, key)
        else:
            yield key, value


def _shown(value: object) -> str:
    return "null" if value is None else str(value).lower() if isinstance(value, bool) else str(value)


def nothing_left(trainer: L.Trainer) -> str:
    """Returns why a trainer that goes on with a checkpoint takes no step, and which setting lets it go on."""
    module, stops = trainer.lightning_module, _early_stops(trainer)
    limit = trainer.max_epochs or -1
    if 0 <= trainer.max_steps <= trainer.global_step:
        reason = f"all {trainer.max_steps:,} steps of trainer.max_steps are done; raise it to go on"
    elif 0 <= limit <= trainer.fit_loop.epoch_progress.current.processed:  # type: ignore[attr-defined]
        reason = f"all {limit:,} epochs of trainer.max_epochs are done; raise it to go on"
    elif any((timer.time_remaining() or 0) <= 0 for timer in _callbacks(trainer) if isinstance(timer, Timer)):
        reason = "the time of trainer.max_time, which counts from the run's start, is over; raise it to go on"
    elif isinstance(module, PopulationModule):
        reason = f"all {len(module.scores)} replicates have stopped, and none goes on after its stop; begin a new run"
    elif stops:
        reason = stops[0].why_stopped()
    else:
        reason = "a callback has stopped it"
    return f"nothing left to train: {reason}"


def _early_stops(trainer: L.Trainer) -> list[EarlyStop]:
    return [callback for callback in _callbacks(trainer) if isinstance(callback, EarlyStop) and callback.decided]


def _callbacks(trainer: L.Trainer) -> list[L.Callback]:
    return list(trainer.callbacks)  # type: ignore[attr-defined]
