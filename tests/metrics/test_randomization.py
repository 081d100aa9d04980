"""Randomised copies of a model: which weights change, what they are drawn from, and what stays."""

import copy
import itertools

import pytest
import torch
import torchvision
from torch import nn
from torch.nn.utils import parametrizations, prune

import pellucid as pl
from pellucid.errors import InvalidModel, InvalidParameter, UnknownName
from pellucid.metrics.randomization import cascade, groups, randomized

RESNET18 = [
    "fc", "layer4.1", "layer4.0", "layer3.1", "layer3.0", "layer2.1", "layer2.0", "layer1.1", "layer1.0",
    "bn1", "conv1",
]  # fmt: skip
SHAPES = ["fc", "layer3.1", "layer3.0", "layer2.1", "layer2.0", "layer1.1", "layer1.0", "bn1", "conv1"]


@pytest.fixture(scope="module")
def trained() -> nn.Module:
    return pl.load_model("shapes-resnet").model


def state(model: nn.Module) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


def changed(before: dict[str, torch.Tensor], after: nn.Module) -> set[str]:
    found = after.state_dict()
    assert found.keys() == before.keys()
    return {name for name, value in found.items() if not torch.equal(value, before[name])}


def weights_of(before: dict[str, torch.Tensor], names: tuple[str, ...], what: tuple[str, ...]) -> set[str]:
    return {key for key in before if key.rsplit(".", 1)[1] in what and any(key.startswith(f"{n}.") for n in names)}


def test_groups_of_a_residual_network_are_the_reports_eleven() -> None:
    found = groups(torchvision.models.resnet18())
    assert list(found) == RESNET18
    assert found["bn1"] == ("bn1.weight", "bn1.bias")
    assert "layer2.0.downsample.0.weight" in found["layer2.0"]


def test_groups_of_a_plain_network_are_its_layers() -> None:
    with torch.device("meta"):  # their names alone are asked for
        found = groups(torchvision.models.squeezenet1_1())
        vgg = groups(torchvision.models.vgg11_bn(init_weights=False))
    assert list(found)[:2] == ["classifier.1", "features.12"]
    assert list(found)[-1] == "features.0"
    assert list(vgg)[:4] == ["classifier.6", "classifier.3", "classifier.0", "features.26"]
    assert list(vgg)[-2:] == ["features.1", "features.0"]


@pytest.mark.parametrize("make", [torchvision.models.resnet18, torchvision.models.squeezenet1_1])
def test_every_parameter_is_in_one_group(make) -> None:
    model = make()
    members = [name for held in groups(model).values() for name in held]
    assert sorted(members) == sorted(name for name, _ in model.named_parameters())


def test_after_each_step_exactly_the_weights_of_the_named_groups_differ(trained: nn.Module) -> None:
    before = state(trained)
    steps = list(cascade(trained))
    assert [names for names, _ in steps] == [tuple(SHAPES[:k]) for k in range(1, len(SHAPES) + 1)]
    for names, model in steps:
        assert changed(before, model) == weights_of(before, names, ("weight",))
    for (_, previous), (names, model) in itertools.pairwise(steps):
        assert changed(state(previous), model) == weights_of(before, names[-1:], ("weight",))
    assert changed(before, trained) == set()


@pytest.mark.parametrize("way", ["moments", "initializers", "fresh"])
def test_independent_leaves_all_else_trained(trained: nn.Module, way: str) -> None:
    before = state(trained)
    kinds = ("weight",) if way == "moments" else ("weight", "bias")
    steps = list(cascade(trained, "independent", way))
    assert [names for names, _ in steps] == [(name,) for name in SHAPES]
    cascading = [model for _, model in cascade(trained, "cascading", way)]
    for (names, model), cascaded in zip(steps, cascading, strict=False):
        assert changed(before, model) == weights_of(before, names, kinds)
        for name in weights_of(before, names, kinds):  # the same values as in the cascade
            assert torch.equal(model.state_dict()[name], cascaded.state_dict()[name])


def test_weights_are_drawn_from_the_moments_of_the_trained_ones(trained: nn.Module) -> None:
    """Five standard errors of the mean and of the standard deviation of n normal values."""
    *_, (_, last) = cascade(trained)
    found = dict(last.named_parameters())
    assert len(found) > 20
    for name, old in trained.named_parameters():
        if name.endswith("weight"):
            new, n = found[name], old.numel()
            assert abs(float((new.mean() - old.mean()) / old.std())) < 5 / n**0.5
            assert abs(float(new.std() / old.std()) - 1) < 5 / (2 * (n - 1)) ** 0.5
            correlation = torch.corrcoef(torch.stack([new.flatten(), old.flatten()]))[0, 1]
            assert abs(float(correlation)) < 5 / n**0.5


