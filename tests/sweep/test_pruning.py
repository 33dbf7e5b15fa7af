from __future__ import annotations

import itertools
import random
import statistics
from typing import Any

import pytest

from mlp_lab.errors import UserError
from mlp_lab.sweep.pruning import PRUNERS, Asha, Hyperband, Median, Nothing, Rungs, build_judge
from mlp_lab.sweep.settings import Choice

NAN = float("nan")


class Former:
    """Trials with one value at every epoch."""

    def __init__(
        self, values: dict[int, float], pruned: tuple[int, ...] = (), firsts: dict[int, int] | None = None
    ) -> None:
        self.values, self.pruned, self.retries = values, pruned, firsts or {}

    def firsts(self) -> dict[int, int]:
        return self.retries

    def at(self, epoch: int, *, complete: bool = False) -> dict[int, float]:
        return {number: value for number, value in self.values.items() if not (complete and number in self.pruned)}


def test_rungs_divide_the_epochs() -> None:
    assert Asha(history=Nothing()).rungs(27) == [1, 3, 9]
    assert Asha(history=Nothing(), reduction=4, min_epochs=3).rungs(64) == [4, 16]
    assert Asha(history=Nothing()).rungs(1) == []  # there is nothing to save
    assert Median(history=Nothing(), min_epochs=3).rungs(6) == [3, 4, 5]


@pytest.mark.parametrize("trainer", [{}, {"max_epochs": None}, {"max_epochs": -1}])
def test_a_training_of_open_length_has_no_rungs(trainer: dict[str, Any]) -> None:
    assert Rungs.of(Asha(history=Nothing()), trainer).epochs == []


@pytest.mark.parametrize(("every", "asked"), [(1, [1, 3, 9]), (2, [2, 4, 10]), (5, [5, 10]), (26, [26]), (27, [])])
def test_a_rung_waits_for_the_next_validation(every: int, asked: list[int]) -> None:
    rungs = Rungs.of(Asha(history=Nothing()), {"max_epochs": 27})
    assert [epoch for epoch in range(every, 28, every) if rungs.due(epoch, epoch - every)] == asked


def test_the_best_third_of_a_batch_goes_on_in_whatever_order_it_is_given() -> None:
    values = {number: float(value) for number, value in enumerate([5, 1, 4, 2, 9, 3])}
    for order in itertools.islice(itertools.permutations(values), 0, 720, 97):
        assert Asha(history=Nothing()).stop(1, {number: values[number] for number in order}) == {0, 2, 4, 5}
    assert Asha(history=Nothing(), maximize=True).stop(1, values) == {1, 2, 3, 5}


def test_former_trials_count_at_their_rung() -> None:
    former = Former({10: 0.1, 11: 0.2, 12: 7.0})
    assert Asha(history=former).stop(3, {0: 0.15, 1: 0.3, 2: 0.4}) == {1, 2}  # 2 of 6 go on: 10 and 0
    assert Asha(history=former).stop(3, {0: 0.5}) == {0}
    assert Asha(history=Nothing()).stop(3, {0: 0.5}) == set()  # the first one has nobody to lose against


def test_a_late_batch_has_the_chance_of_an_early_one() -> None:
    chance = random.Random(0)
    former: dict[int, float] = {}
    shares = []
    for first in range(0, 1600, 16):
        values = {first + place: (place + chance.random()) / 16 for place in range(16)}  # from good to bad, evenly
        shares.append(1 - len(Asha(history=Former(former)).stop(1, values)) / 16)
        former |= values
    assert set(shares) <= {5 / 16, 6 / 16}
    assert statistics.fmean(shares[50:]) == pytest.approx(1 / 3, abs=0.02)


def test_what_is_not_finite_ends_at_a_rung() -> None:
    for judge in (Asha(history=Nothing()), Median(history=Nothing())):
        assert judge.stop(1, {0: NAN}) == {0}
    assert Asha(history=Nothing()).stop(1, {0: NAN, 1: float("inf"), 2: 3.0}) == {0, 1}


