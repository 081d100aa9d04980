"""Unmodified torchvision networks: against Captum where Captum is right, against exact autograd everywhere.

Captum 0.9 hooks modules of the type ``nn.ReLU`` and clamps the *summed* gradient of a hooked module's input. It
is therefore silently wrong where a network calls ``F.relu`` (GoogLeNet everywhere, DenseNet at its end), where it
has other activations (MobileNet's ReLU6, ConvNeXt's GELU), and where a ReLU's input also feeds a skip (norm-free
residual networks).

The exact reference patches ``torch.nn.functional`` with an ``autograd.Function`` that is the formula.
"""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn

import pellucid as pl
from tests.networks import (
    ExactDeconv,
    ExactGuided,
    ExactRescale,
    attributed,
    exactly,
    plain,
    randomise,
    relative_error,
)
from tests.reference.zoo import ARCHITECTURES, TARGETS, batch, captum_input, captum_layer, network, quietly

pytest.importorskip("captum")
EXACT = 1e-12
CAPTUM_SEES_EVERY_ACTIVATION = ("resnet18", "resnet50", "vgg16")
CAPTUM_SEES_NO_ACTIVATION = ("googlenet", "mobilenet_v2", "convnext_tiny")
CAPTUM_IS_WRONG = ("densenet121", "norm_free", *CAPTUM_SEES_NO_ACTIVATION)
HOOKED = {
    "guided_backprop": ("GuidedBackprop", ExactGuided),
    "deconvnet": ("Deconvolution", ExactDeconv),
}


def last(name: str) -> str:
    return ARCHITECTURES[name][1][-1]


