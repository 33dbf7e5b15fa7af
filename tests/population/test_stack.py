"""A stack computes, for every member, what the member computes alone."""

from __future__ import annotations

import random
from typing import Any, cast

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from mlp_lab.data.spec import DataSpec
from mlp_lab.data.tabular import TabularDataModule
from mlp_lab.errors import UserError
from mlp_lab.model.activations import ACTIVATIONS
from mlp_lab.model.encoders import EncoderConfig
from mlp_lab.model.mlp import MLP
from mlp_lab.population.stack import Population

DEPTHS = (0, 1, 6, 3, 3, 2, 2, 4)


def zoo(seed: int, dtype: torch.dtype = torch.float64, **settings: Any) -> list[MLP]:
    """Members of depth 0 to 6 and width 3 to 257."""
    torch.manual_seed(seed)
    chance = random.Random(seed)
    mlps = []
    for depth in DEPTHS:
        width = [chance.choice([3, 8, 20, 20, 33, 257]) for _ in range(depth)]
        options: dict[str, Any] = {"activation": chance.choice(list(ACTIVATIONS)), "dropout": chance.choice([0.0, 0.3])}
        mlps.append(MLP(20, 5, depth=depth, width=width, **(options | settings)).to(dtype))
    return mlps


def assert_same(mlps: list[MLP], population: Population, *inputs: torch.Tensor) -> None:
    """Compares logits and gradients; 1e-10 of the largest entry: float64 sums in another order, through norms."""
    population.zero_grad()
    logits = population(*inputs)
    logits.square().sum().backward()
    gradients = {name: parameter.grad for name, parameter in population.named_parameters()}
    for number, mlp in enumerate(mlps):
        mlp.zero_grad()
        alone = mlp(*inputs)
        torch.testing.assert_close(logits[number], alone, rtol=1e-10, atol=1e-10)
        alone.square().sum().backward()
        largest = max(float(parameter.grad.abs().max()) for parameter in mlp.parameters())  # type: ignore[union-attr]
        for name, parameter in mlp.named_parameters():
            piece = population.pieces[number][name]
            gradient = piece.of(gradients[piece.tensor])  # type: ignore[arg-type]
            torch.testing.assert_close(gradient, parameter.grad, rtol=1e-9, atol=1e-10 * max(1.0, largest))


@pytest.mark.parametrize("bucket", [1, 16])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("norm", ["none", "batch", "layer", "rms"])
def test_round_trip_is_exact(norm: str, dtype: torch.dtype, bucket: int) -> None:
    mlps = zoo(0, dtype, norm=norm, input_dropout=0.1)
    generator = torch.get_rng_state()
    copies = Population.stack(mlps, bucket=bucket).unstack()
    assert torch.equal(generator, torch.get_rng_state())
    for mlp, copy in zip(mlps, copies, strict=True):
        one, other = mlp.state_dict(), copy.state_dict()
        assert one.keys() == other.keys()
        assert all(torch.equal(one[name], other[name]) for name in one)
        assert str(mlp) == str(copy)


@pytest.mark.parametrize("bucket", [1, 16])
@pytest.mark.parametrize("residual", [False, True])
@pytest.mark.parametrize("norm", ["none", "batch", "layer", "rms"])
@pytest.mark.parametrize("seed", range(2))
def test_logits_and_gradients_are_those_of_each_member(seed: int, norm: str, residual: bool, bucket: int) -> None:
    mlps = zoo(seed, norm=norm, residual=residual)
    population = Population.stack(mlps, bucket=bucket)
    for _ in range(2):  # the second pass has other dropout masks and running statistics
        assert_same(mlps, population, torch.randn(13, 20, dtype=torch.float64))
    population.eval()
    assert_same([mlp.eval() for mlp in mlps], population, torch.randn(13, 20, dtype=torch.float64))
    for mlp, copy in zip(mlps, population.unstack(), strict=True):
        for one, other in zip(mlp.state_dict().values(), copy.state_dict().values(), strict=True):
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("bucket", [1, 16])
@pytest.mark.parametrize("norm", ["none", "batch", "layer", "rms"])
def test_members_without_biases_compute_what_they_compute_alone(norm: str, bucket: int) -> None:
    mlps = zoo(4, norm=norm, linear_bias=False)
    population = Population.stack(mlps, bucket=bucket)
    assert_same(mlps, population, torch.randn(13, 20, dtype=torch.float64))
    copies = population.unstack()
    for mlp, copy in zip(mlps, copies, strict=True):
        assert mlp.state_dict().keys() == copy.state_dict().keys()
        assert [linear.bias is None for linear in copy.linears] == [True] * copy.depth + [False]
    stacked = sum(parameter.numel() for parameter in Population.stack(mlps).parameters())
    assert stacked == sum(parameter.numel() for mlp in mlps for parameter in mlp.parameters())


