"""The page: everything that the recipe asks for, in words, numbers and pictures, on Markdown and HTML alike."""

import dataclasses
import io
import re

import numpy as np
import pytest
import scipy.stats
from PIL import Image

from pellucid.errors import OutputNotWritable
from pellucid.findings.statistics import Statistics
from pellucid.papers import page
from pellucid.papers.exhibits import MapGrid
from pellucid.papers.quantities import Found
from pellucid.papers.recipe import Recipe
from pellucid.report import charts
from pellucid.report.charts import BoxPlot, Line, Panel
from pellucid.report.figures import write_figure
from pellucid.report.pages import escape_markdown
from tests.papers.example import RECIPE, example
from tests.tables import NAN, results


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("page") / "results"
    return folder, page.write_paper_page(example(), folder)


@pytest.fixture(scope="module")
def text(written):
    return (written[0] / "README.md").read_text()


@pytest.fixture(scope="module")
def web(written):
    return (written[0] / "index.html").read_text()


@pytest.mark.slow
def test_it_names_the_files_that_it_wrote(written):
    folder, files = written
    names = [path.relative_to(folder).as_posix() for path in files]
    assert names[:2] == ["README.md", "index.html"]
    drawn = ["figure8", "figure5-7", "curves", "figure9", "figure1-1", "figure1-2"]
    assert names[2:] == [f"pictures/{name}.png" for name in drawn]
    assert all(path.is_file() for path in files)
    assert not list(folder.rglob(".*"))
    charts_alone = {f"{name}.svg" for name in drawn if not name.startswith("figure1-")}
    assert {path.name for path in folder.rglob("*.svg")} == charts_alone  # maps have pixels


def test_every_picture_of_the_markdown_is_there_and_small(written, text):
    folder, files = written
    linked = re.findall(r"^!\[[^\n]+\]\((pictures/[\w-]+\.png)\)$", text, re.MULTILINE)
    assert [folder / name for name in linked] == files[2:]
    for path in files[2:]:
        assert path.stat().st_size <= 300_000
        with Image.open(path) as picture:
            assert min(picture.size) >= 300


@pytest.mark.slow
def test_photos_may_be_left_out(written, tmp_path):
    files = page.write_paper_page(example(), tmp_path, photos=False)
    assert [path.name for path in files] == [path.name for path in written[1]]
    for alone, beside in zip(files[2:], written[1][2:], strict=True):
        if alone.stem.startswith("figure1-"):
            with Image.open(alone) as one, Image.open(beside) as other:
                assert one.width < other.width
        else:
            assert alone.read_bytes() == beside.read_bytes()


def test_the_web_page_needs_nothing_else(web):
    assert web.count("<img ") == 6
    assert not re.search(r"(src|href)=\"(?!data:)", web)


def rows_of(text, heading):
    """The cells of the table below a heading of the Markdown."""
    for mark, end in ((f"## {heading}\n", "\n## "), (f"<summary>{heading}</summary>\n", "\n</details>")):
        if mark in text:
            part = text.split(mark)[1].split(end)[0]
    lines = [line for line in part.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in lines if "---" not in line]


def test_how_it_was_made_stands_on_the_page(text):
    facts = {row[0]: row[1] for row in rows_of(text, "How this was made")[1:]}
    assert facts == {
        "Command": "pellucid reproduce clear-maps --scale cpu",
        "Scale": page.SCALES["cpu"],
        "Trained: mnist": "network: mnist-cnn, 3 epochs of 60,000 images, "
        "accuracy 98.77 % on 10,000 held-out images, 2 min",
        "Trained: paths": "surrogate: resnet18, 1 epoch of 2,500 images, last loss 0.01235, 8 min",
        "Experiment: all": "12 images, 1 network, 3 variants, 6 methods, 10 measures",
        "Time": "2 min",
    }
    assert text.endswith("Made by pellucid 0.1, torch 2.4\n")


