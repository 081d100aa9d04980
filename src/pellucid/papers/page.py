"""The page of a paper's reproduction: claims, and the paper's numbers beside ours, as Markdown and as HTML."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..errors import OutputNotWritable
from ..files import replace_file
from ..findings.statistics import GROUP
from ..findings.wording import decimals, joined, number
from ..report import html
from . import drawing
from .exhibits import Cell, Maps, Panel, Shown, Table, shown
from .markdown import markdown
from .quantities import Found, Verdict, verdict
from .recipe import BoxesExhibit, CurvesExhibit, Exhibit, Key, Patterns, Recipe, TableExhibit, Test, matches

if TYPE_CHECKING:
    from .running import Run

PICTURES = "pictures"
NAMED = 3  # names that patterns stand for; of more the patterns are shown
KEYS: Mapping[Key, str] = {
    "model": "Network", "variant": "Variant", "method": "Method", "layer": "Layer", "metric": "Measure",
}  # fmt: skip
SCALES = {
    "smoke": "smoke: so small that it shows only that everything runs; its numbers mean nothing",
    "cpu": "cpu: what two processor cores compute in under two hours",
    "paper": "paper: the paper's own",
}
COMPARED = {"difference": "difference to", "ratio": "ratio to", "reduction": "reduction from"}
READING = (
    "Behind each of our numbers stands its 95 % interval: where the number would lie for other images of the same "
    "kind (percentile bootstrap over images). A claim holds where all its intervals lie on the claimed side, does "
    "not hold where one lies on the other side, and is not tested where the images do not decide."
)


BANDS = "Bands are 95 % intervals of the means over {over}."
BOXES = (
    "Boxes hold the middle half of the images' values, with the median; whiskers end at the last value within 1.5 "
    "times the box."
)


def write(run: Run, folder: Path, photos: bool = True) -> list[Path]:
    """Write README.md, pictures/ and index.html, and return what was written.

    ``photos=False`` shows maps without their photos, for a page that may be published where these may not.

    Raises:
        OutputNotWritable: the folder or a file cannot be written.
        InvalidData: a kept picture cannot be read.
    """
    pictures = folder / PICTURES
    try:
        pictures.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OutputNotWritable(
            f"cannot write {pictures}: {error.strerror}; choose a folder you may write to"
        ) from error
    page = _Page(run, pictures, photos)
    content = (f"{run.recipe.title}, reproduced", page.lead(), list(page.sections()), page.footer())
    html.save(html.page(*content), folder / "index.html")
    replace_file(folder / "README.md", markdown(*content, PICTURES).encode())
    drawn = [picture.path.with_suffix(".png") for section in content[2] for picture in section.pictures]
    return [folder / "README.md", folder / "index.html", *drawn]


def judged(run: Run) -> list[Verdict]:
    """What became of each claim of the paper."""
    return [verdict(claim, run.statistics) for claim in run.recipe.claims]


@dataclass(frozen=True, eq=False)
class _Page:
    """The parts of the page; pictures are drawn into ``folder`` when their section is asked for."""

    run: Run
    folder: Path
    photos: bool = True

    @property
    def recipe(self) -> Recipe:
        return self.run.recipe

    @cached_property
    def verdicts(self) -> list[Verdict]:
        return judged(self.run)

    def lead(self) -> list[str]:
        """The paper, what it is about, and how many of its claims hold."""
        return [self.recipe.authors, self.recipe.lead, *([counted(self.verdicts)] if self.verdicts else [])]

    def sections(self) -> Iterator[html.Section]:
        """All sections in order."""
        yield html.Section("How this was made", list(self.problems()), [self.making()])
        yield self.claims()
        for exhibit in self.recipe.exhibits:
            yield self.exhibit(exhibit)
        if self.recipe.not_reproduced:
            rows = [(place_of(key), why) for key, why in self.recipe.not_reproduced.items()]
            yield html.Section("Not reproduced", tables=[html.Table(("In the paper", "Why not here"), rows)])
        if self.recipe.deviations:
            yield html.Section("How this differs from the paper", self.recipe.deviations)

    def footer(self) -> str:
        """What it was computed with."""
        return f"Made by {', '.join(f'{name} {of}' for name, of in self.run.versions.items())}"

    # How it was made.

    def making(self) -> html.Table:
        """The command, the scale, what was trained and what was run."""
        rows = [("Command", self.run.command), ("Scale", SCALES[self.run.scale])]
        rows += [(f"Trained: {key}", training(facts)) for key, facts in self.run.trained.items()]
        rows += [(f"Experiment: {key}", self._experiment(key)) for key in self.run.results]
        rows += [("Time", duration(self.run.seconds))]
        return html.Table(("This run", ""), rows)

    def problems(self) -> Iterator[str]:
        """What went wrong."""
        for key, results in self.run.results.items():
            if missing := results.facts["missing"]:
                why = f": {next(iter(results.failed.values()))}" if results.failed else ""
                yield f"{len(missing)} of {len(results.facts['cells'])} parts of {key} have no results{why}."

    def _experiment(self, key: str) -> str:
        if key not in self.run.statistics:
            return "no results"
        facts, index = self.run.results[key].facts, self.run.statistics[key].values.index
        methods, variants = (index.get_level_values(name).unique() for name in ("method", "variant"))
        counts = [
            (len(facts["images"]), "image"), (len(facts["layers"]), "network"), (len(variants), "variant"),
            (sum(map(bool, methods)), "method"), (len(facts["metrics"]), "measure"),
        ]  # fmt: skip
        return ", ".join(f"{count} {noun}{'' if count == 1 else 's'}" for count, noun in counts if count)

    # What the paper says.

    def claims(self) -> html.Section:
        """A row for each claim: what became of it, and by which numbers."""
        rows = []
        for one in self.verdicts:
            numbers = "\n".join(self._tested(*pair) for pair in zip(one.claim.tests, one.found, strict=True))
            rows.append((str(one), f"{one.claim.text} ({one.claim.place})", numbers or "–", one.claim.comment))
        columns = ("Verdict", "What the paper says", "What we find", "Remark")
        return html.Section("The claims", [READING], [html.Table(columns, rows, prose=True)] if rows else [])

    def _tested(self, test: Test, one: Found | None) -> str:
        """A test's quantity in words, its number, and on which side of the bound the claim sees it."""
        side = f"> {test.above:g}" if test.above is not None else f"< {test.below:g}"
        side = side.replace("-", "−").replace(" ", "\N{NO-BREAK SPACE}")
        places = 3 if one is None else decimals((one.high - one.low) / 2)
        what = self.quantity(test)
        return f"{what}{': ' if what else ''}{told(one, places)}; claimed {side}"

    def quantity(self, test: Test) -> str:
        """What a test is about: the rows that it chooses, and what they are compared with."""
        parts = [self._called(test, key, getattr(test, key)) for key in GROUP if getattr(test, key) != ("*",)]
        parts += [test.step] if test.step is not None else []
        parts += [f"at {test.at:g}"] if test.at is not None else []
        if test.how == "std":
            parts.append("standard deviation")
        if test.against:
            others = joined([self._called(test, key, patterns) for key, patterns in test.against.items()])
            parts.append(f"{COMPARED[test.how]} {others}")
        return ", ".join(parts)

    def _called(self, test: Test, key: str, patterns: Patterns) -> str:
        """What the names are called that patterns stand for."""
        names: Sequence[str] = patterns
        if test.experiment in self.run.statistics:
            known = self.run.statistics[test.experiment].values.index.get_level_values(key).unique()
            some = [name for name in known if matches(name, patterns)]
            names = some if 0 < len({self.recipe.label(name) for name in some}) <= NAMED else patterns
        return joined(list(dict.fromkeys(self.recipe.label(name) for name in names)))

    # What it shows.

    def exhibit(self, exhibit: Exhibit) -> html.Section:
        """A table or figure, and the note below it."""
        name, _, more = exhibit.place.partition(", ")
        numbered = name.startswith(("Table", "Figure"))
        place = name if numbered else place_of(exhibit.key)
        heading = exhibit.title if place == exhibit.key else f"{place}: {exhibit.title}"
        whole = bool(exhibit.place) and (bool(more) or not numbered)
        before = [f"{exhibit.place[0].upper()}{exhibit.place[1:]}."] if whole else []
        after = [exhibit.note] if exhibit.note else []
        found = self._shown(exhibit)
        if not found or (isinstance(found, Table) and not found.rows):
            return html.Section(heading, [*before, "This run has no results for it.", *after])
        tables = [table(found, exhibit)] if isinstance(found, Table) and isinstance(exhibit, TableExhibit) else []
        pictures = [] if isinstance(found, Table) else list(self._pictures(exhibit, found))
        return html.Section(heading, [*before, *after], tables, pictures)

    def _shown(self, exhibit: Exhibit) -> Shown:
        key = exhibit.experiment
        if key not in self.run.results or key not in self.run.statistics:
            return ()
        return shown(exhibit, self.recipe, self.run.results[key], self.run.statistics[key])

    def _pictures(self, exhibit: Exhibit, parts: tuple[Panel, ...] | tuple[Maps, ...]) -> Iterator[html.Picture]:
        panels = [part for part in parts if isinstance(part, Panel)]
        if panels:
            across = exhibit.x if isinstance(exhibit, CurvesExhibit) else ""
            alike = isinstance(exhibit, CurvesExhibit | BoxesExhibit) and exhibit.panels != "metric"
            path = drawing.save(drawing.charts(panels, across, alike), self.folder, exhibit.key, vector=True)
            over = self.run.statistics[exhibit.experiment].over
            below = BOXES if isinstance(exhibit, BoxesExhibit) else BANDS.format(over=over)
            yield html.Picture(path, f"{exhibit.title}: {_named(panels)}", below)
        maps = [part for part in parts if isinstance(part, Maps)]
        for place, part in enumerate(maps, start=1):
            figure = drawing.grid_of(part if self.photos else replace(part, photo=None))
            if figure is not None:
                name = exhibit.key if len(maps) == 1 else f"{exhibit.key}-{place}"
                named = f"maps of {part.image} by {joined(list(part.columns))}"
                yield html.Picture(drawing.save(figure, self.folder, name), f"{exhibit.title}: {named}")


