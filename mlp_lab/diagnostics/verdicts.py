"""From measurements to verdicts: root causes first, and consequences that point to them.

`diagnose` is pure and may be asked at any time: with more evidence a verdict may come, gain weight or go.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

from mlp_lab.diagnostics.evidence import Evidence
from mlp_lab.diagnostics.findings import Verdict

__all__ = ["CODES", "Verdict", "diagnose"]

Rule = Callable[[Evidence], Verdict | None]

RULES: tuple[Rule, ...] = ()
"""Every rule, in the order of precedence of its verdicts."""

CODES: dict[str, str] = {
    "nonfinite": "a NaN or an infinity",
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
}
"""Every code, and what it means."""

CAUSES: dict[str, tuple[str, ...]] = {}
"""Which codes explain a code, where both are found in one run."""


def diagnose(evidence: Evidence) -> list[Verdict]:
    """Judges a run by all that is known of it so far.

    Args:
        evidence: what was measured.

    Returns:
        Root causes in order of precedence, then their consequences, each with `consequence_of` set.
    """
    found = [verdict for rule in RULES if (verdict := rule(evidence)) is not None]
    linked = [_linked(verdict, found[:place]) for place, verdict in enumerate(found)]
    return sorted(linked, key=lambda verdict: verdict.consequence_of is not None)


def _linked(verdict: Verdict, before: list[Verdict]) -> Verdict:
    """Points a verdict to the first verdict before it that explains it."""
    causes = CAUSES.get(verdict.code, ())
    cause = next((one.code for one in before if one.code in causes), None)
    return verdict if cause is None else replace(verdict, consequence_of=cause)
