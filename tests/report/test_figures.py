"""Figures: crisp pixels, centered colors, nothing clipped, text as text."""

import re
from itertools import pairwise

import numpy as np
import pytest
from PIL import Image

from pellucid.errors import InvalidParameter, OutputNotWritable
from pellucid.report import album, figures
from pellucid.report.figures import CaptionedPhoto, Overlay, grid, text_width, wrapped, write_figure, write_map
from pellucid.report.pages import MapTable, Page, Picture, Section, Table, TableCell, Tile

CHECKERBOARD = np.indices((8, 8)).sum(0) % 2 * 2.0 - 1
PHOTO = CaptionedPhoto(np.full((64, 64, 3), (10, 200, 30), np.uint8), "circle 99.3 %", "shape-0")


def drawn(tmp_path, *arguments, **settings):
    write_figure(grid(*arguments, **settings), tmp_path / "figure.png")
    return np.asarray(Image.open(tmp_path / "figure.png").convert("RGB")).astype(int)


def pixels_of(picture, color):
    return (np.abs(picture - np.array(color)).max(-1) <= 1).sum()


def test_a_checkerboard_stays_crisp(tmp_path):
    picture = drawn(tmp_path, [[CHECKERBOARD]], ["a"], photos=[PHOTO])
    blue, red = figures.colored(np.array([-1.0, 1.0]), signed=True)
    cell = 4 * 64
    # Each color covers half of the cell, but for the frame and the ends of the color bar.
    for color in (blue, red):
        assert 0.47 * cell**2 < pixels_of(picture, color) < 0.51 * cell**2


def test_the_photo_is_drawn_as_it_is(tmp_path):
    picture = drawn(tmp_path, [[CHECKERBOARD]], ["a"], photos=[PHOTO])
    assert pixels_of(picture, (10, 200, 30)) > 0.97 * (4 * 64) ** 2


def test_an_overlay_shows_the_photo_where_the_map_is_zero(tmp_path):
    half = np.zeros((64, 64))
    half[:, 32:] = 1
    halves = CaptionedPhoto(
        np.tile(np.repeat([[40, 220]], 32, axis=0).reshape(64, 1, 1), (1, 64, 3)).astype(np.uint8)
    )
    shown = figures.overlaid(half, halves.pixels, signed=True)
    assert (shown[:, :32] == halves.pixels[:, :32]).all()
    assert (shown[:, 32:, 0] > shown[:, 32:, 2]).all()
    assert len(np.unique(shown[:, 32:].reshape(-1, 3), axis=0)) == 2  # the photo's two grays are still told apart
    plain, over = (drawn(tmp_path, [[half]], ["a"], photos=[halves], overlay=overlay) for overlay in (False, True))
    assert (plain != over).any()


def test_where_signs_change_an_overlay_draws_no_line():
    gray = np.full((1, 201, 3), 140, np.uint8)
    shown = figures.overlaid(np.linspace(-1, 1, 201)[None], gray, signed=True).astype(int)[0]
    distance = np.abs(shown - 140).sum(-1)
    assert (np.diff(distance[:101]) <= 0).all()
    assert (np.diff(distance[100:]) >= 0).all()
    assert np.abs(np.diff(distance)).max() < 6


@pytest.mark.parametrize("alpha", [0.0, 0.3, 1.0])
def test_alpha_is_what_the_strongest_value_hides(alpha):
    photo = np.full((8, 8, 3), 200, np.uint8)
    shown = figures.overlaid(np.ones((8, 8)), photo, True, Overlay(alpha)).astype(int)
    for channel, hue in enumerate((178, 24, 43)):
        assert np.abs(shown[..., channel] - (200 + alpha * (hue - 200))).max() <= 0.5


def test_contours_enclose_what_is_half_as_strong():
    values = np.zeros((20, 20))
    values[5:15, 5:15] = 0.6
    photo = np.full((20, 20, 3), 200, np.uint8)
    drawn = (figures.overlaid(values, photo, True, Overlay(0, contours=True)) != 200).any(-1)
    expected = np.zeros((20, 20), bool)
    expected[5:15, 5:15] = True
    expected[7:13, 7:13] = False
    inside = np.zeros((20, 20), bool)
    inside[[7, 7, 12, 12], [7, 12, 7, 12]] = True  # a rim two pixels wide rounds its inner corners
    assert (drawn[~inside] == expected[~inside]).all()
    with pytest.raises(InvalidParameter, match="alpha"):
        Overlay(1.5)


def test_a_figure_is_at_most_4000_pixels_wide():
    photo = CaptionedPhoto(np.zeros((1000, 1500, 3), np.uint8))
    figure = grid([[np.zeros((1000, 1500))] * 6], ["a"] * 6, photos=[photo])
    assert 3990 < figure.width <= 4000
    (_, _, width, height, _), *_ = figure.pictures
    assert width / height == pytest.approx(1.5, abs=0.01)


