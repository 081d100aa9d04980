"""Load a network by name, with weights from a file, a library or the package, ready to be explained."""

from __future__ import annotations

import inspect
import os
import re
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from html import escape
from pathlib import Path
from typing import Any, cast

import torch
import torchvision
from torch import Tensor, nn

from ..errors import (
    InvalidData,
    InvalidModel,
    InvalidParameter,
    InvalidWeights,
    UnknownName,
    WeightsWarning,
    failure,
    shortened,
)
from ..files import file_facts, run_file
from ..kinds import of_kinds
from ..layers import first_channels, layer_names, require_shapes, unwrapped
from ..outputs import Answering, Classifier, answer, class_numbers, two_answers
from ..pixels import ScaleEnds
from .hugging_face import HuggingFace, under_own_names
from .preprocess import (
    IMAGENET,
    PREPROCESS_INSTEAD,
    CustomPreprocess,
    Preprocess,
    assumed,
    preprocess_named,
    understood,
)
from .segmentation import Dense, Segmentation
from .small import PAPER_MODELS
from .weights import (
    NO_TORCHSCRIPT,
    check_fit,
    is_file,
    read_class_names,
    read_facts,
    read_state_dict,
    refuse_torchscript,
    renamed,
)

BUNDLED = {"shapes-resnet": Path(__file__).with_name("shapes_resnet.safetensors")}
IMAGENET_CLASSES = tuple(torchvision.models.ResNet18_Weights.DEFAULT.meta["categories"])
_DENSE = "dense:"
_HUGGING_FACE = "hf:"
_Pretrained = tuple[nn.Module, Preprocess | CustomPreprocess, tuple[str, ...] | None]


