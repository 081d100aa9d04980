"""The notebooks of the site: each runs to its end in a kernel, and shows what it is kept with."""

import importlib.util
import json
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
NOTEBOOKS = sorted((ROOT / "docs" / "notebooks").glob("*.ipynb"))
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


def shown(output: Any, kinds: tuple[str, ...]) -> str:
    """What an output is: a stream, or the kind of data that is shown of it."""
    return str(output.get("name") or next(kind for kind in kinds if kind in output["data"]))


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
    for cell, known in zip(ran, kept, strict=True):
        assert [shown(output, site_hook.KINDS) for output in cell.get("outputs", [])] == [
            shown(output, site_hook.KINDS) for output in known.get("outputs", [])
        ]


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
