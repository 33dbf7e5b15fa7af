from __future__ import annotations

from pathlib import Path
from typing import Any

import optuna
import pytest

from mlp_lab.errors import UserError
from mlp_lab.sweep.settings import StudySettings
from mlp_lab.sweep.space import Space
from mlp_lab.sweep.storage import open_storage, storage_url
from mlp_lab.sweep.study import StudyHistory, flatten, open_study

pytestmark = pytest.mark.filterwarnings("ignore:.*Heartbeat of storage is supposed")

SPACE: dict[str, Any] = {"model.depth": {"type": "int", "low": 1, "high": 6}}
BASE = {
    "seed_everything": 0,
    "run": {"name": "a"},
    "data": {"class_path": "TabularDataModule", "init_args": {"dataset": "digits", "root": "here", "batch_size": 32}},
    "model": {"depth": 2, "width": 64, "encoder": {"numeric": "none"}},
    "trainer": {"max_epochs": 5, "accelerator": "cpu", "accumulate_grad_batches": 1},
    "early_stopping": {"monitor": "val/loss", "patience": 10},
}
DATA = {"name": "a.csv", "fingerprint": "f1", "split": "s1"}


def opened(
    folder: Path,
    *,
    space: dict[str, Any] | None = None,
    metric: tuple[str, ...] = ("val/loss",),
    directions: tuple[str, ...] = ("minimize",),
    base: dict[str, Any] | None = None,
    data: dict[str, str] | None = None,
    seeds: int = 1,
) -> optuna.Study:
    settings = StudySettings(name="a", metric=metric)
    storage = open_storage(storage_url(None, folder), heartbeat=7)
    sampler = optuna.samplers.RandomSampler(seed=0)
    return open_study(
        settings,
        Space.read(space or SPACE),
        storage,
        sampler,
        directions=directions,
        base=BASE if base is None else base,
        data=DATA if data is None else data,
        seeds=seeds,
    )


def changed(**keys: Any) -> dict[str, Any]:
    return {**BASE, **{group: {**BASE[group], **values} for group, values in keys.items()}}  # type: ignore[dict-item]


def test_the_same_sweep_is_found_again(tmp_path: Path) -> None:
    opened(tmp_path).tell(opened(tmp_path).ask(), 1.0)
    elsewhere = changed(trainer={"accelerator": "gpu"}, model={"depth": 4}, run={"name": "b"})  # the depth is searched
    elsewhere["data"] = {**BASE["data"], "init_args": {**BASE["data"]["init_args"], "root": "there"}}  # type: ignore[index,dict-item]
    assert len(opened(tmp_path, base=elsewhere).trials) == 1


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (
            {"space": {"model.depth": {"type": "int", "low": 1, "high": 7}}},
            "space.model.depth: the study 'a' was begun with {type: int, low: 1, high: 6}, "
            "this is {type: int, low: 1, high: 7}; use another study.name, or the same space.model.depth",
        ),
        (
            {"space": {**SPACE, "model.dropout": {"type": "float", "low": 0, "high": 0.5}}},
            "space.model.dropout: the study 'a' was begun with nothing, this is {type: float, ",
        ),
        ({"directions": ("maximize",)}, "study.direction: the study 'a' was begun with minimize, this is maximize; "),
        ({"metric": ("val/f1",)}, "study.metric: the study 'a' was begun with val/loss, this is val/f1; "),
        (
            {"base": changed(trainer={"max_epochs": 6})},
            "trainer.max_epochs: the study 'a' was begun with 5, this is 6; use another study.name, or the same ",
        ),
        (
            {"base": changed(trainer={"accumulate_grad_batches": 2})},
            "trainer.accumulate_grad_batches: the study 'a' was ",
        ),
        (
            {"base": changed(early_stopping={"patience": 3})},
            "early_stopping.patience: the study 'a' was begun with 10, ",
        ),
        ({"seeds": 3}, "seeds: the study 'a' was begun with 1, this is 3; use another study.name, or the same seeds"),
        (
            {"data": {**DATA, "name": "b.csv", "fingerprint": "f2", "split": "s2"}},
            "data: the study 'a' was begun with a.csv (fingerprint f1), this is b.csv (fingerprint f2); "
            "use another study.name, or the same data",
        ),
        (
            {"data": {**DATA, "split": "s2"}},
            "data: the study 'a' was begun with a.csv (fingerprint of the split s1), this is a.csv (fingerprint of ",
        ),
        ({"base": changed(model={"width": 8})}, "model.width: the study 'a' was begun with 64, this is 8; "),
    ],
)
def test_another_sweep_is_refused_and_nothing_changes(tmp_path: Path, changes: dict[str, Any], line: str) -> None:
    study = opened(tmp_path)
    study.tell(study.ask(), 1.0)
    before = (study.user_attrs, study.trials)
    with pytest.raises(UserError) as caught:
        opened(tmp_path, **changes)
    assert str(caught.value).startswith(line)
    assert (study.user_attrs, study.trials) == before


