"""`--replicates N`: the config's network N times, from successive seeds, trained together as a population."""

from __future__ import annotations

from typing import Any

import lightning as L

from mlp_lab.data.module import TensorDataModule
from mlp_lab.errors import UserError
from mlp_lab.population.memory import SHARE, free_bytes, mega, member_bytes
from mlp_lab.population.module import PopulationModule
from mlp_lab.population.optimizers import RULES
from mlp_lab.population.stopping import MemberStop
from mlp_lab.training.checkpoints import EarlyStop
from mlp_lab.training.module import MLPModule

ADVICE = "or leave out --replicates"


def replicated(config: Any, data: TensorDataModule, stop: EarlyStop, trainer: dict[str, Any]) -> PopulationModule:
    """Returns the population of a config.

    Replicate r is what `fit --seed_everything s+r --data.seed d` trains, with s the config's seed and d the seed of its
    data: its weights and masks are its own, the split and the order of the rows are those of all.

    Args:
        config: The command's part of the parser's namespace.
        data: As the config says, built.
        stop: As the config says, built.
        trainer: The trainer's settings; clipping is taken out, since it is each replicate's own.

    Raises:
        UserError: A setting that replicates cannot have.
    """
    refuse_what_is_alone(config, trainer)
    seed, replicates = config.seed_everything, config.replicates
    settings = {key: value for key, value in config.model.as_dict().items() if key != "spec"}
    members = []
    for replicate in range(replicates):
        L.seed_everything(seed + replicate, workers=True, verbose=False)
        members.append(MLPModule(data.spec_dict, **settings))
        refuse_what_does_not_fit(members[0], data.train_batch_size, replicates)
    L.seed_everything(seed, workers=True, verbose=False)
    clip = trainer.pop("gradient_clip_val", None)
    own = None
    if stop.enabled:
        own = MemberStop(monitor=stop.monitor, patience=stop.patience, min_delta=abs(stop.min_delta))
    population = PopulationModule(members, [clip or None] * len(members), own)
    population.scores_training = True
    return population


def refuse_what_does_not_fit(member: MLPModule, batch_size: int, replicates: int) -> None:
    """Refuses, before they are built, replicates that take more than the free memory.

    Raises:
        UserError: Names both, and how many would fit.
    """
    optimizer, free = member.optimizer_config, free_bytes()
    each = member_bytes(member.model, batch_size, optimizer=optimizer.name, momentum=optimizer.momentum)
    if free is not None and each * replicates > free:
        raise UserError(
            f"replicates: {replicates} take about {mega(each * replicates)}, and {mega(free)} are free; "
            f"use at most {max(1, round(SHARE * free) // each)}, or a smaller model or data.batch_size"
        )


def refuse_what_is_alone(config: Any, trainer: dict[str, Any]) -> None:
    """Refuses, by its key, what a population does not do.

    Raises:
        UserError: Names the key, the value, and what to use.
    """
    optimizer = config.model.optimizer.name
    if optimizer not in RULES:
        raise UserError(
            f"model.optimizer.name: {optimizer!r} trains alone; replicates take {', '.join(RULES)} ({ADVICE})"
        )
    if trainer.get("accumulate_grad_batches", 1) != 1:
        raise UserError(
            f"trainer.accumulate_grad_batches: {trainer['accumulate_grad_batches']} is not possible with replicates; "
            f"use 1 and a larger data.batch_size, {ADVICE}"
        )
    if trainer.get("gradient_clip_val") and trainer.get("gradient_clip_algorithm") == "value":
        raise UserError(f"trainer.gradient_clip_algorithm: 'value' is not possible with replicates; use norm, {ADVICE}")
    if config.seed_everything is None:
        raise UserError(f"seed_everything: null gives replicates no seeds to count from; use a number, {ADVICE}")