# Words and numbers.


def counted(verdicts: Sequence[Verdict]) -> str:
    """How many of the claims hold, in one sentence."""
    words = [one.word for one in verdicts]
    numbers = [words.count(word) for word in ("holds", "does not hold", "not tested")]
    hold = "holds" if numbers[0] == 1 else "hold"
    refuted = "does not" if numbers[1] == 1 else "do not"
    untested = "was not tested" if numbers[2] == 1 else "were not tested"
    of = f"Of {len(words)} claims" if len(words) > 1 else "Of the one claim"
    return f"{of}, {numbers[0]} {hold}, {numbers[1]} {refuted}, {numbers[2]} {untested}."


def told(one: Found | None, places: int) -> str:
    """A number with its interval; its brackets are never broken from each other."""
    if one is None:
        return "–"
    value = number(one.value, places)
    if one.low != one.low:
        return value
    return f"{value} [{number(one.low, places)},\N{NO-BREAK SPACE}{number(one.high, places)}]"


def table(found: Table, exhibit: TableExhibit) -> html.Table:
    """Our numbers with their intervals, the paper's below them."""
    rows = [
        (name, *(_cell(cell, exhibit.digits) for cell in cells))
        for name, cells in zip(found.rows, found.cells, strict=True)
    ]
    images = {cell.found.images for cells in found.cells for cell in cells if cell.found is not None}
    over = "" if not images else f", n = {min(images)}{f' to {max(images)}' if len(images) > 1 else ''}"
    below = "; below it the paper's" if exhibit.paper else ""
    caption = f"Ours [95 % interval]{over}{below}."
    return html.Table((KEYS[exhibit.rows], *found.columns), rows, caption)


