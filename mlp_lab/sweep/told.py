"""What a study stores of an outcome."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from mlp_lab.sweep.facts import ERROR
from mlp_lab.sweep.pruning import worth
from mlp_lab.sweep.runs import Outcome


def fault(outcome: Outcome, metrics: int) -> str | None:
    """Returns why an outcome has failed by itself, None where it has not; `metrics` is how many the study has."""
    if outcome.state == "failed":
        return outcome.error or "it failed and gave no reason"
    if outcome.state == "complete":
        if len(outcome.values) != metrics:
            return f"{len(outcome.values)} values for {metrics} metrics"
        if any(math.isnan(value) for value in outcome.values):
            return "the metric is not a number"
    return None


def reports(outcome: Outcome, metrics: int) -> Mapping[int, float]:
    """Returns the values that a trial had on the way, by epoch; with several metrics only those of a complete one.

    For Optuna ranks what did not end by its last value, and cannot where there are several.
    """
    return outcome.reports if metrics == 1 or outcome.state == "complete" else {}


def attributes(outcome: Outcome, error: str | None) -> dict[str, Any]:
    """Returns the user attributes of a trial; `error` is what `fault` returned."""
    found: dict[str, Any] = {"epochs": outcome.epochs, "seconds": round(outcome.seconds, 3)}
    if outcome.verdicts:
        found["verdicts"] = outcome.verdicts
    if outcome.state == "diagnosed":
        found["diagnosed"] = str((outcome.verdicts or [{}])[0].get("code", "diagnosed"))
    if outcome.sd is not None:
        found["sd"] = outcome.sd
    return found | ({ERROR: error} if error else {})


def worst_known(outcome: Outcome, complete: Sequence[Sequence[float]], maximize: Sequence[bool]) -> list[float] | None:
    """Returns the worst value of each metric, for a sampler that would learn nothing from a pruned trial.

    Args:
        outcome: of the trial; what it had on the way counts for the first metric.
        complete: values of the complete trials.
        maximize: which metrics are better when they are higher.

    Returns:
        None where a metric has no finite value yet.

    >>> worst_known(Outcome(number=0, state="diagnosed", values=[], reports={1: 3.0}, epochs=1, seconds=0.0,
    ...     verdicts=[], error=None, sd=None), [[1.0], [2.0]], [False])
    [3.0]
    """
    columns = [[values[index] for values in complete] for index in range(len(maximize))]
    columns[0] += list(outcome.reports.values())
    finite = [[value for value in column if math.isfinite(value)] for column in columns]
    if not all(finite):
        return None
    return [max(column, key=lambda v: worth(v, m)) for column, m in zip(finite, maximize, strict=True)]
