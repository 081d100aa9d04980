"""The score of a given box, against the detector's own boxes picked by hand."""

import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torchvision.models import detection

import pellucid as pl
from pellucid.errors import EmptyMapWarning, InvalidModel, InvalidParameter
from pellucid.models.detection import Detection
from tests.networks import images, relative_error, seeded

PLACES = torch.tensor([[0, 0, 4, 4], [4, 0, 8, 4], [0, 4, 4, 8], [1, 0, 5, 4]], dtype=torch.float64)
LABELS = torch.tensor([1, 2, 1, 2])


class Boxes(nn.Module):
    """A detector that finds four fixed boxes, each with a score from the means of the image's channels."""

    def __init__(self, form="torchvision"):
        super().__init__()
        self.conv, self.head, self.form = nn.Conv2d(3, 4, 3, padding=1), nn.Linear(4, 4), form

    def scores(self, x):
        return self.head(torch.relu(self.conv(x)).mean((2, 3))).sigmoid()

    def forward(self, x):
        scores = self.scores(x)
        if self.form == "torchvision":
            return [{"boxes": PLACES, "scores": row, "labels": LABELS} for row in scores]
        corners = torch.cat([(PLACES[:, :2] + PLACES[:, 2:]) / 2, PLACES[:, 2:] - PLACES[:, :2]], 1)
        classes = torch.stack([scores, scores / 2], 1)  # (B, 2, 4): the second class is half as sure
        raw = torch.cat([corners.T.expand(len(x), -1, -1), classes], 1)
        return (raw, []) if self.form == "ultralytics" else {"raw": raw}


def detector(form="torchvision"):
    return seeded(lambda: Boxes(form))


# Given boxes, and the numbers of those found that overlap them most.
CASES = [
    ([[0, 0, 4, 4]], None, [0]),
    ([[4, 0, 8, 4], [0, 3, 4, 7]], None, [1, 2]),
    ([[0, 0, 4, 4]], [2], [3]),  # the best of another label
]


@pytest.mark.parametrize(("boxes", "labels", "which"), CASES)
def test_the_score_is_that_of_the_box_that_overlaps_most(boxes, labels, which):
    model, x = detector(), images(3)
    wrapped = Detection(model, boxes, labels)
    expected = model.scores(x)[:, which]
    assert torch.allclose(wrapped(x).sigmoid(), expected)
    point = x.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(model.scores(point)[:, which[-1]].logit().sum(), point)
    found = pl.method("gradient")(wrapped, x, len(which) - 1, ["input", "conv"])
    assert relative_error(found["input"], gradient) < 1e-10
    assert found["conv"].shape == (3, 4, 8, 8)


def test_ultralytics_outputs():
    x = images(2)
    scores = detector().scores(x)
    found = Detection(detector("ultralytics"), [[4, 0, 8, 4], [0, 0, 4, 4]], [0, 1])(x).sigmoid()
    assert torch.allclose(found, torch.stack([scores[:, 1], scores[:, 0] / 2], 1))
    assert torch.allclose(Detection(detector("ultralytics"), [[4, 0, 8, 4]])(x).sigmoid(), scores[:, 1:2])


def test_a_box_that_is_not_found_has_no_score():
    model, x = detector(), images(2)
    with pytest.warns(EmptyMapWarning):
        found = pl.method("gradient")(Detection(model, [[0, 0, 4, 4]], [7]), x, 0)["input"]
    assert not found.any()
    alone = Detection(model, [[6, 6, 8, 8]])
    assert torch.allclose(alone(x).sigmoid(), torch.full((2, 1), 1e-6, dtype=x.dtype))
    assert pl.Scorer(alone).scores(x).max() < 1e-5
    half = [[0, 0, 2, 4]]  # overlaps its best by a half
    assert Detection(model, half, overlap=0.5)(x).sigmoid().min() > 1e-5
    assert Detection(model, half, overlap=0.51)(x).sigmoid().max() < 1e-5


def test_a_box_of_another_label_is_none_whatever_the_overlap():
    x = images(3)
    assert torch.allclose(Detection(detector(), [[0, 0, 4, 4]], [3], overlap=0)(x).sigmoid(), x.new_tensor(1e-6))
    expected = detector().scores(x)[:, [1]]  # the first of its label, however far
    assert torch.allclose(Detection(detector(), [[0, 6, 2, 8]], [2], overlap=0)(x).sigmoid(), expected)
    for overlap in (-0.1, 50, float("nan")):
        with pytest.raises(InvalidParameter, match="from 0 to 1"):
            Detection(detector(), [[0, 0, 4, 4]], overlap=overlap)


def test_deletion_follows_the_box():
    model, x = detector(), images(2)
    wrapped = Detection(model, [[0, 0, 4, 4]])
    maps = pl.heatmap(pl.method("gradient")(wrapped, x, 0)["input"], (8, 8))
    curve = pl.deletion(wrapped, x, 0, maps, steps=4)
    assert torch.allclose(curve.scores[:, 0], model.scores(x)[:, 0])


def test_outputs_of_another_kind_and_boxes_that_are_none():
    x = images(1)
    with pytest.raises(InvalidModel, match="returns dict, in which no boxes are found; give read="):
        Detection(detector("other"), [[0, 0, 4, 4]])(x)
    read = Detection(
        detector("other"), [[0, 0, 4, 4]], read=lambda output: [(PLACES, row[4], LABELS) for row in output["raw"]]
    )
    assert torch.allclose(read(x).sigmoid(), detector().scores(x)[:, :1])
    for boxes, labels in (([[4, 0, 4, 4]], None), ([0, 0, 4, 4], None), ([[0, 0, 4, 4]], [1, 2])):
        with pytest.raises(InvalidParameter):
            Detection(detector(), boxes, labels)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_torchvision_s_own_detector():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = detection.fasterrcnn_mobilenet_v3_large_320_fpn(
            weights=None, weights_backbone=None, box_score_thresh=0.0, min_size=64, max_size=64,
            rpn_pre_nms_top_n_test=50, rpn_post_nms_top_n_test=20,
        ).eval()  # fmt: skip
    x = torch.rand(1, 3, 64, 64)
    with torch.no_grad():
        [found] = model(x)
    box = found["boxes"][0]
    wrapped = Detection(model, box[None], [int(found["labels"][0])], overlap=0.5)
    assert float(wrapped(x).sigmoid()) == pytest.approx(float(found["scores"][0]), rel=1e-4)
    attribution = pl.method("gradient")(wrapped, x, 0)["input"]
    assert attribution.shape == x.shape
    assert attribution.any()


@pytest.mark.slow
def test_the_example_runs():
    example = Path(__file__).parents[2] / "examples" / "detection.py"
    done = subprocess.run([sys.executable, example], capture_output=True, text=True, check=True)
    assert "backbone.features.0.13: (1, 672, 20, 20)" in done.stdout
    assert "score of the box: 0.0" in done.stdout
