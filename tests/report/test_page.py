"""The page of a run: complete, escaped, self-contained, with the numbers of the table."""

import io
import json
import re
from base64 import b64decode
from dataclasses import replace
from html.parser import HTMLParser

import numpy as np
import pandas as pd
import pytest
from PIL import Image

from pellucid.errors import InvalidData
from pellucid.experiments.record import Note
from pellucid.findings.ranking import ranking
from pellucid.findings.statistics import Statistics
from pellucid.report import album, figures, tables
from pellucid.report.benchmark_page import benchmark_page
from pellucid.report.charts import Line, Panel, inline_chart, looks
from tests.tables import NAN, drawings, npy, plausible, png, results


class Outline(HTMLParser):
    """The elements that are open, to find those that are never closed."""

    VOID = ("meta", "link", "img", "input", "br", "wbr")

    def __init__(self):
        HTMLParser.__init__(self)
        self.open = []

    def handle_starttag(self, tag, attrs):
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"{tag} closes nothing at {self.getpos()}"


def test_the_page_is_well_formed_and_holds_all_it_needs(page):
    text = page.read_text()
    outline = Outline()
    outline.feed(text)
    assert outline.open == []
    assert not re.search(r"https?:|//[a-z]+\.|@import|url\(|<iframe|<object", text)
    sources = re.findall(r'\b(?:src|href)="([^"]{0,30})', text)
    assert sources
    assert all(source.startswith("data:") for source in sources)
    assert "{{" not in text
    assert "{%" not in text


def test_each_choice_has_its_trust_card_and_tables(page):
    text = page.read_text()
    for slot, count in {"trust": 4, "scores": 12, "curves": 12, "profiles": 1, "maps": 8, "strips": 6}.items():
        assert text.count(f'<template data-slot="{slot}"') == count


def test_each_metric_of_several_layers_is_drawn_along_them():
    run = plausible(methods=("random", "gradient"), variants=("original",), layers=("input", "layer1.1"), shown=1)
    text = benchmark_page(run)
    for name in ("insertion", "deletion", "total variation"):
        assert f'aria-label="{name} of gradient along the layers, by variant"' in text


@pytest.mark.parametrize(("images", "banded"), [(9, False), (10, True)])
def test_curves_of_few_images_have_no_bands(images, banded):
    run = plausible(images, methods=("random", "gradient"), variants=("original",), layers=("input",), shown=1)
    text = benchmark_page(run)
    [curves] = re.findall(r'<template data-slot="curves".*?</template>', text, re.DOTALL)
    assert ("opacity: 0.14" in curves) == banded
    assert ("fewer than 10 images" in text.split('data-slot="curves"')[0].split('id="curves-title"')[1]) != banded


def test_names_are_escaped():
    evil = '<script>alert("1")</script>&'
    values = {("net", evil, evil, evil, "insertion"): [0.1, 0.2, 0.3]}
    curves = [(next(iter(values)), at, None, [0.1, 0.2, 0.3]) for at in (0.0, 1.0)]
    text = benchmark_page(results(values, evil, curves))
    assert "<script>alert" not in text
    assert "&lt;script&gt;alert" in text


def test_two_images_give_a_page_without_intervals(recwarn):
    text = benchmark_page(plausible(images=2, methods=("random", "gradient"), variants=("original",)))
    assert "Too few images to say" in text
    assert "Only 2 images were graded" in text
    assert not recwarn.list


@pytest.mark.parametrize("missing", [[], ["a", "b", "c"]])
def test_an_unfinished_run_says_what_is_missing(missing):
    run = plausible(methods=("random", "gradient"), variants=("original",), layers=("input",))
    record = run.record.model_copy(update={"cells": tuple("abcdefgh")})
    text = benchmark_page(replace(run, record=record, missing=missing))
    assert ("This run is unfinished: 3 of 8 cells are missing" in text) == bool(missing)


def test_a_run_without_curves_pictures_or_variants_has_a_page():
    values = {("net", "original", name, "input", "insertion"): [0.1, 0.2, 0.4, 0.3] for name in ("a", "b")}
    text = benchmark_page(results(values))
    assert ">The maps<" not in text
    assert 'id="variant"' not in text
    assert "best layer" not in text.split("<main>")[0]


