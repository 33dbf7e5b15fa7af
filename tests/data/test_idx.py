"""IDX files against bytes written by hand and torchvision's reader."""

from __future__ import annotations

import gzip
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.datasets.mnist import read_sn3_pascalvincent_tensor

from mlp_lab.data.idx import TYPES, find_idx, read_idx
from mlp_lab.errors import UserError


def idx_bytes(values: np.ndarray, code: int) -> bytes:
    shape = struct.pack(f">{values.ndim}I", *values.shape)
    return bytes([0, 0, code, values.ndim]) + shape + values.astype(TYPES[code]).tobytes()


@pytest.mark.parametrize("code", TYPES)
@pytest.mark.parametrize("shape", [(5,), (3, 8), (2, 3, 4)])
@pytest.mark.parametrize("suffix", ["", ".gz"])
def test_reads_what_torchvision_reads(code: int, shape: tuple[int, ...], suffix: str, tmp_path: Path) -> None:
    values = np.random.default_rng(0).integers(0, 100, size=shape)
    plain = tmp_path / "file"
    plain.write_bytes(idx_bytes(values, code))
    path = tmp_path / f"copy{suffix}"
    path.write_bytes(gzip.compress(plain.read_bytes()) if suffix else plain.read_bytes())
    found = read_idx(path)
    theirs = read_sn3_pascalvincent_tensor(str(plain))
    assert found.dtype == theirs.dtype
    assert torch.equal(found, theirs)
    assert np.array_equal(found.numpy(), values)


def test_plain_file_is_found_before_the_compressed_one(tmp_path: Path) -> None:
    assert find_idx(tmp_path, "a") is None
    (tmp_path / "a.gz").touch()
    assert find_idx(tmp_path, "a") == tmp_path / "a.gz"
    (tmp_path / "a").touch()
    assert find_idx(tmp_path, "a") == tmp_path / "a"


def test_damaged_files_are_named_with_their_sizes(tmp_path: Path) -> None:
    whole = idx_bytes(np.zeros((2, 3)), 0x08)
    packed = gzip.compress(whole)
    cases = {
        "short": (whole[:-2], "is truncated: expected 18 bytes, found 16; replace that file"),
        "long": (whole + b"?", "is too long: expected 18 bytes, found 19; replace that file"),
        "header": (whole[:9], "is not an IDX file; replace it with the original"),
        "empty": (b"", "is not an IDX file; replace it with the original"),
        "text": (b"<html>404</html>", "is not an IDX file; replace it with the original"),
        "cut.gz": (packed[:-9], "cannot be read (Compressed file ended before the end-of-stream marker was reached)"),
        "text.gz": (b"<html>404</html>", "cannot be read (Not a gzipped file"),
    }
    for name, (content, message) in cases.items():
        path = tmp_path / name
        path.write_bytes(content)
        with pytest.raises(UserError) as caught:
            read_idx(path)
        assert str(caught.value).startswith(f"data.root: {path} {message}")
        assert "\n" not in str(caught.value)
