"""What every data module shares: load once, serve batches, and keep what was fitted in the checkpoint."""

from __future__ import annotations

import os
import pickle
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from lightning.pytorch import LightningDataModule, Trainer
from torch import Tensor

from mlp_lab.archive import check_archive
from mlp_lab.data.loader import Batch, TensorLoader
from mlp_lab.data.spec import DataSpec
from mlp_lab.data.splits import split_hash
from mlp_lab.errors import UserError
from mlp_lab.paths import expand_path


@dataclass(frozen=True, kw_only=True)
class Part:
    """The rows of one part of a split, ready for the model."""

    numeric: Tensor
    """Scaled features, (N, D) float32; D may be 0."""
    categorical: Tensor | None = None
    """Codes, (N, F) int64, or None without categorical features."""
    target: Tensor | None = None
    """(N,) int64 classes, (N, T) float32 regression targets or labels, or None when predicting."""
    ids: Tensor | None = None
    """Row numbers in the source, (N,) int64, or None."""
    names: pd.DataFrame | None = None
    """The columns that name the rows, N lines of cells as they are written; None unless `keep_cells` was called."""
    truth: pd.DataFrame | None = None
    """The target columns that the source has, N lines in the target's own unit; None unless `keep_cells` was called."""

    @property
    def rows(self) -> int:
        """Number of rows, N."""
        return len(self.numeric)


@dataclass(frozen=True, kw_only=True)
class Loaded:
    """All that a data module reads, splits and fits."""

    spec: DataSpec
    """What the model must know."""
    parts: Mapping[str, Part]
    """By name: train, val, test, predict; an absent part has no rows."""
    state: Mapping[str, Any]
    """What was fitted, as plain types and tensors (loads with `weights_only=True`); `split` holds the split's codes."""
    source: str = ""
    """The file or the name of the table that the rows come from."""
    is_new: bool = False
    """Whether the rows are other than those that the checkpoint `fitted` was trained on."""


