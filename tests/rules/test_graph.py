"""What passes a rule by unseen is found in the graph: refused where it is certain, warned of where it may be."""

from __future__ import annotations

import warnings
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

import pellucid as pl
from pellucid.errors import RuleWarning
from pellucid.methods.gradient import deeplift, guided_backprop, lrp_epsilon, rectgrad
from tests.networks import images, relative_error, seeded


class OwnReLU(torch.autograd.Function):
    """As PyTorch's own tutorial writes it."""

    @staticmethod
    def forward(ctx, x):
        ctx.save_for_backward(x)
        return x.clamp(min=0)

    @staticmethod
    def backward(ctx, gradient):
        (x,) = ctx.saved_tensors
        gradient = gradient.clone()
        gradient[x < 0] = 0
        return gradient


class Net(nn.Module):
    """Two convolutions, the second with a stride, each with an activation: one's own, then a ReLU."""

    def __init__(self, act=F.relu) -> None:
        super().__init__()
        self.first, self.second = nn.Conv2d(3, 8, 3, padding=1), nn.Conv2d(8, 8, 3, stride=2, padding=1)
        self.head, self.act = nn.Linear(8, 5), act

    def low(self, x: Tensor) -> Tensor:
        return self.act(self.first(x))

    def high(self, x: Tensor) -> Tensor:
        return F.relu(self.second(x))

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.high(self.low(x)).mean((2, 3)))


RULED = [guided_backprop(), rectgrad(80), deeplift(), lrp_epsilon()]


@pytest.mark.parametrize("method", RULED, ids=["guided", "rectgrad", "deeplift", "lrp"])
@pytest.mark.filterwarnings("ignore::pellucid.CompletenessWarning")
def test_an_autograd_function_of_ones_own_is_named(method: pl.Method) -> None:
    net, x = seeded(lambda: Net(OwnReLU.apply)), images(2, 12)
    with pytest.raises(pl.RuleNotApplied, match=r"OwnReLU: a torch\.autograd\.Function of the model's own"):
        method(net, x, [0, 1])
    above = method(net, x, [0, 1], "second")["second"]  # nothing of its own lies above
    assert relative_error(above, method(seeded(Net), x, [0, 1], "second")["second"]) < 1e-12


@pytest.mark.parametrize("layers", [["input"], ["second", "input"], ["second", "first"]])
@pytest.mark.parametrize("space", ["input", "layer"])
def test_it_is_named_where_draws_share_the_first_convolution_and_where_each_layer_has_its_own_path(
    layers: list[str], space: str
) -> None:
    net, x = seeded(lambda: Net(OwnReLU.apply)), images(2, 12)
    for method in (guided_backprop().smoothed(2, space=space), guided_backprop().integrated(3, space=space)):
        with pytest.raises(pl.RuleNotApplied, match="OwnReLU"):
            method(net, x, [0, 1], layers)
        assert "second" in method(net, x, [0, 1], ["second"])


def test_where_no_rule_is_meant_for_it_it_is_let_alone() -> None:
    own, plain, x = seeded(lambda: Net(OwnReLU.apply)), seeded(Net), images(2, 12)
    for variant in ("original", "backward", "forward"):
        found = pl.Gradient()(own, x, [0, 1], "all", variant=variant)
        expected = pl.Gradient()(plain, x, [0, 1], "all", variant=variant)
        assert all(relative_error(found[layer], expected[layer]) < 1e-12 for layer in expected)


class OwnStride(torch.autograd.Function):
    """A strided convolution that no rule sees inside."""

    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(weight)
        return F.conv2d(x, weight, stride=2)

    @staticmethod
    def backward(ctx, gradient):
        return F.conv_transpose2d(gradient, *ctx.saved_tensors, stride=2), None


def test_a_hidden_convolution_is_named_if_a_rule_of_convolutions_is_asked_for() -> None:
    weight = torch.ones(8, 8, 2, 2, dtype=torch.float64)
    net, x = seeded(lambda: Net(lambda y: OwnStride.apply(y, weight))), images(2, 12)
    pl.Gradient()(net, x, 0)
    with pytest.raises(pl.RuleNotApplied, match="OwnStride"):
        pl.Gradient()(net, x, 0, variant="backward")


@pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning", "ignore:.torch.jit:DeprecationWarning")
def test_a_scripted_activation_beside_others_is_refused() -> None:
    scripted = torch.jit.script(lambda_relu)
    net, x = seeded(lambda: Net(scripted)), images(2, 12)
    with pytest.raises(pl.RuleNotApplied, match="relu x1 ran where operations are hidden"):
        guided_backprop()(net, x, 0)
    assert relative_error(pl.Gradient()(net, x, 0)["input"], pl.Gradient()(seeded(Net), x, 0)["input"]) < 1e-12


def lambda_relu(x: Tensor) -> Tensor:
    return torch.relu(x)


def script_of_several(x: Tensor) -> Tensor:
    return torch.relu(x * 2) * 0.5


@pytest.mark.filterwarnings("ignore:.torch.jit:FutureWarning", "ignore:.torch.jit:DeprecationWarning")
@pytest.mark.filterwarnings("ignore::pellucid.errors.RuleWarning")
@pytest.mark.parametrize("method", RULED, ids=["guided", "rectgrad", "deeplift", "lrp"])
def test_scripted_operations_that_one_node_stands_for_are_refused(method: pl.Method) -> None:
    scripted = torch.jit.script(script_of_several)
    for _ in range(3):  # after its first runs it is one node of the graph
        node = scripted(images(2, 12, channels=8).requires_grad_()).grad_fn
    assert "DifferentiableGraph" in node.name()
    net, x = seeded(lambda: Net(scripted)), images(2, 12)
    assert relative_error(pl.Gradient()(net, x, 0)["input"], pl.Gradient()(seeded(Net), x, 0)["input"]) < 1e-12
    with pytest.raises(pl.RuleNotApplied, match="or a scripted one, hides its operations"):
        method(net, x, 0)
    with pytest.warns(RuleWarning, match="DifferentiableGraph may be a convolution"):
        pl.Gradient()(net, x, 0, variant="backward")


def by_index(x: Tensor) -> Tensor:
    x = x.clone()
    x[x < 0] = 0
    return x


GATES = {
    "where": lambda x: torch.where(x > 0.1, x, 0),
    "product": lambda x: x * (x > 0.1),
    "product with numbers": lambda x: (x > 0).to(x) * x,
    "masked_fill": lambda x: x.masked_fill(x < 0, 0),
    "index": by_index,
    "lerp": lambda x: torch.lerp(torch.zeros_like(x), x, (x > 0).to(x)),
    "addcmul": lambda x: torch.addcmul(torch.zeros_like(x), x, (x > 0).to(x)),
}


