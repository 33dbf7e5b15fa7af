"""Peers of the sweep benchmark that train one member after another with Lightning.

The clock runs between the end of the last warm-up step and the end of the last step of each fit: Trainer, start-up,
validation and checkpoints are left out, which only flatters these peers; what they cost a member besides its steps is
told apart.
"""

from __future__ import annotations

import logging
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor

from mlp_lab.data.loader import TensorLoader
from mlp_lab.diagnostics.callback import Diagnostics
from mlp_lab.training.checkpoint_io import AtomicCheckpointIO
from mlp_lab.training.checkpoints import BestCheckpoint, EarlyStop, LastCheckpoint
from mlp_lab.training.module import MLPModule
from mlp_lab.training.optimizers import OptimizerConfig
from mlp_lab.training.progress import EpochTable
from mlp_lab.training.random_state import RandomState
from mlp_lab.training.tracking import MetricsCSV
from tests.benchmarks.harness import forget_peak, load_mnist
from tests.benchmarks.lightning_peers import StockModule
from tests.benchmarks.overhead_variants import Bench
from tests.benchmarks.recipe import BATCH_SIZE, EVAL_BATCH_SIZE
from tests.benchmarks.sweep_lists import ACTIVATIONS, Member
from tests.benchmarks.sweep_peers import networks, plain
from tests.benchmarks.sweep_timing import Job, Timing
from tests.benchmarks.torch_peers import tensors


class Steps(L.Callback):
    """Times the steps after the warm-up."""

    def __init__(self, job: Job) -> None:
        self.first, self.last = job.warm_up, job.warm_up + job.steps
        self.started = self.seconds = 0.0

    def on_train_batch_end(self, trainer: L.Trainer, *args: Any, **kwargs: Any) -> None:
        step = trainer.global_step
        if step == self.first:
            self.started = time.perf_counter()
        elif step == self.last:
            self.seconds = time.perf_counter() - self.started


class Pairs:
    """mlp_lab's loader of resident tensors, as the list [x, y] that Lightning's own examples take."""

    def __init__(self, x: Tensor, y: Tensor, *, batch_size: int, shuffle: bool) -> None:
        self.loader = TensorLoader(x, None, y, batch_size=batch_size, shuffle=shuffle)

    def __len__(self) -> int:
        return len(self.loader)

    def __iter__(self) -> Iterator[list[Tensor | None]]:
        return ([batch.numeric, batch.target] for batch in self.loader)


class Stock(StockModule):
    """The module that a Lightning tutorial would have one write, for one member."""

    def __init__(self, member: Member) -> None:
        super().__init__()
        (mlp,) = networks([member])
        self.model, self.lr = plain(mlp, member), member.lr

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=self.lr)


def stock_optuna(job: Job) -> Timing:
    """Optuna's `optimize` over the list, each trial a stock Trainer with its own CSV logger, checkpoints and bar.

    Each step's loss goes to `self.log`, as the tutorials do; the tensors are resident and come from mlp_lab's loader.
    The trials are enqueued, so that the sampler has no say in what is trained.
    """
    import optuna

    quieten()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    x, y, x_val, y_val = tensors(load_mnist())
    start_mb, watch = forget_peak(), []

    def objective(trial: optuna.Trial) -> float:
        depth, width = trial.suggest_int("depth", 1, 4), trial.suggest_int("width", 8, 256, log=True)
        activation = trial.suggest_categorical("activation", ACTIVATIONS)
        member = Member(depth, width, activation, trial.suggest_float("lr", 1e-4, 1e-2, log=True))
        watch.append(Steps(job))
        train = Pairs(x, y, batch_size=BATCH_SIZE, shuffle=True)
        val = Pairs(x_val, y_val, batch_size=EVAL_BATCH_SIZE, shuffle=False)
        with tempfile.TemporaryDirectory() as folder:
            steps = job.warm_up + job.steps
            trainer = L.Trainer(max_steps=steps, accelerator="cpu", default_root_dir=folder, callbacks=[watch[-1]])
            trainer.fit(Stock(member), train, val)
        return float(trainer.callback_metrics["train_loss"])

    study = optuna.create_study(sampler=optuna.samplers.TPESampler(seed=0))
    for member in job.members:
        study.enqueue_trial(member._asdict())
    begun = time.perf_counter()
    study.optimize(objective, n_trials=len(job.members))
    return _timing(watch, time.perf_counter() - begun, job, start_mb)


def mlp_lab_fit(job: Job) -> Timing:
    """`mlp_lab fit`, one member after another: the Trainer that the command line builds, with all of its callbacks.

    Only the reading of the data is shared. Diagnostics are on, but of the steps that are timed, with 40 after 10, they
    measure none: their share is in the overhead benchmark.
    """
    quieten()
    with tempfile.TemporaryDirectory() as folder:
        bench = Bench(steps=job.warm_up + job.steps, folder=Path(folder))
        start_mb, watch, begun = forget_peak(), [], time.perf_counter()
        for number, member in enumerate(job.members):
            watch.append(Steps(job))
            _fit(bench, member, Path(folder, str(number)), watch[-1])
        return _timing(watch, time.perf_counter() - begun, job, start_mb)


def _fit(bench: Bench, member: Member, folder: Path, watch: Steps) -> None:
    folder.mkdir()
    L.seed_everything(0)
    module = MLPModule(
        bench.data.spec_dict,
        depth=member.depth,
        width=member.width,
        activation=member.activation,
        optimizer=OptimizerConfig(name="adam", lr=member.lr),
    )
    callbacks = [RandomState(), EarlyStop(), BestCheckpoint(folder / "best.ckpt"), LastCheckpoint(folder / "last.ckpt")]
    trainer = L.Trainer(
        max_steps=watch.last,
        accelerator="cpu",
        devices=1,
        num_sanity_val_steps=0,
        enable_model_summary=False,
        log_every_n_steps=50,
        default_root_dir=folder,
        logger=[MetricsCSV(folder / "metrics.csv")],
        plugins=[AtomicCheckpointIO()],
        callbacks=[*callbacks, EpochTable(bench.console), Diagnostics(), watch],
    )
    trainer.fit(module, datamodule=bench.data)


def quieten() -> None:
    """Keeps Lightning's messages about every one of the trainers out of the worker's output."""
    for name in ("lightning.pytorch", "lightning.fabric", "lightning"):
        logging.getLogger(name).setLevel(logging.ERROR)


def _timing(watches: list[Steps], wall: float, job: Job, start_mb: float) -> Timing:
    seconds = sum(watch.seconds for watch in watches)
    return Timing(seconds, wall - seconds * (job.warm_up + job.steps) / job.steps, None, start_mb)
