from __future__ import annotations

from pathlib import Path

import pytest

from mlp_lab.cli.summary import layer_rows
from mlp_lab.model.mlp import MLP
from tests.cli.conftest import Bench, write_config, write_table


def test_the_courses_network_has_the_parameters_and_flops_of_the_formulas() -> None:
    rows = layer_rows(MLP(784, 10, depth=1, width=128), activation="relu", norm="none")
    assert [row.name for row in rows] == ["hidden 1", "head"]
    assert [row.shape for row in rows] == ["784 → 128", "128 → 10"]
    assert sum(row.parameters for row in rows) == 101_770
    assert [row.flops for row in rows] == [2 * 784 * 128 + 128, 2 * 128 * 10 + 10]


def test_parts_follow_the_order_of_a_block() -> None:
    mlp = MLP(8, 3, depth=2, width=8, activation="gelu", norm="batch", dropout=0.2, residual=True)
    rows = layer_rows(mlp, activation="gelu", norm="batch")
    assert [row.parts for row in rows] == ["batch, gelu, dropout 0.2, skip", "batch, gelu, dropout 0.2, skip", ""]
    assert rows[0].parameters == 8 * 8 + 8 + 2 * 8  # weights, biases, scale and shift


def test_logistic_regression_is_a_head() -> None:
    assert [row.name for row in layer_rows(MLP(4, 2, depth=0), activation="relu", norm="none")] == ["head"]


@pytest.fixture
def table(here: Path) -> Path:
    write_table(here / "table.csv")
    write_config(here / "config.yaml")
    return here


def test_summary_fits_a_terminal_and_writes_nothing(table: Path, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    before = set(table.iterdir())
    answer = bench("summary", "--config", "config.yaml", "--model.norm", "layer", "--model.dropout", "0.25")
    lines = [line.rstrip() for line in answer.out.splitlines()]
    assert (answer.status, answer.err) == (0, "")
    assert lines[0].split() == ["layer", "in", "→", "out", "then", "parameters", "FLOPs/row"]
    assert lines[1].split() == ["encoder", "→", "6", "columns", "side", "by", "side", "0", "0"]
    assert lines[2].split() == ["hidden", "1", "6", "→", "8", "layer,", "relu,", "dropout", "0.25", "72", "104"]
    assert lines[4].split() == ["total", str(6 * 8 + 8 + 16 + 8 + 1), str((2 * 6 + 1) * 8 + 17)]
    assert max(map(len, lines)) <= 80
    assert set(table.iterdir()) == before


def test_summary_of_a_run_is_that_of_its_config(table: Path, bench: Bench, finished_run: Path) -> None:
    of_run, of_config = bench("summary", "--run", finished_run).out, bench("summary", "--config", "config.yaml").out
    assert of_run == of_config
    assert "adam" in of_run
