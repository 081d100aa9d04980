"""What tables and figures show, against the results read by hand."""

import numpy as np
import pytest

from pellucid.errors import InvalidData
from pellucid.findings.statistics import Statistics
from pellucid.papers.exhibits import exhibited
from pellucid.papers.quantities import found
from pellucid.papers.recipe import Quantity, Recipe
from tests.papers.example import INSERTION, RECIPE, example
from tests.tables import LAYERS, METHODS, NAN, npy, png, results

RUN = example()
STATISTICS = RUN.statistics["all"]
VALUES = STATISTICS.values
NOISE = "total_variation"


def show(results=RUN.results["all"], statistics=STATISTICS, like="", labels=RECIPE["labels"], **exhibit):
    """What an exhibit shows that is like the recipe's but for some settings."""
    [alike] = [one for one in RECIPE["exhibits"] if one["key"] == like]
    recipe = Recipe.model_validate(RECIPE | {"exhibits": [alike | exhibit], "claims": [], "labels": labels})
    return exhibited(recipe.exhibits[0], recipe, results, statistics)


def mean(variant, method, layer, metric):
    return VALUES.loc["net", variant, method, layer, metric].mean()


# Tables.


def test_a_table_has_our_numbers_beside_the_papers():
    table = show(like="table5")
    assert table.rows == ("SmoothGrad", "Gradient", "IG")
    assert table.columns == ("F", "B")
    for row, method in enumerate(["smoothgrad", "gradient"]):
        for column, variant in enumerate(["forward", "backward"]):
            ratios = [
                mean(variant, method, layer, "total_variation")
                / mean("original", method, layer, "total_variation")
                for layer in LAYERS
            ]
            cell = table.cells[row][column]
            assert cell.found.value == pytest.approx(100 * (1 - np.mean(ratios)), rel=1e-10)
            assert cell.found.low < cell.found.value < cell.found.high
            assert (cell.found.images, cell.found.rows) == (12, 3)
    assert [[cell.paper for cell in row] for row in table.cells] == [[None, None], [21.8, 19.5], [None, 12.2]]
    assert [cell.found for cell in table.cells[2]] == [None, None]


def test_a_negative_factor_turns_the_interval_round():
    plain, turned = (show(like="table5", by=by).cells[0][0].found for by in (1, -1))
    assert (turned.value, turned.low, turned.high) == (-plain.value, -plain.high, -plain.low)


def test_names_that_are_called_alike_are_one_row():
    labels = {"s*": "smooth", "g*": "gradients"}
    table = show(like="table5", by=1, labels=labels, where={"metric": INSERTION}, paper={})
    assert table.rows == ("random", "edges", "gradients", "smooth")
    assert table.columns == ("original", "backward", "forward")
    methods = ("gradient", "guided_backprop", "gradcam")
    both = [mean("original", method, layer, INSERTION) for method in methods for layer in LAYERS]
    assert table.cells[2][0].found.value == pytest.approx(np.mean(both), rel=1e-10)
    assert table.cells[2][0].found.rows == 9


def test_a_table_of_steps():
    table = show(
        like="table5",
        columns="metric",
        by=1,
        paper={},
        labels={},
        where={"metric": "cascade_ssim", "layer": "input", "variant": "original", "step": "fc"},
    )
    points = STATISTICS.points.xs("fc", level="step").droplevel("at")
    for name, (cell,) in zip(table.rows, table.cells, strict=True):
        expected = np.nanmean(points.loc["net", "original", name, "input", "cascade_ssim"])
        assert cell.found.value == pytest.approx(expected, rel=1e-12)


# Curves.


def test_a_line_along_the_layers_has_their_means_and_intervals():
    panels = show(like="figure5-7")
    assert [panel.title for panel in panels] == ["O", "B", "F"]
    for panel, variant in zip(panels, ["original", "backward", "forward"], strict=True):
        assert panel.ticks == ((0, "the image"), (1, "layer1.1"), (2, "layer2.1"))
        assert panel.up == "mean score"
        names = ["random", "edges", "Gradient", "SmoothGrad", "guided_backprop", "gradcam"]
        assert [line.name for line in panel.lines] == names
        assert [line.floor for line in panel.lines] == ["random", "edges", "", "", "", ""]
        for line, method in zip(panel.lines, METHODS, strict=True):
            rows = STATISTICS.summary.loc[[("net", variant, method, layer, INSERTION) for layer in LAYERS]]
            assert line.x.tolist() == [0, 1, 2]
            for column in ("mean", "low", "high"):
                np.testing.assert_allclose(getattr(line, column), rows[column], rtol=1e-10)


def test_layers_stand_in_the_models_order_and_missing_ones_are_gaps():
    key = ("net", "original", "gradient")
    values = {(*key, layer, "insertion"): [1.0, 2.0, 3.0] for layer in ("deep", "input")}
    values["net", "original", "gradcam", "deep", "insertion"] = [4.0, 5.0, 6.0]
    made = results(values)
    made.record.layers["net"] = ["input", "middle", "deep"]
    [panel] = show(made, Statistics.of(made), like="figure5-7", labels={})
    assert [name for _, name in panel.ticks] == ["input", "deep"]
    np.testing.assert_array_equal(panel.lines[1].mean, [NAN, 5])


