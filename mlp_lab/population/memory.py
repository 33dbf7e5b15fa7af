"""How much memory a population takes, before it is built, and how to cut it into parts that fit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import torch

from mlp_lab.errors import UserError
from mlp_lab.model.mlp import MLP
from mlp_lab.training.heap import give_back_freed_memory

BYTES = 4  # of a float32
STATES = {"sgd": 0, "adam": 2, "adamw": 2}  # optimizer values per weight; sgd has one with momentum
COPIES = 3  # per weight: itself, its gradient, and the member that it was copied from or a gradient on its way
JOINT = 12
"""More per weight where one formula updates all members: 3 to 8 were measured on the CPU, the fewer the more settings
the members share; a captured step has its temporaries twice."""
PER_UNIT = 2.5  # values per row and hidden unit: z, a, and half of the time their gradients
PER_OUTPUT = 4.0  # the same per logit: its loss keeps the probabilities too
SHARE = 0.8
"""Of the free memory that is given to populations: other programs want some, and the estimate is one."""


def member_bytes(
    mlp: MLP,
    batch_size: int,
    *,
    optimizer: str = "adam",
    momentum: float | None = None,
    itemsize: int = BYTES,
    joint: bool = False,
) -> int:
    """Estimates what one member adds to a population's memory in training; the data are not counted.

    Six populations of 25 to 110 MB of weights or activations took 0.85 to 1.1 times the estimate.

    Args:
        mlp: its network.
        batch_size: rows of a batch.
        optimizer: a key of `STATES`.
        momentum: of sgd, which then keeps a value per weight.
        itemsize: bytes of a value.
        joint: whether one formula updates all members and a graph repeats their step, as on CUDA.
    """
    states = STATES.get(optimizer, 2) + (1 if optimizer == "sgd" and momentum else 0)
    weights = sum(parameter.numel() for parameter in mlp.parameters())
    values = batch_size * (PER_UNIT * sum(mlp.widths) + PER_OUTPUT * mlp.out_features)
    copies = COPIES + states + (JOINT if joint else 0)
    return round(itemsize * (weights * copies + values * (2 if joint else 1)))


def free_bytes(device: torch.device | str = "cpu") -> int | None:
    """Returns the memory that is free on a device; None where the system does not say."""
    device = torch.device(device)
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    give_back_freed_memory()
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return None
    return next((1024 * int(line.split()[1]) for line in lines if line.startswith("MemAvailable:")), None)


def chunks(sizes: Sequence[int], budget: int) -> list[list[int]]:
    """Splits members, in their order, into as few parts as a budget allows when each is filled before the next.

    >>> chunks([3, 3, 3, 1], budget=6)
    [[0, 1], [2, 3]]

    Args:
        sizes: bytes of every member.
        budget: bytes that a part may take.

    Raises:
        UserError: One member alone takes more.
    """
    parts: list[list[int]] = []
    left = 0
    for number, size in enumerate(sizes):
        if size > budget:
            raise UserError(
                f"population: member {number} takes about {mega(size)}, and {mega(budget)} may be used; make it or "
                "data.batch_size smaller"
            )
        if not parts or size > left:
            parts.append([])
            left = budget
        parts[-1].append(number)
        left -= size
    return parts


def mega(count: float) -> str:
    """Returns bytes as text.

    >>> mega(3 * 2**20), mega(5 * 2**30)
    ('3.0 MiB', '5.0 GiB')
    """
    return f"{count / 2**30:,.1f} GiB" if count >= 2**30 else f"{count / 2**20:,.1f} MiB"
