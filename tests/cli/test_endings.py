"""What is told of a run that ends before its training does; whole runs are in `tests/training/test_termination.py`."""

from __future__ import annotations

import signal
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mlp_lab.cli.endings import end_by_signal, finish_loggers, how_to_go_on, kept_state
from mlp_lab.errors import Terminated
from mlp_lab.training.tracking import RunDirectory
from tests.cli.conftest import Bench, write_config, write_table
from tests.disk import full_disk


@pytest.fixture
def run(here: Path) -> RunDirectory:
    run = RunDirectory(here / "run")
    run.best.parent.mkdir(parents=True)
    return run


def test_advice_and_kept_state_name_the_directory_as_seen_from_here(run: RunDirectory) -> None:
    assert (how_to_go_on(None), how_to_go_on(run)) == ("nothing was written",) * 2
    assert (kept_state(None), kept_state(run)) == ("no checkpoint had been written",) * 2
    run.config.touch()
    run.best.touch()
    assert how_to_go_on(run) == "go on with `python -m mlp_lab fit --resume run`"
    assert kept_state(run) == "run/checkpoints/best.ckpt holds the last good state"
    run.last.touch()
    assert kept_state(run) == "run/checkpoints/last.ckpt holds the last good state"


def test_advice_for_directory_with_space_can_be_pasted_into_a_shell(here: Path) -> None:
    run = RunDirectory(here / "my run")
    run.path.mkdir()
    run.config.touch()
    assert how_to_go_on(run) == "go on with `python -m mlp_lab fit --resume 'my run'`"


def test_process_other_than_the_first_ends_as_it_was_told(run: RunDirectory) -> None:
    stop, trainer = Terminated(signal.SIGTERM), SimpleNamespace(is_global_zero=False)
    assert end_by_signal(stop, trainer, run) is stop  # type: ignore[arg-type]


def test_trainer_without_a_best_checkpoint_has_no_record_to_finish() -> None:
    trainer: Any = SimpleNamespace(checkpoint_callbacks=[], loggers=[pytest.fail])
    finish_loggers(trainer, 143)


def test_fit_on_full_disk_trains_to_the_end_and_exits_5_with_the_names_of_the_files(bench: Bench, here: Path) -> None:
    write_table(here / "table.csv")
    config = write_config(here / "c.yaml", model="{depth: 1, width: 64}")
    words = ("fit", "--config", config, "--run.dir", "run", "--trainer.max_epochs", "2")
    with full_disk(12_000):
        answer = bench(*words)
    assert answer.status == 5
    assert answer.out.count("could not be written (File too large); the training continues") == 2
    assert answer.err.splitlines() == [
        "error: run: the newest state could not be written to best.ckpt (File too large), last.ckpt (File too large); "
        "free some space and train again"
    ]
    assert answer.last_line == str(here / "run")
    assert len((here / "run/metrics.csv").read_text().splitlines()) > 2
    assert list((here / "run/checkpoints").iterdir()) == []
    assert bench("fit", "--resume", "run").status == 0
