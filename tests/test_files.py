"""Files come in one move or not at all, and their names are fit for any folder."""

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from pellucid import files
from pellucid.errors import InvalidData, InvalidMap, OutputNotWritable
from pellucid.files import (
    alone,
    file_digest,
    file_name,
    imported_beside,
    is_held,
    read_regular,
    replace_file,
    replaced,
    run_file,
    sealed,
    source_digest,
    told_whole,
    unsealed,
    unsealed_tensors,
)
from pellucid.folders import Folder


def test_a_file_is_whole_or_as_it_was(tmp_path):
    path = tmp_path / "facts.json"
    replace_file(path, b"old")
    with pytest.raises(ZeroDivisionError):
        write_and_fail(path)
    assert path.read_bytes() == b"old"
    with replaced(path) as file:
        file.write(b"new")
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def write_and_fail(path):
    with replaced(path) as file:
        file.write(b"ne")
        file.flush()
        assert path.read_bytes() == b"old"
        raise ZeroDivisionError


def test_a_draft_is_written_through_no_link(tmp_path, monkeypatch):
    monkeypatch.setattr(files.secrets, "token_hex", lambda size: "known")
    victim = tmp_path / "victim"
    victim.write_bytes(b"mine")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / ".page.html.known").symlink_to(victim)
    with pytest.raises(OutputNotWritable, match=r"cannot write .*page\.html"):
        replace_file(tmp_path / "out" / "page.html", b"theirs")
    assert victim.read_bytes() == b"mine"


def test_content_is_on_the_disk_before_the_name_is(tmp_path, monkeypatch):
    done = []
    for name in ("fsync", "replace"):
        whole = getattr(os, name)
        monkeypatch.setattr(os, name, lambda *given, name=name, whole=whole: (done.append(name), whole(*given)))
    replace_file(tmp_path / "file", b"content")
    assert done == ["fsync", "replace", "fsync"]  # the content, the name, and the folder that the name is in


def test_sealed_values_come_back_or_are_refused():
    facts = {"numbers": [1, 2.5], "name": "é"}
    content = sealed(facts)
    assert unsealed(content) == facts
    assert unsealed(b'{"old": 1}') == {"old": 1}
    for place in range(len(content)):
        damaged = bytearray(content)
        damaged[place] ^= 1
        try:
            found = unsealed(bytes(damaged))
        except ValueError:
            continue
        # Only white space between values, or the name of the seal itself, can change unnoticed.
        assert {name: found.get(name) for name in facts} == facts


def test_a_place_is_held_by_one_process(tmp_path):
    lock = tmp_path / "new" / ".lock"
    holder = (
        "import sys, time; from pathlib import Path; from pellucid.files import alone\n"
        "with alone(Path(sys.argv[1]), 'there'):\n    print('held', flush=True); sys.stdin.read()"
    )
    with subprocess.Popen(
        [sys.executable, "-c", holder, str(lock)], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as other:
        assert other.stdout.readline() == "held\n"
        with pytest.raises(OutputNotWritable, match="another process is writing to there"), alone(lock, "there"):
            pass
        other.kill()
    with alone(lock, "there"):
        pass
    with alone(tmp_path / "other" / ".lock", "there"):
        pass
    assert not (tmp_path / "other").exists()


def test_a_digest_follows_the_file(tmp_path):
    path = tmp_path / "file"
    path.write_bytes(b"one")
    first = file_digest(path)
    assert first == file_digest(path) == hashlib.sha256(b"one").hexdigest()
    path.write_bytes(b"other")
    assert file_digest(path) == hashlib.sha256(b"other").hexdigest()


@pytest.mark.parametrize("place", ["missing/file", "a-file/file"])
def test_a_file_that_cannot_be_written_is_named(tmp_path, place):
    (tmp_path / "a-file").write_bytes(b"")
    with pytest.raises(OutputNotWritable, match=r"cannot write .*choose a folder you may write to"):
        replace_file(tmp_path / place, b"content")


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("smoothed(gradient, samples=3)", "smoothed-gradient-samples=3"),
        ("../../etc/passwd", "etc-passwd"),
        ("..", "unnamed"),
        ("", "unnamed"),
        ("a\0b\n/c", "a-b-c"),
    ],
)
def test_names_of_files_stay_in_their_folder(text, name):
    assert file_name(text) == name
    assert Path(file_name(text)).name == name


