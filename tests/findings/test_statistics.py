"""Means, intervals, paired differences and ranks on tables whose answers are known."""

import math
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from pellucid.errors import InvalidData, UnknownName
from pellucid.findings.intervals import best_row, better, interval
from pellucid.findings.statistics import Statistics
from tests.tables import FACTS, NAN, fact, plausible, results

KEY = ("net", "original", "gradient", "input", "insertion")


def key(method="gradient", layer="input", metric="insertion", variant="original", model="net"):
    return (model, variant, method, layer, metric)


def row(values, of=KEY, reference=None, **settings):
    return Statistics.of(results(values, reference, **settings)).summary.loc[of]


@pytest.mark.parametrize("values", [[1.0], [1.0, 2.0], [1.0, 2.0, NAN, NAN]])
def test_one_or_two_values_have_no_interval_and_no_rank(values):
    found = row({KEY: values, key("random"): values})
    assert math.isnan(found["low"])
    assert math.isnan(found["high"])
    assert math.isnan(found["rank"])
    assert found["mean"] == np.nanmean(values)


# The summary.


def test_mean_deviation_and_counts():
    found = row({KEY: [1.0, 2.0, 6.0, NAN, math.inf]})
    assert found["n"] == 3
    assert found["undefined"] == 2
    assert found["mean"] == 3.0
    assert found["std"] == pytest.approx(math.sqrt(7), rel=1e-12)


def test_no_interval_goes_on_where_no_value_can_be():
    values = [0.7, 0.9, 1.0]
    low, high = (end[0] for end in interval(np.array([values])))
    assert low < 0.8 < 1 < high
    stats = Statistics.of(results({KEY: values}))
    known = stats.metrics["insertion"]
    for ends, expected in (((0, 1), (low, 1)), ((0.8, None), (0.8, high)), ((None, None), (low, high))):
        bounded = replace(stats, metrics={"insertion": known.model_copy(update={"ends": ends})})
        found = bounded.summary.loc[KEY]
        assert (found["low"], found["high"]) == pytest.approx(expected, rel=1e-12)


def test_a_value_of_one_image_has_no_deviation_and_none_has_no_mean():
    found = row({KEY: [4.0]})
    assert found["mean"] == 4
    assert math.isnan(found["std"])
    found = row({KEY: [NAN, NAN, NAN]})
    assert (found["n"], found["undefined"]) == (0, 3)
    assert math.isnan(found["mean"])


def test_an_image_that_was_not_measured_is_not_undefined():
    stats = Statistics.of(results({KEY: [1.0, 2.0, 3.0, 4.0], key("random"): [1.0, NAN]}))
    found = stats.summary.loc[key("random")]
    assert (found["n"], found["undefined"]) == (1, 1)


def test_the_difference_is_paired():
    """Images differ much more than methods do: unpaired intervals would overlap, the paired one is a point."""
    base = np.array([0.0, 10.0, 20.0, 30.0, 40.0])
    values = {key("random"): base, KEY: base + 0.5}
    found = row(values, reference="random")
    assert found["difference"] == pytest.approx(0.5, rel=1e-12)
    np.testing.assert_allclose([found["difference_low"], found["difference_high"]], 0.5, rtol=1e-12)
    stats = Statistics.of(results(values, "random"))
    assert stats.summary.loc[KEY, "low"] < stats.summary.loc[key("random"), "high"]
    assert stats.summary.loc[KEY, "rank"] == 1
    assert stats.summary.loc[key("random"), "rank"] == 2
    assert stats.summary.loc[key("random"), "difference"] == 0


def test_the_difference_is_over_the_images_that_both_have():
    found = row({key("random"): [1.0, NAN, 3.0, 5.0, 5.0], KEY: [2.0, 9.0, NAN, 7.0, 6.0]}, reference="random")
    assert found["paired"] == 3
    assert found["difference"] == pytest.approx((1 + 2 + 1) / 3, rel=1e-12)


def test_without_a_reference_there_is_no_difference():
    found = row({KEY: [1.0, 2.0, 3.0]})
    assert math.isnan(found["difference"])
    assert found["paired"] == 0


def test_methods_are_compared_within_their_variant_and_variants_with_the_original():
    model = ("net", "{}", "", "", "prediction_difference")
    values = {
        key("random"): [1.0, 1.0, 1.0], KEY: [3.0, 3.0, 3.0],
        key("random", variant="forward"): [7.0, 7.0, 7.0], key(variant="forward"): [8.0, 8.0, 8.0],
        ("net", "original", *model[2:]): [0.0, 0.0, 0.0], ("net", "forward", *model[2:]): [4.0, 5.0, 6.0],
    }  # fmt: skip
    summary = Statistics.of(results(values, "random")).summary
    assert summary.loc[key(variant="forward"), "difference"] == pytest.approx(1, rel=1e-12)
    assert summary.loc[KEY, "difference"] == pytest.approx(2, rel=1e-12)
    assert summary.loc[("net", "forward", *model[2:]), "difference"] == pytest.approx(5, rel=1e-12)
    assert summary.loc[("net", "forward", *model[2:]), "rank"] == 2
    assert summary.loc[KEY, "rank"] == summary.loc[key(variant="forward"), "rank"] == 1


