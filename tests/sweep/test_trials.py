from __future__ import annotations

import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import optuna
import pytest
from optuna.trial import TrialState

from mlp_lab.sweep.samplers import sampler_maker
from mlp_lab.sweep.settings import Choice
from mlp_lab.sweep.space import Space
from mlp_lab.sweep.storage import open_storage, quiet, storage_url
from mlp_lab.sweep.study import StudyHistory
from mlp_lab.sweep.trials import Trials
from mlp_lab.sweep.workers import Lease
from tests.sweep.quadratic import SPACE, outcome

NAN = float("nan")


@pytest.fixture(params=["sqlite", "journal"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    return storage_url(None if request.param == "sqlite" else "journal:", tmp_path)


@pytest.fixture
def make(url: str) -> Iterator[Any]:
    """Makes workers on one study."""
    leases = []

    def worker(sampler: str = "random", **changes: Any) -> Trials:
        space = Space.read(SPACE)
        maker = sampler_maker(Choice(name=sampler), space, seed=0)
        with quiet():
            study = optuna.create_study(
                storage=open_storage(url, heartbeat=1), study_name="a", sampler=maker(0), load_if_exists=True
            )
        leases.append(Lease(study._storage, 1).__enter__())
        return Trials(study, space, maker, leases[-1], **changes)

    yield worker
    for lease in leases:
        lease.__exit__(None, None, None)


def states(trials: Trials) -> Counter[str]:
    return Counter(trial.state.name for trial in trials.study.get_trials())


def test_outcomes_are_told_in_the_words_of_the_study(make: Any) -> None:
    trials = make()
    points = trials.ask(5)
    assert [point.number for point in points] == [0, 1, 2, 3, 4]
    assert [point.seed for point in points] == [0, 1, 2, 3, 4]
    trials.tell(outcome(0, {1: 3.0, 2: 1.0}, sd=[0.1]))
    trials.tell(outcome(1, {1: 4.0}, state="pruned"))
    trials.tell(outcome(2, {}, state="failed", error="out of memory: too large"))
    trials.tell(outcome(3, {1: 5.0}, state="diagnosed", verdicts=[{"code": "dead_units"}]))
    trials.tell(outcome(4, {1: NAN}, values=[NAN]))
    found = trials.study.get_trials()
    assert [trial.state.name for trial in found] == ["COMPLETE", "PRUNED", "FAIL", "PRUNED", "FAIL"]
    assert [trial.value for trial in found] == [1.0, 4.0, None, 5.0, None]
    assert found[0].intermediate_values == {1: 3.0, 2: 1.0}
    assert found[0].user_attrs["sd"] == [0.1]
    assert found[2].user_attrs["error"] == "out of memory: too large"
    assert found[3].user_attrs["diagnosed"] == "dead_units"
    assert found[3].user_attrs["verdicts"] == [{"code": "dead_units"}]
    assert found[4].user_attrs["error"] == "the metric is not a number"
    assert trials.counts() == (5, 0, 0)
    assert trials.open == {}
    assert trials.rescue() == 0  # a trial that failed by itself is not asked again


def test_a_sampler_that_ignores_pruned_trials_learns_a_penalty(make: Any) -> None:
    trials = make("gp", only_complete=True)
    trials.ask(3)
    trials.tell(outcome(0, {1: 3.0}))
    trials.tell(outcome(1, {1: 2.0}, state="diagnosed", verdicts=[{"code": "nonfinite"}]))
    trials.tell(outcome(2, {}, state="diagnosed", verdicts=[{"code": "nonfinite"}]))
    found = trials.study.get_trials()
    assert [(trial.state.name, trial.value) for trial in found] == [("COMPLETE", 3.0)] * 3
    assert [list(trial.constraints.values()) for trial in found] == [[-1.0], [1.0], [1.0]]
    assert trials.study.best_trial.number == 0


def test_what_is_interrupted_is_asked_again_with_its_point_and_its_seed(make: Any) -> None:
    trials = make(seed=7)
    first = trials.ask(3)
    trials.tell(outcome(1, {1: 1.0}))
    assert trials.abandon("interrupted") == (2, 0)
    assert states(trials) == {"COMPLETE": 1, "FAIL": 2, "WAITING": 2}
    assert trials.counts() == (1, 0, 2)
    again = make(seed=7).ask(3)
    assert [point.number for point in again] == [3, 4, 5]
    assert StudyHistory(trials.study).firsts() == {3: 0, 4: 2}
    assert [(p.seed, p.settings) for p in again[:2]] == [(p.seed, p.settings) for p in (first[0], first[2])]
    assert again[2].settings not in [point.settings for point in first]


@pytest.mark.parametrize("taken", [0, 1])
def test_a_point_outlives_a_worker_that_is_killed_while_it_takes_it_over(taken: int, make: Any) -> None:
    trials = make()
    trials.enqueue({"x": 0.5, "kind": "round"}, "enqueue 0")
    with quiet():
        trial = trials.study.ask()  # and here, or a parameter later, it is killed
        for _ in range(taken):
            trial.suggest_float("x", -1.0, 1.0)
    trials._lose(trial._trial_id, "its worker died")
    assert trials.rescue() == 1
    again = make().ask(1)[0]
    assert again.settings == {"x": 0.5, "kind": "round"}
    assert trials.study.get_trials()[again.number].user_attrs["origin"] == f"retry of {trial.number}"


def test_what_wrote_a_checkpoint_has_used_up_no_retry(make: Any) -> None:
    written: dict[int, float] = {}
    trials = make(retries=1, written=lambda: written)
    point = trials.ask(1)[0]
    for _ in range(3):
        written[point.seed] = time.time() + 1
        assert trials.abandon("preempted") == (0, 1)
        time.sleep(0.01)
        again = trials.ask(1)[0]
        assert (again.seed, again.settings) == (point.seed, point.settings)
        written[point.seed] = time.time() - 60  # before it was asked
    for attempt in (1, 0):
        assert trials.unfinished() == {point.seed}
        trials.abandon("preempted")
        assert trials.counts().waiting == attempt
        trials.ask(attempt)
    assert trials.unfinished() == set()


def test_a_retry_keeps_the_seed_whoever_asks_it(make: Any) -> None:
    point = make(seed=7).ask(1)[0]
    other = make(seed=8)
    other._lose(other.study.get_trials()[0]._trial_id, "its worker died")
    assert other.enqueue_lost() == 1
    assert other.unfinished() == {7}
    again = other.ask(1)[0]
    assert (again.seed, again.settings) == (point.seed, point.settings)


def test_a_point_is_given_up_after_its_retries(make: Any) -> None:
    trials = make(retries=2)
    point = trials.ask(1)[0]
    for _ in range(2):
        trials.abandon("interrupted")
        again = trials.ask(1)[0]
        assert (again.seed, again.settings) == (point.seed, point.settings)
    assert trials.abandon("interrupted") == (0, 0)
    assert trials.counts() == (0, 0, 0)
    assert trials.ask(1)[0].settings != point.settings


def test_a_dead_workers_trials_are_rescued_and_a_living_ones_are_not(make: Any) -> None:
    dead, living = make(), make()
    dead.worker = dead.worker.rpartition(" ")[0] + " 1"  # a process with this number that began earlier
    points = dead.ask(2)
    living.ask(2)
    other = make()
    assert other.rescue() == 2
    assert states(other) == {"FAIL": 2, "RUNNING": 2, "WAITING": 2}
    assert other.counts() == (0, 2, 2)
    assert other.rescue() == 0
    assert [point.settings for point in other.ask(2)] == [point.settings for point in points]
    assert dead.tell(outcome(0, {1: 1.0})) is None  # it was not dead after all: too late
    assert other.study.get_trials()[0].state == TrialState.FAIL


def test_a_worker_elsewhere_is_given_up_by_the_age_of_its_last_sign(make: Any, url: str) -> None:
    away = make()
    away.worker = "elsewhere 1 1"
    away.ask(1)
    other = make()
    assert other.rescue() == 0
    trial_id = away.study.get_trials()[0]._trial_id
    away.lease.remove(trial_id)
    if url.startswith("journal"):
        away.storage.set_trial_system_attr(trial_id, "beat", 0.0)
    else:
        with open_storage(url, heartbeat=1).engine.begin() as connection:  # type: ignore[attr-defined]
            connection.exec_driver_sql("update trial_heartbeats set heartbeat = '2020-01-01 00:00:00.000000'")
    assert other.rescue() == 1
    assert states(other) == {"FAIL": 1, "WAITING": 1}


def test_a_point_that_two_workers_rescue_at_once_is_asked_once(make: Any) -> None:
    trials = make()
    point = trials.ask(1)[0]
    trials.abandon("interrupted")
    waiting = trials.study.get_trials()[1]
    trials.study.add_trial(waiting)  # another worker has had the same thought
    assert trials.counts().waiting == 2
    points = trials.ask(2)
    assert points[0].settings == point.settings
    assert points[1].settings != point.settings
    assert trials.study.get_trials()[2].user_attrs["lost"] == "asked twice at once"
    assert trials.enqueue_lost() == 0


def test_a_crash_between_failing_and_waiting_loses_nothing(make: Any) -> None:
    trials = make()
    trials.ask(1)
    trials._fail(0, "interrupted")
    assert trials.counts().waiting == 0
    assert make().rescue() == 1


def test_points_to_try_first_are_enqueued_once(make: Any) -> None:
    for _ in range(2):
        trials = make()
        trials.enqueue({"x": 0.5, "kind": "round"}, "enqueue 0")
        trials.enqueue({"x": 0.25}, "enqueue 1")
    assert trials.counts().waiting == 2
    points = trials.ask(3)
    assert points[0].settings == {"x": 0.5, "kind": "round"}
    assert points[1].settings["x"] == 0.25
    assert points[1].settings["kind"] in ("round", "steep")
