"""A plan: a spec with everything checked before anything is computed, cut into cells; and what identifies it."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ..catalog import on_files
from ..data.sources import Sample
from ..errors import InvalidData, InvalidImage, InvalidModel
from ..files import source_digest
from ..layers import explainable, select_layers
from ..methods.checks import looks_wrong
from ..metrics.base import Criterion
from ..metrics.faithfulness import Faithfulness
from ..models.preprocess import Preprocess
from ..models.zoo import LoadedModel
from ..outputs import first_logits
from ..training.criteria import Retraining
from ..variants.base import ORIGINAL
from . import inputs
from .cells import Cell
from .inputs import ParsedSpec
from .noticing import Counts, count_odd, mendable, mislabeled, oddities, of_images, of_model
from .record import MetricRecord, RunRecord, cell_digest, hashed, obstacle, versions
from .spec import DEFAULT_CUT, Spec, shown
from .trainings import TrainingCell, cache_of, has_weights, require_trainable, training_cells

NO_RESULT = frozenset({"name", "reference", "device", "max_batch"})  # settings that decide no result
MOST_NAMED = 12  # images in an error


@dataclass(frozen=True, eq=False)
class Plan:
    """A checked spec, its cells in order, and what run.json will say."""

    spec: Spec
    cells: Sequence[Cell | TrainingCell]
    record: RunRecord


def plan(spec: Spec, folder: Path | None = None, command: str = "", begun: RunRecord | None = None) -> Plan:
    """Check everything that can be checked without explaining, and cut the experiment into cells.

    ``folder`` is where trainings keep what they share; None is the user's cache. ``command`` is what was typed.
    ``begun`` is the run that is there: where it can go on as this one, its cells keep their names.
    Raises a ``PellucidError`` for whatever is wrong with models, methods, layers, variants, metrics or images.
    """
    # What is left to the default is written down, so that a later version with another goes on with this run.
    spec = spec.model_copy(update={"images_per_cell": spec.images_per_cell or DEFAULT_CUT})
    parsed = inputs.parsed(spec)
    if not spec.methods and not all(metric.of_model for metric in parsed.metrics.values()):
        raise InvalidData("no methods are named, and some metrics grade maps; name methods")
    layers, models = {}, {}
    for model in spec.models:
        loaded = inputs.model_of(spec, model.key)
        explainable(loaded.model)
        layers[model.key] = tuple(select_layers(loaded.model, spec.layers))
        models[model.key] = inputs.digest_of_model(loaded)
    numbers = _renumbered(parsed)
    spec, images, odd = _usable(parsed)
    parsed = replace(parsed, spec=spec)
    _require_fitting(parsed)
    noticed = _noticed(parsed, odd)
    trained = {text: metric for text, metric in parsed.metrics.items() if isinstance(metric, Retraining)}
    training = require_trainable(parsed, trained)
    names = inputs.chosen(spec.images).names
    # Trainings share what they learn of all methods, so that their results depend on every method's file.
    files = {} if trained else {shown(text): found for text in spec.methods if (found := digests_of_files([text]))}
    identity = _identity(spec, models, images, training, spec.methods if trained else ()) | numbers
    # Trainings rank the pixels of all methods, so that one more changes what the others' networks share.
    goes_on = begun is not None and not trained and obstacle(begun.identity, identity) is None
    key, later = hashed(identity), {}
    if begun is not None and goes_on:
        known = {*begun.identity["variants"]} - {*begun.variant_files}  # those that the run began with
        key = begun.hash
        later = {
            name: {name: of} for name, of in identity["files"].items() if name in {*spec.variant_texts} - known
        }
    cells: list[Cell | TrainingCell] = [
        *_cells(parsed, len(names), key, files, later),
        *training_cells(parsed, trained, key, folder or cache_of(key)),
    ]
    record = RunRecord(
        hash=key,
        versions=versions(),
        spec=dumped(spec),
        metrics={text: _recorded(metric, spec) for text, metric in parsed.metrics.items()},
        layers=layers,
        images=tuple(names),
        cells=tuple(cell.id for cell in cells),
        identity=identity,
        method_files=files,
        variant_files=later,
        command=command,
        noticed=noticed,
        hidden=tuple(text for text, method in parsed.methods.items() if method.is_for_hidden),
    )
    return Plan(spec, cells, record)


def _cells(
    parsed: ParsedSpec,
    images: int,
    key: str,
    files: Mapping[str, Mapping[str, str]],
    later: Mapping[str, Mapping[str, str]],
) -> Iterator[Cell]:
    """A model's cells on the same images follow each other, so that they share them.

    ``files`` are methods', ``later`` those of variants that the run was given since it began.
    """
    spec = parsed.spec
    cut = spec.images_per_cell or DEFAULT_CUT
    for model in spec.models:
        # Images come before variants and methods: what a model knows of them is kept for the next cell.
        for start in range(0, images, cut):
            stop = min(start + cut, images)
            for variant, method in product(parsed.variants, graded_alone(parsed)):
                name = cell_digest(
                    key, model.key, variant, method or "", start, stop,
                    {**files.get(method or "", {}), **later.get(variant, {})},
                )  # fmt: skip
                yield Cell(model.key, variant, method, start, stop, name)


def graded_alone(parsed: ParsedSpec) -> list[str | None]:
    """What is graded without any training: methods, and the variants themselves (None)."""
    graded = [metric for metric in parsed.metrics.values() if not isinstance(metric, Retraining)]
    methods: list[str | None] = [None] if any(metric.of_model for metric in graded) else []
    return methods + (list(parsed.methods) if not all(metric.of_model for metric in graded) else [])


def with_usable(spec: Spec) -> Spec:
    """The spec without images that cannot be used, if it says to skip them."""
    return _usable(inputs.parsed(spec))[0]


def _usable(parsed: ParsedSpec) -> tuple[Spec, str, dict[str, Counts]]:
    """The spec without images that cannot be used, if it says to skip them.

    And a digest of the others, and what each model's preprocess does to them that is odd.
    """
    spec, images = parsed.spec, parsed.spec.images
    needs: dict[str, str] = {need: text for text, metric in parsed.metrics.items() for need in metric.needs}
    if spec.target == "label":
        needs["labels"] = "target = 'label'"
    models = [inputs.model_of(spec, model.key) for model in spec.models]
    count, source = len(inputs.chosen(images)), inputs.candidates(images)
    odd: dict[str, Counts] = {model.key: {} for model in spec.models}

    def require(sample: Sample) -> None:
        _require_usable(sample, needs, models)
        for counts, loaded in zip(odd.values(), models, strict=True):
            count_odd(counts, mendable(oddities(sample, loaded.preprocess, loaded.whole_of)))

    # Where images may be skipped others take their place, so all candidates are looked at until there are enough.
    looked = source if images.skip_unusable else source[:count]
    digest, wrong = inputs.survey(looked, count, require)
    if wrong and (not images.skip_unusable or len(source) - len(wrong) < (images.count or 1)):
        few = f", or skip = {list(wrong)}" if len(wrong) <= MOST_NAMED else ""
        leave = (
            f". To leave such images out, give --skip-unusable, or skip_unusable = true for a spec's images{few}"
            if len(wrong) < len(source)
            else ""
        )
        said = f"{len(wrong)} of {len(looked)} images cannot be used; the first: {next(iter(wrong.values()))}"
        raise InvalidData(said + leave)
    images = images.model_copy(update={"skip": (*images.skip, *wrong)})
    return spec.model_copy(update={"images": images}), digest, odd


def _renumbered(parsed: ParsedSpec) -> dict[str, Any]:
    """The models' numbers of the images' classes, where any are not in the images' order: they decide results."""
    spec, source = parsed.spec, inputs.chosen(parsed.spec.images)
    if source.classes is None or (spec.training is not None and not has_weights(spec)):  # it will learn them
        return {}
    names, required, found = source.classes, inputs.needs_labels(spec), {}
    for model in spec.models:
        numbers = inputs.model_of(spec, model.key).numbers_of(names, required)
        found[model.key] = None if numbers is None else list(numbers)
    return {"labels": found} if any(one != list(range(len(names))) for one in found.values()) else {}


