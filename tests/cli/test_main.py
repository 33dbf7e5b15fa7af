from __future__ import annotations

from importlib.metadata import version

import pytest

from mlp_lab.cli.main import COMMANDS
from tests.cli.conftest import Bench


@pytest.mark.parametrize("words", [[], ["--help"], ["-h"], ["help"]])
def test_help_lists_every_command_within_a_terminal(words: list[str], bench: Bench) -> None:
    answer = bench(*words)
    assert answer.status == 0
    assert all(f"\n  {command} " in answer.out for command in COMMANDS)
    assert max(map(len, answer.out.splitlines())) <= 110
    assert answer.err == ""


def test_version_is_the_packages(bench: Bench) -> None:
    assert bench("--version").out == f"mlp_lab {version('mlp_lab')}\n"


def test_a_commands_help_lists_its_keys_and_how_to_see_those_of_the_data(bench: Bench) -> None:
    answer = bench("fit", "--help")
    assert answer.status == 0
    assert "--model.depth DEPTH" in answer.out
    assert "--data.help" in answer.out


def test_help_of_the_data_module_lists_its_keys(bench: Bench) -> None:
    answer = bench("fit", "--data.help=TabularDataModule")
    assert answer.status == 0
    assert "Column to predict" in answer.out


def test_defects_are_not_dressed_up_as_mistakes(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*arguments: object) -> None:
        raise ZeroDivisionError

    monkeypatch.setattr("mlp_lab.cli.commands.run", fail)
    with pytest.raises(ZeroDivisionError):
        bench("fit")


def test_interruption_has_the_shells_status(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*arguments: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("mlp_lab.cli.commands.run", interrupt)
    assert bench("fit") == (130, "", "interrupted\n")
