"""Segmentation models as classifiers: against plain autograd, by hand, and torchvision's own networks."""

import copy

import pytest
import torch
import torch.nn.functional as F
import torchvision
from PIL import Image
from torch import Tensor, nn

import pellucid as pl
from pellucid.errors import InvalidImage, InvalidModel, InvalidParameter, InvalidTarget, UnknownName
from pellucid.metrics.faithfulness import insertion
from pellucid.metrics.scoring import Scorer
from pellucid.models.segmentation import Dense, Segmentation, segmentation_targets
from pellucid.models.small import UNet as UNetByName
from tests.networks import attributed, randomise, relative_error, seeded
from tests.networks import images as random_images


class Double(nn.Module):
    """Two convolutions, each normalised and rectified; the first may be strided."""

    def __init__(self, channels: int, out: int, stride: int = 1) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(channels, out, 3, stride=stride, padding=1)
        self.conv2 = nn.Conv2d(out, out, 3, padding=1)
        self.norm1, self.norm2 = nn.BatchNorm2d(out), nn.BatchNorm2d(out)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm1(self.conv1(x)))
        return torch.relu_(self.norm2(self.conv2(x)))


class UNet(nn.Module):
    """Down by strides, up by nearest up-sampling, skips joined by concatenation, one logit map per class."""

    def __init__(self, classes: int = 4, width: int = 6) -> None:
        super().__init__()
        self.down1, self.down2 = Double(3, width), Double(width, 2 * width, 2)
        self.down3 = Double(2 * width, 4 * width, 2)
        self.up2, self.up1 = Double(6 * width, 2 * width), Double(3 * width, width)
        self.head = nn.Conv2d(width, classes, 1)

    def forward(self, x: Tensor) -> Tensor:
        first = self.down1(x)
        second = self.down2(first)
        third = self.down3(second)
        x = self.up2(torch.cat([F.interpolate(third, scale_factor=2), second], 1))
        x = self.up1(torch.cat([F.interpolate(x, scale_factor=2), first], 1))
        return self.head(x)


LAYERS = ["input", "down1", "down2", "down3", "up2", "up1"]


def unet() -> nn.Module:
    """Weights large enough that pictures, not biases, decide the classes."""
    model = randomise(seeded(UNet))
    generator = torch.Generator().manual_seed(0)
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            module.weight.normal_(0, (2 / module.weight[0].numel()) ** 0.5, generator=generator)
    return model


class Pooled(nn.Module):
    """The pooling, written out by loops."""

    def __init__(self, dense: nn.Module, pooling: str) -> None:
        super().__init__()
        self.dense, self.pooling = dense, pooling

    def forward(self, x: Tensor) -> Tensor:
        rows = []
        for logits in self.dense(x):
            highest = logits.argmax(0)
            pooled = []
            for k in range(len(logits)):
                pixels = logits[k][highest == k]
                pooled.append(pixels.mean() if self.pooling == "predicted" and len(pixels) else logits[k].mean())
            rows.append(torch.stack(pooled))
        return torch.stack(rows)


@pytest.mark.parametrize("pooling", ["mean", "predicted"])
def test_gradients_at_all_layers_equal_plain_autograd(pooling: str) -> None:
    model, images = Segmentation(unet(), pooling=pooling), random_images(3, 16)
    plain = Pooled(unet(), pooling)
    torch.testing.assert_close(model(images), plain(images), rtol=1e-12, atol=1e-13)
    expected = attributed(plain, images, [0, 1, 3], [f"dense.{layer}" for layer in LAYERS[1:]])
    found = pl.Gradient()(model, images, [0, 1, 3], "all")
    assert list(found) == LAYERS
    for layer in LAYERS:
        wanted = expected[layer if layer == "input" else f"dense.{layer}"]
        assert relative_error(found[layer], wanted) < 1e-12


