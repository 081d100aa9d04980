"""`pellucid explain`: what it writes, that it can be made again, that bad input is named and leaves nothing."""

import csv
import gzip
import io
import json
import os
import re
import shlex
import shutil
from base64 import b64decode
from dataclasses import replace
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

from pellucid.catalog import may_be_negative, meaning
from pellucid.cli import app
from pellucid.cli import run as run_module
from pellucid.cli.explain_page import ExplainPage
from pellucid.cli.options import parted
from pellucid.cli.output import HOW_FAR, UNFINISHED
from pellucid.cli.photos import _file_hash
from pellucid.cli.pictures import Pictures, pages
from pellucid.cli.request import Request, method_names
from pellucid.cli.run import Explained, ExplainRun
from pellucid.data.shapes import ShapesDataset
from pellucid.data.sources import files_named, open_images
from pellucid.errors import InputWarning, InvalidData
from pellucid.experiments.inputs import digest_of_model
from pellucid.experiments.noticing import mislabeled
from pellucid.experiments.record import Note, verdict_on
from pellucid.files import sealed
from pellucid.methods.attributions import Attributions
from pellucid.models.weights import is_untrained
from pellucid.models.zoo import load_model
from pellucid.training.classifiers import save_weights

TINY = """
import torch
from torch import nn


def network(last=4):
    torch.manual_seed(0)
    return nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 4, 3, stride=2, padding=1), nn.ReLU()),
        nn.Sequential(nn.Conv2d(4, 6, 3, stride=2, padding=1), nn.ReLU()),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, last),
    )


def broken():
    model = network()
    model[4].weight.data[0, 0] = float("nan")
    return model


def scripted():
    return torch.jit.script(network())


def preprocess(image):
    import numpy
    pixels = torch.from_numpy(numpy.array(image.resize((32, 32)))).permute(2, 0, 1) / 255
    return pixels / 0 if pixels.max() == 0 else pixels - 0.5
"""
ARGUMENTS = ["--methods", "gradient,smoothed(gradient, samples=3)", "--layers", "0.0,1.0", "--variant", "backward"]


@pytest.fixture
def work(tmp_path, monkeypatch):
    """A folder with three photos and a tiny network, which commands run in."""
    monkeypatch.chdir(tmp_path)
    for index in range(3):
        pixels = ShapesDataset(3, size=40)[index][0].permute(1, 2, 0).mul(255).byte().numpy()
        Image.fromarray(pixels).save(f"photo{index}.png")
    Path("tiny.py").write_text(TINY)
    return tmp_path


def run(*arguments):
    return CliRunner().invoke(app, [str(argument) for argument in arguments])


def explain(*arguments, model="tiny.py:network"):
    """Explain into a folder without a finished run."""
    if Path("out/run.json").exists():
        shutil.rmtree("out")
    return explain_again(*arguments, model=model)


def explain_again(*arguments, model="tiny.py:network"):
    return run("explain", *arguments, "--model", model, "-o", "out")


def written(folder="out"):
    """All attributions that a run wrote."""
    return {
        f"{path.stem}/{name}": values
        for path in Path(folder, "attributions").iterdir()
        for name, values in load_file(path).items()
    }


def colours(path):
    with Image.open(path) as picture:
        return len(np.unique(np.asarray(picture.convert("RGB")).reshape(-1, 3), axis=0))


def table_of(path, photos, classes):
    """A Parquet table of photos in Hugging Face's layout, with labels 0, 1, ... of classes of these names."""
    cells = [{"bytes": Path(photo).read_bytes(), "path": photo} for photo in photos]
    told = {"info": {"features": {"label": {"names": classes}}}}
    table = pyarrow.table({"image": cells, "label": [*range(len(photos))]})
    pyarrow.parquet.write_table(table.replace_schema_metadata({"huggingface": json.dumps(told)}), path)


def test_all_that_is_promised_is_written(work):
    result = explain("photo0.png", "photo1.png", *ARGUMENTS, "--variant", "original", "--pictures", "png,svg")
    assert result.exit_code == 0, result.output
    assert "2 photos explained" in result.stdout
    out = work / "out"
    for name in ("figure-methods-0.0-backward-001", "figure-layers-photo0-gradient-001"):
        assert colours(out / f"{name}.png") > 50
        assert ">photo0.png</text>" in (out / f"{name}.svg").read_text()
    maps = sorted(path.relative_to(out / "maps").as_posix() for path in out.rglob("maps/**/*.png"))
    assert len(maps) == 2 * 2 * 2 * 2
    assert maps[0] == "photo0/gradient/0.0-backward.png"
    for name in maps:
        with Image.open(out / "maps" / name) as picture:
            assert picture.size == (32, 32)
        assert colours(out / "maps" / name) > 1
    attributions = written()
    assert attributions["photo1/smoothed-gradient-samples=3/1.0/original"].shape == (6, 8, 8)
    told = r"it holds the numbers of pellucid explain, one tensor for each METHOD/LAYER/VARIANT; .*load_file reads"
    with pytest.raises(InvalidData, match=told):
        Attributions.load("out/attributions/photo1.safetensors")
    assert not [path for path in work.rglob("*") if path.name.startswith(".")]
    assert json.loads((out / "run.json").read_text())["files"] == sorted(
        path.name for path in out.iterdir() if path.name != "run.json"
    )


def test_run_json_tells_all_and_can_be_run_again(work):
    assert explain("photo0.png", "photo1.png", *ARGUMENTS, "--seed", 7).exit_code == 0
    facts = json.loads(Path("out/run.json").read_text())
    first = written()
    assert facts["seed"] == 7
    assert facts["versions"]["torch"] == version("torch")
    assert facts["methods"]["smoothed-gradient-samples=3"]["parameters"]["samplings"][0]["samples"] == 3
    assert [photo["name"] for photo in facts["photos"]] == ["photo0.png", "photo1.png"]
    assert len(facts["photos"][0]["sha256"]) == 64
    assert 0 < facts["photos"][0]["target"]["probability"] <= 1
    assert facts["photos"][0]["target"]["class"] == facts["photos"][0]["predicted"]["class"]

    program, *arguments = shlex.split(facts["command"])
    assert program == "pellucid"
    shutil.rmtree("out")
    assert run(*arguments).exit_code == 0
    again = written()
    assert first.keys() == again.keys()
    assert all(torch.equal(first[key], again[key]) for key in first)

    names = {}
    exec(facts["python"], names)
    from_python = names["attributions"]["gradient", "backward"]["1.0"][1]
    assert torch.equal(from_python, first["photo1/gradient/1.0/backward"])


def test_the_included_network_is_explained_with_class_names(work):
    result = run(
        "explain",
        "photo2.png",
        "--model",
        "shapes-resnet",
        "--methods",
        "gradient,gradcam",
        "--pictures",
        "svg",
        "-o",
        "out",
    )
    assert result.exit_code == 0, result.output
    [photo] = json.loads(Path("out/run.json").read_text())["photos"]
    assert photo["predicted"]["name"] == "triangle"
    text = Path("out/figure-methods-own-original-001.svg").read_text()
    assert ">triangle 9" in text
    assert ">(layer3.1)</text>" in text


def test_folders_tables_and_drawn_images_are_photos_too(work):
    assert explain(work, "--limit", 2).exit_code == 0
    asked = ("--limit", 1, "--model", "shapes-resnet", "--target", "label", "-o", "b")
    ended = run("explain", "shapes:5", *asked)
    assert ended.exit_code == 0
    assert "of shapes:5 the first 1 of 5 photos, perhaps of few of its classes, are explained" in ended.stderr
    [photo] = json.loads(Path("b/run.json").read_text())["photos"]
    assert photo["target"]["name"] == "circle"


def test_photos_of_one_stem_keep_apart(work):
    shutil.copy("photo0.png", "photo0.jpg")
    assert explain("photo0.png", "photo0.jpg").exit_code == 0
    assert sorted(path.name for path in Path("out/maps").iterdir()) == ["photo0", "photo0-2"]


def test_many_photos_and_layers_go_on_pages(work):
    for index in range(8):
        shutil.copy("photo0.png", f"more{index}.png")
    result = explain(*[f"more{index}.png" for index in range(8)], "--raw=no")
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in Path("out").glob("*.png")) == [
        "figure-methods-own-original-001.png",
        "figure-methods-own-original-002.png",
    ]
    assert not Path("out/attributions").exists()


def test_photos_of_another_size_have_a_figure_of_their_own(work):
    Path("sized.py").write_text(TINY.replace("image.resize((32, 32))", "image"))
    Image.open("photo0.png").resize((48, 40)).save("wide.png")
    result = explain(
        "photo0.png", "wide.png", "--methods", "gradient,edges", "--layers", "input", model="sized.py:network"
    )
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in Path("out").glob("*.png")) == [
        "figure-methods-input-original-001.png",
        "figure-methods-input-original-002.png",
    ]


def test_a_bad_photo_does_not_lose_the_others(work):
    Path("text.png").write_text("no picture at all")
    result = explain("photo0.png", "text.png", "photo1.png")
    assert result.exit_code == 1
    assert "text.png is no image" in result.stderr
    assert "left out 1 photo" in result.stderr
    facts = json.loads(Path("out/run.json").read_text())
    assert [photo["key"] for photo in facts["photos"]] == ["photo0", "photo1"]
    assert len(facts["left_out"]) == 1


def test_warnings_are_told_once_and_short(work):
    result = explain("photo0.png", "photo1.png", "--methods", "integrated(gradient, steps=1, quadrature='left')")
    assert result.exit_code == 0, result.output
    assert result.stderr.count("misses the sum") == 1
    assert "(the largest is " in result.stderr
    assert "for all 2 photos; take more steps, another baseline" in result.stderr
    assert "residuals" in Path("out/run.json").read_text()
    result = explain("photo0.png", "--methods", "lrp_epsilon")
    assert result.exit_code == 0, result.output
    assert "more steps" not in result.stderr


def test_random_weights_do_not_go_unsaid(work):
    result = explain("photo0.png", "--raw=no", model="cifar-cnn")
    assert result.exit_code == 0, result.output
    assert "cifar-cnn has random weights" in result.stderr


def everything(folder="out"):
    """The content of all files below a folder."""
    return {path: path.read_bytes() for path in Path(folder).rglob("*") if path.is_file()}


OTHERS = {  # and the first thing in which each differs
    "photos": (["photo1.png"], "photos: photo0.png there alone; photo1.png here alone"),
    "more photos": (["photo0.png", "photo1.png"], "photos: photo1.png here alone"),
    "methods": (
        ["photo0.png", "--methods", "gradcam"],
        "methods: gradient, smoothed(gradient, samples=3) there alone; gradcam here alone",
    ),
    "model": (["photo0.png"], "model is 'tiny.py:network' there and 'shapes-resnet' here"),
    "settings": (["photo0.png", "--seed", "1"], "seed is 0 there and 1 here"),
    "layers": (["photo0.png", "--layers", "0.0"], "layers is 'not given' there and ['0.0'] here"),
    "what fails": (["photo0.png", "--target", "99"], "target is 'auto' there and '99' here"),
}


@pytest.mark.parametrize("other", OTHERS)
def test_a_finished_run_of_another_request_is_told_and_kept(work, other):
    assert explain("photo0.png", "--methods", "gradient,smoothed(gradient, samples=3)").exit_code == 0
    Path("out/notes.txt").write_text("mine")
    before = everything()
    result = explain_again(*OTHERS[other][0], model="shapes-resnet" if other == "model" else "tiny.py:network")
    assert result.exit_code == 2
    differs, says = OTHERS[other][1], result.stderr
    assert says.startswith(
        "error: out holds a finished run of another request: 1 photo by gradient, smoothed(gradient, samples=3); "
    )
    assert f"; {differs}; choose another folder, or move this one\n" in says
    assert everything() == before


