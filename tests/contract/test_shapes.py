"""Procedural images: always alike, exactly masked, and the outlines they are drawn from."""

import numpy as np
import pytest
import torch

from pellucid.data import shapes
from pellucid.data.shapes import OUTLINES, SHAPE_NAMES, Grid, ShapesDataset
from pellucid.errors import InvalidParameter


def test_an_item_is_an_image_a_label_and_a_mask():
    image, label, mask = ShapesDataset(16, size=48)[11]
    assert (image.shape, image.dtype) == ((3, 48, 48), torch.float32)
    assert (mask.shape, mask.dtype) == ((48, 48), torch.bool)
    assert label == 3
    assert 0 <= image.min() < image.max() <= 1


def test_pixels_are_what_a_picture_file_would_hold():
    levels = ShapesDataset(1)[0][0] * 255
    assert torch.equal(levels, levels.round())


def test_an_image_depends_on_seed_and_index_alone():
    first, again = ShapesDataset(9, seed=3), ShapesDataset(1000, seed=3)
    np.random.seed(0)  # noqa: NPY002 - the global state must not matter
    assert torch.equal(first[5][0], again[5][0])
    assert torch.equal(first[5][2], again[5][2])
    assert not torch.equal(first[5][0], ShapesDataset(9, seed=4)[5][0])
    assert not torch.equal(first[0][0], first[8][0])


def test_classes_are_balanced():
    labels = [ShapesDataset(24)[index][1] for index in range(24)]
    assert labels == list(range(8)) * 3
    assert SHAPE_NAMES == ("circle", "square", "triangle", "star", "ring", "cross", "crescent", "hexagon")


def test_a_plain_loop_ends():
    assert len(list(ShapesDataset(3, size=16))) == 3
    with pytest.raises(IndexError):
        ShapesDataset(3)[3]


@pytest.mark.parametrize("settings", [{"count": 0}, {"count": 1, "size": 8}, {"count": 1, "seed": -1}])
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(InvalidParameter, match="must be at least"):
        ShapesDataset(**settings)


AREAS = {  # closed forms, of outlines of unit radius
    "circle": np.pi * 0.92**2,
    "square": 2.0,
    "triangle": 3 * np.sqrt(3) / 4,
    "star": 5 * 0.45 * np.sin(np.pi / 5),
    "ring": np.pi * (0.95**2 - 0.55**2),
    "cross": 4 * 0.3 * (2 * 0.98 - 0.3),
    "hexagon": 3 * np.sqrt(3) / 2,
}


@pytest.mark.parametrize("name", AREAS)
def test_an_outline_covers_its_area(name):
    grid = Grid.of_size(400).placed(0, 0, 0.9, 0.3)
    covered = shapes.coverage(OUTLINES[name](grid) * 0.9, 2 / 400)
    assert covered.mean() * 4 == pytest.approx(AREAS[name] * 0.81, rel=2e-3)


def test_a_crescent_is_a_disc_less_the_disc_that_bites_it():
    x, y = grid = Grid.of_size(64)
    inside = (np.hypot(x, y) < 0.98) & ~(np.hypot(x - 0.48, y) < 0.78)
    assert np.array_equal(OUTLINES["crescent"](grid) < 0, inside)


def test_a_polygon_s_distance_is_euclidean_outside_and_negative_inside():
    square = np.array([(-0.5, -0.5), (0.5, -0.5), (0.5, 0.5), (-0.5, 0.5)])
    points = Grid(np.array([[0.0, 0.9, 0.8, 0.25]]), np.array([[0.0, 0.0, 0.9, -0.5]]))
    assert shapes.polygon(points, square) == pytest.approx(np.array([[-0.5, 0.4, 0.5, 0.0]]))


def test_half_a_pixel_on_an_edge_is_half_covered():
    assert shapes.coverage(np.array([-1.0, -0.05, 0.0, 0.025, 0.05, 1.0]), 0.1) == pytest.approx(
        np.array([1, 1, 0.5, 0.25, 0, 0])
    )


def test_the_mask_is_the_visible_object(monkeypatch):
    """Painted pure white over black without grain, the object is exactly what the mask says."""
    monkeypatch.setattr(shapes, "GRAIN", 0)
    monkeypatch.setattr(shapes, "_ground", lambda grid, random: np.zeros((*grid.x.shape, 3)))
    monkeypatch.setattr(shapes, "_painted", lambda grid, random, behind: np.ones((*grid.x.shape, 3)))
    monkeypatch.setattr(shapes, "color", lambda *ranges: np.zeros(3))
    for index in range(32):
        image, _, mask = ShapesDataset(32)[index]
        assert torch.equal(image[0] > 0.5, mask)
        assert 0.02 < mask.float().mean() < 0.32


def test_colors_follow_the_definition_of_hsv():
    import colorsys

    for seed in range(20):
        random = np.random.default_rng(seed)
        hue, saturation, value = random.uniform(0, 6), random.uniform(0.2, 0.9), random.uniform(0.3, 1.0)
        drawn = shapes.color(np.random.default_rng(seed), (0.2, 0.9), (0.3, 1.0))
        assert drawn == pytest.approx(np.array(colorsys.hsv_to_rgb(hue / 6, saturation, value)))
