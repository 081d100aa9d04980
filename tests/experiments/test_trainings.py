"""Metrics measured by training: where one block carries the label, what a map knows decides the curve."""

import json
import multiprocessing
import os
import shutil
import signal
import time
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from pellucid import catalog
from pellucid.data.labeled import LabeledImages
from pellucid.errors import InvalidData, InvalidModel, InvalidParameter, OutputNotWritable, UnknownName
from pellucid.experiments import inputs
from pellucid.experiments.planning import plan
from pellucid.experiments.runners import benchmark, inline
from pellucid.experiments.spec import read_spec
from pellucid.experiments.store import Store
from pellucid.experiments.trainings import TrainingCell, Trainings, images_of
from pellucid.findings.statistics import Statistics
from pellucid.metrics.base import Criterion, Metric
from pellucid.models.zoo import load_model
from pellucid.report.benchmark_page import benchmark_page
from pellucid.seeds import fold_in
from pellucid.training.artifacts import Artifacts
from pellucid.training.classifiers import ClassifierLearner, train
from pellucid.training.criteria import Kar, PatchedImages, RandomRemoval, Roar, TrainingOcclusion, random_patch
from pellucid.training.degradation import Degradation, DegradedImages, open_ranks, salience_ranks

SIDE, BLOCK = 8, slice(2, 4)  # 4 of 64 pixels tell the class
TRAIN, TEST = 192, 64
MAPS = """
import os
import torch

CALLS = os.path.join(os.path.dirname(__file__), "calls")


def block(model, images, targets):
    with open(CALLS, "a") as file:
        file.write(f"block {len(images)}\\n")
    maps = torch.zeros_like(images)
    maps[:, :, 2:4, 2:4] = 1
    return maps


def inverted(model, images, targets):
    return -block(model, images, targets)


def corner(model, images, targets):
    maps = torch.zeros_like(images)
    maps[:, :, :5, :5] = 2
    return maps


def telling(model, images, targets):
    maps = torch.zeros_like(images)
    dark = images[:, 0, 2, 2] < 0
    maps[dark, :, :4] = 1
    maps[~dark, :, 4:] = 1
    return maps
"""
DARK = """
import torch


def pixels(model, images, targets):
    maps = torch.zeros_like(images)
    maps[:, :, 0, 0] = images[:, :, 0, 5] * 0.25 + 0.5
    return maps
"""
NET = """
from torch import nn
from pellucid.models.preprocess import Preprocess

preprocess = Preprocess(8, 8, (0.5,), (0.25,), 1)


def build():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 2))
"""


@pytest.fixture(autouse=True)
def _forgotten():
    yield
    inputs.forget()
    images_of.cache_clear()


def draw(folder, count, seed):
    """Noise, sorted into two folders; in the block all pixels are dark (a) or light (b)."""
    random = np.random.default_rng(seed)
    for index in range(count):
        pixels = random.integers(64, 192, (SIDE, SIDE), dtype=np.uint8)
        pixels[BLOCK, BLOCK] = 20 if index % 2 == 0 else 235
        place = folder / "ab"[index % 2] / f"{index:03d}.png"
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(place)


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    folder = tmp_path_factory.mktemp("block")
    draw(folder / "train", TRAIN, 0)
    draw(folder / "test", TEST, 1)
    (folder / "maps.py").write_text(MAPS)
    (folder / "net.py").write_text(NET)
    return folder


def content(data, **training):
    return {
        "models": [{"name": f"{data}/net.py:build", "weights": "random", "alias": "net"}],
        "images": {"source": str(data / "test")},
        "methods": [f"{data}/maps.py:block", "random", f"{data}/maps.py:inverted"],
        "metrics": ["roar", "kar"],
        "pictures": 1,
        "device": "cpu",
        "training": {
            "network": f"{data}/net.py:build",
            "source": str(data / "train"),
            "epochs": 12,
            "fractions": [0.1, 0.5, 0.9],
            "seeds": 3,
        }
        | training,
    }


def spec(data, changed=None, **training):
    return read_spec(None, content(data, **training) | (changed or {}))


