"""The IDX files of MNIST and its relatives, read into memory, plain or gzipped.

The format (Y. LeCun, "The MNIST database"): two zero bytes, a type code, the number of dimensions, each dimension as a
big-endian 32-bit integer, and then the values, big-endian, last dimension fastest.
"""

from __future__ import annotations

import gzip
import math
import zlib
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mlp_lab.errors import UserError

TYPES: dict[int, str] = {0x08: "u1", 0x09: "i1", 0x0B: ">i2", 0x0C: ">i4", 0x0D: ">f4", 0x0E: ">f8"}


def find_idx(folder: Path, name: str) -> Path | None:
    """Returns `folder/name` or `folder/name.gz`, the first that is there, or None."""
    candidates = (folder / name, folder / f"{name}.gz")
    return next((path for path in candidates if path.is_file()), None)


def read_idx(path: Path) -> Tensor:
    """Reads a whole file; nothing is written, so the folder may be read-only.

    Args:
        path: An IDX file; one that ends in `.gz` is unpacked in memory.

    Returns:
        A tensor of the file's shape and type.

    Raises:
        UserError: If the file cannot be read or unpacked, is no IDX file, or is shorter or longer than it says.
    """
    raw = _read_bytes(path)
    rank = int(raw[3]) if len(raw) >= 4 else 0
    header = 4 + 4 * rank
    if len(raw) < header or raw[0] or raw[1] or int(raw[2]) not in TYPES or rank == 0:
        raise UserError(f"data.root: {path} is not an IDX file; replace it with the original")
    shape = tuple(int(size) for size in raw[4:header].view(">i4"))
    dtype = np.dtype(TYPES[int(raw[2])])
    expected = header + math.prod(shape) * dtype.itemsize
    if len(raw) != expected:
        fault = "truncated" if len(raw) < expected else "too long"
        raise UserError(f"data.root: {path} is {fault}: expected {expected} bytes, found {len(raw)}; replace that file")
    values = raw[header:].view(dtype)
    return torch.from_numpy(values.astype(dtype.newbyteorder("="), copy=False).reshape(shape))


def _read_bytes(path: Path) -> np.ndarray[tuple[int], np.dtype[np.uint8]]:
    try:
        if path.suffix == ".gz":
            with gzip.open(path) as stream:
                return np.frombuffer(bytearray(stream.read()), dtype=np.uint8)
        return np.fromfile(path, dtype=np.uint8)
    except (OSError, EOFError, zlib.error) as error:
        reason = " ".join(str(error).split())
        raise UserError(f"data.root: {path} cannot be read ({reason}); replace that file") from error
