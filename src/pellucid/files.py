"""Files written in one move and read only whole; Python files run by their path."""

from __future__ import annotations

import ast
import errno
import hashlib
import importlib.util
import json
import os
import re
import secrets
import stat
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from functools import cache
from io import BufferedReader
from itertools import islice
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any, BinaryIO

from filelock import FileLock, Timeout

from .errors import OutputNotWritable, PellucidError, UnknownName, failure, near_names

if TYPE_CHECKING:
    from torch import Tensor

RUN = "run.json"  # the file in which a folder tells what made it
SEAL = "sha256"  # the name of the checksum among sealed values
FILES = "files"  # in sealed values: the names of files beside them, or their SHA-256 by name
HOLDS = "holds"  # in tensors without a checksum: what they are, in words
DIGESTS = "digests"  # in sealed values: the SHA-256 of files, by their paths from there
_MOST_BESIDE = 10_000  # names of a folder that are looked at for one that may be meant
_DRAFT = re.compile(r"\..+\.[0-9a-f]{16}")


@contextmanager
def replaced(path: Path) -> Iterator[BinaryIO]:
    """Open a draft that takes the place of ``path`` in one move if all goes well, and else is removed.

    Whoever reads ``path`` sees the old content or the new, never a part.

    Raises:
        OutputNotWritable: the file cannot be written; the old one, if any, stands.
    """
    begin = os.fsencode(path.name)[:200].decode(
        errors="ignore"
    )  # a name as long as may be leaves no room for more
    draft = path.with_name(f".{begin}.{secrets.token_hex(8)}")
    try:
        # Mode "x" refuses a name that exists, a link included: nothing can be written through it elsewhere.
        with draft.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())  # or a crash of the machine might keep the new name but not the content
        # Within one folder, and so on one disk, a renaming is one step.
        os.replace(draft, path)
        _sync(path.parent)
    except BaseException as error:
        with suppress(OSError):
            draft.unlink()
        if isinstance(error, OSError) and not isinstance(error, PellucidError):
            raise OutputNotWritable(
                f"cannot write {path}: {error.strerror or error}; "
                f"choose {'a shorter name' if error.errno == errno.ENAMETOOLONG else 'a folder you may write to'}"
            ) from error
        raise


def replace_file(path: Path, content: bytes) -> None:
    """Write a file in one move, as ``replaced`` does.

    Raises:
        OutputNotWritable: the file cannot be written; the old one, if any, stands.
    """
    with replaced(path) as file:
        file.write(content)


def _sync(folder: Path) -> None:
    """Have a new name in a folder written to its disk, where the system can."""
    with suppress(OSError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)


@contextmanager
def writable(place: str | Path) -> Iterator[None]:
    """Say which place could not be written (``OutputNotWritable``)."""
    try:
        yield
    except PellucidError:
        raise
    except OSError as error:
        raise OutputNotWritable(
            f"cannot write to {place}: {error.strerror or error}; choose a folder you may write to"
        ) from error


@contextmanager
def alone(lock: Path, place: str | Path) -> Iterator[None]:
    """Hold a place by its lock file, which the system frees when its process ends in whatever way.

    The lock's folder is made, and removed again if it stays empty.

    Raises:
        OutputNotWritable: another process holds it, or the lock file cannot be written.
    """
    held, is_new = FileLock(lock, timeout=0), not lock.parent.exists()
    with writable(place):
        lock.parent.mkdir(parents=True, exist_ok=True)
        # Opening a lock through a link would make, or hold, a file elsewhere.
        if os.path.lexists(lock) and (lock.is_symlink() or not lock.is_file()):
            raise OutputNotWritable(f"{lock} is no plain file, as locks are; remove it or choose another place")
        try:
            held.acquire()
        except Timeout as error:
            raise OutputNotWritable(
                f"another process is writing to {place}; wait until it ends or choose another place"
            ) from error
    try:
        yield
    finally:
        held.release()
        if is_new:  # a folder made for the lock goes with it, unless something came into it
            with suppress(OSError):
                lock.unlink(missing_ok=True)
                lock.parent.rmdir()


def is_held(lock: Path) -> bool:
    """Whether a process holds a lock file; where the system cannot tell, it does not."""
    try:
        import fcntl

        with open_regular(lock) as file:
            # A shared lock is refused only while somebody holds the file alone; closing the file frees it again.
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except (ImportError, OSError):
        return False
    return False


def open_regular(path: str | Path) -> BufferedReader:
    """Open a file that somebody names: a regular one, or a link to one.

    A pipe would be waited for, and a device may have no end or do something when it is read, so both are let be.

    Raises:
        OSError: the file is not there, may not be read, or is of another kind.
    """
    try:
        return open(path, "rb", opener=_regular)
    except ValueError as error:  # a null character in the path
        raise OSError(errno.EINVAL, str(error), str(path)) from error


