"""No better than guessing, one class only, too simple, learnt by heart: each rule on both sides of its threshold."""

from typing import Any

import pytest

from mlp_lab.diagnostics.evidence import Evidence, Facts, Measured
from mlp_lab.diagnostics.rules_outcome import (
    loss_mismatch,
    majority_class,
    not_learning,
    overfitting,
    too_strong,
    underfitting,
)


def run(train: list[float], val: list[float], accuracy: float = 0.5, **facts: Any) -> Evidence:
    """Returns a run of ten planned epochs; losses are shares of guessing's."""
    plan = {"steps_per_epoch": 10, "planned_steps": 100, "planned_epochs": 10}
    known = {"baseline_loss": 1.0, "baseline_val_loss": 1.0, "classes": 10, "widths": (64,), "optimizer": "adam"}
    passes = [
        Measured(step=10 * (at + 1), epoch=at, values={"train/loss": a, "val/loss": b, "val/accuracy": accuracy})
        for at, (a, b) in enumerate(zip(train, val, strict=True))
    ]
    return Evidence(facts=Facts(**{**known, **plan, **facts}), epochs=passes)


def test_not_learning_waits_for_half_of_the_plan():
    assert not_learning(run([1.0] * 4, [1.0] * 4)) is None
    verdict = not_learning(run([1.0] * 5, [1.0] * 5))
    assert verdict is not None
    assert (verdict.severity, verdict.fix) == ("critical", [])
    assert not_learning(run([1.0] * 5, [1.0, 0.9, 1.0, 1.0, 1.0])) is None


def test_rows_learnt_by_heart_are_not_learning_either():
    verdict = not_learning(run([1.0, 0.8, 0.6, 0.4, 0.2], [1.0, 1.1, 1.2, 1.4, 1.8]))
    assert verdict is not None
    assert "by heart" in verdict.message


def test_regularisation_that_is_too_strong_is_named():
    verdict = not_learning(run([1.0] * 5, [1.0] * 5, dropout=0.9, weight_decay=0.1))
    assert verdict is not None
    assert verdict.fix == ["--model.dropout 0", "--model.optimizer.weight_decay 0"]
    assert too_strong(Facts(optimizer="adamw", weight_decay=0.1)) == []


@pytest.mark.parametrize(
    ("accuracy", "share", "found"), [(0.9, 0.9, True), (0.93, 0.9, False), (0.9, 0.12, False), (0.8, 0.9, False)]
)
def test_the_majority_class(accuracy: float, share: float, found: bool):
    losses = [0.9] * 5
    verdict = majority_class(run(losses, losses, accuracy, majority_share=share, baseline_accuracy=0.9))
    assert (verdict is not None) == found
    if verdict is not None:
        assert (verdict.severity, verdict.fix) == ("warning", ["--model.class_weights balanced"])
        weighed = run(losses, losses, accuracy, majority_share=share, baseline_accuracy=0.9, class_weights=True)
        assert majority_class(weighed) is None


@pytest.mark.parametrize(
    ("accuracy", "f1", "found"),
    [(0.5, 0.07, True), (0.53, 0.15, True), (0.53, 0.3, False), (0.62, 0.15, False), (0.4, 0.07, False)],
)
def test_the_majority_class_among_many_is_judged_by_what_is_gained(accuracy: float, f1: float, found: bool):
    evidence = run([0.9] * 5, [0.9] * 5, accuracy, majority_share=0.5, baseline_accuracy=0.5)
    for one in evidence.epochs:
        one.values["val/f1"] = f1  # always saying the class: 2 · 0.5 / 1.5 / 10 = 0.067
    verdict = majority_class(evidence)
    assert (verdict is not None) == found
    assert verdict is None or verdict.evidence["val/f1"] == f1


def test_underfitting_needs_a_reason():
    losses = [0.8] + [0.6] * 9
    assert underfitting(run(losses, losses)) is None  # it may be all that the data can tell
    narrow = underfitting(run(losses, losses, widths=(2,), depth=1))
    assert narrow is not None
    assert narrow.fix == ["--model.depth 1", "--model.width 64"]
    assert underfitting(run([0.1] * 10, [0.1] * 10, widths=(2,))) is None
    assert underfitting(run([0.4] * 10, [0.6] * 10, widths=(2,))) is None  # a gap: it is not too simple
    dropped = underfitting(run(losses, losses, dropout=0.8))
    assert dropped is not None
    assert dropped.fix == ["--model.dropout 0"]


def test_a_loss_that_still_falls_at_the_end_is_only_worth_knowing():
    falling = [0.95**at for at in range(10)]
    verdict = underfitting(run(falling, falling))
    assert verdict is not None
    assert (verdict.severity, verdict.fix) == ("info", ["--trainer.max_epochs 30"])
    assert underfitting(run(falling[:8], falling[:8])) is None  # the plan is not over


def test_overfitting_by_a_validation_loss_that_rises():
    train = [0.5, 0.3, 0.2, 0.1, 0.05, 0.03]
    verdict = overfitting(run(train, [0.5, 0.4, 0.45, 0.5, 0.55, 0.6]))
    assert verdict is not None
    assert verdict.severity == "warning"
    assert overfitting(run(train, [0.5, 0.4, 0.3, 0.25, 0.24, 0.24])) is None
    assert overfitting(run(train[:4], [0.5, 0.4, 0.45, 0.6])) is None  # too early
    assert overfitting(run([0.5] * 6, [0.5, 0.4, 0.45, 0.5, 0.55, 0.6])) is None  # not by heart


def test_a_squared_error_of_probabilities_is_worth_knowing():
    verdict = loss_mismatch(Evidence(facts=Facts(loss="brier", task="multiclass")))
    assert verdict is not None
    assert (verdict.severity, verdict.fix) == ("info", ["--model.loss cross_entropy"])
    assert loss_mismatch(Evidence(facts=Facts(loss="bce", task="binary"))) is None
