"""The top eigenvalue against dense Hessians, and the thresholds against optimizers that diverge beyond them."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn import functional as F

from mlp_lab.diagnostics.curvature import curvature_values, evaluation_mode, sharpness, stability
from mlp_lab.model.activations import ACTIVATIONS
from mlp_lab.model.mlp import MLP


def dense_hessian(mlp: nn.Module, x: Tensor, y: Tensor) -> Tensor:
    names = [name for name, _ in mlp.named_parameters()]
    parameters = [one.detach() for one in mlp.parameters()]

    def loss(flat: Tensor) -> Tensor:
        pieces = flat.split([one.numel() for one in parameters])
        state = {name: piece.view_as(one) for name, piece, one in zip(names, pieces, parameters, strict=True)}
        return F.cross_entropy(functional_call(mlp, state, (x,)), y)

    return torch.autograd.functional.hessian(loss, torch.cat([one.flatten() for one in parameters]))


def network(
    activation: str = "tanh", dtype: torch.dtype = torch.float64, **settings: object
) -> tuple[MLP, Tensor, Tensor]:
    torch.manual_seed(0)
    mlp = MLP(4, 3, depth=2, width=4, activation=activation, **settings).to(dtype)  # type: ignore[arg-type]
    return mlp, 2 * torch.randn(40, 4, dtype=dtype), torch.randint(3, (40,))


@pytest.mark.parametrize(("name", "dtype"), [*((name, torch.float64) for name in ACTIVATIONS), ("gelu", torch.float32)])
def test_it_is_the_top_eigenvalue_of_the_dense_hessian(name: str, dtype: torch.dtype) -> None:
    mlp, x, y = network(name, dtype)
    found = sharpness(lambda: F.cross_entropy(mlp(x), y), list(mlp.parameters()))
    exact = torch.linalg.eigvalsh(dense_hessian(mlp.double(), x.double(), y))[-1].item()
    assert found.value == pytest.approx(exact, rel=0.01)
    assert found.iterations < 100
    assert all(one.grad is None for one in mlp.parameters())


def quadratic(eigenvalues: list[float], seed: int = 0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    size = len(eigenvalues)
    basis = torch.linalg.qr(torch.randn(size, size, generator=generator, dtype=torch.float64)).Q
    matrix = basis @ torch.diag(torch.tensor(eigenvalues, dtype=torch.float64)) @ basis.mT
    return matrix, torch.zeros(size, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize(
    "eigenvalues",
    [
        [-50.0, *[0.1 * k for k in range(30)], 4.0],  # a large negative one
        [-4.0, *[0.1 * k for k in range(30)], 3.999],  # nearly as large on either side: power iteration swings
        [*[0.01 * k for k in range(100)], 1.02],  # hardly a gap
        [-3.0, -2.0, -1.0],  # a maximum: the largest is negative
        [2.0, 2.0, 2.0],
        [1e-9, 3e-9],
        [5.0],
    ],
)
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_it_is_the_largest_not_the_largest_in_magnitude(eigenvalues: list[float], seed: int) -> None:
    matrix, w = quadratic(eigenvalues, seed)
    generator = torch.Generator().manual_seed(seed)
    found = sharpness(lambda: w @ matrix @ w / 2 + w.sum(), [w], generator=generator)
    assert found.value == pytest.approx(max(eigenvalues), rel=0.01)
    assert found.residual <= 0.01 * abs(found.value) * (1 + 1e-9)


def test_tolerance_and_iterations() -> None:
    matrix, w = quadratic([0.01 * k for k in range(100)])
    rough = sharpness(lambda: w @ matrix @ w / 2, [w], max_iterations=3)
    fine = sharpness(lambda: w @ matrix @ w / 2, [w], tolerance=1e-8)
    assert rough.iterations == 3
    assert rough.value < fine.value == pytest.approx(0.99, rel=1e-12)


def test_a_linear_loss_has_no_curvature_and_a_sick_one_no_number() -> None:
    w = torch.ones(3, requires_grad=True)
    assert sharpness(lambda: w.sum(), [w]).value == 0
    assert math.isnan(sharpness(lambda: (w.square() * torch.nan).sum(), [w]).value)
    other = torch.ones(2, requires_grad=True)  # not used at all
    assert sharpness(lambda: 3 * w.square().sum(), [w, other]).value == pytest.approx(6, rel=0.01)


def test_it_works_where_lightning_validates() -> None:
    mlp, x, y = network()
    expected = sharpness(lambda: F.cross_entropy(mlp(x), y), list(mlp.parameters()))
    with torch.inference_mode():
        assert sharpness(lambda: F.cross_entropy(mlp(x), y), list(mlp.parameters())) == expected


def test_evaluation_mode_gives_each_part_its_mode_back() -> None:
    mlp, x, _ = network("relu", torch.float32, dropout=0.5, norm="batch")
    mlp.train()
    mlp.blocks[0].eval()
    before, running = [part.training for part in mlp.modules()], mlp.blocks[1].norm.running_mean.clone()
    with evaluation_mode(mlp):
        assert torch.equal(mlp(x), mlp(x))
    with pytest.raises(ValueError, match="takes 4"), evaluation_mode(mlp):
        mlp(torch.ones(2, 5))
    assert [part.training for part in mlp.modules()] == before
    assert torch.equal(mlp.blocks[1].norm.running_mean, running)


OPTIMIZERS = {
    "sgd": lambda w, lr: torch.optim.SGD(w, lr=lr),
    "momentum": lambda w, lr: torch.optim.SGD(w, lr=lr, momentum=0.9),
    "nesterov": lambda w, lr: torch.optim.SGD(w, lr=lr, momentum=0.9, nesterov=True),
}


@pytest.mark.parametrize("name", ["sgd", "momentum", "nesterov"])
@pytest.mark.parametrize("share", [0.97, 1.03])
def test_an_optimizer_diverges_where_the_sharpness_passes_1(name: str, share: float) -> None:
    matrix, w = quadratic([0.5, 1.0, 7.0])
    limit = stability(OPTIMIZERS[name]([w], 1.0), [w])
    assert limit is not None
    optimizer = OPTIMIZERS[name]([w], share * limit.limit / 7)
    values = curvature_values(lambda: w @ matrix @ w / 2, [w], optimizer)
    assert values == {
        "curvature/sharpness": pytest.approx(share, rel=0.01),
        "curvature/eigenvalue": pytest.approx(7.0, rel=0.01),
    }
    with torch.no_grad():
        w.copy_(torch.ones(3))
    for _ in range(1500):
        optimizer.zero_grad()
        (w @ matrix @ w / 2).backward()
        optimizer.step()
    assert (w.detach().norm().item() > 10) == (share > 1)


@pytest.mark.parametrize("kind", ["adam", "adamw", "rmsprop"])
def test_adaptive_steps_are_judged_in_their_own_coordinates(kind: str) -> None:
    mlp, x, y = network()
    parameters, lr = list(mlp.parameters()), 0.01
    make = {"adam": torch.optim.Adam, "adamw": torch.optim.AdamW, "rmsprop": torch.optim.RMSprop}[kind]
    optimizer = make(parameters, lr=lr)
    assert stability(optimizer, parameters) is None, "no step yet"
    for _ in range(5):
        optimizer.zero_grad()
        F.cross_entropy(mlp(x), y).backward()
        optimizer.step()
    values = curvature_values(lambda: F.cross_entropy(mlp(x), y), parameters, optimizer)
    if kind == "rmsprop":
        deviations, limit = [optimizer.state[one]["square_avg"].sqrt() + 1e-8 for one in parameters], 2 / lr
    else:  # Cohen et al. (2022, section 2): the preconditioner at step t, and 38/lr
        squares = [optimizer.state[one]["exp_avg_sq"] / (1 - 0.999**5) for one in parameters]
        deviations, limit = [(1 - 0.9**5) * (one.sqrt() + 1e-8) for one in squares], 38 / lr
    root = torch.cat([one.flatten() for one in deviations]).rsqrt()
    exact = torch.linalg.eigvalsh(root.unsqueeze(1) * dense_hessian(mlp, x, y) * root)[-1].item()
    assert values["curvature/eigenvalue"] == pytest.approx(exact, rel=0.01)
    assert values["curvature/sharpness"] == pytest.approx(exact / limit, rel=0.01)


def test_an_unknown_optimizer_gets_the_plain_eigenvalue() -> None:
    matrix, w = quadratic([0.5, 7.0])
    optimizer = torch.optim.Adagrad([w], lr=0.1)
    assert curvature_values(lambda: w @ matrix @ w / 2, [w], optimizer) == {
        "curvature/eigenvalue": pytest.approx(7.0, rel=0.01)
    }
    assert stability(torch.optim.SGD([torch.ones(1)], lr=0.1), [w]) is None


def test_groups_with_rates_of_their_own() -> None:
    first, second = (torch.ones(1, dtype=torch.float64, requires_grad=True) for _ in range(2))
    optimizer = torch.optim.SGD([{"params": [first], "lr": 0.1}, {"params": [second], "lr": 0.4}])
    values = curvature_values(lambda: (3 * first.square() + second.square()).sum(), [first, second], optimizer)
    assert values["curvature/sharpness"] == pytest.approx(max(0.1 * 6, 0.4 * 2) / 2, rel=0.01)
