"""Bounds on what one input may cost, checked before work on it begins; an environment variable lifts each."""

from __future__ import annotations

import os
import zipfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import BinaryIO

from .errors import InvalidParameter, PellucidError, brief

_PACKING = 4  # weights and pictures that are of use do not pack to less than one part in this


@dataclass(frozen=True)
class Bound:
    """So many ``units`` at ``most``, or as many as the environment ``variable`` says."""

    variable: str
    units: str
    most: int

    @property
    def value(self) -> int:
        """The bound that holds; ``InvalidParameter`` where the variable holds no whole number."""
        text = os.environ.get(self.variable, "").strip()
        if not text:
            return self.most
        if not text.isdecimal() or len(text) > 18:
            raise InvalidParameter(f"{self.variable}={brief(text)}: give a whole number of {self.units}")
        return int(text)

    def require(
        self, amount: int, thing: str, error: type[PellucidError] = InvalidParameter, but: int = 0
    ) -> None:
        """Raise ``error`` if the amount is above the bound, and above one that is fine ``but`` for it."""
        if amount > max(self.value, but):
            raise error(
                f"{thing} {amount:,} {self.units}, and {self.value:,} are allowed; if it is to be trusted "
                f"and there is room, set the environment variable {self.variable} to what is needed"
            )

    def read(self, file: BinaryIO, thing: str, error: type[PellucidError] = InvalidParameter) -> bytes:
        """All of a file, unless it has more bytes than the bound; it raises as ``require`` does."""
        self.require(file.seek(0, os.SEEK_END), f"{thing} has", error)
        file.seek(0)
        return file.read()


PIXELS = Bound("PELLUCID_MAX_PIXELS", "pixels", 89_478_485)  # of one image, as Pillow's own bound
IMAGES = Bound("PELLUCID_MAX_IMAGES", "images", 5_000_000)  # of one source
OTHER_FILES = Bound("PELLUCID_MAX_OTHER_FILES", "files of other kinds", 100_000)  # beside ten for each image
TEXT_FILE = Bound("PELLUCID_MAX_TEXT", "bytes", 1 << 26)  # of a spec, of names or of facts, before it is parsed
ANNOTATIONS = Bound("PELLUCID_MAX_ANNOTATIONS", "bytes", 1 << 29)  # of a COCO file; its own largest has 450 MB
UNPACKED = Bound(
    "PELLUCID_MAX_UNPACKED", "bytes unpacked", 1 << 28
)  # of a file that packs them to less than a quarter
UPLOAD = Bound("PELLUCID_MAX_UPLOAD", "bytes", 1 << 26)  # of one photo that a page of pellucid view is given
GRADIENTS = Bound("PELLUCID_MAX_GRADIENTS", "gradients for each image", 100_000)  # of one method


def require_unpacked(amount: int, packed: int, thing: str, error: type[PellucidError]) -> None:
    """Raise ``error`` for a file that says it unpacks to an amount of bytes that nothing of use would."""
    UNPACKED.require(amount, thing, error, but=_PACKING * packed)


def require_unpacked_archive(archive: BinaryIO, thing: str, error: type[PellucidError]) -> None:
    """Raise ``error`` for a ZIP archive that says it unpacks to more than is allowed."""
    with zipfile.ZipFile(archive) as files:
        entries = files.infolist()
        # Of entries that lie over one another, each says that it takes the same bytes.
        packed = min(sum(entry.compress_size for entry in entries), archive.seek(0, os.SEEK_END))
        require_unpacked(sum(entry.file_size for entry in entries), packed, f"{thing} holds", error)


def read_unpacked(read: Callable[[int], bytes], packed: int, thing: str, error: type[PellucidError]) -> bytes:
    """All that unpacking so many bytes gives, read with never more in memory than is allowed."""
    # One byte more than is allowed is enough to know that there is too much.
    content = read(max(UNPACKED.value, _PACKING * packed) + 1)
    require_unpacked(len(content), packed, f"{thing} holds", error)
    return content
