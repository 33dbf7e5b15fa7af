from __future__ import annotations

import sys
from pathlib import Path

import pytest

from mlp_lab.program import program


@pytest.fixture
def binaries(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder on PATH with an interpreter and the console script."""
    for name in ("python3", "mlp_lab"):
        (tmp_path / name).touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.delenv("UV_RUN_RECURSION_DEPTH", raising=False)
    return tmp_path


@pytest.mark.parametrize(
    ("argument", "interpreter", "expected"),
    [
        ("/src/mlp_lab/__main__.py", "python3", "python3 -m mlp_lab"),
        ("/src/mlp_lab/__main__.py", "BIN/python3", "python3 -m mlp_lab"),
        ("/src/mlp_lab/__main__.py", ".venv/bin/python", ".venv/bin/python -m mlp_lab"),
        ("/src/mlp_lab/__main__.py", "/a b/python", "'/a b/python' -m mlp_lab"),
        ("BIN/mlp_lab", "python3", "mlp_lab"),
        ("/elsewhere/bin/mlp_lab", "python3", "/elsewhere/bin/mlp_lab"),
        ("/site-packages/ipykernel_launcher.py", "python3", "python -m mlp_lab"),
        ("", "python3", "python -m mlp_lab"),
    ],
)
def test_program_is_named_as_the_user_started_it(
    argument: str, interpreter: str, expected: str, binaries: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", [argument.replace("BIN", str(binaries))])
    monkeypatch.setattr(sys, "orig_argv", [interpreter.replace("BIN", str(binaries)), "-m", "mlp_lab"])
    assert program() == expected


@pytest.mark.parametrize(
    ("argument", "expected"),
    [("/src/mlp_lab/__main__.py", "uv run python -m mlp_lab"), ("/src/.venv/bin/mlp_lab", "uv run mlp_lab")],
)
def test_program_under_uv_is_named_with_it(
    argument: str, expected: str, binaries: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "argv", [argument])
    monkeypatch.setenv("UV_RUN_RECURSION_DEPTH", "1")
    assert program() == expected
