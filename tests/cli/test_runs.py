from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from mlp_lab.cli.configs import default_config
from mlp_lab.cli.runs import expand
from mlp_lab.errors import UserError


def test_fit_and_summary_fall_back_to_the_default_recipe() -> None:
    digits = str(default_config("digits"))
    for command in ("fit", "summary"):
        assert expand(command, ["--model.depth", "3"]).arguments == [command, "--config", digits, "--model.depth", "3"]
    assert expand("test", ["--ckpt_path", "x"]).arguments == ["test", "--ckpt_path", "x"]


def test_a_table_on_the_command_line_means_the_recipe_for_tables_and_replaces_a_named_one() -> None:
    words = expand("fit", ["--data.path", "my.csv"]).arguments
    assert words[:3] == ["fit", "--config", str(default_config("tabular"))]
    assert words[3:] == ["--data.path", "my.csv", "--data.dataset", "null"]
    words = expand("fit", ["--data.path=my.csv", "--data.dataset=iris"]).arguments
    assert words[3:] == ["--data.path=my.csv", "--data.dataset=iris"]


def test_resume_names_config_directory_and_last_checkpoint(finished_run: Path) -> None:
    invocation = expand("fit", ["--trainer.max_epochs", "9", "--resume", str(finished_run)])
    config, last = finished_run / "config.yaml", finished_run / "checkpoints" / "last.ckpt"
    expected = f"fit --config {config} --run.dir {finished_run} --ckpt_path {last} --trainer.max_epochs 9"
    assert invocation.arguments == expected.split()
    assert invocation.resumed
    assert invocation.overrides == ("--trainer.max_epochs", "9")


def test_resume_before_the_first_checkpoint_starts_again_in_place(finished_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    shutil.rmtree(run / "checkpoints")
    assert expand("fit", [f"--resume={run}"]).arguments == f"fit --config {run / 'config.yaml'} --run.dir {run}".split()


@pytest.mark.parametrize("command", ["validate", "test", "predict"])
def test_run_names_its_best_checkpoint_for_weights_and_preprocessing(command: str, finished_run: Path) -> None:
    invocation = expand(command, ["--run", str(finished_run)])
    best = str(finished_run / "checkpoints" / "best.ckpt")
    assert invocation.arguments[-2:] == ["--ckpt_path", best]
    assert invocation.checkpoint == best
    assert not invocation.resumed


def test_run_without_validation_offers_its_last_checkpoint(finished_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    (run / "checkpoints" / "best.ckpt").unlink()
    assert expand("test", ["--run", str(run)]).arguments[-1] == str(run / "checkpoints" / "last.ckpt")


def test_summary_needs_no_checkpoint(finished_run: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    shutil.rmtree(run / "checkpoints")
    assert "--ckpt_path" not in expand("summary", ["--run", str(run)]).arguments
    with pytest.raises(UserError, match="holds no checkpoint yet"):
        expand("test", ["--run", str(run)])


def test_flags_beside_a_new_run_are_no_overrides() -> None:
    assert expand("fit", ["--model.depth", "3"]).overrides == ()
