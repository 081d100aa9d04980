"""Files written in one move, and Python files run by their path."""

from __future__ import annotations

import importlib.util
import os
import sys
from pathlib import Path
from types import ModuleType

from .errors import OutputNotWritable, PellucidError


def replace_file(path: Path, content: bytes) -> None:
    """Write a file in one move: whoever reads it sees the old content or the new, never a part.

    Raises:
        OutputNotWritable: the file cannot be written; the old one, if any, stands.
    """
    draft = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        draft.write_bytes(content)
        os.replace(draft, path)
    except OSError as error:
        draft.unlink(missing_ok=True)
        raise OutputNotWritable(
            f"cannot write {path}: {error.strerror}; choose a folder you may write to"
        ) from error


def run_file(path: Path, error: type[PellucidError], what: str, inside: str) -> ModuleType:
    """Import a Python file of the user's by its path; it may import its neighbours.

    ``what`` the file is, and what is looked for ``inside``, are said in the ``error`` raised if it is missing
    or fails.
    """
    if not path.is_file():
        raise error(f"there is no {what} {path}; write it as 'path/to/file.py:{inside}'")
    specification = importlib.util.spec_from_file_location(f"pellucid_user_{path.stem}", path)
    assert specification is not None
    assert specification.loader is not None
    module = importlib.util.module_from_spec(specification)
    sys.modules[module.__name__] = module  # dataclasses and pickles in the file look it up there
    sys.path.insert(0, str(path.parent.resolve()))
    try:
        specification.loader.exec_module(module)
    except Exception as failure:
        raise error(f"running {path} failed: {type(failure).__name__}: {failure}") from failure
    finally:
        sys.path.remove(str(path.parent.resolve()))
    return module