def test_the_legend_says_which_class_and_what_was_clipped():
    texts = [one.text for one in grid([[CHECKERBOARD]], ["a"], explained="altar", clip=(0.5, 99.5)).texts]
    assert {"for altar", "against altar"} <= set(texts)
    assert "clipped at percentiles 0.5 and 99.5" in " ".join(texts)
    long = "a class of a name that is far too long for the place below the bar of colors"
    texts = " ".join(one.text for one in grid([[CHECKERBOARD]], ["a"], explained=long).texts)
    assert long in texts


@pytest.mark.parametrize("columns", [1, 2, 3])
@pytest.mark.parametrize("rows", [[], ["gradcam"], ["original", "backward"], ["smoothed(guided_backprop)"]])
@pytest.mark.parametrize("photos", [[], [PHOTO]])
def test_the_whole_legend_is_seen(columns, rows, photos):
    cells = [[CHECKERBOARD] * columns for _ in rows or "1"]
    figure = grid(cells, ["layer4.1"] * columns, rows, photos, explained="an African hunting dog")
    bars = [(x, width) for x, _, width, _, pixels in figure.pictures if pixels.shape[0] == 1]
    assert [0 < x < x + width < figure.width for x, width in bars] == [True]
    for one in figure.texts:
        shares = {"l": 0, "m": 0.5, "r": 1}[one.anchor[0]]
        wide = figures._font(one.size, one.weight).getlength(one.text)
        assert one.x - shares * wide >= 0
        assert one.x + (1 - shares) * wide <= figure.width


def test_signed_colors_are_centered_and_symmetric():
    below, zero, above = figures.colored(np.array([-0.6, 0.0, 0.6]), signed=True).astype(int)
    assert zero.min() > 240
    assert below[2] > below[0]
    assert above[0] > above[2]
    skewed = np.array([[-1.0, 0.0], [0.0, 100.0]])
    assert (figures.scaled(skewed) == 0).sum() == 2


def test_unsigned_colors_grow_lighter():
    lightness = figures.colored(np.linspace(0, 1, 50), signed=False) @ np.array([0.299, 0.587, 0.114])
    assert (np.diff(lightness) > 0).all()


def test_shared_scaling_keeps_differences_between_maps(tmp_path):
    weak, strong = 0.1 * np.eye(4), np.eye(4)
    strongest = figures.colored(np.array([1.0]), signed=False)[0]
    own = pixels_of(drawn(tmp_path, [[weak, strong]], ["a", "b"]), strongest)
    shared = pixels_of(drawn(tmp_path, [[weak, strong]], ["a", "b"], scale="figure"), strongest)
    assert 1.9 < own / shared < 2.1


@pytest.mark.parametrize("size", [(28, 28), (64, 64), (224, 224), (96, 160)])
def test_nothing_is_clipped(tmp_path, size):
    name = "features.denseblock3.denselayer12.conv2"
    photo = CaptionedPhoto(
        np.zeros((*size, 3), np.uint8), "a_class_of_a_very_long_name_indeed 99.3 %", "folder/" * 9 + "a.jpg"
    )
    rows = ["smoothed(integrated(guided_backprop, steps=50), samples=15)", "original"]
    picture = drawn(tmp_path, [[CHECKERBOARD] * 3] * 2, [name] * 3, rows, [photo] * 2, title=name * 4)
    border = np.concatenate(
        [picture[:6].ravel(), picture[-6:].ravel(), picture[:, :6].ravel(), picture[:, -6:].ravel()]
    )
    assert (border == 255).all()


def test_long_names_are_wrapped_within_their_width():
    for text in ("features.denseblock3.denselayer12.conv2", "x" * 80, "smoothed(integrated(gradient, steps=50))"):
        lines = wrapped(text, 1.5, 8.5).split("\n")
        assert max(text_width(line, 8.5) for line in lines) <= 1.5
        assert re.sub(r"\s", "", "".join(lines)) == re.sub(r"\s", "", text)


def test_a_line_takes_all_that_fits_however_long_the_word():
    word = "0123456789abcdef" * 10_000
    lines = wrapped(word, 1.5, 8.5).split("\n")
    assert "".join(lines) == word
    for line, following in pairwise(lines[:200]):
        assert text_width(line, 8.5) <= 1.5 < text_width(line + following[0], 8.5)


def test_a_dollar_sign_is_no_formula(tmp_path):
    assert drawn(tmp_path, [[CHECKERBOARD]], ["$x_1$"], title="50 $ and 60 $").size


def test_svg_keeps_text_and_is_reproducible(tmp_path):
    for name in ("a.svg", "b.svg"):
        write_figure(grid([[CHECKERBOARD]], ["layer1.0"], photos=[PHOTO], title="A title"), tmp_path / name)
    text = (tmp_path / "a.svg").read_text()
    assert ">layer1.0</text>" in text
    assert ">A title</text>" in text
    assert "pixelated" in text
    assert text == (tmp_path / "b.svg").read_text()


