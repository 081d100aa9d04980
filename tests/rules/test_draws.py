"""Affine operations on drawn rows run once per point: the map is that of every draw on its own, for less work."""

from __future__ import annotations

from collections import Counter
from typing import ClassVar

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

import pellucid as pl
from pellucid.rules.base import Rule, Run
from pellucid.rules.conv import PaddingTrick, SmoothedDownsampling
from pellucid.rules.draws import AffineOnce, DrawnRules, Draws
from pellucid.rules.lrp import EpsilonLRP
from pellucid.rules.norm import FrozenBatchNorm
from pellucid.rules.operations import Operation
from pellucid.rules.relu import GuidedReLU
from pellucid.sampling import Noise, Path, Sampling, reference_images
from tests.networks import images, plain, relative_error, seeded

EXACT = 1e-11
TARGETS = [1, 3]
STEPS, SAMPLES, STD = 6, 5, 0.3
SEED = 4


class Entrance(nn.Module):
    """What a network may do first with its input (B, 3, 14, 14), before the same convolution, ReLU and head."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, padding=1, stride=2)
        self.other = nn.Conv2d(3, 4, 2, stride=2, bias=False)
        self.norm, self.early = nn.BatchNorm2d(4), nn.BatchNorm2d(3)
        self.second = nn.Conv2d(4, 4, 3, padding=1, stride=2)
        self.head = nn.Linear(64, 5)
        generator = torch.Generator().manual_seed(1)
        for norm in (self.norm, self.early):
            norm.running_mean.normal_(0, 0.3, generator=generator)
            norm.running_var.uniform_(0.5, 2, generator=generator)

    def enter(self, x: Tensor) -> Tensor:
        return self.first(x)

    def forward(self, x: Tensor) -> Tensor:
        x = F.silu(self.enter(x))
        return self.head(F.silu(self.second(x)).flatten(1))


class Normalised(Entrance):
    def enter(self, x):
        return self.norm(self.first(x))


class NormalisedFirst(Entrance):
    def enter(self, x):
        return self.first(self.early(x))


class ThroughAReLU(Entrance):
    """The stem as most write it: the ReLU overwrites what the convolution gave."""

    def enter(self, x):
        return F.relu(self.norm(self.first(x)), inplace=True)


class Branching(Entrance):
    """Rows that feed two convolutions and a skip."""

    def enter(self, x):
        return self.first(x) * self.other(x) + F.avg_pool2d(x, 2).mean(1, keepdim=True)


class Overwriting(Entrance):
    """Rows overwritten before the convolution, and its output after it."""

    def enter(self, x):
        x.mul_(2)
        y = self.first(x)
        y.sigmoid_()
        return y + self.other(x)


class Overwritten(Entrance):
    """A view changes a part."""

    def enter(self, x):
        x[:, 0].tanh_()
        return self.first(x.clone())


class OverwrittenData(Entrance):
    """Neither the graph nor the count of changes sees it."""

    def enter(self, x):
        x.data.mul_(1.5)
        x.data = x.data.sin()
        y = self.first(x)
        y.data += 1
        return self.norm(y)


class OverwrittenAlias(Entrance):
    """Other ways to the same memory, through which nothing is counted either."""

    def enter(self, x):
        kept, memory = x.detach(), x.detach().numpy()
        memory *= 0.5
        kept.data[:, 1] = 0
        return self.first(x)


class Doubled(torch.autograd.Function):
    """A function of one's own that overwrites its input."""

    @staticmethod
    def forward(ctx, x):
        ctx.mark_dirty(x)
        return x.mul_(2)

    @staticmethod
    def backward(ctx, gradient):
        return 2 * gradient


class OverwrittenByOnesOwn(Entrance):
    def enter(self, x):
        return self.first(Doubled.apply(x)) + self.other(x)


class OwnWeights(Entrance):
    """Weights that each row makes for itself: nothing is affine here."""

    def enter(self, x):
        own = torch.cat([self.other.weight * row.mean().exp() for row in x])
        rows = F.conv2d(x.flatten(0, 1)[None], own, stride=2, groups=len(x))
        return rows.unflatten(1, (len(x), 4))[0]


