"""The LightningModule: one MLP, its loss, its optimizer and its metrics.

Nothing here calls `self.log` inside a step: on a small MLP that costs about as much as the step. The training loss is
summed on the device and read once per `trainer.log_every_n_steps`; validation metrics are read once per pass. Both go
to the loggers under the number of optimizer steps that have been taken.
"""

from __future__ import annotations

import random
from collections.abc import Mapping
from dataclasses import asdict
from typing import Any, TypeVar, cast

import lightning as L
import torch
import torch.distributed
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor, nn
from torchmetrics import MeanMetric

from mlp_lab.data.loader import Batch
from mlp_lab.data.module import TensorDataModule
from mlp_lab.data.spec import DataSpec
from mlp_lab.errors import UserError
from mlp_lab.model.encoders import EncoderConfig
from mlp_lab.model.initialization import lsuv_
from mlp_lab.model.mlp import MLP
from mlp_lab.model.tasks import build_loss, metrics
from mlp_lab.training.optimizers import OptimizerConfig, build_optimizer
from mlp_lab.training.schedules import ScheduleConfig, build_scheduler

LSUV_ROWS = 1024  # training rows behind the data-dependent initialisation

Config = TypeVar("Config", EncoderConfig, OptimizerConfig, ScheduleConfig)


class Meter(nn.Module):
    """The loss and the task's metrics over one pass, exact over any batching and any number of processes."""

    def __init__(self, spec: DataSpec) -> None:
        super().__init__()
        self.loss = MeanMetric().set_dtype(torch.float64)
        self.scores = metrics(spec)

    def update(self, losses: Tensor, logits: Tensor, target: Tensor) -> None:
        """Adds one batch: per-sample losses (B,), logits (B, C) and targets."""
        self.loss.update(losses.double())
        self.scores.update(logits, target)

    def compute(self) -> dict[str, Tensor]:
        """Returns the loss and every metric of the pass and starts anew; a collective call under DDP."""
        values = {"loss": self.loss.compute(), **self.scores.compute()}
        self.loss.reset()
        self.scores.reset()
        return values


