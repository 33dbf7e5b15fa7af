"""Units judged in a stream of batches against the definitions, applied to the whole pass in float64."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
import torch.distributed
import torch.multiprocessing
from torch import Tensor, nn

from mlp_lab.diagnostics.units import SHORTCUTS, UnitStatistics, dead_units, dormant_units, saturated_entries
from mlp_lab.model.activations import ACTIVATIONS, derivative
from mlp_lab.model.mlp import MLP

FLOOR = 2 * 2**-11.5  # what float32 resolves of a layer's directions; see `rank`


def naive(z: Tensor, a: Tensor, slope: Tensor, name: str) -> dict[str, float]:
    """The table's definitions, unit by unit, on the whole pass of one layer, (N, H) float64."""
    units = range(a.shape[1])
    largest = a.abs().max()
    flat = [bool((slope[:, unit].abs() < 1e-3).all()) for unit in units]
    narrow = [bool(a[:, unit].max() - a[:, unit].min() <= 1e-3 * largest) for unit in units]
    size = [a[:, unit].abs().mean().item() for unit in units]
    values = torch.linalg.svdvals(a - a.mean(0))
    shares = values[values > FLOOR * values[0]]
    shares = shares / shares.sum() if shares.sum() > 0 else shares
    rank = math.exp(-sum(p * math.log(p) for p in shares.tolist())) if len(shares) else 0.0
    return {
        "dead": sum(f and n for f, n in zip(flat, narrow, strict=True)) / len(units),
        "dormant": sum(one <= 0.025 * sum(size) / len(size) for one in size) / len(units),
        "rank": rank,
    }


def planted(name: str, seed: int = 0) -> MLP:
    """A network of which some units are pushed far out on either side, some are nearly silent and some are constant."""
    torch.manual_seed(seed)
    mlp = MLP(5, 2, depth=2, width=[24, 12], activation=name)
    with torch.no_grad():
        for linear in mlp.linears[:-1]:
            linear.bias[:4] = torch.tensor([-60.0, 60.0, -8.0, 8.0])
            linear.weight[4:6] *= 1e-4
            linear.weight[6:8] *= 6
    return mlp


def feed(statistics: UnitStatistics, mlp: MLP, x: Tensor, sizes: list[int]) -> None:
    for part in x.split(sizes):
        _, trace = mlp(part, trace=True)
        for layer, (z, a) in enumerate(zip(trace.z, trace.a, strict=True), start=1):
            statistics.update(layer, z, a)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", ACTIVATIONS)
def test_streamed_units_are_those_of_the_whole_pass(name: str, dtype: torch.dtype) -> None:
    mlp, x = planted(name).to(dtype), torch.randn(200, 5).to(dtype)
    statistics = UnitStatistics.of(mlp)
    with torch.inference_mode():  # as Lightning validates
        feed(statistics, mlp, x, [1, 120, 79])
        values = statistics.compute()
    _, trace = mlp(x, trace=True)
    for layer, (z, a) in enumerate(zip(trace.z, trace.a, strict=True), start=1):
        slope = derivative(copy.deepcopy(mlp.blocks[layer - 1].activation).double(), z.double())
        for key, expected in naive(z.detach().double(), a.detach().double(), slope, name).items():
            tolerance = 5e-3 if key == "rank" else 1e-12  # float64 activations resolve directions that float32 does not
            assert values.pop(f"units/{key}/{layer}") == pytest.approx(expected, rel=tolerance), key
    assert values == {"units/samples": 200}


@pytest.mark.parametrize(
    ("name", "dead"), [("relu", 2), ("gelu", 2), ("elu", 2), ("sigmoid", 4), ("tanh", 4), ("hardtanh", 4)]
)
def test_planted_dead_units_are_found_and_no_others(name: str, dead: int) -> None:
    """The bias of -8 or 8 is met by inputs of size 1 and weights of variance 2/5 at most: ±8 stays far out."""
    mlp = planted(name)
    with torch.no_grad():
        mlp.blocks[0].linear.weight[:4] *= 0.01
    statistics = UnitStatistics.of(mlp)
    feed(statistics, mlp, torch.randn(500, 5), [500])
    assert statistics.compute()["units/dead/1"] * 24 == pytest.approx(dead)
    marked = {"sigmoid": [0, 1, 2, 3], "tanh": [0, 1, 2, 3], "hardtanh": [0, 1, 2, 3]}.get(name, [0, 2])
    assert statistics.dead[0].nonzero().flatten().tolist() == marked


@pytest.mark.parametrize("name", ["identity", "leaky_relu", "sine"])
def test_some_activations_do_not_die(name: str) -> None:
    mlp = planted(name)
    statistics = UnitStatistics.of(mlp)
    feed(statistics, mlp, torch.randn(300, 5), [300])
    values = statistics.compute()
    assert values["units/dead/1"] == values["units/dead/2"] == 0