@pytest.fixture(scope="module")
def results(data, tmp_path_factory):
    calls = data / "calls"
    calls.unlink(missing_ok=True)
    found = benchmark(
        spec(data, {"metrics": ["roar", "kar", "random_removal"]}), tmp_path_factory.mktemp("runs") / "run"
    )
    assert found.failed == {}
    return found


def means(results):
    table = results.table[results.table["at"].isna()]
    return table.groupby(["metric", "method"], observed=True)["value"].mean()


# What the maps know decides the curves.


@pytest.mark.slow
def test_a_map_that_knows_the_block_beats_random_and_its_inverse_loses(results):
    found, names = means(results), ("maps.py:block", "random", "maps.py:inverted")  # lower is better
    for metric, apart in (("roar", (0.3, 0.05)), ("kar", (0.1, 0.25)), ("random_removal", (0.1, 0.05))):
        block, random, inverted = (found[metric, name] for name in names)
        assert (random - block > apart[0], inverted - random > apart[1]) == (True, True), metric
    table = results.table
    for metric, best, worst in (("roar", "maps.py:inverted", "maps.py:block"), ("kar", *names[::2])):
        inner = table[(table["metric"] == metric) & table["at"].between(0.01, 0.99)]
        assert (inner[inner["method"] == best]["value"] == 1).all()  # the block is there
        left = inner[inner["method"] == worst].groupby("at")["value"].mean()
        assert left.between(0.4, 0.6).all()  # chance


def test_the_curve_has_whole_images_at_its_end_and_the_value_is_its_area(results):
    table = results.table.astype({"metric": object, "method": object})
    clean = {}
    for key, rows in table.groupby(["metric", "method", "training"]):
        curve = rows[rows["at"].notna()].set_index("at")["value"]
        [value] = rows[rows["at"].isna()]["value"]
        kept = key[0] == "kar"
        assert curve.index.tolist() == ([0.1, 0.5, 0.9, 1.0] if kept else [0.0, 0.1, 0.5, 0.9])
        clean.setdefault((key[0] == "random_removal", key[2]), set()).add(curve[1.0 if kept else 0.0])
        chance = (0.0, 0.5) if kept else (1.0, 0.5)
        points = sorted([*curve.items(), chance])
        area = np.trapezoid([y for _, y in points], [x for x, _ in points])
        assert value == pytest.approx(1 - area if kept else area, abs=1e-12)
    assert all(len(values) == 1 for values in clean.values())  # one clean training of each run for all
    assert len(clean) == 6
    assert table["image"].isna().all()
    assert set(table["training"]) == {0, 1, 2}
    assert set(table["layer"]) == {"input"}


def test_one_point_is_that_of_a_training_by_hand(results, data):
    """The curve's point at p = 0.5 of run 1, from maps to accuracy without any of the machinery."""

    def images(part):
        pairs = [(path, "ab".index(path.parent.name)) for path in sorted((data / part).rglob("*.png"))]
        pixels = np.stack([np.asarray(Image.open(path)) for path, _ in pairs])[:, None]
        return LabeledImages.of(torch.from_numpy(pixels), torch.tensor([label for _, label in pairs]))

    def gapped(part, position):
        whole = images(part)
        maps = torch.zeros(len(whole), SIDE, SIDE)
        maps[:, BLOCK, BLOCK] = 1
        ranks = salience_ranks(maps, range(len(whole)))
        mean = images("train").pixels.double().mean((0, 2, 3)) / 255
        return DegradedImages(whole, ranks, Degradation(0.5, "roar"), mean)

    seed = fold_in(0, 1)
    loaded = load_model(f"{data}/net.py:build", "random", seed=seed)
    recipe = Trainings(inputs.parsed(spec(data)), Artifacts(Path())).recipe(f"{data}/net.py:build")
    assert (recipe.epochs, recipe.keep) == (12, "last")
    report = train(loaded.model, gapped("train", 0), gapped("test", 1), recipe, seed, loaded.preprocess)
    table = results.table
    row = table[
        (table["metric"] == "roar") & (table["method"] == "maps.py:block")
        & (table["training"] == 1) & (table["at"] == 0.5)
    ]  # fmt: skip
    assert row["value"].tolist() == [report.accuracy]


