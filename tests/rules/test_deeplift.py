"""DeepLIFT's rules for what attention and normalization are made of: by formulas in loops, and complete."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pellucid as pl
from pellucid.errors import RuleWarning
from pellucid.rules.base import Rules
from pellucid.rules.operations import ELEMENTWISE
from tests.networks import images, logits_of, plain, relative_error, seeded

EXACT = 1e-11
REFERENCE = 0.3


class Through(nn.Module):
    """An operation on the image, then a linear head, whose row of weights is the multiplier of what comes out."""

    def __init__(self, operation: Callable[[Tensor], Tensor], shape: tuple[int, ...] = (3, 2, 2)) -> None:
        super().__init__()
        self.operation = operation
        self.head = nn.Linear(operation(torch.zeros(1, *shape, dtype=torch.float64)).numel(), 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.operation(x).flatten(1))


def multipliers(operation: Callable[[Tensor], Tensor], x: Tensor, reference: Tensor) -> tuple[Tensor, Tensor]:
    """The multipliers at the operation's output and at its input, for target 1; checked to be complete."""
    model = seeded(lambda: Through(operation, tuple(x.shape[1:])))
    found = pl.DeepLift(baseline=reference)(model, x, 1)
    assert float(found.residuals["input"].abs().max()) < 1e-12 * float(found["input"].abs().max())
    above = model.head.weight[1].view(operation(x[:1]).shape[1:])
    return above, found["input"] / (x - reference)


def pair(seed: int = 0) -> tuple[Tensor, Tensor]:
    return images(2, 2, seed), images(1, 2, seed + 50)[0]


def logarithmic_mean(y: float, y0: float) -> float:
    return y if y == y0 else (y - y0) / (math.log(y) - math.log(y0))


def softmax(x: np.ndarray) -> np.ndarray:
    e = np.array([math.exp(value) for value in x])
    return e / e.sum()


def softmax_multipliers(x: np.ndarray, x0: np.ndarray, m: np.ndarray) -> np.ndarray:
    l = np.array([logarithmic_mean(y, y0) for y, y0 in zip(softmax(x), softmax(x0), strict=True)])  # noqa: E741
    return np.array([li * (mi - sum(l * m) / sum(l)) for li, mi in zip(l, m, strict=True)])


@pytest.mark.parametrize("seed", range(3))
def test_softmax_is_its_formula(seed: int) -> None:
    x, reference = pair(seed)
    above, found = multipliers(lambda t: t.flatten(1).softmax(-1), x, reference)
    for row in range(2):
        wanted = softmax_multipliers(x[row].flatten().numpy(), reference.flatten().numpy(), above.numpy())
        assert np.abs(found[row].flatten().numpy() - wanted).max() < EXACT


def test_log_softmax_is_its_formula() -> None:
    x, reference = pair()
    above, found = multipliers(lambda t: t.flatten(1).log_softmax(-1), x, reference)
    for row in range(2):
        ys = softmax(x[row].flatten().numpy()), softmax(reference.flatten().numpy())
        l = np.array([logarithmic_mean(y, y0) for y, y0 in zip(*ys, strict=True)])  # noqa: E741
        wanted = above.numpy() - l * above.numpy().sum() / l.sum()
        assert np.abs(found[row].flatten().numpy() - wanted).max() < EXACT


@pytest.mark.filterwarnings("ignore::pellucid.InputWarning")  # values no image has
def test_softmax_of_far_and_of_equal_logits_is_complete() -> None:
    """1000 apart every exponential but one is 0; where image and reference agree it is the gradient."""
    x = torch.tensor([1000.0, 0, -5, 3, 3, 3, 3, -1000, 2, 1, 0, 0], dtype=torch.float64).view(1, 3, 2, 2)
    reference = torch.zeros(3, 2, 2, dtype=torch.float64)
    reference[0, 1, 1], reference[2] = 900.0, x[0, 2]
    model = seeded(lambda: Through(lambda t: t.flatten(1).softmax(-1)))
    found = pl.DeepLift(baseline=reference)(model, x, 1)
    assert float(found.residuals["input"].abs().max()) < 1e-12
    x, step = images(1, 2), 1e-9 * images(1, 2, 1)
    here = pl.DeepLift(baseline=x[0])(model, x + step, 1)["input"] / (x + step - x)
    assert relative_error(here, pl.Gradient()(model, x, 1)["input"]) < 1e-7


