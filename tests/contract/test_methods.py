"""What every method of the catalogue promises, whatever it computes."""

import copy
import inspect
import warnings

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import pellucid as pl
from pellucid.errors import InvalidImage, InvalidLayer, InvalidModel, InvalidParameter, InvalidTarget, UnknownName
from pellucid.methods.baselines import Random

FAST = {"steps": 3, "samples": 2, "q": 60.0}
LAYERS = ["input", "stem", "block"]


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(6, 6, 3, padding=1)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.relu(x + self.conv(self.relu(x.clone())))


class Net(nn.Module):
    """Everything a rule needs: padding, strides, a shared in-place ReLU, a skip, batch norm, both poolings."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 6, 3, padding=1)
        self.norm = nn.BatchNorm2d(6)
        self.down = nn.Conv2d(6, 6, 3, stride=2, padding=1)
        self.block = Block()
        self.dropout = nn.Dropout(0.5)
        self.fc = nn.Linear(6, 4)
        nn.init.uniform_(self.norm.running_mean, -0.5, 0.5)
        nn.init.uniform_(self.norm.running_var, 0.5, 2)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.max_pool2d(F.relu(self.norm(self.stem(x))), 2)
        return self.fc(self.dropout(self.block(self.down(x)).mean((2, 3))))


@pytest.fixture
def net() -> nn.Module:
    return Net().eval()


@pytest.fixture
def images() -> torch.Tensor:
    return torch.randn(3, 3, 16, 16)


def cheap(name: str) -> pl.Method:
    settings = {}
    for key, value in FAST.items():
        try:
            pl.method(name, **{key: value})
        except UnknownName:
            continue
        settings[key] = value
    return pl.method(name, **settings)


def explain(name: str, net: nn.Module, images: torch.Tensor, **call) -> pl.Attributions:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", pl.CompletenessWarning)
        warnings.simplefilter("ignore", pl.EmptyMapWarning)
        return cheap(name)(net, images, call.pop("targets", [0, 1, 2]), call.pop("layers", LAYERS), **call)


def state(model: nn.Module) -> dict:
    hooks = {
        (name, kind): list(getattr(module, kind))
        for name, module in model.named_modules()
        for kind in vars(module)
        if kind.endswith("hooks")
    }
    tensors = {name: value.clone() for name, value in model.state_dict(keep_vars=False).items()}
    grads = {name: (p.requires_grad, p.grad) for name, p in model.named_parameters()}
    return {"hooks": hooks, "tensors": tensors, "grads": grads, "modes": [m.training for m in model.modules()]}


def assert_same(before: dict, after: dict) -> None:
    assert before["hooks"] == after["hooks"]
    assert before["grads"] == after["grads"]
    assert before["modes"] == after["modes"]
    assert before["tensors"].keys() == after["tensors"].keys()
    for name, value in before["tensors"].items():
        assert torch.equal(value, after["tensors"][name]), name


everything = pytest.mark.parametrize("name", pl.METHODS)


@everything
def test_attribution_has_the_layers_shape_and_is_finite(name: str, net: nn.Module, images: torch.Tensor) -> None:
    found = explain(name, net, images)
    assert {layer: tuple(value.shape) for layer, value in found.items()} == {
        "input": (3, 3, 16, 16), "stem": (3, 6, 16, 16), "block": (3, 6, 4, 4),
    }  # fmt: skip
    for value in found.values():
        assert value.isfinite().all()
        assert not value.requires_grad
        assert pl.heatmap(value, size=(16, 16)).shape == (3, 16, 16)


@everything
def test_model_and_random_state_are_untouched(name: str, net: nn.Module, images: torch.Tensor) -> None:
    net.stem.weight.requires_grad_(False)
    before, random = state(net), torch.get_rng_state()
    kept = images.clone()
    explain(name, net, images)
    assert_same(before, state(net))
    assert torch.equal(random, torch.get_rng_state())
    assert torch.equal(images, kept)


@everything
def test_model_is_untouched_after_an_exception(name: str, net: nn.Module, images: torch.Tensor) -> None:
    net.fc = nn.Linear(5, 4)
    before = state(net)
    with pytest.raises(InvalidModel, match="shapes"):
        explain(name, net, images)
    assert_same(before, state(net))


@everything
def test_same_seed_same_map_and_another_seed_another_where_there_is_noise(
    name: str, net: nn.Module, images: torch.Tensor
) -> None:
    first, again = explain(name, net, images, seed=3), explain(name, net, images, seed=3)
    other = explain(name, net, images, seed=4)
    method = pl.method(name)
    noisy = isinstance(method, Random) or any(sampling.is_random for sampling in method.samplings)
    for layer in LAYERS:
        assert torch.equal(first[layer], again[layer])
    assert torch.equal(first["input"], other["input"]) != noisy


@everything
def test_a_map_depends_neither_on_its_batch_nor_on_max_batch(
    name: str, net: nn.Module, images: torch.Tensor
) -> None:
    net, images = net.double(), images.double()
    whole = explain(name, net, images, seed=[7, 8, 9])
    small = explain(name, net, images, seed=[7, 8, 9], max_batch=2)
    alone = explain(name, net, images[1:2], targets=[1], seed=8)
    shuffled = explain(name, net, images.flip(0), targets=[2, 1, 0], seed=[9, 8, 7])
    for layer in LAYERS:
        torch.testing.assert_close(small[layer], whole[layer], rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(alone[layer], whole[layer][1:2], rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(shuffled[layer].flip(0), whole[layer], rtol=1e-9, atol=1e-12)


@everything
def test_layers_explained_together_equal_layers_explained_alone(
    name: str, net: nn.Module, images: torch.Tensor
) -> None:
    together = explain(name, net, images)
    for layer in LAYERS:
        alone = explain(name, net, images, layers=layer)
        torch.testing.assert_close(alone[layer], together[layer], rtol=1e-5, atol=1e-7)


# A hard threshold may let another unit pass when its score moves by a rounding error.
THRESHOLDS = {"rectgrad", "rectgrad_prr"}


@pytest.mark.parametrize("name", [name for name in pl.METHODS if name not in THRESHOLDS])
def test_single_precision_agrees_with_double(name: str, net: nn.Module, images: torch.Tensor) -> None:
    single = explain(name, net, images)
    double = explain(name, copy.deepcopy(net).double(), images.double())
    for layer in LAYERS:
        assert single[layer].dtype == torch.float32
        scale = double[layer].abs().max()
        torch.testing.assert_close(single[layer] / scale, (double[layer] / scale).float(), rtol=0, atol=1e-4)


@everything
def test_auto_halves_the_rows_of_passes_until_they_fit(name: str, net: nn.Module, images: torch.Tensor) -> None:
    expected, model = explain(name, net, images, seed=[7, 8, 9]), copy.deepcopy(net)
    refused = []

    def refuse(module: nn.Module, args: tuple[torch.Tensor]) -> None:
        if len(args[0]) > 2:
            refused.append(len(args[0]))
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB.")

    for module in model.modules():
        if not list(module.children()):
            module.register_forward_pre_hook(refuse)
    found = explain(name, model, images, seed=[7, 8, 9], max_batch="auto")
    assert max(refused) > 2
    for layer, value in expected.items():
        torch.testing.assert_close(found[layer], value, rtol=1e-4, atol=1e-4 * float(value.abs().max()))
    refused.clear()
    explain(name, model, images, seed=[7, 8, 9], max_batch="auto")
    assert not refused  # what fitted is remembered
    with pytest.raises(pl.errors.OutOfMemory, match=r"max_batch=3: the memory of cpu .* give 'auto'"):
        explain(name, model, images, max_batch=3)


@everything
@pytest.mark.parametrize("max_batch", [1, 5])
def test_max_batch_bounds_every_forward_pass(
    name: str, max_batch: int, net: nn.Module, images: torch.Tensor
) -> None:
    rows = []
    for module in net.modules():
        if not list(module.children()):
            module.register_forward_pre_hook(lambda _, args: rows.append(len(args[0])))
    explain(name, net, images, max_batch=max_batch)
    explain(name, net, images, targets="auto", max_batch=max_batch)
    assert max(rows) <= max_batch


@everything
@pytest.mark.parametrize("variant", pl.VARIANTS)
def test_every_method_runs_on_every_variant(name: str, variant: str, net: nn.Module, images: torch.Tensor) -> None:
    found = explain(name, net, images, variant=variant)
    original = explain(name, net, images)
    # Above the strided convolution the backward variant changes nothing.
    assert torch.equal(found["block"], original["block"]) or variant.startswith("forward")
    blind = name in ("random", "edges")
    assert torch.equal(found["stem"], original["stem"]) == (variant == "original" or blind)


@everything
def test_settings_and_repr_say_what_a_method_is(name: str) -> None:
    method = pl.method(name)
    assert repr(method).startswith(type(method).__name__)
    assert pl.METHODS[name].source


def test_a_promised_sum_comes_with_its_residual(net: nn.Module, images: torch.Tensor) -> None:
    promising = {name for name in pl.METHODS if explain(name, net, images).residuals}
    relevance = {"lrp_epsilon", "attnlrp"}  # which is the logit, but for what biases keep
    assert promising == {"deeplift", "integrated_gradients", "smoothed_integrated_gradients"} | relevance
    for name in sorted(promising):
        told = explain(name, net, images, variant="backward")
        assert not told.residuals
        assert "SmoothedDownsampling" in told.unchecked
    assert not any(explain(name, net, images).unchecked for name in pl.METHODS)
    assert explain("integrated_gradients", net, images, variant="forward").residuals
    found = explain("deeplift", net.double(), images.double())
    for residual in found.residuals.values():
        assert residual.abs().max() < 1e-12


def test_calls_inside_no_grad_and_inference_mode(net: nn.Module, images: torch.Tensor) -> None:
    expected = pl.Gradient()(net, images, 0)["input"]
    with torch.no_grad():
        assert torch.equal(pl.Gradient()(net, images, 0)["input"], expected)
    with torch.inference_mode():
        assert torch.equal(pl.Gradient()(net, images.clone(), 0)["input"], expected)


def test_the_prefix_of_a_hidden_path_runs_once_per_image(net: nn.Module, images: torch.Tensor) -> None:
    rows = {"stem": 0, "fc": 0}
    for name in rows:
        net.get_submodule(name).register_forward_pre_hook(
            lambda _, args, name=name: rows.__setitem__(name, rows[name] + len(args[0]))
        )
    pl.Gradient()(net, images, 0, ["down", "block"])  # finds the layers' layouts, once per model as it is
    rows.update(stem=0, fc=0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", pl.CompletenessWarning)
        pl.Gradient().integrated(10)(net, images, 0, ["down", "block"])
    # Three images and one baseline below; above, two layers' paths of ten steps for three images, which enter at
    # each layer once more to see that they give their logits; and for each layer the first image whole and from
    # there, to see that nothing else reads what the layer gives.
    assert rows == {"stem": 4 + 2, "fc": 4 + 2 * (10 + 1) * 3 + 2 * 2}


class Remembering(nn.Module):
    """Reads a layer's output a second time, as a hook of its own has kept it."""

    def __init__(self) -> None:
        super().__init__()
        self.low, self.high, self.kept = nn.Conv2d(3, 4, 3), nn.Conv2d(4, 4, 3), []
        self.low.register_forward_hook(lambda _, __, output: self.kept.append(output))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.high(self.low(x)).tanh().mean((2, 3)) + self.kept.pop().square().mean((2, 3))


