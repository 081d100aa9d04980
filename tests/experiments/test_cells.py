"""Cells: what is measured, on which model and class, whatever the cut; plans, and what they refuse."""

import io
import pickle
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import pellucid as pl
from pellucid import catalog
from pellucid.data.sources import Sample, open_images
from pellucid.errors import (
    InputWarning,
    InvalidData,
    InvalidLayer,
    InvalidMap,
    InvalidModel,
    InvalidParameter,
    InvalidTarget,
    UnknownName,
)
from pellucid.experiments import inputs
from pellucid.experiments.cells import run_cell
from pellucid.experiments.inputs import annotated, moved_boxes, require_object
from pellucid.experiments.planning import plan
from pellucid.experiments.spec import read_spec
from pellucid.metrics.base import Measured, Metric, VariantMetric
from pellucid.metrics.randomization import randomized
from pellucid.metrics.scoring import Scorer
from pellucid.models.preprocess import Preprocess
from pellucid.models.zoo import LoadedModel, load_model
from pellucid.seeds import image_seed
from pellucid.variants.base import ORIGINAL

LAYERS = ["input", "layer2.0"]


@pytest.fixture(autouse=True)
def _forgotten():
    yield
    inputs.forget()


class Fake(Metric):
    axis = "noise"
    unit = "1"
    higher_is_better = True
    paper = "none"


@dataclass(frozen=True, kw_only=True)
class Class(Fake):
    """100 x the explained class + the scored one; its curve holds their scores."""

    name = "classes"

    def measure(self, case):
        scores = case.scorer.of(case.images)
        curve = torch.stack([scores.gather(1, c[:, None])[:, 0] for c in (case.targets, case.scored)], 1)
        values = 100.0 * case.targets + case.scored
        return {layer: Measured(values, curve, (0.25, 0.5), ("explained", "scored")) for layer in case.layers}


@dataclass(frozen=True, kw_only=True)
class Never(Fake):
    """Undefined."""

    name = "never"
    undefined = "always"

    def measure(self, case):
        return {layer: Measured(torch.full((len(case.images),), float("nan"))) for layer in case.layers}


@dataclass(frozen=True, kw_only=True)
class OfModel(VariantMetric):
    """The highest score, at no layer."""

    name = "of_model"
    axis, unit, higher_is_better, paper = Fake.axis, Fake.unit, Fake.higher_is_better, Fake.paper

    def values(self, case):
        return case.scorer.of(case.images).amax(1)


@dataclass(frozen=True, kw_only=True)
class Objects(Fake):
    """The object's share of the image."""

    name = "objects"
    needs = frozenset({"masks"})

    def measure(self, case):
        return {layer: Measured(case.masks.double().mean((1, 2))) for layer in case.layers}


@dataclass(frozen=True, kw_only=True)
class Labels(Objects):
    name = "labels"
    needs = frozenset({"labels"})

    def measure(self, case):
        return {layer: Measured(case.labels.double()) for layer in case.layers}


@pytest.fixture(autouse=True)
def _fakes(monkeypatch):
    for metric in (Class, Never, OfModel, Objects, Labels):
        monkeypatch.setitem(catalog.METRICS, metric.name, metric)


def spec(**changed):
    content = {
        "models": ["shapes-resnet"],
        "images": {"source": "shapes:5"},
        "methods": ["gradient"],
        "layers": LAYERS,
        "metrics": ["total_variation"],
        "images_per_cell": 3,
        "pictures": 2,
    }
    return read_spec(None, content | changed)


def table(wanted):
    planned = plan(wanted)
    parts = [run_cell(planned.spec, cell).rows.to_pandas() for cell in planned.cells]
    rows = pd.concat(parts, ignore_index=True)
    texts = rows.select_dtypes(exclude="number").columns
    return rows.astype(dict.fromkeys(texts, object))


