"""The network against NumPy, finite differences, hand-written torch and its own contract."""

import copy
import pickle

import numpy as np
import pytest
import torch
from torch import nn

from mlp_lab.data.spec import DataSpec
from mlp_lab.errors import UserError
from mlp_lab.model.activations import ACTIVATIONS
from mlp_lab.model.dropout import AlphaDropout
from mlp_lab.model.initialization import INITS, lsuv_
from mlp_lab.model.mlp import MLP, NORMS, Settings, resolve_widths
from mlp_lab.population.stack import Population

NUMPY = {
    "relu": lambda z: np.maximum(z, 0),
    "tanh": np.tanh,
    "silu": lambda z: z / (1 + np.exp(-z)),
    "identity": lambda z: z,
}


def numpy_norm(kind: str, h: np.ndarray, gain: np.ndarray, shift: np.ndarray | None) -> np.ndarray:
    if kind == "batch":
        h = (h - h.mean(0)) / np.sqrt(h.var(0) + 1e-5)
    elif kind == "layer":
        h = (h - h.mean(1, keepdims=True)) / np.sqrt(h.var(1, keepdims=True) + 1e-5)
    elif kind == "rms":
        h = h / np.sqrt((h**2).mean(1, keepdims=True) + np.finfo(np.float64).eps)
    return h * gain + (0 if shift is None else shift)


def numpy_forward(mlp: MLP, x: np.ndarray, activation: str, norm: str) -> tuple[np.ndarray, list, list]:
    """The forward pass in training mode, without dropout, from the definition of a block."""
    state = {name: tensor.numpy() for name, tensor in mlp.state_dict().items()}
    zs, activations = [], []
    for layer in range(mlp.depth):
        weight, bias = state[f"blocks.{layer}.linear.weight"], state[f"blocks.{layer}.linear.bias"]
        z = x @ weight.T + bias
        if norm != "none":
            z = numpy_norm(norm, z, state[f"blocks.{layer}.norm.weight"], state.get(f"blocks.{layer}.norm.bias"))
        a = NUMPY[activation](z)
        x = a + x if mlp.blocks[layer].skip else a
        zs.append(z)
        activations.append(a)
    return x @ state["head.weight"].T + state["head.bias"], zs, activations


