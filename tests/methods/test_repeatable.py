"""Models that are random, that running changes, or that mix a batch's images are refused, by the module's name."""

from __future__ import annotations

import random
import re
import warnings
from dataclasses import replace
from itertools import permutations
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
import torch.ao.quantization as tq
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import pellucid as pl
from pellucid.errors import (
    GradientWarning,
    InputWarning,
    InvalidImage,
    InvalidLayer,
    InvalidModel,
    InvalidTarget,
    PrecisionWarning,
    SkippedLayerWarning,
)
from pellucid.layouts import Layout, layouts_of
from pellucid.methods.checks import images_look_wrong, probabilities_of
from pellucid.methods.gradient import gradient
from pellucid.methods.repeatable import unexplainable
from pellucid.models.preprocess import CustomPreprocess
from pellucid.sampling import Noise, Sampling
from tests.networks import images, seeded


class Bottom(nn.Module):
    """A convolution, one module or function in between, and a head."""

    def __init__(self, between: nn.Module | None = None) -> None:
        super().__init__()
        self.conv, self.between, self.head = nn.Conv2d(3, 4, 3), between or nn.Identity(), nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.between(F.relu(self.conv(x))).mean((2, 3)))


class Always(nn.Module):
    """Random, though no module says so and eval mode does not help."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function = function

    def forward(self, x: Tensor) -> Tensor:
        return self.function(x)


class LastHidden(nn.Module):
    """An LSTM over rows of pixels."""

    def __init__(self) -> None:
        super().__init__()
        self.lstm = nn.LSTM(12, 12, num_layers=2, batch_first=True, dropout=0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.lstm(x.flatten(1, 2))[0][:, -1, :, None, None]


class Counting(nn.Module):
    """Keeps a statistic of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("seen", torch.zeros(()))

    def forward(self, x: Tensor) -> Tensor:
        self.seen += 1
        return x


def found(between: nn.Module, training: bool = False) -> str:
    net = seeded(lambda: Bottom(between))
    net.between.train(training)
    with pytest.raises(pl.PellucidError) as refused:
        pl.Gradient()(net, images(2, 14), 0)
    return str(refused.value)


RANDOM = {
    "dropout": Always(lambda x: F.dropout(x, 0.5, training=True)),
    "drop path": Always(lambda x: x * (torch.rand(len(x), 1, 1, 1) > 0.5)),
    "rare": Always(lambda x: x * (torch.rand(1) > 0.1)),
    "noise": Always(lambda x: x + 0.01 * torch.randn_like(x)),
    "rrelu": Always(lambda x: F.rrelu(x - 1, training=True)),
    "attention": Always(lambda x: F.scaled_dot_product_attention(x, x, x, dropout_p=0.5)),
}


@pytest.mark.parametrize("between", RANDOM.values(), ids=RANDOM)
def test_a_random_model_is_refused(between: nn.Module) -> None:
    assert re.search(r"random.*first at 'between' \(Always\)", found(between))


def test_random_numbers_without_effect_are_no_randomness() -> None:
    net, x = seeded(lambda: Bottom(Always(lambda x: x + 0 * torch.rand_like(x)))), images(2, 14)
    assert torch.equal(pl.Gradient()(net, x, 0)["input"], pl.Gradient()(seeded(Bottom), x, 0)["input"])


def test_what_stays_in_training_mode_is_refused() -> None:
    net = seeded(lambda: Bottom(LastHidden()))
    net.head = nn.Linear(12, 5).double()
    net.between.lstm.train()
    with pytest.raises(pl.PellucidError, match=r"random.*first at 'between'"):
        pl.Gradient()(net, images(2, 14), 0)
    assert "between" in found(nn.InstanceNorm2d(4, track_running_stats=True), training=True)
    spectral = nn.utils.parametrizations.spectral_norm(nn.Conv2d(4, 4, 1))
    assert "changes when the model runs" in found(spectral, training=True)
    assert "'between.seen' changes" in found(Counting())


def test_an_image_whose_logits_depend_on_its_batch_is_refused() -> None:
    batch_statistics = nn.BatchNorm2d(4, track_running_stats=False)
    assert re.search(r"beside it, first at 'between' \(BatchNorm2d\)", found(batch_statistics))
    assert "beside it" in found(Always(lambda x: x - x.mean(0, keepdim=True)))


def test_a_repeatable_model_is_tried_once() -> None:
    net, x = seeded(Bottom), images(2, 14)
    nn.init.constant_(net.head.bias, 9)  # so that no output looks like a sigmoid's, which takes a pass to tell
    runs = []
    net.register_forward_hook(lambda *_: runs.append(1))
    method = pl.Gradient()
    method(net, x, 0)
    first = len(runs)
    method(net, x, 0)
    # By itself, two images together, under the rules, and steps away.
    assert len(runs) - first == first - 5 - 2 - 2 - 2 == 1
    net.between = Always(torch.nn.Dropout(0.5).train())
    with pytest.raises(pl.PellucidError, match="training mode"):
        method(net, x, 0)


def test_a_models_classes_are_counted_once() -> None:
    loaded, runs = pl.load_model("shapes-resnet"), []
    x = torch.randn(2, 3, 64, 64)
    method = pl.Gradient()
    loaded.model.register_forward_hook(lambda *_: runs.append(1))
    method(loaded, x, "star")
    runs.clear()
    method(loaded, x, "star")
    assert len(runs) == 1


def test_layers_are_tried_in_four_passes() -> None:
    net, x, runs = seeded(Bottom), images(2, 14), []
    net.register_forward_hook(lambda *_: runs.append(1))
    for _ in range(2):
        assert unexplainable(net, net, ["conv", "between"], x[:1], 64) == {}
        assert len(runs) == 4


