"""Networks by name: ready to be explained, exactly loaded, and refused with a way out."""

import gzip
import io
import json
import math
import pathlib
import resource
import warnings
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import safetensors.torch
import torch
import torchvision
from PIL import Image
from torch import nn
from torchvision.transforms.functional import pil_to_tensor

import pellucid as pl
from pellucid.data.labeled import load_images
from pellucid.data.shapes import SHAPE_NAMES, ShapesDataset
from pellucid.data.sources import open_images
from pellucid.errors import (
    InvalidImage,
    InvalidModel,
    InvalidParameter,
    InvalidTarget,
    InvalidWeights,
    UnknownName,
    WeightsWarning,
)
from pellucid.experiments.noticing import of_model
from pellucid.models import zoo
from pellucid.models.preprocess import IMAGENET, CustomPreprocess, Preprocess
from pellucid.models.small import PAPER_MODELS
from pellucid.models.weights import read_class_names, read_facts, read_state_dict
from pellucid.models.zoo import _timm_preprocess, load_model, model_names
from pellucid.rules.base import Rules
from pellucid.training.adversarial import robust_accuracy
from pellucid.training.classifiers import accuracy, save_weights

SMALL = "squeezenet1_1"  # torchvision's smallest classifier


def picture(size=(300, 260)):
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8))


# Every network.


@pytest.mark.parametrize("name", [*PAPER_MODELS, "resnet18", "googlenet", SMALL, "mobilenet_v3_small"])
def test_a_network_is_frozen_in_eval_mode_and_takes_its_own_images(name):
    model, preprocess = load_model(name)
    assert not any(module.training for module in model.modules())
    assert not any(parameter.requires_grad for parameter in model.parameters())
    logits = model(preprocess(picture())[None])
    outputs = {"shapes-resnet": 8, "tiny-resnet18": 200, "unet": 2}
    assert logits.shape == (1, outputs.get(name, 10 if name in PAPER_MODELS else 1000))


def test_random_weights_follow_the_seed_and_leave_the_global_state():
    state = torch.get_rng_state()
    first, again, other = (load_model("sanity-cnn", seed=seed).model.conv1.weight for seed in (0, 0, 1))
    assert torch.equal(first, again)
    assert not torch.equal(first, other)
    assert torch.equal(torch.get_rng_state(), state)


def test_names():
    names = model_names()
    assert names[: len(PAPER_MODELS)] == list(PAPER_MODELS)
    assert {"resnet18", "inception_v3", "densenet121"} < set(names)
    assert "fcn_resnet50" not in names
    assert len(names) == len(set(names))


def test_classes_decide_the_outputs_of_a_new_network():
    loaded = load_model(SMALL, classes=("cat", "dog"))
    assert (loaded.classes, zoo.outputs(loaded.model), loaded.weights) == (("cat", "dog"), 2, "random")
    assert load_model("cifar-resnet18", classes=200).model.fc.out_features == 200


def test_auxiliary_heads_are_left_out():
    model = load_model("googlenet").model
    assert not [name for name, _ in model.named_modules() if "aux" in name.lower()]


# The papers' networks.

PARAMETERS = {  # weights and biases, counted by hand from the papers' descriptions
    "sanity-cnn": (25 * 32 + 32) + (25 * 32 * 64 + 64) + (3136 * 1024 + 1024) + (1024 * 10 + 10),
    "selu-cnn": (9 * 32 + 32) + (9 * 32 * 64 + 64) + (3136 * 128 + 128) + (128 * 10 + 10),
    "cifar-cnn": (9 * 3 * 32 + 32)
    + (9 * 32 * 32 + 32)
    + (9 * 32 * 64 + 64)
    + (9 * 64 * 64 + 64)
    + (4096 * 256 + 256)
    + (256 * 10 + 10),
    "cifar-resnet18": 11_173_962,  # as published for the 32x32 ResNet-18
    "tiny-resnet18": 11_173_962 + 190 * 513,
    "cifar-resnet20": 269_722,  # as published without weights in the shortcuts
    "cifar-resnet56": 853_018,
    "cifar-resnet2b": (27 * 8 + 8)
    + (72 * 16 + 16)
    + 3 * (144 * 16 + 16)
    + (8 * 16 + 16)
    + (1024 * 100 + 100)
    + (100 * 10 + 10),
    "cifar-resnet4b": (27 * 16 + 16)
    + (144 * 32 + 32)
    + 7 * (288 * 32 + 32)
    + (16 * 32 + 32)
    + (32 * 32 + 32)
    + (512 * 100 + 100)
    + (100 * 10 + 10),
    "mnist-lenet5": (9 * 32 + 32) + (9 * 32 * 64 + 64) + (3136 * 200 + 200) + (200 * 10 + 10),
}


@pytest.mark.parametrize("name", PARAMETERS)
def test_a_paper_s_network_has_the_paper_s_parameters(name):
    assert sum(parameter.numel() for parameter in PAPER_MODELS[name].factory().parameters()) == PARAMETERS[name]


def test_the_rectgrad_cnn_starts_as_tensorflow_s():
    model = load_model("cifar-cnn").model
    assert not model.conv1.bias.any()
    bound = math.sqrt(6 / (4096 + 256))
    assert 0.999 * bound < model.linear1.weight.abs().max() <= bound


def test_the_selu_net_has_no_relu():
    assert not [module for module in load_model("selu-cnn").model.modules() if isinstance(module, nn.ReLU)]


def test_the_shapes_net_reduces_by_strided_convolutions_alone():
    model = load_model("shapes-resnet").model
    strided = [name for name, m in model.named_modules() if isinstance(m, nn.Conv2d) and m.stride == (2, 2)]
    assert strided == [
        "conv1",
        "layer2.0.conv1",
        "layer2.0.downsample.0",
        "layer3.0.conv1",
        "layer3.0.downsample.0",
    ]
    assert not [m for m in model.modules() if isinstance(m, nn.MaxPool2d | nn.AvgPool2d)]
    sides = []
    for stage in (model.layer1, model.layer2, model.layer3):
        stage.register_forward_hook(lambda module, inputs, output: sides.append(output.shape[-1]))
    model(torch.zeros(1, 3, 64, 64))
    assert sides == [32, 16, 8]


@pytest.mark.slow
def test_the_bundled_weights_are_as_good_as_they_say():
    loaded = load_model("shapes-resnet")
    facts = json.loads(zoo.BUNDLED["shapes-resnet"].with_suffix(".json").read_text())
    assert facts["accuracy"] >= 0.97
    assert facts["training"]["seed"] == 0
    assert (loaded.classes, loaded.weights) == (SHAPE_NAMES, "bundled")
    assert accuracy(loaded.model, ShapesDataset(400, seed=3), loaded.preprocess) >= 0.96
    assert zoo.BUNDLED["shapes-resnet"].stat().st_size < 2e6


