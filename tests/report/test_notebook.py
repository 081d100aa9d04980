"""What a notebook shows: maps beside images, tables and cards, from the values themselves."""

import io
from base64 import b64decode

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

import pellucid as pl
from pellucid.errors import InvalidParameter
from pellucid.report.figures import colored, scaled
from tests.networks import photos_for_strided, strided
from tests.tables import plausible


@pytest.fixture(scope="module")
def model():
    return strided()


@pytest.fixture(scope="module")
def images():
    return photos_for_strided()


def pixels(drawing):
    return np.asarray(Image.open(io.BytesIO(drawing.file("png"))).convert("RGB"))


def counts(picture, color):
    return int((picture == np.array(color, np.uint8)).all(-1).sum())


def test_a_maps_pixels_are_in_the_picture_each_as_large_as_the_others():
    """A map of 2 x 2 in four colors: each color fills a quarter of a cell."""
    values = torch.tensor([[[1.0, -1.0], [0.5, 0.0]]])
    picture = pixels(pl.show(values))
    colors = colored(scaled(values[0].numpy()), True).reshape(-1, 3)
    areas = [counts(picture, color) for color in colors[:3]]  # the fourth is white
    assert min(areas) > 100 * 100
    assert max(areas) <= min(areas) + 600  # beside the bar of colors


@pytest.mark.parametrize("size", [1e-60, 1e60])
def test_a_map_is_drawn_alike_whatever_its_size(size):
    values = torch.randn(2, 3, 4, 5, dtype=torch.float64)
    assert pl.show(values * size).file("png") == pl.show(values).file("png")


@pytest.mark.parametrize("kind", [np.float64, np.float32, np.float16, np.int64, np.uint8])
def test_an_array_is_drawn_as_its_tensor(kind):
    maps = np.arange(2 * 3 * 4).reshape(2, 3, 4).astype(kind)
    drawn = pl.show(torch.from_numpy(maps)).file("png")
    assert pl.show(maps).file("png") == pl.show(maps[::-1][::-1]).file("png") == drawn
    assert pl.show(list(maps)).file("png") == drawn
    assert pl.show(maps[0]).file("png") == pl.show(maps[:1]).file("png")
    named = pl.show({"gradient": {"layer1": maps}})
    assert named.file("png") == pl.show({"gradient": {"layer1": torch.from_numpy(maps)}}).file("png")


def rows_of_maps(images, methods, variants=("original",)):
    """Rows as ``read_maps`` gives them, each image's of a size of its own, in the order of methods."""
    rows = [
        {"image": f"{image}.png", "layer": "layer1", "method": method, "variant": variant, "target": "cat",
         "score": 0.5, "source": "photos", "position": image,
         "map": np.random.default_rng(image).normal(size=(2, 3 + image)).astype(np.float32)}
        for method in methods for variant in variants for image in images
    ]  # fmt: skip
    return pd.DataFrame(rows).astype(dict.fromkeys(["layer", "method", "variant", "target"], "category"))


def test_rows_of_read_maps_are_a_row_for_each_image_and_a_column_for_each_method():
    table = rows_of_maps([1, 0], ["gradient", "gradcam"])
    drawing = pl.show(table)
    maps = [table["map"][0], table["map"][1]]
    expected = pl.show({"gradient": {"layer1": maps}, "gradcam": {"layer1": maps}})
    assert len(drawing.pictures) == len(expected.pictures) == 2 * 2 + 1
    told = [one.text for one in drawing.texts]
    assert {"1.png: cat", "0.png: cat", "for cat"} <= set(told)
    assert told.index("1.png: cat") < told.index("0.png: cat")
    assert pl.show(table.iloc[[1, 0, 2, 3]]).file("png") != drawing.file("png")  # images in the order of the rows
    both = pl.show(rows_of_maps([0], ["gradient"], ["original", "backward"]))
    assert any("backward" in one.text for one in both.texts)
    photo = Image.new("RGB", (8, 8))
    assert len(pl.show(table, [photo, photo]).pictures) == 2 * 3 + 1


