"""The papers' recipes: at every scale they are experiments that can run, and compute what is shown and claimed."""

import ast
import re
import tomllib
from functools import lru_cache
from importlib.resources import files
from typing import get_args

import pytest
from typer.testing import CliRunner

from pellucid import catalog
from pellucid.cli import app
from pellucid.experiments.ratings import QUESTIONS_OF_RATERS
from pellucid.experiments.spec import read_spec
from pellucid.layers import select_layers
from pellucid.metrics.randomization import ALL, groups, randomized
from pellucid.models.zoo import load_model
from pellucid.papers.page import place_of
from pellucid.papers.quantities import compared_with
from pellucid.papers.recipe import PAPERS, MapsExhibit, NetworkTraining, Scale, TableExhibit, matches, read_recipe
from pellucid.papers.sources import filled, needed
from pellucid.report.pages import escape_markdown
from pellucid.training.criteria import Removal, Retraining
from pellucid.training.from_source import NetworkSettings, SurrogateSettings

SCALES = get_args(Scale)
CASES = [(paper, scale) for paper in PAPERS for scale in SCALES]
OF_METHODS = ("combination-methods", "rectified-gradient")  # at cpu scale they compare the methods of the papers
# Rows that only the paper has: networks whose weights are not at hand, at no scale.
PAPER_ALONE = {("smooth-deep-saliency", "ResNet-50 (robust)")}


@lru_cache
def places(paper):
    """A made-up place for each ``@key``; nothing is read there."""
    recipe = read_recipe(paper)
    found = {key: f"/nowhere/{source.path}" for key, source in (recipe.sources | recipe.weights).items()}
    return found | {part.key: f"/nowhere/{part.key}.safetensors" for part in recipe.trainings}


@lru_cache
def spec_of(paper, key, scale):
    part = next(part for part in read_recipe(paper).experiments if part.key == key)
    return read_spec(None, filled(part.at(scale), places(paper)))


@lru_cache
def bare(name):
    """A network of the spec's name, untrained; None of those that only timm has."""
    return None if name.startswith("timm:") else load_model(name).model


@lru_cache
def can_be_randomized(name, group, way):
    """Whether a network has what is drawn anew in it."""
    return randomized(bare(name), group, way) is not None


@lru_cache
def layers(names, patterns):
    """The layers that experiments on these networks have rows of."""
    models = [bare(name) for name in names]
    return [layer for model in models if model is not None for layer in select_layers(model, patterns)]


@lru_cache
def names(paper, experiment, scale):
    """What the rows of an experiment's results, and its maps, are called."""
    spec = spec_of(paper, experiment, scale)
    of_model = [text for text in spec.metrics if catalog.metric(text).of_model]
    return {
        "model": [model.key for model in spec.models],
        "variant": list(spec.variant_texts),
        "method": [*spec.method_texts, *([""] if of_model else [])],
        "metric": ["map", *spec.metrics, *QUESTIONS_OF_RATERS],
        "layer": [*layers(tuple(model.name for model in spec.models), spec.layers), ""],
    }


def quantities(recipe):
    """All that is looked up in results: (what for, experiment, quantity); of comparisons, both sides."""
    asked = [(exhibit.key, exhibit.experiment, exhibit.where) for exhibit in recipe.exhibits]
    asked += [(claim.text, test.experiment, test) for claim in recipe.claims for test in claim.tests]
    for what, experiment, quantity in asked:
        yield what, experiment, quantity
        if quantity.against:
            yield what, experiment, compared_with(quantity)


@pytest.mark.parametrize("paper", PAPERS)
def test_every_name_of_a_recipe_is_used(paper):
    text = files("pellucid.papers").joinpath(f"{paper}.toml").read_text()
    assert [name for name in tomllib.loads(text)["names"] if f'"${name}"' not in text] == []


@pytest.mark.parametrize(("paper", "scale"), CASES)
def test_all_that_experiments_name_exists(paper, scale):
    recipe = read_recipe(paper)
    for part in recipe.experiments:
        spec = spec_of(paper, part.key, scale)
        metrics = [catalog.metric(text) for text in spec.metrics]
        for text in spec.methods:
            catalog.method(text)
        for text in spec.variants:
            if not text.startswith("/nowhere/"):
                catalog.variant(text)
        for model in spec.models:
            if model.randomized:
                assert can_be_randomized(model.name, model.randomized, model.way or "moments")
        assert bool(spec.methods) == any(not metric.of_model for metric in metrics), part.key
        # Maps are graded and networks trained in separate runs.
        assert {isinstance(metric, Retraining) for metric in metrics} == {spec.training is not None}, part.key
        for key, known in names(paper, part.key, scale).items():
            # What differs in its seed alone is shown as one, the mean over the seeds.
            seedless = dict.fromkeys(re.sub(r"(, )?\bseed=\d+", "", name) for name in known)
            labels = [recipe.label(name) for name in seedless]
            assert len(set(labels)) == len(labels), f"{part.key}: two of one label among the {key}s: {labels}"


