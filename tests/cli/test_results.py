"""Predictions against NumPy, from the weights in the checkpoint; and what is printed."""

from __future__ import annotations

import csv
import io
import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from numpy.typing import NDArray
from rich.console import Console

from mlp_lab.cli.results import check_finite, prediction_table, print_preview, print_scores
from mlp_lab.data.module import Part
from mlp_lab.data.spec import DataSpec, TaskName
from mlp_lab.errors import UserError
from mlp_lab.model.tasks import metrics
from tests.cli.conftest import Bench, write_config


def console() -> Console:
    return Console(file=io.StringIO(), width=80)


def text(console: Console) -> list[str]:
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue().splitlines()


def write_numbers(path: Path, rows: int, **targets: NDArray[np.object_]) -> pd.DataFrame:
    rng = np.random.default_rng(1)
    frame = pd.DataFrame({"a": rng.normal(size=rows), "b": rng.normal(size=rows)}).round(3)
    frame.assign(**{name: values[:rows] for name, values in targets.items()}).to_csv(path, index=False)
    return frame


def logits_by_numpy(run: Path, features: pd.DataFrame) -> NDArray[np.float64]:
    """Standardises by the checkpoint's own means and deviations, then one hidden layer with ReLU, in float64."""
    checkpoint = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)
    state = {name: value.double().numpy() for name, value in checkpoint["state_dict"].items() if "model." in name}
    table = pd.read_csv(run.parent / "table.csv")[["a", "b"]]
    train = table[(checkpoint["TabularDataModule"]["state"]["split"] == 0).numpy()]
    x = ((features - train.mean()) / train.std(ddof=0)).to_numpy()  # (N, 2)
    hidden = np.maximum(x @ state["model.blocks.0.linear.weight"].T + state["model.blocks.0.linear.bias"], 0)
    return hidden @ state["model.head.weight"].T + state["model.head.bias"]  # (N, C)


def fit_and_predict(here: Path, bench: Bench, target: str, **targets: NDArray[np.object_]) -> tuple[Path, pd.DataFrame]:
    """Trains on 60 rows and predicts 7 new ones, which come without their target."""
    write_numbers(here / "table.csv", 60, **targets)
    write_numbers(here / "new.csv", 7)
    write_config(here / "config.yaml", target=target)
    assert bench("fit", "--config", "config.yaml", "--run.dir", "run").status == 0
    answer = bench("predict", "--run", "run", "--data.path", "new.csv")
    assert (answer.status, answer.last_line) == (0, str(here / "run" / "predictions-new.csv"))
    predictions = pd.read_csv(here / "run" / "predictions-new.csv")
    assert predictions.pop("row").tolist() == list(range(7))
    return here / "run", predictions


# float32 forward passes of one small layer: relative errors stay below 1e-5
CLOSE = {"rtol": 1e-5, "atol": 1e-6}


def test_binary_predictions_are_classes_with_probabilities(here: Path, bench: Bench) -> None:
    run, found = fit_and_predict(here, bench, "y", y=np.array(["no, never", "yes"] * 30, dtype=object))
    positive = 1 / (1 + np.exp(-logits_by_numpy(run, pd.read_csv(here / "new.csv"))[:, 0]))
    assert list(found) == ["prediction", "p(no, never)", "p(yes)"]
    np.testing.assert_allclose(found["p(yes)"], positive, **CLOSE)
    np.testing.assert_allclose(found["p(no, never)"], 1 - positive, **CLOSE)
    assert found["prediction"].tolist() == ["yes" if p > 0.5 else "no, never" for p in positive]


def test_multiclass_predictions_are_classes_with_probabilities(here: Path, bench: Bench) -> None:
    run, found = fit_and_predict(here, bench, "y", y=np.array(["red", "green", "blue"] * 20, dtype=object))
    powers = np.exp(logits_by_numpy(run, pd.read_csv(here / "new.csv")))
    shares = powers / powers.sum(axis=1, keepdims=True)
    assert list(found) == ["prediction", "p(blue)", "p(green)", "p(red)"]
    np.testing.assert_allclose(found.iloc[:, 1:], shares, **CLOSE)
    assert found["prediction"].tolist() == [["blue", "green", "red"][code] for code in shares.argmax(1)]