def test_the_same_request_is_not_computed_again(work):
    Path("text.png").write_text("no picture at all")
    photos = ["photo0.png", "photo1.png", "text.png"]
    first = explain(*photos)
    Path("out/maps/notes.txt").write_text("mine")
    before = everything()
    again = explain_again(*photos)
    assert (first.exit_code, again.exit_code) == (1, 1)
    assert again.stdout == f"out was finished already; nothing was computed\n{first.stdout}"
    assert again.stderr == first.stderr
    assert everything() == before


LOADING = """
import pathlib
import torch
from tiny import network as untrained


def network():
    model = untrained()
    model.load_state_dict(torch.load("w.pth"))
    return model


classes = pathlib.Path("names.txt").read_text().split()
"""


@pytest.fixture
def loading(work):
    """A file whose function loads weights by itself, and its class names."""
    Path("loading.py").write_text(LOADING)
    Path("names.txt").write_text("one two three four")
    torch.save(load_model("tiny.py:network").model.state_dict(), "w.pth")
    return "loading.py:network"


def trained_anew(file="w.pth"):
    """Move the weights that a file's function loads."""
    state = torch.load(file)
    torch.save({name: value + 0.5 for name, value in state.items()}, file)


def digest_now(model):
    return digest_of_model(load_model(model))


def test_other_weights_behind_the_same_request_are_no_finished_run(loading):
    """Weights that a file's function loads by itself are named by no option, and decide all maps."""
    assert explain("photo0.png", model=loading).exit_code == 0
    before, there = everything(), digest_now(loading)
    result = explain_again("photo0.png", model=loading)
    assert (result.exit_code, result.stdout.splitlines()[0]) == (
        0,
        "out was finished already; nothing was computed",
    )
    trained_anew()
    here = digest_now(loading)
    assert here != there
    for more in ([], ["--title", "Another"]):
        result = explain_again("photo0.png", *more, model=loading)
        assert result.exit_code == 2
        assert result.stderr == (
            "error: out holds a finished run of other weights or preprocessing of loading.py:network "
            f"(digest {there[:12]} there, {here[:12]} here); choose another folder, or move this one\n"
        )
    assert everything() == before


def test_weights_that_a_file_loads_are_told_as_its_own(loading):
    """They are not random; a file of weights that is named has its own digest beside the model's."""
    assert explain("photo0.png", model=loading).exit_code == 0
    model, page = json.loads(Path("out/run.json").read_text())["model"], Path("out/report.html").read_text()
    assert (model["weights"], model["digest"]) == ("made by its function", digest_now(loading))
    assert f"weights made by its function (digest {model['digest'][:12]})" in page
    assert "<th>weights</th><td>made by its function</td>" in load_model(loading)._repr_html_()
    assert explain("photo0.png", "--weights", "w.pth", model=loading).exit_code == 0
    known = sha256(Path("w.pth").read_bytes()).hexdigest()
    assert f"weights w.pth (sha256 {known[:12]})" in Path("out/report.html").read_text()
    assert json.loads(Path("out/run.json").read_text())["model"]["sha256"] == known


def test_other_class_names_behind_the_same_request_are_no_finished_run(loading):
    assert explain("photo0.png", model=loading).exit_code == 0
    Path("names.txt").write_text("four three two one")
    result = explain_again("photo0.png", model=loading)
    assert result.exit_code == 2
    assert "of other parts or class names of loading.py:network, which changed since" in result.stderr


def test_files_of_a_later_date_are_the_same_and_others_are_named(work):
    shutil.copy("photo0.png", "a.png")
    Path("w.pth").write_bytes(b"")
    torch.save(load_model("shapes-resnet").model.state_dict(), "w.pth")
    arguments = ["a.png", "photo1.png", "--weights", "w.pth"]
    assert explain(*arguments, model="shapes-resnet").exit_code == 0
    for path in ("a.png", "w.pth"):
        os.utime(path, (1, 1))
    assert "was finished already" in explain_again(*arguments, model="shapes-resnet").stdout
    shutil.copy("photo2.png", "a.png")
    assert "; files.a.png: not the same; choose" in explain_again(*arguments, model="shapes-resnet").stderr


def test_what_a_model_file_imports_belongs_to_the_request(work):
    Path("sizes.py").write_text("SIDE = 8\n")
    source = "from torch import nn\nimport sizes\n\n\ndef network():\n"
    source += "    return nn.Sequential(nn.Conv2d(3, 2, sizes.SIDE), "
    Path("parts.py").write_text(f"{source}nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()\n")
    assert explain("photo0.png", model="parts.py:network").exit_code == 0
    assert "was finished already" in explain_again("photo0.png", model="parts.py:network").stdout
    Path("sizes.py").write_text("SIDE = 4\n")
    assert "files.parts.py: not the same" in explain_again("photo0.png", model="parts.py:network").stderr


def test_what_an_interruption_at_the_very_end_left_is_removed(work):
    assert explain("photo0.png").exit_code == 0
    key = json.loads(Path("out/run.json").read_text())["request"]
    for draft in Path("out"), Path():
        (draft / f".pellucid-{key}").mkdir()
        (draft / f".pellucid-{key}.lock").touch()
    assert "was finished already" in explain_again("photo0.png").stdout
    assert not list(Path("out").glob(".pellucid-*"))


def test_each_answer_of_a_last_sigmoid_is_a_probability(work):
    """Two of them need not sum to 1; a softmax of both would say 50 to 73 %."""
    source = "from torch import nn\n\n\ndef network():\n    return nn.Sequential(nn.Conv2d(3, 2, 8, 8), "
    Path("labels.py").write_text(f"{source}nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Sigmoid()).eval()\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pellucid.cli.run.likelihoods", None)
        result = explain("photo0.png", "photo1.png", "--classes", "fog,rain", model="labels.py:network")
    assert result.exit_code == 0, result.output
    assert "without its last sigmoid" in result.stderr


def test_layers_without_places_are_skipped_where_a_pattern_chose_them(work):
    result = explain("photo0.png", "--layers", "*", "--methods", "gradient")
    assert result.exit_code == 0, result.output
    assert "gradient has no map at layers 3, 4" in result.stderr
    assert json.loads(Path("out/run.json").read_text())["layers"] == ["input", "0", "1", "2"]
    assert run("maps", ".", "maps", "--model", "tiny.py:network", "--layers", "*").exit_code == 0


@pytest.mark.parametrize(
    ("returned", "place"), [("{'answer': 3}", "output = 'KEY'"), ("(3, 2)", "output = 'KEY'")]
)
def test_a_command_says_how_a_model_file_tells_where_logits_are(work, returned, place):
    head = "from torch import nn\n\n\nclass Model(nn.Module):\n    def forward(self, x):\n        return "
    Path("other.py").write_text(f"{head}{returned}\n\n\ndef network():\n    return Model()\n")
    result = explain("photo0.png", model="other.py:network")
    assert f"by a line in the model's file (--model FILE.py:NAME): {place}" in result.stderr


@pytest.mark.parametrize("last", ["Sigmoid", "Identity"])
def test_two_names_are_asked_for_where_they_are_not_refused(work, last):
    source = "from torch import nn\n\n\ndef network():\n    return nn.Sequential(nn.Conv2d(3, 1, 8, 8), "
    Path("one.py").write_text(f"{source}nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.{last}()).eval()\n")
    told = explain("photo0.png", model="one.py:network").stderr
    refused = explain("photo0.png", "--classes", "no,yes", model="one.py:network").exit_code == 2
    assert refused == (last == "Sigmoid") == ("name a classifier's two answers" not in told)


def test_a_file_is_the_same_by_whichever_path_it_is_named(work, monkeypatch):
    save_weights(load_model("shapes-resnet").model, Path("w.safetensors"), {})
    arguments = [str(Path("photo0.png").absolute()), "--output", str(Path("out").absolute()), "--methods"]
    model = ["--model", "shapes-resnet", "--weights"]
    runner = CliRunner()
    assert runner.invoke(app, ["explain", *arguments, "gradient", *model, "w.safetensors"]).exit_code == 0
    Path("elsewhere").mkdir()
    monkeypatch.chdir("elsewhere")
    again = runner.invoke(app, ["explain", *arguments, "gradient", *model, "../w.safetensors"])
    assert (again.exit_code, "was finished already" in again.stdout) == (0, True), again.stderr
    other = runner.invoke(app, ["explain", *arguments, "gradcam", *model, "../w.safetensors"])
    assert "; methods: gradient there alone; gradcam here alone; choose" in other.stderr


def test_other_names_beside_the_weights_are_another_request(work):
    model = load_model("shapes-resnet")
    save_weights(model.model, Path("w.safetensors"), {"classes": list(model.classes)})
    arguments = ["photo0.png", "--weights", "w.safetensors"]
    assert explain(*arguments, model="shapes-resnet").exit_code == 0
    save_weights(model.model, Path("w.safetensors"), {"classes": list(model.classes)[::-1]})
    result = explain_again(*arguments, model="shapes-resnet")
    assert result.exit_code == 2
    assert "holds a finished run of another request" in result.stderr
    assert "; files.w.json: not the same; choose another folder" in result.stderr


def test_maps_and_benchmarks_are_of_the_weights_that_a_file_loads(loading):
    Path("photos").mkdir()
    shutil.copy("photo0.png", "photos/photo0.png")
    asked = ["--model", loading, "--methods", "gradient"]
    commands = [
        ["maps", "photos", "maps", *asked],
        ["benchmark", "--images", "photos", "--metrics", "total_variation", "-o", "graded", *asked],
    ]
    for command in commands:
        assert run(*command).exit_code == 0
    trained_anew()
    for command in commands:
        result = run(*command)
        assert result.exit_code == 2
        assert "weights and preprocess" in result.stderr


def test_the_same_request_makes_anew_what_is_missing_and_gives_another_title(work):
    assert explain("photo0.png").exit_code == 0
    before = everything()
    lost = min(Path("out/maps").rglob("*.png"))
    lost.unlink()
    assert "finished already" not in explain_again("photo0.png").stdout
    assert everything() == before
    assert explain_again("photo0.png", "--title", "Mine").exit_code == 0
    assert "<title>Mine" in page()


@pytest.mark.parametrize(
    "name", ["report.html", "predictions.csv", "maps/mine.png", "attributions/mine.safetensors"]
)
def test_no_file_of_the_users_is_replaced_or_removed(work, name):
    assert explain("photo0.png").exit_code == 0
    Path("out", name).write_text("mine")
    before = everything()
    result = explain_again("photo0.png", "--title", "Mine")
    assert result.exit_code == 2
    assert result.stderr.startswith(f"error: out/{name} is not ")
    assert result.stderr.endswith("; choose another folder or move this file\n")
    assert result.stderr.count("\n") == 1
    assert everything() == before
    Path("out", name).unlink()
    assert explain_again("photo0.png", "--title", "Mine").exit_code == 0


@pytest.mark.parametrize("name", ["report.html", "figure-mine.png", "maps/mine.png", "notes.txt"])
def test_a_folder_of_the_users_files_is_refused_by_a_files_name(work, name):
    Path("out", name).parent.mkdir(parents=True)
    Path("out", name).write_text("mine")
    result = explain("photo0.png")
    assert result.exit_code == 2
    assert f"out holds {name.partition('/')[0]}, which this command did not write" in result.stderr
    assert everything() == {Path("out", name): b"mine"}


