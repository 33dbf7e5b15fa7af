"""The diagnostics through the command line: their keys, verdicts and fixes, and what a NaN does to a run."""

from __future__ import annotations

import csv
import json
import shlex
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import yaml

from mlp_lab import Diagnostics
from mlp_lab.training.module import MLPModule
from tests.cli.conftest import Bench, write_config, write_table

DEAD = "{depth: 2, width: 8, bias: -10.0, optimizer: {name: sgd, lr: 0.05}}"


@pytest.fixture
def table(here: Path) -> Path:
    """A working directory with `table.csv` and a `config.yaml` that trains on it."""
    write_table(here / "table.csv")
    write_config(here / "config.yaml")
    return here


def diagnosis(run: str | Path) -> list[dict[str, Any]]:
    return json.loads((Path(run) / "diagnosis.json").read_text())


def columns(run: str | Path) -> list[str]:
    with (Path(run) / "metrics.csv").open(newline="") as file:
        return next(csv.reader(file))


def rows(run: str | Path) -> list[dict[str, str]]:
    with (Path(run) / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


# ---- keys -------------------------------------------------------------------------------------------------------


def test_every_run_is_measured_and_its_config_says_how(table: Path, bench: Bench) -> None:
    run = bench("fit", "--config", "config.yaml").last_line
    assert {"grad/norm/1", "update/ratio/1", "signal/span", "units/dead/1"} <= set(columns(run))
    written = yaml.safe_load((Path(run) / "config.yaml").read_text())["diagnostics"]
    assert written == {
        "every_n_steps": 100,
        "groups": ["gradients", "updates", "signal", "units", "init"],
        "probe": "val",
    }


def test_no_groups_measure_nothing(table: Path, bench: Bench) -> None:
    answer = bench("fit", "--config", "config.yaml", "--diagnostics.groups", "[]")
    assert answer.status == 0
    assert not [
        name for name in columns(answer.last_line) if name.split("/")[0] in ("grad", "update", "signal", "units")
    ]


@pytest.mark.parametrize(
    ("flag", "value", "line"),
    [
        ("groups", "[gradient]", "'gradient' is unknown (did you mean 'gradients'?); accepted: gradients, updates"),
        ("every_n_steps", "0", "0 is out of range; accepted: an integer of at least 1"),
        ("every_n_steps", "-3", "-3 is out of range"),
        ("probe", "test", "'test' is unknown; accepted: val, train"),
        ("every", "5", ""),
    ],
)
def test_mistakes_are_told_in_one_line(flag: str, value: str, line: str, table: Path, bench: Bench) -> None:
    answer = bench("fit", "--config", "config.yaml", f"--diagnostics.{flag}", value)
    assert answer.status == 2
    assert len(answer.err.splitlines()) == 1
    assert f"diagnostics.{flag}" in answer.err
    assert line in answer.err
    assert not (table / "runs").exists()


def test_a_group_without_keys_is_told(table: Path, bench: Bench) -> None:
    (table / "more.yaml").write_text("diagnostics:\n")
    answer = bench("fit", "--config", "config.yaml", "--config", "more.yaml")
    assert answer.status == 2
    assert "diagnostics: it has no keys in more.yaml" in answer.err


def test_ones_own_callback_takes_the_place_of_the_default(
    table: Path, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[list[Diagnostics]] = []

    def keep(self: Diagnostics, trainer: L.Trainer, *rest: Any) -> None:
        found.append([one for one in trainer.callbacks if isinstance(one, Diagnostics)])  # type: ignore[attr-defined]

    monkeypatch.setattr(Diagnostics, "on_fit_start", keep)
    own = "[{class_path: mlp_lab.Diagnostics, init_args: {every_n_steps: 3}}]"
    assert bench("fit", "--config", "config.yaml", "--trainer.callbacks", own).status == 0
    (callbacks,) = found
    assert [one.config.every_n_steps for one in callbacks] == [3]


def test_a_resumed_run_goes_on_measuring(table: Path, bench: Bench) -> None:
    run = bench("fit", "--config", "config.yaml", "--diagnostics.every_n_steps", "2").last_line
    assert bench("fit", "--resume", run, "--trainer.max_epochs", "2").status == 0
    whole = bench("fit", "--config", Path(run) / "config.yaml", "--trainer.max_epochs", "2").last_line
    assert (Path(run) / "metrics.csv").read_text() == (Path(whole) / "metrics.csv").read_text()


# ---- verdicts ---------------------------------------------------------------------------------------------------


def test_the_line_that_is_printed_cures_the_run(table: Path, bench: Bench) -> None:
    write_config(table / "dead.yaml", model=DEAD)
    answer = bench("fit", "--config", "dead.yaml", "--trainer.max_epochs", "2")
    found = diagnosis(answer.last_line)
    assert answer.status == 0
    assert found[0]["code"] == "dead_units"
    assert "dead_units" in answer.out
    (line,) = [line for line in answer.out.splitlines() if "--config" in line][:1]
    words = shlex.split(line)
    assert words[:4] == ["python", "-m", "mlp_lab", "fit"]
    cured = bench(*words[3:])
    assert cured.status == 0
    assert "dead_units" not in [one["code"] for one in diagnosis(cured.last_line)]


@pytest.mark.parametrize("groups", ["[updates]", "[]"])
def test_a_rate_that_overflows_is_cured_whatever_its_size(groups: str, table: Path, bench: Bench) -> None:
    write_config(table / "far.yaml", model="{depth: 2, width: 8, optimizer: {name: sgd, lr: 1.0e+12}}")
    flags = ["fit", "--config", "far.yaml", f"--diagnostics.groups={groups}", "--trainer.max_epochs=3"]
    assert bench(*flags, "--run.dir", "run").status == 3
    cure = shlex.split(" ".join(diagnosis("run")[0]["fix"]))
    cured = bench(*flags, *cure, "--run.dir", "cured")
    assert cured.status == 0
    losses = [float(row["val/loss"]) for row in rows("cured") if row["val/loss"]]
    assert losses[-1] < losses[0] < 1.5  # guessing costs ln 2 of two classes, 1 of a standardised target


# ---- a NaN ------------------------------------------------------------------------------------------------------


def spoil(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """Makes a weight NaN before an optimizer step."""
    real = MLPModule.training_step

    def training_step(self: MLPModule, batch: Any, batch_idx: int) -> Any:
        if self.trainer.global_step == step - 1:
            with torch.no_grad():
                self.model.linears[1].weight[0, 0] = float("nan")
        return real(self, batch, batch_idx)

    monkeypatch.setattr(MLPModule, "training_step", training_step)


@pytest.mark.parametrize("groups", ["[gradients]", "[]"])
def test_a_nan_stops_the_run_and_keeps_the_last_good_checkpoint(
    groups: str, table: Path, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil(monkeypatch, step=9)  # in the second epoch of 6 steps
    flags = ["--trainer.max_epochs=3", "--run.dir=run", f"--diagnostics.groups={groups}"]
    answer = bench("fit", "--config", "config.yaml", *flags)
    assert answer.status == 3
    assert answer.err == (
        "stopped: step 9: NaN in the weight of layer 2 (head.weight); run/checkpoints/last.ckpt holds the last good "
        "state\n"
    )
    assert "Traceback" not in answer.out
    (found,) = [one for one in diagnosis("run") if one["code"] == "nonfinite"]
    assert (found["severity"], found["layer"], found["step"]) == ("critical", 2, 9)
    for name in ("last", "best"):
        checkpoint = torch.load(table / "run" / "checkpoints" / f"{name}.ckpt", weights_only=True)
        assert checkpoint["global_step"] == 6
        assert all(value.isfinite().all() for value in checkpoint["state_dict"].values() if value.is_floating_point())
    monkeypatch.undo()
    monkeypatch.chdir(table)
    assert bench("fit", "--resume", "run").status == 0  # it goes on from there


def test_a_nan_before_the_first_checkpoint_says_so(table: Path, bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    spoil(monkeypatch, step=2)
    answer = bench("fit", "--config", "config.yaml", "--run.dir", "run")
    assert answer.status == 3
    assert answer.err.endswith("; no checkpoint had been written\n")
    assert not list((table / "run").glob("checkpoints/*"))
    assert [one["code"] for one in diagnosis("run")] == ["nonfinite"]