def test_regression_predictions_are_in_the_targets_unit(here: Path, bench: Bench) -> None:
    price = np.linspace(1e5, 9e5, 60).astype(object)
    run, found = fit_and_predict(here, bench, "price", price=price)
    checkpoint = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)
    train = price[(checkpoint["TabularDataModule"]["state"]["split"] == 0).numpy()].astype(float)
    expected = logits_by_numpy(run, pd.read_csv(here / "new.csv"))[:, 0] * train.std() + train.mean()
    assert list(found) == ["prediction"]
    np.testing.assert_allclose(found["prediction"], expected, rtol=1e-5)


def test_multilabel_predictions_are_one_column_a_label(here: Path, bench: Bench) -> None:
    labels = {"sun": np.array([0, 1] * 30, dtype=object), "rain": np.array([0, 0, 1] * 20, dtype=object)}
    run, found = fit_and_predict(here, bench, "[sun, rain]", **labels)
    shares = 1 / (1 + np.exp(-logits_by_numpy(run, pd.read_csv(here / "new.csv"))))
    assert list(found) == ["prediction(sun)", "prediction(rain)", "p(sun)", "p(rain)"]
    np.testing.assert_allclose(found[["p(sun)", "p(rain)"]], shares, **CLOSE)
    np.testing.assert_array_equal(found[["prediction(sun)", "prediction(rain)"]], shares > 0.5)


def test_test_rows_keep_their_numbers_in_the_table(here: Path, bench: Bench) -> None:
    fit_and_predict(here, bench, "y", y=np.array(["no", "yes"] * 30, dtype=object))
    bench("predict", "--run", "run")
    rows = pd.read_csv(here / "run" / "predictions.csv")["row"].to_numpy()
    checkpoint = torch.load(here / "run" / "checkpoints" / "best.ckpt", weights_only=True)
    test_code = 2
    np.testing.assert_array_equal(
        rows, (checkpoint["TabularDataModule"]["state"]["split"] == test_code).nonzero()[:, 0]
    )


def test_run_on_a_named_table_predicts_from_a_file(here: Path, bench: Bench) -> None:
    flags = ["--model.depth", "0", "--trainer.max_epochs", "1", "--data.verbose", "false", "--run.dir", "iris"]
    assert bench("fit", "--data.dataset", "iris", *flags).status == 0
    names = ["sepal length (cm)", "sepal width (cm)", "petal length (cm)", "petal width (cm)"]
    pd.DataFrame([[5.1, 3.5, 1.4, 0.2]], columns=names).to_csv("flower.csv", index=False)
    assert bench("predict", "--run", "iris", "--data.path", "flower.csv").status == 0
    found = pd.read_csv("iris/predictions-flower.csv")
    assert list(found) == ["row", "prediction", "p(setosa)", "p(versicolor)", "p(virginica)"]
    assert len(found) == 1


def test_limited_predictions_keep_their_rows(here: Path, bench: Bench) -> None:
    fit_and_predict(here, bench, "y", y=np.array(["no", "yes"] * 30, dtype=object))
    flags = ["--data.eval_batch_size", "2", "--trainer.limit_predict_batches", "2"]
    assert bench("predict", "--run", "run", "--data.path", "new.csv", *flags).status == 0
    assert pd.read_csv("run/predictions-new.csv")["row"].tolist() == [0, 1, 2, 3]


def test_target_may_be_called_row(here: Path, bench: Bench) -> None:
    write_numbers(here / "table.csv", 60, row=np.linspace(1, 2, 60).astype(object))
    write_config(here / "config.yaml", target="row")
    assert bench("fit", "--config", "config.yaml", "--run.dir", "run").status == 0
    assert bench("predict", "--run", "run", "--id", "[row, a]").status == 0
    found, table = pd.read_csv("run/predictions.csv"), pd.read_csv("table.csv").iloc
    assert list(found) == ["row", "id(row)", "a", "true", "prediction"]
    for name, column in {"id(row)": "row", "a": "a", "true": "row"}.items():
        assert found[name].tolist() == table[found["row"]][column].tolist()


