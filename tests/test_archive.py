"""Checksums of checkpoints: whatever is accepted has the content that was written."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
import torch

from mlp_lab.archive import check_archive

STATE = {"weights": torch.arange(64.0), "steps": 3, "names": ["a", "b"]}


@pytest.fixture
def path(tmp_path: Path) -> Path:
    torch.save(STATE, tmp_path / "a.ckpt")
    return tmp_path / "a.ckpt"


def test_check_archive_accepts_what_torch_wrote(path: Path) -> None:
    check_archive(path)


def test_check_archive_accepts_flipped_bit_only_where_content_is_the_same(path: Path) -> None:
    whole, draw, refused = path.read_bytes(), random.Random(0), 0
    for place in draw.sample(range(len(whole)), 400):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << draw.randrange(8)]) + whole[place + 1 :])
        try:
            check_archive(path)
            loaded = torch.load(path, weights_only=True)
        except (ValueError, RuntimeError):
            refused += 1
            continue
        assert torch.equal(loaded.pop("weights"), STATE["weights"])  # type: ignore[arg-type]
        assert loaded == {"steps": 3, "names": ["a", "b"]}
    assert refused > 50


@pytest.mark.parametrize("kept", [0, 1, 100, -1])
def test_check_archive_refuses_cut_file(kept: int, path: Path) -> None:
    path.write_bytes(path.read_bytes()[:kept])
    with pytest.raises(ValueError, match=r"a\.ckpt is no archive, or a damaged one"):
        check_archive(path)


def test_check_archive_of_missing_file_raises_os_error(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        check_archive(tmp_path / "none.ckpt")
