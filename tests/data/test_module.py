"""The base data module: loading once, the checkpoint's state, and every refusal."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import pytest
import torch
from torch import nn

from mlp_lab.data.loader import Batch
from mlp_lab.data.module import Loaded, Part, TensorDataModule, read_fitted
from mlp_lab.data.spec import DataSpec
from mlp_lab.data.splits import split_hash
from mlp_lab.errors import UserError

pytestmark = pytest.mark.filterwarnings("ignore:.*isinstance.treespec, LeafSpec")


class Line(TensorDataModule):
    """`rows` numbers, shifted by their mean: the one thing that is fitted."""

    def __init__(self, *, rows: int = 20, val: int = 5, unit: str = "x", **options: Any) -> None:
        super().__init__(**options)
        self.rows, self.val, self.unit = rows, val, unit
        self.loads = 0

    def _load(self) -> Loaded:
        self.loads += 1
        values = torch.arange(self.rows, dtype=torch.float32)[:, None]
        fitted = self.fitted_state
        mean = float(values.mean()) if fitted is None else fitted["mean"]
        split = torch.zeros(self.rows, dtype=torch.uint8)
        split[: self.val] = 1
        parts = {
            "train": Part(numeric=values[self.val :] - mean, target=values[self.val :]),
            "val": Part(numeric=values[: self.val] - mean, target=values[: self.val]),
        }
        spec = DataSpec(
            task="regression",
            numeric=(self.unit,),
            targets=("y",),
            target_mean=(mean,),
            target_std=(1.0,),
            rows=(self.rows - self.val, self.val, 0),
            fingerprint=f"rows-{self.rows}",
        )
        return Loaded(spec=spec, parts=parts, state={"split": split, "mean": mean})


class Model(pl.LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.line = nn.Linear(1, 1)

    def training_step(self, batch: Batch, batch_idx: int) -> torch.Tensor:
        return ((self.line(batch.numeric) - batch.target) ** 2).mean()

    def validation_step(self, batch: Batch, batch_idx: int) -> None: ...

    def test_step(self, batch: Batch, batch_idx: int) -> None: ...

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=1e-3)


def trainer(**options: Any) -> pl.Trainer:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "enable_checkpointing": False}
    return pl.Trainer(**{"max_epochs": 1, "logger": False, "accelerator": "cpu", **quiet, **options})


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    """Of one epoch on 20 rows."""
    run = trainer()
    run.fit(Model(), datamodule=Line(batch_size=4, seed=0))
    run.save_checkpoint(tmp_path / "run.ckpt")
    return tmp_path / "run.ckpt"


def test_loads_once_and_only_when_needed() -> None:
    data = Line(batch_size=4)
    assert data.loads == 0
    assert data.spec_dict == data.spec.to_dict()
    data.setup("fit")
    data.setup("test")
    data.train_dataloader()
    assert data.loads == 1


def test_spec_dict_is_plain() -> None:
    assert DataSpec.from_dict(Line().spec_dict) == Line().spec
    assert Line().spec_dict["numeric"] == ["x"]


def test_seed_is_the_runs_unless_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PL_GLOBAL_SEED", raising=False)
    assert Line().resolved_seed == 0
    monkeypatch.setenv("PL_GLOBAL_SEED", "7")
    assert Line().resolved_seed == 7
    assert Line(batch_size=4).train_dataloader().seed == 7
    assert Line(seed=3).resolved_seed == 3


def test_loaders_serve_their_parts() -> None:
    data = Line(batch_size=4, eval_batch_size=3, drop_last=True)
    assert [batch.count for batch in data.train_dataloader()] == [4, 4, 4]
    assert [batch.count for batch in data.val_dataloader()] == [3, 2]
    (first, _) = data.val_dataloader()
    assert torch.equal(first.numeric, torch.tensor([[-9.5], [-8.5], [-7.5]]))
    assert data.train_dataloader().shuffle
    assert not data.val_dataloader().shuffle


def test_loaders_know_rank_and_world_size(monkeypatch: pytest.MonkeyPatch) -> None:
    data = Line(batch_size=4)
    data.trainer = trainer()
    monkeypatch.setattr(pl.Trainer, "global_rank", property(lambda _: 1))
    monkeypatch.setattr(pl.Trainer, "world_size", property(lambda _: 2))
    for loader in (data.train_dataloader(), data.val_dataloader()):
        assert (loader.rank, loader.world_size) == (1, 2)


def test_batch_on_its_device_is_returned_itself() -> None:
    data = Line(batch_size=4)
    batch = next(iter(data.train_dataloader()))
    assert data.transfer_batch_to_device(batch, torch.device("cpu"), 0) is batch
    moved = data.transfer_batch_to_device(batch, torch.device("meta"), 0)
    assert moved.numeric.device.type == moved.target.device.type == "meta"  # type: ignore[union-attr]
    assert moved.categorical is None
    assert moved.count == 4


def test_checkpoint_loads_with_weights_only(checkpoint: Path) -> None:
    saved = torch.load(checkpoint, weights_only=True)["Line"]
    assert saved["spec"] == Line().spec_dict
    assert saved["state"]["mean"] == 9.5
    assert saved["fingerprint"] == "rows-20"
    assert saved["split_fingerprint"] == split_hash(saved["state"]["split"])


def test_fitted_takes_spec_and_state_from_the_checkpoint(checkpoint: Path) -> None:
    new = Line(rows=8, val=4, fitted=str(checkpoint))
    assert new.spec == Line().spec
    assert new.loads == 0  # the spec needs no data
    assert new.fitted_state is not None
    assert new.fitted_state["mean"] == 9.5
    assert torch.equal(new.part("val").numeric[:, 0], torch.arange(4) - 9.5)
    assert new.loaded.spec == Line().spec
    assert new.split_fingerprint == Line().split_fingerprint
    assert Line().fitted_state is None


def test_fitted_data_may_differ_from_the_checkpoints(checkpoint: Path) -> None:
    data = Line(rows=8, val=4, fitted=str(checkpoint))
    trainer().validate(Model(), datamodule=data, ckpt_path=checkpoint, weights_only=True, verbose=False)


def test_resume_on_the_same_data_goes_on(checkpoint: Path) -> None:
    run = trainer(max_epochs=2)
    run.fit(Model(), datamodule=Line(batch_size=4, seed=0), ckpt_path=checkpoint, weights_only=True)
    assert run.current_epoch == 2


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rows": 21}, "data: its fingerprint is rows-21, the checkpoint's rows-20; resume on the same rows"),
        ({"val": 4}, "data: its split's fingerprint is {split}, the checkpoint's {saved}; resume on the same rows"),
        ({"unit": "z"}, "data: columns or scaling differ from the checkpoint's; resume with the same data settings"),
    ],
)
def test_resume_on_other_data_is_refused(checkpoint: Path, change: dict[str, Any], message: str) -> None:
    data = Line(batch_size=4, seed=0, **change)
    expected = message.format(split=data.split_fingerprint, saved=Line().split_fingerprint)
    with pytest.raises(UserError) as caught:
        trainer(max_epochs=2).fit(Model(), datamodule=data, ckpt_path=checkpoint, weights_only=True)
    assert str(caught.value) == expected


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "data.batch_size: 0 must be 1 or more"),
        ({"eval_batch_size": -1}, "data.eval_batch_size: -1 must be 1 or more"),
        ({"seed": -1}, "data.seed: -1 must be 0 or more"),
    ],
)
def test_wrong_settings_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError) as caught:
        Line(**options)
    assert str(caught.value) == message


@pytest.mark.parametrize("batch_size", [15, 16, 1000])
def test_batch_of_the_training_rows_or_more_is_all_of_them(batch_size: int) -> None:
    module = Line(batch_size=batch_size, drop_last=True)
    assert module.train_batch_size == 15
    assert [batch.count for batch in module.train_dataloader()] == [15]


@pytest.mark.parametrize(
    ("stage", "message"),
    [
        ("val", "data: no validation rows; give them a share of the split, or set --trainer.limit_val_batches 0"),
        ("test", "data: no test rows; give them a share of the split, or name a test file"),
        ("predict", "data: no test rows; give them a share of the split, or name a test file"),
    ],
)
def test_stage_without_rows_is_refused(stage: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        getattr(Line(val=0), f"{stage}_dataloader")()
    assert str(caught.value) == message


def test_fitting_without_validation_rows_needs_no_validation() -> None:
    run = trainer(limit_val_batches=0)
    run.fit(Model(), datamodule=Line(val=0, batch_size=4))
    assert run.global_step == 5


def test_fitted_errors_name_the_file(tmp_path: Path) -> None:
    absent, garbage, other = (str(tmp_path / name) for name in ("absent.ckpt", "garbage.ckpt", "other.ckpt"))
    Path(garbage).write_bytes(b"not a checkpoint")
    torch.save({"state_dict": {}}, other)
    expected = {
        absent: f"data.fitted: {absent!r} does not exist",
        garbage: f"data.fitted: {garbage!r} is not a checkpoint that can be read",
        other: f"data.fitted: {other!r} holds no state of Line",
    }
    for path, message in expected.items():
        with pytest.raises(UserError) as caught:
            read_fitted(path, kind="Line")
        assert str(caught.value).startswith(message)
        assert "\n" not in str(caught.value)
