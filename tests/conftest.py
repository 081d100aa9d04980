"""Fixtures shared by all tests."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch


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
