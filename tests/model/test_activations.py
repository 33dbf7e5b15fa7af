"""Every activation against formulas written with NumPy and SciPy, in float64."""

import copy
import math
import pickle

import numpy as np
import pytest
import torch
from scipy.integrate import quad
from scipy.special import erf
from scipy.stats import norm
from torch import nn

from mlp_lab.errors import UserError
from mlp_lab.model.activations import ACTIVATIONS, Activation, activation, derivative, find, gaussian_mean
from mlp_lab.model.criticality import critical_point
from mlp_lab.model.initialization import INITS

SELU_SCALE, SELU_ALPHA = 1.0507009873554805, 1.6732632423543772  # Klambauer et al. (2017), equation 14


def logistic(z):
    return 1 / (1 + np.exp(-z))


def softplus(z):
    return np.logaddexp(0, z)


FORMULAS = {
    "identity": (lambda z: z, lambda z: np.ones_like(z)),
    "relu": (lambda z: np.maximum(z, 0), lambda z: (z > 0) * 1.0),
    "leaky_relu": (lambda z: np.where(z > 0, z, 0.01 * z), lambda z: np.where(z > 0, 1, 0.01)),
    "prelu": (lambda z: np.where(z > 0, z, 0.25 * z), lambda z: np.where(z > 0, 1, 0.25)),
    "elu": (lambda z: np.where(z > 0, z, np.expm1(z)), lambda z: np.where(z > 0, 1, np.exp(z))),
    "selu": (
        lambda z: SELU_SCALE * np.where(z > 0, z, SELU_ALPHA * np.expm1(z)),
        lambda z: SELU_SCALE * np.where(z > 0, 1, SELU_ALPHA * np.exp(z)),
    ),
    "gelu": (
        lambda z: z * (1 + erf(z / math.sqrt(2))) / 2,
        lambda z: (1 + erf(z / math.sqrt(2))) / 2 + z * norm.pdf(z),
    ),
    "silu": (lambda z: z * logistic(z), lambda z: logistic(z) * (1 + z * (1 - logistic(z)))),
    "mish": (
        lambda z: z * np.tanh(softplus(z)),
        lambda z: np.tanh(softplus(z)) + z * logistic(z) / np.cosh(softplus(z)) ** 2,
    ),
    "softplus": (softplus, logistic),
    "tanh": (np.tanh, lambda z: 1 / np.cosh(z) ** 2),
    "sigmoid": (logistic, lambda z: logistic(z) * logistic(-z)),
    "hardtanh": (lambda z: np.clip(z, -1, 1), lambda z: (np.abs(z) < 1) * 1.0),
    "sine": (np.sin, np.cos),
}
MAX_DERIVATIVES = {  # gelu's is at √2, in closed form; those of silu and mish solve φ'' = 0
    "gelu": 0.5 * (1 + math.erf(1.0)) + math.exp(-1) / math.sqrt(math.pi),
    "silu": 1.0998393194,
    "mish": 1.0884981607,
    "selu": SELU_SCALE * SELU_ALPHA,
    "sigmoid": 0.25,
}
GAINS = {
    "identity": 1.0,
    "relu": math.sqrt(2),  # He et al. (2015), equation 10
    "leaky_relu": math.sqrt(2 / (1 + 0.01**2)),  # equation 15
    "prelu": math.sqrt(2 / (1 + 0.25**2)),
    "selu": 1.0,  # self-normalising by construction
    "sine": math.sqrt(2 / (1 - math.exp(-2))),  # E sin² = (1 - e^-2)/2
}
CAN_DIE = {"relu", "elu", "selu", "gelu", "silu", "mish", "softplus", "tanh", "sigmoid", "hardtanh"}
SATURATES = {"tanh", "sigmoid", "hardtanh"}

every_activation = pytest.mark.parametrize("name", ACTIVATIONS)


def test_the_formulas_cover_the_registry():
    assert FORMULAS.keys() == ACTIVATIONS.keys()


