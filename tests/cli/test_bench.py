"""What the commands do to real tables: files, layers of configs, repeats, interruptions."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
import torch
import yaml

from mlp_lab import MLPModule
from tests.cli.conftest import Bench, write_config, write_table


@pytest.fixture
def table(here: Path) -> Path:
    """A working directory with `table.csv` and a `config.yaml` that trains on it."""
    write_table(here / "table.csv")
    write_config(here / "config.yaml")
    return here


@pytest.fixture
def run(table: Path, finished_run: Path) -> Path:
    """A copy of a finished run in the working directory."""
    return Path(shutil.copytree(finished_run, table / "run"))


def weights(run: Path, name: str = "last") -> dict[str, torch.Tensor]:
    state = torch.load(run / "checkpoints" / f"{name}.ckpt", weights_only=True)["state_dict"]
    return {key: value for key, value in state.items() if key.startswith("model.")}


def config(run: Path) -> dict[str, Any]:
    return yaml.safe_load((run / "config.yaml").read_text())


# ---- fit --------------------------------------------------------------------------------------------------------


def test_fit_writes_the_files_of_the_contract_and_ends_with_the_directory(table: Path, bench: Bench) -> None:
    answer = bench("fit", "--config", "config.yaml", "--run.name", "first")
    run = Path(answer.last_line)
    assert (answer.status, answer.err) == (0, "")
    assert re.fullmatch(r"\d{8}-\d{6}-[0-9a-f]{4}", run.name)
    assert run.parent == table / "runs" / "first"
    assert (run.parent / "latest").resolve() == run
    names = {str(path.relative_to(run)) for path in run.rglob("*") if path.is_file()}
    checkpoints = {"checkpoints/best.ckpt", "checkpoints/last.ckpt"}
    assert names == {"config.yaml", "provenance.json", "metrics.csv", "diagnosis.json"} | checkpoints
    provenance = json.loads((run / "provenance.json").read_text())
    assert {"command", "git", "packages", "device", "seed", "data", "run_id"} <= provenance.keys()
    assert {"step", "epoch", "train/loss", "val/loss", "val/accuracy"} <= set(pd.read_csv(run / "metrics.csv"))


def test_latest_is_the_newest_run(table: Path, bench: Bench) -> None:
    runs = [bench("fit", "--config", "config.yaml").last_line for _ in range(2)]
    assert runs[0] != runs[1]
    assert str((table / "runs" / "mlp" / "latest").resolve()) == runs[1]


def test_later_config_wins_over_earlier_and_flags_win_over_both_wherever_they_stand(table: Path, bench: Bench) -> None:
    (table / "more.yaml").write_text("model: {width: 5, dropout: 0.25}\n")
    flags = ["--model.dropout", "0.5"]
    answer = bench("fit", *flags, "--config", "config.yaml", "--config=more.yaml", "--print_config")
    printed = yaml.safe_load(answer.out)
    assert answer.status == 0
    assert {name: printed["model"][name] for name in ("depth", "width", "dropout")} == {
        "depth": 1,
        "width": 5,
        "dropout": 0.5,
    }
    assert not (table / "runs").exists()


def test_the_last_of_two_equal_flags_counts(table: Path, bench: Bench) -> None:
    answer = bench("fit", "--config", "config.yaml", "--model.depth", "3", "--model.depth", "2", "--print_config")
    assert yaml.safe_load(answer.out)["model"]["depth"] == 2


def test_fit_without_a_config_is_the_digits_recipe(here: Path, bench: Bench) -> None:
    recipe = Path(__file__).parents[2] / "configs" / "digits.yaml"
    assert bench("fit", "--print_config").out == bench("fit", "--config", recipe, "--print_config").out


def test_recorded_config_repeats_the_run_bit_for_bit_elsewhere(
    table: Path, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = Path(bench("fit", "--config", "config.yaml", "--model.dropout", "0.3", "--run.dir", "one").last_line)
    recorded = config(first)
    assert not {"config", "ckpt_path", "weights_only"} & recorded.keys()
    assert recorded["run"] == {"name": "mlp", "threads": "auto"}
    assert "fitted" not in recorded["data"]["init_args"]
    (table / "elsewhere").mkdir()
    monkeypatch.chdir(table / "elsewhere")
    second = Path(bench("fit", "--config", first / "config.yaml").last_line)
    assert second.parent == table / "elsewhere" / "runs" / "mlp"
    assert config(second) == recorded
    assert (second / "metrics.csv").read_bytes() == (first / "metrics.csv").read_bytes()
    for name, value in weights(first).items():
        assert torch.equal(weights(second)[name], value), name


def test_resume_goes_on_in_place_and_notes_what_was_changed(run: Path, bench: Bench) -> None:
    answer = bench("fit", "--resume", "run", "--trainer.max_epochs", "3")
    assert (answer.status, answer.last_line) == (0, str(run))
    assert pd.read_csv(run / "metrics.csv")["epoch"].max() == 2
    resumed = json.loads((run / "provenance.json").read_text())["resumed"]
    assert [entry["overrides"] for entry in resumed] == [["--trainer.max_epochs", "3"]]


def test_dry_run_leaves_nothing(table: Path, bench: Bench) -> None:
    answer = bench("fit", "--config", "config.yaml", "--trainer.fast_dev_run", "true")
    assert answer == (0, "fast_dev_run: every part ran once; nothing was written\n", "")
    assert {path.name for path in table.iterdir()} == {"table.csv", "config.yaml"}


def test_metrics_are_recorded_without_any_logger(table: Path, bench: Bench) -> None:
    flags = ["--trainer.logger", "false", "--diagnostics.groups", "[]"]
    run = Path(bench("fit", "--config", "config.yaml", *flags).last_line)
    assert len(pd.read_csv(run / "metrics.csv")) == 2  # the epoch's training loss and its validation


def test_progress_table_can_be_switched_off(table: Path, bench: Bench) -> None:
    shown = bench("fit", "--config", "config.yaml", "--trainer.enable_progress_bar", "true").out
    assert "samples/s" in shown
    assert "samples/s" not in bench("fit", "--config", "config.yaml").out


def test_run_without_validation_says_so(table: Path, bench: Bench) -> None:
    answer = bench("fit", "--config", "config.yaml", "--trainer.limit_val_batches", "0")
    assert "\nno validation in 1 epoch\n6 optimizer steps\n" in answer.out
    assert not (Path(answer.last_line) / "checkpoints" / "best.ckpt").exists()


@pytest.mark.parametrize("started", [True, False])
def test_ctrl_c_says_how_to_go_on(started: bool, table: Path, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*arguments: object) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    signal.signal(signal.SIGINT, signal.default_int_handler)  # a background job begins with it switched off
    hook = "on_train_batch_start" if started else "on_fit_start"
    monkeypatch.setattr(MLPModule, hook, interrupt, raising=False)
    answer = bench("fit", "--config", "config.yaml", "--run.dir", "cut")
    advice = "go on with `python -m mlp_lab fit --resume cut`" if started else "nothing was written"
    assert answer == (130, "", f"interrupted; {advice}\n")
    assert (table / "cut" / "config.yaml").exists() == started
    assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
    if started:
        monkeypatch.undo()
        monkeypatch.chdir(table)
        assert bench("fit", "--resume", "cut").status == 0


@pytest.mark.parametrize("precision", ["bf16-mixed", "64-true"])
def test_other_precisions_train_with_clipping(precision: str, table: Path, bench: Bench) -> None:
    flags = ["--trainer.precision", precision, "--trainer.gradient_clip_val", "1.0"]
    assert bench("fit", "--config", "config.yaml", *flags).status == 0


# ---- validate, test, summary ------------------------------------------------------------------------------------


def test_validate_repeats_the_best_epochs_scores(run: Path, bench: Bench) -> None:
    answer = bench("validate", "--run", "run")
    row = pd.read_csv(run / "metrics.csv").dropna(subset="val/loss").iloc[0]
    assert answer.out.startswith("validate: 6 rows\n")
    assert f"val/loss      {row['val/loss']:.4f}" in answer.out
    assert not (run / "test.json").exists()


def test_test_writes_its_scores_and_counts_every_look_at_the_test_rows(run: Path, bench: Bench) -> None:
    for _ in range(2):
        answer = bench("test", "--run", "run")
    record = json.loads((run / "test.json").read_text())
    assert record["rows"] == 6
    assert record["checkpoint"] == "checkpoints/best.ckpt"
    assert f"test/loss      {record['test/loss']:.4f}" in answer.out
    reads = json.loads((run / "provenance.json").read_text())["test_reads"]
    assert [read["scores"]["test/loss"] for read in reads] == [record["test/loss"]] * 2


def test_limited_test_counts_the_rows_it_measured(run: Path, bench: Bench) -> None:
    bench("test", "--run", "run", "--data.eval_batch_size", "2", "--trainer.limit_test_batches", "2")
    assert json.loads((run / "test.json").read_text())["rows"] == 4


def test_test_on_a_new_table_measures_all_its_rows(run: Path, table: Path, bench: Bench) -> None:
    write_table(table / "more.csv", rows=25)
    assert bench("test", "--run", "run", "--data.path", "more.csv").status == 0
    record = json.loads((run / "test-more.json").read_text())
    assert (record["rows"], record["source"]) == (25, "more.csv")
    assert not (run / "test.json").exists()


def test_config_and_checkpoint_name_a_model_without_a_run(run: Path, table: Path, bench: Bench) -> None:
    answer = bench("test", "--config", "run/config.yaml", "--ckpt_path", "run/checkpoints/last.ckpt")
    assert answer.status == 0
    assert not (run / "test.json").exists()
    assert not (table / "runs").exists()


# ---- scores that are not finite -----------------------------------------------------------------------------------


@pytest.fixture
def overflowing(here: Path) -> list[str]:
    """Words that fit a regression whose outputs overflow on a validation row."""
    rows = [(row / 10, 0.1 + row, "train" if row < 20 else "val") for row in range(24)]
    frame = pd.DataFrame(rows, columns=["a", "y", "part"])
    frame.loc[21, "a"] = 1e30
    frame.to_csv(here / "far.csv", index=False)
    write_config(here / "config.yaml", table="far.csv", target="y")
    return ["fit", "--config", "config.yaml", "--data.split_column", "part", "--data.scaling", "none"]


@pytest.mark.parametrize("more", [[], ["--replicates", "2"]])
def test_first_score_that_is_not_finite_ends_the_fit(more: list[str], overflowing: list[str], bench: Bench) -> None:
    answer = bench(*overflowing, *more, "--run.dir", "run")
    assert answer.status == 2
    line = "error: early_stopping.monitor: val/loss is inf in the first validation, for the outputs of the network are"
    assert answer.err.startswith(line)
    assert len(answer.err.splitlines()) == 1


def test_run_without_a_finite_score_has_failed_where_it_was_not_to_stop(overflowing: list[str], bench: Bench) -> None:
    answer = bench(*overflowing, "--early_stopping.patience", "0", "--run.dir", "run")
    line = (
        "error: early_stopping.monitor: val/loss was finite in no validation; run/checkpoints/last.ckpt holds the last"
    )
    assert (answer.status, answer.err.startswith(line)) == (2, True)


# ---- W&B --------------------------------------------------------------------------------------------------------


def test_offline_wandb_run_lies_in_the_run_directory(
    table: Path, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    overlay = Path(__file__).parents[2] / "configs" / "wandb.yaml"
    answer = bench("fit", "--config", "config.yaml", "--config", overlay)
    run = Path(answer.last_line)
    assert answer.status == 0
    run_id = json.loads((run / "provenance.json").read_text())["run_id"]
    assert run_id == f"mlp-{run.name}"
    assert [path.name for path in run.glob("wandb/offline-run-*/*.wandb")] == [f"run-{run_id}.wandb"]
    assert not (table / "wandb").exists()


def test_list_of_widths_is_recorded_with_its_depth(run: Path, bench: Bench) -> None:
    answer = bench("fit", "--config", run / "config.yaml", "--model.width", "[4,3,2]", "--model.linear_bias", "false")
    assert (answer.status, answer.err) == (0, "")
    longer = Path(answer.last_line)
    model = config(longer)["model"]
    assert (model["depth"], model["width"], model["linear_bias"]) == (3, [4, 3, 2], False)
    again = bench("fit", "--config", longer / "config.yaml")
    assert all(torch.equal(weights(longer)[name], tensor) for name, tensor in weights(Path(again.last_line)).items())
    loaded = MLPModule.load_from_checkpoint(longer / "checkpoints" / "last.ckpt")
    assert (loaded.hparams["depth"], loaded.model.widths) == (3, (4, 3, 2))
    assert bench("test", "--run", longer).status == 0


def test_activation_by_its_dotted_path_is_kept_in_config_and_checkpoint(
    table: Path, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    (table / "own_phi.py").write_text("def phi(z):\n    return z / (1 + z * z).sqrt()\n")
    monkeypatch.syspath_prepend(table)
    answer = bench("fit", "--config", "config.yaml", "--model.activation", "own_phi.phi", "--model.init", "critical")
    assert (answer.status, answer.err) == (0, "")
    run = Path(answer.last_line)
    assert config(run)["model"]["activation"] == "own_phi.phi"
    loaded = MLPModule.load_from_checkpoint(run / "checkpoints" / "last.ckpt")
    assert (loaded.hparams["activation"], loaded.model.phi.saturates) == ("own_phi.phi", False)
    assert bench("test", "--run", run).status == 0


OWN_DATA = """
import numpy as np
import torch
from mlp_lab import ArrayDataModule
from mlp_lab.data.module import Loaded, Part, TensorDataModule
from mlp_lab.data.spec import DataSpec