@pytest.mark.parametrize("activation", [*ACTIVATIONS, "torch.nn.functional.softsign", "torch.nn.Tanhshrink"])
def test_every_activation(activation: str) -> None:
    mlps = zoo(3, activation=activation, input_dropout=0.2)
    assert_same(mlps, Population.stack(mlps), torch.randn(6, 20, dtype=torch.float64))


@st.composite
def populations(draw: st.DrawFn) -> tuple[list[MLP], int, int]:
    """Any members that fit together, a bucket and a batch size."""
    torch.manual_seed(draw(st.integers(0, 2**32 - 1)))
    shared: dict[str, Any] = {
        "norm": draw(st.sampled_from(["none", "batch", "layer", "rms"])),
        "residual": draw(st.booleans()),
    }
    width = st.integers(2 if shared["norm"] in ("layer", "rms") else 1, 40)  # a norm of one unit leaves rounding alone
    mlps = []
    for widths in draw(st.lists(st.lists(width, max_size=5), min_size=1, max_size=8)):
        own: dict[str, Any] = {
            "activation": draw(st.sampled_from(sorted(ACTIVATIONS))),
            "dropout": draw(st.sampled_from([0.0, 0.25, 0.5])),
            "input_dropout": draw(st.sampled_from([0.0, 0.0, 0.1])),
            "init": draw(st.sampled_from(["pytorch", "he", "xavier", "orthogonal"])),
        }
        mlps.append(MLP(20, 5, depth=len(widths), width=widths, **shared, **own).double())
    return mlps, draw(st.sampled_from([1, 4, 16])), draw(st.integers(2, 9))


@settings(max_examples=30, deadline=None, derandomize=True)
@given(populations())
def test_any_population(given: tuple[list[MLP], int, int]) -> None:
    mlps, bucket, rows = given
    assert_same(mlps, Population.stack(mlps, bucket=bucket), torch.randn(rows, 20, dtype=torch.float64))


def test_one_row_with_batch_norm_and_images() -> None:
    mlps = zoo(1, norm="batch")
    population = Population.stack(mlps)
    assert_same(mlps, population, torch.randn(1, 20, dtype=torch.float64))
    assert_same(mlps, population, torch.randn(4, 1, 4, 5, dtype=torch.float64))
    with pytest.raises(ValueError, match="the networks take 20 numeric inputs, not 21"):
        population(torch.randn(4, 21))


@pytest.fixture(scope="module")
def adult(tmp_path_factory: pytest.TempPathFactory) -> DataSpec:
    path = tmp_path_factory.mktemp("table") / "table.csv"
    chance = random.Random(0)
    rows = [
        f"{chance.random()},{chance.random()},{chance.choice('abc')},{chance.choice('xy')},{k % 2}" for k in range(60)
    ]
    path.write_text("\n".join(["one,two,letter,other,target", *rows]))
    data = TabularDataModule(path=str(path), target="target", task="binary", bins=4)
    data.prepare_data()
    data.setup("fit")
    return data.spec


@pytest.mark.parametrize(
    "encoder",
    [
        EncoderConfig(),
        EncoderConfig(categorical="embedding"),
        EncoderConfig(numeric="plr", categorical="embedding"),
        EncoderConfig(numeric="piecewise_linear"),
    ],
    ids=str,
)
def test_tables(adult: DataSpec, encoder: EncoderConfig) -> None:
    torch.manual_seed(0)
    mlps = [
        MLP.from_spec(adult, encoder=encoder, depth=depth, width=5 + depth, norm="layer").double()
        for depth in (0, 2, 1)
    ]
    population = Population.stack(mlps)
    cardinalities = [len(column.categories) if hasattr(column, "categories") else 2 for column in adult.categorical]
    codes = torch.stack([torch.randint(2, (9,)) for _ in cardinalities], 1)
    assert_same(mlps, population, torch.randn(9, len(adult.numeric), dtype=torch.float64), codes)
    for mlp, copy in zip(mlps, population.unstack(), strict=True):
        one, other = mlp.state_dict(), copy.state_dict()
        assert all(torch.equal(one[name], other[name]) for name in one)


