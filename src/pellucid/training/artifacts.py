"""What trainings share, each made once and kept in a file: networks, ranks and results."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock
from torch import Tensor
from torch.utils.data import Dataset

from ..errors import DamagedFileWarning
from ..files import FILES, file_digest, replace_file, sealed, told_whole, writable
from ..models.zoo import LoadedModel
from .batches import preprocess_of
from .checkpoints import remove_checkpoints
from .classifiers import save_weights, train
from .degradation import open_ranks, write_ranks
from .hyperparameters import Hyperparameters

VALUES = "values"  # in sealed files: what was computed


@dataclass(frozen=True)
class Artifacts:
    """The files of trainings in a folder of their own.

    Each is made by the first that asks and taken from its file by all others, other processes too, so that
    trainings may run anywhere and in any order.
    """

    folder: Path

    def once(self, done: Path, make: Callable[[], None]) -> dict[str, Any]:
        """Make what the sealed file ``done`` tells of unless it is there and whole; one process at a time.

        What was damaged is said, and made anew.
        """
        locks = self.folder / ".locks"
        with writable(done.parent):
            for folder in (done.parent, locks):
                folder.mkdir(parents=True, exist_ok=True)
        # Others that ask for the same wait here, and then find it made.
        with FileLock(locks / "-".join(done.relative_to(self.folder).parts)):
            found = self._told(done)
            if found is None:
                make()
                found = self._told(done)
            assert found is not None
            return found

    def _told(self, done: Path) -> dict[str, Any] | None:
        """What a sealed file tells; None if it, or a file that it tells of, is missing or damaged."""
        if not done.exists():
            return None
        try:
            return told_whole(done)
        except (OSError, ValueError) as error:
            warnings.warn(DamagedFileWarning(f"{done}: {error}; it is made anew"), stacklevel=3)
            return None

    def result(self, name: str, compute: Callable[[Path], Mapping[str, Any]]) -> dict[str, Any]:
        """Plain values that ``compute`` trains for, with a folder for its checkpoints."""
        done = self.folder / "results" / f"{name}.json"

        def make() -> None:
            # The result comes first, then its checkpoints go: in between both are there, and nothing is lost.
            replace_file(done, sealed({VALUES: compute(self._checkpoint(name))}))
            remove_checkpoints(self._checkpoint(name))

        found = self.once(done, make)
        values: dict[str, Any] = found.get(VALUES, found)
        return values

    def network(
        self,
        name: str,
        untrained: Callable[[], LoadedModel],
        sets: tuple[Dataset[Any], Dataset[Any]],
        recipe: Hyperparameters,
        seed: int,
    ) -> Path:
        """The file of a trained network; ``untrained`` makes what it starts from, the sets train and score it."""
        path = self.folder / "networks" / f"{name}.safetensors"

        def make() -> None:
            checkpoint, loaded = self._checkpoint(name), untrained()
            preprocess = preprocess_of(loaded)
            report = train(loaded.model, *sets, recipe, seed, preprocess, checkpoint, score_each_epoch=False)
            known = {"model": loaded.name, "classes": list(loaded.classes or ()), "accuracy": report.accuracy}
            known |= {"preprocess": preprocess.as_dict(), "epochs": recipe.epochs, "seed": seed}
            save_weights(loaded.model, path, known)
            remove_checkpoints(checkpoint)

        self.once(path.with_suffix(".json"), make)  # written last
        return path

    def ranks(self, name: str, parts: Iterable[Tensor], count: int) -> Tensor:
        """The ranks (count, ...) of maps that come in parts, mapped from their file."""
        path = self.folder / "ranks" / f"{name}.npy"
        done = path.with_suffix(".json")

        def make() -> None:
            write_ranks(path, parts, count)
            replace_file(done, sealed({FILES: {path.name: file_digest(path)}}))

        self.once(done, make)
        return open_ranks(path)

    def _checkpoint(self, name: str) -> Path:
        """Where a training's state is kept until its result is."""
        return self.folder / "checkpoints" / name
