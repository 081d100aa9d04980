"""Images beyond 8 bits: their numbers reach the model, or the user's own preprocess, as the file has them."""

import importlib.util
import io
import json
import struct
import zlib
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from pellucid.data.labeled import load_images
from pellucid.data.reading import read_image
from pellucid.data.sources import open_images
from pellucid.errors import InputWarning, InvalidData, InvalidImage, InvalidParameter
from pellucid.models.preprocess import CustomPreprocess, Preprocess
from pellucid.pixels import Pixels, image_of, picture, with_channels

AS_IT_IS = {"resize": None, "crop": None, "mean": None, "std": None}


def numbers(*shape, kind="uint16", high=65536):
    return np.random.default_rng(0).integers(0, high, shape).astype(kind)


def png(values, colour):
    """A PNG of 16 bits, written by hand: colour type 0 grey, 2 RGB, 6 RGBA."""

    def chunk(kind, data):
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    rows = b"".join(b"\0" + row.astype(">u2").tobytes() for row in values)
    header = struct.pack(">IIBBBBB", values.shape[1], values.shape[0], 16, colour, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + b"".join(
        chunk(kind, data) for kind, data in ((b"IHDR", header), (b"IDAT", zlib.compress(rows)), (b"IEND", b""))
    )


def tiff(values, **settings):
    tifffile = pytest.importorskip("tifffile")
    file = io.BytesIO()
    tifffile.imwrite(file, values, **settings)
    return file.getvalue()


def saved(values):
    file = io.BytesIO()
    np.save(file, values)
    return file.getvalue()


DEEP = {
    "png grey": lambda: (png(numbers(5, 7), 0), numbers(5, 7)[..., None]),
    "png rgb": lambda: (png(numbers(5, 7, 3), 2), numbers(5, 7, 3)),
    "png rgba": lambda: (png(numbers(5, 7, 4), 6), numbers(5, 7, 4)),
    "tiff grey": lambda: (tiff(numbers(5, 7)), numbers(5, 7)[..., None]),
    "tiff big endian": lambda: (tiff(numbers(5, 7), byteorder=">"), numbers(5, 7)[..., None]),
    "tiff rgb": lambda: (tiff(numbers(5, 7, 3)), numbers(5, 7, 3)),
    "tiff six": lambda: (tiff(numbers(5, 7, 6), photometric="minisblack", planarconfig="contig"),
                         numbers(5, 7, 6)),
    "tiff planes": lambda: (
        tiff(numbers(6, 5, 7), photometric="minisblack", planarconfig="separate"),
        np.moveaxis(numbers(6, 5, 7), 0, 2),
    ),
    "tiff channels": lambda: (tiff(numbers(2, 5, 7), imagej=True, metadata={"axes": "CYX"}),
                              np.moveaxis(numbers(2, 5, 7), 0, 2)),
    "npy": lambda: (saved(numbers(5, 7, 4)), numbers(5, 7, 4)),
    "npy first": lambda: (saved(numbers(4, 5, 7)), np.moveaxis(numbers(4, 5, 7), 0, 2)),
    "npy grey": lambda: (saved(numbers(5, 7)), numbers(5, 7)[..., None]),
}  # fmt: skip


@pytest.mark.parametrize("kind", DEEP)
def test_sixteen_bits_are_kept_and_reach_the_model_exactly(kind):
    content, expected = DEEP[kind]()
    image = read_image(content)
    assert isinstance(image, Pixels)
    assert image.values.dtype == np.uint16
    assert np.array_equal(image.values, expected)
    assert image.size == (7, 5)
    channels = expected.shape[2]
    found = Preprocess(**AS_IT_IS, channels=channels)(image)
    assert torch.equal(found, torch.from_numpy(np.moveaxis(expected / 65535, 2, 0).astype(np.float32)))
    given = []
    CustomPreprocess(lambda image: given.append(image) or torch.arange(4).reshape(1, 2, 2))(image)
    assert np.array_equal(np.asarray(given[0]).reshape(expected.shape), expected)
    assert isinstance(given[0], Image.Image if channels == 1 else np.ndarray)


def test_an_x_ray_keeps_its_levels():
    values = np.linspace(200, 4200, 35).reshape(5, 7).astype(np.uint16)
    image = read_image(png(values, 0))
    found = Preprocess(**AS_IT_IS, channels=1, scale=(200, 4200))(image)
    assert torch.allclose(found[0], torch.from_numpy((values - 200.0) / 4000).float(), atol=1e-6)
    assert torch.equal(Preprocess(**AS_IT_IS, scale=(200, 4200))(image), found.expand(3, -1, -1))
    shown = np.asarray(Preprocess(**AS_IT_IS, channels=1).display(image))
    assert (shown.min(), shown.max(), len(np.unique(shown))) == (0, 255, 35)


def test_a_scale_of_8_bits():
    image = Image.fromarray(numbers(5, 7, 3, kind="uint8", high=256))
    found = Preprocess(**AS_IT_IS, scale=(-255, 255))(image)
    assert torch.allclose(found, Preprocess(**AS_IT_IS)(image) / 2 + 0.5, atol=1e-6)
    with pytest.raises(InvalidParameter, match="lower value first"):
        Preprocess(scale=(1, 0))


@pytest.mark.parametrize("kind", ["int32", "uint32", "int16"])
def test_whole_numbers_without_a_scale_are_refused_and_reach_a_function(kind):
    values = numbers(5, 7, kind=kind, high=30000)
    image = read_image(tiff(values), "ct.tif")
    assert np.array_equal(image.values[..., 0], values)
    ends = f"{values.min()},{values.max()}"
    with pytest.raises(InvalidImage, match=rf"ct.tif holds .*int.* nothing tells .* --scale={ends}, .*scale=\("):
        Preprocess(channels=1, mean=None, std=None)(image)
    found = Preprocess(**AS_IT_IS, channels=1, scale=(0, 30000))(image)
    assert torch.allclose(found[0], torch.from_numpy(values / 30000).float())


def test_the_scale_of_negative_values_is_named_as_a_command_takes_it():
    values = np.array([[-100, 2900]], np.int16)
    with pytest.raises(InvalidImage, match=r"may reach: --scale=-100,2900, in Python .*\(scale=\(-100, 2900\)\)$"):
        Preprocess(channels=1, mean=None, std=None)(values)


@pytest.mark.parametrize("kind", ["int32", "uint32"])
def test_whole_numbers_of_32_bits_are_read_exactly(kind):
    values = np.array([[0, 1], [2**24 + 1, np.iinfo(kind).max]], kind)
    image = read_image(tiff(values), "ct.tif")
    assert image.values.dtype == kind
    assert np.array_equal(image.values[..., 0], values)


@pytest.mark.parametrize("kind", ["uint16", "float32", "uint8"])
def test_a_picture_shows_what_a_scale_makes_of_the_values(kind):
    values = np.linspace(50, 250, 36).astype(kind).reshape(6, 6)
    image = Image.fromarray(values) if kind == "uint8" else Pixels.of(values, "a.png")
    expected = ((values.astype(float) - 100) / 400 * 255).clip(0, 255).round()
    scaled = Preprocess(**AS_IT_IS, channels=1, scale=(100, 500))
    assert not scaled.stretches(image)
    assert np.abs(np.asarray(scaled.display(image), float) - expected).max() <= 1
    colored = np.asarray(replace(scaled, channels=3).display(image), float)
    assert np.abs(colored - expected[..., None]).max() <= 1
    plain = Preprocess(**AS_IT_IS, channels=1)
    shown = np.asarray(plain.display(image))
    assert plain.stretches(image) == (kind != "uint8")
    assert (shown.min(), shown.max()) == ((50, 250) if kind == "uint8" else (0, 255))


@pytest.mark.parametrize("kind", ["uint16", "float32", "uint8"])
@pytest.mark.parametrize("channels", [1, 3])
def test_a_scale_clips_where_it_says_so(kind, channels):
    values = np.linspace(50, 250, 36).astype(kind).reshape(6, 6)
    image = Image.fromarray(values) if kind == "uint8" else Pixels.of(values, "a.png")
    linear = Preprocess(**AS_IT_IS, channels=channels, scale=(100, 200)).quietly(image)
    clips = Preprocess(**AS_IT_IS, channels=channels, scale=(100, 200, "clip"))
    assert float(linear.min()) == -0.5
    assert float(linear.max()) == 1.5
    assert clips(image).equal(linear.clamp(0, 1))
    assert Preprocess.from_dict(json.loads(json.dumps(clips.as_dict()))) == clips
    assert clips.in_words == "scaled from [100, 200] to [0, 1] and clipped"
    shown = np.asarray(clips.display(image), float).reshape(6, 6, -1)[..., 0]
    assert np.abs(shown - clips(image)[0].numpy() * 255).max() <= 1


@pytest.mark.parametrize("shape", [(61, 83), (61, 83, 3), (3, 61, 83)])
@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("scale", [None, (20, 200), (20, 200, "clip")])
def test_an_array_of_8_bits_gives_what_the_pillow_image_of_its_pixels_does(shape, channels, scale):
    values = numbers(*shape, kind="uint8", high=256)
    photo = Image.fromarray(values.transpose(1, 2, 0) if shape[0] == 3 else values)
    preprocess = Preprocess(32, 28, (0.5,) * channels, (0.2,) * channels, channels, scale=scale)
    array = Pixels.of(values, "a.npy")
    assert preprocess.quietly(array).equal(preprocess.quietly(image_of(photo)))
    assert np.array_equal(np.asarray(preprocess.display(values)), np.asarray(preprocess.display(photo)))
    assert not preprocess.stretches(array)


def test_floats_stay_as_they_are():
    values = np.random.default_rng(0).normal(0, 3, (5, 7)).astype(np.float32)
    for content in (tiff(values), saved(values)):
        assert np.array_equal(Preprocess(**AS_IT_IS, channels=1)(read_image(content))[0].numpy(), values)
    values[0, 0] = np.nan
    with pytest.raises(InvalidImage, match="NaN"):
        Preprocess(channels=1, mean=None, std=None)(read_image(saved(values)))


def dicom(values, **tags):
    pydicom = pytest.importorskip("pydicom")
    file = pydicom.dataset.FileDataset(None, {}, preamble=b"\0" * 128)
    file.file_meta = pydicom.dataset.FileMetaDataset()
    file.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    file.file_meta.MediaStorageSOPClassUID = pydicom.uid.SecondaryCaptureImageStorage
    file.file_meta.MediaStorageSOPInstanceUID = pydicom.uid.generate_uid()
    told = {
        "Rows": values.shape[0], "Columns": values.shape[1], "SamplesPerPixel": 1, "BitsAllocated": 16,
        "BitsStored": 12, "HighBit": 11, "PixelRepresentation": 0, "PhotometricInterpretation": "MONOCHROME2",
    }  # fmt: skip
    for name, value in (told | tags).items():
        setattr(file, name, value)
    file.PixelData = values.tobytes()
    content = io.BytesIO()
    file.save_as(content, enforce_file_format=True)
    return content.getvalue()


@pytest.mark.filterwarnings("ignore::UserWarning")  # of tags that a full file has
def test_dicom():
    values = numbers(5, 7, high=4096)
    plain = Preprocess(**AS_IT_IS, channels=1)
    assert np.allclose(plain(read_image(dicom(values)))[0].numpy(), values / 4095, atol=1e-6)
    rescaled = {"RescaleSlope": 2, "RescaleIntercept": -1024}
    image = read_image(dicom(values, **rescaled))
    assert np.array_equal(image.values[..., 0], values * 2.0 - 1024)
    assert image.scale == (-1024, 4095 * 2 - 1024)
    window = {"WindowCenter": 40, "WindowWidth": 400}
    found = plain(read_image(dicom(values, **rescaled, **window)))[0].numpy()
    assert np.allclose(found, ((values * 2.0 - 1024 + 160) / 400).clip(0, 1), atol=1e-4)
    given = replace(plain, scale=(-160, 240))(read_image(dicom(values, **rescaled, **window)))[0].numpy()
    assert np.allclose(given, (values * 2.0 - 1024 + 160) / 400, atol=1e-4)
    inverted = plain(read_image(dicom(values, PhotometricInterpretation="MONOCHROME1")))[0].numpy()
    assert np.allclose(inverted, 1 - values / 4095, atol=1e-6)
    with pytest.raises(
        InvalidImage, match=r"its window ends at -160\.0, before it begins at 240\.0; mend WindowWidth"
    ):
        read_image(dicom(values, WindowCenter=40, WindowWidth=-400))


def items(**tags):
    """A sequence of one item, as DICOM nests them."""
    pydicom = pytest.importorskip("pydicom")
    item = pydicom.dataset.Dataset()
    for name, value in tags.items():
        setattr(item, name, value)
    return [item]


def lookup(table, first=0):
    """A DICOM's table of 16 bits, from the index ``first``."""
    [item] = items(ModalityLUTType="US")
    item.add_new(0x00283002, "SS" if first < 0 else "US", [len(table), first, 16])
    item.add_new(0x00283006, "OW", table.astype("<u2").tobytes())
    return [item]


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("place", ["SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"])
def test_an_enhanced_dicom_has_its_rescaling_and_window_in_groups(place):
    values = numbers(5, 7, high=4096)
    rescaling = items(RescaleSlope=2, RescaleIntercept=-1024, RescaleType="HU")
    window = items(WindowCenter=40, WindowWidth=400)
    of_first = items(PixelValueTransformationSequence=rescaling, FrameVOILUTSequence=window)
    others = items(FrameVOILUTSequence=items(WindowCenter=0, WindowWidth=1))
    frames = {"NumberOfFrames": 2, "Rows": 5} if place[0] == "P" else {}
    content = dicom(np.concatenate([values] * (2 if frames else 1)), **frames, **{place: of_first + others})
    image = read_image(content)
    assert image.scale == (-160, 240, "clip")
    assert np.array_equal(image.values[..., 0], values * 2.0 - 1024)
    curve = items(FrameVOILUTSequence=items(WindowCenter=40, WindowWidth=400, VOILUTFunction="SIGMOID"))
    with pytest.raises(InvalidImage, match="VOILUTFunction is SIGMOID"):
        read_image(dicom(values, **{place: curve}))


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("first", [0, -10, 10])
def test_a_modalitys_table_gives_values_and_their_ends(first):
    values, table = numbers(5, 7, high=4096), numbers(4096)
    image = read_image(dicom(values, ModalityLUTSequence=lookup(table, first)))
    assert image.scale == (0, 65535)
    assert np.array_equal(image.values[..., 0], table[(values.astype(int) - first).clip(0, 4095)])
    window = {"WindowCenter": 3000, "WindowWidth": 2000}
    assert read_image(dicom(values, ModalityLUTSequence=lookup(table), **window)).scale == (2000, 4000, "clip")


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_dicom_that_is_shown_along_a_curve_is_refused():
    values, window = numbers(5, 7, high=4096), {"WindowCenter": 2000, "WindowWidth": 1000}
    curved = dicom(values, VOILUTFunction="SIGMOID", **window)
    with pytest.raises(InvalidImage, match=r"x\.dcm: its VOILUTFunction is SIGMOID, .*; save what a viewer shows"):
        read_image(curved, "x.dcm")
    table = {"VOILUTSequence": lookup(numbers(4096))}
    with pytest.raises(InvalidImage, match=r"x\.dcm: its VOILUTSequence .*; save what a viewer shows"):
        read_image(dicom(values, **table), "x.dcm")
    assert read_image(dicom(values, **table, **window)).scale == (1500, 2500, "clip")
    assert read_image(dicom(values, VOILUTFunction="LINEAR_EXACT", **window)).scale == (1500, 2500, "clip")


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", ["MONOCHROME1", "MONOCHROME2"])
def test_a_presentation_that_is_inverted_inverts_once(kind):
    values = numbers(5, 7, high=4096)
    image = read_image(dicom(values, PhotometricInterpretation=kind, PresentationLUTShape="INVERSE"))
    found = Preprocess(**AS_IT_IS, channels=1)(image)[0].numpy()
    assert np.allclose(found, 1 - values / 4095, atol=1e-6)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_negative_slope_turns_the_ends_of_the_bits_around():
    values = numbers(5, 7, high=4096)
    image = read_image(dicom(values, RescaleSlope=-2, RescaleIntercept=100))
    assert image.scale == (100 - 2 * 4095, 100)
    found = Preprocess(**AS_IT_IS, channels=1)(image)[0].numpy()
    assert np.allclose(found, 1 - values / 4095, atol=1e-6)
    for tags in ({"RescaleSlope": -1}, {"RescaleIntercept": 7}):  # one without the other
        alone = read_image(dicom(values, **tags))
        assert np.array_equal(alone.values[..., 0], -1.0 * values if "RescaleSlope" in tags else values + 7.0)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("bits", [12, 16])
def test_a_scale_is_in_the_files_values_and_inverts_between_its_ends(bits):
    values = numbers(5, 7, high=3622) + np.uint16(200)
    image = read_image(dicom(values, PhotometricInterpretation="MONOCHROME1", BitsStored=bits, HighBit=bits - 1))
    found = Preprocess(**AS_IT_IS, channels=1, scale=(200, 4200))(image)[0].numpy()
    assert np.allclose(found, (4200 - values.astype(float)) / 4000, atol=1e-6)
    assert np.array_equal(np.asarray(image.given()), 2**bits - 1 - values)
    plain = read_image(dicom(values, BitsStored=bits, HighBit=bits - 1))
    assert image.tobytes() != plain.tobytes()
    tags = {"RescaleSlope": 1, "RescaleIntercept": -1000, "PhotometricInterpretation": "MONOCHROME1"}
    rescaled = read_image(dicom(values, **tags))
    found = Preprocess(**AS_IT_IS, channels=1, scale=(-800, 3200))(rescaled)[0].numpy()
    assert np.allclose(found, (3200 - (values - 1000.0)) / 4000, atol=1e-6)


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("kind", ["MONOCHROME1", "MONOCHROME2"])
def test_a_dicom_that_uses_little_of_its_bits_is_noticed(kind):
    values = np.linspace(200, 3817, 35).round().astype(np.uint16).reshape(5, 7)
    image = read_image(dicom(values, PhotometricInterpretation=kind, BitsStored=16, HighBit=15))
    assert image.used() == pytest.approx(3617 / 65535)
    with pytest.warns(InputWarning, match="little of what their bits can hold"):
        Preprocess(**AS_IT_IS, channels=1)(image)
    assert read_image(dicom(values, PhotometricInterpretation=kind)).used() == pytest.approx(3617 / 4095)
    window = {"WindowCenter": 2000, "WindowWidth": 4000}
    assert read_image(dicom(values, BitsStored=16, HighBit=15, **window)).used() == pytest.approx(3617 / 4000)


@pytest.mark.filterwarnings("ignore::UserWarning")
def test_a_dicoms_palette_gives_its_colors():
    values, table = numbers(5, 7, high=16), numbers(3, 16)
    tables = {f"{color}PaletteColorLookupTableDescriptor": [16, 0, 16] for color in ("Red", "Green", "Blue")}
    tables |= {
        f"{color}PaletteColorLookupTableData": table[number].astype("<u2").tobytes()
        for number, color in enumerate(("Red", "Green", "Blue"))
    }
    image = read_image(dicom(values, PhotometricInterpretation="PALETTE COLOR", **tables))
    assert np.array_equal(image.values, np.moveaxis(table[:, values], 0, -1))


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("deep", [False, True])
def test_images_are_turned_as_exif_says(orientation, deep):
    exif = Image.Exif()
    exif[274] = orientation
    values = numbers(5, 7, 3, kind="uint8", high=256)
    file = io.BytesIO()
    Image.fromarray(values).save(file, "PNG", exif=exif)
    expected = np.asarray(read_image(file.getvalue()))
    if deep:
        content = tiff(values.astype(np.uint16), photometric="rgb", extratags=[(274, "H", 1, orientation, True)])
        assert np.array_equal(read_image(content).values, expected)
    else:
        assert expected.shape == ((7, 5, 3) if orientation > 4 else (5, 7, 3))
        assert (orientation == 1) == np.array_equal(expected, values)


def test_channels_that_fit_and_that_do_not():
    values = np.random.default_rng(0).random((2, 6, 4), np.float32)
    image = torch.from_numpy(values).permute(2, 0, 1)

    def fitted(count, channels, alpha=False):
        return with_channels(Pixels(values[..., :count], (0, 1), "x", alpha), channels)

    assert torch.equal(fitted(4, 3, alpha=True), image[:3])
    assert torch.equal(fitted(1, 3), image[:1].expand(3, -1, -1))
    grey = 0.299 * image[0] + 0.587 * image[1] + 0.114 * image[2]
    assert torch.allclose(fitted(3, 1)[0], grey)
    assert torch.allclose(fitted(4, 1, alpha=True)[0], grey)
    assert torch.equal(fitted(2, 3, alpha=True), image[:1].expand(3, -1, -1))
    for channels in (1, 2, 3, 5):  # a fourth band is no transparency
        with pytest.raises(InvalidImage, match=f"x has 4 channels, .* wants {channels}; .*makes {channels} of"):
            fitted(4, channels)


def test_alpha_reaches_a_model_of_four_channels_alone():
    values = numbers(5, 7, 4, kind="uint8", high=256)
    file = io.BytesIO()
    Image.fromarray(values).save(file, "PNG")
    image = read_image(file.getvalue())
    four = Preprocess(**AS_IT_IS, channels=4)(image)
    assert torch.equal(four, torch.from_numpy(values).permute(2, 0, 1) / 255)
    assert torch.equal(Preprocess(**AS_IT_IS)(image), four[:3])


def test_pixels_are_resized_and_cropped_as_pictures_are():
    values = numbers(40, 60, 3, kind="uint8", high=256)
    for resize, crop in ((20, 16), ((24, 30), None), (None, 64)):
        preprocess = Preprocess(resize, crop)
        exact = preprocess(Pixels.of(values, "x"))
        assert exact.shape == preprocess(Image.fromarray(values)).shape
        assert (exact - preprocess(Image.fromarray(values))).abs().max() < 2.5 / 255 / 0.22  # of bytes' rounding


def test_the_picture_of_many_channels():
    pixels = torch.rand(5, 14, 16)
    mean = np.asarray(picture(pixels))
    assert np.array_equal(mean, (pixels.mean(0) * 255).round().numpy().astype(np.uint8))
    assert np.array_equal(np.asarray(picture(pixels, ())), mean)
    chosen = np.asarray(picture(pixels, (3, 2, 1)))
    assert np.array_equal(chosen, (pixels[[2, 1, 0]] * 255).round().permute(1, 2, 0).numpy().astype(np.uint8))
    assert np.asarray(picture(pixels, (5,))).shape == (14, 16)
    for bands in ((0,), (6,), (1, 2)):
        with pytest.raises(InvalidParameter, match="channels 1 to 5"):
            picture(pixels, bands)
    preprocess = Preprocess(None, None, None, None, 5, bands=(3, 2, 1))
    assert preprocess.display(Pixels.of(pixels.permute(1, 2, 0).numpy(), "x")).mode == "RGB"


def test_training_takes_pictures_of_8_bits_alone(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "a" / "deep.png").write_bytes(png(numbers(5, 7), 0))
    with pytest.raises(InvalidData, match=r"deep.png is uint16 of shape \(5, 7, 1\); training takes pictures"):
        load_images(open_images(tmp_path), Preprocess().display)


def test_only_known_formats_are_opened(tmp_path):
    Image.new("RGB", (16, 16)).save(tmp_path / "a.ico")
    with pytest.raises(InvalidImage, match="no image that can be read"):
        read_image(tmp_path / "a.ico")


def test_arrays_of_a_folder_without_images(tmp_path):
    np.save(tmp_path / "b.npy", numbers(5, 7, 4))
    assert open_images(tmp_path).names == ["b.npy"]
    Image.new("RGB", (4, 4)).save(tmp_path / "a.png")
    with pytest.warns(InputWarning, match=r"arrays beside the images are left out \(1, such as b.npy\)"):
        assert open_images(tmp_path).names == ["a.png"]
    with pytest.warns(InputWarning, match="arrays beside the images are left out"):
        assert open_images(f"file://{tmp_path}").names == ["a.png"]
    (tmp_path / "a.png").unlink()
    assert open_images(f"file://{tmp_path}").names == ["b.npy"]
    (tmp_path / "c.tar").write_bytes(b"")
    with pytest.warns(InputWarning, match="tables and tars beside the arrays are left out .1, such as c.tar"):
        assert open_images(tmp_path).names == ["b.npy"]


@pytest.mark.parametrize("kind", ["uint16", "uint8"])
def test_an_image_that_uses_little_of_its_bits_is_told_in_python_too(kind):
    preprocess = Preprocess(**AS_IT_IS, channels=1)
    greatest = np.iinfo(kind).max
    dark = np.array([[0, greatest // 4 - 1]], kind).repeat(2, 0)
    with pytest.warns(InputWarning, match=r"little of what their bits can hold.*seeing\(scale=\(low, high\)\)"):
        preprocess(dark)
    preprocess(np.array([[0, greatest // 4 + 1]], kind).repeat(2, 0))  # warnings are errors here
    Preprocess(**AS_IT_IS, channels=1, scale=(0, greatest / 4))(dark)
    preprocess(np.zeros((2, 2), np.float32))


def test_packages_that_are_missing_are_named(monkeypatch):
    content = tiff(numbers(5, 7, 3))
    monkeypatch.setitem(__import__("sys").modules, "tifffile", None)
    with pytest.raises(InvalidImage, match=r"pip install 'pellucid\[tiff\]'"):
        read_image(content)
    monkeypatch.setitem(__import__("sys").modules, "pydicom", None)
    with pytest.raises(InvalidImage, match=r"pip install 'pellucid\[dicom\]'"):
        read_image(b"\0" * 128 + b"DICM")


def test_bands_that_pillow_cannot_read_are_read_without_its_complaints(caplog):
    bands = numbers(5, 7, 13)
    content = tiff(bands, photometric="minisblack", planarconfig="contig")
    assert np.array_equal(read_image(content).values, bands)
    assert caplog.records == []
    with pytest.raises(OSError, match="cannot identify"):
        Image.open(io.BytesIO(content))
    assert [record.getMessage() for record in caplog.records] == ["More samples per pixel than can be decoded: 13"]


@pytest.mark.parametrize("compression", [None, "deflate"])
@pytest.mark.parametrize("plan", ["contig", "separate"])
@pytest.mark.parametrize("kind", ["uint8", "int8", "uint16", "int16", "uint32", "float32", "float64"])
@pytest.mark.parametrize("count", [2, 3, 4, 5])
def test_bands_of_gray_are_all_read_in_their_order(count, kind, plan, compression):
    bands = numbers(5, 7, count, kind=kind, high=100)
    given = bands if plan == "contig" else np.moveaxis(bands, 2, 0)
    settings = {"photometric": "minisblack", "extrasamples": [0] * (count - 1), "compression": compression}
    image = read_image(tiff(given, planarconfig=plan, **settings))
    assert isinstance(image, Pixels)
    assert image.values.dtype == bands.dtype
    assert np.array_equal(image.values, bands)


def test_planes_that_end_early_are_cut_short_and_a_compression_that_nothing_reads_is_named():
    planes = {"photometric": "minisblack", "planarconfig": "separate", "metadata": None}
    with pytest.raises(InvalidImage, match=r"x\.tif is broken or cut short"):
        read_image(tiff(numbers(4, 50, 70), **planes)[:-10], "x.tif")
    content = tiff(numbers(50, 70, 3, kind="uint8", high=256), photometric="rgb", metadata=None)
    how = struct.pack("<HHI", 259, 3, 1)  # JPEG 2000 by its tag, which is asked for before the pixels
    content = content.replace(how + struct.pack("<H", 1), how + struct.pack("<H", 34712))
    if importlib.util.find_spec("imagecodecs") is None:
        with pytest.raises(InvalidImage, match=r"x\.tif: this TIFF's .* needs imagecodecs; run: pip install"):
            read_image(content, "x.tif")


def test_colors_of_16_bits_that_pillow_would_reduce_are_refused():
    for start, values in ((b"P6", numbers(5, 7, 3).astype(">u2").tobytes()), (b"P3", b"60000 " * 105)):
        content = start + b" 7 5 65535\n" + values
        with pytest.raises(InvalidImage, match=r"x\.ppm holds colors of 16 bits as PPM; save it as PNG, TIFF or"):
            read_image(content, "x.ppm")
        with pytest.raises(InvalidImage, match="only a part of its PPM file"):
            Preprocess(**AS_IT_IS)(Image.open(io.BytesIO(content)))
    for most in (100, 255):  # 100 is white
        content = f"P6 7 5 {most}\n".encode() + bytes([most]) * 105
        assert bool((np.asarray(read_image(content)) == 255).all())


def as_pillow_saves(values, kind, **settings):
    file = io.BytesIO()
    Image.fromarray(values).save(file, kind, **settings)
    return file.getvalue()


def turned(orientation):
    exif = Image.Exif()
    exif[274] = orientation
    return exif


X_RAY = np.linspace(200, 4200, 35).reshape(5, 7).astype(np.uint16)
IN_PYTHON = {
    "png of 16 bits": lambda: png(X_RAY, 0),
    "tiff of 16 bits": lambda: as_pillow_saves(X_RAY, "TIFF"),
    "pgm of 16 bits": lambda: as_pillow_saves(X_RAY, "PPM"),
    "tiff of 32 bits": lambda: as_pillow_saves(X_RAY.astype(np.int32), "TIFF"),
    "tiff of floats": lambda: as_pillow_saves(X_RAY.astype(np.float32), "TIFF"),
    "turned jpeg": lambda: as_pillow_saves(
        numbers(5, 7, 3, kind="uint8", high=256), "JPEG", exif=turned(6), quality=100
    ),
    "turned deep tiff": lambda: as_pillow_saves(X_RAY, "TIFF", tiffinfo={274: 6}),
    "gray": lambda: as_pillow_saves(numbers(5, 7, kind="uint8", high=256), "PNG"),
    "alpha": lambda: as_pillow_saves(numbers(5, 7, 4, kind="uint8", high=256), "PNG"),
}


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("kind", IN_PYTHON)
def test_an_image_that_pillow_opened_is_what_its_file_is(kind, channels):
    content = IN_PYTHON[kind]()
    scale = None if kind in ("turned jpeg", "gray", "alpha") else (200, 4200)
    preprocess = Preprocess(**AS_IT_IS, channels=channels, scale=scale)
    given = []
    custom = CustomPreprocess(lambda image: given.append(np.asarray(image)) or torch.arange(4).reshape(1, 2, 2))
    for whole in (False, True):
        opened = Image.open(io.BytesIO(content))
        if whole:
            opened.load()
        assert torch.equal(preprocess(opened), preprocess(read_image(content)))
        assert preprocess.display(opened).tobytes() == preprocess.display(read_image(content)).tobytes()
        custom(opened)
        custom(read_image(content))
        assert np.array_equal(*given[-2:])
    if scale is not None:
        expected = X_RAY if "turned" not in kind else np.rot90(X_RAY, -1)
        found = preprocess(Image.open(io.BytesIO(content)))[0].numpy()
        assert np.allclose(found, (expected - 200.0) / 4000, atol=1e-6)


def test_what_pillow_has_reduced_is_refused_unless_it_is_meant(tmp_path):
    reduced = {
        "rgb.png": png(numbers(5, 7, 3), 2),
        "rgb.tif": tiff(numbers(5, 7, 3), photometric="rgb"),
        "pages.tif": tiff(numbers(3, 5, 7), photometric="minisblack"),
        "signed.tif": tiff(numbers(5, 7, kind="int8", high=100)),
    }
    preprocess = Preprocess(**AS_IT_IS)
    for name, content in reduced.items():
        path = tmp_path / name
        path.write_bytes(content)
        for use in (preprocess, preprocess.display, CustomPreprocess(torch.as_tensor)):
            for loads in (False, True):
                with Image.open(path) as opened:
                    if loads:
                        opened.load()
                    with pytest.raises(InvalidImage, match=rf"only a part of .*pl\.open_images\('.*{name}'\)"):
                        use(opened)
        with pytest.raises(InvalidImage, match="only a part"):
            preprocess(Image.open(io.BytesIO(content)))
        with Image.open(path) as opened:
            with pytest.raises(InvalidImage, match="Rows-0: Pillow has read only a part"):
                open_images(Rows([opened]))[0]
            assert preprocess(opened.copy()).shape == (3, 5, 7)


class Rows(list):
    """A data set of images."""


def test_an_image_that_is_cut_short_is_refused():
    opened = Image.open(io.BytesIO(as_pillow_saves(numbers(50, 70, 3, kind="uint8", high=256), "PNG")[:2000]))
    with pytest.raises(InvalidImage, match="the image is broken or cut short"):
        Preprocess(**AS_IT_IS)(opened)


@pytest.mark.parametrize("shape", [(5, 7), (5, 7, 4), (4, 5, 7), (5, 7, 3)])
@pytest.mark.parametrize("kind", ["uint8", "uint16", "int16", "float32", "float64"])
def test_an_array_is_what_its_npy_file_is(kind, shape):
    values = numbers(*shape, kind=kind, high=200)
    image = read_image(saved(values))
    channels = image.values.shape[2]
    preprocess = Preprocess(**AS_IT_IS, channels=channels, scale=(0, 200))
    last = np.moveaxis(values, 0, 2) if shape[0] == 4 else values.reshape(5, 7, -1)
    assert np.allclose(preprocess(values).numpy(), np.moveaxis(last, 2, 0) / 200, atol=1e-6)
    assert torch.equal(preprocess(values), preprocess(image))
    assert preprocess.display(values).tobytes() == preprocess.display(image).tobytes()
    with pytest.raises(InvalidImage, match=r"the image is .* of shape \(0, 7\)"):
        preprocess(values.reshape(5, 7, -1)[:0, :, 0])


def test_a_preprocess_that_cannot_take_it_says_so():
    with pytest.raises(
        InvalidImage, match=r"preprocess function .* failed on x, .*unreduced, uint16 of \(5, 7, 4\)"
    ):
        CustomPreprocess(lambda image: image.convert("RGB"))(Pixels.of(numbers(5, 7, 4), "x"))


def test_the_first_page_of_many_means_what_it_means_alone(tmp_path):
    tifffile = pytest.importorskip("tifffile")
    colors = np.zeros((4, 6, 3), np.uint8)
    colors[:2], colors[2:] = (255, 0, 0), (0, 0, 255)
    image, gray = Image.fromarray(colors), np.arange(24, dtype=np.uint8).reshape(4, 6)
    for name, page in (("palette", image.quantize(4)), ("ycbcr", image.convert("YCbCr"))):
        page.save(tmp_path / f"{name}-one.tif")
        page.save(tmp_path / f"{name}-many.tif", save_all=True, append_images=[page])
    tifffile.imwrite(tmp_path / "white-one.tif", gray, photometric="miniswhite")
    tifffile.imwrite(tmp_path / "white-many.tif", np.stack([gray, gray]), photometric="miniswhite")
    for name in ("palette", "ycbcr", "white"):
        one, many = (np.asarray(read_image(tmp_path / f"{name}-{pages}.tif")) for pages in ("one", "many"))
        np.testing.assert_array_equal(one, many)
    np.testing.assert_array_equal(np.asarray(read_image(tmp_path / "palette-many.tif")), colors)


@pytest.mark.parametrize("pages", [1, 3])
@pytest.mark.parametrize("kind", ["uint8", "uint16", "uint32"])
def test_white_is_zero_is_turned_at_any_depth(tmp_path, kind, pages):
    most = np.iinfo(kind).max
    values = numbers(5, 7, kind=kind, high=most + 1)
    path = tmp_path / "a.tif"
    # Each page is written alone, since pages of one series may be channels.
    path.write_bytes(tiff(np.stack([values] * pages), photometric="miniswhite", metadata=None))
    image = read_image(path)
    given = np.asarray(image)[..., :1] if kind == "uint8" else image.values[..., :1]
    assert np.array_equal(given[..., 0], most - values)
    if kind == "uint16":
        with Image.open(path) as opened:
            assert np.array_equal(Preprocess(**AS_IT_IS)(opened), Preprocess(**AS_IT_IS)(image))


@pytest.mark.parametrize("kind", ["int16", "float32", "float64"])
def test_white_is_zero_without_a_greatest_value_is_refused(kind):
    content = tiff(numbers(5, 7, kind=kind, high=100), photometric="miniswhite")
    with pytest.raises(InvalidImage, match=rf"x\.tif: in this TIFF 0 is white .*{kind} does not tell .* save it"):
        read_image(content, "x.tif")


def test_white_is_zero_of_several_channels_is_refused():
    content = tiff(numbers(5, 7, 3), photometric="miniswhite", planarconfig="contig")
    with pytest.raises(InvalidImage, match="in which of its 3 channels; save it with 0 as black"):
        read_image(content)


COLORLESS = {
    "palette": ((5, 7), {"colormap": np.zeros((3, 65536), np.uint16)}),
    "separated": ((5, 7, 4), {}),
    "ycbcr": ((5, 7, 3), {}),
    "cielab": ((5, 7, 3), {}),
}


@pytest.mark.parametrize("kind", COLORLESS)
def test_sixteen_bits_that_are_no_colors_are_refused_by_their_name(kind):
    shape, settings = COLORLESS[kind]
    with pytest.raises(InvalidImage, match=rf"(?i)x\.tif: .*16 bits .*{kind}.*; save it as RGB or gray"):
        read_image(tiff(numbers(*shape), photometric=kind, **settings), "x.tif")


@pytest.mark.parametrize("count", [1, 3])
def test_colors_multiplied_by_alpha_are_as_they_were(count):
    colors, alpha = numbers(5, 7, count), numbers(5, 7, 1) // 2 + np.uint16(32768)
    given = np.concatenate([(colors * (alpha / 65535)).round().astype(np.uint16), alpha], axis=2)
    given[0, 0] = 0
    settings = {"photometric": "rgb" if count == 3 else "minisblack", "planarconfig": "contig"}
    image = read_image(tiff(given, extrasamples=["assocalpha"], **settings))
    colors[0, 0] = 0
    assert image.has_alpha
    assert np.abs(image.values[..., :-1].astype(int) - colors).max() <= 1
    with pytest.raises(InvalidImage, match=r"float32 are multiplied by its alpha .*; save it with plain alpha"):
        read_image(tiff(given.astype(np.float32), extrasamples=["assocalpha"], **settings))


def test_floats_of_a_portable_map_and_signed_bytes_keep_their_values(tmp_path):
    tifffile = pytest.importorskip("tifffile")
    values = np.linspace(0, 1, 6, dtype="<f4").reshape(2, 3)
    (tmp_path / "a.pfm").write_bytes(b"Pf\n3 2\n-1.0\n" + values[::-1].tobytes())
    np.testing.assert_array_equal(read_image(tmp_path / "a.pfm").values[..., 0], values)
    tifffile.imwrite(tmp_path / "signed.tif", np.full((4, 4), -100, np.int8))
    assert read_image(tmp_path / "signed.tif").values.tolist() == np.full((4, 4, 1), -100).tolist()


def test_a_deep_png_of_too_many_pixels_is_refused_before_it_is_decoded(monkeypatch):
    monkeypatch.setenv("PELLUCID_MAX_PIXELS", "5")
    with pytest.raises(InvalidImage, match="6 pixels, and 5 are allowed"):
        read_image(png(np.zeros((2, 3, 3), np.uint16), 2))
