"""Read a network's weights and facts from files, safely, and say where weights do not fit."""

from __future__ import annotations

import gzip
import io
import json
import pickle
import re
import zipfile
import zlib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from ..errors import InvalidModel, InvalidWeights, shortened
from .preprocess import Preprocess

_StateDict = dict[str, Tensor]

_FORMATS = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".tar")
NO_TORCHSCRIPT = "rules cannot see the operations inside; use the Python model and its state_dict"


def is_file(weights: str | Path) -> bool:
    """Tell a file of weights from a name of weights."""
    path = Path(weights)
    return isinstance(weights, Path) or path.exists() or _unzipped(path).suffix in _FORMATS


def _unzipped(path: Path) -> Path:
    return path.with_suffix("") if path.suffix == ".gz" else path


def read_state_dict(path: Path) -> _StateDict:
    """Read a file of weights as tensors by name; no code of the file is run.

    Accepts weights nested under "state_dict" or "model" and the names of DataParallel, torch.compile and
    old DenseNets.

    Raises:
        InvalidWeights: missing, empty, truncated, of another format, not plain tensors, or not finite.
        InvalidModel: a TorchScript file.
    """
    state = plain_names(_nested(_decoded(path), path))
    for name, tensor in state.items():
        if tensor.is_floating_point() and not torch.isfinite(tensor).all():
            raise InvalidWeights(
                f"{path}: {name} holds NaN or infinite values; the training that wrote it diverged"
            )
    return state


def _decoded(path: Path) -> Any:
    """What a file of weights holds, refusing everything that could run code on loading."""
    suffix = _unzipped(path).suffix
    if suffix not in _FORMATS:
        raise InvalidWeights(f"{path}: weights must be a {', '.join(_FORMATS)} file, plain or .gz")
    if not path.is_file():
        raise InvalidWeights(f"there is no weights file {path}")
    try:
        content = gzip.decompress(path.read_bytes()) if path.suffix == ".gz" else path.read_bytes()
    except (OSError, EOFError, zlib.error) as error:
        raise InvalidWeights(f"{path} cannot be read or is cut short ({error}); fetch it again") from error
    if not content:
        raise InvalidWeights(f"{path} is empty (0 bytes); fetch it again")
    if suffix != ".safetensors":
        refuse_torchscript(path, content)
    try:
        if suffix == ".safetensors":
            return safetensors.torch.load(content)
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise InvalidWeights(
            f"{path} holds more than plain tensors, which could run code on loading, or is no weights file; "
            "save model.state_dict() instead"
        ) from error
    except Exception as error:  # a decoder given arbitrary bytes raises nearly anything
        raise InvalidWeights(f"{path} is broken or cut short ({error}); fetch it again") from error


def refuse_torchscript(path: Path, content: bytes | None = None) -> None:
    """Refuse a TorchScript archive, which has a table of constants where a state dict has none."""
    archive: Any = path if content is None else io.BytesIO(content)
    if not zipfile.is_zipfile(archive):
        return
    with zipfile.ZipFile(archive) as files:
        if any(entry.endswith("/constants.pkl") for entry in files.namelist()):
            raise InvalidModel(f"{path} is a TorchScript file; {NO_TORCHSCRIPT}")


def _nested(content: Any, path: Path) -> _StateDict:
    """The tensors by name in what a file holds."""
    for key in ("state_dict", "model", "model_state_dict"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            content = content[key]
    if not isinstance(content, Mapping) or not content:
        raise InvalidWeights(f"{path} holds no tensors by name; save model.state_dict()")
    for name, value in content.items():
        if not isinstance(value, Tensor):
            raise InvalidWeights(f"{path}: {name!r} is {type(value).__name__}, no tensor; save model.state_dict()")
    return dict(content)


def plain_names(state: _StateDict) -> _StateDict:
    """Take off what DataParallel and torch.compile put before every name, and rename old DenseNets' layers."""
    for prefix in ("module.", "_orig_mod."):
        if all(name.startswith(prefix) for name in state):
            state = {name.removeprefix(prefix): value for name, value in state.items()}
    old = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12])\.")
    return {old.sub(r"\1\2.", name): value for name, value in state.items()}


def check_fit(model: nn.Module, state: _StateDict, name: str, path: Path) -> None:
    """Refuse weights that are not exactly this network's, and say where they differ."""
    own = model.state_dict()
    forms, own_forms = _forms(state), _forms(own)
    differences = {
        "missing": [key for key in own if key not in state and not key.endswith("num_batches_tracked")],
        "unexpected": [key for key in state if key not in own],
        "differing": [
            f"{key} is {forms[key]} instead of {form}"
            for key, form in own_forms.items()
            if forms.get(key, form) != form
        ],
    }
    if any(differences.values()):
        found = "; ".join(f"{kind}: {shortened(keys, 3)}" for kind, keys in differences.items() if keys)
        there, here = (sum(tensor.numel() for tensor in tensors.values()) for tensors in (state, own))
        raise InvalidWeights(
            f"{path} does not fit {name}: {found}. The file has {len(state)} tensors of {there:,} "
            f"values, {name} {len(own)} of {here:,}; name the network that was trained"
        )


def _forms(state: Mapping[str, Tensor]) -> dict[str, str]:
    """What must agree: the shapes, and whether values are numbers with a fraction."""
    integers = {True: "", False: " of integers"}
    return {key: f"{tuple(value.shape)}{integers[value.is_floating_point()]}" for key, value in state.items()}


def read_facts(path: Path) -> dict[str, Any]:
    """Read the class names and the preprocessing that ``save_weights`` left beside a file of weights, if any."""
    path = _unzipped(path).with_suffix(".json")
    if not path.is_file():
        return {}
    try:
        facts = json.loads(path.read_text())
    except ValueError as error:
        raise InvalidWeights(f"{path}, beside the weights, is no JSON ({error}); mend or remove it") from error
    facts = facts if isinstance(facts, dict) else {}
    readers: dict[str, Callable[[Any], Any]] = {"classes": tuple, "preprocess": Preprocess.from_dict}
    return {name: read(facts[name]) for name, read in readers.items() if facts.get(name)}