class TensorDataModule(LightningDataModule):
    """A LightningDataModule whose parts are tensors; a subclass reads, splits and fits in `_load`.

    Loading happens once, when the spec or the data is first needed: the model is built from `spec_dict` before
    Lightning calls `setup`.
    """

    def __init__(
        self,
        *,
        batch_size: int = 128,
        eval_batch_size: int = 4096,
        seed: int | None = None,
        drop_last: bool = False,
        fitted: str | None = None,
    ) -> None:
        """Takes what all data modules have in common.

        Args:
            batch_size: Rows of a training batch over all processes, at least 1; more means all training rows.
            eval_batch_size: Rows of a batch for validation, test and prediction over all processes, at least 1.
            seed: Seed of split and shuffling, at least 0; by default the run's `seed_everything`, else 0.
            drop_last: Leave out the last training batch of an epoch if it is not full.
            fitted: Checkpoint from which spec, split and preprocessing are taken instead of being fitted.
        """
        super().__init__()
        for key, size in (("data.batch_size", batch_size), ("data.eval_batch_size", eval_batch_size)):
            if size < 1:
                raise UserError(f"{key}: {size} must be 1 or more")
        if seed is not None and seed < 0:
            raise UserError(f"data.seed: {seed} must be 0 or more")
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.seed = seed
        self.drop_last = drop_last
        self.fitted = fitted
        self._loaded: Loaded | None = None
        self._fitted_from: dict[str, Any] | None = None

    @abstractmethod
    def _load(self) -> Loaded:
        """Reads, splits and fits; with `fitted_state`, transforms by it and fits nothing."""
        raise UserError(f"data: {type(self).__qualname__} reads no data; use a subclass, or ArrayDataModule for arrays")

    @property
    def resolved_seed(self) -> int:
        """The seed of split and shuffling: `data.seed`, else the run's `seed_everything`, else 0."""
        return self.seed if self.seed is not None else int(os.environ.get("PL_GLOBAL_SEED", "0"))

    @property
    def train_batch_size(self) -> int:
        """Rows of a full training batch: `batch_size`, or all training rows where there are no more."""
        return min(self.batch_size, self.part("train").rows)

    @property
    def loaded(self) -> Loaded:
        """Spec, parts and state; the first access reads the data."""
        if self._loaded is None:
            loaded = self._load()
            if (saved := self._saved()) is not None:
                loaded = replace(loaded, spec=DataSpec.from_dict(saved["spec"]), state=saved["state"])
            self._loaded = loaded
        return self._loaded

    @property
    def spec(self) -> DataSpec:
        """What the model must know of the data; with `fitted`, the checkpoint's, and no data is read."""
        saved = self._saved()
        return self.loaded.spec if saved is None else DataSpec.from_dict(saved["spec"])

    @property
    def spec_dict(self) -> dict[str, Any]:
        """`spec` in plain types; the command line links it to `model.spec`."""
        return self.spec.to_dict()

    @property
    def fitted_state(self) -> dict[str, Any] | None:
        """The `state` of the checkpoint `fitted`, or None where this module fits its own."""
        saved = self._saved()
        return None if saved is None else dict(saved["state"])

    @property
    def fingerprint(self) -> str:
        """Shortened SHA-256 of the source data (of the fitted data where `fitted` is given)."""
        return self.spec.fingerprint

    @property
    def split_fingerprint(self) -> str:
        """Shortened SHA-256 of the split's codes."""
        state = self.fitted_state or self.loaded.state
        return split_hash(state["split"])

    def keep_cells(self, columns: Sequence[str]) -> None:
        """Keeps the cells of the target (`Part.truth`) and of other columns (`Part.names`) beside the rows.

        Call it before the data is loaded; data that is loaded already is read again.

        Args:
            columns: Columns of the source that name its rows, whether or not the model uses them.

        Raises:
            UserError: The source is not a table.
        """
        if columns:
            raise UserError(f"id: {type(self).__name__} has no columns, so {columns[0]!r} cannot name its rows")

    def _saved(self) -> dict[str, Any] | None:
        if self.fitted is not None and self._fitted_from is None:
            self._fitted_from = read_fitted(self.fitted, kind=type(self).__qualname__)
        return self._fitted_from

    def __getstate__(self) -> dict[str, Any]:
        """Leaves out the trainer, to which a copy in another place does not belong."""
        return {**self.__dict__, "trainer": None}

    def setup(self, stage: str) -> None:
        """Loads the data; Lightning calls it on every process before it asks for loaders."""
        _ = self.loaded

    def part(self, name: str) -> Part:
        """Returns the train, val, test or predict rows.

        Raises:
            UserError: If there are none.
        """
        part = self.loaded.parts.get(name)
        if part is None or part.rows == 0:
            raise UserError(_NO_ROWS[name])
        return part

    def train_dataloader(self) -> TensorLoader:
        """Returns shuffled training batches; under `overfit_batches` those of the first epoch, again and again."""
        return self._loader(self.part("train"), batch_size=self.train_batch_size, training=True)

    def val_dataloader(self) -> TensorLoader:
        """Returns the validation rows in their own order."""
        return self._loader(self.part("val"), batch_size=self.eval_batch_size)

    def test_dataloader(self) -> TensorLoader:
        """Returns the test rows in their own order."""
        return self._loader(self.part("test"), batch_size=self.eval_batch_size)

    def predict_dataloader(self) -> TensorLoader:
        """Returns the rows to predict in their own order: the predict part, or else the test rows."""
        name = "predict" if "predict" in self.loaded.parts else "test"
        return self._loader(self.part(name), batch_size=self.eval_batch_size)

    def _loader(self, part: Part, *, batch_size: int, training: bool = False) -> TensorLoader:
        build = partial(
            TensorLoader,
            part.numeric,
            part.categorical,
            part.target,
            batch_size=batch_size,
            shuffle=training,
            drop_last=training and self.drop_last,
            seed=self.resolved_seed,
        )
        if (trainer := self.trainer) is None:
            return build()
        device = trainer.strategy.root_device
        build = partial(build, rank=trainer.global_rank, world_size=trainer.world_size, device=device)
        if not training:
            return build()
        return build(
            reshuffle=not getattr(trainer, "overfit_batches", 0),
            start_epoch=_epochs_done(trainer),
            progress=lambda: _epoch_progress(trainer),
        )

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        """Returns the batch untouched where it lies on `device`: Lightning's own walk over it costs about 15 us."""
        if batch.numeric.device == device:
            return batch
        categorical, target = (
            None if tensor is None else tensor.to(device) for tensor in (batch.categorical, batch.target)
        )
        return Batch(batch.numeric.to(device), categorical, target, batch.count)

    def state_dict(self) -> dict[str, Any]:
        """Returns spec, fitted state and fingerprints, which Lightning saves under the class's name."""
        return {
            "spec": self.spec.to_dict(),
            "state": dict(self.loaded.state),
            "fingerprint": self.fingerprint,
            "split_fingerprint": self.split_fingerprint,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Checks that the run goes on with the data that it began with; `fitted` data may be new by intent.

        Raises:
            UserError: If data, split or preprocessing differ from the checkpoint's.
        """
        if self.fitted is not None:
            return
        ours = {"fingerprint": self.fingerprint, "split_fingerprint": self.split_fingerprint}
        for name, value in ours.items():
            if (saved := state_dict[name]) != value:
                what = name.replace("_", "'s ")
                raise UserError(f"data: its {what} is {value}, the checkpoint's {saved}; resume on the same rows")
        if self.spec != DataSpec.from_dict(state_dict["spec"]):
            raise UserError("data: columns or scaling differ from the checkpoint's; resume with the same data settings")


def check_train_rows(rows: int | None) -> None:
    """Refuses a `data.train_rows` below 1; whether there are as many is known once the split is."""
    if rows is not None and rows < 1:
        raise UserError(f"data.train_rows: {rows} must be 1 or more")


def _epochs_done(trainer: Trainer) -> int:
    """Returns the epochs that training has behind it, which number the next one.

    Lightning restores a loader's own count only inside an epoch, and not where it asks for a new loader
    (`reload_dataloaders_every_n_epochs`). `current_epoch` still lags here when a run resumes.
    """
    return int(trainer.fit_loop.epoch_progress.current.processed)  # type: ignore[attr-defined]


def _epoch_progress(trainer: Trainer) -> tuple[int, float]:
    """Returns how many batches of the epoch training has behind it, and how many it will take."""
    done = int(trainer.fit_loop.epoch_loop.batch_progress.current.processed)  # type: ignore[attr-defined]
    return done, trainer.num_training_batches


def read_fitted(path: str, *, kind: str) -> dict[str, Any]:
    """Reads what a data module saved in a checkpoint.

    Args:
        path: A checkpoint that Lightning wrote.
        kind: Qualified class name of the data module; Lightning's key for its state.

    Raises:
        UserError: If the file is missing, is no checkpoint, or holds the state of another data module.
    """
    path = str(expand_path("data.fitted", path))
    if not Path(path).is_file():
        raise UserError(
            f"data.fitted: {path!r} does not exist; give a checkpoint such as RUN_DIR/checkpoints/best.ckpt"
        )
    try:
        check_archive(path)
        checkpoint = torch.load(path, weights_only=True, map_location="cpu")
    except (RuntimeError, EOFError, OSError, ValueError, pickle.UnpicklingError) as error:
        raise UserError(f"data.fitted: {path!r} is not a checkpoint that can be read") from error
    saved = checkpoint.get(kind) if isinstance(checkpoint, dict) else None
    if not isinstance(saved, dict) or not {"spec", "state"} <= saved.keys():
        raise UserError(
            f"data.fitted: {path!r} holds no state of {kind}; give a checkpoint of a run that trained with it"
        )
    return saved


_NO_ROWS = {
    "train": "data: no training rows; give `train` a share of data.split, or rows of data.split_column",
    "val": "data: no validation rows; give them a share of the split, or set --trainer.limit_val_batches 0",
    "test": "data: no test rows; give them a share of the split, or name a test file",
    "predict": "data: no rows to predict; data.path must have at least one row",
}
