"""The README does what it says: its commands, its Python, its files."""

import re
import shlex
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from mlp_lab.cli.main import COMMANDS, main
from mlp_lab.model.activations import ACTIVATIONS

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text("utf-8")
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README, flags=re.DOTALL)
PREFIX = ["uv", "run", "python", "-m", "mlp_lab"]


def commands() -> list[list[str]]:
    """Returns the arguments of every `python -m mlp_lab` line, in order; the two set-up commands are tried by CI."""
    lines = [line for kind, text in BLOCKS if kind == "bash" for line in text.splitlines()][2:]
    words = [shlex.split(line) for line in lines]
    assert all(line[: len(PREFIX)] == PREFIX for line in words)
    return [line[len(PREFIX) :] for line in words]


def write_houses(path: Path, *, rows: int, target: bool) -> None:
    generator = np.random.default_rng(0)
    size, town = generator.uniform(40, 200, rows).round(1), generator.choice(["Bern", "Basel", "Chur"], rows)
    price = 4000 * size + 50_000 * (town == "Bern") + generator.normal(0, 10_000, rows)
    frame = pd.DataFrame({"size": size, "town": town} | ({"price": price.round()} if target else {}))
    frame.to_csv(path, index=False)


def test_the_first_block_is_the_set_up() -> None:
    kind, text = BLOCKS[0]
    lines = text.strip().splitlines()
    assert kind == "bash"
    assert lines[0] == "pip install uv && uv run python -m mlp_lab fit --config configs/digits.yaml"
    assert len(lines) == 2
    assert "pytest" in lines[1]


def test_every_command_of_the_program_is_shown() -> None:
    assert {line[0] for line in commands()} == set(COMMANDS)


@pytest.mark.slow
def test_the_commands_run_in_order(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for folder in ("configs", "sweeps"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    write_houses(tmp_path / "houses.csv", rows=600, target=True)
    write_houses(tmp_path / "new_houses.csv", rows=7, target=False)
    own = next(text for kind, text in BLOCKS if kind == "python" and "class MyData" in text)
    (tmp_path / "my_data.py").write_text(own, "utf-8")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.chdir(tmp_path)
    for line in commands():
        assert main(line) == 0, line
    assert len(pd.read_csv("runs/houses/latest/predictions-new_houses.csv")) == 7


@pytest.mark.parametrize("code", [text for kind, text in BLOCKS if kind == "python"])
def test_the_python_runs(code: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "configs").symlink_to(ROOT / "configs")
    monkeypatch.chdir(tmp_path)
    for name in list(ACTIVATIONS):
        monkeypatch.setitem(ACTIVATIONS, name, ACTIVATIONS[name])  # restores the registry afterwards
    before = set(ACTIVATIONS)
    exec(compile(code, "README.md", "exec"), {})
    for name in set(ACTIVATIONS) - before:
        assert ACTIVATIONS[name].max_derivative == pytest.approx(1.0, abs=1e-3)  # squareplus rises to slope 1
        del ACTIVATIONS[name]


def test_the_files_it_names_exist() -> None:
    for link in re.findall(r"\]\(([^)#:]+)\)", README):
        assert (ROOT / link).is_file(), link
    for config in re.findall(r"`(\w+\.yaml)`", README):
        shipped = any((ROOT / folder / config).is_file() for folder in ("configs", "sweeps"))
        assert shipped or config in ("config.yaml", "resume.yaml", "best.yaml"), config
