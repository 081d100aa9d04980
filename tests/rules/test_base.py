"""What every rule relies on: its input, and the modules that it is confined to."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import ClassVar

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pellucid as pl
from pellucid.rules.base import BackwardRule, Rule, Rules
from pellucid.rules.operations import RECTIFIERS, Operation
from tests.networks import attributed, images, plain, relative_error, seeded

EXACT = 1e-13


@dataclass(frozen=True)
class Doubled(BackwardRule):
    """Twice the gradient of a ReLU, which a formula of the input tells."""

    operations: ClassVar[frozenset[str]] = RECTIFIERS

    def propagate(self, operation: Operation, x: Tensor, y: Tensor, gradient: Tensor) -> Tensor:
        return 2 * gradient * (x > 0)


@dataclass(frozen=True)
class Forgetful(Doubled):
    """It says that it does not read its input, and reads it."""

    reads_input: ClassVar[bool] = False


class Block(nn.Module):
    def __init__(self, inplace: bool = False, act: nn.Module | None = None) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 3, 3, padding=1)
        self.act = act or nn.ReLU(inplace)

    def forward(self, x: Tensor) -> Tensor:
        return F.silu(self.act(self.conv(x)) + x)


class Stages(nn.Module):
    """Blocks in containers, an operation of the network's own, and a block that a list holds."""

    def __init__(self, inplace: bool = False, act: nn.Module | None = None) -> None:
        super().__init__()
        self.stage1 = nn.Sequential(Block(inplace, act), Block(inplace, act))
        self.stage2 = nn.Sequential(Block(inplace, act), Block(inplace, act))
        self.rest = nn.ModuleList([Block(inplace, act)])
        self.head = nn.Linear(3, 4)

    def forward(self, x: Tensor) -> Tensor:
        x = self.stage2(self.stage1(x))
        return self.head(F.relu(self.rest[0](x)).mean((2, 3)))


def doubling(patterns: tuple[str, ...], net: Stages, x: Tensor) -> Tensor:
    return pl.Gradient(rules=(Doubled().at(*patterns),))(net, x, [0, 1])["input"]


class Twice(nn.Module):
    """A ReLU and its gradient's double, as a module: what a confined rule must make of the modules it is for."""

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(x)
        return y + (y - y.detach())


@pytest.mark.parametrize("inplace", [False, True])
def test_a_formula_gets_the_input_of_its_operation_also_of_one_in_place(inplace: bool) -> None:
    model = seeded(lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(inplace), nn.Flatten(), nn.Linear(144, 3)))
    x = images(2, 8)
    found = pl.Gradient(rules=(Doubled(),))(model, x, [0, 1])["input"]
    assert relative_error(found, 2 * attributed(model, x, [0, 1])["input"]) < EXACT


def test_a_formula_that_reads_an_input_it_did_not_ask_for_fails_loudly() -> None:
    model = seeded(lambda: nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)))
    with pytest.raises(TypeError, match="NoneType"):
        pl.Gradient(rules=(Forgetful(),))(model, images(2, 8), 0)


@pytest.mark.parametrize(
    ("patterns", "within"),
    [
        (("stage1",), ["stage1.0", "stage1.1"]),
        (("stage[12].*",), ["stage1.0", "stage1.1", "stage2.0", "stage2.1"]),
        (("stage*.0",), ["stage1.0", "stage2.0"]),
        (("stage1.0", "rest"), ["stage1.0", "rest.0"]),
        (("*.1.act",), ["stage1.1", "stage2.1"]),
        (("*",), ["stage1.0", "stage1.1", "stage2.0", "stage2.1", "rest.0"]),
    ],
)
@pytest.mark.parametrize("inplace", [False, True])
def test_a_confined_rule_acts_inside_the_named_modules_alone(
    patterns: tuple[str, ...], within: list[str], inplace: bool
) -> None:
    """Also in the modules of a list, which itself never runs; not on the network's own operations."""
    net, twin, x = seeded(lambda: Stages(inplace)), seeded(Stages), images(2, 6)
    rule = pl.GuidedReLU().at("*.*.act", "rest.0.act")  # the SiLUs are rectifiers, too
    assert pl.Gradient(rules=(rule,))(net, x, [0, 1])["input"].any()
    acts = [f"{block}.act" for block in within]
    for act in acts:
        twin.get_submodule(act.rpartition(".")[0]).act = Twice()
    narrowed = Doubled().at(*patterns).at("*.*.act")
    found = pl.Gradient(rules=(narrowed,))(net, x, [0, 1])["input"]
    assert relative_error(found, attributed(twin, x, [0, 1])["input"]) < EXACT