def test_a_failed_run_leaves_the_earlier_one(work, monkeypatch):
    assert explain("photo0.png").exit_code == 0
    min(Path("out/maps").rglob("*.png")).unlink()
    before = everything()

    def failing(self, show):
        raise InvalidData("it fails")

    with monkeypatch.context() as patch:
        patch.setattr(ExplainRun, "explain_all", failing)
        assert explain_again("photo0.png").exit_code == 2
    assert everything() == before


# Bad input.

BAD = {
    "values_after_a_blank": (
        ["photo0.png", "--methods", "gradient", "smoothed(gradient, samples=3)"],
        {},
        "given with commas: --methods 'gradient,smoothed(gradient, samples=3)'",
    ),
    "layers_after_a_blank": (["photo0.png", "--layers", "0.0", "1.0"], {}, "with commas: --layers '0.0,1.0'"),
    "variants_after_a_blank": (["photo0.png", "backward"], {}, "with commas: --variant 'original,backward'"),
    "negative_target": (["photo0.png", "--target=-1"], {}, "target '-1' is out of range; classes are numbered"),
    "negative_target_of_names": (
        ["photo0.png", "--target=-1", "--classes", "a,b,c,d"],
        {},
        "target '-1' is out of range; the model has classes 0 to 3",
    ),
    "missing": (["nowhere.png"], {}, "no file or folder nowhere.png"),
    "empty": (["empty.png"], {}, "empty.png is empty"),
    "truncated": (["cut.png"], {}, "cut.png is broken or cut short"),
    "text": (["text.png"], {}, "text.png is no image"),
    "all_bad": (["empty.png", "text.png"], {}, "none of 2 photos can be explained"),
    "nan_image": (["black.png"], {}, "black.png: the model's preprocess gave NaN"),
    "model": (["photo0.png"], {"model": "resnet5"}, "did you mean resnet50"),
    "factory": (["photo0.png"], {"model": "tiny.py:netwrok"}, "did you mean network"),
    "torchscript": (["photo0.png"], {"model": "tiny.py:scripted"}, "TorchScript"),
    "nan_weights": (["photo0.png"], {"model": "tiny.py:broken"}, "'4.weight' holds NaN"),
    "misfit": (["photo0.png", "--weights", "other.safetensors"], {}, "does not fit"),
    "weights_of_no_name": (["photo0.png", "--weights", "."], {}, "has no weights named '.'"),
    "no_weights": (["photo0.png", "--weights", "none.safetensors"], {}, "no weights file none.safetensors"),
    "pickle": (["photo0.png", "--weights", "code.pth"], {}, "more than plain tensors"),
    "broken_weights": (["photo0.png", "--weights", "cut.pth.gz"], {}, "cut short"),
    "target": (["photo0.png", "--target", "4"], {}, "target 4 is out of range; the model has classes 0 to 3"),
    "target_text": (["photo0.png", "--target", "cat"], {}, "give a number, --classes FILE or A,B,C, or --weights"),
    "no_file_of_classes": (
        ["photo0.png", "--classes", "nope.txt"],
        {},
        "there is no file nope.txt of class",
    ),
    "too_few_classes": (
        ["photo0.png", "--classes", "a,b,c"],
        {},
        "3 classes are named by --classes, and tiny.py:network has",
    ),
    "no_label": (["photo0.png", "--target", "label"], {}, "photo0.png has no label"),
    "layer": (["photo0.png", "--layers", "0.7"], {}, "unknown layer '0.7'"),
    "layer_of_a_kind": (["photo0.png", "--layers", "layer4"], {}, "; known: input, 0, 0.0, 0.1,"),
    "layers_listed": (["photo0.png", "--layers", "layer4"], {}, "pellucid list layers --model MODEL"),
    "flat_layers": (["photo0.png", "--layers", "[45]"], {}, "layer '4' gives gradient the shape (1, 4)"),
    "flat_layer": (["photo0.png", "--layers", "4"], {}, "layer '4' gives gradient the shape (1, 4)"),
    "method": (["photo0.png", "--methods", "gradiant"], {}, "did you mean gradient"),
    "no_method": (["photo0.png", "--methods", ","], {}, "no method is named"),
    "no_variant": (["photo0.png", "--variant", ""], {}, "no variant is named; see: pellucid list variants"),
    "brackets": (
        ["photo0.png", "--methods", "smoothed(gradient"],
        {},
        "'smoothed(gradient' is no method: a bracket is not closed",
    ),
    "semicolon": (
        ["photo0.png", "--methods", "gradient;gradcam(layer=x)"],
        {},
        "it names several: in a command separate methods by a comma, gradient,gradcam(layer=x)",
    ),
    "parameter": (["photo0.png", "--methods", "rectgrad(q=101)"], {}, "101"),
    "parameter_name": (["photo0.png", "--methods", "smoothgrad(sample=3)"], {}, "sample"),
    "rule": (["photo0.png", "--methods", "gradient,rectgrad_prr"], {}, "met no operation of its kind"),
    "variant": (["photo0.png", "--variant", "backwards"], {}, "did you mean backward"),
    "channels": (["photo0.png", "--channels", "max"], {}, "channels is 'max'; input should be 'sum', 'mean'"),
    "upsampling": (
        ["photo0.png", "--upsampling", "cubic"],
        {},
        "upsampling is 'cubic'; input should be 'nearest' or 'bilinear'",
    ),
    "clip": (["photo0.png", "--clip", "5"], {}, "--clip 5: give two percentiles"),
    "clip_range": (["photo0.png", "--clip", "50,5"], {}, "percentiles 50.0, 5.0"),
    "max_batch": (["photo0.png", "--max-batch", "0"], {}, "max_batch=0"),
    "device": (["photo0.png", "--device", "gpu"], {}, "--device gpu"),
    "table": (["table.parquet"], {}, "no readable Parquet file"),
    "no_images": (["folder"], {}, "folder holds no images"),
}


@pytest.fixture
def bad(work):
    Path("empty.png").touch()
    Path("text.png").write_text("no picture at all")
    Path("table.parquet").write_text("no table")
    Path("folder").mkdir()
    Path("cut.png").write_bytes(Path("photo0.png").read_bytes()[:700])
    Image.new("RGB", (32, 32)).save("black.png")
    save_file({"weight": torch.zeros(3)}, "other.safetensors")
    torch.save({"code": print}, "code.pth")
    Path("cut.pth.gz").write_bytes(gzip.compress(Path("code.pth").read_bytes())[:100])
    return work


MODELS = {
    "lazy": (
        "network().append(nn.LazyLinear(3))",
        "the model's '5.weight' has no shape yet (a lazy layer)",
    ),
    "integers": ("pl.Classifier(network(), lambda logits: logits.long())", "the model returns torch.int64"),
    "detached": ("pl.Classifier(network(), lambda logits: logits.detach())", "the logits carry no gradient"),
    "compared": (
        "pl.Classifier(network(), lambda x: (x > 0).float())",
        "such as a comparison (x > 0) or argmax, at",
    ),
    "channels": (
        "nn.Sequential(nn.Conv2d(1, 4, 3), *network()[1:])",
        "the model fails on images of shape (1, 3, 32, 32)",
    ),
    "raising": ("pl.Classifier(network(), lambda logits: {}[0])", "KeyError: 0; mend it, or give it a preprocess"),
}


@pytest.mark.filterwarnings("ignore:Lazy modules")
@pytest.mark.parametrize("case", MODELS)
def test_a_model_that_cannot_be_explained_is_told_in_one_line(work, case):
    made, message = MODELS[case]
    Path("model.py").write_text(f"import pellucid as pl\n{TINY}\ndef made():\n    return {made}.eval()\n")
    result = explain("photo0.png", model="model.py:made")
    assert result.exit_code == 2, result.output
    [line] = [line for line in result.stderr.strip().splitlines() if not line.startswith("note: Lazy")]
    assert message in line
    assert not Path("out").exists()


@pytest.mark.filterwarnings("ignore:.*torch.jit")  # it warns of its own end, and is made here to be refused
@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_named_and_leaves_nothing(bad, case):
    arguments, settings, message = BAD[case]
    before = sorted(path.name for path in bad.iterdir())
    result = explain(*arguments, **settings)
    assert result.exit_code == 2, result.output
    lines = result.stderr.strip().splitlines()
    assert len(lines) == 1, result.stderr
    assert lines[0].startswith("error: ")
    assert message in lines[0]
    assert sorted(path.name for path in bad.iterdir() if path.name != "__pycache__") == before


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("photo0.png", "photo0.png is a file"),
        ("photo0.png/out", "photo0.png is a file; choose another"),
        (".", "no run"),
        ("new/out.html", "new/out.html is called as a page is, and a folder is written; give new/out, whose page"),
    ],
)
def test_an_output_that_cannot_be_is_refused_before_any_work(work, place, message):
    before = sorted(Path().iterdir())
    result = run("explain", "photo0.png", "--model", "no-such-model", "-o", place)
    assert result.exit_code == 2
    assert message in result.stderr
    assert sorted(Path().iterdir()) == before


def test_an_error_that_is_not_the_users_keeps_its_traceback(work, monkeypatch):
    def fail(*_):
        raise ZeroDivisionError

    monkeypatch.setattr("pellucid.cli.run.find_photos", fail)
    result = explain("photo0.png")
    assert isinstance(result.exception, ZeroDivisionError)
    assert not Path("out").exists()


def test_commas_split_only_outside_brackets():
    assert parted(["a, b(c(d, e), f=1),g,", "h"]) == ["a", "b(c(d, e), f=1)", "g", "h"]


def test_pages_are_even():
    assert [len(page) for page in pages(list(range(13)), 7)] == [6, 7]
    assert [len(page) for page in pages(list(range(8)), 7)] == [4, 4]
    assert pages([], 7) == []


def test_every_method_has_files_of_its_own(work):
    names = method_names(["smoothed(gradient)", "smoothed( gradient )", "gradient", "gradient"])
    assert list(names) == ["smoothed-gradient", "smoothed-gradient-2", "gradient"]


def test_a_classifier_of_one_output_has_two_answers(work):
    Path("one.py").write_text(f"{TINY}\nclasses = ['benign', 'malignant']\ndef one():\n    return network(1)\n")
    result = explain("photo0.png", "photo1.png", "--target", "malignant", model="one.py:one")
    assert result.exit_code == 0, result.output
    facts = json.loads(Path("out/run.json").read_text())
    malignant = [photo["target"]["probability"] for photo in facts["photos"]]
    assert [photo["target"]["name"] for photo in facts["photos"]] == ["malignant"] * 2
    result = explain("photo0.png", "photo1.png", "--target", "benign", model="one.py:one")
    facts = json.loads(Path("out/run.json").read_text())
    assert [1 - photo["target"]["probability"] for photo in facts["photos"]] == pytest.approx(malignant)


def test_one_output_without_names_is_a_value(work):
    Path("one.py").write_text(f"{TINY}\ndef one():\n    return network(1)\n")
    result = explain("photo0.png", model="one.py:one")
    assert result.exit_code == 0, result.output
    assert "%" not in result.stdout
    assert "--classes no,yes" in result.stderr
    assert "The question to the network was: what makes its one output larger?" in page()
    refused = explain("photo0.png", "--target", "1", model="one.py:one")
    assert "target 1 is out of range: the model has one output, 0" in refused.stderr
    assert "--classes no,yes" in refused.stderr