def test_maps_are_computed_once_for_all_metrics_fractions_and_runs(results, data):
    calls = (data / "calls").read_text().split("\n")[:-1]
    assert sum(int(call.split()[1]) for call in calls) == 2 * (TRAIN + TEST)  # block, and inverted, which calls it


def test_a_mask_tells_what_the_places_of_the_kept_pixels_give_away(data, tmp_path):
    """A map that lights another half for each class gives the class away; one of the same place tells nothing."""
    methods = [f"{data}/maps.py:telling", f"{data}/maps.py:block"]
    alone = spec(data, {"methods": methods, "metrics": ["kar"]}, replacement="mask", fractions=[0.1, 0.5], seeds=1)
    table = benchmark(alone, tmp_path / "run").table.astype({"method": object})
    curves = {method: rows.set_index("at")["value"] for method, rows in table.groupby("method")}
    assert curves["maps.py:telling"].loc[[0.1, 0.5]].tolist() == [1.0, 1.0]
    assert curves["maps.py:block"].loc[[0.1, 0.5]].between(0.3, 0.7).all()
    assert [curve[1.0] for curve in curves.values()] == [0.5, 0.5]  # all pixels kept: a white image


def test_ranks_are_kept_compact(data, tmp_path):
    wanted = spec(data, {"methods": [f"{data}/maps.py:block"]}, fractions=[0.5], seeds=1, epochs=1)
    benchmark(wanted, tmp_path / "run")
    paths = sorted((tmp_path / "run" / "training" / "ranks").rglob("*.npy"))
    assert [path.name for path in paths] == ["test.npy", "train.npy"]
    for path, count in zip(paths, (TEST, TRAIN), strict=True):
        ranks = open_ranks(path)
        assert (ranks.dtype, tuple(ranks.shape)) == (torch.int16, (count, SIDE, SIDE))
        assert (ranks[:, BLOCK, BLOCK] < 4).all()
        assert path.stat().st_size == 128 + 2 * count * SIDE * SIDE
    assert not list((tmp_path / "run" / "training" / "checkpoints").rglob("*.safetensors"))


def test_values_are_ranked_one_by_one_if_asked(data, tmp_path):
    wanted = spec(data, {"methods": ["gradient"]}, fractions=[0.5], seeds=1, epochs=1, ranking="value")
    assert benchmark(wanted, tmp_path / "run").failed == {}
    [path] = (tmp_path / "run" / "training" / "ranks").rglob("train.npy")
    assert tuple(open_ranks(path).shape) == (TRAIN, 1, SIDE, SIDE)


# Going on.


def small(data):
    return spec(
        data,
        {"metrics": ["roar", "random_removal"], "methods": [f"{data}/maps.py:block", "random"]},
        fractions=[0.5, 0.9], seeds=2, epochs=4,
    )  # fmt: skip


@pytest.fixture(scope="module")
def undisturbed(data, tmp_path_factory):
    """What the small run gives, and how many epochs it takes."""
    with pytest.MonkeyPatch.context() as patched:
        epochs = trained_epochs(patched)
        return benchmark(small(data), tmp_path_factory.mktemp("runs") / "undisturbed"), len(epochs)


def test_a_run_of_trainings_is_given_no_more_methods(data, tmp_path):
    """Trainings of all methods share what they learn, so that one more changes the results of the others."""
    asked = plan(small(data)).record
    more = small(data).model_copy(update={"methods": (*small(data).methods, "gradient")})
    assert plan(more, begun=asked).record.hash != asked.hash
    with Store(tmp_path / "run").opened(asked):
        pass
    with pytest.raises(OutputNotWritable, match=r"methods: gradient here alone; choose another folder$"):
        benchmark(more, tmp_path / "run")


def killed_later(data, path):
    torch.set_num_threads(1)
    benchmark(small(data), path)


def finished(run):
    """What must never be made again: results, the seals of ranks, and parts, by when they were written."""
    patterns = ("training/results/*.json", "training/ranks/*/*.json", "parts/*.parquet")
    return {path: path.stat().st_mtime_ns for pattern in patterns for path in run.glob(pattern)}


