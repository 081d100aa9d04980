"""`pellucid benchmark`: from a spec or from options; what it says at the end; errors in one line."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import pellucid as pl
from pellucid import catalog
from pellucid.cli import app
from pellucid.cli.benchmark import _scores, show_troubles, spec_content
from pellucid.data.sources import open_images
from pellucid.errors import RuleNotApplied
from pellucid.experiments.runners import benchmark
from pellucid.experiments.spec import read_spec
from pellucid.experiments.store import Results
from pellucid.findings.statistics import Statistics
from pellucid.metrics.noise import TotalVariation
from pellucid.metrics.scoring import Scorer
from pellucid.models.preprocess import Preprocess
from tests.tables import NAN, results

SPEC = """
methods = ["random", "smoothed(gradient, samples=2)"]
layers = ["input", "layer2.0"]
metrics = ["total_variation"]
models = ["shapes-resnet"]
images = "shapes:3"
pictures = 1
"""
OPTIONS = [
    *("--model", "shapes-resnet", "--images", "shapes:3", "--methods", "random,smoothed(gradient, samples=2)"),
    *("--layers", "input", "--layers", "layer2.0", "--metrics", "total_variation", "--pictures", 1),
]


@pytest.fixture(autouse=True)
def work(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("bench.toml").write_text(SPEC)
    return tmp_path


def run(*arguments):
    return CliRunner().invoke(app, ["benchmark", *(str(argument) for argument in arguments), "-o", "run"])


def test_a_spec_gives_a_table_of_means_and_says_what_is_next():
    result = run("bench.toml")
    assert result.exit_code == 0, result.output
    assert "2 cells of 2 finished, 3 images, 12 rows in run" in result.stdout
    assert "next: pellucid report run" in result.stdout
    best = Statistics.of(Results.read("run")).best.summary
    for method in ("random", "smoothed(gradient, samples=2)"):
        [(at, found)] = [(key[3], row) for key, row in best.iterrows() if key[2] == method]
        [row] = [line for line in result.stdout.splitlines() if method in line]
        assert f"{found['mean']:.4g} (" in row
        assert at in row
    facts = json.loads(Path("run/run.json").read_text())
    assert facts["command"] == "pellucid benchmark bench.toml -o run"


@pytest.mark.parametrize(
    ("defined", "cell", "legend"),
    [(0, "–", ""), (4, "0.5 at layer", ""), (3, "0.5 at layer 3 of 4", " 3 of 4: so many")],
)
def test_only_what_stands_in_a_cell_is_explained_and_none_is_a_dash(monkeypatch, defined, cell, legend):
    """Of four images so many have a value of the second method; the first has all."""
    values = {
        ("net", "original", name, layer, "insertion"): [0.5] * count + [NAN] * (4 - count)
        for name, count in (("a", 4), ("b", defined))
        for layer in ("layer", "deeper")
    }
    shown = _scores(results(values))
    methods, _, scores = ([*column.cells] for column in shown.columns)
    found = scores[methods.index("b")]
    assert " ".join(part for part in str(found).split() if "(" not in part) == cell
    assert str(shown.caption).partition("differ.")[2].startswith(legend)
    assert ("so many" in str(shown.caption)) is bool(legend)


def test_options_alone_give_what_a_spec_gives():
    assert run("bench.toml").exit_code == 0
    shutil.move("run", "before")
    result = run(*OPTIONS)
    assert result.exit_code == 0, result.output
    pd.testing.assert_frame_equal(Results.read("run").table, Results.read("before").table, check_exact=True)
    # The same experiment: options go on with what the file began.
    assert "run was finished already; nothing was computed" in run("bench.toml").stdout
    assert "finished already" not in result.stdout


def test_options_replace_a_specs_values():
    result = run("bench.toml", "--methods", "edges", "--count", 2, "--target", 4, "--variant", "backward,original")
    assert result.exit_code == 0, result.output
    record = Results.read("run").record
    assert record.spec["methods"] == ["edges"]
    assert record.spec["variants"] == ["backward", "original"]
    assert record.spec["target"] == 4
    assert record.images == ("shape-0", "shape-1")


def test_every_option_reaches_the_spec():
    options = {
        "model": ["a", "b"], "weights": ["a.pth", "random"], "images": "shapes:2", "count": 1, "every": 2,
        "masks": "masks", "boxes": "boxes.json", "spread": True, "classes": ["cat,dog"],
        "label_column": "kind", "skip_unusable": True, "methods": ["x,y(z, w=1)", "v"], "variant": None,
        "variants": ["forward"], "layers": ["all"], "metrics": ["m"], "target": "label", "scored": "variant",
        "score": "logits", "precision": "bfloat16", "reference": "v",
        "channels": "sum", "upsampling": "bilinear", "pictures": 0, "seed": 1,
        "images_per_cell": 2, "max_batch": 3, "device": "cpu", "layouts": ["a.*=tokens(prefix=1)"],
    }  # fmt: skip
    spec = read_spec(None, spec_content(options))
    assert [model.weights for model in spec.models] == [str(Path("a.pth").resolve()), "random"]
    assert [model.classes for model in spec.models] == [("cat", "dog")] * 2
    assert spec.methods == ("x", "y(z, w=1)", "v")
    assert spec.images.model_dump(exclude={"skip", "split", "root"}) == {
        "source": "shapes:2", "count": 1, "every": 2, "skip_unusable": True, "label_column": "kind",
        "spread": True,
        "masks": str(Path("masks").resolve()), "boxes": str(Path("boxes.json").resolve()),
    }  # fmt: skip
    others = spec.model_dump(exclude={"models", "images", "methods", "name", "training"})  # trainings are a table
    assert others == {
        "variants": ("forward",), "layers": ("all",), "metrics": ("m",), "target": "label", "scored": "variant",
        "score": "logits", "precision": "bfloat16", "reference": "v",
        "channels": "sum", "upsampling": "bilinear", "pictures": 0, "seed": 1,
        "images_per_cell": 2, "max_batch": 3, "device": "cpu", "layouts": (("a.*", "tokens(prefix=1)"),),
    }  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "error: the options: models is missing; give it"),
        (["nowhere.toml"], "error: the spec nowhere.toml cannot be read: No such file or directory"),
        (["bench.toml", "--metrics", "total_variaton"], "error: unknown metric 'total_variaton'; did you mean"),
        (["bench.toml", "--methods", "gradcm"], "error: unknown method 'gradcm'; did you mean"),
        (["bench.toml", "--model", "a", "--model", "b", "--weights", "c"], "error: 1 weights file for 2 models"),
        (["bench.toml", "--score", "x"], "error: bench.toml: score is 'x'; input should be 'softmax'"),
    ],
)
def test_errors_are_one_line_and_leave_nothing(arguments, message):
    result = run(*arguments)
    assert result.exit_code == 2
    [line] = result.stderr.splitlines()
    assert line.startswith(message)
    assert not Path("run").exists()


def test_failed_cells_and_notes_are_told_at_the_end(monkeypatch):
    def measure(self, case):
        if "layer2.0" in case.layers and case.variant.name == "backward":
            raise RuleNotApplied("nothing of its kind")
        return TotalVariation().measure(case)

    picky = type("Picky", (TotalVariation,), {"name": "picky", "measure": measure})
    monkeypatch.setitem(catalog.METRICS, "picky", picky)
    result = run(
        "bench.toml", "--metrics", "picky", "--variant", "original,backward", "--methods", "rectgrad(tau=1e30)"
    )
    assert result.exit_code == 1
    assert "1 cell of 2 finished" in result.stdout
    assert "1 cell failed; the same command tries them again" in result.stderr
    assert "nothing of its kind; while measuring picky" in result.stderr
    assert "note: rectgrad(tau=1e30) is zero everywhere at input, layer2.0 for all 3 images" in result.stderr


def test_metrics_are_listed_with_their_sources():
    text = CliRunner().invoke(app, ["list", "metrics"]).stdout
    for name, metric in catalog.METRICS.items():
        assert name in text
        assert metric.paper in text
    assert "total_variation" in catalog.METRICS
    assert pl.METHODS


def test_help_shows_the_command():
    text = CliRunner().invoke(app, ["benchmark", "--help"]).stdout
    assert "SPEC" in text
    assert "--skip-unusable" in text


def test_the_same_maps_from_elsewhere_stand_on_the_same_place(work):
    """A foreign Grad-CAM of one layer beside ours of many: at its best layer ours is no worse for its others."""
    Path("theirs.py").write_text(
        "import pellucid as pl\n"
        "def cam(model, images, targets, layer='layer3.1'):\n"
        "    return pl.GradCAM()(model, images.detach(), targets, layer)[layer]\n"
    )
    result = run(
        "--model", "shapes-resnet", "--images", "shapes:6", "--pictures", 0, "--layers", "layer1.0,layer3.1",
        "--methods", "random, gradcam, theirs.py:cam, theirs.py:cam(layer=layer1.0)", "--metrics", "mass_outside",
    )  # fmt: skip
    assert result.exit_code == 0, result.output
    results = Results.read("run")
    scores = Statistics.of(results).scores("shapes-resnet", "original", None)["mean"].droplevel("metric")
    layers = results.pivot().droplevel(["model", "variant"])["mass_outside"]
    best = layers["gradcam"].idxmin()
    foreign = "theirs.py:cam" if best == "layer3.1" else "theirs.py:cam(layer=layer1.0)"
    assert scores["gradcam"] == pytest.approx(scores[foreign], rel=1e-6)
    (found,) = pl.trust_card(results).findings
    judged = {one.method: (one.layer, one.mean) for one in found.lead.contenders}
    assert judged["gradcam"][0] == judged[foreign][0] == best
    assert len(judged) == 4


# What makes maps say less than they seem to, as `explain` says it.

GRAY = """
import torch
from torch import nn
from pellucid.models.preprocess import Preprocess
from tests.tables import NAN, results

