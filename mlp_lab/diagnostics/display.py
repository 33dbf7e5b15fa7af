"""What people see of verdicts: a panel when one appears, all of them at the end, and `diagnosis.json`.

A verdict that follows from another is told beneath it: one story, told once. Flags stand outside the frames, so that a
line can be pasted.
"""

from __future__ import annotations

import json
import math
import shlex
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import lightning as L
from rich.console import Console, Group
from rich.padding import Padding
from rich.panel import Panel
from rich.text import Text

from mlp_lab.diagnostics.dashboard import define, send_verdicts
from mlp_lab.diagnostics.findings import SEVERITIES, Verdict
from mlp_lab.paths import from_here
from mlp_lab.program import program
from mlp_lab.text import printable
from mlp_lab.training.progress import EpochTable
from mlp_lab.training.tracking import MetricsCSV, RunDirectory, write_text

FILE = "diagnosis.json"
COLORS = {"info": "cyan", "warning": "yellow", "critical": "red"}
WIDTH = 80  # of a panel at most, and where the output is no terminal
SHOWN_NUMBERS = 4  # of a verdict's evidence
LARGEST_WHOLE = 1e9  # a number that is printed with all its digits
CLEAR_LINE = "\r\x1b[2K"


class VerdictReport:
    """Tells people, files and loggers of the verdicts of one fit; the first process alone does.

    Args:
        console: Where panels go; None means where the progress table goes, else standard output.
    """

    def __init__(self, console: Console | None = None) -> None:
        self._console = console
        self._told: dict[str, int] = {}  # code -> the severity that it was told with
        self._written: str | None = None

    def start(self, trainer: L.Trainer, verdicts: Sequence[Verdict]) -> None:
        """Begins a fit; a resumed one has told of these verdicts before."""
        self._told = {verdict.code: SEVERITIES.index(verdict.severity) for verdict in verdicts}
        self._written = None
        if trainer.is_global_zero:
            define(trainer.loggers)

    def update(self, trainer: L.Trainer, verdicts: Sequence[Verdict]) -> None:
        """Shows verdicts that are new or have become more severe, a consequence in the panel of its cause."""
        if not trainer.is_global_zero:
            return
        fresh = [one for one in verdicts if SEVERITIES.index(one.severity) > self._told.get(one.code, -1)]
        if not fresh:
            return
        new = [one for one in fresh if one.code not in self._told]
        for one in fresh:
            if one.code in self._told:  # its panel has been shown
                self._print(trainer, Text(f"now {_title(one)}", style=COLORS[one.severity]))
        before = set(self._told)
        self._told |= {one.code: SEVERITIES.index(one.severity) for one in fresh}
        for root, consequences in stories(new):
            if root.consequence_of in before:  # its story has been told
                self._print(
                    trainer, Text(f"{root.consequence_of} leads to {_title(root)}", style=COLORS[root.severity])
                )
                continue
            self._print(trainer, panel([(root, consequences)], title=_title(root)))
            self._print(trainer, Text(printable(_advice(root))))
        self._save(trainer, verdicts)
        send_verdicts(trainer.loggers, verdicts)

    def close(self, trainer: L.Trainer, verdicts: Sequence[Verdict], measured: bool = True) -> None:
        """Shows all verdicts and their fixes, or one line where there are none.

        Args:
            trainer: The trainer whose fit ends.
            verdicts: All of them, root causes first.
            measured: Whether anything was measured to judge by.
        """
        if not trainer.is_global_zero:
            return
        steps = f"{trainer.global_step:,} step{'s' if trainer.global_step != 1 else ''}"
        if verdicts:
            told = list(stories(verdicts))
            self._print(trainer, panel(told, title=f"diagnosis after {steps}"))
            for line in fix_lines(told, run_directory(trainer)):
                self._print(trainer, Text(printable(line)))
        elif measured:
            self._print(trainer, Text(f"diagnosis: no fault found in {steps}"))
        self._save(trainer, verdicts)
        send_verdicts(trainer.loggers, verdicts)

    def _save(self, trainer: L.Trainer, verdicts: Sequence[Verdict]) -> None:
        directory = run_directory(trainer)
        text = to_json(verdicts)
        if directory is not None and directory.is_dir() and text != self._written:
            write_text(directory / FILE, text)
            self._written = text

    def _print(self, trainer: L.Trainer, what: Panel | Text) -> None:
        console = self._console or next(
            (one.console for one in trainer.callbacks if isinstance(one, EpochTable)),  # type: ignore[attr-defined]
            None,
        )
        console = self._console = console or Console(highlight=False)
        if console.is_terminal:
            console.file.write(CLEAR_LINE)  # the table's live line, which it draws again
        if isinstance(what, Panel):
            console.print(what, width=min(console.width, WIDTH))
        else:
            console.print(what, soft_wrap=True)  # a line that is pasted must be one


