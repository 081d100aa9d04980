"""Read a network's weights and facts from files, safely, and say where weights do not fit."""

from __future__ import annotations

import encodings.aliases
import gzip
import io
import json
import math
import os
import pickle
import pickletools
import re
import warnings
import zipfile
import zlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any, BinaryIO

import safetensors.torch
import torch
from torch import Tensor, nn

from ..bounds import TEXT_FILE, read_unpacked, require_unpacked, require_unpacked_archive
from ..errors import InvalidModel, InvalidParameter, InvalidWeights, PellucidError, WeightsWarning, shortened
from ..files import file_digest, no_file, open_regular, read_regular, unsealed
from ..kinds import require_kind
from .preprocess import Preprocess

_StateDict = dict[str, Tensor]

_FORMATS = (".safetensors", ".pth", ".pt", ".bin", ".ckpt", ".tar")
NO_TORCHSCRIPT = "rules cannot see the operations inside; use the Python model and its state_dict"


def is_file(weights: str | Path) -> bool:
    """Tell a file of weights from a name of weights."""
    path = Path(weights)
    return isinstance(weights, Path) or os.path.isfile(path) or _unzipped(path).suffix in _FORMATS


def _unzipped(path: Path) -> Path:
    return path.with_suffix("") if path.suffix == ".gz" else path


def read_state_dict(path: Path) -> _StateDict:
    """Read a file of weights as tensors by name; no code of the file is run.

    Accepts weights nested under "state_dict", "model", "model_state_dict" or "net", and the names of DataParallel,
    torch.compile and old DenseNets. Weights of the same names beside them, as moving averages, are warned of.

    Raises:
        InvalidWeights: missing, empty, truncated, of another format, not plain tensors, or not finite.
        InvalidModel: a TorchScript file.
    """
    state = plain_names(_nested(_decoded(path), path), path)
    size = sum(tensor.numel() * tensor.element_size() for tensor in state.values())
    require_unpacked(size, path.stat().st_size, f"{path} holds", InvalidWeights)  # strides of 0 repeat a number
    for name, tensor in state.items():
        values = tensor.float() if tensor.itemsize == 1 else tensor  # floats of 8 bits have no comparison
        if tensor.is_floating_point() and not torch.isfinite(values).all():
            raise InvalidWeights(
                f"{path}: {name} holds NaN or infinite values; the training that wrote it diverged"
            )
    return state


def _decoded(path: Path) -> Any:
    """What a file of weights holds, refusing everything that could run code on loading."""
    suffix = _unzipped(path).suffix
    if suffix not in _FORMATS:
        raise InvalidWeights(f"{path}: weights must be a {', '.join(_FORMATS)} file, plain or .gz")
    if not os.path.isfile(path):
        raise InvalidWeights(no_file(path, "weights file"))
    content = _unpacked(path)
    try:
        if suffix == ".safetensors":
            return safetensors.torch.load(content)
        # ``torch.load`` refuses such an archive, too, but without a way out.
        refuse_torchscript(path, content)
        _refuse_makers(path, content)
        return torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except PellucidError:
        raise
    except pickle.UnpicklingError as error:
        raise InvalidWeights(
            f"{path} holds more than plain tensors, which could run code on loading, or is no weights file; "
            "save model.state_dict() instead"
        ) from error
    except Exception as error:  # a decoder given arbitrary bytes raises nearly anything
        raise InvalidWeights(f"{path} is broken or cut short ({error}); fetch it again") from error


def _unpacked(path: Path) -> bytes:
    """The bytes of a file, of a .gz those inside."""
    try:
        content = read_regular(path)
        if path.suffix == ".gz":
            read = gzip.GzipFile(fileobj=io.BytesIO(content)).read
            content = read_unpacked(read, len(content), str(path), InvalidWeights)
    except (OSError, EOFError, zlib.error) as error:
        raise InvalidWeights(f"{path} cannot be read or is cut short ({error}); fetch it again") from error
    if not content:
        raise InvalidWeights(f"{path} is empty (0 bytes); fetch it again")
    return content


