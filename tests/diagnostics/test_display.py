"""Panels that fit 80 columns and a file, stories told once, and a diagnosis.json that any parser reads."""

from __future__ import annotations

import io
import json
import os
import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console

from mlp_lab.diagnostics.display import FILE, VerdictReport, command, fix_lines, stories, to_json
from mlp_lab.diagnostics.findings import Severity, Verdict
from mlp_lab.training.progress import EpochTable
from mlp_lab.training.tracking import MetricsCSV

LONG = "most units of the layer are 0 on every validation row, so that no gradient passes them " * 3


def verdict(code: str, of: str | None = None, severity: Severity = "critical", **values: Any) -> Verdict:
    return Verdict(code=code, severity=severity, consequence_of=of, message=values.pop("message", LONG), **values)


DEAD = verdict("dead_units", layer=2, step=46, evidence={"units/dead/2": 0.96875}, fix=["--model.bias", "0"])
SMALL = verdict("vanishing_gradient", "dead_units", step=46)
IDLE = verdict("not_learning", "vanishing_gradient", step=92, evidence={"val/loss": float("nan")})
INPUTS = verdict("unscaled_inputs", severity="warning", step=1, fix=["--data.scaling", "standard"])


def trainer(*callbacks: Any, directory: Path | None = None, zero: bool = True) -> Any:
    loggers = [] if directory is None else [MetricsCSV(directory / "metrics.csv")]
    return SimpleNamespace(is_global_zero=zero, callbacks=callbacks, loggers=loggers, global_step=450)


def report(terminal: bool = False, width: int = 80) -> tuple[VerdictReport, io.StringIO]:
    file = io.StringIO()
    return VerdictReport(Console(file=file, force_terminal=terminal, width=width, highlight=False)), file


def test_a_file_gets_panels_of_80_columns_without_control_characters() -> None:
    told, file = report()
    told.update(trainer(), [DEAD, SMALL, IDLE, INPUTS])
    told.close(trainer(), [DEAD, SMALL, IDLE, INPUTS])
    text = file.getvalue()
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f]", text)
    assert max(map(len, text.splitlines())) <= 80
    assert "critical: dead_units, layer 2, step 46" in text
    assert "units/dead/2 0.969" in text


@pytest.mark.parametrize("width", [40, 80, 200])
def test_the_line_to_paste_is_one_line_outside_the_frame(width: int, tmp_path: Path) -> None:
    told, file = report(width=width)
    told.close(trainer(directory=tmp_path), [DEAD])
    (line,) = [line for line in file.getvalue().splitlines() if "--config" in line]
    assert line == f"  python -m mlp_lab fit --config {tmp_path}/config.yaml --model.bias 0"
    frames = [line for line in file.getvalue().splitlines() if line.startswith(("╭", "│", "╰"))]
    assert {len(line) for line in frames} == {min(width, 80)}


def test_paths_below_the_working_directory_are_short_and_odd_ones_quoted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    assert command(["--a", "1"], tmp_path / "my run") == "python -m mlp_lab fit --config 'my run/config.yaml' --a 1"
    assert command(["--a", "1"], None) == "--a 1"


def test_each_story_is_told_once_root_first() -> None:
    told = list(stories([DEAD, INPUTS, SMALL, IDLE]))
    assert told == [(DEAD, [SMALL, IDLE]), (INPUTS, [])]
    assert list(stories([IDLE])) == [(IDLE, [])]  # its cause is not among them
    text = io.StringIO()
    VerdictReport(Console(file=text, width=80)).close(trainer(), [DEAD, INPUTS, SMALL, IDLE])
    found = re.findall(r"(dead_units|unscaled_inputs|vanishing_gradient|not_learning), ", text.getvalue())
    assert found == ["dead_units", "vanishing_gradient", "not_learning", "unscaled_inputs"]


