"""Reads off a run, before its first step, what the verdicts must know of it."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import fields
from typing import Any, cast

import lightning as L
import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from mlp_lab.data.module import Part, TensorDataModule
from mlp_lab.data.spec import DataSpec
from mlp_lab.diagnostics.evidence import NAN, Facts
from mlp_lab.errors import UserError
from mlp_lab.model.mlp import MLP, Block

SAMPLE = 4096  # rows behind statistics of inputs and of constant predictions: a share is known to within 0.8%
NORM_KINDS = {"batch": nn.BatchNorm1d, "layer": nn.LayerNorm, "rms": nn.RMSNorm}
OPTIMIZER_NAMES = {"SGD": "sgd", "Adam": "adam", "AdamW": "adamw", "RMSprop": "rmsprop", "Muon": "muon"}


def collect_facts(trainer: L.Trainer, module: L.LightningModule, mlp: MLP) -> Facts:
    """Collects the facts of a fit that is about to take its first step (`on_train_start`).

    A resumed run keeps the facts that it began with: what is said of initial weights is not true of later ones.
    Nothing is drawn from a random generator, and no loader is made.

    Args:
        trainer: its optimizers and loaders are set up.
        module: an `MLPModule`, or a user's own; of the latter less is known.
        mlp: the network that it trains.
    """
    values = {**_of_network(mlp), **_of_settings(module), **_of_optimizers(trainer, mlp), **_of_plan(trainer)}
    data = getattr(trainer, "datamodule", None)
    if isinstance(data, TensorDataModule):
        values |= _of_data(data)
        if (train := _part(data, "train")) is not None:
            values |= _of_inputs(train, data.spec)
            values |= _of_guessing(module, data, train)
    known = {one.name for one in fields(Facts)}
    return Facts(**{key: value for key, value in values.items() if key in known and value is not None})


def _of_network(mlp: MLP) -> dict[str, Any]:
    blocks = [cast(Block, block) for block in mlp.blocks]
    first = blocks[0] if blocks else None
    weights = [linear.weight.detach() for linear in mlp.linears]
    same = [weight.shape[0] > 1 and bool((weight == weight[0]).all()) for weight in weights[:-1]]
    zero = [not bool(weight.any()) for weight in weights]
    return {
        "depth": mlp.depth,
        "widths": tuple(mlp.widths),
        "parameters": sum(one.numel() for one in mlp.parameters() if one.requires_grad),
        "precision": str(mlp.head.weight.dtype).removeprefix("torch."),
        "activation": mlp.activation if first else "",
        "norm": next((name for name, kind in NORM_KINDS.items() if first and isinstance(first.norm, kind)), "none"),
        "residual": any(block.skip for block in blocks),
        "dropout": float(getattr(first.dropout, "p", 0.0)) if first else 0.0,
        "identical_rows": _numbers(one and not other for one, other in zip(same, zero, strict=False)),
        "zero_layers": _numbers(zero),
        "weight_gains": tuple(math.sqrt(float(w.double().square().mean()) * w.shape[1]) for w in weights),
    }


def _numbers(flags: Iterable[bool]) -> tuple[int, ...]:
    return tuple(layer for layer, flag in enumerate(flags, start=1) if flag)


def _of_settings(module: L.LightningModule) -> dict[str, Any]:
    """Returns what the hyperparameters of an `MLPModule` say; a user's own module may lack any of them."""
    settings: Mapping[str, Any] = module.hparams
    optimizer, schedule = (_mapping(settings.get(key)) for key in ("optimizer", "schedule"))
    loss = getattr(getattr(module, "train_loss", None), "loss", None)
    return {
        "loss": getattr(loss, "name", None),
        "init": settings.get("init"),
        "bias": settings.get("bias"),
        "mixup": settings.get("mixup"),
        "class_weights": settings.get("class_weights", "none") != "none" or settings.get("pos_weight", 1.0) != 1.0,
        "schedule": schedule.get("name"),
        "warmup": schedule.get("warmup"),
        "lr": optimizer.get("lr"),
    }


def _mapping(value: object) -> Mapping[str, Any]:
    return value if isinstance(value, Mapping) else {}


