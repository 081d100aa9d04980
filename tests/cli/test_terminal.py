"""Tables on terminals and in pipes: no name is cut, and none is split without need."""

import re
from pathlib import Path

import pytest
from PIL import Image
from rich.console import Console
from rich.markup import escape
from rich.table import Table
from typer.testing import CliRunner

from pellucid.cli import app, terminal
from pellucid.cli.program import _shown_once
from pellucid.cli.terminal import progress, say, show_left_out, show_noticed, show_whole, visible
from pellucid.errors import InputWarning


def table():
    found = Table("photo", "explained class", "probability", box=None, pad_edge=False)
    found.add_row("a-long-name-of-a-photo.png", "garbage truck", "99.9 %")
    return found


def printed(monkeypatch, capsys, on_terminal, width=80):
    made = Console
    monkeypatch.setattr(
        terminal, "Console", lambda **settings: made(**{"force_terminal": on_terminal, "width": width} | settings)
    )
    show_whole(table(), keys=1)
    return [line.rstrip() for line in capsys.readouterr().out.splitlines()]


EVIL = "a\x1b[2Jb\x9b31mc\rd\x07e\x7f"
SHOWN = "a\\x1b[2Jb\\x9b31mc\\x0dd\\x07e\\x7f"


@pytest.mark.parametrize("on_terminal", [False, True])
def test_controls_in_tables_stand_as_escapes(monkeypatch, capsys, on_terminal):
    made = Console
    monkeypatch.setattr(
        terminal, "Console", lambda **settings: made(**{"force_terminal": on_terminal, "width": 200} | settings)
    )
    found = Table(escape(f"photo {EVIL}"), "class", title=escape(EVIL), caption=escape(EVIL), box=None)
    found.add_row(escape(f"{EVIL}\n"), escape(f"{EVIL}[red]"))
    show_whole(found, keys=1)
    out = re.sub(r"\x1b\[[0-9;]*m", "", capsys.readouterr().out)  # what rich itself colors
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", out)
    assert out.count(SHOWN) == 5
    assert f"{SHOWN}\\x0a" in out
    assert f"{SHOWN}[red]" in out


def test_controls_in_messages_stand_as_escapes(capsys):
    say(f"one {EVIL}\ntwo")
    show_left_out("photo", [f"{EVIL}\nerror: forged"])
    show_noticed([f"{EVIL}\nerror: forged"])
    told = capsys.readouterr()
    assert told.out == f"one {SHOWN}\ntwo\n"
    assert told.err == (f"left out 1 photo:\n  {SHOWN}\\x0aerror: forged\nnote: {SHOWN}\\x0aerror: forged\n")
    assert visible("grüße 猫 \u202f") == "grüße 猫 \u202f"


def test_commands_print_in_one_place():
    for path in Path(terminal.__file__).parent.glob("*.py"):
        found = re.findall(r"typer\.s?echo\(|typer\.secho\(|(?<![\w.])print\(|Console\(", path.read_text())
        assert not found or path.name == "terminal.py", path


@pytest.mark.parametrize(
    "arguments",
    [
        ["explain", f"{EVIL}.png", "--model", "shapes-resnet", "-o", "out"],
        ["explain", "shapes:1", "--model", "shapes-resnet", "--methods", EVIL, "-o", "out"],
        ["explain", "shapes:1", "--model", "shapes-resnet", "--target", EVIL, "-o", "out"],
        ["explain", "shapes:1", "--model", EVIL, "-o", "out"],
        ["explain", "shapes:1", "--limit", EVIL, "-o", "out"],
        ["report", "run", EVIL],
        ["doctor", EVIL],
    ],
)
def test_no_error_sends_a_control_to_the_terminal(tmp_path, monkeypatch, arguments):
    monkeypatch.chdir(tmp_path)
    ended = CliRunner().invoke(app, arguments)
    assert ended.exit_code == 2
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", ended.output)


def test_a_photo_and_a_class_with_controls_are_told_without_them(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Image.new("RGB", (64, 64), "red").save(f"{EVIL}.png")
    (tmp_path / f"bad{EVIL}.png").write_text("no picture")
    names = ",".join(f"{number}{EVIL}" for number in range(10))
    ended = CliRunner().invoke(
        app,
        ["explain", f"{EVIL}.png", f"bad{EVIL}.png", "--model", "cifar-cnn", "--classes", names, "-o", "out"],
    )
    assert ended.exit_code == 1, ended.output
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", ended.output)
    assert ended.stdout.count(SHOWN) >= 2


def test_into_a_pipe_a_table_is_one_whatever_its_width(monkeypatch, capsys):
    lines = printed(monkeypatch, capsys, False, 20)
    assert len(lines) == 2
    assert lines[1].split("  ")[0] == "a-long-name-of-a-photo.png"
    assert lines[1].endswith("99.9 %")


def test_a_narrow_terminal_gets_further_tables_that_begin_with_the_name(monkeypatch, capsys):
    whole, parts = (printed(monkeypatch, capsys, True, width) for width in (80, 45))
    assert len(whole) == 2
    assert [line.startswith("a-long-name-of-a-photo.png") for line in parts] == [False, True, False, True]
    assert "garbage truck" in parts[1]
    assert "99.9 %" in parts[3]


def test_a_log_is_told_once_a_minute_how_far_it_is(monkeypatch, capsys):
    seconds = iter([0, 1, 60, 119, 120])
    monkeypatch.setattr(terminal, "monotonic", lambda: next(seconds))
    with progress() as show:
        for done in (1, 2.5, 3, 4):
            show("explaining", done, 9)
    assert capsys.readouterr().err.splitlines() == ["explaining: 2 of 9", "explaining: 4 of 9"]


@pytest.mark.parametrize(
    ("category", "file", "told"),
    [
        (
            UserWarning,
            "/venv/lib/python3.11/site-packages/captum/attr/deconvolution.py",
            "note: captum warns: hooks\n",
        ),
        (UserWarning, "/venv/lib/python3.11/site-packages/six.py", "note: six warns: hooks\n"),
        (InputWarning, "/venv/lib/python3.11/site-packages/captum/attr/deconvolution.py", "note: hooks\n"),
        (UserWarning, "/venv/lib/python3.11/site-packages/pellucid/passes.py", "note: hooks\n"),
        (UserWarning, "model.py", "note: hooks\n"),
    ],
)
def test_a_warning_of_another_library_is_told_as_its(capsys, category, file, told):
    _shown_once()("hooks", category, file, 66)
    assert capsys.readouterr().err == told
