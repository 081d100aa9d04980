"""LRP's propagation rules: relevance by matrices and loops, zennit's, and what they conserve."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from functools import cache

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pellucid as pl
from pellucid.errors import RuleWarning
from tests.networks import images, plain, relative_error, seeded
from tests.rules.test_oracle import Affine, MaxPool, Pointwise, argmax, forward, naive_layers

# Biases take relevance in most of these networks.
pytestmark = pytest.mark.filterwarnings("ignore::pellucid.CompletenessWarning")

EPSILON = 1e-6
BOX = ((-4.5, -4.0, -3.5), (4.0, 3.0, 5.0))  # low and high, for each channel


def sign(z: float) -> float:
    return 1.0 if z >= 0 else -1.0


def divided(share: float, z: float) -> float:
    return share / (z + EPSILON * sign(z))


def gamma(matrix: np.ndarray, constant: np.ndarray, x: np.ndarray, relevance: np.ndarray) -> np.ndarray:
    """c + gamma c^s over z + gamma z^s, with s the sign of z; gamma = 0.25."""
    result = np.zeros(len(x))
    for j, r in enumerate(relevance):
        c = [*(matrix[j] * x), constant[j]]
        s = sign(sum(c))
        favored = [value + 0.25 * (value if value * s > 0 else 0.0) for value in c]
        for i in range(len(x)):
            result[i] += divided(favored[i], sum(favored)) * r
    return result


def alpha_beta(matrix: np.ndarray, constant: np.ndarray, x: np.ndarray, relevance: np.ndarray) -> np.ndarray:
    """alpha c^+ / z^+ - beta c^- / z^-, alpha = 2, beta = 1."""
    result = np.zeros(len(x))
    for j, r in enumerate(relevance):
        c = [*(matrix[j] * x), constant[j]]
        positive, negative = sum(max(value, 0.0) for value in c), sum(min(value, 0.0) for value in c)
        for i in range(len(x)):
            result[i] += 2 * divided(max(c[i], 0.0), positive) * r - divided(min(c[i], 0.0), negative) * r
    return result


def z_box(matrix: np.ndarray, constant: np.ndarray, x: np.ndarray, relevance: np.ndarray) -> np.ndarray:
    """x w - low w^+ - high w^- over its sum."""
    result = np.zeros(len(x))
    per_channel = len(x) // 3
    low, high = (np.repeat(bound, per_channel) for bound in BOX)
    for j, r in enumerate(relevance):
        b = [
            xi * w - lo * max(w, 0.0) - hi * min(w, 0.0)
            for xi, w, lo, hi in zip(x, matrix[j], low, high, strict=True)
        ]
        for i in range(len(x)):
            result[i] += divided(b[i], sum(b)) * r
    return result


def plain_epsilon(matrix: np.ndarray, constant: np.ndarray, x: np.ndarray, relevance: np.ndarray) -> np.ndarray:
    """The epsilon rule with epsilon = 0: what passes where no rule acts."""
    z = matrix @ x + constant
    return x * (matrix.T @ (relevance / z))


Rule = Callable[[np.ndarray, np.ndarray, np.ndarray, np.ndarray], np.ndarray]


def relevances(model: nn.Sequential, x: Tensor, target: int, rules: list[Rule]) -> list[np.ndarray]:
    """R at the input of every layer of a ReLU network, from R = logit at the top; a rule for each affine layer."""
    layers = naive_layers(model, tuple(x.shape))
    values = forward(layers, x.flatten().numpy())
    relevance = np.zeros(len(values[-1]))
    relevance[target] = values[-1][target]
    found, remaining = [], list(rules)
    for layer, here in zip(reversed(layers), reversed(values[:-1]), strict=True):
        match layer:
            case Affine() if isinstance(layer.module, nn.Flatten):
                pass
            case Affine():
                relevance = remaining.pop()(layer.matrix, layer.constant, here, relevance)
            case Pointwise():
                pass
            case MaxPool():
                above, relevance = relevance, np.zeros(len(here))
                for window, r in zip(layer.windows, above, strict=True):
                    relevance[argmax(here, window)] += r
        found.append(relevance)
    return found[::-1]


def network(seed: int, inplace: bool = False, bias: bool = True) -> nn.Sequential:
    return plain(
        nn.Conv2d(3, 4, 3, padding=1),
        nn.ReLU(inplace),
        nn.Conv2d(4, 4, 3, padding="same", groups=2, dilation=1),
        nn.ReLU(inplace),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(36, 8),
        nn.ReLU(inplace),
        nn.Linear(8, 4),
        seed=seed,
        bias=bias,
    )


COMPOSITES: dict[str, tuple[tuple[pl.Rule, ...], list[Rule]]] = {
    "gamma": ((pl.GammaLRP(0.25),), [gamma] * 4),
    "alpha-beta": ((pl.AlphaBetaLRP(2, 1),), [alpha_beta] * 4),
    "z-box below": ((pl.ZBoxLRP(*BOX),), [z_box, plain_epsilon, plain_epsilon, plain_epsilon]),
    "z-box, alpha-beta, gamma, then the epsilon rule": (
        (pl.ZBoxLRP(*BOX), pl.AlphaBetaLRP().at("2"), pl.GammaLRP().at("6")),
        [z_box, alpha_beta, gamma, plain_epsilon],
    ),
}


@cache
def relevances_of(name: str, seed: int, row: int) -> list[np.ndarray]:
    """What a composite's rules are compared with, in place or not."""
    return relevances(network(seed), images(2, 6, seed)[row], row, COMPOSITES[name][1])


