"""Runs at a URL: a store that fails is asked again, told in one line, and healed gives the same results."""

import errno
import os
from typing import ClassVar

import fsspec
import pandas as pd
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from typer.testing import CliRunner

from pellucid import folders
from pellucid.cli.program import app
from pellucid.errors import InvalidData, OutputNotWritable
from pellucid.experiments.runners import benchmark
from pellucid.experiments.spec import read_spec
from pellucid.experiments.store import Results
from tests.tables import SMALL_SPEC


class NoCredentialsError(Exception):
    """As botocore's, which is no OSError."""


class Store(MemoryFileSystem):
    """A store in memory on which faults are put: (operation, part of the path) -> what is done first."""

    protocol = "failing"
    faults: ClassVar[dict] = {}

    @classmethod
    def _strip_protocol(cls, path):
        return MemoryFileSystem._strip_protocol(str(path).replace("failing://", "memory://", 1))

    def _met(self, operation, path):
        for (where, part), act in list(self.faults.items()):
            if where == operation and part in path:
                return act()
        return None

    def cat_file(self, path, *given, **named):
        torn = self._met("get", path)
        content = super().cat_file(path, *given, **named)
        return content[: len(content) // 2] if torn else content

    def ls(self, path, *given, **named):
        self._met("list", path)
        return super().ls(path, *given, **named)

    def pipe_file(self, path, value, mode="overwrite", **named):
        if mode == "create":
            self._met("create", path)
        self._met("put", path)
        return super().pipe_file(path, value, mode=mode, **named)


fsspec.register_implementation("failing", Store, clobber=True)
URL = "failing://runs/one"


@pytest.fixture(autouse=True)
def _empty(monkeypatch):
    monkeypatch.setattr(Store, "store", {})
    monkeypatch.setattr(Store, "pseudo_dirs", [""])
    monkeypatch.setattr(Store, "faults", {})
    monkeypatch.setattr(folders, "_WAITS", (0.0, 0.0, 0.0))


def spec(**changed):
    return read_spec(None, SMALL_SPEC | changed)


class Fault:
    """Raises an error the first times, or tears what is read."""

    def __init__(self, error, times=1000):
        self.error, self.times, self.met = error, times, 0

    def __call__(self):
        self.met += 1
        if self.met > self.times:
            return None
        if self.error is None:
            return "torn"
        raise self.error


def whole():
    """What an undisturbed run gives."""
    return benchmark(spec(), "memory://undisturbed").table


ERRORS = [
    OSError(errno.EIO, "Internal Server Error (500)"),
    OSError("Service Unavailable (503)"),
    ConnectionResetError(errno.ECONNRESET, os.strerror(errno.ECONNRESET)),
    RuntimeError("cannot connect to endpoint"),
    TimeoutError(),
]
PLACES = [("get", "run.json"), ("get", "parts"), ("list", "parts"), ("put", "run.json"), ("put", "parts")]


def met(errors):
    """Each place with two of the errors, and each error at two places: one function asks again, whatever fails."""
    return [
        (PLACES[(index + shift) % len(PLACES)], errors[index % len(errors)])
        for shift in (0, 2)
        for index in range(len(PLACES))
    ]


@pytest.mark.parametrize(("place", "error"), met(ERRORS), ids=repr)
def test_a_fault_that_passes_changes_nothing(place, error):
    Store.faults[place] = Fault(error, times=3)
    pd.testing.assert_frame_equal(benchmark(spec(), URL).table, whole(), check_exact=True)
    assert Store.faults[place].met > 3


@pytest.mark.parametrize("part", ["run.json", "parts", "pictures"])
def test_what_is_cut_short_is_read_again(part):
    benchmark(spec(), URL)
    Store.faults["get", part] = Fault(None, times=1)
    pd.testing.assert_frame_equal(Results.read(URL).table, whole(), check_exact=True)
    assert Store.faults["get", part].met > 1


STAYING = [
    (ERRORS[0], 4, "Internal Server Error .500.; .*run the same command again once the place answers"),
    (ERRORS[3], 4, "RuntimeError: cannot connect to endpoint; .*run the same command again once"),
    (PermissionError("Access Denied"), 1, "Access Denied; .*give credentials that may (read|write)"),
    (NoCredentialsError("Unable to locate credentials"), 1, "NoCredentialsError: Unable .*give credentials"),
]


@pytest.mark.parametrize(("place", "staying"), met(STAYING), ids=repr)
def test_a_fault_that_stays_is_told_in_one_line_and_healed_changes_nothing(place, staying):
    error, asked, message = staying
    fault = Store.faults[place] = Fault(error)
    kind, verb = (OutputNotWritable, "write to") if place[0] == "put" else (InvalidData, "read")
    with pytest.raises(kind, match=f"cannot {verb} {URL}.*{message}") as raised:
        benchmark(spec(), URL)
    assert fault.met == asked
    assert "\n" not in str(raised.value)
    Store.faults.clear()
    pd.testing.assert_frame_equal(benchmark(spec(), URL).table, whole(), check_exact=True)


def test_a_full_store_says_to_make_room():
    Store.faults["put", "parts"] = Fault(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)))
    with pytest.raises(OutputNotWritable, match=r"No space left on device; .*make room"):
        benchmark(spec(), URL)
    assert Store.faults["put", "parts"].met == 1


@pytest.mark.parametrize("command", [["report", URL], ["benchmark", "--images", "shapes:2", "-o", URL]])
def test_commands_end_with_one_line(command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = ["--model", "shapes-resnet", "--methods", "gradient", "--metrics", "total_variation"]
    Store.faults["get", ""] = Fault(ERRORS[0])
    ended = CliRunner().invoke(app, command + (options if command[0] == "benchmark" else []))
    assert ended.exit_code == 2
    assert ended.stderr.count("\n") == 1
    assert f"error: cannot read {URL}" in ended.stderr


# Two specs at once.


@pytest.mark.parametrize("conditional", [True, False])
def test_of_two_specs_at_once_one_is_refused(conditional):
    outcomes = {}

    def other_is_first():
        """As if another process had claimed the place between the look and the claim."""
        Store.faults.clear()
        outcomes["other"] = benchmark(spec(seed=1), URL).record.hash
        if not conditional:
            raise TypeError("pipe_file() got an unexpected keyword argument 'mode'")

    Store.faults["create", "run.json"] = other_is_first
    with pytest.raises(OutputNotWritable, match=r"holds the results of another spec: .*seed"):
        benchmark(spec(), URL)
    assert Results.read(URL).record.hash == outcomes["other"]
    assert not Results.read(URL).missing


def test_a_run_whose_place_is_taken_meanwhile_fails():
    def taken():
        Store.faults.clear()
        fsspec.filesystem("failing").pipe_file("/runs/one/run.json", other)

    benchmark(spec(seed=1), URL)
    other = fsspec.filesystem("failing").cat_file("/runs/one/run.json")
    Store.store.clear()
    Store.faults["put", "parts"] = taken
    with pytest.raises(OutputNotWritable, match=r"holds the results of another spec: .*seed"):
        benchmark(spec(), URL)