class BatchStatistics(Entrance):
    """Statistics of each row on its own, as a normalization in training computes them: not affine either."""

    def enter(self, x):
        rows = [F.batch_norm(row[None], None, None, training=True) for row in x]
        return F.instance_norm(self.first(torch.cat(rows)))


ENTRANCES = [
    Entrance, Normalised, NormalisedFirst, ThroughAReLU, Branching, Overwriting, Overwritten,
    OverwrittenData, OverwrittenAlias, OverwrittenByOnesOwn, OwnWeights, BatchStatistics,
]  # fmt: skip


def one_by_one(method: pl.Gradient, sampling: Sampling, net: nn.Module, x: Tensor, **settings) -> Tensor:
    """The sampling by hand: one draw of one image at a time, each explained on its own."""
    maps = []
    for row in range(len(x)):
        image = x[row : row + 1]
        reference = reference_images(sampling.baseline, x)[:1] if isinstance(sampling, Path) else None
        total = torch.zeros_like(image)
        for draw, weight in enumerate(sampling.weights):
            point = sampling.points(image, reference, torch.tensor([0]), [draw], [SEED])
            total += weight * method(net, point, TARGETS[row], **settings)["input"]
        maps.append(total if reference is None else total * (image - reference))
    return torch.cat(maps)


PATH, NOISE = Path(STEPS), Noise(SAMPLES, STD)


@pytest.mark.filterwarnings("ignore::pellucid.CompletenessWarning")
@pytest.mark.filterwarnings("ignore::pellucid.errors.GradientWarning")  # of what is overwritten unseen
@pytest.mark.parametrize("max_batch", [1, 4, 64])
@pytest.mark.parametrize("sampling", [PATH, NOISE, Path(STEPS, 0.4, "trapezoid")], ids=str)
@pytest.mark.parametrize("entrance", ENTRANCES)
def test_the_map_is_that_of_each_draw_on_its_own(entrance, sampling: Sampling, max_batch: int) -> None:
    net, x = seeded(entrance), images(2, 14)
    expected = one_by_one(pl.Gradient(), sampling, net, x)
    method = pl.Gradient(samplings=(sampling,))
    found = method(net, x, TARGETS[: len(x)], seed=SEED, max_batch=max_batch)["input"]
    assert relative_error(found, expected) < EXACT


@pytest.mark.filterwarnings("ignore::pellucid.CompletenessWarning")
@pytest.mark.parametrize("sampling", [PATH, NOISE], ids=["path", "noise"])
@pytest.mark.parametrize("variant", ["original", "backward", "forward", SmoothedDownsampling(include_first=True)])
@pytest.mark.parametrize("rules", [(), (GuidedReLU(),), (PaddingTrick(),), (EpsilonLRP(),)], ids=str)
def test_under_every_rule(rules: tuple[Rule, ...], variant, sampling: Sampling) -> None:
    net, x = seeded(Normalised), images(2, 14)
    expected = one_by_one(pl.Gradient(rules=rules), sampling, net, x, variant=variant)
    method = pl.Gradient(rules=rules, samplings=(sampling,))
    found = method(net, x, TARGETS, variant=variant, seed=SEED)["input"]
    assert relative_error(found, expected) < EXACT


class Squared(Rule):
    """A rule of one's own under which convolutions are not affine; it does not say that they are."""

    operations: ClassVar[frozenset[str]] = frozenset({"conv2d"})

    def apply(self, operation: Operation, x: Tensor, run: Run) -> Tensor:
        return run(x * x)


def drawn_rows(*rules: Rule) -> tuple[DrawnRules, Tensor, Draws]:
    """Two rows drawn from one point, with the mode that knows them."""
    points = images(1, 4).requires_grad_()
    draws = Draws(points, torch.zeros(2, dtype=torch.long), torch.tensor([0.25, 0.75], dtype=torch.float64))
    rows = draws.tied(lambda: torch.cat([points.detach(), 2 * points.detach()]))
    return DrawnRules(rules, False, nn.Module(), rows, draws), rows, draws


