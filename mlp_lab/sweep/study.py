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

COMPARED = ("model.", "data.", "early_stopping.")  # groups of the base config that decide what a trial reaches
TRAINER = (
    *("max_epochs", "max_steps", "min_epochs", "min_steps", "max_time", "overfit_batches", "precision"),
    *("limit_train_batches", "limit_val_batches", "val_check_interval", "check_val_every_n_epoch"),
    *("accumulate_grad_batches", "gradient_clip_val", "gradient_clip_algorithm"),
)
"""Keys of the trainer that do so too; devices, loggers and the like do not."""
PLACES = ("root", "path", "test_path", "verbose", "fitted", "eval_batch_size")  # of the data: not what is learnt
GROUPS = (
    *("model", "model.encoder", "model.optimizer", "model.schedule"),
    *("data", "data.augment", "trainer", "early_stopping"),
)
"""Groups of the config with a fixed set of keys: one that a study has not stored is newer than the study."""
SOURCES = ("data.path", "data.dataset", "data.root", "data.test_path", "data.class_path")
SPLITS = (*SOURCES, "data.seed", "data.split", "data.split_column", "data.target", "data.drop_missing_target")


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
    data: Mapping[str, str] | None = None,
    seeds: int = 1,
) -> Study:
    """Makes the study, or finds it again.

    Args:
        settings: Its name and metrics.
        space: What it searches.
        storage: Where it is kept.
        sampler: Who proposes its points.
        directions: minimize or maximize, one per metric.
        base: The resolved config that every trial starts from.
        data: `name` of the base config's data, and `fingerprint` and `split`, which are equal for equal rows and for
            equal splits; None compares no data.
        seeds: Runs per trial.

    Raises:
        UserError: It exists with another space, metric, direction, base config, data or number of seeds; nothing is
            changed then.
    """
    facts = {
        "metric": list(settings.metric),
        "direction": list(directions),
        "space": space.canonical(),
        "base": _meaning(base, space),
        "seeds": seeds,
        "data": _searched_apart(data or {}, space),
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
    """Refuses a study that was begun with other facts, and stores those that it does not hold yet."""
    stored = study.user_attrs
    if "space" not in stored and study.get_trials(deepcopy=False):
        raise UserError(f"study.name: {name!r} exists in the storage and is no sweep of this program; use another name")
    kept = {"metric": stored.get("metric", facts["metric"]), "direction": directions}
    for key in ("metric", "direction"):
        if kept[key] != facts[key]:
            raise _differs(name, f"study.{key}", ", ".join(kept[key]), ", ".join(facts[key]))
    space = stored.get("space", facts["space"])
    for part in sorted({*space, *facts["space"]}):
        if space.get(part) != facts["space"].get(part):
            raise _differs(name, f"space.{part}", _words(space.get(part)), _words(facts["space"].get(part)))
    if stored.get("seeds", facts["seeds"]) != facts["seeds"]:
        raise _differs(name, "seeds", str(stored["seeds"]), str(facts["seeds"]))
    known = {**facts, "base": _same_base(name, stored.get("base", {}), facts["base"])}
    known["data"] = _same_data(name, stored.get("data", {}), facts["data"])
    for key, value in known.items():
        if stored.get(key) != value:
            study.set_user_attr(key, value)


def _same_base(name: str, before: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the keys of a base config that a study knows from now on.

    Raises:
        UserError: One of them differs.
    """
    for key in sorted({*before, *now}):
        missing = [side for side in (before, now) if key not in side]
        newer = bool(missing) and _is_unknown(key, missing[0])
        if not newer and (missing or before[key] != now[key]):
            raise _differs(name, key, _words(before.get(key)), _words(now.get(key)))
    return {**before, **now}


def _is_unknown(key: str, config: Mapping[str, Any]) -> bool:
    """Says whether a config lacks a key because its version of the program has none, not because it has less to say.

    >>> config = {"model.depth": 2, "data.rename.a": "b", "data.drop": None}
    >>> [_is_unknown(key, config) for key in ("model.mixup", "new.group", "data.rename.c", "data.rename")]
    [True, True, False, False]
    """
    parent = key.rpartition(".")[0]
    if parent in config or any(other.startswith(f"{key}.") for other in config):
        return False  # a group here is a single value there
    return parent in GROUPS or not any(other.startswith(f"{parent}.") for other in config)


def _same_data(name: str, before: Mapping[str, str], now: Mapping[str, str]) -> dict[str, str]:
    """Returns what a study knows of its data from now on; the name is that of the first data.

    Raises:
        UserError: The rows, or their split, differ.
    """
    for part, what in (("fingerprint", "fingerprint"), ("split", "fingerprint of the split")):
        if part in before and part in now and before[part] != now[part]:
            sides = [f"{side.get('name', 'data')} ({what} {side[part]})" for side in (before, now)]
            raise _differs(name, "data", *sides)
    return {**now, **before}


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
    trainer = {f"trainer.{name}" for name in TRAINER}
    chosen = {
        key: value
        for key, value in flatten(base).items()
        if key in trainer or (key.startswith(COMPARED) and key.rpartition(".")[2] not in PLACES)
    }
    return {key: value for key, value in json.loads(json.dumps(chosen, default=str)).items() if key not in searched}


def _searched_apart(data: Mapping[str, str], space: Space) -> dict[str, str]:
    """Leaves out what trials may differ in, where the space searches the data or how they are split."""
    searched = {parameter.key for parameter in space.parameters}
    apart = {"fingerprint": SOURCES, "split": SPLITS}
    return {part: value for part, value in data.items() if not searched.intersection(apart.get(part, ()))}


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
