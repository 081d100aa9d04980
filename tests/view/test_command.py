"""The command: what it opens, what it writes, what it refuses."""

import re
import signal
import subprocess
import sys
import urllib.request
from functools import partial

from typer.testing import CliRunner

from pellucid.cli import app

# What runs the tests may ignore interrupts, as a job in the background does, and what it starts would, too.
INTERRUPTIBLE = partial(signal.signal, signal.SIGINT, signal.SIG_DFL)


def invoked(*arguments):
    return CliRunner().invoke(app, ["view", *map(str, arguments)])


def test_a_run_is_written_as_one_page(run, tmp_path):
    result = invoked(run, "--export", tmp_path / "run.html")
    assert result.exit_code == 0, result.output
    assert "maps/0/1/2/2" in (tmp_path / "run.html").read_text()


def test_the_page_is_answered_until_it_is_ended(run):
    command = [sys.executable, "-u", "-m", "pellucid", "view", str(run), "--port", "0", "--no-open"]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes, preexec_fn=INTERRUPTIBLE) as process:
        url = re.search(r"http://127.0.0.1:\d+/", process.stdout.readline())[0]
        with urllib.request.urlopen(url, timeout=20) as answer:
            assert b"Maps of shapes-resnet" in answer.read()
        process.send_signal(signal.SIGINT)
        assert process.wait(20) == 0
        assert process.stdout.read() + process.stderr.read() == "ended\n"


def test_what_cannot_be_shown_is_said_in_one_line(tmp_path):
    for arguments, wrong in (
        (["nowhere.jpg", "--model", "shapes-resnet"], "there is no file or folder nowhere.jpg"),
        (["--export", tmp_path / "a.html"], "writes the page of a RUN"),
        (["shapes:1", "--model", "shapes-resnet", "--methods", "gradeint"], "unknown method 'gradeint'"),
        (["shapes:1", "--model", "shapes-resnet", "--channels", "red"], "channels='red'"),
    ):
        result = invoked(*arguments)
        assert result.exit_code == 2
        assert wrong in result.output


def test_what_is_known_of_a_model_is_said_as_elsewhere(monkeypatch):
    """Its page is not served here."""

    def ended(page, server, no_open):
        server.server_close()
        page.close()

    monkeypatch.setattr("pellucid.cli.view.serve", ended)
    result = invoked("shapes:1", "--model", "squeezenet1_1", "--weights", "random", "--port", 0)
    assert result.exit_code == 0, result.output
    assert result.stderr == "note: squeezenet1_1 has random weights; give --weights FILE or DEFAULT\n"
    assert invoked("--port", 0).stderr == ""
