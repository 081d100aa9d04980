"""The stand-ins for ratings by eye, on maps whose contrast and coherence can be counted."""

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

import pellucid as pl
from pellucid.data.sources import open_images
from pellucid.errors import InvalidData, InvalidParameter
from pellucid.metrics.base import Case
from pellucid.metrics.edges import (
    EdgeDifferentiation,
    VisualCoherence,
    coherence,
    edge_contrast,
    image_edges,
    outline,
)
from pellucid.metrics.scoring import Scorer


def square(side: int, size: int = 20, at: int = 5) -> Tensor:
    found = torch.zeros(1, size, size, dtype=torch.float64)
    found[:, at : at + side, at : at + side] = 1
    return found


def test_contrast_of_counted_pixels() -> None:
    edges = square(4) > 0
    maps = torch.where(edges, -3.0, 1.0).double()
    assert edge_contrast(maps, edges).item() == pytest.approx((3 - 1) / (3 + 1), rel=1e-12)
    assert edge_contrast(square(4), edges).item() == 1
    assert edge_contrast(1 - square(4), edges).item() == -1
    assert edge_contrast(torch.full_like(maps, 2), edges).item() == 0
    # 4 of the 16 edge pixels lit, none off them.
    assert edge_contrast(square(2), edges).item() == 1
    # One of the 4 lit pixels on the edges: 1/16 against 3/384.
    half = square(2, at=4)
    on, off = 1 / 16, 3 / 384
    assert edge_contrast(half, edges).item() == pytest.approx((on - off) / (on + off), rel=1e-12)


def test_contrast_is_undefined_without_map_or_edges() -> None:
    maps = torch.stack([square(3)[0], torch.zeros(20, 20), square(3)[0], square(3)[0]])
    edges = torch.stack([square(4)[0], square(4)[0], torch.zeros(20, 20), torch.ones(20, 20)]) > 0
    assert edge_contrast(maps, edges).isnan().tolist() == [False, True, True, True]


def test_outline_is_two_pixels_wide_and_ignores_the_images_border() -> None:
    # A 4x4 square: its own 12 outer pixels, and the 20 around it.
    found = outline(square(4) > 0)
    assert found.sum() == 12 + 20
    assert torch.equal(found, (square(6, at=4) > 0) & ~(square(2, at=6) > 0))
    # In the corner of the image: two sides only, 7 pixels within and 9 without.
    assert outline(square(4, at=0) > 0).sum() == 7 + 9
    assert not outline(torch.ones(1, 8, 8, dtype=torch.bool)).any()


def test_image_edges_are_where_the_image_changes() -> None:
    step = torch.zeros(1, 3, 10, 40, dtype=torch.float64)
    step[..., 20:] = 1
    wanted = torch.zeros(1, 10, 40, dtype=torch.bool)
    wanted[..., 19:21] = True
    assert torch.equal(image_edges(step), wanted)
    assert not image_edges(torch.ones(1, 3, 8, 8)).any()
    noise = torch.rand(2, 3, 20, 20, dtype=torch.float64)
    assert image_edges(noise, 0.25).flatten(1).sum(1).tolist() == [100, 100]
    expected = image_edges(noise.float(), 0.25)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(image_edges(noise.float(), 0.25), expected)


@pytest.mark.parametrize("side", [1, 2, 5])
def test_coherence_of_a_square_counts_its_pairs_of_neighbors(side: int) -> None:
    """Of the 8 n^2 places beside its pixels 4n(n-1) + 4(n-1)^2 are its own."""
    share = side**2 / 400
    expected = (4 * side * (side - 1) + 4 * (side - 1) ** 2) / (8 * side**2)
    assert expected == pytest.approx(1 - (3 * side - 1) / (2 * side**2), abs=1e-15)
    for maps in (square(side), -3 * square(side), square(side) + 0.01 * torch.rand(1, 20, 20)):
        assert coherence(maps, share=share).item() == pytest.approx(expected, abs=1e-12)


def test_coherence_in_a_corner_counts_the_neighbors_there_are() -> None:
    """2x2 in the corner: 3 of 3 neighbours, 3 of 5, 3 of 5, 3 of 8."""
    found = coherence(square(2, at=0), share=4 / 400).item()
    assert found == pytest.approx((1 + 3 / 5 + 3 / 5 + 3 / 8) / 4, abs=1e-12)


def test_scattered_pixels_do_not_cohere() -> None:
    maps = torch.zeros(1, 20, 20, dtype=torch.float64)
    maps[:, ::4, ::4] = 1
    assert coherence(maps, share=25 / 400).item() == 0


