"""Metrics of randomised copies: a loop over copies and images is the oracle, and maps blind to the model are 1."""

import copy
import itertools
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import ClassVar

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import pellucid as pl
from pellucid.data.sources import open_images
from pellucid.errors import InvalidModel, InvalidParameter
from pellucid.methods.attributions import Attributions
from pellucid.metrics.base import Case, Measured, Metric
from pellucid.metrics.faithfulness import Deletion, Insertion, deletion, insertion
from pellucid.metrics.randomization import cascade
from pellucid.metrics.sanity import (
    Cascade,
    CascadeDeletion,
    CascadeHOG,
    CascadeInsertion,
    CascadeSpearman,
    CascadeSSIM,
    Similarity,
)
from pellucid.metrics.scoring import Scorer
from pellucid.models.small import ShapesResNet
from tests.networks import randomise, seeded, telling_apart

GROUPS = ("fc", "layer3.1", "conv1")
LAYERS = ("input", "layer1.0", "layer3.0")  # behind layer3.1 the average pooling makes gradients constant
SIMILARITIES = (CascadeSSIM(), CascadeSpearman(), CascadeSpearman(absolute=True), CascadeHOG())


@pytest.fixture(scope="module")
def trained(images: Tensor) -> nn.Module:
    """A narrow one: its maps are as good a test, and every copy is explained."""
    return telling_apart(randomise(seeded(lambda: ShapesResNet(8, (6, 8, 12)), 8), 8), images)


@pytest.fixture(scope="module")
def images() -> Tensor:
    loaded = pl.load_model("shapes-resnet")
    images = torch.stack([loaded.preprocess(sample.image) for sample in open_images("shapes:3")]).double()
    return images[..., ::2, ::2].contiguous()


def case_of(
    model: nn.Module,
    images: Tensor,
    metrics: Sequence[Metric] = (),
    method: pl.Method | None = None,
    layers: Sequence[str] = LAYERS,
) -> Case:
    method = method or pl.method("gradient")
    scorer = Scorer(model)
    scored = scorer.of(images).argmax(1)
    attributions = method(model, images, scored, layers)
    return Case(method, model, images, attributions, scorer, scored, metrics=tuple(metrics))


def close(found: Tensor, expected: object, tolerance: float = 1e-12) -> None:
    np.testing.assert_allclose(found.numpy(), np.asarray(expected), rtol=0, atol=tolerance)


def scaled(array: np.ndarray) -> np.ndarray:
    return (array - array.min()) / (array.max() - array.min())


