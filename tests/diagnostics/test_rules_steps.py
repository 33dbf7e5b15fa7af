"""Steps too large, too small or undone, and dead units: each rule on both sides of its threshold."""

from typing import Any

import pytest

from mlp_lab.diagnostics.evidence import Evidence, Facts, Measured
from mlp_lab.diagnostics.rules_steps import (
    dead_from_start,
    dead_later,
    nonfinite_training,
    update_too_large,
    update_too_small,
)
from mlp_lab.diagnostics.scan import NonFinite
from mlp_lab.diagnostics.verdicts import diagnose


def run(ratios: list[float], losses: list[float], epochs: list[float], **facts: Any) -> Evidence:
    """Returns a net of two hidden layers whose layers all move by `ratios`, and whose passes cost `epochs`."""
    known = {"depth": 2, "activation": "relu", "lr": 0.1, "baseline_loss": 2.0, "baseline_val_loss": 2.0}
    steps = [
        Measured(step=at + 1, epoch=0, values={"train/loss": loss, **{f"update/ratio/{k}": ratio for k in (1, 2, 3)}})
        for at, (ratio, loss) in enumerate(zip(ratios, losses, strict=True))
    ]
    passes = [
        Measured(step=100 * (at + 1), epoch=at, values={"train/loss": loss, "val/loss": loss})
        for at, loss in enumerate(epochs)
    ]
    plan = {"steps_per_epoch": 100, "planned_steps": 400}
    return Evidence(facts=Facts(**{**known, **plan, **facts}), steps=steps, epochs=passes)


def test_large_first_steps_are_a_warning_and_critical_where_nothing_is_learnt():
    learns = update_too_large(run([0.6, 0.3], [2.3, 2.5], [0.8]))
    assert learns is not None
    assert (learns.severity, learns.step) == ("warning", 1)
    fails = update_too_large(run([0.6, 0.3], [2.3, 2.5], [2.1]))
    assert fails is not None
    assert (fails.severity, fails.fix) == ("critical", ["--model.optimizer.lr 0.002"])  # 0.1 · 0.01/0.6, rounded


def test_healthy_steps_and_one_layer_that_jumps_are_no_verdict():
    assert update_too_large(run([0.2, 0.1], [2.3, 1.5], [0.8])) is None
    head = run([0.02, 0.02], [2.3, 1.5], [0.8])
    head.steps[0].values["update/ratio/3"] = 1.5
    assert update_too_large(head) is None


def test_layers_that_began_as_zero_are_left_out():
    evidence = run([0.0, 1.0], [2.3, 2.2], [0.8], zero_layers=(3,))
    del evidence.steps[0].values["update/ratio/3"]  # ‖W‖ was 0
    assert update_too_large(evidence) is None


def test_a_loss_that_climbs_back_later_is_told_without_large_first_steps():
    assert update_too_large(run([0.1], [2.3], [1.0, 0.4, 0.45])) is None
    risen = update_too_large(run([0.1], [2.3], [1.0, 0.3, 1.2]))
    assert risen is not None
    assert "has climbed" in risen.message


def test_a_nan_of_training_is_not_one_of_the_data():
    assert nonfinite_training(Evidence(nonfinite=NonFinite(step=3, place="data"))) is None
    verdict = nonfinite_training(Evidence(facts=Facts(lr=1.0), nonfinite=NonFinite(step=3, place="gradient", layer=2)))
    assert verdict is not None
    assert (verdict.layer, verdict.fix[0]) == (2, "--model.optimizer.lr 0.1")
    far = run([20.0], [2.0], [], lr=1e3, optimizer="sgd")
    far.nonfinite = NonFinite(step=2, place="loss")
    verdict = nonfinite_training(far)
    assert verdict is not None
    assert verdict.fix[0] == "--model.optimizer.lr 0.1"  # not 100: the first step would still be 200 times too large


@pytest.mark.parametrize(("share", "found"), [(0.89, False), (0.95, True)])
def test_dead_layers_in_the_first_pass(share: float, found: bool):
    evidence = run([0.01], [2.0], [2.0])
    evidence.epochs[0].values["units/dead/2"] = share
    verdict = dead_from_start(evidence)
    assert (verdict is not None) == found
    if verdict is not None:
        assert (verdict.layer, verdict.severity) == (2, "critical")
        assert dead_later(evidence) is None


def test_a_silent_layer_is_seen_in_the_first_step():
    evidence = run([0.0], [2.0], [], bias=-10.0)
    evidence.steps[0].values.update({"signal/forward/1": 0.1, "signal/forward/2": 0.0})
    verdict = dead_from_start(evidence)
    assert verdict is not None
    assert (verdict.layer, verdict.step, verdict.severity, verdict.fix) == (2, 1, "warning", ["--model.bias 0"])
    assert "began at -10" in verdict.message


def test_units_that_died_later_are_told_apart():
    evidence = run([0.01], [2.0], [1.0, 1.0])
    evidence.epochs[1].values["units/dead/1"] = 1.0
    assert dead_from_start(evidence) is None
    verdict = dead_later(evidence)
    assert verdict is not None
    assert (verdict.layer, verdict.severity) == (1, "warning")
    assert "by now" in verdict.message


@pytest.mark.parametrize(("steps", "found"), [(15, False), (49, False), (50, True)])
def test_a_plan_of_a_few_steps_is_too_short_to_tell(steps: int, found: bool):
    evidence = run([1e-6] * 10, [2.0] * 10, [], planned_steps=steps, steps_per_epoch=steps)
    evidence.epochs = [Measured(step=steps, epoch=0, values={"train/loss": 2.0, "val/loss": 2.0})]
    evidence.steps[0].values["signal/span"] = -9.0
    told = {one.code for one in diagnose(evidence)} & {"update_too_small", "not_learning", "vanishing_gradient"}
    assert bool(told) == found


def test_steps_too_small_to_arrive():
    evidence = run([1e-6, 1e-6], [2.0, 2.0], [2.0], lr=1e-6)
    verdict = update_too_small(evidence)
    assert verdict is not None
    assert (verdict.severity, verdict.fix) == ("critical", ["--model.optimizer.lr 0.01"])
    assert update_too_small(run([1e-6], [2.0], [1.5])) is None  # it learns
    assert update_too_small(run([1e-6], [1.6], [1.5])) is not None  # it began below guessing's, and stays there
    assert update_too_small(run([1e-4], [1.6], [1.5])) is None  # 0.04 of the norm: a good network's last touch
    assert update_too_small(run([1e-3], [2.0], [2.0])) is None  # early, and 0.4 of the norm is to come
    assert update_too_small(run([1e-3], [2.0], [2.0, 2.0, 2.0])) is not None  # late, and nothing has come of it
    assert update_too_small(run([1e-2], [2.0], [2.0, 2.0, 2.0])) is None  # the steps are not the reason
