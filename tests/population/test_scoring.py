"""A population is measured as each member is, and as an ensemble."""

from __future__ import annotations

import pytest
import torch

from mlp_lab.model.tasks import probabilities
from mlp_lab.population.module import PopulationModule
from tests.population.fits import alone, digits, fit, trainer


def test_test_and_predict_report_spread_and_ensemble() -> None:
    population = PopulationModule([alone(number) for number in range(3)])
    fit(population)
    data = digits()
    one = trainer()
    one.test(population, datamodule=data, verbose=False)
    scores = {name: float(value) for name, value in one.callback_metrics.items()}
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
