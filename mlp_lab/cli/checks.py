"""What would only fail once training has begun, refused before anything is written."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import BatchSizeFinder
from lightning.pytorch.strategies.launchers.multiprocessing import _MultiProcessingLauncher
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from mlp_lab.archive import check_archive
from mlp_lab.data.module import TensorDataModule
from mlp_lab.data.spec import DataSpec
from mlp_lab.errors import UserError, unknown
from mlp_lab.flags import flag
from mlp_lab.model.tasks import SCORES, UNDEFINED, undefined
from mlp_lab.training.checkpoints import BestCheckpoint
from mlp_lab.training.module import MLPModule
from mlp_lab.training.optimizers import check_eps
from mlp_lab.training.settings import check_numbers, shortened

LARGEST_SEED = 2**32 - 1  # NumPy's
LARGEST_REPLICATES = 10_000  # a larger number is most likely a mistake
ARCHITECTURE = ("depth", "width", "activation", "linear_bias", "norm", "residual", "encoder")
"""The settings that say which network a checkpoint's weights belong to."""


def check_config(command: str, config: Any) -> None:
    """Checks a parsed configuration before data, model and trainer are built from it.

    Args:
        command: fit, validate, test, predict or summary.
        config: The command's own part of the parser's namespace.

    Raises:
        UserError: A value that its type allows and its meaning does not.
    """
    seed, path, clip = config.get("seed_everything"), config.get("ckpt_path"), config.trainer.gradient_clip_val
    if seed is not None and not 0 <= int(seed) <= LARGEST_SEED:
        raise UserError(f"seed_everything: {shortened(seed)} is not a seed; accepted: 0 to {LARGEST_SEED}")
    values = config.as_dict()
    check_numbers("", values)
    _check_not_empty(values)
    if config.replicates > LARGEST_REPLICATES:
        raise UserError(f"replicates: {config.replicates} is not accepted; use {LARGEST_REPLICATES:,} at most")
    if seed is not None and int(seed) + config.replicates - 1 > LARGEST_SEED:
        raise UserError(
            f"seed_everything: {seed} leaves no seeds for {config.replicates} replicates; "
            f"use {LARGEST_SEED + 1 - config.replicates} at most"
        )
    given = os.environ.get("PL_GLOBAL_SEED", "0")
    if isinstance(seed, bool) and not (given.isdecimal() and int(given) <= LARGEST_SEED):  # a number overrides it
        raise UserError(f"PL_GLOBAL_SEED: {given!r} is not a seed; accepted: 0 to {LARGEST_SEED}")
    if clip is not None and clip < 0:
        raise UserError(f"trainer.gradient_clip_val: {clip:g} is negative; use a positive norm, or null")
    for name, value in {"enable_checkpointing": False, "barebones": True}.items():
        if config.trainer.get(name) is value:
            raise UserError(f"trainer.{name}: {str(value).lower()} leaves no record of a run; leave the key out")
    if command in ("validate", "test", "predict") and not path:
        raise UserError(f"--run: name the run to {command}, such as runs/digits/latest (or --config and --ckpt_path)")
    if path:
        _check_architecture(read_hyperparameters(path), config.model)


def _check_not_empty(values: Mapping[str, Any]) -> None:
    """Refuses empty text where a file, a folder or a column is named: most likely a shell's variable is not set."""
    arguments = values["data"].get("init_args") or {}
    named = {f"data.{name}": arguments.get(name) for name in ("path", "test_path", "root", "dataset", "target")}
    named |= {"run.dir": values["run"]["dir"], "ckpt_path": values.get("ckpt_path"), "output": values.get("output")}
    for key, value in named.items():
        if value == "":
            raise UserError(f"{key}: its value is empty; give a name, or leave the key out")


def read_hyperparameters(path: str) -> dict[str, Any]:
    """Returns the model's settings that a checkpoint holds.

    Raises:
        UserError: There is no such file, or it is not a whole checkpoint of this program.
    """
    if not Path(path).is_file():
        raise UserError(f"ckpt_path: there is no file {path}; give a checkpoint such as RUN_DIR/checkpoints/best.ckpt")
    try:
        check_archive(path)
        checkpoint = torch.load(path, weights_only=True, map_location="cpu", mmap=True)
        if not isinstance(checkpoint, dict):
            raise TypeError(f"a {type(checkpoint).__name__}")
        return dict(checkpoint["hyper_parameters"])
    except (RuntimeError, EOFError, OSError, ValueError, LookupError, TypeError, UnpicklingError) as error:
        raise UserError(
            f"ckpt_path: {path} is not a checkpoint, or not a whole one; use one that `fit` wrote"
        ) from error


def _check_architecture(saved: dict[str, Any], model: Any) -> None:
    """The weights of one architecture may fit the shapes of another."""
    for name in ARCHITECTURE:
        given = model[name].as_dict() if hasattr(model[name], "as_dict") else model[name]
        if name in saved and saved[name] != given:
            raise UserError(
                f"model.{name}: {given} is not what the checkpoint was trained with ({saved[name]}); "
                "use the config of the run that wrote it"
            )


@contextmanager
def trainer_mistakes() -> Iterator[None]:
    """Tells in one line what Lightning refuses of a trainer that is being built.

    Raises:
        UserError: It refused something.
    """
    try:
        yield
    except (ValueError, TypeError, RuntimeError) as error:  # what Lightning calls a misconfiguration, `mistakes` tells
        raise UserError(f"trainer: {' '.join(str(error).split())}") from error


