"""One run, and its page."""

from pathlib import Path

import pytest

from pellucid.experiments.store import Results
from pellucid.report.benchmark_page import benchmark_page
from tests.tables import plausible


@pytest.fixture(scope="session")
def run() -> Results:
    return plausible()


@pytest.fixture(scope="session")
def page(run, tmp_path_factory) -> Path:
    path = tmp_path_factory.mktemp("report") / "report.html"
    path.write_text(benchmark_page(run))
    return path
