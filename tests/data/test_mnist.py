"""The MNIST module on small files, and on the real ones where they are."""

from __future__ import annotations

import os
import resource
import struct
from pathlib import Path

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from torch import nn

from mlp_lab.data.augmentation import Augmentation
from mlp_lab.data.loader import Batch
from mlp_lab.data.mnist import MNISTDataModule, pixel_statistics, scale_pixels
from mlp_lab.data.splits import TEST, TRAIN, VAL
from mlp_lab.errors import UserError

REAL_ROOT = os.environ.get("MLP_LAB_DATA", "")
needs_mnist = pytest.mark.skipif(
    not (Path(REAL_ROOT) / "MNIST" / "raw").is_dir() or not REAL_ROOT, reason="$MLP_LAB_DATA holds no MNIST/raw"
)
TRAIN_ROWS, TEST_ROWS = 200, 40


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder with 200 training and 40 test images of 6 x 5 pixels, ten classes."""
    generator = np.random.default_rng(0)
    raw = tmp_path / "MNIST" / "raw"
    raw.mkdir(parents=True)
    for name, rows in (("train", TRAIN_ROWS), ("t10k", TEST_ROWS)):
        pixels = generator.integers(0, 256, size=(rows, 6, 5)).astype(np.uint8)
        header = bytes([0, 0, 8, 3]) + struct.pack(">3I", *pixels.shape)
        (raw / f"{name}-images-idx3-ubyte").write_bytes(header + pixels.tobytes())
        header = bytes([0, 0, 8, 1]) + struct.pack(">I", rows)
        (raw / f"{name}-labels-idx1-ubyte").write_bytes(header + bytes(row % 10 for row in range(rows)))
    return tmp_path


def raw_pixels(root: Path, name: str) -> np.ndarray:
    content = (root / "MNIST" / "raw" / f"{name}-images-idx3-ubyte").read_bytes()
    return np.frombuffer(content, dtype=np.uint8, offset=16).reshape(-1, 30)


def test_fewer_training_rows_are_nested_and_leave_the_rest_as_it_is(root: Path) -> None:
    whole, *smaller = (
        MNISTDataModule(root=str(root), seed=0, train_rows=rows, verbose=False) for rows in (None, 10, 50, 180)
    )
    for data in smaller:
        for name in ("val", "test"):
            assert torch.equal(data.part(name).ids, whole.part(name).ids)  # type: ignore[arg-type]
    kept = [set(data.part("train").ids.tolist()) for data in (*smaller, whole)]  # type: ignore[union-attr]
    assert [len(rows) for rows in kept] == [10, 50, 180, 180]
    assert kept[0] < kept[1] < kept[2] == kept[3]
    assert smaller[1].spec.class_counts == (5,) * 10
    pixels = raw_pixels(root, "train")[sorted(kept[1])] / 255
    assert smaller[1].loaded.state["pixel_mean"] == pytest.approx(pixels.mean())
    assert len({data.split_fingerprint for data in (*smaller, whole)}) == 3


@pytest.mark.parametrize(("rows", "words"), [(0, "0 must be 1 or more"), (9, "9 is fewer"), (181, "181 is more than")])
def test_wrong_number_of_training_rows_is_refused(root: Path, rows: int, words: str) -> None:
    with pytest.raises(UserError, match=rf"^data\.train_rows: {words}"):
        MNISTDataModule(root=str(root), train_rows=rows).setup("fit")


def test_page_says_what_was_read(root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = MNISTDataModule(root=str(root), seed=3, train_rows=100, batch_size=128)
    data.setup("fit")
    page = " ".join(capsys.readouterr().out.split())
    for words in (
        "data mnist: images of 6 × 5 pixels scaling normalize: by mean 0.",
        "target label: multiclass, 10 classes; 10.0% to 10.0% of the rows each",
        "rows 100 of 180 train, 20 validation, 40 test (stratified by class, seed 3; test rows as published)",
        "note data.batch_size: 128 is more than the 100 training rows; each step trains on all of them",
    ):
        assert words in page
    torch.save({"MNISTDataModule": data.state_dict()}, tmp_path / "best.ckpt")
    MNISTDataModule(root=str(root), fitted=str(tmp_path / "best.ckpt")).setup("test")
    assert capsys.readouterr().out == (
        "data    mnist, prepared as in the run\nrows    100 train, 20 validation, 40 test\n"
    )
    MNISTDataModule(root=str(root), verbose=False).setup("fit")
    assert capsys.readouterr().out == ""


def test_parts_hold_scaled_pixels_of_their_rows(root: Path) -> None:
    data = MNISTDataModule(root=str(root), val_fraction=0.25, seed=0)
    split = data.loaded.state["split"].numpy()
    published = np.concatenate([raw_pixels(root, "train"), raw_pixels(root, "t10k")]) / 255
    training = published[split == TRAIN]
    mean, std = training.mean(), training.std()
    for code, name in ((TRAIN, "train"), (VAL, "val"), (TEST, "test")):
        part = data.part(name)
        # float32 holds 24 bits and the scaled values stay below 3.
        np.testing.assert_allclose(part.numeric, (published[split == code] - mean) / std, atol=1e-6)
        assert part.ids.tolist() == np.flatnonzero(split == code).tolist()  # type: ignore[union-attr]
        start = TRAIN_ROWS if name == "test" else 0
        assert part.target.tolist() == [(row - start) % 10 for row in part.ids.tolist()]  # type: ignore[union-attr]
        assert part.numeric.dtype == torch.float32
    assert [int((split == code).sum()) for code in (TRAIN, VAL, TEST)] == [150, 50, 40]


def test_spec_describes_images_and_classes(root: Path) -> None:
    spec = MNISTDataModule(root=str(root), val_fraction=0.25, seed=0).spec
    assert spec.task == "multiclass"
    assert spec.numeric == tuple(f"pixel_{index}" for index in range(30))
    assert spec.image_shape == (6, 5)
    assert spec.classes == tuple("0123456789")
    assert spec.class_counts == (15,) * 10
    assert spec.rows == (150, 50, 40)


def test_without_normalisation_pixels_are_in_0_to_1(root: Path) -> None:
    data = MNISTDataModule(root=str(root), normalize=False, val_fraction=0.0)
    np.testing.assert_allclose(data.part("train").numeric, raw_pixels(root, "train") / 255, atol=1e-7)
    with pytest.raises(UserError, match=r"^data: no validation rows"):
        data.val_dataloader()


def test_changing_validation_and_test_images_changes_nothing_that_was_fitted(root: Path) -> None:
    before = MNISTDataModule(root=str(root), seed=0)
    split = before.loaded.state["split"]
    path = root / "MNIST" / "raw" / "train-images-idx3-ubyte"
    content = bytearray(path.read_bytes())
    for row in (split[:TRAIN_ROWS] == VAL).nonzero().flatten().tolist():
        content[16 + 30 * row : 46 + 30 * row] = b"\xff" * 30
    path.write_bytes(content)
    test_path = path.with_name("t10k-images-idx3-ubyte")
    test_path.write_bytes(test_path.read_bytes()[:16] + b"\xff" * 30 * TEST_ROWS)
    after = MNISTDataModule(root=str(root), seed=0)
    assert torch.equal(after.loaded.state["split"], split)
    assert after.loaded.state["pixel_mean"] == before.loaded.state["pixel_mean"]
    assert after.loaded.state["pixel_std"] == before.loaded.state["pixel_std"]
    assert torch.equal(after.part("train").numeric, before.part("train").numeric)
    assert after.fingerprint != before.fingerprint


def test_split_follows_the_seed(root: Path) -> None:
    one, same, other = (MNISTDataModule(root=str(root), seed=seed) for seed in (1, 1, 2))
    assert one.split_fingerprint == same.split_fingerprint != other.split_fingerprint


def test_root_is_the_environments_by_default(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MLP_LAB_DATA", str(root))
    assert MNISTDataModule().spec.rows == (180, 20, 40)
    monkeypatch.delenv("MLP_LAB_DATA")
    assert MNISTDataModule().root == Path("data")


def test_fitted_keeps_split_and_scaling(root: Path, tmp_path: Path) -> None:
    first = MNISTDataModule(root=str(root), seed=0)
    torch.save({"MNISTDataModule": first.state_dict()}, tmp_path / "run.ckpt")
    again = MNISTDataModule(
        root=str(root), seed=5, val_fraction=0.3, normalize=False, fitted=str(tmp_path / "run.ckpt")
    )
    assert again.spec == first.spec
    assert again.split_fingerprint == first.split_fingerprint
    assert torch.equal(again.part("val").numeric, first.part("val").numeric)
    labels = root / "MNIST" / "raw" / "t10k-labels-idx1-ubyte"
    images = labels.with_name("t10k-images-idx3-ubyte")
    labels.write_bytes(bytes([0, 0, 8, 1]) + struct.pack(">I", 1) + b"\x00")
    images.write_bytes(bytes([0, 0, 8, 3]) + struct.pack(">3I", 1, 6, 5) + bytes(30))
    shrunk = MNISTDataModule(root=str(root), fitted=str(tmp_path / "run.ckpt"))
    with pytest.raises(UserError, match=r"holds 201 images, but the checkpoint's split 240$"):
        shrunk.setup("test")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"dataset": "mnits"}, "data.dataset: 'mnits' is unknown (did you mean 'mnist'?); accepted: mnist, fashion, "),
        ({"val_fraction": 1.0}, "data.val_fraction: 1.0 is outside 0 to below 1"),
        ({"val_fraction": -0.1}, "data.val_fraction: -0.1 is outside 0 to below 1"),
    ],
)
def test_wrong_settings_are_refused(options: dict[str, object], message: str) -> None:
    with pytest.raises(UserError) as caught:
        MNISTDataModule(**options)  # type: ignore[arg-type]
    assert str(caught.value).startswith(message)


class Watcher(pl.LightningModule):
    """Keeps the pixels that each step was given."""

    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Linear(30, 10)
        self.trained: list[torch.Tensor] = []
        self.validated: list[torch.Tensor] = []

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        self.trained.append(batch.numeric)
        return nn.functional.cross_entropy(self.line(batch.numeric), batch.target)

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        self.validated.append(batch.numeric)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


@pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec")
def test_only_training_batches_are_augmented(root: Path) -> None:
    shift = Augmentation(translation=2)
    seen = []
    for augment in (Augmentation(), shift, shift):
        torch.manual_seed(0)
        module = Watcher()
        data = MNISTDataModule(root=str(root), seed=0, batch_size=180, augment=augment)
        trainer = pl.Trainer(
            max_epochs=2,
            logger=False,
            accelerator="cpu",
            enable_progress_bar=False,
            enable_model_summary=False,
            enable_checkpointing=False,
        )
        trainer.fit(module, datamodule=data)
        seen.append(module)
        assert torch.equal(module.validated[0], data.part("val").numeric)
    plain, augmented, repeated = seen
    assert torch.equal(plain.trained[0], plain.trained[1])  # a full batch in its own order
    assert not torch.equal(augmented.trained[0], plain.trained[0])
    assert not torch.equal(augmented.trained[0], augmented.trained[1])
    assert all(torch.equal(one, two) for one, two in zip(augmented.trained, repeated.trained, strict=True))
    assert torch.equal(data.part("train").numeric, plain.trained[0])  # the resident images are not written to


def test_pixel_statistics_are_numpys() -> None:
    pixels = torch.randint(0, 256, (50, 4, 4), dtype=torch.uint8)
    mean, std = pixel_statistics(pixels)
    scaled = pixels.numpy().astype(np.float64) / 255
    assert mean == pytest.approx(scaled.mean(), rel=1e-12)  # float64 sums of 800 numbers
    assert std == pytest.approx(scaled.std(), rel=1e-12)
    assert pixel_statistics(torch.full((2, 2, 2), 7, dtype=torch.uint8)) == (7 / 255, 1.0)


def test_scale_pixels_flattens_upright() -> None:
    pixels = torch.arange(12, dtype=torch.uint8).view(2, 3, 2)
    expected = (pixels.mT.reshape(2, 6).double() / 255 - 0.5) / 0.25
    torch.testing.assert_close(scale_pixels(pixels.mT, mean=0.5, std=0.25).double(), expected, atol=1e-6, rtol=0)


@needs_mnist
def test_real_mnist_is_itself_and_small() -> None:
    """MNIST's published mean 0.1307 and deviation 0.3081 (of all 60,000 images); counts as in LeCun's files."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    data = MNISTDataModule(root=REAL_ROOT, seed=0)
    data.setup("fit")
    grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
    assert grown < 500  # MiB; the float32 tensors take 209
    assert data.spec.rows == (54000, 6000, 10000)
    assert data.loaded.state["pixel_mean"] == pytest.approx(0.1307, abs=5e-4)
    assert data.loaded.state["pixel_std"] == pytest.approx(0.3081, abs=5e-4)
    published = [5923, 6742, 5958, 6131, 5842, 5421, 5918, 6265, 5851, 5949]
    assert all(abs(count - 0.9 * whole) < 1 for count, whole in zip(data.spec.class_counts, published, strict=True))
    numeric = data.part("train").numeric
    assert float(numeric.double().mean()) == pytest.approx(0, abs=1e-5)
    assert float(numeric.double().std()) == pytest.approx(1, abs=1e-5)


def test_files_are_read_when_the_data_is_needed(tmp_path: Path) -> None:
    data = MNISTDataModule(root=str(tmp_path), download=False)
    with pytest.raises(UserError, match=r"^data\.download: false, and data\.root: .* has no MNIST; put train-images"):
        data.setup("fit")
