"""Encoders against their formulas, written with loops."""

import copy
import math
import pickle

import numpy as np
import pytest
import torch

from mlp_lab.data.spec import DataSpec
from mlp_lab.errors import UserError
from mlp_lab.model.encoders import (
    CATEGORICAL_ENCODERS,
    NUMERIC_ENCODERS,
    Embedding,
    EncoderConfig,
    OneHot,
    Periodic,
    PeriodicLinearReLU,
    PiecewiseLinear,
    build_encoder,
)
from mlp_lab.model.mlp import MLP

EDGES = ((-1.0, 0.0, 0.5, 2.0), (3.0,), (0.0, 10.0))  # three bins, a constant column, one bin


def table(**changes):
    fields = {
        "task": "multiclass",
        "numeric": ("x", "y", "w"),
        "categorical": ("small", "large", "tiny"),
        "cardinalities": (4, 30, 2),
        "bin_edges": EDGES,
        "classes": ("a", "b", "c"),
    }
    return DataSpec(**(fields | changes))


def batch(rows=6):
    generator = torch.Generator().manual_seed(0)
    columns = [torch.randint(n, (rows,), generator=generator) for n in table().cardinalities]
    return torch.randn(rows, 3, generator=generator), torch.stack(columns, dim=1)


def piecewise_linear(value: float, edges: tuple[float, ...]) -> list[float]:
    """Gorishniy et al. (2022), equation 1."""
    encoded, bins = [], len(edges) - 1
    for t in range(1, bins + 1):
        if value < edges[t - 1] and t > 1:
            encoded.append(0.0)
        elif value >= edges[t] and t < bins:
            encoded.append(1.0)
        else:
            encoded.append((value - edges[t - 1]) / (edges[t] - edges[t - 1]))
    return encoded


def test_piecewise_linear_follows_the_paper():
    x = torch.tensor([[-3.0, 7.0, -5.0], [-1.0, 3.0, 0.0], [0.0, 3.0, 5.0], [0.2, 3.0, 10.0], [9.0, 3.0, 25.0]])
    expected = [
        [code for value, edges in zip(row, EDGES, strict=True) for code in piecewise_linear(value, edges)]
        for row in x.tolist()
    ]
    encoder = PiecewiseLinear(EDGES)
    assert encoder.out_features == 4
    torch.testing.assert_close(encoder(x), torch.tensor(expected))


def test_piecewise_linear_refuses_edges_that_do_not_increase():
    with pytest.raises(ValueError, match="must increase"):
        PiecewiseLinear([(0.0, 1.0, 1.0)])


def test_edges_that_float32_cannot_tell_apart_stay_finite():
    x = torch.tensor([[1.0], [2.0], [0.0]])
    assert PiecewiseLinear([(0.0, 1.0, 1.0 + 1e-12, 2.0)])(x).isfinite().all()


def test_periodic_follows_the_formula():
    torch.manual_seed(0)
    encoder, x = Periodic(3, frequencies=5, scale=0.7), torch.randn(4, 3)
    frequency = encoder.frequency.detach().numpy()
    rows = [
        np.concatenate(
            [np.r_[np.sin(2 * np.pi * c * v), np.cos(2 * np.pi * c * v)] for v, c in zip(row, frequency, strict=True)]
        )
        for row in x.numpy()
    ]
    np.testing.assert_allclose(encoder(x).detach(), np.stack(rows), atol=1e-5)  # float32 sine of a few periods
    assert encoder.out_features == 30


def test_initial_frequencies_have_the_given_scale():
    torch.manual_seed(0)
    frequency = Periodic(100, frequencies=100, scale=0.3).frequency
    assert frequency.std().item() == pytest.approx(0.3, rel=0.03)  # 10,000 draws: 0.7%


def test_plr_gives_each_feature_its_own_linear_map():
    torch.manual_seed(0)
    encoder = PeriodicLinearReLU(3, frequencies=4, scale=0.5, width=6).double()
    x = torch.randn(5, 3, dtype=torch.float64)
    waves = encoder.periodic(x).view(5, 3, 8)
    expected = [torch.relu(waves[:, d] @ encoder.weight[d] + encoder.bias[d]) for d in range(3)]
    torch.testing.assert_close(encoder(x), torch.cat(expected, dim=1))
    assert encoder.out_features == 18


def test_one_hot_and_embedding_against_torch():
    _, codes = batch()
    onehot = OneHot({0: 4, 2: 2})
    expected = torch.cat(
        (torch.nn.functional.one_hot(codes[:, 0], 4), torch.nn.functional.one_hot(codes[:, 2], 2)), dim=1
    )
    assert torch.equal(onehot(codes), expected.float())
    assert onehot.double()(codes).dtype == torch.float64
    embedding = Embedding({1: 30, 2: 2}, width=5)
    tables = embedding.table.weight.split([30, 2])
    assert torch.equal(embedding(codes), torch.cat((tables[0][codes[:, 1]], tables[1][codes[:, 2]]), dim=1))


