"""Samplers by name, or any of Optuna's by its dotted path, each with a seed of its own for every batch.

A sampler that always had the same seed would repeat its points in every worker and after every restart. The seed is a
hash of the sweep's seed and of the number of a batch's first trial, which no other batch of the study has. A grid and
a quasi-random sequence are the exception: their order must be the same for all, and the trial's number is the place in
it.
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

import optuna
from optuna import Study
from optuna.distributions import BaseDistribution
from optuna.samplers import BaseSampler, CmaEsSampler, GPSampler, GridSampler, QMCSampler, RandomSampler, TPESampler
from optuna.trial import FrozenTrial, TrialState

from mlp_lab.errors import UserError, nearest, unknown
from mlp_lab.sweep.interrupts import uninterrupted
from mlp_lab.sweep.settings import Choice
from mlp_lab.sweep.space import Space
from mlp_lab.sweep.storage import quiet

Maker = Callable[[int], BaseSampler]  # the number of a batch's first trial -> its sampler
KEY = "study.sampler"


class Grid(GridSampler):
    """Optuna's grid for trials that are asked and told: it ends nothing, and says how many points are left."""

    def after_trial(self, study: Study, trial: FrozenTrial, state: TrialState, values: Sequence[float] | None) -> None:
        """Does nothing: Optuna would stop a loop that is not running."""

    @uninterrupted()
    def left(self, study: Study) -> int:
        """Returns how many points of the grid no trial has, running ones included."""
        return len(self._get_unvisited_grid_ids(study))

    def _get_unvisited_grid_ids(self, study: Study) -> list[int]:
        """Leaves out what a trial was cut off of before it had its parameters; Optuna takes that for visited."""
        taken = {
            trial.system_attrs["grid_id"]
            for trial in study.get_trials(deepcopy=False)
            if "grid_id" in trial.system_attrs and (trial.params or not trial.state.is_finished())
        }
        return [index for index in range(len(self._all_grids)) if index not in taken]


class Sequence01(QMCSampler):
    """Optuna's Sobol' or Halton sequence, whose place is the trial's number, so that two workers share no point."""

    _place = 0

    def sample_relative(
        self, study: Study, trial: FrozenTrial, search_space: dict[str, BaseDistribution]
    ) -> dict[str, Any]:
        """Returns the point of the sequence at the trial's number."""
        self._place = trial.number
        return super().sample_relative(study, trial, search_space)

    def _find_sample_id(self, study: Study, search_space: dict[str, BaseDistribution]) -> int:
        return self._place


def _tpe(space: Space, seed: int, base: int, arguments: dict[str, Any]) -> BaseSampler:
    """TPE (Bergstra et al. 2011) that counts running trials as bad ones; in groups where keys are conditional."""
    defaults: dict[str, Any] = {"constant_liar": True}
    if space.conditional:
        defaults |= {"multivariate": True, "group": True}
    return TPESampler(seed=seed, **defaults | arguments)


def _gp(space: Space, seed: int, base: int, arguments: dict[str, Any]) -> BaseSampler:
    return GPSampler(seed=seed, **{"warn_independent_sampling": False} | arguments)


def _random(space: Space, seed: int, base: int, arguments: dict[str, Any]) -> BaseSampler:
    return RandomSampler(seed=seed, **arguments)


def _grid(space: Space, seed: int, base: int, arguments: dict[str, Any]) -> BaseSampler:
    return Grid(space.grid(), seed=base, **arguments)


def _qmc(space: Space, seed: int, base: int, arguments: dict[str, Any]) -> BaseSampler:
    defaults: dict[str, Any] = {"scramble": True, "warn_independent_sampling": False}
    return Sequence01(seed=base, independent_sampler=RandomSampler(seed=seed), **defaults | arguments)


def _cmaes(space: Space, seed: int, base: int, arguments: dict[str, Any]) -> BaseSampler:
    defaults: dict[str, Any] = {"warn_independent_sampling": False, "independent_sampler": RandomSampler(seed=seed)}
    return CmaEsSampler(seed=seed, **defaults | arguments)


SAMPLERS: dict[str, tuple[type[BaseSampler], Callable[[Space, int, int, dict[str, Any]], BaseSampler]]] = {
    "tpe": (TPESampler, _tpe),
    "gp": (GPSampler, _gp),
    "random": (RandomSampler, _random),
    "grid": (GridSampler, _grid),
    "qmc": (QMCSampler, _qmc),
    "cmaes": (CmaEsSampler, _cmaes),
}
"""Name -> Optuna's class, and what builds it for a space, a batch's seed, the sweep's seed and arguments."""

ONLY_COMPLETE = ("gp", "cmaes", "GPSampler", "CmaEsSampler")
"""Samplers that learn nothing from pruned trials."""


def batch_seed(seed: int, number: int) -> int:
    """Returns the seed of the batch that begins with a trial's number; 32 bits of a SHA-256."""
    return int.from_bytes(hashlib.sha256(f"{seed} {number}".encode()).digest()[:4], "big")


def sampler_maker(choice: Choice, space: Space, seed: int, *, objectives: int = 1) -> Maker:
    """Returns what makes the sampler of a batch from the number of its first trial.

    Args:
        choice: A key of `SAMPLERS` or a dotted path, with arguments.
        space: The searched keys.
        seed: The sweep's seed.
        objectives: How many metrics the study has.

    Raises:
        UserError: The sampler or an argument is unknown, or does not fit the space.
    """
    if objectives > 1 and choice.name == "cmaes":
        raise UserError(f"{KEY}: cmaes betters one metric; with {objectives}, use tpe, gp or random")
    cls, build = SAMPLERS[choice.name] if choice.name in SAMPLERS else (_find(choice.name), None)
    accepted = [name for name in inspect.signature(cls.__init__).parameters if name not in ("self", "search_space")]
    for name in choice.arguments:
        if name not in accepted or name == "seed":
            guess = nearest(name, accepted)
            hint = f"did you mean {guess}?" if guess else f"accepted: {', '.join(accepted)}"
            raise UserError(f"{KEY}.{name}: {cls.__name__} has no such argument; {hint}")

    def make(number: int) -> BaseSampler:
        own = batch_seed(seed, number)
        with quiet():
            if build is not None:
                return build(space, own, seed, dict(choice.arguments))
            return cls(**({"seed": own} if "seed" in accepted else {}), **choice.arguments)

    try:
        with quiet():
            trial = optuna.create_study(sampler=make(0), directions=["minimize"] * objectives).ask()
            space.suggest(trial)  # an argument of a wrong type is seen by the first point only
    except UserError:
        raise
    except ImportError as error:
        raise UserError(f"{KEY}: {choice.name} needs a package that is missing ({error.name}); install it") from error
    except ValueError as error:
        raise UserError(f"{KEY}: {choice.name}: {' '.join(str(error).split())}") from error
    except TypeError as error:  # it speaks of operators, not of arguments
        raise UserError(f"{KEY}: {choice.name} does not accept {choice.arguments} ({error})") from error
    return make


def _find(path: str) -> type[BaseSampler]:
    """Imports a sampler by its dotted path."""
    module, dot, name = path.rpartition(".")
    if not dot:
        raise unknown(KEY, path, [*SAMPLERS, "optuna.samplers.NSGAIISampler or another dotted path"])
    try:
        found = getattr(import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise UserError(f"{KEY}: there is no {path} ({' '.join(str(error).split())})") from error
    if not (isinstance(found, type) and issubclass(found, BaseSampler)):
        raise UserError(f"{KEY}: {path} is no Optuna sampler; use such as optuna.samplers.NSGAIISampler")
    return found