@pytest.mark.parametrize("seed", range(3))
def test_layer_normalization_is_its_formula(seed: int) -> None:
    """m_c = mean(r, r') m - mean(c, c') / (s s' (s + s')) 2/n sum(m mean(c, c')), then centered.

    Here c = x - mean(x), s is the root of the mean of its square plus epsilon, and r = 1 / s.
    """
    x, reference = pair(seed)
    eps, n = 0.1, 12
    above, found = multipliers(lambda t: F.layer_norm(t, t.shape[1:], eps=eps), x, reference)

    def parts(value: np.ndarray) -> tuple[np.ndarray, float]:
        c = value - value.mean()
        return c, math.sqrt((c**2).mean() + eps)

    for row in range(2):
        (c, s), (c0, s0) = parts(x[row].flatten().numpy()), parts(reference.flatten().numpy())
        m, middle = above.flatten().numpy(), (c + c0) / 2
        of_centered = (1 / s + 1 / s0) / 2 * m - 2 * middle / n * (m @ middle) / (s * s0 * (s + s0))
        wanted = of_centered - of_centered.mean()
        assert np.abs(found[row].flatten().numpy() - wanted).max() < EXACT


def test_quotients_and_products_are_their_formulas() -> None:
    x, reference = pair()
    above, found = multipliers(lambda t: t[:, 0] / (t[:, 1] + 9), x, reference)
    a, b, a0, b0 = x[:, 0], x[:, 1] + 9, reference[0], reference[1] + 9
    assert relative_error(found[:, 0], above * (1 / b + 1 / b0) / 2) < EXACT
    assert relative_error(found[:, 1], -above * (a + a0) / 2 / (b * b0)) < EXACT
    above, found = multipliers(lambda t: t[:, 0] @ t[:, 1], x, reference)
    assert relative_error(found[:, 0], above @ (x[:, 1] + reference[1]).mT / 2) < EXACT
    assert relative_error(found[:, 1], (x[:, 0] + reference[0]).mT / 2 @ above) < EXACT


def test_a_convolution_by_the_images_own_weights_is_a_product() -> None:
    """As of CondConv, and of a linear layer whose weight a router makes."""
    x, reference = pair()

    def convolve(t: Tensor) -> Tensor:
        weight = t[:, 1:].flatten(0, 1)[:, None] * 1.0
        return F.conv2d(t[:, :1].repeat(1, 2, 1, 1).view(1, -1, 2, 2), weight, groups=2 * len(t)).view(len(t), 2)

    above, found = multipliers(convolve, x, reference)
    for row in range(2):
        weights = (x[row, 1:] + reference[1:]) / 2
        assert relative_error(found[row, 0], (above.view(2, 1, 1) * weights).sum(0)) < EXACT
        assert relative_error(found[row, 1:], above.view(2, 1, 1) * (x[row, :1] + reference[:1]) / 2) < EXACT
    for operation in (
        lambda t: F.linear(t[0, 0], t[0, 1])[None],
        lambda t: (t[0, 0] @ t[0, 1])[None],
        lambda t: torch.addmm(torch.ones(2, dtype=t.dtype), t[0, 0], t[0, 1])[None],
    ):
        above, found = multipliers(operation, x[:1], reference)
        assert found[0, 1].abs().min() > 0


def test_a_choice_is_its_formula() -> None:
    """Where image and reference choose alike the value chosen gets all; elsewhere both share what changed."""
    x, reference = pair()
    above, found = multipliers(lambda t: torch.where(t[:, 0] > 0, t[:, 1], 2 * t[:, 2]), x, reference)
    changed = 0
    for row in range(2):
        for i, (c, a, b) in enumerate(x[row].flatten(1).T.tolist()):
            c0, a0, b0 = reference.flatten(1).T.tolist()[i]
            m, b, b0 = float(above.flatten()[i]), 2 * b, 2 * b0
            wanted = (m, 0.0) if c > 0 else (0.0, m)
            if (c > 0) != (c0 > 0):
                share = m * ((a if c > 0 else b) - (a0 if c0 > 0 else b0)) / (abs(a - a0) + abs(b - b0))
                wanted = (math.copysign(share, share * (a - a0)), math.copysign(share, share * (b - b0)))
                changed += 1
            got = found[row].flatten(1)[:, i].tolist()
            assert got == pytest.approx([0, wanted[0], 2 * wanted[1]], abs=1e-12)
    assert changed


