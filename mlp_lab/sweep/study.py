"""A study in its storage: made or found again, and refused where it is another one."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

import optuna
from optuna import Study
from optuna.exceptions import DuplicatedStudyError, StorageInternalError
from optuna.samplers import BaseSampler
from optuna.storages import BaseStorage
from optuna.study import StudyDirection
from optuna.trial import TrialState
from sqlalchemy.exc import SQLAlchemyError

from mlp_lab.errors import UserError
from mlp_lab.sweep.facts import FIRST
from mlp_lab.sweep.interrupts import uninterrupted
from mlp_lab.sweep.settings import StudySettings
from mlp_lab.sweep.space import Space
from mlp_lab.sweep.storage import quiet, reason

MEANING = ("trainer.max_epochs", "trainer.max_steps", "trainer.limit_train_batches", "trainer.limit_val_batches")
PLACES = ("root", "path", "test_path", "verbose", "fitted", "eval_batch_size")  # of the data: not what is learnt


class StudyHistory:
    """What the trials of a study reached, for the judges."""

    def __init__(self, study: Study) -> None:
        self.study = study

    @uninterrupted()
    def at(self, epoch: int, *, complete: bool = False) -> dict[int, float]:
        """Returns number -> value after `epoch` of every trial that was measured there."""
        states = (TrialState.COMPLETE,) if complete else (TrialState.COMPLETE, TrialState.PRUNED)
        trials = self.study.get_trials(deepcopy=False, states=states)
        return {one.number: one.intermediate_values[epoch] for one in trials if epoch in one.intermediate_values}

    @uninterrupted()
    def firsts(self) -> dict[int, int]:
        """Returns number -> number of the point's first trial, of every trial that was asked again."""
        trials = self.study.get_trials(deepcopy=False)
        return {one.number: int(one.user_attrs[FIRST]) for one in trials if FIRST in one.user_attrs}


def open_study(
    settings: StudySettings,
    space: Space,
    storage: BaseStorage,
    sampler: BaseSampler,
    *,
    directions: tuple[str, ...],
    base: Mapping[str, Any],
) -> Study:
    """Makes the study, or finds it again.

    Args:
        settings: Its name and metrics.
        space: What it searches.
        storage: Where it is kept.
        sampler: Who proposes its points.
        directions: minimize or maximize, one per metric.
        base: The resolved config that every trial starts from.

    Raises:
        UserError: It exists with another space, metric, direction or base config; nothing is changed then.
    """
    facts = {
        "metric": list(settings.metric),
        "direction": list(directions),
        "space": space.canonical(),
        "base": _meaning(base, space),
    }
    wanted = [StudyDirection[word.upper()] for word in directions]
    try:
        with quiet():
            try:
                study = optuna.create_study(
                    storage=storage, study_name=settings.name, directions=wanted, sampler=sampler
                )
                study.set_metric_names(list(settings.metric))
            except DuplicatedStudyError:
                study = optuna.load_study(storage=storage, study_name=settings.name, sampler=sampler)
    except (SQLAlchemyError, StorageInternalError) as error:
        raise UserError(f"study.storage: the study cannot be opened ({reason(error)})") from error
    _compare(study, settings.name, facts, [direction.name.lower() for direction in study.directions])
    return study


def _compare(study: Study, name: str, facts: Mapping[str, Any], directions: list[str]) -> None:
    """Refuses a study that was begun with other facts, and writes them into a new one."""
    stored = study.user_attrs
    if "space" not in stored and study.get_trials(deepcopy=False):
        raise UserError(f"study.name: {name!r} exists in the storage and is no sweep of this program; use another name")
    kept = {"metric": stored.get("metric", facts["metric"]), "direction": directions}
    for key in ("metric", "direction"):
        if kept[key] != facts[key]:
            raise _differs(name, f"study.{key}", ", ".join(kept[key]), ", ".join(facts[key]))
    for key in ("space", "base"):
        before, now = stored.get(key, facts[key]), facts[key]
        for part in sorted({*before, *now}):
            if before.get(part) != now.get(part):
                where = f"space.{part}" if key == "space" else part
                raise _differs(name, where, _words(before.get(part)), _words(now.get(part)))
    for key, value in facts.items():
        if key not in stored:
            study.set_user_attr(key, value)


def _differs(name: str, key: str, before: str, now: str) -> UserError:
    return UserError(
        f"{key}: the study {name!r} was begun with {before}, this is {now}; use another study.name, or the same {key}"
    )


def _words(value: object) -> str:
    """Says a range or a value as the YAML would."""
    if value is None:
        return "nothing"
    if isinstance(value, dict):
        kind = value.get("kind")
        shown = {"type": kind} | {k: v for k, v in value.items() if k not in ("key", "kind") and v}
        if kind in ("int", "float"):
            shown |= {"low": value["low"], "high": value["high"]}
        return json.dumps(shown).replace('"', "")
    return str(value)


def _meaning(base: Mapping[str, Any], space: Space) -> dict[str, Any]:
    """Returns what two configs must share for their trials to be comparable, by dotted key."""
    searched = {parameter.key for parameter in space.parameters}
    flat = flatten(base)
    chosen = {
        key: value
        for key, value in flat.items()
        if key in MEANING or (key.startswith(("model.", "data.")) and key.rpartition(".")[2] not in PLACES)
    }
    return {key: value for key, value in json.loads(json.dumps(chosen, default=str)).items() if key not in searched}


def flatten(config: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Returns a config by dotted keys, `init_args` left out of them as on the command line.

    >>> flatten({"data": {"class_path": "X", "init_args": {"batch_size": 8}}, "model": {"depth": 2}})
    {'data.class_path': 'X', 'data.batch_size': 8, 'model.depth': 2}
    """
    flat: dict[str, Any] = {}
    for key, value in config.items():
        name = prefix if key == "init_args" else f"{prefix}.{key}".lstrip(".")
        if isinstance(value, Mapping) and value:
            flat |= flatten(value, name)
        else:
            flat[name] = value
    return flat
