"""Lightning runs that stop and go on, compared with runs that never stopped: same batches, bit-identical weights."""

from __future__ import annotations

from itertools import chain
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import Tensor, nn

from mlp_lab.data.loader import Batch
from mlp_lab.data.module import Loaded, Part, TensorDataModule
from mlp_lab.data.spec import DataSpec

ROWS, BATCH = 44, 8  # 6 batches an epoch, the last one of 4 rows

# PyTorch 2.15 deprecates a check that Lightning 2.6 makes on every batch.
pytestmark = pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec")


class Numbers(TensorDataModule):
    """Row i holds the number i, so that batches show which rows were visited."""

    def _load(self) -> Loaded:
        numeric = torch.arange(ROWS, dtype=torch.float32)[:, None]
        spec = DataSpec(task="regression", numeric=("x",), targets=("y",), target_mean=(0.0,), target_std=(1.0,))
        parts = {name: Part(numeric=numeric, target=numeric * 2) for name in ("train", "val")}
        return Loaded(spec=spec, parts=parts, state={"split": torch.zeros(ROWS, dtype=torch.uint8)})


class Recorder(pl.LightningModule):
    """A line that learns, and remembers the rows of each training batch."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.line = nn.Linear(1, 1)
        self.seen: list[list[float]] = []

    def training_step(self, batch: Batch, batch_idx: int) -> Tensor:
        self.seen.append(batch.numeric[:, 0].tolist())
        assert batch.target is not None
        return ((self.line(batch.numeric / ROWS) - batch.target / ROWS) ** 2).mean()

    def validation_step(self, batch: Batch, batch_idx: int) -> None:
        assert batch.count == ROWS

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=0.1)


class SaveOnce(pl.Callback):
    """Writes one checkpoint in the given hook after the given optimizer step."""

    def __init__(self, hook: str, step: int, path: Path) -> None:
        self.hook, self.step, self.path = hook, step, path
        self.batches_before = 0

    def _save(self, hook: str, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        if hook == self.hook and trainer.global_step == self.step and not self.path.exists():
            trainer.save_checkpoint(self.path)
            self.batches_before = len(module.seen)  # type: ignore[arg-type]

    def on_train_batch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule, *_: Any) -> None:
        self._save("batch", trainer, pl_module)

    def on_validation_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._save("validation", trainer, pl_module)

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        self._save("epoch", trainer, pl_module)


def fit(module: pl.LightningModule, *, ckpt_path: Path | None = None, **options: Any) -> None:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    trainer = pl.Trainer(**{"logger": False, "accelerator": "cpu", **quiet, **options})
    trainer.fit(module, datamodule=Numbers(batch_size=BATCH, seed=1), ckpt_path=ckpt_path, weights_only=True)


MODES: dict[str, dict[str, Any]] = {
    "epochs": {"max_epochs": 4},
    "steps": {"max_epochs": -1, "max_steps": 20},
    "steps, no validation": {"max_epochs": -1, "max_steps": 20, "limit_val_batches": 0},
    "limited": {"max_epochs": 4, "limit_train_batches": 4},
    "limited, steps, no validation": {"max_steps": 14, "limit_train_batches": 4, "limit_val_batches": 0},
    "reloading": {"max_epochs": 4, "reload_dataloaders_every_n_epochs": 2},
    "overfitting": {"max_epochs": 6, "overfit_batches": 3},
    "validating within": {"max_epochs": 4, "val_check_interval": 2},
    "accumulating": {"max_epochs": 6, "accumulate_grad_batches": 2},
}
# After step 5 most modes are inside an epoch; 6 ends the first one, 12 the second or third.
MOMENTS = [("batch", 5), ("batch", 6), ("batch", 12), ("validation", 12), ("epoch", 12)]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("hook", "step"), MOMENTS)
def test_resumed_run_equals_the_uninterrupted_one(mode: str, hook: str, step: int, tmp_path: Path) -> None:
    options = MODES[mode]
    if hook == "validation" and options.get("limit_val_batches") == 0:
        pytest.skip("this mode has no validation")
    whole = Recorder()
    save = SaveOnce(hook, step, tmp_path / "run.ckpt")
    fit(whole, callbacks=[save], **options)
    assert save.path.exists()
    rest = Recorder()
    fit(rest, ckpt_path=save.path, **options)
    assert rest.seen == whole.seen[save.batches_before :]
    assert torch.equal(rest.line.weight, whole.line.weight)
    assert torch.equal(rest.line.bias, whole.line.bias)


class Fetching(Recorder):
    """The same with the signature by which Lightning hands over its iterator."""

    def training_step(self, dataloader_iter: Any) -> Tensor:  # type: ignore[override]
        batch, batch_idx, _ = next(dataloader_iter)
        return super().training_step(batch, batch_idx)


@pytest.mark.filterwarnings("ignore:.*`dataloader_iter`")  # Lightning calls it experimental, twice
@pytest.mark.parametrize(("hook", "step"), MOMENTS)
def test_resume_with_the_iterator_handed_over(hook: str, step: int, tmp_path: Path) -> None:
    whole, rest = Fetching(), Fetching()
    save = SaveOnce(hook, step, tmp_path / "run.ckpt")
    fit(whole, callbacks=[save], max_epochs=4)
    fit(rest, ckpt_path=save.path, max_epochs=4)
    assert rest.seen == whole.seen[save.batches_before :]
    assert torch.equal(rest.line.weight, whole.line.weight)


def test_sanity_check_and_validation_leave_the_training_order_alone() -> None:
    one, two = Recorder(), Recorder()
    fit(one, max_epochs=2, num_sanity_val_steps=2)
    fit(two, max_epochs=2, num_sanity_val_steps=0, limit_val_batches=0)
    assert one.seen == two.seen


def test_epochs_are_reshuffled_and_complete() -> None:
    module = Recorder()
    fit(module, max_epochs=2)
    first, second = (list(chain(*epoch)) for epoch in (module.seen[:6], module.seen[6:]))
    assert sorted(first) == sorted(second) == [float(row) for row in range(ROWS)]
    assert first != second


def test_reloading_draws_the_same_epochs() -> None:
    one, two = Recorder(), Recorder()
    fit(one, max_epochs=3)
    fit(two, max_epochs=3, reload_dataloaders_every_n_epochs=1)
    assert one.seen == two.seen


def test_overfit_batches_sees_the_first_batches_again_and_again() -> None:
    module, free = Recorder(), Recorder()
    fit(module, max_epochs=3, overfit_batches=2)
    fit(free, max_epochs=1)
    assert module.seen == free.seen[:2] * 3


def test_fitting_again_with_one_trainer_goes_on_with_new_epochs() -> None:
    module, whole = Recorder(), Recorder()
    trainer = pl.Trainer(
        max_epochs=1,
        logger=False,
        accelerator="cpu",
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
    )
    data = Numbers(batch_size=BATCH, seed=1)
    trainer.fit(module, datamodule=data)
    assert trainer.fit_loop.max_epochs == 1
    trainer.fit_loop.max_epochs = 2
    trainer.fit(module, datamodule=data)
    fit(whole, max_epochs=2)
    assert module.seen == whole.seen
