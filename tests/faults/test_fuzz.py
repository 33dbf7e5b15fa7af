"""Odd values for every key of the parser: a command ends with status 0, or with status 2 and exactly one line."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from pathlib import Path
from types import FrameType

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from mlp_lab.cli.bench import BenchCLI
from mlp_lab.cli.main import main
from mlp_lab.cli.parser import known_keys
from mlp_lab.cli.runs import expand
from tests.cli.conftest import PROCESS_STATE, write_config, write_table

SECONDS = 10  # after which a command hangs
NUMBERS = [
    *[
        "0",
        "1",
        "-1",
        "2",
        "0.5",
        "3.0",
        "1e-3",
        "-0.0",
        "1e308",
        "-1e308",
        "5e-324",
        ".inf",
        "-.inf",
        ".nan",
        "nan",
        "inf",
        "1_000",
        "0x10",
        "010",
        "12:30:45",
    ]
]
NUMBERS += [str(2**31), str(2**63), str(2**64), "9" * 400, "9" * 5000]
WORDS = [
    *[
        "null",
        "true",
        "no",
        "~",
        "-",
        "--",
        "-x",
        "relu",
        "none",
        "auto",
        "val/loss",
        "é",
        "�",
        "#",
        "2024-13-45",
        "2024-02-31",
        "{}",
        "[]",
        "[[1],2]",
        "{a:1}",
    ]
]
WORDS += [
    "",
    " ",
    "a: b",
    "{a: 1}",
    "{{ x }}",
    "[1, 2]",
    "{class_path: os.system}",
    "!!binary x",
    "&a [*a]",
    "*a",
    "a\nb",
]
WORDS += ["'", "%", "@", "[" * 300, "x" * 3000, "$NO_SUCH", "~nobody/x", "../.."]
SLOW = ("trainer.devices", "trainer.num_nodes", "trainer.strategy", "trainer.accelerator", "trainer.profiler")
"""Keys that start processes, or look for hardware."""


@pytest.fixture(scope="module")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder with a table and a config, in which a command that hangs is an error."""
    folder = tmp_path_factory.mktemp("fuzz")
    write_table(folder / "table.csv", rows=40)
    write_config(folder / "good.yaml")

    def too_long(signum: int, frame: FrameType | None) -> None:
        raise AssertionError(f"still running after {SECONDS} s")

    before = signal.signal(signal.SIGALRM, too_long)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setattr("sys.argv", ["tests"])
        yield folder
    signal.signal(signal.SIGALRM, before)


@pytest.fixture(scope="module")
def keys(workshop: Path) -> list[str]:
    """Every key of `summary` that takes a value, those of the data module too."""
    cli = BenchCLI(expand("summary", ["--config", "good.yaml"]), run=False)
    own = [f"data.{name}" for name in vars(cli.config.data.init_args)]
    return [key for key in [*known_keys(cli.parser), *own] if not key.startswith(("config", "help", *SLOW))]


def outcome(words: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    """Runs a command and returns its status and what it says on stderr."""
    handler = signal.getsignal(signal.SIGINT)
    capsys.readouterr()
    signal.alarm(SECONDS)
    try:
        status = main(words)
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGINT, handler)
        for name in PROCESS_STATE:
            os.environ.pop(name, None)
    return status, capsys.readouterr().err


@pytest.mark.filterwarnings("ignore")  # of libraries, on values that nobody would use
@pytest.mark.parametrize("examples", [12, pytest.param(500, marks=pytest.mark.slow)])
def test_main_odd_values_give_a_result_or_one_line(
    examples: int, workshop: Path, keys: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    pairs = st.tuples(st.sampled_from(keys), st.sampled_from([*NUMBERS, *WORDS]))

    @settings(
        max_examples=examples, deadline=None, derandomize=True, database=None, suppress_health_check=list(HealthCheck)
    )
    @given(st.lists(pairs, min_size=1, max_size=2, unique_by=lambda pair: pair[0]))
    def check(chosen: list[tuple[str, str]]) -> None:
        flags = [f"--{key}={value}" for key, value in chosen]
        status, said = outcome(["summary", "--config", "good.yaml", *flags], capsys)
        assert status in (0, 2), said
        assert status == 0 or (said.startswith("error: ") and said.count("\n") == 1), said

    check()
