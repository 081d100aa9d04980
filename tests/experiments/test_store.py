"""Runs in a folder or at a URL: what is there is whole, foreign things are refused, nothing is computed twice."""

import errno
import io
import json
import multiprocessing
import os
import random
import signal
import subprocess
import sys
import time
import warnings
from pathlib import Path

import fsspec
import pandas as pd
import pyarrow.parquet
import pytest
import torch

from pellucid import catalog
from pellucid.errors import (
    DamagedFileWarning,
    EmptyMapWarning,
    InvalidData,
    OutdatedWarning,
    OutputNotWritable,
    RuleNotApplied,
    differing,
    first_difference,
)
from pellucid.experiments import runners
from pellucid.experiments.cells import table as as_table
from pellucid.experiments.record import Answered, Note, with_answers
from pellucid.experiments.runners import benchmark, inline
from pellucid.experiments.spec import read_spec
from pellucid.experiments.store import CHECKSUM, NOTED, ROWS, Results, Store, checksum, one_table
from pellucid.findings.statistics import Statistics
from pellucid.findings.wording import results_notes
from pellucid.metrics.base import Metric
from pellucid.metrics.noise import TotalVariation
from pellucid.models.zoo import load_model


def spec(**changed):
    content = {
        "models": ["shapes-resnet"],
        "images": {"source": "shapes:4"},
        "methods": ["random", "gradient"],
        "layers": ["input", "layer2.0"],
        "metrics": ["total_variation", "raw_total_variation"],
        "images_per_cell": 2,
        "pictures": 1,
    }
    return read_spec(None, content | changed)


def files(folder):
    return sorted(str(path.relative_to(folder)) for path in Path(folder).rglob("*") if path.is_file())


def parts(folder):
    return sorted((Path(folder) / "parts").glob("*.parquet"))


@pytest.fixture
def computed(monkeypatch):
    """The ids of the cells computed."""
    ids = []

    def counted(spec, cell):
        ids.append(cell.id)
        return run_cell(spec, cell)

    run_cell = runners.run_cell
    monkeypatch.setattr(runners, "run_cell", counted)
    return ids


def test_a_run_is_run_json_and_one_part_for_each_cell(tmp_path):
    results = benchmark(spec(), tmp_path / "run", command="what was typed")
    facts = json.loads((tmp_path / "run" / "run.json").read_text())
    assert len(facts["cells"]) == 4
    maps = [f"pictures/{cell}.parquet" for cell in facts["cells"] if "00000" in cell]
    expected = [
        "run.json",
        *(f"parts/{cell}.parquet" for cell in facts["cells"]),
        "pictures/photos.parquet",
        *maps,
    ]
    assert [name for name in files(tmp_path / "run") if name != ".lock"] == sorted(expected)
    assert facts["command"] == "what was typed"
    assert facts["layers"] == {"shapes-resnet": ["input", "layer2.0"]}
    assert facts["images"] == [f"shape-{index}" for index in range(4)]
    assert facts["spec"]["methods"] == ["random", "gradient"]
    assert facts["metrics"]["total_variation"] == {
        "name": "total_variation",
        "axis": "noise",
        "unit": "variation per pixel",
        "higher_is_better": False,
        "paper": TotalVariation.paper,
        "undefined": TotalVariation.undefined,
        "of_model": False,
        "by_training": False,
        "ends": [0, None],
    }
    assert json.loads(results.record.content()) == facts
    assert results.missing == []
    assert len(results.table) == 4 * 2 * 2 * 2
    assert results.pictures["kind"].tolist() == ["photo"] + ["map"] * 4
    assert results.failed == {}
    assert {note.warning for note in results.notes} == {"Lattice"}


def test_results_are_read_without_torch(tmp_path):
    benchmark(spec(), tmp_path / "run")
    program = (
        "import sys; from pellucid.experiments.store import Results;"
        f"print(len(Results.read({str(tmp_path / 'run')!r}).table), 'torch' in sys.modules)"
    )
    result = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert result.stdout.split() == ["32", "False"]