class Arrays(ArrayDataModule):
    def __init__(self, rows: int = 120, **settings):
        super().__init__(**settings)
        self.rows = rows

    def arrays(self):
        x = np.random.default_rng(0).normal(size=(self.rows, 2))
        return x, x[:, 0] > 0


class Tensors(TensorDataModule):
    def __init__(self, rows: int = 120, batch_size: int = 16):
        super().__init__(batch_size=batch_size)
        self.rows = rows

    def _load(self):
        x = torch.randn(self.rows, 2)
        y = (x[:, 0] > 0).long()
        slices = {"train": slice(0, 80), "val": slice(80, 100), "test": slice(100, None)}
        parts = {name: Part(numeric=x[rows], target=y[rows]) for name, rows in slices.items()}
        spec = DataSpec(task="binary", numeric=("a", "b"), classes=("no", "yes"), class_counts=(40, 40))
        return Loaded(spec=spec, parts=parts, state={"split": torch.zeros(self.rows, dtype=torch.uint8)})
"""


@pytest.mark.parametrize("name", ["Arrays", "Tensors"])
def test_data_module_of_a_user_works_by_its_dotted_path(
    name: str, here: Path, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    (here / "own_data.py").write_text(OWN_DATA)
    monkeypatch.syspath_prepend(here)
    trainer = ["--trainer.max_epochs", "1", "--trainer.enable_progress_bar", "false"]
    flags = ["--data.batch_size", "16", "--data.rows", "130", "--model.depth", "2", *trainer]
    answer = bench("fit", "--data", f"own_data.{name}", *flags)
    assert (answer.status, answer.err) == (0, "")
    run = Path(answer.last_line)
    assert config(run)["data"]["class_path"] == f"own_data.{name}"
    assert config(run)["data"]["init_args"]["rows"] == 130
    assert config(run)["run"]["name"] == "mlp"
    for command in ("validate", "test", "predict"):
        assert bench(command, "--run", run).status == 0
    assert bench("fit", "--resume", run, "--trainer.max_epochs", "2").status == 0
    (here / "sweep.yaml").write_text(
        f"base: {run}/config.yaml\ntrials: 2\npopulation: 2\n"
        "space: {model.optimizer.lr: {type: float, low: 0.001, high: 0.01}}\n"
    )
    answer = bench("sweep", "--config", "sweep.yaml", *trainer)
    assert (answer.status, answer.err) == (0, "")