# Preprocessing.


def test_imagenet_s_preprocessing_is_torchvision_s():
    preset = torchvision.models.ResNet18_Weights.IMAGENET1K_V1.transforms()
    _, preprocess = load_model("resnet18")
    assert preprocess == IMAGENET
    assert torch.equal(preprocess(picture()), preset(picture()))


def test_inception_has_its_own_crop():
    _, preprocess = load_model("inception_v3")
    assert (preprocess.resize, preprocess.crop) == (342, 299)
    assert preprocess(picture()).shape == (3, 299, 299)


def test_display_is_the_input_before_normalisation():
    preprocess = Preprocess(32, 24, (0.5, 0.4, 0.3), (0.2, 0.3, 0.4))
    shown = torch.from_numpy(np.array(preprocess.display(picture()))).permute(2, 0, 1) / 255
    assert torch.equal(preprocess(picture()), preprocess.normalize(shown))
    assert preprocess.display(picture()).size == (24, 24)


def test_grey_networks_see_one_channel():
    _, preprocess = load_model("sanity-cnn")
    white = preprocess(Image.new("RGB", (28, 28), "white"))
    assert white.shape == (1, 28, 28)
    assert white.unique().item() == pytest.approx((1 - 0.1307) / 0.3081)
    assert (preprocess.mean, preprocess.std) == ((0.1307,), (0.3081,))


def test_preprocessing_survives_json():
    preprocess = Preprocess((40, 50), None, (0.5,), (0.25,), 1, "bicubic")
    assert Preprocess.from_dict(json.loads(json.dumps(preprocess.as_dict()))) == preprocess
    with pytest.raises(InvalidParameter, match="unknown setting 'scales'"):
        Preprocess.from_dict({"scales": 2})


def test_a_preprocess_takes_lists_and_numbers_of_numpy():
    given = Preprocess([40, 50], None, [np.float32(0.5)], [0.25], np.int64(1), scale=[0, 4000])
    assert given == Preprocess((40, 50), None, (0.5,), (0.25,), 1, scale=(0, 4000))
    assert hash(given) == hash(Preprocess((40, 50), None, (0.5,), (0.25,), 1, scale=(0, 4000)))
    with pytest.raises(InvalidParameter, match=r"mean is 0.5; give a tuple, such as \(1,\)"):
        Preprocess(mean=0.5, std=(1.0,), channels=1)


@pytest.mark.parametrize(
    "settings",
    [
        {"channels": 0},
        {"channels": 2},
        {"mean": None},
        {"mean": (0.5,)},
        {"std": (1.0, 0.0, 1.0)},
        {"std": (1.0,)},
    ],
)
def test_preprocessing_that_does_not_fit_is_refused(settings):
    with pytest.raises(InvalidParameter, match="Preprocess"):
        Preprocess(**settings)


# Weights from files.


@pytest.fixture(scope="module")
def trained():
    """A state dict of three classes, standing in for a fine-tuned network."""
    return load_model(SMALL, classes=3, seed=7).model.state_dict()


def written(state, path):
    if ".safetensors" in path.name:
        content = safetensors.torch.save({name: tensor.contiguous() for name, tensor in state.items()})
    else:
        torch.save(state, stream := io.BytesIO())
        content = stream.getvalue()
    path.write_bytes(gzip.compress(content, 1) if path.suffix == ".gz" else content)
    return path


@pytest.mark.parametrize(
    "name",
    ["w.safetensors", "w.safetensors.gz", "w.pth", "w.pt", "w.pth.gz", "w.pt.gz", "w.ckpt.gz", "w.bin", "w.tar"],
)
def test_a_file_decides_the_number_of_classes(tmp_path, trained, name):
    loaded = load_model(SMALL, weights=written(trained, tmp_path / name))
    assert loaded.model.classifier[1].out_channels == 3
    assert all(torch.equal(tensor, trained[key]) for key, tensor in loaded.model.state_dict().items())
    assert loaded.weights == str(tmp_path / name)
    assert loaded.classes is None


def test_what_is_assumed_of_a_file_of_weights_is_told(tmp_path, trained):
    """Names and preprocess are ImageNet's only as long as nobody says otherwise."""
    tuned, whole = written(trained, tmp_path / "lung.pth"), tmp_path / "plants.pth"
    written(load_model(SMALL, seed=7).model.state_dict(), whole)
    [told] = of_model(load_model(SMALL, tuned, classes=("a", "b", "c")))
    assert told == (
        f"lung.pth tells no preprocess, and its classes are not {SMALL}'s own: photos are resized to 256, cropped "
        "to 224 and normalized as ImageNet's; say otherwise by --preprocess whole, none or FILE.py:NAME"
    )
    assert not [*of_model(load_model(SMALL, tuned).seeing("none"))]
    [told] = of_model(load_model(SMALL, whole))
    expected = "plants.pth tells no class names: its 1000 classes are taken for ImageNet's; --classes names others"
    assert told == expected
    assert not [*of_model(load_model(SMALL, whole, classes=[f"plant {number}" for number in range(1000)]))]
    facts = {"classes": ["a", "b", "c"], "preprocess": Preprocess(64, 64).as_dict()}
    save_weights(load_model(SMALL, tuned).model, tmp_path / "lung.safetensors", facts)
    assert not [*of_model(load_model(SMALL, tmp_path / "lung.safetensors"))]


@pytest.mark.parametrize(
    "wrap",
    [
        lambda state: {"state_dict": state, "epoch": 3},
        lambda state: {"model": state},
    ],
)
def test_checkpoints_of_training_scripts_are_unwrapped(tmp_path, trained, wrap):
    model, _ = load_model(SMALL, weights=written(wrap(trained), tmp_path / "w.pth"))
    assert torch.equal(model.features[0].weight, trained["features.0.weight"])


@pytest.mark.parametrize("prefixes", [["module."], ["module.", "_orig_mod."]])
def test_prefixes_that_are_taken_off_are_said(tmp_path, trained, prefixes):
    state = {f"{''.join(prefixes)}{key}": value for key, value in trained.items()}
    with pytest.warns(WeightsWarning) as caught:
        model, _ = load_model(SMALL, weights=written({"state_dict": state}, tmp_path / "w.pth"))
    assert [str(one.message).partition(": ")[2] for one in caught] == [
        f"took {prefix!r} off the weights' names" for prefix in prefixes
    ]
    assert torch.equal(model.features[0].weight, trained["features.0.weight"])