def _of_optimizers(trainer: L.Trainer, mlp: MLP) -> dict[str, Any]:
    optimizers: list[Optimizer] = trainer.optimizers
    if not optimizers:
        return {}
    updated = {id(one) for optimizer in optimizers for group in optimizer.param_groups for one in group["params"]}
    frozen = (not one.weight.requires_grad or id(one.weight) not in updated for one in mlp.linears)
    first, groups = type(optimizers[0]).__name__, optimizers[0].param_groups
    betas = groups[0].get("betas")
    facts = {
        "optimizer": OPTIMIZER_NAMES.get(first, first),
        "momentum": groups[0].get("momentum", betas[0] if betas else 0.0),
        "weight_decay": max(group.get("weight_decay", 0.0) for group in groups),
        "frozen_layers": _numbers(frozen),
        "eps": groups[0].get("eps"),
    }
    if not _mapping(trainer.lightning_module.hparams.get("optimizer")).get("lr"):
        facts["lr"] = groups[0]["lr"]
    return facts


def _of_plan(trainer: L.Trainer) -> dict[str, Any]:
    batches = float(trainer.num_training_batches)
    per_epoch = math.ceil(batches / trainer.accumulate_grad_batches) if math.isfinite(batches) else 0
    epochs = trainer.max_epochs or 0
    limits = [epochs * per_epoch if epochs > 0 else 0, trainer.max_steps if trainer.max_steps > 0 else 0]
    return {
        "steps_per_epoch": per_epoch,
        "planned_steps": min((one for one in limits if one), default=0),
        "planned_epochs": max(epochs, 0),
        "clipping": trainer.gradient_clip_val or 0.0,
    }


def _of_data(data: TensorDataModule) -> dict[str, Any]:
    spec = data.spec
    normalize = getattr(data, "normalize", None)
    scaling = getattr(data, "scaling", None) if normalize is None else ("normalize" if normalize else "none")
    counts = spec.class_counts if spec.task in ("binary", "multiclass") else ()
    return {
        "task": spec.task,
        "classes": len(spec.classes),
        "data": type(data).__name__,
        "scaling": scaling,
        "batch_size": data.train_batch_size,
        "majority_share": max(counts) / sum(counts) if sum(counts) else NAN,
    }


def _part(data: TensorDataModule, name: str) -> Part | None:
    try:
        return data.part(name)
    except UserError:
        return None


def _sample(rows: Tensor) -> Tensor:
    return rows[:: max(1, len(rows) // SAMPLE)]


def _of_inputs(train: Part, spec: DataSpec) -> dict[str, Any]:
    """Returns the scale of the numeric features; one-hot and embedded categories need none."""
    values: dict[str, Any] = {"training_rows": train.rows}
    x = _sample(train.numeric).flatten(1)  # (N, D)
    if x.shape[1]:
        squares = x.double().square().mean(0)  # (D,)
        worst = int(squares.argmax())
        values |= {
            "input_mean": float(x.double().mean()),
            "input_rms": float(squares.mean().sqrt()),
            "input_worst_rms": float(squares[worst].sqrt()),
            "input_worst": spec.numeric[worst] if worst < len(spec.numeric) else "",
        }
    return values


@torch.no_grad()
def _of_guessing(module: L.LightningModule, data: TensorDataModule, train: Part) -> dict[str, Any]:
    """Returns what the best constant prediction, by the training rows, would score."""
    losses = {
        "baseline_loss": getattr(module, "train_loss", None),
        "baseline_val_loss": getattr(module, "eval_loss", None),
    }
    val = _part(data, "val")
    spec, values = data.spec, {}
    logits = _constant_logits(spec)
    for (key, loss), part in zip(losses.items(), (train, val), strict=True):
        if loss is not None and part is not None and part.target is not None:
            target = _sample(part.target)
            logits = logits.to(target.device)
            values[key] = float(loss(logits.expand(len(target), -1), target).double().mean())
    if val is not None and val.target is not None and spec.task in ("binary", "multiclass"):
        most = max(range(len(spec.class_counts)), key=spec.class_counts.__getitem__, default=0)
        values["baseline_accuracy"] = float((val.target == most).double().mean())
    return values


def _constant_logits(spec: DataSpec) -> Tensor:
    """Returns the logits (C,) of the training rows' class shares, or the mean of standardised targets, 0."""
    if spec.task == "regression" or not spec.class_counts:
        return torch.zeros(spec.out_features)
    counts = torch.tensor(spec.class_counts, dtype=torch.float32).clamp(min=0.5)
    if spec.task == "multiclass":
        return (counts / counts.sum()).log()
    if spec.task == "binary":
        return (counts[1] / counts[0]).log().reshape(1)
    return (counts / (spec.rows[0] - counts).clamp(min=0.5)).log()