def _cell(cell: Cell, digits: int) -> str:
    lines = [told(cell.found, digits)]
    # With the digits that the paper gives.
    lines += [f"paper: {cell.paper:g}".replace("-", "−")] if cell.paper is not None else []
    return "\n".join(lines)


def place_of(key: str) -> str:
    """Where in the paper an exhibit is, as its key says: table5 is Table 5, figure14-19 Figures 14–19."""
    found = re.fullmatch(r"(table|figure)-?(\d\w*|[IVX]+)(-\w+)?", key)
    if found is None:
        return key
    kind, first, last = found.groups()
    several = last is not None and last[1:2].isdigit()
    return (
        f"{kind.capitalize()}{'s' if several else ''} {first}{(last or '').replace('-', '–' if several else ', ')}"
    )


def duration(seconds: float) -> str:
    """Seconds as people say them."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def training(facts: Mapping[str, Any]) -> str:
    """How a network or surrogate was trained, and how well it does."""
    epochs = f"{facts['epochs']} epoch{'' if facts['epochs'] == 1 else 's'}"
    parts = [f"{facts['kind']}: {facts['model']}", f"{epochs} of {facts['count']:,} images"]
    if "accuracy" in facts:
        parts.append(f"accuracy {100 * facts['accuracy']:.2f} % on {facts['accuracy_on']}")
    if "loss" in facts:
        parts.append(f"last loss {facts['loss']:.4g}")
    return ", ".join([*parts, duration(facts["seconds"])])


def _named(panels: Sequence[Panel]) -> str:
    """What the panels draw, for who cannot see them."""
    names: dict[str, None] = {}
    for panel in panels:
        names |= dict.fromkeys([line.name for line in panel.lines] + [box.name for box in panel.boxes])
    return f"{joined([panel.title for panel in panels])}, by {joined(list(names))}"
