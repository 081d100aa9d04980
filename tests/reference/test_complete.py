"""DeepLIFT sums to the difference of logits at every block of today's vision networks, and LRP to the logit.

Small variants of timm's and torchvision's families, with random weights. Captum has rules for neither products nor
normalizations, so its maps of these networks are not complete.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torchvision.models as tv
from torch import nn

import pellucid as pl
from tests.networks import logits_of, randomise, relative_error
from tests.reference.zoo import calibrate, captum_input

timm = pytest.importorskip("timm")
TARGETS = [1, 4]


def from_timm(name: str, **settings: object) -> Callable[[], nn.Module]:
    return lambda: timm.create_model(name, num_classes=5, **settings)


def swin(block: type[nn.Module], merging: type[nn.Module]) -> nn.Module:
    return tv.SwinTransformer(
        [4, 4], 16, [2, 2], [2, 4], [4, 4], num_classes=5, block=block, downsample_layer=merging
    )


def convnext() -> nn.Module:
    kinds = [tv.convnext.CNBlockConfig(8, 16, 2), tv.convnext.CNBlockConfig(16, None, 2)]
    return tv.ConvNeXt(kinds, num_classes=5)


def maxvit() -> nn.Module:
    return tv.MaxVit((64, 64), 8, 4, [8, 16], [1, 2], 4, 0.0, num_classes=5)


def maxxvit() -> nn.Module:
    family = timm.models.maxxvit
    attention = family.MaxxVitTransformerCfg(dim_head=8, window_size=(4, 4))
    settings = family.MaxxVitCfg((8, 16), (1, 2), ("M", "M"), stem_width=8, transformer_cfg=attention)
    return family.MaxxVit(settings, img_size=64, num_classes=5)


def mixer() -> nn.Module:
    return timm.models.mlp_mixer.MlpMixer(5, 32, patch_size=8, num_blocks=2, embed_dim=16)


SMALL_SWIN = {"img_size": 64, "window_size": 4, "depths": (2, 2), "num_heads": (2, 4), "embed_dim": 16}
SMALL_VIT = {"img_size": 32, "depth": 2, "embed_dim": 48, "num_heads": 3}
# name: (size of the image, network)
NETWORKS: dict[str, tuple[int, Callable[[], nn.Module]]] = {
    "ConvNeXt, timm": (64, from_timm("convnext_atto", depths=(1, 1, 2, 1), dims=(8, 16, 24, 32))),
    "ConvNeXt V2, timm": (64, from_timm("convnextv2_atto", depths=(1, 1, 2, 1), dims=(8, 16, 24, 32))),
    "ConvNeXt, torchvision": (32, convnext),
    "Swin, timm": (64, from_timm("swin_tiny_patch4_window7_224", **SMALL_SWIN)),
    "Swin V2, timm": (64, from_timm("swinv2_tiny_window8_256", **SMALL_SWIN)),
    "Swin, torchvision": (
        64,
        lambda: swin(tv.swin_transformer.SwinTransformerBlock, tv.swin_transformer.PatchMerging),
    ),
    "Swin V2, torchvision": (
        64,
        lambda: swin(tv.swin_transformer.SwinTransformerBlockV2, tv.swin_transformer.PatchMergingV2),
    ),
    "ViT, timm": (32, from_timm("vit_tiny_patch16_224", patch_size=8, **SMALL_VIT)),
    "ViT with registers, timm": (32, from_timm("vit_small_patch14_reg4_dinov2", patch_size=8, **SMALL_VIT)),
    "ViT, torchvision": (32, lambda: tv.VisionTransformer(32, 8, 2, 2, 16, 32, num_classes=5)),
    "EVA, timm": (32, from_timm("eva02_tiny_patch14_224", patch_size=8, **SMALL_VIT)),
    "MaxViT, timm": (64, maxxvit),
    "MaxViT, torchvision": (64, maxvit),
    "EfficientNet, timm": (32, from_timm("efficientnet_lite0")),
    "EfficientNet with gates, timm": (32, from_timm("tinynet_e")),
    "EfficientNet, torchvision": (32, lambda: tv.efficientnet_b0(num_classes=5)),
    "MobileNetV3, torchvision": (32, lambda: tv.mobilenet_v3_small(num_classes=5)),
    "MobileViT, timm": (64, from_timm("mobilevit_xxs")),
    "MobileViT V2, timm": (64, from_timm("mobilevitv2_050")),
    "XCiT, timm": (64, from_timm("xcit_nano_12_p16_224", img_size=64, depth=2)),
    "MLP-Mixer, timm": (32, mixer),
}
# Elsewhere all; here some lie on a branch that a skip passes by, or return more than a tensor.
LAYERS = {
    "MobileViT, timm": ["input", "stem", "stages.*"],
    "MobileViT V2, timm": ["input", "stem", "stages.*"],
    "XCiT, timm": ["input", "blocks.0", "blocks.1"],
}


def network(name: str) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = randomise(NETWORKS[name][1]())
        for parameter in model.parameters():  # heads and tokens that start at 0
            if not parameter.any():
                parameter.normal_(0, 0.1)
        calibrate(model, batch(name))
    return model


def batch(name: str) -> torch.Tensor:
    size = NETWORKS[name][0]
    return torch.randn(2, 3, size, size, generator=torch.Generator().manual_seed(7), dtype=torch.float64)


@pytest.mark.parametrize("name", NETWORKS)
@pytest.mark.filterwarnings("ignore::pellucid.errors.SkippedLayerWarning")
def test_deeplift_is_complete_at_the_input_and_at_every_block(name: str) -> None:
    model, x = network(name), batch(name)
    difference = logits_of(model, x, TARGETS) - logits_of(model, torch.zeros_like(x), TARGETS)
    found = pl.DeepLift()(model, x, TARGETS, layers=LAYERS.get(name, "all"))
    assert "input" in found
    assert len(found) > 2
    for layer, residual in found.residuals.items():
        assert float((residual / difference).abs().max()) < 1e-8, layer


def test_captums_deeplift_of_a_convnext_is_not_complete() -> None:
    model, x = network("ConvNeXt, torchvision"), batch("ConvNeXt, torchvision")
    pytest.importorskip("captum")
    theirs = captum_input("DeepLift", model, x)
    difference = logits_of(model, x, TARGETS) - logits_of(model, torch.zeros_like(x), TARGETS)
    assert relative_error(theirs.flatten(1).sum(1), difference) > 0.05


# Their class tokens and positions are constants, which take relevance as biases do.
WITH_POSITIONS = [name for name in NETWORKS if name.startswith(("ViT", "EVA", "XCiT"))]


@pytest.mark.parametrize("name", [name for name in NETWORKS if name not in WITH_POSITIONS])
def test_epsilon_lrp_conserves_the_logit_of_a_network_without_biases(name: str) -> None:
    model, x = network(name), batch(name)
    for key, parameter in model.named_parameters():
        if key.endswith("bias"):
            parameter.zero_()
    for norm in (part for part in model.modules() if isinstance(part, nn.BatchNorm2d)):
        norm.running_mean.zero_()
    found = pl.method("lrp_epsilon", epsilon=1e-10)(model, x, TARGETS)
    logits = logits_of(model, x, TARGETS)
    assert float((found.residuals["input"] / logits).abs().max()) < 1e-4
    assert relative_error(found["input"].flatten(1).sum(1), logits) < 1e-4
