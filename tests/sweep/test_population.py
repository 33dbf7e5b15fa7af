from __future__ import annotations

import re
import weakref
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch

from mlp_lab.data.tabular import TabularDataModule
from mlp_lab.population.memory import member_bytes
from mlp_lab.population.module import PopulationModule
from mlp_lab.sweep.population import Together, device_of, group_key, stackable
from mlp_lab.sweep.pruning import Asha, Nothing
from mlp_lab.sweep.runs import Outcome, Point
from mlp_lab.sweep.serial import Alone, Run
from mlp_lab.training.module import MLPModule
from tests.sweep.digits import Digits, dotted

ONE: dict[str, Any] = {"metrics": ["val/loss"], "maximize": [False]}
MIXED: list[dict[str, object]] = [
    {"depth": 1, "width": 16},
    {"depth": 3, "width": 24, "activation": "tanh", "dropout": 0.25},
    {"depth": 0, "lr": 0.1},
    {"depth": 2, "width": 8, "optimizer": "sgd", "lr": 0.3},
]


def train(backend: Alone, settings: list[dict[str, object]], judge: Any = None) -> dict[int, Outcome]:
    told: list[Outcome] = []
    points = [Point(number=number, seed=number, settings=dotted(one)) for number, one in enumerate(settings)]
    backend.train(points, judge or Asha(history=Nothing(), min_epochs=99), told.append)
    assert len({one.number for one in told}) == len(told) == len(settings)
    return {one.number: one for one in told}


@pytest.mark.parametrize("seeds", [1, 2])
def test_together_is_as_alone(seeds: int) -> None:
    builder = Digits(precision="64-true")
    alone = train(Alone(builder, seeds=seeds, **ONE), MIXED)
    together = train(Together(builder, batch=4, seeds=seeds, **ONE), MIXED)
    for number, one in alone.items():
        other = together[number]
        assert (other.state, other.epochs) == (one.state, one.epochs)
        # float64, 36 steps: sums in another order; validation losses are stored as float32 where trained alone
        assert other.values == pytest.approx(one.values, rel=1e-6)
        assert other.reports == pytest.approx(one.reports, rel=1e-6)
        assert other.sd == (one.sd if one.sd is None else pytest.approx(one.sd, rel=1e-4))


def test_the_judge_cuts_the_whole_batch_at_once() -> None:
    settings: list[dict[str, object]] = [{"lr": 0.01}, {"lr": 1e-5}, {"lr": 0.02}, {"lr": 1e-6}]
    told = train(Together(Digits(), batch=4, **ONE), settings, Asha(history=Nothing(), reduction=2))
    assert [told[number].state for number in range(4)] == ["pruned", "pruned", "complete", "pruned"]
    assert [told[number].epochs for number in range(4)] == [2, 1, 3, 1]  # rungs after epochs 1 and 2: 4, 2, 1


@pytest.mark.parametrize("backend", [Alone, Together])
@pytest.mark.parametrize(
    ("trainer", "ends", "epochs"),
    [
        ({"max_epochs": 9, "check_val_every_n_epoch": 2}, {2: [1, 3], 4: [0]}, [4, 2, 9, 2]),  # rungs at 1 and 3
        ({"max_epochs": 4, "val_check_interval": 0.5}, {1: [0, 1, 3]}, [1, 1, 4, 1]),  # a rung at 1
    ],
)
def test_a_rung_is_decided_once_where_an_epoch_has_been_validated(
    backend: type[Alone], trainer: dict[str, Any], ends: dict[int, list[int]], epochs: list[int]
) -> None:
    class Noting(Asha):
        def stop(self, epoch: int, values: dict[int, float]) -> set[int]:
            seen.extend((epoch, number) for number in values)
            return {number for number in values if number in ends[epoch]}

    seen: list[tuple[int, int]] = []
    batch = {"batch": 4} if backend is Together else {}
    told = train(backend(Digits(**trainer), **batch, **ONE), MIXED, Noting(history=Nothing()))
    asked = [(epoch, number) for epoch in ends for number in range(4) if epochs[number] >= epoch]
    assert sorted(seen) == asked  # each once
    assert [told[number].epochs for number in range(4)] == epochs


def test_what_is_not_finite_ends_and_the_others_go_on() -> None:
    settings: list[dict[str, object]] = [{}, {"optimizer": "sgd", "lr": 1e30}, {"lr": 0.02}]
    healthy = train(Together(Digits(), batch=2, **ONE), [settings[0], {}, settings[2]])
    told = train(Together(Digits(), batch=3, prune=["nonfinite"], **ONE), settings)
    assert [told[number].state for number in range(3)] == ["complete", "diagnosed", "complete"]
    assert told[1].verdicts[0]["code"] == "nonfinite"
    assert told[0].values == pytest.approx(healthy[0].values, rel=1e-3)
    alone = train(Together(Digits(), batch=1, **ONE), [settings[1]])
    assert alone[0].state == "failed"  # even where nobody is left


