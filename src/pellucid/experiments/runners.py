"""Runs an experiment: cells are computed here or elsewhere, stored as they finish, and never computed twice."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from ..errors import PellucidError
from . import inputs
from .cells import Cell, Finished, photos, run_cell
from .planning import plan
from .shards import Shard, ShardCell, explain_shard
from .spec import Spec
from .store import PHOTOS, Results, Store
from .trainings import TrainingCell, images_of, run_training

AnyCell = Cell | TrainingCell | ShardCell


@dataclass(frozen=True, eq=False)
class Outcome:
    """What became of a cell: what it gave, or what was wrong."""

    cell: AnyCell
    finished: Finished | Shard | None = None
    error: PellucidError | None = None

    @property
    def reason(self) -> str:
        """What was wrong, and while what."""
        return "; ".join([str(self.error), *getattr(self.error, "__notes__", ())])


Runner = Callable[[Spec, Sequence[AnyCell]], Iterator[Outcome]]
Advance = Callable[[int, int], None]
SHARED = "training"  # the folder of a run in which trainings keep networks, ranks and results


def inline(spec: Spec, cells: Sequence[AnyCell]) -> Iterator[Outcome]:
    """Compute cells one after another in this process."""
    for cell in cells:
        try:
            yield Outcome(cell, _given(spec, cell))
        except PellucidError as error:
            yield Outcome(cell, error=error)


def _given(spec: Spec, cell: AnyCell) -> Finished | Shard:
    """What a cell gives."""
    match cell:
        case TrainingCell():
            return run_training(spec, cell)
        case ShardCell():
            return explain_shard(spec, cell)
        case _:
            return run_cell(spec, cell)


def benchmark(
    spec: Spec,
    output: str | os.PathLike[str],
    *,
    runner: Runner = inline,
    advance: Advance = lambda done, total: None,
    command: str = "",
) -> Results:
    """Run an experiment, or what is left of it, and return its results.

    Everything is checked before anything is computed. Each cell is stored when it finishes; a run that was
    ended in whatever way goes on where it was when it is called again, and a finished one computes nothing.
    A cell that fails does not end the others: ``Results.failed`` says what was wrong, and the next call tries
    it again.

    Trainings keep networks, ranks and results in the folder ``training`` of the run. They need local files:
    where the run is elsewhere, in ``$XDG_CACHE_HOME/pellucid``, by default ``~/.cache/pellucid``; on a cluster
    this must be a disk that all machines share.

    Args:
        spec: what to compute.
        output: a folder, or a URL that fsspec knows; it is empty, new, or holds the same experiment, or one with
            fewer methods or variants: its cells are kept, and only those of the new ones computed.
        runner: computes cells, in any order, and yields what became of each as it ends; ``on_ray`` is another.
        advance: called with the number of cells done and that of all.
        command: what was typed, for run.json.

    Raises:
        OutputNotWritable: the folder holds something else, another process writes to it, or the disk is full.
        PellucidError: anything in the spec that cannot work.
    """
    store = Store(output)
    try:
        planned = plan(spec, None if store.local is None else store.local / SHARED, command, store.begun())
        ids = [cell.id for cell in planned.cells]
        failed: dict[str, str] = {}
        with store.opened(planned.record):
            # A cell whose pictures are damaged is computed again as a whole, since they come of the same maps.
            finished = store.finished(ids) - store.damaged_pictures(ids)
            if not store.has_photos():
                store.write_pictures(PHOTOS, photos(planned.spec))
            done = len(finished)
            advance(done, len(ids))
            for outcome in runner(planned.spec, [cell for cell in planned.cells if cell.id not in finished]):
                if isinstance(outcome.finished, Finished):
                    gave = outcome.finished
                    store.write(outcome.cell.id, gave.rows, gave.pictures, gave.answers, gave.notes)
                elif outcome.error is not None:
                    failed[outcome.cell.id] = outcome.reason
                done += 1
                advance(done, len(ids))
    finally:
        inputs.forget()
        images_of.cache_clear()
    return replace(Results.read(output), failed=failed)
