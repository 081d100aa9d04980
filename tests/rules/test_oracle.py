"""Every rule against a second, deliberately naive implementation: matrices, loops, and the paper's formula.

Linear layers become explicit matrices (their Jacobians), multiplied by hand; non-linear ones are Python loops
over plain numbers. No autograd graph, no hook and no line of pellucid takes part in what is expected.
"""

from __future__ import annotations

import importlib
import inspect
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

import pellucid as pl
from tests.networks import images, plain

# High thresholds let nothing through some layers, and biases take relevance, in both implementations.
pytestmark = pytest.mark.filterwarnings("ignore::pellucid.EmptyMapWarning", "ignore::pellucid.CompletenessWarning")

SEEDS = (0, 1, 2)
EXACT = 1e-11


# ------------------------------------------------------------------ the naive network


def _softplus(z: float) -> float:
    return max(z, 0.0) + math.log1p(math.exp(-abs(z)))


def _selu(z: float) -> float:
    alpha, scale = 1.6732632423543772848170429916717, 1.0507009873554804934193349852946
    return scale * (z if z > 0 else alpha * math.expm1(z))


FORMULAS: dict[str, tuple[Callable[[bool], nn.Module], Callable[[float], float]]] = {
    "relu": (lambda inplace: nn.ReLU(inplace), lambda z: max(z, 0.0)),
    "relu6": (lambda inplace: nn.ReLU6(inplace), lambda z: min(max(z, 0.0), 6.0)),
    "leaky_relu": (lambda inplace: nn.LeakyReLU(0.1, inplace), lambda z: z if z > 0 else 0.1 * z),
    "prelu": (lambda _: nn.PReLU(init=0.25), lambda z: z if z > 0 else 0.25 * z),
    "elu": (lambda inplace: nn.ELU(0.7, inplace), lambda z: z if z > 0 else 0.7 * math.expm1(z)),
    "celu": (lambda inplace: nn.CELU(0.7, inplace), lambda z: z if z > 0 else 0.7 * math.expm1(z / 0.7)),
    "selu": (lambda inplace: nn.SELU(inplace), _selu),
    "gelu": (lambda _: nn.GELU(), lambda z: z * (1 + math.erf(z / math.sqrt(2))) / 2),
    "silu": (lambda inplace: nn.SiLU(inplace), lambda z: z / (1 + math.exp(-z))),
    "hardswish": (lambda inplace: nn.Hardswish(inplace), lambda z: z * min(max(z + 3, 0.0), 6.0) / 6),
    "mish": (lambda inplace: nn.Mish(inplace), lambda z: z * math.tanh(_softplus(z))),
    "softplus": (lambda _: nn.Softplus(), _softplus),
    "tanh": (lambda _: nn.Tanh(), math.tanh),
    "sigmoid": (lambda _: nn.Sigmoid(), lambda z: 1 / (1 + math.exp(-z))),
}
RECTIFIERS = [name for name in FORMULAS if name not in ("tanh", "sigmoid")]


@dataclass(eq=False)
class Affine:
    """y = M x + c of any linear module, for inputs of one shape; the rules of convolutions act on it."""

    matrix: np.ndarray
    constant: np.ndarray
    module: nn.Module
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]


@dataclass(eq=False)
class Pointwise:
    formula: Callable[[float], float]


@dataclass(eq=False)
class MaxPool:
    """Windows as lists of flat input indices, one per output."""

    windows: list[list[int]]
    size: int


def naive_layers(model: nn.Sequential, shape: tuple[int, ...]) -> list[Affine | Pointwise | MaxPool]:
    layers: list[Affine | Pointwise | MaxPool] = []
    for module in model:
        names = [name for name, (make, _) in FORMULAS.items() if type(make(False)) is type(module)]
        output_shape = tuple(module(torch.zeros(1, *shape, dtype=torch.float64)).shape[1:])
        if names:
            layers.append(Pointwise(FORMULAS[names[0]][1]))
        elif isinstance(module, nn.MaxPool2d):
            layers.append(MaxPool(_windows(module, shape, output_shape), module.kernel_size**2))
        else:
            layers.append(_affine(module, shape, output_shape))
        shape = output_shape
    return layers


