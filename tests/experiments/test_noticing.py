"""What is told of models and images before their maps are looked at."""

import io
import warnings
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from pellucid.data.reading import read_image
from pellucid.data.sources import Sample
from pellucid.errors import InputWarning, InvalidImage
from pellucid.experiments.noticing import added, count_odd, mendable, oddities, of_images, of_model
from pellucid.models.preprocess import IMAGENET, CustomPreprocess, Preprocess
from pellucid.models.zoo import load_model
from pellucid.pixels import Pixels
from pellucid.training.classifiers import save_weights

FILE = """
from torch import nn
from torchvision import models, transforms
import pellucid
from pellucid.models.preprocess import IMAGENET

{preprocess}

def net():
    return nn.Sequential(nn.Conv2d({channels}, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
"""
OWN = [  # of which each is what ImageNet's models have
    "preprocess = pellucid.Preprocess()",
    "preprocess = pellucid.Preprocess(resize=256, crop=224)",
    "from pellucid.models.preprocess import IMAGENET as preprocess",
    "preprocess = models.ResNet18_Weights.IMAGENET1K_V1.transforms()",
    "preprocess = transforms.Compose([transforms.Resize(256), transforms.CenterCrop(224), transforms.ToTensor(), "
    "transforms.Normalize(IMAGENET.mean, IMAGENET.std)])",
]


def assumptions(loaded):
    return [sentence for sentence in of_model(loaded) if "no preprocess" in sentence]


@pytest.fixture
def loaded_of(tmp_path):
    def load(preprocess="", channels=3, weights=None):
        path = tmp_path / "net.py"
        path.write_text(FILE.format(preprocess=preprocess, channels=channels))
        return load_model(f"{path}:net", weights)

    return load


@pytest.mark.parametrize("own", OWN)
def test_a_preprocess_of_the_file_is_not_called_assumed_whatever_it_is(loaded_of, own):
    loaded = loaded_of(own)
    assert loaded.preprocess == IMAGENET
    assert assumptions(loaded) == []


def test_a_preprocess_that_nobody_gave_is_told(loaded_of, tmp_path):
    loaded = loaded_of()
    done = "resized to 256, cropped to 224 and"
    [told] = assumptions(loaded)
    assert told.startswith(f"the model's file has no preprocess: photos are {done} normalized as ImageNet's; say")
    assert assumptions(loaded.at_size(64)) == [told.replace("256", "64").replace("224", "64")]
    scaled = told.replace(" and normalized", ", scaled from [0, 4000] to [0, 1] and normalized")
    assert assumptions(loaded.seeing(scale=(0, 4000))) == [scaled]
    assert assumptions(loaded.seeing("none")) == []
    assert assumptions(loaded.seeing("whole")) == [told.replace(f"{done} ", "")]
    [told] = assumptions(loaded_of(channels=2))
    assert told.startswith(f"the model's file has no preprocess: photos are {done} scaled to [0, 1]; say")
    save_weights(loaded_of().model, tmp_path / "own.safetensors", {"preprocess": IMAGENET.as_dict()})
    assert assumptions(loaded_of(weights=tmp_path / "own.safetensors")) == []


def told_of(size, preprocess, image=None):
    sample = Sample("a.png", image or Image.new("RGB", size, "tan"))
    return {kind: odd.what for kind, odd in oddities(sample, preprocess).items()}


SIZES = {  # what an image's sides lose: shrunk 4 times or more, and the share that is cut off if it is above half
    (1023, 1023): (False, None),
    (1024, 1024): (True, None),
    (896, 672): (False, None),  # 1 - 0.875 * 224 / (896 / 2.625) = 0.426
    (1536, 400): (False, 1 - 0.875 * 224 / (1536 / 400 * 256)),
    (400, 1536): (False, 1 - 0.875 * 224 / (1536 / 400 * 256)),
    (1920, 1080): (True, 1 - 0.875 * 224 / (1920 / 1080 * 256)),
    (100, 100): (False, None),
}


@pytest.mark.parametrize("size", SIZES)
def test_what_a_crop_leaves_out_and_what_shrinks_is_told(size):
    is_shrunk, cut = SIZES[size]
    lost = [] if not is_shrunk else ["fine structures are lost"]
    lost += [] if cut is None else [f"{100 * cut:.1f} % of its area is cut off"]
    sizes = f"a.png, {size[0]} x {size[1]}, is resized to 256, cropped to 224 and normalized as ImageNet's, so "
    assert list(told_of(size, IMAGENET).values()) == ([sizes + " and ".join(lost)] if lost else [])
    assert told_of(size, Preprocess(resize=None, crop=None)) == {}


