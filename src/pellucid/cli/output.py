"""What a command writes: a folder drafted beside its place, with a run.json that names all in it."""

from __future__ import annotations

import json
import os
import re
import secrets
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from types import MappingProxyType
from typing import Any

from ..errors import InvalidParameter, OutputNotWritable, counted, first_difference, shortened
from ..files import (
    DIGESTS,
    FILES,
    RUN,
    alone,
    file_digest,
    is_draft,
    is_held,
    sealed,
    told_whole,
    unsealed,
    writable,
)

_DRAFT = ".pellucid-"  # drafts, and the locks of the processes that write them
UNFINISHED = ".kept"  # in a draft that the same command goes on with: what it has done
HOW_FAR = "state.json"  # in there: how far it is
_EARLIER = ".earlier"  # in a draft that is taking its place: what of an earlier run goes
_KEPT_ASIDE = (UNFINISHED, _EARLIER)  # what of a draft does not take its place
_REQUEST, ASKED = "request", "asked"  # in run.json: the key of the run, and what it was made from
_NOTHING: Mapping[str, Any] = MappingProxyType({})


@contextmanager
def staged(folder: Path, key: str = "", asked: Mapping[str, Any] = _NOTHING) -> Iterator[Path]:
    """A draft folder whose content takes its place in ``folder`` if all goes well, and else is removed.

    Only an earlier run of the same ``key`` is replaced, and only if all its files are as it wrote them; whatever
    else is in the way is refused before any work. What a killed process left is cleared away: its draft is
    removed, or, if it was taking its place, put there. A draft with ``UNFINISHED`` in it stays if its command had
    a ``key``, 16 hexadecimal digits: the same key gets it back, another is refused.

    Raises:
        OutputNotWritable: it is a file or called as one, holds another run or other files, or cannot be written.
    """
    # Beside a new folder, but inside one that exists: it may be a mount point, which cannot be moved.
    beside = next(place for place in (folder.absolute(), *folder.absolute().parents) if place.exists())
    if folder.suffix.lower() in (".html", ".htm") and not folder.is_dir():
        raise OutputNotWritable(
            f"{folder} is called as a page is, and a folder is written; give {folder.with_suffix('')}, "
            "whose page will be report.html"
        )
    if not beside.is_dir():
        raise OutputNotWritable(f"cannot write to {folder}: {beside.name} is a file; choose another folder")
    _finish_moves(folder)
    _require_no_stopped(folder, key, asked)
    _earlier_run(folder, key, asked)
    with writable(folder):
        for place in {beside, folder.absolute().parent}:
            _clear_away(place, folder, key)
    is_new = not folder.exists()
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
                _take_place(draft, folder, key, asked)
            stays = False
    finally:
        if held and not (stays and (draft / UNFINISHED).exists()):
            shutil.rmtree(draft, ignore_errors=True)
            lock.unlink(missing_ok=True)
        if key and is_new:
            with suppress(OSError):  # it holds something
                folder.rmdir()


def finished(folder: Path, key: str) -> dict[str, Any] | None:
    """What run.json tells of a run of the same ``key`` that is whole in ``folder``; None if there is none."""
    _finish_moves(folder)
    try:
        told = told_whole(folder / RUN)
    except (OSError, ValueError):
        return None
    if not key or told.get(_REQUEST) != key:
        return None
    _drop_draft(folder, key)
    return told


def _drop_draft(folder: Path, key: str) -> None:
    """Remove what a process that was stopped after its run had taken its place left of the draft."""
    for draft in _drafts(folder.absolute()):
        if draft.name == f"{_DRAFT}{key}" and not is_held(_lock_of(draft)):
            with suppress(OutputNotWritable), alone(_lock_of(draft), folder), writable(folder):
                shutil.rmtree(draft, ignore_errors=True)
            _lock_of(draft).unlink(missing_ok=True)


def is_staged(name: str) -> bool:
    """Whether a folder's name is one that ``staged`` gives to drafts."""
    return bool(re.fullmatch(rf"{re.escape(_DRAFT)}[0-9a-f]{{16}}", name))


def _drafts(place: Path) -> list[Path]:
    """The drafts in a folder that have a lock, held or not; links are none."""
    found = sorted(lock.with_suffix("") for lock in place.glob(f"{_DRAFT}*.lock"))
    return [draft for draft in found if is_staged(draft.name) and not draft.is_symlink()]


