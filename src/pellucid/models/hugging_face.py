"""Hugging Face's image classifiers, from a folder or by name, with their image processors and class names."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from PIL import Image
from torch import Tensor, nn

from ..errors import InvalidModel, InvalidWeights, UnknownName, shortened
from ..files import no_folder
from ..outputs import of_labels
from .preprocess import CustomPreprocess, Preprocess, agree

_INTERPOLATIONS = {0: "nearest", 2: "bilinear", 3: "bicubic"}
_PROCESSOR = "preprocessor_config.json"
_PATIENCE = 5  # seconds
_ALIKE = 4 / 255  # of two ways to resize a picture, in pixels' values


@dataclass(frozen=True)
class HuggingFace:
    """A model of transformers: a folder, as ``save_pretrained`` writes it, or a name, which is downloaded.

    No code that comes with a model is run, and no pickles are read.

    Raises:
        InvalidModel: transformers is not installed; the place holds no configuration of an image classifier.
    """

    place: str

    @property
    def is_folder(self) -> bool:
        """Whether nothing is to be downloaded."""
        return Path(self.place).is_dir()

    @cached_property
    def config(self) -> Any:
        """The model's configuration."""
        return self._read(_library().AutoConfig, "configuration")

    @property
    def classes(self) -> tuple[str, ...] | None:
        """The class names of ``id2label``."""
        return of_labels(self.config.id2label)

    def build(self, count: int | None) -> nn.Module:
        """The network with random weights."""
        # The count makes the names anew, as LABEL_0 and so on, so it is set only where it is another.
        if count is not None and count != self.config.num_labels:
            self.config.num_labels = count
        try:
            return _library().AutoModelForImageClassification.from_config(self.config)  # type: ignore[no-any-return]
        except ValueError as error:
            kind = getattr(self.config, "model_type", "?")
            raise InvalidModel(f"hf:{self.place} is a {kind}, which is no image classifier ({error})") from error

    def pretrained(self, weights: str) -> tuple[nn.Module, Preprocess | CustomPreprocess, tuple[str, ...] | None]:
        """The network with its weights, from safetensors alone.

        Raises:
            InvalidWeights: there are none, some are missing, or the download failed.
        """
        if weights != "DEFAULT":
            raise UnknownName(f"weights of hf:{self.place}", weights, ["DEFAULT", "random"])
        if self.is_folder and not [*Path(self.place).glob("*.safetensors")]:
            raise InvalidWeights(
                f"{self.place} holds no .safetensors file (pickles such as pytorch_model.bin could run code, and "
                "are not read); save it anew with model.save_pretrained(folder, safe_serialization=True), or take "
                "weights='random' (--weights random)"
            )
        loader = _library().AutoModelForImageClassification
        model, told = self._read(loader, "weights", use_safetensors=True, output_loading_info=True)
        # Transformers would draw them at random and only warn.
        lacking = [*told["missing_keys"], *(name for name, *_ in told["mismatched_keys"])]
        if lacking:
            raise InvalidWeights(
                f"hf:{self.place} lacks weights of its own network, which would be random: "
                f"{shortened(lacking, 3)}; name a model that was trained to classify"
            )
        return model, self.preprocess, self.classes

    @cached_property
    def preprocess(self) -> Preprocess | CustomPreprocess:
        """What the image processor does, as a ``Preprocess`` where it gives the same pixels, else as it is."""
        processor = self._processor
        if isinstance(processor, InvalidModel):  # a model alone
            size = getattr(self.config, "image_size", 224)
            return Preprocess(size, size) if isinstance(size, int) else Preprocess(tuple(size), None)

        def pixels(image: Image.Image) -> Tensor:
            found: Tensor = processor(images=image, return_tensors="pt")["pixel_values"][0]
            return found

        described = _described(processor)
        return described if described and agree(described, pixels, _ALIKE) else CustomPreprocess(pixels)

    @property
    def assumption(self) -> str:
        """Why ImageNet's mean and standard deviation are assumed; empty where there is an image processor."""
        if not isinstance(self._processor, InvalidModel):
            return ""
        is_missing = self.is_folder and not Path(self.place, _PROCESSOR).is_file()
        return f"hf:{self.place} has no {_PROCESSOR}" if is_missing else str(self._processor)

    @cached_property
    def _processor(self) -> Any:
        """The image processor, or why there is none."""
        try:
            return self._read(_library().AutoImageProcessor, "image processor")
        except InvalidModel as error:
            return error

    @cached_property
    def _is_out_of_reach(self) -> bool:
        """Whether Hugging Face cannot be asked, which is tried once: the library goes on for half a minute."""
        from huggingface_hub import get_hf_file_metadata, hf_hub_url
        from huggingface_hub.errors import HfHubHTTPError

        try:
            get_hf_file_metadata(hf_hub_url(self.place, "config.json"), timeout=_PATIENCE)
        except HfHubHTTPError:
            return False
        except Exception:  # of whatever carries the question
            return True
        return False

    def _read(self, kind: Any, what: str, **settings: Any) -> Any:
        if not self.is_folder and _is_path(self.place):
            raise InvalidModel(f"hf:{self.place}: {no_folder(self.place)}; give one with a config.json")
        try:
            with _quiet():
                return kind.from_pretrained(
                    self.place,
                    local_files_only=self.is_folder or self._is_out_of_reach,
                    trust_remote_code=False,
                    **settings,
                )
        except (OSError, ValueError, KeyError) as error:
            reason = str(error).strip().splitlines()[0]
            raised = InvalidWeights if what == "weights" else InvalidModel
            way_out = ""
            if not self.is_folder:
                way_out = "hf:FOLDER takes what was downloaded before, without a network"
                way_out = f", and {no_folder(self.place)}; {way_out}"
            raise raised(f"hf:{self.place}: its {what} cannot be read ({reason}){way_out}") from error


