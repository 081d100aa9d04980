"""Localization by hand: small maps and objects with exact fractions, and a loop over pixels as the oracle."""

import math

import pytest
import torch
from torch import Tensor, nn

import pellucid as pl
from pellucid.errors import InvalidData, InvalidParameter
from pellucid.metrics.base import Case, Metric
from pellucid.metrics.localization import (
    BackgroundMass,
    EnergyOutside,
    MassOutside,
    PatchMass,
    PointingGame,
    box_mask,
    object_masks,
)
from pellucid.metrics.scoring import Scorer

# One row is one map of 2x3 pixels; the object is the right column.
MAP = torch.tensor([[1.0, -2.0, 3.0], [0.0, 2.0, -4.0]], dtype=torch.float64)
OBJECT = torch.tensor([[False, False, True], [False, False, True]])


def case(maps: Tensor, **settings) -> Case:
    """Maps (B, H, W) as attributions of one channel at the input."""
    return of_attribution(maps[:, None], maps.shape[-2:], **settings)


def of_attribution(attribution: Tensor, size, **settings) -> Case:
    images = torch.zeros(len(attribution), 3, *size, dtype=torch.float64)
    targets = torch.zeros(len(images), dtype=torch.long)
    attributions = pl.Attributions({"layer": attribution}, targets)
    model = nn.Identity()
    return Case(pl.Gradient(), model, images, attributions, Scorer(model), targets, **settings)


def graded(metric: Metric, graded_case: Case) -> list[float]:
    return metric.measure(graded_case)["layer"].values.tolist()


def test_shares_by_hand() -> None:
    """sum |m| = 12 of which 5 lie outside; sum m^2 = 34 of which 9 do."""
    one = case(MAP[None], masks=OBJECT[None])
    assert graded(MassOutside(), one) == pytest.approx([5 / 12], rel=1e-15)
    assert graded(EnergyOutside(), one) == pytest.approx([9 / 34], rel=1e-15)
    assert graded(BackgroundMass(clip=None), one) == [5.0]


@pytest.mark.parametrize(
    ("top", "mass", "energy"),
    [(1 / 6, 0, 0), (1 / 3, 0, 0), (0.5, 4 / 11, 8 / 33), (0.8, 5 / 12, 9 / 34), (1, 5 / 12, 9 / 34)],
)
def test_the_brightest_pixels_alone_by_hand(top: float, mass: float, energy: float) -> None:
    """|m| in falling order: 4 and 3 on the object, 2 and 2 outside, of which one does not go without the other."""
    one = case(MAP[None], masks=OBJECT[None])
    assert graded(MassOutside(top=top), one) == pytest.approx([mass], rel=1e-15)
    assert graded(EnergyOutside(top=top), one) == pytest.approx([energy], rel=1e-15)


@pytest.mark.parametrize("top", [0, -0.1, 1.1, math.nan])
def test_a_share_of_the_brightest_pixels_out_of_range_is_refused(top: float) -> None:
    with pytest.raises(pl.errors.InvalidParameter, match="give a share of the pixels above 0 and at most 1"):
        MassOutside(top=top)


def test_shares_do_not_depend_on_the_scale_even_where_squares_underflow() -> None:
    tiny = case((MAP * 1e-30).float()[None], masks=OBJECT[None])
    assert graded(EnergyOutside(), tiny) == pytest.approx([9 / 34], rel=1e-6)
    assert graded(MassOutside(), tiny) == pytest.approx([5 / 12], rel=1e-6)


def test_a_map_on_the_object_alone_has_nothing_outside_and_one_beside_it_everything() -> None:
    maps = torch.stack([OBJECT.double(), (~OBJECT).double(), torch.ones(2, 3, dtype=torch.float64)])
    three = case(maps, masks=OBJECT.expand(3, 2, 3))
    assert graded(MassOutside(), three) == pytest.approx([0, 1, 4 / 6], rel=1e-15)
    assert graded(EnergyOutside(), three) == pytest.approx([0, 1, 4 / 6], rel=1e-15)