def test_points_at_a_layer_that_is_read_by_another_way_are_refused() -> None:
    model, x = Remembering().eval(), torch.rand(2, 3, 8, 8)
    for method in (pl.Gradient().smoothed(3, space="layer"), pl.Gradient().smoothed(3).integrated(4)):
        with pytest.raises(InvalidLayer, match="'low' gives is read by another way"):
            method(model, x, 0, "low")
        assert method(model, x, 0, "high")["high"].shape == (2, 4, 4, 4)
    leaf = model.low(x).detach().requires_grad_()
    model.kept.clear()
    (expected,) = torch.autograd.grad(
        (model.high(leaf).tanh().mean((2, 3)) + leaf.square().mean((2, 3)))[:, 0].sum(), leaf
    )
    torch.testing.assert_close(pl.Gradient()(model, x, 0, "low")["low"], expected)


def test_a_path_at_a_layer_that_a_skip_passes_by(net: nn.Module, images: torch.Tensor) -> None:
    """The skip carries the image's own values, so only the layer's share is integrated."""
    net, images = net.double(), images.double()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", pl.CompletenessWarning)
        found = pl.Gradient().integrated(40, quadrature="midpoint")(net, images, 0, "block.conv")["block.conv"]
    captured = {}

    def capture(module, args, output):
        captured["here"] = output.detach()

    handle = net.block.conv.register_forward_hook(capture)
    net(torch.zeros_like(images[:1]))
    reference = captured["here"]
    net(images)
    activation = captured["here"]
    handle.remove()
    total = torch.zeros_like(activation)
    for step in range(40):
        point = torch.lerp(reference.expand_as(activation), activation, (step + 0.5) / 40).requires_grad_()
        handle = net.block.conv.register_forward_hook(lambda m, a, o, point=point: point)
        (gradient,) = torch.autograd.grad(net(images)[:, 0].sum(), point)
        handle.remove()
        total += gradient / 40
    torch.testing.assert_close(found, total * (activation - reference), rtol=1e-10, atol=1e-14)