CHOICES: dict[str, tuple[Callable[[Tensor], Tensor], Callable[[Tensor], Tensor]]] = {
    "leaky_relu": (lambda x: torch.where(x > 0, x, 0.01 * x), F.leaky_relu),
    "relu": (lambda x: torch.where(x > 0, x, 0.0), F.relu),
    "relu of zeros": (lambda x: x.where(x > 0, torch.zeros_like(x)), F.relu),
    "abs": (lambda x: torch.where(x > 0, x, -x), torch.abs),
    "elu": (lambda x: torch.where(x > 0, x, torch.expm1(x)), F.elu),
}


@pytest.mark.parametrize("name", CHOICES)
def test_an_activation_by_choice_has_the_multipliers_of_its_function(name: str) -> None:
    x, reference = pair()
    found, expected = (multipliers(operation, x, reference)[1] for operation in CHOICES[name])
    assert relative_error(found, expected) < EXACT


def test_a_product_of_three_by_einsum_is_the_mean_of_its_gradient_on_the_line() -> None:
    """Integral of b(t) c(t) from b' c' to b c: b' c' + (b' dc + c' db) / 2 + db dc / 3."""
    x, reference = pair()
    above, found = multipliers(lambda t: torch.einsum("bij,bij,bij->bij", t[:, 0], t[:, 1], t[:, 2]), x, reference)
    for first, one, two in ((0, 1, 2), (1, 0, 2), (2, 0, 1)):
        b, c = reference[one], reference[two]
        db, dc = x[:, one] - b, x[:, two] - c
        wanted = above * (b * c + (b * dc + c * db) / 2 + db * dc / 3)
        assert relative_error(found[:, first], wanted) < EXACT


def test_maxima_are_carried_by_their_arg_maxima() -> None:
    """Image [1, 2, 3, 4], reference [5, 0, 0, 0]: y - y' = -1 falls on the reference's; minima likewise."""
    x = torch.tensor([1.0, 2, 3, 4], dtype=torch.float64).view(1, 1, 2, 2)
    reference = torch.tensor([5.0, 0, 0, 0], dtype=torch.float64).view(1, 2, 2)
    for operation in (
        lambda t: t.flatten(1).amax(1, keepdim=True),
        lambda t: t.flatten(1).max(1, keepdim=True)[0],
        lambda t: -(-t).flatten(1).amin(1, keepdim=True),
    ):
        model = nn.Sequential(Through(operation, (1, 2, 2))).double().eval()
        nn.init.ones_(model[0].head.weight)
        found = pl.DeepLift(baseline=reference)(model, x, 0)["input"]
        assert found.flatten().tolist() == [-1, 0, 0, 0]


DOMAINS: dict[str, Callable[[Tensor], Tensor]] = {
    **dict.fromkeys(("log", "log2", "log10", "sqrt", "rsqrt", "reciprocal", "pow"), lambda t: t.abs() + 0.1),
    **dict.fromkeys(("asin", "acos", "atanh", "erfinv"), lambda t: t.tanh()),
    **dict.fromkeys(("logit", "entr"), lambda t: t.sigmoid()),
    **dict.fromkeys(("acosh", "digamma", "lgamma"), lambda t: t.abs() + 1.1),
    "log1p": lambda t: t.abs(),
}
SETTINGS: dict[str, tuple[object, ...]] = {
    "clamp": (-0.5, 0.7),
    "pow": (1.7,),
    "threshold": (0.2, -1.0),
    "prelu": (torch.tensor([0.25], dtype=torch.float64),),
}


@pytest.mark.parametrize("name", sorted(ELEMENTWISE))
def test_every_elementwise_function_is_complete_and_its_multiplier_the_chord(name: str) -> None:
    places = (F, torch, torch.special)
    function = next((getattr(place, name) for place in places if hasattr(place, name)), F.logsigmoid)
    within = DOMAINS.get(name, lambda t: t)
    operation = lambda t: function(within(t), *SETTINGS.get(name, ()))  # noqa: E731
    x, reference = pair(3)
    above, found = multipliers(operation, x, reference)
    wanted = above * (operation(x) - operation(reference[None])) / (x - reference)
    assert relative_error(found, wanted) < EXACT