def test_each_function_is_tried_once() -> None:
    net, x = seeded(Bottom), images(2, 14)
    nn.init.constant_(net.head.bias, 9)  # so that no output looks like a sigmoid's, which takes a pass to tell
    runs = []
    net.register_forward_hook(lambda *_: runs.append(1))
    method = pl.Gradient()
    method(net, x, 0)
    for mixing in (lambda z: z[:, 1] * z[:, 1].mean(), lambda z: z[:, 0] * torch.rand(len(z))):
        with pytest.raises(InvalidTarget, match=r"function.*(images beside it|random)"):
            method(net, x, mixing)

    def second(output: Tensor) -> Tensor:
        return output[:, 1]

    for target, passes in ((second, 5 + 2 + 2 + 2 + 1), (second, 1), ("1 - 0", 1), (0, 1)):
        runs.clear()
        method(net, x, target)
        assert len(runs) == passes


class Switched(nn.Module):
    """Drops values where a setting of its own says so."""

    def __init__(self) -> None:
        super().__init__()
        self.drops, self.gate = False, nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, 0.5, self.drops) + self.gate[0] * x.mean(0, keepdim=True)


def test_a_model_that_was_changed_is_tried_again() -> None:
    net, x = seeded(lambda: Bottom(Switched())), images(2, 14)
    net.between.gate.data.zero_()
    pl.Gradient()(net, x, 0)
    net.between.drops = True
    with pytest.raises(InvalidModel, match=r"random.*first at 'between'"):
        pl.Gradient()(net, x, 0)
    net.between.drops = False
    pl.Gradient()(net, x, 0)
    with torch.no_grad():
        net.between.gate.fill_(1)
    with pytest.raises(InvalidModel, match=r"beside it, first at 'between'"):
        pl.Gradient()(net, x, 0)
    net = seeded(lambda: Bottom(nn.BatchNorm2d(4)))
    pl.Gradient()(net, x, 0)
    net.between.running_mean = net.between.running_var = None
    with pytest.raises(InvalidModel, match=r"beside it, first at 'between'"):
        pl.Gradient()(net, x, 0)


class Settings:
    """An object of one's own."""

    def __init__(self) -> None:
        self.inner = SimpleNamespace(drops=False)


class OfSettings(nn.Module):
    """Drops values where an object, or its class, says so."""

    drops = False

    def __init__(self) -> None:
        super().__init__()
        self.settings = Settings()

    def forward(self, x: Tensor) -> Tensor:
        return F.dropout(x, 0.5, self.drops or self.settings.inner.drops)


def test_hooks_classes_and_objects_that_were_changed_are_seen() -> None:
    x = images(2, 14)

    def object_of(net: Bottom) -> None:
        net.between.settings.inner.drops = True

    def class_of(net: Bottom) -> None:
        OfSettings.drops = True

    def forward_of(net: Bottom) -> None:
        OfSettings.forward = lambda self, x: F.dropout(x, 0.5, True)

    def hook_of(net: Bottom) -> None:
        net.between.register_forward_hook(lambda module, given, output: F.dropout(output, 0.5, True))

    def dropping(rate: float):
        return lambda x: F.dropout(x, rate, True)

    def closure_of(net: Bottom) -> None:
        net.between.forward = dropping(0.0)
        pl.Gradient()(net, x, 0)
        net.between.forward = dropping(0.5)

    def closure_of_hook(net: Bottom) -> None:
        def hook(rate: float):
            return lambda module, given, output: F.dropout(output, rate, True)

        handle = net.between.register_forward_hook(hook(0.0))
        pl.Gradient()(net, x, 0)
        handle.remove()
        net.between.register_forward_hook(hook(0.5))

    kept = dict(vars(OfSettings))
    for change in (object_of, class_of, forward_of, hook_of, closure_of, closure_of_hook):
        net = seeded(lambda: Bottom(OfSettings()))
        pl.Gradient()(net, x, 0)
        change(net)
        with pytest.raises(InvalidModel, match=r"random.*first at 'between'"):
            pl.Gradient()(net, x, 0)
        OfSettings.drops, OfSettings.forward = kept["drops"], kept["forward"]


def test_hooks_that_are_put_on_anew_for_each_call_are_the_same() -> None:
    net, x, runs = seeded(Bottom), images(2, 14), []
    net.register_forward_hook(lambda *_: runs.append(1))
    for _ in range(3):
        features, before = [], len(runs)
        handle = net.conv.register_forward_hook(lambda module, given, output, kept=features: kept.append(output))
        pl.Gradient()(net, x, 0)
        handle.remove()
    assert len(runs) == before + 1


def test_a_model_for_single_images_passes() -> None:
    class One(Bottom):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.view(1, 3, 14, 14))

    net, x = seeded(One), images(2, 14)
    one_by_one = pl.Gradient()(net, x, 0, max_batch=1)["input"]
    assert torch.equal(one_by_one, pl.Gradient()(seeded(Bottom), x, 0)["input"])


def test_the_precision_is_that_of_most_weights() -> None:
    net = seeded(Bottom).float()
    net.register_parameter("a_half", nn.Parameter(torch.ones(1).half()))
    net._parameters = {"a_half": net._parameters.pop("a_half"), **net._parameters}
    net.register_parameter("index", nn.Parameter(torch.ones(3, dtype=torch.long), requires_grad=False))
    net.register_parameter("phase", nn.Parameter(torch.ones(3, dtype=torch.complex64)))
    x = images(2, 14)
    result = pl.Gradient()(net, x, 0)["input"]
    assert result.dtype == torch.float32
    assert torch.equal(result, pl.Gradient()(seeded(Bottom).float(), x, 0)["input"])


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_warned_of_and_near(dtype: torch.dtype) -> None:
    net, x = seeded(Bottom), images(2, 14)
    exact = pl.Gradient()(net, x, 0)["input"]
    with pytest.warns(PrecisionWarning, match=f"computes in {str(dtype)[6:]}"):
        found = pl.Gradient()(net.to(dtype), x, 0)["input"]
    assert found.dtype == torch.float32
    assert 0 < float((found.double() - exact).norm() / exact.norm()) < 0.1
    with torch.autocast("cpu", dtype), pytest.warns(PrecisionWarning, match=f"computes in {str(dtype)[6:]}"):
        rough = pl.Gradient()(net.float(), x, 0)["input"]
    assert rough.dtype == torch.float32
    assert 0 < float((rough.double() - exact).norm() / exact.norm()) < 0.1