def _is_path(place: str) -> bool:
    """Whether a text can be no name of Hugging Face's, which are NAME or OWNER/NAME."""
    return place.startswith((".", "/", "~")) or "\\" in place or place.count("/") > 1


def under_own_names(state: Mapping[str, Tensor], model: nn.Module) -> Mapping[str, Tensor]:
    """A state dict with the names that files of a network of transformers have, under the network's own.

    Unchanged for other networks, and where it lacks anything: what it lacks is for others to say.
    """
    make = getattr(type(model), "from_pretrained", None)
    if make is None or not hasattr(model, "config") or state.keys() >= model.state_dict().keys():
        return state
    try:
        with _quiet():
            # The library knows its own renamings of old files, which nothing else tells.
            made, told = make(None, config=model.config, state_dict=dict(state), output_loading_info=True)
    except (RuntimeError, ValueError, KeyError):
        return state
    return state if told["missing_keys"] or told["mismatched_keys"] else made.state_dict()


def _library() -> Any:
    try:
        import transformers
    except ImportError as error:
        raise InvalidModel("hf: models need transformers; run: pip install 'pellucid[hf]'") from error
    return transformers


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the library's progress bars and remarks."""
    told = _library().utils.logging
    level, bars = told.get_verbosity(), told.is_progress_bar_enabled()
    told.set_verbosity_error()
    told.disable_progress_bar()
    try:
        yield
    finally:
        told.set_verbosity(level)
        if bars:
            told.enable_progress_bar()


def _described(processor: Any) -> Preprocess | None:
    """An image processor's settings as a ``Preprocess``; None where there is none with them."""
    told = processor.to_dict()
    size, crop = dict(told.get("size") or {}), dict(told.get("crop_size") or {})
    resize: int | tuple[int, int] | None = None
    center = crop.get("height") if told.get("do_center_crop") else None
    if told.get("do_resize"):
        resize = size.get("shortest_edge") or (size.get("height", 0), size.get("width", 0))
        if "crop_pct" in told and isinstance(
            resize, int
        ):  # ConvNeXt's own: small images are cropped, large squashed
            center = resize if resize < 384 else None
            resize = (resize, resize) if center is None else int(resize / told["crop_pct"])
    interpolation = _INTERPOLATIONS.get(int(told.get("resample") or 0))
    if interpolation is None or not told.get("do_rescale", True):
        return None
    normal = (told["image_mean"], told["image_std"]) if told.get("do_normalize") else (None, None)
    mean, std = (None if values is None else tuple(values) for values in normal)
    return Preprocess(resize, center, mean, std, interpolation=interpolation)
