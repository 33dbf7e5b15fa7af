"""Every cure that an error prints works when it is pasted: the same command with the printed flags gets further."""

from __future__ import annotations

import re
import shlex
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from mlp_lab.diagnostics import fixes
from mlp_lab.diagnostics.evidence import Facts
from mlp_lab.flags import flag
from tests.cli.conftest import Bench, write_config
from tests.slow import slow_but

NAMES = ["2020", "Unnamed: 3", "a, b", "no", "it's", "tags"]  # of columns, as people have them
_FLAG = re.compile(r"--[a-z_]+\.[a-z_.]+(?:=| )(?:'[^']*'(?:\"'\"'[^']*')*|[^\s;,)?]+)")


def printed_flags(line: str) -> list[str]:
    """Returns the words of the flags in an error, as a shell parts them."""
    return [word for match in _FLAG.findall(line) for word in shlex.split(match)]


def table(rows: int = 60, **columns: Any) -> pd.DataFrame:
    rng = np.random.default_rng(0)
    x, y = rng.normal(size=(2, rows))
    label = np.where(x + y > 0, "yes", "no")
    return pd.DataFrame({"x": x, "z": y, **columns, "y": label})


def empty_columns(folder: Path) -> list[str]:
    table(**dict.fromkeys(NAMES, np.nan)).to_csv(folder / "t.csv", index=False)
    return []


def empty_column_beside_a_dropped_one(folder: Path) -> list[str]:
    table(gone=1.5, void=np.nan).to_csv(folder / "t.csv", index=False)
    return ["--data.drop", "gone"]


def lists(folder: Path) -> list[str]:
    columns = {name: [[1, 2]] * 60 for name in NAMES}
    table(**columns, blob=[b"x"] * 60, struct=[{"a": 1}] * 60).to_parquet(folder / "t.parquet")
    return ["--data.path", "t.parquet"]


def gaps_in_the_target(folder: Path) -> list[str]:
    frame = table()
    frame.loc[7, "y"] = None
    frame.to_csv(folder / "t.csv", index=False)
    return []


def no_target(folder: Path) -> list[str]:
    table().rename(columns={"y": "no"}).to_csv(folder / "t.csv", index=False)
    return ["--data.target", "null"]


def number_in_a_list_of_names(folder: Path) -> list[str]:
    table(**{"2020": 1.5, "tags": 2.5}).to_csv(folder / "t.csv", index=False)
    return ["--data.drop", "[2020, tags]"]


def boolean_in_a_list_of_names(folder: Path) -> list[str]:
    table(no=1.5, tags=2.5).to_csv(folder / "t.csv", index=False)
    return ["--data.drop", "[no, tags]"]


def mapping_for_a_name(folder: Path) -> list[str]:
    table(**{"Unnamed: 3": 1.5}).to_csv(folder / "t.csv", index=False)
    return ["--data.drop", "Unnamed: 3"]


def names_without_brackets(folder: Path) -> list[str]:
    table(p=1.5, q=2.5).to_csv(folder / "t.csv", index=False)
    return ["--data.drop", "p, q"]


def mapping_for_the_split_column(folder: Path) -> list[str]:
    table(**{"a: b": ["train", "train", "val"] * 20}).to_csv(folder / "t.csv", index=False)
    return ["--data.split_column", "a: b"]


def three_classes_for_binary(folder: Path) -> list[str]:
    table().assign(y=["a", "b", "c"] * 20).to_csv(folder / "t.csv", index=False)
    return ["--data.task", "binary"]


def two_targets_for_multiclass(folder: Path) -> list[str]:
    table(w=[0, 1, 1] * 20).assign(y=[0, 1] * 30).to_csv(folder / "t.csv", index=False)
    return ["--data.target", "[w, y]", "--data.task", "multiclass"]


def no_validation_rows(folder: Path) -> list[str]:
    table().to_csv(folder / "t.csv", index=False)
    return ["--data.split", "[1, 0, 0]"]


def last_batch_of_one_row(folder: Path) -> list[str]:
    table().to_csv(folder / "t.csv", index=False)
    return ["--model.norm", "batch", "--data.batch_size", "47"]


def batches_of_one_row(folder: Path) -> list[str]:
    table().to_csv(folder / "t.csv", index=False)
    return ["--model.norm", "batch", "--data.batch_size", "1"]


def long_validation_interval(folder: Path) -> list[str]:
    table().to_csv(folder / "t.csv", index=False)
    return ["--trainer.val_check_interval", "7"]


def no_bins(folder: Path) -> list[str]:
    table().to_csv(folder / "t.csv", index=False)
    return ["--model.encoder.numeric", "piecewise_linear"]


FAULTS: list[Callable[[Path], list[str]]] = [
    empty_columns,
    empty_column_beside_a_dropped_one,
    lists,
    gaps_in_the_target,
    no_target,
    number_in_a_list_of_names,
    boolean_in_a_list_of_names,
    mapping_for_a_name,
    names_without_brackets,
    mapping_for_the_split_column,
    three_classes_for_binary,
    two_targets_for_multiclass,
    no_validation_rows,
    last_batch_of_one_row,
    batches_of_one_row,
    long_validation_interval,
    no_bins,
]


