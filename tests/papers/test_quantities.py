"""Quantities and verdicts against loops over images and rows."""

import math

import numpy as np
import pytest

from pellucid.findings.intervals import interval
from pellucid.findings.statistics import Statistics
from pellucid.papers.quantities import found, per_image, selected, verdict
from pellucid.papers.recipe import Claim, Quantity, RowFilter
from pellucid.papers.recipe import Test as Bound
from tests.tables import NAN, plausible, results

GRADIENT = ("net", "original", "gradient", "input", "insertion")


def key(method="gradient", layer="input", metric="insertion", variant="original", model="net"):
    return (model, variant, method, layer, metric)


def statistics_of(values, **more):
    return Statistics.of(results(values, **more))


def known(values):
    return [value for value in values if not math.isnan(value)]


def check(statistics, quantity, one, images, rows):
    """``one`` (places of images) -> the number; its interval is that of the jackknife's values."""
    number = found(statistics, quantity)
    whole = list(range(statistics.images))
    value = one(whole)
    assert number.value == pytest.approx(value, rel=1e-10)
    assert (number.images, number.rows) == (images, rows)
    measured = [place for place, of in enumerate(number.values) if not math.isnan(of)]
    left = np.array([one([place for place in whole if place != gone]) for gone in measured])
    values = (len(left) - 1) * (value - left)
    values = value + values - values.mean()
    np.testing.assert_allclose(number.values[measured], values, rtol=1e-6, atol=1e-6)
    ends = interval(values[None])
    np.testing.assert_allclose([number.low, number.high], np.ravel(ends), rtol=1e-6)


NOISE = np.random.default_rng(0).uniform(1, 2, size=(6, 9))


# Which rows.


def test_rows_are_chosen_by_patterns():
    values = {key(method, layer): [1.0] * 3 for method in ("gradient", "gradcam") for layer in ("input", "deep")}
    table = statistics_of(values).values
    assert len(table) == 4
    assert [row[2:4] for row in selected(table, RowFilter()).index] == [
        ("gradient", "input"), ("gradient", "deep"), ("gradcam", "input"), ("gradcam", "deep")
    ]  # fmt: skip
    assert len(selected(table, RowFilter(method="grad*", layer="deep"))) == 2
    assert len(selected(table, RowFilter(method=("gradient", "grad?am"), layer="inp*"))) == 2
    assert len(selected(table, RowFilter(method="Gradient"))) == 0


def test_a_name_with_brackets_is_found_by_itself():
    name = "occluded(gradient, shape=[2, 2])"
    table = statistics_of({key(name): [1.0] * 3, key(): [2.0] * 3}).values
    assert len(selected(table, RowFilter(method=name))) == 1


# Means and deviations.


def test_a_mean_is_over_rows_of_the_means_over_images():
    statistics = statistics_of({key(): NOISE[0], key(layer="deep"): [*NOISE[1][:5], NAN, NAN, *NOISE[1][7:]]})
    table = selected(statistics.values, RowFilter()).to_numpy()
    check(statistics, Quantity(), lambda at: np.mean([np.mean(known(row[at])) for row in table]), 7, 2)


def test_a_deviation_is_that_of_the_sample():
    statistics = statistics_of({key(): NOISE[0] + 1e6})
    check(statistics, Quantity(how="std"), lambda at: np.std((NOISE[0] + 1e6)[at], ddof=1), 9, 1)


def test_the_mean_of_a_row_without_a_value_is_no_number():
    statistics = statistics_of({key(): [NAN] * 3, key("other"): [1.0, 2.0, 3.0]})
    assert found(statistics, Quantity(method="gradient")) is None
    assert found(statistics, Quantity()).value == 2.0
    assert found(statistics, Quantity()).rows == 1
    assert found(statistics, Quantity(method="nothing")) is None


def test_two_images_have_no_interval():
    number = found(statistics_of({key(): [1.0, 3.0]}), Quantity())
    assert number.value == 2.0
    assert math.isnan(number.low)
    assert math.isnan(number.high)


# Comparisons.

VARIANTS = {
    key(layer=layer, variant=variant): NOISE[index]
    for index, (layer, variant) in enumerate(
        [(layer, variant) for layer in ("input", "deep", "deeper") for variant in ("original", "backward")]
    )
}