def test_the_values_are_those_of_a_loop_over_single_images():
    methods = ["gradient", "smoothed(gradient, samples=2)"]
    found = table(spec(methods=methods, variants=["original", "backward"], seed=3))
    found = found.set_index(["variant", "method", "layer", "image"])["value"]
    assert len(found) == 2 * 2 * 2 * 5
    model, preprocess = load_model("shapes-resnet")
    for sample in open_images("shapes:5"):
        image = preprocess(sample.image)[None]
        target = model(image).argmax(1)
        for text in methods:
            for variant in ("original", "backward"):
                seed = image_seed(3, sample.name)
                maps = pl.method(text)(model, image, target, LAYERS, variant=variant, seed=seed)
                for layer in LAYERS:
                    expected = float(pl.total_variation(maps[layer]))
                    assert found[variant, text, layer, sample.name] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize(("images_per_cell", "max_batch"), [(1, 64), (5, 2), (2, 3)])
def test_the_cut_changes_nothing_but_the_order(images_per_cell, max_batch):
    settings = {"methods": ["random", "smoothed(gradient, samples=2)"], "metrics": ["total_variation", "classes"]}
    keys = ["method", "layer", "metric", "image", "at"]
    whole = table(spec(**settings, images_per_cell=5)).sort_values(keys, ignore_index=True)
    cut = table(spec(**settings, images_per_cell=images_per_cell, max_batch=max_batch))
    pd.testing.assert_frame_equal(cut.sort_values(keys, ignore_index=True), whole, check_exact=False, rtol=1e-5)


def test_rows_tell_everything():
    found = table(spec(metrics=["classes", "never"], images_per_cell=5, seed=9))
    assert list(found) == [
        *("model", "variant", "method", "layer", "metric"),
        *("at", "step", "image", "training", "target", "value", "seed", "versions"),
    ]
    assert set(found["target"]) <= set(load_model("shapes-resnet").classes)
    assert set(found["model"]) == {"shapes-resnet"}
    assert set(found["seed"]) == {9}
    assert set(found["versions"]) == {f"pellucid {version('pellucid')}, torch {version('torch')}"}
    assert found[found["metric"] == "never"]["value"].isna().all()
    curves = found[found["metric"] == "classes"]
    one = curves[(curves["layer"] == "layer2.0") & (curves["image"] == "shape-3")]
    model, preprocess = load_model("shapes-resnet")
    shares = model(preprocess(open_images("shapes:5")[3].image)[None]).softmax(1)[0]
    best = float(shares.argmax())
    assert one["at"].tolist() == pytest.approx([float("nan"), 0.25, 0.5], nan_ok=True)
    assert one["step"].tolist()[1:] == ["explained", "scored"]
    assert one["value"].tolist() == pytest.approx([101 * best, float(shares.max()), float(shares.max())], rel=1e-5)


def test_what_grades_the_model_stands_once_for_each_variant_at_no_layer():
    found = table(spec(metrics=["of_model", "total_variation"], variants=["original", "forward"]))
    graded = found[found["metric"] == "of_model"]
    assert len(graded) == 2 * 5
    assert graded["layer"].isna().all()
    assert graded["method"].isna().all()
    assert found[found["metric"] == "total_variation"]["method"].notna().all()
    assert len(plan(spec(metrics=["of_model"], methods=[])).cells) == 2