@pytest.mark.parametrize("kind", ["link", "pipe", "folder"])
def test_a_lock_that_is_no_plain_file_is_refused(tmp_path, kind):
    lock, other = tmp_path / ".lock", tmp_path / "mine"
    other.write_text("mine")
    {"link": lambda: lock.symlink_to(other), "pipe": lambda: os.mkfifo(lock), "folder": lock.mkdir}[kind]()
    with pytest.raises(OutputNotWritable, match=r"\.lock is no plain file"), alone(lock, "there"):
        pass
    assert other.read_text() == "mine"
    assert not is_held(lock)


def test_values_nested_without_end_are_damage():
    with pytest.raises(ValueError, match="nested too deep"):
        unsealed(b'{"a": ' + b"[" * 100_000 + b"]" * 100_000 + b"}")


def test_regular_files_and_links_to_them_are_read(tmp_path):
    (tmp_path / "file").write_bytes(b"content")
    (tmp_path / "link").symlink_to("file")
    assert read_regular(tmp_path / "file") == read_regular(tmp_path / "link") == b"content"
    assert Folder(tmp_path).read("link") == b"content"
    assert Folder(tmp_path).read("nowhere") is None
    with pytest.raises(OSError, match="null"):
        read_regular("a\0b")


def test_pipes_devices_and_folders_are_not_read(irregular):
    path = irregular("some.py")
    for read in (read_regular, file_digest, told_whole):
        with pytest.raises(OSError, match=r"no regular file|Is a directory"):
            read(path)
    with pytest.raises(ValueError, match=r"no regular file|Is a directory"):
        unsealed_tensors(path)
    with pytest.raises(InvalidData, match=r"some.py: (it is no regular file|Is a directory); it should be a file"):
        Folder(path.parent).read(path.name)
    with pytest.raises(InvalidMap, match=r"some.py is no regular file, as a file of methods must be; write"):
        run_file(path, InvalidMap, "file of methods", "function")


def test_what_a_python_file_imports_from_its_folder_belongs_to_it(tmp_path, monkeypatch):
    files = {
        "model.py": "import os, json\nimport helper\nfrom parts import blocks as b\nfrom parts.heads import Head",
        "helper.py": "def f():\n    import deep.er",
        "parts/__init__.py": "",
        "parts/blocks.py": "from . import norms\nfrom .heads import Head",
        "parts/norms.py": "import model",
        "parts/heads.py": "",
        "deep/er.py": "import broken",
        "broken.py": "this is no Python",
        "other.py": "",
        "json.txt": "",
    }
    for name, content in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(content)
    wanted = ["broken.py", "deep/er.py", "helper.py", "parts/__init__.py"]
    wanted += ["parts/blocks.py", "parts/heads.py", "parts/norms.py"]
    model = tmp_path / "model.py"
    assert [one.relative_to(tmp_path).as_posix() for one in imported_beside(model)] == wanted
    before = source_digest(model)
    monkeypatch.chdir(tmp_path)
    assert source_digest(Path("model.py")) == before
    (tmp_path / "other.py").write_text("x = 1")
    assert source_digest(model) == before
    for name in wanted:
        (tmp_path / name).write_text(files[name] + "\n")
        assert source_digest(model) != before, name
        (tmp_path / name).write_text(files[name])
        assert source_digest(model) == before
    assert source_digest(tmp_path / "other.py") == file_digest(tmp_path / "other.py")
