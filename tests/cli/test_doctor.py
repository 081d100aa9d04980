"""``pellucid doctor``: what is whole, what is not and what to do, without changing anything."""

import os
import shutil

import pandas as pd
import pytest
import torch
from typer.testing import CliRunner

from pellucid.cli.program import app
from pellucid.errors import DamagedFileWarning
from pellucid.experiments.bulk import read_maps, write_maps
from pellucid.experiments.runners import benchmark
from pellucid.experiments.spec import MapsSpec, read_spec
from pellucid.files import alone, replace_file, sealed
from pellucid.training.checkpoints import Checkpoint, Checkpoints
from pellucid.training.classifiers import save_weights
from tests.tables import SMALL_SPEC


def asked(place):
    """The exit code, and the lines; nothing is changed."""
    before = everything(place)
    ended = CliRunner().invoke(app, ["doctor", str(place)])
    assert everything(place) == before
    return ended.exit_code, ended.stdout.splitlines() + ended.stderr.splitlines()


def everything(place):
    paths = [place, *place.rglob("*")] if place.exists() else []
    return {path: (path.stat().st_mtime_ns, path.read_bytes() if path.is_file() else None) for path in paths}


def flip(path, place=-20):
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(bytes(content))


@pytest.fixture
def run(tmp_path):
    benchmark(read_spec(None, SMALL_SPEC), tmp_path / "run")
    return tmp_path / "run"


def test_a_whole_run_is_whole(run):
    code, lines = asked(run)
    assert code == 0
    assert lines == [f"{run}: whole: 2 parts, 2 picture files, 1 run"]


@pytest.mark.parametrize("folder", ["parts", "pictures"])
def test_each_damaged_part_is_named_and_the_same_command_mends_it(run, folder):
    path = min((run / folder).iterdir())
    flip(path, 40)
    code, lines = asked(run)
    assert code == 1
    assert lines[0].startswith(f"{path}: ")
    assert lines[0].endswith("; the same command computes it anew")
    with pytest.warns(DamagedFileWarning):
        benchmark(read_spec(None, SMALL_SPEC), run)
    assert asked(run)[0] == 0


@pytest.mark.parametrize("place", [0, 40, -20])
def test_a_damaged_run_json_is_named(run, place):
    flip(run / "run.json", place)
    code, lines = asked(run)
    assert code == 1
    assert lines[0].startswith(f"{run}/run.json: ")
    assert lines[0].endswith("; the same command writes it anew")


def test_what_is_missing_foreign_or_left_over_is_told_with_what_to_do(run):
    parts = sorted((run / "parts").iterdir())
    parts[0].rename(run / "parts" / "other.parquet")
    (run / "parts" / f".{parts[0].name}.{'0' * 16}").write_bytes(b"begun")
    code, lines = asked(run)
    assert code == 1
    assert sorted(lines) == sorted(
        [
            f"{run}: 1 cell not computed yet; the same command goes on",
            f"{run}/parts/other.parquet: none of this run's; it is never read; delete it",
            f"{run}/parts/.{parts[0].name}.{'0' * 16}: a draft; left by a command that was killed; the same "
            "command clears it away, or delete it",
            f"{run}: whole beside that: 1 part, 2 picture files, 1 run",
        ]
    )


def test_what_a_report_would_refuse_is_told(run):
    (run / "ratings.jsonl").write_text("no rating\n")
    code, lines = asked(run)
    assert code == 1
    assert "ratings.jsonl, line 1, is no rating" in lines[0]
    (run / "ratings.jsonl").unlink()
    (run / "ratings.jsonl").mkdir()
    code, lines = asked(run)
    assert code == 1
    assert lines[0].startswith(f"{run}: ")
    assert lines[0].endswith("no report can be written before")
    assert CliRunner().invoke(app, ["report", str(run)]).exit_code == 2


def test_each_of_several_runs_is_read_as_a_report_does(run):
    shutil.copytree(run, run.parent / "sick")
    flip(min((run / "parts").iterdir()), 40)
    (run.parent / "sick" / "ratings.jsonl").mkdir()
    code, lines = asked(run.parent)
    assert code == 1
    assert any("no report can be written before" in line and "sick" in line for line in lines)


