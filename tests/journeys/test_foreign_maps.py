"""Maps by another library, graded beside ours on photos with masks."""

from pathlib import Path

import numpy as np
import pyarrow
import pyarrow.parquet
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
