"""Activation functions φ, and what the theory of signal propagation must know of each.

A record needs a name and a function; everything else is derived from the function:

    def squareplus(z: Tensor) -> Tensor:
        return (z + torch.sqrt(z * z + 4)) / 2

    ACTIVATIONS["squareplus"] = Activation(name="squareplus", function=squareplus, source="Barron (2021)")

A config may also name a function that is not registered by its dotted path: `model.activation: my_module.squareplus`.

Symbols: z pre-activation, a = φ(z) activation, φ' the derivative, E the mean over z ~ N(0, 1).
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cache, cached_property, partial
from pkgutil import resolve_name

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from mlp_lab.errors import UserError, unknown

Function = Callable[[Tensor], Tensor]


class Elementwise(nn.Module):
    """Wraps a plain function as a module, for activations that `torch.nn` lacks."""

    def __init__(self, function: Function) -> None:
        super().__init__()
        self.function = function

    def forward(self, z: Tensor) -> Tensor:
        return self.function(z)


def derivative(function: Function, z: Tensor) -> Tensor:
    """Differentiates an elementwise function or module by autograd, so that learned slopes count too.

    At a kink the value is torch's convention: 0 for relu at 0.

    Args:
        function: φ, elementwise and differentiable almost everywhere.
        z: any shape; detached from its own graph, inference tensors included.

    Returns:
        φ'(z), of z's shape and dtype.

    >>> derivative(torch.tanh, torch.zeros(2))
    tensor([1., 1.])
    """
    with torch.inference_mode(False), torch.enable_grad():
        leaf = z.detach().clone().requires_grad_()
        (slope,) = torch.autograd.grad(function(leaf).sum(), leaf)
    return slope


def gaussian_mean(function: Function, variance: float = 1.0) -> float:
    """Computes E[f(√variance · z)] by the midpoint rule on [-10, 10].

    Unlike Gauss-Hermite quadrature it keeps its accuracy at the kinks of relu and its kin: they fall between nodes.
    The rule is exact to rounding for smooth functions, and its error is below 1e-7 for a kink at 0.

    >>> round(gaussian_mean(torch.square, variance=4.0), 9)
    4.0
    """
    step = 1 / 2048
    nodes = (torch.arange(-10 * 2048, 10 * 2048, dtype=torch.float64) + 0.5) * step
    density = torch.exp(-nodes.square() / 2) / math.sqrt(2 * math.pi)
    return float((function(math.sqrt(variance) * nodes) * density).sum() * step)


@dataclass(frozen=True, kw_only=True)
class Activation:
    """One activation function; what the theory must know of it is derived from `function`."""

    name: str
    """As in `model.activation`."""
    function: Function
    """φ, elementwise on tensors of any shape (a learnable one at its initial parameters)."""
    source: str = ""
    """The paper that proposed it."""
    module: Callable[[], nn.Module] | None = None
    """torch's own module where there is one."""
    init: str = "he"
    """Name of the recommended entry of `INITS`."""

    def make(self) -> nn.Module:
        """Returns a new module that computes φ."""
        return Elementwise(self.function) if self.module is None else self.module()

    def derivative(self, z: Tensor) -> Tensor:
        """Returns φ'(z) for z of any shape, exact almost everywhere."""
        return derivative(self.function, z)

    @cached_property
    def max_derivative(self) -> float:
        """The largest absolute value of φ'(z), to 1e-7: above 1 for gelu and silu, 0.25 for sigmoid."""
        return float(self.derivative(_GRID).abs().max())

    @cached_property
    def gain(self) -> float:
        """1/√E[φ(z)²]: weights of standard deviation gain/√fan_in keep the second moment of unit inputs.

        He et al. (2015, eq. 10 and 15) derive √2 for relu and √(2/(1+s²)) for slope s; this is the same for any φ.
        """
        return 1 / math.sqrt(gaussian_mean(lambda z: self.function(z).square()))

    @cached_property
    def can_die(self) -> bool:
        """Whether φ' vanishes on at least one side, so that a unit may pass no gradient for any sample."""
        return any(self._flat_tails)

    @cached_property
    def saturates(self) -> bool:
        """Whether φ' vanishes on both sides, so that large pre-activations pass no gradient."""
        return all(self._flat_tails)

    @property
    def _flat_tails(self) -> tuple[bool, bool]:
        slopes = self.derivative(_GRID).abs()
        return bool(slopes[_GRID < -20].max() < 1e-6), bool(slopes[_GRID > 20].max() < 1e-6)


_GRID = torch.arange(-80_000, 80_001, dtype=torch.float64) / 2000  # -40 to 40; holds 0 itself, unlike linspace