def _regular(path: str, flags: int) -> int:
    handle = os.open(path, flags | getattr(os, "O_NONBLOCK", 0))  # which does not wait for a pipe's other end
    mode = os.fstat(handle).st_mode
    if stat.S_ISREG(mode):
        return handle
    os.close(handle)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR), path)
    raise OSError(errno.EINVAL, "it is no regular file", path)


def read_regular(path: str | Path) -> bytes:
    """The content of a file that somebody names, as ``open_regular`` opens it; it raises the same."""
    with open_regular(path) as file:
        try:
            return file.read()
        except MemoryError as error:
            raise OSError(errno.ENOMEM, "it does not fit into the memory", str(path)) from error


def require_regular(path: str | Path) -> None:
    """Try to open a file that somebody names, for a library that opens it by its path; ``OSError`` as there."""
    open_regular(path).close()


def no_file(path: str | Path, what: str) -> str:
    """Why there is nothing to read at a path that should be a file, for an error message."""
    if os.path.exists(path):
        return f"{path} is no regular file, as a {what} must be"
    return f"there is no {what} {path}{_near(path)}"


def no_folder(path: str | Path) -> str:
    """That there is no folder at a path, for an error message."""
    return f"there is no folder {path}{_near(path, only_folders=True)}"


def _near(path: str | Path, only_folders: bool = False) -> str:
    """What lies beside a path that is not there and is called nearly so, for an error message; else empty."""
    folder, name = os.path.split(os.path.normpath(path))
    with suppress(OSError, ValueError):  # ValueError: a null character
        with os.scandir(folder or ".") as entries:
            some = islice(entries, _MOST_BESIDE)
            beside = [entry.name for entry in some if entry.is_dir() or not only_folders]
        near = [os.path.join(folder, one) for one in near_names(name, sorted(beside), cutoff=0.6)]
        return f" (did you mean {' or '.join(near)}?)" if near else ""
    return ""


def sealed(facts: Mapping[str, Any]) -> bytes:
    """Plain values as JSON with their own checksum, by which ``unsealed`` finds out damage."""
    return json.dumps({**facts, SEAL: _checksum(facts)}, indent=1).encode() + b"\n"


def unsealed(content: bytes) -> dict[str, Any]:
    """The values of ``sealed`` content; ``ValueError`` if it is damaged. What has no seal is taken as it is."""
    try:
        facts = json.loads(content)
    except RecursionError as error:
        raise ValueError("its values are nested too deep") from error
    if not isinstance(facts, dict):
        raise ValueError("it holds no values by name")
    seal = facts.pop(SEAL, None)
    if seal is not None and seal != _checksum(facts):
        raise ValueError("it was damaged since it was written")
    return facts


def told_whole(path: Path) -> dict[str, Any]:
    """The values of a sealed file; ``ValueError`` or ``OSError`` if it, or a file that it tells of, is damaged."""
    told = unsealed(read_regular(path))
    for name, why in not_as_told(path.parent, told):
        raise ValueError(f"{name} {why}")
    return told


def not_as_told(folder: Path, told: Mapping[str, Any]) -> Iterator[tuple[str, str]]:
    """The files of a folder that sealed values tell of and that are not as they were, and what is the matter."""
    for name, expected in digests_told(told).items():
        path = folder / name
        if "\0" in name or Path(name).is_absolute() or ".." in Path(name).parts:
            yield repr(name), "is a name that nothing here writes"
        elif not path.is_file() or path.is_symlink():
            yield name, "is missing"
        elif file_digest(path) != expected:
            yield name, "was damaged since it was written"


def digests_told(told: Mapping[str, Any]) -> dict[str, str]:
    """The SHA-256 of files by their names, as sealed values tell them."""
    found = [files for files in (told.get(FILES), told.get(DIGESTS)) if isinstance(files, dict)]
    return {name: expected for files in found for name, expected in files.items()}


def is_draft(name: str) -> bool:
    """Whether a file's name is one that ``replaced`` gives to drafts."""
    return bool(_DRAFT.fullmatch(name))


def _checksum(facts: Mapping[str, Any]) -> str:
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def sealed_tensors(tensors: Mapping[str, Tensor], facts: Mapping[str, Any]) -> bytes:
    """Tensors by name and plain values as safetensors with their own checksum, for ``unsealed_tensors``."""
    import safetensors.torch

    plain = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    told = {name: json.dumps(value) for name, value in facts.items()}
    return safetensors.torch.save(plain, told | {SEAL: _checksum_of(plain, told)})


