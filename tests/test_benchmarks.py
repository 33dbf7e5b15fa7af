"""The benchmarks run: their cheap parts, on few rows, as a user starts them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import optuna
import pytest
import torch
import yaml
from torch.utils.flop_counter import FlopCounterMode

from mlp_lab.cli.trial import TrialBuilder
from mlp_lab.sweep.space import Space
from tests.benchmarks import search, search_peers, search_runs, sweep_lists, sweep_peers

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


@pytest.mark.slow
def test_whole_searches_are_compared(tmp_path: Path):
    small = ["--part", "backends", "--seeds", "1", "--trials", "4", "--epochs", "3", "--threads", "1"]
    command = [sys.executable, "-m", "tests.benchmarks.search", *small, "--results", str(tmp_path)]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    (path,) = tmp_path.glob("search-backends-*.json")
    values = json.loads(path.read_text())
    (round_,) = values["rounds"]
    for name in ("population", "serial"):
        assert len(round_[name]["trials"]) == 4
        assert min(one["value"] for one in round_[name]["trials"] if one["value"]) == round_[name]["best"]
        assert values["summary"][name]["loss"]["median"] == round_[name]["best"]
    assert round_["serial"]["again_loss"] == round_["serial"]["best"]  # `best.yaml` repeats a trial to the last bit
    assert values["summary"]["times"] == round_["serial"]["wall_s"] / round_["population"]["wall_s"]


@pytest.mark.slow
def test_the_search_of_optuna_and_lightning_runs():
    run = search_runs.optuna_script("asha", 0, threads=1, trials=3, epochs=2)
    assert [one["number"] for one in run["trials"]] == [0, 1, 2]
    assert run["best"] == min(one["value"] for one in run["trials"] if one["value"])
    assert all(1 <= one["epochs"] <= 2 for one in run["trials"])


def test_the_search_of_optuna_and_lightning_has_the_data_and_the_space_of_the_sweep():
    content = yaml.safe_load((ROOT / "sweeps" / "digits.yaml").read_text())
    trial = optuna.create_study().ask()
    search_peers.suggest(trial)
    swept = optuna.create_study().ask()
    Space.read(content["space"]).suggest(swept)
    assert trial.distributions == {key.rpartition(".")[2]: known for key, known in swept.distributions.items()}
    base = yaml.safe_load((ROOT / content["base"]).read_text())
    assert base["trainer"]["max_epochs"] == search_peers.EPOCHS
    assert base["data"]["init_args"]["batch_size"] == search_peers.BATCH_SIZE
    split = TrialBuilder(["--config", str(ROOT / content["base"])]).data  # as the sweep builds it, with its own seed
    split.setup("fit")
    for name, dataset in zip(("train", "val"), search_peers.datasets(), strict=True):
        torch.testing.assert_close(dataset.tensors, (split.part(name).numeric, split.part(name).target))


def test_the_parts_of_the_search_are_chosen():
    names = ["backends", "vanishing", "mnist_depth_width", "optuna"]
    assert [one.name for one in search.comparisons(search.parse([]))] == names
    for part, chosen in (("backends", names[:1]), ("verdicts", names[1:3]), ("optuna", names[3:])):
        assert [one.name for one in search.comparisons(search.parse(["--part", part]))] == chosen
    with pytest.raises(SystemExit):
        search.parse(["--sweeps", "digits"])


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