@dataclass(frozen=True)
class LoadedModel:
    """A network in eval mode with frozen parameters, and what its images must go through.

    Unpacks as ``model, preprocess = load_model(...)``.

    Attributes:
        model: (B, C, H, W) -> (B, classes) logits.
        preprocess: PIL image -> (C, H, W) tensor; its ``display`` gives the same crop as a picture.
        name: the name it was loaded by.
        classes: the class names by index, where they are known.
        weights: the weights' file or name, "bundled" or "random".
        assumption: why the preprocess is one that nobody gave; empty where the model or somebody says it.
        whole_of: the model's own preprocess where images are seen at their own size instead.
        naming: why the class names are ones that nobody gave; empty where the weights or somebody say them.
    """

    model: nn.Module = field(repr=False)
    preprocess: Preprocess | CustomPreprocess
    name: str
    classes: tuple[str, ...] | None = field(default=None, repr=False)
    weights: str = "random"
    assumption: str = ""
    whole_of: Preprocess | None = None
    naming: str = ""

    def __call__(self, images: Tensor) -> Any:
        """What the model returns for images (B, C, H, W) that went through ``preprocess``."""
        return self.model(images)

    def __iter__(self) -> Iterator[Any]:
        return iter((self.model, self.preprocess))

    def _repr_html_(self) -> str:
        """What it is, in a notebook."""
        count = outputs(self.model)
        named = f": {shortened(self.classes, 6)}" if self.classes else ", whose names are not known"
        rows = {
            "weights": self.weights_told,
            "classes": f"{count}{named}",
            "images": ", ".join(f"{name}={value}" for name, value in self.preprocess.as_dict().items()),
            "layers": shortened(layer_names(self.model), 8),
        }
        told = "".join(f"<tr><th>{name}</th><td>{escape(value)}</td></tr>" for name, value in rows.items())
        return f"<b>{escape(self.name)}</b><table>{told}</table>"

    @property
    def weights_told(self) -> str:
        """What a reader is told of the weights: whose they are, where their name says less than that."""
        if self.weights == "random" and is_in_file(self.name):
            return "made by its function"
        if self.weights == "DEFAULT" and self.name.startswith(_HUGGING_FACE):
            is_folder = HuggingFace(self.name.removeprefix(_HUGGING_FACE)).is_folder
            return "of its folder" if is_folder else "of Hugging Face"
        return self.weights

    def class_name(self, number: int) -> str:
        """What a class is called."""
        return self.classes[number] if self.classes and number < len(self.classes) else f"class {number}"

    def numbers_of(self, names: Sequence[str], required: bool = True) -> tuple[int, ...] | None:
        """The number of each class that images name, as ``class_numbers``.

        Where names do not fit, None, or an error if they are ``required``.
        """
        try:
            return class_numbers(names, self.classes, len(self.classes) if self.classes else outputs(self.model))
        except InvalidData:
            if required:
                raise
        return None

    def asked(self, target: str) -> LoadedModel:
        """The model that a target is a class of: for a difference or a function one with this single output.

        Raises:
            InvalidTarget, UnknownName: as ``pellucid.outputs.answer``.
        """
        found = answer(target, self.classes)
        if isinstance(found, int):
            return self
        return replace(self, model=Answering(self.model, found).eval(), classes=(target,))

    def at_size(self, side: int) -> LoadedModel:
        """The model with images of ``side`` pixels; ``InvalidModel`` where it brings a preprocess of its own."""
        if not isinstance(self.preprocess, Preprocess):
            raise InvalidModel(f"{self.name} brings a preprocess of its own: set the size of its images there")
        return replace(self, preprocess=self.preprocess.at_size(side), whole_of=None)

    @of_kinds
    def seeing(
        self, preprocess: str | None = None, scale: ScaleEnds | None = None, display: tuple[int, ...] | None = None
    ) -> LoadedModel:
        """The model with images that go through something else; what is None stays as it is.

        Args:
            preprocess: in place of the model's own, as ``preprocess_named`` takes it.
            scale: of the ``Preprocess``, such as ``(200, 4200)`` or ``(200, 4200, "clip")``.
            display: which channels are shown, one or three, numbered from 1: its ``bands``.

        Raises:
            InvalidParameter: a scale for a function of the user's own, which scales by itself.
        """
        seen = self if preprocess is None else self._through(preprocess)
        found = seen.preprocess
        if display is not None:
            found = replace(found, bands=tuple(display))
        if scale is not None:
            if not isinstance(found, Preprocess):
                raise InvalidParameter(
                    "--scale is for a Preprocess; the model's file has a function, which scales by itself: "
                    f"scale the values there, or take another by --preprocess; {PREPROCESS_INSTEAD}"
                )
            found = replace(found, scale=scale)
        return replace(seen, preprocess=found)

    def _through(self, preprocess: str) -> LoadedModel:
        """The model with another preprocess (``preprocess_named``), and what is assumed by it."""
        own, whole_of, assumption = self.whole_of or self.preprocess, None, self.assumption
        if preprocess in ("whole", "none") and isinstance(own, Preprocess) and not assumption:
            whole_of = own  # what is assumed is no training's
        found = preprocess_named(preprocess, self.preprocess, input_channels(self.model))
        # A function of the user's normalizes in a way of its own, so that nothing can be told to be left out.
        before, after = (one.mean if isinstance(one, Preprocess) else () for one in (self.preprocess, found))
        if before and after is None and not assumption:
            assumption = f"the model's own normalization is left out by preprocess {preprocess}"
        elif preprocess != "whole":  # which keeps a normalization that is assumed
            assumption = ""
        return replace(self, preprocess=found, assumption=assumption, whole_of=whole_of)


@dataclass(frozen=True)
class Architecture:
    """How to build one network, before it has any weights.

    Attributes:
        build: number of classes (None: the network's own) -> the network with random weights.
        preprocess: what images go through unless the weights say otherwise.
        pretrained: weights name -> the network holding them, their preprocessing and class names; None where
            no weights have names.
        classes: the class names where there are ``len(classes)`` outputs and weights were given.
        sized: whether ``build`` heeds the number of classes.
        names_outputs: whether the class names are those of the outputs whatever the weights.
        weights: what None stands for.
        assumption: why the preprocess is assumed; empty where it is the network's own.
    """

    build: Callable[[int | None], nn.Module]
    preprocess: Preprocess | CustomPreprocess
    pretrained: Callable[[str], _Pretrained] | None = None
    classes: tuple[str, ...] | None = None
    sized: bool = True
    names_outputs: bool = False
    weights: str = "random"
    assumption: str = ""


def device_named(device: str) -> str:
    """The device; for ``"auto"`` a GPU if there is one."""
    return ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device


