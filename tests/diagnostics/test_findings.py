"""A verdict is plain values, and its severity is one of three."""

import json

import pytest

from mlp_lab.diagnostics.findings import Verdict


def test_a_verdict_survives_json():
    verdict = Verdict(
        code="dead_units", severity="critical", layer=2, evidence={"units/dead/2": 1.0}, fix=["--model.bias 0"]
    )
    assert Verdict(**json.loads(json.dumps(verdict.to_dict()))) == verdict


def test_an_unknown_severity_is_refused():
    with pytest.raises(ValueError, match="severity must be one of info, warning, critical, not 'fatal'"):
        Verdict(code="dead_units", severity="fatal")  # type: ignore[arg-type]