class MLPModule(L.LightningModule):
    """Trains one MLP under `L.Trainer` with automatic optimization.

    Batches are `mlp_lab.data.loader.Batch`. The loss of a step is the sum of the per-sample losses over the rows of the
    *global* batch divided by its count, so that any number of processes takes the same step.

    Args:
        spec: What the model must know of the data, as `DataSpec.to_dict()` gives it.
        depth: Number of hidden layers; 0 is linear or logistic regression.
        width: Units per hidden layer: one number, or a list of `depth` numbers.
        activation: A key of `mlp_lab.model.activations.ACTIVATIONS`.
        init: A key of `mlp_lab.model.initialization.INITS`.
        norm: Normalisation of the pre-activations: none, batch, layer or rms.
        dropout: Probability of dropping a hidden unit, in [0, 1).
        input_dropout: Probability of dropping an input, in [0, 1).
        residual: Add a block's input to its output wherever their widths match.
        encoder: How numeric and categorical inputs are embedded.
        loss: A key of `mlp_lab.model.losses.LOSSES`, or auto for the task's proper one.
        label_smoothing: Probability mass moved to the uniform distribution (Szegedy et al. 2016), in [0, 1).
        class_weights: none, balanced (inverse frequency in the training rows), or a list with one weight per class.
        pos_weight: Weight of the positive class in a binary or multilabel loss; 1 weighs both alike.
        mixup: α of the Beta(α, α) that mixes pairs of rows (Zhang et al. 2018); 0 turns it off.
        max_norm: Upper bound of the norm of each hidden unit's incoming weights (Srivastava et al. 2014); 0 turns it
            off.
        optimizer: The optimizer and its learning rate.
        schedule: How the learning rate changes over the run.

    Raises:
        UserError: A setting is out of range, unknown, or does not fit the task.
    """

    def __init__(
        self,
        spec: Mapping[str, Any],
        depth: int = 2,
        width: int | list[int] = 128,
        activation: str = "relu",
        init: str = "he",
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
        self.spec = DataSpec.from_dict(spec)
        self.encoder_config = _config(EncoderConfig, encoder)
        self.optimizer_config = _config(OptimizerConfig, optimizer)
        self.schedule_config = _config(ScheduleConfig, schedule)
        settings["encoder"] = asdict(self.encoder_config)
        settings["optimizer"] = asdict(self.optimizer_config)
        settings["schedule"] = asdict(self.schedule_config)
        self.save_hyperparameters({"spec": self.spec.to_dict(), **settings})
        for name, value in {"mixup": mixup, "max_norm": max_norm}.items():
            if value < 0:
                raise UserError(f"model.{name}: {value} is negative; use a number of at least 0 (0 turns it off)")
        self.init, self.mixup, self.max_norm = init, mixup, max_norm
        self.model = MLP.from_spec(
            self.spec,
            depth=depth,
            width=width,
            activation=activation,
            init=init,
            norm=norm,
            dropout=dropout,
            input_dropout=input_dropout,
            residual=residual,
            encoder=self.encoder_config,
        )
        self.train_loss = build_loss(
            self.spec, loss, label_smoothing=label_smoothing, class_weights=class_weights, pos_weight=pos_weight
        )
        self.eval_loss = build_loss(self.spec, loss)
        self.meters = nn.ModuleDict({stage: Meter(self.spec) for stage in ("val", "test")})
        self.register_buffer("_loss_sum", torch.zeros((), dtype=torch.float64), persistent=False)
        self._rows = 0  # rows behind _loss_sum, over all processes
        self._recorded_step = 0
        self._world_size = 1

    _loss_sum: Tensor

    def forward(self, numeric: Tensor, categorical: Tensor | None = None) -> Tensor:
        """Returns the logits, or the standardised regression mean, (B, C)."""
        return cast(Tensor, self.model(numeric, categorical))

    # ---- training -------------------------------------------------------------------------------------------------

    def on_fit_start(self) -> None:
        """Reads the number of processes and applies a data-dependent initialisation to a fresh model."""
        self._world_size = self.trainer.world_size
        if self.init == "lsuv" and not self.trainer.ckpt_path:
            part = cast(TensorDataModule, self.trainer.datamodule).part("train")  # type: ignore[attr-defined]
            rows = slice(None, None, max(1, part.rows // LSUV_ROWS))  # a file may be sorted: take rows all over it
            categorical = None if part.categorical is None else part.categorical[rows].to(self.device)
            lsuv_(self.model, part.numeric[rows].to(self.device), categorical)

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Returns this process's share of the global batch's mean loss."""
        total = self._mixed_loss(batch) if self.mixup else self._loss(batch)
        self._loss_sum += total.detach()
        self._rows += batch.count
        return total * (self._world_size / batch.count)

    def _loss(self, batch: Batch) -> Tensor:
        logits = self.model(batch.numeric, batch.categorical)
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

    def optimizer_step(self, *args: Any, **kwargs: Any) -> None:
        """Steps, then projects the weights onto the max-norm ball."""
        super().optimizer_step(*args, **kwargs)
        if self.max_norm:
            for linear in self.model.linears[:-1]:
                linear.weight.data.renorm_(p=2, dim=0, maxnorm=self.max_norm)  # each unit's incoming weights

    def on_train_batch_end(self, outputs: Any, batch: Batch, batch_idx: int) -> None:
        """Records the training loss every `trainer.log_every_n_steps` optimizer steps, and at the epoch's last."""
        step = self.trainer.global_step
        due = step % self.trainer.log_every_n_steps == 0 or self.trainer.is_last_batch  # type: ignore[attr-defined]
        if due and step != self._recorded_step:
            self._record_training_loss(step)

    def on_train_epoch_end(self) -> None:
        """Steps a plateau schedule, before the epoch's checkpoint is written."""
        for config in self.trainer.lr_scheduler_configs:
            if config.reduce_on_plateau and "val/loss" in self.trainer.callback_metrics:
                config.scheduler.step(self.trainer.callback_metrics["val/loss"])  # type: ignore[arg-type]

    def lr_scheduler_step(self, scheduler: Any, metric: Any) -> None:
        """Steps a schedule; a plateau's has stepped in `on_train_epoch_end`."""
        if metric is None:
            scheduler.step()

    def _record_training_loss(self, step: int) -> None:
        total = self._loss_sum
        if self._world_size > 1:
            torch.distributed.all_reduce(total)
        loss = total.item() / self._rows
        self._recorded_step = step
        self._rows = 0
        self._loss_sum.zero_()
        rate = self.optimizers(use_pl_optimizer=False).param_groups[0]["lr"]  # type: ignore[union-attr]
        self.trainer.callback_metrics["train/loss"] = torch.tensor(loss)
        self.record({"train/loss": loss, "train/lr": rate})

    def record(self, values: Mapping[str, float]) -> None:
        """Sends values to every logger under the current epoch and number of optimizer steps."""
        for logger in self.trainer.loggers:
            logger.log_metrics({"epoch": self.trainer.current_epoch, **values}, step=self.trainer.global_step)

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Builds the optimizer and, unless the rate is constant, its schedule."""
        optimizer = build_optimizer(self.model, self.optimizer_config)
        scheduler = build_scheduler(optimizer, self.schedule_config, self.trainer.estimated_stepping_batches)
        return optimizer if scheduler is None else {"optimizer": optimizer, "lr_scheduler": scheduler}

    # ---- evaluation -----------------------------------------------------------------------------------------------

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        """Adds a batch to the validation metrics."""
        self._evaluate(batch, "val")

    def test_step(self, batch: Batch, batch_idx: int) -> None:
        """Adds a batch to the test metrics."""
        self._evaluate(batch, "test")

    def predict_step(self, batch: Batch, batch_idx: int) -> Tensor:
        """Returns the logits (B, C) on the CPU, in float32."""
        return self.forward(batch.numeric, batch.categorical).float().cpu()

    def _evaluate(self, batch: Batch, stage: str) -> None:
        if len(batch.numeric) == 0:  # a rank's part of a batch smaller than the number of ranks
            return
        assert batch.target is not None
        logits = self(batch.numeric, batch.categorical).float()
        cast(Meter, self.meters[stage]).update(self.eval_loss(logits, batch.target), logits, batch.target)

    def on_validation_epoch_end(self) -> None:
        """Logs the validation metrics; callbacks see them under the same keys."""
        self._report("val")

    def on_test_epoch_end(self) -> None:
        """Logs the test metrics."""
        self._report("test")

    def _report(self, stage: str) -> None:
        values = {f"{stage}/{name}": value.float() for name, value in cast(Meter, self.meters[stage]).compute().items()}
        self.log_dict(
            values, logger=False, batch_size=1
        )  # Lightning's callbacks read it; loggers get true step numbers
        if self.trainer.state.fn == TrainerFn.FITTING and not self.trainer.sanity_checking:
            self.record({name: value.item() for name, value in values.items()})

    # ---- state ----------------------------------------------------------------------------------------------------

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Adds the running sums of the training loss, so that a resumed run reports what an uninterrupted one does."""
        total = self._loss_sum.clone()
        if self._world_size > 1:
            torch.distributed.all_reduce(total)
        checkpoint["train_loss"] = {"sum": total.item(), "rows": self._rows, "recorded_step": self._recorded_step}

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restores the running sums of the training loss."""
        state = checkpoint.get("train_loss")
        if state:
            self._loss_sum.fill_(state["sum"] if self.global_rank == 0 else 0.0)
            self._rows, self._recorded_step = state["rows"], state["recorded_step"]


def _config(kind: type[Config], value: Config | Mapping[str, Any]) -> Config:
    """Accepts the plain dict of a checkpoint's hyperparameters where the command line gives the dataclass."""
    return kind(**value) if isinstance(value, Mapping) else value