def _affine(module: nn.Module, shape: tuple[int, ...], output_shape: tuple[int, ...]) -> Affine:
    # Column i of the Jacobian is the answer to the i-th unit vector, less the answer to zero.
    units = torch.eye(math.prod(shape), dtype=torch.float64).view(-1, *shape)
    with torch.no_grad():
        constant = module(torch.zeros(1, *shape, dtype=torch.float64)).flatten()
        matrix = (module(units).flatten(1) - constant).T
    return Affine(matrix.numpy(), constant.numpy(), module, shape, output_shape)


def _windows(pool: nn.MaxPool2d, shape: tuple[int, ...], output_shape: tuple[int, ...]) -> list[list[int]]:
    channels, height, width = shape
    size, stride, padding = pool.kernel_size, pool.stride, pool.padding
    return [
        [
            (c * height + y) * width + x
            for y in range(i * stride - padding, i * stride - padding + size)
            for x in range(j * stride - padding, j * stride - padding + size)
            if 0 <= y < height and 0 <= x < width
        ]
        for c in range(channels)
        for i in range(output_shape[1])
        for j in range(output_shape[2])
    ]


def forward(layers: Sequence[Affine | Pointwise | MaxPool], x: np.ndarray) -> list[np.ndarray]:
    """The input of every layer, and last the logits."""
    values = [x]
    for layer in layers:
        match layer:
            case Affine():
                x = layer.matrix @ x + layer.constant
            case Pointwise():
                x = np.array([layer.formula(float(z)) for z in x])
            case MaxPool():
                x = np.array([max(x[i] for i in window) for window in layer.windows])
        values.append(x)
    return values


def argmax(x: np.ndarray, window: list[int]) -> int:
    """The first largest."""
    return max(window, key=lambda i: (x[i], -i))


class Naive:
    """Backward through the layers; a subclass overrides the kind of layer that its rule concerns."""

    def __init__(self, layers: list[Affine | Pointwise | MaxPool]) -> None:
        self.layers = layers
        self.pointwise = [i for i, layer in enumerate(layers) if isinstance(layer, Pointwise)]

    def relevances(self, x: np.ndarray, target: int) -> list[np.ndarray]:
        """R at the input of every layer."""
        values = forward(self.layers, x)
        relevance = np.zeros(len(values[-1]))
        relevance[target] = 1.0
        found = []
        for index in reversed(range(len(self.layers))):
            layer, here, there = self.layers[index], values[index], values[index + 1]
            match layer:
                case Affine():
                    relevance = self.through_affine(layer, relevance)
                case Pointwise():
                    relevance = self.through_pointwise(index, layer, here, there, relevance)
                case MaxPool():
                    relevance = self.through_pool(layer, here, relevance)
            found.append(relevance)
        return found[::-1]

    def through_affine(self, layer: Affine, relevance: np.ndarray) -> np.ndarray:
        return layer.matrix.T @ relevance

    def through_pointwise(
        self, index: int, layer: Pointwise, z: np.ndarray, a: np.ndarray, relevance: np.ndarray
    ) -> np.ndarray:
        raise NotImplementedError

    def through_pool(self, layer: MaxPool, x: np.ndarray, relevance: np.ndarray) -> np.ndarray:
        result = np.zeros(len(x))
        for window, value in zip(layer.windows, relevance, strict=True):
            result[argmax(x, window)] += value
        return result


class Plain(Naive):
    """The gradient of a ReLU network."""

    def through_pointwise(
        self, index: int, layer: Pointwise, z: np.ndarray, a: np.ndarray, relevance: np.ndarray
    ) -> np.ndarray:
        return np.array([r if value > 0 else 0.0 for value, r in zip(z, relevance, strict=True)])


class Guided(Naive):
    """Nielsen et al., Eq. 4: R_in = 1[a > 0] 1[R > 0] R."""

    def through_pointwise(
        self, index: int, layer: Pointwise, z: np.ndarray, a: np.ndarray, relevance: np.ndarray
    ) -> np.ndarray:
        return np.array([r if value > 0 and r > 0 else 0.0 for value, r in zip(a, relevance, strict=True)])


class Deconv(Naive):
    """R_in = 1[R > 0] R."""

    def through_pointwise(
        self, index: int, layer: Pointwise, z: np.ndarray, a: np.ndarray, relevance: np.ndarray
    ) -> np.ndarray:
        return np.array([r if r > 0 else 0.0 for r in relevance])


