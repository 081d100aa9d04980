"""What differs from a paper's protocol is found in the recipe, defaults included, and nothing else is told."""

import pytest

from pellucid.papers.protocol import ProtocolDifference, differences, protocol_of
from pellucid.papers.recipe import PAPERS, Recipe, read_recipe
from tests.papers.example import RECIPE

SPEC = {
    "models": [{"name": "resnet34", "weights": "@net"}],
    "images": {"source": "@photos", "count": 500},
    "methods": ["integrated_gradients", "smoothed(gradient, samples=50)", "gradient", "gradcam"],
    "layers": ["input", "layer1", "layer2"],
    "metrics": ["insertion(steps=28)", "total_variation"],
}
LABELS = {"integrated*": "IG", "smoothed*": "SG"} | RECIPE["labels"]


def found(scale, experiments, networks=()):
    parts = {"experiments": experiments, "networks": networks, "labels": LABELS}
    return differences(Recipe.model_validate(RECIPE | parts | {"exhibits": [], "claims": []}), scale)


def told(smoke, scale="smoke", spec=SPEC, published=None):
    experiment = {"key": "maps", "spec": spec, "smoke": smoke, "published": published or {}}
    return [(one.what, one.paper, one.here, one.of) for one in found(scale, [experiment])]


@pytest.mark.parametrize(
    ("smoke", "expected"),
    [
        ({}, []),
        ({"pictures": 7, "max_batch": 3, "name": "other"}, []),
        ({"images": {"count": 30}}, [("images", "500 of few photos", "30 of few photos", ())]),
        ({"precision": "bfloat16"}, [("precision of the network scored", "full", "bfloat16", ())]),
        ({"models": [{"name": "resnet34", "size": 64}]}, [("pixels of a side", "the network's own", "64", ())]),
        ({"models": ["resnet18"]}, [("networks", "resnet34", "resnet18", ())]),
        ({"layers": ["input", "layer4"]}, [("layers", "layer1 and layer2", "layer4", ())]),
        ({"metrics": ["insertion(steps=7)"]},
         [("measures", "TV", "–", ()), ("steps", "28", "7", ("Insertion",))]),
        ({"methods": ["integrated_gradients(steps=8)", "smoothed(gradient, samples=5)", "gradient", "gradcam"]},
         [("path steps", "50", "8", ("IG",)), ("noise samples", "50", "5", ("SG",))]),
        ({"methods": ["integrated_gradients"]}, [("methods", "SG, Gradient and gradcam", "–", ())]),
        ({"methods": ["integrated_gradients(quadrature='right')", *SPEC["methods"][1:]]},
         [("path quadrature", "gauss_legendre", "right", ("IG",))]),
    ],
)  # fmt: skip
def test_every_value_that_makes_results_is_compared_with_its_default(smoke, expected):
    assert told(smoke) == expected
    assert told(smoke, "paper") == []


def test_a_published_text_stands_beside_names_in_words():
    [networks] = told({}, "paper", published={"networks": "one of theirs"})
    assert networks[:2] == ("networks", "one of theirs")
    assert not networks[2].startswith("(")


def test_what_was_published_goes_before_the_papers_scale():
    published = {"images": "100 in color"}
    assert told({}, "paper", published=published) == [("images", "100 in color", "500 of few photos", ())]


def test_trainings_are_compared_with_their_networks_own_settings():
    training = {"network": "cifar-cnn", "source": "@photos"}
    spec = {"models": ["cifar-cnn"], "images": "@photos", "methods": ["gradient"], "metrics": ["roar"]}
    smoke = {"training": {"count": 9, "epochs": 2, "fractions": [0.5], "seeds": 1, "precision": "bfloat16"}}
    assert told(smoke, spec=spec | {"training": training}) == [
        ("training images", "all of few photos", "9 of few photos", ()),
        ("training epochs", "20", "2", ()),
        ("training precision", "full", "bfloat16", ()),
        ("levels", "0.1, 0.3, 0.5, 0.7, 0.9", "0.5", ("roar",)),
        ("training seeds", "3", "1", ()),
    ]


def test_differences_that_several_parts_share_are_told_once():
    trained = SPEC | {"models": [{"name": "cifar-cnn", "weights": "@cnn"}]}
    experiments = [
        {"key": "one", "spec": trained, "cpu": {"images": {"count": 3}}},
        {"key": "two", "spec": SPEC, "cpu": {"images": {"count": 3}}},
    ]
    network = {"key": "cnn", "spec": {"name": "cifar-cnn", "source": "@photos"}, "cpu": {"epochs": 3}}
    assert found("cpu", experiments, [network]) == [
        ProtocolDifference("training epochs", "20", "3", (), ("cnn",)),
        ProtocolDifference("images", "500 of few photos", "3 of few photos", (), ("one", "two")),
    ]


@pytest.mark.parametrize("paper", PAPERS)
def test_the_papers_own_scale_differs_in_what_was_published_alone(paper):
    recipe = read_recipe(paper)
    for part in (*recipe.trainings, *recipe.experiments):
        values = dict(protocol_of(part, recipe, "paper"))
        for what, value in part.published.items():
            assert values[what] != value, (part.key, what)
    published = {what.rpartition(": ")[2] for part in recipe.experiments for what in part.published}
    assert {one.what for one in differences(recipe, "paper")} == published