@pytest.mark.parametrize("how", ["difference", "ratio", "reduction"])
def test_a_comparison_is_made_for_each_layer_and_then_averaged(how):
    statistics = statistics_of(VARIANTS)
    quantity = Quantity(variant="backward", how=how, against={"variant": "original"})

    def one(at):
        each = []
        for layer in ("input", "deep", "deeper"):
            ours, theirs = (
                np.mean(VARIANTS[key(layer=layer, variant=name)][at]) for name in ("backward", "original")
            )
            each.append({"difference": ours - theirs, "ratio": ours / theirs, "reduction": 1 - ours / theirs}[how])
        return np.mean(each)

    check(statistics, quantity, one, 9, 3)


def test_several_rows_compared_with_are_averaged_and_so_are_several_compared():
    values = {key(method): NOISE[index] for index, method in enumerate(["a", "b", "c", "random", "edges"])}
    quantity = Quantity(method=("a", "b"), how="ratio", against={"method": ("random", "edges")})
    check(
        statistics_of(values),
        quantity,
        lambda at: np.mean([NOISE[0][at], NOISE[1][at]]) / np.mean([NOISE[3][at], NOISE[4][at]]),
        9,
        1,
    )


def test_only_images_that_both_have_are_compared():
    ours, theirs = NOISE[0].copy(), NOISE[1].copy()
    ours[2] = theirs[5] = NAN
    both = np.isfinite(ours) & np.isfinite(theirs)
    statistics = statistics_of({key(): ours, key("random"): theirs})
    quantity = Quantity(method="gradient", how="difference", against={"method": "random"})

    def one(at):
        at = [place for place in at if both[place]]
        return np.mean(ours[at]) - np.mean(theirs[at])

    check(statistics, quantity, one, 7, 1)


def test_places_that_only_one_side_has_are_left_out():
    values = {key(): NOISE[0], key(layer="deep"): NOISE[1], key("random"): NOISE[2]}
    quantity = Quantity(method="gradient", how="difference", against={"method": "random"})
    check(statistics_of(values), quantity, lambda at: np.mean((NOISE[0] - NOISE[2])[at]), 9, 1)


@pytest.mark.parametrize(("method", "other"), [("gradient", "none"), ("none", "gradient"), ("none", "nothing")])
def test_nothing_to_compare_is_no_number(method, other):
    statistics = statistics_of({key(): NOISE[0]})
    quantity = Quantity(method=method, how="ratio", against={"method": other})
    assert found(statistics, quantity) is None
    assert per_image(statistics, quantity) is None


def test_a_ratio_to_zero_is_undefined_and_has_no_interval():
    statistics = statistics_of({key(): [1.0, 2.0, 3.0], key("random"): [0.0, 0.0, 0.0]})
    number = found(statistics, Quantity(method="gradient", how="ratio", against={"method": "random"}))
    assert math.isnan(number.value)
    assert math.isnan(number.low)


# Curves.


def test_a_curve_is_asked_by_its_step_or_its_level():
    steps = list(enumerate(["none", "fc", "conv1"]))
    curves = [
        (key(layer=layer), float(at), step, NOISE[at] + shift)
        for layer, shift in (("input", 0), ("deep", 1))
        for at, step in steps
    ]
    curves += [(key(metric="deletion"), at / 10, None, NOISE[3] * at) for at in range(11)]
    values = {key(): NOISE[0], key(layer="deep"): NOISE[0], key(metric="deletion"): NOISE[0]}
    statistics = statistics_of(values, curves=curves)
    check(statistics, Quantity(step="fc", layer="deep"), lambda at: np.mean(NOISE[1][at]) + 1, 9, 1)
    check(statistics, Quantity(step="fc"), lambda at: np.mean(NOISE[1][at]) + 0.5, 9, 2)
    check(statistics, Quantity(metric="deletion", at=0.3), lambda at: np.mean(NOISE[3][at]) * 3, 9, 1)
    quantity = Quantity(step="conv1", layer="deep", how="difference", against={"layer": "input"})
    number = found(statistics, quantity)
    np.testing.assert_allclose([number.value, number.low, number.high], 1, rtol=1e-12)
    assert found(statistics, Quantity(step="fc2")) is None
    assert found(statistics, Quantity(metric="deletion", at=0.35)) is None


