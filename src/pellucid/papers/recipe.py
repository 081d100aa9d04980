"""What a paper's recipe holds: TOML -> one checked ``Recipe`` of trainings, experiments, exhibits and claims."""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping
from fnmatch import fnmatchcase
from functools import lru_cache
from importlib.resources import files
from typing import Annotated, Any, ClassVar, Literal, Self

from pydantic import BeforeValidator, Field, model_validator

from ..errors import UnknownName
from ..training.from_source import Checked, several
from .naming import expanded, merged

Scale = Literal["smoke", "cpu", "paper"]
Key = Literal["model", "variant", "method", "layer", "metric"]
How = Literal["mean", "std", "difference", "ratio", "reduction"]
PAPERS = ("smooth-deep-saliency", "combination-methods", "rectified-gradient", "sanity-checks")


Patterns = Annotated[tuple[str, ...], BeforeValidator(several)]


class DataSource(Checked):
    """Images or weights that a recipe names ``@key``.

    Attributes:
        path: where they are inside the folder of ``--data`` or ``--weights``.
        otherwise: what stands for them where no folder is given (``torchvision:MNIST``, a name of weights); empty
            is nothing: the person is asked for them.
        about: what they have to be.
        fact: what is particular about the file of that name, in a sentence; the page says it if the file was used.
    """

    path: str
    otherwise: str = ""
    about: str
    fact: str = ""

    @property
    def name(self) -> str:
        """What they are, without the form that they have to have."""
        return re.split("[:,] ", self.about)[0]


class Scaled(Checked):
    """A part whose ``spec`` a scale's own values replace, tables key by key.

    ``published`` is what the paper did where scale paper does otherwise, by the names of ``protocol_of``.
    """

    kind: ClassVar[str]

    key: str
    spec: Mapping[str, Any]
    smoke: Mapping[str, Any] = {}
    cpu: Mapping[str, Any] = {}
    paper: Mapping[str, Any] = {}
    published: Mapping[str, str] = {}

    @property
    def step(self) -> str:
        """What it is called while it is done."""
        return f"{self.kind} {self.key}"

    def at(self, scale: Scale) -> dict[str, Any]:
        """The values at a scale."""
        return merged(self.spec, getattr(self, scale))


class NetworkTraining(Scaled):
    """A network that is trained before the experiments, which name its weights ``@key``: ``NetworkSettings``."""

    kind = "network"


class SurrogateTraining(Scaled):
    """A surrogate trained before the experiments, which name its file ``@key``: ``SurrogateSettings``."""

    kind = "surrogate"


class Experiment(Scaled):
    """A benchmark: a ``Spec``, as of a file of ``pellucid benchmark``, with ``@key`` for paths."""

    kind = "experiment"


TrainingPart = NetworkTraining | SurrogateTraining


class RowFilter(Checked):
    """Rows of a results table: glob patterns; what is left out matches all."""

    model: Patterns = ("*",)
    variant: Patterns = ("*",)
    method: Patterns = ("*",)
    layer: Patterns = ("*",)
    metric: Patterns = ("*",)


class Quantity(RowFilter):
    """One number with its interval: a mean over the images, and over the rows that are chosen.

    Attributes:
        how: ``"mean"``; ``"std"`` over the images; or a comparison with the rows ``against``, made for each
            layer (or what else ``against`` leaves alone) and then averaged: ``"difference"``, ``"ratio"``, or
            ``"reduction"``, 1 - ratio.
        against: what is other in the rows compared with; several of them are averaged.
        step: of a curve, the named place (``against`` may name another one); at: the level.
    """

    how: How = "mean"
    against: Mapping[Key | Literal["step"], Patterns] = {}
    step: str | None = None
    at: float | None = None

    @model_validator(mode="after")
    def _compared(self) -> Self:
        if bool(self.against) != (self.how in ("difference", "ratio", "reduction")):
            raise ValueError("difference, ratio and reduction, and only they, need `against`")
        return self