def test_a_shared_module_counts_where_it_is_called() -> None:
    act = nn.ReLU()
    shared, apart, x = seeded(lambda: Stages(act=act)), seeded(Stages), images(2, 6)
    for patterns in (("stage2.*.act",), ("rest.0.act", "stage1.1.act")):
        assert torch.equal(doubling(patterns, shared, x), doubling(patterns, apart, x))


def test_rules_at_different_places_compose_and_two_at_one_place_do_not() -> None:
    model, x = seeded(Stages), images(2, 6)
    rules = (pl.GuidedReLU().at("stage2"), pl.DeconvReLU().at("stage1", "rest"))
    found = pl.Gradient(rules=rules)(model, x, 1, layers=["input", "stage1"])
    assert found["input"].any()
    only_above = pl.Gradient(rules=(rules[0], pl.DeconvReLU().at("rest")))(model, x, 1, layers="stage1")
    assert torch.equal(found["stage1"], only_above["stage1"])
    with pytest.raises(pl.PellucidError, match="each replace the backward pass"):
        pl.Gradient(rules=(pl.GuidedReLU().at("stage2"), pl.DeconvReLU().at("stage2.1")))(model, x, 1)


def test_a_confined_rule_is_a_value() -> None:
    rule = pl.EpsilonLRP().at("layer[34].*")
    assert repr(rule) == str(rule) == "EpsilonLRP(epsilon=0.0001).at('layer[34].*')"
    assert rule == pl.EpsilonLRP().at("layer[34].*")
    assert len({rule, pl.EpsilonLRP().at("layer[34].*"), pl.EpsilonLRP(), pl.EpsilonLRP().at("layer3")}) == 3
    assert (rule.linear, rule.required, rule.replaces_backward) == (False, True, True)
    assert not pl.SmoothedDownsampling("forward").at("stage1").alters_gradient
    assert pl.PaddingTrick().at("stage1").linear
    assert pl.RescaleElementwise().at("stage1").needs_reference
    with pytest.raises(pl.PellucidError, match="name at least one module"):
        pl.EpsilonLRP().at()


def test_a_confined_rule_that_meets_nothing_names_its_pattern_and_near_modules() -> None:
    model, x = seeded(Stages), images(2, 6)
    for rule in (pl.GuidedReLU(), pl.RescaleElementwise()):  # whether it must be met or not
        with pytest.raises(pl.RuleNotApplied, match=r"'stag1'.*did you mean stage1"):
            pl.Gradient(rules=(rule.at("stage1", "stag1"),))(model, x, 1)
    with pytest.raises(pl.RuleNotApplied, match=r"at\('head'\).*those of its kind in stage1\.0\.act"):
        pl.Gradient(rules=(pl.GuidedReLU().at("head"),))(model, x, 1)
    with pytest.raises(pl.PellucidError, match="give Rules their model"), Rules([pl.GuidedReLU().at("head")]):
        model(x)


def _hooks(model: nn.Module) -> int:
    kinds: list[Callable[[nn.Module], dict[int, object]]] = [
        lambda m: m._forward_hooks,
        lambda m: m._forward_pre_hooks,
        lambda m: m._forward_hooks_always_called,
        lambda m: m._forward_hooks_with_kwargs,
    ]
    return sum(len(kind(module)) for module in model.modules() for kind in kinds)