def check_training(trainer: L.Trainer, model: MLPModule, data: TensorDataModule) -> None:
    """Checks that there is something to train on, to step for, and to choose the best epoch by.

    Raises:
        UserError: There is not.
    """
    for name in ("max_epochs", "max_steps", "limit_train_batches"):
        if getattr(trainer, name) == 0:
            raise UserError(f"trainer.{name}: 0 trains nothing; use 1 or more")
    interval: int = getattr(trainer, "log_every_n_steps")  # noqa: B009 (Lightning sets it in a connector)
    if interval < 1:
        raise UserError(f"trainer.log_every_n_steps: {interval} is not a number of steps; use 1 or more")
    if trainer.accumulate_grad_batches < 1:
        raise UserError(
            f"trainer.accumulate_grad_batches: {trainer.accumulate_grad_batches} is no number; use 1 or more"
        )
    _check_interval(trainer, len(data.train_dataloader()))
    if trainer.limit_val_batches:
        data.part("val")
    _check_batch_norm(trainer, model, data)
    if trainer.precision == "16-true":
        for config in [model.optimizer_config] if isinstance(model, MLPModule) else model.configs:
            check_eps(config, torch.float16)
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, BestCheckpoint):
            check_monitor(callback.monitor, data, trainer.limit_val_batches)


def check_extensions(trainer: L.Trainer, data: TensorDataModule) -> None:
    """Checks that a recorded run can use the parts of Lightning that its config names.

    Raises:
        UserError: It cannot, or one of them monitors a validation metric that no run logs.
    """
    if isinstance(trainer.strategy.launcher, _MultiProcessingLauncher):
        raise UserError(
            "trainer.strategy: it trains in processes that leave their record behind when they end; "
            "use ddp, which starts the command once for each device"
        )
    accepted = [f"val/{name}" for name in ("loss", *SCORES[data.spec.task])]
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        name, monitor = type(callback).__name__, getattr(callback, "monitor", None)
        if isinstance(callback, BatchSizeFinder):
            raise UserError(
                f"trainer.callbacks: {name} takes the largest batch that fits into memory, and config.yaml could not "
                "repeat the run; set data.batch_size"
            )
        if isinstance(monitor, str) and monitor.startswith("val/") and monitor not in accepted:
            raise unknown(f"trainer.callbacks.monitor ({name})", monitor, accepted)


def _check_interval(trainer: L.Trainer, batches: int) -> None:
    interval = trainer.val_check_interval
    limit = trainer.limit_train_batches
    batches = min(batches, limit) if isinstance(limit, int) else batches
    if isinstance(interval, int) and interval > batches and trainer.check_val_every_n_epoch is not None:
        raise UserError(
            f"trainer.val_check_interval: {interval} is more than the {batches} batches of an epoch; use fewer, or "
            f"count over epochs with {flag('trainer.check_val_every_n_epoch', None)}"
        )


def _check_batch_norm(trainer: L.Trainer, model: MLPModule, data: TensorDataModule) -> None:
    """Batch normalisation needs two rows in every process's share of every batch."""
    if not any(isinstance(module, _BatchNorm) for module in model.modules()):
        return
    rows, size, limit = data.part("train").rows, data.train_batch_size, trainer.limit_train_batches
    last = 0 if data.drop_last else rows % size
    if isinstance(limit, int) and limit * size <= rows:  # the last batch is never reached
        last = 0
    smallest = 2 * trainer.world_size
    fitting = (other for other in range(max(size, smallest), rows + 1) if rows % other == 0 or rows % other >= smallest)
    advice = f"use {flag('data.batch_size', next(fitting, smallest))}"
    for count, what in ((size, "gives batches"), (last, f"leaves {rows} rows a last batch")):
        if count and count < smallest:
            each = " in each process" if trainer.world_size > 1 else ""
            instead = f", or {flag('data.drop_last', True)}" if count == last else ""
            raise UserError(
                f"data.batch_size: {size} {what} of one row{each}, which model.norm: batch cannot normalise; "
                f"{advice}{instead}"
            )


def check_monitor(
    monitor: str, data: TensorDataModule, limit: int | float | None = None, *, key: str = "early_stopping.monitor"
) -> None:
    """Checks that a validation score that a run is judged by is measured, and has a value on the validation rows.

    Args:
        monitor: The score.
        data: The data.
        limit: `trainer.limit_val_batches`.
        key: The key that names the score.

    Raises:
        UserError: It is neither the validation loss nor one of the task's metrics, or is not defined on those rows.
    """
    accepted = [f"val/{name}" for name in ("loss", *SCORES[data.spec.task])]
    if monitor not in accepted:
        raise unknown(key, monitor, accepted)
    if monitor.rpartition("/")[2] not in UNDEFINED or limit == 0:
        return
    part, size = data.part("val"), data.eval_batch_size
    assert part.target is not None
    batches = limit if isinstance(limit, int) else int(-(-part.rows // size) * (1.0 if limit is None else limit))
    target = part.target[: batches * size]
    if len(target) and monitor.rpartition("/")[2] in undefined(data.spec, target):
        rows = f"{len(target):,} validation row{'s' if len(target) > 1 else ''}"
        raise UserError(
            f"{key}: {monitor} has no value on the {rows}, {_what_is_equal(data.spec, target)}; "
            "use val/loss, or validate on more rows (data.split)"
        )


def _what_is_equal(spec: DataSpec, target: Tensor) -> str:
    """Says why a metric has no value on rows with these targets."""
    every = "which is" if len(target) == 1 else "which are all"
    if spec.task == "binary":
        return f"{every} of class {spec.classes[int(target[0])]!r}"
    if spec.task == "multilabel":
        return "on which no label varies"
    constant = [name for name, column in zip(spec.targets, target.T, strict=True) if column.amin() == column.amax()]
    return f"on which {constant[0] if constant else spec.targets[0]!r} does not vary"
