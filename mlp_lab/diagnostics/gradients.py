"""Norms of gradients and updates, and how far a signal gets: forward through a network, and backward.

Pure functions; tensors may have any leading dimensions (the members of a population), written `...` below. Results are
tensors in float64 under the keys of the log, where `{l}` stands for the last dimension, the layers from 1 at the input;
`to_floats` reads them all at once, because each reading waits for the device.

One block is h = Wx + b, z = norm(h), a = φ(z), x' = dropout(a) (+ x with a skip); δ = ∂L/∂z, ε = ∂L/∂h, ρ = ∂L/∂x'.
The head is layer L + 1: it has neither norm nor activation, so there δ = ε, the gradient of the logits.

Symbols: B rows of a batch, H width of a layer, L hidden layers.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import cache
from typing import NamedTuple

import torch
import torch.distributed
from torch import Tensor

from mlp_lab.diagnostics.norms import ratio, squared_norm, squared_norms, widen
from mlp_lab.diagnostics.rank import at_least_float32

Values = dict[str, Tensor]
FACTORS = tuple(f"signal/{name}_factor/{{l}}" for name in ("norm", "weight", "skip", "dropout", "activation"))


class LayerCapture(NamedTuple):
    """One hidden layer in one forward and backward pass; None where there is nothing, such as a gradient.

    Where a block has no norm h and z are one tensor, as are a and out without dropout and skip.
    """

    h: Tensor | None = None  # (..., B, H): Wx + b
    z: Tensor | None = None  # (..., B, H): after the norm
    a: Tensor | None = None  # (..., B, H): after the activation
    out: Tensor | None = None  # (..., B, H): after dropout and skip, x'
    epsilon: Tensor | None = None  # (..., B, H): ∂L/∂h
    delta: Tensor | None = None  # (..., B, H): ∂L/∂z
    grad_a: Tensor | None = None  # (..., B, H): ∂L/∂a
    rho: Tensor | None = None  # (..., B, H): ∂L/∂x'


class SignalSums(NamedTuple):
    """What one process knows of a batch's signals; sums of several processes combine exactly."""

    rows: Tensor  # (...): samples
    means: tuple[Tensor, ...]  # L × (..., H): mean activation of each unit
    spread: Tensor  # (..., L): Σ (a − mean)² over samples and units
    delta: Tensor  # (..., L + 1): ‖δ_l‖², the head's last
    epsilon: Tensor  # (..., L + 1): ‖ε_l‖²
    through: Tensor  # (..., L): ‖ε_{l+1} W_{l+1}‖²
    rho: Tensor  # (..., L): ‖ρ_l‖²
    grad_a: Tensor  # (..., L): ‖∂L/∂a_l‖²


# ---- gradients and updates ------------------------------------------------------------------------------------------


def gradient_norms(
    weights: Sequence[Tensor | None], others: Iterable[Tensor] = (), *, scale: float = 1.0, members: int = 0
) -> Values:
    """Computes the norm of the whole gradient and of ∂L/∂W_l.

    Args:
        weights: ∂L/∂W_l of the layers 1 .. L + 1, each (..., H_out, H_in); None for a frozen one.
        others: all other gradients (biases, norms, encoder).
        scale: the factor by which all of them are too large (a loss scale).
        members: number of leading dimensions.

    Returns:
        `grad/norm` (...), and `grad/norm/{l}` (..., L + 1), NaN for frozen layers.
    """
    moving = [gradient for gradient in weights if gradient is not None]
    squares = squared_norms([*moving, *others], members)  # (..., all)
    total = squares.sum(-1)
    known = iter(squares.unbind(-1))
    layers = [None if gradient is None else next(known) for gradient in weights]
    return {"grad/norm": total.sqrt() / scale, "grad/norm/{l}": _stack(layers, like=total).sqrt() / scale}


def clipping(norm: Tensor, clipped: Tensor) -> Values:
    """Describes what clipping did to a gradient.

    Args:
        norm: global L2 norm before, (...).
        clipped: global L2 norm after, (...).

    Returns:
        `grad/norm_clipped`, and `grad/clip_fraction`: the share of the norm that was cut off, 0 where nothing was.
    """
    return {"grad/norm_clipped": clipped, "grad/clip_fraction": 1 - ratio(clipped, norm)}