class Test(Quantity):
    """A quantity of an experiment and the side of a bound on which a claim says it lies.

    It is tested for ``each`` of the names that it chooses of these keys by itself, as if each were written.
    """

    experiment: str
    each: Annotated[tuple[Key, ...], BeforeValidator(several)] = ()
    above: float | None = None
    below: float | None = None

    @model_validator(mode="after")
    def _one_bound(self) -> Self:
        if (self.above is None) == (self.below is None):
            raise ValueError("a test needs `above` or `below`, one of them")
        return self

    @property
    def bound(self) -> float:
        """The number that it compares with."""
        return self.above if self.above is not None else self.below or 0.0


class Claim(Checked):
    """What a paper says, where, what it is tested by, or why it is not; and what a disagreement comes from.

    The verdicts on ``main`` claims are what the page begins with.
    """

    text: str
    place: str
    tests: tuple[Test, ...] = ()
    because: str = ""
    comment: str = ""
    main: bool = False

    @model_validator(mode="after")
    def _tested_or_not(self) -> Self:
        if bool(self.tests) == bool(self.because):
            raise ValueError("a claim needs either `tests` or `because`, why it is not tested")
        return self


class _Exhibit(Checked):
    """A table or figure of the paper, drawn from the results of one experiment."""

    two: ClassVar[tuple[str, str]]  # fields that have to name different keys

    key: str
    title: str
    place: str = ""  # in the paper, where the key does not say it
    experiment: str
    where: Quantity = Quantity()
    note: str = ""  # below it: how it differs from the paper's, what is to be seen

    @model_validator(mode="after")
    def _apart(self) -> Self:
        one, other = self.two
        if getattr(self, one) == getattr(self, other):
            raise ValueError(f"{one} and {other} are both {getattr(self, one)}")
        return self


class TableExhibit(_Exhibit):
    """Numbers: a row for each ``rows``, a column for each ``columns``, ours beside the paper's.

    ``by`` is the factor they are shown times (100 for per cent), ``paper`` [row][column] the paper's numbers,
    by the names shown; ``orders`` says how far the rows' order agrees with the paper's.
    """

    two = ("rows", "columns")
    kind: Literal["table"]
    rows: Key
    columns: Key
    by: float = 1
    digits: int = 3
    orders: bool = False
    paper: Mapping[str, Mapping[str, float]] = {}


class CurvesExhibit(_Exhibit):
    """Charts: a panel for each ``panels``, a line for each ``lines``, along the layers or a metric's own curve."""

    two = ("panels", "lines")
    kind: Literal["curves"]
    panels: Key
    lines: Key
    across: Literal["layer", "curve"]
    x: str = ""
    y: str = ""


class BoxesExhibit(_Exhibit):
    """Boxes of the images' values: a panel for each ``panels``, a box for each ``boxes``; whiskers end at the
    last value within 1.5 times the box, values beyond are not drawn."""

    two = ("panels", "boxes")
    kind: Literal["boxes"]
    panels: Key
    boxes: Key
    y: str = ""

    @model_validator(mode="after")
    def _of_images(self) -> Self:
        if self.where.how == "std":
            raise ValueError("an image's value has no deviation; boxes show the spread anyway")
        return self


class MapsExhibit(_Exhibit):
    """Maps of kept photos: a grid for each photo, a map for each ``rows`` and ``columns``.

    Along the metrics stand ``"map"``, the map itself, and the maps that metrics compared it with.
    ``clip`` is a final threshold: the percentiles of ``clip_percentiles`` by a pattern of methods, the first that
    matches; other maps are drawn whole.
    """

    two = ("rows", "columns")
    kind: Literal["maps"]
    rows: Key
    columns: Key
    photos: int = 1
    clip: Mapping[str, tuple[float, float]] = {}


Exhibit = Annotated[TableExhibit | CurvesExhibit | BoxesExhibit | MapsExhibit, Field(discriminator="kind")]