@pytest.mark.parametrize("scored", ["original", "variant"])
@pytest.mark.parametrize("target", ["scored", "explained", "label", 6])
def test_the_explained_and_the_scored_class_are_as_asked(target, scored):
    # Of the three images, the forward variant sees the second as another class, and the label of the third is none
    # of the two.
    skip = [f"shape-{index:02d}" for index in range(19) if index not in (0, 7, 18)]
    settings = {"images": {"source": "shapes:19", "skip": skip}, "variants": ["forward"], "metrics": ["classes"]}
    found = table(spec(**settings, target=target, scored=scored))
    values = found[found["at"].isna() & (found["layer"] == "input")]["value"].tolist()
    model, preprocess = load_model("shapes-resnet")
    samples = [open_images("shapes:19")[index] for index in (0, 7, 18)]
    images = torch.stack([preprocess(sample.image) for sample in samples])
    best = {variant: Scorer(model, variant).scores(images).argmax(1) for variant in ("original", "forward")}
    labels = torch.tensor([sample.label for sample in samples])
    assert (best["original"] != best["forward"]).tolist() == [False, True, False]
    assert (best["original"] != labels).tolist() == [False, False, True]
    follows = best["original" if scored == "original" else "forward"]
    given = {"label": labels, 6: torch.full((3,), 6)}
    explained = {"scored": follows, "explained": best["forward"]}.get(target, given.get(target))
    graded = given.get(target, follows)
    assert values == (100 * explained + graded).tolist()


def test_clean_images_are_scored_once_for_all_cells_of_the_same_images():
    planned = plan(spec(methods=["gradient", "random"], metrics=["classes", "of_model"]))
    first = [cell for cell in planned.cells if cell.start == 0]
    assert len(first) == 3
    for cell in first:
        run_cell(planned.spec, cell)
    [batch] = inputs.batches(planned.spec, "shapes-resnet", 0, 3)
    assert batch.scorer(ORIGINAL).rows == 3


def test_a_cell_can_be_sent_elsewhere_and_gives_the_same():
    planned = plan(spec())
    sent = pickle.loads(pickle.dumps((planned.spec, planned.cells[1])))
    here = run_cell(planned.spec, planned.cells[1])
    inputs.forget()
    assert run_cell(*sent).rows.equals(here.rows)


def test_ids_are_stable_distinct_and_fit_a_file():
    wanted = spec(methods=["gradient", f"smoothed(gradient, samples=2, std=0.{'1' * 200})"])
    ids = [cell.id for cell in plan(wanted).cells]
    assert ids == [cell.id for cell in plan(wanted).cells]
    assert len(set(ids)) == 4
    assert max(map(len, ids)) < 220
    assert ids[0].startswith("shapes-resnet_original_gradient_00000-00002_")
    assert not set(ids) & {cell.id for cell in plan(wanted.model_copy(update={"seed": 1})).cells}
    same = wanted.model_copy(update={"max_batch": 3, "device": "cpu", "reference": "gradient", "name": "other"})
    assert ids == [cell.id for cell in plan(same).cells]


def test_images_of_several_sizes_share_a_cell(tmp_path):
    (tmp_path / "net.py").write_text(
        "import pellucid.models.zoo as zoo\nfrom pellucid.models.preprocess import Preprocess\n"
        "preprocess = Preprocess(resize=None, crop=None)\n"
        "def build():\n    return zoo.load_model('shapes-resnet').model\n"
    )
    for index, size in enumerate([(40, 40), (48, 40), (40, 40)]):
        Image.effect_noise(size, 90).convert("RGB").save(tmp_path / f"{index}.png")
    found = table(spec(models=[f"{tmp_path}/net.py:build"], images={"source": str(tmp_path)}, layers=["input"]))
    assert sorted(found["image"]) == ["0.png", "1.png", "2.png"]
    assert set(found["model"]) == {"net.py:build"}


def test_pictures_are_the_first_images_maps_at_the_layers_size_scaled_to_1():
    planned = plan(spec(images_per_cell=1))
    found = pd.concat([run_cell(planned.spec, cell).pictures.to_pandas() for cell in planned.cells])
    assert found["image"].unique().tolist() == ["shape-0", "shape-1"]
    maps = {layer: np.load(io.BytesIO(data)) for layer, data in zip(found["layer"], found["data"], strict=True)}
    model, preprocess = load_model("shapes-resnet")
    image = preprocess(open_images("shapes:5")[1].image)[None]
    expected = pl.heatmap(pl.method("gradient")(model, image, layers=LAYERS)["layer2.0"])[0]
    assert maps["layer2.0"].dtype == np.float16
    assert np.allclose(maps["layer2.0"], expected / expected.abs().max(), atol=1e-3)
    assert np.abs(maps["input"]).max() == 1
    assert maps["input"].shape == (64, 64)


