"""Initial weights against the formulas of their papers, at widths where a statistic is known to a few per cent."""

import math

import pytest
import torch
from torch import nn

from mlp_lab.errors import UserError
from mlp_lab.model.activations import ACTIVATIONS
from mlp_lab.model.criticality import critical_point
from mlp_lab.model.initialization import ALIASES, INITS, initialize_, initializer, lsuv_
from mlp_lab.model.mlp import MLP

FAN_IN, FAN_OUT = 1000, 800
# 800,000 weights: the standard deviation is known to 1/√(2·800000) = 0.08% for a normal law, the mean to 0.1% of it;
# a tolerance of 0.5% is five standard errors or more, and tells √2 from 5/3 and n from (n+m)/2
RELATIVE = 0.005


def written(init: str, activation: str, *, hidden_before: bool = True) -> tuple[nn.Linear, nn.Linear]:
    """Returns a hidden layer of 800 units with 1000 inputs, and a head of 1000 outputs behind it."""
    torch.manual_seed(0)
    layers = [nn.Linear(FAN_IN, FAN_OUT), nn.Linear(FAN_OUT, FAN_IN)]
    first = [nn.Linear(3, FAN_IN)] if hidden_before else []
    initialize_([*first, *layers], initializer(init), ACTIVATIONS[activation])
    return layers[0], layers[1]


def std(tensor: torch.Tensor) -> float:
    return tensor.std(correction=0).item()


@pytest.mark.parametrize(
    ("init", "activation", "hidden", "head"),
    [
        ("pytorch", "relu", 1 / math.sqrt(3 * FAN_IN), 1 / math.sqrt(3 * FAN_OUT)),
        ("xavier", "tanh", math.sqrt(2 / (FAN_IN + FAN_OUT)), math.sqrt(2 / (FAN_IN + FAN_OUT))),
        ("xavier", "relu", math.sqrt(2 / (FAN_IN + FAN_OUT)), math.sqrt(2 / (FAN_IN + FAN_OUT))),
        ("he", "relu", math.sqrt(2 / FAN_IN), math.sqrt(1 / FAN_OUT)),
        ("he", "prelu", math.sqrt(2 / (1 + 0.25**2) / FAN_IN), math.sqrt(1 / FAN_OUT)),
        ("lecun", "selu", math.sqrt(1 / FAN_IN), math.sqrt(1 / FAN_OUT)),
        ("critical", "relu", math.sqrt(2 / FAN_IN), math.sqrt(1 / FAN_OUT)),
        ("orthogonal", "relu", math.sqrt(2 / FAN_IN), math.sqrt(1 / FAN_IN)),  # Q's entries: 1/√(larger side)
        ("zero_head", "relu", math.sqrt(2 / FAN_IN), 0.0),
        ("lsuv", "relu", math.sqrt(2 / FAN_IN), math.sqrt(1 / FAN_IN)),
    ],
)
def test_standard_deviations(init, activation, hidden, head):
    layer, last = written(init, activation)
    assert std(layer.weight) == pytest.approx(hidden, rel=RELATIVE)
    assert std(last.weight) == pytest.approx(head, rel=RELATIVE)
    assert abs(layer.weight.mean().item()) < RELATIVE * hidden
    if init != "pytorch":
        assert not layer.bias.any()
        assert not last.bias.any()


def test_uniform_laws_keep_their_bounds():
    layer, _ = written("xavier", "tanh")
    bound = math.sqrt(6 / (FAN_IN + FAN_OUT))
    assert bound * 0.9999 < layer.weight.abs().max().item() <= bound
    layer, _ = written("pytorch", "tanh")
    bound = 1 / math.sqrt(FAN_IN)
    assert bound * 0.9999 < layer.weight.abs().max().item() <= bound
    assert bound * 0.99 < layer.bias.abs().max().item() <= bound


def test_pytorch_is_what_torch_draws():
    torch.manual_seed(3)
    twin = nn.Sequential(nn.Linear(7, 5), nn.ReLU(), nn.Linear(5, 4), nn.ReLU(), nn.Linear(4, 2))
    torch.manual_seed(3)
    mlp = MLP(7, 2, depth=2, width=[5, 4], init="pytorch")
    for ours, theirs in zip(mlp.parameters(), twin.parameters(), strict=True):
        assert torch.equal(ours, theirs)


def test_orthogonal_rows():
    layer, _ = written("orthogonal", "relu")
    gram = (layer.weight @ layer.weight.T).detach()
    torch.testing.assert_close(gram, 2 * torch.eye(FAN_OUT), atol=1e-4, rtol=0)  # float32 rounding of sums of 1000


@pytest.mark.parametrize("activation", ["tanh", "gelu", "silu", "elu", "selu"])
def test_critical_variances(activation):
    point = critical_point(ACTIVATIONS[activation])
    layer, head = written("critical", activation)
    assert std(layer.weight) == pytest.approx(math.sqrt(point.weight_variance / FAN_IN), rel=RELATIVE)
    assert std(layer.bias) == pytest.approx(math.sqrt(point.bias_variance), rel=0.15)  # 800 biases: 2.5%
    assert std(head.weight) == pytest.approx(math.sqrt(1 / FAN_OUT), rel=RELATIVE)
    first, _ = written("critical", activation, hidden_before=False)
    assert std(first.weight) == pytest.approx(math.sqrt((point.q - point.bias_variance) / FAN_IN), rel=RELATIVE)