def test_a_command_that_is_writing_is_told(run):
    with alone(run / ".lock", run):
        code, lines = asked(run)
    assert code == 1
    assert lines[0] == f"{run}: a command is writing here; ask again when that has ended"


def test_shards_of_maps_are_verified_and_the_same_command_mends_them(tmp_path):
    out = tmp_path / "maps"
    (out / "maps").mkdir(parents=True)
    drafts = [
        out / f".run.json.{'0' * 16}",
        out / "maps" / f".a.parquet.{'0' * 16}",
    ]  # of a command that was killed
    for draft in drafts:
        draft.write_bytes(b"begun")
    spec = MapsSpec(models=["shapes-resnet"], images={"source": "shapes:6"}, methods=["edges"], images_per_cell=2)
    write_maps(spec, out)
    assert not [draft for draft in drafts if draft.exists()]
    assert asked(out) == (0, [f"{out}: whole: 1 run, 3 shards, 1 values file"])
    first, second, third = sorted((out / "maps").iterdir())
    before = read_maps(out)
    flip(first, len(first.read_bytes()) // 4)
    second.rename(out / "maps" / "other.parquet")
    third.unlink()
    code, lines = asked(out)
    assert code == 1
    assert lines[0].startswith(f"{first} is damaged (")
    assert lines[0].endswith("; remove it and run the same command again")
    assert lines[1:] == [
        f"{out}/maps/other.parquet: none of this run's; delete it, for it is read with the others",
        f"{out}: 2 shards not computed yet; the same command goes on",
        f"{out}: whole beside that: 1 run, 1 values file",
    ]
    first.unlink()
    (out / "maps" / "other.parquet").unlink()
    flip(out / "run.json")
    assert asked(out)[1][0].startswith(f"{out}/run.json: ")
    with pytest.warns(DamagedFileWarning, match="run.json cannot be used"):
        write_maps(spec, out)
    assert asked(out)[0] == 0
    pd.testing.assert_frame_equal(read_maps(out), before)
    (out / "run.json").unlink()
    write_maps(spec, out)
    assert asked(out)[0] == 0


def test_what_explain_wrote_is_verified(tmp_path):
    command = ["explain", "shapes:2", "--model", "shapes-resnet", "-o", str(tmp_path / "out")]
    assert CliRunner().invoke(app, command).exit_code == 0
    whole = "2 attribution files, 1 figure, 2 maps, 1 page, 2 photos, 1 table, 1 values file"
    assert asked(tmp_path / "out") == (0, [f"{tmp_path}/out: whole: {whole}"])
    picture = next((tmp_path / "out").rglob("maps/**/*.png"))
    flip(picture)
    code, lines = asked(tmp_path / "out")
    assert code == 1
    assert lines[0] == (
        f"{picture}: was damaged since it was written; move it away, and the same command computes it anew"
    )
    refused = CliRunner().invoke(app, command)
    assert refused.exit_code == 2
    assert f"{picture} is not as the run there wrote it" in refused.stderr
    picture.unlink()
    assert CliRunner().invoke(app, command).exit_code == 0
    assert asked(tmp_path / "out")[0] == 0


def test_each_of_several_faults_is_named_and_what_is_whole_is_counted(tmp_path):
    out = tmp_path / "out"
    command = ["explain", "shapes:3", "--model", "shapes-resnet", "-o", str(out)]
    assert CliRunner().invoke(app, command).exit_code == 0
    figure, picture = next(out.glob("figure*.png")), out / "maps" / "shape-1" / "gradient" / "input-original.png"
    figure.unlink()
    flip(picture)
    (out / "report.html").write_bytes((out / "report.html").read_bytes()[:100])
    for foreign in ("foo.txt", "maps/mine.png"):
        (out / foreign).write_text("mine")
    code, lines = asked(out)
    assert code == 1
    moved = "was damaged since it was written; move it away, and the same command computes it anew"
    foreign = "none of this run's; nothing reads it; move it away, or delete it"
    assert sorted(lines[:-1]) == sorted(
        [
            f"{figure}: missing; the same command computes it anew",
            f"{picture}: {moved}",
            f"{out}/report.html: {moved}",
            f"{out}/foo.txt: {foreign}",
            f"{out}/maps/mine.png: {foreign}",
        ]
    )
    whole = "3 attribution files, 2 maps, 2 photos, 1 table, 1 values file"
    assert lines[-1] == f"{out}: whole beside that: {whole}"
    for path in (picture, out / "report.html", out / "foo.txt", out / "maps" / "mine.png"):
        path.unlink()
    assert CliRunner().invoke(app, command).exit_code == 0
    assert asked(out)[0] == 0


def test_a_damaged_run_json_of_explain_is_named(tmp_path):
    command = ["explain", "shapes:1", "--model", "shapes-resnet", "-o", str(tmp_path / "out")]
    assert CliRunner().invoke(app, command).exit_code == 0
    flip(tmp_path / "out" / "run.json", 40)
    code, lines = asked(tmp_path / "out")
    assert code == 1
    assert lines[0].startswith(f"{tmp_path}/out/run.json: ")
    assert lines[0].endswith("; give the same command again: it writes it anew, or says what to move away")
    refused = CliRunner().invoke(app, command)
    assert "or move what is there" in " ".join(refused.stderr.split())


def test_a_foreign_file_in_a_run_is_named_and_what_report_writes_is_none(run):
    assert CliRunner().invoke(app, ["report", str(run)]).exit_code == 0
    (run / "foo.txt").write_text("mine")
    code, lines = asked(run)
    assert code == 1
    assert lines == [
        f"{run}/foo.txt: none of this run's; nothing reads it; move it away, or delete it",
        f"{run}: whole beside that: 2 parts, 2 picture files, 1 run",
    ]


@pytest.mark.parametrize("name", ["../mine", "/dev/zero", "pipe", "missing"])
def test_a_name_read_from_a_file_leads_nowhere_else(tmp_path, name):
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "out").mkdir()
    os.mkfifo(tmp_path / "out" / "pipe")
    replace_file(tmp_path / "out" / "run.json", sealed({"made_by": "pellucid", "digests": {name: "0"}}))
    code, lines = asked_without_reading(tmp_path / "out")
    assert code == 1
    assert name in lines[0]
    assert "damaged since" not in lines[0]


