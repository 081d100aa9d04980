"""The pages in a browser: looked through, compared, covered; on a phone, by keyboard, asking nobody else."""

import base64
import io

import pytest
from PIL import Image

from pellucid.layers import layer_names
from tests.report.test_browser import CHROMIUM, browser, playwright  # noqa: F401
from tests.view.conftest import served

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this system")

# Text that is hard to read on its ground, and fields that nothing names.
UNREADABLE = """() => {
  const linear = (one) => one <= .04045 ? one / 12.92 : ((one + .055) / 1.055) ** 2.4;
  const luminance = (color) => {
    const [red, green, blue] = color.match(/[\\d.]+/g).map((one) => linear(one / 255));
    return .2126 * red + .7152 * green + .0722 * blue;
  };
  const ground = (part) => {
    const color = part ? getComputedStyle(part).backgroundColor : 'rgb(255, 255, 255)';
    return /, 0\\)$/.test(color) ? ground(part.parentElement) : color;
  };
  const words = 'h1, p, label, legend, button, select, input, small, figcaption, output, th, td, summary, span, b';
  return [...document.querySelectorAll(words)].filter((part) => {
    if (!part.offsetParent || !part.textContent.trim()) return false;
    const shades = [getComputedStyle(part).color, ground(part)].map(luminance);
    return (Math.max(...shades) + .05) / (Math.min(...shades) + .05) < 4.5;
  }).map((part) => part.outerHTML.slice(0, 90));
}"""
UNNAMED = """() => [...document.querySelectorAll('input, select, button, canvas[tabindex]')].filter((part) =>
  !(part.labels?.length || part.getAttribute('aria-label') || part.textContent.trim())
).map((part) => part.outerHTML.slice(0, 90))"""


@pytest.fixture
def tab(browser):  # noqa: F811
    """Open an address; requests to anywhere else, errors and messages fail the test."""
    contexts, noise = [], []

    def opened(url, **settings):
        context = browser.new_context(**settings)
        contexts.append(context)
        page = context.new_page()
        home = url.split("?")[0]
        page.on(
            "request",
            lambda one: noise.append(one.url) if not one.url.startswith((home, "data:", "blob:")) else None,
        )
        page.on("console", lambda message: noise.append(message.text))
        page.on("pageerror", lambda error: noise.append(str(error)))
        page.goto(url)
        return page

    yield opened
    assert noise == []
    for context in contexts:
        context.close()


def pixels(page, canvas):
    content = page.locator(canvas).evaluate("one => one.toDataURL()")
    return Image.open(io.BytesIO(base64.b64decode(content.partition(",")[2]))).convert("RGB")


def until(page, condition):
    """Wait until JavaScript is true; the page's own policy forbids what Playwright's way of waiting does."""
    for _ in range(400):
        if page.evaluate(condition):
            return
        page.wait_for_timeout(50)
    pytest.fail(f"never {condition}: {page.locator('#told').text_content()}")


def test_a_models_maps_are_scrubbed_pinned_and_covered(tab, live, loaded):
    with served(live) as server:
        page = tab(server.url)
        until(page, "document.getElementById('layer-name').textContent === 'input'")
        names = [page.locator("#layer-name").text_content()]
        first = pixels(page, "#map")
        asked = len(live._made)
        page.locator("#layer").focus()
        for _ in layer_names(loaded.model)[1:]:
            page.keyboard.press("ArrowRight")
            page.wait_for_timeout(50)
            names.append(page.locator("#layer-name").text_content())
        assert names == layer_names(loaded.model)
        assert "of one color" in page.locator("#told").text_content()  # of the last layer, and said there alone
        assert len(live._made) == asked  # scrubbing asks for nothing
        assert pixels(page, "#map") != first
        page.keyboard.press("Home")
        page.wait_for_timeout(100)
        assert "of one color" not in page.locator("#told").text_content()
        page.click("#pin")
        pinned = page.locator("#pinned-title").text_content()
        assert pinned.endswith(live.maps(lambda doing: None, 0, "gradient", 0, "auto")["explained"])
        page.locator("#layer").focus()
        page.keyboard.press("End")
        page.wait_for_timeout(100)
        assert pixels(page, "#other").tobytes() == first.tobytes()
        page.locator("#photo").focus()
        page.keyboard.press("ArrowRight")
        page.wait_for_timeout(100)
        assert " of 8 × 8: " in page.locator("#map-value").text_content()
        assert " of 64 × 64: " in page.locator("#other-value").text_content()
        before = page.locator("#numbers").text_content()
        page.fill("#radius", "20")
        page.locator("#photo").focus()
        page.keyboard.press("Space")
        until(page, "document.getElementById('numbers').textContent.includes('→')")
        page.click("#clear")
        until(page, "!document.getElementById('numbers').textContent.includes('→')")
        assert page.locator("#numbers").text_content() == before
        page.fill("#target", "circle - ring")
        page.keyboard.press("Enter")
        until(page, "document.getElementById('key').textContent.includes('for circle - ring')")
        page.fill("#text", "gradeint")
        page.keyboard.press("Tab")
        until(page, "document.getElementById('told').textContent.includes('did you mean gradient')")
        page.wait_for_timeout(100)
        assert page.locator("#map-title").text_content().startswith("gradient at ")


