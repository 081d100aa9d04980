"""Layouts measured are those declared: on networks of many families, and with their dimensions shuffled."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from itertools import permutations
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import pellucid as pl
from pellucid.errors import InvalidLayer, InvalidParameter, SkippedLayerWarning
from pellucid.layouts import Layout, Probe, displaced, layout, layouts_of, measured, nearest_grid
from tests.networks import images, relative_error, seeded

timm = pytest.importorskip("timm")

SWIN = {"img_size": 64, "embed_dim": 24, "depths": (1, 1), "num_heads": (2, 2), "window_size": 4}
BEIT = {"img_size": 64, "depth": 2, "embed_dim": 48, "num_heads": 4}
PLACES = "tokens(grid=(4, 4))"
WITH_CLASS = "tokens(prefix=1, grid=(4, 4))"


@dataclass(frozen=True)
class Family:
    """A network of timm, what makes it small, its images' size, and the layouts of some layers."""

    name: str
    size: int
    layers: dict[str, str]
    settings: dict[str, Any] = field(default_factory=dict)


FAMILIES = {
    "vit": Family(
        "vit_tiny_patch16_224",
        64,
        {"patch_embed": PLACES, "blocks.0": WITH_CLASS, "blocks.2": WITH_CLASS},
        {"img_size": 64, "depth": 3},
    ),
    "deit": Family(
        "deit_tiny_distilled_patch16_224",
        64,
        {"blocks.1": "tokens(prefix=2, grid=(4, 4))"},
        {"img_size": 64, "depth": 2},
    ),
    "dinov2": Family(
        "vit_small_patch14_reg4_dinov2",
        70,
        {"blocks.1": "tokens(prefix=5, grid=(5, 5))"},
        {"img_size": 70, "depth": 2},
    ),
    "eva": Family(
        "eva02_tiny_patch14_224",
        70,
        {"blocks.1": "tokens(prefix=1, grid=(5, 5))"},
        {"img_size": 70, "depth": 2},
    ),
    "beit": Family("beit_base_patch16_224", 64, {"blocks.1": WITH_CLASS}, BEIT),
    "swin": Family(
        "swin_tiny_patch4_window7_224", 64, {"layers.0": "channels_last", "layers.1": "channels_last"}, SWIN
    ),
    "swinv2": Family("swinv2_tiny_window8_256", 64, {"layers.1": "channels_last"}, SWIN),
    "mambaout": Family("mambaout_femto", 64, {"stages.0": "channels_last", "stages.2": "channels_last"}),
    "convnext": Family("convnext_atto", 64, {"stages.0": "channels_first", "stages.3": "channels_first"}),
    "mixer": Family("mixer_s32_224", 160, {"blocks.1": "tokens(grid=(5, 5))"}, {"img_size": 160}),
    "xcit": Family("xcit_nano_12_p16_224", 96, {"blocks.1": "tokens(grid=(6, 6))"}, {"img_size": 96, "depth": 2}),
    "efficientnet": Family("efficientnet_b0", 64, {"blocks.2.0": "channels_first"}),
}


def made(family: str) -> tuple[nn.Module, Tensor, dict[str, Layout]]:
    chosen = FAMILIES[family]
    torch.manual_seed(0)
    model = timm.create_model(chosen.name, **chosen.settings).eval().requires_grad_(False)
    layers = {layer: layout(text) for layer, text in chosen.layers.items()}
    return model, torch.randn(1, 3, chosen.size, chosen.size), layers


@pytest.mark.parametrize("family", FAMILIES)
def test_layouts_found_are_the_networks_own(family: str) -> None:
    model, images, expected = made(family)
    assert layouts_of(model, list(expected), images, {}, 64) == expected