def attention(x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values (B, heads, tokens, 4) of an image (B, 3, 4, 8)."""
    q, k, v = (x * torch.tensor([1.0, 2, -1], dtype=x.dtype).view(3, 1, 1)).unflatten(3, (2, 4)).unbind(1)
    return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)


MASK = torch.tensor([[1, 0, 1, 1], [1, 1, 0, 0], [0, 1, 1, 1], [0, 0, 0, 1]], dtype=torch.bool)
BIAS = torch.linspace(-1, 1, 16, dtype=torch.float64).view(4, 4)


def naive_attention(x: np.ndarray, x0: np.ndarray, m: np.ndarray) -> np.ndarray:
    """Multipliers through weights @ values, softmax, and the scaled products of queries and keys."""
    (q, k, v), (q0, k0, v0) = x, x0
    found = [np.zeros_like(q) for _ in range(3)]
    for i in range(len(q)):
        s, s0 = (
            np.array([a[i] @ b[j] / math.sqrt(len(a[i])) for j in range(len(q))]) for a, b in ((q, k), (q0, k0))
        )
        w, w0 = softmax(s), softmax(s0)
        of_weights = np.array([(v[j] + v0[j]) / 2 @ m[i] for j in range(len(q))])
        of_scores = softmax_multipliers(s, s0, of_weights) / math.sqrt(q.shape[1])
        for j in range(len(q)):
            found[2][j] += (w[j] + w0[j]) / 2 * m[i]
            found[0][i] += of_scores[j] * (k[j] + k0[j]) / 2
            found[1][j] += of_scores[j] * (q[i] + q0[i]) / 2
    return np.array(found)


def test_attention_is_its_formula() -> None:
    generator = torch.Generator().manual_seed(0)
    x, reference = torch.randn(2, 3, 5, 4, generator=generator, dtype=torch.float64).split(1)
    above, found = multipliers(lambda t: F.scaled_dot_product_attention(*t.unbind(1)), x, reference[0])
    wanted = naive_attention(x[0].numpy(), reference[0].numpy(), above.numpy())
    assert np.abs(found[0].numpy() - wanted).max() < EXACT


def by_hand(q: Tensor, k: Tensor, v: Tensor, scores: Callable[[Tensor], Tensor] = lambda s: s) -> Tensor:
    return scores(q @ k.transpose(-2, -1) / 2).softmax(-1) @ v


def by_einsum(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return torch.einsum("bhij,bhjd->bhid", F.softmax(torch.einsum("bhid,bhjd->bhij", q, k) * 0.5, dim=3), v)


def by_bmm(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (t.flatten(0, 1) for t in (q, k, v))
    scores = torch.baddbmm(torch.zeros(1, 4, 4, dtype=q.dtype), q, k.mT, alpha=0.5)
    return torch.bmm(scores.softmax(2), v).unflatten(0, (-1, 2))


def normalized_by_hand(x: Tensor, eps: float = 1e-5) -> Tensor:
    centered = x - x.mean(-1, keepdim=True)
    return centered / torch.sqrt(x.var(-1, unbiased=False, keepdim=True) + eps)


def in_place_quotient(a: Tensor, b: Tensor) -> Tensor:
    a = a * 1.0
    a /= b
    return a


# Functions of an image (B, 3, 4, 8), each written in several ways.
SPELLINGS: dict[str, list[Callable[[Tensor], Tensor]]] = {
    "attention": [
        lambda x: F.scaled_dot_product_attention(*attention(x)),
        lambda x: by_hand(*attention(x)),
        lambda x: by_einsum(*attention(x)),
        lambda x: by_bmm(*attention(x)),
    ],
    "attention, masked": [
        lambda x: F.scaled_dot_product_attention(*attention(x), attn_mask=MASK),
        lambda x: F.scaled_dot_product_attention(*attention(x), MASK.double().log()),
        lambda x: by_hand(*attention(x), lambda s: s.masked_fill(~MASK, -math.inf)),
    ],
    "attention, with a bias": [
        lambda x: F.scaled_dot_product_attention(*attention(x), attn_mask=BIAS),
        lambda x: by_hand(*attention(x), lambda s: s + BIAS),
    ],
    "attention, causal": [
        lambda x: F.scaled_dot_product_attention(*attention(x), is_causal=True),
        lambda x: F.scaled_dot_product_attention(*attention(x), MASK.new_ones(4, 4).tril()),
    ],
    "layer normalization": [
        lambda x: F.layer_norm(x, (8,)),
        nn.LayerNorm(8),
        lambda x: F.group_norm(x.flatten(0, 2).unsqueeze(-1), 1).view_as(x),
        lambda x: F.instance_norm(x.flatten(1, 2)).view_as(x),
        normalized_by_hand,
        lambda x: (x - x.mean(-1, True)) * (torch.var_mean(x, -1, correction=0, keepdim=True)[0] + 1e-5).rsqrt(),
        lambda x: (x - x.mean(-1, True)) / ((x - x.mean(-1, True)).pow(2).mean(-1, True) + 1e-5) ** 0.5,
    ],
    "root-mean-square normalization": [
        lambda x: F.rms_norm(x, (8,), eps=0.01),
        lambda x: x * torch.rsqrt(x.square().mean(-1, keepdim=True) + 0.01),
        lambda x: x / (x.norm(dim=-1, keepdim=True) ** 2 / 8 + 0.01).sqrt(),
    ],
    "normalization to length 1": [
        lambda x: F.normalize(x, dim=-1),
        lambda x: x / torch.linalg.vector_norm(x, dim=-1, keepdim=True),
        lambda x: x / (x * x).sum(-1, keepdim=True).sqrt(),
    ],
    "quotient": [
        lambda x: x[:, 0] / (x[:, 1].exp() + 1),
        lambda x: torch.div(x[:, 0], x[:, 1].exp() + 1),
        lambda x: x[:, 0] * (x[:, 1].exp() + 1).reciprocal(),
        lambda x: x[:, 0] * (1 / (1 + x[:, 1].exp())),
        lambda x: in_place_quotient(x[:, 0], x[:, 1].exp() + 1),
        lambda x: torch.addcdiv(torch.zeros(1, dtype=x.dtype), x[:, 0], x[:, 1].exp() + 1),
    ],
    "gated linear unit": [
        lambda x: F.glu(x, 2),
        nn.GLU(2),
        lambda x: x[:, :, :2] * torch.special.expit(x[:, :, 2:]),
        lambda x: torch.addcmul(torch.zeros(1, dtype=x.dtype), x[:, :, :2], x[:, :, 2:].sigmoid()),
    ],
    "maximum": [
        lambda x: x.amax(1),
        lambda x: x.max(dim=1).values,
        lambda x: torch.max(x, 1)[0],
        lambda x: -(-x).amin(1),
        lambda x: -torch.min(-x, 1).values,
        lambda x: torch.maximum(torch.stack([x[:, 0], x[:, 1]], 1).amax(1), x[:, 2]),
        lambda x: F.max_pool1d(x.flatten(2).mT, 3),
        lambda x: F.max_pool3d(x.unsqueeze(1), (3, 1, 1)),
        lambda x: F.adaptive_max_pool1d(x.flatten(2).mT, 1),
        lambda x: F.adaptive_max_pool3d(x.unsqueeze(1), (1, 4, 8)),
    ],
    "relu": [
        lambda x: x.relu(),
        lambda x: x * (x > 0),
        lambda x: (x > 0) * x,
        lambda x: x.masked_fill(x < 0, 0),
        lambda x: x.clone().masked_fill_(x < 0, 0),
    ],
    "clipped above": [
        lambda x: x.clamp(max=0.3),
        lambda x: x.clamp_max(0.3),
        lambda x: torch.clamp_max(x, max=0.3),
        lambda x: x.clone().clamp_max_(0.3),
    ],
    "product": [lambda x: x[:, 0] * x[:, 1] * x[:, 2], lambda x: x.prod(1), lambda x: torch.prod(x, 1, True)],
    "cosine": [
        lambda x: F.cosine_similarity(x[:, 0], x[:, 1], -1),
        lambda x: (F.normalize(x[:, 0], dim=-1) * F.normalize(x[:, 1], dim=-1)).sum(-1),
    ],
    "distance": [
        lambda x: torch.cdist(x[:, 0], x[:, 1]),
        lambda x: torch.linalg.vector_norm(x[:, 0].unsqueeze(2) - x[:, 1].unsqueeze(1), dim=-1),
    ],
    "length": [
        lambda x: torch.linalg.norm(x, dim=(2, 3)),
        lambda x: torch.linalg.vector_norm(x, dim=(2, 3)),
        lambda x: x.square().sum((2, 3)).sqrt(),
    ],
    "softplus": [F.softplus, lambda x: torch.logaddexp(x, torch.zeros(1, dtype=x.dtype))],
    "standard deviation": [lambda x: x.std(1), lambda x: torch.std_mean(x, 1)[0], lambda x: x.var(1).sqrt()],
    "softmax": [
        lambda x: x.softmax(1),
        lambda x: F.softmax(x, dim=1),
        nn.Softmax(1),
        nn.Softmax2d(),
        lambda x: F.softmin(-x, 1),
        lambda x: torch.exp(x - x.logsumexp(1, keepdim=True)),
        lambda x: F.log_softmax(x, 1).exp(),
    ],
    "power": [lambda x: 2.0**x, lambda x: torch.exp2(x), lambda x: torch.pow(2.0, x)],
}


WITHOUT_A_RULE: dict[str, Callable[[Tensor], Tensor]] = {
    "topk": lambda x: x.flatten(2).topk(3).values,
    "sort": lambda x: x.flatten(2).sort().values[..., -3:],
    "x * (x > 0).float()": lambda x: x * (x > 0).to(x),
    "cumprod": lambda x: x.flatten(2)[..., :4].cumprod(-1),
    "hypot": lambda x: torch.hypot(x, x.flip(1)),
    "grid_sample": lambda x: F.grid_sample(x, x[:, :2].permute(0, 2, 3, 1).tanh(), align_corners=False),
    "fft": lambda x: torch.fft.rfft2(x).abs(),
}


@pytest.mark.parametrize("operation", WITHOUT_A_RULE.values(), ids=WITHOUT_A_RULE)
def test_what_an_operation_without_a_rule_misses_is_told(operation: Callable[[Tensor], Tensor]) -> None:
    x, reference = images(2, 4), images(1, 4, 50)[0]
    model = nn.Sequential(Through(operation, (3, 4, 4))).double().eval()
    nn.init.ones_(model[0].head.weight)
    with pytest.warns(pl.CompletenessWarning, match="Some operation has no rule"):
        pl.DeepLift(baseline=reference)(model, x, 0)


@pytest.mark.parametrize("name", SPELLINGS)
def test_every_spelling_gives_the_same_complete_map(name: str) -> None:
    """Of a network that computes a convolution first and works on in the operation's place."""

    class Net(nn.Module):
        def __init__(self, operation: Callable[[Tensor], Tensor]) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 3, 3, padding=1)
            self.operation = operation
            self.head = nn.LazyLinear(3)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.operation(self.conv(x)).flatten(1))

    generator = torch.Generator().manual_seed(0)
    x = torch.randn(2, 3, 4, 8, generator=generator, dtype=torch.float64)
    maps = []
    for operation in SPELLINGS[name]:

        def make(operation: Callable[[Tensor], Tensor] = operation) -> nn.Module:
            net = Net(operation).double()
            net(torch.zeros(1, 3, 4, 8))
            return net

        torch.set_default_dtype(torch.float64)
        try:
            model = seeded(make)
        finally:
            torch.set_default_dtype(torch.float32)
        for norm in (part for part in model.modules() if isinstance(part, nn.LayerNorm)):
            nn.init.ones_(norm.weight), nn.init.zeros_(norm.bias)
        found = pl.DeepLift(baseline=REFERENCE)(model, x, [0, 2], layers=["input", "conv"])
        for layer, value in found.items():
            assert float(found.residuals[layer].abs().max()) < 1e-10 * float(value.abs().max()), layer
        maps.append(found)
    for found in maps[1:]:
        for layer in found:
            assert relative_error(found[layer], maps[0][layer]) < 1e-9


