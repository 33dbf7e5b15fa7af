"""The life of the callback: when it measures, what it leaves behind, and what survives a resumption."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from mlp_lab.diagnostics.callback import Diagnostics
from mlp_lab.errors import NonFiniteError, UserError
from mlp_lab.model.mlp import MLP
from mlp_lab.training.tracking import MetricsCSV
from tests.diagnostics.fits import QUIET, STEPS, Spy, assert_equal, build, fit, hooks, load

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*smaller than the logging interval"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*scheduler.step.*before .optimizer.step"),
]
ROOT = Path(__file__).parents[2]


def on_processes(folder: Path, devices: int, *row: int) -> list[list[dict[str, Any]]]:
    """Runs `two_ranks.py` and returns what each process has written."""
    folder.mkdir()
    environment = {name: value for name, value in os.environ.items() if name not in ("LOCAL_RANK", "MLP_LAB_RUN_DIR")}
    environment |= {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    script = Path(__file__).with_name("two_ranks.py")
    command = [sys.executable, str(script), *map(str, (folder, devices, *row))]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(devices)]


@pytest.mark.slow
def test_two_processes_report_what_one_does(tmp_path: Path) -> None:
    one, two = on_processes(tmp_path / "one", 1)[0], on_processes(tmp_path / "two", 2)[0]
    assert {"units/saturated/1", "signal/span", "grad/clip_fraction", "init/chi/1"} <= one[0].keys()
    assert any("units/dead/2" in values for values in one)
    for alone, shared in zip(one, two, strict=True):
        assert_equal(shared, alone, 1e-6)


@pytest.mark.slow
def test_a_nan_that_one_process_sees_stops_both_in_its_step(tmp_path: Path) -> None:
    ((alone,),) = on_processes(tmp_path / "one", 1, 700)
    found = [values for (values,) in on_processes(tmp_path / "two", 2, 700)]
    assert sorted(values.pop("mine") for values in found) == [False, True]
    assert alone.pop("mine")
    assert alone["column"] == "pixel_0_5"
    assert found == [alone, alone]


# ---- what a run is left with ----------------------------------------------------------------------------------------


class Own(L.LightningModule):
    """A user's own module around an MLP, with a plain loader."""

    def __init__(self, fails_at: int | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.model = MLP(6, 3, depth=2, width=8)
        self.fails_at = fails_at

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        loss = F.cross_entropy(self.model(batch[0]), batch[1])
        if batch_idx == self.fails_at:
            raise ValueError("in between")
        return loss

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val/loss", F.cross_entropy(self.model(batch[0]), batch[1]))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


def loaders() -> tuple[DataLoader[Any], DataLoader[Any]]:
    generator = torch.Generator().manual_seed(0)
    rows = TensorDataset(torch.randn(80, 6, generator=generator), torch.randint(3, (80,), generator=generator))
    return DataLoader(rows, batch_size=16), DataLoader(rows, batch_size=40)


def test_a_users_own_module(tmp_path: Path) -> None:
    spy, diagnostics = Spy(), Diagnostics(every_n_steps=2)
    module, logger = Own(), MetricsCSV(tmp_path / "metrics.csv")
    fit(module, loaders(), spy, diagnostics, logger=logger, max_epochs=2)
    one = next(one for one in diagnostics.evidence.steps if one.step == 4)
    network, (x, y) = spy.networks[4][0], spy.batches[4][0]
    F.cross_entropy(network(x), y).backward()
    gradients = torch.cat([parameter.grad.flatten() for parameter in network.parameters()])
    assert one.values["grad/norm"] == pytest.approx(float(gradients.norm()), rel=1e-5)
    before, after = network.head.weight.detach(), spy.after[4][-1]
    assert one.values["update/ratio/3"] == pytest.approx(float((after - before).norm() / before.norm()), rel=1e-5)
    row = next(row for row in logger.read() if row["step"] == "4")
    assert float(row["signal/span"]) == one.values["signal/span"]
    last = diagnostics.evidence.epochs[-1]
    assert (last.step, last.epoch) == (10, 1)
    assert {"val/loss", "units/dead/1", "units/rank/2"} <= last.values.keys()
    assert last.values["units/samples"] == 80


def test_hooks_are_there_on_measuring_steps_alone() -> None:
    data, spy, diagnostics = load(), Spy(), Diagnostics(every_n_steps=7)
    module = build(data)
    fit(module, data, spy, diagnostics)
    assert [step for step, count in spy.hooks.items() if count] == [1, 7, 14, 21]
    assert hooks(module) == 0


@pytest.mark.parametrize("probe", ["val", "train"])
def test_no_hook_outlives_an_exception(probe: str) -> None:
    module = Own(fails_at=1)
    with pytest.raises(ValueError, match="in between"):
        fit(module, loaders(), Diagnostics(every_n_steps=1, probe=probe))
    assert hooks(module) == 0


def test_nothing_of_the_run_changes() -> None:
    weights = []
    for callbacks in ([], [Diagnostics(every_n_steps=1)]):
        data = load()
        module = build(data, norm="batch", dropout=0.3, activation="tanh")
        fit(module, data, *callbacks, max_epochs=2)
        weights.append([tensor.clone() for tensor in (*module.parameters(), *module.buffers())])
    assert all(torch.equal(one, two) for one, two in zip(*weights, strict=True))


@pytest.mark.parametrize("window", [1, 7, 1000])
def test_the_training_loss_of_a_pass_is_its_epochs_mean(window: int) -> None:
    """Whatever the logging window; an epoch's mean is over rows, and its last batch is smaller."""
    data, diagnostics, spy = load(), Diagnostics(every_n_steps=1), Spy()
    fit(build(data), data, diagnostics, spy, max_epochs=2, log_every_n_steps=window)
    rows = {step: len(batches[0].target) for step, batches in spy.batches.items()}
    losses = dict(diagnostics.evidence.series("train/loss"))
    for at, found in enumerate(diagnostics.evidence.epochs):
        steps = range(at * STEPS + 1, (at + 1) * STEPS + 1)
        expected = sum(losses[step] * rows[step] for step in steps) / sum(rows[step] for step in steps)
        assert found.values["train/loss"] == pytest.approx(expected, rel=1e-6)  # each loss was a float32


def test_a_sanity_check_is_no_pass() -> None:
    diagnostics = Diagnostics()
    fit(Own(), loaders(), diagnostics, num_sanity_val_steps=2)
    assert [one.step for one in diagnostics.evidence.epochs] == [5]


def test_fast_dev_run() -> None:
    data, diagnostics = load(), Diagnostics()
    fit(build(data), data, diagnostics, fast_dev_run=True)
    assert [one.step for one in diagnostics.evidence.steps] == [1]


def test_without_groups_nothing_is_measured(tmp_path: Path) -> None:
    data, spy, diagnostics = load(), Spy(), Diagnostics(groups=[])
    logger = MetricsCSV(tmp_path / "metrics.csv")
    fit(build(data), data, spy, diagnostics, logger=logger)
    assert not any(spy.hooks.values())
    assert diagnostics.evidence.steps == []
    assert not any(column.startswith(("grad", "update", "signal", "units", "init")) for column in logger.columns)


def test_a_module_without_an_mlp_is_refused() -> None:
    class Other(Own):
        def __init__(self) -> None:
            super().__init__()
            self.model = nn.Linear(6, 3)  # type: ignore[assignment]

    with pytest.raises(UserError, match="diagnostics: Other holds no mlp_lab MLP"):
        fit(Other(), loaders(), Diagnostics())


class Save(L.Callback):
    """Saves a checkpoint after a step, as `LastCheckpoint` does."""

    def __init__(self, step: int, path: Path) -> None:
        self.step, self.path = step, path

    def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)


