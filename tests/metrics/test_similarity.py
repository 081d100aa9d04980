"""SSIM, rank correlation and HOG of maps whose similarity is known (facts.md, C15 and C16)."""

import math

import pytest
import torch

from pellucid.errors import InvalidParameter
from pellucid.metrics.similarity import enlarged, hog, hog_similarity, min_max, spearman, ssim

ROWS = (torch.arange(32, dtype=torch.float64) / 31)[:, None].expand(32, 32)[None]
COLUMNS = ROWS.transpose(1, 2)


@pytest.mark.parametrize(
    ("a", "b", "double", "single"),
    [
        (ROWS, ROWS, 1.0, 1.0),
        (ROWS, COLUMNS, 0.365908, 0.135502),
        (ROWS, 1 - ROWS, -0.098666, -0.502281),
    ],
    ids=["itself", "transposed", "reversed"],
)
def test_c15_ssim_of_ramps(a: torch.Tensor, b: torch.Tensor, double: float, single: float) -> None:
    assert ssim(a, b).item() == pytest.approx(double, abs=5e-7)
    assert ssim(a, b, data_range=1).item() == pytest.approx(single, abs=5e-7)
    assert ssim(b, a).item() == pytest.approx(ssim(a, b).item(), abs=1e-15)


def test_ssim_of_maps_far_from_zero_is_that_of_doubles() -> None:
    """Maps in single precision around 100 that span 0.001: their squares differ by less than rounding."""
    generator = torch.Generator().manual_seed(0)
    a, b = (100 + torch.rand(2, 20, 24, generator=generator) / 1000 for _ in range(2))
    expected = ssim(a.double(), b.double(), 0.002)
    assert float((ssim(a, b, 0.002) - expected).abs().max()) < 1e-5
    assert float(expected.abs().max()) < 0.2


@pytest.mark.parametrize("data_range", [2.0, 1.0])
def test_c15_ssim_of_zeros_and_ones_is_the_luminance_term(data_range: float) -> None:
    zeros, ones = torch.zeros(1, 32, 32, dtype=torch.float64), torch.ones(1, 32, 32, dtype=torch.float64)
    c1 = (0.01 * data_range) ** 2
    assert ssim(zeros, ones, data_range).item() == pytest.approx(c1 / (1 + c1), rel=1e-12)


def test_c16_constant_maps_have_no_similarity() -> None:
    maps = torch.stack([torch.zeros(48, 48), torch.full((48, 48), 3.0), torch.rand(48, 48)])
    other = torch.rand(3, 48, 48)
    assert min_max(maps).flatten(1).isnan().all(1).tolist() == [True, True, False]
    for found in (
        ssim(min_max(maps), min_max(other)),
        ssim(min_max(other), min_max(maps)),
        spearman(maps, other),
        spearman(other, maps, absolute=True),
        hog_similarity(min_max(maps), min_max(other)),
        hog_similarity(maps, other),
    ):
        assert found.isnan().tolist() == [True, True, False]


def test_min_max_keeps_the_order_of_signs_and_scales_channels_together() -> None:
    maps = torch.tensor([[[[-2.0, 0.0]], [[2.0, 1.0]]]])
    assert min_max(maps).tolist() == [[[[0.0, 0.5]], [[1.0, 0.75]]]]


def test_channels_are_averaged() -> None:
    a, b = torch.rand(2, 2, 3, 16, 20, dtype=torch.float64)
    expected = torch.stack([ssim(a[:, c], b[:, c]) for c in range(3)]).mean(0)
    torch.testing.assert_close(ssim(a, b), expected, rtol=1e-12, atol=0)


def test_spearman_of_known_orders() -> None:
    a = torch.tensor([[[1.0, 2.0], [3.0, 4.0]]])
    assert spearman(a, a.exp()).item() == pytest.approx(1, abs=1e-15)
    assert spearman(a, -a).item() == pytest.approx(-1, abs=1e-15)
    assert spearman(a, -a, absolute=True).item() == pytest.approx(1, abs=1e-15)
    # Ranks 1 2 3 4 against 2 1 4 3: 1 - 6 (1 + 1 + 1 + 1) / (4 (16 - 1)).
    assert spearman(a, torch.tensor([[[2.0, 1.0], [4.0, 3.0]]])).item() == pytest.approx(0.6, abs=1e-15)
    # Ranks 1 2 3 4 against 1.5 1.5 3.5 3.5: covariance 4, variances 5 and 4.
    tied = torch.tensor([[[0.0, 0.0], [9.0, 9.0]]])
    assert spearman(a, tied).item() == pytest.approx(4 / math.sqrt(20), abs=1e-15)


def test_hog_of_a_ramp_has_one_orientation() -> None:
    """Columns grow to the right: orientation 0 in all 9 cells of the one block, each 1/3 after clipping."""
    ramp = torch.arange(48, dtype=torch.float64).expand(1, 48, 48)
    found = hog(ramp).view(3, 3, 9)
    assert found[..., 1:].abs().max() == 0
    # The outer columns' differences are 0 in the border: 15 of the 16 columns of the outer cells count.
    norm = math.sqrt(6 * (2 * 15 / 16) ** 2 + 3 * 2**2 + 1e-10)
    expected = torch.tensor([2 * 15 / 16, 2, 2 * 15 / 16], dtype=torch.float64).expand(3, 3) / norm
    clipped = expected.clamp_max(0.2)
    torch.testing.assert_close(
        found[..., 0], clipped / (clipped.square().sum() + 1e-10).sqrt(), rtol=1e-12, atol=0
    )


def test_an_image_does_not_depend_on_its_batch() -> None:
    a, b = torch.randn(2, 5, 50, 60)
    for measure in (ssim, spearman, hog_similarity):
        alone = torch.cat([measure(a[i : i + 1], b[i : i + 1]) for i in range(5)])
        torch.testing.assert_close(measure(a, b), alone, rtol=1e-6, atol=1e-7)
        assert alone.unique().numel() == 5


def test_enlarged_repeats_every_value_alike() -> None:
    maps = torch.arange(6.0).view(1, 2, 3)
    assert enlarged(maps, 2) is maps
    assert enlarged(maps, 3).tolist() == [
        [[0, 0, 1, 1, 2, 2], [0, 0, 1, 1, 2, 2], [3, 3, 4, 4, 5, 5], [3, 3, 4, 4, 5, 5]]
    ]
    assert enlarged(torch.zeros(2, 4, 7, 7), 48).shape == (2, 4, 49, 49)


def test_bad_maps_are_refused() -> None:
    small, large = torch.rand(1, 10, 40), torch.rand(1, 48, 48)
    with pytest.raises(InvalidParameter, match=r"10 x 40 are smaller than SSIM's window, 11 x 11; up-sample"):
        ssim(small, small)
    with pytest.raises(InvalidParameter, match=r"smaller than one block of HOG, 48 x 48"):
        hog_similarity(small, small)
    with pytest.raises(InvalidParameter, match="one shape"):
        ssim(large, large[:, :40])
    with pytest.raises(InvalidParameter, match="give floats"):
        ssim(large.long(), large.long())
    with pytest.raises(InvalidParameter, match="one shape"):
        spearman(large, small)
    with pytest.raises(InvalidParameter, match="data_range=0"):
        ssim(large, large, data_range=0)
