"""Files written in one move."""

from __future__ import annotations

import os
from pathlib import Path

from .errors import OutputNotWritable


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