def test_what_is_no_class_is_explained(work):
    Path("asked.py").write_text("def spread(output):\n    return output.std(1)\n")
    for target in ("asked.py:spread", "b - a"):
        result = explain("photo0.png", "--target", target, "--classes", "a,b,c,d")
        assert result.exit_code == 0, result.output
        facts = json.loads(Path("out/run.json").read_text())
        assert facts["photos"][0]["target"]["name"] == target
        known = {}
        exec(facts["python"], known)
        kept = written()["photo0/gradient/input/original"]
        assert torch.allclose(known["attributions"]["gradient", "original"]["input"][0], kept)
    result = explain("photo0.png", "--target", "dd", "--classes", "a,b,c,ddd")
    assert "unknown class 'dd'; did you mean ddd?" in result.stderr
    result = explain("photo0.png", "--classes", "a,b")
    said = "2 classes are named by --classes, and tiny.py:network has 4; name each of the model's classes by"
    assert said in result.stderr
    Path("named.py").write_text(f"{TINY}\nclasses = ['a', 'b', 'c']\n")
    said = "3 classes are named by `classes` in named.py or beside the weights, and named.py:network has 4; name"
    assert said in explain("photo0.png", model="named.py:network").stderr


def test_layouts_are_declared(work):
    text = TINY.replace("nn.AdaptiveAvgPool2d(1)", "Last(), nn.AdaptiveAvgPool2d(1)")
    last = "class Last(nn.Module):\n    def forward(self, x):\n        return x.flip(-1) * 0 + x\n"
    Path("other.py").write_text(text.replace("def network", f"{last}\n\ndef network"))
    arguments = ["--layers", "2", "--layouts"]
    result = explain("photo0.png", *arguments, "2=bcwh,3=tokens(prefix=1, grid=(8, 8))", model="other.py:network")
    assert result.exit_code == 0, result.output
    turned = written()["photo0/gradient/2/original"]
    explain("photo0.png", *arguments, "2=bchw", model="other.py:network")
    assert torch.equal(turned, written()["photo0/gradient/2/original"].mT)
    for wrong, message in (("2", "write it as"), ("2=map", "is no layout")):
        result = explain("photo0.png", *arguments, wrong)
        assert message in result.stderr


def test_images_of_many_channels(work):
    text = TINY.partition("def preprocess")[0].replace("Conv2d(3,", "Conv2d(5,")
    Path("five.py").write_text(text)
    values = np.random.default_rng(0).integers(0, 60000, (40, 50, 5)).astype(np.uint16)
    np.save("tile.npy", values)
    pictures = {}
    told = {"mean": "the mean of the 5 channels", "3,2,1": "channels 3, 2 and 1", "4": "channel 4"}
    for display, shown in told.items():
        result = explain("tile.npy", "--layers", "1.0", "--display", display, model="five.py:network")
        assert result.exit_code == 0, result.output
        assert "no preprocess: photos are resized to 256, cropped to 224 and scaled to [0, 1]" in result.stderr
        pictures[display] = colours("out/figure-methods-1.0-original-001.png")
        assert f"Pictures of them show {shown}." in page()
    assert pictures["3,2,1"] > 10 * pictures["mean"]  # coloured noise
    facts = json.loads(Path("out/run.json").read_text())
    assert facts["model"]["preprocess"]["channels"] == 5
    known = {}
    exec(facts["python"], known)
    assert known["images"].shape == (1, 5, 224, 224)
    assert 0 <= known["images"].min() < known["images"].max() <= 60000 / 65535 + 1e-6
    for display, message in (("6", "channels 1 to 5"), ("red", "give mean, or")):
        result = explain("tile.npy", "--display", display, model="five.py:network")
        assert message in result.stderr
    result = explain("photo0.png", model="five.py:network")
    assert "the image has 3 channels, and the model's preprocess wants 5" in result.stderr
    explain("tile.npy", "--scale", "200,4200", model="five.py:network")
    assert "cropped to 224 and scaled from [200, 4200] to [0, 1]. Pictures of them show the mean of" in page()
    explain("photo0.png")
    assert "Pictures of them" not in page()


def test_layers_that_are_skipped_are_said(work):
    pair = "class Pair(nn.Module):\n    def forward(self, x):\n        return x, x.clone()\n"
    first = "class First(nn.Module):\n    def forward(self, x):\n        return x[0]\n"
    text = TINY.replace("nn.AdaptiveAvgPool2d(1)", "Pair(), First(), nn.AdaptiveAvgPool2d(1)")
    Path("pair.py").write_text(text.replace("def network", f"{pair}\n\n{first}\n\ndef network", 1))
    result = explain("photo0.png", "--layers", "[0-2]", model="pair.py:network")
    assert result.exit_code == 0, result.output
    assert "note: gradient has no map at layer 2; name another layer, or declare" in result.stderr


def test_a_softmax_at_the_end_is_noticed(work):
    Path("soft.py").write_text(f"{TINY}\ndef soft():\n    return network().append(nn.Softmax(1))\n")
    assert "note: the outputs are probabilities" not in explain("photo0.png").stderr
    assert "note: the outputs are probabilities" in explain("photo0.png", model="soft.py:soft").stderr


BRIGHTNESS = """
import torch
from torch import nn


def network():
    model = nn.Sequential(nn.Conv2d(3, 1, 1, bias=False), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(1, 2))
    model[0].weight.data.fill_(1 / 3)
    model[3].weight.data = torch.tensor([[9.0], [-9.0]])
    model[3].bias.data.zero_()
    return model


def preprocess(image):
    import numpy
    return torch.from_numpy(numpy.array(image)).permute(2, 0, 1) / 255 - 0.5
"""


ONE_OUTPUT = """


def one():
    model = network()
    model[3] = nn.Linear(1, 1)
    model[3].weight.data.fill_(-9)
    model[3].bias.data.zero_()
    return model
"""


@pytest.mark.parametrize("made", ["network", "one"])
@pytest.mark.parametrize(("classes", "noticed"), [("bright,dark", False), ("dark,bright", True)])
def test_classes_in_another_order_than_the_folders_are_noticed(work, classes, noticed, made):
    Path("brightness.py").write_text(BRIGHTNESS + ONE_OUTPUT)
    for name, value in (("bright", 200), ("dark", 50)):
        Path("photos", name).mkdir(parents=True)
        for number in range(3):
            Image.new("RGB", (6, 6), (value + number, value, value)).save(f"photos/{name}/{number}.png")
    result = explain(
        "photos", "--classes", classes, "--methods", "input_x_gradient", model=f"brightness.py:{made}"
    )
    assert result.exit_code == 0, result.output
    said = "0 of 6 photos are predicted as their folder"
    assert (said in " ".join(result.stderr.split())) == noticed
    assert ("is the order of classes right?" in page()) == noticed
    both = f"the model's are {classes.replace(',', ', ')}; --classes names others; the folders' bright, dark)"
    assert (both in " ".join(result.stderr.split())) == noticed
    assert "right?." not in page()


def test_probabilities_are_told_as_they_are(work):
    """Not a softmax of them, which makes any answer unsure."""
    sure = "def soft():\n    model = network()\n    model[4].weight.data *= 100\n    return model"
    Path("soft.py").write_text(f"{TINY}\n{sure}.append(nn.Softmax(1))\n")
    Path("plain.py").write_text(f"{TINY}\n{sure}\n")
    told = {}
    for name in ("plain", "soft"):
        result = explain("photo0.png", model=f"{name}.py:soft")
        photo = json.loads(Path("out/run.json").read_text())["photos"][0]
        told[name] = [photo["predicted"]["probability"], *(one["probability"] for one in photo["likeliest"])]
        shown = f"{100 * told['plain'][0]:.1f} %"
        assert shown in result.stdout
        assert shown in page()
        assert float(Path("out/predictions.csv").read_text().splitlines()[1].split(",")[4]) == pytest.approx(
            told["plain"][0], rel=1e-4
        )
    assert told["soft"] == pytest.approx(told["plain"], rel=1e-5)


def test_a_difference_is_told_beside_the_prediction(work):
    result = explain("photo0.png", "--target", "b - a", "--classes", "a,b,c,d", "--pictures", "svg")
    assert result.exit_code == 0, result.output
    assert "difference of outputs" in result.stdout
    loaded = load_model("tiny.py:network", classes=["a", "b", "c", "d"])
    logits = loaded.model(loaded.preprocess(Image.open("photo0.png").convert("RGB"))[None])[0]
    best = int(logits.argmax())
    [row] = csv.DictReader(Path("out/predictions.csv").read_text().splitlines())
    assert (row["predicted"], row["explained"]) == ("abcd"[best], "b - a")
    assert float(row["predicted_probability"]) == pytest.approx(float(logits.softmax(0)[best]), rel=1e-4)
    assert float(row["explained_value"]) == pytest.approx(float(logits[1] - logits[0]), rel=1e-3)
    assert f"Predicted: {'abcd'[best]} " in page()
    assert "Explained: b - a, a difference of outputs: " in page()
    assert "for a" in page()
    assert "against" not in page().partition("What the maps show")[2]
    [figure] = Path("out").glob("figure-*.svg")
    assert ">for b<" in figure.read_text()
    assert ">for a<" in figure.read_text()


def test_a_sign_that_says_nothing_has_no_for_and_against(work):
    explain("photo0.png", "--methods", "smoothed(guided_backprop, samples=2)", "--pictures", "svg")
    [figure] = Path("out").glob("figure-*.svg")
    for text in (figure.read_text(), page().partition("What the maps show")[2]):
        assert "positive" in text
        assert "against class" not in text
    explain("photo0.png", "--methods", "gradient,guided_backprop", "--pictures", "svg")
    assert "he sign of guided_backprop says nothing" in page()
    assert "against class" in page()


def test_one_scale_serves_all_photos_and_figures(work):
    """Grad-CAM of a layer that is the photo's brightness less one half: negative in the dark photo alone."""
    Path("brightness.py").write_text(
        "import torch\nfrom torch import nn\n\n"
        "def network():\n"
        "    first, last = nn.Conv2d(3, 1, 1), nn.Linear(1, 2)\n"
        "    nn.init.constant_(first.weight, 1 / 3)\n    nn.init.constant_(first.bias, -0.5)\n"
        "    last.weight.data = torch.tensor([[1.0], [-1.0]])\n"
        "    return nn.Sequential(first, nn.AdaptiveAvgPool2d(1), nn.Flatten(), last)\n"
    )
    slope = np.repeat(np.linspace(0, 80, 32 * 32).reshape(32, 32, 1), 3, 2)
    for name, least in (("bright", 160), ("dark", 60)):
        Image.fromarray((least + slope).astype(np.uint8)).save(f"{name}.png")
    settings = ["bright.png", "dark.png", "--methods", "gradcam", "--layers", "0", "--target", "0"]
    explain(*settings, "--preprocess", "none", "--pictures", "png,svg", model="brightness.py:network")
    assert page().count("against class 0") == 2
    assert "strongest" not in page().partition("What the maps show")[2].partition("Each map")[0]
    for name, sides in (("bright", {True}), ("dark", {True, False})):
        with Image.open(f"out/maps/{name}/gradcam/0-original.png") as picture:
            colors = np.asarray(picture.convert("RGB")).astype(int)
        assert {bool(red >= blue) for red, _, blue in colors.reshape(-1, 3)} == sides
        assert colors[0, 0].sum() != 0  # nor black, which the other scale has for what is small
    for more in (["--channels", "abs_sum"], ["--methods", "edges", "--layers", "input"]):
        explain("bright.png", "--methods", "gradcam", "--layers", "0", *more, model="brightness.py:network")
        assert ("strongest" in page()) == ("abs_sum" in more)
    explain("bright.png", "--methods", "edges", "--layers", "input", model="brightness.py:network")
    assert "strongest" in page()