def test_pictures_hold_the_maps_that_a_metric_compared_with_where_it_has_a_value():
    attacks = [f"adversarial_change(epsilon={epsilon})" for epsilon in (1e-9, 0.2)]
    planned = plan(spec(metrics=["class_change", *attacks], layers=["layer2.0"]))
    finished = run_cell(planned.spec, planned.cells[0])
    found = finished.pictures.to_pandas()
    rows = finished.rows.to_pandas().set_index(["metric", "image"])["value"]
    of_kind = {kind: part.set_index("image")["data"] for kind, part in found.groupby("kind")}
    shown = ["shape-0", "shape-1"]
    assert set(of_kind) == {"map", "class_change", attacks[1]}  # the other attack changes no class
    assert list(of_kind["class_change"].index) == shown
    assert list(of_kind[attacks[1]].index) == [name for name in shown if np.isfinite(rows[attacks[1], name])] != []
    model, preprocess = load_model("shapes-resnet")
    image = preprocess(open_images("shapes:5")[1].image)[None]
    second = model(image).topk(2).indices[:, 1]
    expected = pl.heatmap(pl.method("gradient")(model, image, second, layers="layer2.0")["layer2.0"])[0]
    kept = np.load(io.BytesIO(of_kind["class_change"]["shape-1"]))
    assert np.allclose(kept, expected / expected.abs().max(), atol=1e-3)


def test_maps_of_a_function_of_ones_own_are_graded_like_others(tmp_path):
    (tmp_path / "mine.py").write_text(
        "def images(model, images, targets):\n    return images\n"
        "def broken(model, images, targets):\n    return images / 0\n"
    )
    texts = [f"{tmp_path}/mine.py:images", f"{tmp_path}/mine.py:broken"]
    planned = plan(spec(methods=texts, images={"source": "shapes:1"}))
    good, bad = planned.cells
    found = run_cell(planned.spec, good).rows.to_pandas()
    image = load_model("shapes-resnet").preprocess(open_images("shapes:1")[0].image)
    assert found["method"].tolist() == ["mine.py:images"]
    assert found["layer"].tolist() == ["input"]
    assert found["value"].tolist() == pytest.approx(pl.total_variation(image[None]).tolist(), rel=1e-6)
    with pytest.raises(InvalidMap, match=r"mine.py:broken gives NaN or infinite values"):
        run_cell(planned.spec, bad)
    assert planned.record.spec["methods"] == ["mine.py:images", "mine.py:broken"]


# What is known about an image, on the pixels the model sees.


def fitted(preprocess):
    return LoadedModel(torch.nn.Identity(), preprocess, "net")


@pytest.mark.parametrize(
    "preprocess",
    [
        Preprocess(),
        Preprocess(20, 16),
        Preprocess((32, 24), 20),
        Preprocess(None, 50),
        Preprocess(None, None),
        Preprocess(8, 21),
    ],
)
def test_masks_and_boxes_move_with_their_image(preprocess):
    """A white rectangle on black: wherever the preprocess puts it, its mask and box lie on it."""
    pixels = np.zeros((48, 64), np.uint8)
    pixels[12:36, 16:48] = 255
    picture = Image.fromarray(pixels)
    sample = Sample("it", picture.convert("RGB"), 3, picture, ((16, 12, 48, 36),))
    label, mask, boxes = annotated(sample, fitted(preprocess))
    seen = np.asarray(preprocess.display(sample.image).convert("L")) > 127
    assert label == 3
    assert (mask.numpy() != seen).sum() <= 2 * sum(seen.shape)  # half a pixel along the outline
    [(x0, y0, x1, y1)] = boxes
    rows, columns = np.nonzero(seen)
    for edge, place in ((x0, columns.min()), (y0, rows.min()), (x1, columns.max() + 1), (y1, rows.max() + 1)):
        assert abs(edge - place) <= 0.75