def test_a_learned_slope_of_zero_lets_prelu_die() -> None:
    mlp = planted("prelu")
    mlp.blocks[0].activation.weight.data.zero_()
    statistics = UnitStatistics.of(mlp)
    feed(statistics, mlp, torch.randn(300, 5), [300])
    values = statistics.compute()
    assert values["units/dead/1"] * 24 == pytest.approx(2)
    assert values["units/dead/2"] == 0


def test_a_unit_that_answers_is_not_dead_however_flat_its_slope() -> None:
    """On a slow tail the slope is small, but every input has an output of its own."""
    low, high = torch.tensor([0.0, 0.0]), torch.tensor([1.0, 1e-4])
    assert dead_units(torch.tensor([1e-6, 1e-6]), low, high).tolist() == [False, True]
    assert dead_units(torch.tensor([1e-2, 1e-2]), low, high).tolist() == [False, False]


def test_edges_of_the_definitions() -> None:
    zeros = torch.zeros(4)
    assert dead_units(zeros, zeros, zeros).all(), "a layer of zeros with flat slopes"
    assert not dead_units(torch.ones(4), zeros, zeros).any(), "one sample where the slope is steep"
    assert dormant_units(zeros).all(), "0 ≤ 0.025·0"
    assert dormant_units(torch.tensor([1.0, 1.0, 0.0124, 0.0130]) * 7).tolist() == [False, False, True, False]
    assert not dormant_units(torch.ones(4)).any()
    slopes = torch.tensor([0.0149, 0.0151, 0.25])
    assert saturated_entries(slopes, 0.25).tolist() == [True, False, False]


@pytest.mark.parametrize("rows", [1, 2])
def test_a_pass_of_hardly_any_rows(rows: int) -> None:
    mlp = planted("relu")
    statistics = UnitStatistics.of(mlp)
    _, trace = mlp(torch.randn(1, 5), trace=True)
    for layer, (z, a) in enumerate(zip(trace.z, trace.a, strict=True), start=1):
        statistics.update(layer, z.expand(rows, -1), a.expand(rows, -1))
    values = statistics.compute()
    assert values["units/dead/1"] == pytest.approx((trace.a[0][0] == 0).double().mean().item())
    assert (values["units/rank/1"], values["units/samples"]) == (0, rows)


def test_a_layer_of_zeros() -> None:
    mlp = MLP(5, 2, depth=1, width=6, bias=-100.0)
    statistics = UnitStatistics.of(mlp)
    feed(statistics, mlp, torch.randn(50, 5), [50])
    assert statistics.compute() == {
        "units/dead/1": 1,
        "units/dormant/1": 1,
        "units/rank/1": 0,
        "units/samples": 50,
    }


def test_no_rows_no_layers() -> None:
    statistics = UnitStatistics.of(MLP(5, 2, depth=1, width=6))
    assert statistics.compute() == {}
    statistics.update(1, torch.empty(0, 6), torch.empty(0, 6))
    assert statistics.compute() == {}
    assert UnitStatistics.of(MLP(5, 2, depth=0)).compute() == {}


def test_values_that_are_not_finite_give_no_error_and_no_rank() -> None:
    statistics = UnitStatistics.of(MLP(5, 2, depth=1, width=3))
    z = torch.randn(20, 3)
    z[4, 1] = torch.nan
    statistics.update(1, z, z.relu())
    values = statistics.compute()
    assert math.isnan(values["units/rank/1"])
    assert values["units/dead/1"] == 0


def test_the_rank_can_be_left_out_and_is_for_very_wide_layers() -> None:
    statistics = UnitStatistics([torch.relu, torch.relu], [3, 2049], ACTIVATIONS["relu"])
    for layer, width in ((1, 3), (2, 2049)):
        z = torch.randn(4, width)
        statistics.update(layer, z, z.relu())
    assert {key for key in statistics.compute() if "rank" in key} == {"units/rank/1"}
    cheap = UnitStatistics.of(MLP(5, 2, depth=1, width=3), rank=False)
    cheap.update(1, torch.ones(2, 3), torch.ones(2, 3))
    assert {*cheap.compute()} == {"units/dead/1", "units/dormant/1", "units/samples"}


@pytest.mark.parametrize("name", SHORTCUTS)
def test_shortcuts_are_the_derivative(name: str) -> None:
    record, z = ACTIVATIONS[name], torch.linspace(-30, 30, 2001, dtype=torch.float64)
    slope = SHORTCUTS[name](record.function(z)).double()
    torch.testing.assert_close(slope, record.derivative(z), atol=1e-15, rtol=0)


@pytest.mark.parametrize("name", ["relu", "tanh", "gelu"])
def test_narrow_types_are_judged_by_their_pre_activations(name: str) -> None:
    """tanh(3.6) is 1 in bfloat16, but its slope is 3e-3."""
    mlp = MLP(5, 2, depth=1, width=4, activation=name)
    z = torch.tensor([[3.6, -9.0, 0.0, 1.0], [3.6, -9.0, 1.0, 2.0]], dtype=torch.bfloat16)
    statistics = UnitStatistics.of(mlp)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        statistics.update(1, z, ACTIVATIONS[name].function(z))
    values = statistics.compute()
    assert statistics.dead[0].tolist() == [False, True, False, False]
    assert values["units/rank/1"] == pytest.approx(1)


