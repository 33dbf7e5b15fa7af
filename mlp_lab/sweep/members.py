"""What is noted of the members of a stack while it trains, and what it is decided by."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import asdict
from typing import Any

import lightning as L

from mlp_lab.population.diagnosis import PopulationDiagnostics
from mlp_lab.population.module import PopulationModule
from mlp_lab.sweep.chunks import ABSENT
from mlp_lab.sweep.pruning import Rungs
from mlp_lab.sweep.runs import Outcome, Point
from mlp_lab.sweep.serial import Alone, Course, ends_epoch, last_before, without_value


class Members(L.Callback):
    """Notes every member's validation, and asks the judge at its rungs about all trials at once.

    It is part of a checkpoint: a stack that goes on knows what it had reached and decided.

    Args:
        points: The trials; those that are `ABSENT` leave the stack before its first step.
        backend: Knows the metrics, the seeds per trial and the verdicts that end one.
        rungs: Who decides, and when.
        tell: Told of trials as they end.
        diagnostics: Every member's verdicts, judged before.
    """

    def __init__(
        self,
        points: Sequence[Point],
        backend: Alone,
        rungs: Rungs,
        tell: Callable[[Outcome], None],
        diagnostics: PopulationDiagnostics,
    ) -> None:
        self.points, self.backend, self.rungs = points, backend, rungs
        self.tell, self.diagnostics = tell, diagnostics
        self.courses = [[Course() for _ in range(backend.seeds)] for _ in points]
        """Per trial, one course per seed; members are numbered trial by trial."""
        self.told = {trial for trial, point in enumerate(points) if point.number == ABSENT}
        self.begun = False
        """Whether it trains: whatever was to be read of a checkpoint has been."""
        self._start, self._before = time.monotonic(), 0.0

    @property
    def left(self) -> list[int]:
        """The trials that have not ended."""
        return [trial for trial in range(len(self.points)) if trial not in self.told]

    def state_dict(self) -> dict[str, Any]:
        """Returns the courses so far, and the time they took."""
        courses = [[asdict(course) for course in courses] for courses in self.courses]
        return {"courses": courses, "seconds": self._seconds()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restores what `state_dict` returned."""
        self.courses = [[Course(**course) for course in courses] for courses in state_dict["courses"]]
        self._before = state_dict["seconds"]

    def _seconds(self) -> float:
        return self._before + time.monotonic() - self._start

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Where a stack goes on: tells what was decided before, and lets those leave that are not asked here."""
        assert isinstance(pl_module, PopulationModule)
        self.begun = True
        before = sum(pl_module.stack_optimizer.active)
        for trial, courses in enumerate(self.courses):
            if trial in self.told:
                for course in courses:
                    course.state = "pruned"  # for this stack it has ended
            if any(course.state != "complete" for course in courses):
                self._end(trial, pl_module)
        after = sum(pl_module.stack_optimizer.active)
        if not after:
            trainer.should_stop = True
        elif after < before:
            pl_module.compact()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Notes the scores of the active members, and stops trials."""
        assert isinstance(pl_module, PopulationModule)
        if trainer.sanity_checking:
            return
        epoch, seeds = trainer.current_epoch + 1, self.backend.seeds
        active = pl_module.stack_optimizer.active
        names = [name.partition("/")[2] for name in self.backend.metrics]
        before = last_before(epoch, {one for courses in self.courses for course in courses for one in course.reports})
        for place, number in enumerate(pl_module.numbers):
            course = self.courses[number // seeds][number % seeds]
            if course.state == "complete" and number not in pl_module.failed and not course.over:
                course.reports[epoch] = [pl_module.scores[number][name] for name in names]
                course.epochs, course.over = epoch, not active[place]  # by early stopping
                if not before and (reason := without_value(self.backend.metrics, course.reports[epoch])):
                    course.state, course.error = "failed", reason
                    self._end(number // seeds, pl_module)
        self.note_failures(pl_module)
        self._diagnose(pl_module)
        if ends_epoch(trainer) and self.rungs.due(epoch, before):
            self._decide(epoch, pl_module)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Counts the epochs of what goes on: not all need be validated."""
        assert isinstance(pl_module, PopulationModule)
        seeds = self.backend.seeds
        for number, active in zip(pl_module.numbers, pl_module.stack_optimizer.active, strict=True):
            course = self.courses[number // seeds][number % seeds]
            if active and course.state == "complete":
                course.epochs = trainer.current_epoch + 1

    def note_failures(self, module: PopulationModule) -> None:
        """A trial ends with its first member that is not finite."""
        seeds = self.backend.seeds
        for number, step in module.failed.items():
            trial = number // seeds
            if all(course.state == "complete" for course in self.courses[trial]):
                course = self.courses[trial][number % seeds]
                course.state = "diagnosed" if "nonfinite" in self.backend.prune else "failed"
                course.error = f"the loss is not finite at step {step}"
                course.verdicts = [{"code": "nonfinite", "severity": "critical", "step": step}]
                self._end(trial, module)

    def _diagnose(self, module: PopulationModule) -> None:
        """Keeps the verdicts of what still trains, and ends trials on the codes of `diagnosis.prune`."""
        seeds = self.backend.seeds
        for number, verdicts in enumerate(self.diagnostics.verdicts):
            course = self.courses[number // seeds][number % seeds]
            if course.state == "complete" and not course.over:
                course.verdicts = [one.to_dict() for one in verdicts]
        for trial, courses in enumerate(self.courses):
            codes = {verdict["code"] for course in courses for verdict in course.verdicts}
            if codes & set(self.backend.prune) and all(course.state == "complete" for course in courses):
                for course in courses:
                    course.state = "diagnosed"
                self._end(trial, module)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Keeps the verdicts on the whole course, and notes who has failed since the last validation."""
        assert isinstance(pl_module, PopulationModule)
        self.note_failures(pl_module)
        seeds = self.backend.seeds
        for number, verdicts in enumerate(self.diagnostics.verdicts):
            course = self.courses[number // seeds][number % seeds]
            if course.state == "complete":
                course.verdicts = [one.to_dict() for one in verdicts]

    def _decide(self, epoch: int, module: PopulationModule) -> None:
        values = {}
        for trial, point in enumerate(self.points):
            courses = self.courses[trial]
            if all(course.state == "complete" and epoch in course.reports for course in courses):
                values[point.number] = sum(course.reports[epoch][0] for course in courses) / len(courses)
        for number in self.rungs.judge.stop(epoch, values) if values else ():
            trial = next(index for index, point in enumerate(self.points) if point.number == number)
            for course in self.courses[trial]:
                course.state = "pruned"
            self._end(trial, module)

    def _end(self, trial: int, module: PopulationModule) -> None:
        """Lets all members of a trial stop."""
        seeds = self.backend.seeds
        for place, number in enumerate(module.numbers):
            if number // seeds == trial:
                module.stack_optimizer.active[place] = False
        self.end(trial)

    def end(self, trial: int) -> None:
        """Tells a trial, once."""
        if trial not in self.told:
            self.told.add(trial)
            self.tell(self.backend.outcome(self.points[trial].number, self.courses[trial], self._seconds()))

    def fail(self, error: BaseException) -> None:
        """Ends what is left with an error."""
        for trial in self.left:
            self.courses[trial][0].state = "failed"
            self.courses[trial][0].error = " ".join(f"{type(error).__name__}: {error}".split())
            self.end(trial)
