"""Every piece of Python and every command of README and the site, run as it stands in a folder of a reader's."""

import re
import shlex
import sys
import warnings
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torchvision.models import resnet18
from typer.testing import CliRunner

from pellucid.cli import app
from pellucid.data.shapes import ShapesDataset

ROOT = Path(__file__).parents[2]
BLOCK = re.compile(r'^```(\w+)(?: title="([^"]*)")?\n(.*?)^```$', re.DOTALL | re.MULTILINE)
PAGES = [
    ROOT / "README.md",
    *sorted(path for path in (ROOT / "docs").rglob("*.md") if "results" not in path.parts),
]
# Long ones, which have tests of their own: the set-up, the demonstration and trainings of the papers'.
LEFT_OUT = ("python3 -m venv", "pellucid demo", "pellucid view", "pellucid benchmark examples/roar")
MISTAKES = ("error:", "No such option")  # how what a command says begins that ends with exit code 2
NOT_INSTALLED = (
    "quantus",
    "fiftyone",
    "gradio",
    "wandb",
)  # what Python that is only shown, `py` instead of `python`, may import


def blocks(page: Path) -> list[tuple[str, str, str]]:
    """Each block of a page: its language, its title and its lines."""
    return [(language, title, body) for language, title, body in BLOCK.findall(page.read_text())]


def commands(body: str) -> list[str]:
    """The commands of a block, each on one line."""
    return [line for line in body.replace("\\\n", " ").splitlines() if line.strip() and line[0] != "#"]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """What a reader is taken to have: a photo, photos by class, trained weights; and the project's examples."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    Path("examples").symlink_to(ROOT / "examples")
    for number in range(4):
        pixels = ShapesDataset(4, size=80)[number][0].permute(1, 2, 0).mul(255).byte().numpy()
        place = Path("photos", ("benign", "malignant")[number % 2], f"{number}.png")
        place.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.ascontiguousarray(pixels)).save(place)
        Image.fromarray(np.ascontiguousarray(pixels)).save("photo.jpg")
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if getattr(sys.modules[name], "__file__", None) and str(tmp_path) in str(sys.modules[name].__file__):
            del sys.modules[name]


def write_weights(text: str) -> None:
    """The weights that a page names: trained elsewhere, for all that its commands know."""
    for name, classes in (("resnet18.safetensors", 1000), ("my_weights.pth", 2)):
        if name in text:
            state = resnet18(num_classes=classes).state_dict()
            save_file(state, name) if name.endswith("safetensors") else torch.save(state, name)


def carry_out(command: str, is_mistake: bool) -> str:
    """What a command prints; it must succeed, unless the page shows the error that it ends with."""
    with warnings.catch_warnings():
        warnings.simplefilter("default")  # notes are no errors to a person
        result = CliRunner().invoke(app, shlex.split(command)[1:])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception  # an error of no user's
    assert result.exit_code == (2 if is_mistake else 0), f"{command}\n{result.output}"
    return result.output


def words(text: str) -> str:
    """A text in one line, without the frames that terminals draw."""
    return " ".join(re.sub(r"[│╭╮╰╯─]", " ", text).split())


@pytest.mark.parametrize(
    "page", [page for page in PAGES if blocks(page)], ids=lambda page: page.relative_to(ROOT).as_posix()
)
def test_what_a_page_shows_can_be_run(page: Path, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "300")
    write_weights(page.read_text())
    names: dict[str, Any] = {"__name__": "snippet"}
    printed = ""
    found = blocks(page)
    for (language, title, body), (_, *following) in zip(found, [*found[1:], ("", "", "")], strict=True):
        if title == "says":
            for line in body.splitlines():
                assert words(line) in words(printed), f"{page}: {line!r} is not in {printed}"
        elif title:
            Path(title).write_text(body)
        elif language == "python":
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of other libraries
                exec(compile(body, str(page), "exec"), names)
        elif language == "bash":
            wanted = [one for one in commands(body) if not one.startswith(LEFT_OUT)]
            assert all(one.startswith("pellucid ") for one in wanted), wanted
            is_mistake = following[0] == "says" and following[1].startswith(MISTAKES)
            printed = "".join(carry_out(one, is_mistake) for one in wanted)
        if language == "py":
            assert any(f"import {name}" in body for name in NOT_INSTALLED), "use `python`, which is run"
