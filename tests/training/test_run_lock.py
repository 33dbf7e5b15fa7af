"""The lock of a run directory."""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

from mlp_lab.errors import UserError
from mlp_lab.training.run_lock import RunLock


def test_run_lock_refuses_a_second_owner_until_it_is_released(tmp_path: Path) -> None:
    first, second = RunLock(tmp_path / "run"), RunLock(tmp_path / "run")
    first.take()
    place = f"process {os.getpid()} on {socket.gethostname()}"
    with pytest.raises(UserError, match=rf"^run.dir: \S+/run is in use by {place}; wait until it ends, or stop it$"):
        second.take()
    first.release()
    assert list(first.folder.iterdir()) == []
    second.take()
    second.release()


def test_run_lock_takes_the_place_of_a_file_that_no_process_holds(tmp_path: Path) -> None:
    (tmp_path / ".lock").write_text(json.dumps({"pid": os.getpid(), "host": "elsewhere" * 20}))
    lock = RunLock(tmp_path)
    lock.take()
    assert json.loads(lock.path.read_text()) == {"pid": os.getpid(), "host": socket.gethostname()}
    lock.release()


def test_run_lock_ends_with_a_killed_process_whose_worker_lives_on(tmp_path: Path) -> None:
    code = (
        "import os, sys, time; from pathlib import Path; from mlp_lab.training.run_lock import RunLock\n"
        "lock = RunLock(Path(sys.argv[1])); lock.take()\n"
        "child = os.fork()\n"
        "if child == 0: os.close(1); time.sleep(20); os._exit(0)\n"
        "time.sleep(0.1); print(child, flush=True); os.kill(os.getpid(), 9)"
    )
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE, text=True, check=False)
    lock = RunLock(tmp_path)
    try:
        assert lock.path.exists()
        lock.take()
        lock.release()
    finally:
        os.kill(int(done.stdout), 9)


def test_run_lock_without_a_writable_folder_leaves_the_message_to_others(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    RunLock(tmp_path / "file").take()
