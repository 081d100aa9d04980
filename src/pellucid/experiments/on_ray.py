"""Cells on a Ray cluster: a task for each, some under way at once, and those of dead workers done again."""

from __future__ import annotations

import json
import os
import secrets
import signal
import socket
import threading
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from functools import lru_cache
from hashlib import sha256
from itertools import islice
from pathlib import Path
from typing import Any

import torch

from ..errors import InvalidCluster, InvalidParameter, LayerWarning, PellucidError, first_difference, require_count
from ..files import file_digest, writable
from ..folders import Folder
from ..passes import count_rows, counting
from .record import versions
from .runners import AnyCell, Outcome, Runner, inline
from .spec import Spec, paths_of, with_absolute_paths

_TRIES = 4  # of a cell whose worker dies
_ANSWER, _START = 10.0, 300.0  # seconds that an address has to answer, and that workers have to start
_AHEAD = 2  # cells given to each place, so that none waits for the next


def on_ray(address: str | None = None, cpus: int = 1) -> Runner:
    """A runner that has a Ray cluster compute cells: ``benchmark(spec, output, runner=on_ray("head:6379"))``.

    Each cell has ``cpus`` processors, as many threads, and a GPU if the cluster has any and the spec does not say
    ``device = "cpu"``. Results are those of ``inline`` with as many threads on the same kind of processor. A cell
    whose worker or machine dies is computed again, on another one if need be, up to four times. Before anything is
    computed, every machine is asked whether it has the same versions, and sees the same files.

    Args:
        address: ``"HOST:PORT"`` of a cluster's head; None is ``RAY_ADDRESS``, a cluster that this machine is part
            of, or else one of this machine alone, which ends with the run. Where Ray is connected already, that
            connection is used.
        cpus: processors of each cell.

    Raises:
        InvalidCluster: Ray is not installed, the address does not answer, or a machine has other versions, does
            not see a file, or cannot write where cells write.
    """
    require_count("cpus", cpus)
    ray = _imported()

    def run(spec: Spec, cells: Sequence[AnyCell]) -> Iterator[Outcome]:
        if cells:
            with _connected(ray, address):
                yield from _Cluster(ray, cpus, _gpus(ray, spec)).outcomes(with_absolute_paths(spec), cells)

    return run


def _imported() -> Any:
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is told to anybody
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")  # what later versions do, which else warn
    try:
        import ray
    except ImportError as error:
        raise InvalidCluster("--runner ray needs Ray; run: pip install 'pellucid[ray]'") from error
    return ray


@contextmanager
def _connected(ray: Any, address: str | None) -> Iterator[None]:
    """A connection to a cluster, which ends with the work; one of the caller's is left as it is."""
    address = address or os.environ.get("RAY_ADDRESS")
    if address is not None and address not in ("auto", "local"):
        # Ray itself would try for a long time to reach an address at which nothing listens.
        _require_answer(address)
    if ray.is_initialized():
        there = ray.get_runtime_context().gcs_address
        if address not in (None, "auto", there):
            raise InvalidCluster(f"Ray is connected to {there}, not {address}; call ray.shutdown() first")
        yield
        return
    try:
        with _own_signals():
            ray.init(address, logging_level="ERROR", log_to_driver=False)
    except Exception as error:  # Ray's have no common base
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InvalidCluster(f"cannot use the Ray cluster at {address or 'this machine'}: {reason}") from error
    try:
        yield
    finally:
        ray.shutdown()


@contextmanager
def _own_signals() -> Iterator[None]:
    """Keep what SIGTERM does here, which Ray would replace."""
    handler = signal.getsignal(signal.SIGTERM)
    try:
        yield
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, handler)


def _require_answer(address: str) -> None:
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if not host or not port.isdecimal():
        raise InvalidParameter(f"--address {address}: write it as HOST:PORT, such as 10.0.0.1:6379")
    try:
        socket.create_connection((host.strip("[]"), int(port)), _ANSWER).close()
    except (OSError, OverflowError) as error:
        reason = getattr(error, "strerror", None) or str(error)
        raise InvalidCluster(
            f"no Ray cluster answers at {address} ({reason}); start one there with: ray start --head"
        ) from error


def _gpus(ray: Any, spec: Spec) -> int:
    """Whether each cell has a GPU."""
    there = ray.cluster_resources().get("GPU", 0) >= 1
    if spec.device.startswith("cuda") and not there:
        raise InvalidCluster(
            f"device = {spec.device!r}, and no machine of the Ray cluster has a GPU; leave it out"
        )
    return int(there and spec.device != "cpu")


