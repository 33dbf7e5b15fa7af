"""Masks from a hash: as random as they must be, the same everywhere, and part of the state."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import nn

from mlp_lab import MLP
from mlp_lab.model import dropout as module
from mlp_lab.model.dropout import AlphaDropout, Dropout, lowbias32, step_key, uniform_words

CPU = torch.device("cpu")


def unsigned(words: torch.Tensor) -> np.ndarray:
    return words.long().numpy() + 2**31


def test_the_hash_is_the_published_one():
    """The author's table begins at 0 with 0 and at 1 with 0x688990c0."""
    assert [hex(lowbias32(word)) for word in (0, 1, 2**32 - 1)] == ["0x0", "0x688990c0", hex(naive(2**32 - 1))]


def naive(word: int) -> int:
    x = np.array([word], dtype=np.uint64)
    for shift, multiplier in ((16, 0x7FEB352D), (15, 0x846CA68B), (16, 1)):
        x = (x ^ (x >> np.uint64(shift))) * np.uint64(multiplier) & np.uint64(2**32 - 1)
    return int(x[0])


def test_words_are_the_two_rounds_of_the_definition():
    words = unsigned(uniform_words(range(5, 8), 4, step_key(1, 2, 3), CPU))
    key = step_key(1, 2, 3)
    expected = [[naive(naive((naive(row) + unit) % 2**32) ^ key) for unit in range(4)] for row in range(5, 8)]
    assert words.tolist() == expected


def test_numpy_and_torch_agree_in_every_bit():
    """The two ways of computing are those of the CPU and of an accelerator."""
    key = step_key(7, 1, 2**33 + 5)
    expected = uniform_words(range(70_000, 70_100), 513, key, CPU)
    positions = torch.from_numpy(module._positions(70_000, 100, 513).view(np.int32))
    words = module.lowbias32_torch_(positions ^ module.signed(key)) ^ module.signed(2**31)
    assert torch.equal(words, expected)


@pytest.mark.gpu
def test_an_accelerator_drops_the_same_values():
    x = torch.randn(100, 300)
    one, other = Dropout(0.3, 2), Dropout(0.3, 2)
    assert torch.equal(one(x), other(x.cuda()).cpu())


def test_words_are_uniform_over_rows_units_and_steps():
    """χ² over 256 bins of the highest byte; its standard deviation is √510, and 5 of them are allowed."""
    samples = {
        "units": uniform_words(range(1), 2**18, step_key(0, 1, 0), CPU),
        "rows": uniform_words(range(2**18), 1, step_key(0, 1, 0), CPU),
        "steps": torch.cat([uniform_words(range(16), 16, step_key(0, 1, step), CPU) for step in range(1024)]),
        "layers": torch.cat([uniform_words(range(16), 16, step_key(0, layer, 0), CPU) for layer in range(1024)]),
        "seeds": torch.cat([uniform_words(range(16), 16, step_key(seed, 0, 0), CPU) for seed in range(1024)]),
    }
    for name, words in samples.items():
        counts = np.bincount(unsigned(words).ravel() >> 24, minlength=256)
        expected = words.numel() / 256
        chi_squared = ((counts - expected) ** 2 / expected).sum()
        assert abs(chi_squared - 255) < 5 * math.sqrt(510), name


def test_masks_of_steps_layers_seeds_rows_and_units_are_independent():
    """Correlations of ±1 masks over 65,536 values have a standard deviation of 1/256; 5 of them are allowed."""

    def mask(seed: int, layer: int, step: int, first: int = 0) -> torch.Tensor:
        return (uniform_words(range(first, first + 256), 256, step_key(seed, layer, step), CPU) >= 0).double() * 2 - 1

    reference = mask(0, 1, 0)
    others = [mask(0, 1, 1), mask(0, 1, 2), mask(0, 2, 0), mask(1, 1, 0), mask(0, 1, 0, first=256), mask(1, 0, 0)]
    others += [reference.roll(1, 0), reference.roll(1, 1), reference.roll(128, 1), reference.T]
    for number, other in enumerate(others):
        assert abs((reference * other).mean().item()) < 5 / 256, number


