"""The checkerboard of strided convolutions and its remedies (Smooth Deep Saliency, Sec. 2.1 and 3.1)."""

import warnings
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
import torchvision
from torch import nn

import pellucid as pl
from pellucid.errors import RuleWarning
from pellucid.rules.conv import rolled_mean
from tests.networks import seeded


class Summed(nn.Module):
    """One strided convolution behind an identity convolution, summed to a logit."""

    def __init__(self, weight: torch.Tensor, padding: int = 0, bias: float = 0.0, first: bool = True) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 1, 1, bias=False) if first else None
        if self.first is not None:
            nn.init.ones_(self.first.weight)
        size = weight.shape[-1]
        self.down = nn.Conv2d(1, 1, size, stride=2, padding=padding)
        self.down.weight.data = weight.view(1, 1, size, size)
        nn.init.constant_(self.down.bias, bias)
        self.double().eval()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = x if self.first is None else self.first(x)
        return self.down(x).sum((1, 2, 3))[:, None]


KERNEL = torch.tensor([[1.0, 1.0], [1.0, -1.0]])
TILE = torch.tensor([[1.0, 1.0], [1.0, -1.0]], dtype=torch.float64).repeat(8, 8)


def map_of(model: nn.Module, x: torch.Tensor, **call: object) -> torch.Tensor:
    return pl.Gradient()(model, x, 0, **call)["input"][0, 0]


def test_gradient_of_a_strided_convolution_is_a_checkerboard() -> None:
    x = torch.ones(1, 1, 16, 16, dtype=torch.float64)
    model = Summed(KERNEL)
    assert model(x).item() == 128
    gradient = map_of(model, x)
    assert torch.equal(gradient, TILE)
    assert (gradient == -1).sum() == 64
    assert pl.total_variation(gradient[None, None], normalized=False).item() == 480
    torch.testing.assert_close(pl.total_variation(gradient[None, None]).item(), 2.5, rtol=0, atol=1e-12)


@pytest.mark.parametrize("variant", ["backward", "forward"])
def test_both_variants_make_that_gradient_constant(variant: str) -> None:
    x = torch.ones(1, 1, 16, 16, dtype=torch.float64)
    gradient = map_of(Summed(KERNEL), x, variant=variant)
    torch.testing.assert_close(gradient, torch.full_like(gradient, 0.5), rtol=0, atol=1e-12)
    assert pl.total_variation(gradient[None, None]).item() == 0


@pytest.mark.parametrize("variant", ["backward", "forward"])
def test_the_first_convolution_is_skipped_unless_included(variant: str) -> None:
    x = torch.ones(1, 1, 16, 16, dtype=torch.float64)
    stem = Summed(KERNEL, first=False)
    with pytest.raises(pl.RuleNotApplied, match="SmoothedDownsampling"):
        map_of(stem, x, variant=variant)
    smoothed = map_of(stem, x, variant=pl.SmoothedDownsampling(variant, include_first=True))
    torch.testing.assert_close(smoothed, torch.full_like(smoothed, 0.5), rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("direction", "places"), [(1, [(0, 0), (0, 5), (5, 0), (5, 5)]), (-1, [(4, 4), (4, 5), (5, 4), (5, 5)])]
)
def test_rolls_wrap_around(direction: int, places: list[tuple[int, int]]) -> None:
    impulse = torch.zeros(6, 6, dtype=torch.float64)
    impulse[5, 5] = 1
    expected = torch.zeros_like(impulse)
    for place in places:
        expected[place] = 0.25
    assert torch.equal(rolled_mean(impulse, (2, 2), direction), expected)


def test_forward_variant_is_the_mean_of_four_rolled_convolutions() -> None:
    x = torch.randn(2, 3, 9, 9, dtype=torch.float64)
    conv = nn.Conv2d(3, 4, 3, stride=2, padding=1).double()
    rolls = [x.roll((h, w), (2, 3)) for h in (0, 1) for w in (0, 1)]
    paper = torch.stack([conv(rolled) for rolled in rolls]).mean(0)
    torch.testing.assert_close(conv(rolled_mean(x, (2, 2))), paper, rtol=0, atol=1e-12)