@pytest.mark.parametrize("paper", PAPERS)
def test_trainings_have_settings_and_all_is_needed_at_some_scale(paper):
    recipe = read_recipe(paper)
    for part in recipe.trainings:
        kind = NetworkSettings if isinstance(part, NetworkTraining) else SurrogateSettings
        for scale in SCALES:
            kind.model_validate(filled(part.at(scale), places(paper)))
    asked = {scale: set(needed(recipe, scale)) for scale in SCALES}
    assert set().union(*asked.values()) == set(places(paper))
    # What one has to ask ImageNet's owners for is for the papers' own scale.
    assert not {"imagenet", "imagenet-train", "resnet34"} & (asked["smoke"] | asked["cpu"])


@pytest.mark.parametrize("paper", PAPERS)
def test_what_is_looked_up_is_computed(paper):
    """Each pattern means something at the paper's scale, and all of them together at one at least."""
    for what, experiment, quantity in quantities(read_recipe(paper)):
        known = {scale: names(paper, experiment, scale) for scale in SCALES}
        asked = [(key, getattr(quantity, key)) for key in known["paper"]]
        timm = any(model.name.startswith("timm:") for model in spec_of(paper, experiment, "paper").models)
        for key, patterns in asked:
            for pattern in [] if key == "layer" and timm else patterns:
                found = known["paper"][key]
                assert any(matches(name, (pattern,)) for name in found), (what, key, pattern, found)
            for pattern in patterns if paper in OF_METHODS and key in ("method", "metric") else []:
                assert any(matches(name, (pattern,)) for name in known["cpu"][key]), (what, key, pattern)
        together = [
            all(any(matches(name, patterns) for name in known[scale][key]) for key, patterns in asked)
            for scale in SCALES
        ]
        assert any(together), what


@pytest.mark.parametrize("paper", PAPERS)
def test_every_claim_says_what_and_where_and_finds_its_rows_at_cpu_scale(paper):
    recipe = read_recipe(paper)
    assert recipe.claims
    assert recipe.first in {"", *(exhibit.key for exhibit in recipe.exhibits)}
    for claim in recipe.claims:
        assert claim.text
        assert claim.place
        for test in claim.tests:
            known = names(paper, test.experiment, "cpu")
            for one in (test, compared_with(test)):
                for key, some in known.items():
                    assert any(matches(name, getattr(one, key)) for name in some), (claim.text, key)
    assert all(recipe.not_reproduced.values())


@pytest.mark.parametrize("paper", PAPERS)
def test_steps_and_levels_are_places_of_the_metrics_curve(paper):
    for what, experiment, quantity in quantities(read_recipe(paper)):
        spec = spec_of(paper, experiment, "paper")
        texts = [text for text in spec.metrics if matches(text, quantity.metric)]
        for text in texts if quantity.step else ():
            written = {
                word.arg: ast.literal_eval(word.value) for word in ast.parse(text, mode="eval").body.keywords
            }
            steps = written.get("groups") or groups(bare(spec.models[0].name))
            assert quantity.step in [*steps, *([ALL] if written.get("way") == "fresh" else [])], what
        if quantity.at is not None:
            [metric] = map(catalog.metric, texts)
            assert isinstance(metric, Removal)
            assert quantity.at in (spec.training.fractions or metric.fractions), what


@pytest.mark.parametrize(("paper", "scale"), CASES)
def test_every_table_and_figure_has_something_to_show(paper, scale):
    for exhibit in read_recipe(paper).exhibits:
        spec, known = spec_of(paper, exhibit.experiment, scale), names(paper, exhibit.experiment, scale)
        for key in ("model", "variant", "method", "metric"):
            assert any(matches(name, getattr(exhibit.where, key)) for name in known[key]), (exhibit.key, key)
        if isinstance(exhibit, MapsExhibit):
            wanted = min(exhibit.photos, spec.images.count or exhibit.photos)
            assert spec.pictures >= (1 if scale == "smoke" else wanted), exhibit.key


@pytest.mark.parametrize("paper", PAPERS)
def test_the_papers_numbers_stand_in_rows_and_columns_of_ours(paper):
    recipe = read_recipe(paper)
    alone = {name for of, name in PAPER_ALONE if of == paper}
    for exhibit in recipe.exhibits:
        if not isinstance(exhibit, TableExhibit):
            continue
        known = names(paper, exhibit.experiment, "paper")
        columns = [column for numbers in exhibit.paper.values() for column in numbers]
        for key, shown in ((exhibit.rows, list(exhibit.paper)), (exhibit.columns, columns)):
            patterns = getattr(exhibit.where, key)
            ours = {recipe.label(name) for name in known[key] if matches(name, patterns)}
            assert set(shown) <= ours | alone, exhibit.key


# The papers' numbers: their own sums (facts that a slip in copying would break).


