from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import optuna
import pytest
from optuna.storages._heartbeat import is_heartbeat_enabled
from sqlalchemy.exc import ArgumentError

from mlp_lab.errors import UserError
from mlp_lab.sweep import storage
from mlp_lab.sweep.storage import open_storage, shown, storage_url


def test_without_an_address_it_is_a_file_of_the_sweep(tmp_path: Path) -> None:
    url = storage_url(None, tmp_path / "new")
    assert url == f"sqlite:///{tmp_path}/new/study.db"
    kept = open_storage(url, heartbeat=7)
    assert is_heartbeat_enabled(kept)
    optuna.create_study(storage=kept, study_name="a")
    assert optuna.get_all_study_names(open_storage(url, heartbeat=7)) == ["a"]


def test_a_journal_is_a_file_too(tmp_path: Path) -> None:
    url = storage_url(f"journal:{tmp_path}/a/study.log", tmp_path)
    optuna.create_study(storage=open_storage(url, heartbeat=7), study_name="a")
    assert optuna.get_all_study_names(open_storage(url, heartbeat=7)) == ["a"]
    assert storage_url("journal:", tmp_path) == f"journal:{tmp_path}/study.log"


def test_a_password_is_not_shown() -> None:
    assert shown("postgresql+psycopg://me:p@ss@host:5432/db") == "postgresql+psycopg://me@host:5432/db"
    assert shown("sqlite:////a/b.db") == "sqlite:////a/b.db"


@pytest.mark.parametrize(
    ("url", "line"),
    [
        ("study.db", "study.storage: 'study.db' is no address; use sqlite:///FILE, journal:FILE, "),
        ("nosql://x/y", "study.storage: 'nosql' is no kind of database that is known here; use sqlite:///FILE, "),
        ("mysql://u:secret@h/d", "study.storage: mysql://u@h/d needs the driver MySQLdb, which is not installed; "),
        ("postgresql://me:p@ss@h/d", "study.storage: postgresql://me@h/d: write @ in a user name or password as %40"),
        ("postgresql://me:secret@h:x/d", "study.storage: 'postgresql://me@h:x/d' is no address; use sqlite:///FILE, "),
        ("grpc://h", "study.storage: 'grpc://h' has no port; use grpc://HOST:PORT"),
        ("sqlite://", "study.storage: 'sqlite://' names no file, so that nothing would be kept"),
        (
            "sqlite:///a?b/study.db",
            "study.storage: 'sqlite:///a?b/study.db': what follows ? in a URL are options, such",
        ),
        ("sqlite:///a?b=c", "study.storage: 'sqlite:///a?b=c': what follows ? in a URL are options, such as timeout"),
        ("sqlite:////tmp", "study.storage: /tmp is a directory; name a file in it, such as sqlite:////tmp/study.db"),
        ("journal:/tmp", "study.storage: /tmp cannot be written (Is a directory)"),
        ("sqlite:///$UNSET/a.db", "study.storage: '$UNSET/a.db' names the environment variable UNSET, which is not"),
        ("sqlite:////proc/no/study.db", "study.storage: /proc/no cannot be written ("),
        ("journal:/proc/no/study.log", "study.storage: /proc/no/study.log cannot be written ("),
    ],
)
def test_what_cannot_be_reached_is_told_in_one_line(
    url: str, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "ATTEMPTS", 1)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("UNSET", raising=False)
    with pytest.raises(UserError) as caught:
        open_storage(storage_url(url, tmp_path), heartbeat=7)
    assert str(caught.value).startswith(line)
    assert "secret" not in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "ATTEMPTS", 1)
    (tmp_path / "study.db").write_text("this is not a database, though it has its name\n" * 40)
    with pytest.raises(UserError, match=r"study.db is no SQLite database, or a damaged one \(file is not"):
        open_storage(storage_url(None, tmp_path), heartbeat=7)


