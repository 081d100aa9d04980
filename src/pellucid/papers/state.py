"""``reproduce.json``: a folder's paper and scale, how its networks were trained, and how long it all took."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ..errors import OutputNotWritable, first_difference
from ..files import replace_file

STATE, _LOCK = "reproduce.json", ".lock"


@dataclass(frozen=True)
class State:
    """What is known of a folder between calls; every change is written at once."""

    path: Path
    facts: dict[str, Any]

    @classmethod
    @contextmanager
    def opened(cls, folder: Path, paper: str, scale: str) -> Iterator[State]:
        """The state of a folder, which is this process's alone meanwhile.

        Raises:
            OutputNotWritable: it is another paper's or scale's, holds something else, another process writes
                there, or it cannot be written.
        """
        _facts(folder, paper, scale)
        try:
            folder.mkdir(parents=True, exist_ok=True)
            lock = FileLock(folder / _LOCK, timeout=0)
            lock.acquire()
        except Timeout as error:
            raise OutputNotWritable(
                f"another process is writing to {folder}; wait until it ends or choose another folder"
            ) from error
        except OSError as error:
            raise OutputNotWritable(
                f"cannot write to {folder}: {error.strerror}; choose a folder you may write to"
            ) from error
        try:
            yield cls(folder / STATE, _facts(folder, paper, scale))
        finally:
            lock.release()

    def _write(self) -> None:
        replace_file(self.path, json.dumps(self.facts, indent=1).encode() + b"\n")

    def note(self, places: Mapping[str, str]) -> None:
        """Write down what each ``@key`` stands for."""
        self.facts["places"] |= places
        self._write()

    # Trainings.

    def begin(self, key: str, identity: Mapping[str, Any]) -> None:
        """Write down that a training of this identity begins, or goes on."""
        self.facts["trained"][key] = {"identity": identity, "finished": False}
        self._write()

    def finish(self, key: str) -> None:
        """Write down that it has ended."""
        self.facts["trained"][key]["finished"] = True
        self._write()

    def is_finished(self, key: str, identity: Mapping[str, Any]) -> bool:
        """Whether a training of this identity has ended."""
        return bool(self.facts["trained"].get(key) == {"identity": identity, "finished": True})

    def changed(self, key: str, identity: Mapping[str, Any]) -> str:
        """In what a training that began earlier differs from this one; ``""`` if in nothing."""
        known = self.facts["trained"].get(key, {"identity": identity})["identity"]
        return first_difference(known, identity) if known != identity else ""

    # Time.

    def seconds(self, step: str) -> float:
        """How long a step took, in all calls."""
        return float(self.facts["seconds"].get(step, 0.0))

    def forget(self, step: str) -> None:
        """Leave out the time of a step that is done anew."""
        self.facts["seconds"].pop(step, None)
        self._write()

    @contextmanager
    def timed(self, step: str, counts: Callable[[], bool] = lambda: True) -> Iterator[None]:
        """Add the time that this takes to the step's, however it ends, if it ``counts``."""
        start = time.perf_counter()
        try:
            yield
        finally:
            if counts():
                self.facts["seconds"][step] = round(self.seconds(step) + time.perf_counter() - start, 1)
                self._write()


def _facts(folder: Path, paper: str, scale: str) -> dict[str, Any]:
    """What stands in a folder's file, or a new one's content."""
    new = {"made_by": "pellucid", "paper": paper, "scale": scale, "places": {}, "trained": {}, "seconds": {}}
    try:
        facts: dict[str, Any] = json.loads((folder / STATE).read_bytes())
        if not new.keys() <= facts.keys():
            raise ValueError("keys are missing")
    except FileNotFoundError:
        if others := [path.name for path in _content(folder) if not path.name.startswith(".")]:
            raise OutputNotWritable(
                f"{folder} holds {others[0]} but no {STATE} of pellucid reproduce; choose another folder"
            ) from None
        return new
    except (OSError, ValueError, AttributeError) as error:
        raise OutputNotWritable(f"{folder / STATE} cannot be read ({error}); choose another folder") from error
    for what in ("paper", "scale"):
        if facts[what] != new[what]:
            raise OutputNotWritable(
                f"{folder} holds the {what} {facts[what]!r}, not {new[what]!r}; choose another folder"
            )
    return facts


def _content(folder: Path) -> list[Path]:
    return sorted(folder.iterdir()) if folder.is_dir() else []
