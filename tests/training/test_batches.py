"""Pairs of a plain `DataLoader` train as the batches of the data module do, or are refused in one sentence."""

from __future__ import annotations

import copy
import pickle
import re
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from mlp_lab import Diagnostics, MLPModule, PopulationModule, TabularDataModule
from mlp_lab.data.loader import Batch
from mlp_lab.data.spec import DataSpec, TaskName
from mlp_lab.errors import UserError
from mlp_lab.training.batches import pair_batch

QUIET: dict[str, Any] = {
    "accelerator": "cpu",
    "logger": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "enable_checkpointing": False,
    "num_sanity_val_steps": 0,
}
pytestmark = [
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*smaller than the logging interval"),
]


def tables(dataset: str) -> TabularDataModule:
    return TabularDataModule(dataset=dataset, batch_size=10_000, verbose=False, seed=0)


def whole(data: TabularDataModule) -> TabularDataModule:
    """Makes the training rows one batch, whose order does not matter."""
    data.batch_size = data.part("train").rows
    return data


def pairs(data: TabularDataModule, name: str) -> DataLoader[Any]:
    part = data.part(name)
    assert part.target is not None
    return DataLoader(TensorDataset(part.numeric, part.target), batch_size=part.rows)


def build(kind: str, data: TabularDataModule, **settings: Any) -> L.LightningModule:
    torch.manual_seed(0)
    members = [MLPModule(data.spec_dict, depth=1, width=8, **settings) for _ in range(1 if kind == "single" else 2)]
    return members[0] if kind == "single" else PopulationModule(members)


def weights(module: L.LightningModule) -> list[Tensor]:
    return [value for name, value in module.state_dict().items() if "model" in name or "population" in name]


@pytest.mark.parametrize("kind", ["single", "population"])
@pytest.mark.parametrize("dataset", ["wine", "breast_cancer", "diabetes"])
def test_pairs_train_bit_for_bit_as_the_data_module(dataset: str, kind: str) -> None:
    data = whole(tables(dataset))
    ours, theirs = build(kind, data, init="lsuv"), build(kind, data, init="lsuv")
    # lsuv scales by rows from all over the data: here by all of them in both cases
    L.Trainer(max_epochs=3, **QUIET).fit(ours, datamodule=data)
    trainer = L.Trainer(max_epochs=3, **QUIET)
    trainer.fit(theirs, pairs(data, "train"), pairs(data, "val"))
    assert all(torch.equal(one, other) for one, other in zip(weights(ours), weights(theirs), strict=True))
    assert trainer.test(theirs, pairs(data, "test"), verbose=False) == trainer.test(ours, data, verbose=False)
    given, own = (trainer.predict(module, source) for module, source in ((theirs, pairs(data, "test")), (ours, data)))
    assert given is not None
    assert own is not None
    assert torch.equal(torch.cat(given), torch.cat(own))  # type: ignore[arg-type]


def test_diagnostics_see_pairs_as_batches() -> None:
    data = whole(tables("wine"))
    diagnostics = Diagnostics(every_n_steps=1)
    trainer = L.Trainer(max_epochs=2, callbacks=[diagnostics], **QUIET)
    trainer.fit(build("single", data), pairs(data, "train"), pairs(data, "val"))
    assert diagnostics.evidence.steps


def test_shuffled_pairs_visit_the_rows_that_they_would_without_lsuv() -> None:
    class Seen(L.Callback):
        def __init__(self) -> None:
            self.rows: list[Tensor] = []

        def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Batch, *_: Any) -> None:
            self.rows.append(batch.numeric.clone())

    data, seen = tables("wine"), [Seen(), Seen()]
    part = data.part("train")
    assert part.target is not None
    for callback, init in zip(seen, ("he", "lsuv"), strict=True):
        module = build("single", data, init=init)
        torch.manual_seed(1)
        loader = DataLoader(TensorDataset(part.numeric, part.target), batch_size=16, shuffle=True)
        L.Trainer(max_epochs=1, callbacks=[callback], **QUIET).fit(module, loader, pairs(data, "val"))
    assert all(torch.equal(one, other) for one, other in zip(seen[0].rows, seen[1].rows, strict=True))


def test_loader_of_the_data_module_begins_with_its_first_epoch_under_lsuv() -> None:
    data = tables("wine")
    data.batch_size = 16
    ours, theirs = build("single", data, init="lsuv"), build("single", data, init="lsuv")
    L.Trainer(max_epochs=2, **QUIET).fit(ours, datamodule=data)
    data.trainer = None
    L.Trainer(max_epochs=2, **QUIET).fit(theirs, data.train_dataloader(), data.val_dataloader())
    assert all(torch.equal(one, other) for one, other in zip(weights(ours), weights(theirs), strict=True))


