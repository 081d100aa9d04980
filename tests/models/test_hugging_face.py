"""Hugging Face's image classifiers: exactly their logits and pixels, no network and no pickles."""

import json
import re
import time

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file, save_file
from typer.testing import CliRunner

import pellucid as pl
from pellucid.cli import app
from pellucid.errors import InvalidModel, InvalidWeights, UnknownName
from pellucid.experiments.inputs import digest_of_model
from pellucid.experiments.noticing import of_model
from pellucid.models.preprocess import CustomPreprocess, Preprocess
from pellucid.models.zoo import load_model

transformers = pytest.importorskip("transformers")
pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")

NAMES = ("cat", "dog", "tabby, tabby cat")


def picture():
    pixels = np.random.default_rng(0).integers(0, 256, (80, 100, 3), dtype=np.uint8)
    return Image.fromarray(pixels).resize((100, 80))


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A vision transformer with random weights, as ``save_pretrained`` writes it."""
    monkeypatch.chdir(tmp_path)
    torch.manual_seed(0)
    names = dict(enumerate(NAMES))
    config = transformers.ViTConfig(
        hidden_size=24, num_hidden_layers=2, num_attention_heads=2, intermediate_size=48, image_size=32,
        patch_size=8, id2label=names, label2id={name: number for number, name in names.items()},
    )  # fmt: skip
    transformers.ViTForImageClassification(config).save_pretrained("vit")
    transformers.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained("vit")
    return tmp_path / "vit"


def test_a_folder_is_the_model_with_its_processor_and_names(folder):
    loaded = load_model(f"hf:{folder}")
    assert loaded.classes == NAMES
    assert loaded.weights == "DEFAULT"
    assert isinstance(loaded.preprocess, Preprocess)
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    expected = processor(images=picture(), return_tensors="pt")["pixel_values"]
    found = loaded.preprocess(picture())
    assert (found - expected[0]).abs().max() * 0.5 <= 4 / 255
    model = transformers.ViTForImageClassification.from_pretrained(folder).eval()
    assert torch.equal(loaded.model(found[None]).logits, model(found[None]).logits)


def test_a_folder_of_weights_that_were_never_trained_is_told(folder):
    told = "looks untrained: its weights lie as they are drawn at the start"
    [sentence] = of_model(load_model(f"hf:{folder}"))
    assert told in sentence
    assert sentence.endswith("give the weights after training")
    model = transformers.ViTForImageClassification.from_pretrained(folder)
    torch.nn.init.normal_(model.vit.layernorm.weight, mean=1.0, std=0.1)
    model.save_pretrained(folder)
    assert not [one for one in of_model(load_model(f"hf:{folder}")) if told in one]


def test_it_is_explained_at_its_blocks_by_name(folder):
    loaded = load_model(f"hf:{folder}")
    images = loaded.preprocess(picture())[None]
    found = pl.method("gradient")(loaded, images, "tabby", "all")
    assert found.targets.tolist() == [2]
    blocks = [layer for layer in found if layer != "input"]
    assert len(blocks) >= 2
    assert all(found[layer].shape == (1, 24, 4, 4) for layer in blocks if layer in found.prefixes)
    point = images.clone().requires_grad_()
    (expected,) = torch.autograd.grad(loaded.model(point).logits[0, 2], point)
    assert torch.allclose(found["input"], expected, rtol=1e-4, atol=1e-8)


def test_what_would_run_code_or_be_random_is_refused(folder):
    weights = folder / "model.safetensors"
    state = load_file(weights)
    save_file(
        {name: value for name, value in state.items() if "classifier" not in name}, weights, {"format": "pt"}
    )
    with pytest.raises(InvalidWeights, match=r"would be random: classifier\."):
        load_model(f"hf:{folder}")
    torch.save(state, folder / "pytorch_model.bin")
    weights.unlink()
    with pytest.raises(InvalidWeights, match=r"no \.safetensors.*could run code"):
        load_model(f"hf:{folder}")
    with pytest.raises(InvalidWeights, match=r"or take weights='random' \(--weights random\)"):
        load_model(f"hf:{folder}")
    assert load_model(f"hf:{folder}", weights="random").weights == "random"
    with pytest.raises(UnknownName, match="DEFAULT"):
        load_model(f"hf:{folder}", weights="IMAGENET1K_V1")
    (folder / "config.json").unlink()
    with pytest.raises(InvalidModel, match="its configuration cannot be read"):
        load_model(f"hf:{folder}")


def test_a_configuration_names_classes_whatever_the_weights(folder):
    for file in ("model.safetensors", "preprocessor_config.json"):
        (folder / file).unlink()
    assert load_model(f"hf:{folder}", weights="random").classes == NAMES
    assert load_model(f"hf:{folder}", weights="random", classes=3).classes == NAMES
    other = load_model(f"hf:{folder}", weights="random", classes=5)
    assert (other.classes, other.model(torch.zeros(1, 3, 32, 32)).logits.shape) == (None, (1, 5))
    assert load_model("resnet18", weights="random").classes is None


def test_a_missing_image_processor_is_told(folder):
    def told(loaded):
        return [text for text in of_model(loaded) if "photos are" in text]

    assert told(load_model(f"hf:{folder}")) == []
    processor = folder / "preprocessor_config.json"
    done = "photos are resized to 32, cropped to 32 and normalized as ImageNet's; say otherwise by --preprocess"
    processor.write_text("{")
    [broken] = told(load_model(f"hf:{folder}"))
    assert broken.startswith(f"hf:{folder}: its image processor cannot be read (")
    assert f"): {done}" in broken
    processor.unlink()
    [missing] = told(load_model(f"hf:{folder}"))
    assert missing.startswith(f"hf:{folder} has no preprocessor_config.json: {done}")
    assert told(load_model(f"hf:{folder}").seeing("none")) == []


def test_a_file_of_weights_and_a_processor_of_another_kind(folder):
    state = load_model(f"hf:{folder}").model.state_dict()
    state["classifier.bias"] += 1
    save_file(state, folder.parent / "tuned.safetensors")
    tuned, plain = load_model(f"hf:{folder}", folder.parent / "tuned.safetensors"), load_model(f"hf:{folder}")
    images = plain.preprocess(picture())[None]
    assert torch.allclose(tuned.model(images).logits, plain.model(images).logits + 1, atol=1e-6)
    settings = json.loads((folder / "preprocessor_config.json").read_text())
    (folder / "preprocessor_config.json").write_text(json.dumps(settings | {"rescale_factor": 1 / 127.5}))
    other = load_model(f"hf:{folder}")
    assert isinstance(other.preprocess, CustomPreprocess)
    processor = transformers.AutoImageProcessor.from_pretrained(folder)
    assert torch.equal(
        other.preprocess(picture()), processor(images=picture(), return_tensors="pt")["pixel_values"][0]
    )
    (folder / "preprocessor_config.json").unlink()
    assert load_model(f"hf:{folder}").preprocess == Preprocess(32, 32)


def test_its_own_file_of_weights_is_the_folders(folder):
    """Files keep the names of older versions of transformers, which are not the network's own."""
    file = folder / "model.safetensors"
    loaded, image = load_model(f"hf:{folder}", weights=file), torch.randn(1, 3, 32, 32)
    expected = load_model(f"hf:{folder}").model
    assert load_file(file).keys() != expected.state_dict().keys()
    assert torch.equal(loaded.model(image).logits, expected(image).logits)
    state = load_file(file)
    save_file({name: value for name, value in state.items() if "layernorm.weight" not in name}, "less.safetensors")
    with pytest.raises(InvalidWeights, match="does not fit"):
        load_model(f"hf:{folder}", weights="less.safetensors")


