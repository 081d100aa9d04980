"""Networks and surrogates that are trained before they are explained: from a source of images to a file."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Self

import torch
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator
from torch.utils.data import Dataset

from ..data.labeled import LabeledImages, load_images, shuffled
from ..data.shapes import ShapesDataset
from ..data.sources import Source, concatenated, open_images, renumbered
from ..errors import InvalidData, OutputNotWritable, first_difference
from ..files import told_whole
from ..folders import content
from ..models.preprocess import Preprocess
from ..models.segmentation import dense_model
from ..models.small import PAPER_MODELS
from ..models.zoo import has_own_weights, load_network, outputs, weights_facts
from ..outputs import class_numbers
from ..variants.surrogate import Surrogate, load_surrogate
from .adversarial import robust_accuracy
from .batches import check_set, class_count, preprocess_of
from .checkpoints import Checkpoints, checkpoints_beside
from .classifiers import TrainingReport, accuracy, require_safetensors, save_weights, train
from .hyperparameters import Hyperparameters, TrainingPrecision, hyperparameters_of
from .loop import Progress
from .surrogates import digest_of_weights, train_surrogate

SHAPES = "shapes-resnet"  # the network whose images are drawn, so that it needs no source
SHAPES_COUNT = 8000
ATTACKED = 1000  # images of the validation set that the robust accuracy is measured on, at most
_OTHER_FILE = "choose another file, or move this one"
_ASKED = "asked"  # among the facts of what was trained: what tells its training from another
_WITH_TEST_SPLIT = ("torchvision:", "hf:")  # data sets that bring a test split along

TellProgress = Callable[[str, int, int], None]
"""Called with what is being done, how much of it is done, and how much there is."""

Count = Annotated[int, Field(strict=True, ge=1, lt=2**63)]
Number = Annotated[int, Field(strict=True, ge=0, lt=2**63)]  # as torch's seeds and sizes go


def several(value: Any) -> Any:
    """One text stands for a list of one."""
    return (value,) if isinstance(value, str) else value


class Checked(BaseModel):
    """Settings as they are read: frozen, and without keys that are not known."""

    model_config = ConfigDict(frozen=True, extra="forbid")


class NetworkSettings(Checked):
    """A network trained from scratch with its paper's settings.

    Attributes:
        name: as ``load_model`` takes it.
        source: labeled images, as ``open_images`` takes them; only shapes-resnet draws its own if it is left out.
        test: images scored in the end; of a named data set its own if left out.
        held_out: instead, every n-th image of the source, from the first, is not learnt from but scored.
        label_column: the tables' column of labels.
        count: of the training images, drawn at random; None is all.
        size: pixels of a side at which images enter, cut to a square at the center; None is as the network's own.
        adversarial: how far pixels in [0, 1] are moved against the network as it learns; None is not at all.
        epochs, shuffle, precision: instead of the network's own.
        seed: of weights, order, dropout and augmentation.
    """

    name: str
    source: str = ""
    test: str = ""
    label_column: str | None = None
    count: Annotated[int, Field(strict=True, ge=16)] | None = None
    size: Count | None = None
    epochs: Count | None = None
    shuffle: bool | None = None
    precision: TrainingPrecision | None = None
    adversarial: float | None = None
    held_out: Annotated[int, Field(strict=True, ge=2)] | None = None
    seed: Number = 0

    @model_validator(mode="after")
    def _has_images(self) -> Self:
        if not self.source and self.name != SHAPES:
            raise ValueError(f"{self.name} needs a source of images")
        if self.held_out and (self.test or not self.source):
            raise ValueError("held_out is of a source without a test; leave one out")
        return self

    @property
    def places(self) -> tuple[str, ...]:
        """Where its images may lie."""
        return (self.source, self.test)

    @property
    def preprocess(self) -> Preprocess:
        """What images go through."""
        own = preprocess_of(self.name)
        return own if self.size is None else own.at_size(self.size)


class SurrogateSettings(Checked):
    """A surrogate's training: ``train_surrogate``'s arguments for a model by name, and the images' source."""

    model: str
    weights: str | None = None
    source: Annotated[tuple[str, ...], BeforeValidator(several)]
    count: Count | None = None  # the first images of each source; None is all
    epochs: Count = 10
    lr: float = 1e-3
    batch_size: Count = 64
    include_first: bool = False
    precision: TrainingPrecision = "auto"
    seed: Number = 0

    @property
    def places(self) -> tuple[str, ...]:
        """Where its model, weights and images may lie; a model's name is no place."""
        path, is_file, _ = self.model.rpartition(".py:")
        return (f"{path}.py" if is_file else "", self.weights or "", *self.source)