def test_the_code_of_missing_values_starts_neutral_and_learns():
    embedding = Embedding({0: 3, 1: 2}, width=4)
    missing = torch.zeros(1, 2, dtype=torch.int64)
    assert not embedding(missing).any()
    assert embedding(torch.ones(1, 2, dtype=torch.int64)).all()
    embedding(missing).sum().backward()
    assert embedding.table.weight.grad[[0, 3]].all()


@pytest.mark.parametrize("numeric", NUMERIC_ENCODERS)
@pytest.mark.parametrize("categorical", CATEGORICAL_ENCODERS)
def test_every_pair_of_encoders_feeds_a_network(numeric, categorical):
    config = EncoderConfig(numeric=numeric, categorical=categorical, frequencies=3, numeric_width=2, onehot_up_to=4)
    torch.manual_seed(0)
    mlp = MLP.from_spec(table(), encoder=config, depth=1, width=7)
    x, codes = batch()
    numeric_width = {"none": 3, "periodic": 18, "plr": 6, "piecewise_linear": 4}[numeric]
    categorical_width = {"auto": 4 + 2 + 16, "onehot": 36, "embedding": 48}[categorical]
    assert mlp.encoder.out_features == mlp.encode(x, codes).shape[1] == numeric_width + categorical_width
    assert mlp.blocks[0].linear.in_features == mlp.encoder.out_features
    logits = mlp(x, codes)
    logits.sum().backward()
    assert all(parameter.grad is not None for parameter in mlp.parameters())
    for twin in (copy.deepcopy(mlp), pickle.loads(pickle.dumps(mlp))):
        assert torch.equal(twin(x, codes), logits)
    doubled = copy.deepcopy(mlp).double()(x.double(), codes)
    torch.testing.assert_close(doubled.float(), logits, atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("numeric", NUMERIC_ENCODERS)
def test_each_encoding_is_differentiable(numeric):
    spec = table(categorical=(), cardinalities=(), numeric=("x",), bin_edges=((-1.0, 0.1, 2.0),))
    encoder = build_encoder(spec, EncoderConfig(numeric=numeric, frequencies=3))
    if encoder is None:
        assert numeric == "none"
        return
    x = torch.tensor([[-2.0], [0.5], [1.7]], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(encoder.double(), (x,))


def test_nothing_to_encode_means_no_module():
    plain = table(categorical=(), cardinalities=())
    assert build_encoder(plain, EncoderConfig()) is None
    assert MLP.from_spec(plain).encoder is None


def test_a_table_without_numeric_columns():
    spec = table(numeric=(), bin_edges=())
    mlp = MLP.from_spec(spec, encoder=EncoderConfig(numeric="plr"), width=8)
    _, codes = batch()
    assert mlp(torch.empty(6, 0), codes).shape == (6, 3)


def test_missing_codes_are_a_clear_error():
    with pytest.raises(ValueError, match="categorical inputs, but was called without their codes"):
        MLP.from_spec(table())(batch()[0])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"numeric": "plrr"},
            r"model.encoder.numeric: 'plrr' is unknown \(did you mean 'plr'\?\); accepted: none, per",
        ),
        ({"categorical": "hot"}, "model.encoder.categorical: 'hot' is unknown.*accepted: auto, onehot, embedding"),
        ({"frequencies": 0}, "model.encoder.frequencies: 0 is too small; accepted: at least 1"),
        ({"numeric_width": -1}, "model.encoder.numeric_width: -1 is too small"),
        ({"categorical_width": 0}, "model.encoder.categorical_width: 0 is too small"),
        ({"onehot_up_to": -2}, "model.encoder.onehot_up_to: -2 is negative; accepted: at least 0"),
        ({"frequency_scale": 0.0}, "model.encoder.frequency_scale: 0.0 is not a positive number"),
        ({"frequency_scale": math.nan}, "model.encoder.frequency_scale: nan is not a positive number"),
    ],
)
def test_user_mistakes(changes, message):
    with pytest.raises(UserError, match=f"^{message}"):
        EncoderConfig(**changes)


def test_piecewise_linear_without_bins():
    with pytest.raises(UserError, match=r"^model.encoder.numeric: 'piecewise_linear' needs bin edges, but data.bins"):
        build_encoder(table(bin_edges=()), EncoderConfig(numeric="piecewise_linear"))
