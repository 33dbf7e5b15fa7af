"""Ctrl-C and SIGTERM in a search: both end it, and neither in the middle of what it does with its storage.

An interrupt that is raised inside a query leaves its cursor open, and the database locked by ourselves.
"""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

SIGNALS = (signal.SIGINT, signal.SIGTERM)
HELD = (*SIGNALS, signal.SIGUSR1, signal.SIGUSR2)  # the last two announce the end of a cluster's job
INSIST = 3  # so many interrupts end even a storage that hangs


@contextmanager
def terminable() -> Iterator[None]:
    """Lets SIGTERM end the search as Ctrl-C does, and gives both back as they were."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.getsignal(number) for number in SIGNALS}

    def stop(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    signal.signal(signal.SIGTERM, stop)
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


@contextmanager
def uninterrupted() -> Iterator[None]:
    """Lets what is inside end before an interrupt takes effect, whoever handles it; also a decorator.

    Raises:
        KeyboardInterrupt: The third interrupt within.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    waiting: list[int] = []

    def note(number: int, frame: FrameType | None) -> None:
        waiting.append(number)
        if len(waiting) >= INSIST:
            waiting.clear()
            raise KeyboardInterrupt

    handled = [number for number in HELD if callable(signal.getsignal(number))]
    before = {number: signal.signal(number, note) for number in handled}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if waiting:
            signal.raise_signal(waiting[0])
