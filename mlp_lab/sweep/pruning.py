"""Who stops early, decided jointly: over a whole batch and all former trials, once per rung.

Optuna's pruners answer for one trial at a time, so that what they say of trials trained together depends on the order
in which they report. Here every value of a rung is known before anything is decided, and the order does not matter.
"""

from __future__ import annotations

import inspect
import math
import statistics
from bisect import bisect_right
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

from mlp_lab.errors import UserError, nearest, unknown
from mlp_lab.sweep.runs import Judge
from mlp_lab.sweep.settings import Choice

KEY = "study.pruner"


class History(Protocol):
    """What former trials reached."""

    def at(self, epoch: int, *, complete: bool = False) -> dict[int, float]:
        """Returns number -> value after `epoch` of every former trial that was measured there.

        Args:
            epoch: From 1.
            complete: Only of trials that were trained to their end.
        """
        ...

    def firsts(self) -> dict[int, int]:
        """Returns number -> number of the point's first trial, of every trial that was asked again."""
        ...


class Nothing:
    """The history of a study without trials."""

    def at(self, epoch: int, *, complete: bool = False) -> dict[int, float]:
        """Returns nothing."""
        return {}

    def firsts(self) -> dict[int, int]:
        """Returns nothing."""
        return {}


@dataclass(kw_only=True)
class Nobody:
    """Stops nobody."""

    history: History
    """Not used."""
    maximize: bool = False
    """Not used."""

    def rungs(self, max_epochs: int) -> list[int]:
        """Returns none."""
        return []

    def stop(self, epoch: int, values: dict[int, float]) -> set[int]:
        """Returns none."""
        return set()


@dataclass(kw_only=True)
class Asha:
    """Successive halving (Jamieson and Talwalkar 2016; in its asynchronous form Li et al. 2020).

    After a rung, only the best of all trials that ever reached it go on, one in `reduction`; what is stopped is not
    taken up again. Rungs lie at max_epochs / reduction, max_epochs / reduction² and so on, down to `min_epochs`.

    The chance to go on does not fall in a long search: a trial's rank among all is as likely high as low. But few are
    trained to the end, of 64 trials with three rungs 64 / 27, and more only where the sampler gets better. What another
    worker still trains is not counted before it is told, so several workers are more lenient: of recorded courses on
    the digits, 64 in batches of 16, one worker trained 2.4 to the end on average, two 3.1 and four 4.0.
    """

    history: History
    """What former trials reached."""
    maximize: bool = False
    """Whether higher values are better."""
    reduction: float = 3.0
    """One trial in so many goes on, > 1."""
    min_epochs: int = 1
    """No trial stops before, >= 1."""

    def __post_init__(self) -> None:
        if not self.reduction > 1:
            raise UserError(f"{KEY}.reduction: {self.reduction:g} is not accepted; use a number above 1")
        if self.min_epochs < 1:
            raise UserError(f"{KEY}.min_epochs: {self.min_epochs} is not accepted; use 1 or more")

    def rungs(self, max_epochs: int) -> list[int]:
        """Returns the epochs to decide after, in order.

        >>> Asha(history=Nothing()).rungs(40)
        [1, 4, 13]
        """
        rungs: list[int] = []
        epochs = max_epochs / self.reduction
        while round(epochs) >= self.min_epochs and epochs >= 0.5:
            rungs.append(round(epochs))
            epochs /= self.reduction
        return sorted(set(rungs) - {max_epochs})

    def stop(self, epoch: int, values: dict[int, float]) -> set[int]:
        """Returns those that are not among the best."""
        return self.cut({**self.history.at(epoch), **values}, values)

    def cut(self, everyone: dict[int, float], running: dict[int, float]) -> set[int]:
        """Returns which of `running` are not among the best of `everyone`; at least one of everyone goes on."""
        kept = max(1, math.floor(len(everyone) / self.reduction + 1e-9))
        order = sorted(everyone, key=lambda number: (worth(everyone[number], self.maximize), number))
        ended = {number for number, value in running.items() if not math.isfinite(value)}
        return ended | (set(running) - set(order[:kept]))


@dataclass(kw_only=True)
class Hyperband(Asha):
    """Brackets of successive halving that begin to cut at different rungs (Li et al. 2018).

    A trial's bracket follows from its number, in the proportions of the paper: with s + 1 rungs to pass it takes
    ceil((S + 1) / (s + 1) · reduction^s) of every round. A trial that was cut off and is asked again keeps its bracket.
    Trials are compared within theirs.
    """

    asked: list[int] = field(default_factory=list, init=False)
    """The rungs that `rungs` returned last."""

    def stop(self, epoch: int, values: dict[int, float]) -> set[int]:
        """Returns those that are not among the best of their bracket."""
        everyone, firsts = {**self.history.at(epoch), **values}, self.history.firsts()
        ended = {number for number, value in values.items() if not math.isfinite(value)}
        brackets = {number: self.bracket(firsts.get(number, number)) for number in everyone}
        for bracket in {brackets[number] for number in values}:
            if bracket >= bisect_right(self.asked, epoch):
                continue  # this bracket begins to cut at a later rung
            peers = {number: value for number, value in everyone.items() if brackets[number] == bracket}
            ended |= self.cut(peers, {number: value for number, value in values.items() if number in peers})
        return ended

    def rungs(self, max_epochs: int) -> list[int]:
        """Returns the rungs of the bracket that cuts earliest."""
        self.asked = super().rungs(max_epochs)
        return self.asked

    def bracket(self, number: int) -> int:
        """Returns the bracket of a point by its first trial: how many rungs it passes before it may be cut.

        >>> judge = Hyperband(history=Nothing())
        >>> judge.rungs(9)
        [1, 3]
        >>> [judge.bracket(number) for number in range(17)]
        [0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 1, 1, 1, 1, 2, 2, 2]
        """
        deepest = len(self.asked)
        shares = [math.ceil((deepest + 1) / (s + 1) * self.reduction**s) for s in range(deepest, -1, -1)]
        place = number % sum(shares)
        for bracket, share in enumerate(shares):
            if place < share:
                return bracket
            place -= share
        raise AssertionError("the shares cover a round")


