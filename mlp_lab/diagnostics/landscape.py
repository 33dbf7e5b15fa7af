"""What is measured of the loss around the weights at the end of an epoch, on request: noise scale and sharpness.

Both are taken on the same rows every time, so that a change is one of the weights, with dropout off and batch norm at
its running statistics. Every process takes the same rows, and so reports the same.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

import lightning as L
import torch
from torch import Tensor

from mlp_lab.data.module import TensorDataModule
from mlp_lab.diagnostics.curvature import curvature_values, evaluation_mode
from mlp_lab.diagnostics.noise import NoiseScale, measure_noise
from mlp_lab.errors import UserError
from mlp_lab.training.module import MLPModule

GROUPS = ("noise", "curvature")
ROWS = 1024  # of the training rows, spread over all of them


class Landscape:
    """Measures the groups `noise` and `curvature`, where they are asked for.

    Args:
        groups: the metric groups of a run.
    """

    def __init__(self, groups: Sequence[str]) -> None:
        self.groups = [group for group in GROUPS if group in groups]
        self.noise = NoiseScale()

    def check(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        """Refuses what the loss cannot be computed for.

        Raises:
            UserError: The module or the data is not the bench's own, so that their loss on given rows is unknown.
        """
        data = trainer.datamodule  # type: ignore[attr-defined]
        if self.groups and not (isinstance(module, MLPModule) and isinstance(data, TensorDataModule)):
            raise UserError(
                f"diagnostics.groups: {', '.join(self.groups)} need an MLPModule and a data module of mlp_lab; "
                "leave them out"
            )

    def measure(self, trainer: L.Trainer, module: L.LightningModule) -> dict[str, float]:
        """Returns `noise/scale`, `curvature/sharpness` and `curvature/eigenvalue`, as far as they were asked for."""
        if not self.groups:
            return {}
        numeric, categorical, target = probe_rows(trainer, module)
        module = cast(MLPModule, module)
        parameters = [one for one in module.model.parameters() if one.requires_grad]

        def mean_loss(first: int = 0, last: int | None = None) -> Tensor:
            codes = None if categorical is None else categorical[first:last]
            losses: Tensor = module.train_loss(module.model(numeric[first:last], codes), target[first:last])
            return losses.mean()

        values: dict[str, float] = {}
        with torch.enable_grad(), evaluation_mode(module.model):
            if "noise" in self.groups:
                values |= self.noise.update(measure_noise(mean_loss, parameters, len(numeric)))
            if "curvature" in self.groups:
                values |= curvature_values(mean_loss, parameters, trainer.optimizers[0])
        return values

    def state_dict(self) -> dict[str, Any]:
        """Returns the running means behind the noise scale."""
        return self.noise.state_dict()

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restores them."""
        self.noise.load_state_dict(state)


def probe_rows(trainer: L.Trainer, module: L.LightningModule) -> tuple[Tensor, Tensor | None, Tensor]:
    """Returns inputs, codes and targets of up to 1,024 training rows, on the device and in the weights' type."""
    part = cast(TensorDataModule, trainer.datamodule).part("train")  # type: ignore[attr-defined]
    rows = slice(None, None, -(-part.rows // ROWS))
    dtype = next(module.parameters()).dtype
    numeric, codes, target = part.numeric[rows], part.categorical, part.target
    assert target is not None
    target = target[rows].to(module.device)
    return (
        numeric.to(module.device, dtype),
        None if codes is None else codes[rows].to(module.device),
        target.to(dtype) if target.is_floating_point() else target,
    )