def test_ties_share_the_last_places_and_noise_is_at_chance() -> None:
    # 16 places for a square of 4 and 384 ties: each of them holds 12/384 of a place.
    rest = 12 / 396
    maps = square(2)
    weights = rest + (1 - rest) * maps
    around = sum(weights.roll((y, x), (1, 2)) for y in (-1, 0, 1) for x in (-1, 0, 1) if (y, x) != (0, 0))
    inner = (weights * around)[:, 1:-1, 1:-1].sum() / 8
    edge = 4 * rest * rest * 18 + 4 * rest * rest  # 18 pixels on each side, 4 corners: all neighbours tie
    assert coherence(maps, share=0.04).item() == pytest.approx(float(inner + edge) / 16, abs=1e-12)
    noise = torch.rand(50, 64, 64, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    assert coherence(noise, share=0.1).mean().item() == pytest.approx(0.1, abs=5 * 0.006 / 50**0.5)


def test_spillover_counts_as_nothing_but_takes_its_place() -> None:
    maps = square(4)
    inside = torch.zeros(1, 20, 20, dtype=torch.bool)
    inside[:, :, 5:7] = True  # the left half: 4x2, with 10 pairs of neighbours of 8 * 16 places
    pairs = 2 * (4 * 1 + 3 * 2 + 3 * 2)
    assert coherence(maps, inside, 16 / 400).item() == pytest.approx(pairs / (8 * 16), abs=1e-12)
    assert coherence(maps, ~square(4).bool(), 16 / 400).item() == 0
    assert coherence(maps, square(4).bool(), 16 / 400).item() == coherence(maps, None, 16 / 400).item()


def test_constant_maps_have_no_coherence() -> None:
    maps = torch.stack([torch.zeros(8, 8), torch.ones(8, 8), torch.eye(8)])
    assert coherence(maps).isnan().tolist() == [True, True, False]


@pytest.fixture(scope="module")
def shapes() -> tuple[Tensor, Tensor]:
    preprocess, samples = pl.load_model("shapes-resnet").preprocess, list(open_images("shapes:4"))
    masks = [torch.from_numpy(np.asarray(sample.mask) > 127) for sample in samples]
    return torch.stack([preprocess(sample.image) for sample in samples]), torch.stack(masks)


def case_of(name: str, images: Tensor, **known: object) -> Case:
    model, method = pl.load_model("shapes-resnet").model, pl.method(name)
    attributions = method(model, images, 0, ["input", "layer2.0"])
    return Case(method, model, images, attributions, Scorer(model), attributions.targets, **known)


def neighbors(y: int, x: int, height: int, width: int) -> list[tuple[int, int]]:
    around = [(y + i, x + j) for i, j in itertools.product((-1, 0, 1), repeat=2) if (i, j) != (0, 0)]
    return [(i, j) for i, j in around if 0 <= i < height and 0 <= j < width]


@pytest.mark.parametrize("of", ["image", "object"])
def test_metrics_are_those_of_a_loop_over_pixels(shapes: tuple[Tensor, Tensor], of: str) -> None:
    images, masks = shapes
    case = case_of("input_x_gradient", images, masks=masks)
    contrast = EdgeDifferentiation(of=of).measure(case)["input"].values
    coherent = VisualCoherence(of=of).measure(case)["input"].values
    for i, mask in enumerate(masks.tolist()):
        magnitude = pl.heatmap(case.attributions["input"])[i].abs().double().numpy()
        strength = pl.Edges()(case.explained, images[i : i + 1], 0)["input"][0].mean(0).numpy()
        height, width = magnitude.shape
        places = int(0.1 * magnitude.size)  # of 409.6; no values tie
        limit = sorted(strength.ravel())[-places - 1]
        on, off = [], []
        for y, x in itertools.product(range(height), range(width)):
            near = {mask[y][x], *(mask[j][k] for j, k in neighbors(y, x, height, width))}
            edge = len(near) == 2 if of == "object" else strength[y, x] > limit
            (on if edge else off).append(magnitude[y, x])
        e, o = np.mean(on), np.mean(off)
        assert contrast[i].item() == pytest.approx((e - o) / (e + o), rel=1e-4)
        order = sorted(itertools.product(range(height), range(width)), key=lambda p: -magnitude[p])
        weight = dict.fromkeys(order[:places], 1.0) | {order[places]: 0.1 * magnitude.size - places}
        if of == "object":
            weight = {(y, x): w for (y, x), w in weight.items() if mask[y][x]}
        total = 0.0
        for (y, x), w in weight.items():
            around = neighbors(y, x, height, width)
            total += w * sum(weight.get(place, 0.0) for place in around) / len(around)
        assert coherent[i].item() == pytest.approx(total / (0.1 * magnitude.size), rel=1e-4)


def test_edge_maps_differentiate_and_random_maps_do_not(shapes: tuple[Tensor, Tensor]) -> None:
    edges, random = (
        EdgeDifferentiation().measure(case_of(name, shapes[0]))["input"].values for name in ("edges", "random")
    )
    # 64^2 pixels of |N(0, 1/3)|, a tenth of them on edges: the contrast's standard error is 0.76 / 2 / sqrt(410).
    assert float(random.abs().max()) < 5 * 0.76 / 2 / 410**0.5
    assert float(edges.min()) > 0.4
    rated = VisualCoherence().measure(case_of("random", shapes[0]))["input"].values
    assert float((rated - 0.1).abs().max()) < 5 * 0.006


def test_the_object_must_be_known_and_settings_in_range(shapes: tuple[Tensor, Tensor]) -> None:
    images, _ = shapes
    boxes = case_of("random", images, boxes=[[(8, 8, 40, 40)]] * 4)
    assert VisualCoherence(of="object").measure(boxes)["input"].values.isfinite().all()
    with pytest.raises(InvalidData, match=r"edge_differentiation of the object needs its mask.*of='image'"):
        EdgeDifferentiation(of="object").measure(boxes)
    with pytest.raises(InvalidData, match="no masks and no boxes"):
        VisualCoherence(of="object").measure(case_of("random", images))
    with pytest.raises(InvalidParameter, match="of='mask'"):
        VisualCoherence(of="mask")
    for share in (0, 1, float("nan")):
        with pytest.raises(InvalidParameter, match="share="):
            EdgeDifferentiation(share=share)
