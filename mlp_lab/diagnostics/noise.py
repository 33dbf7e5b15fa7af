"""The gradient noise scale: the batch size from which larger batches hardly make better steps.

McCandlish et al. (2018): with G the true gradient and Σ the covariance of a single sample's gradient, the simple noise
scale is tr Σ/|G|² (eq. 2.9). Neither is known, but a gradient over B samples has E|G_B|² = |G|² + tr Σ/B, so two batch
sizes give unbiased estimates of both (appendix A.1). Their quotient is biased and noisy: both are averaged over
measurements before they are divided, as the paper does.

Measured in evaluation mode: dropout's own noise does not count.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mlp_lab.diagnostics.norms import squared_norms
from mlp_lab.diagnostics.rank import wide

PARTS = 8
DECAY = 0.9  # of the running means, per measurement

PartLoss = Callable[[int, int], Tensor]


class NoiseSample(NamedTuple):
    """One measurement; unbiased, and so maybe negative where noise prevails."""

    signal: float
    """Estimate of |G|²."""
    noise: float
    """Estimate of tr Σ."""


def estimate(small: float, big: float, *, small_rows: int, big_rows: int) -> NoiseSample:
    """Returns the unbiased estimates from two squared gradient norms; McCandlish et al. (2018, eq. A.2 and A.3).

    Args:
        small: |G_B|² of a batch of `small_rows`, or a mean of several.
        big: the same of `big_rows`, which are more.
        small_rows: at least 1.
        big_rows: more than `small_rows`.

    >>> estimate(1.0 + 8.0 / 2, 1.0 + 8.0 / 16, small_rows=2, big_rows=16)
    NoiseSample(signal=1.0, noise=8.0)
    """
    if not 1 <= small_rows < big_rows:
        raise ValueError(f"small_rows: {small_rows} must be at least 1 and below big_rows: {big_rows}")
    signal = (big_rows * big - small_rows * small) / (big_rows - small_rows)
    noise = (small - big) / (1 / small_rows - 1 / big_rows)
    return NoiseSample(signal, noise)


def measure_noise(loss_fn: PartLoss, parameters: Sequence[Tensor], rows: int, *, parts: int = PARTS) -> NoiseSample:
    """Measures on one batch: its parts are the small batches, and their mean is the big one.

    Args:
        loss_fn: `loss_fn(first, last)` is the mean loss of rows [first, last) of the batch.
        parameters: they must require gradients; their `.grad` is left alone.
        rows: of the batch, at least 2; a rest that does not fill a part is left out.
        parts: how many small batches, at least 2; with fewer rows, one row each.
    """
    parts = min(parts, rows)
    size = rows // parts if parts else 0
    if parts < 2:
        raise ValueError(f"rows: {rows} and parts: {parts} must be at least 2")
    total: list[Tensor] | None = None
    squares: list[Tensor] = []
    with torch.inference_mode(False), torch.enable_grad():
        for part in range(parts):
            loss = loss_fn(part * size, (part + 1) * size)
            found = torch.autograd.grad(loss, parameters, materialize_grads=True)
            gradients = [one.detach().to(wide(one)) for one in found]
            squares.append(squared_norms(gradients).sum())
            total = (
                gradients if total is None else [one.add_(other) for one, other in zip(total, gradients, strict=True)]
            )
    assert total is not None
    small, big = torch.stack([torch.stack(squares).mean(), squared_norms(total).sum() / parts**2]).tolist()
    return estimate(small, big, small_rows=size, big_rows=size * parts)


class NoiseScale:
    """Running means of both estimates over measurements, so that their quotient settles."""

    def __init__(self, decay: float = DECAY) -> None:
        self.decay = decay
        self.signal = self.noise = 0.0

    def update(self, sample: NoiseSample) -> dict[str, float]:
        """Adds a measurement; one that is not finite is left out.

        Returns:
            `noise/scale` in rows; NaN while the estimate of |G|² is not positive: the noise prevails by far, or the
            gradient is 0.
        """
        if math.isfinite(sample.signal) and math.isfinite(sample.noise):
            self.signal = self.decay * self.signal + (1 - self.decay) * sample.signal
            self.noise = self.decay * self.noise + (1 - self.decay) * sample.noise
        return {"noise/scale": self.noise / self.signal if self.signal > 0 else math.nan}

    def state_dict(self) -> dict[str, Any]:
        """Returns the running means."""
        return {"signal": self.signal, "noise": self.noise}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores them."""
        self.signal, self.noise = state["signal"], state["noise"]