@of_kinds
def load_model(
    name: str,
    weights: str | Path | None = None,
    classes: int | str | Sequence[str] | None = None,
    device: str | torch.device = "cpu",
    seed: int = 0,
) -> LoadedModel:
    """Load a classifier ready to be explained: in eval mode, every parameter frozen, on ``device``.

    Args:
        name: one of :func:`model_names`; ``"timm:NAME"`` for a network of timm; ``"hf:NAME"`` or
            ``"hf:FOLDER"`` for an image classifier of Hugging Face, with its image processor and class names,
            from safetensors alone; or ``"path/to/file.py:function"``, a file that is run and whose ``function()``
            returns the network. The file may also hold ``preprocess``, a :class:`Preprocess`, a torchvision
            ``Compose`` (``understood``), or any function of an image (:class:`CustomPreprocess`; without it
            ImageNet's); ``classes``, the class names; and ``output``, where the logits are (:class:`Classifier`).
            ``"dense:NAME"`` is the classifier NAME run at every place (:class:`Dense`), a segmentation model
            without a background, as a :class:`Segmentation` that pools over the places where a class is predicted;
            its weights are the classifier's.
        weights: a .safetensors, .pth or .pt file, plain or gzip-compressed (.gz); a name such as
            ``"DEFAULT"`` or ``"IMAGENET1K_V1"``, which is downloaded; ``"random"``; or None, which is
            ``"bundled"`` for ``shapes-resnet``, ``"DEFAULT"`` for Hugging Face's and random for all others. A
            file decides the number of classes; ``save_weights`` leaves class names and preprocessing beside it,
            and they are used. Prefixes of names, as Lightning's ``model.``, are taken off with a warning.
        classes: the class names (or a file of them, one a line or JSON), or how many; without weights they decide
            the number of outputs. With two names a network of one output is a classifier of two (``two_answers``).
        device: where the network goes.
        seed: of a random initialization; the global random state is left as it was.

    Raises:
        UnknownName: no such network, function or named weights.
        InvalidModel: no Python network (such as TorchScript), one that cannot be run at every place, or timm is
            not installed.
        InvalidWeights: a file that is missing, broken, unsafe, not finite or of another network, or a
            download that failed.
        InvalidParameter: classes that do not fit the weights, or a device that is not there.

    Warns with a ``WeightsWarning`` where weights are random though nobody asked for ``"random"``.
    """
    loaded = load_network(name, weights, classes, device, seed)
    if weights is None and loaded.weights == "random" and ".py:" not in name:
        message = (
            f"{name} has random weights, whose maps tell nothing of a trained network: give weights=FILE, or "
            "'DEFAULT' for a library's own, or 'random' if that is meant"
        )
        warnings.warn(WeightsWarning(message), stacklevel=2)
    return loaded


def load_network(
    name: str,
    weights: str | Path | None = None,
    classes: int | str | Sequence[str] | None = None,
    device: str | torch.device = "cpu",
    seed: int = 0,
) -> LoadedModel:
    """As ``load_model``, for commands, which tell of random weights with all else that they notice."""
    if name.startswith(_DENSE):
        return _dense(load_network(_inside(name), weights, classes, device, seed), name)
    architecture = find_architecture(name)
    if weights is None:
        weights = "bundled" if name in BUNDLED else architecture.weights
    if not isinstance(classes, int | None):
        classes = read_class_names(classes)
    count = classes if isinstance(classes, int | None) else len(classes)
    # Random weights come from the seed alone, and whoever draws
    # numbers afterwards draws the same as without this call.
    with torch.random.fork_rng([]):
        # It is not ``torch.manual_seed``, which would seed every accelerator as well.
        torch.default_generator.manual_seed(seed)
        model, preprocess, known, is_tuned = _weighted(architecture, name, weights, count)
    if count is not None and architecture.sized:
        _require_outputs(model, count, f"{name} with weights {weights}")
    assumption = _assumption(architecture, preprocess, name, weights if is_tuned else None)
    # Of a network that nobody knows only the number of channels is certain.
    if assumption and not architecture.sized:
        preprocess = assumed(input_channels(model))
    elif isinstance(preprocess, CustomPreprocess):  # known channels tell what a Normalize of one mean is for
        preprocess = understood(preprocess.function, first_channels(model)) or preprocess
    names = _fitting(known, architecture, model) if isinstance(classes, int | None) else classes
    if outputs(model) == 1 and names is not None and len(names) == 2:
        model = Classifier(model, two_answers)
    model = _on_device(model.eval().requires_grad_(False), device)
    naming = _naming(architecture, names, weights)
    return LoadedModel(model, preprocess, name, names, str(weights), assumption, naming=naming)


