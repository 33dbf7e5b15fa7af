"""Runs that the verdicts are judged on: short fits from a config, with a fault planted where no flag can make it.

A config is what `python -m mlp_lab fit` takes: {"data": {...}, "model": {...}, "trainer": {...}, ...}, nested. A cure
is the list of a verdict's `fix`: flags are put into the config, a line of Python is run on the module.
"""

from __future__ import annotations

import copy
import io
import math
import shlex
import tempfile
import warnings
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout, suppress
from dataclasses import replace
from typing import Any, NamedTuple

import lightning as L
import torch
import yaml
from lightning.pytorch.callbacks import Callback
from torch import Tensor, nn

from mlp_lab import MLPModule, MNISTDataModule, TabularDataModule
from mlp_lab.data.loader import epoch_order
from mlp_lab.data.module import Part, TensorDataModule
from mlp_lab.diagnostics.callback import Diagnostics
from mlp_lab.diagnostics.evidence import Evidence
from mlp_lab.diagnostics.verdicts import Verdict, diagnose
from mlp_lab.errors import NonFiniteError
from mlp_lab.model.activations import Activation
from mlp_lab.model.initialization import INITS, Init, he_
from mlp_lab.training.optimizers import OptimizerConfig
from mlp_lab.training.schedules import ScheduleConfig

Config = dict[str, Any]
DATA = {"TabularDataModule": TabularDataModule, "MNISTDataModule": MNISTDataModule}


class Run(NamedTuple):
    """One fit."""

    verdicts: list[Verdict]  # as they stood at its end
    criticals: set[str]  # codes that were critical at any validation pass
    evidence: Evidence
    val_loss: float  # of the last validation pass
    score: float  # f1 where it is measured, else accuracy, else r2: of the last validation pass


def scaled_init(factor: float) -> Init:
    """Returns He's weights times a factor, the head as it should be: a scale that no entry of `INITS` has."""

    def hidden(weight: Tensor, bias: Tensor, before: Activation, after: Activation) -> None:
        he_(weight, bias, before, after)
        weight.data.mul_(factor)

    return Init(hidden=hidden, head=he_)


def twin_(weight: Tensor, bias: Tensor, before: Activation, after: Activation) -> None:
    """Gives all units of a layer the weights of its first."""
    he_(weight, bias, before, after)
    weight.data[:] = weight.data[:1].clone()


PLANTED_INITS = {
    "tiny": scaled_init(0.2),
    "small": scaled_init(0.4),
    "large": scaled_init(3.0),
    "huge": scaled_init(8.0),
    "twins": Init(hidden=twin_, head=he_),
    "constant": Init(
        hidden=lambda weight, bias, before, after: [nn.init.constant_(t, 0.05) for t in (weight, bias)] and None,
        head=he_,
    ),
}


# ---- faults that no flag makes -------------------------------------------------------------------------------------

Plant = Callable[[TensorDataModule, L.LightningModule | None], None]


def _change(data: TensorDataModule, **parts: Callable[[Part], Part]) -> None:
    loaded = data.loaded
    changed = {name: change(loaded.parts[name]) for name, change in parts.items()}
    data._loaded = replace(loaded, parts={**loaded.parts, **changed})


