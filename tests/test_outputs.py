"""Whatever a model returns and whatever is asked of it, the map is that of the plain tensor."""

from collections import namedtuple
from dataclasses import dataclass

import pytest
import torch
from torch import nn

import pellucid as pl
from pellucid.errors import InputWarning, InvalidData, InvalidModel, InvalidTarget, UnknownName
from pellucid.models.segmentation import Segmentation
from pellucid.outputs import (
    Classifier,
    answer,
    class_names,
    class_numbers,
    class_of,
    likelihoods,
    logits_in,
    probabilities,
    tensor_in,
)

from .networks import Chain, attributed, images, logits_of, relative_error, seeded


@dataclass
class Output:
    """As Hugging Face's: an object, no mapping."""

    loss: object
    logits: torch.Tensor


Pair = namedtuple("Pair", ["logits", "aux_logits"])


class Returning(Chain):
    """A network that returns its logits in some form."""

    def __init__(self, form):
        super().__init__([nn.ReLU(), nn.ReLU(), nn.ReLU(), nn.ReLU()])
        self.form = form

    def forward(self, x):
        return self.form(super().forward(x))


FORMS = {
    "object": lambda z: Output(None, z),
    "named tuple": lambda z: Pair(z, z * 0),
    "tuple": lambda z: (z, [z * 0]),
    "list": lambda z: [z],
    "mapping": lambda z: {"loss": z.sum(), "logits": z},
    "nested": lambda z: {"out": {"logits": z}},
}


def network(form=lambda z: z):
    return seeded(lambda: Returning(form))


@pytest.mark.parametrize("form", FORMS.values(), ids=FORMS)
@pytest.mark.parametrize("method", ["gradient", "deeplift", "integrated(gradient, steps=200)", "gradcam"])
def test_logits_are_found_in_what_a_model_returns(form, method):
    x, call = images(), pl.method(method)
    found, expected = (call(model, x, [1, 3], "conv2") for model in (network(form), network()))
    assert torch.equal(found["conv2"], expected["conv2"])
    assert pl.Scorer(network(form)).scores(x).equal(pl.Scorer(network()).scores(x))


def test_probabilities_are_told_as_they_are():
    logits = torch.tensor([[1.0, -2.0, 0.5], [0.0, 3.0, 1.0]])
    shares = likelihoods(logits)
    torch.testing.assert_close(shares, logits.exp() / logits.exp().sum(1, keepdim=True))
    assert torch.equal(likelihoods(shares), shares)
    torch.testing.assert_close(likelihoods(logits[:, :1]), 1 / (1 + (-logits[:, :1]).exp()))


def test_what_cannot_be_found_is_told():
    model, x = network(lambda z: {"a": z, "b": z.flip(1)}), images()
    with pytest.raises(InvalidModel, match=r"dict with a, b.*Classifier\(model, output="):
        pl.method("gradient")(model, x, 0)
    found = pl.method("gradient")(pl.Classifier(model, "b"), x, 0)["input"]
    assert torch.equal(found, pl.method("gradient")(network(), x, 4)["input"])
    found = pl.method("gradient")(pl.Classifier(model, lambda output: output["a"]), x, 0)["input"]
    assert torch.equal(found, pl.method("gradient")(network(), x, 0)["input"])
    with pytest.raises(UnknownName, match=r"part of the output \(dict\) 'c'"):
        pl.Classifier(model, "c")(x)
    with pytest.raises(InvalidModel, match="Segmentation"):
        logits_in(torch.zeros(2, 3, 4, 4))
    with pytest.raises(InvalidModel, match="int64"):
        logits_in(torch.zeros(2, 3).long())


def test_a_classifier_is_the_same_network():
    model = network(lambda z: (z * 0, z))
    wrapped = pl.Classifier(model, 1)
    assert wrapped.state_dict().keys() == model.state_dict().keys()
    assert [*dict(wrapped.named_modules())][1:] == [*dict(model.named_modules())][1:]
    assert pl.layer_names(wrapped) == pl.layer_names(model)
    assert wrapped.form is model.form
    assert relative_error(wrapped(images()), network()(images())) == 0


