"""What a search prints while it runs: a line per trial, and how far it is.

On a terminal the second is a live line below the others. Elsewhere (a file, a pipe, a log of a job) it is an ordinary
line every so often, without control characters.
"""

from __future__ import annotations

import math
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from types import TracebackType

from optuna import Study
from optuna.trial import FrozenTrial, TrialState
from rich.console import Console
from rich.live import Live
from rich.text import Text

from mlp_lab.sweep.facts import count_trials
from mlp_lab.sweep.pruning import worth
from mlp_lab.sweep.results import best_trials, describe, state_of
from mlp_lab.sweep.runs import Point
from mlp_lab.text import printable

EVERY_SECONDS = 30.0  # between lines that say how far a search is, where there is no terminal
ENDED_EARLY = ("pruned", "diagnosed", "failed")  # states that are counted apart


def say(line: str) -> None:
    """Prints a line at once, into a file too."""
    sys.stdout.write(f"{line}\n")
    sys.stdout.flush()


class Progress:
    """Prints a line per trial, and how far the search is; within a `with` block it repeats the second by itself.

    It reads the study in `refresh`, in the thread that calls it; the live line shows what was read last.

    Args:
        study: The study.
        metrics: Its metrics.
        budget: Trials to finish; None where time is the budget.
        show: Prints a line. With the default the line is live on a terminal.
        every: Seconds between lines that say how far the search is, where there is no terminal.
    """

    def __init__(
        self,
        study: Study,
        metrics: Sequence[str],
        budget: int | None,
        show: Callable[[str], None] = say,
        *,
        every: float = EVERY_SECONDS,
    ) -> None:
        self.study, self.metrics, self.budget, self.every = study, metrics, budget, every
        self._print, self._lock = show, threading.Lock()
        self._widths = [max(10, len(name)) for name in metrics]
        self._headed = False
        self._live: Live | None = None
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self.start, self.ended = time.monotonic(), 0
        self.shown = self.start
        """When it was last said how far the search is."""
        self.finished, self.running = 0, 0
        self.states: Counter[str] = Counter()
        self.best: FrozenTrial | None = None
        self.refresh()

    def __enter__(self) -> Progress:
        if self._print is say and is_terminal():
            console = Console(highlight=False)
            self._live = Live(get_renderable=self._line, console=console, transient=True, refresh_per_second=2)
            self._live.start()
        else:
            self._thread = threading.Thread(target=self._repeat, daemon=True, name="progress")
            self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._stop.set()
        if self._live is not None:
            self._live.stop()
            self._live = None
        if self._thread is not None:
            self._thread.join()

    def _line(self) -> Text:
        return Text(self.words(), style="dim", no_wrap=True, overflow="ellipsis")

    def _repeat(self) -> None:
        while not self._stop.wait(self.every / 10):
            if time.monotonic() - self.shown >= self.every:
                self.status()

    def show(self, line: str) -> None:
        """Prints a line, whole, whichever thread wants to print too."""
        with self._lock:
            self._print(printable(line))

    def begin(self, count: int) -> None:
        """Counts trials that begin; before the first it names the columns of their lines."""
        if not self._headed:
            self._headed = True
            names = " ".join(f"{name:>{width}}" for name, width in zip(self.metrics, self._widths, strict=True))
            self.show(f"{'':<10}  {names}{'':>15}settings" + (" (* best so far)" if len(self.metrics) == 1 else ""))
        self.running += count

    def trial(self, trial: FrozenTrial, point: Point) -> None:
        """Prints a trial that has just ended."""
        state = state_of(trial)
        self.ended += 1
        self.finished += 1
        self.running = max(0, self.running - 1)
        self.states[state] += 1
        values = " ".join(
            f"{value:>{width}.4g}"
            for value, width in zip(trial.values or [math.nan] * len(self._widths), self._widths, strict=True)
        ).replace("nan", "  –")
        star = " *" if self._is_best(trial) else "  "
        epochs = _counted(int(trial.user_attrs.get("epochs", 0)))
        words = {"complete": "", "failed": f"failed: {trial.user_attrs.get('error')}"}.get(state, state)
        if state == "diagnosed":
            words = f"stopped: {trial.user_attrs['diagnosed']}"
        parts = [part for part in (describe(point.settings), words) if part]
        self.show(f"trial {trial.number:>4}  {values}{star}  {epochs}  {'  '.join(parts)}")

    def _is_best(self, trial: FrozenTrial) -> bool:
        if len(self.metrics) > 1 or state_of(trial) != "complete":
            return False
        maximize = self.study.directions[0].name == "MAXIMIZE"
        if self.best is not None and worth(trial.values[0], maximize) >= worth(self.best.values[0], maximize):
            return False
        self.best = trial
        return True

    def refresh(self) -> None:
        """Reads from the study how far all its workers are."""
        counts = count_trials(self.study)
        self.finished, self.running = counts.finished, counts.running
        ended = self.study.get_trials(deepcopy=False, states=(TrialState.PRUNED, TrialState.FAIL, TrialState.COMPLETE))
        self.states = Counter(state_of(trial) for trial in ended)
        self.best = next(iter(best_trials(self.study)), None)

    def status(self) -> None:
        """Prints how far the search is, where no live line says so."""
        if self._live is None:
            self.shown = time.monotonic()
            self.show(self.words())

    def words(self) -> str:
        """Returns how many trials have ended and how, the best, what runs, the rate and a rough time left."""
        seconds = time.monotonic() - self.start
        rate = self.ended / seconds if seconds > 0 else 0.0
        of = f" of {self.budget:,}" if self.budget and self.finished <= self.budget else ""
        parts = [f"{self.finished:,}{of} trials"]
        if self.best is not None and len(self.metrics) == 1:
            parts.append(f"best {self.metrics[0]} {self.best.values[0]:.4g} (trial {self.best.number})")
        parts += [f"{self.states[state]:,} {state}" for state in ENDED_EARLY if self.states[state]]
        if self.running:
            parts.append(f"{self.running:,} running")
        if rate:
            parts.append(f"{60 * rate:,.1f} a minute")
        if rate and self.budget and self.finished < self.budget:
            parts.append(f"{duration((self.budget - self.finished) / rate)} left")
        elif self.running:
            parts.append(f"{duration(seconds)} so far")
        return ", ".join(parts)


def is_terminal() -> bool:
    """Returns whether the output is a terminal that can redraw a line."""
    return sys.stdout.isatty() and not Console().is_dumb_terminal


def _counted(epochs: int) -> str:
    return f"{epochs:>4} epoch{'s' if epochs != 1 else ' '}"


def duration(seconds: float) -> str:
    """Writes a time in its largest unit.

    >>> duration(30), duration(200), duration(9000)
    ('30 s', '3 min', '2.5 h')
    """
    if seconds < 99.5:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"
