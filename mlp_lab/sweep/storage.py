"""Where a study is kept: an SQLite file, a journal file, or a database by its URL."""

from __future__ import annotations

import json
import os
import re
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import MappingProxyType

import optuna
from optuna.exceptions import ExperimentalWarning, StorageInternalError
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend, JournalFileSymlinkLock
from optuna.storages.journal._file import get_lock_file
from sqlalchemy import URL, create_engine, inspect, make_url
from sqlalchemy.exc import (
    ArgumentError,
    DatabaseError,
    DBAPIError,
    NoSuchModuleError,
    OperationalError,
    SQLAlchemyError,
)

from mlp_lab.errors import UserError, causes
from mlp_lab.paths import expand_path
from mlp_lab.sweep.transactions import allow_joint
from mlp_lab.text import without_passwords

KEY = "study.storage"
PASSWORD = "MLP_LAB_STORAGE_PASSWORD"  # variable of the environment, for a URL without a password
ACCEPTED = "sqlite:///FILE, journal:FILE, postgresql://USER@HOST/DB or grpc://HOST:PORT"
SQLITE_OPTIONS = ("timeout", "isolation_level", "detect_types", "check_same_thread", "cached_statements")
VERSION_TABLE = "version_info"  # every database of Optuna's has it
GRACE = 4  # heartbeats without which a worker is given up
ATTEMPTS = 5  # two workers that start at once may both try to make the tables
PROXY_SECONDS = 10  # a server of the storage must answer within
LOCK_SECONDS = 60  # an SQLite writer waits so long for another


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps Optuna's log and its remarks on experimental parts and heartbeats out of the output."""
    verbosity = optuna.logging.get_verbosity()
    optuna.logging.set_verbosity(optuna.logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            for message in (".*Heartbeat of storage is supposed to be used.*", ".*heartbeat_interval.*", ".*`group`.*"):
                warnings.filterwarnings("ignore", message=message)
            yield
    finally:
        optuna.logging.set_verbosity(verbosity)


def storage_url(url: str | None, directory: Path) -> str:
    """Returns the address of a study's storage; without one, `study.db` in the sweep's directory.

    Files get an absolute path, in which `~` and `$VAR` are replaced. What a URL reserves is escaped. A URL of a server
    without a password gets that of `$MLP_LAB_STORAGE_PASSWORD`, if set.

    Raises:
        UserError: The text is no address, or a path in it names an unknown variable.

    >>> storage_url("postgresql://me@host/db", Path("x"))
    'postgresql+psycopg://me@host/db'
    >>> storage_url(None, Path("/50% of #1?"))
    'sqlite:////50%25 of %231%3F/study.db'
    """
    if url is None:
        return _sqlite_url(directory / "study.db")
    if url.startswith("journal:"):
        path = url.removeprefix("journal:").removeprefix("//")
        return f"journal:{expand_path(KEY, path or directory / 'study.log').absolute()}"
    if "://" not in url:
        raise UserError(f"{KEY}: {url!r} is no address; use {ACCEPTED}")
    if url.startswith("grpc://"):
        return url
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError) as error:
        raise UserError(f"{KEY}: {shown(url)!r} is no address; use {ACCEPTED}") from error
    if "@" in (parsed.host or ""):
        raise UserError(f"{KEY}: {shown(url)}: write @ in a user name or password as %40")
    if parsed.drivername in ("postgresql", "postgres"):
        parsed = parsed.set(drivername="postgresql+psycopg")
    elif parsed.drivername.partition("+")[0] == "sqlite" and "uri" not in parsed.query:
        if parsed.database in (None, "", ":memory:"):
            raise UserError(f"{KEY}: {url!r} names no file, so that nothing would be kept; use sqlite:///FILE")
        if "?" in url and not (parsed.query and set(parsed.query) <= set(SQLITE_OPTIONS)):
            advice = f"options, such as {SQLITE_OPTIONS[0]}=60; write ? in a file name as %3F"
            raise UserError(f"{KEY}: {url!r}: what follows ? in a URL are {advice}")
        return _sqlite_url(expand_path(KEY, parsed.database), parsed.query)
    if (password := os.environ.get(PASSWORD)) and parsed.password is None and "password" not in parsed.query:
        named = parsed.username is not None  # else the user may be in the query, or that of the system
        parsed = parsed.set(password=password) if named else parsed.update_query_dict({"password": password})
    return parsed.render_as_string(hide_password=False)


