"""A folder at a path or a URL: files appear in one move, and a store that fails is asked again."""

from __future__ import annotations

import errno
import os
import re
import shutil
import tempfile
import time
import weakref
from collections.abc import Callable, Collection, Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import Any, BinaryIO, TypeVar

import fsspec

from .bounds import OTHER_FILES
from .errors import InvalidData, OutputNotWritable, PellucidError
from .files import file_digest, is_draft, open_regular, read_regular, replace_file, replaced, writable

_T = TypeVar("_T")
_WAITS = (0.5, 1.0, 2.0)  # seconds, before a store that failed is asked again
_ABSENT = (FileNotFoundError, NotADirectoryError)
_ANSWERS = (*_ABSENT, FileExistsError, IsADirectoryError, PermissionError)  # not to be asked for again
_DIGITS = 16  # of a digest: enough to tell contents apart, and few enough to be read
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)


def files_below(folder: Path, suffixes: tuple[str, ...] = ()) -> list[Path]:
    """The files below a folder in their order, those of one of the suffixes if any are given.

    What begins with a dot, as operating systems leave it behind, is left out, as are folders inside that pellucid
    wrote, whose pictures are no photos; links to folders are not followed. A folder of far more other files than
    such ones, as a whole disk, is refused (``InvalidData``).
    """
    found, others = [], 0
    for place, folders, names in os.walk(folder):
        folders[:] = [name for name in folders if name[0] != "." and not _holds_run(Path(place, name))]
        seen = [name for name in names if name[0] != "."]
        fitting = [name for name in seen if not suffixes or name.lower().endswith(suffixes)]
        found += [path for name in fitting if (path := Path(place, name)).is_file()]
        others += len(seen) - len(fitting)
        # This is asked on the way, so that a whole disk is refused before it was walked through.
        OTHER_FILES.require(others, f"name a folder inside: {folder} holds", InvalidData, but=10 * len(found))
    return sorted(found)


def _holds_run(folder: Path) -> bool:
    """Whether what says which run a folder holds begins as pellucid writes it."""
    try:
        with open_regular(folder / "run.json") as file:
            return re.match(rb'\{\s*"made_by":\s*"pellucid"', file.read(64)) is not None
    except OSError:
        return False


def content(place: str, but: Collection[Path] = ()) -> str:
    """What tells one content from another, wherever it is: of a file its digest, of a folder that of the names
    and sizes of its files, which may be many; else the name. Files of a folder ``but`` these count."""
    path = Path(place)
    if path.is_file():
        return f"sha256 {file_digest(path)[:_DIGITS]}"
    if path.is_dir():
        others = {one.absolute() for one in but}
        files = [one for one in files_below(path) if one.absolute() not in others]
        told = sorted((one.relative_to(path).as_posix(), one.stat().st_size) for one in files)
        return f"sha256 {sha256(repr(told).encode()).hexdigest()[:_DIGITS]}"
    return place


