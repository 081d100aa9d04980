"""The commands ``surrogate train`` and ``surrogate evaluate``."""

import io
import json
import shutil
from dataclasses import replace
from hashlib import sha256
from pathlib import Path

import numpy as np
import pandas as pd
import pyarrow.parquet
import pytest
import torch
import typer
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import pellucid as pl
from pellucid import catalog
from pellucid.cli import app as whole
from pellucid.cli.program import Commands
from pellucid.cli.surrogate import surrogate as commands
from pellucid.data.sources import open_images
from pellucid.errors import InvalidParameter, InvalidWeights, UnknownName
from pellucid.experiments.record import verdict_on
from pellucid.experiments.store import Results
from pellucid.folders import content
from pellucid.metrics.scoring import Scorer
from pellucid.models.zoo import BUNDLED
from pellucid.training.from_source import learned_from
from pellucid.training.surrogates import SurrogateLearner, train_surrogate
from pellucid.variants.surrogate import load_surrogate

app = typer.Typer(cls=Commands)
app.add_typer(commands, name="surrogate")
NETWORK = ("--model", "shapes-resnet")


def run(*arguments):
    return CliRunner().invoke(app, ["surrogate", *map(str, arguments)], env={"COLUMNS": "80"})


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    path = tmp_path_factory.mktemp("surrogate") / "s.safetensors"
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as the tests themselves run, since sums depend on it
    result = run(
        "train", *NETWORK, "--images", "shapes:24", "-o", path, "--epochs", 2, "--batch-size", 8, "--lr", 3e-3
    )
    torch.set_num_threads(threads)
    assert result.exit_code == 0, result.output
    return path, result.stdout


def test_a_training_that_was_stopped_goes_on_from_beside_the_output(tmp_path, monkeypatch):
    arguments = ("train", *NETWORK, "--images", "shapes:8", "--epochs", 2, "--batch-size", 4)
    output, steps = tmp_path / "s.safetensors", []
    whole_training = SurrogateLearner.step

    def stopped(training, batch):
        if len(steps) == 3:
            raise InvalidParameter("stopped")
        steps.append(None)
        return whole_training(training, batch)

    with monkeypatch.context() as patched:
        patched.setattr(SurrogateLearner, "step", stopped)
        assert run(*arguments, "-o", output).exit_code == 2
    assert [file.name for file in tmp_path.iterdir()] == ["s.checkpoint"]
    monkeypatch.setattr(
        SurrogateLearner, "step", lambda training, batch: steps.append(0) or whole_training(training, batch)
    )
    steps.clear()
    result = run(*arguments, "-o", output)
    assert result.exit_code == 0, result.output
    assert len(steps) == 2
    assert [file.name for file in tmp_path.iterdir()] == ["s.safetensors"]


def test_training_writes_what_the_function_trains_and_nothing_else(trained):
    path, text = trained
    assert [file.name for file in path.parent.iterdir()] == ["s.safetensors"]
    model, preprocess = pl.load_model("shapes-resnet")
    expected = train_surrogate(model, open_images("shapes:24"), 2, 3e-3, batch_size=8, preprocess=preprocess)
    found = load_surrogate(path)
    for ours, theirs in zip(found.paths[1:], expected.paths[1:], strict=True):
        assert all(torch.equal(ours.tensors[name], theirs.tensors[name]) for name in ours.tensors)
    assert f"loss {sum(expected.facts['losses'][1]):.4f} after 2 epochs" in text
    assert (found.facts["model"], found.facts["data"]) == ("shapes-resnet", ["shapes:24"])
    assert found.facts["weights"] == "shapes_resnet.safetensors"
    assert len(found.facts["sha256"]) == 64


