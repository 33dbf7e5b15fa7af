"""Losses and metrics of members are those of each alone."""

from __future__ import annotations

import pytest
import torch

import mlp_lab.population.losses as losses_module
from mlp_lab.data.spec import DataSpec
from mlp_lab.data.tabular import TabularDataModule
from mlp_lab.model.tasks import build_loss
from mlp_lab.population.losses import MemberLoss, MemberMeters, spread
from mlp_lab.training.meters import Meter


@pytest.fixture(scope="module")
def spec() -> DataSpec:
    data = TabularDataModule(dataset="digits")
    data.prepare_data()
    data.setup("fit")
    return data.spec


def test_every_member_has_its_own_options(spec: DataSpec) -> None:
    weights = [float(1 + number) for number in range(10)]
    options = [{}, {"label_smoothing": 0.1}, {"class_weights": weights}, {}, {"name": "brier"}]
    criteria = [build_loss(spec, **one) for one in options]  # type: ignore[arg-type]
    logits = torch.randn(5, 8, 10, dtype=torch.float64, requires_grad=True)
    target = torch.randint(10, (8,))
    together = MemberLoss(criteria)(logits, target)
    alone = torch.stack([criterion(one, target) for criterion, one in zip(criteria, logits, strict=True)])
    torch.testing.assert_close(together, alone, rtol=1e-14, atol=0)
    one, other = (torch.autograd.grad(loss.sum(), logits)[0] for loss in (together, alone))
    torch.testing.assert_close(one, other, rtol=1e-14, atol=1e-16)


@pytest.mark.parametrize("most", [1, 500, 2**24])
def test_scores_are_those_of_a_meter_alone(spec: DataSpec, most: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(losses_module, "MOST_LOGITS", most)
    together, alone = MemberMeters(spec, 3), [Meter(spec) for _ in range(3)]
    for _ in range(2):  # the second pass starts anew
        for rows in (16, 16, 5):
            logits, losses, target = torch.randn(3, rows, 10), torch.rand(3, rows), torch.randint(10, (rows,))
            together.update(losses, logits, target)
            for meter, some, of_member in zip(alone, losses, logits, strict=True):
                meter.update(some, of_member, target, rows)
        for one, other in zip(together.compute(), [meter.compute() for meter in alone], strict=True):
            assert one == pytest.approx(other, rel=1e-7)


def test_spread_is_mean_and_sample_standard_deviation() -> None:
    assert spread([{"loss": 1.0}, {"loss": 2.0}, {"loss": 6.0}]) == pytest.approx({"loss": 3.0, "loss_sd": 7**0.5})
    assert str(spread([{"loss": 1.0}])["loss_sd"]) == "nan"
