"""A folder that a command writes: it takes its place whole, and nothing that is not its own is removed."""

import json
import subprocess
import sys
from contextlib import suppress

import pytest

from pellucid.cli.output import finished, staged, write_facts
from pellucid.errors import OutputNotWritable


def write_run(folder, name="map.png"):
    with staged(folder) as draft:
        (draft / name).write_text("new")
        write_facts(draft, {"made_by": "pellucid"})


KILLED = """
import os, sys
from pathlib import Path
from pellucid.cli import output
folder, place = Path(sys.argv[1]), int(sys.argv[2])
moves = []
def dying(call):
    def moved(*given, **named):
        if len(moves) == place:
            os._exit(9)
        moves.append(given)
        return call(*given, **named)
    return moved
os.replace = dying(os.replace)
Path.unlink = dying(Path.unlink)
with output.staged(folder) as draft:
    (draft / "map.png").write_text("newer")
    (draft / "second.png").write_text("newer")
    output.write_facts(draft, {"made_by": "pellucid"})
    if place < 0:
        os._exit(9)
"""


@pytest.mark.slow
@pytest.mark.parametrize("place", [-1, 0, 1, 2, 3, 4])
@pytest.mark.parametrize("before", ["nothing", "files", "run"])
def test_a_killed_command_can_be_started_again(tmp_path, before, place):
    folder = tmp_path / "run"
    if before != "nothing":
        folder.mkdir()
    if before == "run":
        write_run(folder)
        (folder / "old.png").write_text("mine")
    subprocess.run([sys.executable, "-c", KILLED, str(folder), str(place)], check=False)
    write_run(folder, "last.png")
    names = sorted(path.name for path in folder.iterdir())
    assert names == sorted(["last.png", "run.json", *(["old.png"] if before == "run" else [])])
    assert [path.name for path in tmp_path.iterdir()] == ["run"]  # no draft, no lock


def test_a_draft_of_a_running_process_is_let_alone(tmp_path):
    (tmp_path / "run").mkdir()
    with staged(tmp_path / "run") as draft:
        (draft / "map.png").write_text("first")
        write_run(tmp_path / "run", "second.png")
        assert (draft / "map.png").read_text() == "first"
        (tmp_path / "run" / "second.png").unlink()
        (tmp_path / "run" / "run.json").unlink()


def everything(folder):
    return {path: path.read_bytes() if path.is_file() else None for path in folder.rglob("*")}


@pytest.fixture
def run(tmp_path):
    """A run in a folder, with files beside it that are not its own."""
    (tmp_path / "mine.txt").write_text("mine")
    write_run(tmp_path / "run")
    return tmp_path / "run"


def test_a_run_takes_the_place_of_an_earlier_one(run):
    (run / "notes.txt").write_text("mine")
    write_run(run, "other.png")
    assert sorted(path.name for path in run.iterdir()) == ["notes.txt", "other.png", "run.json"]


@pytest.mark.parametrize(
    "name",
    [
        "..",
        ".",
        "",
        "../mine.txt",
        "../run",
        "sub/map.png",
        "{parent}",
        "{parent}/mine.txt",
        "/",
        "a\0b",
        None,
        3,
        [],
    ],
)
def test_a_name_that_no_run_writes_is_never_removed(run, name):
    name = name.format(parent=run.parent) if isinstance(name, str) else name
    (run / "run.json").write_text(json.dumps({"made_by": "pellucid", "files": ["map.png", name]}))
    before = everything(run.parent)
    with pytest.raises(OutputNotWritable, match="choose another folder, or move what is there"):
        write_run(run)
    assert everything(run.parent) == before


@pytest.mark.parametrize("name", ["map.png", "run.json"])
@pytest.mark.parametrize("target", ["mine.txt", "folder"])
def test_a_link_is_never_followed(run, name, target):
    (run.parent / "folder").mkdir()
    (run.parent / "folder" / "kept.txt").write_text("mine")
    if name == "run.json" and target == "mine.txt":
        (run.parent / target).write_text((run / name).read_text())
    (run / name).unlink()
    (run / name).symlink_to(run.parent / target)
    before = everything(run.parent)
    with pytest.raises(OutputNotWritable, match="choose another folder, or move what is there"):
        write_run(run)
    assert everything(run.parent) == before


def test_a_link_that_comes_while_a_command_runs_is_kept_and_not_followed(run):
    (run.parent / "folder").mkdir()
    (run.parent / "folder" / "kept.txt").write_text("mine")

    def link():
        (run / "map.png").unlink()
        (run / "map.png").symlink_to(run.parent / "folder")

    with pytest.raises(OutputNotWritable, match=r"it names 'map\.png', which no run writes"):
        write_maps(run, meanwhile=link)
    assert (run.parent / "folder" / "kept.txt").read_text() == "mine"
    assert sorted(path.name for path in run.iterdir()) == ["map.png", "run.json"]


