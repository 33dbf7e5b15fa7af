"""Trials that are trained together: those of a batch that can be stacked, seeds of a trial side by side."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Mapping, Sequence

import lightning as L

from mlp_lab.errors import NonFiniteError, UserError
from mlp_lab.population.module import PopulationModule
from mlp_lab.population.optimizers import RULES
from mlp_lab.population.stopping import MemberStop
from mlp_lab.sweep.runs import Judge, Outcome, Point
from mlp_lab.sweep.serial import Alone, Builder, Course, Run
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
    """

    def __init__(
        self,
        points: Sequence[Point],
        courses: Sequence[Sequence[Course]],
        backend: Together,
        judge: Judge,
        rungs: Sequence[int],
        tell: Callable[[int], None],
    ) -> None:
        self.points, self.courses, self.backend = points, courses, backend
        self.judge, self.rungs, self.tell = judge, rungs, tell

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
        if together:
            alone += self._train_stack(together, runs, judge, tell)
        super().train(alone, judge, tell)

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
        watch = Members(points, courses, self, judge, rungs, end)
        settings = {**first.trainer, "gradient_clip_val": None, "callbacks": [watch]}
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
    return isinstance(error, MemoryError) or "out of memory" in str(error)
