from __future__ import annotations

from pathlib import Path

import optuna
import pytest
from optuna.storages._heartbeat import is_heartbeat_enabled

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
        ("study.db", "study.storage: 'study.db' is no address; use journal:FILE, sqlite:///FILE, "),
        ("nosql://x/y", "study.storage: nosql://x/y cannot be reached (no such kind of database; use sqlite or "),
        ("sqlite:////proc/no/study.db", "study.storage: /proc/no cannot be written ("),
        ("journal:/proc/no/study.log", "study.storage: /proc/no/study.log cannot be written ("),
    ],
)
def test_what_cannot_be_reached_is_told_in_one_line(
    url: str, line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(storage, "ATTEMPTS", 1)
    with pytest.raises(UserError) as caught:
        open_storage(storage_url(url, tmp_path), heartbeat=7)
    assert str(caught.value).startswith(line)
    assert "\n" not in str(caught.value)


def test_a_file_that_is_no_database(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(storage, "ATTEMPTS", 1)
    (tmp_path / "study.db").write_text("this is not a database, though it has its name\n" * 40)
    with pytest.raises(UserError, match=r"study.db cannot be reached \(file is not a database\)$"):
        open_storage(storage_url(None, tmp_path), heartbeat=7)
