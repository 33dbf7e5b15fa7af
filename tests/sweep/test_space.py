from __future__ import annotations

from typing import Any

import optuna
import pytest

from mlp_lab.errors import UserError
from mlp_lab.sweep.space import Space

DEPTH = {"type": "int", "low": 0, "high": 4}
WIDTH = {"type": "int", "low": 16, "high": 256, "log": True}
NAMES = {"type": "categorical", "choices": ["relu", "tanh"]}
RATE = {"type": "float", "low": 1e-4, "high": 1e-1, "log": True}


def points(space: Space, count: int = 60) -> list[dict[str, Any]]:
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    return [space.suggest(study.ask()) for _ in range(count)]


def test_every_type_is_asked_within_its_range() -> None:
    space = Space.read(
        {
            "model.depth": DEPTH,
            "model.activation": NAMES,
            "model.optimizer.lr": RATE,
            "model.dropout": {"type": "float", "low": 0.0, "high": 0.5, "step": 0.25},
            "model.residual": {"type": "categorical", "choices": [True, False]},
        }
    )
    found = points(space)
    assert {point["model.depth"] for point in found} == {0, 1, 2, 3, 4}
    assert {point["model.activation"] for point in found} == {"relu", "tanh"}
    assert {point["model.dropout"] for point in found} == {0.0, 0.25, 0.5}
    assert {point["model.residual"] for point in found} == {True, False}
    rates = [point["model.optimizer.lr"] for point in found]
    assert min(rates) >= 1e-4
    assert max(rates) <= 1e-1
    assert 15 < sum(rate < 10**-2.5 for rate in rates) < 45  # half of 60 lie below the middle of the logarithms
    assert not space.conditional


def test_a_width_per_layer_is_a_list_of_the_depth() -> None:
    space = Space.read({"model.width": {**WIDTH, "per_layer": True}, "model.depth": DEPTH})  # the depth comes later
    assert space.conditional
    for point in points(space):
        width = point.get("model.width", [])  # depth 0 has no width to give
        assert len(width) == point["model.depth"]
        assert all(16 <= one <= 256 for one in width)
    fixed = Space.read({"model.width": {**WIDTH, "per_layer": True}}, depth=3)
    assert not fixed.conditional
    assert all(len(point["model.width"]) == 3 for point in points(fixed, 3))


@pytest.mark.parametrize(
    ("key", "condition", "holds"),
    [
        ("model.depth", ">2", lambda point: point["model.depth"] > 2),
        ("model.depth", 3, lambda point: point["model.depth"] == 3),
        ("model.depth", [0, 4], lambda point: point["model.depth"] in (0, 4)),
        ("model.activation", "relu", lambda point: point["model.activation"] == "relu"),
        ("model.activation", "!=relu", lambda point: point["model.activation"] == "tanh"),
        ("model.optimizer.lr", "<= 1e-2", lambda point: point["model.optimizer.lr"] <= 1e-2),
    ],
)
def test_a_condition_decides_whether_a_key_exists(key: str, condition: Any, holds: Any) -> None:
    searched = {"model.norm": {"type": "categorical", "choices": ["none", "layer"], "when": {key: condition}}}
    space = Space.read({**searched, "model.depth": DEPTH, "model.activation": NAMES, "model.optimizer.lr": RATE})
    found = points(space)
    assert [("model.norm" in point) for point in found] == [holds(point) for point in found]
    assert 0 < sum("model.norm" in point for point in found) < len(found)


def test_a_condition_on_what_does_not_apply_does_not_hold() -> None:
    space = Space.read({"c": {**NAMES, "when": {"b": "!=tanh"}}, "b": {**NAMES, "when": {"a": 1}}, "a": DEPTH})
    for point in points(space):
        assert ("c" in point) == (point.get("b") == "relu")


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ({"a": {**DEPTH, "when": {"bb": 1}}, "b": DEPTH}, "space.a.when.bb: a condition names another searched key; "),
        ({"a": {**DEPTH, "when": {"a": 1}}, "b": DEPTH}, "space.a.when.a: a condition names another searched key; "),
        (
            {"a": {**DEPTH, "when": {"b": 1}}, "b": {**DEPTH, "when": {"a": 1}}},
            "space: the conditions go in a circle: ",
        ),
        ({"a": {**DEPTH, "when": {"b": ">x"}}, "b": DEPTH}, "space.a.when.b: '>x' compares with no number"),
        ({"a": {**DEPTH, "when": {"b": ">4"}}, "b": DEPTH}, "space.a.when.b: '>4' never holds; accepted: 0 to 4, or"),
        ({"a": {**DEPTH, "when": {"b": 1}}}, "space.a.when.b: a condition names another searched key; there is none"),
        ({"a": {**DEPTH, "when": {"b": 7}}, "b": DEPTH}, "space.a.when.b: 7 never holds; accepted: 0 to 4"),
        (
            {"a": {**DEPTH, "when": {"b": 1}}, "b": {**DEPTH, "per_layer": True}},
            "space.a.when.b: it has one value per layer",
        ),
    ],
)
def test_conditions_that_cannot_be(content: dict[str, Any], line: str) -> None:
    with pytest.raises(UserError) as caught:
        Space.read(content)
    assert str(caught.value).startswith(line)