def test_a_broken_member_changes_no_bit_of_another() -> None:
    mlps = zoo(5, activation="tanh", norm="none")
    x = torch.randn(6, 20, dtype=torch.float64)
    results = []
    for broken in (False, True):
        population = Population.stack(mlps)
        if broken:
            for view in population.views(3).values():
                view.fill_(float("nan"))
        logits = population(x)
        logits.square().sum().backward()
        gradients = {name: parameter.grad for name, parameter in population.named_parameters()}
        mine = []
        for number in (0, 1, 2, 4, 5, 6, 7):
            mine.append(logits[number])
            mine += [piece.of(cast(Tensor, gradients[piece.tensor])) for piece in population.pieces[number].values()]
        results.append(mine)
    assert all(torch.equal(one, other) for one, other in zip(*results, strict=True))


def test_some_members_can_be_kept() -> None:
    mlps = zoo(2)
    kept = Population.stack(mlps).keep([6, 0, 2])
    assert_same([mlps[6], mlps[0], mlps[2]], kept, torch.randn(6, 20, dtype=torch.float64))
    for wrong in ([], [0, 0], [3]):
        with pytest.raises(UserError, match=r"population\.keep: .*; accepted: different numbers from 0 to 2"):
            kept.keep(wrong)


def test_it_is_a_module_with_a_state() -> None:
    one, other = Population.stack(zoo(1, norm="batch")), Population.stack(zoo(4, norm="batch"))
    assert isinstance(one, nn.Module)
    one(torch.randn(6, 20, dtype=torch.float64))
    same = Population.stack(zoo(1, norm="batch"))
    same.load_state_dict(one.state_dict())
    x = torch.randn(6, 20, dtype=torch.float64)
    assert torch.equal(one(x), same(x))
    assert len(one) == len(DEPTHS) == len(other)


@pytest.mark.parametrize("norm", ["none", "batch", "layer", "rms"])
@pytest.mark.parametrize("dataset", ["adult", "wine"])
@pytest.mark.parametrize("encoder", [EncoderConfig(), EncoderConfig(numeric="plr")])
def test_autocast_rounds_to_bfloat16_and_no_more(
    encoder: EncoderConfig, dataset: str, norm: str, adult: DataSpec
) -> None:
    """Products of 8-bit factors through three layers: logits within 5% of their own size, gradients in float32."""
    torch.manual_seed(0)
    spec = adult if dataset == "adult" else TabularDataModule(dataset="wine", verbose=False).spec
    members = [
        MLP.from_spec(spec, encoder=encoder, depth=depth, width=width, norm=norm)
        for depth, width in ((0, 1), (1, 64), (2, 200), (2, 200), (3, 9))
    ]
    population = Population.stack(members)
    numeric, categorical = torch.randn(128, len(spec.numeric)), torch.randint(2, (128, len(spec.categorical)))
    exact = population(numeric, categorical).detach()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        rounded = population(numeric, categorical)
    rounded.square().sum().backward()
    assert not torch.equal(rounded, exact)
    for one, other in zip(rounded.detach().float(), exact, strict=True):
        assert float((one - other).norm() / other.norm()) < 0.05
    assert {parameter.grad.dtype for parameter in population.parameters()} == {torch.float32}  # type: ignore[union-attr]


ENCODERS = [
    EncoderConfig(categorical="onehot"),
    EncoderConfig(categorical="embedding"),
    EncoderConfig(numeric="piecewise_linear"),
    EncoderConfig(numeric="plr", categorical="embedding"),
]


@pytest.mark.parametrize("encoder", ENCODERS)
def test_all_of_a_member_is_where_the_stack_is(adult: DataSpec, encoder: EncoderConfig) -> None:
    """Without a GPU: the meta device stands for one."""
    mlps = [MLP.from_spec(adult, encoder=encoder, depth=depth, width=5, norm="batch") for depth in (1, 2)]
    population = Population.stack(mlps).double().to("meta")
    for mlp in population.unstack():
        tensors = [*mlp.parameters(), *mlp.buffers()]
        assert {tensor.device.type for tensor in tensors} == {"meta"}
        assert {tensor.dtype for tensor in tensors} <= {torch.float64, torch.int64}
