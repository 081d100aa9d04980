"""Fixtures shared by all tests."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch

# Commands that tests start run on one thread, as the tests do: workers share the processors.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# What takes long as a whole, beside the single tests that are marked: folders, files and what tests ask for. What
# they try across rooms, on large networks, in a browser or on a cluster, the other tests hold to room by room.
LONG = {
    *("fuzz", "journeys", "reference", "trials"),
    *("test_browser.py", "test_cost.py", "test_ending.py", "test_explain_browser.py", "test_memory.py"),
    *("test_remote.py", "test_site.py", "test_snippets.py", "test_spellings.py"),
}
LONG_FIXTURES = {"cluster"}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark what takes long as slow."""
    for item in items:
        if LONG & {item.path.parent.name, item.path.name} or LONG_FIXTURES & {*getattr(item, "fixturenames", ())}:
            item.add_marker(pytest.mark.slow)


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Small networks are fastest on one thread, above all where processors are shared."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


@pytest.fixture(scope="session")
def real_data() -> Path:
    """The folder of real images and networks; absent for most users, never in continuous integration."""
    folder = os.environ.get("PELLUCID_DATA")
    if not folder:
        pytest.skip("PELLUCID_DATA is not set: no real images or weights here")
    path = Path(folder)
    if not (path / "data").is_dir() or not (path / "weights").is_dir():
        pytest.fail(f"PELLUCID_DATA={folder} has no data and weights folders")
    return path


@pytest.fixture(params=["pipe", "folder", "link to a pipe", "link to a device"])
def irregular(request: pytest.FixtureRequest, tmp_path: Path) -> Callable[[str], Path]:
    """Something at a path of this name that is no file to be read: reading it waits, has no end, or fails."""

    def made(name: str) -> Path:
        path = tmp_path / name
        pipe = tmp_path / "a-pipe"
        match request.param:
            case "pipe":
                os.mkfifo(path)
            case "folder":
                path.mkdir()
            case "link to a pipe":
                os.mkfifo(pipe)
                path.symlink_to(pipe)
            case _:
                path.symlink_to("/dev/zero")
        return path

    return made
