"""A map belongs to the function, not to how it is written: every spelling of an activation gives the same map."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from functools import cache

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pellucid as pl
from pellucid.rules import operations
from pellucid.rules.base import Rules, tensors
from tests.networks import (
    ActivatedSkip,
    Activation,
    Chain,
    ExactDeconv,
    ExactGuided,
    SkipFed,
    attributed,
    images,
    relative_error,
    seeded,
)

# A residual branch alone is not complete, and guided maps of one image may be empty: the twins are, too.
pytestmark = pytest.mark.filterwarnings("ignore::pellucid.CompletenessWarning", "ignore::pellucid.EmptyMapWarning")

RULES = {
    "gradient": pl.Gradient(),
    "guided": pl.Gradient(rules=(pl.GuidedReLU(),)),
    "deconv": pl.Gradient(rules=(pl.DeconvReLU(),)),
    "rectified": pl.Gradient(rules=(pl.RectifiedReLU(60.0),), multiply=True),
    "rectified_mod": pl.Gradient(rules=(pl.RectifiedReLU(30.0, gate="mod"),)),
    "lrp": pl.Gradient(rules=(pl.EpsilonLRP(1e-3),), multiply=True),
    "deeplift": pl.DeepLift(),
    "integrated_guided": pl.Gradient(rules=(pl.GuidedReLU(),)).integrated(3),
}


class Subclassed(nn.ReLU):
    """A module of one's own that calls its parent."""

    def forward(self, input: Tensor) -> Tensor:  # noqa: A002
        return super().forward(input)


SPELLINGS: dict[str, Activation] = {
    "F.relu": F.relu,
    "F.relu keyword": lambda x: F.relu(input=x),
    "torch.relu": torch.relu,
    "Tensor.relu": lambda x: x.relu(),
    "aten.relu": lambda x: torch.ops.aten.relu(x),
    "aten.relu.default": lambda x: torch.ops.aten.relu.default(x),
    "nn.ReLU": nn.ReLU(),
    "subclass of nn.ReLU": Subclassed(),
    "Tensor.clamp(min=0)": lambda x: x.clamp(min=0),
    "Tensor.clamp(0)": lambda x: x.clamp(0.0),
    "Tensor.clamp_min": lambda x: x.clamp_min(0),
    "torch.clamp": lambda x: torch.clamp(x, min=0),
    "torch.clip": lambda x: torch.clip(x, 0),
    "torch.clamp(min=tensor)": lambda x: torch.clamp(x, min=torch.zeros((), dtype=x.dtype)),
    "F.threshold": lambda x: F.threshold(x, 0, 0),
    "nn.Threshold": nn.Threshold(0, 0),
    "torch.maximum": lambda x: torch.maximum(x, torch.zeros_like(x)),
    "torch.maximum, constant first": lambda x: torch.maximum(torch.zeros_like(x), x),
    "torch.max of two": lambda x: torch.max(x, torch.zeros((), dtype=x.dtype)),
}
IN_PLACE: dict[str, Activation] = {
    "F.relu(inplace=True)": lambda x: F.relu(x, inplace=True),
    "F.relu(x, True)": lambda x: F.relu(x, True),
    "F.relu_": F.relu_,
    "torch.relu_": torch.relu_,
    "Tensor.relu_": lambda x: x.relu_(),
    "aten.relu_": lambda x: torch.ops.aten.relu_(x),
    "nn.ReLU(inplace=True)": nn.ReLU(inplace=True),
    "Tensor.clamp_(min=0)": lambda x: x.clamp_(min=0),
    "Tensor.clamp_min_": lambda x: x.clamp_min_(0),
    "torch.clip_": lambda x: torch.clip_(x, 0),
    "F.threshold(inplace=True)": lambda x: F.threshold(x, 0, 0, inplace=True),
    "nn.Threshold(inplace=True)": nn.Threshold(0, 0, inplace=True),
}
NETWORKS = {"chain": Chain, "skip-fed": SkipFed, "activated skip": ActivatedSkip}
LAYERS = {
    "chain": ["input", "conv1", "conv2", "conv3", "hidden"],
    "skip-fed": ["input", "stem", "block1", "block3"],
    "activated skip": ["input", "stem", "block1", "block3"],
}


