"""Interrupts end a search, and never in the middle of its storage's work."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from optuna.exceptions import StorageInternalError
from optuna.storages import RDBStorage
from optuna.study import StudyDirection

from mlp_lab.sweep.interrupts import terminable, uninterrupted
from mlp_lab.sweep.storage import open_storage, storage_url


@pytest.fixture(autouse=True)
def listening() -> Iterator[None]:
    """A shell starts what runs in its background deaf to Ctrl-C."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


BOTH = pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM], ids=["ctrl-c", "sigterm"])


@BOTH
@pytest.mark.parametrize("depth", [1, 2])
def test_what_is_inside_ends_first(number: signal.Signals, depth: int) -> None:
    done = []

    @uninterrupted()
    def inside(left: int) -> None:
        if left:
            inside(left - 1)
        else:
            signal.raise_signal(number)
        done.append("inside")

    @terminable()
    def search() -> None:
        inside(depth)
        done.append("outside")

    with pytest.raises(KeyboardInterrupt):
        search()
    assert done == ["inside"] * (depth + 1)


def test_the_third_interrupt_ends_what_hangs() -> None:
    done = []

    @uninterrupted()
    def hang() -> None:
        for _ in range(9):
            signal.raise_signal(signal.SIGINT)
            done.append("once more")

    with pytest.raises(KeyboardInterrupt):
        hang()
    assert len(done) == 2


def test_who_handled_the_signals_does_so_again() -> None:
    seen: list[int] = []
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        signal.signal(signal.SIGTERM, lambda number, frame: seen.append(number))
        with uninterrupted():
            signal.raise_signal(signal.SIGTERM)
            assert seen == []
        assert seen == [signal.SIGTERM]
        with terminable():
            pass
        signal.raise_signal(signal.SIGTERM)
        assert seen == [signal.SIGTERM] * 2
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def test_another_thread_has_no_signals_to_hold() -> None:
    def inside() -> None:
        with terminable(), uninterrupted():
            done.append("inside")

    done: list[str] = []
    thread = threading.Thread(target=inside)
    thread.start()
    thread.join()
    assert done == ["inside"]


def test_an_interrupted_query_does_not_lock_the_study(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What an interrupt within a query costs, and that it is not paid: the storage can be written at once."""
    monkeypatch.setattr("mlp_lab.sweep.storage.LOCK_SECONDS", 0.1)
    storage = open_storage(storage_url(None, tmp_path), heartbeat=60)
    assert isinstance(storage, RDBStorage)

    def query() -> None:
        connection = storage.engine.raw_connection()
        cursor = connection.cursor()
        cursor.execute("select * from version_info union all select * from version_info")
        cursor.fetchone()
        signal.raise_signal(signal.SIGINT)
        cursor.fetchall()
        connection.close()

    def write() -> None:
        storage.create_new_study([StudyDirection.MINIMIZE])

    with pytest.raises(KeyboardInterrupt) as unheld:
        query()
    with pytest.raises(StorageInternalError):
        write()  # the traceback holds the cursor, and the cursor the lock
    del unheld
    for _ in range(3):
        with pytest.raises(KeyboardInterrupt) as held:
            uninterrupted()(query)()
        assert held.tb is not None
        write()
