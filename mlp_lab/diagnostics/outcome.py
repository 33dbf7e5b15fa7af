"""How far a run has come, against guessing: what makes a finding critical.

A loss alone says little: 2.3 is guessing on ten classes and good on a thousand. So losses are divided by the loss of
the best constant prediction (`Facts.baseline_loss`); 1 is guessing, 0 is perfect.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from mlp_lab.diagnostics.evidence import NAN, Evidence, Measured, per_layer

UNMOVED = 0.95
"""A loss above this share of guessing's has not moved. The healthy calibration runs were below 0.9 within two."""
ENOUGH = 50
"""Optimizer steps before which a loss that has not moved says nothing: a healthy run may not have begun to learn."""
DIVERGED = 3.0
"""A loss of this many times guessing's, and of the first step's, has diverged. Before that, noise explains it."""


class Outcome(NamedTuple):
    """Losses of a run as shares of guessing's; NaN where unknown."""

    epochs: float  # epochs behind us
    train: float  # last training loss
    val: float  # last validation loss
    best: float  # the least of either so far
    best_val: float  # the least validation loss so far; unknown where classes are weighed
    over: bool  # whether the planned steps are done

    @property
    def last(self) -> float:
        """The better of the last two losses: dropout and mixup raise one of them, overfitting the other."""
        return min((one for one in (self.train, self.val) if not math.isnan(one)), default=NAN)

    @property
    def judged(self) -> bool:
        """Whether an epoch is behind us, or the whole run."""
        return not math.isnan(self.last) and (self.epochs >= 1 or self.over)

    @property
    def unmoved(self) -> bool:
        """Whether an epoch has passed, and the loss has never been better than guessing."""
        return self.judged and self.best > UNMOVED


def outcome(evidence: Evidence) -> Outcome:
    """Judges how far a run has come by its validation passes; without any, by its measured steps.

    Where classes are weighed, only the training loss can beat guessing: the validation loss is not weighed.
    """
    facts, step = evidence.facts, evidence.step
    train = _shares(evidence, "train/loss", facts.baseline_loss)
    val = _shares(evidence, "val/loss", facts.baseline_val_loss)
    # Weights of classes pull predictions away from the classes' shares, which are what guessing's val/loss is made of.
    comparable = [] if facts.class_weights else val
    return Outcome(
        epochs=step / facts.steps_per_epoch if facts.steps_per_epoch else float(len(evidence.epochs)),
        train=train[-1] if train else NAN,
        val=val[-1] if val else NAN,
        best=min([*train, *comparable], default=NAN),
        best_val=min(comparable, default=NAN),
        over=0 < facts.planned_steps <= step,
    )


def _shares(evidence: Evidence, key: str, baseline: float) -> list[float]:
    """Returns the losses of all passes over guessing's; where there is no pass, the mean of the last measured steps."""
    if not baseline > 0:
        return []
    if evidence.epochs or key != "train/loss":
        return [value / baseline for _, value in evidence.epoch_series(key)]
    late = [value for step, value in evidence.series(key) if step > 10][-3:]
    return [sum(late) / len(late) / baseline] if late else []


def first_step(evidence: Evidence) -> Measured:
    """Returns the measurement of step 1, the network as it was initialised; an empty one where it is missing."""
    found = next((one for one in evidence.steps[:1] if one.step == 1), None)
    return found or Measured(step=1, epoch=0, values={})


def diverged(evidence: Evidence) -> bool:
    """Whether the loss has left all bounds, in the first ten steps or since."""
    if evidence.nonfinite is not None:
        return evidence.nonfinite.place != "data"
    facts = evidence.facts
    if not facts.baseline_loss > 0:
        return False
    bound = DIVERGED * max(facts.baseline_loss, first_step(evidence).values.get("train/loss", 0.0))
    early = [value for step, value in evidence.series("train/loss") if step <= 10]
    late = [value for _, value in evidence.epoch_series("train/loss")[-1:]]
    return (len(early) >= 5 and min(early[-2:]) > bound and not late) or any(value > bound for value in late)


def full_steps(evidence: Evidence) -> list[Measured]:
    """Returns the measurements that hold the signal of every layer."""
    return [one for one in evidence.steps if per_layer(one.values, "signal/forward")]


def fails(evidence: Evidence) -> bool:
    """Whether the run fails as it stands: diverged, or no better than guessing after an epoch."""
    so_far = outcome(evidence)
    return diverged(evidence) or (so_far.judged and so_far.last > UNMOVED)
