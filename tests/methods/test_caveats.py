"""What is warned of an attribution."""

import pytest
import torch
from torch import nn

import pellucid as pl
from pellucid.catalog import method


@pytest.mark.parametrize(
    ("text", "layer", "variant", "kind"),
    [
        ("gradcam", "input", "original", pl.ImageMapWarning),
        ("gradient", "2", "original", pl.FlatMapWarning),
        ("rectgrad(q=100)", "0", "original", pl.EmptyMapWarning),
        ("integrated_gradients(steps=2)", "input", "original", pl.CompletenessWarning),
        ("deeplift", "input", "backward", pl.PatternWarning),
    ],
)
@pytest.mark.filterwarnings("default")
def test_warnings_point_at_the_call(text: str, layer: str, variant: str, kind: type[Warning]) -> None:
    """Each is shown with the line that asked, not with one of the library's."""
    convolutions = nn.Conv2d(3, 4, 3, 2, 1), nn.GroupNorm(2, 4), nn.Conv2d(4, 4, 2, 2)
    model = nn.Sequential(*convolutions, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 3)).eval()
    if variant == "original" and layer != "input":
        model[1] = nn.ReLU()
    images = torch.randn(2, 3, 32, 32)
    with pytest.warns(kind) as caught:
        method(text)(model, images, 0, layer, variant=variant)
    assert {one.filename for one in caught if isinstance(one.message, kind)} == {__file__}
