"""Muon against singular value decompositions, a NumPy twin and PyTorch's own Muon and AdamW."""

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from mlp_lab.training.muon import ITERATIONS, QUINTIC, Muon, orthogonalize, step_scale

SHAPES = [(8, 8), (5, 12), (12, 5), (1, 7), (3, 6, 4)]


def random(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def quintic(values: Tensor) -> Tensor:
    a, b, c = QUINTIC
    for _ in range(ITERATIONS):
        values = a * values + b * values**3 + c * values**5
    return values


@pytest.mark.parametrize("shape", SHAPES)
def test_orthogonalize_is_the_quintic_on_the_singular_values(shape: tuple[int, ...]):
    matrix = random(*shape)
    left, values, right = torch.linalg.svd(matrix, full_matrices=False)
    norm = values.square().sum(-1, keepdim=True).sqrt()
    expected = left @ torch.diag_embed(quintic(values / norm)) @ right
    # float64 both; the iteration multiplies rounding errors of the SVD by up to 3.4^5 = 460
    torch.testing.assert_close(orthogonalize(matrix), expected, rtol=0, atol=1e-11)


def test_singular_values_reach_the_published_band():
    """Jordan et al.: five iterations bring all but tiny singular values to about [0.7, 1.2]."""
    singular = torch.logspace(math.log10(0.002), 0, 10_001, dtype=torch.float64)
    assert 0.68 < quintic(singular).min() < quintic(singular).max() < 1.21
    values = torch.linalg.svdvals(orthogonalize(random(64, 100)))
    assert 0.68 < values.min() < values.max() < 1.21


def test_float32_stays_in_the_band():
    values = torch.linalg.svdvals(orthogonalize(random(64, 100).float()))
    assert values.dtype == torch.float32
    assert 0.68 < values.min() < values.max() < 1.21


def test_scale_and_transposition_of_the_input_do_not_matter():
    matrix = random(6, 9)
    torch.testing.assert_close(orthogonalize(1e4 * matrix), orthogonalize(matrix), rtol=0, atol=1e-11)
    torch.testing.assert_close(orthogonalize(matrix.mT), orthogonalize(matrix).mT, rtol=0, atol=1e-14)


def test_leading_dimensions_are_independent_matrices():
    stack = random(4, 6, 9)
    alone = torch.stack([orthogonalize(matrix) for matrix in stack])
    torch.testing.assert_close(orthogonalize(stack), alone, rtol=0, atol=1e-12)


def test_a_zero_gradient_is_a_zero_update():
    assert not orthogonalize(torch.zeros(3, 4)).any()


def test_the_step_has_adamws_usual_root_mean_square():
    """Liu et al. 2025, section 2.2: 0.2; the band of the singular values makes it 0.68 to 1.21 times that."""
    for rows, columns in ((32, 200), (200, 32), (64, 50)):
        update = step_scale(rows, columns) * orthogonalize(random(rows, columns))
        # a matrix with min(A, B) singular values s has mean square sum(s²) / (AB)
        assert 0.2 * 0.68 < update.square().mean().sqrt() < 0.2 * 1.21


def numpy_muon(weight: np.ndarray, gradients: list[np.ndarray], *, lr, momentum, nesterov, decay) -> np.ndarray:
    average = np.zeros_like(weight)
    for gradient in gradients:
        average = momentum * average + (1 - momentum) * gradient
        direction = momentum * average + (1 - momentum) * gradient if nesterov else average
        left, values, right = np.linalg.svd(direction, full_matrices=False)
        factor = quintic(torch.from_numpy(values / np.sqrt((values**2).sum()))).numpy()
        weight = weight * (1 - lr * decay) - lr * 0.2 * math.sqrt(max(weight.shape)) * (left * factor) @ right
    return weight


@pytest.mark.parametrize("nesterov", [True, False])
@pytest.mark.parametrize("momentum", [0.0, 0.95])
def test_steps_match_a_numpy_twin(nesterov: bool, momentum: float):
    parameter = torch.nn.Parameter(random(7, 4))
    gradients = [random(7, 4, seed=seed) for seed in range(1, 6)]
    expected = numpy_muon(
        parameter.detach().numpy().copy(),
        [gradient.numpy() for gradient in gradients],
        lr=0.05,
        momentum=momentum,
        nesterov=nesterov,
        decay=0.3,
    )
    optimizer = Muon(
        [{"params": [parameter], "rule": "muon", "weight_decay": 0.3}], lr=0.05, momentum=momentum, nesterov=nesterov
    )
    for gradient in gradients:
        parameter.grad = gradient
        optimizer.step()
    # float64; the bound of the quintic's test, over five steps of length 0.05 x 0.2 x sqrt(7)
    np.testing.assert_allclose(parameter.detach().numpy(), expected, rtol=0, atol=1e-11)


@pytest.mark.parametrize("nesterov", [True, False])
def test_updates_match_pytorchs_muon_to_its_bfloat16(nesterov: bool):
    ours, theirs = (torch.nn.Parameter(random(40, 30).float()) for _ in range(2))
    start = ours.detach().clone()
    mine = Muon([{"params": [ours], "rule": "muon", "weight_decay": 0.1}], lr=0.01, nesterov=nesterov)
    reference = torch.optim.Muon(
        [theirs], lr=0.01, weight_decay=0.1, momentum=0.95, nesterov=nesterov, adjust_lr_fn="match_rms_adamw"
    )
    for seed in range(5):
        ours.grad = random(40, 30, seed=seed).float()
        theirs.grad = ours.grad.clone()
        mine.step()
        reference.step()
    # bfloat16 keeps 8 bits (0.4 %), over 15 multiplications per step
    difference = torch.linalg.norm(ours - theirs) / torch.linalg.norm(ours - start)
    assert difference < 0.02


@pytest.mark.parametrize("fused", [False, True])
def test_the_rest_is_pytorchs_adamw(fused: bool):
    ours = [torch.nn.Parameter(random(5, 3)), torch.nn.Parameter(random(5, seed=1))]
    theirs = [torch.nn.Parameter(parameter.detach().clone()) for parameter in ours]
    group = {"params": ours, "rule": "adamw", "weight_decay": 0.2}
    mine = Muon([group], lr=0.03, betas=(0.8, 0.9), eps=1e-6, fused=fused)
    reference = torch.optim.AdamW(theirs, lr=0.03, betas=(0.8, 0.9), eps=1e-6, weight_decay=0.2, foreach=False)
    for seed in range(10):
        for mine_, theirs_ in zip(ours, theirs, strict=True):
            mine_.grad = random(*mine_.shape, seed=seed)
            theirs_.grad = mine_.grad.clone()
        mine.step()
        reference.step()
    for mine_, theirs_ in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine_, theirs_, rtol=1e-12, atol=1e-12)  # float64, other order of operations


def test_the_closure_runs_with_gradients_and_parameters_without_one_stay():
    used, unused = torch.nn.Parameter(random(2, 2)), torch.nn.Parameter(random(2, 2))
    before = unused.detach().clone()
    optimizer = Muon([{"params": [used, unused], "rule": "muon"}], lr=0.1)

    def closure() -> float:
        loss = used.square().sum()
        loss.backward()
        return loss.item()

    expected = used.detach().square().sum().item()
    assert optimizer.step(closure) == expected
    assert used.detach().square().sum().item() < expected
    assert torch.equal(unused, before)
