"""What ``layers="all"`` lists of real architectures, on the meta device: blocks that run and can be shown."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn

import pellucid as pl
from pellucid.layers import captured

timm = pytest.importorskip("timm")

# How many blocks are listed, and the last of them. Several were explained at their classifier or at the stem.
BLOCKS = {
    "resnet18": (8, "layer4.1"),
    "resnetv2_50": (16, "stages.3.blocks.2"),
    "hgnetv2_b0": (9, "stages.3.blocks.0"),
    "efficientvit_b0": (11, "stages.3.blocks.2"),
    "vgg11": (10, "pre_logits.fc2"),
    "mobilenetv3_small_050": (12, "blocks.5.0"),
    "efficientnet_b0": (16, "blocks.6.0"),
    "densenet121": (7, "features.denseblock4"),
    "convnext_atto": (12, "stages.3.blocks.1"),
    "swin_tiny_patch4_window7_224": (16, "layers.3.blocks.1"),
    "vit_tiny_patch16_224": (13, "blocks.11"),
    "mvitv2_tiny": (11, "stages.3.blocks.1"),
    "mixer_s32_224": (9, "blocks.7"),
    "mobilevit_xxs": (18, "final_conv"),
    "poolformer_s12": (16, "stages.3.blocks.1"),
    "davit_tiny": (16, "stages.3.blocks.0.1"),
    "edgenext_xx_small": (12, "stages.3.blocks.1"),
    "ese_vovnet19b_dw": (7, "stages.3.blocks.0"),
}


def on_meta(name: str) -> tuple[nn.Module, torch.Tensor]:
    with torch.device("meta"):
        model = timm.create_model(name).eval()
    return model, torch.empty(1, *model.default_cfg["input_size"], device="meta")


def places(output: Any) -> int:
    """The most places that an output of (1, ...) may have: all but its largest dimension, taken for channels."""
    shape = sorted(output.shape[1:])
    return int(torch.tensor(shape[:-1]).prod()) if len(shape) > 1 else 1


@pytest.mark.parametrize("name", BLOCKS)
def test_all_lists_blocks_that_can_be_shown(name: str) -> None:
    model, image = on_meta(name)
    blocks = pl.layer_names(model)[1:]
    with torch.no_grad(), captured(model, blocks, strict=False) as outputs:
        model(image)
    shown = [block for block in blocks if block in outputs and places(outputs[block]) > 1]
    assert (len(blocks), blocks[-1]) == BLOCKS[name]
    assert len(shown) >= len(blocks) - 2, sorted(set(blocks) - set(shown))


# Hugging Face's networks hold their stages in an encoder; their granularity is that of timm's.
OF_TRANSFORMERS = {
    "Swin": (16, "swin.encoder.layers.3.blocks.1"),
    "ConvNext": (19, "convnext.encoder.stages.3.layers.2"),
    "ResNet": (17, "resnet.encoder.stages.3.layers.2"),
    "ViT": (13, "vit.layers.11"),
    "Segformer": (12, "segformer.stages.3.blocks.1"),
    "Levit": (29, "levit.encoder.stages.2.layers.7"),
}


@pytest.mark.parametrize("name", OF_TRANSFORMERS)
def test_stages_inside_an_encoder_are_listed_by_their_blocks(name: str) -> None:
    transformers = pytest.importorskip("transformers")
    with torch.device("meta"):
        model = getattr(transformers, f"{name}ForImageClassification")(getattr(transformers, f"{name}Config")())
    blocks = pl.layer_names(model)[1:]
    assert (len(blocks), blocks[-1]) == OF_TRANSFORMERS[name]


def test_stages_that_are_chains_themselves_are_listed_by_their_blocks() -> None:
    torchvision = pytest.importorskip("torchvision")
    blocks = pl.layer_names(torchvision.models.regnet_y_400mf(weights=None))[1:]
    assert (len(blocks), blocks[-1]) == (17, "trunk_output.block4.block4-5")
