"""Metrics that torchmetrics does not define as this bench needs them; exact over any batching and any processes.

Symbols: B batch, N rows seen so far, T targets or labels.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torchmetrics import Metric
from torchmetrics.classification import BinaryAUROC, BinaryAveragePrecision, MultilabelAUROC
from torchmetrics.functional.classification import binary_auroc
from torchmetrics.utilities import dim_zero_cat


class RegressionScores(Metric):
    """RMSE, MAE and R², each the mean over the targets of that target's value, as scikit-learn defines them.

    Sums are taken in standardised units, where float32 loses nothing to a large mean or a tiny scale; RMSE and MAE are
    then reported in the targets' own units. R² is NaN where a target does not vary (one row, for example).

    Args:
        unit: the standard deviation by which each target was divided, T of them.

    >>> scores = RegressionScores([10.0])
    >>> scores.update(torch.tensor([[1.0], [1.0]]), torch.tensor([[0.0], [2.0]]))
    >>> {name: value.item() for name, value in scores.compute().items()}
    {'rmse': 10.0, 'mae': 10.0, 'r2': 0.0}
    """

    is_differentiable = False
    full_state_update = False
    unit: Tensor
    squares: Tensor
    absolutes: Tensor
    total: Tensor
    total_squares: Tensor
    rows: Tensor

    def __init__(self, unit: Sequence[float]) -> None:
        super().__init__()
        self.register_buffer("unit", torch.tensor(unit), persistent=False)  # (T,)
        for name in ("squares", "absolutes", "total", "total_squares"):  # of the errors; of the targets
            self.add_state(name, default=torch.zeros(len(unit)), dist_reduce_fx="sum")
        self.add_state("rows", default=torch.tensor(0), dist_reduce_fx="sum")

    def update(self, prediction: Tensor, target: Tensor) -> None:
        """Adds a batch of standardised predictions and targets, both (B, T)."""
        error = prediction - target
        self.squares += error.square().sum(0)
        self.absolutes += error.abs().sum(0)
        self.total += target.sum(0)
        self.total_squares += target.square().sum(0)
        self.rows += len(target)

    def compute(self) -> dict[str, Tensor]:
        """Returns rmse and mae in the targets' own units, and r2."""
        spread = self.total_squares - self.total.square() / self.rows  # (T,)
        r2 = torch.where(spread > 1e-6 * self.total_squares, 1 - self.squares / spread, torch.nan)
        rmse = (self.squares / self.rows).sqrt() * self.unit  # (T,)
        mae = self.absolutes / self.rows * self.unit  # (T,)
        return {"rmse": rmse.mean(), "mae": mae.mean(), "r2": r2.mean()}


class BinaryAreaROC(BinaryAUROC):
    """Area under the ROC curve; NaN, where torchmetrics says 0, if a class is absent."""

    def compute(self) -> Tensor:  # type: ignore[override]
        """Returns the area over all rows seen."""
        return super().compute() if _both_classes(self) else torch.tensor(torch.nan, device=self.device)


class BinaryAreaPR(BinaryAveragePrecision):
    """Average precision; NaN if a class is absent."""

    def compute(self) -> Tensor:  # type: ignore[override]
        """Returns the average precision over all rows seen."""
        return super().compute() if _both_classes(self) else torch.tensor(torch.nan, device=self.device)


class MultilabelAreaROC(MultilabelAUROC):
    """Area under the ROC curve, the mean over those labels for which both classes were seen; NaN if there are none."""

    def compute(self) -> Tensor:  # type: ignore[override]
        """Returns the mean area over all rows seen."""
        scores, target = dim_zero_cat(self.preds), dim_zero_cat(self.target)  # (N, T)
        varied = (target.amin(0) != target.amax(0)).nonzero().flatten().tolist()
        areas = [binary_auroc(scores[:, label], target[:, label], validate_args=False) for label in varied]
        return torch.stack(areas).mean() if areas else torch.tensor(torch.nan, device=self.device)


def _both_classes(metric: BinaryAUROC | BinaryAveragePrecision) -> bool:
    target = dim_zero_cat(metric.target)  # (N,)
    return bool(target.amin() != target.amax())
