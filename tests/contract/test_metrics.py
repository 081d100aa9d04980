"""What every metric of the catalogue promises."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import get_args

import pytest
import torch
from torch import Tensor, nn
from torchvision.transforms.functional import pil_to_tensor

import pellucid as pl
from pellucid.data.sources import Sample, open_images
from pellucid.metrics.base import Axis, Measured, VariantMetric
from pellucid.models.small import ShapesResNet
from pellucid.training.criteria import Retraining
from pellucid.variants.base import FORWARD
from tests.networks import randomise, seeded, telling_apart

IMAGES = 3
LAYERS = ("input", "layer2.0")
# Settings that keep the costly ones short; all else has its defaults.
QUICK = {
    "insertion": {"steps": 4},
    "deletion": {"steps": 4},
    "cascade_insertion": {"steps": 4},
    "cascade_deletion": {"steps": 4},
    "background_occlusion": {"levels": 3, "orders": 2},
    "object_occlusion": {"levels": 3, "orders": 2},
}
# Those measured by training have no value of a case: tests/experiments/test_trainings.py.
METRICS = [
    pl.metric(name, **QUICK.get(name, {})) for name, kind in pl.METRICS.items() if not issubclass(kind, Retraining)
]


@pytest.fixture(scope="module")
def network() -> nn.Module:
    images, _ = shapes(slice(None))
    return telling_apart(randomise(seeded(lambda: ShapesResNet(8, (6, 8, 12)), 8), 8), images)


@pytest.fixture(scope="module")
def whole(network: nn.Module) -> pl.Case:
    return case(network, slice(None))


def shapes(rows: slice) -> tuple[Tensor, list[Sample]]:
    samples = list(open_images(f"shapes:{IMAGES}"))[rows]
    preprocess = pl.load_model("shapes-resnet").preprocess
    return torch.stack([preprocess(sample.image) for sample in samples]).double(), samples


def case(network: nn.Module, rows: slice, max_batch: int = 64) -> pl.Case:
    images, samples = shapes(rows)
    scorer = pl.Scorer(network, max_batch=max_batch)
    scored = scorer.of(images).argmax(1)
    method = pl.method("smoothgrad", samples=2)
    return pl.Case(
        method=method,
        explained=network,
        images=images,
        attributions=method(network, images, scored, LAYERS, variant=FORWARD, max_batch=max_batch),
        scorer=scorer,
        scored=scored,
        variant=FORWARD,
        max_batch=max_batch,
        labels=torch.tensor([sample.label for sample in samples]),
        masks=torch.cat([pil_to_tensor(sample.mask) for sample in samples]) > 0,
        names=[sample.name for sample in samples],
    )


def measured_by(metric: pl.Metric | VariantMetric, case: pl.Case) -> Mapping[str | None, Measured]:
    """What a metric gives by layer; one of the variant gives it at none."""
    return {None: Measured(metric.values(case))} if isinstance(metric, VariantMetric) else metric.measure(case)


def test_every_name_is_the_class_s_own() -> None:
    assert all(name == kind.name for name, kind in pl.METRICS.items())


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_it_says_what_it_is(metric: pl.Metric) -> None:
    assert metric.axis in get_args(Axis)
    assert all(isinstance(text, str) and text for text in (metric.unit, metric.paper, type(metric).__doc__))
    assert isinstance(metric.higher_is_better, bool)
    assert pl.metric(metric.name) == type(metric)()


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_one_value_per_image_at_each_layer(metric: pl.Metric, whole: pl.Case) -> None:
    found = measured_by(metric, whole)
    assert found.keys() == ({None} if metric.of_model else set(LAYERS))
    for measured in found.values():
        assert measured.values.shape == (IMAGES,)
        assert not measured.values.isinf().any()
        assert metric.undefined or not measured.values.isnan().any()
        least, most = metric.ends
        assert not (measured.values < (-math.inf if least is None else least) - 1e-9).any()
        assert not (measured.values > (math.inf if most is None else most) + 1e-9).any()
        if measured.curve is not None:
            assert measured.curve.shape == (IMAGES, len(measured.at))
            assert len(measured.steps) in (0, len(measured.at))


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_the_value_depends_neither_on_the_batch_nor_on_its_bound(
    metric: pl.Metric, network: nn.Module, whole: pl.Case
) -> None:
    together, alone = measured_by(metric, whole), measured_by(metric, case(network, slice(1, 2), max_batch=2))
    for layer, measured in alone.items():
        expected = together[layer].values[1:2]
        torch.testing.assert_close(measured.values, expected, rtol=1e-7, atol=1e-9, equal_nan=True)


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_model_and_random_state_are_as_before(metric: pl.Metric, network: nn.Module, whole: pl.Case) -> None:
    before = {name: value.clone() for name, value in network.state_dict().items()}
    random, mode = torch.get_rng_state(), network.training
    measured_by(metric, replace(whole, _shared={}))
    assert torch.equal(random, torch.get_rng_state())
    assert network.training == mode
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())
    assert not any(parameter.requires_grad for parameter in network.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())


@pytest.mark.parametrize("metric", METRICS, ids=lambda metric: metric.name)
def test_no_pass_is_larger_than_its_bound(
    metric: pl.Metric, network: nn.Module, monkeypatch: pytest.MonkeyPatch
) -> None:
    bounded = case(network, slice(None), max_batch=2)
    seen: list[int] = []
    original = type(network).forward

    def forward(self: nn.Module, x: Tensor) -> Tensor:
        seen.append(len(x))
        return original(self, x)

    monkeypatch.setattr(type(network), "forward", forward)
    measured_by(metric, bounded)
    assert max(seen, default=0) <= 2


def test_a_constant_map_is_no_number_anywhere_it_is_undefined(network: nn.Module, whole: pl.Case) -> None:
    """Whatever a metric makes of it, it is no infinity, and NaN only where the metric says why."""
    flat = pl.Attributions({"input": torch.zeros_like(whole.images)}, whole.targets)
    constant = replace(whole, attributions=flat, method=pl.Gradient(), _shared={})
    undefined = {
        metric.name
        for metric in METRICS
        if not metric.of_model
        for measured in metric.measure(constant).values()
        if measured.values.isnan().any()
    }
    best = {"insertion", "deletion", "cascade_ssim", "mass_outside", "pointing_game", "total_variation"}
    assert best <= undefined  # else a map that tells nothing could be the best of all
    assert all(pl.METRICS[name].undefined for name in undefined)
    assert math.isfinite(float(pl.metric("raw_total_variation").measure(constant)["input"].values.sum()))
