"""Masks and boxes from files, by the images' names: what is the object, whose it is, and what is refused."""

import json

import numpy as np
import pytest
from PIL import Image

from pellucid.data.annotations import annotated_with
from pellucid.data.sources import open_images
from pellucid.errors import InputWarning, InvalidData, InvalidImage
from pellucid.experiments.runners import benchmark
from pellucid.experiments.spec import read_spec
from pellucid.experiments.store import Results

OBJECT = np.zeros((6, 8), bool)
OBJECT[1:4, 2:6] = True


@pytest.fixture
def photos(tmp_path):
    for name in ("cat/a", "cat/b", "dog/a"):
        path = tmp_path / "photos" / f"{name}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.zeros((6, 8, 3), np.uint8)).save(path)
    return tmp_path / "photos"


def written(folder, name, image):
    path = folder / name
    path.parent.mkdir(parents=True, exist_ok=True)
    image.save(path)


def palette(indices):
    image = Image.fromarray(indices.astype(np.uint8), "L").convert("P")
    image.putpalette([0, 0, 0, 128, 0, 0] + [7] * 762)
    image.frombytes(indices.astype(np.uint8).tobytes())
    return image


MASKS = {
    "white": Image.fromarray(np.where(OBJECT, 255, 0).astype(np.uint8)),
    "ones": Image.fromarray(OBJECT.astype(np.uint8)),
    "bits": Image.fromarray(OBJECT),
    "colors": Image.fromarray(np.where(OBJECT[..., None], 255, 0).astype(np.uint8).repeat(3, 2)),
    "grey": Image.fromarray(np.where(OBJECT, 200, 90).astype(np.uint8)),
    "deep": Image.fromarray(np.where(OBJECT, 65535, 0).astype(np.uint16)),
    "hundred": Image.fromarray(np.where(OBJECT, 100, 0).astype(np.uint8)),
    "deep hundred": Image.fromarray(np.where(OBJECT, 100, 0).astype(np.uint16)),
    "red": Image.fromarray(np.where(OBJECT[..., None], [200, 0, 0], 0).astype(np.uint8)),
    "soft": Image.fromarray(np.where(OBJECT, 255, 40 * np.eye(6, 8)).astype(np.uint8)),
    "palette": palette(np.where(OBJECT, 1, 0)),
    "void": palette(np.where(OBJECT, 1, 0) + 255 * np.eye(6, 8, dtype=int) * ~OBJECT),
}


@pytest.mark.parametrize("kind", MASKS)
def test_the_object_of_a_mask_is_found_however_it_is_marked(photos, tmp_path, kind):
    for name in ("cat/a", "cat/b", "dog/a"):
        written(tmp_path / "masks", f"{name}.png", MASKS[kind])
    for sample in annotated_with(open_images(photos), tmp_path / "masks"):
        assert sample.mask.mode == "L"
        np.testing.assert_array_equal(np.asarray(sample.mask), np.where(OBJECT, 255, 0))


def in_palette(colors, dark, light):
    """The mask of the object with indices into a palette of grays."""
    image = Image.fromarray(np.where(OBJECT, light, dark).astype(np.uint8), "P")
    image.putpalette([color for color in colors for _ in "rgb"])
    return image


PALETTES = {
    "black first.png": in_palette((0, 255), 0, 1),
    "white first.png": in_palette((255, 0), 1, 0),
    "white last.png": in_palette(range(256), 0, 255),
    "neither first.png": in_palette((7, 255, 0), 2, 1),
    "gray.png": in_palette((200, 90), 1, 0),
    "quantized.png": MASKS["colors"].quantize(2),
    "white first.gif": in_palette((255, 0), 1, 0),
    "of colors.gif": MASKS["colors"],
    "quantized.gif": MASKS["colors"].quantize(2),
    "of gray.gif": MASKS["white"],
}


