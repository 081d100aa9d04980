"""A fine-tuned network of two classes, a checkpoint of a trainer's, photos in a folder for each class."""

from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import pellucid as pl
from pellucid.errors import WeightsWarning

from .person import facts, network, pictures, typed, write_model

EXTRA = 'classes = ["benign", "malignant"]\npreprocess = Preprocess(resize=64, crop=64)'


def test_from_a_checkpoint_to_maps_and_grades() -> None:
    write_model("tissue.py", EXTRA)
    model = network("tissue.py")
    state = {f"model.{name}": value for name, value in model.state_dict().items()}
    torch.save({"epoch": 3, "state_dict": state}, "best.ckpt")
    for number, picture in enumerate(pictures(4)):
        place = Path("photos", ("benign", "malignant")[number % 2])
        place.mkdir(parents=True, exist_ok=True)
        picture.save(place / f"{number}.png")

    said = typed(
        "pellucid explain photos --model tissue.py:network --weights best.ckpt --methods gradient,gradcam "
        "--target malignant --layers 0,1 --variant original --variant backward -o maps"
    )
    assert "4 photos explained" in said
    run = facts("maps")
    assert {photo["target"]["name"] for photo in run["photos"]} == {"malignant"}
    assert {photo["predicted"]["name"] for photo in run["photos"]} <= {"benign", "malignant"}

    with pytest.warns(WeightsWarning, match=r"took 'model\.' off"):
        loaded = pl.load_model("tissue.py:network", "best.ckpt")
    image = loaded.preprocess(pictures(1)[0])
    expected = pl.method("gradient")(model, image[None], 1, "0", variant="backward")["0"][0]
    found = load_file("maps/attributions/benign-0.safetensors")["gradient/0/backward"]
    torch.testing.assert_close(found, expected)
    assert "malignant" in Path("maps/report.html").read_text()

    typed("pellucid explain photos --model tissue.py:network --weights best.ckpt --target label -o labels")
    names = [photo["target"]["name"] for photo in facts("labels")["photos"]]
    assert sorted(names) == ["benign", "benign", "malignant", "malignant"]
    typed(
        "pellucid benchmark --model tissue.py:network --weights best.ckpt --images photos --target label "
        "--methods random,gradient --layers 0 --metrics 'insertion(steps=4),top1' -o run"
    )
    typed("pellucid report run")
    assert "tissue" in Path("run/report.html").read_text()
