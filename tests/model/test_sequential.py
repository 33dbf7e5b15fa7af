"""A plain `nn.Sequential` as the diagnostics see it."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from mlp_lab.errors import UserError
from mlp_lab.model.sequential import SequentialMLP


def test_view_computes_what_the_sequential_computes_with_its_modules() -> None:
    torch.manual_seed(0)
    inner = nn.Sequential(nn.Linear(6, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Dropout(0.5))
    sequential = nn.Sequential(nn.Flatten(), inner, nn.Linear(8, 5), nn.Tanh(), nn.Linear(5, 3), nn.Softmax(1)).eval()
    view = SequentialMLP(sequential).eval()
    x = torch.randn(7, 2, 3)
    torch.testing.assert_close(view(x).softmax(1), sequential(x))
    assert (view.depth, view.widths, view.in_features, view.out_features) == (2, (8, 5), 6, 3)
    assert view.linears == [inner[0], sequential[2], sequential[4]]
    assert (view.activation, view.phi.saturates) == ("tanh", True)


@pytest.mark.parametrize(
    ("activation", "name"),
    [
        (nn.GELU, "gelu"),
        (nn.PReLU, "prelu"),
        (nn.Identity, "identity"),
        (lambda: nn.GELU("tanh"), "GELU(approximate='tanh')"),
        (lambda: nn.LeakyReLU(0.3), "LeakyReLU(negative_slope=0.3)"),
        (nn.Softsign, "Softsign()"),
    ],
)
def test_activation_is_the_registered_one_or_is_made_of_the_module(
    activation: Callable[[], nn.Module], name: str
) -> None:
    view = SequentialMLP(nn.Sequential(nn.Linear(4, 4), activation(), nn.Linear(4, 2)))
    assert view.activation == name
    z = torch.linspace(-3, 3, 9, dtype=torch.float64)
    torch.testing.assert_close(view.phi.function(z), activation().double()(z))


def test_linear_model_has_no_hidden_layer() -> None:
    assert SequentialMLP(nn.Sequential(nn.Flatten(), nn.Linear(4, 2))).depth == 0


SHARED = nn.ReLU()


@pytest.mark.parametrize(
    ("modules", "message"),
    [
        ([nn.Conv2d(1, 2, 3), nn.Flatten(), nn.Linear(4, 2)], "Conv2d stands before the first Linear; what can be "),
        ([nn.Linear(4, 4), nn.Linear(4, 2)], "no activation follows Linear(in_features=4, out_features=4, bias=True)"),
        ([nn.Linear(4, 4), nn.ReLU(), nn.BatchNorm1d(4), nn.Linear(4, 2)], "BatchNorm1d stands after ReLU; what can "),
        ([nn.Linear(4, 4), nn.ReLU(inplace=True), nn.Linear(4, 2)], "ReLU(inplace=True) overwrites what is measured"),
        ([nn.Linear(4, 4), SHARED, nn.Linear(4, 4), SHARED, nn.Linear(4, 2)], "one ReLU module stands at two places "),
        (
            [nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 2)],
            "hidden layers have different activations (relu, tanh); use one",
        ),
        ([nn.Linear(4, 4), nn.Softmax(1), nn.Linear(4, 2)], "Softmax fails on a tensor (IndexError: "),
    ],
)
def test_sequential_that_cannot_be_measured_is_refused_in_one_sentence(modules: list[nn.Module], message: str) -> None:
    with pytest.raises(UserError) as caught:
        SequentialMLP(nn.Sequential(*modules))
    assert str(caught.value).startswith(f"diagnostics: {message}")
