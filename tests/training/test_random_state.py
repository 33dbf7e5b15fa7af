"""The random generators of a resumed run."""

from __future__ import annotations

import random
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lightning as L
import numpy as np
import torch

from mlp_lab.training.random_state import RandomState

MODULE: Any = L.LightningModule()
TRAINER: Any = SimpleNamespace(world_size=1, global_rank=0)


def test_random_generators_go_on_where_they_were(tmp_path: Path) -> None:
    def draw() -> tuple[float, float, float, float]:
        return random.random(), float(np.random.rand()), float(torch.rand(())), random.gauss(0, 1)

    random.seed(1), np.random.seed(2), torch.manual_seed(3)  # type: ignore[func-returns-value]
    draw()
    np.random.randn()  # leaves a second Gaussian number in the cache
    torch.save(RandomState().state_dict(), tmp_path / "state")
    expected = draw(), np.random.randn()
    other = RandomState()
    other.load_state_dict(torch.load(tmp_path / "state", weights_only=True))
    draw()
    other.on_train_start(TRAINER, MODULE)
    assert (draw(), np.random.randn()) == expected
