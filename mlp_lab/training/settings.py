"""Checks that the configs of optimizers and schedules share, with one wording."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import fields
from typing import Any, ClassVar, Protocol

from mlp_lab.errors import UserError


class NamedConfig(Protocol):
    """A config dataclass whose `name` chooses an entry of a registry."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    @property
    def name(self) -> str:
        """Key of the registry."""


def check(key: str, value: object, valid: bool, accepted: str) -> None:
    """Raises the error for a value out of range.

    >>> check("model.optimizer.lr", -1.0, valid=False, accepted="a number > 0")
    Traceback (most recent call last):
    mlp_lab.errors.UserError: model.optimizer.lr: -1.0 is out of range; accepted: a number > 0

    Raises:
        UserError: If the value is not `valid`.
    """
    if not valid:
        raise UserError(f"{key}: {value!r} is out of range; accepted: {accepted}")


def refuse_unused(key: str, config: NamedConfig, uses: Mapping[str, Collection[str]]) -> None:
    """Refuses a setting that was changed from its default but has no effect under the config's `name`.

    Args:
        key: What the user writes before the setting, as in "model.optimizer".
        config: The settings.
        uses: Per registry entry, the settings that it reads; a setting that none lists is read by all.

    Raises:
        UserError: For the first such setting, naming the entries that do read it.
    """
    for field in fields(config):
        value = getattr(config, field.name)
        users = [name for name, settings in uses.items() if field.name in settings]
        if users and config.name not in users and value != field.default:
            raise UserError(
                f"{key}.{field.name}: {value!r} has no effect on {config.name!r}; it belongs to {', '.join(users)}"
            )
