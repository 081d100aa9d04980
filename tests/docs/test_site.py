"""The site as it is built: read from a disk, in the dark, on a phone; it asks nothing of the network."""

import importlib.util
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
playwright = pytest.importorskip("playwright.sync_api", reason="Playwright is not installed")
pytestmark = [
    pytest.mark.skipif(CHROMIUM is None, reason="no Chromium on this system"),
    pytest.mark.skipif(importlib.util.find_spec("material") is None, reason="mkdocs-material is not installed"),
]
PAGES = (
    "index",
    "start",
    "gallery",
    "how-to/mend-a-mistake",
    "notebooks/first-map",
    "notebooks/hidden-layers",
    "notebooks/choose-a-map",
    "concepts/metrics",
    "reference/methods",
    "results/index",
)


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("site")
    result = subprocess.run(
        [sys.executable, "-m", "mkdocs", "build", "--strict", "--quiet", "--site-dir", str(folder)],
        cwd=ROOT,
        env=os.environ | {"NO_MKDOCS_2_WARNING": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr[-3000:]
    return folder


def test_what_the_list_for_machines_names_is_there(site: Path) -> None:
    named = re.findall(r"\]\(([^)#]+)", (site / "llms.txt").read_text())
    assert [target for target in named if not (site / target).is_file()] == []


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    with playwright.sync_playwright() as driver:
        # Containers run as root, where Chromium's own sandbox cannot.
        opened = driver.chromium.launch(executable_path=CHROMIUM, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.mark.parametrize(
    "window",
    [
        {"viewport": {"width": 1280, "height": 900}, "color_scheme": "light"},
        {"viewport": {"width": 1280, "height": 900}, "color_scheme": "dark"},
        {"viewport": {"width": 390, "height": 844}, "color_scheme": "light"},
    ],
    ids=["light", "dark", "phone"],
)
def test_pages_open_from_a_disk_alone_and_fit_the_window(site: Path, browser: Any, window: dict[str, Any]) -> None:
    context = browser.new_context(offline=True, **window)
    tab, noise = context.new_page(), []
    tab.on(
        "request",
        lambda request: None if request.url.startswith(("file:", "data:")) else noise.append(request.url),
    )
    # What the next page cuts short, as the search index is read, has not failed.
    tab.on(
        "requestfailed",
        lambda request: None if request.failure == "net::ERR_ABORTED" else noise.append(f"failed: {request.url}"),
    )
    tab.on("pageerror", lambda error: noise.append(str(error)))
    for page in PAGES:
        tab.goto((site / f"{page}.html").as_uri())
        assert tab.locator("h1").first.is_visible()
        assert tab.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), page
        assert tab.evaluate("[...document.images].every(one => one.complete && one.naturalWidth > 0)"), page
    dark = tab.evaluate("document.body.dataset.mdColorScheme") == "slate"
    assert dark == (window["color_scheme"] == "dark")
    context.close()
    assert noise == []


def test_words_are_found_without_a_server(site: Path, browser: Any) -> None:
    context = browser.new_context(offline=True)
    tab = context.new_page()
    tab.goto((site / "index.html").as_uri())
    tab.locator("input.md-search__input").click()
    tab.keyboard.type("checkerboard")
    found = tab.locator(".md-search-result__link")
    found.first.wait_for(timeout=20_000)
    assert any("checkerboard" in link for link in found.evaluate_all("links => links.map(link => link.href)"))
    context.close()
