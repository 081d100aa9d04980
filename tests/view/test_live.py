"""A model's page: all layers from one call, made once; covered parts; anybody's photos; nothing from files."""

import base64
import io
import threading
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from pellucid.catalog import method, variant
from pellucid.data.sources import open_images
from pellucid.errors import InvalidImage, InvalidParameter, UnknownName, percent
from pellucid.heatmap import heatmap
from pellucid.layers import layer_names
from pellucid.metrics.scoring import Scorer
from pellucid.passes import counting
from pellucid.view.live import LiveView
from tests.view.conftest import nobody
from tests.view.test_run import decoded


def pixels(loaded, place=0):
    return loaded.preprocess(open_images("shapes:3")[place].image)[None]


def uploaded(name="cat.png", size=(40, 30)):
    file = io.BytesIO()
    Image.effect_noise(size, 50).convert("RGB").save(file, "PNG")
    return {"name": name, "content": base64.b64encode(file.getvalue()).decode()}


@pytest.mark.parametrize("name", ["gradient", "gradcam"])
def test_the_maps_of_all_layers_are_the_methods(live, loaded, name):
    found = live.maps(nobody, 1, name, 1, "auto")
    expected = method(name)(loaded.model, pixels(loaded, 1), "auto", "all", variant="forward")
    assert found["layers"] == layer_names(loaded.model)
    for layer, attribution in expected.items():
        values = heatmap(attribution, None)[0].numpy()
        np.testing.assert_allclose(decoded(found["maps"][layer]), values, atol=np.abs(values).max() / 60_000)
    assert found["explained"] == loaded.class_name(int(expected.targets[0]))


def test_what_another_network_answers_is_told_beside_the_original(live, loaded):
    image = pixels(loaded, 1)
    scorers = Scorer(loaded.model), Scorer(loaded.model, variant("forward"))
    before, after = (scorer.scores(image)[0] for scorer in scorers)
    place, told = int(before.argmax()), live.maps(nobody, 1, "gradient", 1, "auto")["under"]
    assert told.startswith(f"Under forward: {loaded.class_name(place)} {percent(float(after[place]))}, predicted ")
    assert f"the original: {percent(float(before[place]))}" in told
    assert f"by {100 * float(before[place] - after[place]).__abs__():.1f} points" in told
    assert "too few for a verdict, which takes 10 photos" in told
    assert live.maps(nobody, 0, "gradient", 1, "auto")["under"] == ""


def test_what_was_computed_is_not_computed_again(live):
    live.photo(nobody, 0)
    with counting() as passes:
        live.maps(nobody, 0, "gradient", 0, "auto")
        first = len(passes)
        live.maps(nobody, 0, "gradient", 0, "auto")
        assert len(passes) == first > 0
        live.maps(nobody, 0, "gradient", 0, "circle")
        assert len(passes) > first


def test_a_difference_of_classes_is_explained(live, loaded):
    found = live.maps(nobody, 0, "gradient", 0, "circle - ring")
    assert found["explained"] == "circle - ring"
    expected = method("gradient")(loaded, pixels(loaded), "circle - ring", "layer3.1")
    values = heatmap(expected["layer3.1"], None)[0].numpy()
    np.testing.assert_allclose(decoded(found["maps"]["layer3.1"]), values, atol=np.abs(values).max() / 60_000)
    with pytest.raises(UnknownName, match="cirkle"):
        live.maps(nobody, 0, "gradient", 0, "cirkle")


def test_a_covered_part_takes_the_mean_color_and_the_scores_say_what_that_does(live, loaded):
    image = pixels(loaded)
    _, _, height, width = image.shape
    rows, columns = torch.meshgrid(torch.arange(height) / height, torch.arange(width) / width, indexing="ij")
    covered = image.where(
        ((rows - 0.5) ** 2 + (columns - 0.4) ** 2).sqrt() > 0.2, image.mean((2, 3), keepdim=True)
    )
    told = {one["name"]: one for one in live.scores(nobody, 0, ((0.4, 0.5),), 0.2)}
    with torch.no_grad():
        before, after = (loaded.model(one).softmax(1)[0] for one in (image, covered))
    name = loaded.class_name(int(before.argmax()))
    assert told[name]["before"] == pytest.approx(float(before.max()), abs=1e-5)
    # The rim of a disk of whole pixels is a matter of taste: most of the change is not.
    assert abs(told[name]["after"] - float(after[before.argmax()])) < 0.3 * abs(
        float(before.max() - after.max()) or 1
    )
    assert loaded.class_name(int(after.argmax())) in told
    whole = live.scores(nobody, 0, ((0.5, 0.5),), 1.0)
    flat = image.mean((2, 3), keepdim=True).expand_as(image)
    with torch.no_grad():
        expected = loaded.model(flat).softmax(1)[0]
    assert {one["name"]: one["after"] for one in whole}[
        loaded.class_name(int(expected.argmax()))
    ] == pytest.approx(float(expected.max()), abs=1e-5)