def test_condition_on_choices_of_several_types_compares_text_where_it_must() -> None:
    mixed = {"type": "categorical", "choices": [1, "auto", None]}
    space = Space.read({"a": {**DEPTH, "when": {"b": "==auto"}}, "c": {**DEPTH, "when": {"b": "==null"}}, "b": mixed})
    for point in points(space):
        assert (("a" in point), ("c" in point)) == (point["b"] == "auto", point["b"] is None)


@pytest.mark.parametrize(
    ("point", "line"),
    [
        ({"model.depth": 9}, "enqueue.model.depth: 9 is outside of the space; accepted: 0 to 4"),
        ({"model.depth": 2.0}, "enqueue.model.depth: 2.0 is outside of the space; accepted: 0 to 4 (integers)"),
        (
            {"model.optimizer.lr": "fast"},
            "enqueue.model.optimizer.lr: 'fast' is outside of the space; accepted: 0.0001",
        ),
        (
            {"model.depth": 2, "model.width": [16] * 3},
            "enqueue.model.width: [16, 16, 16] has 3 values for model.depth: 2",
        ),
        (
            {"model.depth": 2, "model.norm": "none"},
            "enqueue.model.norm: it is searched only when model.depth is >2, and the point has model.depth: 2; leave",
        ),
    ],
)
def test_point_that_no_trial_can_have_is_refused(point: dict[str, Any], line: str) -> None:
    norm = {"type": "categorical", "choices": ["none", "layer"], "when": {"model.depth": ">2"}}
    content = {"model.depth": DEPTH, "model.optimizer.lr": RATE, "model.norm": norm}
    space = Space.read({**content, "model.width": {**WIDTH, "per_layer": True}})
    assert space.to_params({"model.optimizer.lr": "1e-3"}) == {"model.optimizer.lr": 1e-3}  # YAML reads it as text
    with pytest.raises(UserError) as caught:
        space.to_params(point)
    assert str(caught.value).startswith(line)


def test_fingerprint_is_of_the_meaning() -> None:
    space = Space.read({"model.depth": DEPTH, "model.activation": NAMES})
    same = Space.read({"model.activation": NAMES, "model.depth": {"high": 4, "low": 0, "type": "int", "log": False}})
    assert space.fingerprint() == same.fingerprint()
    for changed in ({**DEPTH, "high": 5}, {**DEPTH, "step": 2}, {**DEPTH, "when": {"model.activation": "relu"}}):
        assert Space.read({"model.depth": changed, "model.activation": NAMES}).fingerprint() != space.fingerprint()


def test_points_become_parameters_and_return() -> None:
    space = Space.read({"model.depth": DEPTH, "model.width": {**WIDTH, "per_layer": True}})
    params = space.to_params({"model.depth": 2, "model.width": [64, 32]})
    assert params == {"model.depth": 2, "model.width[1]": 64, "model.width[2]": 32}
    assert space.from_params(params) == {"model.depth": 2, "model.width": [64, 32]}
    with pytest.raises(
        UserError, match=r"^enqueue.model.depht: the space does not search it; did you mean model.depth"
    ):
        space.to_params({"model.depht": 2})
    with pytest.raises(UserError, match=r"^enqueue.model.width: 8 is outside of the space; accepted: 16 to 256$"):
        space.to_params({"model.width": [64, 8]})


def test_grid_of_too_many_points_is_refused() -> None:
    wide = {"type": "int", "low": 1, "high": 2000}
    with pytest.raises(UserError, match=r"^study.sampler: a grid of this space has 4,000,000 points"):
        Space.read({"a": wide, "b": wide}).grid()


def test_a_grid_has_every_value_and_refuses_conditions() -> None:
    space = Space.read({"model.depth": DEPTH, "model.activation": NAMES})
    assert space.grid() == {"model.activation": ["relu", "tanh"], "model.depth": [0, 1, 2, 3, 4]}
    with pytest.raises(UserError, match=r"^study.sampler: a grid needs a space without `when`"):
        Space.read({"a": {**DEPTH, "when": {"b": 1}}, "b": DEPTH}).grid()


def test_examples_hold_every_end_and_every_choice() -> None:
    space = Space.read({"model.depth": DEPTH, "model.width": {**WIDTH, "per_layer": True}, "a": NAMES})
    found = space.examples()
    assert {point["model.depth"] for point in found} == {0, 4}
    assert {point["a"] for point in found} == {"relu", "tanh"}
    assert {tuple(point["model.width"]) for point in found if "model.width" in point} == {(16,) * 4, (256,) * 4}


def test_examples_hold_what_has_conditions_where_they_hold() -> None:
    space = Space.read(
        {
            "model.depth": DEPTH,
            "a": {**NAMES, "when": {"model.depth": "==3"}},
            "b": {**NAMES, "when": {"a": ["tanh"]}},
            "c": {**NAMES, "when": {"model.depth": ">1"}},
            "d": {**NAMES, "when": {"a": "!=tanh"}},
        }
    )
    found = space.examples()
    for key in "abcd":
        assert {point[key] for point in found if key in point} == {"relu", "tanh"}
    assert all(point["model.depth"] == 3 for point in found if "a" in point)
    assert all(point["a"] == "tanh" for point in found if "b" in point)
    assert all(point["a"] == "relu" for point in found if "d" in point)