def update_ratios_(
    before: Sequence[Tensor], after: Sequence[Tensor], squares: Tensor | None = None, *, members: int = 0
) -> Values:
    """Computes ‖ΔW_l‖/‖W_l‖ of one optimizer step; about 1e-3 is healthy (Karpathy's rule of thumb, CS231n).

    Args:
        before: the weights W_l of the layers 1 .. L + 1 before the step, each (..., H_out, H_in); in float32 and wider
            types they become W_l − W_l', so that no other memory is touched.
        after: the same after it, W_l'.
        squares: ‖W_l‖² before the step, (..., L + 1), where they are known.
        members: number of leading dimensions.

    Returns:
        `update/ratio/{l}` (..., L + 1), NaN where ‖W_l‖ = 0.
    """
    sizes = squared_norms(before, members) if squares is None else squares
    # One float32 subtraction is exact to rounding; of anything shorter it would not be.
    changes = (
        old.sub_(new) if old.dtype.itemsize >= 4 else widen(new) - widen(old)
        for old, new in zip(before, after, strict=True)
    )
    return {"update/ratio/{l}": ratio(squared_norms(changes, members).sqrt(), sizes.sqrt())}


# ---- signal ---------------------------------------------------------------------------------------------------------


def signal_sums(
    layers: Sequence[LayerCapture], logit_gradient: Tensor | None, weights: Sequence[Tensor], skips: Sequence[bool]
) -> SignalSums:
    """Sums up one batch on one process.

    Args:
        layers: the hidden layers, at least one.
        logit_gradient: ∂L/∂logits, (..., B, C).
        weights: W_l of the layers 1 .. L + 1, each (..., H_out, H_in).
        skips: whether the block has a skip, for the layers 1 .. L.
    """
    means, deviations, through = [], [], []
    for layer, following, weight, skip in zip(
        layers, [*layers[1:], None], weights[1:], [*skips[1:], False], strict=True
    ):
        assert layer.a is not None
        mean, deviation = _around_mean(layer.a)
        means.append(mean)
        deviations.append(deviation)
        # Without a skip all that reaches x' has come through the weights: no product needs to be computed twice.
        epsilon = logit_gradient if following is None else following.epsilon
        through.append(layer.rho if layer.rho is not None and not skip else _product(epsilon, weight))
    fields: list[Sequence[Tensor | None]] = [
        deviations,
        [*(layer.delta for layer in layers), logit_gradient],
        [*(layer.epsilon for layer in layers), logit_gradient],
        through,
        [layer.rho for layer in layers],
        [layer.grad_a for layer in layers],
    ]
    # In a plain block ε is δ, and ρ is ∂L/∂a: one tensor, summed up once.
    distinct = {id(tensor): tensor for field in fields for tensor in field if tensor is not None}
    squares = squared_norms(list(distinct.values()), means[0].dim() - 1)  # (..., distinct)
    found = dict(zip(distinct, squares.unbind(-1), strict=True))
    rows = torch.full_like(squares[..., 0], float(deviations[0].shape[-2]))
    sums = [_stack([found.get(id(tensor)) for tensor in field], like=rows) for field in fields]
    return SignalSums(rows, tuple(means), *sums)


def combine(parts: Sequence[SignalSums]) -> SignalSums:
    """Adds up the parts of a batch that several processes hold.

    Sums of squares around a mean take the distance of the parts' means with them (Chan et al. 1983, eq. 1.5): nothing
    cancels, though the spread of a deep sigmoid layer is 1e-14 of its square.
    """
    if len(parts) == 1:
        return parts[0]
    rows = torch.stack([part.rows for part in parts]).sum(0)  # (...)
    means, between = [], []
    for layer in range(len(parts[0].means)):
        shares = torch.stack([part.means[layer] * _share(part.rows, rows) for part in parts])
        mean = shares.sum(0)  # (..., H)
        distances = torch.stack([part.rows * squared_norm(part.means[layer] - mean, rows.dim()) for part in parts])
        means.append(mean)
        between.append(distances.sum(0))
    spread, *rest = (torch.stack(field).sum(0) for field in zip(*(part[2:] for part in parts), strict=True))
    return SignalSums._make([rows, tuple(means), spread + torch.stack(between, -1), *rest])


def _share(part: Tensor, whole: Tensor) -> Tensor:
    """Returns the share of the rows, (..., 1), that a part holds."""
    return (part / whole.clamp(min=1)).unsqueeze(-1)


