"""The gradient noise scale against gradients whose mean and covariance are known."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from mlp_lab.diagnostics.noise import NoiseSample, NoiseScale, estimate, measure_noise
from mlp_lab.model.mlp import MLP


def rows(count: int, seed: int, mean: float = 0.5, deviation: float = 2.0) -> Tensor:
    """Per-sample gradients of the loss x·w: |G|² = 10·mean², tr Σ = 10·deviation²."""
    generator = torch.Generator().manual_seed(seed)
    return mean + deviation * torch.randn(count, 10, generator=generator, dtype=torch.float64)


@pytest.mark.parametrize(("count", "parts"), [(32, 8), (32, 2), (5, 8), (35, 8)])
def test_estimates_are_unbiased(count: int, parts: int) -> None:
    """Over 600 batches; five standard errors: tr Σ varies by √(2/10/rows) of itself, |G|² by tr Σ/rows and more."""
    w = torch.zeros(10, dtype=torch.float64, requires_grad=True)
    samples = []
    for seed in range(600):
        x = rows(count, seed)
        samples.append(measure_noise(lambda first, last, x=x: (x[first:last] @ w).mean(), [w], count, parts=parts))
    signal, noise = (sum(column) / len(samples) for column in zip(*samples, strict=True))
    spread = 40 / count / math.sqrt(600)
    assert signal == pytest.approx(2.5, abs=5 * (spread + math.sqrt(2.5 * spread / 10)))
    assert noise == pytest.approx(40.0, rel=5 * math.sqrt(2 / 10 / min(parts - 1, count - 1) / 600))
    assert w.grad is None


def test_per_sample_gradients_of_a_network() -> None:
    """With one row per part both estimates have a closed form: the sample variance, and |mean|² less its share."""
    torch.manual_seed(0)
    mlp = MLP(5, 3, depth=2, width=7, activation="tanh").double()
    x, y = torch.randn(12, 5, dtype=torch.float64), torch.randint(3, (12,))
    parameters = list(mlp.parameters())
    gradients = torch.stack(
        [
            torch.cat([g.flatten() for g in torch.autograd.grad(F.cross_entropy(mlp(x[[k]]), y[[k]]), parameters)])
            for k in range(12)
        ]
    )
    with torch.inference_mode():  # as Lightning validates
        found = measure_noise(lambda a, b: F.cross_entropy(mlp(x[a:b]), y[a:b]), parameters, 12, parts=12)
    variance = gradients.var(dim=0, correction=1).sum().item()
    assert found.noise == pytest.approx(variance, rel=1e-9)
    assert found.signal == pytest.approx(gradients.mean(0).square().sum().item() - variance / 12, rel=1e-9)


def test_the_scale_settles_where_single_quotients_do_not() -> None:
    w = torch.zeros(10, dtype=torch.float64, requires_grad=True)
    scale, last, singles = NoiseScale(decay=0.98), {}, []
    for seed in range(400):
        x = rows(64, seed)
        sample = measure_noise(lambda first, last, x=x: (x[first:last] @ w).mean(), [w], 64)
        singles.append(sample.noise / sample.signal)
        last = scale.update(sample)
    assert last["noise/scale"] == pytest.approx(40 / 2.5, rel=0.15)
    assert max(singles) > 2 * 40 / 2.5


def test_a_scale_goes_on_from_its_state() -> None:
    first, second = NoiseScale(), NoiseScale()
    first.update(NoiseSample(1.0, 2.0))
    second.load_state_dict(first.state_dict())
    assert first.update(NoiseSample(3.0, 1.0)) == second.update(NoiseSample(3.0, 1.0))


def test_no_number_where_there_is_none() -> None:
    scale = NoiseScale()
    assert math.isnan(scale.update(NoiseSample(-1.0, 5.0))["noise/scale"])
    assert math.isnan(scale.update(NoiseSample(math.nan, 5.0))["noise/scale"])
    assert scale.update(NoiseSample(3.0, 5.0))["noise/scale"] == pytest.approx((0.9 * 5 + 5) / (0.9 * -1 + 3))


def test_sizes_that_give_no_estimate() -> None:
    w = torch.zeros(1, requires_grad=True)
    with pytest.raises(ValueError, match="at least 2"):
        measure_noise(lambda a, b: w.sum(), [w], 1)
    with pytest.raises(ValueError, match="small_rows: 4"):
        estimate(1.0, 1.0, small_rows=4, big_rows=4)
