from __future__ import annotations

import io
import sys
import time

import pytest

from mlp_lab.sweep import progress as module
from mlp_lab.sweep.progress import Progress, say
from mlp_lab.sweep.runs import Point
from tests.sweep.test_results import ONE, study


def test_progress_says_what_is_new() -> None:
    lines: list[str] = []
    told = study(("COMPLETE", [0.5], {"epochs": 3}), *[("COMPLETE", [value], {"epochs": 3}) for value in (0.75, 0.25)])
    progress = Progress(study(("COMPLETE", [0.4], {})), ["val/loss"], 8, lines.append)
    for trial in told.trials:
        progress.trial(trial, Point(number=trial.number, seed=0, settings={"model.depth": trial.number}))
    assert [line.split()[2:4] for line in lines] == [["0.5", "3"], ["0.75", "3"], ["0.25", "*"]]  # 0.4 was known
    progress.trial(ONE.trials[1], Point(number=1, seed=0, settings={"model.depth": 2}))
    assert lines[-1].split("epochs")[1].strip() == "depth 2  failed: out of memory, alas"
    progress.finished = 4
    progress.status()
    assert lines[-1].startswith("4 of 8 trials, best val/loss 0.25 (trial 2), ")
    assert lines[-1].endswith(" left")


def test_progress_counts_what_runs_and_how_trials_ended() -> None:
    progress = Progress(study(*[("PRUNED", [1.0], {})] * 2), ["val/loss"], 9, lambda line: None)
    progress.begin(3)
    assert progress.words() == "2 of 9 trials, 2 pruned, 3 running, 0 s so far"
    progress.trial(ONE.trials[1], Point(number=1, seed=0, settings={}))
    progress.start -= 60
    assert progress.words() == "3 of 9 trials, 2 pruned, 1 failed, 2 running, 1.0 a minute, 6 min left"
    assert Progress(ONE, ["val/loss"], None).words() == (
        "5 trials, best val/loss 0.25 (trial 2), 2 diagnosed, 1 failed"  # what was lost is asked again
    )


def test_progress_without_a_terminal_prints_plain_lines_every_so_often(capsys: pytest.CaptureFixture[str]) -> None:
    lines: list[str] = []
    with Progress(study(), ["val/loss"], 4, every=0.01) as progress:
        progress.begin(4)
        deadline = time.monotonic() + 20
        while len(lines) < 3 and time.monotonic() < deadline:
            time.sleep(0.01)
            lines += capsys.readouterr().out.splitlines()
    assert lines[0].split() == ["val/loss", "settings", "(*", "best", "so", "far)"]
    assert all(line.startswith("0 of 4 trials, 4 running, ") for line in lines[1:])
    assert len(lines) >= 3
    assert "\x1b" not in "".join(lines)


def test_progress_on_a_terminal_is_one_live_line(monkeypatch: pytest.MonkeyPatch) -> None:
    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    terminal = Terminal()
    for name, value in {"TERM": "xterm", "COLUMNS": "60"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(sys, "stdout", terminal)
    assert module.is_terminal()
    with Progress(study(), ["val/loss"], 4, every=0.01) as progress:
        progress.begin(4)
        time.sleep(0.1)
        progress.trial(ONE.trials[0], Point(number=0, seed=0, settings={"model.depth": 1}))
        progress.status()
    text = terminal.getvalue()
    assert "trial    0         0.5 *     3 epochs  depth 1\n" in text
    assert not any(line.endswith(" so far") for line in text.splitlines())  # it is redrawn in place
    assert text.endswith("\x1b[2K")  # and erased
    monkeypatch.setenv("TERM", "dumb")
    assert not module.is_terminal()


def test_say_prints_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    flushed: list[str] = []

    class File(io.StringIO):
        def flush(self) -> None:
            flushed.append(self.getvalue())

    monkeypatch.setattr(sys, "stdout", File())
    say("a line")
    assert flushed == ["a line\n"]