@pytest.mark.parametrize("kind", PALETTES)
def test_a_palette_of_grays_is_read_by_its_colors_whatever_their_order(photos, tmp_path, kind):
    written(tmp_path / "masks", f"cat/a{kind[-4:]}", PALETTES[kind])
    mask = annotated_with(open_images(photos), tmp_path / "masks")[0].mask
    np.testing.assert_array_equal(np.asarray(mask), np.where(OBJECT, 255, 0))


def test_names_fit_in_their_sub_folders_or_alone(photos, tmp_path):
    written(tmp_path / "masks", "cat/a.png", MASKS["white"])
    written(tmp_path / "masks", "b.png", MASKS["ones"])
    known = [sample.mask is not None for sample in annotated_with(open_images(photos), tmp_path / "masks")]
    assert known == [True, True, False]  # the only a is another image's
    written(tmp_path / "masks", "rabbit/a.png", MASKS["white"])
    known = [sample.mask is not None for sample in annotated_with(open_images(photos), tmp_path / "masks")]
    assert known == [True, True, True]  # this one is no other's
    written(tmp_path / "masks", "fox/a.png", MASKS["white"])
    known = [sample.mask is not None for sample in annotated_with(open_images(photos), tmp_path / "masks")]
    assert known == [True, True, False]  # there are two: neither is taken for it


def test_whole_names_go_before_those_without_their_endings(photos, tmp_path):
    Image.new("RGB", (8, 6)).save(photos / "cat" / "a.bmp")
    coco = {
        "images": [{"id": 1, "file_name": "cat/a.jpg"}, {"id": 2, "file_name": "cat/a.bmp"}],
        "annotations": [{"image_id": 1, "bbox": [0, 0, 2, 2]}, {"image_id": 2, "bbox": [3, 3, 2, 2]}],
    }
    (tmp_path / "boxes.json").write_text(json.dumps(coco))
    found = {s.name: s.boxes for s in annotated_with(open_images(photos), boxes=tmp_path / "boxes.json")}
    assert found["cat/a.jpg"] == ((0, 0, 2, 2),)
    assert found["cat/a.bmp"] == ((3, 3, 5, 5),)
    for ending in ("png", "tif"):
        written(tmp_path / "masks", f"cat/b.{ending}", MASKS["white"])
    with pytest.raises(InvalidData, match=r"cat/b.png and cat/b.tif both fit the image cat/b.jpg; leave one out"):
        annotated_with(open_images(photos), tmp_path / "masks")


@pytest.mark.parametrize("values", [[0, 1, 2], [0, 1, 21], [10, 20, 30], [1, 2, 2]])
@pytest.mark.parametrize("kind", [np.uint8, np.uint16])
def test_a_mask_of_several_things_is_refused(photos, tmp_path, values, kind):
    numbers = np.resize(np.array(values, kind), (6, 8))
    written(tmp_path / "masks", "cat/a.png", Image.fromarray(numbers))
    told = ", ".join(map(str, dict.fromkeys(values)))
    count = len(set(values))
    said = rf"masks/cat/a.png holds {count} values \({told}\), .* save it with two"
    with pytest.raises(InvalidImage, match=said):
        annotated_with(open_images(photos), tmp_path / "masks")[0]
    table = datasets_of(numbers)
    with pytest.raises(InvalidImage, match=rf"the mask of .* holds {count} values \({told}\)"):
        open_images(table)[0]


@pytest.mark.parametrize("kind", [np.uint8, np.int32, np.float32])
@pytest.mark.parametrize("inside", [1, 100, 255])
def test_a_data_sets_mask_of_two_values_is_the_one_that_is_not_0(inside, kind):
    mask = open_images(datasets_of(np.where(OBJECT, inside, 0).astype(kind)))[0].mask
    np.testing.assert_array_equal(np.asarray(mask), np.where(OBJECT, 255, 0))


def datasets_of(mask):
    """A data set of one image with this mask."""

    class Data(list):
        classes = None

    return Data([(Image.new("RGB", (8, 6)), 0, mask)])