def test_forward_gradient_is_the_backward_one_rolled_or_equal_with_the_other_direction() -> None:
    model = Summed(torch.randn(3, 3), padding=1, bias=0.3)
    x = torch.randn(1, 1, 8, 8, dtype=torch.float64)
    backward = map_of(model, x, variant="backward")
    forward = map_of(model, x, variant="forward")
    other = map_of(model, x, variant=pl.SmoothedDownsampling("forward", direction=-1))
    torch.testing.assert_close(forward, backward.roll((-1, -1), (0, 1)), rtol=0, atol=1e-12)
    torch.testing.assert_close(other, backward, rtol=0, atol=1e-12)
    assert not torch.allclose(forward, backward)
    torch.testing.assert_close(backward.sum(), map_of(model, x).sum(), rtol=0, atol=1e-12)


def test_padded_three_by_three_kernel_of_ones() -> None:
    model = Summed(torch.ones(3, 3), padding=1)
    x = torch.ones(1, 1, 8, 8, dtype=torch.float64)
    plain = map_of(model, x)
    odd = torch.tensor([1.0, 2, 1, 2, 1, 2, 1, 1], dtype=torch.float64)
    even = torch.tensor([2.0, 4, 2, 4, 2, 4, 2, 2], dtype=torch.float64)
    assert torch.equal(plain, torch.stack([odd, even, odd, even, odd, even, odd, odd]))
    smoothed = map_of(model, x, variant="backward")
    first_row = torch.tensor([1.0, 1.5, 1.5, 1.5, 1.5, 1.5, 1.5, 1.0], dtype=torch.float64)
    torch.testing.assert_close(smoothed[0], first_row, rtol=0, atol=1e-12)
    torch.testing.assert_close(smoothed[1:7, 1:7], torch.full((6, 6), 2.25).double(), rtol=0, atol=1e-12)


def test_pointwise_strided_convolution_becomes_the_gradient_of_average_pooling() -> None:
    model = Summed(torch.tensor([[3.0]]))
    x = torch.randn(1, 1, 8, 8, dtype=torch.float64)
    plain = map_of(model, x)
    assert (plain != 0).double().mean() == 0.25
    pooled = x.clone().requires_grad_()
    (aligned,) = torch.autograd.grad(3 * F.avg_pool2d(pooled, 2).sum(), pooled)
    torch.testing.assert_close(map_of(model, x, variant="backward"), aligned[0, 0], rtol=0, atol=1e-12)


def test_stride_three_averages_nine_rolls() -> None:
    x = torch.randn(1, 2, 9, 12, dtype=torch.float64)
    rolls = [x.roll((h, w), (2, 3)) for h in range(3) for w in range(3)]
    torch.testing.assert_close(rolled_mean(x, (3, 3)), torch.stack(rolls).mean(0), rtol=0, atol=1e-12)


