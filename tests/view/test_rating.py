"""Blind ratings: kept at once, told of nobody, and by five simulated raters the paper's two tables."""

import json
import re

import numpy as np
import pytest
from scipy.stats import rankdata

from pellucid.errors import DamagedFileWarning, InvalidData, InvalidParameter, UnknownName
from pellucid.experiments.ratings import RATINGS, read_ratings
from pellucid.experiments.runners import benchmark
from pellucid.experiments.spec import Spec
from pellucid.experiments.store import Results
from pellucid.findings.statistics import Statistics
from pellucid.findings.trust import trust_card
from pellucid.folders import Folder
from pellucid.papers.exhibits import exhibited
from pellucid.papers.page import table_of
from pellucid.papers.recipe import read_recipe
from pellucid.report.benchmark_page import benchmark_page
from pellucid.view.rating import RatingView
from tests.report.test_browser import CHROMIUM, browser, playwright  # noqa: F401
from tests.view.conftest import nobody, served
from tests.view.test_browser import UNNAMED, UNREADABLE, tab, until  # noqa: F401

QUESTIONS = ("rated_visual_coherence", "rated_edge_differentiation")
RAW = ("gradient", "input_x_gradient", "guided_backprop")
SMOOTHED = [f"smoothed({name}, samples=2)" for name in ("gradient", "integrated(gradient, steps=2)", RAW[2])]
WAYS = [f"integrated({name}, steps=2)" for name in ("gradient", "smoothed(gradient, samples=2)", RAW[2])]


@pytest.fixture(scope="module")
def maps_run(tmp_path_factory):
    """The nine methods of Combination methods on four photos, with the stand-ins of both ratings."""
    spec = {"models": [{"name": "shapes-resnet", "alias": "MNIST"}], "images": "shapes:4", "pictures": 4}
    spec |= {"methods": [*RAW, *SMOOTHED, *WAYS], "layers": "input", "channels": "abs_sum"}
    spec |= {"metrics": ["visual_coherence", "edge_differentiation"]}
    folder = tmp_path_factory.mktemp("maps") / "run"
    benchmark(Spec.model_validate(spec), folder)
    return folder


@pytest.fixture
def rating(maps_run):
    (maps_run / RATINGS).unlink(missing_ok=True)
    yield RatingView.open(maps_run)
    (maps_run / RATINGS).unlink(missing_ok=True)


def rate_all(view, rater, opinion):
    """Answer every question as (question, method, image) -> value says, which no rater knows."""
    for place in range(len(view._items)):
        _, method, image, _ = view._item(rater, place)
        for question in QUESTIONS:
            view.rate(nobody, rater, place, question, opinion(question, view.run.methods[method], image))


def paper_value(exhibit, recipe, method):
    return next(iter(exhibit.paper[recipe.label(method)].values()))


@pytest.mark.slow
@pytest.mark.parametrize("data", ["mnist", "cifar10", "tiny"])
def test_five_raters_of_known_bias_fill_the_papers_two_tables(rating, maps_run, data):
    recipe = read_recipe("combination-methods")
    exhibits = {
        question: next(one for one in recipe.exhibits if one.key == f"{table}-{data}")
        for question, table in zip(QUESTIONS, ("tableI", "tableII"), strict=True)
    }
    biases = {"Ada": 0, "Bo": 0, "Cy": 0, "Di": 1, "Ed": -1}

    def opinion(rater):
        def value(question, method, image):
            return int(np.clip(paper_value(exhibits[question], recipe, method) + biases[rater], 1, 5))

        return value

    for rater in biases:
        rate_all(rating, rater, opinion(rater))
    results = Results.read(maps_run)
    for exhibit in exhibits.values():
        found = exhibited(exhibit, recipe, results, Statistics.of(results))
        assert found.columns[1].endswith(" by eye")
        column = [cells[1] for cells in found.cells]
        for row, cell in zip(found.rows, column, strict=True):
            paper = next(iter(exhibit.paper[row].values()))
            expected = np.mean([np.clip(paper + bias, 1, 5) for bias in biases.values()])
            assert cell.found.value == pytest.approx(expected)
            assert (cell.found.images, cell.paper) == (4, paper)
        assert table_of(found, exhibit).caption.endswith(" and 1.00.")
        told = next(one for one in trust_card(results).findings if one.axis == "edges").agreement
        assert "5 raters rated 36 maps; Krippendorff's alpha, their agreement, is 0." in told
        theirs = rankdata([cell.found.value for cell in column])
        ours = rankdata([cells[0].found.value for cells in found.cells])
        assert f"over methods, is {np.corrcoef(theirs, ours)[0, 1]:.2f}".replace("-", "−") in told
    page = benchmark_page(results)
    assert "rated visual coherence" in page
    assert "36 maps" in page
    kept = results.table[results.table["metric"] == QUESTIONS[0]]
    of_ed = kept[kept["step"] == "Ed"]
    assert len(of_ed) == 36
    highest = max(next(iter(row.values())) for row in exhibits[QUESTIONS[0]].paper.values())
    assert of_ed["value"].max() == highest - 1


