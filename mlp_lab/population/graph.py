"""One training step as a CUDA graph: captured once, then launched as a whole without Python or the launch of a kernel.

A graph replays the same kernels on the same memory. So a batch is copied to where the captured step has read it, and
whatever changes from step to step (learning rates, counters, who is frozen) is kept in tensors on the device.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable

import torch
from torch import Tensor

from mlp_lab.data.loader import Batch

WARM_UP = 3
"""Steps before the capture, on a stream of its own: libraries set themselves up in them."""


class StepGraph:
    """Takes steps on batches of one shape.

    Args:
        step: takes one step on a batch. It must neither wait for the device nor copy from the host, and leave no state
            but tensors, in place.
    """

    def __init__(self, step: Callable[[Batch], None]) -> None:
        self._step = step
        self._batch: Batch | None = None  # what the captured step reads
        self._warm = 0
        self._replay: Callable[[], None] | None = None
        self._broken = False

    def take(self, batch: Batch) -> bool:
        """Takes a step; does nothing and returns False where the batch is of another shape, or none can be captured."""
        if self._broken or not self._load(batch):
            return False
        assert self._batch is not None
        if self._warm < WARM_UP:
            self._warm += 1
            on_side_stream(self._step, self._batch)
            return True
        if self._replay is None:
            try:
                self._replay = capture(self._step, self._batch)
            except RuntimeError as error:
                reason = " ".join(str(error).split())
                warnings.warn(f"CUDA graph: the step is launched kernel by kernel, for {reason}", stacklevel=2)
                self._broken, self._batch = True, None
                return False
        self._replay()
        return True

    def _load(self, batch: Batch) -> bool:
        """Copies a batch to where the step reads it; returns whether it is of the same shape."""
        if self._batch is None:
            numeric, categorical, target = (None if one is None else one.clone() for one in batch[:3])
            assert numeric is not None
            self._batch = Batch(numeric, categorical, target, batch.count)
            return True
        pairs = list(zip(self._batch[:3], batch[:3], strict=True))
        if self._batch.count != batch.count or any(_kind(mine) != _kind(other) for mine, other in pairs):
            return False
        for mine, other in pairs:
            if mine is not None and other is not None:
                mine.copy_(other)
        return True


def can_capture(device: torch.device) -> bool:
    """Says whether a device has graphs."""
    return device.type == "cuda"


def _kind(tensor: Tensor | None) -> object:
    return None if tensor is None else (tensor.shape, tensor.dtype)


def on_side_stream(step: Callable[[Batch], None], batch: Batch) -> None:
    """Takes a step on another stream, before and after all else: a capture begins in the same state."""
    current, side = torch.cuda.current_stream(), torch.cuda.Stream()  # type: ignore[no-untyped-call]
    side.wait_stream(current)
    with torch.cuda.stream(side):
        step(batch)
    current.wait_stream(side)


def capture(step: Callable[[Batch], None], batch: Batch) -> Callable[[], None]:
    """Captures a step, in memory of the graph's own; returns what replays it. Nothing is computed yet."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        step(batch)
    return graph.replay