@pytest.mark.parametrize("offset", [0.0, 1e8])
def test_scores_from_the_file_are_those_of_the_test(offset: float, here: Path, bench: Bench) -> None:
    targets = {"y": np.linspace(0, 1, 60) ** 2 + offset, "z": np.linspace(3, 1, 60)}
    write_numbers(here / "table.csv", 60, **{name: values.astype(object) for name, values in targets.items()})
    write_config(here / "config.yaml", target="[y, z]")
    for command in (["fit", "--config", "config.yaml", "--run.dir", "run"], ["test", "--run", "run"]):
        assert bench(*command).status == 0
    assert bench("predict", "--run", "run").status == 0
    found = pd.read_csv("run/predictions.csv")
    assert list(found) == ["row", "true(y)", "true(z)", "prediction(y)", "prediction(z)"]
    np.testing.assert_array_equal(found["true(y)"], targets["y"][found["row"]])  # the cells themselves
    errors = [found[f"true({name})"] - found[f"prediction({name})"] for name in targets]
    rmse = np.mean([np.sqrt(np.mean(error**2)) for error in errors])
    assert rmse == pytest.approx(json.loads((here / "run" / "test.json").read_text())["test/rmse"], rel=1e-5)


def test_names_are_written_as_the_table_has_them(here: Path, bench: Bench) -> None:
    frame = write_numbers(here / "table.csv", 60)
    codes = [f"{row:05d}" for row in range(60)]
    frame.assign(code=codes, y=["no", "yes"] * 30, prediction="x").to_csv("table.csv", index=False)
    write_config(here / "config.yaml")
    assert bench("fit", "--config", "config.yaml", "--data.drop", "[code]", "--run.dir", "run").status == 0
    assert bench("predict", "--run", "run", "--id", "[code, prediction]").status == 0
    found = pd.read_csv("run/predictions.csv", dtype={"code": str})
    names = ["row", "code", "id(prediction)", "true", "prediction", "p(no)", "p(yes)"]
    assert (list(found), found["code"].tolist()) == (names, [codes[row] for row in found["row"]])
    assert found["true"].tolist() == [("no", "yes")[row % 2] for row in found["row"]]


def test_truth_of_new_rows_is_written_where_it_is_known(here: Path, bench: Bench) -> None:
    fit_and_predict(here, bench, "y", y=np.array(["no", "yes"] * 30, dtype=object))
    frame = pd.read_csv("new.csv").assign(y=["yes", "", "maybe", "no", "no", "no", "no"])
    frame.to_csv("half.csv", index=False)
    assert bench("predict", "--run", "run", "--data.path", "half.csv", "--id", "a").status == 0
    found = pd.read_csv("run/predictions-half.csv", keep_default_na=False)
    assert list(found) == ["row", "a", "true", "prediction", "p(no)", "p(yes)"]
    assert found["true"].tolist() == frame["y"].tolist()


def test_precision_of_64_bits_reaches_the_file(here: Path, bench: Bench) -> None:
    run, _ = fit_and_predict(here, bench, "y", y=np.linspace(1, 2, 60).astype(object))
    assert bench("predict", "--run", "run", "--data.path", "new.csv", "--trainer.precision", "64-true").status == 0
    checkpoint = torch.load(run / "checkpoints" / "best.ckpt", weights_only=True)
    train = np.linspace(1, 2, 60)[(checkpoint["TabularDataModule"]["state"]["split"] == 0).numpy()]
    table = pd.read_csv("table.csv")[["a", "b"]][(checkpoint["TabularDataModule"]["state"]["split"] == 0).numpy()]
    features = pd.read_csv("new.csv")
    single = ((features - table.mean()) / table.std(ddof=0)).astype(np.float32).astype(np.float64)
    back = single * table.std(ddof=0) + table.mean()  # features are rounded to float32 before the network
    expected = logits_by_numpy(run, back)[:, 0] * train.std() + train.mean()
    np.testing.assert_allclose(pd.read_csv(run / "predictions-new.csv")["prediction"], expected, rtol=1e-12)


def test_rows_whose_prediction_is_not_finite_are_named() -> None:
    spec = DataSpec(task="regression", numeric=("a", "b"), targets=("y",), target_mean=(0.0,), target_std=(1.0,))
    part = Part(numeric=torch.tensor([[1.0, 2.0], [3.0, 1e38]]), ids=torch.tensor([4, 9]))
    check_finite(spec, part, torch.zeros(2, 1))
    line = "data.path: 1 of 2 predictions are not finite, first in row 10: column 'b' is 1e.38 there after scaling"
    with pytest.raises(UserError, match=line):
        check_finite(spec, part, torch.tensor([[1.0], [float("nan")]]))