@pytest.mark.parametrize("name", COMPOSITES)
@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("inplace", [False, True])
def test_propagation_rules_are_their_formulas_at_every_layer(name: str, seed: int, inplace: bool) -> None:
    rules, _ = COMPOSITES[name]
    model, x = network(seed, inplace), images(2, 6, seed)
    names = ["input", *(str(i) for i in range(8))]
    found = pl.Gradient(rules=rules, multiply=True)(model, x, [0, 1], layers=names)
    for row in range(2):
        expected = relevances_of(name, seed, row)
        for layer, wanted in zip(names, expected, strict=True):
            if inplace and layer in ("0", "2", "6"):
                continue  # relevance of what the ReLU overwrote: the same, see the layer after it
            difference = np.abs(found[layer][row].flatten().numpy() - wanted).max()
            assert difference <= 1e-11 * np.abs(wanted).max(), (row, layer)


def zennit_relevance(
    model: nn.Module, x: Tensor, hooks: list[tuple[type[nn.Module], object]], first: object
) -> Tensor:
    composites = pytest.importorskip("zennit.composites")
    attribution = pytest.importorskip("zennit.attribution")
    kinds = (
        composites.SpecialFirstLayerMapComposite(hooks, [(nn.Conv2d, first)])
        if first
        else composites.LayerMapComposite(hooks)
    )
    with attribution.Gradient(model=model, composite=kinds) as attributor:
        return attributor(x.clone().requires_grad_(), lambda out: out * F.one_hot(torch.tensor([0, 1]), 4))[1]


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.filterwarnings("ignore")
def test_composites_equal_zennit(seed: int) -> None:
    """On networks without normalisation, of one module per operation, zennit is right."""
    rules = pytest.importorskip("zennit.rules")
    model, x = network(seed), images(2, 6, seed)
    low, high = (torch.tensor(bound, dtype=x.dtype).view(1, 3, 1, 1) for bound in BOX)
    cases: list[tuple[tuple[pl.Rule, ...], object, object, object]] = [
        ((pl.GammaLRP(0.25),), rules.Gamma(0.25), rules.Gamma(0.25), None),
        ((pl.AlphaBetaLRP(2, 1),), rules.AlphaBeta(2, 1), rules.AlphaBeta(2, 1), None),
        ((pl.AlphaBetaLRP(1, 0),), rules.ZPlus(), rules.ZPlus(), None),
        (
            (pl.ZBoxLRP(*BOX), pl.GammaLRP().at("2"), pl.AlphaBetaLRP().at("[68]")),
            rules.Gamma(0.25),
            rules.AlphaBeta(2, 1),
            rules.ZBox(low, high),
        ),
    ]
    for ours, convolution, linear, first in cases:
        hooks = [(nn.ReLU, rules.Pass()), (nn.Conv2d, convolution), (nn.Linear, linear)]
        expected = zennit_relevance(model, x, hooks, first).detach()
        found = pl.Gradient(rules=ours, multiply=True)(model, x, [0, 1])["input"]
        assert relative_error(found, expected) < 1e-11, ours


@pytest.mark.parametrize(
    "rules",
    [
        (pl.GammaLRP(0.5, epsilon=1e-12),),
        (pl.AlphaBetaLRP(1, 0, epsilon=1e-12),),
        (pl.ZBoxLRP(-6, 6, epsilon=1e-12), pl.GammaLRP(epsilon=1e-12).at("[2-8]")),
    ],
    ids=str,
)
def test_relevance_is_conserved_at_every_layer_of_a_network_without_biases(rules: tuple[pl.Rule, ...]) -> None:
    model, x = network(0, bias=False), images(2, 6)
    logits, targets = model(x).max(1)  # positive, so that contributions of both signs stand at every unit
    found = pl.Gradient(rules=rules, multiply=True)(model, x, targets, layers=["input", "1", "3", "4", "7"])
    for relevance in found.values():
        assert relative_error(relevance.flatten(1).sum(1), logits) < 1e-8


def test_gamma_zero_is_the_epsilon_rule() -> None:
    model, x = network(0), images(2, 6)
    found = pl.Gradient(rules=(pl.GammaLRP(0.0, epsilon=1e-13),))(model, x, 1, layers=["input", "1", "4"])
    expected = pl.Gradient()(model, x, 1, layers=["input", "1", "4"])
    for layer, gradient in expected.items():
        assert relative_error(found[layer], gradient) < 1e-8


def test_an_activation_that_is_no_relu_passes_relevance_by_epsilon_lrp() -> None:
    model = plain(nn.Conv2d(3, 4, 3, bias=False), nn.SiLU(), nn.Flatten(), nn.Linear(64, 4, bias=False))
    x = images(2, 6)
    rules = (pl.GammaLRP(epsilon=1e-12), pl.EpsilonLRP(1e-12))
    found = pl.Gradient(rules=rules, multiply=True)(model, x, [0, 1], layers=["input", "0", "1"])
    for relevance in found.values():
        assert relative_error(relevance.flatten(1).sum(1), model(x)[[0, 1], [0, 1]]) < 1e-8


def test_a_composite_is_one_line() -> None:
    """README's example: z-box for the pixels, gamma below, epsilon above, in a network with batch norms."""
    torchvision = pytest.importorskip("torchvision")
    model = torchvision.models.resnet18(weights=None).double().eval().requires_grad_(False)
    composite = pl.Gradient(
        rules=(pl.ZBoxLRP(-2.2, 2.7), pl.GammaLRP().at("layer[12].*"), pl.EpsilonLRP().at("layer[34].*")),
        multiply=True,
    )
    assert "GammaLRP(gamma=0.25, epsilon=1e-06).at('layer[12].*')" in repr(composite)
    x = images(1, 64).clamp(-2, 2)
    found = composite(model, x, 1, layers=["input", "layer1.0", "layer3.0"])
    uniform = pl.Gradient(rules=(pl.EpsilonLRP().at("layer[34].*"),), multiply=True)
    other = uniform(model, x, 1, layers=["input", "layer3.0"])
    assert torch.equal(found["layer3.0"], other["layer3.0"])
    assert relative_error(found["input"], other["input"]) > 0.1


