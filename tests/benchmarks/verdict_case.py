"""A case of the verdicts' benchmark, and short names for what cases are made of."""

from __future__ import annotations

from typing import Any, NamedTuple

Config = dict[str, Any]


class Case(NamedTuple):
    """A run to judge: the name of a fault, what `fit` takes, and which codes name it."""

    name: str
    config: Config
    accepted: tuple[str, ...] = ()  # codes that name the fault; none for a healthy run
    plant: str = ""  # a key of `PLANTS` where no flag makes the fault


def digits(**settings: Any) -> Config:
    return {"dataset": "digits", "batch_size": 32, **settings}


def letter(**settings: Any) -> Config:
    return {"dataset": "letter", "batch_size": 64, "split": [0.2, 0.1, 0.7], **settings}


def adult(**settings: Any) -> Config:
    return {"dataset": "adult", "batch_size": 128, "split": [0.8, 0.1, 0.1], **settings}


def california(**settings: Any) -> Config:
    return {"dataset": "california", "batch_size": 128, "split": [0.3, 0.1, 0.6], **settings}


def bundled(name: str, **settings: Any) -> Config:
    return {"dataset": name, "batch_size": 16, **settings}


def telco(**settings: Any) -> Config:
    return {"dataset": "telco", "batch_size": 64, **settings}


def mnist(**settings: Any) -> Config:
    return {"class_path": "MNISTDataModule", "batch_size": 64, "download": False, **settings}


def sgd(lr: float, momentum: float = 0.0) -> Config:
    return {"name": "sgd", "lr": lr, "momentum": momentum}


def adam(lr: float, **settings: Any) -> Config:
    return {"name": "adam", "lr": lr, **settings}


def model(activation: str, depth: int, width: int | list[int], optimizer: Config, **settings: Any) -> Config:
    return {"activation": activation, "depth": depth, "width": width, "optimizer": optimizer, **settings}


def case(
    name: str, data: Config, model: Config, *accepted: str, epochs: int = 8, plant: str = "", **trainer: Any
) -> Case:
    return Case(name, {"data": data, "model": model, "trainer": {"max_epochs": epochs, **trainer}}, accepted, plant)
