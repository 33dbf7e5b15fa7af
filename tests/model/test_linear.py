"""The linear layer by oneDNN against `F.linear` in float64, and when it is left to PyTorch."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mlp_lab.model import linear as module
from mlp_lab.model.linear import LARGE, Linear, has_faster_products, is_faster_by_onednn, linear

needs_onednn = pytest.mark.skipif(
    not (torch.backends.mkldnn.is_available() and hasattr(torch.ops.mkldnn, "_linear_pointwise")),  # type: ignore[no-untyped-call]
    reason="this PyTorch has no oneDNN",
)
SHAPES = [(1, 1, 1), (7, 5, 3), (64, 33, 130), (130, 784, 17)]  # B, I, H


@pytest.fixture
def by_onednn(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, ...]]:
    """Leaves every float32 product to oneDNN, on any processor; returns the shapes that it gets."""
    taken: list[tuple[int, ...]] = []
    original = module.linear_by_onednn

    def recorded(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        taken.append((len(x), *weight.shape))
        return original(x, weight, bias)

    monkeypatch.setattr(module, "has_faster_products", lambda: True)
    monkeypatch.setattr(module, "linear_by_onednn", recorded)
    monkeypatch.setattr(module, "LARGE", 0)
    return taken


def leaves(rows: int, inputs: int, outputs: int) -> list[Tensor]:
    generator = torch.Generator().manual_seed(0)
    shapes = (rows, inputs), (outputs, inputs), (outputs,)
    return [torch.randn(shape, generator=generator).requires_grad_() for shape in shapes]


def doubled(tensors: list[Tensor]) -> list[Tensor]:
    return [tensor.detach().double().requires_grad_() for tensor in tensors]


def assert_near(found: Tensor, exact: Tensor) -> None:
    """Within float32's rounding of sums of up to 784 terms of size 1: about √784 · 2^-24 of the largest."""
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.double(), exact, rtol=1e-5, atol=1e-5 * float(exact.detach().abs().max()) + 1e-6)


@needs_onednn
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("biased", [True, False])
def test_outputs_and_derivatives_are_those_of_pytorch(
    by_onednn: list[tuple[int, ...]], shape: tuple[int, int, int], biased: bool
) -> None:
    given = leaves(*shape)[: 3 if biased else 2]
    exact = doubled(given)
    found, expected = linear(*given), F.linear(*exact)
    assert_near(found, expected)
    towards = torch.randn(found.shape, generator=torch.Generator().manual_seed(1))
    pairs = zip(
        torch.autograd.grad(found, given, towards), torch.autograd.grad(expected, exact, towards.double()), strict=True
    )
    for one, other in pairs:
        assert_near(one, other)
    rows, inputs, outputs = shape
    assert by_onednn == [(rows, outputs, inputs), (rows, inputs, outputs), (outputs, inputs, rows)]


@needs_onednn
@pytest.mark.usefixtures("by_onednn")
@pytest.mark.parametrize("shape", SHAPES)
def test_second_derivatives_are_those_of_pytorch(shape: tuple[int, int, int]) -> None:
    """As the curvature needs them: of a loss that is not linear in the weights."""

    def products(tensors: list[Tensor], function: Any) -> tuple[Tensor, ...]:
        loss = function(*tensors).tanh().square().mean()
        gradients = torch.autograd.grad(loss, tensors, create_graph=True)
        return torch.autograd.grad(gradients, tensors, [torch.ones_like(one) for one in gradients])

    given = leaves(*shape)
    for one, other in zip(products(given, linear), products(doubled(given), F.linear), strict=True):
        assert_near(one, other)


@needs_onednn
@pytest.mark.usefixtures("by_onednn")
@pytest.mark.parametrize("which", [0, 1, 2])
@pytest.mark.parametrize("laid", ["turned", "sliced", "expanded"])
def test_values_may_lie_anyhow(which: int, laid: str) -> None:
    def lay(tensor: Tensor) -> Tensor:
        if laid == "turned":
            return tensor.mT.contiguous().mT if tensor.dim() == 2 else tensor
        if laid == "sliced":
            return torch.stack([tensor, torch.full_like(tensor, 99.0)], dim=-1)[..., 0]
        return tensor.flatten()[:1].expand(tensor.shape)

    given = [lay(one.detach()) if place == which else one.detach() for place, one in enumerate(leaves(7, 5, 3))]
    assert_near(linear(*given), F.linear(*doubled(given)))


@needs_onednn
def test_what_needs_no_gradient_costs_no_product(by_onednn: list[tuple[int, ...]]) -> None:
    x, weight, bias = leaves(7, 5, 3)
    linear(x.detach(), weight, bias).sum().backward()
    assert by_onednn == [(7, 3, 5), (3, 5, 7)]
    with torch.no_grad():
        assert not linear(x, weight, bias).requires_grad
    assert len(by_onednn) == 3


@needs_onednn
@pytest.mark.parametrize("left", ["float64", "autocast", "vmap", "images"])
def test_other_products_are_left_to_pytorch(by_onednn: list[tuple[int, ...]], left: str) -> None:
    layer = Linear(5, 3)
    x = torch.randn(7, 5)
    if left == "float64":
        assert layer.double()(x.double()).dtype == torch.float64
    elif left == "autocast":
        with torch.autocast("cpu", dtype=torch.bfloat16):
            assert layer(x).dtype == torch.bfloat16
    elif left == "vmap":
        torch.testing.assert_close(torch.func.vmap(layer)(x.unsqueeze(1)).squeeze(1), layer.forward(x))
        by_onednn.clear()  # of the second one
    else:
        assert layer(torch.randn(2, 7, 5)).shape == (2, 7, 3)
    assert not by_onednn


@pytest.mark.parametrize("threads", [1, 2])
def test_only_large_products_are_worth_the_start(monkeypatch: pytest.MonkeyPatch, threads: int) -> None:
    monkeypatch.setattr(module, "has_faster_products", lambda: True)
    monkeypatch.setattr(torch, "get_num_threads", lambda: threads)
    weight = torch.empty(1000, LARGE // 100_000)
    assert is_faster_by_onednn(torch.empty(100 * threads, weight.shape[1]), weight)
    assert not is_faster_by_onednn(torch.empty(100 * threads - 1, weight.shape[1]), weight)


@pytest.mark.parametrize(
    ("processor", "faster"),
    [
        ({"cpu_name": "AMD EPYC", "avx512_f": True}, True),
        ({"cpu_name": "AMD EPYC", "avx512_f": False}, False),
        ({"cpu_name": "Intel(R) Xeon(R)", "avx512_f": True}, False),
        ({"architecture": "aarch64", "sve": True}, False),
    ],
)
def test_mkl_keeps_the_processors_that_it_is_made_for(
    monkeypatch: pytest.MonkeyPatch, processor: dict[str, object], faster: bool
) -> None:
    monkeypatch.setattr(torch.backends.mkl, "is_available", lambda: True)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: processor, raising=False)
    module._has_faster_products.cache_clear()
    try:
        assert has_faster_products() == faster
        torch.backends.mkldnn.enabled = False
        assert not has_faster_products()
    finally:
        torch.backends.mkldnn.enabled = True
        module._has_faster_products.cache_clear()
