"""Where a study is kept: an SQLite file, a journal file, or a database by its URL."""

from __future__ import annotations

import time
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from optuna.exceptions import ExperimentalWarning
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend
from sqlalchemy.exc import ArgumentError, DBAPIError, NoSuchModuleError, SQLAlchemyError

from mlp_lab.errors import UserError
from mlp_lab.sweep.transactions import allow_joint

GRACE = 4  # heartbeats without which a worker is given up
ATTEMPTS = 5  # two workers that start at once may both try to make the tables
PROXY_SECONDS = 10  # a server of the storage must answer within
LOCK_SECONDS = 60  # an SQLite writer waits so long for another


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps Optuna's remarks on experimental parts, and on heartbeats that are ours to send, out of the output."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        warnings.filterwarnings("ignore", message=".*Heartbeat of storage is supposed to be used.*")
        warnings.filterwarnings("ignore", message=".*heartbeat_interval.*")
        warnings.filterwarnings("ignore", message=".*`group`.*")
        yield


def storage_url(url: str | None, directory: Path) -> str:
    """Returns the address of a study's storage; without one, `study.db` in the sweep's directory.

    >>> storage_url("postgresql://me@host/db", Path("x"))
    'postgresql+psycopg://me@host/db'
    """
    if url is None:
        return f"sqlite:///{(directory / 'study.db').absolute()}"
    if url.startswith("journal:"):
        return f"journal:{Path(url.removeprefix('journal:').removeprefix('//') or directory / 'study.log').absolute()}"
    for name in ("postgresql://", "postgres://"):
        if url.startswith(name):
            return f"postgresql+psycopg://{url.removeprefix(name)}"
    if "://" not in url:
        accepted = "journal:FILE, sqlite:///FILE, postgresql://USER@HOST/DB or grpc://HOST:PORT"
        raise UserError(f"study.storage: {url!r} is no address; use {accepted}")
    return url


def open_storage(url: str, heartbeat: int) -> BaseStorage:
    """Opens a storage, and makes its tables where there are none.

    Args:
        url: What `storage_url` returns.
        heartbeat: Seconds between a worker's signs of life.

    Raises:
        UserError: It cannot be reached, or its driver is missing.
    """
    if url.startswith("journal:"):
        path = Path(url.removeprefix("journal:"))
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            return JournalStorage(JournalFileBackend(str(path)))
        except OSError as error:
            raise UserError(f"study.storage: {path} cannot be written ({error.strerror})") from error
    if url.startswith("grpc://"):
        return _proxy(url)
    if url.startswith("sqlite:///"):
        _make_folder(Path(url.removeprefix("sqlite:///")).parent)
    for attempt in range(ATTEMPTS):
        try:
            return _database(url, heartbeat)
        except SQLAlchemyError as error:
            if attempt + 1 == ATTEMPTS or isinstance(error, ArgumentError):
                raise UserError(f"study.storage: {shown(url)} cannot be reached ({_reason(error)})") from error
            time.sleep(0.2 * 2**attempt)
        except ImportError as error:
            needs = "psycopg: pip install 'mlp_lab[cluster]'" if "postgresql" in url else str(error)
            raise UserError(f"study.storage: {shown(url)} needs a driver that is missing ({needs})") from error
    raise AssertionError("the last attempt returns or raises")


def shown(url: str) -> str:
    """Returns an address without its password.

    >>> shown("postgresql+psycopg://me:secret@host/db")
    'postgresql+psycopg://me@host/db'
    """
    scheme, _, rest = url.partition("://")
    user, at, place = rest.rpartition("@")
    return f"{scheme}://{user.partition(':')[0]}{at}{place}" if at else url


def _database(url: str, heartbeat: int) -> RDBStorage:
    arguments = {"connect_args": {"timeout": LOCK_SECONDS}} if url.startswith("sqlite") else {"pool_pre_ping": True}
    with quiet():
        storage = RDBStorage(url, engine_kwargs=arguments, heartbeat_interval=heartbeat, grace_period=GRACE * heartbeat)
    allow_joint(storage)
    return storage


def _proxy(url: str) -> BaseStorage:
    """Opens the server of Optuna's `run_grpc_proxy_server`, which spares a database the many connections."""
    try:
        from optuna.storages import GrpcStorageProxy

        host, _, port = url.removeprefix("grpc://").rpartition(":")
        with quiet():
            storage = GrpcStorageProxy(host=host, port=int(port))
        storage.wait_server_ready(timeout=PROXY_SECONDS)
    except ImportError as error:
        raise UserError(f"study.storage: {url} needs grpcio: pip install 'mlp_lab[cluster]'") from error
    except ValueError as error:
        raise UserError(f"study.storage: {url!r} has no port; use grpc://HOST:PORT") from error
    except ConnectionError as error:
        raise UserError(f"study.storage: {url} cannot be reached (no server answers)") from error
    return storage


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"study.storage: {folder} cannot be written ({error.strerror})") from error


def _reason(error: SQLAlchemyError) -> str:
    """Returns the first line of what the driver said."""
    if isinstance(error, NoSuchModuleError):
        return "no such kind of database; use sqlite or postgresql"
    origin = error.orig if isinstance(error, DBAPIError) else error
    return (str(origin).splitlines() or [type(error).__name__])[0].strip()