preprocess = Preprocess(resize=None, crop=None, mean=None, std=None, channels=1)
own = Preprocess(resize=8, crop=8, mean=None, std=None, channels=1)


def network():
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Conv2d(1, 4, 3, stride=2, bias=False), nn.Conv2d(4, 4, 3, stride=2, bias=False), nn.ReLU(),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3),
    )


def stepping():
    # The second convolution takes differences of neighbors, which smoothing levels; the first class needs them.
    model = network()
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[0.0, 0, 0], [0, 1, 0], [0, 0, 0]]).expand(4, 1, 3, 3))
        model[1].weight.copy_(torch.tensor([[1.0, -1, 1], [-1, 1, -1], [1, -1, 0]]).expand(4, 4, 3, 3))
        model[5].weight.copy_(torch.tensor([[10.0], [0.0], [0.0]]).expand(3, 4))
        model[5].bias.copy_(torch.tensor([0.0, 20.0, 0.0]))
    return model
"""


@pytest.fixture
def rays(work):
    """Images of 16 bits that use little of them."""
    Path("gray.py").write_text(GRAY)
    Path("rays").mkdir()
    for number in range(3):
        noise = np.random.default_rng(number).integers(200, 4200, (24, 24)).astype(np.uint16)
        noise[0, :2] = 200, 4200
        Image.fromarray(noise).save(f"rays/{number}.png")
    return "rays"


def maps(*arguments):
    return CliRunner().invoke(app, ["maps", *map(str, arguments), "--methods", "gradient"])


def test_what_explain_warns_of_benchmark_and_maps_warn_of_too(rays):
    model = ("--model", "gray.py:network")
    graded = run(*model, "--images", rays, "--methods", "gradient,random", "--metrics", "total_variation")
    explained = maps(rays, "maps", *model)
    for result in (graded, explained):
        assert result.exit_code == 0, result.output
        assert "note: gray.py:network looks untrained" in result.stderr
        assert "0.png uses little of what its bits can hold" in result.stderr
        assert "(3 such images); give --scale, such as 200,4200" in result.stderr
    card = str(pl.trust_card(Results.read("run")))
    assert "looks untrained" in card
    assert "uses little of what its bits can hold" in card
    assert CliRunner().invoke(app, ["report", "run", "-o", "page.html"]).exit_code == 0
    assert "looks untrained" in Path("page.html").read_text()


def test_images_are_scaled_and_prepared_as_for_explain(rays):
    model = ("--model", "gray.py:network", "--scale", "200,4200", "--preprocess", "gray.py:own")
    graded = run(*model, "--images", rays, "--methods", "gradient", "--metrics", "total_variation")
    explained = maps(rays, "maps", *model)
    for result in (graded, explained):
        assert result.exit_code == 0, result.output
        assert "uses little" not in result.stderr
    loaded = pl.load_model("gray.py:network")
    prepared = Preprocess(resize=8, crop=8, mean=None, std=None, channels=1, scale=(200, 4200))
    images = torch.stack([prepared(sample.image) for sample in open_images(rays)])
    assert images.std() > 0.05
    expected = pl.method("gradient")(loaded.model, images, layers=["input"])["input"][:, 0]
    found = np.stack(list(pl.read_maps("maps", layer="input")["map"]))
    np.testing.assert_allclose(found, expected.numpy(), atol=float(expected.abs().max()) * 2**-10)
    [told] = Results.read("run").record.spec["models"]
    assert (told["scale"], told["preprocess"]) == ([200, 4200], str(Path("gray.py").absolute()) + ":own")
    Path("gray.py").write_text(GRAY.replace("resize=8, crop=8", "resize=9, crop=9"))
    again = run(*model, "--images", rays, "--methods", "gradient", "--metrics", "total_variation")
    assert "another spec" in again.stderr


def test_float_images_up_to_255_are_told(work):
    Path("gray.py").write_text(GRAY)
    Path("floats").mkdir()
    values = np.random.default_rng(0).uniform(0, 255, (24, 24, 1)).astype(np.float32)
    np.save("floats/0.npy", values)
    model = ("--model", "gray.py:network")
    options = ("--images", "floats", "--methods", "gradient", "--metrics", "total_variation")
    for result in (run(*model, *options), maps("floats", "maps", *model)):
        assert result.exit_code == 0, result.output
        assert result.stderr.count("the model sees values up to 25") == 1
        assert "--scale 0,255" in result.stderr


def test_a_poor_stand_in_is_told_and_never_put_first_in_silence(rays):
    model = ("--model", "gray.py:stepping", "--scale", "200,4200", "--variant", "original,forward")
    few = maps(rays, "few", *model)
    assert "too few for a verdict, which takes 10 images" in few.stderr
    for number in range(3, 14):
        shutil.copy(f"rays/{number - 3}.png", f"rays/{number}.png")
    metrics = ("--methods", "gradient,random", "--layers", "0", "--metrics", "total_variation")
    cells = ("--images-per-cell", "4", "--max-batch", "3")  # a verdict is of the images of all cells and batches
    graded = run(*model, "--images", rays, *metrics, *cells)
    explained = maps(rays, "maps", *model, "--max-batch", "3")
    loaded = pl.load_model("gray.py:stepping")
    prepared = Preprocess(resize=None, crop=None, mean=None, std=None, channels=1, scale=(200, 4200))
    images = torch.stack([prepared(sample.image) for sample in open_images(rays)])
    logits = loaded.model(images)
    changed = Scorer(loaded.model, catalog.variant("forward")).logits(images)
    rows = range(14), logits.argmax(1).tolist()
    same = int((logits.argmax(1) == changed.argmax(1)).sum())
    points = 100 * (logits.softmax(1)[rows] - changed.softmax(1)[rows]).abs().mean()
    for result in (graded, explained):
        assert result.exit_code == 0, result.output
        assert (
            f"under forward the network is another: it moves the explained class's probability by {points:.1f} "
            f"points on average and predicts as the original for {same} of 14 images: a poor stand-in"
        ) in result.stderr
    record = Results.read("run").record
    assert points > 90
    assert record.poor == {"gray.py:stepping": ("forward",)}
    another = "Under forward the network is another, whose maps do not explain the original."
    for card in (pl.trust_card(Results.read("run")), pl.trust_card(Results.read("run"), layer="0")):
        assert any("a poor stand-in" in told for told in card.warnings)
        best = {one.variant for finding in card.findings for one in finding.lead.best if not one.floor}
        told = any(another in finding.sentence for finding in card.findings)
        assert told == ("forward" in best and not card.findings[0].lead.floors)


def test_the_order_of_classes_is_doubted_where_no_prediction_is_the_label(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    classes = pl.load_model("shapes-resnet").classes
    given = ["--model", "shapes-resnet", "--images", "shapes:8", "--methods", "random", "--layers", "input"]
    told = "0 of 8 images are predicted as their label: is the order of classes right?"
    for order in (classes, (*classes[1:], classes[0])):
        more = ["--classes", ",".join(order), "--metrics", "insertion(steps=2)", "-o", order[0]]
        ended = CliRunner().invoke(app, ["benchmark", *given, *more])
        assert ended.exit_code == 0, ended.output
        assert (told in ended.stderr) is (order != classes)


def test_scores_of_probabilities_are_said_to_be_squeezed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    layers = "nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 4), nn.Softmax(1)"
    Path("soft.py").write_text(f"from torch import nn\n\n\ndef soft():\n    return nn.Sequential({layers})\n")
    given = ["--model", "soft.py:soft", "--images", "shapes:1", "--methods", "random", "--layers", "input"]
    for score, told in (("softmax", True), ("logits", False)):
        more = ["--metrics", "insertion(steps=2)", "--score", score, "-o", score]
        ended = CliRunner().invoke(app, ["benchmark", *given, *more])
        assert ("so squeezed: --score logits takes them as they are" in ended.stderr) is told


def test_what_is_true_of_several_runs_is_said_once(tmp_path, capsys):
    options = {"models": ["shapes-resnet"], "images": {"source": "shapes:2"}, "metrics": ["total_variation"]}
    found = benchmark(read_spec(None, {**options, "methods": ["gradcam"], "layers": ["input"]}), tmp_path / "run")
    show_troubles({"one": found, "two": found})
    [line] = capsys.readouterr().err.splitlines()
    assert line.startswith("note: one, two: gradcam weighs the image's own channels")
    show_troubles({"": found})
    assert capsys.readouterr().err.startswith("note: gradcam weighs")


def test_a_run_of_which_every_cell_fails_says_why():
    Path("bad.py").write_text("def crash(model, images, targets):\n    raise AttributeError('no such thing')\n")
    result = run("bench.toml", "--methods", "bad.py:crash")
    assert result.exit_code == 1
    assert "1 cell failed; the same command tries them again:" in result.stderr
    assert "bad.py:crash" in result.stderr
    assert "AttributeError: no such thing" in result.stderr
    assert "finished" not in result.stdout