@dataclass(frozen=True)
class _Cluster:
    """A cluster, and what each cell has of it."""

    ray: Any
    cpus: int
    gpus: int

    def outcomes(self, spec: Spec, cells: Sequence[AnyCell]) -> Iterator[Outcome]:
        """What becomes of each cell, as it ends."""
        ray, waiting = self.ray, iter(cells)
        # What all cells share is put into the cluster once, not sent with each.
        given = ray.put((spec, self.checked(spec, cells), self.cpus))
        # Without a bound on the calls of a worker, it keeps what it loaded on a GPU, too.
        settings = {"num_cpus": self.cpus, "num_gpus": self.gpus, "max_retries": _TRIES - 1, "max_calls": 0}
        task = ray.remote(**settings)(_computed)
        pending: dict[Any, AnyCell] = {}
        try:
            while True:
                # This is asked anew each round, since machines come
                # and go; what is far ahead would be lost with one.
                for cell in islice(waiting, max(_AHEAD * self.places() - len(pending), 0)):
                    pending[task.remote(given, cell)] = cell
                if not pending:
                    return
                # The wait is short, so that an interrupt, or a machine that came, is noticed.
                for done in ray.wait(list(pending), timeout=1.0)[0]:
                    yield self.told(done, pending.pop(done))
        finally:
            for reference in pending:
                with suppress(Exception):  # the connection may be what broke
                    ray.cancel(reference, force=True)

    def told(self, reference: Any, cell: AnyCell) -> Outcome:
        """A cell's outcome; its warnings and passes count here."""
        failures = self.ray.exceptions
        try:
            outcome, rows, warned = self.ray.get(reference)
        except failures.RayTaskError as error:
            # The error that the cell's own code raised ends the run, as it does in one process.
            raise error.cause from error
        except failures.RayError as error:
            reason = str(error).strip().partition("\n")[0]
            died = InvalidCluster(
                f"its worker died each of {_TRIES} times; the last: {type(error).__name__}: {reason}"
            )
            return Outcome(cell, error=died)
        count_rows(rows)
        for kind, text in warned:
            warnings.warn(kind(text), stacklevel=2)
        found: Outcome = outcome
        return found

    def machines(self) -> list[Mapping[str, Any]]:
        """The machines that have what a cell needs."""
        needed = {"CPU": self.cpus, "GPU": self.gpus}
        return [
            node
            for node in self.ray.nodes()
            if node["Alive"] and all(node["Resources"].get(name, 0) >= count for name, count in needed.items())
        ]

    def places(self) -> int:
        """How many cells can be computed at once."""
        rooms = [node["Resources"] for node in self.machines()]
        cpus = sum(int(room["CPU"] // self.cpus) for room in rooms)
        return max(1, min(cpus, sum(int(room["GPU"]) for room in rooms)) if self.gpus else cpus)

    def checked(self, spec: Spec, cells: Sequence[AnyCell]) -> _Expected:
        """What every worker must have, after all machines that are there were asked for it."""
        machines = self.machines()
        if not machines:
            needs = f"{self.cpus} processors" + (" and a GPU" if self.gpus else "")
            raise InvalidCluster(f"no machine of the Ray cluster has the {needs} that a cell is to have")
        folders = tuple(sorted({cell.folder for cell in cells if cell.folder}))
        # A folder of the same path may be another disk there, which only a file put in it from here can tell.
        with _marked(folders) as mark:
            expected = _Expected(
                _own_versions(), {str(path): _content(path) for path in paths_of(spec)}, folders, mark
            )
            probe = self.ray.remote(_looked())
            asked = {probe.options(**_on(self.ray, node)).remote(expected.told()): node for node in machines}
            done, silent = self.ray.wait(list(asked), num_returns=len(asked), timeout=_START)
            for reference in done:
                _require_fine(self._answer(reference, asked[reference]), asked[reference])
            for reference in silent:
                _require_fine(
                    f"started no worker within {_START:.0f} s; remove it from the cluster", asked[reference]
                )
        # The marks are gone by then; machines that come later are asked for all else.
        return replace(expected, mark="")

    def _answer(self, reference: Any, node: Mapping[str, Any]) -> str:
        """What a machine finds amiss; nothing of one that went meanwhile."""
        try:
            return str(self.ray.get(reference))
        except self.ray.exceptions.RayError as error:
            is_there = any(one["NodeID"] == node["NodeID"] for one in self.machines())
            return f"cannot start a worker: {str(error).strip().rpartition(chr(10))[2]}" if is_there else ""


def _on(ray: Any, node: Mapping[str, Any]) -> dict[str, Any]:
    """Options of a task for one machine."""
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    # It takes no processor for itself, so that a machine that is busy answers, too.
    return {"num_cpus": 0, "scheduling_strategy": NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)}


def _require_fine(wrong: str, node: Mapping[str, Any]) -> None:
    if wrong:
        raise InvalidCluster(f"the Ray worker at {node['NodeManagerAddress']} {wrong}")


def _looked() -> Any:
    """A task that says what is amiss where it runs; it carries its own code, which a worker may lack."""

    def look(told: dict[str, Any]) -> str:
        try:
            from pellucid.experiments.on_ray import amiss
        except ImportError as error:
            return f"cannot import pellucid ({error}); install there what is installed here"
        return amiss(told)

    return look


# What every worker must have.


@dataclass(frozen=True)
class _Expected:
    """The versions, files by their content, folders that can be written, and the mark that stands in these."""

    versions: Mapping[str, str]
    files: Mapping[str, str]
    folders: tuple[str, ...]
    mark: str

    def told(self) -> dict[str, Any]:
        """It as plain values."""
        return {"versions": self.versions, "files": self.files, "folders": self.folders, "mark": self.mark}


def amiss(told: Mapping[str, Any]) -> str:
    """What differs here from what is ``told`` of the machine where the run began; nothing if all is well."""
    here = _own_versions()
    if here != told["versions"]:
        differing = first_difference({"version": told["versions"]}, {"version": here})
        return f"has other versions: {differing}; install there what is installed here"
    for path, content in told["files"].items():
        found = _content(Path(path))
        if found != content:
            what = "has another content of" if found else "does not see"
            return f"{what} {path}; put it on a disk that all machines share"
    return next(filter(None, (_unwritable(url, told["mark"]) for url in told["folders"])), "")


def _own_versions() -> dict[str, str]:
    """The versions that results depend on; this package's own with its code, which may be under work."""
    code = sha256()
    package = Path(__file__).parents[1]
    for path in sorted(package.rglob("*.py")):
        code.update(path.relative_to(package).as_posix().encode() + path.read_bytes())
    found = versions()
    return found | {"pellucid": f"{found['pellucid']} ({code.hexdigest()[:8]})"}


def _content(path: Path) -> str:
    """A digest of a file's content, or of the names in a folder; nothing if there is neither."""
    try:
        if path.is_dir():
            names = sorted(
                os.path.relpath(os.path.join(at, name), path) for at, _, of in os.walk(path) for name in of
            )
            return sha256("\0".join(names).encode()).hexdigest()
        return file_digest(path)
    except OSError:
        return ""


@contextmanager
def _marked(folders: Sequence[str]) -> Iterator[str]:
    """A mark in each folder, by which others know that it is the same."""
    mark = f".seen-{secrets.token_hex(8)}"
    for url in folders:
        _folder(url).write(mark, b"here")
    try:
        yield mark
    finally:
        for url in folders:
            Folder(url).remove(mark)


def _folder(url: str) -> Folder:
    folder = Folder(url)
    if folder.local is not None:
        with writable(url):
            folder.local.mkdir(parents=True, exist_ok=True)
    return folder


def _unwritable(url: str, mark: str) -> str:
    """What is wrong with a folder that cells write to."""
    if not mark:
        return ""
    own = f"{mark}-{secrets.token_hex(4)}"
    try:
        folder = Folder(url)
        if folder.read(mark) is None:
            return (
                f"does not see {url}, where cells keep files; choose an output on a disk that all machines share"
            )
        folder.write(own, b"")
        folder.remove(own)
    except PellucidError as error:
        return f"cannot use {url}, where cells keep files: {error}"
    return ""


# On a worker.


@lru_cache(maxsize=1)
def _require_same(told: str) -> None:
    """Refuse to compute on a machine that came later and is not like the others; asked once in each process."""
    if wrong := amiss(json.loads(told)):
        raise InvalidCluster(f"the Ray worker at {socket.gethostname()} {wrong}")


def _computed(
    given: tuple[Spec, _Expected, int], cell: AnyCell
) -> tuple[Outcome, int, list[tuple[type[Warning], str]]]:
    """A cell's outcome, the rows of its passes, and its warnings."""
    spec, expected, cpus = given
    _require_same(json.dumps(expected.told()))
    torch.set_num_threads(cpus)
    with counting() as rows, warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        [outcome] = inline(spec, [cell])
    return outcome, sum(rows), [(_known(one.category), str(one.message)) for one in caught]


def _known(kind: type[Warning]) -> type[Warning]:
    """A kind of warning that can be made of a message anywhere."""
    is_plain = kind.__module__ in ("builtins", "pellucid.errors") and not issubclass(kind, LayerWarning)
    return kind if is_plain else UserWarning