def refuse_torchscript(path: Path, content: bytes | None = None) -> None:
    """Refuse a TorchScript archive, which has constants where a state dict has none, and one that is a bomb."""
    archive = io.BytesIO(read_regular(path) if content is None else content)
    if not zipfile.is_zipfile(archive):
        return
    with zipfile.ZipFile(archive) as files:
        if any(entry.endswith("/constants.pkl") for entry in files.namelist()):
            raise InvalidModel(f"{path} is a TorchScript file; {NO_TORCHSCRIPT}")
    require_unpacked_archive(archive, str(path), InvalidWeights)


# They make bytes of any size that is stated, or tensors of repeated values whole; storages take none until filled.
_MAKERS = frozenset(
    (
        "bytearray",
        "_rebuild_wrapper_subclass",
        "_rebuild_device_tensor_from_numpy",
        "_rebuild_device_tensor_from_cpu_tensor",
    )
)
_PICKLES = 5  # that stand one after another where weights are no ZIP archive


def _refuse_makers(path: Path, content: bytes) -> None:
    """Refuse pickles that make values of whatever size they state, before memory is taken.

    Loading lets them, as no code of the file runs; tensors by their names need none of them.
    """
    is_archive = content[:4] == b"PK\x03\x04"  # by what loading goes, too
    # It is one and the same stream, in which each look reads on from where the last pickle ended.
    for file in _pickles_in(content) if is_archive else [io.BytesIO(content)] * _PICKLES:
        if makers := _makers(file):
            raise InvalidWeights(
                f"{path} holds more than plain tensors ({', '.join(sorted(makers))}), which could take any amount "
                "of memory on loading; save model.state_dict() instead"
            )


def _pickles_in(archive: bytes) -> Iterator[BinaryIO]:
    with zipfile.ZipFile(io.BytesIO(archive)) as files:
        for entry in files.infolist():
            if entry.filename.endswith(".pkl"):
                yield io.BytesIO(files.read(entry))


def _makers(file: BinaryIO) -> set[str]:
    """What the next pickle names of ``_MAKERS``, and whether it makes bytes of bytes, again and again."""
    names, texts = set[str](), set[str]()
    with suppress(ValueError, IndexError):  # loading ends there, too
        for operation, value, _ in pickletools.genops(file):
            if isinstance(value, str):
                (names if operation.name == "GLOBAL" else texts).add(value[:100])
    packs = "_codecs encode" in names and any(map(_is_of_bytes, texts))
    return {name.rpartition(" ")[2] for name in names} & _MAKERS | ({"encode"} if packs else set())


def _is_of_bytes(text: str) -> bool:
    """Whether a text names a codec from bytes to bytes, such as hexadecimal digits, which are twice as many."""
    name = encodings.normalize_encoding(text).lower().replace(".", "_")
    return encodings.aliases.aliases.get(name, name).endswith("_codec")


def _nested(content: Any, path: Path) -> _StateDict:
    """The tensors by name in what a file holds."""
    for _ in _NESTING:
        inside = [key for key in _NESTING if isinstance(content, Mapping) and _is_nested(content, key)]
        if not inside:
            break
        _tell_of_others(content, inside[0], path)
        content = content[inside[0]]
    if not isinstance(content, Mapping) or not content:
        raise InvalidWeights(f"{path} holds no tensors by name; save model.state_dict()")
    for name, value in content.items():
        if not isinstance(value, Tensor):
            raise InvalidWeights(f"{path}: {name!r} is {type(value).__name__}, no tensor; save model.state_dict()")
        if not isinstance(name, str):
            raise InvalidWeights(f"{path}: a tensor is called {name!r}, which is no text; save model.state_dict()")
        if value.layout != torch.strided or value.is_meta or value.is_nested:
            raise InvalidWeights(f"{path}: {name} has no plain values ({value.layout}, {value.device}); save them")
    return dict(content)


