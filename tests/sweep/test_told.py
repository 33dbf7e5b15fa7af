from __future__ import annotations

from typing import Any

import pytest

from mlp_lab.sweep.told import attributes, fault, reports, worst_known
from tests.sweep.quadratic import outcome

NAN = float("nan")


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, None),
        ({"values": [1.0, 2.0]}, "2 values for 1 metrics"),
        ({"values": [NAN]}, "the metric is not a number"),
        ({"state": "failed"}, "it failed and gave no reason"),
        ({"state": "failed", "error": "out of memory"}, "out of memory"),
        ({"state": "pruned", "values": []}, None),
    ],
)
def test_what_has_failed_says_why(changes: dict[str, Any], words: str | None) -> None:
    assert fault(outcome(0, {1: 1.0}, **changes), metrics=1) == words


@pytest.mark.parametrize(
    ("state", "metrics", "kept"), [("complete", 2, True), ("diagnosed", 2, False), ("pruned", 1, True)]
)
def test_what_did_not_end_has_no_course_of_several_metrics(state: str, metrics: int, kept: bool) -> None:
    assert reports(outcome(0, {1: 1.0}, state=state), metrics) == ({1: 1.0} if kept else {})


def test_a_trial_keeps_what_was_found_of_it() -> None:
    found = outcome(0, {1: 1.0}, state="diagnosed", verdicts=[{"code": "dead_units"}], sd=[0.5], seconds=1.23456)
    expected = {"epochs": 1, "seconds": 1.235, "verdicts": [{"code": "dead_units"}], "diagnosed": "dead_units"}
    assert attributes(found, None) == {**expected, "sd": [0.5]}
    assert attributes(outcome(0, {}), "no") == {"epochs": 0, "seconds": 0.0, "error": "no"}


def test_a_penalty_is_the_worst_of_each_metric() -> None:
    ended = outcome(9, {1: 3.0, 2: NAN}, state="diagnosed")
    assert worst_known(ended, [[1.0, 0.9], [2.0, 0.7]], [False, True]) == [3.0, 0.7]
    assert worst_known(outcome(9, {}), [], [False]) is None
