"""A parsed configuration in plain types, as `config.yaml` holds it and the parser reads it back."""

from __future__ import annotations

import warnings
from enum import Enum
from typing import Any

import torch
import yaml
from jsonargparse import Namespace
from lightning.pytorch.cli import LightningArgumentParser

from mlp_lab.errors import UserError
from mlp_lab.paths import expand_path

NOT_IN_CONFIG = ("config", "ckpt_path", "weights_only")
PATH_KEYS = ("path", "root", "test_path")
UNWRITTEN = "Unable to serialize instance"  # what jsonargparse writes in place of an object


def plain_config(parser: LightningArgumentParser, config: Namespace) -> dict[str, Any]:
    """Returns a configuration as the parser's YAML writes it.

    The arguments of Lightning's own callbacks may be objects: members of enumerations, devices. Text that jsonargparse
    takes for the name of a function, such as `ModelPruning`'s `l1_unstructured`, stays text.

    Raises:
        UserError: A value is an object that no text stands for.
    """
    plain = _without_objects(config)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=f"(?s).*{UNWRITTEN}")
        written = yaml.safe_load(parser.dump(plain, skip_unset=False, format="yaml"))
    return {key: _with_text(value, plain.get(key), key) for key, value in written.items() if key not in NOT_IN_CONFIG}


def repeatable(config: dict[str, Any], data: object) -> dict[str, Any]:
    """Returns a plain configuration that trains the same from any directory: without the run's, with absolute paths.

    Args:
        config: What `plain_config` returned; it is changed.
        data: The data module, whose paths win: it knows the default root.
    """
    config["run"].pop("dir", None)
    arguments = config["data"].setdefault("init_args", {})
    arguments.pop("fitted", None)
    for key in PATH_KEYS:
        value = getattr(data, key, None) or arguments.get(key)
        if key in arguments and value:
            arguments[key] = str(expand_path(f"data.{key}", value).absolute())
    return config


def _without_objects(value: Any) -> Any:
    """Returns a copy in which enumerations and devices are the text that their classes accept."""
    if isinstance(value, Namespace):
        return Namespace({name: _without_objects(item) for name, item in vars(value).items()})  # type: ignore[no-untyped-call]
    if isinstance(value, dict):
        return {name: _without_objects(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return type(value)(map(_without_objects, value))
    if isinstance(value, Enum):
        return value.value
    return str(value) if isinstance(value, torch.device) else value


def _with_text(written: Any, config: Any, key: str) -> Any:
    """Puts back the text that jsonargparse could not write."""
    if isinstance(written, dict):
        values = vars(config) if isinstance(config, Namespace) else config
        return {name: _with_text(item, _item(values, name), f"{key}.{name}") for name, item in written.items()}
    if isinstance(written, list):
        items = config if isinstance(config, list | tuple) and len(config) == len(written) else [None] * len(written)
        return [_with_text(item, value, key) for item, value in zip(written, items, strict=True)]
    if not isinstance(written, str) or not written.startswith(UNWRITTEN):
        return written
    if not isinstance(config, str):
        raise UserError(f"{key}: config.yaml cannot hold {config!r}; give its class or function by name")
    return config


def _item(values: Any, name: str) -> Any:
    return values.get(name) if isinstance(values, dict) else None
