"""The notebooks of the site: each runs to its end in a kernel, and shows what it is kept with."""

import importlib.util
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
NUMBER = re.compile(r"(?<![\w.])\d+(?:\.\d+)?(?:e[+-]?\d+)?")
LARGEST = 150e3  # bytes of a notebook with its outputs


@pytest.fixture(scope="module")
def site_hook() -> Any:
    """The file that mkdocs and whoever changes notebooks run."""
    told = importlib.util.spec_from_file_location("site_notebooks", ROOT / "docs" / "notebooks.py")
    assert told is not None
    assert told.loader is not None
    module = importlib.util.module_from_spec(told)
    told.loader.exec_module(module)
    return module


def shown(output: Any, kinds: tuple[str, ...]) -> tuple[str, str]:
    """What an output is, a stream or the kind of data that is shown; and its text, which a picture has not."""
    if "name" in output:
        return str(output["name"]), "".join(output["text"])
    kind = next(kind for kind in kinds if kind in output["data"])
    return kind, "" if kind == "image/png" else "".join(output["data"][kind])


def words_and_numbers(outputs: Sequence[tuple[str, str]]) -> tuple[list[str], list[float]]:
    """Texts cut at their numbers: words are the same everywhere, and last digits are the processor's."""
    told = "\n".join(f"{kind}: {text}" for kind, text in outputs)
    return NUMBER.sub("#", told).split("\n"), [float(number) for number in NUMBER.findall(told)]


@pytest.mark.slow
@pytest.mark.filterwarnings("default")  # of the kernel's libraries
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_and_shows_what_it_is_kept_with(
    path: Path, site_hook: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    monkeypatch.setenv("PYTHONPATH", ":".join(filter(None, sys.path)))
    ran = site_hook.run(path)["cells"]
    kept = json.loads(path.read_text())["cells"]
    for both in zip(ran, kept, strict=True):
        (words, numbers), (known_words, known_numbers) = (
            words_and_numbers([shown(output, site_hook.KINDS) for output in cell.get("outputs", [])])
            for cell in both
        )
        assert words == known_words, "the notebook is stale: run python docs/notebooks.py"
        assert numbers == pytest.approx(known_numbers, rel=0.02, abs=0.005)


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_small_and_becomes_a_page(path: Path, site_hook: Any) -> None:
    assert path.stat().st_size < LARGEST
    notebook = json.loads(path.read_text())
    page = site_hook.as_markdown(notebook, path.name)
    assert page.startswith("# ")
    assert f'<a href="{path.name}" download>' in page
    kept = [output.get("data", {}) for cell in notebook["cells"] for output in cell.get("outputs", [])]
    assert page.count("](data:image/png;base64,") == sum("image/png" in data for data in kept) > 0
    assert max(map(len, kept)) == 1