def test_a_rule_counts_as_nonlinear_unless_it_says_otherwise() -> None:
    def serves(*rules: Rule) -> bool:
        return any(isinstance(rule, AffineOnce) for rule in drawn_rows(*rules)[0].rules)

    linear = (PaddingTrick(), SmoothedDownsampling(), SmoothedDownsampling("forward"), FrozenBatchNorm())
    assert serves(*linear)
    assert serves(GuidedReLU())  # not of a convolution
    assert not serves(*linear, Squared())
    net, x = seeded(Entrance), images(2, 14)
    expected = one_by_one(pl.Gradient(rules=(Squared(),)), PATH, net, x)
    found = pl.Gradient(rules=(Squared(),), samplings=(PATH,))(net, x, TARGETS)["input"]
    assert relative_error(found, expected) < EXACT


class Skip(nn.Module):
    """A hidden layer ("stem") whose rows feed a convolution, its normalisation and a skip."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.down, self.head = nn.Conv2d(4, 6, 3, stride=2), nn.Linear(150, 5)
        self.norm.running_var.fill_(0.4)

    def above(self, h: Tensor) -> Tensor:
        return self.head(F.silu(self.down(h + F.silu(self.norm(self.conv(h))))).flatten(1))

    def forward(self, x: Tensor) -> Tensor:
        return self.above(self.stem(x))


@pytest.mark.parametrize("max_batch", [4, 64])
def test_at_a_hidden_layer_with_a_skip(max_batch: int) -> None:
    net, x = seeded(Skip), images(2, 14)
    end, start = net.stem(x), net.stem(0 * x[:1])
    total = torch.zeros_like(end)
    for place, weight in zip(*PATH.nodes, strict=True):
        point = (start + place * (end - start)).requires_grad_()
        (gradient,) = torch.autograd.grad(net.above(point)[[0, 1], TARGETS].sum(), point)
        total += weight * gradient
    found = pl.Gradient(samplings=(PATH,))(net, x, TARGETS, "stem", max_batch=max_batch)["stem"]
    assert relative_error(found, total * (end - start)) < EXACT


class Flops(TorchDispatchMode):
    """Counts by operation, without the hooks on gradients by which FlopCounterMode tells modules apart."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter = Counter()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result, kind = func(*args, **(kwargs or {})), func._overloadpacket
        if kind in flop_registry:
            self.counts[kind] += flop_registry[kind](*args, **(kwargs or {}), out_val=result)
        return result