def _require_outputs(model: nn.Module, count: int, called: str) -> None:
    """Raise ``InvalidParameter`` unless a network has so many outputs, or one, which answers for two classes."""
    has = outputs(model)
    if has == count or (has == 1 and count == 2):
        return
    told = f"but {called} has {has} outputs"
    refusal = InvalidParameter(f"classes={count}, {told}; leave classes out, or give weights of as many")
    way_out = f"leave out --classes, or give --weights FILE of a network of {count} classes"
    refusal.command = f"--classes names {count}, {told}; {way_out}"
    raise refusal


def _assumption(
    architecture: Architecture,
    preprocess: Preprocess | CustomPreprocess,
    name: str,
    tuned: str | Path | None,
) -> str:
    """Why a preprocess is assumed, empty where the network or its weights tell it.

    ``tuned`` is a file of weights for other classes than the network's own, so that its images may differ, too.
    """
    if preprocess is not architecture.preprocess:
        return ""
    if tuned is not None and not architecture.names_outputs:
        return f"{Path(tuned).name} tells no preprocess, and its classes are not {name}'s own"
    return architecture.assumption


def _naming(architecture: Architecture, names: tuple[str, ...] | None, weights: str | Path) -> str:
    """Why a library's names of its own classes are assumed: a file has as many, and tells no names."""
    if names is None or names is not architecture.classes or architecture.names_outputs or not is_file(weights):
        return ""
    return f"{Path(weights).name} tells no class names: its {len(names)} classes are taken for ImageNet's"


def _weighted(
    architecture: Architecture, name: str, weights: str | Path, count: int | None
) -> tuple[nn.Module, Preprocess | CustomPreprocess, tuple[str, ...] | None, bool]:
    """The network with its weights, its preprocessing and the class names that come with them.

    And whether a file's weights are of another number of classes than the network's own, so of another training.
    """
    place = BUNDLED.get(name, weights) if weights == "bundled" else weights
    if is_file(place):
        facts = read_facts(Path(place))
        preprocess = facts.get("preprocess", architecture.preprocess)
        model, is_tuned = _with_file(architecture, name, Path(place))
        return model, preprocess, facts.get("classes", architecture.classes), is_tuned
    if weights == "random":
        known = architecture.classes if architecture.names_outputs else None
        return architecture.build(count), architecture.preprocess, known, False
    if architecture.pretrained is None:
        raise InvalidWeights(f"{name} has no weights named {str(weights)!r}; give a .safetensors or .pth file")
    return *architecture.pretrained(str(weights)), False


def has_own_weights(name: str) -> bool:
    """Whether a name is of a model that brings weights from where nobody named a file: they may change unseen.

    A file's function may load them from anywhere; a folder of Hugging Face's may be written anew.
    """
    return name.startswith(_HUGGING_FACE) or is_in_file(name)


def is_in_file(name: str) -> bool:
    """Whether a name is of a model that a Python file's function makes."""
    return bool(re.search(r"\.py(:|$)", name))


def weights_facts(loaded: LoadedModel) -> dict[str, str]:
    """What the weights are, and the SHA-256 of their file if there is one; random ones are of seed 0."""
    bundled = BUNDLED.get(loaded.name.removeprefix(_DENSE))
    place = bundled if bundled and loaded.weights == "bundled" else Path(loaded.weights)
    facts = file_facts(place, "weights")
    return facts if "sha256" in facts else {"weights": loaded.weights_told}


def input_channels(model: nn.Module) -> int:
    """The channels of the first convolution; 3 where there is none."""
    return first_channels(model) or 3


def _fitting(
    names: tuple[str, ...] | None, architecture: Architecture, model: nn.Module
) -> tuple[str, ...] | None:
    """Class names if there are as many as outputs, or the network's own file tells them."""
    fits = names is not None and (not architecture.sized or len(names) == outputs(model))
    return names if fits else None


