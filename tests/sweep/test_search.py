"""The whole search on a parabola: its budget, its resumption, and what is left after it was killed."""

from __future__ import annotations

import os
import signal
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import optuna
import pytest

from mlp_lab.errors import UserError
from mlp_lab.sweep.runs import Judge, Outcome, Point
from mlp_lab.sweep.search import run_sweep
from mlp_lab.sweep.space import Space
from tests.sweep.quadratic import SPACE, Quadratic, check_whole, outcome, sweep, wait_for_batch, wait_for_trials, worker

ROOT = Path(__file__).parents[2]


def search(folder: Path, backend: Any = None, **changes: Any) -> optuna.Study:
    settings = sweep(**changes)
    return run_sweep(settings, Space.read(settings.space), backend or Quadratic(), folder, show=lambda line: None)


def finished(study: optuna.Study) -> list[optuna.trial.FrozenTrial]:
    return [one for one in study.get_trials() if one.state.is_finished() and "lost" not in one.user_attrs]


def test_it_finds_the_least_and_goes_on_with_a_larger_budget(tmp_path: Path) -> None:
    backend = Quadratic()
    study = search(tmp_path, backend, trials=30)
    assert len(backend.seen) == len(study.trials) == 30
    assert study.best_value < 1 / 9 + 0.1
    more = search(tmp_path, Quadratic(batch=5), trials=42)
    assert len(more.trials) == 42
    assert search(tmp_path, backend, trials=42).trials == more.trials  # nothing is left to do
    assert len({(one.params["x"], one.params["kind"]) for one in more.trials}) == 42


def test_the_same_seed_searches_the_same_points(tmp_path: Path) -> None:
    first, second, other = (search(tmp_path / str(i), seed=seed, trials=12) for i, seed in enumerate((1, 1, 2)))
    assert [one.params for one in first.trials] == [one.params for one in second.trials]
    assert [one.params for one in first.trials] != [one.params for one in other.trials]


@pytest.mark.parametrize("pruner", ["asha", "hyperband", "median"])
def test_pruned_trials_count_and_cost_less(pruner: str, tmp_path: Path) -> None:
    study = search(tmp_path, trials=40, study={"pruner": pruner})
    pruned = [one for one in study.trials if one.state.name == "PRUNED"]
    assert len(study.trials) == 40
    assert len(pruned) >= 5
    assert all(0 < one.user_attrs["epochs"] < 9 for one in pruned)
    assert study.best_value < 1 / 9 + 0.1


def test_a_grid_ends_by_itself(tmp_path: Path) -> None:
    space = {"x": {"type": "int", "low": -2, "high": 2}, "kind": SPACE["kind"]}
    study = search(tmp_path, trials=None, space=space, study={"sampler": "grid"})
    assert len({(one.params["x"], one.params["kind"]) for one in study.trials}) == len(study.trials) == 10


def test_points_to_try_first(tmp_path: Path) -> None:
    study = search(tmp_path, trials=5, enqueue=[{"x": 0.0, "kind": "round"}])
    assert study.trials[0].params == {"x": 0.0, "kind": "round"}
    assert len(study.trials) == 5
    with pytest.raises(UserError, match=r"^enqueue.x: 3 is outside of the space; accepted: -1 to 1$"):
        search(tmp_path / "other", enqueue=[{"x": 3}])


@pytest.mark.parametrize("lost", ["removed", "emptied"])
def test_study_whose_database_is_lost_does_not_overwrite_its_trials(lost: str, tmp_path: Path) -> None:
    search(tmp_path, trials=1)
    before = (tmp_path / "trials.csv").read_bytes()
    (tmp_path / "study.db").unlink()
    if lost == "emptied":
        (tmp_path / "study.db").touch()
    with pytest.raises(UserError, match=r"^study.storage: .* no longer in study.db, .*; restore study.db from a copy"):
        search(tmp_path, trials=1)
    assert (tmp_path / "trials.csv").read_bytes() == before


