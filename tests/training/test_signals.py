"""Signals at once, and signals that wait."""

from __future__ import annotations

import os
import signal
import threading
from types import SimpleNamespace
from typing import Any

import pytest

from mlp_lab.errors import Terminated
from mlp_lab.training.signals import INSIST, SIGNALS, TerminationSignals


def send(number: int) -> None:
    os.kill(os.getpid(), number)


@pytest.mark.parametrize("number", SIGNALS)
def test_signal_raises_at_once_and_former_handlers_come_back(number: int) -> None:
    before = [signal.getsignal(one) for one in SIGNALS]
    with pytest.raises(Terminated) as stop, TerminationSignals():
        send(number)
    assert (stop.value.signum, stop.value.exit_status, str(stop.value)) == (number, 143, "terminated")
    assert [signal.getsignal(one) for one in SIGNALS] == before


def test_deferred_signal_is_noted_and_the_third_one_raises() -> None:
    with TerminationSignals() as signals:
        signals.deferred = True
        for _ in range(INSIST - 1):
            send(signal.SIGUSR1)
        assert signals.received == signal.SIGUSR1
        with pytest.raises(Terminated):
            send(signal.SIGTERM)
        assert signals.received == signal.SIGUSR1


def test_thread_other_than_the_main_one_leaves_the_handlers() -> None:
    before = signal.getsignal(signal.SIGTERM)
    seen: list[Any] = []

    def enter() -> None:
        with TerminationSignals():
            seen.append(signal.getsignal(signal.SIGTERM))

    thread = threading.Thread(target=enter)
    thread.start()
    thread.join()
    assert seen == [before]


def test_handlers_of_a_trainer_are_replaced_by_nothing() -> None:
    trainer: Any = SimpleNamespace(
        _signal_connector=SimpleNamespace(register_signal_handlers=pytest.fail),
        fit_loop=SimpleNamespace(epoch_loop=SimpleNamespace(_broadcast_sigterm_tensor=pytest.fail)),
    )
    TerminationSignals().replace_handlers_of(trainer)
    trainer._signal_connector.register_signal_handlers()
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor()