def test_a_single_map_has_one_pixel_per_value(tmp_path):
    write_map(CHECKERBOARD, tmp_path / "map.png")
    picture = np.asarray(Image.open(tmp_path / "map.png"))
    assert picture.shape == (8, 8, 3)
    assert len(np.unique(picture.reshape(-1, 3), axis=0)) == 2


@pytest.mark.parametrize("letter", [*map(chr, (*range(1, 32), *range(127, 160))), "\u2028", "\u2029", "\u202e"])
def test_names_with_any_control_can_be_drawn(tmp_path, letter):
    name = f"a{letter}b"
    photo = CaptionedPhoto(PHOTO.pixels, f"{name} 99.3 %", name)
    drawn(tmp_path, [[CHECKERBOARD]], [name], [name], photos=[photo], title=name, explained=name)
    if letter in "\r\x1c\x1d\x1e\x85\u2029":
        assert text_width(name, 8) == text_width("a\ufffdb", 8)


def test_a_blank_map_and_an_empty_cell_can_be_drawn(tmp_path):
    assert drawn(tmp_path, [[np.zeros((4, 4)), None]], ["a", "b"]).min() < 255


@pytest.mark.parametrize("value", [-3e-9, 2.0])
def test_a_map_of_one_value_has_the_color_of_zero_and_says_so(tmp_path, value):
    middle = figures.colored(np.zeros(1), signed=True)[0]
    alike = np.full((8, 8), value)
    assert (figures.colored(figures.scaled(alike), True) == middle).all()
    assert (figures.colored(figures.scaled(alike * (1 + 1e-7 * CHECKERBOARD)), True) == middle).all()  # enlarged
    assert (figures.colored(figures.scaled(alike * (1 + 1e-5 * CHECKERBOARD)), True) != middle).any()
    told = {"one value": alike, "zero everywhere": 0 * alike, "": CHECKERBOARD}
    for overlay in (False, True):
        figure = grid([list(told.values())], ["a", "b", "c"], photos=[PHOTO], overlay=overlay)
        assert [one.text for one in figure.texts if one.text in ("one value", "zero everywhere")] == list(told)[:2]
    for words, values in told.items():
        for over in (None, Overlay()):
            tile = album.map_tile(values, "gradient", True, PHOTO.pixels, over)
            assert (tile.note, tile.words) == (words, f"gradient: {words}" if words else "gradient")
    page = Page("t", [], [Section("s", maps=[MapTable(["a"], [("r", [Tile("data:,", "m", note="one value")])])])])
    assert "<small>one value</small>" in page.html()
    shared = grid([[alike, 10 * CHECKERBOARD]], ["a", "b"], scale="figure")  # there it is told from other maps
    assert len(np.unique(shared.pictures[0][-1].reshape(-1, 3), axis=0)) == 1
    assert (np.abs(shared.pictures[0][-1][0, 0].astype(int) - middle).max() > 20) == (abs(value) > 0.1)


@pytest.mark.parametrize(
    ("cells", "columns", "rows", "photos"),
    [
        ([[CHECKERBOARD]], ["a", "b"], [], []),
        ([[None]], ["a"], [], []),
        ([[CHECKERBOARD]], ["a"], ["x", "y"], []),
        ([[CHECKERBOARD]], ["a"], [], [PHOTO] * 3),
        ([[CHECKERBOARD]] * 2, ["a"], [], [PHOTO, CaptionedPhoto(np.zeros((8, 8, 3), np.uint8))]),
    ],
)
def test_a_table_that_does_not_fit_is_refused(cells, columns, rows, photos):
    with pytest.raises(InvalidParameter, match=r"give|takes"):
        grid(cells, columns, rows, photos)


def test_nothing_half_written_is_left(tmp_path):
    with pytest.raises(OutputNotWritable, match="cannot write"):
        write_map(CHECKERBOARD, tmp_path / "missing" / "map.png")
    (tmp_path / "taken.png").mkdir()
    with pytest.raises(OutputNotWritable, match=r"taken\.png"):
        write_map(CHECKERBOARD, tmp_path / "taken.png")
    assert [path.name for path in tmp_path.iterdir()] == ["taken.png"]


def test_a_page_is_escaped_and_needs_nothing_else(tmp_path):
    write_map(CHECKERBOARD, tmp_path / "map.png")
    table = Table.of(["layer", "drop"], [["layer1", TableCell("50 %", bar=0.5)]], "caption")
    section = Section("A <b>", ["x & y"], [table], [Picture(tmp_path / "map.png", 'a "map"')])
    text = Page("Title", ["lead"], [section], "footer").html()
    assert "A &lt;b&gt;" in text
    assert "x &amp; y" in text
    assert "data:image/png;base64," in text
    assert "width: 50.0%" in text
    assert not re.search(r"https?://|<script|<link", text)
    assert "prefers-color-scheme: dark" in text