@pytest.mark.parametrize("p", [0.1, 0.5, 0.9])
def test_dropout_keeps_the_expectation(p: float):
    x = torch.full((256, 256), 3.0, dtype=torch.float64)
    dropout = Dropout(p)
    out = dropout(x)
    assert set(out.unique().tolist()) == {0.0, 3.0 * (1 / (1 - p))}
    share = (out == 0).double().mean().item()
    assert share == pytest.approx(p, abs=5 * math.sqrt(p * (1 - p)) / 256)
    assert not torch.equal(out, dropout(x))  # the next step


def test_alpha_dropout_is_the_papers():
    """Values, and mean and variance over standard normal inputs, against torch's module of the same definition."""
    torch.manual_seed(0)
    x = torch.randn(512, 512, dtype=torch.float64)
    ours, theirs = AlphaDropout(0.2)(x), nn.AlphaDropout(0.2)(x)
    dropped = theirs.flatten().mode().values
    assert ours.flatten().mode().values.item() == pytest.approx(dropped.item(), rel=1e-12)
    kept = (ours != dropped) & (theirs != dropped)
    torch.testing.assert_close(ours[kept], theirs[kept], rtol=1e-12, atol=0)
    assert ours.mean().item() == pytest.approx(0, abs=0.01)
    assert ours.var().item() == pytest.approx(1, abs=0.01)


def test_gradients_pass_where_values_stay():
    x = torch.randn(6, 5, dtype=torch.float64, requires_grad=True)
    for kind in (Dropout, AlphaDropout):
        out = kind(0.4)(x)
        (gradient,) = torch.autograd.grad(out.sum(), x)
        replay = kind(0.4)
        step = 1e-6
        difference = torch.empty_like(gradient)
        for index in range(x.numel()):
            nudge = torch.zeros_like(x).view(-1)
            nudge[index] = step
            replay.passes = 0
            upper = replay(x.detach() + nudge.view_as(x)).sum()
            replay.passes = 0
            difference.view(-1)[index] = (upper - replay(x.detach() - nudge.view_as(x)).sum()) / (2 * step)
            replay.passes = 0
        torch.testing.assert_close(gradient, difference, rtol=1e-6, atol=1e-8)


def test_half_precision_is_scaled_in_float32():
    x = torch.full((64, 64), 1.5, dtype=torch.bfloat16)
    out = Dropout(0.3)(x)
    assert out.dtype == torch.bfloat16
    assert set(out.unique().tolist()) == {0.0, torch.tensor(1.5 / 0.7).bfloat16().item()}


def test_evaluation_and_p_of_0_change_nothing():
    x = torch.randn(3, 4)
    dropout = Dropout(0.5).eval()
    assert dropout(x) is x
    assert dropout.passes == 0
    assert Dropout(0.0)(x) is x


def test_a_row_keeps_its_mask_whatever_the_batch_and_the_width_around_it():
    x = torch.ones(10, 20)
    whole = Dropout(0.5)(x)
    part = Dropout(0.5)
    part.first_row = 4
    assert torch.equal(part(x[4:9]), whole[4:9])
    assert torch.equal(Dropout(0.5)(x[:, :7]), whole[:, :7])


def test_the_state_dict_holds_seed_and_passes():
    torch.manual_seed(0)
    mlp = MLP(5, 2, depth=2, width=8, dropout=0.3, input_dropout=0.1)
    assert [drop.layer for drop in mlp.dropouts] == [0, 1, 2]
    assert len({drop.seed for drop in mlp.dropouts}) == 1
    x = torch.randn(4, 5)
    mlp(x)
    torch.manual_seed(1)
    other = MLP(5, 2, depth=2, width=8, dropout=0.3, input_dropout=0.1)
    assert other.dropouts[0].seed != mlp.dropouts[0].seed
    other.load_state_dict(mlp.state_dict())
    assert torch.equal(mlp(x), other(x))


def test_dropout_leaves_the_weights_of_a_seed_as_they_are():
    weights = []
    for p in (0.0, 0.5):
        torch.manual_seed(3)
        weights.append(MLP(5, 2, depth=2, width=8, dropout=p).head.weight)
    assert torch.equal(*weights)
