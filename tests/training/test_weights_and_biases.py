"""Offline W&B runs through the command line, read back with W&B's own tool and compared with `metrics.csv`."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import wandb
import yaml

from mlp_lab.cli.main import main
from mlp_lab.training.module import MLPModule
from mlp_lab.training.weights_and_biases import STEP, WandbRun, masked

ROOT = Path(__file__).parents[2]
WORDS = [
    "--config",
    str(ROOT / "configs" / "digits.yaml"),
    "--config",
    str(ROOT / "configs" / "wandb.yaml"),
    "--data.verbose=false",
    "--data.batch_size=64",
    "--model.width=16",
    "--trainer.enable_progress_bar=false",
    "--trainer.max_epochs=3",
    "--trainer.log_every_n_steps=10",
    "--trainer.logger.init_args.tags=[mlp, test]",
    "--trainer.logger.init_args.group=lesson",
]


def segments(run: Path) -> list[Path]:
    return sorted(run.glob("wandb/offline-run-*/*.wandb"))


def records(file: Path) -> list[dict[str, Any]]:
    """Returns the transaction log of a W&B run, one dict a record."""
    tool = Path(sys.executable).with_name("wandb")
    lines = subprocess.run([tool, "leet", "inspect", "--json", file], capture_output=True, text=True, check=True).stdout
    return [json.loads(line) for line in lines.splitlines()]


def history(log: list[dict[str, Any]]) -> list[dict[str, float]]:
    """Returns the logged rows without W&B's own columns and those that follow from the others."""
    items = [record["history"]["item"] for record in log if record["type"] == "history"]
    return [{name: value for name, value in item.items() if not name.startswith(("_", "diagnosis/"))} for item in items]


def table(run: Path) -> list[dict[str, float]]:
    """Returns `metrics.csv` with the step under W&B's name."""
    with (run / "metrics.csv").open(newline="") as file:
        rows = [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(file)]
    return [{STEP: row.pop("step"), **row} for row in rows]


@pytest.fixture(autouse=True, scope="module")
def settings() -> Iterator[None]:
    """Lets W&B read the environment anew, before and after: it does so once in a process, whichever test came first."""
    wandb.teardown()
    yield
    wandb.teardown()


@pytest.fixture(scope="module")
def run(
    tmp_path_factory: pytest.TempPathFactory, command: Any, killed_command: Any, environment: None, settings: None
) -> Path:
    """A run that was killed inside its third epoch and has gone on: two segments."""
    directory = tmp_path_factory.mktemp("wandb") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_MODE", "offline")
        moment = ("mlp_lab.training.module:MLPModule", "training_step", 60, "before")
        killed_command(*moment, "fit", *WORDS, f"--run.dir={directory}")
        command("fit", "--resume", directory)
    return directory


@pytest.fixture(scope="module")
def log(run: Path) -> list[dict[str, Any]]:
    """The records of the segment that ended well."""
    return records(segments(run)[-1])


def test_history_equals_metrics_csv(run: Path, log: list[dict[str, Any]]) -> None:
    rows = table(run)
    losses = [row for row in rows if "train/loss" in row or "val/loss" in row]
    assert len(losses) == 3 * (1 + 2 + 1)  # per epoch of 23 steps: two or three windows, the last one, the validation
    assert history(log) == rows


def test_a_resumed_run_writes_a_second_segment_of_the_same_id(run: Path, log: list[dict[str, Any]]) -> None:
    """The first ends wherever W&B had written to; `test_history_equals_metrics_csv` shows that the second is whole."""
    run_id = json.loads((run / "provenance.json").read_text())["run_id"]
    assert [file.name for file in segments(run)] == [f"run-{run_id}.wandb"] * 2
    assert next(record["run"]["run_id"] for record in log if record["type"] == "run") == run_id


def test_config_and_labels(run: Path, log: list[dict[str, Any]]) -> None:
    start = next(record["run"] for record in log if record["type"] == "run")
    config = {name: value for name, value in start["config"]["update"].items() if name != "_wandb"}
    assert config == yaml.safe_load((run / "config.yaml").read_text())
    assert (start["tags"], start["run_group"], start["job_type"]) == (["mlp", "test"], "lesson", "fit")
    assert start["project"] == "mlp_lab"


def test_summaries_are_the_best_values(run: Path, log: list[dict[str, Any]]) -> None:
    summary: dict[str, Any] = {}
    for record in log:
        if record["type"] == "summary":
            summary |= record["summary"]["update"]
    rows = table(run)
    for name, pick, key in (("val/loss", min, "min"), ("val/accuracy", max, "max"), ("train/loss", min, "min")):
        assert summary[name][key] == pick(row[name] for row in rows if name in row)
    best = min((row for row in rows if "val/loss" in row), key=lambda row: row["val/loss"])
    assert {f"best/{name}": value for name, value in best.items() if name.startswith("val/")}.items() <= summary.items()


