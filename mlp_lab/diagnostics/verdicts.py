"""From measurements to verdicts: root causes first, and consequences that point to them.

`diagnose` is pure and may be asked at any time: with more evidence a verdict may come, gain weight or go.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from mlp_lab.diagnostics import rules_outcome, rules_signal, rules_start, rules_steps
from mlp_lab.diagnostics.evidence import Evidence
from mlp_lab.diagnostics.findings import SEVERITIES, Verdict

__all__ = ["CODES", "Verdict", "diagnose"]

Rule = Callable[[Evidence], Verdict | None]

RULES: tuple[Rule, ...] = (
    rules_start.nonfinite_data,
    rules_start.small_eps,
    rules_start.frozen_layer,
    rules_start.poor_init,
    rules_start.unscaled_inputs,
    rules_steps.update_too_large,
    rules_steps.nonfinite_training,
    rules_steps.dead_from_start,
    rules_signal.exploding_gradient,
    rules_signal.saturated_units,
    rules_signal.vanishing_gradient,
    rules_steps.dead_later,
    rules_steps.update_too_small,
    rules_outcome.not_learning,
    rules_outcome.majority_class,
    rules_outcome.underfitting,
    rules_outcome.overfitting,
    rules_outcome.loss_mismatch,
)
"""Every rule, in the order of precedence of its verdicts."""

CODES: dict[str, str] = {
    "nonfinite": "a NaN or an infinity",
    "small_eps": "an optimizer's eps that is too small for weights in float16",
    "frozen_layer": "a layer that is never updated",
    "poor_init": "initial weights from which the network cannot learn",
    "unscaled_inputs": "input features far from unit scale",
    "update_too_large": "steps so large that they undo what was learnt",
    "dead_units": "units that are the same for every input",
    "exploding_gradient": "gradients that grow from layer to layer",
    "saturated_units": "units stuck in the flat parts of their activation",
    "vanishing_gradient": "gradients that shrink from layer to layer",
    "update_too_small": "steps too small to arrive in the planned time",
    "not_learning": "a loss that stays at guessing though signals and steps are healthy",
    "majority_class": "a network that always predicts the most frequent class",
    "underfitting": "a network too small, or too constrained, for its training rows",
    "overfitting": "a network that learns its training rows by heart",
    "loss_mismatch": "a loss that does not fit the task's outputs",
}
"""Every code, and what it means."""

_STEPS = ("small_eps", "poor_init", "unscaled_inputs", "update_too_large")
_FLOW = ("poor_init", "update_too_large", "dead_units", "vanishing_gradient", "update_too_small", "not_learning")
_OUTCOMES = ("not_learning", "majority_class", "underfitting", "overfitting", "loss_mismatch")

CAUSES: dict[str, tuple[str, ...]] = {
    "unscaled_inputs": (),
    "update_too_large": ("nonfinite", "small_eps", "poor_init", "unscaled_inputs"),
    "nonfinite": (*_STEPS, "exploding_gradient"),
    "dead_units": (*_STEPS, "exploding_gradient"),
    "exploding_gradient": ("poor_init", "unscaled_inputs"),
    "saturated_units": _STEPS,
    "vanishing_gradient": ("poor_init", "update_too_large", "dead_units", "saturated_units"),
    "update_too_small": ("poor_init", "dead_units", "vanishing_gradient", "saturated_units"),
    "not_learning": tuple(code for code in CODES if code not in _OUTCOMES),
    "majority_class": _FLOW,
    "underfitting": ("frozen_layer", *_FLOW),
    "overfitting": ("not_learning",),
}
"""Which codes explain a code, where both are found in one run and the cause comes first in the order of precedence."""


def diagnose(evidence: Evidence) -> list[Verdict]:
    """Judges a run by all that is known of it so far.

    A consequence points to the first verdict that explains it, and its cause weighs as much as it does: one story, told
    once. Among root causes the critical ones come first.

    Args:
        evidence: what was measured.

    Returns:
        Root causes, by severity and then precedence; then their consequences, each with `consequence_of` set.
    """
    found = [verdict for rule in RULES if (verdict := rule(evidence)) is not None]
    linked = [_linked(verdict, found[:place]) for place, verdict in enumerate(found)]
    weighed = [_weighed(verdict, linked) for verdict in linked]
    return sorted(weighed, key=lambda one: (one.consequence_of is not None, -SEVERITIES.index(one.severity)))


def _linked(verdict: Verdict, before: list[Verdict]) -> Verdict:
    """Points a verdict to the first verdict before it that explains it."""
    causes = CAUSES.get(verdict.code, ())
    cause = next((one.code for one in before if one.code in causes), None)
    return verdict if cause is None else replace(verdict, consequence_of=cause)


def _weighed(verdict: Verdict, linked: list[Verdict]) -> Verdict:
    """Raises a root cause to the severity of its worst consequence."""
    if verdict.consequence_of is not None:
        return verdict
    effects = [one.severity for one in linked if one.consequence_of == verdict.code]
    return replace(verdict, severity=max([verdict.severity, *effects], key=SEVERITIES.index))