@dataclass(frozen=True, eq=False)
class Trained:
    """A network's training as it went, and the images that it learned from and was scored on."""

    report: TrainingReport
    train_set: LabeledImages
    validation_set: LabeledImages


# From a source to a file.


def train_classifier(
    settings: NetworkSettings, output: Path, device: str, advance: TellProgress
) -> Trained | None:
    """Train a network and write its weights to a .safetensors file, with the facts beside it.

    Stopped and called again, it goes on from the checkpoints beside the file; where the file holds this very
    training, nothing is done (None), and what else is there is refused. Raises a ``PellucidError`` that names
    whatever is wrong with the network, the images or the file.
    """
    asked = _asked(settings, output)
    facts = output.with_suffix(".json")
    if _is_finished((output, facts), asked, lambda: told_whole(facts)):
        return None
    recipe = hyperparameters_of(
        settings.name, epochs=settings.epochs, shuffle=settings.shuffle, precision=settings.precision,
        adversarial=settings.adversarial,
    )  # fmt: skip
    train_set, test_set = _train_and_test(settings, output.absolute().parent, advance)
    if test_set is None or recipe.keep == "best":
        train_set, validation_set = train_set.split(recipe.validation, settings.seed)
    else:
        validation_set, test_set = test_set, None  # it chooses nothing, so it may be scored in each epoch

    report = train_network(
        settings.name, train_set, output, validation_set, test_set, recipe, settings.seed, device,
        lambda done, steps, loss: advance(f"training, loss {loss:.3f}", done, steps), settings.preprocess,
        {_ASKED: asked},
    )  # fmt: skip
    return Trained(report, train_set, validation_set)


def train_network(
    name: str,
    train_set: Dataset[Any],
    output: str | Path,
    validation_set: Dataset[Any],
    test_set: Dataset[Any] | None = None,
    recipe: Hyperparameters | None = None,
    seed: int = 0,
    device: str | torch.device = "cpu",
    progress: Progress | None = None,
    preprocess: Preprocess | None = None,
    about: Mapping[str, Any] | None = None,
) -> TrainingReport:
    """Train a network from scratch and write its weights, with the facts beside them as JSON.

    Checkpoints stand in ``OUTPUT.checkpoint`` until the weights are written; the same call takes them up.

    Args:
        name: as :func:`load_model` takes it; it gets one output for each class of the training set. What is
            explained as a ``Segmentation`` learns from labels of pixels.
        train_set: as :func:`train`; ``classes`` are its class names, where it has them.
        output: the .safetensors file to write.
        validation_set, test_set: scored after each epoch, and once, in the end.
        recipe: None is the network's own.
        seed: decides the initial weights, the order, dropout and the augmentation.
        device, progress: where it is trained; as :func:`train`, as are the errors raised.
        preprocess: None is the network's own; it stands in the facts, by which ``load_model`` knows it.
        about: what else the facts should say.
    """
    output = Path(output)
    require_safetensors(output)
    recipe = hyperparameters_of(name) if recipe is None else recipe
    classes = tuple(getattr(train_set, "classes", ()))
    loaded = load_network(name, "random", classes or class_count(train_set), device, seed)
    preprocess, network = preprocess_of(loaded) if preprocess is None else preprocess, dense_model(loaded.model)
    if test_set is not None:
        check_set(test_set, outputs(loaded.model), replace(recipe, shuffle=True))
    with checkpoints_beside(output) as folder:
        report = train(network, train_set, validation_set, recipe, seed, preprocess, folder, progress)
        if recipe.adversarial:
            robust = robust_accuracy(network, validation_set, preprocess, recipe.adversarial, count=ATTACKED)
            report = replace(report, robust=robust)
        facts = {
            "model": name,
            "source": PAPER_MODELS[name].source if name in PAPER_MODELS else "torchvision",
            "classes": list(classes),
            "preprocess": preprocess.as_dict(),
            "train_set": repr(train_set),
            "validation_set": repr(validation_set),
            "accuracy": report.accuracy,
            "training": asdict(report),
            "left_out": list(getattr(train_set, "skipped", ())),
            **(about or {}),
        }
        if test_set is not None:
            facts |= {"test_set": repr(test_set), "test_accuracy": accuracy(network, test_set, preprocess)}
        save_weights(loaded.model, output, facts)
    return report


