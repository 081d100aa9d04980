"""Images from every kind of source arrive as the same samples; broken ones are named and stop nothing."""

import io
import json
import os
import re
import tarfile
from pathlib import Path
from unittest import mock

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
import torchvision
from PIL import Image

from pellucid.data.reading import read_image
from pellucid.data.shapes import SHAPE_NAMES, ShapesDataset
from pellucid.data.sources import Sample, Source, open_images
from pellucid.errors import InvalidData, InvalidImage, UnknownName
from pellucid.models.preprocess import Preprocess


def plain(colour, size=(6, 4), mode="RGB"):
    return Image.new(mode, size, colour)


def encoded(image, suffix="PNG", **settings):
    stream = io.BytesIO()
    image.save(stream, suffix, **settings)
    return stream.getvalue()


def write_table(path, columns, features=None, **settings):
    table = pyarrow.table(columns)
    if features:
        table = table.replace_schema_metadata({"huggingface": json.dumps({"info": {"features": features}})})
    pyarrow.parquet.write_table(table, path, **settings)


def cells(count):
    return [{"bytes": encoded(plain((row, 0, 0))), "path": f"{row}.png"} for row in range(count)]


# One image.


def test_an_image_is_read_as_upright_rgb(tmp_path):
    image = plain("black", (6, 4))
    image.putpixel((0, 0), (255, 0, 0))
    exif = Image.Exif()
    exif[0x0112] = 6  # turned a quarter clockwise
    path = tmp_path / "turned.png"
    image.save(path, exif=exif)
    upright = read_image(path)
    assert (upright.mode, upright.size) == ("RGB", (4, 6))
    assert upright.getpixel((3, 0)) == (255, 0, 0)


@pytest.mark.parametrize(
    ("mode", "colour", "expected"),
    [
        ("L", 7, (7, 7, 7)),
        ("1", 1, (255, 255, 255)),
        ("RGBA", (1, 2, 3, 0), (1, 2, 3, 0)),
        ("LA", (7, 9), (7, 7, 7, 9)),
        ("CMYK", (0, 0, 0, 0), (255, 255, 255)),
        ("P", 0, (0, 0, 0)),
    ],
)
def test_every_mode_of_8_bits_becomes_rgb_or_rgba(mode, colour, expected):
    suffix = "JPEG" if mode == "CMYK" else "PNG"
    assert read_image(encoded(plain(colour, mode=mode), suffix)).getpixel((0, 0)) == expected


def arrays(**values):
    file = io.BytesIO()
    np.savez(file, **values)
    return file.getvalue()


NOISE = Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 40, 3), dtype=np.uint8))

BROKEN = {
    "empty.png": (b"", "is empty"),
    "text.png": (b"just some words", "no image"),
    "cut.png": (encoded(NOISE)[:-2000], "broken or cut short"),
    "cut.jpg": (encoded(NOISE, "JPEG")[:-500], "broken or cut short"),
    "many.npz": (arrays(a=np.zeros((2, 2)), b=np.zeros((2, 2))), "holds 2 arrays"),
    "text.npy": (arrays(a=np.array(["x"])), "give numbers"),
    "pickle.npy": (arrays(a=np.array([{}], dtype=object)), "allow_pickle"),
}


@pytest.mark.parametrize("name", BROKEN)
def test_a_broken_image_is_named_with_its_cause(tmp_path, name):
    content, cause = BROKEN[name]
    (tmp_path / name).write_bytes(content)
    with pytest.raises(InvalidImage, match=cause) as error:
        read_image(tmp_path / name)
    assert str(tmp_path / name) in str(error.value)
    with pytest.raises(InvalidImage, match=f"^picture seven .*{cause}"):
        read_image(content, "picture seven")


def test_a_missing_image_is_named(tmp_path):
    with pytest.raises(InvalidImage, match=r"absent.png cannot be read"):
        read_image(tmp_path / "absent.png")