SPELLINGS = {
    "slice": lambda x: x[:, :, ::2, ::2],
    "slice of all before": lambda x: x[..., ::2, ::2],
    "slice of channels-last": lambda x: x.permute(0, 2, 3, 1)[:, ::2, ::2].permute(0, 3, 1, 2),
    "max-pooling of single pixels": lambda x: F.max_pool2d(x, 1, 2),
    "average of single pixels": lambda x: F.avg_pool2d(x, 1, stride=2),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
@pytest.mark.parametrize("variant", ["backward", "forward"])
@pytest.mark.parametrize("direction", [1, -1])
def test_what_takes_every_second_pixel_is_smoothed_as_the_convolution_that_does(
    spelling, variant, direction
) -> None:
    """A slice is a 1x1 convolution of stride 2 by the identity."""

    class Reduced(nn.Module):
        def __init__(self, reduce) -> None:
            super().__init__()
            self.first, self.reduce, self.last = nn.Conv2d(2, 3, 3, padding=1), reduce, nn.Conv2d(3, 2, 3)
            self.double().eval()

        def forward(self, x):
            return self.last(torch.tanh(self.reduce(self.first(x)))).square().mean((2, 3))

    strided = nn.Conv2d(3, 3, 1, stride=2, bias=False)
    strided.weight.data = torch.eye(3)[:, :, None, None]
    by_hand, model = Reduced(strided), Reduced(SPELLINGS[spelling])
    model.load_state_dict(by_hand.state_dict(), strict=False)
    x = torch.randn(2, 2, 9, 12, dtype=torch.float64)
    rule = pl.SmoothedDownsampling(variant, direction)
    expected, found = (pl.Gradient()(net, x, 1, variant=rule)["input"] for net in (by_hand, model))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    assert not torch.allclose(found, pl.Gradient()(model, x, 1)["input"])


@pytest.mark.parametrize("variant", ["backward", "forward"])
def test_space_to_depth_is_smoothed_as_slices_are(variant: str) -> None:
    class Focus(nn.Module):
        def __init__(self, unshuffled: bool) -> None:
            super().__init__()
            self.unshuffled, self.conv = unshuffled, nn.Conv2d(8, 3, 3)
            self.double().eval()

        def forward(self, x):
            if self.unshuffled:
                parts = F.pixel_unshuffle(x, 2)
            else:  # channel by channel, the four places of a tile
                tiles = torch.stack([x[..., i::2, j::2] for i in (0, 1) for j in (0, 1)], 2)
                parts = tiles.flatten(1, 2)
            return self.conv(parts).tanh().mean((2, 3))

    one, other = Focus(True), Focus(False)
    other.load_state_dict(one.state_dict())
    x = torch.randn(2, 2, 10, 12, dtype=torch.float64)
    found, expected = (pl.Gradient()(model, x, 0, variant=variant)["input"] for model in (one, other))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-12)
    assert not torch.allclose(found, pl.Gradient()(one, x, 0)["input"])


