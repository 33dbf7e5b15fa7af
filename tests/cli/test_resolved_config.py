from __future__ import annotations

from collections.abc import Callable
from enum import Enum

import pytest
import torch
from jsonargparse import Namespace
from lightning.pytorch.cli import LightningArgumentParser

from mlp_lab.cli.resolved_config import plain_config
from mlp_lab.errors import UserError


class Interval(Enum):
    step = "step"


def parsed(**values: object) -> tuple[LightningArgumentParser, Namespace]:
    parser = LightningArgumentParser(parser_mode="yaml")
    parser.add_argument("--interval", type=str, default="step")
    parser.add_argument("--device", type=torch.device | str | None, default=None)
    parser.add_argument("--function", type=Callable | str, default="relu")
    config = parser.parse_args([])
    for name, value in values.items():
        setattr(config, name, value)
    return parser, config


def test_plain_config_writes_enumerations_devices_and_names_as_text() -> None:
    parser, config = parsed(interval=Interval.step, device=torch.device("cpu"), function="l1_unstructured")
    plain = plain_config(parser, config)
    assert plain == {"interval": "step", "device": "cpu", "function": "l1_unstructured"}
    assert config.interval is Interval.step


def test_plain_config_of_an_object_without_text_is_refused() -> None:
    parser, config = parsed(function=lambda x: x)
    with pytest.raises(UserError, match=r"function: config\.yaml cannot hold <function"):
        plain_config(parser, config)
