"""Every input has its own file, and none replaces a run's."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest

from tests.cli.conftest import Bench, write_table


@pytest.fixture
def run(here: Path, finished_run: Path) -> Path:
    """A copy of a finished run in the working directory, and tables of 5 and 6 rows with one name."""
    for folder, rows in {"old": 5, "new": 6}.items():
        (here / folder).mkdir()
        write_table(here / folder / "more rows.csv", rows=rows)
    return Path(shutil.copytree(finished_run, here / "run"))


def scores(path: Path) -> dict[str, object]:
    return json.loads(path.read_text())


def test_test_of_another_table_leaves_the_runs_own(run: Path, bench: Bench) -> None:
    answer = bench("test", "--run", "run")
    own = (run / "test.json").read_bytes()
    assert (answer.status, answer.last_line) == (0, str(run / "test.json"))
    for folder, name in {"old": "test-more_rows.json", "new": "test-more_rows-2.json"}.items():
        for _ in range(2):  # again into the same file
            answer = bench("test", "--run", "run", "--data.path", f"{folder}/more rows.csv")
            assert (answer.status, answer.last_line) == (0, str(run / name))
    assert (run / "test.json").read_bytes() == own
    assert [scores(run / f"test-more_rows{end}.json")["rows"] for end in ("", "-2")] == [5, 6]
    reads = json.loads((run / "provenance.json").read_text())["test_reads"]
    files = ["test.json", *["test-more_rows.json"] * 2, *["test-more_rows-2.json"] * 2]
    assert [read["file"] for read in reads] == files


def test_copy_of_the_table_is_the_runs_own_input(run: Path, finished_run: Path, bench: Bench) -> None:
    shutil.copy(finished_run.parent / "table.csv", "copy.csv")
    assert bench("predict", "--run", "run", "--data.path", "copy.csv").last_line == str(run / "predictions.csv")


def test_predictions_of_two_tables_lie_side_by_side_and_are_noted(run: Path, bench: Bench) -> None:
    for words in ([], ["--data.path", "old/more rows.csv"], ["--data.path", "new/more rows.csv"]):
        assert bench("predict", "--run", "run", *words).status == 0
    lengths = [len(pd.read_csv(run / f"predictions{end}.csv")) for end in ("", "-more_rows", "-more_rows-2")]
    assert lengths == [6, 5, 6]
    reads = json.loads((run / "provenance.json").read_text())["test_reads"]
    assert [(read["command"], read["rows"]) for read in reads] == [("predict", rows) for rows in lengths]


@pytest.mark.parametrize(("command", "name"), [("test", "own.json"), ("predict", "own.csv")])
def test_output_names_the_file(command: str, name: str, run: Path, here: Path, bench: Bench) -> None:
    before = {path.name for path in run.iterdir()}
    answer = bench(command, "--run", "run", "--output", name)
    assert (answer.status, answer.last_line) == (0, str(here / name))
    assert (here / name).exists()
    assert {path.name for path in run.iterdir()} == before


@pytest.mark.parametrize(("command", "name"), [("test", "test.json"), ("predict", "predictions.csv")])
def test_run_dir_says_where_the_result_is_written(command: str, name: str, run: Path, here: Path, bench: Bench) -> None:
    answer = bench(command, "--run", "run", "--run.dir", "else/where")
    assert (answer.status, answer.last_line) == (0, str(here / "else" / "where" / name))
    assert not (run / name).exists()
    reads = json.loads((run / "provenance.json").read_text())["test_reads"]
    assert reads[0]["file"] == str(here / "else" / "where" / name)


def test_test_writes_where_it_is_told_without_a_run(run: Path, here: Path, bench: Bench) -> None:
    words = ["--config", "run/config.yaml", "--ckpt_path", "run/checkpoints/last.ckpt"]
    assert bench("test", *words, "--output", "mine.json").last_line == str(here / "mine.json")
    assert scores(here / "mine.json")["checkpoint"] == str(run / "checkpoints" / "last.ckpt")


def test_score_that_is_not_defined_is_null_and_keeps_its_key(run: Path, here: Path, bench: Bench) -> None:
    lines = [line for line in (here / "new" / "more rows.csv").read_text().splitlines() if not line.endswith("yes")]
    (here / "one.csv").write_text("\n".join(lines) + "\n")
    assert bench("test", "--run", "run", "--data.path", "one.csv").status == 0
    found = json.loads((run / "test-one.json").read_text(), parse_constant=lambda word: pytest.fail(word))
    assert found["test/auroc"] is None
    assert isinstance(found["test/loss"], float)
