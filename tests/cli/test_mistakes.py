from __future__ import annotations

import errno

import pytest
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import nn

from mlp_lab.cli.mistakes import one_line
from mlp_lab.errors import UserError


def test_missing_file_is_named() -> None:
    error = FileNotFoundError(errno.ENOENT, "No such file or directory", "a.csv")
    assert one_line(error) == "No such file or directory: a.csv"
    assert one_line(OSError("disk full")) == "disk full"


def test_lightnings_refusals_are_cut_to_their_first_sentence() -> None:
    assert one_line(MisconfigurationException("No\n such thing. Read the docs.")) == "trainer: No such thing"


def load(saved: nn.Module, model: nn.Module) -> str | None:
    """Returns the line for torch's own error."""
    with pytest.raises(RuntimeError) as caught:
        model.load_state_dict(saved.state_dict())
    return one_line(caught.value)


def test_weights_of_other_shapes_name_the_first_tensor_and_both_shapes() -> None:
    line = load(nn.Sequential(nn.Linear(2, 3)), nn.Sequential(nn.Linear(2, 4)))
    assert line is not None
    assert (
        "another architecture (0.weight has shape [3, 2] in the checkpoint and [4, 2] in this config's model)" in line
    )


def test_missing_and_superfluous_weights_say_which_side_lacks_them() -> None:
    small, large = nn.Sequential(nn.Linear(2, 2)), nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    assert "(the checkpoint has no 1.weight)" in (load(small, large) or "")
    assert "(this config's model has no 1.weight)" in (load(large, small) or "")


def test_one_line_of_a_missing_gpu_names_the_key_and_what_works() -> None:
    line = one_line(MisconfigurationException("No supported gpu backend found!"))
    assert line is not None
    assert line.startswith("trainer.accelerator: 'gpu' needs a GPU")
    assert line.endswith("use auto or cpu")


@pytest.mark.parametrize("error", [MemoryError(), torch.OutOfMemoryError("CUDA out of memory. Tried to allocate.")])
def test_too_little_memory_says_what_to_lower(error: Exception) -> None:
    line = one_line(error)
    assert line is not None
    assert line.startswith("out of memory")
    assert line.endswith("lower data.batch_size, data.eval_batch_size or model.width")


def test_a_mistake_inside_a_union_of_types_is_the_line() -> None:
    error = ValueError("Does not validate against any of the Union subtypes\nSubtypes: ...")
    error.__cause__ = UserError("data.seed: -1 must be 0 or more")
    assert one_line(error) == "data.seed: -1 must be 0 or more"


@pytest.mark.parametrize("error", [ValueError("x"), KeyError("x"), RuntimeError("x"), AssertionError("x")])
def test_defects_of_the_program_keep_their_traceback(error: Exception) -> None:
    assert one_line(error) is None


def test_class_that_cannot_be_built_names_its_key_and_the_package_to_install() -> None:
    error = ValueError("Problem with given class_path 'lightning.pytorch.loggers.MLFlowLogger':\n  ...")
    error.__cause__ = ModuleNotFoundError("Requirement 'mlflow>=1' not met. Try `pip install -U 'mlflow>=1'`")
    line = "trainer.logger: MLFlowLogger: the package mlflow is not installed; install it with: pip install 'mlflow>=1'"
    assert one_line(error) == line


def test_missing_module_is_named() -> None:
    error = ModuleNotFoundError("No module named 'deepspeed.ops'", name="deepspeed.ops")
    assert (
        one_line(error) == "trainer: the package deepspeed is not installed; install it with: pip install 'deepspeed'"
    )
    assert one_line(ModuleNotFoundError("No module named 'mlp_lab.x'", name="mlp_lab.x")) is None


def test_path_that_the_locale_cannot_encode_says_how_to_use_utf8(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.getfilesystemencoding", lambda: "ascii")
    line = "'größe.csv': the locale's encoding, ascii, has no such file name; set PYTHONUTF8=1"
    assert one_line(UnicodeEncodeError("ascii", "größe.csv", 2, 4, "ordinal not in range")) == line
    assert one_line(UnicodeEncodeError("cp1252", "→", 0, 1, "no such character")) is None


def test_one_line_for_full_disk_below_database_says_how_to_go_on() -> None:
    error = RuntimeError("An exception is raised during the commit.")
    error.__cause__ = ValueError("(sqlite3.OperationalError) database or disk is full")
    assert (one_line(error) or "").startswith("study.storage: the disk of the database is full; free some space")
