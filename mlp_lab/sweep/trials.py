"""The trials of a study as one worker asks, tells and rescues them, so that none is lost, doubled or stuck.

A trial that was cut off (Ctrl-C, a killed process, a lost machine) is failed, and its point waits in the study to be
asked again. A FAIL with the user attribute `error` failed by itself; one without was cut off. Every point that waits
has the attribute `origin`, such as `retry of 17`: should two workers rescue the same trial at once, the later copy is
dropped when it is asked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from datetime import datetime
from typing import Any

from optuna import Study, Trial, create_trial
from optuna.exceptions import UpdateFinishedTrialError
from optuna.storages import fail_stale_trials
from optuna.trial import FrozenTrial, TrialState

from mlp_lab.sweep.facts import (
    ATTEMPT,
    DOUBLE,
    ERROR,
    FIRST,
    LOST,
    ORIGIN,
    SEED,
    WORKER,
    Counts,
    Cut,
    count_trials,
    params_of,
)
from mlp_lab.sweep.interrupts import uninterrupted
from mlp_lab.sweep.runs import Outcome, Point
from mlp_lab.sweep.samplers import Maker
from mlp_lab.sweep.settings import LARGEST_SEED
from mlp_lab.sweep.space import Space
from mlp_lab.sweep.storage import GRACE, quiet
from mlp_lab.sweep.told import attributes, fault, reports, worst_known
from mlp_lab.sweep.transactions import joint
from mlp_lab.sweep.workers import BEAT, Lease, alive, identity

GRID = ("grid_id", "search_space")  # what keeps a point's place in a grid


class Trials:
    """Asks a study for points and tells it what became of them.

    Args:
        study: The study.
        space: Its space.
        maker: Makes the sampler of a batch.
        lease: Says that this worker lives.
        seed: Seed of the first trial's run.
        seeds: Runs per trial, so that no two trials share a seed.
        retries: How often a trial that was cut off before it got to a new checkpoint is asked again.
        only_complete: Whether the sampler learns from complete trials alone.
        written: Returns when the newest checkpoint of each point was written, by seed.
    """

    def __init__(
        self,
        study: Study,
        space: Space,
        maker: Maker,
        lease: Lease,
        *,
        seed: int = 0,
        seeds: int = 1,
        retries: int = 2,
        only_complete: bool = False,
        written: Callable[[], Mapping[int, float]] = dict,
    ) -> None:
        self.study, self.space, self.maker, self.lease = study, space, maker, lease
        self.seed, self.seeds, self.retries, self.only_complete = seed, seeds, retries, only_complete
        self.written = written
        self.maximize = [direction.name == "MAXIMIZE" for direction in study.directions]
        self.worker = identity()
        self.storage = lease.storage
        self.open: dict[int, Trial] = {}
        """Trials that are asked and not told, by number."""
        self.exhausted = False
        """Whether the sampler has said that it has no more points."""

    # ---- ask --------------------------------------------------------------------------------------------------------

    def ask(self, count: int) -> list[Point]:
        """Asks for a batch of points; those that wait come first."""
        points: list[Point] = []
        while len(points) < count:
            point = self._ask(is_first=not points)
            points += [point] if point else []
        return points

    @uninterrupted()
    def _ask(self, *, is_first: bool) -> Point | None:
        """Asks for a point; None where another worker has it."""
        with quiet():
            trial = self.study.ask()
        with joint(self.storage):
            self.lease.add(trial._trial_id)
            self.open[trial.number] = trial
            trial.set_user_attr(WORKER, self.worker)
        if is_first:
            self.study.sampler = self.maker(trial.number)
        if self._is_double(trial):
            self._fail(trial.number, DOUBLE)
            return None
        with quiet(), joint(self.storage):
            settings = self.space.suggest(trial)
            seed = trial.user_attrs.get(SEED)  # a retry has that of its first trial
            if seed is None:
                seed = (self.seed + self.seeds * int(trial.user_attrs.get(FIRST, trial.number))) % (LARGEST_SEED + 1)
                trial.set_user_attr(SEED, seed)
        return Point(number=trial.number, seed=seed, settings=settings)

    def _is_double(self, trial: Trial) -> bool:
        origin = trial.user_attrs.get(ORIGIN)
        trials = self.study.get_trials(deepcopy=False) if origin else []
        return any(one.number < trial.number and one.user_attrs.get(ORIGIN) == origin for one in trials)

    # ---- tell -------------------------------------------------------------------------------------------------------

    @uninterrupted()
    def tell(self, outcome: Outcome) -> FrozenTrial | None:
        """Stores an outcome; returns the trial, or None where it came too late or for no open trial."""
        trial = self.open.get(outcome.number)
        if trial is None:
            return None
        error = fault(outcome, len(self.maximize))
        try:
            with joint(self.storage):
                for epoch, value in reports(outcome, len(self.maximize)).items():
                    self.storage.set_trial_intermediate_value(trial._trial_id, epoch, value)
                for name, value in attributes(outcome, error).items():
                    trial.set_user_attr(name, value)
                self._finish(trial, outcome, failed=error is not None)
        except UpdateFinishedTrialError:  # another worker took this one for dead
            return None
        finally:
            self._close(outcome.number)
        return self.storage.get_trial(trial._trial_id)

    def _finish(self, trial: Trial, outcome: Outcome, *, failed: bool) -> None:
        state: TrialState | None = TrialState.COMPLETE
        values: Sequence[float] | None = outcome.values
        if failed:
            state, values = TrialState.FAIL, None
        elif outcome.state == "diagnosed":
            values = self._worst(outcome) if self.only_complete else None
            state = TrialState.COMPLETE if values else TrialState.PRUNED
        elif outcome.state == "pruned":
            state, values = TrialState.PRUNED, None
        if state == TrialState.COMPLETE:  # under every sampler: gp wants it of all, whichever sampler asked them
            trial.set_constraint("diagnosis", 1.0 if outcome.state == "diagnosed" else -1.0)
        with quiet(), self._stoppable():
            self.study.tell(trial.number, values, state=state, skip_if_finished=True)

    def _worst(self, outcome: Outcome) -> list[float] | None:
        complete = self.study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        return worst_known(outcome, [one.values for one in complete], self.maximize)

    @contextmanager
    def _stoppable(self) -> Iterator[None]:
        """Lets a sampler that has no more points stop the study, which Optuna knows only of its own loop."""
        self.study._thread_local.in_optimize_loop = True
        try:
            yield
        finally:
            self.study._thread_local.in_optimize_loop = False
            self.exhausted = self.exhausted or self.study._stop_flag

    @uninterrupted()
    def abandon(self, reason: str) -> Cut:
        """Fails what is asked and not told, to be asked again; returns how many will be."""
        numbers = list(self.open)
        for number in numbers:
            self._fail(number, reason)
        again, written = [trial for trial, _ in self._lost() if trial.number in numbers], self.written()
        self.enqueue_lost()
        going_on = sum(trial.user_attrs.get(SEED) in written for trial in again)
        return Cut(len(again) - going_on, going_on)

    def _fail(self, number: int, reason: str) -> None:
        self._lose(self.open[number]._trial_id, reason)
        self._close(number)

    def _lose(self, trial_id: int, reason: str) -> None:
        try:
            self.storage.set_trial_user_attr(trial_id, LOST, reason)
            self.storage.set_trial_state_values(trial_id, TrialState.FAIL)
        except UpdateFinishedTrialError:
            pass  # it was told, or failed by another worker, in the meantime

    def _close(self, number: int) -> None:
        self.lease.remove(self.open.pop(number)._trial_id)

    # ---- rescue -----------------------------------------------------------------------------------------------------

    @uninterrupted()
    def rescue(self) -> int:
        """Fails the trials of dead workers and lets their points wait; returns how many there were."""
        with quiet():
            fail_stale_trials(self.study)
        for trial in self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            if trial.number not in self.open and self._is_dead(trial):
                self._lose(trial._trial_id, "its worker died")
        return self.enqueue_lost()

    def _is_dead(self, trial: FrozenTrial) -> bool:
        worker = trial.user_attrs.get(WORKER)
        living = alive(worker) if worker else None
        if living is not None:
            return not living
        grace = GRACE * self.lease.interval
        beat = trial.system_attrs.get(BEAT)
        if beat is None and worker is not None:
            return False  # the storage's own heartbeat tells
        start = trial.datetime_start
        now = datetime.now().timestamp()
        return now - (beat if beat is not None else start.timestamp() if start else now) > grace

    def enqueue_lost(self) -> int:
        """Lets every point whose trial was cut off wait to be asked again, once; returns how many are new."""
        lost = self._lost()
        for trial, attempt in lost:
            attributes = {FIRST: int(trial.user_attrs.get(FIRST, trial.number)), ATTEMPT: attempt}
            attributes |= {SEED: trial.user_attrs[SEED]} if SEED in trial.user_attrs else {}
            system = {name: trial.system_attrs[name] for name in GRID if name in trial.system_attrs}
            self.enqueue(params_of(trial), f"retry of {trial.number}", attributes, system)
        return len(lost)

    def _lost(self) -> list[tuple[FrozenTrial, int]]:
        """Returns the trials that were cut off and may be asked again, with the number of that attempt."""
        trials = self.study.get_trials(deepcopy=False)
        origins = {trial.user_attrs.get(ORIGIN) for trial in trials}
        written, lost = self.written(), []
        for trial in trials:
            facts, start = trial.user_attrs, trial.datetime_start
            again = facts.get(LOST) == DOUBLE or f"retry of {trial.number}" in origins
            if trial.state == TrialState.FAIL and params_of(trial) and ERROR not in facts and not again:
                advanced = start is not None and written.get(facts.get(SEED, -1), 0.0) > start.timestamp()
                attempt = int(facts.get(ATTEMPT, 0)) + (not advanced)  # one that wrote a checkpoint does not count
                lost += [(trial, attempt)] if attempt <= self.retries else []
        return lost

    @uninterrupted()
    def unfinished(self) -> set[int]:
        """Returns the seeds of the points that are being trained, by whichever worker, or are to be trained again."""
        trials = self.study.get_trials(deepcopy=False, states=(TrialState.RUNNING, TrialState.WAITING))
        trials += [trial for trial, _ in self._lost()]
        return {trial.user_attrs[SEED] for trial in trials if SEED in trial.user_attrs}

    @uninterrupted()
    def enqueue(
        self,
        params: Mapping[str, Any],
        origin: str,
        attributes: Mapping[str, Any] | None = None,
        system: Mapping[str, Any] | None = None,
    ) -> None:
        """Lets a point wait to be asked, unless one of the same origin is known."""
        if any(one.user_attrs.get(ORIGIN) == origin for one in self.study.get_trials(deepcopy=False)):
            return
        self.study.add_trial(
            create_trial(
                state=TrialState.WAITING,
                user_attrs={ORIGIN: origin, **(attributes or {})},
                system_attrs={"fixed_params": dict(params), **(system or {})},
            )
        )

    def counts(self) -> Counts:
        """Counts the trials; those that are open here do not count as running."""
        counts = count_trials(self.study)
        return counts._replace(running=counts.running - len(self.open))