def maps(net: str, activations: list[Activation], method: pl.Method) -> dict[str, Tensor]:
    model = seeded(lambda: NETWORKS[net](activations))
    return dict(method(model, images(2, 8), [1, 3], layers=LAYERS[net]))


@cache
def expected_maps(net: str, activations: tuple[Activation, ...], rule: str) -> dict[str, Tensor]:
    """What several spellings are compared with, computed once."""
    return maps(net, list(activations), RULES[rule])


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("net", NETWORKS)
@pytest.mark.parametrize("form", ["separate modules", "one reused module", *SPELLINGS])
def test_every_spelling_of_relu_gives_the_same_map(net: str, form: str, rule: str) -> None:
    reused = nn.ReLU()
    activations = {
        "separate modules": [nn.ReLU() for _ in range(4)],
        "one reused module": [reused] * 4,
    }.get(form) or [SPELLINGS[form]] * 4
    expected = expected_maps(net, (F.relu,) * 4, rule)
    found = maps(net, activations, RULES[rule])
    assert set(found) == set(LAYERS[net])
    for layer, value in expected.items():
        assert value.any()
        assert torch.equal(found[layer], value)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("net", ["chain", "activated skip"])
@pytest.mark.parametrize("form", ["separate in-place modules", "one reused in-place module", *IN_PLACE])
def test_every_in_place_spelling_of_relu_gives_the_map_of_the_function_it_computes(
    net: str, form: str, rule: str
) -> None:
    """In place, the branch and the skip both see the activation: that is the network's function."""
    reused = nn.ReLU(inplace=True)
    activations = {
        "separate in-place modules": [nn.ReLU(inplace=True) for _ in range(4)],
        "one reused in-place module": [reused] * 4,
    }.get(form) or [IN_PLACE[form]] * 4
    expected = expected_maps(net, (F.relu,) * 4, rule)
    found = maps(net, activations, RULES[rule])
    for layer, value in expected.items():
        assert value.any()
        assert torch.equal(found[layer], value)


def test_spellings_may_be_mixed_in_one_network() -> None:
    mixed = [SPELLINGS["Tensor.clamp_min"], IN_PLACE["Tensor.relu_"], nn.ReLU(), torch.relu]
    for rule, method in RULES.items():
        expected, found = expected_maps("chain", (F.relu,) * 4, rule), maps("chain", mixed, method)
        for layer, value in expected.items():
            assert torch.equal(found[layer], value)


@pytest.mark.parametrize("net", NETWORKS)
@pytest.mark.parametrize(
    ("rule", "exact"), [(pl.GuidedReLU(), ExactGuided), (pl.DeconvReLU(), ExactDeconv)], ids=["guided", "deconv"]
)
def test_relu_rules_equal_an_exact_autograd_function(
    net: str, rule: pl.Rule, exact: type[torch.autograd.Function]
) -> None:
    """The skip-fed case is the one where Captum's module hooks are 53 % and 106 % off."""
    x, targets = images(2, 8), [1, 3]
    oracle = seeded(lambda: NETWORKS[net]([lambda t: exact.apply(t, torch.relu)] * 4))
    expected = attributed(oracle, x, targets, LAYERS[net])
    found = maps(net, [F.relu] * 4, pl.Gradient(rules=(rule,)))
    for layer, value in expected.items():
        assert relative_error(found[layer], value) < 1e-13


