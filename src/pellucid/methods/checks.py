"""Refuses what cannot be explained: images, targets and outputs that do not fit."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InvalidImage, InvalidModel, InvalidTarget, NotFinite
from ..layers import remembered
from ..outputs import (
    Answering,
    Classifier,
    Difference,
    Names,
    answer,
    are_shares,
    channels_last,
    first_logits,
    likelihoods,
    logits_in,
    two_answers,
)
from ..passes import exact, placed


def not_finite(model: nn.Module, what: str, or_else: str = "") -> NotFinite:
    """The error for values that are not finite, naming the parameter that is to blame if one is."""
    for name, value in [*model.named_parameters(), *model.named_buffers()]:
        if not bool(value.isfinite().all()):
            return NotFinite(f"the model's {name!r} holds NaN or infinite values; load its weights anew")
    return NotFinite(f"{what} is not finite though images and weights are; check the images' scale{or_else}")


_LARGE = 20.0  # no normalized image has such values
_BYTE = 255.5  # the most of 8 bits, but for rounding


def looks_wrong(
    images: Tensor, logits: Tensor, preprocess: Any = None, normalized: bool = False, model: Any = None
) -> dict[str, str]:
    """What in a model's images and logits (B, K) is likely a mistake: a sentence for each kind.

    ``preprocess`` is what the model's images should have gone through, where that is known; ``normalized`` says
    that they did.
    """
    return outputs_look_wrong(images, logits, model) | images_look_wrong(images, preprocess, normalized)


def outputs_look_wrong(images: Tensor, logits: Tensor, model: nn.Module | None = None) -> dict[str, str]:
    """What in a model's outputs (B, K) is likely a mistake, by kind.

    Raises:
        InvalidModel: two answers are made of one output that is a probability already, which would be false.
    """
    if logits.shape[1] > 1 and are_shares(logits):
        return {"softmax": "the outputs are probabilities; explain the model without its last softmax"}
    # Logits may lie so by chance, so that the model is asked what it ends in, and tried.
    if model is None or not _are_fractions(_of_one(logits, model)):
        return {}
    if _ends_in_sigmoid(model, images[:1]):
        if _has_two_answers(model):
            raise InvalidModel(
                "the network ends in a sigmoid, so that its one output is a probability already, of which the "
                "two answers (-z/2, z/2) of a logit z would be false: return what the sigmoid is taken of, or "
                "name no classes"
            )
        return {"sigmoid": "the outputs are probabilities; explain the model without its last sigmoid"}
    if logits.shape[1] > 1 and _gives_fractions(model, images[:1]):
        if not _has_two_answers(model):
            so = "the outputs lie between 0 and 1 whatever the model is shown, as probabilities do"
            return {"sigmoid": f"{so}; explain the logits that they are made of"}
        return {
            "fraction": "the one output lies between 0 and 1 whatever the model is shown, as a probability does; "
            "if it is one, two answers made of it are false: return the logit z, not 1/(1 + exp(-z))"
        }
    return {}


def probabilities_of(model: nn.Module, images: Tensor, logits: Tensor) -> Tensor:
    """The probabilities (B, K) that are told of a model's logits: of last sigmoids each is its own."""
    image = images[:1]
    if logits.shape[1] < 2 or not _are_fractions(logits) or _has_two_answers(model):
        return likelihoods(logits)
    return logits if _ends_in_sigmoid(model, image) or _gives_fractions(model, image) else likelihoods(logits)


def _has_two_answers(model: nn.Module) -> bool:
    return isinstance(model, Classifier) and model.reads is two_answers


def _of_one(logits: Tensor, model: nn.Module) -> Tensor:
    """The outputs that were made logits: z again, where two answers (-z/2, z/2) are made of it."""
    return logits.diff(dim=1) if _has_two_answers(model) else logits


def _are_fractions(values: Tensor) -> bool:
    return bool(((values >= 0) & (values <= 1)).all())


_END = 0.02  # how near to 0 and to 1 several probabilities come
_FARTHER = (-100.0, -10.0, -1.0, 0.0, 10.0, 100.0)  # times an image, and 1, 10 and 100 times noise


def _gives_fractions(model: nn.Module, image: Tensor) -> bool:
    """Whether a model's outputs stay between 0 and 1 far from any image it knows, too; tried once.

    A logit is driven out by images of a hundred times the contrast. However a probability is written, it is not.
    Of two answers that is enough to be warned of; several outputs must also come near to both ends.
    """
    known = remembered(model, "gives fractions")
    if () not in known:
        draw = torch.Generator().manual_seed(0)
        noise = torch.randn(image.shape, generator=draw).to(image)
        tried = [image * factor for factor in _FARTHER] + [noise * factor for factor in (1.0, 10.0, 100.0)]
        known[()] = False
        with suppress(InvalidModel, RuntimeError), torch.no_grad():
            values = torch.cat([_of_one(logits_in(model(placed(one, model))), model).flatten() for one in tried])
            values = values[values.isfinite()]  # exp(z) / (1 + exp(z)) overflows
            fills = bool(values.amin() < _END) and bool(values.amax() > 1 - _END)
            known[()] = _are_fractions(values) and (fills or _has_two_answers(model))
    return bool(known[()])