def _inside(name: str) -> str:
    """The name of the classifier that is to be run at every place."""
    inside = name.removeprefix(_DENSE)
    if inside.startswith(_DENSE) or has_own_weights(inside):
        raise InvalidModel(
            f"{name!r}: after {_DENSE} comes a network's name; a file's function can return Segmentation"
        )
    return inside


def _dense(loaded: LoadedModel, name: str) -> LoadedModel:
    model = Segmentation(Dense(loaded.model), background=None, pooling="predicted")
    return replace(loaded, model=model.eval(), name=name)


def model_names() -> list[str]:
    """Return every name that :func:`load_model` knows: the papers' networks, then torchvision's."""
    return [*PAPER_MODELS, *_torchvision_names()]


def _torchvision_names() -> list[str]:
    return list(torchvision.models.list_models(module=torchvision.models))


# Where networks come from.


def find_architecture(name: str) -> Architecture:
    """Find how to build the network of this name."""
    if name in PAPER_MODELS:
        paper = PAPER_MODELS[name]
        return Architecture(lambda count: paper.factory(**_sizes(count)), paper.preprocess)
    if name.startswith("timm:"):
        return _from_timm(name.removeprefix("timm:"))
    if name.startswith(_HUGGING_FACE):
        return _from_hugging_face(HuggingFace(name.removeprefix(_HUGGING_FACE)))
    if is_in_file(name):
        return _from_file(name)
    if name in _torchvision_names():
        return _from_torchvision(name)
    if os.path.isfile(name):
        refuse_torchscript(Path(name))
        raise InvalidModel(f"{name} is a file; name its network and give the file as weights={name!r}")
    if os.path.isfile(os.path.join(name, "config.json")):
        raise InvalidModel(f"{name} is a folder; as a model of Hugging Face's it is {_HUGGING_FACE}{name}")
    known = [f"timm:{name}"] if _is_of_timm(name) else model_names()
    raise UnknownName("model", name, known, "a network of your own is path/to/file.py:function")


def _sizes(count: int | None) -> dict[str, Any]:
    """The argument that sets a network's number of classes, if one was asked for."""
    return {} if count is None else {"num_classes": count}


def _from_torchvision(name: str) -> Architecture:
    """One of torchvision's classifiers, without auxiliary heads."""
    members = torchvision.models.get_model_weights(name)
    first = next(iter(members))  # the original training recipe, whose crop a file of weights most likely has
    extras = {"aux_logits": False} if name in ("googlenet", "inception_v3") else {}

    def build(count: int | None) -> nn.Module:
        untrained = {"init_weights": False} if extras else {}
        model: nn.Module = torchvision.models.get_model(name, weights=None, **_sizes(count), **extras, **untrained)
        return model

    def pretrained(weights: str) -> _Pretrained:
        chosen = weights.rpartition(".")[2]
        if chosen not in members.__members__:
            raise UnknownName(f"weights of {name}", weights, [*members.__members__, "random"])
        member = members[chosen]
        try:
            model = torchvision.models.get_model(name, weights=member, progress=False, **extras)
        except (OSError, RuntimeError) as error:  # no network; a broken download
            raise InvalidWeights(
                f"cannot download {chosen} of {name} from {member.url} ({error}); fetch it and give the file"
            ) from error
        return model, _evaluation_transform(member), tuple(member.meta["categories"])

    return Architecture(build, _evaluation_transform(first), pretrained, tuple(first.meta["categories"]))


def _evaluation_transform(member: Any) -> Preprocess:
    preset = member.transforms()
    resize, crop = preset.resize_size[0], preset.crop_size[0]
    interpolation = preset.interpolation.value
    return Preprocess(resize, crop, tuple(preset.mean), tuple(preset.std), interpolation=interpolation)


def _is_of_timm(name: str) -> bool:
    """Whether timm is installed and has a network of exactly this name."""
    try:
        import timm
    except ImportError:
        return False
    return bool(timm.is_model(name))