SMOOTH: dict[str, tuple[Activation, Activation, Callable[[Tensor], Tensor]]] = {
    "selu": (F.selu, nn.SELU(inplace=True), torch.selu),
    "elu": (F.elu, nn.ELU(inplace=True), F.elu),
    "celu": (F.celu, nn.CELU(inplace=True), F.celu),
    "silu": (F.silu, nn.SiLU(inplace=True), lambda x: x / (1 + (-x).exp())),
    "mish": (F.mish, nn.Mish(inplace=True), lambda x: x * torch.tanh(torch.log1p(x.exp()))),
    "hardswish": (F.hardswish, nn.Hardswish(inplace=True), lambda x: x * (x + 3).clamp(0, 6) / 6),
    "leaky_relu": (F.leaky_relu, nn.LeakyReLU(inplace=True), lambda x: torch.where(x > 0, x, 0.01 * x)),
    "relu6": (F.relu6, nn.ReLU6(inplace=True), lambda x: x.clamp(0, 6)),
    "hardtanh(0, 6)": (lambda x: F.hardtanh(x, 0, 6), nn.Hardtanh(0, 6, inplace=True), lambda x: x.clamp(0, 6)),
    "clamp(0, 6)": (lambda x: x.clamp(0, 6), lambda x: x.clamp_(0, 6), lambda x: x.clamp(0, 6)),
    "gelu": (F.gelu, nn.GELU(), lambda x: x * (1 + torch.erf(x / 2**0.5)) / 2),
    "gelu tanh": (
        lambda x: F.gelu(x, approximate="tanh"),
        nn.GELU("tanh"),
        lambda x: x / 2 * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * x**3))),
    ),
    "prelu": (
        lambda x: F.prelu(x, torch.tensor([0.25], dtype=x.dtype)),
        nn.PReLU(),
        lambda x: torch.where(x > 0, x, 0.25 * x),
    ),
    "rrelu": (F.rrelu, nn.RReLU(inplace=True), lambda x: torch.where(x > 0, x, x * (1 / 8 + 1 / 3) / 2)),
    "softplus": (F.softplus, nn.Softplus(), lambda x: torch.log1p(x.exp())),
}


@pytest.mark.parametrize("name", SMOOTH)
@pytest.mark.parametrize("net", ["chain", "activated skip"])
def test_guided_and_deconv_are_nielsens_formula_at_every_activation_in_place_or_not(name: str, net: str) -> None:
    functional, inplace, formula = SMOOTH[name]
    x, targets = images(2, 8), [1, 3]
    for rule, exact in ((pl.GuidedReLU(), ExactGuided), (pl.DeconvReLU(), ExactDeconv)):
        oracle = seeded(lambda exact=exact: NETWORKS[net]([lambda t: exact.apply(t, formula)] * 4))
        expected = attributed(oracle, x, targets, LAYERS[net])
        for activation in (functional, inplace):
            model = seeded(lambda a=activation: NETWORKS[net]([a] * 4))
            if name == "prelu":
                for parameter in (m.weight for m in model.modules() if isinstance(m, nn.PReLU)):
                    parameter.fill_(0.25)
            found = pl.Gradient(rules=(rule,))(model, x, targets, layers=LAYERS[net])
            for layer, value in expected.items():
                assert relative_error(found[layer], value) < 1e-12


class Tail(nn.Module):
    """Convolution, then whatever ``tail`` does with its output."""

    def __init__(self, tail: Callable[[Tensor], Tensor], head: Callable[[Tensor], Tensor] | None = None) -> None:
        super().__init__()
        self.head_of_all = head or (lambda x: x)
        self.conv = nn.Conv2d(3, 4, 3)
        self.tail = tail
        self.fc = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.tail(self.conv(self.head_of_all(x))).mean((2, 3)))


def then_in_place(x: Tensor) -> Tensor:
    x += 1.5
    x *= 2.0
    return x.relu_()


def view_in_place(x: Tensor) -> Tensor:
    x[:, :2].relu_()
    return x


def chunked_views(x: Tensor) -> Tensor:
    return torch.cat([x.view(len(x), 4, -1)[:, :2].relu(), x.flatten(2)[:, 2:]], 1).view_as(x)


def activated_then_added(activation: Activation) -> Callable[[Tensor], Tensor]:
    def tail(x: Tensor) -> Tensor:
        h = activation(x)
        h += x
        return h

    return tail


def added_into_input(activation: Activation) -> Callable[[Tensor], Tensor]:
    def tail(x: Tensor) -> Tensor:
        x = x * 1.0
        branch = activation(x) * 0.5
        x += branch
        return x

    return tail