# An image's own number.


def test_an_images_number_is_the_mean_of_its_rows():
    deep = NOISE[1].copy()
    deep[4] = NAN
    statistics = statistics_of({key(): NOISE[0], key(layer="deep"): deep})
    expected = (NOISE[0] + deep) / 2
    np.testing.assert_allclose(per_image(statistics, Quantity()), expected, rtol=1e-12)


@pytest.mark.parametrize("how", ["difference", "ratio", "reduction"])
def test_an_images_comparison_is_made_for_each_layer_and_then_averaged(how):
    expected = np.empty(9)
    for image in range(9):
        each = []
        for row in (0, 2, 4):
            theirs, ours = NOISE[row][image], NOISE[row + 1][image]
            each.append({"difference": ours - theirs, "ratio": ours / theirs, "reduction": 1 - ours / theirs}[how])
        expected[image] = np.mean(each)
    quantity = Quantity(variant="backward", how=how, against={"variant": "original"})
    np.testing.assert_allclose(per_image(statistics_of(VARIANTS), quantity), expected, rtol=1e-12)


# Numbers of the whole statistics agree.


def test_a_mean_of_one_row_is_that_of_the_summary():
    statistics = Statistics.of(plausible())
    for place in [key(metric="cascade_ssim"), key("gradcam", "layer2.1", "total_variation", "forward")]:
        row = statistics.summary.loc[place]
        quantity = Quantity(**dict(zip(("model", "variant", "method", "layer", "metric"), place, strict=True)))
        number = found(statistics, quantity)
        np.testing.assert_allclose(
            [number.value, number.low, number.high], row[["mean", "low", "high"]].to_numpy(float), rtol=1e-12
        )
        assert number.images == row["n"]


# Verdicts.


def claim(*tests):
    return Claim(text="it does", place="Sec. 1", tests=tests)


def a_test(method="gradient", **side):
    return Bound(experiment="run", method=method, **side)


STEADY = {
    "run": statistics_of(
        {
            key("high"): [0.79, 0.8, 0.81] * 4,
            key("low"): [0.2, 0.21, 0.19] * 4,
            key("few"): [0.8, 0.9] + [NAN] * 10,
        }
    )
}


@pytest.mark.parametrize(
    ("tests", "word", "reason"),
    [
        ([a_test("high", above=0.5)], "holds", ""),
        ([a_test("low", below=0.5)], "holds", ""),
        ([a_test("high", above=0.5), a_test("low", below=0.5)], "holds", ""),
        ([a_test("high", below=0.5)], "does not hold", ""),
        ([a_test("low", above=0.5)], "does not hold", ""),
        ([a_test("high", above=0.5), a_test("low", above=0.5)], "does not hold", ""),
        ([a_test("high", above=0.8)], "undecided", "12 values do not tell it from 0.8, nor would a million"),
        ([a_test("high", above=0.799)], "undecided", "12 values do not tell it from 0.799; about 570 would"),
        ([a_test("high", above=0.8), a_test("low", above=0.5)], "does not hold", ""),
        ([a_test("few", above=0.5)], "undecided", "2 values are too few for an interval"),
        ([a_test("nobody", above=0.5)], "not tested", "this run has no such results"),
        ([a_test("high", above=0.5), a_test("nobody", above=0.5)], "not tested", "no such results"),
        ([a_test("low", above=0.5), a_test("nobody", above=0.5)], "does not hold", ""),
    ],
)
def test_a_claim_is_judged_by_where_the_intervals_lie(tests, word, reason):
    judged = verdict(claim(*tests), STEADY)
    assert judged.word == word
    assert reason in judged.reason
    assert bool(judged.reason) == bool(reason)
    assert len(judged.found) == len(tests)


def test_an_experiment_that_was_not_run_decides_nothing():
    judged = verdict(claim(Bound(experiment="other", above=1)), STEADY)
    assert (judged.word, judged.found) == ("not tested", (None,))