def _from_timm(name: str) -> Architecture:
    try:
        import timm
    except ImportError as error:
        raise InvalidModel(f"timm:{name} needs timm; run: pip install 'pellucid[timm]'") from error
    if not timm.is_model(name):
        raise UnknownName("timm model", name, timm.list_models())

    described: Any = timm.get_pretrained_cfg(name)
    config = described.to_dict() if described else {}
    classes = IMAGENET_CLASSES if config.get("num_classes") == len(IMAGENET_CLASSES) else None

    def build(count: int | None) -> nn.Module:
        return timm.create_model(name, **_sizes(count))

    def pretrained(weights: str) -> _Pretrained:
        if weights != "DEFAULT":
            raise UnknownName(f"weights of timm:{name}", weights, ["DEFAULT", "random"])
        try:
            model = timm.create_model(name, pretrained=True)
        except (OSError, RuntimeError) as error:
            raise InvalidWeights(f"cannot load timm's weights of {name} ({error}); give a file") from error
        return model, _timm_preprocess(config), classes

    return Architecture(build, _timm_preprocess(config), pretrained, classes)


def _timm_preprocess(described: Mapping[str, Any]) -> Preprocess | CustomPreprocess:
    from timm.data.config import resolve_data_config
    from timm.data.transforms_factory import create_transform

    config = resolve_data_config(pretrained_cfg=dict(described))
    if config["crop_mode"] not in ("center", "squash"):  # "border" fills up what a crop would cut
        return CustomPreprocess(create_transform(**config))
    channels, height, width = config["input_size"]
    # timm resizes to crop size / crop_pct, rounded down, and crops the center.
    scaled = (int(height / config["crop_pct"]), int(width / config["crop_pct"]))
    squashed = config["crop_mode"] == "squash" or height != width
    return Preprocess(
        scaled if squashed else scaled[0],
        None if height != width else height,
        tuple(config["mean"]),
        tuple(config["std"]),
        channels,
        config["interpolation"] if config["interpolation"] in ("nearest", "bilinear") else "bicubic",
    )


def _from_hugging_face(found: HuggingFace) -> Architecture:
    classes = found.classes  # first, since a model that is not there is told by its configuration
    return Architecture(
        found.build,
        found.preprocess,
        found.pretrained,
        classes,
        names_outputs=True,
        weights="DEFAULT",
        assumption=found.assumption,
    )


def _from_file(name: str) -> Architecture:
    """The network that a Python file's function returns."""
    path, _, function = name.rpartition(":")
    if not path or function.endswith(".py"):
        raise InvalidModel(f"{name!r} names no function; write it as 'path/to/file.py:function'")
    module = run_file(Path(path), InvalidModel, "model file", "function")
    make = _making(path, vars(module), function)

    def build(count: int | None) -> nn.Module:
        try:
            model = make()
        except Exception as error:
            raise InvalidModel(f"{name} failed: {failure(error, path)}") from error
        if isinstance(model, torch.jit.ScriptModule):
            raise InvalidModel(f"{name} returned a TorchScript module; {NO_TORCHSCRIPT}")
        if not isinstance(model, nn.Module):
            raise InvalidModel(f"{name} returned {type(model).__name__}; it must return a torch.nn.Module")
        require_shapes(model)
        return Classifier(model, module.output) if hasattr(module, "output") else unwrapped(model)

    own, names = getattr(module, "preprocess", IMAGENET), getattr(module, "classes", None)
    return Architecture(
        build,
        own if isinstance(own, Preprocess) else CustomPreprocess(own),
        classes=None if names is None else read_class_names(names),
        sized=False,
        names_outputs=True,
        assumption="" if hasattr(module, "preprocess") else "the model's file has no preprocess",
    )


def _making(path: str, known: Mapping[str, Any], name: str) -> Callable[[], Any]:
    """The function of this name among those that a file holds, if it makes a network without being told more."""
    found = known.get(name)
    if isinstance(found, nn.Module):
        raise InvalidModel(f"{name} in {path} is a model, {_wrap(name, name)}")
    if callable(found):
        if needed := _needed(found):
            raise _wants_arguments(path, known, name, needed)
        return cast("Callable[[], Any]", found)
    public = {other: value for other, value in known.items() if other[0] != "_"}
    models = [other for other, value in public.items() if isinstance(value, nn.Module)]
    makers = [other for other, value in public.items() if _is_maker(value)]
    own = _own_makers(known)
    if models and not own:
        raise InvalidModel(f"{path} has no function {name}; {models[0]} is a model, {_wrap(models[0], models[0])}")
    raise UnknownName(f"function in {path}", name, own or makers)


