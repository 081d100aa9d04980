"""X-rays of 16 bits, tiles of satellites with seven bands, large tiles of tissue."""

import numpy as np
import torch
from PIL import Image
from safetensors.torch import load_file

import pellucid as pl

from .person import network, pictures, typed, write_model

WHOLE = "preprocess = Preprocess(resize=None, crop=None, mean=None, std=None, channels={})"


def test_an_x_ray_keeps_its_grey_levels() -> None:
    write_model("xray.py", WHOLE.format(1), channels=1)
    values = np.linspace(200, 4200, 48 * 48).reshape(48, 48).astype(np.uint16)
    Image.fromarray(values).save("xray.png")
    torch.save(network("xray.py").state_dict(), "weights.pth")
    said = typed("pellucid explain xray.png --model xray.py:network --weights weights.pth -o dark")
    assert "uses little of what its bits can hold" in said
    assert "--scale" in said
    said = typed(
        "pellucid explain xray.png --model xray.py:network --weights weights.pth --scale 200,4200 "
        "--target 0 -o maps"
    )
    assert "uses little" not in said
    image = torch.from_numpy((values.astype(np.float32) - 200) / 4000)[None, None]
    expected = pl.method("gradient")(network("xray.py"), image, 0)["input"][0]
    [found] = load_file("maps/attributions/xray.safetensors").values()
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-6)


def test_a_tile_of_a_satellite_has_seven_bands() -> None:
    write_model("satellite.py", WHOLE.format(7), channels=7)
    np.save("tile.npy", np.random.default_rng(0).random((32, 40, 7), dtype=np.float32))
    torch.save(network("satellite.py").state_dict(), "weights.pth")
    typed("pellucid explain tile.npy --model satellite.py:network --weights weights.pth --display 4,3,2 -o maps")
    [found] = load_file("maps/attributions/tile.safetensors").values()
    assert found.shape == (7, 32, 40)


def test_a_large_tile_is_explained_at_its_own_size() -> None:
    write_model("tissue.py", WHOLE.format(3))
    pictures(1, size=384)[0].save("tile.png")
    torch.save(network("tissue.py").state_dict(), "weights.pth")
    typed(
        "pellucid explain tile.png --model tissue.py:network --weights weights.pth "
        "--methods gradcam --layers 2 -o maps"
    )
    [found] = load_file("maps/attributions/tile.safetensors").values()
    assert found.shape == (8, 96, 96)
