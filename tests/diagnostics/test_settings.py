"""The settings refuse what they cannot mean, each in one line that says what would be accepted."""

from __future__ import annotations

from typing import Any

import pytest

from mlp_lab.diagnostics.settings import DEFAULT_GROUPS, GROUPS, DiagnosticsConfig
from mlp_lab.errors import UserError


def test_defaults() -> None:
    config = DiagnosticsConfig()
    assert config.groups == list(DEFAULT_GROUPS) == list(GROUPS)[:5]
    assert DiagnosticsConfig().groups is not config.groups, "one run's list is not another's"


@pytest.mark.parametrize(
    "settings", [{"every_n_steps": 1}, {"groups": []}, {"groups": list(GROUPS)}, {"probe": "train"}]
)
def test_accepted(settings: dict[str, Any]) -> None:
    config = DiagnosticsConfig(**settings)
    assert all(getattr(config, name) == value for name, value in settings.items())


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"every_n_steps": 0}, "diagnostics.every_n_steps: 0 is out of range; accepted: an integer of at least 1"),
        ({"every_n_steps": -3}, "diagnostics.every_n_steps: -3 is out of range"),
        ({"every_n_steps": 1.5}, "diagnostics.every_n_steps: 1.5 is out of range"),
        ({"every_n_steps": True}, "diagnostics.every_n_steps: True is out of range"),
        ({"groups": ["unit"]}, "diagnostics.groups: 'unit' is unknown (did you mean 'units'?); accepted: gradients, "),
        ({"groups": "units"}, "diagnostics.groups: 'units' is not a list; accepted: a list of gradients, updates, "),
        ({"groups": None}, "diagnostics.groups: None is not a list"),
        ({"probe": "vall"}, "diagnostics.probe: 'vall' is unknown (did you mean 'val'?); accepted: val, train"),
    ],
)
def test_refused(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as error:
        DiagnosticsConfig(**settings)
    assert str(error.value).startswith(message)
    assert "\n" not in str(error.value)
