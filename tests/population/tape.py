"""What a CUDA graph is, on the CPU: kernels that were recorded once and run again on the same memory.

As under a capture nothing is computed while it is recorded: what the step has changed is put back. A replay runs the
recorded kernels and nothing of Python, so that a step whose Python does more than launch them comes out wrong. What a
capture forbids fails here too: to read a value, or to bring data from the host.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

FORBIDDEN = ("_local_scalar_dense", "lift_fresh", "nonzero", "unique", "masked_select", "is_nonzero", "equal")


def tensors(value: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor)]


class Tape(TorchDispatchMode):
    """Records the kernels of a step."""

    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, Any]] = []
        self.before: dict[int, tuple[Tensor, Tensor]] = {}  # storages that were there, and what they held
        self.mine: dict[int, Tensor] = {}  # storages of results; held, so that no other gets their address

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        if name in FORBIDDEN:
            raise RuntimeError(f"operation not permitted when stream is capturing: {func}")
        written = []
        for place, argument in enumerate(func._schema.arguments):
            if argument.alias_info is not None and argument.alias_info.is_write:
                written += tensors(args[place] if place < len(args) else kwargs.get(argument.name))
        if name == "native_batch_norm":  # its schema does not tell that it updates the running statistics
            written += args[3:5]
        for tensor in written:
            address = tensor.untyped_storage().data_ptr()
            if address not in self.mine and address not in self.before:
                whole = torch.empty(0, dtype=tensor.dtype).set_(tensor.untyped_storage())
                self.before[address] = (whole, whole.clone())
        out = func(*args, **kwargs)
        known = {tensor.untyped_storage().data_ptr() for tensor in tensors((args, kwargs))}
        fresh = [one for one in tensors(out) if one.untyped_storage().data_ptr() not in known]
        for one in fresh:
            self.mine[one.untyped_storage().data_ptr()] = one
        self.calls.append((func, args, kwargs, fresh))
        return out

    def rewind(self) -> None:
        """Puts back what the step has changed."""
        for whole, held in self.before.values():
            whole.copy_(held)

    @torch.no_grad()
    def replay(self) -> None:
        for func, args, kwargs, fresh in self.calls:
            known = {tensor.untyped_storage().data_ptr() for tensor in tensors((args, kwargs))}
            out = func(*args, **kwargs)
            results = [one for one in tensors(out) if one.untyped_storage().data_ptr() not in known]
            for target, one in zip(fresh, results, strict=True):
                target.copy_(one)


def capture(step: Callable[[Any], None], batch: Any) -> Callable[[], None]:
    """Stands in for `mlp_lab.population.graph.capture`."""
    with Tape() as tape:
        step(batch)
    with torch.no_grad():
        tape.rewind()
    return tape.replay
