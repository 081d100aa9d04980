"""The recipes of the two papers on trained networks: all that they name exists, at every scale."""

import ast
from itertools import chain

import pytest

from pellucid import catalog
from pellucid.catalog import variant_name
from pellucid.experiments.pretraining import NetworkSettings, SurrogateSettings
from pellucid.experiments.spec import read_spec
from pellucid.layers import select_layers
from pellucid.metrics.randomization import ALL, groups, randomized
from pellucid.models.zoo import load_model
from pellucid.papers.recipe import MapsExhibit, TableExhibit, matches, read_recipe
from pellucid.papers.sources import filled, needed

PAPERS = ("smooth-deep-saliency", "sanity-checks")
SCALES = ("smoke", "cpu", "paper")


def places_of(recipe):
    trained = {part.key: f"{part.key}.safetensors" for part in (*recipe.networks, *recipe.surrogates)}
    return trained | dict.fromkeys(recipe.sources, "images.parquet") | dict.fromkeys(recipe.weights, "DEFAULT")


def spec_of(recipe, key, scale):
    [part] = [part for part in recipe.experiments if part.key == key]
    return read_spec(None, filled(part.replaced(part.spec, scale), places_of(recipe)))


def quantities(recipe):
    """Every choice of rows, with its experiment: of exhibits, of tests and of what these compare with."""
    tests = chain.from_iterable(claim.tests for claim in recipe.claims)
    for part in chain(((e.experiment, e.where) for e in recipe.exhibits), ((t.experiment, t) for t in tests)):
        yield part
        if part[1].against:
            yield part[0], part[1].model_copy(update={**part[1].against})


def of_kind(spec, key):
    """What a spec names of a key of quantities, as tables call it."""
    names = {
        "model": [model.key for model in spec.models],
        "variant": [variant_name(text) for text in spec.variants],
        "method": spec.methods or ("",),
        "layer": spec.layers,
        "metric": spec.metrics,
    }
    return names[key]


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("paper", PAPERS)
def test_all_that_experiments_name_exists(paper, scale):
    recipe = read_recipe(paper)
    for part in recipe.experiments:
        spec = spec_of(recipe, part.key, scale)
        metrics = [catalog.metric(text) for text in spec.metrics]
        assert all(catalog.method(text) for text in spec.methods)
        assert bool(spec.methods) == any(not metric.of_model for metric in metrics)
        if part.key != "mnist-accuracy":
            assert all(set(spec.layers) <= {*select_layers(bare(m.name), spec.layers), "all"} for m in spec.models)
        for model in spec.models:
            if model.randomized:
                randomized(bare(model.name), model.randomized, model.way or "moments")
        for key in ("method", "metric", "variant", "model", "layer"):
            labels = [recipe.label(name) for name in of_kind(spec, key)]
            assert len(set(labels)) == len(labels), f"{part.key}: two of one label among {labels}"


MODELS = {}


def bare(name):
    if name not in MODELS:
        MODELS[name] = load_model(name).model
    return MODELS[name]


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("paper", PAPERS)
def test_trainings_have_their_settings_and_all_is_needed_at_some_scale(paper, scale):
    recipe = read_recipe(paper)
    for part in recipe.networks:
        NetworkSettings.model_validate(filled(part.replaced(part.settings, scale), places_of(recipe)))
    for part in recipe.surrogates:
        SurrogateSettings.model_validate(filled(part.replaced(part.settings, scale), places_of(recipe)))
    assert set().union(*(needed(recipe, one) for one in SCALES)) == set(places_of(recipe))
    assert not {"imagenet", "imagenet-train", "resnet34"} & set().union(
        needed(recipe, "smoke"), needed(recipe, "cpu")
    )


@pytest.mark.parametrize("paper", PAPERS)
def test_every_choice_of_rows_finds_some_at_the_papers_scale(paper):
    recipe = read_recipe(paper)
    for key, where in quantities(recipe):
        spec = spec_of(recipe, key, "paper")
        for kind in ("model", "variant", "method", "metric", "layer"):
            for pattern in getattr(where, kind):
                assert any(matches(name, (pattern,)) for name in of_kind(spec, kind)), f"{key}: {kind} {pattern}"
        if where.step:
            assert where.step in steps(spec, where), f"{key}: {where.step}"


def test_every_test_finds_its_rows_at_cpu_scale():
    for recipe in map(read_recipe, PAPERS):
        tests = chain.from_iterable(claim.tests for claim in recipe.claims)
        for test in chain.from_iterable((test, test.model_copy(update={**test.against})) for test in tests):
            spec = spec_of(recipe, test.experiment, "cpu")
            for kind in ("model", "variant", "method", "metric", "layer"):
                assert any(matches(name, getattr(test, kind)) for name in of_kind(spec, kind)), f"{test} {kind}"


def steps(spec, where):
    """The named steps of a cascade that a quantity looks at."""
    [text] = [text for text in spec.metrics if matches(text, where.metric)]
    written = {word.arg: ast.literal_eval(word.value) for word in ast.parse(text, mode="eval").body.keywords}
    names = written.get("groups") or groups(bare(spec.models[0].name))
    return [*names, *([ALL] if written.get("way") == "fresh" else [])]


@pytest.mark.parametrize("paper", PAPERS)
def test_the_papers_numbers_stand_beside_ours(paper):
    recipe = read_recipe(paper)
    elsewhere = {"ResNet-50 (robust)"}  # a row that only the paper has
    for exhibit in recipe.exhibits:
        if isinstance(exhibit, TableExhibit):
            spec = spec_of(recipe, exhibit.experiment, "paper")
            rows, columns = (
                {recipe.label(name) for name in of_kind(spec, key) if matches(name, getattr(exhibit.where, key))}
                for key in (exhibit.rows, exhibit.columns)
            )
            assert set(exhibit.paper) - elsewhere <= rows, exhibit.key
            assert all(set(numbers) <= columns for numbers in exhibit.paper.values()), exhibit.key


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("paper", PAPERS)
def test_as_many_photos_are_kept_as_are_shown(paper, scale):
    recipe = read_recipe(paper)
    for exhibit in recipe.exhibits:
        if isinstance(exhibit, MapsExhibit):
            spec = spec_of(recipe, exhibit.experiment, scale)
            most = spec.images.count or exhibit.photos
            assert spec.pictures >= (1 if scale == "smoke" else min(exhibit.photos, most)), exhibit.key