class Attending(nn.Module):
    """Multi-head attention over the pixels of a convolution."""

    def __init__(self, batch_first: bool, weights: bool, mask: Tensor | None = None, **settings: object) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 8, 3, padding=1)
        self.attention = nn.MultiheadAttention(8, 2, batch_first=batch_first, **settings)  # type: ignore[arg-type]
        self.head = nn.Linear(8, 3)
        self.weights, self.mask, self.batch_first = weights, mask, batch_first

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.conv(x).flatten(2).mT
        tokens = tokens if self.batch_first else tokens.transpose(0, 1)
        y = self.attention(tokens, tokens, tokens, attn_mask=self.mask, need_weights=self.weights)[0]
        return self.head(y.mean(1 if self.batch_first else 0))


@pytest.mark.parametrize("mask", [None, MASK, BIAS], ids=["no mask", "mask", "bias"])
@pytest.mark.parametrize("settings", [{}, {"add_bias_kv": True, "add_zero_attn": True}], ids=str)
@pytest.mark.parametrize("frozen", [True, False])
def test_multi_head_attention_is_complete_and_the_same_in_every_form(
    mask: Tensor | None, settings: dict[str, bool], frozen: bool
) -> None:
    mask = ~mask if mask is not None and mask.dtype == torch.bool else mask
    x, maps = images(2, 2), []
    for batch_first in (True, False):
        for weights in (True, False):
            model = seeded(lambda b=batch_first, w=weights: Attending(b, w, mask, **settings))
            found = pl.DeepLift()(model.requires_grad_(not frozen), x, [0, 2], layers=["input", "conv"])
            difference = logits_of(model, x, [0, 2]) - logits_of(model, torch.zeros_like(x), [0, 2])
            for residual in found.residuals.values():
                assert float((residual / difference).abs().max()) < 1e-10
            maps.append(found)
    for found in maps[1:]:
        assert relative_error(found["input"], maps[0]["input"]) < 1e-11
        assert relative_error(found["conv"], maps[0]["conv"]) < 1e-11