@pytest.mark.parametrize("make", FAULTS, ids=lambda make: make.__name__)
def test_printed_cure_works_when_pasted(make: Callable[[Path], list[str]], here: Path, bench: Bench) -> None:
    words = make(here)
    write_config(here / "config.yaml", table="t.csv")
    command = ["fit", "--config", "config.yaml", *words]
    answer = bench(*command)
    assert answer.status == 2
    cures = [match.group() for match in _FLAG.finditer(answer.err.split(";", 1)[-1])] or _FLAG.findall(answer.err)
    assert cures, answer.err
    for cure in cures:  # each is one way out
        flags = shlex.split(cure)
        kept = command[: command.index(flags[0])] if "YAML reads" in answer.err else command  # a flag is replaced
        cured = bench(*kept, *flags)
        assert cured.status == 0, (answer.err, cure, cured.err)


def test_printed_yaml_works_in_the_file(here: Path, bench: Bench) -> None:
    number_in_a_list_of_names(here)
    config = write_config(here / "config.yaml", table="t.csv")
    text = config.read_text()
    config.write_text(text.replace("target: y", "target: y, drop: [2020, tags]"))
    answer = bench("summary", "--config", "config.yaml")
    written = re.search(r"write (\[.*\]) in a file", answer.err)
    assert written, answer.err
    config.write_text(text.replace("target: y", f"target: y, drop: {written[1]}"))
    assert bench("summary", "--config", "config.yaml").status == 0


def test_cure_for_gaps_in_the_target_of_a_new_table_works_on_the_run(
    here: Path, bench: Bench, finished_run: Path
) -> None:
    shutil.copytree(finished_run, here / "run")
    frame = table().rename(columns={"x": "a", "z": "b"}).assign(c="x")
    frame.loc[[3, 8], "y"] = None
    frame.to_csv(here / "new.csv", index=False)
    for command in ("test", "validate"):
        answer = bench(command, "--run", "run", "--data.path", "new.csv")
        assert answer.err.startswith("error: data.target: 'y' is missing in 2 of 60 rows, first in line 5 of new.csv; ")
        cured = bench(command, "--run", "run", "--data.path", "new.csv", *printed_flags(answer.err))
        assert cured.status == 0, cured.err
        assert ": 58 rows" in cured.out


@pytest.mark.parametrize("key", ["drop", "numeric", "categorical", "target", "split_column"])
@pytest.mark.parametrize("name", slow_but([*NAMES, "cancel_date", "null", "a#b"], "null", "a#b"))
def test_flag_for_a_column_of_any_name_is_accepted(key: str, name: str, here: Path, bench: Bench) -> None:
    parts = ["train", "train", "val"] * 20
    cells = {"categorical": ["u", "v"] * 30, "split_column": parts, "target": ["p", "q"] * 30}.get(key, [1.5, 2] * 30)
    frame = table(**{name: cells})
    frame.drop(columns="y" if key == "target" else []).to_csv(here / "t.csv", index=False)
    write_config(here / "config.yaml", table="t.csv")
    words = shlex.split(flag(f"data.{key}", name))
    answer = bench("summary", "--config", "config.yaml", *words, "--data.verbose", "true")
    assert answer.status == 0, answer.err
    listed = [line for line in answer.out.splitlines() if line.startswith(f"{name} ")]
    shown = "" if key in ("target", "split_column") else {"drop": "dropped"}.get(key, key)
    assert (shown in listed[0]) if shown else not listed


def test_zip_file_with_folders_and_hidden_files_is_read_as_the_table(here: Path, bench: Bench) -> None:
    with zipfile.ZipFile(here / "t.csv.zip", "w") as archive:
        archive.writestr("data/", "")
        archive.writestr("__MACOSX/data/._t.csv", "\0")
        archive.writestr("data/t.csv", table().to_csv(index=False))
    write_config(here / "config.yaml", table="t.csv.zip")
    assert bench("summary", "--config", "config.yaml").status == 0


FACTS = Facts(
    activation="sigmoid",
    init="standard",
    optimizer="sgd",
    lr=0.0123456789,
    momentum=0.9,
    weight_decay=0.1 / 3,
    planned_steps=700,
    planned_epochs=7,
    depth=8,
    widths=(4,) * 8,
    classes=2,
    dropout=0.55,
    data="TabularDataModule",
    input_rms=40.0,
)
FIXES: dict[str, list[str]] = {
    "safe_rate": fixes.safe_rate(FACTS, 7.0),
    "initialisation": fixes.initialisation(replace(FACTS, activation="tanh")),
    "input_scaling": fixes.input_scaling(FACTS, [1e-4, 1e-3]),
    "class_balance": fixes.class_balance(FACTS, 1e-3),
    "other_activation": fixes.signal_flow(FACTS, weights=False, activation=True),
    "norm": fixes.signal_flow(replace(FACTS, init=fixes.best_init(FACTS)), weights=False, activation=False),
    "residual": fixes.signal_flow(replace(FACTS, norm="layer"), weights=False, activation=False),
    "revival": fixes.revival(FACTS),
    "revival_of_a_bias": fixes.revival(replace(FACTS, bias=-1.0)),
    "more_capacity": fixes.more_capacity(FACTS),
    "regularisation": fixes.regularisation(FACTS),
    "regularisation_of_adam": fixes.regularisation(replace(FACTS, optimizer="adam")),
    "without": fixes.without(FACTS, ["dropout", "weight_decay", "mixup"]),
}


@pytest.mark.parametrize("name", FIXES)
def test_flags_of_a_verdict_are_accepted_when_pasted(name: str, here: Path, bench: Bench) -> None:
    table().to_csv(here / "t.csv", index=False)
    config = write_config(here / "config.yaml", table="t.csv", model="{depth: 8, width: 4}")
    assert FIXES[name]
    answer = bench("summary", "--config", config, *shlex.split(" ".join(FIXES[name])))
    assert answer.status == 0, answer.err