_NESTING = ("state_dict", "model", "model_state_dict", "net")


def _is_nested(content: Mapping[str, Any], key: str) -> bool:
    return isinstance(content.get(key), Mapping)


def _tell_of_others(content: Mapping[str, Any], taken: str, path: Path) -> None:
    """Warn of what else in a checkpoint holds the same network's weights, such as their moving average."""
    wanted = _tensor_names(content[taken])
    others = [
        key
        for key, value in content.items()
        if key != taken and isinstance(value, Mapping) and wanted and wanted <= _tensor_names(value)
    ]
    if others:
        told = (
            f"{path}: took the weights under {taken!r}; those of the same names under "
            f"{shortened(map(repr, others), 3)} are left out: save alone the weights that are meant"
        )
        warnings.warn(WeightsWarning(told), stacklevel=4)


def _tensor_names(content: Any, depth: int = len(_NESTING)) -> set[str]:
    """What tensors in mappings within each other are called, without what DataParallel puts before."""
    if not depth or not isinstance(content, Mapping):
        return set()
    own = {str(name).removeprefix("module.") for name, value in content.items() if isinstance(value, Tensor)}
    return own.union(*(_tensor_names(value, depth - 1) for value in content.values()))


def renamed(state: _StateDict, model: nn.Module, path: Path) -> _StateDict:
    """Weights by the model's own names, where these alone differ, by what stands before them.

    A Lightning checkpoint's ``model.``, or ``backbone.``, is taken off, and what does not begin with it is left
    out, if the rest is exactly the model's weights; and put before them where the model itself is such a module.
    A warning says so. What fits in no such way is given back as it is.

    Raises:
        InvalidWeights: two sets of weights fit, such as a network's and their moving average.
    """
    own = _shapes(model.state_dict())
    first = next(iter(own), "")
    if not own or own.keys() <= state.keys():
        return state
    # By the file's names that are used: what is taken off, what is put before, and the weights so called.
    named: dict[tuple[str, ...], tuple[str, str, _StateDict]] = {}
    # Every module that holds the first parameter may be the network that the file is of, in another wrapper.
    for put in ["", *(first[: end + 1] for end, letter in enumerate(first) if letter == ".")]:
        bare = first.removeprefix(put)
        for off in sorted({"", *(name.removesuffix(bare) for name in state if name.endswith(f".{bare}"))}):
            part = {f"{put}{name}": value for name, value in _below(state, off).items()}
            if _shapes(part).keys() == own.keys():
                taken = tuple(name for name in state if name.startswith(off))
                named.setdefault(taken, (off, put, part))  # model. off is model.body. off and body. before
    fitting = [one for one in named.values() if _shapes(one[-1]) == own]
    if len(fitting) > 1:
        after = ", ".join(repr(off) for off, *_ in sorted(fitting, key=lambda one: one[0]))
        raise InvalidWeights(f"{path}: the weights after each of {after} fit; save one")
    if not fitting and len(named) != 1:
        return state
    # Where one way gives all names, but not all shapes, it is the shapes that are told.
    [(off, put, part)] = fitting or named.values()
    rest = [name for name in state if not name.startswith(off)]
    done = [f"took {off!r} off" if off else "", f"put {put!r} before" if put else ""]
    others = f"; left out: {shortened(rest, 3)}" if rest else ""
    told = f"{path}: {' and '.join(filter(None, done))} the weights' names{others}"
    warnings.warn(WeightsWarning(told), stacklevel=4)
    return part


def _below(state: _StateDict, prefix: str) -> _StateDict:
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def _shapes(state: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in state.items() if not _is_counter(name)}


def _is_counter(name: str) -> bool:
    """Whether a name is that of a batch norm's counter, which old files lack."""
    return name.endswith("num_batches_tracked")