def trained_epochs(monkeypatch):
    learn, epochs = ClassifierLearner.learn, []
    monkeypatch.setattr(
        ClassifierLearner, "learn", lambda self, epoch: (epochs.append(epoch), learn(self, epoch))[1]
    )
    return epochs


@pytest.mark.slow
def test_a_run_killed_again_and_again_ends_as_if_undisturbed(data, tmp_path, monkeypatch, undisturbed):
    whole, total = undisturbed
    epochs = trained_epochs(monkeypatch)
    assert total == 4 * (2 + 2 * 2 * 2 + 2 * 2)  # clean; roar: methods x fractions x runs; levels x runs
    run, before = tmp_path / "run", {}
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(["pellucid.experiments.runners"])
    for least in (3, 8):
        process = server.Process(target=killed_later, args=(data, run))
        process.start()
        deadline = time.monotonic() + 60
        while len(finished(run)) < least and time.monotonic() < deadline and process.is_alive():
            time.sleep(0.001)
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert process.exitcode == -signal.SIGKILL
        now = finished(run)
        assert before.items() <= now.items()
        before = now
    states = [json.loads(path.read_text()) for path in run.glob("training/results/*.json")]
    assert states
    again = benchmark(small(data), run)
    assert before.items() <= finished(run).items()
    assert 0 < len(epochs) <= total - 4 * len(states)
    pd.testing.assert_frame_equal(again.table, whole.table, check_exact=True)
    epochs.clear()
    benchmark(small(data), run)
    assert not epochs


def test_finished_trainings_of_an_unfinished_curve_are_not_repeated(data, tmp_path, monkeypatch):
    """Ended after the second of a curve's three trainings: only the third is left to do."""
    monkeypatch.setattr("pellucid.training.ensemble.processors", lambda: 1)
    wanted = spec(data, {"metrics": ["roar"], "methods": ["random"]}, seeds=1, epochs=4)
    whole = benchmark(wanted, tmp_path / "whole")
    learn, epochs = ClassifierLearner.learn, []

    def counted(self, epoch):
        epochs.append(epoch)
        if len(epochs) == 4 + 2 * 4 + 1:  # the clean training, two of the curve, and into the third
            raise KeyboardInterrupt
        return learn(self, epoch)

    monkeypatch.setattr(ClassifierLearner, "learn", counted)
    with pytest.raises(KeyboardInterrupt):
        benchmark(wanted, tmp_path / "run")
    again = benchmark(wanted, tmp_path / "run")
    assert len(epochs) == 4 + 3 * 4 + 1
    pd.testing.assert_frame_equal(again.table, whole.table, check_exact=True)


def test_the_order_of_the_cells_does_not_matter(data, tmp_path, undisturbed):
    forward, _ = undisturbed
    backward = benchmark(small(data), tmp_path / "b", runner=lambda spec, cells: inline(spec, cells[::-1]))
    pd.testing.assert_frame_equal(forward.table, backward.table, check_exact=True)


