"""Similarities of maps against scikit-image and SciPy."""

import numpy as np
import pytest
import torch

from pellucid.metrics.similarity import hog, min_max, spearman, ssim

SHAPES = [(11, 11), (16, 33), (64, 48), (97, 51)]


def pair(*shape: int) -> tuple[torch.Tensor, torch.Tensor]:
    """Two signed maps that are alike."""
    generator = torch.Generator().manual_seed(sum(shape))
    a, noise = torch.randn(2, *shape, generator=generator, dtype=torch.float64)
    return a, 0.7 * a + 0.5 * noise


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("data_range", [1.0, 2.0])
@pytest.mark.parametrize("channels", [(), (3,)], ids=["grey", "colour"])
def test_ssim_is_scikit_images(shape: tuple[int, int], data_range: float, channels: tuple[int, ...]) -> None:
    metrics = pytest.importorskip("skimage.metrics")
    a, b = map(min_max, pair(3, *channels, *shape))
    expected = [
        metrics.structural_similarity(
            a[i].numpy(),
            b[i].numpy(),
            data_range=data_range,
            gaussian_weights=True,
            channel_axis=0 if channels else None,
        )
        for i in range(3)
    ]
    np.testing.assert_allclose(ssim(a, b, data_range), expected, rtol=0, atol=1e-12)
    single = ssim(a.float(), b.float(), data_range)
    np.testing.assert_allclose(single, expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize("absolute", [False, True])
@pytest.mark.parametrize("digits", [None, 0], ids=["distinct", "ties"])
def test_spearman_is_scipys(absolute: bool, digits: int | None) -> None:
    stats = pytest.importorskip("scipy.stats")
    a, b = pair(4, 2, 13, 17)
    if digits is not None:
        a, b = a.round(decimals=digits), b.round(decimals=digits)
    x, y = (a.abs(), b.abs()) if absolute else (a, b)
    expected = [stats.spearmanr(x[i].flatten(), y[i].flatten()).statistic for i in range(4)]
    np.testing.assert_allclose(spearman(a, b, absolute), expected, rtol=0, atol=1e-12)


def test_spearman_of_a_map_with_nan_is_nan() -> None:
    a, b = pair(2, 9, 9)
    a[0, 3, 3] = torch.nan
    found = spearman(a, b)
    assert found.isnan().tolist() == [True, False]


@pytest.mark.parametrize("shape", [(48, 48), (64, 80), (70, 97), (224, 224)], ids=str)
@pytest.mark.parametrize("channels", [(), (3,)], ids=["grey", "colour"])
@pytest.mark.parametrize("block", [1, 8], ids=["fine", "blocks"])
def test_hog_is_scikit_images(shape: tuple[int, int], channels: tuple[int, ...], block: int) -> None:
    """Maps repeated in blocks have differences along the axes only, on the edges between orientations."""
    feature = pytest.importorskip("skimage.feature")
    a, _ = pair(2, *channels, *(-(-side // block) for side in shape))
    a = min_max(a.repeat_interleave(block, -2).repeat_interleave(block, -1)[..., : shape[0], : shape[1]])
    expected = [
        feature.hog(row.numpy(), pixels_per_cell=(16, 16), channel_axis=0 if channels else None) for row in a
    ]
    np.testing.assert_allclose(hog(a), expected, rtol=0, atol=1e-6)  # scikit-image sums its cells in float32
