"""How commands end: by signals, and by code of the user's that ends the process."""

from __future__ import annotations

import signal
import subprocess
import sys
from functools import partial

import pytest

SPEC = """
models = ["shapes-resnet"]
images = {source = "shapes:2"}
methods = ["gradient"]
metrics = ["total_variation"]
"""


def run(tmp_path, act, *arguments):
    program = f"""
import os, signal, sys
from pellucid.experiments import runners

def ended(*given, **named):
    {act}

runners.plan = ended
from pellucid.cli.program import main
main()
"""
    command = [sys.executable, "-c", program, *arguments]
    # What runs the tests may ignore interrupts, as a job in the background does, and what it starts would, too.
    listening = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    return subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, check=False, preexec_fn=listening)


@pytest.mark.parametrize("name", ["SIGTERM", "SIGHUP", "SIGINT"])
def test_a_signal_ends_a_command_in_one_line(tmp_path, name):
    (tmp_path / "spec.toml").write_text(SPEC)
    ended = run(tmp_path, f"os.kill(os.getpid(), signal.{name})", "benchmark", "spec.toml", "-o", "run")
    assert ended.returncode == 128 + getattr(signal, name)
    assert ended.stderr.splitlines()[-1] == "stopped; the same command goes on"
    assert "Traceback" not in ended.stderr


def test_code_of_the_users_that_exits_is_an_error(tmp_path):
    (tmp_path / "spec.toml").write_text(SPEC)
    ended = run(tmp_path, "sys.exit(0)", "benchmark", "spec.toml", "-o", "run")
    assert ended.returncode == 2
    assert "called sys.exit(0)" in ended.stderr