LINEAR: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "F.linear": F.linear,
    "F.linear keyword": lambda x, w, b: F.linear(input=x, weight=w, bias=b),
    "torch._C._nn.linear": lambda x, w, b: torch._C._nn.linear(x, w, b),
    "aten.linear": lambda x, w, b: torch.ops.aten.linear(x, w, b),
    "addmm": lambda x, w, b: torch.addmm(b, x, w.t()),
    "Tensor.addmm": lambda x, w, b: b.addmm(x, w.t()),
    "aten.addmm.default": lambda x, w, b: torch.ops.aten.addmm.default(b, x, w.t()),
}
PRODUCTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "matmul": lambda x, w: torch.matmul(x, w.t()),
    "matmul keyword": lambda x, w: torch.matmul(input=x, other=w.t()),
    "@": lambda x, w: x @ w.T,
    "mm": lambda x, w: torch.mm(x, w.mT),
    "Tensor.mm": lambda x, w: x.mm(w.t()),
    "Tensor.matmul": lambda x, w: x.matmul(w.t()),
}


class Written(nn.Module):
    """A convolution and two linear layers in a spelling of one's own."""

    def __init__(self, linear: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.conv, self.linear = nn.Conv2d(3, 4, 3), linear
        self.one, self.two = nn.Linear(64, 6), nn.Linear(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.conv(x)).flatten(1)
        x = F.relu(self.linear(x, self.one.weight, self.one.bias))
        return self.linear(x, self.two.weight, self.two.bias)


@pytest.mark.parametrize("rule", [pl.GammaLRP(), pl.AlphaBetaLRP()], ids=str)
@pytest.mark.parametrize("name", [*LINEAR, *PRODUCTS])
@pytest.mark.parametrize("frozen", [True, False])
def test_every_spelling_of_a_linear_layer_gives_the_same_map(name: str, rule: pl.Rule, frozen: bool) -> None:
    class Reference(Written):
        def forward(self, x: Tensor) -> Tensor:
            if name in LINEAR:
                return self.two(F.relu(self.one(F.relu(self.conv(x)).flatten(1))))
            x = F.relu(F.linear(F.relu(self.conv(x)).flatten(1), self.one.weight))
            return F.linear(x, self.two.weight)

    written = LINEAR.get(name) or (lambda x, w, b: PRODUCTS[name](x, w))
    x, method = images(2, 6), pl.Gradient(rules=(rule,), multiply=True)
    expected = method(seeded(lambda: Reference(written)), x, [0, 1], layers=["input", "conv"])
    found = method(
        seeded(lambda: Written(written)).requires_grad_(not frozen), x, [0, 1], layers=["input", "conv"]
    )
    for layer in expected:
        assert relative_error(found[layer], expected[layer]) < 1e-13


class Once(nn.Module):
    """One layer of a tensor, by a weight; its outputs are the logits."""

    def __init__(self, layer: Callable[[Tensor, Tensor], Tensor], *shape: int) -> None:
        super().__init__()
        self.layer, self.weight = layer, nn.Parameter(torch.randn(shape))

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x, self.weight).flatten(1)


LAYERS: dict[str, Callable[[], Once]] = {
    "W @ x": lambda: Once(lambda x, w: w @ x.flatten(2), 4, 3),
    "sparse W @ x": lambda: Once(
        lambda x, w: (w.detach().to_sparse() @ x.permute(1, 0, 2, 3).flatten(1)).mT.reshape(len(x), -1), 4, 3
    ),
    "W.t() @ x": lambda: Once(lambda x, w: w.t() @ x.flatten(2), 3, 4),
    "x @ W of a batch": lambda: Once(lambda x, w: x.flatten(2).mT @ w, 1, 3, 4),
    "bmm": lambda: Once(lambda x, w: torch.bmm(w.expand(len(x), -1, -1), x.flatten(2)), 1, 4, 3),
    "mv": lambda: Once(lambda x, w: torch.stack([torch.mv(w, one.flatten()) for one in x]), 5, 48),
    "einsum": lambda: Once(lambda x, w: torch.einsum("oc,bchw->bohw", w, x), 4, 3),
    "einsum, weight last": lambda: Once(lambda x, w: torch.einsum("bchw,hwk->bk", x, w), 4, 4, 5),
    "linear, image for weight": lambda: Once(
        lambda x, w: torch.stack([F.linear(w, one.flatten(1).mT) for one in x]), 2, 3
    ),
    "conv1d": lambda: Once(lambda x, w: F.conv1d(x.flatten(2), w, padding=1), 4, 3, 3),
    "conv3d": lambda: Once(lambda x, w: F.conv3d(x[:, None], w, padding=1, stride=2), 2, 1, 3, 3, 3),
    "conv_transpose1d": lambda: Once(lambda x, w: F.conv_transpose1d(x.flatten(2), w, stride=2), 3, 2, 3),
    "conv_transpose2d": lambda: Once(lambda x, w: F.conv_transpose2d(x, w, None, 2, 1, 1), 3, 2, 3, 3),
    "conv_transpose3d": lambda: Once(lambda x, w: F.conv_transpose3d(x[:, None], w), 1, 2, 2, 2, 2),
}


WRITTEN_OUT: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "a product and a sum": lambda x, w: (x.flatten(1)[:, None] * w).sum(-1),
    "vecdot": lambda x, w: torch.linalg.vecdot(x.flatten(1)[:, None], w[None]),
    "cosine similarity": lambda x, w: torch.cosine_similarity(x.flatten(1)[:, None], w[None], dim=-1),
    "a sum of embeddings": lambda x, w: F.embedding_bag(
        torch.arange(48).expand(len(x), -1), w.mT.contiguous(), per_sample_weights=x.flatten(1), mode="sum"
    ),
}


