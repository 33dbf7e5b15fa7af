"""The ways to train that the overhead benchmark compares; each returns the microseconds per step of its last epoch."""

from __future__ import annotations

import io
import os
import secrets
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from lightning.pytorch.loggers import Logger
from lightning.pytorch.profilers import SimpleProfiler
from rich.console import Console
from torch import Tensor

from mlp_lab.data.loader import Batch
from mlp_lab.data.mnist import MNISTDataModule
from mlp_lab.diagnostics.callback import Diagnostics
from mlp_lab.training.checkpoints import BestCheckpoint, EarlyStop, LastCheckpoint
from mlp_lab.training.module import MLPModule
from mlp_lab.training.optimizers import OptimizerConfig
from mlp_lab.training.progress import EpochTable
from mlp_lab.training.random_state import RandomState
from mlp_lab.training.schedules import ScheduleConfig
from mlp_lab.training.tracking import MetricsCSV
from mlp_lab.training.weights_and_biases import WandbRun
from tests.benchmarks import cockpit_peer, harness
from tests.benchmarks.recipe import BATCH_SIZE, DROPOUT, HIDDEN, LEARNING_RATE
from tests.benchmarks.torch_peers import network as plain_network

EPOCHS = 2  # the first one warms up
TRAINING = "[Strategy]SingleDeviceStrategy.training_step"
NVML_CHECK = "PYTORCH_NVML_BASED_CUDA_CHECK"
BACKWARD = "[Strategy]SingleDeviceStrategy.backward"
FETCH = "[_TrainingEpochLoop].train_dataloader_next"
DIAGNOSTICS: dict[str, dict[str, Any]] = {
    "diagnostics": {},
    "diagnostics-1": {"every_n_steps": 1},
    "numerics": {"groups": []},
}


class Bench:
    """The data that all variants share, read once, and where they may write."""

    def __init__(self, *, steps: int, folder: Path) -> None:
        self.steps, self.folder = steps, folder
        self.data = MNISTDataModule(root=str(harness.mnist_root()), batch_size=BATCH_SIZE)
        self.data.setup("fit")
        self.console = Console(file=io.StringIO(), force_terminal=True)

    def trainer(self, **settings: Any) -> L.Trainer:
        """Returns a trainer with everything off that `settings` does not turn on."""
        off = {
            "limit_val_batches": 0,
            "num_sanity_val_steps": 0,
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
        }
        limits = {"max_epochs": EPOCHS, "limit_train_batches": self.steps, "accelerator": "cpu", "devices": 1}
        return L.Trainer(default_root_dir=self.folder, **{**off, **limits, **settings})


class Stopwatch(L.Callback):
    """Measures from the start of the last epoch to the end of training."""

    def __init__(self) -> None:
        self.started = self.seconds = 0.0

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.started = time.perf_counter()

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.seconds = time.perf_counter() - self.started


def loop(bench: Bench, *, loader: bool = False, network: bool = False) -> float:
    """Trains as the fit benchmark's hand-written loop does, or with mlp_lab's loader, or with its network and loss."""
    os.environ[NVML_CHECK] = "0"  # as without Lightning, whose import sets 1: see `torch_peers`
    part = bench.data.part("train")
    assert part.target is not None
    ours = _module(bench, {})
    model = ours.model if network else plain_network()
    optimizer = torch.optim.Adam(model.parameters(), lr=LEARNING_RATE, fused=True)
    bench.data.trainer = None
    batches = bench.data.train_dataloader()
    total = torch.zeros(())
    started = 0.0
    for _ in range(EPOCHS):
        started = time.perf_counter()
        given = _from_loader(batches) if loader else _gathered(part.numeric, part.target)
        for x, y in islice(given, bench.steps):
            loss = ours.train_loss(model(x), y).sum() / len(x) if network else F.cross_entropy(model(x), y)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            total += loss.detach() * len(x)
    return 1e6 * (time.perf_counter() - started) / bench.steps


def wide_loop(bench: Bench, *, watched: bool = False) -> float:
    """Trains 784-256-256-256-10 in a loop written by hand, alone or watched by Cockpit."""
    os.environ[NVML_CHECK] = "0"
    part = bench.data.part("train")
    assert part.target is not None
    return cockpit_peer.train(part.numeric, part.target, steps=bench.steps, watched=watched)


def _from_loader(batches: Iterable[Batch]) -> Iterator[tuple[Tensor, Tensor | None]]:
    return ((batch.numeric, batch.target) for batch in batches)


def _gathered(x: Tensor, y: Tensor) -> Iterator[tuple[Tensor, Tensor]]:
    order = torch.split(torch.randperm(len(x)), BATCH_SIZE)
    return ((x.index_select(0, index), y.index_select(0, index)) for index in order)


class BareModule(L.LightningModule):
    """The least that Lightning needs."""

    def __init__(self, log: bool) -> None:
        super().__init__()
        self.model = plain_network()
        self.with_log = log

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        assert batch.target is not None
        loss = F.cross_entropy(self.model(batch.numeric), batch.target)
        if self.with_log:
            self.log("train/loss", loss, batch_size=len(batch.numeric))
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.model.parameters(), lr=LEARNING_RATE, fused=True)