def test_a_folder_of_far_more_other_files_is_named_before_all_are_looked_at(tmp_path, monkeypatch):
    """As a whole disk is; ten other files for each image are none too many, and hidden ones do not count."""
    (tmp_path / "inside").mkdir()
    for index in range(12):
        (tmp_path / f"{index}.txt").write_text("no image")
        (tmp_path / f".{index}").write_text("hidden")
    Image.new("RGB", (2, 2)).save(tmp_path / "inside" / "one.png")
    monkeypatch.setenv("PELLUCID_MAX_OTHER_FILES", "11")
    with pytest.raises(InvalidData, match=r"^name a folder inside: .* holds 12 files .* PELLUCID_MAX_OTHER_FILES"):
        open_images(tmp_path)
    assert open_images(tmp_path / "inside").names == ["one.png"]
    monkeypatch.setenv("PELLUCID_MAX_OTHER_FILES", "12")
    assert open_images(tmp_path).names == ["inside/one.png"]
    for name in ("three.png", "two.png"):
        Image.new("RGB", (2, 2)).save(tmp_path / name)
    monkeypatch.setenv("PELLUCID_MAX_OTHER_FILES", "0")
    assert open_images(tmp_path).names == ["inside/one.png", "three.png", "two.png"]


def test_an_image_of_too_many_pixels_is_refused_before_it_is_decoded(monkeypatch):
    monkeypatch.setenv("PELLUCID_MAX_PIXELS", "23")
    with pytest.raises(InvalidImage, match=r"the image of 6 x 4 has 24 pixels, and 23 are .* PELLUCID_MAX_PIXELS"):
        read_image(encoded(plain("red")))
    monkeypatch.setenv("PELLUCID_MAX_PIXELS", "24")
    assert read_image(encoded(plain("red"))).size == (6, 4)


def test_pillows_own_bound_is_lifted_with_it(monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 10)
    with pytest.raises(InvalidImage, match=r"too large .* set PELLUCID_MAX_PIXELS"):
        read_image(encoded(plain("red")))
    monkeypatch.setenv("PELLUCID_MAX_PIXELS", str(10**9))
    assert read_image(encoded(plain("red"))).size == (6, 4)


# Sources.


def test_a_source_is_a_sequence():
    source = Source(list("abcd"), lambda position: Sample("abcd"[position], plain("red")), ("x",))
    assert len(source) == 4
    assert [sample.name for sample in source] == list("abcd")
    assert source[-1].name == "d"
    assert [sample.name for sample in source[1:]] == source[1:].names == ["b", "c", "d"]
    assert [sample.name for sample in source[::-2][1:]] == ["b"]
    assert source[:2].classes == ("x",)
    with pytest.raises(IndexError):
        source[4]
    assert open_images(source) is source


def test_a_file_is_one_sample(tmp_path):
    plain("red").save(tmp_path / "a.png")
    [sample] = open_images(tmp_path / "a.png")
    assert (sample.name, sample.label, sample.mask, sample.boxes) == ("a.png", None, None, None)
    assert sample.image.getpixel((0, 0)) == (255, 0, 0)


def test_a_folder_is_read_in_sorted_order_with_its_class_folders(tmp_path):
    for place in ("dog/b.PNG", "cat/z.jpg", "dog/deep/a.png", ".cache/hidden.png"):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        plain("red").save(tmp_path / place)
    (tmp_path / "notes.txt").write_text("not an image")
    source = open_images(str(tmp_path))
    assert source.names == ["cat/z.jpg", "dog/b.PNG", "dog/deep/a.png"]
    assert source.classes == ("cat", "dog")
    assert [sample.label for sample in source] == [0, 1, 1]


