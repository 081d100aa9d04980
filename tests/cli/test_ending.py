"""How commands end: by signals, and by code of the user's that ends the process."""

from __future__ import annotations

import os
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


# Each way to end has a process of its own, forked from one that has imported what all of them need.
PROGRAM = """
import os, signal, sys
from pellucid.cli.program import main
from pellucid.experiments import runners

acts, codes = sys.argv[1:], []
for number, act in enumerate(acts):
    child = os.fork()
    if not child:
        os.dup2(os.open(f"{number}.txt", os.O_WRONLY | os.O_CREAT), 2)
        runners.plan = lambda *given, **named: exec(act)
        sys.argv[1:] = ["benchmark", "spec.toml", "-o", f"run-{number}"]
        main()
        os._exit(0)
    codes.append(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
print(*codes)
"""
SIGNALS = ("SIGTERM", "SIGHUP", "SIGINT")


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    """The code and what was told of commands that end by each signal, and by code that exits."""
    folder = tmp_path_factory.mktemp("ending")
    (folder / "spec.toml").write_text(SPEC)
    acts = {name: f"os.kill(os.getpid(), signal.{name})" for name in SIGNALS} | {"exit": "sys.exit(0)"}
    # What runs the tests may ignore interrupts, as a job in the background does, and what it starts would, too.
    listening = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *acts.values()],
        capture_output=True,
        text=True,
        cwd=folder,
        check=True,
        preexec_fn=listening,
    )
    told = [(folder / f"{number}.txt").read_text() for number in range(len(acts))]
    return dict(zip(acts, zip(map(int, done.stdout.split()), told, strict=True), strict=True))


@pytest.mark.parametrize("name", SIGNALS)
def test_a_signal_ends_a_command_in_one_line(ended, name):
    code, told = ended[name]
    assert code == 128 + getattr(signal, name)
    assert told.splitlines()[-1] == "stopped; the same command goes on"
    assert "Traceback" not in told


def test_code_of_the_users_that_exits_is_an_error(ended):
    code, told = ended["exit"]
    assert code == 2
    assert "called sys.exit(0)" in told


@pytest.mark.parametrize("command", [("list", "methods"), ("explain", "shapes:1", "--no-pictures", "-o", "out")])
def test_a_closed_pipe_ends_a_command_quietly(tmp_path, command):
    """As that of head, which reads some lines and ends: a table, and whole lines."""
    reader, writer = os.pipe()
    os.close(reader)
    model = ["--model", "shapes-resnet"] if command[0] == "explain" else []
    ended = subprocess.run(
        [sys.executable, "-m", "pellucid", *command, *model],
        stdout=writer,
        stderr=subprocess.PIPE,
        text=True,
        cwd=tmp_path,
    )
    os.close(writer)
    assert ended.returncode == 1
    assert not [line for line in ended.stderr.splitlines() if not line.startswith("note: ")]
    assert (tmp_path / "out/run.json").exists() == (command[0] == "explain")