# What shapes logits, keeps them from 0 and 1, and makes two answers of one.
_VIEWS = frozenset(
    f"{name}Backward"
    for name in (
        *("View", "UnsafeView", "Reshape", "Squeeze", "Unsqueeze", "Select", "Slice", "ToCopy"),
        *("Cat", "Div", "Neg", "Clamp"),
    )
)


def _ends_in_sigmoid(model: nn.Module, image: Tensor) -> bool:
    """Whether a model's logits are those of a sigmoid, whatever their shape; tried once."""
    known = remembered(model, "ends in sigmoid")
    if () not in known:
        known[()] = False
        with suppress(InvalidModel, RuntimeError), torch.inference_mode(False), torch.enable_grad():
            step = logits_in(model(placed(image.clone(), model).requires_grad_())).grad_fn
            # The way goes back through what only reshapes outputs,
            # or makes two answers of one, to what computed them.
            while step is not None and step.name().rstrip("0123456789") in _VIEWS:
                step = step.next_functions[0][0]
            known[()] = step is not None and step.name().startswith("SigmoidBackward")
    return bool(known[()])


def images_look_wrong(images: Tensor, preprocess: Any = None, normalized: bool = False) -> dict[str, str]:
    """What in a model's images is likely a mistake, by kind; as ``looks_wrong``."""
    least, most = (float(end) for end in images.aminmax())
    largest = max(-least, most)
    if largest > _LARGE:
        way_out = _scaling(images, preprocess, normalized)
        return {
            "scale": f"the model sees values up to {largest:.4g}, as of images that are not normalized; unless it "
            f"scales them itself, {way_out} and normalize"
        }
    if not normalized and getattr(preprocess, "mean", None) and least >= 0 and 0 < largest <= 1:
        sentence = (
            "the images lie in [0, 1], as before the model's normalization; give preprocess.normalize(images)"
        )
        return {"unnormalized": sentence}
    return {}


def _scaling(images: Tensor, preprocess: Any, normalized: bool) -> str:
    """How images of large values are brought to [0, 1]: bytes by 255, others by the range of their own numbers."""
    is_own = callable(getattr(preprocess, "function", None))  # a function of the user's own, which takes no scale
    low, high = _own_ends(images, preprocess) if normalized else (float(end) for end in images.aminmax())
    if low > -_BYTE and high < _BYTE:
        where = "in the function that prepares them" if is_own else "(in commands, of float images: --scale 0,255)"
        return f"divide by 255 {where}"
    low, high = (float(f"{end:.4g}") for end in (low, high))
    if is_own:
        where = "in the function that prepares them"
    elif normalized:
        where = f"(in commands, by the ends of these images alone: --scale={low:g},{high:g})"
    else:  # what the numbers were before a preprocess nobody can tell
        where = "(by Preprocess(scale=(low, high)), the ends of the numbers in your files)"
    return f"bring the range of values that it was trained with to [0, 1] {where}"


def _own_ends(images: Tensor, preprocess: Any) -> tuple[float, float]:
    """The least and greatest value of images before they were scaled and normalized."""
    values = exact(images)
    if getattr(preprocess, "mean", None):
        mean, std = (values.new_tensor(one)[:, None, None] for one in (preprocess.mean, preprocess.std))
        values = values * std + mean
    low, high = (getattr(preprocess, "scale", None) or (0.0, 1.0))[:2]
    least, most = (float(end) * (high - low) + low for end in values.aminmax())
    return least, most


def _is_held(values: Tensor) -> bool:
    return values.layout == torch.strided and not values.is_meta


def require_images(images: Tensor, model: nn.Module | None = None) -> None:
    """Raise ``InvalidImage`` unless images are a finite float tensor (B, C, H, W) with the model's channels."""
    last = "" if model is None or not isinstance(images, Tensor) else channels_last(images, model)
    if (
        not isinstance(images, Tensor)
        or images.dim() != 4
        or not images.is_floating_point()
        or not _is_held(images)
    ):
        shape = f"{tuple(images.shape)} {images.dtype}" if isinstance(images, Tensor) else type(images).__name__
        is_raw = getattr(images, "dtype", None) == torch.uint8
        one = "(images / 255 - mean) / std, as the model normalizes" if is_raw else "preprocess(photo)[None]"
        way_out = "; give a float tensor (batch, channels, height, width), such as "
        raise InvalidImage(f"images are {shape}" + (f", {last}" if last and not is_raw else way_out + one))
    if len(images) == 0:
        raise InvalidImage("the batch holds no image")
    if last:
        raise InvalidImage(f"images are {tuple(images.shape)}, {last}")
    broken = (~images.flatten(1).isfinite().all(1)).nonzero()[:, 0].tolist()
    if broken:
        raise InvalidImage(f"image {broken[0]} of the batch holds NaN or infinite values; clean or leave it out")


