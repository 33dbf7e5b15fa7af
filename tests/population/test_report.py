"""How a population's verdicts are told."""

from __future__ import annotations

from mlp_lab.diagnostics.findings import Verdict
from mlp_lab.population.report import told


def test_faults_are_told_once_the_most_severe_first() -> None:
    small = Verdict(code="underfitting", severity="info", fix=["--model.width 64"])
    large = Verdict(code="update_too_large", severity="critical", fix=["--model.optimizer.lr 0.1"])
    other = Verdict(code="update_too_large", severity="warning", fix=["--model.optimizer.lr 0.2"])
    effect = Verdict(code="dead_units", severity="critical", consequence_of="update_too_large")
    lines = [str(line) for line in told([[small], [large, effect], [small], [other, small]])]
    assert lines == [
        "critical: update_too_large in 2 of 4 members (1, 3); fixes differ by member",
        "info: underfitting in 3 of 4 members (0, 2, 3); fix: --model.width 64",
    ]


def test_many_members_are_counted_and_some_are_named() -> None:
    fault = Verdict(code="nonfinite", severity="critical")
    (line,) = told([[fault]] * 20)
    assert str(line) == "critical: nonfinite in 20 of 20 members (0, 1, 2, 3, 4, 5, 6, 7, ...)"
    assert told([[], []]) == []