def test_normal_draws_are_those_of_the_formula() -> None:
    """mean + std z: two layers of equal shape and seed-free moments are affine images of normal values."""
    model = nn.Sequential(nn.Linear(50, 40)).double()
    shifted = copy.deepcopy(model)
    with torch.no_grad():
        shifted[0].weight.mul_(3).add_(2)
    ((_, a),), ((_, b),) = cascade(model), cascade(shifted)
    torch.testing.assert_close(b[0].weight, 3 * a[0].weight + 2, rtol=1e-12, atol=1e-12)


def test_biases_are_drawn_only_if_asked_for(trained: nn.Module) -> None:
    before = state(trained)
    for names, model in cascade(trained, biases=True):
        assert changed(before, model) == weights_of(before, names, ("weight", "bias"))


def test_a_single_weight_has_no_spread_and_stays() -> None:
    model = nn.Sequential(nn.Conv2d(1, 1, 1), nn.Linear(3, 2))
    before = state(model)
    *_, (_, last) = cascade(model)
    assert changed(before, last) == {"1.weight"}


def test_drift_redraws_the_layers_above_from_their_random_values(trained: nn.Module) -> None:
    still, drifting = list(cascade(trained)), list(cascade(trained, drift=True))
    first = [dict(steps[0][1].named_parameters())["fc.weight"] for steps in (still, drifting)]
    second = [dict(steps[1][1].named_parameters())["fc.weight"] for steps in (still, drifting)]
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[0], first[1])
    # A new draw, standardised by the first draw's own moments.
    assert abs(float(((second[1] - first[1].mean()) / first[1].std()).mean())) < 5 / first[1].numel() ** 0.5
    assert abs(float(torch.corrcoef(torch.stack([f.flatten() for f in (first[1], second[1])]))[0, 1])) < 0.2


def test_own_initializers_draw_biases_too_and_keep_the_statistics(trained: nn.Module) -> None:
    before = state(trained)
    *_, (_, last) = steps = list(cascade(trained, way="initializers"))
    for names, model in steps:
        assert changed(before, model) == weights_of(before, names, ("weight", "bias"))
    after = last.state_dict()
    assert torch.equal(after["bn1.weight"], torch.ones(24))
    assert torch.equal(after["bn1.bias"], torch.zeros(24))
    bound = (3 * 25) ** -0.5  # nn.Conv2d: uniform in 1 / sqrt(fan in)
    assert bound * 0.98 < float(after["conv1.weight"].abs().max()) <= bound
    assert abs(float(after["conv1.weight"].std()) / (bound / 3**0.5) - 1) < 0.1


def test_a_fresh_network_gives_its_values_and_in_the_end_its_buffers(trained: nn.Module) -> None:
    fresh = copy.deepcopy(trained)
    with torch.no_grad():
        for place, value in enumerate(fresh.state_dict().values()):
            value.fill_(place + 1)
    before, wanted = state(trained), state(fresh)
    steps = list(cascade(trained, way="fresh", fresh=fresh))
    assert [names for names, _ in steps] == [tuple(SHAPES[:k]) for k in range(1, 10)] + [(*SHAPES, "all")]
    for names, model in steps[:-1]:
        changes = changed(before, model)
        assert changes == weights_of(before, names, ("weight", "bias"))
        assert all(torch.equal(model.state_dict()[name], wanted[name]) for name in changes)
    assert changed(wanted, steps[-1][1]) == set()
    assert changed(before, trained) == set()
    assert changed(wanted, fresh) == set()


def test_the_last_fresh_step_resets_the_statistics_of_batch_norms(trained: nn.Module) -> None:
    *_, (_, before_last), (names, last) = cascade(trained, way="fresh")
    assert names[-1] == "all"
    assert changed(state(before_last), last) == {
        name for name in trained.state_dict() if "running" in name or "num_batches" in name
    }
    assert torch.equal(last.bn1.running_mean, torch.zeros(24))
    assert torch.equal(last.bn1.running_var, torch.ones(24))


def test_own_groups_in_own_order_each_parameter_once(trained: nn.Module) -> None:
    before = state(trained)
    wanted = ("layer3.1", "fc", "layer3")
    for k, (names, model) in enumerate(cascade(trained, groups=wanted), 1):
        assert names == wanted[:k]
        assert changed(before, model) == weights_of(before, names, ("weight",))