class Refusing(TorchDispatchMode):
    """A device without float64, as MPS is: only what comes from NumPy may pass through it, before it is cast."""

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        for x in tree_leaves(result):
            if isinstance(x, Tensor) and x.dtype == torch.float64 and "lift_fresh" not in str(function):
                raise TypeError(f"{function}: the MPS framework doesn't support float64")
        return result


class Tokens(nn.Module):
    """Tokens of patches, whose layout is measured."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.mix, self.head = nn.Conv2d(3, 6, 2, 2), nn.Linear(6, 6), nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        tokens = F.max_pool2d(self.patches(x), 2).flatten(2).mT
        return self.head(F.relu(self.mix(F.layer_norm(tokens, (6,)))).mean(1))


VARIANCE = "smoothed(gradient, samples=3, moment='variance')"


@pytest.mark.filterwarnings("ignore::pellucid.CompletenessWarning", "ignore::pellucid.EmptyMapWarning")
@pytest.mark.parametrize("text", [*pl.METHODS, VARIANCE])
def test_nothing_needs_float64_where_there_is_none(text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    net, x = seeded(Tokens).float(), images(2, 16).float()
    method = replace(pl.method(text), samplings=tuple(map(short, pl.method(text).samplings)))
    expected = method(seeded(Tokens).float(), x, 0, ["input", "mix"])
    monkeypatch.setattr("pellucid.passes.SINGLE", {"cpu"})
    with Refusing():
        found = method(net, x, 0, ["input", "mix"])
    assert layouts_of(net, ["mix"], x, {}, 4) == {"mix": Layout("bnc", 0, (4, 4))}
    for layer, value in expected.items():
        torch.testing.assert_close(found[layer], value, rtol=1e-3, atol=1e-5 * float(value.abs().max()))


def short(sampling: Sampling) -> Sampling:
    return replace(sampling, **{"samples" if isinstance(sampling, Noise) else "steps": 3})


class Floating(nn.Module):
    """What torch.ao quantizes, statically or dynamically."""

    def __init__(self) -> None:
        super().__init__()
        self.inside, self.conv, self.outside = tq.QuantStub(), nn.Conv2d(3, 4, 3), tq.DeQuantStub()
        self.head = nn.Linear(4, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.outside(F.relu(self.conv(self.inside(x)))).mean((2, 3)))


@pytest.mark.filterwarnings("ignore::UserWarning", "ignore::DeprecationWarning")
@pytest.mark.parametrize("way", ["dynamic", "static"])
def test_models_quantized_to_integers_are_refused_by_name(way: str) -> None:
    x = images(2, 14).float()
    net: nn.Module = seeded(Floating).float()
    if way == "dynamic":
        net, name = tq.quantize_dynamic(net, {nn.Linear}, dtype=torch.qint8), "head"
    else:
        net.qconfig, name = tq.default_qconfig, "inside"
        net = tq.prepare(net)
        net(x)
        net = tq.convert(net)
    with pytest.raises(InvalidModel, match=f"module '{name}' .* is quantized"):
        pl.Gradient()(net, x, 0, "conv")


class OfBytes(Tensor):
    """A weight that is kept as bytes and a scale, as libraries for quantization keep theirs."""

    @staticmethod
    def __new__(cls, kept: Tensor, scale: Tensor) -> Any:
        return Tensor._make_wrapper_subclass(cls, kept.shape, dtype=scale.dtype, device=kept.device)

    def __init__(self, kept: Tensor, scale: Tensor) -> None:
        self.kept, self.scale = kept, scale

    def __tensor_flatten__(self) -> Any:
        return ["kept", "scale"], None

    @staticmethod
    def __tensor_unflatten__(inside: Any, _: Any, __: Any, ___: Any) -> OfBytes:
        return OfBytes(inside["kept"], inside["scale"])

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.detach.default:
            return OfBytes(args[0].kept, args[0].scale)
        plain = [one.kept * one.scale if isinstance(one, OfBytes) else one for one in args]
        return func(*plain, **(kwargs or {}))


@pytest.mark.parametrize("dtype", [torch.int8, torch.float8_e4m3fn])
def test_weights_kept_as_bytes_by_a_class_of_their_own_are_refused(dtype: torch.dtype) -> None:
    net, x = seeded(Floating).float(), images(2, 14).float()
    net.head.weight = nn.Parameter(OfBytes((net.head.weight.detach() * 64).to(dtype), torch.tensor(1 / 64)), False)
    with pytest.raises(InvalidModel, match=r"module 'head' .* is quantized"):
        pl.Gradient()(net, x, 0, "conv")


def test_weights_kept_as_numbers_by_a_class_of_their_own_are_explained() -> None:
    net, x = seeded(Floating).float(), images(2, 14).float()
    expected = pl.Gradient()(net, x, 0)["input"]
    net.head.weight = nn.Parameter(OfBytes(net.head.weight.detach() * 64, torch.tensor(1 / 64)), False)
    torch.testing.assert_close(pl.Gradient()(net, x, 0)["input"], expected)


def test_noise_does_not_depend_on_the_default_precision() -> None:
    net, x = seeded(Bottom), images(2, 14)
    expected = pl.Gradient().smoothed(3)(net, x, 0)["input"]
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        assert torch.equal(pl.Gradient().smoothed(3)(net, x, 0)["input"], expected)
    finally:
        torch.set_default_dtype(before)


def test_what_cannot_be_differentiated_is_refused_in_one_line() -> None:
    net = seeded(lambda: Bottom(Always(lambda x: x * torch.heaviside(x, x.new_zeros(())))))
    for method in (pl.Gradient(), pl.DeepLift()):
        with pytest.raises(InvalidModel, match="cannot be differentiated: derivative for aten::heaviside"):
            method(net, images(2, 14), 0)


class Normalizing(nn.Module):
    """Many normalizations without biases, each of which divides by nearly 0 where the image is 0."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList(nn.Linear(6, 6, bias=False) for _ in range(24))
        self.head = nn.Linear(6, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = x.flatten(1).unflatten(1, (6, -1)).mean(2)
        for layer in self.layers:
            x = F.layer_norm(layer(x), (6,))
        return self.head(x)


def test_differences_that_overflow_at_a_reference_of_zeros_name_another_baseline() -> None:
    net, x = seeded(Normalizing).float(), images(2, 14).float()
    with pytest.raises(InvalidModel, match=r"is not finite .* or take another baseline"):
        pl.DeepLift()(net, x, 0)
    found = pl.DeepLift(baseline="blur")(net, x, 0)
    assert bool(found["input"].isfinite().all())


# What looks wrong is warned of, once for a model.


@pytest.mark.parametrize(
    ("scale", "end", "message"),
    [
        (255, nn.Identity(), r"values up to 255, as of images that are not normalized.*divide by 255"),
        (1, nn.Softmax(1), "the outputs are probabilities; explain the model without its last softmax"),
        (1, nn.Sigmoid(), "the outputs are probabilities; explain the model without its last sigmoid"),
        (1, nn.Sequential(nn.Linear(4, 1), nn.Sigmoid(), nn.Flatten(0)), "without its last sigmoid"),
    ],
)
def test_what_looks_like_a_mistake_is_warned_of_once(scale, end, message):
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), end).eval()
    images = scale * torch.linspace(0, 1, 2 * 3 * 5 * 5).reshape(2, 3, 5, 5)
    with pytest.warns(InputWarning, match=message) as caught:
        gradient()(model, images, 0)
    assert len(caught) == 1
    gradient()(model, images, 0)  # a second warning would be an error here
    gradient()(model, images[..., :4], 0)