def test_rows_stand_in_the_plans_order_and_texts_are_categories(tmp_path):
    backwards = benchmark(spec(), tmp_path / "a", runner=lambda spec, cells: inline(spec, cells[::-1])).table
    pd.testing.assert_frame_equal(backwards, benchmark(spec(), tmp_path / "b").table, check_exact=True)
    assert backwards["image"].tolist()[::16] == ["shape-0", "shape-2"]
    assert backwards["method"].unique().tolist() == ["random", "gradient"]
    assert backwards["method"].dtype == "category"
    assert pyarrow.parquet.read_schema(parts(tmp_path / "a")[0]).equals(ROWS)


def test_any_file_system_will_do(tmp_path):
    there = benchmark(spec(), "memory://runs/one")
    pd.testing.assert_frame_equal(there.table, benchmark(spec(), tmp_path / "run").table, check_exact=True)
    pd.testing.assert_frame_equal(Results.read("memory://runs/one").pictures, there.pictures)
    memory = fsspec.filesystem("memory")
    name = memory.ls("/runs/one/parts", detail=False)[0]
    memory.pipe_file(name, memory.cat_file(name)[:100])
    with pytest.warns(DamagedFileWarning, match="cannot be used"):
        assert len(Results.read("memory://runs/one").table) == 24
    with pytest.warns(DamagedFileWarning, match="cannot be used"):
        assert len(benchmark(spec(), "memory://runs/one").table) == 32
    with pytest.raises(OutputNotWritable, match="holds the results of another spec: seed is 0 there and 1 here"):
        benchmark(spec(seed=1), "memory://runs/one")


@pytest.mark.parametrize("url", ["nothing-there", "memory://nothing/there"])
def test_no_run_no_results(tmp_path, monkeypatch, url):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidData, match="there is no run of pellucid benchmark in"):
        Results.read(url)


@pytest.mark.parametrize("kind", ["pipe", "device"])
def test_what_is_no_regular_file_is_refused_and_not_waited_for(tmp_path, kind):
    place = tmp_path / "run.json"
    os.mkfifo(place) if kind == "pipe" else place.symlink_to("/dev/zero")
    program = f"from pellucid.experiments.store import Results; Results.read({str(tmp_path)!r})"
    ended = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert ended.returncode == 1
    assert "InvalidData: " in ended.stderr
    assert "regular" in ended.stderr


def test_an_unknown_kind_of_url_is_refused():
    with pytest.raises(InvalidData, match="gopher://x cannot be opened"):
        Results.read("gopher://x")


# Going on.


def test_a_finished_run_computes_nothing(tmp_path, computed):
    first = benchmark(spec(), tmp_path / "run")
    assert len(computed) == 4
    written = {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*.*")}
    states = []
    again = benchmark(spec(), tmp_path / "run", advance=lambda done, total: states.append((done, total)))
    assert len(computed) == 4
    assert states == [(4, 4)]
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "run").rglob("*.*")} == written
    pd.testing.assert_frame_equal(first.table, again.table, check_exact=True)


def test_torn_and_foreign_parts_are_no_parts(tmp_path, computed):
    whole = benchmark(spec(), tmp_path / "run").table
    torn, empty, foreign, kept = parts(tmp_path / "run")
    torn.write_bytes(torn.read_bytes()[:-20])
    empty.write_bytes(b"")
    pd.DataFrame({"other": [1]}).to_parquet(foreign)
    (kept.parent / "mine.parquet").write_bytes(kept.read_bytes())
    (kept.parent / f".{torn.name}.0123456789abcdef").write_bytes(b"draft")
    others = [tmp_path / "run" / "mine" / ".table.parquet.bak", kept.parent / ".table.parquet.bak"]
    (tmp_path / "run" / "mine").mkdir()
    for other in others:
        other.write_bytes(b"the user's own")
    with pytest.warns(DamagedFileWarning, match="cannot be used"):
        found = Results.read(tmp_path / "run")
    assert len(found.table) == 8
    assert len(found.missing) == 3
    computed.clear()
    with pytest.warns(DamagedFileWarning, match="cannot be used"):
        again = benchmark(spec(), tmp_path / "run")
    assert sorted(computed) == sorted(path.stem for path in (torn, empty, foreign))
    pd.testing.assert_frame_equal(again.table, whole, check_exact=True)
    assert [path.name for path in kept.parent.glob(".*")] == [".table.parquet.bak"]
    assert all(other.read_bytes() == b"the user's own" for other in others)