def test_the_pictures_of_a_run_inside_a_folder_are_no_photos_of_it(tmp_path):
    for name, facts in {"out": '{\n "made_by": "pellucid"', "mine": '{"made_by": "me"}', "broken": "\xff"}.items():
        (tmp_path / name).mkdir()
        plain("red").save(tmp_path / name / "one.png")
        (tmp_path / name / "run.json").write_text(facts)
    plain("red").save(tmp_path / "photo.png")
    assert [sample.name for sample in open_images(tmp_path)] == ["broken/one.png", "mine/one.png", "photo.png"]
    assert [sample.name for sample in open_images(tmp_path / "out")] == ["one.png"]


def test_a_folder_with_loose_images_has_no_labels(tmp_path):
    (tmp_path / "cat").mkdir()
    plain("red").save(tmp_path / "cat" / "a.png")
    plain("red").save(tmp_path / "b.png")
    source = open_images(tmp_path)
    assert source.names == ["b.png", "cat/a.png"]
    assert source.classes is None
    assert source[1].label is None


def test_one_broken_image_stops_no_other(tmp_path):
    for name in ("a.png", "c.png"):
        plain("red").save(tmp_path / name)
    (tmp_path / "b.png").write_bytes(b"")
    source = open_images(tmp_path)
    with pytest.raises(InvalidImage, match=r"b.png"):
        source[1]
    assert (source[0].name, source[2].name) == ("a.png", "c.png")


def test_a_place_without_images_says_what_was_looked_for(tmp_path):
    (tmp_path / "notes.txt").write_text("x")
    with pytest.raises(InvalidData, match=r"holds no images; looked for .bmp.*\.parquet"):
        open_images(tmp_path)
    with pytest.raises(InvalidData, match="no file or folder nowhere"):
        open_images("nowhere")
    with pytest.raises(InvalidData, match="int is no data set"):
        open_images(3)


def test_a_place_that_is_called_nearly_so_is_named(tmp_path, monkeypatch):
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "lung.png").touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InvalidData, match=r"no file or folder photo \(did you mean photos\?\); give an image"):
        open_images("photo")
    with pytest.raises(InvalidData, match=rf"folder {tmp_path}/photo/ \(did you mean {tmp_path}/photos\?\); give"):
        open_images(f"{tmp_path}/photo/")
    with pytest.raises(InvalidData, match=r"folder photos/lungs.png \(did you mean photos/lung.png\?\); give"):
        open_images("photos/lungs.png")
    with pytest.raises(InvalidData, match=r"folder zzz/photos; give"):
        open_images("zzz/photos")


# Parquet.


def test_a_table_s_rows_are_samples_across_row_groups(tmp_path):
    path = tmp_path / "t.parquet"
    columns = {
        "image": cells(7),
        "label": [0, 1, 0, 1, 0, 1, 0],
        "mask": [{"bytes": encoded(plain(255 * (row % 2), mode="L")), "path": None} for row in range(7)],
        "boxes": [[[0.0, 1.0, 2.0, 3.0]]] * 6 + [[]],
    }
    write_table(path, columns, {"label": {"names": ["cat", "dog"]}}, row_group_size=3)
    source = open_images(path)
    assert source.names == [f"{row}.png" for row in range(7)]
    assert source.classes == ("cat", "dog")
    for row in (6, 0, 3, 2, 5):
        sample = source[row]
        assert sample.image.getpixel((0, 0)) == (row, 0, 0)
        assert (sample.mask.mode, sample.mask.getpixel((0, 0))) == ("L", 255 * (row % 2))
        assert sample.label == row % 2
        assert sample.boxes == (() if row == 6 else ((0.0, 1.0, 2.0, 3.0),))


def test_the_label_column_is_chosen(tmp_path):
    path = tmp_path / "t.parquet"
    write_table(
        path, {"image": cells(2), "label": [0, 1], "imagenet_label": [5, 574]}, {"label": {"names": ["a", "b"]}}
    )
    source = open_images(path, label_column="imagenet_label")
    assert ([sample.label for sample in source], source.classes) == ([5, 574], None)
    with pytest.raises(InvalidData, match=r"no label column 'coarse'.*image, label, imagenet_label"):
        open_images(path, label_column="coarse")


