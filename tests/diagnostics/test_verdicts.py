"""Order of precedence, consequences that point to causes, and real runs from the benchmark's cases."""

import inspect
import os
from dataclasses import replace
from pathlib import Path

import pytest

from mlp_lab.diagnostics import verdicts
from mlp_lab.diagnostics.evidence import Evidence, Facts, Measured
from mlp_lab.diagnostics.scan import NonFinite
from mlp_lab.diagnostics.verdicts import CAUSES, CODES, RULES, Verdict, diagnose
from tests.benchmarks.verdict_case import Case
from tests.benchmarks.verdict_faults import BORDERLINE, FAULTS
from tests.benchmarks.verdict_healthy import HEALTHY
from tests.benchmarks.verdict_runs import PLANTS, fit

DATA = Path(os.environ.get("MLP_LAB_DATA") or Path(__file__).parents[2] / "data")
QUICK = ("vanishing: sigmoid, depth 8", "dead relu: bias -10", "lr far too high", "one NaN, late")


def exploded() -> Evidence:
    """Returns a run whose weights were too large: its loss diverged, and then there was a NaN."""
    facts = Facts(
        depth=8, activation="relu", weight_gains=(4.3,) * 8 + (1.0,), lr=0.05, baseline_loss=2.3, baseline_val_loss=2.3
    )
    ratios = {f"update/ratio/{layer}": 9.0 for layer in range(1, 10)}
    steps = [Measured(step=1, epoch=0, values={"train/loss": 6000.0, "signal/span": 3.3, **ratios})]
    return Evidence(facts=facts, steps=steps, nonfinite=NonFinite(step=2, place="gradient", layer=3))


def test_nothing_known_is_no_verdict():
    assert diagnose(Evidence()) == []


def test_one_story_is_told_once():
    found = diagnose(exploded())
    assert [one.code for one in found] == ["poor_init", "update_too_large", "nonfinite", "exploding_gradient"]
    assert [one.consequence_of for one in found] == [None, "poor_init", "poor_init", "poor_init"]
    assert found[0].severity == "critical"


def test_a_cause_weighs_as_much_as_its_worst_consequence():
    facts = replace(exploded().facts, weight_gains=(), input_rms=8.0, input_worst_rms=12.0)
    found = diagnose(Evidence(facts=facts, steps=exploded().steps, nonfinite=exploded().nonfinite))
    assert (found[0].code, found[0].severity) == ("unscaled_inputs", "critical")


def test_critical_root_causes_come_before_warnings(monkeypatch: pytest.MonkeyPatch):
    small, large = (
        Verdict(code="frozen_layer", severity="warning"),
        Verdict(code="vanishing_gradient", severity="critical"),
    )
    monkeypatch.setattr(verdicts, "RULES", (lambda _: small, lambda _: large))
    assert [one.code for one in diagnose(Evidence())] == ["vanishing_gradient", "frozen_layer"]


def test_causes_are_codes_and_no_code_explains_itself():
    assert set(CAUSES) <= set(CODES)
    assert all(cause in CODES and cause != code for code, causes in CAUSES.items() for cause in causes)


def test_diagnosing_changes_nothing():
    evidence = exploded()
    before = repr(evidence)
    assert diagnose(evidence) == diagnose(evidence)
    assert repr(evidence) == before


def test_every_rule_says_why():
    assert all(
        len(inspect.getdoc(rule) or "") > 150 or "No threshold" in (inspect.getdoc(rule) or "") for rule in RULES
    )


def needs_files(case: Case) -> bool:
    return case.config["data"].get("dataset") != "digits"


def judge(case: Case) -> None:
    if needs_files(case) and not (DATA / "tabular").is_dir():
        pytest.skip("set MLP_LAB_DATA to the folder that holds the tables")
    run = fit(case.config, 0, plant=PLANTS.get(case.plant))
    if not case.accepted:
        assert run.criticals == set()
        return
    assert run.verdicts[0].code in case.accepted
    plant = PLANTS.get(case.plant) if run.verdicts[0].fix else None
    cured = fit(case.config, 0, plant=plant, cure=run.verdicts[0].fix)
    assert run.verdicts[0].code not in [one.code for one in cured.verdicts]


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", [case for case in FAULTS if case.name in QUICK], ids=lambda case: case.name)
def test_a_planted_fault_is_named_and_cured(case: Case):
    judge(case)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", [case for case in FAULTS if case.name not in QUICK], ids=lambda case: case.name)
def test_every_planted_fault_is_named_and_cured(case: Case):
    judge(case)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", HEALTHY, ids=lambda case: case.name)
def test_a_healthy_net_is_left_in_peace(case: Case):
    judge(case)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("case", BORDERLINE[1:3], ids=lambda case: case.name)
def test_the_optimizer_decides_whether_relu_10_learns(case: Case):
    judge(case)