def test_a_verdict_is_of_all_images_each_counted_once(tmp_path):
    """25 of 30 alike are fair, though the first cell's 12 of 16 are poor; two methods tell of the same images."""
    cells = [(method, *one) for method in ("a", "b") for one in ((0, 100.0, 12, 16), (16, 50.0, 13, 14))]
    told = [
        Answered(model="net", variant="sur", start=start, points=points, same=same, count=count)
        for _, start, points, same, count in cells
    ]
    record = benchmark(spec(), tmp_path / "run").record
    found = with_answers(record, told)
    [sentence] = found.noticed["net"]
    assert "by 5.0 points on average and predicts as the original for 25 of 30 images: a fair" in sentence
    assert found.poor == {"net": ()}
    first = with_answers(record, told[:1])
    assert first.poor == {"net": ("sur",)}
    assert "for 12 of 16 images: a poor" in first.noticed["net"][0]


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pellucid.errors.DamagedFileWarning")
def test_what_parts_tell_of_a_variant_is_right_or_they_are_missing(tmp_path):
    run, generator = tmp_path / "run", random.Random(0)
    whole = benchmark(spec(variants=["forward"]), run)
    [sentence] = whole.record.noticed["shapes-resnet"]
    assert "under forward the network is another" in sentence
    assert "of 4 images" in sentence
    path = parts(run)[0]
    content = path.read_bytes()
    begin = content.index(b"pellucid.answered")
    for place in (begin + generator.randrange(160) for _ in range(60)):
        path.write_bytes(flipped(path, place))
        found = Results.read(run)
        assert found.missing or found.record.noticed == whole.record.noticed
        path.write_bytes(content)


def flipped(path, place):
    """The file's content, with one byte of it turned over."""
    content = bytearray(path.read_bytes())
    content[place % len(content)] ^= 0xFF
    return bytes(content)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::pellucid.errors.DamagedFileWarning")
def test_a_flipped_byte_never_gives_other_values(tmp_path):
    """The values are right, or the cell counts as missing: of any byte of a part, of pictures or of run.json."""
    run, generator = tmp_path / "run", random.Random(0)
    whole = benchmark(spec(), run)
    files = [parts(run)[0], sorted((run / "pictures").glob("shapes*.parquet"))[0], run / "run.json"]
    of_part = (whole.table["method"] == "gradient") & whole.table["image"].isin(["shape-0", "shape-1"])
    others = whole.table[~of_part]
    noticed = 0
    for path in files:
        content = path.read_bytes()
        for _ in range(50):
            path.write_bytes(flipped(path, generator.randrange(1 << 30)))
            try:
                found = Results.read(run)
            except InvalidData as error:
                assert path.name == "run.json", error  # noqa: PT017 - the other files never end a reading
                noticed += 1
            else:
                expected = others if found.missing else whole.table
                assert found.table.astype(str).equals(expected.reset_index(drop=True).astype(str))
                assert len(found.table) == 32 - 8 * len(found.missing)
                noticed += bool(found.missing) or len(found.pictures) < len(whole.pictures)
            path.write_bytes(content)
    assert noticed > 115  # what is not read, such as a writer's name, may change


@pytest.mark.filterwarnings("ignore::pellucid.errors.DamagedFileWarning")
def test_damage_is_mended_by_the_same_command(tmp_path, computed):
    run = tmp_path / "run"
    whole = benchmark(spec(), run)
    first, *_ = parts(run)
    picture = next(path for path in sorted((run / "pictures").glob("shapes*")) if path.stem != first.stem)
    (run / "run.json").write_text((run / "run.json").read_text()[:200])
    first.write_bytes(flipped(first, 300))
    picture.write_bytes(flipped(picture, 300))
    computed.clear()
    again = benchmark(spec(), run)
    assert sorted(computed) == sorted([first.stem, picture.stem])
    pd.testing.assert_frame_equal(again.table, whole.table, check_exact=True)
    pd.testing.assert_frame_equal(again.pictures, whole.pictures)
    assert Results.read(run).record == whole.record
    other = benchmark(spec(seed=1), tmp_path / "other")
    first.write_bytes(parts(tmp_path / "other")[0].read_bytes())
    assert len(Results.read(run).missing) == 1  # another run's part, whole as it is
    assert len(other.missing) == 0


