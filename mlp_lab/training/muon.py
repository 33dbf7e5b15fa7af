"""Muon: momentum, orthogonalized, for the hidden weight matrices; AdamW for every other parameter.

Shapes: A rows (fan-out) and B columns (fan-in) of a weight matrix.

Sources: Jordan et al. 2024, "Muon: An optimizer for hidden layers in neural networks" (kellerjordan.github.io,
posts/muon); the step size by Liu et al. 2025, "Muon is scalable for LLM training" (arXiv 2502.16982), section 2.2.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable
from typing import Any, overload

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.adamw import adamw

# p(s) = 3.4445 s - 4.7750 s^3 + 2.0315 s^5 has the steepest slope at 0 among the quintics that keep (0, 1] near 1.
QUINTIC = (3.4445, -4.7750, 2.0315)
ITERATIONS = 5
SMALLEST_NORM = 1e-7  # a zero gradient stays a zero update


def orthogonalize(matrix: Tensor, iterations: int = ITERATIONS) -> Tensor:
    """Moves every singular value of a matrix towards 1 and leaves its singular vectors alone.

    The Newton-Schulz iteration X <- aX + (bG + cG²)X with G = XXᵀ applies the quintic `QUINTIC` to the singular values
    of X = M / ‖M‖_F. After five iterations, those that began above 0.002 ‖M‖_F lie between 0.68 and 1.21; they wander
    there without converging, which the method was tuned for. The arithmetic is in the matrix's own dtype, where Jordan
    et al. take bfloat16.

    Args:
        matrix: (..., A, B), floating point; leading dimensions are independent matrices.
        iterations: Newton-Schulz iterations.

    Returns:
        (..., A, B), the approximate orthogonal polar factor UVᵀ of the singular value decomposition M = USVᵀ.
    """
    a, b, c = QUINTIC
    tall = matrix.shape[-2] > matrix.shape[-1]
    x: Tensor = matrix.mT if tall else matrix  # the smaller side first: the Gram matrix is (min(A, B), min(A, B))
    x = x / torch.linalg.matrix_norm(x, keepdim=True).clamp(min=SMALLEST_NORM)
    for _ in range(iterations):
        gram = x @ x.mT
        x = a * x + (b * gram + c * (gram @ gram)) @ x
    return x.mT if tall else x


def step_scale(rows: int, columns: int) -> float:
    """Returns what multiplies lr so that Muon's update has the usual root mean square of AdamW's, 0.2 lr.

    An orthogonal (A, B) matrix has root mean square 1/√max(A, B). One learning rate then serves both rules.

    >>> step_scale(rows=64, columns=100)
    2.0
    """
    return 0.2 * math.sqrt(max(rows, columns))


class Muon(Optimizer):
    """Muon for the groups whose `rule` is "muon" and AdamW for those whose `rule` is "adamw", in one optimizer.

    Muon, with momentum mu and gradient g: m <- mu m + (1 - mu) g; update O = `orthogonalize`((1 - mu) g + mu m) with
    Nesterov's look-ahead, or of m without; w <- (1 - lr weight_decay) w - lr `step_scale`(A, B) O.

    Args:
        groups: Parameter groups, each a dict with `params`, `rule`, and optionally `weight_decay` (decoupled).
        lr: Learning rate of both rules, > 0.
        momentum: mu, in [0, 1).
        nesterov: Whether Muon looks ahead.
        betas: AdamW's decay rates of the first and second moment.
        eps: Added to AdamW's denominator.
        fused: Whether AdamW runs as one fused kernel (the device must have one).
    """

    def __init__(
        self,
        groups: Iterable[dict[str, Any]],
        *,
        lr: float,
        momentum: float = 0.95,
        nesterov: bool = True,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        fused: bool = False,
    ) -> None:
        defaults = {"lr": lr, "momentum": momentum, "nesterov": nesterov, "betas": betas, "eps": eps, "fused": fused}
        super().__init__(groups, {**defaults, "weight_decay": 0.0, "rule": "muon"})

    @overload
    def step(self, closure: None = None) -> None: ...
    @overload
    def step(self, closure: Callable[[], float]) -> float: ...
    def step(self, closure: Callable[[], float] | None = None) -> float | None:
        """Updates all parameters in place.

        Args:
            closure: Computes the loss and the gradients first (Lightning passes one).

        Returns:
            What the closure returned.
        """
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        with torch.no_grad():
            for group in self.param_groups:
                parameters = [parameter for parameter in group["params"] if parameter.grad is not None]
                update_ = self._muon_ if group["rule"] == "muon" else self._adamw_
                update_(parameters, group)
        return loss

    def _muon_(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        lr, momentum = group["lr"], group["momentum"]
        for parameter in parameters:
            gradient = parameter.grad
            assert gradient is not None
            state = self.state[parameter]
            if not state:
                state["momentum_buffer"] = torch.zeros_like(parameter)
            average = state["momentum_buffer"].lerp_(gradient, 1 - momentum)  # (A, B)
            direction = gradient.lerp(average, momentum) if group["nesterov"] else average
            parameter.mul_(1 - lr * group["weight_decay"])
            parameter.add_(orthogonalize(direction), alpha=-lr * step_scale(*parameter.shape))

    def _adamw_(self, parameters: list[Tensor], group: dict[str, Any]) -> None:
        for parameter in parameters:
            state = self.state[parameter]
            if not state:
                device = parameter.device if group["fused"] else "cpu"  # the fused kernel counts on the device
                state["step"] = torch.zeros((), dtype=torch.float32, device=device)
                state["exp_avg"] = torch.zeros_like(parameter)
                state["exp_avg_sq"] = torch.zeros_like(parameter)
        if not parameters:
            return
        states = [self.state[parameter] for parameter in parameters]
        adamw(
            parameters,
            [parameter.grad for parameter in parameters if parameter.grad is not None],
            [state["exp_avg"] for state in states],
            [state["exp_avg_sq"] for state in states],
            [],
            [state["step"] for state in states],
            fused=group["fused"] or None,
            amsgrad=False,
            beta1=group["betas"][0],
            beta2=group["betas"][1],
            lr=group["lr"],
            weight_decay=group["weight_decay"],
            eps=group["eps"],
            maximize=False,
        )