TWINS: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "captured layer followed by in-place arithmetic and ReLU": (
        then_in_place,
        lambda x: F.relu((x + 1.5) * 2.0),
    ),
    "in-place ReLU on a view": (view_in_place, lambda x: torch.cat([F.relu(x[:, :2]), x[:, 2:]], 1)),
    "ReLU on a reshaped view": (chunked_views, lambda x: torch.cat([F.relu(x[:, :2]), x[:, 2:]], 1)),
    "in-place ReLU after a max-pool": (
        lambda x: F.relu(F.max_pool2d(F.relu(x) - 0.1, 2), inplace=True),
        lambda x: F.relu(F.max_pool2d(F.relu(x) - 0.1, 2)),
    ),
    "in-place addition to a GELU": (activated_then_added(F.gelu), lambda x: F.gelu(x) + x),
    "in-place addition to a leaky ReLU": (activated_then_added(F.leaky_relu), lambda x: F.leaky_relu(x) + x),
    "in-place addition to a clamp": (activated_then_added(lambda x: x.clamp(min=0)), lambda x: x.clamp(min=0) + x),
    "in-place addition to a ReLU's input": (added_into_input(F.relu), lambda x: F.relu(x) * 0.5 + x),
}


@pytest.mark.parametrize("twins", TWINS)
@pytest.mark.parametrize("rule", [*RULES, "deeplift_native"])
def test_a_network_that_works_in_place_gives_the_map_of_its_twin_that_does_not(twins: str, rule: str) -> None:
    """Plain autograd runs both, so every rule must."""
    method = RULES.get(rule, pl.DeepLift(max_pool="gradient"))
    x = images(2, 8)
    inplace, apart = (seeded(lambda tail=tail: Tail(tail)) for tail in TWINS[twins])
    for layers in (["input"], ["conv"], ["input", "conv"]):
        expected = method(apart, x, [0, 2], layers=layers)
        found = method(inplace, x, [0, 2], layers=layers)
        for layer in layers:
            assert expected[layer].any()
            assert relative_error(found[layer], expected[layer]) < 1e-13


def test_proportional_pooling_before_an_in_place_relu() -> None:
    method = pl.Gradient(rules=(pl.ProportionalPooling(),))
    x = images(2, 8)
    inplace, apart = (seeded(lambda t=t: Tail(t)) for t in TWINS["in-place ReLU after a max-pool"])
    expected = method(apart, x, 0)["input"]
    assert relative_error(method(inplace, x, 0)["input"], expected) < 1e-13


@pytest.mark.parametrize("rule", RULES)
def test_a_model_that_overwrites_its_input_is_explained_at_the_image_it_was_given(rule: str) -> None:
    def normalise(x: Tensor) -> Tensor:
        x -= 0.25
        return x

    x = images(2, 8)
    inplace = seeded(lambda: Tail(F.relu, normalise))
    apart = seeded(lambda: Tail(F.relu, lambda t: t - 0.25))
    for layers in (["input"], ["conv"]):
        given = x.clone()
        found = RULES[rule](inplace, given, "auto", layers=layers)
        expected = RULES[rule](apart, x, "auto", layers=layers)
        assert torch.equal(given, x), "the caller's images were overwritten"
        assert torch.equal(found.targets, expected.targets)
        assert relative_error(found[layers[0]], expected[layers[0]]) < 1e-13


@pytest.mark.parametrize("inplace", [False, True])
def test_a_relu_module_is_itself_a_layer(inplace: bool) -> None:
    """Its output is captured, not its input, and what follows in place does not overwrite it."""
    model = seeded(
        lambda: nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.ReLU(inplace), nn.ReLU(inplace), nn.Flatten(), nn.Linear(144, 3)
        )
    )
    x = images(2, 8)
    found = pl.Gradient(multiply=True)(model, x, 0, layers=["0", "1", "2"])
    activation = F.relu(F.conv2d(x, model[0].weight, model[0].bias))
    weight = model[4].weight[0].view(4, 6, 6)
    assert relative_error(found["2"], activation * weight) < 1e-14
    assert relative_error(found["1"], activation * weight) < 1e-14
    assert relative_error(found["0"], activation * weight) < 1e-14  # z 1[z > 0] w