def test_ties_share_a_rank_and_the_next_is_counted_behind_all_that_beat_it():
    noise = np.array([0.2, -0.2, 0.1, -0.1, 0.05, -0.05])
    values = {key("a"): 5 + noise, key("b"): 5 - noise, key("c"): 4 + noise, key("d"): 3 + noise * 0}
    ranks = Statistics.of(results(values)).summary.loc["net", "original", :, "input", "insertion"]["rank"]
    assert ranks.tolist() == [1, 1, 3, 4]
    fewer = {(*name[:4], "deletion"): numbers for name, numbers in values.items()}
    ranks = Statistics.of(results(fewer)).summary.loc["net", "original", :, "input", "deletion"]["rank"]
    assert ranks.tolist() == [3, 3, 2, 1]


def test_equal_values_and_rounding_are_ties():
    same = np.linspace(1, 2, 8)
    values = {key("a"): same, key("b"): same, key("c"): same * (1 + 1e-8)}
    assert Statistics.of(results(values)).summary["rank"].unique().tolist() == [1]


def test_ranks_agree_with_a_loop_over_pairs():
    stats = Statistics.of(plausible(layers=("input",), variants=("original",)))
    values, _, summary = stats.contenders("net", "input", "cascade_ssim")
    for name, mine in values.iterrows():
        better = 0
        for other, theirs in values.iterrows():
            low, _ = interval((mine - theirs).to_numpy()[None])
            better += low[0] > 0 and name != other
        assert summary.loc[name, "rank"] == 1 + better


# Layers.


def test_each_method_stands_at_its_own_best_layer():
    """Also what has maps at one layer alone; lower is better for deletion."""
    values = {
        KEY: [0.1, 0.2, 0.3], key(layer="deep"): [0.7, 0.9, 0.8], key("elsewhere", "deep"): [0.7, 0.9, 0.8],
        key(metric="deletion"): [0.1, 0.2, 0.3], key(layer="deep", metric="deletion"): [0.7, 0.9, 0.8],
    }  # fmt: skip
    best = Statistics.of(results(values)).best
    assert list(best.values.index) == [
        key(layer="deep"), key("elsewhere", "deep"), key(metric="deletion"),
    ]  # fmt: skip
    assert best.values.loc[key(layer="deep")].tolist() == [0.7, 0.9, 0.8]
    assert best.summary.loc[key(layer="deep"), ["rank", "shared"]].tolist() == [1, True]
    assert best.summary.loc[key("elsewhere", "deep"), ["rank", "shared"]].tolist() == [1, True]


def test_a_map_that_is_the_image_is_no_choice_beside_others():
    """Of a method made for hidden layers, whose map at the input is best by the metric."""
    values = {KEY: [9.0] * 3, key(layer="deep"): [1.0] * 3, key("alone"): [2.0] * 3}
    found = Statistics.of(results(values))
    assert list(found.best.values.index) == [KEY, key("alone")]
    of_hidden = replace(found, hidden=(KEY[2], "alone"))
    assert list(of_hidden.best.values.index) == [key(layer="deep"), key("alone")]


def test_each_half_of_the_images_is_checked_at_the_layer_that_is_best_on_the_other():
    """The first image alone makes "deep" better: on the second and fourth "input" is, where others are checked."""
    values = {KEY: [1.0, 2.0, 1.5, 2.5], key(layer="deep"): [9.0, 1.0, 1.0, 1.25]}
    best = Statistics.of(results(values)).best
    assert best.values.loc[key(layer="deep")].tolist() == [9.0, 1.0, 1.0, 1.25]
    assert best.checked.loc[key(layer="deep")].tolist() == [1.0, 1.0, 1.5, 1.25]


def test_what_only_the_choice_of_a_layer_makes_better_is_not_told_apart():
    """Forty layers of noise beside a method of zeros: the best of them is told from 0 in half of all trials."""
    rng = np.random.default_rng(0)
    flattered, told = 0, 0
    for _ in range(200):
        noise = rng.normal(size=(40, 20))
        place, each = best_row(noise, True)
        named, checked = (np.stack([row, np.zeros(20)]) for row in (noise[place], noise[each, np.arange(20)]))
        flattered += better(named, True)[0, 1]
        told += better(named, True, checked)[0, 1]
    assert flattered > 60
    assert told < 20


@pytest.mark.parametrize("deep", [[9.0, NAN, NAN, NAN], [9.0, 9.0, NAN, NAN], [9.0, 9.0, 9.0, NAN]])
def test_a_layer_at_which_images_are_undefined_is_no_choice_beside_one_of_all(deep):
    """As a gradient below global pooling: the mean would be over other images than that of all else."""
    values = {KEY: [1.0, 2.0, 3.0, 4.0], key(layer="deep"): deep}
    found = Statistics.of(results(values)).best
    assert list(found.values.index) == [KEY]


