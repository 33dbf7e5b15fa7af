"""Random distortions of a batch of images: one warp that joins an affine map and an elastic field.

Randomness comes from torch's generator of the images' device, which a run saves and restores.

B images, H height, W width; points are (x, y) in pixels, (0, 0) at the centre of the first pixel.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.functional import grid_sample

from mlp_lab.errors import UserError


@dataclass(frozen=True, kw_only=True)
class Augmentation:
    """How far training images are distorted; the default is not at all."""

    rotation: float = 0.0
    """Largest rotation either way, in degrees, from 0 to 180; 0 turns it off."""
    translation: float = 0.0
    """Largest shift along each axis, in pixels, at least 0; 0 turns it off."""
    scale: float = 0.0
    """Largest relative change of size, at least 0 and below 1: 0.1 draws factors from 0.9 to 1.1; 0 turns it off."""
    shear: float = 0.0
    """Largest horizontal shear either way, in degrees, at least 0 and below 90; 0 turns it off."""
    elastic: float = 0.0
    """Amplitude alpha of the elastic field, in pixels, at least 0; 0 turns it off, and Simard et al. (2003) use 34."""
    elastic_sigma: float = 4.0
    """Width of the Gaussian that smooths the elastic field, in pixels, above 0."""

    def __post_init__(self) -> None:
        limits = {"rotation": 180.0, "translation": math.inf, "scale": 1.0, "shear": 90.0, "elastic": math.inf}
        for name, limit in limits.items():
            value = getattr(self, name)
            within = 0 <= value <= limit if name == "rotation" else 0 <= value < limit
            if not within:
                bound = f"0 to {limit:g}" if name == "rotation" else f"0 to below {limit:g}"
                raise UserError(f"data.augment.{name}: {value} is outside {bound}")
        if not self.elastic_sigma > 0:
            raise UserError(f"data.augment.elastic_sigma: {self.elastic_sigma} must be positive")

    @property
    def active(self) -> bool:
        """Whether any distortion is on."""
        return any((self.rotation, self.translation, self.scale, self.shear, self.elastic))


def distort(images: Tensor, options: Augmentation, *, fill: float = 0.0) -> Tensor:
    """Distorts each image at random.

    Args:
        images: (B, H, W) floating point.
        options: The largest distortions.
        fill: Value of what comes in from outside the image: the background.

    Returns:
        (B, H, W), bilinearly sampled.
    """
    batch, height, width = images.shape
    matrices, shifts = random_affine(batch, options, device=images.device)
    field = None
    if options.elastic:
        field = options.elastic * elastic_field(batch, height, width, sigma=options.elastic_sigma, device=images.device)
    return warp(images, matrices, shifts, field, fill=fill)


def random_affine(batch: int, options: Augmentation, *, device: torch.device) -> tuple[Tensor, Tensor]:
    """Draws one affine map per image, uniformly within the limits.

    Returns:
        Matrices A, (B, 2, 2), and shifts t in pixels, (B, 2): the content of an image, seen from its centre, is
        rotated, sheared, scaled and then shifted by t when the output at p shows the input at A (p - t).
    """
    draws = torch.rand(5, batch, device=device) * 2 - 1  # (5, B) in [-1, 1)
    angle = draws[0] * math.radians(options.rotation)
    slope = (draws[1] * math.radians(options.shear)).tan()
    factor = 1 + draws[2] * options.scale
    cos, sin = angle.cos(), angle.sin()
    # The inverse of scale * rotation * shear: undo them in the opposite order.
    rows = [cos + slope * sin, sin - slope * cos, -sin, cos]
    matrices = (torch.stack(rows, dim=1) / factor[:, None]).view(batch, 2, 2)  # (B, 2, 2)
    return matrices, draws[3:5].T * options.translation


def elastic_field(batch: int, height: int, width: int, *, sigma: float, device: torch.device) -> Tensor:
    """Draws smooth random displacements, (B, H, W, 2), before their amplitude alpha.

    Independent uniform noise in [-1, 1] smoothed by a Gaussian, zero outside the image (Simard, Steinkraus and Platt,
    "Best Practices for Convolutional Neural Networks Applied to Visual Document Analysis", ICDAR 2003, section 2).
    """
    noise = torch.rand(batch, 2, height, width, device=device) * 2 - 1  # (B, 2, H, W)
    down, across = gaussian_smoother(height, sigma), gaussian_smoother(width, sigma)
    smooth = down.to(noise) @ noise @ across.to(noise)  # (B, 2, H, W)
    return smooth.permute(0, 2, 3, 1)


def gaussian_smoother(size: int, sigma: float) -> Tensor:
    """Returns the symmetric matrix that convolves a signal with a Gaussian, zero outside, (size, size) float64."""
    place = torch.arange(size, dtype=torch.float64)
    reach = math.ceil(8 * sigma)
    total = torch.exp(-0.5 * (torch.arange(-reach, reach + 1, dtype=torch.float64) / sigma) ** 2).sum()
    return torch.exp(-0.5 * ((place[:, None] - place) / sigma) ** 2) / total


def warp(images: Tensor, matrices: Tensor, shifts: Tensor, field: Tensor | None = None, *, fill: float = 0.0) -> Tensor:
    """Samples each image at A (p - t) + u(p), with points p seen from the image's centre.

    Args:
        images: (B, H, W).
        matrices: A, (B, 2, 2).
        shifts: t in pixels, (B, 2).
        field: u in pixels, (B, H, W, 2), or None.
        fill: Value outside the image.

    Returns:
        (B, H, W), bilinearly sampled.
    """
    _, height, width = images.shape
    y = torch.arange(height, device=images.device, dtype=images.dtype) - (height - 1) / 2
    x = torch.arange(width, device=images.device, dtype=images.dtype) - (width - 1) / 2
    offsets = (matrices @ shifts[:, :, None])[:, :, 0]  # (B, 2)
    # A p is separable in x and y: outer sums cost a tenth of a product over all points.
    along_x = matrices[:, :, 0, None] * x  # (B, 2, W)
    along_y = matrices[:, :, 1, None] * y - offsets[:, :, None]  # (B, 2, H)
    source = along_y[:, :, :, None] + along_x[:, :, None, :]  # (B, 2, H, W)
    source = source.permute(0, 2, 3, 1)  # (B, H, W, 2)
    if field is not None:
        source = source + field
    # From pixels to the [-1, 1] of `grid_sample`, where -1 and 1 are the outer edges of the first and last pixel.
    grid = source * torch.tensor([2 / width, 2 / height], device=images.device, dtype=images.dtype)
    shown = grid_sample((images - fill)[:, None], grid, mode="bilinear", padding_mode="zeros", align_corners=False)
    return shown[:, 0] + fill