def test_no_hook_outlives_a_call_or_an_exception_and_threads_do_not_see_each_other() -> None:
    model, x = seeded(Stages), images(2, 6)
    state = {name: value.clone() for name, value in model.state_dict().items()}
    methods = [pl.Gradient(rules=(Doubled().at(f"stage{i % 2 + 1}.*.act"),)) for i in range(8)]
    expected = [method(model, x, 1)["input"] for method in methods]
    with ThreadPoolExecutor(4) as pool:
        found = list(pool.map(lambda method: method(model, x, 1)["input"], methods))
    assert all(torch.equal(one, other) for one, other in zip(expected, found, strict=True))
    for broken in (x[:, :2], images(2, 6)[..., :0]):
        with pytest.raises(Exception):  # noqa: B017, PT011
            methods[0](model, broken, 1)
    assert _hooks(model) == 0
    assert all(torch.equal(value, state[name]) for name, value in model.state_dict().items())


@pytest.mark.filterwarnings("ignore::pellucid.CompletenessWarning")  # the twin's gradient is not its function's
@pytest.mark.filterwarnings("ignore::pellucid.errors.GradientWarning")  # of the twin, which doubles by hand
def test_a_path_at_a_hidden_layer_keeps_rules_where_they_are() -> None:
    """Rows enter at their layer, above an empty batch: modules below and above it run by their names."""
    model, x = seeded(Stages), images(2, 6)
    method = pl.Gradient(rules=(Doubled().at("stage2.1.act"),)).integrated(3)
    found = method(model, x, 1, layers="stage2.0")["stage2.0"]
    twin = seeded(Stages)
    twin.stage2[1].act = Twice()
    assert relative_error(found, pl.Gradient().integrated(3)(twin, x, 1, layers="stage2.0")["stage2.0"]) < EXACT


def test_a_variant_may_be_confined_where_models_are_explained_and_where_they_are_scored() -> None:
    model = seeded(
        lambda: nn.Sequential(
            nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3, stride=2), nn.Flatten(), nn.Linear(16, 3)
        )
    )
    x = images(2, 8)
    whole, confined = pl.SmoothedDownsampling("forward"), pl.SmoothedDownsampling("forward").at("2")
    maps = [pl.Gradient()(model, x, 1, variant=rule)["input"] for rule in (whole, confined)]
    assert torch.equal(*maps)
    curves = [pl.deletion(model, x, 1, maps[0].sum(1), steps=4, variant=rule).scores for rule in (whole, confined)]
    assert torch.equal(*curves)


class OfParameters(nn.Module):
    """A network whose weights are functions of its parameters, beside which no other rectifier runs."""

    def __init__(self, act: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.act = act
        self.raw = nn.Parameter(torch.randn(4, 3, 3, 3))
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(torch.tanh(F.conv2d(x, self.act(self.raw))).mean((2, 3)))


@pytest.mark.parametrize("act", [F.softplus, F.relu, lambda w: F.relu(w.view_as(w)) + 1, lambda w: F.relu(w * 2)])
@pytest.mark.parametrize("method", ["guided_backprop", "deconvnet", "rectgrad(q=50, padding_trick=False)"])
def test_a_rule_met_on_parameters_alone_did_not_apply(method: str, act: Callable[[Tensor], Tensor]) -> None:
    with pytest.raises(pl.RuleNotApplied, match="met no operation of its kind"):
        pl.method(method)(seeded(lambda: OfParameters(act)).requires_grad_(True), images(1, 8), 0)


def test_what_an_image_is_written_into_is_a_constant_no_more() -> None:
    class Padded(OfParameters):
        def forward(self, x: Tensor) -> Tensor:
            board = torch.zeros(len(x), 3, 10, 10, dtype=x.dtype)
            board[:, :, 1:-1, 1:-1] = x
            return self.head(F.conv2d(F.relu(board), self.raw).mean((2, 3)))

    model, x = seeded(lambda: Padded(F.relu)), images(1, 8)
    guided = pl.method("guided_backprop")(model, x, 0)["input"]
    inner = F.conv_transpose2d(model.head.weight[0].view(1, 4, 1, 1).expand(1, 4, 8, 8) / 64, model.raw)
    wanted = inner[..., 1:-1, 1:-1].clamp(min=0) * (x > 0)
    assert relative_error(guided, wanted.detach()) < EXACT


class Stems(nn.Module):
    """A strided stem, after a convolution of a parameter or on two scales of an image."""

    def __init__(self, of_parameter: bool = False) -> None:
        super().__init__()
        self.stem, self.other = nn.Conv2d(3, 4, 3, stride=2), nn.Conv2d(3, 3, 3, padding=1)
        self.second = nn.Conv2d(4, 4, 3, stride=2)
        self.start = nn.Parameter(torch.randn(1, 3, 17, 17)) if of_parameter else None
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor, smooth: Callable[[Tensor], Tensor] = lambda x: x) -> Tensor:
        if self.start is not None:
            h = self.stem(x + self.other(self.start)).tanh()
        else:
            h = self.stem(x).tanh() + self.stem(x.flip(-1)).tanh()
        return self.head(self.second(smooth(h)).tanh().mean((2, 3)))


