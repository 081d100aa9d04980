"""The command ``doctor``: whether what commands wrote is whole, and what to do where it is not."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Container, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from ..errors import DamagedFileWarning, InvalidData, PellucidError, counted
from ..files import FILES, RUN, digests_told, is_draft, is_held, not_as_told, read_regular, unsealed
from .output import UNFINISHED, is_staged
from .terminal import say

if TYPE_CHECKING:
    from ..experiments.store import Store
    from ..folders import Folder

_AGAIN = "the same command computes it anew"
_WAYS_OUT = {  # of what is the matter with a file that is told of
    "is missing": _AGAIN,
    "was damaged since it was written": f"move it away, and {_AGAIN}",
}
_DAMAGED_RUN = "give the same command again: it writes it anew, or says what to move away"
_FOREIGN = "nothing reads it; move it away, or delete it"
_SAVED_HERE = (".html", ".csv", ".tex", ".parquet")  # pages and tables that commands may have written into a run
_CLEARED = "left by a command that was killed; the same command clears it away, or delete it"


def doctor(
    run: Annotated[
        str,
        typer.Argument(
            metavar="RUN", help="What a command wrote: a folder, a benchmark's URL or a file of weights."
        ),
    ],
) -> None:
    """Verify all parts, pictures, pages, checkpoints and weights of a run by their checksums; nothing is changed.

    One line for each file that is missing, damaged, foreign or left over, with what to do. Ends with 0 if all is
    whole, else with 1.

    Example: `pellucid doctor results`
    """
    found = examined(run)
    for line in found.amiss:
        say(line)
    whole = ", ".join(counted(count, what) for what, count in sorted(found.whole.items()) if count)
    rest = "whole beside that: " if found.amiss else "whole: "
    say(f"{run}: {rest + whole if whole else 'nothing is whole'}")
    if found.amiss:
        raise typer.Exit(1)


@dataclass
class Findings:
    """What was found whole, counted by kind, and a line for each thing amiss."""

    whole: Counter[str] = field(default_factory=Counter)
    amiss: list[str] = field(default_factory=list)

    def note(self, what: str | Path, why: str, way_out: str) -> None:
        """Note what is amiss, in one line."""
        self.amiss.append(" ".join(f"{what}: {why}; {way_out}".split()))


def examined(run: str) -> Findings:
    """Read all that a run's place holds, and change nothing.

    Raises:
        InvalidData: nothing there is of pellucid, or it cannot be read.
    """
    from ..experiments.store import Store

    found, store = Findings(), Store(run)
    if store.local is None:
        if not _examined(store, found):
            raise InvalidData(f"there is no run of pellucid in {run}; give its output folder")
        return found
    if not store.local.exists():
        raise InvalidData(f"there is no {run}; give what a command wrote")
    for path in _files(store.local):
        _examine_file(path, found)
    if not found.whole and not found.amiss:
        raise InvalidData(f"there is no run of pellucid in {run}; give its output folder")
    return found


def _files(place: Path) -> Iterator[Path]:
    """A file of weights with what tells of it and its checkpoints, or all files below a folder; links are none."""
    if place.is_file():
        yield from (path for path in (place, place.with_suffix(".json")) if path.is_file())
        place = place.with_suffix(".checkpoint")
    for path in sorted(place.rglob("*")):
        if not path.is_symlink() and (path.is_file() or is_staged(path.name) or path.name == RUN):
            yield path


def _examine_file(path: Path, found: Findings) -> None:
    """Examine one file as what its name says it is; those of cells are examined with their run."""
    from ..experiments.store import Store

    if is_draft(path.name) or is_staged(path.name):
        _examine_draft(path, found)
    elif path.name == RUN and path.is_file() and _examined(Store(path.parent), found):
        pass
    elif path.suffix == ".json" or path.name == RUN:
        _examine_facts(path, found)
    elif path.suffix == ".safetensors":
        _examine_tensors(path, found)


def _examined(store: Store, found: Findings) -> bool:
    """Examine a benchmark or a data set of maps; whether there is one."""
    return _examine_run(store, found) or _examine_maps(store.folder, found)


def _examine_draft(path: Path, found: Findings) -> None:
    lock = path.with_name(f"{path.name}.lock")
    if path.suffix == ".lock":
        return
    if lock.is_file() and is_held(lock):
        found.note(path, "a command is writing it", "ask again when that has ended")
    elif (path / UNFINISHED).exists():
        found.note(path, "a run that was stopped", "the same command goes on with it, or delete it")
    else:
        found.note(path, "a draft", _CLEARED)


def _examine_facts(path: Path, found: Findings) -> None:
    """Examine a file of values, and those whose checksums it tells."""
    try:
        told = unsealed(read_regular(path))
    except (OSError, ValueError) as error:
        found.note(path, str(error), _DAMAGED_RUN if path.name == RUN else _AGAIN)
        return
    amiss = dict(not_as_told(path.parent, told))
    for name, why in amiss.items():
        found.note(
            path.parent / name,
            why.removeprefix("is "),
            _WAYS_OUT.get(why, f"{path} tells of it: mend or delete that"),
        )
    found.whole["values file"] += 1
    if isinstance(told.get(FILES), list):  # of a command that writes a whole folder, such as explain
        _examine_output(path.parent, told, amiss, found)


def _examine_output(folder: Path, told: Mapping[str, Any], amiss: Mapping[str, str], found: Findings) -> None:
    """Count what is whole of an output whose run.json tells of all its files, and name what is none of them."""
    runs = [path.parent for path in folder.rglob(RUN) if path.parent != folder]
    names = digests_told(told)
    for path in sorted(folder.rglob("*")):
        name = path.relative_to(folder).as_posix()
        is_hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        is_link = path.is_symlink() or not path.is_file()
        if name == RUN or is_hidden or is_link or any(run in path.parents for run in runs):
            continue
        if name not in names:
            found.note(path, "none of this run's", _FOREIGN)
        elif name not in amiss:
            found.whole[_kind(path)] += 1
    parts = {part for name in amiss for part in Path(name).with_suffix("").parts}
    photos = told.get("photos")
    keys = [photo.get("key") for photo in photos if isinstance(photo, dict)] if isinstance(photos, list) else []
    found.whole["photo"] += len([key for key in keys if key not in parts])


def _kind(path: Path) -> str:
    """What a file of a command's output is called where such are counted."""
    if path.name.startswith("figure"):
        return "figure"
    kinds = {".safetensors": "attribution file", ".html": "page", ".csv": "table", ".png": "map", ".svg": "map"}
    return kinds.get(path.suffix, "other file")