@pytest.mark.parametrize("gate", GATES.values(), ids=GATES)
def test_a_gate_beside_activations_is_warned_of(gate) -> None:
    net, x = seeded(lambda: Net(gate)), images(2, 12)
    with pytest.warns(RuleWarning, match="1 gate such as"):
        guided_backprop()(net, x, 0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pl.Gradient()(net, x, 0)  # no rule, nothing to miss
        guided_backprop()(net, x, 0, "second")


def summed(x: Tensor) -> Tensor:
    """What a skip connection gives: no function of each element of one tensor."""
    return x + x.roll(1, 1) / 2


BY_HAND = {
    "softplus": lambda x: torch.log(1 + torch.exp(x)),
    "softplus, log1p": lambda x: torch.log1p(x.exp()),
    "softplus, logaddexp": lambda x: torch.logaddexp(x, torch.zeros_like(x)),
    "elu": lambda x: F.relu(x) + torch.clamp(torch.expm1(x), max=0),
    "hard sigmoid of another tensor": lambda x: x.flip(1) * (F.relu6(x + 3) / 6),
    "hard sigmoid of another tensor, before its division": lambda x: x.flip(1) * F.relu6(x + 3) / 6,
    "relu": lambda x: (x + x.abs()) / 2,
    "relu, by the sign": lambda x: x * (x.sign() + 1) / 2,
    "relu, by fmax": lambda x: torch.fmax(x, x.new_zeros(())),
    "relu, of a stack": lambda x: torch.stack([x, torch.zeros_like(x)]).amax(0),
    "relu, by bounds of its size": lambda x: torch.clamp(x, min=torch.zeros_like(x)),
    "relu, less what is negative": lambda x: x - x.clamp(max=0),
    "clipped relu": lambda x: x.clamp(0, 20),
    "relu, by a square root": lambda x: (x + (x * x).sqrt()) / 2,
    "relu, by a power": lambda x: (x + x.square() ** 0.5) / 2,
    "relu, by its mirror": lambda x: x + F.relu(-x),
    "relu, by its multiple's mirror": lambda x: x + F.relu(-2 * x) / 2,
    "relu, by its quotient's mirror": lambda x: x + F.relu(x / -2) * 2,
    "relu, by the mirror of a sum": lambda x: (y := summed(x)) + F.relu(-y),
    "relu, by the root of a sum": lambda x: ((y := summed(x)) + y.square().sqrt()) / 2,
    "relu, by another's sign": lambda x: (x + torch.copysign(x, torch.ones_like(x))) / 2,
    "relu, by a distance": lambda x: (x + torch.hypot(x, torch.zeros_like(x))) / 2,
    "relu, sorted": lambda x: torch.stack([x, torch.zeros_like(x)], -1).sort(-1).values[..., 1],
    "relu, chosen": lambda x: torch.stack([torch.zeros_like(x), x], -1).gather(-1, (x > 0).long()[..., None])[
        ..., 0
    ],
    "relu, by pooling a stack": lambda x: F.max_pool3d(torch.stack([x, torch.zeros_like(x)], 2), (2, 1, 1))[
        :, :, 0
    ],
    "relu, as the last of the highest so far": lambda x: torch.stack([torch.zeros_like(x), x]).cummax(0)[0][1],
    "relu, by a norm": lambda x: (x + torch.linalg.vector_norm(x[..., None], dim=-1)) / 2,
    "relu, by a distance from 0": lambda x: (x + F.pairwise_distance(x[..., None], x[..., None] * 0, eps=0)) / 2,
    "relu, by a steep softmax": lambda x: x * torch.stack([1e6 * x, torch.zeros_like(x)]).softmax(0)[0],
    "relu, by a steep softplus": lambda x: torch.stack([1e6 * x, torch.zeros_like(x)]).logsumexp(0) / 1e6,
    "glu": lambda x: F.glu(torch.cat([x, x.flip(1)], 1), 1),
    "leaky relu, of two": lambda x: F.relu(x) - 0.1 * F.relu(-x),
    "leaky relu": lambda x: torch.maximum(x, 0.1 * x),
}


@pytest.mark.parametrize("act", BY_HAND.values(), ids=BY_HAND)
def test_pieces_of_activations_by_hand_are_warned_of(act) -> None:
    net, x = seeded(lambda: Net(act)), images(2, 12)
    for method in (guided_backprop(), rectgrad(50)):
        with pytest.warns(RuleWarning, match="an activation written by hand"):
            method(net, x, 0)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pl.Gradient()(net, x, 0)
        guided_backprop()(net, x, 0, "second")  # nothing of it lies above


KNOWN = [
    F.relu6,
    lambda x: x.clamp(0, torch.inf),
    lambda x: F.relu(x).clamp(min=1e-6),
    lambda x: x * x.mean((2, 3), keepdim=True).sigmoid().round().clamp(0.1),
    F.hardsigmoid,
    lambda x: x * F.relu6(x + 3) / 6,
    lambda x: x * torch.tanh(torch.log1p(x.exp())),
    lambda x: x * torch.sigmoid(x.mean((2, 3), keepdim=True)),
    lambda x: F.gelu(x) + x,
    lambda x: F.relu(x - 0.1) * 0.5 + x,
    lambda x: F.relu(y := summed(x)) + y,
    lambda x: (y := summed(x)) - F.relu(y.roll(1, 1)),
    lambda x: F.relu(x - x.mean((2, 3), keepdim=True)) + x,
    lambda x: F.relu(x) * (x.square().sum(1, keepdim=True) + 1e-6).sqrt(),
    lambda x: F.relu(x) * torch.linalg.vector_norm(x, dim=(2, 3), keepdim=True),
    lambda x: F.relu(x) * x.mean((2, 3), keepdim=True).softmax(1),
    lambda x: F.max_pool2d(F.relu(x), 3, 1, 1),
]


@pytest.mark.parametrize("act", KNOWN)
def test_what_is_known_is_not_warned_of(act) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        guided_backprop()(seeded(lambda: Net(act)), images(2, 12), 0)


def test_a_backward_hook_hides_nothing() -> None:
    net, x = seeded(lambda: Net(F.relu)), images(2, 12)
    expected = guided_backprop()(net, x, 0)["input"]
    net.register_full_backward_hook(lambda *_: None)
    next(net.children()).register_full_backward_hook(lambda *_: None)
    assert torch.equal(guided_backprop()(net, x, 0)["input"], expected)


def test_masks_of_channels_are_no_gates() -> None:
    kept = torch.tensor([True, False] * 4)[:, None, None]
    net, x = seeded(lambda: Net(lambda y: torch.where(kept, F.relu(y), 0))), images(2, 12)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        guided_backprop()(net, x, 0)


class Checkpointed(Net):
    """Recomputes both halves in the backward pass."""

    def forward(self, x: Tensor) -> Tensor:
        low = checkpoint(self.low, x, use_reentrant=False)
        return self.head(checkpoint(self.high, low, use_reentrant=False).mean((2, 3)))


class Reentrant(Net):
    def forward(self, x: Tensor) -> Tensor:
        return self.head(checkpoint(self.high, self.low(x), use_reentrant=True).mean((2, 3)))


@pytest.mark.parametrize("variant", ["original", "backward"])
@pytest.mark.parametrize("method", [pl.Gradient(), *RULED, pl.Gradient().integrated(4)], ids=str)
def test_gradient_checkpointing_changes_nothing(method: pl.Method, variant: str) -> None:
    x = images(2, 12)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = method(seeded(Checkpointed), x, [0, 1], ["input", "first"], variant=variant)
        expected = method(seeded(Net), x, [0, 1], ["input", "first"], variant=variant)
    assert all(torch.equal(found[layer], expected[layer]) for layer in expected)


@pytest.mark.filterwarnings("ignore:.*requires_grad=True")
def test_reentrant_checkpointing_is_refused() -> None:
    with pytest.raises(pl.PellucidError, match="checkpoint"):
        pl.Gradient()(seeded(Reentrant), images(2, 12), 0)
    with pytest.raises(pl.PellucidError, match="heckpoint"):
        guided_backprop()(seeded(Reentrant), images(2, 12), 0)


class Frozen(Net):
    """The lower half runs without gradients, as frozen feature extractors do."""

    def low(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            return super().low(x)


class FrozenBranch(Net):
    """A part of the way from the image runs without gradients."""

    def low(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            frozen = super().low(x)
        return frozen + x.mean(1, keepdim=True)


class FrozenAttention(Net):
    """What is weighed has a gradient, the weights have none."""

    def low(self, x: Tensor) -> Tensor:
        x = super().low(x)
        with torch.no_grad():
            rows = F.interpolate(x, scale_factor=0.5).flatten(2)
            weights = (rows.transpose(1, 2) @ rows).softmax(-1).mean((1, 2))
        return x * weights[:, None, None, None]


class Inference(Net):
    def low(self, x: Tensor) -> Tensor:
        with torch.inference_mode():
            scale = x.mean((1, 2, 3), keepdim=True) * 1
        return super().low(x * scale.clone())


class Overwritten(Net):
    def low(self, x: Tensor) -> Tensor:
        x = super().low(x)
        with torch.no_grad():
            x.mul_(x)
        return x


class WrittenInto(Net):
    """A part of a tensor is written, and the whole is read."""

    def low(self, x: Tensor) -> Tensor:
        low = super().low(x)
        with torch.no_grad():
            kept = torch.zeros_like(low)
            for row, one in zip(kept, low, strict=True):
                row.copy_(one.tanh())
        return low + kept


class Beside(Net):
    """What has no gradient anyway, or leads nowhere, leaves nothing out."""

    def low(self, x: Tensor) -> Tensor:
        low = super().low(x)
        with torch.no_grad():
            mask, steps, kept = (low > 0).to(low), low.round(), torch.ones_like(low)
            self.seen = float((low * 2).mean())
            ramp = torch.linspace(0, 1, low.shape[-1]).to(low).expand_as(low)
            least = low.flatten(1).topk(5, 1).values[:, -1:, None, None]
            straight = low + (low.tanh() - low.detach()).detach()
        return low * mask * kept * (low >= least) + ramp + 0 * steps + (straight.detach() - low).detach()


class Detached(Net):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).detach()


def test_parts_without_gradients_are_named() -> None:
    x = images(2, 12)
    with pytest.raises(pl.PellucidError, match=r"no_grad"):
        pl.Gradient()(seeded(Frozen), x, 0)
    with pytest.raises(pl.PellucidError, match=r"conv2d.*no_grad"):
        pl.Gradient()(seeded(FrozenBranch), x, 0)
    for kind, what in (
        (FrozenAttention, "interpolate, .*matmul"),
        (Inference, "mean"),
        (Overwritten, "mul"),
        (WrittenInto, "unbind, tanh, copy"),
    ):
        for method in (pl.Gradient(), pl.Gradient().smoothed(2), guided_backprop()):
            with pytest.raises(pl.PellucidError, match=rf"\({what}.*no_grad.*the map would leave it out"):
                method(seeded(kind), x, 0)
    beside = seeded(Beside)
    leaf = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(beside(leaf)[:, 0].sum(), leaf)
    with pytest.warns(pl.errors.GradientWarning, match="otherwise than its gradient tells"):
        torch.testing.assert_close(pl.Gradient()(beside, x, 0)["input"], expected)
    with pytest.raises(pl.PellucidError, match=r"'first' runs under torch.no_grad"):
        pl.Gradient()(seeded(Frozen), x, 0, "first")
    with pytest.raises(pl.PellucidError, match="carry no gradient"):
        pl.Gradient()(seeded(Detached), x, 0)
    with pytest.warns(pl.errors.SkippedLayerWarning, match="'first' runs under"):
        found = pl.Gradient()(seeded(Frozen).requires_grad_(), x, 0, "*s*")  # first, second
    expected = pl.Gradient()(seeded(Net), x, 0, "second")
    assert list(found) == ["second"]
    assert torch.equal(found["second"], expected["second"])


def test_the_padding_trick_says_when_it_is_what_empties_a_map() -> None:
    with pytest.warns(pl.EmptyMapWarning, match="PaddingTrick.*lets nothing through maps of two pixels or less"):
        rectgrad(0)(seeded(Net), images(2, 3), 0)
    with pytest.warns(pl.EmptyMapWarning) as caught:
        rectgrad(100)(seeded(Net), images(2, 12), 0)
    assert not any("PaddingTrick" in str(one.message) for one in caught)


@pytest.mark.parametrize("act", [nn.Threshold(0.1, 0), nn.Softshrink(0.1), nn.Hardshrink(0.1)])
@pytest.mark.parametrize("method", [guided_backprop(), rectgrad(q=10)], ids=["guided", "rectgrad"])
def test_shrinkage_and_thresholds_beside_activations_are_warned_of(act: nn.Module, method: pl.Method) -> None:
    layers = [nn.Conv2d(3, 4, 3), act, nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(64, 3)]
    with pytest.warns(RuleWarning, match=f"{type(act).__name__.lower()} between the layers propagated"):
        method(seeded(lambda: nn.Sequential(*layers)), images(2, 8), 0)


class Unseen(nn.Module):
    """A strided convolution in a thread, or by torch's general function of all convolutions."""

    def __init__(self, way: str) -> None:
        super().__init__()
        self.stem, self.down, self.head = (
            nn.Conv2d(3, 4, 3),
            nn.Conv2d(4, 4, 3, stride=2, padding=1),
            nn.Linear(4, 3),
        )
        self.other, self.way = nn.Conv2d(4, 4, 3, stride=2, padding=1), way

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x).tanh()
        if self.way == "thread":
            with ThreadPoolExecutor(1) as executor:
                y = executor.submit(self.down, h).result()
        else:
            conv = self.down
            y = torch.convolution(h, conv.weight, conv.bias, [2, 2], [1, 1], [1, 1], False, [0, 0], 1)
        return self.head((y + self.other(h)).relu().mean((2, 3)))


@pytest.mark.parametrize("way", ["thread", "convolution"])
def test_convolutions_that_no_rule_saw_are_refused(way: str) -> None:
    net, x = seeded(lambda: Unseen(way)), images(2, 12)
    pl.Gradient()(net, x, 0)
    for variant in ("backward", "forward"):
        with pytest.raises(pl.RuleNotApplied, match="passed it by"):
            pl.Gradient()(net, x, 0, variant=variant)
    for rule in (pl.PaddingTrick(), pl.GammaLRP()):
        with pytest.raises(pl.RuleNotApplied, match="passed it by"):
            pl.Gradient(rules=(rule,))(net, x, 0)


class OfTwoConstants(nn.Module):
    """A product by the product of two constants."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Parameter(torch.randn(3, 4)), nn.Parameter(torch.randn(4, 5))
        self.conv = nn.Conv2d(3, 3, 3)

    def forward(self, x: Tensor) -> Tensor:
        return torch.einsum("bc,cd,de->be", self.conv(x).mean((2, 3)), self.one, self.two)


class Convolved(nn.Module):
    """A transposed convolution by torch's general function of all convolutions."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.weight = nn.Conv2d(3, 4, 3), nn.Parameter(torch.randn(4, 4, 2, 2))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.convolution(self.conv(x), self.weight, None, [2, 2], [0, 0], [1, 1], True, [0, 0], 1)
        return y.mean((2, 3))


class OfSparse(nn.Module):
    """A product with a sparse constant."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.weight = nn.Conv2d(3, 4, 3), torch.eye(4).to_sparse()

    def forward(self, x: Tensor) -> Tensor:
        return torch.sparse.mm(self.weight.to(x), self.conv(x).mean((2, 3)).mT).mT


class Bilinear(nn.Module):
    """A bilinear form of which one side is a constant."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.form = nn.Conv2d(3, 4, 3), nn.Bilinear(4, 1, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.form(self.conv(x).mean((2, 3)), x.new_ones(len(x), 1))


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (OfSparse, "sparseaddmm"),
        (Bilinear, "trilinear"),
        (OfTwoConstants, "bmm"),
        (Convolved, "conv_transpose2d"),
    ],
)
@pytest.mark.filterwarnings("ignore::pellucid.CompletenessWarning")
def test_layers_that_lrp_leaves_plain_are_named(make: Callable[[], nn.Module], name: str) -> None:
    with pytest.warns(RuleWarning, match=rf"GammaLRP.*{name}\b.*propagated by the epsilon-0 rule"):
        pl.Gradient(rules=(pl.GammaLRP(),))(seeded(make), images(2, 8), 0)