def test_wrappers_are_taken_off():
    model, x = network(), images()
    expected = pl.method("guided_backprop")(model, x, 2, "all")
    for wrapped in (nn.DataParallel(model), torch.compile(model), nn.DataParallel(torch.compile(model))):
        found = pl.method("guided_backprop")(wrapped, x, 2, "all")
        assert list(found) == list(expected) == pl.layer_names(wrapped)
        assert all(torch.equal(found[layer], expected[layer]) for layer in expected)
        assert torch.equal(pl.Scorer(wrapped).scores(x), pl.Scorer(model).scores(x))
        assert next(pl.cascade(wrapped))[0] == next(pl.cascade(model))[0]
    torch.distributed.init_process_group("gloo", rank=0, world_size=1, store=torch.distributed.HashStore())
    try:
        parallel = nn.parallel.DistributedDataParallel(seeded(Trainable).requires_grad_())
        found = pl.method("gradient")(parallel, x, 2, "conv2")["conv2"]
    finally:
        torch.distributed.destroy_process_group()
    assert torch.equal(found, pl.method("gradient")(model, x, 2, "conv2")["conv2"])
    with pytest.raises(InvalidModel, match="module 'inner' is compiled"):
        pl.method("gradient")(Holding(model), x, 0)
    with pytest.raises(InvalidModel, match="the model is int"):
        pl.method("gradient")(3, x, 0)


def test_hooks_of_a_wrapper_are_refused():
    """They would be left out, and the map be another model's."""
    wrapped = nn.DataParallel(network())
    for register in (wrapped.register_forward_hook, wrapped.register_forward_pre_hook):
        hook = register(lambda *_: None)
        with pytest.raises(InvalidModel, match="DataParallel around the model has forward hooks"):
            pl.method("gradient")(wrapped, images(), 0)
        hook.remove()
    assert pl.method("gradient")(wrapped, images(), 0)


class Trainable(Returning):
    def __init__(self):
        super().__init__(lambda z: z)


class Holding(nn.Module):
    def __init__(self, model):
        super().__init__()
        self.inner = torch.compile(model)
        self.eval()

    def forward(self, x):
        return self.inner(x)


NAMES = ("ant", "Bee", "tiger cat, tabby", "tabby - domestic", "ant hill")


def test_targets_by_name():
    model, x = network(), images()
    model.classes = NAMES
    expected = attributed(model, x, [1, 4])["input"]
    assert relative_error(pl.method("gradient")(model, x, ["bee", "ant hill"])["input"], expected) < 1e-12
    assert pl.method("gradient")(model, x, ["bee", 4]).targets.tolist() == [1, 4]
    assert answer("tabby", NAMES) == 2
    assert answer("tabby - domestic", NAMES) == 3
    with pytest.raises(UnknownName, match="did you mean ant"):
        pl.method("gradient")(model, x, "annt")
    with pytest.raises(InvalidTarget, match="have no names"):
        pl.method("gradient")(network(), x, "ant")
    with pytest.raises(InvalidTarget, match=r"any of the classes 0 \(a, x\), 1 \(b, x\)"):
        answer("x", ("a, x", "b, x"))


def test_a_number_that_is_a_class_s_name_is_that_class():
    model, x = network(), images()
    model.classes = ("0", "1", "10", "2", "03")  # as folders stand in order
    gradient = pl.method("gradient")
    assert gradient(model, x, ["2", "03"]).targets.tolist() == [3, 4]
    assert gradient(model, x, [2, "4"]).targets.tolist() == [2, 4]  # no class is called 4
    expected, other = (attributed(model, x, [number] * 2)["input"] for number in (3, 1))
    assert relative_error(gradient(model, x, "2")["input"], expected) < 1e-12
    assert relative_error(gradient(model, x, "2 - 1")["input"], expected - other) < 1e-12
    assert [class_of(text, model.classes) for text in ("2", " 2 ", "10", "3")] == [3, 3, 2, 3]


def test_a_name_of_two_classes_is_refused():
    with pytest.raises(InvalidTarget, match=r"any of the classes 1 \(crane\), 2 \(crane\)"):
        answer("crane", ("eel", "crane", "crane"))  # the bird and the machine


