"""Twelve natural mistakes, and more: each leads to a sentence that names the thing and what to do."""

from pathlib import Path

import pytest
import torch

import pellucid as pl

from .person import network, pictures, typed, write_model

EXPLAIN = "pellucid explain photo.png --model shapes-resnet"


@pytest.fixture(autouse=True)
def _photo() -> None:
    pictures(1)[0].save("photo.png")


@pytest.mark.parametrize(
    ("command", "sentence"),
    [
        (f"{EXPLAIN} --target circel", "unknown class 'circel'; did you mean circle"),
        (f"{EXPLAIN} --layers layer3.2", "unknown layer 'layer3.2'; did you mean layer3 or layer2 or layer3.1"),
        (f"{EXPLAIN} --weights lost.safetensors", "there is no weights file lost.safetensors"),
        (f"{EXPLAIN} --methods grad-cam", "unknown method 'grad-cam'; did you mean gradcam"),
        (f"{EXPLAIN} --methods gradcan", "unknown method 'gradcan'; did you mean gradcam"),
        ("pellucid explain fotos --model shapes-resnet", "there is no file or folder fotos"),
        (f"{EXPLAIN} --layer input", "No such option: --layer (Possible options: --layers"),
        ("pellucid explain empty --model shapes-resnet", "empty holds no images"),
        ("pellucid explain photo.png --model model.py:netwrok", "'netwrok'; did you mean network?"),
        ("pellucid benchmark --limit 2", "No such option: --limit; here it is --count"),
        (f"{EXPLAIN} --masks m", "No such option: --masks; of pellucid benchmark"),
        ("pellucid benchmark typo.toml", "unknown key in typo.toml 'metods'; did you mean methods"),
    ],
    ids=lambda text: text.split()[-1],
)
def test_a_command_says_what_is_wrong(command: str, sentence: str) -> None:
    Path("empty").mkdir()
    write_model("model.py")
    Path("typo.toml").write_text('models = ["shapes-resnet"]\nmetods = ["gradient"]\nimages = "shapes:4"\n')
    said = typed(f"{command} -o out", code=2)
    assert sentence in said, said
    assert not Path("out").exists()


def test_a_model_in_training_mode_is_refused_in_python() -> None:
    model = pl.load_model("shapes-resnet").model
    with pytest.raises(pl.PellucidError, match=r"training mode.*eval\(\)"):
        pl.method("gradient")(model.train(), torch.randn(1, 3, 64, 64))


@pytest.mark.parametrize("end", ["Softmax(1)", "Sigmoid()"])
def test_probabilities_at_the_end_are_noticed(end: str) -> None:
    write_model("model.py", "preprocess = Preprocess(resize=64, crop=64)")
    Path("model.py").write_text(
        Path("model.py").read_text() + "\n\ndef sure():\n    return nn.Sequential(network(), nn." + end + ")\n"
    )
    said = typed("pellucid explain photo.png --model model.py:sure -o out")
    assert f"the outputs are probabilities; explain the model without its last {end.lower()[:7]}" in said


def test_images_up_to_255_are_noticed() -> None:
    write_model(
        "model.py",
        "def preprocess(image):\n    return 255 * Preprocess(resize=64, crop=64, mean=None, std=None)(image)\n",
    )
    said = typed("pellucid explain photo.png --model model.py:network -o out")
    assert "as of images that are not normalized" in said


def test_another_number_of_channels_is_named() -> None:
    write_model("model.py", "preprocess = Preprocess(resize=64, crop=64)", channels=1)
    said = typed("pellucid explain photo.png --model model.py:network -o out", code=2)
    assert "the model fails on images of shape (1, 3, 64, 64)" in said
    assert "to have 1 channels, but got 3 channels" in said
    told = "the model takes images of 1 channel, by its first convolution, and these have 3: give a preprocess"
    assert told in said
    with pytest.raises(pl.PellucidError, match=rf"fails on images of shape \(1, 3, 64, 64\).*1 channels.*{told}"):
        pl.method("gradient")(network("model.py"), torch.randn(1, 3, 64, 64))


def test_images_with_channels_last_are_told_in_python() -> None:
    model = pl.load_model("shapes-resnet").model
    with pytest.raises(pl.PellucidError, match=r"3 channels last.*images\.permute\(0, 3, 1, 2\)"):
        pl.method("gradient")(model, torch.randn(1, 64, 64, 3))
    with pytest.raises(pl.PellucidError, match=r"3 channels last.*image\.permute\(2, 0, 1\)\[None\]"):
        pl.method("gradient")(model, torch.randn(64, 64, 3))
    with pytest.raises(pl.PellucidError, match=r"\(3, 64, 64\).*such as preprocess\(photo\)\[None\]"):
        pl.method("gradient")(model, torch.randn(3, 64, 64))


def test_a_preprocess_that_puts_channels_last_is_told() -> None:
    own = "import torch, numpy\ndef preprocess(image):\n    return torch.from_numpy(numpy.array(image)) / 255"
    write_model("model.py", own)
    said = typed("pellucid explain photo.png --model model.py:network -o out", code=2)
    assert "they come with their 3 channels last" in said
    assert "in a preprocess image.permute(2, 0, 1)" in said
    assert "a preprocess that makes that many" not in said
