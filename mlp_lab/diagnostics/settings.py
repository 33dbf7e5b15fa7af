"""What the diagnostics measure, and when."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from mlp_lab.errors import UserError, unknown

GROUPS: dict[str, str] = {
    "gradients": "norms of the gradient, before and after clipping, and of each layer",
    "updates": "how far the real optimizer step moved each layer's weights",
    "signal": "what each layer passes on, forward and backward, and which factor of the chain rule shrinks it",
    "units": "dead, dormant and saturated units, and the effective rank of each layer",
    "init": "the first backward pass against mean-field theory",
    "noise": "gradient noise scale",
    "curvature": "sharpness: the largest eigenvalue of the loss's Hessian",
    "histograms": "histograms of weights and gradients per layer, for Weights & Biases",
}
"""Metric groups, and what each one tells."""

DEFAULT_GROUPS = ("gradients", "updates", "signal", "units", "init")  # the others cost more: on request
PROBES = ("val", "train")
FIRST_STEPS = 10  # their updates are always measured: a learning rate far too high shows in them


@dataclass(frozen=True, kw_only=True)
class DiagnosticsConfig:
    """What the diagnostics measure, and when."""

    every_n_steps: int = 100
    """Optimizer steps between two measurements, at least 1. The first step, and the updates of the first ten steps, are
    always measured."""
    groups: list[str] = field(default_factory=lambda: list(DEFAULT_GROUPS))
    """List of what is measured: gradients, updates, signal, units, init, and, on request, noise, curvature and
    histograms (Weights & Biases). [] measures nothing."""
    probe: str = "val"
    """Rows over which hidden units are judged: val (each validation pass) or train (each training epoch)."""

    def __post_init__(self) -> None:
        every = self.every_n_steps
        if isinstance(every, bool) or not isinstance(every, int) or every < 1:
            raise UserError(f"diagnostics.every_n_steps: {every!r} is out of range; accepted: an integer of at least 1")
        groups: object = self.groups
        if isinstance(groups, str) or not isinstance(groups, Sequence):
            raise UserError(
                f"diagnostics.groups: {self.groups!r} is not a list; accepted: a list of {', '.join(GROUPS)}"
            )
        for group in self.groups:
            if group not in GROUPS:
                raise unknown("diagnostics.groups", group, GROUPS)
        if self.probe not in PROBES:
            raise unknown("diagnostics.probe", self.probe, PROBES)