@pytest.mark.parametrize("step", [5, 15, 30])
def test_a_resumed_run_goes_on_as_if_it_had_not_stopped(step: int, tmp_path: Path) -> None:
    whole, resumed = MetricsCSV(tmp_path / "whole.csv"), MetricsCSV(tmp_path / "resumed.csv")
    path, runs = tmp_path / "checkpoint.ckpt", []
    for logger, options in ((whole, [Save(step, path)]), (resumed, [])):
        data, diagnostics = load(), Diagnostics(every_n_steps=4)
        module = build(data, activation="tanh")
        trainer = L.Trainer(**{**QUIET, "max_epochs": 2, "logger": logger, "callbacks": [diagnostics, *options]})
        trainer.fit(module, datamodule=data, ckpt_path=None if options else str(path), weights_only=True)
        runs.append(diagnostics.evidence)
    assert runs[0].facts == runs[1].facts
    for one, two in ((runs[0].steps, runs[1].steps), (runs[0].epochs, runs[1].epochs)):
        assert [(record.step, record.epoch) for record in one] == [(record.step, record.epoch) for record in two]
        for first, second in zip(one, two, strict=True):
            assert_equal(second.values, {k: v for k, v in first.values.items() if not math.isnan(v)}, 0.0)
    late = [row for row in whole.read() if int(row["step"]) > step]
    again = [{name: row.get(name, "") for name in late[0]} for row in resumed.read()]
    assert again == late


class Student(L.LightningModule):
    """What a student writes: an `nn.Sequential` with the weights of a given MLP."""

    def __init__(self, mlp: MLP) -> None:
        super().__init__()
        parts: list[nn.Module] = []
        for block in mlp.blocks:
            parts += [one for one in (block.linear, block.norm, nn.Tanh()) if isinstance(one, nn.Module)]
        self.net = nn.Sequential(*parts, mlp.head)

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return F.cross_entropy(self.net(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.log("val/loss", F.cross_entropy(self.net(batch[0]), batch[1]))

    def configure_optimizers(self) -> Any:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.parametrize("norm", ["none", "layer", "batch"])
def test_sequential_of_a_user_is_measured_like_the_mlp_with_its_weights(norm: str) -> None:
    found = []
    for by_hand in (False, True):
        torch.manual_seed(0)
        module: Any = Own()
        module.model = MLP(6, 3, depth=3, width=8, activation="tanh", norm=norm)
        diagnostics = Diagnostics(every_n_steps=2)
        trained = Student(module.model) if by_hand else module
        fit(trained, loaders(), diagnostics, max_epochs=2)
        assert not hooks(trained)
        found.append(diagnostics.evidence)
    mine, students = found
    assert students.facts.norm == norm
    assert (students.facts.activation, students.facts.widths) == ("tanh", (8, 8, 8))
    assert len(students.steps) == len(mine.steps) > 5
    for one, other in zip(students.steps + students.epochs, mine.steps + mine.epochs, strict=True):
        assert_equal(one.values, other.values, 1e-5)


@pytest.mark.filterwarnings("ignore:.*training loop may be.*")
def test_adam_of_a_user_in_float16_is_told_its_eps() -> None:
    class Half(Student):
        def configure_optimizers(self) -> Any:
            return torch.optim.Adam(self.parameters(), foreach=False)

    diagnostics = Diagnostics(every_n_steps=2)
    module = Half(MLP(6, 3, depth=2, width=8, activation="tanh"))
    with suppress(NonFiniteError):
        fit(module, loaders(), diagnostics, max_epochs=1, precision="16-true")
    assert diagnostics.verdicts[0].code == "small_eps"