def test_tables_of_other_layouts(tmp_path):
    plain((9, 0, 0)).save(tmp_path / "beside.png")
    write_table(tmp_path / "bytes.parquet", {"img": [encoded(plain((4, 0, 0)))] * 11})
    source = open_images(tmp_path / "bytes.parquet")
    assert (source.names[10], source[10].label, source.classes) == ("row-10", None, None)
    assert source[10].image.getpixel((0, 0)) == (4, 0, 0)
    write_table(tmp_path / "paths.parquet", {"image": [{"bytes": None, "path": "beside.png"}] * 2})
    source = open_images(tmp_path / "paths.parquet")
    assert source.names == ["row-0", "row-1"]  # one path twice names no row
    assert source[1].image.getpixel((0, 0)) == (9, 0, 0)


def test_a_folder_of_tables_is_one_source(tmp_path):
    for part in ("train-0", "train-1"):
        write_table(tmp_path / f"{part}.parquet", {"image": cells(2), "label": [0, 1]})
    source = open_images(tmp_path)
    assert source.names == ["train-0/0.png", "train-0/1.png", "train-1/0.png", "train-1/1.png"]
    assert [(sample.name, sample.image.getpixel((0, 0))[0]) for sample in source] == [
        (name, row) for name, row in zip(source.names, [0, 1, 0, 1], strict=True)
    ]


def test_a_broken_row_is_named_and_stops_no_other(tmp_path):
    path = tmp_path / "t.parquet"
    write_table(path, {"image": [*cells(1), {"bytes": b"junk", "path": "bad.png"}, {"bytes": None, "path": None}]})
    source = open_images(path)
    with pytest.raises(InvalidImage, match=r"bad.png is no image"):
        source[1]
    with pytest.raises(InvalidImage, match="neither bytes nor a path"):
        source[2]
    assert source[0].name == "0.png"


def test_labels_of_tables_whose_classes_stand_in_another_order_are_moved_by_name(tmp_path):
    orders = {"a": ["cat", "dog"], "b": ["dog", "cat", "fox"], "c": ["fox", "owl"]}
    for part, names in orders.items():
        features = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": names}}
        write_table(tmp_path / f"{part}.parquet", {"image": cells(2), "label": [0, 1]}, features)
    source = open_images(tmp_path)
    assert source.classes == ("cat", "dog", "fox", "owl")
    named = [source.classes[sample.label] for sample in source]
    assert named == ["cat", "dog", "dog", "cat", "fox", "owl"]
    write_table(tmp_path / "d.parquet", {"image": cells(2), "label": [0, 1]})
    with pytest.raises(InvalidData, match="d does not name its classes, which others beside it do"):
        open_images(tmp_path)


OUTSIDE = ["../secret.png", "/dev/zero", "/etc/passwd", "a/../../secret.png"]


@pytest.mark.parametrize("path", OUTSIDE)
def test_paths_in_a_table_lead_nowhere_but_below_its_folder(tmp_path, path):
    (tmp_path / "secret.png").write_bytes(encoded(plain("red")))
    (tmp_path / "tables" / "a").mkdir(parents=True)
    write_table(tmp_path / "tables" / "t.parquet", {"image": [{"bytes": None, "path": path}]})
    with pytest.raises(InvalidImage, match="leads out of its folder"):
        open_images(tmp_path / "tables" / "t.parquet")[0]