def test_a_fix_that_is_python_is_shown_as_it_is() -> None:
    frozen = verdict("frozen_layer", fix=["module.model.head.requires_grad_(True)"])
    assert list(fix_lines([(frozen, [])], Path("runs/a"))) == [
        "to cure frozen_layer: module.model.head.requires_grad_(True)"
    ]
    assert list(fix_lines([(SMALL, [DEAD])], None)) == ["to cure vanishing_gradient:", "  --model.bias 0"]
    assert list(fix_lines([(SMALL, [])], None)) == []


def test_a_verdict_is_shown_when_it_appears_and_when_it_gets_worse() -> None:
    told, file = report()
    mild = verdict("dead_units", severity="warning", step=20)
    for verdicts in ([], [mild], [mild], [DEAD], [mild], [DEAD, IDLE]):
        told.update(trainer(), verdicts)
    titles = re.findall(r"╭─ (\w+: \w+)", file.getvalue())
    assert titles == ["warning: dead_units", "critical: not_learning"]
    assert file.getvalue().count("now critical: dead_units, layer 2, step 46\n") == 1
    assert "it follows from vanishing_gradient" in file.getvalue()


def test_what_follows_from_a_story_that_was_told_takes_one_line() -> None:
    told, file = report()
    told.update(trainer(), [DEAD])
    told.update(trainer(), [DEAD, SMALL])
    assert file.getvalue().count("╭─") == 1
    assert file.getvalue().endswith("\ndead_units leads to critical: vanishing_gradient, step 46\n")


def test_a_resumed_run_does_not_repeat_what_it_told() -> None:
    told, file = report()
    told.start(trainer(), [DEAD])
    told.update(trainer(), [DEAD])
    assert file.getvalue() == ""
    told.close(trainer(), [DEAD])
    assert "dead_units" in file.getvalue()


def test_a_healthy_run_gets_one_line_and_an_empty_list(tmp_path: Path) -> None:
    told, file = report()
    told.update(trainer(directory=tmp_path), [])
    told.close(trainer(directory=tmp_path), [])
    assert file.getvalue() == "diagnosis: no fault found in 450 steps\n"
    assert json.loads((tmp_path / FILE).read_text()) == []


def test_nothing_is_said_of_a_run_that_was_not_measured() -> None:
    told, file = report()
    told.close(trainer(), [], measured=False)
    assert file.getvalue() == ""


def test_the_first_process_alone_tells(tmp_path: Path) -> None:
    told, file = report()
    told.start(trainer(zero=False), [])
    told.update(trainer(directory=tmp_path, zero=False), [DEAD])
    told.close(trainer(directory=tmp_path, zero=False), [DEAD])
    assert file.getvalue() == ""
    assert os.listdir(tmp_path) == []


def test_the_file_is_written_when_a_verdict_appears_and_is_json(tmp_path: Path) -> None:
    told, _ = report()
    told.update(trainer(directory=tmp_path), [DEAD, IDLE])
    values = json.loads((tmp_path / FILE).read_text(), parse_constant=lambda text: pytest.fail(f"{text} is no JSON"))
    assert [one["code"] for one in values] == ["dead_units", "not_learning"]
    assert values[0] == DEAD.to_dict()
    assert values[1]["evidence"] == {"val/loss": None}
    told.close(trainer(directory=tmp_path), [])
    assert json.loads((tmp_path / FILE).read_text()) == []
    assert os.listdir(tmp_path) == [FILE]


def test_infinities_are_null() -> None:
    odd = verdict("nonfinite", evidence={"a": float("inf"), "b": -float("inf"), "c": 1.5})
    assert json.loads(to_json([odd]))[0]["evidence"] == {"a": None, "b": None, "c": 1.5}


def test_a_panel_takes_the_place_of_the_live_line() -> None:
    """On a terminal the table's line is cleared first, and the panel goes where the table goes."""
    file = io.StringIO()
    table = EpochTable(Console(file=file, force_terminal=True, width=80, highlight=False))
    table.console.file.write("epoch 1  step 5/10  loss 0.5")
    told = VerdictReport()
    told.update(trainer(table), [DEAD])
    before, after = file.getvalue().split("\r\x1b[2K", 1)
    assert before == "epoch 1  step 5/10  loss 0.5"
    assert "dead_units" in after
    assert table.console.file is file
