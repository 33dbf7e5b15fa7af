"""What is kept of stacks in training, who may remove it, and that none of it is needed."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
import torch
from optuna.trial import FrozenTrial

from mlp_lab.sweep.chunks import ABSENT, CHECKPOINT, LONG, RECORD, Chunk, Chunks, fingerprint
from mlp_lab.sweep.population import Together
from mlp_lab.sweep.pruning import Nobody, Nothing
from mlp_lab.sweep.runs import Outcome, Point
from tests.disk import full_disk
from tests.sweep.digits import EPOCHS, Digits, dotted

ROOT = Path(__file__).parents[2]
ENVIRONMENT = {**os.environ, "PYTHONPATH": str(ROOT)}
POINTS = [Point(number=k, seed=k, settings={"model.depth": k, "model.width": [8, 4]}) for k in range(4)]
ONE: dict[str, Any] = {"metrics": ["val/loss"], "maximize": [False], "batch": 4}


def put(folder: Path, name: str, seeds: list[int], written: float, *, whole: bool = True) -> Path:
    """Writes a chunk as its keeper does."""
    points = [replace(point, number=ABSENT) for point in POINTS]
    kept = frozenset(seeds)
    chunk = Chunk(folder=folder / "chunks" / name, points=points, kept=kept, settings="", written=written)
    chunk.save()
    if whole:
        chunk.checkpoint.write_bytes(b"")
    return chunk.folder


def left(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.glob("chunks/*"))


def test_a_record_is_read_as_it_was_written(tmp_path: Path) -> None:
    chunk = Chunk.read(put(tmp_path, "a", [1, 2], 3.5))
    assert chunk is not None
    assert (chunk.kept, chunk.settings, chunk.written) == (frozenset({1, 2}), "", 3.5)
    assert chunk.points == [replace(point, number=ABSENT) for point in POINTS]
    (chunk.folder / RECORD).write_text("{")
    assert Chunk.read(chunk.folder) is None
    assert Chunk.read(tmp_path / "nowhere") is None


def test_points_go_on_from_the_newest_checkpoint_that_holds_them(tmp_path: Path) -> None:
    put(tmp_path, "old", [0, 1, 2], 1.0)
    put(tmp_path, "new", [1], 2.0)
    put(tmp_path, "young", [0, 1], 3.0, whole=False)  # its first checkpoint is being written
    other = replace(POINTS[0], settings={"model.depth": 9})  # of a study that was begun anew in the same directory
    chunks = Chunks(tmp_path)
    found = chunks.find([*POINTS[1:], other])
    assert [(chunk.folder.name, points) for chunk, points in found] == [("new", [POINTS[1]]), ("old", [POINTS[2]])]
    assert chunks.written() == {0: 1.0, 1: 2.0, 2: 1.0}
    assert Chunks(tmp_path / "nowhere").find(POINTS) == []


@pytest.mark.parametrize(
    ("unfinished", "names"),
    [
        ({0, 1}, ["new", "old", "young"]),
        ({0}, ["old", "young"]),  # of 1, `new` holds a newer state, but 0 is only in `old`
        ({1}, ["new", "young"]),
        ({2}, ["old"]),
        ({3}, []),
        (set(), []),
    ],
)
def test_what_no_point_needs_is_removed(unfinished: set[int], names: list[str], tmp_path: Path) -> None:
    put(tmp_path, "old", [0, 1, 2], 1.0)
    put(tmp_path, "new", [1], 2.0)
    put(tmp_path, "young", [0, 1], 3.0, whole=False)
    Chunks(tmp_path).clean(lambda: unfinished)
    assert left(tmp_path) == names
    assert (tmp_path / "chunks").exists() == bool(names)


def test_what_is_begun_while_the_study_is_asked_stays(tmp_path: Path) -> None:
    def unfinished() -> set[int]:
        put(tmp_path, "b", [1], 2.0)
        return set()

    put(tmp_path, "a", [0], 1.0)
    Chunks(tmp_path).clean(unfinished)
    assert left(tmp_path) == ["b"]


def test_a_folder_without_a_record_stays_while_it_may_be_in_the_making(tmp_path: Path) -> None:
    for name, age in (("young", 0.0), ("old", LONG + 1)):
        folder = tmp_path / "chunks" / name
        folder.mkdir(parents=True)
        (folder / f".{RECORD}.1.partial").write_text("{")
        os.utime(folder, (time.time() - age,) * 2)
    Chunks(tmp_path).clean(set)
    assert left(tmp_path) == ["young"]


# ---- in training -----------------------------------------------------------------------------------------------------


class Seen(Chunks):
    """Notes what is there whenever a point is told."""

    def __init__(self, folder: Path, seconds: float | None) -> None:
        self.lines: list[str] = []
        super().__init__(folder, seconds, self.lines.append)


def train(chunks: Chunks, builder: Digits | None = None) -> dict[int, Outcome]:
    told: list[Outcome] = []
    points = [Point(number=k, seed=k, settings=dotted({"width": 8 + k})) for k in range(2)]
    Together(builder or Digits(), chunks=chunks, fewest=1, **ONE).train(points, Nobody(history=Nothing()), told.append)
    assert [one.state for one in told] == ["complete"] * 2
    assert [one.epochs for one in told] == [EPOCHS] * 2
    return {one.number: one for one in told}


@pytest.fixture
def cut_off(tmp_path: Path) -> Iterator[Seen]:
    """The chunks of a sweep that was cut off: trained to its end, but with what it had kept on the way."""
    chunks = Seen(tmp_path, 1e-9)
    train(chunks)
    assert (len(left(tmp_path)), chunks.lines) == (1, [])
    return chunks


@pytest.mark.parametrize("seconds", [None, 0.0, 60.0])
def test_nothing_is_written_where_it_is_turned_off_or_too_soon(seconds: float | None, tmp_path: Path) -> None:
    train(Chunks(tmp_path, seconds))
    assert list(tmp_path.iterdir()) == []


def test_a_chunk_is_a_record_and_a_checkpoint(cut_off: Seen) -> None:
    assert sorted(path.name for path in cut_off.folder.glob("*/*")) == [CHECKPOINT, RECORD]
    train(cut_off)
    assert cut_off.lines == ["2 trials go on after epoch 1"]


@pytest.mark.parametrize("damage", ["torn", "empty", "no archive", "of another program", "other settings"])
def test_a_checkpoint_that_cannot_be_used_costs_nothing(damage: str, cut_off: Seen, tmp_path: Path) -> None:
    expected = train(Seen(tmp_path / "other", None))
    path = next(cut_off.folder.glob(f"*/{CHECKPOINT}"))
    if damage == "torn":
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    elif damage == "empty":
        path.write_bytes(b"")
    elif damage == "no archive":
        path.write_bytes(b"PK" * 99)
    elif damage == "of another program":
        torch.save({"state_dict": {}}, path)
    told = train(cut_off, Digits(log_every_n_steps=11) if damage == "other settings" else None)
    assert told[0].values == expected[0].values
    assert len(cut_off.lines) == 1
    assert "2 trials are trained from the start, for its checkpoint cannot be used (" in cut_off.lines[0]
    assert "\n" not in cut_off.lines[0]


def test_what_cannot_be_written_is_told_once_and_stops_nothing(tmp_path: Path) -> None:
    (tmp_path / "chunks").write_text("in the way")
    chunks = Seen(tmp_path, 1e-9)
    train(chunks)
    assert len(chunks.lines) == 1
    assert "no checkpoint could be written (" in chunks.lines[0]


def test_keeper_on_full_disk_fails_no_trial(tmp_path: Path) -> None:
    chunks = Seen(tmp_path, 1e-9)
    with full_disk(5_000):
        train(chunks)
    assert len(chunks.lines) == 1
    assert "no checkpoint could be written (File too large); the training goes on" in chunks.lines[0]


def test_runs_of_other_settings_have_another_fingerprint() -> None:
    prints = [
        fingerprint([Digits(**trainer).build(dotted(settings), 0)])
        for trainer, settings in [({}, {}), ({}, {}), ({"precision": "64-true"}, {}), ({}, {"lr": 0.1})]
    ]
    assert prints[0] == prints[1]
    assert len(set(prints)) == 3


# ---- processes -------------------------------------------------------------------------------------------------------


def command(folder: Path, *words: str) -> list[str]:
    """A sweep of one stack, in float64."""
    given = ["--config", str(ROOT / "sweeps/digits.yaml"), "--run.dir", str(folder), "--population", "6"]
    given += ["--trials", "6", "--trainer.max_epochs", "12", "--trainer.precision", "64-true"]
    return [sys.executable, "-m", "mlp_lab", "sweep", *given, "--diagnosis.prune", "[]", *words]


def run(words: list[str], folder: Path) -> str:
    done = subprocess.run(
        words, cwd=folder, env=ENVIRONMENT, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )
    assert done.returncode == 0, done.stdout
    return done.stdout


def finished(folder: Path) -> dict[int, FrozenTrial]:
    """Returns the trials that were told, by seed; all others were cut off and asked again."""
    study = optuna.load_study(study_name="digits", storage=f"sqlite:///{folder}/study.db")
    assert all(trial.state.is_finished() for trial in study.trials)
    done = [trial for trial in study.trials if "lost" not in trial.user_attrs and trial.state.name != "FAIL"]
    assert len({trial.user_attrs["seed"] for trial in done}) == len(done) == 6
    return {trial.user_attrs["seed"]: trial for trial in done}


@pytest.mark.slow
@pytest.mark.parametrize(("end", "backend"), [(signal.SIGKILL, "population"), (signal.SIGTERM, "slurm")])
def test_a_sweep_that_is_killed_goes_on_from_its_checkpoint(end: signal.Signals, backend: str, tmp_path: Path) -> None:
    words = [*command(tmp_path / "it", "--checkpoint_seconds", "0.01", "--study.retries", "1")]
    words += ["--backend", backend, "--cluster", "local"]
    for count in (1, 2):  # more often than there are retries
        with subprocess.Popen(
            words, cwd=tmp_path, env=ENVIRONMENT, stdout=subprocess.DEVNULL, start_new_session=True
        ) as it:
            while len(list(tmp_path.glob(f"it/chunks/*/{CHECKPOINT}"))) < 1 + (count > 1) and it.poll() is None:
                time.sleep(0.01)
            os.killpg(it.pid, end)
        assert it.returncode != 0
    out = run(words, tmp_path)
    if backend == "population":
        assert re.search(r"^\d trials? go(es)? on after epoch [1-9]", out, re.MULTILINE), out
    assert sorted(path.name for path in (tmp_path / "it").iterdir() if path.name != "workers") == [
        "best.yaml",
        "study.db",
        "trials.csv",
    ]
    run(command(tmp_path / "twin", "--checkpoint_seconds", "null"), tmp_path)
    one, other = finished(tmp_path / "it"), finished(tmp_path / "twin")
    for seed, trial in other.items():
        assert one[seed].params == trial.params
        assert one[seed].state == trial.state
        assert one[seed].intermediate_values == pytest.approx(trial.intermediate_values, rel=1e-9)
