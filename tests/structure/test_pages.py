"""README's tables name what the catalogue has, and what it has alone; set-up is two commands."""

import re
from pathlib import Path

import pellucid as pl

README = (Path(__file__).parents[2] / "README.md").read_text()


def tables(heading: str) -> list[list[str]]:
    """The rows of the tables below a heading of README, as cells of text."""
    section = re.split(r"^## ", README.split(f"\n## {heading}\n")[1], flags=re.MULTILINE)[0]
    rows = [line for line in section.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in row.strip("|").split(" | ")] for row in rows]


def names(cells: list[str]) -> set[str]:
    return {name for cell in cells for name in re.findall(r"`(\w+)`", cell)}


def test_the_table_of_methods_names_each_method() -> None:
    assert names([row[0] for row in tables("What there is")]) == pl.METHODS.keys()


def test_the_table_of_metrics_names_each_metric() -> None:
    assert names([row[1] for row in tables("Which map can be trusted?")]) == pl.METRICS.keys()


def test_set_up_is_two_commands() -> None:
    section = README.split("## Set up\n")[1].split("\n## ")[0]
    commands = [
        line for block in re.findall(r"```bash\n(.*?)```", section, re.DOTALL) for line in block.splitlines()
    ]
    assert len(commands) == 2
    assert "pellucid demo" in commands[0]
    assert commands[1].endswith("pytest")
