"""What is told of models and images before their maps are looked at."""

import pytest

from pellucid.experiments.noticing import of_model
from pellucid.models.preprocess import IMAGENET, Preprocess
from pellucid.models.zoo import load_model
from pellucid.training.classifiers import save_weights

FILE = """
from torch import nn
from torchvision import models, transforms
import pellucid
from pellucid.models.preprocess import IMAGENET

{preprocess}

def net():
    return nn.Sequential(nn.Conv2d({channels}, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
"""
OWN = [  # of which each is what ImageNet's models have
    "preprocess = pellucid.Preprocess()",
    "preprocess = pellucid.Preprocess(resize=256, crop=224)",
    "from pellucid.models.preprocess import IMAGENET as preprocess",
    "preprocess = models.ResNet18_Weights.IMAGENET1K_V1.transforms()",
    "preprocess = transforms.Compose([transforms.Resize(256), transforms.CenterCrop(224), transforms.ToTensor(), "
    "transforms.Normalize(IMAGENET.mean, IMAGENET.std)])",
]


def assumptions(loaded):
    return [sentence for sentence in of_model(loaded) if "no preprocess" in sentence]


@pytest.fixture
def loaded_of(tmp_path):
    def load(preprocess="", channels=3, weights=None):
        path = tmp_path / "net.py"
        path.write_text(FILE.format(preprocess=preprocess, channels=channels))
        return load_model(f"{path}:net", weights)

    return load


@pytest.mark.parametrize("own", OWN)
def test_a_preprocess_of_the_file_is_not_called_assumed_whatever_it_is(loaded_of, own):
    loaded = loaded_of(own)
    assert loaded.preprocess == IMAGENET
    assert assumptions(loaded) == []


def test_a_preprocess_that_nobody_gave_is_told(loaded_of, tmp_path):
    loaded = loaded_of()
    done = "resized to 256, cropped to 224 and"
    [told] = assumptions(loaded)
    assert told.startswith(f"the model's file has no preprocess: photos are {done} normalized as ImageNet's; say")
    assert assumptions(loaded.at_size(64)) == [told.replace("256", "64").replace("224", "64")]
    assert assumptions(loaded.seeing(scale=(0, 4000))) == [told]
    assert assumptions(loaded.seeing("none")) == []
    [told] = assumptions(loaded_of(channels=2))
    assert told.startswith(f"the model's file has no preprocess: photos are {done} scaled to [0, 1]; say")
    save_weights(loaded_of().model, tmp_path / "own.safetensors", {"preprocess": IMAGENET.as_dict()})
    assert assumptions(loaded_of(weights=tmp_path / "own.safetensors")) == []


def test_a_files_own_preprocess_is_kept_for_other_channels(loaded_of):
    """What a file says is never replaced by what is assumed: here it does not fit, and is refused."""
    assert loaded_of("from pellucid.models.preprocess import IMAGENET as preprocess", 1).preprocess == IMAGENET
    assert loaded_of(channels=1).preprocess == Preprocess(mean=None, std=None, channels=1)