X = torch.arange(6.0).view(3, 2)
TARGETS: list[tuple[TaskName, Tensor, Tensor]] = [
    ("binary", torch.tensor([[0.0], [1.0], [1.0]]), torch.tensor([0, 1, 1])),
    ("multiclass", torch.tensor([2, 0, 1], dtype=torch.int32), torch.tensor([2, 0, 1])),
    ("multilabel", torch.ones(3, 2, dtype=torch.long), torch.ones(3, 2)),
    ("regression", torch.tensor([1, 2, 3]), torch.tensor([[1.0], [2.0], [3.0]])),
]


def spec(task: TaskName, **columns: Any) -> DataSpec:
    names = {"binary": ("no", "yes"), "multiclass": ("a", "b", "c"), "multilabel": ("a", "b"), "regression": ()}[task]
    scale = {"target_mean": (0.0,), "target_std": (1.0,)} if task == "regression" else {}
    targets = ("a", "b") if task == "multilabel" else ("y",)
    return DataSpec(task=task, numeric=("u", "v"), classes=names, targets=targets, **scale, **columns)


@pytest.mark.parametrize(("task", "y", "target"), TARGETS)
def test_pair_has_the_target_that_the_loss_takes(task: TaskName, y: Tensor, target: Tensor) -> None:
    batch = pair_batch((X.double(), y), spec(task), processes=2)
    assert (batch.numeric.dtype, batch.count) == (torch.float32, 6)
    assert batch.target is not None
    assert (batch.target.dtype, batch.target.tolist()) == (target.dtype, target.tolist())
    assert pair_batch([X], spec(task)).target is None


@pytest.mark.parametrize(
    ("batch", "task", "line"),
    [
        (
            (X, X, X),
            "binary",
            "data: the loader gives a tuple of (Tensor, Tensor, Tensor); use …",
        ),
        (
            {"x": X},
            "binary",
            "data: the loader gives a dict; use …Batch, or a pair (x, y) of tensors",
        ),
        (
            (X, torch.tensor([0, 1, 2])),
            "binary",
            "data: y holds values that are no class; the binary task …",
        ),
        ((X, torch.tensor([0, 0.5, 1])), "multiclass", "data: y holds values that are no class; the multiclass task"),
        ((X, torch.zeros(3)), "multilabel", "data: y has the shape (3,); the multilabel task takes (3, 2)"),
        ((X, torch.zeros(3, 2)), "regression", "data: y has the shape (3, 2); the regression task takes (3, 1)"),
    ],
)
def test_what_is_no_pair_is_refused_in_one_sentence(batch: Any, task: TaskName, line: str) -> None:
    with pytest.raises(UserError, match=re.escape(line).replace("…", ".*")):
        pair_batch(batch, spec(task))


def test_pair_batch_of_a_binary_spec_without_class_names_takes_0_and_1() -> None:
    unnamed = DataSpec(task="binary", numeric=("u", "v"))
    assert pair_batch((X, torch.tensor([0, 1, 1])), unnamed).target is not None
    with pytest.raises(UserError, match="the binary task takes 0 to 1"):
        pair_batch((X, torch.tensor([0, 1, 2])), unnamed)


def test_codes_are_asked_for_where_there_are_categories() -> None:
    with pytest.raises(UserError, match=r"use mlp_lab.data.loader.Batch with the codes of the categorical columns$"):
        pair_batch((X, X), spec("binary", categorical=("c",), cardinalities=(3,)))


def test_fitted_data_module_and_its_loaders_can_be_pickled_and_copied() -> None:
    data = whole(tables("wine"))

    class Pickles(L.Callback):
        """Does so while the trainer holds what cannot be pickled."""

        def __init__(self) -> None:
            self.local = lambda: None
            self.copies: list[Any] = []

        def on_train_epoch_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
            self.copies += [pickle.loads(pickle.dumps(data)), copy.deepcopy(data)]
            loader = pickle.loads(pickle.dumps(trainer.train_dataloader))
            assert len(list(loader)) == 1

    callback = Pickles()
    L.Trainer(max_epochs=1, callbacks=[callback], **QUIET).fit(build("single", data), datamodule=data)
    assert data.trainer is not None
    for one in callback.copies:
        assert one.trainer is None
        assert torch.equal(one.part("train").numeric, data.part("train").numeric)