def test_links_of_a_table_s_folder_lead_nowhere_but_below_it(tmp_path):
    (tmp_path / "tables" / "own").mkdir(parents=True)
    for path in (tmp_path / "secret.png", tmp_path / "tables" / "own" / "a.png"):
        path.write_bytes(encoded(plain("red")))
    links = {"file.png": "../secret.png", "above": "..", "mine": "own"}
    for name, place in links.items():
        (tmp_path / "tables" / name).symlink_to(place)
    paths = ["mine/a.png", "file.png", "above/secret.png"]
    write_table(tmp_path / "tables" / "t.parquet", {"image": [{"bytes": None, "path": path} for path in paths]})
    source = open_images(tmp_path / "tables" / "t.parquet")
    assert source[0].image.size == (6, 4)
    for position in (1, 2):
        with pytest.raises(InvalidImage, match="leads by a link out of its folder"):
            source[position]


@pytest.mark.parametrize("name", ["t.parquet", "t.tar", "t.png", "t.npy"])
def test_pipes_devices_and_folders_are_no_images(irregular, name):
    path = irregular(name)
    with pytest.raises(InvalidImage, match=r"cannot be read: (it is no regular file|Is a directory)"):
        read_image(path)
    message = "holds no images" if path.is_dir() else "is no regular file, as a file or folder must be"
    with pytest.raises(InvalidData, match=message):
        open_images(path)
    if not name.endswith("y"):
        with pytest.raises(InvalidData, match=r"is no readable|holds no images"):
            open_images(f"file://{path}")


def test_a_pipe_beside_a_table_is_not_read(tmp_path):
    os.mkfifo(tmp_path / "pipe.png")
    write_table(tmp_path / "t.parquet", {"image": [{"bytes": None, "path": "pipe.png"}]})
    with pytest.raises(InvalidImage, match="no regular file"):
        open_images(tmp_path / "t.parquet")[0]


WRONG_CELLS = {
    "image": ([7], "the table holds 7; an image is bytes or a file's path", InvalidImage),
    "label": ([2.5], "the label is 2.5 in column 'label'; labels must be integers", InvalidData),
    "mask": ([b"junk"], "the mask of row-0 is no image", InvalidImage),
    "boxes": ([[[1.0, 2.0, 3.0]]], "row-0: boxes 0.3 is .*; field required", InvalidData),
}


@pytest.mark.parametrize("column", WRONG_CELLS)
def test_a_cell_of_a_wrong_kind_is_named(tmp_path, column):
    values, message, kind = WRONG_CELLS[column]
    write_table(tmp_path / "t.parquet", {"image": [encoded(plain("red"))], column: values})
    with pytest.raises(kind, match=message):
        open_images(tmp_path / "t.parquet")[0]


def test_a_label_below_0_is_none_and_one_beyond_the_classes_is_refused(tmp_path):
    features = {"image": {"_type": "Image"}, "label": {"_type": "ClassLabel", "names": ["cat", "dog"]}}
    write_table(tmp_path / "t.parquet", {"image": cells(4), "label": [-1, 1, 2, -2]}, features)
    source = open_images(tmp_path / "t.parquet")
    assert [source[0].label, source[1].label] == [None, 1]
    for position in (2, 3):
        with pytest.raises(InvalidData, match="classes are numbered from 0 to 1"):
            source[position]


def test_a_row_group_that_unpacks_to_far_more_is_refused(tmp_path, monkeypatch):
    write_table(tmp_path / "t.parquet", {"image": [encoded(plain("red")) + bytes(10**6)]}, compression="zstd")
    assert open_images(tmp_path / "t.parquet")[0].image.size == (6, 4)
    monkeypatch.setenv("PELLUCID_MAX_UNPACKED", "100000")
    with pytest.raises(InvalidData, match=r"row group 0 of .* PELLUCID_MAX_UNPACKED"):
        open_images(tmp_path / "t.parquet")[0]


def test_more_images_than_allowed_are_refused_before_they_are_named(monkeypatch):
    with pytest.raises(InvalidData, match="shape has 1,000,000,000,000 images, and 5,000,000 are allowed"):
        open_images("shapes:1000000000000")


