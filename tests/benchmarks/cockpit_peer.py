"""784-256-256-256-10 in a hand-written loop, alone and watched by Cockpit's economy configuration.

Cockpit (Schneider et al. 2021) 1.0.2 needs an environment that still has `pkg_resources`:

    uv pip install "setuptools<80" cockpit-for-pytorch
"""

from __future__ import annotations

import importlib.util
import time
import warnings
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from tests.benchmarks.recipe import BATCH_SIZE, LEARNING_RATE

EPOCHS = 2  # the first one warms up
MOST_STEPS = 10  # watched ones take seconds each


def installed() -> bool:
    """Whether Cockpit, and what it needs, is there."""
    return all(importlib.util.find_spec(name) is not None for name in ("cockpit", "backpack", "pkg_resources"))


def train(x: Tensor, y: Tensor, *, steps: int, watched: bool) -> float:
    """Returns the microseconds per step of the last epoch."""
    network: Any = nn.Sequential(
        *(part for size in (784, 256, 256) for part in (nn.Linear(size, 256), nn.ReLU())), nn.Linear(256, 10)
    )
    loss_of, each_of = nn.CrossEntropyLoss(), nn.CrossEntropyLoss(reduction="none")
    cockpit: Any = None
    if watched:
        from backpack import extend
        from cockpit import Cockpit
        from cockpit.utils.configuration import configuration

        network, loss_of, each_of = extend(network), extend(loss_of), extend(each_of)
        cockpit = Cockpit(network.parameters(), quantities=configuration("economy"))  # which tracks every step
        steps = min(steps, MOST_STEPS)
    optimizer = torch.optim.SGD(network.parameters(), lr=LEARNING_RATE)  # the one that Cockpit knows
    started, step = 0.0, 0
    for _ in range(EPOCHS):
        started = time.perf_counter()
        for rows in islice(torch.split(torch.randperm(len(x)), BATCH_SIZE), steps):
            inputs, targets = x.index_select(0, rows), y.index_select(0, rows)
            optimizer.zero_grad()
            logits = network(inputs)
            loss = loss_of(logits, targets)
            if cockpit is None:
                loss.backward()
            else:
                info = {"batch_size": len(rows), "individual_losses": each_of(logits, targets).detach(), "loss": loss}
                with warnings.catch_warnings(), cockpit(step, info={**info, "optimizer": optimizer}):
                    warnings.simplefilter("ignore")
                    loss.backward(create_graph=cockpit.create_graph(step))
            optimizer.step()
            step += 1
    return 1e6 * (time.perf_counter() - started) / steps