def write_maps(folder, key="", names=("maps/a.png", "maps/b.png"), meanwhile=lambda: None):
    with staged(folder, key) as draft:
        for name in names:
            (draft / name).parent.mkdir(exist_ok=True)
            (draft / name).write_text("new")
        write_facts(draft, {"made_by": "pellucid"}, key)
        meanwhile()


@pytest.mark.parametrize("key", ["", "0" * 16])
@pytest.mark.parametrize(
    ("name", "how"),
    [
        ("maps/a.png", "is not as the run there wrote it"),
        ("maps/mine.png", "is not of the run there"),
        ("maps/deep/mine.txt", "is not of the run there"),
        ("maps/link", "is not of the run there"),
    ],
)
def test_a_file_of_the_users_within_a_run_is_named_and_kept(tmp_path, key, name, how):
    run = tmp_path / "run"
    write_maps(run, key)
    (run / name).parent.mkdir(exist_ok=True)
    if name == "maps/link":
        (run / name).symlink_to(tmp_path)
    else:
        (run / name).write_text("mine")
    before = everything(tmp_path)
    begun = False
    with pytest.raises(OutputNotWritable) as told, staged(run, key):
        begun = True
    assert str(told.value) == f"{run / name} {how}; choose another folder or move this file"
    assert not begun
    assert everything(tmp_path) == before
    (run / name).unlink()
    write_maps(run, key)


@pytest.mark.parametrize("key", ["", "0" * 16])
@pytest.mark.parametrize("name", ["maps/mine.png", "report.html", "maps"])
def test_a_file_of_the_users_that_comes_while_a_command_runs_is_kept(tmp_path, key, name):
    run = tmp_path / "run"
    write_maps(run, key, ["maps/a.png"] if name == "maps/mine.png" else [])
    with pytest.raises(OutputNotWritable) as told:
        write_maps(run, key, ["maps/a.png", "report.html"], lambda: (run / name).write_text("mine"))
    assert str(told.value).startswith(f"{run / name} is not of ")
    assert (run / name).read_text() == "mine"
    assert (run / "run.json").exists()


@pytest.mark.parametrize("name", ["report.html", ".hidden"])
def test_a_file_where_no_run_was_is_named(tmp_path, name):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / name).write_text("mine")
    with pytest.raises(OutputNotWritable, match=f"holds {name}, which this command did not write"):
        write_run(tmp_path / "run")


def test_a_run_of_another_key_is_refused(tmp_path):
    write_maps(tmp_path / "run", "0" * 16)
    before = everything(tmp_path)
    for key in ("1" * 16, ""):
        with pytest.raises(OutputNotWritable, match="holds a finished run of another request"):
            write_maps(tmp_path / "run", key)
    assert everything(tmp_path) == before
    assert finished(tmp_path / "run", "1" * 16) is None
    assert finished(tmp_path / "run", "0" * 16)["made_by"] == "pellucid"
    (tmp_path / "run" / "maps" / "b.png").unlink()
    assert finished(tmp_path / "run", "0" * 16) is None
    write_maps(tmp_path / "run", "0" * 16, ["maps/c.png"])
    assert [path.name for path in (tmp_path / "run" / "maps").iterdir()] == ["c.png"]


@pytest.mark.parametrize(
    "told",
    [{"made_by": "another", "files": ["map.png"]}, {"files": ["map.png"]}, {"made_by": "pellucid"}, [], "run"],
)
def test_a_run_json_of_another_program_is_not_trusted(run, told):
    (run / "run.json").write_text(json.dumps(told))
    before = everything(run.parent)
    with pytest.raises(OutputNotWritable, match=r"holds run\.json, which this command did not write"):
        write_run(run)
    assert everything(run.parent) == before


def test_a_file_that_a_kill_cut_short_goes_when_the_command_goes_on(tmp_path):
    with suppress(KeyboardInterrupt), staged(tmp_path / "run", "0" * 16) as draft:
        for name in (".kept/state.json", "maps/a.png", f"maps/.b.png.{'0' * 16}", f".kept/.c.{'1' * 16}"):
            (draft / name).parent.mkdir(exist_ok=True)
            (draft / name).write_bytes(b"begun")
        raise KeyboardInterrupt
    with staged(tmp_path / "run", "0" * 16) as draft:
        kept = {path.relative_to(draft).as_posix() for path in draft.rglob("*") if path.is_file()}
        assert kept == {".kept/state.json", "maps/a.png"}


def test_a_draft_has_a_name_of_its_own(tmp_path):
    with staged(tmp_path / "run") as one, staged(tmp_path / "run") as other:
        assert one != other
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