def test_the_differences_from_the_paper_stand_before_the_results_with_facts_about_files(text):
    assert rows_of(text, "How this differs from the paper")[1:] == [
        ["images", "all of few photos", "12 of few photos", "", "all"],
        ["class explained", "label", "scored", "", "all"],
        ["precision of the network scored", "full", "bfloat16", "", "all"],
        ["steps", "28", "7", "Insertion", "all"],
    ]
    assert text.index("differs from the paper") < text.index("## Table 5")
    assert "Few photos: they were squashed." in text
    assert "of other weights" not in text  # the weights of that name were used, not the file


@pytest.mark.slow
def test_a_run_at_the_papers_scale_says_so(tmp_path):
    recipe = RECIPE | {"experiments": [RECIPE["experiments"][0] | {"published": {}}]}
    page.write_paper_page(changed(scale="paper", recipe=Recipe.model_validate(recipe)), tmp_path)
    text = (tmp_path / "README.md").read_text()
    assert page.ALIKE in text.split("differs from the paper\n")[1].split("\n##")[0]


def test_each_claim_has_its_verdict_and_its_numbers(text):
    _, *rows = rows_of(text, "The claims")
    verdicts = page.judged(example())
    assert [row[2] for row in rows] == [one.word for one in verdicts]
    assert rows[1][2] == "does not hold"
    assert rows[1][0] == "SmoothGrad is worse than random (Sec. 5)"
    number = verdicts[1].found[0]
    value, low, high = (f"{part:.3f}" for part in (number.value, number.low, number.high))
    expected = f"SmoothGrad, Insertion, difference to random: {value} \\[{low},\N{NO-BREAK SPACE}{high}\\]"
    assert rows[1][1] == f"{expected}; claimed &lt;\N{NO-BREAK SPACE}0"
    assert rows[1][3] == "12"
    assert "(one of 2 numbers); 12 values do not tell it from 0; about" in rows[0][1]
    assert rows[2][1:] == ["it asks people", "not tested", "–"]
    _, *whole = rows_of(text, "The claims in all their numbers")
    assert [row[2] for row in whole] == [verdicts[0].word]  # the others have one number alone
    assert whole[0][3] == "As far as made-up results can say."
    assert len(whole[0][1].split("<br>")) == 2
    [finding] = [line for line in text.splitlines() if "of 4 claims" in line]
    assert finding == (
        "At cpu scale, of 4 claims, 0 hold, 1 does not, 1 is undecided and 2 were not tested. "
        "Does not hold: SmoothGrad is worse than random"
    )


def test_tables_have_our_numbers_over_the_papers(text):
    head, *rows = rows_of(text, "Table 5: Noise")
    assert head == ["Method", "F", "B"]
    assert [row[0] for row in rows] == ["SmoothGrad", "Gradient", "IG"]
    assert re.fullmatch(r"−?\d+\.\d \\\[−?\d+\.\d,\N{NO-BREAK SPACE}−?\d+\.\d\\\]<br>paper: 21\.8", rows[1][1])
    assert rows[2] == ["IG", "–", "–<br>paper: 12.2"]
    assert "*Ours \\[95 % interval\\], n = 12; below it the paper's.*" in text


@pytest.mark.slow
def test_a_step_is_compared_with_another_in_words(tmp_path):
    test = {"experiment": "all", "metric": "cascade_ssim", "method": "gradient", "layer": "input", "step": "conv1"}
    test |= {"variant": "original", "how": "difference", "against": {"step": "fc"}, "below": 0}
    claim = {"text": "It falls", "place": "Sec. 8", "tests": [test]}
    page.write_paper_page(changed(recipe=Recipe.model_validate(RECIPE | {"claims": [claim]})), tmp_path)
    [_, row] = rows_of((tmp_path / "README.md").read_text(), "The claims")
    assert row[1].startswith("O, Gradient, the image, cascade\\_ssim, conv1, difference to fc: −0.0")


