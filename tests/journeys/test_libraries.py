"""Models of Hugging Face and timm, by name."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from .person import facts, pictures, typed

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::FutureWarning")


def test_a_transformer_of_hugging_face() -> None:
    transformers = pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.ViTConfig(
        hidden_size=16, num_hidden_layers=2, num_attention_heads=2, intermediate_size=32, image_size=32,
        patch_size=8, id2label={0: "cat", 1: "dog"}, label2id={"cat": 0, "dog": 1},
    )  # fmt: skip
    transformers.ViTForImageClassification(config).save_pretrained("vit")
    transformers.ViTImageProcessor(size={"height": 32, "width": 32}).save_pretrained("vit")
    pictures(1)[0].save("photo.png")
    typed(
        "pellucid explain photo.png --model hf:vit --methods gradient,deeplift,attnlrp --layers all "
        "--target dog -o maps"
    )
    [photo] = facts("maps")["photos"]
    assert photo["target"]["name"] == "dog"
    assert len(list(Path("maps/maps/photo/attnlrp").glob("*.png"))) >= 3


def test_a_network_of_timm() -> None:
    timm = pytest.importorskip("timm")
    torch.manual_seed(0)
    save_file(timm.create_model("test_resnet", num_classes=3).state_dict(), "weights.safetensors")
    pictures(1)[0].save("photo.png")
    typed(
        "pellucid explain photo.png --model timm:test_resnet --weights weights.safetensors "
        "--methods gradient,gradcam --classes red,green,blue --target green --variant backward -o maps"
    )
    [photo] = facts("maps")["photos"]
    assert photo["target"] == photo["target"] | {"class": 1, "name": "green"}