def _examine_tensors(path: Path, found: Findings) -> None:
    """Examine a checkpoint or a surrogate; weights are examined with the values beside them."""
    from ..training.checkpoints import read
    from ..variants.surrogate import is_surrogate, load_surrogate

    if path.parent.suffix == ".checkpoint" or path.name.startswith("epoch-"):
        if read(path) is None:
            found.note(path, "the checkpoint is damaged", "the same command takes the one before it")
        else:
            found.whole["checkpoint"] += 1
    elif path.with_suffix(".json").is_file():
        found.whole["weights file"] += 1
    elif is_surrogate(path):
        try:
            load_surrogate(path)
        except PellucidError as error:
            found.note(path, str(error), f"delete {path}, and the same command trains it again")
        else:
            found.whole["surrogate"] += 1


def _examine_run(store: Store, found: Findings) -> bool:
    """Examine a benchmark's run.json, parts and pictures; whether there is such a run."""
    from ..experiments.ratings import RATINGS
    from ..experiments.record import DamagedRun
    from ..experiments.store import LOCK, PARTS, PHOTOS, PICTURE_ROWS, PICTURES, ROWS

    try:
        record = store.record()
    except DamagedRun as error:
        way_out = "the same command writes it anew" if store.names(PARTS) else _DAMAGED_RUN
        found.note(f"{store.url}/{RUN}", str(error).partition(";")[0], way_out)
        return True
    except InvalidData:
        return False
    if record is None:
        return False
    store.run, before = record.hash, len(found.amiss)
    if store.local is not None and is_held(store.local / LOCK):
        found.note(store.url, "a command is writing here", "ask again when that has ended")
    kinds = (
        (PARTS, record.cells, ROWS, "part"),
        (PICTURES, (PHOTOS, *record.cells), PICTURE_ROWS, "picture file"),
    )
    for folder, cells, rows, kind in kinds:
        with warnings.catch_warnings(record=True) as told:
            warnings.simplefilter("always", DamagedFileWarning)
            found.whole[kind] += len(store.whole(folder, cells, rows))
        for warning in told:
            what, _, why = str(warning.message).partition(" cannot be used: ")
            found.note(what, why, _AGAIN)
        for name in store.strangers(folder, cells):
            found.note(f"{store.url}/{folder}/{name}", "none of this run's", "it is never read; delete it")
    _name_foreign(store.folder, {RUN, RATINGS}, found)
    if missing := len(set(record.cells) - store.names(PARTS)):
        found.note(store.url, f"{counted(missing, 'cell')} not computed yet", "the same command goes on")
    found.whole["run"] += 1
    if len(found.amiss) == before:
        _examine_results(store, found)
    return True


def _name_foreign(folder: Folder, known: Container[str], found: Findings) -> None:
    """Name what lies directly in a run's folder and was written by no command, as far as it is a disk's."""
    for path in sorted(folder.local.iterdir()) if folder.local is not None else ():
        is_own = path.name in known or path.name.startswith(".") or path.suffix in _SAVED_HERE
        if path.is_file() and not is_own:
            found.note(path, "none of this run's", _FOREIGN)


def _examine_results(store: Store, found: Findings) -> None:
    """Read the results of a run as a report does, which asks for more than whole files."""
    from ..experiments.store import Results

    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always", DamagedFileWarning)
        try:
            Results.read(store.url)
        except PellucidError as error:
            found.note(store.url, str(error), "no report can be written before")
    for warning in told:
        found.note(store.url, str(warning.message), "mend or delete it")


def _examine_maps(folder: Folder, found: Findings) -> bool:
    """Examine the shards of a data set of maps; whether there is one."""
    from ..experiments.bulk import MANIFEST, read_shard, shards_told
    from ..experiments.shards import MAPS
    from ..experiments.store import LOCK

    names = shards_told(folder)
    if names is None:
        return False
    if folder.local is not None and is_held(folder.local / LOCK):
        found.note(folder.url, "a command is writing here", "ask again when that has ended")
    there = {name for name in folder.names(MAPS) if not is_draft(name)}
    for name in sorted(there):
        place = f"{folder.url}/{MAPS}/{name}"
        if name not in names:
            found.note(place, "none of this run's", "delete it, for it is read with the others")
            continue
        try:
            read_shard(folder, f"{MAPS}/{name}")
        except InvalidData as error:
            found.amiss.append(" ".join(str(error).split()))
        else:
            found.whole["shard"] += 1
    _name_foreign(folder, {RUN, MANIFEST}, found)
    if missing := len(set(names) - there):
        found.note(folder.url, f"{counted(missing, 'shard')} not computed yet", "the same command goes on")
    found.whole["run"] += 1
    return True
