from __future__ import annotations

import math
from pathlib import Path

import pytest

from mlp_lab.cli.summary import describe_span, layer_rows
from mlp_lab.diagnostics.theory import LayerPrediction, Prediction
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
    assert lines[9] == "loop    the fast training loop"
    assert lines[11].split() == ["predicted", "RMS", "of", "z", "RMS", "of", "a", "gradient", "×", "per", "layer"]
    assert lines[12].split() == ["hidden", "1", "1", "0.707", "1", "–"]  # layer norm: z has size 1; relu halves squares
    assert lines[13] == "signal  one hidden layer: no depth for a gradient to vanish over"
    assert lines[14].startswith("        logits of size ")
    assert max(map(len, lines)) <= 80
    assert set(table.iterdir()) == before


@pytest.mark.parametrize(
    ("flags", "reason"),
    [
        (["--trainer.accumulate_grad_batches", "2"], "accumulate_grad_batches"),
        (["--trainer.profiler", "simple"], "profiler SimpleProfiler"),
    ],
)
def test_summary_names_what_needs_lightnings_loop(table: Path, bench: Bench, flags: list[str], reason: str) -> None:
    answer = bench("summary", "--config", "config.yaml", *flags)
    assert f"loop    Lightning's own, because of {reason}\n" in answer.out


def test_summary_of_a_run_is_that_of_its_config(table: Path, bench: Bench, finished_run: Path) -> None:
    of_run, of_config = bench("summary", "--run", finished_run).out, bench("summary", "--config", "config.yaml").out
    assert of_run == of_config
    assert "adam" in of_run


def predicted(depth: int, chi: float) -> Prediction:
    layers = [LayerPrediction(1.0, 1.0, 1.0, chi)] * (depth - 1) + [LayerPrediction(1.0, 1.0, 1.0, math.nan)]
    return Prediction(layers=tuple(layers), logits=1.0)


@pytest.mark.parametrize(
    ("chi", "words"),
    [
        (1e-2, "vanishing: gradient of layer 1 is 10^-3.0 of layer 4's"),
        (1e-1, "gradient of layer 1 is 10^-1.5 of layer 4's: it keeps its size"),
        (1e2, "exploding: gradient of layer 1 is 10^3.0 of layer 4's"),
        (math.nan, "no gradient gets through the last hidden layer: its units are dead"),
    ],
)
def test_the_gradient_over_the_depth_in_a_line(chi: float, words: str) -> None:
    assert describe_span(predicted(4, chi)) == words


def signal_lines(bench: Bench, *words: str) -> list[str]:
    lines = [line.rstrip() for line in bench("summary", "--config", "config.yaml", *words).out.splitlines()]
    assert max(map(len, lines)) <= 80
    return lines[next(k for k, line in enumerate(lines) if line.startswith(("predicted", "signal"))) :]


def test_summary_predicts_vanishing_gradients(table: Path, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "80")
    deep = ["--model.depth", "8", "--model.width", "200", "--model.init", "pytorch", "--model.activation", "sigmoid"]
    lines = signal_lines(bench, *deep)
    assert [line.split()[:2] for line in lines[1:9]] == [["hidden", str(layer)] for layer in range(1, 9)]
    factors = [float(line.split()[-1]) for line in lines[3:8]]
    assert factors == pytest.approx([0.141] * 5, rel=0.05)
    assert lines[9] == "signal  vanishing: gradient of layer 1 is 10^-6.0 of layer 8's"


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--model.depth", "0"], "signal  no hidden layer"),
        (["--model.norm", "batch"], "signal  theory does not apply: batch norm divides by a deviation over samples"),
        (["--model.residual", "true", "--model.depth", "3"], "signal  theory does not apply: skips without a norm"),
    ],
)
def test_summary_without_a_prediction_says_why(table: Path, bench: Bench, words: list[str], expected: str) -> None:
    assert signal_lines(bench, *words)[0].startswith(expected)


def test_an_init_that_sees_data_is_predicted_after_it_has(table: Path, bench: Bench) -> None:
    lines = signal_lines(bench, "--model.init", "lsuv", "--model.depth", "3", "--model.width", "100")
    for line in lines[1:4]:
        assert float(line.split()[2]) == pytest.approx(1, rel=0.35)  # RMS of z: unit deviation, and a mean of its own


def test_the_memory_of_replicates_is_told(here: Path, bench: Bench) -> None:
    answer = bench("summary", "--replicates", "8", "--model.width", "64")
    assert answer.status == 0
    assert "for 8 replicates in training" in answer.out
    assert "replicates" not in bench("summary", "--model.width", "64").out


@pytest.mark.parametrize("flags", ["--model.width [8,4,2]", "--model.depth null --model.width [8,4,2]"])
def test_list_of_widths_sets_the_depth(flags: str, table: Path, bench: Bench) -> None:
    answer = bench("summary", "--config", "config.yaml", *flags.split())
    assert (answer.status, answer.err) == (0, "")
    assert [f"hidden {layer}" in answer.out for layer in (1, 2, 3, 4)] == [True, True, True, False]


def test_layers_without_bias_are_counted_without(table: Path, bench: Bench) -> None:
    rows = layer_rows(MLP(784, 10, depth=1, width=128, linear_bias=False), activation="relu", norm="none")
    assert [row.parameters for row in rows] == [784 * 128, 128 * 10 + 10]
    assert [row.flops for row in rows] == [2 * 784 * 128, 2 * 128 * 10 + 10]
    answer = bench("summary", "--config", "config.yaml", "--model.linear_bias", "false")
    assert (answer.status, answer.err) == (0, "")
