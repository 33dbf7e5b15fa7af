"""The published image sets: which files torchvision keeps for each, how they are read, and how they are fetched."""

from __future__ import annotations

import hashlib
import string
import tempfile
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from mlp_lab.data.idx import find_idx, read_idx
from mlp_lab.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Source:
    """Where torchvision keeps a dataset, and how its files are to be read."""

    folder: str
    """Name of torchvision's class and of its folder below the root."""
    classes: tuple[str, ...]
    """Class names in the order of their codes, as torchvision's class has them (without 'seven' after '7 - ')."""
    files: tuple[str, str, str, str] = (
        "train-images-idx3-ubyte",
        "train-labels-idx1-ubyte",
        "t10k-images-idx3-ubyte",
        "t10k-labels-idx1-ubyte",
    )
    """Images and labels of training, images and labels of test."""
    first_label: int = 0
    """The label of the first class."""
    transposed: bool = False
    """Whether images are stored column by column."""


DIGITS = tuple(string.digits)
_EMNIST_KINDS = ("images-idx3-ubyte", "labels-idx1-ubyte")


def _emnist(split: str, classes: Sequence[str], first_label: int = 0) -> Source:
    names = [f"emnist-{split}-{part}-{what}" for part in ("train", "test") for what in _EMNIST_KINDS]
    files = (names[0], names[1], names[2], names[3])
    return Source(folder="EMNIST", classes=tuple(classes), files=files, first_label=first_label, transposed=True)


_QMNIST_FILES = (
    "qmnist-train-images-idx3-ubyte",
    "qmnist-train-labels-idx2-int",
    "qmnist-test-images-idx3-ubyte",
    "qmnist-test-labels-idx2-int",
)
_FASHION = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")
_KUZUSHIJI = ("o", "ki", "su", "tsu", "na", "ha", "ma", "ya", "re", "wo")

SOURCES: dict[str, Source] = {
    "mnist": Source(folder="MNIST", classes=DIGITS),
    "fashion": Source(folder="FashionMNIST", classes=_FASHION),
    "kmnist": Source(folder="KMNIST", classes=_KUZUSHIJI),
    "qmnist": Source(folder="QMNIST", classes=DIGITS, files=_QMNIST_FILES),
    "emnist-letters": _emnist("letters", string.ascii_lowercase, first_label=1),
    # Lower-case letters that look like their capitals are one class with them.
    "emnist-balanced": _emnist("balanced", string.digits + string.ascii_uppercase + "abdefghnqrt"),
    "emnist-digits": _emnist("digits", string.digits),
}


class Images(NamedTuple):
    """A dataset as it was published, in memory."""

    train: Tensor  # (N, H, W) uint8
    train_labels: Tensor  # (N,) int64 codes
    test: Tensor  # (M, H, W) uint8
    test_labels: Tensor  # (M,) int64 codes
    fingerprint: str  # shortened SHA-256 of all four files' values


def read_images(source: Source, root: Path, *, download: bool) -> Images:
    """Reads the four files of a dataset, upright, with labels from 0.

    Args:
        source: Which files, and how they are stored.
        root: Folder that holds torchvision's layout.
        download: Whether to download them where they are absent.

    Raises:
        UserError: If a file is absent and cannot be downloaded, is damaged, or does not fit the others.
    """
    folder = root / source.folder / "raw"
    missing = [name for name in source.files if find_idx(folder, name) is None]
    if missing:
        fetch(source, root, missing, download=download)
    paths = [path for name in source.files if (path := find_idx(folder, name)) is not None]
    values = [read_idx(path) for path in paths]
    digest = hashlib.sha256()
    for value in values:
        digest.update(value.numpy().data)
    for pixels, labels, path in ((values[0], values[1], paths[1]), (values[2], values[3], paths[3])):
        _check_pair(pixels, labels, source, path)
    train, train_labels, test, test_labels = values
    if source.transposed:
        train, test = train.mT, test.mT
    codes = (_class_codes(labels, source) for labels in (train_labels, test_labels))
    return Images(train, next(codes), test, next(codes), digest.hexdigest()[:16])


def _class_codes(labels: Tensor, source: Source) -> Tensor:
    """Returns codes from 0, (N,) int64; QMNIST's labels are (N, 8), the class first."""
    return (labels if labels.ndim == 1 else labels[:, 0]).long() - source.first_label


def _check_pair(pixels: Tensor, labels: Tensor, source: Source, path: Path) -> None:
    if pixels.ndim != 3 or pixels.dtype != torch.uint8 or len(pixels) != len(labels) or len(labels) == 0:
        found = f"{tuple(labels.shape)} labels for images {tuple(pixels.shape)}"
        raise UserError(f"data.root: {path} does not fit its images: {found}; replace both files")
    codes = _class_codes(labels, source)
    low, high = int(codes.min()) + source.first_label, int(codes.max()) + source.first_label
    last = source.first_label + len(source.classes) - 1
    if low < source.first_label or high > last:
        raise UserError(f"data.root: {path} has labels {low} to {high}; accepted: {source.first_label} to {last}")


def fetch(source: Source, root: Path, missing: Sequence[str], *, download: bool) -> None:
    """Downloads with torchvision into a folder beside the target and moves the missing files in, each at once.

    Several processes may do so at the same time, and a download that is cut off leaves nothing behind.

    Raises:
        UserError: If that is not wanted or fails; it says which files belong where.
    """
    target = root / source.folder / "raw"
    advice = f"put {', '.join(missing)} (or the same with .gz) into {target}"
    if not download:
        raise UserError(f"data.download: false, and data.root: {str(root)!r} has no {source.folder}; {advice}")
    made = [folder for folder in (root, *root.parents) if not folder.exists()]
    try:
        root.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryDirectory(dir=root, prefix=".download-") as scratch:
            download_with_torchvision(source, Path(scratch))
            target.mkdir(parents=True, exist_ok=True)
            for name in missing:
                (Path(scratch) / source.folder / "raw" / name).replace(target / name)
    except (OSError, RuntimeError) as error:
        for folder in made:
            with suppress(OSError):  # holds something by now
                folder.rmdir()
        reason = " ".join(str(error).split())[:160]
        raise UserError(
            f"data.root: {str(root)!r} has no {source.folder}; download failed ({reason}); {advice}"
        ) from error


def download_with_torchvision(source: Source, root: Path) -> None:
    """Lets torchvision's class download, check and extract its files into `root`."""
    from torchvision import datasets  # needed only where files are absent

    kind = getattr(datasets, source.folder)
    options = {"split": source.files[0].split("-")[1]} if source.folder == "EMNIST" else {}
    for train in (True, False):
        kind(root, train=train, download=True, **options)