def test_a_difference_of_classes():
    model, x = network(), images()
    model.classes = NAMES
    expected = attributed(model, x, [1, 1], ["conv3"])
    other = attributed(model, x, [0, 0], ["conv3"])
    found = pl.method("gradient")(model, x, "Bee - ant", ["input", "conv3"])
    for layer in expected:
        assert relative_error(found[layer], expected[layer] - other[layer]) < 1e-12
    # Completeness is that of the difference.
    residual = pl.method("integrated(gradient, steps=400)")(model, x, "1 - 0").residuals["input"]
    attribution = pl.method("integrated(gradient, steps=400)")(model, x, "1 - 0")["input"]
    zero = torch.zeros_like(x)
    wanted = logits_of(model, x, [1, 1]) - logits_of(model, x, [0, 0])
    wanted -= logits_of(model, zero, [1, 1]) - logits_of(model, zero, [0, 0])
    assert torch.allclose(attribution.flatten(1).sum(1) - residual, wanted)
    with pytest.raises(InvalidTarget, match="classes 0 to 4"):
        pl.method("gradient")(model, x, pl.Difference(0, 5))


def test_a_difference_of_names_is_that_of_numbers_and_says_so(tmp_path):
    model, x = network(), images()
    with pytest.raises(InvalidTarget, match=r"'Bee'.*no names.*load_model gives, whole \(not unpacked\)"):
        pl.method("gradient")(model, x, pl.Difference("Bee", "ant"))
    model.classes = NAMES
    expected = pl.method("gradient")(model, x, pl.Difference(1, 0))
    assert torch.equal(pl.method("gradient")(model, x, pl.Difference("Bee", "ant"))["input"], expected["input"])
    found = pl.method("gradient")(model, x, "Bee - ant")
    assert torch.equal(found["input"], expected["input"])
    found.save(tmp_path / "maps.safetensors")
    for one in (found, pl.Attributions.load(tmp_path / "maps.safetensors")):
        assert "target 'Bee - ant'" in repr(one)
    for same in ("ant - ant", "0 - ant", pl.Difference("ANT", "ant")):
        with pytest.raises(InvalidTarget, match="with itself is 0"):
            pl.method("gradient")(model, x, same)
    with pytest.raises(InvalidTarget, match="'bee - tiger cat - bee': a difference names two classes only"):
        answer("bee - tiger cat - bee", NAMES)
    with pytest.raises(InvalidTarget, match="blanks around its minus: 'bee - tiger cat'"):
        pl.method("gradient")(model, x, "bee-tiger cat")


def test_any_function_of_the_output(tmp_path):
    model, x = network(FORMS["tuple"]), images()
    direction = torch.tensor([1.0, -2.0, 0.5, 0.0, 3.0], dtype=torch.float64)
    point = x.clone().requires_grad_()
    (expected,) = torch.autograd.grad(torch.cosine_similarity(model(point)[0], direction[None]).sum(), point)
    found = pl.method("gradient")(model, x, lambda output: torch.cosine_similarity(output[0], direction[None]))
    assert relative_error(found["input"], expected) < 1e-12
    assert found.targets.tolist() == [0, 0]
    (tmp_path / "asked.py").write_text("def total(output):\n    return output[0].sum(1)\n")
    # Also where nothing else tells how to read the output, and the method chooses the layer.
    hidden = network(lambda z: {"a": z})
    [cam] = pl.method("gradcam")(hidden, x, lambda output: output["a"][:, 1]).values()
    assert torch.equal(cam, *pl.method("gradcam")(network(), x, 1).values())
    found = pl.method("gradient")(model, x, f"{tmp_path}/asked.py:total")["input"]
    assert relative_error(found, sum(attributed(network(), x, [k, k])["input"] for k in range(5))) < 1e-12
    with pytest.raises(UnknownName, match="did you mean total"):
        pl.method("gradient")(model, x, f"{tmp_path}/asked.py:totl")
    with pytest.raises(InvalidTarget, match="for all images"):
        pl.method("gradient")(model, x, [f"{tmp_path}/asked.py:total", 1])