POINTWISE: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "x ** 2": (lambda x: x**2, torch.square),
    "x ** 3": (lambda x: x**3, lambda x: torch.pow(x, 3)),
    "1 / x": (lambda x: 1 / (x.exp() + 1), lambda x: torch.reciprocal(x.exp() + 1)),
    "x * x": (lambda x: x * x, torch.square),
    "x * sigmoid(x)": (lambda x: x * torch.sigmoid(x), F.silu),
    "abs": (lambda x: abs(x), torch.abs),
    "sqrt": (lambda x: (x.exp() + 1).sqrt(), lambda x: (x.exp() + 1).pow(0.5)),
}


@pytest.mark.parametrize("name", POINTWISE)
def test_deeplift_is_complete_and_the_same_for_every_spelling_of_a_non_linearity(name: str) -> None:
    """A ReLU first, so that some rule is met even where the spelling is not."""
    x = images(2, 8)
    found, expected = (
        pl.DeepLift()(seeded(lambda f=f: Tail(lambda t: f(F.relu(t) - 0.5))), x, 1) for f in POINTWISE[name]
    )
    assert relative_error(found["input"], expected["input"]) < 1e-12
    assert float(found.residuals["input"].abs().max()) < 1e-13


@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("scale_first", [True, False])
def test_deeplift_treats_a_layer_scale_as_a_constant(frozen: bool, scale_first: bool) -> None:
    """ConvNeXt's ``layer_scale * x``, with as many channels as there are rows, trainable or frozen."""
    scale = nn.Parameter(torch.tensor([1.0, 5.0, -2.0, 0.5], dtype=torch.float64).view(4, 1, 1))
    scaled = (lambda x: scale * F.relu(x)) if scale_first else (lambda x: F.relu(x) * scale)
    model = seeded(lambda: Tail(scaled))
    model.scale = scale
    model.requires_grad_(not frozen)
    found = pl.DeepLift()(model, images(2, 8), 1)
    twin = seeded(lambda: Tail(F.relu))
    twin.fc.weight.mul_(scale.detach().view(1, 4))
    assert relative_error(found["input"], pl.DeepLift()(twin, images(2, 8), 1)["input"]) < 1e-13


@pytest.mark.parametrize("error", [AssertionError, ValueError, IndexError, ZeroDivisionError])
def test_a_path_at_a_layer_of_a_model_that_refuses_empty_batches(error: type[Exception]) -> None:
    """The network below the layer need not run; where it cannot run on nothing, it runs on the images."""

    def refuse(x: Tensor) -> Tensor:
        if len(x) == 0:
            raise error("empty batch")
        return x

    method = pl.Gradient().integrated(3)
    found = method(seeded(lambda: Tail(F.relu, refuse)), images(2, 8), [0, 1], layers="conv")["conv"]
    expected = method(seeded(lambda: Tail(F.relu)), images(2, 8), [0, 1], layers="conv")["conv"]
    assert relative_error(found, expected) < 1e-14


def swish_in_place(x: Tensor) -> Tensor:
    x = x * 1.0
    return x.mul_(torch.sigmoid(x))