def nan_late(data: TensorDataModule, module: L.LightningModule | None) -> None:
    """Puts one NaN into a column, in a row that the first epoch visits late."""
    if module is None:
        return
    if getattr(data, "drop", None):
        return  # the cure has left the column out
    name = data.spec.numeric[len(data.spec.numeric) // 3]
    row = int(epoch_order(data.part("train").rows, seed=data.resolved_seed, epoch=0)[-5])

    def spoil(part: Part) -> Part:
        numeric = part.numeric.clone()
        numeric[row, data.spec.numeric.index(name)] = math.nan
        return replace(part, numeric=numeric)

    _change(data, train=spoil)


def freeze_first(data: TensorDataModule, module: L.LightningModule | None) -> None:
    """Freezes the first hidden layer, as one does for fine-tuning and forgets."""
    if module is not None:
        module.model.blocks[0].linear.weight.requires_grad_(False)


def freeze_all_hidden(data: TensorDataModule, module: L.LightningModule | None) -> None:
    """Freezes every hidden layer."""
    if module is not None:
        for block in module.model.blocks:
            block.linear.requires_grad_(False)


def shuffle_labels(data: TensorDataModule, module: L.LightningModule | None) -> None:
    """Gives every row the target of another, in all parts."""
    if module is not None:
        return
    generator = torch.Generator().manual_seed(data.resolved_seed)

    def shuffled(part: Part) -> Part:
        assert part.target is not None
        return replace(part, target=part.target[torch.randperm(part.rows, generator=generator)])

    _change(data, train=shuffled, val=shuffled)


def rare_classes(data: TensorDataModule, module: L.LightningModule | None, keep: int = 25) -> None:
    """Keeps all rows of the first class and one of `keep` of every other, in training and validation."""
    if module is not None:
        return

    def thinned(part: Part) -> Part:
        assert part.target is not None
        kept = (part.target == 0) | (torch.arange(part.rows) % keep == 0)
        return replace(
            part,
            numeric=part.numeric[kept],
            target=part.target[kept],
            categorical=None if part.categorical is None else part.categorical[kept],
        )

    _change(data, train=thinned, val=thinned)
    target = data.part("train").target
    assert target is not None
    counts = tuple(torch.bincount(target, minlength=len(data.spec.classes)).tolist())
    data._loaded = replace(data.loaded, spec=replace(data.spec, class_counts=counts))


PLANTS: dict[str, Plant] = {
    "nan_late": nan_late,
    "freeze_first": freeze_first,
    "freeze_all_hidden": freeze_all_hidden,
    "shuffle_labels": shuffle_labels,
    "rare_classes": rare_classes,
}


# ---- configs, flags and fits ----------------------------------------------------------------------------------------


def with_flags(config: Config, flags: Sequence[str]) -> Config:
    """Returns the config with `--a.b value` flags put in, as the shell and the command line would."""
    changed = copy.deepcopy(config)
    for flag in flags:
        if flag.startswith("--"):
            key, text = shlex.split(flag)
            *rooms, last = key[2:].split(".")
            place = changed
            for room in rooms:
                place = place.setdefault(room, {})
            place[last] = yaml.safe_load(text)
    return changed


def build(config: Config, seed: int, plant: Plant | None) -> tuple[TensorDataModule, MLPModule]:
    """Builds data and model as the command line would, with the fault in them."""
    L.seed_everything(seed, verbose=False)
    settings = dict(config["data"])
    kind = DATA[settings.pop("class_path", "TabularDataModule")]
    quiet = {"verbose": False} if kind is TabularDataModule else {}
    data = kind(**{"seed": seed, **quiet, **settings})
    if plant:
        plant(data, None)
    model = dict(config.get("model", {}))
    configs = {"optimizer": OptimizerConfig(**model.pop("optimizer", {}))}
    if "schedule" in model:
        configs["schedule"] = ScheduleConfig(**model.pop("schedule"))
    INITS.update(PLANTED_INITS)
    try:
        module = MLPModule(data.spec_dict, **configs, **model)
    finally:
        for name in PLANTED_INITS:
            INITS.pop(name)
    if plant:
        plant(data, module)
    return data, module


def fit(
    config: Config,
    seed: int,
    *,
    plant: Plant | None = None,
    cure: Sequence[str] = (),
) -> Run:
    """Trains and returns what the diagnostics said.

    Args:
        config: what `python -m mlp_lab fit` takes.
        seed: of weights, split and order.
        plant: a fault that no flag makes.
        cure: a verdict's fix, to apply before the fit.
    """
    config = with_flags(config, cure)
    data, module = build(config, seed, plant)
    for line in cure:
        if not line.startswith("--"):
            exec(line, {"module": module})
    callback = Diagnostics()
    watch = Watch(callback)
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = L.Trainer(
            **{"max_epochs": 10, **config.get("trainer", {})},
            accelerator="cpu",
            devices=1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            default_root_dir=folder,
            callbacks=[callback, watch],
        )
        with suppress(NonFiniteError), redirect_stdout(io.StringIO()):  # verdicts are read, not shown
            trainer.fit(module, datamodule=data)
    last = callback.evidence.epochs[-1].values if callback.evidence.epochs else {}
    score = next((last[key] for key in ("val/f1", "val/auprc", "val/r2") if key in last), math.nan)
    return Run(callback.verdicts, watch.criticals, callback.evidence, last.get("val/loss", math.nan), score)


class Watch(Callback):
    """Notes every code that is critical at the end of an epoch."""

    def __init__(self, diagnostics: Diagnostics) -> None:
        self.diagnostics = diagnostics
        self.criticals: set[str] = set()

    def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        self.criticals |= {one.code for one in diagnose(self.diagnostics.evidence) if one.severity == "critical"}