def test_a_line_of_pixels_is_not_resized_to_gigabytes():
    line = Image.new("L", (1, 20_000))
    with pytest.raises(InvalidImage, match="1 x 20000, resized to 256, has 1,310,720,000 pixels"):
        Preprocess()(line)
    with pytest.raises(InvalidImage, match="has 1,310,720,000 pixels"):
        Preprocess().display(line)
    assert Preprocess(resize=None)(line).shape == (3, 224, 224)


def test_a_broken_table_is_refused(tmp_path):
    (tmp_path / "t.parquet").write_bytes(b"PAR1 junk")
    with pytest.raises(InvalidData, match="no readable Parquet"):
        open_images(tmp_path / "t.parquet")
    write_table(tmp_path / "t.parquet", {"text": ["a"]})
    with pytest.raises(InvalidData, match=r"no image column; looked for image.*among its columns text"):
        open_images(tmp_path / "t.parquet")
    write_table(tmp_path / "t.parquet", {"image": cells(1), "label": ["cat"]})
    with pytest.raises(InvalidData, match="'cat' in column 'label'; labels must be integers"):
        open_images(tmp_path / "t.parquet")[0]


# Data set libraries.


def test_shapes_come_with_their_masks():
    source = open_images("shapes:10")
    image, label, mask = ShapesDataset(10, seed=2)[9]
    sample = source[9]
    assert (sample.name, sample.label, source.classes) == ("shape-9", label, SHAPE_NAMES)
    assert np.array_equal(np.asarray(sample.image), (image * 255).round().permute(1, 2, 0).byte().numpy())
    assert np.array_equal(np.asarray(sample.mask), mask.numpy() * np.uint8(255))
    assert len(open_images("shapes")) == 1000
    with pytest.raises(InvalidData, match="shapes:200"):
        open_images("shapes:many")


def test_torchvision_by_name():
    source = open_images("torchvision:FakeData")
    assert (len(source), source.names[7], source[7].image.mode) == (1000, "FakeData-007", "RGB")
    with pytest.raises(UnknownName, match="did you mean CIFAR10"):
        open_images("torchvision:CIFAR11")


def test_torchvision_without_the_files_says_how_to_get_them(tmp_path):
    with pytest.raises(InvalidData, match=r"torchvision:MNIST cannot be opened below .* not found") as caught:
        open_images("torchvision:MNIST", root=tmp_path)
    [code] = re.findall(r'python -c "(.*)"$', str(caught.value))
    fetched = []
    with mock.patch.object(torchvision.datasets, "MNIST", lambda **settings: fetched.append(settings)):
        exec(code, {})
    assert fetched == [{"root": str(tmp_path), "train": False, "download": True}]
    with pytest.raises(InvalidData, match=r"https://www\.kaggle\.com/[^ ]*$"):  # torchvision cannot download it
        open_images("torchvision:FER2013", root=tmp_path)
    with pytest.raises(InvalidData, match=r"ImageNet cannot be opened .*'train', 'val'"):
        open_images("torchvision:ImageNet", root=tmp_path)


class Pairs:
    """What torchvision's data sets look like."""

    classes = ("a", "b")

    def __init__(self, *images):
        self.images = images

    def __len__(self):
        return len(self.images)

    def __getitem__(self, index):
        return self.images[index], torch.tensor(1)


def test_data_sets_of_tensors_and_pictures():
    source = open_images(
        Pairs(torch.full((3, 2, 2), 0.2), torch.full((2, 2), 51, dtype=torch.uint8), plain(51, mode="L"))
    )
    assert [sample.image.getpixel((0, 0)) for sample in source] == [(51, 51, 51)] * 3
    assert (source.names[0], source[0].label, source.classes) == ("Pairs-0", 1, ("a", "b"))
    with pytest.raises(InvalidImage, match=r"outside \[0, 1\] .*preprocess"):
        open_images(Pairs(torch.full((3, 2, 2), -2.0)))[0]
    with pytest.raises(InvalidImage, match="Pairs-0 is list"):
        open_images(Pairs([1]))[0]