def middle(name: str) -> str:
    layers = ARCHITECTURES[name][1]
    return layers[len(layers) // 2]


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_gradient_and_input_x_gradient_equal_captum(name: str) -> None:
    model, x = network(name), batch(name)
    found = pl.method("gradient")(model, x, TARGETS)["input"]
    assert relative_error(found, captum_input("Saliency", model, x, abs=False)) < EXACT
    multiplied = pl.method("input_x_gradient")(model, x, TARGETS)["input"]
    assert relative_error(multiplied, captum_input("InputXGradient", model, x)) < EXACT


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_gradients_of_all_layers_from_one_pass_equal_plain_autograd(name: str) -> None:
    model, x, layers = network(name), batch(name), ARCHITECTURES[name][1]
    expected = attributed(model, x, TARGETS, layers)
    found = pl.method("gradient")(model, x, TARGETS, layers=("input", *layers))
    for layer, value in expected.items():
        assert relative_error(found[layer], value) < EXACT


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.parametrize("rule", HOOKED)
def test_guided_backprop_and_deconvnet_equal_the_exact_formula_at_every_layer(name: str, rule: str) -> None:
    model, x, layers = network(name), batch(name), ARCHITECTURES[name][1]
    with exactly(HOOKED[rule][1]):
        expected = attributed(model, x, TARGETS, layers)
    found = pl.method(rule)(model, x, TARGETS, layers=("input", *layers))
    for layer, value in expected.items():
        assert relative_error(found[layer], value) < EXACT


@pytest.mark.parametrize("name", CAPTUM_SEES_EVERY_ACTIVATION)
@pytest.mark.parametrize("rule", HOOKED)
def test_guided_backprop_and_deconvnet_equal_captum_where_it_is_right(name: str, rule: str) -> None:
    model, x = network(name), batch(name)
    expected = captum_input(HOOKED[rule][0], model, x)
    assert relative_error(pl.method(rule)(model, x, TARGETS)["input"], expected) < EXACT


@pytest.mark.parametrize("name", CAPTUM_IS_WRONG)
@pytest.mark.parametrize("rule", HOOKED)
def test_captum_is_wrong_about_functional_other_and_skip_fed_activations(name: str, rule: str) -> None:
    """Ours equals the exact formula (test above); Captum is off by 10 % at least, and here is why."""
    model, x = network(name), batch(name)
    theirs = captum_input(HOOKED[rule][0], model, x)
    with exactly(HOOKED[rule][1]):
        right = attributed(model, x, TARGETS)["input"]
    assert relative_error(theirs, right) > 0.1
    if name in CAPTUM_SEES_NO_ACTIVATION:  # it is the plain gradient under another name
        assert relative_error(theirs, attributed(model, x, TARGETS)["input"]) < EXACT


# Captum rounds the weights of a quadrature to float32. These have weights that survive: 1/2 and 1/4.
QUADRATURES = [("gausslegendre", "gauss_legendre", 2), ("riemann_right", "right", 4)]


@pytest.mark.parametrize("name", ARCHITECTURES)
@pytest.mark.filterwarnings("ignore::pellucid.CompletenessWarning")  # so few steps are not complete
def test_integrated_gradients_equals_captum_at_the_input_and_at_hidden_layers(name: str) -> None:
    """Captum's LayerIntegratedGradients takes its baseline at the image too, and runs the layer on it."""
    model, x = network(name), batch(name)
    reference = torch.full_like(x[:1], 0.3)
    for (theirs, ours, steps), layer in zip(QUADRATURES, (middle(name), last(name)), strict=True):
        settings = {"n_steps": steps, "method": theirs, "baselines": reference}
        method = pl.Gradient().integrated(steps, quadrature=ours, baseline=0.3)
        found = method(model, x, TARGETS, layers=("input", layer))
        assert relative_error(found["input"], captum_input("IntegratedGradients", model, x, **settings)) < EXACT
        expected = captum_layer("LayerIntegratedGradients", model, layer, x, **settings)
        assert relative_error(found[layer], expected) < EXACT


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_gradcam_equals_captum_summed_over_channels(name: str) -> None:
    model, x = network(name), batch(name)
    for layer in {middle(name), last(name)}:
        found = pl.GradCAM()(model, x, TARGETS, layers=layer)[layer]
        expected = captum_layer("LayerGradCam", model, layer, x)
        assert relative_error(found.sum(1, keepdim=True), expected) < EXACT


# ------------------------------------------------------------------ DeepLIFT


def differences(model: nn.Module, x: Tensor) -> Tensor:
    with torch.no_grad():
        return (model(x) - model(torch.zeros_like(x)))[range(len(TARGETS)), TARGETS]


def incompleteness(model: nn.Module, x: Tensor, attribution: Tensor) -> float:
    expected = differences(model, x)
    return float(((attribution.flatten(1).sum(1) - expected) / expected).abs().max())


@pytest.mark.parametrize("name", ["resnet18", "resnet50", "vgg16", "googlenet", "densenet121", "mobilenet_v2"])
def test_deeplift_is_complete_at_the_input_of_unmodified_networks(name: str) -> None:
    model, x = network(name), batch(name)
    found = pl.DeepLift()(model, x, TARGETS)
    assert incompleteness(model, x, found["input"]) < 1e-10
    assert float((found.residuals["input"] / differences(model, x)).abs().max()) < 1e-10


def test_deeplift_is_complete_at_the_input_and_at_every_block_of_resnet18() -> None:
    model, x = network("resnet18"), batch("resnet18")
    found = pl.DeepLift()(model, x, TARGETS, layers="all")
    assert len(found) == 9
    for layer, attribution in found.items():
        assert incompleteness(model, x, attribution) < 1e-10, layer


def test_captums_deeplift_raises_on_resnets_and_ours_does_not() -> None:
    """One ReLU module called twice in a block: Captum asks to redefine the network."""
    model, x = network("resnet18"), batch("resnet18")
    with pytest.raises(RuntimeError, match="does not contain some of the input/output attributes"):
        captum_input("DeepLift", deepcopy(model), x)  # a copy: Captum leaves its hooks behind
    assert pl.DeepLift()(model, x, TARGETS)["input"].any()


@pytest.mark.parametrize("name", ["resnet18", "vgg16", "googlenet", "norm_free"])
@pytest.mark.filterwarnings("ignore::pellucid.CompletenessWarning")
def test_deeplift_with_native_max_pool_equals_an_exact_rescale_rule(name: str) -> None:
    """The rule as an ``autograd.Function`` over images and references in one batch, pools left to autograd."""
    model, x = network(name), batch(name)
    with exactly(ExactRescale):
        doubled = torch.cat([x, torch.zeros_like(x)])
        multipliers = attributed(model, doubled, [*TARGETS, *TARGETS])["input"][: len(x)]
    found = pl.DeepLift(max_pool="gradient")(model, x, TARGETS)["input"]
    assert relative_error(found, multipliers * x) < EXACT


@pytest.mark.filterwarnings("ignore:.*gradient of a max-pool keeps no sum")
def test_captums_deeplift_on_vgg16_is_rescale_with_native_max_pool_and_not_complete() -> None:
    """ReLU directly before a max-pool bypasses Captum's pooling rule; ours, asked to do the same, is equal."""
    model, x = network("vgg16"), batch("vgg16")
    theirs = captum_input("DeepLift", model, x)
    native = pl.DeepLift(max_pool="gradient")(model, x, TARGETS)
    assert relative_error(native["input"], theirs) < 1e-11
    assert incompleteness(model, x, theirs) > 1e-3
    assert incompleteness(model, x, pl.DeepLift()(model, x, TARGETS)["input"]) < 1e-10


@pytest.mark.parametrize("name", ["googlenet", "densenet121", "mobilenet_v2"])
def test_captums_deeplift_misses_functional_relu_and_relu6_and_is_not_complete(name: str) -> None:
    model, x = network(name), batch(name)
    theirs = captum_input("DeepLift", model, x)
    assert incompleteness(model, x, theirs) > 1e-2
    assert incompleteness(model, x, pl.DeepLift()(model, x, TARGETS)["input"]) < 1e-10


@pytest.mark.parametrize("activation", [nn.ReLU, nn.ELU, nn.LeakyReLU, nn.Sigmoid, nn.Tanh, nn.Softplus])
@pytest.mark.parametrize("layer", ["input", "2"])
def test_deeplift_equals_captum_where_it_is_right(activation: type[nn.Module], layer: str) -> None:
    """Separate modules, and the max-pool between linear layers: there Captum's pooling rule works."""
    model = plain(
        nn.Conv2d(3, 4, 3),
        activation(),
        nn.Conv2d(4, 4, 3),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(16, 6),
        activation(),
        nn.Linear(6, 5),
    ).requires_grad_()  # Captum's layer form cannot register its hooks on a frozen model
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    settings = {"baselines": torch.full_like(x, 0.2)}
    found = pl.DeepLift(baseline=0.2)(model, x, TARGETS, layers=layer)
    if layer == "input":
        expected = captum_input("DeepLift", model, x, **settings)
    else:
        expected = captum_layer("LayerDeepLift", model, layer, x, **settings)
    assert relative_error(found[layer], expected) < EXACT


def test_captums_deeplift_is_wrong_about_a_max_pool_before_a_relu_even_of_one_pixel() -> None:
    """A 1 x 1 max-pool is the identity. Captum's map changes with it; ours does not."""
    x = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    tail = [nn.Flatten(), nn.Linear(64, 5)]

    def model(*middle: nn.Module) -> nn.Module:
        return plain(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), *middle, *tail)

    pooled, bare = model(nn.MaxPool2d(1), nn.ReLU()), model(nn.ReLU())
    baseline = torch.full_like(x, 0.2)
    right = captum_input("DeepLift", bare, x, baselines=baseline)
    ours = pl.DeepLift(baseline=0.2)
    assert relative_error(ours(bare, x, TARGETS)["input"], right) < EXACT
    assert relative_error(ours(pooled, x, TARGETS)["input"], right) < EXACT
    assert relative_error(captum_input("DeepLift", pooled, x, baselines=baseline), right) > 0.05