def numbers(paper, key):
    return next(exhibit for exhibit in read_recipe(paper).exhibits if exhibit.key == key).paper


def test_the_copied_numbers_of_smooth_deep_saliency_agree_with_each_other():
    accuracy = numbers("smooth-deep-saliency", "table2") | numbers("smooth-deep-saliency", "table2-resnet50")
    drops = [
        (round(row["O"] - row["S"], 2), round(row["O"] - row["F"], 2))
        for row in (accuracy["ResNet-34"], accuracy["ResNet-50"], accuracy["ResNet-50 (robust)"])
    ]
    assert drops == [(0.17, 20.04), (0.1, 3.15), (0.03, 1.79)]
    # Table 3 over all five models: mean ratios of F to S as the paper tells them, two of the models from here.
    ratios = {"all classes": [38.55 / 5.84, 3.63 / 0.41, 37.33 / 4.05]}
    ratios["only target class"] = [7.95 / 0.97, 3.63 / 0.41, 19.76 / 2.04]
    for key in ("table3", "table3-resnet50"):
        table = numbers("smooth-deep-saliency", key)
        for column, others in ratios.items():
            others.append(table["F"][column] / table["S"][column])
    assert [round(sum(of) / 5, 2) for of in ratios.values()] == [7.83, 8.84]


@pytest.mark.parametrize(
    ("method", "others", "totals"),
    [
        ("Gradient", ((14.1, 18.7, 20.7), (16.9, 27.2, 28.7)), (12.575, 19.45, 21.8)),
        ("DeepLIFT", ((12.3, 14.6, 17.5), (11.8, 16.5, 19.5)), (10.45, 13.875, 17.2)),
        ("IG", ((10.0, 12.3, 15.6), (10.4, 15.1, 18.3)), (8.6, 12.15, 15.65)),
    ],
)
def test_the_copied_reductions_have_the_papers_totals(method, others, totals):
    """Tables 5 and 6: the robust ResNet-50 and the Camelyon16 ResNet-18 stand here, the others in the recipe."""
    found = [numbers("smooth-deep-saliency", key)[method] for key in ("table5", "table5-resnet50")]
    rows = [*(tuple(row[variant] for variant in "SBF") for row in found), *others]
    assert [sum(column) / 4 for column in zip(*rows, strict=True)] == pytest.approx(totals, rel=1e-12)


def test_the_copied_areas_of_rectified_gradient_are_the_papers():
    table = numbers("rectified-gradient", "table1")
    # Random removal and random keeping are one experiment seen from both sides.
    assert sum(table["Random"].values()) == pytest.approx(1, rel=1e-12)
    assert all(min(table, key=lambda row: table[row][metric]) == "RectGrad" for metric in table["Random"])


@pytest.mark.parametrize(
    ("rating", "best"),
    [
        ("tableI", {"SmoothGrad"}),
        ("tableII", {"SmoothGrad", "Smoothed Integrated Gradients", "Smoothed Guided Backprop"}),
    ],
)
def test_the_copied_ratings_of_combination_methods_are_best_where_the_paper_says(rating, best):
    tables = [numbers("combination-methods", f"{rating}-{data}") for data in ("mnist", "cifar10", "tiny")]
    means = {row: sum(sum(table[row].values()) for table in tables) for row in tables[0]}
    assert set(sorted(means, key=means.get)[-len(best) :]) == best


@pytest.mark.slow
@pytest.mark.parametrize("paper", PAPERS)
def test_the_smoke_run_shows_every_table_and_figure(paper, real_data, tmp_path):
    folder = tmp_path / "run"
    options = ["--data", str(real_data / "data"), "--weights", str(real_data / "weights"), "-o", str(folder)]
    ended = CliRunner().invoke(app, ["reproduce", paper, "--scale", "smoke", *options], catch_exceptions=False)
    assert ended.exit_code == 0, ended.output
    text, web = (folder / "README.md").read_text(), (folder / "index.html").read_text()
    recipe = read_recipe(paper)
    sections = re.split("^## ", text.split("<details>")[0], flags=re.MULTILINE)[1:]
    shown = [section for section in sections if not section.startswith(("The claims\n", "How this differs"))]
    exhibits = sorted(recipe.exhibits, key=lambda exhibit: exhibit.key != recipe.first)
    for exhibit, section in zip(exhibits, shown, strict=True):
        assert section.splitlines()[0].endswith(escape_markdown(exhibit.title))
        assert "This run has no results for it." not in section, exhibit.key
        drawn = r"^\| ---" if exhibit.kind == "table" else r"^!\["
        assert re.search(drawn, section, re.MULTILINE), exhibit.key
    assert web.count("<img ") == len(re.findall(r"^!\[", text, re.MULTILINE))
    for key in recipe.not_reproduced:
        assert f"| {place_of(key)} |" in text
    for path in (folder / "pictures").glob("*.png"):
        assert path.stat().st_size <= 300_000, path.name