def test_a_layer_at_which_one_of_ten_images_is_undefined_may_be_the_best():
    values = {KEY: [1.0] * 10, key(layer="deep"): [NAN] + [9.0] * 9}
    found = Statistics.of(results(values)).best
    assert list(found.values.index) == [key(layer="deep")]
    assert found.summary["undefined"].tolist() == [1]


def test_differences_are_to_the_reference_at_its_own_best_layer():
    values = {
        KEY: [1.0, 2.0, 3.0], key(layer="deep"): [0.0, 0.0, 0.0],
        key("other"): [0.0, 0.0, 0.0], key("other", "deep"): [3.0, 3.0, 3.0],
    }  # fmt: skip
    found = Statistics.of(results(values, "gradient")).best.summary
    assert found.loc[key("other", "deep"), "difference"] == pytest.approx((2 + 1 + 0) / 3, rel=1e-12)


def test_layers_and_who_has_no_maps_there():
    stats = Statistics.of(results({KEY: [1.0] * 3, key(layer="deep"): [2.0] * 3, key("elsewhere"): [3.0] * 3}))
    assert stats.layers("net") == ["input", "deep"]
    assert stats.absent("net", "deep", "insertion") == ["elsewhere"]
    assert stats.absent("net", "input", "insertion") == stats.absent("net", None, "insertion") == []
    with pytest.raises(UnknownName, match="nett"):
        stats.layers("nett")


def test_curves_at_the_best_layer_are_those_of_that_layer():
    curves = [
        (one, at, None, [at, at, at])
        for one in (KEY, key(layer="deep"))
        for at in (0.0, 1.0, 2.0)[: 2 + (one != KEY)]
    ]
    stats = Statistics.of(results({KEY: [1.0, 2.0, 3.0], key(layer="deep"): [5.0] * 3}, curves=curves))
    assert len(stats.drawn("net", "original", None)) == len(stats.drawn("net", "original", "deep")) == 3
    assert len(stats.drawn("net", "original", "input")) == 2


# Curves.


def test_curves_have_the_mean_at_each_point():
    curves = [(KEY, at, None, [at, at + 1, at + 2]) for at in (0.0, 0.5, 1.0)]
    stats = Statistics.of(results({KEY: [1.0, 2.0, 3.0]}, curves=curves))
    found = stats.curves.sort_index().loc[KEY]
    assert found.index.get_level_values("at").tolist() == [0, 0.5, 1]
    np.testing.assert_allclose(found["mean"], [1, 1.5, 2], rtol=1e-12)
    assert (found["low"] < found["mean"]).all()
    assert len(stats.values) == 1


def test_curves_keep_their_steps_names_and_long_ones_are_thinned_to_their_ends():
    named = [(KEY, at, step, [1.0, 2.0, 3.0]) for at, step in enumerate(["none", "fc", "conv1"])]
    fine = [(key(metric="deletion"), at / 224, None, [at, at, at]) for at in range(225)]
    stats = Statistics.of(results({KEY: [1.0, 2.0, 3.0]}, curves=named + fine))
    drawn = stats.curves.sort_index()
    assert drawn.loc[KEY].index.get_level_values("step").tolist() == ["none", "fc", "conv1"]
    places = drawn.loc[key(metric="deletion")].index.get_level_values("at")
    assert len(places) == 57
    assert (places[0], places[-1]) == (0, 1)
    assert np.diff(places).max() < 1.3 * np.diff(places).min() + 1e-12


# What cannot be.


def test_an_empty_table_and_a_value_twice_are_refused():
    with pytest.raises(InvalidData, match="no cell of the run has finished"):
        Statistics.of(results({KEY: []}))
    twice = results({KEY: [1.0, 2.0]})
    object.__setattr__(twice, "table", pd.concat([twice.table] * 2))
    with pytest.raises(InvalidData, match="two values of insertion for image-0"):
        Statistics.of(twice)


def test_a_metrics_name_is_its_text_where_two_share_it():
    facts = FACTS | {"insertion(steps=7)": fact("insertion", "faithfulness", True)}
    stats = Statistics.of(results({KEY: [1.0], key(metric="insertion(steps=7)"): [1.0]}, facts=facts))
    assert stats.label("insertion") == "insertion"
    assert stats.label("insertion(steps=7)") == "insertion(steps=7)"
    alone = Statistics.of(results({key(metric="total_variation"): [1.0]}))
    assert alone.label("total_variation") == "total variation"


def test_hits_have_the_interval_of_a_share():
    """Also where all of them are alike; other values between 0 and 1 have that of any."""
    ended = {**FACTS, "insertion": FACTS["insertion"].model_copy(update={"ends": (0.0, 1.0)})}
    summaries = [
        Statistics.of(results({KEY: values}, facts=facts)).summary
        for values, facts in (([1.0] * 8, ended), ([1.0] * 7 + [0.5], ended), ([1.0] * 8, FACTS))
    ]
    ends = [(one["low"].item(), one["high"].item()) for one in summaries]
    assert ends[0] == pytest.approx((0.025 ** (1 / 8), 1.0), rel=1e-9)
    low, high = interval(np.array([[1.0] * 7 + [0.5]]))
    assert ends[1] == (low[0], min(high[0], 1.0))
    assert ends[2] == (1.0, 1.0)