@pytest.mark.parametrize("end", [nn.Linear(4, 3), nn.Linear(4, 1), nn.Sequential(nn.Sigmoid(), nn.Linear(4, 3))])
def test_logits_between_0_and_1_by_chance_are_no_probabilities(end, recwarn):
    model = seeded(lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), end))
    with torch.no_grad():
        last = [*model.modules()][-1]
        last.weight.fill_(0.1)
        last.bias.fill_(0.3)
    x = images(2, 5) / 10
    assert ((model(x) >= 0) & (model(x) <= 1)).all()
    pl.Gradient()(model, x, 0)
    pl.Gradient()(seeded(Bottom), images(2, 14), lambda logits: logits[:, 0].sigmoid())
    assert not [one for one in recwarn if issubclass(one.category, InputWarning)]


def test_last_sigmoids_are_told_as_they_are_and_logits_by_their_softmax():
    labels = seeded(lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Sigmoid()))
    x = images(2, 5)
    assert torch.equal(probabilities_of(labels, x, labels(x)), labels(x))
    logits = labels[:3](x).clamp(0, 1)
    assert torch.equal(probabilities_of(labels[:3], x, logits), logits.softmax(1))
    assert torch.equal(probabilities_of(labels[:3], x, logits[:, :1]), logits[:, :1].sigmoid())


def test_outputs_in_percent_are_probabilities_too():
    class Percent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(3 * 5 * 5, 3)

        def forward(self, x: Tensor) -> Tensor:
            return 100 * self.fc(x.flatten(1)).softmax(1)

    model, x = seeded(Percent), images(2, 5)
    with pytest.warns(
        InputWarning, match="the outputs are probabilities; explain the model without its last softmax"
    ):
        pl.Gradient()(model, x, 0)
    shares = probabilities_of(model, x, model(x))
    torch.testing.assert_close(shares, model.fc(x.flatten(1)).softmax(1))


class Bounded(nn.Module):
    """Keeps a probability from 0 and 1."""

    def forward(self, x):
        return x.clamp(1e-6, 1 - 1e-6)


def test_two_answers_of_a_probability_are_refused():
    """Their softmax would be a second sigmoid, by which 0.002 becomes 0.5."""
    model = seeded(lambda: nn.Sequential(nn.Conv2d(3, 1, 3), nn.AdaptiveAvgPool2d(1), nn.Sigmoid(), nn.Flatten()))
    with pytest.raises(InvalidModel, match=r"ends in a sigmoid.*return what the sigmoid is taken of"):
        pl.Gradient()(pl.Classifier(model, pl.two_answers), images(2, 5), 1)
    with pytest.warns(InputWarning, match="without its last sigmoid"):
        pl.Gradient()(model, images(2, 5), 0)
    with pytest.raises(InvalidModel, match="ends in a sigmoid"):  # which many keep from 0 and 1
        pl.Gradient()(pl.Classifier(nn.Sequential(model, Bounded()), pl.two_answers), images(2, 5), 1)


class Fraction(nn.Module):
    """A probability in a spelling."""

    def __init__(self, spelling) -> None:
        super().__init__()
        self.spelling = spelling

    def forward(self, z):
        return self.spelling(z)


PROBABILITIES = {
    "division": lambda z: 1 / (1 + (-z).exp()),
    "odds": lambda z: z.exp() / (1 + z.exp()),
    "tanh": lambda z: (1 + (z / 2).tanh()) / 2,
    "column": lambda z: torch.cat([torch.zeros_like(z), z], 1).softmax(1)[:, 1:],
    "logarithm": lambda z: F.logsigmoid(z).exp(),
    "mean": lambda z: (z.sigmoid() + (2 * z).sigmoid()) / 2,
    "hard": F.hardsigmoid,
}