@dataclass(kw_only=True)
class Median:
    """The median stopping rule (Golovin et al. 2017): a trial ends where half of the complete ones were better."""

    history: History
    """What former trials reached."""
    maximize: bool = False
    """Whether higher values are better."""
    startup: int = 5
    """Complete trials before anything is stopped, >= 1."""
    min_epochs: int = 1
    """No trial stops before, >= 1."""

    def __post_init__(self) -> None:
        for name in ("startup", "min_epochs"):
            if getattr(self, name) < 1:
                raise UserError(f"{KEY}.{name}: {getattr(self, name)} is not accepted; use 1 or more")

    def rungs(self, max_epochs: int) -> list[int]:
        """Returns every epoch but the last."""
        return list(range(self.min_epochs, max_epochs))

    def stop(self, epoch: int, values: dict[int, float]) -> set[int]:
        """Returns those that are worse than the median of the complete trials after the same epoch."""
        former = [value for value in self.history.at(epoch, complete=True).values() if math.isfinite(value)]
        ended = {number for number, value in values.items() if not math.isfinite(value)}
        if len(former) < self.startup:
            return ended
        middle = worth(statistics.median(former), self.maximize)
        return ended | {number for number, value in values.items() if worth(value, self.maximize) > middle}


PRUNERS: dict[str, Callable[..., Judge]] = {
    "asha": Asha,
    "hyperband": Hyperband,
    "median": Median,
    "none": Nobody,
}
"""Name -> judge; its fields without `history` and `maximize` are the arguments."""


def build_judge(choice: Choice, history: History, *, maximize: bool) -> Judge:
    """Builds the judge of a study.

    Raises:
        UserError: It or an argument is unknown, or an argument out of range.
    """
    if choice.name not in PRUNERS:
        raise unknown(KEY, choice.name, PRUNERS)
    build = PRUNERS[choice.name]
    accepted = [name for name in inspect.signature(build).parameters if name not in ("history", "maximize")]
    for name, value in choice.arguments.items():
        if name not in accepted:
            guess = nearest(name, accepted)
            hint = f"did you mean {guess}?" if guess else f"accepted: {', '.join(accepted) or 'no argument'}"
            raise UserError(f"{KEY}.{name}: {choice.name} has no such argument; {hint}")
        whole = name != "reduction"
        if isinstance(value, bool) or not isinstance(value, int if whole else int | float):
            raise UserError(f"{KEY}.{name}: {value!r} is not accepted; use {'an integer' if whole else 'a number'}")
    return build(history=history, maximize=maximize, **choice.arguments)


@dataclass(frozen=True, kw_only=True)
class Rungs:
    """When a judge is asked in one training.

    >>> rungs = Rungs(judge=Asha(history=Nothing()), max_epochs=40)
    >>> rungs.epochs, rungs.due(4, before=3), rungs.due(5, before=4), rungs.due(15, before=10)
    ([1, 4, 13], True, False, True)
    """

    judge: Judge
    """Who decides."""
    max_epochs: int
    """Length of the training."""

    @classmethod
    def of(cls, judge: Judge, trainer: Mapping[str, Any]) -> Rungs:
        """Returns the rungs of a training by the trainer's settings; none where they leave its length open."""
        return cls(judge=judge, max_epochs=max(0, int(trainer.get("max_epochs") or 0)))

    @cached_property
    def epochs(self) -> list[int]:
        """The epochs after which it wants to be asked."""
        return self.judge.rungs(self.max_epochs)

    def due(self, epoch: int, before: int) -> bool:
        """Says whether to ask after the validation of an epoch, the former one being that of another.

        Not every epoch need have one: a rung waits for the next. After the last epoch nothing is left to decide.
        """
        return epoch < self.max_epochs and any(before < rung <= epoch for rung in self.epochs)


def worth(value: float, maximize: bool) -> float:
    """Returns a number that is smaller for better values; what is not a number is worst.

    >>> worth(0.9, True), worth(0.9, False), worth(float("nan"), True)
    (-0.9, 0.9, inf)
    """
    if math.isnan(value):
        return math.inf
    return -value if maximize else value