def test_the_run_is_finished_and_stays_in_its_directory(run: Path, log: list[dict[str, Any]]) -> None:
    assert [record["exit"]["exit_code"] for record in log if record["type"] == "exit"] == [0]
    assert not Path("wandb").exists()


@pytest.mark.parametrize(
    ("number", "job", "status", "kinds"),
    [
        (signal.SIGTERM, None, 143, ["exit"]),
        (signal.SIGINT, None, 130, ["exit"]),
        (signal.SIGUSR1, "12", 0, ["preempting", "exit"]),
    ],
)
def test_run_that_a_signal_ends_is_not_marked_as_finished(
    number: signal.Signals,
    job: str | None,
    status: int,
    kinds: list[str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setattr("mlp_lab.cli.endings.requeue", lambda job: None)
    monkeypatch.setattr(MLPModule, "on_train_epoch_start", lambda _: os.kill(os.getpid(), number), raising=False)
    if job is not None:
        monkeypatch.setenv("SLURM_JOB_ID", job)
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    assert main(["fit", *WORDS, f"--run.dir={tmp_path / 'run'}"]) == status
    signal.signal(signal.SIGINT, before)
    ends = [record for record in records(segments(tmp_path / "run")[-1]) if record["type"] in ("preempting", "exit")]
    assert [record["type"] for record in ends] == kinds
    assert ends[-1]["exit"]["exit_code"] == (status or 143)


def test_without_a_login_it_says_so_in_one_line_and_leaves_no_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    wandb.teardown()
    monkeypatch.delenv("WANDB_MODE", raising=False)
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("HOME", str(tmp_path))
    assert main(["fit", *WORDS, f"--run.dir={tmp_path / 'run'}"]) == 2
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: trainer.logger: W&B did not start (")
    assert "wandb login" in error
    assert "WANDB_MODE=offline" in error
    assert not (tmp_path / "run" / "config.yaml").exists()
    wandb.teardown()  # the tests that follow here are offline again


def test_the_best_checkpoint_becomes_an_artifact_when_online(tmp_path: Path) -> None:
    """The upload itself needs a server: a stand-in for the run records what it would be given."""
    given: list[Any] = []
    stand_in = SimpleNamespace(
        id="mlp-1",
        offline=False,
        summary={},
        log_artifact=lambda artifact, aliases: given.append((artifact, aliases)),
        finish=lambda status: given.append("finished"),
    )
    (tmp_path / "best.ckpt").write_bytes(b"weights")
    logger = WandbRun()
    logger._experiment = stand_in  # type: ignore[assignment]
    logger.finish(tmp_path / "best.ckpt", {"best/val/loss": 0.5})
    (artifact, aliases), finished = given
    assert (artifact.name, artifact.type, aliases, finished) == ("model-mlp-1", "model", ["best"], "finished")
    assert list(artifact.manifest.entries) == ["best.ckpt"]
    assert stand_in.summary == {"best/val/loss": 0.5}
    assert logger._experiment is None


def test_nothing_is_uploaded_when_told_so(tmp_path: Path) -> None:
    given: list[Any] = []
    stand_in = SimpleNamespace(id="1", offline=False, summary={}, log_artifact=given.append, finish=lambda status: None)
    logger = WandbRun(log_checkpoint=False)
    logger._experiment = stand_in  # type: ignore[assignment]
    logger.finish(tmp_path / "best.ckpt", {})
    assert given == []


def test_replay_is_for_offline_runs_only() -> None:
    given: list[Any] = []
    logger = WandbRun()
    logger._experiment = SimpleNamespace(offline=False, log=given.append)  # type: ignore[assignment]
    logger.replay([{"step": "1", "epoch": "0", "train/loss": "0.5"}])
    assert given == []


def test_run_whose_process_has_ended_is_ended_by_another(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise ConnectionResetError("Connection lost")

    logged: list[object] = []
    given: list[int] = []
    lost = SimpleNamespace(offline=True, log=broken, summary=SimpleNamespace(update=broken))
    other = SimpleNamespace(offline=True, log=logged.append, summary={}, finish=given.append)
    logger = WandbRun()
    logger._experiment = lost  # type: ignore[assignment]
    monkeypatch.setattr(logger, "_start", lambda: other)
    for step in (1, 2):
        logger.log_metrics({"train/loss": 1.0}, step)
    logger.finish(None, {"best/val/loss": 0.5}, 143)
    assert (other.summary, given, logged, logger._experiment) == ({"best/val/loss": 0.5}, [143], [], None)


def test_config_that_is_sent_has_no_password() -> None:
    config = {"logger": [{"uri": "https://me:secret@host"}], "depth": 2}
    assert masked(config) == {"logger": [{"uri": "https://me@host"}], "depth": 2}
