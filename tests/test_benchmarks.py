"""The benchmarks run: their cheap parts, on few rows, as a user starts them."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

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


def test_a_peer_that_is_unknown_is_refused():
    command = [sys.executable, "-m", "tests.benchmarks.fit", "--only", "mlp-lab"]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert result.returncode == 2
    assert "mlp-lab unknown; accepted: hand-written, mlp_lab" in result.stderr