def test_what_old_and_official_files_differ_in_is_forgiven(tmp_path):
    net = load_model("cifar-resnet18", seed=1).model
    state = {key: value for key, value in net.state_dict().items() if not key.endswith("num_batches_tracked")}
    loaded = load_model("cifar-resnet18", weights=written(state, tmp_path / "old.pth")).model
    assert torch.equal(loaded.fc.weight, net.fc.weight)
    state = load_model("googlenet", classes=4).model.state_dict() | {"aux1.fc1.weight": torch.zeros(2, 2)}
    assert load_model("googlenet", weights=written(state, tmp_path / "aux.pth")).model.fc.out_features == 4


def test_old_densenet_names_are_renamed():
    from pellucid.models.weights import plain_names

    state = {
        "features.denseblock1.denselayer2.norm.1.weight": torch.zeros(1),
        "features.norm0.weight": torch.zeros(1),
    }
    assert list(plain_names(state, pathlib.Path("old.pth"))) == [
        "features.denseblock1.denselayer2.norm1.weight",
        "features.norm0.weight",
    ]


def test_weights_of_another_network_name_the_differences(tmp_path, trained):
    state = dict(trained) | {"extra.weight": torch.zeros(2)}
    del state["features.0.weight"]
    state["features.3.squeeze.weight"] = torch.zeros(16, 64, 3, 3)
    with pytest.raises(InvalidWeights) as error:
        load_model(SMALL, weights=written(state, tmp_path / "w.pth"))
    message = str(error.value)
    assert "missing: features.0.weight;" in message
    assert "unexpected: extra.weight;" in message
    assert "features.3.squeeze.weight is (16, 64, 3, 3) instead of (16, 64, 1, 1)" in message
    assert "The file has 52 tensors" in message
    assert f"{SMALL} 52 of 724,035" in message


def test_at_most_three_differences_are_named(tmp_path):
    with pytest.raises(InvalidWeights, match=r"missing: .*, .*, .*, \.\.\. \(49 more\)"):
        load_model(SMALL, weights=written({"a": torch.zeros(1)}, tmp_path / "w.pth"))


class Harmless:
    """Any class of a user's own: loading it would run code."""


BAD_FILES = {
    "empty.safetensors": (b"", "is empty"),
    "empty.pth": (b"", "is empty"),
    "text.pth": (b"hello, no pickle", "plain tensors|broken"),
    "text.safetensors": (b"hello, no safetensors", "broken"),
    "text.safetensors.gz": (b"not gzip", "Not a gzipped file"),
    "image.jpg": (b"x", "must be a .safetensors"),
}


@pytest.mark.parametrize("name", BAD_FILES)
def test_files_that_hold_no_weights_are_refused(tmp_path, name):
    content, cause = BAD_FILES[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InvalidWeights, match=cause) as error:
        load_model("sanity-cnn", weights=tmp_path / name)
    assert str(tmp_path / name) in str(error.value)


@pytest.mark.parametrize("name", ["w.safetensors", "w.safetensors.gz", "w.pth"])
def test_truncated_files_are_refused(tmp_path, trained, name):
    path = written(trained, tmp_path / name)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(InvalidWeights, match="cut short"):
        load_model(SMALL, weights=path)


def test_a_missing_file_is_refused(tmp_path):
    with pytest.raises(InvalidWeights, match=r"there is no weights file .*absent.pth"):
        load_model("sanity-cnn", weights=str(tmp_path / "absent.pth"))


@pytest.mark.parametrize(
    ("content", "cause"),
    [
        (Harmless(), "plain tensors"),
        ({"a": 3}, "'a' is int, no tensor"),
        ([torch.zeros(1)], "no tensors by name"),
        ({}, "no tensors by name"),
    ],
)
def test_pickles_of_anything_but_tensors_are_refused(tmp_path, content, cause):
    torch.save(content, tmp_path / "w.pth")
    with pytest.raises(InvalidWeights, match=cause):
        load_model("sanity-cnn", weights=tmp_path / "w.pth")


def pickled(name, *arguments):
    """A pickle that calls what has the name, as files before ZIP archives begin."""
    return b"c" + "\n".join(name.rsplit(".", 1)).encode() + b"\n(" + b"".join(arguments) + b"tR."


WHOLE_NUMBER = b"J" + (2**31 - 1).to_bytes(4, "little")
OF_ANY_SIZE = {
    "bytes": pickled("__builtin__.bytearray", WHOLE_NUMBER),
    "storage": pickled("torch.UntypedStorage", WHOLE_NUMBER),
    "digits": pickled("_codecs.encode", b"C\x01a", b"X\x03\0\0\0hex"),
    "repeated": pickled("torch._utils._rebuild_device_tensor_from_cpu_tensor"),
    "second": b"N." + pickled("__builtin__.bytearray", WHOLE_NUMBER),
}


@pytest.mark.parametrize("kind", OF_ANY_SIZE)
@pytest.mark.parametrize("archived", [False, True])
def test_pickles_that_state_a_size_are_refused_before_memory_is_taken(tmp_path, kind, archived):
    path = tmp_path / "w.pth"
    path.write_bytes(OF_ANY_SIZE[kind])
    if archived:
        with zipfile.ZipFile(path, "w") as archive:
            archive.writestr("w/data.pkl", OF_ANY_SIZE[kind].removeprefix(b"N."))
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    cause = (
        "run code on loading|is broken or cut short"
        if kind == "storage"
        else r"more than plain tensors \(.*any amount of memory"
    )
    with pytest.raises(InvalidWeights, match=cause):
        read_state_dict(path)
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 100 << 10


def test_plain_bytes_beside_the_weights_are_no_harm(tmp_path):
    torch.save({"state_dict": {"a": torch.zeros(1)}, "note": b"seven"}, tmp_path / "w.pth")
    assert read_state_dict(tmp_path / "w.pth").keys() == {"a"}


@pytest.mark.parametrize("name", ["w.pth", "w.safetensors", "w.pth.gz"])
def test_pipes_devices_and_folders_are_no_weights(irregular, name):
    with pytest.raises(InvalidWeights, match=rf"{name} is no regular file, as a weights file must be"):
        load_model("sanity-cnn", weights=irregular(name))


def test_pipes_devices_and_folders_are_no_class_names_and_no_facts(irregular):
    path = irregular("w.json")
    with pytest.raises(InvalidParameter, match=r"w.json holds no class names .*(regular file|Is a directory)"):
        read_class_names(str(path))
    with pytest.raises(InvalidWeights, match=r"w.json, beside the weights, .*(regular file|Is a directory)"):
        read_facts(path.with_suffix(".pth"))