def _lock_of(draft: Path) -> Path:
    return draft.with_name(f"{draft.name}.lock")


def _finish_moves(folder: Path) -> None:
    """Put in its place what a process that was killed was moving there."""
    for draft in _drafts(folder.absolute()):
        is_whole = (draft / _EARLIER).is_file() and (draft / RUN).is_file()
        if is_whole and not is_held(_lock_of(draft)):
            with suppress(ValueError), alone(_lock_of(draft), folder), writable(folder):
                told = json.loads((draft / _EARLIER).read_text())
                _move(draft, folder, _Earlier([_own(folder, name) for name in told[FILES]], told[DIGESTS]))
                shutil.rmtree(draft, ignore_errors=True)
            if not draft.exists():
                _lock_of(draft).unlink(missing_ok=True)


def _require_no_stopped(folder: Path, key: str, asked: Mapping[str, Any]) -> None:
    """Refuse a folder in which a run of another ``key`` was stopped: it would be lost; as ``_earlier_run``."""
    for draft in _drafts(folder.absolute()):
        state = draft / UNFINISHED / HOW_FAR
        if draft.name == f"{_DRAFT}{key}" or not state.is_file():
            continue
        if is_held(_lock_of(draft)):
            raise OutputNotWritable(
                f"another process is writing to {folder}; wait until it ends or choose another place"
            )
        told: Mapping[str, Any] = {}
        with suppress(OSError, ValueError):
            told = unsealed(state.read_bytes())
        raise OutputNotWritable(
            f"{folder} holds a stopped run of another request{_told_of(told)}{_differing(told, asked)}; give the "
            f"command that began it, choose another folder, or delete {folder / draft.name}"
        )


def _differing(told: Mapping[str, Any], asked: Mapping[str, Any]) -> str:
    """The first thing in which a run differs from what is asked, as far as it tells."""
    there = told.get(ASKED)
    return f"; {first_difference(there, asked)}" if asked and there and there != asked else ""


def _told_of(told: Mapping[str, Any]) -> str:
    """How many photos a run explained, and by which methods, as far as it tells."""
    photos, methods = told.get("photos"), told.get("methods")
    if not isinstance(photos, list) or not isinstance(methods, list | dict):
        return ""
    known = methods.values() if isinstance(methods, dict) else methods
    texts = [one.get("text") if isinstance(one, dict) else one for one in known]
    return f": {counted(len(photos), 'photo')} by {shortened(map(str, texts))}"


def _clear_away(beside: Path, folder: Path, key: str) -> None:
    """Remove the drafts of killed processes in a place: none holds their lock, and none will go on with them."""
    for draft in _drafts(beside):
        if draft.name == f"{_DRAFT}{key}" or (draft / UNFINISHED / HOW_FAR).is_file():
            continue
        try:
            with alone(_lock_of(draft), folder):
                shutil.rmtree(draft, ignore_errors=True)
        except OutputNotWritable:  # of a process that runs
            continue
        _lock_of(draft).unlink(missing_ok=True)


@dataclass(frozen=True)
class _Earlier:
    """What an earlier run left in a folder: what is there, and the SHA-256 of each file by its path there."""

    paths: Sequence[Path] = ()
    digests: Mapping[str, str] = field(default_factory=dict)

    def require_own(self, folder: Path, paths: Iterable[Path]) -> None:
        """Refuse to remove files, of these paths of the run, that are not as the run wrote them."""
        for path in (one for place in paths for one in (place, *sorted(place.rglob("*")))):
            name = path.relative_to(folder).as_posix()
            is_folder = path.is_dir() and not path.is_symlink()
            if is_folder or name == RUN or not os.path.lexists(path):
                continue
            if path.is_symlink() or not path.is_file() or self.digests.get(name) != file_digest(path):
                how = "is not as the run there wrote it" if name in self.digests else "is not of the run there"
                raise OutputNotWritable(f"{folder / name} {how}; choose another folder or move this file")