def test_gradcam_explains_the_last_block_unless_told(net: nn.Module, images: torch.Tensor) -> None:
    assert list(pl.method("gradcam")(net, images, 0)) == ["block"]


# What users get wrong -------------------------------------------------------------------------------


def test_rules_that_meet_nothing_raise(images: torch.Tensor) -> None:
    class Smooth(nn.Module):
        def forward(self, x):
            return torch.tanh(x).flatten(1)[:, :3]

    for name in ("guided_backprop", "deconvnet", "rectgrad", "rectgrad_prr"):
        with pytest.raises(pl.RuleNotApplied, match="tanh x1"):
            cheap(name)(Smooth(), images, 0)
    with pytest.raises(pl.RuleNotApplied, match="SmoothedDownsampling"):
        pl.Gradient()(Smooth(), images, 0, variant="backward")
    for rule in (pl.EpsilonLRP(), pl.PaddingTrick(), pl.ProportionalPooling()):
        with pytest.raises(pl.RuleNotApplied):
            pl.Gradient(rules=(rule,))(nn.Sequential(nn.Flatten(), nn.Linear(768, 3)), images, 0)


@pytest.mark.parametrize(
    ("text", "error", "message"),
    [
        ("gradeint", UnknownName, "did you mean gradient"),
        ("smoothed(gradient, sample=3)", UnknownName, "did you mean samples"),
        ("gradcam(layer=layer3)", UnknownName, r"known: none \(layers are chosen beside the method, by --layers"),
        ("integrated(gradient, steps=0)", InvalidParameter, "steps=0: give a whole number"),
        ("integrated(gradient, quadrature='simpson')", InvalidParameter, "gauss_legendre"),
        ("integrated(gradient, baseline='black')", InvalidParameter, "give 'zero', 'blur'"),
        ("smoothed(gradient, std=-1)", InvalidParameter, "std=-1"),
        ("smoothed()", InvalidParameter, r"smoothed\(gradient\)"),
        ("gradient(smoothgrad)", InvalidParameter, "takes no method inside"),
        ("rectgrad(q=101)", InvalidParameter, "0 <= q <= 100"),
        ("rectgrad(gate='PR5')", InvalidParameter, "'PR4', 'mod'"),
        ("deeplift(max_pool='none')", InvalidParameter, "'rescale', 'gradient'"),
        ("lrp_epsilon(epsilon=0)", InvalidParameter, "positive"),
        ("__import__('os').system('true')", InvalidParameter, "is no method"),
        ("gradient(absolute=open('x'))", InvalidParameter, "no plain value"),
        ("gradient +", InvalidParameter, "is no method"),
        ("gradient gradcam", InvalidParameter, "separate methods by a comma, gradient,gradcam"),
        (
            "smoothed(gradient, samples=2) | edges",
            InvalidParameter,
            r"comma, smoothed\(gradient, samples=2\),edges",
        ),
        ("smoothed gradient", InvalidParameter, r"write smoothed\(gradient\)"),
        ("smoothed(gradient", InvalidParameter, "a bracket is not closed"),
        ("gradient)", InvalidParameter, "a bracket is closed that was not opened"),
        ("", InvalidParameter, r"is no method; write a name.* around one \(all: pellucid list methods\)$"),
        ("gradcam++", InvalidParameter, r"around one; did you mean gradcam\? \(all: pellucid list methods\)$"),
        ("smoothgard*2+", InvalidParameter, r"; did you mean smoothgrad or .*\? \(all: pellucid list methods\)$"),
    ],
)
def test_bad_method_texts(text: str, error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        pl.method(text)


def test_settings_reach_the_part_that_takes_them() -> None:
    method = pl.method("smoothed_integrated_gradients", steps=20, samples=5, std=0.2)
    assert repr(method) == repr(pl.Gradient().integrated(20).smoothed(5, 0.2))
    nested = pl.method("smoothed(smoothed(gradient, samples=3), samples=4)", std=0.5)
    assert nested == pl.Gradient().smoothed(3, 0.15).smoothed(4, 0.5)
    with pytest.raises(UnknownName, match="parameter"):
        pl.method("gradient", steps=20)


@pytest.mark.filterwarnings("ignore:.*torch.jit:")
def test_bad_calls(net: nn.Module, images: torch.Tensor) -> None:
    gradient = pl.Gradient()
    broken = images.clone()
    broken[1, 0, 3, 3] = float("nan")
    cases = [
        (InvalidImage, "image 1 of the batch holds NaN", lambda: gradient(net, broken, 0)),
        (InvalidImage, "give a float tensor", lambda: gradient(net, images[0], 0)),
        (InvalidImage, "holds no image", lambda: gradient(net, images[:0], 0)),
        (InvalidTarget, "target 4 is out of range; the model has classes 0 to 3",
         lambda: gradient(net, images, 4)),
        (InvalidTarget, "target -1 is out of range", lambda: gradient(net, images, [0, -1, 1])),
        (InvalidTarget, "2 targets for 3 images", lambda: gradient(net, images, [0, 1])),
        (InvalidTarget, "whole numbers", lambda: gradient(net, images, 0.5)),
        (InvalidTarget, "have no names", lambda: gradient(net, images, "cat")),
        (UnknownName, "did you mean block", lambda: gradient(net, images, 0, "blok")),
        (UnknownName, "unknown layer 'stage", lambda: gradient(net, images, 0, "stage*.0")),
        (InvalidLayer, "runs more than once", lambda: gradient(net, images, 0, "block.relu")),
        (InvalidParameter, "max_batch=0", lambda: gradient(net, images, 0, max_batch=0)),
        (InvalidParameter, "or 'auto'", lambda: gradient(net, images, 0, max_batch="most")),
        (InvalidParameter, "2 seeds for 3 images", lambda: gradient(net, images, 0, seed=[1, 2])),
        (UnknownName, "did you mean backward", lambda: gradient(net, images, 0, variant="backwards")),
        (InvalidParameter, "does not fit images",
         lambda: gradient.integrated(2, baseline=images[:2])(net, images, 0)),
        (InvalidParameter, "give only one of them",
         lambda: pl.Gradient(rules=(pl.GuidedReLU(), pl.DeconvReLU()))(net, images, 0)),
        (InvalidModel, "training mode", lambda: gradient(copy.deepcopy(net).train(), images, 0)),
        (InvalidModel, "TorchScript", lambda: gradient(torch.jit.trace(net, images), images, 0)),
        (InvalidModel, "no logits are found", lambda: gradient(Hidden(net), images, 0)),
        (InvalidModel, "explained are logits", lambda: gradient(net.stem, images, 0)),
    ]  # fmt: skip
    for error, message, call in cases:
        with pytest.raises(error, match=message):
            call()


class Hidden(nn.Module):
    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net

    def forward(self, x: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"answers": self.net(x)}


def test_nan_weights_are_named(net: nn.Module, images: torch.Tensor) -> None:
    net.down.bias.data[2] = float("nan")
    for targets in (0, "auto"):
        with pytest.raises(InvalidModel, match=r"'down\.bias' holds NaN"):
            pl.Gradient()(net, images, targets)


def test_a_named_layer_that_did_not_run_raises_and_a_glob_skips_it(net: nn.Module, images: torch.Tensor) -> None:
    net.spare = nn.Conv2d(3, 3, 1)
    with pytest.raises(InvalidLayer, match="'spare' did not run"):
        pl.Gradient()(net, images, 0, ["input", "spare"])
    assert list(pl.Gradient()(net, images, 0, "s*")) == ["stem"]


def test_every_public_name_has_a_docstring_and_the_face_is_sorted() -> None:
    assert pl.__all__ == sorted(pl.__all__)
    for name in pl.__all__:
        value = getattr(pl, name)
        if inspect.isclass(value) or inspect.isfunction(value):
            assert inspect.getdoc(value), name