def test_a_palettes_mask_is_turned_as_its_file_says(photos, tmp_path):
    turned = Image.Exif()
    turned[274] = 6
    for kind in ("palette", "white"):
        for name in ("cat/a", "cat/b", "dog/a"):
            path = tmp_path / kind / f"{name}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            MASKS[kind].save(path, exif=turned)
    [one, other] = (
        np.asarray(annotated_with(open_images(photos), tmp_path / kind)[0].mask) for kind in ("palette", "white")
    )
    np.testing.assert_array_equal(one, other)
    np.testing.assert_array_equal(one, np.rot90(np.where(OBJECT, 255, 0), -1))


@pytest.mark.parametrize(
    ("turn", "of_mask", "is_square"), [(1, 1, 0), (3, 1, 0), (3, 3, 0), (2, 1, 0), (6, 1, 0), (6, 1, 1)]
)
def test_a_mask_of_a_turned_photo_may_lie_either_way(tmp_path, turn, of_mask, is_square):
    """Of half a turn, a mirror, or a square's quarter, the sizes do not tell; a mask may be turned itself."""
    tags = [Image.Exif(), Image.Exif()]
    tags[0][274], tags[1][274] = turn, of_mask
    size = (8, 8) if is_square else (8, 6)
    for folder, kind, exif in (("photos", "RGB", tags[0]), ("masks", "L", tags[1])):
        (tmp_path / folder).mkdir()
        # A mask of a photo that is turned by a quarter was drawn on the turned one.
        shown = size[::-1] if turn == 6 and folder == "masks" else size
        Image.new(kind, shown, "white").save(tmp_path / folder / "a.png", exif=exif)
    source = annotated_with(open_images(tmp_path / "photos"), tmp_path / "masks")
    if turn != of_mask and (turn != 6 or is_square):
        with pytest.warns(InputWarning, match=r"EXIF turns a.png or mirrors it, and its mask has no such tag"):
            assert source[0].mask is not None
    else:
        assert source[0].mask is not None


def test_boxes_of_coco(photos, tmp_path):
    coco = {
        "images": [{"id": 7, "file_name": "cat/a.jpg"}, {"id": 9, "file_name": "b.jpg"}],
        "annotations": [{"image_id": 7, "bbox": [2, 1, 4, 3]}, {"image_id": 7, "bbox": [0, 0, 1.5, 1]}],
    }
    (tmp_path / "boxes.json").write_text(json.dumps(coco))
    found = {s.name: s.boxes for s in annotated_with(open_images(photos), boxes=tmp_path / "boxes.json")}
    boxes = ((2, 1, 6, 4), (0, 0, 1.5, 1))
    assert found == {"cat/a.jpg": boxes, "cat/b.jpg": (), "dog/a.jpg": None}


def test_boxes_of_an_image_of_another_size_are_refused(photos, tmp_path):
    """The photos have 8 x 6 pixels; boxes of a larger original would lie inside of them, too, and elsewhere."""
    sizes = {"cat/a.jpg": {"width": 8, "height": 6}, "cat/b.jpg": {"width": 0, "height": 0}, "dog/a.jpg": {}}
    place = tmp_path / "boxes.json"

    def read(sizes):
        images = [{"id": name, "file_name": name} | size for name, size in sizes.items()]
        coco = {"images": images, "annotations": [{"image_id": name, "bbox": [2, 1, 4, 3]} for name in sizes]}
        place.write_text(json.dumps(coco))
        return {sample.name: sample.boxes for sample in annotated_with(open_images(photos), boxes=place)}

    assert set(read(sizes).values()) == {((2, 1, 6, 4),)}
    for width, height in ((16, 12), (6, 8)):
        sizes["cat/a.jpg"] = {"width": width, "height": height}
        with pytest.raises(
            InvalidData, match=rf"cat/a\.jpg are of an image of {width}x{height} pixels.*it has 8x6"
        ):
            read(sizes)