@pytest.mark.parametrize("spelling", PROBABILITIES.values(), ids=PROBABILITIES)
def test_a_probability_in_any_spelling_is_warned_of(spelling):
    net = seeded(lambda: nn.Sequential(nn.Conv2d(3, 1, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()))
    model = nn.Sequential(net, Fraction(spelling))
    with pytest.warns(InputWarning, match=r"one output lies between 0 and 1 .* two answers made of it are false"):
        pl.Gradient()(pl.Classifier(model, pl.two_answers), images(2, 5), 1)


@pytest.mark.parametrize("name", ["division", "odds", "tanh", "logarithm", "mean"])
def test_several_probabilities_in_any_spelling_are_told_as_they_are(name):
    net = seeded(lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()))
    model, x = nn.Sequential(net, Fraction(PROBABILITIES[name])), images(2, 5)
    with pytest.warns(InputWarning, match=r"outputs lie between 0 and 1 .* explain the logits"):
        pl.Gradient()(model, x, 0)
    assert torch.equal(probabilities_of(model, x, model(x)), model(x))


def test_images_before_the_normalization_that_the_model_tells_of_are_noticed():
    loaded = pl.load_model("shapes-resnet")
    pixels = torch.linspace(0, 1, 3 * 64 * 64).reshape(1, 3, 64, 64)
    pl.method("gradient")(loaded, loaded.preprocess.normalize(pixels))
    loaded = pl.load_model("shapes-resnet")
    with pytest.warns(
        InputWarning, match=r"images lie in \[0, 1\], as before.*give preprocess.normalize\(images\)"
    ):
        pl.method("gradient")(loaded, pixels)
    model = pl.load_model("shapes-resnet").model  # of which nobody knows what it takes
    pl.method("gradient")(model, pixels)


def test_images_of_a_later_call_are_looked_at_too_each_mistake_once():
    loaded = pl.load_model("shapes-resnet")
    pixels = torch.linspace(0, 1, 3 * 64 * 64).reshape(1, 3, 64, 64)
    pl.method("gradient")(loaded, loaded.preprocess.normalize(pixels))
    with pytest.warns(InputWarning, match=r"images lie in \[0, 1\]"):
        pl.method("gradient")(loaded, pixels)
    pl.method("gradient")(loaded, pixels)  # a second warning would be an error here


FAR = (  # least and greatest value of float images, and what is advised
    (0, 255, "divide by 255 (in commands, of float images: --scale 0,255)"),
    (-200, 255, "divide by 255 (in commands, of float images: --scale 0,255)"),
    (5, 3000, "to [0, 1] (in commands, by the ends of these images alone: --scale=5,3000)"),
    (-100, 2900, "to [0, 1] (in commands, by the ends of these images alone: --scale=-100,2900)"),
    (0, 12345678, "to [0, 1] (in commands, by the ends of these images alone: --scale=0,1.235e+07)"),
)


@pytest.mark.parametrize(("low", "high", "advice"), FAR)
@pytest.mark.parametrize("scale", [None, (0, 10)])
def test_values_far_above_those_of_bytes_are_scaled_by_their_own_range(low, high, advice, scale):
    pixels = torch.linspace(low, high, 300).reshape(1, 3, 10, 10)
    unknown = (
        advice if "255" in advice else "(by Preprocess(scale=(low, high)), the ends of the numbers in your files)"
    )
    assert unknown in images_look_wrong(pixels)["scale"]
    own = pl.Preprocess(None, None, (0.5, 0.4, 0.3), (0.1, 0.2, 0.3), scale=scale)
    seen = own.normalize(pixels if scale is None else pixels / 10)
    assert advice in images_look_wrong(seen, own, normalized=True)["scale"]
    function = CustomPreprocess(torch.as_tensor)
    of_a_function = images_look_wrong(pixels, function, normalized=True)["scale"]
    assert "in the function that prepares them and normalize" in of_a_function
    assert ("divide by 255" in of_a_function) == (high == 255)


def test_bytes_are_told_what_to_become():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    with pytest.raises(InvalidImage, match=r"torch.uint8; give a float tensor.*images / 255 - mean"):
        gradient()(model, torch.zeros(1, 3, 5, 5, dtype=torch.uint8))


# A map of one color.


@pytest.mark.parametrize(("name", "is_flat"), [("gradient", True), ("smoothgrad", True), ("gradcam", False)])
def test_a_gradient_below_an_average_is_of_one_color_and_that_is_said(name, is_flat):
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
    ).eval()
    images = torch.randn(2, 3, 8, 8)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        maps = pl.method(name)(model, images, layers=["0", "2"])
    flat = [one.message for one in caught if isinstance(one.message, pl.FlatMapWarning)]
    assert [one.layer for one in flat] == ["2"] * is_flat
    assert bool((maps["2"] == maps["2"][..., :1, :1]).all()) == is_flat
    for one in flat:
        assert "only an average over them comes after the layer: take an earlier layer" in str(one)


def test_a_layer_of_one_place_and_single_images_of_one_color_are_told():
    torch.manual_seed(0)
    model = nn.Sequential(
        nn.Conv2d(3, 4, 3), nn.Tanh(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)
    ).eval()
    images = torch.randn(3, 3, 8, 8)
    images[1] = images[1, :, :1, :1]  # of one color itself, so that its tanh has one slope at all places
    with pytest.warns(pl.FlatMapWarning) as caught:
        pl.Gradient()(model, images, 0, layers=["0", "2"])
    told = {one.message.layer: (one.message.images, str(one.message)) for one in caught}
    assert {layer: count for layer, (count, _) in told.items()} == {"0": 1, "2": 3}
    assert "the attribution of 1 of 3 images has one value" in told["0"][1]
    assert "there are no places any more" in told["2"][1]