def test_a_crop_cuts_boxes_and_drops_those_beyond_it():
    preprocess = Preprocess(None, 20)
    assert moved_boxes(((0, 0, 15, 40), (0, 0, 9, 9), (10, 10, 30, 30)), (40, 40), preprocess) == (
        (0, 0, 5, 20),
        (0, 0, 20, 20),
    )
    assert moved_boxes(((14, 2, 18, 10),), (40, 20), Preprocess(40, 30)) == ((3, 0, 11, 15),)


def test_greys_below_200_are_background():
    mask = Image.fromarray(np.array([[0, 199, 200, 255]], np.uint8))
    sample = Sample("it", mask.convert("RGB"), None, mask)
    assert annotated(sample, fitted(Preprocess(None, None)))[1].tolist() == [[False, False, True, True]]


# Refused before anything is computed.


@pytest.fixture
def photos(tmp_path):
    """Photos without masks, boxes or labels."""
    for index in range(4):
        Image.effect_noise((64, 64), 90).convert("RGB").save(tmp_path / f"{index}.png")
    return tmp_path


@pytest.mark.parametrize(
    ("changed", "error", "message"),
    [
        ({"methods": ["gradien"]}, UnknownName, "did you mean gradient"),
        ({"metrics": ["total_variance"]}, UnknownName, "did you mean total_variation"),
        ({"variants": ["backwards"]}, UnknownName, "did you mean backward"),
        ({"layers": ["layer9.0"]}, UnknownName, "unknown layer 'layer9.0'"),
        ({"models": ["shapes-resnt"]}, UnknownName, "did you mean shapes-resnet"),
        ({"images": {"source": "nowhere"}}, InvalidData, "there is no file or folder"),
        (
            {"images": {"source": "shapes:5", "count": 6}},
            InvalidData,
            "shapes:5 with every=1 and 0 skipped gives 5 images, not 6; lower",
        ),
        ({"images": {"source": "shapes:5", "every": 2, "count": 4}}, InvalidData, "gives 3 images, not 4"),
        ({"images": {"source": "shapes:5", "skip": ["shape-9"]}}, UnknownName, "image to skip 'shape-9'"),
        ({"methods": []}, InvalidData, "no methods are named"),
    ],
)
def test_what_cannot_work_is_refused_by_the_plan(changed, error, message):
    with pytest.raises(error, match=message):
        plan(spec(**changed))


def test_a_mask_of_another_size_is_refused_with_the_way_out():
    sample = Sample("it", Image.new("RGB", (32, 24)), None, Image.new("L", (16, 16), 255))
    way = "give masks of the photos' own size, since they go through the same resizing and cropping"
    with pytest.raises(InvalidData, match=f"the mask of it is 16x16, not 32x24; {way}"):
        require_object(sample, load_model("shapes-resnet"))


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"metrics": ["objects"]},
            "4 of 4 images cannot be used; the first: objects needs masks, .* give them by --masks FOLDER",
        ),
        ({"metrics": ["labels"]}, "labels needs labels, and 0.png has none"),
        ({"target": "label"}, "target = 'label' needs labels, and 0.png has none"),
    ],
)
def test_data_without_what_a_metric_needs_are_refused(photos, changed, message):
    with pytest.raises(InvalidData, match=message):
        plan(spec(images={"source": str(photos)}, **changed))
    # Where all images are unusable there is nothing to go on with.
    with pytest.raises(InvalidData, match=message):
        plan(spec(images={"source": str(photos), "skip_unusable": True}, **changed))


def test_a_class_that_the_model_does_not_have_is_refused():
    planned = plan(spec(target=8))
    with pytest.raises(InvalidTarget, match="target 8 is out of range"):
        run_cell(planned.spec, planned.cells[0])


