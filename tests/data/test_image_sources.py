"""The registry against torchvision's classes, and reading and fetching files."""

from __future__ import annotations

import gzip
import os
import struct
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision import datasets

from mlp_lab.data.image_sources import SOURCES, Source, download_with_torchvision, fetch, read_images
from mlp_lab.errors import UserError


def write_idx(path: Path, values: np.ndarray, *, compress: bool = False) -> None:
    kind = "u1" if values.dtype == np.uint8 else ">i4"
    header = bytes([0, 0, 0x08 if kind == "u1" else 0x0C, values.ndim]) + struct.pack(f">{values.ndim}I", *values.shape)
    content = header + values.astype(kind).tobytes()
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(gzip.compress(content) if compress else content)


def write_source(root: Path, source: Source, *, rows: int = 6, compress: bool = False) -> list[np.ndarray]:
    """Writes small random files of a source; returns their values."""
    generator = np.random.default_rng(0)
    values = []
    for index, name in enumerate(source.files):
        if index % 2 == 0:
            value = generator.integers(0, 256, size=(rows, 28, 28)).astype(np.uint8)
        else:
            value = (np.arange(rows) % len(source.classes) + source.first_label).astype(np.uint8)
            if "idx2" in name:
                value = np.stack([value.astype(np.int32)] + [np.full(rows, 77, np.int32)] * 7, axis=1)
        path = root / source.folder / "raw" / (f"{name}.gz" if compress else name)
        write_idx(path, value, compress=compress)
        values.append(value)
    return values


def torchvision_sets(name: str, root: Path) -> list[datasets.MNIST]:
    source = SOURCES[name]
    options = {"split": name.removeprefix("emnist-")} if source.folder == "EMNIST" else {}
    return [getattr(datasets, source.folder)(root, train=train, **options) for train in (True, False)]


@pytest.mark.parametrize("name", SOURCES)
def test_files_labels_and_classes_are_torchvisions(name: str, tmp_path: Path) -> None:
    source = SOURCES[name]
    write_source(tmp_path, source, rows=30)
    images = read_images(source, tmp_path, download=False)
    for theirs, pixels, labels in zip(
        torchvision_sets(name, tmp_path),
        (images.train, images.test),
        (images.train_labels, images.test_labels),
        strict=True,
    ):
        assert torch.equal(pixels, theirs.data.mT if source.folder == "EMNIST" else theirs.data)
        assert labels.dtype == torch.int64
        for index in range(len(labels)):
            _, label = theirs[index]
            assert theirs.classes[label].split(" - ")[0] == source.classes[labels[index]]


@pytest.mark.parametrize("name", SOURCES)
def test_classes_are_all_of_torchvisions(name: str) -> None:
    source = SOURCES[name]
    theirs = getattr(datasets, source.folder).classes if source.folder != "EMNIST" else None
    if theirs is None:
        theirs = datasets.EMNIST.classes_split_dict[name.removeprefix("emnist-")]
    assert source.classes == tuple(label.split(" - ")[0] for label in theirs if label != "N/A")


def test_compressed_files_read_alike_and_the_root_may_be_read_only(tmp_path: Path) -> None:
    source = SOURCES["mnist"]
    write_source(tmp_path / "plain", source)
    write_source(tmp_path / "packed", source, compress=True)
    os.chmod(tmp_path / "packed" / "MNIST" / "raw", 0o555)
    plain, packed = (read_images(source, tmp_path / kind, download=False) for kind in ("plain", "packed"))
    assert torch.equal(plain.train, packed.train)
    assert plain.fingerprint == packed.fingerprint
    assert sorted(path.name for path in (tmp_path / "packed").rglob("*-ubyte*")) == sorted(
        f"{name}.gz" for name in source.files
    )


def test_fingerprint_tells_one_changed_pixel(tmp_path: Path) -> None:
    source = SOURCES["mnist"]
    values = write_source(tmp_path, source)
    before = read_images(source, tmp_path, download=False).fingerprint
    values[0][3, 2, 1] ^= 1
    write_idx(tmp_path / "MNIST" / "raw" / source.files[0], values[0])
    assert read_images(source, tmp_path, download=False).fingerprint != before


def test_files_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    source = SOURCES["emnist-letters"]
    write_source(tmp_path, source)
    labels = tmp_path / "EMNIST" / "raw" / source.files[1]
    write_idx(labels, np.arange(5, dtype=np.uint8))
    with pytest.raises(UserError, match=r"does not fit its images: \(5,\) labels for images \(6, 28, 28\)"):
        read_images(source, tmp_path, download=False)
    write_idx(labels, np.arange(6, dtype=np.uint8))
    with pytest.raises(UserError, match=r"labels-idx1-ubyte has labels 0 to 5; accepted: 1 to 26$"):
        read_images(source, tmp_path, download=False)


def test_absent_files_without_download(tmp_path: Path) -> None:
    source = SOURCES["mnist"]
    write_source(tmp_path, source)
    target = tmp_path / "MNIST" / "raw"
    (target / source.files[2]).unlink()
    with pytest.raises(UserError) as caught:
        read_images(source, tmp_path, download=False)
    advice = f"put t10k-images-idx3-ubyte (or the same with .gz) into {target}"
    assert str(caught.value) == f"data.download: false, and data.root: {str(tmp_path)!r} has no MNIST; {advice}"


def test_failed_download_says_which_files_go_where(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def offline(source: Source, root: Path) -> None:
        raise RuntimeError("Error downloading train-images:\nno network")

    monkeypatch.setattr("mlp_lab.data.image_sources.download_with_torchvision", offline)
    source = SOURCES["mnist"]
    with pytest.raises(UserError) as caught:
        read_images(source, tmp_path / "new" / "root", download=True)
    message = str(caught.value)
    assert "\n" not in message
    assert "download failed (Error downloading train-images: no network)" in message
    assert message.endswith(
        f"put {', '.join(source.files)} (or the same with .gz) into {tmp_path / 'new' / 'root' / 'MNIST' / 'raw'}"
    )
    assert list(tmp_path.iterdir()) == []


def test_download_moves_only_the_missing_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = SOURCES["mnist"]

    def downloaded(source: Source, root: Path) -> None:
        write_source(root, source)

    monkeypatch.setattr("mlp_lab.data.image_sources.download_with_torchvision", downloaded)
    target = tmp_path / "MNIST" / "raw"
    target.mkdir(parents=True)
    (target / source.files[0]).write_bytes(b"mine")
    fetch(source, tmp_path, source.files[1:], download=True)
    assert (target / source.files[0]).read_bytes() == b"mine"
    assert sorted(path.name for path in target.iterdir()) == sorted(source.files)
    assert [path.name for path in tmp_path.iterdir()] == ["MNIST"]


@pytest.mark.parametrize("name", SOURCES)
def test_download_asks_torchvision_for_both_parts(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source = SOURCES[name]
    calls: list[dict[str, object]] = []

    class Stub:
        def __init__(self, root: Path, **options: object) -> None:
            calls.append(options)

    monkeypatch.setattr(datasets, source.folder, Stub)
    download_with_torchvision(source, tmp_path)
    split = {"split": name.removeprefix("emnist-")} if source.folder == "EMNIST" else {}
    assert calls == [{"train": train, "download": True, **split} for train in (True, False)]
