"""What the verdicts are judged from: what is known before the first step, and what was measured since.

Plain numbers and strings only, so that a checkpoint can carry them and a rule can be tested without a network.

Layers are numbered from 1 at the input; the hidden layers are 1 to `depth`, and the head is layer `depth` + 1.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from mlp_lab.diagnostics.numerics import NonFinite

NAN = math.nan


@dataclass(frozen=True, kw_only=True)
class Facts:
    """What is known of a run before its first step; a default means 'not known', and no rule judges by it."""

    task: str = ""
    """regression, binary, multiclass or multilabel."""
    loss: str = ""
    """Name of the training loss in `LOSSES`."""
    classes: int = 0
    """Classes or labels; 0 for a regression."""
    depth: int = 0
    """Hidden layers."""
    widths: tuple[int, ...] = ()
    """Units of each hidden layer."""
    parameters: int = 0
    """Trainable parameters."""
    activation: str = ""
    """Name in `ACTIVATIONS`, or the dotted path of the function."""
    init: str = ""
    """Name in `INITS`."""
    bias: float | None = None
    """`model.bias`: the initial bias of every hidden unit where it was set."""
    norm: str = "none"
    """Name in `NORMS`."""
    residual: bool = False
    """Whether blocks have skips."""
    dropout: float = 0.0
    """Probability of dropping a hidden unit."""
    mixup: float = 0.0
    """α of mixup; 0 is off."""
    class_weights: bool = False
    """Whether classes are weighed in the training loss (class_weights or pos_weight)."""
    optimizer: str = ""
    """Name in `OPTIMIZERS`, or the class name of a user's own."""
    eps: float = NAN
    """What the optimizer adds to its denominator; NaN where it has none."""
    precision: str = ""
    """Type of the weights, such as float32."""
    lr: float = NAN
    """The configured learning rate, which a schedule multiplies."""
    momentum: float = 0.0
    """In [0, 1)."""
    weight_decay: float = 0.0
    """As configured."""
    schedule: str = ""
    """Name of the learning rate's schedule."""
    warmup: float = 0.0
    """Share of the run, or number of steps, over which the rate rises to `lr`."""
    clipping: float = 0.0
    """`trainer.gradient_clip_val`; 0 is off."""
    batch_size: int = 0
    """Rows of a global batch."""
    training_rows: int = 0
    """Rows of the training part."""
    steps_per_epoch: int = 0
    """Optimizer steps of an epoch."""
    planned_steps: int = 0
    """Optimizer steps of the whole run as configured; 0 where it has no end."""
    planned_epochs: int = 0
    """Epochs of the whole run as configured; 0 where it has no end."""
    data: str = ""
    """Class name of the data module."""
    scaling: str = ""
    """`data.scaling` of a table, `normalize` or `none` of images; empty where unknown."""
    baseline_loss: float = NAN
    """Training loss of the best constant prediction over training rows: class entropy, or the target's variance."""
    baseline_val_loss: float = NAN
    """Validation loss of that prediction, which knows the training rows only."""
    majority_share: float = NAN
    """Share of the most frequent class among the training rows; NaN for a regression and for several labels."""
    baseline_accuracy: float = NAN
    """Validation accuracy of always guessing that class; NaN where there is no accuracy."""
    input_mean: float = NAN
    """Mean of the first layer's inputs over training rows and features."""
    input_rms: float = NAN
    """Root mean square of the same."""
    input_worst_rms: float = NAN
    """Root mean square of the largest input feature."""
    input_worst: str = ""
    """That feature's name."""
    identical_rows: tuple[int, ...] = ()
    """Layers in which all units began with equal weights."""
    zero_layers: tuple[int, ...] = ()
    """Layers whose weights began as 0 (a zero head is fine, a hidden layer is not)."""
    frozen_layers: tuple[int, ...] = ()
    """Layers whose weights no optimizer updates."""
    weight_gains: tuple[float, ...] = ()
    """σ_w = √(fan_in · mean(W²)) of every linear layer at the start, the head last."""


@dataclass(frozen=True, kw_only=True)
class Measured:
    """The values of one measurement, under the keys of the log."""

    step: int
    """Optimizer steps that had been taken, the measured one included."""
    epoch: int
    """Current epoch, from 0."""
    values: dict[str, float]
    """`grad/norm/1`, `update/ratio/1`, `train/loss` (of this step's batch) and so on; absent where not measured."""


@dataclass(kw_only=True)
class Evidence:
    """All that is known of a run so far.

    `steps` holds step 1 in full (the network as it was initialised), at least `train/loss` and `update/ratio/*` of
    steps 2 to 10, and the measuring steps. `epochs` holds the validation passes: `val/*`, `train/loss` (mean of the
    epoch) and `units/*`.
    """

    facts: Facts = field(default_factory=Facts)
    steps: list[Measured] = field(default_factory=list)
    epochs: list[Measured] = field(default_factory=list)
    nonfinite: NonFinite | None = None

    @property
    def step(self) -> int:
        """The last step of which anything is known."""
        return max((record.step for record in (*self.steps[-1:], *self.epochs[-1:])), default=0)

    def series(self, key: str) -> list[tuple[int, float]]:
        """Returns (step, value) of every measurement of `key` that is a number, steps before epochs' ends."""
        return _series(self.steps, key)

    def epoch_series(self, key: str) -> list[tuple[int, float]]:
        """Returns (step, value) of every validation pass's `key` that is a number."""
        return _series(self.epochs, key)


def _series(records: list[Measured], key: str) -> list[tuple[int, float]]:
    return [(one.step, one.values[key]) for one in records if not math.isnan(one.values.get(key, NAN))]


def per_layer(values: dict[str, float], prefix: str) -> dict[int, float]:
    """Returns the values of one quantity by layer, without those that are NaN.

    >>> per_layer({"grad/norm": 5.0, "grad/norm/1": 3.0, "grad/norm/2": 4.0}, "grad/norm")
    {1: 3.0, 2: 4.0}
    """
    start = f"{prefix}/"
    found = {key[len(start) :]: value for key, value in values.items() if key.startswith(start)}
    layers = {int(name): value for name, value in found.items() if name.isdigit() and not math.isnan(value)}
    return dict(sorted(layers.items()))
