from __future__ import annotations

import math
from typing import Any

import pytest

from mlp_lab.errors import UserError
from mlp_lab.sweep.ranges import read_parameter

INT = {"type": "int", "low": 1, "high": 6}
FLOAT = {"type": "float", "low": 0.1, "high": 1.0}


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (3, "space.k: 3 is not a range; use such as {type: int, low: 1, high: 6}"),
        ({"type": "integer"}, "space.k.type: 'integer' is unknown; did you mean int?"),
        ({"values": [4, 8]}, "space.k.type: it is missing; accepted: int, float, categorical"),
        ({**INT, "hihg": 3}, "space.k.hihg: no such key of the type int; did you mean high?"),
        ({"type": "int", "low": 1}, "space.k.high: it is missing; give a number"),
        ({**INT, "low": 1.5}, "space.k.low: 1.5 is not accepted; use an integer"),
        ({**INT, "low": True}, "space.k.low: True is not accepted; use an integer"),
        ({**INT, "low": 7}, "space.k: low 7 is above high 6; swap them"),
        ({**INT, "low": 0, "log": True}, "space.k.low: 0 has no logarithm; with `log: true` use a number above 0"),
        ({**INT, "log": "yes"}, "space.k.log: 'yes' is not accepted; use true or false"),
        ({**INT, "step": 2}, "space.k.high: 6 is no whole number of steps above 1; use 5"),
        ({**INT, "step": 0}, "space.k.step: 0 is not accepted; use a number above 0"),
        ({**FLOAT, "step": 0.1, "log": True}, "space.k.step: 0.1 does not go with `log: true`; leave one of them out"),
        ({**FLOAT, "low": "small"}, "space.k.low: 'small' is not accepted; use a number"),
        ({**FLOAT, "low": float("nan")}, "space.k.low: nan is not finite; use a number"),
        ({**FLOAT, "choices": [1]}, "space.k.choices: no such key of the type float; "),
        ({"type": "categorical"}, "space.k.choices: None is not accepted; use a list such as [relu, tanh]"),
        ({"type": "categorical", "choices": [[64, 32]]}, "space.k.choices: [64, 32] cannot be stored; use text"),
        ({"type": "categorical", "choices": ["a", "a"]}, "space.k.choices: ['a', 'a'] names one twice"),
        (
            {"type": "categorical", "choices": [1, 1.0]},
            "space.k.choices: 1 and 1.0 are one and the same choice; leave ",
        ),
        ({"type": "categorical", "choices": [True, 1]}, "space.k.choices: true and 1 are one and the same choice; "),
        ({"type": "categorical", "choices": [0, False]}, "space.k.choices: 0 and false are one and the same choice; "),
        ({"type": "categorical", "choices": ["1", 1]}, "space.k.choices: '1' and 1 are one and the same choice; "),
        ({"type": "categorical", "choices": [None, "null"]}, "space.k.choices: null and 'null' are one and the same "),
        ({"type": "categorical", "choices": [math.nan, 1]}, "space.k.choices: nan equals nothing, not even itself; "),
        ({"type": "categorical", "choices": [(1, 2), 3]}, "space.k.choices: (1, 2) cannot be stored; use text, "),
        ({**INT, "when": 0}, "space.k.when: 0 is not accepted; use such as {model.depth: '>2'}"),
        ({**INT, "when": ">2"}, "space.k.when: '>2' is not accepted; use such as {model.depth: '>2'}"),
    ],
)
def test_mistakes_are_told_in_one_line(content: Any, line: str) -> None:
    with pytest.raises(UserError) as caught:
        read_parameter("k", content)
    assert str(caught.value).startswith(line)
    assert "\n" not in str(caught.value)


def test_what_yaml_takes_for_text_is_a_number() -> None:
    parameter = read_parameter("k", {"type": "float", "low": "1e-4", "high": "1e-1", "log": True})
    assert (parameter.low, parameter.high) == (1e-4, 1e-1)


def test_values_of_a_grid() -> None:
    assert read_parameter("k", {**INT, "low": 2, "step": 2}).values() == [2, 4, 6]
    assert read_parameter("k", INT).values() == [1, 2, 3, 4, 5, 6]
    assert read_parameter("k", {**FLOAT, "step": 0.3}).values() == pytest.approx([0.1, 0.4, 0.7, 1.0])
    with pytest.raises(UserError, match=r"^space.k: a grid needs `step`"):
        read_parameter("k", FLOAT).values()
    with pytest.raises(UserError, match=r"^space.k: 1 to 1e\+09 gives a grid 1,000,000,000 values; set `step`"):
        read_parameter("k", {**INT, "high": 10**9}).values()


def test_a_range_knows_its_values() -> None:
    even = read_parameter("k", {**INT, "low": 2, "step": 2})
    assert [even.contains(value) for value in (2, 3, 6, 8, True, 2.0, "2")] == [True, False, True, *[False] * 4]
    words = read_parameter("k", {"type": "categorical", "choices": ["a", True, 2, None]})
    assert [words.contains(value) for value in ("a", True, 2, None, False, 0, 2.0)] == [*[True] * 4, *[False] * 3]