def test_members_are_judged_as_if_alone() -> None:
    torch.manual_seed(0)
    z = 3 * torch.randn(3, 60, 8, dtype=torch.float64)  # (K, N, H)
    z[1, :, :5] -= 100
    stack = UnitStatistics([torch.tanh], [8], ACTIVATIONS["tanh"])
    for part in z.split([13, 47], dim=1):
        stack.update(1, part, part.tanh(), 1 - part.tanh().square())
    together = stack.measure()
    for member in range(3):
        alone = UnitStatistics([torch.tanh], [8], ACTIVATIONS["tanh"])
        alone.update(1, z[member], z[member].tanh())
        for key, value in alone.compute().items():
            found = together[key] if key == "units/samples" else together[key][member]
            assert found.item() == pytest.approx(value, rel=1e-12), key
    assert stack.dead[0].sum(1).tolist() == [0, 5, 0]


def test_units_that_die_and_come_back() -> None:
    statistics = UnitStatistics.of(MLP(5, 2, depth=1, width=4))
    passes = [[1, 1, 1, 1], [0, 0, 1, 1], [1, 0, 0, 1], [1, 0, 0, 1]]
    found = []
    for alive in passes:
        z = torch.randn(30, 4).abs() * (2.0 * torch.tensor(alive) - 1)
        statistics.update(1, z, z.relu())
        values = statistics.compute()
        found.append((values["units/dead/1"], values.get("units/died/1"), values.get("units/revived/1")))
        statistics, state = UnitStatistics.of(MLP(5, 2, depth=1, width=4)), statistics.state_dict()
        statistics.load_state_dict(state)  # a resumed run says the same
    assert found == [(0, None, None), (0.5, 0.5, 0), (0.5, 0.25, 0.25), (0.5, 0, 0)]


def test_a_pass_begins_with_nothing_of_the_one_before() -> None:
    mlp, statistics = planted("tanh"), UnitStatistics.of(planted("tanh"))
    x = torch.randn(90, 5)
    feed(statistics, mlp, 5 * torch.randn(50, 5), [50])
    statistics.compute()
    feed(statistics, mlp, x, [90])
    second = {key: value for key, value in statistics.compute().items() if "died" not in key and "revived" not in key}
    fresh = UnitStatistics.of(mlp)
    feed(fresh, mlp, x, [90])
    assert second == fresh.compute()


def _rank_main(rank: int, folder: str, cases: list[tuple[str, list[list[int]]]], results: Any) -> None:
    torch.set_num_threads(1)
    store = torch.distributed.FileStore(f"{folder}/store", 2)
    torch.distributed.init_process_group("gloo", store=store, rank=rank, world_size=2)
    for name, sizes in cases:
        results[rank, name, str(sizes)] = _passes(name, sizes[rank], first=0 if rank == 0 else sum(sizes[0]))
    torch.distributed.destroy_process_group()


def _passes(name: str, sizes: list[int], first: int) -> list[dict[str, float]]:
    mlp, statistics, found = planted(name), UnitStatistics.of(planted(name)), []
    for seed in (1, 2):
        x = torch.randn(200, 5, generator=torch.Generator().manual_seed(seed))[first : first + sum(sizes)]
        feed(statistics, mlp, x * seed, sizes)
        found.append(statistics.compute())
    return found


def test_two_processes_report_what_one_does(tmp_path: Any) -> None:
    cases = [(name, sizes) for name in ("relu", "tanh") for sizes in ([[60, 40], [100]], [[200], [0]], [[200], []])]
    context = torch.multiprocessing.get_context("fork")
    with context.Manager() as manager:
        results = manager.dict()
        processes = [context.Process(target=_rank_main, args=(rank, str(tmp_path), cases, results)) for rank in (0, 1)]
        for process in processes:
            process.start()
        for process in processes:
            process.join(60)
            assert process.exitcode == 0
        for name, sizes in cases:
            alone = _passes(name, [200], first=0)
            assert results[0, name, str(sizes)] == results[1, name, str(sizes)]
            for one, two in zip(alone, results[0, name, str(sizes)], strict=True):
                assert one == pytest.approx(two, rel=1e-3), sizes  # the order of float32 sums
                assert {k: v for k, v in one.items() if "rank" not in k} == {
                    k: v for k, v in two.items() if "rank" not in k
                }


def test_elementwise_modules_and_functions_serve() -> None:
    statistics = UnitStatistics([nn.GELU(), torch.sin], [2, 2], ACTIVATIONS["gelu"])
    for layer in (1, 2):
        statistics.update(layer, torch.full((3, 2), -50.0), torch.zeros(3, 2))
    values = statistics.compute()
    assert (values["units/dead/1"], values["units/dead/2"]) == (1, 0)
