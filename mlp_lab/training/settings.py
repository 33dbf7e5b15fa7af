"""Checks that the configs of optimizers and schedules share, with one wording."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import fields
from typing import Any, ClassVar, Protocol

from mlp_lab.errors import UserError

LARGEST_NUMBER = 2**63 - 1  # of an integer, as PyTorch holds it


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


def check_numbers(key: str, setting: object) -> None:
    """Checks that a setting, and every number inside its groups and lists, is finite and fits into 64 bits.

    Args:
        key: What the user writes before the setting, as in "model"; empty for a whole configuration.
        setting: A number, text, a list, or a group of keys. The arguments of a user's own class are not checked.

    >>> check_numbers("model", {"optimizer": {"betas": [0.9, math.nan]}})
    Traceback (most recent call last):
    mlp_lab.errors.UserError: model.optimizer.betas: nan is not accepted; use a finite number

    Raises:
        UserError: Names the first number that is not.
    """
    if isinstance(setting, Mapping):
        if not str(setting.get("class_path") or "mlp_lab.").startswith("mlp_lab."):
            return
        for name, value in setting.items():
            check_numbers(key if name == "init_args" else f"{key}.{name}" if key else str(name), value)
    elif isinstance(setting, list | tuple):
        for value in setting:
            check_numbers(key, value)
    elif isinstance(setting, float) and not math.isfinite(setting):
        raise UserError(f"{key}: {setting} is not accepted; use a finite number")
    elif isinstance(setting, int) and abs(setting) > LARGEST_NUMBER:
        raise UserError(f"{key}: {shortened(setting)} is too large; use an integer of at most {LARGEST_NUMBER}")


def shortened(number: int) -> str:
    """Returns an integer as text, of a long one the first digits and their count.

    >>> shortened(10**400)
    '1000000000… (401 digits)'
    """
    digits = str(number)
    return digits if len(digits) <= 40 else f"{digits[:10]}… ({len(digits)} digits)"


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
