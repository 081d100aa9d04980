"""Tables on terminals and in pipes: no name is cut, and none is split without need."""

from rich.console import Console
from rich.table import Table

from pellucid.cli import terminal
from pellucid.cli.terminal import show_whole


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
