"""What people see of a population's verdicts: each fault once, with the members that have it, and `diagnosis.json`."""

from __future__ import annotations

import json
from collections.abc import Sequence

import lightning as L
from rich.console import Console
from rich.panel import Panel
from rich.text import Text

from mlp_lab.diagnostics.display import COLORS, FILE, WIDTH, plain, run_directory
from mlp_lab.diagnostics.findings import SEVERITIES, Verdict
from mlp_lab.text import printable
from mlp_lab.training.progress import EpochTable
from mlp_lab.training.tracking import write_text

SHOWN = 8  # members that are named of a fault


class PopulationReport:
    """Writes every member's verdicts as they come, and shows them at the end."""

    def __init__(self, console: Console | None = None) -> None:
        self._console = console
        self._written = ""

    def update(self, trainer: L.Trainer, verdicts: Sequence[Sequence[Verdict]]) -> None:
        """Writes `diagnosis.json`: every member's verdicts in one list, each with its `member`."""
        rows = [{"member": number, **plain(one.to_dict())} for number, found in enumerate(verdicts) for one in found]
        text = json.dumps(rows, indent=2, allow_nan=False) + "\n"
        directory = run_directory(trainer)
        if directory is not None and directory.is_dir() and text != self._written:
            write_text(directory / FILE, text)
            self._written = text

    def close(self, trainer: L.Trainer, verdicts: Sequence[Sequence[Verdict]]) -> None:
        """Shows the faults of the whole run."""
        self.update(trainer, verdicts)
        console = self._console or next(
            (one.console for one in trainer.callbacks if isinstance(one, EpochTable)),  # type: ignore[attr-defined]
            Console(highlight=False),
        )
        lines = told(verdicts)
        if not lines:
            console.print(f"diagnosis: no fault found in any of {len(verdicts)} members")
            return
        worst = max((one.severity for found in verdicts for one in found), key=SEVERITIES.index)
        title = f"diagnosis of {len(verdicts)} members"
        body = Text("\n").join(lines)
        panel = Panel(body, title=title, title_align="left", border_style=COLORS[worst])
        console.print(panel, width=min(console.width, WIDTH))


def told(verdicts: Sequence[Sequence[Verdict]]) -> list[Text]:
    """Returns a line per fault that is a root cause in some member: the most severe first, then the most frequent.

    >>> fault = Verdict(code="dead_units", severity="warning", fix=["--model.bias 0"])
    >>> [str(line) for line in told([[fault], [], [fault]])]
    ['warning: dead_units in 2 of 3 members (0, 2); fix: --model.bias 0']
    """
    found: dict[str, dict[int, Verdict]] = {}
    for number, ones in enumerate(verdicts):
        for one in ones:
            if one.consequence_of is None:
                found.setdefault(one.code, {})[number] = one
    lines = []
    for code, members in sorted(found.items(), key=lambda item: (-_weight(item[1]), -len(item[1]))):
        worst = max(members.values(), key=lambda one: SEVERITIES.index(one.severity))
        names = ", ".join(map(str, list(members)[:SHOWN])) + (", ..." if len(members) > SHOWN else "")
        fixes = {" ".join(one.fix) for one in members.values() if one.fix}
        cure = f"; fix: {next(iter(fixes))}" if len(fixes) == 1 else "; fixes differ by member" if fixes else ""
        text = f"{worst.severity}: {code} in {len(members)} of {len(verdicts)} members ({names}){cure}"
        lines.append(Text(printable(text), style=COLORS[worst.severity]))
    return lines


def _weight(members: dict[int, Verdict]) -> int:
    return max(SEVERITIES.index(one.severity) for one in members.values())