def test_pooling_is_left_alone_unless_asked_for() -> None:
    """Average pooling of stride 2 sends each pixel's mean down: with P_d of its own, that is averaged again."""
    model = nn.Sequential(
        nn.Conv2d(1, 1, 1), nn.AvgPool2d(3, 2), nn.Conv2d(1, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    model, x = model.double().eval(), torch.randn(1, 1, 9, 9, dtype=torch.float64)
    with pytest.raises(pl.RuleNotApplied, match="SmoothedDownsampling"):
        map_of(model, x, variant="backward")
    plain = map_of(model, x)
    smoothed = map_of(model, x, variant=pl.SmoothedDownsampling(pooling=True))
    torch.testing.assert_close(smoothed, rolled_mean(plain, (2, 2)), rtol=0, atol=1e-12)


def test_a_step_along_one_dimension_is_no_reduction_of_space() -> None:
    """Rotary embeddings take every second feature."""

    class Rotary(nn.Module):
        def forward(self, x):
            return (x[..., ::2] * x[..., 1::2]).mean((2, 3))

    with pytest.raises(pl.RuleNotApplied, match="SmoothedDownsampling"):
        map_of(Rotary().eval(), torch.randn(1, 3, 8, 8), variant="backward")


@pytest.mark.parametrize("size", [56, 28, 14, 8])
def test_bilinear_halving_is_average_pooling(size: int) -> None:
    z = torch.randn(1, 2, size, size, dtype=torch.float64)
    halved = F.interpolate(z, size // 2, mode="bilinear")
    torch.testing.assert_close(halved, F.avg_pool2d(z, 2), rtol=0, atol=1e-12)


@pytest.mark.parametrize(("size", "expected"), [(4, 3.0), (8, 3.5), (16, 3.75), (56, 4 * 55 / 56)])
def test_total_variation_of_a_checkerboard(size: int, expected: float) -> None:
    rows = torch.arange(size)
    board = (1.0 - 2 * ((rows[:, None] + rows) % 2)).double()[None, None]
    for scaled in (board, -3 * board + 7):
        torch.testing.assert_close(pl.total_variation(scaled).item(), expected, rtol=1e-12, atol=0)


def test_total_variation_of_columns_and_of_constants() -> None:
    columns = torch.arange(4.0, dtype=torch.float64).repeat(4, 1)[None, None]
    torch.testing.assert_close(pl.total_variation(columns).item(), 0.75, rtol=1e-12, atol=0)
    assert pl.total_variation(torch.full((2, 3, 5, 5), 0.1)).tolist() == [0, 0]


def test_layer4_of_a_residual_network_has_no_checkerboard_to_remove() -> None:
    import torchvision

    model = torchvision.models.resnet18(weights=None).eval()
    x = torch.randn(1, 3, 64, 64)
    original = pl.Gradient()(model, x, 0, "all")
    backward = pl.Gradient()(model, x, 0, "all", variant="backward")
    for layer in original:
        same = torch.equal(original[layer], backward[layer])
        assert same == layer.startswith("layer4")
    for layer in ("layer1.1", "layer3.1"):
        assert pl.total_variation(backward[layer]) < 0.75 * pl.total_variation(original[layer])


@pytest.mark.parametrize("name", ["resnet18", "resnet34", "resnet50"])
def test_residual_networks_have_seven_strided_convolutions(name: str) -> None:
    """The rule meets them all in the forward pass but the first: 1x1 shortcuts count."""
    import torchvision

    from pellucid.rules.base import Rules

    model = getattr(torchvision.models, name)(weights=None).eval()
    met, x = [], torch.randn(1, 3, 32, 32)

    class Counting(pl.SmoothedDownsampling):
        def apply(self, operation, x, run):
            met.append(tuple(operation.settings["weight"].shape))
            return super().apply(operation, x, run)

    with Rules([Counting()]), torch.no_grad():
        model(x)
    assert len(met) == 6
    assert sum(shape[2:] == (1, 1) for shape in met) == 3
    met.clear()
    with Rules([Counting(include_first=True)]), torch.no_grad():
        model(x)
    assert len(met) == 7
    assert met[0] == (64, 3, 7, 7)


def test_backward_variant_is_the_module_hook_of_the_released_code() -> None:
    import torchvision

    model = torchvision.models.resnet18(weights=None).double().eval()
    x = torch.randn(2, 3, 64, 64, dtype=torch.float64)
    ours = pl.Gradient()(model, x, 1, "layer1.1", variant="backward")["layer1.1"]

    def hook(module, grad_input, grad_output):
        g = grad_input[0]
        return (sum(g.roll((h, w), (2, 3)) for h in (0, 1) for w in (0, 1)) / 4,)

    captured = {}
    strided = [m for m in model.modules() if isinstance(m, nn.Conv2d) and m.stride[0] == 2][1:]
    handles = [m.register_full_backward_hook(hook) for m in strided]
    handles.append(model.layer1[1].register_forward_hook(lambda m, i, o: captured.update(out=o)))
    score = model(x)[:, 1].sum()
    (theirs,) = torch.autograd.grad(score, captured["out"])
    for handle in handles:
        handle.remove()
    torch.testing.assert_close(ours, theirs, rtol=1e-12, atol=1e-15)


REDUCED = {
    "index": lambda x: x[:, :, torch.arange(0, x.shape[2], 2)][..., torch.arange(0, x.shape[3], 2)],
    "interpolate": lambda x: F.interpolate(x, scale_factor=0.5),
    "reshape": lambda x: x.unflatten(2, (-1, 2)).unflatten(4, (-1, 2))[:, :, :, 0, :, 0],
    "unfold": lambda x: x.unfold(2, 1, 2).unfold(3, 1, 2)[..., 0, 0],
}


class Reduced(nn.Module):
    """A stem, something that takes every second place, and a strided convolution."""

    def __init__(self, reduce: Callable[[torch.Tensor], torch.Tensor]) -> None:
        super().__init__()
        self.stem, self.low = nn.Conv2d(3, 6, 3, 2, 1), nn.Conv2d(6, 6, 3, padding=1)
        self.high, self.head = nn.Conv2d(6, 6, 3, 2, 1), nn.Linear(6, 4)
        self.reduce = reduce

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.relu(self.low(F.relu(self.stem(x))))
        return self.head(F.relu(self.high(self.reduce(x))).mean((2, 3)))


@pytest.mark.parametrize("variant", ["backward", "forward"])
@pytest.mark.parametrize("reduce", REDUCED.values(), ids=REDUCED)
def test_a_pattern_that_a_variant_leaves_is_warned_of(reduce: Callable, variant: str) -> None:
    torch.manual_seed(0)
    model, x = Reduced(reduce).eval(), torch.randn(2, 3, 64, 64)
    with pytest.warns(pl.PatternWarning, match="at 'stem' every other place still gets"):
        pl.Gradient()(model, x, [0, 1], ["stem"], variant=variant)
    model.reduce = lambda x: x[:, :, ::2, ::2]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pl.Gradient()(model, x, [0, 1], ["stem", "low"], variant=variant)
        pl.Gradient()(model, x, [0, 1], ["input", "stem"])  # nothing was promised


@pytest.mark.parametrize("where", ["backward", "forward"])
def test_the_lattice_that_the_first_convolution_leaves_at_the_input_is_told(where: str) -> None:
    """It stays under the papers' variants, and goes under those that include the first."""
    torch.manual_seed(0)
    model, x = Reduced(lambda x: x[:, :, ::2, ::2]).eval(), torch.randn(2, 3, 64, 64)
    with pytest.warns(
        pl.PatternWarning, match=r"at 'input' every other .* take backward_with_first or forward_with"
    ):
        left = pl.Gradient()(model, x, [0, 1], ["input"], variant=where)["input"]
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        gone = pl.Gradient()(model, x, [0, 1], ["input"], variant=f"{where}_with_first")["input"]
    of = pl.SmoothedDownsampling(where, include_first=True)
    assert torch.equal(gone, pl.Gradient()(model, x, [0, 1], ["input"], variant=of)["input"])
    shares = [pl.checkerboard(maps.abs().sum(1)) for maps in (left, gone)]
    assert (shares[0] > 10 * shares[1]).all()


@pytest.mark.parametrize("step", [3, 4])
def test_a_pattern_of_other_steps_is_warned_of(step: int) -> None:
    torch.manual_seed(0)
    model = Reduced(lambda x: x[:, :, torch.arange(0, x.shape[2], step)][..., torch.arange(0, x.shape[3], step)])
    place = {3: "third", 4: "other"}[step]
    with pytest.warns(pl.PatternWarning, match=f"at 'low' every {place} place still gets"):
        pl.Gradient()(model.eval(), torch.randn(2, 3, 96, 96), [0, 1], ["low"], variant="backward")


class WritingSlices(nn.Module):
    """Writes into a strided slice of a map, of which the map is then used or not."""

    def __init__(self, write: Callable[[torch.Tensor], object], uses: bool = True) -> None:
        super().__init__()
        self.stem, self.down, self.head = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, 2), nn.Linear(4, 3)
        self.write, self.uses = write, uses

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.stem(x) * 1
        part = self.write(h)
        return self.head((self.down(h) if self.uses else part).tanh().mean((2, 3)))


def added(h: torch.Tensor) -> None:
    h[:, :, ::2, ::2] += 1


@pytest.mark.parametrize(
    "write",
    [
        lambda h: h[:, :, ::2, ::2].mul_(3),
        lambda h: h[..., ::2, ::2].relu_(),
        lambda h: h[:, :, ::2, ::2][:, 0].zero_(),
        lambda h: F.relu(h[:, :, ::2, ::2], inplace=True),
        added,
    ],
)
@pytest.mark.parametrize("variant", ["backward", "forward"])
def test_a_write_into_a_strided_slice_is_never_lost_in_silence(write: Callable, variant: str) -> None:
    model, x = seeded(lambda: WritingSlices(write)), torch.randn(2, 3, 10, 10).double()
    with pytest.raises(pl.PellucidError, match=r"slice is averaged|modified inplace"):
        pl.method("gradient")(model, x, 0, variant=variant)


def test_a_slice_may_be_written_where_its_tensor_is_not_used_again() -> None:
    x = torch.randn(2, 3, 10, 10).double()
    in_place, anew = (
        seeded(lambda write=write: WritingSlices(write, uses=False))
        for write in (lambda h: h[:, :, ::2, ::2].relu_(), lambda h: h[:, :, ::2, ::2].relu())
    )
    found, expected = (pl.method("gradient")(one, x, 0, variant="forward")["input"] for one in (in_place, anew))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-14)


class Rolled(nn.Module):
    """A network with two strided convolutions, of which the second may see the mean over the rolls."""

    def __init__(self, rolls: bool) -> None:
        super().__init__()
        self.stem, self.down = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, stride=2, padding=1)
        self.act, self.head, self.rolls = nn.ReLU(), nn.Linear(4, 3), rolls

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h = self.act(self.stem(x))
        return self.head(self.down(rolled_mean(h, (2, 2)) if self.rolls else h).relu().mean((2, 3)))