def killed_later(path):
    torch.set_num_threads(1)
    benchmark(slow(), path)


def slow():
    return spec(
        images={"source": "shapes:8"}, images_per_cell=1, methods=["random", "smoothed(gradient, samples=4)"]
    )


@pytest.mark.slow
def test_a_run_killed_again_and_again_ends_as_if_undisturbed(tmp_path, computed):
    undisturbed = benchmark(slow(), tmp_path / "undisturbed")
    total = len(undisturbed.record.cells)
    computed.clear()
    run = tmp_path / "run"
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(["pellucid.experiments.runners"])
    moments = random.Random(0)
    finished = {}
    for least in (1, 3, 6):  # parts after which the process is killed, at a random moment
        process = server.Process(target=killed_later, args=(str(run),))
        process.start()
        deadline = time.monotonic() + 60
        while len(parts(run)) < least and time.monotonic() < deadline and process.is_alive():
            time.sleep(0.001)
        time.sleep(moments.uniform(0, 0.06))
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert process.exitcode == -signal.SIGKILL
        now = {path: path.stat().st_mtime_ns for path in parts(run)}
        assert least <= len(now) < total
        assert finished.items() <= now.items()
        finished = now
    results = benchmark(slow(), run)
    assert len(computed) == total - len(finished)
    assert finished.items() <= {path: path.stat().st_mtime_ns for path in parts(run)}.items()
    pd.testing.assert_frame_equal(results.table, undisturbed.table, check_exact=True)
    pd.testing.assert_frame_equal(results.pictures, undisturbed.pictures, check_exact=True)
    assert (results.record, results.missing) == (undisturbed.record, [])


def test_a_spec_that_decides_no_other_result_goes_on(tmp_path, computed):
    benchmark(spec(), tmp_path / "run")
    changed = spec(max_batch=3, device="cpu", reference="random", name="renamed")
    results = benchmark(changed, tmp_path / "run")
    assert len(computed) == 4
    assert results.record.reference == "random"


def test_a_changed_file_of_a_method_costs_its_own_cells_alone(tmp_path, computed):
    """So it does for each of two runs of one folder, and going back finds what was computed at first."""
    mine = tmp_path / "mine.py"
    text = "def {}(model, images, targets):\n    return {} * images\n\n\nother = own\n"
    mine.write_text(text.format("own", 1))
    asked = spec(methods=["random", f"{mine}:own"])
    first = benchmark(asked, tmp_path / "run")
    done = len(computed)
    mine.write_text(text.format("own", "images"))
    with pytest.warns(OutdatedWarning, match=r"mine.py:own has changed: 2 cells computed anew, all others"):
        second = benchmark(asked, tmp_path / "run")
    assert done == 4
    assert len(computed) == done + 2
    assert second.missing == []
    values = [
        results.values().set_index(["method", "metric", "layer", "image"])["value"] for results in (first, second)
    ]
    assert values[0].loc["random"].equals(values[1].loc["random"])
    assert not values[0].loc["mine.py:own"].equals(values[1].loc["mine.py:own"])
    pd.testing.assert_frame_equal(Results.read(tmp_path / "run").table, second.table)
    mine.write_text(text.format("own", 1))
    with pytest.warns(OutdatedWarning):
        again = benchmark(asked, tmp_path / "run")
    assert len(computed) == done + 2
    pd.testing.assert_frame_equal(again.table, first.table)


def test_a_function_that_is_new_to_a_run_has_not_changed(tmp_path):
    mine = tmp_path / "mine.py"
    mine.write_text("def own(model, images, targets):\n    return images\n\n\nother = own\n")
    benchmark(spec(methods=["random", f"{mine}:own"]), tmp_path / "run")
    with warnings.catch_warnings():
        warnings.simplefilter("error", OutdatedWarning)
        grown = benchmark(spec(methods=["random", f"{mine}:own", f"{mine}:other"]), tmp_path / "run")
    assert grown.missing == []