def run_directory(trainer: L.Trainer) -> Path | None:
    """Returns the directory of the run, where its `metrics.csv` is; None without one."""
    return next((one.path.parent for one in trainer.loggers if isinstance(one, MetricsCSV)), None)


def stories(verdicts: Sequence[Verdict]) -> Iterator[tuple[Verdict, list[Verdict]]]:
    """Yields each root cause with all that follows from it; one whose cause is not among them is a root here."""
    codes = {verdict.code for verdict in verdicts}
    roots = [one for one in verdicts if one.consequence_of not in codes or one.consequence_of == one.code]
    told = {root.code for root in roots}
    for root in roots:
        family, grown = {root.code}, True
        while grown:  # consequences of consequences
            more = {one.code for one in verdicts if one.consequence_of in family and one.code not in told | family}
            family, grown = family | more, bool(more)
        yield root, [one for one in verdicts if one.code in family and one is not root and one not in roots]


def panel(told: Sequence[tuple[Verdict, Sequence[Verdict]]], *, title: str) -> Panel:
    """Returns the frame around stories: each root cause, its numbers, and its consequences beneath it."""
    parts: list[Any] = []
    for root, consequences in told:
        if parts:
            parts.append(Text())
        if len(told) > 1 or title != _title(root):
            parts.append(Text(_title(root), style=f"bold {COLORS[root.severity]}"))
        parts += [Text(printable(root.message)), Text(printable(_numbers(root.evidence)), style="dim")]
        for one in consequences:
            what = (_title(one), f"bold {COLORS[one.severity]}")
            line = Text.assemble("it leads to ", what, f": {one.message.split('. ')[0].rstrip('.')}.")
            parts.append(Padding(line, (0, 0, 0, 2)))
    worst = max((root.severity for root, _ in told), key=SEVERITIES.index)
    parts = [part for part in parts if not (isinstance(part, Text) and part.style == "dim" and not part.plain)]
    return Panel(Group(*parts), title=title, title_align="left", border_style=COLORS[worst])


def fix_lines(told: Sequence[tuple[Verdict, Sequence[Verdict]]], directory: Path | None) -> Iterator[str]:
    """Yields for every story that has a cure a line that says so and the line to paste."""
    for root, consequences in told:
        fix = next((one.fix for one in (root, *consequences) if one.fix), None)
        if not fix:
            continue
        if not fix[0].startswith("--"):  # no flag can: a line of Python
            yield f"to cure {root.code}: {' '.join(fix)}"
        else:
            yield f"to cure {root.code}:"
            yield f"  {command(fix, directory)}"


def command(fix: Sequence[str], directory: Path | None) -> str:
    """Returns the command that repeats a run with flags that cure it."""
    if directory is None:
        return " ".join(fix)
    config = shlex.quote(from_here(RunDirectory(directory).effective))
    return f"{program()} fit --config {config} {' '.join(fix)}"


def to_json(verdicts: Sequence[Verdict]) -> str:
    """Returns the text of `diagnosis.json`; JSON knows no NaN and no infinity, so they are null."""
    return json.dumps([plain(verdict.to_dict()) for verdict in verdicts], indent=2, allow_nan=False) + "\n"


def plain(value: Any) -> Any:
    """Returns a value as JSON can hold it: no NaN, no infinity."""
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _title(verdict: Verdict) -> str:
    """Returns severity, code, layer and step.

    >>> _title(Verdict(code="dead_units", severity="critical", layer=2, step=46))
    'critical: dead_units, layer 2, step 46'
    """
    layer = "" if verdict.layer is None else f", layer {verdict.layer}"
    return f"{verdict.severity}: {verdict.code}{layer}, step {verdict.step:,}"


def _numbers(evidence: Mapping[str, float]) -> str:
    """Returns the first numbers of a verdict's evidence: whole ones in full, others to three digits.

    >>> _numbers({"units/dead/2": 0.96875, "val/loss": 2.3026, "row": 1624.0})
    'units/dead/2 0.969 · val/loss 2.3 · row 1,624'
    """
    return " · ".join(f"{name} {_number(value)}" for name, value in list(evidence.items())[:SHOWN_NUMBERS])


def _number(value: float) -> str:
    whole = float(value).is_integer() and abs(value) < LARGEST_WHOLE
    return f"{int(value):,}" if whole else f"{value:.3g}"


def _advice(verdict: Verdict) -> str:
    """Returns the line under the panel of a verdict that has just appeared."""
    if verdict.fix:
        return f"fix: {' '.join(verdict.fix)}"
    return f"it follows from {verdict.consequence_of}" if verdict.consequence_of else "no single flag cures it"
