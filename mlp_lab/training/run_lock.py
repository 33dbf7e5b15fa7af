"""The lock of a run directory: one process at a time trains in it."""

from __future__ import annotations

import json
import os
import socket
from contextlib import suppress
from pathlib import Path

from mlp_lab.errors import UserError


class RunLock:
    """Locks the file `.lock` of a directory. The system ends the lock with its process, however that ends.

    The file names the process and its host, for the message alone. A file that a killed process left is no lock.

    Args:
        folder: The directory; it is made if it does not exist.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.path = folder, folder / ".lock"
        self._descriptor: int | None = None

    def take(self) -> None:
        """Takes the lock. Where the file system has no locks, or cannot be written, it does nothing.

        Raises:
            UserError: Another process has it.
        """
        try:
            import fcntl
        except ImportError:  # Windows, where a run directory has no lock
            return
        with suppress(OSError):
            self.folder.mkdir(parents=True, exist_ok=True)
            while self._descriptor is None:
                descriptor = os.open(self.path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o666)
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    if self._is_current(descriptor):  # else its owner has just removed it
                        self._descriptor = descriptor
                except BlockingIOError as error:
                    raise UserError(f"run.dir: {self.folder} is in use by {_owner(descriptor)}") from error
                finally:
                    if self._descriptor is None:
                        os.close(descriptor)
            os.register_at_fork(after_in_child=self._forget)  # a worker of a killed process would keep the lock
            os.ftruncate(descriptor, 0)
            os.write(descriptor, json.dumps({"pid": os.getpid(), "host": socket.gethostname()}).encode())

    def _is_current(self, descriptor: int) -> bool:
        try:
            return os.path.samestat(os.fstat(descriptor), os.stat(self.path))
        except FileNotFoundError:
            return False

    def release(self) -> None:
        """Removes the file and ends the lock."""
        if self._descriptor is not None:
            self.path.unlink(missing_ok=True)
            self._forget()

    def _forget(self) -> None:
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None


def _owner(descriptor: int) -> str:
    """Returns the process that a lock's file names."""
    try:
        facts = json.loads(os.read(descriptor, 1000))
        return f"process {facts['pid']} on {facts['host']}; wait until it ends, or stop it"
    except (ValueError, LookupError, TypeError):
        return "another process; wait until it ends, or stop it"
