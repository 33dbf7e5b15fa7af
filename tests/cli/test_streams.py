from __future__ import annotations

import io
import os
import subprocess
import sys
from pathlib import Path

import pytest

from mlp_lab.cli.main import main
from mlp_lab.cli.streams import any_encoding
from tests.cli.conftest import Bench, write_table


def written(monkeypatch: pytest.MonkeyPatch, encoding: str, text: str) -> str:
    """Returns what a terminal of an encoding receives when a command prints the text."""
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    monkeypatch.setattr(sys, "stdout", stream)
    with any_encoding():
        print(text, end="", flush=True)
    assert stream.errors == "strict"
    return stream.buffer.getvalue().decode(encoding)


@pytest.mark.parametrize(
    ("encoding", "text", "expected"),
    [
        ("utf-8", "größe → 8 × 8", "größe → 8 × 8"),
        ("cp1252", "größe → 8 × 8", "größe > 8 × 8"),
        ("ascii", "größe → 8 × 8", "gr\\xf6\\xdfe > 8 x 8"),
        ("utf-8", "from an undecodable file name: \udcf6", "from an undecodable file name: \\udcf6"),
    ],
)
def test_any_encoding_replaces_only_what_the_encoding_lacks(
    encoding: str, text: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert written(monkeypatch, encoding, text) == expected


@pytest.mark.parametrize("encoding", ["cp1252", "ascii"])
@pytest.mark.parametrize("words", ["--help", "fit --help", "sweep --help", "summary", "größe"])
def test_every_text_can_be_printed_in_an_encoding_that_lacks_its_characters(
    words: str, encoding: str, bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("stdout", "stderr"):
        monkeypatch.setattr(sys, name, io.TextIOWrapper(io.BytesIO(), encoding=encoding))
    assert main(words.split()) == (2 if words == "größe" else 0)


@pytest.mark.slow
def test_fit_and_test_in_a_locale_without_umlauts_write_utf8(tmp_path: Path) -> None:
    write_table(tmp_path / "table.csv", header="größe,b,→,y")
    (tmp_path / "table.csv").write_text((tmp_path / "table.csv").read_text("utf-8").replace("yes", "schön"), "utf-8")
    locale = {"PYTHONUTF8": "0", "LC_ALL": "C", "PYTHONCOERCECLOCALE": "0"}
    command = [sys.executable, "-m", "mlp_lab"]
    data = "--data.path table.csv --data.target y --data.drop [größe] --data.batch_size 16"
    fit = f"fit {data} --trainer.max_epochs 1 --run.dir run"
    for words in (fit, "test --run run", "predict --run run", "summary --run run"):
        answer = subprocess.run(
            [*command, *words.split()], cwd=tmp_path, env=os.environ | locale, capture_output=True, check=False
        )
        assert answer.returncode == 0, answer.stderr.decode()
        assert answer.stdout.isascii()
    assert "größe" in (tmp_path / "run" / "config.yaml").read_text("utf-8")
    assert "p(schön)" in (tmp_path / "run" / "predictions.csv").read_text("utf-8")