def test_other_ways_to_resize_and_crop():
    assert list(told_of((400, 800), Preprocess((200, 100), None))) == ["shrunk"]
    assert told_of((399, 799), Preprocess((200, 100), None)) == {}
    assert list(told_of((100, 100), Preprocess(None, 70))) == ["cut"]  # 0.49 are seen
    assert told_of((100, 100), Preprocess(None, 71)) == {}
    assert told_of((10, 10), Preprocess(None, 70)) == {}


def pages(values, **settings):
    tifffile = pytest.importorskip("tifffile")
    file = io.BytesIO()
    tifffile.imwrite(file, values, **settings)
    return file.getvalue()


def moving(kind):
    """Three pictures of an animation."""
    file, frames = io.BytesIO(), [Image.new("RGB", (8, 6), color) for color in ("red", "green", "blue")]
    frames[0].save(file, kind, save_all=True, append_images=frames[1:])
    return file.getvalue()


MANY = {
    "gray": lambda: pages(np.zeros((13, 6, 8), np.uint8), photometric="minisblack"),
    "deep gray": lambda: pages(np.zeros((13, 6, 8), np.uint16), photometric="minisblack"),
    "white is 0": lambda: pages(np.zeros((13, 6, 8), np.uint16), photometric="miniswhite"),
    "colors": lambda: pages(np.zeros((13, 6, 8, 3), np.uint8), photometric="rgb"),
    "GIF": lambda: moving("GIF"),
    "WEBP": lambda: moving("WEBP"),
}


@pytest.mark.parametrize("kind", MANY)
def test_pages_that_are_not_seen_are_told(kind):
    image = read_image(MANY[kind](), "a.tif")
    count = 3 if kind.isupper() else 13
    what = f"a.png holds {count} pages or frames, of which the first is seen"
    is_gray = image.size == (8, 6) and isinstance(image, Pixels)
    channels = 1 if is_gray else 3
    plain = Preprocess(None, None, None, None, channels)
    assert told_of(None, plain, image)["frames"] == what
    own = CustomPreprocess(lambda given: torch.arange(4).reshape(1, 2, 2))
    assert told_of(None, own, image) == {"frames": what}
    wanted = Preprocess(None, None, None, None, 13)
    with pytest.raises(
        InvalidImage,
        match=rf"has {channels} channels?, and .* wants 13; its file holds {count} pages .* \.npy",
    ):
        wanted(image)


def test_pages_that_are_seen_are_none_left_out():
    channels = pages(np.zeros((3, 6, 8), np.uint16), imagej=True, metadata={"axes": "CYX"})
    five = pages(np.zeros((6, 8, 5), np.uint16), photometric="minisblack", planarconfig="contig")
    for content in (channels, five, pages(np.zeros((6, 8), np.uint8))):
        image = read_image(content)
        assert "frames" not in told_of(None, Preprocess(None, None, None, None, 3), image)
    with pytest.raises(InvalidImage, match=r"wants 13; explain a model of 3 channels(?!.*pages)"):
        Preprocess(None, None, None, None, 13)(read_image(channels))


def test_a_scale_is_suggested_by_the_ends_of_all_images_looked_at():
    gray = Preprocess(None, None, None, None, 1)

    def counts_of(*ends):
        counts = {}
        for low, high in ends:
            values = np.linspace(low, high, 12).reshape(3, 4).astype(np.uint16)
            count_odd(counts, oddities(Sample("a.npy", Pixels.of(values, "a.npy")), gray))
        return counts

    advice = "a trained model needs the range that it was trained with"
    dark = "a.npy uses little of what its bits can hold, so the model sees it nearly of one gray"
    [one] = of_images(counts_of((200, 1838)), "photo")
    assert one == f"{dark} (1 such photo); give --scale, such as 200,1838, this photo's own ends; {advice}"
    parts = [counts_of((200, 1838), (150, 900), (400, 9000)), counts_of((600, 3821)), {}]
    [all_] = of_images(added(parts), "photo")
    assert all_ == f"{dark} (4 such photos); give --scale, such as 150,9000, the ends of these 4 photos; {advice}"
    fine = counts_of((0, 65535))
    assert list(of_images(fine)) == []
    image = Pixels(np.array([[[0.25], [1e6]]], np.float32), (-1e8, 1e8))
    count_odd(fine, oddities(Sample("a.dcm", image), gray))
    assert "give --scale, such as 0.25,1000000, this image's own ends" in next(of_images(fine))