def test_evaluation_compares_with_the_original(trained, tmp_path):
    path, _ = trained
    output = tmp_path / "numbers.json"
    result = run("evaluate", path, *NETWORK, "--images", "shapes:10", "--max-batch", 4, "-o", output)
    assert result.exit_code == 0, result.output
    numbers = json.loads(output.read_text())

    model, preprocess = pl.load_model("shapes-resnet")
    source = open_images("shapes:10")
    x = torch.stack([preprocess(sample.image) for sample in source])
    labels = torch.tensor([sample.label for sample in source])
    before, after = Scorer(model).scores(x), Scorer(model, load_surrogate(path)).scores(x)
    assert numbers["images"] == 10
    assert numbers["top1"]["original"] == (before.argmax(1) == labels).double().mean()
    assert numbers["top1"]["surrogate"] == (after.argmax(1) == labels).double().mean()
    difference = 100 * (before - after).abs()
    at_target = difference.gather(1, labels[:, None])[:, 0]
    for name, values in (("over all classes", difference.sum(1)), ("at the target", at_target)):
        found = numbers["prediction_difference"][f"difference {name}"]
        assert found["mean"] == pytest.approx(float(values.mean()), rel=1e-5)
        assert found["std"] == pytest.approx(float(values.std(correction=0)), rel=1e-5)
    for layer, values in numbers["total_variation"].items():
        if layer == "layer3.1":  # its gradient is one number per channel
            assert values == {"original": None, "surrogate": None, "reduction": None}
            assert numbers["checkerboard"][layer] == {"original": None, "surrogate": None}
            continue
        for which, variant in (("original", "original"), ("surrogate", load_surrogate(path))):
            maps = pl.method("gradient")(model, x, labels, layer, variant=variant)[layer]
            assert values[which] == pytest.approx(float(pl.total_variation(maps).mean()), rel=1e-4)
            share = float(pl.checkerboard(maps.abs().sum(1)).mean())
            assert numbers["checkerboard"][layer][which] == pytest.approx(share, rel=1e-4)
            assert f"{share:.3f}" in result.stdout
        assert values["reduction"] == pytest.approx(1 - values["surrogate"] / values["original"])
    assert list(numbers["total_variation"]) == pl.layer_names(model)
    assert numbers["total_variation"]["layer2.0"]["reduction"] != 0
    assert f"top-1 original: {numbers['top1']['original']:.2%}" in result.stdout
    assert numbers["surrogate"]["epochs"] == 2
    told = " ".join(result.stdout.split())
    mean, deviation = at_target.mean(), at_target.std(correction=0)
    assert (
        f"difference of the explained class's probability: {mean:.1f} points on average over the images, "
        f"with a standard deviation of {deviation:.1f}"
    ) in told
    same = (before.argmax(1) == after.argmax(1)).sum()
    verdict = verdict_on(float(mean), int(same) / 10, 10)
    assert told.endswith(
        f"by {mean:.1f} points on average and predicts as the original for {same} of 10 images: {verdict}"
    )


def test_what_a_surrogate_leaves_is_said_as_it_is_trained_and_as_it_is_judged(tmp_path):
    """The shortcuts of ResNet-20 are strided slices."""
    file, weights = tmp_path / "s.safetensors", tmp_path / "w.safetensors"
    save_file(pl.load_model("cifar-resnet20", "random").model.state_dict(), weights)
    network = ("--model", "cifar-resnet20", "--weights", weights, "--images", "shapes:2")
    result = run("train", *network, "-o", file, "--epochs", 1)
    assert result.exit_code == 0, result.output
    told = "takes one place of several by strided slices (2 a pass), which a surrogate leaves as it is"
    assert told in result.stderr
    assert load_surrogate(file).facts["unreplaced"] == {"slice": 2}
    result = run("evaluate", file, *network, "--layers", "layer1.2")
    assert result.exit_code == 0, result.output
    assert told in result.stderr
    assert "gradient under surrogate still has a lattice" in result.stderr
    assert "layer1.2" in result.stderr