_RECORDS = (
    Activation(
        name="identity",
        function=torch.positive,
        module=nn.Identity,
        init="xavier",
        source="deep linear networks: Saxe et al. (2014)",
    ),
    Activation(name="relu", function=F.relu, module=nn.ReLU, source="Nair and Hinton (2010); Glorot et al. (2011)"),
    Activation(
        name="leaky_relu", function=F.leaky_relu, module=nn.LeakyReLU, source="Maas et al. (2013); slope 0.01 below 0"
    ),
    Activation(
        name="prelu",
        function=partial(F.leaky_relu, negative_slope=0.25),
        module=nn.PReLU,
        source="He et al. (2015); one learned slope per layer, 0.25 at first",
    ),
    Activation(name="elu", function=F.elu, module=nn.ELU, source="Clevert et al. (2016)"),
    Activation(name="selu", function=F.selu, module=nn.SELU, init="lecun", source="Klambauer et al. (2017)"),
    Activation(name="gelu", function=F.gelu, module=nn.GELU, source="Hendrycks and Gimpel (2016); exact, by erf"),
    Activation(name="silu", function=F.silu, module=nn.SiLU, source="Elfwing et al. (2018); swish"),
    Activation(name="mish", function=F.mish, module=nn.Mish, source="Misra (2020)"),
    Activation(name="softplus", function=F.softplus, module=nn.Softplus, init="xavier", source="Dugas et al. (2001)"),
    Activation(name="tanh", function=torch.tanh, module=nn.Tanh, init="xavier", source="LeCun et al. (1998)"),
    Activation(
        name="sigmoid", function=torch.sigmoid, module=nn.Sigmoid, init="xavier", source="Rumelhart et al. (1986)"
    ),
    Activation(name="hardtanh", function=F.hardtanh, module=nn.Hardtanh, init="xavier", source="Collobert (2004)"),
    Activation(name="sine", function=torch.sin, source="Sitzmann et al. (2020), with frequency 1"),
)

ACTIVATIONS: dict[str, Activation] = {record.name: record for record in _RECORDS}


def activation(name: str) -> Activation:
    """Looks an activation up by its name, or imports it by its dotted path.

    Raises:
        UserError: names `model.activation`, the value and what would be accepted.

    >>> activation("torch.nn.functional.softsign").max_derivative
    1.0
    """
    if isinstance(name, str) and name in ACTIVATIONS:
        return ACTIVATIONS[name]
    if isinstance(name, str) and "." in name:
        return imported(name)
    raise unknown("model.activation", name, [*ACTIVATIONS, "or the dotted path of an elementwise function"])


def find(name: str) -> Activation | None:
    """Returns the activation of a name or a dotted path, or None where there is none."""
    try:
        return activation(name)
    except UserError:
        return None


@cache
def imported(path: str) -> Activation:
    """Imports an elementwise function, a `torch.nn` class without parameters, or an `Activation`, by its dotted path.

    A config that names a path runs the code of that module, as a `class_path` does.

    Raises:
        UserError: It cannot be imported, or is no elementwise function that autograd can differentiate.
    """
    try:
        found = resolve_name(path)
    except Exception as error:  # a module of the user may fail in any way
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise _refused(path, f"cannot be imported ({reason})") from error
    if isinstance(found, Activation):
        return replace(found, name=path)
    make: Callable[[], nn.Module] | None = None
    if isinstance(found, type) and issubclass(found, nn.Module):
        make = found
        try:
            found = found()
        except TypeError as error:
            raise _refused(path, f"cannot be built without arguments ({error})") from error
    if isinstance(found, nn.Module) and any(True for _ in found.parameters()):
        raise _refused(path, "has parameters, which only prelu may have")
    if not callable(found):
        raise _refused(path, f"is of type {type(found).__name__}")
    if fault := why_no_activation(found):
        raise _refused(path, fault)
    return Activation(name=path, function=found, module=make, source=path)


def _refused(path: str, reason: str) -> UserError:
    return UserError(
        f"model.activation: {path!r} {reason}; accepted: the dotted path of an elementwise function that autograd "
        f"differentiates, or {', '.join(ACTIVATIONS)}"
    )


def why_no_activation(function: Function, *, single: bool = True) -> str:
    """Says why a function is no elementwise function that autograd differentiates; nothing where it is one.

    Args:
        function: what is tried, in float64 on the CPU.
        single: whether it must take float32 too; a module in float64 does not.
    """
    z = torch.linspace(-3, 3, 24, dtype=torch.float64)
    given = z.clone()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            a = function(given)
            others = [function(z.view(4, 6)), function(z[:5]), function(z.flip(0))]
            others.append(function(z.float()) if single else others[-1])
            on_grid = function(_GRID.clone())
    except Exception as error:  # whatever the user's function raises
        return f"fails on a tensor ({type(error).__name__}: {error})".splitlines()[0]
    if not all(isinstance(one, Tensor) for one in (a, *others)):
        return f"returns a {type(a).__name__}, not a tensor"
    table, part, flipped, other_type = others
    if not torch.equal(given, z):
        return "changes its input in place"
    if a.shape != z.shape or table.shape != (4, 6):
        return "changes the shape of its input"
    if a.dtype != z.dtype or (single and other_type.dtype != torch.float32):
        return "changes the type of its input"
    pairs = ((table, a.view(4, 6)), (part, a[:5]), (flipped, a.flip(0)))
    if not all(_equal(one, other) for one, other in pairs):
        return "is not elementwise: its value at one entry depends on the others, or on chance"
    if not bool(on_grid.isfinite().all()):
        return f"is not finite at {_first_nonfinite(on_grid):g}"
    try:
        slopes = derivative(function, _GRID)
    except RuntimeError:
        return "cannot be differentiated by autograd"
    if not bool(slopes.isfinite().all()):
        return f"has no finite derivative at {_first_nonfinite(slopes):g}"
    return "" if bool(slopes.any()) else "has the derivative 0 everywhere, so that nothing is learned"


def _equal(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.allclose(one, other, rtol=1e-9, atol=1e-12, equal_nan=True)


def _first_nonfinite(values: Tensor) -> float:
    return float(_GRID[~values.isfinite()][0])
