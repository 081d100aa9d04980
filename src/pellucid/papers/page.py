"""The page of a paper's reproduction: what holds, where the run differs, and the paper's numbers beside ours."""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

import pandas as pd
from matplotlib.figure import Figure

from ..errors import counted
from ..experiments.ratings import RATED
from ..files import replace_file, writable
from ..findings.agreement import raters_told
from ..findings.digits import decimals, interval_ends, number
from ..findings.statistics import GROUP, is_of_variant
from ..findings.wording import joined
from ..report.album import signs
from ..report.charts import MARKERS, Look, Panel, chart_figure, looks
from ..report.figures import CaptionedPhoto, Drawing, grid, shrunk, write_figure
from ..report.pages import Page, Picture, Section, Table
from .exhibits import Compared, ComparedTable, MapGrid, Shown, exhibited
from .protocol import differences
from .quantities import Found, Verdict, verdict
from .recipe import BoxesExhibit, CurvesExhibit, Exhibit, Patterns, Recipe, TableExhibit, Test, matches

if TYPE_CHECKING:
    from .running import LearntPart, Reproduction

PICTURE_FOLDER = "pictures"
LARGEST_PNG, LARGEST_SVG = 300_000, 150_000  # bytes of a picture
MAP_PIXELS = 450_000  # of all maps of a grid: noise that size still fits
MOST_LABELS = 3  # names that patterns stand for; of more the patterns are shown
MOST_NAMES = 6  # that a picture is described by; of more their number is told
HEADS = {"model": "Network", "metric": "Measure"}  # of columns that are not headed by their own key
SCALES = {
    "smoke": "smoke: so small that it shows only that everything runs; its numbers mean nothing",
    "cpu": "cpu: what two processor cores compute in one to six hours",
    "paper": "paper: the paper's own",
}
COMPARED_WITH = {"difference": "difference to", "ratio": "ratio to", "reduction": "reduction from"}
READING = (
    "In brackets: the 95 % interval, where the number would lie for other images of the same kind. A claim holds "
    "where all its intervals lie on the claimed side, and does not hold where one lies on the other side (Holm's "
    "correction for several). It is undecided where the images are too few to tell; as many as are told would "
    "decide four times out of five, if mean and spread stayed."
)
ALIKE = "Nothing that the recipe tells: networks, images, steps, samples, levels and precisions are the paper's."
BANDS = "Bands are 95 % intervals of the means over {over}."
BOXES = (
    "Boxes hold the middle half of the images' values, with the median; whiskers end at the last value within 1.5 "
    "times the box."
)


def write_paper_page(run: Reproduction, folder: Path, photos: bool = True) -> list[Path]:
    """Write README.md, pictures/ and index.html, and return what was written.

    ``photos=False`` shows maps without their photos, for a page that may be published where these may not.

    Raises:
        OutputNotWritable: the folder or a file cannot be written.
        InvalidData: a kept picture cannot be read.
    """
    pictures = folder / PICTURE_FOLDER
    with writable(pictures):
        pictures.mkdir(parents=True, exist_ok=True)
    page = _PaperPage(run, pictures, photos).page()
    replace_file(folder / "index.html", page.html().encode())
    replace_file(folder / "README.md", page.markdown(PICTURE_FOLDER).encode())
    drawn = [picture.path.with_suffix(".png") for section in page.sections for picture in section.pictures]
    return [folder / "README.md", folder / "index.html", *drawn]


def judged(run: Reproduction) -> list[Verdict]:
    """What became of each claim of the paper."""
    return [verdict(claim, run.statistics) for claim in run.recipe.claims]


