"""Maps of many images: the same wherever images lie, shard by shard, and read again as they were."""

import io
import json
import tarfile
import threading
import time
from dataclasses import asdict, replace
from pathlib import Path

import fsspec
import numpy as np
import pandas as pd
import pyarrow
import pyarrow.parquet
import pytest
import torch
from PIL import Image
from typer.testing import CliRunner

import pellucid as pl
from pellucid.cli.program import app
from pellucid.data.sources import open_images
from pellucid.errors import InvalidData, InvalidParameter, OutputNotWritable, UnknownName
from pellucid.experiments.bulk import MANIFEST, _cut, class_explained, read_maps, score_of, write_maps
from pellucid.experiments.runners import benchmark, inline
from pellucid.experiments.shards import TOLD, Shard, read_ahead
from pellucid.experiments.spec import MapsSpec, read_spec, spec_of
from pellucid.files import unsealed
from pellucid.folders import Folder
from pellucid.models.zoo import load_model
from tests.tables import SMALL_SPEC

COUNT = 7
LAYERS = ["input", "layer2.0"]


def spec(source, **changed):
    wanted = {
        "models": ["shapes-resnet"],
        "methods": ["gradient", "smoothed(gradient, samples=2)"],
        "layers": LAYERS,
    }
    return spec_of(MapsSpec, None, wanted | {"images": str(source), "images_per_cell": 3} | changed)


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Images as files, in a table and in tars, all by the same order."""
    folder = tmp_path_factory.mktemp("photos")
    samples = open_images(f"shapes:{COUNT}")
    (folder / "files").mkdir()
    (folder / "tars").mkdir()
    packed = [io.BytesIO() for _ in samples]
    for number, (sample, content) in enumerate(zip(samples, packed, strict=True)):
        sample.image.save(content, "PNG")
        (folder / "files" / f"{number}.png").write_bytes(content.getvalue())
    for tar, numbers in (("a", range(4)), ("b", range(4, COUNT))):
        with tarfile.open(folder / "tars" / f"{tar}.tar", "w") as file:
            for number in numbers:
                for name, part in (
                    (f"{number}.cls", str(samples[number].label).encode()),
                    (f"{number}.png", packed[number].getvalue()),
                    (f"{number}.json", b"{}"),
                ):
                    about = tarfile.TarInfo(name)
                    about.size = len(part)
                    file.addfile(about, io.BytesIO(part))
    cells = [{"path": f"{number}.png", "bytes": content.getvalue()} for number, content in enumerate(packed)]
    (folder / "table").mkdir()
    pd.DataFrame({"image": cells}).to_parquet(folder / "table" / "all.parquet", row_group_size=2)
    return folder


def values(url, **where):
    found = read_maps(url, **where).drop(columns=["source", "position"])
    keys = ["image", "method", "layer"]
    return found.astype(dict.fromkeys(keys, str)).sort_values(keys, ignore_index=True)


def assert_alike(found, expected):
    """Maps may differ by what their last bit says, since images came in other batches."""
    for one, other in zip(found.pop("map"), expected["map"], strict=True):
        np.testing.assert_allclose(one, other, rtol=0, atol=np.abs(other).max() * 2**-10)
    pd.testing.assert_frame_equal(found, expected.drop(columns="map"), atol=1e-5)


def test_maps_are_those_of_the_methods_in_half_precision(photos, tmp_path):
    run = write_maps(spec(photos / "files"), tmp_path / "maps")
    assert (run.images, run.maps, len(run.shards), run.skipped, run.failed) == (COUNT, COUNT * 4, 3, {}, {})
    found = read_maps(tmp_path / "maps", method="gradient", layer="layer2.0")
    assert list(found["image"]) == [f"{number}.png" for number in range(COUNT)]
    model, preprocess = load_model("shapes-resnet")
    images = torch.stack([preprocess(sample.image) for sample in open_images(photos / "files")])
    shares = model(images).softmax(1)
    maps = pl.heatmap(pl.method("gradient")(model, images, layers="layer2.0")).numpy()
    np.testing.assert_allclose(found["score"], shares.amax(1).detach(), rtol=1e-5)
    for row, exact in zip(found.to_dict("records"), maps, strict=True):
        np.testing.assert_allclose(row["map"], exact, rtol=0, atol=np.abs(exact).max() * (2**-11 + 1e-5))
        assert row["map"].dtype == np.float32


def test_the_smallest_maps_keep_their_values(photos, tmp_path):
    """A gradient of 1e-42 is below what a single can divide by with all its digits."""
    (tmp_path / "faint.py").write_text(
        "import torch\n\n\nclass Faint(torch.nn.Module):\n"
        "    def __init__(self):\n        super().__init__()\n        self.conv = torch.nn.Conv2d(3, 3, 1)\n\n"
        "    def forward(self, x):\n        return self.conv(x).square().mean((2, 3)).double() * 1e-36\n\n\n"
        "def make():\n    torch.manual_seed(0)\n    return Faint().double().eval()\n"
    )
    faint = f"{tmp_path / 'faint.py'}:make"
    asked = {"models": [faint], "methods": ["gradient"], "layers": ["input"], "target": 0}
    write_maps(spec(photos / "files", **asked), tmp_path / "maps")
    row = read_maps(tmp_path / "maps").iloc[0]
    model, preprocess = load_model(faint)
    image = preprocess(open_images(photos / "files")[0].image)[None]
    exact = pl.heatmap(pl.method("gradient")(model, image, 0))[0].numpy()
    assert 1e-43 < np.abs(exact).max() < 1e-40
    np.testing.assert_allclose(row["map"], exact, rtol=0, atol=np.abs(exact).max() * 0.01 + 1e-45)


@pytest.mark.slow
def test_maps_do_not_depend_on_where_images_lie(photos, tmp_path):
    write_maps(spec(photos / "files"), tmp_path / "files")
    expected = values(tmp_path / "files")
    store = fsspec.filesystem("memory")
    store.put(str(photos), "/bulk/photos", recursive=True)
    memory = "memory://bulk/photos"
    places = {
        photos / "tars": 2,
        photos / "table": 3,
        f"{memory}/files": 3,
        f"{memory}/tars": 2,
        f"{memory}/table": 1,
    }
    for number, (place, count) in enumerate(places.items()):
        output = f"memory://bulk/maps{number}" if number % 2 else tmp_path / str(number)
        run = write_maps(spec(place), output)
        assert (len(run.shards), run.skipped, run.failed) == (count, {}, {}), place
        assert_alike(values(output), expected)
    store.rm("/bulk", recursive=True)


def test_labels_of_tars_can_be_explained(photos, tmp_path):
    write_maps(spec(photos / "tars", target="label", layers=["layer2.0"], methods=["gradient"]), tmp_path / "maps")
    names = load_model("shapes-resnet").classes
    labels = [names[sample.label] for sample in open_images(f"shapes:{COUNT}")]
    assert list(read_maps(tmp_path / "maps")["target"]) == labels


def stopped_after(count):
    def runner(wanted, cells):
        for number, outcome in enumerate(inline(wanted, cells)):
            yield outcome
            if number + 1 == count:
                raise KeyboardInterrupt

    return runner


def shards(folder):
    return {path.name: path.stat().st_mtime_ns for path in Path(folder, "maps").glob("*.parquet")}


def test_a_run_that_was_stopped_goes_on_with_the_next_shard(photos, tmp_path):
    write_maps(spec(photos / "files"), tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        write_maps(spec(photos / "files"), tmp_path / "run", runner=stopped_after(1))
    before, computed = shards(tmp_path / "run"), []

    def counted(wanted, cells):
        computed.extend(cells)
        return inline(wanted, cells)

    states = []
    write_maps(
        spec(photos / "files"), tmp_path / "run", runner=counted, advance=lambda *state: states.append(state)
    )
    assert len(before) == 1
    assert len(computed) == 2
    assert states == [(1, 3), (2, 3), (3, 3)]
    assert before.items() <= shards(tmp_path / "run").items()
    pd.testing.assert_frame_equal(read_maps(tmp_path / "run"), read_maps(tmp_path / "whole"), check_exact=True)


def test_what_cannot_be_read_is_named_and_left_out_until_it_is_mended(photos, tmp_path):
    whole = (photos / "tars" / "b.tar").read_bytes()
    source = tmp_path / "source"
    source.mkdir()
    (source / "a.tar").write_bytes((photos / "tars" / "a.tar").read_bytes())
    (source / "b.tar").write_bytes(whole[:2000])
    run = write_maps(spec(source), tmp_path / "maps")
    [message] = run.failed.values()
    assert message.startswith(f"{source}/b.tar is no readable tar (")
    told = unsealed((tmp_path / "maps" / MANIFEST).read_bytes())
    assert (told["images"], told["failed"]) == (4, dict(run.failed))
    start = whole.index(b"\x89PNG")
    (source / "b.tar").write_bytes(whole[:start] + bytes(100) + whole[start + 100 :])
    before = shards(tmp_path / "maps")
    run = write_maps(spec(source), tmp_path / "maps")
    assert list(run.skipped) == ["4.png"]
    assert run.skipped["4.png"].startswith("4.png is no image that can be read")
    (source / "b.tar").write_bytes(whole + bytes(10240))
    run = write_maps(spec(source), tmp_path / "maps")
    assert (run.images, run.skipped, run.failed) == (COUNT, {}, {})
    assert before.items() <= shards(tmp_path / "maps").items()


def test_an_image_that_was_changed_is_explained_anew(photos, tmp_path):
    source = tmp_path / "source"
    source.mkdir()
    for path in (photos / "files").iterdir():
        (source / path.name).write_bytes(path.read_bytes())
    write_maps(spec(source), tmp_path / "maps")
    before = shards(tmp_path / "maps")
    Image.new("RGB", (64, 64), "red").save(source / "4.png")
    write_maps(spec(source), tmp_path / "maps")
    changed = [name for name, when in shards(tmp_path / "maps").items() if before[name] != when]
    assert [name.split("_")[0] for name in changed] == ["000001"]


def test_other_settings_and_other_folders_are_refused(photos, tmp_path):
    write_maps(spec(photos / "files", methods=["edges"]), tmp_path / "maps", command="pellucid maps files maps")
    with pytest.raises(
        OutputNotWritable, match="maps holds other maps: seed is 0 there and 1 here; choose another"
    ):
        write_maps(spec(photos / "files", methods=["edges"], seed=1), tmp_path / "maps")
    with pytest.raises(OutputNotWritable, match=r"files holds 0\.png but no maps"):
        write_maps(spec(photos / "files"), photos / "files")
    way = rf"a run of pellucid maps \(see pellucid show {tmp_path / 'maps'} -o pictures\); name a run of pellucid"
    with pytest.raises(InvalidData, match=way):
        benchmark(read_spec(None, SMALL_SPEC), tmp_path / "maps")
    benchmark(read_spec(None, SMALL_SPEC), tmp_path / "run")
    with pytest.raises(OutputNotWritable, match="run holds a run of another command"):
        write_maps(spec(photos / "files"), tmp_path / "run")
    with pytest.raises(InvalidData, match=r"there are no maps in .*nothing; give the output folder"):
        read_maps(tmp_path / "nothing")
    with pytest.raises(UnknownName, match="unknown column of the maps 'colour'"):
        read_maps(tmp_path / "maps", colour="red")


def test_names_that_no_map_has_are_refused_with_those_there_are(photos, tmp_path):
    out = tmp_path / "maps"
    write_maps(spec(photos / "files"), out)
    with pytest.raises(UnknownName, match=r"unknown layer 'layer4'; did you mean .*layer2\.0"):
        read_maps(out, layer="layer4")
    with pytest.raises(UnknownName, match=r"unknown image 'cat\.png'"):
        read_maps(out, image=["0.png", "cat.png"])
    with pytest.raises(UnknownName, match="unknown variant 'backward'; known: original"):
        read_maps(out, variant="backward", layer="layer2.0")
    found = read_maps(out, layer="layer2.0")
    row = found.iloc[1]
    assert open_images(row["source"])[int(row["position"])].name == row["image"]
    assert len(pl.show(found).pictures) == 2 * COUNT + 1  # two methods and the bar of colors
    (out / "maps" / sorted(path.name for path in (out / "maps").iterdir())[0]).unlink()
    assert {*read_maps(out)["image"]} < {*found["image"]}  # as far as it is there


@pytest.mark.parametrize("told", [None, b"damaged"])
def test_a_lost_run_json_takes_no_maps_of_other_settings_along(photos, tmp_path, told):
    write_maps(spec(photos / "files", methods=["edges"]), tmp_path / "maps")
    (tmp_path / "maps" / "run.json").unlink()
    if told is not None:
        (tmp_path / "maps" / "run.json").write_bytes(told)
    with pytest.raises(OutputNotWritable, match=r"maps/000000_.* of this run; choose another folder"):
        write_maps(spec(photos / "files", methods=["edges"], seed=1), tmp_path / "maps")


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        (
            {"metrics": ["insertion"]},
            "maps in bulk are of one model, by methods that are named, and without metrics",
        ),
        ({"models": ["shapes-resnet", "resnet18"]}, "maps in bulk are of one model"),
        ({"images": {"source": "shapes:4", "every": 2}}, r"of all images of a source; leave out images\.every"),
    ],
)
def test_what_has_no_meaning_for_many_images_is_refused(changed, message):
    with pytest.raises(InvalidParameter, match=message):
        spec("shapes:4", **changed)


def test_a_damaged_shard_is_not_read(photos, tmp_path):
    write_maps(spec(photos / "files", methods=["edges"]), tmp_path / "maps")
    path = sorted((tmp_path / "maps" / "maps").iterdir())[0]
    content = bytearray(path.read_bytes())
    content[len(content) // 4] ^= 1
    path.write_bytes(content)
    with pytest.raises(InvalidData, match=f"{path.name} is damaged .*; remove it and run the same command again"):
        read_maps(tmp_path / "maps")


def test_reading_ahead_keeps_the_order_and_is_bounded():
    begun, used, most = [], [], []
    lock = threading.Lock()

    def read(item):
        with lock:
            begun.append(item)
        time.sleep(0.001 * (item % 3))
        return item

    for item in read_ahead(read, range(50), 3, 4):
        used.append(item)
        most.append(len(begun) - len(used))
    assert used == list(range(50))
    assert 1 <= max(most) <= 5


def test_the_commands_write_maps_and_draw_them(photos, tmp_path):
    (tmp_path / "source").mkdir()
    for path in (photos / "files").iterdir():
        (tmp_path / "source" / path.name).write_bytes(path.read_bytes())
    (tmp_path / "source" / "3.png").write_bytes(b"no image")
    options = ["--model", "shapes-resnet", "--layers", "layer2.0,layer3.0", "--methods", "gradient,gradcam"]
    asked = [str(tmp_path / "source"), str(tmp_path / "maps"), *options]
    by_option = [asked[0], "-o", *asked[1:]]
    # Those behind the first find all finished.
    for command in (["maps", *asked], ["explain", "--bulk", *asked], ["maps", *by_option]):
        ended = CliRunner().invoke(app, command)
        assert ended.exit_code == 1, ended.output
        assert f"24 maps of 6 images in 7 shards, in {tmp_path / 'maps'}" in ended.output
        assert "left out 1 image:\n" in ended.output
        assert "3.png is no image that can be read" in ended.output
    assert json.loads((tmp_path / "maps" / "run.json").read_text())["command"].startswith("pellucid maps ")
    chosen = ["--image", "5.png", "--layer", "layer3.0", "--overlay", "-o", str(tmp_path / "drawn")]
    assert CliRunner().invoke(app, ["show", str(tmp_path / "maps"), *chosen]).exit_code == 0
    assert [path.name for path in (tmp_path / "drawn").iterdir()] == ["000005-5.png"]
    ended = CliRunner().invoke(
        app, ["show", str(tmp_path / "maps"), "--image", "9.png", "-o", str(tmp_path / "no")]
    )
    assert ended.exit_code == 2
    assert "unknown image of the maps in" in ended.output
    both = ["--image", "5.png", "--image", "9.png", "-o", str(tmp_path / "no")]
    ended = CliRunner().invoke(app, ["show", str(tmp_path / "maps"), *both])
    assert ended.exit_code == 2
    assert "'9.png'; did you mean" in ended.output
    assert not (tmp_path / "no").exists()
    (tmp_path / "source" / "5.png").unlink()
    ended = CliRunner().invoke(app, ["show", str(tmp_path / "maps"), *chosen[:2], "-o", str(tmp_path / "more")])
    assert ended.exit_code == 0
    few = ["--limit", "2", "-o", str(tmp_path / "few")]
    assert CliRunner().invoke(app, ["show", str(tmp_path / "maps"), *few]).exit_code == 0
    assert sorted(path.name for path in (tmp_path / "few").iterdir()) == ["000000-0.png", "000001-1.png"]


def test_progress_is_by_images_and_shards_are_small(photos, tmp_path):
    """7 images are 7 shards of 1, so that an interruption loses one of them at most."""
    told = []
    write_maps(spec(photos / "files", images_per_cell=None), tmp_path, tell=lambda *one: told.append(one))
    assert told[0] == ("images", 0, COUNT)
    assert told[-1] == ("images", COUNT, COUNT)
    assert [done for _, done, _ in told] == sorted(done for _, done, _ in told)
    assert len(list((tmp_path / "maps").glob("*.parquet"))) == COUNT
    within = []
    write_maps(
        spec(photos / "files", images_per_cell=COUNT, max_batch=2),
        tmp_path / "one",
        tell=lambda what, done, total: within.append(done),
    )
    assert sorted(set(within)) == [0, 2, 4, 6, 7]


@pytest.mark.parametrize("place", ["files", "table", "tars", "shapes:9"])
def test_a_limit_takes_the_first_images(photos, tmp_path, place):
    source = place if ":" in place else photos / place
    asked = ["maps", source, tmp_path / "maps", "--model", "shapes-resnet", "--layers", "input", "--limit", 5]
    result = CliRunner().invoke(app, list(map(str, asked)))
    if place == "tars":
        assert result.exit_code == 2
        assert "a.tar holds is not known before it is read; name a smaller one" in result.stderr
        return
    assert result.exit_code == 0, result.output
    names = [name.removeprefix("all/") for name in open_images(source).names[:5]]
    assert list(read_maps(tmp_path / "maps")["image"]) == names


@pytest.mark.parametrize(("count", "size"), [(1, 1), (4, 1), (8, 2), (100, 16), (256, 64), (5000, 64)])
def test_shards_have_a_power_of_two_of_images(count, size):
    start, stop = next(iter(_cut(count, None)))
    assert (start, stop) == (0, size)


def test_an_image_is_drawn_by_its_name_without_its_folder_where_no_other_has_it(photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("benign/0.png", "cancer/0.png", "cancer/1.png"):
        (tmp_path / "photos" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "photos" / name).write_bytes((photos / "files" / "0.png").read_bytes())
    write_maps(spec(tmp_path / "photos", methods=["gradient"]), tmp_path / "maps")
    show = CliRunner().invoke(app, ["show", "maps", "--image", "1.png", "-o", "out"])
    assert show.exit_code == 0, show.output
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["000002-cancer-1.png"]
    show = CliRunner().invoke(app, ["show", "maps", "--image", "0.png", "-o", "no"])
    assert "0.png may be any image of the maps in maps called benign/0.png, cancer/0.png" in show.stderr
    assert show.exit_code == 2


def test_what_is_shown_is_named(photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "photos" / "benign"
    folder.mkdir(parents=True)
    (folder / "0.png").write_bytes((photos / "files" / "0.png").read_bytes())
    write_maps(spec(tmp_path / "photos", methods=["gradient"]), tmp_path / "maps")
    show = CliRunner().invoke(app, ["show", "maps", "--image", "benign/1.png", "-o", "out"])
    assert "unknown image of the maps in maps 'benign/1.png'; did you mean benign/0.png?" in show.stderr
    show = CliRunner().invoke(app, ["show", "maps", "--layer", "layer2.9", "-o", "out"])
    assert "unknown layer of the maps in maps 'layer2.9'; did you mean layer2.0?" in show.stderr
    assert CliRunner().invoke(app, ["show", "maps", "-o", "out"]).exit_code == 0
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["000000-benign-0.png"]
    for shard in (tmp_path / "maps" / "maps").glob("*.parquet"):
        shard.unlink()
    show = CliRunner().invoke(app, ["show", "maps", "-o", "out"])
    assert "is finished yet, of 1; the same command of pellucid maps goes on" in show.stderr


def test_a_score_is_told_as_explain_tells_it(photos, tmp_path):
    write_maps(spec(photos / "files", methods=["gradient"]), tmp_path / "a")
    write_maps(spec(photos / "files", methods=["gradient"], target="1 - 0"), tmp_path / "b")
    assert (score_of(tmp_path / "a"), score_of(tmp_path / "b")) == ("probability", "value")


def test_a_class_that_is_called_as_a_difference_is_one(photos, tmp_path, monkeypatch):
    names = ["square - large", *(f"class {number}" for number in range(1, 8))]
    legends = []

    def signs(methods, explained, below_zero):
        legends.append(explained)
        return "", ""

    monkeypatch.setattr("pellucid.report.album.signs", signs)
    for kind, expected in (("softmax", "probability"), ("logits", "value")):
        model = {"name": "shapes-resnet", "classes": names}
        given = spec(photos / "files", models=[model], methods=["gradient"], target=names[0], score=kind)
        write_maps(given, tmp_path / kind)
        assert (score_of(tmp_path / kind), class_explained(tmp_path / kind)) == (expected, True)
        shown = CliRunner().invoke(app, ["show", str(tmp_path / kind), "-o", str(tmp_path / "out")])
        assert shown.exit_code == 0, shown.output
    assert set(legends) == {names[0]}
    write_maps(spec(photos / "files", methods=["gradient"], target="1 - 0"), tmp_path / "difference")
    assert not class_explained(tmp_path / "difference")


def test_scores_of_a_model_of_probabilities_are_these(photos, tmp_path):
    """A softmax of them would make all alike, as 73 % for 99.9 %."""
    (tmp_path / "model.py").write_text(
        "import torch\nfrom pellucid import load_model\n\n"
        "def network():\n    return torch.nn.Sequential(load_model('shapes-resnet').model, torch.nn.Softmax(1))\n"
        "def preprocess(image):\n    return load_model('shapes-resnet').preprocess(image)\n"
    )
    found = {}
    for name, model in {"logits": "shapes-resnet", "shares": f"{tmp_path / 'model.py'}:network"}.items():
        write_maps(spec(photos / "files", models=[model], methods=["gradient"], layers=["input"]), tmp_path / name)
        found[name] = read_maps(tmp_path / name)["score"]
    np.testing.assert_allclose(found["shares"], found["logits"], rtol=1e-5)


def test_a_finished_folder_is_said_to_be_finished(photos, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    options = ["--model", "shapes-resnet", "--images-per-shard", "2", "--limit", "4"]
    command = ["maps", str(photos / "files"), "maps", *options]
    said = "maps was finished already; nothing was computed"
    first, again = (CliRunner().invoke(app, command) for _ in range(2))
    assert said not in first.stdout
    assert again.stdout == f"{said}\n{first.stdout}"
    next((tmp_path / "maps" / "maps").glob("*.parquet")).unlink()
    assert said not in CliRunner().invoke(app, command).stdout


def test_notes_are_counted_over_all_shards_and_those_of_earlier_versions_are_read(photos, tmp_path):
    wanted = spec(photos / "files", methods=["rectgrad(tau=1e30)"])
    run = write_maps(wanted, tmp_path / "maps")
    assert {*run.notes.values()} == {COUNT}
    uncounted = {key: replace(one, notes=[note for note, _ in one.notes]) for key, one in run.shards.items()}
    folder, name = Folder(str(tmp_path)), "old.parquet"
    told = json.dumps(asdict(next(iter(uncounted.values()))))
    schema = pyarrow.schema([], metadata={TOLD: told})
    pyarrow.parquet.write_table(schema.empty_table(), tmp_path / name)
    assert [*Shard.read(folder, name).notes] == [(note, 0) for note in run.notes]