@pytest.mark.parametrize("way", ["moments", "initializers", "fresh"])
def test_the_same_seed_gives_the_same_copies_and_nothing_else_is_touched(trained: nn.Module, way: str) -> None:
    before, modes = state(trained), [module.training for module in trained.modules()]
    random = torch.get_rng_state()
    *_, (_, first) = cascade(trained, way=way, seed=3)
    *_, (_, again) = cascade(trained, way=way, seed=3)
    *_, (_, other) = cascade(trained, way=way, seed=4)
    *_, (_, double) = cascade(copy.deepcopy(trained).double(), way=way, seed=3)
    assert torch.equal(random, torch.get_rng_state())
    assert changed(state(first), again) == set()
    assert "conv1.weight" in changed(state(first), other)
    assert double.conv1.weight.dtype == torch.float64
    torch.testing.assert_close(double.conv1.weight.float(), first.conv1.weight, rtol=1e-5, atol=1e-6)
    assert changed(before, trained) == set()
    assert [module.training for module in first.modules()] == modes
    assert not any(parameter.requires_grad for parameter in first.parameters())


def test_copies_are_distinct_and_parameters_not_shared_with_the_model(trained: nn.Module) -> None:
    copies = [model for _, model in cascade(trained)]
    pointers = {model.conv1.weight.data_ptr() for model in [trained, *copies]}
    assert len(pointers) == 1 + len(copies)


def test_a_module_registered_twice_is_randomised_once() -> None:
    shared = nn.Linear(4, 4)
    model = nn.Sequential(shared, nn.ReLU(), shared, nn.Linear(4, 2))
    steps = list(cascade(model))
    assert [names for names, _ in steps] == [("3",), ("3", "0")]
    assert steps[-1][1][0].weight is steps[-1][1][2].weight


class Bare(nn.Module):
    """A parameter that no module of torch initialises."""

    def __init__(self) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.ones(3))
        self.fc = nn.Linear(3, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(x.mean((2, 3)) * self.gain)


def test_what_cannot_be_randomised_is_refused_at_once(trained: nn.Module) -> None:
    bare = Bare()
    random = torch.get_rng_state()
    with pytest.raises(InvalidModel, match=r"Bare.*no reset_parameters.*way='moments'"):
        cascade(bare, way="initializers")
    assert torch.equal(random, torch.get_rng_state())
    assert [names for names, _ in cascade(Bare())] == [("fc",)]
    assert [names for names, _ in cascade(Bare(), biases=True)] == [("fc",), ("fc", "gain")]
    fresh = Bare()
    *_, (_, last) = cascade(Bare(), way="initializers", fresh=fresh)
    assert changed(state(fresh), last) == set()
    with pytest.raises(InvalidModel, match="nothing to randomise"):
        cascade(nn.ReLU())
    with pytest.raises(InvalidModel, match=r"no untrained ShapesResNet.*conv1\.weight"):
        cascade(trained, way="fresh", fresh=torchvision.models.resnet18())
    with pytest.raises(UnknownName, match=r"unknown group 'layer5'; did you mean"):
        cascade(trained, groups=["layer5"])
    with pytest.raises(InvalidParameter, match=r"'layer3\.1' holds no parameter"):
        cascade(trained, groups=["layer3", "layer3.1"])
    with pytest.raises(InvalidParameter, match="sequence of module names"):
        cascade(trained, groups="fc")
    with pytest.raises(InvalidParameter, match="order='top'"):
        cascade(trained, "top")
    with pytest.raises(InvalidParameter, match="way='noise'"):
        cascade(trained, way="noise")
    with pytest.raises(InvalidParameter, match="drift are for way='moments'"):
        cascade(trained, way="fresh", drift=True)
    with pytest.raises(InvalidParameter, match="fresh is for way"):
        cascade(trained, fresh=trained)


@pytest.mark.parametrize("way", ["moments", "initializers", "fresh"])
@pytest.mark.parametrize(("down_to", "step"), [("fc", 0), ("layer3.1", 1), ("layer2", 4), ("conv1", 8)])
def test_a_randomized_model_is_the_cascades_copy(trained, way, down_to, step) -> None:
    so_far, expected = next(itertools.islice(cascade(trained, way=way, seed=3), step, None))
    assert so_far[-1] == {"layer2": "layer2.0"}.get(down_to, down_to)
    before = state(trained)
    found = randomized(trained, down_to, way, seed=3)
    assert changed(state(expected), found) == set()
    assert changed(before, found)
    assert changed(before, trained) == set()


def test_a_model_randomized_whole_is_the_cascades_last_copy(trained) -> None:
    for way in ("moments", "fresh"):
        *_, (_, last) = cascade(trained, way=way)
        assert changed(state(last), randomized(trained, "all", way)) == set()
    running = [name for name in state(trained) if name.endswith("running_var")]
    assert set(running) <= changed(state(trained), randomized(trained, "all", "fresh"))  # wholly fresh
    assert not set(running) & changed(state(trained), randomized(trained, "all"))


@pytest.mark.parametrize(
    ("wrong", "near"), [("layer4", "layer3"), ("layer2.0.conv1", "layer2.0"), ("input", "layer3"), ("", "layer3")]
)
def test_a_block_that_cannot_be_randomized_down_to_is_named_with_the_nearest(trained, wrong, near) -> None:
    with pytest.raises(UnknownName, match="block to randomize down to") as caught:
        randomized(trained, wrong)
    assert near in str(caught.value).removeprefix(f"unknown block to randomize down to {wrong!r}")
    with pytest.raises(InvalidParameter, match="way"):
        randomized(trained, "fc", "other")


def _normed(layer: nn.Module) -> nn.Module:
    return parametrizations.weight_norm(layer)


def _pruned(layer: nn.Module) -> nn.Module:
    # Frozen first: what is computed of a weight that learns cannot be copied.
    return prune.l1_unstructured(layer.requires_grad_(False), "weight", amount=0.3)


@pytest.mark.parametrize("make", [_normed, _pruned, parametrizations.spectral_norm])
def test_a_weight_that_is_computed_from_others_is_randomized_as_any(make) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), make(nn.Conv2d(4, 4, 3)), nn.Flatten(), nn.Linear(16, 2))
    model.eval().requires_grad_(False)
    steps = {names[-1]: copy for names, copy in cascade(model, "independent")}
    assert list(steps) == ["4", "2", "0"]
    x = torch.randn(2, 3, 6, 6)
    inside = model[:2](x)
    assert not torch.allclose(steps["2"][2](inside), model[2](inside), atol=0.05)
    assert torch.equal(steps["2"][2].bias, model[2].bias)


