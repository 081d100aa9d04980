"""Imports only go down the floors, files form no circle, and each name means one thing (ARCHITECTURE.md)."""

import ast
from collections import defaultdict
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest

import pellucid as pl

PACKAGE = Path(pl.__file__).parent
FLOORS = {
    "errors": 0, "undo": 0,
    "bounds": 1, "kinds": 1, "seeds": 1, "files": 1, "layers": 1, "passes": 1,
    "folders": 2, "heatmap": 2, "pixels": 2, "sampling": 2, "rules": 2, "outputs": 2,
    "variants": 3, "layouts": 3,
    "methods": 4, "models": 4, "data": 4,
    "metrics": 5,
    "training": 6,
    "catalog": 7,
    "experiments": 8,
    "findings": 9,
    "report": 10,
    "papers": 11,
    "view": 12,
    "cli": 13,
}  # fmt: skip


def room(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def imported(path: Path) -> set[str]:
    """The rooms of this package that a file imports."""
    depth = len(path.relative_to(PACKAGE).parts)
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom) and node.level == depth:
            found |= {node.module.split(".")[0]} if node.module else {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("pellucid"):
            names = node.module.split(".")[1:2]
            found |= set(names) if names else {alias.name for alias in node.names}
        elif isinstance(node, ast.Import):
            found |= {a.name.split(".")[1] for a in node.names if a.name.startswith("pellucid.")}
    return found & FLOORS.keys()


FILES = [path for path in sorted(PACKAGE.rglob("*.py")) if path.parent != PACKAGE or path.stem in FLOORS]


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PACKAGE)))
def test_imports_go_down(path: Path) -> None:
    here = room(path)
    for other in imported(path) - {here}:
        assert FLOORS[other] < FLOORS[here], f"{here} imports {other}"


def test_every_room_has_a_floor() -> None:
    rooms = {path.stem for path in PACKAGE.glob("*.py")} | {
        path.parent.name for path in PACKAGE.glob("*/__init__.py")
    }
    assert rooms - {"__init__", "__main__"} == FLOORS.keys()


def dotted(path: Path) -> str:
    return ".".join(path.relative_to(PACKAGE).with_suffix("").parts)


MODULES = {dotted(path): path for path in PACKAGE.rglob("*.py")}


def files_imported(name: str) -> set[str]:
    """The files of this package that a file imports: within functions and for its types alone, too."""
    found = set()
    for node in ast.walk(ast.parse(MODULES[name].read_text())):
        if isinstance(node, ast.ImportFrom) and node.level:
            base = [*name.split(".")[: -node.level], *(node.module or "").split(".")]
            module = ".".join(part for part in base if part)
            found |= {module, *(f"{module}.{alias.name}".lstrip(".") for alias in node.names)}
    return found & MODULES.keys()


def test_no_files_import_each_other_in_a_circle() -> None:
    """Nor do they within a room, nor for their types alone: what needs each other stands together or is cut."""
    graph = {name: files_imported(name) for name in MODULES if not name.endswith("__init__")}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        pytest.fail(" -> ".join(error.args[1]))


def public_names(path: Path) -> set[str]:
    """The classes, functions, constants and types that a file defines at its top level, less private ones."""
    found = set()
    for node in ast.parse(path.read_text()).body:
        if isinstance(node, ast.FunctionDef | ast.ClassDef):
            found.add(node.name)
        elif isinstance(node, ast.Assign):
            found |= {
                name.id for target in node.targets for name in ast.walk(target) if isinstance(name, ast.Name)
            }
        elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
            found.add(node.target.id)
    return {name for name in found if not name.startswith("_")}


def test_a_public_name_means_one_thing() -> None:
    places = defaultdict(list)
    for path in PACKAGE.rglob("*.py"):
        for name in public_names(path):
            places[name].append(str(path.relative_to(PACKAGE)))
    assert {name: files for name, files in places.items() if len(files) > 1} == {}


def test_only_two_files_touch_modules() -> None:
    """Hooks on modules live in layers.py; operations are intercepted in rules/base.py."""
    touching = {
        str(path.relative_to(PACKAGE))
        for path in PACKAGE.rglob("*.py")
        if "register_forward" in path.read_text() or "TorchFunctionMode)" in path.read_text()
    }
    assert touching == {"layers.py", "rules/base.py"}


def test_the_architecture_page_names_every_room_and_no_other() -> None:
    page = Path(__file__).parents[2] / "ARCHITECTURE.md"
    text = page.read_text()
    for name in FLOORS:
        assert f"{name}.py" in text or f"{name}/" in text, name
    for path in PACKAGE.rglob("*.py"):
        if path.name != "__init__.py":
            assert path.name in text, path.relative_to(PACKAGE)
