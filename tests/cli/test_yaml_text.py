from __future__ import annotations

import pytest
import yaml

from mlp_lab.cli.yaml_text import LARGEST, read_yaml


def test_read_yaml_times_and_dates_stay_text() -> None:
    text = "[12:30:45, 2024-02-31, 2024-13-45, 1:30.5, 07, 1.5, .inf, 2024-01-01T00:00:00Z]"
    expected = ["12:30:45", "2024-02-31", "2024-13-45", "1:30.5", 7, 1.5, float("inf"), "2024-01-01T00:00:00Z"]
    assert read_yaml(text) == expected


def test_read_yaml_aliases_of_moderate_size_are_expanded() -> None:
    assert read_yaml("{a: &a {b: 1}, c: *a, d: {<<: *a, e: 2}}") == {
        "a": {"b": 1},
        "c": {"b": 1},
        "d": {"b": 1, "e": 2},
    }


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[" * 3000, "nested more than 100 levels deep"),
        ("\n".join(f"{' ' * n}a:" for n in range(3000)), "nested more than 100 levels deep"),
        ("- &a0 [1]\n" + "".join(f"- &a{n} [*a{n - 1}, *a{n - 1}]\n" for n in range(1, 64)), f"more than {LARGEST:,}"),
        ("&a [*a]", "an alias stands inside its own anchor"),
        ("{a: 1, a: 2}", "the key 'a' is repeated"),
        ("depth: {{ depth }}", "fill in the {{ }} of a template"),
        ("9" * 5000, "cannot be read as int"),
        ("!!timestamp x", "'x' cannot be read as timestamp"),
        ("!!float x", "'x' cannot be read as float"),
    ],
)
def test_read_yaml_text_without_bound_or_sense_is_refused(text: str, problem: str) -> None:
    with pytest.raises(yaml.MarkedYAMLError) as caught:
        read_yaml(text)
    assert problem in str(caught.value.problem)