def signal(sums: SignalSums, *, scale: float | Tensor = 1.0) -> Values:
    """Computes how far a signal gets, and which factor of the chain rule shrinks it on the way back.

    Args:
        sums: of the whole batch.
        scale: what turns the captured gradient of a sample into that of its own loss: B for a mean over B rows.

    Returns:
        `signal/forward/{l}`: RMS of a_l. `signal/variation/{l}`: standard deviation over samples ÷ RMS.
        `signal/backward/{l}`: RMS of a sample's ∂ℓ/∂z_l. `signal/span`: log10(‖δ_1‖/‖δ_L‖), −inf where nothing
        arrives. The exact split of ‖δ_l‖/‖δ_{l+1}‖ into `signal/norm_factor/{l}` ‖ε_{l+1}‖/‖δ_{l+1}‖,
        `signal/weight_factor/{l}` ‖ε_{l+1}W_{l+1}‖/‖ε_{l+1}‖, `signal/skip_factor/{l}` ‖ρ_l‖/‖ε_{l+1}W_{l+1}‖,
        `signal/dropout_factor/{l}` ‖∂L/∂a_l‖/‖ρ_l‖ and `signal/activation_factor/{l}` ‖δ_l‖/‖∂L/∂a_l‖, for every
        hidden layer: the last one's split leads to the logits. NaN where a denominator is 0.
    """
    widths = torch.tensor([mean.shape[-1] for mean in sums.means], dtype=sums.spread.dtype, device=sums.spread.device)
    entries = sums.rows.unsqueeze(-1) * widths  # (..., L)
    levels = torch.stack([torch.linalg.vecdot(mean, mean) for mean in sums.means], -1)  # (..., L)
    squares = (sums.spread + sums.rows.unsqueeze(-1) * levels) / entries  # (..., L)
    delta = sums.delta.sqrt()  # (..., L + 1)
    # Each factor is a quotient of one link of the chain and the link before it, from the head's side.
    chain = torch.stack(
        [sums.delta[..., 1:], sums.epsilon[..., 1:], sums.through, sums.rho, sums.grad_a, sums.delta[..., :-1]]
    ).sqrt()  # (6, ..., L)
    return {
        "signal/forward/{l}": squares.sqrt(),
        "signal/variation/{l}": ratio(sums.spread / entries, squares).sqrt(),
        "signal/backward/{l}": delta[..., :-1] / entries.sqrt() * scale,
        "signal/span": ratio(delta[..., 0], delta[..., -2]).log10(),
        **dict(zip(FACTORS, ratio(chain[1:], chain[:-1]), strict=True)),
    }


def to_floats(values: Mapping[str, Tensor]) -> dict[str, float]:
    """Reads values of one network with one wait for the device, `{l}` written out.

    >>> to_floats({"signal/span": torch.tensor(-1.0), "grad/norm/{l}": torch.tensor([0.5, 0.25])})
    {'signal/span': -1.0, 'grad/norm/1': 0.5, 'grad/norm/2': 0.25}
    """
    if not values:
        return {}
    names = [name for key, value in values.items() for name in _names(key, len(value) if "{l}" in key else 1)]
    wides = [value if value.dtype == torch.float64 else widen(value) for value in values.values()]
    numbers: list[float] = torch.cat([value.reshape(-1) for value in wides]).tolist()
    return dict(zip(names, numbers, strict=True))


@cache
def _names(key: str, layers: int) -> list[str]:
    return [key.replace("{l}", str(layer)) for layer in range(1, 1 + layers)]


def _around_mean(a: Tensor) -> tuple[Tensor, Tensor]:
    """Returns each unit's mean, (..., H), over the rows of (..., B, H), and the distances from it, (..., B, H).

    Measured from the first row, so that float32 suffices: of a unit that hardly varies the differences are exact, and
    of any other they are of the size of its spread.
    """
    values = at_least_float32(a.detach())
    first = values[..., :1, :]  # (..., 1, H); a process may have no rows
    distance = values - first
    shift = distance.sum(-2, keepdim=True) / max(a.shape[-2], 1)  # (..., 1, H)
    return widen(first).sum(-2) + widen(shift).squeeze(-2), distance.sub_(shift)


def _product(epsilon: Tensor | None, weight: Tensor) -> Tensor | None:
    """Returns ε W, (..., B, H_in), in float32 at least."""
    if epsilon is None:
        return None
    dtype = torch.promote_types(torch.promote_types(epsilon.dtype, weight.dtype), torch.float32)
    return epsilon.to(dtype) @ weight.detach().to(dtype)


def _stack(values: Sequence[Tensor | None], *, like: Tensor) -> Tensor:
    """Stacks values (...) in a new last dimension, NaN for None."""
    return torch.stack([torch.full_like(like, torch.nan) if value is None else value for value in values], -1)