def test_a_layer_without_height_and_width_is_refused():
    planned = plan(spec(layers=["fc"]))
    with pytest.raises(InvalidLayer, match="layer 'fc' gives the shape"):
        run_cell(planned.spec, planned.cells[0])


def test_broken_images_end_the_experiment_before_it_begins_or_are_skipped(photos):
    (photos / "1.png").write_bytes(b"")
    with pytest.raises(InvalidData, match=r"1 of 4 images .*1.png is empty.*skip = \['1.png'\]"):
        plan(spec(images={"source": str(photos)}))
    kept = plan(spec(images={"source": str(photos), "skip_unusable": True}))
    assert kept.record.images == ("0.png", "2.png", "3.png")
    assert kept.spec.images.skip == ("1.png",)
    named = plan(spec(images={"source": str(photos), "skip": ["1.png"], "count": 2}))
    assert named.record.images == ("0.png", "2.png")
    # Another takes the place of one that is left out, as long as there are any.
    images = {"source": str(photos), "skip_unusable": True}
    assert plan(spec(images=images | {"count": 2})).record.images == ("0.png", "2.png")
    with pytest.raises(InvalidData, match=r"1 of 4 images cannot be used; the first: .*1.png is empty"):
        plan(spec(images=images | {"count": 4}))


def test_objects_that_the_crop_or_the_data_spoil_are_named(monkeypatch):
    blank = Image.new("L", (64, 64))
    cases = {
        "no pixel of what": {"mask": blank},
        "every pixel of what": {"mask": blank.point(lambda _: 255)},
        "is 32x64, not 64x64": {"mask": Image.new("L", (32, 64))},
        "leaves the image": {"mask": None, "boxes": ((0, 0, 65, 10),)},
        "is empty; give": {"mask": None, "boxes": ((9, 0, 9, 10),)},
    }
    usual = Sample("usual", Image.new("RGB", (64, 64)), 0, blank.copy())
    usual.mask.paste(255, (0, 0, 9, 9))
    for message, changed in cases.items():
        samples = [usual, replace(usual, name="odd", **changed)]
        source = inputs.Source(["usual", "odd"], samples.__getitem__)
        monkeypatch.setattr(inputs, "open_images", lambda *_, source=source: source)
        inputs.forget()
        with pytest.raises(InvalidData, match=f"1 of 2 images .*objects needs masks.*odd.*{message}"):
            plan(spec(metrics=["objects"]))


def test_a_preprocess_of_ones_own_cannot_say_where_masks_go(tmp_path):
    (tmp_path / "net.py").write_text(
        "import pellucid.models.zoo as zoo\nfrom torchvision.transforms.functional import to_tensor\n"
        "preprocess = to_tensor\n"
        "def build():\n    return zoo.load_model('shapes-resnet').model\n"
    )
    model = f"{tmp_path}/net.py:build"
    with pytest.raises(InvalidData, match=r"the preprocess of .*net.py:build does not say where pixels go"):
        plan(spec(models=[model], metrics=["objects"]))
    assert len(table(spec(models=[model]))) == 2 * 5


def test_the_identity_is_that_of_contents_not_of_places(photos, tmp_path_factory):
    elsewhere = tmp_path_factory.mktemp("moved") / "photos"
    source = {"source": str(photos)}
    here = plan(spec(images=source)).record.hash
    photos.rename(elsewhere)
    moved = {"source": str(elsewhere)}
    inputs.forget()
    assert plan(spec(images=moved)).record.hash == here
    Image.effect_noise((64, 64), 90).convert("RGB").save(elsewhere / "0.png")
    assert plan(spec(images=moved)).record.hash != here
    random = [{"name": "shapes-resnet", "weights": "random"}]
    hashes = {plan(spec(images=moved, **changed)).record.hash for changed in ({}, {"models": random}, {"seed": 1})}
    assert len(hashes) == 3