class Folder:
    """A folder, ``local`` or elsewhere (None), and what is asked of it.

    Whatever goes wrong elsewhere, such as an endpoint that refuses, is asked for four times within some seconds,
    and then told in one line.
    """

    def __init__(self, url: str | os.PathLike[str]) -> None:
        self.url = os.fspath(url)
        try:
            self._fs, root = fsspec.core.url_to_fs(os.path.expanduser(self.url))
        except (ImportError, TypeError, ValueError) as error:  # TypeError: a URL without what its store needs
            raise InvalidData(f"{self.url} cannot be opened: {error}") from error
        self._root = str(root).rstrip("/")
        protocols = self._fs.protocol if isinstance(self._fs.protocol, tuple) else (self._fs.protocol,)
        self.local = Path(self._root) if "file" in protocols else None

    def read(self, name: str) -> bytes | None:
        """A file's content; None if there is none.

        Raises:
            InvalidData: it cannot be read.
        """
        if self.local is not None:
            return self._read(name, lambda: read_regular(self._at(name)))
        return self._read(name, lambda: self._fs.cat_file(self._at(name)))

    def opened(self, name: str) -> Any:
        """A file to read parts of; ``OSError`` if there is none."""
        return open_regular(self._at(name)) if self.local is not None else self._fs.open(self._at(name), "rb")

    def clear_drafts(self, folder: str = "") -> None:
        """Remove what processes that were killed left in a folder of this one on a disk; links lead nowhere."""
        place = None if self.local is None else self.local / folder
        for path in [] if place is None or place.is_symlink() or not place.is_dir() else place.iterdir():
            if is_draft(path.name):
                path.unlink(missing_ok=True)

    def names(self, folder: str = "") -> set[str]:
        """What is in a folder of this one; nothing where it is missing.

        Raises:
            InvalidData: it cannot be read.
        """
        found = self._read(folder, lambda: self._fs.ls(self._at(folder), detail=False))
        return {str(path).rstrip("/").rpartition("/")[2] for path in found or ()}

    def files(self) -> dict[str, str]:
        """All files below that are not hidden, by their sorted paths from here, with what tells their state.

        Raises:
            InvalidData: it cannot be read.
        """
        found = self._read("", lambda: self._fs.find(self._root, detail=True)) or {}
        marks = ("size", "mtime", "ETag", "LastModified", "updated")
        states = {
            str(path)[len(self._root) :].lstrip("/"): repr([about.get(name) for name in marks])
            for path, about in sorted(found.items())
        }
        return {path: state for path, state in states.items() if not re.search(r"(^|/)\.", path)}

    def fetch(self, name: str) -> Path:
        """A local file of the same content, which a temporary folder keeps until the program ends, or this one.

        Raises:
            InvalidData: it is not there, or cannot be read.
        """
        if self.local is not None:
            return self.local / name if name else self.local
        # It keeps its own name, by whose ending readers go.
        place = Path(tempfile.mkdtemp(prefix="pellucid-"), (name or self._root).rpartition("/")[2])
        weakref.finalize(self, shutil.rmtree, place.parent, ignore_errors=True)
        if self._read(name, lambda: self._fs.get_file(self._at(name), str(place)) or place) is None:
            raise InvalidData(f"there is no {self.url}/{name}".rstrip("/"))
        return place

    @contextmanager
    def reading(self, name: str) -> Iterator[BinaryIO]:
        """Open a large file, of which parts are read.

        Raises:
            InvalidData: it is not there, or cannot be read.
        """
        file = self._read(name, lambda: self.opened(name))
        if file is None:
            raise InvalidData(f"there is no {self.url}/{name}")
        with file:
            yield file

    @contextmanager
    def writing(self, name: str) -> Iterator[BinaryIO]:
        """Write a large file piece by piece; it appears in one move.

        Raises:
            OutputNotWritable: it cannot be written; what stood there before does.
        """
        if self.local is not None:
            with writable(self.url):
                self.local.joinpath(name).parent.mkdir(parents=True, exist_ok=True)
            with replaced(self.local / name) as file:
                yield file
            return
        # It is whole on this disk first, so that the store gets it in one write or not at all.
        with tempfile.NamedTemporaryFile() as draft:
            yield draft  # type: ignore[misc]
            draft.flush()
            self._write(lambda: self._fs.put_file(draft.name, self._at(name)))

    def is_file(self) -> bool:
        """Whether it is a file, and no folder."""
        return bool(self._read("", lambda: self._fs.isfile(self._root)))

    def write(self, name: str, content: bytes) -> None:
        """Write a file in one move.

        Raises:
            OutputNotWritable: it cannot be written; what stood there before does.
        """
        with_name = self._at(name)
        self._write(
            lambda: self._fs.pipe_file(with_name, content) if self.local is None else self._move(name, content)
        )

    def create(self, name: str, content: bytes) -> bool:
        """Write a file elsewhere, unless one is there already; whether it was written.

        A store that cannot write on this condition is asked before: whoever needs to be sure reads it again.
        """
        path = self._at(name)

        def create() -> bool:
            try:
                self._fs.pipe_file(path, content, mode="create")
            except FileExistsError:
                return False
            # A file system of fsspec that knows no condition takes no such argument, or says so.
            except (TypeError, NotImplementedError):
                if self._fs.exists(path):
                    return False
                self._fs.pipe_file(path, content)
            return True

        return self._write(create)

    def remove(self, name: str) -> None:
        """Remove a file, if it is there."""
        path = self._at(name)
        self._write(lambda: self._fs.rm_file(path) if self._fs.exists(path) else None)

    def _at(self, name: str) -> str:
        return f"{self._root}/{name}" if name else self._root

    def _move(self, name: str, content: bytes) -> None:
        assert self.local is not None
        replace_file(self.local / name, content)

    def _read(self, name: str, ask: Callable[[], _T]) -> _T | None:
        try:
            return self._asked(ask)
        except _ABSENT:
            return None
        except OSError as error:
            what = f"{self.url}/{name}" if name else self.url
            raise InvalidData(f"cannot read {what}: {_reason(error)}; {_way_out(error, 'read it')}") from error

    def _write(self, ask: Callable[[], _T]) -> _T:
        try:
            return self._asked(ask)
        except OSError as error:
            cause = error.__cause__ if isinstance(error, PellucidError) else error
            way_out = f"what was finished before is safe: {_way_out(cause, 'write there')}"
            raise OutputNotWritable(f"cannot write to {self.url}: {_reason(cause)}; {way_out}") from error

    def _asked(self, ask: Callable[[], _T]) -> _T:
        """What the file system answers, or an ``OSError``, whatever its library raises."""
        for wait in (*_WAITS, None):
            try:
                return ask()
            except _ANSWERS:
                raise
            except Exception as error:
                # A disk that fails, or is full, answers the same a second later; a network may not.
                if isinstance(error, OSError) and (self.local is not None or error.errno in _FULL):
                    raise
                if wait is None or "Credentials" in type(error).__name__:
                    raise OSError(f"{type(error).__name__}: {error}") from error
            time.sleep(wait)
        raise AssertionError


def _reason(error: Any) -> str:
    return " ".join((getattr(error, "strerror", None) or str(error) or type(error).__name__).split())


def _way_out(error: Any, act: str) -> str:
    if isinstance(error, PermissionError) or "Credentials" in str(error):
        return f"give credentials that may {act}, and run the same command again"
    if getattr(error, "errno", None) in _FULL:
        return "make room and run the same command again"
    if getattr(error, "errno", None) in (errno.EISDIR, errno.EINVAL):
        return "it should be a file: remove it, or choose another folder"
    return "run the same command again once the place answers"
