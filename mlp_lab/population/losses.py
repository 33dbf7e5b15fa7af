"""Losses and scores of all members at once.

Symbols: K members, B batch, C outputs.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import cast

import torch
from torch import Tensor, nn

from mlp_lab.data.spec import DataSpec
from mlp_lab.model.tasks import Criterion
from mlp_lab.training.meters import Meter

MOST_LOGITS = 2**24  # kept between two updates of the meters: 64 MB of float32


class MemberLoss(nn.Module):
    """The loss of every member by its own criterion; members with equal ones are computed in one call.

    Args:
        criteria: per member.
    """

    order: Tensor
    places: Tensor

    def __init__(self, criteria: Sequence[Criterion]) -> None:
        super().__init__()
        self.size = len(criteria)
        groups: dict[tuple[object, ...], list[int]] = {}
        for number, criterion in enumerate(criteria):
            groups.setdefault(_key(criterion), []).append(number)
        self.members = list(groups.values())
        self.criteria = nn.ModuleList(criteria[numbers[0]] for numbers in self.members)
        order = torch.tensor([number for numbers in self.members for number in numbers])
        self.register_buffer("order", order, persistent=False)  # of members, by criterion
        self.register_buffer("places", order.argsort(), persistent=False)

    def forward(self, logits: Tensor, target: Tensor) -> Tensor:
        """Returns per-sample losses (K, B) of logits (K, B, C) and the targets (B, ...) that all members share."""
        if len(self.members) == 1:
            return _flat(cast(Criterion, self.criteria[0]), logits, target)
        some = torch.split(self.order, [len(numbers) for numbers in self.members])
        losses = [
            _flat(cast(Criterion, criterion), logits.index_select(0, numbers), target)
            for numbers, criterion in zip(some, self.criteria, strict=True)
        ]
        return torch.cat(losses).index_select(0, self.places)


def _flat(criterion: Criterion, logits: Tensor, target: Tensor) -> Tensor:
    """Every sample of every member as one batch."""
    members, batch, _ = logits.shape
    if criterion.loss.name == "cross_entropy":  # as a stack lays logits out: a softmax over C runs along B
        return cast(Tensor, criterion(logits.mT, target.expand(members, batch)))
    targets = target.repeat(members, *[1] * (target.dim() - 1))  # (K·B, ...)
    return cast(Tensor, criterion(logits.flatten(0, 1), targets)).view(members, batch)


def _key(criterion: Criterion) -> tuple[object, ...]:
    weights = None if criterion.class_weights is None else tuple(criterion.class_weights.tolist())
    return criterion.loss.name, tuple(sorted(criterion.options.items())), weights


class MemberMeters(nn.Module):
    """The loss and the task's metrics of every member over one pass, each as `Meter` computes them of one network.

    Logits are kept and handed to the meters in large pieces: a metric's update costs more than a small batch.

    Args:
        spec: the data set.
        members: K.
    """

    def __init__(self, spec: DataSpec, members: int) -> None:
        super().__init__()
        self.meters = nn.ModuleList(Meter(spec) for _ in range(members))
        self._kept: list[tuple[Tensor, Tensor, Tensor]] = []

    def update(self, losses: Tensor, logits: Tensor, target: Tensor) -> None:
        """Adds a batch: losses (K, B), logits (K, B, C) and targets (B, ...)."""
        self._kept.append((losses, logits, target))
        if sum(kept.numel() for _, kept, _ in self._kept) > MOST_LOGITS:
            self._flush()

    def _flush(self) -> None:
        if not self._kept:
            return
        losses, logits = (torch.cat(parts, 1) for parts in list(zip(*self._kept, strict=True))[:2])
        target = torch.cat([target for _, _, target in self._kept])
        self._kept.clear()
        for meter, some, of_member in zip(cast(Iterable[Meter], self.meters), losses, logits, strict=True):
            meter.update(some, of_member, target, len(target))

    def compute(self) -> list[dict[str, float]]:
        """Returns loss and metrics of the pass per member, and starts anew."""
        self._flush()
        return [meter.compute() for meter in cast(Iterable[Meter], self.meters)]


def spread(scores: Sequence[dict[str, float]]) -> dict[str, float]:
    """Returns the mean of every score over members, and its sample standard deviation under `<name>_sd`.

    One member has no standard deviation: it is NaN.

    >>> spread([{"loss": 1.0}, {"loss": 3.0}])
    {'loss': 2.0, 'loss_sd': 1.4142135623730951}
    """
    values = {name: torch.tensor([one[name] for one in scores], dtype=torch.float64) for name in scores[0]}
    result = {}
    for name, column in values.items():
        result[name] = float(column.mean())
        result[f"{name}_sd"] = float(column.std()) if len(column) > 1 else float("nan")
    return result