def test_a_class_may_be_called_as_a_folder_is(tmp_path, monkeypatch):
    (tmp_path / "cat").mkdir()
    monkeypatch.chdir(tmp_path)
    assert read_class_names("cat") == ("cat",)


def test_files_of_names_and_facts_are_bounded(tmp_path, monkeypatch):
    (tmp_path / "w.json").write_text(" " * 1001)
    monkeypatch.setenv("PELLUCID_MAX_TEXT", "1000")
    with pytest.raises(InvalidParameter, match=r"w.json has 1,001 bytes, .*PELLUCID_MAX_TEXT"):
        read_class_names(str(tmp_path / "w.json"))
    with pytest.raises(InvalidWeights, match=r"w.json has 1,001 bytes, .*PELLUCID_MAX_TEXT"):
        read_facts(tmp_path / "w.pth")


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_not_finite_are_refused(tmp_path, trained, value):
    state = dict(trained)
    state["features.0.bias"] = torch.full((64,), value)
    with pytest.raises(InvalidWeights, match=r"w.safetensors: features.0.bias holds NaN or infinite"):
        load_model(SMALL, weights=written(state, tmp_path / "w.safetensors"))


def test_classes_that_do_not_fit_the_file_are_refused(tmp_path, trained):
    with pytest.raises(InvalidParameter, match=r"classes=2, but squeezenet1_1 .* has 3 outputs; leave") as caught:
        load_model(SMALL, weights=written(trained, tmp_path / "w.pth"), classes=["a", "b"])
    assert caught.value.command.startswith("--classes names 2, but squeezenet1_1 with weights ")
    assert caught.value.command.endswith("leave out --classes, or give --weights FILE of a network of 2 classes")
    with pytest.raises(InvalidParameter, match="give weights of as many"):
        load_model("shapes-resnet", classes=3)
    assert load_model("shapes-resnet", weights="random", classes=3).model.fc.out_features == 3


def test_broken_facts_beside_the_weights_are_refused(tmp_path, trained):
    (tmp_path / "w.json").write_text("{")
    with pytest.raises(InvalidWeights, match=r"w.json, beside the weights, cannot be trusted"):
        load_model(SMALL, weights=written(trained, tmp_path / "w.pth"))


# Weights by name.


def test_a_download_that_fails_says_so(monkeypatch):
    def unreachable(self, **settings):
        raise OSError("Name or service not known")

    monkeypatch.setattr(torchvision.models.WeightsEnum, "get_state_dict", unreachable)
    with pytest.raises(InvalidWeights, match=r"cannot download DEFAULT of resnet18 from https://.*give the file"):
        load_model("resnet18", weights="DEFAULT")


def test_named_weights_bring_their_preprocessing_and_classes(monkeypatch):
    state = torchvision.models.resnet18().state_dict()
    monkeypatch.setattr(torchvision.models.WeightsEnum, "get_state_dict", lambda self, **settings: state)
    loaded = load_model("resnet18", weights="ResNet18_Weights.IMAGENET1K_V1")
    assert torch.equal(loaded.model.fc.weight, state["fc.weight"])
    assert (loaded.preprocess, loaded.classes[:2]) == (IMAGENET, ("tench", "goldfish"))


def test_unknown_weights_are_refused():
    with pytest.raises(UnknownName, match="weights of resnet18 'IMAGENET1K_V7'; did you mean IMAGENET1K_V1"):
        load_model("resnet18", weights="IMAGENET1K_V7")
    with pytest.raises(InvalidWeights, match="sanity-cnn has no weights named 'DEFAULT'"):
        load_model("sanity-cnn", weights="DEFAULT")


# Other places for networks.


def test_unknown_names_have_near_ones():
    with pytest.raises(UnknownName, match=r"did you mean resnet18.*own is path/to/file.py:function"):
        load_model("resnet-18")


def test_a_device_that_is_not_there_is_refused():
    with pytest.raises(InvalidParameter, match=r"device='nowhere' cannot be used .*; give 'cpu'") as refused:
        load_model("selu-cnn", device="nowhere")
    assert refused.value.command.startswith("--device nowhere cannot be used (")
    assert refused.value.command.endswith("; leave out --device to compute on the processor")


FILE = """
import torch
from neighbour import WIDTH
from torchvision import transforms

{preprocess}

def net():
    return torch.nn.Sequential(torch.nn.Conv2d(3, WIDTH, 3), torch.nn.Flatten(), torch.nn.Linear(WIDTH * 4, 2))

class Sized(torch.nn.Module):
    def __init__(self, width):
        super().__init__()

made = torch.nn.ReLU()

def compiled():
    return torch.jit.trace(net(), torch.zeros(1, 3, 4, 4))

def nothing():
    return None

def failing():
    raise RuntimeError("out of cheese")
"""


@pytest.fixture
def model_file(tmp_path):
    (tmp_path / "neighbour.py").write_text("WIDTH = 5")
    path = tmp_path / "mine.py"
    path.write_text(FILE.format(preprocess=""))
    return path


def test_a_file_s_function(model_file):
    loaded = load_model(f"{model_file}:net", classes=["a", "b"])
    assert loaded.model[0].out_channels == 5
    assert (loaded.preprocess, loaded.classes) == (IMAGENET, ("a", "b"))
    path = written(loaded.model.state_dict(), model_file.parent / "w.safetensors")
    again = load_model(f"{model_file}:net", weights=path, seed=1)
    assert torch.equal(again.model[2].weight, loaded.model[2].weight)


def test_a_file_s_own_preprocess(model_file):
    function = "preprocess = lambda image: transforms.ToTensor()(transforms.Resize((4, 4))(image))"
    model_file.write_text(FILE.format(preprocess=function))
    loaded = load_model(f"{model_file}:net")
    assert isinstance(loaded.preprocess, CustomPreprocess)
    assert loaded.model(loaded.preprocess(picture())[None]).shape == (1, 2)
    assert loaded.preprocess.display(picture()).size == (4, 4)
    with pytest.raises(InvalidImage, match="must return a tensor"):
        CustomPreprocess(lambda image: 3)(picture())


@pytest.mark.parametrize(
    ("function", "error", "cause"),
    [
        (":nett", UnknownName, "did you mean net"),
        ("", InvalidModel, "names no function"),
        (
            ":Sized",
            InvalidModel,
            r"Sized in .*mine.py is called without arguments, and width has no default: write "
            r"'def network\(\): return Sized\(width=...\)' there, and name network, or what needs no .*net",
        ),
        (":made", InvalidModel, r"made in .*mine.py is a model, .*write 'def network\(\): return made'"),
        (":nothing", InvalidModel, "returned NoneType"),
        (":failing", InvalidModel, "RuntimeError: out of cheese"),
    ],
)
def test_a_file_without_a_network_is_refused(model_file, function, error, cause):
    with pytest.raises(error, match=cause):
        load_model(f"{model_file}{function}")


