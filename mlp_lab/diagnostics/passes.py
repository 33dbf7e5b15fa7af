"""A whole pass over the validation or training rows, watched unit by unit."""

from __future__ import annotations

from contextlib import ExitStack
from functools import partial
from typing import Any, cast

from torch import Tensor, nn

from mlp_lab.diagnostics.capture import eager
from mlp_lab.diagnostics.units import UnitStatistics
from mlp_lab.model.mlp import MLP, Block


class UnitPass:
    """Feeds `UnitStatistics` with every row that passes the hidden layers between `open` and `close`.

    Args:
        mlp: the network.
        training: whether its passes in training mode count, or those in evaluation mode.
    """

    def __init__(self, mlp: MLP, *, training: bool) -> None:
        self.mlp, self.training = mlp, training
        self.statistics = UnitStatistics.of(mlp)
        self._scope = ExitStack()

    def open(self) -> None:
        """Puts hooks in; compiled networks run eagerly until `close`."""
        self.close()
        self.statistics.begin()
        self._scope.enter_context(eager())
        for layer, block in enumerate(self.mlp.blocks, start=1):
            hook = partial(self._on_activation, layer)
            self._scope.callback(cast(Block, block).activation.register_forward_hook(hook).remove)

    def close(self) -> None:
        """Takes the hooks out; harmless when done twice."""
        self._scope.close()

    def _on_activation(self, layer: int, module: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        if module.training is self.training:
            self.statistics.update(layer, inputs[0].detach(), output.detach())
