"""One measuring step, from the hooks that go in before its forward pass to the numbers after its optimizer step."""

from __future__ import annotations

from collections.abc import Collection
from contextlib import ExitStack

import lightning as L
import torch
import torch.distributed
from torch import Tensor
from torch.optim import Optimizer

from mlp_lab.diagnostics.capture import Capture, eager
from mlp_lab.diagnostics.gradients import (
    SignalSums,
    Values,
    clipping,
    combine,
    gradient_norms,
    signal,
    signal_sums,
    update_ratios_,
)
from mlp_lab.diagnostics.norms import squared_norms, widen
from mlp_lab.diagnostics.rank import at_least_float32
from mlp_lab.diagnostics.units import saturated_entries
from mlp_lab.model.activations import derivative
from mlp_lab.model.mlp import MLP
from mlp_lab.training.accumulation import loss_divisor


class StepProbe:
    """Measures one optimizer step: `open` before it, `before_step` between backward and clipping, `after_step`.

    Args:
        mlp: the network.
        groups: what is measured, as in `GROUPS`; `units` adds how saturated the batch is.
    """

    def __init__(self, mlp: MLP, groups: Collection[str]) -> None:
        self.mlp, self.groups = mlp, groups
        self.capture = Capture(mlp)
        self._scope = ExitStack()
        self._values: Values = {}
        self._sums: SignalSums | None = None
        self._before: list[Tensor] = []
        self._sizes: Tensor | None = None  # (L + 1): ‖W_l‖² of those
        self._saturated: Tensor | None = None  # (2, L): saturated entries, and all
        self._loss_scale = 1.0
        self._unscales = False

    def open(self) -> None:
        """Puts the hooks in, if the signal is measured; compiled networks run eagerly until `close`."""
        if {"signal", "units", "histograms"}.intersection(self.groups):
            self._scope.enter_context(eager())
            self._scope.enter_context(self.capture)

    def close(self) -> None:
        """Takes the hooks out and lets everything go that was captured; harmless when done twice."""
        self._scope.close()
        self.rest()

    def rest(self) -> None:
        """Lets everything go that was captured, and leaves the hooks in for the next step."""
        self.capture.clear()
        self._values, self._sums, self._before, self._sizes, self._saturated = {}, None, [], None, None

    @torch.no_grad()
    def before_step(self, trainer: L.Trainer, optimizer: Optimizer) -> None:
        """Measures gradients and signals, and copies the weights."""
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        self._loss_scale = scaler.get_scale() if scaler is not None else 1.0
        # An optimizer that unscales by itself, as fused ones can, still has the gradients of the scaled loss here.
        own = getattr(optimizer, "optimizer", optimizer)  # Lightning wraps it
        self._unscales = scaler is not None and getattr(own, "_step_supports_amp_scaling", False)
        if "gradients" in self.groups:
            self._values = self._gradient_norms(trainer, scale=self._loss_scale if self._unscales else 1.0)
        if "signal" in self.groups and (layers := self.capture.layers):
            weights = [linear.weight for linear in self.mlp.linears]
            self._sums = signal_sums(layers, self.capture.logit_gradient, weights, self.capture.skips)
        if "units" in self.groups:
            self._saturated = self._saturation()
        if "updates" in self.groups:
            self._before = [linear.weight.detach().clone() for linear in self.mlp.linears]
            self._sizes = squared_norms(self._before)

    @property
    def gradient_norm(self) -> Tensor | None:
        """The norm of all gradients of the step, once it is measured."""
        return self._values.get("grad/norm")

    @torch.no_grad()
    def after_step(self, trainer: L.Trainer) -> Values | None:
        """Returns the values of the step, or None where the loss scaler has skipped it; a collective call under DDP."""
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        if scaler is not None and scaler.get_scale() < self._loss_scale:
            return None
        values = dict(self._values)
        if "grad/norm" in values:
            norm = values["grad/norm"]
            clipped = self._gradient_norms(trainer)["grad/norm"] if self._can_clip(trainer) else norm
            values |= clipping(norm, clipped)
        if self._before:
            after = [linear.weight.detach() for linear in self.mlp.linears]
            values |= update_ratios_(self._before, after, self._sizes)
        if self._sums is not None:
            sums = combine(gather(self._sums))
            # The gradient is that of a mean over all rows, times the scale of the loss, divided by the accumulated
            # batches and, before DDP's mean over processes, multiplied by their number.
            factor = loss_divisor(trainer, trainer.lightning_module) / (trainer.world_size * self._loss_scale)
            values |= signal(sums, scale=(sums.rows * factor).unsqueeze(-1))
        if self._saturated is not None:
            if trainer.world_size > 1:
                torch.distributed.all_reduce(self._saturated)
            values["units/saturated/{l}"] = self._saturated[0] / self._saturated[1]
        return values

    def histograms(self) -> dict[str, Tensor]:
        """Returns weights, clipped gradients and activations by layer, for `send_histograms`."""
        tensors: dict[str, Tensor] = {}
        for number, linear in enumerate(self.mlp.linears, start=1):
            tensors[f"histograms/weight/{number}"] = linear.weight.detach()
            if linear.weight.grad is not None:
                tensors[f"histograms/gradient/{number}"] = linear.weight.grad
        for number, layer in enumerate(self.capture.layers, start=1):
            assert layer.a is not None
            tensors[f"histograms/activation/{number}"] = layer.a
        return tensors

    def _saturation(self) -> Tensor | None:
        """Counts the saturated entries of the batch, (2, L); None where φ has no two flat tails, or no layer."""
        record, layers = self.mlp.phi, self.capture.layers
        if not (record.saturates and layers):
            return None
        counts = []
        for layer in layers:
            assert layer.z is not None
            flat = saturated_entries(derivative(record.function, at_least_float32(layer.z)), record.max_derivative)
            counts.append(torch.stack([flat.sum(), torch.tensor(flat.numel(), device=flat.device)]))
        return widen(torch.stack(counts, -1))

    def _can_clip(self, trainer: L.Trainer) -> bool:
        """Whether gradients after the step may differ from those before it."""
        hook = type(trainer.lightning_module).configure_gradient_clipping
        custom = not hook.__module__.startswith(("lightning.", "mlp_lab."))
        return not self._unscales and (bool(trainer.gradient_clip_val) or custom)

    def _gradient_norms(self, trainer: L.Trainer, scale: float = 1.0) -> Values:
        weights = [linear.weight for linear in self.mlp.linears]
        known = {id(weight) for weight in weights}
        everything = (
            one for optimizer in trainer.optimizers for group in optimizer.param_groups for one in group["params"]
        )
        others = [one.grad for one in everything if id(one) not in known and one.grad is not None]
        return gradient_norms([weight.grad for weight in weights], others, scale=scale)


def gather(sums: SignalSums) -> list[SignalSums]:
    """Returns the sums of every process, in their order; a collective call under DDP."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return [sums]
    tensors = [sums.rows, *sums.means, *sums[2:]]
    flat = torch.cat([tensor.reshape(-1) for tensor in tensors])
    parts = [torch.empty_like(flat) for _ in range(torch.distributed.get_world_size())]
    torch.distributed.all_gather(parts, flat)
    return [_unflatten(part, tensors) for part in parts]


def _unflatten(flat: Tensor, like: list[Tensor]) -> SignalSums:
    pieces = torch.split(flat, [one.numel() for one in like])
    shaped = [piece.view_as(one) for piece, one in zip(pieces, like, strict=True)]
    return SignalSums._make([shaped[0], tuple(shaped[1:-6]), *shaped[-6:]])


def mean_over_processes(trainer: L.Trainer, loss: Tensor) -> Tensor:
    """Returns the mean of a loss over processes, a collective call under DDP."""
    if trainer.world_size == 1:
        return loss
    total = loss.clone()
    torch.distributed.all_reduce(total)
    return total / trainer.world_size
