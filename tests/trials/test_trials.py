"""A short trial of faults; ``python -m tests.trials`` runs a long one."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("asked", [["--interrupts=60"], ["--bytes=24"]])
def test_nothing_is_lost_and_nothing_left(asked):
    command = [sys.executable, "-m", "tests.trials", *asked]
    ended = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, check=False)
    assert ended.returncode == 0, ended.stdout + ended.stderr
    assert ", of which 0 went wrong" in ended.stdout