class Rectified(Naive):
    """R_in = 1[s > tau] R, s by PR1 to PR4 or RectGradMod, tau a number or a percentile of s."""

    def __init__(
        self,
        layers: list[Affine | Pointwise | MaxPool],
        q: float = 98.0,
        interpolation: str = "nearest",
        tau: float | None = None,
        gate: str = "PR1",
    ) -> None:
        super().__init__(layers)
        self.q, self.interpolation, self.tau, self.gate = q, interpolation, tau, gate

    def through_pointwise(
        self, index: int, layer: Pointwise, z: np.ndarray, a: np.ndarray, relevance: np.ndarray
    ) -> np.ndarray:
        gate = self.gate
        if gate == "mod":
            gate = "PR1" if index == self.pointwise[-1] else "PR2"
        score = {
            "PR1": lambda: [x * r for x, r in zip(a, relevance, strict=True)],
            "PR2": lambda: [abs(x * r) for x, r in zip(a, relevance, strict=True)],
            "PR3": lambda: list(a),
            "PR4": lambda: list(relevance),
        }[gate]()
        tau = self.tau
        if tau is None and self.interpolation == "linear":
            tau = float(np.percentile(score, self.q))
        elif tau is None:
            place = round(Fraction(len(score) - 1) * (1 - Fraction(str(self.q)) / 100))  # half to even
            tau = sorted(score, reverse=True)[place]
        return np.array([r if s > tau else 0.0 for s, r in zip(score, relevance, strict=True)])


class Epsilon(Naive):
    """R_in = R (f(z) - f(0)) / (z + epsilon sign z), sign(0) = 1."""

    def __init__(self, layers: list[Affine | Pointwise | MaxPool], epsilon: float) -> None:
        super().__init__(layers)
        self.epsilon = epsilon

    def through_pointwise(
        self, index: int, layer: Pointwise, z: np.ndarray, a: np.ndarray, relevance: np.ndarray
    ) -> np.ndarray:
        return np.array(
            [
                r * (y - layer.formula(0.0)) / (x + (self.epsilon if x >= 0 else -self.epsilon))
                for x, y, r in zip(z, a, relevance, strict=True)
            ]
        )


class Proportional(Plain):
    """The gradient of a ReLU network, but max-pools share R_w among their inputs: x_i R_w / sum_j x_j."""

    def through_pool(self, layer: MaxPool, x: np.ndarray, relevance: np.ndarray) -> np.ndarray:
        result = np.zeros(len(x))
        for window, value in zip(layer.windows, relevance, strict=True):
            mean = sum(x[i] for i in window) / layer.size + 1e-10  # Listing 3's guard against 0 / 0
            for i in window:
                result[i] += x[i] * value / layer.size / mean
        return result


class Padded(Plain):
    """The gradient of a ReLU network; padded convolutions pass nothing of their output's outermost pixels."""

    def __init__(self, layers: list[Affine | Pointwise | MaxPool], pointwise: bool = False) -> None:
        super().__init__(layers)
        self.one_by_one = pointwise

    def through_affine(self, layer: Affine, relevance: np.ndarray) -> np.ndarray:
        module = layer.module
        if isinstance(module, nn.Conv2d) and (
            max(module.padding) > 0 or (self.one_by_one and module.kernel_size == (1, 1))
        ):
            _, height, width = layer.output_shape
            relevance = relevance.copy()
            for index in range(len(relevance)):
                y, x = index // width % height, index % width
                if y in (0, height - 1) or x in (0, width - 1):
                    relevance[index] = 0.0
        return layer.matrix.T @ relevance


def rolled_mean_matrix(shape: tuple[int, ...], stride: tuple[int, int], direction: int) -> np.ndarray:
    """P_d: each output pixel is the mean of s x s inputs, circularly; d = +1 takes them from above and left."""
    channels, height, width = shape
    matrix = np.zeros((math.prod(shape),) * 2)
    for c in range(channels):
        for y in range(height):
            for x in range(width):
                for h in range(stride[0]):
                    for w in range(stride[1]):
                        source = ((y - direction * h) % height, (x - direction * w) % width)
                        matrix[(c * height + y) * width + x, (c * height + source[0]) * width + source[1]] += 1
    return matrix / (stride[0] * stride[1])


