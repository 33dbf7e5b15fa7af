"""The search: ask a batch of points, train it, tell each, until the budget is spent."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import optuna
from optuna import Study

from mlp_lab.errors import UserError
from mlp_lab.sweep.chunks import Chunks
from mlp_lab.sweep.interrupts import terminable, uninterrupted
from mlp_lab.sweep.progress import Progress, say
from mlp_lab.sweep.pruning import Nothing, build_judge
from mlp_lab.sweep.results import point_of, print_top, write_results
from mlp_lab.sweep.runs import Backend, Judge, Outcome, Point
from mlp_lab.sweep.samplers import ONLY_COMPLETE, Grid, Maker, sampler_maker
from mlp_lab.sweep.settings import SweepSettings
from mlp_lab.sweep.space import Space
from mlp_lab.sweep.storage import open_storage, storage_url
from mlp_lab.sweep.study import StudyHistory, open_study
from mlp_lab.sweep.trials import Trials
from mlp_lab.sweep.weights_and_biases import Dashboard, check_login
from mlp_lab.sweep.workers import Lease

STATUS_SECONDS = 10.0  # between lines after batches that say how far the search is
POLL_SECONDS = 0.5  # between looks at the last trials of other workers


def run_sweep(
    settings: SweepSettings,
    space: Space,
    backend: Backend,
    directory: Path,
    *,
    base: Mapping[str, Any] | None = None,
    data: Mapping[str, str] | None = None,
    directions: tuple[str, ...] = (),
    show: Callable[[str], None] = say,
) -> Study:
    """Searches until the budget is spent; called again, it goes on where it was.

    Args:
        settings: The sweep.
        space: What is searched.
        backend: Who trains.
        directory: Where storage, `trials.csv` and `best.yaml` are written.
        base: The resolved config that every trial starts from.
        data: `name`, `fingerprint` and `split` of its data, as `open_study` compares them.
        directions: minimize or maximize, one per metric; else those of the settings, or of what is better.
        show: Prints a line; left out, a terminal also has a live line.

    Returns:
        The Optuna study.

    Raises:
        UserError: The sampler, the pruner, a point or the storage is not usable, or the study is another one.
        KeyboardInterrupt: Ctrl-C or SIGTERM; finished trials are kept, and the others wait to be asked again.
    """
    check_login(settings.wandb)
    study, maker, enqueued = prepare(settings, space, directory, base=base, data=data, directions=directions)
    study_settings = settings.study
    maximize = study.directions[0].name == "MAXIMIZE"
    judge = build_judge(study_settings.pruner, StudyHistory(study), maximize=maximize)
    with Lease(study._storage, study_settings.heartbeat) as lease, terminable():
        trials = Trials(
            study,
            space,
            maker,
            lease,
            seed=settings.seed,
            seeds=settings.seeds,
            retries=study_settings.retries,
            only_complete=study_settings.sampler.name.rpartition(".")[2] in ONLY_COMPLETE,
            written=Chunks(directory).written,
        )
        for params, origin in zip(enqueued, origins(enqueued), strict=True):
            trials.enqueue(params, origin)
        search = Search(settings, space, backend, judge, trials, directory, base or {}, show)
        search.run()
    print_top(study, space, study_settings.metric, directory)
    return study


def prepare(
    settings: SweepSettings,
    space: Space,
    directory: Path,
    *,
    base: Mapping[str, Any] | None = None,
    data: Mapping[str, str] | None = None,
    directions: tuple[str, ...] = (),
) -> tuple[Study, Maker, list[dict[str, Any]]]:
    """Makes the study, or finds it again; the arguments are those of `run_sweep`.

    Returns:
        The study, the maker of its samplers, and the points to try first.

    Raises:
        UserError: The sampler, the pruner, a point or the storage is not usable, or the study is another one.
    """
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    study_settings = settings.study
    objectives = len(study_settings.metric)
    maker = sampler_maker(study_settings.sampler, space, settings.seed, objectives=objectives)
    enqueued = [space.to_params(point) for point in settings.enqueue]
    directions = directions or study_settings.direction or default_directions(study_settings.metric)
    build_judge(study_settings.pruner, Nothing(), maximize=False)  # refused before anything is made
    sampler = maker(0)
    if isinstance(sampler, Grid):
        _check_whole(enqueued, space)
    storage = open_storage(storage_url(study_settings.storage, directory), study_settings.heartbeat)
    directory.mkdir(parents=True, exist_ok=True)
    if study_settings.storage is None:
        _check_directory(directory, study_settings.name, optuna.get_all_study_names(storage))
    study = open_study(
        study_settings,
        space,
        storage,
        sampler,
        directions=directions,
        base=base or {},
        data=data,
        seeds=settings.seeds,
    )
    return study, maker, enqueued


class Search:
    """The loop of one worker; the arguments are those of `run_sweep`, made ready."""

    def __init__(
        self,
        settings: SweepSettings,
        space: Space,
        backend: Backend,
        judge: Judge,
        trials: Trials,
        directory: Path,
        base: Mapping[str, Any],
        show: Callable[[str], None],
    ) -> None:
        self.settings, self.space, self.backend, self.judge = settings, space, backend, judge
        self.trials, self.directory, self.base = trials, directory, base
        self.study = trials.study
        self.budget = trials_to_finish(settings, space)
        self.progress = Progress(self.study, settings.study.metric, self.budget, show)
        self.show, self.chunks = self.progress.show, Chunks(directory)
        self.dashboard = Dashboard(
            settings.wandb,
            self.study,
            settings.study.metric,
            base=base,
            directory=directory,
            budget=self.budget,
            show=self.show,
        )
        self.start = time.monotonic()

    def run(self) -> None:
        """Asks, trains and tells until the budget is spent; whatever ends it early, no trial stays open.

        Raises:
            KeyboardInterrupt: Ctrl-C or SIGTERM; the message says what is kept, and how to go on.
        """
        try:
            with self.progress:
                self._loop()
            self.progress.status()
        except BaseException as error:
            interrupted = _is_interrupt(error)
            cut = self.trials.abandon("interrupted" if interrupted else f"{type(error).__name__}: {error}")
            self._write()
            if interrupted:
                parts = [f"{self.trials.counts().finished} trials are kept", *filter(None, [cut.words()])]
                raise KeyboardInterrupt(f"{', '.join(parts)}: go on with the same command") from error
            raise

    def _loop(self) -> None:
        rescued = self.trials.rescue()
        before = self.trials.counts()
        if before.finished or rescued:
            again = f"; {rescued} that were cut off are asked again" if rescued else ""
            over = ""
            if self.budget is not None and before.finished >= self.budget:
                over = f", as many as asked for (--trials {before.finished + self.budget} goes on)"
            name = self.study.study_name
            self.show(f"going on with the study {name!r}: {before.finished} trials are finished{over}{again}")
        self.chunks.clean(self.trials.unfinished)
        for trial in self.dashboard.missing():
            self.dashboard.trial(trial, point_of(trial, self.space))
        self.dashboard.end_batch()
        while (count := self._next()) > 0:
            self._batch(count)
            self.trials.rescue()
            self.chunks.clean(self.trials.unfinished)
            self._write()
            self.progress.refresh()
            spent = self.budget is not None and self.progress.finished >= self.budget
            if not spent and time.monotonic() - self.progress.shown >= STATUS_SECONDS:
                self.progress.status()
        self._write()
        self.progress.refresh()

    def _batch(self, count: int) -> None:
        """Trains one batch."""
        points: dict[int, Point] = {}

        def tell(outcome: Outcome) -> None:
            with uninterrupted():
                trial = self.trials.tell(outcome)
                if trial is not None:
                    self.progress.trial(trial, points[outcome.number])
                    self.dashboard.trial(trial, points[outcome.number])

        asked = self.trials.ask(count)
        self.progress.begin(len(asked))
        points |= {point.number: point for point in asked}
        try:
            self.backend.train(asked, self.judge, tell)
            for number in list(self.trials.open):
                tell(_silent(number))
        finally:
            self.dashboard.end_batch()

    def _next(self) -> int:
        """Returns how many points to ask next; waits for other workers' last trials, should one of them die."""
        waited = False
        while True:
            if self.settings.minutes is not None and time.monotonic() - self.start > 60 * self.settings.minutes:
                return 0
            counts = self.trials.counts()
            missing = math.inf if self.budget is None else self.budget - counts.finished
            if missing <= 0:
                return 0
            free = min(missing - counts.running, self._left() + counts.waiting)
            if free > 0:
                return int(min(self.backend.batch, free))
            if counts.running <= 0:
                return 0  # the sampler is exhausted
            if not waited:
                self.show(f"waiting for {counts.running} trials of other workers")
                waited = True
            time.sleep(POLL_SECONDS)
            self.trials.rescue()

    def _left(self) -> float:
        """Returns how many points the sampler still has."""
        if isinstance(self.study.sampler, Grid):
            return self.study.sampler.left(self.study)
        return 0 if self.trials.exhausted else math.inf

    @uninterrupted()
    def _write(self) -> None:
        write_results(self.directory, self.study, self.space, self.base, self.settings.study.metric)