def test_random_maps_are_at_chance() -> None:
    """Independent of the object, the expected share outside is the background's."""
    maps = torch.randn(2000, 8, 8, dtype=torch.float64)
    masks = torch.zeros(2000, 8, 8, dtype=torch.bool)
    masks[:, 2:6, 2:4] = True  # 8 of 64 pixels
    many = case(maps, masks=masks)
    for metric, expected in ((MassOutside(), 7 / 8), (EnergyOutside(), 7 / 8), (PointingGame(), 1 / 8)):
        values = torch.tensor(graded(metric, many))
        error = float(values.std()) / math.sqrt(len(values))
        assert abs(float(values.mean()) - expected) < 4 * error


def test_agrees_with_a_loop_over_pixels() -> None:
    maps, masks = torch.randn(4, 5, 7, dtype=torch.float64), torch.rand(4, 5, 7) < 0.4
    several = case(maps, masks=masks)
    expected = {"mass": [], "energy": [], "sum": [], "hit": []}
    for values, inside in zip(maps.tolist(), masks.tolist(), strict=True):
        pixels = [
            (v, i) for row, where in zip(values, inside, strict=True) for v, i in zip(row, where, strict=True)
        ]
        expected["mass"].append(sum(abs(v) for v, i in pixels if not i) / sum(abs(v) for v, _ in pixels))
        expected["energy"].append(sum(v * v for v, i in pixels if not i) / sum(v * v for v, _ in pixels))
        expected["sum"].append(sum(abs(v) for v, i in pixels if not i))
        expected["hit"].append(float(max(pixels)[1]))
    assert graded(MassOutside(), several) == pytest.approx(expected["mass"], rel=1e-12)
    assert graded(EnergyOutside(), several) == pytest.approx(expected["energy"], rel=1e-12)
    assert graded(BackgroundMass(clip=None), several) == pytest.approx(expected["sum"], rel=1e-12)
    assert graded(PointingGame(), several) == expected["hit"]


def test_pointing_game_follows_the_sign_it_is_told_to() -> None:
    """The maximum is 3, on the object; that of |m| is -4, there too; of -m it is 4 there, then 2 beside it."""
    one = case(torch.stack([MAP, -MAP, MAP.clamp(-3, 2.5)]), masks=OBJECT.expand(3, 2, 3))
    assert graded(PointingGame(), one) == [1.0, 1.0, 1.0]
    beside = MAP.clone()
    beside[0, 2], beside[1, 2] = 0.0, -4.0
    one = case(beside[None], masks=OBJECT[None])
    assert graded(PointingGame(), one) == [0.0]
    assert graded(PointingGame(absolute=True), one) == [1.0]


def test_tied_maxima_count_by_their_share() -> None:
    tied = torch.tensor([[1.0, 0.0, 1.0], [0.0, 1.0, 0.0]], dtype=torch.float64)
    assert graded(PointingGame(), case(tied[None], masks=OBJECT[None])) == pytest.approx([1 / 3], rel=1e-15)
    upsampled = of_attribution(
        torch.tensor([[[[0.0, 1.0]]]], dtype=torch.float64),
        (4, 4),
        masks=torch.tensor([[False, False, False, True]]).expand(4, 4)[None],
    )
    assert graded(PointingGame(), upsampled) == [0.5]  # the cell of columns 2 and 3, half of it on the object


@pytest.mark.parametrize(("tolerance", "hit"), [(0, 0), (2, 0), (2.8, 0), (2.9, 1), (3, 1), (15, 1)])
def test_tolerance_is_a_distance_in_pixels(tolerance: float, hit: float) -> None:
    """The maximum lies two rows and two columns from the object: sqrt(8) = 2.83 pixels."""
    maps, masks = torch.zeros(1, 5, 5, dtype=torch.float64), torch.zeros(1, 5, 5, dtype=torch.bool)
    maps[0, 1, 1], masks[0, 3, 3] = 1.0, True
    assert graded(PointingGame(tolerance=tolerance), case(maps, masks=masks)) == [hit]


