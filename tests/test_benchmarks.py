"""The benchmarks run: their cheap parts, on few rows, as a user starts them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from tests.benchmarks import sweep_lists, sweep_peers

ROOT = Path(__file__).parents[1]
DATA = Path(os.environ.get("MLP_LAB_DATA") or ROOT / "data")
needs_mnist = pytest.mark.skipif(
    not any((DATA / "MNIST/raw").glob("train-images-idx3-ubyte*")),
    reason="MNIST is absent: set MLP_LAB_DATA to the folder that holds MNIST/raw",
)


def benchmark(name: str, *arguments: str, results: Path) -> dict:
    command = [sys.executable, "-m", f"tests.benchmarks.{name}", "--repeats", "1", "--threads", "1", *arguments]
    result = subprocess.run([*command, "--results", str(results)], cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    (path,) = results.glob(f"{name}-*.json")
    return json.loads(path.read_text())


@pytest.mark.slow
@needs_mnist
def test_mlp_lab_and_the_hand_written_loop_are_compared(tmp_path: Path):
    only = ["--only", "hand-written,mlp_lab", "--epochs", "1", "--rows", "12800"]
    values = benchmark("fit", *only, results=tmp_path)
    assert list(values["summary"]) == ["hand-written", "mlp_lab"]
    for row in values["summary"].values():
        assert row["val_accuracy"] > 0.9  # both really learned: two epochs of 100 steps
        assert row["lowest"] <= row["samples_per_s"] <= row["highest"]
        assert row["train_samples_per_s"] > 0
        assert 100 < row["peak_mb"] < 1500
    assert values["summary"]["hand-written"]["ratio"] == 1.0
    assert values["summary"]["mlp_lab"]["ratio"] > 0
    assert values["machine"]["threads"] == 1
    assert values["machine"]["versions"]["torch"]


@pytest.mark.slow
@needs_mnist
def test_every_variant_of_the_overhead_is_timed(tmp_path: Path):
    values = benchmark("overhead", "--steps", "5", results=tmp_path)
    summary = values["summary"]
    assert summary["loop"]["over_loop_us"] == 0.0
    assert {"bare", "module", "shipped", "self.log", "mixup", "numerics", "diagnostics", "watch"} <= set(summary)
    assert all(row["step_us"] > 0 for row in summary.values())
    assert values["parts_us"]["in all"] > values["parts_us"]["forward and loss"] > 0


@pytest.mark.slow
@needs_mnist
def test_every_way_to_train_a_list_is_timed(tmp_path: Path):
    small = ["--lists", "mixed", "--members", "3", "--steps", "3", "--warm-up", "2", "--tries", "1"]
    (values,) = benchmark("sweep", *small, results=tmp_path)["lists"].values()
    ways = {
        "population",
        "population-bf16",
        "population-processes",
        "serial",
        "processes",
        "mlp_lab",
        "lightning-optuna",
    }
    assert ways <= set(values["summary"])  # and JAX, where it is installed
    assert values["list"] == ["1x64 gelu 5.25e-03", "1x30 gelu 1.30e-03", "4x73 gelu 3.44e-03"]
    for row in values["summary"].values():
        assert row["member_steps_per_s"] == pytest.approx(3e3 / row["round_ms"])
        assert row["member_steps_per_s"] == pytest.approx(row["of_limit"] * values["limits"][0])
        assert row["peak_mb"] >= row["added_mb"] >= 0
        assert row["setup_ms"] > 0
    assert values["summary"]["population"]["times"] == 1.0
    assert values["deviation"]["float64"] < 1e-9  # the population trains what the loops train
    assert values["deviation"]["float32"] < 1e-3
    assert values["summary"]["processes"]["loss_deviation"] < 1e-3  # each member came back under its own number
    assert values["summary"]["population-processes"]["loss_deviation"] < 1e-3
    assert values["summary"]["population-bf16"]["loss_deviation"] < 0.1


@pytest.mark.slow
@needs_mnist
def test_the_crossover_is_among_the_points_that_were_measured(tmp_path: Path):
    small = ["--members", "1,3", "--widths", "8", "--depths", "1,2", "--seconds", "0"]
    values = benchmark("scaling", *small, results=tmp_path)
    assert [(point["depth"], point["width"], point["members"]) for point in values["points"]] == [
        *((1, 8, 1), (1, 8, 3)),
        *((2, 8, 1), (2, 8, 3)),
    ]
    assert set(values["slower_than_serial"]) == {"784-8-10", "784-8-8-10"}
    for point in values["points"]:
        (timing,) = point["rounds"]
        assert point["times_serial"] == pytest.approx(point["members"] * timing["alone_s"] / timing["together_s"])
        name = "784-8-10" if point["depth"] == 1 else "784-8-8-10"
        assert (point["members"] in values["slower_than_serial"][name]) == (point["times_serial"] < 1)


def test_the_lists_are_what_their_seeds_draw():
    assert sweep_lists.draw(sweep_lists.MIXED_SEED, low=16, high=256) == sweep_lists.MIXED
    assert sweep_lists.draw(sweep_lists.NARROW_SEED, low=8, high=64) == sweep_lists.NARROW
    assert [len(members) for members in sweep_lists.LISTS.values()] == [64, 64, 64, 64]


def test_the_operations_of_a_step_are_those_that_torch_counts():
    member = sweep_lists.Member(3, 20, "tanh", 1e-3)
    (mlp,) = sweep_peers.networks([member])
    with FlopCounterMode(display=False) as counter:
        mlp(torch.randn(128, 784)).sum().backward()
    assert counter.get_total_flops() == member.step_flops


def test_all_peers_train_the_same_networks_on_the_same_rows():
    members = [sweep_lists.Member(2, 5, "gelu", 1e-3), sweep_lists.Member(1, 7, "sigmoid", 1e-2)]
    generator = torch.Generator().manual_seed(1)
    x, y = torch.randn(300, 784, generator=generator), torch.randint(10, (300,), generator=generator)
    alone = [
        sweep_peers.Alone(mlp, member, x, y).take(0, 5)
        for mlp, member in zip(sweep_peers.networks(members), members, strict=True)
    ]
    mlps = sweep_peers.networks(members)
    together = sweep_peers.Together(mlps, members, x, y, bucket=None, bf16=False)
    torch.testing.assert_close(together.take(0, 5), torch.stack(alone), rtol=1e-5, atol=0.0)  # float32
    assert [len(index) for index in sweep_peers.batches(300, 0, 5)] == [128] * 5


def test_a_peer_that_is_unknown_is_refused():
    command = [sys.executable, "-m", "tests.benchmarks.fit", "--only", "mlp-lab"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 2
    assert "mlp-lab unknown; accepted: hand-written, mlp_lab" in result.stderr
