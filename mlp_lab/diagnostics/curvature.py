"""Sharpness: the largest eigenvalue of the loss's Hessian, and how far the learning rate is from too large for it.

Gradient descent on a quadratic diverges along an eigenvector whose eigenvalue exceeds 2/lr, and real networks hover at
that edge (Cohen et al. 2021). With momentum and adaptive steps the same holds for another threshold, and for the
Hessian in the optimizer's own coordinates, D^½ H D^½ with D the learning rate of each weight (Cohen et al. 2022):

| optimizer | D | `curvature/sharpness`, 1 at the edge of stability |
|---|---|---|
| sgd | lr | λ/(2 + 2μ): without momentum lr·λ_max(H)/2; (1 + 2μ)·λ/(2 + 2μ) with Nesterov's |
| adam, adamw | lr/((1 − β₁ᵗ)(√v̂ + ε)) | λ·(1 − β₁)/(2 + 2β₁): λ/38 for β₁ = 0.9 |
| rmsprop | lr/(√v + ε) | λ/(2 + 2μ) |

λ is the largest eigenvalue of D^½ H D^½: the largest in the algebraic sense, for a negative one of any size threatens
nothing. Plain power iteration finds the largest in magnitude; it is refined here in two ways. Each step takes the best
vector of the span of the iterate, its residual and the last direction, so that no shift is needed and 10 to 40
products do (LOBPCG with one vector; Knyazev 2001). And it ends where the residual proves that an eigenvalue is near.

H is that of the loss alone: no weight decay. The caller's loss must be the same function in every call: dropout off or
its masks fixed, batch norm with its running statistics; `evaluation_mode` sees to it.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.optim import Optimizer

from mlp_lab.diagnostics.rank import wide

TOLERANCE = 1e-2
SMALLEST = 1e-30  # a residual of 0, but for rounding
MAX_ITERATIONS = 100
Loss = Callable[[], Tensor]


class Eigenvalue(NamedTuple):
    """What the iteration found."""

    value: float
    residual: float
    """‖Hx − λx‖ for the unit vector x: some eigenvalue is at most this far from `value`."""
    iterations: int
    """Hessian-vector products."""


class Stability(NamedTuple):
    """What a learning rate can stand: an eigenvalue of D^½ H D^½ below the limit."""

    rates: list[Tensor]
    """D, a tensor like each parameter, or one number for all of its entries."""
    limit: float


def sharpness(
    loss_fn: Loss,
    parameters: Sequence[Tensor],
    *,
    scale: Sequence[Tensor] | None = None,
    tolerance: float = TOLERANCE,
    max_iterations: int = MAX_ITERATIONS,
    generator: torch.Generator | None = None,
) -> Eigenvalue:
    """Finds the largest (not the largest in magnitude) eigenvalue of the Hessian.

    Args:
        loss_fn: computes the loss, a scalar, at the parameters as they are; the same function in every call.
        parameters: what the Hessian is taken with respect to; they must require gradients.
        scale: D^½, one tensor that broadcasts to each parameter: eigenvalues of D^½ H D^½ are meant. None is 1.
        tolerance: ends where the residual is at most this share of the eigenvalue, above 0. The eigenvalue's own error
            is then of the order of its square.
        max_iterations: Hessian-vector products at most, at least 1.
        generator: of the CPU, draws the first vector; None takes seed 0.

    Returns:
        The eigenvalue; 0 for a loss that is linear in the parameters, NaN where the loss is not finite.
    """
    generator = generator or torch.Generator().manual_seed(0)
    with torch.inference_mode(False), torch.enable_grad():
        product = _hessian_product(loss_fn, parameters, scale)
    with torch.inference_mode(False), torch.no_grad():
        size, like = sum(one.numel() for one in parameters), parameters[0]
        start = torch.randn(size, generator=generator, dtype=torch.float64).to(like.device, wide(like))
        return _top_eigenvalue(product, start, tolerance, max_iterations)


def _top_eigenvalue(
    product: Callable[[Tensor], Tensor], start: Tensor, tolerance: float, max_iterations: int
) -> Eigenvalue:
    """Climbs the Rayleigh quotient in the span of x, its residual and the last direction."""
    basis = (start / start.norm()).unsqueeze(1)  # (P, 1): x, later (P, 2): x and the last direction, orthonormal
    images = product(basis[:, 0]).unsqueeze(1)  # H of each column
    for iteration in range(1, max_iterations + 1):
        x, image = basis[:, 0], images[:, 0]
        value = torch.dot(x, image).item()
        residual = image - value * x  # orthogonal to the basis, but for rounding
        size = residual.norm().item()
        if not math.isfinite(size):
            return Eigenvalue(math.nan, math.nan, iteration)
        if size <= max(tolerance * abs(value), SMALLEST) or iteration == max_iterations:
            break
        new = residual / size
        every = torch.cat([images, product(new).unsqueeze(1)], dim=1)
        # Orthonormal columns Q of [basis, new] = QR, and the same combinations of the images.
        columns, triangle = torch.linalg.qr(torch.cat([basis, new.unsqueeze(1)], dim=1))
        every = torch.linalg.solve_triangular(triangle, every, upper=True, left=False)
        small = columns.mT @ every
        best = torch.linalg.eigh((small + small.mT) / 2).eigenvectors[:, -1]  # the new x
        length = best[1:].norm()
        # In the plane of the old and the new x: the unit vector that is orthogonal to the new one.
        turned = torch.cat([-length.unsqueeze(0), best[0] * best[1:] / length.clamp_min(SMALLEST)])
        plane = torch.stack([best, turned], dim=1)
        basis, images = columns @ plane, every @ plane
    return Eigenvalue(value, size, iteration)


def _hessian_product(
    loss_fn: Loss, parameters: Sequence[Tensor], scale: Sequence[Tensor] | None
) -> Callable[[Tensor], Tensor]:
    """Returns v ↦ D^½ H D^½ v on flat vectors, by differentiating the gradient's graph (Pearlmutter 1994)."""
    gradients = torch.autograd.grad(loss_fn(), parameters, create_graph=True, materialize_grads=True)
    sizes = [one.numel() for one in parameters]

    def product(vector: Tensor) -> Tensor:
        with torch.enable_grad():
            pieces = [
                piece.view_as(one).to(one.dtype)
                for piece, one in zip(torch.split(vector, sizes), parameters, strict=True)
            ]
            if scale is not None:
                pieces = [piece * one for piece, one in zip(pieces, scale, strict=True)]
            linear = [gradient.requires_grad for gradient in gradients]
            if not any(linear):
                return torch.zeros_like(vector)
            outputs = [gradient for gradient, there in zip(gradients, linear, strict=True) if there]
            seeds = [piece for piece, there in zip(pieces, linear, strict=True) if there]
            found = torch.autograd.grad(outputs, parameters, seeds, retain_graph=True, materialize_grads=True)
        rows = found if scale is None else [piece * one for piece, one in zip(found, scale, strict=True)]
        return torch.cat([row.detach().reshape(-1).to(vector.dtype) for row in rows])

    return product