def _require_fitting(parsed: ParsedSpec) -> None:
    """Run one image under each model, and under each surrogate, which fits no other weights than its own."""
    bound = [variant for variant in parsed.variants.values() if variant.bound]
    for model in parsed.spec.models:
        [batch] = inputs.batches(parsed.spec, model.key, 0, 1)
        first_logits(batch.loaded.model, batch.images)
        for variant in bound:
            try:
                batch.scorer(variant).of(batch.images)
            except InvalidModel as error:
                raise InvalidModel(f"{model.key} under the variant {variant.name}: {error}") from error


def _recorded(metric: Criterion, spec: Spec) -> MetricRecord:
    """What a metric says about itself; a mean of probabilities is one, so that its interval ends at 0 and 1."""
    record = MetricRecord.model_validate(metric, from_attributes=True)
    is_share = isinstance(metric, Faithfulness) and spec.score != "logits"
    return record.model_copy(update={"ends": (0.0, 1.0)}) if is_share else record


# By what shares come from, the scores that would squeeze them again; of one output a softmax is a sigmoid.
_SQUEEZED = {"softmax": ("softmax",), "sigmoid": ("softmax", "sigmoid")}


def _noticed(parsed: ParsedSpec, odd: Mapping[str, Counts]) -> dict[str, tuple[str, ...]]:
    """Of each model, what makes its maps say less than they seem to.

    Pixels and outputs are those of the first cell's images.
    """
    noticed: dict[str, tuple[str, ...]] = {}
    for model in parsed.spec.models:
        loaded = inputs.model_of(parsed.spec, model.key)
        # Whoever names what is random knows that it is.
        told = [] if model.randomized else list(of_model(loaded))
        told += of_images(odd[model.key])
        wrong: dict[str, str] = {}
        labels, predicted, classes = [], [], 0
        for batch in inputs.batches(parsed.spec, model.key, 0, parsed.spec.images_per_cell or DEFAULT_CUT):
            logits = batch.scorer(ORIGINAL).logits_of(batch.images)
            found = looks_wrong(batch.images, logits, loaded.preprocess, normalized=True, model=loaded.model)
            wrong = found | wrong
            if batch.labels is not None:
                labels += batch.labels.tolist()
                predicted += logits.argmax(1).tolist()
                classes = logits.shape[1]
        if not model.randomized and (loaded.weights != "random" or ".py:" in loaded.name):
            given = inputs.chosen(parsed.spec.images).classes or ()
            told += mislabeled(labels, predicted, classes, "image", "label", loaded.classes, given)
        for kind in wrong.keys() & _SQUEEZED.keys():
            if parsed.spec.score in _SQUEEZED[kind]:
                wrong[kind] += (
                    f"; scores are a {kind} of them and so squeezed: --score logits takes them as they are"
                )
        noticed[model.key] = (*told, *wrong.values())
    return noticed


