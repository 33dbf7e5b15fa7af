"""Trials that are trained together: those of a batch that can be stacked, seeds of a trial side by side."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import lightning as L
import torch

from mlp_lab.diagnostics.settings import DEFAULT_GROUPS
from mlp_lab.errors import NonFiniteError, UserError
from mlp_lab.population.diagnosis import ALONE, PopulationDiagnostics
from mlp_lab.population.memory import SHARE, chunks, free_bytes, member_bytes
from mlp_lab.population.module import PopulationModule
from mlp_lab.population.optimizers import RULES
from mlp_lab.population.stopping import MemberStop
from mlp_lab.sweep.runs import Judge, Outcome, Point
from mlp_lab.sweep.serial import Alone, Builder, Course, Run, Silence
from mlp_lab.training.schedules import SCHEDULES

# What members of a population may each have their own of.
FREE = ("depth", "width", "activation", "init", "bias", "dropout", "input_dropout", "label_smoothing", "max_norm")
FREE_GROUPS = ("model.optimizer.", "model.schedule.")
CLIP = "trainer.gradient_clip_val"


class Members(L.Callback):
    """Notes every member's validation, and asks the judge at its rungs about all trials at once.

    Args:
        points: The trials.
        courses: Per trial, one course per seed; members are numbered trial by trial.
        backend: Knows the metrics.
        judge: Decides.
        rungs: The epochs after which it is asked.
        tell: Told of trials as they end.
        diagnostics: Every member's verdicts, judged before.
    """

    def __init__(
        self,
        points: Sequence[Point],
        courses: Sequence[Sequence[Course]],
        backend: Together,
        judge: Judge,
        rungs: Sequence[int],
        tell: Callable[[int], None],
        diagnostics: PopulationDiagnostics,
    ) -> None:
        self.points, self.courses, self.backend = points, courses, backend
        self.judge, self.rungs, self.tell, self.diagnostics = judge, rungs, tell, diagnostics

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Notes the scores of the active members, and stops trials."""
        assert isinstance(pl_module, PopulationModule)
        if trainer.sanity_checking:
            return
        epoch, seeds = trainer.current_epoch + 1, self.backend.seeds
        active = pl_module.stack_optimizer.active
        names = [name.partition("/")[2] for name in self.backend.metrics]
        for place, number in enumerate(pl_module.numbers):
            course = self.courses[number // seeds][number % seeds]
            if course.state == "complete" and number not in pl_module.failed and not course.over:
                course.reports[epoch] = [pl_module.scores[number][name] for name in names]
                course.epochs, course.over = epoch, not active[place]  # by early stopping
        self._note_failures(pl_module)
        self._diagnose(pl_module)
        if epoch in self.rungs:
            self._decide(epoch, pl_module)

    def _note_failures(self, module: PopulationModule) -> None:
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
        """Keeps the verdicts on the whole course."""
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
        for number in self.judge.stop(epoch, values) if values else ():
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
        self.tell(trial)


class Together(Alone):
    """The backend that trains a batch as populations; what cannot be stacked is trained alone.

    Args:
        builder: Builds the runs.
        batch: Trials that are asked together.
        metrics: The metrics of the study.
        maximize: Which of them are better when they are higher.
        seeds: Runs per trial.
        prune: Codes of verdicts that end a trial.
    """

    def __init__(
        self,
        builder: Builder,
        *,
        batch: int,
        metrics: Sequence[str],
        maximize: Sequence[bool],
        seeds: int = 1,
        prune: Sequence[str] = (),
    ) -> None:
        super().__init__(builder, metrics=metrics, maximize=maximize, seeds=seeds, prune=prune)
        self.batch = batch

    def train(self, points: list[Point], judge: Judge, tell: Callable[[Outcome], None]) -> None:
        """Trains the points in groups that can be stacked."""
        groups: dict[str, list[Point]] = {}
        for point in points:
            groups.setdefault(group_key(point.settings), []).append(point)
        for group in groups.values():
            self._train_group(group, judge, tell)

    def _train_group(self, points: list[Point], judge: Judge, tell: Callable[[Outcome], None]) -> None:
        alone: list[Point] = []
        together: list[Point] = []
        runs: list[Run] = []
        for point in points:
            try:
                built = [self.builder.build(point.settings, point.seed + seed) for seed in range(self.seeds)]
            except UserError as error:
                course = Course(state="failed", error=str(error))
                tell(self.outcome(point.number, [course], 0.0))
                continue
            if stackable(built[0]):
                together.append(point)
                runs += built
            else:
                alone.append(point)
        for part in self._parts(together, runs):
            chosen = [run for place in part for run in runs[place * self.seeds : (place + 1) * self.seeds]]
            alone += self._train_stack([together[place] for place in part], chosen, judge, tell)
        super().train(alone, judge, tell)

    def _parts(self, points: Sequence[Point], runs: Sequence[Run]) -> list[list[int]]:
        """Splits trials into parts whose members fit into the free memory."""
        free = free_bytes("cuda" if torch.cuda.is_available() else "cpu")
        everything = [list(range(len(points)))] if points else []
        if free is None or not points:
            return everything
        each = [
            member_bytes(
                run.module.model,
                run.data.batch_size,
                optimizer=run.module.optimizer_config.name,
                momentum=run.module.optimizer_config.momentum,
            )
            for run in runs
        ]
        sizes = [sum(each[place * self.seeds : (place + 1) * self.seeds]) for place in range(len(points))]
        return chunks(sizes, max(round(SHARE * free), max(sizes)))  # one alone is tried in any case

    def _train_stack(
        self, points: list[Point], runs: list[Run], judge: Judge, tell: Callable[[Outcome], None]
    ) -> list[Point]:
        """Trains a stack; returns those that turned out to need training alone."""
        start = time.monotonic()
        first = runs[0]
        try:
            clips = [run.trainer.get("gradient_clip_val") for run in runs]
            stop = first.early_stopping
            member_stop = MemberStop(**stop) if stop.get("patience") else None
            module = PopulationModule([run.module for run in runs], clip=clips, stop=member_stop)
        except UserError:
            return points
        courses = [[Course() for _ in range(self.seeds)] for _ in points]
        told: set[int] = set()

        def end(trial: int) -> None:
            if trial not in told:
                told.add(trial)
                tell(self.outcome(points[trial].number, courses[trial], time.monotonic() - start))

        rungs = judge.rungs(int(first.trainer.get("max_epochs") or 0))
        diagnostics = quiet_diagnostics(first.diagnostics)
        watch = Members(points, courses, self, judge, rungs, end, diagnostics)
        settings = {**first.trainer, "gradient_clip_val": None, "callbacks": [diagnostics, watch]}
        try:
            L.Trainer(**settings).fit(module, first.data)
        except NonFiniteError:
            watch._note_failures(module)
        except (MemoryError, RuntimeError) as error:
            if len(points) - len(told) < 2 or not _is_memory(error):
                return self._fail(points, courses, told, error, end)
            left = [trial for trial in range(len(points)) if trial not in told]
            for half in (left[: len(left) // 2], left[len(left) // 2 :]):
                self._train_group([points[trial] for trial in half], judge, tell)
            return []
        for trial in range(len(points)):
            end(trial)
        return []

    def _fail(
        self,
        points: list[Point],
        courses: list[list[Course]],
        told: set[int],
        error: BaseException,
        end: Callable[[int], None],
    ) -> list[Point]:
        for trial in range(len(points)):
            if trial not in told:
                courses[trial][0].state = "failed"
                courses[trial][0].error = " ".join(f"{type(error).__name__}: {error}".split())
            end(trial)
        return []


def quiet_diagnostics(settings: Mapping[str, Any]) -> PopulationDiagnostics:
    """Returns the diagnostics of a stack without their panels, and without what is measured of networks alone."""
    groups = [group for group in settings.get("groups", DEFAULT_GROUPS) if group not in ALONE]
    diagnostics = PopulationDiagnostics(settings.get("every_n_steps", 100), groups)
    diagnostics._report = Silence()  # type: ignore[assignment]
    return diagnostics


def group_key(settings: Mapping[str, object]) -> str:
    """Returns what points must share to be stacked.

    >>> group_key({"model.depth": 3, "model.norm": "layer", "model.optimizer.lr": 0.1})
    '{"model.norm": "layer"}'
    """
    free = {f"model.{name}" for name in FREE} | {CLIP}
    shared = {k: v for k, v in settings.items() if k not in free and not k.startswith(FREE_GROUPS)}
    return json.dumps(shared, sort_keys=True)


def stackable(run: Run) -> bool:
    """Says whether a population has a run's optimizer, schedule and clipping."""
    schedule = SCHEDULES[run.module.schedule_config.name]
    plain = run.trainer.get("gradient_clip_algorithm") in (None, "norm")
    return run.module.optimizer_config.name in RULES and schedule.factor is not None and plain


def _is_memory(error: BaseException) -> bool:
    """Says whether memory ran out; CUDA's allocator and those of the CPU have words of their own."""
    words = ("out of memory", "can't allocate memory", "not enough memory")
    return isinstance(error, MemoryError) or any(word in str(error) for word in words)