class Recipe(Checked):
    """A paper, reproduced.

    Attributes:
        title, authors, lead: what the page begins with.
        sources, weights: what ``@key`` stands for.
        networks, surrogates: trained first; ``@key`` is their file.
        experiments: run next.
        labels: what methods, metrics, variants and layers are called, by pattern; the first that matches.
        exhibits, claims: what is drawn and judged then; the page shows exhibit ``first`` first.
        not_reproduced: tables and figures without an exhibit, and why.
        deviations: how this differs from the paper, whatever the scale.
    """

    title: str
    authors: str
    lead: str
    sources: Mapping[str, DataSource] = {}
    weights: Mapping[str, DataSource] = {}
    networks: tuple[NetworkTraining, ...] = ()
    surrogates: tuple[SurrogateTraining, ...] = ()
    experiments: tuple[Experiment, ...]
    labels: Mapping[str, str] = {}
    exhibits: tuple[Exhibit, ...]
    first: str = ""
    claims: tuple[Claim, ...]
    not_reproduced: Mapping[str, str] = {}
    deviations: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        known = {experiment.key for experiment in self.experiments}
        for part in (*self.exhibits, *(test for claim in self.claims for test in claim.tests)):
            if part.experiment not in known:
                raise ValueError(f"no experiment {part.experiment!r}")
        files = [*self.sources, *self.weights, *(part.key for part in self.trainings)]
        for names in ([exhibit.key for exhibit in self.exhibits], files, [part.key for part in self.experiments]):
            if twice := {name for name in names if names.count(name) > 1}:
                raise ValueError(f"two parts are called {', '.join(sorted(twice))}")
        if unknown := {
            name for part in (*self.trainings, *self.experiments) for name in references(part.model_dump())
        } - set(files):
            raise ValueError(f"@{', @'.join(sorted(unknown))} stands for nothing")
        return self

    @property
    def trainings(self) -> tuple[TrainingPart, ...]:
        """What is trained first, in an order in which each comes after what it refers to."""
        return (*self.networks, *self.surrogates)

    def label(self, name: str) -> str:
        """What a method, metric, variant, layer or model is called on the page."""
        return next((label for pattern, label in self.labels.items() if matches(name, (pattern,))), name)

    def only(self, keys: tuple[str, ...]) -> Self:
        """The recipe with some exhibits, the experiments they need and the claims that those can test.

        Raises:
            UnknownName: no such exhibit.
        """
        for key in keys:
            if key not in (known := [exhibit.key for exhibit in self.exhibits]):
                raise UnknownName("table or figure", key, known)
        if not keys:
            return self
        exhibits = tuple(exhibit for exhibit in self.exhibits if exhibit.key in keys)
        kept = {exhibit.experiment for exhibit in exhibits}
        claims = tuple(
            claim for claim in self.claims if claim.tests and all(test.experiment in kept for test in claim.tests)
        )
        experiments = tuple(part for part in self.experiments if part.key in kept)
        return self.model_copy(update={"exhibits": exhibits, "experiments": experiments, "claims": claims})


def matches(name: str, patterns: Patterns) -> bool:
    """Whether a name is one of the glob patterns, or matches one."""
    return any(name == pattern or fnmatchcase(name, pattern) for pattern in patterns)


def references(value: Any) -> Iterator[str]:
    """All ``@key`` inside plain values, without the @."""
    if isinstance(value, str):
        yield from [value[1:]] if value.startswith("@") else []
    elif isinstance(value, Mapping):
        for part in value.values():
            yield from references(part)
    elif isinstance(value, list | tuple):
        for part in value:
            yield from references(part)


@lru_cache
def read_recipe(paper: str) -> Recipe:
    """The recipe of one of the papers, with the sources and weights of ``sources.toml`` that it names.

    Raises:
        UnknownName: no such paper.
    """
    if paper not in PAPERS:
        raise UnknownName("paper", paper, PAPERS)
    shared, content = (
        tomllib.loads(files(__package__).joinpath(f"{name}.toml").read_text(encoding="utf-8"))
        for name in ("sources", paper)
    )
    content = expanded(content)
    named = set(references(content))
    for kind, sources in shared.items():
        content[kind] = {key: source for key, source in sources.items() if key in named}
    return Recipe.model_validate(content)
