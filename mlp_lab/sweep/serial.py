"""One trial after another, each under its own `L.Trainer`."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import lightning as L

from mlp_lab.data.module import TensorDataModule
from mlp_lab.diagnostics.callback import Diagnostics
from mlp_lab.errors import NonFiniteError, UserError
from mlp_lab.sweep.pruning import Rungs, worth
from mlp_lab.sweep.runs import Judge, Outcome, Point, State
from mlp_lab.training.checkpoints import EarlyStop, first_fault
from mlp_lab.training.module import MLPModule
from mlp_lab.training.slurm import one_process_trainer
from mlp_lab.training.threads import computing_with, one_process_threads

DECADES = "signal/decades"
"""A metric of the diagnostics: by how many powers of ten the gradient shrinks or grows from the last hidden layer to
the first, |`signal/span`| when it was last measured."""


@dataclass(frozen=True, kw_only=True)
class Run:
    """What one training needs."""

    module: MLPModule
    """The network with its loss, optimizer and schedule."""
    data: TensorDataModule
    """The data."""
    trainer: dict[str, Any]
    """Arguments of `L.Trainer`."""
    early_stopping: dict[str, Any]
    """Arguments of `EarlyStop`."""
    diagnostics: dict[str, Any]
    """Arguments of `Diagnostics`."""


class Builder(Protocol):
    """Builds runs."""

    def build(self, settings: Mapping[str, object], seed: int) -> Run:
        """Builds the run of a point's settings with a seed."""
        ...


class QuietDiagnostics(Diagnostics):
    """The diagnostics without their panels: a search keeps the verdicts with the trial."""

    def __init__(self, **settings: Any) -> None:
        super().__init__(**settings)
        self._report = Silence()  # type: ignore[assignment]


class Silence:
    """Stands where verdicts would be shown."""

    def start(self, *arguments: Any, **settings: Any) -> None: ...

    def update(self, *arguments: Any, **settings: Any) -> None: ...

    def close(self, *arguments: Any, **settings: Any) -> None: ...


@dataclass(kw_only=True)
class Course:
    """How one training went."""

    reports: dict[int, list[float]] = field(default_factory=dict)
    """Epoch, from 1, to the value of every metric."""
    state: State = "complete"
    """What ended it."""
    verdicts: list[dict[str, Any]] = field(default_factory=list)
    """The diagnosis."""
    epochs: int = 0
    """Epochs trained."""
    over: bool = False
    """Whether it has stopped by itself, where others of its batch go on."""
    error: str | None = None
    """Why it failed."""


class Watch(L.Callback):
    """Notes every validation, asks the judge at its rungs, and stops where a verdict says so.

    Args:
        course: Where it is noted.
        metrics: The metrics of the study.
        decide: Says whether the trial ends, of an epoch, that of the former validation, and the value.
        diagnostics: Whose verdicts count.
        prune: Codes that end a trial.
    """

    def __init__(
        self,
        course: Course,
        metrics: Sequence[str],
        decide: Callable[[int, int, float], bool],
        diagnostics: Diagnostics,
        prune: Sequence[str],
    ) -> None:
        self.course, self.metrics, self.decide = course, metrics, decide
        self.diagnostics, self.prune = diagnostics, prune

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Notes the metrics, and decides."""
        if trainer.sanity_checking:
            return
        epoch = trainer.current_epoch + 1
        values = [self._value(trainer, name) for name in self.metrics]
        before = last_before(epoch, self.course.reports)
        self.course.reports[epoch] = values
        if not before and (reason := without_value(self.metrics, values)):
            self.course.state, self.course.error, trainer.should_stop = "failed", reason, True
        elif any(one.code in self.prune for one in self.diagnostics.verdicts):
            self.course.state, trainer.should_stop = "diagnosed", True
        elif ends_epoch(trainer) and self.decide(epoch, before, values[0]):
            self.course.state, trainer.should_stop = "pruned", True

    def _value(self, trainer: L.Trainer, name: str) -> float:
        if name != DECADES:
            return float(trainer.callback_metrics[name])
        spans = [one.values["signal/span"] for one in self.diagnostics.evidence.steps if "signal/span" in one.values]
        return abs(spans[-1]) if spans else math.nan

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Counts the epochs."""
        self.course.epochs = trainer.current_epoch + 1


def without_value(metrics: Sequence[str], values: Sequence[float]) -> str | None:
    """Returns why a trial cannot be judged by the values of its first validation, None where it can.

    >>> without_value(["val/loss", "val/auroc"], [0.5, float("nan")])
    'val/auroc is nan in the first validation, for the validation rows hold one class'
    """
    for metric, value in zip(metrics, values, strict=True):
        if math.isnan(value) and metric != DECADES:  # which has no value before it is measured
            return first_fault(metric, value)
    return None


