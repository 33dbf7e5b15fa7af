"""The LightningModule: one MLP, its loss, its optimizer and its metrics.

Nothing here calls `self.log` inside a step: on a small MLP that costs about as much as the step. The training loss is
summed on the device and read once per `trainer.log_every_n_steps`; validation metrics are read once per pass. Both go
to the loggers under the number of optimizer steps that have been taken.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Mapping
from dataclasses import asdict, fields, replace
from typing import Any, TypeVar, cast

import torch
from lightning.pytorch.plugins.precision import DoublePrecision, MixedPrecision
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from mlp_lab.data.loader import Batch, rank_bounds
from mlp_lab.data.spec import DataSpec
from mlp_lab.errors import UserError, unknown
from mlp_lab.model.encoders import EncoderConfig
from mlp_lab.model.initialization import lsuv_
from mlp_lab.model.mlp import MLP, Settings, resolve_widths
from mlp_lab.model.tasks import build_loss
from mlp_lab.training.batches import PairBatches, rows_for_init
from mlp_lab.training.burst import quiet_till_log
from mlp_lab.training.meters import Meter, RunningLoss
from mlp_lab.training.optimizers import OptimizerConfig, build_optimizer
from mlp_lab.training.schedules import FactorScheduler, ScheduleConfig, build_scheduler
from mlp_lab.training.settings import check_numbers
from mlp_lab.training.straight import StraightModule
from mlp_lab.training.training_score import TrainingScore

Config = TypeVar("Config", EncoderConfig, OptimizerConfig, ScheduleConfig)


class MLPModule(PairBatches, StraightModule):
    """Trains one MLP under `L.Trainer` with automatic optimization.

    Batches are `mlp_lab.data.loader.Batch`, or pairs (x, y) of a plain `DataLoader` (`pair_batch`). The loss of a step
    is the sum of the per-sample losses over the rows of the *global* batch divided by its count, so that any number of
    processes takes the same step.

    Args:
        spec: What the model must know of the data: a `DataSpec`, or its `to_dict()`, which is the `spec_dict` of a data
            module.
        depth: Number of hidden layers, at least 0; 0 is linear or logistic regression. null is the length of the list
            in `width`, or 2 if `width` is one number.
        width: Units of each hidden layer, at least 1: one number for all layers, or a list with a number per layer. A
            list sets the depth.
        activation: Activation function of the hidden layers: identity, relu, leaky_relu, prelu, elu, selu, gelu, silu,
            mish, softplus, tanh, sigmoid, hardtanh, sine, or the dotted path of an elementwise function, such as
            my_module.squareplus.
        init: Initial weights: pytorch, xavier (or glorot), he (or kaiming), lecun, orthogonal, critical (the edge of
            chaos of the activation), zero_head (he, with an output layer of zeros), or lsuv (scaled on training rows).
        bias: Initial value of the biases of the hidden layers; null keeps what `init` sets, mostly 0.
        linear_bias: Give the hidden linear layers a bias. The output layer always has one.
        norm: Normalization between a linear layer and its activation: none, batch, layer or rms.
        dropout: Probability that a hidden unit is dropped, at least 0 and below 1.
        input_dropout: Probability that an input is dropped, at least 0 and below 1.
        residual: Add the input of a hidden layer to its output, if both have the same width.
        encoder: How the columns of a table enter the network.
        loss: Training loss: mse, mae or huber (regression), bce (binary, multilabel), cross_entropy (multiclass), brier
            (classes), or auto for mse, bce or cross_entropy by task.
        label_smoothing: Share of each target that is spread evenly over all classes, at least 0 and below 1 (Szegedy et
            al. 2016); for bce and cross_entropy.
        class_weights: Weights of the classes in the training loss: none, balanced (by inverse frequency in the training
            rows), or a list with one number per class.
        pos_weight: Weight of the positive class in bce, above 0; 1 weighs both classes equally.
        mixup: Parameter α of the distribution Beta(α, α) by which pairs of rows are mixed (Zhang et al. 2018), at least
            0; 0 turns mixup off.
        max_norm: Largest norm of the incoming weights of each hidden unit (Srivastava et al. 2014), at least 0; 0 sets
            no limit.
        optimizer: How the weights follow the gradient.
        schedule: How the learning rate changes over the run.

    Raises:
        UserError: A setting is out of range, unknown, or does not fit the task.
    """

    def __init__(
        self,
        spec: Mapping[str, Any] | DataSpec,
        depth: int | None = None,
        width: int | list[int] = 128,
        activation: str = "relu",
        init: str = "he",
        bias: float | None = None,
        linear_bias: bool = True,
        norm: str = "none",
        dropout: float = 0.0,
        input_dropout: float = 0.0,
        residual: bool = False,
        encoder: EncoderConfig = EncoderConfig(),  # noqa: B008 (frozen)
        loss: str = "auto",
        label_smoothing: float = 0.0,
        class_weights: str | list[float] = "none",
        pos_weight: float = 1.0,
        mixup: float = 0.0,
        max_norm: float = 0.0,
        optimizer: OptimizerConfig = OptimizerConfig(),  # noqa: B008 (frozen)
        schedule: ScheduleConfig = ScheduleConfig(),  # noqa: B008 (frozen)
    ) -> None:
        super().__init__()
        settings = {name: value for name, value in locals().items() if name not in ("self", "spec", "__class__")}
        self.spec = spec if isinstance(spec, DataSpec) else DataSpec.from_dict(spec)
        self.encoder_config = _config(EncoderConfig, encoder)
        self.optimizer_config = _config(OptimizerConfig, optimizer)
        self.schedule_config = _config(ScheduleConfig, schedule)
        settings["depth"] = len(resolve_widths(depth, width))
        settings["encoder"] = asdict(self.encoder_config)
        settings["optimizer"] = asdict(self.optimizer_config)
        settings["schedule"] = asdict(self.schedule_config)
        self.save_hyperparameters({"spec": self.spec.to_dict(), **settings})
        check_numbers("model", {name: value for name, value in settings.items() if name != "spec"})
        for name, value in {"mixup": mixup, "max_norm": max_norm}.items():
            if value < 0:
                raise UserError(f"model.{name}: {value} is negative; use a number of at least 0 (0 turns it off)")
        self.init, self.mixup, self.max_norm = init, mixup, max_norm
        network = cast(Settings, {name: settings[name] for name in Settings.__annotations__})
        self.model = MLP.from_spec(self.spec, encoder=self.encoder_config, **network)
        self.train_loss = build_loss(
            self.spec, loss, label_smoothing=label_smoothing, class_weights=class_weights, pos_weight=pos_weight
        )
        self.eval_loss = build_loss(self.spec, loss)
        self.meters = nn.ModuleDict({stage: Meter(self.spec) for stage in ("val", "test")})
        self._running = RunningLoss()  # since the training loss was last recorded
        self._score = TrainingScore(self.spec)  # of the epoch
        self._recorded: float | None = None  # the training loss that was recorded last
        self._epoch = (-1, 0.0, 0)  # an epoch, and its recorded sum of losses and rows: equal in all processes
        self._unseen: float | None = None  # val/loss that a plateau schedule has not seen yet
        self._world_size = 1

    def forward(self, numeric: Tensor, categorical: Tensor | None = None) -> Tensor:
        """Returns the logits, or the standardised regression mean, (B, C)."""
        return cast(Tensor, self.model(numeric, categorical))

    # ---- training -------------------------------------------------------------------------------------------------

    quiet_steps = quiet_till_log

    def on_fit_start(self) -> None:
        """Reads the number of processes, applies a data-dependent init to a fresh model."""
        self._world_size = self.trainer.world_size
        if self.init == "lsuv" and not self.trainer.ckpt_path:
            scale_by_data_(self.model, rows_for_init(self.trainer, self.spec))

    def on_train_start(self) -> None:
        """Shows callbacks the training loss that a resumed run recorded last; a schedule that is new to it goes on."""
        super().on_train_start()
        for config in self.trainer.lr_scheduler_configs:
            if isinstance(config.scheduler, FactorScheduler) and config.scheduler.last_epoch == 0:
                config.scheduler.load_state_dict({"last_epoch": self.trainer.global_step})
        if self._recorded is not None:
            self.trainer.callback_metrics["train/loss"] = torch.tensor(self._recorded, dtype=torch.float64)

    def on_train_epoch_start(self) -> None:
        """Begins the score of the epoch."""
        self._score.reset()

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Returns this process's share of the global batch's mean loss, by the batch's weight in its window."""
        if self._world_size > 1:
            first_row, _ = rank_bounds(0, batch.count, rank=self.global_rank, world_size=self._world_size)
            for dropout in self.model.dropouts:
                dropout.first_row = first_row  # masks are those of one process with the whole batch
        total = self._mixed_loss(batch) if self.mixup else self._loss(batch)
        self._running.add(total, batch.count)
        return total * (self._world_size / batch.count * self.weigh_in_window(batch, batch_idx))

    def _loss(self, batch: Batch) -> Tensor:
        logits = self.model(batch.numeric, batch.categorical)
        assert batch.target is not None
        self._score.add(logits, batch.target)
        return cast(Tensor, self.train_loss(logits, batch.target)).sum()

    def _mixed_loss(self, batch: Batch) -> Tensor:
        """Mixup of the encoded inputs: with the identity encoder this is mixup of the inputs themselves."""
        share = random.betavariate(self.mixup, self.mixup)  # Python's generator: every rank keeps and restores its own
        encoded = self.model.encode(batch.numeric, batch.categorical)  # (B, D)
        other = torch.randperm(len(encoded), device=encoded.device)
        logits = self.model.decode(share * encoded + (1 - share) * encoded[other])  # (B, C)
        assert batch.target is not None
        losses = share * self.train_loss(logits, batch.target)
        losses = losses + (1 - share) * self.train_loss(logits, batch.target[other])
        return cast(Tensor, losses).sum()

    def after_optimizer_step(self, step: int) -> None:
        """Projects the weights onto the max-norm ball, and records the training loss when that is due.

        It is recorded here, before any callback can write a checkpoint of the state after this step.
        """
        if self.max_norm:
            for linear in self.model.linears[:-1]:
                linear.weight.data.renorm_(p=2, dim=0, maxnorm=self.max_norm)  # each unit's incoming weights
        trainer = self.trainer
        due = step % trainer.log_every_n_steps == 0  # type: ignore[attr-defined]
        if due or trainer.is_last_batch:
            self._record_training_loss(step, ends=trainer.is_last_batch)

    def on_train_epoch_end(self) -> None:
        """Records the rest of a stopped epoch and steps a plateau schedule, before the checkpoint is written."""
        if self._running.rows:
            self._record_training_loss(self.trainer.global_step, ends=True)
        for config in self.trainer.lr_scheduler_configs:
            if config.reduce_on_plateau and self._unseen is not None:
                cast(ReduceLROnPlateau, config.scheduler).step(self._unseen)
        self._unseen = None

    def _record_training_loss(self, step: int, *, ends: bool) -> None:
        rows = self._running.rows
        self._recorded = self._running.take()
        epoch, total, seen = self._epoch
        total, seen = (total, seen) if epoch == self.trainer.current_epoch else (0.0, 0)
        self._epoch = (self.trainer.current_epoch, total + self._recorded * rows, seen + rows)
        self.trainer.callback_metrics["train/loss"] = torch.tensor(self._recorded, dtype=torch.float64)
        rate = self.optimizers(use_pl_optimizer=False).param_groups[0]["lr"]  # type: ignore[union-attr]
        values = {"train/loss": self._recorded, "train/lr": rate}
        if ends:
            of_epoch = self.epoch_scores()
            values |= {"train/epoch_loss": of_epoch.pop("train/loss"), **of_epoch}
        self.record(values, step)

    @property
    def epoch_loss(self) -> float | None:
        """Mean training loss over the rows of the epoch that was recorded last; None before any was."""
        return self._epoch[1] / self._epoch[2] if self._epoch[2] else None

    def epoch_scores(self) -> dict[str, float]:
        """Returns the mean training loss and the training score of the epoch so far; a collective call under DDP.

        Each batch is measured as it was trained on: with dropout, and before the weights that later batches make.
        Under mixup there is no score, for no row has one target.
        """
        epoch, total, rows = self._epoch
        total, rows = (total, rows) if epoch == self.trainer.current_epoch else (0.0, 0)
        if not rows + self._running.rows:
            return {}
        loss = (total + sum(self._running.sums())) / (rows + self._running.rows)
        return {"train/loss": loss, **{f"train/{name}": value for name, value in self._score.compute().items()}}

    def record(self, values: Mapping[str, float], step: int) -> None:
        """Sends values to every logger under the current epoch and a number of optimizer steps."""
        for logger in self.trainer.loggers:
            logger.log_metrics({"epoch": self.trainer.current_epoch, **values}, step=step)

    def set_learning_rate(self, lr: float) -> None:
        """Changes the configured learning rate, which a checkpoint records; the next optimizer is built with it."""
        self.optimizer_config = replace(self.optimizer_config, lr=lr)
        self.hparams["optimizer"] = asdict(self.optimizer_config)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Builds the optimizer and, unless the rate is constant, its schedule."""
        trainer = self.trainer
        # Lightning refuses to clip for an optimizer that unscales by itself, as fused ones can, whatever the precision
        clipped = isinstance(trainer.precision_plugin, MixedPrecision) and bool(trainer.gradient_clip_val)
        optimizer = build_optimizer(self.model, self.optimizer_config, fused=not clipped)
        scheduler = build_scheduler(optimizer, self.schedule_config, trainer.estimated_stepping_batches)
        # Counting the steps has made the training loader; only one that `fit` makes takes a checkpoint's position.
        trainer.fit_loop._combined_loader = trainer.fit_loop._data_fetcher = None
        if scheduler is None:
            return optimizer
        if scheduler.get("reduce_on_plateau"):
            scheduler["frequency"] = sys.maxsize  # never by Lightning, but in `on_train_epoch_end`
        return {"optimizer": optimizer, "lr_scheduler": scheduler}

    # ---- evaluation -----------------------------------------------------------------------------------------------

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Adds a batch to the validation metrics."""
        self._evaluate(batch, "val")

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Adds a batch to the test metrics."""
        self._evaluate(batch, "test")

    def predict_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Returns the logits (B, C) on the CPU, in float32 at least."""
        return _wide(self.forward(batch.numeric, batch.categorical)).cpu()

    def _evaluate(self, batch: Batch, stage: str) -> None:
        assert batch.target is not None
        logits = _wide(self(batch.numeric, batch.categorical))
        losses = self.eval_loss(logits, batch.target)
        cast(Meter, self.meters[stage]).update(losses, logits, batch.target, batch.count)

    def on_validation_epoch_end(self) -> None:
        """Logs the validation metrics; callbacks see them under the same keys."""
        self._report("val")

    def on_test_epoch_end(self) -> None:
        """Logs the test metrics."""
        self._report("test")

    def _report(self, stage: str) -> None:
        scores = cast(Meter, self.meters[stage]).compute()
        values = {f"{stage}/{name}": torch.tensor(score, dtype=torch.float32) for name, score in scores.items()}
        fitting = self.trainer.state.fn == TrainerFn.FITTING
        # Callbacks and the caller see float32. In a fit, loggers get the values below, with the number of steps.
        self.log_dict(values, logger=False if fitting else None, batch_size=1)
        if fitting and not self.trainer.sanity_checking:
            self._unseen = values["val/loss"].item()
            self.record({name: value.item() for name, value in values.items()}, self.trainer.global_step)

    # ---- state ----------------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds what the next records depend on, so that a resumed run reports what an uninterrupted one does."""
        state = self._running.state_dict()
        state |= {"recorded": self._recorded, "unseen_val_loss": self._unseen, "epoch": list(self._epoch)}
        state["score"] = self._score.state_dict()
        checkpoint["train_loss"] = state

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restores what `on_save_checkpoint` added, and takes float64 weights as they are."""
        if self._trainer is not None and isinstance(self.trainer.precision_plugin, DoublePrecision):
            self.double()  # Lightning does it after loading, which would round the weights to float32
        if (state := checkpoint.get("train_loss")) and self._trainer is not None:
            self._running.load_state_dict(state, rank=self.global_rank, world_size=self.trainer.world_size)
            if score := state.get("score"):  # checkpoints of an older version have none
                self._score.load_state_dict(score, rank=self.global_rank, world_size=self.trainer.world_size)
            self._recorded, self._unseen = state["recorded"], state["unseen_val_loss"]
            self._epoch = tuple(state.get("epoch", (-1, 0.0, 0)))  # checkpoints of an older version have none


def scale_by_data_(mlp: MLP, batch: Batch) -> None:
    """Applies the data-dependent init `lsuv` to a network."""
    weight = mlp.head.weight
    categorical = None if batch.categorical is None else batch.categorical.to(weight.device)
    lsuv_(mlp, batch.numeric.to(weight), categorical)


def _wide(logits: Tensor) -> Tensor:
    """Losses, metrics and predictions are computed in float32 at least."""
    return logits if logits.dtype == torch.float64 else logits.float()


def _config(kind: type[Config], value: Config | Mapping[str, Any]) -> Config:
    """Accepts a plain dict, as a checkpoint's hyperparameters hold it, where the command line gives the dataclass."""
    if isinstance(value, kind):
        return value
    key = f"model.{kind.__name__.removesuffix('Config').lower()}"
    if not isinstance(value, Mapping):
        raise UserError(f"{key}: {value!r} is not accepted; use {kind.__name__} or a dict of its fields")
    names = [field.name for field in fields(kind)]
    for name in value:
        if name not in names:
            raise unknown(key, name, names)
    return kind(**value)