def test_a_table_says_how_far_its_order_is_the_papers(tmp_path):
    values = {"a": 1.0, "b": 2.0, "c": 5.0, "d": 3.0}
    place = ("input", "total_variation")
    made = results({("net", "original", name, *place): [value] for name, value in values.items()})
    paper = {name: {"TV": rated} for name, rated in zip("abcd", (1, 1, 4, 5), strict=True)}
    exhibit = RECIPE["exhibits"][0] | {"where": {}, "columns": "metric", "paper": paper, "orders": True}
    recipe = Recipe.model_validate(RECIPE | {"exhibits": [exhibit], "claims": []})
    page.write_paper_page(
        changed(recipe=recipe, results={"all": made}, statistics={"all": Statistics.of(made)}), tmp_path
    )
    expected = scipy.stats.spearmanr([1, 2, 5, 3], [1, 1, 4, 5]).statistic
    assert f"correlation with the paper's order: {expected:.2f}." in (tmp_path / "README.md").read_text()


def test_every_section_is_there_in_order_on_both(text, web):
    headings = [
        "Figure 8: Randomization",
        "The claims",
        "How this differs from the paper",
        "Table 5: Noise",
        "Figures 5–7: Insertion by layer",
        "Insertion",
        "Figures 9 and 10: Mass",
        "Figure 1: Maps",
        "Table 9: Nothing",
    ]
    folded = ["The claims in all their numbers", "Not reproduced", "How this was made"]
    assert re.findall("^## (.*)$", text, re.MULTILINE) == headings
    assert re.findall("<h2>(.*?)</h2>", web) == headings
    for written in (text, web):
        assert re.findall("<summary>(.*?)</summary>", written) == folded
        assert written.count("<details>") == written.count("</details>") == 3
    assert "This run has no results for it." in text.split("## Table 9")[1]
    assert "\nIn the appendix.\n" in text.split("## Insertion\n")[1]
    assert rows_of(text, "Not reproduced")[1:] == [
        ["Table 1", "It lists data sets."],
        ["Figure 2", "It is a drawing."],
    ]


def test_what_is_written_means_itself(text, web):
    assert "# Clear maps of &lt;networks&gt;, reproduced" in text
    assert "3 \\* 3 networks" in text
    assert "Read \\| from left to right." in text
    assert "1\\. This is no list." in text
    assert "<h1>Clear maps of &lt;networks&gt;, reproduced</h1>" in web
    assert "A. Author &amp; B. Author" in web


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        ("a_b*c`d[e]|f~g$h#i\\j", "a\\_b\\*c\\`d\\[e\\]\\|f\\~g\\$h\\#i\\\\j"),
        ("- no list", "\\- no list"),
        ("-1 is a number", "-1 is a number"),
        ("2) no list", "2\\) no list"),
        ("<b> & c", "&lt;b&gt; &amp; c"),
    ],
)
def test_markdown_is_escaped(given, expected):
    assert escape_markdown(given) == expected


def changed(**settings):
    return dataclasses.replace(example(), **settings)


@pytest.mark.slow
def test_what_failed_or_was_not_run_is_said(tmp_path):
    whole = example().results["all"]
    record = whole.record.model_copy(update={"cells": ("a", "b")})
    failed = dataclasses.replace(whole, record=record, missing=["a"], failed={"a": "the disk is full"})
    page.write_paper_page(changed(results={"all": failed}), tmp_path / "failed")
    assert (
        "1 of 2 parts of all have no results: the disk is full." in (tmp_path / "failed" / "README.md").read_text()
    )
    page.write_paper_page(changed(results={"all": failed}, statistics={}), tmp_path / "none")
    text = (tmp_path / "none" / "README.md").read_text()
    assert text.count("This run has no results for it.") == 7
    assert "| Experiment: all | no results |" in text
    assert "0 hold, 0 do not, 0 are undecided and 4 were not tested" in text


def test_one_image_has_numbers_without_intervals(tmp_path):
    made = results({("net", variant, "gradient", "input", "total_variation"): [2.0] for variant in ("original",)})
    exhibit = {
        "kind": "table",
        "key": "table1",
        "title": "T",
        "experiment": "all",
        "rows": "method",
        "columns": "metric",
    }
    recipe = Recipe.model_validate(RECIPE | {"exhibits": [exhibit], "claims": [], "not_reproduced": {}})
    page.write_paper_page(
        changed(recipe=recipe, results={"all": made}, statistics={"all": Statistics.of(made)}), tmp_path
    )
    text = (tmp_path / "README.md").read_text()
    assert "| Gradient | 2.000 |" in text
    assert "n = 1." in text
    assert "claims," not in text


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(OutputNotWritable, match="choose a folder you may write to"):
        page.write_paper_page(example(), tmp_path / "file")