def test_a_run_without_results_is_refused():
    with pytest.raises(InvalidData, match="no cell of the run has finished"):
        benchmark_page(results({("net", "original", "a", "input", "insertion"): []}))


def test_a_large_run_stays_small():
    """Pictures beyond the budget are left out, and the page says so."""
    pictures = pd.DataFrame(
        drawings(("net",), ("original",), ("a", "b"), ("input",), 5),
        columns=["image", "kind", "model", "variant", "method", "layer", "data"],
    )
    whole = album.Album.of(pictures)
    assert len(whole.photos) == whole.kept == 5
    size = sum(map(len, [*whole.photos.values(), *whole.maps]))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(album, "BUDGET", size // 2)
        half = album.Album.of(pictures)
    assert list(half.photos) == ["image-0", "image-1"]
    assert half.kept == 5
    assert len(half.maps) == 4


# Numbers.


def test_tables_have_the_statistics_of_their_place(run):
    stats = Statistics.of(run)
    table = tables.overview(stats, "net", "backward", "layer1.1")
    assert [column.title for column in table.columns][:3] == ["Method", "insertion", "deletion"]
    for row in table.rows:
        for metric, cell in zip(stats.metrics, row.cells, strict=False):
            found = stats.summary.loc["net", "backward", row.title, "layer1.1", metric]
            assert cell.by == found["mean"]
            known = f", {found['n']:.0f} of 12" if found["undefined"] else ""
            assert cell.note == f"{'=' if found['shared'] else ''}{found['rank']:.0f}{known}"
            assert cell.best == (found["rank"] == 1)
            assert float(cell.text.replace("−", "-")) == pytest.approx(found["mean"], abs=0.006)
    assert [row.title for row in table.rows if row.floor] == ["random", "edges"]


def test_details_say_what_is_undefined_and_why(run):
    details = {table.metric: table for table in tables.details(Statistics.of(run), "net", "original", "input")}
    table = details["cascade_ssim"]
    assert [column.title for column in table.columns] == [
        "Method",
        "Rank",
        "Mean",
        "95 % interval",
        "Std",
        "Difference to gradient",
        "Images",
        "Undefined",
    ]
    assert [row.cells[-1].by for row in table.rows] == [0, 1, 2, 0, 1, 2]
    assert "6 values are undefined, and in no mean: a map is constant, and its structure undefined." in table.notes
    assert details["insertion(steps='auto')"].notes == ["RISE, Sec. 4."]


def test_each_method_stands_with_its_own_best_layer_and_who_has_no_map_at_one_is_named():
    values = {
        ("net", "original", name, layer, "insertion"): [0.1 + 0.5 * (layer == "deep"), 0.2, 0.3]
        for name, layers in {"a": ("input", "deep"), "b": ("input",)}.items()
        for layer in layers
    }
    stats = Statistics.of(results(values))
    (table,) = tables.details(stats, "net", "original", None)
    assert {row.title: row.cells[-1].text for row in table.rows} == {"a": "deep", "b": "input"}
    table = tables.overview(stats, "net", "original", None)
    assert [row.cells[0].note for row in table.rows] == ["=1 at deep", "=1 at input"]
    (table,) = tables.details(stats, "net", "original", "deep")
    assert table.notes[-1] == "Not here, since they have maps at other layers alone: b."


def test_whiskers_span_the_table():
    values = {
        ("net", "original", "a", "input", "insertion"): [0.0, 0.0, 0.0],
        ("net", "original", "b", "input", "insertion"): [1.0, 1.0, 1.0],
        ("net", "original", "c", "input", "insertion"): [0.25, NAN, NAN],
    }
    (table,) = tables.details(Statistics.of(results(values)), "net", "original", "input")
    drawn = [row.cells[2].whisker for row in table.rows]
    assert [(one.left, one.width, one.at) for one in drawn[:2]] == [(0, 0, 0), (100, 0, 100)]
    assert drawn[2] is None
    assert "Fewer than 3 values give neither an interval nor a rank." in table.notes


def test_a_whisker_of_one_number_stands_in_the_middle():
    values = {("net", "original", name, "input", "insertion"): [1.0, 1.0, 1.0] for name in "ab"}
    (table,) = tables.details(Statistics.of(results(values)), "net", "original", "input")
    drawn = [row.cells[2].whisker for row in table.rows]
    assert [(one.left, one.width, one.at) for one in drawn] == [(50, 0, 50), (50, 0, 50)]


def test_a_card_draws_each_method_once_and_what_knows_nothing_last(run):
    lead = ranking(Statistics.of(run), "net", "input", "insertion(steps='auto')")
    rows = tables.contender_rows(lead)
    names = [row.title.split(" (")[0] for row in rows]
    assert len(set(names)) == len(names)
    assert [row.floor for row in rows] == [False] * 4 + [True] * 2


# Pictures.


def pixels(uri):
    return np.asarray(Image.open(io.BytesIO(b64decode(uri.partition(",")[2]))).convert("RGB")).astype(int)


def test_maps_keep_their_pixels_and_the_figures_colors():
    values = np.array([[-1.0, 0.0], [0.5, 1.0]])
    expected = figures.colored(figures.scaled(values), signed=True).astype(int)
    found = pixels(album.map_uri(values, signed=True))
    assert found.shape == (2, 2, 3)
    assert np.abs(found - expected).max() <= 6  # 127 colors
    assert (found[0, 1] == expected[0, 1]).all()


def test_large_pictures_are_made_smaller():
    assert pixels(album.map_uri(np.random.default_rng(0).normal(size=(512, 1024)), True)).shape == (128, 256, 3)
    assert pixels(album.photo_uri(png(np.zeros((600, 300, 3), np.uint8)))).shape == (256, 128, 3)


def test_broken_pictures_are_named():
    columns = ["image", "kind", "model", "variant", "method", "layer", "data"]
    for kind, data in (("photo", b"no image"), ("map", b"no map"), ("map", npy(np.ones((2, 2)))[:70])):
        pictures = pd.DataFrame([("image-0", kind, "", "", "", "", data)], columns=columns)
        with pytest.raises(InvalidData, match=f"a {kind} among the run's pictures"):
            album.Album.of(pictures)


def test_pictures_are_embedded_once(page, run):
    text = page.read_text()
    maps = json.loads(re.search(r'id="pictures">(.*?)</script>', text, re.DOTALL)[1])
    assert len(maps["uris"]) == (run.pictures["kind"] == "map").sum()
    assert len(re.findall("data:image/png", text)) == len(maps["uris"])


# Charts.


def test_a_chart_takes_the_pages_colors_and_leaves_the_rest_alone():
    x = np.array([0.0, 0.5, 1.0])
    styles = looks([("edges", "edges"), *((str(number), "") for number in range(9)), ("random", "random")])
    lines = [Line(name, x, x, x - 0.1, x + 0.1) for name in ("0", "7", "8", "random", "edges")]
    svg = inline_chart(Panel("$title$ & more", "up", tuple(lines)), styles, 'a "b" <c>', "across")
    assert svg.startswith('<svg role="img" aria-label="a &quot;b&quot; &lt;c&gt;" viewBox=')
    assert not re.search(r"<style|<defs|<metadata| id=|clip-path|xlink|http|#[0-9a-f]{6}", svg)
    assert svg.count("stroke: var(--series-1)") == 2
    assert svg.count("stroke: var(--series-8)") == 1
    assert svg.count("fill: var(--faint); opacity") == 2
    assert svg.count("stroke-dasharray") == 3
    assert ">$title$ &amp; more</text>" in svg


def test_a_point_without_neighbors_is_marked_with_its_interval():
    """Of a method at one layer alone no line is seen."""
    x, mean = np.arange(4.0), np.array([0.2, 0.4, np.nan, 0.5])
    ticks = tuple((place, f"{place:.0f}") for place in x)
    panel = Panel("", lines=(Line("line", x, mean, mean - 0.1, mean + 0.1),), ticks=ticks)
    svg = inline_chart(panel, looks([("line", "")]), "line", limits=(0, 1))
    drawn = re.findall(r'<path d="([^"]*)" style="([^"]*var\(--series-1\)[^"]*)', svg)
    whiskers = [path for path, style in drawn if style == "fill: none; stroke: var(--series-1)"]
    [dot] = [path for path, style in drawn if style == "fill: var(--series-1)"]
    [whisker] = [np.array(re.findall(r"[\d.]+", path), float).reshape(-1, 2) for path in whiskers]
    circle = np.array(re.findall(r"[\d.]+", dot), float).reshape(-1, 2)
    np.testing.assert_allclose((circle.max(0) + circle.min(0)) / 2, whisker.mean(0), atol=0.11)
    [path] = [path for path, style in drawn if "stroke-width: 1.6" in style]
    line = np.array(re.findall(r"[\d.]+", path), float).reshape(-1, 2)  # at 0, 1 and 3
    assert whisker[0, 0] - line[0, 0] == pytest.approx(3 * (line[1, 0] - line[0, 0]), abs=0.3)
    assert whisker[0, 0] == whisker[1, 0]


def test_a_charts_lines_are_where_their_numbers_are():
    """Along a straight line through known ticks, the path has the ticks' places."""
    x = np.array([0.0, 0.5, 1.0])
    panel = Panel("", lines=(Line("line", x, x, x, x),), ticks=((0, "a"), (1, "b")))
    svg = inline_chart(panel, looks([("line", "")]), "line", limits=(0, 1))
    path = re.search(r'<path d="M ([^"]*)" style="fill: none; stroke: var\(--series-1\)', svg)[1]
    points = np.array([float(one) for one in re.findall(r"[\d.]+", path)]).reshape(-1, 2)
    first, last = points[0], points[-1]
    np.testing.assert_allclose(points[len(points) // 2], (first + last) / 2, atol=0.11)
    places = [float(one) for one in re.findall(r'text-anchor: end[^"]*" x="([\d.]+)"[^>]*>[ab]<', svg)]
    assert last[0] - first[0] == pytest.approx(places[1] - places[0], abs=0.2)


def test_what_is_to_be_known_of_maps_is_listed():
    plain = plausible(variants=("original",), layers=("input",), shown=1)
    assert "What to know of these maps" not in benchmark_page(plain)
    note = Note("EmptyMapWarning", "gradient<b>", "input", "original", "net")
    page = benchmark_page(replace(plain, notes=[note, note]))
    assert page.count("What to know of these maps") == 1
    assert page.count("gradient&lt;b&gt; is zero everywhere at input for some images; lower its threshold") == 1


def test_the_cards_words_on_the_best_are_of_how_they_are_drawn():
    """Cells of the table of means are shaded, names on the cards are bold."""
    text = benchmark_page(plausible(shown=1))
    assert "The best have their names in bold and their intervals in green" in text
    assert "Shaded are" not in text
    assert ".contenders .best th { font-weight: 650; }" in text


@pytest.mark.parametrize(
    ("methods", "ends", "note"),
    [
        (("gradient", "random"), ("against the class", "for the class"), "The sign of random says nothing."),
        (
            ("gradient", "random", "edges"),
            ("against the class", "for the class"),
            "The sign of random and edges says nothing.",
        ),
        (
            ("gradient", "random", "edges", "guided_backprop", "deconvnet", "rectgrad"),
            ("against the class", "for the class"),
            "The sign of random, edges, guided_backprop and 2 more says nothing.",
        ),
        (("gradient", "gradcam"), ("against the class", "for the class"), ""),
        (("random", "guided_backprop"), ("negative", "positive"), ""),
    ],
)
def test_colors_claim_no_more_than_signs_say(methods, ends, note):
    text = benchmark_page(plausible(methods=methods))
    assert all(f"<span>{end}</span>" in text for end in ends)
    assert ("The sign of" in text) == bool(note)
    assert note in text
