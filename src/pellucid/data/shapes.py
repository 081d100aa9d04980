"""Procedural images of eight shapes on textured grounds, each with the exact mask of its object.

Everything is drawn from signed distances: negative inside an outline, positive outside, in units of half
the image side. A distance becomes the share of a pixel that is covered, so edges are smooth at any size.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from ..errors import InvalidParameter

Array = NDArray[np.float64]
_Rng = np.random.Generator

BLACKEST, WHITEST = 0.02, 0.98  # leaves room for the grain, so that clipping never flattens a texture
GRAIN = 0.012
RADII = (0.34, 0.62)
COLOR_CANDIDATES = 6


class Grid(NamedTuple):
    """Pixel centers in [-1, 1]; ``x`` grows to the right and ``y`` downwards, both (H, W)."""

    x: Array
    y: Array

    @classmethod
    def of_size(cls, size: int) -> Grid:
        """Lay out a square grid of ``size`` x ``size`` pixels."""
        centers = (np.arange(size) + 0.5) * 2 / size - 1
        return cls(*np.meshgrid(centers, centers))

    def placed(self, x: float, y: float, radius: float, angle: float) -> Grid:
        """Return the same pixels as seen from an outline of unit radius at (x, y), turned by ``angle``."""
        # An outline is drawn upright at the origin only: the pixels are moved, scaled and turned back instead.
        dx, dy = (self.x - x) / radius, (self.y - y) / radius
        cosine, sine = np.cos(angle), np.sin(angle)
        return Grid(cosine * dx + sine * dy, cosine * dy - sine * dx)


# Outlines: the signed distance of each pixel to a shape of about unit radius. A union of two shapes is the minimum
# of their distances, what they share the maximum, and what lies outside a shape has its distance negated.


def _disc(grid: Grid, radius: float = 0.92) -> Array:
    return np.hypot(grid.x, grid.y) - radius


def _crescent(grid: Grid) -> Array:
    bite = Grid(grid.x - 0.48, grid.y)
    return np.maximum(_disc(grid, 0.98), -_disc(bite, 0.78))


def polygon(grid: Grid, corners: Array) -> Array:
    """Signed distance to a simple polygon with ``corners`` (N, 2).

    The distance is the least one to any edge; the sign is the parity of the edges that a ray to the
    right crosses.
    """
    distance = np.full(grid.x.shape, np.inf)
    inside = np.zeros(grid.x.shape, dtype=bool)
    for (ax, ay), (bx, by) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        px, py, ex, ey = grid.x - ax, grid.y - ay, bx - ax, by - ay
        # The nearest point of the edge a + t e is the foot of the perpendicular, or the end that it lies beyond.
        along = np.clip((px * ex + py * ey) / (ex * ex + ey * ey), 0, 1)
        distance = np.minimum(distance, np.hypot(px - along * ex, py - along * ey))
        # The ray crosses an edge that straddles its row, if the pixel lies to the left (the cross product's sign).
        straddles = (grid.y < ay) != (grid.y < by)
        inside ^= straddles & ((px * ey - py * ex < 0) == (ey > 0))
    return np.where(inside, -distance, distance)


def _regular(sides: int, inner: float = 1.0) -> Callable[[Grid], Array]:
    """A regular polygon, or with ``inner`` below 1 a star whose notches lie at that radius."""
    count = sides if inner == 1 else 2 * sides
    angles = 2 * np.pi * np.arange(count) / count - np.pi / 2
    radii = np.ones(count)
    if inner != 1:
        radii[1::2] = inner
    corners = np.stack([radii * np.cos(angles), radii * np.sin(angles)], axis=1)
    return lambda grid: polygon(grid, corners)


def _cross(grid: Grid, reach: float = 0.98, arm: float = 0.3) -> Array:
    """A plus sign with arms ``2 * arm`` wide: three corners, turned by each right angle."""
    quarter = np.array([(arm, -reach), (arm, -arm), (reach, -arm)])
    turns = [np.linalg.matrix_power(np.array([[0, 1], [-1, 0]]), turn) for turn in range(4)]
    return polygon(grid, np.concatenate([quarter @ turn for turn in turns]))


OUTLINES: dict[str, Callable[[Grid], Array]] = {
    "circle": _disc,
    "square": _regular(4),
    "triangle": _regular(3),
    "star": _regular(5, inner=0.45),
    "ring": lambda grid: np.abs(_disc(grid, 0.75)) - 0.2,  # all within 0.2 of a circle
    "cross": _cross,
    "crescent": _crescent,
    "hexagon": _regular(6),
}

SHAPE_NAMES: tuple[str, ...] = tuple(OUTLINES)
"""The class names; a label is an index into them."""


# Textures: a field in [0, 1] that mixes two colors.


def _ramp(grid: Grid, angle: float) -> Array:
    ramp: Array = np.cos(angle) * grid.x + np.sin(angle) * grid.y
    return ramp


def _waves(grid: Grid, angle: float, frequency: float, phase: float) -> Array:
    """Bands in [-1, 1] with soft edges, ``frequency`` of them per half side."""
    bands: Array = np.tanh(2.5 * np.sin(np.pi * frequency * _ramp(grid, angle) + phase))
    return bands


def _stripes(grid: Grid, random: _Rng) -> Array:
    return 0.5 + 0.5 * _waves(grid, random.uniform(0, np.pi), random.uniform(3, 7), random.uniform(0, 6.28))


def _checker(grid: Grid, random: _Rng) -> Array:
    angle, frequency = random.uniform(0, np.pi), random.uniform(2.5, 5)
    return 0.5 + 0.5 * _waves(grid, angle, frequency, 0) * _waves(grid, angle + np.pi / 2, frequency, 0)


def _smooth_noise(grid: Grid, random: _Rng, cells: int) -> Array:
    """Value noise: random values on a lattice of ``cells`` x ``cells``, joined smoothly.

    Between lattice points the weight is smoothstep, 3 t^2 - 2 t^3, whose slope is 0 at both: no crease shows.
    """
    lattice = random.uniform(0, 1, (cells + 2, cells + 2))
    column, row = (np.clip((axis + 1) / 2, 0, 1) * cells for axis in grid)
    left, top = (np.floor(axis).astype(int) for axis in (column, row))
    across, down = ((3 - 2 * part) * part**2 for part in (column - left, row - top))
    upper = lattice[top, left] * (1 - across) + lattice[top, left + 1] * across
    lower = lattice[top + 1, left] * (1 - across) + lattice[top + 1, left + 1] * across
    blend: Array = upper * (1 - down) + lower * down
    return blend


_TEXTURES: tuple[Callable[[Grid, _Rng], Array], ...] = (
    lambda grid, random: np.full(grid.x.shape, random.uniform(0.2, 0.8)),
    lambda grid, random: np.clip(0.5 + 0.5 * _ramp(grid, random.uniform(0, 2 * np.pi)), 0, 1),
    _stripes,
    _checker,
    lambda grid, random: 0.65 * _smooth_noise(grid, random, 4) + 0.35 * _smooth_noise(grid, random, 11),  # clouds
    lambda grid, random: 0.5 + 0.5 * np.tanh(9 * (_smooth_noise(grid, random, 6) - 0.5)),  # islands
)


# Colors and paint.


def color(random: _Rng, saturation: tuple[float, float], value: tuple[float, float]) -> Array:
    """Draw one RGB color (3,) of a random hue, by the closed form of HSV."""
    hue, saturated, bright = random.uniform(0, 6), random.uniform(*saturation), random.uniform(*value)
    # v (1 - s clip(min(k, 4 - k), 0, 1)) with k = (5, 3, 1) + hue modulo 6, for red, green and blue.
    wheel = (np.array([5.0, 3.0, 1.0]) + hue) % 6
    shade: Array = bright * (1 - saturated * np.clip(np.minimum(wheel, 4 - wheel), 0, 1))
    return shade


def _textured(grid: Grid, random: _Rng, dark: Array, light: Array) -> Array:
    """An image (H, W, 3): two colors, mixed by a random texture."""
    field = _TEXTURES[random.integers(len(_TEXTURES))](grid, random)[..., None]
    return dark * (1 - field) + light * field


def _ground(grid: Grid, random: _Rng) -> Array:
    """A muted background (H, W, 3) of two colors."""
    dark = color(random, (0.05, 0.5), (0.15, 0.6))
    return _textured(grid, random, dark, color(random, (0.05, 0.5), (0.4, 0.9)))


def _painted(grid: Grid, random: _Rng, behind: Array) -> Array:
    """An object's surface (H, W, 3): of several strong colors the one farthest from the color ``behind`` it,
    textured with a paler or darker one.
    """
    candidates = [color(random, (0.55, 1.0), (0.35, 1.0)) for _ in range(COLOR_CANDIDATES)]
    strong = max(candidates, key=lambda candidate: float(np.abs(candidate - behind).sum()))
    other = strong * random.uniform(0.45, 0.7) if strong.mean() > 0.5 else strong + (1 - strong) * 0.55
    return _textured(grid, random, strong, 0.35 * strong + 0.65 * other)


# The scene.


def coverage(distance: Array, pixel: float) -> Array:
    """Share of each pixel in [0, 1] that lies inside an outline, from the distance at its center."""
    return np.clip(0.5 - distance / pixel, 0, 1)


def _rod(grid: Grid) -> Array:
    """A thin rod with round ends: 0.12 from the nearest point of a segment."""
    return np.hypot(np.maximum(np.abs(grid.x) - 0.85, 0), grid.y) - 0.12


def _chevron(grid: Grid) -> Array:
    """A thin open angle, which belongs to no class: a tilted rod and its mirror image."""
    folded = Grid(grid.x, np.abs(grid.y))
    return _rod(folded.placed(0, 0.4, 0.62, np.pi / 4))


# The outlines of distractors and their radii: nothing here can be taken for a small object of a class.
_DISTRACTORS: tuple[tuple[Callable[[Grid], Array], tuple[float, float]], ...] = (
    (_disc, (0.03, 0.07)),
    (_rod, (0.12, 0.35)),
    (_chevron, (0.12, 0.24)),
)


def _distractor(grid: Grid, random: _Rng) -> tuple[Array, Array]:
    """One distractor's coverage (H, W) and its color (3,)."""
    outline, radii = _DISTRACTORS[random.integers(len(_DISTRACTORS))]
    radius = random.uniform(*radii)
    x, y = random.uniform(-1, 1, 2)
    share = _placed_coverage(outline, grid.placed(x, y, radius, random.uniform(0, 2 * np.pi)), radius)
    return share, color(random, (0.1, 0.9), (0.1, 1.0))


