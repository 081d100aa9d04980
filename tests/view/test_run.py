"""A run's page: the maps and values are the run's, and neither torch nor a model is needed."""

import base64
import json
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
from scipy.stats import spearmanr

from pellucid.errors import InvalidData
from pellucid.experiments.runners import benchmark
from pellucid.experiments.spec import Spec
from pellucid.experiments.store import Results
from pellucid.report.album import read_map
from pellucid.view.page import map_told
from pellucid.view.run import RunView
from tests.view.conftest import METHODS, nobody


def decoded(told):
    whole = np.frombuffer(base64.b64decode(told["values"]), "<i2").reshape(told["h"], told["w"])
    return whole / 32767 * told["peak"]


def kept_maps(run, **where):
    table = Results.read(run).pictures
    for column, name in where.items():
        table = table[table[column] == name]
    return {row.layer: read_map(row.data) for row in table.itertuples() if row.kind == "map"}


def test_a_map_told_to_a_page_is_itself_to_16_bits():
    values = np.random.default_rng(0).normal(size=(5, 7))
    told = map_told(values)
    np.testing.assert_allclose(decoded(told), values, atol=np.abs(values).max() / 60_000)
    assert (decoded(map_told(np.zeros((2, 2)))) == 0).all()


def test_maps_are_the_runs_in_the_models_order_of_layers(run, run_view):
    for image, method, variant in ((0, 1, 0), (2, 2, 1)):
        expected = kept_maps(
            run, image=f"shape-{image}", method=METHODS[method], variant=["original", "forward"][variant]
        )
        found = run_view.maps(nobody, 0, variant, method, image)
        assert found["layers"] == list(expected) == ["input", "layer1.1", "layer3.1"]
        for layer, values in expected.items():
            np.testing.assert_allclose(decoded(found["maps"][layer]), values, atol=1e-4)


def test_values_are_the_tables(run, run_view):
    found = run_view.values(nobody, 0, 1, 2)
    table = Results.read(run).values(method="gradcam", variant="forward")
    for row in table.itertuples():
        if row.image in run_view.images:
            value = found["layers"][row.layer][row.metric][run_view.images.index(row.image)]
            assert (value is None and row.value != row.value) or value == pytest.approx(row.value, rel=1e-5)
    assert found["explained"] == [table[table["image"] == name]["target"].iloc[0] for name in run_view.images]


def test_disagreement_is_one_less_the_mean_rank_correlation_of_magnitudes(run, run_view):
    found = run_view.disagreement(nobody, 0, 0)
    maps = [kept_maps(run, image="shape-1", method=name, variant="original")["layer1.1"] for name in METHODS]
    pairs = [(0, 1), (0, 2), (1, 2)]
    correlations = [spearmanr(np.abs(maps[a]).ravel(), np.abs(maps[b]).ravel()).statistic for a, b in pairs]
    assert found["layer1.1"][1] == pytest.approx(1 - np.mean(correlations), abs=1e-5)


def test_a_page_that_keeps_its_answers_has_those_of_the_images_that_fit(run_view):
    def kept(page):
        return json.loads(re.search(r'id="page">(.*?)</script>', page, re.DOTALL)[1])

    whole, few = kept(run_view.exported()), kept(run_view.exported(budget=1))
    assert whole["images"] == run_view.images
    assert few["images"] == run_view.images[:1]
    assert few["kept"]["maps/0/1/2/0"] == run_view.maps(nobody, 0, 1, 2, 0)
    assert few["kept"]["values/0/0/1"]["layers"]["input"]["total_variation"] == pytest.approx(
        run_view.values(nobody, 0, 0, 1)["layers"]["input"]["total_variation"][:1]
    )
    assert "Trust card" in few["kept"]["card/0"]


def test_neither_torch_nor_the_table_is_read_to_open_a_run(run):
    program = (
        "import sys; from pellucid.view.run import RunView; from pellucid.view.server import Server; "
        f"view = RunView.open({str(run)!r}); view.html(); view.photo(None, 0, 0); view.maps(None, 0, 0, 1, 0); "
        "print('_results' in view.__dict__); view.card(None, 0); view.exported(); print('torch' in sys.modules)"
    )
    found = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert found.stdout.split() == ["False", "False"]


def test_damaged_photos_are_told_and_the_rest_is_shown(run, tmp_path):
    copy = tmp_path / "run"
    shutil.copytree(run, copy)
    view, photos = RunView.open(copy), copy / "pictures" / "photos.parquet"
    photos.write_bytes(photos.read_bytes()[:-40])
    with pytest.raises(InvalidData, match="are damaged"):
        view.photo(nobody, 0, 0)
    assert view.maps(nobody, 0, 0, 1, 0)["layers"]
    with pytest.raises(InvalidData, match="kept no pictures"):
        RunView.open(copy)


def test_what_is_no_run_with_pictures_is_refused(tmp_path):
    with pytest.raises(InvalidData, match="there is no run of pellucid benchmark"):
        RunView.open(tmp_path)
    spec = {"models": "shapes-resnet", "images": "shapes:1", "methods": ["random"], "pictures": 0}
    benchmark(Spec.model_validate(spec | {"metrics": ["total_variation"]}), tmp_path / "run")
    with pytest.raises(InvalidData, match="kept no pictures; run it again"):
        RunView.open(tmp_path / "run")
