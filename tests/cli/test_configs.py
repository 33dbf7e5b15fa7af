from __future__ import annotations

from pathlib import Path

import pytest

from mlp_lab.cli.configs import check_configs, config_first, default_config, depth_of_widths
from mlp_lab.errors import UserError


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        ("fit --a 1 --config x --b 2 -c y", "fit --config x --config y --a 1 --b 2"),
        ("fit --config=x --a=1 -c=y", "fit --config x --config y --a=1"),
        ("--a 1 --config x", "--config x --a 1"),
        ("fit", "fit"),
    ],
)
def test_files_come_first_in_their_order_and_flags_keep_theirs(words: str, expected: str) -> None:
    assert config_first(words.split()) == expected.split()


@pytest.mark.parametrize("words", ["fit --config", "fit --config --model.depth 3", "fit --config="])
def test_flag_without_a_file_is_refused(words: str) -> None:
    with pytest.raises(UserError, match="--config: give a YAML file"):
        config_first(words.split())


def test_every_named_file_is_checked(tmp_path: Path) -> None:
    good, bad = tmp_path / "good.yaml", tmp_path / "bad.yaml"
    good.write_text("model: {depth: 1}\ndata: TabularDataModule\n")
    bad.write_text("- a\n")
    check_configs(["fit", "--config", str(good), "--model.depth", "3"])
    with pytest.raises(UserError, match=r"bad\.yaml holds no keys"):
        check_configs(["fit", "--config", str(good), "--config", str(bad)])


def test_key_may_return_in_another_mapping(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("model: {optimizer: {name: sgd}, schedule: {name: step}}\n")
    check_configs(["--config", str(path)])
    path.write_text("model:\n  depth: 1\n  optimizer:\n    lr: 1.0\n    lr: 2.0\n")
    with pytest.raises(UserError, match="line 5 is not YAML: the key 'lr' is repeated"):
        check_configs(["--config", str(path)])


def test_defaults_are_the_recipes_of_the_repository() -> None:
    root = Path(__file__).parents[2]
    for name in ("digits", "tabular"):
        assert default_config(name).read_text() == (root / "configs" / f"{name}.yaml").read_text()
    with pytest.raises(UserError, match=r"nothing\.yaml is missing from this installation"):
        default_config("nothing")


@pytest.mark.parametrize(
    ("files", "flags", "decide"),
    [
        (["{depth: 2, width: 8}"], "--model.width [4,3,2]", True),
        (["{depth: 2, width: 8}"], "--model.width=[4,3,2]", True),
        (["{depth: 2, width: 8}", "{width: [4, 3, 2]}"], "", True),
        (["{depth: 2, width: 8}", "{width: [4, 3, 2]}"], "--model.depth 3", False),
        (["{depth: 2, width: 8}", "{width: [4, 3, 2]}", "{depth: 1}"], "", False),
        (["{depth: 2, width: [4, 3, 2]}"], "", False),
        (["{depth: 2, width: 8}", "{width: [4, 3, 2]}"], "--model.width 5", False),
        (["{depth: 2}"], "--model.depth 2 --model.width [1,2,3]", False),
        (["{depth: 2}"], "--model.width [1,", False),
    ],
)
def test_list_of_widths_replaces_the_depth_of_an_earlier_source(
    files: list[str], flags: str, decide: bool, tmp_path: Path
) -> None:
    words = ["fit"]
    for number, model in enumerate(files):
        path = tmp_path / f"{number}.yaml"
        path.write_text(f"model: {model}\n")
        words += ["--config", str(path)]
    assert depth_of_widths([*words, *flags.split()]) == (["--model.depth", "null"] if decide else [])