class SmoothedBackward(Plain):
    """The gradient that leaves a strided convolution, through P_d."""

    def __init__(
        self, layers: list[Affine | Pointwise | MaxPool], direction: int = 1, include_first: bool = False
    ) -> None:
        super().__init__(layers)
        self.direction = direction
        convolutions = [i for i in layers if isinstance(i, Affine) and isinstance(i.module, nn.Conv2d)]
        self.concerned = [
            layer
            for layer in (convolutions if include_first else convolutions[1:])
            if max(layer.module.stride) > 1
        ]

    def through_affine(self, layer: Affine, relevance: np.ndarray) -> np.ndarray:
        passed = layer.matrix.T @ relevance
        if layer not in self.concerned:
            return passed
        return rolled_mean_matrix(layer.input_shape, layer.module.stride, self.direction) @ passed


def smoothed_forward(
    layers: list[Affine | Pointwise | MaxPool], direction: int = 1, include_first: bool = False
) -> Naive:
    """The gradient of the network in which a strided convolution sees P_d x instead of x."""
    naive = SmoothedBackward(layers, direction, include_first)
    changed = [
        Affine(
            layer.matrix @ rolled_mean_matrix(layer.input_shape, layer.module.stride, direction),
            layer.constant,
            layer.module,
            layer.input_shape,
            layer.output_shape,
        )
        if layer in naive.concerned
        else layer
        for layer in layers
    ]
    return Plain(changed)


class Rescale(Naive):
    """DeepLIFT: chords instead of derivatives, from the image's and the reference's values."""

    def __init__(
        self, layers: list[Affine | Pointwise | MaxPool], reference: np.ndarray, rescale_pool: bool
    ) -> None:
        super().__init__(layers)
        self.reference = forward(layers, reference)
        self.rescale_pool = rescale_pool

    def through_pointwise(
        self, index: int, layer: Pointwise, z: np.ndarray, a: np.ndarray, relevance: np.ndarray
    ) -> np.ndarray:
        multipliers = []
        for x, y, x0, y0, r in zip(z, a, self.reference[index], self.reference[index + 1], relevance, strict=True):
            if abs(x - x0) >= 1e-5:
                multipliers.append(r * (y - y0) / (x - x0))
            else:
                middle, step = (x + x0) / 2, 1e-6
                slope = (layer.formula(middle + step) - layer.formula(middle - step)) / (2 * step)
                multipliers.append(r * slope)
        return np.array(multipliers)

    def through_pool(self, layer: MaxPool, x: np.ndarray, relevance: np.ndarray) -> np.ndarray:
        if not self.rescale_pool:
            return super().through_pool(layer, x, relevance)
        x0 = self.reference[self.layers.index(layer)]
        result = np.zeros(len(x))
        for window, m in zip(layer.windows, relevance, strict=True):
            top, top0 = argmax(x, window), argmax(x0, window)
            larger = max(x[top], x0[top0])
            for place, share in ((top, m * (larger - x0[top0])), (top0, m * (x[top] - larger))):
                if share != 0:
                    result[place] += share / (x[place] - x0[place])
        return result


# ------------------------------------------------------------------ the comparison


def network(
    seed: int,
    activation: str = "relu",
    stride: int | tuple[int, int] = 2,
    pool: nn.Module | None = None,
    inplace: bool = False,
) -> nn.Sequential:
    make = FORMULAS[activation][0]
    size = plain_size(stride, pool)
    return plain(
        nn.Conv2d(3, 4, 3, padding=1),
        make(inplace),
        nn.Conv2d(4, 4, 3, padding=1, stride=stride),
        make(inplace),
        *([pool] if pool is not None else []),
        nn.Flatten(),
        nn.Linear(4 * size, 16),
        make(inplace),
        nn.Linear(16, 4),
        seed=seed,
    )


def plain_size(stride: int | tuple[int, int], pool: nn.Module | None) -> int:
    x = nn.Conv2d(1, 1, 3, padding=1, stride=stride)(torch.zeros(1, 1, 6, 6))
    return (x if pool is None else pool(x)).numel()


