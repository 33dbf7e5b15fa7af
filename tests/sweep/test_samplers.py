from __future__ import annotations

from typing import Any

import optuna
import pytest

from mlp_lab.errors import UserError
from mlp_lab.sweep.samplers import SAMPLERS, Grid, batch_seed, sampler_maker
from mlp_lab.sweep.settings import Choice
from mlp_lab.sweep.space import Space
from mlp_lab.sweep.storage import quiet

CONTENT: dict[str, Any] = {
    "x": {"type": "float", "low": -1.0, "high": 1.0, "step": 0.25},
    "depth": {"type": "int", "low": 1, "high": 4},
    "kind": {"type": "categorical", "choices": ["a", "b"]},
}
SPACE = Space.read(CONTENT)


def batches(name: str, count: int, size: int = 8, space: Space = SPACE, **arguments: Any) -> list[dict[str, Any]]:
    """Asks batches and tells them, each with a sampler of its own, and returns the points."""
    make = sampler_maker(Choice(name=name, arguments=arguments), space, seed=0)
    study = optuna.create_study(sampler=make(0))
    points = []
    for _ in range(count):
        trials = []
        for _ in range(size):
            trial = study.ask()
            if not trials:
                study.sampler = make(trial.number)
            with quiet():
                points.append(space.suggest(trial))
            trials.append(trial)
        for trial in trials:
            study.tell(trial, float(trial.params["x"]) ** 2 + trial.params["depth"])
    return points


@pytest.mark.parametrize("name", [*SAMPLERS, "optuna.samplers.NSGAIISampler"])
def test_every_sampler_asks_in_batches_and_repeats_itself(name: str) -> None:
    points = batches(name, 3)
    assert points == batches(name, 3)
    assert len(points) == 24
    assert len({str(point) for point in points[:8]}) >= 6  # of 72: equal points within a batch are rare


@pytest.mark.parametrize("name", ["tpe", "random", "qmc", "optuna.samplers.NSGAIISampler"])
def test_no_two_batches_draw_the_same_points(name: str) -> None:
    points = [str(point) for point in batches(name, 3)]
    assert points[:8] != points[8:16] != points[16:]


def test_conditions_are_learnt_in_groups() -> None:
    space = Space.read(
        {
            "x": {"type": "float", "low": -1.0, "high": 1.0},
            "depth": {"type": "int", "low": 1, "high": 3},
            "width": {"type": "int", "low": 1, "high": 9, "per_layer": True},
        }
    )
    space = Space(parameters=space.parameters, depth=2)
    points = batches("tpe", 3, space=space)
    assert all(len(point["width"]) == 2 for point in points)
    kind = {"type": "categorical", "choices": ["a", "b"], "when": {"depth": ">1"}}
    searched = Space.read({**{key: CONTENT[key] for key in ("x", "depth")}, "kind": kind})
    assert all(("kind" in point) == (point["depth"] > 1) for point in batches("tpe", 3, space=searched))


def test_a_grid_visits_every_point_once() -> None:
    space = Space.read(
        {"x": {"type": "float", "low": 0.0, "high": 1.0, "step": 0.5}, "depth": {"type": "int", "low": 1, "high": 4}}
    )
    points = batches("grid", 3, size=4, space=space)
    assert sorted((p["x"], p["depth"]) for p in points) == [(x / 2, d) for x in range(3) for d in range(1, 5)]
    sampler = sampler_maker(Choice(name="grid"), space, seed=0)(0)
    assert isinstance(sampler, Grid)
    study = optuna.create_study(sampler=sampler)
    assert sampler.left(study) == 12
    trial = study.ask()
    assert sampler.left(study) == 11  # a running one is taken
    study.tell(trial, state=optuna.trial.TrialState.FAIL)  # it was cut off before it had its parameters
    assert sampler.left(study) == 12


def test_seeds_of_batches_are_spread() -> None:
    assert len({batch_seed(seed, number) for seed in range(20) for number in range(20)}) == 400


@pytest.mark.parametrize(
    ("choice", "line"),
    [
        (
            Choice(name="tpee"),
            "study.sampler: 'tpee' is unknown (did you mean 'tpe'?); accepted: tpe, gp, random, grid",
        ),
        (Choice(name="optuna.samplers.No"), "study.sampler: there is no optuna.samplers.No ("),
        (Choice(name="nowhere.at.all"), "study.sampler: there is no nowhere.at.all (No module named 'nowhere')"),
        (Choice(name="optuna.study.Study"), "study.sampler: optuna.study.Study is no Optuna sampler; use such as"),
        (
            Choice(name="tpe", arguments={"n_startup": 3}),
            "study.sampler.n_startup: TPESampler has no such argument; did you mean n_startup_trials?",
        ),
        (Choice(name="tpe", arguments={"seed": 3}), "study.sampler.seed: TPESampler has no such argument; "),
        (Choice(name="qmc", arguments={"qmc_type": "x"}), "study.sampler: qmc: The `qmc_type='x'` is invalid."),
    ],
)
def test_mistakes_are_told_in_one_line(choice: Choice, line: str) -> None:
    with pytest.raises(UserError) as caught:
        sampler_maker(choice, SPACE, seed=0)
    assert str(caught.value).startswith(line)


def test_cmaes_betters_one_metric() -> None:
    with pytest.raises(UserError, match=r"^study.sampler: cmaes betters one metric; with 2, use tpe, gp or random$"):
        sampler_maker(Choice(name="cmaes"), SPACE, seed=0, objectives=2)
