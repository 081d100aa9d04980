"""`pellucid benchmark`: from a spec or from options; what it says at the end; errors in one line."""

import json
import shutil
from pathlib import Path

import pandas as pd
import pytest
from typer.testing import CliRunner

import pellucid as pl
from pellucid import catalog
from pellucid.cli import app
from pellucid.cli.benchmark import spec_content
from pellucid.errors import RuleNotApplied
from pellucid.experiments.spec import read_spec
from pellucid.experiments.store import Results
from pellucid.findings.statistics import Statistics
from pellucid.metrics.noise import TotalVariation

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
    assert "note: rectgrad(tau=1e30) is zero everywhere at input, layer2.0 for some images" in result.stderr


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
