"""What cannot be stacked is refused in one line that names the members and the setting."""

from __future__ import annotations

from collections.abc import Callable
from typing import cast

import pytest
import torch

from mlp_lab.errors import UserError
from mlp_lab.model.mlp import MLP
from mlp_lab.population.rules import check_members
from mlp_lab.population.stack import Population


def frozen() -> MLP:
    mlp = MLP(4, 2)
    mlp.head.bias.requires_grad_(False)
    return mlp


CASES: dict[str, Callable[[], list[MLP]]] = {
    "population: no member given; accepted: at least one MLP": list,
    "population: member 1 is a Linear; accepted: an MLP": lambda: [MLP(4, 2), cast(MLP, torch.nn.Linear(4, 2))],
    "population: member 1 has frozen parameters (head.bias); train it alone": lambda: [MLP(4, 2), frozen()],
    "population: members 0 and 1 differ in in_features (4 and 5), which must be equal; train them in populations of "
    "their own": lambda: [MLP(4, 2), MLP(5, 2)],
    "population: members 0 and 2 differ in out_features (2 and 3), which must be equal; train them in populations of "
    "their own": lambda: [MLP(4, 2), MLP(4, 2), MLP(4, 3)],
    "population: members 0 and 1 differ in norm (none and LayerNorm), which must be equal; train them in populations "
    "of their own": lambda: [MLP(4, 2), MLP(4, 2, norm="layer")],
    "population: members 0 and 1 differ in residual (False and True), which must be equal; train them in populations "
    "of their own": lambda: [MLP(4, 2), MLP(4, 2, residual=True)],
    "population: members 0 and 1 differ in linear_bias (True and False), which must be equal; train them in "
    "populations of their own": lambda: [MLP(4, 2), MLP(4, 2, linear_bias=False)],
    "population: members 0 and 1 differ in dtype (torch.float32 and torch.float64), which must be equal; train them in "
    "populations of their own": lambda: [MLP(4, 2), MLP(4, 2).double()],
}


@pytest.mark.parametrize("message", CASES)
def test_what_does_not_fit_is_refused(message: str) -> None:
    with pytest.raises(UserError) as caught:
        Population.stack(CASES[message]())
    assert str(caught.value) == message


def test_a_member_without_hidden_layers_fits_any_norm() -> None:
    check_members(
        [MLP(4, 2, depth=0), MLP(4, 2, norm="batch", residual=True), MLP(4, 2, depth=1, width=3, norm="batch")]
    )
    check_members([MLP(4, 2, depth=0), MLP(4, 2, linear_bias=False)])