def plain_names(state: _StateDict, path: Path) -> _StateDict:
    """Take off what DataParallel and torch.compile put before every name, and rename old DenseNets' layers."""
    for prefix in ("module.", "_orig_mod."):
        if all(name.startswith(prefix) for name in state):
            state = _below(state, prefix)
            warnings.warn(WeightsWarning(f"{path}: took {prefix!r} off the weights' names"), stacklevel=3)
    # Torchvision once called these layers "norm.1", which a module's name can no longer be.
    old = re.compile(r"(denselayer\d+\.(?:norm|conv))\.([12])\.")
    return {old.sub(r"\1\2.", name): value for name, value in state.items()}


def check_fit(model: nn.Module, state: _StateDict, name: str, path: Path) -> None:
    """Refuse weights that are not exactly this network's, and say where they differ."""
    own = model.state_dict()
    forms, own_forms = _forms(state), _forms(own)
    differences = {
        "missing": [key for key in own if key not in state and not _is_counter(key)],
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
            f"values, {name} {len(own)} of {here:,}; {_way_out(own, state, name)}"
        )
    _refuse_untied(own, state, name, path)


def _way_out(own: Mapping[str, Tensor], state: _StateDict, name: str) -> str:
    """What to do about weights that do not fit: often a last layer has another number of outputs."""
    theirs, ours = _shapes(state), _shapes(own)
    if theirs.keys() == ours.keys():
        changed = [(theirs[key], ours[key]) for key in ours if theirs[key] != ours[key]]
        outputs = {(there[:1], here[:1]) for there, here in changed if there[1:] == here[1:]}
        if len(outputs) == 1 and all(there and here and there[1:] == here[1:] for there, here in changed):
            [((there,), (here,))] = outputs
            return f"the file is of a network of {there} outputs, {name} has {here}: build it with as many"
    return "name the network that was trained"


def _refuse_untied(own: Mapping[str, Tensor], state: _StateDict, name: str, path: Path) -> None:
    """Refuse different values for what is one tensor in the network, of which the last would be taken."""
    first: dict[tuple[Any, ...], str] = {}
    for key, value in own.items():
        # Tied parameters share memory, which their address tells; an empty tensor has none.
        other = first.setdefault((value.data_ptr(), value.shape, value.stride()), key)
        if not value.data_ptr() or other == key:
            continue
        if not torch.equal(*(state.get(one, value).to(value.dtype) for one in (key, other))):
            raise InvalidWeights(
                f"{path} does not fit {name}: {other} and {key} are one tensor there, and two with different "
                "values in the file; name the network that was trained"
            )


def _forms(state: Mapping[str, Tensor]) -> dict[str, str]:
    """What must agree: the shapes, and whether values are numbers with a fraction."""
    integers = {True: "", False: " of integers"}
    return {key: f"{tuple(value.shape)}{integers[value.is_floating_point()]}" for key, value in state.items()}


def read_class_names(given: str | Sequence[str]) -> tuple[str, ...]:
    """Class names as they are, or of a file: one a line, or JSON, a list or the names by number.

    Raises:
        InvalidParameter: a file that cannot be read or holds something else; names that are not distinct.
    """
    names = [given] if isinstance(given, str) else list(given)
    if len(names) == 1 and os.path.exists(names[0]) and not _is_class_beside_folder(names[0]):
        names = _names_of(Path(names[0]))
    elif len(names) == 1 and _is_file_name(names[0]):
        raise InvalidParameter(f"there is no file {names[0]} of class names; give one, or names as A,B,C")
    twice = [name for name in names if names.count(name) > 1]
    if twice:
        raise InvalidParameter(f"two classes are called {twice[0]!r}; give each a name of its own")
    return tuple(names)


def _is_class_beside_folder(name: str) -> bool:
    """Whether a name is of a class, of which a folder of images may lie in the current one, and no path."""
    return os.path.isdir(name) and os.path.basename(name) == name


def _is_file_name(text: str) -> bool:
    """Whether a text is rather the path of a file of class names than the name of a class."""
    return Path(text).suffix.lower() in (".txt", ".json", ".csv", ".names")