@dataclass(frozen=True, eq=False)
class _PaperPage:
    """The parts of the page; pictures are drawn into ``folder``, maps beside their photos if ``photos``."""

    run: Reproduction
    folder: Path
    photos: bool

    @property
    def recipe(self) -> Recipe:
        return self.run.recipe

    @cached_property
    def verdicts(self) -> list[Verdict]:
        return judged(self.run)

    def page(self) -> Page:
        lead = [*([self.finding()] if self.verdicts else []), self.recipe.lead, self.recipe.authors]
        footer = f"Made by {', '.join(f'{name} {of}' for name, of in self.run.versions.items())}"
        return Page(f"{self.recipe.title}, reproduced", lead, list(self.sections()), footer)

    def finding(self) -> str:
        """How many claims hold at which scale, and what became of the main ones."""
        main = [f"{one.word.capitalize()}: {one.claim.text}" for one in self.verdicts if one.claim.main]
        return " ".join([f"At {self.run.scale} scale, {tally(self.verdicts)}", *main])

    def sections(self) -> Iterator[Section]:
        for exhibit in self.recipe.exhibits:
            if exhibit.key == self.recipe.first:
                yield self.exhibit(exhibit)
        if self.verdicts:
            yield self.claims()
        yield self.deviations()
        for exhibit in self.recipe.exhibits:
            if exhibit.key != self.recipe.first:
                yield self.exhibit(exhibit)
        if self.verdicts:
            yield self.all_numbers()
        if self.recipe.not_reproduced:
            rows = [(place_of(key), why) for key, why in self.recipe.not_reproduced.items()]
            yield Section("Not reproduced", tables=[Table.of(("In the paper", "Why not here"), rows)], folded=True)
        yield Section("How this was made", list(self.problems()), [self.making()], folded=True)

    # How it was made, and how the paper's was.

    def deviations(self) -> Section:
        """The paper's values beside this run's where they differ, facts about files, and what else is other."""
        rows = [
            (one.what, one.paper, one.here, joined(one.of), joined(one.parts))
            for one in differences(self.recipe, self.run.scale)
        ]
        columns = ("What", "The paper", "This run", "Of", "Where")
        tables = [Table.of(columns, rows)] if rows else []
        sources = {**self.recipe.sources, **self.recipe.weights}
        used = [(sources[key], Path(place).name) for key, place in self.run.places.items()]
        facts = [
            f"{source.name[:1].upper()}{source.name[1:]}: {source.fact}"
            for source, name in used
            if source.fact and Path(source.path).name.startswith(name)
        ]
        said = [*facts, *self.recipe.deviations]
        return Section("How this differs from the paper", said if rows else [ALIKE, *said], tables)

    def making(self) -> Table:
        """The command, the scale, what was trained and what was run."""
        rows = [("Command", self.run.command), ("Scale", SCALES[self.run.scale])]
        rows += [(f"Trained: {key}", training(part)) for key, part in self.run.trained.items()]
        rows += [(f"Experiment: {key}", self.experiment(key)) for key in self.run.results]
        return Table.of(("This run", ""), [*rows, ("Time", duration(self.run.seconds))])

    def problems(self) -> Iterator[str]:
        """What went wrong."""
        for key, results in self.run.results.items():
            if missing := results.missing:
                why = f": {next(iter(results.failed.values()))}" if results.failed else ""
                yield f"{len(missing)} of {len(results.record.cells)} parts of {key} have no results{why}."

    def experiment(self, key: str) -> str:
        """How much was measured on what."""
        if key not in self.run.statistics:
            return "no results"
        record, index = self.run.results[key].record, self.run.statistics[key].values.index
        counts = {
            "image": len(record.images),
            "network": len(record.layers),
            "variant": len(index.unique("variant")),
            "method": sum(not is_of_variant(method) for method in index.unique("method")),
            "measure": len(record.metrics),
        }
        return ", ".join(counted(number, noun) for noun, number in counts.items() if number)

    # What the paper says.

    def claims(self) -> Section:
        """A row for each claim: the number that its verdict hangs on, the verdict, and over how many images."""
        rows = [(f"{one.claim.text} ({one.claim.place})", *self.verdict(one)) for one in self.verdicts]
        columns = ("The paper", "Ours", "Verdict", "n")
        return Section("The claims", [READING], [Table.of(columns, rows, prose=True)])

    def verdict(self, one: Verdict) -> tuple[str, str, str]:
        """The number that a verdict hangs on and what is lacking, the verdict, and over how many images it is."""
        if not one.found:
            return one.reason, one.word, "–"
        of = f" (one of {len(one.found)} numbers)" if len(one.found) > 1 else ""
        lacking = f"; {one.reason}" if one.reason else ""
        found = one.found[one.place]
        ours = f"{self.tested(one.tests[one.place], found)}{of}{lacking}"
        return ours, one.word, str(found.images) if found else "–"

    def all_numbers(self) -> Section:
        """All numbers of each claim, and the remarks on them."""
        rows = []
        for one in self.verdicts:
            numbers = "\n".join(self.tested(*pair) for pair in zip(one.tests, one.found, strict=True))
            if len(one.tests) > 1 or one.claim.comment:
                rows.append((one.claim.text, numbers or "–", one.word, one.claim.comment))
        columns = ("The paper", "All numbers", "Verdict", "Remark")
        return Section("The claims in all their numbers", (), [Table.of(columns, rows, prose=True)], folded=True)

    def tested(self, test: Test, one: Found | None) -> str:
        """A test's quantity in words, its number, and on which side of the bound the claim sees it."""
        side = f"{'>' if test.above is not None else '<'} {test.bound:g}"
        side = side.replace("-", "−").replace(" ", "\N{NO-BREAK SPACE}")
        places = 3 if one is None else decimals((one.high - one.low) / 2)
        what = self.quantity(test)
        return f"{what}{': ' if what else ''}{told(one, places)}; claimed {side}"

    def quantity(self, test: Test) -> str:
        """The rows that a test chooses, and what they are compared with, in words."""
        parts = [self.called(test, key, getattr(test, key)) for key in GROUP if getattr(test, key) != ("*",)]
        parts += [test.step] if test.step is not None else []
        parts += [f"at {test.at:g}"] if test.at is not None else []
        if test.how == "std":
            parts.append("standard deviation")
        if test.against:
            others = joined([self.called(test, key, patterns) for key, patterns in test.against.items()])
            parts.append(f"{COMPARED_WITH[test.how]} {others}")
        return ", ".join(parts)

    def called(self, test: Test, key: str, patterns: Patterns) -> str:
        """What the names are called that patterns stand for."""
        names: Sequence[str] = patterns
        if key != "step" and test.experiment in self.run.statistics:
            known = self.run.statistics[test.experiment].values.index.unique(key)
            some = [name for name in known if matches(name, patterns)]
            names = some if 0 < len({self.recipe.label(name) for name in some}) <= MOST_LABELS else patterns
        return joined(list(dict.fromkeys(self.recipe.label(name) for name in names)))

    # What it shows.

    @cached_property
    def shown(self) -> dict[str, Shown]:
        """What each exhibit shows; empty where the run has no results for it."""
        return {
            exhibit.key: exhibited(exhibit, self.recipe, self.run.results[key], self.run.statistics[key])
            if (key := exhibit.experiment) in self.run.statistics
            else ()
            for exhibit in self.recipe.exhibits
        }

    @cached_property
    def looks(self) -> dict[str, Look]:
        """How each line and box is drawn, the same on the whole page."""
        panels = [part for shown in self.shown.values() if isinstance(shown, tuple) for part in shown]
        parts = [part for panel in panels if isinstance(panel, Panel) for part in panel.parts]
        return looks(((part.name, part.floor) for part in parts), MARKERS)

    def exhibit(self, exhibit: Exhibit) -> Section:
        """A table or figure, and the note below it."""
        heading, where = headed(exhibit)
        after = [exhibit.note] if exhibit.note else []
        found = self.shown[exhibit.key]
        if not found or (isinstance(found, ComparedTable) and not found.rows):
            return Section(heading, [*where, "This run has no results for it.", *after])
        if isinstance(found, ComparedTable):
            assert isinstance(exhibit, TableExhibit)
            return Section(heading, [*where, *self.raters(exhibit), *after], [table_of(found, exhibit)])
        return Section(heading, [*where, *after], pictures=list(self.pictures(exhibit, found)))

    def raters(self, exhibit: TableExhibit) -> Iterator[str]:
        """How far raters agree whose ratings a table shows."""
        results = self.run.results[exhibit.experiment]
        for metric in results.record.metrics:
            if metric.startswith(RATED) and matches(metric, exhibit.where.metric):
                yield f"Ratings of this run's maps: {raters_told(results, metric)}"

    def pictures(self, exhibit: Exhibit, parts: tuple[Panel, ...] | tuple[MapGrid, ...]) -> Iterator[Picture]:
        if panels := [part for part in parts if isinstance(part, Panel)]:
            yield self.chart(exhibit, panels)
        maps = [part for part in parts if isinstance(part, MapGrid)]
        for place, part in enumerate(maps, start=1):
            if figure := map_figure(part, self.photos):
                name = exhibit.key if len(maps) == 1 else f"{exhibit.key}-{place}"
                words = f"{exhibit.title}: maps of {part.image}, {across(part.columns, 'column')}"
                yield Picture(self.written(figure, name), words)

    def chart(self, exhibit: Exhibit, panels: Sequence[Panel]) -> Picture:
        """Panels as one picture."""
        below_axis = exhibit.x if isinstance(exhibit, CurvesExhibit) else ""
        alike = isinstance(exhibit, CurvesExhibit | BoxesExhibit) and exhibit.panels != "metric"
        path = self.written(chart_figure(panels, self.looks, below_axis, alike), exhibit.key, LARGEST_SVG)
        bands = BANDS.format(over=self.run.statistics[exhibit.experiment].over)
        below = BOXES if isinstance(exhibit, BoxesExhibit) else bands
        return Picture(path, f"{exhibit.title}: {in_words(panels)}", below)

    def written(self, figure: Figure | Drawing, name: str, largest: int = 0) -> Path:
        """Write a figure as a PNG, and beside it as an SVG of at most ``largest`` bytes, which is preferred."""
        path = self.folder / f"{name}.png"
        write_figure(figure, path, LARGEST_PNG)
        vector = path.with_suffix(".svg")
        if largest:
            write_figure(figure, vector)
            if vector.stat().st_size <= largest:
                return vector
        vector.unlink(missing_ok=True)  # too large, or left of an earlier run
        return path