# Activations by hand, as models write them, and the function that each is.
BY_HAND: dict[str, tuple[Activation, Activation]] = {
    "x sigmoid(x)": (lambda x: x * torch.sigmoid(x), F.silu),
    "sigmoid(x) x": (lambda x: x.sigmoid() * x, F.silu),
    "x *= sigmoid(x)": (swish_in_place, F.silu),
    "x / (1 + exp(-x))": (lambda x: x / (1 + torch.exp(-x)), F.silu),
    "x relu6(x + 3) / 6": (lambda x: x * F.relu6(x + 3) / 6, F.hardswish),
    "x (relu6(x + 3) / 6)": (lambda x: x * (F.relu6(x + 3) / 6), F.hardswish),
    "x clamp(x + 3, 0, 6) / 6": (lambda x: x * (x + 3).clamp(0, 6) / 6, F.hardswish),
    "a copy of x relu6(x + 3) / 6": (lambda x: x.clone() * F.relu6(x + 3) / 6, F.hardswish),
    "x hardsigmoid(x)": (lambda x: x * F.hardsigmoid(x), F.hardswish),
    "x tanh(softplus(x))": (lambda x: x * torch.tanh(F.softplus(x)), F.mish),
    "x tanh(log(1 + exp(x)))": (lambda x: x * torch.tanh(torch.log1p(torch.exp(x))), F.mish),
    "x (1 + erf(x / sqrt 2)) / 2": (lambda x: 0.5 * x * (1 + torch.erf(x / 2**0.5)), F.gelu),
    "x (1 + erf(x / sqrt 2)), halved": (lambda x: x * (1 + torch.erf(x / 2**0.5)) / 2, F.gelu),
    "x (1 + tanh(...)) / 2": (
        lambda x: 0.5 * x * (1 + torch.tanh((2 / torch.pi) ** 0.5 * (x + 0.044715 * torch.pow(x, 3)))),
        lambda x: F.gelu(x, approximate="tanh"),
    ),
}


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("net", NETWORKS)
@pytest.mark.parametrize("name", BY_HAND)
def test_an_activation_by_hand_gives_the_map_of_its_function(name: str, net: str, rule: str) -> None:
    """All four are written so, or one beside three ReLUs."""
    by_hand, function = BY_HAND[name]
    for count in (4, 1):
        others = [F.relu] * (4 - count)
        expected = expected_maps(net, (*[function] * count, *others), rule)
        found = maps(net, [*[by_hand] * count, *others], RULES[rule])
        for layer, value in expected.items():
            if name == "x *= sigmoid(x)" and layer != "input":
                continue
            assert relative_error(found[layer], value) < 1e-7


@pytest.mark.filterwarnings("ignore:relu6")
def test_a_function_of_its_input_that_is_no_known_activation_is_told() -> None:
    from pellucid.errors import RuleWarning

    model = seeded(lambda: Tail(lambda x: F.relu(x * F.relu6(2 * x + 1))))
    with pytest.warns(RuleWarning, match="may be an activation, but is none that is known"):
        pl.Gradient(rules=(pl.GuidedReLU(),))(model, images(2, 8), 0)


def test_a_gate_of_another_tensor_is_no_activation() -> None:
    """A squeeze-and-excitation's product passes the gradient of both factors."""

    def gated(x: Tensor) -> Tensor:
        return F.relu(x) * x.mean((2, 3), keepdim=True).sigmoid()

    x, targets = images(2, 8), [0, 1]
    model = seeded(lambda: Tail(gated))
    oracle = seeded(lambda: Tail(lambda t: ExactGuided.apply(t, F.relu) * t.mean((2, 3), keepdim=True).sigmoid()))
    found = pl.Gradient(rules=(pl.GuidedReLU(),))(model, x, targets)["input"]
    assert relative_error(found, attributed(oracle, x, targets)["input"]) < 1e-13


@pytest.mark.parametrize(
    "gated",
    [
        lambda x: torch.mul(*(half if k else F.silu(half) for k, half in enumerate(x.chunk(2, 1)))),
        lambda x: x * x,
        lambda x: x * x.square().mean((1, 2, 3), keepdim=True).rsqrt(),
        lambda x: x * (x - x.mean(1, keepdim=True)).sigmoid(),
    ],
    ids=["SwiGLU of halves", "square", "root-mean-square", "gate of the mean"],
)
def test_what_is_no_activation_by_hand_is_not_warned_of(gated: Activation) -> None:
    model = seeded(lambda: Tail(lambda x: torch.cat([F.relu(gated(x)), x], 1)[:, :4] if x.dim() == 4 else x))
    model.fc = seeded(lambda: nn.Linear(4, 3))
    pl.Gradient(rules=(pl.GuidedReLU(),))(model, images(2, 8), 0)