@pytest.mark.parametrize(
    ("shown", "message"),
    [
        (pd.DataFrame({"a": [1]}), "without the column 'image' holds no maps; give rows of read_maps"),
        (rows_of_maps([0], ["gradient"])[:0], "no rows"),
        (rows_of_maps([0, 1], ["gradient", "gradcam"])[:3], "gradcam at layer1 has no map of some images"),
        (np.array(["a"]), r"array of <U1, which is no map; give .* one array \(h, w\), or rows of read_maps"),
        ("cat.jpg", "str, which is no map; give"),
        ({"gradient": 3}, "'gradient' is int, which is no map"),
        ([np.zeros((2, 2, 2))], r"a list of maps holds one of shape \(2, 2, 2\); give arrays \(h, w\)"),
    ],
)
def test_what_is_no_map_is_refused_with_what_to_give(shown, message):
    with pytest.raises(InvalidParameter, match=message):
        pl.show(shown)


def test_methods_and_layers_are_columns_and_images_rows(model, images):
    found = {
        name: pl.method(name)(model, images, layers=("input", "0")) for name in ("gradient", "input_x_gradient")
    }
    drawing = pl.show(found, images, classes=["cat", "dog", "eel"])
    assert repr(drawing) == f"Drawing of {drawing.width} x {drawing.height} pixels"
    told = [one.text for one in drawing.texts]
    assert sum("gradient" in text for text in told) == 4
    targets = found["gradient"].targets.tolist()
    assert [text for text in told if text in ("cat", "dog", "eel")] == [["cat", "dog", "eel"][t] for t in targets]
    assert len(drawing.pictures) == 3 * 4 + 3 + 1  # maps, photos, the bar of colors


def test_what_is_no_class_is_called_as_it_was_asked(model, images):
    """Not "class 0", which the one output of a difference would be."""
    told = [one.text for one in pl.show(pl.Gradient()(model, images, "2 - 0"), images).texts]
    assert told.count("2 - 0") == len(images)
    assert {"for 2", "for 0"} <= set(told)
    assert not any("class" in text for text in told)


def test_the_legend_claims_no_more_than_a_methods_sign_says(model, images):
    """A guided gradient's or a random map's sign says nothing of the class; a layer's name is no method's."""
    maps, guided, noise = (pl.method(name)(model, images, 0) for name in ("gradient", "guided_backprop", "random"))

    def told(shown):
        return {one.text for one in pl.show(shown, images).texts}

    assert {"for class 0", "against class 0"} <= told({"gradient": maps}) & told(maps) & told({"mine #1": maps})
    for signless in (guided, noise, {"guided_backprop": guided, "random": noise}, {"a": guided}):
        assert {"positive", "negative"} <= told(signless)
        assert not any("class" in text for text in told(signless) if text.startswith(("for", "against")))
    for guided_maps in (guided, guided["input"].numpy()):  # arrays are known by their names alone
        both = told({"gradient": maps, "guided_backprop": guided_maps})
        assert any("the sign of guided_backprop says nothing" in text for text in both)
    assert "for class 0" in told({"gradient": maps, "guided_backprop": guided})


def test_images_beyond_the_most_are_counted(model, images):
    drawing = pl.Gradient()(model, images).plot(images, most=1)
    assert any("2 more images not shown" in one.text for one in drawing.texts)


def test_pictures_arrays_and_tensors_are_shown_alike(model, images):
    found = pl.Gradient()(model, images[:1])
    array = np.random.default_rng(0).integers(0, 255, (16, 16, 3)).astype(np.uint8)
    shown = [
        pl.show(found, given).file("png")
        for given in (array, Image.fromarray(array), [array], [Image.fromarray(array)])
    ]
    assert len(set(shown)) == 1
    assert pl.show(found, images[0]).file("png") == pl.show(found, images[:1]).file("png")