# Randomized models.


def cascade_spec(*models):
    return read_spec(
        options={
            "models": [{"name": "shapes-resnet", "alias": alias, **other} for alias, other in models],
            "images": {"source": "shapes:2"},
            "methods": ["gradient"],
            "metrics": ["total_variation"],
            "layers": ["input"],
        }
    )


@pytest.mark.slow
def test_randomized_models_are_models_of_their_own():
    spec = cascade_spec(
        ("trained", {}),
        ("fc", {"randomized": "fc"}),
        ("layer2", {"randomized": "layer2"}),
        ("fresh", {"randomized": "layer2", "way": "fresh"}),
    )
    trained = load_model("shapes-resnet").model
    for alias, down_to, way in (
        ("fc", "fc", "moments"),
        ("layer2", "layer2", "moments"),
        ("fresh", "layer2", "fresh"),
    ):
        expected = randomized(trained, down_to, way).state_dict()
        found = inputs.model_of(spec, alias)
        assert all(torch.equal(value, expected[name]) for name, value in found.model.state_dict().items())
        assert found.classes == load_model("shapes-resnet").classes
        assert not found.model.training
    unchanged = inputs.model_of(spec, "trained").model.state_dict()
    assert all(torch.equal(value, unchanged[name]) for name, value in trained.state_dict().items())
    digests = plan(spec).record.identity["models"]
    assert len(set(digests.values())) == 4
    one = plan(spec).cells[1]
    assert one.model == "fc"
    [batch] = inputs.batches(spec, "fc", 0, 2)
    gradient = pl.Gradient()(randomized(trained, "fc"), batch.images, "auto", ["input"])
    values = run_cell(spec, one).rows["value"].to_pylist()
    assert values == pytest.approx(pl.total_variation(gradient["input"]).tolist(), rel=1e-5)


def test_a_model_is_randomized_down_to_a_block_that_it_has():
    with pytest.raises(UnknownName, match=r"layer3"):
        plan(cascade_spec(("x", {"randomized": "layer4"})))
    with pytest.raises(InvalidParameter, match=r"way='fresh' is how a model is made random; add `randomized`"):
        cascade_spec(("x", {"way": "fresh"}))


def test_a_model_of_another_size_sees_the_middle_of_the_image_resized_to_it(tmp_path):
    """The bundled network takes squares of 64 pixels; at 32 all of the image enters, half as large."""
    spec = cascade_spec(("own", {}), ("small", {"size": 32}))
    [own], [small] = (inputs.batches(spec, alias, 0, 2) for alias in ("own", "small"))
    assert (own.images.shape[2:], small.images.shape[2:]) == ((64, 64), (32, 32))
    halved = torch.nn.functional.interpolate(own.images, (32, 32), mode="bilinear", antialias=True)
    assert torch.allclose(small.images, halved, atol=0.05)
    digests = plan(spec).record.identity["models"]
    assert digests["own"] != digests["small"]
    (tmp_path / "net.py").write_text(
        "import torch\n\npreprocess = torch.nn.Identity()\n\n\ndef build():\n"
        "    return torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 64 * 64, 2))\n"
    )
    with pytest.raises(InvalidModel, match=r"net.py:build brings a preprocess of its own: set the size .* there"):
        inputs.model_of(cascade_spec(("x", {"name": f"{tmp_path}/net.py:build", "size": 32})), "x")


def test_a_dense_classifier_is_another_model_than_the_classifier():
    digests = [inputs.digest_of_model(load_model(name)) for name in ("shapes-resnet", "dense:shapes-resnet")]
    assert len(set(digests)) == 2


def values(wanted):
    rows = table(wanted)
    return rows[rows["at"].isna()].set_index(["layer", "image"])["value"].sort_index()