def _train_and_test(
    settings: NetworkSettings, folder: Path, advance: TellProgress
) -> tuple[LabeledImages, LabeledImages | None]:
    """The images to train with, and those to score in the end, if there are any; large sets go into ``folder``."""

    preprocess, every = settings.preprocess, settings.held_out
    model = load_network(settings.name, "random").model
    object_mask = None if dense_model(model) is model else preprocess.object_mask

    def read(
        source: Any, split: str, count: int | None = None, classes: tuple[str, ...] = (), held_out: bool = False
    ) -> LabeledImages:
        """Decode the images of one place, or as many, drawn at random, cropped as the network wants them.

        Their labels are moved to ``classes``, if there are any; a segmentation model's are those of the pixels.
        """
        images = open_images(source, settings.label_column, split)
        # Every n-th image is held out, whatever is drawn of the others, so that both parts never share one.
        kept = [at for at in range(len(images)) if not every or (at % every == 0) == held_out]
        if not object_mask and images.classes and classes:
            images = renumbered(images, class_numbers(images.classes, classes, len(classes)), classes)
        return load_images(
            images,
            preprocess.display,
            origin=f"{source} ({split})" if str(source).startswith(_WITH_TEST_SPLIT) else str(source),
            positions=[kept[at] for at in sorted(shuffled(len(kept), settings.seed)[:count].tolist())],
            folder=folder,
            progress=lambda done, total: advance("reading images", done, total),
            object_mask=object_mask,
        )

    if not settings.source:  # procedural shapes, as the included weights were trained and scored with
        count = settings.count or SHAPES_COUNT
        drawn, held_out = ShapesDataset(count, seed=1), ShapesDataset(max(count // 8, 8), seed=2)
        return read(drawn, "train"), read(held_out, "train")
    test = settings.source if not settings.test and settings.source.startswith(_WITH_TEST_SPLIT) else settings.test
    train_set = read(settings.source, "train", settings.count)
    if every:
        return train_set, read(settings.source, "train", held_out=True)
    return train_set, read(test, "test", classes=train_set.classes) if test else None


def opened(places: Sequence[str], count: int | None, label_column: str | None = None) -> dict[str, Source]:
    """The first ``count`` images of each place; ``InvalidData`` where there are none at all."""
    sources = {place: open_images(place, label_column)[:count] for place in dict.fromkeys(places)}
    if not any(map(len, sources.values())):
        raise InvalidData(f"{', '.join(places)}: there are no images")
    return sources


def train_paths(settings: SurrogateSettings, output: Path, device: str, advance: TellProgress) -> Surrogate | None:
    """Train a surrogate and write it to a .safetensors file; else as :func:`train_classifier`."""
    asked = _asked(settings, output)
    is_finished = _is_finished((output,), asked, lambda: load_surrogate(output).facts)
    if is_finished and not has_own_weights(settings.model):
        return None
    loaded = load_network(settings.model, settings.weights, device=device)
    if is_finished:  # a model that brings weights of its own may have other ones by now
        if load_surrogate(output).facts.get("model_digest") != digest_of_weights(loaded.model):
            told = f"{output} holds a finished training of other weights than {settings.model} has now"
            raise OutputNotWritable(f"{told}; {_OTHER_FILE}")
        return None
    about = {"model": settings.model, "data": list(settings.source), "preprocess": loaded.preprocess.as_dict()}
    sources = opened(settings.source, settings.count)
    images = concatenated(sources) if len(sources) > 1 else next(iter(sources.values()))
    with checkpoints_beside(output) as checkpoint:
        trained = train_surrogate(
            loaded.model, images, settings.epochs, settings.lr, batch_size=settings.batch_size,
            preprocess=loaded.preprocess, include_first=settings.include_first, checkpoint=checkpoint,
            seed=settings.seed, precision=settings.precision,
            progress=lambda done, steps, loss: advance(f"training, loss {loss:.4f}", done, steps),
            about=about | weights_facts(loaded) | {_ASKED: asked},
        )  # fmt: skip
        trained.save(output)
    return trained


def learned_from(facts: Mapping[str, Any], places: Sequence[str], file: Path) -> list[str]:
    """Those of the places whose images a training learned from, as the ``facts`` in or beside its file tell.

    A folder counts as the same by the names and sizes of its files, whatever it is called now.
    """
    asked = facts.get(_ASKED)
    told = asked.get("content") if isinstance(asked, dict) else None
    if not isinstance(asked, dict) or not isinstance(told, list):
        return []
    # A network's own named data sets have another split for training; a surrogate's are taken as they are here.
    known = [one for one in told[:1] if str(one).startswith("sha256")] if "name" in asked else told[2:]
    own = (file, file.with_suffix(".json"))
    return [place for place in places if _drawn(content(place, own)) in map(_drawn, known)]


def _drawn(told: object) -> str:
    """What tells images from others; of shapes that are drawn, however many, the first are the same."""
    return "shapes" if str(told).partition(":")[0] == "shapes" else str(told)


# What is there already.


def _asked(settings: NetworkSettings | SurrogateSettings, output: Path) -> dict[str, Any]:
    """What tells a training from another: its settings, and the content of what they name but the ``output``."""
    own = (output, output.with_suffix(".json"))
    found = [content(place, own) if place else "" for place in settings.places]
    told = settings.model_dump(mode="json")
    if told.get("held_out", 0) is None:  # trainings of earlier versions do not tell of it
        del told["held_out"]
    return {**told, "content": found}


def _called_as(known: Mapping[str, Any], asked: Mapping[str, Any]) -> dict[str, Any]:
    """What is asked, with places that hold the same as those of a known training called as they are there."""
    names = ("source", "test") if "name" in asked else ("model", "weights", "source")
    found = dict(asked)
    for at, name in enumerate(names):
        stop = None if name == names[-1] else at + 1  # a surrogate's source is several places, which come last
        here, there = (list(told.get("content", ()))[at:stop] for told in (asked, known))
        is_same = here == there and all(str(one).startswith("sha256") for one in here)
        functions = {str(told.get(name)).rpartition(".py:")[2] for told in (asked, known)}
        if is_same and (name != "model" or len(functions) == 1):
            found[name] = known.get(name)
    return found


def _is_finished(files: Sequence[Path], asked: Mapping[str, Any], facts: Callable[[], Mapping[str, Any]]) -> bool:
    """Whether files hold the training that is asked for, by its facts; refuse what else is in their place.

    Of a training that was stopped as it wrote its files the checkpoints are still there, and tell whose they are.

    Raises:
        OutputNotWritable: another training's files, or files that no training wrote.
    """
    there = next((path for path in files if path.exists()), None)
    if there is None:
        return False
    way_out = _OTHER_FILE
    try:
        known = facts().get(_ASKED)
    except (OSError, ValueError) as error:
        if Checkpoints(there.with_suffix(".checkpoint"), {}).files():
            return False
        raise OutputNotWritable(f"{there} is there, and is no whole training's ({error}); {way_out}") from error
    if known is None:
        raise OutputNotWritable(f"{there} holds a finished training that does not tell its settings; {way_out}")
    asked = _called_as(known, asked)
    if known != asked:
        difference = first_difference(known, dict(asked))
        raise OutputNotWritable(f"{there} holds a finished training of other settings: {difference}; {way_out}")
    if there.with_suffix(".checkpoint").is_dir():  # it was killed as it removed them
        with checkpoints_beside(there):
            pass
    return True