def _earlier_run(folder: Path, key: str, asked: Mapping[str, Any]) -> _Earlier:
    """What an earlier run of the same ``key`` left in ``folder``, by its run.json; anything else is refused.

    Of another run it is said in what it differs from what is ``asked``.
    """
    if not folder.is_dir():
        if folder.exists():
            raise OutputNotWritable(f"{folder} is a file; choose a folder")
        return _Earlier()
    with writable(folder):
        others = sorted(path.name for path in folder.iterdir() if not path.name.startswith(_DRAFT))
    if not others:
        return _Earlier()
    try:
        told = unsealed((folder / RUN).read_bytes())
        if told["made_by"] != "pellucid":
            raise ValueError("another program made it")
        if FILES not in told:  # of a command that keeps its folder, such as a benchmark's
            raise ValueError(f"it is of another command, {told.get('command') or 'unknown'!r}")
        # run.json goes first and comes last: a folder that has it is complete.
        paths = [_own(folder, name) for name in (RUN, *told[FILES])]
        digests = dict(told.get(DIGESTS, {}))
    except (OSError, ValueError, KeyError, TypeError) as error:
        name = others[0] if isinstance(error, FileNotFoundError) else RUN
        why = "there is no run.json" if isinstance(error, FileNotFoundError) else str(error)
        raise OutputNotWritable(
            f"{folder} holds {name}, which this command did not write ({why}); "
            "choose another folder, or move what is there"
        ) from error
    if told.get(_REQUEST, "") != key:
        what = _told_of(told) or f", {told.get('command') or 'unknown'!r}"
        raise OutputNotWritable(
            f"{folder} holds a finished run of another request{what}{_differing(told, asked)}; choose another "
            "folder, or move this one"
        )
    earlier = _Earlier(paths, digests)
    with writable(folder):
        earlier.require_own(folder, paths)
    return earlier


def _own(folder: Path, name: str) -> Path:
    """A run's file by its name: a run.json that names any other place, or a link, is not to be trusted.

    Whoever wrote it could otherwise have files anywhere removed, such as the folder that ``..`` means.
    """
    path = folder / name
    if not name or "\0" in name or name == ".." or Path(name).name != name or path.is_symlink():
        raise ValueError(f"it names {name!r}, which no run writes")
    return path


def _take_place(draft: Path, folder: Path, key: str, asked: Mapping[str, Any]) -> None:
    """Move a finished draft to where it belongs; what came there meanwhile is looked at again."""
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        os.replace(draft, folder)
        return
    earlier = _earlier_run(folder, key, asked)
    # Whoever finds this draft after a kill can finish the moves.
    told = {FILES: [path.name for path in earlier.paths], DIGESTS: dict(earlier.digests)}
    (draft / _EARLIER).write_text(json.dumps(told))
    _move(draft, folder, earlier)


def _move(draft: Path, folder: Path, earlier: _Earlier) -> None:
    """Move a draft's files into the place of an earlier run's, run.json last; some may have been moved before."""
    new = sorted(
        (path for path in draft.iterdir() if path.name not in _KEPT_ASIDE), key=lambda path: path.name == RUN
    )
    moved = set(json.loads((draft / RUN).read_text())[FILES]) if (draft / RUN).exists() else set()
    moved -= {path.name for path in new}
    gone = [path for path in earlier.paths if path.name not in moved]
    for path in new:
        if os.path.lexists(folder / path.name) and folder / path.name not in gone:
            raise OutputNotWritable(
                f"{folder / path.name} is not of this command; move this file and give the same command again"
            )
    earlier.require_own(folder, gone)
    for old in gone:
        shutil.rmtree(old) if old.is_dir() and not old.is_symlink() else old.unlink(missing_ok=True)
    for path in new:
        os.replace(path, folder / path.name)


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


def write_facts(folder: Path, facts: Mapping[str, Any], key: str = "") -> None:
    """Write run.json: facts, a run's ``key``, the names of all that stands beside it, and all files' checksums."""
    with writable(folder):
        found = [path for path in folder.iterdir() if path.name not in (*_KEPT_ASIDE, RUN)]
        inside = sorted(path for one in found for path in (one, *one.rglob("*")) if path.is_file())
        digests = {path.relative_to(folder).as_posix(): file_digest(path) for path in inside}
        names = sorted(path.name for path in found)
        request = {_REQUEST: key} if key else {}
        (folder / RUN).write_bytes(sealed({**facts, **request, FILES: names, DIGESTS: digests}))
