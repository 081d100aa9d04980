"""Ranks, degraded images and the area under the curve, against counts and sums worked out by hand."""

import math

import numpy as np
import pytest
import torch

from pellucid.data.labeled import LabeledImages
from pellucid.errors import InvalidData, InvalidMap, InvalidParameter, OutputNotWritable
from pellucid.training.criteria import Kar, Roar
from pellucid.training.degradation import (
    Degradation,
    DegradedImages,
    open_ranks,
    random_ranks,
    removal_auc,
    salience_ranks,
    write_ranks,
)

TENTHS = [0.1, 0.3, 0.5, 0.7, 0.9]


def maps_of(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


# Counts.


def test_1024_distinct_values_lose_what_the_rectgrad_code_takes():  # facts: C25
    assert [Degradation(p).replaced(1024) for p in TENTHS] == [103, 307, 512, 717, 921]
    assert [Degradation(p, "kar").replaced(1024) for p in TENTHS] == [921, 717, 512, 307, 103]


@pytest.mark.parametrize("count", [11, 784, 1024, 3072])
@pytest.mark.parametrize("fraction", [0.0, 0.05, 0.1, 0.2, 0.3, 0.5, 0.7, 0.9, 1.0])
@pytest.mark.parametrize("how", ["roar", "kar"])
def test_what_is_replaced_lies_beyond_the_percentile(count, fraction, how):
    """The released rule itself: numpy's linear percentile, and a strict comparison."""
    values = np.arange(count)[::-1].copy()
    threshold = np.percentile(values, 100 * (1 - fraction))
    expected = (values > threshold + 1e-9) if how == "roar" else (values < threshold - 1e-9)
    assert Degradation(fraction, how).replaced(count) == expected.sum()


def test_hooker_s_count_is_the_whole_part_of_the_share():
    for p in TENTHS:
        removed = Degradation(p, counting="floor").replaced(3072)
        assert removed == 3072 * round(10 * p) // 10
        assert Degradation(p, "kar", counting="floor").replaced(3072) == 3072 - removed
    assert Degradation(0.3, counting="floor").replaced(10) == 3  # 0.3 * 10 is less than 3 in floats


# Ranks.


def test_ranks_are_places_in_falling_order():
    maps = torch.tensor([[[3.0, -1.0], [7.0, 0.5]]])
    assert salience_ranks(maps, [0]).tolist() == [[[1, 3], [0, 2]]]


@pytest.mark.parametrize("shape", [(3, 8, 8), (3, 3, 4, 4)])
def test_distinct_values_leave_nothing_to_the_tie_rule(shape):
    maps = maps_of(*shape)
    ranks = salience_ranks(maps, range(3))
    assert ranks.shape == maps.shape
    for values, places in zip(maps.flatten(1), ranks.flatten(1), strict=True):
        order = sorted(range(len(values)), key=lambda i, values=values: -values[i])
        assert [int(places[i]) for i in order] == list(range(len(order)))


def test_ties_are_broken_at_random_within_equal_values_alone():
    maps = torch.tensor([0.0, 1.0]).repeat_interleave(50).repeat(2, 1).view(2, 10, 10)
    ranks = salience_ranks(maps, [4, 5], seed=1).flatten(1)
    for row in ranks:
        assert sorted(row[50:].tolist()) == list(range(50))
        assert sorted(row[:50].tolist()) == list(range(50, 100))
        assert row[:50].tolist() != list(range(50, 100))
    assert not torch.equal(ranks[0], ranks[1])
    assert torch.equal(ranks[1], salience_ranks(maps[:1], [5], seed=1).flatten())  # the position decides, no batch


def test_a_map_of_nan_is_named():
    maps = torch.ones(3, 4, 4)
    maps[1, 0, 0] = math.nan
    with pytest.raises(InvalidMap, match="image 17 "):
        salience_ranks(maps, [16, 17, 18])


def test_random_ranks_are_permutations_by_seed_and_position():
    ranks = random_ranks((6, 6), [3, 9], seed=2)
    assert all(sorted(row.tolist()) == list(range(36)) for row in ranks.flatten(1))
    assert torch.equal(ranks[1], random_ranks((6, 6), [9], seed=2)[0])
    assert not torch.equal(ranks[1], random_ranks((6, 6), [9], seed=3)[0])
    state = torch.get_rng_state()
    random_ranks((6, 6), [1])
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("shape", [(4, 5), (3, 4, 5), (200, 200), (300, 300)])  # 40 000 values need the sign's bit
def test_ranks_come_back_from_a_file(tmp_path, shape):
    ranks = salience_ranks(maps_of(3, *shape), range(3))
    write_ranks(tmp_path / "ranks.npy", [ranks[:2], ranks[2:]], 3)
    images = LabeledImages.of(torch.zeros(3, 3, *shape[-2:], dtype=torch.uint8), torch.zeros(3).long())
    found = DegradedImages(images, open_ranks(tmp_path / "ranks.npy"), Degradation(0.3), torch.ones(3))
    gone = torch.cat([found.batch(torch.tensor([i]))[0] for i in range(3)]) == 1
    expected = (ranks < Degradation(0.3).replaced(math.prod(shape))).view(3, -1, *shape[-2:]).expand_as(gone)
    assert torch.equal(gone, expected)
    assert [file.name for file in tmp_path.iterdir()] == ["ranks.npy"]
    bytes_ = 2 if math.prod(shape) <= 65536 else 4
    assert (tmp_path / "ranks.npy").stat().st_size - 128 == 3 * math.prod(shape) * bytes_


def test_broken_ranks_are_refused_and_leave_nothing(tmp_path):
    ranks = random_ranks((4, 4), range(3))
    for parts, count in (([ranks], 4), ([ranks, ranks[:, :2]], 6), ([ranks], 2)):
        with pytest.raises(InvalidData):
            write_ranks(tmp_path / "ranks.npy", parts, count)
    with pytest.raises(OutputNotWritable, match="nowhere"):
        write_ranks(tmp_path / "nowhere" / "ranks.npy", [ranks], 3)
    assert list(tmp_path.iterdir()) == []
    write_ranks(tmp_path / "ranks.npy", [ranks], 3)
    (tmp_path / "ranks.npy").write_bytes((tmp_path / "ranks.npy").read_bytes()[:-1])
    np.save(tmp_path / "maps.npy", np.zeros((3, 4, 4)))
    for name in ("ranks.npy", "maps.npy", "missing.npy"):
        with pytest.raises(InvalidData, match=name):
            open_ranks(tmp_path / name)


# Degraded images.


def bytes_of(count, size=8, seed=0):
    draw = torch.Generator().manual_seed(seed)
    return torch.randint(256, (count, 3, size, size), dtype=torch.uint8, generator=draw)


@pytest.mark.parametrize("how", ["roar", "kar"])
@pytest.mark.parametrize("replacement", ["dataset_mean", "image_mean", "mask"])
@pytest.mark.parametrize("per_channel", [False, True])
def test_every_pixel_is_kept_or_replaced_as_a_loop_would(how, replacement, per_channel):
    images = bytes_of(2, size=4)
    maps = maps_of(2, 3, 4, 4) if per_channel else maps_of(2, 4, 4)
    mean = torch.tensor([0.25, 0.5, 0.75])
    degradation = Degradation(0.3, how, replacement)
    found = degradation(images, salience_ranks(maps, [0, 1]), [0, 1], mean)
    for b in range(2):
        threshold = np.percentile(maps[b].numpy(), 70)
        for c in range(3):
            own = float(images[b, c].double().mean()) / 255
            for y in range(4):
                for x in range(4):
                    value = float(maps[b, c, y, x] if per_channel else maps[b, y, x])
                    gone = value > threshold if how == "roar" else value < threshold
                    other = {"dataset_mean": float(mean[c]), "image_mean": own, "mask": 0}[replacement]
                    left = 1 if replacement == "mask" else int(images[b, c, y, x]) / 255
                    expected = other if gone else left
                    assert float(found[b, c, y, x]) == pytest.approx(expected, abs=1e-7)


def test_roar_and_kar_split_the_image_where_the_percentile_falls_between_two_values():
    images, ranks = bytes_of(2, size=32), random_ranks((32, 32), [0, 1])
    mean = torch.full((3,), -1.0)
    removed = Degradation(0.3)(images, ranks, [0, 1], mean) == -1
    kept = Degradation(0.3, "kar")(images, ranks, [0, 1], mean) != -1
    assert torch.equal(removed, kept)


def test_random_values_follow_seed_and_position_and_leave_the_global_state():
    images, ranks = bytes_of(3), random_ranks((8, 8), range(3))
    degradation = Degradation(1.0, replacement="random", counting="floor", seed=4)
    state = torch.get_rng_state()
    found = degradation(images, ranks, [0, 1, 2])
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(found[2:], degradation(images[:1], ranks[:1], [2]))
    assert len(found.unique()) > 0.99 * found.numel()
    assert 0 <= found.min() < 0.05
    assert 0.95 < found.max() < 1


def test_a_degraded_set_reads_the_ranks_of_its_own_rows():
    images = LabeledImages.of(bytes_of(6), torch.tensor([0, 1, 0, 1, 0, 1]))
    part = images.subset(torch.tensor([4, 1]))
    ranks = random_ranks((8, 8), range(6))
    whole = DegradedImages(images, ranks, Degradation(0.5), images.mean)
    few = DegradedImages(part, ranks, Degradation(0.5), images.mean)
    assert torch.equal(few.batch(torch.tensor([0, 1]))[0], whole.batch(torch.tensor([4, 1]))[0])
    assert few.labels.tolist() == [0, 1]
    assert torch.equal(few[1][0], whole[1][0])
    assert torch.equal(images.pixels, bytes_of(6))  # the data stay as they are


def test_sets_of_other_content_have_other_fingerprints():
    images = LabeledImages.of(bytes_of(4), torch.tensor([0, 1, 0, 1]))
    ranks = random_ranks((8, 8), range(4))
    sets = [
        images,
        images.subset(torch.tensor([1, 0, 2, 3])),
        LabeledImages.of(bytes_of(4), torch.tensor([1, 1, 0, 1])),
        DegradedImages(images, ranks, Degradation(0.5), images.mean),
        DegradedImages(images, ranks, Degradation(0.4), images.mean),
        DegradedImages(images, ranks.flip(0), Degradation(0.5), images.mean),
        DegradedImages(images, ranks, Degradation(0.5), images.mean / 2),
    ]
    assert len({one.fingerprint for one in sets}) == len(sets)
    assert images.subset(torch.arange(4)).fingerprint == images.fingerprint


def test_the_data_set_s_mean_is_that_of_its_rows():
    images = LabeledImages.of(bytes_of(5), torch.zeros(5).long())
    expected = images.pixels[[1, 3]].double().mean((0, 2, 3)) / 255
    assert torch.allclose(images.subset(torch.tensor([1, 3])).mean, expected, rtol=0, atol=1e-15)


@pytest.mark.parametrize(
    "settings",
    [{"fraction": 1.1}, {"fraction": -0.1}, {"how": "raor"}, {"replacement": "zero"}, {"counting": "ceil"}],
)
def test_settings_out_of_range_are_refused(settings):
    with pytest.raises(InvalidParameter, match=next(iter(settings))):
        Degradation(**{"fraction": 0.5} | settings)


def test_what_does_not_fit_is_refused():
    images = bytes_of(2)
    with pytest.raises(InvalidData, match="do not fit"):
        Degradation(0.5)(images, random_ranks((4, 4), [0, 1]), [0, 1], torch.zeros(3))
    with pytest.raises(InvalidParameter, match="mean"):
        Degradation(0.5)(images, random_ranks((8, 8), [0, 1]), [0, 1])
    with pytest.raises(InvalidData, match="rank every image"):
        DegradedImages(
            LabeledImages.of(images, torch.zeros(2).long()), random_ranks((8, 8), [0]), Degradation(0.5)
        )


# The curve.


def test_areas_worked_out_by_hand():
    assert removal_auc([0.5], [0.4], clean=0.8, chance=0.1) == pytest.approx(0.5 * 0.6 + 0.5 * 0.25, abs=1e-15)
    assert removal_auc([0.5], [0.4], 0.8, 0.1, how="kar") == pytest.approx(0.5 * 0.25 + 0.5 * 0.6, abs=1e-15)
    assert removal_auc([0.25], [0.4], 0.8, 0.1) == pytest.approx(0.25 * 0.6 + 0.75 * 0.25, abs=1e-15)
    assert removal_auc([0.25], [0.4], 0.8, 0.1, how="kar") == pytest.approx(0.25 * 0.25 + 0.75 * 0.6, abs=1e-15)


def test_a_straight_line_has_the_area_of_its_middle():
    line = [0.7 - 0.6 * p for p in TENTHS]
    assert removal_auc(TENTHS, line, 0.7, 0.1) == pytest.approx(0.4, abs=1e-15)


def test_a_map_that_knows_nothing_scores_the_same_on_both():
    """Removing p at random is keeping 1 - p: AUC + AOC = 1, as in the Random row of RectGrad's Table 1."""
    removed = [0.7, 0.66, 0.6, 0.5, 0.3]
    auc, aoc = Roar().area(TENTHS, removed, 0.75, 0.1), Kar().area(TENTHS, removed[::-1], 0.75, 0.1)
    assert auc + aoc == pytest.approx(1, abs=1e-15)


@pytest.mark.parametrize(
    ("fractions", "accuracies"),
    [([0.1, 0.1], [0.5, 0.5]), ([0.5, 0.1], [0.5, 0.5]), ([0.1, 0.5], [0.5]), ([0.0, 0.5], [0.5, 0.5])],
)
def test_curves_that_have_no_area_are_refused(fractions, accuracies):
    with pytest.raises(InvalidParameter, match="removal_auc"):
        removal_auc(fractions, accuracies, 0.9, 0.1)
