"""Procedural images of eight shapes on textured grounds, each with the exact mask of its object.

Everything is drawn from signed distances: negative inside an outline, positive outside, in units of half
the image side. A distance becomes the share of a pixel that is covered, so edges are smooth at any size.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from ..errors import InvalidParameter

Array = NDArray[np.float64]
Random = np.random.Generator

BLACKEST, WHITEST = 0.02, 0.98  # leaves room for the grain, so that clipping never flattens a texture
GRAIN = 0.012
RADII = (0.34, 0.62)
COLOUR_CANDIDATES = 6


class Grid(NamedTuple):
    """Pixel centres in [-1, 1]; ``x`` grows to the right and ``y`` downwards, both (H, W)."""

    x: Array
    y: Array

    @classmethod
    def of_size(cls, size: int) -> Grid:
        """Lay out a square grid of ``size`` x ``size`` pixels."""
        centres = (np.arange(size) + 0.5) * 2 / size - 1
        return cls(*np.meshgrid(centres, centres))

    def placed(self, x: float, y: float, radius: float, angle: float) -> Grid:
        """Return the same pixels as seen from an outline of unit radius at (x, y), turned by ``angle``."""
        dx, dy = (self.x - x) / radius, (self.y - y) / radius
        cosine, sine = np.cos(angle), np.sin(angle)
        return Grid(cosine * dx + sine * dy, cosine * dy - sine * dx)


# Outlines: the signed distance of each pixel to a shape of about unit radius.


def disc(grid: Grid, radius: float = 0.92) -> Array:
    """Signed distance to a disc."""
    return np.hypot(grid.x, grid.y) - radius


def ring(grid: Grid) -> Array:
    """Signed distance to a ring; the hole is 0.56 of the outer radius."""
    return np.abs(disc(grid, 0.75)) - 0.2


def crescent(grid: Grid) -> Array:
    """Signed distance to a disc with a shifted disc cut out."""
    bite = Grid(grid.x - 0.48, grid.y)
    return np.maximum(disc(grid, 0.98), -disc(bite, 0.78))


def polygon(grid: Grid, corners: Array) -> Array:
    """Signed distance to a simple polygon with ``corners`` (N, 2).

    The distance is the least one to any edge; the sign is the parity of the edges that a ray to the
    right crosses.
    """
    distance = np.full(grid.x.shape, np.inf)
    inside = np.zeros(grid.x.shape, dtype=bool)
    for (ax, ay), (bx, by) in zip(corners, np.roll(corners, -1, axis=0), strict=True):
        px, py, ex, ey = grid.x - ax, grid.y - ay, bx - ax, by - ay
        along = np.clip((px * ex + py * ey) / (ex * ex + ey * ey), 0, 1)
        distance = np.minimum(distance, np.hypot(px - along * ex, py - along * ey))
        straddles = (grid.y < ay) != (grid.y < by)
        inside ^= straddles & ((px * ey - py * ex < 0) == (ey > 0))
    return np.where(inside, -distance, distance)


def regular_polygon(sides: int, inner: float | None = None) -> Array:
    """Corners of a regular polygon, or of a star whose notches lie at radius ``inner``."""
    count = sides if inner is None else 2 * sides
    angles = 2 * np.pi * np.arange(count) / count - np.pi / 2
    radii = np.ones(count)
    if inner is not None:
        radii[1::2] = inner
    return np.stack([radii * np.cos(angles), radii * np.sin(angles)], axis=1)


def cross_corners(reach: float = 0.98, arm: float = 0.3) -> Array:
    """Corners of a plus sign with arms ``2 * arm`` wide."""
    quarter = np.array([(arm, -reach), (arm, -arm), (reach, -arm)])
    turns = [np.linalg.matrix_power(np.array([[0, 1], [-1, 0]]), turn) for turn in range(4)]
    return np.concatenate([quarter @ turn for turn in turns])


OUTLINES: dict[str, Callable[[Grid], Array]] = {
    "circle": disc,
    "square": lambda grid: polygon(grid, regular_polygon(4)),
    "triangle": lambda grid: polygon(grid, regular_polygon(3)),
    "star": lambda grid: polygon(grid, regular_polygon(5, inner=0.45)),
    "ring": ring,
    "cross": lambda grid: polygon(grid, cross_corners()),
    "crescent": crescent,
    "hexagon": lambda grid: polygon(grid, regular_polygon(6)),
}

SHAPE_NAMES: tuple[str, ...] = tuple(OUTLINES)
"""The class names; a label is an index into them."""


# Textures: a field in [0, 1] that mixes two colours.


def plain(grid: Grid, random: Random) -> Array:
    """One colour all over."""
    return np.full(grid.x.shape, random.uniform(0.2, 0.8))


def gradient(grid: Grid, random: Random) -> Array:
    """A ramp in a random direction."""
    angle = random.uniform(0, 2 * np.pi)
    ramp: Array = np.cos(angle) * grid.x + np.sin(angle) * grid.y
    return np.clip(0.5 + 0.5 * ramp, 0, 1)


def waves(grid: Grid, angle: float, frequency: float, phase: float) -> Array:
    """Bands in [-1, 1] with soft edges, ``frequency`` of them per half side."""
    ramp = np.cos(angle) * grid.x + np.sin(angle) * grid.y
    bands: Array = np.tanh(2.5 * np.sin(np.pi * frequency * ramp + phase))
    return bands


def stripes(grid: Grid, random: Random) -> Array:
    """Soft-edged parallel bands."""
    return 0.5 + 0.5 * waves(grid, random.uniform(0, np.pi), random.uniform(3, 7), random.uniform(0, 6.28))


def checker(grid: Grid, random: Random) -> Array:
    """A soft-edged chessboard."""
    angle, frequency = random.uniform(0, np.pi), random.uniform(2.5, 5)
    return 0.5 + 0.5 * waves(grid, angle, frequency, 0) * waves(grid, angle + np.pi / 2, frequency, 0)


def smoothed_noise(grid: Grid, random: Random, cells: int) -> Array:
    """Random values on a lattice of ``cells`` x ``cells``, joined smoothly (value noise)."""
    lattice = random.uniform(0, 1, (cells + 2, cells + 2))
    column, row = (np.clip((axis + 1) / 2, 0, 1) * cells for axis in grid)
    left, top = (np.floor(axis).astype(int) for axis in (column, row))
    across, down = ((3 - 2 * part) * part**2 for part in (column - left, row - top))
    upper = lattice[top, left] * (1 - across) + lattice[top, left + 1] * across
    lower = lattice[top + 1, left] * (1 - across) + lattice[top + 1, left + 1] * across
    blend: Array = upper * (1 - down) + lower * down
    return blend


def noise(grid: Grid, random: Random) -> Array:
    """Clouds: two octaves of smooth noise."""
    return 0.65 * smoothed_noise(grid, random, 4) + 0.35 * smoothed_noise(grid, random, 11)


def blobs(grid: Grid, random: Random) -> Array:
    """Rounded islands of one colour in the other."""
    islands: Array = np.tanh(9 * (smoothed_noise(grid, random, 6) - 0.5))
    return 0.5 + 0.5 * islands


TEXTURES: tuple[Callable[[Grid, Random], Array], ...] = (plain, gradient, stripes, checker, noise, blobs)


# Colours and paint.


def colour(random: Random, saturation: tuple[float, float], value: tuple[float, float]) -> Array:
    """Draw one RGB colour (3,) of a random hue, by the closed form of HSV."""
    hue, saturated, bright = random.uniform(0, 6), random.uniform(*saturation), random.uniform(*value)
    wheel = (np.array([5.0, 3.0, 1.0]) + hue) % 6
    shade: Array = bright * (1 - saturated * np.clip(np.minimum(wheel, 4 - wheel), 0, 1))
    return shade


def textured(grid: Grid, random: Random, dark: Array, light: Array) -> Array:
    """Mix two colours by a random texture into an image (H, W, 3)."""
    field = TEXTURES[random.integers(len(TEXTURES))](grid, random)[..., None]
    return dark * (1 - field) + light * field


def ground(grid: Grid, random: Random) -> Array:
    """Paint a muted background (H, W, 3) from two related colours."""
    return textured(
        grid, random, colour(random, (0.05, 0.5), (0.15, 0.6)), colour(random, (0.05, 0.5), (0.4, 0.9))
    )


def standing_out(random: Random, behind: Array) -> Array:
    """Draw a strong colour: of several candidates, the one farthest from the colour ``behind`` it."""
    candidates = [colour(random, (0.55, 1.0), (0.35, 1.0)) for _ in range(COLOUR_CANDIDATES)]
    return max(candidates, key=lambda candidate: float(np.abs(candidate - behind).sum()))


def paint(random: Random, grid: Grid, behind: Array) -> Array:
    """Paint an object's surface (H, W, 3): a strong colour, textured with a paler or darker one."""
    strong = standing_out(random, behind)
    other = strong * random.uniform(0.45, 0.7) if strong.mean() > 0.5 else strong + (1 - strong) * 0.55
    return textured(grid, random, strong, 0.35 * strong + 0.65 * other)