@pytest.mark.parametrize("place", ["run", "memory://runs/grown"])
def test_a_run_is_given_more_methods_and_variants(tmp_path, computed, place):
    """Only what is new is computed, and the results are those of one run of all."""
    place = place if "://" in place else tmp_path / place
    benchmark(spec(methods=["gradient"]), place)
    more = spec(methods=["random", "gradient"], variants=["original", "backward"])
    assert len(computed) == 2
    grown = benchmark(more, place)
    assert len(computed) == 2 + 6
    whole = benchmark(more, tmp_path / "whole")
    pd.testing.assert_frame_equal(grown.table, whole.table, check_exact=True)
    pd.testing.assert_frame_equal(grown.pictures, whole.pictures)
    assert grown.record.spec == whole.record.spec
    assert grown.record.identity == whole.record.identity
    del computed[:]
    again = benchmark(more, place)
    assert (computed, again.missing) == ([], [])
    with pytest.raises(OutputNotWritable, match=r"methods: random there alone.*name those too"):
        benchmark(spec(methods=["gradient"], variants=["original", "backward"]), place)
    with pytest.raises(OutputNotWritable, match=r"seed is 0 there and 1 here; choose another folder$"):
        benchmark(spec(methods=["random", "gradient", "edges"], variants=["backward", "original"], seed=1), place)


# Refusals.


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"seed": 3}, "seed is 0 there and 3 here"),
        ({"methods": ["random", "edges"]}, "methods: gradient there alone; edges here alone"),
        ({"methods": ["random"]}, "methods: gradient there alone"),
        ({"images": {"source": "shapes:5"}}, r"images.names: .*shape-4.* here alone"),
        (
            {"models": [{"name": "shapes-resnet", "weights": "random"}]},
            "weights and preprocess.shapes-resnet: not the same",
        ),
    ],
)
def test_a_folder_of_another_spec_is_refused(tmp_path, changed, message):
    benchmark(spec(), tmp_path / "run")
    before = files(tmp_path)
    with pytest.raises(OutputNotWritable, match=f"run holds the results of another spec: ({message})"):
        benchmark(spec(**changed), tmp_path / "run")
    assert files(tmp_path) == before


def test_other_folders_and_files_are_refused_and_left_alone(tmp_path):
    (tmp_path / "letters").mkdir()
    (tmp_path / "letters" / "dear.txt").write_text("x")
    (tmp_path / "explained").mkdir()
    (tmp_path / "explained" / "run.json").write_text('{"made_by": "pellucid", "files": []}')
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "run.json").write_text("{")
    before = files(tmp_path)
    for place, error, message in [
        ("letters", OutputNotWritable, "holds dear.txt but no run of pellucid benchmark"),
        ("letters/dear.txt", OutputNotWritable, "holds a file but no run"),
        ("explained", InvalidData, "a run of another command; choose another folder"),
        ("broken", InvalidData, "run.json is damaged"),
    ]:
        with pytest.raises(error, match=message):
            benchmark(spec(), tmp_path / place)
    assert files(tmp_path) == before


def test_a_second_process_is_refused(tmp_path):
    run = tmp_path / "run"
    server = multiprocessing.get_context("forkserver")
    server.set_forkserver_preload(["pellucid.experiments.runners"])
    process = server.Process(target=killed_later, args=(str(run),))
    process.start()
    try:
        while not parts(run) and process.is_alive():
            time.sleep(0.001)
        with pytest.raises(OutputNotWritable, match=r"another process is writing to .*run; wait until it ends"):
            benchmark(slow(), run)
    finally:
        os.kill(process.pid, signal.SIGKILL)
        process.join()
    # The dead process's lock is none.
    assert benchmark(slow(), run).missing == []


