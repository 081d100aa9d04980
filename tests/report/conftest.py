"""One run, and its page."""

import os
from pathlib import Path

import pytest
from filelock import FileLock

from pellucid.experiments.store import Results
from pellucid.report.benchmark_page import benchmark_page
from tests.tables import plausible


@pytest.fixture(scope="session")
def run() -> Results:
    return plausible()


@pytest.fixture(scope="session")
def page(run, tmp_path_factory) -> Path:
    """Drawn by the first process of a test run that asks."""
    own = tmp_path_factory.getbasetemp()
    path = (own.parent if "PYTEST_XDIST_WORKER" in os.environ else own) / "report.html"
    with FileLock(path.with_suffix(".lock")):
        if not path.exists():
            path.write_text(benchmark_page(run))
    return path