def test_photos_of_two_people_a_huge_one_and_a_stop(tab, live, tmp_path):
    Image.effect_noise((50, 40), 60).convert("RGB").save(tmp_path / "<img src=x onerror=alert(1)>.png")
    (tmp_path / "huge.png").write_bytes(bytes(2000))
    with served(live) as server:
        live.html()
        one, other = tab(server.url), tab(server.url)
        one.set_input_files("#file", tmp_path / "<img src=x onerror=alert(1)>.png")
        until(one, "document.getElementById('image').selectedOptions[0].text.startsWith('<img')")
        until(one, "document.getElementById('told').textContent.includes('Forward passes')")
        assert other.locator("#image option").count() == 3  # what one gives is not shown to the other
        one.evaluate("page.most = 1000")
        one.set_input_files("#file", tmp_path / "huge.png")
        until(one, "document.getElementById('told').textContent.includes('1000 are allowed')")
        other.fill("#text", "smoothed(gradient, samples=50000)")
        other.keyboard.press("Enter")
        until(other, "document.getElementById('told').textContent.includes('…')")
        other.click("#stop")
        until(other, "document.getElementById('told').textContent === 'Stopped.'")
        other.fill("#text", "gradcam")
        other.keyboard.press("Enter")
        until(other, "document.getElementById('told').textContent.includes('Forward passes')")


@pytest.mark.parametrize("kind", ["served", "a file"])
def test_a_run_is_looked_through_and_sorted(tab, run_view, tmp_path, kind):
    def look(url):
        page = tab(url)
        until(page, "document.getElementById('numbers').textContent.includes('total variation')")
        assert page.locator("#map-title").text_content() == "gradient at input, original"
        page.select_option("#order", label="where methods disagree most")
        until(page, "document.getElementById('image').options[0].text.includes('(')")
        expected = run_view.disagreement(lambda doing: None, 0, 0)["input"]
        shown = [int(one.get_attribute("value")) for one in page.locator("#image option").all()]
        assert shown == sorted(range(3), key=lambda place: -expected[place])
        page.select_option("#order", label="total_variation, best first")
        values = run_view.values(lambda doing: None, 0, 0, 1)["layers"]["input"]["total_variation"]
        least = min(range(3), key=lambda place: values[place])
        until(page, f"document.getElementById('image').value === '{least}'")
        page.select_option("#method", label="gradcam")
        page.locator("#card summary").click()
        until(page, "document.getElementById('card').textContent.includes('Trust card')")

    if kind == "served":
        with served(run_view) as server:
            look(server.url)
    else:
        (tmp_path / "run.html").write_text(run_view.exported())
        look((tmp_path / "run.html").as_uri())


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_phone_and_whoever_sees_little_can_use_it(tab, live, run_view, scheme):
    for view in (live, run_view):
        with served(view) as server:
            page = tab(server.url, viewport={"width": 360, "height": 740}, color_scheme=scheme)
            until(page, "document.querySelectorAll('#numbers tr').length > 1")
            page.click("#pin")
            page.wait_for_timeout(100)
            assert page.evaluate("document.documentElement.scrollWidth") == 360
            assert page.evaluate(UNREADABLE) == []
            assert page.evaluate(UNNAMED) == []


def test_the_keyboard_reaches_everything(tab, live):
    with served(live) as server:
        page = tab(server.url)
        until(page, "document.getElementById('told').textContent.includes('Forward passes')")
        reached = set()
        page.locator("h1").click()
        for _ in range(25):
            page.keyboard.press("Tab")
            reached.add(page.evaluate("document.activeElement.id || document.activeElement.name"))
        wanted = "image before after file target text variant pin photo map layer share scale brush radius"
        assert set(wanted.split()) <= reached