# The scene.


def coverage(distance: Array, pixel: float) -> Array:
    """Share of each pixel in [0, 1] that lies inside an outline, from the distance at its centre."""
    return np.clip(0.5 - distance / pixel, 0, 1)


def segment(grid: Grid) -> Array:
    """Signed distance to a thin rod with round ends."""
    return np.hypot(np.maximum(np.abs(grid.x) - 0.85, 0), grid.y) - 0.12


def chevron(grid: Grid) -> Array:
    """Signed distance to a thin open angle, which belongs to no class."""
    folded = Grid(grid.x, np.abs(grid.y))
    return segment(Grid(*folded.placed(0, 0.4, 0.62, np.pi / 4)))


CLUTTER: tuple[tuple[Callable[[Grid], Array], tuple[float, float]], ...] = (
    (disc, (0.03, 0.07)),
    (segment, (0.12, 0.35)),
    (chevron, (0.12, 0.24)),
)
"""The outlines of distractors and their radii: nothing here can be taken for a small object of a class."""


def clutter(grid: Grid, random: Random) -> tuple[Array, Array]:
    """Draw one distractor: its coverage (H, W) and its colour (3,)."""
    outline, radii = CLUTTER[random.integers(len(CLUTTER))]
    radius = random.uniform(*radii)
    place = random.uniform(-1, 1, 2)
    seen = grid.placed(place[0], place[1], radius, random.uniform(0, 2 * np.pi))
    return coverage(outline(seen) * radius, pixel_width(grid)), colour(random, (0.1, 0.9), (0.1, 1.0))