# Arguments other than the defaults, of which a spelling is called with those that it takes.
ARGUMENTS: dict[str, list[tuple[object, ...]]] = {
    "elu": [(0.7, 1.3), (0.7, 1.3, 0.8), (0.7, False), (0.7, True)],
    "celu": [(0.4,), (0.4, True)],
    "leaky_relu": [(0.3,), (0.3, True)],
    "rrelu": [(0.1, 0.4), (0.1, 0.4, False, True)],
    "softplus": [(2.0, 1.0)],
    "softshrink": [(0.3,)],
    "hardshrink": [(0.3,)],
    "threshold": [(0.1, -2.0), (0.1, -2.0, True), (0, 0, True)],
    "hardtanh": [(-0.3, 0.5), (0, 6, True), (-0.3, 0.5, True)],
    "clamp": [(-0.3, 0.5), (None, 0.5), (0, 6), (0,)],
    "clip": [(-0.3, 0.5), (None, 0.5), (0, 6), (0,)],
    "clamp_min": [(0.1,), (0,)],
    "clamp_max": [(0.1,), (0,)],
    "logit": [(0.1,)],
    "prelu": [(torch.tensor([0.1, 0.2, 0.3, 0.4]).double(),)],
    "pow": [(3,), (2.0,)],
    "relu": [(), (True,)],
    "softmax": [(1,), (-1, 3, torch.float64), (1, False)],
    "log_softmax": [(1,), (-1, 3, torch.float64), (1, False)],
    "amax": [((1, 2), True)],
    "mean": [((2, 3), True), ((-1, -2),)],
    "avg_pool2d": [(2, 1, 1, True, False, 3), ([3, 2],)],
    "max_pool1d": [(2, 1, 1, 1, True), (2, None, 0, 1, False, True)],
    "max_pool2d": [(2, 1, 1, 2, True), (2, None, 0, 1, False, True), ([3, 2],)],
    "max_pool3d": [(2, 1, 1, 1, True), (2, None, 0, 1, False, True)],
    "adaptive_avg_pool2d": [((2, 3),), (1,), ([1, 1],)],
    "adaptive_max_pool1d": [(2,), ([2],), (2, True)],
    "adaptive_max_pool2d": [((2, 3),), (1,), ([1, 1],), (1, True)],
    "adaptive_max_pool3d": [((2, 3, 1),), (1,), ([1, 1, 1],), (1, True)],
    "pixel_unshuffle": [(2,)],
    "conv2d": [(torch.ones(4, 2, 2, 2).double(), torch.ones(4).double(), 2, 1, 2, 2)],
    "layer_norm": [([6], torch.arange(6.0).double(), torch.ones(6).double(), 0.1)],
    "group_norm": [(2, torch.arange(4.0).double(), torch.ones(4).double(), 0.1)],
    "rms_norm": [([6], torch.arange(6.0).double(), 0.1)],
    "var": [(1, False, True), ((1, 2), True)],
    "std": [(1, False, True), ((1, 2), True)],
    "var_mean": [(1, False, True)],
    "std_mean": [(1, False, True)],
    "vector_norm": [(3, 1, True), (0, 1), (-math.inf, 1), (-2, (1, 2)), (0,)],
    "glu": [(1,)],
    "prod": [(1, True), ()],
    "max": [(1, True), ()],
    "min": [(1, True), ()],
    "amin": [((1, 2), True)],
    "logsumexp": [((1, 2), True), ([3, 1], False), (-1,)],
}
ARGUMENTS |= {f"_{name}": ARGUMENTS[name] for name in ("softmax", "log_softmax", "threshold")}
ARGUMENTS |= {f"{pool}_with_indices": ARGUMENTS[pool] for pool in list(ARGUMENTS) if "max_pool" in pool}
UNDER = {
    "lrp": (pl.EpsilonLRP(), pl.NormalizationLRP(), pl.AttentionLRP()),
    "guided": (pl.GuidedReLU(), pl.ProportionalPooling(average=True), pl.SmoothedDownsampling(include_first=True)),
    "deeplift": (pl.RescaleElementwise(), pl.RescaleProduct(), pl.RescaleSoftmax(), pl.RescaleMaxPool()),
}


def spellings(name: str) -> Iterator[tuple[Callable[..., object], tuple[object, ...]]]:
    """Every function that computes it, with all arguments that it takes."""
    for function in operations.owners(name):
        for arguments in ARGUMENTS.get(name, [()]):
            try:
                function(given(name).clone(), *arguments)
            except (TypeError, RuntimeError, NotImplementedError, ValueError):
                continue
            yield function, arguments