@pytest.mark.slow
def test_classes_by_name_differences_and_functions(tmp_path):
    names = load_model("shapes-resnet").classes
    wanted = spec(metrics=["total_variation", "deletion"], target=2)
    pd.testing.assert_series_equal(values(wanted), values(spec(metrics=wanted.metrics, target=names[2].upper())))
    assert len(values(wanted)) == 2 * 2 * 5
    (tmp_path / "asked.py").write_text("def other(output):\n    return output[:, 2] - output[:, 5]\n")
    function, difference = f"{tmp_path}/asked.py:other", f"{names[2]} - {names[5]}"
    found = [values(spec(metrics=wanted.metrics, target=target)) for target in (function, difference, "2 - 5")]
    pd.testing.assert_series_equal(found[0], found[1])
    pd.testing.assert_series_equal(found[0], found[2])
    assert (found[0] - values(wanted)).abs().max() > 1e-3
    before = plan(spec(target=function)).record.hash
    (tmp_path / "asked.py").write_text("def other(output):\n    return output[:, 2] - output[:, 6]\n")
    assert plan(spec(target=function)).record.hash != before  # the function is another
    with pytest.raises(UnknownName, match="unknown class 'ringg'"):
        plan(spec(target="ringg"))


def test_layouts_of_a_spec_reach_every_method():
    turned = spec(layers=["layer2.0"], layouts={"layer2.*": "bcwh"})
    as_it_is = spec(layers=["layer2.0"])
    maps = [run_cell(wanted, plan(wanted).cells[0]).pictures.to_pandas()["data"] for wanted in (turned, as_it_is)]
    for one, other in zip(*maps, strict=True):
        assert np.array_equal(np.load(io.BytesIO(one)), np.load(io.BytesIO(other)).T)
    assert plan(turned).record.hash != plan(as_it_is).record.hash
    with pytest.raises(InvalidParameter, match="layouts 'maps' is no layout"):
        spec(layouts={"layer2.*": "maps"})


@pytest.mark.parametrize(("classes", "top1"), [("dog,cat", [0.0, 1.0]), ("cat,dog", [1.0, 0.0])])
def test_labels_are_matched_to_classes_by_name(tmp_path, monkeypatch, classes, top1):
    """A network of two outputs that answers 1 for whatever it sees: right for the folder of that name alone."""
    monkeypatch.chdir(tmp_path)
    Path("constant.py").write_text(
        "import torch\nfrom torch import nn\n\n\ndef network():\n"
        "    last = nn.Linear(2, 2)\n    last.weight.data.zero_()\n    last.bias.data = torch.tensor([5.0, 0.0])\n"
        "    return nn.Sequential(nn.Conv2d(3, 2, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), last)\n"
    )
    for name in ("cat", "dog"):
        Path("photos", name).mkdir(parents=True)
        Image.new("RGB", (16, 16), "gray").save(f"photos/{name}/a.png")
    chosen = {"name": "constant.py:network", "classes": classes.split(",")}
    made = {"images": {"source": "photos"}, "models": [chosen], "methods": [], "metrics": ["top1"]}
    results = pl.benchmark(read_spec(None, made), tmp_path / "run")
    assert results.table["value"].tolist() == top1
    others = made | {"models": [chosen | {"classes": ["eel", "fox"]}]}
    with pytest.warns(InputWarning, match="'cat', 'dog' .* are taken in order for 'eel', 'fox'"):
        plan(read_spec(None, others))
    others = made | {"models": [chosen | {"classes": ["dog", "eel"]}]}
    with pytest.raises(InvalidData, match="class 'cat' is none of the model's 2 classes"):
        plan(read_spec(None, others))


@pytest.mark.parametrize(("score", "ends"), [("softmax", (0, 1)), ("logits", (None, None))])
def test_means_of_probabilities_say_where_they_end(score, ends):
    planned = plan(spec(methods=["gradient"], metrics=["insertion"], score=score))
    assert planned.record.metrics["insertion"].ends == ends