def test_each_network_has_its_own_order_of_layers():
    """Layers that two networks share do not stand before those that only one has."""
    values = {
        (model, "original", "gradient", layer, "insertion"): [1.0, 2.0, 3.0]
        for model, layers in {"net": ("block1", "block3"), "deeper": ("block1", "block2", "block3")}.items()
        for layer in layers
    }
    made = results(values)
    made.record.layers.update(net=["block1", "block3"], deeper=["block1", "block2", "block3"])
    where = {"metric": "insertion"}
    panels = show(made, Statistics.of(made), like="figure5-7", labels={}, panels="model", where=where)
    ticks = {panel.title: [name for _, name in panel.ticks] for panel in panels}
    assert ticks == {"net": ["block1", "block3"], "deeper": ["block1", "block2", "block3"]}


def test_a_line_along_a_curve_has_its_named_steps():
    [panel] = show(like="figure8")
    assert panel.ticks == ((0, "none"), (1, "fc"), (2, "layer2.1"), (3, "layer1.1"), (4, "conv1"))
    assert panel.up == "SSIM"
    curves = STATISTICS.curves.sort_index()
    for line, method in zip(panel.lines, METHODS, strict=True):
        rows = curves.loc["net", "original", method, "input", "cascade_ssim"]
        for column in ("mean", "low", "high"):
            np.testing.assert_allclose(getattr(line, column), rows[column], rtol=1e-10)


def test_a_curve_without_steps_has_its_levels():
    panels = show(like="curves")
    assert [panel.title for panel in panels] == ["the image", "layer1.1", "layer2.1"]
    curves = STATISTICS.curves.sort_index()
    for panel, layer in zip(panels, LAYERS, strict=True):
        assert panel.ticks == ()
        assert [line.name for line in panel.lines] == ["O", "B", "F"]
        for line, variant in zip(panel.lines, ["original", "backward", "forward"], strict=True):
            rows = curves.loc["net", variant, "gradient", layer, INSERTION]
            np.testing.assert_allclose(line.x, rows.index.get_level_values("at"), rtol=1e-12)
            np.testing.assert_allclose(line.mean, rows["mean"], rtol=1e-10)


def test_a_curve_over_several_layers_is_their_mean_and_may_be_compared():
    where = {"metric": INSERTION, "method": "gradcam", "how": "difference", "against": {"method": "random"}}
    [panel] = show(like="curves", panels="method", where=where | {"variant": "original"})
    [line] = panel.lines
    points = STATISTICS.points
    for place, at in enumerate(np.unique(points.xs(INSERTION, level="metric").index.get_level_values("at"))):
        differences = [
            (
                points.loc["net", "original", "gradcam", layer, INSERTION, at, ""]
                - points.loc["net", "original", "random", layer, INSERTION, at, ""]
            ).mean()
            for layer in LAYERS
        ]
        assert line.mean[place] == pytest.approx(np.mean(differences), rel=1e-10)


# Boxes.


def test_a_box_is_of_the_images_values():
    panels = show(like="figure9")
    assert [panel.title for panel in panels] == ["the image", "layer1.1", "layer2.1"]
    for panel, layer in zip(panels, LAYERS, strict=True):
        assert panel.up == "share"
        for box, method in zip(panel.boxes, METHODS, strict=True):
            values = sorted(VALUES.loc["net", "original", method, layer, "mass_outside"])
            first, median, third = np.percentile(values, [25, 50, 75])
            assert (box.first, box.median, box.third, box.images) == (first, median, third, 12)
            inside = [v for v in values if first - 1.5 * (third - first) <= v <= third + 1.5 * (third - first)]
            assert (box.low, box.high) == (inside[0], inside[-1])


def test_whiskers_end_before_values_far_away_and_never_inside_the_box():
    values = {("net", "original", "gradient", "input", "insertion"): [1.0, 2.0, 3.0, 4.0, 100.0, NAN]}
    made = results(values)
    [panel] = show(made, Statistics.of(made), like="figure9", where={})
    [box] = panel.boxes
    assert (box.low, box.first, box.median, box.third, box.high, box.images) == (1, 2, 3, 4, 4, 5)
    made = results({key: [0.0, 10.0, 10.0, 10.0, 50.0] for key in values})
    assert show(made, Statistics.of(made), like="figure9", where={})[0].boxes[0].high == 10


# Maps.


def test_maps_stand_by_rows_and_columns_beside_their_photo():
    pictures = RUN.results["all"].pictures
    first, second = show(like="figure1")
    assert (first.image, second.image) == ("image-0", "image-1")
    assert first.rows == ("O", "B", "F")
    assert first.columns == ("random", "edges", "Gradient", "SmoothGrad", "guided_backprop", "gradcam")
    assert second.photo.shape == (64, 64, 3)
    rows = pictures[(pictures.image == "image-1") & (pictures.layer == "input") & (pictures.variant == "backward")]
    for cell, method in zip(second.cells[1], METHODS, strict=True):
        [data] = rows[rows.method == method].data
        assert npy(cell) == data
    assert len(show(like="figure1", photos=1)) == 1


