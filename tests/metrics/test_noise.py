"""Raw total variation by hand and by a loop, of maps as they are and as RectGrad processes them."""

import math

import numpy as np
import pytest
import torch
from torch import nn

import pellucid as pl
from pellucid import catalog
from pellucid.errors import InvalidParameter
from pellucid.metrics.base import Case
from pellucid.metrics.noise import Checkerboard, RawTotalVariation, TotalVariation
from pellucid.metrics.scoring import Scorer


def graded(metric, attribution, channels="mean"):
    images = torch.zeros(len(attribution), 3, *attribution.shape[-2:], dtype=torch.float64)
    targets = torch.zeros(len(images), dtype=torch.long)
    model = nn.Identity()
    case = Case(
        pl.Gradient(), model, images, pl.Attributions({"layer": attribution}, targets), Scorer(model), targets,
        channels=channels,
    )  # fmt: skip
    return metric.measure(case)["layer"].values.tolist()


def looped(rows):
    """Sum of |differences| of all neighbours, pixel by pixel."""
    height, width = len(rows), len(rows[0])
    down = sum(abs(rows[y + 1][x] - rows[y][x]) for y in range(height - 1) for x in range(width))
    return down + sum(abs(rows[y][x + 1] - rows[y][x]) for y in range(height) for x in range(width - 1))


def test_differences_by_hand():
    attribution = torch.tensor([[[[1.0, -2.0], [0.0, 4.0]]]], dtype=torch.float64)
    assert graded(RawTotalVariation(), attribution) == [1 + 6 + 3 + 4]
    assert graded(RawTotalVariation(channels="positive_sum"), attribution) == [1 + 4 + 1 + 4]


def test_the_experiments_reduction_holds_unless_another_is_asked_for():
    attribution = torch.randn(3, 2, 5, 4, dtype=torch.float64)
    for channels, maps in (
        ("mean", attribution.mean(1)),
        ("sum", attribution.sum(1)),
        ("positive_sum", attribution.clamp_min(0).sum(1)),
    ):
        expected = [looped(rows) for rows in maps.tolist()]
        assert graded(RawTotalVariation(), attribution, channels) == pytest.approx(expected, rel=1e-12)
        assert graded(RawTotalVariation(channels=channels), attribution) == pytest.approx(expected, rel=1e-12)


def test_percentiles_process_each_map_first():
    attribution = torch.randn(3, 1, 9, 8, dtype=torch.float64)
    expected = []
    for rows in attribution[:, 0].numpy():
        low, high = np.percentile(rows, [60, 98])
        assert low > 0  # so what is below it becomes 0
        processed = [[min(value, high) if value >= low else 0.0 for value in row] for row in rows.tolist()]
        expected.append(looped(processed))
    assert graded(RawTotalVariation(clip=(60.0, 98.0)), attribution) == pytest.approx(expected, rel=1e-12)


def test_a_constant_attribution_is_not_the_smoothest_of_all():
    ramp = torch.arange(4.0).expand(4, 4)  # 0.75: facts of Eq. 2
    one = torch.stack([torch.full((4, 4), 0.1), ramp])  # a dead channel among others counts as smooth
    attribution = torch.stack([one, torch.full((2, 4, 4), 0.1), torch.zeros(2, 4, 4)])
    found = graded(TotalVariation(), attribution)
    assert found == pytest.approx([0.75 / 2, math.nan, math.nan], nan_ok=True)
    assert pl.total_variation(attribution).tolist() == pytest.approx([0.75 / 2, 0, 0])


def test_bad_settings_are_refused():
    with pytest.raises(InvalidParameter, match="percentiles 99"):
        RawTotalVariation(clip=(99.0, 5.0))
    with pytest.raises(InvalidParameter, match="channels"):
        catalog.metric("raw_total_variation(channels='max')")


# The checkerboard.


def spectral_share(values, period):
    """The same from the Fourier transform: energy at the multiples of 1 / period over all, but for the mean."""
    rows, columns = (side // period * period for side in values.shape)
    energy = np.abs(np.fft.fft2(values[:rows, :columns])) ** 2
    energy[0, 0] = 0
    return energy[:: rows // period, :: columns // period].sum() / energy.sum()


@pytest.mark.parametrize("period", [2, 3, 4])
@pytest.mark.parametrize("shape", [(12, 12), (13, 17), (8, 23)])
def test_the_checkerboard_is_the_energy_at_its_frequencies(period, shape):
    values = np.random.default_rng(period).normal(size=(3, *shape)) + np.indices(shape).sum(0) % period
    found = pl.checkerboard(torch.tensor(values), period)
    expected = [spectral_share(each, period) for each in values]
    np.testing.assert_allclose(found, expected, rtol=1e-12)
    assert (found > 0.05).all()


def test_a_pattern_is_all_of_its_map_at_its_period_and_multiples():
    tile = torch.tensor([[1.0, 1.0], [1.0, -1.0]])  # the gradient of a strided convolution, Fig. 1
    maps = tile.repeat(1, 8, 8) * torch.tensor([1.0, -3e-6])[:, None, None]
    assert pl.checkerboard(maps).tolist() == pytest.approx([1, 1], rel=1e-12)
    assert pl.checkerboard(maps, 4).tolist() == pytest.approx([1, 1], rel=1e-12)
    assert pl.checkerboard(maps, 3).max() < 0.1
    assert pl.checkerboard(torch.full((1, 8, 8), 0.1)).isnan().all()


def test_noise_has_the_share_of_chance():
    noise = torch.randn(2000, 16, 16, generator=torch.Generator().manual_seed(0))
    for period in (2, 4):
        chance = (period**2 - 1) / (16 * 16 - 1)
        assert pl.checkerboard(noise, period).mean().item() == pytest.approx(chance, rel=0.05)


def test_the_metric_takes_the_layers_own_maps():
    gradient = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    strided = torch.zeros(2, 3, 8, 8, dtype=torch.float64)
    strided[..., ::2, ::2] = gradient[..., ::2, ::2]  # of a 1 x 1 convolution of stride 2
    [sums], absolute = (
        graded(Checkerboard(channels=None), strided[:1], "sum"),
        graded(Checkerboard(), strided, "sum"),
    )
    assert absolute == pl.checkerboard(strided.abs().sum(1)).tolist()
    assert sums == pl.checkerboard(strided[:1].sum(1)).item()
    assert min(absolute) > 0.5 > sums
    small = graded(Checkerboard(period=8), gradient)
    assert np.isnan(small).all()


def test_bad_periods_and_shapes_are_refused():
    with pytest.raises(InvalidParameter, match="period=1: give a whole number of at least 2"):
        catalog.metric("checkerboard(period=1)")
    with pytest.raises(InvalidParameter, match="at least 8 pixels a side"):
        pl.checkerboard(torch.zeros(1, 7, 9), 4)
    with pytest.raises(InvalidParameter, match="give \\(batch, h, w\\)"):
        pl.checkerboard(torch.zeros(1, 3, 9, 9))