class Mapped(nn.Module):
    """Runs a part for each image by ``torch.vmap``."""

    def __init__(self, mapped: bool) -> None:
        super().__init__()
        self.stem, self.down = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3, stride=2)
        self.norm, self.head, self.mapped = nn.BatchNorm2d(4), nn.Linear(4, 3), mapped

    def forward(self, x: Tensor) -> Tensor:
        h = self.stem(x).tanh()
        part = lambda h: self.norm(self.down(h)).relu() * h.mean()  # noqa: E731
        y = torch.vmap(lambda one: part(one[None])[0])(h) if self.mapped else torch.cat([part(o[None]) for o in h])
        return self.head(y.mean((2, 3)))


def test_rules_refuse_to_act_within_vmap_and_the_gradient_goes_through() -> None:
    mapped, looped, x = *(seeded(lambda m=m: Mapped(m)) for m in (True, False)), images(2, 10)
    found, expected = (pl.method("gradient")(one, x, 0)["input"] for one in (mapped, looped))
    assert relative_error(found, expected) < 1e-13
    for name in ("guided_backprop", "rectgrad", "deeplift", "lrp_epsilon"):
        with pytest.raises(pl.RuleNotApplied, match=r"within torch\.vmap"):
            pl.method(name)(mapped, x, 0)
    for variant in ("backward", "forward"):
        with pytest.raises(pl.RuleNotApplied, match=r"within torch\.vmap"):
            pl.method("gradient")(mapped, x, 0, variant=variant)