@pytest.mark.parametrize("max_batch", [5, 64])
def test_paths_run_the_first_convolution_at_their_ends_alone(max_batch: int) -> None:
    """Of a network that is one convolution: forward at m points and m references (one for all), back at m."""
    net = plain(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    x, steps = images(2, 14), 5
    once = 2 * 4 * 3 * 9 * 144  # multiply-adds of the convolution of one image, counted twice
    pl.Gradient()(net, x, TARGETS)  # what is done once for a model
    with Flops() as counter:
        pl.Gradient(samplings=(Path(steps),))(net, x, TARGETS, max_batch=max_batch)
    chunks = [1, 1] if max_batch == 5 else [2]  # points in each: all draws of one, then of the other
    logits = 2 + 1  # of the images and the reference, to say what the sum should be
    forward = sum(points + 1 for points in chunks) + logits
    convolution = counter.counts
    assert convolution[torch.ops.aten.convolution] == forward * once
    assert convolution[torch.ops.aten.convolution_backward] == sum(chunks) * once


def test_noise_runs_back_through_the_first_convolution_once_per_image() -> None:
    net = plain(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    x = images(2, 14)
    once = 2 * 4 * 3 * 9 * 144
    pl.Gradient()(net, x, TARGETS)  # what is done once for a model
    counts = []
    for moment in ("mean", "squared"):
        with Flops() as counter:
            pl.Gradient(samplings=(Noise(SAMPLES, STD, moment=moment),))(net, x, TARGETS)
        counts.append(counter.counts)
    mean, squared = counts
    assert mean[torch.ops.aten.convolution_backward] == 2 * once
    assert squared[torch.ops.aten.convolution_backward] == 2 * SAMPLES * once  # not a sum of gradients


def test_only_the_gradient_where_the_draws_lie_is_summed() -> None:
    """Other layers, other readouts and nested samplings want each row's own gradient."""
    net, x = seeded(Normalised), images(2, 14)
    gradient, hidden = pl.Gradient(), ["input", "first"]
    alone = gradient.smoothed(SAMPLES, STD)(net, x, TARGETS, seed=SEED)["input"]
    together = gradient.smoothed(SAMPLES, STD)(net, x, TARGETS, hidden, seed=SEED)["input"]
    assert relative_error(together, alone) < EXACT
    absolute = pl.Gradient(absolute=True).smoothed(SAMPLES, STD)(net, x, TARGETS, seed=SEED)["input"]
    assert relative_error(absolute, one_by_one(pl.Gradient(absolute=True), NOISE, net, x)) < EXACT
    assert relative_error(absolute, alone) > 0.1


def test_rows_stay_known_while_nothing_could_have_changed_them() -> None:
    mode, rows, draws = drawn_rows()
    with mode:
        copy = rows.clone()
        assert (rows.shape, rows.dim(), rows.device, rows.size(0)) == ((2, 3, 4, 4), 4, copy.device, 2)
        for same in (rows, copy, copy.clone()):
            assert mode.draws_of(same) is draws
        for other in (images(), copy.detach(), rows + 0, rows[:]):
            assert mode.draws_of(other) is None
        assert mode.draws_of(copy) is None  # detached: what it shares could be overwritten unseen
        again = mode.know(rows.clone(), draws)
        assert mode.draws_of(again) is draws
        with torch.no_grad():
            again.zero_()
        assert mode.draws_of(again) is None
    (gradient,) = torch.autograd.grad((rows * torch.tensor([1.0, 10.0]).view(2, 1, 1, 1)).sum(), draws.points)
    assert torch.equal(gradient, torch.full_like(draws.points, 0.25 + 7.5))


@pytest.mark.parametrize("shared", [True, False])
def test_rows_on_paths_are_what_they_would_be_one_by_one(shared: bool) -> None:
    points, references = images(3, 4), images(1 if shared else 3, 4, seed=1)
    of, places = torch.tensor([0, 0, 1, 2, 2]), torch.tensor([0.0, 0.3, 1.0, 0.5, 0.9], dtype=torch.float64)
    path = Path(11, quadrature="linspace")
    found = path.points(points, references, of, [0, 3, 10, 5, 9], [SEED] * 5)
    start = references.expand_as(points)[of]
    expected = start + places.view(-1, 1, 1, 1) * (points[of] - start)
    torch.testing.assert_close(found, expected, rtol=1e-14, atol=1e-14)
    assert torch.equal(found[2], points[1])
    assert torch.equal(found[0], start[0])


def test_it_changes_nothing_for_rows_that_were_not_drawn() -> None:
    mode, _, _ = drawn_rows()
    with mode:
        seeded(Normalised)(images(2, 14).requires_grad_())
    assert not mode.met


@pytest.mark.filterwarnings("ignore::pellucid.CompletenessWarning", "ignore:the model computes in")
@pytest.mark.parametrize("sampling", [PATH, NOISE], ids=["path", "noise"])
def test_under_autocast_it_keeps_to_the_precision_of_each_operation(sampling: Sampling) -> None:
    net, x = seeded(ThroughAReLU).float(), images(2, 14).float()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = one_by_one(pl.Gradient(), sampling, net, x)
        found = pl.Gradient(samplings=(sampling,))(net, x, TARGETS, seed=SEED)["input"]
    full = pl.Gradient(samplings=(sampling,))(net, x, TARGETS, seed=SEED)["input"]
    assert found.dtype == torch.float32
    assert 0 < float((found - full).norm() / full.norm()) < 1.5 * float((expected - full).norm() / full.norm())