@pytest.mark.parametrize("name", WRITTEN_OUT)
def test_a_layer_that_is_written_out_is_told(name: str) -> None:
    """The rule acts at the convolution, and the written layer's relevance is that of the epsilon-0 rule."""
    model = seeded(lambda: nn.Sequential(nn.Conv2d(3, 3, 1), Once(WRITTEN_OUT[name], 5, 48)))
    x = images(2, 4)
    for rule in (pl.GammaLRP(), pl.AlphaBetaLRP()):
        with pytest.warns(RuleWarning, match="ran otherwise: hidden, written out"):
            pl.Gradient(rules=(rule,), multiply=True)(model, x, 1)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pl.Gradient()(model, x, 1)


@pytest.mark.parametrize("rule", ["gamma", "alpha-beta"])
@pytest.mark.parametrize("frozen", [True, False])
@pytest.mark.parametrize("name", LAYERS)
def test_every_layer_and_product_with_a_constant_follows_its_rule(name: str, frozen: bool, rule: str) -> None:
    model, x = seeded(LAYERS[name]).requires_grad_(not frozen), images(1, 4)
    (method,), (formula, *_) = COMPOSITES[rule]
    found = pl.Gradient(rules=(method,), multiply=True)(model, x, 1)["input"]
    matrix = torch.autograd.functional.jacobian(model, x).reshape(-1, x.numel()).numpy()
    relevance = np.zeros(len(matrix))
    relevance[1] = model(x).detach()[0, 1]
    expected = formula(matrix, np.zeros(len(matrix)), x.flatten().numpy(), relevance)
    np.testing.assert_allclose(found.flatten().numpy(), expected, rtol=1e-9, atol=1e-12)


class Shifted(nn.Module):
    """Layers whose bias, and in ``dynamic`` ones the weight, are made of the image."""

    def __init__(self, apart: bool, kind: str) -> None:
        super().__init__()
        self.apart, self.kind = apart, kind
        self.conv, self.down = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)
        self.bias, self.head = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        h = self.conv(x).relu()
        bias, w, groups = self.bias(h.mean((2, 3))), self.down.weight, len(x)
        if self.kind == "linear":
            first = F.linear(h.mean((2, 3)), w[..., 0, 0], None if self.apart else bias)
            return self.head(first + bias if self.apart else first)
        w = torch.cat([w * one.mean() if self.kind == "dynamic" else w for one in h])
        rows = h.reshape(1, -1, *h.shape[2:])
        y = F.conv2d(rows, w, None if self.apart else bias.flatten(), groups=groups)
        y = y + bias.flatten()[:, None, None] if self.apart else y
        return self.head(y.reshape(groups, 4, *y.shape[2:]).relu().mean((2, 3)))


METHODS = [
    pl.Gradient(rules=(pl.GammaLRP(),), multiply=True),
    pl.Gradient(rules=(pl.AlphaBetaLRP(),), multiply=True),
    *map(pl.method, ("attnlrp(gamma=0.25)", "lrp_epsilon", "deeplift")),
]


@pytest.mark.parametrize("kind", ["linear", "convolution", "dynamic"])
@pytest.mark.parametrize("method", METHODS, ids=str)
@pytest.mark.parametrize("frozen", [True, False])
def test_a_bias_of_the_images_own_is_a_summand(kind: str, method: pl.Method, frozen: bool) -> None:
    one, apart = (seeded(lambda a=a: Shifted(a, kind)).requires_grad_(not frozen) for a in (False, True))
    x = images(2, 8)
    assert relative_error(method(one, x, 0)["input"], method(apart, x, 0)["input"]) < 1e-13


class Attending(nn.Module):
    """Attention by ``torch``'s own layer or function, or written out in linear layers and products."""

    def __init__(self, queries: str, fused: bool) -> None:
        super().__init__()
        self.conv, self.head, self.fused = nn.Conv2d(3, 4, 3), nn.Linear(4, 3), fused
        self.attention = nn.MultiheadAttention(4, 1, batch_first=True)
        self.query = nn.Parameter(torch.randn(1, 2, 4)) if queries == "constant" else None

    def forward(self, x: Tensor) -> Tensor:
        tokens = F.relu(self.conv(x)).flatten(2).mT
        if self.query is None:
            return self.head(
                (self.attention(tokens, tokens, tokens)[0] if self.fused else self.all(tokens)).mean(1)
            )
        queries, keys, values = self.query.expand(len(x), -1, -1), tokens * 2, tokens
        if self.fused:
            return self.head(F.scaled_dot_product_attention(queries, keys, values).mean(1))
        return self.head(((queries @ keys.mT / 2).softmax(-1) @ values).mean(1))

    def all(self, tokens: Tensor) -> Tensor:
        own = self.attention
        weights, biases = own.in_proj_weight.chunk(3), own.in_proj_bias.chunk(3)
        queries, keys, values = (F.linear(tokens, *pair) for pair in zip(weights, biases, strict=True))
        return own.out_proj((queries @ keys.mT / 2).softmax(-1) @ values)


@pytest.mark.parametrize("rule", [pl.GammaLRP(), pl.AlphaBetaLRP()], ids=str)
@pytest.mark.parametrize("queries", ["constant", "of the image"])
def test_layers_within_fused_attention_are_met(queries: str, rule: pl.Rule) -> None:
    fused, written = (seeded(lambda f=f: Attending(queries, f)) for f in (True, False))
    found, wanted = (pl.Gradient(rules=(rule,))(model, images(2, 8), 1)["input"] for model in (fused, written))
    assert relative_error(found, wanted) < 1e-10  # positive and negative shares nearly cancel
    assert relative_error(found, pl.Gradient()(fused, images(2, 8), 1)["input"]) > 0.01


