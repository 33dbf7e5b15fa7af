"""What the hidden units do over a whole pass: dead, dormant, and how many directions they use.

A batch is no evidence: a unit that is silent on 128 rows may be the one that knows a rare class. Everything here is
judged over every sample of a pass, summed batch by batch and over the processes. Dropout must be off.

| key | definition |
|---|---|
| `units/dead/{l}` | fraction of units with abs(φ') < 1e-3 on every sample and an output range ≤ 1e-3·max abs(a_l) |
| `units/dormant/{l}` | fraction of units with E abs(a_i) ≤ 0.025·mean_k E abs(a_k); Sokar et al. (2023), eq. 1 |
| `units/rank/{l}` | effective rank of the centred activations; see `rank` |
| `units/died/{l}` | fraction of units that are dead now and were not in the pass before |
| `units/revived/{l}` | fraction of units that were dead in the pass before and are not now |
| `units/samples` | rows of the pass: a small one overcounts death |

How saturated units are, `units/saturated/{l}`, is measured of a step's batch: the fraction of entries with φ' below
0.06·max φ', for activations that are flat on both sides.

A dead unit passes no gradient and tells its readers nothing. Both parts of the rule are needed: the slope alone would
call a unit dead that answers every input with a different value far out on a slow tail, the range alone one that is
still at work before it has spread.

Symbols: B rows of a batch, H units; ... leading (member) dimensions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, cast

import torch
import torch.distributed
from torch import Tensor

from mlp_lab.diagnostics.rank import Moments, at_least_float32, effective_rank, wide
from mlp_lab.model.activations import Activation, Function, derivative
from mlp_lab.model.mlp import MLP, Block

DEAD_SLOPE = 1e-3  # of abs(φ'), on every sample
DEAD_RANGE = 1e-3  # of a unit's outputs, relative to the largest abs(a) of its layer
DORMANT = 0.025  # Sokar et al. (2023): the threshold of their Atari study
SATURATED = 0.06  # of the largest φ': tanh at abs(z) > 2.1 (abs(a) > 0.97), sigmoid at abs(z) > 4.1
WIDEST_RANK = 2048  # from here on the eigenvalues take seconds of a core per layer, and the rank is left out

SHORTCUTS: dict[str, Callable[[Tensor], Tensor]] = {
    "relu": lambda a: a > 0,
    "tanh": lambda a: 1 - a.square(),
    "sigmoid": lambda a: a * (1 - a),
}
"""φ' from a: a fifth of the time that autograd takes."""


def dead_units(steepest: Tensor, low: Tensor, high: Tensor) -> Tensor:
    """Tells which units carry no information, from their extrema over a pass.

    In a layer of zeros every unit with a flat slope is dead; with a single sample every unit has range 0, and the slope
    alone decides.

    Args:
        steepest: the largest abs(φ') of each unit, (..., H).
        low: the smallest output of each unit, (..., H).
        high: the largest output of each unit, (..., H).

    Returns:
        (..., H) bool.
    """
    largest = torch.maximum(high.abs(), low.abs()).amax(dim=-1, keepdim=True)  # (..., 1)
    return (steepest < DEAD_SLOPE) & (high - low <= DEAD_RANGE * largest)


def dormant_units(absolute: Tensor) -> Tensor:
    """Tells which units are nearly silent beside the others of their layer; in a layer of zeros all are.

    Args:
        absolute: E abs(a) of each unit, or any multiple of it, (..., H).

    Returns:
        (..., H) bool.
    """
    return absolute <= DORMANT * absolute.mean(dim=-1, keepdim=True)


def saturated_entries(slope: Tensor, steepest: float) -> Tensor:
    """Tells which entries lie in the flat parts of a sigmoid-like activation.

    Args:
        slope: φ'(z), of any shape.
        steepest: the largest value of φ' anywhere (`Activation.max_derivative`).

    Returns:
        bool, of the slope's shape.
    """
    return slope.abs() < SATURATED * steepest


class LayerSums:
    """What is known of one layer after some batches of a pass."""

    def __init__(self, *, rank: bool) -> None:
        self.rows = 0
        self.extrema: Tensor | None = None  # (3, ..., H): largest abs(φ'), largest -a, largest a
        self.absolute: Tensor | None = None  # (..., H) float64: Σ abs(a)
        self.moments = Moments() if rank else None

    def update(self, a: Tensor, slope: Tensor) -> None:
        """Adds a batch, (..., B, H) each."""
        steepest = slope.amax(dim=-2) if slope.dtype == torch.bool else slope.abs().amax(dim=-2)
        extrema = torch.stack([steepest.to(a.dtype), -a.amin(dim=-2), a.amax(dim=-2)])
        absolute = a.abs().sum(dim=-2).to(wide(a))
        self.rows += a.shape[-2]
        self.extrema = extrema if self.extrema is None else torch.maximum(self.extrema, extrema)
        self.absolute = absolute if self.absolute is None else self.absolute.add_(absolute)
        if self.moments is not None:
            self.moments.update(a)

    def reduce(self, width: int, device: torch.device) -> None:
        """Adds what the other processes have seen, but for the moments; a collective call."""
        if self.extrema is None or self.absolute is None:  # a process without rows
            self.extrema = torch.full((3, width), -torch.inf, device=device)
            self.absolute = torch.zeros(width, dtype=wide(self.extrema), device=device)
            if self.moments is not None:
                self.moments.empty(width, device)
        extrema = self.extrema.to(wide(self.extrema))  # one type, whatever the precision of the processes' rows
        torch.distributed.all_reduce(extrema, torch.distributed.ReduceOp.MAX)
        torch.distributed.all_reduce(self.absolute)
        rows = torch.tensor(self.rows, device=device)
        torch.distributed.all_reduce(rows)
        self.extrema, self.rows = extrema, int(rows)

    def measure(self, *, distributed: bool) -> tuple[dict[str, Tensor], Tensor]:
        """Returns the fractions and the rank, (...) each, and which units are dead, (..., H)."""
        assert self.extrema is not None
        assert self.absolute is not None
        steepest, negative, high = self.extrema
        dead = dead_units(steepest, -negative, high)
        values = {"dead": fraction(dead), "dormant": fraction(dormant_units(self.absolute))}
        if self.moments is not None:
            values["rank"] = effective_rank(self.moments.eigenvalues(reduce=distributed))
        return values, dead