@pytest.mark.parametrize("name", ["a?b", "50%", "a%20b", "#1", "a b", "Größe 名", "{a}", "$HOME", "~", "a:b@c&d=e"])
def test_storage_in_a_directory_of_any_name_is_found_again(name: str, tmp_path: Path) -> None:
    for _ in range(2):
        kept = open_storage(storage_url(None, tmp_path / name), heartbeat=7)
        optuna.create_study(storage=kept, study_name="a", load_if_exists=True)
    assert (tmp_path / name / "study.db").is_file()
    assert [path.name for path in tmp_path.iterdir()] == [name]
    assert optuna.get_all_study_names(kept) == ["a"]


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("sqlite:///~/a.db", "sqlite:////home/me/a.db"),
        ("sqlite:///$STORE/a.db?timeout=5", "sqlite:////srv/50%25/a.db?timeout=5"),
        ("journal:${STORE}/a.log", "journal:/srv/50%/a.log"),
        ("postgresql://me:$STORE@host/db", "postgresql+psycopg://me:$STORE@host/db"),  # a password may hold a $
    ],
)
def test_storage_url_replaces_home_and_variables_in_paths(
    url: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", "/home/me")
    monkeypatch.setenv("STORE", "/srv/50%")
    assert storage_url(url, Path("x")).replace("%24", "$") == expected


@pytest.mark.parametrize(
    ("revision", "version", "line"),
    [
        (
            "v9.0.0",
            "9.1.2",
            "was written by Optuna 9.1.2, which is newer than Optuna {here} here; install that version (",
        ),
        (
            "v3.0.0.a",
            "3.0.1",
            "was written by Optuna 3.0.1, which is older than Optuna {here} here; make a copy of it, ",
        ),
    ],
)
def test_storage_of_another_optuna_is_refused(revision: str, version: str, line: str, tmp_path: Path) -> None:
    url = storage_url(None, tmp_path)
    open_storage(url, heartbeat=7)
    with closing(sqlite3.connect(tmp_path / "study.db")) as database, database:
        database.execute("UPDATE alembic_version SET version_num = ?", (revision,))
        database.execute("UPDATE version_info SET library_version = ?", (version,))
    with pytest.raises(UserError) as caught:
        open_storage(url, heartbeat=7)
    expected = f"study.storage: sqlite:///{tmp_path}/study.db {line.replace('{here}', optuna.__version__)}"
    assert str(caught.value).startswith(expected)


@pytest.mark.parametrize(
    ("table", "line"),
    [
        ("users", "is the database of another program (tables users); name another file"),
        ("version_info", "cannot be reached (no such column: version_info.version_info_id)"),
    ],
)
def test_storage_of_another_program_is_refused_and_unchanged(
    table: str, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "ATTEMPTS", 1)
    with closing(sqlite3.connect(tmp_path / "study.db")) as database, database:
        database.execute(f"CREATE TABLE {table} (id INTEGER)")
    with pytest.raises(UserError) as caught:
        open_storage(storage_url(None, tmp_path), heartbeat=7)
    assert str(caught.value).endswith(f"{tmp_path}/study.db {line}")
    with closing(sqlite3.connect(tmp_path / "study.db")) as database:
        names = [name for (name,) in database.execute("SELECT name FROM sqlite_master")]
    assert names == [table] or table == "version_info"


@pytest.mark.parametrize("text", ["hello\n", "[1]\n", '{"op_code": 99, "worker_id": "a"}\n'])
def test_a_file_that_is_no_journal_is_refused(text: str, tmp_path: Path) -> None:
    (tmp_path / "study.log").write_text(text)
    with pytest.raises(UserError, match=r"study.log is no journal that Optuna \S+ can read; name another file$"):
        open_storage(storage_url("journal:", tmp_path), heartbeat=7)


def test_journal_with_torn_last_line_continues(tmp_path: Path) -> None:
    url, path = storage_url("journal:", tmp_path), tmp_path / "study.log"
    optuna.create_study(storage=open_storage(url, heartbeat=7), study_name="a")
    other = open_storage(url, heartbeat=7)
    whole = path.read_bytes()
    for torn in (b'{"op_code":0,"wor', b"{"):
        path.write_bytes(whole + torn)
        storage = open_storage(url, heartbeat=7)
        assert path.read_bytes() == whole
        path.write_bytes(whole + torn)  # a worker is killed while others work
        optuna.create_study(storage=storage, study_name=torn.decode())
        whole = path.read_bytes()
    assert len(optuna.get_all_study_names(other)) == 3


@pytest.mark.parametrize("damage", ["overwritten", "cut"])
def test_damaged_sqlite_file_says_how_to_continue(damage: str, tmp_path: Path) -> None:
    url, path = storage_url(None, tmp_path), tmp_path / "study.db"
    optuna.create_study(storage=open_storage(url, heartbeat=7), study_name="a")
    content = bytearray(path.read_bytes())
    content[8192:12288] = b"x" * 4096
    path.write_bytes({"overwritten": content, "cut": content[:20_000]}[damage])
    with pytest.raises(UserError, match=r"^study.storage: .*study.db is no SQLite database, or a damaged one \("):
        open_storage(url, heartbeat=7)


def test_password_of_the_environment_completes_a_url(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(storage.PASSWORD, "p@ss")
    assert storage_url("postgresql://me@host/db", tmp_path) == "postgresql+psycopg://me:p%40ss@host/db"
    assert storage_url("postgresql://me:own@host/db", tmp_path) == "postgresql+psycopg://me:own@host/db"
    given = storage_url("postgresql://me@host/db?password=own", tmp_path)
    assert given == "postgresql+psycopg://me@host/db?password=own"
    assert storage_url("sqlite:///a.db", Path()).endswith("/a.db")


@pytest.mark.parametrize(
    "url", ["mysql://me:{}@host/db", "mysql://me@host/db?password={}", "mysql://host/d?password={}&x=1"]
)
def test_password_is_split_from_the_url_and_put_back(url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    bare, password = storage.split_password(url.format("s%40cret"))
    assert (password, "cret" in bare) == ("s@cret", False)
    monkeypatch.setenv(storage.PASSWORD, "s@cret")
    assert storage.split_password(storage_url(bare, tmp_path))[1] == "s@cret"


def test_driver_that_repeats_the_password_is_not_quoted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(url: str, heartbeat: int) -> None:
        raise ArgumentError(f"cannot parse {url} with s3cret")

    monkeypatch.setattr(storage, "_database", refuse)
    with pytest.raises(UserError) as caught:
        open_storage(storage_url("postgresql://me@host/db?password=s3cret", tmp_path), heartbeat=7)
    assert "s3cret" not in str(caught.value)
