"""A folder that a command writes: it takes its place whole, and nothing that is not its own is removed."""

import json

import pytest

from pellucid.cli.output import staged, write_facts
from pellucid.errors import OutputNotWritable


def write_run(folder, name="map.png"):
    with staged(folder) as draft:
        (draft / name).write_text("new")
        write_facts(draft, {"made_by": "pellucid"})


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
    with pytest.raises(OutputNotWritable, match="choose another folder or empty it"):
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
    with pytest.raises(OutputNotWritable, match="choose another folder or empty it"):
        write_run(run)
    assert everything(run.parent) == before


def test_a_link_that_comes_while_a_command_runs_is_not_followed(run):
    (run.parent / "folder").mkdir()
    (run.parent / "folder" / "kept.txt").write_text("mine")
    with staged(run) as draft:
        write_facts(draft, {"made_by": "pellucid"})
        (run / "map.png").unlink()
        (run / "map.png").symlink_to(run.parent / "folder")
    assert (run.parent / "folder" / "kept.txt").read_text() == "mine"
    assert [path.name for path in run.iterdir()] == ["run.json"]


@pytest.mark.parametrize(
    "told",
    [{"made_by": "another", "files": ["map.png"]}, {"files": ["map.png"]}, {"made_by": "pellucid"}, [], "run"],
)
def test_a_run_json_of_another_program_is_not_trusted(run, told):
    (run / "run.json").write_text(json.dumps(told))
    before = everything(run.parent)
    with pytest.raises(OutputNotWritable, match="holds files but no run of pellucid"):
        write_run(run)
    assert everything(run.parent) == before


def test_a_draft_has_a_name_of_its_own(tmp_path):
    with staged(tmp_path / "run") as one, staged(tmp_path / "run") as other:
        assert one != other
    assert [path.name for path in tmp_path.iterdir()] == ["run"]
