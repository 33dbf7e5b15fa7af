"""What a search is about to do, in a few lines that need no heavy import, so that they are printed at once."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from mlp_lab.sweep.ranges import Parameter, as_flag, read_parameter
from mlp_lab.sweep.settings import Choice, SweepSettings
from mlp_lab.text import without_passwords

INDENT = 8  # columns of the labels, as in the description of the data


def outline(settings: SweepSettings, directory: Path) -> list[str]:
    """Returns the lines: study, base config, space, budget, sampler and pruner, storage.

    Args:
        settings: The sweep.
        directory: Where its results are written.

    Raises:
        UserError: A range of the space is not one.
    """
    study = settings.study
    metrics = [" ".join(part) for part in zip(study.direction, study.metric, strict=False)] or list(study.metric)
    searched = [read_parameter(str(key), content) for key, content in settings.space.items()]
    width = max(len(parameter.key) for parameter in searched)
    ranges = [f"{parameter.key:<{width}}  {range_words(parameter)}" for parameter in searched]
    groups: Mapping[str, list[str]] = {
        "study": [f"{study.name}: {', '.join(metrics)}"],
        "base": [settings.base],
        "space": ranges,
        "budget": [_budget(settings)],
        "search": [f"sampler {_choice(study.sampler)}, seed {settings.seed}", *_ends(settings)],
        "storage": [without_passwords(study.storage) if study.storage else str(directory / "study.db")],
    }
    return [
        f"{name if index == 0 else '':<{INDENT}}{line}"
        for name, lines in groups.items()
        for index, line in enumerate(lines)
    ]


def range_words(parameter: Parameter) -> str:
    """Describes a range.

    >>> range_words(Parameter(key="model.width", kind="int", low=16, high=512, log=True, when={"model.depth": ">2"}))
    '16 to 512, log scale, when model.depth is >2'
    """
    parts = [parameter.words(), "log scale" if parameter.log else "", "for each layer" if parameter.per_layer else ""]
    parts += [f"when {key} is {_condition(condition)}" for key, condition in parameter.when.items()]
    return ", ".join(filter(None, parts))


def _condition(condition: object) -> str:
    return " or ".join(map(as_flag, condition)) if isinstance(condition, list) else as_flag(condition)


def _choice(choice: Choice) -> str:
    """Returns a name with its arguments."""
    return choice.name + "".join(f" {name}={as_flag(value)}" for name, value in choice.arguments.items())


def _ends(settings: SweepSettings) -> list[str]:
    """Returns what ends a trial early, in the words of `trials.csv`."""
    pruner, verdicts = settings.study.pruner, settings.diagnosis.prune
    lines = [] if pruner.name == "none" else [f"pruner {_choice(pruner)} ends trials that fall behind (pruned)"]
    return lines + ([f"verdicts end a trial (diagnosed): {', '.join(verdicts)}"] if verdicts else [])


def _budget(settings: SweepSettings) -> str:
    """Returns how many trials are trained, and how."""
    cluster = settings.cluster
    backend = cluster.backend if settings.backend == "slurm" else settings.backend
    together = backend == "population" and settings.population > 1
    parts: list[Any] = [
        f"{settings.trials:,} trials" if settings.trials is not None else "",
        f"{settings.minutes:g} minutes" if settings.minutes is not None else "",
        "every point of the grid" if settings.study.sampler.name == "grid" and settings.trials is None else "",
        f"up to {settings.population:,} trained together" if together else "trained one after another",
        f"{settings.seeds} seeds each" if settings.seeds > 1 else "",
        f"{len(settings.enqueue)} given points first" if settings.enqueue else "",
        f"{cluster.workers} workers on {cluster.executor}" if settings.backend == "slurm" else "",
    ]
    return ", ".join(filter(None, parts))