@pytest.mark.parametrize("of_parameter", [False, True])
def test_the_stem_is_the_first_layer_that_sees_the_image_in_each_of_its_runs(of_parameter: bool) -> None:
    model, x = seeded(lambda: Stems(of_parameter)), images(2, 17)
    leaf = x.clone().requires_grad_()
    rolls = lambda x: sum(x.roll((i, j), (-2, -1)) for i in (0, 1) for j in (0, 1)) / 4  # noqa: E731
    (wanted,) = torch.autograd.grad(model(leaf, rolls)[:, 0].sum(), leaf)
    found = pl.method("gradient")(model, x, 0, variant="forward")["input"]
    assert relative_error(found, wanted) < EXACT


class SideBySide(nn.Module):
    """Two stems of different strides, then a strided convolution of both."""

    def __init__(self, added: bool) -> None:
        super().__init__()
        self.one = nn.Conv2d(3, 4, 3, stride=2, padding=1)
        self.two = nn.Conv2d(3, 4, 5, stride=2 if added else 4, padding=2)
        self.second, self.added = nn.Conv2d(4 if added else 8, 4, 3, stride=2), added
        self.head = nn.Linear(4, 3)

    def forward(self, x: Tensor, smooth: Callable[[Tensor], Tensor] = lambda x: x) -> Tensor:
        x = (x - 0.1) / 0.5
        one, two = self.one(x).tanh(), self.two(x.flip(-1) if self.added else x).tanh()
        h = one + two if self.added else torch.cat([one, two.repeat_interleave(2, 2).repeat_interleave(2, 3)], 1)
        return self.head(self.second(smooth(h)).tanh().mean((2, 3)))