def test_weights_of_attention_and_of_recurrent_layers_are_randomized() -> None:
    model = nn.ModuleDict({"attention": nn.MultiheadAttention(8, 2), "recurrent": nn.GRU(8, 4)}).eval()
    before = state(model)
    *_, (_, last) = cascade(model)
    kept = {name for name in before if "weight" in name} - changed(before, last)
    assert not kept
    assert not any("bias" in name for name in changed(before, last))


def test_an_initializer_that_leaves_a_weight_as_it_was_is_refused() -> None:
    model = nn.Sequential(_pruned(nn.Conv2d(3, 4, 3)), nn.Flatten(), nn.Linear(16, 2)).eval().requires_grad_(False)
    with pytest.raises(InvalidModel, match="leaves 'weight_orig' as it was trained"):
        cascade(model, way="initializers")


def test_a_model_that_cannot_be_copied_is_refused_with_the_way_out() -> None:
    """A pruned weight is computed anew in each pass, and kept as a tensor with a graph."""
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.Flatten(), nn.Linear(16, 2)).eval()
    prune.l1_unstructured(model[0], "weight", amount=0.3)
    model(torch.zeros(1, 3, 4, 4))
    with pytest.raises(InvalidModel, match=r"cannot be copied, which randomizing takes .*requires_grad_\(False\)"):
        list(cascade(model))
    model.requires_grad_(False)(torch.zeros(1, 3, 4, 4))
    assert len(list(cascade(model))) == 2


class ByHand(nn.Module):
    """Weights that are not called so."""

    def __init__(self) -> None:
        super().__init__()
        self.w1, self.w2 = (nn.Parameter(torch.randn(8, count, 3, 3)) for count in (3, 8))
        self.fc = nn.Linear(8, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.fc(nn.functional.conv2d(nn.functional.conv2d(x, self.w1), self.w2).mean((2, 3)))


def test_weights_that_are_not_called_so_are_told() -> None:
    net = ByHand().eval()
    with pytest.warns(
        pl.errors.WeightsWarning, match="w1, w2 stay trained in the copies.*biases=True draws every"
    ):
        list(pl.cascade(net))
    *_, (_, copy) = pl.cascade(net, biases=True)
    assert not torch.equal(copy.w1, net.w1)
    assert not torch.equal(copy.w2, net.w2)


def test_a_function_that_holds_modules_is_refused() -> None:
    """A copy shares it, and it runs the trained layers."""
    net = nn.Module()
    net.conv = nn.Conv2d(3, 4, 3)
    net.body = lambda x: net.conv(x)
    with pytest.raises(InvalidModel, match=r"'body' is a function that holds modules.*make it a method"):
        next(pl.cascade(net))