def test_an_interval_that_ends_at_the_bound_but_for_rounding_is_open():
    same = {"run": statistics_of({key(): [0.5, 0.5, 0.5]})}
    assert verdict(claim(a_test(above=0.5)), same).word == "undecided"
    assert verdict(claim(a_test(above=0.5 - 1e-8)), same).word == "undecided"
    assert verdict(claim(a_test(above=0.499)), same).word == "holds"
    assert verdict(claim(a_test(below=0.5)), same).word == "undecided"
    assert verdict(claim(a_test(below=0.499)), same).word == "does not hold"


def test_a_claim_without_tests_says_why():
    judged = verdict(Claim(text="people prefer it", place="Sec. 5", because="it asks people"), STEADY)
    assert (judged.word, judged.found, judged.reason) == ("not tested", (), "it asks people")


def test_one_of_many_tests_is_not_refuted_by_chance():
    """Holm: of twenty true claims one lies beyond its interval, and the claim does not fall for it."""
    rng = np.random.default_rng(3)
    rows = rng.normal(size=(20, 60))
    rows = (rows - rows.mean(1, keepdims=True)) / rows.std(1, ddof=1, keepdims=True)
    rows[7] -= 2.3 / math.sqrt(60)  # beyond 95 % (2.0), not beyond 1 - 0.05 / 20 (3.2)
    run = {"run": statistics_of({key(f"m{place}"): row for place, row in enumerate(rows)})}
    assert verdict(claim(a_test("m7", above=0)), run).word == "does not hold"
    judged = verdict(claim(*(a_test(f"m{place}", above=0) for place in range(20))), run)
    assert (judged.word, set(judged.sides)) == ("undecided", {0})
    # Holm's second step: with one clearly refuted, the next has to pass a nineteenth of the level alone.
    rows[3] -= 9 / math.sqrt(60)
    run = {"run": statistics_of({key(f"m{place}"): row for place, row in enumerate(rows)})}
    judged = verdict(claim(*(a_test(f"m{place}", above=0) for place in (3, 7))), run)
    assert judged.sides == (-1, -1)
    judged = verdict(claim(*(a_test(f"m{place}", above=0) for place in range(20))), run)
    assert (judged.word, judged.sides.count(-1), judged.sides[7]) == ("does not hold", 1, 0)


def test_a_test_is_made_for_each_name_that_it_asks_for():
    rows = {key("a", layer): NOISE[place] for place, layer in enumerate(("input", "deep", "deeper"))}
    rows |= {key("b", layer): NOISE[place] + 1 for place, layer in enumerate(("input", "deep"))}
    run = {"run": statistics_of(rows)}
    each = Bound(experiment="run", method=("b", "a"), each=("method", "layer"), above=1)
    judged = verdict(claim(each), run)
    places = [(test.method[0], test.layer[0]) for test in judged.tests]
    assert places == [("a", "input"), ("a", "deep"), ("a", "deeper"), ("b", "input"), ("b", "deep")]
    assert [one.value for one in judged.found] == [pytest.approx(values.mean()) for values in rows.values()]
    assert judged.word == "holds"
    assert verdict(claim(a_test("nobody", above=0, each="layer")), run).word == "not tested"


def test_steps_of_a_curve_are_compared_with_each_other():
    curves = [(key(), float(at), step, NOISE[at]) for at, step in enumerate(["none", "fc", "conv1"])]
    statistics = statistics_of({key(): NOISE[3]}, curves=curves)
    quantity = Quantity(step="conv1", how="ratio", against={"step": "fc"})
    check(statistics, quantity, lambda at: np.mean(NOISE[2][at]) / np.mean(NOISE[1][at]), 9, 1)


def test_a_verdict_names_the_number_that_it_hangs_on():
    open_ = [a_test("high", above=0.795), a_test("high", above=0.799)]
    judged = verdict(claim(*open_), STEADY)
    assert (judged.word, judged.place) == ("undecided", 1)
    assert judged.reason.startswith("12 values do not tell it from 0.799;")
    assert verdict(claim(*open_, a_test("high", below=0.5)), STEADY).place == 2
    assert verdict(claim(*open_, a_test("nobody", below=0.5)), STEADY).place == 2
