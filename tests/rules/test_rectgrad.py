"""Rectified Gradient, its padding trick and its redistribution (facts of the paper and its released code)."""

from collections import OrderedDict

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pellucid as pl
from pellucid.errors import RuleWarning
from pellucid.rules.relu import percentile
from tests.networks import images, seeded


class Weighted(nn.Module):
    """ReLUs whose outputs are weighted to a logit: R is the weights, a the inputs."""

    def __init__(self, weights: list[float]) -> None:
        super().__init__()
        self.weights = nn.Parameter(torch.tensor([weights], dtype=torch.float64))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return (F.relu(x).flatten(1) * self.weights).sum(1, keepdim=True)


def passed(rule: pl.Rule, a: list[float], weights: list[float]) -> list[float]:
    x = torch.tensor(a, dtype=torch.float64).view(1, len(a), 1, 1)
    return pl.Gradient(rules=(rule,))(Weighted(weights), x, 0)["input"].flatten().tolist()


@pytest.mark.parametrize(("gate", "unit"), [("PR1", 2), ("PR2", 3), ("PR3", 1), ("PR4", 4)])
@pytest.mark.parametrize("interpolation", ["nearest", "linear"])
def test_four_rules_select_four_units(gate: str, unit: int, interpolation: str) -> None:
    a, weights = [3.0, 2.0, 1.0, 0.0], [1.0, 10.0, -100.0, 1000.0]
    expected = [weight if i == unit - 1 else 0.0 for i, weight in enumerate(weights)]
    assert passed(pl.RectifiedReLU(q=74, gate=gate, interpolation=interpolation), a, weights) == expected


@pytest.mark.parametrize(
    ("gate", "nearest", "linear"),
    [("PR1", 3, 6.74), ("PR2", 20, 37.6), ("PR3", 2, 2.22), ("PR4", 10, 227.8)],
)
def test_thresholds_of_the_four_rules(gate: str, nearest: float, linear: float) -> None:
    a, r = torch.tensor([3.0, 2, 1, 0]).double(), torch.tensor([1.0, 10, -100, 1000]).double()
    scores = {"PR1": a * r, "PR2": (a * r).abs(), "PR3": a, "PR4": r}[gate][None]
    assert percentile(scores, 74).item() == nearest
    assert percentile(scores, 74, "linear").item() == pytest.approx(linear, rel=1e-12)