@pytest.mark.parametrize(
    ("labels", "predicted", "count", "told"),
    [
        ([0, 1, 2, 3, 0], [1, 2, 3, 0, 1], 4, "0 of 5 photos are predicted as their folder"),
        ([0, 1, 2, 3, 0], [0, 2, 3, 0, 1], 4, None),  # 1 of 5 is not below half of chance, 0.625
        ([0, 1, 2, 3], [1, 2, 3, 0], 4, None),  # too few to tell
        ([-1, 0, 1, 2, 3], [0, 1, 2, 3, 0], 4, None),  # one of them of no class of the model
    ],
)
def test_an_order_is_doubted_below_half_of_chance(labels, predicted, count, told):
    found = list(mislabeled(labels, predicted, count, "photo", "folder"))
    assert [one.partition(":")[0] for one in found] == ([told] if told else [])


def test_photos_of_one_name_are_told_apart_by_their_folders(work):
    for number in range(2):
        Path(f"in/{number}").mkdir(parents=True)
        shutil.copy(f"photo{number}.png", f"in/{number}/0.png")
    result = explain("in/0/0.png", "in/1/0.png", "photo2.png")
    assert result.exit_code == 0, result.output
    facts = json.loads(Path("out/run.json").read_text())["photos"]
    assert [one["name"] for one in facts] == ["0/0.png", "1/0.png", "photo2.png"]
    assert all("sha256" in one for one in facts)
    assert "1/0.png" in result.stdout


def test_a_photo_without_a_label_is_not_sent_to_a_column(work):
    stderr = explain("photo0.png", "--target", "label").stderr
    assert "photo0.png has no label to explain; a photo has one in a folder of its class" in stderr
    assert "--label-column" not in stderr


def test_an_x_ray_of_few_values_is_noticed_and_scaled(work):
    grey = TINY.partition("def preprocess")[0].replace("Conv2d(3,", "Conv2d(1,")
    Path("grey.py").write_text(grey)
    values = np.linspace(200, 4200, 40 * 50).reshape(40, 50).astype(np.uint16)
    Image.fromarray(values).save("ray.png")
    result = explain("ray.png", model="grey.py:network")
    assert "note: ray.png uses little of what its bits can hold" in result.stderr
    assert "give --scale, such as 200,4200, this photo's own ends; a trained model needs" in result.stderr
    stretched = "photo is shown with its least value black and its greatest white, whatever the model sees of it."
    assert f"Each {stretched}" in page()
    explain("ray.png", "photo0.png", model="grey.py:network")
    assert f"1 of the 2 {stretched.replace('photo is', 'photos are each')}" in page()
    result = explain("ray.png", "--scale", "200,4200", model="grey.py:network")
    assert "uses little" not in result.stderr
    assert stretched not in page()
    facts = json.loads(Path("out/run.json").read_text())
    assert facts["model"]["preprocess"]["scale"] == [200, 4200]
    known = {}
    exec(facts["python"], known)
    assert (known["images"].min(), known["images"].max()) == pytest.approx((0, 1), abs=0.1)
    kept = written()["ray/gradient/input/original"]
    assert torch.allclose(known["attributions"]["gradient", "original"]["input"][0], kept)
    assert "scales by itself" in explain("ray.png", "--scale", "0,9").stderr
    assert "--scale 9: give the values" in explain("ray.png", "--scale", "9", model="grey.py:network").stderr


@pytest.mark.parametrize("typed", [["--scale", "-100,2900"], ["--scale=-100,2900"]])
@pytest.mark.parametrize("kind", ["int16", "uint32"])
def test_whole_numbers_that_tell_no_range_take_a_scale_that_may_be_negative(work, kind, typed):
    Path("grey.py").write_text(TINY.partition("def preprocess")[0].replace("Conv2d(3,", "Conv2d(1,"))
    np.save("tile.npy", np.linspace(0, 2900, 40 * 50).reshape(40, 50).astype(kind))
    assert "nothing tells which values are black and white" in explain("tile.npy", model="grey.py:network").stderr
    result = explain("tile.npy", *typed, model="grey.py:network")
    assert result.exit_code == 0, result.output
    facts = json.loads(Path("out/run.json").read_text())
    assert facts["model"]["preprocess"]["scale"] == [-100, 2900]


def test_a_resizing_that_whole_leaves_out_is_told(work):
    own = "from pellucid import Preprocess\npreprocess = Preprocess(resize=20, crop=None)\n"
    Path("tile.py").write_text(own + TINY.partition("def preprocess")[0])
    Image.new("RGB", (40, 50), "tan").save("tile.png")
    note = "tile.png, 40 x 50, is seen at its own size; the model's own preprocess would resize it, and all"
    result = explain("tile.png", "--preprocess", "whole", model="tile.py:network")
    assert (
        f"{note} that is in it, to 0.5 times that (1 such photo); if it learnt from parts of such images, keep"
        in result.stderr
    )
    assert note in page().replace("&#x27;", "'").replace("&#39;", "'")
    assert note not in explain("tile.png", model="tile.py:network").stderr


# The page.


def page(folder="out"):
    return Path(folder, "report.html").read_text()


def test_the_page_holds_all_and_needs_nothing_else(work):
    result = explain("photo0.png", "photo1.png", *ARGUMENTS, "--no-pictures", "--classes", "a,b,c,altar<i>")
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in Path("out").iterdir()) == [
        "attributions",
        "predictions.csv",
        "report.html",
        "run.json",
    ]
    text = page()
    assert "<script" not in text
    assert "http" not in text
    assert text.count("<img") == 2 * (1 + 4)
    [facts, _] = json.loads(Path("out/run.json").read_text())["photos"]
    name = facts["target"]["name"].replace("<", "&lt;").replace(">", "&gt;")
    assert f"for {name}" in text
    assert f"Explained: {name} {100 * facts['target']['probability']:.1f} %" in text
    assert "Where slightly larger values, at the input brighter pixels, would raise" in text
    assert "Averaged over noisy copies" in text
    assert "pellucid explain photo0.png photo1.png" in text
    assert "looks untrained" in text


def test_a_title_and_what_was_clipped_are_on_the_page(work):
    result = explain("photo0.png", "--title", "Ward 7 & 8", "--clip", "1,99", "--alpha", "0.3", "--contours")
    assert result.exit_code == 0, result.output
    assert "<h1>Ward 7 &amp; 8</h1>" in page()
    assert "ach map is clipped at percentiles 1 and 99, then scaled to its own 99th percentile of the m" in page()
    assert "data:image/jpeg" in page().split("Explained:")[1]
    assert "alpha=2.0: give a number" in explain("photo0.png", "--alpha", "2").stderr


@pytest.mark.parametrize(("count", "side"), [(1, 1536), (10, 896), (40, 448), (41, 256)])
def test_the_fewer_pictures_a_page_has_the_larger_they_are(count, side):
    assert Pictures(None, Path(), {}, count).full_side == side


@pytest.mark.parametrize("overlay", [[], ["--overlay"]])
def test_a_large_map_is_whole_inside_the_page(work, overlay):
    Image.open("photo0.png").resize((900, 600)).save("tile.png")
    Path("plain.py").write_text(TINY.partition("def preprocess")[0])
    explain("tile.png", "--preprocess", "none", "--layers", "input,1.0", *overlay, model="plain.py:network")
    found = [b64decode(one) for one in re.findall(r'src="data:image/\w+;base64,([^"]+)"', page())]
    sizes = [Image.open(io.BytesIO(one)).size for one in found]
    assert sizes[:3] == [(900, 600), (448, 299), (900, 600)]  # the photo, the map at the input, and it whole
    assert sizes[3:] == ([(448, 299), (900, 600)] if overlay else [(225, 150)])


def test_many_photos_are_split_into_pages_that_name_each_other(work, monkeypatch):
    monkeypatch.setattr("pellucid.cli.explain_page.BUDGET", 12_000)
    for index in range(5):
        shutil.copy("photo0.png", f"more{index}.png")
    result = explain(*[f"more{index}.png" for index in range(5)], "--methods", "gradient,edges", "--no-pictures")
    assert result.exit_code == 0, result.output
    names = sorted(path.name for path in Path("out").glob("*.html"))
    assert names[0] == "report-002.html"
    assert names[-1] == "report.html"
    texts = [Path("out", name).read_text() for name in names]
    for name, text in zip(names, texts, strict=True):
        assert text.count(f'href="{name}"') == 0
        assert all(f'href="{other}"' in text for other in names if other != name)
    for index in range(5):
        assert sum(text.count(f"<h2>more{index}.png</h2>") for text in texts) == 1


def test_pictures_of_many_photos_are_decoded_as_they_are_reached(work):
    assert 'loading="lazy"' not in (explain("photo0.png", "--no-pictures") and page())
    for index in range(14):
        shutil.copy("photo0.png", f"more{index}.png")
    explain(*[f"more{index}.png" for index in range(14)], "--no-pictures")
    assert page().count('loading="lazy"') == page().count("<img") == 28


def test_predictions_are_a_table(work):
    for name in ("cat", "dog"):
        Path("photos", name).mkdir(parents=True)
        shutil.copy("photo0.png", f"photos/{name}/a, b.png")
    result = explain("photos", "--classes", "a,b,c,d", "--variant", "original,forward")
    assert result.exit_code == 0, result.output
    with Path("out/predictions.csv").open() as file:
        rows = list(csv.DictReader(file))
    photos = json.loads(Path("out/run.json").read_text())["photos"]
    assert [row["photo"] for row in rows] == ["cat/a, b.png", "dog/a, b.png"]
    assert [row["label"] for row in rows] == ["cat", "dog"]
    assert float(rows[0]["predicted_probability"]) == pytest.approx(
        photos[0]["predicted"]["probability"], rel=1e-5
    )
    changed = photos[0]["variants"]["forward"]["target"]["probability"]
    assert float(rows[0]["explained_probability_forward"]) == pytest.approx(changed, rel=1e-5)


def test_what_a_poor_stand_in_does_is_told_in_figures(work):
    assert "a poor stand-in" in verdict_on(46, 1.0, 10)
    assert "a poor stand-in" in verdict_on(0, 0.5, 10)
    assert "a fair stand-in" in verdict_on(10, 1.0, 10)
    assert "close to the original" in verdict_on(1, 0.99, 10)
    close, poor = (
        "up to 5 points and 95 % as the original",
        "more than 15 points or fewer than 80 % as the original",
    )
    assert verdict_on(10, 1.0, 10).endswith(f"(close is {close}; poor is {poor})")
    assert verdict_on(46, 1.0, 10).endswith(f"({poor})")
    assert verdict_on(0, 1.0, 10).endswith(f"({close})")
    for points, same in ((46, 1.0), (0, 0.5), (10, 1.0), (0, 1.0)):
        assert verdict_on(points, same, 9, "photo") == "too few for a verdict, which takes 10 photos"
    result = explain("photo0.png", "--variant", "backward,forward")
    assert "under forward the network is another: it moves" in result.stderr
    assert "of 1 photo: too few for a verdict, which takes 10 photos" in result.stderr
    assert "under backward the network" not in result.stderr


def test_a_label_is_the_class_of_its_folders_name(work):
    for name in ("cat", "dog"):
        Path("photos", name).mkdir(parents=True)
        shutil.copy("photo0.png", f"photos/{name}/a.png")
    result = explain("photos", "--target", "label", "--classes", "eel,dog,fox,cat")
    assert result.exit_code == 0, result.output
    photos = json.loads(Path("out/run.json").read_text())["photos"]
    assert [photo["target"]["class"] for photo in photos] == [3, 1]
    assert [photo["target"]["name"] for photo in photos] == ["cat", "dog"]
    result = explain("photos", "--target", "label", "--classes", "eel,dog,fox,cow")
    assert result.exit_code == 2
    assert "the images' class 'cat' is none of the model's 4 classes" in result.stderr
    assert explain("photos", "--classes", "eel,dog,fox,cow").exit_code == 0  # no label is asked for
    photos = json.loads(Path("out/run.json").read_text())["photos"]
    assert [photo["label"] for photo in photos] == [{"class": -1, "name": "cat"}, {"class": -1, "name": "dog"}]
    assert "labeled photo" not in page()  # its labels are no classes of the model