def unsealed_tensors(path: Path) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """The tensors and values that ``sealed_tensors`` wrote.

    Raises:
        ValueError: the file is missing, damaged, or of another kind.
    """
    import safetensors

    try:
        require_regular(path)
        with safetensors.safe_open(path, "pt") as file:
            told = dict(file.metadata() or {})
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - no mapping
    except (safetensors.SafetensorError, OSError) as error:
        raise ValueError(str(error)) from error
    if HOLDS in told:
        raise ValueError(f"it holds {told[HOLDS]}")
    if SEAL not in told:
        raise ValueError("it holds no checksum of pellucid's, as of what another program wrote")
    if told.pop(SEAL) != _checksum_of(tensors, told):
        raise ValueError("it was damaged since it was written")
    return tensors, {name: json.loads(value) for name, value in told.items()}


def _checksum_of(tensors: Mapping[str, Tensor], facts: Mapping[str, str]) -> str:
    """The SHA-256 of facts and tensors, by name."""
    import torch

    content = hashlib.sha256(json.dumps(facts, sort_keys=True).encode())
    for name, tensor in sorted(tensors.items()):
        content.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        content.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return content.hexdigest()


def file_digest(path: Path) -> str:
    """The SHA-256 of a file's content, read once for each state of the file."""
    state = path.stat()
    return _digest(path, state.st_mtime_ns, state.st_size)


@cache
def _digest(path: Path, _: int, __: int) -> str:
    with open_regular(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def source_digest(path: Path) -> str:
    """The SHA-256 of a file; of a Python file that imports others of its folder, that of all of them together."""
    own, others = file_digest(path), imported_beside(path) if path.suffix == ".py" else []
    told = "".join(f"{one.relative_to(path.parent).as_posix()} {file_digest(one)}\n" for one in others)
    return hashlib.sha256(f"{own}\n{told}".encode()).hexdigest() if others else own


def imported_beside(path: Path) -> list[Path]:
    """The Python files below a Python file's folder that it imports, and those that they import, in order.

    They are told by the text alone: what is imported by a name that is computed is not among them.
    """
    found: set[Path] = set()
    pending = [path]
    while pending:
        for folder, name in _imports(pending.pop(), path.parent):
            parts = name.split(".")
            # Each package on the way to a module runs, too.
            for place in (folder.joinpath(*parts[: depth + 1]) for depth in range(len(parts))):
                inside = {place.with_name(f"{place.name}.py"), place / "__init__.py"} - found - {path}
                new = {one for one in inside if one.is_file() and one.is_relative_to(path.parent)}
                found |= new
                pending += new
    return sorted(found)


def _imports(path: Path, top: Path) -> Iterator[tuple[Path, str]]:
    """What a Python file imports: a folder, and a dotted name from there on."""
    try:
        tree = ast.parse(read_regular(path))
    except (OSError, SyntaxError, ValueError, RecursionError):  # running it will tell
        return
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((top, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            folder = ([top] if node.level == 0 else path.parents[node.level - 1 : node.level]) or [top]
            # Of ``from a import b`` b may be a module, too.
            yield from ((folder[0], ".".join(filter(None, (node.module, alias.name)))) for alias in node.names)


def file_facts(path: Path, what: str) -> dict[str, str]:
    """A file's name, by ``what`` it is, and its SHA-256 if it is there."""
    return {what: path.name} | ({"sha256": file_digest(path)} if path.is_file() else {})


def file_name(text: str) -> str:
    """Make a text fit for a file's name: letters, digits and ``._=-``, at most 100 bytes."""
    name = re.sub(r"[^\w.=]+", "-", text).encode()[:100].decode(errors="ignore")
    return name.strip("-.") or "unnamed"


def function_in(path: str, name: str, error: type[PellucidError], what: str) -> Callable[..., Any]:
    """The function of this name in a Python file of the user's, which is run; the errors are as of ``run_file``.

    Raises:
        UnknownName: the file has no such function.
    """
    module = run_file(Path(path), error, what, "function")
    function = getattr(module, name, None)
    if not callable(function):
        known = [other for other, value in vars(module).items() if callable(value) and other[0] != "_"]
        raise UnknownName(f"function in {path}", name, known)
    found: Callable[..., Any] = function
    return found


def run_file(path: Path, error: type[PellucidError], what: str, inside: str) -> ModuleType:
    """Import a Python file of the user's by its path; it may import its neighbours.

    ``what`` the file is, and what is looked for ``inside``, are said in the ``error`` raised if it is missing
    or fails.
    """
    if not path.is_file():
        raise error(f"{no_file(path, what)}; write it as 'path/to/file.py:{inside}'")
    specification = importlib.util.spec_from_file_location(f"pellucid_user_{path.stem}", path)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules[module.__name__] = module  # dataclasses and pickles in the file look it up there
    sys.path.insert(0, str(path.parent.resolve()))
    try:
        specification.loader.exec_module(module)
    except Exception as raised:
        raise error(f"running {path} failed: {failure(raised, path)}") from raised
    finally:
        sys.path.remove(str(path.parent.resolve()))
    return module