def asked_without_reading(place):
    ended = CliRunner().invoke(app, ["doctor", str(place)])
    return ended.exit_code, ended.stdout.splitlines()


def test_weights_and_checkpoints_are_verified(tmp_path):
    path = tmp_path / "weights.safetensors"
    save_weights(torch.nn.Linear(3, 2), path, {"classes": ["a", "b"]})
    kept = Checkpoints(path.with_suffix(".checkpoint"), {"seed": 0})
    kept.write(1, Checkpoint.of({}, network=torch.nn.Linear(3, 2).state_dict()))
    assert asked(path) == (0, [f"{path}: whole: 1 checkpoint, 1 values file, 1 weights file"])
    flip(path, -2)
    flip(tmp_path / "weights.checkpoint" / "epoch-00001.safetensors", -2)
    code, lines = asked(path)
    assert code == 1
    assert [line.partition(": ")[0] for line in lines[:2]] == [
        str(path),
        str(tmp_path / "weights.checkpoint" / "epoch-00001.safetensors"),
    ]


@pytest.mark.parametrize("place", ["nothing", "folder", "memory://nothing"])
def test_what_is_no_run_is_refused(tmp_path, place):
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "cat.jpg").write_text("none")
    where = place if ":" in place else str(tmp_path / place)
    ended = CliRunner().invoke(app, ["doctor", where])
    assert ended.exit_code == 2
    assert ended.stderr.startswith("error: there is no ")


def test_a_run_at_a_url_is_verified():
    url = "memory://doctored/run"
    benchmark(read_spec(None, SMALL_SPEC), url)
    ended = CliRunner().invoke(app, ["doctor", url])
    assert ended.stdout == f"{url}: whole: 2 parts, 2 picture files, 1 run\n"
    assert ended.exit_code == 0
