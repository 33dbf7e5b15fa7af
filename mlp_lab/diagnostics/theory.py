"""What mean-field theory says of a network before it has seen a gradient: the size of its signal, forward and back.

In a wide network at its initialisation the pre-activations of a layer are Gaussian over its units. Where W has fan-in n
and mean square w², and the stream x that it reads has mean m and second moment s over its units,

    h ~ N(mean of c, w²·n·(s − m²) + variance of c)   with   c_i = m·Σ_j W_ij + b_i  for each unit i
    ‖δ_l‖² = χ_l·‖δ_{l+1}‖²                            with   χ_l = n·w²_{l+1}·E[φ'(z_l)²]

For weights and biases of mean 0 the first line is the length map q = σ_w²·s + σ_b² (Poole et al. 2016, eq. 3); written
with the constants c it also holds for a bias that was set, and for the sigmoid's critical initialisation, whose biases
are tied to its weights. The second line is Schoenholz et al. (2017, eq. 7 and section 4). w² and c are read from the
weights as they are: no scheme has to be known, and what a user has written himself is predicted too.

Extensions that keep this simple form, each at its initialisation:
- layer norm and rms norm set the variance (second moment) of z to 1 and divide the gradient by the deviation of h;
- a skip adds the means and, less twice their product, the second moments of streams, and the squares of gradients
  (Yang and Schoenholz 2017);
- dropout, in training, divides the second moments of activations and of gradients by 1 − p.

Not covered: batch norm, which divides by a deviation over samples, so that the correlation of samples matters (Yang et
al. 2019); skips without a norm, whose growing stream correlates with the gradient (20 ReLU layers of 512 units are off
by 10^0.4); alpha dropout. And it is a theory of wide layers and typical draws: the logarithm of a real network's
gradient fluctuates by about √(depth/width) around it.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple, cast

import torch
from torch import nn

from mlp_lab.model.activations import Activation
from mlp_lab.model.dropout import AlphaDropout
from mlp_lab.model.mlp import MLP, Block


class LayerPrediction(NamedTuple):
    """One hidden layer; sizes are root mean squares over units and samples."""

    preactivation: float
    """RMS of z_l."""
    activation: float
    """RMS of a_l, before dropout and skip."""
    gradient: float
    """RMS of δ_l = ∂L/∂z_l, divided by that of the last hidden layer."""
    chi: float
    """χ_l = (‖δ_l‖/‖δ_{l+1}‖)²; NaN for the last hidden layer."""


@dataclass(frozen=True, kw_only=True)
class Prediction:
    """What a network's signal will be at its first step, typically."""

    layers: tuple[LayerPrediction, ...]
    """The hidden layers from the input on."""
    logits: float
    """RMS of the logits."""

    @property
    def span(self) -> float:
        """Returns log10(‖δ_1‖/‖δ_L‖), the vanishing-gradient number; 0 with fewer than two hidden layers.

        NaN where no unit of the last hidden layer passes a gradient.
        """
        return sum(math.log10(layer.chi) / 2 if layer.chi else -math.inf for layer in self.layers[:-1])

    @property
    def depth_scale(self) -> float:
        """Returns the number of layers over which the squared gradient changes by a factor e; see `depth_scale`."""
        if len(self.layers) < 2:
            return math.inf
        return depth_scale(10 ** (2 * self.span / (len(self.layers) - 1)))


def depth_scale(chi: float) -> float:
    """Returns −1/ln χ: after so many layers a squared gradient is 1/e of what it was; Schoenholz et al. (2017, eq. 9).

    Negative where it grows, infinite at the edge of chaos.

    >>> round(depth_scale(1 / math.e), 6), round(depth_scale(math.e), 6), depth_scale(1.0)
    (1.0, -1.0, inf)
    """
    if chi <= 0:
        return 0.0
    return math.inf if chi == 1 else -1 / math.log(chi)


def why_not(mlp: MLP) -> str | None:
    """Returns in one line why the theory does not apply to a network, or None where it does."""
    for block in cast(Iterable[Block], mlp.blocks):
        if isinstance(block.norm, nn.BatchNorm1d):
            return "theory does not apply: batch norm divides by a deviation over samples"
        if block.skip and block.norm is None:
            return "theory does not apply: skips without a norm correlate with gradients"
        if isinstance(block.dropout, AlphaDropout | nn.AlphaDropout):
            return "theory does not apply: alpha dropout shifts what it keeps"
    return None


def predict(mlp: MLP, input_second_moment: float = 1.0, *, training: bool = True) -> Prediction | None:
    """Predicts the signal of a network from its weights.

    Args:
        mlp: the network, at its initialisation.
        input_second_moment: mean square of what its first layer reads (the encoded inputs), over features and rows; 1
            for standardised features.
        training: dropout is on; otherwise it does nothing.

    Returns:
        The prediction, or None where the theory does not apply (`why_not`).
    """
    if why_not(mlp) is not None:
        return None
    blocks = [cast(Block, block) for block in mlp.blocks]
    activation = mlp.phi
    stream = _Stream(0.0, input_second_moment * _kept(mlp.input_dropout, training))
    forward: list[_Layer] = []
    for block in blocks:
        layer, stream = _forward(block, activation, stream, training, first=not forward)
        forward.append(layer)
    mean, variance = _affine(mlp.head, stream, first=not forward)
    squares = _backward(blocks, forward, training)  # ‖δ_l‖², of ‖ρ_L‖² = 1
    last = squares[-1] / mlp.widths[-1] if squares else 1.0
    layers = tuple(
        LayerPrediction(
            math.sqrt(layer.mean**2 + layer.variance),
            math.sqrt(layer.moments.second),
            math.sqrt(_ratio(squares[index] / mlp.widths[index], last)),
            _ratio(squares[index], squares[index + 1]) if index + 1 < len(squares) else math.nan,
        )
        for index, layer in enumerate(forward)
    )
    return Prediction(layers=layers, logits=math.sqrt(mean**2 + variance))