# Maps.


def map_figure(maps: MapGrid, photos: bool = True) -> Drawing | None:
    """Draw the maps of a photo, beside it if ``photos``; None if the run kept none of them."""
    sizes = [max(cell.shape) for row in maps.cells for cell in row if cell is not None]
    if not sizes:
        return None
    times = 1
    while sum((size // times) ** 2 for size in sizes) > MAP_PIXELS:
        times += 1
    # Small maps stay as they are.
    cells = [
        [cell if cell is None or max(cell.shape) // times < 28 else shrunk(cell, times) for cell in row]
        for row in maps.cells
    ]
    rows = maps.rows if len(maps.rows) > 1 else ()
    explained, note = signs(maps.methods, "the class")
    if maps.photo is None or not photos:
        return grid(cells, maps.columns, rows, title=maps.image, explained=explained, note=note)
    photo = CaptionedPhoto(shrunk(maps.photo, times), name=maps.image)
    return grid(cells, maps.columns, rows, [photo], explained=explained, note=note)


# Words and numbers.


def tally(verdicts: Sequence[Verdict]) -> str:
    """How many of the claims hold, in one sentence."""
    words = [one.word for one in verdicts]
    counts = [words.count(word) for word in ("holds", "does not hold", "undecided", "not tested")]
    hold, refuted, open_, untested = counts
    return (
        f"of {counted(len(words), 'claim')}, {hold} {'holds' if hold == 1 else 'hold'}, "
        f"{refuted} {'does' if refuted == 1 else 'do'} not, {open_} {'is' if open_ == 1 else 'are'} undecided and "
        f"{untested} {'was' if untested == 1 else 'were'} not tested."
    )


def told(one: Found | None, places: int) -> str:
    """A number with its interval; its brackets are never broken from each other."""
    if one is None:
        return "–"
    value = number(one.value, places)
    if one.low != one.low:
        return value
    low, high = interval_ends(one.low, one.high, places)
    return f"{value} [{low},\N{NO-BREAK SPACE}{high}]"


def table_of(found: ComparedTable, exhibit: TableExhibit) -> Table:
    """Our numbers with their intervals, the paper's below them."""
    rows = [
        (name, *(_both(cell, exhibit.digits) for cell in cells))
        for name, cells in zip(found.rows, found.cells, strict=True)
    ]
    images = {cell.found.images for cells in found.cells for cell in cells if cell.found is not None}
    over = "" if not images else f", n = {min(images)}{f' to {max(images)}' if len(images) > 1 else ''}"
    below = "; below it the paper's" if exhibit.paper else ""
    caption = f"Ours [95 % interval]{over}{below}."
    if exhibit.orders:
        agreement = [f"{number(agreed(cells), 2)}" for cells in zip(*found.cells, strict=True)]
        caption += f" Spearman's correlation with the paper's order: {joined(agreement)}."
    return Table.of((HEADS.get(exhibit.rows, exhibit.rows.capitalize()), *found.columns), rows, caption)


def agreed(cells: Sequence[Compared]) -> float:
    """The rank correlation of a column's numbers with the paper's, over the rows that have both."""
    pairs = [(cell.found.value, cell.paper) for cell in cells if cell.found is not None and cell.paper is not None]
    ranks = pd.DataFrame(pairs, columns=["ours", "paper"], dtype=float).rank()
    return float(ranks["ours"].corr(ranks["paper"]))


def _both(cell: Compared, digits: int) -> str:
    ours = told(cell.found, digits)
    # The paper's number has the digits that the paper gives.
    return ours if cell.paper is None else f"{ours}\npaper: {cell.paper:g}".replace("-", "−")


def headed(exhibit: Exhibit) -> tuple[str, list[str]]:
    """An exhibit's heading, and a sentence on where it is in the paper if the heading does not say it."""
    name, _, more = exhibit.place.partition(", ")
    numbered = name.startswith(("Table", "Figure"))
    place = name if numbered else place_of(exhibit.key)
    heading = exhibit.title if place == exhibit.key else f"{place}: {exhibit.title}"
    said = bool(exhibit.place) and (bool(more) or not numbered)
    return heading, [f"{exhibit.place[0].upper()}{exhibit.place[1:]}."] if said else []


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
    """Seconds in the unit that suits them: s, min, or h and min."""
    minutes = round(seconds / 60)
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{minutes} min" if minutes < 90 else f"{minutes // 60} h {minutes % 60} min"


def training(part: LearntPart) -> str:
    """How a network or surrogate was trained, and how well it does."""
    parts = [f"{part.kind}: {part.model}", f"{counted(part.epochs, 'epoch')} of {part.images:,} images"]
    if part.accuracy is not None:
        parts.append(f"accuracy {100 * part.accuracy:.2f} % on {part.held_out:,} held-out images")
    if part.loss is not None:
        parts.append(f"last loss {part.loss:.4g}")
    return ", ".join([*parts, duration(part.seconds)])


def in_words(panels: Sequence[Panel]) -> str:
    """What panels draw, for readers who cannot see them."""
    names = dict.fromkeys(part.name for panel in panels for part in panel.parts)
    return f"{joined([panel.title for panel in panels])}, {across(list(names), 'name')}"


def across(names: Sequence[str], of: str) -> str:
    """By what a picture shows things: few names, or how many there are."""
    return f"by {joined(list(names)) if len(names) <= MOST_NAMES else f'{len(names)} {of}s'}"
