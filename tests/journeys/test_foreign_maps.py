"""Maps by another library, graded beside ours on photos with masks."""

from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
import pytest
import torch
from PIL import Image

import pellucid as pl
from pellucid.data.shapes import ShapesDataset

from .person import pictures, typed

MAPS = '''
from captum.attr import Saliency


def saliency(model, images, targets):
    return Saliency(model).attribute(images, target=targets)


def inside(model, images, targets):
    """A map that puts everything on the middle."""
    maps = images.new_zeros(len(images), *images.shape[2:])
    maps[:, 20:44, 20:44] = 1
    return maps
'''


STORED = """
import numpy as np
import pellucid as pl
from pellucid.data.sources import open_images

_, preprocess = pl.load_model("shapes-resnet")
maps = {
    preprocess(sample.image).numpy().tobytes(): np.load("maps/" + sample.name.replace("png", "npy"))
    for sample in open_images("photos")
}


def stored(model, images, targets):
    return np.stack([maps[image.detach().cpu().numpy().tobytes()] for image in images])
"""


def test_maps_in_files_are_graded_by_the_command_and_in_python() -> None:
    """Each photo is known by its pixels; both ways give the share of the map that lies beside the object."""
    shapes, model = ShapesDataset(4), pl.load_model("shapes-resnet").model
    for folder in ("photos", "masks", "maps"):
        Path(folder).mkdir()
    maps = np.random.default_rng(0).random((4, 64, 64)).astype(np.float32)
    masks = torch.stack([shapes[number][2] for number in range(4)])
    for number, picture in enumerate(pictures(4)):
        picture.save(f"photos/{number}.png")
        Image.fromarray(masks[number].numpy().astype(np.uint8) * 255).save(f"masks/{number}.png")
        np.save(f"maps/{number}.npy", maps[number])
    Path("stored.py").write_text(STORED)
    typed(
        "pellucid benchmark --model shapes-resnet --images photos --masks masks --layers input "
        "--methods stored.py:stored --metrics mass_outside --images-per-cell 3 -o run"
    )
    expected = np.where(masks, 0, maps).sum((1, 2)) / maps.sum((1, 2))
    values = pl.Results.read("run").values(metric="mass_outside")
    np.testing.assert_allclose(values["value"], expected, rtol=1e-5)
    targets = torch.zeros(4, dtype=torch.long)
    attributions = pl.Attributions({"input": torch.from_numpy(maps)[:, None]}, targets)
    images = torch.zeros(4, 3, 64, 64)
    case = pl.Case(None, model, images, attributions, pl.Scorer(model), targets, masks=masks)
    found = pl.metric("mass_outside").measure(case)["input"].values
    np.testing.assert_allclose(found, expected, rtol=1e-5)
    with pytest.raises(pl.PellucidError, match="explains again, and the case has maps and no method"):
        pl.metric("class_change").measure(case)


def test_a_table_with_masks_grades_them_alike() -> None:
    Path("maps.py").write_text(MAPS)
    shapes = ShapesDataset(4)
    for number, picture in enumerate(pictures(4)):
        picture.save(f"{number}.png")
        Image.fromarray(shapes[number][2].numpy().astype(np.uint8) * 255).save(f"{number}-mask.png")
    table = {
        "image": [f"{number}.png" for number in range(4)],
        "label": list(range(4)),
        "mask": [f"{number}-mask.png" for number in range(4)],
    }
    pyarrow.parquet.write_table(pyarrow.table(table), "photos.parquet")
    typed(
        "pellucid benchmark --model shapes-resnet --images photos.parquet --layers input "
        "--methods random,'gradient(absolute=True)',maps.py:saliency,maps.py:inside "
        "--metrics mass_outside,pointing_game -o run"
    )
    typed("pellucid report run")
    results = pl.Results.read("run")
    rows = results.table.astype(dict.fromkeys(("method", "metric", "image"), str))
    values = rows.set_index(["metric", "method", "image"])["value"].sort_index()
    ours = values["mass_outside", "gradient(absolute=True)"]
    np.testing.assert_allclose(values["mass_outside", "maps.py:saliency"], ours, rtol=1e-5)
    for number in range(4):
        mask = shapes[number][2][20:44, 20:44]
        expected = 1 - float(mask.float().mean())
        found = values["mass_outside", "maps.py:inside"].iloc[number]
        assert abs(found - expected) < 1e-6
    assert "Does the map lie on the object?" in str(pl.trust_card(results, "shapes-resnet"))