def test_median_needs_complete_trials_and_spares_the_better_half() -> None:
    former = Former({10: 1.0, 11: 2.0, 12: 3.0, 13: 0.1}, pruned=(13,))
    assert Median(history=former, startup=3).stop(1, {0: 1.9, 1: 2.0, 2: 2.1}) == {2}
    assert Median(history=former, startup=3, maximize=True).stop(1, {0: 1.9, 1: 2.0, 2: 2.1}) == {0}
    assert Median(history=former, startup=4).stop(1, {2: 99.0}) == set()


def test_brackets_of_hyperband_begin_to_cut_at_their_own_rung() -> None:
    judge = Hyperband(history=Nothing())
    assert judge.rungs(9) == [1, 3]
    brackets = {number: judge.bracket(number) for number in range(17)}
    values = {number: float(number) for number in range(17)}
    assert judge.stop(1, values) == {3, 4, 5, 6, 7, 8}  # of bracket 0 the best 3 of 9; the others pass
    left = {number: value for number, value in values.items() if number not in {3, 4, 5, 6, 7, 8}}
    assert judge.stop(3, left) == {1, 2, 10, 11, 12, 13}  # one of three, one of five; the last bracket is never cut
    assert [brackets[number] for number in (2, 9, 13, 14)] == [0, 1, 1, 2]


def test_a_retry_keeps_its_bracket() -> None:
    numbers = {1: 19, 10: 20, 15: 21}  # cut off and asked again, of the brackets 0, 1 and 2
    values = {number: float(number) for number in range(17)}
    again = {numbers.get(number, number): value for number, value in values.items()}
    whole = Hyperband(history=Nothing())
    retried = Hyperband(history=Former({}, firsts={new: old for old, new in numbers.items()}))
    assert whole.rungs(9) == retried.rungs(9)
    for epoch in (1, 3):
        assert retried.stop(epoch, again) == {numbers.get(number, number) for number in whole.stop(epoch, values)}
    running = {number: value for number, value in again.items() if number not in numbers.values()}
    told = {number: value for number, value in again.items() if number in numbers.values()}
    later = Hyperband(history=Former(told, firsts=retried.history.firsts()))
    assert later.rungs(9) == [1, 3]
    assert later.stop(3, running) == whole.stop(3, values) - set(numbers)  # in the history they are in it too


def test_none_stops_nobody() -> None:
    judge = build_judge(Choice(name="none"), Nothing(), maximize=False)
    assert judge.rungs(9) == []
    assert judge.stop(1, {0: NAN}) == set()


@pytest.mark.parametrize("name", PRUNERS)
def test_every_pruner_is_built_by_its_name(name: str) -> None:
    assert isinstance(build_judge(Choice(name=name), Nothing(), maximize=False).rungs(9), list)


@pytest.mark.parametrize(
    ("name", "arguments", "line"),
    [
        ("ahsa", {}, "study.pruner: 'ahsa' is unknown (did you mean 'asha'?); accepted: asha, hyperband, median, none"),
        ("asha", {"reductoin": 3}, "study.pruner.reductoin: asha has no such argument; did you mean reduction?"),
        ("asha", {"history": 3}, "study.pruner.history: asha has no such argument; accepted: reduction, min_epochs"),
        ("none", {"x": 3}, "study.pruner.x: none has no such argument; accepted: no argument"),
        ("asha", {"reduction": 1}, "study.pruner.reduction: 1 is not accepted; use a number above 1"),
        ("asha", {"min_epochs": 1.5}, "study.pruner.min_epochs: 1.5 is not accepted; use an integer"),
        ("median", {"startup": 0}, "study.pruner.startup: 0 is not accepted; use 1 or more"),
    ],
)
def test_mistakes_are_told_in_one_line(name: str, arguments: dict[str, Any], line: str) -> None:
    with pytest.raises(UserError) as caught:
        build_judge(Choice(name=name, arguments=arguments), Nothing(), maximize=False)
    assert str(caught.value) == line