def assert_same(
    model: nn.Sequential,
    method: pl.Method,
    naive: Callable[[list[Affine | Pointwise | MaxPool]], Naive],
    seed: int,
    x: Tensor | None = None,
    multiplied_by: Callable[[np.ndarray, int], np.ndarray] | None = None,
    tolerance: float = EXACT,
    size: int = 6,
) -> None:
    """Every layer's map of two images equals the naive one."""
    x = images(2, size, seed) if x is None else x
    targets = [seed % 4, (seed + 1) % 4]
    names = ["input", *(str(i) for i in range(len(model) - 1))]
    found = method(model, x, targets, layers=names)
    oracle = naive(naive_layers(model, tuple(x.shape[1:])))
    something = False
    for row, target in enumerate(targets):
        expected = oracle.relevances(x[row].flatten().numpy(), target)
        assert len(expected) == len(names)
        values = forward(oracle.layers, x[row].flatten().numpy())
        for index, (name, relevance) in enumerate(zip(names, expected, strict=True)):
            wanted = relevance if multiplied_by is None else relevance * multiplied_by(values[index], index)
            scale = max(float(np.abs(wanted).max()), 1e-300)
            difference = np.abs(found[name][row].flatten().numpy() - wanted).max() / scale
            assert difference <= tolerance, f"image {row}, layer {name}: {difference:.2e}"
            something |= bool(np.abs(wanted).max() > 0)
    assert something


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("stride", [1, 2, 3])
def test_gradient_is_the_chain_rule(seed: int, stride: int) -> None:
    assert_same(network(seed, stride=stride), pl.Gradient(), Plain, seed)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("activation", RECTIFIERS)
def test_guided_relu_is_nielsen_eq_4_at_every_activation(seed: int, activation: str) -> None:
    assert_same(network(seed, activation), pl.Gradient(rules=(pl.GuidedReLU(),)), Guided, seed)


@pytest.mark.parametrize("rule", [pl.GuidedReLU(), pl.DeconvReLU(), pl.EpsilonLRP(0.01)], ids=repr)
@pytest.mark.parametrize(
    "activation", ["relu", "relu6", "leaky_relu", "elu", "celu", "selu", "silu", "hardswish", "mish"]
)
def test_in_place_activations_propagate_like_the_others(rule: pl.Rule, activation: str) -> None:
    naive = {"GuidedReLU": Guided, "DeconvReLU": Deconv, "EpsilonLRP": lambda layers: Epsilon(layers, 0.01)}
    apart, inplace = network(0, activation), network(0, activation, inplace=True)
    assert_same(apart, pl.Gradient(rules=(rule,)), naive[type(rule).__name__], 0)
    x = images(2, 6)
    maps = [pl.Gradient(rules=(rule,))(model, x, 1, layers=["input", "4"]) for model in (apart, inplace)]
    for layer in ("input", "4"):
        assert torch.equal(maps[0][layer], maps[1][layer])


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("activation", ["relu", "selu", "gelu", "leaky_relu"])
def test_deconv_relu_is_its_formula(seed: int, activation: str) -> None:
    assert_same(network(seed, activation), pl.Gradient(rules=(pl.DeconvReLU(),)), Deconv, seed)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("interpolation", ["nearest", "linear"])
@pytest.mark.parametrize("q", [0.0, 12.5, 50.0, 80.0, 98.0])
def test_rectified_relu_passes_what_exceeds_the_percentile(seed: int, interpolation: str, q: float) -> None:
    rule = pl.RectifiedReLU(q, interpolation)  # type: ignore[arg-type]
    assert_same(network(seed), pl.Gradient(rules=(rule,)), lambda ls: Rectified(ls, q, interpolation), seed)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("gate", ["PR1", "PR2", "PR3", "PR4", "mod"])
@pytest.mark.parametrize("interpolation", ["nearest", "linear"])
@pytest.mark.parametrize("activation", ["relu", "silu"])
def test_rectified_relu_gates_are_their_formulas(
    seed: int, gate: str, interpolation: str, activation: str
) -> None:
    rule = pl.RectifiedReLU(60.0, interpolation, None, gate)  # type: ignore[arg-type]
    assert_same(
        network(seed, activation),
        pl.Gradient(rules=(rule,)),
        lambda ls: Rectified(ls, 60.0, interpolation, None, gate),
        seed,
    )


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("gate", ["PR1", "PR2", "PR3", "PR4", "mod"])
@pytest.mark.parametrize("tau", [-0.05, 0.0, 0.02])
def test_rectified_relu_with_a_number_for_tau(seed: int, gate: str, tau: float) -> None:
    rule = pl.RectifiedReLU(tau=tau, gate=gate)  # type: ignore[arg-type]
    assert_same(network(seed), pl.Gradient(rules=(rule,)), lambda ls: Rectified(ls, tau=tau, gate=gate), seed)


