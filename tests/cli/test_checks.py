from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pandas as pd
import pytest
import torch

from mlp_lab.cli.checks import check_monitor, check_training, read_hyperparameters
from mlp_lab.data.tabular import TabularDataModule
from mlp_lab.errors import UserError
from mlp_lab.training.module import MLPModule
from tests.cli.conftest import Bench, write_table


@pytest.fixture
def data(here: Path) -> TabularDataModule:
    """48 training rows in batches of 8."""
    return TabularDataModule(path=str(write_table(here / "table.csv")), target="y", batch_size=8, verbose=False)


def trainer(**settings: Any) -> Any:
    usual = {
        "max_epochs": 1,
        "max_steps": -1,
        "limit_train_batches": 1.0,
        "limit_val_batches": 1.0,
        "log_every_n_steps": 50,
        "accumulate_grad_batches": 1,
        "val_check_interval": 1.0,
        "check_val_every_n_epoch": 1,
        "world_size": 1,
        "precision": "32-true",
        "checkpoint_callbacks": [],
    }
    return SimpleNamespace(**usual | settings)


@pytest.mark.parametrize(
    ("size", "world_size", "limit", "drop_last", "valid"),
    [
        (47, 1, 1.0, False, False),  # 48 = 47 + 1
        (47, 1, 1.0, True, True),
        (47, 1, 1, False, True),  # the last batch is never reached
        (47, 1, 2, False, False),
        (46, 1, 1.0, False, True),
        (46, 2, 1.0, False, False),  # two rows on two processes
        (48, 1, 1.0, False, True),
        (1, 1, 1.0, False, False),
        (3, 2, 1.0, False, False),
    ],
)
def test_batch_norm_needs_two_rows_in_every_share_of_a_batch(
    size: int, world_size: int, limit: float, drop_last: bool, valid: bool, data: TabularDataModule
) -> None:
    data.batch_size, data.drop_last = size, drop_last
    model = MLPModule(data.spec_dict, depth=1, width=4, norm="batch")
    setting = trainer(world_size=world_size, limit_train_batches=limit)
    if valid:
        check_training(setting, model, data)
    else:
        with pytest.raises(UserError, match=rf"data\.batch_size: {size} .* one row"):
            check_training(setting, model, data)
        check_training(setting, MLPModule(data.spec_dict, depth=1, width=4, norm="layer"), data)


@pytest.mark.parametrize(
    ("interval", "every", "limit", "valid"),
    [(6, 1, 1.0, True), (7, 1, 1.0, False), (7, None, 1.0, True), (3, 1, 2, False)],
)
def test_validation_interval_lies_within_an_epoch(
    interval: int, every: int | None, limit: float, valid: bool, data: TabularDataModule
) -> None:
    setting = trainer(val_check_interval=interval, check_val_every_n_epoch=every, limit_train_batches=limit)
    model = MLPModule(data.spec_dict, depth=0)
    if valid:
        check_training(setting, model, data)
    else:
        with pytest.raises(UserError, match=rf"trainer\.val_check_interval: {interval}"):
            check_training(setting, model, data)


def test_hyperparameters_are_read_without_trusting_the_file(tmp_path: Path) -> None:
    path = tmp_path / "a.ckpt"
    torch.save({"hyper_parameters": {"depth": 2}}, path)
    assert read_hyperparameters(str(path)) == {"depth": 2}
    torch.save({"state_dict": {}}, path)
    with pytest.raises(UserError, match="is not a checkpoint"):
        read_hyperparameters(str(path))


MONITORS = {  # task, metric, targets of the validation rows -> why the metric has no value on them
    ("binary", "auroc", "no no"): "on the 2 validation rows, which are all of class 'no'",
    ("binary", "auprc", "yes"): "on the 1 validation row, which is of class 'yes'",
    ("binary", "auroc", "no yes"): None,
    ("binary", "loss", "no no"): None,
    ("regression", "r2", "1.5"): "on the 1 validation row, on which 'y' does not vary",
    ("regression", "r2", "2 2 2"): "on the 3 validation rows, on which 'y' does not vary",
    ("regression", "r2", "1 2"): None,
    ("regression", "rmse", "2 2"): None,
}


@pytest.mark.parametrize(("task", "metric", "targets"), MONITORS)
def test_monitor_without_a_value_on_the_validation_rows_is_refused(
    task: str, metric: str, targets: str, here: Path
) -> None:
    train = ["no", "yes", "no", "yes"] if task == "binary" else [1, 2, 3, 4]
    known = targets.split()
    frame = pd.DataFrame(
        {"x": range(4 + len(known)), "y": [*train, *known], "part": ["train"] * 4 + ["val"] * len(known)}
    )
    frame.to_csv("table.csv", index=False)
    data = TabularDataModule("table.csv", target="y", task=task, split_column="part", batch_size=4, verbose=False)
    if (why := MONITORS[task, metric, targets]) is None:
        check_monitor(f"val/{metric}", data)
        return
    line = f"study.metric: val/{metric} has no value {why}; use val/loss, or validate on more rows (data.split)"
    with pytest.raises(UserError, match=re.escape(line)):
        check_monitor(f"val/{metric}", data, key="study.metric")
    check_monitor(f"val/{metric}", data, 0)  # no validation at all


def test_monitor_is_judged_by_the_rows_that_are_validated(here: Path) -> None:
    rows = [("train", "no"), ("train", "yes"), ("val", "no"), ("val", "no"), ("val", "yes")]
    pd.DataFrame(rows, columns=["part", "y"]).assign(x=range(5)).to_csv("table.csv", index=False)
    data = TabularDataModule(
        "table.csv", target="y", split_column="part", batch_size=2, eval_batch_size=1, verbose=False
    )
    check_monitor("val/auroc", data, 3)
    check_monitor("val/auroc", data, 1.0)
    for limit in (2, 0.7):
        with pytest.raises(UserError, match="on the 2 validation rows"):
            check_monitor("val/auroc", data, limit)


@pytest.mark.parametrize("seed", ["true", "false"])
def test_seed_of_the_environment_that_is_no_number_is_refused(
    seed: str, bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PL_GLOBAL_SEED", "x")
    answer = bench("fit", "--seed_everything", seed)
    assert answer == (2, "", "error: PL_GLOBAL_SEED: 'x' is not a seed; accepted: 0 to 4294967295\n")