def test_second_study_in_one_directory_is_refused(tmp_path: Path) -> None:
    search(tmp_path, trials=1)
    with pytest.raises(UserError, match=r"^study.name: \S+ holds the study 'parabola', whose trials.csv would be over"):
        search(tmp_path, trials=1, study={"name": "other"})


def test_several_metrics_have_a_front(tmp_path: Path) -> None:
    class Two(Quadratic):
        def train(self, points: list[Point], judge: Judge, tell: Callable[[Outcome], None]) -> None:
            for point in points:
                x = float(str(point.settings["x"]))
                tell(outcome(point.number, {1: x}, values=[x, x * x]))

    study = search(tmp_path, Two(), trials=20, study={"metric": ["val/loss", "val/rmse"]})
    assert len(study.best_trials) > 1
    assert not (tmp_path / "best.yaml").exists()
    assert (tmp_path / "trials.csv").read_text().count("\n") == 21


def test_verdicts_end_trials_of_several_metrics_too(tmp_path: Path) -> None:
    """TPE would ask for the one direction of what has values on the way and did not end."""

    class Two(Quadratic):
        def train(self, points: list[Point], judge: Judge, tell: Callable[[Outcome], None]) -> None:
            for point in points:
                x = float(str(point.settings["x"]))
                ended = {"state": "diagnosed", "verdicts": [{"code": "dead_units"}]} if point.number % 3 == 1 else {}
                tell(outcome(point.number, {1: x}, values=[] if ended else [x, x * x], **ended))

    study = search(tmp_path, Two(), trials=24, study={"metric": ["val/loss", "val/rmse"]})
    assert Counter(one.state.name for one in study.trials) == {"COMPLETE": 16, "PRUNED": 8}


def test_gp_goes_on_with_what_another_sampler_began(tmp_path: Path) -> None:
    search(tmp_path, trials=8, study={"sampler": "random"})
    study = search(tmp_path, trials=16, study={"sampler": "gp"})
    assert [one.state.name for one in study.trials] == ["COMPLETE"] * 16


def test_a_sampler_may_have_no_more_points(tmp_path: Path) -> None:
    space = {"x": {"type": "float", "low": -1.0, "high": 1.0, "step": 1.0}, "kind": SPACE["kind"]}
    study = search(tmp_path, trials=20, space=space, study={"sampler": "optuna.samplers.BruteForceSampler"})
    assert [one.state.name for one in study.trials] == ["COMPLETE"] * len(study.trials)
    assert len({(one.params["x"], one.params["kind"]) for one in study.trials}) == 6
    assert 6 <= len(study.trials) <= 8  # two batches of four


def test_points_to_try_first_are_known_by_what_they_are(tmp_path: Path) -> None:
    first, second, third = ({"x": x, "kind": "round"} for x in (0.0, 0.5, 0.25))
    search(tmp_path, trials=3, enqueue=[first, second])
    study = search(tmp_path, trials=6, enqueue=[third, first, second])
    tried = [one.params for one in study.trials if "origin" in one.user_attrs]
    assert tried == [first, second, third]


def test_time_is_a_budget_too(tmp_path: Path) -> None:
    study = search(tmp_path, Quadratic(batch=2, seconds=0.2), trials=None, minutes=0.005)
    assert 2 <= len(study.trials) <= 4  # two in 0.2 s; no batch begins after 0.3 s


def test_what_the_backend_is_silent_of_has_failed(tmp_path: Path) -> None:
    class Silent(Quadratic):
        def train(self, points: list[Point], judge: Judge, tell: Callable[[Outcome], None]) -> None:
            tell(outcome(points[0].number, {1: 1.0}))

    study = search(tmp_path, Silent(), trials=4)
    assert [one.state.name for one in study.trials] == ["COMPLETE", "FAIL", "FAIL", "FAIL"]