def given(name: str) -> Tensor:
    shape = (2, 4, 6, 6) if "1d" not in name else (2, 4, 6)
    return torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@pytest.mark.parametrize("under", UNDER)
@pytest.mark.parametrize("name", [*sorted(operations.ELEMENTWISE - ARGUMENTS.keys()), *ARGUMENTS])
def test_every_spelling_gives_its_own_result_under_rules(name: str, under: str) -> None:
    """In the order of arguments that the spelling has, which is another for a functional and for its operator."""
    found = list(spellings(name))
    assert found
    for function, arguments in found:
        native = function(given(name), *arguments)
        x = given(name).requires_grad_()
        with Rules(UNDER[under], references={} if under == "deeplift" else None):
            result = function(x * 1.0, *arguments)
        assert isinstance(result, tuple) == isinstance(native, tuple), function
        pairs = zip(tensors([result]), tensors([native]), strict=True)
        for value, expected in pairs:
            torch.testing.assert_close(value.detach(), expected, rtol=1e-9, atol=1e-12, equal_nan=True)


@pytest.mark.parametrize("name", sorted(operations.RECTIFIERS))
def test_a_gradient_passes_every_spelling_of_an_activation_as_its_own(name: str) -> None:
    """Formulas run the operation anew, on a copy if it works in place."""
    for function, arguments in spellings(name):
        leaf = given(name).requires_grad_()
        expected = torch.autograd.grad(function(leaf * 1.0, *arguments).sum(), leaf)[0]
        operation = operations.recognise(function, (leaf * 1.0, *arguments), {})
        assert operation is not None
        found = torch.autograd.grad(operation.run(leaf).sum(), leaf)[0]
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


POOLINGS: dict[str, Callable[[Tensor], Tensor]] = {
    "F.max_pool2d": lambda x: F.max_pool2d(x, 2, return_indices=True)[0],
    "F.max_pool2d by place": lambda x: F.max_pool2d(x, 2, None, 0, 1, False, True)[0],
    "nn.MaxPool2d": lambda x: nn.MaxPool2d(2, return_indices=True)(x)[0],
    "aten": lambda x: torch.ops.aten.max_pool2d_with_indices(x, [2, 2])[0],
    "F.adaptive": lambda x: F.adaptive_max_pool2d(x, 3, True)[0],
    "F.adaptive keyword": lambda x: F.adaptive_max_pool2d(x, 3, return_indices=True)[0],
    "aten adaptive": lambda x: torch.ops.aten.adaptive_max_pool2d(x, [3, 3])[0],
    "torch._C._nn adaptive": lambda x: torch._C._nn.adaptive_max_pool2d(x, 3)[0],
}
POOL_RULES = {
    "proportional": pl.Gradient(rules=(pl.ProportionalPooling(),)),
    "smoothed": pl.Gradient(rules=(pl.SmoothedDownsampling(pooling=True),)),
    "deeplift": pl.DeepLift(),
}


@pytest.mark.parametrize("rule", POOL_RULES)
@pytest.mark.parametrize("name", POOLINGS)
def test_a_pooling_that_also_returns_indices_gives_the_map_of_one_that_does_not(name: str, rule: str) -> None:
    """Beside another pooling, so that some rule is met; 6 x 6 to 3 x 3 is the same for both kinds."""
    if rule == "smoothed" and "adaptive" in name:
        pytest.skip("its stride is not known")
    plain, indexed = (
        seeded(lambda pool=pool: Tail(lambda x: F.max_pool2d(pool(F.relu(x)), 3)))
        for pool in (lambda x: F.max_pool2d(x, 2), POOLINGS[name])
    )
    expected, found = (POOL_RULES[rule](model, images(2, 8), [1, 2])["input"] for model in (plain, indexed))
    assert expected.any()
    assert torch.equal(found, expected)


def test_indices_are_of_the_pooling_that_ran() -> None:
    x = given("max_pool2d")
    with Rules((pl.ProportionalPooling(),)):
        values, indices = F.max_pool2d(x, 2, return_indices=True)
    expected = F.max_pool2d(x, 2, return_indices=True)
    assert torch.equal(values, expected[0])
    assert torch.equal(indices, expected[1])
