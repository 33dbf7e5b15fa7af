"""MNIST and its relatives, from the files that torchvision downloads."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

import torch
from torch import Tensor

from mlp_lab.data.augmentation import Augmentation, distort
from mlp_lab.data.columns import Column
from mlp_lab.data.description import Description, print_columns, print_description, print_fitted
from mlp_lab.data.image_sources import SOURCES, Images, read_images
from mlp_lab.data.loader import Batch
from mlp_lab.data.module import Loaded, Part, TensorDataModule, check_train_rows
from mlp_lab.data.sources import data_root
from mlp_lab.data.spec import DataSpec
from mlp_lab.data.splits import PARTS, TEST, TRAIN, UNUSED, split_rows, training_subset
from mlp_lab.errors import UserError, unknown

UNCHANGED = Augmentation()
DatasetName = Literal["mnist", "fashion", "kmnist", "qmnist", "emnist-letters", "emnist-balanced", "emnist-digits"]


class MNISTDataModule(TensorDataModule):
    """28 x 28 images of ten digits, or a dataset in the same format; the test part is the published one."""

    def __init__(
        self,
        *,
        dataset: DatasetName = "mnist",
        root: str | None = None,
        val_fraction: float = 0.1,
        train_rows: int | None = None,
        normalize: bool = True,
        augment: Augmentation = UNCHANGED,
        download: bool = True,
        verbose: bool = True,
        batch_size: int = 128,
        eval_batch_size: int = 4096,
        seed: int | None = None,
        drop_last: bool = False,
        fitted: str | None = None,
    ) -> None:
        """Takes the settings; files are read when the data is first needed.

        Args:
            dataset: Images: mnist, fashion, kmnist, qmnist, emnist-letters, emnist-balanced or emnist-digits.
            root: Folder that holds torchvision's layout, `<root>/MNIST/raw/train-images-idx3-ubyte` (or `.gz`); by
                default `$MLP_LAB_DATA`, else `data`.
            val_fraction: Share of the published training images that are kept for validation, at least 0 and below
                1, stratified by class.
            train_rows: Train on so many of the training images alone, >= 1: a fixed, seeded draw, stratified, that
                contains every smaller one. Validation and test images stay.
            normalize: Subtract the mean of the training pixels and divide by their standard deviation; false keeps
                pixels between 0 and 1.
            augment: How far training images are distorted, again in each batch; by default not at all.
            download: Download the files if they are absent.
            verbose: Print what was read and how it is used.
            batch_size: Rows of a training batch over all processes, at least 1; more means all training rows.
            eval_batch_size: Rows of a batch for validation, test and prediction over all processes, at least 1.
            seed: Seed of split and shuffling, at least 0; by default the run's `seed_everything`, else 0.
            drop_last: Leave out the last training batch of an epoch if it is not full.
            fitted: Checkpoint from which spec, split and scaling are taken instead of being fitted.
        """
        super().__init__(
            batch_size=batch_size, eval_batch_size=eval_batch_size, seed=seed, drop_last=drop_last, fitted=fitted
        )
        if dataset not in SOURCES:
            raise unknown("data.dataset", dataset, SOURCES)
        if not 0 <= val_fraction < 1:
            raise UserError(f"data.val_fraction: {val_fraction} is outside 0 to below 1")
        check_train_rows(train_rows)
        self.dataset = dataset
        self.root = data_root(root)
        self.val_fraction = val_fraction
        self.train_rows = train_rows
        self.normalize = normalize
        self.augment = augment
        self.download = download
        self.verbose = verbose

    def _load(self) -> Loaded:
        source = SOURCES[self.dataset]
        images = read_images(source, self.root, download=self.download)
        state = self.fitted_state or self._fit(images)
        split: Tensor = state["split"]  # (N + M,) of N training and M test images
        found = len(images.train) + len(images.test)
        if len(split) != found:
            raise UserError(f"data.root: {self.root} holds {found} images, but the checkpoint's split {len(split)}")
        parts = {name: _part(images, split, code, state) for code, name in enumerate(PARTS)}
        counts = torch.bincount(images.train_labels[split[: len(images.train)] == TRAIN], minlength=len(source.classes))
        spec = DataSpec(
            task="multiclass",
            numeric=tuple(f"pixel_{index}" for index in range(images.train[0].numel())),
            image_shape=tuple(images.train.shape[1:]),
            classes=source.classes,
            class_counts=tuple(counts.tolist()),
            targets=("label",),
            rows=(parts["train"].rows, parts["val"].rows, parts["test"].rows),
            fingerprint=images.fingerprint,
        )
        if self.verbose:
            self._describe(spec, state)
        is_new = (saved := self._saved()) is not None and saved["spec"]["fingerprint"] != images.fingerprint
        return Loaded(spec=spec, parts=parts, state=state, source=self.dataset, is_new=is_new)

    def _describe(self, spec: DataSpec, state: Mapping[str, Any]) -> None:
        if self.fitted is not None:
            print_fitted(self.dataset, dict(zip(PARTS, spec.rows, strict=True)))
            return
        print_columns(self.dataset, [Column(name=name, kind="numeric") for name in spec.numeric], spec.image_shape)
        units = f"mean {state['pixel_mean']:.4f}, standard deviation {state['pixel_std']:.4f} of the training pixels"
        print_description(
            Description(
                spec=spec,
                scaling=f"normalize: by {units}" if self.normalize else "none: pixels from 0 to 1",
                split=f"stratified by class, seed {self.resolved_seed}; test rows as published",
                left_out=int((state["split"] == UNUSED).sum()),
                batch_size=self.batch_size,
            )
        )

    def _fit(self, images: Images) -> dict[str, Any]:
        """Draws the split and measures the training pixels."""
        codes = split_rows(
            len(images.train),
            (1 - self.val_fraction, self.val_fraction, 0.0),
            seed=self.resolved_seed,
            labels=images.train_labels,
            classes=SOURCES[self.dataset].classes,
            key="data.val_fraction",
        )
        if self.train_rows is not None:
            places = (codes == TRAIN).nonzero().flatten()  # (K,)
            labels = images.train_labels[places]
            kept = training_subset(len(places), self.train_rows, seed=self.resolved_seed, labels=labels)
            codes[places[~kept]] = UNUSED
        mean, std = pixel_statistics(images.train[codes == TRAIN]) if self.normalize else (0.0, 1.0)
        split = torch.cat([codes, torch.full((len(images.test),), TEST, dtype=torch.uint8)])
        return {"split": split, "pixel_mean": mean, "pixel_std": std}

    def on_after_batch_transfer(self, batch: Batch, dataloader_idx: int) -> Batch:
        """Distorts a training batch where `augment` asks for it."""
        if not self.augment.active or self.trainer is None or not self.trainer.training:
            return batch
        state, shape = self.loaded.state, self.spec.image_shape
        background = -state["pixel_mean"] / state["pixel_std"]
        images = distort(batch.numeric.view(-1, *shape), self.augment, fill=background)  # (B, H, W)
        return batch._replace(numeric=images.flatten(1))


def pixel_statistics(pixels: Tensor) -> tuple[float, float]:
    """Returns mean and standard deviation of uint8 pixels on the scale 0 to 1, exactly, from their histogram.

    A constant image set has a standard deviation of 1, so that scaling by it is harmless.
    """
    counts = torch.bincount(pixels.flatten(), minlength=256).double()  # (256,)
    levels = torch.arange(256, dtype=torch.float64) / 255
    shares = counts / counts.sum()
    mean = float(shares @ levels)
    std = math.sqrt(float(shares @ (levels - mean) ** 2))
    return mean, std or 1.0


def scale_pixels(pixels: Tensor, *, mean: float, std: float) -> Tensor:
    """Returns (pixel / 255 - mean) / std, flattened, (N, H W) float32, with one copy in memory."""
    return pixels.flatten(1).to(torch.float32).mul_(1 / (255 * std)).sub_(mean / std)


def _part(images: Images, split: Tensor, code: int, state: Mapping[str, Any]) -> Part:
    pixels, labels = (images.test, images.test_labels) if code == TEST else (images.train, images.train_labels)
    offset = len(images.train) if code == TEST else 0
    ids = (split == code).nonzero().flatten()  # row numbers in training images followed by test images
    rows = ids - offset
    return Part(
        numeric=scale_pixels(pixels[rows], mean=state["pixel_mean"], std=state["pixel_std"]),
        target=labels[rows],
        ids=ids,
    )