@pytest.mark.parametrize("stop", [KeyboardInterrupt(), SystemExit(1), MemoryError("no more")])
def test_whatever_ends_a_batch_leaves_nothing_running(stop: BaseException, tmp_path: Path) -> None:
    class Stopping(Quadratic):
        def train(self, points: list[Point], judge: Judge, tell: Callable[[Outcome], None]) -> None:
            tell(outcome(points[0].number, {1: 1.0}))
            if isinstance(stop, SystemExit):
                stop.__context__ = KeyboardInterrupt()  # as Lightning ends after Ctrl-C
            raise stop

    expected = MemoryError if isinstance(stop, MemoryError) else KeyboardInterrupt
    with pytest.raises(expected, match=r"^(no more|1 trials are kept, 3 will be trained again: go on with the same)"):
        search(tmp_path, Stopping(), trials=8)
    backend = Quadratic()
    study = search(tmp_path, backend, trials=8)
    assert len(backend.seen) == 7
    assert sorted(one.state.name for one in study.trials) == ["COMPLETE"] * 8 + ["FAIL"] * 3
    assert {one.user_attrs["origin"] for one in study.trials if "origin" in one.user_attrs} == {
        *("retry of 1", "retry of 2", "retry of 3")
    }


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"study": {"pruner": "ahsa"}}, "study.pruner: 'ahsa' is unknown"),
        ({"study": {"sampler": "tpee"}}, "study.sampler: 'tpee' is unknown"),
        ({"study": {"sampler": "grid"}}, "space.x: a grid needs `step`"),
    ],
)
def test_mistakes_leave_no_study_behind(changes: dict[str, Any], line: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"^{line}"):
        search(tmp_path / "new", **changes)
    assert not (tmp_path / "new").exists()


# ---- processes -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("end", "storage"),
    [
        pytest.param(signal.SIGKILL, "", marks=pytest.mark.slow),
        pytest.param(signal.SIGTERM, "", marks=pytest.mark.slow),
        pytest.param(signal.SIGKILL, "journal:", marks=pytest.mark.slow),
    ],
)
def test_a_killed_search_goes_on_where_it_was(end: signal.Signals, storage: str, tmp_path: Path) -> None:
    with worker(tmp_path, 16, 1.0, storage) as process:
        wait_for_trials(process, 4)
        wait_for_batch(process)
        process.send_signal(end)
        rest = process.stdout.read() if process.stdout else ""
    if end == signal.SIGTERM:
        assert "KeyboardInterrupt: 4 trials are kept, 4 will be trained again: go on with the same command" in rest
    else:
        assert process.returncode == -signal.SIGKILL
    study = search(tmp_path, trials=16, study={"storage": storage or None})
    check_whole(study, 16)
    assert sum(one.state.name == "FAIL" for one in study.trials) == 4


@pytest.mark.slow
@pytest.mark.parametrize("storage", ["", pytest.param("journal:", marks=pytest.mark.slow)])
def test_two_workers_at_once_share_one_budget_and_no_point(storage: str, tmp_path: Path) -> None:
    with worker(tmp_path, 24, 0.3, storage) as one, worker(tmp_path, 24, 0.3, storage) as two:
        told = [process.communicate()[0] for process in (one, two)]
    assert (one.returncode, two.returncode) == (0, 0), told
    study = search(tmp_path, trials=24, study={"storage": storage or None})
    trials = [trial for trial in study.trials if trial.state.name == "COMPLETE"]
    assert 24 <= len(trials) <= 28  # both may ask their last batch at the same moment
    assert len(study.trials) == len(trials)
    assert len({(trial.params["x"], trial.params["kind"]) for trial in trials}) == len(trials)
    assert len({trial.user_attrs["worker"] for trial in trials}) == 2
    assert min(text.count("\ntrial ") for text in told) >= 3


@pytest.mark.slow
def test_a_worker_that_dies_leaves_its_trials_to_the_other(tmp_path: Path) -> None:
    with worker(tmp_path, 12, 3.0) as one:
        wait_for_trials(one, 4)
        with worker(tmp_path, 12, 0.1) as two:
            wait_for_trials(two, 1)
            os.kill(one.pid, signal.SIGKILL)
            two.communicate()
        assert two.returncode == 0
    study = search(tmp_path, trials=12)
    check_whole(study, 12)
