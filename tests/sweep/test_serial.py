from __future__ import annotations

import math

import pytest

from mlp_lab.sweep.pruning import Asha, Nothing
from mlp_lab.sweep.runs import Outcome, Point
from mlp_lab.sweep.serial import DECADES, Alone, Course
from tests.sweep.digits import Digits, dotted

ONE = {"metrics": ["val/loss"], "maximize": [False]}


def train(backend: Alone, *settings: dict[str, object], judge: object = None) -> list[Outcome]:
    told: list[Outcome] = []
    points = [Point(number=number, seed=number, settings=dotted(one)) for number, one in enumerate(settings)]
    backend.train(points, judge or Asha(history=Nothing(), min_epochs=99), told.append)  # type: ignore[arg-type]
    return told


def test_values_are_the_best_over_the_validations() -> None:
    told = train(
        Alone(Digits(), metrics=["val/loss", "val/accuracy"], maximize=[False, True]), {"depth": 1}, {"lr": 0.1}
    )
    assert [(one.number, one.state, one.epochs) for one in told] == [(0, "complete", 3), (1, "complete", 3)]
    for one in told:
        assert one.values[0] == min(one.reports.values())
        assert 0.2 < one.values[1] <= 1
        assert one.error is None
        assert one.sd is None
        assert isinstance(one.verdicts, list)


def test_seeds_have_a_mean_and_a_standard_deviation() -> None:
    single = train(Alone(Digits(), **ONE), {}, {}, {})  # seeds 0, 1 and 2
    (joint,) = train(Alone(Digits(), seeds=3, **ONE), {})
    values = [one.values[0] for one in single]
    mean = sum(values) / 3
    assert joint.values == pytest.approx([mean], rel=1e-12)
    assert joint.sd == pytest.approx([math.sqrt(sum((v - mean) ** 2 for v in values) / 2)], rel=1e-9)
    assert joint.sd > [0.0]


def test_the_judge_ends_a_trial_at_its_rung() -> None:
    class Former:
        def at(self, epoch: int, *, complete: bool = False) -> dict[int, float]:
            return {90: 0.0, 91: 0.0, 92: 0.0}

    (one,) = train(Alone(Digits(), **ONE), {}, judge=Asha(history=Former()))
    assert (one.state, one.epochs, list(one.reports)) == ("pruned", 1, [1])


def test_a_verdict_ends_a_trial() -> None:
    vanishing: dict[str, object] = {"depth": 8, "activation": "sigmoid", "init": "pytorch", "optimizer": "sgd"}
    builder = Digits(max_epochs=8)
    (kept,) = train(Alone(builder, **ONE), vanishing)
    assert "vanishing_gradient" in [verdict["code"] for verdict in kept.verdicts]
    (ended,) = train(Alone(builder, prune=["vanishing_gradient"], **ONE), vanishing)
    assert ended.state == "diagnosed"
    assert ended.epochs < kept.epochs
    assert math.isfinite(ended.values[0])


@pytest.mark.parametrize(("prune", "state"), [((), "failed"), (("nonfinite",), "diagnosed")])
def test_what_is_not_finite_ends_its_trial_and_not_the_search(prune: tuple[str, ...], state: str) -> None:
    told = train(Alone(Digits(), prune=prune, **ONE), {"lr": 1e30, "optimizer": "sgd"}, {})
    assert [one.state for one in told] == [state, "complete"]
    assert "not finite" in str(told[0].error) or "NaN" in str(told[0].error) or "infinit" in str(told[0].error)


def test_what_cannot_be_built_has_failed() -> None:
    told = train(Alone(Digits(), **ONE), {"activation": "rellu"}, {})
    assert [one.state for one in told] == ["failed", "complete"]
    assert "rellu" in str(told[0].error)
    assert told[0].values == []


def test_the_span_of_the_signal_is_a_metric() -> None:
    backend = Alone(Digits(), metrics=[DECADES], maximize=[False])
    deep, flat = train(backend, {"depth": 8, "activation": "sigmoid", "init": "pytorch"}, {"depth": 2})
    assert deep.values[0] > 3
    assert flat.values[0] < 1


def test_a_value_that_is_no_number_is_never_best() -> None:
    course = Course(reports={1: [math.nan], 2: [0.5], 3: [0.75]})
    assert Alone(Digits(), **ONE).best(course) == [0.5]