@pytest.mark.parametrize("rule", [pl.GammaLRP(), pl.AlphaBetaLRP()], ids=str)
@pytest.mark.filterwarnings("ignore::pellucid.CompletenessWarning")
def test_variants_hold_at_convolutions_whose_backward_pass_a_rule_replaces(rule: pl.Rule) -> None:
    """Backward, what the rule sends down is averaged; forward, the rule sees the averaged input."""
    plain, rolling = (seeded(lambda rolls=rolls: Rolled(rolls)) for rolls in (False, True))
    x, method = torch.randn(2, 3, 12, 12).double(), pl.Gradient(rules=(rule,))
    forward = method(plain, x, 0, ["input", "act"], variant="forward")
    expected = method(rolling, x, 0, ["input", "act"])
    for layer in expected:
        torch.testing.assert_close(forward[layer], expected[layer], rtol=1e-11, atol=1e-14)
    backward, original = (method(plain, x, 0, "act", variant=v)["act"] for v in ("backward", "original"))
    torch.testing.assert_close(backward, rolled_mean(original, (2, 2)), rtol=1e-11, atol=1e-14)
    masked = pl.Gradient(rules=(rule, pl.PaddingTrick()))(plain, x, 0, "act")["act"]
    assert not torch.allclose(masked, original)
    assert torch.equal(masked, pl.Gradient(rules=(pl.PaddingTrick(), rule))(plain, x, 0, "act")["act"])