def test_only_functions_that_make_a_network_by_themselves_are_named(tmp_path):
    path = tmp_path / "mine.py"
    imports = "from torch import nn\nfrom torchvision.models import ResNet, resnet18\n"
    path.write_text(f"{imports}\nnet = nn.ReLU()\n")
    with pytest.raises(InvalidModel, match=r"has no function network; net is a model, .*return net"):
        load_model(f"{path}:network")
    path.write_text(f"{path.read_text()}\n\ndef make(width=3):\n    return net\n")
    with pytest.raises(UnknownName, match=r"unknown function in .* 'network'; known: make$"):
        load_model(f"{path}:network")
    path.write_text("from torch import nn\n\nnetwork = nn.ReLU()\n")
    with pytest.raises(InvalidModel, match=r"write 'def made\(\): return network' there, and name made"):
        load_model(f"{path}:network")


def test_a_file_that_is_missing_or_broken_is_refused(tmp_path):
    with pytest.raises(InvalidModel, match="there is no model file"):
        load_model(f"{tmp_path}/absent.py:net")
    (tmp_path / "broken.py").write_text("import no_such_thing")
    with pytest.raises(InvalidModel, match=r"running .*broken.py failed: ModuleNotFoundError"):
        load_model(f"{tmp_path}/broken.py:net")


def test_reasons_and_the_line_of_a_model_file_that_fails_are_told(tmp_path):
    """PyTorch's first line announces what is wrong, and its last frames are its own."""
    net = "net = nn.Linear(2, 3)\nnet.load_state_dict(nn.Linear(4, 3, bias=False).state_dict())"
    told = r"state_dict for Linear: Missing key.*bias.* size mismatch for weight.* \(line {}\)$"
    (tmp_path / "loaded.py").write_text(f"from torch import nn\n{net}\n")
    with pytest.raises(InvalidModel, match=told.format(3)):
        load_model(f"{tmp_path}/loaded.py:net")
    inside = net.replace("\n", "\n    ")
    (tmp_path / "made.py").write_text(f"from torch import nn\n\n\ndef make():\n    {inside}\n")
    with pytest.raises(InvalidModel, match=told.format(6)):
        load_model(f"{tmp_path}/made.py:make")


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.filterwarnings("ignore::FutureWarning")
def test_torchscript_is_refused_wherever_it_comes_from(model_file):
    with pytest.raises(InvalidModel, match="TorchScript module; rules cannot see"):
        load_model(f"{model_file}:compiled")
    path = model_file.parent / "scripted.pt"
    torch.jit.trace(nn.Linear(2, 2), torch.zeros(1, 2)).save(path)
    with pytest.raises(InvalidModel, match="TorchScript file; rules cannot see"):
        load_model(str(path))
    with pytest.raises(InvalidModel, match="TorchScript file; rules cannot see"):
        load_model("sanity-cnn", weights=path)


def test_timms_weights_of_imagenet_have_its_names_and_random_ones_none(tmp_path):
    pytest.importorskip("timm")
    loaded = load_model("timm:mobilenetv3_small_050.lamb_in1k")
    assert loaded.classes is None
    path = written(dict(loaded.model.state_dict()), tmp_path / "w.pth")
    assert load_model("timm:mobilenetv3_small_050.lamb_in1k", path).class_name(207) == "golden retriever"
    fewer = load_model("timm:mobilenetv3_small_050.lamb_in1k", classes=5).model.state_dict()
    path = written(dict(fewer), tmp_path / "five.pth")
    assert load_model("timm:mobilenetv3_small_050.lamb_in1k", path).classes is None


def test_a_name_of_timms_is_told_as_such():
    pytest.importorskip("timm")
    with pytest.raises(UnknownName, match=r"did you mean timm:tf_efficientnet_lite0\?"):
        load_model("tf_efficientnet_lite0")


def test_timm():
    pytest.importorskip("timm")
    model, preprocess = load_model("timm:resnet18.a1_in1k", classes=3)
    assert model.fc.out_features == 3
    assert (preprocess.resize, preprocess.crop, preprocess.interpolation) == (235, 224, "bicubic")
    with pytest.raises(UnknownName, match="unknown timm model"):
        load_model("timm:resnet1888")


def test_an_image_that_timm_fills_up_at_its_border_is_not_cropped():
    timm = pytest.importorskip("timm")
    described = timm.get_pretrained_cfg("resnet18.a1_in1k").to_dict() | {"crop_mode": "border"}
    config = timm.data.resolve_data_config(pretrained_cfg=described)
    image = Image.effect_noise((400, 97), 50).convert("RGB")
    assert torch.equal(_timm_preprocess(described)(image), timm.data.create_transform(**config)(image))


def test_timm_missing_says_how_to_install_it(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "timm", None)
    with pytest.raises(InvalidModel, match=r"pip install 'pellucid\[timm\]'"):
        load_model("timm:resnet18")


# Real weights.


@pytest.mark.slow
def test_real_weights_score_as_they_should(real_data):
    weights = real_data / "weights" / "resnet18-imagenet.safetensors.gz"
    loaded = load_model("resnet18", weights=pathlib.Path(weights))
    assert loaded.classes[:2] == ("tench", "goldfish")
    rows = open_images(real_data / "data" / "imagenette" / "val.parquet", label_column="imagenet_label")[::20]
    with torch.inference_mode():
        logits = loaded.model(torch.stack([loaded.preprocess(sample.image) for sample in rows]))
    right = (logits.argmax(1) == torch.tensor([sample.label for sample in rows])).float().mean()
    assert right == pytest.approx(0.66, abs=0.12)  # 50 images; 0.662 over 500


# Names of weights, and of classes.


@pytest.mark.parametrize("prefix", ["model.", "backbone.", "module.model.", "net."])
def test_prefixes_of_checkpoints_are_taken_off_and_said(tmp_path, prefix):
    model = load_model("selu-cnn", seed=3).model
    state = {f"{prefix}{name}": value for name, value in model.state_dict().items()}
    state["criterion.weight"] = torch.ones(10)
    torch.save({"epoch": 3, "state_dict": state, "hyper_parameters": {"lr": 0.1}}, tmp_path / "last.ckpt")
    with pytest.warns(
        WeightsWarning, match=rf"took '{prefix}' off the weights' names; left out: criterion.weight"
    ):
        found = load_model("selu-cnn", tmp_path / "last.ckpt").model
    assert all(torch.equal(value, found.state_dict()[name]) for name, value in model.state_dict().items())