def trials_to_finish(settings: SweepSettings, space: Space) -> int | None:
    """Returns the budget, None where time is the only one; a grid has no more trials than its points."""
    budget = settings.trials
    if settings.study.sampler.name != "grid":
        return budget
    points = len(settings.enqueue) + math.prod(len(values) for values in space.grid().values())
    return min(budget or points, points)


def origins(points: Sequence[Mapping[str, Any]]) -> list[str]:
    """Returns what tells each point to try first from others: what it is, and how often it was there before.

    >>> origins([{"x": 1}, {"x": 1}])
    ['enqueue {"x": 1}', 'enqueue {"x": 1} again']
    """
    found: list[str] = []
    for point in points:
        origin = f"enqueue {json.dumps(point, sort_keys=True)}"
        while origin in found:
            origin += " again"
        found.append(origin)
    return found


def default_directions(metrics: tuple[str, ...]) -> tuple[str, ...]:
    """Returns the direction in which each metric is better.

    >>> default_directions(("val/loss", "val/accuracy"))
    ('minimize', 'maximize')
    """
    from mlp_lab.training.checkpoints import direction

    return tuple(f"{direction(metric)}imize" for metric in metrics)


def _check_directory(directory: Path, name: str, studies: Sequence[str]) -> None:
    """Refuses a second study where a first one keeps its results: its `trials.csv` would be overwritten."""
    if not studies and (directory / "trials.csv").exists():
        raise UserError(
            f"study.storage: {directory} holds trials.csv of a study that is no longer in study.db, and a new study "
            "would overwrite it; restore study.db from a copy, or use another --run.dir"
        )
    if studies and name not in studies:
        raise UserError(
            f"study.name: {directory} holds the study {studies[0]!r}, whose trials.csv would be overwritten; "
            f"use another --run.dir, or study.name: {studies[0]}"
        )


def _check_whole(points: list[dict[str, Any]], space: Space) -> None:
    """A grid has no value for a key that a point leaves out."""
    for params in points:
        for name in space.grid():
            if name not in params:
                raise UserError(f"enqueue: with a grid, a point needs every key; {name} is missing")


def _silent(number: int) -> Outcome:
    return Outcome(
        number=number,
        state="failed",
        values=[],
        reports={},
        epochs=0,
        seconds=0.0,
        verdicts=[],
        error="the backend told no outcome",
        sd=None,
    )


def _is_interrupt(error: BaseException) -> bool:
    """Says whether somebody wanted the program to end; Lightning turns Ctrl-C into an exit."""
    if isinstance(error, SystemExit):
        return isinstance(error.__context__, KeyboardInterrupt)
    return isinstance(error, KeyboardInterrupt) or type(error).__name__ == "SIGTERMException"
