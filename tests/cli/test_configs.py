from __future__ import annotations

import io
import os
import threading
import time
from pathlib import Path

import pytest

from mlp_lab.cli.configs import config_first, default_config, depth_of_widths, find_config, load_configs, read_config
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
    loaded = load_configs(["fit", "--config", str(good), "--model.depth", "3"])
    assert loaded == ["fit", f"--config={good.read_text()}", "--model.depth", "3"]
    with pytest.raises(UserError, match=r"bad\.yaml holds no keys"):
        load_configs(["fit", "--config", str(good), "--config", str(bad)])


def test_key_may_return_in_another_mapping(tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text("model: {optimizer: {name: sgd}, schedule: {name: step}}\n")
    load_configs(["--config", str(path)])
    path.write_text("model:\n  depth: 1\n  optimizer:\n    lr: 1.0\n    lr: 2.0\n")
    with pytest.raises(UserError, match="line 5 is not YAML: the key 'lr' is repeated"):
        load_configs(["--config", str(path)])


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
    assert depth_of_widths(load_configs([*words, *flags.split()])) == (["--model.depth", "null"] if decide else [])


def test_load_configs_reads_a_pipe_once(tmp_path: Path) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    writer = threading.Thread(target=pipe.write_text, args=("model: {depth: 1}\n",))
    writer.start()
    assert load_configs(["summary", "--config", str(pipe)]) == ["summary", "--config=model: {depth: 1}\n"]
    writer.join()


def test_load_configs_reads_standard_input(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO("data: {target: größe}".encode())))
    assert load_configs(["fit", "--config", "-"]) == ["fit", "--config=data: {target: größe}"]


def test_find_config_prefers_the_local_file_to_the_packaged_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    root = Path(__file__).parents[2]
    monkeypatch.chdir(tmp_path)
    assert find_config("configs/digits.yaml") == root / "configs" / "digits.yaml"
    assert find_config("sweeps/digits.yaml") == root / "sweeps" / "digits.yaml"
    Path("configs").mkdir()
    Path("configs/digits.yaml").touch()
    assert find_config("configs/digits.yaml") == Path("configs/digits.yaml")
    with pytest.raises(UserError, match=r"no file configs/digit\.yaml \(did you mean configs/digits\.yaml\?\)"):
        find_config("configs/digit.yaml")


def test_find_config_replaces_variables(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONFIGS", str(tmp_path))
    (tmp_path / "a b#%=.yaml").touch()
    assert find_config("$CONFIGS/a b#%=.yaml") == tmp_path / "a b#%=.yaml"


def test_read_config_pipe_waits_for_a_slow_writer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlp_lab.cli.configs.PATIENCE", 0.3)
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)

    def write() -> None:
        with pipe.open("w") as stream:  # returns once a reader has opened the pipe
            time.sleep(0.5)
            stream.write("model: {depth: 1}")

    writer = threading.Thread(target=write)
    writer.start()
    assert read_config(str(pipe)) == ("model: {depth: 1}", {"model": {"depth": 1}})
    writer.join()


def test_read_config_pipe_without_a_writer_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("mlp_lab.cli.configs.PATIENCE", 0.1)
    os.mkfifo(tmp_path / "pipe")
    with pytest.raises(UserError, match="is a pipe to which nothing is written"):
        read_config(str(tmp_path / "pipe"))


def test_config_first_value_that_begins_with_a_dash_stays_with_its_flag() -> None:
    words = ["fit", "--data.path", "-x.csv", "--model.bias", "-1e-3", "-h"]
    assert config_first(words) == ["fit", "--data.path=-x.csv", "--model.bias=-1e-3", "-h"]
