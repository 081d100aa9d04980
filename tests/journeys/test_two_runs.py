"""Two networks compared: one that has learned, and its copy that has forgotten."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from safetensors.torch import save_file

import pellucid as pl

from .person import typed


def test_the_copy_with_random_weights_is_told_apart() -> None:
    save_file(pl.load_model("shapes-resnet", "random", seed=1).model.state_dict(), "forgotten.safetensors")
    for weights, folder in (("bundled", "learned"), ("forgotten.safetensors", "forgotten")):
        typed(
            f"pellucid benchmark --model shapes-resnet --weights {weights} --images shapes:8 --layers layer3.1 "
            f"--target label --methods random,gradcam --metrics 'top1,mass_outside' -o {folder}"
        )
    means = {}
    for folder in ("learned", "forgotten"):
        table = pl.Results.read(folder).table
        means[folder] = table.groupby(["metric", "method"], observed=True, dropna=False)["value"].mean()
    assert means["learned"]["top1"].item() == 1  # no method's
    assert means["forgotten"]["top1"].item() < 0.5
    assert means["learned"]["mass_outside", "random"] == means["forgotten"]["mass_outside", "random"]
    assert means["learned"]["mass_outside", "gradcam"] < means["forgotten"]["mass_outside", "gradcam"]
    said = typed("pellucid compare learned forgotten")
    assert "The runs differ in: shapes-resnet.weights is 'bundled' in the first and '" in said
    assert "not the same" not in said
    assert "worse" in said
    assert "not told apart" in said
    assert "the explained class" not in said
    for weights in ("bundled", "forgotten.safetensors"):
        typed(
            f"pellucid benchmark --model shapes-resnet --weights {weights} --images shapes:8 --layers input "
            f"--methods gradient --metrics total_variation -o own-{weights}"
        )
    said = typed("pellucid compare own-bundled own-forgotten.safetensors")
    assert "of the 8 images in common, such as shape-" in said
    said = typed("pellucid compare learned learned")
    assert "Both runs are of the same spec, weights, images and files. All their values are the same." in said


def test_other_images_of_the_same_names_are_told_in_python() -> None:
    for name, seed in (("one", 0), ("other", 10)):
        Path(name).mkdir()
        for number in range(3):
            pixels = np.random.default_rng(seed + number).integers(0, 255, (64, 64, 3), np.uint8)
            Image.fromarray(pixels).save(Path(name, f"{number}.png"))
        typed(
            f"pellucid benchmark --model shapes-resnet --images {name} --methods gradient,random --layers input "
            f"--metrics total_variation -o of-{name}"
        )
    runs = [pl.Results.read(f"of-{name}") for name in ("one", "other")]
    with pytest.warns(
        pl.errors.InputWarning, match=r"the runs have other images of the same names \(images.content"
    ):
        pl.compare(*runs)
    pl.compare(runs[0], runs[0])  # a warning would be an error here