def bare(bench: Bench, *, log: bool = False) -> float:
    """Trains a bare LightningModule on mlp_lab's loader, everything else off."""
    return _fit(bench, BareModule(log), {})


def module(
    bench: Bench,
    *,
    parts: Sequence[str] = (),
    model: Mapping[str, Any] | None = None,
    log_every_n_steps: int = 50,
    onednn: bool = True,
) -> float:
    """Trains an MLPModule with the named parts of the bench around it; `onednn` may take float32 products."""
    settings = {**_settings(bench, parts), "log_every_n_steps": log_every_n_steps}
    torch.backends.mkldnn.enabled = onednn
    try:
        return _fit(bench, _module(bench, model or {}), settings)
    finally:
        torch.backends.mkldnn.enabled = True


def _module(bench: Bench, settings: Mapping[str, Any]) -> MLPModule:
    kinds: dict[str, Any] = {"schedule": ScheduleConfig}
    given = {name: kinds[name](**value) if name in kinds else value for name, value in settings.items()}
    optimizer = OptimizerConfig(name="adam", lr=LEARNING_RATE)
    network = {"depth": 1, "width": HIDDEN, "dropout": DROPOUT, **given}
    return MLPModule(bench.data.spec_dict, optimizer=optimizer, **network)


def _settings(bench: Bench, parts: Sequence[str]) -> dict[str, Any]:
    """Returns the trainer's arguments for the named parts."""
    callbacks: list[L.Callback] = []
    loggers: list[Logger] = []
    if "metrics" in parts:
        (bench.folder / "metrics.csv").unlink(missing_ok=True)
        loggers.append(MetricsCSV(bench.folder / "metrics.csv"))
    if "random" in parts:
        callbacks.append(RandomState())
    if "stop" in parts:
        callbacks.append(EarlyStop())
    if "checkpoints" in parts:
        callbacks += [BestCheckpoint(bench.folder / "best.ckpt"), LastCheckpoint(bench.folder / "last.ckpt")]
    if "progress" in parts:
        callbacks.append(EpochTable(bench.console))
    if "wandb" in parts or "watch" in parts:
        loggers.append(_wandb(bench))
    for name, arguments in DIAGNOSTICS.items():
        if name in parts:
            callbacks.append(Diagnostics(**arguments))
    if "watch" in parts:
        callbacks.append(Watch())
    return {
        "callbacks": callbacks,
        "logger": loggers,
        "limit_val_batches": 1.0 if "validation" in parts else 0,
        "enable_checkpointing": "checkpoints" in parts,
        "enable_progress_bar": "progress" in parts,
    }


class Watch(L.Callback):
    """`wandb.watch`: histograms of all weights and gradients, taken in hooks that stay in the network."""

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        (logger,) = (one for one in trainer.loggers if isinstance(one, WandbRun))
        logger.experiment.watch(pl_module, log="all", log_freq=50)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        (logger,) = (one for one in trainer.loggers if isinstance(one, WandbRun))
        logger.experiment.unwatch(pl_module)


def _wandb(bench: Bench) -> WandbRun:
    """Returns an offline W&B run in the benchmark's own folder."""
    os.environ["WANDB_MODE"] = "offline"
    os.environ["WANDB_SILENT"] = "true"
    logger = WandbRun()
    logger.attach(bench.folder, f"overhead-{secrets.token_hex(4)}", {})
    return logger


def _fit(bench: Bench, model: L.LightningModule, settings: Mapping[str, Any]) -> float:
    os.environ[NVML_CHECK] = "1"  # as Lightning's import leaves it
    watch = Stopwatch()
    trainer = bench.trainer(**{**settings, "callbacks": [*settings.get("callbacks", ()), watch]})
    trainer.fit(model, datamodule=bench.data)
    for logger in trainer.loggers:
        if isinstance(logger, WandbRun):
            logger.finish(None, {})
    return 1e6 * watch.seconds / bench.steps


def parts_of_a_step(bench: Bench, parts: Sequence[str]) -> dict[str, float]:
    """Returns the microseconds per step of the parts of a step as shipped."""
    profiler = SimpleProfiler()
    bench.trainer(**_settings(bench, parts), profiler=profiler).fit(_module(bench, {}), datamodule=bench.data)
    steps = EPOCHS * bench.steps
    times = {name: 1e6 * sum(durations) / steps for name, durations in profiler.recorded_durations.items()}
    step, epoch = times["run_training_batch"], times["run_training_epoch"]
    hooks = sum(value for name, value in times.items() if name.startswith("[Callback]") and "train_batch" in name)
    validation = sum(value for name, value in times.items() if name.startswith("[_EvaluationLoop]"))
    forward, backward, update = times[TRAINING], times[BACKWARD], times["[LightningModule]MLPModule.optimizer_step"]
    return {
        "fetching the batch": times[FETCH],
        "forward and loss": forward,
        "backward": backward,
        "optimizer, with Lightning's hooks around it": update - forward - backward,
        "callbacks before and after the step": hooks,
        "Lightning's optimization loop": step - update,
        "Lightning's training loop, validation, checkpoints": epoch - step - times[FETCH] - hooks,
        "(validation's own batches)": validation,
        "in all": epoch,
    }
