"""Groups of keys are read by what their dataclass holds; `test_settings` reads whole sweeps."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

import pytest

from mlp_lab.errors import UserError
from mlp_lab.sweep.keys import known_keys, names_of, points_of
from mlp_lab.sweep.settings import StudySettings, SweepSettings


@dataclass(frozen=True, kw_only=True)
class Group:
    trials: int | None = None
    rate: float = 0.5
    name: str = "it"
    space: dict[str, Any] = field(default_factory=dict)


def test_values_have_the_type_of_their_key() -> None:
    read = known_keys(Group, "group", {"trials": 3, "rate": "1e-3", "name": "that", "space": {"a": 1}})
    assert read == {"trials": 3, "rate": 0.001, "name": "that", "space": {"a": 1}}
    assert known_keys(Group, "group", {"trials": None, "space": None}) == {"trials": None, "space": {}}


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"trial": 3}, "group.trial: no such key of a sweep; did you mean group.trials?"),
        ({"quite": 3}, "group.quite: no such key of a sweep; accepted: trials, rate, name, space"),
        ({"trials": True}, "group.trials: True is not accepted; use an integer"),
        ({"rate": "fast"}, "group.rate: 'fast' is not accepted; use a number"),
        ({"name": 3}, "group.name: 3 is not accepted; use text"),
        (["trials"], "group: ['trials'] is not a group of keys; write them below it, indented"),
    ],
)
def test_what_does_not_fit_is_named_with_its_value(content: Any, message: str) -> None:
    with pytest.raises(UserError) as caught:
        known_keys(Group, "group", content)
    assert str(caught.value) == message


def test_one_name_or_several() -> None:
    assert names_of("study.metric", "val/loss") == ("val/loss",)
    assert names_of("study.metric", ["val/loss", "val/f1"]) == ("val/loss", "val/f1")
    for content in (3, ["val/loss", 3], ["val/loss", "val/loss"]):
        with pytest.raises(UserError, match=r"^study\.metric: "):
            names_of("study.metric", content)


def test_points_are_a_list_of_mappings() -> None:
    assert points_of([{"model.depth": 2}]) == ({"model.depth": 2},)
    for content in ("model.depth", {"model.depth": 2}, [3]):
        with pytest.raises(UserError, match=r"^enqueue: .* use a list of points"):
            points_of(content)


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ({"minutes": math.inf}, "minutes: inf is not accepted; use a finite number"),
        ({"memory": "nan"}, "memory: nan is not accepted; use a finite number"),
        ({"trials": 10**400}, "trials: 1000000000… (401 digits) is too large; use an integer of at most "),
        ({"checkpoint_seconds": 10**400}, "checkpoint_seconds: 1000000000… (401 digits) is too large; use "),
    ],
)
def test_known_keys_number_without_bound_is_refused(content: dict[str, object], line: str) -> None:
    with pytest.raises(UserError) as caught:
        known_keys(SweepSettings, "", content)
    assert str(caught.value).startswith(line)


@pytest.mark.parametrize("name", ["heartbeat", "retries"])
def test_study_settings_count_too_large_is_refused(name: str) -> None:
    with pytest.raises(UserError, match=rf"^study\.{name}: 4294967296 is not accepted; use .* at most"):
        StudySettings(**{name: 2**32})