@pytest.mark.parametrize("patience", [0, 5])
@pytest.mark.parametrize("backend", [Alone, Together])
def test_trial_whose_metric_has_no_value_has_failed(backend: type[Alone], patience: int, tmp_path: Path) -> None:
    rows = [(row % 7, ("no", "yes")[row % 2], "train") for row in range(40)] + [(row, "no", "val") for row in range(9)]
    pd.DataFrame(rows, columns=["x", "y", "part"]).to_csv(tmp_path / "table.csv", index=False)
    path = str(tmp_path / "table.csv")
    data = TabularDataModule(path, target="y", split_column="part", batch_size=20, verbose=False)

    class OneClass(Digits):
        def build(self, settings: Mapping[str, object], seed: int) -> Run:
            run, stop = super().build(settings, seed), {"patience": patience, "monitor": "val/auroc"}
            return replace(run, module=MLPModule(data.spec_dict), data=data, early_stopping=stop)

    batch = {"batch": 3} if backend is Together else {}
    told = train(backend(OneClass(), metrics=["val/auroc"], maximize=[True], **batch), [{}, {}, {}])
    assert [told[number].state for number in range(3)] == ["failed"] * 3
    assert all("val/auroc is nan in the first validation" in str(one.error) for one in told.values())
    assert all(one.epochs <= 1 for one in told.values())


def test_what_cannot_be_stacked_is_trained_alone() -> None:
    told = train(Together(Digits(), batch=3, **ONE), [{}, {"optimizer": "rmsprop"}, {"activation": "rellu"}])
    assert [told[number].state for number in range(3)] == ["complete", "complete", "failed"]


def test_points_are_grouped_by_what_they_must_share() -> None:
    assert group_key({"model.depth": 1, "model.optimizer.lr": 0.1}) == group_key({"model.depth": 2})
    assert group_key({"data.batch_size": 8}) != group_key({"data.batch_size": 16})
    assert group_key({"model.norm": "batch"}) != group_key({"model.norm": "none"})
    assert group_key({"trainer.max_epochs": 3}) != group_key({"trainer.max_epochs": 4})


def test_verdicts_of_members_are_kept_and_end_trials() -> None:
    vanishing: dict[str, object] = {"depth": 8, "activation": "sigmoid", "init": "pytorch", "optimizer": "sgd"}
    builder = Digits(max_epochs=8)
    kept = train(Together(builder, batch=2, **ONE), [vanishing, {}])
    ended = train(Together(builder, batch=2, prune=["vanishing_gradient"], **ONE), [vanishing, {}])
    assert "vanishing_gradient" in [verdict["code"] for verdict in kept[0].verdicts]
    assert [(kept[0].state, ended[0].state, ended[1].state)] == [("complete", "diagnosed", "complete")]
    assert ended[0].epochs < kept[0].epochs == 8
    assert ended[1].values == pytest.approx(kept[1].values, rel=1e-3)


def test_a_stack_that_does_not_fit_is_halved_and_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    builder = Digits(precision="64-true")
    whole = train(Together(builder, batch=4, fewest=1, **ONE), MIXED)
    step, tried, stacks = PopulationModule.training_step, [], []

    def hungry(self: PopulationModule, batch: Any, batch_idx: int) -> Any:
        if self.global_step == 5:  # within the first epoch
            tried.append(len(self.numbers))
            assert not [one for one in stacks if one() is not None]  # the memory of what was halved is free
            if len(self.numbers) > 1:
                stacks.append(weakref.ref(self))
                torch.empty(1 << 58)  # the allocator's own error
        return step(self, batch, batch_idx)

    monkeypatch.setattr(PopulationModule, "training_step", hungry)
    halved = train(Together(builder, batch=4, fewest=1, **ONE), MIXED)
    assert tried == [4, 2, 1, 1, 2, 1, 1]
    for number, one in whole.items():
        assert (halved[number].state, halved[number].epochs) == (one.state, one.epochs)
        assert halved[number].values == pytest.approx(one.values, rel=1e-6)  # float64; sums in another order


def test_a_trial_that_does_not_fit_alone_has_failed(monkeypatch: pytest.MonkeyPatch) -> None:
    def hungry(self: PopulationModule, batch: Any, batch_idx: int) -> Any:
        return torch.empty(1 << 58)

    monkeypatch.setattr(PopulationModule, "training_step", hungry)
    told = train(Together(Digits(), batch=2, fewest=1, **ONE), [{"width": 8}, {"width": 9}])
    assert [one.state for one in told.values()] == ["failed", "failed"]
    assert all("can't allocate memory" in str(one.error) for one in told.values())