@pytest.mark.parametrize("activation", ["relu", "tanh", "gelu", "silu", "mish", "elu", "selu", "hardtanh", "sine"])
def test_critical_signal_stays_at_the_fixed_point_in_a_deep_network(activation):
    """Thirty layers of 400 units: relative fluctuations of q grow as √(depth · few/width), about 0.4 at the end.

    A wrong σ_w² fails by far: 5% off alone is a factor 1.05³⁰ = 4.3.
    """
    torch.manual_seed(0)
    mlp = MLP(400, 10, depth=30, width=400, activation=activation, init="critical").double()
    _, trace = mlp(torch.randn(200, 400, dtype=torch.float64), trace=True)
    q = torch.stack([z.square().mean() for z in trace.z]) / critical_point(ACTIVATIONS[activation]).q
    assert q[0].item() == pytest.approx(1, rel=0.1)
    assert 0.4 < q[-1].item() < 2.5


def test_critical_sigmoid_is_tanh_in_disguise():
    """The same draws give a sigmoid network the logits of the tanh network: σ(z) = ½ + ½·tanh(z/2)."""
    networks = []
    for activation in ("sigmoid", "tanh"):
        torch.manual_seed(0)
        networks.append(MLP(50, 10, depth=8, width=60, activation=activation, init="critical").double())
    x = torch.randn(20, 50, dtype=torch.float64)
    (logits, trace), (twin_logits, twin_trace) = (network(x, trace=True) for network in networks)
    torch.testing.assert_close(logits, twin_logits, atol=1e-6, rtol=0)  # the biases were centred in float32
    torch.testing.assert_close(trace.z[-1], 2 * twin_trace.z[-1], atol=1e-5, rtol=0)
    # and it is the σ_w² = 16 of the theory, times tanh's
    ratio = networks[0].blocks[3].linear.weight.var() / networks[1].blocks[3].linear.weight.var()
    assert ratio.item() == pytest.approx(16)


def test_critical_refuses_softplus():
    with pytest.raises(UserError, match=r"model.init: 'critical' has no fixed point for model.activation: 'softplus'"):
        MLP(4, 2, activation="softplus", init="critical")


@pytest.mark.parametrize("init", INITS)
@pytest.mark.parametrize("activation", [name for name in ACTIVATIONS if name != "softplus"])
def test_every_init_writes_finite_weights_that_depend_on_the_seed_alone(init, activation):
    weights = []
    for seed in (1, 1, 2):
        torch.manual_seed(seed)
        weights.append(MLP(6, 3, depth=2, width=5, init=init, activation=activation).blocks[1].linear.weight)
    assert torch.equal(weights[0], weights[1])
    assert not torch.equal(weights[0], weights[2])
    assert weights[0].isfinite().all()


def test_zero_head_starts_at_zero():
    assert not MLP(6, 3, init="zero_head")(torch.randn(4, 6)).any()


def test_aliases_and_unknown_names():
    assert {alias: initializer(alias) is INITS[name] for alias, name in ALIASES.items()} == {
        "glorot": True,
        "kaiming": True,
    }
    with pytest.raises(
        UserError, match=r"model.init: 'xavir' is unknown \(did you mean 'xavier'\?\); accepted: pytorch,"
    ):
        initializer("xavir")


@pytest.mark.parametrize("activation", ["relu", "tanh", "sigmoid", "softplus"])
def test_lsuv_gives_every_layer_unit_variance(activation):
    torch.manual_seed(0)
    mlp = MLP(20, 3, depth=6, width=[64, 32, 64, 16, 64, 64], activation=activation, init="lsuv", dropout=0.5).double()
    x = 5 + 3 * torch.randn(500, 20, dtype=torch.float64)
    state = torch.random.get_rng_state()
    lsuv_(mlp, x)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert mlp.training
    _, trace = mlp.eval()(x, trace=True)
    for z in trace.z:
        assert z.std(correction=0).item() == pytest.approx(1, abs=1e-12)


def test_lsuv_leaves_constant_layers_and_running_statistics_alone():
    mlp = MLP(4, 2, depth=1, width=8, norm="batch", init="lsuv")
    weight = mlp.blocks[0].linear.weight.clone()
    lsuv_(mlp, torch.zeros(10, 4))
    assert torch.equal(mlp.blocks[0].linear.weight, weight)
    assert mlp.blocks[0].norm.num_batches_tracked == 0


@pytest.mark.parametrize(("activation", "works"), [("relu", True), ("tanh", True), ("gelu", False), ("silu", False)])
def test_critical_without_bias_needs_a_point_whose_bias_is_negligible(activation: str, works: bool) -> None:
    linears = [nn.Linear(500, 500, bias=False), nn.Linear(500, 500, bias=False), nn.Linear(500, 10)]
    if not works:
        with pytest.raises(UserError, match=r"model\.init: 'critical' needs the biases .* accepted: linear_bias: true"):
            initialize_(linears, initializer("critical"), ACTIVATIONS[activation])
        return
    initialize_(linears, initializer("critical"), ACTIVATIONS[activation])
    point = critical_point(ACTIVATIONS[activation])
    assert point is not None
    assert std(linears[1].weight) == pytest.approx(math.sqrt(point.weight_variance / 500), rel=RELATIVE)


def test_critical_without_bias_refuses_to_read_sigmoid() -> None:
    linears = [nn.Linear(5, 5, bias=False), nn.Linear(5, 5, bias=False), nn.Linear(5, 1)]
    with pytest.raises(UserError, match=r"for model\.activation: 'sigmoid'"):
        initialize_(linears, initializer("critical"), ACTIVATIONS["sigmoid"])