def test_how_many_labels_are_predicted_is_told(work):
    for name in ("cat", "dog"):
        Path("photos", name).mkdir(parents=True)
        shutil.copy("photo0.png", f"photos/{name}/a.png")
    assert explain("photos", "--classes", "eel,dog,fox,cat").exit_code == 0
    predicted = [photo["predicted"]["name"] for photo in json.loads(Path("out/run.json").read_text())["photos"]]
    right = sum(name == label for name, label in zip(predicted, ("cat", "dog"), strict=True))
    assert f"It predicts the label of {right} of 2 labeled photos." in page()
    assert page().count(", which is not the predicted class") == 2 - right


def test_a_difference_is_asked_for_in_words(work):
    assert explain("photo0.png", "--target", "dog - cat", "--classes", "eel,dog,fox,cat").exit_code == 0
    assert "what speaks for dog rather than for cat?" in page()


def test_a_figure_of_a_variant_says_what_the_variant_answers(work):
    assert explain("photo0.png", "--variant", "original,forward", "--pictures", "svg").exit_code == 0
    [photo] = json.loads(Path("out/run.json").read_text())["photos"]
    of = photo["variants"]["forward"]["target"]
    told = f"{of['name']} {100 * of['probability']:.1f} %"
    assert told != f"{photo['target']['name']} {100 * photo['target']['probability']:.1f} %"
    figures = {path.name: path.read_text() for path in Path("out").glob("*.svg")}
    assert [name for name, text in figures.items() if told in text] == [
        name for name in figures if "forward" in name or name.startswith("figure-layers")
    ]


def test_folders_that_are_named_one_by_one_are_labels_by_the_models_names(work):
    """As the note of --limit advises, of folders of one another's file names."""
    for name in ("benign", "lung_cancer", "other"):
        Path("photos", name).mkdir(parents=True)
        for number in range(2):
            shutil.copy(f"photo{number}.png", f"photos/{name}/{number}.png")
    folders = ["photos/benign", "photos/lung_cancer/"]
    limit = ["--limit", "1", "--target", "label"]
    told = " ".join(explain("photos", "--limit", 1).stderr.split())
    assert "name each class's folder, and the model's classes by --classes, to take so many of each" in told
    result = explain(*folders, *limit, "--classes", "eel,Lung cancer,fox,benign")
    assert result.exit_code == 0, result.output
    assert "perhaps of few of its classes" not in result.stderr
    photos = json.loads(Path("out/run.json").read_text())["photos"]
    assert [photo["name"] for photo in photos] == ["benign/0.png", "lung_cancer/0.png"]
    assert [photo["key"] for photo in photos] == ["benign-0", "lung_cancer-0"]
    labels = [(photo["label"]["class"], photo["label"]["name"]) for photo in photos]
    assert labels == [(3, "benign"), (1, "lung_cancer")]
    assert [photo["target"]["class"] for photo in photos] == [3, 1]
    for given, known in (
        ([], "the model's classes have no names: name them by --classes"),
        (["--classes", "eel,dog,fox,cow"], "it is none of the model's: eel, dog, fox, cow"),
    ):
        result = explain(*folders, *limit, *given)
        assert result.exit_code == 2
        told = " ".join(result.stderr.split())
        assert "none of 2 photos can be explained; the first: benign/0.png has no label to explain" in told
        assert f"name the folder above, {work / 'photos'}" in told
        assert known in told


def test_a_table_in_a_folder_called_as_a_class_keeps_its_labels(work):
    Path("cat").mkdir()
    cells = [{"bytes": Path(f"photo{number}.png").read_bytes()} for number in range(2)]
    pyarrow.parquet.write_table(pyarrow.table({"image": cells, "label": [2, 1]}), "cat/a.parquet")
    assert explain("cat", "--target", "label", "--classes", "eel,dog,fox,cat").exit_code == 0
    photos = json.loads(Path("out/run.json").read_text())["photos"]
    assert [photo["target"]["name"] for photo in photos] == ["fox", "dog"]


def test_a_table_without_rows_in_a_folder_called_as_a_class_is_no_photo(work):
    Path("cat").mkdir()
    pyarrow.parquet.write_table(pyarrow.table({"image": pyarrow.array([], pyarrow.binary())}), "cat/a.parquet")
    result = explain("cat", "--classes", "eel,dog,fox,cat")
    assert result.exit_code == 2
    assert "no photos were given" in result.stderr


def test_a_class_is_asked_for_by_the_name_of_its_folder(work):
    for name in ("ant", "bee", "cow", "dog"):
        Path("photos", name).mkdir(parents=True)
        shutil.copy("photo0.png", f"photos/{name}/a.png")
    for target, number in [("cow", 2), ("cow - bee", -1)]:
        result = explain("photos", "--target", target)
        assert result.exit_code == 0, result.output
        assert "the model's 4 classes are called as the photos' folders" in result.stderr
        photos = json.loads(Path("out/run.json").read_text())["photos"]
        assert {(photo["target"]["class"], photo["target"]["name"]) for photo in photos} == {(number, target)}
        assert {photo["predicted"]["name"] for photo in photos} <= {"ant", "bee", "cow", "dog"}
    by_number = json.loads(Path("out/run.json").read_text())["photos"][0]["target"]["value"]
    assert explain("photos", "--target", "2 - 1").exit_code == 0
    assert json.loads(Path("out/run.json").read_text())["photos"][0]["target"]["value"] == by_number
    assert "did you mean cow" in explain("photos", "--target", "cwo").stderr
    shutil.rmtree("photos/dog")
    assert "the model's classes have no names" in explain("photos", "--target", "cow").stderr


def test_folders_name_the_classes_of_a_model_that_has_no_names(work):
    for name in ("ant", "bee", "cow", "dog"):
        Path("photos", name).mkdir(parents=True)
        shutil.copy("photo0.png", f"photos/{name}/a.png")
    result = explain("photos", "--target", "label")
    assert result.exit_code == 0, result.output
    assert "the model's 4 classes are called as the photos' folders" in result.stderr
    assert [row["target"]["name"] for row in json.loads(Path("out/run.json").read_text())["photos"]] == [
        "ant",
        "bee",
        "cow",
        "dog",
    ]
    shutil.rmtree("photos/ant")  # three folders for four classes name none
    assert "class " in explain("photos").stdout


def test_a_tables_labels_name_the_classes_of_a_model_that_has_no_names(work):
    """A table has no folders, and none is spoken of."""
    table_of(Path("table.parquet"), ["photo0.png", "photo1.png"], ["ant", "bee", "cow", "dog"])
    result = explain("table.parquet", "--limit", 1)
    assert result.exit_code == 0, result.output
    assert "the model's 4 classes are called as the photos' labels, in their order" in result.stderr
    assert "perhaps of few of its classes, are explained; a higher --limit takes more" in result.stderr
    assert "folder" not in result.stderr


# Going on.


def interrupted(monkeypatch, after):
    """Let Ctrl-C come while the group after so many is explained."""
    calls = []
    whole = ExplainRun.explain_group

    def explain_group(self, photos, show):
        calls.append(len(photos))
        if len(calls) > after:
            raise KeyboardInterrupt
        whole(self, photos, show)

    monkeypatch.setattr(ExplainRun, "explain_group", explain_group)
    return calls


def digest_of(photos):
    """The digest of a request of these photos, as the command makes it."""
    known = []

    class Stopped(Exception):
        pass

    def digest(request):
        known.append(whole(request))
        raise Stopped

    whole = Request.digest
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Request, "digest", digest)
        explain(photos)
    return known[0]


@pytest.mark.parametrize("after", [0, 1, 2])
def test_an_interrupted_run_goes_on_and_ends_as_if_it_had_not_been(work, monkeypatch, after):
    monkeypatch.setattr("pellucid.cli.run._TOGETHER", 2)
    for index in range(5):
        pixels = np.random.default_rng(index).integers(0, 255, (32, 32, 3)).astype(np.uint8)
        Image.fromarray(pixels).save(f"more{index}.png")
    arguments = [*(f"more{index}.png" for index in range(5)), *ARGUMENTS]
    assert explain(*arguments).exit_code == 0
    expected, whole, html = written(), json.loads(Path("out/run.json").read_text()), page()
    pictures = {path: path.read_bytes() for path in Path("out").rglob("*.png")}
    shutil.rmtree("out")

    with monkeypatch.context() as patch:
        interrupted(patch, after)
        result = explain(*arguments)
    assert result.exit_code == 130
    assert f"stopped at {2 * after} of 5; the same command goes on" in result.stderr
    assert not Path("out/run.json").exists()
    assert Path("out").exists() == (after > 0)

    with monkeypatch.context() as patch:
        calls = interrupted(patch, 9)
        result = explain(*arguments)
    assert result.exit_code == 0, result.output
    assert calls == [2, 2, 1][after:]
    assert (f"{2 * after} of them before" in result.stdout) == (after > 0)
    assert (f"going on at {2 * after} of 5 photos" in result.stderr) == (after > 0)
    again = written()
    assert again.keys() == expected.keys()
    assert all(torch.equal(again[key], expected[key]) for key in expected)
    assert json.loads(Path("out/run.json").read_text()) == whole
    assert page() == html
    assert {path: path.read_bytes() for path in Path("out").rglob("*.png")} == pictures
    assert not [path for path in work.rglob("*") if path.name.startswith(".")]


def test_an_interruption_loses_the_work_on_six_photos_at_most(work, monkeypatch):
    for index in range(8):
        shutil.copy("photo0.png", f"more{index}.png")
    interrupted(monkeypatch, 1)
    result = explain(*(f"more{index}.png" for index in range(8)), "--no-pictures")
    assert "stopped at 6 of 8; the same command goes on" in result.stderr


def test_passes_within_one_photo_are_shown(work, monkeypatch):
    """One photo takes its methods' passes, each of which moves what is shown, while none of 1 is done."""
    told, whole = [], ExplainRun.explain_all

    def explain_all(self, show):
        return whole(self, lambda what, done, total, kept="": told.append((what, done, total, kept)))

    monkeypatch.setattr(ExplainRun, "explain_all", explain_all)
    methods = "integrated(gradient, steps=5),random"
    assert explain("photo0.png", "--methods", methods, "--max-batch", 1, "--layers", "input").exit_code == 0
    moved = [(what, done) for what, done, _, kept in told if kept == "0 of 1"]
    passes = [int(re.fullmatch(r"explaining photos \((\d+) forward passes\)", what)[1]) for what, _ in moved]
    assert passes == sorted(passes)
    assert len(set(passes)) >= 5
    assert [done for _, done in moved] == sorted(done for _, done in moved)
    assert {done for _, done in moved} == {0, 1 / 3, 2 / 3}
    assert told[-1][:3] == ("explaining photos", 1, 1)