def _own_makers(known: Mapping[str, Any]) -> list[str]:
    """The functions of a file that can be called as they are, without what it imported, as constructors."""
    makers = [name for name, value in known.items() if name[0] != "_" and _is_maker(value)]
    return [name for name in makers if getattr(known[name], "__module__", "") == known.get("__name__")]


def _wants_arguments(path: str, known: Mapping[str, Any], name: str, needed: Sequence[str]) -> InvalidModel:
    """The error for a function that cannot be called without the arguments ``needed``."""
    function = "network" if name != "network" else "made"
    call = f"{name}({', '.join(f'{one}=...' for one in needed)})"
    others = _own_makers(known)
    return InvalidModel(
        f"{name} in {path} is called without arguments, and {' and '.join(needed)} "
        f"{'has' if len(needed) == 1 else 'have'} no default: write 'def {function}(): return {call}' there, and "
        f"name {function}{f', or what needs no argument there: {shortened(others, 3)}' if others else ''}"
    )


def _wrap(name: str, made: str) -> str:
    """How what makes no network by itself is put into a function that does."""
    function = "network" if name != "network" else "made"
    return f"and no function that makes one: write 'def {function}(): return {made}' there, and name {function}"


def _is_maker(value: Any) -> bool:
    """Whether a value can be called as it is, and is no model, which would want images."""
    return callable(value) and not isinstance(value, nn.Module) and not _needed(value)


def _needed(function: Callable[..., Any]) -> list[str]:
    """The names of the arguments that a call cannot leave out."""
    try:
        parameters = inspect.signature(function).parameters.values()
    except (TypeError, ValueError):  # of what is no Python
        return []
    free = (inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD)
    return [one.name for one in parameters if one.default is inspect.Parameter.empty and one.kind not in free]


# Weights.


def _with_file(architecture: Architecture, name: str, path: Path) -> tuple[nn.Module, bool]:
    """A network of the size that a file of weights has, with these weights; and whether its own is another."""
    state = read_state_dict(path)
    model = architecture.build(None)
    if hasattr(model, "aux_logits"):  # only training needs GoogLeNet's and Inception's auxiliary heads
        state = {
            key: value for key, value in state.items() if not key.startswith(("aux1.", "aux2.", "AuxLogits."))
        }
    # The file's names may have a prefix that ``renamed`` takes off only once the network has its size.
    head = next((key for key in state if f".{key}".endswith(f".{_output_layer(model)}")), "")
    is_tuned = bool(architecture.sized and head and len(state[head]) != outputs(model))
    if is_tuned:
        model = architecture.build(len(state[head]))
    state = renamed(dict(under_own_names(state, model)), model, path)
    check_fit(model, state, name, path)
    model.load_state_dict(state, strict=False)  # strict but for batch counters, which old files lack
    if isinstance(model, torchvision.models.GoogLeNet | torchvision.models.Inception3) and outputs(model) == 1000:
        model.transform_input = True  # torchvision's own ImageNet files of the two came from TensorFlow
    return model, is_tuned


def _output_layer(model: nn.Module) -> str:
    """The name of the last layer's weight: the last parameter with more than one dimension."""
    names = [name for name, parameter in model.named_parameters() if parameter.dim() > 1]
    return names[-1] if names else ""


def outputs(model: nn.Module) -> int:
    """Count the classes: as the model declares, as timm's do, or the rows of the last layer's weight."""
    declared = getattr(model, "num_classes", getattr(getattr(model, "config", None), "num_labels", None))
    if isinstance(declared, int):
        return declared
    parameters = dict(model.named_parameters())
    return len(parameters[_output_layer(model)]) if parameters else 0


def _on_device(model: nn.Module, device: str | torch.device) -> nn.Module:
    try:
        return model.to(torch.device(device))
    except (RuntimeError, AssertionError) as error:  # AssertionError: torch was built without CUDA
        why = f"cannot be used ({str(error).splitlines()[0]})"
        refusal = InvalidParameter(f"device={str(device)!r} {why}; give 'cpu' to compute on the processor")
        refusal.command = f"--device {device} {why}; leave out --device to compute on the processor"
        raise refusal from error
