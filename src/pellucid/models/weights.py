"""Read a network's weights and facts from files, safely, and say where weights do not fit."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import re
import zipfile
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
from torch import Tensor, nn

from ..errors import InvalidModel, InvalidWeights, shortened
from .preprocess import Preprocess

State = dict[str, Tensor]

SUFFIXES = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".tar")
NESTED_UNDER = ("state_dict", "model", "model_state_dict")
WRAPPERS = ("module.", "_orig_mod.")  # what DataParallel and torch.compile put before every name
MOST_NAMED = 3  # differing keys named in an error
NO_TORCHSCRIPT = "rules cannot see the operations inside; use the Python model and its state_dict"


def is_file(weights: str | Path) -> bool:
    """Tell a file of weights from a name of weights."""
    path = Path(weights)
    return isinstance(weights, Path) or path.exists() or unzipped_name(path).suffix in SUFFIXES


def unzipped_name(path: Path) -> Path:
    """Drop a last .gz of a file's name."""
    return path.with_suffix("") if path.suffix == ".gz" else path


def read_state_dict(path: Path) -> State:
    """Read a file of weights as tensors by name; no code of the file is run.

    Accepts weights nested under "state_dict" or "model" and the names of DataParallel, torch.compile and
    old DenseNets.

    Raises:
        InvalidWeights: missing, empty, truncated, of another format, not plain tensors, or not finite.
        InvalidModel: a TorchScript file.
    """
    state = plain_names(nested_state(read_tensors(path), path))
    for name, tensor in state.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise InvalidWeights(
                f"{path}: {name} holds NaN or infinite values; the training that wrote it diverged"
            )
    return state


def read_tensors(path: Path) -> Any:
    """Decode a file of weights by its suffix, safely."""
    suffix = unzipped_name(path).suffix
    if suffix not in SUFFIXES:
        raise InvalidWeights(f"{path}: weights must be a {', '.join(SUFFIXES)} file, plain or .gz")
    if not path.is_file():
        raise InvalidWeights(f"there is no weights file {path}")
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise InvalidWeights(f"{path} cannot be read or is cut short ({error}); fetch it again") from error
    if not content:
        raise InvalidWeights(f"{path} is empty (0 bytes); fetch it again")
    if suffix == ".safetensors":
        return read_safetensors(path, content)
    refuse_torchscript(path, content)
    return read_pickle(path, content)


def read_safetensors(path: Path, content: bytes) -> State:
    """Decode safetensors, which cannot hold code."""
    try:
        return safetensors.torch.load(content)
    except safetensors.SafetensorError as error:
        raise InvalidWeights(f"{path} is broken or cut short ({error}); fetch it again") from error


def read_pickle(path: Path, content: bytes) -> Any:
    """Decode what ``torch.save`` wrote, refusing everything that could run code."""
    try:
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InvalidWeights(
            f"{path} holds more than plain tensors, which could run code on loading, or is no weights file; "
            "save model.state_dict() instead"
        ) from error
    except Exception as error:  # an unpickler given arbitrary bytes raises nearly anything
        raise InvalidWeights(f"{path} is broken or cut short ({error}); fetch it again") from error


def refuse_torchscript(path: Path, content: bytes | None = None) -> None:
    """Refuse a TorchScript archive, which has a table of constants where a state dict has none."""
    archive: Any = path if content is None else io.BytesIO(content)
    if not zipfile.is_zipfile(archive):
        return
    with zipfile.ZipFile(archive) as files:
        if any(entry.endswith("/constants.pkl") for entry in files.namelist()):
            raise InvalidModel(f"{path} is a TorchScript file; {NO_TORCHSCRIPT}")


def nested_state(content: Any, path: Path) -> State:
    """Find the tensors by name in what a file holds."""
    for key in NESTED_UNDER:
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not content:
        raise InvalidWeights(f"{path} holds no tensors by name; save model.state_dict()")
    for name, value in content.items():
        if not isinstance(value, Tensor):
            raise InvalidWeights(f"{path}: {name!r} is {type(value).__name__}, no tensor; save model.state_dict()")
    return dict(content)


def plain_names(state: State) -> State:
    """Take off what wrappers put before every name, and rename the layers of old DenseNet files."""
    for prefix in WRAPPERS:
        if all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): value for name, value in state.items()}
    old = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12])\.")
    return {old.sub(r"\1\2.", name): value for name, value in state.items()}


def check_fit(model: nn.Module, state: State, name: str, path: Path) -> None:
    """Refuse weights that are not exactly this network's, and say where they differ."""
    own = model.state_dict()
    counters = {key for key in own if key.endswith("num_batches_tracked")}
    differing = [
        f"{key} is {form(state[key])} instead of {form(own[key])}"
        for key in own
        if key in state and form(state[key]) != form(own[key])
    ]
    differences = {
        "missing": [key for key in own if key not in state and key not in counters],
        "unexpected": [key for key in state if key not in own],
        "differing": differing,
    }
    if any(differences.values()):
        found = "; ".join(f"{kind}: {shortened(keys, MOST_NAMED)}" for kind, keys in differences.items() if keys)
        raise InvalidWeights(
            f"{path} does not fit {name}: {found}. The file has {len(state)} tensors of {size(state):,} "
            f"values, {name} {len(own)} of {size(own):,}; name the network that was trained"
        )


def form(tensor: Tensor) -> str:
    """Describe what must agree: the shape, and whether values are numbers with a fraction."""
    return f"{tuple(tensor.shape)}" + ("" if tensor.is_floating_point() else " of integers")


def size(state: State) -> int:
    """Count the values of all tensors."""
    return sum(tensor.numel() for tensor in state.values())


def read_facts(path: Path) -> dict[str, Any]:
    """Read the class names and the preprocessing that ``save_weights`` left beside the weights, if any."""
    if not path.is_file():
        return {}
    try:
        facts = json.loads(path.read_text())
    except ValueError as error:
        raise InvalidWeights(f"{path}, beside the weights, is no JSON ({error}); mend or remove it") from error
    known: dict[str, Any] = {}
    if isinstance(facts, dict) and facts.get("classes"):
        known["classes"] = tuple(facts["classes"])
    if isinstance(facts, dict) and facts.get("preprocess"):
        known["preprocess"] = Preprocess.from_dict(facts["preprocess"])
    return known