@pytest.mark.parametrize(
    ("key", "place", "heading", "said"),
    [
        ("table5", "", "Table 5: T", False),
        ("table5-resnet50", "Table 5", "Table 5: T", False),
        ("table4", "Table 4, insertion", "Table 4: T", True),
        ("figure8a", "Section 5.3, figure 8a", "Figure 8a: T", True),
        ("roar", "not in the paper", "T", True),
        ("roar", "", "T", False),
    ],
)
def test_an_exhibit_says_where_it_is_in_the_paper(tmp_path, key, place, heading, said):
    exhibit = RECIPE["exhibits"][-1] | {"key": key, "place": place, "title": "T"}
    recipe = Recipe.model_validate(RECIPE | {"exhibits": [exhibit]})
    page.write_paper_page(changed(recipe=recipe), tmp_path)
    _, part = (tmp_path / "README.md").read_text().split(f"\n## {heading}\n\n")
    assert part.startswith(f"{place[:1].upper()}{place[1:]}.\n\nThis run" if said else "This run")


def test_words():
    assert page.place_of("table5") == "Table 5"
    assert page.place_of("tableI") == "Table I"
    assert page.place_of("figure14-19") == "Figures 14–19"
    assert page.place_of("figure-5a") == "Figure 5a"
    assert page.place_of("segmentation") == "segmentation"
    assert [page.duration(seconds) for seconds in (0.4, 89, 125, 7500)] == ["0 s", "89 s", "2 min", "2 h 5 min"]
    assert page.told(Found(1e-9, np.array([NAN, NAN]), 2, 1), 3) == "1.0 × 10⁻⁹"
    assert page.told(None, 3) == "–"


# Figures.


def drawn_figure(panels, **options):
    """A figure whose looks are those of its own lines and boxes."""
    parts = [(part.name, part.floor) for panel in panels for part in panel.parts]
    return charts.chart_figure(panels, charts.looks(parts, charts.MARKERS), **options)


def line(name, floor="", count=3):
    x = np.arange(count, dtype=float)
    return Line(name, x, x, x - 1, x + 1, floor)


def drawn_axes(figure):
    return [axes for axes in figure.axes if axes.axison]


def test_names_keep_their_looks_and_floors_are_gray():
    lines = (line("random", "random"), line("a"), line("b")), (line("b"), line("c"))
    figure = drawn_figure([Panel("one", "", lines[0]), Panel("two", "", lines[1])])
    colors = {}
    for axes in drawn_axes(figure):
        for drawn, name in zip(
            axes.lines, ["random", "a", "b"] if axes is figure.axes[0] else ["b", "c"], strict=True
        ):
            assert colors.setdefault(name, drawn.get_color()) == drawn.get_color()
    assert colors["random"] == charts.FAINT
    assert len(set(colors.values())) == 4
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["random", "a", "b", "c"]


@pytest.mark.parametrize("count", [1, 12, 16])
def test_lines_are_told_apart_and_the_legend_lies_outside(count):
    names = [f"method {number}" for number in range(count)]
    figure = drawn_figure([Panel("", "score", tuple(map(line, names)), ticks=((0, "a long layer"), (1, "b")))] * 2)
    looks = {(drawn.get_color(), str(drawn.get_linestyle())) for drawn in figure.axes[0].lines}
    assert len(looks) == count
    legend = figure.legends[0].get_window_extent()
    assert legend.x0 >= 0
    assert legend.x1 <= figure.bbox.x1
    for axes in drawn_axes(figure):
        assert axes.get_tightbbox().y0 >= legend.y1 - 1
        assert axes.bbox.height > 0.25 * figure.bbox.height