def same_logits(one: Tensor, other: Tensor) -> bool:
    """Whether two runs gave the same: no more than sqrt(eps) of the largest apart, eps being their precision."""
    if one.shape != other.shape or not one.numel():
        return one.shape == other.shape
    moved = one != other
    if not bool(moved.any()):
        return True
    # Runs of other batch sizes differ by rounding, since kernels sum in another order; what mixes images moves
    # far more. A class that is masked by -1e9 stays as it is and is no measure of the others.
    sizes, eps = one.abs().nan_to_num(), torch.finfo(one.dtype).eps
    ordinary = sizes[sizes < _MASKED]
    rounding = _SUMMED * eps * float(ordinary.max()) if ordinary.numel() else 0.0
    allowed = max(eps**0.5 * float(sizes[moved].max()), rounding)
    return not float((one - other).abs().max()) > allowed  # what is not finite is found and named elsewhere


_MASKED, _SUMMED = 1e4, 256  # no logit is as large but one that is masked; roundings that a sum may add up


def predicted(model: nn.Module, images: Tensor, max_batch: int) -> Tensor:
    """The class (B,) with the highest logit of the model as it is, without any rule."""
    with torch.no_grad():
        logits = torch.cat([logits_in(model(part.clone())) for part in images.split(max_batch)])
    if not bool(logits.isfinite().all()):
        raise not_finite(model, "a logit")
    return logits.argmax(1)


def asked(model: nn.Module, targets: Any, classes: Names) -> tuple[nn.Module, Any]:
    """The model and the class numbers that stand for targets: names become numbers, of ``classes``.

    What is no class is the one output of another classifier with the same layers: a difference of two classes, or
    any function of the model's output.
    """
    if isinstance(targets, str) and targets != "auto":
        targets = answer(targets, classes)
    elif isinstance(targets, list | tuple) and any(isinstance(one, str) for one in targets):
        targets = [answer(one, classes) if isinstance(one, str) else one for one in targets]
        if any(callable(one) for one in targets):
            raise InvalidTarget(
                "a list of targets may hold classes alone; give a difference or function for all images"
            )
    if isinstance(targets, Difference):
        targets = targets.numbered(classes)
    return (Answering(model, targets), 0) if callable(targets) else (model, targets)


def are_named(targets: Any) -> bool:
    """Whether some target is a class, or a difference of classes, by name."""
    if isinstance(targets, list | tuple):
        return any(map(are_named, targets))
    if isinstance(targets, Difference):
        return isinstance(targets.one, str) or isinstance(targets.other, str)
    return isinstance(targets, str) and targets != "auto" and ".py" not in targets


def require_names(names: Sequence[str], model: nn.Module, image: Tensor) -> None:
    """Raise ``InvalidTarget`` unless a model gives an image (1, C, H, W) as many logits as its classes have names.

    Else the names are of other classes, and so would be what is explained.
    """
    known, size = remembered(model, "classes"), image.shape[1:]
    if size not in known:
        known[size] = first_logits(model, image).shape[1]
    count = known[size]
    if len(names) != count:
        raise InvalidTarget(
            f"{len(names)} classes are named, and the model has {count}; name each, or give the target's number"
        )


def require_targets(targets: Any, images: Tensor) -> Tensor:
    """Targets (B,) from one class for all or one per image."""
    try:
        given = torch.as_tensor(targets, device=images.device)
    except (TypeError, ValueError, RuntimeError) as error:
        raise InvalidTarget(f"targets={targets!r}; give 'auto', a class or one per image") from error
    if given.is_floating_point() or given.dtype == torch.bool or given.dim() > 1:
        raise InvalidTarget(
            f"targets are {given.dtype} of shape {tuple(given.shape)}; give whole numbers (batch,)"
        )
    if given.dim() == 0:
        given = given.expand(len(images))
    if len(given) != len(images):
        raise InvalidTarget(f"{len(given)} targets for {len(images)} images; give one for all or one per image")
    return given.long()


def require_in_range(targets: Tensor, classes: int) -> None:
    """Raise ``InvalidTarget`` unless all targets are classes of the model."""
    wrong = targets[(targets < 0) | (targets >= classes)]
    if len(wrong) and classes == 1:
        raise InvalidTarget(
            f"target {int(wrong[0])} is out of range: the model has one output, 0; a classifier's two answers "
            "take their names (in commands --classes no,yes)"
        )
    if len(wrong):
        raise InvalidTarget(f"target {int(wrong[0])} is out of range; the model has classes 0 to {classes - 1}")
