"""Rules about the steps themselves: too large, too small, or undone by a NaN; and units that died of them."""

from __future__ import annotations

import math
import statistics

from mlp_lab.diagnostics import fixes
from mlp_lab.diagnostics.evidence import Evidence, Measured, per_layer
from mlp_lab.diagnostics.findings import Verdict
from mlp_lab.diagnostics.outcome import ENOUGH, diverged, fails, first_step, outcome
from mlp_lab.model.activations import find

FIRST = 10  # steps in which a learning rate far too high shows
LARGE_RATIO = 0.4
RISEN = 3.0
SMALL_MOVE, SMALL_MOVE_LATE = 0.1, 0.5
STUCK_MOVE, STUCK_LOSS = 0.02, 0.8
DEAD = 0.9
ENDLESS = 10  # epochs that an endless run is judged by


def update_too_large(evidence: Evidence) -> Verdict | None:
    """Judges steps that are too large: by the first ten, and by losses that leave all bounds.

    A step is large where ‖ΔW‖/‖W‖ of its middle layer (the median over layers whose weights did not begin as 0) is
    above 0.4. In 75 healthy calibration runs it stayed below 0.16; one layer alone (the head of a regression) took a
    step of 1.5 and recovered, hence the median. Of 82 random configurations that learnt, 8 had larger first steps, so
    these alone are a warning. They are critical where the loss has diverged, or is no better than guessing after an
    epoch. The batch size plays no part: the ratio is that of the real step.
    """
    first = first_step(evidence)
    moved = per_layer(first.values, "update/ratio")
    zero = {layer for layer in range(1, evidence.facts.depth + 2) if not moved.get(layer)}
    early = [one for one in evidence.steps if one.step <= FIRST]
    ratios = {one.step: _middle(one, zero) for one in early}
    worst = max(ratios, key=ratios.__getitem__, default=0)
    large = ratios.get(worst, 0.0) > LARGE_RATIO
    bad = diverged(evidence)
    if not (large or (bad and evidence.nonfinite is None) or _risen(evidence)):
        return None
    loss = first.values.get("train/loss", math.nan)
    late = (evidence.series("train/loss") + evidence.epoch_series("train/loss"))[-1:]
    now = late[0][1] if late else math.nan
    begin = ratios.get(1, 0.0)
    shown = (
        f"step {worst} changed the weights of the middle layer by {ratios[worst]:.2g} of their norm" if large else ""
    )
    return Verdict(
        code="update_too_large",
        severity="critical" if fails(evidence) else "warning",
        layer=_largest_layer(early, worst) if large else None,
        step=worst if large else evidence.step,
        evidence={"update/ratio": ratios.get(worst, math.nan), "first_loss": loss, "last_loss": now},
        message=f"The steps are too large: {shown or 'the loss has climbed'} (about 0.01 is healthy at the start), and "
        f"the loss went from {loss:.3g} to {now:.3g}. Each step jumps past the valley it aims at, and undoes what was "
        "learnt.",
        fix=fixes.learning_rate(evidence.facts, min(fixes.TARGET_RATIO / begin, 0.1) if begin > 0 else 0.1),
    )


def _middle(record: Measured, leave_out: set[int]) -> float:
    """Returns the median over layers of ‖ΔW‖/‖W‖."""
    ratios = [one for layer, one in per_layer(record.values, "update/ratio").items() if layer not in leave_out]
    return statistics.median(ratios) if ratios else 0.0


def _largest_layer(records: list[Measured], step: int) -> int | None:
    ratios = next((per_layer(one.values, "update/ratio") for one in records if one.step == step), {})
    return max(ratios, key=ratios.__getitem__, default=None)


def _risen(evidence: Evidence) -> bool:
    """Whether both losses have climbed back: 3 times their minimum, and above half of what guessing costs."""
    for key, baseline in (
        ("train/loss", evidence.facts.baseline_loss),
        ("val/loss", evidence.facts.baseline_val_loss),
    ):
        losses = [value for _, value in evidence.epoch_series(key)]
        if not losses or not losses[-1] > max(RISEN * min(losses), baseline / 2):
            return False
    return True


def nonfinite_training(evidence: Evidence) -> Verdict | None:
    """Judges a NaN or an infinity that training has made, in its step. No threshold.

    In float32 a loss or a gradient overflows only after steps or weights were far too large: nearly always it is the
    consequence of another verdict, and then that one has the cure. Else the rate falls to a tenth, and further where
    the first step was large or the rate is far from any that its optimizer is used with (`fixes.safe_rate`).
    """
    found = evidence.nonfinite
    if found is None or found.place == "data":
        return None
    begin = _middle(first_step(evidence), set())
    return Verdict(
        code="nonfinite",
        severity="critical",
        layer=found.layer,
        step=found.step,
        evidence={"step": float(found.step)},
        message=f"{str(found)[:1].upper()}{str(found)[1:]}. The data of that step is finite, so training has made it: "
        "numbers have grown until they overflowed. Smaller steps prevent it, and clipping stops a single bad batch.",
        fix=[*fixes.safe_rate(evidence.facts, begin), fixes.flag("trainer.gradient_clip_val", 1)],
    )