def test_a_remote_run_keeps_its_files_in_the_cache(data, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    wanted = spec(data, {"methods": ["random"]}, fractions=[0.5], seeds=1, epochs=1)
    there = benchmark(wanted, "memory://trainings/one")
    key = there.record.hash
    assert list((tmp_path / "pellucid" / key / "ranks").rglob("*.npy"))
    here = benchmark(wanted, tmp_path / "run")
    pd.testing.assert_frame_equal(there.table, here.table, check_exact=True)


def test_another_training_is_another_experiment(data, tmp_path):
    benchmark(spec(data, {"methods": ["random"]}, fractions=[0.5], seeds=1, epochs=1), tmp_path / "run")
    with pytest.raises(OutputNotWritable, match=r"training.seeds is 1 there and 2 here"):
        benchmark(spec(data, {"methods": ["random"]}, fractions=[0.5], seeds=2, epochs=1), tmp_path / "run")


# A model without weights.


def test_a_model_without_weights_is_trained_first(tmp_path):
    random = np.random.default_rng(0)
    for part, count in (("train", 64), ("test", 16)):
        for index in range(count):
            pixels = random.integers(0, 256, (28, 28), dtype=np.uint8)
            pixels[8:20, 8:20] = 255 * (index % 2)
            place = tmp_path / part / "ab"[index % 2] / f"{index:03d}.png"
            place.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(place)
    wanted = read_spec(None, {
        "models": ["selu-cnn"], "images": str(tmp_path / "test"), "methods": ["gradient"], "metrics": ["roar"],
        "pictures": 0, "device": "cpu",
        "training": {"network": "selu-cnn", "source": str(tmp_path / "train"), "epochs": 8, "seeds": 1,
                     "fractions": [0.5]},
    })  # fmt: skip
    results = benchmark(wanted, tmp_path / "run")
    assert results.failed == {}
    assert results.record.cells[0].startswith("explained_")
    facts = json.loads((tmp_path / "run/training/networks/explained.json").read_text())
    assert facts["accuracy"] == 1
    loaded = load_model("selu-cnn", tmp_path / "run/training/networks/explained.safetensors")
    assert loaded.classes == ("a", "b")


# Training-set occlusion.


def test_a_patch_is_pasted_into_every_image_and_nothing_else_changes(data):
    whole = LabeledImages.of(
        torch.arange(2 * 3 * 12 * 12).view(2, 3, 12, 12).to(torch.uint8), torch.tensor([1, 0])
    )
    patch = random_patch(3, 10)
    expected = np.random.RandomState(100).randint(0, 255, (10, 10, 3))
    assert np.array_equal(patch.numpy(), expected.transpose(2, 0, 1))
    patched = PatchedImages(whole, patch)
    before = whole.pixels.clone()
    pixels, labels = patched.batch(torch.tensor([1, 0]))
    assert torch.equal(pixels[:, :, :10, :10], patch.expand(2, -1, -1, -1))
    assert torch.equal(pixels[:, :, 10:], before.flip(0)[:, :, 10:])
    assert torch.equal(pixels[:, :, :, 10:], before.flip(0)[:, :, :, 10:])
    assert labels.tolist() == [0, 1]
    assert torch.equal(whole.pixels, before)
    assert patched.fingerprint != whole.fingerprint
    with pytest.raises(InvalidData, match="a patch of 13 pixels does not fit images of 12x12"):
        PatchedImages(whole, random_patch(3, 13))


def test_occlusion_finds_the_mass_that_a_map_has_in_the_patch(data, tmp_path, monkeypatch):
    corner, block = f"{data}/maps.py:corner", f"{data}/maps.py:block"
    share = "training_occlusion(patch=5, size=3, mass='share', clip=None)"
    signed = "training_occlusion(patch=5, size=3, clip=None)"
    wanted = spec(data, {"methods": [corner, block], "metrics": [share, signed]}, seeds=2, epochs=1)
    walks, made = [], Trainings.explanations

    def counted(self, *given):
        walks.append(given[2:])
        return made(self, *given)

    monkeypatch.setattr(Trainings, "explanations", counted)
    results = benchmark(wanted, tmp_path / "run")
    assert results.failed == {}
    assert len(walks) == 2 * 2  # of methods and runs: both settings measure the same maps
    found = means(results)
    assert found[share, "maps.py:corner"] == pytest.approx(9 / 25, rel=1e-6)
    assert found[signed, "maps.py:corner"] == pytest.approx(18, rel=1e-6)
    assert found[signed, "maps.py:block"] == pytest.approx(1, rel=1e-6)  # pixel (2, 2)
    networks = sorted(path.name for path in (tmp_path / "run" / "training" / "networks").glob("*.safetensors"))
    assert networks == ["patched-5_run-0.safetensors", "patched-5_run-1.safetensors"]
    assert len(results.table) == 2 * 2 * 2 * (1 + 19)


def test_an_occlusion_keeps_the_quantiles_over_the_test_images(data, tmp_path):
    (data / "dark.py").write_text(DARK)
    method, metric = f"{data}/dark.py:pixels", "training_occlusion(patch=5, size=3, clip=None)"
    results = benchmark(
        spec(data, {"methods": [method], "metrics": [metric]}, seeds=1, epochs=1), tmp_path / "run"
    )
    assert results.failed == {}
    # Pixel (0, 5) of each image, beside the patch: the map puts it into the patch.
    files = sorted((data / "test").glob("*/*.png"))
    pixels = [float(np.asarray(Image.open(path))[0, 5]) / 255 for path in files]
    rows = results.table[results.table["at"].notna()]
    assert rows["at"].tolist() == pytest.approx([0.05 * part for part in range(1, 20)])
    assert rows["value"].tolist() == pytest.approx(np.quantile(pixels, rows["at"].to_numpy()), rel=1e-5)
    [mean] = results.table[results.table["at"].isna()]["value"]
    assert mean == pytest.approx(np.mean(pixels), rel=1e-5)


def test_an_occlusion_measures_no_more_than_the_patch():
    with pytest.raises(InvalidParameter, match="size=8 measures more than the patch of 4"):
        TrainingOcclusion(patch=4)
    assert TrainingOcclusion().within().clip == (95.0, 100.0)


# Statistics and the page.


def test_one_training_has_no_interval_and_three_have(results, data, tmp_path):
    summary = Statistics.of(results).summary
    assert summary["n"].tolist() == [3] * 9
    assert summary["low"].notna().all()
    wanted = spec(data, {"methods": ["random"]}, fractions=[0.5], seeds=1, epochs=1)
    single = Statistics.of(benchmark(wanted, tmp_path / "run")).summary
    assert single["n"].tolist() == [1] * 2
    assert single["low"].isna().all()
    assert single["rank"].isna().all()


def test_the_page_draws_the_curves(results):
    text = benchmark_page(results)
    assert "3 trainings" in text
    for words in ("share of pixels removed", "share of pixels kept", "test accuracy", "score of the true class"):
        assert words in text
    for metric in ("roar", "kar", "random removal"):
        assert f'aria-label="{metric} by method at input, original variant"' in text


def test_a_spec_may_grade_maps_and_train(data, tmp_path):
    wanted = spec(
        data, {"metrics": ["roar", "total_variation"], "methods": ["random", "gradient"], "layers": ["input"]},
        fractions=[0.5], seeds=1, epochs=1,
    )  # fmt: skip
    results = benchmark(wanted, tmp_path / "run")
    rows = results.table.groupby(["metric", "method"], observed=True).size()
    assert rows.to_dict() == {(metric, method): count for metric, count in (("roar", 3), ("total_variation", TEST))
                              for method in ("random", "gradient")}  # fmt: skip
    assert f"{TEST} images, 1 training, 2 measures" in benchmark_page(results)


# The metrics themselves.


def test_their_areas_are_those_of_the_papers_tables():
    fractions, values = (0.25, 0.75), (0.8, 0.4)
    area = 0.25 * (1 + 0.8) / 2 + 0.5 * (0.8 + 0.4) / 2 + 0.25 * (0.4 + 0.1) / 2
    assert Roar().area(fractions, values, 1.0, 0.1) == pytest.approx(area, abs=1e-12)
    assert RandomRemoval().area(fractions, values, 1.0, 0.1) == pytest.approx(area, abs=1e-12)
    under = 0.25 * (0.1 + 0.8) / 2 + 0.5 * (0.8 + 0.4) / 2 + 0.25 * (0.4 + 1) / 2
    assert Kar().area(fractions, values, 1.0, 0.1) == pytest.approx(1 - under, abs=1e-12)


def test_no_case_can_measure_them():
    for name in ("roar", "kar", "random_removal", "training_occlusion"):
        kind = catalog.METRICS[name]
        assert kind.by_training
        assert kind.axis == ("localization" if name == "training_occlusion" else "faithfulness")
        assert all((kind.name == name, kind.unit, kind.paper, kind.__doc__, kind.higher_is_better is False))
        assert issubclass(kind, Criterion)
        assert not issubclass(kind, Metric)
        assert not hasattr(catalog.metric(name), "measure")


# Refused before anything is trained.


@pytest.mark.parametrize(
    ("changed", "training", "error", "message"),
    [
        ({"training": None}, {}, InvalidParameter, r"roar, kar: .*add a table \[training\]"),
        ({"metrics": ["total_variation"]}, {}, InvalidParameter, r"the table \[training\] is for metrics such as"),
        ({}, {"network": "cifar-cn"}, UnknownName, "did you mean cifar-cnn"),
        ({}, {"source": "nowhere"}, InvalidData, "there is no file or folder"),
        ({}, {"count": 1000}, InvalidData, r"has 192 images, not 1000; lower training.count"),
        ({}, {"fractions": [0.5, 0.1]}, InvalidParameter, "training.fractions is .*; give rising fractions"),
        ({}, {"fractions": [0.0, 0.1]}, InvalidParameter, "training.fractions is .*; give rising fractions"),
        ({}, {"sed": 1}, UnknownName, "key of the table 'training'.*'sed'"),
        ({}, {"seeds": 0}, InvalidParameter, "training.seeds is 0"),
        ({}, {"shuffle": False}, InvalidData, "images come sorted by class and this recipe does not shuffle"),
        ({"models": ["shapes-resnet"]}, {}, InvalidModel, "has 8 outputs and the images 2 classes"),
        (
            {"models": ["cifar-cnn"], "metrics": ["roar"]},
            {},
            InvalidModel,
            "cifar-cnn has resize=32 and .* 8; their images must be cropped alike",
        ),
        (
            {"models": ["cifar-cnn", "selu-cnn"]},
            {},
            InvalidParameter,
            "trainings explain one model, and 2 are named",
        ),
        (
            {"models": ["cifar-cnn"], "metrics": ["roar", "total_variation"]},
            {"network": "cifar-cnn"},
            InvalidParameter,
            "cifar-cnn has no weights: roar would train it first and total_variation grade it untrained",
        ),
    ],
)
def test_what_cannot_work_is_refused(data, changed, training, error, message):
    with pytest.raises(error, match=message):
        plan(spec(data, changed, **training))


def test_other_classes_and_pictures_are_refused(data, tmp_path):
    for name, other in ("ab", "bc"):
        shutil.copytree(data / "train" / name, tmp_path / "train" / other)
    with pytest.raises(InvalidData, match=r"classes are not the test images': 'b' there is 'a' here"):
        plan(spec(data, source=str(tmp_path / "train")))
    (tmp_path / "wide.py").write_text(NET.replace("Preprocess(8, 8", "Preprocess(10, 8"))
    model = {"name": f"{tmp_path}/wide.py:build", "weights": "random"}
    with pytest.raises(InvalidModel, match=r"has resize=10 and .* 8; their images must be cropped alike"):
        plan(spec(data, {"models": [model]}))
    three = NET.replace("(16, 2)", "(16, 3)")
    (tmp_path / "three.py").write_text(three)
    with pytest.raises(InvalidData, match=r"the data have 2 classes .* the network 3 outputs"):
        plan(spec(data, network=f"{tmp_path}/three.py:build"))


def test_cells_have_distinct_names_that_fit_a_file(data):
    ids = [cell.id for cell in plan(spec(data)).cells]
    assert len(set(ids)) == len(ids) == 3 + 3 + 2 * 3 * 3
    assert max(map(len, ids)) < 220
    assert all(isinstance(cell, TrainingCell) for cell in plan(spec(data)).cells)


def test_a_spec_without_trainings_is_identified_as_before(data):
    record = plan(spec(data, {"metrics": ["total_variation"], "training": None, "layers": ["input"]})).record
    assert "training" not in record.spec
    assert "training" not in record.identity


def test_paths_are_relative_to_the_spec(data, tmp_path):
    path = tmp_path / "spec.toml"
    path.write_text(
        "metrics = ['roar']\nmodels = ['cifar-cnn']\nimages = 'test'\nmethods = ['gradient']\n"
        "[training]\nnetwork = 'net.py:build'\nsource = 'train'\n"
    )
    found = read_spec(path).training
    assert (found.network, found.source) == (str(tmp_path / "net.py:build"), str(tmp_path / "train"))
    assert found.seeds == 3


def test_the_example_can_be_read(monkeypatch):
    monkeypatch.setenv("PELLUCID_DATA", "/there")
    found = read_spec(Path(__file__).parents[2] / "examples" / "roar-cifar10.toml")
    assert found.training.source == "/there/data/cifar10/train.parquet"
    assert {"roar", "kar"} <= set(found.metrics)
    assert len(found.methods) >= 6
