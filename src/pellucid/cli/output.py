"""What a command writes: a folder drafted beside its place, with a run.json that names all in it."""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from ..errors import InvalidParameter, OutputNotWritable
from ..files import DIGESTS, FILES, RUN, alone, file_digest, is_draft, sealed, writable

_DRAFT = ".pellucid-"  # drafts, and the locks of the processes that write them
UNFINISHED = ".kept"  # in a draft that the same command goes on with: what it has done
_EARLIER = ".earlier"  # in a draft that is taking its place: what of an earlier run goes


@contextmanager
def staged(folder: Path, key: str = "") -> Iterator[Path]:
    """A draft folder whose content takes its place in ``folder`` if all goes well, and else is removed.

    An earlier run in ``folder`` is replaced, other files beside it are kept. What a killed process left is cleared
    away first: its draft is removed, or, if it was taking its place, put there. A draft with ``UNFINISHED`` in it
    stays if its command had a ``key``, 16 hexadecimal digits: the same key gets it back, another removes it.

    Raises:
        OutputNotWritable: it is a file, holds no earlier run but other files, or cannot be written.
    """
    # Beside a new folder, but inside one that exists: it may be a mount point, which cannot be moved.
    beside = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
    if not beside.is_dir():
        raise OutputNotWritable(f"cannot write to {folder}: {beside.name} is a file; choose another folder")
    with writable(folder):
        for place in {beside, folder.absolute().parent}:
            _clear_away(place, folder, key)
    earlier, is_new = _earlier_run(folder), not folder.exists()
    if key:  # a draft that may stay lies where only commands for this folder look
        beside = folder.absolute()
    draft = beside / f"{_DRAFT}{key or secrets.token_hex(8)}"
    lock = draft.with_name(f"{draft.name}.lock")
    held = stays = False
    try:
        with writable(folder):
            beside.mkdir(parents=True, exist_ok=True)
        with alone(lock, folder):
            held, stays = True, bool(key)
            with writable(folder):
                draft.mkdir(exist_ok=True)
                for path in draft.rglob("*"):  # a kill may have cut a file short
                    if is_draft(path.name) and path.is_file():
                        path.unlink()
            yield draft
            with writable(folder):
                _take_place(draft, folder, earlier)
            stays = False
    finally:
        if held and not (stays and (draft / UNFINISHED).exists()):
            shutil.rmtree(draft, ignore_errors=True)
            lock.unlink(missing_ok=True)
        if key and is_new:
            with suppress(OSError):  # it holds something
                folder.rmdir()


def is_staged(name: str) -> bool:
    """Whether a folder's name is one that ``staged`` gives to drafts."""
    return bool(re.fullmatch(rf"{re.escape(_DRAFT)}[0-9a-f]{{16}}", name))


def _clear_away(beside: Path, folder: Path, key: str) -> None:
    """Finish what processes that were killed left beside a folder: drafts whose lock nobody holds."""
    for lock in beside.glob(f"{_DRAFT}*.lock"):
        draft = lock.with_suffix("")
        if not is_staged(draft.name) or draft.is_symlink():
            continue
        try:
            with alone(lock, folder):
                if (draft / _EARLIER).is_file() and (draft / RUN).is_file() and beside == folder.absolute():
                    told = json.loads((draft / _EARLIER).read_text())
                    _move(draft, folder, [_own(folder, name) for name in told])
                elif key and draft.name == f"{_DRAFT}{key}":
                    continue
                shutil.rmtree(draft, ignore_errors=True)
        except (OutputNotWritable, ValueError):  # of a process that runs
            continue
        lock.unlink(missing_ok=True)


def _earlier_run(folder: Path) -> list[Path]:
    """What an earlier run left in ``folder``, by its run.json; a folder of anything else is refused."""
    if not folder.is_dir():
        if folder.exists():
            raise OutputNotWritable(f"{folder} is a file; choose a folder")
        return []
    with writable(folder):
        if all(path.name.startswith(_DRAFT) for path in folder.iterdir()):
            return []
    try:
        told = json.loads((folder / RUN).read_text())
        if told["made_by"] != "pellucid":
            raise ValueError("another program made it")
        if FILES not in told:  # of a command that keeps its folder, such as a benchmark's
            raise ValueError(f"it is of another command, {told.get('command') or 'unknown'!r}")
        # run.json goes first and comes last: a folder that has it is complete.
        return [_own(folder, name) for name in (RUN, *told[FILES])]
    except (OSError, ValueError, KeyError, TypeError) as error:
        why = "no run.json" if isinstance(error, OSError) else f"run.json: {error}"
        raise OutputNotWritable(
            f"{folder} holds files that this command did not write ({why}); choose another folder or empty it"
        ) from error


def _own(folder: Path, name: str) -> Path:
    """A run's file by its name: a run.json that names any other place, or a link, is not to be trusted.

    Whoever wrote it could otherwise have files anywhere removed, such as the folder that ``..`` means.
    """
    path = folder / name
    if not name or "\0" in name or name == ".." or Path(name).name != name or path.is_symlink():
        raise ValueError(f"it names {name!r}, which no run writes")
    return path


def _take_place(draft: Path, folder: Path, earlier: Iterable[Path]) -> None:
    """Move a finished draft to where it belongs."""
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        os.replace(draft, folder)
        return
    # Whoever finds this draft after a kill can finish the moves.
    (draft / _EARLIER).write_text(json.dumps([path.name for path in earlier]))
    _move(draft, folder, earlier)


def _move(draft: Path, folder: Path, earlier: Iterable[Path]) -> None:
    """Move a draft's files into the place of an earlier run's, run.json last; some may have been moved before."""
    moved = set(json.loads((draft / RUN).read_text())[FILES]) if (draft / RUN).exists() else set()
    for old in earlier:
        if old.name in moved and not (draft / old.name).exists():
            continue
        # The name may have become a link since it was read: then only the link is removed.
        shutil.rmtree(old) if old.is_dir() and not old.is_symlink() else old.unlink(missing_ok=True)
    for new in sorted(draft.iterdir(), key=lambda path: path.name == RUN):
        if new.name not in (_EARLIER, UNFINISHED):
            os.replace(new, folder / new.name)


def unused(name: str, taken: Iterable[str]) -> str:
    """Number a name that is taken already; file systems may not tell capitals apart."""
    known = {other.lower() for other in taken}
    free, number = name, 1
    while free.lower() in known:
        number += 1
        free = f"{name}-{number}"
    return free


def require_place(output: Path, suffix: str) -> None:
    """Refuse a file that could not be written, before the work begins."""
    if output.suffix != suffix:
        raise InvalidParameter(f"--output {output} does not end in {suffix}, the format that is written")
    if not output.absolute().parent.is_dir() or not os.access(output.absolute().parent, os.W_OK):
        raise OutputNotWritable(f"cannot write {output}; choose a folder that exists and that you may write to")


def origin(command: str) -> dict[str, Any]:
    """Who made a folder, and with what."""
    from ..experiments.record import versions

    return {"made_by": "pellucid", "command": command, "versions": versions()}


def write_facts(folder: Path, facts: Mapping[str, Any]) -> None:
    """Write run.json, with the names of all that stands beside it, and the checksums of all files."""
    with writable(folder):
        found = [path for path in folder.iterdir() if path.name != UNFINISHED]
        inside = sorted(path for one in found for path in (one, *one.rglob("*")) if path.is_file())
        digests = {path.relative_to(folder).as_posix(): file_digest(path) for path in inside}
        names = sorted(path.name for path in found)
        (folder / RUN).write_bytes(sealed({**facts, FILES: names, DIGESTS: digests}))