def grown(array: np.ndarray, least: int) -> np.ndarray:
    factor = -(-least // min(array.shape[-2:]))
    return np.kron(array, np.ones((1, factor, factor)))


def naive(metric: Cascade, a: np.ndarray, b: np.ndarray) -> float:
    """One image's similarity of maps (C, h, w), by scikit-image and SciPy."""
    feature, measures, stats = (
        pytest.importorskip(name) for name in ("skimage.feature", "skimage.metrics", "scipy.stats")
    )
    match metric:
        case CascadeSSIM():
            x, y = (grown(scaled(each), 11) for each in (a, b))
            return measures.structural_similarity(
                x, y, data_range=metric.data_range, gaussian_weights=True, channel_axis=0
            )
        case CascadeSpearman(absolute=True):
            return stats.spearmanr(abs(a).ravel(), abs(b).ravel()).statistic
        case CascadeSpearman():
            return stats.spearmanr(a.ravel(), b.ravel()).statistic
        case _:
            x, y = (
                feature.hog(grown(scaled(each), 48), pixels_per_cell=(16, 16), channel_axis=0) for each in (a, b)
            )
            return stats.spearmanr(x, y).statistic


@pytest.fixture(scope="module")
def maps_of_copies(trained: nn.Module, images: Tensor) -> dict[str, list[Attributions]]:
    """The maps of the network and of its copies, in each order."""
    scored = Scorer(trained).of(images).argmax(1)
    return {
        order: [
            pl.method("gradient")(model, images, scored, LAYERS)
            for model in (trained, *(model for _, model in cascade(trained, order, groups=GROUPS)))
        ]
        for order in ("cascading", "independent")
    }


@pytest.mark.parametrize("metric", [*SIMILARITIES, CascadeSSIM(data_range=1)], ids=str)
@pytest.mark.parametrize("part", ["heatmap", "attribution"])
@pytest.mark.parametrize("order", ["cascading", "independent"])
def test_similarities_are_those_of_a_loop(
    trained: nn.Module,
    images: Tensor,
    maps_of_copies: dict[str, list[Attributions]],
    metric: Cascade,
    part: str,
    order: str,
) -> None:
    metric = replace(metric, part=part, order=order, groups=GROUPS)
    case = case_of(trained, images)
    found = metric.measure(case)
    maps = maps_of_copies[order]
    for layer in LAYERS:
        parts = [(m[layer] if part == "attribution" else m[layer].mean(1, keepdim=True)).numpy() for m in maps]
        curve = [[naive(metric, parts[0][i], step[i]) for step in parts] for i in range(len(images))]
        # scikit-image's HOG adds in float32: a rank may change places with its neighbour.
        tolerance = 1e-4 if isinstance(metric, CascadeHOG) else 1e-12
        close(found[layer].curve, curve, tolerance)
        close(found[layer].values, np.mean(curve, 1, where=[[False, True, True, True]]), tolerance)
        assert list(found[layer].at) == [0, 1, 2, 3]
        assert found[layer].steps == ("original", *GROUPS)
        assert found[layer].curve[:, 1:].max() < 0.9999


@pytest.mark.parametrize("target", ["same", "argmax"])
def test_areas_are_those_of_a_loop(trained: nn.Module, images: Tensor, target: str) -> None:
    settings = {"groups": GROUPS, "way": "initializers", "target": target, "steps": 3}
    metrics = CascadeInsertion(**settings), CascadeDeletion(**settings, substrate="blur")
    case = case_of(trained, images, metrics)
    copies = [trained, *(model for _, model in cascade(trained, way="initializers", groups=GROUPS))]
    explained = [
        case.method(model, images, "auto" if target == "argmax" and k else case.scored, LAYERS)
        for k, model in enumerate(copies)
    ]
    for layer in LAYERS:
        heatmaps = [pl.heatmap(maps[layer], (32, 32)) for maps in explained]
        inserted = [insertion(trained, images, case.scored, each, 3).auc for each in heatmaps]
        deleted = [deletion(trained, images, case.scored, each, 3, substrate="blur").auc for each in heatmaps]
        first, second = (metric.measure(case)[layer] for metric in metrics)
        close(first.curve, torch.stack(inserted, 1))
        close(second.curve, torch.stack(deleted, 1))
        close(first.values, inserted[0] - sum(inserted[1:]) / 3)
        close(second.values, sum(deleted[1:]) / 3 - deleted[0])


def test_the_copies_own_class_is_explained_if_asked_for(trained: nn.Module, images: Tensor) -> None:
    case = case_of(trained, images)
    *_, (_, last) = cascade(trained)
    with torch.no_grad():
        changes = last(images).argmax(1) != case.scored
    assert changes.any()
    same, argmax = (CascadeSpearman(target=target).measure(case)["input"].curve for target in ("same", "argmax"))
    assert torch.equal(same[:, -1] != argmax[:, -1], changes)


@pytest.mark.parametrize("name", ["random", "edges"])
def test_a_map_blind_to_the_model_stays_the_same(trained: nn.Module, images: Tensor, name: str) -> None:
    metrics = (*SIMILARITIES, CascadeInsertion(steps=2), CascadeDeletion(steps=2))
    case = case_of(trained, images, metrics, pl.method(name))
    for metric in metrics:
        for measured in metric.measure(case).values():
            close(measured.values, torch.full((3,), float(isinstance(metric, Similarity))), 1e-7)
            assert float(measured.curve.std(1).max()) < 1e-7


@dataclass(frozen=True, kw_only=True)
class Counted(pl.Random):
    """A random map that counts how often it is asked for."""

    calls: ClassVar[list[int]] = []

    def leaf(self, network, points, layers):
        self.calls.append(len(points))
        return pl.Random.leaf(self, network, points, layers)


def test_every_copy_is_explained_once_for_all_metrics_and_layers(trained: nn.Module, images: Tensor) -> None:
    shared = (*SIMILARITIES, CascadeInsertion(steps=2), CascadeDeletion(steps=2), Insertion(steps=2))
    metrics = (*shared, CascadeSSIM(), CascadeSSIM(seed=1))
    Counted.calls.clear()
    case = case_of(trained, images, metrics, Counted(samplings=()))
    for metric in metrics:
        metric.measure(case)
    assert Counted.calls == [3] * (1 + 9 + 9)  # the model's own, and nine copies from each of the two seeds


def test_a_copy_of_a_repeatable_model_is_not_tried_again(trained: nn.Module, images: Tensor) -> None:
    model, rows = copy.deepcopy(trained), []
    model.register_forward_hook(lambda module, given, _: rows.append(len(given[0])))  # copies keep it
    case = case_of(model, images)
    rows.clear()
    CascadeSSIM(groups=GROUPS).measure(case)
    assert sum(rows) == 1 + len(GROUPS) * len(images)  # one shows which modules a copy runs


def test_both_areas_run_as_one_queue(trained: nn.Module, images: Tensor) -> None:
    metrics = CascadeInsertion(steps=2, groups=GROUPS), CascadeDeletion(steps=2, groups=GROUPS)
    asked = (*metrics, Insertion(steps=2), Deletion(steps=2))
    case = case_of(trained, images, asked)
    before = case.scorer.rows
    for metric in asked:
        metric.measure(case)
    # By step: one inner point of two curves at each layer, the blurred start, one image of zeros. The images
    # themselves were scored before.
    assert case.scorer.rows - before == (1 + len(GROUPS)) * (3 * 2 * len(LAYERS) * 1 + 3 + 1)


def test_constant_maps_are_undefined(trained: nn.Module, images: Tensor) -> None:
    case = case_of(trained, images)
    blank = {layer: value.clone() for layer, value in case.attributions.items()}
    for value in blank.values():
        value[1] = 0
    case = replace(case, attributions=Attributions(blank, case.targets), _shared={})
    for metric in (*SIMILARITIES, CascadeInsertion(steps=2), CascadeDeletion(steps=2)):
        metric = replace(metric, groups=GROUPS)
        assert "constant" in metric.undefined
        for measured in metric.measure(case).values():
            assert measured.values.isnan().tolist() == [False, True, False]
            assert not measured.curve[[0, 2]].isnan().any()


class Overflowing(nn.Module):
    """A network whose logits overflow for images brighter than a limit."""

    def __init__(self, model: nn.Module, limit: float) -> None:
        super().__init__()
        self.model, self.limit = model, limit

    def forward(self, x: Tensor) -> Tensor:
        return self.model(x) + torch.where(x.detach().mean((1, 2, 3)) > self.limit, torch.inf, 0.0)[:, None]


@dataclass(frozen=True, kw_only=True)
class Overflown(CascadeSpearman):
    """Copies of which the second overflows for the brighter images, the last for all."""

    limit: float

    def copies(self, model):
        copied = itertools.islice(cascade(model), 3)
        for (names, randomized), limit in zip(copied, (torch.inf, self.limit, -torch.inf), strict=True):
            yield names, Overflowing(randomized, limit)


def test_an_image_that_a_copy_cannot_explain_is_left_out_of_that_step_alone(
    trained: nn.Module, images: Tensor
) -> None:
    brightness = images.mean((1, 2, 3))
    middle = float(brightness.median())
    case = case_of(trained, images, layers=["input"])
    found = Overflown(limit=middle).measure(case)["input"]
    expected = CascadeSpearman().measure(case)["input"].curve
    bright = brightness > middle
    assert bright.sum() == 1
    close(found.curve[:, :2], expected[:, :2])
    assert torch.equal(found.curve[:, 2].isnan(), bright)
    assert found.curve[:, 3].isnan().all()
    close(found.curve[~bright, 2], expected[~bright, 2])
    close(found.values[bright], expected[bright, 1])
    close(found.values[~bright], expected[~bright, 1:3].mean(1))


@dataclass(frozen=True, kw_only=True)
class InTraining(CascadeSpearman):
    """Copies that cannot be explained, though nothing overflows in them."""

    def copies(self, model: nn.Module):
        for names, randomized in super().copies(model):
            yield names, randomized.train()


def test_a_copy_that_cannot_be_explained_for_another_reason_is_told(trained: nn.Module, images: Tensor) -> None:
    with pytest.raises(InvalidModel, match="training mode"):
        InTraining(groups=("fc",)).measure(case_of(trained, images, layers=["input"]))


def test_copies_made_within_inference_are_explained_as_others(trained: nn.Module, images: Tensor) -> None:
    metric = CascadeSpearman(groups=GROUPS)
    expected = metric.measure(case_of(trained, images))
    with torch.inference_mode():
        found = metric.measure(case_of(trained, images))
    for layer in LAYERS:
        assert not expected[layer].values.isnan().any()
        close(found[layer].curve, expected[layer].curve)


@pytest.mark.slow
def test_values_do_not_depend_on_the_batch(trained: nn.Module, images: Tensor) -> None:
    metrics = (*SIMILARITIES, CascadeInsertion(steps=2))
    whole = case_of(trained, images, metrics)
    for i in range(3):
        alone = case_of(trained, images[i : i + 1], metrics)
        for metric in metrics:
            for layer in LAYERS:
                close(metric.measure(alone)[layer].curve, metric.measure(whole)[layer].curve[i : i + 1], 1e-9)


def test_the_model_and_the_random_state_are_untouched(trained: nn.Module, images: Tensor) -> None:
    before, random = copy.deepcopy(trained.state_dict()), torch.get_rng_state()
    case = case_of(trained, images)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found: dict[str, Measured] = dict(CascadeSSIM(way="fresh").measure(case))
    assert not caught
    assert found["input"].steps[-1] == "all"
    assert torch.equal(random, torch.get_rng_state())
    for name, value in trained.state_dict().items():
        assert torch.equal(value, before[name])


def test_bad_settings_are_refused() -> None:
    for settings, message in [
        ({"order": "up"}, "order='up'"),
        ({"way": "noise"}, "way='noise'"),
        ({"target": "best"}, "target='best'"),
        ({"part": "channel"}, "part='channel'"),
        ({"data_range": 0}, "data_range=0"),
        ({"way": "fresh", "drift": True}, "drift"),
    ]:
        with pytest.raises(InvalidParameter, match=message):
            CascadeSSIM(**settings)
    with pytest.raises(InvalidParameter, match="steps=0"):
        CascadeInsertion(steps=0)
    with pytest.raises(InvalidParameter, match="'grey'"):
        CascadeDeletion(substrate="grey")


class Keeping(nn.Module):
    """Keeps its layers where no copy randomizes them."""

    def __init__(self, how: str) -> None:
        super().__init__()
        self.conv, self.head, hidden = nn.Conv2d(3, 4, 3), nn.Linear(4, 3), nn.Conv2d(4, 4, 3).eval()
        self.kept = {"list": [hidden], "functions": [lambda x: self.conv(x)], "own": None}[how]
        self.how = how

    def forward(self, x: Tensor) -> Tensor:
        low = self.kept[0](x) if self.how == "functions" else self.conv(x)
        return self.head((self.kept[0](low) if self.how == "list" else low).relu().mean((2, 3)))


@pytest.mark.parametrize("how", ["list", "functions", "own"])
def test_copies_that_run_other_modules_than_their_own_are_refused(images: Tensor, how: str) -> None:
    model, x = Keeping(how).eval().double(), images.double()
    if how == "list":
        model.kept[0].double()
    case = case_of(model, x, layers=("input",))
    if how == "own":
        assert pl.metric("cascade_ssim").measure(case)["input"].values.shape == (len(x),)
        return
    with pytest.raises(InvalidModel, match="a randomized copy runs a Conv2d that is none of its modules"):
        pl.metric("cascade_ssim").measure(case)


@pytest.mark.parametrize("way", ["moments", "initializers"])
@pytest.mark.parametrize("keep", ["buffer", "attribute"])
def test_weights_that_are_no_parameters_are_said_to_stay(keep: str, way: str) -> None:
    class Kept(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.fc = nn.Conv2d(3, 4, 3), nn.Linear(4, 2)
            self.statistics = nn.BatchNorm2d(4)
            kernel = torch.randn(4, 4, 3, 3)
            if keep == "buffer":
                self.register_buffer("kernel", kernel)
            else:
                self.kernel = kernel

    with pytest.warns(pl.errors.WeightsWarning, match="kernel stay trained .* make them nn.Param"):
        next(cascade(Kept().eval(), way=way))