def dead_from_start(evidence: Evidence) -> Verdict | None:
    """Judges layers that are dead as they begin: in the first step, and in the first validation pass.

    In the first step a ReLU layer of which every output is 0 for the whole batch passes no gradient to anything below.
    In the first pass a layer counts where 90% of its units carry no information (`units/dead`): what is left is a
    bottleneck of a tenth. Of 130 calibration runs that came below 0.4 of guessing's loss, two ended with more than half
    of a layer dead (81% and 97%), so it is a warning; critical where the loss is no better than guessing's after an
    epoch. Units may still revive then: under Adam those with a bias of -2 did, slowly, and the bias was the fault.
    """
    values = first_step(evidence).values
    silent = [layer for layer, size in per_layer(values, "signal/forward").items() if size == 0]
    record = evidence.epochs[0] if evidence.epochs else None
    layers, shares = _dead_layers(record)
    if not silent and not layers:
        return None
    layer = silent[0] if silent else layers[0]
    share = 1.0 if silent else shares[layer]
    return _dead(evidence, layer, share, step=1 if silent else record.step if record else 1, start=True)


def dead_later(evidence: Evidence) -> Verdict | None:
    """Judges layers of which 90% of the units are dead now, and were not after the first epoch.

    Units that lived have been pushed where no input reaches them, mostly by steps that were too large: look above.
    """
    if len(evidence.epochs) < 2 or dead_from_start(evidence) is not None:
        return None
    layers, shares = _dead_layers(evidence.epochs[-1])
    return _dead(evidence, layers[0], shares[layers[0]], step=evidence.step, start=False) if layers else None


def _dead_layers(record: Measured | None) -> tuple[list[int], dict[int, float]]:
    shares = per_layer(record.values, "units/dead") if record else {}
    return [layer for layer, share in shares.items() if share >= DEAD], shares


def _dead(evidence: Evidence, layer: int, share: float, *, step: int, start: bool) -> Verdict:
    facts = evidence.facts
    record = find(facts.activation)
    flat = record is not None and record.can_die
    why = f"their bias began at {facts.bias:g}" if facts.bias else "their pre-activations are below 0 on every row"
    return Verdict(
        code="dead_units",
        severity="critical" if fails(evidence) else "warning",
        layer=layer,
        step=step,
        evidence={f"units/dead/{layer}": share},
        message=f"{share:.0%} of the units of layer {layer} are dead {'from the start' if start else 'by now'}: they "
        f"give the same output for every input, because {why}"
        + (f"; there the derivative of {facts.activation} is 0, so no gradient can bring them back." if flat else "."),
        fix=fixes.revival(facts),
    )


def update_too_small(evidence: Evidence) -> Verdict | None:
    """Judges steps too small to arrive: after an epoch without progress, and 50 steps.

    The largest ‖ΔW‖/‖W‖ of any layer at any measurement, times the planned steps, bounds how far the weights can get.
    Below 0.1 it is told after the first epoch without progress, below 0.5 after three epochs and half of the plan. Of
    195 calibration runs that came below 0.9 of guessing's loss, three had a bound below 0.1 and twelve one below 0.5;
    those three took three to five epochs, and would be told before. It needs no word on the optimizer, since the ratio
    is that of the real step; a warm-up is over before the largest ratio. Layers that began as 0 are left out: any step
    is large to them. Of a plan shorter than 50 steps nothing is said: it ends before slow and short can be told apart.
    Critical: only time would be lost by waiting. A network that happened to begin below guessing's loss counts as
    well, where the bound is below 0.02 and the loss has fallen by less than a fifth: it will end where it began.
    """
    facts, so_far = evidence.facts, outcome(evidence)
    steps = facts.planned_steps or ENDLESS * facts.steps_per_epoch
    ratios = [
        value
        for one in evidence.steps
        for layer, value in per_layer(one.values, "update/ratio").items()
        if layer not in facts.zero_layers
    ]
    largest = max(ratios, default=0.0)
    late = so_far.over or (so_far.epochs >= 3 and 2 * evidence.step >= steps)
    limit = SMALL_MOVE_LATE if late else SMALL_MOVE
    begin = first_step(evidence).values.get("train/loss", math.nan)
    still = so_far.train * facts.baseline_loss > STUCK_LOSS * begin
    stuck = so_far.judged and still and largest * steps < STUCK_MOVE
    if not ((so_far.unmoved or stuck) and evidence.step >= ENOUGH and 0 < largest * steps < limit):
        return None
    return Verdict(
        code="update_too_small",
        severity="critical",
        step=evidence.step,
        evidence={"update/ratio": largest, "planned_steps": float(steps), "loss_over_guessing": so_far.last},
        message=f"The steps are too small: none has changed any layer by more than {largest:.1g} of its norm, so that "
        f"all {steps} planned steps together change it by {largest * steps:.1g} at most, and the loss is still "
        f"{so_far.last:.2f} of guessing's. About 0.01 per step is healthy at the start.",
        fix=fixes.learning_rate(facts, fixes.TARGET_RATIO / largest),
    )