@pytest.mark.parametrize(
    ("function", "shape"),
    [
        (lambda z: z, r"\(1, 5\)"),
        (lambda z: z[:, [2, 1]], r"\(1, 2\)"),
        (lambda z: z.log_softmax(1), r"\(1, 5\)"),
        (lambda z: z[0], r"\(5,\)"),
        (lambda z: z.T[:1], r"\(1, 4\) for 4 images"),
        (lambda z: z[:, 1].sum(), r"\(\) for 4 images"),
        (lambda z: 1, "int"),
    ],
)
def test_a_function_must_give_one_value_for_each_image(function, shape):
    """Not several, of which only the first would be explained."""
    with pytest.raises(InvalidTarget, match=f"gives .*{shape}.*one value for each image"):
        pl.method("gradient")(network(), images(), function)


def test_a_function_may_give_a_column_or_a_number_for_one_image():
    model, x = network(), images()
    expected = pl.method("gradient")(model, x, 2)["input"]
    assert torch.equal(pl.method("gradient")(model, x, lambda z: z[:, 2:3])["input"], expected)
    assert torch.equal(pl.method("gradient")(model, x[:1], lambda z: z[:, 2].squeeze())["input"], expected[:1])
    smooth = "smoothed(gradient, samples=2, std=0.0, space='layer')"
    found = pl.method(smooth)(model, x, lambda z: z[:, 2:3], "conv2")["conv2"]
    assert relative_error(found, pl.method("gradient")(model, x, 2, "conv2")["conv2"]) < 1e-12


class OneOutput(Chain):
    def __init__(self, squeezed=False):
        super().__init__([nn.ReLU()] * 4)
        self.head, self.squeezed = nn.Linear(6, 1), squeezed

    def forward(self, x):
        z = super().forward(x)
        return z.squeeze(1) if self.squeezed else z


def test_a_network_with_one_output():
    model, x = seeded(OneOutput), images(3)
    z = model(x)
    assert torch.equal(probabilities(z), z.sigmoid())
    assert torch.equal(pl.Scorer(model).scores(x), z.sigmoid())
    maps = pl.heatmap(pl.method("gradient")(model, x)["input"], (8, 8))
    for curve in (pl.deletion(model, x, 0, maps, steps=4), pl.insertion(model, x, 0, maps, steps=4)):
        assert curve.scores.std(1).min() > 0  # a softmax of one output would be 1 everywhere
    both = pl.Classifier(model, pl.two_answers)
    assert torch.allclose(both(x).softmax(1)[:, 1:], z.sigmoid())
    no, yes = (pl.method("gradient")(both, x, answer)["input"] for answer in (0, 1))
    assert torch.equal(no, -yes)
    assert relative_error(2 * yes, attributed(model, x, [0, 0, 0])["input"]) < 1e-12
    squeezed = seeded(lambda: OneOutput(squeezed=True))
    assert squeezed(x).shape == (3,)
    assert torch.equal(pl.method("gradient")(squeezed, x, 0)["input"], pl.method("gradient")(model, x, 0)["input"])
    with pytest.raises(InvalidModel, match="5 outputs"):
        pl.Classifier(network(), pl.two_answers)(x)


def test_names_of_classes():
    class Config:
        id2label = {1: "b", 0: "a", 10: "k"}  # noqa: RUF012

    model = network()
    assert class_names(model) is None
    model.config = Config
    assert class_names(model) == class_names(nn.DataParallel(model)) == ("a", "b", "k")
    model.config.id2label = {"0": "LABEL_0", "1": "LABEL_1"}
    assert class_names(model) is None


def test_the_order_in_which_an_output_is_searched():
    one, other = torch.zeros(1, 2), torch.ones(1, 2)
    assert tensor_in({"out": one, "logits": other}) is other
    assert tensor_in(Pair(one, other)) is one
    assert tensor_in((one, other)) is one
    with pytest.raises(InvalidModel, match="NoneType"):
        tensor_in(None)


def test_several_vectors_of_different_sizes_are_not_guessed_at() -> None:
    """Features beside logits; two heads of one size, such as an auxiliary one, are not in doubt."""
    features, logits = torch.zeros(2, 8), torch.zeros(2, 5)
    for output in ((features, logits), [logits, features]):
        with pytest.raises(InvalidModel, match=r"several vectors .* of sizes 5, 8; .*output=0"):
            tensor_in(output)
    for loss in (torch.zeros(2), torch.zeros(())):  # of each image, or of all
        with pytest.raises(InvalidModel, match=r"several vectors .* of sizes 1, 5; .*output=0"):
            tensor_in((loss, logits))
        assert tensor_in((logits, loss)) is logits
    assert tensor_in((logits, torch.ones(2, 5))) is logits
    assert tensor_in((logits, torch.ones(2, 8, 7, 7))) is logits
    assert tensor_in({"logits": logits, "features": features}) is logits


