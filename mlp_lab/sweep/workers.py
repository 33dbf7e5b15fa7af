"""Which workers live: an identity that can be checked on its own machine, and signs of life for the others."""

from __future__ import annotations

import logging
import os
import socket
import threading
import time
from pathlib import Path
from types import TracebackType

from optuna.storages import BaseStorage
from optuna.storages._heartbeat import BaseHeartbeat, is_heartbeat_enabled

BEAT = "beat"  # system attribute of a running trial, where the storage has no heartbeat of its own
_log = logging.getLogger(__name__)


def identity() -> str:
    """Returns a text that names this process among all on all machines: machine, process and its start."""
    return f"{_machine()} {os.getpid()} {_started(os.getpid())}"


def alive(worker: str) -> bool | None:
    """Says whether the process of an identity lives; None where it is on another machine.

    >>> alive(identity()), alive("elsewhere 1 0")
    (True, None)
    """
    machine, _, process = worker.partition(" ")
    pid, _, start = process.partition(" ")
    if machine != _machine() or not pid.isdigit():
        return None
    try:
        os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        return True
    return start == _started(int(pid))  # else the number was given to another process


def _machine() -> str:
    """Returns the host's name, with the space of process numbers where containers have their own."""
    try:
        return f"{socket.gethostname()}/{os.readlink('/proc/self/ns/pid')}".replace(" ", "")
    except OSError:
        return socket.gethostname().replace(" ", "")


def _started(pid: int) -> str:
    """Returns when a process began, in ticks since the machine's start; 0 where that cannot be read."""
    try:
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except OSError:
        return "0"
    return "dead" if fields[0] == "Z" else fields[19]  # a zombie only waits for its parent; 22nd field of proc(5)


class Lease:
    """Says for running trials that their worker lives: at once, and then from a thread.

    Args:
        storage: The study's storage.
        interval: Seconds between signs of life.
    """

    def __init__(self, storage: BaseStorage, interval: float) -> None:
        self.storage = storage
        self.interval = interval
        self._trials: set[int] = set()
        self._lock = threading.Lock()
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True, name="heartbeat")

    def __enter__(self) -> Lease:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop.set()
        self._thread.join()

    def add(self, trial_id: int) -> None:
        """Takes a trial, by its id in the storage."""
        self._beat(trial_id)
        with self._lock:
            self._trials.add(trial_id)

    def remove(self, trial_id: int) -> None:
        """Gives a trial back."""
        with self._lock:
            self._trials.discard(trial_id)

    def _run(self) -> None:
        while not self._stop.wait(self.interval):
            with self._lock:
                trials = sorted(self._trials)
            for trial_id in trials:
                try:
                    self._beat(trial_id)
                except Exception as error:  # a storage that is away for a moment must not end the training
                    _log.debug("no sign of life for trial %d: %s", trial_id, error)

    def _beat(self, trial_id: int) -> None:
        if is_heartbeat_enabled(self.storage):
            assert isinstance(self.storage, BaseHeartbeat)
            self.storage.record_heartbeat(trial_id)
        else:
            self.storage.set_trial_system_attr(trial_id, BEAT, time.time())
