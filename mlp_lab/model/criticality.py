"""Mean-field theory of a plain, wide network at its initialisation (no norm, no dropout, no skips).

With weights ~ N(0, σ_w²/fan_in) and biases ~ N(0, σ_b²) the pre-activations of a wide layer are Gaussian, and

    q_{l+1} = σ_w² E[φ(√q_l z)²] + σ_b²        (the length map)
    χ       = σ_w² E[φ'(√q z)²]                (the growth of a squared gradient per layer)

At the edge of chaos χ = 1 at a fixed point q* of the length map: signal and gradient neither vanish nor explode.
Poole et al. (2016); Schoenholz et al. (2017); Hayou et al. (2019); Roberts, Yaida and Hanin (2022, chapter 5).
"""

from __future__ import annotations

import math
from functools import cache
from typing import NamedTuple

from torch import Tensor

from mlp_lab.model.activations import Activation, gaussian_mean

SMALLEST_Q = 0.05  # pre-activations of ±0.22: nearly linear, where tanh and its kin propagate best (Pennington 2017)
LARGEST_Q = 20.0
_ROUNDING = 1e-6  # of the quadrature, where the theory says 0 or 1 exactly


class CriticalPoint(NamedTuple):
    """The variances that put one activation at the edge of chaos, and where its signal settles."""

    weight_variance: float
    """σ_w², times fan_in."""
    bias_variance: float
    """σ_b²."""
    q: float
    """q*, the variance of the pre-activations."""


def length_map(activation: Activation, q: float, weight_variance: float, bias_variance: float) -> float:
    """Returns the pre-activations' variance one layer after a layer where it is `q`."""
    return weight_variance * second_moment(activation, q) + bias_variance


def second_moment(activation: Activation, q: float) -> float:
    """Returns E[φ(√q z)²], the mean square of the activations where the pre-activations' variance is `q`."""
    return gaussian_mean(lambda z: activation.function(z).square(), q)


def chi(activation: Activation, q: float, weight_variance: float) -> float:
    """Returns χ: by how much a layer multiplies the squared norm of a gradient that passes it backwards."""
    return weight_variance * gaussian_mean(lambda z: activation.derivative(z).square(), q)


def length_slope(activation: Activation, q: float, weight_variance: float) -> float:
    """Returns ∂q_{l+1}/∂q_l = σ_w² E[z φ(√q z) φ'(√q z)]/√q; a fixed point attracts where it is below 1."""

    def integrand(z: Tensor) -> Tensor:
        return z * activation.function(z) * activation.derivative(z)

    return weight_variance * gaussian_mean(integrand, q) / q


@cache
def critical_point(activation: Activation) -> CriticalPoint | None:
    """Finds the edge of chaos with the smallest signal that does not repel.

    For every q, χ = 1 fixes σ_w², and the length map then fixes σ_b². Of these pairs the one with the smallest
    q ≥ 0.05 is taken for which σ_b² ≥ 0 and q is a fixed point that does not repel. A scale-free activation
    (relu and its kin) has σ_b² = 0 and any q: the one that unit inputs reach in a layer of the same σ_w².

    Returns:
        The critical point, or None where no q up to 20 will do (softplus, and sigmoid as it stands).

    >>> from mlp_lab.model.activations import ACTIVATIONS
    >>> point = critical_point(ACTIVATIONS["relu"])
    >>> round(point.weight_variance, 6), round(point.bias_variance, 6)
    (2.0, 0.0)
    """
    if math.isclose(second_moment(activation, 4.0), 4 * second_moment(activation, 1.0), rel_tol=_ROUNDING):
        weight_variance = 1 / chi(activation, 1.0, 1.0)
        return CriticalPoint(weight_variance, 0.0, weight_variance)
    low, high = SMALLEST_Q, SMALLEST_Q
    while not _admissible(activation, high):
        low, high = high, 1.1 * high
        if high > LARGEST_Q:
            return None
    for _ in range(30):
        middle = (low + high) / 2
        low, high = (low, middle) if _admissible(activation, middle) else (middle, high)
    weight_variance, bias_variance = _variances(activation, high)
    return CriticalPoint(weight_variance, max(bias_variance, 0.0), high)


def _variances(activation: Activation, q: float) -> tuple[float, float]:
    """Returns the (σ_w², σ_b²) for which q is a fixed point with χ = 1; σ_b² < 0 means that there is none."""
    weight_variance = 1 / chi(activation, q, 1.0)
    return weight_variance, q - length_map(activation, q, weight_variance, 0.0)


def _admissible(activation: Activation, q: float) -> bool:
    weight_variance, bias_variance = _variances(activation, q)
    return bias_variance >= -_ROUNDING * q and length_slope(activation, q, weight_variance) <= 1 + _ROUNDING
