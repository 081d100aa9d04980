"""Checkpoints of a training: tensors and plain values as safetensors, the last two epochs kept."""

from __future__ import annotations

import json
import re
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import DamagedFileWarning, InvalidWeights, first_difference
from ..files import alone, is_draft, replace_file, sealed_tensors, unsealed_tensors, writable

KEPT = 2  # if the machine fails while the newest is written, the one before it stands


@dataclass(frozen=True)
class Checkpoint:
    """What a training needs to go on: tensors by name, and plain values."""

    tensors: Mapping[str, Tensor]
    facts: Mapping[str, Any]

    @classmethod
    def of(cls, facts: Mapping[str, Any], **parts: Mapping[str, Tensor]) -> Checkpoint:
        """Plain values, and parts of tensors by name, such as the network's and the optimizer's."""
        tensors = {f"{part}/{name}": value for part, values in parts.items() for name, value in values.items()}
        return cls(tensors, facts)

    def part(self, part: str, device: torch.device | str = "cpu") -> dict[str, Tensor]:
        """The tensors of one part by name, on a device."""
        found = {name: value for name, value in self.tensors.items() if name.startswith(f"{part}/")}
        return {name.removeprefix(f"{part}/"): value.to(device) for name, value in found.items()}


@dataclass(frozen=True)
class Checkpoints:
    """The checkpoints of one training in a folder of their own.

    ``identity`` says which training it is: network, recipe, seeds and data, as plain values. A folder that
    holds another training's checkpoints is refused, never overwritten.
    """

    folder: Path
    identity: Mapping[str, Any]

    def write(self, epoch: int, checkpoint: Checkpoint) -> None:
        """Write the state after this many epochs in one move, and drop all but the last two."""
        with writable(self.folder):
            self.folder.mkdir(parents=True, exist_ok=True)
        facts = {"identity": self.identity, "facts": {**checkpoint.facts, "epoch": epoch}}
        replace_file(self.folder / f"epoch-{epoch:05d}.safetensors", sealed_tensors(checkpoint.tensors, facts))
        # They go only once the newest one is whole on the disk.
        for old in self.files()[KEPT:]:
            old.unlink(missing_ok=True)

    def newest(self) -> Checkpoint | None:
        """Read the newest checkpoint that is whole, if any; another training's is refused (``InvalidWeights``)."""
        for path in self.files():
            found = read(path)
            if found is None:
                warnings.warn(DamagedFileWarning(f"{path} is damaged; the one before it is taken"), stacklevel=2)
                continue
            identity, checkpoint = found
            # It goes through JSON as what was read did: there
            # tuples are lists, and keys that were numbers are text.
            if identity != (wanted := json.loads(json.dumps(self.identity))):
                raise InvalidWeights(
                    f"{path} is of another training: {first_difference(identity, wanted)}; "
                    f"remove {self.folder}, or write somewhere else"
                )
            return checkpoint
        return None

    def files(self) -> list[Path]:
        """The folder's checkpoints, the newest first."""
        return sorted(self.folder.glob("epoch-*.safetensors"), reverse=True)


@contextmanager
def checkpoints_beside(output: Path) -> Iterator[Path]:
    """A folder for the checkpoints of the training that writes a file: this process's alone, gone once it is over.

    Raises:
        OutputNotWritable: another process trains into the same file, or the folder cannot be written.
    """
    folder = output.with_suffix(".checkpoint")
    with alone(folder / ".lock", output):
        yield folder
        remove_checkpoints(folder)


def remove_checkpoints(folder: Path) -> None:
    """Remove a training's checkpoints: it is over and its weights are written.

    Only what trainings write goes, those of several networks below it, too; a folder that holds more stays.
    """
    if folder.is_symlink() or not folder.is_dir():
        return
    for path in [*folder.iterdir()]:
        if re.fullmatch(r"network-\d{3}", path.name):
            remove_checkpoints(path)
        elif re.fullmatch(r"epoch-\d{5}\.safetensors|\.lock", path.name) or is_draft(path.name):
            path.unlink(missing_ok=True)
    with suppress(OSError):  # something else is in it
        folder.rmdir()


def read(path: Path) -> tuple[dict[str, Any], Checkpoint] | None:
    """Read a checkpoint and whose it is; None where the file is cut short or broken."""
    try:
        tensors, told = unsealed_tensors(path)
        return told["identity"], Checkpoint(tensors, told["facts"])
    except (KeyError, TypeError, ValueError):
        return None


# Optimizers.


def optimizer_tensors(optimizer: torch.optim.Optimizer) -> dict[str, Tensor]:
    """The state of an optimizer as tensors by name; its settings are the recipe's."""
    state = optimizer.state_dict()["state"]
    named = {f"{index}.{name}": value for index, values in state.items() for name, value in values.items()}
    return {name: value for name, value in named.items() if isinstance(value, Tensor)}


def load_optimizer(optimizer: torch.optim.Optimizer, tensors: Mapping[str, Tensor]) -> None:
    """Give an optimizer the state of :func:`optimizer_tensors` back."""
    state: dict[int, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        index, _, name = key.partition(".")
        state.setdefault(int(index), {})[name] = value
    optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
