"""A population is measured as each member is, and as an ensemble."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

from mlp_lab.model.tasks import probabilities
from mlp_lab.population.module import PopulationModule
from mlp_lab.population.stack import Population
from mlp_lab.training.module import MLPModule
from mlp_lab.training.optimizers import OptimizerConfig
from mlp_lab.training.tracking import MetricsCSV
from tests.population.fits import Prune, alone, digits, fit, trainer


def test_test_and_predict_report_spread_and_ensemble() -> None:
    population = PopulationModule([alone(number) for number in range(3)])
    fit(population)
    data = digits()
    one = trainer()
    (scores,) = one.test(population, datamodule=data, verbose=False)
    assert scores == {name: float(value) for name, value in one.callback_metrics.items()}
    each = []
    for network in population.networks():
        module = alone(0)
        module.model = network
        single = trainer()
        single.test(module, datamodule=data, verbose=False)
        each.append(float(single.callback_metrics["test/accuracy"]))
    values = torch.tensor(each, dtype=torch.float64)
    assert scores["test/accuracy"] == pytest.approx(float(values.mean()), rel=1e-6)
    assert scores["test/accuracy_sd"] == pytest.approx(float(values.std()), rel=1e-5)
    part = data.part("test")
    networks = [network.eval().double() for network in population.networks()]
    predictions = [probabilities("multiclass", network(part.numeric.double())) for network in networks]
    together = torch.stack(predictions).mean(0)
    assert part.target is not None
    accuracy = float((together.argmax(1) == part.target).double().mean())
    assert scores["test/ensemble_accuracy"] == pytest.approx(accuracy, rel=1e-6)
    logits = torch.cat(trainer().predict(population, datamodule=data))  # type: ignore[arg-type]
    torch.testing.assert_close(logits.softmax(1).double(), together, rtol=1e-4, atol=1e-6)


def test_evaluations_are_logged_once(tmp_path: Path) -> None:
    logger = MetricsCSV(tmp_path / "metrics.csv")
    population, data = PopulationModule([alone(number) for number in range(2)]), digits()
    one = fit(population, data=data, logger=logger, log_every_n_steps=15)
    assert [row["step"] for row in logger.read() if row["val/loss"]] == ["15", "30"]
    rows = logger.rows
    (validated,), (tested,) = (run(population, data, verbose=False) for run in (one.validate, one.test))
    logged = [
        {name: float(value) for name, value in row.items() if "/" in name and value} for row in logger.read()[rows:]
    ]
    assert logged == [validated, tested]
    assert {"val/loss", "val/loss_sd", "test/ensemble_loss"} <= {*validated, *tested}


class Cut(L.Callback):
    """Breaks an evaluation off."""

    def on_test_batch_end(self, *_: Any) -> None:
        raise RuntimeError("cut")


def exploding() -> list[MLPModule]:
    """Member 1 does."""
    plain: dict[str, Any] = {"depth": 2, "width": 20, "activation": "relu"}
    sgd = [OptimizerConfig(name="sgd", lr=lr) for lr in (0.1, 1e200, 0.05, 0.2)]
    return [alone(number, **plain, optimizer=sgd[number]) for number in range(4)]


@pytest.mark.parametrize(("pruned", "left"), [((), [0, 1, 2, 3]), ((0,), [2, 3]), ((2, 3), [0])])
def test_what_is_evaluated_are_all_that_are_finite(pruned: tuple[int, ...], left: list[int]) -> None:
    """Those that have stopped or failed leave the stack once they are half of it."""
    population = PopulationModule(exploding())
    fit(population, callbacks=[Prune(*pruned)])
    assert population.numbers == left
    fresh = PopulationModule([module for number, module in enumerate(exploding()) if number != 1])
    finite = [network for number, network in enumerate(population.networks()) if number != 1]
    fresh.population = Population.stack(finite)
    before = (population.population, population.numbers, sorted(population.finished))
    for method in ("test", "validate"):
        found = getattr(trainer(), method)(population, datamodule=digits(), verbose=False)
        expected = getattr(trainer(), method)(fresh, datamodule=digits(), verbose=False)
        assert found == expected
        assert all(math.isfinite(value) for value in found[0].values())
    for one, other in zip(
        trainer().predict(population, datamodule=digits()) or (),
        trainer().predict(fresh, datamodule=digits()) or (),
        strict=True,
    ):
        assert torch.equal(one, other)  # type: ignore[arg-type]
    assert before == (population.population, population.numbers, sorted(population.finished))
    assert all(parameter.requires_grad and not parameter.is_inference() for parameter in population.parameters())


def test_an_evaluation_that_was_cut_off_leaves_the_stack_as_it_was() -> None:
    population = PopulationModule(exploding())
    fit(population, callbacks=[Prune(2, 3)])
    with pytest.raises(RuntimeError, match="cut"):
        trainer(callbacks=[Cut()]).test(population, datamodule=digits(), verbose=False)
    fit(population.train(), 1)
    assert population.numbers == [0]
