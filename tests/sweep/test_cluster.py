from __future__ import annotations

import os
import pickle
import signal
import sys
import time
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from mlp_lab.errors import UserError
from mlp_lab.sweep.cluster import Fleet, Placed, _reason, check_cluster, check_storage
from mlp_lab.sweep.settings import ClusterSettings


def note(folder: Path) -> None:
    """What a worker does here: it says where it is."""
    names = ("CUDA_VISIBLE_DEVICES", "OMP_NUM_THREADS", "SLURM_NTASKS")
    (folder / str(os.getpid())).write_text(" ".join(str(os.environ.get(name)) for name in names))


def fail() -> None:
    raise UserError("study.name: 'x' is another study")


def take_leave(folder: Path) -> None:
    """What a worker does that needs longer to tell its study of its end than submitit would wait."""
    try:
        (folder / "began").touch()
        time.sleep(60)
    except KeyboardInterrupt:
        time.sleep(1.5)
        (folder / "told").write_text(os.environ.get("LESSON", ""))


def fleet(tmp_path: Path, **settings: Any) -> Fleet:
    return Fleet(ClusterSettings(executor="local", minutes=2, **settings), tmp_path / "logs", "test")


def test_workers_on_one_machine_have_gpus_and_threads_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLURM_NTASKS", "2")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    looks: list[int] = []
    local = fleet(tmp_path, workers=2, gpus=2, cpus=3)
    local.submit(partial(note, tmp_path))
    assert local.follow(looks.append) == []
    said = sorted(path.read_text() for path in tmp_path.iterdir() if path.is_file())
    assert said == ["0,1 3 None", "2,3 3 None"]
    assert set(looks) <= {1, 2}


@pytest.mark.parametrize(
    ("workers", "cpus", "given", "threads"),
    [(2, None, None, "4"), (3, None, None, "2"), (16, None, None, "1"), (2, 3, "1", "3"), (2, None, "1", None)],
)
def test_workers_on_one_machine_share_its_cores(
    workers: int, cpus: int | None, given: str | None, threads: str | None, tmp_path: Path, monkeypatch: Any
) -> None:
    monkeypatch.setattr("mlp_lab.sweep.cluster.cores", lambda: 8)
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    if given:
        monkeypatch.setenv("OMP_NUM_THREADS", given)
    assert fleet(tmp_path, workers=workers, cpus=cpus)._environment(0).get("OMP_NUM_THREADS") == threads


def test_a_worker_of_a_cluster_has_the_cores_that_slurm_gives_it(tmp_path: Path) -> None:
    assert Fleet(ClusterSettings(workers=2), tmp_path, "test")._environment(0) == {}


def test_what_ends_a_worker_is_told_with_its_log(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    local = fleet(tmp_path)
    local.submit(fail)
    lines = local.follow(lambda left: None)
    assert len(lines) == 1
    assert lines[0].startswith(
        "worker 0 failed: mlp_lab.errors.UserError: study.name: 'x' is another study; its log is "
    )
    assert "is another study" in Path(lines[0].rpartition(" ")[2]).read_text()


@pytest.mark.slow
@pytest.mark.parametrize("setup", [(), ("export LESSON='a b'", "cd .")])
def test_cancelled_workers_have_time_and_a_terminals_ctrl_c_is_not_theirs(
    setup: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parents[2]))
    local = fleet(tmp_path, setup=setup)
    local.submit(partial(take_leave, tmp_path))
    while not (tmp_path / "began").exists():
        time.sleep(0.05)
    os.kill(int(local.jobs[0].job_id), signal.SIGINT)
    time.sleep(0.2)
    assert local.jobs[0].state == "RUNNING"
    local.cancel()
    assert (tmp_path / "told").read_text() == ("a b" if setup else "")


def test_a_setup_that_fails_is_told(tmp_path: Path) -> None:
    local = fleet(tmp_path, setup=("mlp_lab_module load cuda",))
    local.submit(fail)
    (line,) = local.follow(lambda left: None)
    assert line.startswith("worker 0 ended without a result (killed, or its machine was lost); its log is ")
    assert "mlp_lab_module" in Path(line.rpartition(" ")[2]).read_text()


def test_a_preempted_job_is_submitted_as_it_was(tmp_path: Path) -> None:
    again = Placed(partial(note, tmp_path), {"OMP_NUM_THREADS": "1"}).checkpoint().function
    assert pickle.loads(pickle.dumps(again)).environment == {"OMP_NUM_THREADS": "1"}


def test_without_slurm_or_submitit_it_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"^backend: slurm finds no sbatch, squeue, scancel on this machine"):
        check_cluster(ClusterSettings(), found=lambda name: None)
    check_cluster(ClusterSettings(executor="local"), found=lambda name: None)
    monkeypatch.setitem(sys.modules, "submitit", None)
    with pytest.raises(UserError, match=r"^backend: slurm needs submitit, which is missing: pip install"):
        check_cluster(ClusterSettings(executor="local"))


def test_files_are_for_one_machine() -> None:
    for url in ("sqlite:////a/b.db", "journal:/a/b.log"):
        with pytest.raises(UserError, match=r"^study\.storage: (sqlite|journal) is one machine's file"):
            check_storage(ClusterSettings(), url)
        check_storage(ClusterSettings(executor="local"), url)
    check_storage(ClusterSettings(), "postgresql+psycopg://me@host/db")


class Planted:
    """Writes a file when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> Any:
        return Path.touch, (self.trace,)


def test_result_of_a_worker_runs_no_code(tmp_path: Path) -> None:
    result, trace = tmp_path / "result.pkl", tmp_path / "it-ran"
    job: Any = SimpleNamespace(paths=SimpleNamespace(result_pickle=result))
    result.write_bytes(pickle.dumps(("success", Planted(trace))))
    assert (_reason(job) or "").startswith("ended with a result that cannot be read (it names pathlib.")
    assert not trace.exists()
    result.write_bytes(pickle.dumps(("error", "Traceback:\nUserError: no study")))
    assert _reason(job) == "failed: UserError: no study"
    result.write_bytes(pickle.dumps(("success", None)))
    assert _reason(job) is None
