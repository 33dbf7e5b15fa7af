"""Whether tensors hold numbers: no NaN, no infinity."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import Tensor


def is_finite(tensor: Tensor) -> bool:
    """Returns whether every entry is a finite number; what is not floating point always is."""
    return not tensor.is_floating_point() or bool(tensor.isfinite().all())


def all_finite(tensors: Iterable[Tensor]) -> bool:
    """Returns whether every entry of every tensor is a finite number; waits for the device.

    A finite sum proves every summand finite, at a tenth of the price of looking at each entry; only where the sum is
    not finite are they looked at, since it may have overflowed.

    >>> import torch
    >>> all_finite([torch.ones(2, 2), torch.tensor([1.0, float("nan")])])
    False
    """
    kept = [tensor for tensor in tensors if tensor.is_floating_point()]
    total = 0.0
    for tensor in kept:
        total += tensor.sum().item()
    return math.isfinite(total) or all(is_finite(tensor) for tensor in kept)


def first_bad(checkpoint: Mapping[str, Any]) -> str | None:
    """Returns the name of a tensor of weights, statistics or optimizer state that is not finite, or None.

    Args:
        checkpoint: As Lightning makes it; only `state_dict` and `optimizer_states` are looked at, for a metric may well
            be undefined.
    """
    kept = {name: checkpoint[name] for name in ("state_dict", "optimizer_states") if name in checkpoint}
    tensors = list(_tensors(kept, ""))
    if all_finite(tensor for _, tensor in tensors):
        return None
    return next((name for name, tensor in tensors if not is_finite(tensor)), None)


def _tensors(values: Any, name: str) -> Iterator[tuple[str, Tensor]]:
    if isinstance(values, Tensor):
        yield name, values
    elif isinstance(values, Mapping):
        for key, value in values.items():
            yield from _tensors(value, f"{name}.{key}" if name else str(key))
    elif isinstance(values, list | tuple):
        for index, value in enumerate(values):
            yield from _tensors(value, f"{name}[{index}]")
