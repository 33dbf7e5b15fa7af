"""Rules that can be judged before the first step, or in it: data, frozen layers, initial weights, input scale."""

from __future__ import annotations

import math
from collections.abc import Sequence

from mlp_lab.diagnostics import fixes
from mlp_lab.diagnostics.evidence import Evidence, Facts, per_layer
from mlp_lab.diagnostics.findings import Verdict
from mlp_lab.diagnostics.outcome import fails, first_step
from mlp_lab.model.activations import activation as find_activation
from mlp_lab.model.activations import find
from mlp_lab.model.criticality import critical_point

LARGE_SCALE = 2.0
SMALL_SCALE = 0.3
SIGNAL_DECADES = 1.0
LEAST_EPS = 1e-5
SMALLEST_FLOAT16 = 2.0**-24
LARGE_INPUT, LARGEST_INPUT, SMALL_INPUT = 3.0, 10.0, 0.03


def nonfinite_data(evidence: Evidence) -> Verdict | None:
    """Judges a NaN or an infinity that came in with the data; at the step that met it.

    One such number makes the loss, every gradient and, after the step, every weight NaN: the run is over. No threshold.
    """
    found = evidence.nonfinite
    if found is None or found.place != "data":
        return None
    droppable = evidence.facts.data == "TabularDataModule" and found.column and not str(found.column).isdigit()
    return Verdict(
        code="nonfinite",
        severity="critical",
        step=found.step,
        evidence={} if found.row is None else {"row": float(found.row)},
        message=f"{_sentence(str(found))} One such value makes the loss, all gradients and then all weights NaN. "
        "Repair or leave out that row; the flag leaves the column out.",
        fix=[f"--data.drop \"['{found.column}']\""] if droppable else [],
    )


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:].rstrip(".") + "."


def frozen_layer(evidence: Evidence) -> Verdict | None:
    """Judges layers whose weights no optimizer moves; before the first step.

    Either `requires_grad` is off or the optimizer was not given the weights. A warning, because fine-tuning does it on
    purpose. Also a layer that did not move in any of at least five steps (a parameter group of learning rate 0) though
    its gradient is at least a hundredth of the largest: one that has vanished may be too small to change a float32.
    """
    layers = evidence.facts.frozen_layers or _unmoved_layers(evidence)
    if not layers:
        return None
    parts = [
        "module.model.head" if one > evidence.facts.depth else f"module.model.blocks[{one - 1}].linear"
        for one in layers
    ]
    names = ", ".join(map(str, layers))
    return Verdict(
        code="frozen_layer",
        severity="warning",
        layer=layers[0],
        step=1,
        evidence={f"update/ratio/{layer}": 0.0 for layer in layers},
        message=f"The weights of layer {names} are never updated (update/ratio is 0): the layer keeps its random "
        "weights and the others must make do with what it lets through. If that is not meant, let it train: the fix is "
        "a line of Python for before `fit`; also see that the optimizer is given all parameters.",
        fix=[f"{part}.requires_grad_(True)" for part in parts],
    )


def small_eps(evidence: Evidence) -> Verdict | None:
    """Judges an eps that is too small for float16; before the first step.

    Adam and its kin divide by √v + ε. Weights in float16 (`precision: 16-true`) have v in float16 too, where the square
    of a gradient below 2e-4 is 0: such a step is the gradient over ε alone, and an ε below 3e-8 is 0 itself. With 1e-8
    a network of the digits diverged within four steps, and with 1e-4 it trained as in float32.
    """
    facts = evidence.facts
    if facts.precision != "float16" or not facts.eps < LEAST_EPS:
        return None
    is_zero = facts.eps <= SMALLEST_FLOAT16 / 2
    size = "0" if is_zero else "too small"
    return Verdict(
        code="small_eps",
        severity="critical" if is_zero else "warning",
        step=1,
        evidence={"eps": facts.eps, "smallest_float16": SMALLEST_FLOAT16},
        message=f"The optimizer's eps of {facts.eps:g} is {size} in float16, the type of the weights (precision "
        "16-true). The mean square of small gradients is 0 there, so the step divides by eps alone: weights jump, or "
        "become infinite or NaN. Give the optimizer a larger eps, or keep the weights in float32.",
        fix=["--model.optimizer.eps 1e-4"],
    )


def _unmoved_layers(evidence: Evidence) -> tuple[int, ...]:
    found = []
    largest = max(
        (max(per_layer(one.values, "grad/norm").values(), default=0.0) for one in evidence.steps), default=0.0
    )
    for layer in range(1, evidence.facts.depth + 2):
        ratios = [value for _, value in evidence.series(f"update/ratio/{layer}")]
        gradients = [value for _, value in evidence.series(f"grad/norm/{layer}")]
        if len(ratios) >= 5 and not any(ratios) and gradients and max(gradients) >= largest / 100 > 0:
            found.append(layer)
    return tuple(found)