@pytest.mark.parametrize("kind", ["uint16", "float32", "uint8"])
def test_values_outside_a_scale_are_told_unless_they_are_clipped(kind):
    values = np.array([0, 50, 100, 200, 250], kind).repeat(20).reshape(10, 10)
    image = Image.fromarray(values) if kind == "uint8" else Pixels.of(values, "a.npy")
    outside = Preprocess(None, None, None, None, 1, scale=(0, 200))
    counts = {}
    count_odd(counts, oddities(Sample("a.npy", image), outside))
    [told] = of_images(counts, "photo")
    assert told.startswith("the model sees 20.0 % of a.npy below 0 or above 1, outside the scale from 0 to 200, ")
    assert ("give --scale, such as 0,250, this photo's own ends; " in told) == (kind != "uint8")
    assert "--scale=0,200,clip clips them" in told
    with pytest.warns(InputWarning, match=r"outside the scale.*scale=\(low, high, 'clip'\)"):
        outside(image)
    for scale in ((0, 200, "clip"), (0, 248), (0, 250)):
        inside = replace(outside, scale=scale)
        assert not mendable(oddities(Sample("a.npy", image), inside))
        with warnings.catch_warnings():
            warnings.simplefilter("error")
            inside(image)


def to_bytes(image):
    """As torchvision's Grayscale and many functions do, which Pillow clips to 255."""
    return torch.from_numpy(np.asarray(image.convert("L")) / 255)[None].float()


def to_three(image):
    return (to_bytes(image).expand(3, -1, -1) - torch.tensor([0.4, 0.5, 0.6])[:, None, None]) / 0.2


@pytest.mark.parametrize("function", [to_bytes, to_three])
def test_a_function_that_clips_16_bits_is_told(function):
    values = np.linspace(200, 3821, 64).astype(np.uint16).reshape(8, 8)  # of 64 one is below 255
    background = np.where(np.arange(64).reshape(8, 8) < 40, 0, values).astype(np.uint16)
    own = CustomPreprocess(function)
    for numbers in (values, background):
        image = Pixels.of(numbers, "a.png")
        found = oddities(Sample("a.png", image), own)["clipped"]
        told = f"holds values from {numbers.min()} to 3821, and the model's own preprocess makes nearly all of it"
        assert found.what.startswith(f"a.png {told} black or white")
        assert "Preprocess(mean=(.5,), std=(.5,), channels=1)" in found.way_out
        with pytest.warns(InputWarning, match="nearly all black or white"):
            own(image)


@pytest.mark.filterwarnings("error::pellucid.errors.InputWarning")
def test_a_function_that_keeps_what_an_image_holds_is_not_told():
    def scaled(image):
        return torch.from_numpy((np.asarray(image) / 65535.0).reshape(1, *image.size))

    values = np.linspace(200, 3821, 64).astype(np.uint16).reshape(8, 8)
    small = (values // 16).astype(np.uint16)  # what Pillow need not clip
    two = np.where(values > 2000, 3821, 200).astype(np.uint16)
    cases = [(values, scaled), (small, to_bytes), (two, scaled), (two, to_bytes), (np.zeros_like(two), to_bytes)]
    for numbers, function in cases:
        image, own = Pixels.of(numbers, "a.png"), CustomPreprocess(function)
        assert "clipped" not in oddities(Sample("a.png", image), own)
        own(image)
    assert oddities(Sample("a.png", Image.new("RGB", (8, 8))), CustomPreprocess(to_bytes)) == {}


def test_a_resizing_that_is_left_out_is_told(loaded_of):
    own = "preprocess = pellucid.Preprocess(resize={}, crop=None)"
    what = "a.png, {} x {}, is seen at its own size; the model's own preprocess"
    seen = f"{what} would resize it, and all that is in it,"
    resized = {  # of an image of this width and height: how the model's own resizes it
        ("768", (1536, 1536)): "0.5 times that",
        ("768", (1536, 2000)): "0.5 times that",
        ("200", (100, 150)): "2 times that",
        ("(50, 60)", (100, 200)): "0.6 times its width and 0.25 times its height",
        ("64", (64, 90)): None,
        ("None", (64, 90)): None,
    }
    for (resize, size), told in resized.items():
        loaded = loaded_of(own.format(resize))
        sample = Sample("a.png", Image.new("RGB", size, "tan"))
        for chosen in ("whole", "none"):
            whole = loaded.seeing(chosen)
            odd = oddities(sample, whole.preprocess, whole.whole_of).get("whole")
            assert odd == (told and (f"{seen.format(*size)} to {told}", odd.way_out, None))
            assert told is None or "Preprocess(resize=SIDE, crop=None), SIDE being the length of" in odd.way_out
        assert loaded.seeing("whole").seeing("whole").whole_of == loaded.preprocess
        assert loaded.whole_of is whole.at_size(32).whole_of is None
    assert loaded_of().seeing("whole").whole_of is None  # what is assumed is no training's


def test_a_files_own_preprocess_is_kept_for_other_channels(loaded_of):
    """What a file says is never replaced by what is assumed: here it does not fit, and is refused."""
    assert loaded_of("from pellucid.models.preprocess import IMAGENET as preprocess", 1).preprocess == IMAGENET
    assert loaded_of(channels=1).preprocess == Preprocess(mean=None, std=None, channels=1)