def test_grad_cam_at_the_input_is_the_image_weighed_and_that_is_said():
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)).eval()
    images = torch.randn(2, 3, 8, 8)
    with pytest.warns(pl.ImageMapWarning, match="at 'input' a map of GradCAM is the image's own channels") as told:
        found = pl.method("smoothed(gradcam, samples=1, std=0)")(model, images, 0, layers=["input", "0"])["input"]
    assert [one.message.layer for one in told if isinstance(one.message, pl.ImageMapWarning)] == ["input"]
    weights = pl.Gradient()(model, images, 0)["input"].mean((2, 3), keepdim=True)
    torch.testing.assert_close(found, images * weights)


# Channels that cancel.


class Normalized(nn.Module):
    """A layer that only a layer norm over its channels reads, and one that something else reads, too."""

    def __init__(self):
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)
        self.norm, self.head = nn.LayerNorm(8), nn.Linear(8, 3)

    def forward(self, x):
        places = self.second(torch.tanh(self.first(x))).flatten(2).transpose(1, 2)
        return self.head(torch.tanh(self.norm(places)).mean(1))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(
    ("name", "cancels"),
    [("gradient", True), ("smoothgrad", True), ("input_x_gradient", False), ("gradcam", False)],
)
def test_channels_of_a_gradient_below_a_layer_norm_cancel_and_that_is_said(name, cancels, dtype):
    """LN(a + c 1) = LN(a), so that the gradient times 1 is 0, whatever the weights."""
    torch.manual_seed(0)
    model = Normalized().to(dtype).eval()
    nn.init.normal_(model.norm.weight)
    images = torch.randn(2, 3, 10, 10, dtype=dtype)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        maps = pl.method(name)(model, images, layers=["first", "second"])
    told = [one.message for one in caught if isinstance(one.message, pl.CanceledMapWarning)]
    assert [one.layer for one in told] == ["second"] * cancels
    assert all("in 2 of 2 images" in str(one) and "channels='abs_sum'" in str(one) for one in told)
    for channels in ("mean", "sum"):
        assert bool((pl.heatmap(maps["second"], channels=channels) == 0).all()) == cancels
        assert pl.heatmap(maps["first"], channels=channels).std((1, 2)).min() > 0
    assert pl.heatmap(maps["second"], channels="abs_sum").std((1, 2)).min() > 0


