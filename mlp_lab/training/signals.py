"""SIGTERM and SIGUSR1 end a command: between two training steps while it trains, at once at any other time.

Lightning's own handler of SIGTERM is switched off: it starts a collective call from within the handler, which several
processes answer at different places, and it ends the program as if it had succeeded.
"""

from __future__ import annotations

import signal
import threading
from types import FrameType, TracebackType
from typing import TYPE_CHECKING

from mlp_lab.errors import Terminated

if TYPE_CHECKING:
    import lightning as L

SIGNALS = tuple(getattr(signal, name) for name in ("SIGTERM", "SIGUSR1") if hasattr(signal, name))  # Windows has one
INSIST = 3  # so many signals end even a training whose steps do not end


class TerminationSignals:
    """Handles the signals that end a command; a context manager, which gives the former handlers back."""

    def __init__(self) -> None:
        self.received: int | None = None
        """The first signal that has come."""
        self.deferred = False
        """Whether a signal is only noted: who sets it looks at `received`, and raises `Terminated`."""
        self._count = 0
        self._before: dict[int, object] = {}

    def __enter__(self) -> TerminationSignals:
        if threading.current_thread() is threading.main_thread():  # Python handles signals nowhere else
            self._before = {number: signal.signal(number, self._handle) for number in SIGNALS}
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _handle(self, number: int, frame: FrameType | None) -> None:
        self.received = self.received or number
        self._count += 1
        if not self.deferred or self._count >= INSIST:
            raise Terminated(number)

    def replace_handlers_of(self, trainer: L.Trainer) -> None:
        """Keeps a trainer from handling signals itself, and from asking the first process for one before each step."""
        trainer._signal_connector.register_signal_handlers = lambda: None  # type: ignore[method-assign]
        trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]
