"""What a study's trials say of themselves: the names of their attributes, and how far all of them are."""

from __future__ import annotations

from typing import Any, NamedTuple

from optuna import Study
from optuna.trial import FrozenTrial, TrialState

from mlp_lab.sweep.interrupts import uninterrupted

ERROR, LOST, ORIGIN, FIRST, ATTEMPT, WORKER, SEED = "error", "lost", "origin", "first", "attempt", "worker", "seed"
DOUBLE = "asked twice at once"


class Counts(NamedTuple):
    """How far a study is."""

    finished: int  # trained, pruned, or failed by themselves
    running: int  # asked and not told
    waiting: int  # points to be asked


class Cut(NamedTuple):
    """What is left of a batch that was cut off."""

    anew: int  # trials that start again
    going_on: int  # trials that go on from a checkpoint

    def words(self) -> str:
        """Says what becomes of them.

        >>> Cut(1, 3).words()
        '3 will go on from their checkpoint, 1 will be trained again'
        """
        parts = {"will go on from their checkpoint": self.going_on, "will be trained again": self.anew}
        return ", ".join(f"{count} {what}" for what, count in parts.items() if count)


def params_of(trial: FrozenTrial) -> dict[str, Any]:
    """Returns what a trial was asked for, whole even where its worker was killed while it took over a point."""
    return {**trial.system_attrs.get("fixed_params", {}), **trial.params}


@uninterrupted()
def count_trials(study: Study) -> Counts:
    """Counts the trials of a study."""
    trials = study.get_trials(deepcopy=False)
    states = [trial.state for trial in trials]
    failed = sum(one.state == TrialState.FAIL and ERROR in one.user_attrs for one in trials)
    finished = states.count(TrialState.COMPLETE) + states.count(TrialState.PRUNED) + failed
    return Counts(finished, states.count(TrialState.RUNNING), states.count(TrialState.WAITING))