def test_complete_methods_are_complete_where_everything_passes() -> None:
    """The mean over pixels, concatenation and up-sampling are linear, so DeepLIFT is exact."""
    model, images = Segmentation(unet()), random_images(2, 16)
    exact = pl.DeepLift()(model, images, [0, 2], ["input", "up1"])
    integrated = pl.Gradient().integrated(300)(model, images, [0, 2], ["input", "up1"])
    for layer in ("input", "up1"):
        assert float(exact.residuals[layer].abs().max()) < 1e-10
        assert float(integrated.residuals[layer].abs().max()) < 1e-2


def test_a_layer_that_a_skip_passes_by_warns_that_it_is_not_all() -> None:
    with pytest.warns(pl.CompletenessWarning, match="'down3'.*a layer that no skip passes by"):
        pl.DeepLift()(Segmentation(unet()), random_images(2, 16), [0, 2], ["down3"])


def test_a_wrapped_model_keeps_its_layers_parameters_and_state() -> None:
    dense = unet()
    model = Segmentation(dense)
    assert pl.layer_names(model) == pl.layer_names(dense) == LAYERS
    assert list(model.state_dict()) == list(dense.state_dict())
    other = Segmentation(seeded(UNet, seed=1))
    images = random_images(1, 16)
    other.load_state_dict(model.state_dict())
    assert torch.equal(other(images), model(images))
    duplicate = copy.deepcopy(model)
    assert torch.equal(duplicate(images), model(images))
    with torch.no_grad():
        duplicate.head.bias += 1
    torch.testing.assert_close(duplicate(images), model(images) + 1, rtol=1e-12, atol=0)
    assert model.float()(images.float()).dtype == dense(images.float()).dtype == torch.float32
    assert model.train().training
    assert dense.training
    assert not model.eval().down1.norm1.training
    assert not dense.training


