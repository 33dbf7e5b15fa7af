"""The ensemble's logits stand for the average of the members' predictions."""

from __future__ import annotations

import pytest
import torch

from mlp_lab.data.spec import TaskName
from mlp_lab.model.tasks import probabilities
from mlp_lab.population.ensemble import ensemble_logits


@pytest.mark.parametrize(("task", "outputs"), [("binary", 1), ("multiclass", 5), ("multilabel", 3)])
def test_probabilities_are_averaged(task: TaskName, outputs: int) -> None:
    logits = 3 * torch.randn(4, 7, outputs, dtype=torch.float64)
    expected = torch.stack([probabilities(task, member) for member in logits]).mean(0)
    torch.testing.assert_close(probabilities(task, ensemble_logits(task, logits)), expected, rtol=1e-12, atol=1e-14)


def test_values_are_averaged() -> None:
    logits = torch.randn(4, 7, 2)
    torch.testing.assert_close(ensemble_logits("regression", logits), logits.mean(0))


def test_certain_members_stay_finite() -> None:
    for task in ("binary", "multiclass"):
        logits = torch.tensor([[[300.0, -300.0]], [[200.0, -250.0]]])
        assert ensemble_logits(task, logits).isfinite().all()  # type: ignore[arg-type]
