"""What a recipe may say, and what it is told where it is wrong."""

import pytest
from pydantic import ValidationError

from pellucid.errors import UnknownName
from pellucid.papers.naming import expanded, merged
from pellucid.papers.recipe import Recipe, matches, read_recipe, references
from tests.papers.example import RECIPE


def test_at_a_scale_values_are_replaced_key_by_key():
    values = {"images": {"source": "@photos", "count": 500}, "methods": ["a", "b"], "seed": 1}
    others = {"images": {"count": 8}, "methods": ["a"], "training": {"epochs": 1}}
    found = merged(values, others)
    assert found == {
        "images": {"source": "@photos", "count": 8}, "methods": ["a"], "seed": 1, "training": {"epochs": 1}
    }  # fmt: skip
    assert values["images"]["count"] == 500


def test_references_are_found_wherever_they_stand():
    values = {"models": [{"name": "resnet18", "weights": "@r18"}], "variants": ["original", "@paths"], "seed": 1}
    assert list(references(values)) == ["r18", "paths"]
    assert list(references("someone@example")) == []


def test_a_pattern_is_itself_or_a_glob():
    assert matches("a[1]", ("a[1]",))
    assert matches("a1", ("b", "a[1]"))
    assert not matches("Gradient", ("gradient",))


def test_the_first_label_that_matches_is_taken():
    recipe = Recipe.model_validate(
        RECIPE | {"labels": {"smoothed(gradient*": "SmoothGrad", "smoothed(*": "other"}}
    )
    assert recipe.label("smoothed(gradient, samples=5)") == "SmoothGrad"
    assert recipe.label("smoothed(guided_backprop)") == "other"
    assert recipe.label("gradcam") == "gradcam"


def test_only_some_exhibits_need_only_their_experiments_and_claims():
    two = [RECIPE["experiments"][0], RECIPE["experiments"][0] | {"key": "more"}]
    exhibits = [RECIPE["exhibits"][0], RECIPE["exhibits"][1] | {"experiment": "more"}]
    recipe = Recipe.model_validate(RECIPE | {"experiments": two, "exhibits": exhibits})
    assert recipe.only(()) is recipe
    part = recipe.only(("table5",))
    assert [exhibit.key for exhibit in part.exhibits] == ["table5"]
    assert [experiment.key for experiment in part.experiments] == ["all"]
    assert [claim.text for claim in part.claims] == [claim.text for claim in recipe.claims if claim.tests]
    assert recipe.only(("figure5-7",)).claims == ()
    with pytest.raises(UnknownName, match="table or figure 'table6'; did you mean table5"):
        recipe.only(("table6",))


EXHIBIT, CLAIM = RECIPE["exhibits"][1], RECIPE["claims"][2]
BOUND = {"experiment": "all", "above": 0}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"exhibits": [EXHIBIT | {"experiment": "al"}]}, "no experiment 'al'"),
        ({"exhibits": [EXHIBIT, EXHIBIT]}, "two parts are called figure5-7"),
        ({"experiments": [RECIPE["experiments"][0]] * 2}, "two parts are called all"),
        ({"experiments": [{"key": "all", "spec": {"images": "@people"}}]}, "@people stands for nothing"),
        ({"experiments": [{"key": "all", "spec": {}, "cpu": {"images": "@p"}}]}, "@p stands for nothing"),
        ({"claims": [CLAIM | {"because": ""}]}, "needs either `tests` or `because`"),
        ({"claims": [CLAIM | {"tests": [BOUND]}]}, "needs either `tests` or `because`"),
        ({"claims": [CLAIM | {"because": "", "tests": [BOUND | {"below": 1}]}]}, "one of them"),
        ({"claims": [CLAIM | {"because": "", "tests": [{"experiment": "all"}]}]}, "one of them"),
        ({"claims": [CLAIM | {"because": "", "tests": [BOUND | {"how": "ratio"}]}]}, "need `against`"),
        ({"claims": [CLAIM | {"because": "", "tests": [BOUND | {"against": {"method": "a"}}]}]}, "need `against`"),
        ({"exhibits": [RECIPE["exhibits"][4] | {"where": {"how": "std"}}]}, "has no deviation"),
        ({"exhibits": [EXHIBIT | {"lines": "variant"}]}, "panels and lines are both variant"),
        ({"exhibits": [RECIPE["exhibits"][0] | {"columns": "method"}]}, "rows and columns are both method"),
        ({"exhibits": [RECIPE["exhibits"][5] | {"rows": "image"}]}, "rows"),
        ({"titel": "x"}, "titel"),
    ],
)
def test_what_does_not_fit_is_refused(change, message):
    with pytest.raises(ValidationError, match=message):
        Recipe.model_validate(RECIPE | change)


def test_an_unknown_paper_is_told_the_nearest():
    with pytest.raises(UnknownName, match="did you mean sanity-checks"):
        read_recipe("sanity-check")


NAMES = {
    "two": ["b", "c"],
    "part": {"kind": "maps", "where": {"layer": "{layer}"}},
    "noise": ["s({n})", "t({n}, {m})"],
}


@pytest.mark.parametrize(
    ("written", "meant"),
    [
        ("$two", ["b", "c"]),
        (["a", "$two", "d"], ["a", "b", "c", "d"]),
        ({"like": "$noise", "fill": {"n": 5, "m": 0.1}}, ["s(5)", "t(5, 0.1)"]),
        (
            {"like": "$part", "where": {"metric": "tv"}, "fill": {"layer": "input"}},
            {"kind": "maps", "where": {"layer": "input", "metric": "tv"}},
        ),
        ({"like": [{"a": 1, "b": 1}, {"b": 2}], "c": 3}, {"a": 1, "b": 2, "c": 3}),
        ([{"at": "{x}", "fill": {"x": [0.1, 0.5]}}], [{"at": 0.1}, {"at": 0.5}]),
        ([{"k": "{x}{y}", "fill": {"x": "$two", "y": [1, 2]}}], [{"k": f"{x}{y}"} for x in "bc" for y in (1, 2)]),
        ([{"k": "{x}", "fill": [{"x": "a"}, {"x": "b"}]}], [{"k": "a"}, {"k": "b"}]),
        ({"{k}": {"in {k}": "{v}"}, "fill": {"k": "b", "v": 2}}, {"b": {"in b": 2}}),
    ],
)
def test_names_stand_for_what_the_table_of_names_says(written, meant):
    assert expanded({"names": NAMES, "it": written}) == {"it": meant}


@pytest.mark.parametrize(
    ("written", "error", "message"),
    [
        ("$tow", UnknownName, "name of the recipe 'tow'; did you mean two"),
        ("$noise", ValueError, "nothing fills the blank in"),
        ({"k": "{x}", "fill": {"x": [1, 2]}}, ValueError, "2 values where one has to stand"),
    ],
)
def test_names_that_say_nothing_or_too_much_are_refused(written, error, message):
    with pytest.raises(error, match=message):
        expanded({"names": NAMES, "it": written})