def test_what_does_not_fit_is_refused(model, images):
    found = pl.Gradient()(model, images)
    with pytest.raises(InvalidParameter, match="2 pictures; give one picture for each image"):
        pl.show(found, images[:2])
    with pytest.raises(InvalidParameter, match="no attributions to show"):
        pl.show({})
    with pytest.raises(InvalidParameter, match="which is no map"):
        pl.show(torch.zeros(3, 4))
    with pytest.raises(InvalidParameter, match=r"array \(16, 16\)"):
        pl.show(found, [np.zeros((16, 16))] * 3)


def test_a_notebook_shows_attributions_with_their_maps(model, images):
    html = pl.Gradient()(model, images, layers=("input", "0"))._repr_html_()
    assert "Attributions(input: (3, 3, 16, 16), 0: (3, 4, 8, 8)" in html
    picture = Image.open(io.BytesIO(b64decode(html.partition("base64,")[2].partition('"')[0])))
    drawn = pl.Gradient()(model, images, layers=("input", "0")).plot()
    assert picture.size == (drawn.width, drawn.height)
    assert "<img" not in pl.Gradient()(model, images, layers="3")._repr_html_()  # no map: (B, C)


def test_a_notebook_shows_results_a_card_and_a_model():
    run = plausible()
    assert "by hand" in run._repr_html_()
    assert "layer2.1" in run._repr_html_()
    loaded = pl.load_model("shapes-resnet")
    html = loaded._repr_html_()
    assert "shapes-resnet" in html
    assert str(len(loaded.classes)) in html
    assert loaded.classes[0] in html
    assert "layer1.0" in html


# Results as tables.


def test_values_and_pivots_of_results():
    run = plausible()
    values = run.values(metric="mass_outside", layer="input", method="gradcam", variant="original")
    assert list(values.columns) == [
        "model",
        "variant",
        "method",
        "layer",
        "metric",
        "image",
        "training",
        "target",
        "value",
    ]
    assert len(values) == 12
    table = run.pivot(metric="mass_outside")
    assert table.loc[("net", "original", "gradcam", "input"), "mass_outside"] == pytest.approx(
        values["value"].mean(), rel=1e-12
    )
    of_variants = run.values(metric="top1")
    assert of_variants["method"].isna().all()
    assert of_variants["layer"].isna().all()
    assert len(run.pivot(metric="top1")) == 3
    assert list(run.pivot().columns)[:2] == ["insertion(steps='auto')", "deletion(steps='auto')"]


def test_values_of_what_is_not_there_are_refused():
    with pytest.raises(pl.PellucidError, match="did you mean mass_outside"):
        plausible().values(metric="mas_outside")
    with pytest.raises(pl.PellucidError, match="did you mean metric"):
        plausible().pivot(metrics="mass_outside")
    with pytest.raises(pl.PellucidError, match="column of the results 'metrc'; did you mean metric"):
        plausible().pivot(columns="metrc")
    assert plausible().pivot(index="method", metric="insertion(steps='auto')").index.names == ["method"]


def test_a_drawing_is_saved_by_the_files_ending(tmp_path):
    picture = pl.show(torch.ones(1, 1, 2, 2))
    for kind in ("png", "svg"):
        picture.save(str(tmp_path / f"maps.{kind}"))
        assert (tmp_path / f"maps.{kind}").read_bytes() == picture.file(kind)
    with pytest.raises(InvalidParameter, match=r"maps.jpg: give a file ending in .png or .svg"):
        picture.save(tmp_path / "maps.jpg")


def test_an_overlay_that_is_none_is_refused():
    with pytest.raises(InvalidParameter, match=r"overlay=0.5; give True, or how, such as pellucid.Overlay\(alpha"):
        pl.show(torch.rand(1, 4, 4), torch.rand(1, 3, 8, 8), overlay=0.5)
