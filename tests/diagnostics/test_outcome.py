"""Losses as shares of guessing's, and what counts as failing."""

import math
from dataclasses import replace
from types import SimpleNamespace

from mlp_lab.diagnostics.evidence import Evidence, Facts, Measured
from mlp_lab.diagnostics.outcome import diverged, fails, first_step, full_steps, outcome

FACTS = Facts(baseline_loss=2.0, baseline_val_loss=4.0, steps_per_epoch=10, planned_steps=100)


def epochs(*losses: tuple[float, float]) -> list[Measured]:
    return [
        Measured(step=10 * (at + 1), epoch=at, values={"train/loss": train, "val/loss": val})
        for at, (train, val) in enumerate(losses)
    ]


def steps(*losses: float, first: int = 1) -> list[Measured]:
    return [Measured(step=first + at, epoch=0, values={"train/loss": loss}) for at, loss in enumerate(losses)]


def test_losses_are_shares_of_guessing():
    so_far = outcome(Evidence(facts=FACTS, epochs=epochs((1.0, 1.0), (0.5, 3.0))))
    assert (so_far.train, so_far.val, so_far.best, so_far.best_val, so_far.last) == (0.25, 0.75, 0.25, 0.25, 0.25)
    assert (so_far.epochs, so_far.over, so_far.judged, so_far.unmoved) == (2.0, False, True, False)


def test_without_validation_the_measured_steps_speak():
    so_far = outcome(Evidence(facts=FACTS, steps=steps(9.0) + steps(1.0, 1.0, 1.6, first=11)))
    assert math.isclose(so_far.train, 0.6)
    assert math.isnan(so_far.val)
    assert math.isnan(outcome(Evidence(facts=Facts())).last)


def test_a_validation_loss_without_the_weights_of_training_is_no_measure_of_it():
    weighed = replace(FACTS, class_weights=True)
    so_far = outcome(Evidence(facts=weighed, epochs=epochs((1.0, 8.0))))
    assert (so_far.train, so_far.best, so_far.unmoved) == (0.5, 0.5, False)
    assert math.isnan(so_far.best_val)
    assert outcome(Evidence(facts=weighed, epochs=epochs((2.0, 1.0)))).unmoved


def test_a_loss_of_guessing_is_unmoved_and_fails_only_after_an_epoch():
    evidence = Evidence(facts=FACTS, epochs=epochs((2.0, 4.0)))
    assert outcome(evidence).unmoved
    assert fails(evidence)
    early = Evidence(facts=FACTS, steps=steps(2.0, first=5))
    assert not fails(early)
    recovered = Evidence(facts=FACTS, epochs=epochs((2.0, 4.0), (1.0, 2.0)))
    assert not fails(recovered)
    relapsed = Evidence(facts=FACTS, epochs=epochs((1.0, 2.0), (2.0, 4.0)))
    assert fails(relapsed)
    assert not outcome(relapsed).unmoved


def test_divergence_is_told_in_ten_steps_but_a_spike_is_not_one():
    assert diverged(Evidence(facts=FACTS, steps=steps(2.0, 5.0, 9.0, 20.0, 50.0)))
    assert not diverged(Evidence(facts=FACTS, steps=steps(2.0, 50.0, 20.0, 5.0, 1.5)))
    assert not diverged(Evidence(facts=FACTS, steps=steps(40.0, 50.0, 60.0, 50.0, 50.0)))  # it began there
    assert not diverged(Evidence(facts=Facts(), steps=steps(1.0, 9.0, 99.0, 999.0, 9999.0)))  # nothing to compare with


def test_what_is_not_finite_has_diverged_unless_the_data_brought_it():
    assert diverged(Evidence(nonfinite=SimpleNamespace(place="loss")))  # type: ignore[arg-type]
    assert not diverged(Evidence(nonfinite=SimpleNamespace(place="data")))  # type: ignore[arg-type]


def test_the_first_step_and_the_full_measurements_are_found():
    evidence = Evidence(steps=[*steps(2.0, 2.0), Measured(step=100, epoch=2, values={"signal/forward/1": 1.0})])
    assert first_step(evidence).values == {"train/loss": 2.0}
    assert first_step(Evidence(steps=steps(2.0, first=100))).values == {}
    assert [one.step for one in full_steps(evidence)] == [100]