def randomized(mlp: MLP) -> MLP:
    """Biases, gains and shifts away from their initial 0 and 1, so that each of them matters."""
    generator = torch.Generator().manual_seed(1)
    for parameter in mlp.parameters():
        if parameter.dim() == 1:
            parameter.data += 0.3 * torch.randn(parameter.shape, generator=generator)
    return mlp.double()


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(
    ("activation", "depth", "width", "residual"),
    [("relu", 2, [8, 5], False), ("tanh", 3, 6, True), ("silu", 4, [6, 9, 9, 6], True), ("identity", 0, 6, False)],
)
def test_forward_and_trace_against_numpy(activation, depth, width, residual, norm):
    torch.manual_seed(0)
    mlp = MLP(6, 3, depth=depth, width=width, activation=activation, norm=norm, residual=residual)
    randomized(mlp)
    x = torch.randn(10, 6, dtype=torch.float64)
    expected, zs, activations = numpy_forward(mlp, x.numpy(), activation, norm)
    logits, trace = mlp(x, trace=True)
    np.testing.assert_allclose(logits.detach(), expected, rtol=1e-10, atol=1e-12)
    assert len(trace.z) == len(trace.a) == depth
    for ours, theirs in zip((*trace.z, *trace.a), (*zs, *activations), strict=True):
        np.testing.assert_allclose(ours.detach(), theirs, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(mlp(x), logits)


def test_skips_stand_where_widths_match():
    blocks = MLP(6, 3, depth=4, width=[6, 9, 9, 6], residual=True).blocks
    assert [block.skip for block in blocks] == [True, False, True, False]
    assert not any(block.skip for block in MLP(6, 3, depth=2, width=6).blocks)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_gradients_by_finite_differences(activation, norm):
    """In float64 with torch's tolerances (1e-6 steps); no pre-activation lies within 1e-4 of a kink."""
    torch.manual_seed(0)
    mlp = randomized(MLP(3, 2, depth=2, width=4, activation=activation, norm=norm, residual=True, init="xavier"))
    x = torch.randn(5, 3, dtype=torch.float64, requires_grad=True)
    _, trace = mlp(x, trace=True)
    kinks = {"hardtanh": (-1.0, 1.0)}.get(activation, (0.0,))
    assert all(((z - kink).abs() > 1e-4).all() for z in trace.z for kink in kinks)
    names, parameters = zip(*mlp.named_parameters(), strict=True)

    def logits(x, *values):
        return torch.func.functional_call(mlp, dict(zip(names, values, strict=True)), (x,))

    assert torch.autograd.gradcheck(logits, (x, *parameters))


@pytest.mark.parametrize(
    ("sizes", "norm", "expected"),
    [
        ([784, 128, 64, 10], "none", 109_386),
        ([784, 10], "none", 7_850),
        ([8, 64, 64, 1], "none", 8 * 64 + 64 + 64 * 64 + 64 + 65),
        ([784, 128, 64, 10], "batch", 109_386 + 2 * (128 + 64)),
        ([784, 128, 64, 10], "layer", 109_386 + 2 * (128 + 64)),
        ([784, 128, 64, 10], "rms", 109_386 + (128 + 64)),
    ],
)
def test_parameter_counts(sizes, norm, expected):
    mlp = MLP(sizes[0], sizes[-1], depth=len(sizes) - 2, width=sizes[1:-1], norm=norm)
    assert sum(parameter.numel() for parameter in mlp.parameters()) == expected
    assert mlp.widths == tuple(sizes[1:-1])


def test_depth_zero_is_one_linear_layer():
    mlp = MLP(5, 2, depth=0)
    assert [name for name, _ in mlp.named_parameters()] == ["head.weight", "head.bias"]


def test_images_are_flattened():
    mlp = MLP(784, 10, width=16)
    images = torch.randn(3, 1, 28, 28)
    assert torch.equal(mlp(images), mlp(images.reshape(3, 784)))


def test_equal_seeds_give_equal_networks_and_nothing_else_is_drawn():
    networks, after = [], []
    for _ in range(2):
        torch.manual_seed(7)
        networks.append(MLP(20, 5, depth=3, width=[8, 9, 10], norm="batch", dropout=0.1))
        after.append(torch.rand(1))
    assert torch.equal(after[0], after[1])
    one, two = (network.state_dict() for network in networks)
    assert one.keys() == two.keys()
    assert all(torch.equal(one[name], two[name]) for name in one)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_contract_of_every_combination(activation, norm):
    settings: Settings = {"depth": 2, "width": [6, 5], "activation": activation, "norm": norm, "dropout": 0.2}
    mlp = MLP(4, 3, input_dropout=0.1, **settings)
    x = torch.randn(8, 4)
    mlp(x).sum().backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in mlp.parameters())
    mlp.eval()
    for twin in (copy.deepcopy(mlp), pickle.loads(pickle.dumps(mlp))):
        assert torch.equal(twin(x), mlp(x))
    reloaded = MLP(4, 3, input_dropout=0.1, **settings).eval()
    reloaded.load_state_dict(mlp.state_dict())
    assert torch.equal(reloaded(x), mlp(x))


def test_dropout_drops_and_rescales():
    torch.manual_seed(0)
    mlp = MLP(4, 1, depth=1, width=20_000, activation="identity", dropout=0.3)
    a = mlp.blocks[0](torch.ones(1, 4))
    kept = mlp.eval().blocks[0](torch.ones(1, 4))
    share = (a == 0).float().mean().item()
    assert share == pytest.approx(0.3, abs=0.015)  # 20,000 units: standard error 0.3%
    torch.testing.assert_close(a[a != 0], kept[a != 0] / 0.7)