class ReadsItsClassToken(nn.Module):
    """Tokens behind a class token, mixed by two blocks; the class token alone is read."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Conv2d(3, 8, 4, stride=4)
        self.blocks = nn.ModuleList(nn.TransformerEncoderLayer(8, 2, 16, batch_first=True) for _ in range(2))
        self.head = nn.Linear(8, 3)

    def forward(self, x):
        tokens = self.embed(x).flatten(2).transpose(1, 2)
        tokens = torch.cat([tokens.mean(1, keepdim=True), tokens], 1)
        for block in self.blocks:
            tokens = block(tokens)
        return self.head(tokens[:, 0])


@pytest.mark.parametrize("name", ["gradient", "gradcam", "input_x_gradient"])
def test_where_the_class_token_alone_is_read_the_block_before_is_advised(name):
    torch.manual_seed(0)
    model = ReadsItsClassToken().double().eval()
    images = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        maps = pl.method(name)(
            model, images, layers=["blocks.0", "blocks.1"], layouts={"blocks.*": "tokens(prefix=1)"}
        )
    assert not maps["blocks.1"].any()
    assert maps["blocks.0"].any()
    told = [one.message for one in caught if isinstance(one.message, pl.EmptyMapWarning | pl.FlatMapWarning)]
    assert [one.layer for one in told] == ["blocks.1"]
    assert str(told[0]).endswith("only the class token is read after this layer; take the block before")


@pytest.mark.parametrize("name", ["gradient", "gradcam"])
def test_a_head_of_zeros_is_no_matter_of_the_class_token(name):
    torch.manual_seed(0)
    model = ReadsItsClassToken().double().eval()
    nn.init.zeros_(model.head.weight)
    images = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    with pytest.warns(pl.EmptyMapWarning, match="zero everywhere") as caught:
        pl.method(name)(model, images, layers="blocks.1", layouts={"blocks.*": "tokens(prefix=1)"})
    assert not any(isinstance(one.message, pl.errors.TokenWarning) for one in caught)


def test_a_variant_with_nothing_to_smooth_is_to_be_left_out():
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Flatten(), nn.Linear(256, 3)).eval()
    for variant in ("backward", "forward"):
        with pytest.raises(pl.RuleNotApplied, match="Leave out the variant, or this rule: the network"):
            pl.method("gradient")(model, torch.randn(1, 3, 8, 8), variant=variant)


class OfViews(nn.Module):
    """A layer that gives a view of a map, into which the model then writes."""

    def __init__(self, writes: bool) -> None:
        super().__init__()
        self.conv, self.part, self.head = nn.Conv2d(3, 8, 3), nn.Identity(), nn.Conv2d(4, 3, 3)
        self.writes = writes

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv(x)
        part = self.part(h[:, :4])
        if self.writes:
            h.mul_(2)
        return (self.head(part.relu()) * h.mean((1, 2, 3), keepdim=True)).mean((2, 3))


def test_a_layer_whose_output_is_written_by_another_name_is_refused() -> None:
    model, x = seeded(lambda: OfViews(True)), images(2, 8)
    with pytest.raises(InvalidLayer, match="writes into the output of layer 'part' by another name"):
        pl.method("gradient")(model, x, 0, ["input", "part"])
    with pytest.warns(SkippedLayerWarning, match="by another name"):
        assert list(pl.method("gradient")(model, x, 0, ["input", "p*"])) == ["input"]
    leaf = x.clone().requires_grad_()
    (wanted,) = torch.autograd.grad(model(leaf)[:, 0].sum(), leaf)
    assert torch.allclose(pl.method("gradient")(model, x, 0)["input"], wanted, rtol=1e-12, atol=0)
    assert list(pl.method("gradient")(seeded(lambda: OfViews(False)), x, 0, "part")) == ["part"]


@pytest.mark.parametrize("asks", [lambda x: torch.is_grad_enabled(), lambda x: x.requires_grad])
def test_a_model_that_answers_otherwise_with_gradients_is_refused(asks) -> None:
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            h = self.conv(x)
            return (h.relu() if asks(h) else h).mean((2, 3))

    model = seeded(Branching)
    with pytest.raises(InvalidModel, match="other logits where gradients are asked for"):
        pl.method("gradient")(model, images(2, 8), 0)


@pytest.mark.parametrize("place", [0, 1, -1])
def test_a_model_that_looks_at_one_image_of_a_batch_is_refused(place: int) -> None:
    def with_one(h: Tensor) -> Tensor:
        return h * h[place % len(h)].mean()

    model, x = seeded(lambda: Bottom(Always(with_one))), images(3, 8)
    with pytest.raises(InvalidModel, match="depend on the images beside it, first at 'between'"):
        pl.Gradient()(model, x, 0)
    alone = pl.Gradient()(model, x, 0, max_batch=1)["input"]
    leaf = x[:1].clone().requires_grad_()
    (wanted,) = torch.autograd.grad(model(leaf)[0, 0], leaf)
    assert torch.allclose(alone[:1], wanted, rtol=1e-12, atol=0)


@pytest.mark.parametrize("order", [list(order) for order in permutations(range(4)) if order != (0, 1, 2, 3)])
def test_a_model_that_moves_images_within_a_batch_is_refused(order: list[int]) -> None:
    """Also by two places, or behind the first: what a batch of two images does not show."""

    def moved(h: Tensor) -> Tensor:
        return h[order] if len(h) == 4 else h

    model, x = seeded(lambda: Bottom(Always(moved))), images(4, 8)
    with pytest.raises(InvalidModel, match="depend on the images beside it, first at 'between'"):
        pl.Gradient()(model, x, 0)


@pytest.mark.parametrize("first", [torch.zeros(8), torch.linspace(-1, 1, 8)], ids=["zero", "odd"])
def test_images_are_mixed_whatever_the_first_one_shows(first: Tensor) -> None:
    """An image of zeros is its own opposite, as is one that changes sign where it is mirrored."""
    model = seeded(lambda: Bottom(nn.BatchNorm2d(4, track_running_stats=False)))
    x = torch.cat([first.double().expand(1, 3, 8, 8), images(2, 8)])
    with pytest.raises(InvalidModel, match="depend on the images beside it, first at 'between'"):
        pl.Gradient()(model, x, 0)


class Reordered(nn.Module):
    """A layer ``part`` whose rows stand in another order than the images, as where these are sorted by size."""

    def __init__(self, order: str) -> None:
        super().__init__()
        self.conv, self.part, self.head = nn.Conv2d(3, 4, 3), nn.Identity(), nn.Linear(4, 3)
        self.order = order

    def forward(self, x: Tensor) -> Tensor:
        order = torch.arange(len(x))
        if self.order == "reversed":
            order = order.flip(0)
        elif self.order == "rolled":
            order = order.roll(2)
        elif self.order == "swapped" and len(x) == 4:
            order = order[[0, 3, 2, 1]]
        elif self.order == "sorted":
            order = x.mean((1, 2, 3)).argsort()
        h = self.conv(x)
        if self.order == "mixed":
            h = h - h.mean(0, keepdim=True).detach() + h.mean(0, keepdim=True)
            mean = h.mean(0, keepdim=True)
            h = self.part(h - mean) + mean
        else:
            h = self.part(h[order])[order.argsort()]
        return self.head(h.tanh().mean((2, 3)))


@pytest.mark.filterwarnings("ignore::pellucid.errors.GradientWarning")  # of a mean that counts twice
@pytest.mark.parametrize("order", ["reversed", "rolled", "swapped", "sorted", "mixed"])
def test_a_layer_whose_rows_are_not_the_images_in_their_order_is_refused(order: str) -> None:
    model, x = seeded(lambda: Reordered(order)), images(4, 8)
    with pytest.raises(InvalidLayer, match="layer 'part' gives an image another row beside other images"):
        pl.method("gradient")(model, x, 0, "part")
    with pytest.warns(SkippedLayerWarning, match="another row"):
        assert list(pl.method("gradient")(model, x, 0, ["conv", "p*"])) == ["conv"]


def test_a_layer_whose_rows_the_model_reorders_can_be_explained_alone() -> None:
    model, x = seeded(lambda: Reordered("reversed")), images(4, 8)
    alone = pl.method("gradient")(model, x, 0, "part", max_batch=1)["part"]
    assert torch.equal(alone, pl.method("gradient")(seeded(lambda: Reordered("")), x, 0, "part")["part"])


# Models that differentiate within their own forward pass.


class Gating(nn.Module):
    """Weighs features by their own gradient, a constant."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3), nn.Conv2d(8, 8, 3)
        self.head = nn.Linear(8, 3)

    def above(self, features: Tensor) -> Tensor:
        return self.head(F.relu(self.second(features)).mean((2, 3)))

    def forward(self, x: Tensor) -> Tensor:
        features = F.relu(self.first(x))
        with torch.enable_grad():
            own = features.detach().requires_grad_()
            (slope,) = torch.autograd.grad(self.above(own).amax(1).sum(), own)
        return self.above(features * (300 * slope * features.detach()).sum(1, keepdim=True).sigmoid())