class UnitStatistics:
    """Judges the hidden units over a pass, and from pass to pass; exact over any batching and number of processes.

    Args:
        functions: φ of each layer: a function, or the module with its learned slope.
        widths: units of each layer.
        activation: the record of φ.
        rank: measure the effective rank too, the most expensive part; never of layers wider than 2,048.
    """

    def __init__(
        self, functions: Sequence[Function], widths: Sequence[int], activation: Activation, *, rank: bool = True
    ) -> None:
        self.functions, self.widths, self.activation, self.rank = list(functions), list(widths), activation, rank
        self.dead: list[Tensor] = []  # of the last pass: which units are dead, a (..., H) bool per layer
        self.begin()

    @classmethod
    def of(cls, mlp: MLP, *, rank: bool = True) -> UnitStatistics:
        """Judges the hidden units of an MLP."""
        functions = [cast(Block, block).activation.forward for block in mlp.blocks]  # `forward` runs no hooks
        return cls(functions, mlp.widths, mlp.phi, rank=rank)

    def begin(self) -> None:
        """Starts a pass; one that was broken off is forgotten."""
        self._layers = [LayerSums(rank=self.rank and width <= WIDEST_RANK) for width in self.widths]

    def update(self, layer: int, z: Tensor, a: Tensor, slope: Tensor | None = None) -> None:
        """Adds a batch of one layer.

        Args:
            layer: from 1 at the input.
            z: pre-activations, (..., B, H).
            a: activations φ(z), before dropout and skip, (..., B, H).
            slope: φ'(z) where it is known; otherwise it is computed.
        """
        if a.shape[-2] == 0:  # this process's part of a batch that has fewer rows than there are processes
            return
        with torch.inference_mode(False), torch.no_grad(), torch.autocast(a.device.type, enabled=False):
            shortcut = SHORTCUTS.get(self.activation.name)
            if slope is None and shortcut is not None and a.dtype in (torch.float32, torch.float64):
                slope = shortcut(a)
            elif slope is None:  # a rounded to 8 bits says nothing of its slope near ±1: take z
                slope = derivative(self.functions[layer - 1], at_least_float32(z))
            self._layers[layer - 1].update(at_least_float32(a), slope)

    def measure(self) -> dict[str, Tensor]:
        """Judges the pass that is over and starts a new one; a collective call under DDP.

        Returns:
            The keys of the module's table, each (...) with the activations' leading dimensions, on their device; empty
            without a row. `died` and `revived` come from the second pass on.
        """
        layers, before = self._layers, self.dead
        distributed = torch.distributed.is_available() and torch.distributed.is_initialized()
        if distributed:
            for layer, width in zip(layers, self.widths, strict=True):
                layer.reduce(width, _device())
        if not layers or not layers[0].rows:
            return {}
        values: dict[str, Tensor] = {}
        self.dead = []
        for number, layer in enumerate(layers, start=1):
            found, dead = layer.measure(distributed=distributed)
            self.dead.append(dead)
            if before:
                was = before[number - 1].to(dead.device)
                found |= {"died": fraction(dead & ~was), "revived": fraction(was & ~dead)}
            values |= {f"units/{name}/{number}": value for name, value in found.items()}
        values["units/samples"] = torch.tensor(float(layers[0].rows))
        self.begin()
        return values

    def compute(self) -> dict[str, float]:
        """Returns `measure` of one network as plain numbers, with one wait for the device."""
        values = self.measure()
        samples = values.pop("units/samples", None)
        if samples is None:
            return {}
        numbers = torch.stack(list(values.values())).tolist()
        return {**dict(zip(values, numbers, strict=True)), "units/samples": samples.item()}

    def state_dict(self) -> dict[str, Any]:
        """Returns which units were dead in the last pass; a pass in progress is not kept."""
        return {"dead": [mask.cpu() for mask in self.dead]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores what the next pass is compared with."""
        self.dead = list(state["dead"])


def fraction(mask: Tensor) -> Tensor:
    """Returns the share of units that are marked; (..., H) to (...)."""
    return mask.to(wide(mask)).mean(dim=-1)


def _device() -> torch.device:
    """Returns where tensors must be for a collective call."""
    return torch.device("cuda", torch.cuda.current_device()) if torch.cuda.is_available() else torch.device("cpu")