def test_input_dropout_acts_on_the_inputs():
    torch.manual_seed(0)
    mlp = MLP(10_000, 1, depth=0, input_dropout=0.4)
    assert (mlp.encode(torch.ones(1, 10_000)) == 0).float().mean().item() == pytest.approx(0.4, abs=0.02)


def test_selu_gets_alpha_dropout_that_keeps_mean_and_variance():
    torch.manual_seed(0)
    block = MLP(300, 1, depth=1, width=300, activation="selu", init="lecun", dropout=0.1).blocks[0]
    assert isinstance(block.dropout, AlphaDropout)
    x = torch.randn(2000, 300)
    dropped, kept = block(x), block.eval()(x)
    assert dropped.mean().item() == pytest.approx(kept.mean().item(), abs=0.02)
    assert dropped.var().item() == pytest.approx(kept.var().item(), abs=0.05)


def test_batch_norm_lets_one_row_pass_by_its_running_statistics():
    torch.manual_seed(0)
    mlp = MLP(4, 2, depth=1, width=6, norm="batch")
    for _ in range(50):
        mlp(3 + torch.randn(64, 4))
    steps, row = mlp.blocks[0].norm.num_batches_tracked.clone(), torch.randn(1, 4)
    logits = mlp(row)
    assert mlp.blocks[0].norm.num_batches_tracked == steps
    assert torch.equal(logits, mlp.eval()(row))


def test_no_module_is_called_that_does_nothing():
    called: list[str] = []
    mlp = MLP(4, 2, depth=2, width=4)
    for name, module in mlp.named_modules():
        module.register_forward_hook(lambda module, args, output, name=name: called.append(name))
    mlp(torch.randn(3, 4))
    parts = [f"blocks.{layer}{part}" for layer in (0, 1) for part in (".linear", ".activation", "")]
    assert called == [*parts, "head", ""]


def test_from_spec_takes_the_shape_of_the_data():
    spec = DataSpec(task="regression", numeric=("a", "b"), targets=("y", "z"), target_mean=(0, 0), target_std=(1, 1))
    mlp = MLP.from_spec(spec, depth=1, width=7, norm="layer")
    assert mlp(torch.randn(5, 2)).shape == (5, 2)
    assert mlp.widths == (7,)
    assert isinstance(mlp.blocks[0].norm, nn.LayerNorm)


def test_wrong_inputs_are_named():
    with pytest.raises(ValueError, match=r"takes 784 numeric inputs, not 100 \(shape \(3, 1, 10, 10\)\)"):
        MLP(784, 10)(torch.randn(3, 1, 10, 10))
    with pytest.raises(ValueError, match="0 inputs and 2 outputs"):
        MLP(0, 2)


@pytest.mark.parametrize(("depth", "width", "expected"), [(0, 5, ()), (0, [], ()), (2, 5, (5, 5)), (2, (3, 4), (3, 4))])
def test_widths(depth, width, expected):
    assert resolve_widths(depth, width) == expected


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"depth": -1}, "model.depth: -1 is not a number of hidden layers; accepted: an integer of at least 0"),
        ({"depth": 1.5}, "model.depth: 1.5 is not"),
        ({"depth": True}, "model.depth: True is not"),
        ({"width": 0}, "model.width: 0 is not a number of units; accepted: integers of at least 1"),
        ({"depth": 0, "width": -3}, "model.width: -3 is not a number of units"),
        ({"width": [8, 0]}, r"model.width: \[8, 0\] is not a number of units"),
        ({"width": [8, 2.5]}, r"model.width: \[8, 2.5\] is not"),
        (
            {"depth": 3, "width": [8, 4]},
            r"model.width: \[8, 4\] has 2 entries, but model.depth: 3 needs 3; acc",
        ),
        ({"depth": 0, "width": [8]}, r"model.width: \[8\] has 1 entries, but model.depth: 0 needs 0"),
        ({"activation": "gellu"}, r"model.activation: 'gellu' is unknown \(did you mean 'gelu'\?\)"),
        ({"init": "hee"}, r"model.init: 'hee' is unknown \(did you mean 'he'\?\)"),
        (
            {"norm": "bach"},
            r"model.norm: 'bach' is unknown \(did you mean 'batch'\?\); accepted: none, batch, la",
        ),
        ({"dropout": 1.0}, "model.dropout: 1.0 is not a probability; accepted: at least 0 and below 1"),
        ({"dropout": float("nan")}, "model.dropout: nan is not a probability"),
        ({"input_dropout": -0.1}, "model.input_dropout: -0.1 is not a probability"),
    ],
)
def test_user_mistakes(settings, message):
    with pytest.raises(UserError, match=f"^{message}"):
        MLP(4, 2, **settings)


