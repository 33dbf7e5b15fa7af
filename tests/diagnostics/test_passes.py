"""Units watched over whole passes of real fits, against the whole pass at once."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from mlp_lab.diagnostics.callback import Diagnostics
from mlp_lab.diagnostics.passes import UnitPass
from mlp_lab.model.mlp import MLP
from mlp_lab.training.optimizers import OptimizerConfig
from tests.diagnostics.fits import build, fit, load

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*smaller than the logging interval"),
    pytest.mark.filterwarnings("ignore:.*does not have many workers"),
    pytest.mark.filterwarnings("ignore:.*scheduler.step.*before .optimizer.step"),
]
ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("probe", ["val", "train"])
def test_units_are_judged_over_every_row_of_the_pass(probe: str) -> None:
    part, rows = ("val", 180) if probe == "val" else ("train", 1437)
    data, diagnostics = load(), Diagnostics(probe=probe)
    optimizer = OptimizerConfig(lr=1e-9)  # the rows of a training epoch meet one network
    module = build(data, bias=-20.0, optimizer=optimizer)
    with torch.no_grad():
        module.model.blocks[0].linear.bias[:4] = 0.5
    fit(module, data, diagnostics, max_epochs=2)
    values = diagnostics.evidence.epochs[-1].values
    assert values["units/samples"] == rows
    x = data.part(part).numeric
    with torch.no_grad():
        z = module.model(x, trace=True)[1].z
    for layer, one in enumerate(z, start=1):
        assert values[f"units/dead/{layer}"] == float((one <= 0).all(0).double().mean())
    assert values["units/dead/1"] > 0.5


def test_hooks_last_as_long_as_the_pass() -> None:
    mlp = MLP(6, 3, depth=2, width=8)
    one = UnitPass(mlp, training=False)
    one.open()
    one.open()
    assert [len(block.activation._forward_hooks) for block in mlp.blocks] == [1, 1]
    one.close()
    one.close()
    assert [len(block.activation._forward_hooks) for block in mlp.blocks] == [0, 0]


def test_only_passes_of_its_mode_count() -> None:
    mlp = MLP(6, 3, depth=2, width=8)
    one = UnitPass(mlp, training=False)
    one.open()
    mlp.train()(torch.randn(5, 6))
    mlp.eval()(torch.randn(7, 6))
    assert one.statistics.compute()["units/samples"] == 7
    mlp(torch.randn(3, 6))
    one.open()  # a pass that was broken off is forgotten
    mlp(torch.randn(4, 6))
    assert one.statistics.compute()["units/samples"] == 4
    one.close()