@pytest.mark.parametrize("task", ["binary", "multilabel"])
def test_half_a_probability_is_the_class_that_the_metrics_count(task: TaskName) -> None:
    classes = ("no", "yes") if task == "binary" else ("a",)
    spec = DataSpec(task=task, classes=classes, class_counts=(1,) * len(classes), targets=("a",))
    logits, target = torch.zeros(1, 1), torch.zeros(1, dtype=torch.long)
    scores = metrics(spec)
    scores.update(logits, target if task == "binary" else target.unsqueeze(1).float())
    table = prediction_table(spec, logits.double())
    assert table.iloc[0, 0] in (0, "no")
    assert scores.compute()["accuracy"] == 1


def test_scores_of_a_regression_say_their_unit_in_80_columns() -> None:
    spec = DataSpec(task="regression", targets=("price",), target_mean=(0.0,), target_std=(1.0,))
    out = console()
    print_scores("test: 8 rows", spec, {"test/loss": 0.5, "test/rmse": 51234.567, "test/r2": 0.25}, out)
    assert [line.rstrip() for line in text(out)] == [
        "test: 8 rows",
        "test/loss    0.5000",
        "test/rmse  51,234.6  in the unit of price",
        "test/r2      0.2500",
    ]


@pytest.mark.parametrize("length", [3, 200])
def test_nothing_printed_is_wider_than_the_terminal(length: int) -> None:
    name = "[x]" * length
    spec = DataSpec(task="regression", targets=(name,), target_mean=(0.0,), target_std=(1.0,))
    out = console()
    print_scores("test: 8 rows", spec, {"test/rmse": 1.0}, out)
    print_preview(spec, pd.DataFrame({"row": [0], name: [1.0]}), out)
    lines = text(out)
    assert len(lines) == 2 + 2 + 1  # title and score, header and row, count
    assert max(map(len, lines)) <= 80


def test_preview_shows_the_most_probable_class_of_the_first_rows() -> None:
    spec = DataSpec(task="multiclass", classes=("a", "b", "c"), class_counts=(1, 1, 1))
    frame = prediction_table(spec, torch.eye(3).repeat(3, 1) * 50)
    frame.insert(0, "row", range(9))
    out = console()
    print_preview(spec, frame, out)
    assert text(out)[1].split() == ["0", "a", "1"]
    assert text(out)[-1] == "9 predictions"
    assert len(text(out)) == 1 + 5 + 1


def test_predictions_are_faithful_and_safe_for_a_spreadsheet_on_request(here: Path, bench: Bench) -> None:
    classes, names = ["=1+1", "a\rb", "c\x1b[2Jd"], ["@SUM(A1)", "-1.5", "plain"]
    numbers = np.random.default_rng(0).normal(size=60).round(3)
    frame = pd.DataFrame({"a": numbers, "-id": names * 20, "y": classes * 20})
    frame.to_csv(here / "table.csv", index=False, quoting=csv.QUOTE_NONNUMERIC)
    frame[:9].to_csv(here / "new.csv", index=False, quoting=csv.QUOTE_NONNUMERIC)
    write_config(here / "config.yaml")
    answer = bench("fit", "--config", "config.yaml", "--data.drop", "[-id]", "--data.verbose", "true", "--run.dir", "r")
    assert answer.status == 0, answer.err
    assert "\x1b" not in answer.out
    assert "c\\x1b[2Jd" in answer.out
    predict = ("predict", "--run", "r", "--id", "[-id]", "--data.path", "new.csv")
    answer = bench(*predict, "--output", "exact.csv")
    assert answer.status == 0, answer.err
    assert "\x1b" not in answer.out
    exact = pd.read_csv("exact.csv", dtype=str)
    assert (exact["true"].tolist(), exact["-id"].tolist()) == (classes * 3, names * 3)
    assert bench(*predict, "--safe_cells", "--output", "safe.csv").status == 0
    safe = pd.read_csv("safe.csv", dtype=str)
    assert safe["true"].tolist() == ["'=1+1", *classes[1:]] * 3
    assert safe["'-id"].tolist() == ["'@SUM(A1)", *names[1:]] * 3
    pd.testing.assert_frame_equal(safe.iloc[:, -3:], exact.iloc[:, -3:])