@every_activation
def test_value_and_derivative_follow_the_formulas(name):
    z = np.random.default_rng(0).normal(scale=3, size=(5, 7, 11))
    value, slope = FORMULAS[name]
    record, points = ACTIVATIONS[name], torch.from_numpy(z)
    # softplus is linear beyond 20, where it differs by e^-20 = 2e-9; no other needs more than rounding
    np.testing.assert_allclose(record.function(points), value(z), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(record.make().double()(points).detach(), value(z), rtol=1e-12, atol=1e-12)
    np.testing.assert_allclose(record.derivative(points), slope(z), rtol=1e-11, atol=1e-11)


@every_activation
def test_derivative_needs_no_graph_and_leaves_none(name):
    with torch.inference_mode():
        z = torch.randn(3, 4)
        slope = ACTIVATIONS[name].derivative(z)
    assert slope.shape == z.shape
    assert slope.dtype == z.dtype
    assert not slope.requires_grad


def test_derivative_of_a_module_knows_its_learned_slope():
    module = nn.PReLU()
    nn.init.constant_(module.weight, 0.7)
    assert derivative(module, torch.tensor([-1.0, 2.0])).tolist() == pytest.approx([0.7, 1.0])
    assert module.weight.grad is None


@every_activation
def test_largest_derivative(name):
    assert ACTIVATIONS[name].max_derivative == pytest.approx(MAX_DERIVATIVES.get(name, 1.0), abs=1e-7)


@every_activation
def test_gain_keeps_the_second_moment(name):
    value, _ = FORMULAS[name]
    moment, _ = quad(lambda z: float(value(np.array(z))) ** 2 * norm.pdf(z), -12, 12, points=[-1, 0, 1], limit=200)
    assert ACTIVATIONS[name].gain == pytest.approx(moment**-0.5, rel=1e-6)
    if name in GAINS:
        assert ACTIVATIONS[name].gain == pytest.approx(GAINS[name], rel=1e-6)


@every_activation
def test_what_can_die_and_what_saturates(name):
    assert ACTIVATIONS[name].can_die == (name in CAN_DIE)
    assert ACTIVATIONS[name].saturates == (name in SATURATES)


@every_activation
def test_record_is_complete_and_its_module_travels(name):
    record = ACTIVATIONS[name]
    assert record.name == name
    assert record.source
    assert record.init in INITS
    module, z = record.make(), torch.randn(4)
    for twin in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert torch.equal(twin(z), module(z))
    assert record.make() is not module


def test_prelu_learns_its_slope_and_no_other_has_parameters():
    assert {name for name, record in ACTIVATIONS.items() if list(record.make().parameters())} == {"prelu"}


@pytest.mark.parametrize(
    ("function", "variance", "expected", "tolerance"),
    [
        (lambda z: z**4, 2.0, 12.0, 1e-10),  # 3σ⁴
        (torch.cos, 3.0, math.exp(-1.5), 1e-12),  # e^(-σ²/2)
        (torch.relu, 1.0, 1 / math.sqrt(2 * math.pi), 1e-7),  # a kink at a cell's border
        (lambda z: (z > 0).double(), 5.0, 0.5, 1e-12),  # a jump at a cell's border
    ],
)
def test_gaussian_mean(function, variance, expected, tolerance):
    assert gaussian_mean(function, variance) == pytest.approx(expected, abs=tolerance)


def test_a_new_activation_needs_a_name_and_a_function():
    def squareplus(z):
        return (z + torch.sqrt(z * z + 4)) / 2

    record = Activation(name="squareplus", function=squareplus)
    assert record.make()(torch.zeros(3)).tolist() == [1.0, 1.0, 1.0]
    assert record.derivative(torch.zeros(1)).item() == 0.5
    assert record.max_derivative == pytest.approx(1.0, abs=1e-3)  # reached at infinity only
    assert not record.saturates


def test_activation_of_a_module_lists_the_names():
    with pytest.raises(UserError, match=r"^model.activation: ReLU\(\) is unknown.*; accepted: identity, relu"):
        activation(torch.nn.ReLU())


def test_unknown_name_suggests_the_nearest():
    with pytest.raises(
        UserError, match=r"^model.activation: 'rellu' is unknown \(did you mean 'relu'\?\); accepted: id"
    ):
        activation("rellu")


USERS = """
import torch
from torch import nn
from mlp_lab.model.activations import Activation


def squareplus(z):
    return (z + (z * z + 4).sqrt()) / 2


class Squareplus(nn.Module):
    def forward(self, z):
        return squareplus(z)


record = Activation(name="mine", function=squareplus, init="xavier")
number = 3


def softmax(z):
    return z.softmax(-1)


def noisy(z):
    return z + torch.rand_like(z)


def in_place(z):
    return z.mul_(2)


def single(z):
    return z.float()


def total(z):
    return z.sum()


def logarithm(z):
    return z.log()


def root(z):
    return torch.where(z > 0, z.sqrt(), z)


def sign(z):
    return z.sign()


def detached(z):
    return z.detach()


def words(z):
    return "a"
"""


@pytest.fixture
def users(tmp_path, monkeypatch):
    (tmp_path / "users_activations.py").write_text(USERS)
    (tmp_path / "users_broken.py").write_text("import no_such_module_at_all\n")
    monkeypatch.syspath_prepend(tmp_path)


@pytest.mark.parametrize("name", ["squareplus", "Squareplus", "record"])
def test_dotted_path_is_an_activation_whose_theory_follows_from_the_function(name, users):
    path = f"users_activations.{name}"
    found = activation(path)
    assert found.name == path
    assert found is activation(path)
    z = torch.linspace(-5, 5, 101, dtype=torch.float64)
    expected = (z + (z * z + 4).sqrt()) / 2
    torch.testing.assert_close(found.make()(z), expected)
    torch.testing.assert_close(found.derivative(z), (1 + z / (z * z + 4).sqrt()) / 2)
    assert found.max_derivative == pytest.approx(1.0, abs=1e-3)
    assert not found.saturates
    assert found.gain == pytest.approx(gaussian_mean(lambda z: found.function(z).square()) ** -0.5)
    assert critical_point(found) == critical_point(Activation(name="s", function=found.function))
    assert path not in ACTIVATIONS


@pytest.mark.parametrize(("path", "twin"), [("torch.nn.functional.gelu", "gelu"), ("torch.nn.SiLU", "silu")])
def test_dotted_path_of_a_known_function_has_the_properties_of_its_name(path, twin):
    z = torch.linspace(-9, 9, 99, dtype=torch.float64)
    assert torch.equal(activation(path).make()(z), ACTIVATIONS[twin].make()(z))
    assert (activation(path).gain, activation(path).saturates) == (ACTIVATIONS[twin].gain, ACTIVATIONS[twin].saturates)
    assert critical_point(activation(path)) == critical_point(ACTIVATIONS[twin])


@pytest.mark.parametrize(
    ("path", "reason"),
    [
        ("users_activations.squarplus", "cannot be imported (AttributeError: "),
        ("no_such_module.relu", "cannot be imported (ModuleNotFoundError: No module named 'no_such_module')"),
        ("users_broken.relu", "cannot be imported (ModuleNotFoundError: No module named 'no_such_module_at_all')"),
        ("a..b", "cannot be imported ("),
        ("users_activations.number", "is of type int"),
        ("users_activations.softmax", "is not elementwise: its value at one entry depends on the others, or on chance"),
        ("users_activations.noisy", "is not elementwise"),
        ("users_activations.in_place", "changes its input in place"),
        ("users_activations.single", "changes the type of its input"),
        ("users_activations.total", "changes the shape of its input"),
        ("users_activations.logarithm", "is not finite at -40"),
        ("users_activations.root", "has no finite derivative at -40"),
        ("users_activations.sign", "has the derivative 0 everywhere"),
        ("users_activations.detached", "cannot be differentiated by autograd"),
        ("users_activations.words", "returns a str, not a tensor"),
        ("torch.nn.PReLU", "has parameters, which only prelu may have"),
        ("torch.nn.Linear", "cannot be built without arguments ("),
        ("torch.nn.functional.softmax", "is not elementwise"),
        ("os.getcwd", "fails on a tensor (TypeError: "),
    ],
)
def test_dotted_path_that_is_no_activation_is_refused_in_one_line(path, reason, users):
    with pytest.raises(UserError) as caught:
        activation(path)
    line = str(caught.value)
    assert line.startswith(f"model.activation: {path!r} {reason}")
    assert "; accepted: the dotted path of an elementwise function that autograd differentiates, or identity, " in line
    assert "\n" not in line
    assert find(path) is None