@pytest.mark.parametrize("interpolation", ["nearest", "linear"])
@pytest.mark.parametrize("q", [0.0, 37.0, 98.0, 99.9, 100.0])
def test_percentile_of_a_long_layer_is_the_one_of_its_sorted_scores(interpolation: str, q: float) -> None:
    """From 16 384 units on, a CPU selects the percentile through a sample: also if one value fills most of it."""
    relu = pl.RectifiedReLU(q, interpolation)  # type: ignore[arg-type]
    x = images(1, 160).repeat(2, 1, 1, 1)  # 76 800 units
    x[1].clamp_(min=1.0)  # 84 % ties
    model = plain(nn.ReLU(), nn.Flatten(), nn.Linear(76800, 1))
    layers = [Pointwise(FORMULAS["relu"][1])]
    weight = model[2].weight[0].numpy()
    found = pl.Gradient(rules=(relu,))
    with pytest.warns(pl.EmptyMapWarning) if q == 100.0 else _quiet():
        maps = found(model, x, 0)["input"]
    for row in range(2):
        values = x[row].flatten().numpy()
        oracle = Rectified(layers, q, interpolation)  # type: ignore[arg-type]
        wanted = oracle.through_pointwise(0, layers[0], values, np.maximum(values, 0), weight)
        assert np.array_equal(maps[row].flatten().numpy(), wanted)


class _quiet:  # noqa: N801
    def __enter__(self) -> None: ...

    def __exit__(self, *_: object) -> None: ...


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("epsilon", [1e-2, 1e-4, 1e-9])
@pytest.mark.parametrize("activation", ["relu", "selu", "gelu", "tanh", "softplus"])
def test_epsilon_lrp_is_its_formula(seed: int, epsilon: float, activation: str) -> None:
    """Multiplied by the layer's own activation, as relevance."""
    assert_same(
        network(seed, activation),
        pl.Gradient(rules=(pl.EpsilonLRP(epsilon),), multiply=True),
        lambda ls: Epsilon(ls, epsilon),
        seed,
        multiplied_by=lambda value, _: value,
    )


def test_epsilon_lrp_keeps_its_epsilon_in_double_precision() -> None:
    """z = epsilon gives R f(z) / (2 epsilon), z = -epsilon on a tanh the same; float32's 1e-4 is 3e-9 off."""
    epsilon = 1e-4
    x = torch.tensor([epsilon, -epsilon, 3e-5, 0.0], dtype=torch.float64).view(1, 1, 2, 2)
    model = plain(nn.Tanh(), nn.Flatten(), nn.Linear(4, 1))
    model[2].weight.fill_(1.0)
    found = pl.Gradient(rules=(pl.EpsilonLRP(epsilon),))(model, x, 0)["input"].flatten()
    wanted = [math.tanh(z) / (z + (epsilon if z >= 0 else -epsilon)) for z in x.flatten().tolist()]
    assert found.tolist() == pytest.approx(wanted, rel=1e-14, abs=0)


POOLS = [nn.MaxPool2d(2), nn.MaxPool2d(3, 1), nn.MaxPool2d(3, 2, 1)]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("pool", POOLS, ids=repr)
def test_max_pool_without_a_rule_routes_to_the_maximum(seed: int, pool: nn.Module) -> None:
    assert_same(network(seed, pool=pool), pl.Gradient(), Plain, seed)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("pool", POOLS, ids=repr)
def test_proportional_pooling_shares_each_window(seed: int, pool: nn.Module) -> None:
    model = network(seed, pool=pool)
    assert_same(model, pl.Gradient(rules=(pl.ProportionalPooling(),)), Proportional, seed)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("pointwise", [False, True])
def test_padding_trick_masks_the_output_border_of_padded_convolutions(seed: int, pointwise: bool) -> None:
    """Strides, kernels of 5, and of 1 if asked for; unpadded convolutions are left alone."""
    model = plain(
        nn.Conv2d(3, 4, 5, padding=2),
        nn.ReLU(),
        nn.Conv2d(4, 4, 1),
        nn.ReLU(),
        nn.Conv2d(4, 4, 3, padding=1, stride=2),
        nn.ReLU(),
        nn.Conv2d(4, 5, 2),
        nn.Flatten(),
        nn.Linear(5 * 9, 4),
        seed=seed,
    )
    rule = pl.PaddingTrick(pointwise=pointwise)
    assert_same(model, pl.Gradient(rules=(rule,)), lambda ls: Padded(ls, pointwise), seed, size=8)