def _names_of(path: Path) -> list[str]:
    try:
        with open_regular(path) as file:
            text = TEXT_FILE.read(file, str(path)).decode()
        if path.suffix != ".json":
            return [line.strip() for line in text.splitlines() if line.strip()]
        told = json.loads(text)
        if isinstance(told, dict):
            told = {int(number): name for number, name in told.items()}
            if sorted(told) != [*range(len(told))]:
                raise ValueError(f"its numbers are not 0 to {len(told) - 1}")
            return [str(told[number]) for number in range(len(told))]
        if not isinstance(told, list):
            raise ValueError("it is no list")
        return [*map(str, told)]
    except InvalidParameter:
        raise
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise InvalidParameter(
            f"{path} holds no class names ({error}); write one a line, or a JSON list"
        ) from error


def facts_beside(weights: Path) -> Path:
    """Where ``save_weights`` leaves the class names and the preprocessing of a file of weights."""
    return _unzipped(weights).with_suffix(".json")


def read_facts(path: Path) -> dict[str, Any]:
    """Read the class names and the preprocessing that ``save_weights`` left beside a file of weights, if any."""
    weights, path = path, facts_beside(path)
    if not os.path.exists(path):
        return {}
    try:
        with open_regular(path) as file:
            facts = unsealed(TEXT_FILE.read(file, str(path), InvalidWeights))
        for name, expected in facts.get("files", {}).items():
            # Another file's facts would give its classes to these weights, without anybody noticing.
            if name == weights.name and file_digest(weights) != expected:
                raise ValueError("it tells of other weights than those beside it")
    except InvalidWeights:
        raise
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        raise InvalidWeights(
            f"{path}, beside the weights, cannot be trusted: {error}; mend or remove it"
        ) from error
    try:
        classes = require_kind(Sequence[str], facts.get("classes") or (), f"{path}: classes", InvalidWeights)
        told = require_kind(dict[str, Any], facts.get("preprocess") or {}, f"{path}: preprocess", InvalidWeights)
        found = {"classes": tuple(classes), "preprocess": Preprocess.from_dict(told) if told else None}
    except InvalidParameter as error:
        raise InvalidWeights(f"{path}: {error}") from error
    return {name: value for name, value in found.items() if value}


def is_untrained(model: nn.Module) -> bool:
    """Whether weights lie as PyTorch draws them: every normalization is as it begins, each 1 or 0.

    Where there is none, every weight of a layer with n inputs is spread evenly within 1 / sqrt(n), its default.
    """
    parts = list(model.modules())
    norms = [part for part in parts if isinstance(part, _NORMS) and isinstance(part.weight, Tensor)]
    if norms:
        return all(map(_is_as_begun, norms))
    weighted = [part.weight for part in parts if isinstance(part, nn.Linear | nn.modules.conv._ConvNd)]
    return bool(weighted) and all(map(_is_evenly_drawn, weighted))


_NORMS = (nn.modules.batchnorm._NormBase, nn.LayerNorm, nn.GroupNorm)


def _is_as_begun(norm: Any) -> bool:
    weight: Tensor = norm.weight.detach()
    others: list[Tensor | None] = [norm.bias, getattr(norm, "running_mean", None)]
    # A residual block's last norm may begin at 0 instead of 1.
    changed = bool((weight != weight.flatten()[0]).any()) or float(weight.flatten()[0]) not in (0.0, 1.0)
    return not changed and not any(other is not None and bool(other.any()) for other in others)


def _is_evenly_drawn(weight: Tensor) -> bool:
    values, bound = weight.detach().cpu().double(), 1 / math.sqrt(weight[0].numel())
    # The mean square of n even draws is bound^2 / 3, give or take a share of sqrt(4 / 5 / n).
    share = float(3 * values.square().mean() / bound**2)
    return float(values.abs().max()) <= bound * 1.001 and abs(share - 1) < 5 * math.sqrt(0.8 / values.numel())