def test_a_final_threshold_is_that_of_the_first_pattern_that_fits_the_method():
    ramp = np.arange(-4.0, 12.0).reshape(4, 4)
    pictures = [("a", "map", "net", "original", method, "input", npy(ramp)) for method in ("one", "two", "three")]
    made = results({("net", "original", "one", "input", "insertion"): [1.0]}, pictures=pictures)
    clip = {"one": (50.0, 100.0), "t?o": (0.0, 75.0)}
    [maps] = show(made, Statistics.of(made), like="figure1", where={}, labels={}, clip=clip)
    [[above_median, capped, whole]] = maps.cells
    assert above_median.tolist() == np.where(ramp >= np.percentile(ramp, 50), ramp, 0).tolist()
    assert capped == pytest.approx(np.minimum(ramp, np.percentile(ramp, 75)))
    assert whole.tolist() == ramp.tolist()


def test_maps_stand_beside_those_that_a_metric_compared_them_with():
    values = {"map": 0.25, "class_change": 0.5, "adversarial_change(epsilon=0.1)": 1.0}
    pictures = [
        (image, kind, "net", "original", "m", "input", npy(np.full((2, 2), value)))
        for image in ("a", "b")
        for kind, value in values.items()
        if (image, kind) != ("a", "class_change")
    ]
    made = results({("net", "original", "m", "input", "insertion"): [1.0]}, pictures=pictures)
    along = {"rows": "metric", "columns": "method"}
    whole, lacking = show(made, Statistics.of(made), like="figure1", where={}, labels={}, **along)
    assert (whole.image, lacking.image) == ("b", "a")  # photos that have all come first
    assert whole.rows == ("map", "adversarial_change(epsilon=0.1)", "class_change")
    assert [cell[0][0, 0] for cell in whole.cells] == [values[name] for name in whole.rows]
    two = {"metric": ["map", "adversarial*"]}
    first, _ = show(made, Statistics.of(made), like="figure1", where=two, labels={}, **along)
    assert (first.image, [cell[0][0, 0] for cell in first.cells]) == ("a", [0.25, 1.0])
    [maps, _] = show(made, Statistics.of(made), like="figure1", where={}, labels={})
    assert maps.cells[0][0][0, 0] == 0.25  # elsewhere the map alone


def test_a_map_that_was_not_kept_is_an_empty_cell_and_the_photo_is_its_models():
    black, white = (np.full((8, 8, 3), value, np.uint8) for value in (0, 255))
    pictures = [
        ("a", "photo", "one", "", "", "", png(black)),
        ("a", "photo", "two", "", "", "", png(white)),
        ("a", "map", "two", "original", "gradient", "input", npy(np.ones((2, 2)))),
        ("a", "map", "two", "backward", "gradcam", "input", npy(np.zeros((2, 2)))),
    ]
    made = results({("two", "original", "gradient", "input", "insertion"): [1.0]}, pictures=pictures)
    [maps] = show(made, Statistics.of(made), like="figure1", where={"model": "two"}, labels={})
    assert maps.photo.min() == 255
    assert [[cell is None for cell in row] for row in maps.cells] == [[False, True], [True, False]]
    assert show(made, Statistics.of(made), like="figure1", where={"model": "one"}) == ()


@pytest.mark.parametrize(("kind", "message"), [("photo", "a photo among"), ("map", "a map among")])
def test_pictures_that_cannot_be_read_are_named(kind, message):
    pictures = [
        ("a", "photo", "net", "", "", "", b"none" if kind == "photo" else png(np.zeros((8, 8, 3), np.uint8))),
        ("a", "map", "net", "original", "m", "input", b"none" if kind == "map" else npy(np.ones((2, 2)))),
    ]
    made = results({("net", "original", "m", "input", "insertion"): [1.0]}, pictures=pictures)
    with pytest.raises(InvalidData, match=f"{message} the run's pictures cannot be read"):
        show(made, Statistics.of(made), like="figure1", where={})


@pytest.mark.parametrize("like", ["figure5-7", "figure8", "figure9", "figure1"])
def test_what_the_results_do_not_have_is_empty(like):
    where = {"method": "nothing"}
    assert show(like=like, where=where) == ()
    assert show(like="table5", where=where, paper={}).cells == ()


def test_numbers_of_tables_and_lines_are_those_of_claims():
    """One way to a number: what a figure shows is what a claim is judged by."""
    number = found(STATISTICS, Quantity(metric=INSERTION, method="gradcam", layer="layer2.1", variant="forward"))
    line = show(like="figure5-7")[2].lines[5]
    assert (line.mean[2], line.low[2], line.high[2]) == (number.value, number.low, number.high)