def test_mixture_gates_the_last_rectifier_by_sign_and_the_others_by_size() -> None:
    class Two(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.last = nn.Parameter(torch.tensor([[2.0, -3.0]]))

        def forward(self, x):
            return (F.relu(F.relu(x.flatten(1)) * torch.tensor([[-1.0, 1.0]]) + 5) * self.last).sum(
                1, keepdim=True
            )

    x = torch.ones(1, 2, 1, 1)
    # Last: scores (8, -18), PR1 passes the first alone, R = (2, 0). First: R = (-2, 0), |a R| = (2, 0).
    mixed = pl.Gradient(rules=(pl.RectifiedReLU(tau=1.0, gate="mod"),))(Two(), x, 0)["input"]
    assert mixed.flatten().tolist() == [-2.0, 0.0]


@pytest.mark.parametrize(("q", "expected"), [(30, 2.0), (0, 1.0), (100, 4.0), (50, 2.0)])
def test_nearest_percentile(q: float, expected: float) -> None:
    assert percentile(torch.tensor([[1.0, 2, 3, 4]]), q).item() == expected


@pytest.mark.parametrize("q", [0.0, 3.0, 50.0, 74.0, 98.0, 99.99, 100.0])
def test_fast_selection_is_the_exact_order_statistic(q: float) -> None:
    """Long rows take another path: skewed, tied and constant ones must not lead it astray."""
    n = 70_001
    rows = torch.stack([
        torch.randn(n), torch.randn(n) ** 9, torch.zeros(n), torch.arange(n).float(),
        F.relu(torch.randn(n) - 2), (torch.arange(n) % 8 == 0).float(),
    ])  # fmt: skip
    index = round((n - 1) * (100 - q) / 100)
    expected = rows.sort(1, descending=True).values[:, index]
    assert torch.equal(percentile(rows, q)[:, 0], expected)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("n", [16_383, 16_384, 20_001])
def test_selection_is_exact_in_every_precision_and_where_a_sample_misleads(dtype: torch.dtype, n: int) -> None:
    """Values that stand where the sample does not look: none, or all, of the largest are in it."""
    step = n // 2048
    alternating = torch.where(torch.arange(n) % step == 0, -1.0, 1.0) * torch.rand(n)
    rows = torch.stack([alternating, -alternating, torch.randn(n), (torch.rand(n) < 0.01).float()]).to(dtype)
    for q in (0.0, 1.0, 50.0, 98.0, 99.9, 100.0):
        index = round((n - 1) * (100 - q) / 100)
        assert torch.equal(percentile(rows, q)[:, 0], rows.sort(1, descending=True).values[:, index])


@pytest.mark.parametrize(("units", "kept"), [(32768, 655), (16384, 328), (256, 5), (25, 0), (10, 0)])
def test_units_kept_at_q98(units: int, kept: int) -> None:
    a = torch.rand(1, units, 1, 1, dtype=torch.float64) + 0.1
    model = Weighted(torch.ones(units).tolist())
    if kept == 0:
        with pytest.warns(pl.EmptyMapWarning):
            map_ = pl.Gradient(rules=(pl.RectifiedReLU(),))(model, a, 0)["input"]
    else:
        map_ = pl.Gradient(rules=(pl.RectifiedReLU(),))(model, a, 0)["input"]
    assert int((map_ != 0).sum()) == kept


class SmallNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(2, 6, 3, padding=1)
        self.conv2 = nn.Conv2d(6, 8, 3, padding=1)
        self.fc = nn.Linear(8, 3)
        self.double().eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.max_pool2d(F.relu(self.conv1(x)), 2)
        return self.fc(F.relu(self.conv2(x)).mean((2, 3)))


def test_tau_zero_without_padding_trick_is_guided_backprop_times_input() -> None:
    model, x = SmallNet(), torch.randn(3, 2, 8, 8, dtype=torch.float64)
    rect = pl.method("rectgrad", tau=0.0, padding_trick=False)(model, x, 1)["input"]
    guided = pl.method("guided_backprop")(model, x, 1)["input"] * x
    # Claim 2: equal after the final threshold. A unit with a > 0 and R > 0 is the only one either passes.
    assert torch.equal(rect.clamp_min(0), guided.clamp_min(0))
    assert torch.equal(rect, guided)


def test_deconvolution_is_the_rule_with_a_shifted_activation() -> None:
    """Claim 1: 1[(a + epsilon) R > 0] R = 1[R > 0] R, since a >= 0."""
    model, x = SmallNet(), torch.randn(3, 2, 8, 8, dtype=torch.float64)

    class Shifted(pl.RectifiedReLU):
        def propagate(self, operation, x, y, gradient):
            return gradient * ((y + 1e-9) * gradient > 0)

    ours = pl.method("deconvnet")(model, x, 1)["input"]
    assert torch.equal(ours, pl.Gradient(rules=(Shifted(),))(model, x, 1)["input"])


def test_q_zero_is_neither_the_gradient_nor_tau_zero() -> None:
    a, weights = [2.0, -1.0, 3.0], [1.0, 5.0, -4.0]
    # Scores (2, 0, -12): all but the minimum pass, the dead unit among them.
    assert passed(pl.RectifiedReLU(q=0), a, weights) == [1.0, 5.0, 0.0]
    assert passed(pl.RectifiedReLU(tau=0.0), a, weights) == [1.0, 0.0, 0.0]


def test_q_equals_tau_zero_where_the_percentile_is_zero() -> None:
    a, weights = [2.0, -1.0, -3.0, 1.0, -2.0], [1.0, 5.0, -4.0, -2.0, 3.0]
    assert passed(pl.RectifiedReLU(q=50), a, weights) == passed(pl.RectifiedReLU(tau=0.0), a, weights)


class Pooled(nn.Module):
    def __init__(self, weight: float, pool: str) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.tensor(weight, dtype=torch.float64))
        self.pool = pool

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        pool = F.max_pool2d if self.pool == "max" else F.avg_pool2d
        return (pool(x, 2) * self.weight).sum((1, 2, 3))[:, None]


@pytest.mark.parametrize("pool", ["max", "average"])
@pytest.mark.parametrize(
    ("window", "gradient", "expected"),
    [([1, 2, 3, 4], 10, [1, 2, 3, 4]), ([0, 0, 0, 5], 3, [0, 0, 0, 3]), ([0, 0, 0, 0], 3, [0, 0, 0, 0])],
)
def test_proportional_redistribution(
    window: list[float], gradient: float, expected: list[float], pool: str
) -> None:
    x = torch.tensor(window, dtype=torch.float64).view(1, 1, 2, 2)
    method = pl.Gradient(rules=(pl.ProportionalPooling(average=pool == "average"),))
    if any(expected):
        shared = method(Pooled(gradient, pool), x, 0)["input"]
        torch.testing.assert_close(shared.flatten().tolist(), [float(e) for e in expected], rtol=1e-9, atol=0)
    else:
        with pytest.warns(pl.EmptyMapWarning):
            assert not method(Pooled(gradient, pool), x, 0)["input"].any()


