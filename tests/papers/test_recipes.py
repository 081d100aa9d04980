"""The papers' recipes: at every scale they are experiments that can run, and compute what is shown and claimed."""

import re
from functools import lru_cache
from typing import get_args

import pytest
from typer.testing import CliRunner

from pellucid import catalog
from pellucid.cli import app
from pellucid.experiments.pretraining import NetworkSettings, SurrogateSettings
from pellucid.experiments.spec import read_spec
from pellucid.papers.markdown import escaped
from pellucid.papers.page import place_of
from pellucid.papers.recipe import PAPERS, Network, Scale, TableExhibit, matches, read_recipe
from pellucid.papers.sources import filled, trainings_of

SCALES = get_args(Scale)
KEYS = ("model", "variant", "method", "metric")  # the layers are the networks' own
CASES = [(paper, scale) for paper in PAPERS for scale in SCALES]
# Rows that only the paper has: networks whose weights are not at hand, at no scale.
PAPER_ALONE = {("smooth-deep-saliency", "ResNet-50 (robust)")}


@lru_cache
def places(paper):
    """A made-up place for each ``@key``; nothing is read there."""
    recipe = read_recipe(paper)
    found = {key: f"/nowhere/{source.path}" for key, source in (recipe.sources | recipe.weights).items()}
    return found | {part.key: f"/nowhere/{part.key}.safetensors" for part in trainings_of(recipe)}


@lru_cache
def spec_of(paper, key, scale):
    part = next(part for part in read_recipe(paper).experiments if part.key == key)
    return read_spec(None, filled(part.replaced(part.spec, scale), places(paper)))


def names(paper, experiment, scale):
    """What the rows of an experiment's results are called."""
    spec = spec_of(paper, experiment, scale)
    of_model = [text for text in spec.metrics if catalog.metric(text).of_model]
    return {
        "model": [model.key for model in spec.models],
        "variant": list(spec.variant_texts),
        "method": [*spec.method_texts, *([""] if of_model else [])],
        "metric": list(spec.metrics),
    }


def quantities(recipe):
    """All that is looked up in results: (what for, experiment, quantity)."""
    for exhibit in recipe.exhibits:
        yield exhibit.key, exhibit.experiment, exhibit.where
    for claim in recipe.claims:
        for test in claim.tests:
            yield claim.text, test.experiment, test


@pytest.mark.parametrize(("paper", "scale"), CASES)
def test_every_experiment_is_one_at_every_scale(paper, scale):
    for part in read_recipe(paper).experiments:
        spec = spec_of(paper, part.key, scale)
        for text in spec.metrics:
            catalog.metric(text)
        for text in spec.methods:
            catalog.method(text)
        for text in spec.variants:
            if not text.startswith("/nowhere/"):
                catalog.variant(text)


@pytest.mark.parametrize(("paper", "scale"), CASES)
def test_every_training_has_settings_at_every_scale(paper, scale):
    for part in trainings_of(read_recipe(paper)):
        kind = NetworkSettings if isinstance(part, Network) else SurrogateSettings
        kind.model_validate(filled(part.replaced(part.settings, scale), places(paper)))


@pytest.mark.parametrize("paper", PAPERS)
def test_what_is_looked_up_is_computed(paper):
    """Each pattern means something at one scale or another, and all of them together at one at least."""
    for what, experiment, quantity in quantities(read_recipe(paper)):
        known = {scale: names(paper, experiment, scale) for scale in SCALES}
        asked = [(key, getattr(quantity, key)) for key in KEYS]
        asked += [(key, patterns) for key, patterns in quantity.against.items() if key in KEYS]
        for key, patterns in asked:
            for pattern in patterns:
                found = {name for scale in SCALES for name in known[scale][key]}
                assert any(matches(name, (pattern,)) for name in found), (what, key, pattern, sorted(found))
        together = [
            all(any(matches(name, patterns) for name in known[scale][key]) for key, patterns in asked)
            for scale in SCALES
        ]
        assert any(together), what


@pytest.mark.parametrize(("paper", "scale"), CASES)
def test_every_table_and_figure_has_something_to_show(paper, scale):
    for exhibit in read_recipe(paper).exhibits:
        known = names(paper, exhibit.experiment, scale)
        for key in KEYS:
            assert any(matches(name, getattr(exhibit.where, key)) for name in known[key]), (exhibit.key, key)
        if exhibit.kind == "maps":
            assert spec_of(paper, exhibit.experiment, scale).pictures > 0, exhibit.key


@pytest.mark.parametrize("paper", PAPERS)
def test_the_papers_numbers_stand_in_rows_and_columns_of_ours(paper):
    recipe = read_recipe(paper)
    for exhibit in recipe.exhibits:
        if not isinstance(exhibit, TableExhibit):
            continue
        columns = [column for numbers in exhibit.paper.values() for column in numbers]
        for key, shown in ((exhibit.rows, list(exhibit.paper)), (exhibit.columns, columns)):
            ours = set(recipe.labels.values())
            if key in KEYS:
                known = [names(paper, exhibit.experiment, scale)[key] for scale in SCALES]
                ours = {recipe.label(name) for some in known for name in some}
            alone = {name for of, name in PAPER_ALONE if of == paper}
            assert set(shown) <= ours | alone, exhibit.key


@pytest.mark.parametrize("paper", PAPERS)
def test_every_claim_says_what_and_where(paper):
    recipe = read_recipe(paper)
    assert recipe.claims
    for claim in recipe.claims:
        assert claim.text
        assert claim.place
    assert all(recipe.not_reproduced.values())


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


def test_the_random_maps_areas_of_rectified_gradient_add_up_to_one():
    tables = [one.paper for one in read_recipe("rectified-gradient").exhibits if isinstance(one, TableExhibit)]
    [table] = [paper for paper in tables if "Random" in paper]
    assert sum(table["Random"].values()) == pytest.approx(1, rel=1e-12)


@pytest.mark.parametrize("paper", PAPERS)
def test_the_smoke_run_shows_every_table_and_figure(paper, real_data, tmp_path):
    folder = tmp_path / "run"
    options = ["--data", str(real_data / "data"), "--weights", str(real_data / "weights"), "-o", str(folder)]
    ended = CliRunner().invoke(app, ["reproduce", paper, "--scale", "smoke", *options], catch_exceptions=False)
    assert ended.exit_code == 0, ended.output
    text, web = (folder / "README.md").read_text(), (folder / "index.html").read_text()
    recipe = read_recipe(paper)
    sections = re.split("^## ", text, flags=re.MULTILINE)[3:]  # after how it was made, and the claims
    for exhibit, section in zip(recipe.exhibits, sections, strict=False):
        assert section.splitlines()[0].endswith(escaped(exhibit.title))
        assert "This run has no results for it." not in section, exhibit.key
        drawn = r"^\| ---" if exhibit.kind == "table" else r"^!\["
        assert re.search(drawn, section, re.MULTILINE), exhibit.key
    assert web.count("<img ") == len(re.findall(r"^!\[", text, re.MULTILINE))
    for key in recipe.not_reproduced:
        assert f"| {place_of(key)} |" in text
    for path in (folder / "pictures").glob("*.png"):
        assert path.stat().st_size <= 300_000, path.name