def _placed_coverage(outline: Callable[[Grid], Array], seen: Grid, radius: float) -> Array:
    # Distances in units of the radius become those of half the image side, in which a pixel is 2 / H wide.
    return coverage(outline(seen) * radius, 2 / len(seen.x))


def _over(image: Array, share: Array, surface: Array) -> Array:
    """A surface laid over an image where ``share`` (H, W) of each pixel is covered."""
    return image + share[..., None] * (surface - image)


def _scene(random: _Rng, label: int, size: int) -> tuple[Array, NDArray[np.bool_]]:
    """One image (H, W, 3) in [0, 1] and the mask (H, W) of its object's visible pixels.

    Some distractors lie behind the object and at most two before it; what they hide is not in the mask.
    """
    grid = Grid.of_size(size)
    image = _ground(grid, random)
    for _ in range(random.integers(3, 8)):
        image = _over(image, *_distractor(grid, random))
    radius = random.uniform(*RADII)
    # The whole object lies within the image.
    x, y = random.uniform(radius - 1, 1 - radius, 2)
    seen = grid.placed(x, y, radius, random.uniform(0, 2 * np.pi))
    visible = _placed_coverage(OUTLINES[SHAPE_NAMES[label]], seen, radius)
    image = _over(image, visible, _painted(seen, random, behind=image[visible > 0].mean(axis=0)))
    for _ in range(random.integers(0, 3)):
        share, shade = _distractor(grid, random)
        image, visible = _over(image, share, shade), visible * (1 - share)
    image = image + random.normal(0, GRAIN, image.shape)
    return np.clip(image, BLACKEST, WHITEST), visible > 0.5


