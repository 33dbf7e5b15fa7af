"""Members that are not finite: the flags on the device, and what freezing does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from mlp_lab.population.freezing import Flags
from mlp_lab.population.module import PopulationModule
from mlp_lab.training.checkpoint_io import AtomicCheckpointIO
from mlp_lab.training.checkpoints import LastCheckpoint
from mlp_lab.training.optimizers import OptimizerConfig
from tests.population.fits import Poison, Prune, alone, fit

INF, NAN = float("inf"), float("nan")


def test_flags_note_the_first_step_of_each_member() -> None:
    flags, alive = Flags(4, 10, torch.device("cpu")), torch.tensor([True, True, True, False])
    for losses in ([1.0, 2.0, 3.0, NAN], [1.0, NAN, 3.0, NAN], [1.0, INF, -INF, 1.0], [1.0, 2.0, 3.0, 4.0]):
        flags.look(torch.tensor(losses), alive)
    assert flags.read() == {1: 12, 2: 13}  # the last one had stopped before
    assert alive.tolist() == [True, False, False, False]


def saved(module: PopulationModule, path: Path, *callbacks: L.Callback) -> dict[str, Any]:
    """Returns the checkpoint after two epochs of 15 steps."""
    last = LastCheckpoint(path / "last.ckpt")
    settings: dict[str, Any] = {"enable_checkpointing": True, "plugins": [AtomicCheckpointIO()]}
    fit(module, callbacks=[*callbacks, last], **settings)
    loaded: dict[str, Any] = torch.load(path / "last.ckpt", weights_only=True)
    return loaded


@pytest.mark.parametrize("step", [15, 20, 30])  # the last one of an epoch, one in between
def test_a_member_that_breaks_stops_no_checkpoint_and_no_other_member(step: int, tmp_path: Path) -> None:
    calm, broken = (PopulationModule([alone(number) for number in range(4)]) for _ in range(2))
    fit(calm)
    checkpoint = saved(broken, tmp_path, Poison(step))
    assert list(broken.failed) == list(checkpoint["population"]["failed"]) == [1]
    assert all(value.isfinite().all() for value in checkpoint["state_dict"].values())
    for number, (one, other) in enumerate(zip(calm.networks(), broken.networks(), strict=True)):
        pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
        assert all(torch.equal(*pair) for pair in pairs) == (number != 1)


def test_statistics_of_a_frozen_member_stop_no_checkpoint(tmp_path: Path) -> None:
    """Its weights are finite and huge, so that every forward pass overflows anew."""
    wild = {"depth": 2, "width": 20, "activation": "relu", "optimizer": OptimizerConfig(name="sgd", lr=1e200)}
    members = [
        alone(number, norm="batch", **(wild if number == 1 else {"depth": 2, "width": 8})) for number in range(4)
    ]
    population = PopulationModule(members)
    saved(population, tmp_path)
    assert list(population.failed) == [1]


@pytest.mark.parametrize("deferred", [False, True])
def test_where_the_last_member_that_trains_breaks_the_run_ends(deferred: bool) -> None:
    """The other one had stopped: it is finite, and so nothing is to be raised."""
    population = PopulationModule([alone(number) for number in range(2)])
    population.deferred = deferred
    trainer = fit(population, 4, callbacks=[Poison(20), Prune(0)], log_every_n_steps=1)
    assert list(population.failed) == [1]
    assert 20 <= trainer.global_step <= 21