def last_before(epoch: int, reports: Iterable[int]) -> int:
    """Returns the last epoch before one that is among the reported ones, 0 where there is none."""
    return max((one for one in reports if one < epoch), default=0)


def ends_epoch(trainer: L.Trainer) -> bool:
    """Says whether the validation that runs is the last one of its epoch; by the clock, any may be."""
    batches, interval = trainer.fit_loop.epoch_loop.batch_progress.current.ready, trainer.val_check_batch
    return interval is None or batches + interval > trainer.num_training_batches


class Alone:
    """The backend that trains one trial at a time.

    Args:
        builder: Builds the runs.
        metrics: The metrics of the study.
        maximize: Which of them are better when they are higher.
        seeds: Runs per trial.
        prune: Codes of verdicts that end a trial.
    """

    batch = 1

    def __init__(
        self,
        builder: Builder,
        *,
        metrics: Sequence[str],
        maximize: Sequence[bool],
        seeds: int = 1,
        prune: Sequence[str] = (),
    ) -> None:
        self.builder, self.metrics, self.maximize = builder, tuple(metrics), tuple(maximize)
        self.seeds, self.prune = seeds, tuple(prune)

    def train(self, points: list[Point], judge: Judge, tell: Callable[[Outcome], None]) -> None:
        """Trains the points in their order; an error ends its trial, not the search."""
        for point in points:
            start = time.monotonic()
            courses = [self.course(point, point.seed, judge)]
            more = self.seeds - 1 if courses[0].state == "complete" else 0
            courses += [self.course(point, point.seed + seed, None) for seed in range(1, more + 1)]
            tell(self.outcome(point.number, courses, time.monotonic() - start))

    def course(self, point: Point, seed: int, judge: Judge | None) -> Course:
        """Trains one run of a point."""
        course = Course()
        try:
            run = self.builder.build(point.settings, seed)
            rungs = Rungs.of(judge, run.trainer) if judge is not None else None

            def decide(epoch: int, before: int, value: float) -> bool:
                if rungs is None or not rungs.due(epoch, before):
                    return False
                return point.number in rungs.judge.stop(epoch, {point.number: value})

            diagnostics = QuietDiagnostics(**run.diagnostics)
            watch = Watch(course, self.metrics, decide, diagnostics, self.prune)
            callbacks = [EarlyStop(**run.early_stopping), diagnostics, watch]
            try:
                trainer = one_process_trainer({**run.trainer, "callbacks": callbacks})
                with computing_with(one_process_threads(trainer, [run.module.model], run.data.batch_size)):
                    trainer.fit(run.module, run.data)
            finally:
                course.verdicts = [one.to_dict() for one in diagnostics.verdicts]
        except NonFiniteError as error:
            course.state = "diagnosed" if "nonfinite" in self.prune else "failed"
            course.error = str(error)
        except (UserError, MemoryError, RuntimeError, ValueError) as error:
            course.state, course.error = "failed", " ".join(f"{type(error).__name__}: {error}".split())
        return course

    def outcome(self, number: int, courses: Sequence[Course], seconds: float) -> Outcome:
        """Puts the courses of a trial's seeds together: mean and standard deviation of the best values."""
        ended = next((one for one in courses if one.state != "complete"), None)
        best = [self.best(one) for one in courses if one.reports]
        values = [statistics.fmean(column) for column in zip(*best, strict=True)]
        shared = [epoch for epoch in courses[0].reports if all(epoch in one.reports for one in courses)]
        several = len(courses) > 1 and len(best) > 1
        state = ended.state if ended is not None else "complete"
        return Outcome(
            number=number,
            state=state,
            values=values if state != "failed" else [],
            reports={epoch: statistics.fmean(one.reports[epoch][0] for one in courses) for epoch in shared},
            epochs=max(one.epochs for one in courses),
            seconds=seconds,
            verdicts=[verdict for one in courses for verdict in one.verdicts],
            error=ended.error if ended is not None else None,
            sd=[statistics.stdev(column) for column in zip(*best, strict=True)] if several else None,
        )

    def best(self, course: Course) -> list[float]:
        """Returns the best value of each metric over a run's validations."""
        columns = zip(*course.reports.values(), strict=True)
        return [
            min(column, key=lambda value: (math.isnan(value), worth(value, maximize)))
            for column, maximize in zip(columns, self.maximize, strict=True)
        ]