def test_redistribution_adds_up_over_overlapping_windows() -> None:
    class Overlapping(nn.Module):
        def forward(self, x):
            return F.max_pool2d(x, 3, stride=2, padding=1).sum((1, 2, 3))[:, None]

    x = torch.rand(1, 1, 6, 6, dtype=torch.float64)
    shared = pl.Gradient(rules=(pl.ProportionalPooling(),))(Overlapping(), x, 0)["input"][0, 0]
    padded = F.pad(x, (1, 1, 1, 1))[0, 0]
    expected = torch.zeros_like(padded)
    for i in range(0, 6, 2):
        for j in range(0, 6, 2):
            window = padded[i : i + 3, j : j + 3]
            expected[i : i + 3, j : j + 3] += window / window.sum()
    torch.testing.assert_close(shared, expected[1:-1, 1:-1], rtol=1e-8, atol=0)
    torch.testing.assert_close(shared.sum().item(), 9.0, rtol=1e-8, atol=0)


class Greatest(nn.Module):
    """The greatest value or the mean of an image's one channel."""

    def __init__(self, pooled) -> None:
        super().__init__()
        self.pooled = pooled

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return F.avg_pool2d(F.max_pool2d(self.pooled(x)[..., None, None], 1), 1).flatten(1)


@pytest.mark.parametrize("keepdim", [False, True])
def test_redistribution_through_a_global_maximum_by_any_name(keepdim: bool) -> None:
    x = torch.rand(2, 1, 3, 4, dtype=torch.float64)
    model = Greatest(lambda x: x.amax((-1, 2), keepdim=keepdim).flatten(1))
    found = pl.Gradient(rules=(pl.ProportionalPooling(),))(model, x, 0)["input"]
    torch.testing.assert_close(found, x / x.sum((2, 3), keepdim=True), rtol=1e-8, atol=0)


@pytest.mark.parametrize(
    ("pooled", "average", "named"),
    [
        (lambda x: x.flatten(2).amax(-1), False, "Amax"),
        (lambda x: x.flatten(2).max(-1).values, False, "Max"),
        (lambda x: F.max_pool1d(x.flatten(2), 12)[..., 0], False, "MaxPool2DWithIndices"),
        (lambda x: x.flatten(2).mean(-1), True, "Mean"),
    ],
    ids=["amax", "max", "1d", "mean"],
)
def test_a_pooling_that_redistribution_leaves_alone_is_told(pooled, average: bool, named: str) -> None:
    x, rule = torch.rand(2, 1, 3, 4, dtype=torch.float64), pl.ProportionalPooling(average=average)
    with pytest.warns(RuleWarning, match=f"^{named} may be a pooling that ProportionalPooling"):
        pl.Gradient(rules=(rule,))(Greatest(pooled), x, 0)


