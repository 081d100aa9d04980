"""CONTRIBUTING's recipes, carried out on a copy of the project, which must then keep the contract."""

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
COPIED = (
    "src",
    "tests",
    "docs",
    "benchmarks",
    "README.md",
    "CHANGELOG.md",
    "ARCHITECTURE.md",
    "CONTRIBUTING.md",
    "mkdocs.yml",
    "pyproject.toml",
)
# What the recipes add, and the tests that must take notice of it.
ADDED = ("halved", "jittered_gradient", "twice_smoothed", "entropy", "sanity-checks")
TESTS = (
    "tests/contract",
    "tests/rules/test_oracle.py",
    "tests/structure/test_floors.py",
    "tests/structure/test_pages.py",
    "tests/papers/test_recipes.py",
)
CHOSEN = "halved or jittered or twice_smoothed or entropy or structure or every_rule or (looked_up and sanity)"


def recipes(text: str) -> list[tuple[str, str, str]]:
    """Each block of code with a file: (language, file, lines), in order."""
    found = []
    for language, body in re.findall(r"^```(python|toml|diff)\n(.*?)^```", text, re.DOTALL | re.MULTILINE):
        first, _, rest = body.partition("\n")
        found.append((language, first.lstrip("#- ").strip(), rest))
    return found


def carry_out(root: Path, language: str, name: str, lines: str) -> None:
    """Append a block to its file; of a diff, put the added lines behind the line that stands above them."""
    path = root / name
    text = path.read_text()
    if language != "diff":
        path.write_text(f"{text}\n\n{lines}")
        return
    above, added = "", []
    for line in [*lines.splitlines(), " "]:
        if line.startswith("+"):
            added.append(line[1:])
            continue
        if added:
            assert text.count(f"{above}\n") == 1, f"{name}: {above!r} stands there {text.count(above)} times"
            text, added = text.replace(f"{above}\n", "\n".join([above, *added, ""])), []
        above = line[1:]
    path.write_text(text)


def test_every_recipe_finds_its_place(tmp_path: Path) -> None:
    for language, name, lines in recipes((ROOT / "CONTRIBUTING.md").read_text()):
        place = tmp_path / name
        place.parent.mkdir(parents=True, exist_ok=True)
        if not place.exists():
            shutil.copy(ROOT / name, place)
        carry_out(tmp_path, language, name, lines)


@pytest.mark.slow
def test_the_recipes_add_what_they_say(tmp_path: Path) -> None:
    for name in COPIED:
        place = ROOT / name
        (shutil.copytree if place.is_dir() else shutil.copy)(place, tmp_path / name)
    for recipe in recipes((ROOT / "CONTRIBUTING.md").read_text()):
        carry_out(tmp_path, *recipe)
    result = subprocess.run(
        [sys.executable, "-m", "pytest", "-o", "addopts=", "-v", "-p", "no:cacheprovider", *TESTS, "-k", CHOSEN],
        cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": str(tmp_path / "src"), "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stdout[-4000:] + result.stderr[-2000:]
    for name in ADDED:
        assert re.search(rf"{name}.* PASSED", result.stdout), name