# ------------------------------------------------------------------ zennit


@pytest.mark.parametrize(
    ("rule", "composite"), [("guided_backprop", "GuidedBackprop"), ("deconvnet", "DeconvNet")]
)
@pytest.mark.parametrize("name", ["resnet18", "norm_free"])
def test_guided_backprop_and_deconvnet_equal_zennit(name: str, rule: str, composite: str) -> None:
    """Zennit hooks a node per call, so it is right about skip-fed ReLU modules where Captum is not."""
    composites = pytest.importorskip("zennit.composites")
    attribution = pytest.importorskip("zennit.attribution")
    model, x = network(name), batch(name)
    one_hot = torch.zeros(2, model(x).shape[1], dtype=x.dtype)
    one_hot[range(2), TARGETS] = 1

    def theirs() -> Tensor:
        with attribution.Gradient(model=model, composite=getattr(composites, composite)()) as attributor:
            return attributor(x.clone().requires_grad_(), one_hot)[1]

    expected = quietly(theirs).detach()
    assert relative_error(pl.method(rule)(model, x, TARGETS)["input"], expected) < EXACT


# ------------------------------------------------------------------ timm


TIMM = {
    "resnetv2_50": ("stages.1.blocks.0", "stages.3.blocks.1"),
    "nf_resnet26": ("stages.1.0", "stages.3.1"),
}


@pytest.mark.parametrize("name", TIMM)
@pytest.mark.parametrize("rule", HOOKED)
def test_guided_backprop_and_deconvnet_equal_the_exact_formula_on_timm_networks(name: str, rule: str) -> None:
    """Norm-free residual networks feed each ReLU's input to a skip: Captum's Deconvolution is lost there."""
    timm = pytest.importorskip("timm")
    model = randomise(timm.create_model(name, pretrained=False, num_classes=10))
    x = torch.randn(2, 3, 48, 48, dtype=torch.float64)
    layers = TIMM[name]
    with exactly(HOOKED[rule][1]):
        expected = attributed(model, x, TARGETS, layers)
    found = pl.method(rule)(model, x, TARGETS, layers=("input", *layers))
    for layer, value in expected.items():
        assert relative_error(found[layer], value) < EXACT
    if (name, rule) == ("nf_resnet26", "deconvnet"):
        assert relative_error(captum_input("Deconvolution", model, x), expected["input"]) > 0.9
