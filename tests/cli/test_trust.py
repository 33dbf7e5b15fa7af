"""Run directories from another person: their code does not run before the user agrees."""

from __future__ import annotations

import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

from mlp_lab.cli.trust import OWN_CLASSES, RECORD, code_names, locate, remember, state_folder
from tests.cli.conftest import Bench

PLANTED = """
from pathlib import Path
import lightning as L
import torch
from mlp_lab import TabularDataModule

Path({trace!r}).touch()
act = torch.tanh

class Data(TabularDataModule):
    pass

class Watch(L.Callback):
    pass
"""


@pytest.fixture
def trace(here: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A module `planted` in the working directory, which can be imported; the file that it then writes."""
    trace = here / "it-ran"
    (here / "planted.py").write_text(PLANTED.format(trace=str(trace)))
    monkeypatch.syspath_prepend(str(here))
    monkeypatch.setenv("XDG_STATE_HOME", str(here / "state"))
    yield trace
    sys.modules.pop("planted", None)


@pytest.fixture
def stranger(finished_run: Path, here: Path) -> Path:
    shutil.copytree(finished_run, here / "stranger")
    return here / "stranger"


def plant(run: Path, **sections: Any) -> None:
    """Changes the config of a run; a dotted key may be given as `model.activation`."""
    config = yaml.safe_load((run / "config.yaml").read_text())
    for section, values in sections.items():
        config[section] = {**config[section], **values} if isinstance(values, dict) else values
    (run / "config.yaml").write_text(yaml.safe_dump(config))


def data_of(run: Path, class_path: str) -> dict[str, Any]:
    return {**yaml.safe_load((run / "config.yaml").read_text())["data"], "class_path": class_path}


LAMBDA = {"class_path": "LambdaCallback", "init_args": {"setup": "planted.act"}}
EXTENSIONS = {
    "callbacks": [{"class_path": "planted.Watch"}, LAMBDA],
    "logger": {"class_path": "CSVLogger", "init_args": {"save_dir": "written"}},
    "profiler": {"class_path": "SimpleProfiler", "init_args": {"dirpath": "written", "filename": "x"}},
    "plugins": ["planted.Plugin"],
    "strategy": {"class_path": "planted.Strategy"},
    "default_root_dir": "written",
    "limit_test_batches": 0,
}


@pytest.mark.parametrize("command", ["validate", "test", "predict", "summary"])
def test_evaluation_uses_no_extension_of_a_run(command: str, bench: Bench, stranger: Path, trace: Path) -> None:
    plant(stranger, trainer=EXTENSIONS)
    answer = bench(command, "--run", stranger)
    assert answer.status == 0, answer.err
    assert not trace.exists()
    assert not Path("written").exists()
    if command == "test":
        assert "test: 6 rows" in answer.out  # a limit of the run is not one of this command


def test_evaluation_uses_extensions_of_the_command_line(bench: Bench, stranger: Path, trace: Path) -> None:
    assert bench("test", "--run", stranger, "--trainer.callbacks+=planted.Watch").status == 0
    assert trace.exists()


@pytest.mark.parametrize("command", ["validate", "test", "predict", "summary", "fit"])
@pytest.mark.parametrize("key", ["model", "dotted", "data", "text", "nested"])
def test_code_of_a_run_is_refused_before_it_is_imported(
    command: str, key: str, bench: Bench, stranger: Path, trace: Path
) -> None:
    name = "planted.act"
    if key == "model":
        plant(stranger, model={"activation": name})
    elif key == "dotted":
        plant(stranger, **{"model.activation": name})
    elif key == "data":
        plant(stranger, data=data_of(stranger, name := "planted.Data"))
    elif key == "text":
        plant(stranger, data=(name := "planted.Data"))
    else:
        plant(stranger, model={"optimizer": {"class_path": (name := "planted.Watch")}})
    flag = "--resume" if command == "fit" else "--run"
    answer = bench(command, flag, stranger)
    assert answer.status == 2
    assert answer.err == (
        f"error: {flag} {stranger}: its config names code to import: {name} (from {Path('planted.py').absolute()}); "
        "read this code, then add --trust\n"
    )
    assert not trace.exists()


@pytest.mark.parametrize(
    "trainer",
    [
        {"callbacks": [{"class_path": "planted.Watch"}]},
        {"callbacks": [LAMBDA]},
        {"callbacks": "planted.yaml"},
        {"profiler": EXTENSIONS["profiler"]},
        {"profiler": "PyTorchProfiler"},
        {"plugins": ["planted.Plugin"]},
        {"accelerator": {"class_path": "planted.Watch"}},
    ],
)
def test_resume_asks_for_the_extensions_of_a_run(
    trainer: dict[str, Any], bench: Bench, stranger: Path, trace: Path
) -> None:
    plant(stranger, trainer=trainer)
    answer = bench("fit", "--resume", stranger, "--trainer.max_epochs", 2)
    assert answer.status == 2
    assert "add --trust" in answer.err
    assert not trace.exists()


def test_trust_is_remembered_until_config_or_code_change(bench: Bench, stranger: Path, trace: Path) -> None:
    plant(stranger, data=data_of(stranger, "planted.Data"))
    assert bench("summary", "--run", stranger).status == 2
    assert bench("summary", "--run", stranger, "--trust").status == 0
    assert trace.exists()
    assert bench("summary", "--run", stranger).status == 0
    code = Path("planted.py").read_text()
    Path("planted.py").write_text(code + "\n# changed\n")
    assert bench("summary", "--run", stranger).status == 2
    Path("planted.py").write_text(code)
    plant(stranger, seed_everything=1)
    assert bench("summary", "--run", stranger).status == 2


def test_code_named_on_the_command_line_is_used(bench: Bench, stranger: Path, trace: Path) -> None:
    plant(stranger, model={"activation": "planted.act"})
    assert bench("summary", "--run", stranger, "--model.activation", "planted.act").status == 0
    assert trace.exists()


def test_run_that_this_user_trained_is_trusted_after_its_code_changed(
    bench: Bench, stranger: Path, trace: Path
) -> None:
    config = stranger / "config.yaml"
    words = ("--model.activation", "planted.act", "--run.dir", "mine")
    assert bench("fit", "--config", config, *words).status == 0
    with Path("planted.py").open("a") as file:
        file.write("# changed\n")
    assert bench("test", "--run", "mine").status == 0
    assert bench("fit", "--resume", "mine", "--trainer.max_epochs", 2).status == 0
    assert bench("test", "--run", "mine").status == 0
    assert len((state_folder() / RECORD).read_text().splitlines()) == 2  # config.yaml and resume.yaml


def test_files_that_a_command_reads_and_writes_come_from_its_own_line(bench: Bench, stranger: Path) -> None:
    (stranger.parent / "kept.csv").write_text("mine")
    config = yaml.safe_load((stranger / "config.yaml").read_text())
    config |= {"output": str(stranger.parent / "kept.csv"), "ckpt_path": "/nowhere", "run.dir": "/nowhere"}
    (stranger / "config.yaml").write_text(yaml.safe_dump(config))
    assert bench("predict", "--run", stranger).last_line == str(stranger / "predictions.csv")
    assert (stranger.parent / "kept.csv").read_text() == "mine"


def test_trust_without_a_run_is_refused(bench: Bench, here: Path) -> None:
    answer = bench("fit", "--trust")
    assert answer.status == 2
    assert answer.err.startswith("error: --trust: it is for the code that a run names; give the run by --resume")


def test_own_classes_need_no_trust() -> None:
    names = [form for path in OWN_CLASSES for form in (path, path.rpartition(".")[2])]
    assert [code_names({"data": {"class_path": name}}) for name in names] == [[]] * len(names)


def test_locating_code_imports_nothing(trace: Path) -> None:
    package = trace.parent / "package"
    package.mkdir()
    (package / "__init__.py").write_text(f"open({str(trace)!r}, 'w')")
    (package / "inner.py").write_text("")
    assert locate("package.inner.thing") == package / "inner.py"
    assert locate("nothing_of_this_name.thing") is None
    assert not trace.exists()


def test_state_that_cannot_be_written_stops_no_training(trace: Path) -> None:
    (trace.parent / "state").write_text("a file")
    remember({"model": {"activation": "planted.act"}})


def test_user_error_is_one_line(bench: Bench, stranger: Path, trace: Path) -> None:
    plant(stranger, model={"activation": "planted.a\x1b[2J"})
    answer = bench("test", "--run", stranger)
    assert answer.status == 2
    assert "\x1b" not in answer.err


@pytest.mark.parametrize("command", ["test", "fit"])
def test_file_that_is_called_like_a_value_is_not_read(command: str, bench: Bench, stranger: Path, trace: Path) -> None:
    plant(stranger, trainer={"strategy": "auto", "accelerator": "cpu"}, data="TabularDataModule")
    for name in ("auto", "cpu", "TabularDataModule", "relu", "adamw"):
        Path(name).write_text("class_path: planted.Watch\n")
    bench(command, "--resume" if command == "fit" else "--run", stranger)
    assert not trace.exists()
