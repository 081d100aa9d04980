"""The page in a browser: sorted, switched, on a phone, in the dark, and without any request."""

import base64
import shutil

import pytest

from pellucid.findings.statistics import Statistics
from pellucid.report.album import Album
from pellucid.report.benchmark_page import benchmark_page
from tests.tables import results

playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this system")


@pytest.fixture(scope="module")
def browser():
    with playwright.sync_playwright() as driver:
        # Containers run as root, where Chromium's own sandbox cannot.
        opened = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture
def view(browser, page):
    """Open the page in a window of its own; any request, error or message fails the test."""
    contexts, noise = [], []

    def opened(**settings):
        context = browser.new_context(offline=True, **settings)
        contexts.append(context)
        tab = context.new_page()
        tab.on("request", lambda request: noise.append(request.url) if request.url[:5] != "data:" else None)
        tab.on("console", lambda message: noise.append(message.text))
        tab.on("pageerror", lambda error: noise.append(str(error)))
        tab.goto(page.as_uri())
        assert noise == [page.as_uri()]
        noise.clear()
        return tab

    yield opened
    assert noise == []
    for context in contexts:
        context.close()


def column(tab, place, table="div[data-slot=scores] table"):
    """A column of the first such table, from top to bottom."""
    rows = tab.locator(table).first.locator("tbody tr")
    return rows.locator(f":scope > :nth-child({place + 1})").all_text_contents()


@pytest.mark.parametrize(("metric", "descending"), [("insertion(steps='auto')", True), ("total_variation", False)])
def test_a_click_sorts_the_best_to_the_top_and_another_the_worst(view, run, metric, descending):
    tab = view()
    means = Statistics.of(run).scores("net", "original", None).xs(metric, level="metric")["mean"]
    ordered = means.sort_values(ascending=not descending).index.tolist()
    assert column(tab, 0) != ordered
    head = tab.locator("div[data-slot=scores] thead").first.locator(
        "th", has_text=metric.split("(")[0].replace("_", " ")
    )
    head = head.first
    head.locator("button").click()
    assert column(tab, 0) == ordered
    assert head.get_attribute("aria-sort") == ("descending" if descending else "ascending")
    head.locator("button").press("Enter")
    assert column(tab, 0) == ordered[::-1]
    assert head.get_attribute("aria-sort") == ("ascending" if descending else "descending")
    tab.locator("div[data-slot=scores] thead button").first.click()
    assert column(tab, 0) == sorted(ordered)
    assert head.get_attribute("aria-sort") == "none"


def test_a_layer_and_a_variant_switch_numbers_card_and_pictures(view, run):
    tab = view()
    summary = Statistics.of(run).summary

    def shown():
        card = tab.locator("div[data-slot=trust]").text_content()
        curves = tab.locator("div[data-slot=curves]").inner_html()
        return column(tab, 1), card, curves

    def expected(variant, layer):
        return [
            summary.loc["net", variant, name, layer, "insertion(steps='auto')"]["mean"] for name in column(tab, 0)
        ]

    before = shown()
    tab.select_option("#layer", label="layer2.1")
    after = shown()
    assert all(one != other for one, other in zip(before, after, strict=True))
    assert [float(text.split()[0]) for text in after[0]] == pytest.approx(
        expected("original", "layer2.1"), abs=6e-3
    )
    tab.select_option("#variant", label="forward")
    assert [float(text.split()[0]) for text in column(tab, 1)] == pytest.approx(
        expected("forward", "layer2.1"), abs=6e-3
    )


def test_the_pictures_are_those_of_the_layer_the_variant_and_the_photo(view, run):
    tab = view()
    pictures = Album.of(run.pictures)

    def expected(variant, method, layer, photo):
        return pictures.maps[pictures.places["net", variant, method, layer, photo]]

    def drawn(slot, row, place):
        return (
            tab.locator(f"div[data-slot={slot}] tbody tr").nth(row).locator("img").nth(place).get_attribute("src")
        )

    assert tab.locator("div[data-slot=maps] img").count() == 0
    tab.select_option("#layer", label="layer1.1")
    assert drawn("maps", 3, 2) == expected("forward", "smoothgrad", "layer1.1", "image-0")
    tab.select_option("#layer", label="layer2.1")
    assert drawn("maps", 3, 2) == expected("forward", "smoothgrad", "layer2.1", "image-0")
    tab.get_by_text("image-1: class 1", exact=True).click()
    assert drawn("maps", 3, 2) == expected("forward", "smoothgrad", "layer2.1", "image-1")
    tab.select_option("#variant", label="backward")
    assert drawn("strips", 5, 0) == expected("backward", "gradcam", "input", "image-1")
    for image in tab.locator("div[data-slot=strips] img").all():
        assert image.evaluate("one => one.decode().then(() => one.naturalWidth)") > 0