class Offset(nn.Module):
    """A parameter and a buffer that belong to no part of the dense model."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 2, 1)
        self.scale = nn.Parameter(torch.full((1,), 2.0))
        self.register_buffer("offset", torch.full((1,), 3.0))

    def forward(self, x: Tensor) -> Tensor:
        return self.scale * self.conv(x) + self.offset


def test_parameters_and_buffers_of_the_dense_model_itself_move_along() -> None:
    dense = Offset().eval()
    model = Segmentation(dense).double()
    assert set(model.state_dict()) == {"conv.weight", "conv.bias", "scale", "offset"}
    assert dense.offset.dtype == dense.scale.dtype == torch.float64
    assert model(random_images(1, 4)).dtype == torch.float64


def test_the_checkerboard_goes_under_the_variant_that_smooths_it() -> None:
    model, images = Segmentation(unet()), random_images(4, 32)
    original = pl.Gradient()(model, images, 1, LAYERS[:4])
    for variant in ("backward", "forward"):
        smoothed = pl.Gradient()(model, images, 1, LAYERS[:4], variant=variant)
        for layer in ("down1", "down2"):  # below a strided convolution
            assert bool((pl.total_variation(smoothed[layer]) < pl.total_variation(original[layer])).all())
    backward = pl.Gradient()(model, images, 1, LAYERS[:4], variant="backward")
    torch.testing.assert_close(backward["down3"], original["down3"], rtol=1e-12, atol=0)


@pytest.mark.parametrize("name", ["guided_backprop", "rectgrad", "gradcam", "integrated_guided_backprop"])
def test_methods_of_other_families_run_at_hidden_layers(name: str) -> None:
    model, images = Segmentation(unet()), random_images(2, 16)
    found = pl.method(name)(model, images, layers=["down2", "up1"])
    assert {layer: tuple(value.shape[2:]) for layer, value in found.items()} == {"down2": (8, 8), "up1": (16, 16)}
    assert all(float(value.abs().amax()) > 0 for value in found.values())


def test_the_highest_pooled_logit_is_a_predicted_class() -> None:
    class Dense(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return x

    logits = torch.randn(200, 6, 3, 3, dtype=torch.float64)  # 9 pixels for 6 classes: some have none
    pooled = Segmentation(Dense(), pooling="predicted")(logits)
    torch.testing.assert_close(pooled, Pooled(nn.Identity(), "predicted")(logits), rtol=1e-12, atol=1e-13)
    predicted = [set(picture.argmax(0).flatten().tolist()) for picture in logits]
    assert any(len(classes) < 6 for classes in predicted)
    assert all(int(row.argmax()) in classes for row, classes in zip(pooled, predicted, strict=True))


def maps(*rows: str) -> Tensor:
    return torch.tensor([[[int(value) for value in row] for row in rows]])


@pytest.mark.parametrize(
    ("labels", "settings", "expected"),
    [
        (maps("0000", "0012"), {}, 1),  # a tie: the lower class
        (maps("0000", "0212"), {}, 2),
        (maps("0000", "0000"), {}, 0),
        (maps("3333", "3331"), {"background": 3}, 1),
        (maps("3333", "3333"), {"background": 3}, 3),
        (maps("0003", "3311"), {"background": 3}, 0),
        (maps("9999", "9012"), {"ignored": 9}, 1),
        (maps("9999", "9000"), {"ignored": 9}, 0),
        (maps("9999", "9012"), {}, 9),
        (torch.tensor([[[255, 255, 0, 4]]]), {}, 4),
        (torch.tensor([[[255, 255, 0, 4]]], dtype=torch.uint8), {"ignored": None}, 255),
    ],
)
def test_targets_are_the_majority_of_the_non_background_labels(
    labels: Tensor, settings: dict, expected: int
) -> None:
    assert segmentation_targets(labels, **settings).tolist() == [expected]


def test_targets_of_logits_are_those_of_the_highest() -> None:
    labels = torch.randint(0, 4, (10, 5, 5))
    labels[0] = 0
    logits = F.one_hot(labels, 4).permute(0, 3, 1, 2).double() + 0.5 * torch.rand(10, 4, 5, 5)
    by_loop = []
    for picture in labels.tolist():
        counts = [sum(row.count(k) for row in picture) for k in (1, 2, 3)]
        by_loop.append(0 if max(counts) == 0 else 1 + counts.index(max(counts)))
    assert segmentation_targets(labels).tolist() == segmentation_targets(logits).tolist() == by_loop


def test_a_models_own_targets_whatever_the_batch() -> None:
    model = Segmentation(nn.Conv2d(4, 4, 1).double().eval(), background=2)
    images = random_images(7, 5, channels=4)
    expected = segmentation_targets(model.dense(images).argmax(1), background=2)
    assert len(set(expected.tolist())) > 1
    assert torch.equal(model.targets(images, max_batch=2), expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["fcn_resnet50", "deeplabv3_resnet50"])
def test_torchvision_networks(name: str) -> None:
    make = getattr(torchvision.models.segmentation, name)
    dense = randomise(seeded(lambda: make(weights=None, weights_backbone=None, num_classes=5, aux_loss=True)))
    model, images = Segmentation(dense), random_images(2, 32)
    layers = ["backbone.layer1.0", "backbone.layer2.3", "backbone.layer4.2", "classifier"]
    targets = model.targets(images)
    expected = attributed(
        Pooled(Out(dense), "mean"), images, targets, [f"dense.dense.{layer}" for layer in layers]
    )
    found = pl.Gradient()(model, images, targets, ["input", *layers])
    for layer in ["input", *layers]:
        wanted = expected[layer if layer == "input" else f"dense.dense.{layer}"]
        assert relative_error(found[layer], wanted) < 1e-12
    guided = pl.method("integrated_guided_backprop", steps=2)(model, images, targets, ["backbone.layer4.2"])
    assert guided["backbone.layer4.2"].shape == (2, 2048, 4, 4)


class Out(nn.Module):
    def __init__(self, dense: nn.Module) -> None:
        super().__init__()
        self.dense = dense

    def forward(self, x: Tensor) -> Tensor:
        return self.dense(x)["out"]


def test_it_can_be_scored_as_a_classifier() -> None:
    model, images = Segmentation(unet()), random_images(3, 16)
    scores = Scorer(model, max_batch=2).scores(images)
    torch.testing.assert_close(scores, Pooled(unet(), "mean")(images).softmax(1), rtol=1e-12, atol=0)
    targets = model.targets(images)
    maps_ = pl.heatmap(pl.Gradient()(model, images, targets)["input"])
    curve = insertion(model, images, targets, maps_, steps=4)
    assert curve.scores.shape == (3, 5)
    torch.testing.assert_close(
        curve.scores[:, -1].double(), scores.gather(1, targets[:, None])[:, 0], rtol=1e-6, atol=0
    )


def test_bad_input_is_refused() -> None:
    images = random_images(1, 16)
    with pytest.raises(InvalidModel, match=r"the model returns \(1, 2\); a segmentation model"):
        Segmentation(nn.Sequential(nn.Flatten(), nn.Linear(768, 2)).double().eval())(images)

    class Detections(nn.Module):
        def forward(self, x: Tensor) -> dict:
            return {"boxes": x}

    with pytest.raises(InvalidModel, match="the model returns dict"):
        Segmentation(Detections())(images)
    with pytest.raises(InvalidModel, match="training mode"):
        Segmentation(UNet())
    for settings in ({"pooling": "max"}, {"background": -1}, {"background": True}):
        with pytest.raises(InvalidParameter):
            Segmentation(unet(), **settings)
    with pytest.raises(InvalidParameter, match="max_batch"):
        Segmentation(unet()).targets(images, max_batch=0)
    with pytest.raises(InvalidParameter, match="background=7: the logits have classes 0 to 3"):
        Segmentation(unet(), background=7).targets(images)
    with pytest.raises(InvalidTarget, match="label -1 is no class"):
        segmentation_targets(torch.tensor([[[0, -1]]]))
    for wrong in (torch.zeros(2, 3), torch.zeros(2, 3, 4), torch.zeros(2, 3, 4, dtype=torch.bool)):
        with pytest.raises(InvalidImage, match="give whole numbers"):
            segmentation_targets(wrong)
    with pytest.raises(InvalidImage, match="NaN"):
        segmentation_targets(torch.full((1, 2, 3, 3), float("nan")))


def test_a_body_that_holds_most_of_the_network_is_no_block() -> None:
    """torchvision's backbone returns a dictionary and holds all blocks: these are the layers."""
    dense = torchvision.models.segmentation.fcn_resnet50(weights=None, weights_backbone=None)
    names = pl.layer_names(dense)
    assert names[1:3] == ["backbone.layer1.0", "backbone.layer1.1"]
    assert (len(names), names[-1]) == (18, "classifier")
    wrapped = nn.Sequential()
    wrapped.add_module("network", torchvision.models.resnet18(weights=None))
    assert pl.layer_names(wrapped)[1:] == [f"network.layer{s}.{b}" for s in range(1, 5) for b in range(2)]