def split_password(url: str) -> tuple[str, str | None]:
    """Returns the URL of a server without its password, and the password; other addresses stay as they are.

    >>> split_password("postgresql://me:p%40ss@host/db"), split_password("sqlite:///study.db")
    (('postgresql://me@host/db', 'p@ss'), ('sqlite:///study.db', None))
    """
    try:
        parsed = make_url(url)
    except (ArgumentError, ValueError):
        return url, None
    password = parsed.password or parsed.query.get("password")
    if not password or parsed.drivername.partition("+")[0] in ("sqlite", "grpc"):
        return url, None
    bare = parsed.difference_update_query(["password"])._replace(password=None)
    return bare.render_as_string(hide_password=False), str(password)


def _sqlite_url(path: Path, query: Mapping[str, tuple[str, ...] | str] = MappingProxyType({})) -> str:
    return URL.create("sqlite", database=str(path.absolute()), query=query).render_as_string()


def open_storage(url: str, heartbeat: int) -> BaseStorage:
    """Opens a storage, and makes its tables where there are none.

    Args:
        url: What `storage_url` returns.
        heartbeat: Seconds between a worker's signs of life.

    Raises:
        UserError: It cannot be reached, its driver is missing, it belongs to another program, or its tables are of
            another version of Optuna.
    """
    if url.startswith("journal:"):
        return _journal(Path(url.removeprefix("journal:")))
    if url.startswith("grpc://"):
        return _proxy(url)
    if url.startswith("sqlite:"):
        _check_file(make_url(url))
    for attempt in range(ATTEMPTS):
        try:
            return _database(url, heartbeat)
        except NoSuchModuleError as error:
            kind = url.partition(":")[0]
            raise UserError(f"{KEY}: {kind!r} is no kind of database that is known here; use {ACCEPTED}") from error
        except (SQLAlchemyError, StorageInternalError) as error:
            if attempt + 1 == ATTEMPTS or isinstance(error, ArgumentError):
                raise UserError(f"{KEY}: {shown(url)} cannot be reached ({_hidden(reason(error), url)})") from error
            time.sleep(0.2 * 2**attempt)
        except ImportError as error:
            raise UserError(f"{KEY}: {shown(url)} needs {_driver(url, error)}") from error
        except RuntimeError as error:
            raise UserError(f"{KEY}: {_other_version(url, error)}") from error
    raise AssertionError("the last attempt returns or raises")


def shown(url: str) -> str:
    """Returns an address without its password, and of a file with its path unescaped.

    >>> shown("postgresql+psycopg://me:secret@host/db"), shown("sqlite:////a%20b.db")
    ('postgresql+psycopg://me@host/db', 'sqlite:////a b.db')
    """
    if url.startswith("sqlite:///"):
        return f"sqlite:///{make_url(url).database}"
    return without_passwords(url)


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
        raise UserError(f"{KEY}: {url} needs grpcio: pip install 'mlp_lab[cluster]'") from error
    except ValueError as error:
        raise UserError(f"{KEY}: {url!r} has no port; use grpc://HOST:PORT") from error
    except ConnectionError as error:
        raise UserError(f"{KEY}: {url} cannot be reached (no server answers)") from error
    return storage


def _journal(path: Path) -> BaseStorage:
    """Opens a journal file."""
    _make_folder(path.parent, path)
    try:
        if path.exists():
            with path.open("rb") as file:
                first = file.readline()
            if first.endswith(b"\n"):  # the last line of a journal may be torn, and Optuna passes over it
                json.loads(first)["op_code"]
        lock = JournalLock(str(path))
        backend = JournalFileBackend(str(path), lock)
        if not _ends_whole(path):
            with get_lock_file(lock):  # which cuts it
                pass
        return JournalStorage(backend)
    except OSError as error:
        raise UserError(f"{KEY}: {path} cannot be written ({error.strerror})") from error
    except (ValueError, LookupError, TypeError, AssertionError) as error:  # lines that are no JSON, or no operations
        raise UserError(
            f"{KEY}: {path} is no journal that Optuna {optuna.__version__} can read; name another file"
        ) from error