def test_sigmoids_are_their_own_probabilities(loaded):
    labels = replace(loaded, model=nn.Sequential(loaded.model, nn.Sigmoid()).eval())
    view = LiveView(labels, [open_images("shapes:3")], variants=("original", "forward"))
    told = {one["name"]: one["before"] for one in view.scores(nobody, 0, ())}
    under = view.maps(nobody, 1, "gradient", 0, "auto")["under"]
    view.close()
    with torch.no_grad():
        own = labels.model(pixels(loaded))[0]
    place = int(own.argmax())
    assert told[loaded.class_name(place)] == pytest.approx(float(own[place]), abs=1e-6)
    assert f"the original: {percent(float(own[place]))}" in under


@pytest.mark.parametrize("name", ["../../evil.png", "/etc/passwd", "a\0b", "<script>.png", "x" * 5000, "\ud800"])
def test_a_photos_name_leads_nowhere(live, name):
    image = live.upload(nobody, **uploaded(name))["image"]
    assert [path.name for path in Path(live._folder.name).iterdir()] == [image]
    assert live.maps(nobody, 0, "gradient", image, "auto")["layers"][0] == "input"


def test_photos_are_bounded_and_go_when_the_command_ends(live, monkeypatch):
    monkeypatch.setenv("PELLUCID_MAX_UPLOAD", "1000")
    with pytest.raises(InvalidImage, match="PELLUCID_MAX_UPLOAD"):
        live.upload(nobody, **uploaded())
    monkeypatch.undo()
    for content, wrong in (("!", "did not arrive whole"), (base64.b64encode(b"text").decode(), "no image")):
        with pytest.raises(InvalidImage, match=wrong):
            live.upload(nobody, "a.png", content)
    monkeypatch.setattr("pellucid.view.live._UPLOADS", 2)
    kept = [live.upload(nobody, **uploaded(size=(9 + number, 9)))["image"] for number in range(3)]
    folder = Path(live._folder.name)
    assert sorted(path.name for path in folder.iterdir()) == sorted(kept[1:])
    with pytest.raises(InvalidImage, match="no longer kept"):
        live.photo(nobody, kept[0])
    live.close()
    assert not folder.exists()


@pytest.mark.parametrize(
    ("text", "target"),
    [("evil.py:run", "auto"), ("smoothed(evil.py:run)", "auto"), ("gradient", "evil.py:run")],
)
def test_a_page_runs_no_file(live, tmp_path, monkeypatch, text, target):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "evil.py").write_text("raise SystemExit('ran')")
    with pytest.raises(InvalidParameter, match="names a file"):
        live.maps(nobody, 0, text, 0, target)


def test_whoever_leaves_ends_the_work_and_the_model_is_as_it_was(live, loaded):
    before = {name: value.clone() for name, value in loaded.model.state_dict().items()}
    live.photo(nobody, 0)
    heard = []

    def left(doing):
        heard.append(doing)
        if len(heard) == 3:
            raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        live.maps(left, 0, "smoothed(gradient, samples=2000)", 0, "auto")
    assert all(torch.equal(value, before[name]) for name, value in loaded.model.state_dict().items())
    assert not any(module._forward_hooks for module in loaded.model.modules())
    assert live.maps(nobody, 0, "gradient", 0, "auto")["layers"]


def test_two_people_get_their_own_answers(live):
    asked = [("gradient", 0), ("gradcam", 1), ("smoothed(gradient, samples=3)", 2), ("gradient", 1)]
    found = {}

    def ask(one):
        found[one] = live.maps(nobody, 0, one[0], one[1], "auto")

    threads = [threading.Thread(target=ask, args=(one,)) for one in asked]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    live._made.clear()
    for one in asked:
        again = live.maps(nobody, 0, one[0], one[1], "auto")
        assert again["maps"] == found[one]["maps"]


@pytest.mark.parametrize("place", [-1, 3, 10**30])
def test_places_that_are_not_there_are_refused(live, place):
    with pytest.raises(IndexError, match="there is no photo"):
        live.photo(nobody, place)
    with pytest.raises(IndexError, match="there is no variant"):
        live.maps(nobody, place, "gradient", 0, "auto")