@pytest.fixture
def stacked(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The members in the stack at every step that is taken."""
    sizes: list[int] = []
    step = PopulationModule.training_step

    def counted(self: PopulationModule, batch: Any, batch_idx: int) -> Any:
        sizes.append(len(self.numbers))
        return step(self, batch, batch_idx)

    monkeypatch.setattr(PopulationModule, "training_step", counted)
    return sizes


def test_one_or_two_members_are_not_worth_a_stack(stacked: list[int]) -> None:
    for trials, seeds, members in ((2, 1, set()), (3, 1, {3}), (1, 3, {3})):
        stacked.clear()
        told = train(Together(Digits(), batch=trials, seeds=seeds, **ONE), [{}] * trials)
        assert {one.state for one in told.values()} == {"complete"}
        assert set(stacked) == members


@pytest.mark.parametrize(("few_rows", "members"), [(128, 3), (127, 4)])  # batches have 128
def test_heavy_networks_are_trained_alone_in_small_batches(
    few_rows: int, members: int, stacked: list[int], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mlp_lab.sweep.population.HEAVY", 5_000)
    monkeypatch.setattr("mlp_lab.sweep.population.FEW_ROWS", few_rows)
    told = train(Together(Digits(), batch=4, **ONE), [{"width": width} for width in (8, 100, 9, 10)])
    assert {one.state for one in told.values()} == {"complete"}
    assert set(stacked) == {members}


def test_apple_gpus_train_one_after_another(monkeypatch: pytest.MonkeyPatch) -> None:
    run = Digits(accelerator="auto").build(dotted({}), 0)
    assert stackable(run)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: True)
    assert device_of(run.trainer) == "mps"
    assert not stackable(run)


@pytest.mark.parametrize("cuda", [True, False])
@pytest.mark.parametrize(
    ("trainer", "wants"), [({}, True), ({"accelerator": "auto"}, True), ({"accelerator": "gpu"}, True),
                           ({"accelerator": "cpu"}, False)],
)  # fmt: skip
def test_a_cpu_that_is_asked_for_is_what_sizes_and_weights_are_judged_by(
    monkeypatch: pytest.MonkeyPatch, trainer: dict[str, object], wants: bool, cuda: bool
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    assert device_of(trainer) == ("cuda" if wants and cuda else "cpu")


def test_a_budget_of_memory_splits_a_batch_and_refuses_what_exceeds_it(stacked: list[int]) -> None:
    one = member_bytes(Digits().build(dotted({"width": 16}), 0).module.model, 128)
    backend = Together(Digits(), batch=4, fewest=1, memory=3 * one, **ONE)
    told = train(backend, [{"width": 16}] * 4 + [{"width": 400}])
    assert (stacked[0], stacked[-1]) == (3, 1)
    assert [told[number].state for number in range(5)] == ["complete"] * 4 + ["failed"]
    assert re.fullmatch(
        r"memory: a trial of about \d.* does not fit into \d.*; allow more, or make .*", told[4].error or ""
    )


def test_seeds_that_do_not_fit_together_are_trained_one_after_another(stacked: list[int]) -> None:
    one = member_bytes(Digits().build(dotted({"width": 16}), 0).module.model, 128)
    roomy = train(Together(Digits(), batch=1, seeds=3, memory=3 * one, **ONE), [{"width": 16}])
    assert set(stacked) == {3}
    stacked.clear()
    tight = train(Together(Digits(), batch=1, seeds=3, memory=2 * one, **ONE), [{"width": 16}])
    assert stacked == []
    assert (tight[0].state, roomy[0].state) == ("complete", "complete")
    assert tight[0].values == pytest.approx(roomy[0].values, rel=1e-3)  # float32


@pytest.mark.parametrize("prune", [[], ["nonfinite"]])
def test_where_the_last_trial_breaks_after_the_others_were_pruned_both_are_told(
    prune: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    step = PopulationModule.training_step

    def breaks(self: PopulationModule, batch: Any, batch_idx: int) -> Any:
        if self.global_step == 20 and 1 in self.numbers:  # in the second epoch
            self.population.views(self.numbers.index(1))["head.bias"][0] = float("inf")
        return step(self, batch, batch_idx)

    monkeypatch.setattr(PopulationModule, "training_step", breaks)
    judge = Asha(history=Nothing(), reduction=2)
    told = train(Together(Digits(), batch=2, fewest=1, prune=prune, **ONE), [{"lr": 1e-6}, {}], judge)
    assert [told[number].state for number in range(2)] == ["pruned", "diagnosed" if prune else "failed"]
    assert told[1].error == "the loss is not finite at step 21"