class JournalLock(JournalFileSymlinkLock):
    """The lock of a journal, which also cuts off the incomplete last line that a killed writer left.

    Optuna appends to such a line and cannot read the result. Nobody else writes while the lock is held.
    """

    def acquire(self) -> bool:
        """Waits for the lock, then cuts the file."""
        held = super().acquire()
        path = Path(self._lock_target_file)
        if held and not _ends_whole(path):
            with path.open("rb+") as file:
                content = file.read()
                file.truncate(content.rfind(b"\n") + 1)
        return held


def _ends_whole(path: Path) -> bool:
    """Returns whether a file is missing, is empty, or ends with the end of a line."""
    if not path.exists() or path.stat().st_size == 0:
        return True
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read() == b"\n"


def _check_file(url: URL) -> None:
    """Makes the folder of an SQLite file, and refuses the database of another program before tables are added to it.

    Raises:
        UserError: It is one, or the file cannot be made.
    """
    path = Path(url.database or "")
    _make_folder(path.parent)
    if path.is_dir():
        raise UserError(f"{KEY}: {path} is a directory; name a file in it, such as sqlite:///{path}/study.db")
    if not path.exists():
        return
    with suppress(SQLAlchemyError):  # which opening it will tell
        engine = create_engine(URL.create("sqlite", database=str(path)))
        try:
            tables = inspect(engine).get_table_names()
            with engine.connect() as connection:
                fault = connection.exec_driver_sql("PRAGMA quick_check(1)").scalar()
        except OperationalError:  # such as one that is locked
            return
        except DatabaseError as error:
            tables, fault = [], reason(error)
        finally:
            engine.dispose()
        if fault != "ok":
            raise UserError(
                f"{KEY}: {path} is no SQLite database, or a damaged one ({' '.join(str(fault).split())}); restore a "
                "copy, or begin another study with another --run.dir (trials.csv has the values of finished trials)"
            )
        if tables and VERSION_TABLE not in tables:
            names = ", ".join(tables[:3]) + (", …" if len(tables) > 3 else "")
            raise UserError(f"{KEY}: {path} is the database of another program (tables {names}); name another file")


def _make_folder(folder: Path, shown: Path | None = None) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"{KEY}: {shown or folder} cannot be written ({error.strerror})") from error


def _driver(url: str, error: ImportError) -> str:
    """Says which driver of a database is missing."""
    if url.startswith("postgresql+psycopg:"):
        return "the driver psycopg, which is not installed: pip install 'mlp_lab[cluster]'"
    cause = error.__cause__ if isinstance(error.__cause__, ImportError) else error
    name = f"the driver {cause.name}" if cause.name else "a driver"
    return f"{name}, which is not installed; install it, or use {ACCEPTED}"


def _other_version(url: str, error: RuntimeError) -> str:
    """Says what to do about tables that another version of Optuna has made."""
    made = re.search(r"set up by optuna ([\w.]+)", str(error))
    by = f"Optuna {made[1]}" if made else "another version of Optuna"
    if "storage upgrade" in str(error):
        address = url if url.startswith("sqlite:") else shown(url)
        return (
            f"{shown(url)} was written by {by}, which is older than Optuna {optuna.__version__} here; "
            f"make a copy of it, then run: optuna storage upgrade --storage '{address}'"
        )
    return (
        f"{shown(url)} was written by {by}, which is newer than Optuna {optuna.__version__} here; "
        "install that version (pip install -U optuna), or use another storage"
    )


def _hidden(text: str, url: str) -> str:
    """Returns the words of a driver without the password, which some of them repeat."""
    password = split_password(url)[1]
    return without_passwords(text.replace(password, "***") if password else text)


def reason(error: Exception) -> str:
    """Returns the first line of what a database's driver said."""
    *_, innermost = causes(error)  # Optuna wraps them
    origin = next((cause.orig for cause in causes(error) if isinstance(cause, DBAPIError)), innermost)
    return (str(origin).splitlines() or [type(error).__name__])[0].strip()
