"""Rules about the signal: gradients that explode or vanish on their way back, and units that saturate."""

from __future__ import annotations

import math

from mlp_lab.diagnostics import fixes
from mlp_lab.diagnostics.evidence import Evidence, Facts, Measured, per_layer
from mlp_lab.diagnostics.findings import Verdict
from mlp_lab.diagnostics.outcome import ENOUGH, fails, first_step, full_steps, outcome
from mlp_lab.model.activations import find

EXPLODED_SPAN, EXPLODED_LOSS = 2.0, 5.0
SATURATED = 0.6
VANISHED_SPAN, RECOVERY = -1.5, 0.5
LOST_VARIATION = 0.05
SMALL_MOVE = 0.05
SHARE = 0.3  # of the vanishing, from which a factor is named among its causes


def exploding_gradient(evidence: Evidence) -> Verdict | None:
    """Judges a gradient that grows on its way back; in the first step.

    `signal/span` above 2 (a hundredfold from the last hidden layer to the first) together with a first loss above 5
    times guessing's: the forward signal has grown with it. Healthy runs began with spans of -0.7 to 0.4 and losses of
    up to 4.6 times; six residual blocks with 1.0 to 1.1 and 11 to 24 times learnt, but worse. A warning until the loss
    diverges or an epoch brings nothing: Adam's steps do not depend on the gradient's size.
    """
    values = first_step(evidence).values
    span, loss = values.get("signal/span", math.nan), values.get("train/loss", math.nan)
    if not (span > EXPLODED_SPAN and loss > EXPLODED_LOSS * evidence.facts.baseline_loss):
        return None
    facts = evidence.facts
    fix = fixes.signal_flow(facts, weights=not facts.residual, activation=False)
    return Verdict(
        code="exploding_gradient",
        severity="critical" if fails(evidence) else "warning",
        layer=1,
        step=1,
        evidence={"signal/span": span, "first_loss": loss, "guessing": facts.baseline_loss},
        message=f"The gradient grows by a factor of 10^{span:.1f} from the last hidden layer to the first, and the "
        f"signal on its way forward: the first loss is {loss:.3g}, where guessing costs {facts.baseline_loss:.3g}. "
        "Every layer multiplies by more than 1, and the product over the layers explodes.",
        fix=fix,
    )


def saturated_units(evidence: Evidence) -> Verdict | None:
    """Judges units in the flat parts of sigmoid, tanh or hardtanh; in the first step.

    More than 60% of a layer's activations where the slope is below 6% of its maximum. Healthy runs began with 21% at
    most; trained ones reached 47% and were none the worse, so only the start is judged (Glorot & Bengio 2010, section
    3).
    """
    shares = per_layer(first_step(evidence).values, "units/saturated")
    layer = max(shares, key=shares.__getitem__, default=0)
    if not shares or shares[layer] <= SATURATED:
        return None
    facts = evidence.facts
    unscaled = facts.input_rms > 1.5 and layer == 1
    fix = fixes.input_scaling(facts) if unscaled else [fixes.flag("model.init", "xavier"), *_no_bias(facts)]
    why = (
        f"the inputs have a root mean square of {facts.input_rms:.2g}, not 1"
        if unscaled
        else "its weights or biases are large"
    )
    return Verdict(
        code="saturated_units",
        severity="critical" if fails(evidence) else "warning",
        layer=layer,
        step=1,
        evidence={f"units/saturated/{layer}": shares[layer], "input_rms": facts.input_rms},
        message=f"{shares[layer]:.0%} of the activations of layer {layer} lie where {facts.activation} is flat, "
        f"because {why}. There its derivative is nearly 0, so the layer's weights get hardly any gradient and learn "
        "slowly.",
        fix=fix,
    )


def _no_bias(facts: Facts) -> list[str]:
    return [fixes.flag("model.bias", 0)] if facts.bias else []


