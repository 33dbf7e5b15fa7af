"""The bench's own keys refuse what they cannot mean."""

import pytest

from mlp_lab.cli.keys import CheckpointConfig, RunConfig
from mlp_lab.errors import UserError


@pytest.mark.parametrize("name", ["a b", "", "../up", ".hidden", "a/b"])
def test_run_names_are_names_of_folders(name: str) -> None:
    with pytest.raises(UserError, match=r"run\.name"):
        RunConfig(name=name)


@pytest.mark.parametrize("name", ["mlp", "a-b_c+1.2", "_x"])
def test_names_of_folders_are_run_names(name: str) -> None:
    assert RunConfig(name=name).name == name


def test_checkpoint_intervals_are_not_negative() -> None:
    with pytest.raises(UserError, match=r"checkpoint\.every_n_steps: -1"):
        CheckpointConfig(every_n_steps=-1)
    with pytest.raises(UserError, match=r"checkpoint\.every_minutes: -0\.5"):
        CheckpointConfig(every_minutes=-0.5)