def test_maps_without_a_value_are_nan_and_leave_others_alone() -> None:
    maps = torch.stack([torch.zeros_like(MAP), torch.full_like(MAP, 2.0), MAP])
    three = case(maps, masks=OBJECT.expand(3, 2, 3))
    for metric in (MassOutside(), EnergyOutside()):
        values = graded(metric, three)
        assert math.isnan(values[0])
        assert values[1] == pytest.approx(4 / 6, rel=1e-15)
        assert metric.undefined
    pointing = graded(PointingGame(), three)
    assert [math.isnan(value) for value in pointing] == [True, True, False]
    share = graded(PatchMass(size=1, mass="share", clip=None), three)
    assert math.isnan(share[0])
    assert share[1:] == pytest.approx([1 / 6, 1 / 12], rel=1e-15)


def test_patch_mass_by_hand() -> None:
    """The patch of 2x2 pixels at (1, 0) holds -2, 3, 2, -4 of a map of mass 12."""
    one = case(MAP[None])
    patch = {"x0": 1, "y0": 0, "size": 2, "clip": None}
    assert graded(PatchMass(**patch), one) == [-1.0]
    assert graded(PatchMass(**patch, mass="absolute"), one) == [11.0]
    assert graded(PatchMass(**patch, mass="share"), one) == pytest.approx([11 / 12], rel=1e-15)
    assert graded(PatchMass(x0=0, y0=1, size=1, clip=None), one) == [0.0]


def test_rectgrads_post_processing_comes_before_the_sum() -> None:
    """Of 1..9 the 50th percentile is 5: 1 to 4 become 0 (C24). Channels are summed, or thresholded first."""
    grid = torch.arange(1.0, 10, dtype=torch.float64).view(1, 1, 3, 3)
    two = of_attribution(torch.cat([grid, -10 * (grid < 3)], 1), (3, 3))
    corner = {"size": 2}  # 1, 2, 4, 5 in the first channel; -10, -10, 0, 0 in the second
    assert graded(PatchMass(**corner, clip=None), two) == [-8.0]
    assert graded(PatchMass(**corner, clip=None, channels="positive_sum"), two) == [12.0]
    assert graded(PatchMass(**corner, clip=(50, 100)), of_attribution(grid, (3, 3))) == [5.0]
    assert graded(PatchMass(**corner), of_attribution(grid, (3, 3))) == [0.0]  # 95 %: only the 9 is left
    masks = torch.zeros(1, 3, 3, dtype=torch.bool)
    masks[0, 2, 2] = True
    assert graded(BackgroundMass(clip=(50, 100)), of_attribution(grid, (3, 3), masks=masks)) == [26.0]


def test_a_pixel_belongs_to_a_box_if_its_centre_does() -> None:
    assert box_mask([(1, 0, 3, 2)], (3, 4)).tolist() == [
        [False, True, True, False],
        [False, True, True, False],
        [False, False, False, False],
    ]
    assert box_mask([(0.5, 0.5, 1.5, 1.5)], (3, 4)).nonzero().tolist() == [[0, 0]]
    assert box_mask([(0.51, 0.4, 1.51, 1.6)], (3, 4)).nonzero().tolist() == [[0, 1], [1, 1]]
    union = box_mask([(0, 0, 2, 1), (1, 0, 3, 1)], (2, 4))
    assert union.tolist() == [[True, True, True, False], [False] * 4]
    assert box_mask([(-0.4, -0.4, 4.4, 3.4)], (3, 4)).all()  # rounding may overshoot


def test_boxes_lie_in_the_same_place_whatever_torchs_default_type() -> None:
    torch.set_default_dtype(torch.bfloat16)  # which holds no half of a pixel from 128 on
    try:
        found = box_mask([(150, 200, 251, 303)], (400, 300))
    finally:
        torch.set_default_dtype(torch.float32)
    assert found.sum() == 101 * 103
    assert found[200:303, 150:251].all()