def vanishing_gradient(evidence: Evidence) -> Verdict | None:
    """Judges a gradient that vanishes on its way back; after an epoch, and 50 steps, that brought nothing.

    A span below -1.5 alone is no verdict: GELU-8 with PyTorch's default weights begins at -3.5 and learns under Adam,
    whose steps do not shrink with the gradient. It is critical where the loss is still guessing's after an epoch and
    either

    - the layer that moves least cannot move by 0.05 of its norm in the whole plan (its ‖ΔW‖/‖W‖ in steps 1 to 10 and
      since, times the planned steps): SGD; or
    - a second full measurement at step 100 or later shows the span improved by less than 0.5 and the variation of the
      last layer (the information that gets through) below 0.05: any optimizer, after two epochs.

    The cause is read off the exact chain-rule split of the first step: see `causes`.
    """
    full = full_steps(evidence)
    span = first_step(evidence).values.get("signal/span", math.nan)
    if not full or not span < VANISHED_SPAN or not outcome(evidence).unmoved or evidence.step < ENOUGH:
        return None
    layer, move = _least_move(evidence)
    stuck = len(full) > 1 and outcome(evidence).epochs >= 2 and _stuck(full, span)
    if not (move < SMALL_MOVE or stuck):
        return None
    facts = evidence.facts
    weights, slopes = causes(full[0], facts)
    both = weights + slopes
    by_weights, by_slopes = weights < SHARE * both, slopes < SHARE * both  # all are negative, or 0
    cause = " and ".join(
        name for name, counts in (("the weights", by_weights), ("the activation's derivative", by_slopes)) if counts
    )
    return Verdict(
        code="vanishing_gradient",
        severity="critical",
        layer=layer,
        step=evidence.step,
        evidence={"signal/span": span, "weights_log10": weights, "activation_log10": slopes, "possible_move": move},
        message=f"The gradient vanishes: the first layer gets 10^{span:.1f} of what the last hidden layer gets. By the "
        f"chain rule it is a product over {facts.depth} layers, and {cause or 'the product'} shrinks it (weights by "
        f"10^{weights:.1f}, derivatives of {facts.activation} by 10^{slopes:.1f}, against a healthy layer). Layer "
        f"{layer} will change by {move:.1g} of its norm at most in the whole run, and the loss is still that of "
        "guessing.",
        fix=fixes.signal_flow(facts, weights=by_weights, activation=by_slopes),
    )


def causes(first: Measured, facts: Facts) -> tuple[float, float]:
    """Splits a vanished gradient into what the weights and what the derivatives did, in powers of ten.

    log10 of the product over layers of ‖εW‖/‖ε‖ and of ‖δ‖/‖∂L/∂a‖, each against a healthy layer of this activation:
    He's weights multiply by √2 and ReLU's derivative divides by it (half of the units are off), so for ReLU and its
    kin only what goes beyond is a cause; saturating activations are at best neutral in both. Growth counts as 0.

    Returns:
        (weights, derivatives), both <= 0.
    """
    record = find(facts.activation)
    norm = record.gain if record is not None and not record.saturates else 1.0
    totals = []
    for key, healthy in (("weight", norm), ("activation", 1 / norm)):
        factors = {
            layer: value
            for layer, value in per_layer(first.values, f"signal/{key}_factor").items()
            if layer < facts.depth and value > 0  # between hidden layers: what the head does is not depth's doing
        }
        totals.append(min(sum(math.log10(value / healthy) for value in factors.values()), 0.0))
    return totals[0], totals[1]


def _least_move(evidence: Evidence) -> tuple[int, float]:
    """Returns the hidden layer that moves least, and ‖ΔW‖/‖W‖ summed over the plan if every step were its largest."""
    facts = evidence.facts
    steps = facts.planned_steps or 10 * facts.steps_per_epoch
    largest: dict[int, float] = {}
    for one in evidence.steps:
        for layer, value in per_layer(one.values, "update/ratio").items():
            if layer <= facts.depth and layer not in facts.frozen_layers:
                largest[layer] = max(value, largest.get(layer, 0.0))
    layer = min(largest, key=largest.__getitem__, default=1)
    return layer, largest.get(layer, math.inf) * steps


def _stuck(full: list[Measured], span: float) -> bool:
    last = full[-1].values
    variation = per_layer(last, "signal/variation")
    now = last.get("signal/span", math.nan)
    lost = bool(variation) and variation[max(variation)] < LOST_VARIATION
    return lost and not now > span + RECOVERY