# Classifiers run at every place.


def places(model: nn.Module, images: Tensor) -> Tensor:
    """The logits of a ResNet's last features, place by place, through its own linear layer."""
    kept: list[Tensor] = []
    handle = model.avgpool.register_forward_pre_hook(lambda _, inputs: kept.append(inputs[0]))
    model(images)
    handle.remove()
    rows = [[model.fc(kept[0][:, :, y, x]) for x in range(kept[0].shape[3])] for y in range(kept[0].shape[2])]
    return torch.stack([torch.stack(row, 2) for row in rows], 2)


@pytest.mark.parametrize(
    "name",
    [
        "shapes-resnet",
        "resnet18",
        "resnext50_32x4d",
        "regnet_y_400mf",
        "googlenet",
        "efficientnet_b0",
    ],
)
def test_the_mean_over_the_places_is_the_classifiers_logits(name: str) -> None:
    loaded = pl.load_model(name)
    images = torch.randn(2, 3, 96, 80, generator=torch.Generator().manual_seed(0))
    expected = loaded.model(images)
    dense = Dense(loaded.model).eval()
    logits = dense(images)
    assert logits.dim() == 4
    assert logits.shape[2] * logits.shape[3] > 1
    scale = float(expected.abs().max())
    torch.testing.assert_close(logits.mean((2, 3)), expected, rtol=0, atol=4e-6 * scale)
    exact, images = dense.double(), images.double()  # the classifier's own parts
    torch.testing.assert_close(exact(images).mean((2, 3)), loaded.model(images), rtol=1e-11, atol=1e-12 * scale)


