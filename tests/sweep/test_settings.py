from __future__ import annotations

from typing import Any

import pytest

from mlp_lab.errors import UserError
from mlp_lab.sweep.settings import Choice, SweepSettings

SPACE = {"model.depth": {"type": "int", "low": 1, "high": 6}}


def sweep(**changes: Any) -> dict[str, Any]:
    return {"base": "configs/digits.yaml", "trials": 4, "space": SPACE, **changes}


def test_the_yaml_of_the_design_is_read() -> None:
    content = sweep(
        study={"name": "digits", "metric": "val/loss", "direction": "minimize", "sampler": "tpe", "storage": None},
        population=16,
        seeds=1,
        diagnosis={"prune": ["nonfinite", "dead_units"]},
    )
    settings = SweepSettings.read(content)
    assert settings.study.metric == ("val/loss",)
    assert settings.study.direction == ("minimize",)
    assert settings.study.sampler == Choice(name="tpe")
    assert settings.study.storage is None
    assert settings.diagnosis.prune == ("nonfinite", "dead_units")
    assert (settings.trials, settings.population, settings.backend) == (4, 16, "population")


def test_samplers_and_pruners_take_arguments() -> None:
    study = {"sampler": {"name": "tpe", "n_startup_trials": 20}, "pruner": {"name": "asha", "reduction": 4}}
    settings = SweepSettings.read(sweep(study=study)).study
    assert settings.sampler == Choice(name="tpe", arguments={"n_startup_trials": 20})
    assert settings.pruner == Choice(name="asha", arguments={"reduction": 4})


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (sweep(trails=3), "trails: no such key of a sweep; did you mean trials?"),
        (sweep(study={"sampelr": "tpe"}), "study.sampelr: no such key of a sweep; did you mean study.sampler?"),
        (sweep(study=["a"]), "study: ['a'] is not a group of keys; write them below it, indented"),
        (sweep(trials=0), "trials: 0 is not accepted; use 1 or more"),
        (sweep(trials=10**12), "trials: 1000000000000 is not accepted; use 1,000,000 at most"),
        (sweep(seeds=10**9), "seeds: 1000000000 is not accepted; use 1,000 at most"),
        (sweep(population=0), "population: 0 is not accepted; use 1 or more"),
        (sweep(population=10**5), "population: 100000 is not accepted; use 10,000 at most"),
        (sweep(study={"metric": []}), "study.metric: [] names no metric; use one such as val/loss"),
        (sweep(trials="ten"), "trials: 'ten' is not accepted; use an integer"),
        (sweep(trials=True), "trials: True is not accepted; use an integer"),
        (sweep(trials=None), "trials: give the number of trials, or `minutes`"),
        (sweep(minutes=-1), "minutes: -1 leaves no time; use a number above 0"),
        (sweep(memory=0), "memory: 0 GB is none; use a number above 0"),
        (sweep(checkpoint_seconds=-1), "checkpoint_seconds: -1 is not a time; use 0 (none) or more"),
        (sweep(checkpoint_seconds="often"), "checkpoint_seconds: 'often' is not accepted; use a number"),
        (sweep(base=""), "base: name the config that every trial starts from, such as configs/digits.yaml"),
        (sweep(space={}), "space: there is nothing to search; name config keys with their ranges"),
        (sweep(space=[1]), "space: [1] is not a group of keys; write them below it, indented"),
        (sweep(backend="serail"), "backend: 'serail' is unknown (did you mean 'serial'?); accepted: "),
        (sweep(seed=2**32), "seed: 4294967296 is not a seed; accepted: 0 to 4294967295"),
        (sweep(study={"direction": "down"}), "study.direction: 'down' is unknown; accepted: minimize, maximize"),
        (
            sweep(study={"metric": ["val/loss", "val/f1"], "direction": "minimize"}),
            "study.direction: 1 for 2 metrics; use one for each",
        ),
        (
            sweep(study={"metric": ["val/loss", "val/f1"]}),
            "study.pruner: asha compares one metric; with several, use none",
        ),
        (sweep(study={"metric": ["a", "a"]}), "study.metric: ['a', 'a'] names one twice"),
        (sweep(study={"name": "../a"}), "study.name: '../a' cannot name a folder; use letters, digits"),
        (sweep(study={"sampler": 3}), "study.sampler: 3 is not accepted; use a name, or {name: NAME, ARGUMENT: VALUE}"),
        (sweep(enqueue={"a": 1}), "enqueue: {'a': 1} is not accepted; use a list of points"),
        (sweep(diagnosis={"prune": 3}), "diagnosis.prune: 3 is not accepted; use a name or a list of names"),
    ],
)
def test_mistakes_are_told_in_one_line(content: dict[str, Any], line: str) -> None:
    with pytest.raises(UserError) as caught:
        SweepSettings.read(content)
    assert str(caught.value).startswith(line)
    assert "\n" not in str(caught.value)


def test_a_grid_needs_no_number_of_trials() -> None:
    assert SweepSettings.read(sweep(trials=None, study={"sampler": "grid"})).trials is None
