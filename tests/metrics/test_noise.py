"""Raw total variation by hand and by a loop, of maps as they are and as RectGrad processes them."""

import numpy as np
import pytest
import torch
from torch import nn

import pellucid as pl
from pellucid import catalog
from pellucid.errors import InvalidParameter
from pellucid.metrics.base import Case
from pellucid.metrics.noise import RawTotalVariation
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


def test_bad_settings_are_refused():
    with pytest.raises(InvalidParameter, match="percentiles 99"):
        RawTotalVariation(clip=(99.0, 5.0))
    with pytest.raises(InvalidParameter, match="channels"):
        catalog.metric("raw_total_variation(channels='max')")