class Named(nn.Module):
    """A network whose parts have the names of our settings."""

    def __init__(self) -> None:
        super().__init__()
        self.pooling, self.output = nn.Conv2d(3, 4, 3), nn.Linear(4, 3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.output(self.pooling(x).relu().mean((2, 3)))


def test_a_models_parts_may_have_the_names_of_settings_and_stay() -> None:
    torch.manual_seed(0)
    model, x = Named().eval(), torch.randn(2, 3, 8, 8)
    before, parts = pl.Gradient()(model, x, 1)["input"], list(model.named_modules())

    class Second(nn.Module):
        def forward(self, output: torch.Tensor) -> torch.Tensor:
            return output[:, 1]

    for target in (lambda output: output[:, 1], Second()):
        assert torch.equal(pl.Gradient()(model, x, target)["input"], before)
    pl.Gradient()(model, x, "1 - 0")
    assert torch.equal(Classifier(model)(x), model(x))
    assert list(model.named_modules()) == parts
    dense = nn.Sequential()
    dense.pooling = nn.Conv2d(3, 2, 3)
    assert Segmentation(dense.eval()).pooling == "mean"
    assert list(dict(dense.named_children())) == ["pooling"]


# The classes that images name.


@pytest.mark.parametrize(
    ("names", "classes", "count", "expected"),
    [
        (("cats", "dogs"), ("dogs", "cats"), 2, (1, 0)),
        (("Cats", "tiger_cat", "tabby"), ("tabby, house cat", "cats", "tiger cat", "eel"), 4, (1, 2, 0)),
        (("great auk, Pinguinus", "ant"), ("ant", "great auk"), 2, (1, 0)),
        (("0", "1", "10", "2"), None, 11, (0, 1, 10, 2)),
        (("0", "1", "10", "2"), tuple("abcdefghijk"), 11, (0, 1, 10, 2)),
        (("a", "b"), None, 2, (0, 1)),
        (("a", "b"), None, 0, (0, 1)),
    ],
)
def test_classes_of_images_are_matched_by_name(names, classes, count, expected):
    assert class_numbers(names, classes, count) == expected


def test_classes_of_images_without_a_common_name_are_taken_in_order_and_said():
    with pytest.warns(InputWarning, match="classes 'n01', 'n02' are not .* in order for 'tench', 'goldfish'; if"):
        assert class_numbers(("n01", "n02"), ("tench", "goldfish"), 2) == (0, 1)
    with pytest.warns(InputWarning, match="'crane2' are not .* for 'crane'; if"):  # of two that are called so
        assert class_numbers(("crane", "eel", "crane2"), ("crane", "eel", "crane"), 3) == (0, 1, 2)


def test_a_name_that_two_classes_have_is_taken_at_its_own_place_without_a_word():
    assert class_numbers(("crane", "Eel", "crane"), ("crane", "eel", "crane"), 3) == (0, 1, 2)


def test_of_many_classes_that_are_taken_in_order_some_are_named():
    names, classes = (tuple(f"{letter}{number}" for number in range(9)) for letter in "nc")
    said = r"'n0', .*'n5', \.\.\. \(3 more\) are .* 'c5', \.\.\. \(3 more\); if that is wrong, rename the images'"
    with pytest.warns(InputWarning, match=said):
        class_numbers(names, classes, 9)


@pytest.mark.parametrize(
    ("names", "classes", "count", "message"),
    [
        (
            ("cats", "dogs"),
            ("tench", "cat", "dog"),
            3,
            "class 'cats' is none of .*did you mean cat",
        ),
        (("cats", "wolf"), ("dogs", "cats"), 2, "class 'wolf' is none of the model's 2"),
        (("a", "b"), None, 10, "of 2 classes, as 'a', and the model has 10, whose names are not known"),
    ],
)
def test_classes_that_the_model_does_not_have_are_refused(names, classes, count, message):
    with pytest.raises(InvalidData, match=message):
        class_numbers(names, classes, count)