@dataclass(frozen=True)
class ShapesDataset(Dataset[tuple[Tensor, int, Tensor]]):
    """Images of one shape each among distractors, drawn anew and always alike from (seed, index).

    An item is ``(image, label, mask)``: the image (3, size, size) float32 in [0, 1], the label an index
    into :data:`SHAPE_NAMES` (``index % 8``, so that classes are balanced), and the mask (size, size) bool,
    True where more than half of the pixel's color is the object's.

    Args:
        count: how many images, at least 1.
        size: side in pixels, at least 16.
        seed: which series of images, at least 0; two seeds share no image.

    Raises:
        InvalidParameter: a count, size or seed out of its range.
    """

    count: int
    size: int = 64
    seed: int = 0
    classes: ClassVar[tuple[str, ...]] = SHAPE_NAMES

    def __post_init__(self) -> None:
        for name, least in (("count", 1), ("size", 16), ("seed", 0)):
            value = getattr(self, name)
            if value < least:
                raise InvalidParameter(f"ShapesDataset: {name}={value}; it must be at least {least}")

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, int, Tensor]:
        if not 0 <= index < self.count:  # also what ends a plain `for` loop over the data set
            raise IndexError(f"image {index} of {self.count} shapes")
        label = index % len(SHAPE_NAMES)
        image, mask = _scene(np.random.default_rng([self.seed, index]), label, self.size)
        bytes_ = torch.from_numpy(np.rint(image * 255).astype(np.uint8))  # as a picture file would hold it
        return bytes_.permute(2, 0, 1).contiguous() / 255, label, torch.from_numpy(mask)
