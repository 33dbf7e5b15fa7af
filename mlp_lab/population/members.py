"""Which `MLPModule`s can train together."""

from __future__ import annotations

from collections.abc import Sequence

from mlp_lab.errors import UserError
from mlp_lab.training.module import MLPModule
from mlp_lab.training.schedules import SCHEDULES


def check_modules(members: Sequence[MLPModule], clip: Sequence[float | None] | None) -> None:
    """Refuses modules whose training has no common step; `rules.check_members` looks at their networks.

    Raises:
        UserError: names the members and the setting.
    """
    if not members:
        raise UserError("population: no member given; accepted: at least one MLPModule")
    if clip is not None and len(clip) != len(members):
        raise UserError(f"population.clip: {len(clip)} values for {len(members)} members; accepted: one for each")
    first = members[0]
    for number, member in enumerate(members):
        if member.spec != first.spec:
            raise UserError(f"population: members 0 and {number} are of different data sets")
        if member.mixup != first.mixup:
            raise UserError(
                f"population: members 0 and {number} differ in mixup ({first.mixup} and {member.mixup}), "
                "which must be equal"
            )
        if SCHEDULES[member.schedule_config.name].factor is None:
            raise UserError(
                f"population: member {number} has model.schedule.name: {member.schedule_config.name!r}, which depends "
                "on its own val/loss; train it alone, or use one that depends on progress"
            )