def init_values(
    prediction: Prediction | None, values: Mapping[str, float], widths: tuple[int, ...]
) -> dict[str, float]:
    """Returns what is logged at the first step: measured χ beside the predicted one.

    Args:
        prediction: of the network, or None where the theory does not apply: only the measured χ are returned.
        values: measured at the first step; `signal/backward/{l}`, the RMS of δ_l, is read.
        widths: units of the hidden layers.

    Returns:
        `init/chi/{l}` and `init/chi_predicted/{l}` for every hidden layer but the last; `init/span_predicted`; and
        `init/depth_scale`, predicted, where it is finite.
    """
    found: dict[str, float] = {}
    for layer in range(1, len(widths)):
        below, above = (values.get(f"signal/backward/{number}", math.nan) for number in (layer, layer + 1))
        ratio = below / above if above else math.nan
        found[f"init/chi/{layer}"] = ratio**2 * widths[layer - 1] / widths[layer]
        if prediction is not None:
            found[f"init/chi_predicted/{layer}"] = prediction.layers[layer - 1].chi
    if prediction is not None and len(widths) > 1:
        found["init/span_predicted"] = prediction.span
        if math.isfinite(prediction.depth_scale):
            found["init/depth_scale"] = prediction.depth_scale
    return found


class GaussianMoments(NamedTuple):
    """Means over z ~ N(mean, variance)."""

    first: float  # E φ
    second: float  # E φ²
    slope: float  # E φ'²


def gaussian_moments(activation: Activation, mean: float, variance: float) -> GaussianMoments:
    """Computes E φ, E φ² and E φ'² by the midpoint rule of `gaussian_mean`, with φ and φ' evaluated once."""
    z = mean + math.sqrt(variance) * _NODES
    phi, slope = activation.function(z), activation.derivative(z)
    return GaussianMoments(*(float((term * _WEIGHTS).sum()) for term in (phi, phi.square(), slope.square())))


_STEP = 1 / 2048
_NODES = (torch.arange(-10 * 2048, 10 * 2048, dtype=torch.float64) + 0.5) * _STEP
_WEIGHTS = torch.exp(-_NODES.square() / 2) * (_STEP / math.sqrt(2 * math.pi))


class _Stream(NamedTuple):
    """What the next layer reads."""

    mean: float  # over units
    second: float


class _Layer(NamedTuple):
    mean: float  # of z over units
    variance: float
    moments: GaussianMoments
    shrink: float  # ‖ε‖²/‖δ‖², what the norm does to a squared gradient


def _affine(linear: nn.Linear, stream: _Stream, *, first: bool) -> tuple[float, float]:
    """Returns the mean and the variance over units of h = Wx + b."""
    weight = linear.weight.detach().double()
    none = linear.bias is None  # which torch's annotation leaves out
    bias = weight.new_zeros(len(weight)) if none else linear.bias.detach().double()
    spread = float(weight.square().sum(dim=1).mean())  # n·w²
    if first:  # features differ in mean: an input is taken as a random vector of its length
        constant, energy = bias, stream.second
    else:
        constant, energy = stream.mean * weight.sum(dim=1) + bias, max(stream.second - stream.mean**2, 0.0)
    return float(constant.mean()), spread * energy + float(constant.var(correction=0))


def _forward(
    block: Block, activation: Activation, stream: _Stream, training: bool, *, first: bool
) -> tuple[_Layer, _Stream]:
    mean, variance = _affine(block.linear, stream, first=first)
    shrink = 1.0
    if block.norm is not None:
        centred = isinstance(block.norm, nn.LayerNorm)
        scale = variance if centred else mean**2 + variance
        shrink = _ratio(1.0, scale)
        mean, variance = 0.0 if centred else mean * math.sqrt(shrink), variance * shrink
    moments = gaussian_moments(activation, mean, variance)
    second = moments.second * _kept(block.dropout, training)
    if block.skip:
        both = _Stream(stream.mean + moments.first, stream.second + 2 * stream.mean * moments.first + second)
        return _Layer(mean, variance, moments, shrink), both
    return _Layer(mean, variance, moments, shrink), _Stream(moments.first, second)


def _backward(blocks: list[Block], forward: list[_Layer], training: bool) -> list[float]:
    """Returns ‖δ_l‖² of the hidden layers, for a gradient of length 1 at the last one's output."""
    squares, at_output = [], 1.0  # ‖ρ_l‖²
    for block, layer in zip(reversed(blocks), reversed(forward), strict=True):
        delta = at_output * _kept(block.dropout, training) * layer.moments.slope
        squares.append(delta)
        weight = block.linear.weight.detach()
        through = delta * layer.shrink * float(weight.double().square().mean()) * weight.shape[1]
        at_output = through + (at_output if block.skip else 0.0)
    return squares[::-1]


def _kept(dropout: nn.Module | None, training: bool) -> float:
    """Returns by how much dropout multiplies a second moment."""
    return 1 / (1 - cast(float, dropout.p)) if dropout is not None and training else 1.0


def _ratio(above: float, below: float) -> float:
    return above / below if below else math.nan