def test_hugging_face_objects():
    class Feature:
        names = ("a", "b")

    class Rows:
        features = {"img": None, "label": Feature}  # noqa: RUF012

        def __len__(self):
            return 2

        def __getitem__(self, index):
            return {"img": plain((index, 0, 0)), "label": index}

    source = open_images(Rows())
    assert [(sample.label, sample.image.getpixel((0, 0))[0]) for sample in source] == [(0, 0), (1, 1)]
    assert source.classes == ("a", "b")


# Real tables.


def test_real_tables(real_data):
    data = real_data / "data"
    masks = open_images(data / "cifar10-masks" / "test.parquet")
    assert (len(masks), masks.names[0], masks[0].mask.size) == (204, "airplane_1.png", (32, 32))
    background = np.mean([(np.asarray(sample.mask) < 200).mean() for sample in masks])
    assert background == pytest.approx(0.59, abs=0.005)  # facts on the published masks
    boxes = open_images(data / "imagenette" / "boxes.parquet", label_column="imagenet_label")
    assert all(0 <= x0 < x1 <= 224 and 0 <= y0 < y1 <= 224 for x0, y0, x1, y1 in boxes[0].boxes)
    assert len(open_images(data / "mnist" / "train.parquet").classes) == 10


def write_tar(path, **parts):
    with tarfile.open(path, "w") as tar:
        for name, content in parts.items():
            entry = tarfile.TarInfo(name.replace("_", "."))
            entry.size = len(content)
            tar.addfile(entry, io.BytesIO(content))


@pytest.mark.parametrize("label", [b"\xff", b"9" * 30, b"-1", b"one", "²".encode()])
def test_a_label_of_a_tar_that_is_no_class_number_is_named(tmp_path, label):
    write_tar(tmp_path / "shard.tar", a_png=encoded(plain("red")), a_cls=label)
    with pytest.raises(InvalidImage, match="labels must be numbers of classes"):
        open_images(tmp_path / "shard.tar")[0]


def test_a_label_too_large_for_a_class_is_refused(tmp_path):
    write_table(tmp_path / "t.parquet", {"image": [encoded(plain("red"))], "label": [2**62]})
    with pytest.raises(InvalidData, match=r"the label is 4611686018427387904 .* from 0 to 999999999"):
        open_images(tmp_path / "t.parquet")[0]


def test_two_columns_of_one_name_are_refused(tmp_path):
    columns = [pyarrow.array([encoded(plain("red"))]), pyarrow.array([1]), pyarrow.array([2])]
    table = pyarrow.Table.from_arrays(columns, names=["image", "label", "label"])
    pyarrow.parquet.write_table(table, tmp_path / "t.parquet")
    with pytest.raises(InvalidData, match="2 columns are called 'label'"):
        open_images(tmp_path / "t.parquet")


def test_bytes_of_a_file_s_name_that_are_no_text_are_written_out(tmp_path):
    Path(os.fsdecode(os.fsencode(tmp_path) + b"/caf\xe9.png")).write_bytes(encoded(plain("red")))
    assert [sample.name for sample in open_images(tmp_path)] == [r"caf\xe9.png"]


@pytest.mark.parametrize(
    "names", [("a.png", "a.jpg"), ("a.png", "a.png"), ("d/a.PNG", "d/a.png"), ("a.cls", "a.cls")]
)
def test_two_files_for_one_part_of_a_sample_in_a_tar_are_refused(tmp_path, names):
    with tarfile.open(tmp_path / "t.tar", "w") as tar:
        for name in ("z.png", *names):
            content = encoded(plain("red"))
            info = tarfile.TarInfo(name)
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    with pytest.raises(InvalidData, match=rf"t.tar holds two .*, {names[0]} and {names[1]}; leave one out"):
        open_images(tmp_path / "t.tar")