def stability(optimizer: Optimizer, parameters: Sequence[Tensor]) -> Stability | None:
    """Returns the learning rate of each weight as the optimizer will use it, and what it can stand.

    Returns:
        None for an optimizer that is not in the module's table (muon), whose parameter groups differ in momentum or β₁,
        or that has not taken a step and needs its state.
    """
    groups = {id(one): group for group in optimizer.param_groups for one in group["params"]}
    if any(id(one) not in groups for one in parameters):
        return None
    rates, limits = [], set()
    for parameter in parameters:
        group, state = groups[id(parameter)], optimizer.state.get(parameter, {})
        found = _rate(optimizer, group, state)
        if found is None:
            return None
        rate, limit = found
        rates.append(torch.as_tensor(rate, device=parameter.device).detach())
        limits.add(limit)
    return Stability(rates, limits.pop()) if len(limits) == 1 else None


def _rate(optimizer: Optimizer, group: dict[str, Any], state: dict[str, Any]) -> tuple[Tensor | float, float] | None:
    lr = float(group["lr"])
    if isinstance(optimizer, torch.optim.SGD):
        momentum = float(group["momentum"])
        ahead = 1 + 2 * momentum if group["nesterov"] else 1.0
        return lr, (2 + 2 * momentum) / ahead
    if isinstance(optimizer, torch.optim.RMSprop) and "square_avg" in state:
        return lr / (state["square_avg"].sqrt() + group["eps"]), 2 + 2 * float(group["momentum"])
    if isinstance(optimizer, torch.optim.Adam) and "exp_avg_sq" in state:  # AdamW is a subclass
        (first, second), step = group["betas"], float(state["step"])
        deviation = (state["exp_avg_sq"] / (1 - second**step)).sqrt() + group["eps"]
        return lr / ((1 - first**step) * deviation), (2 + 2 * first) / (1 - first)
    return None


def curvature_values(
    loss_fn: Loss, parameters: Sequence[Tensor], optimizer: Optimizer, *, generator: torch.Generator | None = None
) -> dict[str, float]:
    """Returns what is logged.

    Returns:
        `curvature/sharpness`, as in the module's table; `curvature/eigenvalue`, the same without the largest learning
        rate and the limit: λ_max(H) for sgd. Only the latter, of H itself, where `stability` is None.
    """
    stable = stability(optimizer, parameters)
    if stable is None:
        return {"curvature/eigenvalue": sharpness(loss_fn, parameters, generator=generator).value}
    rate = max(float(group["lr"]) for group in optimizer.param_groups)
    scale = [one.sqrt() for one in stable.rates]
    value = sharpness(loss_fn, parameters, scale=scale, generator=generator).value
    return {"curvature/sharpness": value / stable.limit, "curvature/eigenvalue": value / rate}


@contextmanager
def evaluation_mode(module: nn.Module) -> Iterator[None]:
    """Turns dropout off and batch norm to its running statistics, and gives every part its own mode back."""
    modes = [(part, part.training) for part in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for part, training in modes:
            part.training = training