def test_a_prefix_is_put_before_where_the_model_holds_the_network(model_file):
    state = load_model(f"{model_file}:net").model.state_dict()
    path = written(state, model_file.parent / "w.safetensors")
    holding = "\nclass Held(torch.nn.Module):\n    def __init__(self):\n        super().__init__()\n"
    holding += "        self.body = net()\n"
    model_file.write_text(FILE.format(preprocess="") + holding)
    with pytest.warns(WeightsWarning, match="put 'body.' before"):
        found = load_model(f"{model_file}:Held", path).model
    assert torch.equal(found.body[2].weight, state["2.weight"])


def test_a_prefix_is_taken_off_where_the_model_holds_all_in_one_module(model_file):
    """That prefix and the module's may also go both, and the module's be put before: the same weights, one way."""
    holding = "\nclass Held(torch.nn.Module):\n    def __init__(self):\n        super().__init__()\n"
    holding += "        self.body = torch.nn.Sequential(net())\n"
    model_file.write_text(FILE.format(preprocess="") + holding)
    state = load_model(f"{model_file}:Held").model.state_dict()
    path = written({f"model.{name}": value for name, value in state.items()}, model_file.parent / "w.safetensors")
    with pytest.warns(WeightsWarning, match=r"took 'model\.' off the weights' names"):
        found = load_model(f"{model_file}:Held", path).model
    assert all(torch.equal(value, found.state_dict()[name]) for name, value in state.items())


def test_a_prefix_is_replaced_where_the_model_holds_the_network_under_another(model_file):
    state = load_model(f"{model_file}:net").model.state_dict()
    path = written({f"model.{name}": value for name, value in state.items()}, model_file.parent / "w.safetensors")
    holding = "\ndef held():\n    return torch.nn.Sequential(net(), torch.nn.Identity())\n"
    model_file.write_text(FILE.format(preprocess="") + holding)
    with pytest.warns(WeightsWarning, match=r"took 'model\.' off and put '0\.' before the weights' names"):
        found = load_model(f"{model_file}:held", path).model
    assert torch.equal(found[0][2].weight, state["2.weight"])


@pytest.mark.parametrize("prefix", ["", "model."])
def test_weights_of_another_number_of_classes_are_told_by_it(model_file, tmp_path, prefix):
    state = load_model(f"{model_file}:net").model.state_dict()
    *_, weight, bias = state
    count = len(state[bias])
    state |= {weight: state[weight].repeat(3, 1), bias: state[bias].repeat(3)}
    path = written({f"{prefix}{name}": value for name, value in state.items()}, tmp_path / "six.safetensors")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", WeightsWarning)
        with pytest.raises(InvalidWeights) as caught:
            load_model(f"{model_file}:net", path)
    assert "missing" not in str(caught.value)
    assert f"{weight} is (6, " in str(caught.value)
    told = f"the file is of a network of 6 outputs, {model_file}:net has {count}: build it with as many"
    assert told in str(caught.value)


def test_prefixes_that_do_not_fit_exactly_are_refused(tmp_path):
    state = load_model("selu-cnn").model.state_dict()
    both = {f"{prefix}{name}": value.clone() for prefix in ("model.", "average.") for name, value in state.items()}
    with pytest.raises(InvalidWeights, match=r"after each of 'average\.', 'model\.' fit"):
        load_model("selu-cnn", written(both, tmp_path / "both.safetensors"))
    short = {f"model.{name}": value for name, value in list(state.items())[:-1]}
    with pytest.raises(InvalidWeights, match="does not fit selu-cnn"):
        load_model("selu-cnn", written(short, tmp_path / "short.safetensors"))


@pytest.mark.parametrize("beside", ["model_ema", "best_model", "net", "callbacks"])
def test_other_weights_of_the_same_names_are_told(tmp_path, beside):
    mean, last = (load_model("selu-cnn", seed=seed).model.state_dict() for seed in (2, 3))
    other = {"n_averaged": torch.tensor(3)} | {f"module.{name}": value for name, value in mean.items()}
    nested = {"averaging": {"state": mean}} if beside == "callbacks" else other
    optimizer = {"state": {0: {"exp_avg": torch.ones(3)}}}
    torch.save({"model": last, beside: nested, "optimizer": optimizer}, tmp_path / "w.pth")
    with pytest.warns(
        WeightsWarning, match=rf"took the weights under 'model'; those .* under '{beside}' are left"
    ):
        found = load_model("selu-cnn", tmp_path / "w.pth").model
    assert torch.equal(found.conv1.weight, last["conv1.weight"])


def test_two_values_of_what_the_network_shares_are_refused(model_file):
    tied = "\ndef tied():\n    model = torch.nn.Sequential(torch.nn.Conv2d(3, 3, 1), torch.nn.Conv2d(3, 3, 1))\n"
    tied += "    model[1].weight = model[0].weight\n    return model\n"
    model_file.write_text(FILE.format(preprocess="") + tied)
    values = {f"{part}.weight": torch.full((3, 3, 1, 1), 1.0) for part in (0, 1)}
    state = values | {f"{part}.bias": torch.zeros(3) for part in (0, 1)}
    found = load_model(f"{model_file}:tied", written(state, model_file.parent / "same.safetensors")).model
    assert bool((found[0].weight == 1).all())
    state["0.weight"] = torch.full((3, 3, 1, 1), 2.0)
    with pytest.raises(
        InvalidWeights, match=r"0\.weight and 1\.weight are one tensor there, and two with different"
    ):
        load_model(f"{model_file}:tied", written(state, model_file.parent / "other.safetensors"))


def test_names_of_another_number_of_classes_name_no_target(model_file):
    images = torch.randn(2, 3, 4, 4)
    for names in (("cat", "dog", "cow"), tuple("abcdefghijk")):
        loaded = load_model(f"{model_file}:net", classes=names)
        count = loaded.model(images).shape[1]
        assert len(names) != count
        assert pl.method("gradient")(loaded, images, 1).targets.tolist() == [1, 1]
        for target in (names[1], f"{names[0]} - {names[1]}", [names[1], 0], pl.Difference(names[0], 1)):
            with pytest.raises(InvalidTarget, match=rf"{len(names)} classes are named, and the model has {count}"):
                pl.method("gradient")(loaded, images, target)


def test_nested_dicts_of_weights(tmp_path):
    state = load_model("selu-cnn", seed=2).model.state_dict()
    torch.save({"model": {"state_dict": state}, "epoch": 1}, tmp_path / "w.pth")
    assert torch.equal(load_model("selu-cnn", tmp_path / "w.pth").model.conv1.weight, state["conv1.weight"])


