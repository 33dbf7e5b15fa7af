"""Checkpoint files that are written completely or not at all."""

from __future__ import annotations

import errno
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from mlp_lab.errors import NonFiniteError
from mlp_lab.training.checkpoint_io import AtomicCheckpointIO, save_finite
from tests.disk import full_disk


def trainer() -> Any:
    """Returns what `save_finite` reads of a trainer."""
    saved: list[Path] = []
    strategy = SimpleNamespace(reduce_boolean_decision=lambda decision, all: decision)
    return SimpleNamespace(world_size=1, strategy=strategy, saved=saved, save_checkpoint=saved.append)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("part", ["weights", "optimizer"])
def test_a_state_that_is_not_finite_is_never_written(part: str, value: float, tmp_path: Path) -> None:
    path, plugin = tmp_path / "last.ckpt", AtomicCheckpointIO()
    state = {"state_dict": {"w": torch.ones(3)}, "optimizer_states": [{"state": {0: {"exp_avg": torch.ones(3)}}}]}
    bad = state["state_dict"]["w"] if part == "weights" else state["optimizer_states"][0]["state"][0]["exp_avg"]  # type: ignore[call-overload]
    name = "state_dict.w" if part == "weights" else r"optimizer_states\[0\].state.0.exp_avg"
    bad[1] = value
    with pytest.raises(NonFiniteError, match=rf"^{name} is not finite, so last.ckpt was not saved; nothing was"):
        plugin.save_checkpoint(state, path)
    assert not path.exists()
    bad[1] = 0.0
    plugin.save_checkpoint(state, path)
    before = path.read_bytes()
    bad[2] = value
    with pytest.raises(NonFiniteError, match=r"the last good one is kept$"):
        plugin.save_checkpoint(state, path)
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


def test_several_processes_refuse_together(tmp_path: Path) -> None:
    """Each process asks the others, whatever it sees itself; a stand-in answers for them."""
    now = trainer()
    now.world_size, now.optimizers, now.lightning_module = 2, [], torch.nn.Linear(2, 2)
    save_finite(now, tmp_path / "last.ckpt")
    assert now.saved == [tmp_path / "last.ckpt"]
    now.strategy.reduce_boolean_decision = lambda decision, all: True
    with pytest.raises(NonFiniteError, match="a tensor of another process"):
        save_finite(now, tmp_path / "last.ckpt")
    with torch.no_grad():
        now.lightning_module.weight[0, 0] = float("nan")
    with pytest.raises(NonFiniteError, match=r"^state_dict\.weight is not finite"):
        save_finite(now, tmp_path / "last.ckpt")
    assert len(now.saved) == 1


@pytest.mark.parametrize("fails", ["save", "fsync"])
def test_a_failed_write_keeps_the_former_file(fails: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path, plugin = tmp_path / "last.ckpt", AtomicCheckpointIO()
    plugin.save_checkpoint({"a": torch.ones(3)}, path)
    before = path.read_bytes()

    def torn(_: Any, file: Any) -> None:
        file.write(b"half a checkpoint")
        raise OSError("the disk is full")

    def failed(_: int) -> None:
        raise OSError("the disk is full")

    monkeypatch.setattr(*((torch, "save", torn) if fails == "save" else ("os.fsync", failed)))
    with pytest.raises(OSError, match="disk is full"):
        plugin.save_checkpoint({"a": torch.zeros(3)}, path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]


def test_save_checkpoint_does_not_follow_a_link_planted_beside_it(tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    (tmp_path / "victim").write_bytes(b"mine")
    (tmp_path / "run" / ".last.ckpt.partial").symlink_to(tmp_path / "victim")
    AtomicCheckpointIO().save_checkpoint({"a": torch.ones(3)}, tmp_path / "run" / "last.ckpt")
    assert torch.equal(torch.load(tmp_path / "run" / "last.ckpt", weights_only=True)["a"], torch.ones(3))
    assert (tmp_path / "victim").read_bytes() == b"mine"


def test_save_checkpoint_on_full_disk_raises_os_error_with_file_name(tmp_path: Path) -> None:
    path, plugin = tmp_path / "last.ckpt", AtomicCheckpointIO()
    plugin.save_checkpoint({"a": torch.ones(3)}, path)
    before = path.read_bytes()
    with full_disk(20_000), pytest.raises(OSError, match="File too large") as caught:
        plugin.save_checkpoint({"a": torch.ones(10_000)}, path)
    assert caught.value.filename == str(path)
    assert path.read_bytes() == before
    assert [file.name for file in tmp_path.iterdir()] == ["last.ckpt"]


@pytest.mark.parametrize("links", [True, False])
def test_save_checkpoint_keeps_previous_content(links: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse_link(*_: Any) -> None:
        raise PermissionError(errno.EPERM, "Operation not permitted")

    if not links:
        monkeypatch.setattr("os.link", refuse_link)
    last, previous = tmp_path / "last.ckpt", tmp_path / "previous.ckpt"
    plugin = AtomicCheckpointIO({last: previous})
    for step in range(3):
        plugin.save_checkpoint({"step": step}, last)
        assert previous.exists() == (step > 0)
    assert plugin.load_checkpoint(last, weights_only=True) == {"step": 2}
    assert plugin.load_checkpoint(previous, weights_only=True) == {"step": 1}
    assert sorted(tmp_path.iterdir()) == [last, previous]


def test_load_checkpoint_refuses_changed_weights(tmp_path: Path) -> None:
    path, plugin = tmp_path / "last.ckpt", AtomicCheckpointIO()
    plugin.save_checkpoint({"a": torch.ones(50)}, path)
    path.write_bytes(path.read_bytes().replace(b"\x00\x00\x80\x3f", b"\x00\x00\x80\x3e", 1))
    assert torch.load(path, weights_only=True)["a"][0] == 0.25, "torch itself does not notice"
    with pytest.raises(ValueError, match=r"last\.ckpt is damaged: \S*data/0 does not have the checksum"):
        plugin.load_checkpoint(path)