@pytest.mark.parametrize(("size", "fits"), [("8 6", True), ("16 12", False), ("0 0", True)])
def test_boxes_of_voc_tell_the_size_of_their_image(photos, tmp_path, size, fits):
    (tmp_path / "voc").mkdir()
    width, height = size.split()
    told = f"<size><width>{width}</width><height>{height}</height></size></annotation>"
    (tmp_path / "voc" / "b.xml").write_text(VOC.replace("</annotation>", told))
    found = annotated_with(open_images(photos), boxes=tmp_path / "voc")
    if fits:
        assert found[1].boxes == ((2, 1, 6, 4),)
    else:
        with pytest.raises(InvalidData, match="are of an image of 16x12 pixels"):
            found[1]


def test_boxes_of_an_image_without_end_are_refused(photos, tmp_path):
    (tmp_path / "voc").mkdir()
    told = "<size><width>inf</width><height>6</height></size></annotation>"
    (tmp_path / "voc" / "b.xml").write_text(VOC.replace("</annotation>", told))
    with pytest.raises(InvalidData, match=r"b\.xml"):
        annotated_with(open_images(photos), boxes=tmp_path / "voc")[1]


@pytest.mark.parametrize("kind", ["L", "RGB", "deep"])
def test_masks_that_number_classes_are_refused(photos, tmp_path, kind):
    """Of numbers 0, 15 and 255, which is void, the object would be what is void."""
    numbers = np.zeros((12, 16), np.uint16 if kind == "deep" else np.uint8)
    numbers[2:6, 3:8], numbers[8:12, 10:16] = 15, 255
    image = Image.fromarray(numbers)
    written(tmp_path / "masks", "cat/a.png", image if kind != "RGB" else image.convert("RGB"))
    with pytest.raises(InvalidImage, match=r"a\.png holds 3 values \(0, 15, 255\), and nothing tells which"):
        annotated_with(open_images(photos), tmp_path / "masks")[0]


def test_gray_edges_between_black_and_white_are_no_numbers(photos, tmp_path):
    smooth = np.zeros((12, 16), np.uint8)
    smooth[2:8, 3:9] = 90  # an edge of one pixel
    smooth[3:7, 4:8] = 255
    written(tmp_path / "masks", "cat/a.png", Image.fromarray(smooth))
    found = np.asarray(annotated_with(open_images(photos), tmp_path / "masks")[0].mask)
    np.testing.assert_array_equal(found, np.where(smooth == 255, 255, 0))


ENDS = "<xmin>3</xmin><ymin>2</ymin><xmax>6</xmax><ymax>4</ymax>"
VOC = f"<annotation><object><name>cat</name><bndbox>{ENDS}</bndbox></object></annotation>"


def test_boxes_of_voc_count_pixels_from_one_and_hold_their_ends(photos, tmp_path):
    (tmp_path / "voc").mkdir()
    (tmp_path / "voc" / "b.xml").write_text(VOC)
    found = {s.name: s.boxes for s in annotated_with(open_images(photos), boxes=tmp_path / "voc")}
    assert found == {"cat/a.jpg": None, "cat/b.jpg": ((2, 1, 6, 4),), "dog/a.jpg": None}


def test_what_is_not_there_or_broken_is_told(photos, tmp_path):
    source = open_images(photos)
    (tmp_path / "other").mkdir()
    (tmp_path / "other" / "z.xml").write_text(VOC)
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "a.xml").write_text("<annotation><object/></annotation>")
    (tmp_path / "evil").mkdir()
    (tmp_path / "evil" / "a.xml").write_text('<!DOCTYPE a [<!ENTITY b "c">]>' + VOC)
    (tmp_path / "none.json").write_text('{"images": []}')
    for settings, message in [
        ({"masks": "nowhere"}, "no folder .*nowhere of masks"),
        ({"masks": "other"}, "the first image is 'cat/a.jpg', and there is 'z.xml'"),
        ({"boxes": "nowhere"}, "no COCO file or folder of boxes"),
        ({"boxes": "other"}, "nothing of the name of an image"),
        ({"boxes": "broken"}, "an object has no xmin"),
        ({"boxes": "evil"}, "it declares entities"),
        ({"boxes": "none.json"}, "no COCO file of boxes"),
    ]:
        with pytest.raises(InvalidData, match=message):
            annotated_with(source, **{key: tmp_path / name for key, name in settings.items()})