def test_opened_details_stay_open_when_the_layer_changes(view):
    tab = view()
    tab.locator("details[data-metric=deletion\\(steps\\=\\'auto\\'\\)] summary").click()
    tab.select_option("#layer", label="layer2.1")
    assert tab.locator("div[data-slot=scores] details[open]").count() == 1
    cells = tab.locator("div[data-slot=scores] details[open] tbody tr").first.locator("td").all_text_contents()
    assert " to " in cells[2]


def test_the_keyboard_reaches_all_choices(view):
    tab = view()
    tab.locator("#layer").focus()
    tab.keyboard.press("ArrowDown")
    assert tab.locator("#layer option:checked").text_content() == "input"
    assert tab.locator("div[data-slot=maps] img").count() > 0
    tab.locator("input[name=photo]").first.focus()
    tab.keyboard.press("ArrowRight")
    assert tab.locator("input[name=photo]:checked").get_attribute("value") == "1"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_scrolls_down_and_never_sideways(view, scheme):
    tab = view(viewport={"width": 360, "height": 740}, color_scheme=scheme)
    tab.select_option("#layer", label="layer1.1")
    for part in tab.locator("details").all():
        part.evaluate("part => { part.open = true }")
    assert tab.evaluate("document.documentElement.scrollWidth") == 360
    box = tab.locator("div[data-slot=scores] .scroll").first
    assert box.evaluate("box => box.scrollWidth > box.clientWidth")
    name = box.locator("tbody th").first
    before = name.bounding_box()["x"]
    box.evaluate("box => { box.scrollLeft = 200 }")
    assert name.bounding_box()["x"] == before


def brightness(color):
    """How bright an rgb(...) color is, from 0 to 255."""
    red, green, blue = (float(one) for one in color[4:-1].split(","))
    return 0.299 * red + 0.587 * green + 0.114 * blue


def test_the_dark_scheme_is_dark_and_its_text_light(view):
    shades = {}
    for scheme in ("light", "dark"):
        tab = view(color_scheme=scheme)
        shades[scheme] = [
            brightness(tab.evaluate(f"getComputedStyle(document.querySelector('{where}')).{what}"))
            for where, what in (
                ("body", "backgroundColor"),
                ("body", "color"),
                (".cards article", "backgroundColor"),
                ("div[data-slot=curves] svg text", "fill"),
            )
        ]
    ground, ink, card, label = shades["dark"]
    assert max(ground, card) < 40
    assert min(ink, label) > 140
    ground, ink, card, label = shades["light"]
    assert min(ground, card) > 240
    assert max(ink, label) < 120


def test_without_scripts_the_page_says_what_it_needs(browser, page):
    context = browser.new_context(java_script_enabled=False, offline=True)
    tab = context.new_page()
    tab.goto(page.as_uri())
    assert tab.locator("noscript .warning").is_visible()
    context.close()


def test_the_shown_photo_is_the_runs(view, run):
    tab = view()
    source = tab.locator(".photos img").first.get_attribute("src")
    assert base64.b64decode(source.partition(",")[2])[:2] == b"\xff\xd8"
    assert source == next(iter(Album.of(run.pictures).photos.values()))


def test_a_network_brings_its_own_layers(browser, tmp_path):
    values = {
        (model, "original", method, layer, "insertion"): [number + 0.1 * place, number, number + 0.02]
        for model, layers in {"small": ("input", "block"), "large": ("stem", "body", "top")}.items()
        for place, layer in enumerate(layers)
        for method, number in {"a": 0.2, "b": 0.4}.items()
    }
    (tmp_path / "report.html").write_text(benchmark_page(results(values)))
    tab = browser.new_page()
    tab.goto((tmp_path / "report.html").as_uri())

    def visible_layers():
        return tab.locator("select.layer:visible option").all_text_contents()

    assert visible_layers() == ["each method at its own best layer", "input", "block"]
    tab.select_option("#layer", label="block")
    tab.select_option("#model", label="large")
    assert visible_layers() == ["each method at its own best layer", "stem", "body", "top"]
    tab.locator("select.layer:visible").select_option(label="top")
    expected = Statistics.of(results(values)).summary.loc["large", "original", "a", "top", "insertion"]["mean"]
    assert float(column(tab, 1)[0].split()[0]) == pytest.approx(expected, abs=6e-3)
    tab.select_option("#model", label="small")
    expected = Statistics.of(results(values)).summary.loc["small", "original", "a", "block", "insertion"]["mean"]
    assert float(column(tab, 1)[0].split()[0]) == pytest.approx(expected, abs=6e-3)
    tab.close()
