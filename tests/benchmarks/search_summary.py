"""What the rounds of whole searches come to: pure functions of their measurements."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

import numpy as np

Run = Mapping[str, Any]
Rounds = Sequence[Mapping[str, Any]]  # one per seed: "seed", and a run per peer
QUARTILES = ("min", "quarter", "median", "three_quarters", "max")
RESAMPLES = 10_000
GOAL = 0.975  # validation accuracy that the demo is to reach; on these 180 rows logistic regression has 0.978


def spread(values: Sequence[float]) -> dict[str, float]:
    """Returns extremes, quartiles and median.

    >>> spread([4.0, 1.0, 2.0])
    {'min': 1.0, 'quarter': 1.5, 'median': 2.0, 'three_quarters': 3.0, 'max': 4.0}
    """
    found = np.quantile(values, [0.0, 0.25, 0.5, 0.75, 1.0])
    return dict(zip(QUARTILES, map(float, found), strict=True))


def median_difference(one: Sequence[float], other: Sequence[float]) -> tuple[float, float, float]:
    """Returns median(one) - median(other), and the ends of its 95% interval by the percentile bootstrap.

    >>> median_difference([3.0, 3.0], [1.0, 1.0])
    (2.0, 2.0, 2.0)
    """
    generator = np.random.default_rng(0)
    draws = [
        np.median(generator.choice(np.asarray(values), (RESAMPLES, len(values))), axis=1) for values in (one, other)
    ]
    low, high = np.quantile(draws[0] - draws[1], [0.025, 0.975])
    return median(one) - median(other), float(low), float(high)


def compare_backends(rounds: Rounds) -> dict[str, Any]:
    """Returns both distributions, and whether the population finds losses that are no higher than serial's.

    The margin is the interquartile range of serial's best losses: what another seed of the same search changes in half
    of the cases, so that a difference below it is one that a user could not tell from luck. `no worse` needs the whole
    95% interval of the difference of medians below the margin, `worse` the whole interval above it.

    >>> one = {"best": 0.2, "again_accuracy": 0.98, "wall_s": 10.0, "cpu_s": 9.0, "trials": []}
    >>> summary = compare_backends([{"seed": 0, "population": one, "serial": {**one, "wall_s": 20.0}}])
    >>> summary["times"], summary["verdict"], summary["reached"]
    (2.0, 'no worse', 1)
    """
    peers = ("population", "serial")
    table: dict[str, Any] = {}
    for name in peers:
        runs = [one[name] for one in rounds]
        table[name] = {
            "loss": spread([run["best"] for run in runs]),
            "accuracy": spread([run["again_accuracy"] for run in runs]),
            "wall_s": median(run["wall_s"] for run in runs),
            "cpu_s": median(run["cpu_s"] for run in runs),
            "epochs": median(total_epochs(run) for run in runs),
        }
    ours, theirs = ([one[name]["best"] for one in rounds] for name in peers)
    difference, low, high = median_difference(ours, theirs)
    loss = table["serial"]["loss"]
    margin = loss["three_quarters"] - loss["quarter"]
    verdict = "no worse" if high <= margin else "worse" if low > margin else "undecided"
    return table | {
        "difference": difference,
        "interval": [low, high],
        "margin": margin,
        "verdict": verdict,
        "times": median(one["serial"]["wall_s"] / one["population"]["wall_s"] for one in rounds),
        "times_cpu": median(one["serial"]["cpu_s"] / one["population"]["cpu_s"] for one in rounds),
        "reached": sum(one["population"]["again_accuracy"] >= GOAL for one in rounds),
    }


def total_epochs(run: Run) -> int:
    """Returns the epochs that all trials were trained."""
    return sum(trial["epochs"] for trial in run["trials"])


def until(run: Run, target: float, *, maximize: bool) -> dict[str, float]:
    """Returns what it took until a trial was at least as good as a target: seconds, trials and epochs.

    Seconds count from the first trial on; trials and epochs are those of trials that had ended by then.

    >>> rows = [(1.0, 0.5, 4), (2.0, None, 1), (3.0, 0.3, 4), (4.0, 0.2, 4)]
    >>> trials = [{"ended_s": ended, "value": value, "epochs": epochs} for ended, value, epochs in rows]
    >>> until({"trials": trials}, 0.3, maximize=False)
    {'seconds': 3.0, 'trials': 3, 'epochs': 9}
    """
    epochs = 0
    for count, trial in enumerate(run["trials"], start=1):
        epochs += trial["epochs"]
        value = trial["value"]
        if value is not None and (value >= target if maximize else value <= target):
            return {"seconds": trial["ended_s"], "trials": count, "epochs": epochs}
    raise ValueError(f"no trial reached {target:g}")


def compare_verdicts(rounds: Rounds, *, maximize: bool) -> dict[str, Any]:
    """Returns what the verdicts save: until the worse of the two final bests, and in all.

    >>> rows = [{"ended_s": 2.0, "value": 0.3, "epochs": 4, "diagnosed": None}]
    >>> run = {"wall_s": 5.0, "best": 0.3, "trials": rows}
    >>> slow = {**run, "wall_s": 10.0, "trials": [{**rows[0], "ended_s": 3.0}]}
    >>> summary = compare_verdicts([{"seed": 0, "verdicts": run, "none": slow}], maximize=False)
    >>> summary["times_until"], summary["times"], summary["none"]["until"]["seconds"]
    (1.5, 2.0, 3.0)
    """
    peers = ("verdicts", "none")
    worse = min if maximize else max
    targets = [worse(one[name]["best"] for name in peers) for one in rounds]
    reached = {
        name: [until(one[name], target, maximize=maximize) for one, target in zip(rounds, targets, strict=True)]
        for name in peers
    }
    table: dict[str, Any] = {}
    for name in peers:
        runs = [one[name] for one in rounds]
        ended = [[trial["diagnosed"] for trial in run["trials"] if trial["diagnosed"]] for run in runs]
        table[name] = {
            "best": median(run["best"] for run in runs),
            "until": {key: median(one[key] for one in reached[name]) for key in ("seconds", "trials", "epochs")},
            "wall_s": median(run["wall_s"] for run in runs),
            "epochs": median(total_epochs(run) for run in runs),
            "trials": median(len(run["trials"]) for run in runs),
            "ended": median(len(codes) for codes in ended),
            "codes": dict(Counter(code for codes in ended for code in codes).most_common()),
        }
    pairs = list(zip(reached["none"], reached["verdicts"], strict=True))
    return table | {
        "targets": targets,
        "times_until": median(without["seconds"] / max(with_["seconds"], 1e-9) for without, with_ in pairs),
        "times": median(one["none"]["wall_s"] / one["verdicts"]["wall_s"] for one in rounds),
    }


def compare_scripts(rounds: Rounds) -> dict[str, Any]:
    """Returns per peer the trials per hour of the whole process, and how often mlp_lab's rate is that of the peer.

    >>> run = {"wall_s": 36.0, "best": 0.1, "trials": [{"epochs": 3}]}
    >>> table = compare_scripts([{"seed": 0, "mlp_lab": run, "median": {**run, "wall_s": 72.0}}])
    >>> table["mlp_lab"]["trials_per_hour"], table["median"]["times"]
    (100.0, 2.0)
    """
    peers = [name for name in rounds[0] if name != "seed"]
    rates = {name: [3600 * len(one[name]["trials"]) / one[name]["wall_s"] for one in rounds] for name in peers}
    return {
        name: {
            "trials_per_hour": median(rates[name]),
            "lowest": min(rates[name]),
            "highest": max(rates[name]),
            "wall_s": median(one[name]["wall_s"] for one in rounds),
            "epochs": median(total_epochs(one[name]) for one in rounds),
            "loss": spread([one[name]["best"] for one in rounds]),
            "times": median(ours / theirs for ours, theirs in zip(rates["mlp_lab"], rates[name], strict=True)),
        }
        for name in peers
    }