def test_each_place_is_the_linear_layer_there() -> None:
    model = pl.load_model("shapes-resnet").model.double()
    images = random_images(2, 40)
    expected = places(model, images)
    torch.testing.assert_close(Dense(model)(images), expected, rtol=1e-12, atol=1e-12)
    loaded = pl.load_model("dense:shapes-resnet")
    assert (loaded.name, loaded.weights, len(loaded.classes or ())) == ("dense:shapes-resnet", "bundled", 8)
    found = loaded.model.double()
    torch.testing.assert_close(found(images), Pooled(nn.Identity(), "predicted")(expected), rtol=1e-12, atol=1e-12)
    assert torch.equal(found.targets(images), segmentation_targets(expected.argmax(1), background=None))
    assert not any(parameter.requires_grad for parameter in found.parameters())


def test_gradients_of_a_dense_classifier_equal_plain_autograd() -> None:
    model, images = pl.load_model("shapes-resnet").model.double(), random_images(2, 64)

    class Places(nn.Module):
        def __init__(self, network: nn.Module) -> None:
            super().__init__()
            self.network = network

        def forward(self, x: Tensor) -> Tensor:
            return Pooled(nn.Identity(), "predicted")(places(self.network, x))

    layers = ["layer1.0", "layer3.1", "layer3"]
    expected = attributed(Places(model), images, [1, 5], [f"network.{layer}" for layer in layers])
    found = pl.Gradient()(pl.load_model("dense:shapes-resnet").model.double(), images, [1, 5], ["input", *layers])
    for layer in found:
        wanted = expected[layer if layer == "input" else f"network.{layer}"]
        assert relative_error(found[layer], wanted) < 1e-12


def test_a_dense_classifier_has_its_classifiers_variants_and_parts() -> None:
    classifier = pl.load_model("shapes-resnet").model
    dense = pl.load_model("dense:shapes-resnet").model
    assert pl.layer_names(dense) == pl.layer_names(classifier)
    assert [*dense.state_dict()] == [*classifier.state_dict()]
    images = random_images(4, 64).float()
    surrogate = pl.train_surrogate(classifier, images, epochs=1, batch_size=2)
    found = pl.Gradient()(dense, images, 1, ["layer1.1", "layer2.1"], variant=surrogate)
    plain = pl.Gradient()(dense, images, 1, ["layer1.1", "layer2.1"])
    assert all(relative_error(found[layer], plain[layer]) > 1e-3 for layer in plain)
    duplicate = copy.deepcopy(dense)
    with torch.no_grad():
        duplicate.fc.bias += 1
    torch.testing.assert_close(duplicate(images), dense(images) + 1, rtol=1e-5, atol=1e-5)
    assert duplicate.train().layer1[0].bn1.training
    assert not duplicate.eval().layer1[0].bn1.training


@pytest.mark.parametrize("name", ["convnext_tiny", "mobilenet_v3_small", "squeezenet1_1", "selu-cnn"])
def test_a_classifier_with_another_end_cannot_be_run_at_every_place(name: str) -> None:
    with pytest.raises(InvalidModel, match="cannot be run at every place"):
        pl.load_model(f"dense:{name}")