class InDimensions(nn.Module):
    """A strided convolution of two dimensions, written as one of three."""

    def __init__(self, three: bool, rolls: bool = False) -> None:
        super().__init__()
        self.stem, self.down = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, stride=2, padding=1)
        self.head, self.three = nn.Linear(4, 3), three

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        h, down = self.stem(x).tanh(), self.down
        if self.three:
            weight = down.weight[:, :, None]
            y = F.conv3d(h[:, :, None], weight, down.bias, stride=(1, 2, 2), padding=(0, 1, 1))[:, :, 0]
        else:
            y = down(h)
        return self.head(y.relu().mean((2, 3)))


@pytest.mark.parametrize("variant", ["backward", "forward"])
@pytest.mark.parametrize("rules", [(), (pl.GammaLRP(),)], ids=["gradient", "gamma"])
@pytest.mark.filterwarnings("ignore::pellucid.CompletenessWarning")
def test_convolutions_of_other_dimensions_are_smoothed_alike(variant: str, rules: tuple[pl.Rule, ...]) -> None:
    two, three = (seeded(lambda three=three: InDimensions(three)) for three in (False, True))
    x, method = torch.randn(2, 3, 12, 12).double(), pl.Gradient(rules=rules)
    found, expected = (method(one, x, 0, variant=variant)["input"] for one in (three, two))
    torch.testing.assert_close(found, expected, rtol=1e-11, atol=1e-14)
    assert not torch.allclose(found, method(three, x, 0)["input"])
    with pytest.warns(RuleWarning, match="conv3d may be a convolution that PaddingTrick"):
        pl.Gradient(rules=(pl.PaddingTrick(),))(three, x, 0)


@pytest.mark.parametrize("variant", ["backward", "forward"])
def test_a_compiled_convolution_is_named(variant: str) -> None:
    class Deformed(InDimensions):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            h = self.stem(x).tanh()
            offset = h.new_zeros(len(h), 18, 6, 6)
            y = torchvision.ops.deform_conv2d(h, offset, self.down.weight, stride=2, padding=1)
            return self.head((y + self.down(h)).relu().mean((2, 3)))

    with pytest.warns(RuleWarning, match="deform_conv2d.* may be a convolution"):
        pl.Gradient()(seeded(lambda: Deformed(False)), torch.randn(2, 3, 12, 12).double(), 0, variant=variant)
