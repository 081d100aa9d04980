"""Seeds made of other seeds: the one hash that all random numbers start from."""

from __future__ import annotations

from hashlib import blake2b
from typing import Literal


def fold_in(key: int, part: int | str, byteorder: Literal["little", "big"] = "little") -> int:
    """Make a new seed of a seed and what it is for; well mixed, and the same on every machine.

    The first 7 bytes of BLAKE2b("key/part"), so that every generator takes it.
    """
    return int.from_bytes(blake2b(f"{key}/{part}".encode(), digest_size=7).digest(), byteorder)


def image_seed(seed: int, name: str) -> int:
    """The seed of an image's noise in a benchmark: independent between images, whatever cell they come in.

    The same hash as ``fold_in``, read in the other byte order: published numbers were computed so.
    """
    return fold_in(seed, name, "big")