def test_a_benchmark_reads_masks_by_its_spec(tmp_path, monkeypatch):
    rng = np.random.default_rng(0)
    for number in range(2):
        pixels = rng.integers(0, 255, (64, 64, 3)).astype(np.uint8)
        written(tmp_path / "photos", f"{number}.png", Image.fromarray(pixels))
        written(tmp_path / "masks", f"{number}.png", Image.fromarray(np.triu(np.ones((64, 64), np.uint8))))
    monkeypatch.chdir(tmp_path)
    images = {"source": "photos", "masks": "masks"}
    settings = {"models": ["shapes-resnet"], "methods": ["gradient"], "layers": ["input"]}
    settings |= {"metrics": ["mass_outside"]}
    run = benchmark(read_spec(options=settings | {"images": images}), "run")
    assert len(Results.read("run").values(metric="mass_outside")) == 2
    assert run.values()["value"].between(0.1, 0.9).all()
    with pytest.raises(InvalidData, match="needs masks"):
        benchmark(read_spec(options=settings | {"images": {"source": "photos"}}), "other")


@pytest.mark.parametrize(
    "told",
    [
        {"images": [{"id": 1, "file_name": ""}], "annotations": []},
        {
            "images": [{"id": 1, "file_name": "a.jpg"}],
            "annotations": [{"image_id": 1, "bbox": [10**400, 0, 1, 1]}],
        },
    ],
)
def test_what_is_no_coco_file_of_boxes_is_named(photos, tmp_path, told):
    (tmp_path / "boxes.json").write_text(json.dumps(told))
    with pytest.raises(InvalidData, match=r"boxes\.json is no COCO file of boxes"):
        annotated_with(open_images(photos), boxes=tmp_path / "boxes.json")


def test_a_voc_file_of_an_unknown_encoding_is_named(photos, tmp_path):
    (tmp_path / "voc").mkdir()
    (tmp_path / "voc" / "b.xml").write_text('<?xml version="1.0" encoding="none-such"?><annotation/>')
    with pytest.raises(InvalidData, match=r"b\.xml is no VOC file of boxes"):
        list(annotated_with(open_images(photos), boxes=tmp_path / "voc"))


def test_pipes_devices_and_folders_are_no_masks_and_no_boxes(photos, irregular):
    source, path = open_images(photos), irregular("boxes.json")
    with pytest.raises(InvalidData, match=r"boxes.json (is no regular file|has nothing of the name)"):
        annotated_with(source, boxes=path)
    with pytest.raises(InvalidData, match=r"no folder .* of masks|has nothing of the name"):
        annotated_with(source, masks=path)


def test_files_of_boxes_are_bounded(photos, tmp_path, monkeypatch):
    (tmp_path / "boxes.json").write_text(" " * 1001)
    (tmp_path / "voc").mkdir()
    (tmp_path / "voc" / "a.xml").write_text(VOC + " " * 1001)
    monkeypatch.setenv("PELLUCID_MAX_ANNOTATIONS", "1000")
    monkeypatch.setenv("PELLUCID_MAX_TEXT", "1000")
    with pytest.raises(InvalidData, match=r"boxes.json has 1,001 bytes, .*PELLUCID_MAX_ANNOTATIONS"):
        annotated_with(open_images(photos), boxes=tmp_path / "boxes.json")
    with pytest.raises(InvalidData, match=r"a.xml has .* bytes, .*PELLUCID_MAX_TEXT"):
        annotated_with(open_images(photos), boxes=tmp_path / "voc")
