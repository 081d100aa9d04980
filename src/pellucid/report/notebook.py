"""Maps beside their images in one picture, for notebooks and scripts."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from ..errors import InvalidParameter, brief, counted
from ..heatmap import Channels, heatmap, require_finite_maps
from ..methods.attributions import Attributions
from ..outputs import class_names, ends_of
from ..pixels import picture
from .album import has_sign, signs_told
from .figures import CaptionedPhoto, Drawing, Overlay, Speaks, grid

if TYPE_CHECKING:
    import pandas

_OF_MAPS = ("image", "layer", "method", "variant", "target", "map", "source", "position")  # columns of read_maps
AnyMaps = Tensor | NDArray[Any] | Sequence[NDArray[Any]] | Mapping[str, "AnyMaps"]
"""Attributions (B, C, h, w) or maps (B, h, w), as tensors or NumPy arrays; one array (h, w), or a list of such of
any sizes; or such by name, as ``Attributions`` has them by layer."""


def show(
    attributions: AnyMaps | pandas.DataFrame,
    images: Any = None,
    classes: Any = None,
    *,
    channels: Channels = "mean",
    clip: tuple[float, float] | None = None,
    overlay: bool | Overlay = False,
    title: str = "",
    most: int = 8,
) -> Drawing:
    """Draw maps beside their images: a row for each image, a column for each layer, and each method.

    A notebook shows what it returns; ``save(path)`` writes it, and ``file("png")`` and ``file("svg")`` are its
    bytes. Each map has its own scale, which ends at its 99th percentile of magnitude, and one unit of a layer is
    one square.

    Args:
        attributions: of one method, or of several by name: ``{"gradient": ..., "gradcam": ...}``; maps (B, h, w);
            NumPy arrays of these, or of one map (h, w); or rows of ``read_maps``, with their images' names.
        images: what was explained, (B, C, H, W), which is shown from its least to its greatest value; or one
            picture for each, as Pillow's or (H, W, 3) arrays of one size, such as ``preprocess.display`` gives.
        classes: the class names, or the model that has them, for captions.
        channels, clip: as ``heatmap`` takes them.
        overlay: lay the maps over the photos; an ``Overlay`` says how.
        title: of the whole picture.
        most: images that are drawn at most.

    Raises:
        InvalidParameter: no map at all, what is no map, or images that do not fit the maps.
    """
    if not isinstance(overlay, bool | Overlay):
        raise InvalidParameter(f"overlay={brief(overlay)}; give True, or how, such as pellucid.Overlay(alpha=0.5)")
    called: list[str] = []
    answers: list[str] = []
    if hasattr(attributions, "groupby"):
        attributions, called, answers = _of_table(attributions)
    columns = [(name, _maps(name, value, channels, clip)) for name, value in _flat(attributions)]
    if not columns:
        raise InvalidParameter("there are no attributions to show")
    count = {len(maps) for _, maps in columns}
    photos = [] if images is None else _photos(images)
    if len(count) > 1 or (photos and len(photos) not in (1, max(count))):
        given = f", {counted(len(photos), 'picture')}" if photos else ""
        raise InvalidParameter(f"maps of {sorted(count)} images{given}; give one picture for each image")
    names = answers or _answers(
        attributions, class_names(classes) if hasattr(classes, "classes") else classes, max(count)
    )
    called = called or names
    rows = range(min(max(count), most))
    left = max(count) - len(rows)
    captioned = [CaptionedPhoto(photo, name) for photo, name in zip(photos, called, strict=False)][: len(rows)]
    explained, note = signs_told(_have_signs(attributions), _speaks(attributions, names))
    return grid(
        [[maps[row] for _, maps in columns] for row in rows],
        [name for name, _ in columns],
        () if photos else [called[row] for row in rows],
        captioned,
        f"{title} ({counted(left, 'more image')} not shown)".strip() if left else title,
        overlay,
        explained=explained,
        clip=clip,
        note=note,
    )


def _have_signs(shown: AnyMaps) -> dict[str, bool]:
    """Of which maps, by name, the sign says something: attributions tell themselves, of others their names may."""
    if not isinstance(shown, Mapping) or isinstance(shown, Attributions):
        return {"": getattr(shown, "has_sign", True)}
    found = {str(name): getattr(value, "has_sign", None) for name, value in shown.items()}
    return {name: has_sign(name) if has is None else has for name, has in found.items()}


def _is_by_name(shown: AnyMaps) -> bool:
    return isinstance(shown, Mapping) and not isinstance(shown, Attributions)


def _of_table(table: pandas.DataFrame) -> tuple[dict[str, Any], list[str], list[str]]:
    """Rows of ``read_maps`` as maps by method, variant if there are several, and layer.

    Beside them is what each image is called, which is its name and what its maps explain; and the latter alone.

    Raises:
        InvalidParameter: a table of something else, or methods or layers that lack some of the images.
    """
    missing = [name for name in _OF_MAPS if name not in table]
    if missing:
        raise InvalidParameter(f"a table without the column {missing[0]!r} holds no maps; give rows of read_maps")
    if table.empty:
        raise InvalidParameter("the table has no rows; there are no attributions to show")
    images = table[["source", "position", "image", "target"]].astype(object).drop_duplicates()
    several = table["variant"].nunique() > 1
    found: dict[str, Any] = {}
    for (method, variant, layer), rows in table.groupby(["method", "variant", "layer"], sort=False, observed=True):
        by_image = dict(zip(zip(rows["source"], rows["position"], strict=True), rows["map"], strict=True))
        by_layer = found.setdefault(method, {})
        by_layer = by_layer.setdefault(variant, {}) if several else by_layer
        try:
            by_layer[layer] = [by_image[key] for key in zip(images["source"], images["position"], strict=True)]
        except KeyError:
            raise InvalidParameter(
                f"{method} at {layer} has no map of some images; take rows of the same images"
            ) from None
    answers = [*map(str, images["target"])]
    return found, [f"{image}: {answer}" for image, answer in zip(images["image"], answers, strict=True)], answers


def _flat(shown: AnyMaps, name: str = "") -> Iterator[tuple[str, Any]]:
    """All attributions by name: a method's and a layer's, a line for each."""
    if isinstance(shown, Mapping):
        for inner, value in shown.items():
            yield from _flat(value, f"{name}\n{inner}".strip())
    else:
        yield name, shown


def _maps(
    name: str, values: Any, channels: Channels, clip: tuple[float, float] | None
) -> NDArray[Any] | list[NDArray[Any]]:
    """The maps of all images: (B, h, w), or a list of (h, w) where they came as one."""
    if isinstance(values, list | tuple):
        for one in values:
            if getattr(one, "ndim", 0) != 2:
                shape = tuple(getattr(one, "shape", ()))
                raise InvalidParameter(f"a list of maps holds one of shape {shape}; give arrays (h, w)")
        return [_maps(name, one, channels, clip)[0] for one in values]
    values = _tensor(name, values)
    # Doubles stay what they are: a single may not hold what is tiny or huge.
    values = values.detach().cpu().to(torch.promote_types(values.dtype, torch.float32))
    if values.dim() not in (3, 4):
        raise InvalidParameter(
            f"the attribution {name!r} has the shape {tuple(values.shape)}, which is no map; show others"
        )
    require_finite_maps(values, f"the attribution {name!r}")
    found: NDArray[Any] = (values if values.dim() == 3 else heatmap(values, None, channels, clip=clip)).numpy()
    return found


def _tensor(name: str, values: Any) -> Tensor:
    """A tensor as it is, or one of the numbers of a NumPy array."""
    if isinstance(values, Tensor):
        return values
    if not isinstance(values, np.ndarray) or values.dtype.kind not in "biuf":
        what = f"array of {values.dtype}" if isinstance(values, np.ndarray) else type(values).__name__
        raise InvalidParameter(
            f"{f'{name!r} is ' if name else ''}{what}, which is no map; give attributions (B, C, h, w), maps "
            "(B, h, w), as tensors or NumPy arrays, one array (h, w), or rows of read_maps"
        )
    values = (
        values[None] if values.ndim == 2 else values
    )  # a tensor of two dimensions is of a layer without places
    return torch.from_numpy(values.astype(np.float64 if values.dtype.itemsize > 4 else np.float32))


def _answers(shown: AnyMaps, classes: Sequence[str] | None, count: int) -> list[str]:
    """What each row explains, where that is known and the same for all maps: a class, or what else was asked."""
    parts = (
        [shown] if isinstance(shown, Attributions) else list(shown.values()) if isinstance(shown, Mapping) else []
    )
    told = {(part.answer, tuple(part.targets.tolist())) for part in parts if isinstance(part, Attributions)}
    if len(told) != 1:
        return [""] * count
    answer, targets = told.pop()
    return [answer or (classes[target] if classes else f"class {target}") for target in targets]


def _speaks(shown: AnyMaps, names: Sequence[str]) -> Speaks:
    """What positive values speak for; of a difference of classes, what negative ones do, too."""
    if len(set(names)) != 1 or not names[0]:
        return "the class"
    first = next(iter(shown.values())) if isinstance(shown, Mapping) and _is_by_name(shown) else shown
    is_class = not getattr(first, "answer", "")
    return names[0] if is_class else ends_of(names[0])


def _photos(images: Any) -> list[NDArray[np.uint8]]:
    """Pictures (H, W, 3) of tensors (B, C, H, W) or (C, H, W), of pictures, or of arrays (H, W, 3)."""
    if isinstance(images, Tensor):
        batch = images[None] if images.dim() == 3 else images
        if batch.dim() != 4:
            raise InvalidParameter(f"images of shape {tuple(images.shape)}; give (batch, channels, height, width)")
        return [np.asarray(picture(one.detach().float(), stretched=True).convert("RGB")) for one in batch]
    if isinstance(images, Image.Image) or (isinstance(images, np.ndarray) and images.ndim == 3):
        images = [images]
    return [_photo(one) for one in images]


def _photo(image: Any) -> NDArray[np.uint8]:
    if isinstance(image, Image.Image):
        return np.asarray(image.convert("RGB"))
    if isinstance(image, Tensor):
        return _photos(image)[0]
    pixels = np.asarray(image)
    if pixels.ndim != 3 or pixels.shape[2] != 3:
        raise InvalidParameter(f"a picture is an array {pixels.shape}; give (height, width, 3)")
    if pixels.dtype == np.uint8:
        return pixels
    shares = (pixels - pixels.min()) / max(float(np.ptp(pixels)), 1e-12)
    stretched: NDArray[np.uint8] = np.rint(255 * shares).astype(np.uint8)
    return stretched
