"""Each member's own best state."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from mlp_lab.errors import UserError
from mlp_lab.population.best import BestMembers
from mlp_lab.population.module import PopulationModule
from mlp_lab.training.optimizers import OptimizerConfig
from tests.population.fits import Poison, Prune, alone, digits, distance, fit, trainer

RATES = [3e-3, 1e200, 10.0]  # learns, explodes, and is best as it begins


def members() -> PopulationModule:
    plain = {"depth": 2, "width": 20, "activation": "relu", "dropout": 0.0}
    return PopulationModule(
        [alone(0, **plain, optimizer=OptimizerConfig(name="sgd", lr=rate)) for rate in (0.1, *RATES[1:])]
    )


@pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint")
def test_what_is_evaluated_are_the_best_states_of_those_that_have_one(tmp_path: Path) -> None:
    best = BestMembers(tmp_path / "best.ckpt")
    population = members()
    fit(population, 4, callbacks=[best], enable_checkpointing=True)
    assert list(population.failed) == [1]
    assert sorted(population.best) == list(best.members) == [0, 2]
    loaded = members()
    trainer().test(loaded, digits(), ckpt_path=str(tmp_path / "best.ckpt"), weights_only=True, verbose=False)
    assert loaded.numbers == [0, 2]
    for number, network in zip(loaded.numbers, loaded.population.unstack(), strict=True):
        for name, value in network.state_dict().items():
            assert torch.equal(value, population.best[number]["state"][name])


@pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint")
def test_the_best_states_are_loaded_whoever_has_left_or_failed_since(tmp_path: Path) -> None:
    """In the process that trained: what is measured is what another one measures of the file."""
    path = tmp_path / "best.ckpt"
    plain: dict[str, Any] = {"depth": 2, "width": 20, "activation": "relu"}
    population, fresh = (PopulationModule([alone(number, **plain) for number in range(4)]) for _ in range(2))
    fit(population, 4, callbacks=[Poison(40), Prune(0, 2), BestMembers(path)], enable_checkpointing=True)
    assert list(population.failed) == [1]
    assert population.numbers == [3]
    settings: dict[str, Any] = {"ckpt_path": str(path), "weights_only": True, "verbose": False}
    found = trainer().test(population, digits(), **settings)
    assert found == trainer().test(fresh, digits(), **settings)
    assert found == trainer().test(population, digits(), verbose=False)
    assert population.numbers == fresh.numbers == [0, 1, 2, 3]  # member 1 had a best state before
    assert population.failed == fresh.failed == {}
    predicted = trainer().predict(population, digits(), ckpt_path=str(path), weights_only=True)
    for one, other in zip(predicted or (), trainer().predict(fresh, digits()) or (), strict=True):
        assert torch.equal(one, other)  # type: ignore[arg-type]


@pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint")
def test_a_checkpoint_of_any_stack_is_loaded_into_one_that_members_have_left(tmp_path: Path) -> None:
    plain: dict[str, Any] = {"depth": 2, "width": 20, "activation": "relu"}
    population, whole = (PopulationModule([alone(number, **plain) for number in range(4)]) for _ in range(2))
    fit(whole, 2).save_checkpoint(tmp_path / "whole.ckpt")
    trained = fit(population, 3, callbacks=[Prune(0, 2, 3)])
    trained.save_checkpoint(tmp_path / "one.ckpt")
    expected = population.networks()
    for name, networks in {"whole": whole.networks(), "one": expected}.items():
        trainer().test(population, digits(), ckpt_path=str(tmp_path / f"{name}.ckpt"), weights_only=True, verbose=False)
        for network, other in zip(population.networks(), networks, strict=True):
            assert distance(network, other) == 0.0
    fit(whole, 3, ckpt_path=str(tmp_path / "whole.ckpt"))
    fit(population, 3, ckpt_path=str(tmp_path / "whole.ckpt"))
    for network, other in zip(population.networks(), whole.networks(), strict=True):
        assert distance(network, other) == 0.0


def test_the_score_is_the_mean_of_every_members_best(tmp_path: Path) -> None:
    best = BestMembers(tmp_path / "best.ckpt", "val/accuracy")
    population = PopulationModule([alone(number) for number in range(3)])
    fit(population, 3, callbacks=[best], enable_checkpointing=True)
    accuracies = [one["scores"]["accuracy"] for one in population.best.values()]
    assert best.scores["val/accuracy"] == pytest.approx(sum(accuracies) / 3)
    assert all(
        one["scores"]["accuracy"] >= now["accuracy"]
        for one, now in zip(population.best.values(), population.scores, strict=True)
    )


def test_an_unknown_monitor_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"early_stopping\.monitor"):
        fit(
            PopulationModule([alone(0)]),
            1,
            callbacks=[BestMembers(tmp_path / "b.ckpt", "val/f2")],
            enable_checkpointing=True,
        )