def test_names_of_dense_classifiers() -> None:
    with pytest.raises(UnknownName, match="resnet18"):
        pl.load_model("dense:resnet17")
    for wrong in ("dense:nets.py:make", "dense:dense:resnet18"):
        with pytest.raises(InvalidModel, match="comes a network's name"):
            pl.load_model(wrong)
    assert pl.load_model("dense:resnet18", classes=5).model(random_images(1, 64).float()).shape == (1, 5)


def test_targets_without_a_background() -> None:
    assert segmentation_targets(maps("0001", "1122"), background=None).tolist() == [0]  # a tie: the lower class
    assert segmentation_targets(maps("0001", "1122")).tolist() == [1]
    with pytest.raises(InvalidTarget, match="no pixel"):
        segmentation_targets(torch.full((1, 2, 2), 255), background=None)


def test_a_pixel_and_a_region_are_explained():
    model = seeded(
        lambda: nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 5, 3, padding=1, stride=2))
    )
    x = random_images(2, 8)
    logits = model(x)  # (2, 5, 4, 4)
    pixel = pl.Segmentation(model, region=(5, 2))
    assert torch.allclose(pixel(x), logits[:, :, 2, 1])
    mask = torch.zeros(8, 8)
    mask[:4, :2] = 1
    assert torch.allclose(pl.Segmentation(model, region=mask)(x), logits[:, :, :2, 0].mean(2))
    mask[:, :2] = 0
    mask[0, 0] = 1  # one pixel of four, which lies in one place
    assert torch.allclose(pl.Segmentation(model, region=mask)(x), logits[:, :, 0, 0])
    seen = pl.method("gradient")(pixel, x, 3)["input"].abs().sum((0, 1))
    assert seen[2:7, :5].all()
    assert not seen[:2].any()
    for region, match in (((8, 0), "a pixel"), (torch.ones(4, 4), "give one size")):
        with pytest.raises(InvalidParameter, match=match):
            pl.Segmentation(model, region=region)(x)
    with pytest.raises(InvalidParameter, match="with a pixel in it"):
        pl.Segmentation(model, region=torch.zeros(8, 8))


# The small U-Net by name.


def test_the_small_unet_is_explained_as_any_segmentation_model() -> None:
    loaded = pl.load_model("unet", seed=1)
    assert isinstance(loaded.model, Segmentation)
    dense = pl.load_model("unet", classes=3, seed=1).model.dense(torch.rand(2, 3, 40, 56))
    assert dense.shape == (2, 3, 40, 56)
    assert loaded.preprocess(Image.new("RGB", (320, 256))).shape == (3, 256, 256)
    first, stages = 27 * 16 + 32, [(16, 16), (16, 32), (32, 64), (64, 128), (192, 64), (96, 32), (48, 16)]
    doubles = sum(9 * (inside + out) * out + 4 * out for inside, out in stages)
    assert sum(value.numel() for value in loaded.model.parameters()) == first + doubles + 16 * 2 + 2

    network = randomise(UNetByName())
    model, images, targets = Segmentation(network), random_images(2, 32), [1, 0]
    layers = ["layer1", "layer2", "layer3", "layer4"]
    expected = attributed(Pooled(network, "mean"), images, targets, [f"dense.{layer}" for layer in layers])
    found = pl.Gradient()(model, images, targets, ["input", *layers])
    for layer in ["input", *layers]:
        assert relative_error(found[layer], expected[layer if layer == "input" else f"dense.{layer}"]) < 1e-12
    assert [found[layer].shape[-1] for layer in layers] == [16, 8, 4, 2]
    smoothed = pl.Gradient()(model, images, targets, layers, variant="backward")
    assert not torch.equal(smoothed["layer3"], found["layer3"])  # below a strided convolution
    assert torch.equal(smoothed["layer4"], found["layer4"])
    deep = pl.DeepLift()(model, images, targets, ["input"])["input"]
    differences = (model(images) - model(torch.zeros_like(images)))[[0, 1], targets]
    assert torch.allclose(deep.sum((1, 2, 3)), differences, rtol=1e-9)