def strided(seed: int, stride: int | tuple[int, int], kernel: int = 3) -> nn.Sequential:
    """The first convolution strided too."""
    convolutions = [
        nn.Conv2d(3, 4, 3, padding=1, stride=stride),
        nn.ReLU(),
        nn.Conv2d(4, 4, kernel, padding=kernel // 2, stride=stride),
        nn.ReLU(),
    ]
    size = nn.Sequential(*convolutions)(torch.zeros(1, 3, 9, 9)).numel()
    return plain(*convolutions, nn.Flatten(), nn.Linear(size, 4), seed=seed)


@pytest.mark.parametrize("seed", SEEDS[:2])
@pytest.mark.parametrize("stride", [2, 3, (2, 1), (1, 3)], ids=str)
@pytest.mark.parametrize("direction", [1, -1])
@pytest.mark.parametrize("include_first", [False, True])
@pytest.mark.parametrize("kernel", [1, 3])
def test_smoothed_downsampling_is_the_rolled_mean_matrix(
    seed: int, stride: int | tuple[int, int], direction: int, include_first: bool, kernel: int
) -> None:
    model = strided(seed, stride, kernel)
    for where, naive in (("backward", SmoothedBackward), ("forward", smoothed_forward)):
        rule = pl.SmoothedDownsampling(where, direction, include_first)  # type: ignore[arg-type]
        assert_same(
            model,
            pl.Gradient(rules=(rule,)),
            lambda ls, naive=naive: naive(ls, direction, include_first),
            seed,
            size=9,
        )


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("activation", sorted(FORMULAS))
def test_rescale_elementwise_is_the_chord(seed: int, activation: str) -> None:
    """Reference 0 at the image, biases make it nonzero above; multiplied by (a - a') at each layer."""
    zero = np.zeros(3 * 36)
    reference: list[np.ndarray] = []

    def oracle(layers: list[Affine | Pointwise | MaxPool]) -> Naive:
        reference.extend(forward(layers, zero))
        return Rescale(layers, zero, rescale_pool=True)

    assert_same(
        network(seed, activation),
        pl.DeepLift(),
        oracle,
        seed,
        multiplied_by=lambda value, index: value - reference[index],
    )


@pytest.mark.parametrize("activation", ["relu", "selu", "gelu", "prelu"])
def test_rescale_elementwise_takes_the_derivative_where_image_and_reference_agree(activation: str) -> None:
    """Half of the image equals the reference: the first convolution's units agree there."""
    x = images(2, 6, 3)
    x[:, :, :, 3:] = 0.25
    reference = np.full(3 * 36, 0.25)
    values: list[np.ndarray] = []

    def oracle(layers: list[Affine | Pointwise | MaxPool]) -> Naive:
        values.extend(forward(layers, reference))
        return Rescale(layers, reference, rescale_pool=True)

    assert_same(
        network(3, activation),
        pl.DeepLift(baseline=0.25),
        oracle,
        3,
        x=x,
        multiplied_by=lambda value, index: value - values[index],
        tolerance=1e-8,  # the oracle's derivative is a difference quotient
    )


def test_rescale_elementwise_takes_the_derivative_halfway_where_they_nearly_agree() -> None:
    """Differences below 1e-5, as in RectGrad's code: the ReLU's slope at (z + z') / 2, whichever side z is on."""
    model = plain(nn.ReLU(), nn.Flatten(), nn.Linear(4, 1))
    model[2].weight.fill_(1.0)
    x = torch.tensor([4e-6, -4e-6, 4e-6, 3e-3], dtype=torch.float64).view(1, 1, 2, 2)
    reference = torch.tensor([-5e-6, 5e-6, -3e-6, -1e-3], dtype=torch.float64).view(1, 2, 2)
    found = pl.DeepLift(baseline=reference)(model, x, 0)["input"].flatten() / (x - reference).flatten()
    assert found.tolist() == pytest.approx([0, 1, 1, 3 / 4], rel=1e-12, abs=0)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("pool", POOLS, ids=repr)
@pytest.mark.parametrize("max_pool", ["rescale", "gradient"])
def test_rescale_max_pool_carries_each_windows_difference(seed: int, pool: nn.Module, max_pool: str) -> None:
    generator = np.random.default_rng(seed)
    reference = generator.normal(size=3 * 36)
    values: list[np.ndarray] = []

    def oracle(layers: list[Affine | Pointwise | MaxPool]) -> Naive:
        values.extend(forward(layers, reference))
        return Rescale(layers, reference, rescale_pool=max_pool == "rescale")

    assert_same(
        network(seed, pool=pool),
        pl.DeepLift(baseline=torch.from_numpy(reference).view(3, 6, 6), max_pool=max_pool),  # type: ignore[arg-type]
        oracle,
        seed,
        multiplied_by=lambda value, index: value - values[index],
    )


@pytest.mark.parametrize("seed", SEEDS)
def test_rules_on_different_operations_combine(seed: int) -> None:
    """Rectified Gradient as its authors ran it: percentile, padding trick, proportional pooling, times input."""

    class Combined(Rectified):
        through_pool = Proportional.through_pool

        def through_affine(self, layer: Affine, relevance: np.ndarray) -> np.ndarray:
            return Padded.through_affine(self, layer, relevance)  # type: ignore[arg-type]

    def oracle(layers: list[Affine | Pointwise | MaxPool]) -> Naive:
        combined = Combined(layers, q=70.0)
        combined.one_by_one = False  # type: ignore[attr-defined]
        return combined

    assert_same(
        network(seed, stride=1, pool=nn.MaxPool2d(2)),
        pl.method("rectgrad_prr", q=70.0),
        oracle,
        seed,
        multiplied_by=lambda value, _: value,
    )


# What holds each rule to a second implementation. A rule without an entry fails the test below.
ORACLES: dict[str, object] = {
    "GuidedReLU": Guided,
    "DeconvReLU": Deconv,
    "RectifiedReLU": Rectified,
    "EpsilonLRP": Epsilon,
    "ProportionalPooling": Proportional,
    "PaddingTrick": Padded,
    "SmoothedDownsampling": SmoothedBackward,
    "RescaleElementwise": Rescale,
    "RescaleMaxPool": Rescale,
    "RescaleProduct": "tests/rules/test_deeplift.py: test_quotients_and_products_are_their_formulas",
    "RescaleChoice": "tests/rules/test_deeplift.py: def test_a_choice_is_its_formula",
    "RescaleSoftmax": "tests/rules/test_deeplift.py: def softmax_multipliers",
    "NormalizationLRP": "tests/rules/test_lrp.py: test_a_normalization_is_affine",
    "AttentionLRP": "tests/rules/test_lrp.py: def naive_attention",
    "GammaLRP": "tests/rules/test_lrp.py: def gamma",
    "AlphaBetaLRP": "tests/rules/test_lrp.py: def alpha_beta",
    "ZBoxLRP": "tests/rules/test_lrp.py: def z_box",
    "ConfinedRule": "tests/rules/test_base.py: class Twice",
    "FrozenBatchNorm": "tests/rules/test_norm.py: def test_",
    "AffineOnce": "tests/rules/test_draws.py: def test_",
    "BilinearDownsampling": "tests/variants/test_surrogate.py: def test_",
    "_Listing": "tests/variants/test_surrogate.py: def test_",
}


def _rules_of(kind: type) -> set[type]:
    return {kind}.union(*map(_rules_of, kind.__subclasses__()))


def test_every_rule_has_an_oracle() -> None:
    package = Path(pl.__file__).parent
    for path in [*(package / "rules").glob("*.py"), *(package / "variants").glob("*.py")]:
        importlib.import_module(f"pellucid.{path.parent.name}.{path.stem}")
    rules = {
        rule.__name__
        for rule in _rules_of(pl.Rule)
        if rule.__module__.startswith(("pellucid.rules.", "pellucid.variants.")) and not inspect.isabstract(rule)
    }
    assert rules <= ORACLES.keys(), f"no oracle for {rules - ORACLES.keys()}: write its formula a second time"
    for oracle in ORACLES.values():
        if isinstance(oracle, str):
            file, _, text = oracle.partition(": ")
            assert text in (Path(__file__).parents[2] / file).read_text()
