"""Each member's own best state."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mlp_lab.errors import UserError
from mlp_lab.population.best import BestMembers
from mlp_lab.population.module import PopulationModule
from mlp_lab.training.optimizers import OptimizerConfig
from tests.population.fits import alone, digits, fit, trainer

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