def test_a_file_tells_its_classes_and_where_its_logits_are(model_file):
    more = "\nclasses = ['no', 'yes']\noutput = 'scores'\nclass Told(torch.nn.Module):\n"
    more += "    def __init__(self):\n        super().__init__()\n        self.body = net()\n"
    more += "    def forward(self, x):\n        return {'scores': self.body(x), 'other': x}\n"
    model_file.write_text(FILE.format(preprocess="") + more)
    loaded = load_model(f"{model_file}:Told")
    assert loaded.classes == ("no", "yes")
    images = torch.randn(2, 3, 4, 4)
    assert torch.equal(loaded.model(images), loaded.model.body(images))
    assert pl.method("gradient")(loaded, images, "yes").targets.tolist() == [1, 1]


def test_names_of_classes_from_a_file(tmp_path):
    (tmp_path / "names.txt").write_text("cat\ndog, hound\n\n")
    (tmp_path / "names.json").write_text('{"1": "dog", "0": "cat"}')
    assert load_model(SMALL, classes=[str(tmp_path / "names.txt")]).classes == ("cat", "dog, hound")
    assert load_model(SMALL, classes=str(tmp_path / "names.json")).classes == ("cat", "dog")
    (tmp_path / "names.json").write_text("[1")
    with pytest.raises(InvalidParameter, match="holds no class names"):
        load_model(SMALL, classes=str(tmp_path / "names.json"))
    with pytest.raises(InvalidParameter, match="two classes are called 'a'"):
        load_model(SMALL, classes=("a", "b", "a"))
    for text, why in (('{"1": "a", "7": "b"}', "not 0 to 1"), ('"abc"', "no list"), ("[" * 100_000, "")):
        (tmp_path / "names.json").write_text(text)
        with pytest.raises(InvalidParameter, match=f"holds no class names .*{why}"):
            load_model("shapes-resnet", classes=str(tmp_path / "names.json"))


def test_two_names_make_one_output_a_classifier(model_file):
    one = "\ndef one():\n    torch.manual_seed(0)\n"
    one += "    return torch.nn.Sequential(*net()[:2], torch.nn.Linear(WIDTH * 4, 1))"
    model_file.write_text(FILE.format(preprocess="") + one)
    images = torch.randn(3, 3, 4, 4)
    logit = load_model(f"{model_file}:one").model(images)
    loaded = load_model(f"{model_file}:one", classes=("benign", "malignant"))
    assert torch.allclose(loaded.model(images).softmax(1)[:, 1:], logit.sigmoid())
    found = pl.method("gradient")(loaded, images, ["benign", "malignant", "benign"])
    assert found.targets.tolist() == [0, 1, 0]


def test_packed_weights_are_bounded_while_they_are_unpacked(tmp_path, monkeypatch):
    network = nn.Linear(1000, 30)
    torch.save(network.state_dict(), tmp_path / "w.pth")
    packed = gzip.compress((tmp_path / "w.pth").read_bytes())
    bomb = tmp_path / "bomb.pth.gz"
    bomb.write_bytes(gzip.compress(bytes(10**7)))
    (tmp_path / "w.pth.gz").write_bytes(packed)
    monkeypatch.setenv("PELLUCID_MAX_UNPACKED", "100000")
    # Weights that pack as numbers do are of use whatever their size.
    assert read_state_dict(tmp_path / "w.pth.gz")["weight"].equal(network.weight)
    with pytest.raises(InvalidWeights, match=r"bomb.pth.gz holds 100,001 bytes .*PELLUCID_MAX_UNPACKED"):
        read_state_dict(bomb)


def test_weights_that_repeat_one_number_by_a_stride_of_0_are_refused(tmp_path):
    torch.save({"weight": torch.zeros(1).expand(10**6, 10**6)}, tmp_path / "w.pth")
    with pytest.raises(InvalidWeights, match="holds 4,000,000,000,000 bytes"):
        read_state_dict(tmp_path / "w.pth")


FACTS = {
    "a text for names": ({"classes": "abc"}, "classes is 'abc'; "),
    "numbers for names": ({"classes": [1, 2]}, "classes.0 is 1; input should be a valid string"),
    "a list for a preprocess": ({"preprocess": [1]}, r"preprocess is \[1\]; input should be a valid dict"),
    "a text for a number": ({"preprocess": {"crop": "9"}}, "Preprocess: crop is '9'; input should be a valid int"),
    "a crop of gigabytes": ({"preprocess": {"crop": 10**6}}, "crop=1000000 makes 1,000,000,000,000 pixels"),
    "no crop": ({"preprocess": {"crop": 0}}, "crop=0: give a whole number of at least 1"),
    "an infinite mean": ({"preprocess": {"mean": [1e999] * 3}}, "mean"),
    "a deep nest": ("[" * 100_000, "cannot be trusted"),
}


@pytest.mark.parametrize("name", FACTS)
def test_facts_of_a_wrong_kind_beside_weights_are_named(tmp_path, name):
    facts, message = FACTS[name]
    (tmp_path / "w.json").write_text(facts if isinstance(facts, str) else json.dumps(facts))
    with pytest.raises(InvalidWeights, match=f"w.json.*{message}"):
        read_facts(tmp_path / "w.safetensors")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "file", "data", "known"),
    [
        ("cifar-resnet20", "cifar-resnet20", "cifar10", 0.832),  # known of 2 000 or 1 000 images of these files
        ("cifar-resnet56", "cifar-resnet56", "cifar10", 0.850),
        ("cifar-resnet2b", "cifar-resnet2b-robust", "cifar10", 0.688),
        ("cifar-resnet4b", "cifar-resnet4b-robust", "cifar10", 0.784),
        ("mnist-lenet5", "mnist-lenet5-robust", "mnist", 0.981),
    ],
)
def test_released_weights_fit_and_know_their_images(real_data, name, file, data, known):
    model, preprocess = load_model(name, real_data / f"weights/{file}.safetensors")
    images = load_images(open_images(real_data / f"data/{data}/test.parquet")[:500], preprocess.display)
    assert accuracy(model, images, preprocess) == pytest.approx(known, abs=0.04)


@pytest.mark.slow
def test_robust_weights_withstand_what_plain_ones_do_not(real_data):
    images = open_images(real_data / "data/mnist/test.parquet")[:100]
    found = {}
    for kind in ("clean", "robust"):
        model, preprocess = load_model("mnist-lenet5", real_data / f"weights/mnist-lenet5-{kind}.safetensors")
        found[kind] = robust_accuracy(model, load_images(images, preprocess.display), preprocess, 0.3)
    assert found["clean"] < 0.1
    assert found["robust"] > 0.85


