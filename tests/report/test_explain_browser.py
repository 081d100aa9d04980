"""The page of `pellucid explain` in a browser: light, dark, on a phone, without scripts, without requests."""

import pytest
from PIL import Image
from typer.testing import CliRunner

from pellucid.cli import app
from tests.report.test_browser import CHROMIUM, brightness, browser, playwright  # noqa: F401

TINY = """
from torch import nn


def network():
    return nn.Sequential(
        nn.Conv2d(3, 4, 3, 2, 1), nn.Conv2d(4, 4, 9, 8, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2)
    )
"""
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this system")


@pytest.fixture(scope="module")
def explained(tmp_path_factory):
    folder = tmp_path_factory.mktemp("explained") / "out"
    methods = "gradient,smoothed(integrated(gradient, steps=2), samples=2)"
    arguments = ["explain", "shapes:2", "--model", "shapes-resnet", "--methods", methods, "--no-pictures"]
    arguments += ["--layers", "input,layer1.1,layer2.1", "--variant", "original,forward", "-o", str(folder)]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    return folder / "report.html"


@pytest.fixture
def view(browser, explained):  # noqa: F811
    """Open the page without scripts in a window of its own; any request or message fails the test."""
    contexts, noise = [], []

    def opened(**settings):
        context = browser.new_context(offline=True, java_script_enabled=False, **settings)
        contexts.append(context)
        tab = context.new_page()
        tab.on("request", lambda request: noise.append(request.url) if request.url[:5] != "data:" else None)
        tab.on("console", lambda message: noise.append(message.text))
        tab.goto(explained.as_uri())
        assert [url for url in noise if not url.endswith("favicon.ico")] == [explained.as_uri()]
        noise.clear()
        return tab

    yield opened
    for context in contexts:
        context.close()


def box(tab, selector, number=0):
    return tab.locator(selector).nth(number).bounding_box()


def test_every_photo_stands_with_its_maps_by_method_layer_and_variant(view):
    tab = view(viewport={"width": 1200, "height": 900})
    assert tab.locator(".seen img").count() == 2
    assert tab.locator(".maps").first.locator("tbody tr").count() == 4
    assert tab.locator(".maps").first.locator("thead th").all_text_contents()[1:] == [
        "input",
        "layer1.1",
        "layer2.1",
    ]
    for number in range(tab.locator("img").count()):
        image = tab.locator("img").nth(number)
        assert image.bounding_box()["width"] > 50
        assert image.get_attribute("alt")
        assert image.get_attribute("loading") is None  # few enough to be printed


def test_a_click_enlarges_a_picture_until_the_next_elsewhere(view):
    tab = view(viewport={"width": 1200, "height": 900})
    for selector in (".maps img", ".seen img"):
        small = box(tab, selector)["width"]
        tab.locator(selector).first.click()
        enlarged = box(tab, selector)
        assert enlarged["width"] > 800 > 3 * small
        assert enlarged["x"] >= 0
        assert enlarged["y"] >= 0
        assert enlarged["x"] + enlarged["width"] <= 1200
        assert enlarged["y"] + enlarged["height"] <= 900
        tab.locator("h1").click()
        assert box(tab, selector)["width"] == small


def test_a_click_shows_a_large_map_whole(browser, tmp_path):  # noqa: F811
    Image.effect_noise((900, 600), 60).convert("RGB").save(tmp_path / "photo.png")
    (tmp_path / "tiny.py").write_text(TINY)
    arguments = ["explain", str(tmp_path / "photo.png"), "--model", f"{tmp_path / 'tiny.py'}:network"]
    arguments += ["--preprocess", "none", "--layers", "input", "--no-pictures", "-o", str(tmp_path / "out")]
    assert CliRunner().invoke(app, arguments).exit_code == 0
    context = browser.new_context(offline=True, java_script_enabled=False, viewport={"width": 1200, "height": 900})
    tab = context.new_page()
    tab.goto((tmp_path / "out/report.html").as_uri())
    small, whole = tab.locator(".maps img.small"), tab.locator(".maps img.full")
    assert not whole.is_visible()
    small.click()
    assert whole.bounding_box()["width"] > 800 > 3 * small.bounding_box()["width"]
    whole.click()
    assert not whole.is_visible()
    context.close()


@pytest.mark.parametrize("size", [(80, 32), (32, 80)])
def test_maps_have_the_shape_of_their_photo(browser, tmp_path, size):  # noqa: F811
    """Whatever the shape of a layer, here of 40 x 16 and 5 x 2 places, rounded up."""
    Image.new("RGB", size, (200, 80, 40)).save(tmp_path / "photo.png")
    (tmp_path / "tiny.py").write_text(TINY)
    arguments = ["explain", str(tmp_path / "photo.png"), "--model", f"{tmp_path / 'tiny.py'}:network"]
    arguments += ["--preprocess", "none", "--layers", "input,0,1", "--no-pictures", "-o", str(tmp_path / "out")]
    result = CliRunner().invoke(app, arguments)
    assert result.exit_code == 0, result.output
    context = browser.new_context(offline=True, java_script_enabled=False)
    tab = context.new_page()
    tab.goto((tmp_path / "out/report.html").as_uri())
    boxes = [box(tab, ".seen img"), *(box(tab, ".maps img", number) for number in range(3))]
    for one in boxes:
        assert one["width"] / one["height"] == pytest.approx(size[0] / size[1], rel=0.02)
    assert max(one["height"] for one in boxes) == pytest.approx(boxes[0]["height"], rel=0.02)
    context.close()


def test_a_phone_never_scrolls_sideways_and_keeps_rows_titled(browser, explained):  # noqa: F811
    context = browser.new_context(offline=True, viewport={"width": 390, "height": 800})
    tab = context.new_page()
    tab.goto(explained.as_uri())
    assert tab.evaluate("document.documentElement.scrollWidth") == 390
    scroll = tab.locator(".scroll:has(.maps)").first
    assert scroll.evaluate("box => box.scrollWidth > box.clientWidth")
    before = scroll.locator("tbody th").first.bounding_box()["x"]
    scroll.evaluate("box => { box.scrollLeft = 150 }")
    assert scroll.locator("tbody th").first.bounding_box()["x"] == before
    context.close()


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_text_stands_out_in_both_schemes(browser, explained, scheme):  # noqa: F811
    context = browser.new_context(offline=True, color_scheme=scheme)
    tab = context.new_page()
    tab.goto(explained.as_uri())

    def shade(selector, what):
        return brightness(tab.evaluate(f"getComputedStyle(document.querySelector('{selector}')).{what}"))

    assert (shade("body", "backgroundColor") < 40) == (scheme == "dark")
    for selector in ("body", ".warning"):
        assert abs(shade(selector, "color") - shade(selector, "backgroundColor")) > 110
    context.close()