def test_an_interruption_tells_what_is_kept(work, monkeypatch):
    """It comes while the second method explains five photos, of which none is written yet."""
    calls, whole = [], ExplainRun.attribute

    def attribute(self, *given):
        calls.append(given)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return whole(self, *given)

    monkeypatch.setattr(ExplainRun, "attribute", attribute)
    photos = [f"photo{number}.png" for number in range(5)]
    for photo in photos[3:]:
        shutil.copy("photo0.png", photo)
    result = explain(*photos, "--methods", "gradient,random", "--layers", "input")
    assert result.exit_code == 130
    assert "stopped at 0 of 5; the same command goes on" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "change", "differs"),
    [
        (["--seed", 1], lambda: None, "seed is 0 there and 1 here"),
        (["--methods", "gradcam"], lambda: None, "methods: gradient there alone; gradcam here alone"),
        (
            [],
            lambda: Path("tiny.py").write_text(TINY.replace("manual_seed(0)", "manual_seed(12)")),
            "files.tiny.py: not the same",
        ),
        ([], lambda: shutil.copy("photo2.png", "photo0.png"), "files.photo0.png: not the same"),
    ],
)
def test_a_stopped_run_of_another_request_is_told_and_kept(work, monkeypatch, arguments, change, differs):
    monkeypatch.setattr("pellucid.cli.run._TOGETHER", 1)
    photos = ["photo0.png", "photo1.png", "photo2.png"]
    with monkeypatch.context() as patch:
        interrupted(patch, 2)
        assert explain(*photos).exit_code == 130
    change()
    before = everything()
    result = explain(*photos, *arguments)
    [draft] = Path("out").glob(".pellucid-????????????????")
    assert result.exit_code == 2
    assert result.stderr == (
        f"error: out holds a stopped run of another request: 2 photos by gradient; {differs}; give the command "
        f"that began it, choose another folder, or delete {draft}\n"
    )
    assert everything() == before
    assert run("demo", "-o", "out").exit_code == 2
    # The run of a folder beside, or around, is none of its business.
    assert run("explain", "photo0.png", "--model", "tiny.py:network", "-o", "out/inside").exit_code == 0
    assert before.items() <= everything().items()
    shutil.rmtree(draft)
    shutil.rmtree("out/inside")
    assert explain(*photos, *arguments).exit_code == 0
    assert not [path for path in Path("out").iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("cell", [str, lambda path: {"bytes": None, "path": path}])
def test_a_file_that_a_table_names_is_noticed_as_those_of_a_folder_are(work, cell):
    names = [f"photo{index}.png" for index in range(3)]
    pyarrow.parquet.write_table(pyarrow.table({"image": [cell(name) for name in names]}), "table.parquet")
    before = digest_of("table.parquet")
    assert digest_of("table.parquet") == before
    state = os.stat("photo1.png")
    shutil.copy("photo2.png", "photo1.png")
    os.utime("photo1.png", ns=(state.st_atime_ns, state.st_mtime_ns + 10**9))
    assert digest_of("table.parquet") != before


def test_photos_beside_the_models_file_go_on(work, monkeypatch):
    monkeypatch.setattr("pellucid.cli.run._TOGETHER", 1)
    with monkeypatch.context() as patch:
        interrupted(patch, 1)
        assert explain(work).exit_code == 130
    Path("__pycache__").mkdir(exist_ok=True)
    Path("__pycache__/other.pyc").write_bytes(b"written as a file was run")
    result = explain(work)
    assert result.exit_code == 0, result.output
    assert "1 of them before" in result.stdout


def test_paths_of_a_table_that_lead_out_are_not_looked_at(work):
    paths = [str(work / "photo0.png"), "../photo0.png", "nul\0.png", None, "missing.png", "photo1.png"]
    pyarrow.parquet.write_table(pyarrow.table({"image": paths}), "table.parquet")
    assert files_named(Path("table.parquet")) == [Path("photo1.png")]
    pyarrow.parquet.write_table(pyarrow.table({"image": [b"photo1.png"]}), "table.parquet")
    assert files_named(Path("table.parquet")) == []
    Path("table.parquet").write_text("no table")
    assert files_named(Path("table.parquet")) == []


@pytest.mark.filterwarnings("always::pellucid.errors.InputWarning")
def test_a_model_that_changed_behind_the_same_files_explains_all_photos_anew(work, monkeypatch):
    """As where a module that its file imports was edited, or the names of classes beside its weights."""
    monkeypatch.setattr("pellucid.cli.run._TOGETHER", 1)
    photos = ["photo0.png", "photo1.png", "photo2.png"]
    with monkeypatch.context() as patch:
        interrupted(patch, 1)
        assert explain(*photos).exit_code == 130
    from_file = run_module.load_network

    def renamed(*arguments, **settings):
        return replace(from_file(*arguments, **settings), classes=("one", "two", "three", "four"))

    with monkeypatch.context() as patch:
        patch.setattr(run_module, "load_network", renamed)
        calls = interrupted(patch, 9)
        result = explain(*photos)
    assert "the model is no longer what it was when this run began; all photos are explained anew" in result.stderr
    assert result.exit_code == 0, result.output
    assert calls == [1, 1, 1]
    assert "before" not in result.stdout
    found = {facts["target"]["name"] for facts in json.loads(Path("out/run.json").read_text())["photos"]}
    assert found <= {"one", "two", "three", "four"}


def test_an_interruption_leaves_the_earlier_run_until_the_new_one_is_whole(work, monkeypatch):
    monkeypatch.setattr("pellucid.cli.run._TOGETHER", 1)
    assert explain("photo1.png", "photo2.png").exit_code == 0
    whole = everything()
    min(Path("out/maps").rglob("*.png")).unlink()
    before = Path("out/run.json").read_bytes()
    with monkeypatch.context() as patch:
        interrupted(patch, 1)
        assert explain_again("photo1.png", "photo2.png").exit_code == 130
    assert Path("out/run.json").read_bytes() == before
    assert "1 of them before" in explain_again("photo1.png", "photo2.png").stdout
    assert everything() == whole


def test_a_file_that_comes_at_the_end_is_kept_and_the_same_command_ends_the_run(work, monkeypatch):
    drawn = ExplainPage.write

    def write(self):
        drawn(self)
        Path("out/report.html").write_text("mine")

    with monkeypatch.context() as patch:
        patch.setattr(ExplainPage, "write", write)
        refused = explain("photo0.png")
    assert refused.exit_code == 2
    assert "out holds report.html, which this command did not write" in refused.stderr
    assert Path("out/report.html").read_text() == "mine"
    Path("out/report.html").rename("mine.html")
    result = explain("photo0.png")
    assert result.exit_code == 0
    assert "1 of them before" in result.stdout
    assert run("doctor", "out").exit_code == 0


# What is noticed.


@pytest.mark.parametrize("norm", ["nn.BatchNorm2d(4)", "nn.GroupNorm(2, 4)", "nn.Identity()"])
def test_a_network_that_was_never_trained_is_noticed_and_a_trained_one_is_not(norm):
    made = {}
    exec(TINY.replace("padding=1), nn.ReLU()),", f"padding=1), {norm}, nn.ReLU()),", 1), made)
    network = made["network"]()
    assert is_untrained(network)
    steps = torch.optim.SGD(network.parameters(), lr=0.5)
    for step in range(8):
        images = torch.randn(8, 3, 16, 16, generator=torch.Generator().manual_seed(step))
        torch.nn.functional.cross_entropy(network(images), torch.arange(8) % 4).backward()
        steps.step()
    assert not is_untrained(network)
    assert not is_untrained(load_model("shapes-resnet").model)


def test_images_that_are_not_normalized_are_noticed(work):
    Path("bytes.py").write_text(TINY.replace("permute(2, 0, 1) / 255", "permute(2, 0, 1).float()"))
    result = explain("photo0.png", model="bytes.py:network")
    assert re.search(r"the model sees values up to \d{3}", result.stderr)
    assert "not normalized" in page()
    assert "not normalized" not in explain("photo0.png").stderr


@pytest.mark.slow
def test_a_large_tile_that_is_shrunk_is_told(work):
    Path("plain.py").write_text(TINY.partition("def preprocess")[0])
    Image.open("photo0.png").resize((1100, 1030)).save("tile.png")
    result = explain("tile.png", "photo0.png", model="plain.py:network")
    assert "tile.png, 1100 x 1030, is resized to 256, cropped to 224 and normalized" in result.stderr
    assert "(1 such photo)" in result.stderr
    Path("own.py").write_text(
        "from pellucid.models.preprocess import Preprocess\nwhole = Preprocess(None, None)\nsize = 3\n"
        "def mean(image):\n    import torch\n    return torch.full((3, 8, 8), 0.5)\n"
    )
    own = (1030, 1100)
    for chosen, size in (("none", own), ("whole", own), ("own.py:whole", own), ("own.py:mean", (8, 8))):
        result = explain("tile.png", "--preprocess", chosen, model="plain.py:network")
        assert result.exit_code == 0, result.output
        assert "is resized" not in result.stderr
        # The whole image is still normalized as nobody said.
        assert ("no preprocess: photos are normalized as ImageNet's" in result.stderr) == (chosen == "whole")
        assert written()["tile/gradient/input/original"].shape[1:] == size
        known = {}
        exec(json.loads(Path("out/run.json").read_text())["python"], known)
        assert known["images"].shape[2:] == size
    for chosen, message in (
        ("all", "give whole, none, or"),
        ("own.py:hole", "did you mean whole"),
        ("own.py:size", "is int; give"),
        ("no.py:f", "there is no file of a preprocess no.py"),
    ):
        result = explain("tile.png", "--preprocess", chosen, model="plain.py:network")
        assert result.exit_code == 2
        assert message in result.stderr


def test_files_have_the_modes_that_the_umask_leaves(work):
    before = os.umask(0o022)
    try:
        assert explain("photo0.png", "--pictures", "png,svg").exit_code == 0
    finally:
        os.umask(before)
    modes = {path.name: oct(path.stat().st_mode & 0o777) for path in Path("out").rglob("*") if path.is_file()}
    assert set(modes.values()) == {"0o644"}, modes


def test_the_folder_of_another_command_is_named_and_kept(work):
    spec = [
        "--model",
        "shapes-resnet",
        "--images",
        "shapes:2",
        "--methods",
        "random",
        "--metrics",
        "total_variation",
    ]
    assert run("benchmark", *spec, "-o", "graded").exit_code == 0
    before = sorted(path.name for path in Path("graded").iterdir())
    result = run("explain", "photo0.png", "--model", "tiny.py:network", "-o", "graded")
    assert result.exit_code == 2
    assert "it is of another command, 'pellucid benchmark --model shapes-resnet" in result.stderr
    assert sorted(path.name for path in Path("graded").iterdir()) == before


@pytest.mark.parametrize("name", ["grad-cam", "Grad-CAM", "GradCAM", "smoothed(grad-cam)", "GRAD_CAM"])
def test_other_spellings_of_a_name_find_it(work, name):
    assert "did you mean gradcam" in explain("photo0.png", "--methods", name).stderr


def test_formats_of_pictures_are_checked(work):
    assert "--pictures gif: give png, svg or both" in explain("photo0.png", "--pictures", "gif").stderr


# What a newcomer stumbled over.


def test_a_target_that_is_not_predicted_stands_beside_what_is(work):
    result = explain("photo0.png", "--classes", "ant,bee,cow,dog")
    assert "predicted class" not in result.stdout
    [facts] = json.loads(Path("out/run.json").read_text())["photos"]
    other = (facts["predicted"]["class"] + 1) % 4
    result = explain("photo0.png", "--classes", "ant,bee,cow,dog", "--target", other)
    head, row = result.stdout.splitlines()[:2]
    assert head.split() == ["photo", "explained", "class", "probability", "predicted", "class", "probability"]
    assert re.search(rf"{['ant', 'bee', 'cow', 'dog'][other]} .* % .*{facts['predicted']['name']} .* %", row)


def test_names_keep_their_letters_where_a_sentence_begins(work):
    explain("photo0.png")
    assert "tiny.py:network looks untrained" in page()
    assert "Tiny.py" not in page()
    assert "Classes are told by number, since nothing says their names" in page()


def test_what_becomes_of_channels_is_told_once(work):
    Path("grey.py").write_text(TINY.partition("def preprocess")[0].replace("Conv2d(3,", "Conv2d(1,"))
    result = explain("photo0.png", "photo1.png", model="grey.py:network")
    assert "photo0.png has colors, and the network sees it in gray (2 such photos)" in result.stderr
    Path("plain.py").write_text(TINY.partition("def preprocess")[0])
    Image.open("photo0.png").convert("L").save("grey.png")
    Image.open("photo0.png").convert("RGBA").save("alpha.png")
    result = explain("grey.png", "alpha.png", "photo0.png", model="plain.py:network")
    assert "grey.png is gray, and the network sees it as RGB, with three equal channels (1 such" in result.stderr
    assert "alpha.png has an alpha channel, which the network does not see (1 such photo)" in result.stderr
    assert result.stderr.count("such photo") == 2


def test_no_evidence_is_seen_in_the_sign_of_guided_backprop(work):
    explain("photo0.png", "--methods", "smoothed(guided_backprop, samples=2)")
    assert "where it is red or blue says nothing for or against the class. Averaged over" in page()


def test_a_map_of_one_color_is_told_on_the_page(work):
    result = explain("photo0.png", "--layers", "0,1.0")
    told = "gradient has one value at all places, so its map is of one color, at"
    assert told not in result.stderr  # a rectifier comes after
    result = explain("photo0.png", "--layers", "1")
    assert (
        f"{told} layer 1; there are no places any more, or only an average over them comes after" in result.stderr
    )
    assert told in page()
    assert "<small>one value</small>" in page()
    methods = ["--methods", "gradient,smoothed(gradient, samples=2)"]
    result = explain("photo0.png", "photo1.png", *methods, "--layers", "1", "--no-pictures")
    assert "each of gradient and smoothed(gradient, samples=2) has one value" in result.stderr
    assert "1 for all 2 photos; there are no places any more, or only an average" in result.stderr


def test_channels_that_cancel_are_told_where_maps_are_their_signed_mean(work):
    Path("normed.py").write_text(
        "import torch\nfrom torch import nn\n\n"
        "class Net(nn.Sequential):\n    def forward(self, x):\n        x = self[0](x).flatten(2).mT\n"
        "        return self[2](self[1](x).tanh().mean(1))\n\n"
        "def network():\n    torch.manual_seed(0)\n"
        "    return Net(nn.Conv2d(3, 6, 4, 4), nn.LayerNorm(6), nn.Linear(6, 3))\n"
    )
    told = "gradient has channels that cancel, so their signed mean shows nothing, at layer 0; below"
    assert told in explain("photo0.png", "--layers", "0", model="normed.py:network").stderr
    assert told in page()
    assert "<small>zero everywhere</small>" in page()
    assert "Its color is the mean of the channels there, in which those of opposite signs may cancel." in page()
    assert (
        told
        not in explain("photo0.png", "--layers", "0", "--channels", "abs_sum", model="normed.py:network").stderr
    )


def test_how_much_is_written_is_told_before_and_much_is_left_out(work, monkeypatch):
    monkeypatch.setattr("pellucid.cli.run._MANY", (2, 4))
    result = explain("photo0.png", "photo1.png")
    assert "pictures" not in result.stderr
    result = explain("photo0.png", "photo1.png", "photo2.png")
    assert "writing 3 pictures of maps; --no-pictures writes the page only" in result.stderr
    assert len(list(Path("out/maps").rglob("*.png"))) == 3
    result = explain("photo0.png", "photo1.png", "photo2.png", "--layers", "input,0")
    assert "6 maps are on the page only; --pictures png writes them as files" in result.stderr
    assert not Path("out/maps").exists()
    assert not list(Path("out").glob("*.png"))
    explain("photo0.png", "photo1.png", "photo2.png", "--layers", "input,0", "--pictures", "png")
    assert len(list(Path("out/maps").rglob("*.png"))) == 6
    monkeypatch.setattr("pellucid.cli.run._LARGE", (1e4, 2e4))
    size = 4 * 3 * 32 * 32  # of one map's attributions, 12 kB
    assert 1e4 < size < 2e4
    result = explain("photo0.png")
    assert "writing 0.0 GB of raw attributions; --raw no leaves them out" in result.stderr
    assert Path("out/attributions").exists()
    result = explain("photo0.png", "photo1.png")
    assert "not writing 0.0 GB of raw attributions; --raw yes writes them" in result.stderr
    assert not Path("out/attributions").exists()
    explain("photo0.png", "photo1.png", "--raw=yes")
    assert len(list(Path("out/attributions").iterdir())) == 2


def test_a_photo_s_own_file_is_hashed_and_no_path_of_a_table(tmp_path):
    """A row may have any path beside its bytes; its file is not opened for run.json either."""
    photo = tmp_path / "photo.png"
    Image.new("RGB", (6, 4), "red").save(photo)
    folder = tmp_path / "tables"
    folder.mkdir()
    cells = [{"bytes": photo.read_bytes(), "path": path} for path in ("../../photo.png", str(photo), "a.txt")]
    pyarrow.parquet.write_table(pyarrow.table({"image": cells}), folder / "t.parquet")
    (folder / "t").mkdir()
    (folder / "t" / "a.txt").write_text("secret")
    assert [_file_hash(str(folder), sample) for sample in open_images(folder)] == [None] * 3
    digest = sha256(photo.read_bytes()).hexdigest()
    with pytest.warns(InputWarning, match="tables and tars beside the images are left out"):
        assert [_file_hash(str(place), open_images(place)[0]) for place in (photo, tmp_path)] == [digest] * 2


def test_a_draft_of_notes_without_counts_counts_for_nothing(tmp_path):
    """As an earlier version left it: of how many photos a note is cannot be known."""
    (tmp_path / UNFINISHED).mkdir()
    left = Explained(model="net", notes=[Note("FlatMapWarning", "gradient", "layer2", "", "", "")], concerned=[2])
    content = left.model_dump(by_alias=True)
    (tmp_path / UNFINISHED / HOW_FAR).write_bytes(sealed(content))
    assert Explained.read(tmp_path, "net") == left
    del content["concerned"]
    (tmp_path / UNFINISHED / HOW_FAR).write_bytes(sealed(content))
    assert Explained.read(tmp_path, "net") == Explained(model="net")


def test_a_lattice_of_the_original_is_told_with_what_levels_it(work):
    """Else whoever never heard of it takes dots for what the network looks at."""
    args = ("shapes:2", "--methods", "gradient,gradcam", "--layers")
    result = explain(*args, "layer1", model="shapes-resnet")
    assert result.exit_code == 0, result.output
    told = (
        "gradient shows a lattice at layer1 for all 2 photos; strided convolutions print it: --variant original,"
    )
    assert f"{told}backward levels it (" in result.stderr
    assert told[1:] in page()
    result = explain(*args, "input", model="shapes-resnet")
    assert "print it: --variant original,backward_with_first levels it" in result.stderr
    result = explain(*args, "layer1", "--variant", "original,backward", model="shapes-resnet")
    assert "lattice" not in result.stderr  # who asks for it knows


def test_many_photos_are_listed_with_what_went_wrong_first(work, monkeypatch):
    """Whoever looks for the network's mistakes need not look through all photos."""
    monkeypatch.setattr("pellucid.cli.explain_page.BUDGET", 12_000)
    for name in ("cat", "dog"):
        Path("photos", name).mkdir(parents=True)
        for number in range(3):
            shutil.copy(f"photo{number}.png", f"photos/{name}/{number}.png")
    result = explain("photos", "--classes", "eel,dog,fox,cat", "--methods", "gradient,edges", "--no-pictures")
    assert result.exit_code == 0, result.output
    photos = {one["name"]: one for one in json.loads(Path("out/run.json").read_text())["photos"]}
    links = re.findall(r'<a href="([^"#]*)#([^"]+)">(.*?)</a>', page())
    listed = [photos[name.replace("<wbr>", "")] for _, _, name in links]
    assert len(listed) == 6
    order = [
        (one["predicted"]["class"] == one["label"]["class"], one["predicted"]["probability"]) for one in listed
    ]
    assert order == sorted(order)
    assert {right for right, _ in order} == {True, False}
    assert {file for file, _, _ in links} > {""}  # the others are on other pages
    for file, anchor, name in links:
        text = Path("out", file or "report.html").read_text()
        assert text.split(f'id="{anchor}"')[1].split("</h2>")[0].endswith(f"<h2>{name.replace('<wbr>', '')}")
    explain("photos/cat", "--classes", "eel,dog,fox,cat", "--no-pictures")
    assert "<h2>Photos</h2>" not in page()


def test_a_users_function_without_negative_values_is_not_said_to_speak_against(work):
    Path("own.py").write_text(
        "def strength(model, images, targets):\n    return images.detach().abs().sum(1)\n\n\n"
        "def signed(model, images, targets):\n    return images.detach().sum(1) - images.detach().mean()\n"
    )
    explain("photo0.png", "--methods", "own.py:strength", "--pictures", "svg")
    [figure] = Path("out").glob("figure-*.svg")
    for text in (figure.read_text(), page().partition("What the maps show")[2]):
        assert "o value of own.py:strength is negative" in text
        assert "against class" not in text
    explain("photo0.png", "--methods", "own.py:strength,own.py:signed", "--pictures", "svg")
    for text in (next(Path("out").glob("figure-*.svg")).read_text(), page()):
        assert "o value of own.py:strength is negative" in text
        assert "against class" in text
    explain("photo0.png", "--methods", "gradient(absolute=True)", "--pictures", "svg")
    [figure] = Path("out").glob("figure-*.svg")
    for text in (figure.read_text(), page()):
        assert "strongest" in text
        assert "(red)" not in text
        assert "against class" not in text


@pytest.mark.parametrize(
    ("text", "said", "below"),
    [
        ("gradient", "raise (red) or lower (blue)", True),
        ("gradient(absolute=True)", "not whether they would raise or lower it", False),
        ("input_x_gradient(absolute=True)", "not which of the two", False),
        ("smoothgrad(moment=squared)", "squares have no sign", False),
        ("smoothed(gradient(absolute=True))", "Averaged over noisy copies of the image", False),
        ("smoothed(integrated_gradients, moment=variance)", "variances have no sign", False),
        ("smoothed(gradient, space=layer)", "noisy copies of the layer's values", True),
        ("integrated_gradients(baseline=blur)", "from a blurred copy of the image to this one", True),
        ("integrated(gradient(absolute=True))", "Summed along the way from an empty image", True),
        ("deeplift(baseline=0.5)", "compared with an image that is 0.5 everywhere", True),
        ("deeplift", "compared with an empty image (zeros", True),
    ],
)
def test_what_a_method_shows_is_said_with_its_settings(text, said, below):
    assert said in meaning(text)
    assert ("(red)" in meaning(text)) == (text in ("gradient", "smoothed(gradient, space=layer)"))
    assert "{" not in meaning(text)
    assert may_be_negative(text) == below


def test_the_list_of_photos_says_what_order_is_whose(work):
    photos = [f"photo{number}.png" for number in range(5)]
    for name in photos[2:]:
        shutil.copy("photo0.png", name)
    explain(*photos, "--methods", "gradient", "--layers", "input")
    text = page()
    assert "Listed in this order: " in text
    assert "Below, they follow as they were given." in text
    places = [text.index(f"{name}</h2>") for name in photos]
    assert places == sorted(places)