def test_nothing_that_was_answered_is_lost(rating, maps_run):
    rating.rate(nobody, "Ada", 0, QUESTIONS[0], 2)
    rating.rate(nobody, " Ada ", 0, QUESTIONS[0], 4)  # she has changed her mind
    with (maps_run / RATINGS).open("ab") as file:
        file.write(b'{"rater": "Ada", "quest')  # a crash
    rating.rate(nobody, "Ada", 1, QUESTIONS[1], 5)
    rating.rate(nobody, "Bo", 3, QUESTIONS[0], 1)
    with pytest.warns(DamagedFileWarning, match="line 5, is no rating"):
        begun = RatingView.open(maps_run).begin(nobody, "Ada")
    assert begun[:2] == [{QUESTIONS[0]: 4}, {QUESTIONS[1]: 5}]
    assert not any(begun[2:])


def test_each_rater_has_an_order_of_their_own_that_tells_no_method(rating):
    orders = {
        rater: tuple(rating._item(rater, place) for place in range(len(rating._items))) for rater in ("Ada", "Bo")
    }
    assert set(orders["Ada"]) == set(orders["Bo"]) == set(rating._items)
    assert orders["Ada"] != orders["Bo"]
    page = re.sub(r"<style>.*?</style>", "", rating.html(), flags=re.DOTALL)  # where gradients are colors
    told = json.dumps(rating.item(nobody, "Ada", 3)) + page
    assert not any(method in told for method in rating.run.methods)


@pytest.mark.parametrize(
    ("rater", "place", "question", "value"),
    [
        ("", 0, QUESTIONS[0], 3),
        ("x" * 61, 0, QUESTIONS[0], 3),
        ("Ada", 0, "beauty", 3),
        ("Ada", 0, QUESTIONS[0], 6),
    ],
)
def test_what_is_no_rating_is_not_kept(rating, maps_run, rater, place, question, value):
    with pytest.raises(InvalidParameter):
        rating.rate(nobody, rater, place, question, value)
    with pytest.raises(IndexError):
        rating.rate(nobody, "Ada", 99, QUESTIONS[0], 3)
    assert not (maps_run / RATINGS).exists()


def test_ratings_of_other_runs_and_of_no_sense_do_not_count(rating, maps_run):
    rating.rate(nobody, "Ada", 0, QUESTIONS[0], 3)
    line = json.loads((maps_run / RATINGS).read_text())
    for change in ({"image": "another"}, {"layer": "layer9"}, {"value": 0}, {"question": "beauty"}):
        with (maps_run / RATINGS).open("a") as file:
            file.write(json.dumps(line | change) + "\n")
    assert len(read_ratings(Folder(maps_run), rating.run.record)) == 1
    (maps_run / RATINGS).write_text('{"a": 1}\n[]\n\xff\n')
    with pytest.warns(DamagedFileWarning):
        assert read_ratings(Folder(maps_run), rating.run.record) == []


def test_what_cannot_be_rated_is_refused(maps_run, run):
    with pytest.raises(UnknownName, match="layer9"):
        RatingView.open(maps_run, layer="layer9")
    with pytest.raises(UnknownName, match="forwards"):
        RatingView.open(run, variant="forwards")
    assert len(RatingView.open(run, layer="layer1.1")._items) == 9
    with pytest.raises(InvalidData, match="there is no run"):
        RatingView.open(maps_run.parent)


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this system")
def test_maps_are_rated_by_keyboard_alone_and_gone_on_with(tab, rating, maps_run):  # noqa: F811
    def shown(page, place):
        until(page, f"document.getElementById('map').dataset.place === '{place}'")

    with served(rating) as server:
        page = tab(server.url, viewport={"width": 360, "height": 740}, color_scheme="dark")
        page.keyboard.press("Tab")
        page.keyboard.type("Ada <b>")
        page.keyboard.press("Enter")
        shown(page, 0)
        assert page.evaluate("document.documentElement.scrollWidth") == 360
        assert page.evaluate(UNREADABLE) == []
        assert page.evaluate(UNNAMED) == []
        page.keyboard.press("Enter")
        assert page.locator("#told").text_content() == "Both questions are to be answered first."
        for key in "2543":
            page.keyboard.press(key)
            if key in "53":
                page.keyboard.press("Enter")
                shown(page, 1 if key == "5" else 2)
        page.keyboard.press("Backspace")
        shown(page, 1)
        page.locator(f"input[name={QUESTIONS[0]}][value='1']").check()
        page.evaluate("state.sending")
        again = tab(server.url)
        again.fill("#rater", "Ada <b>")
        again.keyboard.press("Enter")
        shown(again, 2)
    begun = rating.begin(nobody, "Ada <b>")
    assert begun[:3] == [dict(zip(QUESTIONS, (2, 5), strict=True)), dict(zip(QUESTIONS, (1, 3), strict=True)), {}]
    assert re.search("Ada <b>", (maps_run / RATINGS).read_text())