@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize("norm_first", [True, False])
@pytest.mark.parametrize("activation", ["relu", "gelu"])
def test_transformer_encoders_are_complete_with_the_batch_in_any_place(
    batch_first: bool, norm_first: bool, activation: str
) -> None:
    class Encoder(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = nn.Conv2d(3, 8, 1)
            layer = nn.TransformerEncoderLayer(
                8, 2, 16, batch_first=batch_first, norm_first=norm_first, activation=activation
            )
            self.layers = nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)
            self.head = nn.Linear(8, 3)

        def forward(self, x: Tensor) -> Tensor:
            tokens = self.conv(x).flatten(2).mT
            tokens = tokens if batch_first else tokens.transpose(0, 1)
            return self.head(self.layers(tokens).mean(1 if batch_first else 0))

    model, x = seeded(Encoder), images(3, 2)
    found = pl.DeepLift()(model, x, [0, 1, 2], layers=["input", "conv"])
    difference = logits_of(model, x, [0, 1, 2]) - logits_of(model, torch.zeros_like(x), [0, 1, 2])
    for residual in found.residuals.values():
        assert float((residual / difference).abs().max()) < 1e-10


def test_a_model_that_takes_another_way_on_the_reference_is_refused() -> None:
    class Branching(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.fc = nn.Linear(12, 3)

        def forward(self, x: Tensor) -> Tensor:
            return self.fc((F.gelu(x) if x.abs().sum() > 0 else x.tanh()).flatten(1))

    with pytest.raises(pl.PellucidError, match="tanh on the reference where it runs gelu"):
        pl.DeepLift()(seeded(Branching), images(2, 2), 0)


def test_a_reference_that_the_model_overwrites_is_kept() -> None:
    """What follows a GELU in place would otherwise change the chords."""

    def twin(x: Tensor, inplace: bool) -> Tensor:
        y = F.gelu(x)
        if inplace:
            y += x
            y *= 2.0
            return y
        return (y + x) * 2.0

    x, reference = pair()
    maps = [multipliers(lambda t, i=i: twin(t, i), x, reference)[1] for i in (True, False)]
    assert torch.equal(maps[0], maps[1])


def test_deeplift_in_single_precision_agrees_with_double_near_the_reference() -> None:
    """A softmax and a normalization have no differences that cancel."""
    model = plain(nn.Flatten(), nn.LayerNorm(12), nn.Softmax(1), nn.Linear(12, 3))
    x = images(1, 2)
    reference = x[0] - 1e-4 * images(1, 2, 9)[0]
    expected = pl.DeepLift(baseline=reference)(model, x, 0)["input"] / (x - reference)
    here, there = x.float(), reference.float()
    found = pl.DeepLift(baseline=there)(model.float(), here, 0)["input"] / (here - there)
    assert relative_error(found.double(), expected) < 2e-3


@pytest.mark.parametrize("dims", [1, (1, 2), -1])
def test_the_logarithm_of_a_sum_bears_entries_of_minus_infinity(dims: int | tuple[int, ...]) -> None:
    x = images(2, 8)
    x[:, 0, :, :5] = x[:, 2, 3, 1:] = -torch.inf
    leaf = x.clone().requires_grad_()
    with Rules((pl.RescaleSoftmax(),), references={}):
        found = torch.logsumexp(leaf * 1.0, dims)
    torch.testing.assert_close(found.detach(), torch.logsumexp(x, dims), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("order", [0, -torch.inf])
def test_norms_of_order_0_and_minus_infinity_are_torchs(order: float) -> None:
    x = images(2, 8)
    x[0, 1] = 0
    leaf = x.clone().requires_grad_()
    with Rules((pl.RescaleElementwise(),), references={}):
        found = torch.linalg.vector_norm(leaf * 1.0, order, dim=1, keepdim=True)
    expected = torch.linalg.vector_norm(x, order, dim=1, keepdim=True)
    torch.testing.assert_close(found.detach(), expected, rtol=1e-14, atol=0)


RECURRENT: dict[str, Callable[[], nn.Module]] = {
    "lstm": lambda: nn.LSTM(4, 4, batch_first=True),
    "lstm both ways, two layers": lambda: nn.LSTM(4, 2, num_layers=2, bidirectional=True, batch_first=True),
    "lstm, projected": lambda: nn.LSTM(4, 5, proj_size=4, bias=False, batch_first=True),
    "gru": lambda: nn.GRU(4, 4, batch_first=True),
    "gru, time first": lambda: nn.GRU(4, 2, bidirectional=True, bias=False),
    "rnn": lambda: nn.RNN(4, 4, batch_first=True),
    "rnn, relu": lambda: nn.RNN(4, 4, nonlinearity="relu", batch_first=True),
    "lstm cell": lambda: nn.LSTMCell(4, 4),
    "gru cell": lambda: nn.GRUCell(4, 4),
    "rnn cell": lambda: nn.RNNCell(4, 4),
    "rnn cell, relu": lambda: nn.RNNCell(4, 4, nonlinearity="relu"),
}


class Recurrent(nn.Module):
    """Rows of a convolution's map, one after another through a recurrent layer."""

    def __init__(self, layer: nn.Module, packed: bool = False) -> None:
        super().__init__()
        self.conv, self.layer, self.head, self.packed = nn.Conv2d(3, 4, 3), layer, nn.Linear(4, 3), packed

    def forward(self, x: Tensor) -> Tensor:
        steps = self.conv(x).mean(3).mT
        if isinstance(self.layer, nn.RNNCellBase):
            state = None
            for step in steps.unbind(1):
                state = self.layer(step, state)
            return self.head(state[0] if isinstance(state, tuple) else state)
        if self.packed:
            steps = nn.utils.rnn.pack_padded_sequence(steps, torch.full((len(x),), 6), batch_first=True)
            return self.head(self.layer(steps)[1][0])
        turn = (lambda t: t) if self.layer.batch_first else (lambda t: t.transpose(0, 1))
        return self.head(turn(self.layer(turn(steps))[0]).mean(1))


@pytest.mark.parametrize("name", RECURRENT)
def test_recurrent_layers_are_complete_and_the_same_function(name: str) -> None:
    model, x = seeded(lambda: Recurrent(RECURRENT[name]())), images(2, 8)
    with torch.no_grad():
        logits = model(x)
        with Rules(pl.method("deeplift").backward_rules, model=model):
            assert torch.allclose(model(x), logits, rtol=0, atol=1e-14)
    found = pl.method("deeplift")(model, x, 0, layers=["input", "conv"])
    for layer, residual in found.residuals.items():
        assert float(residual.abs().max()) < 1e-12 * float(found[layer].abs().sum()), layer


@pytest.mark.filterwarnings("ignore::pellucid.CompletenessWarning")
def test_a_packed_sequence_is_named() -> None:
    model = seeded(lambda: Recurrent(nn.GRU(4, 4, batch_first=True), packed=True))
    with pytest.warns(RuleWarning, match="gru of a packed sequence ran as a whole"):
        pl.method("deeplift")(model, images(2, 8), 0)


class Strided(nn.Module):
    """Two convolutions, of which the second steps, and a function between two layers."""

    def __init__(self, function: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 4, 3, bias=False), nn.Conv2d(4, 4, 3, stride=2, bias=False)
        self.head, self.function = nn.Linear(4, 3, bias=False), function

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.function(self.two(self.one(x).relu())).mean((2, 3)))


def without_a_rule(h: Tensor) -> Tensor:
    return torch.hypot(h, h.roll(1, 1) + 1)


@pytest.mark.parametrize("name", ["deeplift", "smoothed(deeplift, samples=2)", "lrp_epsilon(epsilon=1e-9)"])
@pytest.mark.filterwarnings("ignore:hypot between")
def test_what_has_no_rule_is_told_under_a_variant_that_keeps_no_sum(name: str) -> None:
    method, x = pl.method(name), images(2, 12)
    with pytest.warns(pl.CompletenessWarning, match="without SmoothedDownsampling"):
        found = method(seeded(lambda: Strided(without_a_rule)), x, 0, variant="backward")
    assert not found.residuals
    told = method(seeded(lambda: Strided(torch.relu)), x, 0, variant="backward")
    assert told.unchecked.endswith("no sum is promised")
    missing = told["input"].sum((1, 2, 3)) - seeded(lambda: Strided(torch.relu))(x)[:, 0]
    assert float(missing.abs().max()) > 1e-3


def test_what_has_no_rule_is_told_beside_the_gradient_of_max_pools() -> None:
    with pytest.warns(pl.CompletenessWarning, match="gradient of a max-pool keeps no sum"):
        pl.method('deeplift(max_pool="gradient")')(seeded(lambda: Strided(without_a_rule)), images(2, 12), 0)