class Convolved(nn.Module):
    def __init__(self, kernel: int, padding: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 1, kernel, padding=padding, bias=False)
        nn.init.zeros_(self.conv.weight)
        self.conv.weight.data[0, 0, kernel // 2, kernel // 2] = 1

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.conv(x).sum((1, 2, 3))[:, None]


def test_padding_trick_keeps_the_inside() -> None:
    trick = pl.Gradient(rules=(pl.PaddingTrick(),))
    kept = trick(Convolved(3, 1), torch.ones(1, 1, 4, 4), 0)["input"][0, 0]
    assert kept.tolist() == [[0, 0, 0, 0], [0, 1, 1, 0], [0, 1, 1, 0], [0, 0, 0, 0]]
    with pytest.warns(pl.EmptyMapWarning):
        assert not trick(Convolved(3, 1), torch.ones(1, 1, 2, 2), 0)["input"].any()
    assert trick(Convolved(3, 0), torch.ones(1, 1, 4, 4), 0)["input"].sum() == 4
    assert trick(Convolved(1, 0), torch.ones(1, 1, 4, 4), 0)["input"].sum() == 16
    pointwise = pl.Gradient(rules=(pl.PaddingTrick(pointwise=True),))
    assert pointwise(Convolved(1, 0), torch.ones(1, 1, 4, 4), 0)["input"].sum() == 4


@pytest.mark.parametrize(
    ("frame", "kept"),
    [
        (nn.ZeroPad2d(1), 4),
        (nn.ConstantPad2d((0, 1, 0, 1), 0.0), 1),
        (nn.ConstantPad2d(1, 0.5), 16),  # no zeros
        (nn.ReflectionPad2d(1), 16),
        (nn.ConstantPad3d((0, 0, 0, 0, 0, 1), 0.0), 4),  # another channel
    ],
    ids=["zeros", "one side", "constant", "reflected", "channel"],
)
def test_zeros_put_around_the_input_are_padding(frame: nn.Module, kept: int) -> None:
    convolved = Convolved(3, 0)
    if isinstance(frame, nn.ConstantPad3d):
        convolved.conv.weight = nn.Parameter(convolved.conv.weight.expand(1, 2, 3, 3).clone())
    model = nn.Sequential(frame, convolved).eval()
    assert pl.Gradient(rules=(pl.PaddingTrick(),))(model, torch.ones(1, 1, 4, 4), 0)["input"].sum() == kept


@pytest.mark.parametrize("layers", [["conv2"], ["conv1", "conv2"]])
def test_the_gradient_at_a_padded_convolution_has_its_border(layers: list[str]) -> None:
    """What arrives there is masked on its way down: the map is the same whether a lower layer has one, too."""
    torch.manual_seed(0)
    conv1, conv2, head = nn.Conv2d(2, 3, 3, padding=1), nn.Conv2d(3, 4, 3, padding=1), nn.Linear(64, 1)
    parts = OrderedDict(conv1=conv1, conv2=conv2, act=nn.ReLU(inplace=True), flat=nn.Flatten(), head=head)
    model, x = nn.Sequential(parts).double().eval(), torch.randn(2, 2, 4, 4, dtype=torch.float64)
    expected = head.weight.view(4, 4, 4) * (conv2(conv1(x)) > 0)
    found = pl.Gradient(rules=(pl.PaddingTrick(),))(model, x, 0, layers)
    torch.testing.assert_close(found["conv2"], expected.detach(), rtol=1e-12, atol=0)


@pytest.mark.parametrize(
    ("values", "low", "expected"),
    [
        (range(1, 10), 50, [0, 0, 0, 0, 5, 6, 7, 8, 9]),
        (range(-4, 5), 25, [-2, -2, -2, -1, 0, 1, 2, 3, 4]),
        (range(-4, 5), 75, [0, 0, 0, 0, 0, 0, 2, 3, 4]),
    ],
)
def test_percentile_clipping(values: range, low: float, expected: list[float]) -> None:
    maps = torch.tensor([list(values)], dtype=torch.float64).view(1, 3, 3)
    assert pl.clip_percentiles(maps, low, 100).flatten().tolist() == expected


def test_percentile_clipping_at_the_top() -> None:
    maps = torch.arange(101.0).view(1, 1, 101)
    assert pl.clip_percentiles(maps, 0, 90).max() == 90


class TokensFirst(nn.Module):
    """Activations of (tokens, images, channels)."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.inner, self.head = nn.Conv2d(3, 8, 4, 4), nn.Linear(8, 8), nn.Linear(8, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.inner(self.conv(x).flatten(2).permute(2, 0, 1)).relu().mean(0))


class Folded(TokensFirst):
    """Patches as images of their own."""

    def forward(self, x: Tensor) -> Tensor:
        patches = x.unfold(2, 8, 8).unfold(3, 8, 8).permute(0, 2, 3, 1, 4, 5).reshape(-1, 3, 8, 8)
        return self.head(self.conv(patches).relu().mean((2, 3)).view(len(x), -1, 8).mean(1))


class OneByOne(TokensFirst):
    """Images without a dimension of the batch."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.stack([self.head(self.conv(one).relu().mean((1, 2))) for one in x])


@pytest.mark.parametrize("kind", [TokensFirst, Folded, OneByOne])
@pytest.mark.parametrize("number", [1, 3])
def test_a_percentile_of_what_is_no_image_is_refused(kind: type[nn.Module], number: int) -> None:
    model, x = seeded(kind), images(number, 16)
    with pytest.raises(pl.PellucidError, match="no first dimension of images"):
        pl.method("rectgrad(q=50, padding_trick=False)")(model, x, 0)
    pl.Gradient(rules=(pl.RectifiedReLU(tau=0.0),))(model, x, 0)  # a number needs no dimension


def test_as_many_images_as_tokens_do_not_hide_that_tokens_come_first() -> None:
    model = seeded(TokensFirst)
    tokens = model.conv(images(1, 16)).flatten(2).shape[2]
    with pytest.raises(pl.PellucidError, match="no first dimension of images"):
        pl.method("rectgrad(q=50, padding_trick=False)")(model, images(tokens, 16), 0)