def test_boxes_stand_in_for_masks() -> None:
    boxed = case(MAP[None], boxes=[[(2.0, 0.0, 3.0, 2.0)]])
    assert object_masks(boxed).equal(OBJECT[None])
    assert graded(MassOutside(), boxed) == pytest.approx([5 / 12], rel=1e-15)
    both = case(MAP[None], boxes=[[(0.0, 0.0, 1.0, 1.0)]], masks=OBJECT[None])
    assert object_masks(both).equal(OBJECT[None])


def test_an_object_that_fills_its_image_leaves_nothing_to_measure() -> None:
    """Nothing can lie outside it: no value for that image, and the other image's own."""
    filled = case(MAP.expand(2, 2, 3), boxes=[[(0, 0, 3, 2)], [(2, 0, 3, 2)]])
    expected = {MassOutside: 5 / 12, EnergyOutside: 9 / 34, PointingGame: 1, BackgroundMass: 5}
    for kind, value in expected.items():
        metric = BackgroundMass(clip=None) if kind is BackgroundMass else kind()
        first, second = graded(metric, filled)
        assert math.isnan(first)
        assert second == pytest.approx(value, rel=1e-15)
        assert "the object fills the image" in metric.undefined


EMPTY = torch.zeros(2, 3, dtype=torch.bool)


@pytest.mark.parametrize(
    ("known", "message"),
    [
        ({}, "no masks and no boxes"),
        ({"masks": OBJECT.expand(2, 2, 3).mT}, "torch.bool of shape .2, 3, 2.*first: 'a.png'"),
        ({"masks": OBJECT[None]}, "shape .1, 2, 3., and the images 2 of 2x3"),
        ({"masks": OBJECT.expand(2, 2, 3).float()}, "float32.*give bool"),
        ({"masks": torch.stack([OBJECT, EMPTY])}, "'b.png' covers no pixel.*leave this image out"),
        ({"boxes": [[(0, 0, 1, 1)]]}, "boxes of 1 images for 2"),
        ({"boxes": [[(0, 0, 1, 1)], []]}, "'b.png' covers no pixel"),
        ({"boxes": [[(0, 0, 1, 1)], [(2, 0, 1, 1)]]}, r"box \(2, 0, 1, 1\) of 'b.png' is empty"),
        ({"boxes": [[(0, 1, 1, 1)], []]}, r"box \(0, 1, 1, 1\) of 'a.png' is empty"),
        ({"boxes": [[(0, 0, 1, 1)], [(0, 0, 4, 1)]]}, r"box \(0, 0, 4, 1\) of 'b.png' leaves the image of 3x2"),
        ({"boxes": [[(-1, 0, 1, 1)], []]}, r"box \(-1, 0, 1, 1\) of 'a.png' leaves the image of 3x2"),
        ({"boxes": [[(0, 0, float("nan"), 1)], []]}, "of 'a.png' is empty"),
    ],
)
def test_objects_that_do_not_fit_are_refused(known: dict, message: str) -> None:
    two = case(MAP.expand(2, 2, 3), names=("a.png", "b.png"), **known)
    for metric in (MassOutside(), EnergyOutside(), PointingGame(), BackgroundMass()):
        with pytest.raises(InvalidData, match=message):
            metric.measure(two)


@pytest.mark.parametrize(
    "settings", [{"x0": -1}, {"y0": 1.5}, {"size": 0}, {"mass": "both"}, {"channels": "max"}, {"clip": (99, 1)}]
)
def test_patches_that_make_no_sense_are_refused(settings: dict) -> None:
    with pytest.raises(InvalidParameter):
        PatchMass(**settings)


def test_a_patch_must_lie_in_the_image() -> None:
    with pytest.raises(InvalidParameter, match=r"the patch of 2 pixels at \(2, 0\) leaves the images of 3x2"):
        PatchMass(x0=2, size=2).measure(case(MAP[None]))


def test_a_negative_tolerance_is_refused() -> None:
    with pytest.raises(InvalidParameter, match="tolerance=-1"):
        PointingGame(tolerance=-1)
