"""Worst layers, the verdicts' summary and table, histograms: the pure parts here, the rest through an offline run."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import wandb

from mlp_lab.diagnostics.dashboard import (
    BINS,
    SUMMARIES,
    WORST,
    add_worst_layers,
    define,
    histogram,
    send_histograms,
    send_verdicts,
    summary,
    worst_layers,
)
from mlp_lab.diagnostics.findings import Verdict
from mlp_lab.training.weights_and_biases import STEP, WandbRun

NAN = float("nan")
DEAD = Verdict(code="dead_units", severity="critical", layer=2, step=4, message="m", fix=["--model.bias", "0"])
IDLE = Verdict(code="not_learning", severity="warning", step=9, message="n", consequence_of="dead_units")


def test_the_worst_layer_is_the_largest_or_the_smallest_by_what_is_measured() -> None:
    for name, way in WORST.items():
        values = {f"{name}/1": 0.3, f"{name}/2": 0.2, f"{name}/10": 0.4, f"{name}/3": NAN, name: 9.0}
        worst = {"max": 0.4, "min": 0.2}[way]
        assert worst_layers(values) == {f"diagnosis/worst_{name.replace('/', '_')}": worst}
    assert worst_layers({"train/loss": 1.0, "units/dead/1": NAN}) == {}


def test_the_summary_counts() -> None:
    assert summary([DEAD, IDLE]) == {
        "diagnosis/first": "dead_units",
        "diagnosis/info": 0,
        "diagnosis/warning": 1,
        "diagnosis/critical": 1,
    }


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_histograms_are_numpys(dtype: torch.dtype) -> None:
    entries = torch.randn(50, 40, generator=torch.Generator().manual_seed(0)).to(dtype)
    entries[3, 3], entries[4, 4] = NAN, float("inf")
    pair = histogram(entries)
    assert pair is not None
    counts, edges = pair
    kept = entries[entries.isfinite()].double().numpy()
    expected, expected_edges = np.histogram(kept, bins=BINS)
    np.testing.assert_allclose(edges, expected_edges, rtol=1e-12)
    assert counts.sum() == len(kept) == 1998
    # An entry on an edge may fall on either side of it: bfloat16 has many equal entries, the others none there.
    moved = np.abs(counts - expected).sum()
    assert moved <= (40 if dtype == torch.bfloat16 else 0)


def test_histograms_of_one_value_and_of_none() -> None:
    pair = histogram(torch.full((5,), 2.0))
    assert pair is not None
    assert pair[0].tolist() == [5] + [0] * (BINS - 1)
    assert (np.diff(pair[1]) > 0).all()
    assert histogram(torch.tensor([NAN])) is None


@pytest.fixture(scope="module")
def log(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """The records of an offline run with two rows, histograms and verdicts."""
    directory = tmp_path_factory.mktemp("wandb")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        wandb.teardown()
        logger = WandbRun()
        logger.attach(directory, "mlp-1", {})
        add_worst_layers([logger])
        define([logger])
        logger.log_metrics({"epoch": 0, "units/dead/1": 0.1, "units/dead/2": 0.9, "signal/span": -1.5}, step=4)
        logger.log_metrics({"epoch": 0, "units/dead/1": 0.2, "units/dead/2": 0.3, "signal/span": -0.5}, step=8)
        send_histograms([logger], {"histograms/weight/1": torch.arange(640.0)}, step=8)
        send_verdicts([logger], [DEAD, IDLE])
        logger.finish(None, {}, exit_code=3)
        wandb.teardown()
    (file,) = directory.glob("wandb/offline-run-*/*.wandb")
    tool = Path(sys.executable).with_name("wandb")
    lines = subprocess.run([tool, "leet", "inspect", "--json", file], capture_output=True, text=True, check=True).stdout
    return [json.loads(line) for line in lines.splitlines()]


def test_worst_layers_stand_in_the_rows_they_follow_from(log: list[dict[str, Any]]) -> None:
    rows = [record["history"]["item"] for record in log if record["type"] == "history"]
    assert [row.get("diagnosis/worst_units_dead") for row in rows] == [0.9, 0.3, None]
    assert [row[STEP] for row in rows] == [4, 8, 8]


def test_a_histogram_has_its_counts(log: list[dict[str, Any]]) -> None:
    values = [record["history"]["item"] for record in log if record["type"] == "history"][-1]
    assert values["histograms/weight/1._type"] == "histogram"
    assert values["histograms/weight/1.values"] == [10] * BINS


def test_summaries_keep_the_worst_and_the_verdicts(log: list[dict[str, Any]]) -> None:
    values: dict[str, Any] = {}
    for record in log:
        if record["type"] == "summary":
            values |= record["summary"].get("update", {})
    assert values["diagnosis/worst_units_dead"] == {"max": 0.9}
    assert values["signal/span"] == {"min": -1.5}
    assert summary([DEAD, IDLE]).items() <= values.items()
    assert values["diagnosis/verdicts"]["_type"] == "table-file"
    assert (values["diagnosis/verdicts"]["nrows"], values["diagnosis/verdicts"]["ncols"]) == (2, 7)


def test_every_key_has_the_step_as_its_axis(log: list[dict[str, Any]]) -> None:
    defined = [record["metric"] for record in log if record["type"] == "metric"]
    by_name = {one["name"]: one for one in defined if "name" in one}
    for name, way in SUMMARIES.items():
        assert name in by_name, name
        assert by_name[name]["summary"][way] is True


def test_the_run_ends_with_its_exit_status(log: list[dict[str, Any]]) -> None:
    assert [record["exit"]["exit_code"] for record in log if record["type"] == "exit"] == [3]
