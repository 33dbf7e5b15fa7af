"""Members whose loss is not finite: they are frozen, and the others go on as if they had never been there."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from mlp_lab.errors import NonFiniteError
from mlp_lab.population.scoring import ScoredPopulation
from mlp_lab.training.finite import all_finite


def freeze_(module: ScoredPopulation, places: Sequence[int], steps: Sequence[int]) -> None:
    """Freezes members of the stack; where the others have stopped, the run ends.

    Args:
        module: the population; its `failed` gets them.
        places: where they stand in the stack.
        steps: the step in which each one's loss was not finite.

    Raises:
        NonFiniteError: No member is left that is finite.
    """
    optimizer = module.stack_optimizer
    for place, step in zip(places, steps, strict=True):
        if optimizer.active[place]:
            module.failed[module.numbers[place]] = step
        optimizer.active[place] = False
        for tensor in (*module.population.views(place).values(), *optimizer.moments(place)):
            if tensor.is_floating_point():
                tensor.nan_to_num_(0.0, 0.0, 0.0)  # a checkpoint holds finite numbers only
    members = len(module.scores)
    if not any(optimizer.active):
        if len(module.failed) == members:
            raise NonFiniteError(f"the losses of all {members} members are not finite", None)
        module.trainer.should_stop = True


def freeze_broken_(module: ScoredPopulation) -> None:
    """Freezes members that have come out of a step with a weight, a statistic or a moment that is not finite.

    Their losses would say so one step later; a checkpoint of all would be refused for them.

    Raises:
        NonFiniteError: No member is left that is finite.
    """
    optimizer, population = module.stack_optimizer, module.population
    moments = [value for state in optimizer.state.values() if isinstance(state, dict) for value in state.values()]
    if all_finite((*population.parameters(), *population.buffers(), *moments)):
        return
    places = range(len(module.numbers))
    parts = [(*population.views(place).values(), *optimizer.moments(place)) for place in places]
    broken = [place for place in places if not all_finite(parts[place])]
    freeze_(module, broken, [module.trainer.global_step] * len(broken))


class Flags:
    """Notes on the device which members are not finite and since when, so that no step waits for the host.

    Args:
        members: K.
        steps: optimizer steps that have been taken.
        device: of the stack.
    """

    def __init__(self, members: int, steps: int, device: torch.device) -> None:
        self.step = torch.full((), steps, dtype=torch.int64, device=device)
        """Optimizer steps before the next one; each look counts on."""
        self.failed_at = torch.zeros(members, dtype=torch.int64, device=device)  # 0 for those that are finite

    def look(self, losses: Tensor, alive: Tensor) -> None:
        """Takes members (K,) out of `alive` whose loss in the step that begins is not finite."""
        finite = losses.detach().isfinite()
        self.step.add_(1)
        self.failed_at.add_(self.step * (alive & ~finite))
        alive.logical_and_(finite)

    def read(self) -> dict[int, int]:
        """Returns the places of members that are not finite, and the step in which they were not for the first time."""
        return {place: step for place, step in enumerate(self.failed_at.tolist()) if step}
