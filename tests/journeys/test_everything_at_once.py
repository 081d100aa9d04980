"""A ResNet as ImageNet's, six methods at four layers under three variants."""

from pathlib import Path

from safetensors.torch import save_file

import pellucid as pl

from .person import facts, pictures, typed

METHODS = "gradient,smoothgrad(samples=2),integrated_gradients(steps=2),guided_backprop,deeplift,gradcam"
LAYERS = "layer1.1,layer2.1,layer3.1,layer4.1"
FILE = """
from torchvision.models import resnet18
from pellucid.models.preprocess import Preprocess

preprocess = Preprocess(resize=32, crop=32)


def network():
    return resnet18(num_classes=10)
"""


def test_all_maps_are_there_and_the_last_layer_has_no_lattice_to_remove() -> None:
    Path("imagenet.py").write_text(FILE)
    save_file(pl.load_model("imagenet.py:network").model.state_dict(), "weights.safetensors")
    pictures(1)[0].save("photo.png")
    said = typed(
        "pellucid explain photo.png --model imagenet.py:network --weights weights.safetensors "
        f"--methods '{METHODS}' --layers {LAYERS} --variant original --variant backward --variant forward -o maps"
    )
    assert "1 photo explained" in said
    maps = {path.relative_to("maps/maps/photo").as_posix(): path for path in Path("maps/maps").rglob("*.png")}
    assert len(maps) == 6 * 4 * 3
    assert len(facts("maps")["methods"]) == 6
    same, other = (
        [maps[f"gradient/{layer}-{variant}.png"].read_bytes() for variant in ("original", "backward")]
        for layer in ("layer4.1", "layer3.1")
    )
    assert same[0] == same[1]
    assert other[0] != other[1]
