"""Warps against shifts, flips and SciPy's interpolation, in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from scipy import ndimage

from mlp_lab.data.augmentation import Augmentation, distort, elastic_field, gaussian_smoother, random_affine, warp
from mlp_lab.errors import UserError

CPU = torch.device("cpu")
# Bilinear sampling in float64 of values below 1: a few roundings of coordinates up to 12.
TIGHT = {"atol": 1e-12, "rtol": 0}


@pytest.fixture
def images() -> torch.Tensor:
    return torch.rand(3, 9, 12, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


def straight(batch: int) -> torch.Tensor:
    return torch.eye(2, dtype=torch.float64).expand(batch, 2, 2)


def nowhere(batch: int) -> torch.Tensor:
    return torch.zeros(batch, 2, dtype=torch.float64)


def test_nothing_asked_leaves_images_unchanged(images: torch.Tensor) -> None:
    assert not Augmentation().active
    torch.testing.assert_close(distort(images.float(), Augmentation()).double(), images, atol=1e-5, rtol=0)
    torch.testing.assert_close(warp(images, straight(3), nowhere(3)), images, **TIGHT)


def test_known_translation_is_a_shift(images: torch.Tensor) -> None:
    shifts = torch.tensor([[2.0, -1.0]] * 3, dtype=torch.float64)  # two to the right, one up
    expected = torch.full_like(images, 0.3)
    expected[:, :-1, 2:] = images[:, 1:, :-2]
    torch.testing.assert_close(warp(images, straight(3), shifts, fill=0.3), expected, **TIGHT)


def test_half_turn_reverses_both_axes(images: torch.Tensor) -> None:
    torch.testing.assert_close(warp(images, -straight(3), nowhere(3)), images.flip(1, 2), **TIGHT)


def test_warp_is_scipys_interpolation(images: torch.Tensor) -> None:
    """On points that all lie inside the image, where border rules do not matter."""
    generator = torch.Generator().manual_seed(1)
    matrices = 0.3 * straight(3) + 0.1 * torch.rand(3, 2, 2, dtype=torch.float64, generator=generator)
    shifts = torch.rand(3, 2, dtype=torch.float64, generator=generator)
    field = 0.5 * torch.rand(3, 9, 12, 2, dtype=torch.float64, generator=generator)
    found = warp(images, matrices, shifts, field)
    y, x = np.mgrid[0:9, 0:12].astype(float)
    for index in range(3):
        points = np.stack([x - 5.5, y - 4.0], axis=-1) - shifts[index].numpy()
        source = points @ matrices[index].numpy().T + field[index].numpy()
        where = np.stack([source[..., 1] + 4.0, source[..., 0] + 5.5])
        assert where.min() > 0
        expected = ndimage.map_coordinates(images[index].numpy(), where, order=1)
        np.testing.assert_allclose(found[index], expected, atol=1e-12)


def test_random_affine_undoes_scale_rotation_and_shear() -> None:
    """A is the inverse of S R H for the drawn factor, angle and slope, which the matrix itself gives back."""
    torch.manual_seed(0)
    options = Augmentation(rotation=30, translation=3, scale=0.2, shear=20)
    matrices, shifts = random_affine(2000, options, device=CPU)
    forward = torch.linalg.inv(matrices.double())  # S R H
    angle = torch.atan2(forward[:, 1, 0], forward[:, 0, 0])
    factor = torch.hypot(forward[:, 1, 0], forward[:, 0, 0])
    rotation = torch.stack([angle.cos(), -angle.sin(), angle.sin(), angle.cos()], dim=1).view(-1, 2, 2)
    shear = rotation.mT @ forward / factor[:, None, None]
    upper = torch.tensor([[1.0, 0.0], [0.0, 1.0]], dtype=torch.float64).repeat(2000, 1, 1)
    upper[:, 0, 1] = shear[:, 0, 1]
    torch.testing.assert_close(shear, upper, atol=1e-5, rtol=0)  # the draw was float32
    limits = {
        "rotation": (angle.rad2deg().abs(), 30),
        "scale": ((factor - 1).abs(), 0.2),
        "shear": (shear[:, 0, 1].atan().rad2deg().abs(), 20),
        "translation": (shifts.abs(), 3),
    }
    for name, (drawn, limit) in limits.items():
        # Of 2,000 uniform draws the largest misses the limit by more than 1 % with probability 2e-9.
        assert 0.99 * limit < float(drawn.max()) <= limit * (1 + 1e-5), name


def test_smoother_is_scipys_gaussian_filter() -> None:
    noise = np.random.default_rng(0).uniform(-1, 1, size=(28, 20))
    ours = gaussian_smoother(28, 4.0).numpy() @ noise @ gaussian_smoother(20, 4.0).numpy()
    theirs = ndimage.gaussian_filter(noise, 4.0, mode="constant", truncate=8.0)
    np.testing.assert_allclose(ours, theirs, atol=1e-12)


def test_elastic_field_has_the_amplitude_of_smoothed_noise() -> None:
    """Uniform noise has variance 1/3; a 2-D Gaussian of width s averages it down by 4 pi s^2, away from the border."""
    torch.manual_seed(0)
    field = elastic_field(400, 41, 41, sigma=2.0, device=CPU)
    assert field.shape == (400, 41, 41, 2)
    middle = field[:, 20, 20]  # 800 draws: their deviation is known to 2.5 %
    assert float(middle.std()) == pytest.approx(math.sqrt(1 / 3 / (4 * math.pi * 2.0**2)), rel=0.1)


def test_outside_is_background(images: torch.Tensor) -> None:
    far = torch.full((3, 2), 100.0, dtype=torch.float64)
    torch.testing.assert_close(warp(images, straight(3), far, fill=-0.42), torch.full_like(images, -0.42), **TIGHT)


def test_distortion_follows_torchs_seed_and_differs_by_image() -> None:
    options = Augmentation(rotation=10, translation=2, elastic=34)
    same = torch.rand(28, 28).expand(4, 28, 28)
    torch.manual_seed(3)
    first = distort(same, options)
    torch.manual_seed(3)
    assert torch.equal(distort(same, options), first)
    assert not torch.equal(distort(same, options), first)
    assert not torch.equal(first[0], first[1])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"rotation": 181.0}, "data.augment.rotation: 181.0 is outside 0 to 180"),
        ({"translation": -1.0}, "data.augment.translation: -1.0 is outside 0 to below inf"),
        ({"scale": 1.0}, "data.augment.scale: 1.0 is outside 0 to below 1"),
        ({"shear": 90.0}, "data.augment.shear: 90.0 is outside 0 to below 90"),
        ({"elastic": float("nan")}, "data.augment.elastic: nan is outside 0 to below inf"),
        ({"elastic_sigma": 0.0}, "data.augment.elastic_sigma: 0.0 must be positive"),
    ],
)
def test_wrong_options_are_refused(options: dict[str, float], message: str) -> None:
    with pytest.raises(UserError) as caught:
        Augmentation(**options)
    assert str(caught.value) == message
