"""A NaN or an infinity stops training within its step.

Every step is checked, whatever `diagnostics.groups` says: gradients before the optimizer uses them, so that the weights
in memory stay good, and the loss and the weights after it. A finite sum proves every summand finite, and a sum costs
one reading of the tensor; only a sum that is not finite is looked at entry by entry (it may have overflowed).

On the CPU the sums are read at once: 10 us a step for 784-128-10, 30 us for 784-256-256-256-10, each for gradients and
for weights. Elsewhere reading waits for the device, so flags are accumulated there, one kernel a pass, and read every
`read_every` steps, before any validation and before any checkpoint; fused optimizers skip their update from the flagged
step on (they know `found_inf` from the gradient scaler), so that the weights stay good till then, and for any other
optimizer gradients are read at once. The flag counts, so the step that is named is the first bad one, not the one at
which it was read.

Under a `GradScaler` an overflow of the gradients is normal: they are not looked at, its loss and weights are. Under
several processes all of them stop at the same step: gradients are equal on all of them, and the rest is agreed upon.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import lightning as L
import torch
import torch.distributed
from torch import Tensor
from torch.optim import Optimizer

from mlp_lab.diagnostics.scan import PLACES, NonFinite, first_nonfinite
from mlp_lab.errors import NonFiniteError
from mlp_lab.training.finite import all_finite

__all__ = ["KEY", "FiniteCheck", "NonFinite", "NonFiniteError"]

KEY = "numerics/nonfinite"
READ_EVERY = 50  # steps between readings of the device's flags
MOST_BYTES = 2**28  # of batches that are kept between two readings, to name the row at fault


class FiniteCheck:
    """Looks for NaN and infinities on every step; a callback forwards its hooks of the same names.

    Args:
        read_every: Steps between readings where reading waits for the device.
        deferred: Whether to accumulate flags and read them rarely; None does so everywhere but on the CPU.
    """

    def __init__(self, read_every: int = READ_EVERY, deferred: bool | None = None) -> None:
        self.read_every = read_every
        self.deferred = deferred
        self.found: NonFinite | None = None
        self._batches: list[tuple[int, Any]] = []  # micro-batches of the step, or those since the last reading
        self._stepped = False
        self._flags: _Flags | None = None
        self._weights: list[Tensor] = []

    # ---- the hooks ------------------------------------------------------------------------------------------------

    def on_train_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Lists the weights to look at."""
        self.found, self._batches, self._stepped = None, [], False
        self._weights = [parameter.detach() for parameter in module.parameters() if parameter.is_floating_point()]
        later = trainer.strategy.root_device.type != "cpu" if self.deferred is None else self.deferred
        self._flags = _Flags(trainer.strategy.root_device, self.read_every) if later else None

    def on_train_batch_start(self, trainer: L.Trainer, module: L.LightningModule, batch: Any, batch_idx: int) -> None:
        """Keeps the batch till its step has been found good."""
        self._batches.append((batch_idx, batch))

    def on_before_optimizer_step(
        self,
        trainer: L.Trainer,
        module: L.LightningModule,
        optimizer: Optimizer,
        norm: Tensor | None = None,
    ) -> None:
        """Looks at the gradients, unless a gradient scaler may have let them overflow.

        Args:
            trainer: The trainer that takes the step.
            module: Its module.
            optimizer: The one whose gradients are looked at.
            norm: Of all gradients, where it has just been measured: where it is finite, they are.

        Raises:
            NonFiniteError: One is not finite.
        """
        self._stepped = True
        if getattr(trainer.precision_plugin, "scaler", None) is not None:
            return
        if norm is not None and self._flags is None and math.isfinite(norm.item()):
            return
        gradients = [one.grad for group in optimizer.param_groups for one in group["params"] if one.grad is not None]
        guarded = self._flags is not None and self._flags.guard(optimizer, gradients)
        if not guarded and not all_finite(gradients):
            self._stop(trainer, module, trainer.global_step + 1, None)

    def on_train_batch_end(
        self, trainer: L.Trainer, module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Looks at the loss and, after an optimizer step, at the weights.

        Raises:
            NonFiniteError: One is not finite.
        """
        loss = outputs.get("loss") if isinstance(outputs, dict) else outputs
        tensors = [loss] if isinstance(loss, Tensor) else []
        stepped, self._stepped = self._stepped, False
        if stepped:
            tensors += self._weights
        if self._flags is not None:
            self._flags.add(tensors, stepped)
            if self._flags.due(self._batches):
                self.read(trainer, module)
            return
        bad = not all_finite(tensors)
        if trainer.world_size > 1:
            bad = trainer.strategy.reduce_boolean_decision(bad, all=False)
        if bad:
            self._stop(trainer, module, trainer.global_step + (not stepped), loss)
        del self._batches[: None if stepped else -trainer.accumulate_grad_batches]

    def read(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Reads the device's flags: before a validation, a checkpoint and the end of an epoch.

        A collective call under DDP; costs nothing on the CPU, where nothing is left to read.

        Raises:
            NonFiniteError: A step since the last reading was not finite.
        """
        if self._flags is None:
            return
        late = self._flags.read(trainer)
        if late:
            self._batches = self._batches[max(0, len(self._batches) - late * trainer.accumulate_grad_batches) :]
            self._stop(trainer, module, max(1, trainer.global_step - late + 1), None)
        self._batches.clear()

    def on_train_end(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Lets go of batches and optimizers; also after an exception."""
        self._batches, self._weights = [], []
        for optimizer in trainer.optimizers:
            optimizer.__dict__.pop("found_inf", None)

    def on_exception(self, trainer: L.Trainer, module: L.LightningModule, exception: BaseException) -> NonFinite | None:
        """Returns what a `NonFiniteError` tells of; where a checkpoint was refused, it is looked for here."""
        if isinstance(exception, NonFiniteError):
            if self.found is None:
                step = max(1, trainer.global_step)
                tensor = exception.found if isinstance(exception.found, str) else ""
                self.found = first_nonfinite(trainer, module, [], step=step, loss=None)
                self.found = self.found or NonFinite(step=step, place="weight", tensor=tensor)
            exception.found = self.found
        self.on_train_end(trainer, module)
        return self.found

    def values(self) -> dict[str, float]:
        """Returns the flag as it is logged."""
        return {KEY: float(self.found is not None)}

    # ---- a hit ----------------------------------------------------------------------------------------------------

    def _stop(self, trainer: L.Trainer, module: L.LightningModule, step: int, loss: Tensor | None) -> None:
        found = first_nonfinite(trainer, module, self._batches, step=step, loss=loss)
        # Nothing is left to see only where a gradient was bad some steps before the flag was read.
        self.found = _agree(trainer, found) or NonFinite(step=step, place="gradient", tensor="gradient")
        raise NonFiniteError(str(self.found), self.found)


class _Flags:
    """Flags on the device, set by one kernel a pass and never taken back."""

    def __init__(self, device: torch.device, read_every: int) -> None:
        self.read_every = read_every
        self.steps = 0  # since the last reading
        self.flag = torch.zeros((), device=device)  # 1 from the first bad step on
        self.late = torch.zeros((), device=device)  # bad steps so far
        self.one = torch.ones((), device=device)

    def guard(self, optimizer: Optimizer, gradients: Sequence[Tensor]) -> bool:
        """Flags gradients, if the optimizer is one that skips its update where the flag is set; returns whether."""
        if not getattr(optimizer, "_step_supports_amp_scaling", False):
            return False
        self._look(gradients)
        optimizer.found_inf = self.flag  # type: ignore[attr-defined]
        return True

    def add(self, tensors: Sequence[Tensor], stepped: bool) -> None:
        """Flags loss and weights, and counts a step from the first bad one on."""
        self._look(tensors)
        if stepped:
            self.late += self.flag
            self.steps += 1

    def _look(self, tensors: Sequence[Tensor]) -> None:
        """Sets the flag where an entry is not finite: the gradient scaler's own pass, scaling by 1."""
        for kind in {tensor.dtype for tensor in tensors}:
            same = [tensor for tensor in tensors if tensor.dtype == kind]
            torch._amp_foreach_non_finite_check_and_unscale_(same, self.flag, self.one)

    def due(self, batches: Sequence[tuple[int, Any]]) -> bool:
        """Returns whether to read: after so many steps, or where the batches kept since take too much memory."""
        return self.steps >= self.read_every or _nbytes(batches) > MOST_BYTES

    def read(self, trainer: L.Trainer) -> int:
        """Returns for how many steps the flag has been set; a collective call under DDP."""
        late = torch.maximum(self.late, self.flag)  # the flag alone, where its step is not over
        if trainer.world_size > 1:
            torch.distributed.all_reduce(late, op=torch.distributed.ReduceOp.MAX)
        self.steps = 0
        return int(late.item())


def _nbytes(batches: Sequence[tuple[int, Any]]) -> int:
    last = batches[-1][1] if batches else ()
    each = sum(one.nbytes for one in last if isinstance(one, Tensor)) if isinstance(last, list | tuple) else 0
    return each * len(batches)


def _agree(trainer: L.Trainer, found: NonFinite | None) -> NonFinite | None:
    """Returns what the process found that saw most of the cause; a collective call under DDP."""
    if trainer.world_size == 1:
        return found
    all_found: list[Any] = [None] * trainer.world_size
    torch.distributed.all_gather_object(all_found, found)
    known = [one for one in all_found if one is not None]
    return min(known, key=lambda one: PLACES.index(one.place), default=None)
