"""The pages name what there is, all of it and each thing once; set-up is two commands."""

import re
from collections import Counter
from pathlib import Path

import pytest
import typer

import pellucid as pl
from pellucid.cli import app

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"
NAVIGATION = re.findall(r"([\w/-]+\.(?:md|ipynb))$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)


def tables(page: str, heading: str) -> list[list[str]]:
    """The rows of the tables below a heading of a page, as cells of text."""
    text = (DOCS / page).read_text()
    section = re.split(r"^## ", text.split(f"{heading}\n")[1], flags=re.MULTILINE)[0]
    rows = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row.strip("|").split(" | ")] for row in rows]


def names(cells: list[str]) -> set[str]:
    return {name for cell in cells for name in re.findall(r"`(\w+)`", cell)}


def test_the_table_of_methods_names_each_method() -> None:
    assert names([row[0] for row in tables("concepts/methods.md", "\n## What there is")]) == pl.METHODS.keys()


def test_the_table_of_metrics_names_each_metric() -> None:
    title = "# What each metric can say, and what not"
    assert names([row[1] for row in tables("concepts/metrics.md", title)]) == pl.METRICS.keys()


def test_the_table_of_commands_names_each_command() -> None:
    group = typer.main.get_command(app)
    there = [
        f"{name} {inner}".strip()
        for name, one in group.commands.items()  # type: ignore[attr-defined]
        for inner in getattr(one, "commands", [""])
    ]
    table = [re.search(r"`pellucid (.*?)`", row[0]) for row in tables("reference/commands.md", "# Commands")]
    assert Counter(found[1] for found in table if found) == Counter(there)


def test_set_up_is_two_commands() -> None:
    section = (ROOT / "README.md").read_text().split("## Set up\n")[1].split("\n## ")[0]
    commands = [
        line for block in re.findall(r"```bash\n(.*?)```", section, re.DOTALL) for line in block.splitlines()
    ]
    assert len(commands) == 2
    assert "pellucid demo" in commands[0]
    assert commands[1].endswith("pytest")


def test_every_public_name_is_in_the_reference_once() -> None:
    pages = "\n".join(path.read_text() for path in (DOCS / "reference").glob("*.md"))
    assert Counter(re.findall(r"^::: pellucid\.(\w+)$", pages, re.MULTILINE)) == Counter(pl.__all__)


def test_every_page_is_in_the_navigation_and_in_the_list_for_machines_once() -> None:
    pages = [path.relative_to(DOCS).as_posix() for kind in ("md", "ipynb") for path in DOCS.rglob(f"*.{kind}")]
    assert Counter(NAVIGATION) == Counter(pages)
    listed = re.findall(r"^- \[[^]]+\]\(([^)]+)\): \S", (DOCS / "llms.txt").read_text(), re.MULTILINE)
    assert Counter(listed) == Counter(pages)


@pytest.mark.parametrize("page", ["README.md", "docs/llms.txt"])
def test_links_of_pages_outside_the_site_lead_somewhere(page: str) -> None:
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", (ROOT / page).read_text()):
        assert (ROOT / page).parent.joinpath(target).exists(), target