def test_weights_of_the_images_own_get_their_gradient_under_gamma() -> None:
    """No rule of layers holds for a product of activations: it passes the gradient to both."""
    squares = seeded(lambda: Once(lambda x, w: F.linear(x.flatten(1), w[:, None] * x[0].flatten()), 5))
    head, x = nn.Sequential(squares, nn.Linear(5, 3)).double().eval(), images(1, 4)
    leaf = x.clone().requires_grad_()
    above = pl.Gradient(rules=(pl.GammaLRP(),))(head, x, 1, layers="0", max_batch=1)["0"]
    (wanted,) = torch.autograd.grad(squares(leaf), leaf, above)
    assert relative_error(pl.Gradient(rules=(pl.GammaLRP(),))(head, x, 1, max_batch=1)["input"], wanted) < 1e-13


def test_a_product_of_two_activations_is_no_linear_layer() -> None:
    """Attention: the gradient reaches both factors, as without the rule."""

    class Attention(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(6, 4)

        def forward(self, x: Tensor) -> Tensor:
            one, other = x[0, 0] * 2, x[0, 1] * 3
            return self.fc((one @ other).mean(0, keepdim=True))

    model = seeded(Attention)
    found = pl.Gradient(rules=(pl.GammaLRP(0.0, 1e-13),))(model, images(1, 6), 0)["input"]
    assert relative_error(found, pl.Gradient()(model, images(1, 6), 0)["input"]) < 1e-8


@pytest.mark.parametrize(
    "make",
    [
        lambda: pl.GammaLRP(-0.1),
        lambda: pl.GammaLRP(epsilon=0),
        lambda: pl.AlphaBetaLRP(2, 2),
        lambda: pl.AlphaBetaLRP(0, -1),
        lambda: pl.ZBoxLRP(0.1, 1),
        lambda: pl.ZBoxLRP(-1, (1, -1)),
        lambda: pl.Gradient(rules=(pl.ZBoxLRP((-6, -6), 6),))(network(0), images(2, 6), 0),
    ],
)
def test_bad_parameters_are_refused(make: Callable[[], object]) -> None:
    with pytest.raises(pl.PellucidError):
        make()


def test_the_box_has_its_channels_where_the_layer_has_them() -> None:
    """An image of three rows, channels last through a linear layer: the bounds are of channels, not of rows."""

    class OfPixels(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(3, 4, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.first(x.permute(0, 2, 3, 1)).mean((1, 2))

    model, x = seeded(OfPixels), images(1, 3).clamp(-3, 3)
    found = pl.Gradient(rules=(pl.ZBoxLRP(*BOX),), multiply=True)(model, x, 1)["input"]
    expected, logit = torch.zeros_like(x), model(x).detach()[0, 1]
    weight = model.first.weight.detach().numpy()
    for row in range(3):
        for column in range(3):
            pixel = x[0, :, row, column].numpy()
            z = weight @ pixel
            shares = z_box(weight, np.zeros(4), pixel, np.array([0, z[1] / 9, 0, 0]))
            expected[0, :, row, column] = torch.from_numpy(shares)
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)
    assert float(found.sum()) == pytest.approx(float(logit), rel=1e-5)
    flat = nn.Sequential(nn.Flatten(), nn.Linear(27, 4)).double().eval()
    with pytest.raises(pl.PellucidError, match="3 bounds for the 27 channels that linear sees"):
        pl.Gradient(rules=(pl.ZBoxLRP(*BOX),), multiply=True)(flat, x, 1)


def test_pixels_outside_of_the_box_are_told() -> None:
    class Normalizing(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Conv2d(3, 4, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.first((x - 0.5) / 0.25).mean((2, 3))

    x = images(1, 6).sigmoid()
    with pytest.warns(RuleWarning, match="lie outside of the box"):
        pl.Gradient(rules=(pl.ZBoxLRP(0.0, 1.0),), multiply=True)(seeded(Normalizing), x, 1)


def attended(q: Tensor, k: Tensor, v: Tensor, mask: Tensor, kind: str) -> Tensor:
    """Attention of one image or of several."""
    weights = (q @ k.mT / 2).softmax(-1)
    if kind == "masked":
        return torch.where(mask, weights, 0) @ v
    if kind == "renormalized":
        weights = weights.clamp(min=0)
        return weights / weights.sum(-1, keepdim=True) @ v
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=0.5)


class OneByOne(nn.Module):
    """Attention over the places of a map, for the batch or image by image."""

    def __init__(self, kind: str, batched: bool) -> None:
        super().__init__()
        self.conv, self.head, self.kind, self.batched = nn.Conv2d(3, 4, 3), nn.Linear(4, 3), kind, batched
        self.q, self.k, self.v = (nn.Linear(4, 4) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.conv(x).relu().flatten(2).mT
        q, k, v = self.q(tokens), self.k(tokens), self.v(tokens)
        mask = torch.ones(tokens.shape[1], tokens.shape[1], dtype=torch.bool).tril()
        if self.batched:
            return self.head(attended(q, k, v, mask, self.kind).mean(1))
        one_by_one = [attended(*one, mask, self.kind) for one in zip(q, k, v, strict=True)]
        return self.head(torch.stack(one_by_one).mean(1))


@pytest.mark.parametrize("kind", ["masked", "renormalized", "scaled"])
@pytest.mark.parametrize("method", ["lrp_epsilon", "attnlrp"])
@pytest.mark.filterwarnings("ignore:2 gates", "ignore:1 gate")
def test_attention_of_one_image_at_a_time_is_that_of_the_batch(kind: str, method: str) -> None:
    batched, apart = (seeded(lambda b=b: OneByOne(kind, b)) for b in (True, False))
    x = images(2, 6)
    found, expected = (pl.method(method)(one, x, 0)["input"] for one in (apart, batched))
    assert relative_error(found, expected) < 1e-12


def test_z_box_refuses_pixels_that_cannot_hold_their_relevance() -> None:
    x = images(2, 6)
    x[0, 0, 2, 2] = 0.0
    with pytest.raises(pl.PellucidError, match="1 pixels are exactly 0"):
        pl.Gradient(rules=(pl.ZBoxLRP(-6, 6),))(network(0), x, 0)


# ------------------------------------------------------------------ normalization, gates and attention


class Head(nn.Module):
    """An operation on the image (3, 2, 2), then linear logits without a bias."""

    def __init__(self, operation: Callable[[Tensor], Tensor], shape: tuple[int, ...] = (3, 2, 2)) -> None:
        super().__init__()
        self.operation = operation
        self.head = nn.Linear(operation(torch.zeros(1, *shape, dtype=torch.float64)).numel(), 3, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.operation(x).flatten(1))


def relevance_through(
    operation: Callable[[Tensor], Tensor], x: Tensor, method: pl.Method
) -> tuple[Tensor, Tensor]:
    """The relevance that the operation's output has, and what the method makes of it at the input."""
    model = seeded(lambda: Head(operation, tuple(x.shape[1:])))
    y = operation(x)
    return y * model.head.weight[1].view(y.shape[1:]), method(model, x, 1)["input"]


LRP = pl.method("lrp_epsilon", epsilon=1e-12)
ATTN = pl.method("attnlrp", epsilon=1e-12)


def test_a_normalization_is_affine_with_a_constant_divisor() -> None:
    """R_i = x_i / s (g_i - mean g), with g = R_y / y: relevance is conserved."""
    x = images(2, 2)
    for method in (LRP, ATTN):
        above, found = relevance_through(lambda t: F.layer_norm(t, t.shape[1:], eps=0.1), x, method)
        for row in range(2):
            v = x[row].flatten().numpy()
            s = np.sqrt(v.var() + 0.1)
            g = above[row].flatten().numpy() / ((v - v.mean()) / s)
            assert np.abs(found[row].flatten().numpy() - v / s * (g - g.mean())).max() < 1e-12
        assert relative_error(found.flatten(1).sum(1), above.flatten(1).sum(1)) < 1e-12


NORMALIZATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "F.layer_norm": lambda x: F.layer_norm(x, (2,)),
    "by hand": lambda x: (x - x.mean(-1, True)) / (x.var(-1, unbiased=False, keepdim=True) + 1e-5).sqrt(),
    "by rsqrt": lambda x: (x - x.mean(-1, True)) * ((x - x.mean(-1, True)).square().mean(-1, True) + 1e-5).rsqrt(),
    "by a power": lambda x: (x - x.mean(-1, True)) * ((x - x.mean(-1, True)).pow(2).mean(-1, True) + 1e-5) ** -0.5,
    "F.group_norm": lambda x: F.group_norm(x.flatten(0, 2)[..., None], 1).view_as(x),
}


@pytest.mark.parametrize("name", NORMALIZATIONS)
def test_every_spelling_of_a_normalization_gives_the_same_relevance(name: str) -> None:
    x = images(2, 2)
    _, expected = relevance_through(NORMALIZATIONS["F.layer_norm"], x, LRP)
    assert relative_error(relevance_through(NORMALIZATIONS[name], x, LRP)[1], expected) < 1e-12


ATTENTIONS: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "F": F.scaled_dot_product_attention,
    "by hand": lambda q, k, v: (q @ k.mT / 2).softmax(-1) @ v,
    "by einsum": lambda q, k, v: torch.einsum(
        "bij,bjd->bid", (torch.einsum("bid,bjd->bij", q, k) / 2).softmax(-1), v
    ),
}


def naive_attention(q: np.ndarray, k: np.ndarray, v: np.ndarray, above: np.ndarray) -> tuple[np.ndarray, ...]:
    """AttnLRP's relevances of queries, keys and values, in its own words: halves of products, Taylor's softmax."""
    scores = q @ k.T / np.sqrt(q.shape[1])
    weights = np.exp(scores) / np.exp(scores).sum(1, keepdims=True)
    out = weights @ v
    of_q, of_k, of_v = np.zeros_like(q), np.zeros_like(k), np.zeros_like(v)
    for i in range(len(q)):
        shares = (
            weights[i][:, None] * v * (above[i] / (2 * out[i]))
        )  # R_jp of the product of weight j and value jp
        of_v += shares
        of_weights = shares.sum(1)
        of_scores = scores[i] * (of_weights - weights[i] * of_weights.sum())
        for j in range(len(k)):
            part = q[i] * k[j] / (q[i] @ k[j]) * of_scores[j] / 2
            of_q[i] += part
            of_k[j] += part
    return of_q, of_k, of_v


@pytest.mark.parametrize("name", ATTENTIONS)
def test_attnlrp_through_attention_is_its_formulas(name: str) -> None:
    x = torch.randn(1, 3, 5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    above, found = relevance_through(lambda t: ATTENTIONS[name](*t.unbind(1)), x, ATTN)
    wanted = naive_attention(*x[0].numpy(), above[0].numpy())
    assert np.abs(found[0].numpy() - np.array(wanted)).max() < 1e-11 * np.abs(wanted).max()


@pytest.mark.parametrize("name", ATTENTIONS)
def test_epsilon_lrp_takes_attentions_weights_for_constants(name: str) -> None:
    x = torch.randn(2, 3, 5, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    above, found = relevance_through(lambda t: ATTENTIONS[name](*t.unbind(1)), x, LRP)
    assert not found[:, :2].any()
    assert relative_error(found[:, 2].flatten(1).sum(1), above.flatten(1).sum(1)) < 1e-12


def test_a_gate_takes_nothing_and_a_product_of_equals_is_halved() -> None:
    x = images(2, 2)
    above, found = relevance_through(lambda t: t[:, 0] * (2 * t[:, 1]).sigmoid()[:, :, :1], x, LRP)
    assert relative_error(found[:, 0], above) < 1e-12
    assert not found[:, 1:].any()
    above, found = relevance_through(lambda t: t[:, 0] * t[:, 1], x, LRP)
    assert relative_error(found[:, 0], above / 2) < 1e-12
    assert relative_error(found[:, 1], above / 2) < 1e-12
    above, found = relevance_through(lambda t: t[:, 0] * t[:, 1].sigmoid(), x, ATTN)
    assert relative_error(found[:, 0], above / 2) < 1e-12
    slope = 1 - x[:, 1].sigmoid()  # of log sigmoid
    assert relative_error(found[:, 1], above / 2 * x[:, 1] * slope) < 1e-12


def test_what_follows_a_shared_product_may_work_in_place() -> None:
    def twin(t: Tensor, inplace: bool) -> Tensor:
        y = t[:, 0] * t[:, 1]
        if inplace:
            y += t[:, 2]
            return y
        return y + t[:, 2]

    x = images(2, 2)
    for method in (LRP, ATTN):
        maps = [relevance_through(lambda t, i=i: twin(t, i), x, method)[1] for i in (True, False)]
        assert relative_error(*maps) < 1e-14


GATED: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "silu": (F.silu, lambda x: x * torch.sigmoid(x)),
    "silu, divided": (F.silu, lambda x: x / (1 + torch.exp(-x))),
    "hardswish": (F.hardswish, lambda x: x * F.relu6(x + 3) / 6),
    "hardswish, gate first": (F.hardswish, lambda x: F.hardtanh(x + 3, 0, 6) / 6 * x),
    "mish": (F.mish, lambda x: x * torch.tanh(F.softplus(x))),
    "gelu": (F.gelu, lambda x: x * 0.5 * (1 + torch.erf(x / 2**0.5))),
    "gelu, by a tanh": (
        lambda x: F.gelu(x, approximate="tanh"),
        lambda x: 0.5 * x * (1 + torch.tanh((2 / math.pi) ** 0.5 * (x + 0.044715 * x**3))),
    ),
}


@pytest.mark.parametrize("name", GATED)
@pytest.mark.parametrize("share", ["gate", "half"])
def test_an_activation_by_hand_has_the_relevance_of_its_function(name: str, share: str) -> None:
    x, method = images(2, 2), LRP if share == "gate" else ATTN
    (above, expected), (_, found) = (relevance_through(f, x, method) for f in GATED[name])
    assert relative_error(expected, above) < 1e-9
    assert relative_error(found, expected) < 1e-9


@pytest.mark.parametrize("frozen", [True, False])
def test_a_trainable_factor_is_a_constant(frozen: bool) -> None:
    """Also one computed from a parameter, such as the temperature of a cosine attention."""

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.tensor([[[0.5]]]))
            self.head = nn.Linear(12, 3, bias=False)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(F.relu(x * self.scale.clamp(max=1).exp()).flatten(1))

    model, x = seeded(Scaled).requires_grad_(not frozen), images(2, 2)
    for method in (LRP, ATTN, pl.DeepLift()):
        found = method(model, x, 1)
        assert relative_error(found["input"].flatten(1).sum(1), model(x)[:, 1].detach()) < 1e-12


def test_relevance_that_does_not_sum_to_the_logit_is_told() -> None:
    """Without the rule for normalizations theirs is all but 0, as nothing scales with the image."""
    model = plain(nn.Flatten(), nn.LayerNorm(12, eps=0), nn.ReLU(), nn.Linear(12, 3), bias=False)
    x = images(2, 2)
    with pytest.warns(pl.CompletenessWarning, match="sums to .*, not to the logit .*epsilon"):
        found = pl.Gradient(rules=(pl.EpsilonLRP(1e-9),), multiply=True)(model, x, 1)
    assert torch.equal(found.residuals["input"], found["input"].flatten(1).sum(1) - model(x)[:, 1])
    assert float(found["input"].flatten(1).sum(1).abs().max()) < 1e-11
    kept = LRP(model, x, 1)
    assert float(kept.residuals["input"].abs().max()) < 1e-11
    assert not pl.Gradient(rules=(pl.EpsilonLRP(),))(model, x, 1).residuals  # no relevance, no promise


class OfViews(nn.Module):
    """Parameters as the views that a network makes of them: a layer's scale, and weights in other shapes."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.head = nn.Conv2d(3, 4, 3, bias=False), nn.Linear(4, 3, bias=False)
        self.down = nn.Conv2d(4, 4, 2, stride=2, bias=False)
        self.scale, self.weight = nn.Parameter(torch.full((4,), 0.3)), nn.Parameter(torch.randn(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        h = self.down(self.conv(x).relu()).relu()
        h = h + self.scale.view(1, -1, 1, 1) * F.conv2d(h, self.weight[:, :, None, None]).relu()
        h = F.linear(h.permute(0, 2, 3, 1), self.weight.t()).permute(0, 3, 1, 2) + h
        return self.head(h.mean((2, 3)))


@pytest.mark.parametrize("method", ["attnlrp", "lrp_epsilon"])
@pytest.mark.parametrize("variant", ["original", "backward"])
def test_views_of_parameters_are_no_activations(method: str, variant: str) -> None:
    model, x = seeded(OfViews).requires_grad_(True), images(2, 8)
    found = pl.method(method)(model, x, 0, variant=variant)["input"]
    frozen = pl.method(method)(model.requires_grad_(False), x, 0, variant=variant)["input"]
    assert torch.equal(found, frozen)
    plain_gradient = pl.method("input_x_gradient")(model, x, 0, variant=variant)["input"]
    assert relative_error(found, plain_gradient) < 0.05  # but for epsilon


def recurrent_by_hand(x: Tensor, layer: nn.GRU | nn.LSTM) -> Tensor:
    """The last state of a layer for steps (B, N, C), with gates as they are usually written."""
    h = c = x.new_zeros(len(x), layer.hidden_size)
    for step in x.unbind(1):
        one = F.linear(step, layer.weight_ih_l0, layer.bias_ih_l0)
        two = F.linear(h, layer.weight_hh_l0, layer.bias_hh_l0)
        if isinstance(layer, nn.LSTM):
            enter, keep, new, leave = (one + two).chunk(4, 1)
            c = torch.sigmoid(keep) * c + torch.sigmoid(enter) * torch.tanh(new)
            h = torch.sigmoid(leave) * torch.tanh(c)
        else:
            (r, z, n), (rh, zh, nh) = one.chunk(3, 1), two.chunk(3, 1)
            z, n = torch.sigmoid(z + zh), torch.tanh(n + torch.sigmoid(r + rh) * nh)
            h = (1 - z) * n + z * h
    return h


class LastState(nn.Module):
    """The last state of a recurrent layer over the rows of a convolution's map."""

    def __init__(self, kind: type[nn.GRU] | type[nn.LSTM], by_hand: bool) -> None:
        super().__init__()
        self.conv, self.layer, self.head = nn.Conv2d(3, 4, 3), kind(4, 4, batch_first=True), nn.Linear(4, 3)
        self.by_hand = by_hand

    def forward(self, x: Tensor) -> Tensor:
        steps = self.conv(x).mean(3).mT
        return self.head(recurrent_by_hand(steps, self.layer) if self.by_hand else self.layer(steps)[0][:, -1])


@pytest.mark.parametrize(
    ("kind", "method"),
    # A GRU's (1 - z) n + z h shares halves otherwise than n + z (h - n).
    [(nn.GRU, "lrp_epsilon"), *((nn.LSTM, name) for name in ("lrp_epsilon", "attnlrp", "attnlrp(gamma=0.25)"))],
)
@pytest.mark.filterwarnings("ignore:1 gate")  # the state before the first step is 0
def test_gates_of_recurrent_layers_are_those_written_by_hand(
    kind: type[nn.GRU] | type[nn.LSTM], method: str
) -> None:
    one, by_hand = (seeded(lambda hand=hand: LastState(kind, hand)) for hand in (False, True))
    x = images(2, 8)
    found, expected = (pl.method(method)(model, x, 0)["input"] for model in (one, by_hand))
    assert relative_error(found, expected) < 1e-12


@pytest.mark.parametrize("method", ["lrp_epsilon", "attnlrp", "deeplift"])
@pytest.mark.filterwarnings("ignore:f.x. ")
def test_an_interpolation_is_its_sum_and_product(method: str) -> None:
    class Between(nn.Module):
        def __init__(self, apart: bool) -> None:
            super().__init__()
            self.conv, self.head, self.apart = nn.Conv2d(3, 4, 3), nn.Linear(4, 3), apart

        def forward(self, x: Tensor) -> Tensor:
            x = self.conv(x)
            y, gate = x.relu(), x.mean((2, 3), keepdim=True).sigmoid()
            return self.head((x + gate * (y - x) if self.apart else torch.lerp(x, y, gate)).mean((2, 3)))

    one, apart = (seeded(lambda a=a: Between(a)) for a in (False, True))
    x = images(2, 6)
    found, expected = (pl.method(method)(model, x, 0)["input"] for model in (one, apart))
    assert relative_error(found, expected) < 1e-13


def test_one_minus_a_gate_is_a_gate() -> None:
    """(1 - z) tanh(x): z is a constant, so all relevance is the tanh's, R = f(x) / x g x (1 - z)."""

    class Highway(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return ((1 - torch.sigmoid(x[:, 0])) * torch.tanh(x[:, 1])).flatten(1)

    x = images(1, 2)
    found = pl.method("lrp_epsilon(epsilon=1e-12)")(Highway().double().eval(), x, 2)["input"]
    expected = torch.zeros_like(x)
    expected[0, 1, 1, 0] = (1 - torch.sigmoid(x[0, 0, 1, 0])) * torch.tanh(x[0, 1, 1, 0])
    torch.testing.assert_close(found, expected, rtol=1e-9, atol=1e-12)


class Product(nn.Module):
    def forward(self, a: Tensor, b: Tensor) -> Tensor:
        return a * b


class ProductOfTwo(nn.Module):
    """A product that is a layer: relevance is halved below it, not at it."""

    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 3)
        self.product, self.head = Product(), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.product(self.a(x), self.b(x)).mean((2, 3)))


@pytest.mark.parametrize("method", ["lrp_epsilon", "attnlrp"])
@pytest.mark.parametrize("layers", [["product"], ["a", "product"]])
def test_relevance_at_a_product_is_whole(method: str, layers: list[str]) -> None:
    torch.manual_seed(0)
    model, x = ProductOfTwo().double().eval(), images()
    found = pl.method(method)(model, x, 1, layers)
    y = model.a(x) * model.b(x)
    expected = y * model.head.weight[1][:, None, None] / y[0, 0].numel()
    assert relative_error(found["product"], expected.detach()) < 1e-3  # epsilon takes the rest
    if "a" in found:
        assert relative_error(found["a"], expected.detach() / 2) < 1e-3