def test_bias_sets_the_hidden_biases_alone() -> None:
    torch.manual_seed(0)
    plain = MLP(4, 3, depth=2, width=5)
    torch.manual_seed(0)
    shifted = MLP(4, 3, depth=2, width=5, bias=-1.5)
    for one, other in zip(plain.linears, shifted.linears, strict=True):
        assert torch.equal(one.weight, other.weight)
    assert [linear.bias.unique().tolist() for linear in shifted.linears] == [[-1.5], [-1.5], [0.0]]


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("activation", ACTIVATIONS)
def test_hidden_layers_without_bias_keep_the_bias_of_the_head(activation, norm):
    mlp = MLP(4, 3, depth=2, width=[6, 5], activation=activation, norm=norm, linear_bias=False)
    assert [linear.bias is None for linear in mlp.linears] == [True, True, False]
    names = [name for name, _ in mlp.named_parameters()]
    assert not any(name.endswith("linear.bias") for name in names)
    mlp(torch.randn(8, 4)).sum().backward()
    assert all(parameter.grad is not None and parameter.grad.isfinite().all() for parameter in mlp.parameters())
    with_bias = MLP(4, 3, depth=2, width=[6, 5], activation=activation, norm=norm)
    count = sum(parameter.numel() for parameter in with_bias.parameters())
    assert sum(parameter.numel() for parameter in mlp.parameters()) == count - 6 - 5


@pytest.mark.parametrize("init", [name for name in INITS if name != "pytorch"])
def test_weights_without_bias_are_those_with_bias(init):
    networks = []
    for linear_bias in (True, False):
        torch.manual_seed(0)
        networks.append(MLP(5, 2, width=7, depth=1, init=init, linear_bias=linear_bias))
    assert torch.equal(networks[0].linears[0].weight, networks[1].linears[0].weight)
    x = torch.randn(64, 5)
    for network in networks:
        lsuv_(network, x)
    assert torch.equal(networks[0].linears[0].weight, networks[1].linears[0].weight)


def test_initial_bias_of_layers_without_bias_is_refused():
    with pytest.raises(UserError, match=r"model\.bias: 1\.0 .*model\.linear_bias: false leaves them out"):
        MLP(4, 3, bias=1.0, linear_bias=False)


def test_list_of_widths_sets_the_depth():
    assert MLP(4, 3, width=[8, 6, 5]).widths == (8, 6, 5)
    assert MLP(4, 3, width=[]).depth == 0
    assert MLP(4, 3, width=8).depth == 2


@pytest.mark.parametrize("network", [MLP(4, 2, depth=1, width=3), Population.stack([MLP(4, 2, depth=1, width=3)])])
def test_one_row_without_a_batch_dimension_is_refused(network: torch.nn.Module) -> None:
    line = r"numeric inputs have the shape \(4,\), without a batch dimension; .* row.unsqueeze\(0\)"
    with pytest.raises(ValueError, match=line):
        network(torch.zeros(4))
    assert network(torch.zeros(1, 2, 2)).shape[-2:] == (1, 2)  # an image
