"""The recipes of the two papers on methods: all that they name exists, at every scale."""

from itertools import chain

import pytest

from pellucid import catalog
from pellucid.experiments.spec import read_spec
from pellucid.metrics.retraining import Removal, Retraining
from pellucid.papers.recipe import MapsExhibit, TableExhibit, matches, read_recipe
from pellucid.papers.sources import filled

PAPERS = ("combination-methods", "rectified-gradient")
SCALES = ("smoke", "cpu", "paper")


def spec_of(recipe, key, scale):
    [part] = [part for part in recipe.experiments if part.key == key]
    files = [*recipe.sources, *recipe.weights, *(network.key for network in recipe.networks)]
    places = {name: f"{name}.safetensors" if name not in recipe.sources else f"{name}.parquet" for name in files}
    return read_spec(None, filled(part.replaced(part.spec, scale), places))


def quantities(recipe):
    """Every choice of rows, with its experiment: of exhibits, of tests and of what these compare with."""
    for exhibit in recipe.exhibits:
        yield exhibit.experiment, exhibit.where
    for test in chain.from_iterable(claim.tests for claim in recipe.claims):
        yield test.experiment, test
        if test.against:
            yield test.experiment, test.model_copy(update={**test.against})


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("paper", PAPERS)
def test_methods_and_metrics_of_all_experiments_exist(paper, scale):
    recipe = read_recipe(paper)
    for part in recipe.experiments:
        spec = spec_of(recipe, part.key, scale)
        for text in spec.methods:
            catalog.method(text)
        trained = {isinstance(catalog.metric(text), Retraining) for text in spec.metrics}
        assert trained == {spec.training is not None}  # photos and trainings are separate runs
        for names in (spec.methods, spec.metrics):
            labels = [recipe.label(name) for name in names]
            assert len(set(labels)) == len(labels), f"{part.key}: two have one label"


@pytest.mark.parametrize("scale", ["cpu", "paper"])
@pytest.mark.parametrize("paper", PAPERS)
def test_every_pattern_finds_something(paper, scale):
    recipe = read_recipe(paper)
    for key, where in quantities(recipe):
        spec = spec_of(recipe, key, scale)
        for patterns, names in ((where.method, spec.methods), (where.metric, ["map", *spec.metrics])):
            for pattern in patterns:
                assert any(matches(name, (pattern,)) for name in names), f"{key}: {pattern}"


@pytest.mark.parametrize("paper", PAPERS)
def test_levels_are_measured(paper):
    recipe = read_recipe(paper)
    for key, where in quantities(recipe):
        if where.at is None:
            continue
        spec = spec_of(recipe, key, "paper")
        [metric] = [catalog.metric(text) for text in spec.metrics if matches(text, where.metric)]
        assert isinstance(metric, Removal)
        assert where.at in (spec.training.fractions or metric.fractions)


@pytest.mark.parametrize("paper", PAPERS)
def test_the_papers_numbers_stand_beside_ours(paper):
    recipe = read_recipe(paper)
    for exhibit in recipe.exhibits:
        if not isinstance(exhibit, TableExhibit):
            continue
        spec = spec_of(recipe, exhibit.experiment, "paper")
        assert set(exhibit.paper) <= {recipe.label(name) for name in spec.methods}
        columns = {recipe.label(name) for name in spec.metrics if matches(name, exhibit.where.metric)}
        assert all(set(numbers) <= columns for numbers in exhibit.paper.values())


@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("paper", PAPERS)
def test_as_many_photos_are_kept_as_are_shown(paper, scale):
    recipe = read_recipe(paper)
    for exhibit in recipe.exhibits:
        if isinstance(exhibit, MapsExhibit):
            kept = spec_of(recipe, exhibit.experiment, scale).pictures
            assert kept >= (exhibit.photos if scale != "smoke" else 1)


def test_the_tables_are_those_of_the_papers():
    # Random removal and random keeping are one experiment seen from both sides.
    [table] = [exhibit for exhibit in read_recipe("rectified-gradient").exhibits if exhibit.key == "table1"]
    assert sum(table.paper["Random"].values()) == pytest.approx(1, abs=1e-12)
    assert min(table.paper, key=lambda row: table.paper[row]["KAR (AOC)"]) == "RectGrad"
    assert min(table.paper, key=lambda row: table.paper[row]["ROAR (AUC)"]) == "RectGrad"
    ratings = [
        [exhibit.paper for exhibit in read_recipe("combination-methods").exhibits if exhibit.key.startswith(key)]
        for key in ("tableI-", "tableII-")
    ]
    means = [
        {row: sum(sum(table[row].values()) for table in tables) / 3 for row in tables[0]} for tables in ratings
    ]
    assert max(means[0], key=means[0].get) == "SmoothGrad"
    best = sorted(means[1], key=means[1].get)[-3:]
    assert set(best) == {"SmoothGrad", "Smoothed Integrated Gradients", "Smoothed Guided Backprop"}