class Averaged(torch.autograd.Function):
    """A tensor as it is, whose gradient is averaged over the rolls of a stride of 2."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        return rolled(gradient)


def rolled(x: Tensor) -> Tensor:
    return sum(x.roll((i, j), (-2, -1)) for i in (0, 1) for j in (0, 1)) / 4


@pytest.mark.parametrize("variant", ["backward", "forward"])
@pytest.mark.parametrize("added", [True, False])
def test_stems_side_by_side_are_each_the_first(variant: str, added: bool) -> None:
    model, x = seeded(lambda: SideBySide(added)), images(2, 16)
    leaf = x.clone().requires_grad_()
    smooth = rolled if variant == "forward" else Averaged.apply
    (wanted,) = torch.autograd.grad(model(leaf, smooth)[:, 0].sum(), leaf)
    assert relative_error(pl.method("gradient")(model, x, 0, variant=variant)["input"], wanted) < EXACT


@pytest.mark.filterwarnings("ignore::pellucid.CompletenessWarning")
def test_the_box_of_pixels_holds_at_every_stem() -> None:
    """Of a sum of two stems the box shares what each got as it does of each alone."""

    class Alone(nn.Module):
        def __init__(self, stem: nn.Conv2d) -> None:
            super().__init__()
            self.stem = stem

        def forward(self, x: Tensor) -> Tensor:
            return self.stem(x).mean((2, 3))

    both = seeded(lambda: nn.ModuleList([nn.Conv2d(3, 4, 3), nn.Conv2d(3, 4, 5)]))

    class Summed(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return both[0](x).mean((2, 3)) + both[1](x).mean((2, 3))

    method, x = pl.Gradient(rules=(pl.ZBoxLRP(-5.0, 5.0),), multiply=True), images(2, 8)
    parts = [method(Alone(stem).eval(), x, 0)["input"] for stem in both]
    assert relative_error(method(Summed().eval(), x, 0)["input"], parts[0] + parts[1]) < EXACT


class TwoHeads(nn.Module):
    """A network whose last rectifier is that of a head that is not explained."""

    def __init__(self, second: bool) -> None:
        super().__init__()
        self.stem, self.body = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3)
        self.head, self.second = nn.Linear(4, 3), second

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        h = self.body(self.stem(x).relu()).relu().mean((2, 3))
        return self.head(h), (h * 2).relu() if self.second else h


def test_a_head_that_is_not_explained_is_not_the_last() -> None:
    method = pl.Gradient(rules=(pl.RectifiedReLU(q=30, gate="mod"),))
    one, two = (seeded(lambda second=second: TwoHeads(second)) for second in (False, True))
    pick = pl.Classifier(one, lambda out: out[0]), pl.Classifier(two, lambda out: out[0])
    x = images(2, 12)
    assert torch.equal(method(pick[0], x, 0)["input"], method(pick[1], x, 0)["input"])


@dataclass(frozen=True)
class Alone(Rule):
    """Runs its operation by itself, whatever else should act there."""

    operations: ClassVar[frozenset[str]] = frozenset({"conv2d"})

    def apply(self, operation: Operation, x: Tensor, run: Callable[[Tensor], Tensor]) -> Tensor:
        return operation.run(x)


@pytest.mark.parametrize("other", [pl.GammaLRP(), pl.SmoothedDownsampling(include_first=True)], ids=str)
def test_a_rule_to_which_another_leaves_nothing_is_refused(other: Rule) -> None:
    model = plain(nn.Conv2d(3, 4, 3, stride=2), nn.Flatten(), nn.Linear(64, 3))
    with pytest.raises(pl.RuleNotApplied, match=r"cannot act at conv2d, of which .*Alone.* leaves nothing to it"):
        pl.Gradient(rules=(Alone(), other))(model, images(2, 9), 0)


class Halves(nn.Module):
    """Runs a module by another method than ``forward``."""

    class Inner(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.act = nn.Conv2d(3, 4, 3), nn.ReLU()

        def features(self, x: torch.Tensor) -> torch.Tensor:
            return torch.relu(self.act(self.conv(x)) - 0.1)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.features(x).mean((2, 3))

    def __init__(self, whole: bool) -> None:
        super().__init__()
        self.net, self.whole = self.Inner(), whole

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.net(x) if self.whole else self.net.features(x).mean((2, 3))


def test_a_module_that_runs_by_another_method_is_no_place_for_a_rule() -> None:
    x = images(2, 8).float()
    whole, parts = (seeded(lambda whole=whole: Halves(whole)) for whole in (True, False))
    confined = pl.Gradient(rules=(pl.GuidedReLU().at("net"),))
    assert torch.equal(
        confined(whole.float(), x, 0)["input"], pl.method("guided_backprop")(whole.float(), x, 0)["input"]
    )
    with pytest.raises(pl.RuleNotApplied, match=r"runs 'net' by another of its methods.*name its parts"):
        confined(parts.float(), x, 0)