def test_it_is_explained_from_the_command_line(folder):
    picture().save("photo.png")
    arguments = ["explain", "photo.png", "--model", "hf:vit", "--methods", "gradcam", "--target", "tabby - dog"]
    result = CliRunner().invoke(app, [*arguments, "--raw=no", "-o", "out"])
    assert result.exit_code == 0, result.output
    facts = json.loads((folder.parent / "out" / "run.json").read_text())
    loaded = load_model(f"hf:{folder}")
    with torch.no_grad():
        logits = loaded.model(loaded.preprocess(picture())[None]).logits[0]
    target = facts["photos"][0]["target"]
    assert target["name"] == "tabby - dog"
    assert target["value"] == pytest.approx(float(logits[2] - logits[1]), rel=1e-4)


def test_other_weights_in_the_folder_are_no_finished_run(folder):
    picture().save("photo.png")
    command = ["explain", "photo.png", "--model", "hf:vit", "--methods", "gradcam", "--raw=no", "-o", "out"]
    assert CliRunner().invoke(app, command).exit_code == 0
    result = CliRunner().invoke(app, command)
    assert "out was finished already; nothing was computed" in result.stdout
    model = json.loads((folder.parent / "out" / "run.json").read_text())["model"]
    assert (model["weights"], model["digest"]) == ("of its folder", digest_of_model(load_model("hf:vit")))
    file = folder / "model.safetensors"
    size = file.stat().st_size
    state = {name: value + 0.25 for name, value in load_file(file).items()}
    save_file(state, file, {"format": "pt"})
    assert file.stat().st_size == size
    result = CliRunner().invoke(app, command)
    assert result.exit_code == 2
    assert "out holds a finished run of other weights or preprocessing of hf:vit (digest " in result.stderr


PLACES = ["./nowhere", "/nowhere", "../vit", "models/vit/last", "models\\vit", "~nobody/vit", "./vit/config.json"]


@pytest.mark.parametrize("place", PLACES)
def test_a_folder_that_is_not_there_is_told_as_such(folder, place):
    told = f"hf:{place}: there is no folder {place}; give one with a config.json"
    with pytest.raises(InvalidModel, match=re.escape(told)):
        load_model(f"hf:{place}")


def test_a_misspelled_folder_is_told_at_once_where_the_hub_is_out_of_reach(folder, monkeypatch):
    def unreachable(*_, **__):
        raise OSError("Name or service not known")

    monkeypatch.setattr("huggingface_hub.get_hf_file_metadata", unreachable)
    begun = time.monotonic()
    with pytest.raises(InvalidModel, match=r"there is no folder vitt \(did you mean vit\?\)"):
        load_model("hf:vitt")
    assert time.monotonic() - begun < 10


def test_a_folder_without_hf_before_it_is_told_how_it_is_named(folder):
    with pytest.raises(InvalidModel, match="vit is a folder; as a model of Hugging Face's it is hf:vit"):
        load_model("vit")


def test_it_needs_transformers(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(InvalidModel, match=r"pip install 'pellucid\[hf\]'"):
        load_model("hf:google/vit-base-patch16-224")