def test_study_with_data_under_another_name_is_continued(tmp_path: Path) -> None:
    opened(tmp_path)
    assert opened(tmp_path, data={**DATA, "name": "moved.csv"}).user_attrs["data"] == DATA


@pytest.mark.parametrize(("key", "kept"), [("data.batch_size", DATA), ("data.seed", {"name": "a.csv"})])
def test_study_that_searches_the_split_compares_none(key: str, kept: dict[str, str], tmp_path: Path) -> None:
    space = {**SPACE, key: {"type": "int", "low": 1, "high": 9}}
    stored = opened(tmp_path, space=space).user_attrs["data"]
    assert stored == {**kept, "fingerprint": "f1"}


def test_study_of_an_earlier_version_is_continued_and_completed(tmp_path: Path) -> None:
    """It holds neither data nor seeds, and fewer keys of the base config."""
    whole = opened(tmp_path / "new").user_attrs
    newer = ("trainer.accumulate_grad_batches", "early_stopping.monitor", "early_stopping.patience")
    fewer = {key: value for key, value in whole["base"].items() if key not in (*newer, "model.encoder.numeric")}
    storage = open_storage(storage_url(None, tmp_path), heartbeat=7)
    old = optuna.create_study(storage=storage, study_name="a")
    for key in ("metric", "direction", "space"):
        old.set_user_attr(key, whole[key])
    old.set_user_attr("base", {**fewer, "model.of_old": 1})
    assert opened(tmp_path).user_attrs == {**whole, "base": {**whole["base"], "model.of_old": 1}}
    with pytest.raises(UserError, match=r"^early_stopping.patience: the study 'a' was begun with 10, this is 3;"):
        opened(tmp_path, base=changed(early_stopping={"patience": 3}))


@pytest.mark.parametrize(
    ("before", "now", "key"),
    [
        ({"rename": {"a": "b"}}, {"rename": {"a": "b", "c": "d"}}, "data.rename.c"),
        ({"rename": {"a": "b"}}, {"rename": {}}, "data.rename"),
        ({"rename": None}, {"rename": {"a": "b"}}, "data.rename"),
    ],
)
def test_study_with_another_mapping_is_refused(
    before: dict[str, Any], now: dict[str, Any], key: str, tmp_path: Path
) -> None:
    opened(tmp_path, base=changed(data={"init_args": before}))
    with pytest.raises(UserError, match=f"^{key}: the study 'a' was begun with "):
        opened(tmp_path, base=changed(data={"init_args": now}))


def test_a_study_of_another_program_is_refused(tmp_path: Path) -> None:
    foreign = optuna.create_study(storage=open_storage(storage_url(None, tmp_path), heartbeat=7), study_name="a")
    foreign.tell(foreign.ask(), 1.0)
    with pytest.raises(UserError, match=r"^study.name: 'a' exists in the storage and is no sweep of this program"):
        opened(tmp_path)


def test_history_is_of_finished_trials(tmp_path: Path) -> None:
    study = opened(tmp_path)
    for state in (optuna.trial.TrialState.COMPLETE, optuna.trial.TrialState.PRUNED, None):
        trial = study.ask()
        trial.report(float(trial.number), step=3)
        if state is not None:
            study.tell(trial, 9.0 if state == optuna.trial.TrialState.COMPLETE else None, state=state)
    history = StudyHistory(study)
    assert history.at(3) == {0: 0.0, 1: 1.0}
    assert history.at(3, complete=True) == {0: 0.0}
    assert history.at(2) == {}


def test_flat_keys_are_those_of_the_command_line() -> None:
    flat = flatten(BASE)
    assert flat["data.batch_size"] == 32
    assert flat["model.encoder.numeric"] == "none"
