"""Which run a requeued job goes on with."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from lightning.fabric.utilities.rank_zero import rank_zero_only

from mlp_lab.cli.restart import begun_run
from tests.cli.conftest import Bench, write_config, write_table

WORDS = ["--config", "config.yaml"]


@pytest.fixture
def in_job(monkeypatch: pytest.MonkeyPatch) -> None:
    """The variables of a command in a batch script of four tasks, and what they must not change."""
    monkeypatch.setattr(rank_zero_only, "rank", 0)
    for name, value in {"JOB_ID": "7", "NTASKS": "4", "JOB_NAME": "job.sh", "PROCID": "0"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)


@pytest.fixture
def table(here: Path) -> Path:
    write_table(here / "table.csv")
    write_config(here / "config.yaml")
    return here


def write_run(folder: Path, job: str | None, words: list[str]) -> None:
    folder.mkdir(parents=True)
    (folder / "config.yaml").touch()
    facts = {"command": ["python", "-m", "mlp_lab", "fit", *words]} | ({"slurm_job": job} if job else {})
    (folder / "provenance.json").write_text(json.dumps(facts))


def test_restarted_command_finds_the_newest_run_of_its_job_and_words(here: Path, in_job: None) -> None:
    for name, job, words in [
        ("20260101-000000-aaaa", "7", WORDS),
        ("20260102-000000-aaaa", "7", WORDS),
        ("20260103-000000-aaaa", "7", ["--model.depth", "3"]),
        ("20260104-000000-aaaa", "8", WORDS),
        ("20260105-000000-aaaa", None, WORDS),
    ]:
        write_run(here / "runs" / "it" / name, job, words)
    (here / "runs" / "it" / "20260106-000000-aaaa").mkdir()
    with pytest.MonkeyPatch.context() as patch:
        assert begun_run(WORDS, None) is None  # the job's first start
        patch.setenv("SLURM_RESTART_COUNT", "1")
        found = begun_run(WORDS, None)
        assert found is not None
        assert found.path.name == "20260102-000000-aaaa"
        assert begun_run(WORDS, str(here / "runs" / "it" / "20260104-000000-aaaa")) is None
        assert begun_run(["--model.depth", "4"], None) is None


@pytest.mark.parametrize("flags", [[], ["--run.dir", "mine"], ["--run.dir=mine"]])
def test_restarted_fit_goes_on_in_its_directory(
    flags: list[str], table: Path, in_job: None, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["fit", *WORDS, *flags]
    monkeypatch.setattr("sys.argv", ["mlp_lab", *words])
    first = bench(*words)
    assert first.status == 0, first.err
    again = bench(*words)  # the same job, not started again: another run, or a refusal
    assert again.status == (2 if flags else 0)
    assert again.last_line != first.last_line if not flags else "already holds a run" in again.err
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    run = first.last_line if flags else again.last_line
    restarted = bench(*words)
    assert (restarted.status, restarted.last_line) == (0, run), restarted.err
    assert restarted.out.splitlines()[0] == f"Slurm has started this job again: it goes on with {run}"


def test_restarted_fit_finds_the_directory_that_its_config_or_a_variable_names(
    here: Path, in_job: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_RESTART_COUNT", "1")
    monkeypatch.setenv("SCRATCH", str(here / "scratch"))
    write_config(here / "config.yaml")
    (here / "place.yaml").write_text("run:\n  dir: $SCRATCH/mine\n")
    words = [*WORDS, "--config", "place.yaml"]
    write_run(here / "scratch" / "mine", "7", words)
    write_run(here / "scratch" / "flag", "7", words)
    for directory, expected in ((None, "mine"), ("$SCRATCH/flag", "flag")):
        found = begun_run(words, directory)
        assert found is not None
        assert found.path == (here / "scratch" / expected).resolve()


@pytest.mark.parametrize("command", ["validate", "test", "predict"])
def test_command_in_an_interactive_allocation_runs_as_one_process(
    command: str, finished_run: Path, in_job: None, bench: Bench, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import shutil

    run = shutil.copytree(finished_run, tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    answer = bench(command, "--run", run)
    assert (answer.status, answer.err) == (0, "")


def test_sweep_in_an_interactive_allocation_runs_as_one_process(table: Path, in_job: None, bench: Bench) -> None:
    (table / "sweep.yaml").write_text(
        "base: config.yaml\ntrials: 2\nbackend: serial\nstudy: {pruner: none}\n"
        "space:\n  model.width: {type: int, low: 2, high: 4}\n"
    )
    answer = bench("sweep", "--config", "sweep.yaml")
    assert answer.status == 0, answer.err
    assert "2 of 2 trials" in answer.out