def test_a_full_disk_ends_the_run_and_leaves_what_was_finished(tmp_path, computed, monkeypatch):
    whole = benchmark(spec(), tmp_path / "whole").table
    computed.clear()
    sync = os.fsync

    def full(file):
        if len(parts(tmp_path / "run")) == 2 and list((tmp_path / "run" / "parts").glob(".*")):
            os.ftruncate(file, os.fstat(file).st_size // 2)
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        sync(file)

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OutputNotWritable, match=r"run: No space left on device; what was finished before is safe"):
        benchmark(spec(), tmp_path / "run")
    assert len(parts(tmp_path / "run")) == 2
    assert not list((tmp_path / "run" / "parts").glob(".*"))
    monkeypatch.setattr(os, "fsync", sync)
    assert len(computed) == 3
    pd.testing.assert_frame_equal(benchmark(spec(), tmp_path / "run").table, whole, check_exact=True)
    assert len(computed) == 3 + 2


def test_a_full_store_that_tears_what_it_writes_is_found_out(monkeypatch):
    memory = type(fsspec.filesystem("memory"))
    write = memory.pipe_file

    def full(self, path, value, **settings):
        if "/parts/" in path:
            write(self, path, value[: len(value) // 2])
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return write(self, path, value, **settings)

    monkeypatch.setattr(memory, "pipe_file", full)
    with pytest.raises(OutputNotWritable, match="memory://full: No space left on device"):
        benchmark(spec(), "memory://full")
    assert len(fsspec.filesystem("memory").ls("/full/parts")) == 1
    with pytest.warns(DamagedFileWarning, match="cannot be used"):
        assert len(Results.read("memory://full").missing) == 4
    monkeypatch.setattr(memory, "pipe_file", write)
    with pytest.warns(DamagedFileWarning, match="cannot be used"):
        assert len(benchmark(spec(), "memory://full").table) == 32


# What goes wrong with single cells, and what is to be known.


class Picky(TotalVariation):
    """Total variation that fails under a variant until it is told not to."""

    name = "picky"
    failing = True

    def measure(self, case):
        if self.failing and case.variant.name == "backward":
            raise RuleNotApplied("no rule for it")
        return super().measure(case)


def test_a_cell_that_fails_is_told_and_tried_again_while_others_go_on(tmp_path, monkeypatch, computed):
    monkeypatch.setitem(catalog.METRICS, "picky", Picky)
    wanted = spec(metrics=["total_variation", "picky"], variants=["backward", "original"])
    results = benchmark(wanted, tmp_path / "run")
    assert set(results.failed.values()) == {"no rule for it; while measuring picky"}
    assert list(results.failed) == results.missing == [name for name in computed if "backward" in name]
    assert results.table["variant"].unique().tolist() == ["original"]
    computed.clear()
    monkeypatch.setattr(Picky, "failing", False)
    assert benchmark(wanted, tmp_path / "run").failed == {}
    assert len(computed) == 4


class Loud(Metric):
    """A metric whose own explanations are empty."""

    name = "loud"
    axis = "noise"
    unit = "1"
    higher_is_better = True
    paper = "none"

    def measure(self, case):
        case.explain(images=torch.zeros_like(case.images))
        return {}


def test_warnings_of_the_method_are_gathered_and_those_of_metrics_are_not(tmp_path, monkeypatch):
    monkeypatch.setitem(catalog.METRICS, "loud", Loud)
    empty = "rectgrad(tau=1e30)"
    wanted = spec(methods=["gradient", empty], variants=["original", "backward"])
    results = benchmark(wanted, tmp_path / "run")
    expected = results.notes
    assert [note for note in expected if note.method == empty] == [
        Note(EmptyMapWarning.__name__, empty, layer, variant, "shapes-resnet")
        for variant in ("original", "backward")
        for layer in ("input", "layer2.0")
    ]
    assert {results.concerned[note] for note in expected} == {4}  # both cells' images
    # They are kept with the run: what is read later, or finished already, tells them too.
    assert Results.read(tmp_path / "run").notes == expected
    assert benchmark(wanted, tmp_path / "run").notes == expected
    loud = benchmark(spec(methods=["input_x_gradient"], metrics=["loud"]), tmp_path / "loud")
    assert {note.warning for note in loud.notes} <= {"Lattice"}


def test_notes_without_counts_of_earlier_versions_are_read(tmp_path, monkeypatch):
    wanted = spec(methods=["rectgrad(tau=1e30)"], variants=["original"])
    run = benchmark(wanted, tmp_path / "run")
    for path in parts(tmp_path / "run"):
        part = pyarrow.parquet.read_table(path)
        noted = json.dumps([note for note, _ in json.loads(part.schema.metadata[NOTED])]).encode()
        told = {**part.schema.metadata, NOTED: noted, CHECKSUM: checksum(part, noted)}
        pyarrow.parquet.write_table(part.replace_schema_metadata(told), path)
    again = Results.read(tmp_path / "run")
    assert again.notes == run.notes
    assert {*again.concerned.values()} == {0}
    assert "at input, layer2.0 for some images" in results_notes(again)[0]


def test_the_lattice_of_strided_convolutions_is_noticed_where_no_variant_levels_it(tmp_path):
    results = benchmark(spec(), tmp_path / "run")
    assert results.notes == (Note("Lattice", "gradient", "input", "original", "shapes-resnet"),)
    assert results_notes(results) == [
        "gradient shows a lattice at input for all 4 images; strided convolutions print it: "
        "--variant original,backward_with_first levels it"
    ]
    more = benchmark(spec(variants=["original", "backward_with_first"]), tmp_path / "run")
    assert not more.notes


def test_parts_without_warnings_are_as_those_of_earlier_versions(tmp_path):
    benchmark(spec(methods=["random"], variants=["original"]), tmp_path / "run")
    for part in (tmp_path / "run" / "parts").glob("*.parquet"):
        assert b"pellucid.noted" not in pyarrow.parquet.read_schema(part).metadata
    assert Results.read(tmp_path / "run").notes == ()
    assert not Results.read(tmp_path / "run").missing


@pytest.mark.parametrize(
    ("there", "here", "message"),
    [
        ({"a": 1, "b": {"c": [1, 2]}}, {"a": 1, "b": {"c": [1, 3]}}, "b.c[1] is 2 there and 3 here"),
        ({"a": [1]}, {"a": [1, 2]}, "a has 2 here alone"),
        ({"a": [1]}, {}, "a is [1] there and None here"),
        ({"a": 64 * "0"}, {"a": 64 * "1"}, "a: not the same"),
        ({"a": ["x", "y", "z"]}, {"a": ["v", "x", "z", "w"]}, "a: y there alone; v, w here alone"),
        ({"a": ["x", "y"]}, {"a": ["y"]}, "a: x there alone"),
        ({"a": ["x", "y"]}, {"a": ["y", "x"]}, "a: in another order"),
        ({"a": [64 * "0"]}, {"a": [64 * "1"]}, "a[0]: not the same"),
    ],
)
def test_the_first_difference_is_named(there, here, message):
    assert first_difference(there, here) == message


def test_all_differences_are_named_and_of_what_is_the_same_none():
    there, here = {"a": [1, 2, 3], "b": {"c": 4}, "d": 5}, {"a": [1, 0], "b": {"c": 6}, "d": 5}
    assert list(differing(there, here, places=("first", "second"))) == [
        "a[1] is 2 first and 0 second",
        "a has 3 first alone",
        "b.c is 4 first and 6 second",
    ]
    assert list(differing(there, dict(there))) == []


def test_a_table_of_nothing_has_the_columns(tmp_path):
    store = Store(tmp_path)
    assert list(one_table(store.whole("parts", [], ROWS), ROWS)) == ROWS.names
    assert store.finished(["x"]) == set()
    assert pyarrow.parquet.read_schema(io.BytesIO(_parquet())).equals(ROWS)


def _parquet():
    buffer = io.BytesIO()
    pyarrow.parquet.write_table(ROWS.empty_table(), buffer)
    return buffer.getvalue()


# Older layouts of run.json.


OLD = {
    "made_by": "pellucid",
    "hash": "835f",
    "versions": {"python": "3.11.7", "pellucid": "0.1.0"},
    "spec": {"name": "shapes", "images": {"skip": ["a"]}, "reference": None},
    "metrics": {
        "top1": {
            "name": "top1", "axis": "fidelity", "unit": "correct", "higher_is_better": True, "paper": "Table 2",
            "undefined": "", "of_model": True,
        },
        "roar": {
            "name": "roar", "axis": "faithfulness", "unit": "share", "higher_is_better": True, "paper": "ROAR",
            "undefined": "", "of_model": False, "by_training": True,
        },
    },
    "layers": {"shapes-resnet": ["input"]},
    "images": ["shape-0"],
    "cells": ["shapes-resnet_original_variant_00000-00000_f5c04ead9f8d"],
    "identity": {"seed": 0},
    "command": "pellucid benchmark shapes.toml -o shapes",
}  # fmt: skip


def test_a_run_json_written_before_is_read(tmp_path):
    (tmp_path / "run.json").write_text(json.dumps(OLD))
    results = Results.read(tmp_path)
    assert results.missing == OLD["cells"]
    record = results.record
    assert (record.name, record.reference, record.skipped) == ("shapes", None, ("a",))
    assert [metric.counted for metric in record.metrics.values()] == ["image", "training"]
    assert record.layers == {"shapes-resnet": ("input",)}


def test_a_run_json_of_a_layout_that_is_not_known_is_refused_with_what_differs(tmp_path):
    (tmp_path / "run.json").write_text(json.dumps({**OLD, "layers": ["input"]}))
    with pytest.raises(
        InvalidData, match=r"run.json is of another layout than .*: layers: input should be a valid"
    ):
        Results.read(tmp_path)
    (tmp_path / "run.json").write_text(json.dumps({name: of for name, of in OLD.items() if name != "metrics"}))
    with pytest.raises(InvalidData, match=r"another layout than this version's: metrics: field required; read it"):
        Results.read(tmp_path)


def test_what_had_an_empty_text_in_earlier_versions_has_none():
    """The method and the layer of what grades a variant as a whole."""
    known = {"model": "net", "variant": "original", "metric": "top1", "image": "a", "value": 1.0}
    rows = [known | {"method": of, "layer": of} for of in ("", None, "gradient")]
    found = one_table({"cell": as_table(rows, ROWS)}, ROWS)
    assert found["method"].isna().tolist() == found["layer"].isna().tolist() == [True, True, False]
    assert "" not in found["method"].cat.categories


def test_what_earlier_versions_called_an_image_run_0_is_a_training(tmp_path):
    (tmp_path / "run.json").write_text(json.dumps(OLD))
    (tmp_path / "parts").mkdir()
    known = {"model": "shapes-resnet", "variant": "original", "layer": "input", "value": 0.5}
    rows = [known | {"method": "gradient", "metric": "roar", "image": f"run {run}"} for run in (0, 11)]
    rows.append(known | {"method": "", "layer": "", "metric": "top1", "image": "run 1"})
    part = as_table(rows, ROWS).drop_columns("training")
    pyarrow.parquet.write_table(part, tmp_path / "parts" / f"{OLD['cells'][0]}.parquet")
    results = Results.read(tmp_path)
    assert results.missing == []
    assert results.table["training"].tolist() == [0, 11, pd.NA]
    assert results.table["image"].isna().tolist() == [True, True, False]
    assert Statistics.of(results).values.columns.tolist() == [0, 11, "run 1"]
    assert results.values(metric="roar")["training"].tolist() == [0, 11]
    assert results.values(metric="top1")["method"].tolist() == [None]


def test_parts_of_earlier_versions_have_no_column_of_targets_and_are_read(tmp_path, computed):
    run = benchmark(spec(), tmp_path / "run")
    assert set(run.table["target"].dropna()) <= set(load_model("shapes-resnet").classes)
    assert run.table["target"].notna().all()
    for path in (tmp_path / "run" / "parts").iterdir():
        part = pyarrow.parquet.read_table(path)
        told, older = dict(part.schema.metadata), part.drop_columns(["target", "training"])
        told.pop(NOTED, None)
        older = older.replace_schema_metadata({**told, CHECKSUM: checksum(older)})
        pyarrow.parquet.write_table(older, path)
    computed.clear()
    again = benchmark(spec(), tmp_path / "run")
    assert computed == []
    assert again.table["target"].isna().all()
    pd.testing.assert_frame_equal(again.table.drop(columns="target"), run.table.drop(columns="target"))