def test_the_shortcuts_of_cifar_resnets_are_smoothed_too():
    """Two slices and two strided convolutions; the stem has stride 1, and it is the first convolution."""
    model = load_model("cifar-resnet20").model
    met = []

    class Counting(pl.SmoothedDownsampling):
        def apply(self, operation, x, run):
            met.append(operation.name)
            return super().apply(operation, x, run)

    x = torch.randn(1, 3, 32, 32)
    with Rules([Counting()]), torch.no_grad():
        model(x)
    assert sorted(met) == ["conv2d", "conv2d", "slice", "slice"]


@pytest.mark.parametrize("image", [torch.zeros(3, 8, 8), "photo.jpg"])
@pytest.mark.parametrize("use", [IMAGENET, IMAGENET.display, CustomPreprocess(torch.as_tensor)])
def test_a_preprocess_takes_images_alone_and_says_so(image, use):
    with pytest.raises(InvalidImage, match=r"is (Tensor|str); give a Pillow image, an array.*normalize\(tensor\)"):
        use(image)


def test_a_missing_fourth_channel_is_told():
    four = Preprocess(resize=None, crop=None, mean=(0.5,) * 4, std=(0.5,) * 4, channels=4)
    photo = Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3))
    assert bool((four(photo)[3] == 1.0).all())  # (1 - 0.5) / 0.5
    assert "the network sees a constant 1 there" in four.recolored(photo)
    assert four.recolored(photo.convert("RGBA")) == ""


@pytest.mark.filterwarnings("ignore:Validating sparse")
def test_weights_that_are_no_plain_tensors_by_name_are_named(tmp_path):
    endless = {}
    endless["state_dict"] = endless
    for content, message in (
        ({1: torch.ones(1)}, "a tensor is called 1, which is no text"),
        ({"w": torch.ones(2, 2).to_sparse()}, "w has no plain values"),
        ({"w": torch.ones(1, device="meta")}, "w has no plain values"),
        (endless, "'state_dict' is dict, no tensor"),
    ):
        torch.save(content, tmp_path / "w.pth")
        with pytest.raises(InvalidWeights, match=message):
            read_state_dict(tmp_path / "w.pth")


def test_weights_of_8_bits_are_looked_through_for_nan(tmp_path):
    torch.save({"w": torch.tensor([1.0, math.nan]).to(torch.float8_e4m3fn)}, tmp_path / "w.pth")
    with pytest.raises(InvalidWeights, match="w holds NaN"):
        read_state_dict(tmp_path / "w.pth")


def test_a_class_beyond_the_names_goes_by_its_number():
    loaded = load_model("shapes-resnet", weights="bundled")
    assert loaded.class_name(0) == SHAPE_NAMES[0]
    assert loaded.class_name(100) == "class 100"


def test_a_preprocess_that_fails_is_named(model_file):
    model_file.write_text(FILE.format(preprocess="preprocess = lambda image: image.none_such"))
    with pytest.raises(InvalidImage, match="failed on a picture of 300 x 260: AttributeError"):
        load_model(f"{model_file}:net").preprocess(picture())


def test_a_preprocess_without_the_models_normalization_is_told():
    """The model's answers change with it; whole keeps it, and leaves the image's size alone."""

    def told(loaded):
        return [text for text in of_model(loaded) if "photos are" in text]

    loaded = load_model("resnet18", weights="random")
    whole = loaded.seeing("whole")
    assert (whole.preprocess.mean, whole.preprocess.std) == (loaded.preprocess.mean, loaded.preprocess.std)
    assert whole.preprocess(Image.new("RGB", (301, 257))).shape == (3, 257, 301)
    assert told(loaded) == told(whole) == []
    [left_out] = told(loaded.seeing("none"))
    assert left_out.startswith(
        "the model's own normalization is left out by preprocess none: photos are scaled to [0, 1]; say otherwise"
    )
    assert "--preprocess whole" in left_out
    custom = replace(loaded, preprocess=CustomPreprocess(pil_to_tensor))
    assert told(custom.seeing("none")) == []
    with pytest.raises(pl.PellucidError, match="'whole' is for a Preprocess"):
        custom.seeing("whole")


def test_pixels_are_singles_whatever_torchs_default_type():
    photo = Image.fromarray(np.arange(48, dtype=np.uint8).reshape(4, 4, 3))
    preprocess = pl.Preprocess(resize=None, crop=None, mean=None, std=None)
    torch.set_default_dtype(torch.bfloat16)
    try:
        found = preprocess(photo)
    finally:
        torch.set_default_dtype(torch.float32)
    expected = torch.arange(48, dtype=torch.float32).view(4, 4, 3).permute(2, 0, 1) / 255
    assert torch.equal(found, expected)
    assert found.is_contiguous()


def test_what_is_seen_is_called_as_on_the_command_line():
    loaded = load_model("shapes-resnet").seeing(display=(3, 2, 1))
    assert loaded.preprocess.bands == (3, 2, 1)
    assert loaded.seeing(display=[2]).preprocess.bands == (2,)
    with pytest.raises(UnknownName, match="argument of seeing 'bands'; known: display, preprocess, scale"):
        loaded.seeing(bands=(3, 2, 1))
    with pytest.raises(UnknownName, match="unknown argument of load_model 'clases'; did you mean classes"):
        load_model("shapes-resnet", clases=["a"])
    with pytest.raises(InvalidParameter, match="seeing: display"):
        loaded.seeing(display="3,2,1")


def test_a_loaded_model_answers_and_is_shown_briefly():
    loaded, images = load_model("shapes-resnet"), open_images("shapes:3")
    batch = torch.stack([loaded.preprocess(sample.image) for sample in images])
    assert torch.equal(loaded(batch), loaded.model(batch))
    assert "Conv2d" not in repr(loaded)
    assert repr(images) == f"<3 images: {', '.join(images.names)}>"
    with pytest.raises(pl.PellucidError, match=r"list of 3; give one at a time, such as torch.stack"):
        loaded.preprocess([sample.image for sample in images])
    with pytest.raises(pl.PellucidError, match=r"load it: pl.load_model\('resnet18'\)"):
        pl.Gradient()("resnet18", batch)


def test_images_of_two_wrong_scales_are_both_told():
    """Each kind is told once for a model: pixels before normalization, and bytes."""
    loaded = load_model("shapes-resnet")
    pixels = torch.rand(1, 3, 64, 64)
    for images, told in ((pixels, "before the model's normalization"), (255 * pixels, "values up to 25")):
        with pytest.warns(pl.InputWarning, match=told):
            pl.Gradient()(loaded, images, 0)
