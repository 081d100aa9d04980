"""The commands ``surrogate train`` and ``surrogate evaluate``."""

import json
from dataclasses import replace

import pytest
import torch
import typer
from typer.testing import CliRunner

import pellucid as pl
from pellucid.cli.program import Commands
from pellucid.cli.surrogate import surrogate as commands
from pellucid.data.sources import open_images
from pellucid.metrics.scoring import Scorer
from pellucid.surrogate.training import train_surrogate
from pellucid.surrogate.variant import load_surrogate

app = typer.Typer(cls=Commands)
app.add_typer(commands, name="surrogate")
NETWORK = ("--model", "shapes-resnet")


def run(*arguments):
    return CliRunner().invoke(app, ["surrogate", *map(str, arguments)], env={"COLUMNS": "80"})


@pytest.fixture(scope="module")
def trained(tmp_path_factory):
    path = tmp_path_factory.mktemp("surrogate") / "s.safetensors"
    result = run(
        "train", *NETWORK, "--images", "shapes:24", "-o", path, "--epochs", 2, "--batch-size", 8, "--lr", 3e-3
    )
    assert result.exit_code == 0, result.output
    return path, result.stdout


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
        for which, variant in (("original", "original"), ("surrogate", load_surrogate(path))):
            maps = pl.method("gradient")(model, x, labels, layer, variant=variant)[layer]
            assert values[which] == pytest.approx(float(pl.total_variation(maps).mean()), rel=1e-4)
        if layer == "layer3.1":  # its gradient is one number per channel
            assert values == {"original": 0, "surrogate": 0, "reduction": None}
        else:
            assert values["reduction"] == pytest.approx(1 - values["surrogate"] / values["original"])
    assert list(numbers["total_variation"]) == pl.layer_names(model)
    assert numbers["total_variation"]["layer2.0"]["reduction"] != 0
    assert f"top-1 original: {numbers['top1']['original']:.2%}" in result.stdout
    assert numbers["surrogate"]["epochs"] == 2


def test_classes_that_the_model_numbers_otherwise_are_not_taken_for_labels(trained, tmp_path):
    for name in ("cat", "dog"):
        (tmp_path / name).mkdir()
        open_images("shapes:1")[0].image.save(tmp_path / name / "1.png")
    result = run("evaluate", trained[0], *NETWORK, "--images", tmp_path, "--layers", "layer2.0")
    assert result.exit_code == 0, result.output
    assert "top-1" not in result.stdout
    assert "100 x difference at the target" in result.stdout


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