def test_classes_that_the_model_numbers_otherwise_are_not_taken_for_labels(trained, tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        open_images("shapes:1")[0].image.save(tmp_path / name / "1.png")
    result = run("evaluate", trained[0], *NETWORK, "--images", tmp_path, "--layers", "layer2.0")
    assert result.exit_code == 0, result.output
    assert "top-1" not in result.stdout
    assert "the images' classes are not called as the model's; name their folders so" in result.stderr
    assert "difference of the explained class's probability" in result.stdout
    assert "of 2 images: too few for a verdict, which takes 10 images" in " ".join(result.stdout.split())


@pytest.mark.filterwarnings("default:the images' classes:pellucid.errors.InputWarning")
def test_of_a_table_whose_classes_are_called_otherwise_the_column_of_labels_is_asked_for(trained, tmp_path):
    def table_of(*classes):
        told = {"info": {"features": {"label": {"names": classes}}}}
        table = pyarrow.table({"image": [{"bytes": stream.getvalue(), "path": "a.png"}], "label": [1]})
        pyarrow.parquet.write_table(table.replace_schema_metadata({"huggingface": json.dumps(told)}), path)

    path, stream = tmp_path / "test.parquet", io.BytesIO()
    open_images("shapes:1")[0].image.save(stream, "PNG")
    command = ("evaluate", trained[0], *NETWORK, "--images", path, "--layers", "layer2.0")
    table_of(*"abcdefgh")  # as many as the model has
    result = run(*command)
    assert result.exit_code == 0, result.output
    told = "called as the model's; if they are in the model's order, name the table's column of labels"
    assert told in result.stderr
    assert "folders" not in result.stderr
    result = run(*command, "--label-column", "label")
    assert "top-1 original" in result.stdout
    table_of("cat", "dog")
    assert "called as the model's; take images of the model's classes" in run(*command).stderr


def test_folders_called_as_some_of_the_models_classes_are_labels(trained, tmp_path):
    """Of two folders class 1 is another than the model's class 1."""
    source = open_images("shapes:24")
    names, right = sorted({source.classes[sample.label] for sample in source})[-2:], []
    loaded = pl.load_model("shapes-resnet")
    for number, sample in enumerate(source):
        if (name := source.classes[sample.label]) in names:
            (tmp_path / name).mkdir(exist_ok=True)
            sample.image.save(tmp_path / name / f"{number}.png")
            right.append(loaded.classes[loaded.model(loaded.preprocess(sample.image)[None]).argmax()] == name)
    result = run("evaluate", trained[0], *NETWORK, "--images", tmp_path, "--layers", "layer2.0")
    assert result.exit_code == 0, result.output
    assert sum(right) > len(right) / 2
    assert f"top-1 original: {sum(right) / len(right):.2%}" in result.stdout
    assert "not called as the model's" not in result.stderr


def test_broken_images_are_left_out_and_named(trained, tmp_path):
    for number, sample in enumerate(open_images("shapes:3")):
        sample.image.save(tmp_path / f"{number}.png")
    (tmp_path / "1b.png").write_bytes(b"nothing")
    output = tmp_path / "s.safetensors"
    result = run("train", *NETWORK, "--images", tmp_path, "-o", output, "--epochs", 1)
    assert result.exit_code == 0, result.output
    assert "left out 1 image:" in result.stderr
    assert "1b.png" in result.stderr
    result = run("evaluate", output, *NETWORK, "--images", tmp_path, "--layers", "layer2.0")
    assert result.exit_code == 0, result.output
    assert "on 3 images" in result.stdout
    assert "1b.png" in result.stderr
    assert f"note: the surrogate was trained on images of {tmp_path}, so that it answers better" in result.stderr
    (tmp_path / "1b.png").unlink()  # other images are others
    result = run("evaluate", output, *NETWORK, "--images", tmp_path, "--layers", "layer2.0")
    assert "was trained on" not in result.stderr


def test_a_surrogate_of_other_weights_or_of_another_network_is_refused(trained, tmp_path):
    path, _ = trained
    result = run("evaluate", path, "--model", "shapes-resnet", "--weights", "random", "--images", "shapes:2")
    assert result.exit_code == 2
    assert "other weights" in result.stderr
    surrogate = load_surrogate(path)
    wider = replace(surrogate.convolutions[0], out_channels=25)
    replace(surrogate, convolutions=(wider, *surrogate.convolutions[1:])).save(tmp_path / "other.safetensors")
    result = run("evaluate", tmp_path / "other.safetensors", *NETWORK, "--images", "shapes:2")
    assert result.exit_code == 2
    assert "convolution 0 of the model is 3 -> 24" in result.stderr
    assert "in its network 3 -> 25" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("train", *NETWORK, "--images", "shapes:2", "-o", "s.pt"), "does not end in .safetensors"),
        (("train", *NETWORK, "--images", "shapes:2", "-o", "nowhere/s.safetensors"), "cannot write nowhere"),
        (("train", *NETWORK, "--images", "nothing", "-o", "s.safetensors"), "no file or folder nothing"),
        (("train", "--model", "cifar-cnn", "--images", "shapes:2", "-o", "s.safetensors"), "max_pool2d x2"),
        (("evaluate", "missing.safetensors", *NETWORK, "--images", "shapes:2"), "there is no surrogate file"),
        (("evaluate", "s.safetensors", *NETWORK, "--images", "shapes:2", "-o", "x.txt"), "does not end in .json"),
    ],
)
def test_what_cannot_work_is_said_in_one_line(tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    result = run(*arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert len(result.stderr.splitlines()) <= 2
    assert list(tmp_path.iterdir()) == []


# A surrogate's file as a variant of other commands.

SPEC = """
models = ["shapes-resnet"]
images = "shapes:3"
methods = ["gradient"]
variants = ["original", "files/s.safetensors"]
layers = ["layer2.0"]
metrics = ["total_variation", "prediction_difference", "cascade_ssim", "cascade_spearman"]
pictures = 1
"""


@pytest.fixture
def work(trained, tmp_path, monkeypatch):
    """A folder that commands run in, with a spec and a surrogate in a folder of its own."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "spec" / "files").mkdir(parents=True)
    shutil.copy(trained[0], tmp_path / "spec" / "files")
    (tmp_path / "spec" / "bench.toml").write_text(SPEC)
    return tmp_path


def run_any(*arguments):
    return CliRunner().invoke(whole, [*map(str, arguments)], env={"COLUMNS": "80"})


def shapes(count):
    model, preprocess = pl.load_model("shapes-resnet")
    return model, torch.stack([preprocess(sample.image) for sample in open_images(f"shapes:{count}")])


def test_a_variant_is_named_by_its_name_or_by_its_file(trained, tmp_path):
    assert [catalog.variant(name) for name in catalog.VARIANTS] == list(catalog.VARIANTS.values())
    found, expected = catalog.variant(str(trained[0])), load_surrogate(trained[0])
    assert found.convolutions == expected.convolutions
    assert torch.equal(found.paths[1].weight1, expected.paths[1].weight1)
    assert [catalog.variant_name(text) for text in ("backward", "a.b/c.d.safetensors")] == ["backward", "c.d"]
    shutil.copy(trained[0], tmp_path / "forward.safetensors")
    with pytest.raises(InvalidParameter, match="would be called 'forward'"):
        catalog.variant(str(tmp_path / "forward.safetensors"))
    with pytest.raises(UnknownName, match=r"unknown variant 'surrogate'; .*path/to/surrogate\.safetensors"):
        catalog.variant("surrogate")
    with pytest.raises(InvalidWeights, match="there is no surrogate file"):
        catalog.variant("nowhere.safetensors")
    with pytest.raises(InvalidWeights, match=r"holds no surrogate, but \d+ tensors such as"):
        catalog.variant(str(BUNDLED["shapes-resnet"]))


def test_explain_takes_a_surrogate_by_its_file(work):
    file = "spec/files/s.safetensors"
    result = run_any(
        "explain", "shapes:2", *NETWORK, "--layers", "layer2.0", "--variant", f"original,{file}", "-o", "out"
    )
    assert result.exit_code == 0, result.output
    assert Path("out/maps/shape-0/gradient/layer2.0-s.png").is_file()
    assert "out/figure-methods-layer2.0-s-001.png" in map(str, Path("out").glob("*.png"))
    found = {
        f"{path.stem}/{name}": values
        for path in Path("out/attributions").iterdir()
        for name, values in load_file(path).items()
    }
    facts = json.loads(Path("out/run.json").read_text())
    [told] = [sentence for sentence in facts["noticed"] if sentence.startswith("under s the network is another")]
    network, images = shapes(2)
    original, changed = (Scorer(network, of).scores(images) for of in ("original", load_surrogate(file)))
    moved = 100 * (original - changed).gather(1, original.argmax(1)[:, None]).abs().mean()
    assert f"by {moved:.1f} points" in told
    assert "original" not in facts["photos"][0]["variants"]
    model, x = shapes(2)
    for name, variant in (("original", "original"), ("s", load_surrogate(file))):
        expected = pl.Gradient()(model, x, layers="layer2.0", variant=variant)["layer2.0"]
        for row in range(2):
            assert torch.equal(found[f"shape-{row}/gradient/layer2.0/{name}"], expected[row])
    assert not torch.equal(found["shape-0/gradient/layer2.0/s"], found["shape-0/gradient/layer2.0/original"])

    facts = json.loads(Path("out/run.json").read_text())
    assert facts["variants"] == ["original", "s"]
    digest = sha256(Path(file).read_bytes()).hexdigest()
    assert facts["surrogates"] == {"s": {"file": "s.safetensors", "sha256": digest}}
    names = {}
    exec(facts["python"], names)
    again = names["attributions"]["gradient", "s"]["layer2.0"]
    assert torch.equal(again[1], found["shape-1/gradient/layer2.0/s"])


def test_a_benchmark_grades_a_surrogate_by_its_file(work):
    result = run_any("benchmark", "spec/bench.toml", "-o", "run")
    assert result.exit_code == 0, result.output
    table = Results.read("run").table
    assert set(table["variant"]) == {"original", "s"}
    model, x = shapes(3)
    surrogate = load_surrogate("spec/files/s.safetensors")
    targets = Scorer(model).scores(x).argmax(1)

    def values(metric, variant):
        rows = table[(table["metric"] == metric) & (table["variant"] == variant) & table["at"].isna()]
        assert list(rows["image"]) == ["shape-0", "shape-1", "shape-2"]
        return torch.tensor(rows["value"].to_numpy(), dtype=torch.float64)

    for name, variant in (("original", "original"), ("s", surrogate)):
        maps = pl.Gradient()(model, x, targets, "layer2.0", variant=variant)["layer2.0"]
        expected = pl.total_variation(maps).double()
        assert torch.allclose(values("total_variation", name), expected, rtol=1e-5)
        change = 100 * (Scorer(model).scores(x) - Scorer(model, variant).scores(x)).abs().sum(1)
        assert torch.allclose(values("prediction_difference", name), change.double(), rtol=1e-4, atol=1e-4)
    for metric in ("cascade_ssim", "cascade_spearman"):
        assert values(metric, "original").isfinite().all()
        assert values(metric, "s").isnan().all()
        assert "trained for the model's own weights" in Results.read("run").record.metrics[metric].undefined
    assert run_any("report", "run").exit_code == 0


def test_a_benchmark_goes_on_only_with_the_surrogate_it_began_with(work):
    few = ("--metrics", "total_variation")
    assert run_any("benchmark", "spec/bench.toml", *few, "-o", "run").exit_code == 0
    (work / "elsewhere").mkdir()
    shutil.copy("spec/files/s.safetensors", "elsewhere")
    moved = run_any(
        "benchmark", "spec/bench.toml", *few, "--variant", "original,elsewhere/s.safetensors", "-o", "run"
    )
    assert "nothing was computed" in moved.stdout, moved.output
    surrogate = load_surrogate("spec/files/s.safetensors")
    weaker = [path and replace(path, bias2=path.bias2 * 0.5) for path in surrogate.paths]
    replace(surrogate, paths=tuple(weaker)).save("spec/files/s.safetensors")
    other = run_any("benchmark", "spec/bench.toml", *few, "-o", "run")
    assert other.exit_code == 2
    assert "results of another spec: files.s: not the same" in other.stderr


def test_a_surrogate_that_a_run_was_given_later_is_known_by_its_content(work):
    """Also where run.json was lost meanwhile, so that the names of cells alone tell which surrogate made them."""
    few = ("benchmark", "spec/bench.toml", "--metrics", "total_variation", "--methods", "gradient", "-o")
    both = ("--variant", "original,spec/files/s.safetensors")
    assert run_any(*few, "run", "--variant", "original").exit_code == 0
    assert run_any(*few, "run", *both).exit_code == 0
    first = Results.read("run")
    assert "nothing was computed" in run_any(*few, "run", *both).stdout
    Path("run/run.json").unlink()
    assert run_any(*few, "run", "--variant", "original").exit_code == 0
    surrogate = load_surrogate("spec/files/s.safetensors")
    weaker = [path and replace(path, bias2=path.bias2 * 0.5) for path in surrogate.paths]
    replace(surrogate, paths=tuple(weaker)).save("spec/files/s.safetensors")
    assert run_any(*few, "run", *both).exit_code == 0
    assert run_any(*few, "fresh", *both).exit_code == 0
    again, fresh = Results.read("run"), Results.read("fresh")
    pd.testing.assert_frame_equal(again.table, fresh.table, check_exact=True)
    values = [one.values(variant="s")["value"].to_numpy() for one in (first, again)]
    assert not np.array_equal(*values)


@pytest.mark.parametrize("command", ["explain", "benchmark"])
@pytest.mark.parametrize(
    ("variant", "arguments", "message"),
    [
        ("{folder}/s.safetensors", ("--weights", "random"), "was trained for other weights"),
        ("{folder}/wider.safetensors", (), "does not fit: convolution 0 of the model is 3 -> 24"),
        ("{bundled}", (), "holds no surrogate, but"),
        ("{folder}/none.safetensors", (), "there is no surrogate file"),
        ("{folder}/original.safetensors", (), "would be called 'original'"),
        ("{folder}/s.safetensors,copy/s.safetensors", (), " name"),
        ("sorrogate", (), "unknown variant 'sorrogate'"),
    ],
)
def test_a_file_that_cannot_be_a_variant_is_refused_before_anything_is_written(
    work, command, variant, arguments, message
):
    folder = Path("spec/files")
    surrogate = load_surrogate(folder / "s.safetensors")
    wider = replace(surrogate.convolutions[0], out_channels=25)
    replace(surrogate, convolutions=(wider, *surrogate.convolutions[1:])).save(folder / "wider.safetensors")
    shutil.copy(folder / "s.safetensors", folder / "original.safetensors")
    shutil.copytree(folder, "copy")
    before = set(work.rglob("*"))
    text = variant.format(folder=folder, bundled=BUNDLED["shapes-resnet"])
    given = ("shapes:2",) if command == "explain" else ("spec/bench.toml",)
    model = ("--model", "shapes-resnet", *arguments)
    result = run_any(command, *given, *model, "--variant", "backward", "--variant", text, "-o", "out")
    assert result.exit_code == 2, result.output
    assert message in result.stderr
    assert result.stderr.splitlines()[-1].startswith("error: ")
    assert set(work.rglob("*")) == before


# A finished training.


def no_training(*_):
    raise AssertionError("a training began")


def test_a_finished_training_is_left_as_it_is(trained, tmp_path, monkeypatch):
    file = tmp_path / "s.safetensors"
    shutil.copy(trained[0], file)
    before = file.read_bytes()
    monkeypatch.chdir(tmp_path)  # what else comes into the folder is none of the training's
    (tmp_path / "shapes-resnet").mkdir()
    monkeypatch.setattr("pellucid.training.from_source.load_network", no_training)
    same = ("train", *NETWORK, "--images", "shapes:24", "--batch-size", 8, "--lr", 3e-3, "-o", file)
    result = run(*same, "--epochs", 2)
    assert result.exit_code == 0, result.output
    assert "s.safetensors was finished already; nothing was computed" in " ".join(result.stdout.split())
    (tmp_path / "s.checkpoint").mkdir()  # what a kill left after the last step
    (tmp_path / "s.checkpoint/epoch-00002.safetensors").touch()
    assert run(*same, "--epochs", 2).exit_code == 0
    assert {path.name for path in tmp_path.iterdir()} == {"s.safetensors", "shapes-resnet"}
    result = run(*same, "--epochs", 1)
    assert result.exit_code == 2
    told = " ".join(result.stderr.split())
    assert "holds a finished training of other settings: epochs is 2 there and 1 here; choose another file" in told
    assert file.read_bytes() == before


def test_a_finished_training_of_other_weights_that_a_file_loads_is_told(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("loading.py").write_text(
        "import pellucid as pl, torch\n"
        "def network():\n"
        "    model = pl.load_model('shapes-resnet', 'random').model\n"
        "    model.load_state_dict(torch.load('w.pth'))\n"
        "    return model\n"
        "preprocess = pl.load_model('shapes-resnet').preprocess\n"
    )
    state = pl.load_model("shapes-resnet").model.state_dict()
    torch.save(state, "w.pth")
    network = ("--model", "loading.py:network")
    command = ("train", *network, "--images", "shapes:4", "--epochs", 1, "-o", "s.safetensors")
    assert run(*command).exit_code == 0
    assert "s.safetensors was finished already" in run(*command).stdout
    torch.save({name: value * 2 for name, value in state.items()}, "w.pth")
    before = Path("s.safetensors").read_bytes()
    result = run(*command)
    assert result.exit_code == 2
    told = "s.safetensors holds a finished training of other weights than loading.py:network has now"
    assert told in " ".join(result.stderr.split())
    assert Path("s.safetensors").read_bytes() == before


def test_a_file_that_no_training_wrote_is_left_as_it_is(tmp_path):
    file = tmp_path / "s.safetensors"
    file.write_bytes(b"mine")
    result = run("train", *NETWORK, "--images", "shapes:8", "-o", file)
    assert result.exit_code == 2
    assert "is there, and is no whole training's" in " ".join(result.stderr.split())
    assert file.read_bytes() == b"mine"


@pytest.mark.parametrize("kept", ["cnn.safetensors", "cnn.json"])
def test_a_finished_network_is_left_as_it_is(tmp_path, monkeypatch, kept):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("pellucid.training.from_source.train", no_training)
    Path(kept).write_text("mine")
    result = run_any("train", "shapes", "--count", 16, "--epochs", 1, "-o", "cnn.safetensors")
    assert result.exit_code == 2
    assert f"{kept} is there, and is no whole training's" in " ".join(result.stderr.split())
    assert [path.name for path in Path().iterdir()] == [kept]


def test_the_same_network_is_trained_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = Path("images")
    for number, sample in enumerate(open_images("shapes:20")):
        (folder / f"{number % 2}").mkdir(parents=True, exist_ok=True)
        sample.image.save(folder / f"{number % 2}" / f"{number}.png")
    # The weights lie among the images, and are none of them.
    same = ("train", "selu-cnn", "--data", folder, "-o", "images/cnn.safetensors", "--epochs", 1)
    result = run_any(*same)
    assert result.exit_code == 0, result.output
    before = Path("images/cnn.safetensors").read_bytes()
    monkeypatch.setattr("pellucid.training.from_source.train", no_training)
    assert "was finished already" in run_any(*same).stdout
    (folder / "1/1.png").unlink()
    for others in (same, (*same[:-1], 2), (*same, "--seed", 1)):
        result = run_any(*others)
        assert result.exit_code == 2
        assert "of other settings" in " ".join(result.stderr.split())
    assert Path("images/cnn.safetensors").read_bytes() == before


def test_images_that_a_training_learned_from_are_known(tmp_path):
    """By the content of their place: the first that a network tells, those after two that a surrogate does."""
    folder, other = tmp_path / "photos", tmp_path / "others"
    for number, place in enumerate((folder, other)):
        place.mkdir()
        (place / "a.png").write_bytes(b"x" * (number + 1))
    file, places = tmp_path / "w.safetensors", [str(folder), str(other), "shapes:4", "torchvision:CIFAR10"]
    known = content(str(folder))
    network = {"asked": {"name": "resnet18", "content": [known, content(str(other))]}}
    assert learned_from(network, places, file) == [str(folder)]
    surrogate = {"asked": {"model": "resnet18", "content": ["", "", known, "shapes:64", "torchvision:CIFAR10"]}}
    assert learned_from(surrogate, places, file) == [str(folder), "shapes:4", "torchvision:CIFAR10"]
    network["asked"]["content"] = ["torchvision:CIFAR10", ""]  # trained on another split
    assert learned_from(network, places, file) == []
    assert learned_from({}, places, file) == learned_from({"asked": 3}, places, file) == []