def poor_init(evidence: Evidence) -> Verdict | None:
    """Judges the initial weights: units that are all equal, hidden layers of zeros, or a scale far off.

    Equal units get equal gradients, so a layer of them stays one unit wide (Goodfellow et al. 2016, section 8.4):
    certain before the first step. The scale σ_w = √(fan_in · mean W²) is off where its geometric mean over the hidden
    layers is above 2 times the largest or below 0.3 times the smallest value that any scheme of the literature gives
    this activation, and the product over the layers is off by a factor of 10 or more. Adam mends much of that, a norm
    all of it, so it is a warning until the loss has diverged or an epoch has brought nothing.
    """
    facts = evidence.facts
    zero = tuple(layer for layer in facts.zero_layers if layer <= facts.depth)
    if facts.identical_rows or zero:
        return _twins(facts, facts.identical_rows or zero, zero=bool(zero) and not facts.identical_rows)
    hidden = facts.weight_gains[: facts.depth]
    if facts.norm != "none" or not hidden or find(facts.activation) is None or 0.0 in hidden:
        return None
    low, high = sensible_scales(facts.activation)
    scale = math.exp(sum(map(math.log, hidden)) / len(hidden))
    off = scale / high if scale > high else scale / low if scale < low else 1.0
    decades = len(hidden) * math.log10(off)
    if SMALL_SCALE <= off <= LARGE_SCALE or abs(decades) < SIGNAL_DECADES:
        return None
    return _off_scale(evidence, scale=scale, low=low, high=high, decades=decades)


def sensible_scales(activation: str) -> tuple[float, float]:
    """Returns the least and the largest σ_w that LeCun, Glorot, He or the mean-field theory give an activation."""
    record = find_activation(activation)
    scales = [1.0, record.gain]
    point = critical_point(record)
    if point is not None:
        scales.append(math.sqrt(point.weight_variance))
    if activation == "sigmoid":
        scales.append(4.0)  # tanh in disguise
    return min(scales), max(scales)


def _twins(facts: Facts, layers: Sequence[int], *, zero: bool) -> Verdict:
    what = "zeros" if zero else "the same in every unit"
    return Verdict(
        code="poor_init",
        severity="warning" if facts.dropout else "critical",
        layer=layers[0],
        step=0,
        evidence={"layers": float(len(layers))},
        message=f"The weights of layer {', '.join(map(str, layers))} begin as {what}. Equal units get equal gradients "
        "and stay equal: the layer never computes more than one feature. Random weights break the tie.",
        fix=fixes.initialisation(facts),
    )


def _off_scale(evidence: Evidence, *, scale: float, low: float, high: float, decades: float) -> Verdict:
    facts = evidence.facts
    grows = decades > 0
    return Verdict(
        code="poor_init",
        severity="critical" if fails(evidence) else "warning",
        step=evidence.step,
        evidence={"scale": scale, "smallest_sensible": low, "largest_sensible": high, "decades": decades},
        message=f"The initial weights are too {'large' if grows else 'small'}: σ_w = √(fan_in · mean W²) is "
        f"{scale:.2g} on average, and {facts.activation} wants {low:.2g} to {high:.2g}. Over {facts.depth} layers "
        f"signals and gradients {'grow' if grows else 'shrink'} by a factor of about 10^{abs(decades):.1f}.",
        fix=fixes.initialisation(facts),
    )


def unscaled_inputs(evidence: Evidence) -> Verdict | None:
    """Judges the inputs' scale; before the first step.

    Initial weights assume inputs of about unit scale (LeCun et al. 1998, section 4.3). A root mean square above 3, or
    above 10 in one feature, or below 0.03, is none: standardised inputs have 1, pixels in [0, 1] 0.3 to 0.5, robust
    scaling of California's long tails 1.4. Such nets often train all the same (digits of 0 to 16, at 7.8,
    reach 95%), only worse: a warning, unless it is the cause of something critical.
    """
    facts = evidence.facts
    rms, worst = facts.input_rms, facts.input_worst_rms
    if not (rms > LARGE_INPUT or worst > LARGEST_INPUT or rms < SMALL_INPUT):
        return None
    name = f" (largest: {facts.input_worst!r}, {worst:.3g})" if facts.input_worst and rms >= SMALL_INPUT else ""
    size = "large" if rms >= SMALL_INPUT else "small"
    moved = per_layer(first_step(evidence).values, "update/ratio")
    behind = [ratio for layer, ratio in moved.items() if layer > 1 and layer not in facts.zero_layers]
    return Verdict(
        code="unscaled_inputs",
        severity="warning",
        layer=1,
        step=0,
        evidence={"input_rms": rms, "input_worst_rms": worst, "input_mean": facts.input_mean},
        message=f"The inputs are far too {size}: their root mean square is {rms:.3g}{name}, and initial weights are "
        "made for about 1. The first layer's pre-activations get that scale, so units saturate or learn at unequal "
        "speeds, and the learning rate that suits one feature does not suit the next.",
        fix=fixes.input_scaling(facts, behind),
    )