@pytest.mark.parametrize("family", FAMILIES)
def test_layouts_measured_are_the_networks_own(family: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is known, neither from convolutions nor from the model."""
    monkeypatch.setattr("pellucid.layouts._told", lambda *_: None)
    model, images, expected = made(family)
    assert layouts_of(model, list(expected), images, {}, 64) == expected


@pytest.mark.parametrize("size", [(32, 64), (64, 32), (16, 128)])
def test_the_grid_of_an_image_of_another_shape_is_its_own(size: tuple[int, int]) -> None:
    """Also where it has as many places as the grid that the model was made for."""
    torch.manual_seed(0)
    model = timm.create_model("vit_tiny_patch16_224", img_size=(32, 64), dynamic_img_size=True, depth=2).eval()
    model = model.requires_grad_(False).double()
    grid, x = (size[0] // 16, size[1] // 16), torch.randn(1, 3, *size).double()
    found = pl.method("gradient")(model, x, 0, "blocks.0")["blocks.0"]
    _, gradient = hooked(model, "blocks.0", x, [0])
    torch.testing.assert_close(found, gradient[:, 1:].mT.unflatten(2, grid), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("block", ["layers.0.blocks.0", "layers.1.blocks.0"])
def test_attention_is_no_map(block: str, seed: int) -> None:
    """Heads, queries and keys are three dimensions behind the batch, too, where a window is the whole image."""
    torch.manual_seed(seed)
    model = timm.create_model("swin_tiny_patch4_window7_224", **SWIN | {"window_size": 16}).eval()
    layers = [f"{block}.attn.softmax", f"{block}.attn.attn_drop"]
    found = layouts_of(model, layers, torch.randn(1, 3, 64, 64), {}, 64)
    assert found == dict.fromkeys(layers)
    with pytest.raises(InvalidLayer, match="cannot be told"):
        pl.method("gradient")(model, torch.randn(1, 3, 64, 64), 0, layers[0])


class Turned(nn.Module):
    """Two convolutions, whose output is handed on with its dimensions in another order."""

    def __init__(self, order: tuple[int, ...]) -> None:
        super().__init__()
        self.convolutions = nn.Sequential(nn.Conv2d(3, 8, 3, 2, 1), nn.ReLU(), nn.Conv2d(8, 12, 3, 1, 1))
        self.order, self.layer = order, nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        turned = self.layer(self.convolutions(x).permute(0, *(dim + 1 for dim in self.order)))
        return turned.flatten(1)[:, :5]


@pytest.mark.parametrize("order", list(permutations(range(3))))
@pytest.mark.parametrize("size", [(16, 16), (24, 12)])
def test_shuffled_dimensions_are_found(order: tuple[int, ...], size: tuple[int, int]) -> None:
    torch.manual_seed(0)
    letters = "".join("chw"[dim] for dim in order)
    images = torch.randn(2, 3, *size)
    found = layouts_of(Turned(order).eval(), ["layer"], images, {}, 64)
    assert found == {"layer": Layout("b" + letters)}


@pytest.mark.parametrize("dims", ["bchw", "bhwc", "bwhc", "bcwh", "bnc", "bcn", "bc"])
@pytest.mark.parametrize(("prefix", "suffix"), [(0, 0), (1, 0), (5, 2), (0, 3)])
def test_join_is_the_inverse_of_split(dims: str, prefix: int, suffix: int) -> None:
    prefix, suffix = (prefix, suffix) if "n" in dims else (0, 0)
    sizes = {"b": 2, "c": 7, "h": 3, "w": 4, "n": prefix + 12 + suffix}
    output = torch.randn([sizes[letter] for letter in dims])
    told = Layout(dims, prefix, suffix=suffix)
    maps, others = told.split(output, (30, 40))
    assert maps.shape == ((2, 7, 3, 4) if dims != "bc" else (2, 7))
    assert others.shape == (2, 7, prefix + suffix)
    assert torch.equal(told.join(maps, others), output)


def test_tokens_run_row_by_row_after_their_prefix() -> None:
    tokens = torch.arange(7.0).view(1, 7, 1)
    maps, prefix = Layout("bnc", 1).split(tokens, (20, 30))
    assert maps.tolist() == [[[[1, 2, 3], [4, 5, 6]]]]
    assert prefix.tolist() == [[[0]]]


class Everywhere(nn.Module):
    """A block that mixes all tokens and keeps every second along height and width."""

    def __init__(self, places: int, turned: bool = False) -> None:
        super().__init__()
        self.side, self.turned = math.isqrt(places), turned
        self.mix, self.out = nn.Linear(places, places), nn.Linear(6, 6)

    def forward(self, tokens: Tensor) -> Tensor:
        mixed = self.out(F.softmax(30 * self.mix(tokens.mT), -1).mT + 0.01 * tokens)
        mixed = mixed.unflatten(1, (self.side, self.side))[:, ::2, ::2]
        return (mixed.mT.flatten(2) if self.turned else mixed.flatten(1, 2)).contiguous()


def test_tokens_that_look_everywhere_are_those_of_the_first_block_of_their_class() -> None:
    """Only the first block's can be measured; of the last, the number of tokens fits."""

    class Stages(nn.Module):
        def __init__(self, turned: bool = False) -> None:
            super().__init__()
            self.patches, self.first = nn.Conv2d(3, 6, 2, 2), Everywhere(256)
            self.second, self.third = Everywhere(64), Everywhere(16, turned)

        def forward(self, x: Tensor) -> Tensor:
            tokens = self.second(self.first(self.patches(x).flatten(2).mT))
            return self.third(tokens).flatten(1)[:, :5]

    torch.manual_seed(0)
    nn.init.eye_((model := Stages().eval()).first.mix.weight)
    images, layers = torch.randn(1, 3, 32, 32), ["third", "second", "first"]
    sides = {"first": 8, "second": 4, "third": 2}
    expected = {name: Layout("bnc", 0, (sides[name], sides[name])) for name in layers}
    assert layouts_of(model, layers, images, {}, 64) == expected
    assert layouts_of(Stages(turned=True).eval(), ["third"], images, {}, 64)["third"] != expected["third"]


class Attending(nn.Module):
    """A block of self-attention; ``is_bare``: without a module that gives tokens before they are mixed."""

    def __init__(self, is_bare: bool) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(12, 36), nn.Linear(12, 12)
        self.is_bare = is_bare

    def forward(self, x: Tensor) -> Tensor:
        weights = F.linear(x, self.first.weight) if self.is_bare else self.first(x)
        x = x + F.scaled_dot_product_attention(*weights.chunk(3, -1))
        return x + F.linear(x, self.second.weight).tanh()


class Tokenized(nn.Module):
    """A transformer of 6 x 8 places, some of them before and the others behind tokens of no place."""

    def __init__(self, before: int, placeless: int, is_bare: bool = False) -> None:
        super().__init__()
        self.patches, self.head = nn.Conv2d(3, 12, 4, 4), nn.Linear(12, 3)
        self.before, self.tokens = before, nn.Parameter(torch.randn(1, placeless, 12))
        self.blocks = nn.Sequential(Attending(is_bare), Attending(is_bare), Attending(is_bare))

    def forward(self, x: Tensor) -> Tensor:
        places, tokens = self.patches(x).flatten(2).mT, self.tokens.expand(len(x), -1, -1)
        x = torch.cat([places[:, : self.before], tokens, places[:, self.before :]], 1)
        return self.head(self.blocks(x).square().mean(1))


@pytest.mark.parametrize(("before", "placeless"), [(0, 1), (0, 21), (48, 1), (48, 4), (48, 16)])
def test_tokens_of_no_place_are_found_before_and_after_the_others(before: int, placeless: int) -> None:
    """As a class token, prompts and the tokens of detections are, however many."""
    model, x = seeded(lambda: Tokenized(before, placeless)), torch.randn(1, 3, 24, 32).double()
    found = pl.method("gradient")(model, x, 0, "blocks.*")
    assert list(found) == ["blocks.0", "blocks.1", "blocks.2"]
    for layer, value in found.items():
        _, gradient = hooked(model, layer, x, [0])
        parts = gradient.split([before, placeless, 48 - before], 1)
        others, places = parts[1], torch.cat([parts[0], parts[2]], 1)
        torch.testing.assert_close(value, places.mT.unflatten(2, (6, 8)), rtol=1e-12, atol=1e-15)
        torch.testing.assert_close(found.prefixes[layer], others.mT, rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize(("before", "placeless"), [(24, 1), (24, 8), (6, 1), (24, 16)])
def test_tokens_of_no_place_among_the_others_are_refused(before: int, placeless: int) -> None:
    model, x = seeded(lambda: Tokenized(before, placeless)), torch.randn(1, 3, 24, 32).double()
    with pytest.raises(InvalidLayer, match="cannot be told"):
        pl.method("gradient")(model, x, 0, "blocks.1")


@pytest.mark.parametrize(("before", "placeless"), [(0, 1), (0, 8), (48, 1), (6, 1), (24, 1)])
def test_a_guess_at_tokens_that_are_mixed_where_they_first_show_is_refused(before: int, placeless: int) -> None:
    model, x = seeded(lambda: Tokenized(before, placeless, is_bare=True)), torch.randn(1, 3, 24, 32).double()
    assert layouts_of(model, ["blocks.1"], x, {}, 64) == {"blocks.1": None}
    plain = seeded(lambda: Tokenized(before, 0, is_bare=True))
    assert layouts_of(plain, ["blocks.1"], x, {}, 64) == {"blocks.1": Layout("bnc", 0, (6, 8))}


def test_layers_of_one_kind_are_measured_once(monkeypatch: pytest.MonkeyPatch) -> None:
    looked: list[Probe] = []
    monkeypatch.setattr("pellucid.layouts.measured", lambda *given: looked.append(given[0]) or measured(*given))
    monkeypatch.setattr("pellucid.layouts._told", lambda *_: None)
    model = timm.create_model("swin_tiny_patch4_window7_224", img_size=112, depths=(2, 2, 4, 2)).eval()
    blocks = [name for name in pl.layer_names(model) if ".blocks." in name]
    found = layouts_of(model, blocks, torch.randn(1, 3, 112, 112), {}, 64)
    assert (len(blocks), len(looked)) == (10, 8)  # of each stage the first and the last
    assert set(found.values()) == {Layout("bhwc")}


class Mixer(nn.Module):
    """Mixes channels that stand last."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(6, 6)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.mix(x).tanh()


class TurnedBetween(nn.Module):
    """Blocks of one class in (B, h, w, C), or of tokens, before some of which height and width are exchanged."""

    def __init__(self, turns: list[int], tokens: bool = False) -> None:
        super().__init__()
        self.stem, self.blocks = nn.Conv2d(3, 6, 3, 2, 1), nn.ModuleList(Mixer() for _ in range(4))
        self.head, self.turns, self.tokens = nn.Linear(8 * 8 * 6, 3), turns, tokens

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).permute(0, 2, 3, 1)
        for place, block in enumerate(self.blocks):
            x = x.transpose(1, 2) if place in self.turns else x
            x = block(x.flatten(1, 2)).unflatten(1, (8, 8)) if self.tokens else block(x)
        return self.head(x.flatten(1))


@pytest.mark.parametrize("asked", [[0, 1, 2, 3], [1, 2], [2], [3]])
@pytest.mark.parametrize(
    ("turns", "expected"),
    [([2], ["bhwc", "bhwc", "bwhc", "bwhc"]), ([1, 3], ["bhwc", "bwhc", "bwhc", "bhwc"])],
    ids=["turned", "turned and back"],
)
def test_blocks_of_one_class_before_and_after_a_turn_have_layouts_of_their_own(
    turns: list[int], expected: list[str], asked: list[int]
) -> None:
    torch.manual_seed(0)
    names = [f"blocks.{place}" for place in asked]
    found = layouts_of(TurnedBetween(turns).eval(), names, torch.randn(1, 3, 16, 16), {}, 64)
    assert found == {f"blocks.{place}": Layout(expected[place]) for place in asked}


def test_tokens_between_a_turn_and_one_back_are_refused() -> None:
    """They run column by column, which no layout says."""
    torch.manual_seed(0)
    found = layouts_of(
        TurnedBetween([1, 3], tokens=True).eval(), ["blocks.0", "blocks.2"], torch.randn(1, 3, 16, 16), {}, 64
    )
    assert found == {"blocks.0": Layout("bnc", 0, (8, 8)), "blocks.2": None}


class Beside(nn.Module):
    """Blocks of one class in (B, h, w, C), one behind another or beside each other, of which some see a mirror."""

    def __init__(self, mirrored: list[int], is_chain: bool) -> None:
        super().__init__()
        self.stem, self.blocks = nn.Conv2d(3, 6, 3, 2, 1), nn.ModuleList(Mixer() for _ in range(5))
        self.head, self.mirrored, self.is_chain = nn.Linear(8 * 8 * 6, 3), mirrored, is_chain

    def forward(self, x: Tensor) -> Tensor:
        x = self.stem(x).permute(0, 2, 3, 1)
        given, total = x, torch.zeros_like(x)
        for place, block in enumerate(self.blocks):
            seen = x if self.is_chain else given
            seen = seen.flip(2) if place in self.mirrored else seen
            x = block(seen)
            total = total + (x.flip(2) if place in self.mirrored else x)
            x = x.flip(2) if place in self.mirrored else x
        return self.head(total.flatten(1))


@pytest.mark.parametrize("is_chain", [True, False], ids=["one behind another", "beside each other"])
def test_mirrored_blocks_among_others_of_their_class_are_refused(is_chain: bool) -> None:
    torch.manual_seed(0)
    names = [f"blocks.{place}" for place in range(5)]
    found = layouts_of(Beside([1, 2], is_chain).eval(), names, torch.randn(1, 3, 16, 16), {}, 64)
    upright = Layout("bhwc")
    assert list(found.values()) == [upright, None, None, upright, upright]


def test_a_layer_whose_places_are_mixed_cannot_be_told() -> None:
    """Tokens in no order: no grid, so no guess."""
    assert layouts_of(unclear(), ["layer"], torch.randn(1, 3, 16, 16), {}, 64)["layer"] is None


def test_rows_that_are_no_images_cannot_be_told() -> None:
    class Windows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Identity()

        def forward(self, x: Tensor) -> Tensor:
            windows = self.layer(
                x.unflatten(2, (2, 8)).unflatten(4, (2, 8)).permute(0, 2, 4, 1, 3, 5).flatten(0, 2)
            )
            return windows.unflatten(0, (-1, 4)).mean((1, 3, 4))

    assert layouts_of(Windows().eval(), ["layer"], torch.randn(1, 3, 16, 16), {}, 64)["layer"] is None


def test_convolutions_of_windows_are_no_maps_of_images() -> None:
    class Windows(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer = nn.Conv2d(3, 4, 3, padding=1)

        def forward(self, x: Tensor) -> Tensor:
            windows = x.unflatten(2, (2, 8)).unflatten(4, (2, 8)).permute(0, 2, 4, 1, 3, 5).flatten(0, 2)
            return self.layer(windows).unflatten(0, (-1, 4)).mean((1, 3, 4))

    assert layouts_of(Windows().eval(), ["layer"], torch.randn(1, 3, 16, 16), {}, 64)["layer"] is None


def test_what_is_declared_is_believed() -> None:
    model, images, _ = made("swin")
    declared = {"layers.*": Layout("bwhc")}
    assert layouts_of(model, ["layers.0"], images, declared, 64)["layers.0"] == Layout("bwhc")


@pytest.mark.parametrize(
    "text", ["channels_first", "channels_last", "tokens(prefix=1)", "bwhc", "bcn(prefix=5, grid=(3, 4), suffix=2)"]
)
def test_a_layout_goes_to_text_and_back(text: str) -> None:
    assert layout(str(layout(text))) == layout(text)


@pytest.mark.parametrize(
    "text",
    ["", "nchw", "bchw(prefix=1)", "tokens(1)", "tokens(size=3)", "hbcw", "tokens(prefix=__import__('os'))"],
)
def test_what_is_no_layout_is_refused(text: str) -> None:
    with pytest.raises(InvalidParameter, match="layout"):
        layout(text)


@pytest.mark.parametrize(
    ("places", "image", "grid"), [(196, (224, 224), (14, 14)), (12, (30, 40), (3, 4)), (7, (8, 8), (1, 7))]
)
def test_the_grid_has_the_images_ratio(places: int, image: tuple[int, int], grid: tuple[int, int]) -> None:
    assert nearest_grid(places, image) in (grid, grid[::-1])


def test_probes_of_a_nonlinear_network_do_not_depend_on_their_number() -> None:
    model: Callable[[Tensor], Tensor] = nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, 4, 3)
    ).eval()
    for copies in (1, 2, 24):
        images = torch.randn(1, 3, 16, 16).expand(copies, -1, -1, -1).clone().requires_grad_()
        assert measured(Probe(model(images), images)) == Layout()


# What methods make of them.


def hooked(model: nn.Module, layer: str, images: Tensor, targets: list[int]) -> tuple[Tensor, Tensor]:
    """The layer's output and the gradient of the targets' logits there, by a hook by hand."""
    kept: list[Tensor] = []

    def keep(_: nn.Module, __: Any, output: Tensor) -> Tensor:
        kept.append(output.detach().requires_grad_())
        return kept[0].clone()

    handle = model.get_submodule(layer).register_forward_hook(keep)
    logits = model(images)
    handle.remove()
    (gradient,) = torch.autograd.grad(logits[range(len(targets)), targets].sum(), kept[0])
    return kept[0].detach(), gradient


def double(family: str) -> tuple[nn.Module, Tensor]:
    model, images, _ = made(family)
    return model.double(), torch.cat([images, images.flip(-1)]).double()


def test_the_gradient_at_tokens_is_that_of_a_hook_with_its_class_token_split_off() -> None:
    model, images = double("vit")
    found = pl.method("gradient")(model, images, [3, 5], "blocks.*")
    assert list(found) == ["blocks.0", "blocks.1", "blocks.2"]
    for layer, value in found.items():
        _, gradient = hooked(model, layer, images, [3, 5])
        expected = gradient[:, 1:].mT.reshape(2, -1, 4, 4)
        torch.testing.assert_close(value, expected, rtol=1e-12, atol=1e-15)
        torch.testing.assert_close(found.prefixes[layer], gradient[:, :1].mT, rtol=1e-12, atol=1e-15)


def test_the_gradient_channels_last_is_that_of_a_hook_turned() -> None:
    model, images = double("swin")
    found = pl.method("gradient")(model, images, [3, 5], ["layers.0"])["layers.0"]
    _, gradient = hooked(model, "layers.0", images, [3, 5])
    torch.testing.assert_close(found, gradient.permute(0, 3, 1, 2), rtol=1e-12, atol=1e-15)


@pytest.mark.parametrize(("family", "layer"), [("vit", "blocks.1"), ("swin", "layers.0")])
def test_grad_cam_weighs_channels_by_their_mean_over_places(family: str, layer: str) -> None:
    model, images = double(family)
    activation, gradient = hooked(model, layer, images, [3, 5])
    if family == "vit":
        activation, gradient = (value[:, 1:].mT.reshape(2, -1, 4, 4) for value in (activation, gradient))
    else:
        activation, gradient = (value.permute(0, 3, 1, 2) for value in (activation, gradient))
    found = pl.method("gradcam")(model, images, [3, 5], [layer])[layer]
    expected = activation * gradient.mean((-2, -1), keepdim=True)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-15)


def test_grad_cam_of_a_vector_does_not_mix_the_images() -> None:
    model, images = double("convnext")
    together = pl.method("gradcam")(model, images, [3, 5], ["head.norm"])["head.norm"]
    alone = pl.method("gradcam")(model, images[:1], [3], ["head.norm"])["head.norm"]
    torch.testing.assert_close(together[:1], alone, rtol=1e-11, atol=1e-15)


@pytest.mark.parametrize(("family", "layer"), [("vit", "blocks.0"), ("swin", "layers.0"), ("eva", "blocks.1")])
def test_a_path_is_complete_at_tokens_whose_prefix_is_counted(family: str, layer: str) -> None:
    model, images = double(family)
    method = pl.Gradient().integrated(64)
    found = method(model, images, [3, 5], [layer])
    with torch.no_grad():
        difference = (model(images) - model(torch.zeros_like(images)))[range(2), [3, 5]]
    total = found[layer].flatten(1).sum(1)
    if layer in found.prefixes:
        total = total + found.prefixes[layer].flatten(1).sum(1)
    torch.testing.assert_close(total, difference, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(found.residuals[layer], total - difference, rtol=0, atol=1e-9)


@pytest.mark.filterwarnings("ignore::pellucid.CompletenessWarning")
@pytest.mark.parametrize("name", ["random", "edges", "smoothgrad", "input_x_gradient", "gradcam"])
@pytest.mark.parametrize(("family", "layer", "size"), [("vit", "blocks.1", 4), ("swin", "layers.0", 16)])
def test_every_readout_gives_maps_of_the_grid(name: str, family: str, layer: str, size: int) -> None:
    model, images, _ = made(family)
    attribution = pl.method(name)(model, images, [3], [layer])[layer]
    assert attribution.shape[-2:] == (size, size)
    assert attribution.is_contiguous()  # so that it can be saved
    assert pl.heatmap(attribution, (64, 64)).shape == (1, 64, 64)


def test_edges_on_tokens_are_those_of_the_places_channels_first() -> None:
    model, images, _ = made("vit")
    found = pl.method("edges")(model, images, [3], ["input", "blocks.1"])
    expected = nn.functional.adaptive_avg_pool2d(found["input"].mean(1, keepdim=True), 4)
    torch.testing.assert_close(found["blocks.1"][:, :1], expected)
    assert not found.prefixes["blocks.1"].any()


def unclear() -> nn.Module:
    """The layer's tokens are in no order."""

    class Shuffled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.patch, self.layer = nn.Conv2d(3, 12, 4, 4), nn.Identity()
            self.order = torch.randperm(16, generator=torch.Generator().manual_seed(3))

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(self.patch(x).flatten(2)[..., self.order].mT).mean(1)

    return Shuffled().eval()


def test_a_layer_that_cannot_be_told_is_refused_with_the_way_to_declare_it() -> None:
    images = torch.randn(2, 3, 16, 16)
    with pytest.raises(InvalidLayer, match=r"layouts=\{'layer': 'tokens\(prefix=1\)'\}"):
        pl.method("gradient")(unclear(), images, 0, ["layer"])
    found = pl.method("gradient")(unclear(), images, 0, ["layer"], layouts={"lay*": "tokens"})
    assert found["layer"].shape == (2, 12, 4, 4)


def test_a_layer_that_cannot_be_told_is_skipped_with_a_warning_where_a_pattern_chose_it() -> None:
    with pytest.warns(SkippedLayerWarning, match="'layer'"):
        found = pl.method("gradient")(unclear(), torch.randn(2, 3, 16, 16), 0, "*")
    assert "layer" not in found
    assert "patch" in found


def test_a_declaration_that_does_not_fit_says_so() -> None:
    with pytest.raises(InvalidParameter, match="does not fit 16 tokens"):
        pl.method("gradient")(
            unclear(), torch.randn(2, 3, 16, 16), 0, ["layer"], layouts={"layer": "tokens(grid=(3, 4))"}
        )


def test_layouts_are_found_once_per_model() -> None:
    model, images, _ = made("vit")
    passes = []
    model.register_forward_pre_hook(lambda _, given: passes.append(len(given[0])))
    pl.method("gradient")(model, images, [3], ["blocks.1"])
    passes.clear()
    pl.method("gradient")(model, images, [3], ["blocks.1"])
    assert passes == [1]


class WithSize(nn.Module):
    """A block that gives (tokens, size), as MViT's do."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(3, 4, 3, padding=1)

    def forward(self, x):
        y = F.silu(self.conv(x[0] if isinstance(x, tuple) else x))
        return y, tuple(y.shape[-2:])


class Branches(nn.Module):
    """A block that gives two tensors, and one that runs only in training."""

    def __init__(self) -> None:
        super().__init__()
        self.wide, self.deep = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 5, padding=2)

    def forward(self, x):
        return [self.wide(x), self.deep(x)]


class Odd(nn.Module):
    """A network with blocks of every kind of output, a head of two layers, and a class read from one place."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.branches, self.last = WithSize(), Branches(), nn.Sequential(nn.Conv2d(4, 4, 3, padding=1))
        self.fine = WithSize()
        self.fine.conv = nn.Conv2d(4, 4, 1)
        self.head = nn.Linear(4, 5)

    def forward(self, x):
        x, _ = self.first(x)
        one, other = self.branches(x)
        x, _ = self.fine((one + other, None))
        return self.head(x.mean((2, 3)))


def test_an_output_with_one_tensor_is_that_tensor() -> None:
    net, x = seeded(Odd), images(2, 10)
    found = pl.Gradient()(net, x, [0, 1], ["first", "fine"])
    h, _ = net.first(x)
    h = h.detach().requires_grad_()
    y, _ = net.fine((sum(net.branches(h)), None))
    (expected,) = torch.autograd.grad(net.head(y.mean((2, 3)))[[0, 1], [0, 1]].sum(), h)
    assert relative_error(found["first"], expected) < 1e-12
    integrated = pl.Gradient().integrated(20)(
        net, x, [0, 1], "first"
    )  # what enters there is put back into the pair
    assert float(integrated.residuals["first"].abs().max()) < 1e-2


def test_a_block_with_several_tensors_is_skipped_and_said_or_refused() -> None:
    net, x = seeded(Odd), images(2, 10)
    with pytest.warns(pl.errors.SkippedLayerWarning, match="'branches'.*returns list with 2 tensors"):
        found = pl.Gradient()(net, x, 0, "*e*")  # branches, fine, head
    assert "fine" in found
    assert "branches" not in found
    with pytest.raises(pl.PellucidError, match="name a module inside it"):
        pl.Gradient()(net, x, 0, "branches")


def test_grad_cam_explains_the_last_block_whose_places_the_class_depends_on() -> None:
    model, x, _ = made("vit")
    *_, before, last = pl.layer_names(model)
    found = pl.GradCAM()(model, x, 0)
    assert list(found) == [before]  # of the last block the class token alone is read
    assert float(found[before].abs().max()) > 0
    with pytest.warns(pl.EmptyMapWarning):
        pl.GradCAM()(model, x, 0, last)
    x = images(2, 16)
    assert list(pl.GradCAM()(seeded(Odd), x, 0)) == ["fine"]
    with pytest.raises(pl.PellucidError, match="no block of the model gives a map"):
        pl.GradCAM()(seeded(lambda: nn.Sequential(nn.Flatten(), nn.Linear(768, 4), nn.Linear(4, 5))), x, 0)


def test_trainable_convolutions_are_known_without_measuring(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pellucid.layouts.measured", lambda probe: pytest.fail("measured"))
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(144, 2)).eval()
    assert all(parameter.requires_grad for parameter in net.parameters())
    assert pl.Gradient()(net, images(2, 8).float(), 0, "2")["2"].shape == (2, 4, 6, 6)


class Mixing(Odd):
    """The block before the head gives a list; the one before it is a map."""

    def __init__(self) -> None:
        super().__init__()
        self.fine, self.branches = self.branches, self.fine
        self.branches.conv = nn.Conv2d(4, 4, 3)

    def forward(self, x):
        x, _ = self.first(x)
        return self.head(sum(self.fine(x)).mean((2, 3)))


class Shuffled(nn.Module):
    """Its last block's places stand in an order that nobody can tell."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.last = WithSize(), WithSize()
        self.last.conv = nn.Conv2d(4, 4, 1)
        self.order, self.head = torch.randperm(100), nn.Linear(4, 5)
        self.block = nn.Sequential()
        self.tokens = Tokens(self.order)

    def forward(self, x):
        x, _ = self.first(x)
        return self.head(F.silu(self.tokens(x)).mean(1))


class Tokens(nn.Module):
    def __init__(self, order) -> None:
        super().__init__()
        self.conv, self.other, self.order = nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1), order

    def forward(self, x):
        return self.other(F.silu(self.conv(x))).flatten(2).mT[:, self.order]


def test_blocks_that_grad_cam_passes_over_are_said_and_layouts_declared_count() -> None:
    x = images(2, 10)
    with pytest.warns(pl.errors.SkippedLayerWarning, match=r"'first' is explained: of 'fine' after it"):
        assert list(pl.GradCAM()(seeded(Mixing), x, 0)) == ["first"]
    net = seeded(Shuffled)
    with pytest.warns(pl.errors.SkippedLayerWarning, match=r"'first' is explained: of 'tokens' after it"):
        assert list(pl.GradCAM()(net, x, 0)) == ["first"]
    declared = pl.GradCAM()(net, x, 0, layouts={"tokens": "tokens(grid=(10, 10))"})
    assert list(declared) == ["tokens"]


class Turning(nn.Module):
    """Gives its convolution's dimensions in an order that may be set anew."""

    def __init__(self) -> None:
        super().__init__()
        self.order, self.conv = (0, 2, 3, 1), nn.Conv2d(3, 6, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(x).permute(self.order)


def test_the_layout_of_a_layer_that_was_changed_is_told_anew() -> None:
    block = seeded(Turning)
    net, x = nn.Sequential(block, nn.Tanh()), torch.ones(1, 3, 12, 12).double()
    assert layouts_of(net, ["0"], x, {}, 4) == {"0": Layout("bhwc")}
    block.order = (0, 3, 2, 1)
    assert layouts_of(net, ["0"], x, {}, 4) == {"0": Layout("bwhc")}


class TokensFirst(nn.Module):
    """Tokens (N, B, C), as torch's transformers take them by default."""

    def __init__(self) -> None:
        super().__init__()
        self.patches, self.mixing, self.head = nn.Conv2d(3, 4, 4, stride=4), nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).permute(2, 0, 1)
        return self.head(self.mixing(tokens).tanh().mean(0))


@pytest.mark.parametrize(("size", "max_batch"), [((4, 28), 64), ((8, 8), 4), ((8, 16), 64)])
def test_tokens_before_the_batch_are_never_taken_for_images(size: tuple[int, int], max_batch: int) -> None:
    """Also where they are as many as the images, or as the copies of an image that are looked at."""
    model, tokens = seeded(TokensFirst), size[0] * size[1] // 16
    x = torch.randn(tokens, 3, *size).double()
    with pytest.raises(InvalidLayer, match="cannot be told"):
        pl.method("gradient")(model, x, 0, "mixing", max_batch=max_batch)
    with pytest.raises(InvalidLayer, match=f"gives {tokens} rows for one image"):
        pl.method("gradient")(model, x, 0, "mixing", max_batch=max_batch, layouts={"mixing": "tokens"})


BACKWARDS = torch.arange(23, -1, -1)


class Turns(nn.Module):
    """Convolutions of an image that is turned, mirrored or shuffled before."""

    def __init__(self, turn: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.one, self.two, self.head = (
            nn.Conv2d(3, 4, 3, padding=1),
            nn.Conv2d(4, 4, 3, padding=1),
            nn.Linear(4, 3),
        )
        self.turn = turn

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.two(self.turn(self.one(x).relu())).relu().square().mean((2, 3)))


class OwnTurn(torch.autograd.Function):
    """The exchange of height and width, as a function of the model's own."""

    @staticmethod
    def forward(ctx: object, x: Tensor) -> Tensor:
        return x.mT.clone()

    @staticmethod
    def backward(ctx: object, gradient: Tensor) -> Tensor:
        return gradient.mT.clone()


@pytest.mark.parametrize(
    "turn",
    [
        lambda x: x.mT,
        lambda x: x.permute(0, 1, 3, 2),
        lambda x: torch.einsum("bchw->bcwh", x),
        lambda x: x.rot90(1, (2, 3)).flip(2),
        OwnTurn.apply,
    ],
)
@pytest.mark.parametrize("size", [(12, 12), (8, 12)])
def test_the_map_behind_an_exchange_of_height_and_width_is_the_images(
    turn: Callable[[Tensor], Tensor], size: tuple[int, int]
) -> None:
    model, x = seeded(lambda: Turns(turn)), torch.randn(2, 3, *size).double()
    found = pl.method("gradient")(model, x, 0, ["one", "two"])
    leaf = model.turn(model.one(x).relu()).detach()
    above = model.two(leaf).detach().requires_grad_()
    (wanted,) = torch.autograd.grad(model.head(above.relu().square().mean((2, 3)))[:, 0].sum(), above)
    torch.testing.assert_close(found["two"], wanted.mT, rtol=1e-12, atol=1e-14)
    assert found["one"].shape[2:] == found["two"].shape[2:] == size


@pytest.mark.parametrize(
    "turn", [lambda x: x.flip(2), lambda x: x[..., BACKWARDS[-12:]], lambda x: x.rot90(1, (2, 3))]
)
def test_a_map_that_is_mirrored_is_refused_and_may_be_declared(turn: Callable[[Tensor], Tensor]) -> None:
    model, x = seeded(lambda: Turns(turn)), torch.randn(2, 3, 12, 12).double()
    with pytest.raises(InvalidLayer, match="cannot be told"):
        pl.method("gradient")(model, x, 0, "two")
    assert pl.method("gradient")(model, x, 0, "two", layouts={"two": "channels_first"})["two"].shape[1:] == (
        4,
        12,
        12,
    )


class Before(nn.Module):
    """Convolutions of an image to which something is done before."""

    def __init__(self, change: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.change, self.one, self.two = change, nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.two(self.one(self.change(x)).relu()).square().mean((2, 3))


@pytest.mark.parametrize(
    "change",
    [
        lambda x: x[..., BACKWARDS],
        lambda x: x[:, :, BACKWARDS],
        lambda x: x.index_select(3, BACKWARDS),
        lambda x: x.gather(3, BACKWARDS.expand_as(x)),
        lambda x: x @ torch.eye(24).flip(0).to(x),
        lambda x: x.roll(12, 3),
        lambda x: x.roll(3, 2),
        lambda x: x[..., torch.randperm(24, generator=torch.Generator().manual_seed(0))],
        lambda x: torch.cat([x, x], 3),
    ],
)
def test_images_that_are_reordered_before_the_first_convolution_are_seen(
    change: Callable[[Tensor], Tensor],
) -> None:
    model, x = seeded(lambda: Before(change)), torch.randn(1, 3, 24, 24).double()
    assert layouts_of(model, ["one", "two"], x, {}, 64) == {"one": None, "two": None}
    with pytest.raises(InvalidLayer, match="cannot be told"):
        pl.method("gradient")(model, x, 0, "two")


@pytest.mark.parametrize(
    ("change", "least"),
    [
        (lambda x: x[..., 6:18, 6:18], 0.18),
        (lambda x: F.pad(x, (0, 12, 0, 0)), 0.2),
        (lambda x: F.pad(x, (0, 72, 0, 0)), 0.3),
    ],
    ids=["cut", "padded", "padded far"],
)
def test_images_that_are_cut_or_padded_before_the_first_convolution_are_said(
    change: Callable[[Tensor], Tensor], least: float
) -> None:
    model, x = seeded(lambda: Before(change)), torch.randn(1, 3, 24, 24).double()
    for _ in range(2):
        with pytest.warns(pl.DisplacedMapWarning, match=r"'two' lies up to .* pads images") as said:
            pl.method("gradient")(model, x, 0, ["input", "two"])
        assert len(said) == 1
    assert displaced(model, x) >= least


@pytest.mark.parametrize(
    "change",
    [
        lambda x: F.interpolate(2 * x - 1, (20, 30), mode="bicubic"),
        lambda x: torch.cat([x[:, [0]].clamp(-3, 3) / 2, x[:, 1:]], 1),
        lambda x: F.pad(x, (0, 1, 0, 1)),
        lambda x: x.permute(0, 2, 3, 1).mul(2).permute(0, 3, 1, 2),
    ],
)
def test_images_that_stay_in_place_are_not_displaced(change: Callable[[Tensor], Tensor]) -> None:
    model, x = seeded(lambda: Before(change)), torch.randn(1, 3, 24, 24).double()
    assert layouts_of(model, ["two"], x, {}, 64) == {"two": Layout()}
    assert displaced(model, x) == 0


def test_an_ordinary_network_is_passed_once_for_its_layouts() -> None:
    model, x = seeded(lambda: Before(lambda x: x / 2)), torch.randn(1, 3, 24, 24).double()
    passes = []
    model.register_forward_pre_hook(lambda _, given: passes.append(len(given[0])))
    layouts_of(model, ["one", "two"], x, {}, 64)
    assert passes == [1]


@pytest.mark.parametrize(
    "turn",
    [
        nn.ChannelShuffle(2),
        lambda x: x.unflatten(1, (2, 2)).transpose(1, 2).flatten(1, 2),
        lambda x: (x.permute(0, 2, 3, 1) * 2).permute(0, 3, 1, 2),
        lambda x: x + x.mT / 8,
        lambda x: x + x.flip(-1) / 8,
    ],
)
def test_what_moves_channels_alone_or_goes_back_is_upright(turn: Callable[[Tensor], Tensor]) -> None:
    model, x = seeded(lambda: Turns(turn)), torch.randn(1, 3, 12, 12).double()
    assert layouts_of(model, ["two"], x, {}, 64)["two"] == Layout()