_GIVEN_BY = {
    "labels": "labels are the names of class folders or a table's column",
    "masks": "give them by --masks FOLDER, or boxes by --boxes FILE, or in columns of the images' table",
    "boxes": "give them by --boxes FILE, or in a column of the images' table",
}


def _require_usable(sample: Sample, needs: Mapping[str, str], models: Sequence[LoadedModel]) -> None:
    """Refuse an image without what some metric needs of it (``InvalidImage``)."""
    for need, text in needs.items():
        # The object is known by its mask or its boxes (metrics/localization.py).
        known = {"labels": sample.label, "boxes": sample.boxes, "masks": sample.mask or sample.boxes}[need]
        if known is None:
            raise InvalidImage(f"{text} needs {need}, and {sample.name} has none; {_GIVEN_BY[need]}")
        for loaded in models if need != "labels" else ():
            if not isinstance(loaded.preprocess, Preprocess):
                nowhere = f"the preprocess of {loaded.name} does not say where pixels go"
                raise InvalidImage(f"{text} needs {need}, and {nowhere}")
            try:
                inputs.require_object(sample, loaded)
            except InvalidData as error:
                raise InvalidImage(f"{text} needs {need}, and {error}") from error


# What makes an experiment the same, wherever its files are.


def dumped(spec: Spec) -> dict[str, Any]:
    """The spec as plain values, methods and variants by the names that tables have."""
    left_out = {name for name in ("training", "layouts") if not getattr(spec, name)}
    dumped = spec.model_dump(mode="json", exclude=left_out)
    return dumped | {
        "methods": list(spec.method_texts),
        "variants": list(spec.variant_texts),
        "reference": None if spec.reference is None else shown(spec.reference),
        "target": shown(spec.target) if isinstance(spec.target, str) else spec.target,
    }


def _identity(
    spec: Spec, models: Mapping[str, str], images: str, training: dict[str, Any], methods: Sequence[str]
) -> dict[str, Any]:
    """All that decides the results: settings as they are; models, images and code by their content's digests.

    Of ``methods`` their files decide all cells; of others, only their own.
    """
    content = {name: value for name, value in dumped(spec).items() if name not in NO_RESULT}
    content["models"] = models
    content["images"] = {"names": list(inputs.chosen(spec.images).names), "content": images}
    if spec.training is not None:
        places = ("source", "label_column", "split", "root", "count")
        settings = {key: value for key, value in content["training"].items() if key not in places}
        content["training"] = settings | {"network": shown(spec.training.network)} | training
    networks = [spec.training.network] if spec.training is not None else []
    texts = (*methods, *(text for model in spec.models for text in model.code), *networks, spec.asked)
    surrogates = {name: text for name, text in spec.variant_texts.items() if name != text}
    return content | {"files": digests_of_files(texts, surrogates)}


def digests_of_files(texts: Iterable[str], named: Mapping[str, str] = MappingProxyType({})) -> dict[str, str]:
    """Digests of the user's own Python files in texts, and of files that are named."""
    files = dict(named)

    def noted(path: str, name: str) -> str:
        files[f"{Path(path).name}:{name}"] = path
        return ""

    for text in texts:
        on_files(text, noted)
    try:
        return {name: source_digest(Path(file)) for name, file in files.items()}
    except OSError as error:
        raise InvalidData(f"{error.filename} cannot be read: {error.strerror or error}") from error