class Adapting(nn.Module):
    """Takes a step on the scale of its normalization for each image."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.norm, self.head = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.Linear(8, 3)

    def scaled(self, x: Tensor, scale: Tensor) -> Tensor:
        norm = self.norm
        x = F.batch_norm(self.first(x), norm.running_mean, norm.running_var, scale, norm.bias)
        return self.head(F.relu(x).mean((2, 3)))

    def forward(self, x: Tensor) -> Tensor:
        rows = []
        for row in x.split(1):
            with torch.enable_grad():
                scale = self.norm.weight
                loss = self.scaled(row, scale).logsumexp(1).sum()
                (slope,) = torch.autograd.grad(loss, scale, allow_unused=True)
            rows.append(self.scaled(row, scale.detach() - (0 if slope is None else 5 * slope)))
        return torch.cat(rows)


def test_a_model_whose_own_gradients_rules_would_change_is_refused():
    gating, x = seeded(Gating), images(2, 8)
    leaf = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(gating(leaf)[:, 0].sum(), leaf)
    with pytest.warns(GradientWarning, match="otherwise than its gradient tells"):
        torch.testing.assert_close(pl.Gradient()(gating, x, 0)["input"], expected)
    with pytest.raises(
        InvalidModel, match=r"under GuidedReLU\(\) the model gives an image other logits than by itsel"
    ):
        pl.method("guided_backprop")(gating, x, 0)
    with pytest.raises(InvalidModel, match="under frozen batch norms the model gives an image other logits"):
        pl.Gradient()(seeded(Adapting).requires_grad_(), x, 0)


# What two images do to each other, and what a trial cannot see from outside.


class Waiting(nn.Module):
    """Runs its second layer for all images until the least sure of them is sure."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        features = self.first(x)
        if x.flatten(1).mean(1).amin() < 0:
            features = features + self.second(features)
        return features.mean((2, 3))


def test_an_image_that_another_waits_for_is_found_among_the_images() -> None:
    """Beside noise the first image may do as alone: it is another that it changes."""
    net, x = seeded(Waiting), images(3, 8)
    x = x - x.mean((1, 2, 3), keepdim=True) + torch.tensor([-1.0, 5.0, 5.0])[:, None, None, None]
    with pytest.raises(InvalidModel, match="beside it"):
        pl.Gradient()(net, x, 0)


class Skipping(nn.Module):
    """Leaves a layer out by numbers that torch does not draw."""

    def __init__(self, draw) -> None:
        super().__init__()
        self.draw, self.layer = draw, nn.Conv2d(3, 3, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return (x if self.draw() < 0.1 else self.layer(x)).mean((2, 3))


@pytest.mark.parametrize("draw", [random.random, np.random.rand])
def test_randomness_of_numpy_and_python_is_found_as_torchs(draw) -> None:
    random.seed(3)
    np.random.seed(3)  # noqa: NPY002 - what models draw from
    with pytest.raises(InvalidModel, match="the model is random"):
        pl.Gradient()(seeded(lambda: Skipping(draw)), images(1, 8), 0)


class Switching(nn.Module):
    """A model of its own switch, and of modules that it keeps in a list."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.drops, self.hidden = nn.Conv2d(3, 4, 3), False, [nn.Dropout(0.5).eval()]
        self.config, self.given = {"drops": [False]}, SimpleNamespace(drops=False)

    def forward(self, x: Tensor) -> Tensor:
        drops = self.drops or self.config["drops"][0] or self.given.drops
        return F.dropout(self.hidden[0](self.layer(x)), 0.5, drops).mean((2, 3))


def test_what_was_found_ends_with_a_switch_of_a_wrapped_model_or_of_a_hidden_module() -> None:
    for turn in (
        lambda net: setattr(net, "drops", True),
        lambda net: net.hidden[0].train(),
        lambda net: net.config["drops"].__setitem__(0, True),
        lambda net: setattr(net.given, "drops", True),
        lambda net: setattr(net, "forward", lambda given: F.dropout(net.layer(given)).mean((2, 3))),
    ):
        net, x = seeded(Switching), images(2, 8)
        wrapped = pl.Classifier(net, lambda output: output)
        pl.Gradient()(wrapped, x, 0)
        turn(net)
        with pytest.raises(InvalidModel, match="random"):
            pl.Gradient()(wrapped, x, 0)


def test_a_model_that_loses_the_batchs_dimension_is_refused() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), Always(torch.squeeze)).eval()
    for x in images(1, 8), images(2, 8):
        with pytest.raises(InvalidModel, match=r"logits \(4, 1\), no row: keep the batch's dimension"):
            pl.Gradient()(net, x, 0)


def test_layers_with_one_gradient_have_maps_of_their_own() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Dropout(), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten()).eval()
    found = pl.Gradient()(net, images(2, 8).float(), 0, ["0", "1"])
    kept = found["1"].clone()
    found["0"].fill_(7)
    assert torch.equal(found["1"], kept)


def test_a_module_called_as_the_image_is_no_layer_by_itself() -> None:
    net = nn.Module()
    net.input = nn.Conv2d(3, 4, 3)
    net.forward = lambda x: net.input(x).mean((2, 3))
    with pytest.raises(InvalidLayer, match="called 'input', as the image is; rename it"):
        pl.Gradient()(net.eval(), images(2, 8).float(), 0, net.input)


class Masked(nn.Module):
    """Classes that are not asked for are masked, by so much that all else is small beside it."""

    def __init__(self, between: nn.Module) -> None:
        super().__init__()
        self.layer, self.between = nn.Conv2d(3, 4, 3), between

    def forward(self, x: Tensor) -> Tensor:
        logits = self.between(self.layer(x)).mean((2, 3))
        return torch.cat([logits, torch.full_like(logits, -1e9)], 1)


@pytest.mark.parametrize(
    ("between", "what"),
    [
        (Always(lambda y: F.dropout(y, 0.5)), "the model is random"),
        (nn.BatchNorm2d(4, track_running_stats=False), "beside it"),
        (Always(lambda y: y * 2 if torch.is_grad_enabled() else y), "where gradients are asked for"),
    ],
)
def test_masked_classes_hide_nothing(between: nn.Module, what: str) -> None:
    with pytest.raises(InvalidModel, match=what):
        pl.Gradient()(seeded(lambda: Masked(between)), images(3, 8).float(), 0)
    found = pl.Gradient()(seeded(lambda: Masked(nn.Tanh())).float(), images(3, 8).float(), 0)
    assert bool(found["input"].any())