def pixel_width(grid: Grid) -> float:
    """Return the side of one pixel in units of half the image side."""
    return 2 / len(grid.x)


def over(image: Array, share: Array, surface: Array) -> Array:
    """Lay a surface over an image where ``share`` (H, W) of each pixel is covered."""
    return image + share[..., None] * (surface - image)


def scene(random: Random, label: int, size: int) -> tuple[Array, NDArray[np.bool_]]:
    """Draw one image (H, W, 3) in [0, 1] and the mask (H, W) of its object's visible pixels.

    Some distractors lie behind the object and at most two before it; what they hide is not in the mask.
    """
    grid = Grid.of_size(size)
    image = ground(grid, random)
    for _ in range(random.integers(3, 8)):
        image = over(image, *clutter(grid, random))
    radius = random.uniform(*RADII)
    x, y = random.uniform(radius - 1, 1 - radius, 2)
    seen = grid.placed(x, y, radius, random.uniform(0, 2 * np.pi))
    visible = coverage(OUTLINES[SHAPE_NAMES[label]](seen) * radius, pixel_width(grid))
    image = over(image, visible, paint(random, seen, behind=image[visible > 0].mean(axis=0)))
    for _ in range(random.integers(0, 3)):
        share, shade = clutter(grid, random)
        image, visible = over(image, share, shade), visible * (1 - share)
    image = image + random.normal(0, GRAIN, image.shape)
    return np.clip(image, BLACKEST, WHITEST), visible > 0.5


class ShapesDataset(Dataset[tuple[Tensor, int, Tensor]]):
    """Images of one shape each among distractors, drawn anew and always alike from (seed, index).

    An item is ``(image, label, mask)``: the image (3, size, size) float32 in [0, 1], the label an index
    into :data:`SHAPE_NAMES` (``index % 8``, so that classes are balanced), and the mask (size, size) bool,
    True where more than half of the pixel's colour is the object's.

    Args:
        count: how many images, at least 1.
        size: side in pixels, at least 16.
        seed: which series of images, at least 0; two seeds share no image.

    Raises:
        InvalidParameter: a count, size or seed out of its range.
    """

    def __init__(self, count: int, size: int = 64, seed: int = 0) -> None:
        for name, value, least in (("count", count, 1), ("size", size, 16), ("seed", seed, 0)):
            if value < least:
                raise InvalidParameter(f"ShapesDataset: {name}={value}; it must be at least {least}")
        self.count = count
        self.size = size
        self.seed = seed
        self.classes = SHAPE_NAMES

    def __repr__(self) -> str:
        return f"ShapesDataset(count={self.count}, size={self.size}, seed={self.seed})"

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int) -> tuple[Tensor, int, Tensor]:
        if not 0 <= index < self.count:  # also what ends a plain `for` loop over the data set
            raise IndexError(f"image {index} of {self.count} shapes")
        label = index % len(SHAPE_NAMES)
        image, mask = scene(np.random.default_rng([self.seed, index]), label, self.size)
        bytes_ = torch.from_numpy(np.rint(image * 255).astype(np.uint8))  # as a picture file would hold it
        return bytes_.permute(2, 0, 1).contiguous() / 255, label, torch.from_numpy(mask)
