"""The folder that a command writes: drafted beside its place, moved there when it is complete."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from ..errors import OutputNotWritable


@contextmanager
def staged(folder: Path) -> Iterator[Path]:
    """A draft folder whose content takes its place in ``folder`` if all goes well, and else is removed.

    An earlier run in ``folder`` is replaced, other files beside it are kept.

    Raises:
        OutputNotWritable: it is a file, holds no earlier run but other files, or cannot be written.
    """
    earlier = files_of_earlier_run(folder)
    # Beside a new folder, but inside one that exists: it may be a mount point, which cannot be moved.
    beside = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
    if not beside.is_dir():
        raise OutputNotWritable(f"cannot write to {folder}: {beside.name} is a file; choose another folder")
    draft = beside / f".pellucid-{os.getpid()}"
    with writable(folder):
        draft.mkdir()
    try:
        yield draft
        with writable(folder):
            take_place(draft, folder, earlier)
    finally:
        shutil.rmtree(draft, ignore_errors=True)


@contextmanager
def writable(folder: Path) -> Iterator[None]:
    """Say which folder could not be written."""
    try:
        yield
    except OSError as error:
        raise OutputNotWritable(
            f"cannot write to {folder}: {error.strerror}; choose a folder you may write to"
        ) from error


def files_of_earlier_run(folder: Path) -> list[str]:
    """The names that an earlier run left in ``folder``, by its run.json; a folder of anything else is refused."""
    if not folder.is_dir():
        if folder.exists():
            raise OutputNotWritable(f"{folder} is a file; choose a folder")
        return []
    with writable(folder):
        anything = any(folder.iterdir())
    if not anything:
        return []
    try:
        facts = json.loads((folder / "run.json").read_text())
        return [Path(name).name for name in facts["files"] if facts["made_by"] == "pellucid"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise OutputNotWritable(
            f"{folder} holds files but no run of pellucid (no run.json); choose another folder or empty it"
        ) from error


def take_place(draft: Path, folder: Path, earlier: Iterable[str]) -> None:
    """Move a finished draft to where it belongs."""
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        os.replace(draft, folder)
        return
    # run.json goes first and comes last: a folder that has it is complete.
    for name in ["run.json", *earlier]:
        old = folder / name
        shutil.rmtree(old) if old.is_dir() else old.unlink(missing_ok=True)
    for new in sorted(draft.iterdir(), key=lambda path: path.name == "run.json"):
        os.replace(new, folder / new.name)


def unused(name: str, taken: Iterable[str]) -> str:
    """Number a name that is taken already; file systems may not tell capitals apart."""
    known = {other.lower() for other in taken}
    free, number = name, 1
    while free.lower() in known:
        number += 1
        free = f"{name}-{number}"
    return free