def test_what_stands_at_an_axis_lies_within_the_figure():
    x = np.arange(12.0)
    places = tuple((place, f"layer{place}.0") for place in range(12))
    panels = [
        Panel(title, "", (Line("a", x, y, y - 0.01, y + 0.01),), ticks=places)
        for title, y in (("one", np.linspace(1, 0.07, 12)), ("two", np.linspace(1, -0.1, 12)))
    ]
    figure = drawn_figure(panels, across="randomized down to")
    figure.savefig(io.BytesIO(), dpi=figure.dpi)  # outside the charts' style, which ticks were chosen by
    boxes = [axes.get_tightbbox() for axes in figure.axes]
    assert min(min(box.x0, box.y0) for box in boxes) >= 0
    assert boxes[0].x1 <= boxes[1].x0


def test_panels_have_one_scale_where_they_are_alike():
    panels = [Panel("a", "", (line("x"),)), Panel("b", "", (line("x", count=9),))]
    apart, alike = (drawn_figure(panels, alike=same).axes for same in (False, True))
    assert apart[0].get_ylim() != apart[1].get_ylim()
    lows, highs = zip(*(axes.get_ylim() for axes in apart), strict=True)
    assert [axes.get_ylim() for axes in alike] == [(min(lows), max(highs))] * 2


def test_boxes_stand_from_top_to_bottom():
    boxes = tuple(BoxPlot(name, 0, 1, 2, 3, 4, 9) for name in ("first", "second"))
    [axes] = drawn_figure([Panel("", "share", boxes=boxes)]).axes
    first, second = axes.get_yticklabels()
    assert (first.get_text(), second.get_text()) == ("first", "second")
    assert first.get_window_extent().y0 > second.get_window_extent().y1
    assert axes.get_xlabel() == "share"


def test_large_grids_of_noise_are_kept_small(tmp_path):
    rng = np.random.default_rng(0)
    cells = tuple(tuple(rng.normal(size=(224, 224)) for _ in range(8)) for _ in range(3))
    photo = rng.integers(0, 255, (224, 224, 3)).astype(np.uint8)
    names = tuple("abcdefgh")
    figure = page.map_figure(MapGrid("photo", ("gradient",), photo, ("x", "y", "z"), names, cells))
    write_figure(figure, tmp_path / "noise.png", page.LARGEST_PNG)
    assert (tmp_path / "noise.png").stat().st_size <= 300_000


def test_a_large_picture_keeps_what_is_for_and_against_the_class_apart(tmp_path):
    noise = np.random.default_rng(0).normal(size=(3, 9, 112, 112)) ** 3
    rows, columns = (tuple(map(str, range(count))) for count in (3, 9))
    figure = page.map_figure(MapGrid("photo", ("gradient",), None, rows, columns, tuple(map(tuple, noise))))
    write_figure(figure, tmp_path / "whole.png")
    assert (tmp_path / "whole.png").stat().st_size > page.LARGEST_PNG
    path = tmp_path / "small.png"
    write_figure(figure, path, page.LARGEST_PNG)
    assert path.stat().st_size <= page.LARGEST_PNG
    pictures = [Image.open(one).convert("RGB") for one in (tmp_path / "whole.png", path)]
    whole, small = (np.asarray(picture).astype(int) for picture in pictures)
    assert (small[whole.min(2) == 255] == 255).all()  # the page stays white
    assert np.abs(small - whole).max() < 64  # of 255: dark red and dark blue are 100 apart
    assert np.abs(small - whole).mean() < 6


def test_a_grid_without_maps_is_not_drawn():
    assert page.map_figure(MapGrid("photo", ("gradient",), None, ("x",), ("y",), ((None,),))) is None


@pytest.mark.parametrize(
    ("methods", "said", "unsaid"),
    [
        (("gradient",), "against the class", "says nothing"),
        (("guided_backprop",), "negative", "the class"),
        (("gradient", "guided_backprop"), "the sign of guided_backprop says nothing", "rectgrad"),
    ],
)
def test_a_legend_claims_no_sign_of_methods_that_have_none(methods, said, unsaid):
    cells = ((np.array([[1.0, -1.0], [0.5, 0.0]], np.float32),),)
    drawn = page.map_figure(MapGrid("photo", methods, None, ("x",), ("y",), cells)).file("svg").decode()
    assert said in drawn
    assert unsaid not in drawn
