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


@pytest.fixture
def run_with_previous(finished_run: Path, tmp_path: Path) -> Path:
    run = tmp_path / "run"
    shutil.copytree(finished_run, run)
    shutil.copy(run / "checkpoints/last.ckpt", run / "checkpoints/previous.ckpt")
    return run


@pytest.mark.parametrize(("damage", "word"), [("flipped", "damaged"), ("cut", "damaged"), ("removed", "missing")])
def test_resume_with_damaged_last_checkpoint_continues_from_previous(
    damage: str, word: str, run_with_previous: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    last, previous = (run_with_previous / "checkpoints" / f"{name}.ckpt" for name in ("last", "previous"))
    content = bytearray(last.read_bytes())
    content[len(content) // 2] ^= 4
    if damage == "removed":
        last.unlink()
    else:
        last.write_bytes(content if damage == "flipped" else content[:1000])
    words = expand("fit", ["--resume", str(run_with_previous)]).arguments
    assert words[-2:] == ["--ckpt_path", str(previous)]
    line = f"{last} is {word}: the run continues from previous.ckpt, the state before it\n"
    assert capsys.readouterr().out == line


@pytest.mark.parametrize("text", ["", "\n", "seed_everything: 0\n", "- 1\n"])
def test_run_whose_config_lost_its_content_is_refused(text: str, run_with_previous: Path) -> None:
    (run_with_previous / "config.yaml").write_text(text)
    with pytest.raises(UserError, match=r"^--run: .*config.yaml is empty or not complete; restore it"):
        expand("predict", ["--run", str(run_with_previous)])
